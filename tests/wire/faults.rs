//! Faults of the wire and the log of calls.

use std::time::Duration;

use super::{Raw, failure};
use lamina::sim::faults::{Effect, Fault, Target};
use lamina::xapi::wire::Failure;
use serde_json::json;

async fn note(raw: &Raw, effect: Effect) -> (bool, String, Option<String>) {
    let vm = raw.row("VM", "x");
    let number = raw.sim.pool.log.number() + 1;
    raw.sim.pool.faults.add(Fault { target: Target::Number(number), effect, times: Some(1) });
    let sent = raw.send("VM.set_name_description", raw.with_session(json!([vm, "done"]))).await;
    let now = raw.call("VM.get_name_description", json!([vm])).await.unwrap().as_str().unwrap().to_owned();
    let answered = sent.is_ok();
    // Once only.
    raw.call("VM.set_name_label", json!([vm, "y"])).await.unwrap();
    (answered, now, Some(vm))
}

/// xapi.md 1.1: a connection that is cut before its request was taken.
#[tokio::test]
async fn a_dropped_call_was_never_made() {
    let raw = Raw::new().await;
    let (answered, now, _) = note(&raw, Effect::Drop).await;
    assert!(!answered && now.is_empty());
}

/// xapi.md 14, Tags on tasks: a call goes on when its caller is gone.
#[tokio::test]
async fn a_cut_reply_hides_a_call_that_was_made() {
    let raw = Raw::new().await;
    for effect in [Effect::CutReply, Effect::TruncateReply] {
        let (answered, now, _) = note(&raw, effect).await;
        assert!(!answered && now == "done");
    }
}

/// xapi.md 4.2 and 14, Tags on tasks: a call that waits is made long after its caller hung up.
#[tokio::test]
async fn a_late_call_is_made_after_its_connection_died() {
    let raw = Raw::new().await;
    let (answered, now, vm) = note(&raw, Effect::ExecuteLate(Duration::from_millis(500))).await;
    assert!(!answered && now.is_empty());
    let vm = lamina::xapi::wire::Ref(vm.unwrap());
    let mut changed = raw.sim.pool.db().watch();
    let made = || raw.sim.pool.db().text("VM", &vm, "name_description").unwrap() == "done";
    while !made() {
        tokio::time::timeout(Duration::from_secs(5), changed.changed()).await.unwrap().unwrap();
    }
}

/// xapi.md 1.1: a reply that is cut in its middle, whose length was told.
#[tokio::test]
async fn a_truncated_reply_breaks_off_in_its_body() {
    let raw = Raw::new().await;
    let target = Target::Method("VM.get_all_records".into());
    raw.sim.pool.faults.add(Fault { target, effect: Effect::TruncateReply, times: Some(1) });
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "VM.get_all_records", "params": [raw.session]});
    let mut reply = raw.http.post(raw.url() + "/jsonrpc").json(&request).send().await.unwrap();
    let length = reply.content_length().unwrap() as usize;
    let mut seen = 0;
    let broken = loop {
        match reply.chunk().await {
            Ok(Some(bytes)) => seen += bytes.len(),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(broken && seen == length / 2, "{seen} of {length}");
}

/// xapi.md 4.2: a refusal that passes, such as `TOO_MANY_PENDING_TASKS []`.
#[tokio::test]
async fn a_refusal_is_made_in_the_calls_place_as_often_as_counted() {
    let raw = Raw::new().await;
    let effect = Effect::Refuse(Failure::new::<&str>("TOO_MANY_PENDING_TASKS", []));
    raw.sim.pool.faults.add(Fault { target: Target::Method("VM.get_all".into()), effect, times: Some(2) });
    for _ in 0..2 {
        assert_eq!(raw.call("VM.get_all", json!([])).await, failure(["TOO_MANY_PENDING_TASKS"]));
    }
    raw.call("VM.get_all", json!([])).await.unwrap();
}

/// xapi.md 4.1, `error_info`: taken, and failed later. What storage, licence and hosts refuse is told by the task.
#[tokio::test]
async fn a_task_fails_in_its_calls_place() {
    let raw = Raw::new().await;
    let effect = Effect::FailTask(Failure::new("SR_BACKEND_FAILURE_44", ["", "no space", ""]));
    raw.sim.pool.faults.add(Fault {
        target: Target::Method("Async.VDI.set_name_label".into()),
        effect,
        times: Some(1),
    });
    let vdi = raw.row("VDI", "x");
    let mut changed = raw.sim.pool.db().watch();
    let task = raw.call("Async.VDI.set_name_label", json!([vdi, "y"])).await.unwrap();
    while raw.call("task.get_status", json!([task])).await.unwrap() == "pending" {
        tokio::time::timeout(Duration::from_secs(5), changed.changed()).await.unwrap().unwrap();
    }
    let told = raw.call("task.get_error_info", json!([task])).await.unwrap();
    assert_eq!(told, json!(["SR_BACKEND_FAILURE_44", "", "no space", ""]));
    assert_eq!(raw.call("VDI.get_name_label", json!([vdi])).await.unwrap(), "x");
}

/// The instrument itself: the same seed strikes the same calls; calls that only look are never met.
#[tokio::test]
async fn random_faults_repeat_with_their_seed() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let raw = Raw::new().await;
        let vm = raw.row("VM", "x");
        let target = Target::Random { per_mille: 300, seed: 42 };
        raw.sim.pool.faults.add(Fault { target, effect: Effect::Drop, times: None });
        let mut run = Vec::new();
        for i in 0..20 {
            raw.call("VM.get_all", json!([])).await.unwrap();
            run.push(raw.send("VM.add_tags", raw.with_session(json!([vm, format!("{i}")]))).await.is_ok());
        }
        runs.push(run);
    }
    assert_eq!(runs[0], runs[1]);
    assert!(runs[0].contains(&true) && runs[0].contains(&false));
}

/// The instrument itself: calls that change something have numbers, by which a test aims.
#[tokio::test]
async fn changing_calls_are_numbered_and_logged() {
    let raw = Raw::new().await;
    let vm = raw.row("VM", "x");
    raw.sim.pool.log.reset();
    raw.call("VM.get_all", json!([])).await.unwrap();
    raw.call("VM.add_tags", json!([vm, "t"])).await.unwrap();
    raw.call("VM.fly", json!([])).await.unwrap_err();
    raw.call("Async.pool.sync_database", json!([])).await.unwrap();
    raw.login("root", "secret").await.unwrap();
    raw.sim.pool.log.reached(2).await;
    let log: Vec<_> = raw.sim.pool.log.entries().into_iter().map(|e| (e.number, e.method, e.params)).collect();
    let expected = [
        (None, "VM.get_all".to_owned(), vec![]),
        (Some(1), "VM.add_tags".to_owned(), vec![json!(vm), json!("t")]),
        (Some(2), "Async.pool.sync_database".to_owned(), vec![]),
    ];
    assert_eq!(log, expected);
    assert_eq!(raw.sim.pool.log.counts()["session.login_with_password"], 1);
}
