//! What the drivers do beneath the rows: thick and thin repositories, chains, base copies, and disks that are held for a while.

use std::time::Duration;

use serde_json::{Value, json};

use super::brisk;
use crate::wire::{Raw, failure};

const MIB: u64 = 1 << 20;

/// A repository of this type, of 100 MiB, on every host.
async fn repository(raw: &Raw, kind: &str) -> String {
    let uuid = uuid::Uuid::new_v4().to_string();
    let sr = raw.make("SR.introduce", json!([uuid, kind, "", kind, "user", true, {}])).await;
    raw.call("SR.set_physical_size", json!([sr, 100 * MIB])).await.unwrap();
    for host in raw.call("host.get_all", json!([])).await.unwrap().as_array().unwrap() {
        let row = json!({"host": host, "SR": sr, "device_config": {}, "other_config": {}});
        let pbd = raw.make("PBD.create", json!([row])).await;
        raw.call("PBD.plug", json!([pbd])).await.unwrap();
    }
    sr
}

async fn disk(raw: &Raw, sr: &str, mib: u64) -> String {
    let row = json!({"name_label": "d", "SR": sr, "virtual_size": mib * MIB, "type": "user", "sharable": false, "read_only": false,
        "other_config": {}});
    raw.make("VDI.create", json!([row])).await
}

fn write(raw: &Raw, uuid: &Value, block: u64, byte: u8) {
    raw.sim.pool.world.disks().write(uuid.as_str().unwrap(), block, &[byte]).unwrap();
}

/// The hidden rows of a repository.
async fn bases(raw: &Raw, sr: &str) -> Vec<String> {
    let all = raw.call("VDI.get_all_records", json!([])).await.unwrap();
    let hidden = |row: &Value| row["SR"] == sr && row["managed"] == json!(false);
    all.as_object().unwrap().iter().filter(|(_, row)| hidden(row)).map(|(r, _)| r.clone()).collect()
}

/// xapi.md 9.1, LVM SRs: a writable leaf takes its full size, a snapshot does not; there must be room for it.
#[tokio::test]
async fn a_thick_repository_wants_room_for_the_whole_disk() {
    let raw = brisk().await;
    let (thick, thin) = (repository(&raw, "lvm").await, repository(&raw, "nfs").await);
    for (sr, fits) in [(&thick, false), (&thin, true)] {
        let source = disk(&raw, sr, 60).await;
        let second = raw.run("VDI.clone", json!([source])).await;
        match second {
            Ok(_) => assert!(fits, "60 MiB twice do not fit into 100"),
            Err(why) => assert!(!fits && why[0] == "SR_BACKEND_FAILURE_44", "{why:?}"),
        }
    }
    let small = disk(&raw, &thick, 10).await;
    let snapshot = raw.make("VDI.snapshot", json!([small])).await;
    raw.run("SR.scan", json!([thick])).await.unwrap();
    let used = async |vdi: &str| raw.get("VDI", vdi, "physical_utilisation").await.as_u64().unwrap();
    assert!(used(&small).await >= 10 * MIB && used(&snapshot).await < MIB, "inflated and deflated");
}

/// xapi.md 9.1, VHD chain depth: the thirty-first level is refused.
#[tokio::test]
async fn a_chain_has_thirty_levels() {
    let raw = brisk().await;
    let sr = repository(&raw, "nfs").await;
    let source = disk(&raw, &sr, 20).await;
    let uuid = raw.get("VDI", &source, "uuid").await;
    for n in 0..29 {
        write(&raw, &uuid, 0, n + 1);
        raw.make("VDI.snapshot", json!([source])).await;
    }
    write(&raw, &uuid, 0, 99);
    for call in ["VDI.snapshot", "VDI.clone"] {
        assert_eq!(raw.run(call, json!([source])).await.unwrap_err()[0], "SR_BACKEND_FAILURE_109", "{call}");
    }
    assert_eq!(bases(&raw, &sr).await.len(), 29);
}

