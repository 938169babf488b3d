//! The packaging machine: set up, started, watched, judged when it halts, and its disk frozen: rows 4 to 10 of the walk.

use super::super::gate::{self, place};
use super::super::identity::{BOOT, TOKEN};
use super::super::making;
use super::super::observed::{
    Disk, Dvd, Flight, Holder, Machine, Making, Observed, Power, Quiet, Sent, TaskSight, Trouble,
};
use super::super::steps;
use super::super::want::Want;
use super::config::{at_stream, config_disk, end_config, read_back};
use super::disk::boot_forgotten;
use super::words::instruction;
use super::{Next, Say, Step, Verdict, advance, finish_operations, held, ran};
use crate::api::reason::Reason;

pub(super) fn with_machine(want: &Want, seen: &Observed, w: &Disk, m: &Machine) -> Verdict {
    let recorded = seen.records.machine.as_ref().is_some_and(|r| r.uuid == m.uuid);
    if !m.keyed {
        return Verdict::act(
            Step::TagAgain { uuid: m.uuid.clone() },
            Reason::TaggingAgain,
            "the packaging machine gets its keys",
        );
    }
    if !m.guard_drift.is_empty() {
        return Verdict::act(
            Step::SetUp { machine: m.uuid.clone(), settings: m.guard_drift.clone() },
            Reason::SettingUpMachine,
            "restarts behind our back are switched off on the packaging machine",
        );
    }
    // Before it is set up: what xapi forgets of it is then still known to be ours.
    if !recorded {
        return Verdict::act(Step::Record, Reason::CreatingMachine, "the packaging machine is made");
    }
    if !ran(seen, m) {
        return set_up(want, seen, w, m);
    }
    if let Some(verdict) = finish_operations(seen) {
        return verdict;
    }
    // What the pool shows of a machine in the middle of its start is neither the old boot nor the new one.
    if seen.flight(Making::StartMachine).is_some_and(is_under_way) {
        return Verdict::wait(Next::Task, Reason::StartingMachine, "starting the packaging machine");
    }
    // Somebody switched it on meanwhile: what was taken of its disk is not what it will hold.
    if m.power != Power::Halted && seen.flight(Making::FreezeDisk).is_some_and(|f| f.intent.is_some()) {
        if m.power == Power::Running && m.key(BOOT) != Some(m.boot_id().as_str()) {
            let step = Step::NoteBoot { machine: m.uuid.clone(), boot: m.boot_id() };
            return Verdict::act(step, Reason::FreezingDisk, "the machine runs again");
        }
        return take_back_freeze(seen, m, Trouble::new(Reason::WaitingForMachine, "the machine runs again"));
    }
    match m.power {
        Power::Running => running(want, seen, m),
        Power::Paused | Power::Suspended => Verdict::rest(Say::Person(
            Reason::ResumeMachine,
            format!(
                "{} is {}: resume it to go on installing (xe vm-{} uuid={})",
                place(m),
                if m.power == Power::Paused { "paused" } else { "suspended" },
                if m.power == Power::Paused { "unpause" } else { "resume" },
                m.uuid
            ),
        )),
        Power::Halted => halted(want, seen, w, m),
        Power::Unknown => Verdict::wait(
            Next::Capacity,
            Reason::WaitingForMachine,
            format!(
                "machine '{}' is in a power state that Lamina does not know: nothing is done until it is running or off",
                m.name
            ),
        ),
    }
}

/// The pool has the call, and has not ended it.
fn is_under_way(f: &Flight) -> bool {
    matches!(f.task, TaskSight::Pending { .. })
}

