//! An account that is no pool-operator: it may not write the pool's database out, nor change HA, and all else goes its way.

use std::time::Duration;

use lamina::api::condition::{ConditionType, find};
use lamina::api::{Connector, Phase};
use lamina::controller::Settings;
use lamina::controller::pace::Pace;
use lamina::sim::faults::{Effect, Fault, Target};
use lamina::sim::session::Account;
use lamina::xapi::wire::{Failure, Ref};
use serde_json::json;

use crate::common;
use crate::common::rig::{Rig, machine, quick, ready, says, status, uid};

const NAME: &str = "packager";
const PASSWORD: &str = "a password of its own";

fn give(rig: &Rig, role: &str) {
    let (name, password) = (NAME.to_owned(), PASSWORD.to_owned());
    rig.sim.pool.accounts.put(Account { name, password, role: Some(role.to_owned()) });
}

/// A pool whose Connector's account is a vm-power-admin.
async fn modest() -> Rig {
    let rig = Rig::new().await;
    give(&rig, "vm-power-admin");
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "lab"}, "type": "kubernetes.io/basic-auth",
        "stringData": {"username": NAME, "password": PASSWORD},
    });
    rig.apply(&secret.to_string()).await;
    rig
}

/// A whole life and its removal: what the account may not do is told on the Connector, and stops nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_vm_power_admin_takes_a_layer_through_its_whole_life() {
    let rig = modest().await;
    rig.guest("modest", quick());
    let _controller = rig.run().await;
    let connector = common::until(rig.connectors(), "lab", "ready", |c: Option<&Connector>| {
        let conditions = c.and_then(|c| c.status.as_ref()).map(|s| s.conditions.as_slice()).unwrap_or_default();
        find(conditions, ConditionType::Ready).is_some_and(|ready| ready.status == "True")
    });
    let conditions = connector.await.and_then(|c| c.status).expect("a status").conditions;
    let told = find(&conditions, ConditionType::PermissionsSufficient).expect("a condition");
    assert_eq!((told.status.as_str(), told.reason.as_str()), ("False", "PoolOperatorMissing"));
    for word in ["pool.sync_database", "vm.set_ha_restart_priority", "pool-operator"] {
        assert!(told.message.contains(word), "{word}: {}", told.message);
    }

    rig.layer("modest", json!({"finalize": {"policy": "OnShutdown"}, "deletionPolicy": "Delete"})).await;
    let done = rig.until_finalized("modest", "1").await;
    let walked: Vec<_> = status(&done).history.iter().map(|h| h.phase).collect();
    let all = [Phase::Pending, Phase::DiskCreated, Phase::MachineRunning, Phase::AwaitingFinalize, Phase::Finalized];
    assert_eq!(walked, all);
    assert_eq!(rig.calls("Async.VM.start"), 1);
    // What a role forbids is refused before the pool counts it.
    assert_eq!(rig.calls("pool.sync_database"), 0);
    rig.hands.assert_tidy().await;
    rig.delete("modest").await;
    rig.until_gone("modest").await;
    rig.hands.assert_nothing_of(&uid(&done)).await;
    assert_eq!(rig.hands.bases().await.len(), 0);
    rig.hands.assert_tidy().await;
}

/// At rest nobody asks what the account may do but now and then, where it lacks something: what is lost shows by a log-in or by a refusal.
#[tokio::test(flavor = "multi_thread")]
async fn rights_are_asked_once_for_a_log_in_and_after_a_refusal() {
    let rig = modest().await;
    let soon = Duration::from_millis(300);
    let _controller = rig
        .run_with(Settings {
            pace: Pace { resync: soon, rest: soon, rights: Duration::from_secs(3600), ..rig.settings().pace },
            ..rig.settings()
        })
        .await;
    rig.connector_ready().await;
    let (asked, listed) = (|| rig.calls("session.get_is_local_superuser"), || rig.calls("VDI.get_all_records"));
    let some_resyncs = async || {
        let before = listed();
        common::eventually("some resyncs", async || (listed() > before + 4).then_some(())).await;
    };
    some_resyncs().await;
    assert_eq!(asked(), 1, "in {} listings", listed());

    let sessions: Vec<Ref> = rig.sim.pool.db().all("session").map(|(r, _)| r.clone()).collect();
    sessions.iter().for_each(|session| rig.sim.pool.db().delete("session", session));
    // A connection that is seen to be lost after the log-in is one reason more to ask; then there is none.
    common::eventually("asked of the new session", async || (asked() > 1).then_some(())).await;
    some_resyncs().await;
    let known = asked();
    some_resyncs().await;
    assert_eq!(asked(), known);
    let denied = Effect::Refuse(Failure::new("RBAC_PERMISSION_DENIED", ["VDI.snapshot", ""]));
    rig.sim.pool.faults.add(Fault {
        target: Target::Method("Async.VDI.snapshot".to_owned()),
        effect: denied,
        times: Some(1),
    });
    rig.layer("denied", json!({"machine": {"powerOn": false}})).await;
    common::eventually("asked after a refusal", async || (asked() > known).then_some(())).await;
    // On its way to rest the account is refused once more: the tag of a task of its own is not for its role.
    rig.until_reason("denied", "StartMachine").await;
    some_resyncs().await;
    let known = asked();
    some_resyncs().await;
    assert_eq!(asked(), known);
}

/// HA would start a machine again that was shut down for finalize. Who may not take the template's priority off is told so before the first
/// start, with both cures, and each of them helps.
#[tokio::test(flavor = "multi_thread")]
async fn an_ha_priority_that_may_not_be_taken_off_stalls_until_somebody_may() {
    let rig = modest().await;
    let template = rig.hands.named("VM", "packaging").await.r;
    rig.hands.call("VM.set_ha_restart_priority", json!([template, "restart"])).await;
    let _controller = rig.run().await;
    for (name, promoted) in [("mended", false), ("promoted", true)] {
        rig.layer(name, json!({"machine": {"powerOn": false}})).await;
        let stalled = rig.until_reason(name, "PermissionDenied").await;
        assert_eq!(says(&stalled, ConditionType::Stalled), "True/PermissionDenied");
        let (_, message) = ready(&stalled).expect("Ready");
        let of_layer = rig.hands.of_layer(&uid(&stalled)).await;
        let vm = of_layer.iter().find(|t| t.role() == "machine").expect("M");
        let command = format!("xe vm-param-set uuid={} ha-restart-priority=", vm.uuid());
        assert!(message.contains("role pool-operator") && message.contains(&command), "{message}");
        assert_eq!(rig.calls("Async.VM.start"), 0);
        if promoted {
            give(&rig, "pool-operator");
        } else {
            rig.hands.call("VM.set_ha_restart_priority", json!([vm.r, ""])).await;
        }
        let made = rig.until_reason(name, "StartMachine").await;
        let vm = rig.hands.machine(&machine(&made)).await.expect("M");
        assert_eq!(vm.text("ha_restart_priority"), "");
    }
    rig.hands.assert_tidy().await;
}
