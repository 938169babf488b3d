//! Storage calls under way when the daemon dies: run again by the next one, under nobody's eyes (xapi.md 14, Replay).

use serde_json::{Value, json};

use super::{
    brisk,
    checks::disk,
    plans,
    restarts::{back, scan},
};
use crate::wire::{Raw, failure};

/// A death while a call is held at a stage, and the new daemon's first log-in.
async fn died_at(raw: &mut Raw, method: &str, params: Value, stage: &str, clean: bool) {
    let label = format!("{method}/{stage}/");
    raw.sim.pool.clock.hold(&label);
    let task = raw.send_async(method, params).await;
    raw.sim.pool.clock.held(&label).await;
    back(raw, clean).await;
    raw.sim.pool.clock.unhold(&label);
    assert_eq!(raw.call("task.get_status", json!([task])).await, failure(["HANDLE_INVALID", "task", &task]));
}

/// Each death that a test dies.
const DEATHS: [bool; 2] = [true, false];

/// Disks of the shared repository that were not there before, base copies apart.
async fn fresh(raw: &Raw, known: &[String]) -> Vec<Value> {
    let all = raw.call("VDI.get_all_records", json!([])).await.unwrap();
    let all = all.as_object().unwrap().clone().into_iter();
    all.filter(|(vdi, row)| !known.contains(vdi) && row["managed"] == json!(true)).map(|(_, row)| row).collect()
}

async fn known(raw: &Raw) -> Vec<String> {
    serde_json::from_value(raw.call("VDI.get_all", json!([])).await.unwrap()).unwrap()
}

/// xapi.md 14, Replay, and 4.4 (a crash between leaves the right name and nothing else): one create leaves two disks.
#[tokio::test]
async fn a_disk_is_created_twice() {
    for (clean, stage) in DEATHS.into_iter().flat_map(|clean| ["running", "row"].map(|stage| (clean, stage))) {
        let mut raw = brisk().await;
        let sr = raw.named("SR", "Shared storage").await;
        let before = known(&raw).await;
        let row = json!({"name_label": "new", "SR": sr, "virtual_size": 4 << 20, "type": "user", "sharable": false, "read_only": false,
            "other_config": {"k": "v"}, "tags": ["t"]});
        died_at(&mut raw, "VDI.create", json!([row]), stage, clean).await;
        // A row that was not written is lost, and its disk with it until the scan.
        let told = if stage == "row" && !clean { 1 } else { 2 };
        raw.seen("the second run", async || (fresh(&raw, &before).await.len() == told).then_some(())).await;
        assert!(fresh(&raw, &before).await.iter().all(|row| row["name_label"] == "new"), "{clean} {stage}");
        scan(&raw).await;
        let all = fresh(&raw, &before).await;
        assert_eq!(all.len(), 2, "{clean} {stage}");
        for row in &all {
            assert_eq!((&row["other_config"], &row["tags"]), (&json!({}), &json!([])), "{clean} {stage}");
            assert_eq!(row["virtual_size"], json!(4 << 20));
        }
        let nameless = all.iter().filter(|row| row["name_label"] == "").count();
        assert_eq!(nameless, 2 - told, "{clean} {stage}");
        assert_eq!(raw.get("SR", &sr, "current_operations").await, json!({}));
    }
}

/// xapi.md 9.1 (LVM SRs, raw VDIs) and 14, Replay: what is made again is made as it was asked for, in its format and to its full size.
#[tokio::test]
async fn a_disk_is_created_in_its_format_both_times() {
    let mut raw = plans::of("replace: true\nrepositories: [{name: Block, type: lvmoiscsi, size_gib: 9}]\n").await;
    let sr = raw.named("SR", "Block").await;
    for (format, shown) in [("vhd", "vhd"), ("raw", "aio")] {
        let before = known(&raw).await;
        let row = json!({"name_label": format, "SR": sr, "virtual_size": 1 << 30, "type": "user", "sharable": false, "read_only": false,
            "other_config": {}, "sm_config": {"image-format": format}});
        died_at(&mut raw, "VDI.create", json!([row]), "row", true).await;
        raw.seen("the second run", async || (fresh(&raw, &before).await.len() == 2).then_some(())).await;
        for row in fresh(&raw, &before).await {
            assert_eq!(row["sm_config"]["vdi_type"], shown);
            assert!(row["physical_utilisation"].as_u64().unwrap() >= 1 << 30, "{format}: {row}");
        }
    }
}

