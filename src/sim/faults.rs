//! Faults of the wire, made by the server, and the log of calls that numbers them.
//!
//! Set by tests and by the control endpoint, asked by `rpc` once per call that would be carried out. Changing calls are numbered
//! from 1 in the order of their arrival; the log is what tests compare with what a client believes to have sent.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use super::Answer;
use crate::xapi::wire::{Failure, Ref};

/// The log keeps so many calls; counts go on for ever.
const KEPT: usize = 200_000;

/// What happens to a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// The connection dies and the call was never carried out.
    Drop,
    /// The call is carried out, then the connection dies without a byte of the reply.
    CutReply,
    /// The connection dies at once; the call is carried out after this time.
    ExecuteLate(Duration),
    /// The call is carried out; the reply breaks off in the middle of its body.
    TruncateReply,
    /// The connection dies when so many hundredths of a stream's body have passed: what came before is on the disk, or with the client. Of
    /// any other call nothing is carried out.
    CutBody(u8),
    /// The pool refuses in the call's place, e.g. `TOO_MANY_PENDING_TASKS`.
    Refuse(Failure),
    /// The call is taken, and its task fails before anything is done, e.g. by `SR_BACKEND_FAILURE_44`. One without a task is refused.
    FailTask(Failure),
}

/// Which calls a fault meets.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// The changing call of this number.
    Number(u64),
    /// The changing call of this number and all after it: a client that was cut off.
    From(u64),
    /// Calls of this name, with or without `Async.` in front as written here.
    Method(String),
    /// Changing calls, so many in a thousand, by a generator that starts from `seed`.
    Random { per_mille: u16, seed: u64 },
}

/// A fault and how often it strikes; `None`: always.
#[derive(Clone, Debug)]
pub struct Fault {
    pub target: Target,
    pub effect: Effect,
    pub times: Option<u32>,
}

#[derive(Default)]
struct State {
    faults: Vec<Fault>,
    booting: Option<Failure>,
}

#[derive(Default)]
pub struct Faults(Mutex<State>);

impl Faults {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    pub fn clear(&self) {
        *self.state() = State::default();
    }

    /// Every call is refused before dispatch with this failure, e.g. `HOST_STILL_BOOTING` (xapi.md 1.2); `None` ends it.
    pub fn set_booting(&self, failure: Option<Failure>) {
        self.state().booting = failure;
    }

    pub(super) fn booting(&self) -> Option<Failure> {
        self.state().booting.clone()
    }

    /// The effect on this call, used up if its fault is counted.
    pub(super) fn strike(&self, method: &str, number: Option<u64>) -> Option<Effect> {
        let faults = &mut self.state().faults;
        let i = faults.iter_mut().position(|fault| fault.target.meets(method, number))?;
        let fault = faults.get_mut(i)?;
        let effect = fault.effect.clone();
        if let Some(left) = &mut fault.times {
            *left = left.saturating_sub(1);
            if *left == 0 {
                faults.remove(i);
            }
        }
        Some(effect)
    }
}

impl Target {
    fn meets(&mut self, method: &str, number: Option<u64>) -> bool {
        match self {
            Self::Number(n) => number == Some(*n),
            Self::From(n) => number.is_some_and(|number| number >= *n),
            Self::Method(name) => method == name,
            Self::Random { per_mille, seed } => number.is_some() && roll(seed) % 1000 < u64::from(*per_mille),
        }
    }
}

/// SplitMix64: small, seeded, the same on every machine.
fn roll(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// One call that passed the checks of session and role.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Set for changing calls: 1, 2, 3, …
    pub number: Option<u64>,
    /// As sent, `Async.` included.
    pub method: String,
    /// Without the session. Never a log-in: those are counted, not kept.
    pub params: Vec<Value>,
    /// The request's `X-Http-Other-Config-<name>` headers.
    pub tags: Vec<(String, String)>,
    /// `None`: carried out and answered.
    pub fault: Option<Effect>,
    /// The call's task; null for calls without one.
    pub task: Ref,
    /// What a changing call came to, once it did; for an asynchronous one, what its task did.
    pub outcome: Option<Answer>,
}

struct Kept {
    entries: VecDeque<Entry>,
    counts: BTreeMap<String, u64>,
}

/// The calls the pool has seen.
pub struct Log {
    kept: Mutex<Kept>,
    number: watch::Sender<u64>,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            kept: Mutex::new(Kept { entries: VecDeque::new(), counts: BTreeMap::new() }),
            number: watch::channel(0).0,
        }
    }
}

impl Log {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The calls kept, oldest first.
    pub fn entries(&self) -> Vec<Entry> {
        self.kept().entries.iter().cloned().collect()
    }

    /// How often each call was made, log-ins included, by its name as sent.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.kept().counts.clone()
    }

    /// The number of the last changing call.
    pub fn number(&self) -> u64 {
        *self.number.borrow()
    }

    /// Waits until the changing call of this number has arrived.
    pub async fn reached(&self, number: u64) {
        // The sender lives as long as the log.
        let _ = self.number.subscribe().wait_for(|n| *n >= number).await;
    }

    /// Starts numbering and counting anew.
    pub fn reset(&self) {
        let mut kept = self.kept();
        kept.entries.clear();
        kept.counts.clear();
        self.number.send_replace(0);
    }

    pub(super) fn count(&self, method: &str) {
        *self.kept().counts.entry(method.to_owned()).or_default() += 1;
    }

    /// Numbers a changing call; its turn is when it arrives.
    pub(super) fn take_number(&self) -> u64 {
        let mut taken = 0;
        self.number.send_modify(|n| {
            *n += 1;
            taken = *n;
        });
        taken
    }

    /// Notes what the changing call of this number came to.
    pub(super) fn ended(&self, number: u64, task: &Ref, outcome: &Answer) {
        let entries = &mut self.kept().entries;
        // It is among the last: calls end not long after they came.
        if let Some(entry) = entries.iter_mut().rev().find(|entry| entry.number == Some(number)) {
            entry.task = task.clone();
            entry.outcome = Some(outcome.clone());
        }
    }

    pub(super) fn push(&self, entry: Entry) {
        let mut kept = self.kept();
        kept.entries.push_back(entry);
        if kept.entries.len() > KEPT {
            kept.entries.pop_front();
        }
    }
}
