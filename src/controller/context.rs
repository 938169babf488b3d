//! What every reconcile shares: the client of the API server, the pools, the pace, and who we are.
//!
//! Built once by `controller::run`. Nothing in it decides; it is handed down.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc;

use super::pace::Pace;
use super::pool::Pool;
use crate::api::PlatformLayer;

/// Where a Connector is: namespace and name.
pub type ConnectorKey = (String, String);

/// Shared by all reconciles of this process.
pub struct Context {
    pub client: kube::Client,
    pub pace: Pace,
    /// uid of namespace `kube-system`: the cluster, in every key on the pool.
    pub cluster: String,
    pools: Mutex<HashMap<ConnectorKey, Arc<Pool>>>,
    /// Layers to be looked at now.
    pub wake_layer: mpsc::UnboundedSender<ObjectRef<PlatformLayer>>,
}

impl Context {
    pub fn new(
        client: kube::Client,
        pace: Pace,
        cluster: String,
        wake_layer: mpsc::UnboundedSender<ObjectRef<PlatformLayer>>,
    ) -> Self {
        Self { client, pace, cluster, pools: Mutex::default(), wake_layer }
    }

    /// The pool of a Connector, where its Connector has one.
    pub fn pool(&self, connector: &ConnectorKey) -> Option<Arc<Pool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).get(connector).cloned()
    }

    /// Puts a pool in a Connector's place, or takes it away.
    pub fn set_pool(&self, connector: &ConnectorKey, pool: Option<Arc<Pool>>) {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        match pool {
            Some(pool) => drop(pools.insert(connector.clone(), pool)),
            None => drop(pools.remove(connector)),
        }
    }
}
