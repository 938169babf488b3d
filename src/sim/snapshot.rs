//! Snapshots of machines (xapi.md 4.5): their record, their disks' snapshots, and the way back.
//!
//! Nobody needs them to make a disk; somebody else's tool takes and reverts them on whatever machine it finds.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    Answer, Call, Pool, allowed,
    clone::{self, Copying},
    power,
    schema::Record,
    storage::STAGE,
    vdi, vm,
};
use crate::xapi::wire::{Failure, Ref};

/// `VM.snapshot`, and `VM.checkpoint`, which keeps the memory of a running machine, too. The machine goes on meanwhile.
///
/// # Errors
/// Those of `vm::check` and of `VDI.snapshot`; `VM_NO_SUSPEND_SR [vm]`.
pub async fn take(pool: &Arc<Pool>, call: &Call) -> Answer {
    let (source, name) = (call.reference(0), call.text(1));
    let operation = vm::begin(pool, call, &source, call.message).await?;
    let uuid = pool.db().text("VM", &source, "uuid")?.to_owned();
    let stage = |what: &str| format!("VM.{}/{what}/{uuid}", call.message);
    let ignored = match call.message {
        "snapshot" => {
            call.value(2).as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    };
    let memory = if call.message == "checkpoint" { power::image(pool, &source)? } else { Ref::null() };
    let devices = clone::disks(pool, call, &source, &Copying::Snapshot(ignored)).await?;
    pool.clock.stage(&stage("disks"), STAGE).await;
    let state = pool.db().text("VM", &source, "power_state")?.to_owned();
    let asleep = !memory.is_null();
    let own = vec![
        ("name_label", json!(name)),
        ("is_a_template", json!(true)),
        ("is_a_snapshot", json!(true)),
        ("snapshot_of", json!(source)),
        ("snapshot_time", json!(pool.clock.stamp())),
        ("snapshot_info", json!({"power-state-at-snapshot": state, "disk-snapshot-type": "crash_consistent"})),
        ("power_state", json!(if asleep { "Suspended" } else { "Halted" })),
        ("suspend_VDI", json!(memory)),
    ];
    let child = clone::record(pool, &source, own)?;
    pool.db().set("VM", &source, "parent", json!(child))?;
    pool.clock.stage(&stage("record"), STAGE).await;
    clone::devices(pool, &child, "VBD", devices);
    clone::devices(pool, &child, "VIF", clone::cards(pool, &source, true)?);
    drop(operation);
    allowed::refresh(pool, "VM", &child);
    Ok(json!(child))
}

/// `VM.revert`: the machine is stopped hard, its disks are destroyed, and clones of the snapshot's disks take their place under the
/// same machine.
///
/// # Errors
/// `REVERT_ONLY_ALLOWED_ON_SNAPSHOT []`; `VM_REVERT_FAILED [snapshot, vm]` where the machine is gone; those of the steps.
pub async fn revert(pool: &Arc<Pool>, call: &Call) -> Answer {
    let snapshot = call.reference(0);
    let operation = vm::begin(pool, call, &snapshot, "revert").await?;
    let machine = pool.db().link_to("VM", &snapshot, "snapshot_of")?;
    if pool.db().find("VM", &machine).is_none() {
        return Err(Failure::new("VM_REVERT_FAILED", [snapshot.as_str(), machine.as_str()]));
    }
    let on_machine = vm::begin(pool, call, &machine, "reverting").await?;
    power::off(pool, &machine)?;
    let taken: Vec<Ref> = disks_of(pool, &snapshot)?
        .into_iter()
        .filter_map(|disk| pool.db().link_to("VDI", &disk, "snapshot_of").ok())
        .collect();
    let old = disks_of(pool, &machine)?;
    for (set, class) in [("VBDs", "VBD"), ("VIFs", "VIF")] {
        let mut db = pool.db();
        db.links("VM", &machine, set)?.iter().for_each(|child| db.delete(class, child));
    }
    for disk in old.into_iter().filter(|disk| taken.contains(disk)) {
        vdi::destroy(pool, call, &disk).await?;
    }
    let devices = clone::disks(pool, call, &snapshot, &Copying::Clone).await?;
    let kept: Record = pool.db().get("VM", &snapshot)?.clone();
    pool.db().update("VM", &machine, |row| {
        for field in RESTORED {
            row.insert(field.to_owned(), kept.get(field).cloned().unwrap_or_default());
        }
        row.insert("parent".to_owned(), json!(snapshot));
    })?;
    clone::devices(pool, &machine, "VBD", devices);
    clone::devices(pool, &machine, "VIF", clone::cards(pool, &snapshot, true)?);
    drop((operation, on_machine));
    allowed::refresh(pool, "VM", &machine);
    Ok(json!(""))
}

/// What of the record goes back with the disks.
const RESTORED: [&str; 9] = [
    "name_description",
    "tags",
    "other_config",
    "xenstore_data",
    "platform",
    "HVM_boot_params",
    "actions_after_shutdown",
    "actions_after_reboot",
    "actions_after_crash",
];

fn disks_of(pool: &Pool, vm: &Ref) -> Result<Vec<Ref>, Failure> {
    let db = pool.db();
    let vbds = db.links("VM", vm, "VBDs")?;
    let disks = vbds.iter().filter(|vbd| db.text("VBD", vbd, "type").is_ok_and(|kind| kind == "Disk"));
    disks.map(|vbd| db.link_to("VBD", vbd, "VDI")).collect()
}
