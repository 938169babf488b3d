//! What changes while a call is under way: nothing is claimed that is not wanted any more, and nothing is left behind.

use kube::api::{Patch, PatchParams};
use lamina::api::Phase;
use serde_json::json;

use crate::common::eventually;
use crate::common::rig::{Rig, Running, disk, quick, ready, status, uid};

/// A disk that is attached elsewhere while storage copies it is no version.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_attached_during_the_freeze_is_taken_back() {
    let rig = Rig::new().await;
    rig.guest("touched", quick());
    let _controller = rig.run().await;
    rig.layer("touched", json!({})).await;
    let halted = rig.until_reason("touched", "ApproveFinalize").await;
    let w = rig.hands.disk(&disk(&halted)).await.expect("W");
    rig.sim.pool.clock.hold("VDI.snapshot/");
    rig.approve("touched", "1").await;
    rig.sim.pool.clock.held("VDI.snapshot/").await;
    let (_, vbd) = rig.hands.stranger("thief", &w.r).await;
    rig.sim.pool.clock.unhold("VDI.snapshot/");
    let stalled = rig.until_reason("touched", "ForeignDisk").await;
    assert!(status(&stalled).versions.is_empty() && status(&stalled).operation.is_none());
    rig.hands.assert_tidy().await;
    assert!(rig.hands.all("VDI").await.iter().all(|d| d.role() != "frozen"));
    rig.hands.call("VBD.destroy", json!([vbd])).await;
    rig.until_finalized("touched", "1").await;
    rig.hands.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_withdrawn_during_the_freeze_is_heeded() {
    let rig = Rig::new().await;
    rig.guest("second", quick());
    let _controller = rig.run().await;
    rig.layer("second", json!({})).await;
    rig.until_reason("second", "ApproveFinalize").await;
    rig.sim.pool.clock.hold("VDI.snapshot/");
    rig.approve("second", "1").await;
    rig.sim.pool.clock.held("VDI.snapshot/").await;
    rig.patch("second", json!({"finalize": {"approved": null}})).await;
    rig.sim.pool.clock.unhold("VDI.snapshot/");
    let back = rig
        .until("second", "asked again, the freeze taken back", |l| {
            ready(l).is_some_and(|(r, _)| r == "ApproveFinalize") && status(l).operation.is_none()
        })
        .await;
    assert!(status(&back).versions.is_empty());
    rig.hands.assert_tidy().await;
}

/// The snapshot that is taken back waits for its end on the storage, with its task still saying that it was made: whoever approves again, or leads
/// next, does not take it for the version.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_being_taken_back_is_no_version() {
    for restarted in [false, true] {
        let rig = Rig::new().await;
        rig.guest("thrice", quick());
        let controller = rig.run().await;
        rig.layer("thrice", json!({})).await;
        rig.until_reason("thrice", "ApproveFinalize").await;
        let clock = &rig.sim.pool.clock;
        clock.hold("VDI.snapshot/");
        rig.approve("thrice", "1").await;
        clock.held("VDI.snapshot/").await;
        rig.patch("thrice", json!({"finalize": {"approved": null}})).await;
        clock.hold("VDI.destroy/");
        clock.unhold("VDI.snapshot/");
        clock.held("VDI.destroy/").await;
        let controller = match restarted {
            false => controller,
            true => {
                drop(controller);
                rig.run().await
            }
        };
        rig.approve("thrice", "1").await;
        rig.until_reason("thrice", "FreezingDisk").await;
        let looks = || controller.metric("lamina_reconciles_total{kind=\"layer\"}");
        let before = looks();
        eventually("some passes", async || (looks() > before + 3).then_some(())).await;
        assert!(
            status(&rig.layers().get("thrice").await.expect("a layer")).versions.is_empty(),
            "restarted: {restarted}"
        );
        clock.unhold("VDI.destroy/");
        let done = rig.until_finalized("thrice", "1").await;
        let [version] = status(&done).versions.try_into().expect("one version");
        assert!(rig.hands.disk(&version.disk).await.is_some(), "its disk is there");
        rig.hands.assert_tidy().await;
    }
}

