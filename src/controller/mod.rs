//! Where Kubernetes and XenServer meet: two controllers, what they share, and leadership. Called by `cli`.
//!
//! `layer` is the reconcile of a layer and calls `observe`, `act` and `status`; `connector` keeps the pools. Nothing below this room knows
//! of Kubernetes, nothing beside it of XAPI.

pub mod act;
pub mod audit;
pub mod backoff;
pub mod census;
pub mod checks;
pub mod conditions;
pub mod connector;
pub mod connector_status;
pub mod connector_write;
pub mod context;
pub mod credentials;
pub mod ended;
pub mod history;
pub mod inspect;
pub mod layer;
pub mod lease;
pub mod link;
pub mod live;
pub mod metrics;
pub mod observe;
pub mod overdue;
pub mod pace;
pub mod pool;
pub mod report;
pub mod rights;
pub mod room;
pub mod roster;
pub mod site;
pub mod slots;
pub mod status;
mod step_files;
pub mod sweep;
pub mod trouble;
pub mod turns;
mod unattended;
pub mod wakes;
pub mod watched;
pub mod write;

use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::{self, Stream};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio_util::sync::CancellationToken;

use self::backoff::Backoff;
use self::census::Registry;
use self::connector::Connectors;
use self::context::{Context, Guarded, GuestProgram, Pools, Synced};
use self::lease::Deadline;
use self::metrics::Metrics;
use self::pace::Pace;
use self::room::Room;
use self::slots::Slots;
use self::watched::Watched;
use crate::api::{Connector, FIELD_MANAGER, PlatformLayer};
use crate::telemetry::{Alive, Health, chain};

/// Reconciles at work at the same time, per kind. Each waits for the network most of the time.
const CONCURRENCY: u16 = 16;
/// What the probes wait for, and whose loops they watch.
const KINDS: [&str; 2] = [LAYERS, CONNECTORS];
const LAYERS: &str = "layers";
const CONNECTORS: &str = "connectors";

/// What differs between a cluster and a test.
pub struct Settings {
    pub pace: Pace,
    /// `lamina-guest.exe`, if it is shipped with this controller.
    pub program: Option<GuestProgram>,
    /// Of this process, unlike that of any other: sessions on the pools and events bear it.
    pub identity: String,
    /// Only look after this namespace; none: all.
    pub namespace: Option<String>,
    pub deadline: Deadline,
    pub metrics: Metrics,
    pub room: Arc<Room>,
    pub health: Health,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("namespace kube-system cannot be read: its uid is the name of this cluster on every pool")]
    Cluster(#[source] kube::Error),
    #[error("namespace kube-system has no uid")]
    Nameless,
}

