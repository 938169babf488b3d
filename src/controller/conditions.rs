//! The conditions of a layer, from what is told and what was seen.
//!
//! Called by `status` alone. Pure.

use super::observe::Scene;
use super::status::{Outcome, finalized, is_finalized};
use crate::api::condition::{Draft, Truth};
use crate::api::reason::Reason;
use crate::api::{ConditionType, PlatformLayerStatus};
use crate::domain::gate;
use crate::domain::observed::{Machine, Observed, Power, Trouble};
use crate::domain::plan::{self, Say};
use crate::domain::want::IntegrityPolicy;

pub(super) fn conditions(o: &Outcome<'_>, old: &PlatformLayerStatus, say: &Say) -> Vec<Draft> {
    use ConditionType as T;
    let draft = |type_, status, reason, message: &str| Draft::new(type_, status, reason, message);
    let mut all = match say {
        Say::Working(r, m) => vec![draft(T::Ready, Truth::False, *r, m), draft(T::Reconciling, Truth::True, *r, m)],
        Say::Person(r, m) => vec![draft(T::Ready, Truth::False, *r, m), draft(T::ActionRequired, Truth::True, *r, m)],
        Say::Stalled(r, m) => vec![draft(T::Ready, Truth::False, *r, m), draft(T::Stalled, Truth::True, *r, m)],
        Say::Finalized(m) => vec![draft(T::Ready, Truth::True, Reason::Finalized, m)],
        Say::Suspended { finalized: done } => {
            let text = "spec.suspend is true: nothing is done to the pool; set it to false to go on";
            let ready = if *done {
                draft(T::Ready, Truth::True, Reason::Finalized, &finalized(o, old))
            } else {
                draft(T::Ready, Truth::False, Reason::Suspended, text)
            };
            vec![ready, draft(T::Suspended, Truth::True, Reason::Suspended, text)]
        }
        Say::Deleting { reason, message, stuck } => {
            let type_ = if *stuck { T::Stalled } else { T::Reconciling };
            vec![draft(T::Ready, Truth::False, *reason, message), draft(type_, Truth::True, *reason, message)]
        }
    };
    all.push(match o.connector {
        None => draft(
            T::ConnectorReady,
            Truth::True,
            Reason::Connected,
            &format!("Connector '{}' leads to its pool", o.layer.spec.connector_ref.name),
        ),
        Some(t) => draft(T::ConnectorReady, Truth::False, connector_reason(t), &t.message),
    });
    let unknown = |type_, why: &str| draft(type_, Truth::Unknown, Reason::NotChecked, why);
    match o.seen {
        _ if o.connector.is_some() => {
            all.push(unknown(T::GuestToolsReady, "the pool cannot be looked at"));
            let kept = verdict(old).filter(|_| is_finalized(o, old));
            all.push(kept.unwrap_or_else(|| unknown(T::IntegrityVerified, "the pool cannot be looked at")));
        }
        Some((scene, _)) => {
            all.push(tools_condition(scene));
            all.push(integrity_condition(o, old, scene));
        }
        None => {}
    }
    all
}

/// Reasons that may stand on ConnectorReady; everything else is told there as "not ready".
fn connector_reason(t: &Trouble) -> Reason {
    if t.reason.on().contains(&ConditionType::ConnectorReady) { t.reason } else { Reason::ConnectorNotReady }
}

fn tools_condition(scene: &Scene) -> Draft {
    use ConditionType::GuestToolsReady as T;
    match scene.observed.machine.found() {
        Some(m) if m.power == Power::Running && m.tools.ready => Draft::new(
            T,
            Truth::True,
            Reason::ToolsRunning,
            format!("the guest tools of machine '{}' are at work", m.name),
        ),
        Some(m) if m.power == Power::Running && m.tools.overdue => Draft::new(
            T,
            Truth::False,
            Reason::ToolsNotSeen,
            format!(
                "no guest tools in machine '{}' 10 minutes after its start: open its console. {}",
                m.name,
                Reason::ToolsNotSeen.remedy()
            ),
        ),
        Some(m) if m.power == Power::Running => Draft::new(
            T,
            Truth::False,
            Reason::ToolsAwaited,
            format!("machine '{}' runs; its guest tools were not seen yet", m.name),
        ),
        Some(_) | None => Draft::new(T, Truth::Unknown, Reason::NotChecked, "no machine is running"),
    }
}

/// The verdict that a version was frozen with: it stays with it.
fn verdict(old: &PlatformLayerStatus) -> Option<Draft> {
    use ConditionType::IntegrityVerified as T;
    let c = crate::api::condition::find(&old.conditions, T)?;
    let status = [Truth::True, Truth::False].into_iter().find(|t| t.as_str() == c.status).unwrap_or(Truth::Unknown);
    Some(Draft::new(T, status, Reason::parse(&c.reason)?, c.message.clone()))
}

/// Off, after a boot.
pub fn at_halt(seen: &Observed, m: &Machine) -> bool {
    m.power == Power::Halted && (plan::ran(seen, m) || plan::boot_forgotten(seen))
}

fn integrity_condition(o: &Outcome<'_>, old: &PlatformLayerStatus, scene: &Scene) -> Draft {
    use ConditionType::IntegrityVerified as T;
    let Some(m) = scene.observed.machine.found() else {
        let frozen = scene.observed.finalized(&scene.observed.subject).is_some();
        let none = || Draft::new(T, Truth::Unknown, Reason::NotChecked, "no machine was checked yet");
        return verdict(old).filter(|_| frozen).unwrap_or_else(none);
    };
    let judgement = gate::judge(o.want, &scene.observed, m);
    let at_halt = at_halt(&scene.observed, m);
    match &judgement.counts {
        Ok(()) if !judgement.findings.is_empty() => {
            let names: Vec<_> = judgement.findings.iter().map(|f| f.reason.as_str()).collect();
            Draft::new(
                T,
                Truth::False,
                Reason::FindingsOpen,
                format!("the check of the last boot found {}", names.join(", ")),
            )
        }
        Ok(()) => Draft::new(T, Truth::True, Reason::Verified, "the check of the last boot found nothing"),
        Err(_) if at_halt && o.want.integrity == IntegrityPolicy::Skip => {
            Draft::new(T, Truth::Unknown, Reason::Skipped, "spec.integrity is Skip, and no report counts")
        }
        Err(doubt) if at_halt => {
            Draft::new(T, Truth::Unknown, Reason::IntegrityUnknown, format!("no report counts: {}", doubt.why))
        }
        Err(_) => Draft::new(T, Truth::Unknown, Reason::NotChecked, "the check inside the guest has not reported yet"),
    }
}
