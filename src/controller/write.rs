//! Writes of a layer to the API server: its status, and our finalizer. One field manager, one verb.
//!
//! Called by `layer` alone. Each write names the version of the object that it was decided on, and the API server refuses it once that is
//! not the newest: what is in a status are records, and whoever slept through another's must not put older ones in their place.

use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use super::pace::Pace;
use crate::api::{FIELD_MANAGER, PlatformLayer, PlatformLayerStatus};

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

fn params() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
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
    let document = json!({
        "apiVersion": PlatformLayer::api_version(&()),
        "kind": PlatformLayer::kind(&()),
        "metadata": identity(layer),
        "status": status,
    });
    bounded(pace, api.patch_status(&layer.name_any(), &params(), &Patch::Apply(&document))).await?;
    Ok(true)
}

/// Puts our finalizer on, or takes it off. Returns the layer with it: a status can be written on that.
pub async fn set_finalizer(
    api: &Api<PlatformLayer>,
    pace: &Pace,
    layer: &PlatformLayer,
    on: bool,
) -> Result<PlatformLayer, WriteError> {
    let mut metadata = identity(layer);
    metadata["finalizers"] = json!(if on { &[crate::api::FINALIZER][..] } else { &[] });
    let document = json!({
        "apiVersion": PlatformLayer::api_version(&()),
        "kind": PlatformLayer::kind(&()),
        "metadata": metadata,
    });
    bounded(pace, api.patch(&layer.name_any(), &params(), &Patch::Apply(&document))).await
}

/// With the uid an apply can change this object, and never make another of its name; with the version, nothing that was not read.
fn identity(layer: &PlatformLayer) -> Value {
    json!({ "name": layer.name_any(), "uid": layer.uid(), "resourceVersion": layer.resource_version() })
}

async fn bounded<T>(pace: &Pace, write: impl Future<Output = Result<T, kube::Error>>) -> Result<T, WriteError> {
    match tokio::time::timeout(pace.write, write).await {
        Ok(Err(kube::Error::Api(refusal))) if refusal.code == 409 => Err(WriteError::Outdated),
        Ok(done) => done.map_err(WriteError::Refused),
        Err(_elapsed) => Err(WriteError::TimedOut),
    }
}
