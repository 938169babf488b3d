//! From a guest's halt to the phase `AwaitingFinalize` in the API server, as a watch of the layers sees it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use kube::ResourceExt;
use kube::runtime::{WatchStreamExt, watcher};
use lamina::api::{Phase, PlatformLayer};
use lamina::controller::pace::Pace;
use lamina::sim::guest::program;
use lamina::sim::power::Exit;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::common::rig::{Rig, Running, quick};
use crate::lives::{instant, os_disk, run, settled};
use crate::{distribution, row, title};

const MACHINES: usize = 500;
/// Between two halts: twenty people switch off at the same second, all day long.
const APART: Duration = Duration::from_millis(50);

type Moments = Arc<Mutex<HashMap<String, Instant>>>;

pub async fn measure() {
    let rig = instant(MACHINES).await;
    let (halted, gate): (Moments, _) = (Moments::default(), Arc::new(Semaphore::new(0)));
    let (noting, waiting, usual) = (halted.clone(), gate.clone(), quick());
    // The usual guest, but that it asks before it switches off.
    let asking = program(move |guest| {
        let (noting, waiting, life) = (noting.clone(), waiting.clone(), usual(guest.clone()));
        async move {
            let exit = life.await;
            if exit == Exit::Halt {
                waiting.acquire().await.expect("never closed").forget();
                // `<name> <version> packaging`
                let layer = guest.name.split(' ').next().unwrap_or_default().to_owned();
                noting.lock().expect("whole").insert(layer, Instant::now());
            }
            exit
        }
    });
    rig.guest("halt", asking);
    let controller = run(&rig, Pace::PRODUCTION).await;
    let seen = watch(&rig);
    create(&rig).await;
    settled(&rig, &controller, MACHINES, Phase::MachineRunning).await;

    title(&format!("{MACHINES} guests halt, one every {APART:?}: until AwaitingFinalize is in the API server"));
    for _ in 0..MACHINES {
        gate.add_permits(1);
        tokio::time::sleep(APART).await;
    }
    print(&rig, &controller, &halted, &seen).await;

    title(&format!("{MACHINES} guests halt at the same moment"));
    for layer in rig.layers().list(&Default::default()).await.expect("layers") {
        rig.patch(&layer.name_any(), json!({"machine": {"restartToken": "again"}})).await;
    }
    settled(&rig, &controller, MACHINES, Phase::MachineRunning).await;
    halted.lock().expect("whole").clear();
    seen.lock().expect("whole").clear();
    gate.add_permits(MACHINES);
    print(&rig, &controller, &halted, &seen).await;
}

async fn create(rig: &Rig) {
    let layer = async |n| rig.layer(&format!("halt-{n}"), json!({"osLayer": os_disk(n)})).await;
    futures::stream::iter(0..MACHINES).for_each_concurrent(16, layer).await;
}

/// When each layer was first seen to await its finalize.
fn watch(rig: &Rig) -> Moments {
    let (seen, layers) = (Moments::default(), rig.layers());
    let noting = seen.clone();
    tokio::spawn(async move {
        let events = watcher(layers, watcher::Config::default()).default_backoff().applied_objects();
        let note = async |layer: PlatformLayer| {
            if layer.status.as_ref().and_then(|s| s.phase) == Some(Phase::AwaitingFinalize) {
                noting.lock().expect("whole").entry(layer.name_any()).or_insert_with(Instant::now);
            }
            Ok(())
        };
        events.try_for_each(note).await.expect("a watch");
    });
    seen
}

async fn print(rig: &Rig, controller: &Running, halted: &Moments, seen: &Moments) {
    settled(rig, controller, MACHINES, Phase::AwaitingFinalize).await;
    let (halted, seen) = (halted.lock().expect("whole").clone(), seen.lock().expect("whole").clone());
    let waits: Vec<_> = halted.iter().map(|(layer, at)| seen[layer].duration_since(*at)).collect();
    assert_eq!(waits.len(), MACHINES);
    for (name, wait) in distribution(waits) {
        row(name, &format!("{:.0} ms", wait.as_secs_f64() * 1000.0));
    }
}
