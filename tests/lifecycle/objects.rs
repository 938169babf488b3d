//! Objects of the API server: two of one name, one that cannot be read, a Connector that breaks.

use kube::api::{Patch, PatchParams};
use lamina::api::ConditionType;
use lamina::sim::restart;
use serde_json::json;

use crate::common::eventually;
use crate::common::hands::Hands;
use crate::common::rig::{Rig, disk, quick, ready, says, status, uid};

#[tokio::test(flavor = "multi_thread")]
async fn the_younger_of_two_with_one_name_stalls() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    let named = json!({"layerName": "same", "machine": {"powerOn": false}, "deletionPolicy": "Delete"});
    rig.layer("older", named.clone()).await;
    let older = rig.until_reason("older", "StartMachine").await;
    let calls = rig.sim.pool.log.number();
    // Ages are told by the second; the uid decides between those of one.
    rig.layer("younger", named).await;
    eventually("one of the two stalls", async || {
        let younger = rig.layers().get("younger").await.ok()?;
        let told = ready(&younger)?;
        (told.0 == "NameConflict" && told.1.contains("older")).then_some(())
    })
    .await;
    assert_eq!(rig.hands.of_layer(&uid(&older)).await.len(), 3);
    assert_eq!(rig.sim.pool.log.number(), calls, "nothing is done for either");
    rig.delete("older").await;
    rig.until_gone("older").await;
    rig.until_reason("younger", "StartMachine").await;
}

/// What the API server took and we cannot read: told in an event; all others go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_cannot_be_read_holds_nobody_up() {
    let rig = Rig::new().await;
    rig.layer("odd", json!({"suspend": true})).await;
    // A time that RFC 3339 allows and no clock of ours reaches.
    let current = json!({"version": "0", "disk": "x", "finalizedAt": "9999-12-31T23:59:59Z"});
    let broken = Patch::Merge(json!({"status": {"current": current}}));
    let broken: Result<_, _> = kube::Api::<kube::api::DynamicObject>::namespaced_with(
        rig.client.clone(),
        &rig.namespace,
        &kube::api::ApiResource::erase::<lamina::api::PlatformLayer>(&()),
    )
    .patch_status("odd", &PatchParams::default(), &broken)
    .await;
    broken.expect("the API server takes it");
    assert!(rig.layers().get("odd").await.is_err(), "it cannot be read");
    let _controller = rig.run().await;
    rig.layer("fine", json!({"machine": {"powerOn": false}})).await;
    rig.until_reason("fine", "StartMachine").await;
    let told = eventually("an event", async || rig.events("odd").await.into_iter().next()).await;
    assert!(told.starts_with("InvalidObject: ") && told.contains("timestamp"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_that_breaks_and_comes_back_changes_no_phase() {
    let rig = Rig::new().await;
    rig.guest("done", quick());
    let _controller = rig.run().await;
    rig.layer("done", json!({"finalize": {"policy": "OnShutdown"}})).await;
    rig.layer("going", json!({"machine": {"powerOn": false}})).await;
    rig.until_finalized("done", "1").await;
    let before = rig.until_reason("going", "StartMachine").await;
    let calls = rig.sim.pool.log.number();
    restart::stop(&rig.sim.pool, true).await;
    let blind = rig
        .until("going", "told that nobody can look", |l| {
            says(l, ConditionType::ConnectorReady) == "False/ConnectorNotReady"
                && says(l, ConditionType::Ready) == "False/ConnectorNotReady"
        })
        .await;
    assert_eq!((status(&blind).phase, disk(&blind)), (status(&before).phase, disk(&before)));
    let kept =
        rig.until("done", "told too", |l| says(l, ConditionType::ConnectorReady) == "False/ConnectorNotReady").await;
    assert_eq!(says(&kept, ConditionType::Ready), "True/Finalized");
    assert_eq!(rig.sim.pool.log.number(), calls, "nothing is changed meanwhile");
    restart::start(&rig.sim.pool);
    let back = rig.until_reason("going", "StartMachine").await;
    assert_eq!(says(&back, ConditionType::ConnectorReady), "True/Connected");
    rig.patch("going", json!({"machine": {"powerOn": true}, "finalize": {"policy": "OnShutdown"}})).await;
    rig.guest("going", quick());
    rig.until_finalized("going", "1").await;
    let done = rig.until_finalized("done", "1").await;
    assert_eq!(says(&done, ConditionType::Ready), "True/Finalized");
    // The restart ended all sessions.
    Hands::of(&rig.sim).await.assert_tidy().await;
}

/// A Connector that does not exist yet is awaited.
#[tokio::test(flavor = "multi_thread")]
async fn a_connector_that_comes_later_is_found() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    rig.layer("early", json!({"connectorRef": {"name": "later"}, "machine": {"powerOn": false}})).await;
    let waits = rig.until_reason("early", "ConnectorNotFound").await;
    assert!(ready(&waits).is_some_and(|(_, m)| m.contains("'later'")), "{waits:?}");
    let connector = rig.connector();
    let connector = connector.split_once("---\n").expect("two objects").1.replacen("name: lab}", "name: later}", 1);
    rig.apply(&connector).await;
    rig.until_reason("early", "StartMachine").await;
}

/// A 65th version is refused before anything is made.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_versions_are_refused() {
    let rig = Rig::new().await;
    rig.layer("full", json!({"suspend": true})).await;
    let version =
        |n: i32| json!({"version": format!("v{n}"), "disk": n.to_string(), "finalizedAt": "2026-01-01T00:00:00Z"});
    let versions: Vec<_> = (0..64).map(version).collect();
    let full = json!({"status": {"phase": "Finalized", "current": versions[63].clone(), "versions": versions}});
    let full = Patch::Merge(full);
    rig.layers().patch_status("full", &PatchParams::default(), &full).await.expect("a status");
    let _controller = rig.run().await;
    rig.patch("full", json!({"suspend": false})).await;
    let stalled = rig.until_reason("full", "TooManyVersions").await;
    assert_eq!(status(&stalled).versions.len(), 64);
    assert_eq!(rig.sim.pool.log.number(), 0);
}
