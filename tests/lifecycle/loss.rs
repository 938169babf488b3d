//! Objects that go behind our back: nothing is made in their place, and each has a way out.

use lamina::api::{ConditionType, Phase, PlatformLayer};
use lamina::xapi::wire::Ref;
use serde_json::{Value, json};

use crate::common::hands::Thing;
use crate::common::rig::{Rig, disk, machine, quick, ready, says, status, uid};

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_packaging_disk_is_never_made_again() {
    let rig = Rig::new().await;
    rig.guest("lost", quick());
    let controller = rig.run().await;
    rig.layer("lost", json!({"machine": {"powerOn": false}, "finalize": {"approved": "2"}})).await;
    let layer = rig.until_reason("lost", "StartMachine").await;
    rig.hands.destroy_disk(&disk(&layer)).await;
    let lost = rig.until_reason("lost", "DiskLost").await;
    let (_, message) = ready(&lost).expect("Ready");
    assert!(message.contains(&disk(&layer)) && message.contains("spec.discard"), "{message}");
    // Neither another spec nor another process lets anything be made.
    rig.patch("lost", json!({"machine": {"powerOn": true, "restartToken": "again"}})).await;
    drop(controller);
    let _controller = rig.run().await;
    rig.meanwhile().await;
    rig.until_reason("lost", "DiskLost").await;
    let left = rig.hands.of_layer(&uid(&lost)).await;
    assert_eq!(left.iter().map(|t| t.role()).collect::<Vec<_>>(), ["config", "machine"], "{left:#?}");
    assert_eq!(rig.calls("Async.VM.start"), 0);

    rig.patch("lost", json!({"version": "2", "discard": "1", "machine": {"powerOn": true}})).await;
    let done = rig.until_finalized("lost", "2").await;
    assert_eq!(status(&done).versions.len(), 1);
    rig.hands.assert_tidy().await;
}

/// Its row went and came back by a scan, nameless and without keys: it is the disk that the status records.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_comes_back_is_lost_no_more() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    rig.layer("back", json!({"machine": {"powerOn": false}})).await;
    let layer = rig.until_reason("back", "StartMachine").await;
    // Its repository is scanned once for what went first, so that this scan does not bring the other back.
    let first = status(&layer).config_disk.expect("C").uuid;
    rig.hands.destroy_disk(&first).await;
    rig.until("back", "another config disk", |l| {
        status(l).config_disk.is_some_and(|c| c.uuid != first) && ready(l).is_some_and(|(r, _)| r == "StartMachine")
    })
    .await;
    let w = rig.hands.disk(&disk(&layer)).await.expect("W");
    let rows = |class, r: &Value| rig.sim.pool.db().delete(class, &Ref(r.as_str().expect("a reference").to_owned()));
    w.row["VBDs"].as_array().expect("VBDs").iter().for_each(|vbd| rows("VBD", vbd));
    rows("VDI", &json!(w.r));
    rig.until_reason("back", "DiskLost").await;
    rig.hands.call("SR.scan", json!([w.row["SR"]])).await;
    let again = rig.until_reason("back", "StartMachine").await;
    assert_eq!(disk(&again), disk(&layer));
    let back = rig.hands.disk(w.uuid()).await.expect("W");
    assert!(back.claimed() && back.row["other_config"] == w.row["other_config"], "{back:?}");
    assert_eq!(rig.calls("Async.VDI.clone"), 1);
    rig.hands.assert_tidy().await;
}

