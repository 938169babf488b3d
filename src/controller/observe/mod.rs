//! From a view of the pool, the records in status and this process's memory to what the domain judges.
//!
//! Reads only, and never waits: whatever needs a fresh look says so (`Scene::doubt`), and `layer` looks and asks again with the live view.
//! It must not conclude anything from a view that is not whole.

mod bases;
pub mod flights;
pub mod objects;
mod records;
mod storage;
mod tasks;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use self::bases::base_lineage;
use self::bases::{bases, copies, idle_bases, stray_marks};
use self::records::{estate, owned, recorded, records, repository, subject, unseen};
use self::storage::{Scan, attached, elsewhere, scan_state};

use super::census::Census;
use super::context::GuestProgram;
use super::inspect;
use super::pace::Pace;
use super::pool::Pool;
use crate::api::condition::{ConditionType, find};
use crate::api::reason::Reason;
use crate::api::{Connector, PlatformLayer};
use crate::domain::config;
use crate::domain::gate::{self, BaseChoice};
use crate::domain::identity::{self, BOOT, Lineage, Role};
use crate::domain::observed::{Disk, Holder, Machine, Making, Observed, Sight, Trouble};
use crate::domain::removal::Estate;
use crate::domain::want::{DeletionPolicy, Want};
use crate::xapi::model::{Vdi, Vm};
use crate::xapi::view::View;
use crate::xapi::wire::Ref;

/// Everything that is looked through.
pub struct Lens<'a> {
    /// For the files of steps (`step_files`), and nothing else.
    pub client: &'a kube::Client,
    /// For config disks.
    pub program: Option<&'a GuestProgram>,
    pub cluster: &'a str,
    pub pace: &'a Pace,
    pub pool: &'a Pool,
    pub layer: &'a PlatformLayer,
    pub want: &'a Want,
    pub connector: &'a Connector,
    pub view: &'a View,
    /// The view is fresh from the pool, not the mirror's.
    pub live: bool,
    pub deleting: bool,
    pub now: Instant,
    pub slot: Result<(), String>,
    pub name_taken_by: Option<String>,
    /// What the other layers of the cluster say.
    pub around: Arc<Census>,
}

impl Lens<'_> {
    /// Is the layer that this mark is of still at it?
    fn is_at_work(&self, mark: &identity::Mark) -> bool {
        match mark.layer() {
            Some(uid) if mark.is_removal() => self.around.with_uid(uid).is_some(),
            Some(_) | None => self.around.is_at(&mark.op),
        }
    }

    /// For how long this has stood in the way. Whoever waits for it looks more often than every other rest.
    pub fn waits(&self, what: &str) -> Duration {
        let since = self.pool.memory().waited_since(what, self.now, self.pace.rest * 2);
        self.now.duration_since(since)
    }

    fn waits_long(&self, what: &str) -> bool {
        self.waits(what) >= self.pace.patience
    }
}

/// What was seen, and what goes with it into status.
pub struct Scene {
    pub observed: Observed,
    pub estate: Estate,
    /// The mirror cannot settle something: look at the live pool.
    pub doubt: bool,
    /// Something shows for too short a time yet: look again after this.
    pub soon: Option<Duration>,
    pub sr: Ref,
    /// Uuid of F that the packaging disk was or will be made from; none: from the OS layer.
    pub parent: Option<String>,
}

