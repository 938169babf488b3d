//! What the pool forgets, and what it does twice (xapi.md 14, Durability and Replay).

use lamina::sim::restart;
use serde_json::{Value, json};

use super::brisk;
use crate::wire::{Raw, failure};

pub(super) async fn back(raw: &mut Raw, clean: bool) {
    restart::restart(&raw.sim.pool, clean).await;
    assert_eq!(raw.call("pool.get_all", json!([])).await, failure(["SESSION_INVALID", &raw.session]));
    raw.session = raw.login("root", "secret").await.unwrap();
}

pub(super) async fn scan(raw: &Raw) {
    let sr = raw.named("SR", "Shared storage").await;
    raw.run("SR.scan", json!([sr])).await.unwrap();
}

async fn started(raw: &Raw) -> Value {
    let pool = raw.first("pool").await;
    let master = raw.get("pool", &pool, "master").await;
    raw.get("host", master.as_str().unwrap(), "other_config").await["agent_start_time"].clone()
}

/// xapi.md 14, Durability: keys, machines and disks since the last write are gone, destroyed disks have their rows back, until the scan.
#[tokio::test]
async fn an_unclean_death_forgets_what_was_not_written() {
    let mut raw = brisk().await;
    let source = raw.named("VDI", "win11-24h2").await;
    let doomed = raw.make("VDI.clone", json!([source])).await;
    raw.call("VDI.set_name_label", json!([doomed, "doomed"])).await.unwrap();
    let doomed_uuid = raw.get("VDI", &doomed, "uuid").await;
    raw.call("pool.sync_database", json!([])).await.unwrap();
    raw.call("VDI.add_to_other_config", json!([source, "mark", "1"])).await.unwrap();
    raw.run("VDI.destroy", json!([doomed])).await.unwrap();
    let made = raw.make("VDI.snapshot", json!([source])).await;
    raw.call("VDI.set_name_label", json!([made, "made"])).await.unwrap();
    let made_uuid = raw.get("VDI", &made, "uuid").await;
    let (vm, _) = raw.machine("late").await;
    let before = started(&raw).await;
    back(&mut raw, false).await;

    assert_ne!(started(&raw).await, before);
    assert_eq!(raw.get("VDI", &source, "other_config").await.get("mark"), None);
    assert_eq!(raw.call("VM.get_uuid", json!([vm])).await, failure(["HANDLE_INVALID", "VM", &vm]));
    assert_eq!(raw.get("VDI", &doomed, "uuid").await, doomed_uuid, "its row is back, its disk is not");
    assert_eq!(raw.run("VDI.clone", json!([doomed])).await.unwrap_err()[0], "SR_BACKEND_FAILURE_46");
    let lost = raw.call("VDI.get_by_uuid", json!([made_uuid])).await;
    assert_eq!(lost, failure(["UUID_INVALID", "VDI", made_uuid.as_str().unwrap()]));
    scan(&raw).await;
    let found = raw.call("VDI.get_by_uuid", json!([made_uuid])).await.unwrap();
    let row = raw.call("VDI.get_record", json!([found])).await.unwrap();
    assert_eq!((&row["name_label"], &row["other_config"]), (&json!(""), &json!({})));
    assert_eq!((&row["is_a_snapshot"], &row["snapshot_of"]), (&json!(false), &json!("OpaqueRef:NULL")));
    let gone = raw.call("VDI.get_by_uuid", json!([doomed_uuid])).await;
    assert_eq!(gone, failure(["UUID_INVALID", "VDI", doomed_uuid.as_str().unwrap()]));
}

/// xapi.md 14, Durability: SIGTERM writes the database; 2.2 and 4.1: sessions and tasks are in memory only.
#[tokio::test]
async fn a_clean_stop_keeps_everything_but_tasks_and_sessions() {
    let mut raw = brisk().await;
    let source = raw.named("VDI", "win11-24h2").await;
    raw.call("VDI.add_to_other_config", json!([source, "mark", "1"])).await.unwrap();
    let task = raw.send_async("VDI.clone", json!([source])).await;
    raw.wait(&task).await.unwrap();
    back(&mut raw, true).await;
    assert_eq!(raw.get("VDI", &source, "other_config").await["mark"], "1");
    assert_eq!(raw.call("task.get_status", json!([task])).await, failure(["HANDLE_INVALID", "task", &task]));
}

