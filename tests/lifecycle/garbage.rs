//! The stream of events and its barrier, cut, garbled and refused while a layer walks. Faults of changing calls are in `crash`.

use lamina::sim::faults::{Effect, Fault, Target};
use lamina::sim::serve::Sim;
use lamina::xapi::wire::Failure;
use serde_json::json;

use crate::common::eventually;
use crate::common::rig::{Rig, quick, ready, uid};

const STREAM: &str = "event.from";
const BARRIER: &str = "event.inject";

/// All that can become of an answer.
fn effects() -> [Effect; 5] {
    let refuse = |code: &str| Effect::Refuse(Failure::new(code, ["x"]));
    [Effect::TruncateReply, Effect::Drop, Effect::CutReply, refuse("INTERNAL_ERROR"), refuse("EVENTS_LOST")]
}

/// Twice in a row each, so that no first repeat helps, then a few calls in peace.
async fn weather(sim: &Sim, call: &str) {
    let seen = || sim.pool.log.counts().get(call).copied().unwrap_or_default();
    for effect in effects().into_iter().cycle() {
        let end = seen() + 5;
        sim.pool.faults.add(Fault { target: Target::Method(call.to_owned()), effect, times: Some(2) });
        eventually("some calls", async || (seen() >= end).then_some(())).await;
    }
}

/// Whole lives until each fault has struck both calls: each ends finalized, removed, and nothing in it was made twice.
#[tokio::test(flavor = "multi_thread")]
async fn garbled_events_and_barriers_hold_nobody_up_and_make_nothing_twice() {
    let rig = Rig::new().await;
    let struck = || {
        let entries = rig.sim.pool.log.entries();
        let met = |call, effect: &Effect| entries.iter().any(|e| e.method == call && e.fault.as_ref() == Some(effect));
        effects().iter().all(|effect| met(STREAM, effect) && met(BARRIER, effect))
    };
    let _controller = rig.run().await;
    let whole = async {
        let mut lives = 0;
        while !struck() || lives == 0 {
            lives += 1;
            let name = format!("wet-{lives}");
            rig.guest(&name, quick());
            rig.layer(&name, json!({"finalize": {"policy": "OnShutdown"}, "deletionPolicy": "Delete"})).await;
            let done = rig.until_finalized(&name, "1").await;
            rig.hands.assert_tidy().await;
            rig.delete(&name).await;
            rig.until_gone(&name).await;
            rig.hands.assert_nothing_of(&uid(&done)).await;
        }
        lives
    };
    let lives = tokio::select! {
        lives = whole => lives,
        () = weather(&rig.sim, STREAM) => unreachable!("it never ends"),
        () = weather(&rig.sim, BARRIER) => unreachable!("it never ends"),
    };
    let calls = ["Async.VDI.snapshot", "Async.VDI.clone", "Async.VM.clone", "Async.VDI.create", "Async.VM.start"];
    assert_eq!(calls.map(|call| rig.calls(call)), [2 * lives, lives, lives, lives, lives]);
    rig.hands.assert_tidy().await;
}

/// As long as no look at the pool comes through nothing is made, and the layer says why; the first that does goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_is_always_lost_is_told_and_nothing_is_made_meanwhile() {
    let rig = Rig::new().await;
    rig.sim.pool.faults.add(Fault { target: Target::Method(BARRIER.to_owned()), effect: Effect::Drop, times: None });
    let _controller = rig.run().await;
    rig.layer("blind", json!({"machine": {"powerOn": false}})).await;
    let blind = rig.until_reason("blind", "ReplyLost").await;
    assert!(ready(&blind).is_some_and(|(_, m)| m.contains("looked at before anything is repeated")), "{blind:?}");
    let made = ["Async.VDI.snapshot", "Async.VDI.clone"].map(|call| rig.calls(call));
    assert_eq!(made, [0, 0]);
    rig.sim.pool.faults.clear();
    rig.until_reason("blind", "StartMachine").await;
    rig.hands.assert_tidy().await;
}
