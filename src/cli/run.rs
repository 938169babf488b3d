//! `lamina run`: the controller, as a pod or at a desk. Puts together the client, the doors, the lease and the controller, and takes care
//! that none of them outlives the others.
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::ArgAction;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use lamina_guest::disk::MOST_PROGRAM_BYTES;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::controller::context::GuestProgram;
use crate::controller::lease::{Candidate, Deadline, Terms};
use crate::controller::metrics::Metrics;
use crate::controller::pace::Pace;
use crate::controller::{self, Settings};
use crate::http::{self, Doors};
use crate::telemetry::{self, Health};

const LEASE: &str = "lease";
/// How long steps under way may take after a stop; a pod has 30 s, and the lease is to be released after them. What is cut off is found
/// again by its marks and tags.
const DRAIN: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kubeconfig of the cluster to work in. Without it: $KUBECONFIG, ~/.kube/config, or the pod's own service account
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Namespace of the Lease that says which replica acts. Without it: the pod's own, or the kubeconfig's
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: Option<String>,
    /// Look after this namespace only; without it: all. What no layer owns is not looked for then (condition Unclaimed)
    #[arg(long, value_name = "NAMESPACE")]
    watch_namespace: Option<String>,
    /// Name in the Lease, in events and of sessions on the pools, for people; what makes it unique is added
    #[arg(long, env = "POD_NAME", default_value = "lamina")]
    identity: String,
    /// Act only while holding the Lease. Switch it off only where nothing can ever start a second controller: two make two of each disk
    #[arg(long, action = ArgAction::Set, default_value_t = true, value_name = "BOOL")]
    leader_elect: bool,
    /// lamina-guest.exe, to be put on the config disk of every packaging machine. Without it the disk has everything else, and the program
    /// must be in the OS layer or be copied into the machine
    #[arg(long, value_name = "FILE")]
    guest_program: Option<PathBuf>,
    /// Where /livez, /readyz, /metrics and /loglevel are served, in plain HTTP
    #[arg(long, default_value = "0.0.0.0:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// What to log, e.g. `debug` or `info,lamina::xapi=trace`; can be changed at /loglevel
    #[arg(long, env = "LAMINA_LOG", default_value = telemetry::DEFAULT_LEVEL)]
    log: String,
}

/// Runs until `stop`, or until something that it cannot do without has ended.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let level = telemetry::install(&args.log).context("--log")?;
    let config = config(args.kubeconfig.clone()).await?;
    let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).context("cannot make a client of the API server")?;
    let (metrics, health) = (Metrics::default(), Health::default());
    let program = args.guest_program.as_deref().map(guest_program).transpose()?;

    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listen = %listener.local_addr()?, namespace, "starting");
    let doors = Doors { health: health.clone(), metrics: metrics.registry(), level };
    // The doors stay open while the controller stops, so that the probes see it stop.
    let close = CancellationToken::new();
    let doors = tokio::spawn(http::serve(listener, doors, close.clone()));
    let identity = format!("{}_{}", args.identity, Uuid::new_v4());
    let settings = |deadline| Settings {
        pace: Pace::PRODUCTION,
        program: program.clone(),
        identity: identity.clone(),
        namespace: args.watch_namespace.clone(),
        deadline,
        metrics: metrics.clone(),
        room: Arc::default(),
        health: health.clone(),
    };
    let led = if args.leader_elect {
        let candidate = Candidate::new(client.clone(), &namespace, identity.clone(), Terms::default());
        lead(client, candidate, settings, &metrics, &health, stop).await
    } else {
        tracing::warn!("no leader election: nothing else may run a controller on this cluster");
        control(client, settings(Deadline::none()), stop).await
    };
    close.cancel();
    led.and(doors.await?.context("the HTTP server"))
}

/// Read once, so that all disks of this process are alike.
fn guest_program(file: &Path) -> anyhow::Result<GuestProgram> {
    let bytes = std::fs::read(file).with_context(|| format!("--guest-program {}", file.display()))?;
    anyhow::ensure!(
        bytes.len() as u64 <= MOST_PROGRAM_BYTES,
        "--guest-program {} has {} bytes, more than {MOST_PROGRAM_BYTES}: is it lamina-guest.exe?",
        file.display(),
        bytes.len()
    );
    Ok(GuestProgram::new(bytes))
}

async fn config(kubeconfig: Option<PathBuf>) -> anyhow::Result<Config> {
    match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(&path).with_context(|| format!("--kubeconfig {}", path.display()))?;
            Ok(Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?)
        }
        None => Config::infer().await.context("no kubeconfig and no service account: give --kubeconfig"),
    }
}

/// Runs the controller until it has ended, and after `stop` no longer than it may take.
async fn control(client: Client, settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        ended = controller::run(client, settings, stop.clone()) => ended.map_err(Into::into),
        () = late => {
            tracing::warn!("steps under way were cut off");
            Ok(())
        }
    }
}

/// Waits for its turn, then runs the controller for as long as the lease is held.
async fn lead(
    client: Client,
    candidate: Candidate,
    settings: impl FnOnce(Deadline) -> Settings,
    metrics: &Metrics,
    health: &Health,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    health.awaits(LEASE);
    // A standby that knows that another one leads is as ready as it can be.
    let turn = candidate.acquire(|| health.came(LEASE));
    let Some(leader) = stop.run_until_cancelled(turn).await else { return Ok(()) };
    let deadline = leader.deadline();
    metrics.lease_held(true);
    let (release, alive) = (CancellationToken::new(), health.alive(LEASE));
    let keep = leader.keep(release.clone());
    let mut keeping = tokio::spawn(async move {
        let _alive = alive;
        keep.await
    });
    let ended = tokio::select! {
        ended = control(client, settings(deadline), stop) => {
            // Only now: whoever comes next may act at once.
            release.cancel();
            let kept = keeping.await?;
            ended?;
            kept.map_err(Into::into)
        }
        lost = &mut keeping => lost?.context("another controller may lead by now"),
    };
    metrics.lease_held(false);
    ended
}