/// xapi.md 14, Replay: one clone becomes two rows, of which one is named like its source; nothing else tells where they come from.
#[tokio::test]
async fn a_storage_call_under_way_runs_a_second_time() {
    for clean in [true, false] {
        let mut raw = brisk().await;
        let source = raw.named("VDI", "win11-24h2").await;
        raw.call("VDI.add_to_other_config", json!([source, "mark", "1"])).await.unwrap();
        raw.call("VDI.add_tags", json!([source, "t"])).await.unwrap();
        raw.call("pool.sync_database", json!([])).await.unwrap();
        raw.sim.pool.clock.hold("VDI.clone/row");
        raw.send_async("VDI.clone", json!([source])).await;
        raw.sim.pool.clock.held("VDI.clone/row").await;
        back(&mut raw, clean).await;
        assert_eq!(raw.sim.pool.clock.waiting(), [], "the dead wait for nothing");
        let children = async || {
            let all = raw.call("VDI.get_all_records", json!([])).await.unwrap();
            let all = all.as_object().unwrap().clone();
            let of = |row: &Value| row["managed"] == json!(true) && row["sm_config"].get("vhd-parent").is_some();
            all.into_iter().filter(|(r, row)| *r != source && of(row)).map(|(_, row)| row).collect::<Vec<_>>()
        };
        let expected = if clean { 2 } else { 1 };
        raw.seen("the second run", async || {
            children().await.iter().any(|row| row["name_label"] == "win11-24h2").then_some(())
        })
        .await;
        assert_eq!(children().await.len(), expected, "clean: {clean}");
        scan(&raw).await;
        let all = children().await;
        assert_eq!(all.len(), 2);
        assert!(all.iter().all(|row| row["tags"] == json!([]) && row["other_config"].get("mark").is_none()));
        assert!(all.iter().any(|row| row["name_label"] == "" && row["other_config"] == json!({})));
        assert_eq!(raw.get("VDI", &source, "current_operations").await, json!({}));
    }
}

/// xapi.md 14, Replay: `sm_config.paused`, and what a later clone says of it.
#[tokio::test]
async fn a_source_may_stay_paused_until_somebody_takes_the_key_off() {
    let mut raw = brisk().await;
    let source = raw.named("VDI", "win11-24h2").await;
    raw.sim.pool.world.redos.leave_paused();
    raw.sim.pool.clock.hold("VDI.clone/running");
    raw.send_async("VDI.clone", json!([source])).await;
    raw.sim.pool.clock.held("VDI.clone/running").await;
    back(&mut raw, false).await;
    raw.sim.pool.clock.unhold("VDI.clone/running");
    assert_eq!(raw.run("VDI.clone", json!([source])).await.unwrap_err()[0], "SR_BACKEND_FAILURE_81");
    raw.call("VDI.remove_from_sm_config", json!([source, "paused"])).await.unwrap();
    raw.run("VDI.clone", json!([source])).await.unwrap();
}

/// xapi.md 14, Durability: a running machine keeps domid, start_time and guest_metrics.
#[tokio::test]
async fn machines_run_on_while_the_daemon_dies() {
    let mut raw = brisk().await;
    let (vm, _) = raw.machine("m").await;
    raw.call("pool.sync_database", json!([])).await.unwrap();
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    let metrics = raw.get("VM", &vm, "metrics").await;
    let metrics = metrics.as_str().unwrap();
    let seen = async |raw: &Raw| {
        (
            raw.get("VM", &vm, "power_state").await,
            raw.get("VM", &vm, "domid").await,
            raw.get("VM_metrics", metrics, "start_time").await,
        )
    };
    let before = seen(&raw).await;
    assert_eq!(before.0, "Running");
    back(&mut raw, false).await;
    assert_eq!(seen(&raw).await, before);
    let vbds = raw.get("VM", &vm, "VBDs").await;
    assert_eq!(raw.get("VBD", vbds[0].as_str().unwrap(), "currently_attached").await, json!(true));
}

