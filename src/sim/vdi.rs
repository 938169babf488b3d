//! What the calls of a VDI do, stage by stage, so that a watcher or a death between two stages sees what the real daemon shows
//! (xapi.md 14, "Order of a child's fields").
//!
//! Called by `storage` and, for the disks of a machine, by `clone`. Between stages no lock is held; a dropped future is a dead daemon.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    Answer, Call, Pool, allowed,
    db::Db,
    disk::{self, DiskError, Format, Node},
    pause::pause,
    restart::{Redo, What},
    row,
    schema::Record,
    sr,
    storage::{RENAME, Running, STAGE, Subject, backend, begin, begin_copy},
};
use crate::xapi::wire::{Failure, NEVER, Ref};

/// The largest VHD (xapi.md 9.1).
const LARGEST: u64 = 2040 << 30;

/// What a storage operation keeps while it runs: its marks, and what a new daemon would run again.
struct Work {
    running: Running,
    redo: Redo,
}

/// Begins an operation of which a new daemon would run the driver's part again: it is at work as soon as the operation shows.
async fn start(pool: &Arc<Pool>, call: &Call, subject: &Subject, op: &str, what: What) -> Result<Work, Failure> {
    let redo = pool.world.redos.note();
    let running = begin(pool, call, subject, op, || redo.arm(what)).await?;
    Ok(Work { running, redo })
}

fn label(call: &Call, stage: &str, uuid: &str) -> String {
    format!("{}.{}/{stage}/{uuid}", call.class, call.message)
}

/// `VDI.create`: the row comes with its name, keys and tags a stage later (xapi.md 4.4).
pub async fn create(pool: &Arc<Pool>, call: &Call) -> Answer {
    let row = call.record(0)?;
    let vdi = make(pool, call, &row).await?;
    Ok(json!(vdi))
}

pub async fn make(pool: &Arc<Pool>, call: &Call, row: &Record) -> Result<Ref, Failure> {
    let field = |name: &str| row.get(name).cloned().unwrap_or_default();
    let sr = Ref(field("SR").as_str().unwrap_or_default().to_owned());
    let sr_uuid = pool.db().text("SR", &sr, "uuid")?.to_owned();
    let size = u64::try_from(field("virtual_size").as_i64().unwrap_or_default()).unwrap_or_default();
    let format = row::format(&pool.db(), &sr, &field("sm_config"))?;
    if size == 0 || (size > LARGEST && format != Format::Qcow2) {
        return Err(Failure::new("SR_BACKEND_FAILURE_79", ["", "VDI Invalid size", ""]));
    }
    let subject = Subject { sr: sr.clone(), vdi: None };
    let name = field("name_label").as_str().unwrap_or_default().to_owned();
    let inflated = format == Format::Raw || thick(&pool.db(), &sr);
    let node = Node { sr: sr_uuid, virtual_size: size, inflated, format, ..Node::default() };
    let what = What::Create { node: node.clone(), name };
    let work = start(pool, call, &subject, "create", what).await?;
    sr::room(pool, &sr, if inflated { size } else { 0 })?;
    let uuid = pool.world.disks().create(node);
    work.redo.made();
    let vdi = row::add_row(pool, &sr, &uuid);
    let kept = ["name_label", "name_description", "type", "sharable", "read_only", "xenstore_data"];
    pool.db().update("VDI", &vdi, |made| {
        for name in kept {
            made.insert(name.to_owned(), field(name));
        }
        row::merge(made, field("sm_config"));
    })?;
    row::link_parent(pool, &vdi, &uuid);
    pool.clock.stage(&label(call, "row", &uuid), STAGE).await;
    pool.db().update("VDI", &vdi, |made| {
        for name in ["other_config", "tags"] {
            made.insert(name.to_owned(), field(name));
        }
    })?;
    work.end(pool, &vdi);
    Ok(vdi)
}

