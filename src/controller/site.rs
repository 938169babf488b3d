//! Where a layer is made: its Connector and that Connector's pool, or why there is none.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use kube::core::{Selector, SelectorExt};
use kube::{Api, ResourceExt};

use super::context::{Context, connector_of};
use super::pool::Pool;
use crate::api::condition::{ConditionType, find};
use crate::api::connector::{AllowedNamespaces, NamespacesFrom};
use crate::api::reason::Reason;
use crate::api::{Connector, PlatformLayer};
use crate::domain::observed::Trouble;

/// A Connector that can be used, as far as the layer may tell.
pub struct Site {
    pub connector: Connector,
    pub pool: Arc<Pool>,
}

/// Why a layer has no site.
pub enum NoSite {
    Trouble(Trouble),
    /// The Connector's status says that it is ready, and this process has not looked at its pool yet, or has just lost it: what was told of
    /// the layer still holds, until the Connector tells otherwise. Without this each restart would write every status twice.
    NotYet(Trouble),
}

impl From<Trouble> for NoSite {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

/// The site of a layer. A Connector whose template or tools are wrong still leads to its pool: what is there is looked after.
pub async fn site(ctx: &Context, layer: &PlatformLayer) -> Result<Site, NoSite> {
    let key = connector_of(layer);
    let (namespace, name) = (&key.0, &key.1);
    let Some(connector) = ctx.connector(&key) else {
        return Err(Trouble::new(
            Reason::ConnectorNotFound,
            format!(
                "there is no Connector '{name}' in namespace '{namespace}' that can be read: create it, or correct spec.connectorRef"
            ),
        )
        .into());
    };
    let home = layer.namespace().unwrap_or_default();
    if !is_admitted(ctx, &connector, &home).await? {
        return Err(not_allowed(&connector, &home).into());
    }
    let conditions = connector.status.iter().flat_map(|s| &s.conditions).cloned().collect::<Vec<_>>();
    let told = find(&conditions, ConditionType::Ready);
    if let Some(changed) =
        find(&conditions, ConditionType::CoordinatorFound).filter(|c| c.reason == Reason::PoolChanged.as_str())
    {
        return Err(Trouble::new(Reason::PoolChanged, changed.message.clone()).into());
    }
    let not_ready = || {
        let failed = told.filter(|c| c.status != "True");
        let why = failed.map_or("it is being connected", |c| c.message.as_str());
        let trouble = Trouble::new(Reason::ConnectorNotReady, format!("Connector '{name}' is not ready: {why}"));
        if told.is_some() && failed.is_none() { NoSite::NotYet(trouble) } else { NoSite::Trouble(trouble) }
    };
    let pool = ctx.pools.get(&key).ok_or_else(not_ready)?;
    if pool.mirror.view().synced { Ok(Site { connector, pool }) } else { Err(not_ready()) }
}

/// Does the Connector let this namespace in?
pub async fn is_admitted(ctx: &Context, connector: &Connector, namespace: &str) -> Result<bool, Trouble> {
    let allowed = &connector.spec.allowed_namespaces;
    if connector.namespace().is_some_and(|home| home == namespace) {
        return Ok(true);
    }
    let labels = if allowed.from == NamespacesFrom::Selector {
        let unread = |_| Trouble::new(Reason::APIServerError, format!("namespace '{namespace}' could not be read"));
        Api::<Namespace>::all(ctx.client.clone()).get(namespace).await.map_err(unread)?.labels().clone()
    } else {
        BTreeMap::new()
    };
    Ok(lets_in(allowed, &labels))
}

/// Another namespace than the Connector's own, by its labels. A selector that cannot be read lets nobody in.
fn lets_in(allowed: &AllowedNamespaces, labels: &BTreeMap<String, String>) -> bool {
    match (allowed.from, &allowed.selector) {
        (NamespacesFrom::All, _) => true,
        (NamespacesFrom::Same, _) | (NamespacesFrom::Selector, None) => false,
        (NamespacesFrom::Selector, Some(selector)) => {
            Selector::try_from(selector.clone()).is_ok_and(|s| s.matches(labels))
        }
    }
}

fn not_allowed(connector: &Connector, namespace: &str) -> Trouble {
    let text = format!(
        "Connector '{}/{}' does not let namespace '{namespace}' in: have it added to the Connector's spec.allowedNamespaces, or use another Connector",
        connector.namespace().unwrap_or_default(),
        connector.name_any()
    );
    Trouble::new(Reason::NamespaceNotAllowed, text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn namespaces_are_let_in_by_name_or_label() {
        let labels = [("team".to_owned(), "vdi".to_owned())].into();
        for (allowed, in_) in [
            (json!({}), false),
            (json!({"from": "All"}), true),
            (json!({"from": "Selector", "selector": {"matchLabels": {"team": "vdi"}}}), true),
            (json!({"from": "Selector", "selector": {"matchLabels": {"team": "other"}}}), false),
            (json!({"from": "Selector", "selector": {"matchExpressions": [{"key": "a", "operator": "?"}]}}), false),
        ] {
            assert_eq!(lets_in(&serde_json::from_value(allowed.clone()).expect("a rule"), &labels), in_, "{allowed}");
        }
        let connector = json!({"apiVersion": "lamina.dev/v1alpha1", "kind": "Connector", "metadata": {"name": "lab", "namespace": "home"},
            "spec": {"endpoints": ["https://x"], "credentialsSecretRef": {"name": "lab"}, "template": "t", "storageRepository": "s"}});
        let told = not_allowed(&serde_json::from_value(connector).expect("a Connector"), "guests");
        assert_eq!(told.reason, Reason::NamespaceNotAllowed);
        assert!(told.message.contains("'home/lab'") && told.message.contains("'guests'"), "{}", told.message);
    }
}
