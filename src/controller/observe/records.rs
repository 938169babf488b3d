//! What a status records, and where that is on the pool: the subject of a pass and all objects that are provably a layer's.
//!
//! Called by `observe` alone.

use std::sync::Arc;

use super::super::inspect;
use super::tasks::is_going;
use super::{Lens, objects, see_machine};
use crate::api::layer_status::PlatformLayerStatus;
use crate::api::reason::Reason;
use crate::domain::identity::{self, Proof, Role, prove};
use crate::domain::observed::{
    Disk, DiskRecord, Intent, MachineRecord, Making, Records, Trouble, Unseen, VersionRecord,
};
use crate::domain::removal::Estate;
use crate::domain::want::Want;
use crate::xapi::model::{Vdi, Vm};
use crate::xapi::wire::Ref;

/// The records of a status.
pub(super) fn records(status: Option<&PlatformLayerStatus>) -> Records {
    let Some(s) = status else { return Records::default() };
    Records {
        pool: s.pool.clone(),
        disk: s.disk.as_ref().map(|d| DiskRecord {
            uuid: d.uuid.clone(),
            version: d.version.clone(),
            worked: d.worked,
            sr: d.storage_repository_uuid.clone(),
            virtual_size: d.virtual_size,
        }),
        config: s.config_disk.as_ref().map(|c| DiskRecord {
            uuid: c.uuid.clone(),
            version: c.version.clone(),
            worked: false,
            sr: c.storage_repository_uuid.clone(),
            virtual_size: None,
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
                os_version: v.os_version.clone(),
                sr: v.storage_repository_uuid.clone(),
                lost: v.lost,
            })
            .collect(),
        operation: s.operation.as_ref().and_then(|o| {
            Some(Intent {
                step: Making::parse(&o.step)?,
                opid: identity::Opid(o.opid.clone()?),
                source: o.source.clone()?,
                agent_start: o.agent_start.clone()?,
                boot: o.boot_id.clone(),
            })
        }),
    }
}

/// Where a layer's W, C, M and F are.
pub(super) struct Owned<'a> {
    pub(super) machines: Vec<(&'a Ref, &'a Arc<Vm>)>,
    pub(super) works: Vec<(&'a Ref, &'a Arc<Vdi>)>,
    pub(super) configs: Vec<(&'a Ref, &'a Arc<Vdi>)>,
    pub(super) frozen: Vec<(&'a Ref, &'a Arc<Vdi>)>,
}

pub(super) fn recorded(record: &Option<MachineRecord>, uuid: &str) -> bool {
    record.as_ref().is_some_and(|r| r.uuid == uuid)
}

/// The version that this pass is about: what is in work on the pool comes first, whatever the spec says by now.
pub(super) fn subject(want: &Want, records: &Records, owned: &Owned<'_>) -> String {
    let version = |keys: &identity::Keys| keys.get(identity::VERSION).cloned();
    let known = |v: &String| records.versions.iter().any(|r| r.version == *v);
    let on_pool = || {
        let machines = owned.machines.iter().map(|(_, m)| &m.other_config);
        let disks = owned.works.iter().chain(&owned.configs).map(|(_, d)| &d.other_config);
        machines.chain(disks).filter_map(version)
    };
    let unrecorded = || owned.frozen.iter().filter_map(|(_, d)| version(&d.other_config)).find(|v| !known(v));
    let lost = || {
        let of = records.disk.as_ref().map(|d| d.version.clone())?;
        (!known(&of) && !of.is_empty()).then_some(of)
    };
    // What is left of a finalized version, or came back of it, waits for its turn.
    let left = || on_pool().next();
    let in_work = on_pool().find(|v| !known(v));
    in_work.or_else(unrecorded).or_else(lost).or_else(left).unwrap_or_else(|| want.version.clone())
}

/// All objects that are provably this layer's, by their keys or by its records. What bears its keys and goes is the business of its operation.
pub(super) fn owned<'a>(lens: &Lens<'a>, records: &Records) -> Owned<'a> {
    let uid = lens.want.uid.as_str();
    let mine = |uuid: &str, keys: &identity::Keys, role| {
        objects::owned(lens.cluster, uuid, keys, role, uid) && !is_going(lens, uuid)
    };
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
        configs: vdis(Role::Config, records.config.iter().map(|d| d.uuid.as_str()).collect()),
        frozen: vdis(Role::Frozen, records.versions.iter().map(|v| v.disk.as_str()).collect()),
    }
}

