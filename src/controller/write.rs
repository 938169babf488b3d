//! Writes of a layer to the API server: its status, and our finalizer. One field manager, one verb.
//!
//! Called by `layer` alone. Each write names the version of the object that it was decided on, and the API server refuses it once that is
//! not the newest: what is in a status are records, and whoever slept through another's must not put older ones in their place. What other
//! tools note on a layer moves its version too, and decides nothing: such a write is made on the newest version instead. Otherwise a tool
//! that writes more often than a pass takes would hold a layer up for ever, and nobody would be told.

use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use super::pace::Pace;
use crate::api::{FIELD_MANAGER, FINALIZER, PlatformLayer, PlatformLayerStatus, REQUESTED_AT};

/// How often one write is tried on a layer that others keep writing on; after that it is decided anew.
const TRIES: usize = 8;

/// Why a write to the API server failed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("somebody has written on the layer since it was read, or it is gone")]
    Outdated,
    #[error("the API server refused the write")]
    Refused(#[source] kube::Error),
    #[error("the API server did not answer the write in time")]
    TimedOut,
}

/// Writes a status where it differs; returns whether it did.
pub async fn publish(
    api: &Api<PlatformLayer>,
    pace: &Pace,
    layer: &PlatformLayer,
    status: &PlatformLayerStatus,
) -> Result<bool, WriteError> {
    if layer.status.as_ref() == Some(status) {
        return Ok(false);
    }
    apply(api, pace, layer, Some("status"), json!({ "status": status })).await?;
    Ok(true)
}

/// Puts our finalizer on, or takes it off. Returns the layer with it: a status can be written on that.
pub async fn set_finalizer(
    api: &Api<PlatformLayer>,
    pace: &Pace,
    layer: &PlatformLayer,
    on: bool,
) -> Result<PlatformLayer, WriteError> {
    let finalizers = if on { &[FINALIZER][..] } else { &[] };
    apply(api, pace, layer, None, json!({ "metadata": { "finalizers": finalizers } })).await
}

/// Writes on `layer`, or on the newest version of it that is the same to us.
async fn apply(
    api: &Api<PlatformLayer>,
    pace: &Pace,
    layer: &PlatformLayer,
    subresource: Option<&str>,
    mut document: Value,
) -> Result<PlatformLayer, WriteError> {
    let (name, params) = (layer.name_any(), PatchParams::apply(FIELD_MANAGER).force());
    document["apiVersion"] = json!(PlatformLayer::api_version(&()));
    document["kind"] = json!(PlatformLayer::kind(&()));
    // With the uid an apply can change this object, and never make another of its name; with the version, nothing that was not read.
    document["metadata"]["name"] = json!(name);
    document["metadata"]["uid"] = json!(layer.uid());
    document["metadata"]["resourceVersion"] = json!(layer.resource_version());
    for _ in 0..TRIES {
        let patch = Patch::Apply(&document);
        let written = match subresource {
            Some(part) => bounded(pace, api.patch_subresource(part, &name, &params, &patch)).await,
            None => bounded(pace, api.patch(&name, &params, &patch)).await,
        };
        let Err(WriteError::Outdated) = written else { return written };
        let newest = bounded(pace, api.get_opt(&name)).await?;
        let newest = newest.filter(|now| is_same(now, layer)).ok_or(WriteError::Outdated)?;
        document["metadata"]["resourceVersion"] = json!(newest.resource_version());
    }
    Err(WriteError::Outdated)
}

/// Is everything of it as it was that a decision looks at?
fn is_same(now: &PlatformLayer, then: &PlatformLayer) -> bool {
    let held = |l: &PlatformLayer| l.finalizers().iter().any(|f| f == FINALIZER);
    now.uid() == then.uid()
        && now.metadata.generation == then.metadata.generation
        && now.metadata.deletion_timestamp == then.metadata.deletion_timestamp
        && held(now) == held(then)
        && now.annotations().get(REQUESTED_AT) == then.annotations().get(REQUESTED_AT)
        && now.status == then.status
}

async fn bounded<T>(pace: &Pace, write: impl Future<Output = Result<T, kube::Error>>) -> Result<T, WriteError> {
    match tokio::time::timeout(pace.write, write).await {
        Ok(Err(kube::Error::Api(refusal))) if refusal.code == 409 => Err(WriteError::Outdated),
        Ok(done) => done.map_err(WriteError::Refused),
        Err(_elapsed) => Err(WriteError::TimedOut),
    }
}
