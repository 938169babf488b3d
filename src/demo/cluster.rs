//! The demo's cluster: a control plane of its own, or the user's, with what Lamina needs in it; and its end.

use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::NamespaceResourceScope;
use kube::runtime::wait::{await_condition, conditions::is_deleted};
use kube::{Api, Client, Config, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::NAMESPACE;
use crate::api::{Connector, PlatformLayer, crd};
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
const LOOK: Duration = Duration::from_secs(1);

pub struct Cluster {
    own: Option<ControlPlane>,
    /// Kubeconfig to tell the user about.
    kubeconfig: PathBuf,
    /// A person with all rights.
    pub person: Client,
}

impl Cluster {
    /// Makes nothing in a cluster of the user's yet.
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
        let kubeconfig = plane.kubeconfig(Who::Admin).await?;
        Ok(Self { own: Some(plane), kubeconfig, person })
    }

    async fn users(file: PathBuf) -> anyhow::Result<Self> {
        let read = Kubeconfig::read_from(&file).with_context(|| format!("--kubeconfig {}", file.display()))?;
        let client = Client::try_from(Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?)?;
        unused(&client).await?;
        println!("using the cluster of {}: namespace {NAMESPACE}", file.display());
        Ok(Self { own: None, kubeconfig: file, person: client })
    }

    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// All that the demo needs there before its objects.
    pub async fn install(&self) -> anyhow::Result<()> {
        for definition in crd::crds()? {
            manifests::apply(&self.person, "default", &crd::to_yaml(&definition)?).await?;
        }
        if self.is_own() {
            for yaml in DEPLOY {
                manifests::apply(&self.person, "default", yaml).await.context("deploy/")?;
            }
        }
        let yaml = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n");
        manifests::apply(&self.person, "default", &yaml).await?;
        Ok(())
    }

    /// What the controller works with; in a cluster of the demo's own exactly the rights of `deploy/`.
    pub async fn controller(&self) -> anyhow::Result<Client> {
        let Some(plane) = &self.own else { return Ok(self.person.clone()) };
        let account = Who::ServiceAccount { namespace: "lamina-system", name: "lamina" };
        Ok(Client::try_from(plane.config(account).await?)?)
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
        println!("removing namespace {NAMESPACE} and Lamina's definitions");
        let namespaces = Api::<Namespace>::all(self.person.clone());
        if let Some(uid) = namespaces.get_opt(NAMESPACE).await?.and_then(|n| n.uid()) {
            namespaces.delete(NAMESPACE, &DeleteParams::default()).await?;
            let gone = async {
                // Not once: a controller that has not noticed yet may put one back on.
                while self.let_go::<PlatformLayer>().await.and(self.let_go::<Connector>().await).is_ok() {
                    let gone = await_condition(namespaces.clone(), NAMESPACE, is_deleted(&uid));
                    if let Ok(gone) = tokio::time::timeout(LOOK, gone).await {
                        return gone.map(|_| ()).map_err(anyhow::Error::from);
                    }
                }
                anyhow::bail!("its objects do not let go")
            };
            tokio::time::timeout(TIDY, gone).await.context("the namespace stays")??;
        }
        let definitions = Api::<CustomResourceDefinition>::all(self.person.clone());
        for definition in crd::crds()? {
            let name = definition.name_any();
            if let Some(uid) = definitions.get_opt(&name).await?.and_then(|found| found.uid()) {
                definitions.delete(&name, &DeleteParams::default()).await?;
                let gone = await_condition(definitions.clone(), &name, is_deleted(&uid));
                tokio::time::timeout(TIDY, gone).await.with_context(|| format!("{name} stays"))??;
            }
        }
        Ok(())
    }

    /// Takes the finalizers off. The disks are in the simulated pool, which is gone: nothing else holds these objects.
    async fn let_go<K>(&self) -> anyhow::Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let api = Api::<K>::namespaced(self.person.clone(), NAMESPACE);
        let bare = Patch::Merge(serde_json::json!({"metadata": {"finalizers": null}}));
        let held = missing_is_fine(api.list(&ListParams::default()).await)?.map(|list| list.items);
        for object in held.into_iter().flatten().filter(|object| !object.finalizers().is_empty()) {
            missing_is_fine(api.patch(&object.name_any(), &PatchParams::default(), &bare).await)?;
        }
        Ok(())
    }
}

/// Refuses a cluster where the demo could meet somebody's Lamina: two controllers would work on the same layers, and what is removed at the
/// end could be somebody's.
async fn unused(client: &Client) -> anyhow::Result<()> {
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    for definition in crd::crds()? {
        let name = definition.name_any();
        anyhow::ensure!(
            definitions.get_opt(&name).await?.is_none(),
            "this cluster has Lamina's definitions already ({name}), so Lamina may be at work in it, and the demo would get in its way. Use \
             another cluster, or none (without --kubeconfig the demo starts its own). If they are left from a demo that was killed: kubectl \
             delete namespace {NAMESPACE}, then kubectl delete crd {name}"
        );
    }
    anyhow::ensure!(
        Api::<Namespace>::all(client.clone()).get_opt(NAMESPACE).await?.is_none(),
        "this cluster has a namespace {NAMESPACE} already, which the demo would remove at its end with all that is in it. Remove it \
         yourself (kubectl delete namespace {NAMESPACE}) if nobody needs it, or use another cluster"
    );
    Ok(())
}

fn missing_is_fine<T>(result: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}
