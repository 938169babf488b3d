//! The claim protocol's calls: mark, send, settle, claim, cancel, and what is undone.
//!
//! Called by `act` alone.

use std::collections::BTreeSet;

use super::super::inspect;
use super::super::observe::{base_lineage, flights};
use super::{Done, Failed, Hand, already, begun, gone_is_done, written};
use crate::api::reason::Reason;
use crate::domain::config;
use crate::domain::identity::{self, BOOT, Keys, Lineage, Mark, NONCE, Opid, Role, TAG, TOKEN};
use crate::domain::observed::{Making, Sent, TaskSight, Trouble};
use crate::domain::plan;
use crate::xapi::calls::NewVdi;
use crate::xapi::wire::Ref;

impl Hand<'_, '_> {
    pub(super) fn lineage_of(&self, making: Making, source: &str) -> Lineage {
        match making {
            Making::SnapshotOsDisk => base_lineage(self.lens, &self.scene.observed.storage.uuid, source),
            Making::CloneDisk => self.lineage(Role::Work),
            Making::CloneMachine | Making::StartMachine => self.lineage(Role::Machine),
            Making::FreezeDisk => self.lineage(Role::Frozen),
            Making::CreateConfig => self.lineage(Role::Config),
        }
    }

    pub(super) fn take_turn(&self, making: Making) -> Done {
        let Some(f) = self.scene.observed.flight(making) else { return Err(Failed::Stale) };
        self.turn(&f.source)
    }

    fn turn(&self, source: &str) -> Done {
        if self.lens.pool.turns().take(source, &self.lens.want.uid) {
            return Ok(None);
        }
        Err(Failed::Told(Trouble::new(Reason::WaitingForMark, "another layer is being made from the same disk")))
    }

    pub(super) async fn mark(&self, source: &str, mark: &Mark) -> Done {
        let (client, r) = (&self.lens.pool.client, self.vdi(source)?);
        self.turn(source)?;
        // A refusal is seen at the next look: whose mark it is decides what follows.
        let added = client.write().vdi_add_to_other_config(&r, identity::MAKING, &mark.to_string()).await;
        if added.is_ok() {
            self.lens.pool.memory().marked(&Opid(mark.op.clone()));
        }
        already(written(added), "MAP_DUPLICATE_KEY")
    }

    pub(super) async fn unmark(&self, source: &str) -> Done {
        let client = &self.lens.pool.client;
        gone_is_done(written(client.write().vdi_remove_from_other_config(&self.vdi(source)?, identity::MAKING).await))
    }

    pub(super) async fn send(&self, making: Making) -> Done {
        let f = self.scene.observed.flight(making).ok_or(Failed::Stale)?;
        let client = &self.lens.pool.client;
        // Of a new machine: it asks every host for a copy of the database.
        if making == Making::StartMachine && self.machine()?.key(BOOT).is_none() {
            self.sync_database().await?;
        }
        // Before the call is taken for sent: what is missing for it is told.
        let length = if making == Making::CreateConfig { self.length().await? } else { 0 };
        let source = match making {
            Making::SnapshotOsDisk | Making::FreezeDisk | Making::CloneDisk => self.vdi(&f.source)?,
            Making::CloneMachine => self.template()?,
            Making::CreateConfig => self.scene.sr.clone(),
            Making::StartMachine => self.vm(&f.source)?,
        };
        let start = client.start(&f.opid.0);
        self.lens.pool.memory().set_attempt(&f.opid, Sent::Once, None);
        let sent = match making {
            Making::SnapshotOsDisk | Making::FreezeDisk => start.vdi_snapshot(&source).await,
            Making::CloneDisk => start.vdi_clone(&source).await,
            Making::CloneMachine => start.vm_clone(&source, &flights::working_name(&f.opid)).await,
            Making::CreateConfig => {
                let name = flights::working_name(&f.opid);
                let description = plan::description(self.lens.want);
                let size = i64::try_from(length).unwrap_or(i64::MAX);
                let new = NewVdi { sr: &source, name: &name, description: &description, size };
                start.vdi_create(&new).await
            }
            Making::StartMachine => start.vm_start(&source).await,
        };
        match sent {
            Ok(task) => {
                self.lens.pool.memory().set_attempt(&f.opid, Sent::Once, Some(task));
                Ok(None)
            }
            Err(e) => {
                // From here on its tag alone may tell of it, as after a crash.
                let sent = if e.maybe_executed() { Sent::Unknown } else { Sent::Never };
                self.lens.pool.memory().set_attempt(&f.opid, sent, None);
                Err(e.into())
            }
        }
    }

    pub(super) fn template(&self) -> Result<Ref, Failed> {
        let found = inspect::template(self.lens.view, &self.lens.connector.spec.template);
        found.map(|(r, _)| r).map_err(Failed::Told)
    }

    pub(super) async fn settle(&self, opid: &Opid) -> Done {
        let f = self.scene.observed.flights.iter().chain(&self.scene.observed.leftover).find(|f| f.opid == *opid);
        let attempt = self.lens.pool.memory().attempt(opid);
        let refused = match f.map(|f| &f.task) {
            Some(TaskSight::Failed(t)) => Some(t.clone()),
            Some(_) | None => None,
        };
        self.lens.pool.memory().over(opid, refused, self.lens.now, |failures| self.lens.pace.backoff(failures));
        self.forget_tasks(opid, attempt.task.as_ref()).await;
        Ok(None)
    }

