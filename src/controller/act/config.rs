//! The config disk's content: made, written, read back, overwritten.
//!
//! Called by `act` alone. The one place where a pass waits for the pool: a stream has no life of its own there, it ends with its connection,
//! and nothing could be come back to. It is bounded in time and number (`xapi/client.rs`), and stops when the lease is lost. What is on the disk may be somebody's secret: none of it is logged, told, or kept beyond the call.

use lamina_guest::disk::back::{self, Back};
use lamina_guest::disk::bound::{Known, Unbound, bound};
use lamina_guest::disk::build::{self, BuildError, Contents};
use lamina_guest::disk::{Damage, MOST_FILES_BYTES};
use lamina_guest::steps::record::Record;
use tokio::sync::SemaphorePermit;

use super::super::context::GuestProgram;
use super::super::step_files;
use super::{Done, Failed, Hand, already, written};
use crate::api::reason::Reason;
use crate::domain::config::{self, Read};
use crate::domain::doubt::Doubt;
use crate::domain::identity::{self, BOOT, CONTENT, FILLED, NONCE, Opid, READ, WIPED};
use crate::domain::observed::{Machine, Trouble};
use crate::domain::report;
use crate::xapi::error::Error;
use crate::xapi::stream::LARGEST;
use crate::xapi::wire::parse_time;

impl Hand<'_, '_> {
    pub(super) fn machine(&self) -> Result<&Machine, Failed> {
        self.scene.observed.machine.found().ok_or(Failed::Stale)
    }

