//! Starting and stopping machines (xapi.md 4.5, 14).
//!
//! Called by `vm` for clients, by `guest` when a system inside stops or reboots by itself, by `ha` and `restart`. Makes and ends domains;
//! the rows follow by `reflect`.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    Answer, Call, Pool,
    domain::Request,
    guest, ha, placement,
    reflect::{down, reflect},
    storage::STAGE,
    vm,
};
use crate::xapi::wire::{Failure, Ref};

/// A guest must acknowledge a clean shutdown, and then halt, within these times (xapi.md 4.5).
const ACKNOWLEDGE: Duration = Duration::from_secs(60);
const SHUT_DOWN: Duration = Duration::from_secs(1200);

/// How a guest's boot ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Halt,
    Reboot,
    Crash,
}

fn void() -> Answer {
    Ok(json!(""))
}

fn uuid_of(pool: &Pool, vm: &Ref) -> Result<String, Failure> {
    pool.db().text("VM", vm, "uuid").map(str::to_owned)
}

/// `VM.start` and `VM.start_on`; returns when the domain runs, not when its system is up.
///
/// # Errors
/// Those of `vm::check`; `VDI_IN_USE [vdi]` (sharing), `DISK_VBD_MUST_BE_READWRITE_FOR_HVM [vbd]`, `NO_HOSTS_AVAILABLE []`,
/// `SR_BACKEND_FAILURE_46` where the disk of a row is gone.
pub async fn start(pool: &Arc<Pool>, call: &Call, on: Option<Ref>, paused: bool) -> Answer {
    let machine = call.reference(0);
    let op = if on.is_some() { "start_on" } else { "start" };
    let _operation = vm::begin(pool, call, &machine, op).await?;
    devices_ready(pool, &machine)?;
    let host = pick(pool, &machine, on)?;
    let uuid = uuid_of(pool, &machine)?;
    pool.clock.stage(&format!("VM.{}/domain/{uuid}", call.message), STAGE * 5).await;
    boot(pool, &uuid, &host, paused)?;
    if pool.db().text("VM", &machine, "ha_restart_priority")? == "restart" {
        pool.db().set("VM", &machine, "ha_always_run", json!(true))?;
    }
    pool.clock.stage(&format!("VM.{}/started/{uuid}", call.message), STAGE).await;
    void()
}

/// The disks of a machine, as far as a start looks at them. Only here a second writer is refused (xapi.md 14, VBD).
fn devices_ready(pool: &Pool, machine: &Ref) -> Result<(), Failure> {
    let db = pool.db();
    let hvm = !db.text("VM", machine, "HVM_boot_policy")?.is_empty();
    for vbd in db.links("VM", machine, "VBDs")? {
        let row = db.get("VBD", &vbd)?;
        let text = |field: &str| row.get(field).and_then(Value::as_str).unwrap_or_default();
        let vdi = Ref(text("VDI").to_owned());
        let Some(disk) = db.find("VDI", &vdi) else { continue };
        if hvm && text("type") == "Disk" && text("mode") == "RO" {
            return Err(Failure::new("DISK_VBD_MUST_BE_READWRITE_FOR_HVM", [vbd.as_str()]));
        }
        let uuid = disk.get("uuid").and_then(Value::as_str).unwrap_or_default();
        let shared = disk.get("sharable").and_then(Value::as_bool).unwrap_or_default();
        let taken = !shared && (text("mode") == "RW") && other_user(&db, &vdi, &vbd);
        if taken || pool.world.lingers(uuid) {
            return Err(Failure::new("VDI_IN_USE", [vdi.as_str()]));
        }
        pool.world.disks().get(uuid).map_err(|e| super::storage::backend(&e))?;
    }
    Ok(())
}

