//! Storage repositories: scan, room, garbage collection, and the PBDs by which hosts see them (xapi.md 4.4, 9.1, 14).
//!
//! Called by `storage` for calls of SR and PBD, and by `vdi` for room and tidying. What it writes into rows is the storage's truth.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    Answer, Call, Pool, pause, row,
    schema::Record,
    storage::{Subject, backend, begin},
    vdi,
};
use crate::xapi::wire::{Failure, Ref};

/// The collector comes so long after a destroy or a scan (xapi.md 9.1).
const COLLECT_AFTER: Duration = Duration::from_secs(3);
/// A leaf in use is merged only if so little is left to copy (xapi.md 9.1).
const ONLINE: u64 = 20 << 20;

fn void() -> Answer {
    Ok(json!(""))
}

/// `SR.scan`: waits for its turn as every storage call does.
pub async fn scan_call(pool: &Arc<Pool>, call: &Call) -> Answer {
    let sr = call.reference(0);
    pool.db().get("SR", &sr)?;
    let _running = begin(pool, call, &Subject { sr: sr.clone(), vdi: None }, "scan", || ()).await?;
    scan(pool, &sr)?;
    collect_later(pool, &sr);
    void()
}

/// `SR.update`: the numbers alone.
pub async fn update_call(pool: &Arc<Pool>, call: &Call) -> Answer {
    let sr = call.reference(0);
    let uuid = pool.db().text("SR", &sr, "uuid")?.to_owned();
    let _running = begin(pool, call, &Subject { sr: sr.clone(), vdi: None }, "update", || ()).await?;
    usage(pool, &sr, &uuid)?;
    void()
}

/// Rows for disks that have none, nameless and keyless; rows without a disk go; sizes and trees are put right; links to what is gone
/// become NULL (xapi.md 14, Durability and Snapshots).
pub fn scan(pool: &Pool, sr: &Ref) -> Result<(), Failure> {
    let uuid = pool.db().text("SR", sr, "uuid")?.to_owned();
    let stored: BTreeSet<String> = pool.world.disks().on(&uuid).map(|(u, _)| u.clone()).collect();
    let rows: Vec<(Ref, String)> = {
        let db = pool.db();
        let mine = db.links("SR", sr, "VDIs")?;
        mine.into_iter().filter_map(|v| Some((v.clone(), db.text("VDI", &v, "uuid").ok()?.to_owned()))).collect()
    };
    let known: BTreeSet<&String> = rows.iter().map(|(_, u)| u).collect();
    for missing in stored.iter().filter(|u| !known.contains(u)) {
        let row = row::add_row(pool, sr, missing);
        row::link_parent(pool, &row, missing);
    }
    for (row, uuid) in &rows {
        if stored.contains(uuid) { refresh(pool, row, uuid) } else { row::drop_row(&mut pool.db(), row) }
    }
    let dangling: Vec<Ref> = {
        let db = pool.db();
        let of = |row: &Record| Ref(row.get("snapshot_of").and_then(Value::as_str).unwrap_or_default().to_owned());
        let gone = |r: &Ref| !r.is_null() && db.find("VDI", r).is_none();
        db.all("VDI")
            .filter(|(_, row)| row.get("SR") == Some(&json!(sr)) && gone(&of(row)))
            .map(|(r, _)| r.clone())
            .collect()
    };
    dangling.iter().for_each(|row| row::set(pool, row, [("snapshot_of", json!(Ref::NULL))]));
    usage(pool, sr, &uuid)
}

/// One VDI's sizes and place in the tree, as the driver reports them.
pub fn refresh(pool: &Pool, row: &Ref, uuid: &str) {
    let found = {
        let disks = pool.world.disks();
        disks.get(uuid).map(|n| (n.virtual_size, disks.utilisation(uuid), n.hidden, n.log.is_some()))
    };
    if let Ok((size, used, hidden, tracked)) = found {
        let fields = [
            ("virtual_size", json!(size)),
            ("physical_utilisation", json!(used)),
            ("managed", json!(!hidden)),
            ("missing", json!(false)),
            ("cbt_enabled", json!(tracked)),
        ];
        row::set(pool, row, fields);
        row::link_parent(pool, row, uuid);
    }
}

