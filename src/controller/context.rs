//! What every reconcile shares: the client of the API server, the pools, the pace, and who we are.
//!
//! Built once by `controller::run`. Nothing in it decides; it is handed down.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::ResourceExt;
use kube::core::DeserializeGuard;
use kube::runtime::events::Recorder;
use kube::runtime::reflector::{ObjectRef, Store};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};

use super::backoff::Backoff;
use super::census::{Census, Registry};
use super::lease::Deadline;
use super::metrics::Metrics;
use super::pace::Pace;
use super::pool::Pool;
use super::room::Room;
use super::slots::Slots;
use super::turns::Turns;
use crate::api::{Connector, PlatformLayer, REQUESTED_AT};

/// Where a Connector is: namespace and name.
pub type ConnectorKey = (String, String);
/// An object as it is stored: one that does not parse must not blind the watch for all others.
pub type Guarded<K> = DeserializeGuard<K>;

/// `lamina-guest.exe`, which config disks carry into machines.
#[derive(Clone)]
pub struct GuestProgram {
    bytes: Arc<[u8]>,
    /// Of its bytes: another program makes other disks.
    pub hash: String,
}

impl GuestProgram {
    pub fn new(bytes: Vec<u8>) -> Self {
        let hash = Sha256::digest(&bytes).iter().take(8).map(|b| format!("{b:02x}")).collect();
        Self { bytes: bytes.into(), hash }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Shared by all reconciles of this process.
pub struct Context {
    pub client: kube::Client,
    pub pace: Pace,
    pub program: Option<GuestProgram>,
    /// uid of namespace `kube-system`: the cluster, in every key on the pool.
    pub cluster: String,
    /// Of this process; sessions on the pool bear it.
    pub originator: String,
    /// Only the layers of one namespace are in the stores: what a pool has for others cannot be told from what nobody owns.
    pub restricted: bool,
    /// Asked right before each changing call to a pool.
    pub deadline: Deadline,
    pub metrics: Metrics,
    pub recorder: Recorder,
    pub layers: Store<Guarded<PlatformLayer>>,
    pub registry: Registry,
    pub connectors: Store<Guarded<Connector>>,
    pub synced: Synced,
    /// Layers to be looked at now.
    pub wake_layer: mpsc::UnboundedSender<ObjectRef<Guarded<PlatformLayer>>>,
    /// Connectors to be looked at now.
    pub wake_connector: mpsc::UnboundedSender<ObjectRef<Guarded<Connector>>>,
    pub pools: Pools,
    pub room: Arc<Room>,
    pub turns: Arc<Mutex<Turns>>,
    pub slots: Mutex<Slots>,
    pub backoff: Mutex<Backoff>,
    /// The value of the annotation `requestedAt` that a live look was last taken for, by uid of the layer.
    pub looked: Mutex<HashMap<String, String>>,
}

/// Whether the stores hold all there is. Not asked of the stores themselves, whose answer wakes only one of those who wait for it.
#[derive(Default)]
pub struct Synced {
    pub layers: watch::Sender<bool>,
    pub connectors: watch::Sender<bool>,
}

impl Synced {
    /// Until both do. Whoever decides earlier takes what was not read yet for missing.
    pub async fn both(&self) {
        for store in [&self.layers, &self.connectors] {
            // The sender is ours: it cannot be gone.
            let _told = store.subscribe().wait_for(|synced| *synced).await.is_ok();
        }
    }
}

/// The pools that Connectors lead to.
#[derive(Default)]
pub struct Pools(Mutex<HashMap<ConnectorKey, Arc<Pool>>>);

impl Pools {
    fn lock(&self) -> MutexGuard<'_, HashMap<ConnectorKey, Arc<Pool>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pool of a Connector, where it has one.
    pub fn get(&self, connector: &ConnectorKey) -> Option<Arc<Pool>> {
        self.lock().get(connector).cloned()
    }

    /// Puts a pool in a Connector's place, or takes it away.
    pub fn set(&self, connector: &ConnectorKey, pool: Option<Arc<Pool>>) {
        match pool {
            Some(pool) => drop(self.lock().insert(connector.clone(), pool)),
            None => drop(self.lock().remove(connector)),
        }
    }
}

impl Context {
    pub fn connector(&self, key: &ConnectorKey) -> Option<Connector> {
        let found = self.connectors.get(&ObjectRef::new_with(&key.1, ()).within(&key.0))?;
        found.0.as_ref().ok().cloned()
    }

    /// All layers as they are stored now, indexed.
    pub fn census(&self) -> Arc<Census> {
        self.registry.census(&self.layers)
    }

    /// A person asked for a live look by a value of the annotation that none was taken for yet.
    pub fn is_look_asked_for(&self, layer: &PlatformLayer) -> bool {
        let looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = layer.annotations().get(REQUESTED_AT);
        asked.is_some() && asked != layer.uid().and_then(|uid| looked.get(&uid))
    }

    /// It is taken now: true if it was asked for.
    pub fn look_is_taken(&self, layer: &PlatformLayer) -> bool {
        let (Some(uid), Some(value)) = (layer.uid(), layer.annotations().get(REQUESTED_AT)) else { return false };
        let before = self.looked.lock().unwrap_or_else(PoisonError::into_inner).insert(uid, value.clone());
        before.as_ref() != Some(value)
    }

    /// Has a layer looked at now.
    pub fn wake(&self, layer: &PlatformLayer) {
        let target = ObjectRef::new(&layer.name_any()).within(&layer.namespace().unwrap_or_default());
        // Nobody listens any more: the process is ending.
        let _closed = self.wake_layer.send(target);
    }
}

/// Those of the store's layers that can be read. Nothing is copied: each pass of thousands of layers looks through all.
pub fn readable(stored: &[Arc<Guarded<PlatformLayer>>]) -> impl Iterator<Item = &PlatformLayer> + Clone {
    stored.iter().filter_map(|guard| guard.0.as_ref().ok())
}

/// Does the layer name this Connector?
pub fn belongs(layer: &PlatformLayer, (namespace, name): &ConnectorKey) -> bool {
    let named = &layer.spec.connector_ref;
    named.name == *name && named.namespace.as_ref().or(layer.metadata.namespace.as_ref()) == Some(namespace)
}

/// The Connector that a layer names.
pub fn connector_of(layer: &PlatformLayer) -> ConnectorKey {
    let here = || layer.namespace().unwrap_or_default();
    (layer.spec.connector_ref.namespace.clone().unwrap_or_else(here), layer.spec.connector_ref.name.clone())
}
