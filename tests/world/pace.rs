//! What time does: hints that lag, turns taken in no fair order, a database that is written now and then, sessions that nobody uses.

use std::time::Duration;

use lamina::{
    sim::{clock::Clock, restart},
    xapi::wire::{Ref, format_time},
};
use serde_json::{Value, json};

use super::{brisk, checks::disk, pool};
use crate::wire::{Raw, failure};

/// xapi.md 9.2: `allowed_operations` is a cached hint; what counts is the attempt.
#[tokio::test]
async fn the_hint_of_what_is_allowed_lags() {
    // So slow that the lag is a second of the wall's.
    let raw = pool(Clock::new(0.05)).await;
    let vm = raw.named("VM", "packaging").await;
    let may = async |op: &str| {
        let all = raw.get("VM", &vm, "allowed_operations").await;
        all.as_array().unwrap().contains(&json!(op))
    };
    assert!(may("provision").await && !may("start").await);
    raw.call("VM.set_is_a_template", json!([vm, false])).await.unwrap();
    assert_eq!(raw.call("VM.assert_operation_valid", json!([vm, "start"])).await, Ok(json!("")));
    assert!(may("provision").await && !may("start").await, "as before");
    raw.until("VM", &vm, "allowed_operations", |all| all.as_array().unwrap().contains(&json!("start"))).await;
    assert!(!may("provision").await);
}

/// In which order six calls that came one after another had their turn.
async fn turns(seed: u64) -> (Vec<String>, Vec<String>) {
    let raw = brisk().await;
    let clock = &raw.sim.pool.clock;
    let sr = raw.named("SR", "Shared storage").await;
    let (mut came, mut tasks) = (Vec::new(), Vec::new());
    clock.hold("VDI.clone/running");
    let os = raw.named("VDI", "win11-24h2").await;
    let first = raw.send_async("VDI.clone", json!([os])).await;
    clock.held("VDI.clone/running").await;
    clock.hold("VDI.resize/running");
    raw.sim.pool.world.queues.seed(seed);
    for vdi in &disks(&raw, &sr).await {
        clock.hold("VDI.resize/queued");
        tasks.push(raw.send_async("VDI.resize", json!([vdi, 8 << 20])).await);
        clock.held("VDI.resize/queued").await;
        clock.unhold("VDI.resize/queued");
        // One thread runs everything: whoever was let go stands in the queue before the next reply comes.
        raw.get("task", tasks.last().unwrap(), "status").await;
        came.push(raw.get("VDI", vdi, "uuid").await.as_str().unwrap().to_owned());
    }
    clock.unhold("VDI.clone/running");
    raw.wait(&first).await.unwrap();
    let mut went = Vec::new();
    for _ in &came {
        let turn = clock.held("VDI.resize/running").await;
        assert_eq!(clock.waiting().len(), 1, "one at a time");
        went.push(turn.label.rsplit('/').next().unwrap().to_owned());
        clock.release(turn.id);
    }
    for task in &tasks {
        raw.wait(task).await.unwrap();
    }
    let place = |uuid: &String| came.iter().position(|c| c == uuid).unwrap().to_string();
    (came.iter().map(place).collect(), went.iter().map(place).collect())
}

/// Disks that are made by hand, for a queue in which somebody stands makes none.
async fn disks(raw: &Raw, sr: &str) -> Vec<String> {
    let uuid = raw.get("SR", sr, "uuid").await.as_str().unwrap().to_owned();
    let make = |_| {
        let node = lamina::sim::disk::Node { sr: uuid.clone(), virtual_size: 4 << 20, ..Default::default() };
        let disk = raw.sim.pool.world.disks().create(node);
        let fields =
            [("uuid", json!(disk)), ("SR", json!(sr)), ("managed", json!(true)), ("virtual_size", json!(4 << 20))];
        raw.sim.pool.db().create("VDI", fields).to_string()
    };
    (0..6).map(make).collect()
}

/// xapi.md 14, Queue: everybody has a turn, and not who came first; with the same seed in the same order.
#[tokio::test]
async fn turns_are_not_taken_in_the_order_of_coming() {
    let (came, went) = turns(0).await;
    assert_ne!(went, came);
    let mut all = went.clone();
    all.sort();
    assert_eq!(all, came);
    assert_eq!(turns(0).await.1, went);
    assert_ne!(turns(1).await.1, went);
}

