//! Tasks: what a call is while it runs, and for `Async.` calls afterwards (xapi.md 4.1, 14).
//!
//! Called by `rpc` around every action, and by the rooms of the world for sub-tasks and for waiting in a queue. A task is a hint
//! only: it may be collected or lost while its work goes on.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::db::Db;
use super::schema::Type;
use super::{Answer, Call, Pool, session, xmlrpc};
use crate::xapi::wire::{Failure, Ref, parse_time};

/// Above so many tasks in the pool finished ones go early (xapi.md 4.1).
const KEPT: usize = 200;
/// Finished tasks go after this time (xapi.md 4.1).
const FINISHED_FOR: Duration = Duration::from_secs(65 * 60);
/// Tasks that pend without progress go after this time, whatever becomes of their work (xapi.md 4.1).
const PENDING_FOR: Duration = Duration::from_secs(24 * 3600);
/// More waiting threads than this are refused (xapi.md 4.2).
const WAITING: usize = 100;

/// Tasks that need more than their row.
#[derive(Default)]
pub struct Jobs {
    /// Calls that wait in a queue: only these can be cancelled.
    queued: Mutex<HashMap<Ref, CancellationToken>>,
    /// Pending tasks that were destroyed: their row goes when they end.
    doomed: Mutex<Vec<Ref>>,
}

/// Makes a pending task. `tags` are the request's `X-Http-Other-Config-…` headers, kept as `http:<name>`.
pub fn begin(pool: &Pool, label: &str, tags: &[(String, String)], parent: Option<&Ref>) -> Ref {
    let mut db = pool.db();
    let tags: serde_json::Map<String, Value> = tags.iter().map(|(k, v)| (format!("http:{k}"), json!(v))).collect();
    let mut fields = blank(pool, &db, label, "");
    fields.push(("other_config", Value::Object(tags)));
    fields.push(("subtask_of", json!(parent.cloned().unwrap_or_default())));
    db.create("task", fields)
}

fn blank(pool: &Pool, db: &Db, label: &str, description: &str) -> Vec<(&'static str, Value)> {
    vec![
        ("name_label", json!(label)),
        ("name_description", json!(description)),
        ("allowed_operations", json!(["cancel", "destroy"])),
        ("created", json!(pool.clock.stamp())),
        ("status", json!("pending")),
        ("resident_on", json!(master(db))),
        ("type", json!("<none/>")),
    ]
}

fn master(db: &Db) -> Ref {
    let pool = db.all("pool").next().map(|(r, _)| r.clone());
    pool.and_then(|p| db.link_to("pool", &p, "master").ok()).unwrap_or_default()
}

/// Writes a call's outcome into its task. A task that is gone, or destroyed meanwhile, is no concern.
pub fn finish(pool: &Pool, task: &Ref, answer: &Answer, kind: &Type) {
    let doomed = {
        let mut doomed = pool.jobs.doomed.lock().unwrap_or_else(PoisonError::into_inner);
        let before = doomed.len();
        doomed.retain(|t| t != task);
        doomed.len() != before
    };
    let mut db = pool.db();
    if doomed {
        return db.delete("task", task);
    }
    // The row may have been collected: then there is nobody to tell.
    let _ = db.update("task", task, |row| {
        let status = match answer {
            Ok(_) => "success",
            Err(failure) if failure.code == "TASK_CANCELLED" => "cancelled",
            Err(_) => "failure",
        };
        row.insert("status".into(), json!(status));
        row.insert("progress".into(), json!(1.0));
        row.insert("finished".into(), json!(pool.clock.stamp()));
        row.insert("current_operations".into(), json!({}));
        match answer {
            Ok(value) => row.insert("result".into(), json!(xmlrpc::fragment(value, kind))),
            Err(Failure { code, params }) => {
                let list: Vec<&String> = std::iter::once(code).chain(params).collect();
                row.insert("error_info".into(), json!(list))
            }
        };
    });
}

