//! Crash by enumeration: the changing calls and status writes of recorded lives are numbered by a first run of each; then for each number
//! the controller dies before or after it, the wire fails, or xapi dies, and everything starts again. Each life must end, and the
//! invariants hold over all that was seen (`invariants`).
//!
//! `cargo test` strikes calls by each of [`Fault::OF_CI`], evenly over their names and by a seed, and a sample of all else until [`BUDGET`]
//! is over; then what was called in recoveries alone. Everything: `cargo test --test crash -- --all`. Some of it: `cargo test --test crash --
//! 'HappyMade/Call/7/XapiDies' 'SecondFrozen/*Late'`. `killed` does ten with the real binary meanwhile, which mostly wait.

mod cases;
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
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};

use self::cases::{At, Case, Fault, Job, is_first, jobs, kind};
use self::lives::{End, Life};
use self::options::Options;
use self::report::{Counts, Report};
use self::stage::{Run, lived};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Lives mostly wait: so many at once keep two cores busy.
const AT_ONCE: usize = 28;
/// When `cargo test` begins no more of what is not of every call × the five faults; those are lived on any machine, in less than this on one
/// with two cores. `--all` goes on to the end.
const BUDGET: Duration = Duration::from_secs(420);
/// Of the cases that `cargo test` wants to strike, per cent. The fault of a few does not come: a life's last calls may be left out, where
/// another had done their work.
const STRUCK: usize = 97;
/// A call of a recovery is brought about again at most so often: it hangs on moments.
const TURNS: usize = 6;

/// What a pool that died uncleanly may leave to a person: what it forgot, nobody can prove.
const FORGOTTEN: [&str; 6] =
    ["SnapshotUnproven", "FixIntegrity", "SourcePaused", "StepsUnknown", "ConfigDiskLost", "OSDiskAmbiguous"];

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
    let recorded = Life::LAST.map(async |life| lived(&Job::recorded(life)).await);
    let mut recorded: BTreeMap<_, _> = futures::future::join_all(recorded).await.into_iter().flatten().collect();
    let mut cases = Vec::new();
    for life in Life::ALL {
        let Some(run) = recorded.remove(&life).filter(|run| run.end == End::Done && run.broken.is_empty()) else {
            return vec![format!("the life {life:?} does not end as it should, struck by nothing")];
        };
        let (calls, writes) = (run.calls.len() as u64, run.writes);
        println!("{life:?}: {calls} calls, {writes} status writes");
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
    }
    let is_first = |case: &Case, tested: &Tested| is_first(case, &tested.records);
    let first = cases.iter().filter(|case| is_first(case, &tested)).count();
    let jobs = if sampled { cases::sampled(cases, &tested.records) } else { jobs(cases) };
    println!(
        "{everything} cases in all, {first} of every call × the five faults; {} lives, recorded in {} s",
        jobs.len(),
        began.elapsed().as_secs()
    );
    if jobs.is_empty() {
        return vec![format!("no case is called {:?}", options.cases)];
    }
    let of_first = |job: &Job| job.cases.values().any(|case| is_first(case, &tested));
    let jobs: Vec<_> = jobs.into_iter().map(|job| (of_first(&job), job)).collect();
    let within = |(of_first, _): &(bool, Job)| !sampled || *of_first || began.elapsed() < BUDGET;
    let postponed = tested.live(jobs.into_iter().filter(within).map(|(_, job)| job), began).await;
    // Of these an earlier life did not end as it should.
    tested.live(postponed.into_iter(), began).await;
    let done = tested.done.len();
    let recorded = tested.recorded();
    let alone = tested.met.iter().filter(|(method, _)| !recorded.contains(*method));
    let alone: Vec<_> = alone.map(|(method, cases)| format!("{method} in {}", cases.len())).collect();
    println!("made in recoveries alone, in so many cases: {alone:?}");
    for turn in 0..TURNS {
        let recoveries = tested.recoveries(turn);
        tested.live(recoveries.into_iter(), began).await;
    }
    let of_first = tested.struck.iter().filter(|case| is_first(case, &tested)).count();
    println!(
        "{}\n{done} of {everything} cases and {} of recoveries, {} s",
        tested.report,
        tested.done.len() - done,
        began.elapsed().as_secs()
    );
    if sampled {
        println!("of the {first} of every call × the five faults {of_first} were struck");
        if of_first * 100 < first * STRUCK {
            tested.failures.push(format!("only {of_first} of the {first} of every call × the five faults were struck"));
        }
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
    done: Vec<Case>,
    /// Of these, those whose fault came: a life may make fewer calls than the recorded one.
    struck: Vec<Case>,
    /// Each call with the first cases that made it.
    met: BTreeMap<String, Vec<Case>>,
}

