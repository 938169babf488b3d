//! Storage that is full, unplugged, or held by somebody else.

use kube::api::{Patch, PatchParams};
use lamina::api::ConditionType;
use lamina::sim::clock::Clock;
use lamina::sim::serve;
use lamina::xapi::wire::Ref;
use serde_json::{Value, json};

use crate::common::rig::{Rig, disk, machine, quick, ready, says, status, uid};

/// The repository as if others had filled it, or as it was.
async fn fill(rig: &Rig, full: bool) {
    let sr = Ref(rig.hands.named("SR", "Shared storage").await.r);
    let size: i64 = if full { 1 } else { 2048 << 30 };
    let mut db = rig.sim.pool.db();
    db.set("SR", &sr, "physical_size", json!(size)).expect("the repository");
}

async fn plug(rig: &Rig, on: bool) {
    let sr = rig.hands.named("SR", "Shared storage").await;
    let call = if on { "PBD.plug" } else { "PBD.unplug" };
    for pbd in sr.row["PBDs"].as_array().expect("PBDs") {
        rig.hands.call(call, json!([pbd])).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_repository_loses_nothing_and_recovers() {
    let rig = Rig::new().await;
    rig.guest("full", quick());
    fill(&rig, true).await;
    let _controller = rig.run().await;
    rig.layer("full", json!({})).await;
    let stalled = rig.until_reason("full", "StorageFull").await;
    assert_eq!(says(&stalled, ConditionType::Stalled), "True/StorageFull");
    fill(&rig, false).await;
    let halted = rig.until_reason("full", "ApproveFinalize").await;
    fill(&rig, true).await;
    rig.approve("full", "1").await;
    let stalled = rig.until_reason("full", "StorageFull").await;
    assert_eq!((disk(&stalled), machine(&stalled)), (disk(&halted), machine(&halted)));
    fill(&rig, false).await;
    rig.until_finalized("full", "1").await;
    rig.hands.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unplugged_repository_is_awaited_and_a_finalized_layer_stays_ready() {
    let rig = Rig::new().await;
    rig.guest("done", quick());
    let _controller = rig.run().await;
    rig.layer("done", json!({"finalize": {"policy": "OnShutdown"}})).await;
    rig.layer("making", json!({"machine": {"powerOn": false}})).await;
    let done = rig.until_finalized("done", "1").await;
    assert_eq!(says(&done, ConditionType::IntegrityVerified), "True/Verified");
    let before = rig.until_reason("making", "StartMachine").await;
    plug(&rig, false).await;
    let calls = rig.sim.pool.log.number();
    let told =
        rig.until("done", "the Connector told", |l| says(l, ConditionType::ConnectorReady).starts_with("False/"));
    assert_eq!(says(&told.await, ConditionType::Ready), "True/Finalized");
    let held = rig.until("making", "held", |l| ready(l).is_some_and(|(r, _)| r != "StartMachine")).await;
    assert_eq!((status(&held).phase, disk(&held)), (status(&before).phase, disk(&before)));
    assert_eq!(rig.sim.pool.log.number(), calls, "nothing is changed meanwhile");
    plug(&rig, true).await;
    rig.until_reason("making", "StartMachine").await;
    let back =
        rig.until("done", "the Connector is back", |l| says(l, ConditionType::ConnectorReady).starts_with("True/"));
    assert_eq!(says(&back.await, ConditionType::IntegrityVerified), "True/Verified");
    rig.hands.assert_tidy().await;
}

/// On block storage a snapshot wants the full size of its disk, before it is begun: what is under way has taken its room.
#[tokio::test(flavor = "multi_thread")]
async fn block_storage_wants_the_full_size_until_the_snapshot_is_under_way() {
    let world = "repositories: [{name: Block, type: lvmoiscsi, size_gib: 2000}]\n\
                 disks: [{name: win11-24h2, repository: Block, size_gib: 32}]";
    let world = serde_saphyr::from_str(world).expect("a world");
    let rig = Rig::of(serve::Options { clock: Clock::new(100.0), world, ..serve::Options::default() }).await;
    rig.guest("thick", quick());
    let patch = Patch::Merge(json!({"spec": {"storageRepository": "Block"}}));
    rig.connectors().patch("lab", &PatchParams::default(), &patch).await.expect("a patch");
    let _controller = rig.run().await;
    rig.layer("thick", json!({})).await;
    let halted = rig.until_reason("thick", "ApproveFinalize").await;
    let leave = async |gib: i64| {
        let sr = Ref(rig.hands.named("SR", "Block").await.r);
        let mut db = rig.sim.pool.db();
        let taken = db.int("SR", &sr, "physical_utilisation").expect("the repository");
        db.set("SR", &sr, "physical_size", json!(taken + (gib << 30))).expect("the repository");
    };
    let size = rig.hands.disk(&disk(&halted)).await.expect("W").row["virtual_size"].as_i64().expect("bytes") >> 30;
    // The repository's row learns at a scan alone what is taken.
    let sr = rig.hands.named("SR", "Block").await.r;
    rig.hands.call("SR.scan", json!([sr])).await;
    // Enough for any thin one.
    leave(size - 1).await;
    rig.approve("thick", "1").await;
    let stalled = rig.until_reason("thick", "StorageFull").await;
    assert_eq!(disk(&stalled), disk(&halted));
    let snapshots = rig.calls("Async.VDI.snapshot");
    let clock = &rig.sim.pool.clock;
    clock.hold("VDI.snapshot/named");
    leave(size + 1).await;
    clock.held("VDI.snapshot/named").await;
    leave(1).await;
    clock.unhold("VDI.snapshot/named");
    rig.until_finalized("thick", "1").await;
    assert_eq!(rig.calls("Async.VDI.snapshot"), snapshots + 1, "asked for room once");
    rig.hands.assert_tidy().await;
}

/// The Connector names another repository between two versions: what is in the first one is still the layer's, and goes with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_in_two_repositories_leaves_nothing_in_either() {
    let world = "repositories: [{name: Other storage, type: nfs, size_gib: 500}]\n\
                 disks: [{name: win11-24h2, repository: Other storage, size_gib: 32}]";
    let world = serde_saphyr::from_str(world).expect("a world");
    let rig = Rig::of(serve::Options { clock: Clock::new(100.0), world, ..serve::Options::default() }).await;
    rig.guest("moves", quick());
    let controller = rig.run().await;
    rig.layer("moves", json!({"finalize": {"policy": "OnShutdown"}, "deletionPolicy": "Delete"})).await;
    rig.until_finalized("moves", "1").await;
    let patch = Patch::Merge(json!({"spec": {"storageRepository": "Other storage"}}));
    rig.connectors().patch("lab", &PatchParams::default(), &patch).await.expect("a patch");
    rig.patch("moves", json!({"version": "2"})).await;
    let elsewhere = rig.until_reason("moves", "BaseOnOtherOSLayer").await;
    assert!(ready(&elsewhere).is_some_and(|(_, m)| m.contains("base.from: OSLayer")), "{elsewhere:?}");
    rig.patch("moves", json!({"base": {"from": "OSLayer"}})).await;
    let done = rig.until_finalized("moves", "2").await;
    let versions = status(&done).versions;
    assert_ne!(versions[0].storage_repository_uuid, versions[1].storage_repository_uuid);
    let mut srs: Vec<_> = rig.hands.bases().await.iter().map(|b| b.text("SR").to_owned()).collect();
    srs.dedup();
    assert_eq!(srs.len(), 2, "a base in each");
    // A pool that forgot the row of the first version: a scan of its own repository brings it back.
    drop(controller);
    let f1 = Ref(rig.hands.disk(&versions[0].disk).await.expect("F").r);
    rig.sim.pool.db().delete("VDI", &f1);
    rig.delete("moves").await;
    let _controller = rig.run().await;
    rig.until_gone("moves").await;
    for name in ["Shared storage", "Other storage"] {
        let sr = rig.hands.named("SR", name).await.r;
        rig.hands.call("SR.scan", json!([sr])).await;
    }
    let left: Vec<_> = rig.hands.all("VDI").await.into_iter().filter(|d| d.row["managed"] == json!(true)).collect();
    assert!(!left.iter().any(|d| d.uuid() == versions[0].disk), "{left:#?}");
    assert_eq!(rig.hands.bases().await.len(), 0);
    rig.hands.assert_nothing_of(&uid(&done)).await;
    rig.hands.assert_tidy().await;
}

/// The repository is gone for good, and the Connector names another by now: what leads on is told, and leads on.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_repository_that_is_gone_for_good_a_layer_lets_go_when_told() {
    let world = "repositories: [{name: Other storage, type: nfs, size_gib: 500}]\n\
                 disks: [{name: win11-24h2, repository: Other storage, size_gib: 32}]";
    let world = serde_saphyr::from_str(world).expect("a world");
    let rig = Rig::of(serve::Options { clock: Clock::new(100.0), world, ..serve::Options::default() }).await;
    rig.guest("burnt", quick());
    let _controller = rig.run().await;
    rig.layer("burnt", json!({})).await;
    let halted = rig.until_reason("burnt", "ApproveFinalize").await;
    let sr = rig.hands.named("SR", "Shared storage").await.r;
    plug(&rig, false).await;
    rig.hands.call("SR.forget", json!([sr])).await;
    let patch = Patch::Merge(json!({"spec": {"storageRepository": "Other storage"}}));
    rig.connectors().patch("lab", &PatchParams::default(), &patch).await.expect("a patch");
    let words = ["introduce it again", "spec.deletionPolicy to Orphan"];
    let told = |l: &_| ready(l).is_some_and(|(r, m)| r == "WaitingForStorage" && words.iter().all(|w| m.contains(w)));
    let waits = rig.until("burnt", "both ways told", told).await;
    assert_eq!((status(&waits).phase, disk(&waits)), (status(&halted).phase, disk(&halted)), "nothing is made or lost");
    rig.patch("burnt", json!({"deletionPolicy": "Orphan"})).await;
    rig.delete("burnt").await;
    rig.until_gone("burnt").await;
    rig.layer("burnt", json!({})).await;
    let anew = rig.until_reason("burnt", "ApproveFinalize").await;
    assert_ne!(disk(&anew), disk(&halted));
    let sr = rig.hands.disk(&disk(&anew)).await.expect("W").text("SR").to_owned();
    assert_eq!(sr, rig.hands.named("SR", "Other storage").await.r);
}

/// An export that died in the control domain, or is still at work there: waited for, then freed.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_held_by_a_control_domain_is_freed_in_the_end() {
    let rig = Rig::new().await;
    rig.guest("held", quick());
    let _controller = rig.run().await;
    rig.layer("held", json!({})).await;
    let halted = rig.until_reason("held", "ApproveFinalize").await;
    let w = rig.hands.disk(&disk(&halted)).await.expect("W");
    rig.sim.pool.leak_vbd(&Ref(w.r));
    rig.approve("held", "1").await;
    rig.until_reason("held", "HeldByDom0").await;
    let done = rig.until_finalized("held", "1").await;
    let f = rig.hands.disk(&status(&done).versions[0].disk).await.expect("F");
    assert!(f.claimed());
    rig.hands.assert_tidy().await;
}

