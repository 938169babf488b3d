//! Shutdown for finalize: check, rearm as asked, report, wait until the report was surely seen, turn the machine off.
//!
//! Called by the command line, the desktop icon and the unattended run. It never turns a machine off that has a finding, and never reports
//! one as clean that it could not look at.
//!
//! Ghost network cards are removed before the check: guest drivers unplug the emulated card at every boot, so that nearly every machine
//! has one, and removing them needs neither a reboot nor a person. What is left of them after that is a finding like any other.

use std::time::Duration;

use crate::cause::{Cause, Clears};
use crate::channel::{Store, StoreError, config_disk};
use crate::checks::{self, Finding, Verdict};
use crate::deeds::{Deeds, Ended, Failed, Job};
use crate::facts::Facts;
use crate::report::{FILE, LONGEST_FILE, PREFIX, Report, XENSTORE};

/// xapi reads the store of a domain only while it lives (xapi.md 7.4: at least 10 s).
pub const SURELY_SEEN: Duration = Duration::from_secs(15);
/// By then Windows turns the machine off by itself. Many times what both channels take for a report, and [`SURELY_SEEN`].
const LATEST_OFF: Duration = Duration::from_secs(120);
/// Between two looks at the native image generator, which yields to whoever is active.
const NGEN_PAUSE: Duration = Duration::from_secs(30);
/// One run of the queue; a big .NET application takes a quarter of an hour on a slow machine.
const NGEN_LIMIT: Duration = Duration::from_secs(2 * 60 * 60);
/// The vendor's own check.
const VENDOR_LIMIT: Duration = Duration::from_secs(10 * 60);

const NO_DISK: &str = "config disk: none is attached";

/// All that finalizing touches.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    pub facts: &'a dyn Facts,
    pub deeds: &'a dyn Deeds,
    /// `None`: no drivers, hence no xenstore.
    pub store: Option<&'a dyn Store>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Reset Windows licensing as the last thing before the report (`spec.kms.rearm`).
    pub rearm: bool,
    /// Run the queue of the native image generator first, and wait for its end.
    pub wait_ngen: bool,
    /// Report and stay on.
    pub leave_on: bool,
}

/// To which machine and boot the report belongs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    pub nonce: String,
    pub boot: String,
    pub domid: String,
}

impl Bound {
    /// As the machine's xenstore has it; what is missing there is empty.
    pub fn read(store: &dyn Store) -> Self {
        // A store that does not answer is told when the report is written to it.
        let key = |path: &str| store.read(path).ok().flatten().unwrap_or_default();
        Self { nonce: key(&format!("{PREFIX}nonce")), boot: key(&format!("{PREFIX}boot")), domid: key("domid") }
    }
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    pub report: Report,
    /// Channels that the report could not be written to, in words; the other one has it.
    pub unwritten: Vec<String>,
    /// The machine was asked to turn itself off.
    pub off: bool,
}

/// Nothing was reported, or the machine did not turn off after its report.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    #[error("the report could not be written anywhere: {}", .0.join("; "))]
    Unreported(Vec<String>),
    #[error(
        "a report would belong to nobody: there is no config disk, and xenstore has no {0} of this machine; restart the machine from its layer, or attach its config disk"
    )]
    Unbound(&'static str),
    #[error(
        "the check found nothing, but the machine stays on, and a plain shutdown will not do: run Shutdown For Finalize again"
    )]
    StaysOn(#[source] Failed),
    #[error(
        "a report would belong to nobody: the config disk (drive LAMINA) cannot be used, and xenstore does not say otherwise whose machine this is; install the guest tools and reboot, or throw the version away"
    )]
    Nameless,
}

