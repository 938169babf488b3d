//! The invariants of ARCHITECTURE.md, asserted over one lived case (of I5 and I6 what can be seen from outside): the pool's objects, its log of calls, and what the API server stored.
//!
//! Longer than 350 lines: each invariant is a few of them, and they are read against each other.

use std::collections::{BTreeMap, HashSet};

use lamina::api::condition::check_layer;
use lamina::api::{Phase, PlatformLayer};
use lamina::sim::faults::{Effect, Entry};
use lamina::xapi::wire::Ref;
use serde_json::Value;

use super::lives::{Deeds, Life, phase};
use super::seam::Written;
use super::sights::{Row, Sights, claimed, key, text};
use crate::common::rig::ready;

/// Everything that a case left.
pub struct Lived {
    pub life: Life,
    pub log: Vec<Entry>,
    pub history: Vec<Written>,
    pub sights: Sights,
    pub deeds: Deeds,
    /// Rows of disks and machines before anything began, by reference, and now.
    pub before: BTreeMap<String, Row>,
    pub now: BTreeMap<String, Row>,
    /// Tags of tasks that are still at work.
    pub pending: Vec<String>,
    /// Content of each disk now, by uuid.
    pub digests: BTreeMap<String, String>,
    /// xapi died uncleanly: children may have lost their names and keys for good (reported, never adopted).
    pub forgot: bool,
    /// The life came to its planned end.
    pub done: bool,
}

/// All that is broken, in words.
pub fn broken(lived: &Lived) -> Vec<String> {
    let mut all = Vec::new();
    no_double(lived, &mut all);
    if lived.done && matches!(lived.life, Life::Deletion | Life::TakenBack) {
        no_orphan(lived, &mut all);
    }
    if lived.done {
        nothing_left_behind(lived, &mut all);
    }
    no_loss(lived, &mut all);
    no_foreign(lived, &mut all);
    starts(lived, &mut all);
    configs(lived, &mut all);
    freezes(lived, &mut all);
    kept(lived, &mut all);
    phases(lived, &mut all);
    latched(lived, &mut all);
    for written in &lived.history {
        all.extend(check_layer(&written.layer).into_iter().map(|e| format!("I13 {e}")));
    }
    all.sort();
    all.dedup();
    all
}

fn executed(entry: &Entry) -> bool {
    !matches!(entry.fault, Some(Effect::Drop | Effect::Refuse(_)))
}

fn subject(entry: &Entry) -> &str {
    entry.params.first().and_then(Value::as_str).unwrap_or_default()
}

/// Was this destroyed by an earlier call? Sights may come a call late.
fn ended(lived: &Lived, method: &str, reference: &str, number: u64) -> bool {
    let earlier = |e: &&Entry| e.number.is_some_and(|n| n < number) && e.method.ends_with(method) && executed(e);
    lived.log.iter().filter(earlier).any(|e| subject(e) == reference)
}

fn role(row: &Row) -> Option<&str> {
    key(row, "role")
}

/// A pool that died may have forgotten the keys; or, where it wrote its database out just then, what a snapshot with our mark is of: told by the
/// sweeper, and left alone.
fn is_unprovable(lived: &Lived, row: &Row) -> bool {
    let keys = row.get("other_config").and_then(Value::as_object);
    let bears = |wanted: &dyn Fn(&str) -> bool| keys.is_some_and(|keys| keys.keys().any(|key| wanted(key)));
    let of_nothing = row.get("is_a_snapshot") == Some(&Value::Bool(true)) && text(row, "snapshot_of") == Ref::NULL;
    // What it inherited says nothing of it.
    let marked = of_nothing && bears(&|key| key == "lamina.dev/making") && !claimed(row);
    lived.forgot && keys.is_some() && (marked || !bears(&|key| key.starts_with("lamina")))
}

/// I1.
fn no_double(lived: &Lived, all: &mut Vec<String>) {
    all.extend(lived.sights.doubles().into_iter().map(|d| format!("I1 {d}")));
    for (reference, row) in &lived.now {
        let ours = key(row, "making").is_some() || key(row, "op").is_some() && !claimed(row);
        if lived.done && ours && !is_unprovable(lived, row) {
            all.push(format!("I1 {reference} is left unclaimed: {:?}", row.get("other_config")));
        }
        // A disk that a new xapi made once more is empty, and is told of by the sweeper.
        let again = lived.forgot && row.contains_key("virtual_size");
        if lived.done && !again && text(row, "name_label").starts_with("lamina-") {
            all.push(format!("I1 machine {} is left half-made", text(row, "name_label")));
        }
    }
}

