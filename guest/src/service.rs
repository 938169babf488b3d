//! What the guest's service does at each boot: marks it, drops what earlier boots reported, runs the steps, and shuts down for finalize by
//! itself where that is asked for.
//!
//! Called by the Windows service (`boot`, `is_marked`), by the command line (`mark`, `take_answer`, `boot`) and by simulated guests, for which
//! `answer` is too. It never runs a step that the record on the disk does not call `Running`, never restarts Windows more than [`MOST_REBOOTS`]
//! times for findings, and leaves the machine on, with its reason told, whenever a person is needed.
//!
//! Longer than 350 lines: one boot, told from its mark to its end.
//!
//! ```text
//! boot ─▶ mark, drop reports ─▶ steps ─┬─▶ reboot ─▶ (next boot)
//!                                      ├─▶ stopped: a person says `again` or `skip`
//!                                      └─▶ done ─▶ finalize ─┬─▶ off
//!                                                            ├─▶ findings that time clears: wait, once more
//!                                                            ├─▶ findings that a reboot clears: reboot, three times at most
//!                                                            └─▶ findings that need hands: stays on
//! ```

use std::time::Duration;

use crate::channel::{Store, config_disk};
use crate::deeds::Failed;
use crate::disk::{Damage, LAYER, Layer, MOST_TEXT_BYTES, RECORDS, STEPS};
use crate::facts::{Blind, Facts};
use crate::finalize::{self, Bound, Machine, Next, Order, SURELY_SEEN, drop_earlier, finalize};
use crate::report::PREFIX;
use crate::steps::driver::{Bench, path};
use crate::steps::engine::{self, Action, Answer, Stop};
use crate::steps::progress::{self, Doing};
use crate::steps::record::{Boot, Ran, Record, State};
use crate::steps::{Step, check};

/// Restarts for findings, in the whole life of a machine.
pub const MOST_REBOOTS: u32 = 3;
/// Windows mounts a second disk some time after it starts services.
const DISK_WAIT: Duration = Duration::from_secs(60);
const DISK_PAUSE: Duration = Duration::from_secs(5);
/// Between two checks while something is at work.
const PAUSE: Duration = Duration::from_secs(60);
/// How long findings that time clears are waited for in one boot.
const PATIENCE: Duration = Duration::from_secs(2 * 60 * 60);

/// How a boot's work ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// There is no config disk: a person's machine.
    NoDisk,
    /// All steps are done; the rest is a person's.
    Done,
    Rebooting,
    /// Shut down for finalize.
    Off,
    /// The machine stays on; a person is needed.
    Stays(Why),
}

