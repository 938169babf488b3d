//! The Connector: log-in, checks, status, and the mirror that wakes everybody who rests on the pool.
//!
//! One reconcile: credentials → client → checks → status. The pool is put within the layers' reach (`Context::set_pool`) only once it
//! has proved to be the one that they are in. Secrets are read at the first log-in and while the pool refuses us, so that a rotation needs no
//! restart and a Secret that is gone does not end a session that works. Never writes to the pool.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::core::{DeserializeGuard, Selector, SelectorExt};
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Api, Resource, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::connector_status::{Outcome, Rights, Subject, compose};
use super::context::{ConnectorKey, Context};
use super::credentials::Reader;
use super::inspect;
use super::metrics::Metrics;
use super::pool::Pool;
use super::sweep::{Known, sweep};
use super::wakes::Wakes;
use crate::api::condition::ConditionType as C;
use crate::api::connector::{AllowedNamespaces, ConnectorStatus, NamespacesFrom};
use crate::api::reason::{Fault, Reason};
use crate::api::{Connector, FIELD_MANAGER, FINALIZER, PlatformLayer, REQUESTED_AT};
use crate::domain::identity::{LAYER, MAKING, OP};
use crate::xapi::client::{CallRecord, Client, Options, Timeouts};
use crate::xapi::error::Error as PoolError;
use crate::xapi::mirror::{Batch, Change, Health, Mirror, MirrorOptions};
use crate::xapi::tls::Tls;

/// Connectors reconciled at a time.
const CONCURRENCY: u16 = 8;
/// Batches of changes that may wait for their wakes to be sent.
const BATCHES: usize = 64;
/// Disks and machines are found by these without a scan.
const INDEXED: &[&str] = &[LAYER, OP, MAKING];

type Guarded = DeserializeGuard<Connector>;
/// Connectors to be looked at now.
pub type Woken = mpsc::UnboundedReceiver<ObjectRef<Guarded>>;

/// What the process adds to every call to a pool.
#[derive(Clone)]
pub struct Hooks {
    /// Asked right before each changing call: do we lead?
    pub permit: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Told of each call.
    pub observer: Arc<dyn Fn(&CallRecord<'_>) + Send + Sync>,
    pub metrics: Metrics,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the Kubernetes API refused to write Connector {0}")]
    Write(String, #[source] kube::Error),
    #[error("the Kubernetes API did not answer a write of Connector {0} in time")]
    Slow(String),
}

/// All Connectors of the cluster.
pub struct Connectors {
    ctx: Arc<Context>,
    layers: Store<DeserializeGuard<PlatformLayer>>,
    hooks: Hooks,
    wake: mpsc::UnboundedSender<ObjectRef<Guarded>>,
    links: Mutex<HashMap<ConnectorKey, Arc<Link>>>,
    /// The statuses as last written, by uid: a watch may lag behind our own writes, and times must not move for that.
    written: Mutex<HashMap<String, ConnectorStatus>>,
    /// Failures in a row, by uid.
    failures: Mutex<HashMap<String, u32>>,
    /// Where each layer was last seen to belong, and whether it was being deleted.
    places: Mutex<HashMap<String, (ConnectorKey, bool)>>,
}

/// The connection of one Connector. Dropped, it is over.
struct Link {
    setup: Setup,
    pool: Arc<Pool>,
    account: Mutex<AccountState>,
    courier: tokio::task::AbortHandle,
}

/// What a client is made of; another one needs another client.
#[derive(PartialEq)]
struct Setup {
    endpoints: Vec<String>,
    tls: Tls,
}

struct AccountState {
    secret: String,
    /// The annotation that forces a look, as last obeyed.
    requested: Option<String>,
    /// Asked once for each log-in, and at each listing anew unless it is root.
    rights: Option<Rights>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.courier.abort();
    }
}

impl Link {
    fn account(&self) -> MutexGuard<'_, AccountState> {
        lock(&self.account)
    }

    fn health(&self) -> Health {
        self.pool.mirror.health().borrow().clone()
    }

