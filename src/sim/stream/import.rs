//! `PUT /import_raw_vdi`: bytes of a connection onto a disk (xapi.md 6.4), and how the control domain holds a disk for that or for an export.

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::super::{
    Answer, Call, Pool, allowed,
    db::Db,
    disk::BLOCK,
    schema::Record,
    sr,
    storage::{AGAIN, STAGE, backend},
    task, vbd, vdi,
};
use super::{Manner, Transfer, broken};
use crate::xapi::wire::{Failure, Ref};

/// Moves a body onto a disk, as long as its `Content-Length` says; without one there is no body. Whole pieces of 2 MiB come onto the disk one
/// by one: those before a break stay there.
pub async fn run(transfer: &Transfer, body: &mut (impl AsyncRead + Unpin), manner: Manner) -> Answer {
    let vdi = match &transfer.vdi {
        Some(vdi) => vdi.clone(),
        None => make(transfer).await?,
    };
    let held = hold(transfer, &vdi, true).await?;
    let moved = receive(transfer, &vdi, body, manner).await;
    held.release(&transfer.pool);
    moved.map(|()| json!(vdi))
}

/// The disk that an import into a repository makes; it stays if the import fails.
async fn make(transfer: &Transfer) -> Result<Ref, Failure> {
    let row = [
        ("SR", json!(transfer.sr)),
        ("virtual_size", json!(transfer.head.length.unwrap_or_default())),
        ("name_label", json!("Imported VDI")),
        ("type", json!("user")),
        ("sharable", json!(false)),
        ("read_only", json!(false)),
        ("other_config", json!({})),
        ("xenstore_data", json!({})),
        ("sm_config", json!({})),
        ("tags", json!([])),
    ];
    let row: Record = row.map(|(k, v)| (k.to_owned(), v)).into_iter().collect();
    let call = Call {
        class: "VDI",
        message: "create",
        args: vec![Value::Object(row.clone())],
        session: transfer.session.clone(),
        task: transfer.task.clone(),
        host: transfer.host.clone(),
    };
    vdi::make(&transfer.pool, &call, &row).await
}

async fn receive(
    transfer: &Transfer,
    vdi: &Ref,
    body: &mut (impl AsyncRead + Unpin),
    manner: Manner,
) -> Result<(), Failure> {
    let pool = &transfer.pool;
    let (uuid, size) = place(pool, vdi)?;
    let length = transfer.head.length.unwrap_or_default();
    let mut pace = Pace::new("import_raw_vdi", &uuid, length.min(size), manner);
    if length == 0 {
        return Err(broken());
    }
    let mut at = 0;
    while at < length {
        let wanted = BLOCK.min(length - at);
        let mut piece = vec![0; usize::try_from(wanted).unwrap_or_default()];
        if !pace.carries(at + wanted) || body.read_exact(&mut piece).await.is_err() {
            return Err(broken());
        }
        pace.step(transfer, wanted).await;
        let more = pool.world.disks().growth(&uuid, at);
        let full = more > 0 && sr::room(pool, &transfer.sr, more).is_err();
        if full || pool.world.disks().write_at(&uuid, at, &piece).is_err() {
            return Err(broken());
        }
        at += wanted;
    }
    Ok(())
}

/// uuid and size of a disk that storage has.
///
/// # Errors
/// `SR_BACKEND_FAILURE_46`.
pub fn place(pool: &Pool, vdi: &Ref) -> Result<(String, u64), Failure> {
    let uuid = pool.db().text("VDI", vdi, "uuid")?.to_owned();
    let size = pool.world.disks().get(&uuid).map_err(|e| backend(&e))?.virtual_size;
    Ok((uuid, size))
}

/// The time that a transfer takes, its progress, and the fault that ends it.
pub struct Pace<'a> {
    call: &'static str,
    uuid: &'a str,
    /// Bytes in all.
    whole: u64,
    done: u64,
    told: u64,
    percent: u8,
    owed: std::time::Duration,
}

impl<'a> Pace<'a> {
    pub fn new(call: &'static str, uuid: &'a str, whole: u64, manner: Manner) -> Self {
        Self { call, uuid, whole, done: 0, told: 0, percent: manner.percent, owed: std::time::Duration::ZERO }
    }

    /// How many bytes pass before the fault; all if there is none.
    pub fn limit(&self) -> u64 {
        if self.percent >= 100 { u64::MAX } else { self.whole / 100 * u64::from(self.percent) }
    }

    fn carries(&self, bytes: u64) -> bool {
        bytes <= self.limit()
    }