/// What was there before is as it was; what is new is claimed, hidden, or forgotten by the pool.
fn nothing_left_behind(lived: &Lived, all: &mut Vec<String>) {
    for (reference, old) in &lived.before {
        match lived.now.get(reference) {
            None => all.push(format!("I4 {} ({reference}) is gone", text(old, "name_label"))),
            Some(now) => {
                let fields = ["name_label", "name_description", "other_config", "tags", "is_a_template"];
                for field in fields.iter().filter(|f| old.get(**f) != now.get(**f)) {
                    all.push(format!("I4 {} of {} is {:?} now", field, text(old, "name_label"), now.get(*field)));
                }
            }
        }
    }
    for row in lived.now.values().filter(|row| claimed(row)) {
        if !row.get("tags").is_some_and(|tags| tags.to_string().contains("\"lamina\"")) {
            all.push(format!("the tag is not on {} of role {:?}", text(row, "uuid"), role(row)));
        }
    }
    let fresh = lived.now.iter().filter(|(r, _)| !lived.before.contains_key(*r));
    for (reference, row) in fresh.filter(|(_, row)| !claimed(row) && row.get("managed") != Some(&Value::Bool(false))) {
        if !is_unprovable(lived, row) {
            all.push(format!(
                "I1 {reference} '{}' is nobody's: {:?}",
                text(row, "name_label"),
                row.get("other_config")
            ));
        }
    }
}

/// I2. What the layer destroyed may be back when xapi died after it was gone: rows that a sweep tells of, and nobody is left to remove.
fn no_orphan(lived: &Lived, all: &mut Vec<String>) {
    let ghost = |r: &String| lived.forgot && ended(lived, ".destroy", r, u64::MAX);
    let ours = |row: &Row| row.get("other_config").is_some_and(|c| c.to_string().contains("lamina.dev/"));
    for (_, row) in lived.now.iter().filter(|(r, row)| ours(row) && !ghost(r)) {
        all.push(format!(
            "I2 {} '{}' outlives its layer: {:?}",
            text(row, "uuid"),
            text(row, "name_label"),
            row.get("other_config")
        ));
    }
    all.extend(lived.pending.iter().map(|tag| format!("I2 task {tag} outlives its layer")));
}

/// Had the API server recorded this uuid for our layer before this call?
fn recorded(lived: &Lived, number: u64, uuid: &str) -> bool {
    let statuses = lived.history.iter().filter(|w| w.at < number).filter_map(|w| w.layer.status.as_ref());
    statuses.into_iter().any(|s| {
        let disk = s.disk.iter().flat_map(|d| [Some(&d.uuid), d.base.as_ref().map(|b| &b.uuid)]).flatten();
        let versions = s.versions.iter().map(|v| &v.disk);
        let config = s.config_disk.iter().map(|c| &c.uuid);
        disk.chain(config).chain(s.machine.iter().map(|m| &m.uuid)).chain(versions).any(|known| known == uuid)
    })
}