/// Looks. `Err`: nothing can be said of the pool, and why.
pub fn observe(lens: &Lens<'_>) -> Result<Scene, Trouble> {
    let view = lens.view;
    let records = records(lens.layer.status.as_ref());
    let pool_uuid = view.pool().map(|(_, p)| p.uuid.clone()).unwrap_or_default();
    let agent_start = view.agent_start().unwrap_or_default().to_owned();
    let owned = owned(lens, &records);
    let subject = subject(lens.want, &records, &owned);
    let sr = repository(lens, &records, &subject)?;
    let mut storage = inspect::facts(view, &sr).unwrap_or_default();
    let scan = scan_state(lens, &mut storage, &agent_start);
    let finalized = records.versions.iter().any(|v| v.version == subject);
    let done = finalized || lens.deleting || lens.want.discard.as_deref() == Some(subject.as_str());
    let version = |keys: &identity::Keys| keys.get(identity::VERSION).is_some_and(|v| *v == subject);

    let mut doubt = matches!(scan, Scan::Unseen);
    let vm =
        owned.machines.iter().find(|(_, m)| version(&m.other_config) || recorded(&records.machine, &m.uuid)).copied();
    let machine_ref = vm.map(|(r, _)| r.clone());
    let disk = |vdi: &Arc<Vdi>| {
        // On a control domain for longer than patience, without a task of ours.
        let waits = format!("dom0/{}/", vdi.uuid);
        let leaked = |vbd: &str| lens.waits_long(&format!("{waits}{vbd}"));
        let mut disk = objects::disk(view, lens.cluster, vdi, machine_ref.as_ref(), &leaked);
        if !disk.attachments.iter().any(|a| matches!(a.holder, Holder::ControlDomain { .. })) {
            lens.pool.memory().waits_over(&waits);
        }
        disk.left_paused = left_paused(lens, &disk);
        disk
    };
    let w = owned
        .works
        .iter()
        .find(|(_, d)| version(&d.other_config) || records.disk.as_ref().is_some_and(|r| r.uuid == d.uuid))
        .copied();
    let c = owned
        .configs
        .iter()
        .find(|(_, d)| version(&d.other_config) || records.config.as_ref().is_some_and(|r| r.uuid == d.uuid))
        .copied();
    let f_record = records.versions.iter().find(|v| v.version == subject);
    let f = owned
        .frozen
        .iter()
        .find(|(_, d)| version(&d.other_config) || f_record.is_some_and(|r| r.disk == d.uuid))
        .copied();

    let can_tell =
        lens.live && storage.scanned() && attached(view, &sr) && records.pool.as_deref() == Some(pool_uuid.as_str());
    let mut sight = |found: Option<Disk>, recorded: bool| match found {
        Some(disk) => Sight::Found(disk),
        None if !recorded => Sight::Absent,
        None => {
            doubt = true;
            if can_tell { Sight::Lost } else { Sight::CannotLook }
        }
    };
    let work_recorded = records.disk.as_ref().is_some_and(|d| d.version == subject);
    let (elsewhere, scans) = elsewhere(lens, &records, &owned, &storage.uuid, &agent_start);
    let here = records.pool.as_deref() == Some(pool_uuid.as_str());
    let repository = |uuid: Option<&str>| match uuid {
        Some(uuid) if uuid != storage.uuid => elsewhere.iter().find(|s| s.uuid == uuid),
        Some(_) | None => Some(&storage),
    };
    let in_sight = |uuid: Option<&str>| {
        here && repository(uuid)
            .filter(|s| s.scanned())
            .and_then(|s| view.srs.by_uuid(&s.uuid))
            .is_some_and(|(sr, _)| attached(view, sr))
    };
    let unseen = unseen(lens, &records, &agent_start, &|sr| lens.live && in_sight(sr));
    // Gone, as the mirror has it: a live look says whether it is lost.
    let doubted = !lens.deleting && unseen.iter().any(|u| u.version.is_some() && !u.lost && in_sight(u.sr.as_deref()));
    // To be removed, and out of sight: its record goes only when a scan has not brought it back.
    let hidden = !storage.scanned() && records.disk.as_ref().is_some_and(|d| unseen.iter().any(|u| u.uuid == d.uuid));
    let work = match sight(w.map(|(_, d)| disk(d)), work_recorded && !done) {
        Sight::Absent if work_recorded && hidden => Sight::CannotLook,
        seen => seen,
    };
    let config_done = vm.is_some_and(|(_, m)| m.other_config.contains_key(identity::CONFIG_DONE));
    let config_recorded = records.config.as_ref().is_some_and(|d| d.version == subject);
    let config = sight(c.map(|(_, d)| disk(d)), config_recorded && !done && !config_done);
    let stays = !lens.deleting || lens.want.deletion == DeletionPolicy::Retain;
    let frozen = sight(f.map(|(_, d)| disk(d)), f_record.is_some() && stays);
    let os = inspect::os_disk(view, &sr, &lens.layer.spec.os_layer.disk);
    let base_uuids = bases(lens, os.as_ref().ok().map(|(_, d)| d.uuid.as_str()), &storage.uuid, &records);
    let base = match base_uuids.iter().find_map(|uuid| view.vdis.by_uuid(uuid)) {
        Some((_, vdi)) => Sight::Found(disk(vdi)),
        None => Sight::Absent,
    };
    let choice = gate::choose_base(lens.want, &records.versions, base.found().map(|b| b.uuid.as_str()));
    let parent_uuid = match &choice {
        Ok(BaseChoice::Version { disk, .. }) => Some(disk.clone()),
        Ok(BaseChoice::OsLayer) | Err(_) => None,
    };
    let parent = parent_uuid.as_ref().map(|uuid| sight(view.vdis.by_uuid(uuid).map(|(_, d)| disk(d)), true));
    let machine = match vm {
        Some((_, vm)) => Sight::Found(see_machine(lens, vm, w.map(|(r, _)| r), c.map(|(r, _)| r))?),
        None if records.machine.is_none() || done => Sight::Absent,
        None => {
            doubt = true;
            if can_tell { Sight::Lost } else { Sight::CannotLook }
        }
    };

    let estate = estate(lens, &owned, &disk)?;
    let others = estate.frozen.iter().filter(|d| f.is_none_or(|(_, f)| f.uuid != d.uuid));
    let forgot = |d: &&Disk| !d.keyed || !d.tagged || d.name.is_empty() || d.description.is_empty();
    let forgotten = others.filter(forgot).cloned().collect();
    let unclaimed = copies(lens, &subject);
    let idle_bases = idle_bases(lens, &subject).into_iter().map(|d| disk(&d)).collect();
    let mut observed = Observed {
        subject,
        cluster: lens.cluster.to_owned(),
        pool: pool_uuid,
        agent_start,
        records,
        storage,
        os_disk: os.map(|(_, vdi)| inspect::os_disk_facts(view, &vdi)),
        machine_source: machine_source(lens, &sr),
        base,
        parent,
        work,
        machine,
        config,
        files: None,
        program: lens.program.map(|p| p.hash.clone()),
        frozen,
        flights: Vec::new(),
        leftover: None,
        stray_marks: Vec::new(),
        unclaimed,
        unseen,
        elsewhere,
        forgotten,
        idle_bases,
        slot: lens.slot.clone(),
        name_taken_by: lens.name_taken_by.clone(),
        finalizer: lens.layer.metadata.finalizers.iter().flatten().any(|f| f == crate::api::FINALIZER),
    };
    let seen = flights::all(lens, &observed, parent_uuid.as_deref(), &sr);
    observed.flights = seen.flights;
    observed.stray_marks = stray_marks(lens, &observed);
    observed.leftover = seen.leftover;
    let soon = match &mut observed.machine {
        Sight::Found(m) => [tools(lens, m, vm.map(|(_, vm)| vm)), heard(lens, m)].into_iter().flatten().min(),
        Sight::CannotLook | Sight::Absent | Sight::Lost => None,
    };
    if let Some(d) = observed.work.found().filter(|d| d.uuid.is_empty()) {
        // A disk without a uuid cannot be named in any record.
        return Err(Trouble::new(
            crate::api::reason::Reason::PoolError,
            format!("the pool names disk '{}' without a uuid", d.name),
        ));
    }
    let ended = matches!(scan, Scan::Ended) || scans.iter().any(|scan| matches!(scan, Scan::Ended));
    let doubt = doubt || doubted || scans.iter().any(|scan| matches!(scan, Scan::Unseen));
    let soon = [soon, seen.soon, ended.then_some(Duration::ZERO)].into_iter().flatten().min();
    // What it is being cloned from is what counts; the spec may name another base by now.
    let cloned = observed.records.operation.as_ref().filter(|i| i.step == Making::CloneDisk).map(|i| i.source.clone());
    let version = |uuid: &String| observed.records.versions.iter().any(|v| v.disk == *uuid);
    let parent = if cloned.is_some() { cloned.filter(version) } else { parent_uuid };
    let doubt = doubt || seen.doubt || !observed.stray_marks.is_empty();
    Ok(Scene { observed, estate, doubt: doubt && !lens.live, soon, sr, parent })
}

