//! One pool as this process knows it: client, mirror, and what it remembers of its own calls.
//!
//! Made by `connector`, used by `observe` and `act`. The memory is a cache of knowledge that dies with the process: without it
//! everything is still right, only slower (the in-flight test takes its place).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::room::Room;
use super::turns::{STREAMS, Turns};
use crate::domain::identity::Opid;
use crate::domain::observed::{Quiet, Sent, Trouble};
use crate::domain::plan::Step;
use crate::xapi::client::Client;
use crate::xapi::mirror::Mirror;
use crate::xapi::wire::Ref;

/// A Connector's pool.
pub struct Pool {
    pub client: Client,
    pub mirror: Mirror,
    /// Of the process, for all its pools.
    pub room: Arc<Room>,
    turns: Arc<Mutex<Turns>>,
    /// The name of the line for this pool's streams.
    pub streams: String,
    memory: Mutex<Memory>,
}

impl Pool {
    pub fn new(client: Client, mirror: Mirror, room: Arc<Room>, turns: Arc<Mutex<Turns>>) -> Self {
        let streams = format!("{STREAMS}{}", uuid::Uuid::new_v4());
        Self { client, mirror, room, turns, streams, memory: Mutex::default() }
    }

    /// Who is at which disk, of this process: several Connectors may lead to one pool. Locked alike.
    pub fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The memory, locked: never held across an await.
    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        // A panic elsewhere does not make what is remembered wrong: each entry is written at once.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What this process remembers of one operation's call.
#[derive(Clone, Debug, Default)]
pub struct Attempt {
    pub sent: Sent,
    /// The task that XAPI named.
    pub task: Option<Ref>,
    /// The mark on the source was set for this very attempt: nobody else is at it.
    pub marked: bool,
    /// What the pool ended the last call with, how often in a row, and until when it is not asked again.
    pub refused: Option<Refused>,
}

/// See [`Attempt`].
#[derive(Clone, Debug)]
pub struct Refused {
    pub trouble: Trouble,
    failures: u32,
    pub until: Instant,
}

#[derive(Default)]
struct InFlight {
    quiet_since: Option<Instant>,
    /// The storage repository's operations at the first look: one that began later cannot be ours.
    at_first: HashSet<String>,
    /// What was seen at work at the last look.
    at_work: Option<String>,
}

#[derive(Default)]
struct Scans {
    agent_start: String,
    done: Vec<Instant>,
    task: Option<Ref>,
}

/// See [`Pool`].
#[derive(Default)]
pub struct Memory {
    attempts: HashMap<Opid, Attempt>,
    flights: HashMap<String, InFlight>,
    scans: HashMap<String, Scans>,
    since: HashMap<String, Instant>,
    /// By the machine's uuid: what its guest said last, and since when it says so; none: for too long already as this process began.
    heard: HashMap<String, (String, Option<Instant>)>,
    /// What is waited for: at the first look and at the last one.
    waits: HashMap<String, (Instant, Instant)>,
    last: HashMap<String, Last>,
    /// The step of a layer that the pool refused last, until it is done.
    refusals: HashMap<String, (Step, Refused)>,
    /// uuids of what this process destroyed, and under which start of xapi.
    removed: HashMap<String, String>,
    /// Storage repositories whose rows may not be what is on them: a call on a disk failed there since the last scan.
    doubted: HashSet<String>,
}

/// The step that a layer took last.
struct Last {
    step: Step,
    at: Instant,
    task: Option<Ref>,
}

impl Memory {
    pub fn attempt(&self, opid: &Opid) -> Attempt {
        self.attempts.get(opid).cloned().unwrap_or_default()
    }

    /// From here on the test of this operation starts anew.
    pub fn set_attempt(&mut self, opid: &Opid, sent: Sent, task: Option<Ref>) {
        self.flights.remove(&opid.0);
        let before = self.attempts.remove(opid);
        let marked = before.as_ref().is_some_and(|b| b.marked);
        let refused = before.and_then(|b| b.refused);
        self.attempts.insert(opid.clone(), Attempt { sent, task, marked, refused });
    }

    /// A new intent: nothing was sent for it, and no mark set.
    pub fn begin(&mut self, opid: &Opid) {
        self.set_attempt(opid, Sent::Never, None);
        if let Some(attempt) = self.attempts.get_mut(opid) {
            attempt.marked = false;
        }
    }

    /// The mark was set for this attempt.
    pub fn marked(&mut self, opid: &Opid) {
        if let Some(attempt) = self.attempts.get_mut(opid) {
            attempt.marked = true;
        }
    }