/// The OS disk's machine starts while its snapshot is taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_of_an_os_disk_that_got_in_use_is_not_claimed() {
    let rig = Rig::new().await;
    let os = rig.hands.named("VDI", "win11-24h2").await.r;
    let (vm, _) = rig.hands.stranger("builder", &os).await;
    rig.sim.pool.clock.hold("VDI.snapshot/");
    let _controller = rig.run().await;
    rig.layer("os", json!({"machine": {"powerOn": false}})).await;
    rig.sim.pool.clock.held("VDI.snapshot/").await;
    rig.hands.call("VM.start", json!([vm, false, false])).await;
    rig.sim.pool.clock.unhold("VDI.snapshot/");
    rig.until("os", "in use, the snapshot taken back", |l| {
        ready(l).is_some_and(|(r, _)| r == "OSDiskInUse") && status(l).operation.is_none()
    })
    .await;
    assert_eq!(rig.hands.bases().await.len(), 0);
    rig.hands.assert_tidy().await;
    rig.hands.call("VM.hard_shutdown", json!([vm])).await;
    rig.until_reason("os", "StartMachine").await;
    rig.hands.assert_tidy().await;
}

/// Until a disk is there the version may change freely, whatever is under way.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_changed_while_its_disk_is_made_leaves_nothing_of_the_old_one() {
    let rig = Rig::new().await;
    rig.sim.pool.clock.hold("VDI.clone/");
    let _controller = rig.run().await;
    rig.layer("hasty", json!({"machine": {"powerOn": false}})).await;
    rig.sim.pool.clock.held("VDI.clone/").await;
    rig.patch("hasty", json!({"version": "2"})).await;
    rig.until("hasty", "observed", |l| {
        l.status.as_ref().is_some_and(|s| s.observed_generation == l.metadata.generation)
    })
    .await;
    rig.sim.pool.clock.unhold("VDI.clone/");
    let made = rig.until_reason("hasty", "StartMachine").await;
    assert_eq!(status(&made).disk.map(|d| d.version).as_deref(), Some("2"));
    let left = rig.hands.of_layer(&uid(&made)).await;
    assert!(left.iter().all(|t| t.key("version") == Some("2")), "{left:#?}");
    rig.hands.assert_tidy().await;
}

/// A deletion waits for what may still come, and removes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_during_a_call_leaves_nothing() {
    for stage in ["VDI.snapshot/", "VDI.clone/", "VM.clone/", "VM.start/"] {
        let rig = Rig::new().await;
        rig.sim.pool.clock.hold(stage);
        let _controller = rig.run().await;
        rig.layer("cut", json!({"deletionPolicy": "Delete"})).await;
        rig.sim.pool.clock.held(stage).await;
        rig.delete("cut").await;
        let going = rig.until("cut", "being deleted", |l| {
            l.metadata.deletion_timestamp.is_some()
                && ready(l).is_some_and(|(_, m)| m.contains("are removed") || m.contains("earlier attempt"))
        });
        let uid = uid(&going.await);
        rig.sim.pool.clock.unhold(stage);
        rig.until_gone("cut").await;
        rig.hands.assert_nothing_of(&uid).await;
        rig.hands.assert_tidy().await;
        assert_eq!(rig.hands.bases().await.len(), 0, "{stage}");
    }
}

/// Who was told to rest in the middle of something holds up whoever needs the same disk, and is named.
#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_layer_that_holds_others_up_is_named() {
    let rig = Rig::new().await;
    let _controller = suspended_first(&rig).await;
    rig.sim.pool.clock.unhold("VDI.snapshot/");
    rig.layer("second", json!({"machine": {"powerOn": false}})).await;
    second_waits_for_it(&rig).await;
}

/// A base's mark names no layer: who set it is known by its operation, to a process that was not there too.
#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_layer_is_named_after_a_restart_too() {
    let rig = Rig::new().await;
    drop(suspended_first(&rig).await);
    rig.sim.pool.clock.unhold("VDI.snapshot/");
    let _controller = rig.run().await;
    // Of the same disk, but another version of it: a mark that is not its own.
    rig.layer("second", json!({"machine": {"powerOn": false}, "osLayer": {"version": "25H1"}})).await;
    second_waits_for_it(&rig).await;
}

/// A controller whose layer `first` is suspended while the snapshot of its OS disk is held.
async fn suspended_first(rig: &Rig) -> Running {
    rig.sim.pool.clock.hold("VDI.snapshot/");
    let controller = rig.run().await;
    rig.layer("first", json!({"machine": {"powerOn": false}})).await;
    rig.sim.pool.clock.held("VDI.snapshot/").await;
    rig.patch("first", json!({"suspend": true})).await;
    rig.until_reason("first", "Suspended").await;
    controller
}

