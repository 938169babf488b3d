//! The control endpoint, by HTTP as a person at a desk would use it.

use serde_json::{Value, json};

use super::brisk;
use crate::wire::{Raw, failure};

async fn turn(http: &reqwest::Client, url: &str, command: Value) -> Value {
    let reply = http.post(url).json(&command).send().await.unwrap();
    reply.json().await.unwrap()
}

async fn panel(raw: &Raw) -> String {
    let at = lamina::sim::control::listen(&raw.sim.pool, "127.0.0.1:0".parse().unwrap()).await.unwrap();
    format!("http://{at}/")
}

/// The instrument itself; what a turn of it makes of the pool has its section beside it.
#[tokio::test]
async fn the_panel_turns_what_a_test_can_turn() {
    let mut raw = brisk().await;
    let url = panel(&raw).await;
    let http = reqwest::Client::new();
    let run = async |command: Value| turn(&http, &url, command).await;
    let host = raw.named("host", "host1").await;
    let uuid = raw.get("host", &host, "uuid").await;
    run(json!({"do": "set", "class": "host", "uuid": uuid, "fields": {"enabled": false}})).await;
    let template = raw.named("VM", "packaging").await;
    let refused = raw.call("VM.assert_can_boot_here", json!([template, host])).await;
    assert_eq!(refused, failure(["HOST_DISABLED", &host]), "xapi.md 14, Start");

    let script = json!([{"match": {"name": "x"}, "steps": ["halt"]}]);
    assert_eq!(run(json!({"do": "guests", "scripts": script})).await, json!({"ok": null}));
    run(json!({"do": "fault", "target": {"method": "pool.get_all"}, "effect": {"refuse": ["TOO_MANY_PENDING_TASKS"]}, "times": 1})).await;
    assert_eq!(raw.call("pool.get_all", json!([])).await, failure(["TOO_MANY_PENDING_TASKS"]), "xapi.md 4.2");
    assert!(raw.call("pool.get_all", json!([])).await.is_ok());

    let os = raw.named("VDI", "win11-24h2").await;
    run(json!({"do": "hold", "prefix": "VDI.snapshot/row"})).await;
    let task = raw.send_async("VDI.snapshot", json!([os])).await;
    raw.sim.pool.clock.held("VDI.snapshot/row").await;
    let waiting = run(json!({"do": "waiting"})).await;
    assert!(waiting["ok"][0]["label"].as_str().unwrap().starts_with("VDI.snapshot/row"));
    assert_eq!(run(json!({"do": "release", "id": waiting["ok"][0]["id"]})).await, json!({"ok": true}));
    raw.wait(&task).await.unwrap();
    assert!(run(json!({"do": "log"})).await["ok"]["counts"]["Async.VDI.snapshot"] == json!(1));

    run(json!({"do": "stop", "clean": true})).await;
    assert!(raw.send("pool.get_all", json!([raw.session])).await.is_err(), "nobody answers");
    run(json!({"do": "start"})).await;
    raw.session = raw.login("root", "secret").await.unwrap();
    run(json!({"do": "evict_sessions"})).await;
    assert_eq!(raw.call("pool.get_all", json!([])).await, failure(["SESSION_INVALID", &raw.session]));
}

/// xapi.md 6.2: the control domain's VBD blocks a destroy, not a start; it can be unplugged and destroyed.
#[tokio::test]
async fn a_leaked_device_blocks_destroy_until_it_is_taken_off() {
    let raw = brisk().await;
    let (vm, disk) = raw.machine("m").await;
    let uuid = raw.get("VDI", &disk, "uuid").await;
    let leaked = turn(&reqwest::Client::new(), &panel(&raw).await, json!({"do": "leak_vbd", "vdi": uuid})).await;
    let leaked = leaked["ok"].as_str().unwrap();
    assert_eq!(raw.run("VDI.destroy", json!([disk])).await, failure(["VDI_IN_USE", &disk, "destroy"]));
    raw.run("VM.start", json!([vm, false, false])).await.unwrap();
    raw.run("VM.hard_shutdown", json!([vm])).await.unwrap();
    raw.run("VBD.unplug", json!([leaked])).await.unwrap();
    raw.run("VBD.destroy", json!([leaked])).await.unwrap();
    raw.run("VDI.destroy", json!([disk])).await.unwrap();
}

/// The instrument itself: a mistaken command changes nothing and says what is wrong.
#[tokio::test]
async fn mistakes_are_named() {
    let raw = brisk().await;
    let (http, url) = (reqwest::Client::new(), panel(&raw).await);
    for (command, word) in [
        (json!({"do": "fly"}), "fly"),
        (json!({"do": "set", "class": "VDI", "uuid": "none", "fields": {}}), "UUID_INVALID"),
        (json!({"do": "delete", "class": "Bird", "uuid": "none"}), "Bird"),
        (json!({"do": "linger", "seconds": -1.0}), "-1"),
    ] {
        let answer = turn(&http, &url, command).await;
        assert!(answer["error"].as_str().unwrap().contains(word), "{answer}");
    }
}
