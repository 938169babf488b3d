//! XAPI's records turned into what the domain sees: disks, machines, their attachments.
//!
//! Pure over a `View`; called by `observe` alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use lamina_guest::steps::progress::Doing;

use crate::api::layer::{Firmware, PlatformLayer};
use crate::domain::config::Read;
use crate::domain::identity::{self, BOOT, Keys, Mark, NONCE, Opid, Proof, START_BEFORE, TAG, prove};
use crate::domain::observed::{Attachment, Disk, Dvd, Holder, Machine, Power, Setting, Tools};
use crate::domain::plan;
use crate::domain::report::{self, Report};
use crate::domain::want::Want;
use crate::xapi::model::{GuestMetrics, PowerState, Vbd, VbdType, Vdi, Vm};
use crate::xapi::view::View;
use crate::xapi::wire::{Ref, parse_time};

/// What is forbidden on a packaging machine while it is ours: it would copy, move or end somebody's work.
pub const BLOCKED: [&str; 9] =
    ["destroy", "clone", "copy", "snapshot", "checkpoint", "export", "migrate_send", "make_into_template", "suspend"];
pub const START: [&str; 2] = ["start", "start_on"];

/// How deep a disk hangs in its tree of snapshots. The records of hidden nodes are in the view too.
pub fn depth(view: &View, vdi: &Vdi) -> u32 {
    let mut at = vdi.sm_config.get("vhd-parent").cloned();
    let mut levels = 0;
    while let Some((_, parent)) = at.as_deref().and_then(|uuid| view.vdis.by_uuid(uuid)) {
        levels += 1;
        // A ring would be the pool's mistake; it must not be ours to hang in it.
        if levels > 64 {
            break;
        }
        at = parent.sm_config.get("vhd-parent").cloned();
    }
    levels
}

/// The image format, in lower case, as the driver says it; empty where it does not.
pub fn format(vdi: &Vdi) -> String {
    let told = vdi.sm_config.get("image-format").or_else(|| vdi.sm_config.get("vdi_type"));
    told.map(|f| if f == "aio" { "raw".to_owned() } else { f.to_lowercase() }).unwrap_or_default()
}

/// A disk; `machine`: our packaging machine, whose VBDs are not strangers. `leaked`: does this process know the VBD on a control domain
/// to be leaked?
pub fn disk(view: &View, cluster: &str, vdi: &Vdi, machine: Option<&Ref>, leaked: &dyn Fn(&str) -> bool) -> Disk {
    let attachments =
        vdi.vbds.iter().filter_map(|r| view.vbds.get(r)).map(|vbd| attachment(view, vbd, machine, leaked)).collect();
    Disk {
        uuid: vdi.uuid.clone(),
        name: vdi.name_label.clone(),
        description: vdi.name_description.clone(),
        keyed: matches!(prove(cluster, &vdi.uuid, &vdi.other_config, false), Proof::ByKeys(_)),
        keys: vdi.other_config.clone(),
        tagged: vdi.tags.iter().any(|t| t == TAG),
        virtual_size: vdi.virtual_size,
        utilisation: vdi.physical_utilisation,
        format: format(vdi),
        snapshot_of: view.vdis.get(&vdi.snapshot_of).map(|source| source.uuid.clone()),
        sr: view.srs.get(&vdi.sr).map(|sr| sr.uuid.clone()),
        busy: !vdi.current_operations.is_empty() || waits_in_a_task(view, &vdi.other_config),
        paused: vdi.sm_config.contains_key("paused"),
        left_paused: false,
        depth: depth(view, vdi),
        mark: Mark::read(&vdi.other_config),
        attachments,
    }
}

/// A call that waits for its turn on the storage shows nowhere but in its task.
fn waits_in_a_task(view: &View, keys: &Keys) -> bool {
    let Some(op) = keys.get(identity::OP).map(|op| Opid(op.clone())) else { return false };
    view.tasks.iter().any(|(_, t)| {
        let waits = |tag: &String| *tag != op.0 && op.covers(tag) && !identity::is_stream(tag);
        t.status.is_at_work() && t.op().is_some_and(waits)
    })
}

fn attachment(view: &View, vbd: &Vbd, machine: Option<&Ref>, leaked: &dyn Fn(&str) -> bool) -> Attachment {
    let holder = match view.vms.get(&vbd.vm) {
        _ if machine == Some(&vbd.vm) => Holder::Machine,
        Some(vm) if vm.is_control_domain => Holder::ControlDomain { leaked: leaked(&vbd.uuid) },
        Some(vm) => Holder::Other { name: vm.name_label.clone(), halted: vm.power_state == PowerState::Halted },
        None => Holder::Other { name: vbd.vm.to_string(), halted: false },
    };
    Attachment { vbd: vbd.uuid.clone(), holder, attached: vbd.currently_attached, writable: vbd.mode == "RW" }
}

