//! What storage refuses, in which order and with which parameters: the table of xapi.md 4.3 beyond what the tests of each call show.
//! What is refused to machines is in `refusals`.

use std::time::Duration;

use lamina::{sim::disk::pattern, xapi::wire::Ref};
use serde_json::{Value, json};

use super::{brisk, plans};
use crate::wire::{Raw, failure};

/// A disk of 4 MiB, with `own` over what every disk is made of.
pub async fn disk(raw: &Raw, sr: &str, own: Value) -> String {
    let mut row = json!({"name_label": "d", "SR": sr, "virtual_size": 4 << 20, "type": "user", "sharable": false, "read_only": false,
        "other_config": {}});
    row.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
    raw.make("VDI.create", json!([row])).await
}

/// Changes what no client may change.
pub fn set(raw: &Raw, class: &str, object: &str, field: &str, value: Value) {
    raw.sim.pool.db().set(class, &Ref(object.to_owned()), field, value).unwrap();
}

/// Lets time go by in which something must not end.
async fn still_waits(raw: &Raw, task: &str) {
    raw.sim.pool.clock.sleep(Duration::from_secs(5)).await;
    assert_eq!(raw.get("task", task, "status").await, "pending");
}

/// The VBDs of a machine of [`Raw::machine`]: of its disk, and its drive.
pub async fn devices(raw: &Raw, vm: &str) -> [String; 2] {
    serde_json::from_value(raw.get("VM", vm, "VBDs").await).unwrap()
}

/// xapi.md 4.3, row 9, after row 6: a driver that cannot delete is told of first.
#[tokio::test]
async fn what_must_not_be_destroyed_has_codes_of_its_own() {
    let raw = brisk().await;
    let sr = raw.named("SR", "Shared storage").await;
    for (own, expected) in [(json!({"type": "rrd"}), "VDI_HAS_RRDS"), (json!({"type": "user"}), "")] {
        let vdi = disk(&raw, &sr, own).await;
        let refused = if expected.is_empty() { Ok(json!("")) } else { failure([expected, &vdi]) };
        assert_eq!(raw.run("VDI.destroy", json!([vdi])).await, refused, "{expected}");
    }
    let [kept, free] = [disk(&raw, &sr, json!({"type": "ha_statefile"})).await, disk(&raw, &sr, json!({})).await];
    raw.call("pool.enable_ha", json!([[], {}])).await.unwrap();
    assert_eq!(raw.run("VDI.destroy", json!([kept])).await, failure(["HA_IS_ENABLED"]));
    raw.run("VDI.destroy", json!([free])).await.unwrap();
    raw.call("pool.disable_ha", json!([])).await.unwrap();
    raw.run("VDI.destroy", json!([kept])).await.unwrap();

    let vdi = disk(&raw, &sr, json!({})).await;
    set(&raw, "SR", &sr, "is_tools_sr", json!(true));
    assert_eq!(raw.run("VDI.destroy", json!([vdi])).await, failure(["SR_OPERATION_NOT_SUPPORTED", &sr]));
    set(&raw, "SR", &sr, "is_tools_sr", json!(false));
    set(&raw, "SR", &sr, "type", json!("udev"));
    assert_eq!(raw.run("VDI.destroy", json!([vdi])).await, failure(["SR_OPERATION_NOT_SUPPORTED", &sr]), "row 6");
    let drivers = raw.call("SM.get_all_records_where", json!(["field \"type\" = \"udev\""])).await.unwrap();
    let driver = drivers.as_object().unwrap().keys().next().unwrap();
    set(&raw, "SM", driver, "features", json!({"VDI_DELETE": 1}));
    assert_eq!(raw.run("VDI.destroy", json!([vdi])).await, failure(["VDI_IS_A_PHYSICAL_DEVICE", &vdi]));
}

