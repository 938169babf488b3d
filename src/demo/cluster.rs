//! The demo's cluster: a control plane of its own, or the user's, with what Lamina needs in it; and its end.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::DeleteParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::{await_condition, conditions::is_deleted};
use kube::{Api, Client, Config, ResourceExt};

use super::NAMESPACE;
use crate::api::crd;
use crate::local::{ControlPlane, Options, Who, manifests};
use crate::sim::serve::Sim;

/// All that `kubectl apply -k deploy` would apply, but for the pod itself: the controller runs in this process.
const DEPLOY: [&str; 4] = [
    include_str!("../../deploy/namespace.yaml"),
    include_str!("../../deploy/rbac.yaml"),
    include_str!("../../deploy/roles.yaml"),
    include_str!("../../deploy/admission.yaml"),
];
const TIDY: Duration = Duration::from_secs(120);

pub struct Cluster {
    own: Option<ControlPlane>,
    /// Kubeconfig to tell the user about.
    kubeconfig: PathBuf,
    /// A person with all rights.
    pub person: Client,
    /// The controller; in a cluster of the demo's own with exactly the rights of `deploy/`.
    pub controller: Client,
    /// Definitions that were not there before.
    fresh: Vec<String>,
}

impl Cluster {
    pub async fn start(kubeconfig: Option<PathBuf>) -> anyhow::Result<Self> {
        match kubeconfig {
            None => Self::own().await,
            Some(file) => Self::users(file).await,
        }
    }

    async fn own() -> anyhow::Result<Self> {
        println!(
            "starting a control plane (etcd, kube-apiserver, kube-controller-manager); the first time it is built, which takes some minutes"
        );
        let plane = ControlPlane::start(Options::default()).await?;
        let person = Client::try_from(plane.config(Who::Admin).await?)?;
        let fresh = definitions(&person).await?;
        for yaml in DEPLOY {
            manifests::apply(&person, "default", yaml).await.context("deploy/")?;
        }
        namespace(&person).await?;
        let account = Who::ServiceAccount { namespace: "lamina-system", name: "lamina" };
        let controller = Client::try_from(plane.config(account).await?)?;
        let kubeconfig = plane.kubeconfig(Who::Admin).await?;
        Ok(Self { own: Some(plane), kubeconfig, person, controller, fresh })
    }

    async fn users(file: PathBuf) -> anyhow::Result<Self> {
        let read = Kubeconfig::read_from(&file).with_context(|| format!("--kubeconfig {}", file.display()))?;
        let client = Client::try_from(Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?)?;
        println!("using the cluster of {}: namespace {NAMESPACE}", file.display());
        let fresh = definitions(&client).await?;
        namespace(&client).await?;
        Ok(Self { own: None, kubeconfig: file, person: client.clone(), controller: client, fresh })
    }

    /// How to reach what was left running.
    pub fn tell(&self, sim: &Sim) {
        println!("\neverything goes on until Ctrl-C. In another terminal:\n");
        println!("  export KUBECONFIG={}", self.kubeconfig.display());
        println!("  kubectl get platformlayers,connectors -n {NAMESPACE}\n");
        println!("the simulated pool: {} (root, secret)", sim.urls().join(" "));
    }

    /// Removes what was made in the user's cluster. A cluster of our own goes with this.
    pub async fn clear(self) -> anyhow::Result<()> {
        if self.own.is_some() {
            return Ok(());
        }
        println!("removing namespace {NAMESPACE}");
        // Its disks are in the simulated pool, which is gone: nothing holds the layers but their finalizers.
        let layers = Api::<crate::api::PlatformLayer>::namespaced(self.person.clone(), NAMESPACE);
        for layer in layers.list(&Default::default()).await?.items {
            let bare = serde_json::json!({"metadata": {"finalizers": null}});
            layers.patch(&layer.name_any(), &Default::default(), &kube::api::Patch::Merge(&bare)).await?;
        }
        let namespaces = Api::<Namespace>::all(self.person.clone());
        if let Some(uid) = namespaces.get_opt(NAMESPACE).await?.and_then(|n| n.uid()) {
            namespaces.delete(NAMESPACE, &DeleteParams::default()).await?;
            tokio::time::timeout(TIDY, await_condition(namespaces, NAMESPACE, is_deleted(&uid)))
                .await
                .context("the namespace stays")??;
        }
        let definitions = Api::<CustomResourceDefinition>::all(self.person.clone());
        for name in &self.fresh {
            definitions.delete(name, &DeleteParams::default()).await?;
        }
        Ok(())
    }
}

/// Applies the definitions; returns those that were not there.
async fn definitions(client: &Client) -> anyhow::Result<Vec<String>> {
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    let mut fresh = Vec::new();
    for definition in crd::crds()? {
        let name = definition.name_any();
        if api.get_opt(&name).await?.is_none() {
            fresh.push(name);
        }
        manifests::apply(client, "default", &crd::to_yaml(&definition)?).await?;
    }
    Ok(fresh)
}

async fn namespace(client: &Client) -> anyhow::Result<()> {
    let yaml = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n");
    manifests::apply(client, "default", &yaml).await?;
    Ok(())
}
