//! What `status.history` keeps: each phase that a layer came to, and what that means for whoever reads it later.
//!
//! Pure; called by `status`. Ready's message tells what is going on now and grows old with it, so it is not what is kept.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::layer_status::{HistoryEntry, MAX_HISTORY};
use crate::api::reason::Reason;
use crate::api::{Phase, PlatformLayer, PlatformLayerStatus};

/// Adds an entry to `new` if it is in another phase than `before`.
pub fn note(layer: &PlatformLayer, before: Option<Phase>, new: &mut PlatformLayerStatus, reason: Reason, now: &Time) {
    let Some(phase) = new.phase.filter(|phase| before != Some(*phase)) else { return };
    let entry = HistoryEntry {
        at: now.clone(),
        phase,
        reason: reason.as_str().to_owned(),
        message: Some(meaning(&layer.spec.version, phase, new)),
        // Once for each version: with its first entry.
        comment: layer.spec.comment.clone().filter(|_| phase == Phase::Pending),
    };
    new.history.push(entry);
    let surplus = new.history.len().saturating_sub(MAX_HISTORY);
    new.history.drain(..surplus);
}

/// What it means that a version came to this phase, naming what is there then.
fn meaning(version: &str, phase: Phase, status: &PlatformLayerStatus) -> String {
    let named = |name: Option<&String>, uuid: Option<&String>| match (name, uuid) {
        (Some(name), Some(uuid)) => format!(" '{name}' ({uuid})"),
        (None, Some(uuid)) => format!(" {uuid}"),
        (_, None) => String::new(),
    };
    let disk = named(status.disk.as_ref().and_then(|d| d.name.as_ref()), status.disk.as_ref().map(|d| &d.uuid));
    let machine =
        named(status.machine.as_ref().and_then(|m| m.name.as_ref()), status.machine.as_ref().map(|m| &m.uuid));
    match phase {
        Phase::Pending => format!("version '{version}' was begun; it has no packaging disk yet"),
        Phase::DiskCreated => {
            let storage = status.disk.as_ref().and_then(|d| d.storage_repository.as_ref());
            let place = storage.map_or(String::new(), |name| format!(" in storage repository '{name}'"));
            format!("packaging disk{disk} of version '{version}' was made{place}; nothing is installed on it yet")
        }
        Phase::MachineRunning => {
            format!("machine{machine} was started: software can be installed in version '{version}'")
        }
        Phase::AwaitingFinalize => {
            format!("machine{machine} was switched off: version '{version}' can be checked, approved and frozen")
        }
        Phase::Finalized => {
            let frozen = status.versions.iter().find(|v| v.version == version).map(|v| format!(" as disk {}", v.disk));
            format!(
                "version '{version}' is frozen{}; its machine and packaging disk are removed",
                frozen.unwrap_or_default()
            )
        }
    }
}
