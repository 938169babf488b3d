//! What the demo saw: each transition as it happens, and in the end a table of how long each phase took.

use std::collections::BTreeMap;
use std::fmt;

use kube::ResourceExt;
use tokio::time::Instant;

use crate::api::condition::{ConditionType, find};
use crate::api::reason::Reason;
use crate::api::{Phase, PlatformLayer};

/// Columns of the table.
const PHASES: [Phase; 4] = [Phase::Pending, Phase::DiskCreated, Phase::MachineRunning, Phase::AwaitingFinalize];

pub struct Chronicle {
    begun: Instant,
    expected: usize,
    layers: BTreeMap<String, Life>,
}

/// What a line is printed for: phase and reason; where a machine goes on by itself, each thing that it does.
type Told = (Phase, String, Option<String>);

#[derive(Default)]
struct Life {
    told: Option<Told>,
    entered: Vec<(Phase, Instant)>,
    version: String,
    disk: String,
    ready: bool,
}

impl Chronicle {
    pub fn new(expected: usize) -> Self {
        Self { begun: Instant::now(), expected, layers: BTreeMap::new() }
    }

    /// Prints what is new of a layer.
    pub fn saw(&mut self, layer: &PlatformLayer) {
        let Some(status) = &layer.status else { return };
        let (Some(phase), Some(ready)) = (status.phase, find(&status.conditions, ConditionType::Ready)) else { return };
        let life = self.layers.entry(layer.name_any()).or_default();
        life.ready = ready.status == "True";
        life.version.clone_from(&layer.spec.version);
        if let Some(current) = &status.current {
            life.disk.clone_from(&current.disk);
        }
        if life.entered.last().is_none_or(|(last, _)| *last != phase) {
            life.entered.push((phase, Instant::now()));
        }
        let by_itself = ready.reason == Reason::RunningSteps.as_str();
        let now = (phase, ready.reason.clone(), by_itself.then(|| ready.message.clone()));
        if life.told.as_ref() != Some(&now) {
            let at = self.begun.elapsed().as_secs_f64();
            println!(
                "{at:6.1}s {:<20} {:<16} {:<20} {}",
                layer.name_any(),
                phase.as_str(),
                ready.reason,
                ready.message
            );
            life.told = Some(now);
        }
    }

    /// All layers are there and at rest.
    pub fn complete(&self) -> bool {
        self.layers.len() == self.expected && self.layers.values().all(|l| l.ready)
    }
}

impl Life {
    /// Seconds in a phase, all its visits together.
    fn seconds(&self, phase: Phase) -> f64 {
        let ends = self.entered.iter().skip(1).map(|(_, at)| *at);
        self.entered
            .iter()
            .zip(ends)
            .filter(|((p, _), _)| *p == phase)
            .map(|((_, from), to)| (to - *from).as_secs_f64())
            .sum()
    }
}

impl fmt::Display for Chronicle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<20} {:<8} {:<36}", "LAYER", "VERSION", "DISK")?;
        for phase in PHASES {
            write!(f, " {:>16}", phase.as_str())?;
        }
        for (name, life) in &self.layers {
            write!(f, "\n{name:<20} {:<8} {:<36}", life.version, life.disk)?;
            for phase in PHASES {
                write!(f, " {:>15.1}s", life.seconds(phase))?;
            }
        }
        Ok(())
    }
}
