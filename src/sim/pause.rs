//! `sm_config.paused`: the lock that a storage driver puts on a disk while it works in its tree (xapi.md 14, Replay).
//!
//! Taken by `vdi` for clones and snapshots, and by `sr` when a new daemon runs them again. It shows in the row and nowhere else.

use super::{Pool, row};
use crate::xapi::wire::{Failure, Ref};

/// The driver keeps the source's users away while it works in the tree: `sm_config.paused`, until this is dropped.
pub struct Paused<'a> {
    pool: &'a Pool,
    vdi: Ref,
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        row::configure(self.pool, &self.vdi, "paused", None);
    }
}

/// The key is a lock: a source that a dead driver left paused cannot be paused again (xapi.md 14, Replay). What a dying daemon takes off
/// here comes back with the database if it was written out meanwhile, and stays.
///
/// # Errors
/// `SR_BACKEND_FAILURE_81`.
pub fn pause<'a>(pool: &'a Pool, vdi: &Ref, snapshot: bool) -> Result<Paused<'a>, Failure> {
    if pool.db().field("VDI", vdi, "sm_config")?.get("paused").is_some() {
        let detail = format!("['MAP_DUPLICATE_KEY', 'VDI', 'sm_config', '{vdi}', 'paused']");
        let what = if snapshot { "snapshot" } else { "clone" };
        let reason = format!("Failed to {what} VDI [opterr={detail}]");
        return Err(Failure::new("SR_BACKEND_FAILURE_81", ["", &reason, ""]));
    }
    row::configure(pool, vdi, "paused", Some("true"));
    Ok(Paused { pool, vdi: vdi.clone() })
}
