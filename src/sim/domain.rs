//! The hypervisor's side of the pool: domains, their xenstore, and how a domain's truth reaches the database.
//!
//! Domains live on while the daemon is down (xapi.md 14, Durability). `power` makes and ends them, `guest` runs in them, `restart` brings
//! the rows back in line. Rows are only written here by [`reflect`] and [`publish`], from a domain's truth.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{sync::watch, task::AbortHandle};

use super::{Pool, schema::Record};
use crate::xapi::wire::Ref;

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

/// A running (or paused) machine. Named by the machine's uuid: references are the daemon's.
pub struct Domain {
    pub domid: i64,
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
    wrote: bool,
    guest: Option<AbortHandle>,
}

#[derive(Default)]
struct All {
    last: i64,
    running: BTreeMap<String, Domain>,
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
        all.last += 1;
        let domid = all.last;
        let domain = Domain {
            domid,
            host: host.to_owned(),
            started,
            paused,
            store: guest_keys(vm_data),
            locked: false,
            deaf: false,
            heard: false,
            request: watch::channel(None).0,
            wrote: false,
            guest: None,
        };
        if let Some(Domain { guest: Some(guest), .. }) = all.running.insert(vm.to_owned(), domain) {
            guest.abort();
        }
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
    pub fn write(&self, vm: &str, domid: i64, keys: &BTreeMap<String, String>) -> Result<(), StoreError> {
        self.change(vm, domid, keys.iter().map(|(k, v)| (k.as_str(), Some(v.as_str()))))
    }

    /// A guest removes keys, and all below them.
    pub fn remove(&self, vm: &str, domid: i64, keys: &[String]) -> Result<(), StoreError> {
        self.change(vm, domid, keys.iter().map(|k| (k.as_str(), None)))
    }

    fn change<'a>(
        &self,
        vm: &str,
        domid: i64,
        keys: impl Iterator<Item = (&'a str, Option<&'a str>)>,
    ) -> Result<(), StoreError> {
        let mut all = self.lock();
        let domain = all.running.get_mut(vm).filter(|d| d.domid == domid).ok_or(StoreError::Gone)?;
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

    pub fn read(&self, vm: &str, domid: i64) -> BTreeMap<String, String> {
        let all = self.lock();
        all.running.get(vm).filter(|d| d.domid == domid).map(|d| d.store.clone()).unwrap_or_default()
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
        let all = std::mem::take(&mut self.lock().running);
        all.into_values().filter_map(|d| d.guest).for_each(|guest| guest.abort());
    }
}

/// The part of `VM.xenstore_data` that goes into a domain (xapi.md 7.4).
fn guest_keys(map: &Value) -> BTreeMap<String, String> {
    let entries = map.as_object().into_iter().flatten();
    let seen = entries.filter(|(k, _)| ["vm-data/", "FIST/"].iter().any(|p| k.starts_with(p)));
    seen.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect()
}

/// Brings a machine's rows in line with its domain: state, place, devices, and at a new boot start_time and fresh guest metrics
/// (xapi.md 4.5, "Guest-driven power changes"). A machine that the database does not know is left alone.
pub fn reflect(pool: &Arc<Pool>, vm: &str) {
    let Ok(row) = pool.db().by_uuid("VM", vm) else { return };
    let truth = pool.world.domains.with(vm, |d| (d.domid, d.host.clone(), d.started.clone(), d.paused));
    let changed = match truth {
        Some((domid, host, started, paused)) => up(pool, &row, domid, &host, &started, paused),
        None => down(pool, &row),
    };
    // A row that went meanwhile needs nothing.
    changed.unwrap_or_default();
    publish(pool, vm);
    super::allowed::refresh(pool, "VM", &row);
}

type Done = Result<(), crate::xapi::wire::Failure>;