/// Layer `second` is told who is ahead, and both are made once that goes on.
async fn second_waits_for_it(rig: &Rig) {
    let name = format!("{}/first", rig.namespace);
    rig.until("second", "who is ahead", |l| {
        ready(l).is_some_and(|(r, m)| r == "WaitingForMark" && m.contains(&name) && m.contains("spec.suspend"))
    })
    .await;
    rig.patch("first", json!({"suspend": false})).await;
    rig.until_reason("first", "StartMachine").await;
    rig.until_reason("second", "StartMachine").await;
    rig.hands.assert_tidy().await;
}

/// What was wished meanwhile cannot be had: whoever needs the disk that it holds is told whose turn it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_layer_that_holds_others_up_is_named() {
    let rig = Rig::new().await;
    rig.sim.pool.clock.hold("VDI.clone/queued");
    let _controller = rig.run().await;
    rig.layer("first", json!({"machine": {"powerOn": false}})).await;
    rig.sim.pool.clock.held("VDI.clone/queued").await;
    rig.patch("first", json!({"base": {"from": "Version", "version": "9"}})).await;
    rig.until_reason("first", "BaseVersionUnknown").await;
    rig.layer("second", json!({"machine": {"powerOn": false}})).await;
    let name = format!("{}/first", rig.namespace);
    rig.until("second", "who is ahead", |l| {
        ready(l).is_some_and(|(r, m)| r == "WaitingForMark" && m.contains(&name) && m.contains("BaseVersionUnknown"))
    })
    .await;
    rig.sim.pool.clock.unhold("VDI.clone/queued");
    rig.patch("first", json!({"base": {"from": "Latest", "version": null}})).await;
    rig.until_reason("first", "StartMachine").await;
    rig.until_reason("second", "StartMachine").await;
    rig.hands.assert_tidy().await;
}

/// The base of a version that is thrown away goes with it, where the next one stands on another.
#[tokio::test(flavor = "multi_thread")]
async fn a_discarded_version_takes_its_base_along() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    rig.layer("base", json!({"machine": {"powerOn": false}})).await;
    rig.until_reason("base", "StartMachine").await;
    let new = json!({"version": "2", "discard": "1", "osLayer": {"version": "25H1"}});
    rig.patch("base", new).await;
    rig.until("base", "version 2", |l| {
        status(l).disk.is_some_and(|d| d.version == "2") && ready(l).is_some_and(|(r, _)| r == "StartMachine")
    })
    .await;
    rig.hands.assert_tidy().await;
}

/// A machine that a person was to start can be started by a token too.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_token_is_a_first_start_too() {
    let rig = Rig::new().await;
    rig.guest("off", quick());
    let _controller = rig.run().await;
    rig.layer("off", json!({"machine": {"powerOn": false}})).await;
    rig.until_reason("off", "StartMachine").await;
    rig.patch("off", json!({"machine": {"restartToken": "go"}})).await;
    let halted = rig.until_phase("off", Phase::AwaitingFinalize).await;
    assert_eq!(status(&halted).machine.and_then(|m| m.restart_token).as_deref(), Some("go"));
    rig.until_reason("off", "ApproveFinalize").await;
    assert_eq!(rig.calls("Async.VM.start"), 1);
}

/// The pool may tell of a task at its end before it tells of what the task made: who looks right then must not take that for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_told_at_its_end_before_its_child_leads_to_no_second_one() {
    let rig = Rig::new().await;
    let pool = &rig.sim.pool;
    rig.guest("early", quick());
    pool.clock.hold("VDI.clone/");
    let _controller = rig.run().await;
    rig.layer("early", json!({"finalize": {"policy": "OnShutdown"}})).await;
    pool.clock.held("VDI.clone/").await;
    // A look is asked for: what it is told of is chosen now, and read when the clone is over.
    pool.clock.hold("event.from/read");
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"lamina.dev/requestedAt": "now"}}}));
    rig.layers().patch("early", &PatchParams::default(), &patch).await.expect("a patch");
    pool.clock.held("event.from/read").await;
    pool.clock.unhold("VDI.clone/");
    let cloned =
        || pool.db().all("task").any(|(_, t)| t["name_label"] == "Async.VDI.clone" && t["status"] == "success");
    eventually("the clone is made", async || cloned().then_some(())).await;
    pool.clock.unhold("event.from/read");
    rig.until_finalized("early", "1").await;
    assert_eq!(rig.calls("Async.VDI.clone"), 1);
    rig.hands.assert_tidy().await;
}
