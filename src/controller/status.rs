//! The status of a layer, composed from what was seen and decided: one server-side-apply document, written by `write`, skipped when equal.
//!
//! Called by `layer` alone, at the end of every pass, failing ones too. Pure. Nothing in it varies without a change in the world: no
//! attempt counters, no request ids, no upstream text, no free space.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lamina_guest::disk::bound::Source;

use super::conditions::{at_halt, conditions};
use super::history;
use super::observe::Scene;
use super::unattended::{config_disk, running_step, steps};
use crate::api::condition::{find, merge};
use crate::api::layer::DiskFormat;
use crate::api::layer_status::{
    BaseKind, BaseTaken, CurrentVersion, DiskStatus, Finding, FrozenVersion, IntegritySource, IntegrityStatus,
    MachineStatus, Operation, ToolsStatus,
};
use crate::api::reason::{Fault, Reason};
use crate::api::{ConditionType, Phase, PlatformLayer, PlatformLayerStatus};
use crate::domain::config;
use crate::domain::gate::{self, Judgement};
use crate::domain::identity::{self, TOKEN};
use crate::domain::observed::{Disk, Machine, Making, Observed, Power, Sight, TaskSight, Trouble};
use crate::domain::plan::{self, Plan, Say, Step};
use crate::domain::want::{IntegrityPolicy, Want};

/// What a pass came to.
pub struct Outcome<'a> {
    pub layer: &'a PlatformLayer,
    pub want: &'a Want,
    /// Why the Connector cannot be used; none: it can.
    pub connector: Option<&'a Trouble>,
    /// What was seen and decided; none: we could not look.
    pub seen: Option<(&'a Scene, &'a Plan)>,
    /// Why the step failed.
    pub failed: Option<&'a Trouble>,
    pub now: Time,
}

/// The status that follows.
pub fn compose(o: &Outcome<'_>) -> PlatformLayerStatus {
    let old = o.layer.status.clone().unwrap_or_default();
    let mut new = match o.seen {
        Some((scene, plan)) => sighted(o, &old, scene, plan),
        None => old.clone(),
    };
    new.observed_generation = o.layer.metadata.generation;
    // A removal takes the walk's objects away, which is no way back: how far the version was stays to be read.
    let kept = o.layer.metadata.deletion_timestamp.as_ref().and(old.phase);
    // Once sized, sized: a pool that died may show the disk as small as it was, and the spec may speak of another version by now.
    let same = |d: &DiskStatus| new.disk.as_ref().is_some_and(|now| now.version == d.version);
    let sized = old.phase.filter(|p| *p == Phase::DiskCreated && old.disk.as_ref().is_some_and(same));
    let seen = o.seen.map_or(old.phase.unwrap_or(Phase::Pending), |(_, plan)| plan.phase);
    new.phase = Some(kept.or(sized.filter(|_| seen == Phase::Pending)).unwrap_or(seen));
    // A step that failed recorded nothing.
    let say = say(o, &old);
    let drafts = conditions(o, &old, &say);
    let reason = drafts.first().map(|d| d.reason);
    new.conditions = merge(&old.conditions, drafts, o.layer.metadata.generation, &o.now);
    if let Some(reason) = reason {
        history::note(o.layer, old.phase, &mut new, reason, &o.now);
    }
    new
}

/// A stream is waited for, and waits for its turn before: where the layer is by now, is told first. And nothing is made under a status that
/// says that nobody can look at the pool.
pub fn is_told_first(layer: &PlatformLayer, plan: &Plan) -> bool {
    let Some(status) = &layer.status else { return false };
    let ready = find(&status.conditions, ConditionType::Ready).and_then(|c| Reason::parse(&c.reason));
    let blind = matches!(ready, Some(Reason::ConnectorNotFound | Reason::ConnectorNotReady | Reason::PoolChanged));
    let sends = matches!(plan.step, Step::Send(_));
    sends && blind || plan.step.is_stream() && status.phase != Some(plan.phase)
}

