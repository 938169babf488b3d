//! Calls of VBD and VIF (xapi.md 4.6): rows for the most part, and a disc that changes in a running machine.
//!
//! Also plants what the control domain holds, for `VDI.copy` and for tests of leaked devices.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    Answer, Call, Pool, allowed,
    db::Db,
    guest,
    schema::Record,
    storage::{STAGE, mark},
};
use crate::xapi::wire::{Failure, Ref};

/// Answers the calls of this room; `None`: not mine.
pub async fn call(pool: &Arc<Pool>, call: &Call) -> Option<Answer> {
    let object = call.reference(0);
    Some(match (call.class, call.message) {
        ("VBD", "create") => call.record(0).and_then(|row| create(pool, row)),
        ("VBD", "destroy") => destroy(&mut pool.db(), &object),
        ("VBD", "insert" | "eject") => change_disc(pool, call).await,
        ("VBD", "plug" | "unplug" | "unplug_force") => plug(pool, call).await,
        ("VBD", "set_mode") => set_mode(&mut pool.db(), call),
        ("VBD", "assert_attachable") => check(&pool.db(), &object, "attach").map(|()| json!("")),
        ("VIF", "plug" | "unplug") => plug_card(&mut pool.db(), &object, call.message == "plug"),
        ("VIF", "move") => move_card(&mut pool.db(), call),
        ("VIF", "create") => call.record(0).and_then(|row| create_vif(&mut pool.db(), row)),
        ("VIF", "destroy") => {
            let mut db = pool.db();
            db.get("VIF", &object).map(|_| ()).map(|()| {
                db.delete("VIF", &object);
                json!("")
            })
        }
        _ => return None,
    })
}

fn text<'a>(row: &'a Record, field: &str) -> &'a str {
    row.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn reference(row: &Record, field: &str) -> Ref {
    Ref(text(row, field).to_owned())
}

fn none(code: &str) -> Failure {
    Failure::new::<String>(code, [])
}

/// The rules of the constructor, in the order of xapi.md 4.6.
fn create(pool: &Arc<Pool>, mut row: Record) -> Answer {
    let mut db = pool.db();
    let (vm, vdi) = (reference(&row, "VM"), reference(&row, "VDI"));
    let empty = row.get("empty").and_then(Value::as_bool).unwrap_or_default();
    db.get("VM", &vm)?;
    if text(&row, "type") == "CD" && text(&row, "mode") != "RO" {
        return Err(none("VBD_CDS_MUST_BE_READONLY"));
    }
    if empty && text(&row, "type") != "CD" {
        return Err(Failure::new("VBD_NOT_REMOVABLE_MEDIA", ["in constructor"]));
    }
    if !empty {
        let disk = db.get("VDI", &vdi)?;
        if text(&row, "mode") == "RW" && disk.get("read_only").and_then(Value::as_bool) == Some(true) {
            return Err(Failure::new("VDI_READONLY", [vdi.as_str()]));
        }
        if disk.get("managed").and_then(Value::as_bool) == Some(false) {
            return Err(Failure::new("VDI_NOT_MANAGED", [vdi.as_str()]));
        }
        let kind = text(disk, "type");
        if ["cbt_metadata", "rrd", "redo_log", "ha_statefile"].contains(&kind) {
            return Err(Failure::new("VDI_INCOMPATIBLE_TYPE", [vdi.as_str(), kind]));
        }
    }
    let device = free_device(&db, &vm, "VBDs", "VBD", "userdevice", text(&row, "userdevice"), 255)?;
    row.insert("userdevice".to_owned(), json!(device));
    row.insert("currently_attached".to_owned(), json!(false));
    let vbd = db.create("VBD", row.iter().map(|(k, v)| (k.as_str(), v.clone())));
    drop(db);
    for (class, object) in [("VBD", &vbd), ("VDI", &vdi)] {
        allowed::refresh(pool, class, object);
    }
    Ok(json!(vbd))
}

fn free_device(
    db: &Db,
    vm: &Ref,
    set: &str,
    class: &str,
    field: &str,
    wanted: &str,
    limit: u32,
) -> Result<String, Failure> {
    let taken: Vec<&str> =
        db.links("VM", vm, set)?.iter().filter_map(|c| db.find(class, c)).map(|row| text(row, field)).collect();
    if wanted == "autodetect" {
        let free = (0..limit).map(|n| n.to_string()).find(|n| !taken.contains(&n.as_str()));
        return free.ok_or_else(|| Failure::new("INVALID_DEVICE", [wanted]));
    }
    if wanted.parse::<u32>().is_ok_and(|n| n < limit) {
        let exists = taken.contains(&wanted);
        return if exists { Err(Failure::new("DEVICE_ALREADY_EXISTS", [wanted])) } else { Ok(wanted.to_owned()) };
    }
    Err(Failure::new("INVALID_DEVICE", [wanted]))
}

fn destroy(db: &mut Db, vbd: &Ref) -> Answer {
    if db.flag("VBD", vbd, "currently_attached")? {
        let text =
            format!("VBD '{}' still attached to '{}'", db.text("VBD", vbd, "uuid")?, db.link_to("VBD", vbd, "VM")?);
        return Err(Failure::new("OPERATION_NOT_ALLOWED", [text]));
    }
    db.delete("VBD", vbd);
    Ok(json!(""))
}

