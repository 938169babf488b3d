//! Crash by enumeration: the changing calls and status writes of recorded lives are numbered by a first run of each; then for each number
//! the controller dies before or after it, the wire fails, or xapi dies, and everything starts again. Each life must end, and the
//! invariants hold over all that was seen (`invariants`).
//!
//! Longer than 350 lines: the enumeration, its order and its tally are one thing.
//!
//! `cargo test` strikes calls by each of [`Fault::OF_CI`], evenly over their names and by a seed, then all else, until [`BUDGET`] is over;
//! then what was called in recoveries alone. Everything: `cargo test --test crash -- --all`. Some of it: `cargo test --test crash --
//! 'Happy/Call/7/XapiDies' 'Second/*Late'`. `killed` does ten with the real binary meanwhile, which mostly wait.

#[path = "../common/mod.rs"]
#[expect(dead_code, reason = "shared with the other test binary, which uses more of it")]
mod common;
mod invariants;
mod killed;
mod lives;
mod options;
mod report;
mod seam;
mod sights;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use lamina::controller::lease::Deadline;
use lamina::controller::metrics::Metrics;
use lamina::controller::pace::Pace;
use lamina::controller::{self, Settings};
use lamina::local::Who;
use lamina::sim::clock::Clock;
use lamina::sim::faults::{self, Effect, Entry, Target};
use lamina::sim::{Pool, restart};
use lamina::telemetry::Health;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use self::invariants::Lived;
use self::lives::{Deeds, End, Life, Person};
use self::options::Options;
use self::report::{Counts, Report};
use self::seam::{Death, Seam};
use self::sights::{Row, Sights};
use crate::common::rig::{PACE, Rig};

/// So much faster than life is the pool; the controller's pace is shortened alike.
const SPEED: f64 = 100.0;
/// Lives mostly wait: so many at once keep two cores busy.
const AT_ONCE: usize = 16;
/// What `cargo test` spends here, besides what is under way then. `--all` goes on to the end.
const BUDGET: Duration = Duration::from_secs(480);
const SEED: u64 = 0x1A_417A;
/// Nothing at rest goes on calling for so long.
const RESTLESS: Duration = Duration::from_secs(15);
/// A call of a recovery is brought about again at most so often: it hangs on moments.
const TURNS: usize = 6;
/// A late call is carried out so long after its connection died, in the pool's time; less than the two looks of an in-flight test
/// are apart.
const LATE: Duration = Duration::from_secs(20);

/// What a pool that died uncleanly may leave to a person: what it forgot, nobody can prove.
const FORGOTTEN: [&str; 5] = ["SnapshotUnproven", "FixIntegrity", "SourcePaused", "StepsUnknown", "OSDiskAmbiguous"];

fn pace() -> Pace {
    Pace { rest: Duration::from_millis(1500), resync: Duration::from_millis(1500), ..PACE }
}

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
    const OF_CI: [Self; 5] = [Self::DiesBefore, Self::DiesAfter, Self::ReplyLost, Self::Late, Self::XapiDies];
    const OF_CALLS: [Self; 9] = [
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
    const OF_WRITES: [Self; 2] = [Self::DiesBefore, Self::DiesAfter];

    fn as_str(self) -> &'static str {
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

    fn kills_controller(self) -> bool {
        matches!(self, Self::DiesBefore | Self::DiesAfter | Self::DiesLate | Self::BothDie)
    }

    fn kills_xapi(self) -> bool {
        matches!(self, Self::XapiDies | Self::BothDie)
    }
}

/// Counted from the end of the life's prelude, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum At {
    Call(u64),
    Write(u64),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Case {
    life: Life,
    at: At,
    fault: Fault,
    /// Besides, the reply to the first call of this name is lost.
    also: Option<String>,
}

impl Case {
    fn name(&self) -> String {
        let (kind, n) = match self.at {
            At::Call(n) => ("Call", n),
            At::Write(n) => ("Write", n),
        };
        let also = self.also.as_ref().map(|method| format!("+{method}")).unwrap_or_default();
        format!("{:?}/{kind}/{n}/{:?}{also}", self.life, self.fault)
    }
}

/// What a run of a life came to.
struct Run {
    /// Changing calls after the prelude, in order.
    calls: Vec<Entry>,
    writes: u64,
    end: End,
    broken: Vec<String>,
    /// After the strike status said that the outcome of a call is waited for.
    waited: bool,
    struck: bool,
}

