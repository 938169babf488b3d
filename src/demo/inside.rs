//! The guest's real program inside a simulated machine: an in-memory Windows whose xenstore, second disk, clock and power are the machine's.
//!
//! Used by `person`. It touches its machine only as a system does from inside; what is found, reported and decided there is
//! `lamina-guest`'s doing, as in a real machine. A Windows lives as long as its machine, over all its boots.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lamina_guest::channel::{LABEL, Store, StoreError};
use lamina_guest::deeds::{Deeds, Done, Ended, Failed, Job};
use lamina_guest::disk::edit;
use lamina_guest::facts::Volume;
use lamina_guest::finalize::Machine;
use lamina_guest::memory::{Deed, Reply, State, Windows};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::sim::guest::Guest;
use crate::xapi::wire;

/// Where Windows mounts the second disk.
const ROOT: &str = r"E:\";
/// Its device on the machine.
const DEVICE: u64 = 1;
/// As much of a changed disk is written at once.
const PIECE: usize = 64 << 10;

/// By the machine's clock, whatever the program.
const PROGRAM: Duration = Duration::from_secs(2);

/// What an installer does to Windows and how it ends.
pub type Installers = Arc<dyn Fn(&mut State, &Deed) -> Reply + Send + Sync>;

/// The systems of all machines of a program, by the machine's uuid, each with the boot that it is in.
#[derive(Clone, Default)]
pub struct Systems(Arc<Mutex<HashMap<String, (u64, State)>>>);

/// One boot of a system.
pub struct Inside {
    guest: Guest,
    windows: Windows,
    /// The second disk's bytes, where there is one that Windows can mount.
    disk: Mutex<Option<Vec<u8>>>,
    handle: Handle,
    /// The machine was stopped from outside: nothing in it acts any more.
    stopped: CancellationToken,
    systems: Systems,
    /// Seconds since 1970 by the machine's clock.
    began: u64,
}

impl Systems {
    fn of(&self, vm: &str) -> Option<State> {
        lock(&self.0).get(vm).map(|(_, state)| state.clone())
    }

    /// A thread of an earlier boot may still be at work; it changes nothing any more.
    fn save(&self, guest: &Guest, state: State) {
        let mut all = lock(&self.0);
        if all.get(&guest.vm).is_none_or(|(boot, _)| *boot <= guest.boot) {
            all.insert(guest.vm.clone(), (guest.boot, state));
        }
    }

    /// Boots the machine's system, or a fresh one.
    pub fn boot(&self, guest: &Guest, installers: Installers) -> Arc<Inside> {
        let (handle, stopped) = (Handle::current(), CancellationToken::new());
        let (clock, timer, end) = (guest.clone(), handle.clone(), stopped.clone());
        let windows = Windows::scripted(move |state, deed| installers(state, deed)).sleeping(move |time| {
            // An early end is seen by whatever is done next.
            timer.block_on(end.run_until_cancelled(clock.stage("inside", time))).unwrap_or_default();
        });
        if let Some(before) = self.of(&guest.vm) {
            windows.change(|state| {
                *state = before;
                state.boot();
            });
        }
        let began = now(guest);
        windows.change(|state| (state.now, state.uptime) = (began, Duration::ZERO));
        // From here on, what an earlier boot still does is lost.
        self.save(guest, windows.snapshot());
        let disk = mount(guest, &windows);
        Arc::new(Inside {
            guest: guest.clone(),
            windows,
            disk: Mutex::new(disk),
            handle,
            stopped,
            systems: self.clone(),
            began,
        })
    }
}

