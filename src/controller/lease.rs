//! Leader election by a Lease: tells which replica should act. Run by `controller::run`; the XAPI client asks the [`Deadline`] right before
//! every changing call.
//!
//! ```text
//!              record changed: its time starts anew
//!                  ┌──────┐
//!                  ▼      │
//!   start ──▶ candidate ──┘
//!                  │  no record: create it · released, or unchanged for as long as it says: replace it
//!                  ▼
//!   ┌─────────▶ leader ──── stop ─────────────────────▶ released: the next one need not wait
//!   │ replace,     │
//!   └─ every retry ┤
//!                  └── the record names another, is gone, or was not replaced within `renew` ──▶ Error: the process ends
//! ```
//!
//! Every write is a `replace` with the resourceVersion that was read, so that of two writers one loses. Whether a record has expired is
//! judged by our own monotonic clock since we last saw it change, never by the times in it: clocks of machines differ. A lost lease is never
//! won back in the same process, whose calls on the way nobody could tell apart from the successor's.
//!
//! What it cannot do: stop a process that was paused between the check and the call. Marks and tags on the pool are for that.
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::telemetry::chain;

/// Name of the Lease, in the controller's own namespace.
pub const NAME: &str = "lamina";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the lease was taken over by {0}")]
    TakenOver(String),
    #[error("the lease was deleted")]
    Deleted,
    #[error("the lease could not be renewed within {0:?}")]
    NotRenewed(Duration),
}

/// How long everything takes. Tests are in a hurry; production is [`Terms::default`].
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// How long others leave an unchanged record alone.
    pub duration: Duration,
    /// How long after the last renewal we act. The rest of `duration` is for calls that are under way.
    pub renew: Duration,
    /// Between two attempts.
    pub retry: Duration,
    /// For one read or write; the client's own retries could hold it for minutes.
    pub call: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(30),
            renew: Duration::from_secs(20),
            retry: Duration::from_secs(5),
            call: Duration::from_secs(5),
        }
    }
}

/// Until when this process may act; shared with everybody who sends changing calls.
#[derive(Debug, Clone)]
pub struct Deadline(watch::Receiver<Option<Instant>>);

impl Deadline {
    /// Whether a changing call may be sent now.
    pub fn holds(&self) -> bool {
        self.0.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// For a controller that was told to run without election: somebody else vouches that it is the only one.
    pub fn none() -> Self {
        const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
        Self(watch::channel(Some(Instant::now() + CENTURY)).1)
    }
}

/// Who wants to lead.
pub struct Candidate {
    api: Api<Lease>,
    identity: String,
    terms: Terms,
}

impl Candidate {
    /// `identity` must be another one for each process, also for each restart of the same pod.
    pub fn new(client: Client, namespace: &str, identity: String, terms: Terms) -> Self {
        Self { api: Api::namespaced(client, namespace), identity, terms }
    }

    /// Waits until this process leads. What the API server refuses meanwhile is logged and tried again: cancel by dropping.
    /// `known` is called when the record was read for the first time: from then on we know whether we lead.
    pub async fn acquire(self, known: impl Fn()) -> Leader {
        let mut seen: Option<(Option<String>, Instant)> = None;
        loop {
            let asked = Instant::now();
            match self.attempt(&mut seen).await {
                Ok(Some(record)) => {
                    known();
                    info!(identity = self.identity, "leading");
                    let until = watch::Sender::new(Some(asked + self.terms.renew));
                    return Leader { candidate: self, record, renewed: asked, until };
                }
                Ok(None) => known(),
                Err(error) => warn!(error, "cannot read or write the lease"),
            }
            tokio::time::sleep(self.terms.retry).await;
        }
    }

    /// The record, if it is ours now. `seen` is the version of it that was read last, and when it was first seen.
    async fn attempt(&self, seen: &mut Option<(Option<String>, Instant)>) -> Result<Option<Lease>, String> {
        let Some(record) = self.bounded(self.api.get_opt(NAME)).await? else {
            let fresh = Lease { metadata: ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() }, spec: None };
            let claimed = self.filled(fresh, &self.identity);
            return won(self.bounded(self.api.create(&PostParams::default(), &claimed)).await);
        };
        if seen.as_ref().is_none_or(|(version, _)| *version != record.resource_version()) {
            *seen = Some((record.resource_version(), Instant::now()));
        }
        let spec = record.spec.clone().unwrap_or_default();
        let term = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(self.terms.duration, Duration::from_secs);
        let expired = seen.as_ref().is_some_and(|(_, since)| since.elapsed() >= term);
        if !expired && !holder(&record).is_empty() {
            return Ok(None);
        }
        won(self.replace(&record, &self.identity).await)
    }

