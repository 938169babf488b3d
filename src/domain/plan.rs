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
//! again with a fresh look at the pool. The phase is an output: nothing here reads it.

use super::gate::{self, BaseChoice};
use super::identity::{BOOT, Mark, Opid, START_BEFORE, TOKEN};
use super::making::{self, Move, Waiting};
use super::observed::{
    Disk, Dvd, Flight, Holder, Machine, Making, MarkSight, Observed, Power, Sent, Setting, Sight, TaskSight, Trouble,
};
use super::want::{FinalizePolicy, Want};
use crate::api::reason::{Fault, Reason};
use crate::api::{ConditionType, Phase};

/// One thing to do. Objects are named by uuid; whoever acts looks the reference up anew.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Nothing,
    /// Finalizer and `status.pool`.
    Enter,
    /// Status only: the intent, with the present `agent_start`.
    RecordIntent(Making),
    /// Status only: the operation is over.
    DropIntent,
    Mark {
        source: String,
        mark: Mark,
    },
    Unmark {
        source: String,
        mark: Mark,
    },
    Send(Making),
    /// The call's task ended without an object: remember it, destroy the task.
    Settle {
        making: Making,
        opid: Opid,
    },
    Claim {
        making: Making,
        child: String,
    },
    CancelTasks {
        opid: Opid,
    },
    DestroyUnclaimed {
        making: Making,
        child: String,
    },
    DestroyHalfMade {
        machine: String,
    },
    ScanStorage,
    /// Keys and tag of a recorded object that lost them.
    TagAgain {
        uuid: String,
    },
    NameDisk {
        uuid: String,
        name: String,
    },
    DescribeDisk {
        uuid: String,
        description: String,
    },
    ResizeDisk {
        uuid: String,
        size: i64,
    },
    /// Status only: what was found becomes a record.
    Record,
    SetUp {
        machine: String,
        settings: Vec<Setting>,
    },
    AttachDisk {
        machine: String,
        disk: String,
    },
    AddDvd {
        machine: String,
    },
    EjectDisc {
        vbd: String,
    },
    InsertTools {
        vbd: String,
    },
    NoteBoot {
        machine: String,
        boot: String,
    },
    UseToken {
        machine: String,
        token: String,
    },
    BlockStart {
        machine: String,
    },
    UnblockStart {
        machine: String,
    },
    UnblockDestroy {
        machine: String,
    },
    ShutDown {
        machine: String,
    },
    DetachDisk {
        vbd: String,
    },
    FreeFromDom0 {
        vbd: String,
    },
    DestroyMachine {
        machine: String,
    },
    /// After the freeze: the database is written out first.
    DestroyWork {
        disk: String,
        after_freeze: bool,
    },
    DestroyFrozen {
        disk: String,
    },
    DestroyBase {
        disk: String,
    },
    Retain {
        disk: String,
    },
    /// The finalizer off.
    LetGo,
}

impl Step {
    /// Steps before which the live pool and the live object are asked.
    pub fn needs_live_look(&self) -> bool {
        match self {
            Self::RecordIntent(_)
            | Self::Send(_)
            | Self::Claim { .. }
            | Self::DestroyUnclaimed { .. }
            | Self::DestroyHalfMade { .. }
            | Self::ShutDown { .. }
            | Self::DetachDisk { .. }
            | Self::FreeFromDom0 { .. }
            | Self::DestroyMachine { .. }
            | Self::DestroyWork { .. }
            | Self::DestroyFrozen { .. }
            | Self::DestroyBase { .. }
            | Self::LetGo => true,
            Self::Nothing
            | Self::Enter
            | Self::DropIntent
            | Self::Mark { .. }
            | Self::Unmark { .. }
            | Self::Settle { .. }
            | Self::CancelTasks { .. }
            | Self::ScanStorage
            | Self::TagAgain { .. }
            | Self::NameDisk { .. }
            | Self::DescribeDisk { .. }
            | Self::ResizeDisk { .. }
            | Self::Record
            | Self::SetUp { .. }
            | Self::AttachDisk { .. }
            | Self::AddDvd { .. }
            | Self::EjectDisc { .. }
            | Self::InsertTools { .. }
            | Self::NoteBoot { .. }
            | Self::UseToken { .. }
            | Self::BlockStart { .. }
            | Self::UnblockStart { .. }
            | Self::UnblockDestroy { .. }
            | Self::Retain { .. } => false,
        }
    }
}

