//! Operations as far as they can be seen: marks, tasks, unclaimed children, and how the in-flight test stands.
//!
//! Called by `observe` alone. A test is only advanced by a live look.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use kube::ResourceExt;

use super::tasks::{is_claimed, is_going, is_unwanted, task_sight};
use super::{Lens, base_lineage, lineage};
use crate::api::PlatformLayer;
use crate::api::condition::{ConditionType, find};
use crate::domain::identity::{self, BOOT, Lineage, Mark, Opid, Proof, Role, START_BEFORE, prove};
use crate::domain::observed::{Child, Flight, Making, MarkSight, Observed, Quiet, Sent};
use crate::xapi::model::{Task, Vdi, Vm};
use crate::xapi::wire::Ref;

/// All operations that matter to a layer.
pub struct Seen {
    pub flights: Vec<Flight>,
    pub leftover: Option<Flight>,
    /// A task or its child is not in the mirror yet, or not any more.
    pub doubt: bool,
    /// When the first of the calls that were refused may be sent again.
    pub soon: Option<Duration>,
}

pub fn all(lens: &Lens<'_>, seen: &Observed, parent: Option<&str>, sr: &Ref) -> Seen {
    let mut doubt = false;
    let uid = lens.want.uid.as_str();
    let of = |role| lineage(lens.cluster, uid, &seen.subject, role);
    let intent = seen.records.operation.as_ref();
    let mut wanted: Vec<(Making, Opid, String, Option<Mark>)> = Vec::new();
    let mut add = |making, lineage: &Lineage, source: &str| {
        wanted.push((making, lineage.opid(), source.to_owned(), Some(lineage.mark())))
    };
    if let Ok(os) = &seen.os_disk {
        add(Making::SnapshotOsDisk, &base_lineage(lens, &seen.storage.uuid, &os.uuid), &os.uuid);
    }
    // The source that an intent names holds, even if another one would be chosen by now.
    let source_of = |making: Making, opid: &Opid, now: Option<&str>| {
        intent.filter(|i| i.step == making && i.opid == *opid).map(|i| i.source.clone()).or(now.map(str::to_owned))
    };
    // A clone of what is not the wanted base any more is nobody's wish: it is left over, below.
    if let Some(source) = parent.or(seen.base.found().map(|b| b.uuid.as_str()))
        && intent.is_none_or(|i| i.step != Making::CloneDisk || i.source == source)
    {
        add(Making::CloneDisk, &of(Role::Work), source);
    }
    let work = seen.work.found().map(|w| w.uuid.as_str());
    for (making, role) in [(Making::CloneMachine, Role::Machine), (Making::FreezeDisk, Role::Frozen)] {
        if let Some(source) = source_of(making, &of(role).opid(), work) {
            add(making, &of(role), &source);
        }
    }
    if let Some(m) = seen.machine.found() {
        let start = |token: &str| Lineage::start_opid(lens.cluster, &m.uuid, token);
        let token = lens.want.restart_token.as_deref().unwrap_or_default();
        let ran = m.key(BOOT).is_some() || m.key(START_BEFORE).is_some_and(|b| b != m.start_time);
        let (first, again) = (start(""), start(token));
        let opid = match intent {
            Some(i) if i.opid == first => first,
            Some(i) if i.opid == again => again,
            Some(_) | None if ran => again,
            Some(_) | None => first,
        };
        wanted.push((Making::StartMachine, opid, m.uuid.clone(), None));
    }
    if let Some(m) = seen.machine.found() {
        // Made of nothing: the machine stands for its source, and no mark is needed where nothing is inherited.
        wanted.push((Making::CreateConfig, of(Role::Config).opid(), m.uuid.clone(), None));
    }
    let flights: Vec<Flight> = wanted
        .into_iter()
        .map(|(making, opid, source, mark)| flight(lens, seen, making, opid, source, mark, sr, &mut doubt))
        .collect();
    let known = |i: &&crate::domain::observed::Intent| flights.iter().any(|f| f.opid == i.opid);
    let leftover = intent.filter(|i| !known(i)).map(|i| {
        let owner = if i.step == Making::SnapshotOsDisk { Role::Base.as_str() } else { uid };
        let mark = Mark { cluster: lens.cluster.to_owned(), owner: owner.to_owned(), op: i.opid.0.clone() };
        let mark = (!matches!(i.step, Making::StartMachine | Making::CreateConfig)).then_some(mark);
        flight(lens, seen, i.step, i.opid.clone(), i.source.clone(), mark, sr, &mut doubt)
    });
    let memory = lens.pool.memory();
    let again = flights.iter().filter_map(|f| memory.attempt(&f.opid).refused);
    let soon = again.map(|r| r.until.saturating_duration_since(lens.now)).filter(|left| !left.is_zero()).min();
    drop(memory);
    Seen { flights, leftover, doubt, soon }
}