    /// What the account may do, asked where it is not known.
    async fn rights(&self) -> Result<Rights, PoolError> {
        if let Some(known) = &self.account().rights {
            return Ok(known.clone());
        }
        let rights = if self.pool.client.read().is_superuser().await? {
            Rights::All
        } else {
            Rights::These(self.pool.client.read().permissions().await?.into_iter().collect())
        };
        self.account().rights = Some(rights.clone());
        Ok(rights)
    }
}

/// Ends what runs beside the reconciles, also where `run` is dropped in its midst.
struct Ending(Arc<Connectors>);

impl Drop for Ending {
    fn drop(&mut self) {
        for (key, _) in lock(&self.0.links).drain() {
            self.0.ctx.set_pool(&key, None);
        }
    }
}

impl Connectors {
    /// `layers`: all of the cluster, kept by a reflector of the caller's.
    pub fn new(ctx: Arc<Context>, layers: Store<DeserializeGuard<PlatformLayer>>, hooks: Hooks) -> (Arc<Self>, Woken) {
        let (wake, woken) = mpsc::unbounded_channel();
        let (links, written, failures, places) = Default::default();
        (Arc::new(Self { ctx, layers, hooks, wake, links, written, failures, places }), woken)
    }

    /// Reconciles until `stop`. Dropping it ends everything at once, as a crash would.
    pub async fn run(self: Arc<Self>, woken: Woken, stop: CancellationToken) {
        let _ending = Ending(self.clone());
        // Without the layers no Connector knows who needs it.
        if self.layers.wait_until_ready().await.is_err() {
            return;
        }
        let woken = futures::stream::unfold(woken, |mut woken| async { woken.recv().await.map(|next| (next, woken)) });
        let connectors: Api<Guarded> = Api::all(self.ctx.client.clone());
        Controller::new(connectors, watcher::Config::default())
            .with_config(Config::default().concurrency(CONCURRENCY))
            .reconcile_on(woken)
            .graceful_shutdown_on(stop.cancelled_owned())
            .run(reconcile, retry, self.clone())
            .for_each(|done| async {
                if let Err(error @ kube::runtime::controller::Error::QueueError(_)) = done {
                    self.hooks.metrics.stream_error("connectors");
                    tracing::warn!(
                        error = crate::telemetry::chain(&error),
                        "the watch of Connectors failed; it is resumed"
                    );
                }
            })
            .await;
        for link in lock(&self.links).values().cloned().collect::<Vec<_>>() {
            link.pool.client.logout().await;
        }
    }

    /// To be told of each event of the layers' watch; `gone`: the layer was deleted. Wakes the Connectors whose users changed.
    pub fn layer_changed(&self, layer: &DeserializeGuard<PlatformLayer>, gone: bool) {
        let Some(uid) = &layer.meta().uid else { return };
        let place =
            layer.0.as_ref().ok().map(|layer| (connector_of(layer), layer.metadata.deletion_timestamp.is_some()));
        let place = place.filter(|_| !gone);
        let mut places = lock(&self.places);
        let before = match place.clone() {
            Some(place) => places.insert(uid.clone(), place),
            None => places.remove(uid),
        };
        drop(places);
        if before != place {
            [before, place].into_iter().flatten().for_each(|(key, _)| self.wake(&key));
        }
    }

    fn wake(&self, (namespace, name): &ConnectorKey) {
        // Nobody listens any more: the process ends.
        let _ = self.wake.send(ObjectRef::new(name).within(namespace));
    }

    /// The layers that use a Connector. Those of namespaces that it does not let in do not count, or anybody could keep it from being
    /// deleted; unless it let them in once, and they have something in the pool.
    fn users(&self, key: &ConnectorKey, allowed: &AllowedNamespaces) -> Vec<Arc<DeserializeGuard<PlatformLayer>>> {
        let uses = |layer: &PlatformLayer| {
            let own = layer.namespace().is_some_and(|ns| ns == key.0);
            let had_pool = layer.status.as_ref().is_some_and(|s| s.pool.is_some());
            connector_of(layer) == *key && (own || had_pool || allowed.from != NamespacesFrom::Same)
        };
        self.layers.state().into_iter().filter(|layer| layer.0.as_ref().is_ok_and(&uses)).collect()
    }