/// What to tell, and so which conditions are True.
#[derive(Clone, Debug, PartialEq)]
pub enum Say {
    /// Something is being made, or waited for, or retried.
    Working(Reason, String),
    /// A person's turn.
    Person(Reason, String),
    Stalled(Reason, String),
    Finalized(String),
    Suspended {
        finalized: bool,
    },
    Deleting {
        reason: Reason,
        message: String,
        stuck: bool,
    },
}

/// When to look again if no event comes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// After the step: at once.
    Now,
    Task,
    InFlight,
    Capacity,
    Rest,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub phase: Phase,
    pub step: Step,
    pub say: Say,
    pub next: Next,
}

/// A verdict on the way to a plan.
pub(super) struct Verdict {
    pub step: Step,
    pub say: Say,
    pub next: Next,
}

impl Verdict {
    fn rest(say: Say) -> Self {
        Self { step: Step::Nothing, say, next: Next::Rest }
    }

    pub(super) fn act(step: Step, reason: Reason, message: impl Into<String>) -> Self {
        Self { step, say: Say::Working(reason, message.into()), next: Next::Now }
    }

    pub(super) fn wait(next: Next, reason: Reason, message: impl Into<String>) -> Self {
        Self { step: Step::Nothing, say: Say::Working(reason, message.into()), next }
    }

    pub(super) fn trouble(t: Trouble) -> Self {
        match t.reason.fault() {
            _ if t.reason.on().contains(&ConditionType::ActionRequired) => Self::rest(Say::Person(t.reason, t.message)),
            Some(Fault::Stalled) => Self::rest(Say::Stalled(t.reason, t.message)),
            Some(Fault::Wait | Fault::Retry) | None => Self::wait(Next::Capacity, t.reason, t.message),
        }
    }

    pub(super) fn from_move(mv: Move, doing: Reason, what: &str) -> Self {
        match mv {
            Move::Do(step) => Self::act(step, doing, what),
            Move::Wait(Waiting::Task { .. }) => Self::wait(Next::Task, doing, what),
            Move::Wait(Waiting::InFlight) => Self::wait(
                Next::InFlight,
                Reason::WaitingForInFlight,
                format!(
                    "{what}: an earlier attempt may still be at work on the pool; looking twice, 60 seconds apart, before it is repeated"
                ),
            ),
            Move::Wait(Waiting::Turn) => Self::wait(
                Next::Capacity,
                Reason::WaitingForMark,
                format!("{what}: another layer is being made from the same disk"),
            ),
            Move::Wait(Waiting::Mark) => Self::wait(
                Next::Capacity,
                Reason::WaitingForMark,
                format!("{what}: the disk is marked by somebody else at the moment"),
            ),
            Move::Stop(trouble) => Self::trouble(trouble),
        }
    }
}

/// The decision for a layer that is not being deleted.
pub fn decide(want: &Want, seen: &Observed) -> Plan {
    let Verdict { step, say, next } = next(want, seen);
    let phase = match phase(seen) {
        // The record that is written with this very phase.
        Phase::Pending if step == Step::Record => Phase::DiskCreated,
        phase => phase,
    };
    Plan { phase, step, say, next }
}

