//! Whether what a Connector and its layers name in the pool is there, and fit for what Lamina does with it.
//!
//! Pure over a `View`. Called by the Connector's checks on the mirror, and by the layers' gates on a live look right before they act, so
//! that both say the same in the same words.
//! What the disks are to Lamina (ours, claimed, lost) is not judged here: `observe` does. Longer than other files, since it is one list of
//! judgements that share their words.

use std::sync::Arc;

use super::observe::objects::{depth, format};
use crate::api::layer::DiskRef;
use crate::api::reason::Reason;
use crate::domain::observed::{OsDisk, Storage, Trouble};
use crate::xapi::model::{Network, PowerState, Sm, Sr, Vbd, VbdType, Vdi, Vm};
use crate::xapi::view::{Row, View};
use crate::xapi::wire::Ref;

/// Kinds of storage repository where a snapshot takes the disk's full size (xapi.md 9.1).
const THICK: [&str; 3] = ["lvm", "lvmoiscsi", "lvmohba"];
/// What a driver must be able to do to hold layers.
const NEEDED: [&str; 2] = ["VDI_SNAPSHOT", "VDI_CLONE"];
/// The names under which the guest tools are shipped (xapi.md 10).
const TOOLS: [&str; 3] = ["guest-tools.iso", "xs-tools.iso", "xswindrivers.iso"];
/// What XAPI renames superseded tools to.
const SUPERSEDED: &str = "Old version of";

type Found<'a, T> = (&'a Ref, &'a Arc<T>);

/// The template that machines are cloned from.
pub fn template(view: &View, wanted: &str) -> Result<(Ref, Arc<Vm>), Trouble> {
    let templates: Vec<_> = view.vms.iter().filter(|(_, vm)| is_template(vm)).collect();
    let custom: Vec<_> = templates.iter().copied().filter(|(_, vm)| !vm.is_default_template).collect();
    let (reference, vm) = match pick(&custom, wanted, |vm| &vm.name_label) {
        Pick::One(found) => found,
        Pick::Many(uuids) => return Err(ambiguous(Reason::TemplateAmbiguous, "templates", wanted, &uuids)),
        Pick::None { like } => {
            if templates.iter().any(|(_, vm)| vm.uuid == wanted || vm.name_label == wanted) {
                return Err(Trouble::new(
                    Reason::TemplateNotCustom,
                    format!(
                        "template '{wanted}' is one of XenServer's own: make a machine from it, without a disk, turn that into a template and name it"
                    ),
                ));
            }
            let text = format!(
                "the pool has no template '{wanted}'{}: correct spec.template; status.inventory lists the names",
                hint(like)
            );
            return Err(Trouble::new(Reason::TemplateNotFound, text));
        }
    };
    if vm.vbds.iter().filter_map(|vbd| view.vbds.get(vbd)).any(|vbd| vbd.kind == VbdType::Disk) {
        return Err(Trouble::new(
            Reason::TemplateHasDisks,
            format!(
                "template '{}' has a disk, and every machine would get a copy of it: remove the template's disks",
                vm.name_label
            ),
        ));
    }
    // Where Windows boots from, and where the config disk goes; a DVD drive may be anywhere else.
    let taken = |vbd: &&Arc<Vbd>| matches!(vbd.userdevice.as_str(), "0" | "1");
    if let Some(drive) = vm.vbds.iter().filter_map(|vbd| view.vbds.get(vbd)).find(taken) {
        return Err(Trouble::new(
            Reason::TemplateHasDisks,
            format!(
                "template '{}' has a drive as device {}, where disks go: move it (xe vbd-destroy uuid={}, then xe vm-cd-add vm={} device=3)",
                vm.name_label, drive.userdevice, drive.uuid, vm.uuid
            ),
        ));
    }
    if vm.vifs.is_empty() {
        return Err(Trouble::new(
            Reason::TemplateWithoutNetwork,
            format!(
                "template '{}' has no network card: add one to it (xe vif-create vm-uuid={} device=0 network-uuid=…)",
                vm.name_label, vm.uuid
            ),
        ));
    }
    Ok((reference.clone(), vm.clone()))
}

/// Snapshots of machines and control domains are templates to XAPI too.
pub fn is_template(vm: &Vm) -> bool {
    vm.is_a_template && !vm.is_a_snapshot && !vm.is_control_domain
}