pub fn power(vm: &Vm) -> Power {
    match vm.power_state {
        PowerState::Halted => Power::Halted,
        PowerState::Running => Power::Running,
        PowerState::Paused => Power::Paused,
        PowerState::Suspended => Power::Suspended,
        PowerState::Other => Power::Unknown,
    }
}

/// What the rest of `observe` knows of a machine and its record does not.
pub struct Surroundings<'a> {
    pub cluster: &'a str,
    /// The packaging disk, where it is found.
    pub work: Option<&'a Ref>,
    /// The config disk, where it is found.
    pub config: Option<&'a Ref>,
    pub tools_iso: Option<&'a Ref>,
    /// uuids of the networks that the spec names; empty: the template's stay.
    pub networks: Vec<String>,
}

/// The packaging machine. Tools are filled in by the caller, who knows for how long they have shown.
pub fn machine(view: &View, layer: &PlatformLayer, want: &Want, vm: &Arc<Vm>, around: &Surroundings<'_>) -> Machine {
    let metrics = view.vm_metrics.get(&vm.metrics);
    let start_time = metrics.map(|m| m.start_time.clone()).unwrap_or_else(|| crate::xapi::wire::NEVER.to_owned());
    let vbds: Vec<&Arc<Vbd>> = vm.vbds.iter().filter_map(|r| view.vbds.get(r)).collect();
    let disk = vbds.iter().find(|b| Some(&b.vdi) == around.work && b.kind == VbdType::Disk);
    let guest = view.guest_metrics.get(&vm.guest_metrics);
    Machine {
        uuid: vm.uuid.clone(),
        name: vm.name_label.clone(),
        keyed: matches!(prove(around.cluster, &vm.uuid, &vm.other_config, false), Proof::ByKeys(_)),
        keys: vm.other_config.clone(),
        template: vm.is_a_template,
        power: power(vm),
        domid: vm.domid,
        host: view.hosts.get(&vm.resident_on).map(|h| h.name_label.clone()),
        address: guest.filter(|_| vm.power_state == PowerState::Running).and_then(|g| g.networks.get("0/ip").cloned()),
        drift: drift(view, layer, want, vm, around, &start_time),
        guard_drift: guards(vm),
        disk: disk.map(|b| b.uuid.clone()),
        disk_attached: disk.is_some_and(|b| b.currently_attached),
        config: vbds.iter().find(|b| Some(&b.vdi) == around.config && b.kind == VbdType::Disk).map(|b| b.uuid.clone()),
        config_done: vm.other_config.contains_key(identity::CONFIG_DONE),
        read: vm.other_config.get(identity::READ).and_then(|text| Read::parse(text)),
        progress: lamina_guest::steps::progress::read(&vm.xenstore_data),
        doing: Doing::read(&vm.xenstore_data),
        silent: false,
        dvd: dvd(&vbds, around.tools_iso),
        runs_long: false,
        tools: Tools::default(),
        report: Report::from_xenstore(&vm.xenstore_data),
        guest_boot: vm.xenstore_data.get(&format!("{}boot", report::PREFIX)).cloned(),
        // A block of somebody else's is not ours to take off.
        start_blocked: START.iter().any(|op| vm.blocked_operations.get(*op) == Some(&plan::blocked_for(want))),
        destroy_blocked: vm.blocked_operations.contains_key("destroy"),
        busy: !vm.current_operations.is_empty() || waits_in_a_task(view, &vm.other_config),
        cannot_boot: None,
        start_time,
    }
}

fn dvd(vbds: &[&Arc<Vbd>], tools: Option<&Ref>) -> Dvd {
    let Some(drive) = vbds.iter().find(|b| b.kind == VbdType::Cd) else { return Dvd::None };
    let vbd = drive.uuid.clone();
    if drive.empty || drive.vdi.is_null() {
        return Dvd::Empty { vbd };
    }
    if Some(&drive.vdi) == tools { Dvd::ToolsIn { vbd } } else { Dvd::Foreign { vbd } }
}

/// The tools signal of the guest's present boot: drivers connected, and an agent that speaks. A halted machine has a copy of older metrics.
pub fn tools_show(view: &View, vm: &Vm) -> Option<String> {
    let (guest, metrics): (&Arc<GuestMetrics>, _) =
        (view.guest_metrics.get(&vm.guest_metrics)?, view.vm_metrics.get(&vm.metrics)?);
    let agent = guest.other.get("feature-static-ip-setting").is_some_and(|v| v != "0")
        || guest.pv_drivers_version.contains_key("major");
    let current = parse_time(&guest.last_updated)? >= parse_time(&metrics.start_time)?;
    if vm.power_state != PowerState::Running || !guest.pv_drivers_detected || !agent || !current {
        return None;
    }
    let part = |k: &str| guest.pv_drivers_version.get(k).map_or("0", String::as_str);
    Some(format!("{}.{}.{}", part("major"), part("minor"), part("build")))
}

