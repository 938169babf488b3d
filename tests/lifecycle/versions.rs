//! Further versions: their bases, and what happens to a version in work that is not wanted any more.

use kube::api::{Patch, PatchParams};
use lamina::api::layer_status::BaseKind;
use serde_json::json;

use crate::common::rig::{Rig, disk, idle, quick, ready, status, uid};

#[tokio::test(flavor = "multi_thread")]
async fn versions_stand_on_the_latest_the_os_layer_or_a_named_one() {
    let rig = Rig::new().await;
    rig.guest("v", quick());
    let _controller = rig.run().await;
    rig.layer("v", json!({"finalize": {"policy": "OnShutdown"}})).await;
    let first = rig.until_finalized("v", "1").await;
    let f1 = status(&first).versions[0].disk.clone();
    let bytes = rig.sim.pool.digest(&f1);
    rig.patch("v", json!({"version": "2", "comment": "second"})).await;
    rig.until_finalized("v", "2").await;
    rig.patch("v", json!({"version": "3", "base": {"from": "OSLayer"}})).await;
    rig.until_finalized("v", "3").await;
    rig.patch("v", json!({"version": "4", "base": {"from": "Version", "version": "1"}})).await;
    let done = rig.until_finalized("v", "4").await;
    let versions = status(&done).versions;
    let bases: Vec<_> = versions.iter().map(|v| v.base.clone().map(|b| (b.from, b.version))).collect();
    let on = |v: &str| Some((BaseKind::Version, Some(v.to_owned())));
    assert_eq!(bases, [Some((BaseKind::OSLayer, None)), on("1"), Some((BaseKind::OSLayer, None)), on("1")]);
    assert_eq!(versions.iter().map(|v| v.version.as_str()).collect::<Vec<_>>(), ["1", "2", "3", "4"]);
    assert_eq!(rig.sim.pool.digest(&f1), bytes, "a frozen version never changes");
    assert_eq!(rig.hands.of_layer(&uid(&done)).await.len(), 4);
    assert_eq!(rig.hands.bases().await.len(), 1);
    // An older version again: there is nothing to do.
    let calls = rig.sim.pool.log.number();
    rig.patch("v", json!({"version": "2"})).await;
    let back = rig
        .until("v", "observed", |l| l.status.as_ref().is_some_and(|s| s.observed_generation == l.metadata.generation));
    assert_eq!(ready(&back.await).map(|(r, _)| r).as_deref(), Some("Finalized"));
    assert_eq!(rig.sim.pool.log.number(), calls);
    rig.hands.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_cannot_be_had_stalls_until_another_is_named() {
    let rig = Rig::new().await;
    rig.guest("b", quick());
    let _controller = rig.run().await;
    rig.layer("b", json!({"finalize": {"policy": "OnShutdown"}})).await;
    rig.until_finalized("b", "1").await;
    rig.patch("b", json!({"version": "2", "base": {"from": "Version", "version": "9"}})).await;
    let stalled = rig.until_reason("b", "BaseVersionUnknown").await;
    assert!(ready(&stalled).is_some_and(|(_, m)| m.contains("'9'") && m.contains("(1)")), "{stalled:?}");
    rig.patch("b", json!({"base": {"from": "Latest", "version": null}, "osLayer": {"version": "25H1"}})).await;
    let stalled = rig.until_reason("b", "BaseOnOtherOSLayer").await;
    assert!(ready(&stalled).is_some_and(|(_, m)| m.contains("base.from: OSLayer")), "{stalled:?}");
    rig.patch("b", json!({"base": {"from": "OSLayer"}})).await;
    let done = rig.until_finalized("b", "2").await;
    let versions = status(&done).versions;
    assert_eq!(versions[1].os_version.as_deref(), Some("25H1"));
    assert_ne!(versions[0].base.as_ref().map(|b| &b.uuid), versions[1].base.as_ref().map(|b| &b.uuid));
    assert_eq!(rig.hands.bases().await.len(), 2, "one base for each OS layer version");
    // Latest is the newest on the same base.
    rig.patch("b", json!({"version": "3", "base": {"from": "Latest"}, "osLayer": {"version": "24H2"}})).await;
    let done = rig.until_finalized("b", "3").await;
    assert_eq!(status(&done).versions[2].base.as_ref().and_then(|b| b.version.clone()).as_deref(), Some("1"));
    rig.hands.assert_tidy().await;
}

/// The rule of the API sees the last written status only; the controller reads the version in work from the disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_changed_under_work_stalls_and_names_both_cures() {
    let rig = Rig::new().await;
    let controller = rig.run().await;
    rig.layer("c", json!({"machine": {"powerOn": false}})).await;
    let before = rig.until_reason("c", "StartMachine").await;
    drop(controller);
    let pending = Patch::Merge(json!({"status": {"phase": "Pending"}}));
    rig.layers().patch_status("c", &PatchParams::default(), &pending).await.expect("a status");
    rig.patch("c", json!({"version": "2"})).await;
    let _controller = rig.run().await;
    let stalled = rig.until_reason("c", "VersionChanged").await;
    assert!(
        ready(&stalled).is_some_and(|(_, m)| m.contains("set spec.version back") && m.contains("spec.discard to '1'"))
    );
    assert_eq!(disk(&stalled), disk(&before));
    rig.patch("c", json!({"version": "1", "discard": "2"})).await;
    let back = rig.until_reason("c", "StartMachine").await;
    assert_eq!(disk(&back), disk(&before));
}

#[tokio::test(flavor = "multi_thread")]
async fn discard_throws_a_version_away_in_each_phase() {
    let rig = Rig::new().await;
    rig.guest("run", idle());
    rig.guest("halt", quick());
    let _controller = rig.run().await;
    rig.layer("off", json!({"machine": {"powerOn": false}})).await;
    rig.layer("run", json!({})).await;
    rig.layer("halt", json!({})).await;
    for (name, reason) in [("off", "StartMachine"), ("run", "InstallSoftware"), ("halt", "ApproveFinalize")] {
        let old = rig.until_reason(name, reason).await;
        rig.patch(name, json!({"version": "2", "discard": "1"})).await;
        let new = rig
            .until(name, "version 2 in work", |l| {
                l.status.as_ref().and_then(|s| s.disk.as_ref()).is_some_and(|d| d.version == "2")
                    && ready(l).is_some_and(|(r, _)| r == reason)
            })
            .await;
        assert_ne!(disk(&new), disk(&old));
        let left = rig.hands.of_layer(&uid(&new)).await;
        assert!(left.len() == 3 && left.iter().all(|t| t.key("version") == Some("2")), "{left:#?}");
        assert!(status(&new).versions.is_empty());
    }
    rig.hands.assert_tidy().await;
}

/// A leftover `discard` never meets what is finalized.
#[tokio::test(flavor = "multi_thread")]
async fn discard_of_a_finalized_version_does_nothing() {
    let rig = Rig::new().await;
    rig.guest("kept", quick());
    let _controller = rig.run().await;
    rig.layer("kept", json!({"finalize": {"policy": "OnShutdown"}})).await;
    rig.until_finalized("kept", "1").await;
    rig.patch("kept", json!({"version": "2", "discard": "1"})).await;
    let done = rig.until_finalized("kept", "2").await;
    for version in &status(&done).versions {
        assert!(rig.hands.disk(&version.disk).await.is_some(), "{version:?}");
    }
    rig.hands.assert_tidy().await;
}