/// The storage repository that layers are made in. Room is judged before each step, by `gate::room`.
pub fn storage(view: &View, wanted: &str) -> Result<(Ref, Arc<Sr>), Trouble> {
    let all: Vec<_> = view.srs.iter().collect();
    let (reference, sr) = match pick(&all, wanted, |sr| &sr.name_label) {
        Pick::One(found) => found,
        Pick::Many(uuids) => return Err(ambiguous(Reason::StorageAmbiguous, "storage repositories", wanted, &uuids)),
        Pick::None { like } => {
            let text = format!(
                "the pool has no storage repository '{wanted}'{}: correct spec.storageRepository; status.inventory lists the names",
                hint(like)
            );
            return Err(Trouble::new(Reason::StorageNotFound, text));
        }
    };
    let name = &sr.name_label;
    if sr.content_type == "iso" {
        let text = format!(
            "storage repository '{name}' is for ISO files: name one that holds disks in spec.storageRepository"
        );
        return Err(Trouble::new(Reason::StorageIsISO, text));
    }
    if !attached(view, reference) {
        let text = format!(
            "storage repository '{name}' ({}) is attached to no host: attach it (xe pbd-list sr-uuid={}, then xe pbd-plug)",
            sr.uuid, sr.uuid
        );
        return Err(Trouble::new(Reason::StorageDetached, text));
    }
    if !can_hold_layers(view, sr) {
        let text = format!(
            "storage repository '{name}' is of type {}, which cannot snapshot and clone: name one that can, for example of type ext, nfs or lvmoiscsi",
            sr.kind
        );
        return Err(Trouble::new(Reason::StorageUnsuitable, text));
    }
    Ok((reference.clone(), sr.clone()))
}

/// Does its driver snapshot and clone?
pub fn can_hold_layers(view: &View, sr: &Sr) -> bool {
    let can = |driver: &Sm| NEEDED.iter().all(|feature| driver.features.contains_key(*feature));
    view.sms.iter().any(|(_, sm)| sm.kind == sr.kind && can(sm))
}

/// Is the repository usable on any host?
fn attached(view: &View, sr: &Ref) -> bool {
    view.pbds.iter().any(|(_, pbd)| pbd.sr == *sr && pbd.currently_attached)
}

/// What gates judge a storage repository by. Scans are the caller's to know.
pub fn facts(view: &View, sr: &Ref) -> Option<Storage> {
    let sr = view.srs.get(sr)?;
    Some(Storage {
        uuid: sr.uuid.clone(),
        name: sr.name_label.clone(),
        thick: THICK.contains(&sr.kind.as_str()),
        free: sr.physical_size - sr.physical_utilisation,
        scans: 0,
        scan_due: false,
        scanning: false,
        doubted: false,
    })
}

/// Where ISOs may be.
pub fn iso_repositories(view: &View) -> impl Iterator<Item = Found<'_, Sr>> {
    view.srs.iter().filter(|(sr, record)| record.content_type == "iso" && attached(view, sr))
}

/// The ISO with the guest tools: the one that is named, else the one that XAPI marks, else one of the names under which it is shipped, in
/// the tools repository first.
pub fn tools_iso(view: &View, wanted: Option<&str>) -> Result<(Ref, Arc<Vdi>), Trouble> {
    let isos: Vec<(Found<'_, Vdi>, &Arc<Sr>)> = view
        .vdis
        .plain()
        .filter_map(|found| Some((found, view.srs.get(&found.1.sr)?)))
        .filter(|((_, vdi), sr)| sr.content_type == "iso" && !vdi.missing && !vdi.name_label.starts_with(SUPERSEDED))
        .collect();
    match wanted {
        Some(wanted) => named_iso(view, &isos, wanted),
        None => shipped_iso(view, &isos),
    }
    .map(|(reference, vdi)| (reference.clone(), vdi.clone()))
}

fn named_iso<'a>(view: &View, isos: &[(Found<'a, Vdi>, &Arc<Sr>)], wanted: &str) -> Result<Found<'a, Vdi>, Trouble> {
    let all: Vec<_> = isos.iter().map(|(found, _)| *found).collect();
    match pick(&all, wanted, |vdi| &vdi.name_label) {
        Pick::One((reference, vdi)) if attached(view, &vdi.sr) => Ok((reference, vdi)),
        Pick::One((_, vdi)) => {
            let sr = view.srs.get(&vdi.sr).map_or("?", |sr| sr.name_label.as_str());
            let text = format!(
                "ISO '{}' is in storage repository '{sr}', which is attached to no host: attach it",
                vdi.name_label
            );
            Err(Trouble::new(Reason::ToolsISONotFound, text))
        }
        Pick::Many(uuids) => Err(ambiguous(Reason::ToolsISOAmbiguous, "ISOs", wanted, &uuids)),
        Pick::None { like } => {
            let text = format!(
                "no ISO storage repository of the pool holds '{wanted}'{}: correct spec.toolsISO, or put the file there and scan (xe sr-scan)",
                hint(like)
            );
            Err(Trouble::new(Reason::ToolsISONotFound, text))
        }
    }
}

