//! Carries out one step. Every changing call of a layer's life is made here, and nothing is decided here.
//!
//! References are looked up in the view that the decision was made on. A reply that is lost is an error like any other: the next pass
//! observes what became of it. `making` has the claim protocol's calls, `config` the config disk's content, `machine` those that only write a machine's row.

mod config;
mod machine;
mod making;

use super::observe::objects::{BLOCKED, START};
use super::observe::{Lens, Scene, lineage, tools_iso};
use super::trouble;
use crate::api::reason::Reason;
use crate::domain::identity::{self, BOOT, CONFIG_DONE, Lineage, Mark, NONCE, Opid, Proof, Role, TAG, TOKEN, prove};
use crate::domain::observed::{Disk, Making, Trouble};
use crate::domain::plan::Step;
use crate::xapi::error::Error;
use crate::xapi::model::{Vdi, Vm};
use crate::xapi::wire::Ref;

/// What a step can end with besides success.
#[derive(Debug)]
pub enum Failed {
    /// An object of the decision is gone from the view: look again.
    Stale,
    Pool(Error),
    Told(Trouble),
}

impl From<Error> for Failed {
    fn from(e: Error) -> Self {
        Self::Pool(e)
    }
}

impl Failed {
    /// `step`: what failed.
    pub fn trouble(&self, step: &Step) -> Trouble {
        match self {
            Self::Stale => Trouble::new(Reason::PoolError, "the pool changed under a decision; it is made anew"),
            Self::Pool(e) => trouble::of_step(step, e),
            Self::Told(t) => t.clone(),
        }
    }
}

/// The task that brings it to its end, where it takes long.
type Done = Result<Option<Ref>, Failed>;