/// Rows 4 to 7: everything that must stand before the first start.
fn set_up(want: &Want, seen: &Observed, w: &Disk, m: &Machine) -> Verdict {
    let act = |step, message: &str| Verdict::act(step, Reason::SettingUpMachine, message);
    let under_way = seen.flight(Making::StartMachine).is_some_and(|f| f.intent.is_some());
    // Status remembers a boot that xapi forgot: another one is a person's to ask for.
    let forgotten = boot_forgotten(seen) && !under_way;
    let freezing = seen.flight(Making::FreezeDisk).is_some_and(|f| f.intent.is_some());
    if forgotten && (freezing || m.start_blocked || new_token(want, seen, m).is_none()) {
        let why = gate::boot_forgotten(want, seen, m);
        if m.busy {
            return Verdict { next: Next::Task, ..Verdict::trouble(why) };
        }
        return take_back_freeze(seen, m, why);
    }
    if m.busy {
        return Verdict::wait(Next::Task, Reason::SettingUpMachine, "the packaging machine is being set up");
    }
    // It takes the machine as it was when it was asked for.
    if seen.flight(Making::StartMachine).is_some_and(is_under_way) {
        return Verdict::wait(Next::Task, Reason::StartingMachine, "starting the packaging machine");
    }
    if !m.drift.is_empty() {
        return act(
            Step::SetUp { machine: m.uuid.clone(), settings: m.drift.clone() },
            "setting up the packaging machine",
        );
    }
    if m.disk.is_none() {
        return act(Step::AttachDisk { machine: m.uuid.clone(), disk: w.uuid.clone() }, "attaching the packaging disk");
    }
    match &m.dvd {
        Dvd::None => return act(Step::AddDvd { machine: m.uuid.clone() }, "adding a DVD drive"),
        Dvd::Foreign { vbd } => {
            return act(Step::EjectDisc { vbd: vbd.clone() }, "taking the template's disc out of the DVD drive");
        }
        Dvd::Empty { vbd } => return act(Step::InsertTools { vbd: vbd.clone() }, "inserting the tools disc"),
        Dvd::ToolsIn { .. } => {}
    }
    // A start that may be on its way takes the machine as it is.
    let sent = |f: &Flight| match (f.sent.clone(), f.quiet) {
        (Sent::Never | Sent::Over, _) | (_, Quiet::Twice) => f.task != TaskSight::None,
        (Sent::Once | Sent::Unknown, Quiet::No | Quiet::Once) => f.intent.is_some(),
    };
    if !seen.flight(Making::StartMachine).is_some_and(sent)
        && let Some(verdict) = config_disk(want, seen, m)
    {
        return verdict;
    }
    if let Some(verdict) = finish_operations(seen) {
        return verdict;
    }
    // Whoever sets a new token asks for a start, of a machine that never ran too.
    if !want.power_on && !under_way && new_token(want, seen, m).is_none() {
        return Verdict::rest(Say::Person(
            Reason::StartMachine,
            format!(
                "machine '{}' is ready and spec.machine.powerOn is false: start it (xe vm-start uuid={}), or set powerOn to true, to install software",
                m.name, m.uuid
            ),
        ));
    }
    use_token(want, seen, m).unwrap_or_else(|| start(seen, w, m))
}

/// The token is used before the call: a start too few can be asked for again.
fn use_token(want: &Want, seen: &Observed, m: &Machine) -> Option<Verdict> {
    let token = new_token(want, seen, m)?;
    let f = seen.flight(Making::StartMachine).filter(|f| f.intent.is_some() && f.task == TaskSight::None)?;
    Some(Verdict::act(
        Step::UseToken { machine: f.source.clone(), token },
        Reason::StartingMachine,
        "using the restart token",
    ))
}