/// `VDI.clone` and `VDI.snapshot`.
///
/// # Errors
/// Those of `begin`; 44 no space, 46 no such disk any more, 81 source paused, 109 chain too long.
pub async fn branch(pool: &Arc<Pool>, call: &Call, source: &Ref, snapshot: bool) -> Result<Ref, Failure> {
    let subject = Subject::vdi(pool, source)?;
    let uuid = pool.db().text("VDI", source, "uuid")?.to_owned();
    let op = if snapshot { "snapshot" } else { "clone" };
    let work = start(pool, call, &subject, op, What::Branch { source: uuid.clone(), snapshot }).await?;
    let paused = pause(pool, source, snapshot)?;
    let made = fork(pool, &subject.sr, source, snapshot)?;
    work.redo.made();
    if let Some(base) = &made.base {
        base_row(pool, &subject.sr, base);
        pool.clock.stage(&label(call, "base", &uuid), STAGE / 5).await;
        row::set(pool, &pool_row(pool, base), [("managed", json!(false))]);
    }
    row::link_parent(pool, source, &uuid);
    let child = row::add_row(pool, &subject.sr, &made.child);
    row::link_parent(pool, &child, &made.child);
    pool.clock.stage(&label(call, "row", &uuid), STAGE).await;
    let from = pool.db().get("VDI", source)?.clone();
    let of = |field: &str| from.get(field).cloned().unwrap_or_default();
    name_child(pool, &child, &from, snapshot);
    drop(paused);
    pool.clock.stage(&label(call, "named", &uuid), STAGE).await;
    let mut keys = of("other_config");
    if let (Some(keys), true) = (keys.as_object_mut(), snapshot) {
        keys.remove("leaf-coalesce");
    }
    row::set(pool, &child, [("other_config", keys), ("xenstore_data", of("xenstore_data"))]);
    pool.clock.stage(&label(call, "keyed", &uuid), STAGE).await;
    row::set(pool, &child, [("tags", of("tags"))]);
    pool.clock.stage(&label(call, "tagged", &uuid), STAGE).await;
    if snapshot {
        row::set(pool, &child, [("snapshot_of", json!(source)), ("cbt_enabled", of("cbt_enabled"))]);
    }
    pool.clock.stage(&label(call, "linked", &uuid), STAGE).await;
    work.end(pool, &child);
    Ok(child)
}

/// The storage's part of a clone or snapshot: no rows, no names.
pub fn fork(pool: &Pool, sr: &Ref, source: &Ref, snapshot: bool) -> Result<disk::Branch, Failure> {
    let (row, thick) = {
        let db = pool.db();
        (db.get("VDI", source)?.clone(), thick(&db, sr))
    };
    let text = |field: &str| row.get(field).and_then(Value::as_str).unwrap_or_default();
    let size = row.get("virtual_size").and_then(Value::as_u64).unwrap_or_default();
    sr::room(pool, sr, if thick { size } else { 0 })?;
    let mut disks = pool.world.disks();
    if snapshot && disks.get(text("uuid")).is_ok_and(|node| node.format == Format::Raw) {
        return Err(Failure::new("UNIMPLEMENTED_IN_SM_BACKEND", ["Raw disks have no snapshots"]));
    }
    let made = disks.branch(text("uuid")).map_err(|e| backend(&e))?;
    if snapshot {
        disks.pass_log(text("uuid"), &made.child).map_err(|e| backend(&e))?;
        // Thick drivers deflate what nobody writes to (xapi.md 9.1).
        disks.get_mut(&made.child).map_err(|e| backend(&e))?.inflated = false;
    }
    Ok(made)
}

/// What the storage layer itself writes on a child: the source's name, and nothing of its keys.
pub fn name_child(pool: &Pool, child: &Ref, from: &Record, snapshot: bool) {
    let of = |field: &str| from.get(field).cloned().unwrap_or_default();
    let content = json!({ "content_id": uuid::Uuid::new_v4().to_string() });
    let time = if snapshot { pool.clock.stamp() } else { NEVER.to_owned() };
    let copied = ["name_label", "name_description", "type", "sharable", "read_only", "on_boot", "allow_caching"];
    let copied = copied.map(|f| (f, of(f)));
    let own = [("other_config", content), ("is_a_snapshot", json!(snapshot)), ("snapshot_time", json!(time))];
    row::set(pool, child, copied.into_iter().chain(own));
}

fn base_row(pool: &Pool, sr: &Ref, uuid: &str) {
    let row = row::add_row(pool, sr, uuid);
    row::set(pool, &row, [("name_label", json!("base copy")), ("managed", json!(true))]);
    row::link_parent(pool, &row, uuid);
}

fn pool_row(pool: &Pool, uuid: &str) -> Ref {
    pool.db().by_uuid("VDI", uuid).unwrap_or_default()
}

/// Whether a writable disk takes its whole size at once (xapi.md 9.1).
pub fn thick(db: &Db, sr: &Ref) -> bool {
    db.text("SR", sr, "type").unwrap_or_default().starts_with("lvm")
}