    /// The call ended without an object; `refused`: with this. Nothing is asked again before its pause is over.
    pub fn over(&mut self, opid: &Opid, refused: Option<Trouble>, now: Instant, pause: impl Fn(u32) -> Duration) {
        self.set_attempt(opid, Sent::Over, None);
        if let Some(attempt) = self.attempts.get_mut(opid) {
            let failures = attempt.refused.as_ref().map_or(0, |r| r.failures + 1);
            attempt.refused = refused.map(|trouble| Refused { trouble, failures, until: now + pause(failures) });
        }
    }

    /// The layer is gone: no step of it will be asked for.
    pub fn forget(&mut self, layer: &str) {
        self.last.remove(layer);
        self.refusals.remove(layer);
    }

    /// This process is about to destroy it.
    pub fn removing(&mut self, uuid: &str, agent_start: &str) {
        self.removed.retain(|_, start| start == agent_start);
        self.since.retain(|fact, _| !fact.contains(uuid));
        self.heard.remove(uuid);
        self.removed.insert(uuid.to_owned(), agent_start.to_owned());
    }

    /// Under this start of xapi: a later one may have forgotten that.
    pub fn was_removed(&self, uuid: &str, agent_start: &str) -> bool {
        self.removed.get(uuid).is_some_and(|start| start == agent_start)
    }

    pub fn forget_attempt(&mut self, opid: &Opid) {
        self.flights.remove(&opid.0);
        self.attempts.remove(opid);
    }

    /// One live look of an in-flight test. `own`: what of this operation is seen at work. `storage`: the operations on the storage
    /// repository that bear no other tag of ours, by task. All in words.
    pub fn look_in_flight(
        &mut self,
        opid: &str,
        own: BTreeSet<String>,
        storage: HashMap<String, String>,
        now: Instant,
        apart: Duration,
    ) -> Quiet {
        let first = !self.flights.contains_key(opid);
        let flight = self.flights.entry(opid.to_owned()).or_default();
        if first {
            flight.at_first = storage.keys().cloned().collect();
        }
        let began_before =
            storage.into_iter().filter(|(task, _)| flight.at_first.contains(task)).map(|(_, words)| words);
        let at_work: BTreeSet<String> = own.into_iter().chain(began_before).collect();
        if !at_work.is_empty() {
            flight.at_work = Some(Vec::from_iter(at_work).join(", "));
            flight.quiet_since = None;
            return Quiet::No;
        }
        flight.at_work = None;
        let since = *flight.quiet_since.get_or_insert(now);
        if now.duration_since(since) >= apart { Quiet::Twice } else { Quiet::Once }
    }

    /// What was seen at work at the last look.
    pub fn at_work(&self, opid: &str) -> Option<String> {
        self.flights.get(opid)?.at_work.clone()
    }

    /// How the test stands, without a look.
    pub fn in_flight(&self, opid: &str) -> Quiet {
        match self.flights.get(opid).and_then(|f| f.quiet_since) {
            Some(_) => Quiet::Once,
            None => Quiet::No,
        }
    }

    /// Notes a scan that has succeeded; scans before the present start of xapi do not count.
    pub fn scan_done(&mut self, sr: &str, agent_start: &str, now: Instant) {
        let scans = self.scans_of(sr, agent_start);
        scans.task = None;
        scans.done.push(now);
        self.doubted.remove(sr);
    }

    pub fn scan_started(&mut self, sr: &str, agent_start: &str, task: Option<Ref>) {
        self.scans_of(sr, agent_start).task = task;
    }

    pub fn scan_task(&self, sr: &str, agent_start: &str) -> Option<Ref> {
        self.scans.get(sr).filter(|s| s.agent_start == agent_start).and_then(|s| s.task.clone())
    }

    fn scans_of(&mut self, sr: &str, agent_start: &str) -> &mut Scans {
        let scans = self.scans.entry(sr.to_owned()).or_default();
        if scans.agent_start != agent_start {
            *scans = Scans { agent_start: agent_start.to_owned(), ..Scans::default() };
        }
        scans
    }

