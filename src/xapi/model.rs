//! Records of the pool as the client reads them: the fields that Lamina looks at, in XAPI's words.
//!
//! Hosts of other ages have more or fewer fields: unknown ones are ignored, missing ones take XAPI's default, and a value
//! that no enumeration of ours knows becomes `Other`, never an error.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::wire::{NEVER, Ref};

/// XAPI's `Map(string, string)`.
pub type Map = BTreeMap<String, String>;

/// A class of the pool: its name on the wire and its record.
pub trait Class: for<'de> Deserialize<'de> + Send + Sync + 'static {
    /// As in `VM.get_record`; events name it in lower case.
    const NAME: &'static str;
    fn uuid(&self) -> &str;
}

macro_rules! class {
    ($($name:literal $record:ident),* $(,)?) => { $(impl Class for $record {
        const NAME: &'static str = $name;
        fn uuid(&self) -> &str { &self.uuid }
    })* };
}

class!("pool" Pool, "host" Host, "SR" Sr, "PBD" Pbd, "SM" Sm, "VDI" Vdi, "VBD" Vbd, "VIF" Vif, "VM" Vm,
    "VM_metrics" VmMetrics, "VM_guest_metrics" GuestMetrics, "network" Network, "task" Task);

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Pool {
    pub uuid: String,
    pub name_label: String,
    pub master: Ref,
    #[serde(rename = "default_SR")]
    pub default_sr: Ref,
    pub other_config: Map,
    pub ha_enabled: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Host {
    pub uuid: String,
    pub name_label: String,
    pub address: String,
    pub hostname: String,
    pub enabled: bool,
    pub software_version: Map,
    /// `agent_start_time` moves at every start of xapi on that host.
    pub other_config: Map,
    #[serde(rename = "API_version_major")]
    pub api_version_major: i64,
    #[serde(rename = "API_version_minor")]
    pub api_version_minor: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Sr {
    pub uuid: String,
    pub name_label: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub content_type: String,
    pub shared: bool,
    #[serde(rename = "PBDs")]
    pub pbds: Vec<Ref>,
    /// Bytes.
    pub physical_size: i64,
    /// Bytes; refreshed by a scan.
    pub physical_utilisation: i64,
    pub other_config: Map,
    pub is_tools_sr: bool,
    pub current_operations: Map,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Pbd {
    pub uuid: String,
    pub host: Ref,
    #[serde(rename = "SR")]
    pub sr: Ref,
    pub currently_attached: bool,
}

/// A storage driver; `kind` is what `SR.type` names.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Sm {
    pub uuid: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub features: BTreeMap<String, i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Vdi {
    pub uuid: String,
    pub name_label: String,
    pub name_description: String,
    #[serde(rename = "SR")]
    pub sr: Ref,
    #[serde(rename = "VBDs")]
    pub vbds: Vec<Ref>,
    /// Bytes.
    pub virtual_size: i64,
    /// Bytes; stale until a scan.
    pub physical_utilisation: i64,
    #[serde(rename = "type")]
    pub kind: String,
    pub sharable: bool,
    pub read_only: bool,
    pub other_config: Map,
    pub tags: Vec<String>,
    pub sm_config: Map,
    /// False: a hidden node of the tree, of no use to clients.
    pub managed: bool,
    pub missing: bool,
    pub is_a_snapshot: bool,
    pub snapshot_of: Ref,
    pub snapshot_time: String,
    pub on_boot: String,
    pub is_tools_iso: bool,
    pub current_operations: Map,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum VbdType {
    #[serde(rename = "CD")]
    Cd,
    Disk,
    Floppy,
    #[default]
    #[serde(other)]
    Other,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Vbd {
    pub uuid: String,
    #[serde(rename = "VM")]
    pub vm: Ref,
    #[serde(rename = "VDI")]
    pub vdi: Ref,
    pub userdevice: String,
    pub bootable: bool,
    /// `RO` or `RW`.
    pub mode: String,
    #[serde(rename = "type")]
    pub kind: VbdType,
    pub empty: bool,
    pub other_config: Map,
    pub currently_attached: bool,
    pub current_operations: Map,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Vif {
    pub uuid: String,
    pub device: String,
    #[serde(rename = "VM")]
    pub vm: Ref,
    pub network: Ref,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Network {
    pub uuid: String,
    pub name_label: String,
    #[serde(rename = "PIFs")]
    pub pifs: Vec<Ref>,
    pub other_config: Map,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PowerState {
    Halted,
    Paused,
    Running,
    Suspended,
    #[default]
    #[serde(other)]
    Other,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Vm {
    pub uuid: String,
    pub name_label: String,
    pub name_description: String,
    pub is_a_template: bool,
    pub is_default_template: bool,
    pub is_control_domain: bool,
    pub is_a_snapshot: bool,
    pub power_state: PowerState,
    /// −1 while halted.
    pub domid: i64,
    pub resident_on: Ref,
    pub affinity: Ref,
    #[serde(rename = "VCPUs_max")]
    pub vcpus_max: i64,
    #[serde(rename = "VCPUs_at_startup")]
    pub vcpus_at_startup: i64,
    /// Bytes, as the other memory fields.
    pub memory_static_max: i64,
    pub memory_static_min: i64,
    pub memory_dynamic_max: i64,
    pub memory_dynamic_min: i64,
    #[serde(rename = "HVM_boot_policy")]
    pub hvm_boot_policy: String,
    #[serde(rename = "HVM_boot_params")]
    pub hvm_boot_params: Map,
    pub platform: Map,
    pub actions_after_shutdown: String,
    pub actions_after_reboot: String,
    pub actions_after_crash: String,
    #[serde(rename = "VBDs")]
    pub vbds: Vec<Ref>,
    #[serde(rename = "VIFs")]
    pub vifs: Vec<Ref>,
    pub metrics: Ref,
    pub guest_metrics: Ref,
    pub xenstore_data: Map,
    pub other_config: Map,
    pub tags: Vec<String>,
    pub ha_restart_priority: String,
    pub ha_always_run: bool,
    pub blocked_operations: Map,
    pub current_operations: Map,
    pub has_vendor_device: bool,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct VmMetrics {
    pub uuid: String,
    /// Moves at every boot; resolution one second; epoch in a clone of a template.
    pub start_time: String,
}

impl Default for VmMetrics {
    fn default() -> Self {
        Self { uuid: String::new(), start_time: NEVER.to_owned() }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GuestMetrics {
    pub uuid: String,
    #[serde(rename = "PV_drivers_version")]
    pub pv_drivers_version: Map,
    #[serde(rename = "PV_drivers_detected")]
    pub pv_drivers_detected: bool,
    pub networks: Map,
    pub other: Map,
    pub last_updated: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskStatus {
    Pending,
    Success,
    Failure,
    Cancelling,
    Cancelled,
    #[default]
    #[serde(other)]
    Other,
}

impl TaskStatus {
    /// Whoever is asked to cancel goes on until it heeds that.
    pub fn is_at_work(self) -> bool {
        matches!(self, Self::Pending | Self::Cancelling)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Task {
    pub uuid: String,
    pub name_label: String,
    pub name_description: String,
    /// As XAPI writes it.
    pub created: String,
    pub status: TaskStatus,
    /// 0 to 1.
    pub progress: f64,
    /// An XML fragment: see [`super::wire::task_result`].
    pub result: String,
    pub error_info: Vec<String>,
    pub other_config: Map,
    pub subtask_of: Ref,
}