/// Moved to another repository a disk is a copy, and the original goes: nothing is taken for it, and a person hears where the work is.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_disk_that_was_moved_is_named_with_its_copy() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    rig.layer("moved", json!({"machine": {"powerOn": false}})).await;
    let layer = rig.until_reason("moved", "StartMachine").await;
    let w = rig.hands.disk(&disk(&layer)).await.expect("W");
    let local = rig.hands.named("SR", "Local storage on host1").await.r;
    let copy = rig.hands.call("VDI.copy", json!([w.r, local])).await;
    rig.hands.destroy_disk(w.uuid()).await;
    let copy = rig.hands.all("VDI").await.into_iter().find(|d| copy == json!(d.r)).expect("the copy");
    let lost = rig.until_reason("moved", "DiskLost").await;
    let (_, message) = ready(&lost).expect("Ready");
    assert!(message.contains(&format!("A copy of it is there ({})", copy.uuid())), "{message}");
    assert_eq!(rig.hands.disk(copy.uuid()).await.expect("the copy").row, copy.row, "left alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_machine_is_made_again_when_a_person_asks() {
    let rig = Rig::new().await;
    rig.guest("gone", quick());
    let _controller = rig.run().await;
    rig.layer("gone", json!({})).await;
    let layer = rig.until_reason("gone", "ApproveFinalize").await;
    let (work, vm) = (disk(&layer), machine(&layer));
    rig.hands.destroy_machine(&vm).await;
    let lost = rig.until_reason("gone", "MachineLost").await;
    assert_eq!(status(&lost).phase, Some(Phase::MachineRunning));
    let (_, message) = ready(&lost).expect("Ready");
    assert!(message.contains(&work) && message.contains("restartToken"), "{message}");
    rig.meanwhile().await;
    assert!(rig.hands.all("VM").await.iter().all(|m| m.key("layer") != Some(&uid(&lost))));

    rig.patch("gone", json!({"machine": {"restartToken": "a"}})).await;
    let again = rig.until_reason("gone", "ApproveFinalize").await;
    assert_eq!(disk(&again), work, "on the same disk");
    assert_ne!(machine(&again), vm);
    rig.approve("gone", "1").await;
    rig.until_finalized("gone", "1").await;
    rig.hands.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_version_is_told() {
    let rig = Rig::new().await;
    rig.guest("f", quick());
    let _controller = rig.run().await;
    rig.layer("f", json!({"finalize": {"approved": "1"}, "deletionPolicy": "Delete"})).await;
    let done = rig.until_finalized("f", "1").await;
    let f = status(&done).versions[0].disk.clone();
    rig.hands.destroy_disk(&f).await;
    rig.until_reason("f", "DiskLost").await;
    rig.meanwhile().await;
    assert_eq!(rig.hands.of_layer(&uid(&done)).await.len(), 0);
    rig.delete("f").await;
    rig.until_gone("f").await;
    rig.hands.assert_tidy().await;
}

/// Then the packaging disk is all that is left of the work: it stays until a person has seen to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_disk_that_is_lost_beside_its_packaging_disk_leaves_that_one() {
    let rig = Rig::new().await;
    rig.guest("both", quick());
    let controller = rig.run().await;
    rig.sim.pool.clock.hold("VM.destroy/");
    rig.layer("both", json!({"finalize": {"approved": "1"}})).await;
    rig.sim.pool.clock.held("VM.destroy/").await;
    let frozen = rig.until("both", "the version", |l| !status(l).versions.is_empty()).await;
    let [f, w] = [status(&frozen).versions[0].disk.clone(), disk(&frozen)];
    rig.hands.destroy_disk(&f).await;
    rig.sim.pool.clock.unhold("VM.destroy/");
    let kept = |l: &PlatformLayer| ready(l).is_some_and(|(r, m)| r == "DiskLost" && m.contains(&w));
    let told = rig.until("both", "the loss", kept).await;
    drop(controller);
    let _controller = rig.run().await;
    rig.meanwhile().await;
    let work = rig.hands.disk(&w).await.expect("W");
    assert!(work.claimed(), "{work:?}");
    assert_eq!(rig.hands.of_layer(&uid(&told)).await.len(), 1, "and nothing is made");

    // As its message says.
    rig.hands.destroy_disk(&w).await;
    rig.until("both", "the rest", |l| ready(l).is_some_and(|(r, m)| r == "DiskLost" && !m.contains(&w))).await;
    rig.patch("both", json!({"version": "2", "base": {"from": "OSLayer"}, "finalize": {"approved": "2"}})).await;
    let done = rig.until_finalized("both", "2").await;
    assert_eq!(status(&done).versions.iter().map(|v| v.lost).collect::<Vec<_>>(), [true, false]);
    rig.hands.assert_tidy().await;
}

