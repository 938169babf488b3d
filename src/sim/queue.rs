//! The queue of an SR: one storage operation at a time, also for different disks, and not first come, first served (xapi.md 14, Queue).
//!
//! Entered by `storage::begin` alone. It knows nothing of what is done with a permit.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::xapi::wire::Ref;

/// Who holds which SR, and who waits.
#[derive(Clone, Default)]
pub struct Queues(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    /// Counts deaths of the daemon: what an earlier one held is nobody's.
    life: u64,
    busy: BTreeSet<Ref>,
    waiting: BTreeMap<Ref, Vec<oneshot::Sender<Permit>>>,
    seed: u64,
}

/// The right to work on an SR; dropping it hands it to a waiter picked by chance (xapi.md 14, Queue).
pub struct Permit {
    queues: Queues,
    sr: Ref,
    life: u64,
}

impl Queues {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the order of waiting calls repeatable.
    pub fn seed(&self, seed: u64) {
        self.lock().seed = seed;
    }

    /// The daemon died: nobody waits any more.
    pub fn reset(&self) {
        let mut all = self.lock();
        all.life += 1;
        all.busy.clear();
        let gone = std::mem::take(&mut all.waiting);
        drop(all);
        drop(gone);
    }

    /// Waits for the right to work on an SR.
    pub async fn acquire(&self, sr: &Ref) -> Permit {
        loop {
            let turn = {
                let mut all = self.lock();
                if all.busy.insert(sr.clone()) {
                    return Permit { queues: self.clone(), sr: sr.clone(), life: all.life };
                }
                let (give, turn) = oneshot::channel();
                all.waiting.entry(sr.clone()).or_default().push(give);
                turn
            };
            if let Ok(permit) = turn.await {
                return permit;
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let next = {
            let mut all = self.queues.lock();
            if all.life != self.life {
                return;
            }
            all.seed = all.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let pick = usize::try_from(all.seed >> 33).unwrap_or_default();
            let waiting = all.waiting.entry(self.sr.clone()).or_default();
            match waiting.len() {
                0 => {
                    all.busy.remove(&self.sr);
                    return;
                }
                n => waiting.swap_remove(pick % n),
            }
        };
        // A waiter that was cancelled sends the permit back here, and its drop asks the next.
        drop(next.send(Self { queues: self.queues.clone(), sr: self.sr.clone(), life: self.life }));
    }
}
