//! `VM.clone`, `VM.copy` and the disks that a template describes (xapi.md 4.5, 14).
//!
//! The order shows to a watcher, and a death leaves what was made so far: disks, then the record (named and keyed from first sight),
//! VBDs, network cards.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Answer, Call, Pool, allowed, schema::Record, storage::STAGE, vbd::made_up_mac, vdi, vm};
use crate::xapi::wire::{Failure, NEVER, Ref};

/// What a clone does not take over.
const OWN: [&str; 14] = [
    "uuid",
    "VBDs",
    "VIFs",
    "consoles",
    "VTPMs",
    "VGPUs",
    "VUSBs",
    "crash_dumps",
    "snapshots",
    "parent",
    "children",
    "attached_PCIs",
    "current_operations",
    "blocked_operations",
];

/// How a machine's disks are made anew.
pub enum Copying {
    Clone,
    /// In full; on the same repositories where null.
    Copy(Ref),
    /// Without these disks.
    Snapshot(Vec<String>),
}

/// `VM.clone`, or with a repository given `VM.copy`.
pub async fn clone(pool: &Arc<Pool>, call: &Call, copy_to: Option<Ref>) -> Answer {
    let (source, name) = (call.reference(0), call.text(1));
    let op = if copy_to.is_some() { "copy" } else { "clone" };
    let operation = vm::begin(pool, call, &source, op).await?;
    let uuid = pool.db().text("VM", &source, "uuid")?.to_owned();
    let stage = |what: &str| format!("VM.{op}/{what}/{uuid}");
    let made = disks(pool, call, &source, &copy_to.map_or(Copying::Clone, Copying::Copy)).await?;
    pool.clock.stage(&stage("disks"), STAGE).await;
    let child = record(pool, &source, vec![("name_label", json!(name))])?;
    pool.clock.stage(&stage("record"), STAGE).await;
    for row in made {
        devices(pool, &child, "VBD", vec![row]);
        pool.clock.stage(&stage("vbd"), STAGE / 5).await;
    }
    pool.clock.stage(&stage("vbds"), STAGE).await;
    devices(pool, &child, "VIF", cards(pool, &source, false)?);
    pool.clock.stage(&stage("vifs"), STAGE).await;
    drop(operation);
    allowed::refresh(pool, "VM", &child);
    Ok(json!(child))
}

/// Gives a machine devices like these.
pub fn devices(pool: &Pool, vm: &Ref, class: &str, rows: Vec<Record>) {
    for row in rows {
        let fields = row.iter().map(|(k, v)| (k.as_str(), v.clone())).chain([("VM", json!(vm))]);
        pool.db().create(class, fields);
    }
}

/// The source's VBDs with their disks made anew; a drive keeps its disc. Copies are taken back on failure; a death leaves them
/// (xapi.md 4.5).
pub async fn disks(pool: &Arc<Pool>, call: &Call, source: &Ref, how: &Copying) -> Result<Vec<Record>, Failure> {
    let mut made = Vec::new();
    let rows = remake(pool, call, source, how, &mut made).await;
    if rows.is_err() {
        for disk in made {
            vdi::destroy(pool, call, &disk).await.map(|_| ()).unwrap_or_default();
        }
    }
    rows
}

