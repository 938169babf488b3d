//! The fresh look at a pool before anything is created, started or destroyed.
//!
//! Called by `layer`. The mirror decides when to wake; this decides whether to act.

use super::pool::Pool;
use crate::api::PlatformLayer;
use crate::domain::identity::{MAKING, SELF, TASK_TAG};
use crate::xapi::error::Error;
use crate::xapi::model::{Class, TaskStatus, Vdi, Vm, VmMetrics};
use crate::xapi::view::View;
use crate::xapi::wire::{Ref, task_result};

/// The pool as it is now. What the layer records and the view does not show is asked for by its uuid besides: only the pool's own
/// `UUID_INVALID` calls it gone.
pub async fn look_at(pool: &Pool, layer: &PlatformLayer) -> Result<View, Error> {
    let mut view = pool.mirror.now().await?;
    let Some(status) = &layer.status else { return Ok(view) };
    // XAPI chooses what it tells of under a lock and reads the records after it: a task may be told at its end, and the child that came
    // before that end not be told yet. What is asked for after it was seen to end has both.
    if status.operation.as_ref().and_then(|o| o.opid.as_deref()).is_some_and(|opid| is_childless(&view, opid)) {
        view = pool.mirror.now().await?;
    }
    let disks = status.disk.iter().map(|d| &d.uuid).chain(status.config_disk.iter().map(|d| &d.uuid));
    let disks = disks.chain(status.versions.iter().map(|v| &v.disk));
    for uuid in disks.filter(|uuid| view.vdis.by_uuid(uuid).is_none()) {
        gone::<Vdi>(pool, uuid).await?;
    }
    if let Some(machine) = &status.machine {
        match view.vms.by_uuid(&machine.uuid) {
            None => gone::<Vm>(pool, &machine.uuid).await?,
            // Without it nobody knows whether the machine ran.
            Some((_, vm)) if view.vm_metrics.get(&vm.metrics).is_none() => {
                return Err(Error::Unreadable { class: VmMetrics::NAME, reference: vm.metrics.clone() });
            }
            Some(_) => {}
        }
    }
    Ok(view)
}

/// Did a task of this operation succeed whose result is not in the view, or not with what it inherits?
fn is_childless(view: &View, opid: &str) -> bool {
    let ended = view.tasks.with(TASK_TAG, opid).filter(|(_, task)| task.status == TaskStatus::Success);
    let mut children = ended.map(|(_, task)| Ref(task_result(&task.result))).filter(|child| !child.is_null());
    let whole = |d: &Vdi| d.other_config.contains_key(MAKING) || d.other_config.contains_key(SELF);
    children.any(|child| !view.vdis.get(&child).is_some_and(|d| whole(d)) && view.vms.get(&child).is_none())
}

async fn gone<T: Class>(pool: &Pool, uuid: &str) -> Result<(), Error> {
    match pool.client.read().get_by_uuid::<T>(uuid).await {
        Err(error) if error.is_gone() => Ok(()),
        Err(error) => Err(error),
        // Came back this moment: its event is on the way.
        Ok(reference) => Err(Error::Unreadable { class: T::NAME, reference }),
    }
}

/// Why no host can start a machine, a line a host; `None`: one can. `VM.start` alone would only say that none could.
pub async fn cannot_boot(pool: &Pool, view: &View, vm: &Ref) -> Result<Option<String>, Error> {
    let mut why = Vec::new();
    for (host, record) in view.hosts.iter().filter(|(_, h)| h.enabled) {
        match pool.client.read().vm_assert_can_boot_here(vm, host).await {
            Ok(()) => return Ok(None),
            Err(Error::Api(failure)) => why.push(format!("{}: {}", record.name_label, failure.code)),
            Err(other) => return Err(other),
        }
    }
    // Hosts come in no order, and status must not change without a change in the world.
    why.sort();
    Ok(Some(if why.is_empty() { "every host is disabled".to_owned() } else { why.join("; ") }))
}
