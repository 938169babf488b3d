//! The same with the real binary, its own Lease and production's pace: `kill -9` at ten calls of a life, all at once. Each takes minutes, of
//! which nearly all are waiting: for the Lease of the dead to run out, and for the second look of an in-flight test.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use lamina::local::Who;
use lamina::sim::clock::Clock;
use serde_json::json;
use tokio::sync::watch;

use super::lives::finalizes;
use crate::common::binary::{Binary, rights};
use crate::common::rig::{Rig, ready, uid};

/// Calls of a calm life: from the mark on the OS disk to the end of the packaging disk.
const STRUCK: [u64; 10] = [1, 2, 3, 9, 16, 17, 29, 36, 41, 46];
/// The Lease's 30 s, two looks 60 s apart for each of two operations, and a loaded machine.
const PATIENCE: Duration = Duration::from_secs(420);

/// Ten deaths of the real binary make nothing twice. Returns what is wrong.
pub async fn all() -> Vec<String> {
    let deaths = STRUCK.map(|call| async move { (call, AssertUnwindSafe(killed(call)).catch_unwind().await) });
    let mut failed = Vec::new();
    for (call, done) in futures::future::join_all(deaths).await {
        match done {
            Ok(done) => println!("{done}"),
            // What it said is above.
            Err(_panic) => failed.push(format!("killed at call {call}: panicked")),
        }
    }
    failed
}

async fn killed(call: u64) -> String {
    let rig = Rig::with(Clock::new(100.0)).await;
    rig.guest("killed", finalizes(watch::Sender::new(true).subscribe()));
    let namespace = rig.namespace.as_str();
    rig.apply(&rights(namespace)).await;
    let who = Who::ServiceAccount { namespace, name: "lamina" };
    let first = Binary::start(who, namespace, namespace, &["--identity", "first"]).await;
    rig.layer("killed", json!({"finalize": {"policy": "OnShutdown"}, "deletionPolicy": "Delete"})).await;
    let reached = tokio::time::timeout(PATIENCE, rig.sim.pool.log.reached(call)).await;
    assert!(reached.is_ok(), "a life never came to call {call}");
    first.kill().await;
    let begun = std::time::Instant::now();
    let second = Binary::start(who, namespace, namespace, &["--identity", "second"]).await;
    let finalized =
        kube::runtime::wait::await_condition(rig.layers(), "killed", |l: Option<&lamina::api::PlatformLayer>| {
            l.and_then(ready).is_some_and(|(reason, _)| reason == "Finalized")
        });
    let end = tokio::time::timeout(PATIENCE, finalized).await;
    let layer = rig.layers().get("killed").await.expect("the layer");
    assert!(end.is_ok(), "killed at call {call}: {:?}", ready(&layer));
    second.stop().await;
    let left = rig.hands.of_layer(&uid(&layer)).await;
    assert_eq!(left.iter().map(|t| t.role()).collect::<Vec<_>>(), ["frozen"], "killed at call {call}");
    assert_eq!((rig.calls("Async.VM.start"), rig.hands.bases().await.len()), (1, 1), "killed at call {call}");
    rig.hands.assert_tidy().await;
    format!("killed at call {call}: finalized {} s later", begun.elapsed().as_secs())
}