/// xapi.md 4.3, row 10.
#[tokio::test]
async fn what_must_not_be_snapshot_has_codes_of_its_own() {
    let raw = brisk().await;
    let sr = raw.named("SR", "Shared storage").await;
    let shared = disk(&raw, &sr, json!({"sharable": true})).await;
    assert_eq!(raw.run("VDI.snapshot", json!([shared])).await, failure(["VDI_IS_SHARABLE", &shared]));
    raw.run("VDI.clone", json!([shared])).await.unwrap();
    let reset = disk(&raw, &sr, json!({})).await;
    raw.call("VDI.set_on_boot", json!([reset, "reset"])).await.unwrap();
    for call in ["VDI.snapshot", "VDI.copy"] {
        let refused = failure(["VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION"]);
        assert_eq!(raw.run(call, json!([reset])).await, refused, "{call}");
    }
    raw.run("VDI.clone", json!([reset])).await.unwrap();

    let copied = disk(&raw, &sr, json!({})).await;
    raw.sim.pool.clock.hold("VDI.copy/copying");
    let task = raw.send_async("VDI.copy", json!([copied])).await;
    raw.sim.pool.clock.held("VDI.copy/copying").await;
    assert_eq!(raw.get("VDI", &copied, "current_operations").await, json!({&task: "copy"}));
    let refused = raw.run("VDI.snapshot", json!([copied])).await.unwrap_err();
    assert_eq!((refused[0].as_str(), refused.len()), ("OPERATION_NOT_ALLOWED", 2));
    raw.run("VDI.clone", json!([copied])).await.unwrap();
    raw.sim.pool.clock.unhold("VDI.copy/copying");
    raw.wait(&task).await.unwrap();
    raw.run("VDI.snapshot", json!([copied])).await.unwrap();
}

/// xapi.md 4.3, rows 3 and 4: what an attached disk is still good for; a resize is told of storage first.
#[tokio::test]
async fn an_attached_disk_is_in_use_for_most() {
    let raw = brisk().await;
    let (vm, disk) = raw.machine("m").await;
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    let size = json!(64_u64 << 30);
    for (op, more) in [("destroy", None), ("copy", None), ("forget", None), ("update", None), ("resize", Some(size))] {
        let given: Vec<Value> = std::iter::once(json!(disk)).chain(more).collect();
        let refused = raw.run(&format!("VDI.{op}"), Value::Array(given)).await;
        assert_eq!(refused, failure(["VDI_IN_USE", &disk, op]), "{op}");
    }
    for call in ["VDI.snapshot", "VDI.clone"] {
        raw.run(call, json!([disk])).await.unwrap();
    }
    // A reader does not stop a copy: the control domain holds the disk of an export like this.
    let read = raw.make("VDI.clone", json!([disk])).await;
    raw.sim.pool.leak_vbd(&Ref(read.clone()));
    raw.run("VDI.copy", json!([read])).await.unwrap();
    assert_eq!(raw.run("VDI.destroy", json!([read])).await, failure(["VDI_IN_USE", &read, "destroy"]));

    let sr = raw.get("VDI", &disk, "SR").await;
    let sr = sr.as_str().unwrap();
    for pbd in raw.get("SR", sr, "PBDs").await.as_array().unwrap() {
        set(&raw, "PBD", pbd.as_str().unwrap(), "currently_attached", json!(false));
    }
    assert_eq!(raw.run("VDI.resize", json!([disk, 1])).await, failure(["SR_HAS_NO_PBDS", sr]), "row 3");
    assert_eq!(raw.run("VDI.destroy", json!([disk])).await, failure(["VDI_IN_USE", &disk, "destroy"]), "row 4");
}

/// xapi.md 4.3, row 2, and 4.2: another operation is waited for; meanwhile the hint says that nothing is allowed.
#[tokio::test]
async fn an_operation_of_the_disk_is_waited_for() {
    let raw = brisk().await;
    let (vm, source) = raw.machine("m").await;
    let sr = raw.get("VDI", &source, "SR").await;
    raw.sim.pool.clock.hold("VDI.clone/running");
    let clone = raw.send_async("VDI.clone", json!([source])).await;
    raw.sim.pool.clock.held("VDI.clone/running").await;
    // A copy has no turn to wait for (xapi.md 4.2): it is the disk that keeps it.
    let copy = raw.send_async("VDI.copy", json!([source, sr])).await;
    still_waits(&raw, &copy).await;
    assert_eq!(raw.get("VDI", &source, "current_operations").await, json!({&clone: "clone"}));
    raw.vbd(&vm, Some(&source), "5").await.unwrap();
    raw.until("VDI", &source, "allowed_operations", |ops| *ops == json!([])).await;
    raw.sim.pool.clock.unhold("VDI.clone/running");
    raw.wait(&clone).await.unwrap();
    raw.wait(&copy).await.unwrap();
}