fn up(pool: &Pool, vm: &Ref, domid: i64, host: &str, started: &str, paused: bool) -> Done {
    let mut db = pool.db();
    let host = db.by_uuid("host", host)?;
    let booted = db.int("VM", vm, "domid")? != domid;
    let metrics = db.link_to("VM", vm, "metrics")?;
    if booted {
        let old = db.link_to("VM", vm, "guest_metrics")?;
        db.delete("VM_guest_metrics", &old);
        let fresh = [("last_updated", json!(started)), ("live", json!(true))];
        let fresh = db.create("VM_guest_metrics", fresh);
        db.set("VM", vm, "guest_metrics", json!(fresh))?;
        for console in db.links("VM", vm, "consoles")? {
            db.delete("console", &console);
        }
        let console = db.create("console", [("protocol", json!("rfb")), ("VM", json!(vm))]);
        let at = format!("https://{}/console?ref={console}", db.text("host", &host, "address")?);
        db.set("console", &console, "location", json!(at))?;
        if db.find("VM_metrics", &metrics).is_some() {
            db.set("VM_metrics", &metrics, "start_time", json!(started))?;
        }
        devices(&mut db, vm, true)?;
    }
    let state = if paused { "Paused" } else { "Running" };
    db.update("VM", vm, |row| {
        let fields = [("power_state", json!(state)), ("domid", json!(domid)), ("resident_on", json!(host))];
        row.extend(fields.map(|(k, v)| (k.to_owned(), v)));
    })
}

fn down(pool: &Pool, vm: &Ref) -> Done {
    let mut db = pool.db();
    if db.int("VM", vm, "domid")? < 0 && ["Halted", "Suspended"].contains(&db.text("VM", vm, "power_state")?) {
        return Ok(());
    }
    for console in db.links("VM", vm, "consoles")? {
        db.delete("console", &console);
    }
    devices(&mut db, vm, false)?;
    db.update("VM", vm, |row| {
        let fields = [("power_state", json!("Halted")), ("domid", json!(-1)), ("resident_on", json!(Ref::NULL))];
        row.extend(fields.map(|(k, v)| (k.to_owned(), v)));
    })
}

/// Everything there at the start of a domain is plugged, an empty drive too; what is made later is not (xapi.md 4.6).
fn devices(db: &mut super::db::Db, vm: &Ref, on: bool) -> Done {
    for vbd in db.links("VM", vm, "VBDs")? {
        let device =
            db.text("VBD", &vbd, "userdevice")?.parse::<u8>().map(|n| format!("xvd{}", char::from(b'a' + n.min(25))));
        db.update("VBD", &vbd, |row| {
            row.insert("currently_attached".to_owned(), json!(on));
            if on {
                row.insert("device".to_owned(), json!(device.unwrap_or_default()));
            }
        })?;
    }
    for vif in db.links("VM", vm, "VIFs")? {
        db.set("VIF", &vif, "currently_attached", json!(on))?;
    }
    Ok(())
}

/// What the host reads out of a domain's store, into `VM.xenstore_data` and the guest metrics (xapi.md 7.1, 7.2).
pub fn publish(pool: &Arc<Pool>, vm: &str) {
    let Some((store, wrote)) = pool.world.domains.with(vm, |d| (d.store.clone(), d.wrote)) else { return };
    let mut db = pool.db();
    let Ok(row) = db.by_uuid("VM", vm) else { return };
    if wrote {
        // What is in the store wins: the whole map is replaced, and other keys are dropped (xapi.md 7.4).
        let map: Record = below(&store, &["vm-data/", "FIST/"]).map(|(k, v)| (k.clone(), json!(v))).collect();
        db.set("VM", &row, "xenstore_data", Value::Object(map)).unwrap_or_default();
    }
    let metrics = db.link_to("VM", &row, "guest_metrics").unwrap_or_default();
    let fields = super::metrics::mapped(&store);
    let now = pool.clock.stamp();
    let same = db.find("VM_guest_metrics", &metrics).is_some_and(|m| fields.iter().all(|(k, v)| m.get(*k) == Some(v)));
    if !same {
        let change = db.update("VM_guest_metrics", &metrics, |m| {
            m.extend(fields.into_iter().map(|(k, v)| (k.to_owned(), v)));
            m.insert("last_updated".to_owned(), json!(now));
        });
        change.unwrap_or_default();
    }
    drop(db);
    super::allowed::refresh(pool, "VM", &row);
}

/// Keys that begin with one of the prefixes.
pub fn below<'a>(
    store: &'a BTreeMap<String, String>,
    prefixes: &'a [&'a str],
) -> impl Iterator<Item = (&'a String, &'a String)> {
    store.iter().filter(move |(k, _)| prefixes.iter().any(|p| k.starts_with(p)))
}

/// How long a written key is on its way to the database (xapi.md 7.1: usually under a second).
pub const ON_ITS_WAY: Duration = Duration::from_millis(200);
