//! From what changed in a pool to who must look: the layers concerned, and the Connector.
//!
//! Pure; called by `connector` for each batch of the mirror. A wake too many costs one look at the mirror, a wake too few a wait until the
//! slow pace: in doubt it wakes. What happens all the time (a repository's operations, its free space, everybody's tasks) wakes only those who
//! wait for that: it would wake hundreds of layers twenty times a second, and those whose turn it is would wait among them.

use std::collections::HashSet;
use std::sync::Arc;

use kube::ResourceExt;

use super::slots;
use crate::api::condition::{ConditionType, find};
use crate::api::reason::Reason;
use crate::api::{Phase, PlatformLayer};
use crate::domain::identity::{Keys, LAYER, Mark, OP, OS, PREFIX};
use crate::xapi::mirror::{Change, Diff};
use crate::xapi::model::{Sr, Task, Vbd, Vdi, Vm};
use crate::xapi::view::View;
use crate::xapi::wire::Ref;

/// The uid of the layer that this process knows to be at an operation, by its id and by the reference of a task.
pub type Workers<'a> = &'a dyn Fn(&str, &Ref) -> Option<String>;

/// Whom a batch concerns.
#[derive(Debug, Default, PartialEq)]
pub struct Wakes {
    /// Every layer of the Connector.
    all: bool,
    /// What a storage repository is at, or has room for.
    storage: bool,
    /// uids of layers.
    layers: HashSet<String>,
    /// Ids of operations.
    operations: HashSet<String>,
    /// An operation that nobody is known to be at: a layer whose status names none may be.
    strange: bool,
    /// uuids and names of disks that are not ours: OS disks, perhaps.
    disks: HashSet<String>,
    /// The Connector itself.
    pub connector: bool,
}

impl Wakes {
    /// `view`: the pool after the changes.
    pub fn of(changes: &[Change], view: &View, workers: Workers<'_>) -> Self {
        let mut wakes = Self::default();
        changes.iter().for_each(|change| wakes.add(change, view, workers));
        wakes
    }

    /// Everybody: the pool came into sight, or went out of it.
    pub fn everybody() -> Self {
        Self { all: true, connector: true, ..Self::default() }
    }

    /// Must this layer of the Connector look?
    pub fn concern(&self, layer: &PlatformLayer) -> bool {
        if self.all || layer.uid().is_some_and(|uid| self.layers.contains(&uid)) {
            return true;
        }
        let status = layer.status.as_ref();
        let operation = status.and_then(|s| s.operation.as_ref());
        let id = operation.and_then(|o| o.opid.as_ref());
        if id.is_some_and(|id| self.operations.contains(id)) || self.storage && waits_for_quiet(layer) {
            return true;
        }
        let deleting = layer.metadata.deletion_timestamp.is_some();
        let at_rest = status.and_then(|s| s.phase) == Some(Phase::Finalized) && operation.is_none() && !deleting;
        // What others do changes nothing for a layer that is done, nor for one that waits for a slot: that wakes it when it comes free.
        // There may be thousands of the one and hundreds of the other, and each operation makes a dozen events.
        if at_rest || slots::waits(layer) {
            return false;
        }
        if self.strange && id.is_none() {
            return true;
        }
        // Who has its machine takes nothing of the OS disk any more, and hundreds of these may be running.
        if id.is_none() && !deleting && status.is_some_and(|s| s.machine.is_some()) {
            return false;
        }
        let disk = &layer.spec.os_layer.disk;
        let source = operation.and_then(|o| o.source.as_ref());
        [&disk.uuid, &disk.name].into_iter().flatten().chain(source).any(|disk| self.disks.contains(disk))
    }

    fn add(&mut self, change: &Change, view: &View, workers: Workers<'_>) {
        match change {
            Change::Relisted
            | Change::Pool(_)
            | Change::Host(_)
            | Change::Pbd(_)
            | Change::Sm(_)
            | Change::Network(_) => {
                self.all = true;
                self.connector = true;
            }
            Change::Sr(diff) => self.sr(diff),
            Change::Vdi(diff) => {
                self.connector |= came_or_went(diff);
                both(diff).for_each(|vdi| self.vdi(vdi, view));
            }
            Change::Vm(diff) => {
                self.connector |= came_or_went(diff);
                // A template that is being cloned shows an operation, which is nobody's business.
                let idle = |vm: &Arc<Vm>| Vm { current_operations: Keys::new(), ..Vm::clone(vm) };
                let changed = diff.old.as_ref().map(idle) != diff.new.as_ref().map(idle);
                both(diff).for_each(|vm| self.vm(vm, changed, view, workers));
            }
            Change::Vbd(diff) => both(diff).for_each(|vbd| self.vbd(vbd, view)),
            Change::Vif(diff) => both(diff).for_each(|vif| self.machine(&vif.vm, view)),
            Change::VmMetrics { vm, .. } | Change::GuestMetrics { vm, .. } => {
                if let Some(vm) = vm {
                    self.machine(vm, view);
                }
            }
            Change::Task(diff) => self.task(diff, view, workers),
        }
    }

