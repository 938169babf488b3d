//! All layers of the cluster, by what one of them asks of the others: who stands on a base, whose operation a mark is of, who bears a name,
//! who holds a machine slot.
//!
//! Asked by `layer` and `observe`. Made anew from the store when that changed, and not for each pass: thousands of layers at rest must not be
//! looked through by each of thousands.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kube::ResourceExt;
use kube::runtime::reflector::Store;

use super::context::{ConnectorKey, Guarded, connector_of};
use super::slots;
use crate::api::PlatformLayer;

/// The census of the store as it is, kept until the store changes.
#[derive(Default)]
pub struct Registry {
    changes: AtomicU64,
    last: Mutex<Option<(u64, Arc<Census>)>>,
}

impl Registry {
    /// The store has changed. Told after it has.
    pub fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    pub fn census(&self, store: &Store<Guarded<PlatformLayer>>) -> Arc<Census> {
        // Read before the store is: what changes meanwhile is counted anew.
        let now = self.changes.load(Ordering::Acquire);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, census)) = last.as_ref().filter(|(at, _)| *at == now) {
            return Arc::clone(census);
        }
        let census = Arc::new(Census::of(&store.state()));
        *last = Some((now, Arc::clone(&census)));
        census
    }
}

/// See the module.
#[derive(Default)]
pub struct Census {
    layers: Vec<Arc<Guarded<PlatformLayer>>>,
    by_uid: HashMap<String, usize>,
    /// By uuid of S: whose status names it.
    bases: HashMap<String, Two>,
    /// By OS layer version: who has yet to make something of it.
    wanted: HashMap<String, Two>,
    /// By id of an operation: who is at it.
    operations: HashMap<String, Two>,
    oldest: HashMap<(ConnectorKey, String), usize>,
    unfinished: HashMap<ConnectorKey, Vec<usize>>,
}

/// The first two of a crowd: enough to know whether there is another one than oneself.
#[derive(Default)]
struct Two([Option<usize>; 2]);

impl Two {
    fn add(&mut self, who: usize) {
        match &mut self.0 {
            [Some(first), second @ None] if *first != who => *second = Some(who),
            [first @ None, _] => *first = Some(who),
            [Some(_), _] => {}
        }
    }

    fn is_another_than(&self, own: Option<usize>) -> bool {
        self.0.iter().flatten().any(|who| Some(*who) != own)
    }
}

impl Census {
    pub fn of(stored: &[Arc<Guarded<PlatformLayer>>]) -> Self {
        let mut census = Self { layers: stored.to_vec(), ..Self::default() };
        for (at, guard) in stored.iter().enumerate() {
            if let Ok(layer) = &guard.0 {
                census.enter(at, layer);
            }
        }
        census
    }

    fn enter(&mut self, at: usize, layer: &PlatformLayer) {
        self.by_uid.insert(layer.uid().unwrap_or_default(), at);
        let connector = connector_of(layer);
        let name = (connector.clone(), layer.layer_name().to_owned());
        if self.oldest.get(&name).and_then(|at| self.layer(*at)).is_none_or(|oldest| age(layer) < age(oldest)) {
            self.oldest.insert(name, at);
        }
        if !is_frozen(layer) || slots::in_work(layer) || slots::waits(layer) {
            self.unfinished.entry(connector).or_default().push(at);
        }
        let leaving = layer.metadata.deletion_timestamp.is_some();
        if !leaving && !is_frozen(layer) {
            self.wanted.entry(layer.spec.os_layer.version.clone()).or_default().add(at);
        }
        let operation = layer.status.as_ref().and_then(|s| s.operation.as_ref());
        if let Some(id) = operation.and_then(|o| o.opid.clone()) {
            self.operations.entry(id).or_default().add(at);
        }
        // Of two that go at the same time neither may leave the base to the other.
        if leaving {
            return;
        }
        // Whoever clones it is about to stand on it.
        let source = operation.and_then(|o| o.source.as_deref());
        for base in source.into_iter().chain(bases(layer, None)) {
            self.bases.entry(base.to_owned()).or_default().add(at);
        }
    }

    fn layer(&self, at: usize) -> Option<&PlatformLayer> {
        self.layers.get(at)?.0.as_ref().ok()
    }

    /// The layer of this uid.
    pub fn with_uid(&self, uid: &str) -> Option<&PlatformLayer> {
        self.layer(*self.by_uid.get(uid)?)
    }

    /// Is a layer at the operation of this id?
    pub fn is_at(&self, operation: &str) -> bool {
        self.operations.contains_key(operation)
    }

    /// A layer that is at the operation of this id.
    pub fn who_is_at(&self, operation: &str) -> Option<&PlatformLayer> {
        self.layer(self.operations.get(operation)?.0[0]?)
    }

    /// Is another layer than `own` at it? What one's own records say, one knows better than the store, which may lag behind.
    pub fn is_another_at(&self, operation: &str, own: &str) -> bool {
        self.operations.get(operation).is_some_and(|who| who.is_another_than(self.by_uid.get(own).copied()))
    }

    /// Has another layer than `own` yet to make something of this OS layer version?
    pub fn is_wanted(&self, os_version: &str, own: &str) -> bool {
        self.wanted.get(os_version).is_some_and(|who| who.is_another_than(self.by_uid.get(own).copied()))
    }

    /// Does any layer's status name this S? `own` counts by what its records name, less the version that it throws away.
    pub fn is_base(&self, uuid: &str, own: &str, discarded: Option<&str>) -> bool {
        let stays = |layer: &&PlatformLayer| layer.metadata.deletion_timestamp.is_none();
        self.bases.get(uuid).is_some_and(|who| who.is_another_than(self.by_uid.get(own).copied()))
            || self.with_uid(own).filter(stays).is_some_and(|layer| bases(layer, discarded).any(|base| base == uuid))
    }

