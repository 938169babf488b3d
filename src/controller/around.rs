//! What a pass looks through: the pool as seen, and what the other layers of the cluster say.
//!
//! Called by `layer`. Nothing is decided here.

use std::collections::HashSet;
use std::sync::Arc;

use kube::ResourceExt;

use super::context::{Context, Guarded, belongs, connector_of, readable};
use super::observe::{Around, Lens};
use super::site::Site;
use crate::api::PlatformLayer;
use crate::domain::want::Want;
use crate::xapi::view::View;

pub fn lens<'a>(
    ctx: &'a Context,
    layer: &'a PlatformLayer,
    want: &'a Want,
    site: &'a Site,
    view: &'a View,
    live: bool,
    slot: Result<(), String>,
) -> Lens<'a> {
    let (stored, key) = (ctx.layers.state(), connector_of(layer));
    let deleting = layer.metadata.deletion_timestamp.is_some();
    Lens {
        client: &ctx.client,
        program: ctx.program.as_ref(),
        cluster: &ctx.cluster,
        pace: &ctx.pace,
        pool: &site.pool,
        layer,
        want,
        connector: &site.connector,
        view,
        live,
        deleting,
        now: ctx.pace.now(),
        slot,
        name_taken_by: older_namesake(layer, readable(&stored).filter(|l| belongs(l, &key))),
        around: around(stored, layer, want),
    }
}

fn around(stored: Vec<Arc<Guarded<PlatformLayer>>>, layer: &PlatformLayer, want: &Want) -> Around {
    let (mut bases, mut wanted, mut operations) = (HashSet::new(), HashSet::new(), HashSet::new());
    for other in readable(&stored) {
        let (own, leaving) = (other.metadata.uid == layer.metadata.uid, other.metadata.deletion_timestamp.is_some());
        if !own && !leaving && !is_frozen(other) {
            wanted.insert(other.spec.os_layer.version.as_str());
        }
        let Some(status) = &other.status else { continue };
        operations.extend(status.operation.as_ref().and_then(|o| o.opid.as_deref()));
        // Of two that go at the same time neither may leave the base to the other.
        if leaving {
            continue;
        }
        // Whoever clones it is about to stand on it.
        bases.extend(status.operation.as_ref().filter(|_| !own).and_then(|o| o.source.as_deref()));
        // A disk that is being thrown away names its base no more.
        let disk = status.disk.as_ref().filter(|d| !own || want.discard.as_ref() != Some(&d.version));
        let named = disk.map(|d| &d.base).into_iter().chain(status.versions.iter().map(|v| &v.base));
        bases.extend(named.flatten().map(|b| b.uuid.as_str()));
    }
    // Thousands of layers stand on few bases.
    let owned = |set: HashSet<&str>| set.into_iter().map(str::to_owned).collect();
    let (recorded_bases, wanted, operations) = (owned(bases), owned(wanted), owned(operations));
    Around { recorded_bases, wanted, operations, stored }
}

/// The wanted version is there: nothing is made for it any more.
pub fn is_frozen(layer: &PlatformLayer) -> bool {
    layer.status.as_ref().is_some_and(|s| s.versions.iter().any(|v| v.version == layer.spec.version))
}

/// The older layer of the same name on the same Connector, in words.
fn older_namesake<'a>(layer: &PlatformLayer, mut siblings: impl Iterator<Item = &'a PlatformLayer>) -> Option<String> {
    let is_older = |l: &PlatformLayer| {
        let (its, ours) = (&l.metadata, &layer.metadata);
        (&its.creation_timestamp, &its.uid) < (&ours.creation_timestamp, &ours.uid)
    };
    let older = siblings.find(|l| l.layer_name() == layer.layer_name() && is_older(l))?;
    Some(format!("layer {}/{}", older.namespace().unwrap_or_default(), older.name_any()))
}
