//! What strikes whom, when, and in which order. Used by `main`, which lives the jobs, and `stage`, which strikes.

use std::collections::{BTreeMap, VecDeque};

use lamina::sim::faults::Entry;
use serde_json::Value;

use super::lives::Life;
use super::stage::Run;

const SEED: u64 = 0x1A_417A;

/// What strikes, at a call or a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    DiesBefore,
    DiesAfter,
    /// The controller dies, and its last call is carried out a while later.
    DiesLate,
    Dropped,
    ReplyLost,
    Late,
    MidJson,
    XapiDies,
    BothDie,
    /// The reply to a call is lost that is only made in a recovery from another fault.
    InRecovery,
}

impl Fault {
    /// Those that `cargo test` tries first.
    pub const OF_CI: [Self; 5] = [Self::DiesBefore, Self::DiesAfter, Self::ReplyLost, Self::Late, Self::XapiDies];
    pub const OF_CALLS: [Self; 9] = [
        Self::DiesBefore,
        Self::DiesAfter,
        Self::ReplyLost,
        Self::Late,
        Self::XapiDies,
        Self::Dropped,
        Self::DiesLate,
        Self::MidJson,
        Self::BothDie,
    ];
    pub const OF_WRITES: [Self; 4] = [Self::DiesBefore, Self::DiesAfter, Self::XapiDies, Self::BothDie];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::DiesBefore => "dies before",
            Self::DiesAfter => "dies after",
            Self::DiesLate => "dies, late",
            Self::Dropped => "dropped",
            Self::ReplyLost => "reply lost",
            Self::Late => "late",
            Self::MidJson => "mid-JSON",
            Self::XapiDies => "xapi dies",
            Self::BothDie => "both die",
            Self::InRecovery => "in recovery",
        }
    }

    pub fn kills_controller(self) -> bool {
        matches!(self, Self::DiesBefore | Self::DiesAfter | Self::DiesLate | Self::BothDie)
    }

    pub fn kills_xapi(self) -> bool {
        matches!(self, Self::XapiDies | Self::BothDie)
    }
}

/// Counted from the end of the life's prelude, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum At {
    Call(u64),
    Write(u64),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Case {
    pub life: Life,
    pub at: At,
    pub fault: Fault,
    /// Besides, the reply to the first call of this name is lost.
    pub also: Option<String>,
}

impl Case {
    pub fn name(&self) -> String {
        let (kind, n) = match self.at {
            At::Call(n) => ("Call", n),
            At::Write(n) => ("Write", n),
        };
        let also = self.also.as_ref().map(|method| format!("+{method}")).unwrap_or_default();
        format!("{:?}/{kind}/{n}/{:?}{also}", self.life, self.fault)
    }
}

fn method<'a>(case: &Case, records: &'a BTreeMap<Life, Run>) -> Option<&'a Entry> {
    let At::Call(n) = case.at else { return None };
    records.get(&case.life)?.calls.get(usize::try_from(n - 1).ok()?)
}

/// To die after a call that has no task, with nothing written to status then, is to die before the next call: one moment by two names.
fn is_before_the_next(case: &Case, records: &BTreeMap<Life, Run>) -> bool {
    let (At::Call(n), Some(run)) = (case.at, records.get(&case.life)) else { return false };
    let ends_at_once = method(case, records).is_some_and(|e| !e.method.starts_with("Async.") && e.method.contains('.'));
    case.fault == Fault::DiesAfter && ends_at_once && n < run.calls.len() as u64 && !run.written.contains(&n)
}

/// Does it belong to every call × [`Fault::OF_CI`]? Of some lives that is what others lack: the calls that they share come later.
pub fn is_first(case: &Case, records: &BTreeMap<Life, Run>) -> bool {
    let beside = || case.life.beside().iter().filter_map(|life| records.get(life)).flat_map(|run| &run.calls);
    let shared = |entry: &Entry| beside().any(|e| kind(e) == kind(entry));
    let known = method(case, records).is_some_and(shared);
    Fault::OF_CI.contains(&case.fault) && matches!(case.at, At::Call(_)) && !known && !is_before_the_next(case, records)
}

/// Of so many jobs in a row one is of all else, so that a run that ends early has tried some of that.
const ELSE: usize = 64;

