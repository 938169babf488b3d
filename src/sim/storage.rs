//! Storage calls: who may do what to a VDI, in which order it is asked, and the queue in which everybody waits (xapi.md 4.3, 14).
//!
//! Answers the calls of VDI, SR and PBD; what they do is in `vdi` and `sr`. Every call that reaches the storage goes through
//! [`begin`]: one at a time per SR, in no fair order, waiting where nobody sees it.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{Answer, Call, Pool, cbt, db::Db, disk::DiskError, queue::Permit, sr, task, vdi};
use crate::xapi::wire::{Failure, Ref};

/// How long an ordinary stage lasts.
pub const STAGE: Duration = Duration::from_millis(10);
/// xapi repeats a conflicting call after a pause (1–20 s in the daemon, xapi.md 4.2); the short end keeps simulations brisk.
pub const AGAIN: Duration = Duration::from_secs(1);

/// A call to the driver that is no operation: nobody's state forbids it, and it shows nowhere (xapi.md 14, Queue).
pub const RENAME: &str = "rename";

/// Operations of a VDI that go on while machines use it (xapi.md 4.3, row 4).
const LIVE: [&str; 9] = [
    "snapshot",
    "resize_online",
    "blocked",
    "clone",
    "revert_to",
    "mirror",
    "enable_cbt",
    "disable_cbt",
    "data_destroy",
];

/// Answers the calls of this room; `None`: not mine.
pub async fn call(pool: &Arc<Pool>, call: &Call) -> Option<Answer> {
    let object = call.reference(0);
    Some(match (call.class, call.message) {
        ("VDI", "create") => vdi::create(pool, call).await,
        ("VDI", "clone" | "snapshot") => {
            vdi::branch(pool, call, &object, call.message == "snapshot").await.map(|r| json!(r))
        }
        ("VDI", "copy") => vdi::copy(pool, call).await,
        ("VDI", "destroy") => vdi::destroy(pool, call, &object).await,
        ("VDI", "resize") => vdi::resize(pool, call).await,
        ("VDI", "set_name_label") => vdi::rename(pool, call, "name_label").await,
        ("VDI", "set_name_description") => vdi::rename(pool, call, "name_description").await,
        ("VDI", "introduce") => vdi::introduce(pool, call).await,
        ("VDI", "forget") => vdi::forget(pool, call).await,
        ("VDI", "update") => vdi::update(pool, call).await,
        ("VDI", "set_on_boot") => vdi::flag(pool, call, "set_on_boot", "on_boot", call.value(1).clone()).await,
        ("VDI", "enable_cbt" | "disable_cbt") => cbt::track_changes(pool, call).await,
        ("VDI", "list_changed_blocks") => cbt::list(pool, call).await,
        ("VDI", "data_destroy") => cbt::data_destroy(pool, call).await,
        // No network of this pool has the purpose `nbd` (xapi.md 6.6).
        ("VDI", "get_nbd_info") => pool.db().get("VDI", &object).map(|_| json!([])),
        ("SR", "scan") => sr::scan_call(pool, call).await,
        ("SR", "update") => sr::update_call(pool, call).await,
        ("SR", "forget") => sr::forget(pool, &object),
        ("SR", "introduce") => Ok(sr::introduce(pool, call)),
        ("PBD", "create") => call.record(0).map(|row| sr::create_pbd(pool, &row)),
        ("PBD", "destroy") => sr::destroy_pbd(pool, &object),
        ("PBD", "plug") => sr::plug(pool, &object, true),
        ("PBD", "unplug") => sr::plug(pool, &object, false),
        _ => return None,
    })
}

/// A storage operation under way: visible in `current_operations` until it is dropped.
pub struct Running {
    pool: Arc<Pool>,
    marks: Vec<(&'static str, Ref)>,
    task: String,
    _permit: Option<Permit>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut db = self.pool.db();
        for (class, object) in &self.marks {
            mark(&mut db, class, object, &self.task, None);
        }
    }
}

