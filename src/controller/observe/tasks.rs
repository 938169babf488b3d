//! What the tasks of an operation say of its present attempt, and whether what they made may still be had.
//!
//! Called by `flights` alone.

use super::super::pool::Attempt;
use super::Lens;
use crate::api::reason::Reason;
use crate::domain::identity::{self, Mark, Opid, Proof, TASK_TAG, prove};
use crate::domain::observed::{Making, Sent, TaskSight, Trouble};
use crate::xapi::model::{Task, TaskStatus, Vdi};
use crate::xapi::wire::{Failure, Ref, task_result};

/// Tasks that bear exactly this tag; a sub-task bears none. What one made that is known by its tag alone counts only with the mark on it: a
/// call that was carried out when the mark was off again was an earlier attempt's, and its copy may lack what was done since.
pub fn task_sight(
    lens: &Lens<'_>,
    making: Making,
    opid: &Opid,
    attempt: &Attempt,
    mark: Option<&Mark>,
    doubt: &mut bool,
) -> TaskSight {
    let sent = &attempt.sent;
    let tagged = || lens.view.tasks.with(TASK_TAG, &opid.0).map(|(_, t)| t.as_ref());
    let named = attempt.task.as_ref().and_then(|r| lens.view.tasks.get(r)).map(AsRef::as_ref);
    if *sent == Sent::Once && named.is_none() {
        *doubt = true;
    }
    if let Some(task) = named.into_iter().chain(tagged()).find(|t| t.status.is_at_work()) {
        return TaskSight::Pending { progress: task.progress };
    }
    match sent {
        // What ended before this attempt, or was settled, says nothing of it.
        Sent::Never | Sent::Over => return TaskSight::None,
        Sent::Once | Sent::Unknown => {}
    }
    let over = |t: &&Task| !matches!(t.status, TaskStatus::Other);
    // Of the task that this very attempt was answered with there is no doubt, and another's is an earlier one's. Where the reply was lost any
    // of them may be: one whose child is gone says nothing of a call that is still on its way.
    let (own, mut tagged): (_, Vec<&Task>) = match sent {
        Sent::Once => (named.filter(over), Vec::new()),
        Sent::Never | Sent::Over | Sent::Unknown => (None, tagged().filter(over).collect()),
    };
    tagged.sort_by(|a, b| b.created.cmp(&a.created));
    let succeeded = |t: &&&Task| t.status == TaskStatus::Success;
    let made = |t: &&Task| made_of(lens, making, t, |d| own.is_some() || is_marked(d, mark) || is_claimed(d));
    if let Some(child) = own.iter().chain(&tagged).filter(succeeded).find_map(made) {
        return match claimed(lens, making, &child) {
            true => TaskSight::Succeeded { child: None },
            false if is_unwanted(lens, &child) => TaskSight::Unwanted { child },
            false => TaskSight::Succeeded { child: Some(child) },
        };
    }
    // The mark was gone when it was made, so nobody can say what of. No work is on it yet: it goes, and is made anew.
    let idle = |d: &Vdi| d.vbds.is_empty() && !is_known(lens, &d.uuid);
    let bare = |t: &&Task| made_of(lens, making, t, idle);
    if matches!(making, Making::SnapshotOsDisk | Making::CloneDisk)
        && let Some(child) = tagged.iter().filter(succeeded).find_map(bare)
    {
        return TaskSight::Unwanted { child };
    }
    if own.iter().chain(&tagged).any(|t| t.status == TaskStatus::Success) {
        if making == Making::StartMachine {
            return TaskSight::Succeeded { child: None };
        }
        *doubt = true;
        if own.is_some() {
            return TaskSight::Succeeded { child: None };
        }
    }
    match own.iter().chain(&tagged).find(|t| t.status != TaskStatus::Success) {
        Some(task) => TaskSight::Failed(failed(making, task)),
        None => TaskSight::None,
    }
}

/// uuid of what a task made, as far as it is seen and counts.
fn made_of(lens: &Lens<'_>, making: Making, task: &Task, counts: impl Fn(&Vdi) -> bool) -> Option<String> {
    let child = Ref(task_result(&task.result));
    match making {
        Making::CloneMachine => lens.view.vms.get(&child).map(|vm| vm.uuid.clone()),
        Making::SnapshotOsDisk | Making::CloneDisk | Making::FreezeDisk | Making::CreateConfig => {
            lens.view.vdis.get(&child).filter(|d| counts(d)).map(|d| d.uuid.clone())
        }
        Making::StartMachine => None,
    }
}

/// Its destruction was asked for: by this process, or by one that said so on it before.
pub fn is_unwanted(lens: &Lens<'_>, uuid: &str) -> bool {
    let agent_start = lens.view.agent_start().unwrap_or_default();
    is_going(lens, uuid) || lens.pool.memory().was_removed(uuid, agent_start)
}

/// It was said on it that it goes. A claim whose reply was lost may come through after that: it brings keys, and takes no tag off. What is
/// known by now goes on: there the tag came too late.
pub fn is_going(lens: &Lens<'_>, uuid: &str) -> bool {
    let tags = lens.view.vdis.by_uuid(uuid).map(|(_, d)| &d.tags);
    let tags = tags.or(lens.view.vms.by_uuid(uuid).map(|(_, vm)| &vm.tags));
    tags.is_some_and(|tags| tags.contains(&identity::unwanted(uuid))) && !is_known(lens, uuid)
}

/// A status names it, or a disk stands on it.
fn is_known(lens: &Lens<'_>, uuid: &str) -> bool {
    let recorded = lens.layer.status.as_ref().is_some_and(|s| {
        s.disk.as_ref().is_some_and(|d| d.uuid == uuid)
            || s.config_disk.as_ref().is_some_and(|d| d.uuid == uuid)
            || s.machine.as_ref().is_some_and(|m| m.uuid == uuid)
            || s.versions.iter().any(|v| v.disk == uuid)
    });
    let stands_on = |d: &Vdi| d.other_config.get(identity::BASE).is_some_and(|base| base == uuid);
    recorded || lens.around.is_base(uuid, &lens.want.uid, None) || lens.view.vdis.iter().any(|(_, d)| stands_on(d))
}

/// Made of a source while this mark was on it; where none is wanted, nothing is inherited.
fn is_marked(d: &Vdi, mark: Option<&Mark>) -> bool {
    mark.is_none_or(|mark| d.other_config.get(identity::MAKING) == Some(&mark.to_string()))
}

pub fn is_claimed(d: &Vdi) -> bool {
    d.other_config.get(identity::SELF) == Some(&d.uuid)
}

/// A child that bears its keys is no child to claim any more.
fn claimed(lens: &Lens<'_>, making: Making, uuid: &str) -> bool {
    let keys = match making {
        Making::CloneMachine | Making::StartMachine => lens.view.vms.by_uuid(uuid).map(|(_, vm)| &vm.other_config),
        Making::SnapshotOsDisk | Making::CloneDisk | Making::FreezeDisk | Making::CreateConfig => {
            lens.view.vdis.by_uuid(uuid).map(|(_, d)| &d.other_config)
        }
    };
    !is_going(lens, uuid) && keys.is_some_and(|k| matches!(prove(lens.cluster, uuid, k, false), Proof::ByKeys(_)))
}

fn failed(making: Making, task: &Task) -> Trouble {
    match Failure::from_list(&task.error_info) {
        Some(failure) => super::super::trouble::of_making(making, &failure),
        None => Trouble::new(Reason::PoolError, "the pool cancelled the call"),
    }
}
