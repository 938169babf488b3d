//! The config disk in the walk: made, filled and attached before the first start; read back after each halt; wiped and removed before the
//! freeze, or with the machine.

use super::super::config;
use super::super::identity::BOOT;
use super::super::observed::{Attachment, Disk, Holder, Machine, Making, Observed, Sight};
use super::super::want::Want;
use super::disk::w_worked;
use super::{Next, Plan, Say, Step, Verdict, advance, cannot_tell, destroy_disk, finish_operations, held, ran};
use crate::api::reason::Reason;

/// The config disk: made, named, recorded, filled and attached before the first start. A machine that takes a lost one's place, on a disk
/// that was worked on, gets the config disk that is there, whose record says what ran, or none.
pub(super) fn config_disk(want: &Want, seen: &Observed, m: &Machine) -> Option<Verdict> {
    let act = |step, message: &str| Some(Verdict::act(step, Reason::SettingUpMachine, message));
    let c = match &seen.config {
        Sight::CannotLook => return Some(cannot_tell(seen, "the config disk")),
        Sight::Absent | Sight::Lost if w_worked(seen) => return None,
        // What was made before is recorded and done with first: status has room for one intent.
        Sight::Absent | Sight::Lost => {
            let make = || advance(seen, Making::CreateConfig, "making the config disk");
            return Some(finish_operations(seen).unwrap_or_else(make));
        }
        Sight::Found(c) => c,
    };
    if !w_worked(seen) && !config::fits(want, seen, m, c) {
        const WHAT: &str = "the config disk was made for something else and is thrown away";
        return Some(match &m.config {
            Some(vbd) => Verdict::act(Step::DetachDisk { vbd: vbd.clone() }, Reason::SettingUpMachine, WHAT),
            None => remove_config(seen, c, Reason::SettingUpMachine, WHAT),
        });
    }
    if !c.keyed || !c.tagged {
        return act(Step::TagAgain { uuid: c.uuid.clone() }, "the config disk gets its keys");
    }
    if seen.records.config.as_ref().is_none_or(|r| r.uuid != c.uuid) {
        let name = config::name(want, &seen.subject);
        if c.busy {
            return Some(Verdict::wait(Next::Task, Reason::SettingUpMachine, "the config disk is being named"));
        }
        if c.name != name {
            return act(Step::NameDisk { uuid: c.uuid.clone(), name }, "naming the config disk");
        }
        return act(Step::Record, "the config disk is made");
    }
    if seen.flight(Making::CreateConfig).is_some_and(|f| f.intent.is_some())
        && let Some(verdict) = finish_operations(seen)
    {
        return Some(verdict);
    }
    if !config::filled(seen, c) && !w_worked(seen) {
        let step = Step::FillConfig { disk: c.uuid.clone() };
        return Some(stream(seen, c, step, Reason::SettingUpMachine, "writing the config disk"));
    }
    if m.config.is_none() {
        let step = Step::AttachConfig { machine: m.uuid.clone(), disk: c.uuid.clone() };
        return act(step, "attaching the config disk");
    }
    None
}

/// Is it for this plan to know whether the files of the steps are still what is on the config disk? They are no part of the manifest, and no
/// event tells of them: so right before the first start, and while a person may make it.
pub fn asks_for_files(want: &Want, seen: &Observed, plan: &Plan) -> bool {
    let starts = plan.step == Step::Send(Making::StartMachine)
        || matches!(&plan.say, Say::Person(reason, _) if *reason == Reason::StartMachine);
    let first = seen.machine.found().is_some_and(|m| !ran(seen, m)) && !w_worked(seen);
    starts && first && want.steps.iter().any(|s| !s.files.is_empty())
}

/// What the guest left on the config disk is read before anything is judged, once for each boot.
pub(super) fn read_back(seen: &Observed, m: &Machine) -> Option<Verdict> {
    const WHAT: &str = "reading back what the guest left on the config disk";
    let c = match &seen.config {
        Sight::Found(c) if !m.config_done && m.key(BOOT).is_some() => c,
        Sight::CannotLook if !m.config_done => return Some(cannot_tell(seen, "the config disk")),
        Sight::Found(_) | Sight::CannotLook | Sight::Absent | Sight::Lost => return None,
    };
    if config::last_read(m).is_some() {
        return None;
    }
    if m.busy {
        return Some(Verdict::wait(Next::Task, Reason::WaitingForMachine, "the machine is not at rest yet"));
    }
    let step = Step::ReadConfig { machine: m.uuid.clone(), disk: c.uuid.clone() };
    Some(stream(seen, c, step, Reason::WaitingForMachine, WHAT))
}

/// The config disk has done its part: it goes before the freeze, its content first.
pub(super) fn end_config(seen: &Observed, m: &Machine) -> Option<Verdict> {
    const WHAT: &str = "the config disk has done its part and is removed";
    let act = |step| Some(Verdict::act(step, Reason::FreezingDisk, WHAT));
    match &seen.config {
        Sight::CannotLook => Some(cannot_tell(seen, "the config disk")),
        Sight::Absent | Sight::Lost => None,
        Sight::Found(_) if !m.config_done => act(Step::EndConfig { machine: m.uuid.clone() }),
        Sight::Found(c) => match &m.config {
            Some(vbd) => act(Step::DetachDisk { vbd: vbd.clone() }),
            None => Some(remove_config(seen, c, Reason::FreezingDisk, WHAT)),
        },
    }
}

/// The config disk goes: first its content, which may be somebody's secret.
pub(in crate::domain) fn remove_config(seen: &Observed, c: &Disk, why: Reason, what: &str) -> Verdict {
    let disk = c.uuid.clone();
    let step = if config::to_wipe(c) { Step::WipeConfig { disk } } else { Step::DestroyConfig { disk } };
    stream(seen, c, step, why, what)
}

fn stream(seen: &Observed, c: &Disk, step: Step, why: Reason, what: &str) -> Verdict {
    in_use(c).or_else(|| at_stream(c, why, what)).unwrap_or_else(|| destroy_disk(seen, c, step, why, what))
}

/// A machine of somebody else's that is on has it: no stream can be had.
fn in_use(c: &Disk) -> Option<Verdict> {
    c.attachments.iter().find_map(|a| match &a.holder {
        Holder::Other { name, .. } if a.attached => Some(Verdict::rest(Say::Stalled(
            Reason::ForeignDisk,
            format!(
                "disk '{}' ({}) is in use by machine '{name}': shut that down and take the disk off it (xe vbd-destroy uuid={})",
                c.name, c.uuid, a.vbd
            ),
        ))),
        Holder::Other { .. } | Holder::Machine | Holder::ControlDomain { .. } => None,
    })
}

/// Nobody but our own streams is at this disk: that the pool still shows one that is over is the same stage, and no news.
pub(super) fn at_stream(c: &Disk, why: Reason, what: &str) -> Option<Verdict> {
    let of_one = |a: &Attachment| matches!(a.holder, Holder::ControlDomain { leaked: false });
    if c.attachments.iter().any(of_one) {
        return Some(Verdict::wait(Next::Capacity, why, what));
    }
    held(c)
}
