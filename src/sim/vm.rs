//! Calls of VM: what may be done when (xapi.md 4.5, 14), and the calls that only change the record.
//!
//! What starts and stops machines is in `power`, what copies them in `clone`. [`begin`] is the daemon's own way of waiting for
//! a conflicting operation; every call that is an operation goes through it.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    Answer, Call, Pool, allowed, clone, db::Db, fields, placement, plugin, power, schema::Record, settings, snapshot,
    storage::mark, task,
};
use crate::xapi::wire::{Failure, NEVER, Ref};

/// A conflicting call is tried again after a pause (xapi.md 4.2).
const AGAIN: Duration = Duration::from_secs(1);
/// Operations that several callers may have on one machine at a time.
const TOGETHER: [&[&str]; 2] = [&["clone", "copy", "export"], &["snapshot", "checkpoint"]];
/// What a snapshot may undergo; all else is `VM_IS_SNAPSHOT` (xapi.md 4.5).
const FOR_SNAPSHOTS: [&str; 6] = ["revert", "clone", "copy", "export", "destroy", "hard_shutdown"];
/// What a template may undergo; all else is `VM_IS_TEMPLATE` (xapi.md 4.5).
const FOR_TEMPLATES: [&str; 11] = [
    "clone",
    "copy",
    "provision",
    "destroy",
    "export",
    "make_into_template",
    "changing_VCPUs",
    "changing_memory_limits",
    "changing_static_range",
    "changing_dynamic_range",
    "update_allowed_operations",
];

/// Answers the calls of this room; `None`: not mine.
pub async fn call(pool: &Arc<Pool>, call: &Call) -> Option<Answer> {
    if call.class != "VM" {
        return None;
    }
    let vm = call.reference(0);
    Some(match call.message {
        "clone" => clone::clone(pool, call, None).await,
        "copy" => clone::clone(pool, call, Some(call.reference(2))).await,
        "create" => create(pool, call),
        "destroy" => destroy(pool, call).await,
        "provision" => clone::provision(pool, call).await,
        "snapshot" | "checkpoint" => snapshot::take(pool, call).await,
        "revert" => snapshot::revert(pool, call).await,
        "start" => power::start(pool, call, None, call.flag(1)).await,
        "start_on" => power::start(pool, call, Some(call.reference(1)), call.flag(2)).await,
        "clean_shutdown" | "clean_reboot" => power::clean(pool, call, call.message).await,
        "hard_shutdown" | "hard_reboot" => power::hard(pool, call, call.message).await,
        "shutdown" => power::shutdown(pool, call).await,
        "pause" | "unpause" => power::pause(pool, call).await,
        "suspend" => power::suspend(pool, call).await,
        "resume" | "resume_on" => power::resume(pool, call).await,
        "pool_migrate" => power::migrate(pool, call).await,
        "power_state_reset" => power::reset(pool, call).await,
        "call_plugin" => plugin::call(pool, call),
        "set_is_a_template" => set_is_a_template(pool, call),
        "assert_can_boot_here" => placement::can_boot_here(&pool.db(), &vm, &call.reference(1)).map(|()| json!("")),
        "get_possible_hosts" => placement::possible_hosts(&pool.db(), &vm).map(|hosts| json!(hosts)),
        "assert_operation_valid" => check(&pool.db(), &vm, call.text(1)).map(|()| json!("")),
        "update_allowed_operations" => {
            allowed::refresh(pool, "VM", &vm);
            Ok(json!(""))
        }
        "query_services" => Err(Failure::new("NOT_IMPLEMENTED", ["query_services"])),
        "set_xenstore_data" | "add_to_xenstore_data" | "remove_from_xenstore_data" => xenstore(pool, call),
        _ => return settings::call(pool, call),
    })
}

/// Writing the map of a running machine makes the host write `vm-data` anew, out of the guest's hands (xapi.md 7.4).
fn xenstore(pool: &Arc<Pool>, call: &Call) -> Answer {
    let answer = fields::call(pool, call)?;
    let (uuid, map) = {
        let db = pool.db();
        let row = db.get("VM", &call.reference(0))?;
        (text(row, "uuid").to_owned(), row.get("xenstore_data").cloned().unwrap_or_default())
    };
    pool.world.domains.overwrite_vm_data(&uuid, &map);
    Ok(answer)
}

