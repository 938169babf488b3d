//! What is told while Lamina is at work: by the stage that a version is in and not by the step, so that a status rests while a stage lasts.
//! And what is told of a running machine: what a person is to do in it, or what it does by itself.
//!
//! Pure; asked last by `plan::decide` and `removal::decide_removal`, and by the machine's row. Troubles, waits and a person's turn come with
//! words of their own and pass through untouched.

use lamina_guest::steps::progress::Doing;
use lamina_guest::steps::record::State;

use super::super::config;
use super::super::gate::{self, Judgement, place};
use super::super::observed::{Machine, Making, Observed};
use super::super::report::named;
use super::super::steps;
use super::super::want::{DeletionPolicy, IntegrityPolicy, Want};
use super::{Say, ran};
use crate::api::Phase;
use crate::api::layer_status::StepStatus;
use crate::api::reason::Reason;
use crate::api::steps::{OnFailure, Step};

/// What was decided, in the words of its stage. `phase`: the one that is told with it.
pub(in crate::domain) fn told(want: &Want, seen: &Observed, phase: Phase, say: Say) -> Say {
    let Say::Working(reason, message) = say else { return say };
    let stage = stage(seen, phase, reason);
    Say::Working(stage, words(want, seen, stage).unwrap_or(message))
}

/// The stage that a step belongs to. As long as an operation is recorded the steps around it (keys, marks, tags) are its tail.
fn stage(seen: &Observed, phase: Phase, reason: Reason) -> Reason {
    let recorded = seen.records.machine.as_ref().map(|m| m.uuid.as_str());
    let set_up = seen.machine.found().is_some_and(|m| recorded == Some(m.uuid.as_str()));
    let beginning = phase == Phase::Pending && seen.base.found().is_some();
    let copying = seen.os_disk.as_ref().is_err_and(|t| t.reason == Reason::WaitingForDisk);
    match (reason, seen.records.operation.as_ref().map(|intent| intent.step)) {
        (Reason::CreatingMachine | Reason::SettingUpMachine | Reason::TaggingAgain, Some(Making::CloneMachine)) => {
            if set_up {
                Reason::SettingUpMachine
            } else {
                Reason::CreatingMachine
            }
        }
        (Reason::SettingUpMachine, Some(Making::StartMachine)) => Reason::StartingMachine,
        (Reason::TaggingAgain, Some(making)) => working_reason(making),
        // The copy that makes the OS disk's name ambiguous for a moment is our own, or another layer's, whose turn it is.
        (Reason::WaitingForDisk, Some(making)) if copying => working_reason(making),
        (Reason::WaitingForDisk, None) if copying => Reason::WaitingForMark,
        // The first word of a version that needs no new base, or whose base another layer has just made.
        (Reason::FreezingOSDisk | Reason::ClearingUp, None) if beginning && seen.leftover.is_none() => {
            Reason::CreatingDisk
        }
        // What is left to do about a disk that is recorded is done before the next stage, and told as that.
        (Reason::CreatingDisk, _) if phase != Phase::Pending => Reason::CreatingMachine,
        (reason, _) => reason,
    }
}

pub(in crate::domain) fn working_reason(making: Making) -> Reason {
    match making {
        Making::SnapshotOsDisk => Reason::FreezingOSDisk,
        Making::CloneDisk => Reason::CreatingDisk,
        Making::CloneMachine => Reason::CreatingMachine,
        Making::CreateConfig => Reason::SettingUpMachine,
        Making::StartMachine => Reason::StartingMachine,
        Making::FreezeDisk => Reason::FreezingDisk,
    }
}