impl Work {
    /// The operation is done as far as the storage is concerned.
    fn end(self, pool: &Arc<Pool>, vdi: &Ref) {
        let Self { running, redo } = self;
        drop(redo);
        drop(running);
        allowed::refresh(pool, "VDI", vdi);
    }
}

/// `VDI.destroy`: the disk, its VBD rows, its row; then the tree is tidied (xapi.md 4.4).
pub async fn destroy(pool: &Arc<Pool>, call: &Call, vdi: &Ref) -> Answer {
    let subject = Subject::vdi(pool, vdi)?;
    let uuid = pool.db().text("VDI", vdi, "uuid")?.to_owned();
    let work = start(pool, call, &subject, "destroy", What::Destroy { uuid: uuid.clone() }).await?;
    let removed = pool.world.disks().remove(&uuid);
    match removed {
        // Drivers that keep files find nothing left to do for a row that came back without its disk (xapi.md 14, Durability).
        Err(DiskError::Missing(_)) if !thick(&pool.db(), &subject.sr) => {}
        removed => removed.map_err(|e| backend(&e))?,
    }
    work.redo.made();
    pool.clock.stage(&label(call, "removed", &uuid), STAGE).await;
    row::drop_row(&mut pool.db(), vdi);
    work.end(pool, vdi);
    sr::collect_later(pool, &subject.sr);
    Ok(json!(""))
}

/// `VDI.copy`: a full copy through the control domain, whose VBDs show meanwhile (xapi.md 4.4).
pub async fn copy(pool: &Arc<Pool>, call: &Call) -> Answer {
    let (source, into) = (call.reference(0), call.reference(3));
    let subject = Subject::vdi(pool, &source)?;
    let to = if call.reference(1).is_null() { subject.sr.clone() } else { call.reference(1) };
    let base = Some(call.reference(2)).filter(|base| !base.is_null());
    copy_disk(pool, call, &source, &to, &into, base).await.map(|vdi| json!(vdi))
}

/// A copy of a disk on `to`, or into an existing disk; of a `base` only what differs from it is written.
///
/// # Errors
/// Those of `begin_copy`; `VDI_READONLY [dst]`, `VDI_TOO_SMALL [dst, size]`, with a base `VDI_NOT_SPARSE [dst]`. A target of its own making goes with a failure, not with
/// the daemon's death (xapi.md 4.4).
pub async fn copy_disk(
    pool: &Arc<Pool>,
    call: &Call,
    source: &Ref,
    to: &Ref,
    into: &Ref,
    base: Option<Ref>,
) -> Result<Ref, Failure> {
    let _running = begin_copy(pool, call, source).await?;
    let from = pool.db().get("VDI", source)?.clone();
    let size = from.get("virtual_size").cloned().unwrap_or_default();
    let target = if into.is_null() {
        let mut row = from.clone();
        row.extend([("SR".to_owned(), json!(to)), ("sm_config".to_owned(), json!({}))]);
        make(pool, call, &row).await?
    } else {
        let db = pool.db();
        if db.flag("VDI", into, "read_only")? {
            return Err(Failure::new("VDI_READONLY", [into.as_str()]));
        }
        if db.int("VDI", into, "virtual_size")? < size.as_i64().unwrap_or_default() {
            return Err(Failure::new("VDI_TOO_SMALL", [into.to_string(), size.to_string()]));
        }
        into.clone()
    };
    let uuid = |vdi: &Ref| pool.db().text("VDI", vdi, "uuid").map(str::to_owned);
    let (from_uuid, to_uuid) = (uuid(source)?, uuid(&target)?);
    let base = base.map(|base| uuid(&base)).transpose()?;
    // What is not written must read as it did in the base: a format without holes cannot leave it out.
    let dense = pool.world.disks().get(&to_uuid).is_ok_and(|node| node.format == Format::Raw);
    if base.is_some() && dense {
        return Err(Failure::new("VDI_NOT_SPARSE", [target.as_str()]));
    }
    let held = [(source, "RO"), (&target, "RW")]
        .map(|(vdi, mode)| super::vbd::attach_to_dom0(&mut pool.db(), &call.host, vdi, mode));
    pool.clock.stage(&label(call, "copying", &from_uuid), STAGE * 5).await;
    let copied = pool.world.disks().overwrite(&from_uuid, &to_uuid, base.as_deref()).map_err(|e| backend(&e));
    held.iter().for_each(|vbd| pool.db().delete("VBD", vbd));
    if copied.is_err() && into.is_null() {
        // What the copy died of is worth more to its caller than what its clearing up may die of.
        destroy(pool, call, &target).await.map(|_| ()).unwrap_or_default();
    }
    copied.map(|()| target)
}