/// Settings that must hold at all times: nothing restarts a machine that was shut down for finalize.
fn guards(vm: &Vm) -> Vec<Setting> {
    let mut wrong = Vec::new();
    if vm.actions_after_shutdown != "destroy" {
        wrong.push(Setting::AfterShutdown);
    }
    if vm.actions_after_reboot != "restart" {
        wrong.push(Setting::AfterReboot);
    }
    if vm.other_config.contains_key("auto_poweron") {
        wrong.push(Setting::NoAutoPowerOn);
    }
    if !vm.ha_restart_priority.is_empty() {
        wrong.push(Setting::NoHa);
    }
    wrong
}

/// What the guest is told before its first start: these keys and no other.
pub fn xenstore(want: &Want, nonce: &str) -> Keys {
    let keys = [
        ("nonce", nonce.to_owned()),
        ("layer", want.layer_name.clone()),
        ("version", want.version.clone()),
        ("kms-rearm", want.kms_rearm.to_string()),
    ];
    keys.into_iter().map(|(k, v)| (format!("{}{k}", report::PREFIX), v)).collect()
}

fn drift(
    view: &View,
    layer: &PlatformLayer,
    want: &Want,
    vm: &Vm,
    around: &Surroundings<'_>,
    start_time: &str,
) -> Vec<Setting> {
    let mut wrong = Vec::new();
    let mut want_that = |holds: bool, setting: Setting| {
        if !holds {
            wrong.push(setting);
        }
    };
    let spec = &layer.spec.machine;
    want_that(!vm.is_a_template, Setting::NotTemplate);
    want_that(vm.name_label == want.machine_name(), Setting::Name(want.machine_name()));
    want_that(vm.name_description == plan::description(want), Setting::Description(plan::description(want)));
    let ours = [TAG, "packaging machine", want.layer_name.as_str()];
    let tags: Vec<String> = vm
        .tags
        .iter()
        .cloned()
        .chain(ours.iter().filter(|t| !vm.tags.iter().any(|v| v == *t)).map(|t| (*t).to_owned()))
        .collect();
    want_that(tags.len() == vm.tags.len(), Setting::Tags(tags));
    if let Some(cpus) = spec.cpus.map(i64::from) {
        want_that(
            vm.vcpus_max == cpus && vm.vcpus_at_startup == cpus,
            Setting::Vcpus { max: cpus, lower: cpus < vm.vcpus_max },
        );
    }
    if let Some(bytes) = spec.memory.as_ref().and_then(crate::api::quantity::bytes) {
        want_that(
            vm.memory_static_max == bytes && vm.memory_dynamic_max == bytes && vm.memory_dynamic_min == bytes,
            Setting::Memory(bytes),
        );
    }
    if let Some(firmware) = layer.spec.os_layer.firmware.as_ref() {
        let wanted = match firmware {
            Firmware::Bios => "bios",
            Firmware::Uefi => "uefi",
        };
        want_that(
            vm.hvm_boot_params.get("firmware").map_or("bios", String::as_str) == wanted,
            Setting::Firmware(wanted.to_owned()),
        );
    }
    if !around.networks.is_empty() {
        want_that(networks_of(view, vm) == around.networks, Setting::Networks(around.networks.clone()));
    }
    want_that(vm.actions_after_crash == "preserve", Setting::AfterCrash);
    want_that(vm.affinity.is_null(), Setting::NoAffinity);
    let blocked: Keys = BLOCKED.iter().map(|op| ((*op).to_owned(), plan::description(want))).collect();
    want_that(blocked.keys().all(|op| vm.blocked_operations.contains_key(op)), Setting::Blocked(blocked));
    let told = xenstore(want, vm.other_config.get(NONCE).map_or("", String::as_str));
    want_that(vm.xenstore_data == told, Setting::Xenstore(told));
    // Last, and only while it is off: from here on a moved start time means that it ran.
    let noted = vm.other_config.contains_key(START_BEFORE)
        || vm.other_config.contains_key(BOOT)
        || vm.power_state != PowerState::Halted;
    want_that(noted, Setting::StartBefore(start_time.to_owned()));
    wrong
}

/// uuids of the networks of a machine, in the order of its network cards.
fn networks_of(view: &View, vm: &Vm) -> Vec<String> {
    let cards: BTreeMap<u32, String> = vm
        .vifs
        .iter()
        .filter_map(|r| view.vifs.get(r))
        .filter_map(|vif| Some((vif.device.parse().ok()?, view.networks.get(&vif.network)?.uuid.clone())))
        .collect();
    cards.into_values().collect()
}

/// Are these the keys of an object of this layer, of this role?
pub fn owned(cluster: &str, uuid: &str, keys: &Keys, role: identity::Role, layer: &str) -> bool {
    prove(cluster, uuid, keys, false) == Proof::ByKeys(role) && keys.get(identity::LAYER).is_some_and(|l| l == layer)
}

#[cfg(test)]
#[path = "objects_tests.rs"]
mod tests;
