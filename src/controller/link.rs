//! The connection of one Connector: client, mirror, account, and the task that carries what the mirror sees to those concerned.
//!
//! Opened and closed by `connector`. Changes nothing in the pool, but for scans that
//! show what lies in it. Everything ends when the link is dropped: a process that stops leading, and a test that lets a controller die, leave
//! nothing running.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::audit;
use super::context::{ConnectorKey, Context, belongs, readable};
use super::inspect;
use super::pool::Pool;
use super::rights::Rights;
use super::wakes::Wakes;
use crate::api::reason::Reason;
use crate::api::{Phase, PlatformLayer};
use crate::domain::identity::{LAYER, MAKING, OP};
use crate::xapi::client::{CallRecord, Client, Credentials, Options, Timeouts, Tls};
use crate::xapi::error::Error;
use crate::xapi::mirror::{Batch, Health, Mirror, MirrorOptions};
use crate::xapi::view::View;
use crate::xapi::wire::Ref;

/// Batches of changes that may wait for their wakes to be sent.
const BATCHES: usize = 64;
/// Disks and machines are found by these without a scan.
const INDEXED: &[&str] = &[LAYER, OP, MAKING];

/// Begins a session, and with it a role.
const LOG_IN: &str = "session.login_with_password";

/// What a client is made of; another setup needs another client.
#[derive(Clone, PartialEq)]
pub struct Setup {
    pub endpoints: Vec<String>,
    pub tls: Tls,
}

/// See the module.
pub struct Link {
    pub setup: Setup,
    pub pool: Arc<Pool>,
    /// What the credentials were read by: the Secret's name, and the annotation that forces a look.
    origin: Mutex<Origin>,
    account: Arc<Mutex<Account>>,
    scans: Mutex<Scans>,
    courier: tokio::task::AbortHandle,
}

/// The last scans of the ISO repositories.
#[derive(Default)]
struct Scans {
    /// The ISOs that they were to bring to light, and the annotation of then.
    missing: BTreeSet<Option<String>>,
    requested: Option<String>,
    /// Not known to be over.
    tasks: Vec<Ref>,
    began: Option<Instant>,
}

impl Scans {
    /// Takes out those that are over.
    fn ended(&mut self, view: &View) -> Vec<Ref> {
        let over = |task: &mut Ref| view.tasks.get(task).is_some_and(|t| !t.status.is_at_work());
        self.tasks.extract_if(.., over).collect()
    }

    fn is_due(&self, missing: &BTreeSet<Option<String>>, requested: &Option<String>) -> bool {
        !missing.is_subset(&self.missing) || (!missing.is_empty() && self.requested != *requested)
    }

    /// One that hangs (over NFS or SMB), or went with a pool that died, is not waited for: what is missing is told.
    fn may_tell(&self, patience: Duration) -> bool {
        !self.tasks.is_empty() && self.began.is_some_and(|began| began.elapsed() < patience)
    }
}

/// What is known of the account.
#[derive(Default)]
struct Account {
    rights: Option<Rights>,
    /// When a new session is asked whether it may more; none: not before a log-in.
    ask_at: Option<Instant>,
}

/// Where credentials came from: another origin needs another reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub secret: String,
    pub requested: Option<String>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.courier.abort();
    }
}

