//! Conditions: their types, how a new set follows an old one, and what every status must obey.
//!
//! Used by whoever writes a status, and by every test that reads one. The invariants follow kstatus: GitOps tools judge an
//! object by Reconciling and Stalled, people by Ready and its message.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::connector::Connector;
use super::layer::PlatformLayer;
use super::layer_status::Phase;
use super::reason::{Fault, Reason};

macro_rules! condition_types {
    ($($name:ident $only_while_true:literal $meaning:literal;)*) => {
        /// What a condition is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ConditionType { $(#[doc = $meaning] $name,)* }

        impl ConditionType {
            /// All types, in the order of the reference.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word users read.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// Whether it is absent unless True. Its series is absent then too: alert on presence.
            #[must_use]
            pub const fn only_while_true(self) -> bool {
                match self { $(Self::$name => $only_while_true,)* }
            }

            const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)* }
            }
        }
    };
}

condition_types! {
    Ready false "always there; its message says what is going on and what to do next";
    Reconciling true "Lamina is at work, waits or tries again";
    Stalled true "nothing goes on until somebody changes something";
    ActionRequired true "it is a person's turn, as the normal flow has it";
    Suspended true "spec.suspend is true";
    ConnectorReady false "layer: the Connector can be used";
    GuestToolsReady false "layer: the guest tools are at work";
    IntegrityVerified false "layer: the check of the last boot found nothing";
    Reachable false "Connector: an endpoint answers, and its certificate is trusted";
    Authenticated false "Connector: the account can log in";
    CoordinatorFound false "Connector: the pool's coordinator answers, and it is the right pool";
    TemplateValid false "Connector: the template can be used";
    StorageReady false "Connector: the storage repository can be used";
    ToolsISOFound false "Connector: the ISO with the guest tools was found";
    PermissionsSufficient false "Connector: the account may do what is needed";
    TLSInsecure true "Connector: certificates are not checked";
    Unclaimed true "Connector: objects of this cluster that no layer owns are in the pool";
}

impl ConditionType {
    /// The checks of a Connector, in the order in which they are made.
    pub const CHECKS: [Self; 7] = [
        Self::Reachable,
        Self::Authenticated,
        Self::CoordinatorFound,
        Self::TemplateValid,
        Self::StorageReady,
        Self::ToolsISOFound,
        Self::PermissionsSufficient,
    ];

    /// The type of that name, if it is one of ours.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|t| t.as_str() == word)
    }
}

impl std::fmt::Display for ConditionType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// The value of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    True,
    False,
    Unknown,
}

impl Truth {
    /// The word users read.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// A condition as the code decides it, without what depends on the one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    pub type_: ConditionType,
    pub status: Truth,
    pub reason: Reason,
    pub message: String,
}

impl Draft {
    /// In one line, since statuses are lists of these.
    pub fn new(type_: ConditionType, status: Truth, reason: Reason, message: impl Into<String>) -> Self {
        Self { type_, status, reason, message: message.into() }
    }
}

/// Bytes of the longest message; the API server takes 32768 characters, and refuses the whole status for a longer one, at every try.
const MAX_MESSAGE: usize = 8192;

/// The conditions that follow `old`: exactly those of `new`, in its order; one whose status stays keeps its transition time.
#[must_use]
pub fn merge(old: &[Condition], new: Vec<Draft>, generation: Option<i64>, now: &Time) -> Vec<Condition> {
    let since = |draft: &Draft| {
        old.iter()
            .find(|c| c.type_ == draft.type_.as_str() && c.status == draft.status.as_str())
            .map_or_else(|| now.clone(), |c| c.last_transition_time.clone())
    };
    new.into_iter()
        .map(|draft| Condition {
            last_transition_time: since(&draft),
            message: cut(draft.message),
            observed_generation: generation,
            reason: draft.reason.as_str().into(),
            status: draft.status.as_str().into(),
            type_: draft.type_.as_str().into(),
        })
        .collect()
}

/// No message is meant to be as long as this: the last guard, not the way to shorten one.
fn cut(mut message: String) -> String {
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    message
}

/// The condition of that type, if it is there.
#[must_use]
pub fn find(conditions: &[Condition], type_: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|c| c.type_ == type_.as_str())
}