fn shipped_iso<'a>(view: &View, isos: &[(Found<'a, Vdi>, &Arc<Sr>)]) -> Result<Found<'a, Vdi>, Trouble> {
    let rank = |vdi: &Vdi, sr: &Sr| match (vdi.is_tools_iso, TOOLS.contains(&vdi.name_label.as_str())) {
        (true, _) => Some(0),
        (false, true) if sr.is_tools_sr => Some(1),
        (false, true) => Some(2),
        (false, false) => None,
    };
    isos.iter()
        .filter(|((_, vdi), _)| attached(view, &vdi.sr))
        .filter_map(|(found, sr)| Some((rank(found.1, sr)?, sr, found)))
        // Several are one and the same by name: one that more hosts can reach, and always the same one.
        .min_by(|(a, sr_a, (_, vdi_a)), (b, sr_b, (_, vdi_b))| {
            (a, !sr_a.shared, &vdi_a.uuid).cmp(&(b, !sr_b.shared, &vdi_b.uuid))
        })
        .map(|(_, _, found)| *found)
        .ok_or_else(|| {
            let text = "no ISO with the guest tools is in the pool: put the one for Windows into an ISO storage repository that is attached, scan that (xe sr-scan), and set spec.toolsISO to its name";
            Trouble::new(Reason::ToolsISONotFound, text)
        })
}

/// The OS disk, which must be in the Connector's storage repository: a snapshot stays where its source is.
pub fn os_disk(view: &View, sr: &Ref, wanted: &DiskRef) -> Result<(Ref, Arc<Vdi>), Trouble> {
    let repository = view.srs.get(sr).map_or("?", |sr| sr.name_label.as_str());
    let elsewhere = |vdi: &Vdi| {
        let other = view.srs.get(&vdi.sr).map_or("another", |sr| sr.name_label.as_str());
        let text = format!(
            "OS disk '{}' ({}) is in storage repository '{other}', not in the Connector's '{repository}': copy it there (xe vdi-copy) and name the copy, or use a Connector for '{other}'",
            vdi.name_label, vdi.uuid
        );
        Trouble::new(Reason::OSDiskOnOtherStorageRepository, text)
    };
    let not_found = |what: &str, like: Option<String>| {
        let text = format!(
            "no disk '{what}' in storage repository '{repository}'{}: correct spec.osLayer.disk, or put the disk there",
            hint(like)
        );
        Trouble::new(Reason::OSDiskNotFound, text)
    };
    if let Some(uuid) = &wanted.uuid {
        let (reference, vdi) = view.vdis.by_uuid(uuid).ok_or_else(|| not_found(uuid, None))?;
        return if vdi.sr == *sr { Ok((reference.clone(), vdi.clone())) } else { Err(elsewhere(vdi)) };
    }
    let name = wanted.name.as_deref().unwrap_or_default();
    let managed = || view.vdis.iter().filter(|(_, vdi)| vdi.managed);
    // A snapshot bears its source's name: it is meant only where there is no such disk, to be told that it is one.
    // A clone of ours bears it too until it is named.
    let disks: Vec<_> =
        view.vdis.plain().filter(|(_, vdi)| vdi.sr == *sr && !vdi.missing && !vdi.is_a_snapshot).collect();
    let picked = match pick_named(&disks, name, |vdi| &vdi.name_label) {
        Pick::None { like } => {
            let here: Vec<_> = managed().filter(|(_, vdi)| vdi.sr == *sr).collect();
            match pick_named(&here, name, |vdi| &vdi.name_label) {
                Pick::None { .. } => Pick::None { like },
                other => other,
            }
        }
        picked => picked,
    };
    match picked {
        Pick::One((reference, vdi)) => Ok((reference.clone(), vdi.clone())),
        // A copy bears its source's name until it gets one of its own: not the time to judge.
        Pick::Many(_) if view.srs.get(sr).is_some_and(|sr| !sr.current_operations.is_empty()) => {
            let text = format!(
                "a disk is being copied in storage repository '{repository}', and several are named '{name}' until that is over: looked at again by itself"
            );
            Err(Trouble::new(Reason::WaitingForDisk, text))
        }
        Pick::Many(uuids) => {
            let text = format!(
                "storage repository '{repository}' has several disks named '{name}' ({}): use the uuid in spec.osLayer.disk",
                uuids.join(", ")
            );
            Err(Trouble::new(Reason::OSDiskAmbiguous, text))
        }
        Pick::None { like } => Err(match managed().find(|(_, vdi)| vdi.name_label == name && !vdi.is_a_snapshot) {
            Some((_, vdi)) => elsewhere(vdi),
            None => not_found(name, like),
        }),
    }
}