/// xapi.md 14, Durability: the database is written every five minutes, by a daemon that was started again, too.
#[tokio::test]
async fn the_database_is_written_every_five_minutes() {
    let mark = async |raw: &Raw, key: &str| {
        let vdi = raw.named("VDI", "win11-24h2").await;
        raw.call("VDI.add_to_other_config", json!([vdi, key, "1"])).await.unwrap();
    };
    let dies = async |raw: &mut Raw| {
        restart::restart(&raw.sim.pool, false).await;
        raw.session = raw.login("root", "secret").await.unwrap();
    };
    let kept = async |raw: &Raw| {
        let vdi = raw.named("VDI", "win11-24h2").await;
        let keys = raw.get("VDI", &vdi, "other_config").await;
        keys.as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    let mut raw = pool(Clock::new(1000.0)).await;
    for key in ["first", "second"] {
        mark(&raw, key).await;
        raw.sim.pool.clock.sleep(Duration::from_secs(310)).await;
        dies(&mut raw).await;
    }
    assert_eq!(kept(&raw).await, ["first", "second"]);
    let mut raw = pool(Clock::new(1.0)).await;
    mark(&raw, "young").await;
    dies(&mut raw).await;
    assert_eq!(kept(&raw).await, [""; 0], "nobody waited for it");
}

/// xapi.md 2.2: unused for 24 h a session dies; `last_active` moves at most every ten minutes.
#[tokio::test]
async fn a_session_dies_of_idleness() {
    let raw = brisk().await;
    let ago = |minutes: i64| format_time(raw.sim.pool.clock.now() - jiff::SignedDuration::from_mins(minutes));
    let used = |session: &str, at: &str| {
        raw.sim.pool.db().set("session", &Ref(session.to_owned()), "last_active", json!(at)).unwrap();
    };
    let shown = |session: &str| -> Value {
        raw.sim.pool.db().field("session", &Ref(session.to_owned()), "last_active").unwrap().clone()
    };
    let [idle, alive] = [raw.login("root", "secret").await.unwrap(), raw.login("root", "secret").await.unwrap()];
    let mut changed = raw.sim.pool.db().watch();
    used(&alive, &ago(22 * 60));
    used(&idle, &ago(25 * 60));
    while raw.sim.pool.db().find("session", &Ref(idle.clone())).is_some() {
        tokio::time::timeout(Duration::from_secs(20), changed.changed()).await.unwrap().unwrap();
    }
    assert_eq!(raw.bare("VM.get_all", json!([idle])).await, failure(["SESSION_INVALID", &idle]));
    raw.bare("VM.get_all", json!([alive])).await.unwrap();
    for (minutes, moves) in [(2, false), (20, true)] {
        let before = ago(minutes);
        used(&alive, &before);
        raw.bare("VM.get_all", json!([alive])).await.unwrap();
        assert_eq!(shown(&alive) != json!(before), moves, "{minutes} minutes");
    }
}

/// xapi.md 4.2, 14 (Queue): a scan excludes operations on disks, and the other way round.
#[tokio::test]
async fn a_scan_waits_for_its_turn() {
    let raw = brisk().await;
    let clock = &raw.sim.pool.clock;
    let sr = raw.named("SR", "Shared storage").await;
    let vdi = disk(&raw, &sr, json!({})).await;
    clock.hold("VDI.clone/running");
    let clone = raw.send_async("VDI.clone", json!([vdi])).await;
    clock.held("VDI.clone/running").await;
    let scan = raw.send_async("SR.scan", json!([sr])).await;
    clock.sleep(Duration::from_secs(5)).await;
    assert_eq!(raw.get("task", &scan, "status").await, "pending");
    assert_eq!(raw.get("SR", &sr, "current_operations").await, json!({&clone: "vdi_clone"}));
    clock.unhold("VDI.clone/running");
    raw.wait(&clone).await.unwrap();
    raw.wait(&scan).await.unwrap();
}