/// xapi.md 9.1, Tree behaviour, and 3 (managed): the base copy is hidden, of no use to clients, and goes a while after it is needed.
#[tokio::test]
async fn a_base_copy_is_hidden_and_goes_later() {
    let raw = brisk().await;
    let sr = repository(&raw, "nfs").await;
    let source = disk(&raw, &sr, 20).await;
    let uuid = raw.get("VDI", &source, "uuid").await;
    write(&raw, &uuid, 0, 1);
    raw.sim.pool.clock.hold("collect/");
    let clone = raw.make("VDI.clone", json!([source])).await;
    let [base] = bases(&raw, &sr).await.try_into().unwrap();
    assert_eq!(raw.get("VDI", &base, "name_label").await, "base copy");
    for call in ["VDI.clone", "VDI.snapshot", "VDI.destroy"] {
        assert_eq!(raw.run(call, json!([base])).await, failure(["VDI_NOT_MANAGED", &base]), "{call}");
    }
    let vm = raw.machine("m").await.0;
    assert_eq!(raw.vbd(&vm, Some(&base), "5").await, failure(["VDI_NOT_MANAGED", &base]));

    let parent = raw.get("VDI", &base, "uuid").await;
    raw.run("VDI.destroy", json!([clone])).await.unwrap();
    raw.sim.pool.clock.held("collect/").await;
    assert_eq!(bases(&raw, &sr).await, [base.as_str()], "destroyed, and nothing is tidied yet");
    assert_eq!(raw.get("VDI", &source, "sm_config").await["vhd-parent"], parent);
    let before = raw.sim.pool.digest(uuid.as_str().unwrap());
    raw.sim.pool.clock.unhold("collect/");
    raw.until("VDI", &source, "sm_config", |c| c.get("vhd-parent").is_none()).await;
    assert_eq!((bases(&raw, &sr).await.len(), raw.sim.pool.digest(uuid.as_str().unwrap())), (0, before));
}

/// xapi.md 9.1: `leaf-coalesce=false` keeps a leaf from being merged.
#[tokio::test]
async fn a_leaf_may_be_kept_from_its_base() {
    let raw = brisk().await;
    let sr = repository(&raw, "nfs").await;
    let source = disk(&raw, &sr, 20).await;
    write(&raw, &raw.get("VDI", &source, "uuid").await, 0, 1);
    let clone = raw.make("VDI.clone", json!([source])).await;
    raw.call("VDI.add_to_other_config", json!([source, "leaf-coalesce", "false"])).await.unwrap();
    raw.sim.pool.clock.hold("collect/");
    raw.run("VDI.destroy", json!([clone])).await.unwrap();
    raw.sim.pool.clock.held("collect/").await;
    raw.sim.pool.clock.unhold("collect/");
    // Another round ends after that one.
    raw.run("SR.scan", json!([sr])).await.unwrap();
    assert!(raw.get("VDI", &source, "sm_config").await.get("vhd-parent").is_some());
}

/// xapi.md 9.2: after a shutdown storage holds the disk for some seconds.
#[tokio::test]
async fn a_disk_is_in_use_for_a_while_after_the_halt() {
    let raw = brisk().await;
    let (vm, disk) = raw.machine("m").await;
    raw.sim.pool.world.set_linger(Duration::from_secs(3600));
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    raw.run("VM.hard_shutdown", json!([vm])).await.unwrap();
    assert_eq!(raw.run("VDI.destroy", json!([disk])).await, failure(["VDI_IN_USE", &disk, "destroy"]));
    assert_eq!(raw.run("VM.start", json!([vm, false, false])).await, failure(["VDI_IN_USE", &disk]));
    let other = raw.machine("other").await.1;
    raw.run("VDI.destroy", json!([other])).await.unwrap();
    raw.sim.pool.world.set_linger(Duration::ZERO);
    let again = raw.machine("again").await;
    raw.run("VM.start", json!([again.0, false, false])).await.unwrap();
    raw.run("VM.hard_shutdown", json!([again.0])).await.unwrap();
    raw.run("VDI.destroy", json!([again.1])).await.unwrap();
}

/// xapi.md 14, Queue: a name is no operation; the disk of a running machine can be renamed, and snapshot (14, Snapshots).
#[tokio::test]
async fn an_attached_disk_can_be_renamed_and_snapshot() {
    let raw = brisk().await;
    let (vm, disk) = raw.machine("m").await;
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    raw.call("VDI.set_name_label", json!([disk, "in use"])).await.unwrap();
    assert_eq!(raw.get("VDI", &disk, "name_label").await, "in use");
    raw.make("VDI.snapshot", json!([disk])).await;
    assert_eq!(raw.run("VDI.resize", json!([disk, 64_u64 << 30])).await, failure(["VDI_IN_USE", &disk, "resize"]));
    // xapi.md 4.3, row 4: a copy is kept off by a writer alone.
    assert_eq!(raw.run("VDI.copy", json!([disk])).await, failure(["VDI_IN_USE", &disk, "copy"]));
}

