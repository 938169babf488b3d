//! Layers that stand in line for a disk or a stream: whose turn it is, and that nobody is held up by one that does not want it any more.

use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use lamina::api::layer_status::Operation;
use lamina::api::{Phase, PlatformLayerStatus};
use lamina::controller::write;
use lamina::domain::identity::{Lineage, Role};
use lamina::sim::faults::{Effect, Fault, Target};
use lamina::xapi::wire::Failure;
use serde_json::json;

use crate::common::eventually;
use crate::common::rig::{PACE, Rig, disk, ready, status, uid};

/// First come, first served, at the base that all are cloned from. Who was suspended in line holds nobody up, and comes last.
#[tokio::test(flavor = "multi_thread")]
async fn layers_of_one_disk_are_made_in_the_order_of_coming() {
    let rig = Rig::new().await;
    rig.sim.pool.clock.hold("VDI.clone/queued");
    let _controller = rig.run().await;
    let mut uids = Vec::new();
    for (name, reason) in
        [("z", "CreatingDisk"), ("late", "WaitingForMark"), ("y", "WaitingForMark"), ("x", "WaitingForMark")]
    {
        rig.layer(name, json!({"machine": {"powerOn": false}})).await;
        uids.push(uid(&rig.until_reason(name, reason).await));
        rig.sim.pool.clock.held("VDI.clone/queued").await;
    }
    rig.patch("late", json!({"suspend": true})).await;
    rig.until_reason("late", "Suspended").await;
    rig.sim.pool.clock.unhold("VDI.clone/queued");
    for name in ["z", "y", "x"] {
        rig.until_reason(name, "StartMachine").await;
    }
    rig.patch("late", json!({"suspend": false})).await;
    rig.until_reason("late", "StartMachine").await;
    let entries = rig.sim.pool.log.entries().into_iter();
    let marks = entries.filter(|e| e.method == "VDI.add_to_other_config").map(|e| json!(e.params).to_string());
    // On the base, then on each one's own disk, from which its machine is cloned: each once.
    let order = marks.filter_map(|m| uids.iter().position(|uid| m.contains(uid.as_str())));
    let mut seen = Vec::new();
    order.for_each(|layer| {
        if !seen.contains(&layer) {
            seen.push(layer)
        }
    });
    assert_eq!(seen, [0, 2, 3, 1]);
}

/// Who is led to another Connector while in line holds nobody up at the first one.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_leaves_its_connector_leaves_its_line() {
    let rig = Rig::new().await;
    rig.sim.pool.clock.hold("VDI.clone/queued");
    let _controller = rig.run().await;
    for (name, reason) in [("first", "CreatingDisk"), ("leaves", "WaitingForMark"), ("next", "WaitingForMark")] {
        rig.layer(name, json!({"machine": {"powerOn": false}})).await;
        rig.until_reason(name, reason).await;
        rig.sim.pool.clock.held("VDI.clone/queued").await;
    }
    rig.patch("leaves", json!({"connectorRef": {"name": "elsewhere"}})).await;
    rig.until_reason("leaves", "ConnectorNotFound").await;
    rig.sim.pool.clock.unhold("VDI.clone/queued");
    rig.until_reason("next", "StartMachine").await;
    rig.patch("leaves", json!({"connectorRef": {"name": "lab"}})).await;
    rig.until_reason("leaves", "StartMachine").await;
    rig.hands.assert_tidy().await;
}

