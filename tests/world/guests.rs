//! What runs inside: scripts, programs, and the channel between a guest and the pool (xapi.md 7).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use lamina::sim::{
    clock::Clock,
    disk::pattern,
    guest::{Match, program},
    power::Exit,
    script,
};
use serde_json::{Value, json};

use super::{brisk, pool};
use crate::wire::failure;

fn install(raw: &crate::wire::Raw, yaml: &str) {
    for script in script::parse(yaml).unwrap() {
        script::install(&raw.sim.pool.world.guests, script);
    }
}

/// xapi.md 4.5, 7.3: the installer's reboots change domain, start_time and guest metrics, never the power state.
#[tokio::test]
async fn a_script_installs_tools_over_reboots_writes_and_halts() {
    let raw = brisk().await;
    install(
        &raw,
        "- match: {name: 'pack*'}\n  steps:\n  - install_tools: 2\n  - write: {vm-data/app/boot: '${guid}', vm-data/app/n: '${vm-data/app/nonce}-${domid}-${boot}'}\n  - write: {vm-data/app/sum: '${sha256:vm-data/app/}'}\n  - write_block: {disk: 0, block: 5, seed: 42}\n  - wait: 10\n  - halt\n",
    );
    let (vm, disk) = raw.machine("pack1").await;
    raw.call("VM.set_xenstore_data", json!([vm, {"vm-data/app/nonce": "N", "other": "x"}])).await.unwrap();
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    let first = raw.get("VM", &vm, "domid").await;
    let old = raw.get("VM", &vm, "guest_metrics").await;
    raw.until("VM", &vm, "domid", |d| *d == json!(first.as_i64().unwrap() + 2)).await;
    assert_eq!(raw.get("VM", &vm, "power_state").await, "Running");
    assert_ne!(raw.get("VM", &vm, "guest_metrics").await, old);
    assert_eq!(raw.call("VM_guest_metrics.get_uuid", json!([old])).await.unwrap_err()[0], "HANDLE_INVALID");
    raw.until("VM", &vm, "power_state", |s| s == "Halted").await;
    let data = raw.get("VM", &vm, "xenstore_data").await;
    assert_eq!(data["vm-data/app/n"], json!(format!("N-{}-3", first.as_i64().unwrap() + 2)));
    assert_eq!(data["vm-data/app/sum"].as_str().unwrap().len(), 64);
    assert_eq!(data.get("other"), None, "keys without the prefix go at the guest's first write");
    let uuid = raw.get("VDI", &disk, "uuid").await;
    assert_eq!(raw.sim.pool.world.disks().read(uuid.as_str().unwrap(), 5).unwrap(), pattern(42, 5));
}

/// xapi.md 7.4: a write followed at once by power-off is lost; one that was seen persists, over the halt and into a clone.
#[tokio::test]
async fn only_what_was_seen_survives_the_halt() {
    let raw = brisk().await;
    install(
        &raw,
        "- match: {}\n  steps:\n  - write: {vm-data/a: seen}\n  - wait: 5\n  - write: {vm-data/b: unseen}\n  - halt\n",
    );
    let (vm, _) = raw.machine("m").await;
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    raw.until("VM", &vm, "power_state", |s| s == "Halted").await;
    assert_eq!(raw.get("VM", &vm, "xenstore_data").await, json!({"vm-data/a": "seen"}));
    let clone = raw.make("VM.clone", json!([vm, "c"])).await;
    assert_eq!(raw.get("VM", &clone, "xenstore_data").await, json!({"vm-data/a": "seen"}));
}

