//! Does what `engine` says: runs steps with their limits and logs, and writes the record before and after. Called by `service`.
//!
//! Nothing is run unless the record that calls it `Running` is on the disk; a record that cannot be written ends the run.

use std::time::Duration;

use super::engine::{self, Action, Outcome};
use super::record::Record;
use super::{Step, What};
use crate::deeds::{Deeds, Ended, Failed, Job};
use crate::disk::{FILES, SCRIPT, log_path};
use crate::facts::Facts;

/// How a file is started, by its extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Program,
    Msi,
    Msu,
    Powershell,
    Batch,
}

impl Kind {
    /// `None`: Lamina does not know how such a file is run without hands.
    pub fn of(file: &str) -> Option<Self> {
        let (_, extension) = file.rsplit_once('.')?;
        match extension.to_ascii_lowercase().as_str() {
            "exe" => Some(Self::Program),
            "msi" => Some(Self::Msi),
            "msu" => Some(Self::Msu),
            "ps1" => Some(Self::Powershell),
            "cmd" | "bat" => Some(Self::Batch),
            _ => None,
        }
    }
}

/// Where steps run.
pub struct Bench<'a> {
    pub facts: &'a dyn Facts,
    pub deeds: &'a dyn Deeds,
    /// Root of the config disk, such as `E:\`.
    pub root: &'a str,
}

impl Bench<'_> {
    /// Runs steps until there is something that is not a step. `tell` hears each state once it is on the disk.
    pub fn drive(&self, steps: &[Step], record: &mut Record, tell: &dyn Fn(&Record)) -> Result<Action, Failed> {
        loop {
            let n = match engine::next(steps, record) {
                Action::Run(n) => n,
                other @ (Action::Reboot(_) | Action::Done | Action::Stopped(_)) => return Ok(other),
            };
            let Some(step) = steps.get(n) else {
                return Ok(Action::Done);
            };
            engine::begin(record, n, self.facts.now());
            self.save(record)?;
            tell(record);
            let outcome = match self.deeds.run(&job(step, n, self.root)) {
                Ok(Ended::Code(code)) => Outcome::Code(code),
                Ok(Ended::TimedOut) => Outcome::TimedOut,
                Err(failed) => {
                    // Its log is where a person is sent to. Where that cannot be written the record still says it.
                    let log = path(self.root, &log_path(n, &step.name));
                    if self.facts.read(&log, 1).is_ok_and(|kept| kept.is_none_or(|bytes| bytes.is_empty())) {
                        self.deeds.write(&log, format!("{failed}\r\n").as_bytes()).unwrap_or_default();
                    }
                    Outcome::NotStarted(failed.to_string())
                }
            };
            engine::end(steps, record, n, outcome, self.facts.now());
            if self.save(record).is_err() {
                // What a step leaves on the disk is its own affair; its log gives way to the record.
                self.deeds.remove(&path(self.root, &log_path(n, &step.name)))?;
                self.save(record)?;
            }
            tell(record);
        }
    }

    /// Writes the record into the slot whose turn it is. After a failure it is still the same slot's turn: the other one may be the only
    /// whole one.
    pub fn save(&self, record: &mut Record) -> Result<(), Failed> {
        let next = Record { generation: record.generation.saturating_add(1), ..record.clone() };
        let path = path(self.root, next.slot());
        let bytes = next.bytes().map_err(|e| Failed { what: format!("write {path}"), why: e.to_string() })?;
        self.deeds.write(&path, &bytes)?;
        *record = next;
        Ok(())
    }
}

/// A path on the config disk, as Windows writes it.
pub fn path(root: &str, path: &str) -> String {
    format!("{}\\{}", root.trim_end_matches('\\'), path.replace('/', "\\"))
}

/// The program that a step is. Nothing of it can ask: installers are told to be silent and not to restart Windows, and input is empty.
pub fn job(step: &Step, n: usize, root: &str) -> Job {
    let directory = path(root, &format!("{FILES}/{}", step.name));
    let script = |file: &str| {
        let args = format!("-NoProfile -NonInteractive -ExecutionPolicy Bypass -File \"{directory}\\{file}\"");
        ("powershell.exe".to_owned(), args)
    };
    let (program, args) = match &step.what {
        What::Command(line) => ("cmd.exe".to_owned(), format!("/d /s /c \"{line}\"")),
        What::Powershell(_) => script(SCRIPT),
        What::File(file) => match Kind::of(file) {
            Some(Kind::Msi) => ("msiexec.exe".to_owned(), format!("/i \"{directory}\\{file}\" /qn /norestart")),
            Some(Kind::Msu) => ("wusa.exe".to_owned(), format!("\"{directory}\\{file}\" /quiet /norestart")),
            Some(Kind::Powershell) => script(file),
            Some(Kind::Batch) => ("cmd.exe".to_owned(), format!("/d /s /c \"\"{directory}\\{file}\"\"")),
            Some(Kind::Program) | None => (format!("{directory}\\{file}"), String::new()),
        },
    };
    Job {
        program,
        args,
        directory: Some(directory),
        limit: Duration::from_secs(step.timeout),
        log: Some(path(root, &log_path(n, &step.name))),
    }
}