    /// The oldest layer of the same name on the same Connector, if that is another one.
    pub fn older_namesake(&self, layer: &PlatformLayer) -> Option<&PlatformLayer> {
        let oldest = self.oldest.get(&(connector_of(layer), layer.layer_name().to_owned()))?;
        self.layer(*oldest).filter(|oldest| age(oldest) < age(layer))
    }

    /// Those of a Connector that hold a machine slot or may come to ask for one.
    pub fn unfinished(&self, connector: &ConnectorKey) -> impl Iterator<Item = &PlatformLayer> + Clone {
        self.unfinished.get(connector).into_iter().flatten().filter_map(|at| self.layer(*at))
    }
}

/// The wanted version is there: nothing is made for it any more.
pub fn is_frozen(layer: &PlatformLayer) -> bool {
    layer.status.as_ref().is_some_and(|s| s.versions.iter().any(|v| v.version == layer.spec.version))
}

/// The S that a layer's disks stand on. A disk that is being thrown away names its base no more.
fn bases<'a>(layer: &'a PlatformLayer, discarded: Option<&str>) -> impl Iterator<Item = &'a str> {
    let status = layer.status.iter();
    let disk = status.clone().filter_map(|s| s.disk.as_ref());
    let disk = disk.filter(move |d| discarded != Some(d.version.as_str())).filter_map(|d| d.base.as_ref());
    let versions = status.flat_map(|s| &s.versions).filter_map(|v| v.base.as_ref());
    disk.chain(versions).map(|base| base.uuid.as_str())
}

fn age(layer: &PlatformLayer) -> (Option<jiff::Timestamp>, Option<&str>) {
    (layer.metadata.creation_timestamp.as_ref().map(|t| t.0), layer.metadata.uid.as_deref())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn layer(uid: &str, patch: Value) -> Arc<Guarded<PlatformLayer>> {
        let mut layer = json!({
            "apiVersion": "lamina.dev/v1alpha1", "kind": "PlatformLayer",
            "metadata": {"name": uid, "namespace": "home", "uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"version": "1", "purpose": "Packaging", "connectorRef": {"name": "lab"}, "layerName": "same",
                "osLayer": {"name": "w", "version": "22H2", "disk": {"name": "w"}}},
        });
        merge(&mut layer, patch);
        Arc::new(kube::core::DeserializeGuard(Ok(serde_json::from_value(layer).expect("a layer"))))
    }

    fn merge(to: &mut Value, from: Value) {
        match (to, from) {
            (Value::Object(to), Value::Object(from)) => {
                from.into_iter().for_each(|(key, value)| merge(to.entry(key).or_insert(Value::Null), value));
            }
            (to, from) => *to = from,
        }
    }

    fn on(base: &str) -> Value {
        json!({"status": {"phase": "DiskCreated", "disk": {"uuid": "w", "version": "1", "base": {"from": "OSLayer", "uuid": base}}}})
    }

    #[test]
    fn one_counts_by_its_records_and_others_by_what_they_are_about_to_use_too() {
        let cloning = json!({"status": {"operation": {"step": "CloneDisk", "opid": "o1", "source": "s2"}}});
        let census = Census::of(&[layer("a", on("s1")), layer("b", cloning), layer("c", json!({}))]);
        assert!(census.is_base("s1", "a", None) && census.is_base("s1", "b", None));
        assert!(!census.is_base("s1", "a", Some("1")), "its disk is thrown away");
        assert!(census.is_base("s1", "a", Some("2")));
        assert!(census.is_base("s2", "a", None) && !census.is_base("s2", "b", None));
        assert!(census.is_at("o1") && !census.is_at("o2"));
        assert!(census.is_another_at("o1", "a") && !census.is_another_at("o1", "b"));
        assert!(census.with_uid("b").is_some() && census.with_uid("x").is_none());
    }

    #[test]
    fn who_leaves_holds_nothing_and_two_users_are_more_than_oneself() {
        let mut leaving = on("s1");
        leaving["metadata"] = json!({"deletionTimestamp": "2026-01-02T00:00:00Z", "finalizers": ["lamina.dev/pool"]});
        let census = Census::of(&[layer("a", leaving.clone()), layer("b", leaving)]);
        assert!(!census.is_base("s1", "a", None) && !census.is_wanted("22H2", "x"));
        let census = Census::of(&[layer("a", on("s1")), layer("b", on("s1"))]);
        assert!(census.is_base("s1", "a", Some("1")) && census.is_wanted("22H2", "a"));
        assert!(!Census::of(&[layer("a", json!({}))]).is_wanted("22H2", "a"));
    }

    #[test]
    fn the_oldest_has_the_name_and_the_finished_want_no_slot() {
        let young = layer("b", json!({"metadata": {"creationTimestamp": "2026-01-02T00:00:00Z"}}));
        let done = json!({"status": {"phase": "Finalized", "versions": [{"version": "1", "disk": "f", "finalizedAt": "2026-01-03T00:00:00Z"}]},
            "metadata": {"creationTimestamp": "2026-01-03T00:00:00Z"}});
        let census = Census::of(&[layer("c", done), young, layer("a", json!({}))]);
        let older = |uid| census.older_namesake(census.with_uid(uid).unwrap()).map(|l| l.name_any());
        assert_eq!((older("a"), older("b"), older("c")), (None, Some("a".to_owned()), Some("a".to_owned())));
        let lab = ("home".to_owned(), "lab".to_owned());
        assert_eq!(census.unfinished(&lab).map(|l| l.name_any()).collect::<Vec<_>>(), ["b", "a"]);
    }
}
