//! Whether the steps of a version have come to a good end, and what a person is told of one that has not. Pure.

use super::config::last_read;
use super::doubt::Doubt;
use super::gate::place;
use super::identity::BOOT;
use super::observed::{Machine, Observed, Power, Sight, Trouble};
use super::want::Want;
use crate::api::layer_status::{StepState, StepStatus};
use crate::api::reason::Reason;
use crate::api::steps::OnFailure;

/// Have all steps come to a good end, as far as the halted machine's disk says? A person may answer for a disk that is lost or damaged, by
/// naming the boot that they looked at: an approval may be older than the loss. Nobody may for a step that is known to have failed, which is
/// mended in the machine.
pub fn steps_done(want: &Want, seen: &Observed, m: &Machine) -> Result<(), Trouble> {
    // Said on the machine only after this was asked; another start since then has no steps any more.
    if want.steps.is_empty() || m.config_done {
        return Ok(());
    }
    let read = last_read(m);
    let disk = match (&seen.config, &seen.records.config) {
        (Sight::Found(c), _) => format!("its config disk '{}' ({})", c.name, c.uuid),
        (Sight::CannotLook | Sight::Absent | Sight::Lost, Some(record)) => format!("its config disk ({})", record.uuid),
        (Sight::CannotLook | Sight::Absent | Sight::Lost, None) => "its config disk".to_owned(),
    };
    let unknown = match (read.map(|r| r.damage.as_ref()), &seen.config) {
        (Some(None), _) => None,
        (Some(Some(damage)), _) => {
            Some(Doubt::new(damage.reason, format!("{disk} was read back damaged ({})", damage.why)))
        }
        (None, Sight::Lost | Sight::Absent) => {
            Some(Doubt::new(Reason::ConfigDiskLost, format!("{disk} is gone from the pool")))
        }
        // To be read yet.
        (None, Sight::CannotLook | Sight::Found(_)) => None,
    };
    if let Some(Doubt { reason, why }) = unknown {
        let boot = m.key(BOOT).map_or_else(|| m.boot_id(), str::to_owned);
        if want.answered.as_deref() == Some(boot.as_str()) {
            return Ok(());
        }
        let early = match want.approved.as_deref() == Some(seen.subject.as_str()) {
            true => " (that the version is approved already says nothing of this)",
            false => "",
        };
        return Err(Trouble::new(
            reason,
            format!(
                "{} is off, and nobody knows what its steps came to: {why}. Nothing is made in its place, for that would run them again. Start it ({}) and look, then \
                 shut it down for finalize: each boot needs an answer of its own. If you know that all is as it should be, answer for its last one, '{boot}'{early}: {}; \
                 else throw the version away (spec.discard)",
                place(m),
                want.restart_command(),
                want.answer_command(&seen.subject, &boot)
            ),
        ));
    }
    let continued = |name: &str| want.steps.iter().any(|s| s.name == name && s.on_failure == OnFailure::Continue);
    let bad = |s: &&StepStatus| match s.state {
        StepState::Succeeded | StepState::Skipped => false,
        StepState::Failed | StepState::TimedOut => !continued(&s.name),
        StepState::Pending | StepState::Running | StepState::Interrupted | StepState::Unknown => true,
    };
    match read.and_then(|r| r.steps.iter().find(bad)) {
        None => Ok(()),
        Some(step) => Err(fix_step(want, m, step)),
    }
}

/// A step that a person must look at.
pub fn fix_step(want: &Want, m: &Machine, step: &StepStatus) -> Trouble {
    let code = step.exit_code.map(|c| format!(" with exit code {c}")).unwrap_or_default();
    let what = match step.state {
        StepState::Failed => format!("failed{code}"),
        StepState::TimedOut => "took longer than its timeout and was ended".to_owned(),
        StepState::Interrupted | StepState::Running => {
            "was at work when the machine went down, and nobody knows how far it came".to_owned()
        }
        StepState::Pending | StepState::Unknown => "was not run".to_owned(),
        StepState::Succeeded | StepState::Skipped => "is done".to_owned(),
    };
    let at = want.steps.iter().position(|s| s.name == step.name).unwrap_or_default();
    let start = match m.power {
        Power::Halted => format!("start that ({}), ", want.restart_command()),
        Power::Running | Power::Paused | Power::Suspended | Power::Unknown => String::new(),
    };
    // There is no log of it, and no answer to it.
    if matches!(step.state, StepState::Pending | StepState::Unknown) {
        let text = format!(
            "step '{}' of version '{}' {what}: {start}the service of lamina-guest goes on with it by itself at the next boot of {}. If it does not, it is not in the OS layer: run \
             `lamina-guest.exe install` from the drive LAMINA as an administrator and reboot; or throw the version away (spec.discard)",
            step.name,
            want.version,
            place(m),
        );
        return Trouble::new(Reason::FixStep, text);
    }
    let log = lamina_guest::disk::log_path(at, &step.name).replace('/', "\\");
    Trouble::new(
        Reason::FixStep,
        format!(
            "step '{name}' of version '{}' {what}. Its log is {log} on the drive LAMINA of {}: {start}see to it in its console and answer there, as an administrator (`\"C:\\Program Files\\Lamina\\lamina-guest.exe\" answer {name} again`, \
             or `skip` once it is done by hand), or throw the version away (spec.discard)",
            want.version,
            place(m),
            name = step.name,
        ),
    )
}