    /// The Connector is gone.
    fn forget(&self, key: &ConnectorKey, uid: &str) {
        self.unlink(key);
        lock(&self.written).remove(uid);
        lock(&self.failures).remove(uid);
        self.hooks.metrics.sr_free(&format!("{}/{}", key.0, key.1), &[]);
    }

    fn link(&self, key: &ConnectorKey) -> Option<Arc<Link>> {
        lock(&self.links).get(key).cloned()
    }

    /// The pool goes out of reach, and the session is given back.
    fn unlink(&self, key: &ConnectorKey) {
        self.ctx.set_pool(key, None);
        if let Some(link) = lock(&self.links).remove(key) {
            let client = link.pool.client.clone();
            tokio::spawn(async move { client.logout().await });
        }
    }

    /// The checks, in their order, up to the first that fails.
    async fn check(self: &Arc<Self>, key: &ConnectorKey, connector: &Connector, known: &Circumstances<'_>) -> Outcome {
        let (mut outcome, spec) = (Outcome::default(), &connector.spec);
        let secret = &spec.credentials_secret_ref.name;
        let reader = Reader { client: &self.ctx.client, namespace: &key.0, patience: self.ctx.pace.write };
        let setup = match reader.tls(spec).await {
            Ok(tls) => Setup { endpoints: spec.endpoints.clone(), tls },
            Err(trouble) => {
                outcome.fail(C::Reachable, trouble);
                return outcome;
            }
        };
        let Some(link) = self.connect(key, connector, setup, &reader, known.deleting, &mut outcome).await else {
            return outcome;
        };
        match link.health() {
            Health::Never => return outcome,
            Health::Lost(error) => {
                link.account().rights = None;
                outcome.lost(&error, &link.setup.tls, secret);
                return outcome;
            }
            Health::Synced => {}
        }
        let view = link.pool.mirror.view();
        if !outcome.coordinator(&view, secret, known.pool) {
            if outcome.failure() == Some(Reason::PoolChanged) {
                self.ctx.set_pool(key, None);
            }
            return outcome;
        }
        if self.ctx.pool(key).is_none_or(|pool| !Arc::ptr_eq(&pool, &link.pool)) {
            self.ctx.set_pool(key, Some(link.pool.clone()));
            self.deliver(key, &Wakes::everybody());
        }
        if outcome.parts(&view, spec) {
            match link.rights().await {
                Ok(rights) => outcome.rights(&rights),
                // The mirror will notice too, if it stays; until then the check is just not made.
                Err(error) => {
                    tracing::info!(connector = key.1, error = error.kind(), "the account's rights could not be asked")
                }
            }
        }
        outcome
    }

