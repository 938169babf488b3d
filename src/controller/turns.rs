//! Layers that are made from the same disk take turns at it, and those of a Connector at the few streams of its pool: first come, first
//! served (life.md 2.1).
//!
//! Called by `layer`; `context` keeps them. The mark on a disk is what keeps two layers apart: a process that begins anew knows no lines.

use std::collections::{HashMap, VecDeque};
use std::sync::{MutexGuard, PoisonError};

use kube::ResourceExt;

use super::context::{Context, connector_of};
use super::observe::Scene;
use crate::api::PlatformLayer;
use crate::domain::observed::{Flight, Making, MarkSight};
use crate::domain::plan::{Next, Plan, Step};
use crate::xapi::client::TRANSFERS_IN_FLIGHT;

/// So begin the names of the lines for streams, one for each pool, among those at disks, which are named by their uuids.
pub const STREAMS: &str = "streams of ";

/// Who is at each disk, and who is in line there.
#[derive(Default)]
pub struct Turns(HashMap<String, Source>);

#[derive(Default)]
struct Source {
    holders: Vec<String>,
    waiting: VecDeque<String>,
}

impl Turns {
    /// Is it this layer's turn on the source, or would it be if it asked?
    pub fn may_take(&self, source: &str, layer: &str) -> bool {
        self.0.get(source).is_none_or(|s| s.holders.len() < room(source) || s.holders.iter().any(|l| l == layer))
    }

    /// uid of the layer whose turn it is on the source.
    pub fn holder(&self, source: &str) -> Option<&str> {
        self.0.get(source)?.holders.first().map(String::as_str)
    }

    /// Takes the turn, or gets in line for it.
    pub fn take(&mut self, source: &str, layer: &str) -> bool {
        let may = self.may_take(source, layer);
        let s = self.0.entry(source.to_owned()).or_default();
        if !s.holders.iter().chain(&s.waiting).any(|l| l == layer) {
            if may { s.holders.push(layer.to_owned()) } else { s.waiting.push_back(layer.to_owned()) }
        }
        may
    }

    /// Ends the layer's turns, and takes it out of every line, but for those that it wants. Returns those whose turn it is now.
    pub fn leave(&mut self, layer: &str, wanted: &[&str]) -> Vec<String> {
        let mut next = Vec::new();
        self.0.retain(|source, s| {
            if wanted.contains(&source.as_str()) {
                return true;
            }
            s.waiting.retain(|l| l != layer);
            s.holders.retain(|l| l != layer);
            while s.holders.len() < room(source)
                && let Some(first) = s.waiting.pop_front()
            {
                next.push(first.clone());
                s.holders.push(first);
            }
            !s.holders.is_empty()
        });
        next
    }
}

/// How many may be at it at a time.
fn room(source: &str) -> usize {
    if source.starts_with(STREAMS) { TRANSFERS_IN_FLIGHT } else { 1 }
}

/// At the end of a pass: whose turn it is and who does not want it passes it on, so that whoever was suspended or went wrong in line holds
/// nobody up.
pub fn settle(ctx: &Context, layer: &PlatformLayer, seen: Option<(&Scene, &Plan)>) {
    let uid = layer.uid().unwrap_or_default();
    let pool = ctx.pools.get(&connector_of(layer));
    let wanted: Vec<&str> = match seen {
        Some((scene, plan)) => {
            let streams = pool.as_ref().filter(|_| plan.next == Next::Stream).map(|pool| pool.streams.as_str());
            disk(scene, plan).into_iter().chain(streams).collect()
        }
        // Nobody can look now: whoever was at a disk is at it still.
        None => layer.status.iter().filter_map(|s| s.operation.as_ref()?.source.as_deref()).collect(),
    };
    pass_on(ctx, &uid, &wanted);
    let mine = wanted.iter().filter(|source| turns(ctx).take(source, &uid)).count();
    let waits = seen.is_some_and(|(_, plan)| matches!(plan.next, Next::Turn(_) | Next::Stream));
    // No event tells of a turn. This one came since it was looked at.
    if waits && mine == wanted.len() {
        ctx.wake(layer);
    }
}

/// A layer that is gone.
pub fn leave(ctx: &Context, uid: &str) {
    pass_on(ctx, uid, &[]);
}

fn turns(ctx: &Context) -> MutexGuard<'_, Turns> {
    ctx.turns.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The disk that it is at, or in line for.
fn disk<'a>(scene: &'a Scene, plan: &Plan) -> Option<&'a str> {
    let seen = &scene.observed;
    let made = |making| seen.flight(making).map(|f| f.source.as_str());
    match (&plan.next, &plan.step) {
        (_, Step::DropIntent) | (Next::Mark, _) => None,
        (Next::Turn(making), _) | (_, Step::RecordIntent(making)) => made(*making),
        _at_work => {
            // All who want a base share its operation, and pause together.
            let pauses =
                |f: &&Flight| f.refused.is_some() && f.mark != MarkSight::Ours && f.making != Making::SnapshotOsDisk;
            let intent = seen.records.operation.as_ref();
            let paused = intent.and_then(|i| seen.flights.iter().filter(pauses).find(|f| f.opid == i.opid));
            intent.filter(|_| paused.is_none()).map(|i| i.source.as_str())
        }
    }
}

fn pass_on(ctx: &Context, uid: &str, wanted: &[&str]) {
    let mut next = turns(ctx).leave(uid, wanted);
    let census = ctx.census();
    while let Some(uid) = next.pop() {
        match census.with_uid(&uid) {
            // Whoever wants it no more, as one that is led elsewhere by now, passes it on.
            Some(layer) => ctx.wake(layer),
            None => next.extend(turns(ctx).leave(&uid, &[])),
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
        assert_eq!(turns.leave("a", &["s"]), [""; 0], "it wants it still");
        assert_eq!(turns.leave("a", &["other"]), ["b"]);
        assert!(!turns.take("s", "c") && turns.take("s", "b"), "nobody pushes in");
        assert!(!turns.take("s", "a"));
        assert_eq!(turns.leave("c", &[]), [""; 0], "it has thought better of it");
        assert_eq!(turns.leave("b", &[]), ["a"]);
        assert_eq!(turns.leave("a", &[]), [""; 0]);
        assert!(turns.may_take("s", "c"));
    }
    #[test]
    fn two_stream_at_a_time() {
        let mut turns = Turns::default();
        assert!(turns.take(STREAMS, "a") && turns.take(STREAMS, "b") && !turns.take(STREAMS, "c"));
        assert_eq!(turns.leave("a", &[STREAMS]), [""; 0]);
        assert_eq!(turns.leave("a", &[]), ["c"]);
        assert!(!turns.take(STREAMS, "a") && turns.take(STREAMS, "c") && turns.take(STREAMS, "b"));
    }
}
