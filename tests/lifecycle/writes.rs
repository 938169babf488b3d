//! Two who write on the same layer: whoever has not seen the other's word does not overwrite it, and looks again.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use lamina::api::{FINALIZER, Phase};
use lamina::controller::Settings;
use lamina::controller::lease::{Candidate, Terms};
use lamina::controller::write::{self, WriteError};
use serde_json::json;

use crate::common::rig::{PACE, Rig, quick, status};

/// The pool chose what to tell of, and has yet to read it.
const LOOK: &str = "event.from/read";

/// A leader that slept while another one led holds what it had read before.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_decided_on_an_older_status_is_not_written() {
    let rig = Rig::new().await;
    rig.layer("slept", json!({})).await;
    let read = rig.layers().get("slept").await.expect("a layer");
    let said = |pool: &str| {
        let mut said = status(&read);
        said.pool = Some(pool.to_owned());
        said
    };
    write::publish(&rig.layers(), &PACE, &read, &said("newer")).await.expect("the first word");
    assert!(write::publish(&rig.layers(), &PACE, &read, &said("older")).await.is_err());
    assert!(write::set_finalizer(&rig.layers(), &PACE, &read, true).await.is_err());
    let now = rig.layers().get("slept").await.expect("a layer");
    assert_eq!((status(&now).pool.as_deref(), now.finalizers()), (Some("newer"), [].as_slice()));
    write::set_finalizer(&rig.layers(), &PACE, &now, true).await.expect("who has read it may");
    let now = rig.layers().get("slept").await.expect("a layer");
    assert_eq!((status(&now).pool.as_deref(), now.finalizers()), (Some("newer"), [FINALIZER.to_owned()].as_slice()));
}

/// Notes of other tools move an object's version, and decide nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_note_on_a_connector_makes_no_word_outdated() {
    let rig = Rig::new().await;
    let api = rig.connectors();
    let read = api.get("lab").await.expect("a Connector");
    let write = async |pool: &str| {
        let status = json!({"status": {"product": pool}});
        write::apply(&api, &PACE, &read, Some("status"), status, |c| c.status.as_ref()).await.map(drop)
    };
    let note = Patch::Merge(json!({"metadata": {"annotations": {"example.com/n": "1"}}}));
    api.patch("lab", &PatchParams::default(), &note).await.expect("a patch");
    write("newer").await.expect("nothing of ours has changed");
    assert!(matches!(write("older").await, Err(WriteError::Outdated)), "another word was said");
}

/// Somebody writes on the layer during each look at the pool: whatever is decided on that is late, and no decision for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_others_write_on_is_finalized_all_the_same() {
    let rig = Rig::new().await;
    rig.guest("busy", quick());
    rig.layer("busy", json!({"finalize": {"policy": "OnShutdown"}})).await;
    let (layers, sim) = (rig.layers(), Arc::clone(&rig.sim));
    sim.pool.clock.hold(LOOK);
    let others = tokio::spawn(async move {
        for n in 0_u64.. {
            let look = sim.pool.clock.held(LOOK).await;
            let patch = Patch::Merge(json!({"metadata": {"annotations": {"example.com/n": n.to_string()}}}));
            layers.patch("busy", &PatchParams::default(), &patch).await.expect("a patch");
            sim.pool.clock.release(look.id);
        }
    });
    let controller = rig.run().await;
    rig.until_finalized("busy", "1").await;
    others.abort();
    rig.sim.pool.clock.unhold(LOOK);
    assert_eq!(controller.metric("lamina_faults_total{kind=\"retry\"}"), 0);
    rig.hands.assert_tidy().await;
}

/// Whoever does not lead any more leaves the telling to the one that does.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_lead_writes_nothing() {
    let rig = Rig::new().await;
    let short = Duration::from_millis(100);
    let terms = Terms { duration: short, renew: short, retry: short, call: short };
    let leader = Candidate::new(rig.client.clone(), &rig.namespace, "lost".to_owned(), terms).acquire(|| ()).await;
    let led = Settings { deadline: leader.deadline(), ..rig.settings() };
    let deadline = leader.deadline();
    crate::common::eventually("the lease is over", async || (!deadline.holds()).then_some(())).await;
    rig.layer("left", json!({})).await;
    let before = rig.layers().get("left").await.expect("a layer");
    let controller = rig.run_with(led).await;
    let passes = || controller.metric("lamina_reconciles_total{kind=\"layer\"}");
    crate::common::eventually("some passes", async || (passes() > 3).then_some(())).await;
    assert_eq!(rig.layers().get("left").await.expect("a layer"), before);
    drop(controller);
    let _leads = rig.run().await;
    rig.until_phase("left", Phase::DiskCreated).await;
}
