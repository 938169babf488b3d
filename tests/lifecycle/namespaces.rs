//! A Connector that lives in another namespace: who is let in, who is not, and what that means for its deletion.

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use lamina::api::condition::{ConditionType, find};
use lamina::api::{Connector, PlatformLayer};
use lamina::sim::restart;
use serde_json::{Value, json};

use crate::common;
use crate::common::rig::{Rig, ready, says, status};

/// The Connector is in the rig's namespace, the layers in this other one.
struct Guests {
    rig: Rig,
    namespace: String,
    layers: Api<PlatformLayer>,
}

impl Guests {
    async fn new() -> Self {
        let rig = Rig::alone().await;
        let namespace = common::namespace(&rig.client).await;
        let layers = Api::namespaced(rig.client.clone(), &namespace);
        Self { rig, namespace, layers }
    }

    async fn layer(&self, name: &str) {
        let spec = json!({
            "version": "1", "purpose": "Packaging", "machine": {"powerOn": false}, "deletionPolicy": "Delete",
            "connectorRef": {"name": "lab", "namespace": self.rig.namespace},
            "osLayer": {"name": "Windows 11", "version": "24H2", "disk": {"name": "win11-24h2"}},
        });
        let manifest = json!({"apiVersion": "lamina.dev/v1alpha1", "kind": "PlatformLayer", "metadata": {"name": name}, "spec": spec});
        common::apply(&self.rig.client, &self.namespace, &manifest.to_string()).await;
    }

    async fn allow(&self, allowed: Value) {
        let patch = Patch::Merge(json!({"spec": {"allowedNamespaces": allowed}}));
        self.rig.connectors().patch("lab", &PatchParams::default(), &patch).await.expect("a patch");
    }

    async fn label(&self, team: &str) {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"team": team}}}));
        let namespaces = Api::<Namespace>::all(self.rig.client.clone());
        namespaces.patch(&self.namespace, &PatchParams::default(), &patch).await.expect("a label");
    }

    async fn until(&self, name: &str, reason: &str) -> PlatformLayer {
        let told = |l: Option<&PlatformLayer>| l.and_then(ready).is_some_and(|(r, _)| r == reason);
        common::until(self.layers.clone(), name, reason, told).await.expect("a layer")
    }

    async fn connector(&self, what: &str, holds: impl Fn(&Connector) -> bool + Send) -> Connector {
        let holds = |c: Option<&Connector>| c.is_some_and(&holds);
        common::until(self.rig.connectors(), "lab", what, holds).await.expect("a Connector")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_other_namespaces_are_let_in_as_the_connector_says() {
    let guests = Guests::new().await;
    let _controller = guests.rig.run().await;
    guests.rig.connector_ready().await;
    guests.layer("shut-out").await;
    let refused = guests.until("shut-out", "NamespaceNotAllowed").await;
    let (_, message) = ready(&refused).expect("Ready");
    let home = format!("'{}/lab'", guests.rig.namespace);
    assert!(message.contains(&home) && message.contains(&format!("'{}'", guests.namespace)), "{message}");
    assert_eq!(says(&refused, ConditionType::Stalled), "True/NamespaceNotAllowed");
    assert_eq!(says(&refused, ConditionType::ConnectorReady), "False/NamespaceNotAllowed");
    assert_eq!(status(&refused).pool, None);
    assert_eq!(guests.rig.hands.of_layer(&refused.uid().expect("a uid")).await.len(), 0);

    guests.allow(json!({"from": "All"})).await;
    guests.until("shut-out", "StartMachine").await;

    guests.allow(json!({"from": "Selector", "selector": {"matchLabels": {"team": "vdi"}}})).await;
    guests.layer("by-label").await;
    guests.until("by-label", "NamespaceNotAllowed").await;
    guests.label("vdi").await;
    // No watch of namespaces: whoever sets a label asks for a look, or waits for the next one.
    guests.until("by-label", "StartMachine").await;
}

/// Else whoever may make a layer anywhere could keep anybody's Connector from being deleted.
#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_not_let_in_do_not_hold_a_connector() {
    let guests = Guests::new().await;
    guests.allow(json!({"from": "Selector", "selector": {"matchLabels": {"team": "vdi"}}})).await;
    let _controller = guests.rig.run().await;
    guests.rig.connector_ready().await;
    guests.layer("uninvited").await;
    guests.until("uninvited", "NamespaceNotAllowed").await;
    let counted = guests
        .connector("looked again", |c| {
            let ready = c.status.as_ref().and_then(|s| find(&s.conditions, ConditionType::Ready));
            ready.is_some_and(|c| c.status == "True")
        })
        .await;
    assert_eq!(counted.status.and_then(|s| s.layers), Some(0));
    guests.rig.connectors().delete("lab", &DeleteParams::default()).await.expect("admitted");
    common::until(guests.rig.connectors(), "lab", "gone", |c: Option<&Connector>| c.is_none()).await;
}

/// Layers at rest are no reason to tell of the wrong coordinator.
#[tokio::test(flavor = "multi_thread")]
async fn the_coordinator_is_told_anew_when_it_changes() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    rig.layer("working", json!({"machine": {"powerOn": false}, "deletionPolicy": "Delete"})).await;
    rig.until_reason("working", "StartMachine").await;
    let told = async |coordinator: &str| {
        common::until(rig.connectors(), "lab", coordinator, |c: Option<&Connector>| {
            c.and_then(|c| c.status.as_ref()?.coordinator.as_deref()).is_some_and(|told| told.starts_with(coordinator))
        })
        .await
    };
    told("host1 ").await;
    let next = rig.hands.named("host", "host2").await;
    restart::change_coordinator(&rig.sim.pool, next.uuid()).await.expect("a host");
    told("host2 ").await;
    rig.connector_ready().await;
    rig.delete("working").await;
    rig.until_gone("working").await;
}