fn main() -> ExitCode {
    let options = Options::parse(std::env::args().skip(1));
    if let Some(answer) = &options.answer {
        println!("{answer}");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let failed = runtime.block_on(async {
        let enumerated = async { if options.enumerates() { enumerate(&options).await } else { Vec::new() } };
        let killed = async { if options.kills() { killed::all().await } else { Vec::new() } };
        let (enumerated, killed) = tokio::join!(enumerated, killed);
        enumerated.into_iter().chain(killed).collect::<Vec<_>>()
    });
    failed.iter().for_each(|failure| println!("FAILED {failure}"));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Lives all cases asked for. Returns what is wrong.
async fn enumerate(options: &Options) -> Vec<String> {
    let began = Instant::now();
    let mut tested = Tested::default();
    let mut cases = Vec::new();
    for life in Life::ALL {
        let from = Instant::now();
        let run = lived(life, None).await;
        if run.end != End::Done || !run.broken.is_empty() {
            return vec![format!("the recorded life {life:?}: {:?} {:?}", run.end, run.broken)];
        }
        let (calls, writes) = (run.calls.len() as u64, run.writes);
        println!("{life:?}: {calls} calls, {writes} status writes, {} ms", from.elapsed().as_millis());
        if options.calls {
            run.calls.iter().for_each(|e| println!("{:?} {} {:?}", e.number, e.method, e.params.get(1)));
        }
        let calls = (1..=calls).map(At::Call).map(|at| (at, Fault::OF_CALLS.as_slice()));
        let writes = (1..=writes).map(At::Write).map(|at| (at, Fault::OF_WRITES.as_slice()));
        let case = |at, fault: &Fault| Case { life, at, fault: *fault, also: None };
        cases.extend(calls.chain(writes).flat_map(|(at, faults)| faults.iter().map(move |fault| case(at, fault))));
        tested.records.insert(life, run);
    }
    let everything = cases.len();
    let sampled = !options.all && options.cases.is_empty();
    if !options.cases.is_empty() {
        cases.retain(|case| options.wants(&case.name()));
    } else if sampled {
        rotate(&mut cases, &tested.records);
    }
    let first = cases.iter().filter(|case| is_first(case, &tested.records)).count();
    println!("{everything} cases in all, {first} of every call × the five faults, seed {SEED:#x}");
    if cases.is_empty() {
        return vec![format!("no case is called {:?}", options.cases)];
    }
    let within = |_: &Case| !sampled || began.elapsed() < BUDGET;
    tested.live(cases.into_iter().take_while(within), began).await;
    let done = tested.done;
    println!("made in recoveries alone: {:?}", tested.recovering.keys().collect::<Vec<_>>());
    for turn in 0..TURNS {
        let recoveries = tested.recoveries(turn);
        tested.live(recoveries.into_iter(), began).await;
    }
    println!(
        "{}\n{done} of {everything} cases and {} of recoveries, {} s",
        tested.report,
        tested.done - done,
        began.elapsed().as_secs()
    );
    if sampled {
        println!("of the {first} of every call × the five faults {} were lived", first.min(done));
    }
    if options.cases.is_empty() {
        tested.failures.extend(tested.report.gaps(&tested.calls()));
    }
    tested.failures
}

/// What the cases came to so far.
#[derive(Default)]
struct Tested {
    records: BTreeMap<Life, Run>,
    report: Report,
    failures: Vec<String>,
    done: usize,
    /// Calls that no recorded life makes, each with the first cases that made it.
    recovering: BTreeMap<String, Vec<Case>>,
}

impl Tested {
    async fn live(&mut self, cases: impl Iterator<Item = Case>, began: Instant) {
        let mut runs = futures::stream::iter(cases)
            .map(|case| async move {
                let run = AssertUnwindSafe(lived(case.life, Some(case.clone()))).catch_unwind().await;
                (case, run)
            })
            .buffer_unordered(AT_ONCE);
        while let Some((case, run)) = runs.next().await {
            self.done += 1;
            if self.done.is_multiple_of(50) {
                println!("{} cases, {} s, {} failed", self.done, began.elapsed().as_secs(), self.failures.len());
            }
            let Ok(run) = run else {
                // What it said is above.
                self.failures.push(format!("{}: panicked", case.name()));
                continue;
            };
            let mut wrong = run.broken.clone();
            match &run.end {
                End::Done => {}
                End::Rests(reason) if case.fault.kills_xapi() && FORGOTTEN.contains(&reason.as_str()) => {}
                other => wrong.push(format!("I14 {other:?}")),
            }
            if !wrong.is_empty() {
                println!("FAILED {}: {wrong:#?}", case.name());
                self.failures.push(format!("{}: {wrong:?}", case.name()));
            }
            let known = self.recorded();
            for entry in run.calls.iter().filter(|entry| !known.contains(&entry.method)) {
                let cases = self.recovering.entry(entry.method.clone()).or_default();
                if cases.len() < TURNS && !cases.contains(&case) {
                    cases.push(case.clone());
                }
            }
            tally(&mut self.report, &case, &run, self.records.get(&case.life));
        }
    }

    fn recorded(&self) -> BTreeSet<String> {
        self.records.values().flat_map(|run| &run.calls).map(|entry| entry.method.clone()).collect()
    }

    /// Every changing call that any case made, but for what happened once or twice and could not be brought about again.
    fn calls(&self) -> BTreeSet<String> {
        let often = self.recovering.iter().filter(|(_, cases)| cases.len() > 2).map(|(method, _)| method.clone());
        self.recorded().into_iter().chain(often).collect()
    }

    /// A case for each call of a recovery that has no row yet: one that led to it, once more, with that call struck.
    fn recoveries(&self, turn: usize) -> Vec<Case> {
        let rowless = self.recovering.iter().filter(|(method, _)| !self.report.has(method));
        let again = |(method, cases): (&String, &Vec<Case>)| {
            let case = cases.get(turn % cases.len().max(1))?;
            Some(Case { also: Some(method.clone()), ..case.clone() })
        };
        rowless.filter_map(again).collect()
    }
}

fn method<'a>(case: &Case, records: &'a BTreeMap<Life, Run>) -> Option<&'a Entry> {
    let At::Call(n) = case.at else { return None };
    records.get(&case.life)?.calls.get(usize::try_from(n - 1).ok()?)
}

