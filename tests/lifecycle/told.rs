//! What users read of a layer beside its way: in time, steady, and gone with it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use lamina::api::{Phase, PlatformLayer};
use lamina::controller::Settings;
use lamina::controller::pace::Pace;
use serde_json::{Value, json};

use crate::common;
use crate::common::rig::{PACE, Rig, quick, ready, status};

/// Waits so long that only a wake can help.
fn asleep(rig: &Rig) -> Settings {
    let never = Duration::from_secs(3600);
    Settings { pace: Pace { capacity: never, rest: never, ..PACE }, ..rig.settings() }
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_show_what_their_connector_says_now() {
    let rig = Rig::new().await;
    let secrets = Api::<Secret>::namespaced(rig.client.clone(), &rig.namespace);
    secrets.delete("lab", &DeleteParams::default()).await.expect("deleted");
    rig.layer("waits", json!({})).await;
    let _controller = rig.run_with(asleep(&rig)).await;
    let says = async |words: &str| {
        rig.until("waits", words, |l| ready(l).is_some_and(|(r, m)| r == "ConnectorNotReady" && m.contains(words)))
            .await
    };
    says("Secret 'lab' does not exist").await;
    let set_password = async |password: &str| {
        let account = json!({"username": "root", "password": password});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "lab"}, "stringData": account});
        rig.apply(&secret.to_string()).await;
    };
    set_password("wrong").await;
    says("the pool refused the account").await;
    let point_at = async |url: &str| {
        let patch = Patch::Merge(json!({"spec": {"endpoints": [url]}}));
        rig.connectors().patch("lab", &PatchParams::default(), &patch).await.expect("a patch");
    };
    point_at("https://127.0.0.1:1").await;
    says("no endpoint answers").await;
    set_password("secret").await;
    point_at(&rig.sim.urls()[0]).await;
    rig.until_phase("waits", Phase::DiskCreated).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_never_was_in_a_pool_leaves_the_metrics() {
    let rig = Rig::new().await;
    let controller = rig.run().await;
    rig.layer("nothing", json!({"connectorRef": {"name": "nowhere"}})).await;
    rig.until_reason("nothing", "ConnectorNotFound").await;
    let pending = |n: u64| controller.metric("lamina_layers{phase=\"Pending\"}") == n;
    common::eventually("it is counted", async || pending(1).then_some(())).await;
    rig.delete("nothing").await;
    rig.until_gone("nothing").await;
    common::eventually("it is counted no more", async || pending(0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_keeps_the_phase() {
    let rig = Rig::new().await;
    rig.guest("going", quick());
    let _controller = rig.run().await;
    rig.layer("going", json!({"deletionPolicy": "Delete"})).await;
    let before = rig.until_reason("going", "ApproveFinalize").await;
    let seen = Mutex::new(Vec::new());
    rig.delete("going").await;
    common::until(rig.layers(), "going", "gone", |l: Option<&PlatformLayer>| {
        if let Some(l) = l {
            seen.lock().expect("no panic").push((status(l).phase, ready(l).expect("Ready").0, status(l).history.len()));
        }
        l.is_none()
    })
    .await;
    let mut seen = seen.into_inner().expect("no panic");
    seen.dedup();
    let length = status(&before).history.len();
    let of = |reason: &str| (Some(Phase::AwaitingFinalize), reason.to_owned(), length);
    assert_eq!(seen, [of("ApproveFinalize"), of("Deleting")]);
}

/// What Ready says of new layers until it says `last`, by layer, each word once in a row. The pool makes nothing before all are watched:
/// nobody would see a word that was over by then.
async fn walks<const N: usize>(rig: &Rig, names: [&str; N], spec: Value, last: &str) -> Vec<Vec<(String, String)>> {
    const FIRST: &str = "VDI.snapshot/";
    rig.sim.pool.clock.hold(FIRST);
    for name in names {
        rig.layer(name, spec.clone()).await;
    }
    let unwatched = AtomicUsize::new(N);
    let walk = async |name| {
        let seen = Mutex::new(Vec::new());
        rig.until(name, last, |l| {
            let (mut seen, told) = (seen.lock().expect("no panic"), ready(l).unwrap_or_default());
            if seen.is_empty() && unwatched.fetch_sub(1, Ordering::SeqCst) == 1 {
                rig.sim.pool.clock.unhold(FIRST);
            }
            seen.push(told);
            seen.last().is_some_and(|(reason, _)| reason == last)
        })
        .await;
        let mut seen = seen.into_inner().expect("no panic");
        seen.dedup();
        seen
    };
    join_all(names.map(walk)).await
}

/// A life without trouble: a status rests while a stage lasts, and no stage comes back.
#[tokio::test(flavor = "multi_thread")]
async fn reasons_do_not_flicker() {
    let rig = Rig::new().await;
    rig.guest("calm", quick());
    let controller = rig.run().await;
    rig.connector_ready().await;
    let writes = || controller.metric("lamina_status_writes_total{kind=\"layer\"}");
    let seen = walks(&rig, ["calm"], json!({"finalize": {"approved": "1"}}), "Finalized").await.remove(0);
    let at_work =
        |(reason, _): &&(String, String)| !["", "InstallSoftware", "ShutDownGuest"].contains(&reason.as_str());
    let stages: Vec<_> = seen.iter().filter(at_work).map(|(reason, _)| reason.as_str()).collect();
    let walk = [
        "FreezingOSDisk",
        "CreatingDisk",
        "CreatingMachine",
        "SettingUpMachine",
        "StartingMachine",
        "WaitingForMachine",
        "FreezingDisk",
        "RemovingMachine",
        "Finalized",
    ];
    assert_eq!(stages, walk, "each once, with one message: {seen:#?}");
    // 30 to 37, by how many facts one look finds at once.
    assert!(writes() <= 42, "{} status writes", writes());
}

/// Two layers that share a base wait for each other, and for nothing else; and what is just being made is nobody's litter.
#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_do_not_flicker_either() {
    let rig = Rig::alone().await;
    let _controller = rig.run().await;
    rig.connector_ready().await;
    let walks = walks(&rig, ["one", "two"], json!({"machine": {"powerOn": false}}), "StartMachine").await;
    for seen in walks {
        let mut seen: Vec<_> = seen.into_iter().map(|(reason, _)| reason).collect();
        seen.retain(|reason| reason != "WaitingForMark" && !reason.is_empty());
        seen.dedup();
        let first = seen.iter().position(|reason| reason == "CreatingDisk").expect("a disk");
        assert!(first == 0 || first == 1 && seen[0] == "FreezingOSDisk", "{seen:?}");
        assert_eq!(seen[first..], ["CreatingDisk", "CreatingMachine", "SettingUpMachine", "StartMachine"]);
    }
    let litter = rig.events("lab").await.into_iter().find(|e| e.starts_with("UnclaimedObjects"));
    assert_eq!(litter, None);
}
