//! `PlatformLayer`, the half that users write.
//!
//! Every doc comment on a field is the manual: `kubectl explain` prints it. So they speak to the person with the manifest,
//! not to the programmer. Values of an enum are explained in the field's comment, for a comment on a variant reorders the
//! generated schema and is then lost. Fields that the rules below compare have complete defaults, since a rule that meets
//! an absent field errs, and an error refuses status writes too.
//!
//! A root rule must hold whenever `spec` is unchanged. One that does not, added later, would block the removal of
//! finalizers from stored objects for ever.
//!
//! Longer than other files, since half of it is the manual.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::core::Reason as Refusal;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::layer_status::PlatformLayerStatus;
use super::steps::Step;

/// Where nothing may hang on the choice any more: no disk was made, for no version.
const BEFORE_ANY_DISK: &str = "(oldSelf.?status.?phase.orValue('Pending') == 'Pending' && oldSelf.?status.?versions.orValue([]).size() == 0 && !oldSelf.?status.?disk.hasValue())";

#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "lamina.dev",
    version = "v1alpha1",
    kind = "PlatformLayer",
    plural = "platformlayers",
    namespaced,
    status = "PlatformLayerStatus",
    derive = "PartialEq",
    shortname = "pl",
    category = "lamina",
    doc = "PlatformLayer is one platform layer: a named, versioned disk with everything that ties a Windows image to where it runs. Lamina makes a packaging disk and a machine in a XenServer pool; a person installs software in it and shuts it down; the disk is then frozen as a version.",
    selectable = ".spec.connectorRef.name",
    selectable = ".status.phase",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(name = "Version", type_ = "string", json_path = ".spec.version"),
    printcolumn(name = "Progress", type_ = "integer", json_path = ".status.operation.progress"),
    printcolumn(name = "Machine", type_ = "string", json_path = ".status.machine.name", priority = 1),
    printcolumn(name = "Connector", type_ = "string", json_path = ".spec.connectorRef.name", priority = 1),
    printcolumn(name = "OS layer", type_ = "string", json_path = ".spec.osLayer.name", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("oldSelf.hasValue() || has(self.spec.layerName) || self.metadata.name.size() <= 100")
        .message("metadata.name is longer than 100 characters, too long for a layer name: set spec.layerName")
        .field_path(".spec.layerName")
        .reason(Refusal::FieldValueRequired)
        .optional_old_self(true),
    validation = Rule::new("self.spec.version == oldSelf.spec.version || oldSelf.?status.?phase.orValue('Pending') in ['Pending', 'Finalized'] || self.spec.?discard.orValue('') == oldSelf.spec.version")
        .message(Message::Expression("\"version '\" + oldSelf.spec.version + \"' is in work (\" + oldSelf.status.phase + \"): finalize it first, or set spec.discard to '\" + oldSelf.spec.version + \"' to throw it away\"".into()))
        .field_path(".spec.version")
        .reason(Refusal::FieldValueForbidden),
    validation = Rule::new("self.spec.version != oldSelf.spec.version || oldSelf.?status.?phase.orValue('Pending') == 'Pending' || (self.spec.osLayer == oldSelf.spec.osLayer && self.spec.base == oldSelf.spec.base && self.spec.packagingDisk == oldSelf.spec.packagingDisk)")
        .message("osLayer, base and packagingDisk are fixed once the disk of this version is made: set them together with a new spec.version")
        .field_path(".spec")
        .reason(Refusal::FieldValueForbidden),
    validation = Rule::new("self.spec.version != oldSelf.spec.version || !oldSelf.?status.?disk.hasValue() || (self.spec.osLayer == oldSelf.spec.osLayer && self.spec.base == oldSelf.spec.base && (has(self.spec.packagingDisk.fileName) ? self.spec.packagingDisk.fileName : '') == (has(oldSelf.spec.packagingDisk.fileName) ? oldSelf.spec.packagingDisk.fileName : '') && (has(self.spec.packagingDisk.format) ? self.spec.packagingDisk.format : '') == (has(oldSelf.spec.packagingDisk.format) ? oldSelf.spec.packagingDisk.format : ''))")
        .message("the disk of a version in work is made, and only its size can still be corrected: set osLayer, base and the rest of packagingDisk together with a new spec.version")
        .field_path(".spec")
        .reason(Refusal::FieldValueForbidden),
    validation = Rule::new("self.spec.version != oldSelf.spec.version || oldSelf.?status.?phase.orValue('Pending') in ['Pending', 'DiskCreated'] || (has(self.spec.steps) ? self.spec.steps : []) == (has(oldSelf.spec.steps) ? oldSelf.spec.steps : [])")
        .message("steps are fixed once the machine of this version was started: set them together with a new spec.version, and with spec.discard where this one is still in work")
        .field_path(".spec.steps")
        .reason(Refusal::FieldValueForbidden),
    validation = Rule::new("self.spec.version != oldSelf.spec.version || oldSelf.?status.?phase.orValue('Pending') in ['Pending', 'DiskCreated'] || !(has(self.spec.kms) && self.spec.kms.rearm) || (has(oldSelf.spec.kms) && oldSelf.spec.kms.rearm)")
        .message("kms.rearm can only be switched off once the machine of this version was started, which was told then: set it together with a new spec.version, and with spec.discard where this one is still in work")
        .field_path(".spec.kms")
        .reason(Refusal::FieldValueForbidden),
    validation = Rule::new("self.spec.version != oldSelf.spec.version || oldSelf.?status.?phase.orValue('') != 'Finalized' || (self.spec.purpose == oldSelf.spec.purpose && self.spec.platforms == oldSelf.spec.platforms)")
        .message("purpose and platforms of a finalized version are fixed: set them together with a new spec.version")
        .field_path(".spec.platforms")
        .reason(Refusal::FieldValueForbidden),
    validation = Rule::new(format!("self.spec.connectorRef == oldSelf.spec.connectorRef || {BEFORE_ANY_DISK}"))
        .message("connectorRef is fixed once a disk of this layer exists: make a new layer to use another Connector")
        .field_path(".spec.connectorRef")
        .reason(Refusal::FieldValueForbidden),
    validation = Rule::new(format!("self.spec.osLayer.name == oldSelf.spec.osLayer.name || {BEFORE_ANY_DISK}"))
        .message("osLayer.name is fixed for the life of the layer: osLayer.version may move on, another OS layer needs a new layer")
        .field_path(".spec.osLayer.name")
        .reason(Refusal::FieldValueForbidden)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.purpose != 'Publishing' || (has(self.platforms.provisioningService) && has(self.platforms.connectionBroker))")
        .message("purpose Publishing needs platforms.provisioningService and platforms.connectionBroker (None is a choice)")
        .field_path(".platforms")
        .reason(Refusal::FieldValueRequired),
    validation = Rule::new("self.purpose != 'Packaging' || (!has(self.platforms.provisioningService) && !has(self.platforms.connectionBroker))")
        .message("purpose Packaging takes the hypervisor only: remove platforms.provisioningService and platforms.connectionBroker")
        .field_path(".platforms")
        .reason(Refusal::FieldValueForbidden),
    validation = Rule::new("!has(self.kms) || !self.kms.rearm || (has(self.platforms.provisioningService) && self.platforms.provisioningService == 'PVS')")
        .message("kms.rearm is only for images that PVS streams: set platforms.provisioningService to PVS, or remove kms")
        .field_path(".kms")
        .reason(Refusal::FieldValueForbidden),
    validation = Rule::new("!has(self.discard) || self.discard != self.version")
        .message("discard names the version that is wanted: remove discard to use that name again")
        .field_path(".discard")
        .reason(Refusal::FieldValueForbidden)
)]
/// What is to be built, and how far Lamina may go by itself.
pub struct PlatformLayerSpec {
    /// Name of the layer as people know it, 1 to 100 characters. Default: the object's name. No two layers of a Connector may
    /// share one: the younger then stalls with NameConflict. PVS does not like a period in it.
    #[schemars(length(min = 1, max = 100), regex(pattern = r"^[^\x00-\x1f\x7f]+$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_name: Option<String>,

