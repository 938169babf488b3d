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

/// xapi.md 4.5, 14: what a clone takes over, and what it does not.
#[tokio::test]
async fn a_clone_inherits_and_forgets_as_the_dossier_says() {
    let raw = brisk().await;
    let (vm, _) = raw.machine("used").await;
    for (call, value) in
        [("set_other_config", json!({"folder": "/x", "auto_poweron": "true"})), ("set_tags", json!(["t"]))]
    {
        raw.call(&format!("VM.{call}"), json!([vm, value])).await.unwrap();
    }
    raw.call("VM.set_ha_restart_priority", json!([vm, "restart"])).await.unwrap();
    raw.call("VM.add_to_blocked_operations", json!([vm, "destroy", "mine"])).await.unwrap();
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    let metrics = raw.get("VM", &vm, "guest_metrics").await;
    raw.until("VM_guest_metrics", metrics.as_str().unwrap(), "PV_drivers_version", |v| v.get("major").is_some()).await;
    raw.run("VM.hard_shutdown", json!([vm])).await.unwrap();
    assert_eq!(raw.run("VM.destroy", json!([vm])).await, failure(["OPERATION_BLOCKED", &vm, "mine"]));
    let clone = raw.make("VM.clone", json!([vm, "clone"])).await;
    let [old, new] = [&vm, &clone].map(|m| raw.call("VM.get_record", json!([m])));
    let (old, new) = (old.await.unwrap(), new.await.unwrap());
    for field in ["tags", "ha_restart_priority", "memory_static_max", "HVM_boot_params"] {
        assert_eq!(old[field], new[field], "{field}");
    }
    assert_eq!(new["blocked_operations"], json!({}));
    let keys = &new["other_config"];
    assert_eq!((&keys["folder"], &keys["auto_poweron"]), (&json!("/x"), &json!("true")));
    assert!(keys["mac_seed"].is_string() && keys["base_template_name"].is_string());
    assert_ne!(new["guest_metrics"], old["guest_metrics"]);
    let version = raw.get("VM_guest_metrics", new["guest_metrics"].as_str().unwrap(), "PV_drivers_version").await;
    assert_eq!(version["major"], "9", "a copy of its source's");
    let time =
        async |row: &serde_json::Value| raw.get("VM_metrics", row["metrics"].as_str().unwrap(), "start_time").await;
    assert_eq!(time(&new).await, time(&old).await);
    assert_eq!(new["VBDs"].as_array().unwrap().len(), 2, "disk and drive");
}

/// xapi.md 14, Templates; 4.5.
#[tokio::test]
async fn templates_have_their_rules() {
    let raw = brisk().await;
    let built_in = raw.named("VM", "Windows 11").await;
    assert_eq!(
        raw.run("VM.destroy", json!([built_in])).await,
        failure(["VM_CANNOT_DELETE_DEFAULT_TEMPLATE", &built_in])
    );
    let template = raw.named("VM", "with-disk").await;
    assert_eq!(
        raw.run("VM.start", json!([template, false, false])).await,
        failure(["VM_IS_TEMPLATE", &template, "start"])
    );
    let clone = raw.make("VM.clone", json!([template, "c"])).await;
    assert_eq!(raw.get("VM", &clone, "is_a_template").await, json!(true));
    let vbds = raw.get("VM", &clone, "VBDs").await;
    let disk = raw.get("VBD", vbds[0].as_str().unwrap(), "VDI").await;
    let own = raw.get("VM", &template, "VBDs").await;
    assert_ne!(disk, raw.get("VBD", own[0].as_str().unwrap(), "VDI").await, "its disk is cloned");
    raw.run("VM.provision", json!([clone])).await.unwrap();
    assert_eq!(raw.get("VM", &clone, "is_a_template").await, json!(false));
    assert_eq!(raw.run("VM.provision", json!([clone])).await, failure(["PROVISION_ONLY_ALLOWED_ON_TEMPLATE"]));
    raw.call("VM.set_is_a_template", json!([clone, true])).await.unwrap();
    assert_eq!(raw.get("VM", &clone, "metrics").await, "OpaqueRef:NULL", "for good");
    let made = raw.make("VM.clone", json!([built_in, "w"])).await;
    raw.run("VM.provision", json!([made])).await.unwrap();
    assert_eq!(raw.get("VM", &made, "VBDs").await.as_array().unwrap().len(), 1, "the described disk");
}