/// Sets or clears an operation in an object's `current_operations`; an object that is gone needs none.
pub fn mark(db: &mut Db, class: &str, object: &Ref, task: &str, op: Option<&str>) {
    let change = db.update(class, object, |row| {
        if let Some(map) = row.get_mut("current_operations").and_then(Value::as_object_mut) {
            match op {
                Some(op) => map.insert(task.to_owned(), json!(op)),
                None => map.remove(task),
            };
        }
    });
    change.unwrap_or_default();
}

/// What an operation is about: an SR, and one of its VDIs unless the VDI is yet to be made.
pub struct Subject {
    pub sr: Ref,
    pub vdi: Option<Ref>,
}

impl Subject {
    /// # Errors
    /// `HANDLE_INVALID ["VDI", ref]`.
    pub fn vdi(pool: &Pool, vdi: &Ref) -> Result<Self, Failure> {
        Ok(Self { sr: pool.db().link_to("VDI", vdi, "SR")?, vdi: Some(vdi.clone()) })
    }
}

/// Waits for the SR, checks, and shows the operation. Stages: `<call>/queued`, where nothing but the task is seen, and `<call>/running`.
/// `shown` is called when the operation shows and the driver is at work.
///
/// # Errors
/// Those of xapi.md 4.3; `SR_HAS_NO_PBDS [sr]` where nothing is attached; `TASK_CANCELLED` while queued.
pub async fn begin(
    pool: &Arc<Pool>,
    call: &Call,
    subject: &Subject,
    op: &str,
    shown: impl FnOnce(),
) -> Result<Running, Failure> {
    let Subject { sr, vdi } = subject;
    let label = |stage: &str| format!("{}.{}/{stage}/{}", call.class, call.message, name_of(pool, subject));
    let wait = async {
        pool.clock.stage(&label("queued"), Duration::ZERO).await;
        loop {
            let permit = pool.world.queues.acquire(sr).await;
            match check(pool, subject, op) {
                Err(failure) if failure.code == "OTHER_OPERATION_IN_PROGRESS" => {
                    drop(permit);
                    pool.clock.sleep(AGAIN).await;
                }
                Err(failure) => return Err(failure),
                Ok(()) => return Ok(permit),
            }
        }
    };
    let permit = task::queue(pool, &call.task, wait).await??;
    let task = call.task.to_string();
    let mut marks = Vec::new();
    if op != RENAME {
        let mut db = pool.db();
        if let Some(vdi) = vdi {
            mark(&mut db, "VDI", vdi, &task, Some(op));
            marks.push(("VDI", vdi.clone()));
        }
        let on_sr = if op == "scan" || op == "update" { op.to_owned() } else { format!("vdi_{op}") };
        mark(&mut db, "SR", sr, &task, Some(&on_sr));
        marks.push(("SR", sr.clone()));
    }
    let running = Running { pool: Arc::clone(pool), marks, task, _permit: Some(permit) };
    shown();
    pool.clock.stage(&label("running"), STAGE).await;
    Ok(running)
}

/// As [`begin`] for `VDI.copy`, which marks the VDI alone and lets the SR go on (xapi.md 4.2).
pub async fn begin_copy(pool: &Arc<Pool>, call: &Call, vdi: &Ref) -> Result<Running, Failure> {
    let subject = Subject::vdi(pool, vdi)?;
    while let Err(failure) = check(pool, &subject, "copy") {
        if failure.code != "OTHER_OPERATION_IN_PROGRESS" {
            return Err(failure);
        }
        task::queue(pool, &call.task, pool.clock.sleep(AGAIN)).await?;
    }
    mark(&mut pool.db(), "VDI", vdi, call.task.as_str(), Some("copy"));
    let marks = vec![("VDI", vdi.clone())];
    Ok(Running { pool: Arc::clone(pool), marks, task: call.task.to_string(), _permit: None })
}

/// The uuid that a stage's label names.
pub fn name_of(pool: &Pool, subject: &Subject) -> String {
    let (class, object) = subject.vdi.as_ref().map_or(("SR", &subject.sr), |vdi| ("VDI", vdi));
    pool.db().text(class, object, "uuid").unwrap_or_default().to_owned()
}

