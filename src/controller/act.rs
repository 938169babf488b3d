//! Carries out one step. Every changing call of a layer's life is made here, and nothing is decided here.
//!
//! References are looked up in the view that the decision was made on. A reply that is lost is an error like any other: the next pass
//! observes what became of it.
//!
//! Longer than 350 lines: one function a step, and nothing else; apart they would have to share the hand that carries them out.

use std::collections::BTreeSet;

use super::observe::objects::{BLOCKED, START};
use super::observe::{Lens, Scene, base_lineage, flights, lineage, tools_iso};
use super::trouble;
use crate::api::reason::Reason;
use crate::domain::gate::{self, BaseChoice};
use crate::domain::identity::{self, BOOT, Keys, Lineage, Mark, NONCE, Opid, Role, TAG, TOKEN};
use crate::domain::observed::{Making, Sent, Setting, Sight, TaskSight, Trouble};
use crate::domain::plan::{self, Step};
use crate::xapi::calls::{NewVbd, NewVif};
use crate::xapi::error::Error;
use crate::xapi::model::{VbdType, Vdi, Vm};
use crate::xapi::wire::{NEVER, Ref};

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
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Stale => Trouble::new(Reason::PoolError, "the pool changed under a decision; it is made anew"),
            Self::Pool(e) => trouble::of(e),
            Self::Told(t) => t.clone(),
        }
    }
}

type Done = Result<(), Failed>;

/// Device numbers: the packaging disk boots as the first, the drive sits where every tool expects it.
const DISK_DEVICE: &str = "0";
const DVD_DEVICE: &str = "3";