    /// What the layer is for. Free text, may be changed at any time.
    #[schemars(length(max = 4096))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,

    /// Name of the version that is wanted: a product version, a date, anything of 1 to 100 characters. Quote it, it is a string.
    /// A new value on a finalized layer starts a new version; a version that was finalized before means nothing to do.
    #[schemars(length(min = 1, max = 100), regex(pattern = r"^[^\x00-\x1f\x7f]+$"))]
    pub version: String,

    /// What is new in this version. Free text, may be changed at any time.
    #[schemars(length(max = 4096))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_description: Option<String>,

    /// The version in work that may be thrown away, with everything installed in it, so that spec.version may name another.
    /// Does nothing once that version is frozen. Never equal to version.
    #[schemars(length(min = 1, max = 100), regex(pattern = r"^[^\x00-\x1f\x7f]+$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard: Option<String>,

    /// What a new version starts from. Default: the newest finalized version made on the same OS disk and OS layer version,
    /// or the OS layer where there is none at all.
    #[serde(default)]
    pub base: Base,

    /// The Windows disk this layer is made on. A platform layer is of no use on another one.
    pub os_layer: OsLayer,

    /// The Connector of the pool in which the layer is made. Fixed once a disk exists.
    pub connector_ref: ConnectorRef,

    /// Packaging: used while other layers are made, holds hypervisor tools only. Publishing: used in published images, holds the
    /// tools of hypervisor, provisioning service and connection broker.
    pub purpose: Purpose,

