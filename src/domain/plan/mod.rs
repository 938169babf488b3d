//! The decision: from what is wanted and seen to one step, a phase and what to tell.
//!
//! ```text
//!            S, then W            M, set up, started           it halts
//!  Pending ───────────▶ DiskCreated ───────────▶ MachineRunning ◀─────▶ AwaitingFinalize
//!                                                                          │ report, approval
//!                                            M and W removed, F stays      ▼ F = snapshot of W, claimed, recorded
//!                              Finalized ◀──────────────────────────────── …
//! ```
//!
//! Pure: no I/O, no clock, no async. `controller::layer` asks it in every pass, and for a step that creates, starts or destroys asks
//! again with a fresh look at the pool. The phase is an output: nothing here reads it. `disk`, `machine` and `config` have the rows of the walk.

mod config;
mod disk;
mod machine;
mod step;
mod tidy;
mod words;

pub use self::config::asks_for_files;
pub(in crate::domain) use self::config::remove_config;
pub use self::disk::{blocked_for, boot_forgotten, description};
pub(super) use self::step::Verdict;
pub use self::step::{Next, Plan, Say, Step};
pub(super) use self::tidy::only_copy;
pub use self::words::finalized;
pub(super) use self::words::{told, working_reason};

use super::identity::{BOOT, START_BEFORE};
use super::making;
use super::observed::{Disk, Flight, Holder, Machine, Making, MarkSight, Observed, Power, Sight, Storage, TaskSight};
use super::want::Want;
use crate::api::Phase;
use crate::api::reason::Reason;

/// The decision for a layer that is not being deleted.
pub fn decide(want: &Want, seen: &Observed) -> Plan {
    let Verdict { step, say, next } = next(want, seen);
    let phase = match phase(want, seen) {
        // The record that is written with this very phase.
        Phase::Pending if step == Step::Record && disk::size_due(want, seen).is_none() => Phase::DiskCreated,
        // What came back of an older version is removed before the new one begins.
        Phase::Finalized if seen.finalized(&want.version).is_none() => Phase::Pending,
        phase => phase,
    };
    Plan { phase, step, say: told(want, seen, phase, say), next }
}

/// Derived from what is there. Within a version it never goes back, but between running and halted.
pub fn phase(want: &Want, seen: &Observed) -> Phase {
    let worked = seen.records.disk.as_ref().is_some_and(|d| d.worked);
    // Found and not recorded, it may be forgotten by the pool, and made again.
    let recorded = seen.records.disk.as_ref().is_some_and(|d| d.version == seen.subject);
    // Until it has its size the spec may give it another one.
    let work_there = recorded && disk::size_due(want, seen).is_none();
    if seen.finalized(&seen.subject).is_some() && !removing(seen) {
        return Phase::Finalized;
    }
    if seen.frozen.found().is_some() || seen.finalized(&seen.subject).is_some() {
        return Phase::AwaitingFinalize;
    }
    match &seen.machine {
        Sight::Found(m) if ran(seen, m) => match m.power {
            Power::Halted => Phase::AwaitingFinalize,
            Power::Running | Power::Paused | Power::Suspended | Power::Unknown => Phase::MachineRunning,
        },
        Sight::Found(_) | Sight::Absent | Sight::Lost | Sight::CannotLook if worked => Phase::MachineRunning,
        Sight::Found(_) | Sight::Absent | Sight::Lost | Sight::CannotLook if work_there => Phase::DiskCreated,
        Sight::Found(_) | Sight::Absent | Sight::Lost | Sight::CannotLook => Phase::Pending,
    }
}

/// Are the machine and W of the finalized version still on record? Once gone they may come back, with a pool that forgets: no version goes
/// back for that.
fn removing(seen: &Observed) -> bool {
    let recorded =
        seen.records.machine.is_some() || seen.records.disk.as_ref().is_some_and(|d| d.version == seen.subject);
    recorded && (seen.work.found().is_some() || seen.machine.found().is_some())
}

/// Was it ever started since it was made? A machine that is not off was, whatever its metrics say yet: nothing that belongs before the
/// first start may be done to it.
pub fn ran(seen: &Observed, m: &Machine) -> bool {
    m.power != Power::Halted
        || m.key(BOOT).is_some()
        || m.key(START_BEFORE).is_some_and(|before| before != m.start_time)
        || seen.flight(Making::StartMachine).is_some_and(|f| matches!(f.task, TaskSight::Succeeded { .. }))
}

