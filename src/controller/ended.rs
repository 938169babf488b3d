//! How the task of a layer's last step ended. Steps without an intent (resize, insert, destroy …) are told of by nothing else.
//!
//! Called by `layer` before each step.

use super::context::Context;
use super::pool::Pool;
use super::trouble;
use crate::domain::observed::Trouble;
use crate::xapi::model::TaskStatus;
use crate::xapi::view::View;
use crate::xapi::wire::Failure;

/// What is as wanted already (a drive that is empty, a machine that is off) shows in the next decision.
const AS_WANTED: [&str; 5] =
    ["VBD_IS_EMPTY", "VBD_NOT_EMPTY", "VM_BAD_POWER_STATE", "DEVICE_ALREADY_DETACHED", "HANDLE_INVALID"];

/// What the pool refused the last step with. The ended task goes: a pool keeps few, and others need the room. `sr`: uuid of the storage
/// repository, whose rows are in doubt once it refused to change a disk.
pub async fn refused(ctx: &Context, pool: &Pool, view: &View, layer: &str, sr: &str) -> Option<Trouble> {
    let task = pool.memory().last_task(layer)?;
    let record = view.tasks.get(&task).filter(|t| !matches!(t.status, TaskStatus::Pending | TaskStatus::Cancelling))?;
    pool.memory().task_ended(layer);
    if let Err(error) = pool.client.write().task_destroy(&task).await {
        tracing::debug!(error = %crate::telemetry::chain(&error), "a finished task stays until the pool collects it");
    }
    let failed = record.status == TaskStatus::Failure;
    let failure = failed.then(|| Failure::from_list(&record.error_info)).flatten()?;
    if AS_WANTED.contains(&failure.code.as_str()) {
        return None;
    }
    let doubted = failure.code.starts_with("SR_BACKEND_FAILURE_").then_some(sr);
    pool.memory().refused(layer, doubted, ctx.pace.now());
    Some(trouble::of_failure(&failure))
}
