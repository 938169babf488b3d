//! Crash by enumeration: the changing calls and status writes of recorded lives are numbered by a first run of each; then for each number
//! the controller dies before or after it, the wire fails, or xapi dies, and everything starts again. Each life must end, and the
//! invariants hold over all that was seen (`invariants`).
//!
//! Longer than 350 lines: the enumeration, its order and its tally are one thing.
//!
//! `cargo test` strikes every kind of call, then goes on over calls and over the faults of [`Fault::OF_CI`] evenly, by a seed, for eight
//! minutes, which two quiet cores need for all of these. Everything: `LAMINA_CRASH=all cargo test --test lamina crash:: -- --nocapture`.
//! Some of it: `LAMINA_CRASH=Happy/Call/7/XapiDies,Second/*Late`. `killed` does ten with the real binary.

mod invariants;
mod killed;
mod lives;
mod report;
mod seam;
mod sights;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
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
use self::report::{Counts, Report};
use self::seam::{Death, Seam};
use self::sights::{Row, Sights};
use crate::common::rig::{PACE, Rig};

/// So much faster than life is the pool; the controller's pace is shortened alike.
const SPEED: f64 = 100.0;
/// Lives mostly wait: so many at once keep two cores busy.
const AT_ONCE: usize = 12;
/// What `cargo test` may spend here, on two cores.
const BUDGET: Duration = Duration::from_secs(480);
const SEED: u64 = 0x1A_417A;
/// A late call is carried out so long after its connection died, in the pool's time; less than the two looks of an in-flight test
/// are apart.
const LATE: Duration = Duration::from_secs(20);

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Case {
    life: Life,
    at: At,
    fault: Fault,
}

