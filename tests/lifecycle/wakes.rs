//! Who waits for a change goes on with that change. The controller's own looks are hours apart here: what goes on was woken.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use lamina::controller::Settings;
use lamina::controller::pace::Pace;
use lamina::sim::faults::{Effect, Fault, Target};
use lamina::xapi::wire::Failure;
use serde_json::{Value, json};

use crate::common::eventually;
use crate::common::rig::{PACE, Rig, ready};

fn asleep(rig: &Rig) -> Settings {
    let never = Duration::from_secs(3600);
    Settings { pace: Pace { capacity: never, rest: never, resync: never, ..PACE }, ..rig.settings() }
}

async fn connector(rig: &Rig, spec: Value) {
    let patch = Patch::Merge(json!({ "spec": spec }));
    rig.connectors().patch("lab", &PatchParams::default(), &patch).await.expect("a patch");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrected_connector_wakes_its_layers() {
    let rig = Rig::new().await;
    let _controller = rig.run_with(asleep(&rig)).await;
    rig.connector_ready().await;
    for (n, (field, wrong, right, reason)) in [
        ("template", "nope", json!("packaging"), "TemplateNotFound"),
        ("storageRepository", "nope", json!("Shared storage"), "StorageNotFound"),
        ("toolsISO", "nope", json!(null), "ToolsISONotFound"),
    ]
    .into_iter()
    .enumerate()
    {
        connector(&rig, json!({ field: wrong })).await;
        let name = format!("layer-{n}");
        rig.layer(&name, json!({"machine": {"powerOn": false}})).await;
        rig.until_reason(&name, reason).await;
        connector(&rig, json!({ field: right })).await;
        rig.until_reason(&name, "StartMachine").await;
    }
}

/// What the pool refused is asked for again after a pause, or at once for whoever asks for a look.
#[tokio::test(flavor = "multi_thread")]
async fn a_person_need_not_wait_for_the_end_of_a_pause() {
    let rig = Rig::new().await;
    let settings = asleep(&rig);
    let never = Duration::from_secs(3600);
    let _controller =
        rig.run_with(Settings { pace: Pace { backoff: (never, never), ..settings.pace }, ..settings }).await;
    rig.connector_ready().await;
    let full = Effect::FailTask(Failure::new("SR_BACKEND_FAILURE_44", ["", "no space"]));
    let target = Target::Method("Async.VDI.clone".to_owned());
    rig.sim.pool.faults.add(Fault { target, effect: full, times: Some(1) });
    rig.layer("full", json!({"machine": {"powerOn": false}})).await;
    rig.until_reason("full", "StorageFull").await;
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"lamina.dev/requestedAt": "now"}}}));
    rig.layers().patch("full", &PatchParams::default(), &patch).await.expect("a patch");
    rig.until_reason("full", "StartMachine").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_free_again_wakes_who_wants_it() {
    let rig = Rig::new().await;
    let _controller = rig.run_with(asleep(&rig)).await;
    let named = json!({"layerName": "same", "machine": {"powerOn": false}, "deletionPolicy": "Delete"});
    // Never in the pool, whose events would wake all.
    let mut idle = named.clone();
    idle["suspend"] = json!(true);
    rig.layer("first", idle.clone()).await;
    older_than_the_next("first", &rig).await;
    rig.layer("second", idle).await;
    older_than_the_next("second", &rig).await;
    rig.layer("third", named).await;
    rig.until_reason("third", "NameConflict").await;
    rig.delete("first").await;
    rig.until("third", "told of the second", |l| {
        ready(l).is_some_and(|(_, m)| m.contains("/second'") || m.contains("/second "))
    })
    .await;
    rig.patch("second", json!({"layerName": "another"})).await;
    rig.until_reason("third", "StartMachine").await;
}

/// Ages are told by the second.
async fn older_than_the_next(name: &str, rig: &Rig) {
    let made = rig.layers().get(name).await.expect("a layer").metadata.creation_timestamp.expect("a time");
    eventually("a second goes by", async || (jiff::Timestamp::now().as_second() > made.0.as_second()).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_comes_free_wakes_who_waits_for_one() {
    let rig = Rig::new().await;
    connector(&rig, json!({"limits": {"machines": 1}})).await;
    let _controller = rig.run_with(asleep(&rig)).await;
    let waits = json!({"machine": {"powerOn": false}, "deletionPolicy": "Delete"});
    rig.layer("holder", waits.clone()).await;
    rig.until_reason("holder", "StartMachine").await;
    for name in ["one", "two", "three"] {
        rig.layer(name, waits.clone()).await;
        rig.until_reason(name, "WaitingForSlot").await;
    }
    rig.delete("holder").await;
    let next = eventually("one of them goes on", async || {
        for name in ["one", "two", "three"] {
            let layer = rig.layers().get(name).await.ok()?;
            if ready(&layer)?.0 == "StartMachine" {
                return Some(name);
            }
        }
        None
    })
    .await;
    // Both at once, in whatever order they are woken.
    connector(&rig, json!({"limits": {"machines": 3}})).await;
    for name in ["one", "two", "three"].into_iter().filter(|name| *name != next) {
        rig.until_reason(name, "StartMachine").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_a_person_asks_for_is_taken_live_and_once() {
    let rig = Rig::new().await;
    let _controller = rig.run_with(asleep(&rig)).await;
    rig.layer("watched", json!({"machine": {"powerOn": false}})).await;
    rig.until_reason("watched", "StartMachine").await;
    let looks = || rig.calls("event.inject");
    let annotate = async |key: &str| {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {key: "now"}}}));
        rig.layers().patch("watched", &PatchParams::default(), &patch).await.expect("a patch");
    };
    // What is made for another layer takes its time, in which this one looks no more.
    rig.meanwhile().await;
    let before = looks();
    annotate("lamina.dev/requestedAt").await;
    eventually("a live look", async || (looks() > before).then_some(())).await;
    let after = looks();
    annotate("example.com/other").await;
    rig.patch("watched", json!({"description": "seen"})).await;
    rig.until("watched", "seen", |l| l.status.as_ref().is_some_and(|s| s.observed_generation == l.metadata.generation))
        .await;
    assert_eq!(looks(), after, "one look for one request");
}
