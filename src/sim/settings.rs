//! Settings of a VM that have rules of their own: memory, CPUs, what only a halted machine may change (xapi.md 3, 4.5).
//!
//! Asked by `vm` for what is no operation; all else about a record is left to the generic accessors of `fields`.

use serde_json::{Value, json};

use super::{Answer, Call, Pool, db::Db};
use crate::xapi::wire::{Failure, Ref};

/// Answers the calls of this room; `None`: not mine.
pub fn call(pool: &Pool, call: &Call) -> Option<Answer> {
    let vm = call.reference(0);
    Some(match call.message {
        "get_allowed_VBD_devices" => free_devices(&pool.db(), &vm, "VBDs", "VBD", "userdevice", 255),
        "get_allowed_VIF_devices" => free_devices(&pool.db(), &vm, "VIFs", "VIF", "device", 16),
        "set_memory" => {
            set_memory(pool, call, ["memory_static_max", "memory_dynamic_min", "memory_dynamic_max"].map(|f| (f, 1)))
        }
        "set_memory_limits" => set_memory(
            pool,
            call,
            [("memory_static_min", 1), ("memory_static_max", 2), ("memory_dynamic_min", 3), ("memory_dynamic_max", 4)],
        ),
        "set_memory_static_range" => set_memory(pool, call, [("memory_static_min", 1), ("memory_static_max", 2)]),
        "set_memory_dynamic_range" => set_memory(pool, call, [("memory_dynamic_min", 1), ("memory_dynamic_max", 2)]),
        "set_memory_static_min" => set_memory(pool, call, [("memory_static_min", 1)]),
        "set_memory_static_max" => set_memory(pool, call, [("memory_static_max", 1)]),
        "set_memory_dynamic_min" => set_memory(pool, call, [("memory_dynamic_min", 1)]),
        "set_memory_dynamic_max" => set_memory(pool, call, [("memory_dynamic_max", 1)]),
        "set_VCPUs_max" => set_vcpus(pool, call, "VCPUs_max"),
        "set_VCPUs_at_startup" => set_vcpus(pool, call, "VCPUs_at_startup"),
        "set_has_vendor_device" => halted_only(pool, &vm).and_then(|()| set(pool, call, "has_vendor_device")),
        "set_HVM_boot_policy" => halted_only(pool, &vm).and_then(|()| set(pool, call, "HVM_boot_policy")),
        "set_ha_restart_priority" => ha_priority(pool, call),
        _ => return None,
    })
}

fn set(pool: &Pool, call: &Call, field: &str) -> Answer {
    pool.db().set("VM", &call.reference(0), field, call.value(1).clone()).map(|()| json!(""))
}

fn halted_only(pool: &Pool, vm: &Ref) -> Result<(), Failure> {
    let db = pool.db();
    let state = db.text("VM", vm, "power_state")?.to_lowercase();
    if state == "halted" { Ok(()) } else { Err(Failure::new("VM_BAD_POWER_STATE", [vm.as_str(), "halted", &state])) }
}

/// Memory limits, which must keep their order (xapi.md 3).
fn set_memory<const N: usize>(pool: &Pool, call: &Call, given: [(&str, usize); N]) -> Answer {
    let vm = call.reference(0);
    halted_only(pool, &vm)?;
    let mut db = pool.db();
    let mut row = db.get("VM", &vm)?.clone();
    row.extend(given.iter().map(|(field, i)| ((*field).to_owned(), call.value(*i).clone())));
    let size = |field: &str| row.get(field).and_then(Value::as_i64).unwrap_or_default();
    let limits = ["memory_static_min", "memory_dynamic_min", "memory_dynamic_max", "memory_static_max"].map(size);
    if !limits.is_sorted() {
        return Err(Failure::new(
            "MEMORY_CONSTRAINT_VIOLATION",
            ["Memory limits must satisfy: static_min ≤ dynamic_min ≤ dynamic_max ≤ static_max"],
        ));
    }
    db.update("VM", &vm, |old| *old = row)?;
    Ok(json!(""))
}

/// The number at start may not exceed the maximum: raise that first (xapi.md 4.5).
fn set_vcpus(pool: &Pool, call: &Call, field: &str) -> Answer {
    let vm = call.reference(0);
    halted_only(pool, &vm)?;
    let wanted = call.int(1);
    let mut db = pool.db();
    let (max, start) = (db.int("VM", &vm, "VCPUs_max")?, db.int("VM", &vm, "VCPUs_at_startup")?);
    let fits = if field == "VCPUs_max" { start <= wanted } else { wanted <= max };
    if wanted < 1 || !fits {
        let text = "VCPUs_at_startup must be at least 1 and at most VCPUs_max";
        return Err(Failure::new("INVALID_VALUE", [field, &format!("{wanted}: {text}")]));
    }
    db.set("VM", &vm, field, json!(wanted))?;
    Ok(json!(""))
}

fn ha_priority(pool: &Pool, call: &Call) -> Answer {
    let value = call.text(1);
    if !["", "best-effort", "restart"].contains(&value) {
        return Err(Failure::new("INVALID_VALUE", ["ha_restart_priority", value]));
    }
    set(pool, call, "ha_restart_priority")?;
    // Of a running machine it counts at once.
    let (vm, mut db) = (call.reference(0), pool.db());
    if db.text("VM", &vm, "power_state")? == "Running" {
        db.set("VM", &vm, "ha_always_run", json!(value == "restart"))?;
    }
    Ok(json!(""))
}

fn free_devices(db: &Db, vm: &Ref, set: &str, class: &str, field: &str, count: u32) -> Answer {
    let taken: Vec<String> =
        db.links("VM", vm, set)?.iter().filter_map(|c| db.text(class, c, field).ok().map(str::to_owned)).collect();
    Ok((0..count).map(|n| n.to_string()).filter(|n| !taken.contains(n)).map(Value::from).collect())
}