/// A start, with its own gates. `VM.start` tells nothing when no host can do it, so the hosts are asked first.
fn start(seen: &Observed, w: &Disk, m: &Machine) -> Verdict {
    let config = seen.config.found().filter(|_| !m.config_done);
    let other = |d: &Disk| {
        d.attachments.iter().find_map(|a| match &a.holder {
            Holder::Other { name, .. } => Some(name.clone()),
            Holder::Machine | Holder::ControlDomain { .. } => None,
        })
    };
    if let Some((w, other)) = [Some(w), config].into_iter().flatten().find_map(|d| Some((d, other(d)?))) {
        return Verdict::rest(Say::Stalled(
            Reason::ForeignDisk,
            format!(
                "disk '{}' ({}) is also attached to machine '{other}': take it off there, two machines would destroy it",
                w.name, w.uuid
            ),
        ));
    }
    const WHAT: &str = "starting the packaging machine";
    if let Some(verdict) = held(w).or_else(|| at_stream(config?, Reason::StartingMachine, WHAT)) {
        return verdict;
    }
    // A freeze that xapi died at leaves it so; storage lets nobody have it.
    if w.left_paused {
        return Verdict::act(Step::Unpause { disk: w.uuid.clone() }, Reason::StartingMachine, WHAT);
    }
    if let Some(c) = config.filter(|_| m.config.is_none()) {
        let step = Step::AttachConfig { machine: m.uuid.clone(), disk: c.uuid.clone() };
        return Verdict::act(step, Reason::StartingMachine, "attaching the config disk again");
    }
    if m.disk.is_none() {
        let step = Step::AttachDisk { machine: m.uuid.clone(), disk: w.uuid.clone() };
        return Verdict::act(step, Reason::StartingMachine, "attaching the packaging disk again");
    }
    if let Some(why) = &m.cannot_boot {
        // What a machine that ran is like is its user's, and no longer the manifest's.
        let less = if ran(seen, m) {
            format!("give it less: xe vm-memory-set uuid={} memory=…", m.uuid)
        } else {
            "lower spec.machine.memory".to_owned()
        };
        return Verdict::wait(
            Next::Capacity,
            Reason::WaitingForCapacity,
            format!(
                "no host can start machine '{}' now ({why}): free memory on one that sees its disk, ISO and networks, or {less}; tried again every minute",
                m.name
            ),
        );
    }
    advance(seen, Making::StartMachine, WHAT)
}

/// What is done to a running machine is done beside a person's turn: what to tell does not wait for it.
fn running(want: &Want, seen: &Observed, m: &Machine) -> Verdict {
    let starting = seen.flight(Making::StartMachine).is_some_and(|f| f.intent.is_some());
    let step = if m.key(BOOT) != Some(m.boot_id().as_str()) {
        Step::NoteBoot { machine: m.uuid.clone(), boot: m.boot_id() }
    } else if let (Some(token), false) = (new_token(want, seen, m), starting) {
        // First seen while running: used up, a running machine needs no start.
        Step::UseToken { machine: m.uuid.clone(), token }
    } else if let (true, false, Dvd::ToolsIn { vbd }) = (m.tools.ready, m.busy, &m.dvd) {
        Step::EjectDisc { vbd: vbd.clone() }
    } else {
        Step::Nothing
    };
    let next = if step == Step::Nothing { Next::Rest } else { Next::Now };
    Verdict { step, say: instruction(want, seen, m), next }
}

/// A token that neither the machine nor status knows for used: a pool may forget what was written on the machine.
fn new_token(want: &Want, seen: &Observed, m: &Machine) -> Option<String> {
    let record = seen.records.machine.as_ref().filter(|r| r.uuid == m.uuid).and_then(|r| r.restart_token.as_deref());
    want.restart_token.clone().filter(|t| m.key(TOKEN) != Some(t.as_str()) && record != Some(t.as_str()))
}

