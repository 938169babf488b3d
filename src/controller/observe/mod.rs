//! From a view of the pool, the records in status and this process's memory to what the domain judges.
//!
//! Reads only, and never waits: whatever needs a fresh look says so (`Scene::doubt`), and `layer` looks and asks again with the live view.
//! It must not conclude anything from a view that is not whole.
//!
//! Longer than 350 lines: one observation is one document, and its parts are small already.

pub mod flights;
pub mod objects;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::inspect;
use super::pace::Pace;
use super::pool::Pool;
use crate::api::layer_status::PlatformLayerStatus;
use crate::api::{Connector, PlatformLayer};
use crate::domain::gate::{self, BaseChoice};
use crate::domain::identity::{self, Lineage, Proof, Role, prove};
use crate::domain::observed::{
    Disk, DiskRecord, Intent, Machine, MachineRecord, Making, Observed, Records, Sight, Storage, Trouble, VersionRecord,
};
use crate::domain::removal::Estate;
use crate::domain::want::Want;
use crate::xapi::model::{TaskStatus, Vdi, Vm};
use crate::xapi::view::View;
use crate::xapi::wire::Ref;

/// Everything that is looked through.
pub struct Lens<'a> {
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
    /// uuids of S that any layer's status names.
    pub recorded_bases: HashSet<String>,
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

/// The records of a status.
pub fn records(status: Option<&PlatformLayerStatus>) -> Records {
    let Some(s) = status else { return Records::default() };
    Records {
        pool: s.pool.clone(),
        disk: s.disk.as_ref().map(|d| DiskRecord {
            uuid: d.uuid.clone(),
            version: d.version.clone(),
            worked: d.worked,
        }),
        machine: s.machine.as_ref().map(|m| MachineRecord {
            uuid: m.uuid.clone(),
            restart_token: m.restart_token.clone(),
            agent_start: m.agent_start.clone(),
        }),
        versions: s
            .versions
            .iter()
            .map(|v| VersionRecord {
                version: v.version.clone(),
                disk: v.disk.clone(),
                base: v.base.as_ref().map(|b| b.uuid.clone()).unwrap_or_default(),
            })
            .collect(),
        operation: s.operation.as_ref().and_then(|o| {
            Some(Intent {
                step: Making::parse(&o.step)?,
                opid: identity::Opid(o.opid.clone()?),
                source: o.source.clone()?,
                agent_start: o.agent_start.clone()?,
            })
        }),
    }
}

/// Where a layer's W, M and F are.
struct Owned<'a> {
    machines: Vec<(&'a Ref, &'a Arc<Vm>)>,
    works: Vec<(&'a Ref, &'a Arc<Vdi>)>,
    frozen: Vec<(&'a Ref, &'a Arc<Vdi>)>,
}