    /// A piece is on its way: 200 MiB a second of the pool's clock, in steps of which a test may hold each.
    pub async fn step(&mut self, transfer: &Transfer, bytes: u64) {
        let clock = &transfer.pool.clock;
        self.owed += STAGE;
        let label = format!("{}/block/{}", self.call, self.uuid);
        // Timers are coarse: what is too short to wait for is waited for with the next.
        let due = clock.scaled(self.owed) >= std::time::Duration::from_millis(5);
        clock.stage(&label, if due { std::mem::take(&mut self.owed) } else { std::time::Duration::ZERO }).await;
        self.done += bytes;
        let hundredths = self.done.saturating_mul(100) / self.whole.max(1);
        if hundredths > self.told {
            self.told = hundredths;
            let progress = json!(f64::from(u32::try_from(hundredths.min(99)).unwrap_or_default()) / 100.0);
            // A task that is gone has nobody who looks.
            transfer.pool.db().set("task", &transfer.task, "progress", progress).unwrap_or_default();
        }
    }
}

/// A disk that the control domain holds. Not given back where the daemon dies over it (xapi.md 6.2).
pub struct Held {
    vdi: Ref,
    vbd: Ref,
}

impl Held {
    pub fn release(self, pool: &std::sync::Arc<Pool>) {
        pool.db().delete("VBD", &self.vbd);
        allowed::refresh(pool, "VDI", &self.vdi);
    }
}

/// Plugs a disk into the control domain of the host that was asked. Like a copy it waits while another operation has the disk, and leaves the
/// rest of the repository alone (xapi.md 4.2).
///
/// # Errors
/// `VDI_IN_USE [vdi]`, `VDI_READONLY [vdi]`, `VDI_NOT_MANAGED [vdi]`, `VDI_INCOMPATIBLE_TYPE [vdi, type]`, `SR_BACKEND_FAILURE_46`,
/// `TASK_CANCELLED` while it waits.
pub async fn hold(transfer: &Transfer, vdi: &Ref, write: bool) -> Result<Held, Failure> {
    let pool = &transfer.pool;
    let (uuid, _) = place(pool, vdi)?;
    let vbd = loop {
        let attempt = {
            let mut db = pool.db();
            ready(pool, &db, vdi, &transfer.host, write)
                .map(|()| vbd::attach_to_dom0(&mut db, &transfer.host, vdi, if write { "RW" } else { "RO" }))
        };
        match attempt {
            Ok(vbd) => break vbd,
            Err(failure) if failure.code == "OTHER_OPERATION_IN_PROGRESS" => {
                task::queue(pool, &transfer.task, pool.clock.sleep(AGAIN)).await?;
            }
            Err(failure) => return Err(failure),
        }
    };
    allowed::refresh(pool, "VDI", vdi);
    let call = if write { "import_raw_vdi" } else { "export_raw_vdi" };
    pool.clock.stage(&format!("{call}/attached/{uuid}"), STAGE).await;
    Ok(Held { vdi: vdi.clone(), vbd })
}

fn ready(pool: &Pool, db: &Db, vdi: &Ref, host: &Ref, write: bool) -> Result<(), Failure> {
    let row = db.get("VDI", vdi)?;
    let text = |field: &str| row.get(field).and_then(Value::as_str).unwrap_or_default();
    let flag = |field: &str| row.get(field).and_then(Value::as_bool).unwrap_or_default();
    let operations = row.get("current_operations").and_then(Value::as_object).into_iter().flatten();
    if let Some((task, op)) = operations.map(|(task, op)| (task, op.as_str().unwrap_or_default())).next() {
        return Err(Failure::new("OTHER_OPERATION_IN_PROGRESS", ["VDI", vdi.as_str(), op, task]));
    }
    if !flag("managed") {
        return Err(Failure::new("VDI_NOT_MANAGED", [vdi.as_str()]));
    }
    if text("type") == "cbt_metadata" {
        return Err(Failure::new("VDI_INCOMPATIBLE_TYPE", [vdi.as_str(), "cbt_metadata"]));
    }
    if write && flag("read_only") {
        return Err(Failure::new("VDI_READONLY", [vdi.as_str()]));
    }
    let vbds = db.links("VDI", vdi, "VBDs")?;
    let users = vbds.iter().filter(|vbd| db.flag("VBD", vbd, "currently_attached").unwrap_or_default());
    let users: Vec<&Ref> = users.collect();
    if write && (!users.is_empty() || pool.world.lingers(text("uuid"))) {
        return Err(Failure::new("VDI_IN_USE", [vdi.as_str()]));
    }
    // The control domain is exempt from the sharing check: beside a writer on its own host it reads a torn disk (xapi.md 6.2).
    let elsewhere = users.iter().any(|vbd| {
        let at = db.link_to("VBD", vbd, "VM").and_then(|vm| db.link_to("VM", &vm, "resident_on"));
        db.text("VBD", vbd, "mode").is_ok_and(|mode| mode == "RW") && at.is_ok_and(|at| at != *host)
    });
    if elsewhere {
        return Err(Failure::new("SR_BACKEND_FAILURE_46", ["", "The VDI is not available", "attached elsewhere"]));
    }
    Ok(())
}
