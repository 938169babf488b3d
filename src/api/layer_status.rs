//! `PlatformLayer`, the half that the controller writes, as one server-side-apply document.
//!
//! Absent means absent: every empty field is left out of the document, for that is how an applied field is cleared. Nothing in
//! here may vary without a change in the world (no clocks, no counters, no raw upstream text), since an equal status is not written.
//!
//! Longer than 350 lines: every field of a status carries the doc comment that `kubectl explain` prints.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::crd::{conditions_schema, time_schema};
use super::layer::DiskFormat;

/// Finding lists longer than this end with "n more".
pub const MAX_FINDINGS: usize = 32;
/// A version beyond these is refused before anything is made (`TooManyVersions`).
pub const MAX_VERSIONS: usize = 64;
/// Older history entries are dropped.
pub const MAX_HISTORY: usize = 32;

/// What Lamina sees in the pool, and what it waits for.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PlatformLayerStatus {
    /// The generation of spec that this status is about; -1 before the first look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Pending, DiskCreated, MachineRunning, AwaitingFinalize or Finalized: how far the version in spec.version is. Whether a
    /// person is needed, or something is wrong, is in the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,

    /// Ready is always there; its message says what is going on and what to do next. Reconciling, Stalled, ActionRequired and
    /// Suspended are there only while True.
    #[schemars(schema_with = "conditions_schema")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// What is being done in the pool right now; absent at rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,

    /// The packaging disk of the version in work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskStatus>,

    /// The disk that carries spec.steps into the machine, and their results out; absent before it is made, and once it was read back and removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_disk: Option<ConfigDiskStatus>,

    /// The packaging machine of the version in work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineStatus>,

    /// How far each of spec.steps is, in their order.
    #[schemars(length(max = 32))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub steps: Vec<StepStatus>,

    /// What the check inside the guest found at the last boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub integrity: Option<IntegrityStatus>,

    /// The newest finalized version: the one to build images from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<CurrentVersion>,

    /// All finalized versions, oldest first.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub versions: Vec<FrozenVersion>,

    /// What happened, newest last, the latest 32 transitions.
    #[schemars(length(max = 32))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub history: Vec<HistoryEntry>,

    /// Uuid of the pool that the recorded disks are in. Nothing is looked up or made in another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
}

/// How far a version is. In the order of the walk: comparing phases compares progress.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    #[default]
    Pending,
    DiskCreated,
    MachineRunning,
    AwaitingFinalize,
    Finalized,
}

impl Phase {
    /// All phases, in the order of the walk.
    pub const ALL: [Self; 5] =
        [Self::Pending, Self::DiskCreated, Self::MachineRunning, Self::AwaitingFinalize, Self::Finalized];

    /// The word users read.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::DiskCreated => "DiskCreated",
            Self::MachineRunning => "MachineRunning",
            Self::AwaitingFinalize => "AwaitingFinalize",
            Self::Finalized => "Finalized",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// A call to the pool that takes time. The last three fields are the intent of the claim protocol, written before the call.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// The step of the walk, for example CloneDisk; RunStep and its name while the guest runs one of spec.steps.
    pub step: String,

    /// How far it is, in percent, in steps of 5.
    #[schemars(range(min = 0, max = 100))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<i32>,

    /// When it was begun.
    #[schemars(schema_with = "time_schema")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,

    /// The mark of this operation in the pool: what is being made is found again by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opid: Option<String>,

    /// Uuid of the disk or template that is copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,

    /// When the pool's coordinator had started its management service; another value later means that it was restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_start: Option<String>,

    /// Of a freeze: the boot of the machine whose end is frozen. If it ran again since, the freeze is taken back.
    #[serde(default, rename = "bootID", skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
}

/// The packaging disk of the version in work.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DiskStatus {
    /// Uuid of the disk in the pool.
    pub uuid: String,

    /// Name of the disk in the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,

    /// File name the disk will have wherever it is kept as a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_name: Option<String>,

    /// VHD, QCOW2 or Raw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,

    /// Name of the storage repository it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_repository: Option<String>,

    /// Uuid of that storage repository: the disk is only called lost where it was looked for there.
    #[serde(default, rename = "storageRepositoryUUID", skip_serializing_if = "Option::is_none")]
    pub storage_repository_uuid: Option<String>,

    /// Size that the guest sees, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_size: Option<i64>,

    /// Room it takes in the storage repository, in bytes. Only shown while nothing writes to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilisation: Option<i64>,

    /// What it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseTaken>,

    /// The version it is being made for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,

    /// A machine was started on it: it may hold somebody's work, and nothing takes its place if it is lost.
    #[serde(default)]
    pub worked: bool,
}

