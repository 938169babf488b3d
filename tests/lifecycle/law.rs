//! What the law forbids when several things go wrong at once: a freeze that is older than the work, a child that is not ours, a start that
//! nobody asked for, a disk that a forgetful pool hides from a removal.

use std::time::Instant;

use kube::ResourceExt;
use lamina::api::Phase;
use lamina::demo::person::{Check, Deed, person};
use lamina::domain::identity::{Lineage, Mark};
use lamina::sim::restart;
use serde_json::json;

use crate::common::eventually;
use crate::common::rig::{PACE, Rig, disk, idle, machine, quick, ready, status, uid};

const OFF: &str = "StartMachine";

/// The snapshot was queued when somebody switched the machine on again: what is frozen holds the work of the last boot.
#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_is_taken_back_when_the_machine_ran_again() {
    let rig = Rig::new().await;
    let boots = vec![
        vec![Deed::Install, Deed::Reboot],
        vec![Deed::Work { block: 7, byte: 0x11 }, Deed::Report(Check::default()), Deed::PowerOff],
        vec![Deed::Work { block: 7, byte: 0x22 }, Deed::Report(Check::default()), Deed::PowerOff],
    ];
    rig.guest("again", person(boots));
    let _controller = rig.run().await;
    rig.layer("again", json!({})).await;
    let halted = rig.until_reason("again", "ApproveFinalize").await;
    rig.sim.pool.clock.hold("VDI.snapshot/linked");
    rig.approve("again", "1").await;
    eventually("a snapshot of W", async || (rig.calls("Async.VDI.snapshot") == 2).then_some(())).await;
    let vm = rig.hands.machine(&machine(&halted)).await.expect("M").r;
    rig.hands.call("VM.set_blocked_operations", json!([vm, {}])).await;
    rig.hands.call("VM.start", json!([vm, false, false])).await;
    rig.until_phase("again", Phase::MachineRunning).await;
    rig.until_phase("again", Phase::AwaitingFinalize).await;
    let bytes = rig.sim.pool.digest(&disk(&halted)).expect("W");
    rig.sim.pool.clock.unhold("VDI.snapshot/linked");
    let done = rig.until_finalized("again", "1").await;
    assert_eq!(rig.sim.pool.digest(&status(&done).versions[0].disk), Some(bytes));
    rig.hands.assert_tidy().await;
}

/// What a dead daemon left paused is ours to wake, with proof.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_was_left_paused_is_woken() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    rig.layer("first", json!({"machine": {"powerOn": false}})).await;
    rig.until_reason("first", OFF).await;
    let base = rig.hands.bases().await.remove(0);
    rig.hands.call("VDI.add_to_sm_config", json!([base.r, "paused", "true"])).await;
    rig.layer("second", json!({"machine": {"powerOn": false}})).await;
    rig.until_reason("second", OFF).await;
    assert!(rig.hands.disk(base.uuid()).await.expect("S").row["sm_config"]["paused"].is_null());
}

/// A mark of ours that this process did not set may be another's of ours: looked into before anything is sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_was_there_already_is_looked_into() {
    let rig = Rig::new().await;
    let (os, sr) = (rig.hands.named("VDI", "win11-24h2").await, rig.hands.named("SR", "Shared storage").await);
    let home = kube::Api::<k8s_openapi::api::core::v1::Namespace>::all(rig.client.clone());
    let cluster = home.get("kube-system").await.expect("a namespace").uid().expect("a uid");
    let (sr, os_uuid) = (sr.uuid().to_owned(), os.uuid().to_owned());
    let mark = Lineage::Base { cluster, sr, os: os_uuid, os_version: "24H2".into() }.mark();
    rig.hands.call("VDI.add_to_other_config", json!([os.r, "lamina.dev/making", mark.to_string()])).await;
    let _controller = rig.run().await;
    rig.layer("marked", json!({"machine": {"powerOn": false}})).await;
    rig.until_reason("marked", "WaitingForInFlight").await;
    rig.until_reason("marked", OFF).await;
    assert_eq!(rig.hands.bases().await.len(), 1);
    rig.hands.assert_tidy().await;
}

/// Whoever marked a base for removal and is gone holds nobody up.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_mark_does_not_outlive_its_layer() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    rig.layer("first", json!({"machine": {"powerOn": false}})).await;
    rig.until_reason("first", OFF).await;
    let base = rig.hands.bases().await.remove(0);
    let cluster = base.key("cluster").expect("a cluster");
    let mark = Mark::removal(cluster, "5c0f3c7e-0000-4000-8000-000000000000").to_string();
    rig.hands.call("VDI.add_to_other_config", json!([base.r, "lamina.dev/making", mark])).await;
    rig.layer("second", json!({"machine": {"powerOn": false}})).await;
    rig.until_reason("second", OFF).await;
    assert_eq!(rig.hands.bases().await.len(), 1);
    rig.hands.assert_tidy().await;
}

/// Its keys were taken off a machine that has run and was shut down: it may have been rearmed, and stays off.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_ran_and_lost_its_keys_stays_off() {
    let rig = Rig::new().await;
    rig.guest("bare", quick());
    let _controller = rig.run().await;
    rig.layer("bare", json!({})).await;
    let halted = rig.until_reason("bare", "ApproveFinalize").await;
    let m = rig.hands.machine(&machine(&halted)).await.expect("M");
    rig.hands.call("VM.set_other_config", json!([m.r, {}])).await;
    rig.until_reason("bare", "FixIntegrity").await;
    rig.meanwhile().await;
    let now = rig.hands.machine(m.uuid()).await.expect("M");
    assert_eq!((rig.calls("Async.VM.start"), &now.row["xenstore_data"]), (1, &m.row["xenstore_data"]));
}