/// xapi.md 14, Replay: a destroy that nobody waits for any more is carried out; a row whose disk is gone stays until the scan (Durability).
#[tokio::test]
async fn a_destroy_is_carried_out_all_the_same() {
    for clean in DEATHS {
        let mut raw = brisk().await;
        let sr = raw.named("SR", "Shared storage").await;
        for stage in ["running", "removed"] {
            let vdi = disk(&raw, &sr, json!({})).await;
            let uuid = raw.get("VDI", &vdi, "uuid").await.as_str().unwrap().to_owned();
            raw.call("pool.sync_database", json!([])).await.unwrap();
            died_at(&mut raw, "VDI.destroy", json!([vdi]), stage, clean).await;
            if stage == "running" {
                let gone = async || raw.call("VDI.get_uuid", json!([vdi])).await.err();
                let why = raw.seen("the second run", gone).await;
                assert_eq!(why, ["HANDLE_INVALID", "VDI", &vdi]);
            }
            assert_eq!(raw.sim.pool.digest(&uuid), None, "{clean} {stage}");
            scan(&raw).await;
            let gone = raw.call("VDI.get_by_uuid", json!([uuid])).await;
            assert_eq!(gone, failure(["UUID_INVALID", "VDI", &uuid]), "{clean} {stage}");
        }
    }
}

/// xapi.md 14, Replay: a disk grows though nobody heard of it.
#[tokio::test]
async fn a_resize_is_carried_out_all_the_same() {
    for clean in DEATHS {
        let mut raw = brisk().await;
        let sr = raw.named("SR", "Shared storage").await;
        let vdi = disk(&raw, &sr, json!({})).await;
        raw.call("pool.sync_database", json!([])).await.unwrap();
        for (stage, size) in [("running", 8_u64 << 20), ("resized", 16 << 20)] {
            died_at(&mut raw, "VDI.resize", json!([vdi, size]), stage, clean).await;
            raw.until("VDI", &vdi, "virtual_size", |shown| *shown == json!(size)).await;
            assert_eq!(raw.get("VDI", &vdi, "current_operations").await, json!({}));
        }
        raw.run("VDI.resize", json!([vdi, 32 << 20])).await.unwrap();
    }
}

/// xapi.md 14, Replay: a clone of a template with a disk leaves two disks and no machine.
#[tokio::test]
async fn a_machine_is_not_cloned_and_its_disk_twice() {
    for clean in DEATHS {
        let mut raw = brisk().await;
        let template = raw.named("VM", "with-disk").await;
        let before = known(&raw).await;
        died_at(&mut raw, "VM.clone", json!([template, "clone"]), "row", clean).await;
        let named =
            async || fresh(&raw, &before).await.iter().any(|row| row["name_label"] == "with-disk 0").then_some(());
        raw.seen("the second run", named).await;
        scan(&raw).await;
        let mut names: Vec<_> = fresh(&raw, &before).await.into_iter().map(|row| row["name_label"].clone()).collect();
        names.sort_by_key(Value::to_string);
        assert_eq!(names, ["", "with-disk 0"], "{clean}");
        assert_eq!(raw.call("VM.get_by_name_label", json!(["clone"])).await, Ok(json!([])));
        assert_eq!(raw.get("VM", &template, "current_operations").await, json!({}));
        raw.make("VM.clone", json!([template, "clone"])).await;
    }
}
