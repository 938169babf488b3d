//! What the user wants, parsed: the spec of a layer with its defaults filled in.
//!
//! Built by `controller::layer` from the stored object; nothing below it looks at the raw spec again.

use serde_json::{Value, json};

pub use crate::api::layer::{BaseFrom, DeletionPolicy, FinalizePolicy, IntegrityPolicy};
use crate::api::layer::{DiskFormat, PlatformLayer, Purpose};
use crate::api::quantity;
use crate::api::steps::Step;

/// A layer as wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Want {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub layer_name: String,
    pub version: String,
    pub discard: Option<String>,
    pub base_from: BaseFrom,
    pub base_version: Option<String>,
    pub os_name: String,
    pub os_version: String,
    pub file_name: String,
    /// Bytes; none: the OS disk's.
    pub size: Option<i64>,
    /// As in `packagingDisk.format`, lower case; none: whatever the OS disk is.
    pub format: Option<String>,
    pub power_on: bool,
    pub restart_token: Option<String>,
    pub finalize: FinalizePolicy,
    pub approved: Option<String>,
    /// The boot after which a person answers for steps that nobody knows of.
    pub answered: Option<String>,
    pub integrity: IntegrityPolicy,
    pub kms_rearm: bool,
    pub purpose: Purpose,
    pub steps: Vec<Step>,
    pub deletion: DeletionPolicy,
    pub suspend: bool,
}

impl Want {
    /// Parses a stored layer.
    pub fn of(layer: &PlatformLayer) -> Self {
        let (spec, meta) = (&layer.spec, &layer.metadata);
        let layer_name = layer.layer_name().to_owned();
        let format = |f: &DiskFormat| match f {
            DiskFormat::VHD => "vhd",
            DiskFormat::QCOW2 => "qcow2",
            DiskFormat::Raw => "raw",
        };
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            version: spec.version.clone(),
            discard: spec.discard.clone(),
            base_from: spec.base.from,
            base_version: spec.base.version.clone(),
            os_name: spec.os_layer.name.clone(),
            os_version: spec.os_layer.version.clone(),
            file_name: spec.packaging_disk.file_name.clone().unwrap_or_else(|| legal_file_name(&layer_name)),
            size: spec.packaging_disk.size.as_ref().and_then(quantity::bytes),
            format: spec.packaging_disk.format.as_ref().map(|f| format(f).to_owned()),
            power_on: spec.machine.power_on,
            restart_token: spec.machine.restart_token.clone(),
            finalize: spec.finalize.policy,
            approved: spec.finalize.approved.clone(),
            answered: spec.finalize.answered_boot.clone(),
            integrity: spec.integrity,
            kms_rearm: spec.kms.as_ref().is_some_and(|k| k.rearm),
            purpose: spec.purpose,
            steps: spec.steps.clone(),
            deletion: spec.deletion_policy,
            suspend: spec.suspend,
            layer_name,
        }
    }

    /// Name of the packaging machine: what a person looks for.
    pub fn machine_name(&self) -> String {
        format!("{} {} packaging", self.layer_name, self.version)
    }

    /// The command that approves a version, as a person would type it.
    pub fn approve_command(&self, version: &str) -> String {
        let approved = json!({"spec": {"finalize": {"approved": version}}});
        self.patch_command(" --field-manager lamina-approval", &approved)
    }

    /// The command that answers for the steps of this boot, and approves the version with it.
    pub fn answer_command(&self, version: &str, boot: &str) -> String {
        let answered = json!({"spec": {"finalize": {"approved": version, "answeredBoot": boot}}});
        self.patch_command(" --field-manager lamina-approval", &answered)
    }

    pub fn restart_command(&self) -> String {
        self.patch_command("", &json!({"spec": {"machine": {"restartToken": "<a new value>"}}}))
    }

    /// Names of objects are harmless in a shell; what is patched may be any text, and is typed into one.
    fn patch_command(&self, options: &str, patch: &Value) -> String {
        let quoted = patch.to_string().replace('\'', r"'\''");
        format!("kubectl patch platformlayer {} -n {} --type merge{options} -p '{quoted}'", self.name, self.namespace)
    }
}

/// A file name that is legal on Windows and Linux, made of a layer's name.
fn legal_file_name(name: &str) -> String {
    let replaced: String =
        name.chars().map(|c| if c.is_control() || "<>:\"/\\|?*".contains(c) { '-' } else { c }).collect();
    let trimmed = replaced.trim_end_matches([' ', '.']);
    let stem = trimmed.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let device = matches!(stem.as_str(), "con" | "prn" | "aux" | "nul")
        || (stem.len() == 4
            && (stem.starts_with("com") || stem.starts_with("lpt"))
            && stem.ends_with(|c: char| c.is_ascii_digit()));
    match trimmed {
        "" => "layer".to_owned(),
        taken if device => format!("{taken}-layer"),
        fine => fine.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell hands kubectl the very text, and runs nothing of it.
    #[test]
    fn printed_commands_survive_a_shell() {
        let layer = json!({
            "apiVersion": "lamina.dev/v1alpha1", "kind": "PlatformLayer", "metadata": {"name": "pvs", "namespace": "lab"},
            "spec": {"version": "1", "purpose": "Packaging", "connectorRef": {"name": "lab"},
                "osLayer": {"name": "w", "version": "1", "disk": {"name": "w"}}},
        });
        let want = Want::of(&serde_json::from_value(layer).expect("a layer"));
        let version = r#"it's "1" $(echo run) `echo run` \n {x}"#;
        let script = format!("kubectl() {{ printf '%s\n' \"$@\"; }}; {}", want.approve_command(version));
        let ran = std::process::Command::new("sh").args(["-c", &script]).output().expect("a shell");
        let told = String::from_utf8(ran.stdout).expect("text");
        let words: Vec<&str> = told.lines().collect();
        assert_eq!(words[..7], ["patch", "platformlayer", "pvs", "-n", "lab", "--type", "merge"]);
        let patch: Value = serde_json::from_str(words.last().expect("a patch")).expect("JSON");
        assert_eq!(patch, json!({"spec": {"finalize": {"approved": version}}}));
        let plain = r#"kubectl patch platformlayer pvs -n lab --type merge --field-manager lamina-approval -p '{"spec":{"finalize":{"approved":"1"}}}'"#;
        assert_eq!(want.approve_command("1"), plain);
    }

    #[test]
    fn layer_names_become_legal_file_names() {
        for (name, file) in [
            ("a/b:c", "a-b-c"),
            ("end. ", "end"),
            ("NUL", "NUL-layer"),
            ("com1.x", "com1.x-layer"),
            ("...", "layer"),
            ("Citrix PVS", "Citrix PVS"),
        ] {
            assert_eq!(legal_file_name(name), file);
        }
    }
}