/// The OS layer is corrected while the disk is being cloned: the disk that is used stands on the new one, and nothing is left of the old.
#[tokio::test(flavor = "multi_thread")]
async fn an_os_layer_that_changes_during_the_clone_leaves_nothing() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    rig.sim.pool.clock.hold("VDI.clone/row");
    rig.layer("os", json!({"machine": {"powerOn": false}, "deletionPolicy": "Delete"})).await;
    eventually("a clone under way", async || (rig.calls("Async.VDI.clone") == 1).then_some(())).await;
    rig.patch("os", json!({"osLayer": {"version": "25H1"}})).await;
    rig.until("os", "the wish seen", |l| {
        l.status.as_ref().is_some_and(|s| s.observed_generation == l.metadata.generation)
    })
    .await;
    rig.sim.pool.clock.unhold("VDI.clone/row");
    let made = rig.until_reason("os", OFF).await;
    let bases = rig.hands.bases().await;
    assert_eq!(bases.iter().map(|b| b.key("os-version")).collect::<Vec<_>>(), [Some("25H1")]);
    let w = rig.hands.disk(&disk(&made)).await.expect("W");
    assert_eq!(w.key("base"), Some(bases[0].uuid()));
    rig.hands.assert_tidy().await;
}

/// The pool forgot the disk's row when its layer is deleted: the disk is looked for, and goes too.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_finds_the_disk_that_the_pool_forgot() {
    let rig = Rig::new().await;
    let controller = rig.run().await;
    rig.layer("hidden", json!({"machine": {"powerOn": false}, "deletionPolicy": "Delete"})).await;
    let made = rig.until_reason("hidden", OFF).await;
    drop(controller);
    restart::restart(&rig.sim.pool, false).await;
    rig.delete("hidden").await;
    let _controller = rig.run().await;
    rig.until_gone("hidden").await;
    let sr = rig.hands.named("SR", "Shared storage").await.r;
    rig.hands.call("SR.scan", json!([sr])).await;
    let left: Vec<_> = rig.hands.all("VDI").await.into_iter().map(|d| d.uuid().to_owned()).collect();
    let s = status(&made).disk.expect("W");
    let ours = [Some(s.uuid), s.base.map(|b| b.uuid)];
    assert!(left.iter().all(|uuid| !ours.contains(&Some(uuid.clone()))), "{left:?} {ours:?}");
    rig.hands.assert_tidy().await;
}

/// A disk that was taken off its machine is there again when that is started.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_gives_the_machine_its_disk_back() {
    let rig = Rig::new().await;
    rig.guest("off", idle());
    let _controller = rig.run().await;
    rig.layer("off", json!({})).await;
    let layer = rig.until_reason("off", "InstallSoftware").await;
    let (vm, w) = (rig.hands.machine(&machine(&layer)).await.expect("M").r, disk(&layer));
    rig.hands.call("VM.hard_shutdown", json!([vm])).await;
    rig.until_reason("off", "FixIntegrity").await;
    let vbd = rig.hands.disk(&w).await.expect("W").row["VBDs"][0].clone();
    rig.hands.call("VBD.destroy", json!([vbd])).await;
    rig.patch("off", json!({"machine": {"restartToken": "go"}})).await;
    rig.until_reason("off", "InstallSoftware").await;
    let vbds = rig.hands.disk(&w).await.expect("W").row["VBDs"].clone();
    assert_eq!(vbds.as_array().map(Vec::len), Some(1), "{vbds}");
}

/// Somebody runs on the disk: the removal says what the pool refused, asks again with growing pauses, and ends when it may.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_the_pool_refuses_is_told_and_ends_later() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    rig.layer("held", json!({"machine": {"powerOn": false}, "deletionPolicy": "Delete"})).await;
    let made = rig.until_reason("held", OFF).await;
    let w = rig.hands.disk(&disk(&made)).await.expect("W");
    let (vm, vbd) = rig.hands.stranger("thief", &w.r).await;
    rig.hands.call("VM.start", json!([vm, false, false])).await;
    let before = Instant::now();
    rig.delete("held").await;
    rig.until("held", "told what holds it up", |l| ready(l).is_some_and(|(_, m)| m.contains("VDI_IN_USE"))).await;
    let asked = || {
        let entries = rig.sim.pool.log.entries();
        entries.iter().filter(|e| e.method == "Async.VDI.destroy" && e.params[0] == json!(w.r)).count()
    };
    eventually("asked six times", async || (asked() >= 6).then_some(())).await;
    // Each pause is twice the one before: 1 + 2 + 4 + 8 + 16.
    let pauses = PACE.backoff.0 * 31;
    assert!(before.elapsed() >= pauses.mul_f64(1.0 - PACE.jitter), "{:?}", before.elapsed());
    rig.hands.call("VM.hard_shutdown", json!([vm])).await;
    rig.hands.call("VBD.destroy", json!([vbd])).await;
    rig.until_gone("held").await;
    rig.hands.assert_nothing_of(&uid(&made)).await;
}