/// I3, and I10 for the disks that are frozen.
fn no_loss(lived: &Lived, all: &mut Vec<String>) {
    let deleted = |n: u64| lived.deeds.deleted.is_some_and(|at| at <= n);
    for entry in lived.log.iter().filter(|e| executed(e) && e.method.ends_with("VDI.destroy")) {
        let number = entry.number.unwrap_or_default();
        let rows = lived.sights.of(subject(entry));
        let Some(row) = rows.iter().rev().find(|r| claimed(r)).or(rows.last()) else { continue };
        let uuid = text(row, "uuid");
        let version = key(row, "version").unwrap_or_default();
        match role(row).filter(|_| claimed(row)) {
            // What is on it may be a secret. A pool that died may have forgotten that it was wiped.
            Some("config") if !lived.forgot && key(row, "wiped").is_none() => {
                all.push(format!("config disk {uuid} was destroyed by call {number} with its content"));
            }
            Some("work") => {
                let worked = lived.deeds.boots.iter().any(|b| b.at < number && b.recorded.0.as_deref() == Some(uuid));
                let discarded = lived.deeds.discarded.as_ref().is_some_and(|(v, at)| v == version && *at <= number);
                let frozen = lived.history.iter().filter(|w| w.at < number).any(|w| {
                    let versions = w.layer.status.iter().flat_map(|s| &s.versions);
                    versions.filter(|v| v.version == version).any(|v| snapshot_of(lived, &v.disk, subject(entry)))
                });
                if worked && !deleted(number) && !discarded && !frozen {
                    all.push(format!("I3 packaging disk {uuid} of version {version} was destroyed by call {number}"));
                }
            }
            Some("frozen") if !deleted(number) => {
                all.push(format!("I3 frozen disk {uuid} was destroyed by call {number}"))
            }
            Some("base") => {
                let then = lived.sights.at("VDI", number);
                let there = |r: &str| !ended(lived, "VDI.destroy", r, number);
                let users = then.iter().filter(|(r, d)| claimed(d) && key(d, "base") == Some(uuid) && there(r)).count();
                if users > 0 {
                    all.push(format!("I3 base {uuid} was destroyed by call {number} under {users} disks"));
                }
            }
            Some(_) | None => {}
        }
    }
    let finalized: BTreeMap<String, String> = lived
        .history
        .last()
        .and_then(|w| w.layer.status.clone())
        .map(|s| s.versions.into_iter().map(|v| (v.version, v.disk)).collect())
        .unwrap_or_default();
    for (version, disk) in finalized.into_iter().filter(|_| lived.deeds.deleted.is_none()) {
        let halt = lived.deeds.boots.iter().filter_map(|b| b.ended.as_ref()).rfind(|h| h.version == version);
        match (halt, lived.digests.get(&disk)) {
            (_, None) => all.push(format!("I3 frozen disk {disk} of version {version} is not on the pool")),
            (Some(halt), Some(now)) if halt.digest != *now => {
                all.push(format!("I10 {disk} of version {version} does not hold what {} held at the halt", halt.disk));
            }
            (Some(_), Some(_)) | (None, Some(_)) => {}
        }
    }
}

fn snapshot_of(lived: &Lived, frozen: &str, work: &str) -> bool {
    lived.sights.of_uuid(frozen).iter().any(|d| claimed(d) && text(d, "snapshot_of") == work)
}

/// What the layers of these lives are made from.
const OS_DISK: &str = "win11-24h2";
const TEMPLATE: &str = "packaging";

/// I4.
fn no_foreign(lived: &Lived, all: &mut Vec<String>) {
    let uid = lived.history.first().and_then(|w| w.layer.metadata.uid.clone()).unwrap_or_default();
    for entry in lived.log.iter().filter(|e| executed(e)) {
        let Some(number) = entry.number else { continue };
        let (class, call) = entry.method.trim_start_matches("Async.").split_once('.').unwrap_or_default();
        let ours = |reference: &str| {
            let rows = lived.sights.of(reference);
            rows.iter().any(|row| {
                key(row, "layer") == Some(&uid)
                    || role(row) == Some("base") && claimed(row)
                    || key(row, "making").is_some() && !lived.before.contains_key(reference)
                    || text(row, "name_label").starts_with("lamina-")
                    || recorded(lived, number, text(row, "uuid"))
            })
        };
        let was_there =
            |reference: &str, name| lived.before.get(reference).is_some_and(|r| text(r, "name_label") == name);
        let proved = match (class, call) {
            ("task", _) | ("SR", "scan") | ("pool", "sync_database") => true,
            // Makes a child; the source is not changed.
            ("VM", "clone") => was_there(subject(entry), TEMPLATE),
            ("VDI", "clone" | "snapshot") => ours(subject(entry)) || was_there(subject(entry), OS_DISK),
            ("VDI", "add_to_other_config" | "remove_from_other_config") => {
                let mark = entry.params.get(1).and_then(Value::as_str) == Some("lamina.dev/making");
                ours(subject(entry)) || mark && was_there(subject(entry), OS_DISK)
            }
            ("VDI", "create") => true,
            ("VDI" | "VM", _) => ours(subject(entry)),
            ("", "") if ["PUT /import_raw_vdi", "GET /export_raw_vdi"].contains(&entry.method.as_str()) => {
                ours(subject(entry))
            }
            ("VBD", "create") => {
                let of =
                    |field| entry.params.first().and_then(|r| r.get(field)).and_then(Value::as_str).unwrap_or_default();
                ours(of("VM")) && (of("VDI") == Ref::NULL || ours(of("VDI")))
            }
            ("VBD", _) => {
                let rows = lived.sights.of(subject(entry));
                // Or a control domain's, on a disk of ours.
                rows.is_empty() || rows.iter().any(|vbd| ours(text(vbd, "VM")) || ours(text(vbd, "VDI")))
            }
            _ => false,
        };
        if !proved {
            all.push(format!("I4 {} of {} (call {number}) without proof", entry.method, subject(entry)));
        }
    }
}

