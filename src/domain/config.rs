//! The config disk C of a version: what goes onto it, what was read back, and what follows from that.
//!
//! Pure. C is made after the machine, whose nonce it carries, and before its first start; it goes before the freeze. It holds nobody's work:
//! lost before the first start it is made again. Lost later, only a person can say what the steps came to, and nothing is made in its place,
//! for a new one would run every step once more.

use std::time::Duration;

use lamina_guest::disk::{Layer, Purpose};
use lamina_guest::report::{Lines, Report};
use lamina_guest::steps as guest;
use lamina_guest::steps::progress::Doing;
use lamina_guest::steps::record::{Ran, State};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::doubt::Doubt;

use super::identity::{BOOT, CONTENT, FILLED, NONCE, WIPED};
use super::observed::{Disk, Machine, Observed, Sight};
use super::report;
use super::want::Want;
use crate::api::layer::{FinalizePolicy, Purpose as WantedPurpose};
use crate::api::layer_status::{StepState, StepStatus};
use crate::api::steps::{OnFailure, Step, StepReboot};

/// What was read back after a halt, kept in a key of the machine: C is gone when the version is frozen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// The boot that had ended.
    pub boot: String,
    /// As the record on the disk says; none: see `damage`.
    #[serde(default)]
    pub steps: Vec<StepStatus>,
    /// Why the record cannot be read.
    #[serde(default)]
    pub damage: Option<Doubt>,
    /// The report's lines, if it is bound to that boot.
    #[serde(default)]
    pub report: Option<Lines>,
    /// Why the disk's report does not count.
    #[serde(default)]
    pub unbound: Option<Doubt>,
    /// The guest's marks that stood at the end of that boot, and of the one before.
    #[serde(default)]
    pub marks: Vec<String>,
    #[serde(default)]
    pub earlier: Vec<String>,
}

impl Read {
    /// From the machine's key; what is no text of ours says nothing.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Keeps the report, as far as a key has room for it.
    pub fn keep(&mut self, report: &Report) {
        self.report = Some(report::kept(report).lines());
    }

    /// The report, read again: its seal is part of it.
    pub fn report(&self) -> Option<Report> {
        Report::read(self.report.as_ref()?.iter().map(|(k, v)| (k.as_str(), v.as_str())))
    }
}

/// The name of the disk in other tools' lists.
pub fn name(want: &Want, version: &str) -> String {
    format!("{} {version} config", want.layer_name)
}

/// `layer.json`.
pub fn layer(want: &Want, version: &str, nonce: &str) -> Layer {
    Layer {
        layer: want.name.clone(),
        namespace: want.namespace.clone(),
        version: version.to_owned(),
        purpose: match want.purpose {
            WantedPurpose::Packaging => Purpose::Packaging,
            WantedPurpose::Publishing => Purpose::Publishing,
        },
        nonce: nonce.to_owned(),
        kms_rearm: want.kms_rearm,
        // Without steps it is a person who installs: the service must not shut down before anybody came.
        finalize_on_done: want.finalize == FinalizePolicy::OnShutdown && !want.steps.is_empty(),
    }
}

/// The steps as the guest gets them.
pub fn steps(want: &Want) -> Vec<guest::Step> {
    let step = |s: &Step| {
        let what = match (&s.command, &s.powershell, &s.file) {
            (Some(line), _, _) => guest::What::Command(line.clone()),
            (None, Some(script), _) => guest::What::Powershell(script.clone()),
            (None, None, file) => guest::What::File(file.clone().unwrap_or_default()),
        };
        guest::Step {
            name: s.name.clone(),
            what,
            success_codes: s.success_codes.clone(),
            reboot: match s.reboot {
                StepReboot::IfRequested => guest::Reboot::IfRequested,
                StepReboot::Always => guest::Reboot::Always,
                StepReboot::Never => guest::Reboot::Never,
            },
            timeout: seconds(&s.timeout),
            on_failure: match s.on_failure {
                OnFailure::Stop => guest::OnFailure::Stop,
                OnFailure::Continue => guest::OnFailure::Continue,
            },
            retry: s.retry,
            files: s.files.iter().map(|f| f.name.clone()).collect(),
        }
    };
    want.steps.iter().map(step).collect()
}

/// Seconds of `1h30m`; the API server lets nothing else in, and what it did not judge is refused by the guest's own check (0).
fn seconds(text: &str) -> u64 {
    let mut all = 0u64;
    let mut number = String::new();
    for c in text.chars() {
        let unit = match c {
            'h' => 3600,
            'm' => 60,
            's' => 1,
            digit => {
                number.push(digit);
                continue;
            }
        };
        let Ok(n) = number.parse::<u64>() else { return 0 };
        all = all.saturating_add(n.saturating_mul(unit));
        number.clear();
    }
    if number.is_empty() { all } else { 0 }
}

/// How long what the guest's service says it does may take at most, `patience` beyond the step's own timeout; none: it waits for a person.
pub fn may_take(want: &Want, m: &Machine, patience: Duration) -> Option<Duration> {
    match m.doing? {
        Doing::Steps => {
            let step = going(want, m).and_then(|at| want.steps.get(at));
            Some(patience + Duration::from_secs(step.map_or(0, |s| seconds(&s.timeout))))
        }
        // An update of Windows may be put in place meanwhile.
        Doing::Rebooting => Some(6 * patience),
        // Both frameworks' native images, findings that time clears, and the report, each within two hours.
        Doing::Finalizing => Some(48 * patience),
        Doing::Stopped | Doing::Damaged | Doing::Done | Doing::Findings | Doing::Failed => None,
    }
}