/// The numbers of the SR, which lag until a scan (xapi.md 3).
fn usage(pool: &Pool, sr: &Ref, uuid: &str) -> Result<(), Failure> {
    let (used, virtual_size) = {
        let disks = pool.world.disks();
        (disks.used(uuid), disks.on(uuid).map(|(_, n)| n.virtual_size).sum::<u64>())
    };
    pool.db().update("SR", sr, |row| {
        row.insert("physical_utilisation".to_owned(), json!(used));
        row.insert("virtual_allocation".to_owned(), json!(virtual_size));
    })
}

/// Whether so many more bytes fit.
///
/// # Errors
/// `SR_BACKEND_FAILURE_44`, hardly ever `SR_FULL` (xapi.md 9.2).
pub fn room(pool: &Pool, sr: &Ref, more: u64) -> Result<(), Failure> {
    let (uuid, size) = {
        let db = pool.db();
        (db.text("SR", sr, "uuid")?.to_owned(), u64::try_from(db.int("SR", sr, "physical_size")?).unwrap_or_default())
    };
    let used = pool.world.disks().used(&uuid);
    if used.saturating_add(more) < size {
        return Ok(());
    }
    let detail = format!("{more} bytes wanted, {} left", size.saturating_sub(used));
    Err(Failure::new("SR_BACKEND_FAILURE_44", ["", "There is insufficient space", &detail]))
}

/// Tidies the tree a while later, a step at a time. It is the driver's own work: it lives on when the daemon dies.
pub fn collect_later(pool: &Arc<Pool>, sr: &Ref) {
    let (inner, sr) = (Arc::clone(pool), sr.clone());
    pool.world.spawn(async move {
        let Ok(uuid) = inner.db().text("SR", &sr, "uuid").map(str::to_owned) else { return };
        inner.clock.stage(&format!("collect/{uuid}"), COLLECT_AFTER).await;
        while collect(&inner, &sr, &uuid) {
            inner.clock.stage(&format!("collect/{uuid}"), COLLECT_AFTER / 10).await;
        }
    });
}

/// One step of the collector; true if there may be another.
fn collect(pool: &Pool, sr: &Ref, uuid: &str) -> bool {
    let (still, busy): (BTreeSet<String>, BTreeSet<String>) = {
        let db = pool.db();
        let mine = db.links("SR", sr, "VDIs").unwrap_or_default();
        let uuid = |vdi: &Ref| db.text("VDI", vdi, "uuid").unwrap_or_default().to_owned();
        let no = |vdi: &&Ref| {
            db.field("VDI", vdi, "other_config").is_ok_and(|c| c.get("leaf-coalesce") == Some(&json!("false")))
        };
        let used = |vdi: &&Ref| {
            let vbds = db.links("VDI", vdi, "VBDs").unwrap_or_default();
            vbds.iter().any(|vbd| db.flag("VBD", vbd, "currently_attached").unwrap_or_default())
        };
        (mine.iter().filter(no).map(uuid).collect(), mine.iter().filter(used).map(uuid).collect())
    };
    let may = |child: &str, left: u64| !still.contains(child) && (!busy.contains(child) || left <= ONLINE);
    let before: BTreeSet<String> = pool.world.disks().on(uuid).map(|(u, _)| u.clone()).collect();
    // A failing collector tries again after the next destroy or scan, as the real one does.
    let done = pool.world.disks().coalesce(uuid, may).unwrap_or_default();
    let after: BTreeSet<String> = pool.world.disks().on(uuid).map(|(u, _)| u.clone()).collect();
    for gone in before.difference(&after) {
        let row = pool.db().by_uuid("VDI", gone);
        row.map(|row| row::drop_row(&mut pool.db(), &row)).unwrap_or_default();
    }
    for left in &after {
        let row = pool.db().by_uuid("VDI", left);
        row.map(|row| row::link_parent(pool, &row, left)).unwrap_or_default();
    }
    done && usage(pool, sr, uuid).is_ok()
}