/// The newest version is as good as it was, so the layer stays ready; and says what is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_older_version_is_told_beside_a_ready_layer() {
    let rig = Rig::new().await;
    rig.guest("old", quick());
    let controller = rig.run().await;
    rig.layer("old", json!({"finalize": {"policy": "OnShutdown"}})).await;
    rig.until_finalized("old", "1").await;
    rig.patch("old", json!({"version": "2"})).await;
    let done = rig.until_finalized("old", "2").await;
    let [f1, f2] = [0, 1].map(|n| status(&done).versions[n].disk.clone());
    // Seen by a process that was not there when it went, too.
    drop(controller);
    rig.hands.destroy_disk(&f1).await;
    let controller = rig.run().await;
    let lost = |l: &PlatformLayer| status(l).versions.iter().map(|v| v.lost).collect::<Vec<_>>() == [true, false];
    let told = rig.until("old", "told", lost).await;
    assert_eq!(says(&told, ConditionType::Ready), "True/Finalized");
    let (_, message) = ready(&told).expect("Ready");
    assert!(message.contains(&f2) && message.contains(&format!("'1' ({f1})")), "{message}");
    crate::common::eventually("an event", async || {
        rig.events("old").await.into_iter().find(|e| e.starts_with("DiskLost: ") && e.contains(&f1))
    })
    .await;
    // It stays told, and is told once.
    drop(controller);
    let _controller = rig.run().await;
    rig.meanwhile().await;
    let still = rig.layers().get("old").await.expect("the layer");
    assert_eq!(ready(&still), ready(&told));
    assert_eq!(rig.events("old").await.iter().filter(|e| e.starts_with("DiskLost")).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_that_leads_elsewhere_changes_nothing_anywhere() {
    let rig = Rig::new().await;
    let other = Rig::new().await;
    let controller = rig.run().await;
    rig.layer("moved", json!({"machine": {"powerOn": false}})).await;
    let layer = rig.until_reason("moved", "StartMachine").await;
    drop(controller);
    rig.apply(&other.connector()).await;
    let controller = rig.run().await;
    let changed = rig.until_reason("moved", "PoolChanged").await;
    assert_eq!((disk(&changed), machine(&changed)), (disk(&layer), machine(&layer)));
    assert_eq!(status(&changed).phase, Some(Phase::DiskCreated));
    assert_eq!(other.hands.of_layer(&uid(&layer)).await.len() + other.hands.bases().await.len(), 0);
    drop(controller);
    rig.apply(&rig.connector()).await;
    let _controller = rig.run().await;
    rig.until_reason("moved", "StartMachine").await;
}

/// The machine was first seen running when its disk could not be seen, and was gone thereafter: what is known of it stays known.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_seen_without_the_disk_is_remembered() {
    let rig = Rig::new().await;
    let controller = rig.run().await;
    rig.layer("ran", json!({"machine": {"powerOn": false}})).await;
    let layer = rig.until_reason("ran", "StartMachine").await;
    drop(controller);
    rig.hands.destroy_disk(&disk(&layer)).await;
    let vm = rig.hands.machine(&machine(&layer)).await.expect("the machine").r;
    rig.hands.call("VM.start", json!([vm, false, false])).await;
    let _controller = rig.run().await;
    let lost = rig.until_reason("ran", "DiskLost").await;
    assert_eq!(status(&lost).phase, Some(Phase::MachineRunning));
    rig.hands.call("VM.hard_shutdown", json!([vm])).await;
    rig.until_phase("ran", Phase::AwaitingFinalize).await;
    rig.hands.destroy_machine(&machine(&layer)).await;
    rig.until_phase("ran", Phase::MachineRunning).await;
}