impl Case {
    fn name(&self) -> String {
        let (kind, n) = match self.at {
            At::Call(n) => ("Call", n),
            At::Write(n) => ("Write", n),
        };
        format!("{:?}/{kind}/{n}/{:?}", self.life, self.fault)
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

#[tokio::test(flavor = "multi_thread")]
async fn every_call_and_every_write_may_be_the_last() {
    let began = Instant::now();
    let asked = std::env::var("LAMINA_CRASH").unwrap_or_default();
    let mut report = Report::default();
    let (mut cases, mut calls, mut records) = (Vec::new(), BTreeSet::new(), BTreeMap::new());
    for life in Life::ALL {
        let from = Instant::now();
        let run = lived(life, None).await;
        assert_eq!((&run.end, &run.broken), (&End::Done, &Vec::new()), "the recorded life {life:?}");
        println!(
            "{life:?}: {} calls, {} status writes, {} ms",
            run.calls.len(),
            run.writes,
            from.elapsed().as_millis()
        );
        if std::env::var("LAMINA_CRASH_CALLS").is_ok() {
            run.calls.iter().for_each(|e| println!("{:?} {} {:?}", e.number, e.method, e.params.get(1)));
        }
        calls.extend(run.calls.iter().map(|e| e.method.clone()));
        let numbers = (1..=run.calls.len() as u64).map(At::Call).map(|at| (at, Fault::OF_CALLS.as_slice()));
        let writes = (1..=run.writes).map(At::Write).map(|at| (at, Fault::OF_WRITES.as_slice()));
        cases.extend(
            numbers
                .chain(writes)
                .flat_map(|(at, faults)| faults.iter().map(move |fault| Case { life, at, fault: *fault })),
        );
        records.insert(life, run);
    }
    let everything = cases.len();
    let all = asked == "all";
    match asked.as_str() {
        "all" => {}
        "" => rotate(&mut cases, &records),
        some => cases.retain(|c| some.split(',').any(|s| s.split('*').all(|part| c.name().contains(part)))),
    }
    println!("{} cases in all, seed {SEED:#x}{}", everything, if all { "" } else { ", a sample that fits the time" });
    let mut failures = Vec::new();
    let mut done = 0;
    let deadline = (asked.is_empty()).then_some(began + BUDGET);
    let runs = cases.into_iter().take_while(|_| deadline.is_none_or(|d| Instant::now() < d));
    let mut runs = futures::stream::iter(runs)
        .map(|case| async move { (case, AssertUnwindSafe(lived(case.life, Some(case))).catch_unwind().await) })
        .buffer_unordered(AT_ONCE);
    while let Some((case, run)) = runs.next().await {
        done += 1;
        if done % 20 == 0 {
            println!("{done} cases, {} s, {} failed", began.elapsed().as_secs(), failures.len());
        }
        let run = match run {
            Ok(run) => run,
            // What it said is above.
            Err(_panic) => {
                failures.push(format!("{}: panicked", case.name()));
                continue;
            }
        };
        let mut wrong = run.broken.clone();
        match &run.end {
            End::Done => {}
            End::Rests(_) if case.fault.kills_xapi() => {}
            other => wrong.push(format!("I14 {other:?}")),
        }
        if !wrong.is_empty() {
            println!("FAILED {}: {wrong:#?}", case.name());
            failures.push(format!("{}: {wrong:?}", case.name()));
        }
        tally(&mut report, &case, &run, records.get(&case.life));
    }
    drop(runs);
    println!("{report}\n{done} of {everything} cases, {} s", began.elapsed().as_secs());
    assert_eq!(failures, Vec::<String>::new());
    if all || asked.is_empty() {
        assert_eq!(report.gaps(&calls), Vec::<String>::new());
    }
}

/// Puts the cases in an order whose every beginning goes evenly over calls by name and faults, those that `cargo test` is asked for first.
fn rotate(cases: &mut Vec<Case>, records: &BTreeMap<Life, Run>) {
    let name = |c: &Case| match c.at {
        At::Call(n) => {
            let index = usize::try_from(n - 1).unwrap_or(0);
            records.get(&c.life).and_then(|r| r.calls.get(index)).map_or("", |e| e.method.as_str())
        }
        At::Write(_) => "status",
    };
    let die = |c: &Case| {
        let seeded = format!("{SEED}/{}", c.name());
        seeded.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
    };
    cases.sort_by_key(die);
    let mut met: BTreeMap<(String, Fault), usize> = BTreeMap::new();
    let mut names = BTreeSet::new();
    let mut turns = Vec::new();
    for case in cases.drain(..) {
        let count = met.entry((name(&case).to_owned(), case.fault)).or_default();
        *count += 1;
        let later = !Fault::OF_CI.contains(&case.fault) || matches!(case.at, At::Write(_));
        // Every call has a row, however slow the machine.
        let known = !names.insert(name(&case).to_owned());
        turns.push((known, *count, later, case));
    }
    turns.sort_by_key(|(known, turn, later, _)| (*known, *later, *turn));
    cases.extend(turns.into_iter().map(|(_, _, _, case)| case));
}

/// Found, repeated, waited for: by what became of the struck call in comparison with the recorded life.
fn tally(report: &mut Report, case: &Case, run: &Run, record: Option<&Run>) {
    report.end(case.fault, run.end.clone());
    if !run.struck {
        return report.miss();
    }
    let At::Call(n) = case.at else { return };
    let (Some(entry), Some(record)) = (run.calls.get(usize::try_from(n - 1).unwrap_or(0)), record) else {
        return report.miss();
    };
    let count = |run: &Run| run.calls.iter().filter(|e| kind(e) == kind(entry)).count();
    let repeated = count(run) > count(record);
    let counts = Counts { found: u32::from(!repeated), repeated: u32::from(repeated), waited: u32::from(run.waited) };
    report.add(&entry.method, case.fault, counts);
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
    quiet(&sim.pool, 4).await;
    let (base, writes) = (sim.pool.log.number(), seam.writes());
    let told = seam.history().len();
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
    quiet(&sim.pool, if case.is_some_and(|c| c.fault.kills_xapi()) { 45 } else { 4 }).await;
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
    let calls = log.into_iter().filter(|e| e.number.is_some_and(|n| n > base)).collect();
    Run { calls, writes: seam.writes() - writes, end, broken: invariants::broken(&lived), waited, struck }
}

/// Sets the trap.
fn arm(case: Option<Case>, pool: &Pool, seam: &Seam, base: u64, writes: u64) {
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
                Fault::DiesBefore | Fault::DiesAfter | Fault::XapiDies | Fault::BothDie => None,
            };
            if let Some(effect) = effect {
                fault(Target::Number(n), effect, Some(1));
            }
        }
    }
}

/// Waits for the moment, and lets the dead rise again.
async fn strike(case: Case, person: &Person, controller: &mut Controller, base: u64) {
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
        seam.arm(None);
        *controller = Controller::start(&person.rig, seam).await;
    }
}

/// Until no changing call has come for so many looks, and no guest is about to.
async fn quiet(pool: &Pool, looks: u32) {
    let mut last = pool.log.number();
    let mut still = 0;
    while still < looks {
        tokio::time::sleep(Duration::from_millis(50)).await;
        still = if pool.log.number() == last { still + 1 } else { 0 };
        last = pool.log.number();
    }
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
