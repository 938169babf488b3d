//! The sweeper: what is in a pool with our cluster's keys, or in our trees without any, and belongs to no layer.
//!
//! Pure; called by `connector`. It reports (`Unclaimed`) and must never lead to a removal: a backup that was restored, or a layer deleted
//! with Orphan, looks just like rubbish. Disks that a deletion policy kept are counted apart.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use kube::core::DeserializeGuard;
use tokio::time::Instant;

use crate::api::PlatformLayer;
use crate::domain::identity::{BASE, CLUSTER, Keys, LAYER, Mark, OS, Proof, RETAINED, Role, TASK_TAG, prove};
use crate::xapi::model::{Vdi, Vm};
use crate::xapi::view::View;
use crate::xapi::wire::parse_time;

/// As many are named in a condition.
const NAMED: usize = 20;
/// What XAPI itself writes on a disk that it finds.
const OF_XAPI: &str = "content_id";

/// What the layers say of themselves, all of the cluster's.
#[derive(Default)]
pub struct Known {
    uids: HashSet<String>,
    /// uuids in their statuses.
    recorded: HashSet<String>,
    /// Ids of the operations they are at.
    operations: HashSet<String>,
    /// uuids and names of the OS disks they want.
    os_disks: HashSet<String>,
}

impl Known {
    pub fn of<'a>(layers: impl IntoIterator<Item = &'a DeserializeGuard<PlatformLayer>>) -> Self {
        let mut known = Self::default();
        for guard in layers {
            known.uids.extend(guard.meta().uid.clone());
            // One that cannot be read is still there, and so is what it has in the pool.
            let Ok(layer) = &guard.0 else { continue };
            let disk = &layer.spec.os_layer.disk;
            known.os_disks.extend([&disk.uuid, &disk.name].into_iter().flatten().cloned());
            let Some(status) = &layer.status else { continue };
            known.operations.extend(status.operation.iter().filter_map(|o| o.opid.clone()));
            known.recorded.extend(status.operation.iter().filter_map(|o| o.source.clone()));
            known.recorded.extend(status.machine.iter().map(|m| m.uuid.clone()));
            let bases = status.disk.iter().map(|d| &d.base).chain(status.versions.iter().map(|v| &v.base));
            known.recorded.extend(bases.flatten().map(|base| base.uuid.clone()));
            known.recorded.extend(status.disk.iter().map(|d| d.uuid.clone()));
            known.recorded.extend(status.config_disk.iter().map(|c| c.uuid.clone()));
            known.recorded.extend(status.versions.iter().map(|v| v.disk.clone()));
        }
        known
    }

    fn has_layer(&self, keys: &Keys) -> bool {
        keys.get(LAYER).is_some_and(|uid| self.uids.contains(uid))
    }
}

/// Something that belongs to no layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Leftover {
    kind: &'static str,
    uuid: String,
    name: String,
    /// Bytes; machines have none.
    size: Option<i64>,
    /// When it was made, where the pool knows.
    made: Option<String>,
}

/// What one sweep found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Swept {
    /// By uuid.
    pub unclaimed: Vec<Leftover>,
    /// More was seen, but not for long enough.
    pub unripe: bool,
    /// Frozen versions of layers that are gone, kept by their policy.
    pub retained: usize,
}

pub fn sweep(view: &View, cluster: &str, known: &Known) -> Swept {
    let mut swept = Swept::default();
    let trees = Trees::of(view, cluster, known);
    for (_, vdi) in view.vdis.iter().filter(|(_, vdi)| vdi.managed) {
        match judge_disk(view, cluster, known, &trees, vdi) {
            Verdict::Known => {}
            Verdict::Retained => swept.retained += 1,
            Verdict::Unclaimed => {
                let made = Some(&vdi.snapshot_time)
                    .filter(|_| vdi.is_a_snapshot)
                    .and_then(|t| parse_time(t))
                    .map(|t| t.to_string());
                let (uuid, name) = (vdi.uuid.clone(), vdi.name_label.clone());
                swept.unclaimed.push(Leftover { kind: "disk", uuid, name, size: Some(vdi.virtual_size), made });
            }
        }
    }
    for (_, vm) in view.vms.iter().filter(|(_, vm)| machine_is_unclaimed(view, cluster, known, vm)) {
        let (uuid, name) = (vm.uuid.clone(), vm.name_label.clone());
        swept.unclaimed.push(Leftover { kind: "machine", uuid, name, size: None, made: None });
    }
    swept.unclaimed.sort_by(|a, b| a.uuid.cmp(&b.uuid));
    swept
}