/// Which step has not ended yet, by its place; none: all have.
pub fn going(want: &Want, m: &Machine) -> Option<usize> {
    let ended = |s: &Step| {
        let ran = m.progress.iter().find(|p| p.name == s.name);
        ran.is_some_and(|p| !matches!(p.state, State::Pending | State::Running))
    };
    want.steps.iter().position(|s| !ended(s))
}

/// What is to be on the disk, but for the bytes of its files, in 16 hexadecimal digits: until the first start a disk that was made for
/// something else is thrown away.
pub fn content(want: &Want, seen: &Observed, nonce: &str) -> String {
    let text = serde_json::to_vec(&(layer(want, &seen.subject, nonce), &want.steps, &seen.program)).unwrap_or_default();
    Sha256::digest(text).iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// Is this the disk for this machine, as wanted now?
pub fn fits(want: &Want, seen: &Observed, m: &Machine, c: &Disk) -> bool {
    let nonce = m.key(NONCE).unwrap_or_default();
    to_wipe(c)
        && c.keys.get(NONCE).is_some_and(|n| n == nonce)
        && c.keys.get(CONTENT) == Some(&content(want, seen, nonce))
}

/// Was the content written, as a whole, and are its files still those, as far as they were asked for?
pub fn filled(seen: &Observed, c: &Disk) -> bool {
    c.keys.get(FILLED).is_some_and(|of| seen.files.as_ref().is_none_or(|now| now == of))
}

/// May there be something on it that is nobody's business?
pub fn to_wipe(c: &Disk) -> bool {
    !c.keys.contains_key(WIPED)
}

/// Gone from the pool, and nobody knows what was on it.
pub fn is_lost(seen: &Observed, m: &Machine) -> bool {
    matches!(seen.config, Sight::Lost | Sight::Absent) && !is_known(seen, m)
}

/// Nothing is left to be read of it.
pub fn is_known(seen: &Observed, m: &Machine) -> bool {
    seen.records.config.is_none() || m.config_done || last_read(m).is_some()
}

/// What was read after the boot that is over.
pub fn last_read(m: &Machine) -> Option<&Read> {
    m.read.as_ref().filter(|r| m.key(BOOT) == Some(r.boot.as_str()))
}

/// A record's steps for status.
pub fn told(ran: &[Ran]) -> Vec<StepStatus> {
    ran.iter().map(|r| StepStatus { name: r.name.clone(), state: state(r.state), exit_code: r.exit_code }).collect()
}

pub fn state(state: State) -> StepState {
    match state {
        State::Pending => StepState::Pending,
        State::Running => StepState::Running,
        State::Interrupted => StepState::Interrupted,
        State::Succeeded => StepState::Succeeded,
        State::Failed => StepState::Failed,
        State::TimedOut => StepState::TimedOut,
        State::Skipped => StepState::Skipped,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn want(steps: serde_json::Value) -> Want {
        let layer = json!({
            "apiVersion": "lamina.dev/v1alpha1", "kind": "PlatformLayer", "metadata": {"name": "pvs", "namespace": "lab"},
            "spec": {"version": "1", "purpose": "Publishing", "connectorRef": {"name": "lab"}, "steps": steps,
                "osLayer": {"name": "w", "version": "1", "disk": {"name": "w"}}},
        });
        Want::of(&serde_json::from_value(layer).expect("a layer"))
    }

    #[test]
    fn steps_reach_the_guest_as_they_are_meant() {
        let w = want(json!([
            {"name": "a", "command": "rem", "timeout": "1h30m", "onFailure": "Continue", "reboot": "Never"},
            {"name": "b", "file": "x.msi", "files": [{"name": "x.msi", "secretKeyRef": {"name": "s", "key": "k"}}], "retry": true},
            {"name": "c", "powershell": "exit"},
        ]));
        let steps = steps(&w);
        assert_eq!(guest::check(&steps), Ok(()));
        assert_eq!(
            (steps[0].timeout, steps[0].on_failure, steps[0].reboot),
            (5400, guest::OnFailure::Continue, guest::Reboot::Never)
        );
        assert_eq!((&steps[1].what, steps[1].retry), (&guest::What::File("x.msi".into()), true));
        assert_eq!((&steps[2].what, steps[2].timeout), (&guest::What::Powershell("exit".into()), 3600));
        for bad in ["", "h", "1d", "90", "1h5"] {
            assert_eq!(seconds(bad), 0, "{bad}");
        }
    }

    #[test]
    fn what_was_read_survives_its_key() {
        let report = Report { nonce: "n".into(), block_finalize: Some(0), ..Report::default() };
        let steps = vec![StepStatus { name: "a".into(), state: StepState::Failed, exit_code: Some(-1) }];
        let read = Read { boot: "7@t".into(), steps, report: Some(report.lines()), ..Read::default() };
        let back = Read::parse(&serde_json::to_string(&read).expect("JSON")).expect("it is ours");
        assert_eq!(back, read);
        assert!(back.report().expect("a report").sealed);
        assert_eq!(Read::parse("nonsense"), None);
    }
}