fn words(want: &Want, seen: &Observed, stage: Reason) -> Option<String> {
    let (storage, version) = (&seen.storage.name, &seen.subject);
    let machine = machine(want, seen);
    let disk = &want.file_name;
    let recorded = seen.records.disk.as_ref().is_some_and(|d| d.version == *version);
    Some(match stage {
        Reason::FreezingOSDisk => {
            let os = seen.os_disk.as_ref().map_or(String::new(), |os| format!(" '{}' ({})", os.name, os.uuid));
            format!(
                "a base is being made: a snapshot of OS disk{os}, shared by all layers of OS layer '{}' {}. The packaging disk of version '{version}' is made from it next",
                want.os_name, want.os_version
            )
        }
        Reason::CreatingDisk if recorded => format!(
            "packaging disk '{disk}' of version '{version}' is made in storage repository '{storage}' and gets its size (spec.packagingDisk.size). Its machine is made next"
        ),
        Reason::CreatingDisk => format!(
            "packaging disk '{disk}' of version '{version}' is being made in storage repository '{storage}'. Its machine is made next"
        ),
        Reason::CreatingMachine => format!(
            "packaging machine {machine} is being made from the Connector's template, for disk '{disk}'. It is set up next"
        ),
        Reason::SettingUpMachine => match seen.machine.found().filter(|m| ran(seen, m)) {
            Some(m) => format!(
                "the pool was told to restart machine '{}' by itself (HA or auto power-on): that is being switched off again, or it would run while its disk is frozen",
                m.name
            ),
            None => format!(
                "machine {machine} is being set up: packaging disk '{disk}', a DVD drive with the guest tools, its settings. {}",
                if want.power_on { "It is started next" } else { "Then it awaits its start by a person" }
            ),
        },
        Reason::StartingMachine => {
            format!("machine {machine} is being started. Software can be installed when it runs")
        }
        Reason::FreezingDisk => format!(
            "version '{version}' is being frozen: a snapshot of packaging disk '{disk}' is made, which is what is kept. Machine {machine} stays off meanwhile"
        ),
        Reason::RemovingMachine => {
            let frozen = seen.finalized(version).map_or(String::new(), |v| format!(" as disk {}", v.disk));
            format!(
                "version '{version}' is frozen{frozen}. Its machine and packaging disk are not needed any more and are being removed"
            )
        }
        Reason::TaggingAgain => {
            "the pool lost what Lamina had written on this layer's objects (a restored database, storage that was forgotten): it is being written again".to_owned()
        }
        Reason::ClearingUp => {
            "what is left in the pool of an operation that is over, or not wanted any more, is being taken back. What is wanted now goes on after it".to_owned()
        }
        Reason::Discarding => format!(
            "version '{version}' is being thrown away with its machine and disk, as spec.discard says. Version '{}' begins after it",
            want.version
        ),
        Reason::Deleting => match want.deletion {
            DeletionPolicy::Delete => "the layer is being deleted: its machine and all its disks in the pool, finalized ones too, are removed (spec.deletionPolicy Delete)".to_owned(),
            DeletionPolicy::Retain => "the layer is being deleted: its machine and its disk in work are removed from the pool, its finalized disks stay there (spec.deletionPolicy Retain)".to_owned(),
            DeletionPolicy::Orphan => "the layer is being deleted: what it has in the pool stays as it is (spec.deletionPolicy Orphan)".to_owned(),
        },
        _no_stage => return None,
    })
}

/// What a version is that is done. `disk`: its uuid; `lost`: other versions and the uuids of their disks, which are gone.
pub fn finalized<'a>(version: &str, disk: Option<&str>, lost: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let disk = disk
        .map_or(String::new(), |disk| format!(": it is disk {disk}, a snapshot. Clone or copy that to build images"));
    let lost: Vec<_> = lost.map(|(version, disk)| format!("'{version}' ({disk})")).collect();
    let lost = match lost.as_slice() {
        [] => String::new(),
        lost => format!(
            ". Gone from the pool are the disks of other versions: {}. Nothing can be made from these any more, and nothing is made in their \
             place; restore them if they are needed",
            lost.join(", ")
        ),
    };
    format!("version '{version}' is finalized{disk}{lost}")
}

/// A machine that is not claimed yet bears the name of its operation.
fn machine(want: &Want, seen: &Observed) -> String {
    let named = seen.machine.found().filter(|m| !m.template).map(|m: &Machine| m.name.clone());
    format!("'{}'", named.unwrap_or_else(|| want.machine_name()))
}

/// What a person is to do in a running machine.
pub(super) fn instruction(want: &Want, seen: &Observed, m: &Machine) -> Say {
    let judgement = gate::judge(want, seen, m);
    if let Some(say) = going_on(want, m, &judgement) {
        return say;
    }
    // Right after a reboot the report of the boot before is still there: it says nothing of this one.
    if judgement.counts.is_ok() {
        let findings: Vec<_> = judgement.findings.iter().collect();
        // The guest knows no policy: where nothing blocks, it stays on all the same.
        let blocks = want.integrity == IntegrityPolicy::Enforce || findings.iter().any(|f| f.always);
        let otherwise =
            if blocks { "" } else { ", or, as spec.integrity lets them pass, shut Windows down from its Start menu" };
        return if findings.is_empty() {
            Say::Person(
                Reason::ShutDownGuest,
                format!(
                    "the check in {} found nothing that blocks, and Shutdown For Finalize switches it off in a moment: if it stays on, run that again; then version '{}' can be approved",
                    place(m),
                    want.version
                ),
            )
        } else {
            Say::Person(
                Reason::FixIntegrity,
                format!(
                    "the last check in {} found: {}. Mend this in its console, then run Shutdown For Finalize again{otherwise}",
                    place(m),
                    named(&findings)
                ),
            )
        };
    }
    // In the order in which it is to be done.
    let tools = if m.tools.ready {
        "install"
    } else if m.tools.overdue {
        "see why its guest tools were not seen for 10 minutes (firmware other than the OS disk was installed with, no tools in the OS layer, a driver \
         that fails) and install them from its DVD drive; then install"
    } else {
        "install the guest tools from its DVD drive, if they do not come up by themselves; then install"
    };
    let steps = if want.steps.is_empty() { "" } else { of_steps(m) };
    let kms = if want.kms_rearm { ", rearms it (spec.kms)" } else { "" };
    Say::Person(
        if m.silent { Reason::GuestSilent } else { Reason::InstallSoftware },
        format!(
            "{} runs{steps}: open its console, {tools} the platform software; at last run Shutdown For Finalize in it ({}), which checks Windows{kms} \
             and switches the machine off",
            place(m),
            program(seen, m)
        ),
    )
}

