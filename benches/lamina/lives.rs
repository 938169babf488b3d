//! Layers through all phases on a pool that needs no time: how many a second, and what each asks of the pool. Beside it the same calls
//! without a controller ([`crate::replay`]).

use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use lamina::api::Phase;
use lamina::api::condition::{self, ConditionType};
use lamina::api::reason::Reason;
use lamina::controller::Settings;
use lamina::controller::pace::Pace;
use lamina::sim::clock::Clock;
use serde_json::json;

use crate::common::rig::{Rig, Running, quick, ready};
use crate::{replay, row, title};

const LAYERS: usize = 50;
/// Layers of one OS disk are cloned one after the other; of several, beside each other.
pub const OS_DISKS: usize = 16;
/// A Connector lets no more machines be.
const MOST: usize = 1000;

/// A pool whose operations take no time, with room for so many machines, and a Connector that allows them.
pub async fn instant(machines: usize) -> Rig {
    let rig = Rig::with(Clock::new(1000.0)).await;
    let limits = Patch::Merge(json!({"spec": {"limits": {"machines": machines.min(MOST)}}}));
    rig.connectors().patch("lab", &PatchParams::default(), &limits).await.expect("a limit");
    let hosts: Vec<_> = rig.sim.pool.db().all("host_metrics").map(|(r, _)| r.clone()).collect();
    for host in hosts {
        rig.sim.pool.db().set("host_metrics", &host, "memory_total", json!(64_u64 << 40)).expect("a host");
    }
    let sr = rig.hands.named("SR", "Shared storage").await.r;
    for n in 0..OS_DISKS {
        let disk = json!({
            "name_label": format!("os-{n}"), "SR": sr, "virtual_size": 32_u64 << 30, "type": "user", "sharable": false,
            "read_only": false, "other_config": {}, "name_description": "",
        });
        rig.hands.call("VDI.create", json!([disk])).await;
    }
    rig
}

/// What the n-th layer is made from.
pub fn os_disk(n: usize) -> serde_json::Value {
    json!({"disk": {"name": format!("os-{}", n % OS_DISKS)}})
}

/// The controller under the account and with the rights of `deploy/`.
pub async fn run(rig: &Rig, pace: Pace) -> Running {
    rig.run_with(Settings { pace, ..rig.settings() }).await
}

/// Waits until so many layers are in a phase and no layer has changed for a while: longer than guest tools are waited for.
pub async fn settled(rig: &Rig, controller: &Running, layers: usize, phase: Phase) {
    const QUIET: Duration = Duration::from_secs(8);
    let mut there = std::collections::HashSet::new();
    let mut told = Instant::now();
    let mut events = std::pin::pin!(watcher(rig.layers(), watcher::Config::default()));
    loop {
        match tokio::time::timeout(QUIET, events.next()).await {
            Ok(Some(Ok(watcher::Event::Apply(layer) | watcher::Event::InitApply(layer)))) => {
                match layer.status.as_ref().and_then(|s| s.phase) == Some(phase) {
                    true => there.insert(layer.name_any()),
                    false => there.remove(&layer.name_any()),
                };
            }
            Err(_quiet) if there.len() == layers => return,
            Ok(_) | Err(_) => {}
        }
        if told.elapsed() > Duration::from_secs(15) {
            told = Instant::now();
            let [passes, writes] = ["reconciles", "status_writes"]
                .map(|name| controller.metric(&format!("lamina_{name}_total{{kind=\"layer\"}}")));
            let (there, reasons) = (there.len(), reasons(rig).await);
            eprintln!(
                "{there} of {layers} are {}, by {passes} passes and {writes} writes; {reasons:?}",
                phase.as_str()
            );
        }
    }
}

/// How many layers say what: for whoever waits.
async fn reasons(rig: &Rig) -> std::collections::BTreeMap<String, usize> {
    let mut said = std::collections::BTreeMap::new();
    for layer in rig.layers().list(&Default::default()).await.expect("layers") {
        *said.entry(ready(&layer).map(|(reason, _)| reason).unwrap_or_default()).or_default() += 1;
    }
    said
}

async fn finalized(rig: &Rig) -> usize {
    let all = rig.layers().list(&Default::default()).await.expect("layers");
    let done = all.iter().filter_map(|l| l.status.as_ref()).filter(|s| {
        let ready = condition::find(&s.conditions, ConditionType::Ready);
        ready.is_some_and(|c| c.reason == Reason::Finalized.as_str())
    });
    done.count()
}

pub async fn measure() {
    let rig = instant(LAYERS).await;
    rig.guest("life", quick());
    let controller = run(&rig, Pace::PRODUCTION).await;
    let spec = || json!({"finalize": {"policy": "OnShutdown"}});
    // The first makes the shared base; the second is what each further one is.
    for name in ["life-first", "life-second"] {
        rig.sim.pool.log.reset();
        rig.layer(name, spec()).await;
        rig.until_finalized(name, "1").await;
    }
    let recorded = rig.sim.pool.log.entries();
    rig.sim.pool.log.reset();

    let begun = Instant::now();
    let names: Vec<_> = (0..LAYERS).map(|n| format!("life-{n:03}")).collect();
    futures::stream::iter(&names).for_each_concurrent(16, |name| rig.layer(name, spec())).await;
    while finalized(&rig).await < LAYERS + 2 {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let took = begun.elapsed();
    let counts = rig.sim.pool.log.counts();
    drop(controller);

    title(&format!("XAPI calls a layer, from creation to Finalized ({LAYERS} at once)"));
    for (name, n) in &counts {
        row(name, &format!("{:.2}", *n as f64 / LAYERS as f64));
    }
    row("all", &format!("{:.2}", counts.values().sum::<u64>() as f64 / LAYERS as f64));

    let replayed = replay::measure(&rig, &recorded, LAYERS).await;
    title(&format!("{LAYERS} layers through all phases on a pool that needs no time"));
    let rate = |took: Duration| format!("{:.2} a second", LAYERS as f64 / took.as_secs_f64());
    row("with the controller", &rate(took));
    row("the same calls replayed, without streams, controller and API server", &rate(replayed));
}