    /// The link as spec wants it: the present one, where it is that, with the account as its Secret now has it while the pool refuses it.
    async fn connect(
        self: &Arc<Self>,
        key: &ConnectorKey,
        connector: &Connector,
        setup: Setup,
        reader: &Reader<'_>,
        deleting: bool,
        outcome: &mut Outcome,
    ) -> Option<Arc<Link>> {
        let secret = &connector.spec.credentials_secret_ref.name;
        let requested = connector.annotations().get(REQUESTED_AT).cloned();
        if let Some(link) = self.link(key).filter(|link| link.setup == setup) {
            let refused = matches!(link.health(), Health::Lost(error) if error.is_refused());
            let same = {
                let account = link.account();
                account.secret == *secret && account.requested == requested
            };
            if same && !refused {
                return Some(link);
            }
            match reader.account(secret, deleting).await {
                Ok(credentials) => {
                    let changed = link.pool.client.set_credentials(credentials).await;
                    *link.account() = AccountState { secret: secret.clone(), requested, rights: None };
                    if changed || !same {
                        link.pool.mirror.nudge();
                    }
                    return Some(link);
                }
                Err(trouble) => {
                    if refused {
                        outcome.pass(C::Reachable, "an endpoint answers, with a certificate that is trusted");
                    }
                    outcome.fail(C::Authenticated, trouble);
                    return None;
                }
            }
        }
        self.unlink(key);
        let credentials = match reader.account(secret, deleting).await {
            Ok(credentials) => credentials,
            Err(trouble) => {
                outcome.fail(C::Authenticated, trouble);
                return None;
            }
        };
        let client = Client::new(Options {
            endpoints: setup.endpoints.clone(),
            credentials,
            tls: setup.tls.clone(),
            originator: format!("lamina/{}/{}", self.ctx.cluster, connector.uid().unwrap_or_default()),
            // A pair that was refused is sent again when it changes; or much later, should it have been mended on the pool's side.
            timeouts: Timeouts { refused: self.ctx.pace.rest, ..Timeouts::default() },
            permit: self.hooks.permit.clone(),
            observer: self.hooks.observer.clone(),
        });
        match client {
            Ok(client) => {
                let account = AccountState { secret: secret.clone(), requested, rights: None };
                let link = Arc::new(self.linked(key, setup, client, account));
                lock(&self.links).insert(key.clone(), link.clone());
                Some(link)
            }
            Err(error) => {
                outcome.lost(&error, &setup.tls, secret);
                None
            }
        }
    }

    fn linked(self: &Arc<Self>, key: &ConnectorKey, setup: Setup, client: Client, account: AccountState) -> Link {
        let (batches, changes) = mpsc::channel(BATCHES);
        let pace = self.ctx.pace;
        let options = MirrorOptions {
            poll: pace.poll,
            resync: Arc::new(move || pace.jittered(pace.resync)),
            retry: Arc::new(move |failures| pace.backoff(failures.saturating_sub(1))),
            indexed: INDEXED,
        };
        let mirror = Mirror::start(client.clone(), options, batches);
        let pool = Arc::new(Pool::new(client, mirror));
        let courier = tokio::spawn(self.clone().carry(key.clone(), pool.clone(), changes)).abort_handle();
        Link { setup, pool, account: Mutex::new(account), courier }
    }

    /// Carries what the mirror sees to those concerned.
    async fn carry(self: Arc<Self>, key: ConnectorKey, pool: Arc<Pool>, mut batches: mpsc::Receiver<Batch>) {
        let mut health = pool.mirror.health();
        loop {
            tokio::select! {
                batch = batches.recv() => {
                    let Some(Batch { received, changes }) = batch else { return };
                    if changes.iter().any(|change| matches!(change, Change::Relisted)) {
                        self.doubt_rights(&key);
                    }
                    self.deliver(&key, &Wakes::of(&changes, &pool.mirror.view()));
                    self.hooks.metrics.event_lag(received.elapsed());
                }
                changed = health.changed() => match changed {
                    Ok(()) => self.deliver(&key, &Wakes::everybody()),
                    Err(_) => return,
                },
            }
        }
    }

    /// Roles may be changed while a session lasts; root has none.
    fn doubt_rights(&self, key: &ConnectorKey) {
        if let Some(link) = self.link(key) {
            let mut account = link.account();
            account.rights = account.rights.take().filter(|rights| *rights == Rights::All);
        }
    }

    fn deliver(&self, key: &ConnectorKey, wakes: &Wakes) {
        for layer in self.layers.state() {
            if let Ok(layer) = &layer.0
                && connector_of(layer) == *key
                && wakes.concern(layer)
            {
                // Nobody listens any more: the process ends.
                let _ = self.ctx.wake_layer.send(ObjectRef::from_obj(layer));
            }
        }
        if wakes.connector {
            self.wake(key);
        }
    }

