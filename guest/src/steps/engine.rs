//! What comes next: a pure function of the steps, the record and the present boot. Called by `driver`; `tests` kills the
//! machine at every moment.
//!
//! ```text
//! Pending ──begin──▶ Running ──end──▶ Succeeded │ Failed │ TimedOut ──(its reboot, once)──▶ the next step, or Stopped
//!                       │ boot                        ▲ begin, with `retry`
//!                       └────▶ Interrupted ───────────┘            without: Stopped, and a person says `again` or `skip`
//! ```
//!
//! No state is left by time, and nothing is run that the record, already on the disk, does not call `Running`.

use super::record::{Boot, Record, State};
use super::{OnFailure, Reboot, Step, windows_code};

/// How often a step with `retry` is begun: one that restarts Windows by itself would else go on for ever.
pub const MOST_RUNS: u32 = 3;
/// Exit codes by which an installer asks for a restart (`ERROR_SUCCESS_REBOOT_REQUIRED`, `ERROR_SUCCESS_REBOOT_INITIATED`).
const WANTS_REBOOT: [i32; 2] = [3010, 1641];

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run the step with this index.
    Run(usize),
    /// Restart Windows, for the step with this index.
    Reboot(usize),
    Done,
    Stopped(Stop),
}

/// Why no further step is run without a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    #[error("step '{step}' failed{}: mend it, then say `again` or `skip`", code.map_or(String::new(), |c| format!(" with exit code {c}")))]
    Failed { step: String, code: Option<i32> },
    #[error("step '{step}' did not end in time, or waited for somebody to answer, and was ended: see its log")]
    TimedOut { step: String },
    #[error(
        "the machine went down while step '{step}' ran, and nobody knows how far it came: look, then say `again` or `skip`; a step must not restart Windows by itself"
    )]
    Interrupted { step: String },
    #[error("the machine went down {MOST_RUNS} times while step '{step}' ran: it must not restart Windows by itself")]
    TooOften { step: String },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Code(i32),
    TimedOut,
    /// It could not be started, for this reason.
    NotStarted(String),
}

/// What is to be done now. The record must be of these steps; nothing of it runs at the moment.
pub fn next(steps: &[Step], record: &Record) -> Action {
    let here = record.boot.as_ref().map(|b| &b.id);
    for (n, (step, ran)) in steps.iter().zip(&record.steps).enumerate() {
        let name = || step.name.clone();
        match ran.state {
            State::Pending => return Action::Run(n),
            State::Running | State::Interrupted if !step.retry => {
                return Action::Stopped(Stop::Interrupted { step: name() });
            }
            State::Running | State::Interrupted if ran.runs >= MOST_RUNS => {
                return Action::Stopped(Stop::TooOften { step: name() });
            }
            State::Running | State::Interrupted => return Action::Run(n),
            State::Failed if step.on_failure == OnFailure::Stop => {
                return Action::Stopped(Stop::Failed { step: name(), code: ran.exit_code });
            }
            State::TimedOut if step.on_failure == OnFailure::Stop => {
                return Action::Stopped(Stop::TimedOut { step: name() });
            }
            State::Skipped => {}
            State::Succeeded | State::Failed | State::TimedOut => {
                // A reboot since then, whoever made it, is the one that is asked for.
                if wants_reboot(step, ran.exit_code) && ran.boot.as_ref() == here {
                    return Action::Reboot(n);
                }
            }
        }
    }
    Action::Done
}

fn wants_reboot(step: &Step, code: Option<i32>) -> bool {
    match step.reboot {
        Reboot::Always => true,
        Reboot::Never => false,
        Reboot::IfRequested => code.is_some_and(|c| WANTS_REBOOT.contains(&c)),
    }
}

/// Somebody is here, in this boot. Only its guid tells it from others: numbers of domains begin anew when a host restarts, and clocks
/// are set. In another boot than the recorded one, what ran is interrupted.
pub fn boot(record: &mut Record, now: Boot) {
    if record.boot.as_ref().is_some_and(|last| last.id == now.id) {
        return;
    }
    record.boots = record.boots.saturating_add(1);
    record.boot = Some(now);
    interrupt(record);
}

/// What ran is over, and nobody knows how far it came.
pub fn interrupt(record: &mut Record) {
    for ran in record.steps.iter_mut().filter(|r| r.state == State::Running) {
        ran.state = State::Interrupted;
    }
}

/// The step is about to run; to be on the disk before it does.
pub fn begin(record: &mut Record, n: usize, now: u64) {
    let here = record.boot.as_ref().map(|b| b.id.clone());
    if let Some(ran) = record.steps.get_mut(n) {
        ran.state = State::Running;
        ran.runs = ran.runs.saturating_add(1);
        (ran.begun, ran.ended, ran.exit_code, ran.why) = (Some(now), None, None, None);
        ran.boot = here;
    }
}

/// The step ran.
pub fn end(steps: &[Step], record: &mut Record, n: usize, outcome: Outcome, now: u64) {
    if let (Some(step), Some(ran)) = (steps.get(n), record.steps.get_mut(n)) {
        ran.ended = Some(now);
        ran.state = match outcome {
            Outcome::Code(code) => {
                ran.exit_code = Some(code);
                let good = step.success_codes.iter().any(|c| windows_code(*c) == Some(code));
                if good { State::Succeeded } else { State::Failed }
            }
            Outcome::TimedOut => State::TimedOut,
            Outcome::NotStarted(why) => {
                ran.why = Some(why);
                State::Failed
            }
        };
    }
}

/// What a person says of the step that stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Run it once more.
    Again,
    /// It was done by hand.
    Skip,
}

/// Takes a person's answer; `false`: this step did not stop, so there is nothing to answer.
pub fn answer(steps: &[Step], record: &mut Record, step: &str, answer: Answer) -> bool {
    let stopped = match next(steps, record) {
        Action::Stopped(
            Stop::Failed { step, .. } | Stop::TimedOut { step } | Stop::Interrupted { step } | Stop::TooOften { step },
        ) => step,
        Action::Run(_) | Action::Reboot(_) | Action::Done => return false,
    };
    let Some(ran) = record.steps.iter_mut().find(|r| r.name == step && stopped == step) else {
        return false;
    };
    (ran.state, ran.runs) = match answer {
        Answer::Again => (State::Pending, 0),
        Answer::Skip => (State::Skipped, ran.runs),
    };
    true
}
