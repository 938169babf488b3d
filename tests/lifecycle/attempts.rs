//! What an attempt or a process must not take for its own: the end of an earlier one, or a fresh beginning.

use std::time::Duration;

use lamina::api::ConditionType;
use lamina::demo::person::{Check, Deed, person};
use lamina::sim::faults::{Effect, Fault, Target};
use lamina::sim::restart;
use lamina::xapi::wire::Failure;
use serde_json::json;

use crate::common::eventually;
use crate::common::hands::Thing;
use crate::common::rig::{Rig, disk, idle, machine, quick, ready, says, status};

const SNAPSHOT: &str = "Async.VDI.snapshot";
const CLONE: &str = "Async.VDI.clone";
const CLAIM: &str = "VDI.set_other_config";

fn strike(rig: &Rig, method: &str, effect: Effect, times: Option<u32>) {
    rig.sim.pool.faults.add(Fault { target: Target::Method(method.to_owned()), effect, times });
}

/// Does the Connector say that this belongs to nobody?
async fn is_told(rig: &Rig, uuid: &str) -> Option<()> {
    let lab = rig.connectors().get("lab").await.expect("a Connector").status?;
    let found = lab.conditions.into_iter().find(|c| c.type_ == ConditionType::Unclaimed.as_str())?;
    found.message.contains(uuid).then_some(())
}

/// A freeze is sent, lost and taken back, and carried out after all, beyond what an in-flight test waits for. Then the machine runs again. The
/// disk of that late call lacks what was done since: it is no version, and nothing is removed for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_carried_out_after_it_was_taken_back_is_no_version() {
    let rig = Rig::new().await;
    let work = |byte| vec![Deed::Work { block: 3, byte }, Deed::Report(Check::default()), Deed::PowerOff];
    rig.guest("late", person(vec![vec![Deed::Install, Deed::Reboot], work(1), work(2)]));
    let _controller = rig.run().await;
    rig.layer("late", json!({})).await;
    let halted = rig.until_reason("late", "ApproveFinalize").await;
    let old = rig.sim.pool.digest(&disk(&halted)).expect("W's bytes");
    let snapshots = rig.calls(SNAPSHOT);
    // Ten minutes, in the pool's time.
    strike(&rig, SNAPSHOT, Effect::ExecuteLate(Duration::from_secs(600)), Some(1));
    rig.approve("late", "1").await;
    eventually("the freeze is sent", async || (rig.calls(SNAPSHOT) > snapshots).then_some(())).await;
    rig.patch("late", json!({"finalize": {"approved": null}})).await;
    rig.until("late", "the freeze taken back", |l| {
        ready(l).is_some_and(|(r, _)| r == "ApproveFinalize") && status(l).operation.is_none()
    })
    .await;
    let of_w = async || {
        let all = rig.hands.all("VDI").await;
        all.into_iter()
            .find(|d| d.row["is_a_snapshot"] == json!(true) && rig.sim.pool.digest(d.uuid()) == Some(old.clone()))
    };
    let late = eventually("the late call is carried out", async || of_w().await).await;
    assert!(late.key("making").is_none(), "{late:?}");
    rig.patch("late", json!({"machine": {"restartToken": "again"}})).await;
    let again = rig
        .until("late", "halted once more", |l| {
            let at = ready(l).is_some_and(|(r, _)| r == "ApproveFinalize");
            at && rig.sim.pool.digest(&disk(l)).is_some_and(|now| now != old)
        })
        .await;
    let new = rig.sim.pool.digest(&disk(&again)).expect("W's bytes");
    // The next attempt's own task fails: the only one that tells of a success is the late one's.
    strike(&rig, SNAPSHOT, Effect::FailTask(Failure::new("INTERNAL_ERROR", ["once"])), Some(1));
    rig.approve("late", "1").await;
    let done = rig.until_finalized("late", "1").await;
    let [version] = status(&done).versions.try_into().expect("one version");
    assert_eq!(rig.sim.pool.digest(&version.disk), Some(new), "the version is what was there at the halt");
    assert_ne!(version.disk, late.uuid());
    assert!(rig.hands.disk(late.uuid()).await.is_some(), "told of, never deleted");
}