    /// Writes `record` anew with `holder`, if nobody has written it since it was read.
    async fn replace(&self, record: &Lease, holder: &str) -> Result<Lease, Refused> {
        self.bounded(self.api.replace(NAME, &PostParams::default(), &self.filled(record.clone(), holder))).await
    }

    fn filled(&self, mut record: Lease, holder: &str) -> Lease {
        let now = Some(MicroTime(Timestamp::now()));
        let before = record.spec.unwrap_or_default();
        let moved = before.holder_identity.as_deref() != Some(holder);
        record.spec = Some(LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            // Rounded up: the record knows whole seconds only.
            lease_duration_seconds: i32::try_from(self.terms.duration.as_millis().div_ceil(1000)).ok(),
            renew_time: now.clone(),
            acquire_time: if moved { now } else { before.acquire_time },
            lease_transitions: Some(before.lease_transitions.unwrap_or_default() + i32::from(moved)),
            ..LeaseSpec::default()
        });
        record
    }

    async fn bounded<T>(&self, call: impl Future<Output = kube::Result<T>>) -> Result<T, Refused> {
        match timeout(self.terms.call, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(Refused::Overtaken),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(Refused::Gone),
            Ok(Err(error)) => Err(Refused::Failed(chain(&error))),
            Err(_) => Err(Refused::Failed(format!("no answer within {:?}", self.terms.call))),
        }
    }
}

/// Why a call on the record came to nothing.
enum Refused {
    /// Somebody wrote it first (or our own write, whose answer was lost).
    Overtaken,
    Gone,
    Failed(String),
}

impl From<Refused> for String {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Overtaken => "somebody else was faster".to_owned(),
            Refused::Gone => "the lease or its namespace is gone".to_owned(),
            Refused::Failed(text) => text,
        }
    }
}

/// Losing the race for a free record is no trouble.
fn won(written: Result<Lease, Refused>) -> Result<Option<Lease>, String> {
    match written {
        Ok(record) => Ok(Some(record)),
        Err(Refused::Overtaken) => Ok(None),
        Err(refused) => Err(refused.into()),
    }
}

fn holder(record: &Lease) -> String {
    record.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default()
}

/// Who leads, until [`Leader::keep`] returns.
pub struct Leader {
    candidate: Candidate,
    record: Lease,
    /// When the write that made `record` was sent.
    renewed: Instant,
    until: watch::Sender<Option<Instant>>,
}

impl Leader {
    pub fn deadline(&self) -> Deadline {
        Deadline(self.until.subscribe())
    }

    /// Renews until `stop`, then releases: stop everything that changes something *before*. An error means that another may lead by now:
    /// the process must end.
    pub async fn keep(mut self, stop: CancellationToken) -> Result<(), Error> {
        let Terms { retry, renew, .. } = self.candidate.terms;
        let kept = loop {
            let wait = retry.min(renew.saturating_sub(self.renewed.elapsed()));
            if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                break Ok(());
            }
            // Not cancelled half way: a write whose answer nobody read could not be followed by the release.
            match self.renew().await {
                Ok(()) => {}
                Err(Lost::For(error)) => break Err(error),
                Err(Lost::NotYet(error)) => {
                    warn!(error, "the lease was not renewed");
                    if self.renewed.elapsed() >= renew {
                        break Err(Error::NotRenewed(renew));
                    }
                }
            }
        };
        self.until.send_replace(None);
        if kept.is_ok() {
            // It expires by itself if this fails.
            if let Err(refused) = self.candidate.replace(&self.record, "").await {
                warn!(error = String::from(refused), "the lease was not released");
            }
        }
        kept
    }

    async fn renew(&mut self) -> Result<(), Lost> {
        let sent = Instant::now();
        let written = match self.candidate.replace(&self.record, &self.candidate.identity).await {
            // Our own write, whose answer was lost, or a person's, who labelled it: still ours then, and no time to lose.
            Err(Refused::Overtaken) => {
                let record = self.candidate.bounded(self.candidate.api.get(NAME)).await?;
                if holder(&record) != self.candidate.identity {
                    return Err(Lost::For(Error::TakenOver(holder(&record))));
                }
                self.candidate.replace(&record, &self.candidate.identity).await
            }
            written => written,
        };
        self.record = written?;
        self.renewed = sent;
        self.until.send_replace(Some(sent + self.candidate.terms.renew));
        Ok(())
    }
}

enum Lost {
    For(Error),
    NotYet(String),
}

impl From<Refused> for Lost {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Gone => Self::For(Error::Deleted),
            Refused::Overtaken | Refused::Failed(_) => Self::NotYet(refused.into()),
        }
    }
}