    /// Which platforms the layer's software is for. Recorded for people and for whatever builds images from the layer.
    #[serde(default)]
    pub platforms: Platforms,

    /// The disk that the packaging machine boots from and that becomes the version.
    #[serde(default)]
    pub packaging_disk: PackagingDisk,

    /// Overrides over what the packaging machine takes from the Connector's template.
    #[serde(default)]
    pub machine: MachineSettings,

    /// What is installed without hands: run in the machine in this order, once each, across reboots, by the guest program that the OS
    /// layer brings or a person starts from the config disk. With finalize.policy OnShutdown the machine shuts down for finalize by itself
    /// when all are done. Fixed once the machine of this version was started.
    #[schemars(length(max = 32))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new("self.all(s, self.exists_one(t, t.name == s.name))")
            .message("two steps have one name: give each its own")
    )]
    pub steps: Vec<Step>,

    /// Goes into the history with the version it came with; a place for a change ticket's number.
    #[schemars(length(max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,

    /// When the disk of a machine that was shut down is frozen as a version.
    #[serde(default)]
    pub finalize: Finalize,

    /// What the check inside the guest must say before the disk may be frozen. Enforce (default): a report of the last boot without
    /// a finding. Warn: a report of the last boot; findings are shown. Skip: no report, but a person approves. Warn and Skip may
    /// only be set by somebody with the verb approve on platformlayers.
    #[serde(default)]
    pub integrity: IntegrityPolicy,

    /// Volume licensing by a KMS server. Only with platforms.provisioningService PVS. Can only be switched off once the machine of this version
    /// was started: it is told before its first start, and never again, so that its check goes on to rearm, and to spend one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms: Option<Kms>,

    /// What becomes of the pool's objects when this object is deleted. Retain (default): finalized disks stay and are marked as
    /// retained, work in progress goes. Delete: everything goes. Orphan: nothing is touched; the way out when the pool is gone.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,

    /// true: the API server refuses to delete this object, and so its namespace stays too.
    #[serde(default)]
    pub deletion_protection: bool,

    /// true: nothing is done to the pool, and the status says so. Holds a deletion too, unless deletionPolicy is Orphan.
    #[serde(default)]
    pub suspend: bool,
}

/// What a new version starts from.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(self.from == 'Version') == has(self.version)")
    .message("base.version belongs to base.from Version: set both, or neither")
    .field_path(".version")
    .reason(Refusal::FieldValueInvalid))]
