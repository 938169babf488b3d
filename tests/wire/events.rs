//! `event.from`: xapi.md 5 and 14 (Events, Sessions).

use std::time::{Duration, Instant};

use super::{Raw, failure};
use lamina::xapi::wire::Ref;
use serde_json::{Value, json};

async fn from(raw: &Raw, classes: Value, token: &Value, timeout: f64) -> Value {
    raw.call("event.from", json!([classes, token, timeout])).await.unwrap()
}

fn told(batch: &Value) -> Vec<(&str, &str, &str)> {
    let text = |event: &'_ Value, key: &str| -> &str {
        event[key].as_str().map(|s| Box::leak(s.to_owned().into_boxed_str())).unwrap()
    };
    batch["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (text(e, "class"), text(e, "operation"), text(e, "ref")))
        .collect()
}

/// xapi.md 5: the dump on an empty token, then only what is new, each object once and whole, deletions without a snapshot.
#[tokio::test]
async fn a_stream_begins_with_a_dump_and_goes_on_with_changes() {
    let raw = Raw::new().await;
    let (vm, other) = (raw.row("VM", "a"), raw.row("VM", "b"));
    let first = from(&raw, json!(["vm", "VDI"]), &json!(""), 5.0).await;
    assert!(told(&first).contains(&("vm", "add", &vm)));
    assert!(told(&first).iter().all(|(class, operation, _)| ["vm", "vdi"].contains(class) && *operation == "add"));
    for name in ["c", "d"] {
        raw.call("VM.set_name_label", json!([vm, name])).await.unwrap();
    }
    raw.sim.pool.db().delete("VM", &Ref(other.clone()));
    let gone = raw.row("VM", "never seen");
    raw.sim.pool.db().delete("VM", &Ref(gone));
    let second = from(&raw, json!(["VM"]), &first["token"], 5.0).await;
    assert_eq!(told(&second), [("vm", "mod", vm.as_str()), ("vm", "del", other.as_str())]);
    let event = &second["events"][0];
    assert_eq!((&event["snapshot"]["name_label"], &event["timestamp"]), (&json!("d"), &json!("0.0")));
    assert!(event["id"].is_string() && second["events"][1].get("snapshot").is_none());
    // xapi.md 14: deletions from before the first token show up.
    let fresh = from(&raw, json!([format!("VM/{vm}"), format!("vm/{other}")]), &json!(""), 5.0).await;
    assert_eq!(told(&fresh), [("vm", "add", vm.as_str()), ("vm", "del", other.as_str())]);
}

/// xapi.md 5, Timeout, and 14: an empty answer after it, with counts of every class whatever was asked.
#[tokio::test]
async fn a_quiet_stream_answers_empty_at_its_timeout() {
    let raw = Raw::new().await;
    let first = from(&raw, json!(["*"]), &json!(""), 5.0).await;
    let asked = Instant::now();
    let quiet = from(&raw, json!(["nonsense"]), &first["token"], 0.3).await;
    assert!(asked.elapsed() >= Duration::from_millis(300) && told(&quiet).is_empty());
    let counts = quiet["valid_ref_counts"].as_object().unwrap();
    assert_eq!(counts["pool"], 1);
    for class in ["vm", "vm_guest_metrics", "vdi", "task", "pvs_site", "cluster_host"] {
        assert!(counts.contains_key(class), "{class}");
    }
    assert_eq!(counts["vm"].as_u64().unwrap() as usize, raw.sim.pool.db().count("VM"));
}

/// xapi.md 5, Filters and Later.
#[tokio::test]
async fn nonsense_is_named() {
    let raw = Raw::new().await;
    let bad = raw.call("event.from", json!([["a/b/c"], "", 1.0])).await;
    assert_eq!(bad, failure(["EVENT_SUBSCRIPTION_PARSE_FAILURE", "a/b/c"]));
    let bad = raw.call("event.from", json!([["vm"], "x", 1.0])).await;
    assert_eq!(bad, failure(["EVENT_FROM_TOKEN_PARSE_FAILURE", "x"]));
}

/// xapi.md 5, Lost deletions: more than the table remembers, and nobody says so; the count does.
#[tokio::test]
async fn old_deletions_are_forgotten_in_silence() {
    let raw = Raw::new().await;
    let rows: Vec<String> = (0..600).map(|i| raw.row("VM", &format!("vm-{i}"))).collect();
    let first = from(&raw, json!(["vm"]), &json!(""), 5.0).await;
    rows.iter().for_each(|row| raw.sim.pool.db().delete("VM", &Ref(row.clone())));
    let next = from(&raw, json!(["vm"]), &first["token"], 5.0).await;
    let told = told(&next).len();
    assert!((256..=512).contains(&told), "{told}");
    assert_eq!(next["valid_ref_counts"]["vm"].as_u64().unwrap() as usize, raw.sim.pool.db().count("VM"));
}

/// xapi.md 14, Sessions: a blocked call answers within a second once its session is gone.
#[tokio::test]
async fn a_blocked_call_ends_with_its_session() {
    let raw = Raw::new().await;
    let first = from(&raw, json!(["vm"]), &json!(""), 0.1).await;
    let blocked = raw.call("event.from", json!([["vm"], first["token"], 15.0]));
    let logout = async {
        // The second one of this test.
        while raw.sim.pool.log.counts()["event.from"] < 2 {
            tokio::task::yield_now().await;
        }
        raw.call("session.logout", json!([])).await.unwrap();
        Instant::now()
    };
    let (answer, gone) = tokio::join!(blocked, logout);
    assert_eq!(answer, failure(["SESSION_INVALID", &raw.session]));
    assert!(gone.elapsed() < Duration::from_secs(1));
}