/// `VDI.resize`: grows a detached disk.
pub async fn resize(pool: &Arc<Pool>, call: &Call) -> Answer {
    let vdi = call.reference(0);
    let subject = Subject::vdi(pool, &vdi)?;
    let uuid = pool.db().text("VDI", &vdi, "uuid")?.to_owned();
    let size = disk::round(u64::try_from(call.int(1)).unwrap_or_default());
    let work = start(pool, call, &subject, "resize", What::Resize { uuid: uuid.clone(), size }).await?;
    let before = u64::try_from(pool.db().int("VDI", &vdi, "virtual_size")?).unwrap_or_default();
    if size < before || size > LARGEST {
        return Err(Failure::new("SR_BACKEND_FAILURE_79", ["", "VDI Invalid size", ""]));
    }
    let grow = if thick(&pool.db(), &subject.sr) { size - before } else { 0 };
    sr::room(pool, &subject.sr, grow)?;
    pool.world.disks().get_mut(&uuid).map_err(|e| backend(&e))?.virtual_size = size;
    pool.clock.stage(&label(call, "resized", &uuid), STAGE).await;
    row::set(pool, &vdi, [("virtual_size", json!(size))]);
    work.end(pool, &vdi);
    Ok(json!(""))
}

/// `VDI.set_name_label` and `VDI.set_name_description` go down to the driver, and wait like everybody (xapi.md 14, Queue). The row has
/// the name even where the driver then finds no disk.
pub async fn rename(pool: &Arc<Pool>, call: &Call, field: &str) -> Answer {
    let vdi = call.reference(0);
    let answer = flag(pool, call, RENAME, field, call.value(1).clone()).await?;
    let uuid = pool.db().text("VDI", &vdi, "uuid")?.to_owned();
    pool.world.disks().get(&uuid).map_err(|e| backend(&e))?;
    Ok(answer)
}

/// A call that ends in one field of the row.
pub async fn flag(pool: &Arc<Pool>, call: &Call, op: &str, field: &str, value: Value) -> Answer {
    let vdi = call.reference(0);
    let _running = begin(pool, call, &Subject::vdi(pool, &vdi)?, op, || ()).await?;
    pool.db().set("VDI", &vdi, field, value)?;
    Ok(json!(""))
}

/// `VDI.update`: the driver's truth about sizes and the tree.
pub async fn update(pool: &Arc<Pool>, call: &Call) -> Answer {
    let vdi = call.reference(0);
    let _running = begin(pool, call, &Subject::vdi(pool, &vdi)?, "update", || ()).await?;
    let uuid = pool.db().text("VDI", &vdi, "uuid")?.to_owned();
    sr::refresh(pool, &vdi, &uuid);
    Ok(json!(""))
}

/// `VDI.forget`: the row alone; the disk comes back at the next scan, without tags (xapi.md 4.4).
pub async fn forget(pool: &Arc<Pool>, call: &Call) -> Answer {
    let vdi = call.reference(0);
    let _running = begin(pool, call, &Subject::vdi(pool, &vdi)?, "forget", || ()).await?;
    row::drop_row(&mut pool.db(), &vdi);
    Ok(json!(""))
}

/// `VDI.introduce`: a row for a disk that is there.
pub async fn introduce(pool: &Arc<Pool>, call: &Call) -> Answer {
    let (uuid, sr) = (call.text(0), call.reference(3));
    let _running = begin(pool, call, &Subject { sr: sr.clone(), vdi: None }, "introduce", || ()).await?;
    if pool.db().by_uuid("VDI", uuid).is_ok() {
        return Err(Failure::new("UUID_INVALID", ["VDI", uuid]));
    }
    let location = call.text(8);
    let same = |row: &Record| row.get("SR") == Some(&json!(sr)) && row.get("location") == Some(&json!(location));
    if pool.db().all("VDI").any(|(_, row)| same(row)) {
        return Err(Failure::new("LOCATION_NOT_UNIQUE", [sr.as_str(), location]));
    }
    pool.world.disks().get(uuid).map_err(|e| backend(&e))?;
    let vdi = row::add_row(pool, &sr, uuid);
    row::link_parent(pool, &vdi, uuid);
    let given = [(1, "name_label"), (2, "name_description"), (4, "type"), (7, "other_config"), (9, "xenstore_data")];
    row::set(pool, &vdi, given.map(|(i, field)| (field, call.value(i).clone())));
    Ok(json!(vdi))
}