fn check(pool: &Pool, subject: &Subject, op: &str) -> Result<(), Failure> {
    if let Some(vdi) = subject.vdi.as_ref().filter(|_| op != RENAME) {
        check_vdi(&pool.db(), vdi, op)?;
        let uuid = pool.db().text("VDI", vdi, "uuid")?.to_owned();
        if op == "destroy" && pool.world.lingers(&uuid) {
            return Err(Failure::new("VDI_IN_USE", [vdi.as_str(), op]));
        }
    } else {
        feature(&pool.db(), &subject.sr, op)?;
    }
    if !attached(&pool.db(), &subject.sr) {
        return Err(Failure::new("SR_HAS_NO_PBDS", [subject.sr.as_str()]));
    }
    match &subject.vdi {
        // A base copy is of no use to clients (xapi.md 3, managed).
        Some(vdi) if !["update", "forget"].contains(&op) && !pool.db().flag("VDI", vdi, "managed")? => {
            Err(Failure::new("VDI_NOT_MANAGED", [vdi.as_str()]))
        }
        Some(_) | None => Ok(()),
    }
}

/// Whether any host has the SR attached.
pub fn attached(db: &Db, sr: &Ref) -> bool {
    let pbds = db.links("SR", sr, "PBDs").unwrap_or_default();
    pbds.iter().any(|pbd| db.flag("PBD", pbd, "currently_attached").unwrap_or_default())
}

/// The tests of xapi.md 4.3, in its order.
pub fn check_vdi(db: &Db, vdi: &Ref, op: &str) -> Result<(), Failure> {
    let fail = |code: &str| Err(Failure::new(code, [vdi.as_str()]));
    let row = db.get("VDI", vdi)?;
    let text = |field: &str| row.get(field).and_then(Value::as_str).unwrap_or_default();
    let flag = |field: &str| row.get(field).and_then(Value::as_bool).unwrap_or_default();
    if upgrading(db) {
        return Err(Failure::new::<String>("NOT_SUPPORTED_DURING_UPGRADE", []));
    }
    let busy = |ops: Option<&Value>, but: &str| {
        let ops = ops.and_then(Value::as_object).into_iter().flatten();
        let mut ops = ops.filter_map(|(task, op)| Some((task.clone(), op.as_str()?.to_owned())));
        ops.find(|(_, other)| other != but)
            .map(|(task, other)| Failure::new("OTHER_OPERATION_IN_PROGRESS", ["VDI", vdi.as_str(), &other, &task]))
    };
    if let Some(failure) = busy(row.get("current_operations"), "copy") {
        return Err(failure);
    }
    let sr = db.link_to("VDI", vdi, "SR")?;
    if op == "resize" && !attached(db, &sr) {
        return Err(Failure::new("SR_HAS_NO_PBDS", [sr.as_str()]));
    }
    let vbds = db.links("VDI", vdi, "VBDs")?;
    let users: Vec<_> = vbds.iter().filter_map(|vbd| db.find("VBD", vbd)).collect();
    let held = |vbd: &&&super::schema::Record| {
        vbd.get("currently_attached").and_then(Value::as_bool).unwrap_or_default()
            && (op != "copy" || vbd.get("mode").and_then(Value::as_str) == Some("RW"))
    };
    if !LIVE.contains(&op) && users.iter().any(|vbd| held(&vbd)) {
        return Err(Failure::new("VDI_IN_USE", [vdi.as_str(), op]));
    }
    if op != "data_destroy"
        && let Some(failure) = users.iter().find_map(|vbd| busy(vbd.get("current_operations"), ""))
    {
        return Err(failure);
    }
    feature(db, &sr, op)?;
    let cbt = flag("cbt_enabled");
    match op {
        "clone" | "copy" | "resize" | "snapshot" | "enable_cbt" | "disable_cbt" if text("type") == "cbt_metadata" => {
            Err(Failure::new("VDI_INCOMPATIBLE_TYPE", [vdi.as_str(), "cbt_metadata"]))
        }
        "mirror" | "set_on_boot" if cbt => fail("VDI_CBT_ENABLED"),
        "destroy" if db.text("SR", &sr, "type")? == "udev" => fail("VDI_IS_A_PHYSICAL_DEVICE"),
        "destroy" if db.flag("SR", &sr, "is_tools_sr")? => {
            Err(Failure::new("SR_OPERATION_NOT_SUPPORTED", [sr.as_str()]))
        }
        "destroy" if text("type") == "rrd" => fail("VDI_HAS_RRDS"),
        "destroy" if text("type") == "ha_statefile" && protected(db) => {
            Err(Failure::new::<String>("HA_IS_ENABLED", []))
        }
        "snapshot" if flag("sharable") => fail("VDI_IS_SHARABLE"),
        "snapshot" | "copy" if text("on_boot") == "reset" => {
            Err(Failure::new::<String>("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION", []))
        }
        "snapshot" if row.get("current_operations").and_then(Value::as_object).is_some_and(|ops| !ops.is_empty()) => {
            Err(Failure::new("OPERATION_NOT_ALLOWED", ["Snapshot operation not allowed during copy."]))
        }
        "enable_cbt" | "disable_cbt" if flag("is_a_snapshot") => {
            Err(Failure::new("OPERATION_NOT_ALLOWED", ["VDI is a snapshot: changed block tracking cannot be changed."]))
        }
        "enable_cbt" | "disable_cbt" if !["user", "system"].contains(&text("type")) => {
            Err(Failure::new("VDI_INCOMPATIBLE_TYPE", [vdi.as_str(), text("type")]))
        }
        "data_destroy" if !flag("is_a_snapshot") => {
            Err(Failure::new("OPERATION_NOT_ALLOWED", ["VDI is not a snapshot: its data cannot be destroyed."]))
        }
        "data_destroy" if !cbt => fail("VDI_NO_CBT_METADATA"),
        _ => Ok(()),
    }
}

