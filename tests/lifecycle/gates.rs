//! What each gate of the law is there for, one test a gate: `tests/gates/run` takes a gate away and shows that its test fails.

use serde_json::json;

use crate::common::eventually;
use crate::common::rig::{Rig, disk, machine, quick, status, uid};

const OFF: &str = "StartMachine";

/// Mark: the pool forgot the task, and nobody else knows that a child was made.
#[tokio::test(flavor = "multi_thread")]
async fn the_mark_finds_the_child_of_a_forgotten_call() {
    let rig = Rig::new().await;
    rig.sim.pool.clock.hold("VDI.clone/row");
    let controller = rig.run().await;
    rig.layer("marked", json!({"machine": {"powerOn": false}})).await;
    rig.sim.pool.clock.held("VDI.clone/row").await;
    drop(controller);
    rig.sim.pool.clock.unhold("VDI.clone/row");
    let ended = || async {
        let tasks = rig.hands.all("task").await;
        let clone = tasks.into_iter().find(|t| t.text("name_label") == "Async.VDI.clone");
        clone.filter(|t| t.text("status") == "success")
    };
    let task = eventually("the clone is made", ended).await;
    rig.hands.call("task.destroy", json!([task.r])).await;
    let _controller = rig.run().await;
    rig.until_reason("marked", OFF).await;
    assert_eq!(rig.calls("Async.VDI.clone"), 1);
    rig.hands.assert_tidy().await;
}

/// Tag: a call that waits for its turn on the storage shows nowhere but in its task.
#[tokio::test(flavor = "multi_thread")]
async fn the_tag_finds_a_call_that_waits_for_its_turn() {
    let rig = Rig::new().await;
    rig.sim.pool.clock.hold("VDI.clone/queued");
    let controller = rig.run().await;
    rig.layer("queued", json!({"machine": {"powerOn": false}})).await;
    rig.sim.pool.clock.held("VDI.clone/queued").await;
    drop(controller);
    let controller = rig.run().await;
    // Where nothing happens they are `PACE.task` apart: longer than an in-flight test lasts.
    let passes = || controller.metric("lamina_reconciles_total{kind=\"layer\"}");
    eventually("many passes", async || (passes() > 12).then_some(())).await;
    assert_eq!(rig.calls("Async.VDI.clone"), 1);
    rig.sim.pool.clock.unhold("VDI.clone/queued");
    rig.until_reason("queued", OFF).await;
    assert_eq!(rig.calls("Async.VDI.clone"), 1);
    rig.hands.assert_tidy().await;
}

/// Claim: what bears our keys but is not the disk that they were written on is another's copy.
#[tokio::test(flavor = "multi_thread")]
async fn the_claim_tells_our_disk_from_a_copy_of_it() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    rig.layer("copied", json!({"machine": {"powerOn": false}, "deletionPolicy": "Delete"})).await;
    let made = rig.until_reason("copied", OFF).await;
    let w = rig.hands.disk(&disk(&made)).await.expect("W");
    let copy = rig.hands.call("VDI.clone", json!([w.r])).await;
    rig.delete("copied").await;
    rig.until_gone("copied").await;
    assert!(rig.hands.all("VDI").await.iter().any(|d| json!(d.r) == copy), "their copy is theirs");
}

/// Sight: made and gone is not the same as never made.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_disk_is_not_an_absent_one() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    rig.layer("lost", json!({"machine": {"powerOn": false}})).await;
    let made = rig.until_reason("lost", OFF).await;
    let (w, m) = (rig.hands.disk(&disk(&made)).await.expect("W"), machine(&made));
    rig.hands.destroy_machine(&m).await;
    rig.hands.destroy_disk(w.uuid()).await;
    rig.until_reason("lost", "DiskLost").await;
    rig.meanwhile().await;
    let left = rig.hands.of_layer(&uid(&made)).await;
    assert_eq!(left.iter().map(|t| t.role()).collect::<Vec<_>>(), ["config"], "nothing is made: {left:#?}");
}

/// Records: whoever starts a machine has both uuids in the API server, or a pool that forgets the machine makes a second start.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_finds_both_uuids_recorded() {
    let rig = Rig::new().await;
    rig.guest("started", quick());
    rig.sim.pool.clock.hold("VM.start/domain");
    let _controller = rig.run().await;
    rig.layer("started", json!({})).await;
    rig.sim.pool.clock.held("VM.start/domain").await;
    let s = status(&rig.layers().get("started").await.expect("the layer"));
    let machines: Vec<_> = rig.hands.all("VM").await.into_iter().filter(|m| m.role() == "machine").collect();
    assert_eq!(s.machine.map(|m| m.uuid).as_deref(), Some(machines[0].uuid()));
    assert!(s.disk.is_some());
    rig.sim.pool.clock.unhold("VM.start/domain");
}

/// Boot: a report says something of the boot that it was written in, and of no other.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_is_bound_to_its_boot() {
    let rig = Rig::new().await;
    rig.guest("bound", quick());
    let _controller = rig.run().await;
    rig.layer("bound", json!({})).await;
    let halted = rig.until_reason("bound", "ApproveFinalize").await;
    // The same words are in the machine's record when it has run once more.
    rig.hasty_guest("bound", lamina::sim::guest::program(|_| async { lamina::sim::power::Exit::Halt }));
    let vm = rig.hands.machine(&machine(&halted)).await.expect("M").r;
    rig.hands.call("VM.start", json!([vm, false, false])).await;
    rig.until_reason("bound", "FixIntegrity").await;
    rig.approve("bound", "1").await;
    rig.meanwhile().await;
    assert_eq!(rig.calls("Async.VDI.snapshot"), 1);
}
