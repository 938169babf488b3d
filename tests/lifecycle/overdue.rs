//! Calls of ours that hang on the pool: told to a person with what to look at, waited for all the same, and gone on from when they end.

use std::time::Duration;

use lamina::api::{ConditionType, PlatformLayer};
use lamina::controller::Settings;
use lamina::controller::pace::Pace;
use serde_json::json;

use crate::common::eventually;
use crate::common::rig::{PACE, Rig, ready, says};

/// Two hours, for whoever cannot wait.
fn soon(rig: &Rig) -> Settings {
    Settings { pace: Pace { overdue: Duration::from_secs(2), ..PACE }, ..rig.settings() }
}

/// Waits until a hanging task of this name is told, and returns it with what is said of it.
async fn hangs(rig: &Rig, layer: &str, task: &str) -> (PlatformLayer, String) {
    let named = |l: &PlatformLayer| ready(l).is_some_and(|(r, m)| r == "TaskOverdue" && m.contains(task));
    let told = rig.until(layer, &format!("{task} hangs"), named).await;
    let pending = rig.hands.all("task").await.into_iter().find(|t| t.text("name_label") == task).expect("its task");
    let message = ready(&told).expect("Ready").1;
    for command in ["xe task-list uuid=", "xe task-cancel uuid="] {
        assert!(message.contains(&format!("{command}{}", pending.uuid())), "{message}");
    }
    for words in ["SMlog", "goes on by itself", "neither sends the call again nor takes anything away"] {
        assert!(message.contains(words), "{words:?}: {message}");
    }
    (told, message)
}

/// The copy of a base: whoever waits in line is told who holds it up.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_hangs_is_a_persons_until_it_ends() {
    let rig = Rig::new().await;
    rig.sim.pool.clock.hold("VDI.clone/running");
    let _controller = rig.run_with(soon(&rig)).await;
    rig.layer("hangs", json!({"machine": {"powerOn": false}})).await;
    rig.sim.pool.clock.held("VDI.clone/running").await;
    rig.layer("behind", json!({"machine": {"powerOn": false}})).await;
    let (told, message) = hangs(&rig, "hangs", "Async.VDI.clone").await;
    let base = rig.hands.bases().await.remove(0);
    let at =
        format!("disk '{}' ({}) still shows it as its current operation clone", base.text("name_label"), base.uuid());
    assert!(message.contains(&at), "{at}: {message}");
    assert_eq!(says(&told, ConditionType::ActionRequired), "True/TaskOverdue");
    assert_eq!(says(&told, ConditionType::Reconciling), "-");
    let names = |l: &PlatformLayer| {
        ready(l).is_some_and(|(r, m)| r == "WaitingForMark" && m.contains("/hangs") && m.contains("TaskOverdue"))
    };
    rig.until("behind", "who is in the way", names).await;
    assert_eq!((rig.calls("Async.VDI.clone"), rig.calls("task.cancel")), (1, 0));
    rig.sim.pool.clock.unhold("VDI.clone/running");
    for name in ["hangs", "behind"] {
        rig.until_reason(name, "StartMachine").await;
    }
    assert_eq!(rig.calls("Async.VDI.clone"), 2);
    rig.hands.assert_tidy().await;
}

/// A step without an intent, which nothing but its task tells of. A controller that begins anew knows it by what was told.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_hangs_is_told_across_controllers_and_not_taken_again() {
    let rig = Rig::new().await;
    rig.sim.pool.clock.hold("VDI.resize/queued");
    let first = rig.run_with(soon(&rig)).await;
    rig.layer("hangs", json!({"machine": {"powerOn": false}, "packagingDisk": {"size": "64Gi"}})).await;
    let (_, message) = hangs(&rig, "hangs", "Async.VDI.resize").await;
    assert!(message.contains("disk 'hangs' (") && message.contains("does not show it"), "{message}");
    drop(first);
    let second = rig.run().await;
    eventually("some looks of the next one", async || {
        (second.metric("lamina_reconciles_total{kind=\"layer\"}") > 3).then_some(())
    })
    .await;
    assert_eq!(hangs(&rig, "hangs", "Async.VDI.resize").await.1, message);
    rig.sim.pool.clock.unhold("VDI.resize/queued");
    rig.until_reason("hangs", "StartMachine").await;
    assert_eq!(rig.calls("Async.VDI.resize"), 1);
}

/// A layer in deletion is in the making no more: it says what holds it.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_hangs_says_so_and_ends_by_itself() {
    let rig = Rig::new().await;
    let _controller = rig.run_with(soon(&rig)).await;
    for (name, call, stage) in [
        ("making", "Async.VDI.clone", "VDI.clone/running"),
        ("drive", "Async.VBD.insert", "VBD.insert/running"),
        ("removing", "Async.VDI.destroy", "VDI.destroy/running"),
    ] {
        let removing = call == "Async.VDI.destroy";
        rig.sim.pool.clock.hold(stage);
        rig.layer(name, json!({"machine": {"powerOn": false}, "deletionPolicy": "Delete"})).await;
        match removing {
            true => drop(rig.until_reason(name, "StartMachine").await),
            false => drop(hangs(&rig, name, call).await),
        }
        rig.delete(name).await;
        let going = |l: &PlatformLayer| {
            l.metadata.deletion_timestamp.is_some() && says(l, ConditionType::Reconciling) == "True/TaskOverdue"
        };
        rig.until(name, "what holds it", going).await;
        let (told, _) = hangs(&rig, name, call).await;
        assert_eq!(says(&told, ConditionType::ActionRequired), "-", "{name}");
        rig.sim.pool.clock.unhold(stage);
        rig.until_gone(name).await;
    }
    rig.hands.assert_tidy().await;
}
