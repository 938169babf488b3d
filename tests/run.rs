//! The real binary as a pod would run it: under the service account and the rights that `deploy/` ships, stopped by signals.
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use lamina::controller::lease::NAME;
use lamina::local::Who;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::common::binary::Binary;
use crate::common::rig::{Rig, uid};
use crate::common::{installed, until};

const NAMESPACE: &str = "lamina-system";
/// There is one Lease, since its place is given by the rights.
static TURN: Mutex<()> = Mutex::const_new(());

async fn start(identity: &str) -> Binary {
    let account = Who::ServiceAccount { namespace: NAMESPACE, name: "lamina" };
    // The layers of other tests have a controller of their own: two would make two of each disk.
    Binary::start(account, NAMESPACE, NAMESPACE, &["--identity", identity]).await
}

fn leases(client: &Client) -> Api<Lease> {
    Api::namespaced(client.clone(), NAMESPACE)
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

#[tokio::test]
async fn one_leads_one_stands_by_and_takes_over_after_a_clean_stop() {
    let _turn = TURN.lock().await;
    let client = installed().await;
    let mut first = start("first").await;
    first.line("leading").await;
    let second = start("second").await;
    let ready = async || (second.get("/readyz").await == "ok\n").then_some(());
    crate::common::eventually("the standby is ready", ready).await;
    assert!(second.get("/metrics").await.contains("\nlamina_lease_held 0\n"));
    assert!(first.get("/metrics").await.contains("\nlamina_lease_held 1\n"));
    assert_eq!(first.get("/livez").await, "ok\n");

    first.signal("-TERM").await;
    assert_eq!(first.ended().await.code(), Some(0));
    let begins = |lease: Option<&Lease>| lease.is_some_and(|lease| holder(lease).starts_with("second_"));
    until(leases(&client), NAME, "the second leads", begins).await;

    let mut second = second;
    second.signal("-INT").await;
    assert_eq!(second.ended().await.code(), Some(0));
    assert_eq!(holder(&leases(&client).get(NAME).await.unwrap()), "", "released");
}

#[tokio::test]
async fn a_lost_lease_ends_the_process_and_says_why() {
    let _turn = TURN.lock().await;
    let client = installed().await;
    let mut running = start("first").await;
    running.line("leading").await;
    let mut record = leases(&client).get(NAME).await.unwrap();
    record.spec.as_mut().unwrap().holder_identity = Some("usurper".into());
    leases(&client).replace(NAME, &PostParams::default(), &record).await.unwrap();
    let why = running.line("giving up").await;
    assert_eq!(why["error"], "another controller may lead by now: the lease was taken over by usurper");
    assert_eq!(running.ended().await.code(), Some(1));
    leases(&client).delete(NAME, &DeleteParams::default()).await.unwrap();
}

/// Whoever lost a disk reads these lines first: a reference is of no use to them, and dies with xapi.
#[tokio::test(flavor = "multi_thread")]
async fn audit_lines_say_who_did_what_to_which_object() {
    let _turn = TURN.lock().await;
    let rig = Rig::new().await;
    let account = Who::ServiceAccount { namespace: NAMESPACE, name: "lamina" };
    let running = Binary::start(account, NAMESPACE, &rig.namespace, &["--identity", "auditor"]).await;
    rig.layer("watched", json!({"machine": {"powerOn": false}, "deletionPolicy": "Delete"})).await;
    let made = rig.until_reason("watched", "StartMachine").await;
    let objects: Vec<_> = rig.hands.of_layer(&uid(&made)).await.iter().map(|t| t.uuid().to_owned()).collect();
    rig.delete("watched").await;
    rig.until_gone("watched").await;
    let (mut calls, mut transitions) = (Vec::new(), Vec::new());
    for line in running.stop().await {
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (line["layer"].as_str(), line["version"].as_str()),
            (Some(&*format!("{}/watched", rig.namespace)), Some("1"))
        );
        if line["message"] == "call" { calls.push(line) } else { transitions.push(line) }
    }
    for call in &calls {
        let object = call["object"].as_str().unwrap();
        assert!(object.is_empty() || uuid::Uuid::parse_str(object).is_ok(), "{call}");
        assert!(call["outcome"].is_string() && call["milliseconds"].is_u64(), "{call}");
    }
    for object in objects {
        assert!(
            calls.iter().any(|c| c["object"] == *object && c["call"].as_str().unwrap().ends_with(".destroy")),
            "{object}: {calls:#?}"
        );
    }
    assert!(calls.iter().any(|c| c["call"] == "Async.VDI.clone" && c["op"].as_str().is_some_and(|op| !op.is_empty())));
    let reasons: Vec<_> = transitions.iter().map(|t| t["reason"].as_str().unwrap()).collect();
    assert!(reasons.contains(&"StartMachine") && reasons.last() == Some(&"Deleting"), "{reasons:?}");
}