/// Where a person finds the guest's program.
fn program(seen: &Observed, m: &Machine) -> &'static str {
    if m.config_done {
        "lamina-guest, from the OS layer or copied into the machine: its drive LAMINA was taken off for the freeze that was called off, so it needs the guest tools to report"
    } else if config::is_lost(seen, m) {
        "lamina-guest, from the OS layer or copied into the machine: its drive LAMINA is gone from the pool, so it needs the guest tools to report"
    } else if seen.program.is_some() && seen.config.found().is_some() {
        "lamina-guest.exe on its drive LAMINA"
    } else {
        "lamina-guest, from the OS layer or copied into the machine: the controller was given none to put on the drive LAMINA"
    }
}

/// What was last heard of the steps, where the guest does not go on by itself.
fn of_steps(m: &Machine) -> &'static str {
    match m.doing {
        None => {
            ", and nothing was heard of its steps yet; if that stays, lamina-guest is not in the OS layer: run `lamina-guest.exe install` from its drive LAMINA, as an administrator, and reboot. For what the \
             steps leave to you"
        }
        Some(Doing::Steps | Doing::Rebooting | Doing::Finalizing) => {
            ", but its service has said nothing for longer than what it began may take. Reboot it from inside and it goes on from its record. To see what is wrong"
        }
        Some(Doing::Done) => ", and all its steps are done. For what they leave to you",
        Some(Doing::Stopped) => {
            ", but its service stopped before all its steps were done. Reboot it from inside and it goes on from its record. To see what is wrong"
        }
        Some(Doing::Damaged) => {
            ", but its service cannot use the config disk (drive LAMINA) and runs no step. Throw the version away (spec.discard), or do what is left by hand"
        }
        Some(Doing::Findings) => ", all its steps are done, and its check found what needs a person. To see that",
        Some(Doing::Failed) => {
            ", but its service was refused something that it had to do (the record, the report, the shutdown). To see what"
        }
    }
}

/// What is told while the guest goes on by itself; `None`: it is a person's turn as ever, or nothing is heard of the steps. `judgement`: what
/// its check said so far, which it may still mend by itself.
fn going_on(want: &Want, m: &Machine, judgement: &Judgement) -> Option<Say> {
    let of = |s: &Step| m.progress.iter().find(|p| p.name == s.name);
    if want.steps.is_empty() || m.silent {
        return None;
    }
    let by_itself = |what: String| {
        let told = format!(
            "{} installs version '{}' by itself: {what}. Nothing is to be done meanwhile",
            place(m),
            want.version
        );
        Some(Say::Working(Reason::RunningSteps, told))
    };
    let Some(doing) = m.doing else {
        // Windows takes its time to come up.
        return if m.runs_long { None } else { by_itself("it starts, and its first step is awaited".to_owned()) };
    };
    match doing {
        Doing::Stopped => {
            let stops = |s: &&Step| match of(s).map(|p| p.state) {
                Some(State::Failed | State::TimedOut) => s.on_failure == OnFailure::Stop,
                Some(State::Interrupted | State::Running) => true,
                Some(State::Pending | State::Succeeded | State::Skipped) | None => false,
            };
            let stopped = of(want.steps.iter().find(stops)?)?;
            let step = StepStatus {
                name: stopped.name.clone(),
                state: config::state(stopped.state),
                exit_code: stopped.exit_code,
            };
            let trouble = steps::fix_step(want, m, &step);
            Some(Say::Person(trouble.reason, trouble.message))
        }
        Doing::Steps => {
            let step = config::going(want, m).and_then(|at| Some((at, want.steps.get(at)?)));
            by_itself(match step {
                Some((at, step)) => format!("step '{}', {} of {}", step.name, at + 1, want.steps.len()),
                None => "all steps are done".to_owned(),
            })
        }
        Doing::Rebooting => by_itself("Windows is restarted".to_owned()),
        Doing::Finalizing => {
            // That is said until it is done, which comes last of all.
            let left = judgement.findings.iter().filter(|f| f.reason != Reason::NotRearmed.as_str());
            let left: Vec<_> = left.map(|f| format!("{} ({})", f.reason, f.detail)).collect();
            by_itself(match &judgement.report {
                None => "all steps are done, and Windows is checked".to_owned(),
                Some(_) if !left.is_empty() => format!(
                    "all steps are done; the check found {}, which is mended, or goes away with time or a restart",
                    left.join(", ")
                ),
                Some(r) if r.rearmed => {
                    "the check found nothing, Windows was rearmed, and the machine is switched off".to_owned()
                }
                Some(_) if want.kms_rearm => "the check found nothing, and Windows is rearmed last of all".to_owned(),
                Some(_) => "the check found nothing, and the machine is switched off".to_owned(),
            })
        }
        Doing::Damaged | Doing::Done | Doing::Findings | Doing::Failed => None,
    }
}