/// What is wrong with a layer's status, in words; empty for a good one. A status that was never written is good.
#[must_use]
pub fn check_layer(layer: &PlatformLayer) -> Vec<String> {
    let Some(status) = layer.status.as_ref().filter(|s| s.observed_generation != Some(-1)) else { return vec![] };
    let mut wrong = check(&status.conditions, status.observed_generation, layer.metadata.generation);
    let mut must = |holds: bool, what: &str| wrong.extend((!holds).then(|| what.to_owned()));

    let ready = find(&status.conditions, ConditionType::Ready);
    let is_ready = ready.is_some_and(|c| c.status == "True");
    let finalized = status.phase == Some(Phase::Finalized);
    must(status.phase.is_some(), "no phase");
    must(!is_ready || finalized, "Ready=True in a phase other than Finalized");
    must(!finalized || status.current.is_some(), "Finalized without a current version");
    must(!finalized || !is_ready || status.machine.is_none(), "Ready=True, but the machine is still in status");
    must(
        status
            .current
            .as_ref()
            .is_none_or(|c| status.versions.iter().any(|v| v.version == c.version && v.disk == c.disk)),
        "current is not among versions",
    );
    must(
        status.operation.as_ref().and_then(|o| o.progress).is_none_or(|p| p % 5 == 0 && (0..=100).contains(&p)),
        "progress is not in steps of 5",
    );
    // Ready=False is never left without a reading: kstatus would take the object for current.
    let explained =
        [ConditionType::Reconciling, ConditionType::Stalled, ConditionType::ActionRequired, ConditionType::Suspended]
            .into_iter()
            .any(|t| find(&status.conditions, t).is_some());
    must(
        is_ready || explained,
        "Ready is not True, and neither Reconciling, Stalled, ActionRequired nor Suspended is there",
    );
    // A finalized layer keeps Ready while its Connector is down; whatever else is going on takes Ready away.
    let blind = find(&status.conditions, ConditionType::ConnectorReady).is_some_and(|c| c.status != "True");
    let reconciling = find(&status.conditions, ConditionType::Reconciling).is_some();
    must(!(is_ready && reconciling) || blind, "Ready=True while Reconciling, with a Connector that is ready");
    wrong
}

/// What is wrong with a Connector's status, in words; empty for a good one. A status that was never written is good.
#[must_use]
pub fn check_connector(connector: &Connector) -> Vec<String> {
    let Some(status) = connector.status.as_ref().filter(|s| s.observed_generation != Some(-1)) else { return vec![] };
    let mut wrong = check(&status.conditions, status.observed_generation, connector.metadata.generation);
    let is_ready = find(&status.conditions, ConditionType::Ready).is_some_and(|c| c.status == "True");
    let [reconciling, stalled] =
        [ConditionType::Reconciling, ConditionType::Stalled].map(|t| find(&status.conditions, t));
    if is_ready && reconciling.is_some() {
        wrong.push("Ready=True while Reconciling".into());
    }
    if !is_ready && reconciling.or(stalled).is_none() {
        wrong.push("Ready is not True, and neither Reconciling nor Stalled is there".into());
    }

    let mut failed: Option<ConditionType> = None;
    for type_ in ConditionType::CHECKS {
        let Some(check) = find(&status.conditions, type_) else {
            wrong.push(format!("{type_} is missing"));
            continue;
        };
        match failed {
            Some(earlier) if check.status != "Unknown" || check.reason != Reason::NotChecked.as_str() => {
                wrong.push(format!("{type_} is {}/{} after {earlier} failed", check.status, check.reason));
            }
            Some(_) => {}
            // One that could not be made (a member names its coordinator before it asks for a password) fails nothing.
            None if check.status == "False" => failed = Some(type_),
            None => {}
        }
        // The last check is about comfort and safety margins: without those rights the Connector works.
        if is_ready && check.status != "True" && type_ != ConditionType::PermissionsSufficient {
            wrong.push(format!("Ready=True, but {type_} is not"));
        }
    }
    wrong
}