/// An attempt failed, and its task cannot be taken away. The next one's reply is lost, and the pool carries it out a moment later: what is seen
/// to have failed is not that call, and no third one is sent beside it.
#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_attempts_failure_does_not_speak_for_a_later_one() {
    let rig = Rig::new().await;
    strike(&rig, "task.destroy", Effect::Drop, None);
    strike(&rig, CLONE, Effect::FailTask(Failure::new("INTERNAL_ERROR", ["once"])), Some(1));
    // Less than the two looks of an in-flight test are apart.
    strike(&rig, CLONE, Effect::ExecuteLate(Duration::from_secs(20)), Some(1));
    let _controller = rig.run().await;
    rig.layer("later", json!({"machine": {"powerOn": false}})).await;
    rig.until_reason("later", "StartMachine").await;
    let left = rig.hands.all("VDI").await.into_iter().filter(|d| d.key("making").is_some() && !d.claimed());
    assert_eq!((rig.calls(CLONE), left.count()), (2, 0), "calls, and copies that nobody claimed");
}

/// A claim is lost on its way, the snapshot is taken back, and while its destruction waits for its turn on the storage the claim comes through: the
/// keys make no version of what is going. Whoever approves again, or leads next, makes another.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_comes_through_late_brings_nothing_back() {
    for restarted in [false, true] {
        let rig = Rig::new().await;
        rig.guest("keys", quick());
        let controller = rig.run().await;
        rig.layer("keys", json!({})).await;
        rig.until_reason("keys", "ApproveFinalize").await;
        let clock = &rig.sim.pool.clock;
        clock.hold("VDI.snapshot/");
        rig.approve("keys", "1").await;
        clock.held("VDI.snapshot/").await;
        let claims = rig.calls(CLAIM);
        strike(&rig, CLAIM, Effect::ExecuteLate(Duration::from_secs(600)), None);
        clock.hold("VDI.destroy/");
        clock.unhold("VDI.snapshot/");
        eventually("a claim is sent", async || (rig.calls(CLAIM) > claims).then_some(())).await;
        rig.patch("keys", json!({"finalize": {"approved": null}})).await;
        clock.held("VDI.destroy/").await;
        rig.sim.pool.faults.clear();
        let going = async || rig.hands.all("VDI").await.into_iter().find(|d| d.role() == "frozen" && d.claimed());
        let going = eventually("the claim comes through", going).await;
        let controller = match restarted {
            false => controller,
            true => {
                drop(controller);
                rig.run().await
            }
        };
        rig.approve("keys", "1").await;
        let looks = || controller.metric("lamina_reconciles_total{kind=\"layer\"}");
        let before = looks();
        eventually("some passes", async || (looks() > before + 4).then_some(())).await;
        let now = rig.layers().get("keys").await.expect("a layer");
        assert!(status(&now).versions.is_empty(), "restarted: {restarted}");
        clock.unhold("VDI.destroy/");
        let done = rig.until_finalized("keys", "1").await;
        let [version] = status(&done).versions.try_into().expect("one version");
        assert_ne!(version.disk, going.uuid());
        assert!(rig.hands.disk(&version.disk).await.is_some(), "its disk is there");
        rig.hands.assert_tidy().await;
    }
}

/// The pool wrote its database out in the moment in which a snapshot had its mark, and not what it is of; then it died. Nobody can prove that one:
/// it is told and left alone, and another is made.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_whose_source_the_pool_forgot_is_told_and_left_alone() {
    let rig = Rig::alone().await;
    let clock = &rig.sim.pool.clock;
    clock.hold("VDI.snapshot/keyed");
    let controller = rig.run().await;
    rig.layer("half", json!({"machine": {"powerOn": false}})).await;
    clock.held("VDI.snapshot/keyed").await;
    rig.hands.call("pool.sync_database", json!([])).await;
    // The next call after the claim, with no intent out.
    strike(&rig, "Async.VDI.set_name_description", Effect::Drop, None);
    clock.unhold("VDI.snapshot/keyed");
    let claimed = rig.until("half", "claimed", |l| status(l).operation.is_none() && ready(l).is_some());
    claimed.await;
    let base = async || rig.hands.bases().await.pop();
    let first = eventually("a base", base).await;
    eventually("its name", async || (rig.calls("Async.VDI.set_name_description") > 0).then_some(())).await;
    drop(controller);
    restart::restart(&rig.sim.pool, false).await;
    rig.sim.pool.faults.clear();
    let _controller = rig.run().await;
    rig.until_reason("half", "StartMachine").await;
    let bases = rig.hands.bases().await;
    let left = rig.hands.disk(first.uuid()).await.expect("the first one");
    assert_eq!((left.text("snapshot_of"), left.claimed()), ("OpaqueRef:NULL", false));
    assert!(bases.len() == 1 && bases[0].uuid() != first.uuid(), "{bases:#?}");
    eventually("it is told", async || is_told(&rig, first.uuid()).await).await;
}

