//! Many finalized layers at once: one walks all phases for real, the others are copies of it, in the pool (the frozen disk's row) and in the
//! API server (the object with its status), each under its own name, uid, disk and keys.
//!
//! Whoever uses it checks that the controller takes them for what they seem: it must write nothing on them.

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use lamina::api::{Connector, FIELD_MANAGER, PlatformLayer};
use lamina::domain::identity::{Lineage, Role};
use lamina::sim::schema::Record;
use serde_json::{Value, json};

use super::rig::{Rig, quick, status, uid};

/// The one that is real. Its name is replaced wherever it occurs.
const FIRST: &str = "first-of-all";

/// Makes so many finalized layers, and leaves no controller behind.
pub async fn finalized(rig: &Rig, layers: usize) {
    rig.guest(FIRST, quick());
    let controller = rig.run().await;
    rig.layer(FIRST, json!({"finalize": {"policy": "OnShutdown"}})).await;
    let first = rig.until_finalized(FIRST, "1").await;
    let disk = status(&first).versions[0].disk.clone();
    let row = rig.hands.disk(&disk).await.expect("F").row.to_string();
    let cluster = Api::<Namespace>::all(rig.client.clone()).get("kube-system").await.expect("a cluster");
    let cluster = cluster.uid().expect("a uid");
    let op = |layer: String| {
        let (cluster, version) = (cluster.clone(), "1".to_owned());
        Lineage::Layer { cluster, layer, version, role: Role::Frozen }.opid().0
    };
    let document = json!({
        "apiVersion": "lamina.dev/v1alpha1", "kind": "PlatformLayer", "metadata": {"name": FIRST}, "status": first.status,
    })
    .to_string();
    drop(controller);
    let (api, manager) = (rig.layers(), PatchParams::apply(FIELD_MANAGER).force());
    let copy = async |n: usize| {
        let name = format!("copy-{n:04}");
        let mut fresh = PlatformLayer::new(&name, first.spec.clone());
        fresh.metadata.finalizers = first.metadata.finalizers.clone();
        let made = api.create(&PostParams::default(), &fresh).await.expect("a layer");
        let its_disk = uuid::Uuid::new_v4().to_string();
        let here = |text: &str| {
            let text = text.replace(FIRST, &name).replace(&disk, &its_disk);
            text.replace(&op(uid(&first)), &op(uid(&made))).replace(&uid(&first), &uid(&made))
        };
        let record: Record = serde_json::from_str(&here(&row)).expect("a row");
        rig.sim.pool.db().create("VDI", record.iter().map(|(k, v)| (k.as_str(), v.clone())));
        let status: Value = serde_json::from_str(&here(&document)).expect("a document");
        api.patch_status(&name, &manager, &Patch::Apply(&status)).await.expect("a status");
    };
    stream::iter(1..layers).for_each_concurrent(16, copy).await;
    // The Connector counts its layers, and no other controller shall have that to write.
    let _controller = rig.run().await;
    let counted = |c: Option<&Connector>| {
        let told = c.and_then(|c| c.status.as_ref()?.layers);
        told.is_some_and(|told| usize::try_from(told) == Ok(layers))
    };
    super::until(rig.connectors(), "lab", "all layers are counted", counted).await;
}