impl Link {
    /// No call is made here: the mirror logs in and looks.
    pub fn open(
        ctx: &Arc<Context>,
        key: &ConnectorKey,
        setup: Setup,
        credentials: Credentials,
        origin: Origin,
    ) -> Result<Self, Error> {
        let (deadline, metrics, pace) = (ctx.deadline.clone(), ctx.metrics.clone(), ctx.pace);
        let account: Arc<Mutex<Account>> = Arc::default();
        let known = Arc::clone(&account);
        let client = Client::new(Options {
            endpoints: setup.endpoints.clone(),
            credentials,
            tls: setup.tls.clone(),
            originator: ctx.originator.clone(),
            // A pair that was refused is sent again when it changes; or much later, should it have been mended on the pool's side.
            timeouts: Timeouts { refused: pace.rest, ..Timeouts::default() },
            permit: Arc::new(move || deadline.holds()),
            observer: Arc::new(move |call: &CallRecord<'_>| {
                // A role is that of the session, and what is known of it may be wrong.
                if call.method == LOG_IN && call.error.is_none() {
                    *lock(&known) = Account { rights: None, ask_at: Some(pace.now() + pace.rights) };
                } else if call.error.is_some_and(|e| e.is_code("RBAC_PERMISSION_DENIED")) {
                    lock(&known).rights = None;
                }
                audit::call(call);
                metrics.xapi_call(call.method, outcome(call.error), call.duration);
            }),
        })?;
        let (batches, changes) = mpsc::channel(BATCHES);
        let options = MirrorOptions {
            poll: pace.poll,
            resync: Arc::new(move || pace.jittered(pace.resync)),
            retry: Arc::new(move |failures| pace.backoff(failures.saturating_sub(1))),
            indexed: INDEXED,
        };
        let mirror = Mirror::start(client.clone(), options, batches);
        let pool = Arc::new(Pool::new(client, mirror, ctx.room.clone(), ctx.turns.clone()));
        let courier = tokio::spawn(carry(ctx.clone(), key.clone(), pool.clone(), changes)).abort_handle();
        Ok(Self { setup, pool, origin: Mutex::new(origin), account, scans: Mutex::default(), courier })
    }

    pub fn health(&self) -> Health {
        self.pool.mirror.health().borrow().clone()
    }

    pub fn origin(&self) -> Origin {
        lock(&self.origin).clone()
    }

    /// Takes credentials into use that were read anew. The mirror tries them at once.
    pub async fn renew(&self, credentials: Credentials, origin: Origin) {
        let changed = self.pool.client.set_credentials(credentials).await;
        let forced = std::mem::replace(&mut *lock(&self.origin), origin.clone()) != origin;
        if changed || forced {
            *lock(&self.account) = Account { rights: None, ask_at: Some(Instant::now()) };
            self.pool.mirror.nudge();
        }
    }

    /// What the account may do; asked once for each log-in, and again when the pool refused something for want of a right. Where one is
    /// missing, a new session is asked now and then: ours keeps the rights it began with, and gives way to one that may more.
    pub async fn rights(&self) -> Result<Rights, Error> {
        let client = &self.pool.client;
        let known = lock(&self.account).rights.clone();
        let rights = match known {
            Some(known) => known,
            None if client.read().is_superuser().await? => Rights::All,
            None => Rights::of(Some(client.read().permissions().await?)),
        };
        let due = lock(&self.account).ask_at.is_some_and(|at| at <= Instant::now());
        if due && rights.lacking() > 0 {
            match client.rights_anew().await.map(Rights::of) {
                Ok(anew) if anew.lacking() < rights.lacking() => {
                    client.logout().await;
                    return Ok(anew);
                }
                Ok(_no_more) => {}
                Err(error) => {
                    // Whoever tries a refused password again and again may lock the account; our session still lives.
                    if error.is_refused() {
                        lock(&self.account).ask_at = None;
                    }
                    tracing::info!(error = error.kind(), "whether the account may more by now could not be asked");
                }
            }
        }
        lock(&self.account).rights = Some(rights.clone());
        Ok(rights)
    }

    /// Has the ISO repositories scanned where no ISO of these names (`None`: the usual one) has a row: what somebody put there has none before
    /// (xapi.md 10). Once for each name, and once more when a look is forced. True: a scan is under way, and may bring it to light.
    pub async fn scan_for(&self, view: &View, wanted: &BTreeSet<Option<&str>>, patience: Duration) -> bool {
        let not_found = |name: &&Option<&str>| {
            inspect::tools_iso(view, **name).is_err_and(|trouble| trouble.reason == Reason::ToolsISONotFound)
        };
        let missing: BTreeSet<Option<String>> = wanted.iter().filter(not_found).map(|n| n.map(str::to_owned)).collect();
        let requested = self.origin().requested;
        let ended = lock(&self.scans).ended(view);
        for task in ended {
            if let Err(error) = self.pool.client.write().task_destroy(&task).await {
                tracing::debug!(error = error.kind(), "a finished scan's task stays until the pool collects it");
            }
        }
        if !lock(&self.scans).is_due(&missing, &requested) {
            return lock(&self.scans).may_tell(patience);
        }
        let tasks = std::mem::take(&mut lock(&self.scans).tasks);
        let mut begun = Scans { missing, requested, tasks, began: Some(Instant::now()) };
        for (sr, record) in inspect::iso_repositories(view) {
            match self.pool.client.start(&format!("{}.scan", record.uuid)).sr_scan(sr).await {
                Ok(task) => begun.tasks.push(task),
                // A repository that is at work refuses: the check says what is missing, and a look that is forced tries again.
                Err(error) => tracing::info!(error = error.kind(), "an ISO repository could not be scanned"),
            }
        }
        *lock(&self.scans) = begun;
        lock(&self.scans).may_tell(patience)
    }

    pub fn forget_rights(&self) {
        lock(&self.account).rights = None;
    }
}