/// Shuts down for finalize. The machine stays on where the verdict of the outcome is not clean.
pub fn finalize(machine: &Machine<'_>, bound: &Bound, order: Order) -> Result<Outcome, Trouble> {
    belongs(machine, bound)?;
    let ours = |r: &Report| r.rearmed && (&r.nonce, &r.boot) == (&bound.nonce, &bound.boot) && !r.boot.is_empty();
    let earlier = standing_reports(machine).into_iter().flatten().find(ours);
    // The only evidence of a rearm stands until another report has it too.
    if earlier.is_none() {
        drop_report(machine);
    }
    if order.wait_ngen {
        run_ngen_queue(machine);
    }
    remove_ghosts(machine);
    ask_vendor(machine);

    let mut report = Report {
        nonce: bound.nonce.clone(),
        boot: bound.boot.clone(),
        domid: bound.domid.clone(),
        sealed: true,
        ..Report::default()
    };
    let mut verdict = checks::check(machine.facts);
    if let Some(earlier) = earlier {
        (report.rearms_before, report.rearms_left) = (earlier.rearms_before, earlier.rearms_left);
        report.rearmed = true;
    } else if order.rearm {
        rearm(machine, &mut report, &mut verdict, order.leave_on)?;
    }
    if order.leave_on {
        let mut told = left_on(&verdict, "it was asked to stay on");
        if order.rearm && !report.rearmed {
            told.findings.push(Finding::new(Cause::NotRearmed, "the rearm is left to the shutdown"));
        }
        let unwritten = tell(machine, &mut report, &told)?;
        return Ok(Outcome { verdict, report, unwritten, off: false });
    }
    if !verdict.clean() {
        let unwritten = tell(machine, &mut report, &verdict)?;
        return Ok(Outcome { verdict, report, unwritten, off: false });
    }
    let stays_on = |failed: Failed, report: &mut Report| {
        let told = left_on(&verdict, &failed.to_string());
        // Where it cannot be written any more, the person who reads the trouble has to know.
        tell(machine, report, &told).unwrap_or_default();
        Trouble::StaysOn(failed)
    };
    // Before the report: a machine that stays on after a clean one could be changed, and be believed. A prompt may be closed and a user signed
    // out at any moment, which ends this program, but not what Windows was asked for.
    machine.deeds.power_off(LATEST_OFF).map_err(|failed| stays_on(failed, &mut report))?;
    let unwritten = tell(machine, &mut report, &verdict).inspect_err(|_| {
        // Off without a report does no harm: the layer asks for one.
        machine.deeds.stay_on().unwrap_or_default();
    })?;
    machine.deeds.wait(SURELY_SEEN);
    machine.deeds.power_off(Duration::ZERO).map_err(|failed| stays_on(failed, &mut report))?;
    Ok(Outcome { verdict, report, unwritten, off: true })
}

/// What is reported of a machine that runs on after its check: anything may change in it before somebody shuts it down.
fn left_on(verdict: &Verdict, why: &str) -> Verdict {
    let mut told = verdict.clone();
    told.findings.push(Finding::new(Cause::LeftOn, why));
    told
}

/// A report that names nobody is not worth a rearm, nor the machine's end: no check after it would ever count. Without a config disk, xenstore
/// alone says whose it is.
fn belongs(machine: &Machine<'_>, bound: &Bound) -> Result<(), Trouble> {
    if bound.nonce.is_empty() && on_config_disk(machine.facts).is_some() {
        return Err(Trouble::Nameless);
    }
    let Some(store) = machine.store.filter(|_| on_config_disk(machine.facts).is_none()) else { return Ok(()) };
    match store.read("domid") {
        Err(why) => Err(Trouble::Unreported(vec![why.to_string(), NO_DISK.to_owned()])),
        Ok(_) if bound.domid.is_empty() => Err(Trouble::Unbound("domain number")),
        Ok(_) if bound.nonce.is_empty() => Err(Trouble::Unbound("nonce")),
        Ok(_) => Ok(()),
    }
}

/// At each boot: what was reported of earlier ones goes. What was of this one stands, as it may be the only evidence of a rearm.
pub fn drop_earlier(machine: &Machine<'_>, boot: &str) {
    if !standing_reports(machine).into_iter().flatten().any(|report| report.boot == boot) {
        drop_report(machine);
    }
}

/// Takes away what an earlier check reported, from both channels.
fn drop_report(machine: &Machine<'_>) {
    // What cannot be removed now is overwritten later, or never counts: it is of another boot.
    if let Some(store) = machine.store {
        store.remove(XENSTORE.trim_end_matches('/')).unwrap_or_default();
    }
    if let Some(path) = on_config_disk(machine.facts) {
        machine.deeds.remove(&path).unwrap_or_default();
    }
}

/// Where the report goes on the config disk, if there is one to be seen.
fn on_config_disk(facts: &dyn Facts) -> Option<String> {
    let disk = config_disk(facts).ok().flatten()?;
    Some(format!("{}{FILE}", disk.root))
}

/// The reports that stand, of whichever boot: one channel may have missed the newest. Their seals are not looked at: they are our own.
fn standing_reports(machine: &Machine<'_>) -> [Option<Report>; 2] {
    let in_store = || {
        let read = |k: &str| machine.store?.read(&format!("{XENSTORE}{k}")).ok().flatten();
        let keys = ["nonce", "boot", "rearms-before", "rearms-left", "rearmed"];
        let lines: Vec<_> = keys.into_iter().filter_map(|k| Some((k, read(k)?))).collect();
        Report::read(lines.iter().map(|(k, v)| (*k, v.as_str())))
    };
    let on_disk = || {
        let bytes = machine.facts.read(&on_config_disk(machine.facts)?, LONGEST_FILE).ok().flatten()?;
        Report::from_json(&bytes).ok()
    };
    [in_store(), on_disk()]
}