/// xapi.md 7.4: a client that writes the map of a running machine takes the guest's right to write until the next boot.
#[tokio::test]
async fn writing_the_map_of_a_running_machine_locks_the_guest_out() {
    let raw = brisk().await;
    let results: Arc<Mutex<Vec<bool>>> = Arc::default();
    let seen = Arc::clone(&results);
    let runs = program(move |guest| {
        let seen = Arc::clone(&seen);
        async move {
            while guest.read("vm-data/go").is_none() {
                guest.stage("wait", Duration::from_millis(50)).await;
            }
            let keys = BTreeMap::from([("vm-data/mine".to_owned(), "1".to_owned())]);
            let wrote = guest.write(&keys).await.is_ok();
            seen.lock().unwrap().push(wrote);
            if wrote { std::future::pending().await } else { Exit::Reboot }
        }
    });
    raw.sim.pool.add_guest(Match { name: Some("m".into()), ..Match::default() }, runs);
    let (vm, _) = raw.machine("m").await;
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    raw.call("VM.set_xenstore_data", json!([vm, {"vm-data/go": "1"}])).await.unwrap();
    raw.until("VM", &vm, "xenstore_data", |d| d.get("vm-data/mine").is_some()).await;
    assert_eq!(*results.lock().unwrap(), [false, true], "refused, then allowed after the reboot");
}

/// xapi.md 4.5: no agent, no answer, or a hang.
#[tokio::test]
async fn a_guest_may_lack_the_feature_refuse_or_hang() {
    let raw = pool(Clock::new(500.0)).await;
    install(
        &raw,
        "- match: {name: deaf}\n  steps: [{install_tools: 0}, {wait: 2}, hang]\n- match: {name: dumb}\n  steps: [hang]\n",
    );
    let (dumb, _) = raw.machine("dumb").await;
    raw.run("VM.start", json!([dumb, false, false])).await.unwrap();
    assert_eq!(raw.run("VM.clean_shutdown", json!([dumb])).await, failure(["VM_LACKS_FEATURE", &dumb]));
    raw.run("VM.shutdown", json!([dumb])).await.unwrap();
    assert_eq!(raw.get("VM", &dumb, "power_state").await, "Halted");
    let (deaf, _) = raw.machine("deaf").await;
    raw.run("VM.start", json!([deaf, false, false])).await.unwrap();
    let metrics = raw.get("VM", &deaf, "guest_metrics").await;
    raw.until("VM_guest_metrics", metrics.as_str().unwrap(), "other", |o| o.get("feature-shutdown").is_some()).await;
    let uuid = raw.get("VM", &deaf, "uuid").await;
    raw.sim.pool.world.domains.until(uuid.as_str().unwrap(), |d| d.is_some_and(|d| d.deaf)).await;
    assert_eq!(
        raw.run("VM.clean_shutdown", json!([deaf])).await,
        failure(["VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT", &deaf])
    );
    raw.run("VM.hard_shutdown", json!([deaf])).await.unwrap();
}

/// Waits for the trail of a crash.
async fn crashed(raw: &crate::wire::Raw) {
    raw.seen("a crash", async || {
        let all = raw.call("message.get_all_records", json!([])).await.unwrap();
        all.as_object().unwrap().values().any(|m: &Value| m["name"] == "VM_CRASHED").then_some(())
    })
    .await;
}

/// xapi.md 4.5, "Guest-driven power changes": a crash does what the machine says; `preserve` keeps the domain.
#[tokio::test]
async fn a_crash_is_told_and_preserved() {
    let raw = brisk().await;
    install(&raw, "- match: {}\n  steps: [crash]\n");
    let (vm, _) = raw.machine("m").await;
    raw.call("VM.set_actions_after_crash", json!([vm, "preserve"])).await.unwrap();
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    crashed(&raw).await;
    assert_eq!(raw.get("VM", &vm, "power_state").await, "Running");
}