/// I7 and I8.
fn starts(lived: &Lived, all: &mut Vec<String>) {
    let boots = &lived.deeds.boots;
    let mut started: BTreeMap<&str, u64> = BTreeMap::new();
    for entry in lived.log.iter().filter(|e| e.method == "Async.VM.start" && matches!(e.outcome, Some(Ok(_)))) {
        *started.entry(subject(entry)).or_default() += 1;
    }
    for (machine, starts) in started.into_iter().filter(|(_, starts)| *starts > 1 + lived.deeds.tokens) {
        all.push(format!("I7 machine {machine} was started {starts} times by {} tokens", lived.deeds.tokens));
    }
    let halted = boots.iter().filter(|b| b.ended.is_some()).count() as u64;
    let versions = boots.iter().filter_map(|b| b.ended.as_ref().map(|h| h.version.as_str())).collect::<HashSet<_>>();
    if halted > versions.len() as u64 + lived.deeds.tokens {
        all.push(format!("I7 the guests ran to their end {halted} times for {} versions", versions.len()));
    }
    for boot in boots.iter().filter(|b| b.first) {
        match &boot.recorded {
            (Some(disk), Some(machine)) if *machine == boot.machine && has(lived, machine, disk, boot.at) => {}
            other => all.push(format!("I8 machine {} started while {other:?} was recorded", boot.machine)),
        }
    }
}

/// Was this disk on this machine when call `at` had come? Both by uuid.
fn has(lived: &Lived, machine: &str, disk: &str, at: u64) -> bool {
    let reference = |class: &str, uuid: &str| {
        let rows = lived.sights.at(class, at + 1);
        rows.into_iter().find(|(_, row)| text(row, "uuid") == uuid).map(|(reference, _)| reference)
    };
    let (Some(vm), Some(vdi)) = (reference("VM", machine), reference("VDI", disk)) else { return false };
    lived.sights.at("VBD", at + 1).iter().any(|(_, vbd)| text(vbd, "VM") == vm && text(vbd, "VDI") == vdi)
}

/// Steps are in the machine from its first boot on, and the disk that brought them is gone before the freeze.
fn configs(lived: &Lived, all: &mut Vec<String>) {
    for boot in lived.deeds.boots.iter().filter(|b| b.first && !b.second) {
        all.push(format!("I8 machine {} started without its config disk", boot.machine));
    }
    for entry in lived.log.iter().filter(|e| executed(e) && e.method == "Async.VDI.snapshot") {
        let number = entry.number.unwrap_or_default();
        let of_work = lived.sights.of(subject(entry)).iter().any(|r| claimed(r) && role(r) == Some("work"));
        let then = lived.sights.at("VDI", number);
        let there = |r: &str| !ended(lived, "VDI.destroy", r, number);
        if of_work && then.iter().any(|(r, d)| claimed(d) && role(d) == Some("config") && there(r)) {
            all.push(format!("I9 call {number} froze a version beside its config disk"));
        }
    }
}

/// I9, as far as it can be seen from outside: approved, halted for good, and in nobody else's hands.
fn freezes(lived: &Lived, all: &mut Vec<String>) {
    for entry in lived.log.iter().filter(|e| executed(e) && e.method == "Async.VDI.snapshot") {
        let number = entry.number.unwrap_or_default();
        let rows = lived.sights.of(subject(entry));
        let Some(work) = rows.iter().find(|r| claimed(r) && role(r) == Some("work")) else { continue };
        let version = key(work, "version").unwrap_or_default();
        if !lived.deeds.approved.iter().any(|(v, at)| v == version && *at <= number) {
            all.push(format!("I9 version {version} was frozen by call {number} without approval"));
        }
        let (uuid, then) = (text(work, "uuid"), lived.sights.at("VM", number));
        let machine = then.iter().find(|(_, vm)| claimed(vm) && key(vm, "version") == Some(version));
        if machine.is_none_or(|(_, vm)| text(vm, "power_state") != "Halted") {
            all.push(format!("I9 {uuid} was frozen by call {number} while its machine was not halted"));
        }
        let own = machine.map(|(reference, _)| reference.as_str());
        let on_it = |b: &Row| text(b, "VDI") == subject(entry);
        let attached = |b: &Row| b.get("currently_attached") == Some(&Value::Bool(true));
        let there = |r: &str| !ended(lived, "VBD.destroy", r, number);
        for (vbd, row) in lived.sights.at("VBD", number).iter().filter(|(r, b)| on_it(b) && there(r)) {
            if attached(row) || own != Some(text(row, "VM")) {
                all.push(format!("I9 {uuid} was frozen by call {number} while {vbd} had hold of it"));
            }
        }
    }
}

