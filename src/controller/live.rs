//! The fresh look at a pool before anything is created, started or destroyed.
//!
//! Called by `layer`. The mirror decides when to wake; this decides whether to act.

use super::pool::Pool;
use crate::xapi::error::Error;
use crate::xapi::look::{Scope, look};
use crate::xapi::view::View;
use crate::xapi::wire::Ref;

/// All disks of the storage repository, all machines and their attachments, all tasks, as they are now. What no create or destroy
/// hangs on (networks, drivers) comes from the mirror.
pub async fn look_at(pool: &Pool, mirror: &View, sr: &Ref, machines: Vec<Ref>) -> Result<View, Error> {
    let scope = Scope { sr: Some(sr.clone()), all_machines: true, machines, ..Scope::default() };
    Ok(look(&pool.client, &scope).await?.over(mirror, sr))
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