/// The same in the midst of a freeze, where the snapshot inherits the packaging disk's keys: a second one becomes the version.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_disk_whose_source_the_pool_forgot_is_told_and_left_alone() {
    let rig = Rig::alone().await;
    rig.guest("half", quick());
    let clock = &rig.sim.pool.clock;
    let controller = rig.run().await;
    rig.layer("half", json!({})).await;
    let work = disk(&rig.until_reason("half", "ApproveFinalize").await);
    clock.hold("VDI.snapshot/keyed");
    rig.patch("half", json!({"finalize": {"approved": "1"}})).await;
    clock.held("VDI.snapshot/keyed").await;
    rig.hands.call("pool.sync_database", json!([])).await;
    strike(&rig, CLAIM, Effect::Drop, None);
    let claims = rig.calls(CLAIM);
    clock.unhold("VDI.snapshot/keyed");
    eventually("a claim", async || (rig.calls(CLAIM) > claims).then_some(())).await;
    let source = rig.hands.disk(&work).await.expect("W");
    let of_work = |d: &Thing| d.text("snapshot_of") == source.r;
    let first = rig.hands.all("VDI").await.into_iter().find(of_work).expect("a snapshot");
    drop(controller);
    restart::restart(&rig.sim.pool, false).await;
    rig.sim.pool.faults.clear();
    let _controller = rig.run().await;
    let frozen = rig.until_finalized("half", "1").await;
    let left = rig.hands.disk(first.uuid()).await.expect("the first one");
    assert_eq!((left.text("snapshot_of"), left.claimed()), ("OpaqueRef:NULL", false));
    assert_ne!(status(&frozen).current.expect("a version").disk, first.uuid());
    eventually("it is told", async || is_told(&rig, first.uuid()).await).await;
}

/// Another tool writes the OS disk's keys anew while its snapshot, whose reply was lost, is still to come: what is made bears no mark, and nobody
/// can say what of. It goes, and one snapshot stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_made_without_its_mark_is_made_anew_and_leaves_nothing() {
    let rig = Rig::new().await;
    let os = rig.hands.named("VDI", "win11-24h2").await;
    let snapshots = async || {
        let all = rig.hands.all("VDI").await.into_iter();
        all.filter(|d| d.row["is_a_snapshot"] == json!(true)).count()
    };
    let before = snapshots().await;
    strike(&rig, SNAPSHOT, Effect::ExecuteLate(Duration::from_secs(20)), Some(1));
    let _controller = rig.run().await;
    rig.layer("bare", json!({"machine": {"powerOn": false}})).await;
    eventually("a snapshot is sent", async || (rig.calls(SNAPSHOT) > 0).then_some(())).await;
    rig.hands.call("VDI.set_other_config", json!([os.r, {}])).await;
    rig.until_reason("bare", "StartMachine").await;
    assert_eq!((rig.calls(SNAPSHOT), snapshots().await), (2, before + 1), "calls, and snapshots");
    rig.hands.assert_tidy().await;
}

