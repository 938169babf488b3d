//! What a decision is made of: the step, what to tell, when to look again. Plain data; `act` carries steps out, `status` tells.

use super::super::identity::{Mark, Opid};
use super::super::making::{Move, Waiting};
use super::super::observed::{Making, Setting, Trouble};
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
    /// `sr`: uuid of the storage repository.
    ScanStorage {
        sr: String,
    },
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
    /// The config disk's content, as a whole: as often as it takes until the machine first runs.
    FillConfig {
        disk: String,
    },
    AttachConfig {
        machine: String,
        disk: String,
    },
    /// After a halt: what the guest left goes into a key of the machine.
    ReadConfig {
        machine: String,
        disk: String,
    },
    /// Said on the machine before the config disk goes, so that it is not taken for lost.
    EndConfig {
        machine: String,
    },
    /// Zeros over all of it.
    WipeConfig {
        disk: String,
    },
    DestroyConfig {
        disk: String,
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
    /// What a dead driver left on a disk of ours.
    Unpause {
        disk: String,
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
    /// Steps that are done by the status write alone, or by nothing: to repeat them costs nothing.
    pub fn only_status(&self) -> bool {
        matches!(
            self,
            Self::Nothing | Self::Enter | Self::RecordIntent(_) | Self::DropIntent | Self::Record | Self::LetGo
        )
    }

    /// Steps that move a disk's bytes, and last as long as that.
    pub fn is_stream(&self) -> bool {
        matches!(self, Self::FillConfig { .. } | Self::ReadConfig { .. } | Self::WipeConfig { .. })
    }

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
            | Self::Unpause { .. }
            | Self::Unmark { .. }
            | Self::FreeFromDom0 { .. }
            | Self::DestroyMachine { .. }
            | Self::DestroyWork { .. }
            | Self::DestroyFrozen { .. }
            | Self::DestroyBase { .. }
            | Self::FillConfig { .. }
            | Self::ReadConfig { .. }
            | Self::EndConfig { .. }
            | Self::WipeConfig { .. }
            | Self::DestroyConfig { .. }
            | Self::AttachDisk { .. }
            | Self::AttachConfig { .. }
            | Self::AddDvd { .. }
            | Self::BlockStart { .. }
            // On a machine that somebody switched on meanwhile it would take the guest its say.
            | Self::SetUp { .. }
            | Self::LetGo => true,
            Self::Nothing
            | Self::Enter
            | Self::DropIntent
            | Self::Mark { .. }
            | Self::Settle { .. }
            | Self::CancelTasks { .. }
            | Self::ScanStorage { .. }
            | Self::TagAgain { .. }
            | Self::NameDisk { .. }
            | Self::DescribeDisk { .. }
            | Self::ResizeDisk { .. }
            | Self::Record
            | Self::EjectDisc { .. }
            | Self::InsertTools { .. }
            | Self::NoteBoot { .. }
            | Self::UseToken { .. }
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
    /// In line for the disk that this is made of.
    Turn(Making),
    /// In line for a stream.
    Stream,
    /// For the mark of another of ours to go. Whoever set it may be in line: nobody waits for it with a turn in hand.
    Mark,
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
pub(in crate::domain) struct Verdict {
    pub step: Step,
    pub say: Say,
    pub next: Next,
}

impl Verdict {
    pub(in crate::domain) fn rest(say: Say) -> Self {
        Self { step: Step::Nothing, say, next: Next::Rest }
    }

    pub(in crate::domain) fn act(step: Step, reason: Reason, message: impl Into<String>) -> Self {
        Self { step, say: Say::Working(reason, message.into()), next: Next::Now }
    }

    pub(in crate::domain) fn wait(next: Next, reason: Reason, message: impl Into<String>) -> Self {
        Self { step: Step::Nothing, say: Say::Working(reason, message.into()), next }
    }

    pub(in crate::domain) fn trouble(t: Trouble) -> Self {
        match t.reason.fault() {
            _ if t.reason.on().contains(&ConditionType::ActionRequired) => Self::rest(Say::Person(t.reason, t.message)),
            Some(Fault::Stalled) => Self::rest(Say::Stalled(t.reason, t.message)),
            Some(Fault::Wait | Fault::Retry) | None => Self::wait(Next::Capacity, t.reason, t.message),
        }
    }

    pub(in crate::domain) fn from_move(mv: Move, doing: Reason, what: &str) -> Self {
        match mv {
            Move::Do(step) => Self::act(step, doing, what),
            Move::Wait(Waiting::Task { .. }) => Self::wait(Next::Task, doing, what),
            Move::Wait(Waiting::InFlight { at_work }) => Self::wait(
                Next::InFlight,
                Reason::WaitingForInFlight,
                format!(
                    "{what}: an earlier attempt may still be at work on the pool; looking twice, 60 seconds apart, before it is repeated{}",
                    at_work.map(|at| format!(". First this must be over: {at}")).unwrap_or_default()
                ),
            ),
            Move::Wait(Waiting::Turn { making, ahead: None }) => Self::wait(
                Next::Turn(making),
                Reason::WaitingForMark,
                format!("{what}: another layer is being made from the same disk, and this one goes on after it"),
            ),
            Move::Wait(Waiting::Turn { making, ahead: Some(ahead) }) => {
                Self::wait(Next::Turn(making), Reason::WaitingForMark, behind(what, &ahead))
            }
            Move::Wait(Waiting::Mark { ahead: Some(ahead) }) => {
                Self::wait(Next::Mark, Reason::WaitingForMark, behind(what, &ahead))
            }
            Move::Wait(Waiting::Mark { ahead: None }) => Self::wait(
                Next::Mark,
                Reason::WaitingForMark,
                format!(
                    "{what}: another layer's operation is at work on the same disk, and this one goes on when its mark is off"
                ),
            ),
            Move::Wait(Waiting::ForeignMark) => Self::wait(
                Next::Capacity,
                Reason::WaitingForMark,
                format!(
                    "{what}: the disk bears the mark of another cluster, and this layer goes on when that is off; if it stays for 10 minutes, what to do is told"
                ),
            ),
            Move::Stop(trouble) => Self::trouble(trouble),
        }
    }
}

fn behind(what: &str, ahead: &str) -> String {
    format!("{what}: {ahead}, so this layer waits until that one goes on or is deleted")
}
