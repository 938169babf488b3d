//! What the user wants, parsed: the spec of a layer with its defaults filled in.
//!
//! Built by `controller::layer` from the stored object; nothing below it looks at the raw spec again.

pub use crate::api::layer::{BaseFrom, DeletionPolicy, FinalizePolicy, IntegrityPolicy};
use crate::api::layer::{DiskFormat, PlatformLayer};
use crate::api::quantity;

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
    pub integrity: IntegrityPolicy,
    pub kms_rearm: bool,
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
            integrity: spec.integrity,
            kms_rearm: spec.kms.as_ref().is_some_and(|k| k.rearm),
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
        format!(
            "kubectl patch platformlayer {} -n {} --type merge --field-manager lamina-approval \
             -p '{{\"spec\":{{\"finalize\":{{\"approved\":\"{version}\"}}}}}}'",
            self.name, self.namespace
        )
    }

    pub fn restart_command(&self) -> String {
        format!(
            "kubectl patch platformlayer {} -n {} --type merge -p '{{\"spec\":{{\"machine\":{{\"restartToken\":\"<a new value>\"}}}}}}'",
            self.name, self.namespace
        )
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
    use super::legal_file_name;

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
