//! The Connector: log-in, checks, status. Called by `run`.
//!
//! One reconcile: credentials → link → checks → status. The pool is put within the layers' reach (`Context::pools`) only once it has proved
//! to be the one that they are in. A Secret is read at the first log-in and while the pool refuses us: a rotation needs no restart, and a
//! Secret that is gone does not end a session that works. Changes nothing in the pool.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use tokio::time::Instant;

use super::checks::{ANSWERS, Outcome};
use super::connector_status::{Subject, compose};
use super::connector_write::{Error, announce, publish, set_finalizer};
use super::context::{ConnectorKey, Context, Guarded, belongs, readable};
use super::credentials::Reader;
use super::inspect;
use super::link::{Link, Origin, Setup, deliver, isos, lock};
use super::site;
use super::sweep::{Known, Swept, sweep};
use super::wakes::Wakes;
use crate::api::condition::{ConditionType as C, check_connector, find};
use crate::api::connector::ConnectorStatus;
use crate::api::reason::Reason;
use crate::api::{Connector, PlatformLayer, REQUESTED_AT};
use crate::xapi::mirror::Health;

/// All Connectors of the cluster.
pub struct Connectors {
    ctx: Arc<Context>,
    links: Mutex<HashMap<ConnectorKey, Arc<Link>>>,
    /// The statuses as last written, by uid: a watch may lag behind our own writes, and times must not move for that.
    written: Mutex<HashMap<String, ConnectorStatus>>,
    /// Since when what belongs to nobody was seen in a Connector's pool, by uuid.
    strays: Mutex<HashMap<ConnectorKey, HashMap<String, Instant>>>,
}

/// Ends the links: with the reconciles, also where those are dropped in their midst.
impl Drop for Connectors {
    fn drop(&mut self) {
        for (key, _) in lock(&self.links).drain() {
            self.ctx.pools.set(&key, None);
        }
    }
}

impl Connectors {
    pub fn new(ctx: Arc<Context>) -> Arc<Self> {
        let (links, written, strays) = Default::default();
        Arc::new(Self { ctx, links, written, strays })
    }

    pub fn ctx(&self) -> &Context {
        &self.ctx
    }

    /// Gives all sessions back; the last thing to do.
    pub async fn log_out(&self) {
        let links: Vec<_> = lock(&self.links).values().cloned().collect();
        for link in links {
            link.pool.client.logout().await;
        }
    }