    /// What a disk and, where its files are read, these may take of the controller's memory.
    fn room(&self, disk: usize, files: bool) -> Result<SemaphorePermit<'_>, Failed> {
        let files = files && self.lens.want.steps.iter().any(|step| !step.files.is_empty());
        let most = usize::try_from(MOST_FILES_BYTES).unwrap_or(usize::MAX);
        self.lens.pool.room.take(disk + if files { most } else { 0 }).map_err(Failed::Told)
    }

    /// Bytes of the config disk that this machine is to have.
    pub(super) async fn length(&self) -> Result<usize, Failed> {
        let _room = self.room(0, true)?;
        self.contents(build::length).await.map(|(length, _)| length)
    }

    /// Makes something of what is to be on this machine's config disk, and says what its files came from.
    async fn contents<T>(
        &self,
        make: impl FnOnce(&Contents<'_>) -> Result<T, BuildError>,
    ) -> Result<(T, String), Failed> {
        let want = self.lens.want;
        let nonce = self.machine()?.key(NONCE).unwrap_or_default();
        let layer = config::layer(want, &self.scene.observed.subject, nonce);
        let (steps, files) = (config::steps(want), step_files::read(self.lens).await.map_err(Failed::Told)?);
        let program = self.lens.program.map(GuestProgram::bytes);
        let made = make(&Contents { layer: &layer, steps: &steps, files: &files.bytes, program });
        made.map(|made| (made, files.origin)).map_err(|error| {
            let reason = match &error {
                BuildError::FilesTooLarge(_)
                | BuildError::ProgramTooLarge(_)
                | BuildError::StepsTooLarge(_)
                | BuildError::DiskTooLarge(_) => Reason::StepsTooLarge,
                BuildError::Steps(_)
                | BuildError::NoFile(..)
                | BuildError::StrayFile(..)
                | BuildError::Json(_)
                | BuildError::Fat(_) => Reason::InvalidObject,
            };
            Failed::Told(Trouble::new(reason, format!("no config disk can be made of spec.steps: {error}")))
        })
    }

    /// Tasks of streams that died with their controller stay pending for a day, if nobody ends them. No other stream is at this disk: the
    /// control domain would hold it.
    async fn clear_streams(&self, disk: &str) -> Result<(), Failed> {
        let keys = &self.vdi_record(disk)?.other_config;
        let op = Opid(keys.get(identity::OP).cloned().unwrap_or_default());
        let left = |tag: &String| op.covers(tag) && identity::is_stream(tag);
        let write = self.lens.pool.client.write();
        for (task, _) in self.lens.view.tasks.iter().filter(|(_, t)| t.op().is_some_and(left)) {
            // One that has ended in the meantime is as good.
            let _ = write.task_set_status(task, "cancelled").await;
            let _ = write.task_destroy(task).await;
        }
        Ok(())
    }

    /// Written as a whole, then said so on the disk, with what its files came from. Files that grew since it was made get a larger one.
    pub(super) async fn fill_config(&self, disk: &str) -> Done {
        let (client, vdi) = (&self.lens.pool.client, self.vdi(disk)?);
        let size = usize::try_from(self.vdi_record(disk)?.virtual_size).unwrap_or_default();
        let _room = self.room(size.min(build::LARGEST), true)?;
        let fitting = |c: &Contents<'_>| if build::length(c)? > size { Ok(None) } else { build::build(c).map(Some) };
        let (image, origin) = self.contents(fitting).await?;
        let Some(image) = image else {
            return written(client.write().vdi_remove_from_other_config(&vdi, CONTENT).await);
        };
        self.clear_streams(disk).await?;
        // Half written it must not look whole.
        if self.vdi_record(disk)?.other_config.contains_key(FILLED) {
            client.write().vdi_remove_from_other_config(&vdi, FILLED).await?;
        }
        client.start(&self.aux(disk, "fill")).import_raw_vdi(&vdi, &image).await?;
        already(written(client.write().vdi_add_to_other_config(&vdi, FILLED, &origin).await), "MAP_DUPLICATE_KEY")
    }

    /// Storage may keep the blocks that it replaces: nothing better can be done from outside.
    pub(super) async fn wipe_config(&self, disk: &str) -> Done {
        let (client, vdi) = (&self.lens.pool.client, self.vdi(disk)?);
        // What was read back is on the machine alone from here on: a pool that died must not have forgotten it.
        if self.scene.observed.machine.found().is_some_and(|m| m.config_done) {
            self.sync_database().await?;
        }
        // What we wrote is at its beginning, wherever its end is by now.
        let size = usize::try_from(self.vdi_record(disk)?.virtual_size).unwrap_or_default().min(LARGEST);
        let _room = self.room(size, false)?;
        let zeros = vec![0; size];
        self.clear_streams(disk).await?;
        client.start(&self.aux(disk, "wipe")).import_raw_vdi(&vdi, &zeros).await?;
        already(written(client.write().vdi_add_to_other_config(&vdi, WIPED, "true").await), "MAP_DUPLICATE_KEY")
    }

    /// What the guest left, judged and put into a key of its machine.
    pub(super) async fn read_config(&self, machine: &str, disk: &str) -> Done {
        let size = usize::try_from(self.vdi_record(disk)?.virtual_size).unwrap_or_default();
        let _room = self.room(size.min(LARGEST), false)?;
        self.clear_streams(disk).await?;
        let m = self.machine()?;
        let boot = m.key(BOOT).ok_or(Failed::Stale)?.to_owned();
        let exported =
            self.lens.pool.client.start(&self.aux(disk, "read")).export_raw_vdi(&self.vdi(disk)?, size).await;
        let damaged = |disk: Doubt| {
            let unbound = Some(Doubt::of_report_on(&disk));
            Read { damage: Some(disk), unbound, ..Read::default() }
        };
        let mut read = match exported {
            Ok(bytes) => match back::read(&bytes, m.key(NONCE).unwrap_or_default()) {
                Ok(back) => self.understood(m, back),
                Err(damage) => damaged(Doubt::of_disk(&damage)),
            },
            // Asked again it would be the same: somebody made it larger, or put another in its place.
            Err(Error::Stream { problem, .. }) if problem.is_of_the_disk() => {
                damaged(Doubt::new(Reason::ConfigDiskUnreadable, problem.to_string()))
            }
            Err(error) => return Err(error.into()),
        };
        read.boot = boot;
        read.marks.extend(m.guest_boot.clone());
        read.earlier = report::earlier(m).to_vec();
        let value = serde_json::to_string(&read).map_err(|_| Failed::Stale)?;
        self.put_key(machine, READ, &value).await
    }

    fn understood(&self, m: &Machine, back: Back) -> Read {
        let steps = config::steps(self.lens.want);
        let json = serde_json::to_vec_pretty(&steps).unwrap_or_default();
        let of_these = |record: Record| if record.is_of(&steps, &json) { Ok(record) } else { Err(Damage::OtherSteps) };
        let record = back.record.and_then(of_these);
        let started = |b: &str| {
            let (domid, time) = b.split_once('@')?;
            let seconds = u64::try_from(parse_time(time)?.as_second()).ok()?;
            // Noted only once it was over, or started again since: of which boot the report is, nobody can say.
            (!domid.starts_with('-') && time == m.start_time).then(|| (domid.to_owned(), seconds))
        };
        let known = Known {
            nonce: m.key(NONCE).unwrap_or_default().to_owned(),
            boot: m.key(BOOT).and_then(started),
            mark: m.guest_boot.clone(),
        };
        let marks: Vec<_> =
            record.as_ref().ok().and_then(|r| r.boot.as_ref()).map(|b| b.id.clone()).into_iter().collect();
        let (report, unbound) = match back.report {
            Ok(None) => (None, None),
            Ok(Some(report)) if report::earlier(m).contains(&report.boot) => {
                (None, Some(Doubt::of_binding(&Unbound::EarlierBoot)))
            }
            Ok(Some(report)) => match bound(&report, record.as_ref().ok(), &known) {
                Ok(()) => (Some(report), None),
                Err(why) => (None, Some(Doubt::of_binding(&why))),
            },
            Err(damage) => (None, Some(Doubt::of_report(&damage))),
        };
        let (steps, damage) = match record {
            Ok(record) => (config::told(&record.steps), None),
            Err(damage) => (Vec::new(), Some(Doubt::of_steps(&damage))),
        };
        let mut read = Read { steps, damage, unbound, marks, ..Read::default() };
        report.inspect(|report| read.keep(report));
        read
    }
}