/// Does it belong to every call × [`Fault::OF_CI`]? A life without hands is the happy one, but for who installs: the calls that both make come later.
fn is_first(case: &Case, records: &BTreeMap<Life, Run>) -> bool {
    let happy =
        |entry: &Entry| records.get(&Life::Happy).is_some_and(|r| r.calls.iter().any(|e| kind(e) == kind(entry)));
    let known = case.life == Life::Steps && method(case, records).is_some_and(happy);
    Fault::OF_CI.contains(&case.fault) && matches!(case.at, At::Call(_)) && !known
}

/// Puts the cases in an order whose every beginning goes evenly over calls by name and faults, those that come first before all else.
fn rotate(cases: &mut Vec<Case>, records: &BTreeMap<Life, Run>) {
    let name = |case: &Case| method(case, records).map_or("status", |entry| entry.method.as_str());
    let die = |c: &Case| {
        let seeded = format!("{SEED}/{}", c.name());
        seeded.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
    };
    cases.sort_by_key(die);
    let mut met: BTreeMap<(String, Fault), usize> = BTreeMap::new();
    let mut turns = Vec::new();
    for case in cases.drain(..) {
        let count = met.entry((name(&case).to_owned(), case.fault)).or_default();
        *count += 1;
        turns.push((!is_first(&case, records), *count, case));
    }
    turns.sort_by_key(|(later, turn, _)| (*later, *turn));
    cases.extend(turns.into_iter().map(|(_, _, case)| case));
}

/// Found, repeated, waited for: by what became of the struck call in comparison with the recorded life.
fn tally(report: &mut Report, case: &Case, run: &Run, record: Option<&Run>) {
    report.end(case.fault, run.end.clone());
    let counts = |repeated: bool| Counts {
        found: u32::from(run.end == End::Done && !repeated),
        repeated: u32::from(repeated),
        waited: u32::from(run.waited),
    };
    if let Some(method) = &case.also {
        let made = run.calls.iter().filter(|e| e.method == *method);
        let Some(_struck) = made.clone().find(|e| e.fault.is_some()) else { return report.miss() };
        return report.add(method, Fault::InRecovery, counts(made.count() > 1));
    }
    if !run.struck {
        return report.miss();
    }
    let At::Call(n) = case.at else { return };
    let (Some(entry), Some(record)) = (run.calls.get(usize::try_from(n - 1).unwrap_or(0)), record) else {
        return report.miss();
    };
    let count = |run: &Run| run.calls.iter().filter(|e| kind(e) == kind(entry)).count();
    report.add(&entry.method, case.fault, counts(count(run) > count(record)));
}

