//! The command line of `lamina-guest`. Parsed by `main`, carried out by `windows::program`.

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Inside a packaging machine: looks for what would spoil the layer, runs the layer's steps, shuts down for finalize.
///
/// Exit codes: 0 nothing found, or done; 1 findings; 2 something could not be looked at or done; of a window, what it showed last. Needs an
/// administrator.
#[derive(Debug, Parser)]
#[command(name = "lamina-guest", version)]
pub struct Cli {
    /// None: what the desktop icon does where a double-click started it, else this help.
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look for everything that would spoil the layer, and change nothing
    Verify {
        /// One JSON object instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Remove ghost network cards and verify; report what is found, and leave the machine on; if nothing is, rearm where the layer asks for it,
    /// report, and turn the machine off in full
    ///
    /// Refused while steps of the layer are left. Started from the config disk, it takes service and icon out of this Windows before it looks.
    ShutdownForFinalize(Shutdown),
    /// Put the program into this Windows: service, and an icon "Shutdown For Finalize" on everybody's desktop; once more, to bring them up to date
    Install,
    /// Take all of that away again; the installed program itself cannot delete its own file, and names it
    Uninstall,
    /// Answer for a step that stopped, and go on with the steps
    Answer {
        /// The step's name
        step: String,
        #[arg(value_enum)]
        answer: Answer,
    },
    /// Started by Windows at each boot
    #[command(hide = true)]
    Service,
}

#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Shutdown {
    /// First run what is queued for the native image generator (ngen executequeueditems), and wait for its end
    #[arg(long)]
    pub wait_ngen: bool,
    /// Report, but leave the machine on
    #[arg(long)]
    pub leave_on: bool,
    /// Show the outcome in a window, as the desktop icon does
    #[arg(long)]
    pub window: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Answer {
    /// Run it once more
    Again,
    /// Take it as done
    Skip,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed_and_the_icon_s_arguments_parse() {
        Cli::command().debug_assert();
        let cli =
            Cli::try_parse_from(["lamina-guest", "shutdown-for-finalize", "--window"]).expect("the icon's arguments");
        assert!(matches!(
            cli.command,
            Some(Command::ShutdownForFinalize(Shutdown { window: true, leave_on: false, .. }))
        ));
        assert!(Cli::try_parse_from(["lamina-guest"]).expect("a double-click").command.is_none());
    }
}