    /// The layers that use a Connector. Those of namespaces that it does not let in do not count, or anybody could keep it from being
    /// deleted; unless it let them in once, and they have something in the pool. All do while nobody can tell.
    async fn users<'a>(
        &self,
        stored: &'a [Arc<Guarded<PlatformLayer>>],
        key: &ConnectorKey,
        connector: Option<&Connector>,
    ) -> Vec<&'a PlatformLayer> {
        let mut users: Vec<_> = readable(stored).filter(|layer| belongs(layer, key)).collect();
        let Some(connector) = connector else { return users };
        let has_pool = |layer: &PlatformLayer| layer.status.as_ref().is_some_and(|s| s.pool.is_some());
        let asking: BTreeSet<String> = users.iter().filter(|l| !has_pool(l)).filter_map(|l| l.namespace()).collect();
        let mut shut_out = BTreeSet::new();
        for namespace in asking {
            if !site::is_admitted(&self.ctx, connector, &namespace).await.unwrap_or(true) {
                shut_out.insert(namespace);
            }
        }
        users.retain(|layer| has_pool(layer) || !layer.namespace().is_some_and(|ns| shut_out.contains(&ns)));
        users
    }

    fn link(&self, key: &ConnectorKey) -> Option<Arc<Link>> {
        lock(&self.links).get(key).cloned()
    }

    /// The pool goes out of reach, and the session is given back.
    fn unlink(&self, key: &ConnectorKey) {
        if let Some(link) = lock(&self.links).remove(key) {
            self.ctx.pools.set(key, None);
            let client = link.pool.client.clone();
            tokio::spawn(async move { client.logout().await });
        }
    }

    /// The checks, in their order, up to the first that fails. `expected`: the pool that layers rest on. `isos`: those that layers name. `deleting`: layers are on their
    /// way out.
    async fn check(
        &self,
        key: &ConnectorKey,
        connector: &Connector,
        expected: Option<&str>,
        isos: &[Option<&str>],
        deleting: bool,
    ) -> Outcome {
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
        let origin = Origin { secret: secret.clone(), requested: connector.annotations().get(REQUESTED_AT).cloned() };
        let Some(link) = self.connect(key, setup, origin, &reader, deleting, &mut outcome).await else {
            return outcome;
        };
        match link.health() {
            Health::Never => return outcome,
            Health::Lost(error) => {
                link.forget_rights();
                outcome.lost(&error, &link.setup.tls, secret);
                return outcome;
            }
            Health::Synced => {}
        }
        let view = link.pool.mirror.view();
        if !outcome.coordinator(&view, secret, expected) {
            if outcome.failure() == Some(Reason::PoolChanged) {
                self.ctx.pools.set(key, None);
            }
            return outcome;
        }
        if self.ctx.pools.get(key).is_none_or(|pool| !Arc::ptr_eq(&pool, &link.pool)) {
            self.ctx.pools.set(key, Some(link.pool.clone()));
            deliver(&self.ctx, key, &Wakes::everybody());
        }
        let isos = isos.iter().copied().chain([spec.tools_iso.as_deref()]).collect();
        let scanning = link.scan_for(&view, &isos, self.ctx.pace.capacity).await;
        if outcome.parts(&view, spec, scanning) {
            match link.rights().await {
                Ok(rights) => outcome.rights(&rights),
                // If it stays, the mirror notices too; until then this check is just not made.
                Err(error) => {
                    tracing::info!(connector = key.1, error = error.kind(), "the account's rights could not be asked")
                }
            }
        }
        outcome
    }

    /// The link as spec wants it: the present one where it is that, with the account as its Secret now has it if the pool refuses the old.
    async fn connect(
        &self,
        key: &ConnectorKey,
        setup: Setup,
        origin: Origin,
        reader: &Reader<'_>,
        deleting: bool,
        outcome: &mut Outcome,
    ) -> Option<Arc<Link>> {
        let present = self.link(key).filter(|link| link.setup == setup);
        let refused = present.as_ref().is_some_and(|link| matches!(link.health(), Health::Lost(e) if e.is_refused()));
        if let Some(link) = present.as_ref().filter(|link| link.origin() == origin && !refused) {
            return Some(link.clone());
        }
        if present.is_none() {
            self.unlink(key);
        }
        let credentials = match reader.account(&origin.secret, deleting).await {
            Ok(credentials) => credentials,
            Err(trouble) => {
                if refused {
                    outcome.pass(C::Reachable, ANSWERS);
                }
                outcome.fail(C::Authenticated, trouble);
                return None;
            }
        };
        if let Some(link) = present {
            link.renew(credentials, origin).await;
            return Some(link);
        }
        let secret = origin.secret.clone();
        match Link::open(&self.ctx, key, setup.clone(), credentials, origin) {
            Ok(link) => {
                let link = Arc::new(link);
                lock(&self.links).insert(key.clone(), link.clone());
                Some(link)
            }
            Err(error) => {
                outcome.lost(&error, &setup.tls, &secret);
                None
            }
        }
    }

    /// What lies about in the pool; none where it cannot be seen now. `told`: what was found before.
    fn sweep(&self, key: &ConnectorKey, connector: &Connector, told: &ConnectorStatus) -> Option<Swept> {
        let view = self.ctx.pools.get(key)?.mirror.view();
        if !view.synced {
            return None;
        }
        if let Ok((sr, record)) = inspect::storage(&view, &connector.spec.storage_repository)
            && let Some(facts) = inspect::facts(&view, &sr)
        {
            self.ctx.metrics.sr_free(&label(key), &[(record.name_label.clone(), facts.free)]);
        }
        if self.ctx.restricted {
            return None;
        }
        let layers = self.ctx.layers.state();
        let mut swept = sweep(&view, &self.ctx.cluster, &Known::of(layers.iter().map(AsRef::as_ref)));
        let told = find(&told.conditions, C::Unclaimed).map(|c| c.message.clone()).unwrap_or_default();
        let mut strays = lock(&self.strays);
        swept.ripen(strays.entry(key.clone()).or_default(), &told, self.ctx.pace.now(), self.ctx.pace.in_flight);
        Some(swept)
    }

    /// The Connector is gone.
    pub fn forget(&self, key: &ConnectorKey, uid: &str) {
        self.unlink(key);
        lock(&self.written).remove(uid);
        lock(&self.strays).remove(key);
        lock(&self.ctx.backoff).succeeded(uid);
        self.ctx.metrics.sr_free(&label(key), &[]);
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
            // Not all could be asked, and not because something is wrong.
            None if !outcome.is_ready() => self.back_off(uid),
            // The mirror wakes us, but for a role that is given.
            others => {
                lock(&self.ctx.backoff).succeeded(uid);
                let missing = matches!(others, Some(R::PermissionDenied | R::PoolOperatorMissing));
                let rest = pace.jittered(pace.rest);
                if missing { rest.min(pace.rights + pace.rights / 20) } else { rest }
            }
        }
    }

    fn back_off(&self, uid: &str) -> Duration {
        let failures = lock(&self.ctx.backoff).failed(uid);
        self.ctx.pace.backoff(failures)
    }
}

