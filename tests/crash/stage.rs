//! A layer in a namespace, a pool and a Connector of its own, the person at it, and the controller, which dies and rises. Lives one
//! [`Job`] there. Called by `main`; judged by `invariants`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use lamina::controller::lease::Deadline;
use lamina::controller::metrics::Metrics;
use lamina::controller::pace::Pace;
use lamina::controller::{self, Settings};
use lamina::local::Who;
use lamina::sim::clock::Clock;
use lamina::sim::faults::{self, Effect, Entry, Target};
use lamina::sim::{Pool, restart};
use lamina::telemetry::Health;
use tokio::sync::{OnceCell, watch};
use tokio_util::sync::CancellationToken;

use super::cases::{At, Case, Fault, Job};
use super::invariants::{self, Lived};
use super::lives::{End, Life, Person};
use super::seam::{Death, Seam};
use super::sights::{Row, Sights, Watching};
use crate::common::hands::Hands;
use crate::common::rig::{PACE, Rig, ready};

/// So much faster than life is the pool; the controller's pace is shortened alike.
const SPEED: f64 = 100.0;
/// Nothing at rest goes on calling for so long.
const RESTLESS: Duration = Duration::from_secs(15);
/// A late call is carried out so long after its connection died, in the pool's time; less than the two looks of an in-flight test
/// are apart.
const LATE: Duration = Duration::from_secs(20);

fn pace() -> Pace {
    Pace { rest: Duration::from_millis(1500), resync: Duration::from_millis(1500), ..PACE }
}

/// What a life came to.
pub struct Run {
    /// Changing calls after what was before it, in order.
    pub calls: Vec<Entry>,
    pub writes: u64,
    /// After which of these calls a status was written before the next one came.
    pub written: BTreeSet<u64>,
    pub end: End,
    pub broken: Vec<String>,
    /// After the strike status said that the outcome of a call is waited for.
    pub waited: bool,
    pub struck: bool,
}

/// Lives a job: a run for each of its lives that was recorded or struck. Later ones are not lived where one did not end as it should.
pub async fn lived(job: &Job) -> Vec<(Life, Run)> {
    let mut stage = Stage::set().await;
    let mut runs = Vec::new();
    for life in job.life.path() {
        let case = job.cases.get(&life);
        if let Some(restless) = stage.begin(life).await {
            // What the pool forgot in an earlier life may ask for a person here.
            assert!(stage.forgot, "before {life:?}: {restless}");
            return runs;
        }
        let run = stage.live(life, case).await;
        let as_it_should = run.end == End::Done && run.broken.is_empty();
        let struck_before = job.cases.keys().any(|struck| *struck < life);
        if case.is_some() || job.cases.is_empty() {
            runs.push((life, run));
        } else {
            assert!(as_it_should || struck_before, "{life:?} came to {:?} {:?}", run.end, run.broken);
        }
        if !as_it_should {
            return runs;
        }
    }
    runs
}

struct Stage {
    person: Person,
    controller: Controller,
    sights: Sights,
    _watching: Watching,
    /// Rows of disks and machines before anything began.
    before: BTreeMap<String, Row>,
    /// xapi died uncleanly.
    forgot: bool,
}

impl Stage {
    async fn set() -> Self {
        let rig = Rig::with(Clock::new(SPEED)).await;
        let seam = Seam::new(Arc::clone(&rig.sim));
        let sights = Sights::default();
        let before = objects(&rig.hands).await;
        let watching = sights.watch(&rig.sim.pool);
        let controller = Controller::start(&rig, &seam).await;
        let person = Person { rig, seam, deeds: Arc::default(), done: watch::Sender::new(false) };
        Self { person, controller, sights, _watching: watching, before, forgot: false }
    }

    fn sim(&self) -> &lamina::sim::serve::Sim {
        &self.person.rig.sim
    }

    /// Up to where a life may be struck. Returns what is wrong with whoever does not rest.
    async fn begin(&mut self, life: Life) -> Option<String> {
        self.person.prelude(life).await;
        quiet(&self.sim().pool, 4).await
    }

    /// Lives one life; with a case, struck once.
    async fn live(&mut self, life: Life, case: Option<&Case>) -> Run {
        let pool = Arc::clone(&self.sim().pool);
        let seam = Arc::clone(&self.person.seam);
        let (base, writes) = (pool.log.number(), seam.writes());
        let told = seam.history().len();
        arm(case, &pool, &seam, base, writes);
        let (end, struck) = {
            let living = self.person.live(life);
            let moment = async {
                match case {
                    Some(case) => moment(case, &self.person, base, writes).await,
                    None => std::future::pending().await,
                }
            };
            tokio::pin!(living, moment);
            tokio::select! {
                biased;
                () = &mut moment => tokio::join!(living, strike(case, &self.person, &mut self.controller)),
                end = &mut living => (end, false),
            }
        };
        self.forgot |= case.is_some_and(|c| c.fault.kills_xapi());
        // A pool that died brings things back which the controller takes off again as soon as it is in touch: up to two seconds of backoff.
        let restless = quiet(&pool, if case.is_some_and(|c| c.fault.kills_xapi()) { 45 } else { 4 }).await;
        self.sights.look(&pool);
        let broken = self.judged(life, end == End::Done).await.into_iter().chain(restless).collect();
        let history = seam.history();
        let waits = |l| ready(l).is_some_and(|(reason, _)| reason == "WaitingForInFlight");
        let waited = history.iter().skip(told).any(|w| waits(&w.layer));
        let calls = pool.log.entries().into_iter().filter(|e| e.number.is_some_and(|n| n > base)).collect();
        let written = history.iter().skip(told).filter_map(|w| w.at.checked_sub(base)).collect();
        let run = Run { calls, writes: seam.writes() - writes, written, end, broken, waited, struck };
        // What never came is not to come later, to another life.
        if case.is_some_and(|c| c.fault.kills_controller()) && !struck {
            self.controller.rise(&self.person).await;
        }
        pool.faults.clear();
        run
    }

