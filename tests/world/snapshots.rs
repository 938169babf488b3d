//! What other tools do to a machine: snapshots, moves, resets, commands for its guest (xapi.md 4.5, 7.6).

use lamina::sim::script;
use serde_json::{Value, json};

use super::brisk;
use crate::wire::failure;

/// xapi.md 4.5: allowed in any state; disks are snapshot, the drive is kept; the record is a template and a snapshot.
#[tokio::test]
async fn a_running_machine_is_snapshot_and_reverted() {
    let raw = brisk().await;
    let (vm, disk) = raw.machine("m").await;
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    raw.call("VM.set_other_config", json!([vm, {"k": "v"}])).await.unwrap();
    raw.call("VDI.add_to_other_config", json!([disk, "k", "v"])).await.unwrap();
    let snapshot = raw.make("VM.snapshot", json!([vm, "s"])).await;
    let row = raw.call("VM.get_record", json!([snapshot])).await.unwrap();
    assert_eq!(
        (&row["is_a_snapshot"], &row["is_a_template"], &row["snapshot_of"]),
        (&json!(true), &json!(true), &json!(vm))
    );
    assert_eq!((&row["power_state"], &row["other_config"]), (&json!("Halted"), &json!({"k": "v"})));
    assert_eq!(raw.get("VM", &vm, "snapshots").await, json!([snapshot]));
    assert_eq!(raw.get("VM", &vm, "power_state").await, "Running");
    let [taken] = <[String; 1]>::try_from(disks(&raw, &snapshot).await).unwrap();
    assert_eq!(raw.get("VDI", &taken, "snapshot_of").await, json!(disk));
    assert_eq!(raw.get("VDI", &taken, "is_a_snapshot").await, json!(true));
    assert_eq!(
        raw.run("VM.start", json!([snapshot, false, false])).await,
        failure(["VM_IS_SNAPSHOT", &snapshot, "start"])
    );
    assert_eq!(raw.run("VM.revert", json!([vm])).await, failure(["REVERT_ONLY_ALLOWED_ON_SNAPSHOT"]));

    raw.run("VM.revert", json!([snapshot])).await.unwrap();
    assert_eq!(raw.get("VM", &vm, "power_state").await, "Halted", "stopped hard");
    assert_eq!(
        raw.call("VDI.get_uuid", json!([disk])).await,
        failure(["HANDLE_INVALID", "VDI", &disk]),
        "its disk is gone"
    );
    let [fresh] = <[String; 1]>::try_from(disks(&raw, &vm).await).unwrap();
    assert_eq!(raw.get("VDI", &fresh, "other_config").await["k"], "v", "another disk under the same keys");
    raw.run("VM.destroy", json!([vm])).await.unwrap();
    assert_eq!(raw.run("VM.revert", json!([snapshot])).await.unwrap_err()[0], "VM_REVERT_FAILED");
    raw.run("VM.destroy", json!([snapshot])).await.unwrap();
    raw.call("VDI.get_uuid", json!([taken])).await.unwrap();
}

async fn disks(raw: &crate::wire::Raw, vm: &str) -> Vec<String> {
    let mut disks = Vec::new();
    for vbd in raw.get("VM", vm, "VBDs").await.as_array().unwrap() {
        let row = raw.call("VBD.get_record", json!([vbd])).await.unwrap();
        if row["type"] == "Disk" {
            disks.push(row["VDI"].as_str().unwrap().to_owned());
        }
    }
    disks
}

/// xapi.md 4.5, 14 (Power): a checkpoint keeps the memory, of a machine that has some.
#[tokio::test]
async fn a_checkpoint_wants_a_machine_with_memory() {
    let raw = brisk().await;
    let (vm, _) = raw.machine("m").await;
    assert_eq!(
        raw.run("VM.checkpoint", json!([vm, "c"])).await,
        failure(["VM_BAD_POWER_STATE", &vm, "paused, suspended, running", "halted"])
    );
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    let checkpoint = raw.make("VM.checkpoint", json!([vm, "c"])).await;
    assert_eq!(raw.get("VM", &checkpoint, "power_state").await, "Suspended");
    let pool = lamina::xapi::wire::Ref(raw.first("pool").await);
    raw.sim.pool.db().set("pool", &pool, "suspend_image_SR", json!("OpaqueRef:NULL")).unwrap();
    for call in ["VM.suspend", "VM.checkpoint"] {
        let mut given = vec![json!(vm)];
        given.extend((call == "VM.checkpoint").then(|| json!("c")));
        assert_eq!(raw.run(call, Value::Array(given)).await, failure(["VM_NO_SUSPEND_SR", &vm]), "xapi.md 14, Power");
    }
}