/// Storage would snapshot a disk that is attached elsewhere without a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_packaging_disk_that_another_machine_has_is_not_frozen() {
    let rig = Rig::new().await;
    rig.guest("shared", quick());
    let _controller = rig.run().await;
    rig.layer("shared", json!({})).await;
    let halted = rig.until_reason("shared", "ApproveFinalize").await;
    let w = rig.hands.disk(&disk(&halted)).await.expect("W");
    let (_, vbd) = rig.hands.stranger("thief", &w.r).await;
    let calls = rig.sim.pool.log.number();
    rig.approve("shared", "1").await;
    let stalled = rig.until_reason("shared", "ForeignDisk").await;
    assert_eq!(rig.sim.pool.log.number(), calls, "nothing is changed for a freeze that may not be");
    assert!(ready(&stalled).is_some_and(|(_, m)| m.contains("thief")), "{stalled:?}");
    rig.hands.call("VBD.destroy", json!([vbd])).await;
    rig.until_finalized("shared", "1").await;
}

/// Changing calls after this one that name one of these references.
fn touching(rig: &Rig, after: u64, objects: &[&str]) -> Vec<String> {
    let names = |v: &Value| objects.iter().any(|r| v.to_string().contains(r));
    let entries = rig.sim.pool.log.entries().into_iter();
    let changing = entries.filter(|e| e.number.is_some_and(|n| n > after) && e.params.iter().any(names));
    changing.map(|e| format!("{} {:?}", e.method, e.params)).collect()
}

