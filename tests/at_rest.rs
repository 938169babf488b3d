//! Layers that are done cost nothing: counted by the pool, and by the API server's audit log.
//!
//! It takes six minutes, of which five are mere waiting. Tests begin in the order of their names: this one's lets the others run beside it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lamina::controller::Settings;
use lamina::controller::metrics::Metrics;
use lamina::controller::pace::Pace;
use lamina::local::Who;
use serde_json::Value;

use crate::common::binary::{Binary, rights};
use crate::common::copies::finalized;
use crate::common::rig::Rig;
use crate::common::{cluster, eventually};

const LAYERS: usize = 200;
/// What the classes of the long poll are, and so what a resync lists.
const LISTED: &str = ".get_all_records";
/// Asked once for each log-in, when the first look at the pool is over.
const LAST: &str = "session.get_is_local_superuser";
const FIVE_MINUTES: Duration = Duration::from_secs(300);
/// As production, but what is due after ten minutes is due after seconds: each layer's look, the Connector's, the resync.
const HURRY: Pace = Pace { rest: Duration::from_secs(5), resync: Duration::from_secs(4), ..Pace::PRODUCTION };

/// Every write of the namespace's account: verb and resource, and how often.
async fn writes(namespace: &str) -> BTreeMap<String, usize> {
    let user = format!("system:serviceaccount:{namespace}:lamina");
    let log = std::fs::read_to_string(cluster().await.audit_log()).expect("the audit log");
    let mut found = BTreeMap::new();
    for line in log.lines().filter(|line| line.contains(&user)) {
        // The last line may still be on its way.
        let Ok(entry) = serde_json::from_str::<Value>(line) else { continue };
        if entry["user"]["username"] == user {
            let about = &entry["objectRef"];
            let what = format!("{} {} {}", entry["verb"], about["resource"], about["subresource"]).replace('"', "");
            *found.entry(what).or_default() += 1;
        }
    }
    found
}

fn reconciles(metrics: &Metrics) -> u64 {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &metrics.registry()).expect("text");
    let line = text.lines().find_map(|l| l.strip_prefix("lamina_reconciles_total{kind=\"layer\"} "));
    line.map_or(0, |n| n.parse().expect("a number"))
}

/// What was asked of the pool since its log was reset, without the long poll and with at most `resyncs` listings a class taken off.
fn calls(rig: &Rig, resyncs: u64) -> BTreeMap<String, u64> {
    let mut counts = rig.sim.pool.log.counts();
    counts.remove("event.from");
    counts.retain(|name, n| !(name.ends_with(LISTED) && *n <= resyncs));
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_finalized_layers_cost_one_long_poll_and_the_lease() {
    let rig = Rig::new().await;
    let namespace = rig.namespace.as_str();
    rig.apply(&rights(namespace)).await;
    finalized(&rig, LAYERS).await;
    let who = Who::ServiceAccount { namespace, name: "lamina" };

    rig.sim.pool.log.reset();
    // Ten minutes' looks and resyncs, some times over.
    let metrics = Metrics::default();
    let settings = Settings { pace: HURRY, metrics: metrics.clone(), ..rig.settings() };
    let controller = rig.run_as(who, settings).await;
    eventually("each layer is looked at", async || {
        (reconciles(&metrics) >= LAYERS as u64 && rig.calls(LAST) > 0).then_some(())
    })
    .await;
    let (begun, before) = (Instant::now(), reconciles(&metrics));
    rig.sim.pool.log.reset();
    eventually("and again", async || (reconciles(&metrics) >= before + 4 * LAYERS as u64).then_some(())).await;
    let resyncs = begun.elapsed().as_secs() / 3 + 1;
    assert_eq!(calls(&rig, resyncs), BTreeMap::new(), "in {resyncs} resyncs");
    assert!(rig.calls("VDI.get_all_records") > 0, "no resync");
    drop(controller);
    assert_eq!(writes(namespace).await, BTreeMap::new());

    rig.sim.pool.log.reset();
    let mut binary = Binary::start(who, namespace, namespace, &[]).await;
    binary.line("leading").await;
    eventually("each layer is looked at", async || {
        (binary.metric("lamina_reconciles_total").await > LAYERS as f64 && rig.calls(LAST) > 0).then_some(())
    })
    .await;
    let changes = rig.sim.pool.db().generation();
    rig.sim.pool.log.reset();
    tokio::time::sleep(FIVE_MINUTES).await;
    let (polls, changes) = (rig.calls("event.from"), rig.sim.pool.db().generation() - changes);
    assert_eq!(calls(&rig, 1), BTreeMap::new());
    // One at a time: a poll lasts a minute, or until the pool does something by itself, as collecting old tasks.
    assert!((1..=6 + changes).contains(&polls), "{polls} polls, {changes} changes");
    binary.stop().await;
    let mut writes = writes(namespace).await;
    assert!(writes["update leases null"] > 30, "the log shows the lease: {writes:?}");
    writes.retain(|what, _| !what.contains(" leases "));
    assert_eq!(writes, BTreeMap::new());
}