/// xapi.md 14, Durability: of a start that was not written the row is Halted in what the new daemon reads, and as its domain is once
/// the daemon has looked.
#[tokio::test]
async fn a_start_that_was_not_written_shows_all_the_same() {
    let mut raw = brisk().await;
    let (vm, disk) = raw.machine("m").await;
    raw.call("pool.sync_database", json!([])).await.unwrap();
    raw.sim.pool.clock.hold("VM.start/started");
    let task = raw.send_async("VM.start", json!([vm, false, false])).await;
    raw.sim.pool.clock.held("VM.start/started").await;
    let shown = async |raw: &Raw| {
        let row = raw.call("VM.get_record", json!([vm])).await.unwrap();
        let time = raw.get("VM_metrics", row["metrics"].as_str().unwrap(), "start_time").await;
        (["power_state", "domid", "resident_on"].map(|field| row[field].clone()), time)
    };
    let before = shown(&raw).await;
    assert_eq!(before.0[0], "Running");
    let metrics = raw.get("VM", &vm, "guest_metrics").await;
    back(&mut raw, false).await;
    assert_eq!(shown(&raw).await, before);
    assert_eq!(raw.call("task.get_status", json!([task])).await, failure(["HANDLE_INVALID", "task", &task]));
    assert_eq!(raw.get("VM", &vm, "current_operations").await, json!({}));
    let now = raw.get("VM", &vm, "guest_metrics").await;
    assert_ne!(now, metrics, "its row was not written: it is made anew");
    raw.until("VM_guest_metrics", now.as_str().unwrap(), "PV_drivers_detected", |v| *v == json!(true)).await;
    assert_eq!(raw.run("VDI.destroy", json!([disk])).await, failure(["VDI_IN_USE", &disk, "destroy"]));
    assert_eq!(
        raw.run("VM.start", json!([vm, false, false])).await,
        failure(["VM_BAD_POWER_STATE", &vm, "halted", "running"])
    );
}

/// xapi.md 14, Replay (queued calls are lost) and Durability: a start that had not come to the domain is lost; one that was written keeps its
/// guest metrics, too.
#[tokio::test]
async fn a_start_before_its_domain_is_lost_and_a_written_one_is_whole() {
    let mut raw = brisk().await;
    let (vm, _) = raw.machine("m").await;
    raw.call("pool.sync_database", json!([])).await.unwrap();
    raw.sim.pool.clock.hold("VM.start/domain");
    raw.send_async("VM.start", json!([vm, false, false])).await;
    raw.sim.pool.clock.held("VM.start/domain").await;
    back(&mut raw, false).await;
    raw.sim.pool.clock.unhold("VM.start/domain");
    assert_eq!(raw.get("VM", &vm, "power_state").await, "Halted");
    assert_eq!(raw.get("VM", &vm, "current_operations").await, json!({}));
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    let metrics = raw.get("VM", &vm, "guest_metrics").await;
    raw.call("pool.sync_database", json!([])).await.unwrap();
    back(&mut raw, false).await;
    assert_eq!(raw.get("VM", &vm, "guest_metrics").await, metrics);
}

/// xapi.md 14, Durability: of a halt and a destroy that were not written the machine's row is back and off, its VBD holds its disk again, and the
/// domain is gone.
#[tokio::test]
async fn a_destroyed_machine_comes_back_as_a_row() {
    let mut raw = brisk().await;
    let (vm, disk) = raw.machine("m").await;
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    raw.call("pool.sync_database", json!([])).await.unwrap();
    raw.run("VM.hard_shutdown", json!([vm])).await.unwrap();
    raw.run("VM.destroy", json!([vm])).await.unwrap();
    back(&mut raw, false).await;
    let row = raw.call("VM.get_record", json!([vm])).await.unwrap();
    assert_eq!((&row["power_state"], &row["domid"]), (&json!("Halted"), &json!(-1)), "as its domain is");
    assert_eq!(row["resident_on"], "OpaqueRef:NULL");
    let vbds = raw.get("VDI", &disk, "VBDs").await;
    assert_eq!(vbds.as_array().unwrap().len(), 1);
    assert_eq!(raw.get("VBD", vbds[0].as_str().unwrap(), "currently_attached").await, json!(false));
    raw.run("VM.destroy", json!([vm])).await.unwrap();
    raw.run("VDI.destroy", json!([disk])).await.unwrap();
}

