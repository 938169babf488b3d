//! What the watches tell: who must look since another object changed, and whether all objects were read.
//!
//! `controller::run` hands every event over after its store took it: whoever is woken reads the store. Writes nothing.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};

use super::connector::Connectors;
use super::context::{ConnectorKey, Context, Guarded, belongs, connector_of, readable};
use super::layer;
use super::roster::Roster;
use crate::api::condition::{ConditionType, find};
use crate::api::{Connector, PlatformLayer};

/// What the watches told last.
pub struct Watched {
    ctx: Arc<Context>,
    pools: Arc<Connectors>,
    roster: Roster,
    /// What each Connector last told its layers.
    words: Mutex<HashMap<ConnectorKey, Word>>,
}

/// What a layer shows of its Connector, or hangs on: which one it is (uid), the generation of its spec, and reason and message of Ready.
type Word = (String, Option<i64>, Option<(String, String)>);

impl Watched {
    pub fn new(ctx: Arc<Context>, pools: Arc<Connectors>) -> Self {
        Self { ctx, pools, roster: Roster::default(), words: Mutex::default() }
    }

    /// An event of the layers. Wakes the Connectors whose users changed.
    pub fn layer_event(&self, event: &Event<Guarded<PlatformLayer>>) {
        self.ctx.registry.changed();
        let (guard, gone) = match event {
            Event::Apply(guard) | Event::InitApply(guard) => (guard, false),
            Event::Delete(guard) => (guard, true),
            Event::Init => return,
            Event::InitDone => {
                // What changed while nobody watched was told before the store had it.
                if self.ctx.synced.layers.send_replace(true) {
                    let stored = self.ctx.layers.state();
                    let gone = self.roster.gone(&stored);
                    gone.iter().for_each(|(uid, belonged)| layer::forget(&self.ctx, uid, Some(belonged)));
                    readable(&stored).for_each(|layer| self.ctx.wake(layer));
                }
                return;
            }
        };
        let belonged = self.roster.seen(&self.ctx, guard, gone);
        let belongs = guard.0.as_ref().ok().filter(|_| !gone).map(connector_of);
        let elsewhere = belonged.is_some() && belongs.is_some() && belongs != belonged;
        if let (true, Some(uid)) = (gone || elsewhere, &guard.meta().uid) {
            layer::forget(&self.ctx, uid, belonged.as_ref());
        }
    }

    /// An event of the Connectors. Wakes the layers where what they show of it changed: by the watch and not by the write, since they read
    /// the store.
    pub fn connector_event(&self, event: &Event<Guarded<Connector>>) {
        let (guard, gone) = match event {
            Event::Apply(guard) | Event::InitApply(guard) => (guard, false),
            Event::Delete(guard) => (guard, true),
            Event::Init => return,
            Event::InitDone => {
                self.ctx.synced.connectors.send_replace(true);
                let there: HashSet<_> = self.ctx.connectors.state().iter().map(|guard| key(guard)).collect();
                let gone: Vec<_> = lock(&self.words).extract_if(|key, _| !there.contains(key)).collect();
                gone.iter().for_each(|(key, (uid, ..))| self.gone(key, uid));
                return;
            }
        };
        let (key, word) = (key(guard), word(guard));
        if gone {
            lock(&self.words).remove(&key);
            self.gone(&key, &word.0);
        } else if lock(&self.words).insert(key.clone(), word.clone()) != Some(word) {
            self.wake_layers(&key);
        }
    }

    /// Its session too, where somebody took its finalizer off by force.
    fn gone(&self, key: &ConnectorKey, uid: &str) {
        self.pools.forget(key, uid);
        self.wake_layers(key);
    }

    fn wake_layers(&self, key: &ConnectorKey) {
        let stored = self.ctx.layers.state();
        readable(&stored).filter(|layer| belongs(layer, key)).for_each(|layer| self.ctx.wake(layer));
    }
}

fn key(guard: &Guarded<Connector>) -> ConnectorKey {
    (guard.namespace().unwrap_or_default(), guard.name_any())
}

fn word(guard: &Guarded<Connector>) -> Word {
    let status = guard.0.as_ref().ok().and_then(|connector| connector.status.as_ref());
    let ready =
        status.and_then(|s| find(&s.conditions, ConditionType::Ready)).map(|c| (c.reason.clone(), c.message.clone()));
    (guard.uid().unwrap_or_default(), guard.meta().generation, ready)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is kept here is written in one go each: a panic elsewhere does not make it wrong.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