/// What holds for both kinds.
fn check(conditions: &[Condition], observed: Option<i64>, generation: Option<i64>) -> Vec<String> {
    let mut wrong = vec![];
    for (at, condition) in conditions.iter().enumerate() {
        wrong.extend(check_one(condition, observed));
        if conditions.iter().take(at).any(|c| c.type_ == condition.type_) {
            wrong.push(format!("{} is there twice", condition.type_));
        }
    }
    let mut must = |holds: bool, what: String| wrong.extend((!holds).then_some(what));
    must(conditions.len() <= 16, "more than 16 conditions".into());
    must(observed.is_some() && observed <= generation, format!("observedGeneration {observed:?} of {generation:?}"));

    let of = |type_| find(conditions, type_);
    let Some(ready) = of(ConditionType::Ready) else {
        wrong.push("Ready is missing".into());
        return wrong;
    };
    let [reconciling, stalled, turn] =
        [ConditionType::Reconciling, ConditionType::Stalled, ConditionType::ActionRequired].map(of);
    must(ready.status != "Unknown", "Ready is Unknown".into());
    must(!ready.message.is_empty(), "Ready says nothing".into());
    must(reconciling.is_none() || stalled.is_none(), "Reconciling and Stalled together".into());
    must(turn.is_none() || (reconciling.is_none() && stalled.is_none()), "ActionRequired is not alone".into());
    for other in [stalled, turn].into_iter().flatten() {
        must(ready.status == "False", format!("Ready is {} while {}", ready.status, other.type_));
    }
    for other in [reconciling, stalled, turn].into_iter().flatten() {
        let agree = ready.status == "True" || ready.reason == other.reason;
        must(agree, format!("Ready says {}, {} says {}", ready.reason, other.type_, other.reason));
    }
    if let Some(suspended) = of(ConditionType::Suspended) {
        must(reconciling.is_none() && stalled.is_none() && turn.is_none(), "Suspended is not alone".into());
        must(
            ready.status == "True" || ready.reason == suspended.reason,
            format!("Suspended, but Ready says {}", ready.reason),
        );
    }
    wrong
}

fn check_one(condition: &Condition, observed: Option<i64>) -> Vec<String> {
    let Condition { type_, status, reason, observed_generation, message, .. } = condition;
    let Some(known) = ConditionType::parse(type_) else { return vec![format!("unknown condition {type_}")] };
    let Some(why) = Reason::parse(reason) else { return vec![format!("{type_}: unknown reason {reason}")] };
    let mut wrong = vec![];
    let mut must = |holds: bool, what: String| wrong.extend((!holds).then_some(what));
    must(!known.only_while_true() || status == "True", format!("{type_} is there, but {status}"));
    must(["True", "False", "Unknown"].contains(&status.as_str()), format!("{type_} is {status}"));
    must(why.on().contains(&known), format!("{type_} may not bear reason {reason}"));
    must(message.len() <= MAX_MESSAGE, format!("{type_} says {} bytes, which nobody reads", message.len()));
    must(
        *observed_generation == observed,
        format!("{type_} is about generation {observed_generation:?}, the status about {observed:?}"),
    );
    must(known != ConditionType::Ready || status != "True" || why.fault().is_none(), format!("Ready=True/{reason}"));
    wrong
}

/// The reference of conditions and reasons, as `docs/reference.md` has it.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(
        "# Conditions and reasons\n\n\
         Made from the table in `src/api/reason.rs`; do not edit.\n\n\
         A fault of class *Retry* is tried again with growing pauses, *Wait* goes on when something else has happened, *Stalled*\n\
         needs a change by somebody, in the object or in the world, and is looked at again whenever anything changes.\n\n\
         ## Conditions\n\n| Type | Meaning | |\n|---|---|---|\n",
    );
    for type_ in ConditionType::ALL {
        let absent = if type_.only_while_true() { "absent unless True" } else { "" };
        text += &format!("| `{type_}` | {} | {absent} |\n", type_.meaning());
    }
    let turn = |r: &Reason| r.on().contains(&ConditionType::ActionRequired);
    let of = |fault| move |r: &Reason| r.fault() == Some(fault);
    section(&mut text, "States", |r| r.fault().is_none() && !turn(r) && !r.on().is_empty());
    section(&mut text, "A person's turn", turn);
    section(&mut text, "Wait", of(Fault::Wait));
    section(&mut text, "Retry", of(Fault::Retry));
    section(&mut text, "Stalled", of(Fault::Stalled));
    section(&mut text, "Findings of the check inside the guest", |r| r.on().is_empty());
    text += "| `Bit<n>` | | a bit of the vendor's record that Lamina does not know | Ask the vendor's support; it blocks like any other. |\n";
    text
}

fn section(text: &mut String, title: &str, belongs: impl Fn(&Reason) -> bool) {
    *text += &format!("\n## {title}\n\n| Reason | On | Meaning | What to do |\n|---|---|---|---|\n");
    for reason in Reason::ALL.iter().filter(|r| belongs(r)) {
        let on: Vec<_> = reason.on().iter().map(|t| format!("`{t}`")).collect();
        let (meaning, remedy) = (reason.meaning().replace('<', "&lt;"), reason.remedy().replace('<', "&lt;"));
        *text += &format!("| `{reason}` | {} | {meaning} | {remedy} |\n", on.join(", "));
    }
}

#[cfg(test)]
#[path = "condition_tests.rs"]
mod tests;
