//! Shared bases: which one fits, which nobody stands on, and the marks on them; and copies that other tools made.
//!
//! Called by `observe` alone.

use std::sync::Arc;

use super::Lens;
use super::storage::attached;
use super::tasks::is_going;
use crate::domain::identity::{self, Lineage, Proof, Role, prove};
use crate::domain::observed::{Making, Observed, Records, VersionRecord};
use crate::domain::plan::Step;
use crate::xapi::model::Vdi;

/// Candidates for S, best first: by lineage; where the OS disk or S's keys are gone, those that our records name for this OS layer version.
pub(super) fn bases(lens: &Lens<'_>, os: Option<&str>, sr: &str, records: &Records) -> Vec<String> {
    let proof = |d: &Vdi, recorded| prove(lens.cluster, &d.uuid, &d.other_config, recorded);
    let mut found: Vec<String> = Vec::new();
    if let Some(os) = os {
        let opid = base_lineage(lens, sr, os).opid();
        let keyed = lens.view.vdis.with(identity::OP, &opid.0);
        let keyed = keyed.filter(|(_, d)| proof(d, false) == Proof::ByKeys(Role::Base) && !is_going(lens, &d.uuid));
        found.extend(keyed.map(|(_, d)| d.uuid.clone()));
    }
    let version = |v: &VersionRecord| (v.base.clone(), v.os_version.as_ref() == Some(&lens.want.os_version));
    let in_work = lens.layer.status.iter().filter_map(|s| Some(s.disk.as_ref()?.base.as_ref()?.uuid.clone()));
    let source = records.operation.iter().filter(|i| i.step == Making::CloneDisk).map(|i| i.source.clone());
    // The OS layer of a version in work is fixed.
    let same_os = records.disk.as_ref().is_some_and(|d| d.version == lens.want.version);
    let recorded = records.versions.iter().rev().map(version).chain(in_work.map(|uuid| (uuid, same_os)));
    // What is made of it stays where it is, and is to be made here.
    let here = |d: &Vdi| lens.view.srs.get(&d.sr).is_some_and(|there| there.uuid == sr);
    for (uuid, same_os) in recorded.chain(source.map(|uuid| (uuid, false))) {
        let there = lens.view.vdis.by_uuid(&uuid).filter(|(_, d)| here(d));
        let fits = there.is_some_and(|(_, d)| match proof(d, true) {
            Proof::ByKeys(Role::Base) => {
                d.other_config.get(identity::OS_VERSION) == Some(&lens.want.os_version)
                    && os.is_none_or(|os| d.other_config.get(identity::OS).is_some_and(|o| o == os))
            }
            // It lost its keys, and gets them back.
            Proof::ByRecord => same_os,
            Proof::ByKeys(_) | Proof::Unclaimed | Proof::Foreign | Proof::None => false,
        });
        if fits {
            found.push(uuid);
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

/// See [`Observed::stray_marks`]. The base's is another layer's as long as the base is not there. A removal's is ours while its base is to
/// go.
pub(super) fn stray_marks(lens: &Lens<'_>, seen: &Observed) -> Vec<(String, identity::Mark)> {
    let base = seen.flight(Making::SnapshotOsDisk).filter(|_| seen.base.found().is_some());
    let base = base.and_then(|f| f.wanted_mark.as_ref()).filter(|m| !lens.around.is_another_at(&m.op, &lens.want.uid));
    let removal = identity::Mark::removal(lens.cluster, &lens.want.uid);
    let ours = |m: &identity::Mark| m.cluster == lens.cluster && (m.owner == lens.want.uid || base == Some(m));
    // A child bears its source's mark too, and is none: it has the source's `self`, or is a snapshot without one.
    let source = |d: &Vdi| d.other_config.get(identity::SELF).map_or(!d.is_a_snapshot, |own| *own == d.uuid);
    let stray = |d: &Vdi, m: &identity::Mark| {
        ours(m) && source(d) || *m == removal && seen.idle_bases.iter().all(|idle| idle.uuid != d.uuid)
    };
    let marked = lens.view.vdis.marked().filter(|_| seen.records.operation.is_none());
    marked
        .filter_map(|(_, d)| Some((d.uuid.clone(), identity::Mark::read(&d.other_config).filter(|m| stray(d, m))?)))
        .collect()
}

/// Copies of our disks that another tool made: our keys, but `self` is another disk.
pub(super) fn copies(lens: &Lens<'_>, subject: &str) -> Vec<String> {
    let uid = lens.want.uid.as_str();
    let copied = |d: &Vdi| {
        prove(lens.cluster, &d.uuid, &d.other_config, false) == Proof::Unclaimed
            && d.other_config.get(identity::VERSION).is_some_and(|v| v == subject)
    };
    lens.view.vdis.with(identity::LAYER, uid).filter(|(_, d)| copied(d)).map(|(_, d)| d.uuid.clone()).collect()
}

/// Every S on which no W or F stands, which nobody is about to clone, and which no layer's status names; in whatever storage repository:
/// who had something in another one has left it there.
pub(super) fn idle_bases(lens: &Lens<'_>, subject: &str) -> Vec<Arc<Vdi>> {
    // What a status names is in use; only of the others a whole look must tell, which is dear.
    let used = |uuid: &str| {
        lens.view.vdis.iter().any(|(_, d)| d.other_config.get(identity::BASE).is_some_and(|base| base == uuid))
    };
    let uid = lens.want.uid.as_str();
    // A removal leaves it to nobody: who wants it next makes it anew.
    let removal = lens.deleting || lens.want.discard.as_deref() == Some(subject);
    let wanted =
        |d: &Vdi| !removal && d.other_config.get(identity::OS_VERSION).is_some_and(|v| lens.around.is_wanted(v, uid));
    // A base that cannot be destroyed now keeps nobody from anything: the next one looks again.
    let in_use = |d: &Vdi| {
        let vbds = d.vbds.iter().filter_map(|r| lens.view.vbds.get(r)).filter(|vbd| vbd.currently_attached);
        vbds.filter_map(|vbd| lens.view.vms.get(&vbd.vm)).any(|vm| !vm.is_control_domain)
    };
    let refused = |d: &Vdi| {
        let step = Step::DestroyBase { disk: d.uuid.clone() };
        !removal && (!d.vbds.is_empty() || lens.pool.memory().refusal(uid, &step).is_some())
    };
    let free = |uuid: &str| {
        !lens.around.is_base(uuid, uid, lens.want.discard.as_deref())
            && lens.pool.turns().may_take(uuid, uid)
            && !used(uuid)
    };
    lens.view
        .vdis
        .bases()
        .filter(|(_, d)| prove(lens.cluster, &d.uuid, &d.other_config, false) == Proof::ByKeys(Role::Base))
        .filter(|(_, d)| free(&d.uuid) && !wanted(d))
        .filter(|(_, d)| attached(lens.view, &d.sr) && !in_use(d) && !refused(d))
        .filter(|(_, d)| {
            identity::Mark::read(&d.other_config).is_none_or(|m| m.is_removal() && m.cluster == lens.cluster)
        })
        .map(|(_, d)| Arc::clone(d))
        .collect()
}
