//! Machine slots of a Connector: who has one, and whose turn is next. Oldest layer first.
//!
//! Asked by `layer` before anything is made for a version. What counts is what status records; a grant is remembered until status shows it,
//! so that two layers cannot take the last slot at once. `roster` wakes whose turn it is when slots come free.

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
        let granted = |l: &PlatformLayer| l.metadata.uid.as_ref().is_some_and(|uid| self.0.contains(uid));
        let holders: Vec<&PlatformLayer> = others().filter(|l| in_work(l) || granted(l)).collect();
        // Free slots are kept for those that wait longer, and no more than these need: nobody is woken again for the rest.
        let older = |l: &&PlatformLayer| waits(l) && l.metadata.creation_timestamp < layer.metadata.creation_timestamp;
        let before_us = others().filter(older).filter(|l| !granted(l)).count();
        if holders.len() + before_us < limit {
            self.0.insert(uid);
            return Ok(());
        }
        let mut names: Vec<String> = holders.iter().filter(|l| rests(l)).map(|l| l.name_any()).collect();
        names.sort();
        Err(if names.is_empty() { format!("{} layers in work", holders.len()) } else { names.join(", ") })
    }

    /// Whose turn it is: of those that wait the oldest, as many as slots are free. `all`: the layers of a Connector.
    pub fn due<'a>(
        &self,
        all: impl Iterator<Item = &'a PlatformLayer> + Clone,
        limit: usize,
    ) -> Vec<&'a PlatformLayer> {
        let granted = |l: &PlatformLayer| l.metadata.uid.as_ref().is_some_and(|uid| self.0.contains(uid));
        let held = all.clone().filter(|l| in_work(l) || granted(l)).count();
        let mut waiting: Vec<_> = all.filter(|l| waits(l) && !granted(l)).collect();
        waiting.sort_by_key(|l| (&l.metadata.creation_timestamp, &l.metadata.uid));
        waiting.truncate(limit.saturating_sub(held));
        waiting
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

/// Does it not go on by itself? Whoever waits for its slot is told whom to ask.
fn rests(layer: &PlatformLayer) -> bool {
    let told = |type_| condition(layer, type_).is_some();
    layer.spec.suspend || told(ConditionType::ActionRequired) || told(ConditionType::Stalled)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn layer(name: &str, second: u32, waits: bool) -> PlatformLayer {
        let conditions = json!([{"type": "Ready", "status": "False", "reason": "WaitingForSlot", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        let status = if waits { json!({"phase": "Pending", "conditions": conditions}) } else { json!(null) };
        let layer = json!({
            "apiVersion": "lamina.dev/v1alpha1", "kind": "PlatformLayer",
            "metadata": {"name": name, "uid": name, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
            "spec": {"version": "1", "purpose": "Packaging", "connectorRef": {"name": "lab"},
                "osLayer": {"name": "w", "version": "1", "disk": {"name": "w"}}},
            "status": status,
        });
        serde_json::from_value(layer).expect("a layer")
    }

    /// Nobody is woken a second time because another one took less than there is.
    #[test]
    fn an_older_layer_that_waits_keeps_one_slot_and_no_more() {
        let all = [layer("old", 1, true), layer("young", 2, true), layer("new", 3, false)];
        let mut slots = Slots::default();
        assert!(slots.ask(&all[1], all.iter(), 1).is_err(), "the older one's turn");
        assert_eq!(slots.ask(&all[1], all.iter(), 2), Ok(()));
        assert!(slots.ask(&all[2], all.iter(), 2).is_err());
        assert_eq!(slots.ask(&all[0], all.iter(), 2), Ok(()));
        assert!(slots.ask(&all[2], all.iter(), 2).is_err());
        assert_eq!(slots.ask(&all[2], all.iter(), 3), Ok(()));
    }

    /// Two that end in one moment are told of one after the other, and the first one's slot may not be taken yet.
    #[test]
    fn as_many_are_due_as_slots_are_free() {
        let work = json!({"phase": "DiskCreated", "operation": {"step": "x"}});
        let mut busy = layer("busy", 0, false);
        busy.status = serde_json::from_value(work).expect("a status");
        let all = [layer("third", 3, true), busy, layer("second", 2, true), layer("first", 1, true)];
        let due =
            |slots: &Slots, limit| slots.due(all.iter(), limit).into_iter().map(|l| l.name_any()).collect::<Vec<_>>();
        let mut slots = Slots::default();
        assert_eq!(due(&slots, 1), [""; 0]);
        assert_eq!(due(&slots, 3), ["first", "second"]);
        assert_eq!(due(&slots, 9), ["first", "second", "third"]);
        assert_eq!(slots.ask(&all[3], all.iter(), 3), Ok(()));
        assert_eq!(due(&slots, 3), ["second"], "the first one has its slot");
    }

    /// Nothing but a person frees the slots of these.
    #[test]
    fn holders_that_do_not_go_on_are_named() {
        let mut all =
            [layer("stalled", 1, false), layer("suspended", 2, false), layer("busy", 3, false), layer("new", 4, false)];
        for (holder, reason) in all[..3].iter_mut().zip(["DiskLost", "Suspended", "CreatingDisk"]) {
            let type_ = if reason == "DiskLost" { "Stalled" } else { "Ready" };
            let status = json!({"phase": "DiskCreated", "operation": {"step": "x"}, "conditions": [{"type": type_, "status": "True",
                "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
            holder.status = serde_json::from_value(status).expect("a status");
        }
        all[1].spec.suspend = true;
        assert_eq!(Slots::default().ask(&all[3], all.iter(), 3), Err("stalled, suspended".to_owned()));
    }
}