/// Why a person is needed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    #[error("the config disk cannot be used: {0}")]
    Disk(Damage),
    #[error("the config disk cannot be read")]
    Blind(#[from] Blind),
    #[error("the record cannot be written")]
    Failed(#[from] Failed),
    #[error("the record is of other steps than those on the disk")]
    OtherSteps,
    #[error(transparent)]
    Step(#[from] Stop),
    #[error("the check has findings that need a person: {}", .0.join(", "))]
    Findings(Vec<String>),
    #[error("findings are left after {MOST_REBOOTS} restarts: {}", .0.join(", "))]
    TooManyReboots(Vec<String>),
    #[error("findings did not go away in time: {}", .0.join(", "))]
    TooLong(Vec<String>),
    #[error(transparent)]
    Finalize(#[from] finalize::Trouble),
    #[error(
        "step '{0}' is not done: wait for the service, or reboot and let it go on, before the machine is shut down for finalize"
    )]
    StepsLeft(String),
    #[error("step '{0}' is running: wait until it is done; if nothing runs any more, reboot")]
    Running(String),
    #[error("there is no such step that stopped")]
    NothingToAnswer,
}

/// What the config disk says.
struct Work {
    root: String,
    layer: Layer,
    steps: Vec<Step>,
    record: Record,
}

/// One boot, from its mark to its end. `id` is a guid made for it.
pub fn boot(machine: &Machine<'_>, id: &str) -> End {
    drop_earlier(machine, id);
    let root = match await_disk(machine) {
        Ok(Some(root)) => {
            // What it carries of an earlier boot could not be seen before.
            drop_earlier(machine, id);
            root
        }
        Ok(None) => {
            write_mark(machine, id);
            return End::NoDisk;
        }
        Err(blind) => {
            // As where there is none: a person can still report on this boot, through xenstore.
            write_mark(machine, id);
            return stays(machine, Doing::Damaged, blind.into());
        }
    };
    let entered = Work::load(machine.facts, &root).and_then(|mut work| {
        // Whatever ran is over: nobody but the service runs steps, and it has only just come up.
        engine::interrupt(&mut work.record);
        work.enter(machine, id).map(|()| work)
    });
    match entered {
        Ok(mut work) => work.go(machine).unwrap_or_else(|why| stays(machine, Doing::Failed, why)),
        Err(why) => {
            // A person can still report on this boot, through xenstore.
            write_mark(machine, id);
            stays(machine, Doing::Damaged, why)
        }
    }
}

/// Marks this boot, where no service did, and says to what a report of it belongs and what the layer asks for; refuses where steps are left,
/// before anything is changed. `id` is the boot's guid.
pub fn mark(machine: &Machine<'_>, id: &str) -> Result<(Bound, Order), Why> {
    let mut bound = machine.store.map(Bound::read).unwrap_or_default();
    let disk = config_disk(machine.facts).ok().flatten();
    let work = disk.and_then(|volume| Work::load(machine.facts, &volume.root).ok());
    if let Some(work) = &work {
        work.nothing_left(id)?;
    }
    // A disk that cannot be used is no reason against a report through xenstore.
    let rearm = if let Some(mut work) = work
        && work.enter(machine, id).is_ok()
        && let Some(here) = work.record.boot
    {
        bound.nonce = work.layer.nonce;
        bound.boot = here.id;
        work.layer.kms_rearm
    } else {
        write_mark(machine, id);
        bound.boot = id.to_owned();
        // A store that does not answer takes no report either, and one without the rearm that a layer asks for is judged so (NotRearmed).
        machine.store.and_then(|s| s.read(&format!("{PREFIX}kms-rearm")).ok().flatten()).as_deref() == Some("true")
    };
    Ok((bound, Order { rearm, ..Order::default() }))
}

/// Did somebody mark this boot already? Whoever is refused by [`mark`] did not.
pub fn is_marked(machine: &Machine<'_>, id: &str) -> bool {
    let disk = config_disk(machine.facts).ok().flatten();
    let record = disk.and_then(|volume| Work::load(machine.facts, &volume.root).ok()).and_then(|work| work.record.boot);
    let told = machine.store.and_then(|s| s.read(&format!("{PREFIX}boot")).ok().flatten());
    record.is_some_and(|here| here.id == id) || told.as_deref() == Some(id)
}

/// Takes a person's answer about the step that stopped, and goes on as the service would.
pub fn answer(machine: &Machine<'_>, id: &str, step: &str, answer: Answer) -> Result<End, Why> {
    take_answer(machine, id, step, answer)?;
    Ok(boot(machine, id))
}

/// Takes it, and leaves it to the service to go on.
pub fn take_answer(machine: &Machine<'_>, id: &str, step: &str, answer: Answer) -> Result<(), Why> {
    let root = config_disk(machine.facts)?.map(|v| v.root).unwrap_or_default();
    let mut work = Work::load(machine.facts, &root)?;
    work.nothing_runs(id)?;
    work.enter(machine, id)?;
    if !engine::answer(&work.steps, &mut work.record, step, answer) {
        return Err(Why::NothingToAnswer);
    }
    work.save(machine)?;
    work.tell(machine);
    Ok(())
}

fn await_disk(machine: &Machine<'_>) -> Result<Option<String>, Blind> {
    let started = machine.facts.uptime();
    loop {
        // While disks come up, one that cannot be looked at is as good as one that is not there yet.
        let root = config_disk(machine.facts).map(|found| found.map(|volume| volume.root));
        if matches!(root, Ok(Some(_))) || machine.facts.uptime().saturating_sub(started) >= DISK_WAIT {
            return root;
        }
        machine.deeds.wait(DISK_PAUSE);
    }
}

/// A store that does not answer is told of when a report is written to it; the mark is in the record too.
fn write_mark(machine: &Machine<'_>, id: &str) {
    if let Some(store) = machine.store {
        store.write(&format!("{PREFIX}boot"), id).unwrap_or_default();
    }
}

fn say(machine: &Machine<'_>, doing: Doing) {
    if let Some(store) = machine.store {
        progress::say(store, doing).unwrap_or_default();
    }
}

fn stays(machine: &Machine<'_>, doing: Doing, why: Why) -> End {
    say(machine, doing);
    End::Stays(why)
}

impl Work {
    fn load(facts: &dyn Facts, root: &str) -> Result<Self, Why> {
        let most = usize::try_from(MOST_TEXT_BYTES).unwrap_or(usize::MAX);
        let file = |name: &'static str| facts.read(&path(root, name), most);
        let present = |name: &'static str| file(name)?.ok_or(Why::Disk(Damage::Missing(name)));
        let garbled = |name: &str| Why::Disk(Damage::Garbled(name.to_owned()));
        let layer: Layer = serde_json::from_slice(&present(LAYER)?).map_err(|_| garbled(LAYER))?;
        let json = present(STEPS)?;
        let steps: Vec<Step> = serde_json::from_slice(&json).map_err(|_| garbled(STEPS))?;
        check(&steps).map_err(|_| garbled(STEPS))?;
        // A slot that cannot be looked at may be the newest: only one that was read and is torn leaves the other.
        let [even, odd] = [file(RECORDS[0])?, file(RECORDS[1])?];
        let record = Record::newest([even.as_deref(), odd.as_deref()]).map_err(Why::Disk)?;
        if record.nonce != layer.nonce {
            return Err(Why::Disk(Damage::Foreign));
        }
        if !record.is_of(&steps, &json) {
            return Err(Why::OtherSteps);
        }
        Ok(Self { root: root.to_owned(), layer, steps, record })
    }

    /// A step that the service of this very boot runs.
    fn nothing_runs(&self, id: &str) -> Result<(), Why> {
        let here = |r: &&Ran| r.state == State::Running && r.boot.as_deref() == Some(id);
        self.record.steps.iter().find(here).map_or(Ok(()), |r| Err(Why::Running(r.name.clone())))
    }

    /// All steps are done, as far as `finalize` may go on.
    fn nothing_left(&self, id: &str) -> Result<(), Why> {
        self.nothing_runs(id)?;
        let name = |n: usize| self.steps.get(n).map(|s| s.name.clone()).unwrap_or_default();
        // As the service will find it once it enters this boot.
        let mut ahead = self.record.clone();
        engine::boot(&mut ahead, Boot { id: id.to_owned(), began: 0, domid: None });
        match engine::next(&self.steps, &ahead) {
            Action::Done => Ok(()),
            Action::Stopped(stop) => Err(stop.into()),
            Action::Run(n) | Action::Reboot(n) => Err(Why::StepsLeft(name(n))),
        }
    }

    /// This boot is in the record and in xenstore.
    fn enter(&mut self, machine: &Machine<'_>, id: &str) -> Result<(), Why> {
        if let Some(store) = machine.store {
            let nonce = store.read(&format!("{PREFIX}nonce")).ok().flatten();
            if nonce.is_some_and(|n| n != self.layer.nonce) {
                return Err(Why::Disk(Damage::Foreign));
            }
            self.believe_begun(store);
        }
        let booted = machine.facts.now().saturating_sub(machine.facts.uptime().as_secs());
        let domid = machine.store.and_then(|s| s.read("domid").ok().flatten());
        engine::boot(&mut self.record, Boot { id: id.to_owned(), began: booted, domid });
        self.save(machine)?;
        write_mark(machine, self.record.boot.as_ref().map_or(id, |b| &b.id));
        self.tell(machine);
        Ok(())
    }

    /// A file system that was mended after a crash may have lost the newest record. What xenstore knows to have been begun was begun.
    fn believe_begun(&mut self, store: &dyn Store) {
        for ran in self.record.steps.iter_mut().filter(|r| r.state == State::Pending) {
            if progress::begun(store, &ran.name).unwrap_or_default() {
                ran.state = State::Interrupted;
            }
        }
    }

    /// Steps, and what comes after them.
    fn go(&mut self, machine: &Machine<'_>) -> Result<End, Why> {
        say(machine, Doing::Steps);
        let bench = Bench { facts: machine.facts, deeds: machine.deeds, root: &self.root };
        let tell = |record: &Record| tell(machine, record);
        match bench.drive(&self.steps, &mut self.record, &tell)? {
            Action::Run(_) | Action::Done if self.layer.finalize_on_done => self.finalize(machine),
            Action::Run(_) | Action::Done => {
                say(machine, Doing::Done);
                Ok(End::Done)
            }
            Action::Reboot(_) => self.reboot(machine),
            Action::Stopped(stop) => Ok(stays(machine, Doing::Stopped, stop.into())),
        }
    }

    /// Without a person: what goes away by itself is waited for, or restarted for.
    fn finalize(&mut self, machine: &Machine<'_>) -> Result<End, Why> {
        say(machine, Doing::Finalizing);
        let boot = self.record.boot.as_ref().map(|b| b.id.clone()).unwrap_or_default();
        // Once more, for a store that did not answer when the boot was marked.
        write_mark(machine, &boot);
        let domid = machine.store.map(Bound::read).unwrap_or_default().domid;
        let bound = Bound { nonce: self.layer.nonce.clone(), boot, domid };
        let mut order = Order { rearm: self.layer.kms_rearm, ..Order::default() };
        let started = machine.facts.uptime();
        let mut queue_was_run = false;
        loop {
            let outcome = finalize(machine, &bound, order)?;
            order.wait_ngen = false;
            if outcome.off {
                return Ok(End::Off);
            }
            let left: Vec<String> = outcome.verdict.everything().into_iter().map(|f| f.reason).collect();
            let patient = machine.facts.uptime().saturating_sub(started) < PATIENCE;
            let next = finalize::next(&outcome.verdict);
            if matches!(next, Next::RunQueue | Next::Reboot) {
                // The next check drops what was reported, and people are to see what is being mended.
                machine.deeds.wait(SURELY_SEEN);
            }
            match next {
                Next::Finalize | Next::Ask => return Ok(stays(machine, Doing::Findings, Why::Findings(left))),
                Next::RunQueue | Next::Wait if !patient => {
                    return Ok(stays(machine, Doing::Findings, Why::TooLong(left)));
                }
                // Once it was run, what is still queued is left to time.
                Next::RunQueue if !queue_was_run => (queue_was_run, order.wait_ngen) = (true, true),
                Next::RunQueue | Next::Wait => machine.deeds.wait(PAUSE),
                Next::Reboot if self.record.reboots >= MOST_REBOOTS => {
                    return Ok(stays(machine, Doing::Findings, Why::TooManyReboots(left)));
                }
                Next::Reboot => {
                    self.record.reboots += 1;
                    self.save(machine)?;
                    return self.reboot(machine);
                }
            }
        }
    }

    fn reboot(&self, machine: &Machine<'_>) -> Result<End, Why> {
        say(machine, Doing::Rebooting);
        machine.deeds.reboot()?;
        Ok(End::Rebooting)
    }

    fn save(&mut self, machine: &Machine<'_>) -> Result<(), Failed> {
        Bench { facts: machine.facts, deeds: machine.deeds, root: &self.root }.save(&mut self.record)
    }

    fn tell(&self, machine: &Machine<'_>) {
        tell(machine, &self.record);
    }
}

/// Nobody waits for live progress: a store that does not answer costs nothing but the sight of it.
fn tell(machine: &Machine<'_>, record: &Record) {
    if let Some(store) = machine.store {
        progress::write(store, record).unwrap_or_default();
    }
}