/// xapi.md 4.6, 14 (VBD): rules of the constructor, of discs and of plugs.
#[tokio::test]
async fn devices_have_their_rules() {
    let raw = brisk().await;
    let (vm, disk) = raw.machine("m").await;
    assert_eq!(raw.vbd(&vm, Some(&disk), "0").await, failure(["DEVICE_ALREADY_EXISTS", "0"]));
    assert_eq!(raw.vbd(&vm, Some(&disk), "cat").await, failure(["INVALID_DEVICE", "cat"]));
    let vbds = raw.get("VM", &vm, "VBDs").await;
    let (of_disk, drive) = (vbds[0].as_str().unwrap(), vbds[1].as_str().unwrap());
    let iso = raw.named("VDI", "guest-tools.iso").await;
    assert_eq!(raw.run("VBD.eject", json!([drive])).await, failure(["VBD_IS_EMPTY", drive]));
    assert_eq!(raw.run("VBD.insert", json!([of_disk, iso])).await, failure(["VBD_NOT_REMOVABLE_MEDIA", of_disk]));
    raw.run("VBD.insert", json!([drive, iso])).await.unwrap();
    assert_eq!(raw.run("VBD.insert", json!([drive, iso])).await, failure(["VBD_NOT_EMPTY", drive]));
    assert_eq!(raw.run("VBD.unplug", json!([drive])).await, failure(["VM_BAD_POWER_STATE", &vm, "running", "halted"]));
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    let metrics = raw.get("VM", &vm, "guest_metrics").await;
    raw.until("VM_guest_metrics", metrics.as_str().unwrap(), "PV_drivers_detected", |v| *v == json!(true)).await;
    assert_eq!(raw.run("VBD.unplug", json!([drive])).await.unwrap_err()[0], "OPERATION_NOT_ALLOWED");
    raw.run("VBD.eject", json!([drive])).await.unwrap();
    assert_eq!(raw.run("VBD.destroy", json!([of_disk])).await.unwrap_err()[0], "OPERATION_NOT_ALLOWED");
    let late = raw.vbd(&vm, None, "4").await.unwrap();
    assert_eq!(raw.run("VBD.insert", json!([late, iso])).await.unwrap_err()[0], "INTERNAL_ERROR", "a dead drive");
    let second = raw.make("VM.clone", json!([raw.named("VM", "packaging").await, "n"])).await;
    raw.call("VM.set_is_a_template", json!([second, false])).await.unwrap();
    raw.vbd(&second, Some(&disk), "0").await.unwrap();
    assert_eq!(
        raw.run("VM.start", json!([second, false, false])).await,
        failure(["VDI_IN_USE", &disk]),
        "only the start refuses"
    );
    raw.run("VM.hard_shutdown", json!([vm])).await.unwrap();
    raw.run("VDI.destroy", json!([disk])).await.unwrap();
    assert_eq!(raw.get("VM", &second, "VBDs").await, json!([]), "the row goes with the disk");
}

/// xapi.md 14, Start: two at once.
#[tokio::test]
async fn of_two_starts_one_waits_and_finds_the_machine_running() {
    let raw = brisk().await;
    let (vm, _) = raw.machine("m").await;
    raw.sim.pool.clock.hold("VM.start/domain");
    let first = raw.send_async("VM.start", json!([vm, false, false])).await;
    raw.sim.pool.clock.held("VM.start/domain").await;
    let second = raw.send_async("VM.start", json!([vm, false, false])).await;
    assert_eq!(raw.get("VM", &vm, "current_operations").await, json!({&first: "start"}));
    raw.sim.pool.clock.unhold("VM.start/domain");
    raw.wait(&first).await.unwrap();
    assert_eq!(raw.wait(&second).await, failure(["VM_BAD_POWER_STATE", &vm, "halted", "running"]));
}

/// xapi.md 14, Start.
#[tokio::test]
async fn a_machine_that_no_host_can_run_is_refused() {
    let raw = brisk().await;
    let (vm, _) = raw.machine("m").await;
    let hosts = raw.call("host.get_all", json!([])).await.unwrap();
    let host = hosts[0].as_str().unwrap();
    let too_much = 1_i64 << 40;
    raw.call("VM.set_memory_limits", json!([vm, 1 << 30, too_much, 1 << 30, 1 << 30])).await.unwrap();
    assert_eq!(raw.run("VM.start", json!([vm, false, false])).await, failure(["NO_HOSTS_AVAILABLE"]));
    let refused = raw.call("VM.assert_can_boot_here", json!([vm, host])).await.unwrap_err();
    assert_eq!(
        (refused[0].as_str(), refused[1].as_str()),
        ("HOST_NOT_ENOUGH_FREE_MEMORY", too_much.to_string().as_str())
    );
    assert_eq!(
        raw.call("VM.set_memory_limits", json!([vm, 2, 1, 2, 1])).await.unwrap_err()[0],
        "MEMORY_CONSTRAINT_VIOLATION"
    );
}

