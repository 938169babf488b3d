//! How the task of a layer's last step ended. Steps without an intent (resize, insert, destroy …) are told of by nothing else.
//!
//! Called by `layer` before each step, and after one that was refused.

use super::context::Context;
use super::pool::Pool;
use super::trouble;
use crate::domain::plan::Step;
use crate::xapi::error::Error;
use crate::xapi::model::TaskStatus;
use crate::xapi::view::View;
use crate::xapi::wire::{Failure, Ref};

/// What is as wanted already (a drive that is empty, a machine that is off) shows in the next decision.
const AS_WANTED: [&str; 5] =
    ["VBD_IS_EMPTY", "VBD_NOT_EMPTY", "VM_BAD_POWER_STATE", "DEVICE_ALREADY_DETACHED", "HANDLE_INVALID"];

/// Looks whether the last step's task is over, and remembers how. The ended task goes: a pool keeps few, and others need the room. `sr`:
/// uuid of the storage repository of what is in work. Once one refused to change a disk its rows are in doubt.
pub async fn settle(ctx: &Context, pool: &Pool, view: &View, layer: &str, sr: &str) {
    let Some((step, task)) = pool.memory().last_task(layer) else { return };
    let Some(record) = view.tasks.get(&task).filter(|t| !t.status.is_at_work()) else { return };
    let failed = record.status == TaskStatus::Failure;
    let failure = failed.then(|| Failure::from_list(&record.error_info)).flatten();
    let refused = failure.filter(|f| !AS_WANTED.contains(&f.code.as_str()));
    let sr = sr_of(&step, view).unwrap_or(sr);
    let doubted = refused.as_ref().is_some_and(trouble::is_of_storage).then_some(sr);
    let trouble = refused.as_ref().map(trouble::of_failure);
    pool.memory().ended(layer, trouble, doubted, ctx.pace.now(), |failures| ctx.pace.backoff(failures));
    if let Err(error) = pool.client.write().task_destroy(&task).await {
        tracing::debug!(error = %crate::telemetry::chain(&error), "a finished task stays until the pool collects it");
    }
}

/// A stream has its answer at once, and no task that `settle` could look at. Remembered alike: a row that came back with a pool that died is
/// to be scanned for, not streamed to for ever.
pub fn refused(ctx: &Context, pool: &Pool, view: &View, layer: &str, step: &Step, error: &Error) {
    let Some(sr) = sr_of(step, view).filter(|_| error.failure().is_some_and(trouble::is_of_storage)) else { return };
    let (mut memory, now) = (pool.memory(), ctx.pace.now());
    memory.did(layer, step, None, now);
    memory.ended(layer, Some(trouble::of_step(step, error)), Some(sr), now, |failures| ctx.pace.backoff(failures));
}

/// Remembers a step that was carried out. With no task that could tell more, what it was refused with before is over.
pub fn did(ctx: &Context, pool: &Pool, layer: &str, step: &Step, task: Option<Ref>) {
    let (mut memory, now, over) = (pool.memory(), ctx.pace.now(), task.is_none());
    // Who does nothing waits for the task of the step before, and is to hear how it ends.
    if *step == Step::Nothing && memory.last_task(layer).is_some() {
        return;
    }
    memory.did(layer, step, task, now);
    if over {
        memory.ended(layer, None, None, now, |failures| ctx.pace.backoff(failures));
    }
}

/// Uuid of the repository of the disk that a step destroys, or streams to or from.
fn sr_of<'a>(step: &Step, view: &'a View) -> Option<&'a str> {
    let (Step::DestroyWork { disk, .. }
    | Step::DestroyConfig { disk }
    | Step::FillConfig { disk }
    | Step::ReadConfig { disk, .. }
    | Step::WipeConfig { disk }
    | Step::DestroyFrozen { disk }
    | Step::DestroyBase { disk }) = step
    else {
        return None;
    };
    let (_, vdi) = view.vdis.by_uuid(disk)?;
    Some(view.srs.get(&vdi.sr)?.uuid.as_str())
}

/// Is this very step still at work on the pool?
pub fn is_under_way(pool: &Pool, view: &View, layer: &str, step: &Step) -> bool {
    let last = pool.memory().last_task(layer).filter(|(last, _)| last == step);
    last.and_then(|(_, task)| view.tasks.get(&task)).is_some_and(|t| t.status.is_at_work())
}
