//! Applies YAML as `kubectl apply --server-side` does, for machines without kubectl. Called by the demo and by the tests. Never the
//! controller's way to write: that has a type, one manager and one document an object.
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{Scope, pinned_kind};
use kube::runtime::wait::{await_condition, conditions::is_crd_established};
use kube::{Api, Client, ResourceExt};

/// Owner of the fields set here: a person with a command line.
const MANAGER: &str = "kubectl";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this is not a list of Kubernetes objects in YAML")]
    Yaml(#[from] serde_saphyr::Error),
    #[error("{0}: apiVersion and kind are needed")]
    Kind(String),
    #[error("the API server refused {object}")]
    Refused { object: String, source: kube::Error },
    #[error("{0} was not established")]
    NotEstablished(String, #[source] kube::runtime::wait::Error),
}

/// Applies the objects of `yaml` in order; those without a namespace that need one go to `namespace`. Returns them as the server has them
/// now. A definition is waited for, so that objects of its kind may follow it.
pub async fn apply(client: &Client, namespace: &str, yaml: &str) -> Result<Vec<DynamicObject>, Error> {
    let mut applied = Vec::new();
    for object in serde_saphyr::from_multiple::<DynamicObject>(yaml)? {
        applied.push(apply_one(client, namespace, object).await?);
    }
    Ok(applied)
}

async fn apply_one(client: &Client, namespace: &str, object: DynamicObject) -> Result<DynamicObject, Error> {
    let name = object.name_any();
    let types = object.types.as_ref().ok_or_else(|| Error::Kind(name.clone()))?;
    let kind = GroupVersionKind::try_from(types).map_err(|_| Error::Kind(name.clone()))?;
    let refused = |source| Error::Refused { object: format!("{} {name}", kind.kind), source };
    let (resource, capabilities) = pinned_kind(client, &kind).await.map_err(refused)?;
    let api: Api<DynamicObject> = match capabilities.scope {
        Scope::Cluster => Api::all_with(client.clone(), &resource),
        Scope::Namespaced => {
            Api::namespaced_with(client.clone(), object.metadata.namespace.as_deref().unwrap_or(namespace), &resource)
        }
    };
    let applied = api.patch(&name, &PatchParams::apply(MANAGER), &Patch::Apply(&object)).await.map_err(refused)?;
    if kind.kind == "CustomResourceDefinition" {
        let definitions = Api::<CustomResourceDefinition>::all(client.clone());
        await_condition(definitions, &name, is_crd_established())
            .await
            .map_err(|source| Error::NotEstablished(name.clone(), source))?;
    }
    Ok(applied)
}
