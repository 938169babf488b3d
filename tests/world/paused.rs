//! Paused and suspended machines: nothing moves inside (xapi.md 1.3, 4.5, 14 Power).

use std::time::Duration;

use lamina::sim::script;
use serde_json::{Value, json};

use super::brisk;
use crate::wire::{Raw, failure};

/// A system that marks its boot, its progress and its number, and reboots on the way.
const BUSY: &str = "- match: {}\n  steps:\n  - write: {vm-data/at: first, vm-data/boot: '${guid}'}\n  - wait: 5\n  - reboot\n  \
    - write: {vm-data/at: second, vm-data/boot: '${guid}'}\n  - wait: 5\n  - write: {vm-data/at: third, vm-data/domid: '${domid}'}\n";

async fn busy() -> (Raw, String) {
    let raw = brisk().await;
    script::parse(BUSY).unwrap().into_iter().for_each(|s| script::install(&raw.sim.pool.world.guests, s));
    let (vm, _) = raw.machine("m").await;
    (raw, vm)
}

/// What a machine shows of its life: state, domain, and how far its guest came.
async fn shown(raw: &Raw, vm: &str) -> (Value, Value, Value) {
    (
        raw.get("VM", vm, "power_state").await,
        raw.get("VM", vm, "domid").await,
        raw.get("VM", vm, "xenstore_data").await["vm-data/at"].clone(),
    )
}

/// Lets `seconds` of the pool's clock go by: for what must not happen in them.
async fn pass(raw: &Raw, seconds: u64) {
    raw.sim.pool.clock.sleep(Duration::from_secs(seconds)).await;
}

/// xapi.md 1.3 (power states), 4.5: a guest that was about to reboot by itself stands still, and goes on where it stood: once, not twice.
#[tokio::test]
async fn a_paused_guest_stands_still_and_goes_on() {
    let (raw, vm) = busy().await;
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    raw.until("VM", &vm, "xenstore_data", |d| d["vm-data/at"] == "first").await;
    raw.run("VM.pause", json!([vm])).await.unwrap();
    let before = shown(&raw, &vm).await;
    assert_eq!((before.0.as_str(), before.2.as_str()), (Some("Paused"), Some("first")));
    pass(&raw, 20).await;
    assert_eq!(shown(&raw, &vm).await, before);
    raw.run("VM.unpause", json!([vm])).await.unwrap();
    raw.until("VM", &vm, "xenstore_data", |d| d["vm-data/at"] == "third").await;
    let after = shown(&raw, &vm).await;
    assert_eq!((after.0, after.1.as_i64()), (json!("Running"), before.1.as_i64().map(|d| d + 1)), "one reboot");
}

/// xapi.md 4.5: `start_paused`; the guest begins at unpause. A plain shutdown of a paused machine is a hard one at once.
#[tokio::test]
async fn a_machine_started_paused_boots_at_unpause() {
    let (raw, vm) = busy().await;
    raw.run("VM.start", json!([vm, true, false])).await.unwrap();
    pass(&raw, 20).await;
    assert_eq!(raw.get("VM", &vm, "power_state").await, "Paused");
    assert_eq!(raw.get("VM", &vm, "xenstore_data").await, json!({}));
    assert_eq!(
        raw.run("VM.clean_shutdown", json!([vm])).await,
        failure(["VM_BAD_POWER_STATE", &vm, "running", "paused"])
    );
    raw.run("VM.unpause", json!([vm])).await.unwrap();
    raw.until("VM", &vm, "xenstore_data", |d| d["vm-data/at"] == "first").await;
    raw.run("VM.pause", json!([vm])).await.unwrap();
    raw.run("VM.shutdown", json!([vm])).await.unwrap();
    assert_eq!(raw.get("VM", &vm, "power_state").await, "Halted");
}

