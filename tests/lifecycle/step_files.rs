//! The files of steps: where they come from, what is missing or too much, and what changes before and after the first start.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::DeleteParams;
use lamina::controller::Settings;
use lamina::controller::room::Room;
use serde_json::json;

use super::steps::{Found, PUT, seeing};
use crate::common::rig::{Rig, ready, status};
use crate::common::unattended::{files, served, two_steps};

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_file_is_told_and_its_coming_is_seen() {
    let rig = Rig::new().await;
    rig.guest("waits", served());
    let _controller = rig.run().await;
    rig.layer("waits", two_steps()).await;
    let stalled = rig.until_reason("waits", "StepFileNotFound").await;
    let (_, message) = ready(&stalled).expect("Ready");
    assert!(message.contains("ConfigMap 'tools'") && message.contains("'Setup.cmd' of step 'tools'"), "{message}");
    files(&rig).await;
    rig.until_reason("waits", "ApproveFinalize").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_told() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    let big = "x".repeat(900 << 10);
    for n in 0..3 {
        rig.apply(&format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: big-{n}}}\ndata: {{big: {big}}}\n"))
            .await;
    }
    // 81 files of 900 KiB: more than 64 MiB.
    let file = |n: usize| json!({"name": format!("f{n}"), "configMapKeyRef": {"name": format!("big-{}", n % 3), "key": "big"}});
    let step =
        |n: usize| json!({"name": format!("s{n}"), "command": "rem", "files": (0..27).map(file).collect::<Vec<_>>()});
    rig.layer("large", json!({"steps": (0..3).map(step).collect::<Vec<_>>()})).await;
    let told = rig.until_reason("large", "StepsTooLarge").await;
    assert!(ready(&told).is_some_and(|(_, m)| m.contains("64 MiB")), "{told:#?}");
}

/// The pod has a limit: who finds the controller's memory full of others' disks is told so, and goes on when there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_moved_when_there_is_room_in_memory() {
    let rig = Rig::new().await;
    rig.guest("waits", served());
    let room = Arc::new(Room::default());
    let _controller = rig.run_with(Settings { room: Arc::clone(&room), ..rig.settings() }).await;
    files(&rig).await;
    let full = || room.take(250 << 20).expect("room");
    let is_told =
        |l: &_| ready(l).is_some_and(|(r, m)| r == "WaitingForPool" && m.contains("config disks of other layers"));
    let others = full();
    rig.layer("waits", two_steps()).await;
    rig.until("waits", "told", is_told).await;
    assert_eq!((rig.calls("Async.VDI.create"), rig.calls(PUT)), (0, 0), "its files are not read either");
    drop(others);
    rig.until_reason("waits", "RunningSteps").await;
    let others = full();
    rig.until("waits", "not read back", is_told).await;
    drop(others);
    rig.until_reason("waits", "ApproveFinalize").await;
    let others = full();
    rig.approve("waits", "1").await;
    rig.until("waits", "not wiped", is_told).await;
    drop(others);
    rig.until_finalized("waits", "1").await;
    rig.hands.assert_tidy().await;
}

/// What an object holds when the machine starts is what its steps get, whoever changed it since the disk was written.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changed_before_the_start_is_written_again_and_after_it_never() {
    let rig = Rig::new().await;
    files(&rig).await;
    let on_it = Found::default();
    rig.guest("late", seeing(served(), Arc::clone(&on_it)));
    let _controller = rig.run().await;
    let mut more = two_steps();
    more["machine"] = json!({"powerOn": false});
    rig.layer("late", more).await;
    rig.until_reason("late", "StartMachine").await;
    assert_eq!(rig.calls(PUT), 1);
    let change = |word: &str| {
        format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: answers}}\nstringData: {{answers.ini: {word}}}\n")
    };
    rig.apply(&change("new-words")).await;
    rig.patch("late", json!({"machine": {"powerOn": true}})).await;
    let halted = rig.until_reason("late", "ApproveFinalize").await;
    let files = on_it.lock().expect("no panic").clone();
    let (_, bytes) = files.iter().find(|(path, _)| path == "files/tools/answers.ini").expect("the file");
    assert_eq!((String::from_utf8_lossy(bytes).as_ref(), rig.calls(PUT)), ("new-words", 2));

    rig.apply(&change("newer-words")).await;
    rig.meanwhile().await;
    let puts = rig.calls(PUT);
    rig.approve("late", "1").await;
    let done = rig.until_finalized("late", "1").await;
    assert_eq!(rig.calls(PUT), puts + 1, "the wipe");
    let told = format!("{:?} {:?} {:?}", status(&halted), status(&done), rig.events("late").await);
    assert!(!told.contains("-words"), "{told}");
    assert!(!format!("{:?}", rig.hands.all("VDI").await).contains("-words"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_vanished_before_the_start_is_told_and_its_return_is_seen() {
    let rig = Rig::new().await;
    files(&rig).await;
    rig.guest("vanishes", served());
    let _controller = rig.run().await;
    let mut more = two_steps();
    more["machine"] = json!({"powerOn": false});
    rig.layer("vanishes", more).await;
    rig.until_reason("vanishes", "StartMachine").await;
    let secrets: Api<Secret> = Api::namespaced(rig.client.clone(), &rig.namespace);
    secrets.delete("answers", &DeleteParams::default()).await.expect("a deletion");
    rig.patch("vanishes", json!({"machine": {"powerOn": true}})).await;
    let told = rig.until_reason("vanishes", "StepFileNotFound").await;
    assert!(
        ready(&told).is_some_and(|(_, m)| m.contains("Secret 'answers'") && m.contains("step 'tools'")),
        "{told:#?}"
    );
    assert_eq!(rig.calls("Async.VM.start"), 0);
    files(&rig).await;
    rig.until_reason("vanishes", "ApproveFinalize").await;
}