    /// Each call makes a handful of these, and hundreds of layers rest without an intent: only where nobody else is found may it be theirs.
    fn task(&mut self, diff: &Diff<Task>, view: &View, workers: Workers<'_>) {
        let ended = |t: &Arc<Task>| !t.status.is_at_work();
        // Its end was told before it went.
        if diff.new.is_none() && diff.old.as_ref().is_some_and(ended) {
            return;
        }
        for tag in both(diff).filter_map(Task::op) {
            let (op, what) = tag.split_once('.').unwrap_or((tag, ""));
            // Steps without an intent (attach, insert, destroy) bear the id of what they are taken on.
            let disks = view.vdis.with(OP, op).filter_map(|(_, d)| d.other_config.get(LAYER));
            let machines = view.vms.with(OP, op).filter_map(|(_, m)| m.other_config.get(LAYER));
            let found: Vec<String> = disks.chain(machines).cloned().collect();
            self.operation(op, found.is_empty().then_some(&diff.reference), workers);
            self.layers.extend(found);
            // Others wait for its end, too.
            self.strange |= what == "scan";
            self.connector |= what == "scan";
        }
    }

    /// `unknown`: nothing in the pool says whose it is but, perhaps, this reference.
    fn operation(&mut self, op: &str, unknown: Option<&Ref>, workers: Workers<'_>) {
        self.operations.insert(op.to_owned());
        if let Some(reference) = unknown {
            let worker = workers(op, reference);
            self.strange |= worker.is_none();
            self.layers.extend(worker);
        }
    }

    fn sr(&mut self, diff: &Diff<Sr>) {
        let at_rest = |sr: &Arc<Sr>| Sr { current_operations: Keys::new(), physical_utilisation: 0, ..Sr::clone(sr) };
        self.connector = true;
        self.storage = true;
        self.all |= diff.old.as_ref().map(at_rest) != diff.new.as_ref().map(at_rest);
    }

    fn vdi(&mut self, vdi: &Vdi, view: &View) {
        // The Connector looks for strays and ISOs, and is told of both too often rather than too seldom.
        self.connector |= !self.owner(&vdi.other_config);
        if vdi.other_config.contains_key(LAYER) {
            return;
        }
        self.disks.extend([vdi.uuid.clone(), vdi.name_label.clone()]);
        // A base concerns whoever wants its OS disk.
        if let Some(os) = vdi.other_config.get(OS) {
            self.disks.insert(os.clone());
            self.disks.extend(view.vdis.by_uuid(os).map(|(_, os)| os.name_label.clone()));
        }
    }

    /// `changed`: more than the operations that it is at.
    fn vm(&mut self, vm: &Vm, changed: bool, view: &View, workers: Workers<'_>) {
        if let Some(op) = vm.name_label.strip_prefix("lamina-") {
            // Claimed, it keeps the name until it is set up.
            let unknown = (!vm.other_config.contains_key(LAYER)).then(Ref::null);
            self.operation(op, unknown.as_ref(), workers);
        }
        if self.owner(&vm.other_config) || vm.name_label.starts_with("lamina-") {
            return;
        }
        if vm.is_a_template && changed {
            self.connector = true;
            self.all = true;
        }
        // It may have one of our disks, or an OS disk, in its hands.
        for vbd in vm.vbds.iter().filter_map(|vbd| view.vbds.get(vbd)) {
            self.disk(&vbd.vdi, view);
        }
    }

    fn vbd(&mut self, vbd: &Vbd, view: &View) {
        self.disk(&vbd.vdi, view);
        self.machine(&vbd.vm, view);
    }

    /// Something about the machine changed, but not its record.
    fn machine(&mut self, vm: &Ref, view: &View) {
        let Some(vm) = view.vms.get(vm) else { return };
        let in_the_making = vm.name_label.starts_with("lamina-");
        if !self.owner(&vm.other_config) && vm.is_a_template && !in_the_making {
            self.connector = true;
            self.all = true;
        }
    }

    fn disk(&mut self, vdi: &Ref, view: &View) {
        if let Some(vdi) = view.vdis.get(vdi) {
            self.owner(&vdi.other_config);
            if !vdi.other_config.contains_key(LAYER) {
                self.disks.extend([vdi.uuid.clone(), vdi.name_label.clone()]);
            }
        }
    }

    /// Notes whom keys name. False: nobody.
    fn owner(&mut self, keys: &Keys) -> bool {
        self.layers.extend(keys.get(LAYER).cloned());
        if let Some(mark) = Mark::read(keys) {
            self.layers.extend(mark.layer().map(str::to_owned));
            self.operations.insert(mark.op);
        }
        keys.keys().any(|key| key.starts_with(PREFIX))
    }
}

/// Does it wait until storage is at nothing that may be its own?
fn waits_for_quiet(layer: &PlatformLayer) -> bool {
    let ready = layer.status.as_ref().and_then(|s| find(&s.conditions, ConditionType::Ready));
    ready.is_some_and(|c| c.reason == Reason::WaitingForInFlight.as_str())
}

/// The sweeper counts what is there.
fn came_or_went<T>(diff: &Diff<T>) -> bool {
    diff.old.is_none() || diff.new.is_none()
}

fn both<T>(diff: &Diff<T>) -> impl Iterator<Item = &T> {
    [&diff.old, &diff.new].into_iter().flatten().map(AsRef::as_ref)
}

#[cfg(test)]
#[path = "wakes_tests.rs"]
mod tests;
