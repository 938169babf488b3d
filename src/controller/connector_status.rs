//! A Connector's status: what the checks and the sweeper found, put into conditions.
//!
//! Pure; called by `connector`. What is known of the pool stays in status while the pool cannot be seen: it names the pool that layers
//! rest on.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::checks::Outcome;
use super::sweep::Swept;
use crate::api::ConditionType as C;
use crate::api::condition::{Draft, Truth, find, merge};
use crate::api::connector::ConnectorStatus;
use crate::api::reason::{Fault, Reason};

/// What a status is about, besides what was found.
pub struct Subject<'a> {
    pub generation: Option<i64>,
    pub deleting: bool,
    /// Certificates are not checked.
    pub insecure: bool,
    /// The layers that use the Connector, as `namespace/name`, sorted.
    pub users: &'a [String],
    /// Only the layers of one namespace are known.
    pub restricted: bool,
}

/// The status that follows `old`. `swept`: none where the pool was not looked at.
pub fn compose(
    subject: &Subject<'_>,
    old: &ConnectorStatus,
    outcome: Outcome,
    swept: Option<&Swept>,
    now: &Time,
) -> ConnectorStatus {
    let mut drafts = vec![ready(subject, &outcome, swept)];
    drafts.extend(progress(&drafts));
    drafts.extend(C::CHECKS.iter().map(|check| draft(*check, &outcome)));
    drafts.extend(unclaimed(subject, &old.conditions, swept, now));
    if subject.insecure {
        let text = "spec.tls.insecureSkipVerify: whoever answers is believed, and gets the password. Set spec.tls.fingerprintsSHA256 instead";
        drafts.push(Draft::new(C::TLSInsecure, Truth::True, Reason::VerificationOff, text));
    }
    let conditions = merge(&old.conditions, drafts, subject.generation, now);
    let (observed_generation, layers) = (subject.generation, i32::try_from(subject.users.len()).ok());
    match outcome.seen {
        Some(seen) => ConnectorStatus {
            observed_generation,
            conditions,
            product: Some(seen.product).filter(|p| !p.is_empty()),
            pool_uuid: Some(seen.pool),
            coordinator: Some(seen.coordinator),
            layers,
            inventory: Some(seen.inventory),
        },
        None => ConnectorStatus { observed_generation, conditions, layers, ..old.clone() },
    }
}

fn unclaimed(subject: &Subject<'_>, old: &[Condition], swept: Option<&Swept>, now: &Time) -> Option<Draft> {
    if subject.restricted {
        return None;
    }
    let told = find(old, C::Unclaimed).map(|c| c.message.as_str());
    let words = match swept {
        Some(swept) if swept.unclaimed.is_empty() => return None,
        Some(swept) => swept.words(told.unwrap_or_default(), now),
        // What was found last still holds.
        None => told?.to_owned(),
    };
    Some(Draft::new(C::Unclaimed, Truth::True, Reason::UnclaimedObjects, words))
}

fn ready(subject: &Subject<'_>, outcome: &Outcome, swept: Option<&Swept>) -> Draft {
    if subject.deleting {
        let users = subject.users;
        let some: Vec<&str> = users.iter().take(10).map(String::as_str).collect();
        let more =
            if users.len() > some.len() { format!(" and {} more", users.len() - some.len()) } else { String::new() };
        let text = format!(
            "the Connector is being deleted, but {} ({}{more}): delete those layers first",
            if users.len() == 1 { "1 layer uses it".to_owned() } else { format!("{} layers use it", users.len()) },
            some.join(", ")
        );
        return Draft::new(C::Ready, Truth::False, Reason::LayersExist, text);
    }
    match &outcome.failed {
        Some((_, trouble)) if !outcome.is_ready() => {
            Draft::new(C::Ready, Truth::False, trouble.reason, &trouble.message)
        }
        Some(_) | None if outcome.is_ready() => {
            let pool = outcome.seen.as_ref().map(|s| format!(" at {}", s.coordinator)).unwrap_or_default();
            let retained = match swept.map_or(0, |s| s.retained) {
                0 => String::new(),
                1 => "; 1 disk of a deleted layer is kept there by deletionPolicy Retain".to_owned(),
                n => format!("; {n} disks of deleted layers are kept there by deletionPolicy Retain"),
            };
            let unswept = if subject.restricted {
                "; what no layer owns is not looked for there, since this controller knows the layers of one namespace alone (--watch-namespace)"
            } else {
                ""
            };
            let text = format!("the pool{pool} can be used{retained}{unswept}");
            Draft::new(C::Ready, Truth::True, Reason::Connected, text)
        }
        Some(_) | None => Draft::new(C::Ready, Truth::False, Reason::Connecting, "the checks are being made"),
    }
}

/// Reconciling or Stalled, as Ready's reason says.
fn progress(drafts: &[Draft]) -> Option<Draft> {
    let ready = drafts.first().filter(|d| d.status != Truth::True)?;
    let type_ = if ready.reason.fault() == Some(Fault::Stalled) { C::Stalled } else { C::Reconciling };
    Some(Draft::new(type_, Truth::True, ready.reason, &ready.message))
}

fn draft(check: C, outcome: &Outcome) -> Draft {
    match &outcome.failed {
        Some((Some(failed), trouble)) if *failed == check => {
            return Draft::new(check, Truth::False, trouble.reason, &trouble.message);
        }
        Some(_) | None => {}
    }
    let words = outcome.passed.iter().find(|(passed, _)| *passed == check).map(|(_, words)| words);
    match (words, &outcome.failed) {
        (Some(words), _) => Draft::new(check, Truth::True, Reason::Passed, words),
        (None, Some((Some(failed), _))) => {
            let order = |check: C| C::CHECKS.iter().position(|c| *c == check);
            let words = if order(*failed) < order(check) {
                format!("not checked, since {failed} is False")
            } else {
                format!("cannot be told without {failed}")
            };
            Draft::new(check, Truth::Unknown, Reason::NotChecked, words)
        }
        (None, Some((None, _)) | None) => Draft::new(check, Truth::Unknown, Reason::NotChecked, "not checked yet"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::observed::Trouble;

    fn told(outcome: Outcome) -> Vec<(String, String)> {
        let subject = Subject { generation: Some(1), deleting: false, insecure: false, users: &[], restricted: false };
        let status = compose(&subject, &ConnectorStatus::default(), outcome, None, &Time(jiff::Timestamp::UNIX_EPOCH));
        status.conditions.into_iter().map(|c| (format!("{}={}/{}", c.type_, c.status, c.reason), c.message)).collect()
    }

    #[test]
    fn before_the_first_answer_nothing_is_claimed() {
        let told = told(Outcome::default());
        assert_eq!((told[0].0.as_str(), told[1].0.as_str()), ("Ready=False/Connecting", "Reconciling=True/Connecting"));
        assert!(told[2..].iter().all(|(word, _)| word.ends_with("=Unknown/NotChecked")), "{told:?}");
    }

    #[test]
    fn a_check_that_was_not_made_says_for_want_of_which() {
        let mut outcome = Outcome::default();
        outcome.fail(C::Authenticated, Trouble::new(Reason::CredentialsNotFound, "no Secret"));
        let told = told(outcome);
        let of = |type_: &str| told.iter().find(|(word, _)| word.starts_with(type_)).map(|(_, text)| text.as_str());
        assert_eq!(of("Reachable"), Some("cannot be told without Authenticated"));
        assert_eq!(of("StorageReady"), Some("not checked, since Authenticated is False"));
    }
}