/// xapi.md 4.3, row 5, between 4 and 6: an operation of a device is waited for, but not by `data_destroy`.
#[tokio::test]
async fn an_operation_of_a_device_is_waited_for() {
    let raw = brisk().await;
    let clock = &raw.sim.pool.clock;
    let (vm, disk) = raw.machine("m").await;
    let [of_disk, drive] = devices(&raw, &vm).await;
    let iso = raw.named("VDI", "guest-tools.iso").await;
    let isos = raw.get("VDI", &iso, "SR").await;
    let unsupported = failure(["SR_OPERATION_NOT_SUPPORTED", isos.as_str().unwrap()]);
    raw.run("VBD.insert", json!([drive, iso])).await.unwrap();
    clock.hold("VBD.eject/running");
    let eject = raw.send_async("VBD.eject", json!([drive])).await;
    clock.held("VBD.eject/running").await;
    assert_eq!(raw.get("VBD", &drive, "current_operations").await, json!({&eject: "eject"}));
    let waiting = raw.send_async("VDI.snapshot", json!([iso])).await;
    still_waits(&raw, &waiting).await;
    assert_eq!(raw.run("VDI.data_destroy", json!([iso])).await, unsupported, "row 6 at once");
    clock.unhold("VBD.eject/running");
    raw.wait(&eject).await.unwrap();
    assert_eq!(raw.wait(&waiting).await, unsupported, "row 6 after row 5");

    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    let metrics = raw.get("VM", &vm, "guest_metrics").await;
    raw.until("VM_guest_metrics", metrics.as_str().unwrap(), "PV_drivers_detected", |v| *v == json!(true)).await;
    clock.hold("VBD.unplug/running");
    let unplug = raw.send_async("VBD.unplug", json!([of_disk])).await;
    clock.held("VBD.unplug/running").await;
    assert_eq!(raw.run("VDI.destroy", json!([disk])).await, failure(["VDI_IN_USE", &disk, "destroy"]), "row 4");
    let clone = raw.send_async("VDI.clone", json!([disk])).await;
    still_waits(&raw, &clone).await;
    clock.unhold("VBD.unplug/running");
    raw.wait(&unplug).await.unwrap();
    raw.wait(&clone).await.unwrap();
}

/// xapi.md 4.4, `VDI.copy`: into a disk that is there, and over a base of which only the difference is written.
#[tokio::test]
async fn a_copy_wants_a_target_that_fits() {
    let raw = plans::of(
        "replace: true\nrepositories: [{name: Block, type: lvmoiscsi, size_gib: 9}]\ndisks: [{name: os, size_gib: 1, blocks: [0, 1]}]\n",
    )
    .await;
    let sr = raw.named("SR", "Block").await;
    let source = raw.named("VDI", "os").await;
    let uuid = async |vdi: &str| raw.get("VDI", vdi, "uuid").await.as_str().unwrap().to_owned();
    let size = 1_u64 << 30;
    let target = async |own: Value| disk(&raw, &sr, own).await;
    let [fits, small, closed, dense] = [
        target(json!({"virtual_size": size})).await,
        target(json!({})).await,
        target(json!({"virtual_size": size, "read_only": true})).await,
        target(json!({"virtual_size": size, "sm_config": {"image-format": "raw"}})).await,
    ];
    let base = raw.make("VDI.snapshot", json!([source])).await;
    let written = uuid(&source).await;
    raw.sim.pool.world.disks().write(&written, 7, &pattern(3, 7)).unwrap();
    let into =
        async |base: &str, target: &str| raw.run("VDI.copy", json!([source, "OpaqueRef:NULL", base, target])).await;
    let none = "OpaqueRef:NULL";
    assert_eq!(into(none, &closed).await, failure(["VDI_READONLY", &closed]));
    assert_eq!(into(none, &small).await, failure(["VDI_TOO_SMALL", &small, &size.to_string()]));
    assert_eq!(into(&base, &dense).await, failure(["VDI_NOT_SPARSE", &dense]));
    assert_eq!(into(none, &dense).await, Ok(json!(dense)));
    assert_eq!(raw.sim.pool.digest(&uuid(&dense).await), raw.sim.pool.digest(&uuid(&source).await));
    assert_eq!(into(&base, &fits).await, Ok(json!(fits)));
    let alone = uuid(&target(json!({"virtual_size": size})).await).await;
    raw.sim.pool.world.disks().write(&alone, 7, &pattern(3, 7)).unwrap();
    assert_eq!(raw.sim.pool.digest(&uuid(&fits).await), raw.sim.pool.digest(&alone), "the difference");
}
