//! The hypervisor's side of the pool: domains and their xenstore.
//!
//! Domains live on while the daemon is down (xapi.md 14, Durability). `power` makes and ends them, `guest` runs in them, and `reflect` tells
//! the database. It knows no rows.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;
use tokio::{sync::watch, task::AbortHandle};

/// One message of xenstore (xapi.md 7.1).
const LONGEST: usize = 4096;
/// What a guest may keep in its tree (xapi.md 7.1).
const QUOTA: usize = 25 << 20;
/// Where a guest may write (xapi.md 7.1).
const WRITABLE: [&str; 11] =
    ["feature", "error", "drivers", "control", "attr", "xenserver", "data", "messages", "vm-data", "device", "rrd"];

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    #[error("the domain is gone")]
    Gone,
    #[error("the guest may not write {0}")]
    Denied(String),
    #[error("{0} is too long, or the domain's store is full")]
    Quota(String),
}

/// What somebody outside asks of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Halt,
    Reboot,
}

/// A disk that is plugged into a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// uuid.
    pub disk: String,
    pub writable: bool,
}

/// A running (or paused) machine. Named by the machine's uuid: references are the daemon's.
pub struct Domain {
    /// Each host counts its own.
    pub domid: i64,
    /// The number of this boot, of all of the pool's. A resumed machine has another domain, and is in the same boot.
    pub born: i64,
    /// Not the domain that the boot began in.
    pub moved: bool,
    /// uuid.
    pub host: String,
    /// As XAPI writes times.
    pub started: String,
    pub paused: bool,
    pub store: BTreeMap<String, String>,
    /// The host wrote `vm-data` anew: read-only to the guest until the next boot (xapi.md 7.4).
    pub locked: bool,
    /// Nobody inside listens to requests.
    pub deaf: bool,
    /// Someone inside acknowledged the request.
    pub heard: bool,
    pub request: watch::Sender<Option<Request>>,
    /// The guest wrote below `vm-data` in this boot.
    pub wrote: bool,
    /// By number (`userdevice`).
    pub devices: BTreeMap<u64, Device>,
    guest: Option<AbortHandle>,
}

#[derive(Default)]
struct All {
    /// By host.
    last: BTreeMap<String, i64>,
    boots: i64,
    running: BTreeMap<String, Domain>,
    /// Suspended: no domain, and a guest that stands still.
    asleep: BTreeMap<String, Domain>,
}

/// The number of the host's next domain.
fn next(last: &mut BTreeMap<String, i64>, host: &str) -> i64 {
    let last = last.entry(host.to_owned()).or_default();
    *last += 1;
    *last
}

/// What the hypervisor says of a machine.
pub enum Seen {
    Up { domid: i64, moved: bool, host: String, started: String, paused: bool },
    Asleep,
    Off,
}

/// Every domain of the pool.
pub struct Domains {
    all: Mutex<All>,
    changed: watch::Sender<u64>,
}

impl Default for Domains {
    fn default() -> Self {
        Self { all: Mutex::default(), changed: watch::channel(0).0 }
    }
}

impl Domains {
    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a domain in place of the machine's old one, if any. Returns its number.
    pub fn make(&self, vm: &str, host: &str, started: String, vm_data: &Value, paused: bool) -> i64 {
        let mut all = self.lock();
        let domid = next(&mut all.last, host);
        all.boots += 1;
        let domain = Domain {
            domid,
            born: all.boots,
            moved: false,
            host: host.to_owned(),
            started,
            paused,
            store: guest_keys(vm_data),
            locked: false,
            deaf: false,
            heard: false,
            request: watch::channel(None).0,
            wrote: false,
            devices: BTreeMap::new(),
            guest: None,
        };
        let before = [all.running.insert(vm.to_owned(), domain), all.asleep.remove(vm)];
        before.into_iter().flatten().filter_map(|d| d.guest).for_each(|guest| guest.abort());
        drop(all);
        self.changed.send_modify(|n| *n += 1);
        domid
    }

    /// Who runs in a domain; it ends with it.
    pub fn inhabit(&self, vm: &str, guest: AbortHandle) {
        match self.lock().running.get_mut(vm) {
            Some(domain) => domain.guest = Some(guest),
            None => guest.abort(),
        }
    }

    /// Takes a machine's domain away; its guest stands still until [`Domains::wake`]. False if it has none.
    pub fn sleep(&self, vm: &str) -> bool {
        let mut all = self.lock();
        let gone = all.running.remove(vm);
        let found = gone.is_some();
        all.asleep.extend(gone.map(|domain| (vm.to_owned(), domain)));
        drop(all);
        self.changed.send_modify(|n| *n += 1);
        found
    }

    /// A new domain for a sleeping machine, in the same boot; `vm_data` is what the database kept of its tree. False if it does not sleep.
    pub fn wake(&self, vm: &str, host: &str, vm_data: &Value, paused: bool) -> bool {
        let mut all = self.lock();
        let Some(mut domain) = all.asleep.remove(vm) else { return false };
        domain.domid = next(&mut all.last, host);
        domain.moved = true;
        domain.paused = paused;
        host.clone_into(&mut domain.host);
        domain.store.retain(|key, _| !key.starts_with("vm-data/"));
        domain.store.extend(guest_keys(vm_data));
        domain.locked = false;
        all.running.insert(vm.to_owned(), domain);
        drop(all);
        self.changed.send_modify(|n| *n += 1);
        true
    }

