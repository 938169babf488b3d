//! The machine's xenstore: the way out of a guest that the controller reads without touching the machine.
//!
//! Implemented by `windows` (xeniface, or the vendor's `xenstore_client`), by `memory`, and by simulated guests over their simulator. The
//! other channel, the config disk, is a volume like any other: its files are read by `Facts` and written by `Deeds`.

use crate::facts::{Facts, Seen, Volume};

/// The label of the config disk.
pub const LABEL: &str = "LAMINA";

/// The store did not answer as it should. A guest without drivers has no store at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("xenstore cannot {what}: {why}")]
pub struct StoreError {
    /// The call and its path, such as `write vm-data/lamina/boot`.
    pub what: String,
    pub why: String,
}

/// Paths are relative to the domain, without a slash at either end, such as `vm-data/lamina/nonce` or `domid`.
pub trait Store: Send + Sync {
    /// `None`: there is no such key.
    fn read(&self, path: &str) -> Result<Option<String>, StoreError>;

    /// Makes or replaces a key; missing ones above it are made. A value has at most 2 KiB.
    fn write(&self, path: &str, value: &str) -> Result<(), StoreError>;

    /// With everything below it; none there is fine.
    fn remove(&self, path: &str) -> Result<(), StoreError>;
}

/// The mounted config disk, if there is one: a volume with our label, and of several the one that is FAT, as we made it.
pub fn config_disk(facts: &dyn Facts) -> Seen<Option<Volume>> {
    let fat = |v: &Volume| v.file_system.to_ascii_uppercase().starts_with("FAT");
    let ours = facts.volumes()?.into_iter().filter(|v| v.label.eq_ignore_ascii_case(LABEL));
    Ok(ours.min_by_key(|v| !fat(v)))
}
