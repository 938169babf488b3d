//! Death and return of the daemon, and a change of coordinator: what the pool forgets, and what runs a second time (xapi.md 14,
//! Durability and Replay).
//!
//! Driven by tests and by the control endpoint; `vdi` notes here which storage calls the drivers have at hand.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};

use super::{Pool, disk::Node, ha, reflect::reflect, row, sr};
use crate::xapi::wire::{Failure, Ref};

/// The stock configuration writes the database so often (xapi.md 14).
const WRITE_EVERY: Duration = Duration::from_secs(300);
/// A new daemon runs left-over storage calls so long after its start.
const REDO_AFTER: Duration = Duration::from_millis(200);

/// What a storage driver was told to do.
#[derive(Clone, Debug)]
pub enum What {
    Create { node: Node, name: String },
    Branch { source: String, snapshot: bool },
    Destroy { uuid: String },
    Resize { uuid: String, size: u64 },
}

#[derive(Default)]
struct Noted {
    next: u64,
    /// What is at hand, and whether the driver has done it already.
    at_hand: BTreeMap<u64, (What, bool)>,
    /// The daemon is being killed: its calls are dropped, and what they had at hand stays.
    dying: bool,
    leave_paused: bool,
}

/// The storage calls at hand.
#[derive(Clone, Default)]
pub struct Redos(Arc<Mutex<Noted>>);

/// One storage call; dropped while the daemon dies it stays noted.
pub struct Redo {
    all: Redos,
    id: u64,
}

impl Redos {
    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn note(&self) -> Redo {
        let mut all = self.lock();
        all.next += 1;
        Redo { all: self.clone(), id: all.next }
    }

    /// At the next restart the source of a clone or snapshot at hand stays `sm_config.paused` (xapi.md 14, Replay).
    pub fn leave_paused(&self) {
        self.lock().leave_paused = true;
    }
}

impl Redo {
    /// The driver begins.
    pub fn arm(&self, what: What) {
        self.all.lock().at_hand.insert(self.id, (what, false));
    }

    /// The driver has changed the storage.
    pub fn made(&self) {
        if let Some((_, made)) = self.all.lock().at_hand.get_mut(&self.id) {
            *made = true;
        }
    }
}

impl Drop for Redo {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if !all.dying {
            all.at_hand.remove(&self.id);
        }
    }
}

/// Kills the daemon and starts a new one. A clean stop writes the database out first; an unclean one forgets what was not written.
/// Machines run on.
pub async fn restart(pool: &Arc<Pool>, clean: bool) {
    stop(pool, clean).await;
    start(pool);
}

/// Kills the daemon: until [`start`] every connection closes at once.
pub async fn stop(pool: &Arc<Pool>, clean: bool) {
    pool.world.redos.lock().dying = true;
    pool.stop().await;
    pool.world.queues.reset();
    let mut db = pool.db();
    if clean {
        db.flush();
    }
    db.reload();
}

/// Starts the daemon again.
pub fn start(pool: &Arc<Pool>) {
    let (left, paused) = {
        let mut noted = pool.world.redos.lock();
        noted.dying = false;
        (std::mem::take(&mut noted.at_hand), std::mem::take(&mut noted.leave_paused))
    };
    clear_operations(pool);
    if paused {
        left.values().for_each(|(what, _)| pause(pool, what));
    }
    stamp_hosts(pool);
    awake(pool);
    pool.resume();
    ha::look(pool);
    pool.spawn(keep_written(Arc::clone(pool)));
    let inner = Arc::clone(pool);
    pool.spawn(async move {
        for (what, made) in left.into_values() {
            inner.clock.stage("daemon/redo", REDO_AFTER).await;
            let _turn = match repository(&inner, &what) {
                Some(sr) => Some(inner.world.queues.acquire(&sr).await),
                None => None,
            };
            // A call that fails the second time fails unheard: its task is gone.
            redo(&inner, &what, made).unwrap_or_default();
        }
    });
}

/// Whose queue a call waits in, also when it is run again.
fn repository(pool: &Pool, what: &What) -> Option<Ref> {
    let db = pool.db();
    match what {
        What::Create { node, .. } => db.by_uuid("SR", &node.sr).ok(),
        What::Branch { source: uuid, .. } | What::Destroy { uuid } | What::Resize { uuid, .. } => {
            db.by_uuid("VDI", uuid).and_then(|vdi| db.link_to("VDI", &vdi, "SR")).ok()
        }
    }
}

