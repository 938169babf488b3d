//! A task of a layer that does not end: told as something for a person, while Lamina goes on waiting for it.
//!
//! The pool tries a call that conflicts with another one for two hours by itself (xapi.md 4.2); what pends for longer hangs. Called by
//! `layer` once a step is decided. It only changes what is told: nothing is sent again or taken away for it, and whatever ends the task
//! wakes the layer as ever.

use std::collections::HashSet;

use super::observe::{Lens, Scene, lineage};
use crate::api::condition::{ConditionType, find};
use crate::api::reason::Reason;
use crate::domain::identity::{OP, Opid, Role, is_stream};
use crate::domain::observed::Making;
use crate::domain::plan::{Plan, Say, Step};
use crate::xapi::model::{Map, Task};
use crate::xapi::wire::{Ref, parse_time};

/// The plan as it is told. `again`: its step is what is under way, and is not to be taken now.
pub fn told(lens: &Lens<'_>, scene: &Scene, plan: Plan, again: bool) -> Plan {
    let waits = again || matches!(plan.step, Step::Nothing | Step::CancelTasks { .. });
    // A person's turn, a trouble and a rest hang on no task.
    let working = matches!(plan.say, Say::Working(..) | Say::Deleting { stuck: false, .. });
    let Some(message) = (waits && working).then(|| overdue(lens, scene)).flatten() else { return plan };
    let say = match plan.say {
        Say::Deleting { stuck, .. } => Say::Deleting { reason: Reason::TaskOverdue, message, stuck },
        _working => Say::Person(Reason::TaskOverdue, message),
    };
    let step = if again { Step::Nothing } else { plan.step };
    Plan { step, say, ..plan }
}

/// What is to be told of the oldest task of this layer that pends for too long.
fn overdue(lens: &Lens<'_>, scene: &Scene) -> Option<String> {
    let ops = operations(lens, scene);
    let ours = |tag: &String| !is_stream(tag) && ops.iter().any(|op| op.covers(tag));
    let pending = lens.view.tasks.iter().filter(|(_, t)| t.status.is_at_work() && t.op().is_some_and(ours));
    // Each is counted from when this process first saw it; one that an earlier process told of had waited.
    let ready = lens.layer.status.as_ref().and_then(|s| find(&s.conditions, ConditionType::Ready));
    let told = |t: &Task| {
        ready.is_some_and(|c| c.reason == Reason::TaskOverdue.as_str() && c.message.contains(t.uuid.as_str()))
    };
    let late = pending.filter(|(r, t)| lens.waits(&format!("task/{r}")) >= lens.pace.overdue || told(t));
    let (reference, task) = late.min_by_key(|(_, t)| (&t.created, &t.uuid))?;
    let since = parse_time(&task.created).map_or_else(|| task.created.clone(), |t| t.to_string());
    let shown = match shown(lens, reference) {
        Some((object, operation)) => format!("{object} still shows it as its current operation {operation}"),
        None => format!(
            "{} does not show it among its current operations: it waits there for its turn, or what carried it out has died",
            object(lens, scene, task)
        ),
    };
    Some(format!(
        "the pool has been at task {uuid} ({name}) since {since}, far longer than any such call takes, and {shown}. See `xe task-list uuid={uuid}`, \
         the storage behind it, SMlog and xensource.log on the coordinator; `xe task-cancel uuid={uuid}` ends a task that still can be ended. \
         Lamina goes on by itself when the task ends; until then it neither sends the call again nor takes anything away",
        uuid = task.uuid,
        name = task.name_label,
    ))
}

/// Ids that this layer's calls bear: of what it makes, and of the objects that its other calls are on. What others do at a shared base is
/// theirs to tell.
fn operations(lens: &Lens<'_>, scene: &Scene) -> HashSet<Opid> {
    let (seen, estate) = (&scene.observed, &scene.estate);
    let of_versions = [Role::Work, Role::Machine, Role::Config, Role::Frozen];
    let lineages = of_versions.map(|role| lineage(lens.cluster, &lens.want.uid, &seen.subject, role).opid());
    let own = seen.flights.iter().filter(|f| f.intent.is_some() || f.making != Making::SnapshotOsDisk);
    let flights = own.chain(&seen.leftover).map(|f| f.opid.clone());
    let disks = [&estate.works, &estate.configs, &estate.frozen, &seen.idle_bases].into_iter().flatten();
    let keys = disks.map(|d| &d.keys).chain(estate.machines.iter().map(|m| &m.keys));
    let keyed = keys.filter_map(|keys| keys.get(OP)).map(|op| Opid(op.clone()));
    lineages.into_iter().chain(flights).chain(keyed).collect()
}

/// The object that shows a task as what it is at, in words, and the operation.
fn shown<'a>(lens: &Lens<'a>, task: &Ref) -> Option<(String, &'a str)> {
    let view = lens.view;
    let at = |operations: &'a Map| operations.get(task.as_str()).map(String::as_str);
    let machine =
        || view.vms.iter().find_map(|(_, m)| Some((machine(&m.name_label, &m.uuid), at(&m.current_operations)?)));
    let drive = || {
        let of = |vm: &Ref| view.vms.get(vm).map_or_else(String::new, |m| m.name_label.clone());
        view.vbds.iter().find_map(|(_, b)| {
            Some((format!("the attachment {} of machine '{}'", b.uuid, of(&b.vm)), at(&b.current_operations)?))
        })
    };
    let disk = || view.vdis.iter().find_map(|(_, d)| Some((disk(&d.name_label, &d.uuid), at(&d.current_operations)?)));
    let storage = || view.srs.iter().find_map(|(_, s)| Some((repository(&s.name_label), at(&s.current_operations)?)));
    machine().or_else(drive).or_else(disk).or_else(storage)
}

/// What a task that no object shows is about, as far as its tag tells.
fn object(lens: &Lens<'_>, scene: &Scene, task: &Task) -> String {
    let (view, seen) = (lens.view, &scene.observed);
    let tag = task.op().map(String::as_str).unwrap_or_default();
    let (op, what) = tag.split_once('.').unwrap_or((tag, ""));
    let source = seen.flights.iter().chain(&seen.leftover).find(|f| f.opid.0 == tag).map(|f| f.source.as_str());
    let a_disk = view.vdis.with(OP, op).map(|(_, d)| d).next().or_else(|| Some(view.vdis.by_uuid(source?)?.1));
    let a_machine = view.vms.with(OP, op).map(|(_, m)| m).next().or_else(|| Some(view.vms.by_uuid(source?)?.1));
    match (a_machine, a_disk) {
        (Some(m), _) => machine(&m.name_label, &m.uuid),
        (None, Some(d)) if what != "scan" => disk(&d.name_label, &d.uuid),
        (None, Some(_) | None) => repository(&seen.storage.name),
    }
}

fn machine(name: &str, uuid: &str) -> String {
    format!("machine '{name}' ({uuid})")
}

fn disk(name: &str, uuid: &str) -> String {
    format!("disk '{name}' ({uuid})")
}

fn repository(name: &str) -> String {
    format!("storage repository '{name}'")
}
