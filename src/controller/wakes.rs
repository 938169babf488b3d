//! From what changed in a pool to who must look: the layers concerned, and the Connector.
//!
//! Pure; called by `connector` for each batch of the mirror. A wake too many costs one look at the mirror, a wake too few a wait until the
//! slow pace: in doubt it wakes. What happens in storage all the time (a repository's operations, its free space) wakes only those at work.

use std::collections::HashSet;
use std::sync::Arc;

use kube::ResourceExt;

use super::slots;
use crate::api::{Phase, PlatformLayer};
use crate::domain::identity::{Keys, LAYER, Mark, OS, PREFIX};
use crate::xapi::mirror::{Change, Diff};
use crate::xapi::model::{Sr, Vbd, Vdi, Vm};
use crate::xapi::view::View;
use crate::xapi::wire::Ref;

/// Whom a batch concerns.
#[derive(Debug, Default, PartialEq)]
pub struct Wakes {
    /// Every layer of the Connector.
    all: bool,
    /// Layers at an operation.
    working: bool,
    /// uids of layers.
    layers: HashSet<String>,
    /// Ids of operations.
    operations: HashSet<String>,
    /// uuids and names of disks that are not ours: OS disks, perhaps.
    disks: HashSet<String>,
    /// The Connector itself.
    pub connector: bool,
}

impl Wakes {
    /// `view`: the pool after the changes.
    pub fn of(changes: &[Change], view: &View) -> Self {
        let mut wakes = Self::default();
        changes.iter().for_each(|change| wakes.add(change, view));
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
        if self.working && operation.is_some() || id.is_some_and(|id| self.operations.contains(id)) {
            return true;
        }
        let at_rest = status.and_then(|s| s.phase) == Some(Phase::Finalized)
            && operation.is_none()
            && layer.metadata.deletion_timestamp.is_none();
        // What others do changes nothing for a layer that is done, nor for one that waits for a slot: that wakes it when it comes free.
        // There may be thousands of the one and hundreds of the other, and each operation makes a dozen events.
        if at_rest || slots::waits(layer) {
            return false;
        }
        // The tasks of steps without an intent (attach, insert, destroy) bear ids that no status names.
        if !self.operations.is_empty() && id.is_none() {
            return true;
        }
        let disk = &layer.spec.os_layer.disk;
        let source = operation.and_then(|o| o.source.as_ref());
        [&disk.uuid, &disk.name].into_iter().flatten().chain(source).any(|disk| self.disks.contains(disk))
    }

    fn add(&mut self, change: &Change, view: &View) {
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
                both(diff).for_each(|vm| self.vm(vm, changed, view));
            }
            Change::Vbd(diff) => both(diff).for_each(|vbd| self.vbd(vbd, view)),
            Change::Vif(diff) => both(diff).for_each(|vif| self.machine(&vif.vm, view)),
            Change::VmMetrics { vm, .. } | Change::GuestMetrics { vm, .. } => {
                if let Some(vm) = vm {
                    self.machine(vm, view);
                }
            }
            Change::Task(diff) => {
                let tags = both(diff).filter_map(|task| task.op());
                self.operations.extend(tags.filter_map(|tag| tag.split('.').next()).map(str::to_owned));
            }
        }
    }

    fn sr(&mut self, diff: &Diff<Sr>) {
        let at_rest = |sr: &Arc<Sr>| Sr { current_operations: Keys::new(), physical_utilisation: 0, ..Sr::clone(sr) };
        self.connector = true;
        self.working = true;
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
    fn vm(&mut self, vm: &Vm, changed: bool, view: &View) {
        if let Some(op) = vm.name_label.strip_prefix("lamina-") {
            self.operations.insert(op.to_owned());
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
            self.layers.insert(mark.owner);
            self.operations.insert(mark.op);
        }
        keys.keys().any(|key| key.starts_with(PREFIX))
    }
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