/// Reconciles until `stop`. What is under way then is brought to its end; whatever was begun on a pool is found again by the next process.
pub async fn run(client: Client, settings: Settings, stop: CancellationToken) -> Result<(), Error> {
    let health = settings.health;
    KINDS.iter().for_each(|kind| health.awaits(kind));
    let home = Api::<Namespace>::all(client.clone()).get("kube-system").await.map_err(Error::Cluster)?;
    let cluster = home.uid().ok_or(Error::Nameless)?;
    let namespace = settings.namespace.as_deref();
    let (wake_layer, layer_wakes) = mpsc::unbounded_channel();
    let (wake_connector, connector_wakes) = mpsc::unbounded_channel();
    let quiet = watcher::Config::default();
    let config = Config::default().concurrency(CONCURRENCY);
    let (layer_store, layer_writer) = reflector::store();
    let (connector_store, connector_writer) = reflector::store();
    let layer_events =
        watcher(api::<PlatformLayer>(&client, namespace), quiet.clone()).default_backoff().reflect(layer_writer);
    let connector_events =
        watcher(api::<Connector>(&client, namespace), quiet).default_backoff().reflect(connector_writer);
    let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(settings.identity.clone()) };
    let ctx = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        pace: settings.pace,
        program: settings.program,
        cluster,
        originator: settings.identity,
        restricted: settings.namespace.is_some(),
        deadline: settings.deadline,
        metrics: settings.metrics,
        layers: layer_store.clone(),
        connectors: connector_store.clone(),
        registry: Registry::default(),
        synced: Synced::default(),
        wake_layer,
        wake_connector,
        pools: Pools::default(),
        room: settings.room,
        turns: Arc::default(),
        slots: Mutex::new(Slots::default()),
        backoff: Mutex::new(Backoff::default()),
        looked: Mutex::default(),
    });
    let pools = Connectors::new(Arc::clone(&ctx));
    let watched = Arc::new(Watched::new(Arc::clone(&ctx), Arc::clone(&pools)));
    let (told, came) = (Arc::clone(&watched), health.clone());
    let layer_events = layer_events.inspect_ok(move |event| {
        told.layer_event(event);
        if matches!(event, Event::InitDone) {
            came.came(LAYERS);
        }
    });
    let (told, came) = (watched, health.clone());
    let connector_events = connector_events.inspect_ok(move |event| {
        told.connector_event(event);
        if matches!(event, Event::InitDone) {
            came.came(CONNECTORS);
        }
    });
    let layers = Controller::for_stream(layer_events.touched_objects(), layer_store)
        .with_config(config.clone())
        .reconcile_on(received(layer_wakes))
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(layer::reconcile, |l, e, c| retry("layer", &l.meta().uid, e, &c), Arc::clone(&ctx));
    let connectors = Controller::for_stream(connector_events.touched_objects(), connector_store)
        .with_config(config)
        .reconcile_on(received(connector_wakes))
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(connector::reconcile, |c, e, all| retry("connector", &c.meta().uid, e, all.ctx()), Arc::clone(&pools));
    let (layers, connectors) = (
        drain(LAYERS, layers, &ctx.metrics, health.alive(LAYERS)),
        drain(CONNECTORS, connectors, &ctx.metrics, health.alive(CONNECTORS)),
    );
    tokio::select! {
        _ended = async { tokio::join!(layers, connectors) } => {}
        // Nothing was begun yet, and what is awaited may never come.
        () = stopped_unsynced(&stop, &ctx.synced) => {}
    }
    pools.log_out().await;
    Ok(())
}

/// Ends when `stop` comes before all objects were read, else never.
async fn stopped_unsynced(stop: &CancellationToken, synced: &Synced) {
    if stop.run_until_cancelled(synced.both()).await.is_some() {
        std::future::pending().await
    }
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<Guarded<K>>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn received<T: Send + 'static>(wakes: UnboundedReceiver<T>) -> impl Stream<Item = T> + Send + 'static {
    stream::unfold(wakes, |mut wakes| async move { Some((wakes.recv().await?, wakes)) })
}

/// A pass that could not write its status: nothing but the object's own pause helps.
fn retry(kind: &'static str, uid: &Option<String>, error: &dyn std::error::Error, ctx: &Context) -> Action {
    let failures =
        ctx.backoff.lock().unwrap_or_else(PoisonError::into_inner).failed(uid.as_deref().unwrap_or_default());
    tracing::warn!(kind, error = %chain(error), "a reconcile failed");
    ctx.metrics.fault("retry");
    Action::requeue(ctx.pace.backoff(failures))
}

/// Runs a controller to its end. Errors of its streams are told and counted: a watch that fails for ever must be seen.
async fn drain<T, E: std::error::Error + 'static>(
    kind: &'static str,
    results: impl Stream<Item = Result<T, E>>,
    metrics: &Metrics,
    _alive: Alive,
) {
    futures::pin_mut!(results);
    while let Some(result) = results.next().await {
        if let Err(error) = result {
            metrics.stream_error(kind);
            tracing::debug!(kind, error = %chain(&error), "the controller's stream");
        }
    }
}