fn text<'a>(row: &'a Record, field: &str) -> &'a str {
    row.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn yes(row: &Record, field: &str) -> bool {
    row.get(field).and_then(Value::as_bool).unwrap_or_default()
}

/// The states in which an operation is possible, as the refusal lists them (xapi.md 14); empty: any.
fn states(op: &str, snapshot: bool) -> &'static [&'static str] {
    match op {
        "clone" | "copy" | "export" if snapshot => &["halted", "suspended"],
        "clone"
        | "copy"
        | "export"
        | "provision"
        | "start"
        | "start_on"
        | "make_into_template"
        | "changing_VCPUs"
        | "changing_static_range"
        | "changing_memory_limits" => &["halted"],
        "destroy" => &["halted", "suspended"],
        "hard_shutdown" | "shutdown" => &["paused", "suspended", "running"],
        "hard_reboot" => &["paused", "running"],
        "checkpoint" => &["paused", "suspended", "running"],
        "clean_shutdown" | "clean_reboot" | "pause" | "suspend" | "call_plugin" | "pool_migrate" => &["running"],
        "unpause" => &["paused"],
        "resume" | "resume_on" => &["suspended"],
        _ => &[],
    }
}

/// The tests of a VM operation, in the order of xapi.md 4.5.
pub fn check(db: &Db, vm: &Ref, op: &str) -> Result<(), Failure> {
    let row = db.get("VM", vm)?;
    if let Some(reason) = row.get("blocked_operations").and_then(|b| b.get(op)).and_then(Value::as_str) {
        return Err(Failure::new("OPERATION_BLOCKED", [vm.as_str(), reason]));
    }
    let state = text(row, "power_state").to_lowercase();
    let expected = states(op, yes(row, "is_a_snapshot"));
    if !expected.is_empty() && !expected.contains(&state.as_str()) {
        return Err(Failure::new("VM_BAD_POWER_STATE", [vm.as_str(), &expected.join(", "), &state]));
    }
    let under_way = row.get("current_operations").and_then(Value::as_object).into_iter().flatten();
    for (task, other) in under_way {
        let other = other.as_str().unwrap_or_default();
        let together = TOGETHER.iter().any(|set| set.contains(&op) && set.contains(&other));
        // A hard stop ends what else goes on (xapi.md 4.5).
        let forced = match op {
            "hard_shutdown" => other != "hard_shutdown",
            "hard_reboot" => !other.starts_with("hard_"),
            _ => false,
        };
        if !together && !forced {
            return Err(Failure::new("OTHER_OPERATION_IN_PROGRESS", ["VM", vm.as_str(), other, task]));
        }
    }
    let snapshot = yes(row, "is_a_snapshot");
    if yes(row, "is_a_template") && !snapshot && !FOR_TEMPLATES.contains(&op) {
        return Err(Failure::new("VM_IS_TEMPLATE", [vm.as_str(), op]));
    }
    if snapshot && !FOR_SNAPSHOTS.contains(&op) {
        return Err(Failure::new("VM_IS_SNAPSHOT", [vm.as_str(), op]));
    }
    if op == "provision" && !yes(row, "is_a_template") {
        return Err(Failure::new::<String>("PROVISION_ONLY_ALLOWED_ON_TEMPLATE", []));
    }
    if op == "revert" && !snapshot {
        return Err(Failure::new::<String>("REVERT_ONLY_ALLOWED_ON_SNAPSHOT", []));
    }
    if yes(row, "is_control_domain") {
        return Err(Failure::new("OPERATION_NOT_ALLOWED", ["Operations on domain 0 are not allowed"]));
    }
    if op.starts_with("clean_") && !obeys(db, vm) {
        return Err(Failure::new("VM_LACKS_FEATURE", [vm.as_str()]));
    }
    Ok(())
}

/// Whether the guest can be asked to stop: drivers, or an agent that says so (xapi.md 4.5).
pub fn obeys(db: &Db, vm: &Ref) -> bool {
    let metrics = db.link_to("VM", vm, "guest_metrics").unwrap_or_default();
    let Some(metrics) = db.find("VM_guest_metrics", &metrics) else { return false };
    let other = |key: &str| metrics.get("other").and_then(|o| o.get(key)).is_some();
    yes(metrics, "PV_drivers_detected") || other("feature-shutdown") || other("feature-poweroff")
}

