//! The fresh look at a pool before anything is created, started or destroyed.
//!
//! Called by `layer`. The mirror decides when to wake; this decides whether to act.

use super::pool::Pool;
use crate::api::PlatformLayer;
use crate::xapi::error::Error;
use crate::xapi::model::{Class, Vdi, Vm};
use crate::xapi::view::View;
use crate::xapi::wire::Ref;

/// The pool as it is now. What the layer records and the view does not show is asked for by its uuid besides: only the pool's own
/// `UUID_INVALID` calls it gone.
pub async fn look_at(pool: &Pool, layer: &PlatformLayer) -> Result<View, Error> {
    let view = pool.mirror.now().await?;
    let Some(status) = &layer.status else { return Ok(view) };
    let disks = status.disk.iter().map(|d| &d.uuid).chain(status.config_disk.iter().map(|d| &d.uuid));
    let disks = disks.chain(status.versions.iter().map(|v| &v.disk));
    for uuid in disks.filter(|uuid| view.vdis.by_uuid(uuid).is_none()) {
        gone::<Vdi>(pool, uuid).await?;
    }
    if let Some(machine) = status.machine.as_ref().filter(|m| view.vms.by_uuid(&m.uuid).is_none()) {
        gone::<Vm>(pool, &machine.uuid).await?;
    }
    Ok(view)
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