    /// Writes the status if it differs, and remembers it.
    async fn publish(&self, guard: &Guarded, status: ConnectorStatus) -> Result<(), Error> {
        let uid = guard.meta().uid.clone().unwrap_or_default();
        let stands = guard.0.as_ref().is_ok_and(|connector| connector.status.as_ref() == Some(&status));
        if !stands {
            self.apply(guard, Some("status"), json!({ "status": status })).await?;
            self.hooks.metrics.status_write("Connector");
        }
        lock(&self.written).insert(uid, status);
        Ok(())
    }

    /// One server-side apply. `part`: what is written; with the uid, so that nothing is made anew.
    async fn apply(&self, guard: &Guarded, subresource: Option<&str>, part: Value) -> Result<(), Error> {
        let (name, namespace) = (guard.name_any(), guard.namespace().unwrap_or_default());
        let api: Api<Guarded> = Api::namespaced(self.ctx.client.clone(), &namespace);
        let mut body = json!({ "apiVersion": Connector::api_version(&()), "kind": Connector::kind(&()) });
        if let (Some(body), Value::Object(part)) = (body.as_object_mut(), part) {
            body.extend(part);
        }
        let (how, patch) = (PatchParams::apply(FIELD_MANAGER).force(), Patch::Apply(&body));
        let write = async {
            match subresource {
                Some(subresource) => api.patch_subresource(subresource, &name, &how, &patch).await,
                None => api.patch(&name, &how, &patch).await,
            }
        };
        match tokio::time::timeout(self.ctx.pace.write, write).await {
            Ok(Ok(_)) => Ok(()),
            // Gone, or another one of that name: nothing is left to write on.
            Ok(Err(kube::Error::Api(refusal))) if [404, 409].contains(&refusal.code) => Ok(()),
            Ok(Err(error)) => Err(Error::Write(name, error)),
            Err(_) => Err(Error::Slow(name)),
        }
    }

    /// Holds the Connector, or lets it go.
    async fn set_finalizer(&self, guard: &Guarded, held: bool) -> Result<(), Error> {
        let has = guard.finalizers().iter().any(|f| f == FINALIZER);
        if has == held {
            return Ok(());
        }
        let finalizers: &[&str] = if held { &[FINALIZER] } else { &[] };
        self.apply(guard, None, json!({ "metadata": { "uid": guard.meta().uid, "finalizers": finalizers } })).await
    }

    /// How long until the next look, if nothing wakes us.
    fn pause(&self, uid: &str, outcome: &Outcome) -> Duration {
        use Reason as R;
        let pace = self.ctx.pace;
        match outcome.failure() {
            // What is read from the API server is not watched.
            Some(R::CredentialsRefused | R::CredentialsNotFound | R::CredentialsIncomplete | R::CredentialsGone) => {
                pace.credentials
            }
            Some(R::CABundleNotFound | R::CABundleInvalid) => pace.credentials,
            Some(R::APIServerError) => self.back_off(uid),
            // The mirror wakes us when it knows; what else is missing could not be asked.
            None if !outcome.is_ready() => self.back_off(uid),
            Some(_) | None => {
                lock(&self.failures).remove(uid);
                pace.jittered(pace.rest)
            }
        }
    }

    fn back_off(&self, uid: &str) -> Duration {
        let mut failures = lock(&self.failures);
        let count = failures.entry(uid.to_owned()).or_default();
        let pause = self.ctx.pace.backoff(*count);
        *count = count.saturating_add(1);
        pause
    }
}

/// What a check needs to know besides the Connector.
struct Circumstances<'a> {
    /// The pool that layers rest on.
    pool: Option<&'a str>,
    /// Layers are being deleted.
    deleting: bool,
}