/// Row 9 and 10: judge, ask, freeze.
fn halted(want: &Want, seen: &Observed, w: &Disk, m: &Machine) -> Verdict {
    let starting = seen.flight(Making::StartMachine).is_some_and(|f| f.intent.is_some());
    let freezing = seen.flight(Making::FreezeDisk).is_some_and(|f| f.intent.is_some());
    if !freezing && let Some(verdict) = restart(want, seen, w, m, starting) {
        return verdict;
    }
    // A freeze that is refused again and again must not keep anybody from the machine.
    let at_work = seen.flight(Making::FreezeDisk).is_some_and(|f| matches!(f.task, TaskSight::Pending { .. }));
    if freezing && !at_work && new_token(want, seen, m).is_some() {
        const WHAT: &str = "the machine is to be started again: the freeze that was begun is taken back";
        return take_back_freeze(seen, m, Trouble::new(Reason::WaitingForMachine, WHAT));
    }
    if let Some(verdict) = read_back(seen, m).filter(|_| !freezing) {
        return verdict;
    }
    let judgement = gate::judge(want, seen, m);
    let may = steps::steps_done(want, seen, m)
        .and_then(|()| gate::approval(want, m, &seen.subject, &judgement))
        .and_then(|()| gate::freeze(seen, m))
        .and_then(|()| gate::same_boot(seen, m));
    if let Err(t) = may {
        return take_back_freeze(seen, m, t);
    }
    // By its boot a machine that runs in the middle of its freeze is told from one that rests.
    if !freezing && m.key(BOOT).is_none() {
        return Verdict::act(
            Step::NoteBoot { machine: m.uuid.clone(), boot: m.boot_id() },
            Reason::FreezingDisk,
            "noting the boot that is frozen",
        );
    }
    if !freezing && w.busy {
        return Verdict::wait(Next::Task, Reason::FreezingDisk, "an operation is at work on the packaging disk");
    }
    // A freeze that xapi died at leaves it so, and none that is asked for once more could succeed.
    if w.left_paused && !at_work {
        return Verdict::act(
            Step::Unpause { disk: w.uuid.clone() },
            Reason::FreezingDisk,
            "the packaging disk was left paused when the pool's daemon died",
        );
    }
    if !m.start_blocked {
        return Verdict::act(
            Step::BlockStart { machine: m.uuid.clone() },
            Reason::FreezingDisk,
            "keeping the machine off while its disk is frozen",
        );
    }
    if let Some(verdict) = end_config(seen, m).filter(|_| !freezing) {
        return verdict;
    }
    advance(seen, Making::FreezeDisk, "freezing the packaging disk as the version")
}

/// A person asked for another start of a halted machine.
fn restart(want: &Want, seen: &Observed, w: &Disk, m: &Machine, starting: bool) -> Option<Verdict> {
    let token = new_token(want, seen, m);
    if token.is_none() && !starting {
        return None;
    }
    // Else a boot that the pool forgot would be taken for the one that is asked for.
    if !starting && m.boot_noted() != Some(m.start_time.as_str()) {
        return Some(Verdict::act(
            Step::NoteBoot { machine: m.uuid.clone(), boot: m.boot_id() },
            Reason::StartingMachine,
            "noting the boot that is over",
        ));
    }
    if m.busy {
        return Some(Verdict::wait(Next::Task, Reason::StartingMachine, "the machine is busy"));
    }
    if m.start_blocked {
        return Some(Verdict::act(
            Step::UnblockStart { machine: m.uuid.clone() },
            Reason::StartingMachine,
            "the machine may be started again",
        ));
    }
    Some(use_token(want, seen, m).unwrap_or_else(|| start(seen, w, m)))
}

/// A freeze that was begun and whose gates do not hold any more leaves nothing behind.
fn take_back_freeze(seen: &Observed, m: &Machine, why: Trouble) -> Verdict {
    const WHAT: &str = "something changed while the disk was being frozen; taking that back";
    if let Some(f) = seen.flight(Making::FreezeDisk).filter(|f| f.intent.is_some()) {
        return match making::abandon(f) {
            Some(mv) => Verdict::from_move(mv, Reason::FreezingDisk, WHAT),
            None => Verdict::act(Step::DropIntent, Reason::FreezingDisk, WHAT),
        };
    }
    if m.start_blocked {
        return Verdict::act(Step::UnblockStart { machine: m.uuid.clone() }, Reason::FreezingDisk, WHAT);
    }
    if why.reason == Reason::HeldByDom0
        && let Some(verdict) = seen.work.found().and_then(held)
    {
        return verdict;
    }
    Verdict::trouble(why)
}

/// F is claimed: named, then recorded; from then on the version exists.
pub(super) fn record_frozen(f: &Disk) -> Verdict {
    if !f.keyed || !f.tagged {
        return Verdict::act(
            Step::TagAgain { uuid: f.uuid.clone() },
            Reason::TaggingAgain,
            "the frozen disk gets its keys",
        );
    }
    Verdict::act(Step::Record, Reason::FreezingDisk, "the frozen disk becomes the version")
}
