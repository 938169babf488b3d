//! What Prometheus reads. Filled by the controller, encoded by `http`.
//!
//! Label values are words of our own source (`&'static str`, and the names of XAPI's calls), so that no uuid or error text can ever become a
//! series. The one exception is free space, by Connector and storage repository: bounded by what users connect, and taken away with
//! the Connector.
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Named<const N: usize> = [(&'static str, String); N];

/// All series of the controller; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    layers: Family<Labels<1>, Gauge>,
    waits: Family<Labels<1>, Gauge>,
    faults: Family<Labels<1>, Counter>,
    xapi_calls: Family<Named<2>, Counter>,
    xapi_call_seconds: Family<Named<1>, Histogram, fn() -> Histogram>,
    event_lag: Histogram,
    sr_free: Family<Named<2>, Gauge>,
    lease_held: Gauge,
    reconciles: Family<Labels<1>, Counter>,
    status_writes: Family<Labels<1>, Counter>,
    stream_errors: Family<Labels<1>, Counter>,
    known: Arc<Mutex<Known>>,
}

/// What the gauges were last told, so that they can be told the difference.
#[derive(Default)]
struct Known {
    /// Phase and wait by the layer's uid.
    layers: HashMap<String, (&'static str, Option<&'static str>)>,
    /// Storage repositories by Connector.
    srs: BTreeMap<String, Vec<String>>,
}

/// 5 ms to 160 s: a database call at one end, a snapshot on a busy repository at the other.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.005, 2.0, 16))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("lamina");
        let mut metrics = Self {
            registry: Arc::default(),
            layers: Family::default(),
            waits: Family::default(),
            faults: Family::default(),
            xapi_calls: Family::default(),
            xapi_call_seconds: Family::new_with_constructor(seconds),
            event_lag: seconds(),
            sr_free: Family::default(),
            lease_held: Gauge::default(),
            reconciles: Family::default(),
            status_writes: Family::default(),
            stream_errors: Family::default(),
            known: Arc::default(),
        };
        registry.register("layers", "Layers by phase", metrics.layers.clone());
        registry.register("waits", "Layers that wait, by the reason they show", metrics.waits.clone());
        registry.register("faults", "Reconciles that ended with a fault, by kind", metrics.faults.clone());
        registry.register("xapi_calls", "Calls to XAPI, by call and outcome", metrics.xapi_calls.clone());
        registry.register_with_unit(
            "xapi_call",
            "From sending a call to XAPI to its answer; a task's own time is not in it",
            Unit::Seconds,
            metrics.xapi_call_seconds.clone(),
        );
        registry.register_with_unit(
            "event_lag",
            "From an event on the pool to the wake of the layers concerned",
            Unit::Seconds,
            metrics.event_lag.clone(),
        );
        registry.register_with_unit(
            "sr_free",
            "Free space of the repositories in use",
            Unit::Bytes,
            metrics.sr_free.clone(),
        );
        registry.register("lease_held", "1 while this process leads", metrics.lease_held.clone());
        registry.register("reconciles", "Reconciles, by kind of object", metrics.reconciles.clone());
        registry.register(
            "status_writes",
            "Status documents written, by kind of object",
            metrics.status_writes.clone(),
        );
        registry.register(
            "stream_errors",
            "Errors of watches and event streams, by stream",
            metrics.stream_errors.clone(),
        );
        metrics.registry = Arc::new(registry);
        metrics
    }
}

impl Metrics {
    pub fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.registry)
    }

    /// A layer as its status says it now: the phase, and the reason if it waits.
    pub fn layer(&self, uid: &str, phase: &'static str, wait: Option<&'static str>) {
        let before = self.known().layers.insert(uid.to_owned(), (phase, wait));
        self.count(before, -1);
        self.count(Some((phase, wait)), 1);
    }

    /// The layer is gone.
    pub fn forget_layer(&self, uid: &str) {
        let before = self.known().layers.remove(uid);
        self.count(before, -1);
    }

    /// Free bytes of each storage repository that a Connector uses; those not named any more go, with none the Connector is forgotten.
    pub fn sr_free(&self, connector: &str, srs: &[(String, i64)]) {
        let labels = |sr: &str| [("connector", connector.to_owned()), ("sr", sr.to_owned())];
        let named = srs.iter().map(|(sr, _)| sr.clone()).collect();
        let before = if srs.is_empty() {
            self.known().srs.remove(connector)
        } else {
            self.known().srs.insert(connector.to_owned(), named)
        };
        for gone in before.unwrap_or_default().iter().filter(|sr| srs.iter().all(|(named, _)| named != *sr)) {
            self.sr_free.remove(&labels(gone));
        }
        for (sr, bytes) in srs {
            self.sr_free.get_or_create(&labels(sr)).set(*bytes);
        }
    }

    /// A reconcile ended with this kind of fault (retry, wait, stalled).
    pub fn fault(&self, kind: &'static str) {
        self.faults.get_or_create(&[("kind", kind)]).inc();
    }

    /// A call to XAPI was answered, or given up, after `took`. `call` as sent; all of them are written in `xapi::calls`.
    pub fn xapi_call(&self, call: &str, outcome: &'static str, took: Duration) {
        self.xapi_calls.get_or_create(&[("call", call.to_owned()), ("outcome", outcome.to_owned())]).inc();
        self.xapi_call_seconds.get_or_create(&[("call", call.to_owned())]).observe(took.as_secs_f64());
    }

    pub fn event_lag(&self, lag: Duration) {
        self.event_lag.observe(lag.as_secs_f64());
    }

    pub fn lease_held(&self, held: bool) {
        self.lease_held.set(i64::from(held));
    }

    pub fn reconcile(&self, kind: &'static str) {
        self.reconciles.get_or_create(&[("kind", kind)]).inc();
    }

    pub fn status_write(&self, kind: &'static str) {
        self.status_writes.get_or_create(&[("kind", kind)]).inc();
    }

    /// A watch of the API server or an event stream of a pool broke.
    pub fn stream_error(&self, stream: &'static str) {
        self.stream_errors.get_or_create(&[("stream", stream)]).inc();
    }

    fn count(&self, layer: Option<(&'static str, Option<&'static str>)>, by: i64) {
        let Some((phase, wait)) = layer else { return };
        self.layers.get_or_create(&[("phase", phase)]).inc_by(by);
        if let Some(reason) = wait {
            self.waits.get_or_create(&[("reason", reason)]).inc_by(by);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
