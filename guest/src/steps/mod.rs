//! Steps: what a layer without hands is installed by, run in order, once each, across reboots.
//!
//! `record` keeps what ran, safe against a torn write; `engine` decides what comes next, and is pure; `driver` does it. The controller writes
//! the definitions and reads the record; the guest's service does the rest.

pub mod driver;
pub mod engine;
pub mod progress;
pub mod record;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Steps of one layer.
pub const MOST_STEPS: usize = 32;
/// Bytes of a step's or a file's name: with both, every path stays below Windows' 260 letters.
pub const LONGEST_NAME: usize = 100;
/// Letters that `cmd.exe` takes in one line, with room for what stands around the command.
pub const LONGEST_COMMAND: usize = 8000;
/// Seconds of `timeout` where none is given.
pub const TIMEOUT: u64 = 3600;
/// Seconds that `timeout` may be at most: a day.
pub const LONGEST_TIMEOUT: u64 = 86_400;

/// One step as the guest gets it in `steps.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Lower-case letters, digits and dashes; unique in the layer.
    pub name: String,
    #[serde(flatten)]
    pub what: What,
    /// Exit codes that mean success, of Windows' 32 bits, signed or unsigned.
    #[serde(default = "success_codes")]
    pub success_codes: Vec<i64>,
    #[serde(default)]
    pub reboot: Reboot,
    /// Seconds until the step is ended with everything that it started.
    #[serde(default = "timeout")]
    pub timeout: u64,
    #[serde(default)]
    pub on_failure: OnFailure,
    /// Run it again if the machine went down while it ran.
    #[serde(default)]
    pub retry: bool,
    /// Names of its files; they lie side by side in the directory that it runs in.
    #[serde(default)]
    pub files: Vec<String>,
}

/// What a step runs: exactly one of the three.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum What {
    /// A line for `cmd.exe`.
    Command(String),
    /// A script for Windows PowerShell.
    Powershell(String),
    /// One of the step's files, started by its extension: `.exe`, `.msi`, `.msu`, `.ps1`, `.cmd`, `.bat`.
    File(String),
}

/// When Windows is restarted after the step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reboot {
    /// When its exit code asks for it: 3010, 1641.
    #[default]
    IfRequested,
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnFailure {
    #[default]
    Stop,
    Continue,
}

/// A step that cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("there are {0} steps, more than {MOST_STEPS}")]
    TooManySteps(usize),
    #[error("'{0}' is no name of a step: use at most {LONGEST_NAME} lower-case letters, digits and dashes")]
    Name(String),
    #[error("two steps are named '{0}'")]
    Twice(String),
    #[error(
        "step '{0}': '{1}' is no name of a file: use at most {LONGEST_NAME} letters, digits, '.', '-' and '_', no name of a device of Windows, and no '-' at the beginning, '.' or '-' at the end"
    )]
    FileName(String, String),
    #[error("step '{0}': two files are named '{1}'; Windows takes small and capital letters for the same")]
    FileTwice(String, String),
    #[error("step '{0}' runs file '{1}', which is not among its files")]
    NoSuchFile(String, String),
    #[error(
        "step '{0}' runs file '{1}', which is none of .exe, .msi, .msu, .ps1, .cmd, .bat: use `command` to say how it is run"
    )]
    Extension(String, String),
    #[error(
        "step '{0}': a command is one line of at most {LONGEST_COMMAND} letters: put more into a file or `powershell`"
    )]
    Command(String),
    #[error("step '{0}': success code {1} is none that Windows has: they have 32 bits")]
    Code(String, i64),
    #[error("step '{0}': the timeout must be between 1 s and a day")]
    Timeout(String),
}

/// Everything that a guest could not run as it is meant, the first one found.
pub fn check(steps: &[Step]) -> Result<(), Invalid> {
    if steps.len() > MOST_STEPS {
        return Err(Invalid::TooManySteps(steps.len()));
    }
    let mut names = BTreeSet::new();
    for step in steps {
        if !step_name(&step.name) {
            return Err(Invalid::Name(step.name.clone()));
        }
        if !names.insert(&step.name) {
            return Err(Invalid::Twice(step.name.clone()));
        }
        step.check()?;
    }
    Ok(())
}

impl Step {
    fn check(&self) -> Result<(), Invalid> {
        let name = || self.name.clone();
        let mut files = BTreeSet::new();
        for file in &self.files {
            if !file_name(file) {
                return Err(Invalid::FileName(name(), file.clone()));
            }
            if !files.insert(file.to_ascii_lowercase()) {
                return Err(Invalid::FileTwice(name(), file.clone()));
            }
        }
        match &self.what {
            What::Command(line) if line.len() > LONGEST_COMMAND || line.contains(['\r', '\n', '\0']) => {
                return Err(Invalid::Command(name()));
            }
            What::File(file) if !files.contains(&file.to_ascii_lowercase()) => {
                return Err(Invalid::NoSuchFile(name(), file.clone()));
            }
            What::File(file) if driver::Kind::of(file).is_none() => {
                return Err(Invalid::Extension(name(), file.clone()));
            }
            What::Command(_) | What::Powershell(_) | What::File(_) => {}
        }
        if let Some(code) = self.success_codes.iter().find(|c| windows_code(**c).is_none()) {
            return Err(Invalid::Code(name(), *code));
        }
        if self.timeout == 0 || self.timeout > LONGEST_TIMEOUT {
            return Err(Invalid::Timeout(name()));
        }
        Ok(())
    }
}

/// An exit code as Windows has it; `None`: it does not fit 32 bits, signed or not.
pub fn windows_code(code: i64) -> Option<i32> {
    i32::try_from(code).ok().or_else(|| u32::try_from(code).ok().map(u32::cast_signed))
}

fn step_name(name: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    name.len() <= LONGEST_NAME
        && ends(name.chars().next())
        && ends(name.chars().last())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !device(name)
}

fn file_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len())
        && !name.starts_with('-')
        && !name.ends_with(['.', '-'])
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        && !device(name)
}

/// Names that are devices in every directory of Windows, whatever extension follows.
fn device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let numbered =
        |of: &str| stem.strip_prefix(of).is_some_and(|n| n.len() == 1 && n.bytes().all(|b| b.is_ascii_digit()));
    matches!(stem.as_str(), "con" | "prn" | "aux" | "nul") || numbered("com") || numbered("lpt")
}

fn success_codes() -> Vec<i64> {
    vec![0, 3010]
}

fn timeout() -> u64 {
    TIMEOUT
}

#[cfg(test)]
mod tests;
