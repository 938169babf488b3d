//! Gates: named predicates in a chain; the first that fails says why, with its reason and the cure.
//!
//! Pure. `plan` runs a chain before each step that cannot be taken back, again on the live pool right before it acts, and
//! again before a freshly made disk is claimed.
//!
//! Longer than 350 lines: each gate is three lines of rule and the words that tell its cure.

use lamina_guest::disk::bound::{Source, judged};
use lamina_guest::report::Report;

use super::config::{self, Read};
use super::doubt::Doubt;
use super::identity::BOOT;
use super::making;
use super::observed::{Disk, Holder, Machine, Making, Observed, OsDisk, Power, Storage, Trouble};
use super::report::{self, Finding, fitting, named};
use super::want::{BaseFrom, FinalizePolicy, IntegrityPolicy, Want};
use crate::api::reason::Reason;

/// XAPI ends a chain at 30; each version adds one or two levels, and the work needs room too.
const DEEPEST_BASE: u32 = 20;
/// Of a version that another one is made from: its clone and the freeze of that must still fit, or days of work could not be kept.
pub const DEEPEST_SOURCE: u32 = 26;
/// Versions of one layer.
const MOST_VERSIONS: usize = 64;

type Gate<T> = fn(&T) -> Result<(), Trouble>;

/// Before anything is made for a version.
pub fn entry(want: &Want, seen: &Observed) -> Result<(), Trouble> {
    name_is_free(want, seen)?;
    versions_left(want, seen)?;
    seen.machine_source.clone()?;
    slot_is_ours(seen)
}

fn name_is_free(want: &Want, seen: &Observed) -> Result<(), Trouble> {
    match &seen.name_taken_by {
        None => Ok(()),
        Some(other) => Err(Trouble::new(
            Reason::NameConflict,
            format!(
                "layer name '{}' belongs to the older {other} on this Connector: set another spec.layerName, or delete one of the two",
                want.layer_name
            ),
        )),
    }
}

fn versions_left(_: &Want, seen: &Observed) -> Result<(), Trouble> {
    if seen.records.versions.len() < MOST_VERSIONS {
        return Ok(());
    }
    Err(Trouble::new(
        Reason::TooManyVersions,
        format!("the layer has {MOST_VERSIONS} versions, which is the most: start a new layer with base.from: OSLayer"),
    ))
}

fn slot_is_ours(seen: &Observed) -> Result<(), Trouble> {
    seen.slot.clone().map_err(|holders| {
        Trouble::new(Reason::WaitingForSlot, format!("all machine slots of the Connector (spec.limits.machines) are taken by {holders}: this layer goes on when one of them is finalized, discarded or deleted, or when limits.machines is raised"))
    })
}

/// Before the OS disk is snapshotted, and again before the snapshot is claimed.
pub fn os_disk(os: &OsDisk, storage: &Storage, under_way: bool) -> Result<(), Trouble> {
    const CHAIN: [Gate<OsDisk>; 7] = [
        os_is_there,
        os_is_no_snapshot,
        os_is_a_plain_disk,
        os_is_persistent,
        os_is_shallow,
        os_is_at_rest,
        os_is_not_paused,
    ];
    CHAIN.iter().try_for_each(|gate| gate(os))?;
    // A snapshot that is under way has taken its room, or fails for want of it.
    if under_way {
        return Ok(());
    }
    let need = if storage.thick { os.virtual_size } else { 0 };
    room(storage, need, &format!("a snapshot of OS disk '{}'", os.name))
}

fn os_is_there(os: &OsDisk) -> Result<(), Trouble> {
    if os.managed && !os.missing {
        return Ok(());
    }
    Err(Trouble::new(
        Reason::OSDiskNotFound,
        format!(
            "OS disk '{}' ({}) is missing from its storage repository: restore it, or name another disk in osLayer.disk",
            os.name, os.uuid
        ),
    ))
}

fn os_is_no_snapshot(os: &OsDisk) -> Result<(), Trouble> {
    if !os.snapshot {
        return Ok(());
    }
    Err(Trouble::new(
        Reason::OSDiskIsSnapshot,
        format!(
            "OS disk '{}' ({}) is a snapshot: clone it (xe vdi-clone uuid={}) and name the clone",
            os.name, os.uuid, os.uuid
        ),
    ))
}

fn os_is_a_plain_disk(os: &OsDisk) -> Result<(), Trouble> {
    if !os.sharable && matches!(os.kind.as_str(), "user" | "system") {
        return Ok(());
    }
    Err(Trouble::new(
        Reason::OSDiskUnsuitable,
        format!(
            "OS disk '{}' ({}) is sharable or of type '{}': name an ordinary disk of type user or system",
            os.name, os.uuid, os.kind
        ),
    ))
}

