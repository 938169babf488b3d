//! What the probes are told while the controller runs: ready once it knows all its objects and its loops run, alive while they do; and a stop
//! that waits for nothing that may never come.
use std::time::Duration;

use lamina::controller;
use lamina::local::Who;
use tokio_util::sync::CancellationToken;

use crate::common::rig::Rig;
use crate::common::{admin, apply, client, eventually};

/// May read namespaces and Connectors, but no layers: their watch never gets anywhere.
const HALF_BLIND: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: lamina-half-blind}
rules:
- {apiGroups: [''], resources: [namespaces], verbs: [get]}
- {apiGroups: [lamina.dev], resources: [connectors], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: lamina-half-blind}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: lamina-half-blind}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: lamina-half-blind}]
";

#[tokio::test(flavor = "multi_thread")]
async fn ready_once_all_objects_are_known_and_dead_with_its_loops() {
    let rig = Rig::new().await;
    let settings = rig.settings();
    let health = settings.health.clone();
    let stop = CancellationToken::new();
    let account = client(Who::ServiceAccount { namespace: "lamina-system", name: "lamina" }).await;
    let mut running = Box::pin(controller::run(account, settings, stop.clone()));
    // Whoever asks before the first object was read must not be told that all is well.
    assert!(futures::poll!(&mut running).is_pending());
    assert_ne!(health.missing(), Vec::<&str>::new());
    let running = tokio::spawn(running);
    eventually("ready", async || health.missing().is_empty().then_some(())).await;
    assert_eq!(health.dead(), Vec::<&str>::new());
    stop.cancel();
    running.await.expect("no panic").expect("a clean end");
    assert_eq!(health.dead(), ["connectors", "layers"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn not_ready_while_a_kind_cannot_be_read_and_stopped_at_once() {
    let rig = Rig::new().await;
    apply(&admin().await, "default", HALF_BLIND).await;
    let settings = rig.settings();
    let (health, metrics, stop) = (settings.health.clone(), settings.metrics.clone(), CancellationToken::new());
    let half_blind = client(Who::User { name: "half-blind", groups: &["lamina-half-blind"] }).await;
    let running = tokio::spawn(controller::run(half_blind, settings, stop.clone()));
    eventually("the Connectors are known", async || (health.missing() == ["layers"]).then_some(())).await;
    let reconciles = async || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &metrics.registry()).expect("metrics");
        text.contains("lamina_reconciles_total{kind=\"connector\"} 1").then_some(())
    };
    eventually("a look at the Connector waits for the layers", reconciles).await;
    stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(5), running).await;
    ended.expect("it stops at once").expect("no panic").expect("a clean end");
}