/// Its disk is made and recorded: what it was made of is free for others, and the size can still be set right.
#[tokio::test(flavor = "multi_thread")]
async fn a_size_that_the_pool_refuses_holds_up_nobody() {
    let rig = Rig::new().await;
    rig.sim.pool.clock.hold("VDI.resize/queued");
    let _controller = rig.run().await;
    rig.layer("huge", json!({"machine": {"powerOn": false}, "packagingDisk": {"size": "4Ti"}})).await;
    let at_it = |l: &_| status(l).disk.is_some() && status(l).operation.is_none();
    let sizing = rig.until("huge", "the source let go", at_it).await;
    let (reason, message) = ready(&sizing).expect("Ready");
    assert!(reason == "CreatingDisk" && message.contains("gets its size"), "{reason}: {message}");
    let first = rig.sim.pool.clock.held("VDI.resize/queued").await;
    rig.layer("next", json!({"machine": {"powerOn": false}})).await;
    rig.until_reason("next", "StartMachine").await;
    // What the first call ends with is heard, and not only what a next one would.
    let ends = async { rig.sim.pool.clock.release(first.id) };
    let (refused, _) = tokio::join!(rig.until_reason("huge", "PoolRefused"), ends);
    assert!(ready(&refused).is_some_and(|(_, m)| m.contains("spec.packagingDisk.size")), "{refused:#?}");
    assert_eq!(status(&refused).phase, Some(Phase::Pending));
    rig.layer("third", json!({"machine": {"powerOn": false}})).await;
    rig.until_reason("third", "StartMachine").await;
    rig.sim.pool.clock.unhold("VDI.resize/queued");
    rig.patch("huge", json!({"packagingDisk": {"size": "64Gi"}})).await;
    let made = rig.until_reason("huge", "StartMachine").await;
    let w = rig.hands.disk(&disk(&made)).await.expect("W");
    assert_eq!((w.uuid(), w.row["virtual_size"].clone()), (disk(&refused).as_str(), json!(64_u64 << 30)));
    assert_eq!(rig.calls("Async.VDI.clone"), 3);
    rig.hands.assert_tidy().await;
}

/// It is nobody's: whoever needs no base of that kind goes on, and the next one tries again.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_base_that_cannot_be_destroyed_stops_nobody() {
    let rig = Rig::new().await;
    let refuse = |method: &str| {
        let effect = Effect::Refuse(Failure::new("SR_BACKEND_FAILURE_453", ["x"]));
        rig.sim.pool.faults.add(Fault { target: Target::Method(method.to_owned()), effect, times: None });
    };
    ["Async.VDI.clone", "Async.VDI.destroy"].into_iter().for_each(refuse);
    let _controller = rig.run().await;
    rig.layer("moved", json!({"machine": {"powerOn": false}, "deletionPolicy": "Delete"})).await;
    rig.until_reason("moved", "StorageError").await;
    rig.patch("moved", json!({"osLayer": {"version": "25H1"}})).await;
    eventually("it was tried", async || (rig.calls("Async.VDI.destroy") > 0).then_some(())).await;
    rig.sim.pool.faults.clear();
    refuse("Async.VDI.destroy");
    rig.until_reason("moved", "StartMachine").await;
    let bases = rig.hands.all("VDI").await.into_iter().filter(|d| d.role() == "base").count();
    assert_eq!(bases, 2, "one is idle");
    rig.sim.pool.faults.clear();
    rig.delete("moved").await;
    rig.until_gone("moved").await;
    rig.hands.assert_tidy().await;
}

/// One has begun and waits for a mark, the other set that mark and waits for its turn: as after an earlier process, or beside another
/// Connector's line. Whoever waits for the mark has no turn in hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_and_a_turn_do_not_wait_for_each_other() {
    let rig = Rig::new().await;
    let lost = Fault { target: Target::Method("Async.VDI.clone".to_owned()), effect: Effect::Drop, times: None };
    rig.sim.pool.faults.add(lost);
    let controller = rig.run().await;
    let off = json!({"machine": {"powerOn": false}});
    rig.layer("marked", off.clone()).await;
    rig.until("marked", "the call is lost", |_| rig.calls("Async.VDI.clone") > 0).await;
    drop(controller);
    rig.sim.pool.faults.clear();
    rig.patch("marked", json!({"connectorRef": {"name": "elsewhere"}})).await;
    rig.layer("begun", off).await;
    let layer = async |name: &str| rig.layers().get(name).await.expect("a layer");
    write::set_finalizer(&rig.layers(), &PACE, &layer("begun").await, true).await.expect("our finalizer");
    let (begun, marked) = (layer("begun").await, status(&layer("marked").await));
    let home = Api::<Namespace>::all(rig.client.clone()).get("kube-system").await.expect("kube-system");
    let cluster = home.uid().expect("a uid");
    let lineage = Lineage::Layer { cluster, layer: uid(&begun), version: "1".to_owned(), role: Role::Work };
    let operation = Operation { opid: Some(lineage.opid().0), ..marked.operation.expect("an intent") };
    let said = PlatformLayerStatus { operation: Some(operation), pool: marked.pool, ..status(&begun) };
    write::publish(&rig.layers(), &PACE, &begun, &said).await.expect("its intent");
    let _controller = rig.run().await;
    rig.until_reason("begun", "WaitingForInFlight").await;
    rig.patch("marked", json!({"connectorRef": {"name": "lab"}})).await;
    for name in ["begun", "marked"] {
        rig.until_reason(name, "StartMachine").await;
    }
    rig.hands.assert_tidy().await;
}