/// Calls of one kind: the same method for the same purpose, whatever the objects are called in this run.
fn kind(entry: &Entry) -> (String, String) {
    let tag = entry.tags.first().and_then(|(_, v)| v.split_once('.')).map(|(_, what)| what);
    let key = entry.params.get(1).and_then(Value::as_str).filter(|k| k.starts_with("lamina.dev/"));
    (entry.method.clone(), tag.or(key).unwrap_or_default().to_owned())
}

/// The controller as its cluster would run it: whenever it dies another begins, with nothing in its memory.
struct Controller {
    task: tokio::task::JoinHandle<()>,
}

impl Controller {
    async fn start(rig: &Rig, seam: &Arc<Seam>) -> Self {
        let inner = crate::common::client(Who::ServiceAccount { namespace: "lamina-system", name: "lamina" }).await;
        let client = seam.watched(inner);
        let settings = Settings {
            pace: pace(),
            program: None,
            identity: format!("crash-{}", uuid::Uuid::new_v4()),
            namespace: Some(rig.namespace.clone()),
            deadline: Deadline::none(),
            metrics: Metrics::default(),
            health: Health::default(),
        };
        let run = async move { controller::run(client, settings, CancellationToken::new()).await.expect("it runs") };
        Self { task: tokio::spawn(run) }
    }

