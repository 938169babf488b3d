//! Accessors that every class has: look-ups, getters, setters, adders and removers, driven by the schema alone.
//!
//! Last in the row of rooms: a field whose change means more than its value is answered before. A call that the schema knows and nobody
//! simulates ends here, as `NOT_IMPLEMENTED [function]`, which is what the daemon says of functions it lacks (xapi.md 4.5).

use serde_json::{Map, Value, json};

use super::schema::{Class, Qualifier, Record, schema};
use super::{Answer, Call, Pool, query};
use crate::xapi::wire::{Failure, Ref};

/// Setters that only a storage driver's own session may call (xapi.md 4.4, 14).
const DRIVER_ONLY: [&str; 7] = [
    "set_read_only",
    "set_sharable",
    "set_managed",
    "set_snapshot_of",
    "set_missing",
    "set_location",
    "set_is_a_snapshot",
];

/// Fields that the model calls read-only for the sake of checks that are not simulated: their setters, adders and removers only change them.
const PLAIN: [(&str, &str); 23] = [
    ("VM", "actions_after_crash"),
    ("VM", "ha_always_run"),
    ("VM", "start_delay"),
    ("VM", "shutdown_delay"),
    ("VM", "order"),
    ("VM", "NVRAM"),
    ("VM", "HVM_shadow_multiplier"),
    ("VM", "bios_strings"),
    ("VM", "domain_type"),
    ("VM", "suspend_VDI"),
    ("VM", "appliance"),
    ("VDI", "allow_caching"),
    ("SR", "name_label"),
    ("SR", "name_description"),
    ("SR", "shared"),
    ("SR", "physical_size"),
    ("PBD", "device_config"),
    ("VIF", "locking_mode"),
    ("VIF", "ipv4_allowed"),
    ("VIF", "ipv6_allowed"),
    ("network", "purpose"),
    ("network", "default_locking_mode"),
    ("pool", "guest_agent_config"),
];

/// The accessors of any class.
pub fn call(pool: &Pool, call: &Call) -> Answer {
    let unknown = || Failure::new("NOT_IMPLEMENTED", [format!("{}.{}", call.class, call.message)]);
    let class = schema().class(call.class).ok_or_else(unknown)?;
    let object = call.reference(0);
    if class.name == "VDI" && DRIVER_ONLY.contains(&call.message) {
        return Err(Failure::new("PERMISSION_DENIED", [format!("{}.{}", call.class, call.message)]));
    }
    match call.message {
        "get_all" => Ok(pool.db().all(call.class).map(|(r, _)| json!(r)).collect()),
        "get_all_records" => Ok(records(pool, call.class, |_| true)),
        "get_all_records_where" | "get_all_where" => {
            let expression = query::parse(call.text(0))?;
            query::check(&expression, class)?;
            let found = records(pool, call.class, |row| query::holds(&expression, row));
            let Value::Object(found) = found else { return Ok(found) };
            let keys_only = call.message == "get_all_where";
            Ok(if keys_only { found.into_iter().map(|(r, _)| json!(r)).collect() } else { Value::Object(found) })
        }
        "get_record" => Ok(Value::Object(pool.db().get(call.class, &object)?.clone())),
        "get_by_uuid" => Ok(json!(pool.db().by_uuid(call.class, call.text(0))?)),
        "get_by_name_label" => {
            let named = |row: &Record| row.get("name_label").and_then(Value::as_str) == Some(call.text(0));
            Ok(pool.db().all(call.class).filter(|(_, row)| named(row)).map(|(r, _)| json!(r)).collect())
        }
        message => field(pool, call, class, &object, message).unwrap_or_else(|| Err(unknown())),
    }
}

fn records(pool: &Pool, class: &str, wanted: impl Fn(&Record) -> bool) -> Value {
    let db = pool.db();
    let rows = db.all(class).filter(|(_, row)| wanted(row));
    Value::Object(rows.map(|(r, row)| (r.to_string(), Value::Object(row.clone()))).collect())
}

fn field(pool: &Pool, call: &Call, class: &Class, object: &Ref, message: &str) -> Option<Answer> {
    if let Some(field) = message.strip_prefix("get_").and_then(|f| class.field(f)) {
        return Some(pool.db().field(&class.name, object, &field.name).cloned());
    }
    let verbs = ["set_", "add_to_", "remove_from_", "add_", "remove_"];
    let (verb, field) = verbs.iter().find_map(|v| Some((*v, class.field(message.strip_prefix(v)?)?)))?;
    if field.qualifier != Qualifier::Rw && !PLAIN.contains(&(class.name.as_str(), field.name.as_str())) {
        return None;
    }
    let name = field.name.as_str();
    Some(change(pool, call, object, verb, name).map(|()| json!("")))
}

fn change(pool: &Pool, call: &Call, object: &Ref, verb: &str, name: &str) -> Result<(), Failure> {
    let mut db = pool.db();
    let class = call.class;
    let key = call.text(1);
    if verb == "add_to_" && db.field(class, object, name)?.get(key).is_some() {
        // The one test-and-set there is: refused for an equal value, too (xapi.md 14, Mark).
        return Err(Failure::new("MAP_DUPLICATE_KEY", [class, name, object.as_str(), key]));
    }
    db.update(class, object, |row| {
        let slot = row.entry(name).or_insert(Value::Null);
        match verb {
            "set_" => *slot = call.value(1).clone(),
            "add_to_" => {
                if let Some(map) = slot.as_object_mut() {
                    map.insert(key.to_owned(), call.value(2).clone());
                }
            }
            "remove_from_" => {
                slot.as_object_mut().map(|map: &mut Map<_, _>| map.remove(key));
            }
            _ => {
                if let Some(set) = slot.as_array_mut() {
                    set.retain(|v| v != call.value(1));
                    if verb == "add_" {
                        set.push(call.value(1).clone());
                    }
                }
            }
        }
    })
}