/// One look at one Connector. What somebody wrote meanwhile wakes us: it is looked at anew then.
pub async fn reconcile(guard: Arc<Guarded<Connector>>, hub: Arc<Connectors>) -> Result<Action, Error> {
    match once(guard, &hub).await {
        Err(outdated @ Error::Outdated(_)) => {
            tracing::debug!(error = %outdated, "a look came to nothing");
            Ok(Action::requeue(hub.ctx.pace.task))
        }
        ended => ended,
    }
}

async fn once(guard: Arc<Guarded<Connector>>, hub: &Connectors) -> Result<Action, Error> {
    hub.ctx.metrics.reconcile("connector");
    let key: ConnectorKey = (guard.namespace().unwrap_or_default(), guard.name_any());
    let (uid, deleting) = (guard.uid().unwrap_or_default(), guard.meta().deletion_timestamp.is_some());
    let connector = guard.0.as_ref().ok();
    // Without the layers no Connector knows who needs it.
    hub.ctx.synced.both().await;
    let stored = hub.ctx.layers.state();
    let layers = hub.users(&stored, &key, connector).await;
    if deleting && layers.is_empty() {
        hub.forget(&key, &uid);
        set_finalizer(&hub.ctx, &guard, false).await?;
        return Ok(Action::await_change());
    }
    if !deleting {
        set_finalizer(&hub.ctx, &guard, true).await?;
    }
    let written = lock(&hub.written).get(&uid).cloned();
    let old = written.or_else(|| connector.and_then(|c| c.status.clone())).unwrap_or_default();
    let outcome = match &guard.0 {
        Ok(connector) => {
            let expected = old.pool_uuid.as_deref().filter(|_| !layers.is_empty());
            let removals = layers.iter().any(|l| l.metadata.deletion_timestamp.is_some());
            hub.check(&key, connector, expected, &isos(&layers), removals).await
        }
        Err(invalid) => Outcome::invalid(&invalid.error),
    };
    if let Some(fault) = outcome.failure().and_then(Reason::fault) {
        hub.ctx.metrics.fault(fault.as_str());
    }
    let swept = connector.and_then(|connector| hub.sweep(&key, connector, &old));
    let mut users: Vec<_> =
        layers.iter().map(|l| format!("{}/{}", l.namespace().unwrap_or_default(), l.name_any())).collect();
    users.sort();
    let tls = connector.and_then(|c| c.spec.tls.as_ref());
    let insecure = tls.is_some_and(|tls| tls.insecure_skip_verify == Some(true));
    let subject = Subject {
        generation: guard.meta().generation,
        deleting,
        insecure,
        users: &users,
        restricted: hub.ctx.restricted,
    };
    let mut pause = hub.pause(&uid, &outcome);
    if swept.as_ref().is_some_and(|swept| swept.unripe) {
        pause = pause.min(hub.ctx.pace.in_flight);
    }
    // A process that has just begun has no news: what was told of this spec holds until the pool has answered, or failed to.
    if !deleting && outcome.is_unfinished() && told(&old, subject.generation) {
        return Ok(Action::requeue(pause));
    }
    let status = compose(&subject, &old, outcome, swept.as_ref(), &hub.ctx.pace.wall());
    debug_assert_eq!(invariants(connector, &status), Vec::<String>::new(), "a status against the rules of conditions");
    publish(&hub.ctx, &guard, &status).await?;
    announce(&hub.ctx, &guard, &old, &status).await;
    lock(&hub.written).insert(uid, status);
    Ok(Action::requeue(pause))
}

/// What a status breaks; nothing can be said of an object that cannot be read.
fn invariants(connector: Option<&Connector>, status: &ConnectorStatus) -> Vec<String> {
    let told = connector.map(|connector| Connector { status: Some(status.clone()), ..connector.clone() });
    told.as_ref().map(check_connector).unwrap_or_default()
}

/// Has Ready been told of this generation?
fn told(status: &ConnectorStatus, generation: Option<i64>) -> bool {
    status.observed_generation == generation && find(&status.conditions, C::Ready).is_some()
}

fn label((namespace, name): &ConnectorKey) -> String {
    format!("{namespace}/{name}")
}