#[expect(
    clippy::too_many_arguments,
    reason = "one flight is one row of facts; a struct for the call would only repeat it"
)]
fn flight(
    lens: &Lens<'_>,
    seen: &Observed,
    making: Making,
    opid: Opid,
    source: String,
    wanted_mark: Option<Mark>,
    sr: &Ref,
    doubt: &mut bool,
) -> Flight {
    let intent = seen.records.operation.clone().filter(|i| i.opid == opid);
    let mut attempt = lens.pool.memory().attempt(&opid);
    let mark = mark_sight(lens, &source, wanted_mark.as_ref(), sr);
    // Somebody else's of the same lineage: another process of ours, or another Connector of the same pool.
    if attempt.sent == Sent::Never && mark == MarkSight::Ours && !attempt.marked {
        attempt.sent = Sent::Unknown;
    }
    let children = if intent.is_some() || lens.deleting {
        children(lens, making, &opid, &source, wanted_mark.as_ref())
    } else {
        Vec::new()
    };
    let task = task_sight(lens, making, &opid, &attempt, wanted_mark.as_ref(), doubt);
    let restarted = intent.as_ref().is_some_and(|i| i.agent_start != seen.agent_start);
    let (scans, scan_due) = (seen.storage.scans, seen.storage.scan_due);
    let turn = lens.pool.turns().may_take(&source, &lens.want.uid);
    let ahead = ahead(lens, &source);
    // A test that began before there was anything to test would prove nothing.
    let quiet = if intent.is_some() || mark == MarkSight::Ours || !children.is_empty() {
        quiet(lens, &opid.0, &source, sr)
    } else {
        Quiet::No
    };
    let at_work = lens.pool.memory().at_work(&opid.0);
    Flight {
        making,
        opid,
        source,
        sr: seen.storage.uuid.clone(),
        wanted_mark,
        mark,
        intent,
        sent: attempt.sent,
        task,
        children,
        quiet,
        at_work,
        restarted,
        scans,
        scan_due,
        turn,
        ahead,
        refused: attempt.refused.filter(|r| lens.now < r.until).map(|r| r.trouble),
    }
}

/// Another layer that began something on the source and does not go on by itself: nobody else would find out whom to ask.
fn ahead(lens: &Lens<'_>, source: &str) -> Option<String> {
    let layer = holder(lens, source)?;
    let (namespace, name) = (layer.namespace().unwrap_or_default(), layer.name_any());
    let told = |type_| Some(find(&layer.status.as_ref()?.conditions, type_)?.reason.as_str());
    let rests = match (told(ConditionType::Stalled), told(ConditionType::ActionRequired)) {
        _ if layer.spec.suspend => "was suspended (spec.suspend)".to_owned(),
        (Some(reason), _) => format!("is stalled ({reason})"),
        (None, Some(reason)) => format!("waits for a person ({reason})"),
        (None, None) => return None,
    };
    Some(format!("layer {namespace}/{name} began to make something of the same disk and {rests} before that was done"))
}

/// Who has the turn on the source, as far as this process knows; else whoever set its mark: a base's names the operation alone.
fn holder<'a>(lens: &'a Lens<'_>, source: &str) -> Option<&'a PlatformLayer> {
    let turn = lens.pool.turns().holder(source).map(str::to_owned);
    let mark = lens.view.vdis.by_uuid(source).and_then(|(_, d)| Mark::read(&d.other_config));
    let mark = mark.as_ref();
    let turn = turn.and_then(|uid| lens.around.with_uid(&uid));
    let of_mark = mark.and_then(|m| m.layer()).and_then(|uid| lens.around.with_uid(uid));
    let at_it = mark.and_then(|m| lens.around.who_is_at(&m.op));
    let mut known = [turn, of_mark, at_it].into_iter().flatten();
    known.find(|l| l.metadata.uid.as_ref() != Some(&lens.want.uid))
}

fn mark_sight(lens: &Lens<'_>, source: &str, wanted: Option<&Mark>, sr: &Ref) -> MarkSight {
    let on_it = lens.view.vdis.by_uuid(source).and_then(|(_, d)| Mark::read(&d.other_config));
    let waits = format!("mark/{source}/");
    if on_it.as_ref().is_none_or(|mark| mark.cluster == lens.cluster) {
        lens.pool.memory().waits_over(&waits);
    }
    match on_it {
        None => MarkSight::None,
        Some(mark) if Some(&mark) == wanted => MarkSight::Ours,
        Some(mark) if mark.cluster != lens.cluster => {
            let long = lens.waits_long(&format!("{waits}{mark}"));
            MarkSight::Foreign { mark, long }
        }
        Some(mark) if lens.is_at_work(&mark) => MarkSight::Held,
        Some(mark) => {
            let quiet = quiet(lens, &mark.op, source, sr) == Quiet::Twice;
            MarkSight::Stale { mark, quiet }
        }
    }
}

