//! What is written on a Connector: status, finalizer, events. Called by `connector` alone; one field manager, one verb.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType};
use kube::{Api, Resource, ResourceExt};
use serde_json::{Value, json};

use super::context::{Context, Guarded};
use super::write::{self, WriteError};
use crate::api::condition::{ConditionType as C, find};
use crate::api::connector::ConnectorStatus;
use crate::api::reason::Reason;
use crate::api::{Connector, FINALIZER};

/// The longest note that the API server takes in an event, in characters.
const LONGEST_NOTE: usize = 1000;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the Kubernetes API refused to write Connector {0}")]
    Write(String, #[source] kube::Error),
    #[error("somebody has written on Connector {0} since it was read, or this process does not lead any more")]
    Outdated(String),
    #[error("the Kubernetes API did not answer a write of Connector {0} in time")]
    Slow(String),
}

/// Writes the status, if it differs.
pub async fn publish(ctx: &Context, guard: &Guarded<Connector>, status: &ConnectorStatus) -> Result<(), Error> {
    if told(guard) == Some(status) {
        return Ok(());
    }
    apply(ctx, guard, Some("status"), json!({ "status": status })).await?;
    ctx.metrics.status_write("connector");
    Ok(())
}

/// Holds the Connector, or lets it go.
pub async fn set_finalizer(ctx: &Context, guard: &Guarded<Connector>, held: bool) -> Result<(), Error> {
    if guard.finalizers().iter().any(|f| f == FINALIZER) == held {
        return Ok(());
    }
    apply(ctx, guard, None, write::finalizers(held)).await
}

fn told(guard: &Guarded<Connector>) -> Option<&ConnectorStatus> {
    guard.0.as_ref().ok()?.status.as_ref()
}

/// One server-side apply, by whoever leads. A refused one wakes nobody by itself: what it is older than does.
async fn apply(ctx: &Context, guard: &Guarded<Connector>, subresource: Option<&str>, part: Value) -> Result<(), Error> {
    let name = guard.name_any();
    if !ctx.deadline.holds() {
        return Err(Error::Outdated(name));
    }
    let api: Api<Guarded<Connector>> = Api::namespaced(ctx.client.clone(), &guard.namespace().unwrap_or_default());
    match write::apply(&api, &ctx.pace, guard, subresource, part, told).await {
        Ok(_) => Ok(()),
        // Gone: nothing is left to write on.
        Err(WriteError::Refused(kube::Error::Api(refusal))) if refusal.code == 404 => Ok(()),
        Err(WriteError::Outdated) => Err(Error::Outdated(name)),
        Err(WriteError::Refused(error)) => Err(Error::Write(name, error)),
        Err(WriteError::TimedOut) => Err(Error::Slow(name)),
    }
}

/// Tells what changed, as events: Ready, what is told beside it, and where the pool is led from. Fails nothing.
pub async fn announce(ctx: &Context, guard: &Guarded<Connector>, old: &ConnectorStatus, new: &ConnectorStatus) {
    for type_ in [C::Ready, C::PermissionsSufficient, C::TLSInsecure, C::Unclaimed] {
        let Some(now) = find(&new.conditions, type_) else { continue };
        let same = |before: &Condition| (&before.status, &before.reason) == (&now.status, &now.reason);
        // A check that is as it should be, or was not made, is no news beside Ready; one that Ready stands on was told with it.
        let told = type_ == C::PermissionsSufficient
            && (now.status != "False"
                || find(&new.conditions, C::Ready).is_some_and(|ready| ready.reason == now.reason));
        if told || find(&old.conditions, type_).is_some_and(same) {
            continue;
        }
        let trouble = type_ != C::Ready || Reason::parse(&now.reason).and_then(Reason::fault).is_some();
        tell(ctx, guard, if trouble { EventType::Warning } else { EventType::Normal }, &now.reason, &now.message).await;
    }
    if let (Some(before), Some(now)) = (&old.coordinator, &new.coordinator)
        && before != now
    {
        let note = format!("the pool's coordinator is {now} now, it was {before}");
        tell(ctx, guard, EventType::Normal, "CoordinatorChanged", &note).await;
    }
}

async fn tell(ctx: &Context, guard: &Guarded<Connector>, type_: EventType, reason: &str, note: &str) {
    let note = note.chars().take(LONGEST_NOTE).collect();
    let event =
        Event { type_, reason: reason.to_owned(), note: Some(note), action: "Check".to_owned(), secondary: None };
    match tokio::time::timeout(ctx.pace.write, ctx.recorder.publish(&event, &guard.object_ref(&()))).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(error = %crate::telemetry::chain(&error), "an event was not recorded"),
        Err(_elapsed) => tracing::warn!(reason, "an event was not recorded in time"),
    }
}