    async fn judged(&self, life: Life, done: bool) -> Vec<String> {
        let (pool, hands) = (&self.sim().pool, &self.person.rig.hands);
        let history = self.person.seam.history();
        // The disks that a version is: of the others nothing is said.
        let versions = history.last().and_then(|w| w.layer.status.as_ref()).map(|s| &s.versions);
        let disks = versions.into_iter().flatten().map(|v| v.disk.clone());
        let digests = disks.filter_map(|uuid| Some((uuid.clone(), pool.digest(&uuid)?))).collect();
        let deeds = self.person.deeds.lock().expect("no panic before").clone();
        invariants::broken(&Lived {
            life,
            log: pool.log.entries(),
            sights: self.sights.clone(),
            deeds,
            before: self.before.clone(),
            now: objects(hands).await,
            pending: pending(hands).await,
            digests,
            forgot: self.forgot,
            done,
            history,
        })
    }
}

/// The controller as its cluster would run it: whenever it dies another begins, with nothing in its memory.
struct Controller {
    /// `None`: dead.
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Controller {
    async fn start(rig: &Rig, seam: &Arc<Seam>) -> Self {
        // One for all: each would have the API server sign a token of its own.
        static ACCOUNT: OnceCell<Client> = OnceCell::const_new();
        let account = Who::ServiceAccount { namespace: "lamina-system", name: "lamina" };
        let inner = ACCOUNT.get_or_init(|| crate::common::client(account)).await;
        let client = seam.watched(inner.clone());
        let settings = Settings {
            pace: pace(),
            program: None,
            identity: format!("crash-{}", uuid::Uuid::new_v4()),
            namespace: Some(rig.namespace.clone()),
            deadline: Deadline::none(),
            metrics: Metrics::default(),
            room: Arc::default(),
            health: Health::default(),
        };
        let run = async move { controller::run(client, settings, CancellationToken::new()).await.expect("it runs") };
        Self { task: Some(tokio::spawn(run)) }
    }

    async fn die(&mut self) {
        let Some(task) = self.task.take() else { return };
        task.abort();
        // Cancelled, as it should be; whatever it held is dropped by now.
        let _ = task.await;
    }

    /// Dead or alive, another begins in its place, and nothing strikes it.
    async fn rise(&mut self, person: &Person) {
        self.die().await;
        person.rig.sim.pool.faults.clear();
        person.seam.arm(None);
        *self = Self::start(&person.rig, &person.seam).await;
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.task.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Sets the trap.
fn arm(case: Option<&Case>, pool: &Pool, seam: &Seam, base: u64, writes: u64) {
    let Some(case) = case else { return };
    let fault = |target, effect, times| pool.faults.add(faults::Fault { target, effect, times });
    match case.at {
        At::Write(n) if case.fault == Fault::DiesBefore => seam.arm(Some(Death::BeforeWrite(writes + n))),
        At::Write(n) if case.fault.kills_controller() => seam.arm(Some(Death::AfterWrite(writes + n))),
        At::Write(_) => {}
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

/// When it strikes.
async fn moment(case: &Case, person: &Person, base: u64, writes: u64) {
    let seam = &person.seam;
    match case.at {
        At::Call(n) => person.rig.sim.pool.log.reached(base + n).await,
        At::Write(_) if case.fault.kills_controller() => drop(seam.dead.subscribe().wait_for(|dead| *dead).await),
        At::Write(n) => drop(seam.latest.subscribe().wait_for(|_| seam.writes() >= writes + n).await),
    }
}

/// Kills, and lets the dead rise again.
async fn strike(case: Option<&Case>, person: &Person, controller: &mut Controller) -> bool {
    let Some(case) = case else { return false };
    let pool = &person.rig.sim.pool;
    if case.fault.kills_controller() {
        controller.die().await;
    }
    if case.fault.kills_xapi() {
        restart::restart(pool, false).await;
    }
    if case.fault.kills_controller() {
        controller.rise(person).await;
        strike_also(case, pool);
    }
    true
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

/// Rows of all disks and machines, over the wire.
async fn objects(hands: &Hands) -> BTreeMap<String, Row> {
    let all = hands.all("VDI").await.into_iter().chain(hands.all("VM").await);
    all.filter_map(|thing| Some((thing.r, thing.row.as_object()?.clone()))).collect()
}

/// Tags of ours on tasks that are still at work.
async fn pending(hands: &Hands) -> Vec<String> {
    let all = hands.all("task").await.into_iter().filter(|task| task.text("status") == "pending");
    all.filter_map(|task| Some(task.row["other_config"]["http:lamina-op"].as_str()?.to_owned())).collect()
}
