//! What the pool holds beside the database, and the world it begins with.
//!
//! Made once by `build`; the rooms of the world find bytes, queues, domains and guests here.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::{
    Pool,
    disk::Disks,
    domain::Domains,
    guest::{self, Guests},
    plugin,
    queue::Queues,
    restart::Redos,
};
use crate::xapi::wire::Ref;

#[derive(Default)]
pub struct World {
    disks: Mutex<Disks>,
    pub queues: Queues,
    pub redos: Redos,
    pub domains: Domains,
    pub guests: Guests,
    pub plugins: plugin::Calls,
    after_halt: Mutex<AfterHalt>,
    /// Sizes of repositories, which outlive their rows.
    pub(super) sizes: BTreeMap<String, u64>,
    end: CancellationToken,
}

/// Disks that storage still holds for a while after their machine halted (xapi.md 9.2).
#[derive(Default)]
struct AfterHalt {
    lasting: Duration,
    until: BTreeMap<String, Instant>,
}

impl World {
    /// The bytes. Never keep the guard across an await, nor take the database's lock under it.
    pub fn disks(&self) -> MutexGuard<'_, Disks> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs something that belongs to the world and not to the daemon: it ends with the world, or by its handle.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> Option<AbortHandle> {
        let end = self.end.clone();
        let running = tokio::spawn(async move { end.run_until_cancelled_owned(work).await.unwrap_or_default() });
        (!self.end.is_cancelled()).then(|| running.abort_handle())
    }

    /// Ends everything that runs in the world.
    pub fn stop(&self) {
        self.end.cancel();
        self.domains.clear();
    }

    pub fn size_of(&self, sr: &str) -> u64 {
        self.sizes.get(sr).copied().unwrap_or_default()
    }

    fn after_halt(&self) -> MutexGuard<'_, AfterHalt> {
        self.after_halt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on disks stay in use so long after a halt; zero at first.
    pub fn set_linger(&self, lasting: Duration) {
        self.after_halt().lasting = lasting;
    }

    /// A machine halted: its disks are held a little longer.
    pub fn linger(&self, pool: &Pool, vm: &str) {
        let lasting = pool.clock.scaled(self.after_halt().lasting);
        let disks: Vec<String> = {
            let db = pool.db();
            let vbds = db.by_uuid("VM", vm).and_then(|vm| db.links("VM", &vm, "VBDs")).unwrap_or_default();
            let vdis = vbds.iter().filter_map(|vbd| db.link_to("VBD", vbd, "VDI").ok());
            vdis.filter_map(|vdi| db.text("VDI", &vdi, "uuid").ok().map(str::to_owned)).collect()
        };
        let until = Instant::now() + lasting;
        self.after_halt().until.extend(disks.into_iter().map(|disk| (disk, until)));
    }

    pub fn lingers(&self, disk: &str) -> bool {
        self.after_halt().until.get(disk).is_some_and(|until| Instant::now() < *until)
    }
}

/// What a test or the control endpoint may do to the world behind everybody's back.
impl Pool {
    /// The content of a disk by its uuid, as [`Disks::digest`]; none where storage has no such disk.
    pub fn digest(&self, vdi: &str) -> Option<String> {
        self.world.disks().digest(vdi).ok()
    }

    /// Which machines run a program; see [`guest::Guests::add`].
    pub fn add_guest(&self, which: guest::Match, program: guest::Program) {
        self.world.guests.add(which, program);
    }

    /// A VBD of the control domain that an export left behind (xapi.md 6.2). Returns it.
    pub fn leak_vbd(self: &Arc<Self>, vdi: &Ref) -> Ref {
        let mut db = self.db();
        let master = db.all("pool").next().map(|(pool, _)| pool.clone()).unwrap_or_default();
        let master = db.link_to("pool", &master, "master").unwrap_or_default();
        super::vbd::attach_to_dom0(&mut db, &master, vdi, "RO")
    }
}