/// A clone that is at work pauses its source too, for moments.
fn left_paused(lens: &Lens<'_>, disk: &Disk) -> bool {
    let paused = disk.keyed && disk.paused && !disk.busy;
    let since = lens.pool.memory().since(&format!("paused/{}", disk.uuid), paused, lens.now);
    since.is_some_and(|t| lens.now.duration_since(t) >= lens.pace.in_flight)
}

/// The lineage of this layer's object of this role and version.
pub fn lineage(cluster: &str, layer: &str, version: &str, role: Role) -> Lineage {
    Lineage::Layer { cluster: cluster.to_owned(), layer: layer.to_owned(), version: version.to_owned(), role }
}

fn machine_source(lens: &Lens<'_>, sr: &Ref) -> Result<(), Trouble> {
    let (view, spec) = (lens.view, &lens.layer.spec.machine);
    inspect::template(view, &lens.connector.spec.template)?;
    let (_, iso) = tools_iso(lens)?;
    inspect::networks(view, &spec.networks)?;
    inspect::co_visible(view, sr, &iso.sr)
}

/// The tools disc: the layer's own choice, else the Connector's.
pub fn tools_iso(lens: &Lens<'_>) -> Result<(Ref, Arc<Vdi>), Trouble> {
    let wanted = lens.layer.spec.machine.tools_iso.as_deref().or(lens.connector.spec.tools_iso.as_deref());
    inspect::tools_iso(lens.view, wanted)
}

