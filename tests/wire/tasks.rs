//! Tasks: xapi.md 4.1 and 14 (Async, Tags on tasks, Tasks).

use super::{Raw, failure};
use serde_json::{Value, json};

async fn tagged(raw: &Raw, method: &str, params: Value, tags: &[(&str, &str)]) -> Value {
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": raw.with_session(params)});
    let mut post = raw.http.post(raw.url() + "/jsonrpc").json(&request);
    for (name, value) in tags {
        post = post.header(format!("X-Http-Other-Config-{name}"), *value);
    }
    post.send().await.unwrap().json::<Value>().await.unwrap()["result"].clone()
}

/// The task's record once it is no longer pending.
async fn ended(raw: &Raw, task: &Value) -> Value {
    let mut token = json!("");
    loop {
        let batch =
            raw.call("event.from", json!([[format!("task/{}", task.as_str().unwrap())], token, 10.0])).await.unwrap();
        let last = batch["events"].as_array().unwrap().last().cloned().expect("the task ends in time");
        if last["snapshot"]["status"] != "pending" {
            return last["snapshot"].clone();
        }
        token = batch["token"].clone();
    }
}

/// xapi.md 14: the headers are in the task's other_config, lower-cased, the first of equals; the name says `Async.`.
#[tokio::test]
async fn an_asynchronous_call_is_a_tagged_task() {
    let raw = Raw::new().await;
    let tags = [("Some-Op", "1"), ("some-op", "2"), ("x", "y")];
    let task = tagged(&raw, "Async.pool.sync_database", json!([]), &tags).await;
    let record = ended(&raw, &task).await;
    assert_eq!(record["other_config"], json!({"http:some-op": "1", "http:x": "y"}));
    assert_eq!((&record["name_label"], &record["status"]), (&json!("Async.pool.sync_database"), &json!("success")));
    assert_eq!((&record["progress"], &record["type"], &record["result"]), (&json!(1.0), &json!("<none/>"), &json!("")));
    assert_eq!(raw.call("task.get_status", json!([task])).await, Ok(json!("success")));
    raw.call("task.destroy", json!([task])).await.unwrap();
    let gone = raw.call("task.get_status", json!([task])).await;
    assert_eq!(gone, failure(["HANDLE_INVALID", "task", task.as_str().unwrap()]));
}

/// xapi.md 4.1: a failure is a list of code and parameters, the same as the synchronous one.
#[tokio::test]
async fn a_failed_task_tells_why() {
    let raw = Raw::new().await;
    let task = tagged(&raw, "Async.VDI.destroy", json!(["OpaqueRef:x"]), &[]).await;
    let record = ended(&raw, &task).await;
    assert_eq!(
        (&record["status"], &record["error_info"]),
        (&json!("failure"), &json!(["HANDLE_INVALID", "VDI", "OpaqueRef:x"]))
    );
}

/// xapi.md 14, Async: a client's own task; `finished` stays at the epoch.
#[tokio::test]
async fn a_clients_own_task_keeps_its_epoch() {
    let raw = Raw::new().await;
    let task = raw.call("task.create", json!(["mine", "text"])).await.unwrap();
    raw.call("task.set_status", json!([task, "success"])).await.unwrap();
    raw.call("task.set_progress", json!([task, "0.5"])).await.unwrap();
    let record = raw.call("task.get_record", json!([task])).await.unwrap();
    assert_eq!((&record["status"], &record["progress"]), (&json!("success"), &json!(0.5)));
    assert_eq!(record["finished"], "19700101T00:00:00Z");
}

/// xapi.md 14, Tasks: cancel does nothing to a running task; destroy marks a pending one, and lets it run.
#[tokio::test]
async fn a_pending_task_outlives_its_destruction() {
    let raw = Raw::new().await;
    let pool = &raw.sim.pool;
    let task = lamina::sim::task::begin(pool, "Async.VM.start", &[], None);
    raw.call("task.cancel", json!([task])).await.unwrap();
    raw.call("task.destroy", json!([task])).await.unwrap();
    assert_eq!(raw.call("task.get_status", json!([task])).await, Ok(json!("pending")));
    lamina::sim::task::finish(pool, &task, &Ok(json!("")), &lamina::sim::schema::Type::Void);
    assert_eq!(raw.call("task.get_status", json!([task])).await, failure(["HANDLE_INVALID", "task", task.as_str()]));
}

/// xapi.md 14, Tasks: one that waits in a queue is cancelled, and only such a one.
#[tokio::test]
async fn a_queued_task_can_be_cancelled() {
    let raw = Raw::new().await;
    let pool = std::sync::Arc::clone(&raw.sim.pool);
    let task = lamina::sim::task::begin(&pool, "Async.VDI.clone", &[], None);
    let waiting = tokio::spawn({
        let task = task.clone();
        async move { lamina::sim::task::queue(&pool, &task, std::future::pending::<()>()).await }
    });
    tokio::task::yield_now().await;
    raw.call("task.cancel", json!([task])).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap_err().to_string(), format!("TASK_CANCELLED [\"{task}\"]"));
}

/// xapi.md 4.1, Garbage: above 200 tasks finished ones go; the number kept is 200 less the finished.
#[tokio::test]
async fn a_busy_pool_drops_finished_tasks() {
    let raw = Raw::new().await;
    let pool = &raw.sim.pool;
    let tasks: Vec<_> = (0..201).map(|i| lamina::sim::task::begin(pool, &format!("t{i}"), &[], None)).collect();
    for task in &tasks[..150] {
        lamina::sim::task::finish(pool, task, &Ok(json!("")), &lamina::sim::schema::Type::Void);
    }
    lamina::sim::task::collect(pool);
    assert_eq!(pool.db().count("task"), 51 + 50);
}

