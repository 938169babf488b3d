//! Which Connector each layer belongs to, its name there and whether it has a machine slot, as the watch last told.
//!
//! Kept by `watched`, which is told of each event. When one changes, it wakes those whom it concerns: the Connector, whose users are
//! counted, the layers that wanted its name, and those whose turn it is for a slot. Only wakes: who may have them is said elsewhere.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use kube::Resource;

use super::context::{ConnectorKey, Context, Guarded, belongs, connector_of, readable};
use super::link::wake_connector;
use super::slots;
use crate::api::PlatformLayer;

/// All layers, by uid.
#[derive(Default)]
pub struct Roster(Mutex<HashMap<String, Place>>);

#[derive(Clone)]
struct Place {
    connector: ConnectorKey,
    name: String,
    deleting: bool,
    in_work: bool,
}

impl Roster {
    /// Takes out those that are not in the store any more, each with the Connector where it belonged.
    pub fn gone(&self, stored: &[Arc<Guarded<PlatformLayer>>]) -> Vec<(String, ConnectorKey)> {
        let there: HashSet<_> = stored.iter().filter_map(|guard| guard.meta().uid.as_ref()).collect();
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.extract_if(|uid, _| !there.contains(uid)).map(|(uid, place)| (uid, place.connector)).collect()
    }

    /// A layer as the store has it now; `gone`: as it had it last. Returns where it belonged before.
    pub fn seen(&self, ctx: &Context, stored: &Guarded<PlatformLayer>, gone: bool) -> Option<ConnectorKey> {
        let uid = stored.meta().uid.clone()?;
        let now = stored.0.as_ref().ok().filter(|_| !gone).map(|layer| Place {
            connector: connector_of(layer),
            name: layer.layer_name().to_owned(),
            deleting: layer.metadata.deletion_timestamp.is_some(),
            in_work: slots::in_work(layer),
        });
        let before = {
            let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match now.clone() {
                Some(now) => places.insert(uid, now),
                None => places.remove(&uid),
            }
        };
        let user = |p: &Place| (p.connector.clone(), p.deleting);
        if before.as_ref().map(user) != now.as_ref().map(user) {
            [&before, &now].into_iter().flatten().for_each(|p| wake_connector(ctx, &p.connector));
        }
        let name = |p: &Place| (p.connector.clone(), p.name.clone());
        if let Some((connector, free)) =
            before.as_ref().map(name).filter(|old| Some(old) != now.as_ref().map(name).as_ref())
        {
            let stored = ctx.layers.state();
            let wanted = readable(&stored).filter(|l| l.layer_name() == free && belongs(l, &connector));
            wanted.for_each(|layer| ctx.wake(layer));
        }
        let belonged = before.as_ref().map(|p| p.connector.clone());
        let left = before.filter(|p| p.in_work).map(|p| p.connector);
        let left = left.filter(|left| now.is_none_or(|p| !p.in_work || p.connector != *left));
        if let Some(connector) = left {
            let limit = ctx.connector(&connector).and_then(|c| usize::try_from(c.spec.limits.machines).ok());
            let (stored, slots) = (ctx.layers.state(), ctx.slots.lock().unwrap_or_else(PoisonError::into_inner));
            let all = readable(&stored).filter(|l| belongs(l, &connector));
            slots.due(all, limit.unwrap_or_default()).into_iter().for_each(|layer| ctx.wake(layer));
        }
        belonged
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A watch that begins anew tells of all that are there, and of none that went meanwhile.
    #[test]
    fn who_is_not_in_the_store_any_more_is_taken_out_with_where_it_belonged() {
        let lab: ConnectorKey = ("desktops".to_owned(), "lab".to_owned());
        let place = Place { connector: lab.clone(), name: "a".to_owned(), deleting: false, in_work: true };
        let places = ["gone", "there", "odd"].map(|uid| (uid.to_owned(), place.clone()));
        let roster = Roster(Mutex::new(HashMap::from(places)));
        let stored = |object: serde_json::Value| Arc::new(serde_json::from_value(object).expect("an object"));
        let object = |uid: &str, spec| json!({"apiVersion": "lamina.dev/v1alpha1", "kind": "PlatformLayer", "metadata": {"name": uid, "uid": uid}, "spec": spec});
        let whole = json!({"version": "1", "purpose": "Packaging", "connectorRef": {"name": "lab"},
            "osLayer": {"name": "w", "version": "1", "disk": {"name": "w"}}});
        // One that cannot be read is there.
        let stored = [stored(object("there", whole)), stored(object("odd", json!({})))];
        assert_eq!(roster.gone(&stored), [("gone".to_owned(), lab)]);
        assert_eq!(roster.gone(&stored), [], "each once");
        assert_eq!(roster.gone(&[]).len(), 2);
    }
}
