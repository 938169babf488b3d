//! A pool's objects in memory, as an informer keeps them: one long poll (`event.from`) per Connector, whose events change a
//! [`View`] and are handed on as [`Batch`]es that wake the layers concerned.
//!
//! ```text
//!        ┌── dump (token "") ──▶ synced ──event.from──▶ apply, compare the counts ──▶ hand on ──┐
//!        │                         ▲ └────────────────────────────────────────────────────────┘
//!        │ session gone, other     │ every `resync`: each class listed anew
//!        │ coordinator, bad token, │
//!        └── restart of xapi ──────┴── no answer, twice: lost, tried again after `retry`
//! ```
//!
//! [`Mirror::now`] is the live look before something is created, started or destroyed: it asks the pool for a place in its stream of
//! events that is later than all that has happened, and waits until the view has come past it (xapi.md 5, "barrier"). All that the
//! pool did before it was asked is then in the view, at the cost of one small call. Of what it does meanwhile a part may be: records are
//! read after it was chosen which to tell of.
//!
//! Never changes the pool and decides nothing. Events may be lost (xapi forgets old deletions and does not say so):
//! that costs time, never truth, since counts are compared after each batch and everything is listed anew now and then.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::change::{CLASSES, Mirrored, apply, every_class, replace, replace_all};
pub use super::change::{Change, Diff};
use super::client::Client;
use super::error::Error;
use super::model::{Class, GuestMetrics, Host, Network, Pbd, Pool, Sm, Sr, Task, Vbd, Vdi, Vif, Vm, VmMetrics};
use super::session::{Token, session_is_over};
use super::view::{Table, View};
use super::wire::{Event, EventBatch};

pub struct MirrorOptions {
    /// How long one `event.from` waits for events. Beyond 60 s the TLS proxy of a host may cut it.
    pub poll: Duration,
    /// The pause to the next listing of everything, asked anew each time.
    pub resync: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// The pause before trying again, after n failures in a row.
    pub retry: Arc<dyn Fn(u32) -> Duration + Send + Sync>,
    /// Keys of other_config by which disks and machines are found without a scan.
    pub indexed: &'static [&'static str],
}

/// What changed at once. Sent after the view shows it.
#[derive(Debug)]
pub struct Batch {
    /// When the reply was whole. XAPI's events bear no time, so the lag that can be measured is from here to whoever
    /// acts on it.
    pub received: Instant,
    pub changes: Vec<Change>,
}

/// Whether the pool can be seen.
#[derive(Clone, Debug)]
pub enum Health {
    /// Not yet.
    Never,
    Synced,
    Lost(Error),
}

/// The mirror of one pool. Its task ends when this is dropped.
pub struct Mirror {
    client: Client,
    shared: Arc<Shared>,
    health: watch::Receiver<Health>,
    /// How far in the stream of events the view has come.
    shown: watch::Receiver<Token>,
    task: tokio::task::AbortHandle,
}

struct Shared {
    view: RwLock<View>,
    nudge: Notify,
}