/// xapi.md 4.5, 14 (Power): a suspended machine has no domain; resumed it is in the same boot in another domain, and keeps its guest metrics.
#[tokio::test]
async fn a_resumed_machine_is_in_its_old_boot() {
    let (raw, vm) = busy().await;
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    raw.until("VM", &vm, "xenstore_data", |d| d["vm-data/at"] == "second").await;
    let metrics = raw.get("VM", &vm, "metrics").await;
    let start = async || raw.get("VM_metrics", metrics.as_str().unwrap(), "start_time").await;
    let boot = async || raw.get("VM", &vm, "xenstore_data").await["vm-data/boot"].clone();
    let (started, booted, domid) = (start().await, boot().await, raw.get("VM", &vm, "domid").await.as_i64().unwrap());
    let old = raw.get("VM", &vm, "guest_metrics").await;
    raw.run("VM.suspend", json!([vm])).await.unwrap();
    pass(&raw, 20).await;
    assert_eq!(shown(&raw, &vm).await, (json!("Suspended"), json!(-1), json!("second")));
    assert_ne!(raw.get("VM", &vm, "suspend_VDI").await, "OpaqueRef:NULL");
    raw.run("VM.resume", json!([vm, false, false])).await.unwrap();
    raw.until("VM", &vm, "xenstore_data", |d| d["vm-data/domid"] == json!(format!("{}", domid + 1))).await;
    assert_eq!((start().await, boot().await), (started, booted));
    assert_eq!(raw.get("VM", &vm, "guest_metrics").await, old);
    raw.run("VM.suspend", json!([vm])).await.unwrap();
    raw.run("VM.hard_shutdown", json!([vm])).await.unwrap();
    assert_eq!(raw.get("VM", &vm, "power_state").await, "Halted");
    assert_eq!(raw.get("VM", &vm, "suspend_VDI").await, "OpaqueRef:NULL");
}

/// xapi.md 14, Replay: the driver's own lock shows on the source while it works, and is taken off at the end, also of a failure.
#[tokio::test]
async fn a_source_is_paused_while_the_driver_works_on_it() {
    let raw = brisk().await;
    let source = raw.named("VDI", "win11-24h2").await;
    let paused = async || raw.get("VDI", &source, "sm_config").await["paused"].clone();
    for method in ["VDI.clone", "VDI.snapshot"] {
        raw.sim.pool.clock.hold(&format!("{method}/row"));
        let task = raw.send_async(method, json!([source])).await;
        raw.sim.pool.clock.held(&format!("{method}/row")).await;
        assert_eq!(paused().await, "true", "{method}");
        raw.sim.pool.clock.unhold(&format!("{method}/row"));
        let child = raw.wait(&task).await.unwrap();
        assert_eq!(paused().await, Value::Null, "{method}");
        assert_eq!(raw.get("VDI", child.as_str().unwrap(), "sm_config").await.get("paused"), None);
    }
    let sr = raw.get("VDI", &source, "SR").await;
    raw.sim
        .pool
        .db()
        .set("SR", &lamina::xapi::wire::Ref(sr.as_str().unwrap().to_owned()), "physical_size", json!(1))
        .unwrap();
    assert_eq!(raw.run("VDI.clone", json!([source])).await.unwrap_err()[0], "SR_BACKEND_FAILURE_44");
    assert_eq!(paused().await, Value::Null);
}

/// xapi.md 14, Durability and Replay: what an unclean death finds written stays, and every later clone fails until somebody takes it off.
/// After a clean stop, and where nothing was written, nobody is left paused.
#[tokio::test]
async fn a_source_stays_paused_where_the_database_was_written_in_the_middle() {
    for (written, clean, left) in [(true, false, true), (false, false, false), (true, true, false)] {
        let mut raw = brisk().await;
        let source = raw.named("VDI", "win11-24h2").await;
        raw.sim.pool.clock.hold("VDI.clone/row");
        raw.send_async("VDI.clone", json!([source])).await;
        raw.sim.pool.clock.held("VDI.clone/row").await;
        if written {
            raw.call("pool.sync_database", json!([])).await.unwrap();
        }
        lamina::sim::restart::restart(&raw.sim.pool, clean).await;
        raw.sim.pool.clock.unhold("VDI.clone/row");
        raw.session = raw.login("root", "secret").await.unwrap();
        let again = raw.run("VDI.clone", json!([source])).await;
        assert_eq!(again.as_ref().err().map(|e| e[0].as_str()), left.then_some("SR_BACKEND_FAILURE_81"), "{again:?}");
        if left {
            raw.call("VDI.remove_from_sm_config", json!([source, "paused"])).await.unwrap();
            raw.run("VDI.clone", json!([source])).await.unwrap();
        }
    }
}
