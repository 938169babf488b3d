//! Rows of VDIs, as the storage drivers write them: by calls, by scans, by a redo after the daemon's death.
//!
//! Used by `vdi`, `sr`, `restart` and `build`. It changes the database alone.

use serde_json::{Value, json};

use super::{
    Pool,
    db::Db,
    disk::{Format, Node},
    schema::Record,
};
use crate::xapi::wire::{Failure, Ref};

/// A row as it appears for a disk of the storage: no name, no keys, and anybody may destroy it already.
pub fn add_row(pool: &Pool, sr: &Ref, uuid: &str) -> Ref {
    let (node, used) = {
        let disks = pool.world.disks();
        (disks.get(uuid).cloned().unwrap_or_default(), disks.utilisation(uuid))
    };
    pool.db().create("VDI", fields(sr, uuid, &node, used))
}

/// The fields of such a row.
pub fn fields(sr: &Ref, uuid: &str, node: &Node, used: u64) -> Vec<(&'static str, Value)> {
    let file = node.name.as_deref();
    vec![
        ("uuid", json!(uuid)),
        ("location", json!(file.unwrap_or(uuid))),
        ("name_label", json!(file.unwrap_or_default())),
        ("SR", json!(sr)),
        ("virtual_size", json!(node.virtual_size)),
        ("physical_utilisation", json!(used)),
        ("type", json!("user")),
        ("read_only", json!(file.is_some())),
        ("managed", json!(!node.hidden)),
        ("on_boot", json!("persist")),
        ("sm_config", if file.is_some() { json!({}) } else { config(node.format) }),
        ("allowed_operations", json!(["destroy", "forget", "clone", "copy", "snapshot", "resize", "update"])),
    ]
}

/// What a driver says of a format (xapi.md 3, sm_config).
fn config(format: Format) -> Value {
    match format {
        Format::Vhd => json!({"vdi_type": "vhd"}),
        Format::Raw => json!({"vdi_type": "aio"}),
        Format::Qcow2 => json!({"vdi_type": "qcow2", "image-format": "qcow2"}),
    }
}

/// The format that a client asks for: VHD unless `sm_config` names another that the driver has (xapi.md 9.1).
///
/// # Errors
/// `SR_BACKEND_FAILURE_78`.
pub fn format(db: &Db, sr: &Ref, config: &Value) -> Result<Format, Failure> {
    let kind = db.text("SR", sr, "type")?;
    let refused = |format: &str| {
        Failure::new("SR_BACKEND_FAILURE_78", ["", "VDI Creation failed", &format!("no {format} disks on {kind}")])
    };
    match config.get("image-format").and_then(Value::as_str) {
        None | Some("vhd" | "") => Ok(Format::Vhd),
        Some("raw") if kind.starts_with("lvm") => Ok(Format::Raw),
        Some("qcow2") if kind != "smb" => Ok(Format::Qcow2),
        Some(other) => Err(refused(other)),
    }
}

/// What a client gave as `sm_config` beside what the driver says itself.
pub fn merge(row: &mut Record, given: Value) {
    if let (Some(own), Value::Object(given)) = (row.get_mut("sm_config").and_then(Value::as_object_mut), given) {
        for (key, value) in given {
            own.entry(key).or_insert(value);
        }
    }
}

/// Writes the tree's truth into `sm_config["vhd-parent"]`: it moves under everybody's feet (xapi.md 9.1).
pub fn link_parent(pool: &Pool, vdi: &Ref, uuid: &str) {
    let parent = pool.world.disks().get(uuid).ok().and_then(|n| n.parent.clone());
    configure(pool, vdi, "vhd-parent", parent.as_deref());
}

/// Writes a key of `sm_config`, the driver's own map, or takes it off.
pub fn configure(pool: &Pool, vdi: &Ref, key: &str, value: Option<&str>) {
    let change = pool.db().update("VDI", vdi, |row| {
        if let Some(map) = row.get_mut("sm_config").and_then(Value::as_object_mut) {
            match value {
                Some(value) => map.insert(key.to_owned(), json!(value)),
                None => map.remove(key),
            };
        }
    });
    change.unwrap_or_default();
}

/// Sets fields in one event; a row that somebody destroyed meanwhile needs none.
pub fn set<'a>(pool: &Pool, vdi: &Ref, fields: impl IntoIterator<Item = (&'a str, Value)>) {
    let change = pool.db().update("VDI", vdi, |row| row.extend(fields.into_iter().map(|(k, v)| (k.to_owned(), v))));
    change.unwrap_or_default();
}

/// Takes a VDI's row away, and the VBDs of halted machines with it (xapi.md 14, VBD).
pub fn drop_row(db: &mut Db, vdi: &Ref) {
    for vbd in db.links("VDI", vdi, "VBDs").unwrap_or_default() {
        db.delete("VBD", &vbd);
    }
    db.delete("VDI", vdi);
}