async fn remake(
    pool: &Arc<Pool>,
    call: &Call,
    source: &Ref,
    how: &Copying,
    made: &mut Vec<Ref>,
) -> Result<Vec<Record>, Failure> {
    let mut rows = Vec::new();
    let vbds = pool.db().links("VM", source, "VBDs")?;
    for vbd in vbds {
        let mut row = pool.db().get("VBD", &vbd)?.clone();
        let text = |field: &str| row.get(field).and_then(Value::as_str).unwrap_or_default();
        let disk = Ref(text("VDI").to_owned());
        if text("type") == "Disk" && pool.db().find("VDI", &disk).is_some() {
            let child = match how {
                Copying::Snapshot(ignored) if ignored.iter().any(|i| i == disk.as_str()) => continue,
                Copying::Snapshot(_) => vdi::branch(pool, call, &disk, true).await?,
                Copying::Clone => vdi::branch(pool, call, &disk, false).await?,
                Copying::Copy(to) => {
                    let to = if to.is_null() { pool.db().link_to("VDI", &disk, "SR")? } else { to.clone() };
                    vdi::copy_disk(pool, call, &disk, &to, &Ref::null(), None).await?
                }
            };
            made.push(child.clone());
            row.insert("VDI".to_owned(), json!(child));
        }
        for field in ["uuid", "current_operations", "allowed_operations"] {
            row.remove(field);
        }
        row.insert("currently_attached".to_owned(), json!(false));
        row.insert("device".to_owned(), json!(""));
        rows.push(row);
    }
    Ok(rows)
}

/// The machine's row, whole at first sight, with copies of both metrics: start_time and the drivers' versions are the source's. `own` is
/// what it has for itself.
pub fn record(pool: &Pool, source: &Ref, own: Vec<(&str, Value)>) -> Result<Ref, Failure> {
    let mut db = pool.db();
    let mut row = db.get("VM", source)?.clone();
    OWN.iter().for_each(|field| drop(row.remove(*field)));
    let from_name = row.get("name_label").and_then(Value::as_str).unwrap_or_default().to_owned();
    let template = row.get("is_default_template").and_then(Value::as_bool).unwrap_or_default();
    for (field, class) in [("metrics", "VM_metrics"), ("guest_metrics", "VM_guest_metrics")] {
        let reference = Ref(row.get(field).and_then(Value::as_str).unwrap_or_default().to_owned());
        let copy = match db.find(class, &reference).cloned() {
            Some(mut metrics) => {
                metrics.remove("uuid");
                db.create(class, metrics.iter().map(|(k, v)| (k.as_str(), v.clone())))
            }
            None if class == "VM_metrics" => db.create(class, [("start_time", json!(NEVER))]),
            None => Ref::null(),
        };
        row.insert(field.to_owned(), json!(copy));
    }
    let snapshot = own.iter().any(|(field, _)| *field == "snapshot_of");
    if let Some(keys) = row.get_mut("other_config").and_then(Value::as_object_mut).filter(|_| !snapshot) {
        for key in ["default_template", "xensource_internal"] {
            keys.remove(key);
        }
        keys.insert("mac_seed".to_owned(), json!(uuid::Uuid::new_v4().to_string()));
        if template {
            keys.insert("base_template_name".to_owned(), json!(from_name));
        } else {
            keys.entry("base_template_name").or_insert(json!(from_name));
        }
    }
    let fresh = [
        ("power_state", json!("Halted")),
        ("domid", json!(-1)),
        ("resident_on", json!(Ref::NULL)),
        ("is_default_template", json!(false)),
        ("is_a_snapshot", json!(false)),
        ("snapshot_of", json!(Ref::NULL)),
        ("suspend_VDI", json!(Ref::NULL)),
        ("ha_always_run", json!(false)),
    ];
    row.extend(fresh.into_iter().chain(own).map(|(k, v)| (k.to_owned(), v)));
    Ok(db.create("VM", row.iter().map(|(k, v)| (k.as_str(), v.clone()))))
}

/// The source's network cards, under new addresses unless they are kept.
pub fn cards(pool: &Pool, source: &Ref, keep: bool) -> Result<Vec<Record>, Failure> {
    let db = pool.db();
    let vifs = db.links("VM", source, "VIFs")?;
    let copy = |vif: &Ref| {
        let mut row = db.find("VIF", vif)?.clone();
        for field in ["uuid", "current_operations"] {
            row.remove(field);
        }
        if !keep {
            row.insert("MAC".to_owned(), json!(made_up_mac()));
        }
        row.insert("currently_attached".to_owned(), json!(false));
        Some(row)
    };
    Ok(vifs.iter().filter_map(copy).collect())
}