/// Does it. Status-only steps do nothing here: the status write that follows is the step.
pub async fn act(lens: &Lens<'_>, scene: &Scene, step: &Step) -> Done {
    let hand = Hand { lens, scene };
    match step {
        Step::Nothing | Step::Enter | Step::Record | Step::LetGo | Step::DropIntent => Ok(()),
        Step::RecordIntent(making) => hand.take_turn(*making),
        Step::Mark { source, mark } => hand.mark(source, mark).await,
        Step::Unmark { source, .. } => hand.unmark(source).await,
        Step::Send(making) => hand.send(*making).await,
        Step::Settle { making, opid } => hand.settle(*making, opid).await,
        Step::Claim { making, child } => hand.claim(*making, child).await,
        Step::CancelTasks { opid } => hand.cancel(opid).await,
        Step::DestroyUnclaimed { making: Making::CloneMachine, child } => hand.destroy_unclaimed_machine(child).await,
        Step::DestroyUnclaimed { child, .. } => hand.destroy_disk(child, "unclaimed").await,
        Step::DestroyHalfMade { machine } => hand.destroy_unclaimed_machine(machine).await,
        Step::ScanStorage => hand.scan().await,
        Step::TagAgain { uuid } => hand.tag_again(uuid).await,
        Step::NameDisk { uuid, name } => {
            hand.lens
                .pool
                .client
                .start(&hand.aux(uuid, "name"))
                .vdi_set_name_label(&hand.vdi(uuid)?, name)
                .await
                .map(drop)?;
            Ok(())
        }
        Step::DescribeDisk { uuid, description } => {
            hand.lens
                .pool
                .client
                .start(&hand.aux(uuid, "describe"))
                .vdi_set_name_description(&hand.vdi(uuid)?, description)
                .await
                .map(drop)?;
            Ok(())
        }
        Step::ResizeDisk { uuid, size } => {
            hand.lens
                .pool
                .client
                .start(&hand.aux(uuid, "resize"))
                .vdi_resize(&hand.vdi(uuid)?, *size)
                .await
                .map(drop)?;
            Ok(())
        }
        Step::SetUp { machine, settings } => hand.set_up(machine, settings).await,
        Step::AttachDisk { machine, disk } => hand.attach(machine, disk).await,
        Step::AddDvd { machine } => hand.add_dvd(machine).await,
        Step::EjectDisc { vbd } => already(
            hand.lens.pool.client.start(&hand.aux(vbd, "eject")).vbd_eject(&hand.vbd(vbd)?).await.map(drop),
            "VBD_IS_EMPTY",
        ),
        Step::InsertTools { vbd } => {
            let (iso, _) = tools_iso(lens).map_err(Failed::Told)?;
            already(
                hand.lens.pool.client.start(&hand.aux(vbd, "insert")).vbd_insert(&hand.vbd(vbd)?, &iso).await.map(drop),
                "VBD_NOT_EMPTY",
            )
        }
        Step::NoteBoot { machine, boot } => hand.put_key(machine, BOOT, boot).await,
        Step::UseToken { machine, token } => hand.put_key(machine, TOKEN, token).await,
        Step::BlockStart { machine } => {
            hand.block(machine, |blocked, why| blocked.extend(START.iter().map(|op| ((*op).to_owned(), why.clone()))))
                .await
        }
        Step::UnblockStart { machine } => {
            hand.block(machine, |blocked, _| blocked.retain(|op, _| !START.contains(&op.as_str()))).await
        }
        Step::UnblockDestroy { machine } => {
            hand.block(machine, |blocked, _| blocked.retain(|op, _| !BLOCKED.contains(&op.as_str()))).await
        }
        Step::ShutDown { machine } => {
            let sent =
                hand.lens.pool.client.start(&hand.aux(machine, "shutdown")).vm_hard_shutdown(&hand.vm(machine)?).await;
            already(sent.map(drop), "VM_BAD_POWER_STATE")
        }
        Step::DetachDisk { vbd } => gone_is_done(hand.lens.pool.client.write().vbd_destroy(&hand.vbd(vbd)?).await),
        Step::FreeFromDom0 { vbd } => hand.free_from_dom0(vbd).await,
        Step::DestroyMachine { machine } => gone_is_done(
            hand.lens.pool.client.start(&hand.aux(machine, "destroy")).vm_destroy(&hand.vm(machine)?).await.map(drop),
        ),
        Step::DestroyWork { disk, after_freeze } => {
            if *after_freeze {
                hand.sync_database().await?;
            }
            hand.destroy_disk(disk, "destroy").await
        }
        Step::DestroyFrozen { disk } => hand.destroy_disk(disk, "destroy").await,
        Step::DestroyBase { disk } => hand.destroy_base(disk).await,
        Step::Retain { disk } => {
            let client = &hand.lens.pool.client;
            already(
                client.write().vdi_add_to_other_config(&hand.vdi(disk)?, identity::RETAINED, "true").await,
                "MAP_DUPLICATE_KEY",
            )
        }
    }
}