/// Another machine's attached VBD. The control domain is exempt (xapi.md 6.2).
fn other_user(db: &super::db::Db, vdi: &Ref, own: &Ref) -> bool {
    let vbds = db.links("VDI", vdi, "VBDs").unwrap_or_default();
    vbds.iter().filter(|vbd| *vbd != own).any(|vbd| {
        let vm = db.link_to("VBD", vbd, "VM").unwrap_or_default();
        db.flag("VBD", vbd, "currently_attached").unwrap_or_default()
            && !db.flag("VM", &vm, "is_control_domain").unwrap_or_default()
    })
}

fn pick(pool: &Pool, machine: &Ref, on: Option<Ref>) -> Result<String, Failure> {
    let db = pool.db();
    let host = match on {
        Some(host) => {
            placement::can_boot_here(&db, machine, &host)?;
            host
        }
        None => {
            let affinity = db.link_to("VM", machine, "affinity")?;
            let mut possible = placement::possible_hosts(&db, machine)?;
            possible.sort_by_key(|host| (*host != affinity, residents(&db, host)));
            possible.into_iter().next().ok_or_else(|| Failure::new::<String>("NO_HOSTS_AVAILABLE", []))?
        }
    };
    Ok(db.text("host", &host, "uuid")?.to_owned())
}

fn residents(db: &super::db::Db, host: &Ref) -> usize {
    db.links("host", host, "resident_VMs").map_or(0, |vms| vms.len())
}

/// Makes a domain for a machine and puts its guest in.
pub fn boot(pool: &Arc<Pool>, uuid: &str, host: &str, paused: bool) -> Result<(), Failure> {
    let machine = pool.db().by_uuid("VM", uuid)?;
    let data = pool.db().field("VM", &machine, "xenstore_data")?.clone();
    pool.world.domains.make(uuid, host, pool.clock.stamp(), &data, paused);
    reflect(pool, uuid);
    guest::plugged(pool, uuid);
    guest::awaken(pool, uuid);
    Ok(())
}

/// A guest left its boot by itself; the machine's `actions_after_…` say what comes of it (xapi.md 4.5).
///
/// `born` tells the boot, see [`super::domain::Domain::born`].
pub fn left(pool: &Arc<Pool>, uuid: &str, born: i64, exit: Exit) {
    let found = pool.world.domains.with(uuid, |d| (d.born == born).then(|| (d.domid, d.host.clone())));
    let Some((domid, host)) = found.flatten() else { return };
    let field = match exit {
        Exit::Halt => "actions_after_shutdown",
        Exit::Reboot => "actions_after_reboot",
        Exit::Crash => "actions_after_crash",
    };
    let action = {
        let db = pool.db();
        let known = db.by_uuid("VM", uuid).and_then(|vm| db.text("VM", &vm, field).map(str::to_owned));
        known.unwrap_or_default()
    };
    if exit == Exit::Crash {
        message(pool, "VM_CRASHED", uuid);
    }
    if action == "preserve" {
        // The dead domain stays, for whoever wants to look into it.
        pool.world.domains.with(uuid, |d| d.deaf = true);
    } else if action.contains("restart") {
        // Running all the time, in a new domain.
        boot(pool, uuid, &host, false).unwrap_or_default();
        message(pool, "VM_REBOOTED", uuid);
    } else {
        halt(pool, uuid, Some(domid));
    }
}

/// Ends a domain; with high availability the machine may come back.
fn halt(pool: &Arc<Pool>, uuid: &str, domid: Option<i64>) {
    if !pool.world.domains.end(uuid, domid) {
        return;
    }
    pool.world.linger(pool, uuid);
    reflect(pool, uuid);
    message(pool, "VM_SHUTDOWN", uuid);
    ha::halted(pool, uuid);
}

/// `VM.clean_shutdown` and `VM.clean_reboot`: the guest is asked, and waited for.
///
/// # Errors
/// `VM_LACKS_FEATURE [vm]`; `VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT [vm]`; `VM_SHUTDOWN_TIMEOUT [vm, "1200."]`.
pub async fn clean(pool: &Arc<Pool>, call: &Call, op: &str) -> Answer {
    let machine = call.reference(0);
    let _operation = vm::begin(pool, call, &machine, op).await?;
    let request = if op == "clean_shutdown" { Request::Halt } else { Request::Reboot };
    if request == Request::Halt {
        // xapi.md 9.2.
        pool.db().set("VM", &machine, "ha_always_run", json!(false))?;
    }
    ask(pool, &machine, request).await
}