/// Machines are as their domains are, whatever the database remembers; a domain that it does not remember ends.
fn awake(pool: &Arc<Pool>) {
    let machines: Vec<String> = {
        let db = pool.db();
        let ordinary =
            db.all("VM").filter(|(_, row)| row.get("is_control_domain").and_then(Value::as_bool) != Some(true));
        ordinary.filter_map(|(_, row)| row.get("uuid")?.as_str().map(str::to_owned)).collect()
    };
    for vm in pool.world.domains.running().iter().filter(|vm| !machines.contains(vm)) {
        pool.world.domains.end(vm, None);
    }
    machines.iter().for_each(|vm| reflect(pool, vm));
}

fn clear_operations(pool: &Pool) {
    let mut db = pool.db();
    for class in ["VM", "VDI", "SR", "VBD"] {
        let all: Vec<Ref> = db.all(class).map(|(r, _)| r.clone()).collect();
        all.iter().for_each(|r| db.set(class, r, "current_operations", json!({})).unwrap_or_default());
    }
}

/// `agent_start_time` moves at every start (xapi.md 14).
pub fn stamp_hosts(pool: &Pool) {
    let seconds = pool.clock.now().as_duration().as_secs_f64();
    let mut db = pool.db();
    let master = db.all("pool").next().and_then(|(_, row)| row.get("master")?.as_str().map(|r| Ref(r.to_owned())));
    let Some(master) = master else { return };
    let change = db.update("host", &master, |row| {
        if let Some(keys) = row.get_mut("other_config").and_then(Value::as_object_mut) {
            keys.insert("agent_start_time".to_owned(), json!(format!("{seconds:.6}")));
        }
    });
    change.unwrap_or_default();
}

/// The database is written out every five minutes, for as long as the daemon lives.
pub async fn keep_written(pool: Arc<Pool>) {
    loop {
        pool.clock.sleep(WRITE_EVERY).await;
        pool.db().flush();
    }
}

fn pause(pool: &Pool, what: &What) {
    let What::Branch { source, .. } = what else { return };
    let Ok(row) = pool.db().by_uuid("VDI", source) else { return };
    row::configure(pool, &row, "paused", Some("true"));
}

/// The driver's part of a call, once more. A clone that the old daemon had not come to yet is made by its surviving driver too: one clone
/// leaves two rows (xapi.md 14, Replay).
fn redo(pool: &Pool, what: &What, made: bool) -> Result<(), Failure> {
    match what {
        What::Branch { source, snapshot } => {
            if !made {
                sr::redo_branch(pool, source, *snapshot, false)?;
            }
            sr::redo_branch(pool, source, *snapshot, true)
        }
        What::Create { node, name } => {
            let repository = pool.db().by_uuid("SR", &node.sr)?;
            for _ in 0..if made { 1 } else { 2 } {
                let uuid = pool.world.disks().create(node.clone());
                let row = row::add_row(pool, &repository, &uuid);
                row::set(pool, &row, [("name_label", json!(name))]);
            }
            Ok(())
        }
        What::Destroy { uuid } => sr::redo_destroy(pool, uuid),
        What::Resize { uuid, size } => {
            pool.world.disks().get_mut(uuid).map_err(|e| super::storage::backend(&e))?.virtual_size = *size;
            let row = pool.db().by_uuid("VDI", uuid)?;
            sr::refresh(pool, &row, uuid);
            Ok(())
        }
    }
}

/// Another host becomes coordinator: the address changes, sessions and tasks die with the old daemon (xapi.md 2.2, 9.2).
///
/// # Errors
/// `UUID_INVALID ["host", uuid]`.
pub async fn change_coordinator(pool: &Arc<Pool>, host: &str) -> Result<(), Failure> {
    let host = pool.db().by_uuid("host", host)?;
    stop(pool, true).await;
    {
        let mut db = pool.db();
        let all: Vec<Ref> = db.all("pool").map(|(r, _)| r.clone()).collect();
        for row in all {
            db.set("pool", &row, "master", json!(host))?;
        }
        db.flush();
    }
    start(pool);
    Ok(())
}