/// Objects that only look like ours stay as they are, through a whole life and a deletion.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_objects_with_our_names_are_not_touched() {
    let rig = Rig::new().await;
    rig.guest("twin", quick());
    let os = rig.hands.named("VDI", "win11-24h2").await.r;
    let foreign = rig.hands.call("VDI.clone", json!([os])).await;
    rig.hands.call("VDI.set_name_label", json!([foreign, "twin"])).await;
    let keys = json!({"lamina.dev/cluster": "another", "lamina.dev/role": "work", "lamina.dev/schema": "1"});
    rig.hands.call("VDI.set_other_config", json!([foreign, keys])).await;
    let (vm, _) = rig.hands.stranger("twin 1 packaging", foreign.as_str().expect("a disk")).await;
    let look = async || {
        let (disks, machines) = (rig.hands.all("VDI").await, rig.hands.all("VM").await);
        let mut disk = disks.into_iter().find(|d| json!(d.r) == foreign).expect("their disk").row;
        let mut machine = machines.into_iter().find(|m| m.r == vm).expect("their machine").row;
        // What is allowed is reckoned anew by the pool itself, some time after each operation.
        for row in [&mut disk, &mut machine] {
            row["allowed_operations"] = json!([]);
        }
        (disk, machine)
    };
    let (before, calls) = (look().await, rig.sim.pool.log.number());
    let _controller = rig.run().await;
    rig.layer("twin", json!({"finalize": {"policy": "OnShutdown"}, "deletionPolicy": "Delete"})).await;
    let done = rig.until_finalized("twin", "1").await;
    rig.delete("twin").await;
    rig.until_gone("twin").await;
    rig.hands.assert_nothing_of(&uid(&done)).await;
    assert_eq!(look().await, before);
    assert_eq!(touching(&rig, calls, &[foreign.as_str().expect("a disk"), &vm]), Vec::<String>::new());
}

/// A copy that another tool made of our disk bears our keys, and is not ours.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_our_disk_is_neither_used_nor_destroyed() {
    let rig = Rig::new().await;
    rig.guest("copied", quick());
    let _controller = rig.run().await;
    rig.layer("copied", json!({"deletionPolicy": "Delete"})).await;
    let halted = rig.until_reason("copied", "ApproveFinalize").await;
    let w = rig.hands.disk(&disk(&halted)).await.expect("W");
    let copy = rig.hands.call("VDI.clone", json!([w.r])).await;
    let calls = rig.sim.pool.log.number();
    rig.approve("copied", "1").await;
    rig.until_finalized("copied", "1").await;
    rig.delete("copied").await;
    rig.until_gone("copied").await;
    let left = rig.hands.of_layer(&uid(&halted)).await;
    let [left] = left.as_slice() else { panic!("{left:#?}") };
    assert_eq!(json!(left.r), copy);
    assert_eq!(touching(&rig, calls, &[&left.r]), Vec::<String>::new());
}