/// Does it. Status-only steps do nothing here: the status write that follows is the step.
pub async fn act(lens: &Lens<'_>, scene: &Scene, step: &Step) -> Done {
    let hand = Hand { lens, scene };
    let client = &lens.pool.client;
    match step {
        Step::Nothing | Step::Enter | Step::Record | Step::LetGo => Ok(None),
        Step::DropIntent => hand.forget_operation().await,
        Step::RecordIntent(making) => hand.take_turn(*making),
        Step::Mark { source, mark } => hand.mark(source, mark).await,
        Step::Unmark { source, .. } => hand.unmark(source).await,
        Step::Send(making) => hand.send(*making).await,
        Step::Settle { opid, .. } => hand.settle(opid).await,
        Step::Claim { making, child } => hand.claim(*making, child).await,
        Step::CancelTasks { opid } => hand.cancel(opid).await,
        Step::DestroyUnclaimed { making: Making::CloneMachine, child } => hand.destroy_unclaimed_machine(child).await,
        Step::DestroyUnclaimed { child, .. } => hand.destroy_unclaimed_disk(child).await,
        Step::DestroyHalfMade { machine } => hand.destroy_unclaimed_machine(machine).await,
        Step::ScanStorage { sr } => hand.scan(sr).await,
        Step::TagAgain { uuid } => hand.tag_again(uuid).await,
        Step::NameDisk { uuid, name } => {
            begun(client.start(&hand.aux(uuid, "name")).vdi_set_name_label(&hand.vdi(uuid)?, name).await)
        }
        Step::DescribeDisk { uuid, description } => begun(
            client.start(&hand.aux(uuid, "describe")).vdi_set_name_description(&hand.vdi(uuid)?, description).await,
        ),
        Step::ResizeDisk { uuid, size } => {
            begun(client.start(&hand.aux(uuid, "resize")).vdi_resize(&hand.vdi(uuid)?, *size).await)
        }
        Step::SetUp { machine, settings } => hand.set_up(machine, settings).await,
        Step::AttachDisk { machine, disk } => hand.attach(machine, disk).await,
        Step::AttachConfig { machine, disk } => hand.attach_config(machine, disk).await,
        Step::FillConfig { disk } => hand.fill_config(disk).await,
        Step::ReadConfig { machine, disk } => hand.read_config(machine, disk).await,
        Step::EndConfig { machine } => hand.put_key(machine, CONFIG_DONE, "true").await,
        Step::WipeConfig { disk } => hand.wipe_config(disk).await,
        Step::DestroyConfig { disk } => hand.destroy_disk(disk, "destroy").await,
        Step::AddDvd { machine } => hand.add_dvd(machine).await,
        Step::EjectDisc { vbd } => begun(client.start(&hand.aux(vbd, "eject")).vbd_eject(&hand.vbd(vbd)?).await),
        Step::InsertTools { vbd } => {
            let (iso, _) = tools_iso(lens).map_err(Failed::Told)?;
            begun(client.start(&hand.aux(vbd, "insert")).vbd_insert(&hand.vbd(vbd)?, &iso).await)
        }
        Step::NoteBoot { machine, boot } => hand.put_key(machine, BOOT, boot).await,
        Step::UseToken { machine, token } => hand.put_key(machine, TOKEN, token).await,
        Step::BlockStart { machine } => {
            hand.block(machine, |blocked, why| blocked.extend(START.iter().map(|op| ((*op).to_owned(), why.clone()))))
                .await
        }
        Step::UnblockStart { machine } => {
            hand.block(machine, |blocked, why| blocked.retain(|op, by| by != why || !START.contains(&op.as_str())))
                .await
        }
        Step::UnblockDestroy { machine } => {
            hand.block(machine, |blocked, _| blocked.retain(|op, _| !BLOCKED.contains(&op.as_str()))).await
        }
        Step::ShutDown { machine } => {
            begun(client.start(&hand.aux(machine, "shutdown")).vm_hard_shutdown(&hand.vm(machine)?).await)
        }
        Step::DetachDisk { vbd } => gone_is_done(written(client.write().vbd_destroy(&hand.vbd(vbd)?).await)),
        Step::Unpause { disk } => {
            gone_is_done(written(client.write().vdi_remove_from_sm_config(&hand.vdi(disk)?, "paused").await))
        }
        Step::FreeFromDom0 { vbd } => hand.free_from_dom0(vbd).await,
        Step::DestroyMachine { machine } => {
            lens.pool.memory().removing(machine, &scene.observed.agent_start);
            gone_is_done(begun(client.start(&hand.aux(machine, "destroy")).vm_destroy(&hand.vm(machine)?).await))
        }
        Step::DestroyWork { disk, after_freeze } => {
            if *after_freeze {
                hand.is_kept(disk).await?;
                hand.sync_database().await?;
            }
            hand.destroy_disk(disk, "destroy").await
        }
        Step::DestroyFrozen { disk } => hand.destroy_disk(disk, "destroy").await,
        Step::DestroyBase { disk } => hand.destroy_base(disk).await,
        Step::Retain { disk } => already(
            written(client.write().vdi_add_to_other_config(&hand.vdi(disk)?, identity::RETAINED, "true").await),
            "MAP_DUPLICATE_KEY",
        ),
    }
}

/// What is to be remembered once the status that records the step is persisted.
pub fn after_status(lens: &Lens<'_>, scene: &Scene, step: &Step) {
    let mut memory = lens.pool.memory();
    match step {
        Step::RecordIntent(making) => {
            if let Some(f) = scene.observed.flight(*making) {
                memory.begin(&f.opid);
            }
        }
        Step::DropIntent => {
            if let Some(intent) = &scene.observed.records.operation {
                memory.forget_attempt(&intent.opid);
            }
        }
        _other => {}
    }
}

/// A task is on its way. What it is refused for is seen at its end (`layer`).
fn begun(task: Result<Ref, Error>) -> Done {
    Ok(Some(task?))
}

/// In the database, and done.
fn written(result: Result<(), Error>) -> Done {
    Ok(result.map(|()| None)?)
}

fn gone_is_done(done: Done) -> Done {
    match done {
        Err(Failed::Pool(e)) if e.is_gone() => Ok(None),
        other => other,
    }
}