    /// How many scans of this start of xapi count (0, 1, or 2 when two are `apart`), and whether another one is due.
    pub fn scans(&self, sr: &str, agent_start: &str, now: Instant, apart: Duration) -> (u8, bool) {
        let Some(scans) = self.scans.get(sr).filter(|s| s.agent_start == agent_start) else { return (0, true) };
        let due = scans.task.is_none() && scans.done.last().is_none_or(|last| now.duration_since(*last) >= apart);
        match (scans.done.first(), scans.done.last()) {
            (Some(first), Some(last)) if last.duration_since(*first) >= apart => (2, due),
            (Some(_), _) => (1, due),
            (None, _) => (0, due),
        }
    }

    /// Remembers a step that was carried out, and the task that is to bring it to its end.
    pub fn did(&mut self, layer: &str, step: &Step, task: Option<Ref>, now: Instant) {
        self.last.insert(layer.to_owned(), Last { step: step.clone(), at: now, task });
    }

    /// Was this very step the last one, less than `within` ago?
    pub fn just_done(&self, layer: &str, step: &Step, now: Instant, within: Duration) -> bool {
        self.last.get(layer).is_some_and(|last| last.step == *step && now.duration_since(last.at) < within)
    }

    /// uid of the layer whose last step is this task.
    pub fn who_began(&self, task: &Ref) -> Option<&str> {
        self.last.iter().find(|(_, last)| last.task.as_ref() == Some(task)).map(|(layer, _)| layer.as_str())
    }

    /// A layer's last step, and its task.
    pub fn last_task(&self, layer: &str) -> Option<(Step, Ref)> {
        let last = self.last.get(layer)?;
        Some((last.step.clone(), last.task.clone()?))
    }

    /// The last step's task is over. `refused`: with this; `sr`: where the storage refused it.
    pub fn ended(
        &mut self,
        layer: &str,
        refused: Option<Trouble>,
        sr: Option<&str>,
        now: Instant,
        pause: impl Fn(u32) -> Duration,
    ) {
        let Some(last) = self.last.get_mut(layer) else { return };
        last.task = None;
        let before = self.refusals.get(layer).filter(|(step, _)| *step == last.step).map(|(_, r)| r.failures + 1);
        match refused {
            None if before.is_some() => drop(self.refusals.remove(layer)),
            None => {}
            Some(trouble) => {
                let failures = before.unwrap_or(0);
                let refused = Refused { trouble, failures, until: now + pause(failures) };
                self.refusals.insert(layer.to_owned(), (last.step.clone(), refused));
            }
        }
        self.doubted.extend(sr.map(str::to_owned));
    }

    /// What this step was refused with when it was taken before.
    pub fn refusal(&self, layer: &str, step: &Step) -> Option<Refused> {
        self.refusals.get(layer).filter(|(refused, _)| refused == step).map(|(_, r)| r.clone())
    }

    /// A person wants to know now: what was refused is asked for again without waiting for the end of its pause.
    pub fn ask_again(&mut self, layer: &str, now: Instant) {
        let of_layer = self.refusals.get_mut(layer).map(|(_, refused)| refused);
        let of_calls = self.attempts.values_mut().filter_map(|attempt| attempt.refused.as_mut());
        of_layer.into_iter().chain(of_calls).for_each(|refused| refused.until = now);
    }

    pub fn is_doubted(&self, sr: &str) -> bool {
        self.doubted.contains(sr)
    }

    /// Since when this process has seen a fact without a break: call it with `holds` at every look.
    pub fn since(&mut self, fact: &str, holds: bool, now: Instant) -> Option<Instant> {
        if !holds {
            self.since.remove(fact);
            return None;
        }
        Some(*self.since.entry(fact.to_owned()).or_insert(now))
    }

    /// Since when the guest in a machine has said this and nothing else. `silent`: an earlier process told that it says nothing new.
    pub fn heard(&mut self, machine: &str, said: String, silent: bool, now: Instant) -> Option<Instant> {
        let first = || (said.clone(), (!silent).then_some(now));
        let heard = self.heard.entry(machine.to_owned()).or_insert_with(first);
        if heard.0 != said {
            *heard = (said, Some(now));
        }
        heard.1
    }

    /// Since when every look has seen something that stands in the way. Nobody looks any more once it is gone, so what was not looked at
    /// for `gap` begins anew.
    pub fn waited_since(&mut self, what: &str, now: Instant, gap: Duration) -> Instant {
        self.waits.retain(|_, (_, last)| now.duration_since(*last) < gap);
        let (first, last) = self.waits.entry(what.to_owned()).or_insert((now, now));
        *last = now;
        *first
    }

    /// A look that does not see any of these any more.
    pub fn waits_over(&mut self, prefix: &str) {
        self.waits.retain(|what, _| !what.starts_with(prefix));
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