    /// The same boot in a new domain on another host.
    pub fn migrate(&self, vm: &str, host: &str) {
        let mut all = self.lock();
        let All { last, running, .. } = &mut *all;
        if let Some(domain) = running.get_mut(vm) {
            (domain.domid, domain.moved) = (next(last, host), true);
            host.clone_into(&mut domain.host);
        }
        drop(all);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Throws a sleeping machine's guest away.
    pub fn forget(&self, vm: &str) {
        if let Some(Domain { guest: Some(guest), .. }) = self.lock().asleep.remove(vm) {
            guest.abort();
        }
    }

    pub fn seen(&self, vm: &str) -> Seen {
        let all = self.lock();
        match all.running.get(vm) {
            Some(d) => {
                let (host, started) = (d.host.clone(), d.started.clone());
                Seen::Up { domid: d.domid, moved: d.moved, host, started, paused: d.paused }
            }
            None if all.asleep.contains_key(vm) => Seen::Asleep,
            None => Seen::Off,
        }
    }

    /// Ends a domain, if it is still the one with that number. What the guest wrote last and nobody read is lost (xapi.md 7.4).
    pub fn end(&self, vm: &str, domid: Option<i64>) -> bool {
        let mut all = self.lock();
        if domid.is_some() && all.running.get(vm).map(|d| d.domid) != domid {
            return false;
        }
        let gone = all.running.remove(vm);
        drop(all);
        self.changed.send_modify(|n| *n += 1);
        if let Some(Domain { guest: Some(guest), .. }) = &gone {
            guest.abort();
        }
        gone.is_some()
    }

    /// Looks at, or changes, a domain.
    pub fn with<T>(&self, vm: &str, act: impl FnOnce(&mut Domain) -> T) -> Option<T> {
        let found = self.lock().running.get_mut(vm).map(act);
        self.changed.send_modify(|n| *n += 1);
        found
    }

    pub fn domid(&self, vm: &str) -> Option<i64> {
        self.lock().running.get(vm).map(|d| d.domid)
    }

    /// The number of a machine's boot, see [`Domain::born`].
    pub fn born(&self, vm: &str) -> Option<i64> {
        self.lock().running.get(vm).map(|d| d.born)
    }

    /// The disks of a machine's domain.
    pub fn devices(&self, vm: &str) -> BTreeMap<u64, Device> {
        self.lock().running.get(vm).map(|d| d.devices.clone()).unwrap_or_default()
    }

    /// Machines that have a domain.
    pub fn running(&self) -> Vec<String> {
        self.lock().running.keys().cloned().collect()
    }

    /// Waits until something holds of a machine's domain (`None`: it has none). Never returns if it never does.
    pub async fn until(&self, vm: &str, holds: impl Fn(Option<&Domain>) -> bool) {
        let mut changed = self.changed.subscribe();
        while !holds(self.lock().running.get(vm)) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// A guest writes into its store; several keys at once are one transaction. An empty value is a value.
    pub fn write(&self, vm: &str, born: i64, keys: &BTreeMap<String, String>) -> Result<(), StoreError> {
        self.change(vm, born, keys.iter().map(|(k, v)| (k.as_str(), Some(v.as_str()))))
    }

    /// A guest removes keys, and all below them.
    pub fn remove(&self, vm: &str, born: i64, keys: &[String]) -> Result<(), StoreError> {
        self.change(vm, born, keys.iter().map(|k| (k.as_str(), None)))
    }

    fn change<'a>(
        &self,
        vm: &str,
        born: i64,
        keys: impl Iterator<Item = (&'a str, Option<&'a str>)>,
    ) -> Result<(), StoreError> {
        let mut all = self.lock();
        let domain = all.running.get_mut(vm).filter(|d| d.born == born).ok_or(StoreError::Gone)?;
        let mut next = domain.store.clone();
        for (key, value) in keys {
            let top = key.split('/').next().unwrap_or_default();
            if !WRITABLE.contains(&top) || (top == "vm-data" && domain.locked) {
                return Err(StoreError::Denied(key.to_owned()));
            }
            domain.wrote |= top == "vm-data";
            match value {
                Some(value) if value.len() + key.len() > LONGEST => return Err(StoreError::Quota(key.to_owned())),
                Some(value) => drop(next.insert(key.to_owned(), value.to_owned())),
                None => {
                    let below = format!("{key}/");
                    next.retain(|k, _| k != key && !k.starts_with(&below));
                }
            }
        }
        if next.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() > QUOTA {
            return Err(StoreError::Quota(vm.to_owned()));
        }
        domain.store = next;
        Ok(())
    }

    pub fn read(&self, vm: &str, born: i64) -> BTreeMap<String, String> {
        let all = self.lock();
        all.running.get(vm).filter(|d| d.born == born).map(|d| d.store.clone()).unwrap_or_default()
    }

    /// A client wrote the map of a running machine: the host deletes `vm-data` and writes it anew as its own (xapi.md 7.4).
    pub fn overwrite_vm_data(&self, vm: &str, map: &Value) {
        if let Some(domain) = self.lock().running.get_mut(vm) {
            domain.store.retain(|key, _| !key.starts_with("vm-data/"));
            domain.store.extend(guest_keys(map));
            domain.locked = true;
        }
    }

    /// The world ends.
    pub fn clear(&self) {
        let mut all = self.lock();
        let (running, asleep) = (std::mem::take(&mut all.running), std::mem::take(&mut all.asleep));
        drop(all);
        running.into_values().chain(asleep.into_values()).filter_map(|d| d.guest).for_each(|guest| guest.abort());
    }
}

/// The part of `VM.xenstore_data` that goes into a domain (xapi.md 7.4).
fn guest_keys(map: &Value) -> BTreeMap<String, String> {
    let entries = map.as_object().into_iter().flatten();
    let seen = entries.filter(|(k, _)| ["vm-data/", "FIST/"].iter().any(|p| k.starts_with(p)));
    seen.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect()
}