pub struct Base {
    /// Latest (default): the newest finalized version on the same OS disk and OS layer version, else the OS layer if no version
    /// exists. OSLayer: the bare OS layer, everything is installed again. Version: the finalized version named in version.
    #[serde(default)]
    pub from: BaseFrom,

    /// The finalized version to start from, with from Version.
    #[schemars(length(min = 1, max = 100))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BaseFrom {
    #[default]
    Latest,
    OSLayer,
    Version,
}

/// The Windows disk a layer is made on.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OsLayer {
    /// Name of the OS layer. Fixed for the life of the platform layer.
    #[schemars(length(min = 1, max = 100), regex(pattern = r"^[^\x00-\x1f\x7f]+$"))]
    pub name: String,

    /// Version of the OS layer, for example 24H2. May move on with a new spec.version; a platform layer needs a new version
    /// whenever its OS layer gets one.
    #[schemars(length(min = 1, max = 100), regex(pattern = r"^[^\x00-\x1f\x7f]+$"))]
    pub version: String,

    /// The disk in the Connector's storage repository that holds this version of the OS layer. It is only read, and no machine
    /// may write to it meanwhile.
    pub disk: DiskRef,

    /// BIOS or UEFI, as Windows was installed. Default: what the Connector's template says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
}

/// A disk, by uuid or by name.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.uuid) != has(self.name)")
    .message("name the disk by uuid or by name: exactly one of the two")
    .reason(Refusal::FieldValueInvalid))]
pub struct DiskRef {
    /// The disk's uuid in the pool. Names need not be unique, uuids are.
    #[schemars(regex(pattern = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,

    /// The disk's name in the pool. Case matters. Must be the only one of that name in the storage repository.
    #[schemars(length(min = 1, max = 255))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
pub enum Firmware {
    Bios,
    Uefi,
}

/// The Connector a layer is made with.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct ConnectorRef {
    /// Name of the Connector.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,

    /// Namespace of the Connector. Default: the layer's own. Another one must be let in by the Connector's allowedNamespaces.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Packaging,
    Publishing,
}

/// What the software in the layer is for.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Platforms {
    /// The hypervisor the images will run on. Default: XenServer.
    #[serde(default)]
    pub hypervisor: Hypervisor,

    /// What delivers the images. Required with purpose Publishing, not allowed with Packaging.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provisioning_service: Option<ProvisioningService>,

    /// What hands desktops to users. Required with purpose Publishing, not allowed with Packaging.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_broker: Option<ConnectionBroker>,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hypervisor {
    #[default]
    XenServer,
    VSphere,
    HyperV,
    Acropolis,
    Azure,
    AWS,
    GCP,
    Other,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProvisioningService {
    MCS,
    PVS,
    ViewComposer,
    Other,
    None,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionBroker {
    XenApp,
    XenDesktop,
    AzureRDSH,
    RDS,
    View,
    Other,
    None,
}

/// The disk that becomes the version.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PackagingDisk {
    /// File name, legal on Windows and Linux, 1 to 128 characters. Default: the layer's name made legal; see status.disk.fileName.
    #[schemars(length(min = 1, max = 128))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(r#"self.matches('^[^<>:"/\\\\|?*\\x00-\\x1f]+$') && !self.matches('[ .]$') && !self.lowerAscii().matches('^(con|prn|aux|nul|com[0-9]|lpt[0-9])([.].*)?$')"#)
        .message("not a legal file name: none of < > : \" / \\ | ? * or control characters, no period or blank at the end, no device name such as CON or LPT1"))]
    pub file_name: Option<String>,

    /// VHD, QCOW2 or Raw. A copy keeps the format of its source, so this must be the OS disk's, and that is the default. Set it to
    /// be told (FormatMismatch) when the OS disk is not what you think.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,

    /// Size as a quantity, for example 60Gi: whole bytes, never smaller than the OS disk. Default: the OS disk's. Can be
    /// corrected until the phase is DiskCreated. On thin storage the disk takes room as it fills; on lvm storage it takes all of it.
    #[schemars(with = "Option<String>", length(max = 32))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).isInteger() && quantity(self).isGreaterThan(quantity('0'))")
        .message("not a size: a quantity in whole bytes above zero, for example 60Gi"))]
    pub size: Option<Quantity>,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    VHD,
    QCOW2,
    Raw,
}

