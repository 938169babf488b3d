//! `lamina-guest`: what runs inside a packaging machine. Parses the command line and hands over; Windows is where it works.

use std::process::ExitCode;

use clap::Parser;
use lamina_guest::command::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    #[cfg(windows)]
    let code = lamina_guest::windows::program::run(cli);
    #[cfg(not(windows))]
    let code = {
        drop(cli);
        eprintln!("lamina-guest looks at the Windows that it runs in: run it inside a packaging machine");
        lamina_guest::verify::BLIND
    };
    ExitCode::from(code)
}