/// Puts the verdict into the report and writes it to both channels; one of them is enough.
fn tell(machine: &Machine<'_>, report: &mut Report, verdict: &Verdict) -> Result<Vec<String>, Trouble> {
    report.tell(verdict);
    let now = machine.facts.now();
    report.written_at = Some(now);
    report.booted_at = Some(now.saturating_sub(machine.facts.uptime().as_secs()));
    let store = match machine.store {
        Some(store) => into_store(store, report).map_err(|e| e.to_string()),
        None => Err("xenstore: no driver answers".to_owned()),
    };
    let disk = match on_config_disk(machine.facts) {
        Some(path) => machine.deeds.write(&path, &report.to_json()).map_err(|e| e.to_string()),
        None => Err(NO_DISK.to_owned()),
    };
    let reached = store.is_ok() || disk.is_ok();
    let unwritten: Vec<_> = [store, disk].into_iter().filter_map(Result::err).collect();
    if reached { Ok(unwritten) } else { Err(Trouble::Unreported(unwritten)) }
}

/// The seal comes last: a report that was cut off has none. Lines of an earlier one would break it, and are removed.
fn into_store(store: &dyn Store, report: &Report) -> Result<(), StoreError> {
    store.remove(XENSTORE.trim_end_matches('/'))?;
    let lines = report.lines();
    let mut in_order = lines.iter().filter(|(k, _)| *k != "sealed").chain(lines.get_key_value("sealed"));
    in_order.try_for_each(|(k, v)| store.write(&format!("{XENSTORE}{k}"), v))
}

/// Counts, and rearms where nothing else was found and the machine goes off: the last thing that is done to this Windows. Once in a boot is
/// enough, as a rearm is spent for good.
fn rearm(machine: &Machine<'_>, report: &mut Report, verdict: &mut Verdict, leave_on: bool) -> Result<(), Trouble> {
    match machine.facts.rearms() {
        Err(blind) => verdict.blind.push(blind),
        Ok(count) => {
            report.rearms_before = Some(count);
            if count == 0 {
                verdict.findings.push(Finding::new(Cause::NoRearmsLeft, "Windows has 0 rearms left"));
            }
        }
    }
    if leave_on || !verdict.clean() {
        return Ok(());
    }
    // Nothing is spent that could not be told; and if the machine dies in between, what stands says that it was not rearmed.
    let mut not_yet = verdict.clone();
    not_yet.findings.push(Finding::new(Cause::NotRearmed, "Windows is about to be rearmed"));
    tell(machine, report, &not_yet)?;
    match machine.deeds.rearm() {
        Ok(()) => report.rearmed = true,
        Err(failed) => verdict.findings.push(Finding::new(Cause::NotRearmed, failed.to_string())),
    }
    // It may not be readable until the next boot; it is told where it is.
    report.rearms_left = machine.facts.rearms().ok();
    Ok(())
}

/// Runs what is queued for the native image generator, in both frameworks and each version, and waits until it has come to rest. Never
/// `update /force`, which compiles the whole framework into the layer.
pub fn run_ngen_queue(machine: &Machine<'_>) {
    let started = machine.facts.uptime();
    // Whatever goes wrong here is seen by the check that follows.
    for program in checks::native_image_generators(machine.facts).unwrap_or_default() {
        let args = "executequeueditems".to_owned();
        let job = Job { program, args, directory: None, limit: NGEN_LIMIT, log: None };
        machine.deeds.run(&job).unwrap_or(Ended::TimedOut);
    }
    let busy = |f: &Finding| f.reason == Cause::NGenRunning.as_str() || f.reason == Cause::NGenNeeded.as_str();
    while checks::check(machine.facts).findings.iter().any(busy)
        && machine.facts.uptime().saturating_sub(started) < NGEN_LIMIT
    {
        machine.deeds.wait(NGEN_PAUSE);
    }
}

fn remove_ghosts(machine: &Machine<'_>) {
    for card in checks::ghosts(machine.facts).unwrap_or_default() {
        // One that stays is found by the check that follows.
        machine.deeds.remove_card(&card.id).unwrap_or_default();
    }
}

/// Has the vendor's service write its record anew, where there is one: a record of an earlier boot says nothing.
fn ask_vendor(machine: &Machine<'_>) {
    let Ok(Some(program)) = checks::uniservice(machine.facts) else { return };
    let job = Job { program, args: "-L".to_owned(), directory: None, limit: VENDOR_LIMIT, log: None };
    // How it ended says nothing that its record, or the lack of one, does not.
    machine.deeds.run(&job).unwrap_or(Ended::TimedOut);
}

/// What an unattended run does about a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Shut down for finalize.
    Finalize,
    /// Something needs a person: nothing that can be done here makes the rest worth while.
    Ask,
    RunQueue,
    Wait,
    Reboot,
}

/// Goes by the verdict of an [`Outcome`], where all that the machine can cure by itself is cured. One thing at a time: what is at work is waited for before a reboot, which could break it.
pub fn next(verdict: &Verdict) -> Next {
    let all = verdict.everything();
    let any = |clears: Clears| all.iter().any(|f| f.clears == clears);
    if all.is_empty() {
        Next::Finalize
    } else if any(Clears::Hands) {
        Next::Ask
    } else if any(Clears::Queue) {
        Next::RunQueue
    } else if any(Clears::Time) {
        Next::Wait
    } else {
        Next::Reboot
    }
}
