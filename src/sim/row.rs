//! Rows of VDIs, as the storage drivers write them: by calls, by scans, by a redo after the daemon's death.
//!
//! Used by `vdi`, `sr`, `restart` and `build`. It changes the database alone.

use serde_json::{Value, json};

use super::{Pool, db::Db, disk::Node};
use crate::xapi::wire::Ref;

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
        ("sm_config", if file.is_some() { json!({}) } else { json!({"vdi_type": "vhd"}) }),
        ("allowed_operations", json!(["destroy", "forget", "clone", "copy", "snapshot", "resize", "update"])),
    ]
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