async fn reconcile(guard: Arc<Guarded>, hub: Arc<Connectors>) -> Result<Action, Error> {
    hub.hooks.metrics.reconcile("Connector");
    let key: ConnectorKey = (guard.namespace().unwrap_or_default(), guard.name_any());
    let uid = guard.meta().uid.clone().unwrap_or_default();
    let deleting = guard.meta().deletion_timestamp.is_some();
    let connector = guard.0.as_ref();
    let layers = connector.map(|c| hub.users(&key, &c.spec.allowed_namespaces)).unwrap_or_default();
    if deleting && layers.is_empty() {
        hub.forget(&key, &uid);
        hub.set_finalizer(&guard, false).await?;
        return Ok(Action::await_change());
    }
    if !deleting {
        hub.set_finalizer(&guard, true).await?;
    }
    let mut users: Vec<String> =
        layers.iter().map(|l| format!("{}/{}", l.namespace().unwrap_or_default(), l.name_any())).collect();
    users.sort();
    let written = lock(&hub.written).get(&uid).cloned();
    let old = written.or_else(|| connector.ok().and_then(|c| c.status.clone())).unwrap_or_default();

    let outcome = match connector {
        Ok(connector) => {
            let known = Circumstances {
                pool: old.pool_uuid.as_deref().filter(|_| !layers.is_empty()),
                deleting: layers.iter().any(|l| l.meta().deletion_timestamp.is_some()),
            };
            hub.check(&key, connector, &known).await
        }
        Err(invalid) => Outcome::invalid(&invalid.error),
    };
    if let Some(fault) = outcome.failure().and_then(Reason::fault) {
        hub.hooks.metrics.fault(label(fault));
    }
    let pool = hub.ctx.pool(&key).map(|pool| pool.mirror.view()).filter(|view| view.synced);
    let swept = pool.as_ref().map(|view| {
        let layers = hub.layers.state();
        sweep(view, &hub.ctx.cluster, &Known::of(layers.iter().map(AsRef::as_ref)))
    });
    if let (Some(view), Ok(connector)) = (&pool, connector)
        && let Ok((sr, record)) = inspect::storage(view, &connector.spec.storage_repository)
        && let Some(facts) = inspect::facts(view, &sr)
    {
        hub.hooks.metrics.sr_free(&format!("{}/{}", key.0, key.1), &[(record.name_label.clone(), facts.free)]);
    }
    let insecure =
        connector.is_ok_and(|c| c.spec.tls.as_ref().is_some_and(|tls| tls.insecure_skip_verify == Some(true)));
    let subject = Subject { generation: guard.meta().generation, deleting, insecure, users: &users };
    let pause = hub.pause(&uid, &outcome);
    let status = compose(&subject, &old, outcome, swept.as_ref(), &Time(jiff::Timestamp::now()));
    hub.publish(&guard, status).await?;
    Ok(Action::requeue(pause))
}

fn retry(guard: Arc<Guarded>, error: &Error, hub: Arc<Connectors>) -> Action {
    hub.hooks.metrics.fault(label(Fault::Retry));
    tracing::warn!(
        connector = guard.name_any(),
        error = crate::telemetry::chain(error),
        "a Connector's status could not be written"
    );
    Action::requeue(hub.back_off(guard.meta().uid.as_deref().unwrap_or_default()))
}

fn label(fault: Fault) -> &'static str {
    match fault {
        Fault::Retry => "retry",
        Fault::Wait => "wait",
        Fault::Stalled => "stalled",
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is kept here is written in one go each: a panic elsewhere does not make it wrong.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The Connector that a layer names.
pub fn connector_of(layer: &PlatformLayer) -> ConnectorKey {
    let reference = &layer.spec.connector_ref;
    let namespace = reference.namespace.clone().or_else(|| layer.namespace());
    (namespace.unwrap_or_default(), reference.name.clone())
}

/// Does the Connector let in layers of this namespace, with these labels on it?
pub fn admits(
    connector: &Connector,
    layer_namespace: &str,
    labels: &std::collections::BTreeMap<String, String>,
) -> bool {
    let allowed = &connector.spec.allowed_namespaces;
    match allowed.from {
        _ if connector.namespace().as_deref() == Some(layer_namespace) => true,
        NamespacesFrom::Same => false,
        NamespacesFrom::All => true,
        // A selector that cannot be read selects nothing.
        NamespacesFrom::Selector => {
            let selector = allowed.selector.clone().map(Selector::try_from);
            selector.is_some_and(|selector| selector.is_ok_and(|selector| selector.matches(labels)))
        }
    }
}
