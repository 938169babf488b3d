//! Which host can run a machine (xapi.md 4.5, 14, "Start"). Called by `VM.start` and by the calls that ask for it; changes nothing.

use serde_json::Value;

use super::db::Db;
use crate::xapi::wire::{Failure, Ref};

/// Whether a machine could start on a host now.
///
/// # Errors
/// `HOST_DISABLED [host]`, `VM_REQUIRES_SR [vm, sr]`, `VM_REQUIRES_NETWORK [vm, network]`, `HOST_NOT_ENOUGH_FREE_MEMORY [needed, free]`.
pub fn can_boot_here(db: &Db, vm: &Ref, host: &Ref) -> Result<(), Failure> {
    if !db.flag("host", host, "enabled")? {
        return Err(Failure::new("HOST_DISABLED", [host.as_str()]));
    }
    for vbd in db.links("VM", vm, "VBDs")? {
        let vdi = db.link_to("VBD", &vbd, "VDI")?;
        let Some(_) = db.find("VDI", &vdi) else { continue };
        let sr = db.link_to("VDI", &vdi, "SR")?;
        if !sees(db, host, &sr) {
            return Err(Failure::new("VM_REQUIRES_SR", [vm.as_str(), sr.as_str()]));
        }
    }
    for vif in db.links("VM", vm, "VIFs")? {
        let network = db.link_to("VIF", &vif, "network")?;
        if !reaches(db, host, &network) {
            return Err(Failure::new("VM_REQUIRES_NETWORK", [vm.as_str(), network.as_str()]));
        }
    }
    let (needed, free) = (db.int("VM", vm, "memory_static_max")?, free_memory(db, host)?);
    if needed > free {
        return Err(Failure::new("HOST_NOT_ENOUGH_FREE_MEMORY", [needed.to_string(), free.to_string()]));
    }
    Ok(())
}

/// # Errors
/// `HANDLE_INVALID`.
pub fn possible_hosts(db: &Db, vm: &Ref) -> Result<Vec<Ref>, Failure> {
    db.get("VM", vm)?;
    Ok(db.all("host").map(|(r, _)| r.clone()).filter(|host| can_boot_here(db, vm, host).is_ok()).collect())
}

/// Whether a host has an SR attached.
pub fn sees(db: &Db, host: &Ref, sr: &Ref) -> bool {
    let pbds = db.links("SR", sr, "PBDs").unwrap_or_default();
    pbds.iter().any(|pbd| {
        db.flag("PBD", pbd, "currently_attached").unwrap_or_default()
            && db.link_to("PBD", pbd, "host").is_ok_and(|h| h == *host)
    })
}

/// A network without any card is internal to each host: everybody has it.
fn reaches(db: &Db, host: &Ref, network: &Ref) -> bool {
    let pifs = db.links("network", network, "PIFs").unwrap_or_default();
    pifs.is_empty() || pifs.iter().any(|pif| db.link_to("PIF", pif, "host").is_ok_and(|h| h == *host))
}

/// What the host has, less what its machines were given.
fn free_memory(db: &Db, host: &Ref) -> Result<i64, Failure> {
    let metrics = db.link_to("host", host, "metrics")?;
    let total = db.int("host_metrics", &metrics, "memory_total").unwrap_or_default();
    let residents =
        db.all("VM").filter(|(_, row)| row.get("resident_on").and_then(Value::as_str) == Some(host.as_str()));
    let used: i64 = residents.filter_map(|(_, row)| row.get("memory_static_max")?.as_i64()).sum();
    Ok(total - used)
}
