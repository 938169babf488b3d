//! The simulator's time: how long a stage of an operation lasts, and what a host's clock shows.
//!
//! Every part of the simulator waits here and nowhere else. Time runs `speed` times as fast as the wall's. A test may *hold* stages by
//! the beginning of their label: such a stage waits until it is let go, so that each moment inside an operation can be looked at
//! (xapi.md 14, "Order of a child's fields"). It must never decide what happens next, only when.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Notify, oneshot};

/// Highest factor by which the hosts' clocks run: beyond it stages shrink further, yet a session would not live to its first call.
const FASTEST: f64 = 1000.0;

/// A stage that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub id: u64,
    /// `<call>/<stage>/<object>`, e.g. `VDI.clone/row/OpaqueRef:…`.
    pub label: String,
}

struct Held {
    label: String,
    go: oneshot::Sender<()>,
}

#[derive(Default)]
struct Gate {
    prefixes: Vec<String>,
    held: BTreeMap<u64, Held>,
    next: u64,
}

pub struct Clock {
    began: Instant,
    epoch: Timestamp,
    speed: f64,
    gate: Mutex<Gate>,
    arrived: Notify,
}

impl Clock {
    /// `speed` 1 is the wall's pace; nonsense (zero, negative, NaN) counts as 1.
    pub fn new(speed: f64) -> Self {
        let speed = if speed.is_finite() && speed > 0.0 { speed } else { 1.0 };
        Self { began: Instant::now(), epoch: Timestamp::now(), speed, gate: Mutex::default(), arrived: Notify::new() }
    }

    /// A clock that stops at every stage.
    pub fn manual() -> Self {
        let clock = Self::new(1.0);
        clock.hold("");
        clock
    }

    /// What the hosts' clocks show (`host.get_servertime`).
    pub fn now(&self) -> Timestamp {
        let passed = SignedDuration::try_from_secs_f64(self.began.elapsed().as_secs_f64() * self.speed.min(FASTEST));
        passed.ok().and_then(|d| self.epoch.checked_add(d).ok()).unwrap_or(self.epoch)
    }

    /// [`Clock::now`] as XAPI writes it.
    pub fn stamp(&self) -> String {
        crate::xapi::wire::format_time(self.now())
    }

    /// What `lasting` takes on the wall's clock.
    pub fn scaled(&self, lasting: Duration) -> Duration {
        Duration::try_from_secs_f64(lasting.as_secs_f64() / self.speed).unwrap_or(lasting)
    }

    /// Waits for `lasting`, or until let go if the stage is held.
    pub async fn stage(&self, label: &str, lasting: Duration) {
        let stopped = {
            let mut gate = self.gate();
            gate.prefixes.iter().any(|p| label.starts_with(p.as_str())).then(|| {
                let (go, gone) = oneshot::channel();
                gate.next += 1;
                let id = gate.next;
                gate.held.insert(id, Held { label: label.to_owned(), go });
                (Leave { clock: self, id }, gone)
            })
        };
        match stopped {
            Some((_leave, gone)) => {
                self.arrived.notify_waiters();
                // A sender that is dropped lets go as well: the gate forgot the stage.
                gone.await.unwrap_or_default();
            }
            None if lasting.is_zero() => tokio::task::yield_now().await,
            None => self.sleep(lasting).await,
        }
    }

    /// A pause that nobody can hold: housekeeping of the daemon, a guest's own wait.
    pub async fn sleep(&self, lasting: Duration) {
        tokio::time::sleep(self.scaled(lasting)).await;
    }

    /// From now on stages whose label begins with `prefix` wait; `""` holds all.
    pub fn hold(&self, prefix: &str) {
        self.gate().prefixes.push(prefix.to_owned());
    }

    /// Takes a hold off and lets its stages go.
    pub fn unhold(&self, prefix: &str) {
        let mut gate = self.gate();
        gate.prefixes.retain(|p| p != prefix);
        let Gate { prefixes, held, .. } = &mut *gate;
        let free = |label: &str| !prefixes.iter().any(|p| label.starts_with(p.as_str()));
        let gone: Vec<u64> = held.iter().filter(|(_, h)| free(&h.label)).map(|(id, _)| *id).collect();
        gone.iter().filter_map(|id| held.remove(id)).for_each(|h| h.go.send(()).unwrap_or_default());
    }

    /// The stages held now, oldest first.
    pub fn waiting(&self) -> Vec<Waiting> {
        self.gate().held.iter().map(|(id, h)| Waiting { id: *id, label: h.label.clone() }).collect()
    }

    /// Lets one held stage go; false if there is none of that number.
    pub fn release(&self, id: u64) -> bool {
        self.gate().held.remove(&id).is_some_and(|h| h.go.send(()).is_ok())
    }

    /// Lets every stage go that is held now; those that come next wait again. Says how many went.
    pub fn release_all(&self) -> usize {
        let held = std::mem::take(&mut self.gate().held);
        held.into_values().filter_map(|h| h.go.send(()).ok()).count()
    }

    /// Waits until a stage is held whose label begins with `prefix`.
    pub async fn held(&self, prefix: &str) -> Waiting {
        loop {
            let arrived = self.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            if let Some(found) = self.waiting().into_iter().find(|w| w.label.starts_with(prefix)) {
                return found;
            }
            arrived.await;
        }
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An operation that is killed while it is held (a restart) leaves no trace in the list.
struct Leave<'a> {
    clock: &'a Clock,
    id: u64,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.clock.gate().held.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn a_held_stage_waits_for_its_release_and_others_pass() {
        let clock = Arc::new(Clock::new(1000.0));
        clock.hold("VDI.clone/");
        clock.stage("VM.start/domain", Duration::from_millis(5)).await;
        let inner = clock.clone();
        let held = tokio::spawn(async move { inner.stage("VDI.clone/row/x", Duration::ZERO).await });
        let found = clock.held("VDI.clone/row").await;
        assert!(!held.is_finished());
        assert!(clock.release(found.id));
        held.await.unwrap();
        assert_eq!(clock.waiting(), []);
    }

    #[tokio::test]
    async fn a_killed_stage_leaves_the_list_and_unhold_lets_go() {
        let clock = Arc::new(Clock::manual());
        let [a, b] = ["a", "b"].map(|label| {
            let clock = clock.clone();
            tokio::spawn(async move { clock.stage(label, Duration::ZERO).await })
        });
        clock.held("a").await;
        clock.held("b").await;
        a.abort();
        assert!(a.await.unwrap_err().is_cancelled());
        assert_eq!(clock.waiting().len(), 1);
        clock.unhold("");
        b.await.unwrap();
    }

    #[test]
    fn nonsense_speeds_are_the_walls() {
        for speed in [0.0, -3.0, f64::NAN] {
            assert_eq!(Clock::new(speed).scaled(Duration::from_secs(2)), Duration::from_secs(2));
        }
        assert_eq!(Clock::new(4.0).scaled(Duration::from_secs(2)), Duration::from_millis(500));
    }
}
