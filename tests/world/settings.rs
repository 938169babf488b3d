//! Calls about a machine's record, and a record made from nothing (xapi.md 3, 4.5).

use serde_json::{Value, json};

use super::brisk;
use crate::wire::{Outcome, failure};

const GIB: u64 = 1 << 30;

/// xapi.md 4.5, `VM.set_VCPUs_…`: the maximum is raised first and lowered last; halted only.
#[tokio::test]
async fn processors_are_raised_and_lowered_in_order() {
    let raw = brisk().await;
    let (vm, _) = raw.machine("m").await;
    for (field, value, fits) in [
        ("VCPUs_at_startup", 4, false),
        ("VCPUs_max", 4, true),
        ("VCPUs_at_startup", 4, true),
        ("VCPUs_max", 2, false),
        ("VCPUs_at_startup", 0, false),
        ("VCPUs_at_startup", 1, true),
        ("VCPUs_max", 1, true),
    ] {
        let answer = raw.call(&format!("VM.set_{field}"), json!([vm, value])).await;
        assert_eq!(answer.as_ref().err().map(|e| e[0].as_str()), (!fits).then_some("INVALID_VALUE"), "{field} {value}");
        assert_eq!(raw.get("VM", &vm, field).await == json!(value), fits, "{field} {value}");
    }
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    for call in ["VM.set_VCPUs_max", "VM.set_VCPUs_at_startup"] {
        assert_eq!(raw.call(call, json!([vm, 1])).await, failure(["VM_BAD_POWER_STATE", &vm, "halted", "running"]));
    }
}

/// xapi.md 3, memory: static_min ≤ dynamic_min ≤ dynamic_max ≤ static_max, whichever call changes them; 4.5: halted only.
#[tokio::test]
async fn memory_keeps_its_order() {
    let raw = brisk().await;
    let (vm, _) = raw.machine("m").await;
    let fields = ["memory_static_min", "memory_dynamic_min", "memory_dynamic_max", "memory_static_max"];
    let shown = async || {
        let row = raw.call("VM.get_record", json!([vm])).await.unwrap();
        fields.map(|field| row[field].as_u64().unwrap() / GIB)
    };
    assert_eq!(shown().await, [2, 4, 4, 4]);
    // What is given is in GiB; in the order of the call's own parameters.
    for (call, given, expected) in [
        ("set_memory_limits", vec![1, 8, 2, 6], Some([1, 2, 6, 8])),
        ("set_memory_limits", vec![3, 8, 2, 6], None),
        ("set_memory", vec![4], Some([1, 4, 4, 4])),
        ("set_memory", vec![0], None),
        ("set_memory_static_range", vec![1, 3], None),
        ("set_memory_static_range", vec![2, 9], Some([2, 4, 4, 9])),
        ("set_memory_dynamic_range", vec![3, 10], None),
        ("set_memory_dynamic_range", vec![3, 8], Some([2, 3, 8, 9])),
        ("set_memory_static_max", vec![7], None),
        ("set_memory_static_max", vec![8], Some([2, 3, 8, 8])),
        ("set_memory_static_min", vec![4], None),
        ("set_memory_static_min", vec![1], Some([1, 3, 8, 8])),
        ("set_memory_dynamic_max", vec![2], None),
        ("set_memory_dynamic_max", vec![5], Some([1, 3, 5, 8])),
        ("set_memory_dynamic_min", vec![6], None),
        ("set_memory_dynamic_min", vec![5], Some([1, 5, 5, 8])),
    ] {
        let before = shown().await;
        let params: Value = std::iter::once(json!(vm)).chain(given.iter().map(|gib: &u64| json!(gib * GIB))).collect();
        let refused = raw.call(&format!("VM.{call}"), params).await.err();
        let expected_code = expected.is_none().then_some("MEMORY_CONSTRAINT_VIOLATION");
        assert_eq!(refused.as_ref().map(|e| e[0].as_str()), expected_code, "{call} {given:?}");
        assert_eq!(shown().await, expected.unwrap_or(before), "{call} {given:?}");
    }
    raw.call("VM.set_memory", json!([vm, 2 * GIB])).await.unwrap();
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    let running = failure(["VM_BAD_POWER_STATE", &vm, "halted", "running"]);
    assert_eq!(raw.call("VM.set_memory", json!([vm, GIB])).await, running);
    assert_eq!(raw.call("VM.set_memory_limits", json!([vm, GIB, GIB, GIB, GIB])).await, running);
}