fn next(want: &Want, seen: &Observed) -> Verdict {
    if want.suspend {
        return Verdict::rest(Say::Suspended { finalized: at_rest(want, seen) });
    }
    if let Some(pool) = another_pool(seen) {
        return Verdict::rest(pool_changed(pool, &seen.pool));
    }
    if let Some(verdict) = clear_leftover(seen) {
        return verdict;
    }
    if let Some(verdict) = take_stray_mark(seen) {
        return verdict;
    }
    if seen.finalized(&seen.subject).is_some() {
        return tidy::tidy(want, seen);
    }
    if seen.subject != want.version {
        return match &want.discard {
            Some(discard) if *discard == seen.subject && seen.frozen.found().is_none() => super::removal::discard(seen),
            Some(_) | None if seen.frozen.found().is_some() => work_in_hand(want, seen),
            Some(_) | None => Verdict::rest(version_changed(want, seen)),
        };
    }
    work_in_hand(want, seen)
}

fn at_rest(want: &Want, seen: &Observed) -> bool {
    seen.finalized(&want.version).is_some() && phase(want, seen) == Phase::Finalized
}

/// The pool that the layer has something in, where it is not this one. Who has nothing there may still be led elsewhere.
pub(in crate::domain) fn another_pool(seen: &Observed) -> Option<&str> {
    let r = &seen.records;
    let nothing = r.disk.is_none() && r.machine.is_none() && r.versions.is_empty() && r.operation.is_none();
    r.pool.as_deref().filter(|pool| *pool != seen.pool && !nothing)
}

pub(in crate::domain) fn pool_changed(recorded: &str, now: &str) -> Say {
    Say::Stalled(
        Reason::PoolChanged,
        format!(
            "the layer's disks are in pool {recorded}, but the Connector now leads to pool {now}: nothing is looked up or made there. Point the Connector, or spec.connectorRef, back"
        ),
    )
}

fn version_changed(want: &Want, seen: &Observed) -> Say {
    Say::Stalled(
        Reason::VersionChanged,
        format!(
            "spec.version is '{new}', but version '{old}' is in work: set spec.version back to '{old}' (together with spec.discard: '{new}', \
             of which there is nothing to lose) and finalize it, or set spec.discard to '{old}' to throw it away",
            new = want.version,
            old = seen.subject
        ),
    )
}

/// An operation that nobody wants any more: its spec changed before anything was claimed.
fn clear_leftover(seen: &Observed) -> Option<Verdict> {
    seen.leftover.as_ref().map(give_up)
}

/// A mark of ours without an intent: a restarted pool brought it back.
pub(in crate::domain) fn take_stray_mark(seen: &Observed) -> Option<Verdict> {
    let (source, mark) = seen.stray_marks.first().filter(|_| seen.records.operation.is_none())?;
    Some(Verdict::act(
        Step::Unmark { source: source.clone(), mark: mark.clone() },
        Reason::ClearingUp,
        "taking off a mark that the pool brought back",
    ))
}

/// Not to be told from loss or absence yet: a scan of the storage repository decides, where one can be had.
pub(in crate::domain) fn cannot_tell(seen: &Observed, what: &str) -> Verdict {
    cannot_tell_in(&seen.storage, what)
}

pub(in crate::domain) fn cannot_tell_in(storage: &Storage, what: &str) -> Verdict {
    let message = format!(
        "{what} cannot be told from a lost one yet: nothing is made until storage repository '{}' was scanned. If this stays, check its connection to the hosts",
        storage.name
    );
    if storage.scanned() || storage.scanning {
        Verdict::wait(Next::Capacity, Reason::WaitingForStorage, message)
    } else {
        Verdict::act(scan(storage), Reason::WaitingForStorage, message)
    }
}

fn scan(storage: &Storage) -> Step {
    Step::ScanStorage { sr: storage.uuid.clone() }
}

/// A row whose disk is gone, that a restart of xapi brought back, cannot be destroyed: a scan takes it away.
pub(in crate::domain) fn destroy_disk(seen: &Observed, disk: &Disk, step: Step, why: Reason, what: &str) -> Verdict {
    if let Some(verdict) = held(disk) {
        return verdict;
    }
    let storage = seen.storage_of(disk.sr.as_deref()).unwrap_or(&seen.storage);
    match (disk.busy || storage.scanning, storage.doubted) {
        (true, _) => Verdict::wait(Next::Task, why, what),
        (false, true) => Verdict::act(scan(storage), why, what),
        (false, false) => Verdict::act(step, why, what),
    }
}