enum Verdict {
    Known,
    Retained,
    Unclaimed,
}

impl Verdict {
    fn unclaimed(it_is: bool) -> Self {
        if it_is { Self::Unclaimed } else { Self::Known }
    }
}

fn judge_disk(view: &View, cluster: &str, known: &Known, trees: &Trees, vdi: &Vdi) -> Verdict {
    let keys = &vdi.other_config;
    match prove(cluster, &vdi.uuid, keys, known.recorded.contains(&vdi.uuid)) {
        Proof::ByKeys(Role::Base) => Verdict::unclaimed(!base_is_used(view, known, vdi)),
        Proof::ByKeys(Role::Work | Role::Machine | Role::Frozen | Role::Config) if known.has_layer(keys) => {
            Verdict::Known
        }
        Proof::ByKeys(Role::Frozen) if keys.contains_key(RETAINED) => Verdict::Retained,
        Proof::ByKeys(Role::Work | Role::Machine | Role::Frozen | Role::Config) => Verdict::Unclaimed,
        Proof::Unclaimed => {
            let in_work = Mark::read(keys).is_some_and(|mark| known.operations.contains(&mark.op));
            // The user's OS disk bears our mark too, and nothing else of ours.
            let source = !keys.contains_key(CLUSTER) && !vdi.is_a_snapshot;
            Verdict::unclaimed(!in_work && !source)
        }
        Proof::None => Verdict::unclaimed(trees.has_stray(view, vdi) || is_half_made(view, known, &vdi.name_label)),
        Proof::ByRecord | Proof::Foreign => Verdict::Known,
    }
}

/// Some disk stands on it, some layer records it, or wants its OS disk.
fn base_is_used(view: &View, known: &Known, base: &Vdi) -> bool {
    let os = base.other_config.get(OS);
    let os_name = os.and_then(|uuid| view.vdis.by_uuid(uuid)).map(|(_, vdi)| &vdi.name_label);
    known.recorded.contains(&base.uuid)
        || [os, os_name].into_iter().flatten().any(|disk| known.os_disks.contains(disk))
        || view.vdis.iter().any(|(_, vdi)| vdi.other_config.get(BASE) == Some(&base.uuid))
}

fn machine_is_unclaimed(view: &View, cluster: &str, known: &Known, vm: &Vm) -> bool {
    match prove(cluster, &vm.uuid, &vm.other_config, known.recorded.contains(&vm.uuid)) {
        Proof::ByKeys(_) => !known.has_layer(&vm.other_config),
        Proof::Unclaimed => true,
        // A clone that died half-way: still a template, with the name it was asked for, and nobody at it.
        Proof::None => vm.is_a_template && is_half_made(view, known, &vm.name_label),
        Proof::ByRecord | Proof::Foreign => false,
    }
}

/// The name that it was asked for, and nobody at it: a call that died half-way, or that a new xapi ran a second time.
fn is_half_made(view: &View, known: &Known, name: &str) -> bool {
    name.strip_prefix("lamina-").is_some_and(|op| {
        let is_id = op.len() == 16 && op.bytes().all(|b| b.is_ascii_hexdigit());
        is_id && view.tasks.with(TASK_TAG, op).next().is_none() && !known.operations.contains(op)
    })
}

/// The trees that our disks hang in.
struct Trees {
    /// uuids of the hidden nodes above our disks.
    nodes: HashSet<String>,
    /// Names of what clones and snapshots were made of.
    sources: HashSet<String>,
    /// uuids of the users' OS disks.
    os_disks: HashSet<String>,
}