/// xapi.md 5: `event.inject` is a barrier; asking from its token brings the touched object.
#[tokio::test]
async fn an_injected_event_is_a_barrier() {
    let raw = Raw::new().await;
    let pool = raw.first("pool").await;
    let token = raw.call("event.inject", json!(["pool", pool])).await.unwrap();
    let next = from(&raw, json!(["pool"]), &token, 5.0).await;
    assert_eq!(told(&next), [("pool", "mod", pool.as_str())]);
    assert_eq!(
        raw.call("event.inject", json!(["vm", "OpaqueRef:x"])).await,
        failure(["HANDLE_INVALID", "vm", "OpaqueRef:x"])
    );
}

/// xapi.md 5, Coalescing (only the newest state): what is told of is chosen at one moment and read at a later one. A change in between comes
/// early, a new row comes with the next answer.
#[tokio::test]
async fn records_are_read_after_it_was_chosen_which_to_tell_of() {
    let raw = Raw::new().await;
    let old = raw.row("VM", "old");
    let dump = from(&raw, json!(["vm"]), &json!(""), 5.0).await;
    raw.sim.pool.clock.hold("event.from/read");
    raw.sim.pool.db().set("VM", &Ref(old.clone()), "name_label", json!("chosen")).unwrap();
    let asked = from(&raw, json!(["vm"]), &dump["token"], 5.0);
    let meanwhile = async {
        raw.sim.pool.clock.held("event.from/read").await;
        raw.sim.pool.db().set("VM", &Ref(old.clone()), "name_label", json!("read")).unwrap();
        let new = raw.row("VM", "new");
        raw.sim.pool.clock.unhold("event.from/read");
        new
    };
    let (first, new) = tokio::join!(asked, meanwhile);
    assert_eq!(told(&first), [("vm", "mod", old.as_str())]);
    assert_eq!(first["events"][0]["snapshot"]["name_label"], "read");
    let next = from(&raw, json!(["vm"]), &first["token"], 5.0).await;
    assert!(told(&next).contains(&("vm", "add", new.as_str())), "{next}");
}

/// xapi.md 2.2, 5: a restart takes sessions, tasks and the memory of deletions.
#[tokio::test]
async fn a_restart_forgets_what_only_the_process_knew() {
    let mut raw = Raw::new().await;
    let (kept, gone) = (raw.row("VM", "kept"), raw.row("VM", "gone"));
    raw.call("pool.sync_database", json!([])).await.unwrap();
    let first = from(&raw, json!(["vm"]), &json!(""), 5.0).await;
    raw.sim.pool.db().delete("VM", &Ref(gone.clone()));
    let later = raw.row("VM", "later");
    let pool = &raw.sim.pool;
    pool.stop().await;
    pool.db().reload();
    pool.resume();
    // The old connections are gone with the process.
    raw.http = crate::common::hands::http(&raw.sim);
    assert_eq!(raw.call("VM.get_all", json!([])).await, failure(["SESSION_INVALID", &raw.session]));
    raw.session = raw.login("root", "secret").await.unwrap();
    let vms = raw.call("VM.get_all_records", json!([])).await.unwrap();
    assert!(vms.get(&kept).is_some() && vms.get(&gone).is_some() && vms.get(&later).is_none());
    let next = from(&raw, json!(["vm"]), &first["token"], 0.2).await;
    assert!(told(&next).iter().all(|(_, operation, _)| *operation != "del"));
}

/// xapi.md 5, Legacy: a session registers for classes, hears what happened since, and is told where that was too much.
#[tokio::test]
async fn the_legacy_queue_is_a_sessions_own() {
    let raw = Raw::new().await;
    assert_eq!(raw.call("event.next", json!([])).await, failure(["SESSION_NOT_REGISTERED", &raw.session]));
    raw.call("event.register", json!([["VM"]])).await.unwrap();
    raw.row("network", "not asked for");
    let vm = raw.row("VM", "a");
    let events = raw.call("event.next", json!([])).await.unwrap();
    assert_eq!(events.as_array().unwrap().len(), 1, "{events}");
    let event = &events[0];
    assert_eq!([&event["class"], &event["operation"], &event["ref"]], [&json!("vm"), &json!("add"), &json!(vm)]);
    assert_eq!(event["snapshot"]["name_label"], "a");
    let (waiting, ()) = tokio::join!(raw.call("event.next", json!([])), async {
        raw.sim.pool.db().set("VM", &Ref(vm.clone()), "name_label", json!("b")).unwrap();
    });
    assert_eq!(waiting.unwrap()[0]["operation"], "mod");
    for n in 0..600 {
        raw.sim.pool.db().set("VM", &Ref(vm.clone()), "user_version", json!(n)).unwrap();
    }
    assert_eq!(raw.call("event.next", json!([])).await, failure(["EVENTS_LOST"]));
    raw.row("VM", "c");
    raw.call("event.next", json!([])).await.unwrap();
    raw.call("event.unregister", json!([["vm"]])).await.unwrap();
    assert_eq!(raw.call("event.next", json!([])).await, failure(["SESSION_NOT_REGISTERED", &raw.session]));
}
