//! Machine slots of a Connector: who has one, and whose turn is next. Oldest layer first.
//!
//! Asked by `layer` before anything is made for a version. What counts is what status records; a grant is remembered until status shows it,
//! so that two layers cannot take the last slot at once.

use std::collections::HashSet;

use kube::ResourceExt;

use crate::api::condition::{ConditionType, find};
use crate::api::reason::Reason;
use crate::api::{Phase, PlatformLayer};

/// Grants that no status shows yet, by uid of the layer.
#[derive(Default)]
pub struct Slots(HashSet<String>);

impl Slots {
    /// May this layer make a machine? `Err`: the names of those that hold the slots and await a person.
    pub fn ask(&mut self, layer: &PlatformLayer, all: &[PlatformLayer], limit: usize) -> Result<(), String> {
        let uid = layer.uid().unwrap_or_default();
        if in_work(layer) {
            self.0.remove(&uid);
            return Ok(());
        }
        if self.0.contains(&uid) {
            return Ok(());
        }
        let others = || all.iter().filter(|l| l.uid().as_ref() != Some(&uid));
        let holders: Vec<&PlatformLayer> =
            others().filter(|l| in_work(l) || self.0.contains(&l.uid().unwrap_or_default())).collect();
        let older_waits = others().any(|l| waits(l) && l.creation_timestamp() < layer.creation_timestamp());
        if holders.len() < limit && !older_waits {
            self.0.insert(uid);
            return Ok(());
        }
        let mut names: Vec<String> = holders.iter().filter(|l| awaits_person(l)).map(|l| l.name_any()).collect();
        names.sort();
        Err(if names.is_empty() { format!("{} layers in work", holders.len()) } else { names.join(", ") })
    }

    /// The layer is done, gone, or was never allowed in.
    pub fn give_back(&mut self, uid: &str) {
        self.0.remove(uid);
    }
}

/// Has, or is about to have, a machine on the pool.
fn in_work(layer: &PlatformLayer) -> bool {
    layer.status.as_ref().is_some_and(|s| {
        s.phase != Some(Phase::Finalized) && (s.disk.is_some() || s.machine.is_some() || s.operation.is_some())
    })
}

fn condition(layer: &PlatformLayer, type_: ConditionType) -> Option<&str> {
    find(&layer.status.as_ref()?.conditions, type_).map(|c| c.reason.as_str())
}

fn waits(layer: &PlatformLayer) -> bool {
    layer.metadata.deletion_timestamp.is_none()
        && condition(layer, ConditionType::Ready) == Some(Reason::WaitingForSlot.as_str())
}

fn awaits_person(layer: &PlatformLayer) -> bool {
    condition(layer, ConditionType::ActionRequired).is_some()
}