/// `VM.provision` clears is_a_template by itself, after making the disks that `other_config["disks"]` describes (xapi.md 4.5, 14).
pub async fn provision(pool: &Arc<Pool>, call: &Call) -> Answer {
    let vm = call.reference(0);
    let _operation = vm::begin(pool, call, &vm, "provision").await?;
    let wanted = pool.db().field("VM", &vm, "other_config")?.get("disks").and_then(Value::as_str).map(str::to_owned);
    for disk in wanted.iter().flat_map(|xml| described_disks(xml)) {
        provision_disk(pool, call, &vm, &disk).await?;
    }
    pool.db().update("VM", &vm, |row| {
        row.insert("is_a_template".to_owned(), json!(false));
        row.get_mut("other_config").and_then(Value::as_object_mut).map(|map| map.remove("disks"));
    })?;
    Ok(json!(""))
}

/// A disk of `other_config["disks"]`.
struct Described {
    device: String,
    size: i64,
    sr: String,
    bootable: bool,
}

/// The disks in the XML of a template: `<provision><disk device="0" size="…" sr="…" bootable="true" type="system"/></provision>`.
fn described_disks(xml: &str) -> Vec<Described> {
    let mut reader = quick_xml::Reader::from_str(xml);
    let mut disks = Vec::new();
    // A template with broken XML describes no disk beyond the break.
    while let Ok(event) = reader.read_event() {
        match event {
            quick_xml::events::Event::Eof => break,
            quick_xml::events::Event::Empty(tag) | quick_xml::events::Event::Start(tag)
                if tag.name().as_ref() == "disk" =>
            {
                let of = |name: &str| {
                    let found = tag.try_get_attribute(name).ok().flatten()?;
                    Some(found.value.into_owned())
                };
                disks.push(Described {
                    device: of("device").unwrap_or_default(),
                    size: of("size").and_then(|s| s.parse().ok()).unwrap_or_default(),
                    sr: of("sr").unwrap_or_default(),
                    bootable: of("bootable").is_some_and(|b| b == "true"),
                });
            }
            _ => {}
        }
    }
    disks
}

/// Makes one described disk, on the pool's default SR unless it names another.
///
/// # Errors
/// Those of `VDI.create`; `DEFAULT_SR_NOT_FOUND [sr]`.
async fn provision_disk(pool: &Arc<Pool>, call: &Call, machine: &Ref, disk: &Described) -> Result<(), Failure> {
    let sr = {
        let db = pool.db();
        let default =
            db.all("pool").next().and_then(|(_, row)| row.get("default_SR")?.as_str()).unwrap_or_default().to_owned();
        let sr = db.by_uuid("SR", &disk.sr).unwrap_or(Ref(default));
        db.get("SR", &sr).map_err(|_| Failure::new("DEFAULT_SR_NOT_FOUND", [sr.as_str()]))?;
        sr
    };
    let row = [
        ("SR", json!(sr)),
        ("virtual_size", json!(disk.size)),
        ("type", json!("system")),
        ("name_label", json!(disk.device)),
        ("other_config", json!({})),
        ("tags", json!([])),
        ("sm_config", json!({})),
        ("xenstore_data", json!({})),
        ("sharable", json!(false)),
        ("read_only", json!(false)),
    ];
    let row: Record = row.map(|(k, v)| (k.to_owned(), v)).into_iter().collect();
    let made = vdi::make(pool, call, &row).await?;
    let fields = [
        ("VM", json!(machine)),
        ("VDI", json!(made)),
        ("userdevice", json!(disk.device)),
        ("bootable", json!(disk.bootable)),
        ("mode", json!("RW")),
        ("type", json!("Disk")),
    ];
    pool.db().create("VBD", fields);
    Ok(())
}