/// What may be done to a VBD now (xapi.md 4.6).
pub fn check(db: &Db, vbd: &Ref, op: &str) -> Result<(), Failure> {
    let row = db.get("VBD", vbd)?;
    let vm = reference(row, "VM");
    let machine = db.get("VM", &vm)?;
    let state = text(machine, "power_state").to_lowercase();
    let state_is_wrong = |expected: &str| Err(Failure::new("VM_BAD_POWER_STATE", [vm.as_str(), expected, &state]));
    if let Some((task, other)) =
        row.get("current_operations").and_then(Value::as_object).and_then(|ops| ops.iter().next())
    {
        let other = other.as_str().unwrap_or_default();
        return Err(Failure::new("OTHER_OPERATION_IN_PROGRESS", ["VBD", vbd.as_str(), other, task]));
    }
    let (disc, attached) =
        (text(row, "type") == "CD", row.get("currently_attached").and_then(Value::as_bool) == Some(true));
    match op {
        "insert" | "eject" => {
            if !disc {
                return Err(Failure::new("VBD_NOT_REMOVABLE_MEDIA", [vbd.as_str()]));
            }
            let empty = row.get("empty").and_then(Value::as_bool).unwrap_or_default();
            match (op, empty) {
                ("insert", false) => return Err(Failure::new("VBD_NOT_EMPTY", [vbd.as_str()])),
                ("eject", true) => return Err(Failure::new("VBD_IS_EMPTY", [vbd.as_str()])),
                _ => {}
            }
            if ["halted", "running"].contains(&state.as_str()) { Ok(()) } else { state_is_wrong("halted, running") }
        }
        "plug" | "unplug" | "unplug_force" | "attach" => {
            if state != "running" {
                return state_is_wrong("running");
            }
            let dom0 = machine.get("is_control_domain").and_then(Value::as_bool).unwrap_or_default();
            if !dom0 && !drivers(db, machine) {
                return Err(Failure::new("VM_MISSING_PV_DRIVERS", [vm.as_str()]));
            }
            if !dom0 && disc {
                let text =
                    if op == "plug" { "HVM CDROMs cannot be hotplugged" } else { "HVM CDROMs cannot be hot-unplugged" };
                return Err(Failure::new("OPERATION_NOT_ALLOWED", [text]));
            }
            match (op == "plug" || op == "attach", attached) {
                (true, true) => Err(Failure::new("DEVICE_ALREADY_ATTACHED", [vbd.as_str()])),
                (false, false) => Err(Failure::new("DEVICE_ALREADY_DETACHED", [vbd.as_str()])),
                (true, false) | (false, true) => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn drivers(db: &Db, machine: &Record) -> bool {
    let metrics = reference(machine, "guest_metrics");
    db.flag("VM_guest_metrics", &metrics, "PV_drivers_detected").unwrap_or_default()
}

/// A VBD operation that shows until it is dropped.
struct Operation {
    pool: Arc<Pool>,
    vbd: Ref,
    task: String,
}

impl Drop for Operation {
    fn drop(&mut self) {
        mark(&mut self.pool.db(), "VBD", &self.vbd, &self.task, None);
        allowed::refresh(&self.pool, "VBD", &self.vbd);
    }
}

async fn begin(pool: &Arc<Pool>, call: &Call, vbd: &Ref) -> Result<Operation, Failure> {
    let uuid = pool.db().text("VBD", vbd, "uuid")?.to_owned();
    loop {
        {
            let mut db = pool.db();
            match check(&db, vbd, call.message) {
                Err(failure) if failure.code == "OTHER_OPERATION_IN_PROGRESS" => {}
                Err(failure) => return Err(failure),
                Ok(()) => {
                    mark(&mut db, "VBD", vbd, call.task.as_str(), Some(call.message));
                    break;
                }
            }
        }
        super::task::queue(pool, &call.task, pool.clock.sleep(Duration::from_secs(1))).await?;
    }
    let operation = Operation { pool: Arc::clone(pool), vbd: vbd.clone(), task: call.task.to_string() };
    pool.clock.stage(&format!("VBD.{}/running/{uuid}", call.message), STAGE).await;
    Ok(operation)
}

/// `VBD.insert` and `VBD.eject`: the row while halted, the drive while running. A drive made while the machine ran does not exist for
/// the hypervisor (xapi.md 4.6).
async fn change_disc(pool: &Arc<Pool>, call: &Call) -> Answer {
    let (vbd, vdi) = (call.reference(0), call.reference(1));
    let insert = call.message == "insert";
    if insert {
        pool.db().get("VDI", &vdi)?;
    }
    let _operation = begin(pool, call, &vbd).await?;
    let mut db = pool.db();
    let vm = db.link_to("VBD", &vbd, "VM")?;
    let running = db.text("VM", &vm, "power_state")? == "Running";
    if running && !db.flag("VBD", &vbd, "currently_attached")? {
        return Err(Failure::new("INTERNAL_ERROR", ["Device is not connected"]));
    }
    let disc = if insert { vdi } else { Ref::null() };
    db.update("VBD", &vbd, |row| {
        row.insert("VDI".to_owned(), json!(disc));
        row.insert("empty".to_owned(), json!(!insert));
    })?;
    Ok(json!(""))
}

async fn plug(pool: &Arc<Pool>, call: &Call) -> Answer {
    let vbd = call.reference(0);
    let _operation = begin(pool, call, &vbd).await?;
    let on = call.message == "plug";
    pool.db().set("VBD", &vbd, "currently_attached", json!(on))?;
    let (vdi, vm) = {
        let db = pool.db();
        let vm = db.link_to("VBD", &vbd, "VM")?;
        (db.link_to("VBD", &vbd, "VDI")?, db.text("VM", &vm, "uuid")?.to_owned())
    };
    guest::plugged(pool, &vm);
    allowed::refresh(pool, "VDI", &vdi);
    Ok(json!(""))
}

fn set_mode(db: &mut Db, call: &Call) -> Answer {
    let vbd = call.reference(0);
    let vm = db.link_to("VBD", &vbd, "VM")?;
    let state = db.text("VM", &vm, "power_state")?.to_lowercase();
    if state != "halted" {
        return Err(Failure::new("VM_BAD_POWER_STATE", [vm.as_str(), "halted", &state]));
    }
    if db.text("VBD", &vbd, "type")? == "CD" && call.text(1) == "RW" {
        return Err(none("VBD_CDS_MUST_BE_READONLY"));
    }
    db.set("VBD", &vbd, "mode", json!(call.text(1)))?;
    Ok(json!(""))
}

fn create_vif(db: &mut Db, mut row: Record) -> Answer {
    let (vm, network) = (reference(&row, "VM"), reference(&row, "network"));
    db.get("VM", &vm)?;
    db.get("network", &network)?;
    let mac = text(&row, "MAC").to_owned();
    let well_formed = mac.split(':').filter(|p| p.len() == 2 && u8::from_str_radix(p, 16).is_ok()).count() == 6;
    if !mac.is_empty() && !well_formed {
        return Err(Failure::new("MAC_INVALID", [mac]));
    }
    let device = free_device(db, &vm, "VIFs", "VIF", "device", text(&row, "device"), 16)?;
    row.insert("device".to_owned(), json!(device));
    row.insert("currently_attached".to_owned(), json!(false));
    if mac.is_empty() {
        row.insert("MAC".to_owned(), json!(made_up_mac()));
        row.insert("MAC_autogenerated".to_owned(), json!(true));
    }
    Ok(json!(db.create("VIF", row.iter().map(|(k, v)| (k.as_str(), v.clone())))))
}

/// `VIF.plug` and `VIF.unplug`: as for a disk (xapi.md 4.6).
fn plug_card(db: &mut Db, vif: &Ref, on: bool) -> Answer {
    let row = db.get("VIF", vif)?;
    let (vm, attached) = (reference(row, "VM"), row.get("currently_attached").and_then(Value::as_bool) == Some(true));
    let machine = db.get("VM", &vm)?;
    let state = text(machine, "power_state").to_lowercase();
    if state != "running" {
        return Err(Failure::new("VM_BAD_POWER_STATE", [vm.as_str(), "running", &state]));
    }
    if !drivers(db, machine) {
        return Err(Failure::new("VM_MISSING_PV_DRIVERS", [vm.as_str()]));
    }
    match (on, attached) {
        (true, true) => return Err(Failure::new("DEVICE_ALREADY_ATTACHED", [vif.as_str()])),
        (false, false) => return Err(Failure::new("DEVICE_ALREADY_DETACHED", [vif.as_str()])),
        (true, false) | (false, true) => {}
    }
    db.set("VIF", vif, "currently_attached", json!(on))?;
    Ok(json!(""))
}

/// `VIF.move`: the same card in another network.
fn move_card(db: &mut Db, call: &Call) -> Answer {
    let network = call.reference(1);
    db.get("network", &network)?;
    db.set("VIF", &call.reference(0), "network", json!(network))?;
    Ok(json!(""))
}

/// A locally administered address.
pub fn made_up_mac() -> String {
    let id = uuid::Uuid::new_v4();
    let [a, b, c, d, e, ..] = *id.as_bytes();
    format!("5e:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
}

/// A disk held by a host's control domain: during a copy, an import or an export, or left behind by one that died (xapi.md 6.2).
pub fn attach_to_dom0(db: &mut Db, host: &Ref, vdi: &Ref, mode: &str) -> Ref {
    let dom0 = db.link_to("host", host, "control_domain").unwrap_or_default();
    let device = free_device(db, &dom0, "VBDs", "VBD", "userdevice", "autodetect", 255).unwrap_or_default();
    let fields = [
        ("VM", json!(dom0)),
        ("VDI", json!(vdi)),
        ("mode", json!(mode)),
        ("type", json!("Disk")),
        ("userdevice", json!(device)),
        ("unpluggable", json!(true)),
        ("currently_attached", json!(true)),
    ];
    db.create("VBD", fields)
}
