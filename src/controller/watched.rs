//! What the watches tell: who must look since another object changed, and whether all objects were read.
//!
//! `controller::run` hands every event over after its store took it: whoever is woken reads the store. Writes nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};

use super::context::{ConnectorKey, Context, Guarded, connector_of};
use super::layer;
use super::link::wake_connector;
use crate::api::condition::{ConditionType, find};
use crate::api::{Connector, PlatformLayer};

/// What the watches told last.
pub struct Watched {
    ctx: Arc<Context>,
    /// Where each layer was last seen to belong, by uid, and whether it was being deleted.
    places: Mutex<HashMap<String, (ConnectorKey, bool)>>,
    /// What each Connector last told its layers.
    words: Mutex<HashMap<ConnectorKey, Word>>,
}

/// What a layer shows of its Connector, or hangs on: the generation of its spec, and reason and message of Ready.
type Word = (Option<i64>, Option<(String, String)>);

impl Watched {
    pub fn new(ctx: Arc<Context>) -> Self {
        Self { ctx, places: Mutex::default(), words: Mutex::default() }
    }

    /// An event of the layers. Wakes the Connectors whose users changed.
    pub fn layer_event(&self, event: &Event<Guarded<PlatformLayer>>) {
        let (guard, gone) = match event {
            Event::Apply(guard) | Event::InitApply(guard) => (guard, false),
            Event::Delete(guard) => (guard, true),
            Event::Init => return,
            Event::InitDone => {
                self.ctx.synced.layers.send_replace(true);
                return;
            }
        };
        let Some(uid) = &guard.meta().uid else { return };
        let deleting = guard.meta().deletion_timestamp.is_some();
        let place = guard.0.as_ref().ok().filter(|_| !gone).map(|layer| (connector_of(layer), deleting));
        let before = match place.clone() {
            Some(place) => lock(&self.places).insert(uid.clone(), place),
            None => lock(&self.places).remove(uid),
        };
        if gone {
            layer::forget(&self.ctx, uid, before.as_ref().map(|(key, _)| key));
        }
        if before != place {
            [before, place].into_iter().flatten().for_each(|(key, _)| wake_connector(&self.ctx, &key));
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
                return;
            }
        };
        let key: ConnectorKey = (guard.namespace().unwrap_or_default(), guard.name_any());
        let changed = if gone {
            lock(&self.words).remove(&key).is_some()
        } else {
            let word = word(guard);
            lock(&self.words).insert(key.clone(), word.clone()) != Some(word)
        };
        if changed {
            self.ctx.layers_of(&key).iter().for_each(|layer| self.ctx.wake(layer));
        }
    }
}

fn word(guard: &Guarded<Connector>) -> Word {
    let status = guard.0.as_ref().ok().and_then(|connector| connector.status.as_ref());
    let ready =
        status.and_then(|s| find(&s.conditions, ConditionType::Ready)).map(|c| (c.reason.clone(), c.message.clone()));
    (guard.meta().generation, ready)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is kept here is written in one go each: a panic elsewhere does not make it wrong.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