/// xapi.md 14, Tags on tasks: a synchronous call has such a task while it runs, and goes on when the caller hangs up.
#[tokio::test]
async fn a_synchronous_call_outlives_its_caller() {
    let raw = Raw::new().await;
    let pool = &raw.sim.pool;
    let source = {
        let db = pool.db();
        let usable = |row: &Value| row["managed"] == true && row["is_tools_iso"] == false && row["type"] == "user";
        let mut disks = db.all("VDI").map(|(r, row)| (r.to_string(), Value::Object(row.clone())));
        disks
            .find(|(_, row)| usable(row) && row["name_label"].as_str().is_some_and(|n| !n.ends_with(".iso")))
            .unwrap()
            .0
    };
    pool.clock.hold("VDI.snapshot/");
    let mut call = Box::pin(tagged(&raw, "VDI.snapshot", json!([source]), &[("op", "1")]));
    tokio::select! {
        _ = &mut call => panic!("the stage is held"),
        _ = pool.clock.held("VDI.snapshot/") => {}
    }
    let tasks = raw.call("task.get_all_records", json!([])).await.unwrap();
    let task = tasks.as_object().unwrap().values().next().unwrap();
    assert_eq!((&task["name_label"], &task["other_config"]), (&json!("VDI.snapshot"), &json!({"http:op": "1"})));
    drop(call);
    pool.clock.unhold("VDI.snapshot/");
    let made = || pool.db().links("VDI", &lamina::xapi::wire::Ref(source.clone()), "snapshots").unwrap().len() == 1;
    let mut changed = pool.db().watch();
    while !made() || pool.db().count("task") > 0 {
        tokio::time::timeout(std::time::Duration::from_secs(10), changed.changed()).await.unwrap().unwrap();
    }
}

/// xapi.md 4.2: more than a hundred waiting calls are refused; those that wait go on.
#[tokio::test]
async fn a_hundred_calls_may_wait() {
    let raw = Raw::new().await;
    let pool = &raw.sim.pool;
    let disks = raw.call("VDI.get_by_name_label", json!(["win11-24h2"])).await.unwrap();
    pool.clock.hold("VDI.set_name_description/queued");
    let mut tasks = Vec::new();
    for _ in 0..101 {
        tasks.push(raw.call("Async.VDI.set_name_description", json!([disks[0], "d"])).await.unwrap());
    }
    raw.seen("a refusal", async || {
        let all = raw.call("task.get_all_records", json!([])).await.unwrap();
        all.as_object().unwrap().values().any(|row| row["status"] == "failure").then_some(())
    })
    .await;
    let mut outcomes = Vec::new();
    pool.clock.unhold("VDI.set_name_description/queued");
    for task in &tasks {
        let record = ended(&raw, task).await;
        outcomes.push((record["status"].clone(), record["error_info"].clone()));
    }
    let failed: Vec<_> = outcomes.iter().filter(|(status, _)| status != "success").collect();
    assert_eq!(failed, [&(json!("failure"), json!(["TOO_MANY_PENDING_TASKS"]))]);
}

/// xapi.md 4.1, Garbage: a task that is gone is unknown; its work goes on.
#[tokio::test]
async fn a_collected_task_leaves_its_work_to_go_on() {
    let raw = Raw::new().await;
    let pool = &raw.sim.pool;
    let disks = raw.call("VDI.get_by_name_label", json!(["win11-24h2"])).await.unwrap();
    pool.clock.hold("VDI.snapshot/running");
    let task = raw.call("Async.VDI.snapshot", json!([disks[0]])).await.unwrap();
    pool.clock.held("VDI.snapshot/running").await;
    let reference = lamina::xapi::wire::Ref(task.as_str().unwrap().to_owned());
    pool.db().delete("task", &reference);
    let gone = raw.call("task.get_status", json!([task])).await;
    assert_eq!(gone, failure(["HANDLE_INVALID", "task", reference.as_str()]));
    pool.clock.unhold("VDI.snapshot/running");
    let source = lamina::xapi::wire::Ref(disks[0].as_str().unwrap().to_owned());
    let mut changed = pool.db().watch();
    while pool.db().links("VDI", &source, "snapshots").unwrap().is_empty() {
        tokio::time::timeout(std::time::Duration::from_secs(10), changed.changed()).await.unwrap().unwrap();
    }
}

/// xapi.md 4.1, Garbage: finished for 65 minutes, or pending for a day without progress.
#[tokio::test]
async fn old_tasks_are_collected() {
    let raw = Raw::new().await;
    let pool = &raw.sim.pool;
    let [old, stale, fresh] = ["old", "stale", "fresh"].map(|label| lamina::sim::task::begin(pool, label, &[], None));
    let set = |task, field, value: Value| pool.db().set("task", task, field, value).unwrap();
    set(&old, "status", json!("success"));
    set(&old, "finished", json!("20200101T00:00:00Z"));
    set(&stale, "created", json!("20200101T00:00:00Z"));
    lamina::sim::task::collect(pool);
    assert!(pool.db().find("task", &old).is_none() && pool.db().find("task", &stale).is_none());
    assert!(pool.db().find("task", &fresh).is_some());
}