/// The disk that carries steps into the machine.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ConfigDiskStatus {
    /// Uuid of the disk in the pool.
    pub uuid: String,

    /// The version it was made for.
    #[serde(default)]
    pub version: String,

    /// Uuid of its storage repository: the disk is only called lost where it was looked for there.
    #[serde(default, rename = "storageRepositoryUUID", skip_serializing_if = "Option::is_none")]
    pub storage_repository_uuid: Option<String>,
}

/// What a disk was made from.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BaseTaken {
    /// OSLayer or Version.
    pub from: BaseKind,

    /// The finalized version it was copied from, with from Version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,

    /// Uuid of the frozen copy of the OS disk that it stands on, directly or through earlier versions.
    pub uuid: String,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseKind {
    OSLayer,
    Version,
}

/// The packaging machine of the version in work.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MachineStatus {
    /// Uuid of the machine in the pool.
    pub uuid: String,

    /// Name of the machine in the pool: look for it in XenCenter or Xen Orchestra.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,

    /// Name of the host it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,

    /// Running, Halted, Paused or Suspended, as the pool says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_state: Option<String>,

    /// First address that the guest tools report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,

    /// The guest tools inside the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<ToolsStatus>,

    /// The value of spec.machine.restartToken that was last used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_token: Option<String>,

    /// When the pool's coordinator had started its management service as the machine was recorded. A pool that died since
    /// may have forgotten a machine that never ran: that one is made again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_start: Option<String>,
}

/// The guest tools inside the machine.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ToolsStatus {
    /// Version that the tools report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,

    /// Whether drivers and agent were seen at work in the present boot.
    #[serde(default)]
    pub seen: bool,
}

/// What the check inside the guest found.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct IntegrityStatus {
    /// Which way the report came that was judged. Xenstore: the machine's own keys. ConfigDisk: the disk that was read back after the
    /// shutdown. Two that count and contradict each other block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IntegritySource>,

    /// The boot that the report is about: number of the domain and time of its start.
    #[serde(default, rename = "bootID", skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,

    /// What stands in the way of a freeze. Empty: nothing.
    #[schemars(length(max = 32))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub findings: Vec<Finding>,
}

/// The channel that a report came through.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntegritySource {
    Xenstore,
    ConfigDisk,
}

/// How far one step is, as the guest says.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// Name of the step, as in spec.steps.
    pub name: String,

    /// Pending, Running, Succeeded, Failed, TimedOut (ended after its timeout), Interrupted (the machine went down while it ran), Skipped (a
    /// person did it by hand), or Unknown: the config disk, which has the record, is lost or damaged.
    pub state: StepState,

    /// How Windows ended it; absent while it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepState {
    Pending,
    Running,
    Interrupted,
    Succeeded,
    Failed,
    TimedOut,
    Skipped,
    Unknown,
}

/// One thing in the guest that stands in the way of a freeze.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The kind of finding, one word that does not change; a bit that nobody knows is Bit and its value.
    pub reason: String,

    /// What was found, where.
    #[schemars(length(max = 2048))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,

    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// The newest finalized version.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CurrentVersion {
    /// Name of the version.
    pub version: String,

    /// Uuid of its disk. A snapshot in the pool: copy or clone it, it can not be booted.
    pub disk: String,

    /// When it was frozen.
    #[schemars(schema_with = "time_schema")]
    pub finalized_at: Time,
}

/// One finalized version.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FrozenVersion {
    /// Name of the version.
    pub version: String,

    /// Uuid of its disk in the pool.
    pub disk: String,

    /// What it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseTaken>,

    /// The version of the OS layer it was made on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,

    /// Uuid of its storage repository: the disk is only called lost where it was looked for there.
    #[serde(default, rename = "storageRepositoryUUID", skip_serializing_if = "Option::is_none")]
    pub storage_repository_uuid: Option<String>,

    /// Size that a guest sees, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,

    /// How often the Windows in it can still be rearmed, as its last report says. Absent where no report counted (integrity Skip): nobody
    /// knows then whether it was rearmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rearms_left: Option<i32>,

    /// When it was frozen.
    #[schemars(schema_with = "time_schema")]
    pub finalized_at: Time,

    /// spec.comment at the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,

    /// True: its disk is gone from the pool, and Lamina did not remove it. Nothing is made in its place; it is false again when the disk is
    /// back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
}

/// One transition.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// When it happened.
    #[schemars(schema_with = "time_schema")]
    pub at: Time,

    /// The phase that was reached.
    pub phase: Phase,

    /// Ready's reason at the time.
    pub reason: String,

    /// What that means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,

    /// spec.comment, with the first entry of the version that it came with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}
