//! Layers that are made from the same disk take turns at it, first come, first served (life.md 2.1).
//!
//! Called by `layer`; `pool` keeps them. The mark on the disk is what keeps two of them apart: a process that begins anew knows no lines.

use std::collections::{HashMap, VecDeque};

use kube::ResourceExt;

use super::context::{Context, connector_of};
use super::observe::Scene;
use super::pool::Pool;
use crate::api::PlatformLayer;
use crate::domain::plan::{Next, Plan, Step};

/// Who is at each disk, and who is in line there.
#[derive(Default)]
pub struct Turns(HashMap<String, Source>);

struct Source {
    holder: String,
    waiting: VecDeque<String>,
}

impl Turns {
    /// Is it this layer's turn on the source, or would it be if it asked?
    pub fn may_take(&self, source: &str, layer: &str) -> bool {
        self.0.get(source).is_none_or(|s| s.holder == layer)
    }

    /// uid of the layer whose turn it is on the source.
    pub fn holder(&self, source: &str) -> Option<&str> {
        Some(self.0.get(source)?.holder.as_str())
    }

    /// Takes the turn, or gets in line for it.
    pub fn take(&mut self, source: &str, layer: &str) -> bool {
        let begun = || Source { holder: layer.to_owned(), waiting: VecDeque::new() };
        let s = self.0.entry(source.to_owned()).or_insert_with(begun);
        let free = s.holder == layer;
        if !free && !s.waiting.iter().any(|l| l == layer) {
            s.waiting.push_back(layer.to_owned());
        }
        free
    }

    /// Ends the layer's turns, and takes it out of every line, but for the one that it wants. Returns those whose turn it is now.
    pub fn leave(&mut self, layer: &str, wanted: Option<&str>) -> Vec<String> {
        let mut next = Vec::new();
        self.0.retain(|source, s| {
            if Some(source.as_str()) == wanted {
                return true;
            }
            s.waiting.retain(|l| l != layer);
            if s.holder != layer {
                return true;
            }
            let Some(first) = s.waiting.pop_front() else { return false };
            next.push(first.clone());
            s.holder = first;
            true
        });
        next
    }
}

/// At the end of a pass: whose turn it is and who does not want it passes it on, so that whoever was suspended or went wrong in line holds
/// nobody up.
pub fn settle(ctx: &Context, layer: &PlatformLayer, seen: Option<(&Scene, &Plan)>) {
    let Some(pool) = ctx.pools.get(&connector_of(layer)) else { return };
    let uid = layer.uid().unwrap_or_default();
    let wanted = seen.and_then(|(scene, plan)| wanted(scene, plan));
    pass_on(ctx, &pool, &uid, wanted);
    let waits = seen.is_some_and(|(_, plan)| matches!(plan.next, Next::Turn(_)));
    // No event tells of a turn. This one came since it was looked at.
    if wanted.is_some_and(|source| pool.memory().turns.take(source, &uid)) && waits {
        ctx.wake(layer);
    }
}

/// A layer that is gone.
pub fn leave(ctx: &Context, pool: &Pool, uid: &str) {
    pass_on(ctx, pool, uid, None);
}

/// The disk that it is at, or in line for.
fn wanted<'a>(scene: &'a Scene, plan: &Plan) -> Option<&'a str> {
    let seen = &scene.observed;
    match (&plan.next, &plan.step) {
        (_, Step::DropIntent) => None,
        (Next::Turn(making), _) | (_, Step::RecordIntent(making)) => Some(seen.flight(*making)?.source.as_str()),
        _at_work => Some(seen.records.operation.as_ref()?.source.as_str()),
    }
}

fn pass_on(ctx: &Context, pool: &Pool, uid: &str, wanted: Option<&str>) {
    let mut next = pool.memory().turns.leave(uid, wanted);
    let census = ctx.census();
    while let Some(uid) = next.pop() {
        match census.with_uid(&uid) {
            Some(layer) => ctx.wake(layer),
            None => next.extend(pool.memory().turns.leave(&uid, None)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_at_a_disk_go_in_the_order_of_asking() {
        let mut turns = Turns::default();
        assert!(turns.take("s", "a") && turns.take("s", "a"));
        assert!(!turns.take("s", "b") && !turns.take("s", "c") && !turns.take("s", "b") && !turns.may_take("s", "b"));
        assert_eq!(turns.leave("a", Some("s")), [""; 0], "it wants it still");
        assert_eq!(turns.leave("a", Some("other")), ["b"]);
        assert!(!turns.take("s", "c") && turns.take("s", "b"), "nobody pushes in");
        assert!(!turns.take("s", "a"));
        assert_eq!(turns.leave("c", None), [""; 0], "it has thought better of it");
        assert_eq!(turns.leave("b", None), ["a"]);
        assert_eq!(turns.leave("a", None), [""; 0]);
        assert!(turns.may_take("s", "c"));
    }
}