fn see_machine(lens: &Lens<'_>, vm: &Arc<Vm>, work: Option<&Ref>, config: Option<&Ref>) -> Result<Machine, Trouble> {
    let iso = tools_iso(lens).ok().map(|(r, _)| r);
    let networks = inspect::networks(lens.view, &lens.layer.spec.machine.networks).unwrap_or_default();
    let uuids = networks.iter().filter_map(|r| lens.view.networks.get(r)).map(|n| n.uuid.clone()).collect();
    let around =
        objects::Surroundings { cluster: lens.cluster, work, config, tools_iso: iso.as_ref(), networks: uuids };
    Ok(objects::machine(lens.view, lens.layer, lens.want, vm, &around))
}

/// Tools count once they have shown for a while, and what is to be heard of the guest is missed after ten minutes; the wait for that is returned.
fn tools(lens: &Lens<'_>, m: &mut Machine, vm: Option<&Arc<Vm>>) -> Option<Duration> {
    let vm = vm?;
    let shown = objects::tools_show(lens.view, vm);
    let (shows, boot) = (format!("tools/{}/{}", m.uuid, vm.guest_metrics), format!("boot/{}/{}", m.uuid, m.boot_id()));
    let running = m.power == crate::domain::observed::Power::Running;
    let mut memory = lens.pool.memory();
    let since = memory.since(&shows, shown.is_some(), lens.now);
    let booted = memory.since(&boot, running, lens.now);
    let age = |t: Option<Instant>| t.map(|t| lens.now.duration_since(t));
    // What an earlier process told of this boot holds: it had waited.
    let told = told_of_tools(lens.layer, m);
    m.tools.ready = shown.is_some() && (told == Some(Reason::ToolsRunning) || age(since) >= Some(lens.pace.settle));
    m.tools.version = shown.filter(|_| m.tools.ready);
    m.runs_long = running && (told == Some(Reason::ToolsNotSeen) || age(booted) >= Some(lens.pace.patience));
    m.tools.overdue = m.runs_long && !m.tools.ready;
    match age(since) {
        Some(a) if a < lens.pace.settle => Some(lens.pace.settle - a),
        Some(_) if lens.want.steps.is_empty() => None,
        Some(_) | None => age(booted).filter(|a| *a < lens.pace.patience).map(|a| lens.pace.patience - a),
    }
}

/// What the guest's service says it is doing holds as long as that may take; the wait for the end of that is returned.
fn heard(lens: &Lens<'_>, m: &mut Machine) -> Option<Duration> {
    let running = m.power == crate::domain::observed::Power::Running;
    let may_take = config::may_take(lens.want, m, lens.pace.patience).filter(|_| running)?;
    let said = format!("{} {:?} {:?}", m.boot_id(), m.doing, m.progress);
    let told = find(&lens.layer.status.as_ref()?.conditions, ConditionType::Ready)?;
    let silent = told.reason == Reason::GuestSilent.as_str();
    let since = lens.pool.memory().heard(&m.uuid, said, silent, lens.now);
    let left = since.map(|since| may_take.saturating_sub(lens.now.duration_since(since))).unwrap_or_default();
    m.silent = left.is_zero();
    (!m.silent).then_some(left)
}

/// What the status says of the tools, if it speaks of the present boot.
fn told_of_tools(layer: &PlatformLayer, m: &Machine) -> Option<Reason> {
    let status = layer.status.as_ref()?;
    let of_this = m.key(BOOT) == Some(m.boot_id().as_str()) && status.machine.as_ref()?.uuid == m.uuid;
    let condition = find(&status.conditions, ConditionType::GuestToolsReady).filter(|_| of_this)?;
    Reason::parse(&condition.reason)
}