/// Looks. `Err`: nothing can be said of the pool, and why.
pub fn observe(lens: &Lens<'_>) -> Result<Scene, Trouble> {
    let view = lens.view;
    let records = records(lens.layer.status.as_ref());
    let pool_uuid = view.pool().map(|(_, p)| p.uuid.clone()).unwrap_or_default();
    let agent_start = view.agent_start().unwrap_or_default().to_owned();
    let (sr, _) = inspect::storage(view, &lens.connector.spec.storage_repository)?;
    let mut storage = inspect::facts(view, &sr).unwrap_or_default();
    scan_state(lens, &mut storage, &agent_start);

    let owned = owned(lens, &records);
    let subject = subject(lens.want, &records, &owned);
    let finalized = records.versions.iter().any(|v| v.version == subject);
    let done = finalized || lens.deleting || lens.want.discard.as_deref() == Some(subject.as_str());
    let version = |keys: &identity::Keys| keys.get(identity::VERSION).is_some_and(|v| *v == subject);

    let mut doubt = false;
    let vm =
        owned.machines.iter().find(|(_, m)| version(&m.other_config) || recorded(&records.machine, &m.uuid)).copied();
    let machine_ref = vm.map(|(r, _)| r.clone());
    let disk = |vdi: &Arc<Vdi>| {
        let leaked = |vbd: &str| leaked(lens, vbd);
        objects::disk(view, lens.cluster, vdi, machine_ref.as_ref(), &leaked)
    };
    let w = owned
        .works
        .iter()
        .find(|(_, d)| version(&d.other_config) || records.disk.as_ref().is_some_and(|r| r.uuid == d.uuid))
        .copied();
    let f_record = records.versions.iter().find(|v| v.version == subject);
    let f = owned
        .frozen
        .iter()
        .find(|(_, d)| version(&d.other_config) || f_record.is_some_and(|r| r.disk == d.uuid))
        .copied();

    let can_tell =
        lens.live && storage.scanned && attached(view, &sr) && records.pool.as_deref() == Some(pool_uuid.as_str());
    let mut sight = |found: Option<Disk>, recorded: bool| match found {
        Some(disk) => Sight::Found(disk),
        None if !recorded => Sight::Absent,
        None => {
            doubt = true;
            if can_tell { Sight::Lost } else { Sight::CannotLook }
        }
    };
    let work_recorded = records.disk.as_ref().is_some_and(|d| d.version == subject);
    let work = sight(w.map(|(_, d)| disk(d)), work_recorded && !done);
    let frozen = sight(f.map(|(_, d)| disk(d)), f_record.is_some() && !lens.deleting);
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
        Some((r, vm)) => Sight::Found(see_machine(lens, r, vm, w.map(|(r, _)| r))?),
        None if records.machine.is_none() || done => Sight::Absent,
        None => {
            doubt = true;
            if can_tell { Sight::Lost } else { Sight::CannotLook }
        }
    };

    let estate = estate(lens, &owned, &disk)?;
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
        frozen,
        flights: Vec::new(),
        leftover: None,
        stray_marks: Vec::new(),
        unclaimed: copies(lens),
        idle_bases: idle_bases(lens, &sr).into_iter().map(|d| disk(&d)).collect(),
        slot: lens.slot.clone(),
        name_taken_by: lens.name_taken_by.clone(),
        finalizer: lens.layer.metadata.finalizers.iter().flatten().any(|f| f == crate::api::FINALIZER),
    };
    let seen = flights::all(lens, &observed, parent_uuid.as_deref(), &sr);
    observed.flights = seen.flights;
    observed.stray_marks = stray_marks(lens, &observed);
    observed.leftover = seen.leftover;
    let soon = match &mut observed.machine {
        Sight::Found(m) => tools(lens, m, vm.map(|(_, vm)| vm)),
        Sight::CannotLook | Sight::Absent | Sight::Lost => None,
    };
    if let Some(d) = observed.work.found().filter(|d| d.uuid.is_empty()) {
        // A disk without a uuid cannot be named in any record.
        return Err(Trouble::new(
            crate::api::reason::Reason::PoolError,
            format!("the pool names disk '{}' without a uuid", d.name),
        ));
    }
    Ok(Scene { observed, estate, doubt: (doubt || seen.doubt) && !lens.live, soon, sr, parent: parent_uuid })
}

fn recorded(record: &Option<MachineRecord>, uuid: &str) -> bool {
    record.as_ref().is_some_and(|r| r.uuid == uuid)
}

/// The version that this pass is about: what is in work on the pool comes first, whatever the spec says by now.
fn subject(want: &Want, records: &Records, owned: &Owned<'_>) -> String {
    let version = |keys: &identity::Keys| keys.get(identity::VERSION).cloned();
    let known = |v: &String| records.versions.iter().any(|r| r.version == *v);
    let on_pool = owned
        .machines
        .iter()
        .map(|(_, m)| &m.other_config)
        .chain(owned.works.iter().map(|(_, d)| &d.other_config))
        .find_map(version);
    let unrecorded = || owned.frozen.iter().filter_map(|(_, d)| version(&d.other_config)).find(|v| !known(v));
    let lost = || {
        let of = records.disk.as_ref().map(|d| d.version.clone())?;
        (!known(&of) && !of.is_empty()).then_some(of)
    };
    on_pool.or_else(unrecorded).or_else(lost).unwrap_or_else(|| want.version.clone())
}

/// All objects that are provably this layer's, by their keys or by its records.
fn owned<'a>(lens: &Lens<'a>, records: &Records) -> Owned<'a> {
    let uid = lens.want.uid.as_str();
    let mine = |uuid: &str, keys: &identity::Keys, role| objects::owned(lens.cluster, uuid, keys, role, uid);
    let vdis = |role, uuids: Vec<&str>| {
        let keyed =
            lens.view.vdis.with(identity::LAYER, uid).filter(move |(_, d)| mine(&d.uuid, &d.other_config, role));
        let mut all: Vec<(&Ref, &Arc<Vdi>)> = keyed.collect();
        for (r, d) in uuids.into_iter().filter_map(|uuid| lens.view.vdis.by_uuid(uuid)) {
            if prove(lens.cluster, &d.uuid, &d.other_config, true) == Proof::ByRecord {
                all.push((r, d));
            }
        }
        all
    };
    let mut machines: Vec<_> = lens
        .view
        .vms
        .with(identity::LAYER, uid)
        .filter(|(_, m)| mine(&m.uuid, &m.other_config, Role::Machine))
        .collect();
    if let Some((r, m)) = records.machine.as_ref().and_then(|m| lens.view.vms.by_uuid(&m.uuid))
        && prove(lens.cluster, &m.uuid, &m.other_config, true) == Proof::ByRecord
    {
        machines.push((r, m));
    }
    Owned {
        machines,
        works: vdis(Role::Work, records.disk.iter().map(|d| d.uuid.as_str()).collect()),
        frozen: vdis(Role::Frozen, records.versions.iter().map(|v| v.disk.as_str()).collect()),
    }
}