/// xapi.md 4.3, row 1.
#[tokio::test]
async fn a_rolling_upgrade_refuses_storage_operations() {
    let raw = brisk().await;
    let pool = raw.first("pool").await;
    let os = raw.named("VDI", "win11-24h2").await;
    raw.call("pool.add_to_other_config", json!([pool, "rolling_upgrade_in_progress", "true"])).await.unwrap();
    assert_eq!(raw.run("VDI.clone", json!([os])).await, failure(["NOT_SUPPORTED_DURING_UPGRADE"]));
    raw.call("pool.remove_from_other_config", json!([pool, "rolling_upgrade_in_progress"])).await.unwrap();
    raw.make("VDI.clone", json!([os])).await;
}

/// xapi.md 4.3 (rows 7, 8, 11), 4.4.
#[tokio::test]
async fn change_tracking_has_its_rules() {
    let raw = brisk().await;
    let os = raw.named("VDI", "win11-24h2").await;
    let snapshot = raw.make("VDI.snapshot", json!([os])).await;
    let code = async |call: &str, vdi: &str| raw.run(call, json!([vdi])).await.unwrap_err().remove(0);
    assert_eq!(code("VDI.data_destroy", &os).await, "OPERATION_NOT_ALLOWED");
    assert_eq!(raw.run("VDI.data_destroy", json!([snapshot])).await, failure(["VDI_NO_CBT_METADATA", &snapshot]));
    assert_eq!(code("VDI.enable_cbt", &snapshot).await, "OPERATION_NOT_ALLOWED");
    for _ in 0..2 {
        raw.run("VDI.enable_cbt", json!([os])).await.unwrap();
    }
    assert_eq!(raw.call("VDI.set_on_boot", json!([os, "reset"])).await, failure(["VDI_CBT_ENABLED", &os]));
    let tracked = raw.make("VDI.snapshot", json!([os])).await;
    raw.run("VDI.data_destroy", json!([tracked])).await.unwrap();
    assert_eq!(raw.get("VDI", &tracked, "type").await, "cbt_metadata");
    let wrong = failure(["VDI_INCOMPATIBLE_TYPE", &tracked, "cbt_metadata"]);
    assert_eq!(raw.run("VDI.clone", json!([tracked])).await, wrong);
    assert_eq!(raw.call("VDI.get_nbd_info", json!([os])).await, Ok(json!([])));
    let pool = lamina::xapi::wire::Ref(raw.first("pool").await);
    raw.sim.pool.db().set("pool", &pool, "restrictions", json!({"restrict_cbt": "true"})).unwrap();
    assert_eq!(raw.run("VDI.enable_cbt", json!([os])).await, failure(["LICENCE_RESTRICTION", "CBT"]));
}

/// xapi.md 4.4: with a base only what differs from it is written; a target of its own making goes with a failure.
#[tokio::test]
async fn a_copy_heeds_its_base_and_clears_up() {
    let raw = brisk().await;
    let sr = repository(&raw, "nfs").await;
    let (base, target) = (disk(&raw, &sr, 20).await, disk(&raw, &sr, 20).await);
    write(&raw, &raw.get("VDI", &base, "uuid").await, 0, 1);
    let source = raw.make("VDI.clone", json!([base])).await;
    write(&raw, &raw.get("VDI", &source, "uuid").await, 3, 7);
    raw.run("VDI.copy", json!([source, "OpaqueRef:NULL", base, target])).await.unwrap();
    let target = raw.get("VDI", &target, "uuid").await;
    let read = |block: u64| raw.sim.pool.world.disks().read(target.as_str().unwrap(), block).unwrap()[0];
    assert_eq!((read(0), read(3)), (0, 7), "the base's own block is not written");

    let known = raw.call("VDI.get_all", json!([])).await.unwrap();
    raw.sim.pool.clock.hold("VDI.copy/copying");
    let task = raw.send_async("VDI.copy", json!([source])).await;
    raw.sim.pool.clock.held("VDI.copy/copying").await;
    let uuid = raw.get("VDI", &source, "uuid").await;
    raw.sim.pool.world.disks().remove(uuid.as_str().unwrap()).unwrap();
    raw.sim.pool.clock.unhold("VDI.copy/copying");
    assert_eq!(raw.wait(&task).await.unwrap_err()[0], "SR_BACKEND_FAILURE_46");
    // Base copies may have gone meanwhile.
    let (now, known) = (raw.call("VDI.get_all", json!([])).await.unwrap(), known.as_array().unwrap().clone());
    assert!(now.as_array().unwrap().iter().all(|row| known.contains(row)), "a target is left: {now}");
}
