//! A machine's life on the wire.

use serde_json::json;

use super::brisk;
use crate::wire::failure;

/// xapi.md 4.5, 7.3, 14 (Power, start_time): one whole life.
#[tokio::test]
async fn a_machine_is_cloned_started_reports_its_tools_and_halts() {
    let raw = brisk().await;
    let (vm, disk) = raw.machine("m").await;
    let metrics = raw.get("VM", &vm, "metrics").await;
    let start_time = || async { raw.get("VM_metrics", metrics.as_str().unwrap(), "start_time").await };
    assert_eq!(start_time().await, "19700101T00:00:00Z", "a clone of a template never ran");
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    assert_eq!(raw.get("VM", &vm, "power_state").await, "Running");
    assert_ne!(start_time().await, "19700101T00:00:00Z");
    assert_eq!(raw.call("VM.clone", json!([vm, "x"])).await, failure(["VM_BAD_POWER_STATE", &vm, "halted", "running"]));
    let fresh = raw.get("VM", &vm, "guest_metrics").await;
    let fresh = fresh.as_str().unwrap();
    raw.until("VM_guest_metrics", fresh, "PV_drivers_detected", |v| *v == json!(true)).await;
    let other = raw.until("VM_guest_metrics", fresh, "other", |v| v.get("feature-static-ip-setting").is_some()).await;
    assert_eq!(other["feature-static-ip-setting"], "1");
    assert_eq!(raw.run("VDI.destroy", json!([disk])).await, failure(["VDI_IN_USE", &disk, "destroy"]));
    raw.run("VM.clean_shutdown", json!([vm])).await.unwrap();
    assert_eq!(raw.get("VM", &vm, "power_state").await, "Halted");
    assert_eq!(raw.get("VM", &vm, "domid").await, json!(-1));
    assert_eq!(raw.get("VM", &vm, "guest_metrics").await, fresh, "a halted machine keeps them");
    raw.run("VM.destroy", json!([vm])).await.unwrap();
    assert_eq!(raw.get("VDI", &disk, "VBDs").await, json!([]), "the disk stays, its VBD does not");
    raw.run("VDI.destroy", json!([disk])).await.unwrap();
    assert_eq!(raw.call("VDI.get_uuid", json!([disk])).await, failure(["HANDLE_INVALID", "VDI", &disk]));
}