/// Candidates for S, best first: by lineage; where the OS disk is gone, those that our records name for this OS layer version.
fn bases(lens: &Lens<'_>, os: Option<&str>, sr: &str, records: &Records) -> Vec<String> {
    let is_base = |d: &Vdi| prove(lens.cluster, &d.uuid, &d.other_config, false) == Proof::ByKeys(Role::Base);
    let mut found: Vec<String> = Vec::new();
    if let Some(os) = os {
        let opid = base_lineage(lens, sr, os).opid();
        found.extend(
            lens.view.vdis.with(identity::OP, &opid.0).filter(|(_, d)| is_base(d)).map(|(_, d)| d.uuid.clone()),
        );
    }
    for uuid in records
        .versions
        .iter()
        .rev()
        .map(|v| v.base.as_str())
        .chain(lens.layer.status.iter().filter_map(|s| Some(s.disk.as_ref()?.base.as_ref()?.uuid.as_str())))
    {
        let fits = lens.view.vdis.by_uuid(uuid).is_some_and(|(_, d)| {
            is_base(d)
                && d.other_config.get(identity::OS_VERSION) == Some(&lens.want.os_version)
                && os.is_none_or(|os| d.other_config.get(identity::OS).is_some_and(|o| o == os))
        });
        if fits {
            found.push(uuid.to_owned());
        }
    }
    found
}

pub fn base_lineage(lens: &Lens<'_>, sr: &str, os: &str) -> Lineage {
    Lineage::Base {
        cluster: lens.cluster.to_owned(),
        sr: sr.to_owned(),
        os: os.to_owned(),
        os_version: lens.want.os_version.clone(),
    }
}

/// The lineage of this layer's object of this role and version.
pub fn lineage(cluster: &str, layer: &str, version: &str, role: Role) -> Lineage {
    Lineage::Layer { cluster: cluster.to_owned(), layer: layer.to_owned(), version: version.to_owned(), role }
}

fn attached(view: &View, sr: &Ref) -> bool {
    view.pbds.iter().any(|(_, p)| p.sr == *sr && p.currently_attached)
}

fn scan_state(lens: &Lens<'_>, storage: &mut Storage, agent_start: &str) {
    let mut memory = lens.pool.memory();
    if let Some(task) = memory.scan_task(&storage.uuid) {
        match lens.view.tasks.get(&task).map(|t| &t.status) {
            Some(TaskStatus::Success) => memory.scan_done(&storage.uuid, agent_start, lens.now),
            Some(TaskStatus::Pending | TaskStatus::Cancelling) => {}
            // The mirror may not show it yet; a live look that does not either has lost it, and it is made again.
            None if !lens.live => {}
            None | Some(TaskStatus::Failure | TaskStatus::Cancelled | TaskStatus::Other) => {
                memory.scan_started(&storage.uuid, agent_start, None);
            }
        }
    }
    let (done, _) = memory.scans(&storage.uuid, agent_start, lens.now, lens.pace.in_flight);
    storage.scanned = done > 0;
    storage.scanning = memory.scan_task(&storage.uuid).is_some();
}

