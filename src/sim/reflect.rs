//! How a domain's truth reaches the database: power state, place, devices, guest metrics and `xenstore_data` of its machine.
//!
//! Told by `power`, `guest` and `restart` whenever a domain changed. The only writer of those rows; it changes no domain.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{Pool, domain::Seen, schema::Record};
use crate::xapi::wire::Ref;

/// Brings a machine's rows in line with its domain: state, place, devices, and at a new boot start_time and fresh guest metrics
/// (xapi.md 4.5, "Guest-driven power changes"). A machine that the database does not know is left alone.
pub fn reflect(pool: &Arc<Pool>, vm: &str) {
    let Ok(row) = pool.db().by_uuid("VM", vm) else { return };
    let changed = match pool.world.domains.seen(vm) {
        up @ Seen::Up { .. } => raise(pool, &row, &up),
        Seen::Asleep => down(pool, &row, "Suspended"),
        Seen::Off => down(pool, &row, "Halted"),
    };
    // A row that went meanwhile needs nothing.
    changed.unwrap_or_default();
    publish(pool, vm);
    super::allowed::refresh(pool, "VM", &row);
}

type Done = Result<(), crate::xapi::wire::Failure>;

/// A new boot makes guest metrics and console anew; a domain that carries an older boot on keeps the metrics.
fn raise(pool: &Pool, vm: &Ref, seen: &Seen) -> Done {
    let Seen::Up { domid, moved, host, started, paused } = seen else { return Ok(()) };
    let mut db = pool.db();
    let host = db.by_uuid("host", host)?;
    // Each host counts its domains: two may have the same number.
    if db.int("VM", vm, "domid")? != *domid || db.link_to("VM", vm, "resident_on")? != host {
        let old = db.link_to("VM", vm, "guest_metrics")?;
        if !moved || db.find("VM_guest_metrics", &old).is_none() {
            db.delete("VM_guest_metrics", &old);
            let fresh = [("last_updated", json!(started)), ("live", json!(true))];
            let fresh = db.create("VM_guest_metrics", fresh);
            db.set("VM", vm, "guest_metrics", json!(fresh))?;
        }
        for console in db.links("VM", vm, "consoles")? {
            db.delete("console", &console);
        }
        let console = db.create("console", [("protocol", json!("rfb")), ("VM", json!(vm))]);
        let at = format!("https://{}/console?ref={console}", db.text("host", &host, "address")?);
        db.set("console", &console, "location", json!(at))?;
        let metrics = db.link_to("VM", vm, "metrics")?;
        if db.find("VM_metrics", &metrics).is_some() {
            db.set("VM_metrics", &metrics, "start_time", json!(started))?;
        }
        // A move leaves the devices as they are.
        if !moved || db.text("VM", vm, "power_state")? != "Running" {
            devices(&mut db, vm, true)?;
        }
    }
    let state = if *paused { "Paused" } else { "Running" };
    db.update("VM", vm, |row| {
        let fields = [("power_state", json!(state)), ("domid", json!(domid)), ("resident_on", json!(host))];
        row.extend(fields.map(|(k, v)| (k.to_owned(), v)));
    })
}

/// A machine without a domain.
pub fn down(pool: &Pool, vm: &Ref, state: &str) -> Done {
    let mut db = pool.db();
    if db.int("VM", vm, "domid")? < 0 && db.text("VM", vm, "power_state")? == state {
        return Ok(());
    }
    for console in db.links("VM", vm, "consoles")? {
        db.delete("console", &console);
    }
    devices(&mut db, vm, false)?;
    db.update("VM", vm, |row| {
        let fields = [("power_state", json!(state)), ("domid", json!(-1)), ("resident_on", json!(Ref::NULL))];
        row.extend(fields.map(|(k, v)| (k.to_owned(), v)));
    })
}

/// Everything there at the start of a domain is plugged, an empty drive too; what is made later is not (xapi.md 4.6).
fn devices(db: &mut super::db::Db, vm: &Ref, on: bool) -> Done {
    for vbd in db.links("VM", vm, "VBDs")? {
        let device =
            db.text("VBD", &vbd, "userdevice")?.parse::<u8>().map(|n| format!("xvd{}", char::from(b'a' + n.min(25))));
        db.update("VBD", &vbd, |row| {
            row.insert("currently_attached".to_owned(), json!(on));
            if on {
                row.insert("device".to_owned(), json!(device.unwrap_or_default()));
            }
        })?;
    }
    for vif in db.links("VM", vm, "VIFs")? {
        db.set("VIF", &vif, "currently_attached", json!(on))?;
    }
    Ok(())
}

/// What the host reads out of a domain's store, into `VM.xenstore_data` and the guest metrics (xapi.md 7.1, 7.2).
pub fn publish(pool: &Arc<Pool>, vm: &str) {
    let Some((store, wrote)) = pool.world.domains.with(vm, |d| (d.store.clone(), d.wrote)) else { return };
    let mut db = pool.db();
    let Ok(row) = db.by_uuid("VM", vm) else { return };
    if wrote {
        // What is in the store wins: the whole map is replaced, and other keys are dropped (xapi.md 7.4).
        let map: Record = below(&store, &["vm-data/", "FIST/"]).map(|(k, v)| (k.clone(), json!(v))).collect();
        db.set("VM", &row, "xenstore_data", Value::Object(map)).unwrap_or_default();
    }
    let metrics = db.link_to("VM", &row, "guest_metrics").unwrap_or_default();
    let fields = super::metrics::mapped(&store);
    let now = pool.clock.stamp();
    let same = db.find("VM_guest_metrics", &metrics).is_some_and(|m| fields.iter().all(|(k, v)| m.get(*k) == Some(v)));
    if !same {
        let change = db.update("VM_guest_metrics", &metrics, |m| {
            m.extend(fields.into_iter().map(|(k, v)| (k.to_owned(), v)));
            m.insert("last_updated".to_owned(), json!(now));
        });
        change.unwrap_or_default();
    }
    drop(db);
    super::allowed::refresh(pool, "VM", &row);
}

/// Keys that begin with one of the prefixes.
pub fn below<'a>(
    store: &'a BTreeMap<String, String>,
    prefixes: &'a [&'a str],
) -> impl Iterator<Item = (&'a String, &'a String)> {
    store.iter().filter(move |(k, _)| prefixes.iter().any(|p| k.starts_with(p)))
}

/// How long a written key is on its way to the database (xapi.md 7.1: usually under a second).
pub const ON_ITS_WAY: Duration = Duration::from_millis(200);