/// xapi.md 14, Durability: the row of a disk destroyed since the last write is back until a scan, or until somebody destroys it again; names and
/// keys go on its row.
#[tokio::test]
async fn a_row_without_its_disk_can_be_destroyed_again() {
    let mut raw = brisk().await;
    let source = raw.named("VDI", "win11-24h2").await;
    let doomed = raw.make("VDI.clone", json!([source])).await;
    raw.call("pool.sync_database", json!([])).await.unwrap();
    raw.run("VDI.destroy", json!([doomed])).await.unwrap();
    back(&mut raw, false).await;
    for call in ["VDI.clone", "VDI.snapshot"] {
        assert_eq!(raw.run(call, json!([doomed])).await.unwrap_err()[0], "SR_BACKEND_FAILURE_46", "{call}");
    }
    raw.call("VDI.add_to_other_config", json!([doomed, "k", "v"])).await.unwrap();
    let renamed = raw.call("VDI.set_name_label", json!([doomed, "ghost"])).await;
    assert_eq!(renamed.unwrap_err()[0], "SR_BACKEND_FAILURE_46");
    raw.run("VDI.destroy", json!([doomed])).await.unwrap();
    assert_eq!(raw.call("VDI.get_uuid", json!([doomed])).await, failure(["HANDLE_INVALID", "VDI", &doomed]));
}

/// xapi.md 2.1, 2.2, 9.2: the address changes, sessions are gone, and the new coordinator takes log-ins.
#[tokio::test]
async fn another_host_becomes_coordinator() {
    let mut raw = brisk().await;
    let second = raw.named("host", "host2").await;
    let (vm, _) = raw.machine("m").await;
    let uuid = raw.get("host", &second, "uuid").await;
    restart::change_coordinator(&raw.sim.pool, uuid.as_str().unwrap()).await.unwrap();
    let refused = Err(vec!["HOST_IS_SLAVE".to_owned(), "127.0.0.2".to_owned()]);
    assert_eq!(raw.login("root", "secret").await, refused);
    let foreign = raw.call("pool.get_all", json!([])).await;
    assert_eq!(foreign, failure(["HOST_IS_SLAVE", "127.0.0.2"]), "whatever the session");
    raw.sim.hosts.swap(0, 1);
    assert_eq!(raw.call("pool.get_all", json!([])).await, failure(["SESSION_INVALID", &raw.session]));
    raw.session = raw.login("root", "secret").await.unwrap();
    let this = raw.call("session.get_this_host", json!([raw.session])).await;
    assert_eq!(this, Ok(json!(second)));
    assert_eq!(raw.get("VM", &vm, "name_label").await, "m", "a planned change keeps everything");
}

/// xapi.md 9.2 (a change of the coordinator), as `xe pool-designate-new-master` does it: the answer goes out first.
#[tokio::test]
async fn a_coordinator_can_be_designated() {
    let raw = brisk().await;
    let (pool, second) = (raw.first("pool").await, raw.named("host", "host2").await);
    raw.sim.pool.clock.hold("daemon/designate");
    raw.call("pool.designate_new_master", json!([second])).await.unwrap();
    assert_ne!(raw.get("pool", &pool, "master").await, second);
    let mut changed = raw.sim.pool.db().watch();
    raw.sim.pool.clock.held("daemon/designate").await;
    raw.sim.pool.clock.unhold("daemon/designate");
    let reference = lamina::xapi::wire::Ref(pool);
    while raw.sim.pool.db().link_to("pool", &reference, "master").unwrap().as_str() != second {
        tokio::time::timeout(std::time::Duration::from_secs(20), changed.changed()).await.unwrap().unwrap();
    }
}