/// On a control domain for longer than patience, without a task of ours.
fn leaked(lens: &Lens<'_>, vbd: &str) -> bool {
    let since = lens.pool.memory().since(&format!("dom0/{vbd}"), true, lens.now);
    since.is_some_and(|t| lens.now.duration_since(t) >= lens.pace.patience)
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

fn see_machine(lens: &Lens<'_>, r: &Ref, vm: &Arc<Vm>, work: Option<&Ref>) -> Result<Machine, Trouble> {
    let iso = tools_iso(lens).ok().map(|(r, _)| r);
    let networks = inspect::networks(lens.view, &lens.layer.spec.machine.networks).unwrap_or_default();
    let uuids = networks.iter().filter_map(|r| lens.view.networks.get(r)).map(|n| n.uuid.clone()).collect();
    let around = objects::Surroundings { cluster: lens.cluster, work, tools_iso: iso.as_ref(), networks: uuids };
    Ok(objects::machine(lens.view, lens.layer, lens.want, r, vm, &around))
}

/// Tools count once they have shown for a while; the wait for that is returned.
fn tools(lens: &Lens<'_>, m: &mut Machine, vm: Option<&Arc<Vm>>) -> Option<Duration> {
    let vm = vm?;
    let shown = objects::tools_show(lens.view, vm);
    let (shows, boot) = (format!("tools/{}/{}", m.uuid, vm.guest_metrics), format!("boot/{}/{}", m.uuid, m.boot_id()));
    let running = m.power == crate::domain::observed::Power::Running;
    let mut memory = lens.pool.memory();
    let since = memory.since(&shows, shown.is_some(), lens.now);
    let booted = memory.since(&boot, running, lens.now);
    let age = |t: Option<Instant>| t.map(|t| lens.now.duration_since(t));
    m.tools.ready = age(since).is_some_and(|a| a >= lens.pace.settle);
    m.tools.version = shown.filter(|_| m.tools.ready);
    m.tools.overdue = running && !m.tools.ready && age(booted).is_some_and(|a| a >= lens.pace.patience);
    match age(since) {
        Some(a) if a < lens.pace.settle => Some(lens.pace.settle - a),
        Some(_) => None,
        None => age(booted).filter(|a| *a < lens.pace.patience).map(|a| lens.pace.patience - a),
    }
}

/// See [`Observed::stray_marks`]. The base's is another layer's as long as the base is not there.
fn stray_marks(lens: &Lens<'_>, seen: &Observed) -> Vec<(String, identity::Mark)> {
    let base = seen.flight(Making::SnapshotOsDisk).filter(|_| seen.base.found().is_some());
    let ours = |m: &identity::Mark| {
        m.cluster == lens.cluster && (m.owner == lens.want.uid || base.and_then(|f| f.wanted_mark.as_ref()) == Some(m))
    };
    // A child bears its source's mark too, and is none: it has the source's `self`, or is a snapshot without one.
    let source = |d: &Vdi| d.other_config.get(identity::SELF).map_or(!d.is_a_snapshot, |own| *own == d.uuid);
    let marked = lens.view.vdis.iter().filter(|(_, d)| seen.records.operation.is_none() && source(d));
    marked.filter_map(|(_, d)| Some((d.uuid.clone(), identity::Mark::read(&d.other_config).filter(ours)?))).collect()
}

/// Copies of our disks that another tool made: our keys, but `self` is another disk.
fn copies(lens: &Lens<'_>) -> Vec<String> {
    let uid = lens.want.uid.as_str();
    let copied = |d: &Vdi| prove(lens.cluster, &d.uuid, &d.other_config, false) == Proof::Unclaimed;
    lens.view.vdis.with(identity::LAYER, uid).filter(|(_, d)| copied(d)).map(|(_, d)| d.uuid.clone()).collect()
}

fn estate(lens: &Lens<'_>, owned: &Owned<'_>, disk: &dyn Fn(&Arc<Vdi>) -> Disk) -> Result<Estate, Trouble> {
    let work = |m: &Vm| {
        let version = m.other_config.get(identity::VERSION);
        owned
            .works
            .iter()
            .find(|(_, w)| w.other_config.get(identity::VERSION) == version || version.is_none())
            .map(|(r, _)| *r)
    };
    let machines = owned.machines.iter().map(|(r, m)| see_machine(lens, r, m, work(m))).collect::<Result<_, _>>()?;
    let retained = owned
        .frozen
        .iter()
        .filter(|(_, d)| d.other_config.contains_key(identity::RETAINED))
        .map(|(_, d)| d.uuid.clone())
        .collect();
    Ok(Estate {
        machines,
        works: owned.works.iter().map(|(_, d)| disk(d)).collect(),
        frozen: owned.frozen.iter().map(|(_, d)| disk(d)).collect(),
        retained,
    })
}

/// Every S on which no W or F stands, which nobody is about to clone, and which no layer's status names.
fn idle_bases(lens: &Lens<'_>, sr: &Ref) -> Vec<Arc<Vdi>> {
    // What a status names is in use; only of the others a whole look must tell, which is dear.
    let used = |uuid: &str| {
        lens.view.vdis.iter().any(|(_, d)| d.other_config.get(identity::BASE).is_some_and(|base| base == uuid))
    };
    let free = |uuid: &str| {
        !lens.recorded_bases.contains(uuid) && lens.pool.memory().has_turn(uuid, &lens.want.uid) && !used(uuid)
    };
    lens.view
        .vdis
        .with(identity::ROLE, Role::Base.as_str())
        .filter(|(_, d)| {
            d.sr == *sr && prove(lens.cluster, &d.uuid, &d.other_config, false) == Proof::ByKeys(Role::Base)
        })
        .filter(|(_, d)| free(&d.uuid))
        .filter(|(_, d)| {
            identity::Mark::read(&d.other_config).is_none_or(|m| m.is_removal() && m.cluster == lens.cluster)
        })
        .map(|(_, d)| Arc::clone(d))
        .collect()
}
