//! `Connector`: where and how to reach one XenServer pool, and what was found there.
//!
//! As in `layer`, comments on fields are what `kubectl explain` prints.
#![allow(clippy::duplicated_attributes, reason = "one printcolumn attribute a column is how kube reads them")]
#![allow(rustdoc::bare_urls, reason = "kubectl explain prints these comments as they are")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::core::Reason as Refusal;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::crd::{conditions_schema, selector_schema};

/// Inventory lists are cut to this many entries a kind.
pub const MAX_INVENTORY: usize = 200;

#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "lamina.dev",
    version = "v1alpha1",
    kind = "Connector",
    plural = "connectors",
    namespaced,
    status = "ConnectorStatus",
    derive = "PartialEq",
    shortname = "conn",
    category = "lamina",
    doc = "Connector is one XenServer or XCP-ng pool in which layers are made: its addresses, an account, and the template and storage repository to use. Its status says check by check whether that works.",
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(name = "Coordinator", type_ = "string", json_path = ".status.coordinator"),
    printcolumn(name = "Layers", type_ = "integer", json_path = ".status.layers"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
/// Where and how to reach the pool.
pub struct ConnectorSpec {
    /// Addresses of the pool's hosts, for example https://xen1.example.com. One is enough: whichever answers names the coordinator,
    /// and that is followed. More of them keep working when that host is away.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 255)))]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new("self.all(e, isURL(e) && url(e).getScheme() == 'https' && url(e).getHostname() != '' && url(e).getEscapedPath() in ['', '/'] && !e.contains('@') && !e.contains('?'))")
            .message("each endpoint is an address like https://xen1.example.com: https, a host, no user, no path, no query")
    )]
    pub endpoints: Vec<String>,

    /// Secret with the keys username and password (type kubernetes.io/basic-auth), in the Connector's namespace. A change is taken
    /// over without a restart.
    pub credentials_secret_ref: SecretRef,

    /// How the pool's certificates are judged. Default: by the system's certificate authorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,

    /// Name or uuid of the template that packaging machines are cloned from: a custom one, with at least one network card and
    /// without a disk. It gives CPUs, memory, networks, tags and firmware.
    #[schemars(length(min = 1, max = 255))]
    pub template: String,

    /// Name or uuid of the storage repository where the OS disks are and the layers are made.
    #[schemars(length(min = 1, max = 255))]
    pub storage_repository: String,

    /// Name or uuid of the ISO with the guest tools for Windows. Default: looked for by the names under which it is shipped.
    #[schemars(length(min = 1, max = 255))]
    #[serde(default, rename = "toolsISO", skip_serializing_if = "Option::is_none")]
    pub tools_iso: Option<String>,

    /// Whose layers may use this Connector. Default: those of its own namespace.
    #[serde(default)]
    pub allowed_namespaces: AllowedNamespaces,

    /// How much Lamina may take from the pool at once.
    #[serde(default)]
    pub limits: Limits,
}

/// A Secret in the Connector's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

/// How the pool's certificates are judged: at most one way.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.caBundle), has(self.caBundleRef), has(self.fingerprintsSHA256), has(self.insecureSkipVerify) && self.insecureSkipVerify].filter(x, x).size() <= 1")
    .message("choose one of caBundle, caBundleRef, fingerprintsSHA256 and insecureSkipVerify")
    .reason(Refusal::FieldValueInvalid))]
pub struct Tls {
    /// Certificates of the authorities to trust, as PEM.
    #[schemars(length(min = 1, max = 262144))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<String>,

    /// ConfigMap in the Connector's namespace with the certificates of the authorities to trust.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle_ref: Option<CaBundleRef>,

    /// SHA-256 fingerprints of the hosts' own certificates, one per host, 64 hexadecimal digits with or without colons. Right for
    /// the self-signed certificates that XenServer is installed with.
    #[schemars(length(min = 1, max = 64), inner(regex(pattern = r"^([0-9A-Fa-f]{2}:?){31}[0-9A-Fa-f]{2}$")))]
    #[serde(default, rename = "fingerprintsSHA256", skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub fingerprints_sha256: Option<Vec<String>>,

    /// true: whoever answers is believed, and gets the password. Shown as the condition TLSInsecure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure_skip_verify: Option<bool>,
}

/// A key of a ConfigMap in the Connector's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CaBundleRef {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,

    /// Key with the PEM text. Default: ca.crt.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    #[serde(default = "ca_crt")]
    pub key: String,
}

fn ca_crt() -> String {
    "ca.crt".into()
}

/// Whose layers may use the Connector.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(self.from == 'Selector') == has(self.selector)")
    .message("allowedNamespaces.selector belongs to from Selector: set both, or neither")
    .field_path(".selector")
    .reason(Refusal::FieldValueInvalid))]
pub struct AllowedNamespaces {
    /// Same (default): the Connector's own namespace. All: every namespace. Selector: those whose labels match selector.
    #[serde(default)]
    pub from: NamespacesFrom,

    /// Labels of the namespaces that are let in, with from Selector.
    #[schemars(schema_with = "selector_schema")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NamespacesFrom {
    #[default]
    Same,
    All,
    Selector,
}

/// How much Lamina may take from the pool at once.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// How many packaging machines of this Connector may exist at a time. Further layers wait, the oldest goes first. Default: 10.
    #[schemars(range(min = 1, max = 1000))]
    #[serde(default = "ten")]
    pub machines: i32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { machines: ten() }
    }
}

fn ten() -> i32 {
    10
}

/// What was found in the pool.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ConnectorStatus {
    /// The generation of spec that this status is about; -1 before the first look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// The checks in the order in which they are made: Reachable, Authenticated, CoordinatorFound, TemplateValid, StorageReady,
    /// ToolsISOFound, PermissionsSufficient. Those after the first that fails are Unknown. Ready sums them up.
    #[schemars(schema_with = "conditions_schema")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// Name and version of the product that answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,

    /// Uuid of the pool. While layers use the Connector, a pool with another one is not touched (PoolChanged).
    #[serde(default, rename = "poolUUID", skip_serializing_if = "Option::is_none")]
    pub pool_uuid: Option<String>,

    /// Name and address of the host that answers for the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinator: Option<String>,

    /// How many layers use this Connector. It cannot be deleted while there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<i32>,

    /// What may be chosen from in this pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inventory: Option<Inventory>,
}

/// What may be chosen from in the pool; the first 200 of each kind, by name.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    /// Custom templates.
    #[schemars(length(max = 200))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub templates: Vec<Named>,

    /// Storage repositories that can hold layers.
    #[schemars(length(max = 200))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub storage_repositories: Vec<Named>,

    /// Networks that machines can be put on.
    #[schemars(length(max = 200))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub networks: Vec<Named>,
}

/// One object of the pool.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct Named {
    /// Its name; names need not be unique.
    pub name: String,

    /// Its uuid, which is unique.
    pub uuid: String,
}
