//! The audit log: one JSON line for every changing call to a pool and every transition, on the log's own target `audit`. Whoever lost a
//! disk reads it first. Never a secret, never upstream text.

use kube::ResourceExt;

use crate::api::PlatformLayer;
use crate::xapi::client::CallRecord;

tokio::task_local! {
    static WHOSE: (String, String);
}

/// Runs a step; calls in it are told as this layer's.
pub async fn scope<T>(layer: &PlatformLayer, version: &str, step: impl Future<Output = T>) -> T {
    let name = format!("{}/{}", layer.namespace().unwrap_or_default(), layer.name_any());
    WHOSE.scope((name, version.to_owned()), step).await
}

/// One call, as the client saw it end.
pub fn call(record: &CallRecord<'_>) {
    if !record.mutating {
        return;
    }
    let (layer, version) = WHOSE.try_with(Clone::clone).unwrap_or_default();
    let outcome = record.error.map_or("ok", |e| e.kind());
    tracing::info!(
        target: "audit",
        layer,
        version,
        call = record.method,
        object = record.object.unwrap_or_default(),
        op = record.op.unwrap_or_default(),
        outcome,
        milliseconds = u64::try_from(record.duration.as_millis()).unwrap_or(u64::MAX),
        "call"
    );
}

/// One transition of a layer.
pub fn transition(layer: &PlatformLayer, phase: &str, reason: &str) {
    let name = format!("{}/{}", layer.namespace().unwrap_or_default(), layer.name_any());
    tracing::info!(target: "audit", layer = name, version = layer.spec.version, phase, reason, "transition");
}
