//! What can be wrong with the OS disk: a reason of its own with the cure, and recovery when the cause goes.

use serde_json::json;

use crate::common::rig::{Rig, ready};

const OFF: &str = "StartMachine";

#[tokio::test(flavor = "multi_thread")]
async fn an_os_disk_that_is_missing_or_ambiguous_is_told_and_awaited() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    let os = |name: &str| json!({"machine": {"powerOn": false}, "osLayer": {"disk": {"name": name}}});
    rig.layer("late", os("win12")).await;
    rig.until_reason("late", "OSDiskNotFound").await;
    let source = rig.hands.named("VDI", "win11-24h2").await.r;
    let copies =
        [rig.hands.call("VDI.clone", json!([source])).await, rig.hands.call("VDI.clone", json!([source])).await];
    for copy in &copies {
        rig.hands.call("VDI.set_name_label", json!([copy, "win12"])).await;
    }
    let many = rig.until_reason("late", "OSDiskAmbiguous").await;
    assert!(ready(&many).is_some_and(|(_, m)| m.contains("uuid")), "{many:?}");
    rig.hands.call("VDI.destroy", json!([copies[0]])).await;
    rig.until_reason("late", OFF).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_os_disk_in_use_is_awaited_until_its_machine_halts() {
    let rig = Rig::new().await;
    let os = rig.hands.named("VDI", "win11-24h2").await.r;
    let (vm, _) = rig.hands.stranger("somebody's", &os).await;
    rig.hands.call("VM.start", json!([vm, false, false])).await;
    let _controller = rig.run().await;
    rig.layer("waits", json!({"machine": {"powerOn": false}})).await;
    let stalled = rig.until_reason("waits", "OSDiskInUse").await;
    assert!(ready(&stalled).is_some_and(|(_, m)| m.contains("somebody's")), "{stalled:?}");
    assert_eq!(rig.hands.bases().await.len(), 0);
    rig.hands.call("VM.hard_shutdown", json!([vm])).await;
    rig.until_reason("waits", OFF).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_or_a_disk_elsewhere_is_refused_with_the_cure() {
    let rig = Rig::new().await;
    let source = rig.hands.named("VDI", "win11-24h2").await.r;
    let snapshot = rig.hands.call("VDI.snapshot", json!([source])).await;
    rig.hands.call("VDI.set_name_label", json!([snapshot, "frozen-os"])).await;
    let local = rig.hands.named("SR", "Local storage on host1").await.r;
    let copy = rig.hands.call("VDI.copy", json!([source, local])).await;
    rig.hands.call("VDI.set_name_label", json!([copy, "local-os"])).await;
    let _controller = rig.run().await;
    for (name, disk, reason, cure) in [
        ("snap", "frozen-os", "OSDiskIsSnapshot", "xe vdi-clone"),
        ("else", "local-os", "OSDiskOnOtherStorageRepository", "Shared storage"),
    ] {
        rig.layer(name, json!({"osLayer": {"disk": {"name": disk}}, "machine": {"powerOn": false}})).await;
        let stalled = rig.until_reason(name, reason).await;
        assert!(ready(&stalled).is_some_and(|(_, m)| m.contains(cure)), "{stalled:?}");
        rig.patch(name, json!({"osLayer": {"disk": {"name": "win11-24h2"}}})).await;
        rig.until_reason(name, OFF).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_format_or_size_that_cannot_be_is_refused() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    rig.layer("form", json!({"packagingDisk": {"format": "QCOW2"}, "machine": {"powerOn": false}})).await;
    rig.until_reason("form", "FormatMismatch").await;
    rig.patch("form", json!({"packagingDisk": {"format": "VHD", "size": "1Gi"}})).await;
    rig.until_reason("form", "DiskTooSmall").await;
    rig.patch("form", json!({"packagingDisk": {"size": null}})).await;
    rig.until_reason("form", OFF).await;
    // The next one finds the base there, and is told the same.
    rig.layer("next", json!({"packagingDisk": {"format": "QCOW2"}, "machine": {"powerOn": false}})).await;
    rig.until_reason("next", "FormatMismatch").await;
    rig.patch("next", json!({"packagingDisk": {"format": null, "size": "1Gi"}})).await;
    rig.until_reason("next", "DiskTooSmall").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_of_another_cluster_blocks_until_it_goes() {
    let rig = Rig::new().await;
    let os = rig.hands.named("VDI", "win11-24h2").await;
    let mark = json!([os.r, "lamina.dev/making", "another-cluster/base/0123456789abcdef"]);
    rig.hands.call("VDI.add_to_other_config", mark).await;
    let _controller = rig.run().await;
    rig.layer("locked", json!({"machine": {"powerOn": false}})).await;
    rig.until_reason("locked", "WaitingForMark").await;
    let stalled = rig.until_reason("locked", "BaseLocked").await;
    let (_, message) = ready(&stalled).expect("Ready");
    assert!(message.contains(&format!("xe vdi-param-remove uuid={}", os.uuid())), "{message}");
    let still = rig.hands.disk(os.uuid()).await.expect("L");
    assert!(still.key("making").is_some(), "a foreign mark is not ours to take off");
    rig.hands.call("VDI.remove_from_other_config", json!([os.r, "lamina.dev/making"])).await;
    rig.until_reason("locked", OFF).await;
    rig.hands.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_os_disk_is_told_with_the_command() {
    let rig = Rig::new().await;
    let os = rig.hands.named("VDI", "win11-24h2").await;
    rig.hands.call("VDI.add_to_sm_config", json!([os.r, "paused", "true"])).await;
    let _controller = rig.run().await;
    rig.layer("paused", json!({"machine": {"powerOn": false}})).await;
    let stalled = rig.until_reason("paused", "SourcePaused").await;
    assert!(ready(&stalled).is_some_and(|(_, m)| m.contains("param-key=paused")), "{stalled:?}");
    rig.hands.call("VDI.remove_from_sm_config", json!([os.r, "paused"])).await;
    rig.until_reason("paused", OFF).await;
}