/// What is told: the plan's word, or why its step failed.
fn say(o: &Outcome<'_>, old: &PlatformLayerStatus) -> Say {
    let deleting = o.layer.metadata.deletion_timestamp.is_some();
    // What is done beside a person's turn does not take it away.
    let beside = o.seen.is_some_and(|(_, plan)| matches!(plan.step, Step::EjectDisc { .. }));
    let failed = o.failed.filter(|_| !beside);
    if let Some(t) = failed.or(if o.seen.is_none() { o.connector } else { None }) {
        let stuck = t.reason.fault() == Some(Fault::Stalled);
        if deleting {
            let message = format!("{}. If the pool is gone for good: set spec.deletionPolicy to Orphan", t.message);
            return Say::Deleting { reason: t.reason, message, stuck };
        }
        if o.want.suspend {
            return Say::Suspended { finalized: is_finalized(o, old) };
        }
        // What is finalized stays so while nobody can look.
        if o.seen.is_none_or(|(_, plan)| plan.phase == Phase::Finalized) && is_finalized(o, old) {
            return Say::Finalized(finalized(o, old));
        }
        // A call names no objects: what it was for does.
        let message = match o.seen {
            Some((_, Plan { say: Say::Working(_, what), .. })) => format!("{}. Held up: {what}", t.message),
            Some(_) | None => t.message.clone(),
        };
        return if stuck { Say::Stalled(t.reason, message) } else { Say::Working(t.reason, message) };
    }
    match o.seen {
        Some((_, plan)) => plan.say.clone(),
        None => Say::Working(Reason::ConnectorNotReady, "the pool was not looked at yet".to_owned()),
    }
}

pub fn finalized(o: &Outcome<'_>, old: &PlatformLayerStatus) -> String {
    let frozen = old.versions.iter().find(|v| v.version == o.want.version);
    let lost = old.versions.iter().filter(|v| v.lost && v.version != o.want.version);
    let lost = lost.map(|v| (v.version.as_str(), v.disk.as_str()));
    plan::finalized(&o.want.version, frozen.map(|v| v.disk.as_str()), lost)
}

pub fn is_finalized(o: &Outcome<'_>, old: &PlatformLayerStatus) -> bool {
    old.phase == Some(Phase::Finalized) && old.versions.iter().any(|v| v.version == o.want.version)
}

/// Everything but conditions, as the pool shows it now.
fn sighted(o: &Outcome<'_>, old: &PlatformLayerStatus, scene: &Scene, plan: &Plan) -> PlatformLayerStatus {
    let seen = &scene.observed;
    // A step that failed did not happen: what it would have recorded is not recorded.
    let step = if o.failed.is_some() { &Step::Nothing } else { &plan.step };
    let mut new = old.clone();
    if *step == Step::Enter {
        new.pool = Some(seen.pool.clone());
    }
    new.operation = operation(old, scene, step, &o.now);
    new.disk = disk(o, old, scene, step);
    new.config_disk = config_disk(old, scene, step);
    new.machine = machine(o, old, scene, step);
    new.steps = steps(o, old, scene);
    new.operation =
        new.operation.take().filter(|op| op.opid.is_some()).or_else(|| running_step(old, &new, scene, &o.now));
    if *step == Step::Record
        && let Some(f) = seen.frozen.found()
        && seen.finalized(&seen.subject).is_none()
    {
        new.versions.push(version(o, old, scene, f));
    }
    for v in &mut new.versions {
        v.lost = seen.unseen.iter().any(|u| u.lost && u.version.as_ref() == Some(&v.version));
    }
    new.current = new.versions.last().map(|v| CurrentVersion {
        version: v.version.clone(),
        disk: v.disk.clone(),
        finalized_at: v.finalized_at.clone(),
    });
    match seen.machine.found() {
        Some(m) => new.integrity = integrity(o.want, seen, m),
        // A verdict stays with its version, and says nothing of the next.
        None if seen.machine == Sight::Absent && seen.finalized(&seen.subject).is_none() => new.integrity = None,
        None => {}
    }
    new
}

