//! Machine slots of a Connector: who has one, and whose turn is next. Oldest layer first.
//!
//! Asked by `layer` before anything is made for a version. What counts is what status records; a grant is remembered until status shows it,
//! so that two layers cannot take the last slot at once. `roster` wakes the next one when a slot comes free.

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
    pub fn ask<'a>(
        &mut self,
        layer: &PlatformLayer,
        all: impl Iterator<Item = &'a PlatformLayer> + Clone,
        limit: usize,
    ) -> Result<(), String> {
        let uid = layer.uid().unwrap_or_default();
        if in_work(layer) {
            self.0.remove(&uid);
            return Ok(());
        }
        if self.0.contains(&uid) {
            return Ok(());
        }
        let others = || all.clone().filter(|l| l.metadata.uid.as_ref() != Some(&uid));
        let holders: Vec<&PlatformLayer> = others()
            .filter(|l| in_work(l) || l.metadata.uid.as_ref().is_some_and(|uid| self.0.contains(uid)))
            .collect();
        let older_waits =
            others().any(|l| waits(l) && l.metadata.creation_timestamp < layer.metadata.creation_timestamp);
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
pub fn in_work(layer: &PlatformLayer) -> bool {
    layer.status.as_ref().is_some_and(|s| {
        s.phase != Some(Phase::Finalized) && (s.disk.is_some() || s.machine.is_some() || s.operation.is_some())
    })
}

fn condition(layer: &PlatformLayer, type_: ConditionType) -> Option<&str> {
    find(&layer.status.as_ref()?.conditions, type_).map(|c| c.reason.as_str())
}

/// Is it in the queue, as its status says?
pub fn waits(layer: &PlatformLayer) -> bool {
    layer.metadata.deletion_timestamp.is_none()
        && condition(layer, ConditionType::Ready) == Some(Reason::WaitingForSlot.as_str())
}

/// Whose turn it is: the oldest that waits.
pub fn next<'a>(all: impl Iterator<Item = &'a PlatformLayer>) -> Option<&'a PlatformLayer> {
    all.filter(|l| waits(l)).min_by_key(|l| (&l.metadata.creation_timestamp, &l.metadata.uid))
}

fn awaits_person(layer: &PlatformLayer) -> bool {
    condition(layer, ConditionType::ActionRequired).is_some()
}