/// `SR.forget`: rows alone; the disks stay where they are.
pub fn forget(pool: &Pool, sr: &Ref) -> Answer {
    let mut db = pool.db();
    let pbds = db.links("SR", sr, "PBDs")?;
    if pbds.iter().any(|pbd| db.flag("PBD", pbd, "currently_attached").unwrap_or_default()) {
        return Err(Failure::new("SR_HAS_PBD", [sr.as_str()]));
    }
    for vdi in db.links("SR", sr, "VDIs")? {
        row::drop_row(&mut db, &vdi);
    }
    pbds.iter().for_each(|pbd| db.delete("PBD", pbd));
    db.delete("SR", sr);
    void()
}

/// `SR.introduce`: a row for a repository that exists.
pub fn introduce(pool: &Pool, call: &Call) -> Value {
    let given =
        [(0, "uuid"), (1, "name_label"), (2, "name_description"), (3, "type"), (4, "content_type"), (5, "shared")];
    let fields = given.map(|(i, field)| (field, call.value(i).clone()));
    let size = pool.world.size_of(call.text(0));
    json!(pool.db().create("SR", fields.into_iter().chain([("physical_size", json!(size))])))
}

pub fn create_pbd(pool: &Pool, row: &Record) -> Value {
    let fields = row.iter().map(|(k, v)| (k.as_str(), v.clone()));
    json!(pool.db().create("PBD", fields))
}

pub fn destroy_pbd(pool: &Pool, pbd: &Ref) -> Answer {
    let mut db = pool.db();
    if db.flag("PBD", pbd, "currently_attached")? {
        return Err(Failure::new("OPERATION_NOT_ALLOWED", ["PBD is currently attached"]));
    }
    db.delete("PBD", pbd);
    void()
}

/// `PBD.plug` scans the SR as it attaches it; `PBD.unplug` is refused while a machine of that host uses a disk of the SR.
pub fn plug(pool: &Arc<Pool>, pbd: &Ref, on: bool) -> Answer {
    let (sr, host) = {
        let db = pool.db();
        (db.link_to("PBD", pbd, "SR")?, db.link_to("PBD", pbd, "host")?)
    };
    if !on && let Some(vdi) = in_use(pool, &sr, &host) {
        return Err(Failure::new("VDI_IN_USE", [vdi.as_str()]));
    }
    pool.db().set("PBD", pbd, "currently_attached", json!(on))?;
    if on {
        scan(pool, &sr)?;
        collect_later(pool, &sr);
    }
    void()
}

fn in_use(pool: &Pool, sr: &Ref, host: &Ref) -> Option<Ref> {
    let db = pool.db();
    let used = |vdi: &Ref| {
        let vbds = db.links("VDI", vdi, "VBDs").unwrap_or_default();
        vbds.iter().any(|vbd| {
            let vm = db.link_to("VBD", vbd, "VM").unwrap_or_default();
            db.flag("VBD", vbd, "currently_attached").unwrap_or_default()
                && db.link_to("VM", &vm, "resident_on").is_ok_and(|on| on == *host)
        })
    };
    db.links("SR", sr, "VDIs").unwrap_or_default().into_iter().find(used)
}

/// What a new daemon does for a storage call that the old one had under way (xapi.md 14, Replay).
pub fn redo_branch(pool: &Pool, source: &str, snapshot: bool, named: bool) -> Result<(), Failure> {
    let row = pool.db().by_uuid("VDI", source)?;
    let sr = pool.db().link_to("VDI", &row, "SR")?;
    let _paused = pause::pause(pool, &row, snapshot)?;
    let made = vdi::fork(pool, &sr, &row, snapshot)?;
    if let Some(base) = &made.base {
        let row = row::add_row(pool, &sr, base);
        row::set(pool, &row, [("name_label", json!("base copy"))]);
        row::link_parent(pool, &row, base);
    }
    row::link_parent(pool, &row, source);
    let child = row::add_row(pool, &sr, &made.child);
    row::link_parent(pool, &child, &made.child);
    if named {
        let from = pool.db().get("VDI", &row)?.clone();
        vdi::name_child(pool, &child, &from, snapshot);
    }
    Ok(())
}

/// As [`redo_branch`], for a destroy.
pub fn redo_destroy(pool: &Pool, uuid: &str) -> Result<(), Failure> {
    pool.world.disks().remove(uuid).map_err(|e| backend(&e))?;
    let row = pool.db().by_uuid("VDI", uuid)?;
    row::drop_row(&mut pool.db(), &row);
    Ok(())
}
