//! The whole way, asserted on the pool's objects and on status.

use lamina::api::layer_status::{BaseKind, IntegritySource};
use lamina::api::{ConditionType, Phase, PlatformLayer};
use lamina::demo::person;
use serde_json::json;

use crate::common::rig::{Rig, disk, machine, ready, says, status, uid};

#[tokio::test(flavor = "multi_thread")]
async fn a_packaging_layer_walks_all_phases_and_keeps_what_was_done() {
    let rig = Rig::new().await;
    rig.guest("walk", person::usual());
    rig.sim.pool.clock.hold("guest/read");
    let _controller = rig.run().await;
    rig.layer("walk", json!({"comment": "first", "packagingDisk": {"fileName": "walk.vhd", "size": "120Gi"}})).await;
    rig.until_phase("walk", Phase::MachineRunning).await;
    let found = rig.until_reason("walk", "FixIntegrity").await;
    let verdict = status(&found).integrity.expect("a verdict");
    assert_eq!(
        (verdict.source, verdict.findings[0].reason.as_str()),
        (Some(IntegritySource::Xenstore), "RebootPending")
    );
    assert_eq!(status(&found).disk.expect("a disk").utilisation, None, "it moves while the machine writes");
    let at_work = |l: &PlatformLayer| says(l, ConditionType::GuestToolsReady) == "True/ToolsRunning";
    rig.until("walk", "its tools seen", at_work).await;
    rig.sim.pool.clock.unhold("guest/read");
    let halted = rig.until_reason("walk", "ApproveFinalize").await;
    let (work, vm, uid) = (disk(&halted), machine(&halted), uid(&halted));
    assert_eq!(says(&halted, ConditionType::IntegrityVerified), "True/Verified");
    let w = rig.hands.disk(&work).await.expect("W");
    assert_eq!(status(&halted).disk.expect("a disk").utilisation, w.row["physical_utilisation"].as_i64());
    assert_eq!((w.text("name_label"), w.row["virtual_size"].as_i64()), ("walk.vhd", Some(120 << 30)));
    let base = w.key("base").expect("W names S").to_owned();
    let s = rig.hands.disk(&base).await.expect("S");
    assert_eq!(s.text("name_description"), "Lamina base of platform layers, do not delete");
    let bytes = rig.sim.pool.digest(&work).expect("W's bytes");
    let m = rig.hands.machine(&vm).await.expect("M");
    assert_eq!(m.text("name_label"), "walk 1 packaging");
    assert!(m.row["tags"].as_array().is_some_and(|t| t.contains(&json!("lamina"))), "{m:?}");
    for op in ["destroy", "clone", "copy", "snapshot", "checkpoint", "export", "migrate_send", "suspend"] {
        assert!(m.row["blocked_operations"][op].is_string(), "{op} is not blocked");
    }
    let (_, message) = ready(&halted).expect("Ready");
    assert!(message.contains("--field-manager lamina-approval") && message.contains("walk"), "{message}");

    rig.approve("walk", "1").await;
    let done = rig.until_finalized("walk", "1").await;
    let s = status(&done);
    assert_eq!(s.phase, Some(Phase::Finalized));
    assert!(s.machine.is_none() && s.disk.is_none() && s.operation.is_none(), "{s:#?}");
    let [version] = s.versions.as_slice() else { panic!("{s:#?}") };
    assert_eq!(
        (version.version.as_str(), version.size, version.comment.as_deref()),
        ("1", Some(120 << 30), Some("first"))
    );
    assert_eq!(version.os_version.as_deref(), Some("24H2"));
    let taken = version.base.clone().expect("a base");
    assert_eq!((taken.from, taken.uuid.as_str()), (BaseKind::OSLayer, base.as_str()));
    assert_eq!(s.current.as_ref().map(|c| &c.disk), Some(&version.disk));

    let f = rig.hands.disk(&version.disk).await.expect("F");
    assert!(
        f.claimed() && f.role() == "frozen" && f.key("base") == Some(&base) && f.key("version") == Some("1"),
        "{f:?}"
    );
    assert_eq!(f.row["tags"], json!(["lamina"]));
    assert_eq!(f.text("name_description"), "Lamina layer walk, do not delete");
    assert_eq!(f.text("name_label"), "walk.vhd");
    assert_eq!(rig.sim.pool.digest(&version.disk), Some(bytes), "F's bytes are W's at the halt");
    assert!(rig.hands.disk(&work).await.is_none() && rig.hands.machine(&vm).await.is_none());
    assert_eq!(rig.hands.of_layer(&uid).await.len(), 1, "F alone is left");
    assert_eq!(rig.hands.bases().await.len(), 1);
    rig.hands.assert_tidy().await;
    assert_eq!(rig.calls("Async.VM.start"), 1, "the guest rebooted by itself");

    let phases: Vec<_> = s.history.iter().map(|h| h.phase).collect();
    let walk = [Phase::Pending, Phase::DiskCreated, Phase::MachineRunning, Phase::AwaitingFinalize, Phase::Finalized];
    assert_eq!(phases, walk);
    let texts: Vec<_> = s.history.iter().map(|h| h.message.clone().unwrap_or_default()).collect();
    let means = [
        "version '1' was begun; it has no packaging disk yet".to_owned(),
        format!(
            "packaging disk 'walk.vhd' ({work}) of version '1' was made in storage repository 'Shared storage'; nothing is installed on it yet"
        ),
        format!("machine 'walk 1 packaging' ({vm}) was started: software can be installed in version '1'"),
        format!("machine 'walk 1 packaging' ({vm}) was switched off: version '1' can be checked, approved and frozen"),
        format!("version '1' is frozen as disk {}; its machine and packaging disk are removed", version.disk),
    ];
    assert_eq!(texts, means);
    let comments: Vec<_> = s.history.iter().filter_map(|h| h.comment.as_deref()).collect();
    assert_eq!(comments, ["first"], "once, with the version it came with");
    let events = rig.events("walk").await;
    for phase in &walk[1..] {
        assert!(events.iter().any(|e| e.starts_with(phase.as_str())), "{phase:?} has no event: {events:#?}");
    }
    assert!(events.iter().any(|e| e.starts_with("RebootPending: ")), "{events:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publishing_layer_for_pvs_is_rearmed_once() {
    let rig = Rig::new().await;
    rig.guest("pvs", person::usual());
    rig.sim.pool.clock.hold("guest/check");
    let _controller = rig.run().await;
    let publishing = json!({
        "purpose": "Publishing", "kms": {"rearm": true}, "finalize": {"policy": "OnShutdown"},
        "platforms": {"provisioningService": "PVS", "connectionBroker": "XenDesktop"},
    });
    rig.layer("pvs", publishing).await;
    let running = rig.until_reason("pvs", "InstallSoftware").await;
    assert!(ready(&running).is_some_and(|(_, m)| m.contains("pvs 1 packaging") && m.contains("rearm")), "{running:?}");
    rig.sim.pool.clock.unhold("guest/check");
    let done = rig.until_finalized("pvs", "1").await;
    assert_eq!(status(&done).versions[0].rearms_left, Some(2));
    rig.hands.assert_tidy().await;
}