/// xapi.md 2.3 (migration), 4.5: the same boot, in another domain on another host; a full or disabled host takes nothing.
#[tokio::test]
async fn a_machine_moves_with_its_boot() {
    let raw = brisk().await;
    let text = "- match: {}\n  steps:\n  - write: {vm-data/boot: '${guid}'}\n  - install_tools: 0\n";
    script::parse(text).unwrap().into_iter().for_each(|s| script::install(&raw.sim.pool.world.guests, s));
    let (vm, _) = raw.machine("m").await;
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    raw.until("VM", &vm, "xenstore_data", |d| d.get("vm-data/boot").is_some()).await;
    let row = async || raw.call("VM.get_record", json!([vm])).await.unwrap();
    let before = row().await;
    let start = async || raw.get("VM_metrics", before["metrics"].as_str().unwrap(), "start_time").await;
    let started = start().await;
    let hosts = raw.call("host.get_all", json!([])).await.unwrap();
    let mut others = hosts.as_array().unwrap().iter().filter(|host| **host != before["resident_on"]);
    let (closed, other) = (others.next().unwrap().as_str().unwrap(), others.next().unwrap());
    raw.call("host.disable", json!([closed])).await.unwrap();
    assert_eq!(raw.run("VM.pool_migrate", json!([vm, closed, {}])).await, failure(["HOST_DISABLED", closed]));
    raw.run("VM.pool_migrate", json!([vm, other, {"live": "true"}])).await.unwrap();
    let after = row().await;
    assert_eq!((&after["resident_on"], &after["power_state"]), (other, &json!("Running")));
    assert_eq!((&before["domid"], &after["domid"]), (&json!(1), &json!(1)), "each host counts its own");
    assert_eq!(
        (&after["xenstore_data"], &after["guest_metrics"]),
        (&before["xenstore_data"], &before["guest_metrics"])
    );
    assert_eq!(start().await, started);
    // The guest goes on there.
    let metrics = after["guest_metrics"].as_str().unwrap();
    raw.until("VM_guest_metrics", metrics, "other", |o| o.get("feature-shutdown").is_some()).await;
    raw.run("VM.clean_shutdown", json!([vm])).await.unwrap();
}

/// xapi.md 2.3, `VM.power_state_reset`: the record alone is reset; the domain runs on, and its next sign puts the record right.
#[tokio::test]
async fn a_reset_power_state_is_only_a_record() {
    let raw = brisk().await;
    let (vm, disk) = raw.machine("m").await;
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    raw.run("VM.power_state_reset", json!([vm])).await.unwrap();
    assert_eq!(raw.get("VM", &vm, "power_state").await, "Halted");
    let uuid = raw.get("VM", &vm, "uuid").await;
    assert!(raw.sim.pool.world.domains.domid(uuid.as_str().unwrap()).is_some());
    let vbds = raw.get("VDI", &disk, "VBDs").await;
    assert_eq!(raw.get("VBD", vbds[0].as_str().unwrap(), "currently_attached").await, json!(false));
}

/// xapi.md 7.6: each refusal has its own name.
#[tokio::test]
async fn no_guest_takes_commands() {
    let raw = brisk().await;
    let (vm, _) = raw.machine("m").await;
    let ask = async |plugin: &str, function: &str| raw.call("VM.call_plugin", json!([vm, plugin, function, {}])).await;
    assert_eq!(
        ask("guest-agent-operation", "run-script").await,
        failure(["VM_BAD_POWER_STATE", &vm, "running", "halted"])
    );
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    assert_eq!(ask("other", "x").await, failure(["XENAPI_MISSING_PLUGIN", "other"]));
    assert_eq!(ask("guest-agent-operation", "run-script").await.unwrap_err()[0], "NOT_IMPLEMENTED");
    let limited = ask("guest-agent-operation", "run-script").await.unwrap_err();
    assert_eq!(limited[..3], ["VM_CALL_PLUGIN_RATE_LIMIT", &vm, "10."]);
    let wait: f64 = limited[3].parse().unwrap();
    assert!(wait > 0.0 && wait <= 10.0, "{wait}");
    for function in ["request-rdp-on", "fly"] {
        raw.sim.pool.clock.sleep(std::time::Duration::from_secs(10)).await;
        assert_eq!(ask("guest-agent-operation", function).await.unwrap_err()[0], "XENAPI_PLUGIN_FAILURE", "{function}");
    }
}