/// A refusal that says it is as wanted already.
fn already(done: Done, code: &str) -> Done {
    match done {
        Err(Failed::Pool(e)) if e.is_code(code) => Ok(None),
        other => other,
    }
}

/// What the machine, or the config disk that is there already, calls this packaging.
fn seen_nonce(scene: &Scene) -> Option<String> {
    let seen = &scene.observed;
    let of_machine = seen.machine.found().and_then(|m| m.key(NONCE));
    of_machine.or(seen.config.found().and_then(|c| c.keys.get(NONCE).map(String::as_str))).map(str::to_owned)
}

struct Hand<'a, 'b> {
    lens: &'a Lens<'b>,
    scene: &'a Scene,
}

impl Hand<'_, '_> {
    fn vdi(&self, uuid: &str) -> Result<Ref, Failed> {
        self.lens.view.vdis.by_uuid(uuid).map(|(r, _)| r.clone()).ok_or(Failed::Stale)
    }

    fn vm(&self, uuid: &str) -> Result<Ref, Failed> {
        self.lens.view.vms.by_uuid(uuid).map(|(r, _)| r.clone()).ok_or(Failed::Stale)
    }

    fn vbd(&self, uuid: &str) -> Result<Ref, Failed> {
        self.lens.view.vbds.by_uuid(uuid).map(|(r, _)| r.clone()).ok_or(Failed::Stale)
    }

    fn vdi_record(&self, uuid: &str) -> Result<&Vdi, Failed> {
        self.lens.view.vdis.by_uuid(uuid).map(|(_, d)| d.as_ref()).ok_or(Failed::Stale)
    }

    fn vm_record(&self, uuid: &str) -> Result<&Vm, Failed> {
        self.lens.view.vms.by_uuid(uuid).map(|(_, m)| m.as_ref()).ok_or(Failed::Stale)
    }

    /// The tag of a call on an object: under its own operation, so that an in-flight test of that finds it.
    fn aux(&self, uuid: &str, what: &str) -> String {
        let view = self.lens.view;
        let keys = view
            .vdis
            .by_uuid(uuid)
            .map(|(_, d)| &d.other_config)
            .or(view.vms.by_uuid(uuid).map(|(_, m)| &m.other_config));
        let machine = || self.lineage(Role::Machine).opid();
        keys.and_then(|k| k.get(identity::OP)).map_or_else(machine, |op| Opid(op.clone())).aux(what)
    }

    fn lineage(&self, role: Role) -> Lineage {
        lineage(self.lens.cluster, &self.lens.want.uid, &self.scene.observed.subject, role)
    }

    /// The pool forgets what it has not written out; the two steps that cannot be taken back come after this. Without the right to do
    /// it the Connector says so, and we go on.
    async fn sync_database(&self) -> Done {
        already(written(self.lens.pool.client.write().pool_sync_database().await), "RBAC_PERMISSION_DENIED")
    }

    /// The one call that nothing brings back is not made on the word of a mirror: the frozen version itself is asked for.
    async fn is_kept(&self, work: &str) -> Result<(), Failed> {
        let frozen = self.scene.observed.frozen.found().ok_or(Failed::Stale)?;
        let record = self.lens.pool.client.read().get_record::<Vdi>(&self.vdi(&frozen.uuid)?).await?;
        if record.uuid == frozen.uuid && record.snapshot_of == self.vdi(work)? { Ok(()) } else { Err(Failed::Stale) }
    }

    async fn destroy_disk(&self, uuid: &str, what: &str) -> Done {
        self.lens.pool.memory().removing(uuid, &self.scene.observed.agent_start);
        gone_is_done(begun(self.lens.pool.client.start(&self.aux(uuid, what)).vdi_destroy(&self.vdi(uuid)?).await))
    }

