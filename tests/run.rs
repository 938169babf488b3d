//! The real binary as a pod would run it: under the service account and the rights that `deploy/` ships, stopped by signals.
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use lamina::controller::lease::NAME;
use lamina::local::Who;
use tokio::sync::Mutex;

use crate::common::binary::Binary;
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