impl Trees {
    fn of(view: &View, cluster: &str, known: &Known) -> Self {
        let mut trees = Self { nodes: HashSet::new(), sources: HashSet::new(), os_disks: HashSet::new() };
        for (_, vdi) in view.vdis.iter() {
            match prove(cluster, &vdi.uuid, &vdi.other_config, known.recorded.contains(&vdi.uuid)) {
                Proof::ByKeys(_) | Proof::ByRecord => {}
                Proof::Unclaimed | Proof::Foreign | Proof::None => continue,
            }
            trees.nodes.extend(parents(view, vdi));
            trees.sources.insert(vdi.name_label.clone());
            if let Some((_, os)) = vdi.other_config.get(OS).and_then(|uuid| view.vdis.by_uuid(uuid)) {
                trees.sources.insert(os.name_label.clone());
                trees.os_disks.insert(os.uuid.clone());
            }
        }
        trees
    }

    /// A row that a restart of xapi left behind: found by a scan, or made by a call that ran twice. It has no name or its source's, no
    /// keys, no machine, and nobody knows it for a snapshot.
    fn has_stray(&self, view: &View, vdi: &Vdi) -> bool {
        let bare = vdi.other_config.keys().all(|key| key == OF_XAPI) && vdi.vbds.is_empty() && !vdi.is_a_snapshot;
        bare && (vdi.name_label.is_empty() || self.sources.contains(&vdi.name_label))
            && !self.os_disks.contains(&vdi.uuid)
            && parents(view, vdi).any(|node| self.nodes.contains(&node))
    }
}

/// The hidden nodes above a disk.
fn parents<'a>(view: &'a View, vdi: &Vdi) -> impl Iterator<Item = String> + use<'a> {
    let parent = |vdi: &Vdi| vdi.sm_config.get("vhd-parent").cloned();
    // A chain ends at 30; a ring would be the pool's mistake.
    std::iter::successors(parent(vdi), move |uuid| parent(view.vdis.by_uuid(uuid)?.1)).take(64)
}

impl Swept {
    /// Leaves out what was not seen for `long`: what a call of ours is just making belongs to nobody until it is claimed. `since` keeps the
    /// times from sweep to sweep; what was `told` before stays.
    pub fn ripen(&mut self, since: &mut HashMap<String, Instant>, told: &str, now: Instant, long: Duration) {
        since.retain(|uuid, _| self.unclaimed.iter().any(|left| left.uuid == *uuid));
        let all = self.unclaimed.len();
        self.unclaimed.retain(|left| {
            let first = *since.entry(left.uuid.clone()).or_insert(now);
            now.saturating_duration_since(first) >= long || told.contains(&left.uuid)
        });
        self.unripe = self.unclaimed.len() < all;
    }

    /// For the condition. `told`: what it said before, from which the time is taken at which something was first seen; the pool itself
    /// does not know since when a disk is there.
    pub fn words(&self, told: &str, now: &Time) -> String {
        let entry = |left: &Leftover| {
            let since = match &left.made {
                Some(made) => format!("made {made}"),
                None => format!("first seen {}", first_seen(told, &left.uuid).unwrap_or_else(|| seconds(now))),
            };
            let size = left.size.map(|bytes| format!("{}, ", size_words(bytes))).unwrap_or_default();
            format!("{} {} '{}' ({size}{since})", left.kind, left.uuid, left.name)
        };
        let some: Vec<String> = self.unclaimed.iter().take(NAMED).map(entry).collect();
        let more = self.unclaimed.len().saturating_sub(NAMED);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        let retained = match self.retained {
            0 => String::new(),
            1 => ". Apart from these, 1 disk of a deleted layer is kept by deletionPolicy Retain".to_owned(),
            n => format!(". Apart from these, {n} disks of deleted layers are kept by deletionPolicy Retain"),
        };
        format!(
            "no layer owns these objects of this cluster: {}{more}. Look at each, and delete by hand what nobody needs; Lamina never does{retained}",
            some.join("; ")
        )
    }
}

fn first_seen(told: &str, uuid: &str) -> Option<String> {
    let entry = told.split("; ").find(|entry| entry.contains(uuid))?;
    let (_, rest) = entry.split_once("first seen ")?;
    rest.split_once(')').map(|(time, _)| time.to_owned())
}

fn seconds(time: &Time) -> String {
    time.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn size_words(bytes: i64) -> String {
    const MIB: i64 = 1 << 20;
    const GIB: i64 = 1 << 30;
    if bytes >= GIB { format!("{} GiB", (bytes + GIB / 2) / GIB) } else { format!("{} MiB", bytes / MIB) }
}

#[cfg(test)]
#[path = "sweep_tests.rs"]
mod tests;
