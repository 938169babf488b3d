//! The demo: everything that Lamina needs, on one machine. Called by `cli`; the only room where the controller and the simulated pool meet.
//!
//! A real API server, a simulated pool with guests that do what a person would do, the controller with production's pace, and layers that
//! walk to their end. Nothing of it outlives the process unless the user asks for that.

mod chronicle;
mod cluster;
mod inside;
pub mod person;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kube::api::{Patch, PatchParams};
use kube::runtime::wait::await_condition;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::chronicle::Chronicle;
use self::cluster::Cluster;
use crate::api::condition::{ConditionType, find};
use crate::api::reason::Reason;
use crate::api::{APPROVAL_MANAGER, Connector, PlatformLayer};
use crate::controller::lease::Deadline;
use crate::controller::metrics::Metrics;
use crate::controller::pace::Pace;
use crate::controller::{self, Settings};
use crate::local::manifests;
use crate::sim::clock::Clock;
use crate::sim::guest::Match;
use crate::sim::serve::{self, Sim};
use crate::telemetry::{self, Health};
use futures::StreamExt;

/// Where the demo's objects are.
const NAMESPACE: &str = "lamina-demo";
/// The layers are the examples that a user would apply, word for word.
const LAYERS: [&str; 2] =
    [include_str!("../../examples/without-hands.yaml"), include_str!("../../examples/packaging.yaml")];
/// What the steps of the first one bring along.
const STEP_FILES: &str = include_str!("../../examples/demo/step-files.yaml");
/// How long the layers may take; production waits included, they need about a minute.
const BOUND: Duration = Duration::from_secs(600);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave everything running when the layers are done, and print how to reach it
    #[arg(long)]
    keep: bool,
    /// Use this cluster instead of a control plane of the demo's own; what is made there is removed at the end
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// How much faster than a real pool's the simulated pool's time runs
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    speed: f64,
    /// Show the controller's own log as well, by this filter (e.g. `info`), and its audit lines
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

/// Runs the demo; `stop` ends it early.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    anyhow::ensure!(args.speed.is_finite() && args.speed > 0.0, "--speed must be greater than 0");
    if let Some(filter) = &args.log {
        telemetry::install(filter).context("--log")?;
    }
    let told = stop.clone();
    let Some(cluster) = stop.run_until_cancelled(Cluster::start(args.kubeconfig.clone())).await.transpose()? else {
        return Ok(());
    };
    // Not cut off: what is being made must be there to be removed.
    let installed = cluster.install().await;
    let walked = async {
        installed?;
        walk(&args, &cluster, told).await
    };
    let ended = stop.run_until_cancelled(walked).await.unwrap_or(Ok(()));
    let cleared = cluster.clear().await;
    ended.and(cleared)
}

async fn walk(args: &Args, cluster: &Cluster, stop: CancellationToken) -> anyhow::Result<()> {
    println!("starting a simulated XenServer pool of three hosts");
    let sim = Sim::start(serve::Options { clock: Clock::new(args.speed), ..serve::Options::default() }).await?;
    guests(&sim);
    println!("starting the controller");
    let controller = controller::run(cluster.controller().await?, settings(cluster), stop.child_token());
    let controller = tokio::spawn(controller);
    manifests::apply(&cluster.person, NAMESPACE, &connector(&sim)).await.context("the Connector")?;
    let found = tokio::time::timeout(BOUND, usable(&cluster.person)).await.context("the Connector is not ready")??;
    println!("Connector lab is ready: {found}");
    manifests::apply(&cluster.person, NAMESPACE, STEP_FILES).await.context("the files of the steps")?;
    for layer in LAYERS {
        manifests::apply(&cluster.person, NAMESPACE, layer).await.context("an example layer")?;
    }
    println!("applied examples/without-hands.yaml and examples/packaging.yaml\n");
    let mut chronicle = Chronicle::new(LAYERS.len());
    tokio::select! {
        followed = tokio::time::timeout(BOUND, follow(&cluster.person, &mut chronicle)) => {
            followed.context("the layers did not get to their end in time")??;
        }
        ended = controller => match ended? {
            // With us.
            Ok(()) if stop.is_cancelled() => return Ok(()),
            ended => anyhow::bail!("the controller ended: {:?}", ended.err()),
        },
    }
    println!("\n{chronicle}");
    if args.keep {
        cluster.tell(&sim);
        stop.cancelled().await;
    }
    Ok(())
}