/// xapi.md 4.5: what is free, as strings; a machine of these tests has a disk on 0, a drive on 3 and a card on 0.
#[tokio::test]
async fn free_devices_are_named() {
    let raw = brisk().await;
    let (vm, _) = raw.machine("m").await;
    let free = async |what: &str| {
        let all = raw.call(&format!("VM.get_allowed_{what}_devices"), json!([vm])).await.unwrap();
        serde_json::from_value::<Vec<String>>(all).unwrap()
    };
    let disks = free("VBD").await;
    assert_eq!((&disks[..3], disks.len()), (["1", "2", "4"].map(str::to_owned).as_slice(), 253));
    let cards = free("VIF").await;
    assert_eq!((cards[0].as_str(), cards.len()), ("1", 15));
    let gone = failure(["HANDLE_INVALID", "VM", "OpaqueRef:x"]);
    for what in ["get_allowed_VBD_devices", "get_allowed_VIF_devices", "get_possible_hosts"] {
        assert_eq!(raw.call(&format!("VM.{what}"), json!(["OpaqueRef:x"])).await, gone, "{what}");
    }
}

/// xapi.md 3: the fields that `VM.create` must be given, and the machine that comes of them.
#[tokio::test]
async fn a_machine_is_made_of_its_compulsory_fields() {
    let raw = brisk().await;
    let none = "OpaqueRef:NULL";
    let whole = json!({
        "user_version": 1, "is_a_template": false, "affinity": none, "memory_static_max": GIB, "memory_dynamic_max": GIB,
        "memory_dynamic_min": GIB, "memory_static_min": GIB, "VCPUs_params": {}, "VCPUs_max": 1, "VCPUs_at_startup": 1,
        "actions_after_shutdown": "destroy", "actions_after_reboot": "restart", "actions_after_crash": "destroy",
        "PV_bootloader": "", "PV_kernel": "", "PV_ramdisk": "", "PV_args": "", "PV_bootloader_args": "", "PV_legacy_args": "",
        "HVM_boot_policy": "BIOS order", "HVM_boot_params": {"order": "dc"}, "platform": {"viridian": "true"}, "PCI_bus": "",
        "other_config": {"k": "v"}, "recommendations": "",
    });
    let create = async |row: Value| -> Outcome { raw.run("VM.create", json!([row])).await };
    for field in whole.as_object().unwrap().keys() {
        let mut row = whole.clone();
        row.as_object_mut().unwrap().remove(field);
        let refused = create(row).await.unwrap_err();
        assert!(refused[0] == "INTERNAL_ERROR" && refused[1].contains(&format!("\"{field}\"")), "{field}: {refused:?}");
    }
    let mut row = whole.clone();
    row["memory_static_max"] = json!("plenty");
    assert_eq!(create(row).await, failure(["FIELD_TYPE_ERROR", "memory_static_max"]), "xapi.md 1.4");
    let mut row = whole.clone();
    // What only the daemon writes is left out of what a client gives.
    row.as_object_mut().unwrap().extend([("name_label".to_owned(), json!("made")), ("domid".to_owned(), json!(7))]);
    let vm = create(row).await.unwrap();
    let vm = vm.as_str().unwrap();
    let made = raw.call("VM.get_record", json!([vm])).await.unwrap();
    for (field, value) in whole.as_object().unwrap() {
        assert_eq!(made[field], *value, "{field}");
    }
    let state = ["name_label", "power_state", "domid", "resident_on", "VBDs", "VIFs"].map(|field| made[field].clone());
    assert_eq!(state, [json!("made"), json!("Halted"), json!(-1), json!(none), json!([]), json!([])]);
    let started = raw.get("VM_metrics", made["metrics"].as_str().unwrap(), "start_time").await;
    assert_eq!(started, "19700101T00:00:00Z", "never");
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    assert_eq!(raw.get("VM", vm, "power_state").await, "Running");
}

/// xapi.md 1.3 (DateTime), 9.2: the hosts' own time, which runs apart from everybody else's.
#[tokio::test]
async fn a_host_tells_its_own_time() {
    let raw = brisk().await;
    let host = raw.named("host", "host2").await;
    let time = async || {
        let shown = raw.call("host.get_servertime", json!([host])).await.unwrap();
        let shown = shown.as_str().unwrap().to_owned();
        let bytes = shown.as_bytes();
        assert_eq!((bytes.len(), bytes[8], bytes[11], bytes[17]), (18, b'T', b':', b'Z'), "{shown}");
        lamina::xapi::wire::parse_time(&shown).unwrap()
    };
    let first = time().await;
    raw.sim.pool.clock.sleep(std::time::Duration::from_secs(30)).await;
    assert!(time().await.duration_since(first).as_secs() >= 29, "fifty times as fast as the wall's");
    let gone = failure(["HANDLE_INVALID", "host", "OpaqueRef:x"]);
    assert_eq!(raw.call("host.get_servertime", json!(["OpaqueRef:x"])).await, gone);
}