fn os_is_persistent(os: &OsDisk) -> Result<(), Trouble> {
    if os.persist {
        return Ok(());
    }
    Err(Trouble::new(
        Reason::OSDiskUnsuitable,
        format!(
            "OS disk '{}' ({}) is reset at every boot: set on-boot to persist (xe vdi-param-set uuid={} on-boot=persist)",
            os.name, os.uuid, os.uuid
        ),
    ))
}

fn os_is_shallow(os: &OsDisk) -> Result<(), Trouble> {
    if os.depth < DEEPEST_BASE {
        return Ok(());
    }
    Err(Trouble::new(
        Reason::OSDiskChainTooDeep,
        format!(
            "OS disk '{}' ({}) hangs on {} layers of snapshots, the most is {DEEPEST_BASE}: make a full copy (xe vdi-copy) and name that",
            os.name, os.uuid, os.depth
        ),
    ))
}

fn os_is_at_rest(os: &OsDisk) -> Result<(), Trouble> {
    if os.writers.is_empty() {
        return Ok(());
    }
    Err(Trouble::new(
        Reason::OSDiskInUse,
        format!("OS disk '{}' ({}) is in use by {}: shut that machine down", os.name, os.uuid, os.writers.join(", ")),
    ))
}

fn os_is_not_paused(os: &OsDisk) -> Result<(), Trouble> {
    if !os.paused {
        return Ok(());
    }
    Err(source_paused(&os.name, &os.uuid))
}

/// A storage driver that died in the middle leaves a disk paused; only a person may say that nothing is at work on it.
pub fn source_paused(name: &str, uuid: &str) -> Trouble {
    Trouble::new(
        Reason::SourcePaused,
        format!(
            "disk '{name}' ({uuid}) was left paused by an interrupted operation of its storage: when nothing works on it, run \
                 xe vdi-param-remove uuid={uuid} param-name=sm-config param-key=paused"
        ),
    )
}

/// Room for `need` more bytes. Free space is not told: it never rests.
pub fn room(storage: &Storage, need: i64, what: &str) -> Result<(), Trouble> {
    // A thin disk grows as it is written; without any room at all not even its tables can be made.
    if storage.free > need {
        return Ok(());
    }
    Err(Trouble::new(
        Reason::StorageFull,
        format!("storage repository '{}' has no room for {what}: free space on it", storage.name),
    ))
}

/// The base of a new version, as `spec.base` and the finalized versions say.
#[derive(Clone, Debug, PartialEq)]
pub enum BaseChoice {
    OsLayer,
    /// The disk F of this version.
    Version {
        version: String,
        disk: String,
    },
}

/// `base`: uuid of S for the wanted OS disk and version, if it is there.
pub fn choose_base(
    want: &Want,
    seen_versions: &[super::observed::VersionRecord],
    base: Option<&str>,
) -> Result<BaseChoice, Trouble> {
    let on_base = |v: &&super::observed::VersionRecord| Some(v.base.as_str()) == base;
    let take =
        |v: &super::observed::VersionRecord| BaseChoice::Version { version: v.version.clone(), disk: v.disk.clone() };
    let other_os = || {
        Trouble::new(
            Reason::BaseOnOtherOSLayer,
            format!(
                "no finalized version stands on OS layer '{}' version '{}' in the Connector's storage repository, or somebody destroyed the base that they stood on: set base.from: OSLayer and install again",
                want.os_name, want.os_version
            ),
        )
    };
    match want.base_from {
        BaseFrom::OSLayer => Ok(BaseChoice::OsLayer),
        BaseFrom::Latest if seen_versions.is_empty() => Ok(BaseChoice::OsLayer),
        BaseFrom::Latest => seen_versions.iter().rev().find(on_base).map(take).ok_or_else(other_os),
        BaseFrom::Version => {
            let wanted = want.base_version.as_deref().unwrap_or_default();
            let found = seen_versions.iter().find(|v| v.version == wanted).ok_or_else(|| {
                let known: Vec<_> = seen_versions.iter().map(|v| v.version.as_str()).collect();
                Trouble::new(
                    Reason::BaseVersionUnknown,
                    format!("base version '{wanted}' is not among the finalized versions ({})", known.join(", ")),
                )
            })?;
            Some(found).filter(on_base).map(take).ok_or_else(other_os)
        }
    }
}

/// How the report of the last boot stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// `Err`: why no report counts.
    pub counts: Result<(), Doubt>,
    pub findings: Vec<Finding>,
    /// The report that was judged, and the way it came; none where none counts.
    pub report: Option<Report>,
    pub source: Option<Source>,
}