fn children(lens: &Lens<'_>, making: Making, opid: &Opid, source: &str, mark: Option<&Mark>) -> Vec<Child> {
    let source_ref = lens.view.vdis.by_uuid(source).map(|(r, _)| r);
    let shaped = |d: &Vdi| match making {
        Making::SnapshotOsDisk | Making::FreezeDisk => d.is_a_snapshot && Some(&d.snapshot_of) == source_ref,
        Making::CloneDisk | Making::CreateConfig => !d.is_a_snapshot,
        Making::CloneMachine | Making::StartMachine => false,
    };
    let child = |uuid: &str, shaped, settled| {
        let unwanted = is_unwanted(lens, uuid);
        Child { uuid: uuid.to_owned(), unwanted, shaped, settled }
    };
    // Keys make it no child any more; unless they came to one that goes.
    let unclaimed = |uuid: &str, keys: &identity::Keys| {
        !matches!(prove(lens.cluster, uuid, keys, false), Proof::ByKeys(_)) || is_going(lens, uuid)
    };
    let name = working_name(opid);
    match (making, mark) {
        (Making::CreateConfig, _) => {
            let ours = |d: &Vdi| d.name_label == name && d.managed && unclaimed(&d.uuid, &d.other_config);
            let named = lens.view.vdis.iter().filter(|(_, d)| ours(d));
            named.map(|(_, d)| child(&d.uuid, shaped(d), true)).collect()
        }
        (Making::StartMachine, _) | (_, None) => Vec::new(),
        (Making::CloneMachine, _) => {
            let ours = |vm: &Vm| vm.name_label == name && unclaimed(&vm.uuid, &vm.other_config);
            let named = lens.view.vms.iter().filter(|(_, vm)| ours(vm));
            named.map(|(_, vm)| child(&vm.uuid, true, !vm.is_a_template)).collect()
        }
        (Making::SnapshotOsDisk | Making::CloneDisk | Making::FreezeDisk, Some(mark)) => {
            let is_child = |d: &Vdi| d.uuid != source && d.managed && !is_claimed(d);
            let marked = lens.view.vdis.with(identity::MAKING, &mark.to_string()).filter(|(_, d)| is_child(d));
            let keyed = lens.view.vdis.with(identity::OP, &opid.0);
            let going = keyed.filter(|(_, d)| is_claimed(d) && is_going(lens, &d.uuid));
            marked.chain(going).map(|(_, d)| child(&d.uuid, shaped(d), true)).collect()
        }
    }
}

/// The name that a machine is cloned under, or a disk is made under, and found again by.
pub fn working_name(opid: &Opid) -> String {
    format!("lamina-{opid}")
}

/// How the in-flight test of an operation stands; a live look advances it.
fn quiet(lens: &Lens<'_>, opid: &str, source: &str, sr: &Ref) -> Quiet {
    if !lens.live {
        return lens.pool.memory().in_flight(opid);
    }
    let view = lens.view;
    let op = Opid(opid.to_owned());
    let tag = |t: &Task| t.op().cloned();
    let mine = |t: &Task| tag(t).is_some_and(|tag| op.covers(&tag));
    // A sub-task bears no tag of its own: whoever is above it does.
    let below = |t: &Task| view.tasks.get(&t.subtask_of).is_some_and(|above| mine(above));
    let own = view.tasks.iter().filter(|(_, t)| t.status.is_at_work() && (mine(t) || below(t)));
    let mut own: BTreeSet<String> = own.map(|(_, t)| format!("{} of its own", t.name_label)).collect();
    let of_disk = view.vdis.by_uuid(source).map(|(_, d)| ("disk", &d.current_operations));
    let of_machine = view.vms.by_uuid(source).map(|(_, vm)| ("machine", &vm.current_operations));
    for (kind, operations) in of_disk.into_iter().chain(of_machine) {
        own.extend(operations.values().map(|operation| format!("{operation} of {kind} {source}")));
    }
    let others_tag =
        |task: &str| view.tasks.get(&Ref(task.to_owned())).and_then(|t| tag(t)).is_some_and(|t| !op.covers(&t));
    let storage = view.srs.get(sr).into_iter().flat_map(|sr| sr.current_operations.iter().map(move |at| (sr, at)));
    let storage: HashMap<String, String> = storage
        .filter(|(_, (task, _))| !others_tag(task))
        .map(|(sr, (task, operation))| (task.clone(), format!("{operation} on storage repository '{}'", sr.name_label)))
        .collect();
    lens.pool.memory().look_in_flight(opid, own, storage, lens.now, lens.pace.in_flight)
}
