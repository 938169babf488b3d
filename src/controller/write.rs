//! Writes of a layer to the API server: its status, and our finalizer. One field manager, one verb.
//!
//! Called by `layer` alone.

use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde_json::json;

use super::pace::Pace;
use crate::api::{FIELD_MANAGER, PlatformLayer, PlatformLayerStatus};

/// Why a write to the API server failed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
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
        // With the uid an apply can change this object, and never make another of its name.
        "metadata": { "name": layer.name_any(), "uid": layer.uid() },
        "status": status,
    });
    bounded(pace, api.patch_status(&layer.name_any(), &params(), &Patch::Apply(&document))).await?;
    Ok(true)
}

/// Puts our finalizer on, or takes it off.
pub async fn set_finalizer(
    api: &Api<PlatformLayer>,
    pace: &Pace,
    layer: &PlatformLayer,
    on: bool,
) -> Result<(), WriteError> {
    let finalizers: &[&str] = if on { &[crate::api::FINALIZER] } else { &[] };
    let document = json!({
        "apiVersion": PlatformLayer::api_version(&()),
        "kind": PlatformLayer::kind(&()),
        "metadata": { "name": layer.name_any(), "uid": layer.uid(), "finalizers": finalizers },
    });
    bounded(pace, api.patch(&layer.name_any(), &params(), &Patch::Apply(&document))).await?;
    Ok(())
}

async fn bounded<T>(pace: &Pace, write: impl Future<Output = Result<T, kube::Error>>) -> Result<T, WriteError> {
    match tokio::time::timeout(pace.write, write).await {
        Ok(done) => done.map_err(WriteError::Refused),
        Err(_elapsed) => Err(WriteError::TimedOut),
    }
}
