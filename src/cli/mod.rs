//! The command line. Called by `main`; what a command does is in the rooms below, what it is told is here.
use std::io::Write;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::api::crd;

/// Builds XenServer platform layers from Kubernetes manifests.
#[derive(Debug, Parser)]
#[command(name = "lamina", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the CustomResourceDefinitions, for `kubectl apply --server-side -f -`.
    Crds,
}

impl Cli {
    /// Does what was asked; returns when it is done.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Crds => crds(),
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