/// What is to be remembered once the status that records the step is persisted.
pub fn after_status(lens: &Lens<'_>, scene: &Scene, step: &Step) {
    let mut memory = lens.pool.memory();
    match step {
        Step::RecordIntent(making) => {
            if let Some(f) = scene.observed.flight(*making) {
                memory.set_attempt(&f.opid, Sent::Never, None);
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

fn gone_is_done(result: Result<(), Error>) -> Done {
    match result {
        Err(e) if e.is_gone() => Ok(()),
        other => Ok(other?),
    }
}

/// A refusal that says it is as wanted already.
fn already(result: Result<(), Error>, code: &str) -> Done {
    match result {
        Err(e) if e.is_code(code) => Ok(()),
        other => Ok(other?),
    }
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

    fn lineage_of(&self, making: Making, source: &str) -> Lineage {
        match making {
            Making::SnapshotOsDisk => base_lineage(self.lens, &self.scene.observed.storage.uuid, source),
            Making::CloneDisk => self.lineage(Role::Work),
            Making::CloneMachine | Making::StartMachine => self.lineage(Role::Machine),
            Making::FreezeDisk => self.lineage(Role::Frozen),
        }
    }

    fn take_turn(&self, making: Making) -> Done {
        let Some(f) = self.scene.observed.flight(making) else { return Err(Failed::Stale) };
        if self.lens.pool.memory().take_turn(&f.source, &self.lens.want.uid) {
            return Ok(());
        }
        Err(Failed::Told(Trouble::new(Reason::WaitingForMark, "another layer is being made from the same disk")))
    }

    async fn mark(&self, source: &str, mark: &Mark) -> Done {
        let (client, r) = (&self.lens.pool.client, self.vdi(source)?);
        // A refusal is seen at the next look: whose mark it is decides what follows.
        already(
            client.write().vdi_add_to_other_config(&r, identity::MAKING, &mark.to_string()).await,
            "MAP_DUPLICATE_KEY",
        )
    }

    async fn unmark(&self, source: &str) -> Done {
        gone_is_done(
            self.lens.pool.client.write().vdi_remove_from_other_config(&self.vdi(source)?, identity::MAKING).await,
        )
    }

    async fn send(&self, making: Making) -> Done {
        let f = self.scene.observed.flight(making).ok_or(Failed::Stale)?;
        let client = &self.lens.pool.client;
        if making == Making::StartMachine {
            self.sync_database().await?;
        }
        let start = client.start(&f.opid.0);
        self.lens.pool.memory().set_attempt(&f.opid, Sent::Once, None);
        let sent = match making {
            Making::SnapshotOsDisk | Making::FreezeDisk => start.vdi_snapshot(&self.vdi(&f.source)?).await,
            Making::CloneDisk => start.vdi_clone(&self.vdi(&f.source)?).await,
            Making::CloneMachine => start.vm_clone(&self.template()?, &flights::machine_working_name(&f.opid)).await,
            Making::StartMachine => start.vm_start(&self.vm(&f.source)?).await,
        };
        match sent {
            Ok(task) => {
                self.lens.pool.memory().set_attempt(&f.opid, Sent::Once, Some(task));
                Ok(())
            }
            Err(e) => {
                if !e.maybe_executed() {
                    self.lens.pool.memory().set_attempt(&f.opid, Sent::Never, None);
                }
                Err(e.into())
            }
        }
    }

    fn template(&self) -> Result<Ref, Failed> {
        let found = super::inspect::template(self.lens.view, &self.lens.connector.spec.template);
        found.map(|(r, _)| r).map_err(Failed::Told)
    }

    /// The pool forgets what it has not written out; the two steps that cannot be taken back come after this. Without the right to do
    /// it the Connector says so, and we go on.
    async fn sync_database(&self) -> Done {
        match self.lens.pool.client.write().pool_sync_database().await {
            Err(e) if e.is_code("RBAC_PERMISSION_DENIED") => Ok(()),
            other => Ok(other?),
        }
    }

    async fn settle(&self, making: Making, opid: &Opid) -> Done {
        let f = self.scene.observed.flights.iter().chain(&self.scene.observed.leftover).find(|f| f.opid == *opid);
        let attempt = self.lens.pool.memory().attempt(opid);
        self.lens.pool.memory().set_attempt(opid, Sent::Over, None);
        self.forget_tasks(opid, attempt.task.as_ref()).await;
        match f.map(|f| &f.task) {
            Some(TaskSight::Failed(t)) => Err(Failed::Told(t.clone())),
            Some(_) | None => {
                let _started = making == Making::StartMachine;
                Ok(())
            }
        }
    }

    /// A pool keeps few tasks, and others need the room. Whether it works does not matter: they go by themselves.
    async fn forget_tasks(&self, opid: &Opid, own: Option<&Ref>) {
        for task in self.tasks(opid, own) {
            if let Err(error) = self.lens.pool.client.write().task_destroy(&task).await {
                tracing::debug!(error = %crate::telemetry::chain(&error), "a finished task stays until the pool collects it");
            }
        }
    }

    fn tasks(&self, opid: &Opid, own: Option<&Ref>) -> BTreeSet<Ref> {
        let tagged = self.lens.view.tasks.with(identity::TASK_TAG, &opid.0).map(|(r, _)| r);
        tagged.chain(own).cloned().collect()
    }

    /// One write is the claim; tags follow. Names reach the storage and come as steps of their own.
    async fn claim(&self, making: Making, child: &str) -> Done {
        let f = self.scene.observed.flight(making).ok_or(Failed::Stale)?;
        let lineage = self.lineage_of(making, &f.source);
        let client = &self.lens.pool.client;
        if making == Making::CloneMachine {
            let vm = self.vm(child)?;
            let inherited = &self.vm_record(child)?.other_config;
            let nonce = uuid::Uuid::new_v4().simple().to_string();
            let token = self.lens.want.restart_token.clone().unwrap_or_default();
            let mut keys: Keys = inherited
                .iter()
                .filter(|(k, _)| !k.starts_with(identity::PREFIX) && !matches!(k.as_str(), "disks" | "auto_poweron"))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            keys.extend(lineage.keys(child, None, &[(NONCE, &nonce), (TOKEN, &token)]));
            client.write().vm_set_other_config(&vm, &keys).await?;
        } else {
            let vdi = self.vdi(child)?;
            let base = self.base_of(making)?;
            client.write().vdi_set_other_config(&vdi, &lineage.keys(child, base.as_deref(), &[])).await?;
            client.write().vdi_set_tags(&vdi, &[TAG.to_owned()]).await?;
        }
        let task = self.lens.pool.memory().attempt(&f.opid).task;
        self.lens.pool.memory().set_attempt(&f.opid, Sent::Over, None);
        self.forget_tasks(&f.opid, task.as_ref()).await;
        Ok(())
    }

    /// uuid of the S that a new disk stands on.
    fn base_of(&self, making: Making) -> Result<Option<String>, Failed> {
        let seen = &self.scene.observed;
        match making {
            Making::SnapshotOsDisk | Making::CloneMachine | Making::StartMachine => Ok(None),
            Making::FreezeDisk => {
                let work = seen.work.found().ok_or(Failed::Stale)?;
                Ok(work.keys.get(identity::BASE).cloned())
            }
            Making::CloneDisk => {
                let choice = gate::choose_base(
                    self.lens.want,
                    &seen.records.versions,
                    seen.base.found().map(|b| b.uuid.as_str()),
                );
                let base = seen.base.found().map(|b| b.uuid.clone());
                match choice {
                    Ok(BaseChoice::OsLayer | BaseChoice::Version { .. }) => base.map(Some).ok_or(Failed::Stale),
                    Err(t) => Err(Failed::Told(t)),
                }
            }
        }
    }

    async fn cancel(&self, opid: &Opid) -> Done {
        let own = self.lens.pool.memory().attempt(opid).task;
        for task in self.tasks(opid, own.as_ref()) {
            gone_is_done(self.lens.pool.client.write().task_cancel(&task).await)?;
        }
        Ok(())
    }

    async fn destroy_unclaimed_machine(&self, uuid: &str) -> Done {
        let vm = self.vm(uuid)?;
        gone_is_done(
            self.lens
                .pool
                .client
                .start(&self.lineage(Role::Machine).opid().aux("undo"))
                .vm_destroy(&vm)
                .await
                .map(drop),
        )
    }

    async fn destroy_disk(&self, uuid: &str, what: &str) -> Done {
        let vdi = self.vdi(uuid)?;
        gone_is_done(self.lens.pool.client.start(&self.aux(uuid, what)).vdi_destroy(&vdi).await.map(drop))
    }

    /// The mark first: a cloner that meets it looks again. Then one more look that nobody stands on it, at the pool itself.
    async fn destroy_base(&self, uuid: &str) -> Done {
        let mark = Mark::removal(self.lens.cluster, &self.lens.want.uid);
        let record = self.vdi_record(uuid)?;
        let marked = Mark::read(&record.other_config);
        if marked.is_none() {
            return self.mark(uuid, &mark).await;
        }
        let sr = &self.scene.sr;
        let disks = self.lens.pool.client.read().get_all_records_where::<Vdi>("SR", sr.as_str()).await?;
        let used = !disks.odd.is_empty()
            || disks.found.values().any(|d| d.other_config.get(identity::BASE).is_some_and(|b| b == uuid));
        if used { self.unmark(uuid).await } else { self.destroy_disk(uuid, "destroy").await }
    }

    async fn scan(&self) -> Done {
        let seen = &self.scene.observed;
        let sr = &self.scene.sr;
        let op = self.lineage(Role::Work).opid().aux("scan");
        let task = self.lens.pool.client.start(&op).sr_scan(sr).await?;
        self.lens.pool.memory().scan_started(&seen.storage.uuid, &seen.agent_start, Some(task));
        Ok(())
    }

    /// Gives a recorded object its keys and tag; what proves it ours is the record.
    async fn tag_again(&self, uuid: &str) -> Done {
        let client = &self.lens.pool.client;
        let seen = &self.scene.observed;
        if let Ok(vm) = self.vm_record(uuid) {
            let nonce = uuid::Uuid::new_v4().simple().to_string();
            let mut keys = vm.other_config.clone();
            // A machine that lost its keys has lost its boots too: no report of before counts any more.
            keys.extend(self.lineage(Role::Machine).keys(uuid, None, &[(NONCE, &nonce)]));
            return Ok(client.write().vm_set_other_config(&self.vm(uuid)?, &keys).await?);
        }
        let vdi = self.vdi(uuid)?;
        // Whatever is proved by its keys keeps them, and only lacks the tag.
        let disks = [&seen.work, &seen.frozen, &seen.base].map(Sight::found);
        if !disks.into_iter().flatten().any(|d| d.uuid == uuid && d.keyed) {
            let is = |d: Option<&crate::domain::observed::Disk>| d.is_some_and(|d| d.uuid == uuid);
            let base = self.lens.layer.status.as_ref().and_then(|s| Some(s.disk.as_ref()?.base.as_ref()?.uuid.clone()));
            let keys = if is(seen.work.found()) {
                self.lineage(Role::Work).keys(uuid, base.as_deref(), &[])
            } else if is(seen.frozen.found()) {
                let recorded = seen.finalized(&seen.subject).map(|v| v.base.clone()).or(base);
                self.lineage(Role::Frozen).keys(uuid, recorded.as_deref(), &[])
            } else {
                return Err(Failed::Stale);
            };
            client.write().vdi_set_other_config(&vdi, &keys).await?;
        }
        Ok(client.write().vdi_set_tags(&vdi, &[TAG.to_owned()]).await?)
    }

    async fn set_up(&self, uuid: &str, settings: &[Setting]) -> Done {
        let vm = self.vm(uuid)?;
        for setting in settings {
            self.set(uuid, &vm, setting).await?;
        }
        Ok(())
    }

    async fn set(&self, uuid: &str, vm: &Ref, setting: &Setting) -> Done {
        let record = self.vm_record(uuid)?;
        let client = &self.lens.pool.client;
        let done = match setting {
            Setting::NotTemplate => client.write().vm_set_is_a_template(vm, false).await,
            Setting::Name(name) => client.write().vm_set_name_label(vm, name).await,
            Setting::Description(text) => client.write().vm_set_name_description(vm, text).await,
            Setting::Tags(tags) => client.write().vm_set_tags(vm, tags).await,
            // The number at start may never exceed the most: which goes first depends on the direction.
            Setting::Vcpus { max, lower: true } => match client.write().vm_set_vcpus_at_startup(vm, *max).await {
                Ok(()) => client.write().vm_set_vcpus_max(vm, *max).await,
                Err(e) => Err(e),
            },
            Setting::Vcpus { max, lower: false } => match client.write().vm_set_vcpus_max(vm, *max).await {
                Ok(()) => client.write().vm_set_vcpus_at_startup(vm, *max).await,
                Err(e) => Err(e),
            },
            Setting::Memory(bytes) => {
                let least = record.memory_static_min.min(*bytes);
                client.write().vm_set_memory_limits(vm, least, *bytes, *bytes, *bytes).await
            }
            Setting::Firmware(firmware) => {
                let mut params = record.hvm_boot_params.clone();
                params.insert("firmware".to_owned(), firmware.clone());
                client.write().vm_set_hvm_boot_params(vm, &params).await
            }
            Setting::Networks(wanted) => return self.networks(vm, record, wanted).await,
            Setting::AfterShutdown => client.write().vm_set_actions_after_shutdown(vm, "destroy").await,
            Setting::AfterReboot => client.write().vm_set_actions_after_reboot(vm, "restart").await,
            Setting::AfterCrash => client.write().vm_set_actions_after_crash(vm, "preserve").await,
            Setting::NoAutoPowerOn => client.write().vm_remove_from_other_config(vm, "auto_poweron").await,
            Setting::NoHa => client.write().vm_set_ha_restart_priority(vm, "").await,
            Setting::NoAffinity => client.write().vm_set_affinity(vm, &Ref::null()).await,
            Setting::Blocked(blocked) => {
                let mut all = record.blocked_operations.clone();
                all.extend(blocked.clone());
                client.write().vm_set_blocked_operations(vm, &all).await
            }
            Setting::Xenstore(keys) => client.write().vm_set_xenstore_data(vm, keys).await,
            Setting::StartBefore(time) => {
                let time = if time.is_empty() { NEVER } else { time };
                return already(
                    client.write().vm_add_to_other_config(vm, identity::START_BEFORE, time).await,
                    "MAP_DUPLICATE_KEY",
                );
            }
        };
        Ok(done?)
    }

    /// Network cards as wanted, in order: what is not as wanted is made anew.
    async fn networks(&self, vm: &Ref, record: &Vm, wanted: &[String]) -> Done {
        let client = &self.lens.pool.client;
        for vif in &record.vifs {
            gone_is_done(client.write().vif_destroy(vif).await)?;
        }
        for (device, uuid) in wanted.iter().enumerate() {
            let network = self.lens.view.networks.by_uuid(uuid).map(|(r, _)| r.clone()).ok_or(Failed::Stale)?;
            let device = device.to_string();
            client.write().vif_create(&NewVif { vm, network: &network, device: &device }).await?;
        }
        Ok(())
    }

    async fn attach(&self, machine: &str, disk: &str) -> Done {
        let (vm, vdi) = (self.vm(machine)?, self.vdi(disk)?);
        let new = NewVbd {
            vm: &vm,
            vdi: &vdi,
            userdevice: DISK_DEVICE,
            bootable: true,
            read_only: false,
            kind: VbdType::Disk,
        };
        already(self.lens.pool.client.write().vbd_create(&new).await.map(drop), "DEVICE_ALREADY_EXISTS")
    }

    async fn add_dvd(&self, machine: &str) -> Done {
        let (vm, empty) = (self.vm(machine)?, Ref::null());
        let new = NewVbd {
            vm: &vm,
            vdi: &empty,
            userdevice: DVD_DEVICE,
            bootable: false,
            read_only: true,
            kind: VbdType::Cd,
        };
        already(self.lens.pool.client.write().vbd_create(&new).await.map(drop), "DEVICE_ALREADY_EXISTS")
    }

    /// Not atomic: whoever reads in between sees no key, and decides again.
    async fn put_key(&self, machine: &str, key: &str, value: &str) -> Done {
        let (client, vm) = (&self.lens.pool.client, self.vm(machine)?);
        client.write().vm_remove_from_other_config(&vm, key).await?;
        already(client.write().vm_add_to_other_config(&vm, key, value).await, "MAP_DUPLICATE_KEY")
    }

    async fn block(&self, machine: &str, change: impl FnOnce(&mut Keys, &String)) -> Done {
        let mut blocked = self.vm_record(machine)?.blocked_operations.clone();
        change(&mut blocked, &plan::description(self.lens.want));
        Ok(self.lens.pool.client.write().vm_set_blocked_operations(&self.vm(machine)?, &blocked).await?)
    }

    /// Unplugged, then destroyed: the row of a dead attachment goes at the next pass.
    async fn free_from_dom0(&self, uuid: &str) -> Done {
        let (client, vbd) = (&self.lens.pool.client, self.vbd(uuid)?);
        let attached = self.lens.view.vbds.get(&vbd).is_some_and(|b| b.currently_attached);
        if attached {
            return already(
                client.start(&self.aux(uuid, "unplug")).vbd_unplug(&vbd).await.map(drop),
                "DEVICE_ALREADY_DETACHED",
            );
        }
        gone_is_done(client.write().vbd_destroy(&vbd).await)
    }
}