    async fn die(&mut self) {
        self.task.abort();
        // Cancelled, as it should be; whatever it held is dropped by now.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Lives one life; with a case, struck once.
async fn lived(life: Life, case: Option<Case>) -> Run {
    let rig = Rig::with(Clock::new(SPEED)).await;
    let sim = Arc::clone(&rig.sim);
    let seam = Seam::new(Arc::clone(&sim));
    let sights = Sights::default();
    let before = objects(&sim.pool);
    let watching = sights.watch(&sim.pool);
    let mut controller = Controller::start(&rig, &seam).await;
    let person = Person { rig, seam: Arc::clone(&seam), deeds: Arc::new(Mutex::new(Deeds::default())) };
    if let Err(end) = person.prelude(life).await {
        panic!("the prelude of {life:?} ended with {end:?}");
    }
    assert_eq!(quiet(&sim.pool, 4).await, None, "after the prelude");
    let (base, writes) = (sim.pool.log.number(), seam.writes());
    let told = seam.history().len();
    let case = case.as_ref();
    arm(case, &sim.pool, &seam, base, writes);
    let living = person.live(life);
    let striking = async {
        let Some(case) = case else { return std::future::pending().await };
        strike(case, &person, &mut controller, base).await;
    };
    tokio::pin!(living, striking);
    let (end, struck) = tokio::select! {
        end = &mut living => (end, false),
        () = &mut striking => (living.await, true),
    };
    // A pool that died brings things back which the controller takes off again as soon as it is in touch: up to two seconds of backoff.
    let restless = quiet(&sim.pool, if case.is_some_and(|c| c.fault.kills_xapi()) { 45 } else { 4 }).await;
    sights.look(&sim.pool);
    let struck = struck || case.is_some_and(|c| !c.fault.kills_controller() && !c.fault.kills_xapi());
    let history = seam.history();
    let waiting = ["WaitingForInFlight"];
    let waited = history.iter().skip(told).any(|w| {
        let reason = crate::common::rig::ready(&w.layer).map(|(r, _)| r).unwrap_or_default();
        waiting.contains(&reason.as_str())
    });
    let log = sim.pool.log.entries();
    let now = objects(&sim.pool);
    let uuids = now.values().filter_map(|row| row.get("uuid")?.as_str());
    let digests = uuids.filter_map(|u| Some((u.to_owned(), sim.pool.digest(u)?))).collect();
    let deeds = person.deeds.lock().expect("no panic before").clone();
    let lived = Lived {
        life,
        log: log.clone(),
        history,
        sights,
        deeds,
        before,
        now,
        pending: pending(&sim.pool),
        digests,
        forgot: case.is_some_and(|c| c.fault.kills_xapi()),
        done: end == End::Done,
    };
    drop(watching);
    let broken = invariants::broken(&lived).into_iter().chain(restless).collect();
    let calls = log.into_iter().filter(|e| e.number.is_some_and(|n| n > base)).collect();
    Run { calls, writes: seam.writes() - writes, end, broken, waited, struck }
}

/// Sets the trap.
fn arm(case: Option<&Case>, pool: &Pool, seam: &Seam, base: u64, writes: u64) {
    let Some(case) = case else { return };
    let fault = |target, effect, times| pool.faults.add(faults::Fault { target, effect, times });
    match case.at {
        At::Write(n) => seam.arm(Some(match case.fault {
            Fault::DiesBefore => Death::BeforeWrite(writes + n),
            _ => Death::AfterWrite(writes + n),
        })),
        At::Call(n) => {
            let n = base + n;
            if case.fault.kills_controller() {
                seam.arm(Some(Death::Call(n)));
                let last = if case.fault == Fault::DiesBefore { n } else { n + 1 };
                fault(Target::From(last), Effect::Drop, None);
            }
            let effect = match case.fault {
                Fault::Dropped => Some(Effect::Drop),
                Fault::ReplyLost => Some(Effect::CutReply),
                Fault::Late | Fault::DiesLate => Some(Effect::ExecuteLate(LATE)),
                Fault::MidJson => Some(Effect::TruncateReply),
                Fault::DiesBefore | Fault::DiesAfter | Fault::XapiDies | Fault::BothDie | Fault::InRecovery => None,
            };
            if let Some(effect) = effect {
                fault(Target::Number(n), effect, Some(1));
            }
        }
    }
    if !case.fault.kills_controller() {
        strike_also(case, pool);
    }
}

fn strike_also(case: &Case, pool: &Pool) {
    if let Some(method) = case.also.clone() {
        pool.faults.add(faults::Fault { target: Target::Method(method), effect: Effect::CutReply, times: Some(1) });
    }
}

/// Waits for the moment, and lets the dead rise again.
async fn strike(case: &Case, person: &Person, controller: &mut Controller, base: u64) {
    let (pool, seam) = (&person.rig.sim.pool, &person.seam);
    let mut dead = seam.dead.subscribe();
    match case.at {
        At::Call(n) => pool.log.reached(base + n).await,
        At::Write(_) => drop(dead.wait_for(|dead| *dead).await),
    }
    if case.fault.kills_controller() {
        controller.die().await;
    }
    if case.fault.kills_xapi() {
        restart::restart(pool, false).await;
    }
    if case.fault.kills_controller() {
        pool.faults.clear();
        strike_also(case, pool);
        seam.arm(None);
        *controller = Controller::start(&person.rig, seam).await;
    }
}

/// Until no changing call has come for so many looks, and no guest is about to. Returns what is wrong with whoever calls for ever.
async fn quiet(pool: &Pool, looks: u32) -> Option<String> {
    let began = Instant::now();
    let mut last = pool.log.number();
    let mut still = 0;
    while still < looks {
        if began.elapsed() > RESTLESS {
            let log = pool.log.entries();
            let calls: Vec<_> = log.iter().rev().filter(|e| e.number.is_some()).take(6).map(|e| &e.method).collect();
            return Some(format!("I14 no rest in {RESTLESS:?}: {calls:?}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        still = if pool.log.number() == last { still + 1 } else { 0 };
        last = pool.log.number();
    }
    None
}

/// Rows of all disks and machines.
fn objects(pool: &Pool) -> BTreeMap<String, Row> {
    let db = pool.db();
    ["VDI", "VM"].iter().flat_map(|class| db.all(class).map(|(r, row)| (r.to_string(), row.clone()))).collect()
}

/// Tags of ours on tasks that are still at work.
fn pending(pool: &Pool) -> Vec<String> {
    let db = pool.db();
    let at_work = db.all("task").filter(|(_, t)| t.get("status") == Some(&Value::from("pending")));
    at_work.filter_map(|(_, t)| Some(t.get("other_config")?.get("http:lamina-op")?.as_str()?.to_owned())).collect()
}