/// A control domain on the disk: an export is at work, or one died there.
pub(in crate::domain) fn held(disk: &Disk) -> Option<Verdict> {
    disk.attachments.iter().find_map(|a| match &a.holder {
        Holder::ControlDomain { leaked: true } if !disk.busy => Some(Verdict::act(
            Step::FreeFromDom0 { vbd: a.vbd.clone() },
            Reason::HeldByDom0,
            format!("disk {} was left attached to a control domain by an export or copy that died, and is taken off it", disk.uuid),
        )),
        Holder::ControlDomain { .. } => Some(Verdict::wait(
            Next::Capacity,
            Reason::HeldByDom0,
            format!("disk {} is held by a control domain: an export or copy is at work on it, or died there. Lamina waits; what is left over is freed after 10 minutes", disk.uuid),
        )),
        Holder::Machine | Holder::Other { .. } => None,
    })
}

/// Takes marks and intents off once what they were for is claimed and recorded.
pub(super) fn finish_operations(seen: &Observed) -> Option<Verdict> {
    let done = |f: &&Flight| f.intent.is_some() && object_recorded(seen, f.making);
    let f = seen.flights.iter().find(done)?;
    let doing = working_reason(f.making);
    Some(match (&f.mark, &f.wanted_mark) {
        (MarkSight::Ours, Some(mark)) => Verdict::act(
            Step::Unmark { source: f.source.clone(), mark: mark.clone() },
            doing,
            "made, claimed and recorded; taking the mark off",
        ),
        _no_mark_of_ours => Verdict::act(Step::DropIntent, doing, "made, claimed and recorded"),
    })
}

fn object_recorded(seen: &Observed, making: Making) -> bool {
    let disk = seen.records.disk.as_ref().map(|d| d.uuid.as_str());
    let machine = seen.records.machine.as_ref().map(|m| m.uuid.as_str());
    match making {
        Making::SnapshotOsDisk => seen.base.found().is_some(),
        Making::CloneDisk => seen.work.found().is_some_and(|w| disk == Some(w.uuid.as_str())),
        Making::CloneMachine => seen.machine.found().is_some_and(|m| machine == Some(m.uuid.as_str())),
        Making::CreateConfig => {
            let config = seen.records.config.as_ref().map(|c| c.uuid.as_str());
            seen.config.found().is_some_and(|c| config == Some(c.uuid.as_str()))
        }
        Making::StartMachine => seen.machine.found().is_some_and(|m| started(seen, m)),
        Making::FreezeDisk => seen.finalized(&seen.subject).is_some(),
    }
}

/// Has the start that the intent is about taken place? A boot that nobody noted tells, even if the task is gone, or failed because
/// somebody else was faster.
fn started(seen: &Observed, m: &Machine) -> bool {
    let Some(f) = seen.flight(Making::StartMachine) else { return false };
    match (&f.task, m.boot_noted()) {
        (TaskSight::Pending { .. }, _) => false,
        (TaskSight::Succeeded { .. }, _) => true,
        (TaskSight::Failed(_) | TaskSight::Unwanted { .. } | TaskSight::None, _) if m.power != Power::Halted => true,
        (TaskSight::Failed(_) | TaskSight::Unwanted { .. } | TaskSight::None, Some(noted)) => noted != m.start_time,
        (TaskSight::Failed(_) | TaskSight::Unwanted { .. } | TaskSight::None, None) => ran(seen, m),
    }
}

pub(super) fn advance(seen: &Observed, making: Making, what: &str) -> Verdict {
    let Some(f) = seen.flight(making) else { return Verdict::wait(Next::Capacity, Reason::WaitingForStorage, what) };
    // One intent has room in status: another operation, begun before the spec changed, is taken back first.
    let other = seen.records.operation.as_ref().filter(|i| i.opid != f.opid);
    if let Some(other) = other.and_then(|i| seen.flights.iter().find(|f| f.opid == i.opid)) {
        return give_up(other);
    }
    Verdict::from_move(making::advance(f), working_reason(making), what)
}

fn give_up(f: &Flight) -> Verdict {
    match making::abandon(f) {
        Some(mv) => {
            Verdict::from_move(mv, Reason::ClearingUp, "clearing up after an operation that is not wanted any more")
        }
        None => Verdict::act(Step::DropIntent, Reason::ClearingUp, "an operation that is not wanted any more is over"),
    }
}

fn work_in_hand(want: &Want, seen: &Observed) -> Verdict {
    if let Sight::Found(f) = &seen.frozen {
        return machine::record_frozen(f);
    }
    match &seen.work {
        Sight::CannotLook => cannot_tell(seen, "the packaging disk"),
        Sight::Lost => Verdict::rest(disk::disk_lost(want, seen)),
        Sight::Absent => disk::make_disk(want, seen),
        Sight::Found(w) => disk::with_disk(want, seen, w),
    }
}

#[cfg(test)]
mod config_tests;
#[cfg(test)]
mod tests;