/// Derived from what is there. Within a version it never goes back, but between running and halted.
pub fn phase(seen: &Observed) -> Phase {
    let worked = seen.records.disk.as_ref().is_some_and(|d| d.worked);
    // Found and not recorded, it may be forgotten by the pool, and made again.
    let work_there = seen.records.disk.as_ref().is_some_and(|d| d.version == seen.subject);
    if seen.finalized(&seen.subject).is_some() && seen.work.found().is_none() && seen.machine.found().is_none() {
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

/// Was it ever started since it was made?
pub fn ran(seen: &Observed, m: &Machine) -> bool {
    m.key(BOOT).is_some()
        || m.key(START_BEFORE).is_some_and(|before| before != m.start_time)
        || (m.key(START_BEFORE).is_none() && m.power != Power::Halted)
        || seen.flight(Making::StartMachine).is_some_and(|f| matches!(f.task, TaskSight::Succeeded { .. }))
}

fn next(want: &Want, seen: &Observed) -> Verdict {
    if want.suspend {
        return Verdict::rest(Say::Suspended { finalized: at_rest(want, seen) });
    }
    if let Some(pool) = seen.records.pool.as_ref().filter(|p| **p != seen.pool) {
        return Verdict::rest(pool_changed(pool, &seen.pool));
    }
    if let Some(verdict) = clear_leftover(seen) {
        return verdict;
    }
    if let Some(verdict) = take_stray_mark(seen) {
        return verdict;
    }
    if seen.finalized(&seen.subject).is_some() {
        return tidy(want, seen);
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
    seen.finalized(&want.version).is_some() && phase(seen) == Phase::Finalized
}

pub(super) fn pool_changed(recorded: &str, now: &str) -> Say {
    Say::Stalled(
        Reason::PoolChanged,
        format!(
            "the layer's disks are in pool {recorded}, but the Connector now leads to pool {now}: nothing is looked up or made there. Point the Connector back"
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
    let f = seen.leftover.as_ref()?;
    Some(match making::abandon(f) {
        Some(mv) => {
            Verdict::from_move(mv, Reason::ClearingUp, "clearing up after an operation that is not wanted any more")
        }
        None => Verdict::act(Step::DropIntent, Reason::ClearingUp, "an operation that is not wanted any more is over"),
    })
}

/// A mark of ours without an intent: a restarted pool brought it back.
pub(super) fn take_stray_mark(seen: &Observed) -> Option<Verdict> {
    let (source, mark) = seen.stray_marks.first().filter(|_| seen.records.operation.is_none())?;
    Some(Verdict::act(
        Step::Unmark { source: source.clone(), mark: mark.clone() },
        Reason::ClearingUp,
        "taking off a mark that the pool brought back",
    ))
}

/// F is recorded: the machine goes, then W; then the layer rests.
fn tidy(want: &Want, seen: &Observed) -> Verdict {
    const WHAT: &str = "the version is frozen; removing the packaging machine and its disk";
    let act = |step| Verdict::act(step, Reason::RemovingMachine, WHAT);
    if let Some(verdict) = finish_operations(seen) {
        return verdict;
    }
    if let Some(m) = seen.machine.found()
        && let Some(verdict) = super::removal::machine(seen, m, Reason::RemovingMachine, WHAT)
    {
        return verdict;
    }
    if let Some(w) = seen.work.found() {
        if seen.frozen == Sight::CannotLook {
            return cannot_tell(seen, "the frozen disk");
        }
        let Some(f) = seen.frozen.found() else {
            return Verdict::rest(Say::Stalled(
                Reason::DiskLost,
                format!(
                    "the frozen disk of version '{}' is gone, its packaging disk '{}' ({}) is still there and kept: restore the frozen disk, or copy the packaging disk by hand",
                    seen.subject, w.name, w.uuid
                ),
            ));
        };
        if f.snapshot_of.as_deref() != Some(w.uuid.as_str()) {
            return Verdict::rest(Say::Stalled(
                Reason::SnapshotUnproven,
                format!(
                    "the pool forgot that disk {} is the snapshot of packaging disk '{}' ({}), so that one is kept: compare them, then remove it by hand (xe vdi-destroy uuid={})",
                    f.uuid, w.name, w.uuid, w.uuid
                ),
            ));
        }
        if let Some(verdict) = held(w) {
            return verdict;
        }
        return if w.busy {
            Verdict::wait(Next::Task, Reason::RemovingMachine, WHAT)
        } else {
            act(Step::DestroyWork { disk: w.uuid.clone(), after_freeze: true })
        };
    }
    if matches!(seen.work, Sight::CannotLook) || matches!(seen.machine, Sight::CannotLook) {
        return cannot_tell(seen, "what is left of the packaging machine");
    }
    match &seen.frozen {
        Sight::Found(f) if !f.keyed || !f.tagged => {
            return Verdict::act(
                Step::TagAgain { uuid: f.uuid.clone() },
                Reason::TaggingAgain,
                "the frozen disk lost its keys and gets them back",
            );
        }
        Sight::Lost => {
            return Verdict::rest(Say::Stalled(
                Reason::DiskLost,
                format!(
                    "the disk of finalized version '{}' is gone from the pool: restore it; nothing is made in its place",
                    seen.subject
                ),
            ));
        }
        // A finalized layer stays Ready while nobody can tell; what the scan shows is judged by the next pass.
        Sight::CannotLook if seen.subject == want.version => {
            let Verdict { step, next, .. } = cannot_tell(seen, "the frozen disk");
            return Verdict { step, say: Say::Finalized(format!("version '{}' is finalized", want.version)), next };
        }
        Sight::Found(_) | Sight::Absent | Sight::CannotLook => {}
    }
    if seen.subject == want.version {
        return Verdict::rest(Say::Finalized(format!("version '{}' is finalized", want.version)));
    }
    Verdict::wait(Next::Now, Reason::RemovingMachine, WHAT)
}

/// Not to be told from loss or absence yet: a scan of the storage repository decides, where one can be had.
fn cannot_tell(seen: &Observed, what: &str) -> Verdict {
    let message = format!("cannot tell about {what} yet: looking at storage repository '{}' again", seen.storage.name);
    if seen.storage.scanned || seen.storage.scanning {
        Verdict::wait(Next::Capacity, Reason::WaitingForStorage, message)
    } else {
        Verdict::act(Step::ScanStorage, Reason::WaitingForStorage, message)
    }
}

/// A control domain on the disk: an export is at work, or one died there.
pub(super) fn held(disk: &Disk) -> Option<Verdict> {
    disk.attachments.iter().find_map(|a| match &a.holder {
        Holder::ControlDomain { leaked: true } => Some(Verdict::act(
            Step::FreeFromDom0 { vbd: a.vbd.clone() },
            Reason::HeldByDom0,
            format!("disk {} was left attached to a control domain and is taken off it", disk.uuid),
        )),
        Holder::ControlDomain { leaked: false } => Some(Verdict::wait(
            Next::Capacity,
            Reason::HeldByDom0,
            format!("disk {} is held by a control domain: an export or copy is at work on it, or was; it is freed after 10 minutes", disk.uuid),
        )),
        Holder::Machine | Holder::Other { .. } => None,
    })
}

/// Takes marks and intents off once what they were for is claimed and recorded.
fn finish_operations(seen: &Observed) -> Option<Verdict> {
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
        Making::StartMachine => seen.machine.found().is_some_and(|m| started(seen, m)),
        Making::FreezeDisk => seen.finalized(&seen.subject).is_some(),
    }
}

/// Has the start that the intent is about taken place? A boot that nobody noted tells, even if the task is gone.
fn started(seen: &Observed, m: &Machine) -> bool {
    let Some(f) = seen.flight(Making::StartMachine) else { return false };
    let noted = m.key(BOOT).and_then(|b| b.split_once('@')).map(|(_, t)| t);
    match (&f.task, noted) {
        (TaskSight::Pending { .. } | TaskSight::Failed(_), _) => false,
        (TaskSight::Succeeded { .. }, _) => true,
        (TaskSight::None, _) if m.power != Power::Halted => true,
        (TaskSight::None, Some(noted)) => noted != m.start_time,
        (TaskSight::None, None) => ran(seen, m),
    }
}

pub(super) fn working_reason(making: Making) -> Reason {
    match making {
        Making::SnapshotOsDisk => Reason::FreezingOSDisk,
        Making::CloneDisk => Reason::CreatingDisk,
        Making::CloneMachine => Reason::CreatingMachine,
        Making::StartMachine => Reason::StartingMachine,
        Making::FreezeDisk => Reason::FreezingDisk,
    }
}

fn advance(seen: &Observed, making: Making, what: &str) -> Verdict {
    match seen.flight(making) {
        Some(f) => Verdict::from_move(making::advance(f), working_reason(making), what),
        None => Verdict::wait(Next::Capacity, Reason::WaitingForStorage, what),
    }
}

fn work_in_hand(want: &Want, seen: &Observed) -> Verdict {
    if let Sight::Found(f) = &seen.frozen {
        return record_frozen(f);
    }
    match &seen.work {
        Sight::CannotLook => cannot_tell(seen, "the packaging disk"),
        Sight::Lost => Verdict::rest(disk_lost(want, seen)),
        Sight::Absent => make_disk(want, seen),
        Sight::Found(w) => with_disk(want, seen, w),
    }
}

fn disk_lost(want: &Want, seen: &Observed) -> Say {
    let uuid = seen.records.disk.as_ref().map(|d| d.uuid.as_str()).unwrap_or_default();
    let moved = match seen.unclaimed.as_slice() {
        [] => String::new(),
        copies => format!(
            " A copy of it is there ({}): if it was moved, move it back by its uuid is impossible; copy what you need from it.",
            copies.join(", ")
        ),
    };
    Say::Stalled(
        Reason::DiskLost,
        format!(
            "packaging disk {uuid} of version '{}' was made and is gone from the pool.{moved} Nothing is made in its place: restore it, or give the version up by setting \
             spec.discard to '{}' and spec.version to a new name (layer {})",
            seen.subject, seen.subject, want.name
        ),
    )
}

/// Row 0 to 2 of the walk: enter, S, W.
fn make_disk(want: &Want, seen: &Observed) -> Verdict {
    let under_way = seen.records.operation.is_some();
    if !under_way && let Err(t) = gate::entry(want, seen) {
        return Verdict::trouble(t);
    }
    if !seen.finalizer || seen.records.pool.is_none() {
        return Verdict::act(Step::Enter, Reason::FreezingOSDisk, "entering the pool");
    }
    if let Some(verdict) = finish_operations(seen) {
        return verdict;
    }
    let base = seen.base.found().map(|b| b.uuid.as_str());
    match gate::choose_base(want, &seen.records.versions, base) {
        Err(t) => Verdict::trouble(t),
        Ok(BaseChoice::OsLayer) => from_os_layer(want, seen),
        Ok(BaseChoice::Version { version, .. }) => from_version(seen, &version),
    }
}

fn from_version(seen: &Observed, version: &str) -> Verdict {
    match &seen.parent {
        Some(Sight::Found(parent)) => clone_from(seen, parent),
        Some(Sight::Lost) | Some(Sight::Absent) => Verdict::rest(Say::Stalled(
            Reason::DiskLost,
            format!("the disk of base version '{version}' is gone from the pool: restore it, or choose another base"),
        )),
        Some(Sight::CannotLook) | None => cannot_tell(seen, "the disk of the base version"),
    }
}

fn clone_from(seen: &Observed, source: &Disk) -> Verdict {
    if source.paused {
        return Verdict::wait(
            Next::Capacity,
            Reason::WaitingForStorage,
            format!("disk {} is paused by its storage", source.uuid),
        );
    }
    advance(seen, Making::CloneDisk, "making the packaging disk")
}

fn from_os_layer(want: &Want, seen: &Observed) -> Verdict {
    match &seen.base {
        Sight::Found(base) if !base.keyed || !base.tagged => Verdict::act(
            Step::TagAgain { uuid: base.uuid.clone() },
            Reason::TaggingAgain,
            "the base snapshot lost its keys and gets them back",
        ),
        Sight::Found(base) => clone_from(seen, base),
        Sight::CannotLook | Sight::Lost => cannot_tell(seen, "the base snapshot"),
        Sight::Absent => {
            let fit = seen
                .os_disk
                .clone()
                .and_then(|os| gate::os_disk(&os, &seen.storage).and_then(|()| format_fits(want, &os)));
            match fit {
                Ok(()) => advance(seen, Making::SnapshotOsDisk, "taking a snapshot of the OS disk"),
                // What was begun before the OS disk got in use is taken back, unclaimed.
                Err(t) => match seen.flight(Making::SnapshotOsDisk).filter(|f| f.intent.is_some()) {
                    Some(f) => match making::abandon(f) {
                        Some(mv) => {
                            Verdict::from_move(mv, Reason::FreezingOSDisk, "taking the snapshot of the OS disk back")
                        }
                        None => Verdict { step: Step::DropIntent, ..Verdict::trouble(t) },
                    },
                    None => Verdict::trouble(t),
                },
            }
        }
    }
}

fn format_fits(want: &Want, os: &super::observed::OsDisk) -> Result<(), Trouble> {
    match &want.format {
        Some(f) if !os.format.is_empty() && *f != os.format => Err(Trouble::new(
            Reason::FormatMismatch,
            format!(
                "packagingDisk.format is {f}, but OS disk '{}' is {}, and a clone keeps its source's format: leave packagingDisk.format out",
                os.name, os.format
            ),
        )),
        Some(_) | None => match want.size {
            Some(size) if size < os.virtual_size => Err(Trouble::new(
                Reason::DiskTooSmall,
                format!(
                    "packagingDisk.size is smaller than OS disk '{}' ({} bytes): a disk cannot shrink; leave packagingDisk.size out or make it larger",
                    os.name, os.virtual_size
                ),
            )),
            Some(_) | None => Ok(()),
        },
    }
}

/// W is there: named, sized and recorded before anything is built on it.
fn with_disk(want: &Want, seen: &Observed, w: &Disk) -> Verdict {
    let making = |step, message: &str| Verdict::act(step, Reason::CreatingDisk, message);
    let recorded = seen.records.disk.as_ref().is_some_and(|d| d.uuid == w.uuid);
    if !w.keyed || !w.tagged {
        return Verdict::act(
            Step::TagAgain { uuid: w.uuid.clone() },
            Reason::TaggingAgain,
            "the packaging disk gets its keys",
        );
    }
    if !recorded {
        if w.busy {
            return Verdict::wait(Next::Task, Reason::CreatingDisk, "the packaging disk is being named and sized");
        }
        if w.name != want.file_name {
            return making(
                Step::NameDisk { uuid: w.uuid.clone(), name: want.file_name.clone() },
                "naming the packaging disk",
            );
        }
        let description = description(want);
        if w.description != description {
            return making(Step::DescribeDisk { uuid: w.uuid.clone(), description }, "describing the packaging disk");
        }
        if let Some(size) = want.size.map(rounded).filter(|size| *size > w.virtual_size) {
            return making(Step::ResizeDisk { uuid: w.uuid.clone(), size }, "sizing the packaging disk");
        }
        return making(Step::Record, "the packaging disk is made");
    }
    if let Some(verdict) = finish_operations(seen) {
        return verdict;
    }
    match &seen.machine {
        Sight::CannotLook => cannot_tell(seen, "the packaging machine"),
        Sight::Found(m) => with_machine(want, seen, w, m),
        Sight::Absent => make_machine(seen),
        Sight::Lost => {
            let used = seen.records.machine.as_ref().and_then(|m| m.restart_token.as_deref());
            let asked = want.restart_token.is_some() && want.restart_token.as_deref() != used;
            if asked
                || seen.flight(Making::CloneMachine).is_some_and(|f| f.intent.is_some())
                || !w_worked(seen) && machine_forgotten(seen)
            {
                return make_machine(seen);
            }
            Verdict::rest(Say::Stalled(
                Reason::MachineLost,
                format!(
                    "the packaging machine of version '{}' is gone from the pool; its disk '{}' ({}) is untouched. For a new machine on the same disk: {}",
                    seen.subject,
                    w.name,
                    w.uuid,
                    want.restart_command()
                ),
            ))
        }
    }
}

/// Recorded under another start of xapi: its row may be one of those that were never written out.
fn machine_forgotten(seen: &Observed) -> bool {
    seen.records.machine.as_ref().is_some_and(|m| m.agent_start.as_deref() != Some(seen.agent_start.as_str()))
}

fn w_worked(seen: &Observed) -> bool {
    seen.records.disk.as_ref().is_some_and(|d| d.worked)
}

fn make_machine(seen: &Observed) -> Verdict {
    if let Err(t) = &seen.machine_source
        && seen.flight(Making::CloneMachine).is_none_or(|f| f.intent.is_none())
    {
        return Verdict::trouble(t.clone());
    }
    advance(seen, Making::CloneMachine, "cloning the packaging machine from the template")
}

/// The words on every object of a layer, in other tools' lists.
pub fn description(want: &Want) -> String {
    format!("Lamina layer {}, do not delete", want.layer_name)
}

/// VHD disks grow in steps of 2 MiB.
fn rounded(size: i64) -> i64 {
    const STEP: i64 = 2 << 20;
    size.saturating_add(STEP - 1) / STEP * STEP
}

fn with_machine(want: &Want, seen: &Observed, w: &Disk, m: &Machine) -> Verdict {
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
    match m.power {
        Power::Running => running(want, seen, m),
        Power::Paused | Power::Suspended => Verdict::rest(Say::Person(
            Reason::ResumeMachine,
            format!(
                "machine '{}' is {}: resume it to go on installing (xe vm-{} uuid={})",
                m.name,
                if m.power == Power::Paused { "paused" } else { "suspended" },
                if m.power == Power::Paused { "unpause" } else { "resume" },
                m.uuid
            ),
        )),
        Power::Halted => halted(want, seen, w, m),
        Power::Unknown => Verdict::wait(
            Next::Capacity,
            Reason::WaitingForMachine,
            format!("machine '{}' is in a power state that Lamina does not know", m.name),
        ),
    }
}

/// Rows 4 to 7: everything that must stand before the first start.
fn set_up(want: &Want, seen: &Observed, w: &Disk, m: &Machine) -> Verdict {
    let act = |step, message: &str| Verdict::act(step, Reason::SettingUpMachine, message);
    if m.busy {
        return Verdict::wait(Next::Task, Reason::SettingUpMachine, "the packaging machine is being set up");
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
    if let Some(verdict) = finish_operations(seen) {
        return verdict;
    }
    let under_way = seen.flight(Making::StartMachine).is_some_and(|f| f.intent.is_some());
    if w_worked(seen) && machine_forgotten(seen) && !under_way {
        // Status remembers a boot that xapi forgot: another one is a person's to ask for.
        let freezing = seen.flight(Making::FreezeDisk).is_some_and(|f| f.intent.is_some());
        if freezing || m.start_blocked || new_token(want, m).is_none() {
            return take_back_freeze(seen, m, boot_forgotten(want, m));
        }
    }
    if !want.power_on && !under_way {
        return Verdict::rest(Say::Person(
            Reason::StartMachine,
            format!(
                "machine '{}' is ready, and machine.powerOn is false: start it (xe vm-start uuid={})",
                m.name, m.uuid
            ),
        ));
    }
    start(seen, w, m)
}

fn boot_forgotten(want: &Want, m: &Machine) -> Trouble {
    Trouble::new(
        Reason::FixIntegrity,
        format!(
            "machine '{}' has run, but the pool forgot its last boot when its management daemon died, so no report counts: start it again and \
             run the check once more: {}",
            m.name,
            want.restart_command()
        ),
    )
}

/// A start, with its own gates. `VM.start` tells nothing when no host can do it, so the hosts are asked first.
fn start(seen: &Observed, w: &Disk, m: &Machine) -> Verdict {
    if let Some(other) = w.attachments.iter().find_map(|a| match &a.holder {
        Holder::Other { name, .. } => Some(name),
        Holder::Machine | Holder::ControlDomain { .. } => None,
    }) {
        return Verdict::rest(Say::Stalled(
            Reason::ForeignDisk,
            format!(
                "disk '{}' ({}) is also attached to machine '{other}': take it off there, two machines would destroy it",
                w.name, w.uuid
            ),
        ));
    }
    if let Some(verdict) = held(w) {
        return verdict;
    }
    if let Some(why) = &m.cannot_boot {
        return Verdict::wait(
            Next::Capacity,
            Reason::WaitingForCapacity,
            format!("no host can start machine '{}': {why}", m.name),
        );
    }
    advance(seen, Making::StartMachine, "starting the packaging machine")
}

/// Where the machine is, for a person.
fn place(m: &Machine) -> String {
    let host = m.host.as_ref().map(|h| format!(" on host '{h}'")).unwrap_or_default();
    let address = m.address.as_ref().map(|a| format!(", address {a}")).unwrap_or_default();
    format!("machine '{}'{host}{address}", m.name)
}

/// What is done to a running machine is done beside a person's turn: what to tell does not wait for it.
fn running(want: &Want, seen: &Observed, m: &Machine) -> Verdict {
    let starting = seen.flight(Making::StartMachine).is_some_and(|f| f.intent.is_some());
    let step = if m.key(BOOT) != Some(m.boot_id().as_str()) {
        Step::NoteBoot { machine: m.uuid.clone(), boot: m.boot_id() }
    } else if let (Some(token), false) = (new_token(want, m), starting) {
        // First seen while running: used up, a running machine needs no start.
        Step::UseToken { machine: m.uuid.clone(), token }
    } else if let (true, false, Dvd::ToolsIn { vbd }) = (m.tools.ready, m.busy, &m.dvd) {
        Step::EjectDisc { vbd: vbd.clone() }
    } else {
        Step::Nothing
    };
    let next = if step == Step::Nothing { Next::Rest } else { Next::Now };
    Verdict { step, say: instruction(want, m), next }
}

/// What a person is to do in a running machine.
fn instruction(want: &Want, m: &Machine) -> Say {
    let fresh =
        m.report.as_ref().is_some_and(|r| r.sealed && !r.boot.is_empty() && m.guest_boot.as_ref() == Some(&r.boot));
    if fresh {
        let findings: Vec<_> = gate::judge(want, m)
            .findings
            .iter()
            .map(|f| format!("{} ({}): {}", f.reason, f.detail, f.remedy))
            .collect();
        return if findings.is_empty() {
            Say::Person(
                Reason::ShutDownGuest,
                format!("the check in {} found nothing that blocks; let Shutdown For Finalize switch it off", place(m)),
            )
        } else {
            Say::Person(
                Reason::FixIntegrity,
                format!(
                    "the last check in {} found: {}. Mend this, then run Shutdown For Finalize again",
                    place(m),
                    findings.join("; ")
                ),
            )
        };
    }
    let tools = if m.tools.ready {
        ""
    } else if m.tools.overdue {
        " Guest tools have not been seen for 10 minutes: the machine may not boot (firmware), the OS layer may lack the tools, or their drivers do not fit."
    } else {
        " Install the guest tools from its DVD drive first."
    };
    let kms = if want.kms_rearm { " As the very last thing rearm Windows (slmgr /rearm)." } else { "" };
    Say::Person(
        Reason::InstallSoftware,
        format!(
            "open the console of {}, install the platform software, then run Shutdown For Finalize.{tools}{kms}",
            place(m)
        ),
    )
}

fn new_token(want: &Want, m: &Machine) -> Option<String> {
    want.restart_token.clone().filter(|t| m.key(TOKEN) != Some(t.as_str()))
}

/// Row 9 and 10: judge, ask, freeze.
fn halted(want: &Want, seen: &Observed, w: &Disk, m: &Machine) -> Verdict {
    let starting = seen.flight(Making::StartMachine).is_some_and(|f| f.intent.is_some());
    let freezing = seen.flight(Making::FreezeDisk).is_some_and(|f| f.intent.is_some());
    if !freezing && let Some(verdict) = restart(want, seen, w, m, starting) {
        return verdict;
    }
    let judgement = gate::judge(want, m);
    let may = gate::approval(want, &seen.subject, &judgement).and_then(|()| gate::freeze(seen, m));
    if let Err(t) = may {
        return take_back_freeze(seen, m, t);
    }
    if !m.start_blocked {
        return Verdict::act(
            Step::BlockStart { machine: m.uuid.clone() },
            Reason::FreezingDisk,
            "keeping the machine off while its disk is frozen",
        );
    }
    advance(seen, Making::FreezeDisk, "freezing the packaging disk as the version")
}

/// A person asked for another start of a halted machine. The token is used before the call: a start too few can be asked for again.
fn restart(want: &Want, seen: &Observed, w: &Disk, m: &Machine, starting: bool) -> Option<Verdict> {
    let token = new_token(want, m);
    if token.is_none() && !starting {
        return None;
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
    let sent = seen.flight(Making::StartMachine).map(|f| &f.sent);
    if starting
        && let Some(token) = token
        && matches!(sent, Some(Sent::Never))
    {
        return Some(Verdict::act(
            Step::UseToken { machine: m.uuid.clone(), token },
            Reason::StartingMachine,
            "using the restart token",
        ));
    }
    Some(start(seen, w, m))
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
fn record_frozen(f: &Disk) -> Verdict {
    if !f.keyed || !f.tagged {
        return Verdict::act(
            Step::TagAgain { uuid: f.uuid.clone() },
            Reason::TaggingAgain,
            "the frozen disk gets its keys",
        );
    }
    Verdict::act(Step::Record, Reason::FreezingDisk, "the frozen disk becomes the version")
}

/// `OnShutdown` with a counting report needs nobody; used to word events.
pub fn freezes_by_itself(want: &Want) -> bool {
    want.finalize == FinalizePolicy::OnShutdown
}
