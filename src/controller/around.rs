//! What a pass looks through: the pool as seen, and what the other layers of the cluster say.
//!
//! Called by `layer`. Nothing is decided here.

use kube::ResourceExt;

use super::context::{Context, connector_of};
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
    let siblings = ctx.layers_of(&connector_of(layer));
    let deleting = layer.metadata.deletion_timestamp.is_some();
    Lens {
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
        name_taken_by: older_namesake(layer, &siblings),
        around: around(ctx, layer, want),
    }
}

fn around(ctx: &Context, layer: &PlatformLayer, want: &Want) -> Around {
    let mut around = Around::default();
    let all = ctx.layers.state();
    for other in all.iter().filter_map(|guard| guard.0.as_ref().ok()) {
        let (own, leaving) = (other.metadata.uid == layer.metadata.uid, other.metadata.deletion_timestamp.is_some());
        around.alive.extend(other.uid());
        if !own && !leaving && !is_frozen(other) {
            around.wanted.insert(other.spec.os_layer.version.clone());
        }
        let Some(status) = &other.status else { continue };
        around.operations.extend(status.operation.as_ref().and_then(|o| o.opid.clone()));
        // Of two that go at the same time neither may leave the base to the other.
        if leaving {
            continue;
        }
        // A disk that is being thrown away names its base no more.
        let disk = status.disk.as_ref().filter(|d| !own || want.discard.as_ref() != Some(&d.version));
        let bases = disk.map(|d| &d.base).into_iter().chain(status.versions.iter().map(|v| &v.base));
        around.recorded_bases.extend(bases.flatten().map(|b| b.uuid.clone()));
    }
    around
}

/// The wanted version is there: nothing is made for it any more.
pub fn is_frozen(layer: &PlatformLayer) -> bool {
    layer.status.as_ref().is_some_and(|s| s.versions.iter().any(|v| v.version == layer.spec.version))
}

/// The older layer of the same name on the same Connector, in words.
fn older_namesake(layer: &PlatformLayer, siblings: &[PlatformLayer]) -> Option<String> {
    let age = |l: &PlatformLayer| (l.creation_timestamp(), l.uid());
    let older = siblings
        .iter()
        .find(|l| l.uid() != layer.uid() && l.layer_name() == layer.layer_name() && age(l) < age(layer))?;
    Some(format!("layer {}/{}", older.namespace().unwrap_or_default(), older.name_any()))
}
