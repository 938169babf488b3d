//! Changed block tracking, as far as it shows in rows (xapi.md 4.3, 4.4). No log is kept: `VDI.list_changed_blocks` is not simulated.
//!
//! Called by `storage`.

use std::sync::Arc;

use serde_json::json;

use super::{
    Answer, Call, Pool, row,
    schema::Record,
    sr,
    storage::{Subject, backend, begin},
    vdi::flag,
};
use crate::xapi::wire::Failure;

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
    flag(pool, call, call.message, "cbt_enabled", json!(on)).await
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
