//! `spec.steps`: what a layer without hands is installed by. Part of `layer`; read by `domain::config`.
//!
//! The rules here are the guest's own (`lamina_guest::steps::check`), told where a user still has the manifest in front of them. The guest checks
//! again, since it trusts no disk.

use kube::KubeSchema;
use kube::core::Reason as Refusal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One step of an installation without hands.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.command), has(self.powershell), has(self.file)].filter(x, x).size() == 1")
        .message("a step runs one thing: set exactly one of command, powershell and file")
        .reason(Refusal::FieldValueInvalid),
    validation = Rule::new("!has(self.file) || (has(self.files) && self.files.exists(f, f.name == self.file))")
        .message("file names none of the step's files: add it to files, with the ConfigMap or Secret that it comes from")
        .field_path(".file")
        .reason(Refusal::FieldValueInvalid)
)]
pub struct Step {
    /// Name of the step: lower-case letters, digits and dashes, unique in the layer. status.steps and its log on the config disk bear it.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[x_kube(validation = Rule::new("!self.matches('^(con|prn|aux|nul|com[0-9]|lpt[0-9])$')")
        .message("a step cannot be named like a device of Windows (con, prn, aux, nul, com1, lpt1): its files lie in a directory of that name"))]
    pub name: String,

    /// One line for cmd.exe, run in the directory of the step's files.
    #[schemars(length(min = 1, max = 8000), regex(pattern = r"^[^\x00\r\n]+$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,

    /// A script for Windows PowerShell, run in the directory of the step's files. The text is in this object for all to read: a
    /// password belongs into a file from a Secret.
    #[schemars(length(min = 1, max = 16384))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub powershell: Option<String>,

    /// One of the step's files, run by its extension: .msi and .msu without asking anything, .ps1, .cmd, .bat, and .exe without an
    /// argument: one that asks somebody waits until the timeout, so run that with its silent switch by command.
    #[schemars(length(min = 1, max = 100))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.lowerAscii().matches('[.](exe|msi|msu|ps1|cmd|bat)$')")
        .message("file is run by its extension, which must be .exe, .msi, .msu, .ps1, .cmd or .bat: use command to say how another one is run"))]
    pub file: Option<String>,

    /// Files that the step needs, from keys of ConfigMaps and Secrets in the layer's namespace; at most 64 MiB for all steps together.
    /// They are taken as they are when the machine first starts, and lie side by side in the directory that the step runs in.
    #[schemars(length(max = 32))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new("self.all(f, self.exists_one(g, g.name.lowerAscii() == f.name.lowerAscii()))")
            .message("two files of a step have one name; Windows takes small and capital letters for the same")
    )]
    pub files: Vec<StepFile>,

    /// Exit codes that mean success. Default: 0, and 3010 (done, wants a reboot).
    #[schemars(length(min = 1, max = 32), inner(range(min = -2_147_483_648_i64, max = 4_294_967_295_i64)))]
    #[serde(default = "success_codes")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub success_codes: Vec<i64>,

    /// When Windows is rebooted after the step. IfRequested (default): when its exit code asks for it (3010, 1641). Always. Never.
    #[serde(default)]
    pub reboot: StepReboot,

    /// How long the step may take before it is ended with everything that it started, for example 90m or 1h30m; 1s to 24h. Default: 1h.
    #[schemars(length(min = 2, max = 16))]
    #[serde(default = "timeout")]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?$') && duration(self) >= duration('1s') && duration(self) <= duration('24h')")
        .message("not a timeout: hours, minutes and seconds between 1s and 24h, for example 90m or 1h30m"))]
    pub timeout: String,

    /// What happens when it fails. Stop (default): no further step runs, and a person is asked (FixStep). Continue: the next step runs.
    #[serde(default)]
    pub on_failure: OnFailure,

    /// true: the step may be run again if the machine went down while it ran. false (default): nobody knows then how far it came, so a
    /// person is asked.
    #[serde(default)]
    pub retry: bool,
}

/// A file of a step.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.configMapKeyRef) != has(self.secretKeyRef)")
    .message("a file comes from one place: set exactly one of configMapKeyRef and secretKeyRef")
    .reason(Refusal::FieldValueInvalid))]
pub struct StepFile {
    /// Name of the file, 1 to 100 letters, digits, periods, dashes and underscores.
    #[schemars(length(min = 1, max = 100), regex(pattern = r"^([A-Za-z0-9._][A-Za-z0-9._-]*)?[A-Za-z0-9_]$"))]
    #[x_kube(validation = Rule::new("!self.lowerAscii().matches('^(con|prn|aux|nul|com[0-9]|lpt[0-9])([.].*)?$')")
        .message("a file cannot be named like a device of Windows (con, prn, aux, nul, com1, lpt1), whatever its extension"))]
    pub name: String,

    /// The key of a ConfigMap that holds the file, in data or binaryData.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeyRef>,

    /// The key of a Secret that holds the file. It is on the config disk, in the storage repository, while the layer is being made; the disk
    /// is overwritten with zeros before it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<KeyRef>,
}

/// A key of a ConfigMap or Secret in the layer's namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct KeyRef {
    /// Name of the ConfigMap or Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,

    /// The key in it.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StepReboot {
    #[default]
    IfRequested,
    Always,
    Never,
}

#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    #[default]
    Stop,
    Continue,
}

fn success_codes() -> Vec<i64> {
    vec![0, 3010]
}

fn timeout() -> String {
    "1h".to_owned()
}