/// Waits in a queue on behalf of a task. Such a call shows nowhere but in its task, can be cancelled, and is lost with the
/// process (xapi.md 14, Queue and Tasks).
///
/// # Errors
/// `TASK_CANCELLED [task]` once somebody cancels it; `TOO_MANY_PENDING_TASKS []` where a hundred wait already.
pub async fn queue<T>(pool: &Pool, task: &Ref, wait: impl Future<Output = T>) -> Result<T, Failure> {
    let queued = || pool.jobs.queued.lock().unwrap_or_else(PoisonError::into_inner);
    let token = CancellationToken::new();
    {
        let mut queued = queued();
        if queued.len() >= WAITING {
            return Err(Failure::new::<String>("TOO_MANY_PENDING_TASKS", []));
        }
        queued.insert(task.clone(), token.clone());
    }
    let outcome = token.run_until_cancelled(wait).await;
    queued().remove(task);
    outcome.ok_or_else(|| Failure::new("TASK_CANCELLED", [task.as_str()]))
}

/// Forgets everything that only a process knows.
pub fn forget_all(pool: &Pool) {
    pool.jobs.queued.lock().unwrap_or_else(PoisonError::into_inner).clear();
    pool.jobs.doomed.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// One round of the daemon's collector: old finished tasks go, and in a pool with more than 200 nearly all of them.
pub fn collect(pool: &Pool) {
    let mut db = pool.db();
    let now = pool.clock.now();
    let mut finished: Vec<(jiff::Timestamp, Ref)> = db
        .all("task")
        .filter(|(_, row)| !matches!(row.get("status").and_then(Value::as_str), Some("pending" | "cancelling")))
        .map(|(r, row)| (row.get("finished").and_then(Value::as_str).and_then(parse_time).unwrap_or(now), r.clone()))
        .collect();
    let stale = |row: &super::schema::Record| {
        let created = row.get("created").and_then(Value::as_str).and_then(parse_time);
        let pending = matches!(row.get("status").and_then(Value::as_str), Some("pending" | "cancelling"));
        pending && created.is_some_and(|at| now.duration_since(at).unsigned_abs() > PENDING_FOR)
    };
    let stale: Vec<Ref> = db.all("task").filter(|(_, row)| stale(row)).map(|(r, _)| r.clone()).collect();
    stale.iter().for_each(|task| db.delete("task", task));
    finished.sort_by(|a, b| b.cmp(a));
    let keep = if db.count("task") > KEPT { KEPT.saturating_sub(finished.len()) } else { finished.len() };
    for (i, (at, task)) in finished.iter().enumerate() {
        let old = now.duration_since(*at).unsigned_abs() > FINISHED_FOR;
        if i >= keep || old {
            db.delete("task", task);
        }
    }
}

/// Runs the collector every second of the wall's clock, for as long as the daemon lives.
pub async fn collector(pool: Arc<Pool>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        collect(&pool);
        session::collect(&pool);
    }
}

/// The calls of class `task`.
pub fn call(pool: &Arc<Pool>, call: &Call) -> Option<Answer> {
    if call.class != "task" {
        return None;
    }
    let task = call.reference(0);
    let set = |field: &str| pool.db().set("task", &task, field, call.value(1).clone()).map(|()| json!(""));
    Some(match call.message {
        "create" => {
            let mut db = pool.db();
            let fields = blank(pool, &db, call.text(0), call.text(1));
            Ok(json!(db.create("task", fields)))
        }
        "cancel" => pool.db().get("task", &task).map(|_| ()).map(|()| {
            // A running one goes on, and its caller is told nothing (xapi.md 14, Tasks).
            if let Some(token) = pool.jobs.queued.lock().unwrap_or_else(PoisonError::into_inner).get(&task) {
                token.cancel();
            }
            json!("")
        }),
        "destroy" => destroy(pool, &task),
        // `finished` stays at the epoch when a client ends its own task (xapi.md 14, Async).
        "set_status" => set("status"),
        "set_progress" => set("progress"),
        "set_result" => set("result"),
        "set_error_info" => set("error_info"),
        _ => return None,
    })
}

fn destroy(pool: &Pool, task: &Ref) -> Answer {
    let mut db = pool.db();
    let pending = matches!(db.text("task", task, "status")?, "pending" | "cancelling");
    if pending {
        pool.jobs.doomed.lock().unwrap_or_else(PoisonError::into_inner).push(task.clone());
    } else {
        db.delete("task", task);
    }
    Ok(json!(""))
}