impl Tested {
    /// Returns what could not be lived where it was to be.
    async fn live(&mut self, jobs: impl Iterator<Item = Job>, began: Instant) -> Vec<Job> {
        let mut lives = futures::stream::iter(jobs)
            .map(async |job| {
                let runs = AssertUnwindSafe(lived(&job)).catch_unwind().await;
                (job, runs)
            })
            .buffer_unordered(AT_ONCE);
        let mut postponed = Vec::new();
        let mut shown = self.done.len() / 50;
        while let Some((job, runs)) = lives.next().await {
            let Ok(runs) = runs else {
                // What it said is above.
                self.failures.push(format!("{}: panicked", job.name()));
                continue;
            };
            let mut runs: BTreeMap<_, _> = runs.into_iter().collect();
            for (life, case) in &job.cases {
                match runs.remove(life) {
                    Some(run) => self.judge(&job, case, &run),
                    None => postponed.push(Job::alone(case.clone())),
                }
            }
            if self.done.len() / 50 > shown {
                shown = self.done.len() / 50;
                println!("{} cases, {} s, {} failed", self.done.len(), began.elapsed().as_secs(), self.failures.len());
            }
        }
        postponed
    }

    fn judge(&mut self, job: &Job, case: &Case, run: &Run) {
        self.done.push(case.clone());
        if run.struck && case.also.is_none() {
            self.struck.push(case.clone());
        }
        let mut wrong = run.broken.clone();
        match &run.end {
            End::Done => {}
            End::Rests(reason) if case.fault.kills_xapi() && FORGOTTEN.contains(&reason.as_str()) => {}
            other => wrong.push(format!("I14 {other:?}")),
        }
        if !wrong.is_empty() {
            println!("FAILED {} (of {}): {wrong:#?}", case.name(), job.name());
            self.failures.push(format!("{}: {wrong:?}", job.name()));
        }
        for entry in &run.calls {
            let cases = self.met.entry(entry.method.clone()).or_default();
            if cases.len() < TURNS && !cases.contains(case) {
                cases.push(case.clone());
            }
        }
        tally(&mut self.report, case, run, self.records.get(&case.life));
    }

    fn recorded(&self) -> BTreeSet<String> {
        self.records.values().flat_map(|run| &run.calls).map(|entry| entry.method.clone()).collect()
    }

    /// Every changing call that any case made.
    fn calls(&self) -> BTreeSet<String> {
        self.recorded().into_iter().chain(self.met.keys().cloned()).collect()
    }

    /// A case for each call that has no row yet, since recoveries alone make it, or each life elsewhere: one that led to it, once more, with
    /// that call struck.
    fn recoveries(&self, turn: usize) -> Vec<Job> {
        let rowless = self.met.iter().filter(|(method, _)| !self.report.has(method));
        let again = |(method, cases): (&String, &Vec<Case>)| {
            let case = cases.get(turn % cases.len().max(1))?;
            Some(Job::alone(Case { also: Some(method.clone()), ..case.clone() }))
        };
        rowless.filter_map(again).collect()
    }
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