    /// The intent goes, and with it the tasks that it was found by.
    pub(super) async fn forget_operation(&self) -> Done {
        if let Some(intent) = &self.scene.observed.records.operation {
            let own = self.lens.pool.memory().attempt(&intent.opid).task;
            self.forget_tasks(&intent.opid, own.as_ref()).await;
        }
        Ok(None)
    }

    /// A pool keeps few tasks, and others need the room. Whether it works does not matter: they go by themselves.
    pub(super) async fn forget_tasks(&self, opid: &Opid, own: Option<&Ref>) {
        for task in self.tasks(opid, own) {
            if let Err(error) = self.lens.pool.client.write().task_destroy(&task).await {
                tracing::debug!(error = %crate::telemetry::chain(&error), "a finished task stays until the pool collects it");
            }
        }
    }

    pub(super) fn tasks(&self, opid: &Opid, own: Option<&Ref>) -> BTreeSet<Ref> {
        let tagged = self.lens.view.tasks.with(identity::TASK_TAG, &opid.0).map(|(r, _)| r);
        tagged.chain(own).cloned().collect()
    }

    /// One write is the claim; tags follow. Names reach the storage and come as steps of their own.
    pub(super) async fn claim(&self, making: Making, child: &str) -> Done {
        let f = self.scene.observed.flight(making).ok_or(Failed::Stale)?;
        let lineage = self.lineage_of(making, &f.source);
        let client = &self.lens.pool.client;
        if making == Making::CloneMachine {
            let vm = self.vm(child)?;
            let inherited = &self.vm_record(child)?.other_config;
            // On a disk that was worked on, the config disk of the lost machine goes on with this one.
            let of_config = self.scene.observed.config.found().and_then(|c| c.keys.get(NONCE).cloned());
            // The same at each try: a claim whose reply was lost may land after the guest was told.
            let nonce = of_config.unwrap_or_else(|| identity::nonce(self.lens.cluster, child));
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
            let nonce = super::seen_nonce(self.scene).unwrap_or_default();
            let content = config::content(self.lens.want, &self.scene.observed, &nonce);
            let of_config = [(NONCE, nonce.as_str()), (identity::CONTENT, content.as_str())];
            let extra = if making == Making::CreateConfig { of_config.as_slice() } else { &[] };
            client.write().vdi_set_other_config(&vdi, &lineage.keys(child, base.as_deref(), extra)).await?;
            client.write().vdi_set_tags(&vdi, &[TAG.to_owned()]).await?;
        }
        let task = self.lens.pool.memory().attempt(&f.opid).task;
        self.lens.pool.memory().set_attempt(&f.opid, Sent::Over, None);
        self.forget_tasks(&f.opid, task.as_ref()).await;
        Ok(None)
    }

    /// uuid of the S that a new disk stands on.
    pub(super) fn base_of(&self, making: Making) -> Result<Option<String>, Failed> {
        let seen = &self.scene.observed;
        match making {
            Making::SnapshotOsDisk | Making::CloneMachine | Making::CreateConfig | Making::StartMachine => Ok(None),
            Making::FreezeDisk => {
                let work = seen.work.found().ok_or(Failed::Stale)?;
                Ok(work.keys.get(identity::BASE).cloned())
            }
            // What it was made of tells: the spec may name another base by now.
            Making::CloneDisk => {
                let f = seen.flight(making).ok_or(Failed::Stale)?;
                let source = self.vdi_record(&f.source)?;
                Ok(Some(source.other_config.get(identity::BASE).cloned().unwrap_or_else(|| f.source.clone())))
            }
        }
    }

    pub(super) async fn cancel(&self, opid: &Opid) -> Done {
        let own = self.lens.pool.memory().attempt(opid).task;
        for task in self.tasks(opid, own.as_ref()) {
            gone_is_done(written(self.lens.pool.client.write().task_cancel(&task).await))?;
        }
        Ok(None)
    }

    /// Said on it first: whoever sees it from here on, this process or another, knows that it is going. In a tag, which no late claim takes off.
    pub(super) async fn destroy_unclaimed_disk(&self, uuid: &str) -> Done {
        let (client, vdi) = (&self.lens.pool.client, self.vdi(uuid)?);
        gone_is_done(written(client.write().vdi_add_tags(&vdi, &identity::unwanted(uuid)).await))?;
        self.destroy_disk(uuid, "unclaimed").await
    }

    pub(super) async fn destroy_unclaimed_machine(&self, uuid: &str) -> Done {
        let (pool, vm) = (&self.lens.pool, self.vm(uuid)?);
        gone_is_done(written(pool.client.write().vm_add_tags(&vm, &identity::unwanted(uuid)).await))?;
        pool.memory().removing(uuid, &self.scene.observed.agent_start);
        let op = self.lineage(Role::Machine).opid().aux("undo");
        gone_is_done(begun(pool.client.start(&op).vm_destroy(&vm).await))
    }
}