impl Shared {
    fn change(&self) -> std::sync::RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mirror {
    /// Starts to look. Ends by itself when the receiver of the batches is gone; a slow receiver slows it down.
    pub fn start(client: Client, options: MirrorOptions, batches: mpsc::Sender<Batch>) -> Self {
        let shared = Arc::new(Shared { view: RwLock::new(View::indexed(options.indexed)), nudge: Notify::new() });
        let (health_out, health) = watch::channel(Health::Never);
        let (shown_out, shown) = watch::channel(Token::default());
        let watcher = Watcher {
            client: client.clone(),
            batches,
            shared: shared.clone(),
            health: health_out,
            shown: shown_out,
            token: Token::default(),
            resync_at: Instant::now(),
            changes: Vec::new(),
            disputed: HashMap::new(),
            options,
        };
        Self { client, shared, health, shown, task: tokio::spawn(watcher.run()).abort_handle() }
    }

    /// The pool as last seen; `synced` says whether that is now.
    pub fn view(&self) -> View {
        self.shared.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The pool as it is: with all that it had done when this was called, in a view that is whole.
    ///
    /// # Errors
    /// [`Error::Behind`] where the events do not come in time, [`Error::Unreadable`] for a record that may be the very one whose absence
    /// would be acted upon, and whatever ended the stream or the call.
    pub async fn now(&self) -> Result<View, Error> {
        let limit = self.client.call_timeout();
        let view = tokio::time::timeout(limit, self.past_a_barrier()).await.map_err(|_late| Error::Behind)??;
        match view.unreadable() {
            Some((class, reference)) => Err(Error::Unreadable { class, reference }),
            None => Ok(view),
        }
    }

    async fn past_a_barrier(&self) -> Result<View, Error> {
        let (mut shown, mut health) = (self.shown.clone(), self.health.clone());
        loop {
            shown.mark_unchanged();
            let Some(pool) = self.view().pool().map(|(pool, _)| pool.clone()) else { return Err(Error::Behind) };
            let barrier = match self.client.barrier(Pool::NAME, &pool).await {
                // Nothing was executed; the next one logs in.
                Err(error) if session_is_over(&error) => self.client.barrier(Pool::NAME, &pool).await?,
                asked => asked?,
            };
            loop {
                // In this order: what is shown is in the view before it is told.
                let past = shown.borrow_and_update().is_past(&barrier);
                let view = self.view();
                if past && view.synced {
                    return Ok(view);
                }
                tokio::select! {
                    lost = health.wait_for(|health| matches!(health, Health::Lost(_))) => {
                        return Err(match lost.as_deref() {
                            Ok(Health::Lost(error)) => error.clone(),
                            Ok(Health::Never | Health::Synced) | Err(_) => Error::Behind,
                        });
                    }
                    moved = shown.changed() => moved.map_err(|_ended| Error::Behind)?,
                }
                // One of the two has logged in anew: their places cannot be compared.
                if !shown.borrow().is_of_session_of(&barrier) {
                    break;
                }
            }
        }
    }

    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Cuts the pause after a failure short, e.g. when the credentials have changed.
    pub fn nudge(&self) {
        self.shared.nudge.notify_one();
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Watcher {
    client: Client,
    options: MirrorOptions,
    batches: mpsc::Sender<Batch>,
    shared: Arc<Shared>,
    health: watch::Sender<Health>,
    shown: watch::Sender<Token>,
    token: Token,
    resync_at: Instant,
    /// Found, and not handed on yet.
    changes: Vec<Change>,
    /// Counts that differ from ours even after a listing, with ours: not worth a listing at every batch.
    disputed: HashMap<&'static str, (i64, usize)>,
}

impl Watcher {
    async fn run(mut self) {
        let mut failures = 0;
        while !self.batches.is_closed() {
            let Err(error) = self.step().await else {
                failures = 0;
                continue;
            };
            failures += 1;
            let was_synced = matches!(*self.health.borrow(), Health::Synced);
            // A refused place in the stream is given up; after an outage nothing that we have is worth going on from.
            if error.failure().is_some() || !was_synced || failures > 1 {
                self.token.text.clear();
            }
            // One cut long poll, or one lost session, is no news.
            if was_synced && failures == 1 {
                tracing::debug!(%error, "the event stream broke off");
                continue;
            }
            self.lose(error);
            let pause = (self.options.retry)(failures);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shared.nudge.notified() => {}
            }
        }
    }

    /// One long poll and what follows from it.
    async fn step(&mut self) -> Result<(), Error> {
        let until_resync = self.resync_at.saturating_duration_since(Instant::now());
        if until_resync.is_zero() && !self.token.text.is_empty() {
            self.relist_all().await?;
            self.relisted();
            self.hand_on(Instant::now()).await;
        }
        let until_resync = self.resync_at.saturating_duration_since(Instant::now());
        let wait = if until_resync.is_zero() { self.options.poll } else { self.options.poll.min(until_resync) };
        let batch: EventBatch = self.client.send_poll(CLASSES, &mut self.token, wait).await?;
        let received = Instant::now();
        let dump = std::mem::replace(&mut self.token.text, batch.token).is_empty();
        self.absorb(batch.events, dump);
        self.recount(&batch.valid_ref_counts).await?;
        self.hand_on(received).await;
        Ok(())
    }

    /// Takes events into the view. A dump is the whole pool: what is not in it is gone.
    fn absorb(&mut self, events: Vec<Event>, dump: bool) {
        if dump {
            let mut new = View::indexed(self.options.indexed);
            events.into_iter().for_each(|event| apply(&mut new, event, &mut Vec::new()));
            replace_all(&mut self.shared.change(), new, &mut self.changes);
            self.relisted();
            return;
        }
        let mut view = self.shared.change();
        let started = view.agent_start().map(str::to_owned);
        events.into_iter().for_each(|event| apply(&mut view, event, &mut self.changes));
        // A new xapi remembers no deletions of the old one's time.
        if view.agent_start() != started.as_deref() {
            self.token.text.clear();
        }
    }

    fn relisted(&mut self) {
        self.changes.push(Change::Relisted);
        self.resync_at = Instant::now() + (self.options.resync)();
    }

    async fn relist_all(&mut self) -> Result<(), Error> {
        every_class!(self.relist())
    }

    async fn recount(&mut self, counts: &HashMap<String, i64>) -> Result<(), Error> {
        every_class!(self.recount_class(counts))
    }

    /// Lists one class anew. Events that come later are newer than what is listed here, so none is undone.
    async fn relist<T: Mirrored>(&mut self) -> Result<(), Error> {
        // What could not be repaired here is repaired by a dump.
        let records = self.client.read().get_all_records::<T>().await.inspect_err(|_| self.token.text.clear())?;
        let mut view = self.shared.change();
        let mut table = Table::indexed(T::table(&mut view).keys());
        table.fill(records);
        replace(&mut view, table, &mut self.changes);
        Ok(())
    }

    /// Compares the number of rows, and lists anew what differs: a deletion was lost.
    async fn recount_class<T: Mirrored>(&mut self, counts: &HashMap<String, i64>) -> Result<(), Error> {
        let Some(theirs) = counts.get(&T::NAME.to_ascii_lowercase()).copied() else { return Ok(()) };
        let ours = self.count::<T>();
        if i64::try_from(ours) == Ok(theirs) {
            self.disputed.remove(T::NAME);
            return Ok(());
        }
        if self.disputed.get(T::NAME) == Some(&(theirs, ours)) {
            return Ok(());
        }
        tracing::info!(class = T::NAME, theirs, ours, "events were lost: listing anew");
        self.relist::<T>().await?;
        self.disputed.insert(T::NAME, (theirs, self.count::<T>()));
        Ok(())
    }

    fn count<T: Mirrored>(&self) -> usize {
        T::table(&mut self.shared.change()).count()
    }

    /// The view is whole again: says so, and tells of the changes.
    async fn hand_on(&mut self, received: Instant) {
        let mut changes = std::mem::take(&mut self.changes);
        {
            let mut view = self.shared.change();
            view.synced = true;
            changes.iter_mut().for_each(|change| change.name_machine(&view));
        }
        self.health.send_if_modified(|health| {
            let news = !matches!(health, Health::Synced);
            *health = Health::Synced;
            news
        });
        self.shown.send_replace(self.token.clone());
        if !changes.is_empty() {
            // Nobody listens any more: `run` sees that too.
            let _ = self.batches.send(Batch { received, changes }).await;
        }
    }

    fn lose(&mut self, error: Error) {
        self.shared.change().synced = false;
        self.health.send_if_modified(|health| {
            let news = !matches!(health, Health::Lost(old) if old.kind() == error.kind());
            if news {
                tracing::warn!(%error, kind = error.kind(), "the pool cannot be seen");
            }
            *health = Health::Lost(error);
            news
        });
    }
}
