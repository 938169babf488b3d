//! What a status tells of steps and of the config disk that carries them. Called by `status` alone. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::observe::Scene;
use super::status::Outcome;
use crate::api::PlatformLayerStatus;
use crate::api::layer_status::{ConfigDiskStatus, Operation, StepState, StepStatus};
use crate::domain::config::{self, Read};
use crate::domain::observed::{Power, Sight};
use crate::domain::plan::{self, Step};

/// The step that the guest runs, told where nothing is under way in the pool. It has no intent, so nobody takes it for one.
pub fn running_step(
    old: &PlatformLayerStatus,
    new: &PlatformLayerStatus,
    scene: &Scene,
    now: &Time,
) -> Option<Operation> {
    let runs = scene.observed.machine.found().is_some_and(|m| m.power == Power::Running);
    let step = new.steps.iter().find(|s| s.state == StepState::Running).filter(|_| runs)?;
    let name = format!("RunStep {}", step.name);
    let before = old.operation.as_ref().filter(|op| op.step == name).and_then(|op| op.since.clone());
    Some(Operation { step: name, since: before.or(Some(now.clone())), ..Operation::default() })
}

/// The record stays while the disk is there, lost, or out of sight; by our own hand gone, it goes.
pub fn config_disk(old: &PlatformLayerStatus, scene: &Scene, step: &Step) -> Option<ConfigDiskStatus> {
    let seen = &scene.observed;
    let before = old.config_disk.as_ref();
    let Some(c) = seen.config.found() else { return before.filter(|_| seen.config != Sight::Absent).cloned() };
    if before.is_none_or(|b| b.uuid != c.uuid) && *step != Step::Record {
        return before.cloned();
    }
    Some(ConfigDiskStatus {
        uuid: c.uuid.clone(),
        version: seen.subject.clone(),
        storage_repository_uuid: c.sr.clone(),
    })
}

/// How far a step came, and its exit code.
type Came = (StepState, Option<i32>);

/// As the disk's record says after a halt; while the machine runs, as the guest says in its xenstore.
pub fn steps(o: &Outcome<'_>, old: &PlatformLayerStatus, scene: &Scene) -> Vec<StepStatus> {
    let seen = &scene.observed;
    let each = |of: &dyn Fn(&str) -> Option<Came>| {
        let status = |name: &String| {
            let (state, exit_code) = of(name).unwrap_or((StepState::Pending, None));
            StepStatus { name: name.clone(), state, exit_code }
        };
        o.want.steps.iter().map(|s| status(&s.name)).collect()
    };
    let Some(m) = seen.machine.found() else {
        let begins = seen.machine == Sight::Absent && seen.finalized(&seen.subject).is_none();
        return if begins { each(&|_| None) } else { old.steps.clone() };
    };
    let (halted, ran) = (m.power == Power::Halted, plan::ran(seen, m));
    match config::last_read(m).filter(|_| halted) {
        Some(Read { damage: Some(_), .. }) => each(&|_| Some((StepState::Unknown, None))),
        Some(read) => each(&|name| read.steps.iter().find(|s| s.name == name).map(|s| (s.state, s.exit_code))),
        None if halted && ran && seen.config == Sight::Lost => each(&|_| Some((StepState::Unknown, None))),
        None if !ran => each(&|_| None),
        None => each(&|name| m.progress.iter().find(|s| s.name == name).map(|s| (config::state(s.state), s.exit_code))),
    }
}
