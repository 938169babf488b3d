//! The lives that are recorded: what a person does from outside, step by step, and how each ends.
//!
//! Each begins from nothing, or where another ended, which may be struck as well: so many are lived on one layer.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use kube::api::DeleteParams;
use lamina::api::condition::{self, ConditionType, find};
use lamina::api::{Phase, PlatformLayer};
use lamina::demo::person::{Deed, person};
use lamina::sim::guest::{Program, program};
use lamina::sim::power::Exit;
use lamina::xapi::wire::Ref;
use serde_json::json;
use tokio::sync::watch;

use super::seam::Seam;
use crate::common::rig::{Rig, noted, ready};
use crate::common::unattended::{files, served, two_steps};

/// A layer rests elsewhere than it should if nothing was written for so long: more than any pause of the tests' pace.
const STILL: Duration = Duration::from_secs(4);
/// Nothing takes so long, whatever dies once: a stream whose answer was lost is given up after 30 seconds.
const TOO_LONG: Duration = Duration::from_secs(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Life {
    /// One version, from nothing to a machine with tools, in which somebody works.
    HappyMade,
    /// From the end of that work to the frozen disk.
    HappyFrozen,
    /// Version 2 on version 1, up to its machine.
    SecondMade,
    SecondFrozen,
    /// Version 1 thrown away while its machine runs and a control domain has hold of its disk; version 2 made up to its machine.
    Discard,
    /// One version without hands: steps, a restart, the guest's own check and shutdown.
    Steps,
    /// Deleted with policy Delete while version 2 runs on a finalized version 1.
    Deletion,
    /// Version 1 thrown away while its disk is cloned; the layer deleted while version 2's machine is: what comes of either is taken back.
    TakenBack,
}

impl Life {
    /// Whatever begins where another ends comes after it.
    pub const ALL: [Self; 8] = [
        Self::HappyMade,
        Self::HappyFrozen,
        Self::SecondMade,
        Self::SecondFrozen,
        Self::Discard,
        Self::Steps,
        Self::Deletion,
        Self::TakenBack,
    ];
    /// No other begins where these end.
    pub const LAST: [Self; 5] = [Self::SecondFrozen, Self::Discard, Self::Steps, Self::Deletion, Self::TakenBack];

    /// Where it begins: at the end of this one, or from nothing.
    fn upon(self) -> Option<Self> {
        match self {
            Self::HappyMade | Self::Steps | Self::TakenBack => None,
            Self::HappyFrozen | Self::Discard => Some(Self::HappyMade),
            Self::SecondMade => Some(Self::HappyFrozen),
            Self::SecondFrozen | Self::Deletion => Some(Self::SecondMade),
        }
    }

    /// All that is lived on one layer up to this one, in order.
    pub fn path(self) -> Vec<Self> {
        let mut path: Vec<_> = std::iter::successors(Some(self), |life| life.upon()).collect();
        path.reverse();
        path
    }

    /// Where what it has in common with others is struck.
    pub fn beside(self) -> &'static [Self] {
        match self {
            // One version by a person.
            Self::Steps => &[Self::HappyMade, Self::HappyFrozen],
            Self::TakenBack => &[Self::HappyMade, Self::HappyFrozen, Self::Discard, Self::Deletion],
            Self::HappyMade | Self::HappyFrozen | Self::SecondMade | Self::SecondFrozen => &[],
            Self::Discard | Self::Deletion => &[],
        }
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// As it should.
    Done,
    /// Somewhere else, at rest, and status says what a person shall do.
    Rests(String),
    /// Not at all.
    Never(String),
}

/// What the machine's system did, as the invariants need it.
#[derive(Clone, Debug)]
pub struct Boot {
    /// uuid of the machine.
    pub machine: String,
    /// The last changing call when it began.
    pub at: u64,
    pub ended: Option<Halt>,
    /// What status had recorded when it began.
    pub recorded: (Option<String>, Option<String>),
    pub first: bool,
    /// It has a second disk.
    pub second: bool,
}

/// The guest switched itself off.
#[derive(Clone, Debug)]
pub struct Halt {
    pub version: String,
    pub disk: String,
    pub digest: String,
}

/// What the person did, by the number of the last call then.
#[derive(Clone, Debug, Default)]
pub struct Deeds {
    pub approved: Vec<(String, u64)>,
    pub discarded: Option<(String, u64)>,
    pub deleted: Option<u64>,
    pub tokens: u64,
    pub boots: Vec<Boot>,
}

/// A person at a layer `walk`, and the guests in its machines.
pub struct Person {
    pub rig: Rig,
    pub seam: Arc<Seam>,
    pub deeds: Arc<Mutex<Deeds>>,
    /// Is the work in the machine done?
    pub done: watch::Sender<bool>,
}

const NAME: &str = "walk";

impl Person {
    fn number(&self) -> u64 {
        self.rig.sim.pool.log.number()
    }

    fn note(&self, change: impl FnOnce(&mut Deeds)) {
        change(&mut self.deeds.lock().expect("no panic before"));
    }

    /// What is there before anything is struck.
    pub async fn prelude(&self, life: Life) {
        match life {
            Life::HappyMade => self.guests(finalizes(self.done.subscribe())),
            Life::Steps => {
                files(&self.rig).await;
                self.guests(served());
            }
            Life::Discard => {
                let latest = self.seam.latest.borrow().clone();
                let work = latest.and_then(|l| l.status?.disk).expect("a packaging disk");
                let work = self.rig.hands.disk(&work.uuid).await.expect("it is on the pool");
                self.rig.sim.pool.leak_vbd(&Ref(work.r));
            }
            Life::HappyFrozen | Life::SecondMade | Life::SecondFrozen | Life::Deletion | Life::TakenBack => {}
        }
    }

    /// The part that is struck.
    pub async fn live(&self, life: Life) -> End {
        let lived = match life {
            Life::HappyMade => {
                self.rig.layer(NAME, json!({"deletionPolicy": "Delete"})).await;
                self.made("1").await
            }
            Life::SecondMade => {
                self.done.send_replace(false);
                self.rig.patch(NAME, json!({"version": "2", "base": {"from": "Latest"}})).await;
                self.made("2").await
            }
            Life::HappyFrozen => self.frozen("1").await,
            Life::SecondFrozen => self.frozen("2").await,
            Life::Steps => {
                let mut spec = two_steps();
                spec["steps"][0]["reboot"] = json!("Always");
                spec["deletionPolicy"] = json!("Delete");
                // Whoever writes this lets a clean report stand for an approval.
                spec["finalize"] = json!({"policy": "OnShutdown"});
                self.note(|d| d.approved.push(("1".into(), self.number())));
                self.rig.layer(NAME, spec).await;
                self.frozen("1").await
            }
            Life::Discard => {
                self.note(|d| d.discarded = Some(("1".into(), self.number())));
                self.rig.patch(NAME, json!({"version": "2", "discard": "1", "machine": {"powerOn": false}})).await;
                let made = |l: &PlatformLayer| {
                    let of_2 = l.status.as_ref().and_then(|s| s.disk.as_ref()).is_some_and(|d| d.version == "2");
                    of_2 && ready(l).is_some_and(|(r, _)| r == "StartMachine")
                };
                self.reach(made).await
            }
            Life::Deletion => {
                self.note(|d| d.deleted = Some(self.number()));
                self.rig.layers().delete(NAME, &DeleteParams::default()).await.expect("a deletion");
                self.gone().await
            }
            Life::TakenBack => self.taken_back().await,
        };
        lived.err().unwrap_or(End::Done)
    }

    async fn taken_back(&self) -> Result<(), End> {
        let clock = &self.rig.sim.pool.clock;
        let [disk, machine] = ["VDI.clone/named", "VM.clone/vifs"];
        clock.hold(disk);
        self.rig.layer(NAME, json!({"deletionPolicy": "Delete", "machine": {"powerOn": false}})).await;
        self.held(disk, "1").await?;
        self.note(|d| d.discarded = Some(("1".into(), self.number())));
        self.rig.patch(NAME, json!({"version": "2", "discard": "1"})).await;
        clock.hold(machine);
        clock.unhold(disk);
        self.held(machine, "2").await?;
        self.note(|d| d.deleted = Some(self.number()));
        self.rig.layers().delete(NAME, &DeleteParams::default()).await.expect("a deletion");
        clock.unhold(machine);
        self.gone().await
    }

    /// Waits until the pool is at this stage; or, where it was there unseen, until the version is made.
    async fn held(&self, stage: &str, version: &str) -> Result<(), End> {
        let made = |l: &PlatformLayer| {
            let here = l.status.as_ref().and_then(|s| s.disk.as_ref()).is_some_and(|d| d.version == version);
            here && ready(l).is_some_and(|(r, _)| r == "StartMachine")
        };
        tokio::select! {
            _held = self.rig.sim.pool.clock.held(stage) => Ok(()),
            end = self.reach(made) => end,
        }
    }

    /// Waits until the machine with tools is somebody's to work in.
    async fn made(&self, version: &str) -> Result<(), End> {
        let at_work = |l: &PlatformLayer| {
            let here = l.status.as_ref().and_then(|s| s.disk.as_ref()).is_some_and(|d| d.version == version);
            let tools = l.status.as_ref().and_then(|s| find(&s.conditions, ConditionType::GuestToolsReady));
            here && tools.is_some_and(|c| c.status == "True") && ready(l).is_some_and(|(r, _)| r == "InstallSoftware")
        };
        self.helped(version, at_work).await
    }

    /// Whoever works in the machine shuts it down for finalize, and approves when asked.
    async fn frozen(&self, version: &str) -> Result<(), End> {
        self.done.send_replace(true);
        let finalized = |l: &PlatformLayer| {
            let current = l.status.as_ref().and_then(|s| s.current.as_ref()).is_some_and(|c| c.version == version);
            current && ready(l).is_some_and(|(r, _)| r == "Finalized")
        };
        let asked = |l: &PlatformLayer| ready(l).is_some_and(|(r, _)| r == "ApproveFinalize");
        self.helped(version, |l| finalized(l) || asked(l)).await?;
        if self.seam.latest.borrow().as_ref().is_some_and(finalized) {
            return Ok(());
        }
        self.note(|d| d.approved.push((version.into(), self.number())));
        self.rig.approve(NAME, version).await;
        self.helped(version, finalized).await
    }

    /// Waits for this, and does once what a person is told to.
    async fn helped(&self, version: &str, done: impl Fn(&PlatformLayer) -> bool) -> Result<(), End> {
        match self.reach(&done).await {
            Err(End::Rests(reason)) if helpful(&reason) => {
                self.note(|d| d.tokens += 1);
                let token = format!("again-{version}-{}", self.number());
                self.rig.patch(NAME, json!({"machine": {"restartToken": token}})).await;
                self.reach(done).await
            }
            end => end,
        }
    }

    /// Waits for what status should say; ends early where the layer rests with something else.
    async fn reach(&self, done: impl Fn(&PlatformLayer) -> bool) -> Result<(), End> {
        let mut latest = self.seam.latest.subscribe();
        let waited = async {
            loop {
                let now = latest.borrow_and_update().clone();
                if now.as_ref().is_some_and(&done) {
                    return Ok(());
                }
                let resting = now.as_ref().and_then(rests);
                tokio::select! {
                    changed = latest.changed() => changed.expect("the seam lives"),
                    () = tokio::time::sleep(STILL), if resting.is_some() => {
                        return Err(End::Rests(resting.unwrap_or_default()));
                    }
                }
            }
        };
        match tokio::time::timeout(TOO_LONG, waited).await {
            Ok(end) => end,
            Err(_) => Err(self.never()),
        }
    }

    /// What a hang is understood by: the status, the last calls, and what the pool is still at.
    fn never(&self) -> End {
        let latest = self.seam.latest.borrow().clone();
        let told = latest.as_ref().and_then(ready).map(|(r, m)| format!("{r}: {m}")).unwrap_or_default();
        let operation = latest.and_then(|l| l.status?.operation);
        let entries = self.rig.sim.pool.log.entries();
        let calls = entries.iter().rev().filter(|e| e.number.is_some()).take(12).map(|e| {
            format!("{} {} {:?} {:?}: {:?}", e.number.unwrap_or_default(), e.method, e.task, e.fault, e.outcome)
        });
        let db = self.rig.sim.pool.db();
        let busy = ["VM", "VBD", "VDI", "SR"].into_iter().flat_map(|class| db.all(class).map(move |row| (class, row)));
        let busy =
            busy.filter(|(_, (_, row))| row["current_operations"].as_object().is_some_and(|all| !all.is_empty()));
        let busy = busy.map(|(class, (row, fields))| format!("{class} {row:?} {}", fields["current_operations"]));
        let tasks = db.all("task").map(|(row, fields)| {
            let what = ["name_label", "status", "other_config"].map(|f| fields[f].to_string());
            format!("task {row:?} {}", what.join(" "))
        });
        let seen = calls.chain(busy).chain(tasks).collect::<Vec<_>>().join("\n");
        println!("NEVER {told}\n{operation:?}\n{seen}");
        End::Never(told)
    }

    async fn gone(&self) -> Result<(), End> {
        let layers = self.rig.layers();
        let gone = async {
            let wait = kube::runtime::wait::await_condition(layers, NAME, |l: Option<&PlatformLayer>| l.is_none());
            wait.await.expect("a watch");
        };
        match tokio::time::timeout(TOO_LONG, gone).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.never()),
        }
    }

    /// From now on the machines' systems do this, watched.
    fn guests(&self, inner: Program) {
        // The pool has this program: whoever holds the pool, as the seam does, is not to be held by it.
        let (deeds, latest, sim) =
            (Arc::clone(&self.deeds), self.seam.latest.subscribe(), Arc::downgrade(&self.rig.sim.pool));
        let watched = program(move |guest| {
            let (inner, deeds, latest, pool) = (Arc::clone(&inner), Arc::clone(&deeds), latest.clone(), sim.upgrade());
            async move {
                let Some(pool) = pool else { return Exit::Halt };
                let status = || latest.borrow().as_ref().and_then(|l| l.status.clone());
                let recorded = status().map(|s| (s.disk.map(|d| d.uuid), s.machine.map(|m| m.uuid)));
                let index = {
                    let mut deeds = deeds.lock().expect("no panic before");
                    deeds.boots.push(Boot {
                        machine: guest.vm.clone(),
                        at: pool.log.number(),
                        ended: None,
                        recorded: recorded.unwrap_or_default(),
                        first: guest.boot == 1,
                        second: guest.disks().contains(&1),
                    });
                    deeds.boots.len() - 1
                };
                // People are slower than the controller, dead or alive: their work begins when the boot was noted.
                noted(&Arc::downgrade(&pool), &guest).await;
                let exit = inner(guest.clone()).await;
                if matches!(exit, Exit::Halt)
                    && let Some(disk) = status().and_then(|s| s.disk)
                {
                    let digest = pool.digest(&disk.uuid).unwrap_or_default();
                    let halt = Halt { version: disk.version, disk: disk.uuid, digest };
                    deeds.lock().expect("no panic before").boots[index].ended = Some(halt);
                }
                exit
            }
        });
        self.rig.hasty_guest(NAME, watched);
    }
}

/// Two boots: the tools, then work; once that is done a clean check, and off.
pub fn finalizes(done: watch::Receiver<bool>) -> Program {
    person(vec![
        vec![Deed::Install, Deed::Reboot],
        vec![Deed::Work { block: 7, byte: 0xA5 }, Deed::Until(done), Deed::Finalize],
    ])
}

/// A person is told to start the machine anew, and may.
fn helpful(reason: &str) -> bool {
    matches!(reason, "FixIntegrity" | "MachineLost")
}

pub fn phase(l: &PlatformLayer) -> Option<Phase> {
    l.status.as_ref()?.phase
}

/// The reason for which nothing goes on by itself. Where somebody in the machine is asked for something, the guest's script is about to do it.
fn rests(l: &PlatformLayer) -> Option<String> {
    let conditions = &l.status.as_ref()?.conditions;
    let on = |t| find(conditions, t).filter(|c| c.status == "True").map(|c| c.reason.clone());
    debug_assert_eq!(condition::check_layer(l), Vec::<String>::new());
    on(ConditionType::Stalled)
        .or_else(|| on(ConditionType::ActionRequired))
        .filter(|reason| reason != "InstallSoftware")
}
