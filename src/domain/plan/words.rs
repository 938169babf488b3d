//! What is told while Lamina is at work: by the stage that a version is in and not by the step, so that a status rests while a stage lasts.
//!
//! Pure; asked last by `plan::decide` and `removal::decide_removal`. Troubles, waits and a person's turn come with words of their own and
//! pass through untouched.

use super::super::config;
use super::super::gate::{self, place};
use super::super::observed::{Machine, Making, Observed};
use super::super::report::named;
use super::super::want::{DeletionPolicy, Want};
use super::{Say, ran};
use crate::api::Phase;
use crate::api::reason::Reason;

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
        // The copy that makes the OS disk's name ambiguous for a moment is our own.
        (Reason::WaitingForDisk, Some(making)) if copying => working_reason(making),
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
    Some(match stage {
        Reason::FreezingOSDisk => {
            let os = seen.os_disk.as_ref().map_or(String::new(), |os| format!(" '{}' ({})", os.name, os.uuid));
            format!(
                "a base is being made: a snapshot of OS disk{os}, shared by all layers of OS layer '{}' {}. The packaging disk of version '{version}' is made from it next",
                want.os_name, want.os_version
            )
        }
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
pub(super) fn instruction(want: &Want, m: &Machine) -> Say {
    let judgement = gate::judge(want, m);
    // Right after a reboot the report of the boot before is still there: it says nothing of this one.
    if judgement.counts.is_ok() {
        let findings: Vec<_> = judgement.findings.iter().collect();
        return if findings.is_empty() {
            Say::Person(
                Reason::ShutDownGuest,
                format!(
                    "the check in {} found nothing that blocks: have Shutdown For Finalize switch it off, or shut Windows down; then version '{}' can be approved",
                    place(m),
                    want.version
                ),
            )
        } else {
            Say::Person(
                Reason::FixIntegrity,
                format!(
                    "the last check in {} found: {}. Mend this in its console, then run Shutdown For Finalize again",
                    place(m),
                    named(&findings)
                ),
            )
        };
    }
    if let Some(say) = config::running(want, m) {
        return say;
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
    let steps = if want.steps.is_empty() { "" } else { config::NOT_BEGUN };
    let kms = if want.kms_rearm { ", rearms it (spec.kms)" } else { "" };
    Say::Person(
        Reason::InstallSoftware,
        format!(
            "{} runs{steps}: open its console, {tools} the platform software; at last run Shutdown For Finalize in it, which checks Windows{kms} and \
             switches the machine off",
            place(m)
        ),
    )
}
