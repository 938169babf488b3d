//! Deletion, in each phase and with each policy; discard; the shared base goes with its last user.

use lamina::api::PlatformLayer;
use serde_json::{Value, json};

use crate::common::rig::{Rig, disk, idle, quick, ready, status, uid};

const POLICIES: [&str; 3] = ["Retain", "Delete", "Orphan"];

/// Three layers, one of each policy, brought to where Ready says `reason`, then deleted. What is left is what each policy says.
async fn deleted_at(rig: &Rig, more: Value, reason: &str) {
    let _controller = rig.run().await;
    let mut layers: Vec<(&str, PlatformLayer)> = Vec::new();
    for policy in POLICIES {
        let mut spec = more.clone();
        spec["deletionPolicy"] = json!(policy);
        rig.layer(&policy.to_lowercase(), spec).await;
    }
    for policy in POLICIES {
        layers.push((policy, rig.until_reason(&policy.to_lowercase(), reason).await));
    }
    let [_, _, (_, orphan)] = layers.as_slice() else { panic!("three layers") };
    let kept = uuids(rig, orphan).await;
    for policy in POLICIES {
        rig.delete(&policy.to_lowercase()).await;
    }
    for (policy, layer) in &layers {
        rig.until_gone(&policy.to_lowercase()).await;
        match *policy {
            "Orphan" => assert_eq!(uuids(rig, layer).await, kept, "an orphan is not touched"),
            "Retain" if reason == "Finalized" => {
                let left = rig.hands.of_layer(&uid(layer)).await;
                let [f] = left.as_slice() else { panic!("{left:#?}") };
                assert_eq!((f.role(), f.key("retained")), ("frozen", Some("true")));
            }
            _gone => rig.hands.assert_nothing_of(&uid(layer)).await,
        }
    }
    rig.hands.assert_tidy().await;
}

async fn uuids(rig: &Rig, layer: &PlatformLayer) -> Vec<String> {
    let mut all: Vec<_> = rig.hands.of_layer(&uid(layer)).await.iter().map(|t| t.uuid().to_owned()).collect();
    all.sort();
    all
}

/// The frozen disk that was to stay is gone, and the packaging disk not yet: it is the last copy, whoever deletes the layer.
#[tokio::test(flavor = "multi_thread")]
async fn a_retained_version_without_its_disk_keeps_the_packaging_disk() {
    let rig = Rig::new().await;
    rig.guest("last", quick());
    rig.sim.pool.clock.hold("VM.destroy/");
    let _controller = rig.run().await;
    rig.layer("last", json!({"finalize": {"approved": "1"}, "deletionPolicy": "Retain"})).await;
    rig.sim.pool.clock.held("VM.destroy/").await;
    rig.patch("last", json!({"suspend": true})).await;
    let layer = rig.until_reason("last", "Suspended").await;
    rig.sim.pool.clock.unhold("VM.destroy/");
    rig.hands.destroy_disk(&status(&layer).versions[0].disk).await;
    rig.delete("last").await;
    rig.patch("last", json!({"suspend": false})).await;
    let work = disk(&layer);
    let told =
        |l: &PlatformLayer| ready(l).is_some_and(|(_, m)| m.contains(&work) && m.contains("still there and kept"));
    rig.until("last", "the last copy is named", told).await;
    rig.meanwhile().await;
    assert!(rig.hands.disk(&work).await.is_some());
    rig.patch("last", json!({"deletionPolicy": "Delete"})).await;
    rig.until_gone("last").await;
    rig.hands.assert_nothing_of(&uid(&layer)).await;
}

/// A disk that stays and lost its keys would be nobody's.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_stays_gets_its_lost_keys_back() {
    let rig = Rig::new().await;
    rig.guest("kept", quick());
    let controller = rig.run().await;
    rig.layer("kept", json!({"finalize": {"approved": "1"}, "deletionPolicy": "Retain"})).await;
    let layer = rig.until_finalized("kept", "1").await;
    drop(controller);
    let f = rig.hands.disk(&status(&layer).versions[0].disk).await.expect("F");
    rig.hands.call("VDI.set_other_config", json!([f.r, {}])).await;
    rig.delete("kept").await;
    let _controller = rig.run().await;
    rig.until_gone("kept").await;
    let f = rig.hands.disk(f.uuid()).await.expect("F");
    assert!(f.key("retained").is_some() && f.key("layer") == Some(&uid(&layer)), "{f:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_pending() {
    let rig = Rig::new().await;
    deleted_at(&rig, json!({"osLayer": {"disk": {"name": "nowhere"}}}), "OSDiskNotFound").await;
    assert_eq!(rig.hands.bases().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_disk_created() {
    let rig = Rig::new().await;
    deleted_at(&rig, json!({"machine": {"powerOn": false}}), "StartMachine").await;
    assert_eq!(rig.calls("Async.VM.start"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_machine_running() {
    let rig = Rig::new().await;
    rig.guest("", idle());
    deleted_at(&rig, json!({}), "InstallSoftware").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_awaiting_finalize() {
    let rig = Rig::new().await;
    rig.guest("", quick());
    deleted_at(&rig, json!({}), "ApproveFinalize").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_finalized() {
    let rig = Rig::new().await;
    rig.guest("", quick());
    deleted_at(&rig, json!({"finalize": {"approved": "1"}}), "Finalized").await;
}

/// Two that go at once must not both leave the base to the other.
#[tokio::test(flavor = "multi_thread")]
async fn the_base_goes_with_its_last_user() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    let names = ["one", "two", "three", "four"];
    for name in names {
        rig.layer(name, json!({"machine": {"powerOn": false}, "deletionPolicy": "Delete"})).await;
    }
    for name in names {
        rig.until_reason(name, "StartMachine").await;
    }
    assert_eq!(rig.hands.bases().await.len(), 1, "one base for all");
    rig.delete("one").await;
    rig.until_gone("one").await;
    assert_eq!(rig.hands.bases().await.len(), 1, "others stand on it");
    for name in &names[1..] {
        rig.delete(name).await;
    }
    for name in &names[1..] {
        rig.until_gone(name).await;
    }
    assert_eq!(rig.hands.bases().await.len(), 0);
    rig.hands.assert_tidy().await;
}

/// A pool that is gone holds a deletion until its owner says Orphan.
#[tokio::test(flavor = "multi_thread")]
async fn orphan_is_the_way_out_of_a_dead_pool() {
    let rig = Rig::new().await;
    let controller = rig.run().await;
    rig.layer("stuck", json!({"machine": {"powerOn": false}, "deletionPolicy": "Delete"})).await;
    rig.until_reason("stuck", "StartMachine").await;
    drop(controller);
    lamina::sim::restart::stop(&rig.sim.pool, true).await;
    let _controller = rig.run().await;
    rig.delete("stuck").await;
    rig.until("stuck", "told how to get out", |l| {
        l.metadata.deletion_timestamp.is_some()
            && crate::common::rig::ready(l).is_some_and(|(_, m)| m.contains("deletionPolicy to Orphan"))
    })
    .await;
    rig.patch("stuck", json!({"deletionPolicy": "Orphan"})).await;
    rig.until_gone("stuck").await;
}
