//! The real binary as a pod would run it: under the service account and the rights that `deploy/` ships, stopped by signals.
use std::collections::BTreeSet;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use lamina::controller::lease::NAME;
use lamina::local::Who;
use lamina::sim::session::Account;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::common::binary::Binary;
use crate::common::rig::{Rig, ready, uid};
use crate::common::unattended::{SECRET, files as step_files, served, two_steps};
use crate::common::{cluster, installed, tls, until};

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

/// XAPI drops the oldest sessions of an originator that has too many: a pod that was replaced must not be ended by its successor's.
#[tokio::test(flavor = "multi_thread")]
async fn each_process_logs_in_under_a_name_of_its_own() {
    let _turn = TURN.lock().await;
    let rig = Rig::new().await;
    let originators = || -> BTreeSet<String> {
        let db = rig.sim.pool.db();
        let all = db.all("session").filter_map(|(_, row)| row.get("originator")?.as_str());
        all.filter(|name| name.starts_with("same_")).map(str::to_owned).collect()
    };
    let mut seen = Vec::new();
    for _process in 0..2 {
        let account = Who::ServiceAccount { namespace: NAMESPACE, name: "lamina" };
        let running = Binary::start(account, NAMESPACE, &rig.namespace, &["--identity", "same"]).await;
        // With the call after it a log-in is over, and what is logged out in the end.
        let at_work = async || (running.metric("lamina_xapi_calls_total").await > 1.0).then(originators);
        let names = crate::common::eventually("a session", at_work).await;
        assert_eq!(names.len(), 1, "one process has one name: {names:?}");
        seen.extend(names);
        running.stop().await;
        assert!(originators().is_empty(), "a process that is stopped logs out");
    }
    assert_ne!(seen[0], seen[1]);
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

/// A whole life at the most talkative level, log-ins that are refused included: no password and no session is told to anybody.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_told_to_anybody() {
    let _turn = TURN.lock().await;
    let rig = Rig::new().await;
    let (wrong, right) = (format!("wrong-{}", uuid::Uuid::new_v4()), format!("right-{}", uuid::Uuid::new_v4()));
    let account = Account { name: "root".into(), password: right.clone(), role: None };
    rig.sim.pool.accounts.put(account);
    let set_password = async |password: &str| {
        let account = json!({"username": "root", "password": password});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "lab"}, "type": "kubernetes.io/basic-auth", "stringData": account});
        rig.apply(&secret.to_string()).await;
        let look = json!({"metadata": {"annotations": {"lamina.dev/requestedAt": uuid::Uuid::new_v4().to_string()}}});
        let look = Patch::Merge(look);
        rig.connectors().patch("lab", &PatchParams::default(), &look).await.unwrap();
    };
    set_password(&wrong).await;
    let kubeconfig =
        cluster().await.kubeconfig(Who::ServiceAccount { namespace: NAMESPACE, name: "lamina" }).await.unwrap();
    let files = ["out", "err"].map(|name| std::env::temp_dir().join(format!("{}-{name}", rig.namespace)));
    let [out, err] = files.each_ref().map(|path| std::fs::File::create(path).unwrap());
    let mut child = Command::new(env!("CARGO_BIN_EXE_lamina"))
        .args(["run", "--listen=127.0.0.1:0", "--namespace", NAMESPACE, "--identity", "discreet", "--log", "debug"])
        .args(["--watch-namespace", &rig.namespace, "--kubeconfig"])
        .arg(kubeconfig)
        .stdout(out)
        .stderr(err)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let url = crate::common::eventually("its address", async || {
        let log = std::fs::read_to_string(&files[1]).unwrap();
        let starting = log.lines().find(|line| line.contains("\"starting\""))?;
        Some(serde_json::from_str::<Value>(starting).unwrap()["listen"].as_str()?.to_owned())
    })
    .await;
    step_files(&rig).await;
    rig.guest("discreet", served());
    let mut spec = two_steps();
    spec["finalize"] = json!({"policy": "OnShutdown"});
    spec["deletionPolicy"] = json!("Delete");
    rig.layer("discreet", spec).await;
    rig.until("discreet", "refused", |l| ready(l).is_some_and(|(_, m)| m.contains("refused the account"))).await;
    set_password(&right).await;
    rig.until_finalized("discreet", "1").await;
    let sessions: Vec<String> = rig.sim.pool.db().all("session").map(|(r, _)| r.as_str().to_owned()).collect();
    assert!(!sessions.is_empty());

    tls();
    let mut told = reqwest::get(format!("http://{url}/metrics")).await.unwrap().text().await.unwrap();
    told += &json!(rig.layers().get("discreet").await.unwrap()).to_string();
    told += &json!(rig.connectors().get("lab").await.unwrap()).to_string();
    rig.delete("discreet").await;
    rig.until_gone("discreet").await;
    told += &[rig.events("discreet").await, rig.events("lab").await].concat().join("\n");
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
    for path in &files {
        told += &std::fs::read_to_string(path).unwrap();
        std::fs::remove_file(path).unwrap();
    }
    for word in ["Async.VDI.clone", "CredentialsRefused", "\"DEBUG\"", "lamina_xapi_calls"] {
        assert!(told.contains(word), "{word} is not told, so nothing is proved");
    }
    let of_steps = [SECRET, "rem set up"].map(str::to_owned);
    for secret in [wrong, right].into_iter().chain(sessions).chain(of_steps) {
        let at = told.find(&secret);
        assert!(at.is_none(), "{}", &told[at.unwrap_or(0).saturating_sub(300)..][..400]);
    }
}