/// The tools ISOs that layers name, and may yet have to put into a drive.
pub fn isos<'a>(layers: &[&'a PlatformLayer]) -> Vec<Option<&'a str>> {
    let unmade = layers.iter().filter(|l| l.status.as_ref().is_none_or(|s| s.phase != Some(Phase::Finalized)));
    unmade.map(|l| l.spec.machine.tools_iso.as_deref()).filter(Option::is_some).collect()
}

/// Carries what the mirror sees to those concerned.
async fn carry(ctx: Arc<Context>, key: ConnectorKey, pool: Arc<Pool>, mut batches: mpsc::Receiver<Batch>) {
    let mut health = pool.mirror.health();
    loop {
        tokio::select! {
            batch = batches.recv() => {
                let Some(Batch { received, changes }) = batch else { return };
                let around = ctx.census();
                let worker = |op: &str, task: &Ref| {
                    let begun = pool.memory().who_began(task).map(str::to_owned);
                    begun.or_else(|| around.who_is_at(op)?.uid())
                };
                deliver(&ctx, &key, &Wakes::of(&changes, &pool.mirror.view(), &worker));
                ctx.metrics.event_lag(received.elapsed());
            }
            changed = health.changed() => match changed {
                Ok(()) => {
                    if let Health::Lost(_) = &*health.borrow_and_update() {
                        ctx.metrics.stream_error("pool");
                    }
                    deliver(&ctx, &key, &Wakes::everybody());
                }
                Err(_) => return,
            },
        }
    }
}

/// Wakes those of the Connector's layers, and the Connector, whom it concerns.
pub fn deliver(ctx: &Context, key: &ConnectorKey, wakes: &Wakes) {
    let stored = ctx.layers.state();
    let concerned = readable(&stored).filter(|layer| belongs(layer, key) && wakes.concern(layer));
    concerned.for_each(|layer| ctx.wake(layer));
    if wakes.connector {
        wake_connector(ctx, key);
    }
}

pub fn wake_connector(ctx: &Context, (namespace, name): &ConnectorKey) {
    // Nobody listens any more: the process is ending.
    let _closed = ctx.wake_connector.send(ObjectRef::new(name).within(namespace));
}

fn outcome(error: Option<&Error>) -> &'static str {
    match error {
        None => "ok",
        Some(Error::Api(_)) => "refused",
        Some(error) if error.maybe_executed() => "lost",
        Some(_) => "not-sent",
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is kept here is written in one go each: a panic elsewhere does not make it wrong.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
