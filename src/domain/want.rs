//! What the user wants, parsed: the spec of a layer with its defaults filled in.
//!
//! Built by `controller::layer` from the stored object; nothing below it looks at the raw spec again.

pub use crate::api::layer::{BaseFrom, DeletionPolicy, FinalizePolicy, IntegrityPolicy};

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
