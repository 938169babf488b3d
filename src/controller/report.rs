//! Events, metrics and audit lines: after the status write, and whatever becomes of them fails nothing.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};

use super::audit;
use super::context::Context;
use super::status;
use crate::api::condition::{ConditionType, find};
use crate::api::layer_status::FrozenVersion;
use crate::api::reason::{Fault, Reason};
use crate::api::{Phase, PlatformLayer, PlatformLayerStatus};

/// An event may be this long.
const LONGEST_NOTE: usize = 1000;

/// Tells what the status write changed: a new phase, a new reason, a disk that is gone, new findings.
pub async fn transition(ctx: &Context, layer: &PlatformLayer, status: &PlatformLayerStatus) {
    let old = layer.status.as_ref();
    let ready = |s: &PlatformLayerStatus| find(&s.conditions, ConditionType::Ready).cloned();
    let Some(now) = ready(status) else { return };
    let phase = status.phase.map_or("", Phase::as_str);
    let another_phase = old.and_then(|s| s.phase) != status.phase;
    let another_reason = old.and_then(ready).is_none_or(|before| before.reason != now.reason);
    if another_phase || another_reason {
        audit::transition(layer, phase, &now.reason);
    }
    if another_phase {
        let meaning = status.history.last().and_then(|entry| entry.message.as_deref());
        publish(ctx, layer, EventType::Normal, phase, meaning.unwrap_or(&now.message)).await;
    }
    if another_reason && now.reason != phase {
        let fault = Reason::parse(&now.reason).and_then(Reason::fault);
        let kind = if fault == Some(Fault::Stalled) || fault == Some(Fault::Retry) {
            EventType::Warning
        } else {
            EventType::Normal
        };
        publish(ctx, layer, kind, &now.reason, &now.message).await;
    }
    // The wanted version's is told by Ready.
    let told = |v: &FrozenVersion| old.is_some_and(|s| s.versions.iter().any(|o| o.version == v.version && o.lost));
    for v in status.versions.iter().filter(|v| v.lost && v.version != layer.spec.version && !told(v)) {
        let note = format!(
            "the disk {} of finalized version '{}' is gone from the pool: nothing can be made from it any more. Restore it if it is needed; \
             nothing is made in its place",
            v.disk, v.version
        );
        publish(ctx, layer, EventType::Warning, Reason::DiskLost.as_str(), &note).await;
    }
    let known: Vec<_> = old.iter().filter_map(|s| s.integrity.as_ref()).flat_map(|i| &i.findings).collect();
    for finding in status.integrity.iter().flat_map(|i| &i.findings).filter(|f| !known.contains(f)) {
        let note = format!(
            "{}. {}",
            finding.detail.as_deref().unwrap_or_default(),
            finding.remedy.as_deref().unwrap_or_default()
        );
        publish(ctx, layer, EventType::Warning, &finding.reason, &note).await;
    }
}

async fn publish(ctx: &Context, layer: &PlatformLayer, type_: EventType, reason: &str, note: &str) {
    let note = note.chars().take(LONGEST_NOTE).collect();
    let event =
        Event { type_, reason: reason.to_owned(), note: Some(note), action: "Reconcile".to_owned(), secondary: None };
    tell(ctx, &event, &layer.object_ref(&())).await;
}

async fn tell(ctx: &Context, event: &Event, about: &ObjectReference) {
    let sent = tokio::time::timeout(ctx.pace.write, ctx.recorder.publish(event, about)).await;
    match sent {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(error = %crate::telemetry::chain(&error), reason = %event.reason, "an event was not recorded")
        }
        Err(_elapsed) => tracing::warn!(reason = %event.reason, "an event was not recorded in time"),
    }
}

/// An object that does not parse gets an event, since its status cannot be composed.
pub async fn invalid(ctx: &Context, meta: &ObjectMeta, error: &str) {
    let about = ObjectReference {
        api_version: Some(PlatformLayer::api_version(&()).into_owned()),
        kind: Some(PlatformLayer::kind(&()).into_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        ..ObjectReference::default()
    };
    let note = format!("the object cannot be read: {error}. Correct the field that is named")
        .chars()
        .take(LONGEST_NOTE)
        .collect();
    let event = Event {
        type_: EventType::Warning,
        reason: Reason::InvalidObject.as_str().to_owned(),
        note: Some(note),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    tell(ctx, &event, &about).await;
}

/// Gauges of phases and waits. Not of a layer that went while it was looked at: nobody would take it off them again.
pub fn measure(ctx: &Context, layer: &PlatformLayer, status: &PlatformLayerStatus) {
    let stored = ctx.layers.get(&ObjectRef::new(&layer.name_any()).within(&layer.namespace().unwrap_or_default()));
    if stored.is_none_or(|stored| stored.meta().uid != layer.meta().uid) {
        return;
    }
    let phase = status.phase.map_or("", Phase::as_str);
    ctx.metrics.layer(&layer.uid().unwrap_or_default(), phase, status::wait(status).map(Reason::as_str));
}