/// What gates judge an OS disk by. Its VBDs and the machines behind them must have been looked at.
pub fn os_disk_facts(view: &View, vdi: &Vdi) -> OsDisk {
    let writers = vdi
        .vbds
        .iter()
        .filter_map(|vbd| view.vbds.get(vbd))
        .filter(|vbd| vbd.mode == "RW")
        .filter_map(|vbd| match view.vms.get(&vbd.vm) {
            Some(vm) if vm.power_state == PowerState::Halted => None,
            Some(vm) => Some(format!("machine '{}'", vm.name_label)),
            None => Some("a machine that cannot be seen".to_owned()),
        })
        .collect();
    OsDisk {
        uuid: vdi.uuid.clone(),
        name: vdi.name_label.clone(),
        managed: vdi.managed,
        missing: vdi.missing,
        snapshot: vdi.is_a_snapshot,
        sharable: vdi.sharable,
        persist: vdi.on_boot != "reset",
        kind: vdi.kind.clone(),
        depth: depth(view, vdi),
        virtual_size: vdi.virtual_size,
        format: format(vdi),
        paused: vdi.sm_config.contains_key("paused") && vdi.current_operations.is_empty(),
        writers,
    }
}

/// The networks that a layer names, in that order.
pub fn networks(view: &View, wanted: &[String]) -> Result<Vec<Ref>, Trouble> {
    let all: Vec<Found<'_, Network>> = view.networks.iter().collect();
    let one = |wanted: &String| match pick(&all, wanted, |network| &network.name_label) {
        Pick::One((reference, _)) => Ok(reference.clone()),
        Pick::Many(uuids) => Err(ambiguous(Reason::NetworkAmbiguous, "networks", wanted, &uuids)),
        Pick::None { like } => {
            let text = format!(
                "the pool has no network '{wanted}'{}: correct spec.machine.networks; the Connector's status.inventory lists the names",
                hint(like)
            );
            Err(Trouble::new(Reason::NetworkNotFound, text))
        }
    };
    wanted.iter().map(one).collect()
}

/// Does one enabled host see both repositories? Networks are left to XAPI, which is asked before the start whether any host can.
pub fn co_visible(view: &View, sr: &Ref, iso_sr: &Ref) -> Result<(), Trouble> {
    let sees = |host: &Ref, sr: &Ref| {
        view.pbds.iter().any(|(_, pbd)| pbd.host == *host && pbd.sr == *sr && pbd.currently_attached)
    };
    if view.hosts.iter().any(|(host, record)| record.enabled && sees(host, sr) && sees(host, iso_sr)) {
        return Ok(());
    }
    let name = |sr: &Ref| view.srs.get(sr).map_or("?", |sr| sr.name_label.as_str());
    let text = format!(
        "no enabled host sees both storage repository '{}' and '{}', which holds the guest tools: attach both to one host, or set toolsISO to an ISO in a shared repository",
        name(sr),
        name(iso_sr)
    );
    Err(Trouble::new(Reason::NoHostCanBoot, text))
}

/// What a name or uuid stands for among some objects.
enum Pick<'a, T> {
    One(Found<'a, T>),
    /// Their uuids, sorted.
    Many(Vec<String>),
    /// `like`: the one name that differs in case only.
    None {
        like: Option<String>,
    },
}

fn pick<'a, T: Row>(among: &[Found<'a, T>], wanted: &str, name: impl Fn(&T) -> &String) -> Pick<'a, T> {
    match among.iter().find(|(_, row)| row.uuid() == wanted) {
        Some(found) => Pick::One(*found),
        None => pick_named(among, wanted, name),
    }
}

fn pick_named<'a, T: Row>(among: &[Found<'a, T>], wanted: &str, name: impl Fn(&T) -> &String) -> Pick<'a, T> {
    let mut named = among.iter().filter(|(_, row)| name(row) == wanted);
    match (named.next(), named.next()) {
        (Some(found), None) => Pick::One(*found),
        (Some(_), Some(_)) => {
            let mut uuids: Vec<_> =
                among.iter().filter(|(_, row)| name(row) == wanted).map(|(_, row)| row.uuid().to_owned()).collect();
            uuids.sort();
            Pick::Many(uuids)
        }
        (None, _) => {
            let lower = wanted.to_lowercase();
            let like = among.iter().map(|(_, row)| name(row)).filter(|name| name.to_lowercase() == lower).min();
            Pick::None { like: like.cloned() }
        }
    }
}

fn hint(like: Option<String>) -> String {
    like.map(|name| format!(" (did you mean '{name}'?)")).unwrap_or_default()
}

fn ambiguous(reason: Reason, kind: &str, wanted: &str, uuids: &[String]) -> Trouble {
    Trouble::new(reason, format!("the pool has several {kind} named '{wanted}' ({}): use the uuid", uuids.join(", ")))
}

#[cfg(test)]
#[path = "inspect_tests.rs"]
pub(super) mod tests;