fn operation(old: &PlatformLayerStatus, scene: &Scene, step: &Step, now: &Time) -> Option<Operation> {
    let seen = &scene.observed;
    match step {
        Step::DropIntent => None,
        Step::RecordIntent(making) => seen.flight(*making).map(|f| {
            let freezes = *making == Making::FreezeDisk;
            let same = old.operation.as_ref().filter(|op| op.opid.as_ref() == Some(&f.opid.0));
            Operation {
                step: making.as_str().to_owned(),
                progress: None,
                since: same.and_then(|op| op.since.clone()).or(Some(now.clone())),
                opid: Some(f.opid.0.clone()),
                source: Some(f.source.clone()),
                agent_start: Some(seen.agent_start.clone()),
                boot_id: freezes
                    .then(|| seen.machine.found().and_then(|m| m.key(identity::BOOT)))
                    .flatten()
                    .map(str::to_owned),
            }
        }),
        _any_other => old.operation.clone().map(|mut op| {
            let flight = seen.flights.iter().find(|f| Some(&f.opid.0) == op.opid.as_ref());
            op.progress = match flight.map(|f| &f.task) {
                // Steps of 5 %: a status that moves with every percent is a write for every percent.
                Some(TaskSight::Pending { progress }) => Some(((progress.clamp(0.0, 1.0) * 20.0) as i32) * 5),
                _not_running => None,
            };
            op
        }),
    }
}

fn disk(o: &Outcome<'_>, old: &PlatformLayerStatus, scene: &Scene, step: &Step) -> Option<DiskStatus> {
    let seen = &scene.observed;
    let before = old.disk.as_ref();
    let ran = seen.machine.found().is_some_and(|m| plan::ran(seen, m));
    let Some(w) = seen.work.found() else {
        // Removed by ourselves: the record goes. Lost, out of sight, or in the middle of being thrown away: it stays.
        let gone = |d: &DiskStatus| gone_with_its_version(o, d, scene);
        let going = |d: &DiskStatus| gone(d) && seen.finalized(&d.version).is_none() && *step != Step::Record;
        let stays = |d: &DiskStatus| if d.version == seen.subject { going(d) } else { !gone(d) };
        let kept = before.filter(|d| seen.work != Sight::Absent || stays(d)).cloned();
        return kept.map(|d| DiskStatus { worked: d.worked || ran && d.version == seen.subject, ..d });
    };
    let known = before.is_some_and(|d| d.uuid == w.uuid);
    if !known && *step != Step::Record {
        return before.cloned();
    }
    let at_rest = seen.machine.found().is_none_or(|m| m.power == Power::Halted);
    let base_uuid = w.keys.get(identity::BASE).cloned().unwrap_or_default();
    let base = || match &scene.parent {
        Some(parent) => BaseTaken {
            from: BaseKind::Version,
            version: seen.records.versions.iter().find(|v| v.disk == *parent).map(|v| v.version.clone()),
            uuid: base_uuid.clone(),
        },
        None => BaseTaken { from: BaseKind::OSLayer, version: None, uuid: base_uuid.clone() },
    };
    Some(DiskStatus {
        uuid: w.uuid.clone(),
        name: Some(w.name.clone()),
        file_name: Some(o.want.file_name.clone()),
        format: format(w),
        storage_repository: Some(seen.storage.name.clone()),
        storage_repository_uuid: w.sr.clone(),
        virtual_size: Some(w.virtual_size),
        utilisation: at_rest.then_some(w.utilisation),
        // What it was made from is settled when it is recorded.
        base: before.filter(|_| known).and_then(|d| d.base.clone()).or_else(|| Some(base())),
        version: seen.subject.clone(),
        worked: ran || before.is_some_and(|d| known && d.worked),
    })
}

/// The version was finalized or thrown away.
fn gone_with_its_version(o: &Outcome<'_>, d: &DiskStatus, scene: &Scene) -> bool {
    scene.observed.finalized(&d.version).is_some() || o.want.discard.as_deref() == Some(d.version.as_str())
}

fn format(w: &Disk) -> Option<DiskFormat> {
    match w.format.as_str() {
        "vhd" => Some(DiskFormat::VHD),
        "qcow2" => Some(DiskFormat::QCOW2),
        "raw" => Some(DiskFormat::Raw),
        _unknown => None,
    }
}

/// Once used, used: the pool may forget what was written on the machine.
fn used_token(want: &Want, before: Option<&MachineStatus>, m: &Machine) -> Option<String> {
    let (now, record) = (m.key(TOKEN).filter(|t| !t.is_empty()), before.and_then(|b| b.restart_token.as_deref()));
    now.filter(|t| want.restart_token.as_deref() == Some(t) || record.is_none()).or(record).map(str::to_owned)
}

