//! Between the controller and the API server: sees every write of the controller as it is accepted, numbers those of statuses, and lets the
//! process die before or after one of them.
//!
//! A dead controller's requests wait for ever: nothing of it reaches the API server any more, whatever its tasks still do until they are
//! aborted. What it sends to the pool meanwhile is dropped by the simulator (`Target::From`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http_body_util::BodyExt;
use hyper::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use lamina::api::PlatformLayer;
use lamina::sim::serve::Sim;
use tokio::sync::watch;
use tower::BoxError;

/// An accepted write of the layer: what the API server stored.
#[derive(Clone)]
pub struct Written {
    /// The last changing call that the pool had seen by then.
    pub at: u64,
    pub layer: PlatformLayer,
}

/// When the controller dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// With the arrival of this call at the pool.
    Call(u64),
    BeforeWrite(u64),
    AfterWrite(u64),
}

#[derive(Default)]
struct State {
    death: Option<Death>,
    writes: u64,
    history: Vec<Written>,
}

/// One for each case; it outlives the controllers.
pub struct Seam {
    sim: Arc<Sim>,
    state: Mutex<State>,
    /// The layer as last written.
    pub latest: watch::Sender<Option<PlatformLayer>>,
    /// The controller is dead.
    pub dead: watch::Sender<bool>,
}

impl Seam {
    pub fn new(sim: Arc<Sim>) -> Arc<Self> {
        let (latest, dead) = (watch::Sender::new(None), watch::Sender::new(false));
        Arc::new(Self { sim, state: Mutex::default(), latest, dead })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plans the death; `None`: the next controller lives.
    pub fn arm(&self, death: Option<Death>) {
        self.state().death = death;
        self.dead.send_replace(false);
    }

    /// How many statuses were sent so far.
    pub fn writes(&self) -> u64 {
        self.state().writes
    }

    pub fn history(&self) -> Vec<Written> {
        self.state().history.clone()
    }

    /// A client for the controller: `inner`, watched.
    pub fn watched(self: &Arc<Self>, inner: Client) -> Client {
        let seam = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<Body>| {
            let (seam, inner) = (Arc::clone(&seam), inner.clone());
            async move { seam.pass(inner, request).await }
        });
        Client::new(service, "default")
    }

    fn is_dead(&self) -> bool {
        let called = |n| self.sim.pool.log.number() >= n;
        if matches!(self.state().death, Some(Death::Call(n)) if called(n)) {
            self.dead.send_replace(true);
        }
        *self.dead.borrow()
    }

    async fn pass(&self, inner: Client, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let path = request.uri().path().to_owned();
        let of_layer = request.method() == Method::PATCH && path.contains("/platformlayers/");
        let mut number = None;
        if of_layer && path.ends_with("/status") {
            let mut state = self.state();
            state.writes += 1;
            number = Some(state.writes);
        }
        let due = |death| number.is_some() && self.state().death == Some(death);
        if due(Death::BeforeWrite(number.unwrap_or(0))) {
            self.dead.send_replace(true);
        }
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
        // Nobody reads them here, and they are a fifth of all requests.
        if path.contains("/events") {
            return Ok(Response::builder().status(StatusCode::CREATED).body(request.into_body())?);
        }
        let response = inner.send(request).await?;
        if !of_layer || !response.status().is_success() {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await?.to_bytes();
        if let Ok(layer) = serde_json::from_slice::<PlatformLayer>(&bytes) {
            self.state().history.push(Written { at: self.sim.pool.log.number(), layer: layer.clone() });
            self.latest.send_replace(Some(layer));
        }
        if due(Death::AfterWrite(number.unwrap_or(0))) {
            self.dead.send_replace(true);
        }
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
        Ok(Response::from_parts(parts, Body::from(bytes.to_vec())))
    }
}
