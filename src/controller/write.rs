//! Writes of a layer or a Connector to the API server: its status, and our finalizer. One field manager, one verb.
//!
//! Called by `layer` and `connector_write`. Each write names the version of the object that it was decided on, and the API server refuses it
//! once that is not the newest: what is in a status are records, and whoever slept through another's must not put older ones in their
//! place. What other tools note on an object moves its version too, and decides nothing: such a write is made on the newest version
//! instead. Otherwise a tool that writes more often than a pass takes would hold it up for ever, and nobody would be told.

use std::fmt::Debug;

use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::pace::Pace;
use crate::api::{FIELD_MANAGER, FINALIZER, PlatformLayer, PlatformLayerStatus, REQUESTED_AT};

/// How often one write is tried on an object that others keep writing on; after that it is decided anew.
const TRIES: usize = 8;

/// Why a write to the API server failed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("somebody has written on the object since it was read, or it is gone")]
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
    apply(api, pace, layer, Some("status"), json!({ "status": status }), |l| l.status.as_ref()).await?;
    Ok(true)
}

/// Puts our finalizer on, or takes it off. Returns the layer with it: a status can be written on that.
pub async fn set_finalizer(
    api: &Api<PlatformLayer>,
    pace: &Pace,
    layer: &PlatformLayer,
    on: bool,
) -> Result<PlatformLayer, WriteError> {
    apply(api, pace, layer, None, finalizers(on), |l| l.status.as_ref()).await
}

/// For [`apply`].
pub fn finalizers(on: bool) -> Value {
    let finalizers = if on { &[FINALIZER][..] } else { &[] };
    json!({ "metadata": { "finalizers": finalizers } })
}

/// Writes on `object`, or on the newest version of it that is the same to us, `records` included.
pub async fn apply<K, R: PartialEq>(
    api: &Api<K>,
    pace: &Pace,
    object: &K,
    subresource: Option<&str>,
    mut document: Value,
    records: impl Fn(&K) -> Option<&R>,
) -> Result<K, WriteError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let (name, params) = (object.name_any(), PatchParams::apply(FIELD_MANAGER).force());
    document["apiVersion"] = json!(K::api_version(&()));
    document["kind"] = json!(K::kind(&()));
    // With the uid an apply can change this object, and never make another of its name; with the version, nothing that was not read.
    document["metadata"]["name"] = json!(name);
    document["metadata"]["uid"] = json!(object.uid());
    document["metadata"]["resourceVersion"] = json!(object.resource_version());
    for _ in 0..TRIES {
        let patch = Patch::Apply(&document);
        let written = match subresource {
            Some(part) => bounded(pace, api.patch_subresource(part, &name, &params, &patch)).await,
            None => bounded(pace, api.patch(&name, &params, &patch)).await,
        };
        let Err(WriteError::Outdated) = written else { return written };
        let newest = bounded(pace, api.get_opt(&name)).await?;
        let same = |now: &K| is_same(now, object) && records(now) == records(object);
        let newest = newest.filter(same).ok_or(WriteError::Outdated)?;
        document["metadata"]["resourceVersion"] = json!(newest.resource_version());
    }
    Err(WriteError::Outdated)
}

/// Is everything of it as it was that a decision looks at, but for its status?
fn is_same(now: &impl ResourceExt, then: &impl ResourceExt) -> bool {
    let held = |finalizers: &[String]| finalizers.iter().any(|f| f == FINALIZER);
    now.uid() == then.uid()
        && now.meta().generation == then.meta().generation
        && now.meta().deletion_timestamp == then.meta().deletion_timestamp
        && held(now.finalizers()) == held(then.finalizers())
        && now.annotations().get(REQUESTED_AT) == then.annotations().get(REQUESTED_AT)
}

async fn bounded<T>(pace: &Pace, write: impl Future<Output = Result<T, kube::Error>>) -> Result<T, WriteError> {
    match tokio::time::timeout(pace.write, write).await {
        Ok(Err(kube::Error::Api(refusal))) if refusal.code == 409 => Err(WriteError::Outdated),
        Ok(done) => done.map_err(WriteError::Refused),
        Err(_elapsed) => Err(WriteError::TimedOut),
    }
}