fn machine(o: &Outcome<'_>, old: &PlatformLayerStatus, scene: &Scene, step: &Step) -> Option<MachineStatus> {
    let seen = &scene.observed;
    let before = old.machine.as_ref();
    let Some(m) = seen.machine.found() else { return before.filter(|_| seen.machine != Sight::Absent).cloned() };
    let known = before.is_some_and(|b| b.uuid == m.uuid);
    if !known && *step != Step::Record {
        return before.cloned();
    }
    let power = match m.power {
        Power::Halted => Some("Halted"),
        Power::Running => Some("Running"),
        Power::Paused => Some("Paused"),
        Power::Suspended => Some("Suspended"),
        Power::Unknown => None,
    };
    Some(MachineStatus {
        uuid: m.uuid.clone(),
        name: Some(m.name.clone()),
        host: m.host.clone(),
        power_state: power.map(str::to_owned),
        address: m.address.clone(),
        tools: Some(ToolsStatus { version: m.tools.version.clone(), seen: m.tools.ready }),
        restart_token: used_token(o.want, before.filter(|_| known), m),
        agent_start: before
            .filter(|_| known)
            .and_then(|b| b.agent_start.clone())
            .or_else(|| Some(seen.agent_start.clone())),
    })
}

fn version(o: &Outcome<'_>, old: &PlatformLayerStatus, scene: &Scene, f: &Disk) -> FrozenVersion {
    let seen = &scene.observed;
    // A report that does not count is of another boot, or of somebody else's making.
    let report = seen.machine.found().and_then(|m| gate::judge(o.want, seen, m).report);
    let base_uuid = f.keys.get(identity::BASE).cloned().unwrap_or_default();
    let its_base = seen.base.found().filter(|b| b.uuid == base_uuid);
    let os_version = its_base.and_then(|b| b.keys.get(identity::OS_VERSION).cloned());
    // The spec may ask for the next one by now.
    let its_spec = (o.want.version == seen.subject).then_some(&o.layer.spec);
    FrozenVersion {
        version: seen.subject.clone(),
        disk: f.uuid.clone(),
        base: old.disk.as_ref().and_then(|d| d.base.clone()).or(Some(BaseTaken {
            from: BaseKind::OSLayer,
            version: None,
            uuid: base_uuid,
        })),
        os_version: os_version.or_else(|| its_spec.map(|_| o.want.os_version.clone())),
        storage_repository_uuid: f.sr.clone(),
        size: Some(f.virtual_size),
        rearms_left: report.and_then(|r| r.rearms_left).and_then(|n| i32::try_from(n).ok()),
        finalized_at: o.now.clone(),
        comment: its_spec.and_then(|s| s.comment.clone()),
        lost: false,
    }
}

/// What was found; where no report counts, why not.
fn integrity(want: &Want, seen: &Observed, m: &Machine) -> Option<IntegrityStatus> {
    let Judgement { counts, mut findings, source, .. } = gate::judge(want, seen, m);
    // Of a machine whose version is frozen nobody is to mend anything any more.
    let blocks = want.integrity != IntegrityPolicy::Skip && seen.finalized(&seen.subject).is_none();
    match counts {
        Ok(()) => {}
        Err(doubt) if blocks && at_halt(seen, m) && (config::is_known(seen, m) || config::is_lost(seen, m)) => {
            findings.push(doubt.into());
        }
        Err(_) => return None,
    }
    Some(IntegrityStatus {
        source: source.map(|s| match s {
            Source::XenStore => IntegritySource::Xenstore,
            Source::ConfigDisk => IntegritySource::ConfigDisk,
        }),
        boot_id: m.key(identity::BOOT).map(str::to_owned),
        findings: findings
            .into_iter()
            .map(|f| Finding { reason: f.reason, detail: Some(f.detail), remedy: Some(f.remedy) })
            .collect(),
    })
}

/// The reason that a layer waits with, for the metric of waits.
pub fn wait(status: &PlatformLayerStatus) -> Option<Reason> {
    let ready = crate::api::condition::find(&status.conditions, ConditionType::Ready)?;
    Reason::parse(&ready.reason).filter(|r| r.fault() == Some(Fault::Wait))
}