/// Nothing was made yet, so the wrong Connector may be corrected.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_has_nothing_yet_may_go_to_another_pool() {
    let rig = Rig::new().await;
    let other = Rig::new().await;
    rig.apply(&other.connector().replace("{name: lab}", "{name: other}")).await;
    let _controller = rig.run().await;
    let os = rig.hands.named("VDI", "win11-24h2").await.r;
    rig.hands.call("VDI.set_name_label", json!([os, "elsewhere"])).await;
    rig.layer("led", json!({"machine": {"powerOn": false}})).await;
    rig.until_reason("led", "OSDiskNotFound").await;
    rig.patch("led", json!({"connectorRef": {"name": "other"}})).await;
    let layer = rig.until_reason("led", "StartMachine").await;
    assert_eq!(other.hands.of_layer(&uid(&layer)).await.len(), 3);
}

/// A repository that was forgotten and found again brings its disks back without keys, names and words: other tools list such for deletion.
#[tokio::test(flavor = "multi_thread")]
async fn what_lost_its_name_is_named_again() {
    let rig = Rig::new().await;
    rig.guest("bare", quick());
    let _controller = rig.run().await;
    rig.layer("bare", json!({"machine": {"powerOn": false}})).await;
    let layer = rig.until_reason("bare", "StartMachine").await;
    let w = rig.hands.disk(&disk(&layer)).await.expect("W");
    let [s] = rig.hands.bases().await.try_into().expect("one base");
    let again = async |disks: &[(&Thing, &[&'static str])]| {
        for (lost, fields) in disks {
            for field in *fields {
                rig.hands.call(&format!("VDI.set_{field}"), json!([lost.r, ""])).await;
            }
        }
        for (lost, fields) in disks {
            crate::common::eventually("it is as it was", async || {
                let now = rig.hands.disk(lost.uuid()).await.expect("it is there");
                fields.iter().all(|field| now.row[*field] == lost.row[*field]).then_some(())
            })
            .await;
        }
    };
    let both = ["name_label", "name_description"].as_slice();
    again(&[(&w, both), (&s, &["name_description"])]).await;
    let approved = json!({"machine": {"powerOn": true}, "finalize": {"approved": "1"}});
    rig.patch("bare", approved).await;
    let frozen = rig.until_finalized("bare", "1").await;
    let f = rig.hands.disk(&status(&frozen).current.expect("a version").disk).await.expect("F");
    again(&[(&f, both)]).await;
    rig.patch("bare", json!({"version": "2", "finalize": {"approved": "2"}})).await;
    rig.until_finalized("bare", "2").await;
    again(&[(&f, both)]).await;
}

/// The storage repository was forgotten and found again: keys are gone, the records prove.
#[tokio::test(flavor = "multi_thread")]
async fn what_lost_its_keys_gets_them_back() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    rig.layer("bare", json!({"machine": {"powerOn": false}})).await;
    let layer = rig.until_reason("bare", "StartMachine").await;
    let w = rig.hands.disk(&disk(&layer)).await.expect("W");
    let [s] = rig.hands.bases().await.try_into().expect("one base");
    for lost in [&w, &s] {
        rig.hands.call("VDI.set_other_config", json!([lost.r, {}])).await;
        rig.hands.call("VDI.set_tags", json!([lost.r, []])).await;
        crate::common::eventually("the keys are back", async || {
            let now = rig.hands.disk(lost.uuid()).await.expect("it is there");
            (now.row["other_config"] == lost.row["other_config"] && now.row["tags"] == lost.row["tags"]).then_some(())
        })
        .await;
    }
}