/// I11.
fn kept(lived: &Lived, all: &mut Vec<String>) {
    for entry in lived.log.iter().filter(|e| executed(e) && e.method.ends_with("VM.destroy")) {
        let number = entry.number.unwrap_or_default();
        let then = lived.sights.at("VBD", number);
        let on_it = |b: &Row| text(b, "VM") == subject(entry) && text(b, "type") == "Disk";
        let there = |r: &str| !ended(lived, "VBD.destroy", r, number);
        let holds = then.iter().filter(|(r, b)| on_it(b) && there(r)).count();
        if holds > 0 {
            all.push(format!("I11 a machine was destroyed with {holds} disks on it by call {number}"));
        }
    }
}

/// I5 and I6: between a status that says so and the next one nothing is made. Whatever is made begins with an intent in status. What is
/// destroyed does not, and a pool out of reach may be back by then: only between two statuses that both say so nothing is destroyed, and the
/// phase stays.
fn latched(lived: &Lived, all: &mut Vec<String>) {
    const MAKING: [&str; 4] = ["VDI.snapshot", "VDI.clone", "VM.clone", "VDI.create"];
    for pair in lived.history.windows(2) {
        let [told, next] = pair else { continue };
        let Some((reason, _)) = ready(&told.layer) else { continue };
        let invariant = match reason.as_str() {
            "DiskLost" | "MachineLost" => "I5",
            "ConnectorNotReady" | "WaitingForStorage" | "PoolChanged" => "I6",
            _ => continue,
        };
        let between = |e: &&Entry| e.number.is_some_and(|n| n > told.at && n <= next.at) && executed(e);
        let made = lived.log.iter().filter(between).filter(|e| MAKING.iter().any(|m| e.method.ends_with(m)));
        all.extend(made.map(|e| format!("{invariant} {} (call {:?}) while status said {reason}", e.method, e.number)));
        if invariant != "I6" || ready(&next.layer).is_none_or(|(then, _)| then != reason) {
            continue;
        }
        let destroyed =
            lived.log.iter().filter(between).filter(|e| e.method.ends_with(".destroy") && e.method != "task.destroy");
        all.extend(destroyed.map(|e| format!("I6 {} (call {:?}) while status said {reason}", e.method, e.number)));
        if phase(&told.layer) != phase(&next.layer) {
            all.push(format!("I6 {:?} became {:?} while status said {reason}", phase(&told.layer), phase(&next.layer)));
        }
    }
}

/// Is it of another version that status speaks?
fn another(a: &PlatformLayer, b: &PlatformLayer) -> bool {
    let of_disk = |l: &PlatformLayer| Some(l.status.as_ref()?.disk.as_ref()?.version.clone());
    a.spec.version != b.spec.version || of_disk(a) != of_disk(b)
}

/// I12.
fn phases(lived: &Lived, all: &mut Vec<String>) {
    let rank = |p: Phase| match p {
        Phase::Pending => 0,
        Phase::DiskCreated => 1,
        Phase::MachineRunning => 2,
        Phase::AwaitingFinalize => 3,
        Phase::Finalized => 4,
    };
    let known: Vec<(&PlatformLayer, Phase)> =
        lived.history.iter().filter_map(|w| Some((&w.layer, phase(&w.layer)?))).collect();
    for pair in known.windows(2) {
        let [(a, from), (b, to)] = pair else { continue };
        let again = *from == Phase::AwaitingFinalize && *to == Phase::MachineRunning;
        let removed = lived.deeds.deleted.is_some() || lived.deeds.discarded.is_some();
        if rank(*to) < rank(*from) && !another(a, b) && !again && !removed {
            all.push(format!("I12 {} after {}", to.as_str(), from.as_str()));
        }
    }
}