fn settings(cluster: &Cluster) -> Settings {
    Settings {
        program: None,
        pace: Pace::PRODUCTION,
        identity: format!("demo_{}", uuid::Uuid::new_v4()),
        namespace: (!cluster.is_own()).then(|| NAMESPACE.to_owned()),
        // No Lease: in a cluster of the demo's own nobody leads but whom its user starts (README); in the user's the namespace is ours.
        deadline: Deadline::none(),
        metrics: Metrics::default(),
        room: Arc::default(),
        health: Health::default(),
    }
}

/// What goes on inside the machines: the one installs itself; in the other are tools and a reboot, software, a check that finds something,
/// the cure, a clean check, shutdown.
fn guests(sim: &Sim) {
    for (name, inside) in [("vda-unattended", person::nobody()), ("xenserver-packaging", person::usual())] {
        let which = Match { name: Some(format!("{name}*")), ..Match::default() };
        sim.pool.world.guests.add(which, inside);
    }
}

fn connector(sim: &Sim) -> String {
    let fingerprints: Vec<_> = sim.hosts.iter().map(|h| &h.fingerprint).collect();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "lab"}, "type": "kubernetes.io/basic-auth",
        "stringData": {"username": "root", "password": "secret"}});
    let connector = json!({"apiVersion": "lamina.dev/v1alpha1", "kind": "Connector", "metadata": {"name": "lab"}, "spec": {
        "endpoints": sim.urls().first().into_iter().collect::<Vec<_>>(), "credentialsSecretRef": {"name": "lab"}, "tls": {"fingerprintsSHA256": fingerprints},
        "template": "packaging", "storageRepository": "Shared storage"}});
    format!("{secret}\n---\n{connector}\n")
}

/// Waits as a user would, `kubectl wait connector/lab --for condition=Ready`; returns what Ready says.
async fn usable(client: &Client) -> anyhow::Result<String> {
    let ready = |c: &Connector| find(&c.status.as_ref()?.conditions, ConditionType::Ready).cloned();
    let api = Api::<Connector>::namespaced(client.clone(), NAMESPACE);
    let is_ready = |c: Option<&Connector>| c.and_then(ready).is_some_and(|ready| ready.status == "True");
    let found = await_condition(api, "lab", is_ready).await.context("the watch of the Connector")?;
    Ok(found.as_ref().and_then(ready).map(|ready| ready.message).unwrap_or_default())
}

/// Prints every transition until all layers are finalized, and approves as a person would.
async fn follow(client: &Client, chronicle: &mut Chronicle) -> anyhow::Result<()> {
    let api = Api::<PlatformLayer>::namespaced(client.clone(), NAMESPACE);
    let mut seen = std::pin::pin!(watcher(api.clone(), watcher::Config::default()).default_backoff().applied_objects());
    while let Some(layer) = seen.next().await {
        let layer = layer.context("the watch of the layers")?;
        chronicle.saw(&layer);
        let turn = layer.status.iter().find_map(|s| find(&s.conditions, ConditionType::ActionRequired));
        let asked = layer.spec.finalize.approved.as_ref() != Some(&layer.spec.version);
        if asked && turn.is_some_and(|c| c.reason == Reason::ApproveFinalize.as_str()) {
            approve(&api, &layer).await?;
        }
        if chronicle.complete() {
            return Ok(());
        }
    }
    anyhow::bail!("the watch of the layers ended")
}

/// The patch of the layer's own message: with the resourceVersion that was read, so that nothing unseen is approved.
async fn approve(api: &Api<PlatformLayer>, layer: &PlatformLayer) -> anyhow::Result<()> {
    let (name, version) = (layer.name_any(), &layer.spec.version);
    let patch =
        json!({"metadata": {"resourceVersion": layer.resource_version()}, "spec": {"finalize": {"approved": version}}});
    let params = PatchParams { field_manager: Some(APPROVAL_MANAGER.to_owned()), ..PatchParams::default() };
    match api.patch(&name, &params, &Patch::Merge(&patch)).await {
        Ok(_) => println!("        a person approves version '{version}' of {name}"),
        // It moved on meanwhile: the next event decides anew.
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(error).with_context(|| format!("approving {name}")),
    }
    Ok(())
}