/// xapi.md 3 (actions) and 4.5: restarted in a new domain while Running, or switched off.
#[tokio::test]
async fn a_crash_does_what_the_machine_says() {
    let raw = brisk().await;
    install(&raw, "- match: {}\n  steps: [{wait: 2}, crash, {wait: 2}, crash]\n");
    let (vm, _) = raw.machine("m").await;
    raw.call("VM.set_actions_after_crash", json!([vm, "restart"])).await.unwrap();
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    let first = raw.get("VM", &vm, "domid").await.as_i64().unwrap();
    raw.until("VM", &vm, "domid", |d| *d == json!(first + 1)).await;
    assert_eq!(raw.get("VM", &vm, "power_state").await, "Running");
    raw.call("VM.set_actions_after_crash", json!([vm, "destroy"])).await.unwrap();
    raw.until("VM", &vm, "power_state", |s| s == "Halted").await;
    crashed(&raw).await;
}

async fn protected(raw: &crate::wire::Raw, name: &str) -> String {
    raw.call("pool.enable_ha", json!([[], {}])).await.unwrap();
    let (vm, _) = raw.machine(name).await;
    raw.call("VM.set_ha_restart_priority", json!([vm, "restart"])).await.unwrap();
    vm
}

/// xapi.md 9.2: with high availability a machine that halts from inside comes back, and one that was shut down does not.
#[tokio::test]
async fn high_availability_restarts_what_may_be_restarted() {
    let raw = brisk().await;
    install(&raw, "- match: {}\n  steps: [{install_tools: 0}, {wait: 5}, halt]\n");
    let vm = protected(&raw, "m").await;
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    assert_eq!(raw.get("VM", &vm, "ha_always_run").await, json!(true));
    let first = raw.get("VM", &vm, "domid").await;
    raw.until("VM", &vm, "power_state", |s| s == "Halted").await;
    raw.until("VM", &vm, "domid", |d| d.as_i64() > first.as_i64()).await;
    let metrics = raw.get("VM", &vm, "guest_metrics").await;
    raw.until("VM_guest_metrics", metrics.as_str().unwrap(), "other", |o| o.get("feature-shutdown").is_some()).await;
    raw.sim.pool.clock.hold("ha/");
    raw.run("VM.clean_shutdown", json!([vm])).await.unwrap();
    assert_eq!(raw.get("VM", &vm, "power_state").await, "Halted");
    assert_eq!(raw.get("VM", &vm, "ha_always_run").await, json!(false));
    assert_eq!(raw.sim.pool.clock.waiting(), [], "nobody is about to restart it");
}

/// xapi.md 9.2: the same for one that crashes, one that halts while the daemon is down, and one that became protected while it ran.
#[tokio::test]
async fn high_availability_sees_crashes_and_what_happened_while_it_was_down() {
    let mut raw = brisk().await;
    install(&raw, "- match: {name: crashing}\n  steps: [{wait: 2}, crash]\n");
    let crashing = protected(&raw, "crashing").await;
    raw.call("VM.set_actions_after_crash", json!([crashing, "destroy"])).await.unwrap();
    raw.run("VM.start", json!([crashing, false, false])).await.unwrap();
    let first = raw.get("VM", &crashing, "domid").await.as_i64().unwrap();
    raw.until("VM", &crashing, "domid", |d| d.as_i64() > Some(first)).await;
    let (late, _) = raw.machine("late").await;
    raw.run("VM.start", json!([late, false, false])).await.unwrap();
    assert_eq!(raw.get("VM", &late, "ha_always_run").await, json!(false));
    raw.call("VM.set_ha_restart_priority", json!([late, "restart"])).await.unwrap();
    assert_eq!(raw.get("VM", &late, "ha_always_run").await, json!(true));
    let uuid = raw.get("VM", &late, "uuid").await;
    let before = raw.get("VM", &late, "domid").await.as_i64().unwrap();
    lamina::sim::restart::stop(&raw.sim.pool, true).await;
    raw.sim.pool.world.domains.end(uuid.as_str().unwrap(), None);
    lamina::sim::restart::start(&raw.sim.pool);
    raw.session = raw.login("root", "secret").await.unwrap();
    raw.until("VM", &late, "domid", |d| d.as_i64() > Some(before)).await;
}