/// Jobs in an order whose every beginning goes evenly over calls by name and faults, nearly all of it those that come first.
pub fn sampled(mut cases: Vec<Case>, records: &BTreeMap<Life, Run>) -> Vec<Job> {
    let name = |case: &Case| method(case, records).map_or("status", |entry| entry.method.as_str());
    let die = |c: &Case| {
        let seeded = format!("{SEED}/{}", c.name());
        seeded.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
    };
    cases.sort_by_key(die);
    let mut met: BTreeMap<(String, Fault), usize> = BTreeMap::new();
    let mut turns = Vec::new();
    for case in cases {
        let count = met.entry((name(&case).to_owned(), case.fault)).or_default();
        *count += 1;
        turns.push((*count, case));
    }
    turns.sort_by_key(|(turn, _)| *turn);
    let (first, rest): (Vec<_>, Vec<_>) =
        turns.into_iter().map(|(_, case)| case).partition(|case| is_first(case, records));
    let mut rest = jobs(rest).into_iter();
    let mut all = Vec::new();
    for some in jobs(first).chunks(ELSE - 1) {
        all.extend(some.iter().cloned().chain(rest.next()));
    }
    all.extend(rest);
    all
}

/// What is lived on one layer, one after the other, up to `life`.
#[derive(Clone, Debug)]
pub struct Job {
    pub life: Life,
    /// Those that are struck; none while lives are recorded.
    pub cases: BTreeMap<Life, Case>,
}

impl Job {
    pub fn recorded(life: Life) -> Self {
        Self { life, cases: BTreeMap::new() }
    }

    pub fn alone(case: Case) -> Self {
        Self { life: case.life, cases: BTreeMap::from([(case.life, case)]) }
    }

    pub fn name(&self) -> String {
        self.cases.values().map(Case::name).collect::<Vec<_>>().join(" then ")
    }
}

/// Cases of lives upon which others follow, with their ranks; where xapi dies, apart: it forgets.
type Waiting = BTreeMap<(Life, bool), VecDeque<(usize, Case)>>;

/// Strikes as many lives of one layer as there are cases for. Keeps their order.
pub fn jobs(cases: Vec<Case>) -> Vec<Job> {
    let (last, others): (Vec<_>, Vec<_>) =
        cases.into_iter().enumerate().partition(|(_, case)| Life::LAST.contains(&case.life));
    let mut waiting = Waiting::new();
    for (rank, case) in others {
        waiting.entry((case.life, case.fault.kills_xapi())).or_default().push_back((rank, case));
    }
    let mut jobs: Vec<_> = last.into_iter().map(|(rank, case)| (rank, joined(case, &mut waiting))).collect();
    for (life, kills) in Life::ALL.into_iter().rev().flat_map(|life| [(life, false), (life, true)]) {
        while let Some((rank, case)) = waiting.get_mut(&(life, kills)).and_then(VecDeque::pop_front) {
            jobs.push((rank, joined(case, &mut waiting)));
        }
    }
    jobs.sort_by_key(|(rank, _)| *rank);
    jobs.into_iter().map(|(_, job)| job).collect()
}

/// A case with those that are lived before it on its layer.
fn joined(case: Case, waiting: &mut Waiting) -> Job {
    let (life, kills) = (case.life, case.fault.kills_xapi());
    let mut job = Job::alone(case);
    for earlier in life.path().into_iter().filter(|earlier| *earlier != life) {
        let next = waiting.get_mut(&(earlier, kills)).and_then(VecDeque::pop_front);
        job.cases.extend(next.map(|(_, case)| (earlier, case)));
    }
    job
}

/// Calls of one kind: the same method for the same purpose, whatever the objects are called in this run.
pub fn kind(entry: &Entry) -> (String, String) {
    let tag = entry.tags.first().and_then(|(_, v)| v.split_once('.')).map(|(_, what)| what);
    let key = entry.params.get(1).and_then(Value::as_str).and_then(|k| k.strip_prefix("lamina.dev/"));
    // Of a tag, what comes before the uuid.
    let key = key.and_then(|k| k.split('/').next());
    (entry.method.clone(), tag.or(key).unwrap_or_default().to_owned())
}
