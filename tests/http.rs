//! The doors of `lamina run`, over a real socket.
use std::time::Duration;

use lamina::controller::metrics::Metrics;
use lamina::http::{Doors, serve};
use lamina::telemetry::{Health, subscriber};
use reqwest::{Client, StatusCode};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct House {
    url: String,
    doors: Doors,
    metrics: Metrics,
    stop: CancellationToken,
    serving: JoinHandle<std::io::Result<()>>,
    /// The log level is a handle on this, and gone with it.
    logs: tracing::Dispatch,
}

async fn house() -> House {
    crate::common::tls();
    let (logs, level) = subscriber("info").unwrap();
    let metrics = Metrics::default();
    let doors = Doors { health: Health::default(), metrics: metrics.registry(), level };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve(listener, doors.clone(), stop.clone()));
    House { url, doors, metrics, stop, serving, logs: logs.into() }
}

impl House {
    async fn get(&self, path: &str) -> (StatusCode, String) {
        let answer = Client::new().get(format!("{}{path}", self.url)).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    async fn set_level(&self, directives: &'static str) -> (StatusCode, String) {
        let answer = Client::new().put(format!("{}/loglevel", self.url)).body(directives).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }
}

#[tokio::test]
async fn ready_when_all_that_is_awaited_has_come() {
    let house = house().await;
    house.doors.health.awaits("lease");
    house.doors.health.awaits("layers");
    assert_eq!(house.get("/readyz").await, (StatusCode::SERVICE_UNAVAILABLE, "not there yet: layers, lease\n".into()));
    house.doors.health.came("lease");
    assert_eq!(house.get("/readyz").await, (StatusCode::SERVICE_UNAVAILABLE, "not there yet: layers\n".into()));
    house.doors.health.came("layers");
    assert_eq!(house.get("/readyz").await, (StatusCode::OK, "ok\n".into()));
}

#[tokio::test]
async fn not_alive_once_a_task_has_ended_however_it_ended() {
    let house = house().await;
    let reconcile = house.doors.health.alive("reconcile loop");
    let lease = house.doors.health.alive("lease");
    assert_eq!(house.get("/livez").await, (StatusCode::OK, "ok\n".into()));
    let panicked = tokio::spawn(async move {
        let _alive = reconcile;
        panic!("a bug");
    });
    assert!(panicked.await.is_err());
    assert_eq!(
        house.get("/livez").await,
        (StatusCode::SERVICE_UNAVAILABLE, "ended, restart the process: reconcile loop\n".into())
    );
    drop(lease);
    assert_eq!(house.get("/livez").await.1, "ended, restart the process: lease, reconcile loop\n");
}

#[tokio::test]
async fn metrics_are_open_metrics_and_count_each_layer_once() {
    let house = house().await;
    let metrics = &house.metrics;
    metrics.layer("a", "Pending", Some("WaitingForSlot"));
    metrics.layer("a", "Pending", Some("WaitingForSlot"));
    metrics.layer("b", "Pending", None);
    metrics.layer("b", "DiskCreated", None);
    metrics.layer("c", "Finalized", None);
    metrics.forget_layer("c");
    metrics.fault("wait");
    metrics.xapi_call("VDI.clone", "ok", Duration::from_millis(7));
    metrics.event_lag(Duration::from_millis(7));
    metrics.lease_held(true);
    metrics.reconcile("PlatformLayer");
    metrics.status_write("PlatformLayer");
    metrics.stream_error("watch");
    metrics.sr_free("lab/pool", &[("fast".into(), 5), ("slow".into(), 6)]);
    metrics.sr_free("lab/pool", &[("fast".into(), 4)]);
    metrics.sr_free("lab/other", &[("fast".into(), 9)]);
    metrics.sr_free("lab/other", &[]);
    let (status, text) = house.get("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    let mut samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#') && !line.contains("_bucket")).collect();
    samples.sort_unstable();
    insta::assert_snapshot!(samples.join("\n"), @r#"
    lamina_event_lag_seconds_count 1
    lamina_event_lag_seconds_sum 0.007
    lamina_faults_total{kind="wait"} 1
    lamina_layers{phase="DiskCreated"} 1
    lamina_layers{phase="Finalized"} 0
    lamina_layers{phase="Pending"} 1
    lamina_lease_held 1
    lamina_reconciles_total{kind="PlatformLayer"} 1
    lamina_sr_free_bytes{connector="lab/pool",sr="fast"} 4
    lamina_status_writes_total{kind="PlatformLayer"} 1
    lamina_stream_errors_total{stream="watch"} 1
    lamina_waits{reason="WaitingForSlot"} 1
    lamina_xapi_call_seconds_count{call="VDI.clone"} 1
    lamina_xapi_call_seconds_sum{call="VDI.clone"} 0.007
    lamina_xapi_calls_total{call="VDI.clone",outcome="ok"} 1
    "#);
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn the_log_level_changes_while_running() {
    let house = house().await;
    let debug = || {
        tracing::dispatcher::with_default(&house.logs, || tracing::enabled!(target: "lamina", tracing::Level::DEBUG))
    };
    assert_eq!(house.get("/loglevel").await, (StatusCode::OK, "info\n".into()));
    assert!(!debug());
    assert_eq!(house.set_level("debug\n").await.0, StatusCode::NO_CONTENT);
    assert_eq!(house.get("/loglevel").await.1, "debug\n");
    assert!(debug());
    let (status, words) = house.set_level("lamina=loud").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(words.contains("not a log filter") && words.contains("try `debug`"), "{words}");
    assert_eq!(house.get("/loglevel").await.1, "debug\n");
}

#[tokio::test]
async fn the_log_level_is_not_for_strangers() {
    let house = house().await;
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(serve(listener, house.doors.clone(), house.stop.clone()));
    // The address by which others reach this machine, if it has one: no packet is sent to find it.
    let outward = tokio::net::UdpSocket::bind("0.0.0.0:0").await.unwrap();
    if outward.connect("192.0.2.1:9").await.is_err() {
        return;
    }
    let url = format!("http://{}:{port}/loglevel", outward.local_addr().unwrap().ip());
    let answer = Client::new().put(&url).body("trace").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    assert!(answer.text().await.unwrap().contains("kubectl port-forward"));
    assert_eq!(Client::new().get(&url).send().await.unwrap().text().await.unwrap(), "info\n");
}

#[tokio::test]
async fn stops_when_told() {
    let house = house().await;
    house.stop.cancel();
    house.serving.await.unwrap().unwrap();
}