/// xapi.md 4.6: a card needs drivers to come and go; a mistaken network is named.
#[tokio::test]
async fn a_card_needs_drivers_to_be_plugged() {
    let raw = brisk().await;
    let (vm, _) = raw.machine("m").await;
    let card = raw.get("VM", &vm, "VIFs").await[0].as_str().unwrap().to_owned();
    assert_eq!(raw.run("VIF.unplug", json!([card])).await, failure(["VM_BAD_POWER_STATE", &vm, "running", "halted"]));
    raw.sim.pool.clock.hold("guest/boot");
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    assert_eq!(raw.run("VIF.unplug", json!([card])).await, failure(["VM_MISSING_PV_DRIVERS", &vm]));
    raw.sim.pool.clock.unhold("guest/boot");
    let metrics = raw.get("VM", &vm, "guest_metrics").await;
    raw.until("VM_guest_metrics", metrics.as_str().unwrap(), "PV_drivers_detected", |v| *v == json!(true)).await;
    raw.run("VIF.unplug", json!([card])).await.unwrap();
    assert_eq!(raw.run("VIF.unplug", json!([card])).await, failure(["DEVICE_ALREADY_DETACHED", &card]));
    raw.run("VIF.plug", json!([card])).await.unwrap();
    let network = raw.named("network", "Packaging").await;
    raw.run("VIF.move", json!([card, network])).await.unwrap();
    assert_eq!(raw.get("VIF", &card, "network").await, json!(network));
}

/// xapi.md 4.4: a bit for 64 KiB, most significant first, between two states of one disk; over a snapshot that is gone or has no data any more.
#[tokio::test]
async fn changed_blocks_are_listed_between_states_of_one_disk() {
    let raw = brisk().await;
    let sr = raw.named("SR", "Shared storage").await;
    let row = json!({"SR": sr, "virtual_size": 4 << 20, "type": "user", "sharable": false, "read_only": false, "other_config": {}});
    let disk = raw.make("VDI.create", json!([row])).await;
    let uuid = raw.get("VDI", &disk, "uuid").await.as_str().unwrap().to_owned();
    let write = |at: u64| raw.sim.pool.world.disks().write_at(&uuid, at, b"x").unwrap();
    write(0);
    raw.run("VDI.enable_cbt", json!([disk])).await.unwrap();
    let first = raw.make("VDI.snapshot", json!([disk])).await;
    write(3 << 16);
    let second = raw.make("VDI.snapshot", json!([disk])).await;
    write((8 << 16) - 1);
    write(63 << 16);
    let third = raw.make("VDI.snapshot", json!([disk])).await;
    let list = async |from: &str, to: &str| raw.run("VDI.list_changed_blocks", json!([from, to])).await;
    assert_eq!(list(&first, &first).await, Ok(json!("AAAAAAAAAAA=")));
    assert_eq!(list(&first, &second).await, Ok(json!("EAAAAAAAAAA=")), "bit 3 of byte 0");
    let both = Ok(json!("EQAAAAAAAAE="));
    assert_eq!(list(&first, &third).await, both);
    assert_eq!(list(&first, &disk).await, both);
    raw.run("VDI.data_destroy", json!([first])).await.unwrap();
    raw.run("VDI.destroy", json!([second])).await.unwrap();
    assert_eq!(list(&first, &third).await, both, "who comes after keeps what the one before knew");
    let clone = raw.make("VDI.clone", json!([third])).await;
    for (from, to) in [(&third, &first), (&third, &clone), (&clone, &third)] {
        assert_eq!(list(from, to).await.unwrap_err()[0], "SR_BACKEND_FAILURE_460");
    }
    let (machine, os) = raw.machine("m").await;
    raw.run("VM.start", json!([machine, false, false])).await.unwrap();
    assert_eq!(list(&first, &os).await, crate::wire::failure(["VDI_IN_USE", &os, "list_changed_blocks"]));
}