/// Judges what the guest wrote, with the machine as it stands. It has two ways to tell it, and either is enough; two that count and say
/// different things block whatever the policy.
pub fn judge(want: &Want, seen: &Observed, machine: &Machine) -> Judgement {
    let in_xenstore = machine.report.as_ref().map(|r| report::counts(r, machine).map(|()| r.clone()));
    let read = config::last_read(machine);
    let on_disk = read.and_then(Read::report).filter(|r| r.sealed);
    let good = in_xenstore.clone().and_then(Result::ok);
    let (source, report, contradiction) = match judged(good.as_ref().map(report::kept), on_disk) {
        // Compared as the other was kept, and judged as it came.
        Ok(Some((Source::XenStore, kept))) => (Source::XenStore, good.unwrap_or(kept), None),
        Ok(Some((source, report))) => (source, report, None),
        Err(contradiction) => (Source::XenStore, good.unwrap_or_default(), Some(contradiction)),
        Ok(None) => {
            let on_disk = read.and_then(|r| r.unbound.clone());
            let counts = match (in_xenstore.and_then(Result::err), on_disk) {
                (Some(one), Some(other)) => Err(Doubt::new(one.reason, format!("{}; {}", one.why, other.why))),
                (Some(one), None) | (None, Some(one)) => Err(one),
                (None, None) if config::is_lost(seen, machine) => {
                    let why = "the guest wrote no report in xenstore, and its config disk, which may have had one, is gone from the pool";
                    Err(Doubt::new(Reason::ConfigDiskLost, why))
                }
                (None, None) => Err(Doubt::new(Reason::NoReport, "the guest wrote no report")),
            };
            return Judgement { counts, findings: Vec::new(), report: None, source: None };
        }
    };
    let mut findings = report::judge(&report);
    if want.kms_rearm {
        report::judge_rearm(&report, &mut findings);
    }
    findings.extend(contradiction.map(|c| Finding {
        reason: Reason::ReportsDiffer.as_str().to_owned(),
        detail: c.to_string(),
        remedy: Reason::ReportsDiffer.remedy().to_owned(),
        always: true,
    }));
    Judgement { counts: Ok(()), findings: fitting(findings), report: Some(report), source: Some(source) }
}

/// Which machine it is and where, for a person.
pub fn place(m: &Machine) -> String {
    let host = m.host.as_ref().map(|h| format!(", on host '{h}'")).unwrap_or_default();
    let address = m.address.as_ref().map(|a| format!(", address {a}")).unwrap_or_default();
    format!("machine '{}' ({}{host}{address})", m.name, m.uuid)
}

/// May this halted machine's disk be frozen? `Err`: whose turn it is and what to do.
pub fn approval(want: &Want, machine: &Machine, version: &str, judgement: &Judgement) -> Result<(), Trouble> {
    report_satisfies(want, machine, judgement)?;
    let by_itself = want.finalize == FinalizePolicy::OnShutdown && judgement.counts.is_ok();
    if by_itself || want.approved.as_deref() == Some(version) {
        return Ok(());
    }
    let stale = match &want.approved {
        Some(other) => format!(" (finalize.approved is '{other}', which is another version)"),
        None => String::new(),
    };
    let check = match (&judgement.counts, judgement.findings.is_empty()) {
        (Err(_), _) if want.kms_rearm => {
            ", without a report of the guest that counts: nobody knows whether Windows was rearmed, as spec.kms wants it"
        }
        (Err(_), _) => ", without a report of the guest that counts",
        (Ok(()), true) => ": its check found nothing",
        (Ok(()), false) => ", with the findings in status.integrity",
    };
    Err(Trouble::new(
        Reason::ApproveFinalize,
        format!(
            "{} is off and version '{version}' can be frozen{check}{stale}. To freeze it: {}; to go on installing instead: {}",
            place(machine),
            want.approve_command(version),
            want.restart_command()
        ),
    ))
}

fn report_satisfies(want: &Want, machine: &Machine, judgement: &Judgement) -> Result<(), Trouble> {
    if want.integrity == IntegrityPolicy::Skip && judgement.counts.is_err() {
        return Ok(());
    }
    if let Err(Doubt { why, .. }) = &judgement.counts {
        return Err(Trouble::new(
            Reason::FixIntegrity,
            format!(
                "{} is off, but nothing proves that its Windows is at rest: {why}. Start it again ({}) and run Shutdown For Finalize in it",
                place(machine),
                want.restart_command()
            ),
        ));
    }
    let blocking: Vec<_> =
        judgement.findings.iter().filter(|f| f.always || want.integrity == IntegrityPolicy::Enforce).collect();
    if blocking.is_empty() {
        return Ok(());
    }
    Err(Trouble::new(
        Reason::FixIntegrity,
        format!(
            "{} is off, but its last check found: {}. Start it again ({}), mend this in its console, and run Shutdown For Finalize",
            place(machine),
            named(&blocking),
            want.restart_command()
        ),
    ))
}

