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

/// Where Windows mounts the second disk.
const ROOT: &str = r"E:\";
/// Its device on the machine.
const DEVICE: u64 = 1;
/// As much of a changed disk is written at once.
const PIECE: usize = 64 << 10;

/// What an installer does to Windows and how it ends.
pub type Installers = Arc<dyn Fn(&mut State, &Deed) -> Reply + Send + Sync>;

/// The systems of all machines of a program, by the machine's uuid.
#[derive(Clone, Default)]
pub struct Systems(Arc<Mutex<HashMap<String, State>>>);

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
}

impl Systems {
    fn of(&self, vm: &str) -> Option<State> {
        lock(&self.0).get(vm).cloned()
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
        let disk = mount(guest, &windows);
        Arc::new(Inside {
            guest: guest.clone(),
            windows,
            disk: Mutex::new(disk),
            handle,
            stopped,
            systems: self.clone(),
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
    }

    /// Runs a part of the guest's program. `None`: the machine was stopped from outside meanwhile.
    pub async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        part: impl FnOnce(&Machine<'_>) -> T + Send + 'static,
    ) -> Option<T> {
        let (inside, stop) = (Arc::clone(self), self.stopped.clone().drop_guard());
        let work = tokio::task::spawn_blocking(move || {
            let store = inside.guest.has_tools().then_some(inside.as_ref() as &dyn Store);
            let done = part(&Machine { facts: &inside.windows, deeds: inside.as_ref(), store });
            lock(&inside.systems.0).insert(inside.guest.vm.clone(), inside.windows.snapshot());
            done
        });
        let done = work.await.ok();
        stop.disarm();
        done
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
        self.alive("run a program")?;
        self.windows.run(job)
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Done<()> {
        self.alive("write a file")?;
        Deeds::write(&self.windows, path, bytes)?;
        self.flush(path, |disk, inner| edit::put(disk, inner, bytes))
    }

    fn remove(&self, path: &str) -> Done<()> {
        self.alive("remove a file")?;
        Deeds::remove(&self.windows, path)?;
        self.flush(path, edit::remove)
    }

    fn rearm(&self) -> Done<()> {
        self.alive("rearm Windows")?;
        self.windows.rearm()
    }

    fn remove_card(&self, id: &str) -> Done<()> {
        self.alive("remove a network card")?;
        self.windows.remove_card(id)
    }

    fn power_off(&self) -> Done<()> {
        self.alive("turn the machine off")?;
        self.windows.power_off()
    }

    fn reboot(&self) -> Done<()> {
        self.alive("reboot")?;
        self.windows.reboot()
    }

    fn wait(&self, time: Duration) {
        self.windows.wait(time);
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