async fn ask(pool: &Arc<Pool>, machine: &Ref, request: Request) -> Answer {
    let uuid = uuid_of(pool, machine)?;
    let domains = &pool.world.domains;
    let Some(domid) = domains.domid(&uuid) else { return void() };
    domains.with(&uuid, |d| {
        d.heard = false;
        d.request.send_replace(Some(request));
    });
    let limit = |d| pool.clock.scaled(d);
    let other = move |d: Option<&super::domain::Domain>| d.map(|d| d.domid) != Some(domid);
    let heard = domains.until(&uuid, |d| other(d) || d.is_some_and(|d| d.heard));
    if tokio::time::timeout(limit(ACKNOWLEDGE), heard).await.is_err() {
        domains.with(&uuid, |d| d.request.send_replace(None));
        return Err(Failure::new("VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT", [machine.as_str()]));
    }
    if tokio::time::timeout(limit(SHUT_DOWN), domains.until(&uuid, other)).await.is_err() {
        return Err(Failure::new("VM_SHUTDOWN_TIMEOUT", [machine.as_str(), "1200."]));
    }
    void()
}

/// `VM.hard_shutdown` and `VM.hard_reboot`.
pub async fn hard(pool: &Arc<Pool>, call: &Call, op: &str) -> Answer {
    let machine = call.reference(0);
    let _operation = vm::begin(pool, call, &machine, op).await?;
    if op == "hard_shutdown" {
        pool.db().set("VM", &machine, "ha_always_run", json!(false))?;
        return off(pool, &machine);
    }
    let uuid = uuid_of(pool, &machine)?;
    let host = pool.world.domains.with(&uuid, |d| d.host.clone());
    let host = host.ok_or_else(|| Failure::new("INTERNAL_ERROR", ["the domain is gone"]))?;
    boot(pool, &uuid, &host, false)?;
    void()
}

/// Ends a machine's domain and throws its suspend image away, whichever it has.
pub fn off(pool: &Arc<Pool>, machine: &Ref) -> Answer {
    let uuid = uuid_of(pool, machine)?;
    halt(pool, &uuid, None);
    if pool.db().text("VM", machine, "power_state")? == "Suspended" {
        pool.world.domains.forget(&uuid);
        forget_image(pool, machine)?;
        reflect(pool, &uuid);
    }
    void()
}

/// `VM.shutdown`: cleanly, and on any failure hard.
pub async fn shutdown(pool: &Arc<Pool>, call: &Call) -> Answer {
    let machine = call.reference(0);
    let _operation = vm::begin(pool, call, &machine, "shutdown").await?;
    pool.db().set("VM", &machine, "ha_always_run", json!(false))?;
    let asked = {
        let db = pool.db();
        db.text("VM", &machine, "power_state")? == "Running" && vm::obeys(&db, &machine)
    };
    if asked && ask(pool, &machine, Request::Halt).await.is_ok() {
        return void();
    }
    off(pool, &machine)
}

/// `VM.pause` and `VM.unpause`. Nothing moves inside meanwhile.
pub async fn pause(pool: &Arc<Pool>, call: &Call) -> Answer {
    let machine = call.reference(0);
    let _operation = vm::begin(pool, call, &machine, call.message).await?;
    let uuid = uuid_of(pool, &machine)?;
    pool.world.domains.with(&uuid, |d| d.paused = call.message == "pause");
    reflect(pool, &uuid);
    void()
}

/// `VM.suspend`: needs a suspend SR on machine or pool (xapi.md 14, Power). The guest goes on from where it stood when it is resumed.
pub async fn suspend(pool: &Arc<Pool>, call: &Call) -> Answer {
    let machine = call.reference(0);
    let _operation = vm::begin(pool, call, &machine, "suspend").await?;
    let uuid = uuid_of(pool, &machine)?;
    let image = image(pool, &machine)?;
    pool.db().set("VM", &machine, "suspend_VDI", json!(image))?;
    pool.world.domains.sleep(&uuid);
    reflect(pool, &uuid);
    void()
}

