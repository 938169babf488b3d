//! The audit log: one JSON line for every changing call to a pool and every transition, on the log's own target `audit`. Whoever lost a
//! disk reads it first. Never a secret, never upstream text.

use kube::ResourceExt;

use crate::api::PlatformLayer;
use crate::xapi::client::CallRecord;
use crate::xapi::view::View;
use crate::xapi::wire::Ref;

tokio::task_local! {
    static STEP: Step;
}

/// Whose calls are made, and the pool that they were decided on.
#[derive(Clone, Default)]
struct Step {
    layer: String,
    version: String,
    view: View,
}

impl Step {
    /// The uuid of an object that a call names: references die with xapi, and say nothing to a person. None for what this very step made: the
    /// task of a stream, whose disk the stream's own line names.
    fn uuid(&self, object: &str) -> &str {
        let (r, v) = (Ref(object.to_owned()), &self.view);
        let disk = v.vdis.get(&r).map(|row| &row.uuid).or_else(|| v.vms.get(&r).map(|row| &row.uuid));
        let part = || v.vbds.get(&r).map(|row| &row.uuid).or_else(|| v.vifs.get(&r).map(|row| &row.uuid));
        let other = || v.srs.get(&r).map(|row| &row.uuid).or_else(|| v.tasks.get(&r).map(|row| &row.uuid));
        disk.or_else(part).or_else(other).map_or("", String::as_str)
    }
}

/// Runs a step; calls in it are told as this layer's. `view`: what the step was decided on.
pub async fn scope<T>(layer: &PlatformLayer, version: &str, view: &View, step: impl Future<Output = T>) -> T {
    let whose = Step { layer: name(layer), version: version.to_owned(), view: view.clone() };
    STEP.scope(whose, step).await
}

/// One call, as the client saw it end.
pub fn call(record: &CallRecord<'_>) {
    if !record.mutating {
        return;
    }
    let step = STEP.try_with(Clone::clone).unwrap_or_default();
    let outcome = record.error.map_or("ok", |e| e.kind());
    tracing::info!(
        target: "audit",
        layer = step.layer,
        version = step.version,
        call = record.method,
        object = step.uuid(record.object.unwrap_or_default()),
        op = record.op.unwrap_or_default(),
        outcome,
        milliseconds = u64::try_from(record.duration.as_millis()).unwrap_or(u64::MAX),
        "call"
    );
}

/// A layer is in another phase, or shows another reason.
pub fn transition(layer: &PlatformLayer, phase: &str, reason: &str) {
    tracing::info!(target: "audit", layer = name(layer), version = layer.spec.version, phase, reason, "transition");
}

fn name(layer: &PlatformLayer) -> String {
    format!("{}/{}", layer.namespace().unwrap_or_default(), layer.name_any())
}