/// Row 1 of xapi.md 4.3: the pool's hosts are of different versions.
fn upgrading(db: &Db) -> bool {
    let marked = |row: &super::schema::Record| {
        row.get("other_config").is_some_and(|keys| keys.get("rolling_upgrade_in_progress").is_some())
    };
    db.all("pool").any(|(_, row)| marked(row))
}

/// Row 9 of xapi.md 4.3: a statefile is in use for as long as high availability is on.
fn protected(db: &Db) -> bool {
    db.all("pool").any(|(_, row)| row.get("ha_enabled").and_then(Value::as_bool).unwrap_or_default())
}

/// Row 6 of xapi.md 4.3: what the SR's driver can do at all.
fn feature(db: &Db, sr: &Ref, op: &str) -> Result<(), Failure> {
    let needed = match op {
        "create" => "VDI_CREATE",
        "snapshot" => "VDI_SNAPSHOT",
        "clone" => "VDI_CLONE",
        "destroy" => "VDI_DELETE",
        "resize" => "VDI_RESIZE",
        "update" => "VDI_UPDATE",
        "enable_cbt" | "disable_cbt" | "data_destroy" | "list_changed_blocks" => "VDI_CONFIG_CBT",
        "set_on_boot" => "VDI_RESET_ON_BOOT",
        _ => return Ok(()),
    };
    let kind = db.text("SR", sr, "type")?;
    let driver = db.all("SM").find(|(_, sm)| sm.get("type").and_then(Value::as_str) == Some(kind));
    let has = driver.is_none_or(|(_, sm)| sm.get("features").is_some_and(|f| f.get(needed).is_some()));
    if has { Ok(()) } else { Err(Failure::new("SR_OPERATION_NOT_SUPPORTED", [sr.as_str()])) }
}

/// What the storage driver's trouble becomes (xapi.md 9.3).
pub fn backend(error: &DiskError) -> Failure {
    let (code, reason) = match error {
        DiskError::Missing(_) => ("SR_BACKEND_FAILURE_46", "The VDI is not available"),
        DiskError::TooDeep(_) => ("SR_BACKEND_FAILURE_109", "The snapshot chain is too long"),
        DiskError::Beyond(..) => ("SR_BACKEND_FAILURE_79", "VDI Invalid size"),
        DiskError::ReadOnly(_) => ("SR_BACKEND_FAILURE_46", "The VDI is not available for writing"),
        DiskError::Io(_) => ("SR_BACKEND_FAILURE_1200", "Generic backend exception"),
    };
    Failure::new(code, ["", reason, &error.to_string()])
}