/// What keeps a machine from its freeze whose last boot status knows, and the pool does not.
pub fn boot_forgotten(want: &Want, seen: &Observed, m: &Machine) -> Trouble {
    Trouble::new(
        Reason::FixIntegrity,
        format!(
            "{} is off, and its disk was worked on, but the pool forgot in which boot when its management service (xapi) died. What was installed \
             is still there; no report of a boot that is forgotten counts, so version '{}' cannot be frozen yet. Start it again ({}) and run Shutdown For \
             Finalize in it",
            place(m),
            seen.subject,
            want.restart_command()
        ),
    )
}

/// A freeze is of one boot's end: if the machine ran again since it was begun, its snapshot may be older than the work.
pub fn same_boot(seen: &Observed, machine: &Machine) -> Result<(), Trouble> {
    let begun = seen.flight(Making::FreezeDisk).and_then(|f| f.intent.as_ref());
    match begun {
        // Two boots that nobody knows are not the same.
        Some(intent) if intent.boot.is_none() || intent.boot.as_deref() != machine.key(BOOT) => Err(Trouble::new(
            Reason::WaitingForMachine,
            format!(
                "machine '{}' ran again while its disk was being frozen: that is taken back, then judged anew",
                machine.name
            ),
        )),
        Some(_) | None => Ok(()),
    }
}

/// Before the freeze, and again on the live pool before the frozen disk is claimed.
pub fn freeze(seen: &Observed, machine: &Machine) -> Result<(), Trouble> {
    machine_is_at_rest(machine)?;
    machine_has_not_run_since(machine)?;
    let Some(work) = seen.work.found() else {
        return Err(Trouble::new(
            Reason::WaitingForStorage,
            format!(
                "packaging disk of version '{}' cannot be looked at in storage repository '{}': it is frozen when it can",
                seen.subject, seen.storage.name
            ),
        ));
    };
    // Storage pauses what it copies, and what it makes takes room: our own freeze is no reason to take it back.
    let begun = seen.flight(Making::FreezeDisk).filter(|f| f.intent.is_some());
    if begun.is_none() {
        work_is_not_paused(work)?;
    }
    work_is_in_nobodys_hands(work)?;
    if begun.is_some_and(making::may_be_made) {
        return Ok(());
    }
    room(&seen.storage, if seen.storage.thick { work.virtual_size } else { 0 }, "the frozen version")
}

fn machine_is_at_rest(machine: &Machine) -> Result<(), Trouble> {
    if machine.power == Power::Halted && !machine.busy {
        return Ok(());
    }
    let told = format!("machine '{}' is not at rest yet: its disk is frozen when it is", machine.name);
    Err(Trouble::new(Reason::WaitingForMachine, told))
}

fn machine_has_not_run_since(machine: &Machine) -> Result<(), Trouble> {
    let started = machine.key(BOOT).and_then(|b| b.split_once('@')).map(|(_, started)| started);
    if started.is_none_or(|started| started == machine.start_time) {
        return Ok(());
    }
    Err(Trouble::new(
        Reason::FixIntegrity,
        format!(
            "{} was started once more after its last check: start it with a new spec.machine.restartToken and run Shutdown For Finalize in it",
            place(machine)
        ),
    ))
}

fn work_is_not_paused(work: &Disk) -> Result<(), Trouble> {
    if !work.paused || work.left_paused {
        return Ok(());
    }
    Err(Trouble::new(
        Reason::WaitingForStorage,
        format!(
            "packaging disk '{}' ({}) is paused by its storage repository: it is frozen when that is over",
            work.name, work.uuid
        ),
    ))
}

/// Storage would snapshot a disk that is attached without a word.
fn work_is_in_nobodys_hands(work: &Disk) -> Result<(), Trouble> {
    work.attachments.iter().try_for_each(|a| match &a.holder {
        Holder::Machine if !a.attached => Ok(()),
        Holder::Machine => Err(Trouble::new(
            Reason::WaitingForMachine,
            format!(
                "packaging disk '{}' ({}) is still attached to its machine: it is frozen when that is over",
                work.name, work.uuid
            ),
        )),
        Holder::ControlDomain { .. } => Err(Trouble::new(
            Reason::HeldByDom0,
            format!(
                "packaging disk {} is held by a control domain, as an export or a copy does: it is frozen when that is over",
                work.uuid
            ),
        )),
        Holder::Other { name, .. } => Err(Trouble::new(
            Reason::ForeignDisk,
            format!(
                "disk {} is also attached to machine '{name}': take it off there (xe vbd-destroy uuid={})",
                work.uuid, a.vbd
            ),
        )),
    })
}
