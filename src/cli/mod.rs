//! The command line. Called by `main`; what a command does is in the rooms below, what it is told is here.
mod run;
mod simulate;

use std::io::Write;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::api::crd;
use crate::demo;

/// Builds XenServer platform layers from Kubernetes manifests.
#[derive(Debug, Parser)]
#[command(name = "lamina", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller.
    Run(run::Args),
    /// Show layers walking through all phases, on a cluster and a pool of the demo's own.
    Demo(demo::Args),
    /// Print the CustomResourceDefinitions, for `kubectl apply --server-side -f -`.
    Crds,
    /// Run a simulated XenServer pool, and print how to connect to it.
    Simulate(simulate::Args),
}

impl Cli {
    /// Does what was asked; returns when it is done.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Demo(args) => demo::run(args, stopped()?).await,
            Command::Run(args) => run::run(args, stopped()?).await,
            Command::Crds => crds(),
            Command::Simulate(args) => simulate::run(args, stopped()?).await,
        }
    }
}

fn crds() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for crd in crd::crds()? {
        write!(out, "---\n{}", crd::to_yaml(&crd)?).context("cannot write to standard output")?;
    }
    Ok(())
}

/// Cancelled by Ctrl-C and by SIGTERM, as a terminal and a kubelet say it.
fn stopped() -> anyhow::Result<CancellationToken> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        told.cancel();
    });
    Ok(stop)
}
