//! How far the steps are, live, in the machine's xenstore: for people who watch. What counts is the record on the config disk.
//!
//! Written by `service`, read by the controller. One small ASCII value per step that was begun, since older hosts let a guest have 128 keys
//! in all. Written after the record, never before: so a step that has a key here and is `Pending` there tells of a record that lost a write.

use std::collections::BTreeMap;

use super::record::{Record, State};
use super::{MOST_STEPS, step_name};
use crate::channel::{Store, StoreError};

/// Above the keys of the steps, by their names: `<State>`, or `<State> <exit code>`.
pub const STEPS: &str = "vm-data/lamina/steps";
/// What the service is doing, in words: `Doing`.
pub const PROGRESS: &str = "vm-data/lamina/progress";

/// One step, as the guest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub name: String,
    pub state: State,
    pub exit_code: Option<i32>,
}

/// What the service is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    Steps,
    Rebooting,
    /// A step needs a person.
    Stopped,
    /// The config disk cannot be used.
    Damaged,
    /// All steps are done; shutting down for finalize is a person's.
    Done,
    /// Checks, and waits for what goes away by itself.
    Finalizing,
    /// The check has findings that need a person.
    Findings,
    /// Something that it had to do was refused: the record, the report, the shutdown.
    Failed,
}

impl Doing {
    const ALL: [Self; 8] = [
        Self::Steps,
        Self::Rebooting,
        Self::Stopped,
        Self::Damaged,
        Self::Done,
        Self::Finalizing,
        Self::Findings,
        Self::Failed,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Steps => "Steps",
            Self::Rebooting => "Rebooting",
            Self::Stopped => "Stopped",
            Self::Damaged => "Damaged",
            Self::Done => "Done",
            Self::Finalizing => "Finalizing",
            Self::Findings => "Findings",
            Self::Failed => "Failed",
        }
    }

    /// `None`: the guest says nothing, or what we do not know.
    pub fn read(xenstore: &BTreeMap<String, String>) -> Option<Self> {
        let said = xenstore.get(PROGRESS)?;
        Self::ALL.into_iter().find(|d| d.as_str() == said)
    }
}

/// Says what the service is doing.
pub fn say(store: &dyn Store, doing: Doing) -> Result<(), StoreError> {
    store.write(PROGRESS, doing.as_str())
}

/// Brings the steps' keys up to the record; what stands already is not written again, since each write wakes the pool.
pub fn write(store: &dyn Store, record: &Record) -> Result<(), StoreError> {
    for ran in &record.steps {
        let path = format!("{STEPS}/{}", ran.name);
        let told = store.read(&path)?;
        if ran.state == State::Pending {
            if told.is_some() {
                store.remove(&path)?;
            }
            continue;
        }
        let now = match ran.exit_code {
            Some(code) => format!("{} {code}", ran.state.as_str()),
            None => ran.state.as_str().to_owned(),
        };
        if told.as_ref() != Some(&now) {
            store.write(&path, &now)?;
        }
    }
    Ok(())
}

/// Was this step begun, as far as xenstore knows?
pub fn begun(store: &dyn Store, step: &str) -> Result<bool, StoreError> {
    Ok(store.read(&format!("{STEPS}/{step}"))?.is_some())
}

/// The steps that a guest says it has begun, by name; what is no name or state of ours is left out.
pub fn read(xenstore: &BTreeMap<String, String>) -> Vec<Step> {
    let step = |(key, value): (&String, &String)| {
        let name = key.strip_prefix(STEPS)?.strip_prefix('/').filter(|n| step_name(n))?;
        let (state, code) = value.split_once(' ').unwrap_or((value, ""));
        let state = State::ALL.into_iter().find(|s| s.as_str() == state)?;
        Some(Step { name: name.to_owned(), state, exit_code: code.parse().ok() })
    };
    xenstore.iter().filter_map(step).take(MOST_STEPS).collect()
}
