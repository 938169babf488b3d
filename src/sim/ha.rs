//! High availability: a machine that may be restarted is started again after it halts by itself (xapi.md 9.2).
//!
//! Told by `power` of every halt, and by `restart` and `daemon` to look at all machines. A clean or hard shutdown takes `ha_always_run` away first, so that only what happened inside a guest, or
//! a crash, counts.

use std::{sync::Arc, time::Duration};

use super::{Pool, placement, power};

/// How long the pool takes to notice.
const NOTICE: Duration = Duration::from_secs(2);

/// Looks at every machine that has no domain: after the daemon's death, or once high availability is on.
pub fn look(pool: &Arc<Pool>) {
    let all: Vec<String> = {
        let db = pool.db();
        db.all("VM").filter_map(|(_, row)| row.get("uuid")?.as_str().map(str::to_owned)).collect()
    };
    all.iter().filter(|vm| pool.world.domains.domid(vm).is_none()).for_each(|vm| halted(pool, vm));
}

/// A machine halted.
pub fn halted(pool: &Arc<Pool>, uuid: &str) {
    if !wanted(pool, uuid) {
        return;
    }
    let (inner, uuid) = (Arc::clone(pool), uuid.to_owned());
    pool.spawn(async move {
        inner.clock.stage(&format!("ha/restart/{uuid}"), NOTICE).await;
        if wanted(&inner, &uuid)
            && inner.world.domains.domid(&uuid).is_none()
            && let Some(host) = host(&inner, &uuid)
        {
            // A machine that cannot start stays halted, as its plan says.
            power::boot(&inner, &uuid, &host, false).unwrap_or_default();
        }
    });
}

fn wanted(pool: &Pool, uuid: &str) -> bool {
    let db = pool.db();
    let enabled =
        db.all("pool").any(|(_, row)| row.get("ha_enabled").and_then(serde_json::Value::as_bool) == Some(true));
    let machine = db.by_uuid("VM", uuid).unwrap_or_default();
    enabled
        && db.text("VM", &machine, "ha_restart_priority").is_ok_and(|p| p == "restart")
        && db.flag("VM", &machine, "ha_always_run").unwrap_or_default()
}

fn host(pool: &Pool, uuid: &str) -> Option<String> {
    let db = pool.db();
    let machine = db.by_uuid("VM", uuid).ok()?;
    let host = placement::possible_hosts(&db, &machine).ok()?.into_iter().next()?;
    db.text("host", &host, "uuid").ok().map(str::to_owned)
}