/// xapi.md 4.5 (Guest-driven power changes) and 14 (Power, start_time): Running all the while, in a new boot.
#[tokio::test]
async fn a_reboot_is_a_new_boot_of_a_running_machine() {
    let raw = brisk().await;
    let (vm, _) = raw.machine("m").await;
    let refused = |expected: &str| failure(["VM_BAD_POWER_STATE", &vm, expected, "halted"]);
    assert_eq!(raw.run("VM.clean_reboot", json!([vm])).await, refused("running"));
    assert_eq!(raw.run("VM.hard_reboot", json!([vm])).await, refused("paused, running"));
    raw.sim.pool.clock.hold("guest/boot");
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    assert_eq!(raw.run("VM.clean_reboot", json!([vm])).await, failure(["VM_LACKS_FEATURE", &vm]), "no tools yet");
    raw.sim.pool.clock.unhold("guest/boot");
    let boot = async || {
        let row = raw.call("VM.get_record", json!([vm])).await.unwrap();
        assert_eq!(row["power_state"], "Running");
        let metrics = row["guest_metrics"].as_str().unwrap().to_owned();
        raw.until("VM_guest_metrics", &metrics, "PV_drivers_detected", |v| *v == json!(true)).await;
        let started = raw.get("VM_metrics", row["metrics"].as_str().unwrap(), "start_time").await;
        (row["domid"].as_i64().unwrap(), metrics, lamina::xapi::wire::parse_time(started.as_str().unwrap()).unwrap())
    };
    let mut before = boot().await;
    for (call, paused) in [("VM.clean_reboot", false), ("VM.hard_reboot", false), ("VM.hard_reboot", true)] {
        // `start_time` tells seconds.
        raw.sim.pool.clock.sleep(std::time::Duration::from_secs(2)).await;
        if paused {
            raw.run("VM.pause", json!([vm])).await.unwrap();
            let refused = failure(["VM_BAD_POWER_STATE", &vm, "running", "paused"]);
            assert_eq!(raw.run("VM.clean_reboot", json!([vm])).await, refused);
        }
        raw.run(call, json!([vm])).await.unwrap();
        let after = boot().await;
        assert_eq!(after.0, before.0 + 1, "{call}: another domain");
        assert!(after.1 != before.1 && after.2 > before.2, "{call}: fresh metrics, a later start");
        let old = raw.call("VM_guest_metrics.get_uuid", json!([before.1])).await;
        assert_eq!(old, failure(["HANDLE_INVALID", "VM_guest_metrics", &before.1]));
        before = after;
    }
}

/// xapi.md 4.5, `VM.copy`: its disks are copied in full, to the repository that is named or where they are; all else as with a clone.
#[tokio::test]
async fn a_copy_of_a_machine_has_disks_of_its_own() {
    let raw = brisk().await;
    let template = raw.named("VM", "with-disk").await;
    let local = raw.named("SR", "Local storage on host2").await;
    let source = raw.named("VDI", "with-disk 0").await;
    let uuid = raw.get("VDI", &source, "uuid").await;
    let home = raw.get("VDI", &source, "SR").await;
    raw.sim.pool.world.disks().write(uuid.as_str().unwrap(), 1, b"content").unwrap();
    for (name, given, expected) in [("here", "OpaqueRef:NULL", home.as_str().unwrap()), ("there", &local, &local)] {
        let copy = raw.make("VM.copy", json!([template, name, given])).await;
        let row = raw.call("VM.get_record", json!([copy])).await.unwrap();
        assert_eq!((&row["name_label"], &row["is_a_template"]), (&json!(name), &json!(true)));
        assert_eq!(row["other_config"]["base_template_name"], "with-disk");
        let vbd = row["VBDs"][0].as_str().unwrap();
        let disk = raw.get("VBD", vbd, "VDI").await;
        let disk = raw.call("VDI.get_record", json!([disk])).await.unwrap();
        assert_eq!(disk["SR"], expected, "{name}");
        assert_eq!(disk["sm_config"].get("vhd-parent"), None, "{name}: no chain");
        let content = raw.sim.pool.digest(disk["uuid"].as_str().unwrap());
        assert_eq!(content, raw.sim.pool.digest(uuid.as_str().unwrap()), "{name}");
    }
    assert_eq!(raw.get("VDI", &source, "sm_config").await.get("vhd-parent"), None, "the source is as it was");
    let (vm, _) = raw.machine("m").await;
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    let running = failure(["VM_BAD_POWER_STATE", &vm, "halted", "running"]);
    assert_eq!(raw.run("VM.copy", json!([vm, "c", local])).await, running, "xapi.md 14, Templates");
}
