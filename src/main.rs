//! The binary: picks the TLS provider, runs the command, and decides the exit code: 0 done, 1 failed, 2 not understood.
use std::process::ExitCode;

use clap::Parser;
use lamina::cli::Cli;
use lamina::telemetry::chain;

fn main() -> ExitCode {
    // kube and reqwest would each look for a provider and panic if there were two; an error only says that one is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if tracing::dispatcher::has_been_set() {
                tracing::error!(error = chain(error.as_ref()), "giving up");
            } else {
                eprintln!("lamina: {}", chain(error.as_ref()));
            }
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(cli.run())
}