/// Where the subject's disk is, or what was begun is made of, whatever the Connector names by now; nothing yet: the Connector's.
pub(super) fn repository(lens: &Lens<'_>, records: &Records, subject: &str) -> Result<Ref, Trouble> {
    let (named, record) = inspect::storage(lens.view, &lens.connector.spec.storage_repository)?;
    let version = records.versions.iter().find(|v| v.version == subject).and_then(|v| v.sr.as_ref());
    let recorded = version.or(records.disk.as_ref().filter(|d| d.version == subject).and_then(|d| d.sr.as_ref()));
    let begun = records.operation.as_ref().and_then(|i| lens.view.vdis.by_uuid(&i.source));
    if let (None, Some((_, source))) = (recorded, begun) {
        return Ok(source.sr.clone());
    }
    let Some(uuid) = recorded.filter(|uuid| **uuid != record.uuid) else { return Ok(named) };
    lens.view.srs.by_uuid(uuid).map(|(r, _)| r.clone()).ok_or_else(|| {
        Trouble::new(
            Reason::WaitingForStorage,
            format!(
                "storage repository {uuid}, which holds the disk of version '{subject}', is not in the pool any more: introduce it again; nothing is made or called lost meanwhile. If it is gone for good, so is that disk: set spec.deletionPolicy to Orphan, delete the layer, and make it anew"
            ),
        )
    })
}

/// See [`Observed::unseen`]. `lost`: would a disk that does not show in the repository of this uuid (none: the subject's) be lost?
pub(super) fn unseen(
    lens: &Lens<'_>,
    records: &Records,
    agent_start: &str,
    lost: &dyn Fn(Option<&str>) -> bool,
) -> Vec<Unseen> {
    let hidden =
        |uuid: &str| lens.view.vdis.by_uuid(uuid).is_none() && !lens.pool.memory().was_removed(uuid, agent_start);
    let unseen = |uuid: &str, version: Option<&str>, sr: Option<&str>, lost: bool| {
        let owned = |s: Option<&str>| s.map(str::to_owned);
        hidden(uuid).then(|| Unseen { uuid: uuid.to_owned(), version: owned(version), sr: owned(sr), lost })
    };
    let made = records.disk.iter().chain(&records.config);
    let work = made.filter_map(|d| unseen(&d.uuid, None, d.sr.as_deref(), false));
    // What a removal took is not lost, though another process may have done it.
    let gone = |v: &VersionRecord| v.lost || !lens.deleting && lost(v.sr.as_deref());
    let frozen = records.versions.iter().filter_map(|v| unseen(&v.disk, Some(&v.version), v.sr.as_deref(), gone(v)));
    work.chain(frozen).collect()
}

/// All that is a layer's, whatever version it is of.
pub(super) fn estate(lens: &Lens<'_>, owned: &Owned<'_>, disk: &dyn Fn(&Arc<Vdi>) -> Disk) -> Result<Estate, Trouble> {
    let of = |m: &Vm, disks: &[(&Ref, &Arc<Vdi>)]| {
        let version = m.other_config.get(identity::VERSION);
        disks
            .iter()
            .find(|(_, w)| w.other_config.get(identity::VERSION) == version || version.is_none())
            .map(|(r, _)| (*r).clone())
    };
    let machine = |m: &Arc<Vm>| see_machine(lens, m, of(m, &owned.works).as_ref(), of(m, &owned.configs).as_ref());
    let machines = owned.machines.iter().map(|(_, m)| machine(m)).collect::<Result<_, _>>()?;
    let retained = owned
        .frozen
        .iter()
        .filter(|(_, d)| d.other_config.contains_key(identity::RETAINED))
        .map(|(_, d)| d.uuid.clone())
        .collect();
    Ok(Estate {
        machines,
        works: owned.works.iter().map(|(_, d)| disk(d)).collect(),
        configs: owned.configs.iter().map(|(_, d)| disk(d)).collect(),
        frozen: owned.frozen.iter().map(|(_, d)| disk(d)).collect(),
        retained,
    })
}