/// Overrides over the Connector's template.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MachineSettings {
    /// Virtual CPUs. Default: the template's.
    #[schemars(range(min = 1, max = 128))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<i32>,

    /// Memory as a quantity, for example 8Gi. Default: the template's.
    #[schemars(with = "Option<String>", length(max = 32))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isQuantity(self) && quantity(self).isInteger() && quantity(self).isGreaterThan(quantity('0'))")
        .message("not an amount of memory: a quantity in whole bytes above zero, for example 8Gi"))]
    pub memory: Option<Quantity>,

    /// Names or uuids of the pool's networks, one network card each, in this order. Default: the template's network cards.
    #[schemars(length(max = 7), inner(length(min = 1, max = 255)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub networks: Vec<String>,

    /// Name or uuid of the ISO with the guest tools. Default: what the Connector found.
    #[schemars(length(min = 1, max = 255))]
    #[serde(default, rename = "toolsISO", skip_serializing_if = "Option::is_none")]
    pub tools_iso: Option<String>,

    /// true (default): the machine is started once per version. false: a person starts it.
    #[serde(default = "yes")]
    pub power_on: bool,

    /// Any new value starts a machine that was shut down once more, or makes a new one on the same disk if it is lost.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_token: Option<String>,
}

impl Default for MachineSettings {
    fn default() -> Self {
        Self { cpus: None, memory: None, networks: vec![], tools_iso: None, power_on: true, restart_token: None }
    }
}

fn yes() -> bool {
    true
}

/// When the disk is frozen.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Finalize {
    /// Manual (default): a person approves. OnShutdown: a shutdown with a report that satisfies spec.integrity is enough; may only
    /// be set by somebody with the verb approve on platformlayers. May be changed at any time for what is frozen without approval. A
    /// machine with steps hears it before its first start alone: set later, a person runs Shutdown For Finalize when all steps are done;
    /// taken back later, the machine still shuts down by itself, and the approval is waited for.
    #[serde(default)]
    pub policy: FinalizePolicy,

    /// The version that may be frozen. Counts only while equal to spec.version, and may be given before the machine is shut down.
    /// May only be changed by somebody with the verb approve on platformlayers.
    #[schemars(length(min = 1, max = 100))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved: Option<String>,

    /// The boot of the machine after which a person looked and answers for its steps, where the config disk is lost or damaged and the message of Ready
    /// asks for it and names the boot. Beside the approval, never in its place: that may have been given before anything was lost. May only be changed by somebody with
    /// the verb approve on platformlayers.
    #[schemars(length(min = 1, max = 100))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_boot: Option<String>,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FinalizePolicy {
    #[default]
    Manual,
    OnShutdown,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IntegrityPolicy {
    #[default]
    Enforce,
    Warn,
    Skip,
}

/// Volume licensing by a KMS server.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Kms {
    /// true: the guest's check rearms Windows as the very last thing before the shutdown, so that each image gets a client id of
    /// its own. A Windows has few rearms in it: a count of 0 stops the freeze (NoRearmsLeft).
    /// Can only be switched off once the machine of a version was started.
    /// With integrity Skip and no report of the guest that counts, nobody knows: the approval is then yours to judge.
    #[serde(default)]
    pub rearm: bool,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    #[default]
    Retain,
    Delete,
    Orphan,
}

impl PlatformLayer {
    /// The layer's name as people know it: `spec.layerName`, else the object's own.
    #[must_use]
    pub fn layer_name(&self) -> &str {
        self.spec.layer_name.as_deref().or(self.metadata.name.as_deref()).unwrap_or_default()
    }
}