/// A VM operation under way: shown until dropped.
pub struct Operation {
    pool: Arc<Pool>,
    vm: Ref,
    task: String,
}

impl Drop for Operation {
    fn drop(&mut self) {
        mark(&mut self.pool.db(), "VM", &self.vm, &self.task, None);
        allowed::refresh(&self.pool, "VM", &self.vm);
    }
}

/// Waits while another operation is under way, checks, and shows the operation. Stages: `VM.<call>/queued`, `VM.<call>/running`.
///
/// # Errors
/// Those of [`check`]; `TASK_CANCELLED` while waiting.
pub async fn begin(pool: &Arc<Pool>, call: &Call, vm: &Ref, op: &str) -> Result<Operation, Failure> {
    let uuid = pool.db().text("VM", vm, "uuid")?.to_owned();
    let label = |stage: &str| format!("VM.{}/{stage}/{uuid}", call.message);
    let wait = async {
        pool.clock.stage(&label("queued"), Duration::ZERO).await;
        loop {
            {
                let mut db = pool.db();
                match check(&db, vm, op) {
                    Err(failure) if failure.code == "OTHER_OPERATION_IN_PROGRESS" => {}
                    Err(failure) => return Err(failure),
                    Ok(()) => {
                        mark(&mut db, "VM", vm, call.task.as_str(), Some(op));
                        return Ok(());
                    }
                }
            }
            pool.clock.sleep(AGAIN).await;
        }
    };
    task::queue(pool, &call.task, wait).await??;
    let operation = Operation { pool: Arc::clone(pool), vm: vm.clone(), task: call.task.to_string() };
    pool.clock.stage(&label("running"), super::storage::STAGE).await;
    Ok(operation)
}

fn create(pool: &Arc<Pool>, call: &Call) -> Answer {
    let row = call.record(0)?;
    let mut db = pool.db();
    let metrics = db.create("VM_metrics", [("start_time", json!(NEVER))]);
    let own = [("metrics", json!(metrics)), ("domid", json!(-1)), ("power_state", json!("Halted"))];
    let vm = db.create("VM", row.iter().map(|(k, v)| (k.as_str(), v.clone())).chain(own));
    drop(db);
    allowed::refresh(pool, "VM", &vm);
    Ok(json!(vm))
}

/// `VM.destroy`: with its VBDs, VIFs, consoles and metrics, never a VDI (xapi.md 4.5).
async fn destroy(pool: &Arc<Pool>, call: &Call) -> Answer {
    let vm = call.reference(0);
    if pool.db().flag("VM", &vm, "is_default_template")? {
        return Err(Failure::new("VM_CANNOT_DELETE_DEFAULT_TEMPLATE", [vm.as_str()]));
    }
    let _operation = begin(pool, call, &vm, "destroy").await?;
    remove(&mut pool.db(), &vm)?;
    Ok(json!(""))
}

/// Takes a machine's rows away.
pub fn remove(db: &mut Db, vm: &Ref) -> Result<(), Failure> {
    for (set, class) in [("VBDs", "VBD"), ("VIFs", "VIF"), ("VTPMs", "VTPM"), ("consoles", "console")] {
        for child in db.links("VM", vm, set)? {
            db.delete(class, &child);
        }
    }
    for (field, class) in [("metrics", "VM_metrics"), ("guest_metrics", "VM_guest_metrics")] {
        let child = db.link_to("VM", vm, field)?;
        db.delete(class, &child);
    }
    db.delete("VM", vm);
    Ok(())
}

/// Works with or without `disks` and makes none; back to a template it counts as an operation, and the metrics are gone for good
/// (xapi.md 14).
fn set_is_a_template(pool: &Arc<Pool>, call: &Call) -> Answer {
    let (vm, on) = (call.reference(0), call.flag(1));
    let mut db = pool.db();
    if on {
        check(&db, &vm, "make_into_template")?;
        let metrics = db.link_to("VM", &vm, "metrics")?;
        db.delete("VM_metrics", &metrics);
        db.set("VM", &vm, "metrics", json!(Ref::NULL))?;
    }
    db.set("VM", &vm, "is_a_template", json!(on))?;
    drop(db);
    allowed::refresh(pool, "VM", &vm);
    Ok(json!(""))
}
