//! Leader election against the real API server, in a hurry: a record is good for one second.
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use lamina::controller::lease::{Candidate, Deadline, Error, Leader, NAME, Terms};
use lamina::local::Who;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::common::{admin, cluster, eventually, namespace, until};

const TERMS: Terms = Terms {
    duration: Duration::from_secs(1),
    renew: Duration::from_millis(700),
    retry: Duration::from_millis(100),
    call: Duration::from_millis(600),
};

fn candidate(client: &Client, namespace: &str, identity: &str) -> Candidate {
    Candidate::new(client.clone(), namespace, identity.to_owned(), TERMS)
}

async fn leader(client: &Client, namespace: &str, identity: &str) -> Leader {
    candidate(client, namespace, identity).acquire(|| ()).await
}

fn spec(lease: Lease) -> LeaseSpec {
    lease.spec.expect("a lease has a spec")
}

fn held_by(name: &'static str) -> impl Fn(Option<&Lease>) -> bool {
    move |lease| lease.and_then(|lease| lease.spec.as_ref()?.holder_identity.as_deref()) == Some(name)
}

#[test]
fn production_leaves_ten_seconds_for_calls_under_way() {
    let terms = Terms::default();
    assert_eq!([terms.duration, terms.renew, terms.retry, terms.call].map(|span| span.as_secs()), [30, 20, 5, 5]);
    assert!(terms.renew + terms.call < terms.duration);
}

#[tokio::test]
async fn of_two_candidates_one_leads_and_a_clean_stop_lets_the_other_go_on_at_once() {
    let client = admin().await;
    let space = namespace(&client).await;
    let leases = Api::<Lease>::namespaced(client.clone(), &space);
    let first = leader(&client, &space, "first").await;
    let deadline = first.deadline();
    let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
    let keeping = tokio::spawn(first.keep(stop.clone()));

    let (known, told) = tokio::sync::watch::channel(false);
    let second = tokio::spawn({
        let second = candidate(&client, &space, "second");
        let ended = ended.clone();
        async move {
            let second = second.acquire(|| _ = known.send_replace(true)).await;
            second.keep(ended).await
        }
    });
    told.clone().wait_for(|told| *told).await.expect("the candidate reads the record");
    // Longer than a record is good for: it is the renewals that keep the second out.
    let renewed = spec(leases.get(NAME).await.unwrap()).renew_time;
    until(leases.clone(), NAME, "two renewals later", move |lease: Option<&Lease>| {
        let now = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.clone());
        now.zip(renewed.clone())
            .is_some_and(|(now, then)| now.0.duration_since(then.0) > jiff::SignedDuration::from_millis(1500))
    })
    .await;
    assert!(deadline.holds());
    assert!(held_by("first")(Some(&leases.get(NAME).await.unwrap())));

    stop.cancel();
    keeping.await.unwrap().expect("a clean stop");
    assert!(!deadline.holds());
    let lease = until(leases.clone(), NAME, "the second leads", held_by("second")).await.unwrap();
    assert_eq!(spec(lease).lease_transitions, Some(3), "first, nobody, second");
    ended.cancel();
    second.await.unwrap().expect("a clean stop");
}

#[tokio::test]
async fn a_silent_leader_may_no_longer_act_when_the_next_one_leads() {
    let client = admin().await;
    let space = namespace(&client).await;
    let silent = leader(&client, &space, "silent").await;
    let deadline = silent.deadline();
    assert!(deadline.holds());
    let begun = Instant::now();
    // Whoever comes along may not trust the times in the record, only what it has seen itself.
    let next = leader(&client, &space, "next").await;
    assert!(!deadline.holds());
    assert!(next.deadline().holds());
    assert!(begun.elapsed() >= TERMS.duration);
    // The silent one wakes up, and its first write tells it.
    assert!(matches!(silent.keep(CancellationToken::new()).await, Err(Error::TakenOver(by)) if by == "next"));
}

#[tokio::test]
async fn a_lease_taken_over_or_deleted_is_lost_for_good() {
    let client = admin().await;
    let space = namespace(&client).await;
    let leases = Api::<Lease>::namespaced(client.clone(), &space);

    let first = leader(&client, &space, "first").await;
    let deadline = first.deadline();
    let mut record = leases.get(NAME).await.unwrap();
    record.spec.as_mut().unwrap().holder_identity = Some("usurper".into());
    leases.replace(NAME, &PostParams::default(), &record).await.unwrap();
    assert!(matches!(first.keep(CancellationToken::new()).await, Err(Error::TakenOver(by)) if by == "usurper"));
    assert!(!deadline.holds());
    assert!(held_by("usurper")(Some(&leases.get(NAME).await.unwrap())), "not released in another's name");

    let second = leader(&client, &space, "second").await;
    leases.delete(NAME, &DeleteParams::default()).await.unwrap();
    assert!(matches!(second.keep(CancellationToken::new()).await, Err(Error::Deleted)));
}

#[tokio::test]
async fn a_label_put_on_the_record_is_no_loss() {
    let client = admin().await;
    let space = namespace(&client).await;
    let leases = Api::<Lease>::namespaced(client.clone(), &space);
    let first = leader(&client, &space, "first").await;
    let deadline = first.deadline();
    let mut record = leases.get(NAME).await.unwrap();
    let version = record.metadata.resource_version.clone();
    record.metadata.labels = Some([("seen".to_owned(), "yes".to_owned())].into());
    let labelled = leases.replace(NAME, &PostParams::default(), &record).await.unwrap();
    assert_ne!(version, labelled.metadata.resource_version);
    let stop = CancellationToken::new();
    let keeping = tokio::spawn(first.keep(stop.clone()));
    let renewed = until(leases, NAME, "renewed over the label", move |lease: Option<&Lease>| {
        lease.is_some_and(|lease| lease.metadata.resource_version != labelled.metadata.resource_version)
    });
    assert!(renewed.await.unwrap().metadata.labels.is_some());
    assert!(deadline.holds());
    stop.cancel();
    keeping.await.unwrap().expect("a clean stop");
}

/// A wire to the API server that falls silent when told: connections stay open, and no answer comes.
async fn wire(silent: CancellationToken) -> Client {
    let mut config = cluster().await.config(Who::Admin).await.unwrap();
    let server = config.cluster_url.authority().unwrap().to_string();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    config.cluster_url = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (server, silent) = (server.clone(), silent.clone());
            tokio::spawn(async move {
                let mut far = TcpStream::connect(server).await.unwrap();
                silent.run_until_cancelled(copy_bidirectional(&mut near, &mut far)).await;
                std::future::pending::<()>().await;
            });
        }
    });
    Client::try_from(config).unwrap()
}

#[tokio::test]
async fn without_an_answer_the_lease_is_lost_in_time() {
    let space = namespace(&admin().await).await;
    let silent = CancellationToken::new();
    let leader = leader(&wire(silent.clone()).await, &space, "cut off").await;
    let deadline = leader.deadline();
    let stop = CancellationToken::new();
    let keeping = tokio::spawn(leader.keep(stop));
    silent.cancel();
    let begun = Instant::now();
    eventually("the deadline is over", async || (!deadline.holds()).then_some(())).await;
    assert!(begun.elapsed() < TERMS.duration, "nobody else may lead before that");
    assert!(matches!(keeping.await.unwrap(), Err(Error::NotRenewed(_))));
}

#[test]
fn without_election_the_deadline_always_holds() {
    assert!(Deadline::none().holds());
}