/// What it may do first is what it may not write down: others go on beside it.
#[tokio::test(flavor = "multi_thread")]
async fn an_intent_that_is_not_written_holds_up_nobody() {
    let rig = Rig::new().await;
    let name = format!("refuse-{}", rig.namespace);
    let ours = format!("request.namespace == '{}' && request.name == 'refused'", rig.namespace);
    let rule = json!({"apiGroups": ["lamina.dev"], "apiVersions": ["*"], "operations": ["UPDATE"], "resources": ["platformlayers/status"]});
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name},
        "spec": {
            "matchConstraints": {"resourceRules": [rule]},
            "matchConditions": [{"name": "ours", "expression": ours}],
            "validations": [{"expression": "!has(object.status.operation)"}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"]},
    });
    for object in [policy, binding] {
        rig.apply(&object.to_string()).await;
    }
    let off = json!({"machine": {"powerOn": false}});
    rig.layer("refused", off.clone()).await;
    eventually("the policy is in force", async || {
        let layer = rig.layers().get("refused").await.ok()?;
        let operation = Operation { step: "CloneDisk".to_owned(), ..Operation::default() };
        // Off again where it was let in, so that the next one is a change.
        let operation = Some(operation).filter(|_| status(&layer).operation.is_none());
        let said = PlatformLayerStatus { operation, ..status(&layer) };
        let wrote = write::publish(&rig.layers(), &PACE, &layer, &said).await;
        matches!(wrote, Err(write::WriteError::Refused(_))).then_some(())
    })
    .await;
    let controller = rig.run().await;
    let refusals = || controller.metric("lamina_faults_total{kind=\"retry\"}");
    eventually("it was tried", async || (refusals() > 0).then_some(())).await;
    rig.layer("next", off).await;
    rig.until_reason("next", "StartMachine").await;
    let policies = Api::<ValidatingAdmissionPolicy>::all(rig.client.clone());
    policies.delete(&name, &DeleteParams::default()).await.expect("deleted");
    rig.until_reason("refused", "StartMachine").await;
    rig.hands.assert_tidy().await;
}

/// A pool takes two streams at a time, and more layers than passes at a time wait for theirs: nobody else waits with them.
#[tokio::test(flavor = "multi_thread")]
async fn layers_in_line_for_a_stream_hold_up_nobody() {
    let rig = Rig::new().await;
    let limits = Patch::Merge(json!({"spec": {"limits": {"machines": 64}}}));
    rig.connectors().patch("lab", &PatchParams::default(), &limits).await.expect("a patch");
    rig.sim.pool.clock.hold("import_raw_vdi/block");
    let _controller = rig.run().await;
    let names: Vec<_> = (0..20).map(|n| format!("stream-{n}")).collect();
    for name in &names {
        rig.layer(name, json!({"machine": {"powerOn": false}})).await;
    }
    let at_it =
        |l: &_| status(l).config_disk.is_some() && ready(l).is_some_and(|(reason, _)| reason == "SettingUpMachine");
    for name in &names {
        rig.until(name, "in line", at_it).await;
    }
    rig.layer("other", json!({"connectorRef": {"name": "elsewhere"}})).await;
    let told = tokio::time::timeout(Duration::from_secs(10), rig.until_reason("other", "ConnectorNotFound"));
    told.await.expect("no pass waits in line");
    assert_eq!(rig.calls("PUT /import_raw_vdi"), 2);
    rig.sim.pool.clock.unhold("import_raw_vdi/block");
    for name in &names {
        rig.until_reason(name, "StartMachine").await;
    }
    assert_eq!(rig.calls("PUT /import_raw_vdi"), 20);
    rig.hands.assert_tidy().await;
}