    /// The mark first: a cloner that meets it looks again. Then one more look that nobody stands on it, at the pool itself.
    async fn destroy_base(&self, uuid: &str) -> Done {
        let mark = Mark::removal(self.lens.cluster, &self.lens.want.uid);
        let record = self.vdi_record(uuid)?;
        let marked = Mark::read(&record.other_config);
        if marked.is_none() {
            return self.mark(uuid, &mark).await;
        }
        // Whoever stands on it is where it is.
        let disks = self.lens.pool.client.read().get_all_records_where::<Vdi>("SR", record.sr.as_str()).await?;
        let used = !disks.odd.is_empty()
            || disks.found.values().any(|d| d.other_config.get(identity::BASE).is_some_and(|b| b == uuid));
        if used { self.unmark(uuid).await } else { self.destroy_disk(uuid, "destroy").await }
    }

    async fn scan(&self, uuid: &str) -> Done {
        let op = self.lineage(Role::Work).opid().aux("scan");
        let (sr, _) = self.lens.view.srs.by_uuid(uuid).ok_or(Failed::Stale)?;
        let task = self.lens.pool.client.start(&op).sr_scan(sr).await?;
        self.lens.pool.memory().scan_started(uuid, &self.scene.observed.agent_start, Some(task.clone()));
        Ok(Some(task))
    }

    /// Gives a recorded object its keys and tag; what proves it ours is the record.
    async fn tag_again(&self, uuid: &str) -> Done {
        if let Ok(vm) = self.vm_record(uuid) {
            return self.key_machine_again(uuid, vm).await;
        }
        let client = &self.lens.pool.client;
        let vdi = self.vdi(uuid)?;
        // Whatever is proved by its keys keeps them, and only lacks the tag.
        if let Some((lineage, base)) = self.lost_keys(uuid)? {
            let nonce = seen_nonce(self.scene).filter(|_| lineage.role() == Role::Config);
            let extra: Vec<_> = nonce.iter().map(|nonce| (NONCE, nonce.as_str())).collect();
            client.write().vdi_set_other_config(&vdi, &lineage.keys(uuid, base.as_deref(), &extra)).await?;
        }
        written(client.write().vdi_set_tags(&vdi, &[TAG.to_owned()]).await)
    }

    /// What a disk without keys is, by our records, and the S that it stands on; none: it has its keys.
    fn lost_keys(&self, uuid: &str) -> Result<Option<(Lineage, Option<String>)>, Failed> {
        let (seen, uid) = (&self.scene.observed, &self.lens.want.uid);
        if matches!(prove(self.lens.cluster, uuid, &self.vdi_record(uuid)?.other_config, false), Proof::ByKeys(_)) {
            return Ok(None);
        }
        let status = self.lens.layer.status.as_ref();
        let base = status.and_then(|s| Some(s.disk.as_ref()?.base.as_ref()?.uuid.clone()));
        if let Some(v) = seen.records.versions.iter().find(|v| v.disk == uuid) {
            return Ok(Some((lineage(self.lens.cluster, uid, &v.version, Role::Frozen), Some(v.base.clone()))));
        }
        let is = |d: Option<&Disk>| d.is_some_and(|d| d.uuid == uuid);
        if is(seen.work.found()) {
            return Ok(Some((self.lineage(Role::Work), base)));
        }
        if is(seen.config.found()) {
            return Ok(Some((self.lineage(Role::Config), None)));
        }
        if is(seen.frozen.found()) {
            return Ok(Some((self.lineage(Role::Frozen), base)));
        }
        match &seen.os_disk {
            Ok(os) if is(seen.base.found()) => Ok(Some((self.lineage_of(Making::SnapshotOsDisk, &os.uuid), None))),
            Ok(_) | Err(_) => Err(Failed::Stale),
        }
    }

    /// Unplugged, then destroyed: the row of a dead attachment goes at the next pass.
    async fn free_from_dom0(&self, uuid: &str) -> Done {
        let (client, vbd) = (&self.lens.pool.client, self.vbd(uuid)?);
        if self.lens.view.vbds.get(&vbd).is_some_and(|b| b.currently_attached) {
            return begun(client.start(&self.aux(uuid, "unplug")).vbd_unplug(&vbd).await);
        }
        gone_is_done(written(client.write().vbd_destroy(&vbd).await))
    }
}