/// Where a machine's memory is kept.
///
/// # Errors
/// `VM_NO_SUSPEND_SR [vm]`.
pub fn image(pool: &Pool, machine: &Ref) -> Result<Ref, Failure> {
    let mut db = pool.db();
    let own = db.link_to("VM", machine, "suspend_SR")?;
    let shared =
        db.all("pool").next().and_then(|(_, row)| row.get("suspend_image_SR")?.as_str().map(|r| Ref(r.to_owned())));
    let sr = [Some(own), shared].into_iter().flatten().find(|sr| db.find("SR", sr).is_some());
    let sr = sr.ok_or_else(|| Failure::new("VM_NO_SUSPEND_SR", [machine.as_str()]))?;
    let image = [
        ("SR", json!(sr)),
        ("type", json!("suspend")),
        ("name_label", json!("Suspend image")),
        ("managed", json!(true)),
    ];
    Ok(db.create("VDI", image))
}

/// `VM.pool_migrate`: the same boot in another domain on another host.
///
/// # Errors
/// Those of `vm::check` and `placement::can_boot_here`.
pub async fn migrate(pool: &Arc<Pool>, call: &Call) -> Answer {
    let (machine, host) = (call.reference(0), call.reference(1));
    let _operation = vm::begin(pool, call, &machine, "pool_migrate").await?;
    placement::can_boot_here(&pool.db(), &machine, &host)?;
    let (uuid, host) = (uuid_of(pool, &machine)?, pool.db().text("host", &host, "uuid")?.to_owned());
    pool.clock.stage(&format!("VM.pool_migrate/moving/{uuid}"), STAGE * 5).await;
    pool.world.domains.migrate(&uuid, &host);
    reflect(pool, &uuid);
    void()
}

/// `VM.power_state_reset`: the record alone says that the machine is off; a domain that is there runs on, until something makes the
/// daemon look at it again.
pub async fn reset(pool: &Arc<Pool>, call: &Call) -> Answer {
    let machine = call.reference(0);
    let _operation = vm::begin(pool, call, &machine, "power_state_reset").await?;
    down(pool, &machine, "Halted")?;
    void()
}

/// `VM.resume` and `VM.resume_on`: the same boot in a new domain, start_time and guest metrics as they were.
pub async fn resume(pool: &Arc<Pool>, call: &Call) -> Answer {
    let machine = call.reference(0);
    let _operation = vm::begin(pool, call, &machine, call.message).await?;
    let on = (call.message == "resume_on").then(|| call.reference(1));
    devices_ready(pool, &machine)?;
    let host = pick(pool, &machine, on)?;
    let uuid = uuid_of(pool, &machine)?;
    let data = pool.db().field("VM", &machine, "xenstore_data")?.clone();
    let paused = call.flag(if call.message == "resume_on" { 2 } else { 1 });
    if !pool.world.domains.wake(&uuid, &host, &data, paused) {
        return Err(Failure::new("INTERNAL_ERROR", ["the suspend image is gone"]));
    }
    reflect(pool, &uuid);
    forget_image(pool, &machine)?;
    void()
}

fn forget_image(pool: &Pool, machine: &Ref) -> Result<(), Failure> {
    let mut db = pool.db();
    let image = db.link_to("VM", machine, "suspend_VDI")?;
    db.delete("VDI", &image);
    db.set("VM", machine, "suspend_VDI", json!(Ref::NULL))
}

/// The human trail that the pool keeps (xapi.md 3).
fn message(pool: &Pool, name: &str, uuid: &str) {
    let fields = [
        ("name", json!(name)),
        ("priority", json!(5)),
        ("cls", json!("VM")),
        ("obj_uuid", json!(uuid)),
        ("timestamp", json!(pool.clock.stamp())),
    ];
    pool.db().create("message", fields);
}
