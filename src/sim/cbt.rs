//! Calls of changed block tracking (xapi.md 4.3, 4.4); the logs themselves are the storage's (`disk::changes`).
//!
//! Called by `storage`.

use std::sync::Arc;

use serde_json::json;

use super::{
    Answer, Call, Pool, base64,
    disk::Log,
    row,
    schema::Record,
    sr,
    storage::{Subject, backend, begin},
    vdi::flag,
};
use crate::xapi::wire::{Failure, Ref};

/// `VDI.enable_cbt` and `VDI.disable_cbt`, which need a licence (xapi.md 2.4, 4.4).
///
/// # Errors
/// `LICENCE_RESTRICTION ["CBT"]`.
pub async fn track_changes(pool: &Arc<Pool>, call: &Call) -> Answer {
    let restricted =
        |row: &Record| row.get("restrictions").is_some_and(|r| r.get("restrict_cbt") == Some(&json!("true")));
    let on = call.message == "enable_cbt";
    if on && pool.db().all("pool").any(|(_, row)| restricted(row)) {
        return Err(Failure::new("LICENCE_RESTRICTION", ["CBT"]));
    }
    let vdi = call.reference(0);
    let uuid = pool.db().text("VDI", &vdi, "uuid")?.to_owned();
    let answer = flag(pool, call, call.message, "cbt_enabled", json!(on)).await?;
    let mut disks = pool.world.disks();
    let node = disks.get_mut(&uuid).map_err(|e| backend(&e))?;
    match (on, node.log.is_some()) {
        (true, false) => node.log = Some(Log::begin(None)),
        (false, true) => node.log = None,
        (true, true) | (false, false) => {}
    }
    Ok(answer)
}

/// `VDI.list_changed_blocks(vdi_from, vdi_to)`: base64 of one bit for 64 KiB (xapi.md 4.4).
///
/// # Errors
/// Those of `begin` for `vdi_to`; `SR_BACKEND_FAILURE_460` where the second is no later state of the first.
pub async fn list(pool: &Arc<Pool>, call: &Call) -> Answer {
    let [from, to] = [0, 1].map(|i| call.reference(i));
    pool.db().get("VDI", &from)?;
    let _running = begin(pool, call, &Subject::vdi(pool, &to)?, "list_changed_blocks", || ()).await?;
    let uuid = |vdi: &Ref| pool.db().text("VDI", vdi, "uuid").map(str::to_owned);
    let (from, to) = (uuid(&from)?, uuid(&to)?);
    let changes = pool.world.disks().changes(&from, &to).map_err(|e| backend(&e))?;
    let unrelated = || {
        let detail = format!("{to} is no later state of {from}");
        Failure::new("SR_BACKEND_FAILURE_460", ["", "Failed to calculate changed blocks for given VDIs", &detail])
    };
    changes.map(|bits| json!(base64::encode(&bits))).ok_or_else(unrelated)
}

/// `VDI.data_destroy`: the blocks go, the change log stays (xapi.md 4.4).
pub async fn data_destroy(pool: &Arc<Pool>, call: &Call) -> Answer {
    let vdi = call.reference(0);
    let subject = Subject::vdi(pool, &vdi)?;
    let _running = begin(pool, call, &subject, "data_destroy", || ()).await?;
    let uuid = pool.db().text("VDI", &vdi, "uuid")?.to_owned();
    pool.world.disks().hollow(&uuid).map_err(|e| backend(&e))?;
    row::set(pool, &vdi, [("type", json!("cbt_metadata"))]);
    sr::refresh(pool, &vdi, &uuid);
    sr::collect_later(pool, &subject.sr);
    Ok(json!(""))
}