/// A backup copies the OS disk while the snapshot's reply is lost: whose end is waited for is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_another_tools_call_names_it() {
    let rig = Rig::new().await;
    strike(&rig, SNAPSHOT, Effect::Drop, None);
    let _controller = rig.run().await;
    rig.layer("behind", json!({"machine": {"powerOn": false}})).await;
    eventually("a snapshot is sent", async || (rig.calls(SNAPSHOT) > 0).then_some(())).await;
    let clock = &rig.sim.pool.clock;
    clock.hold("VDI.copy/");
    let os = rig.hands.named("VDI", "win11-24h2").await;
    let copy = rig.hands.call("Async.VDI.copy", json!([os.r, os.row["SR"]])).await;
    let words = format!("copy of disk {}", os.uuid());
    rig.until("behind", &words, |l| ready(l).is_some_and(|(r, m)| r == "WaitingForInFlight" && m.contains(&words)))
        .await;
    rig.sim.pool.faults.clear();
    // A whole copy would have the OS disk's name.
    rig.hands.call("task.cancel", json!([copy])).await;
    clock.unhold("VDI.copy/");
    rig.until_reason("behind", "StartMachine").await;
    assert_eq!(rig.hands.bases().await.len(), 1);
    rig.hands.assert_tidy().await;
}

/// Two disks bear our mark and no task tells which is ours: neither is taken, a third is made, and both stay for a person to see.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_marked_children_without_a_task_none_is_taken() {
    let rig = Rig::new().await;
    rig.sim.pool.clock.hold("VDI.clone/row");
    let controller = rig.run().await;
    rig.layer("two", json!({"machine": {"powerOn": false}})).await;
    rig.sim.pool.clock.held("VDI.clone/row").await;
    drop(controller);
    rig.sim.pool.clock.unhold("VDI.clone/row");
    let clones = async || rig.hands.all("task").await.into_iter().find(|t| t.text("name_label") == CLONE);
    let done = async || clones().await.filter(|t| t.text("status") == "success");
    let task = eventually("the clone is made", done).await;
    rig.hands.call("task.destroy", json!([task.r])).await;
    let marked = async || {
        let all = rig.hands.all("VDI").await.into_iter();
        all.filter(|d| d.key("making").is_some() && !d.claimed()).collect::<Vec<_>>()
    };
    let [child] = marked().await.try_into().expect("one child");
    let base = rig.hands.bases().await.remove(0);
    rig.hands.call("VDI.clone", json!([base.r])).await;
    let two = marked().await;
    assert!(two.len() == 2 && two.iter().any(|d| d.uuid() == child.uuid()), "{two:#?}");

    let _controller = rig.run().await;
    let made = rig.until_reason("two", "StartMachine").await;
    assert_eq!(rig.calls(CLONE), 2);
    for d in two {
        assert_ne!(d.uuid(), disk(&made));
        assert!(!rig.hands.disk(d.uuid()).await.expect("told of, never deleted").claimed());
    }
}

/// Whoever begins beside a running machine tells of it as the one before did.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_beside_a_running_machine_changes_no_word() {
    let rig = Rig::new().await;
    rig.guest("same", idle());
    let controller = rig.run().await;
    rig.layer("same", json!({})).await;
    let before =
        rig.until("same", "its tools", |l| says(l, ConditionType::GuestToolsReady) == "True/ToolsRunning").await;
    drop(controller);
    let controller = rig.run().await;
    let looks = || controller.metric("lamina_reconciles_total{kind=\"layer\"}");
    eventually("some passes", async || (looks() > 2).then_some(())).await;
    rig.meanwhile().await;
    let now = rig.layers().get("same").await.expect("a layer");
    assert_eq!(now.metadata.resource_version, before.metadata.resource_version, "{:#?}", status(&now));
}

/// The tools disc stays in its drive: the person at the machine is asked for the software all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_eject_takes_nobodys_turn_away() {
    let rig = Rig::new().await;
    rig.guest("stuck", idle());
    strike(&rig, "Async.VBD.eject", Effect::FailTask(Failure::new("VDI_IO_ERROR", ["the ISO's share is gone"])), None);
    let _controller = rig.run().await;
    rig.layer("stuck", json!({})).await;
    eventually("some ejects", async || (rig.calls("Async.VBD.eject") > 2).then_some(())).await;
    let now = rig.layers().get("stuck").await.expect("a layer");
    assert_eq!(ready(&now).map(|(r, _)| r).as_deref(), Some("InstallSoftware"), "{:#?}", status(&now));
    assert_eq!(says(&now, ConditionType::ActionRequired), "True/InstallSoftware");
    assert!(!machine(&now).is_empty());
}