/// Shows the second disk's files to Windows.
fn mount(guest: &Guest, windows: &Windows) -> Option<Vec<u8>> {
    windows.change(|state| {
        state.volumes.retain(|v| v.root != ROOT);
        state.delete(ROOT);
    });
    let size = usize::try_from(guest.disk_size(DEVICE).ok()?).ok()?;
    let bytes = guest.read_disk(DEVICE, 0, size).ok()?;
    let files = edit::files(&bytes).ok()?;
    windows.change(|state| {
        state.volumes.push(Volume { root: ROOT.to_owned(), label: LABEL.to_owned(), file_system: "FAT".to_owned() });
        for (path, content) in files {
            state.put(&format!("{ROOT}{}", path.replace('/', r"\")), &content);
        }
    });
    Some(bytes)
}

impl Inside {
    /// Changes what is to be seen in this Windows.
    pub fn change(&self, how: impl FnOnce(&mut State)) {
        self.windows.change(how);
        self.save();
    }

    /// What was done so far outlives this boot.
    fn save(&self) {
        self.systems.save(&self.guest, self.windows.snapshot());
    }

    /// Does a deed to a machine that is on, and keeps what came of it.
    fn act<T>(&self, what: &str, deed: impl FnOnce(&Windows) -> Done<T>) -> Done<T> {
        self.alive(what)?;
        let done = deed(&self.windows);
        self.save();
        done
    }

    /// The clock is the machine's, which goes on while nobody waits in Windows, too.
    fn tick(&self) {
        let now = now(&self.guest);
        let up = Duration::from_secs(now.saturating_sub(self.began));
        self.windows.change(|state| (state.now, state.uptime) = (now, state.uptime.max(up)));
    }

    /// Runs a part of the guest's program. `None`: the machine was stopped from outside meanwhile.
    pub async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        part: impl FnOnce(&Machine<'_>) -> T + Send + 'static,
    ) -> Option<T> {
        let (inside, stop) = (Arc::clone(self), self.stopped.clone().drop_guard());
        let work = tokio::task::spawn_blocking(move || {
            inside.tick();
            let store = inside.guest.has_tools().then_some(inside.as_ref() as &dyn Store);
            part(&Machine { facts: &inside.windows, deeds: inside.as_ref(), store })
        });
        let done = work.await;
        stop.disarm();
        match done {
            Ok(done) => Some(done),
            // A fault of the program is no crash of the machine.
            Err(fault) if fault.is_panic() => std::panic::resume_unwind(fault.into_panic()),
            Err(_cancelled) => None,
        }
    }

    /// Refuses a deed in a machine that is off.
    fn alive(&self, what: &str) -> Done<()> {
        let failed = || Failed { what: what.to_owned(), why: "the machine is off".to_owned() };
        if self.stopped.is_cancelled() { Err(failed()) } else { Ok(()) }
    }

    /// What Windows wrote on its second disk is on the disk.
    fn flush(&self, path: &str, act: impl FnOnce(&mut [u8], &str) -> std::io::Result<()>) -> Done<()> {
        let Some(inner) = path.strip_prefix(ROOT).map(|p| p.replace('\\', "/")) else { return Ok(()) };
        let failed = |why: String| Failed { what: format!("write {path}"), why };
        let mut disk = lock(&self.disk);
        let bytes = disk.as_mut().ok_or_else(|| failed("the volume is gone".to_owned()))?;
        let before = bytes.clone();
        act(bytes, &inner).map_err(|e| failed(e.to_string()))?;
        for (n, (old, new)) in before.chunks(PIECE).zip(bytes.chunks(PIECE)).enumerate() {
            if old != new {
                let at = (n * PIECE) as u64;
                self.guest.write_disk(DEVICE, at, new).map_err(|e| failed(e.to_string()))?;
            }
        }
        Ok(())
    }
}

impl Deeds for Inside {
    fn run(&self, job: &Job) -> Done<Ended> {
        let what = "run a program";
        self.alive(what)?;
        let taken = self.guest.stage("program", PROGRAM);
        self.handle.block_on(self.stopped.run_until_cancelled(taken)).unwrap_or_default();
        self.tick();
        self.act(what, |windows| windows.run(job))
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Done<()> {
        self.act("write a file", |windows| Deeds::write(windows, path, bytes))?;
        self.flush(path, |disk, inner| edit::put(disk, inner, bytes))
    }

    fn remove(&self, path: &str) -> Done<()> {
        self.act("remove a file", |windows| Deeds::remove(windows, path))?;
        self.flush(path, edit::remove)
    }

    fn rearm(&self) -> Done<()> {
        self.act("rearm Windows", Windows::rearm)
    }

    fn remove_card(&self, id: &str) -> Done<()> {
        self.act("remove a network card", |windows| windows.remove_card(id))
    }

    fn power_off(&self, after: Duration) -> Done<()> {
        self.act("turn the machine off", |windows| windows.power_off(after))
    }

    fn stay_on(&self) -> Done<()> {
        self.act("keep the machine on", Windows::stay_on)
    }

    fn reboot(&self) -> Done<()> {
        self.act("reboot", Windows::reboot)
    }

    fn wait(&self, time: Duration) {
        self.windows.wait(time);
        self.tick();
        self.save();
    }
}

impl Store for Inside {
    fn read(&self, path: &str) -> Result<Option<String>, StoreError> {
        Ok(match path {
            "domid" => Some(self.guest.domid().to_string()),
            _any_other => self.guest.read(path),
        })
    }

    fn write(&self, path: &str, value: &str) -> Result<(), StoreError> {
        let keys = BTreeMap::from([(path.to_owned(), value.to_owned())]);
        let written = self.handle.block_on(self.guest.write(&keys));
        written.map_err(|e| StoreError { what: format!("write {path}"), why: e.to_string() })
    }

    fn remove(&self, path: &str) -> Result<(), StoreError> {
        let removed = self.guest.remove(&[path.to_owned()]);
        removed.map_err(|e| StoreError { what: format!("remove {path}"), why: e.to_string() })
    }
}

/// Seconds since 1970 by the machine's clock.
fn now(guest: &Guest) -> u64 {
    let shown = wire::parse_time(&guest.now()).map(|t| t.as_second());
    shown.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
