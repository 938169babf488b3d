//! Layers that are made from the same disk take turns at it: who waits, and who is told when a turn is over.
//!
//! Called by `layer`; `pool` remembers. Only wakes: whose turn it is, each pass asks for itself.

use kube::ResourceExt;

use super::context::Context;
use super::observe::Scene;
use super::pool::Pool;
use crate::api::PlatformLayer;
use crate::api::reason::Reason;
use crate::domain::plan::{Plan, Say};

/// Ends a layer's turns, and wakes those who waited for them.
pub fn leave(ctx: &Context, pool: &Pool, uid: &str) {
    let next = pool.memory().leave_sources(uid);
    let census = ctx.census();
    next.iter().filter_map(|uid| census.with_uid(uid)).for_each(|layer| ctx.wake(layer));
}

/// Has a layer that waits for others told when they are done. No event does: that their status names no operation any more is none of the
/// pool's.
pub fn wait(ctx: &Context, layer: &PlatformLayer, pool: &Pool, scene: &Scene, plan: &Plan) {
    if !matches!(&plan.say, Say::Working(Reason::WaitingForMark, _)) {
        return;
    }
    let uid = layer.uid().unwrap_or_default();
    let mut memory = pool.memory();
    for flight in scene.observed.flights.iter().filter(|f| !f.turn) {
        // Over since it was looked at.
        if !memory.wait_for_turn(&flight.source, &uid) {
            ctx.wake(layer);
        }
    }
}
