//! Layers with steps: the config disk on its way into the machine and back, and what its loss, damage and content lead to. In the machines
//! runs the guest's own service, over an in-memory Windows.

use std::sync::{Arc, Mutex};

use lamina::api::PlatformLayer;
use lamina::api::layer_status::{IntegritySource, StepState};
use lamina::controller::Settings;
use lamina::controller::context::GuestProgram;
use lamina::demo::person::{Deed, nobody, person, person_at};
use lamina::sim::faults::{Effect, Fault, Target};
use lamina::sim::guest::{Guest, Program, program};
use lamina::xapi::wire::Failure;
use lamina_guest::disk::{REPORT, edit};
use lamina_guest::report::Report;
use serde_json::{Value, json};

use crate::common::rig::{Rig, machine, ready, status, uid};
use crate::common::unattended::{SECRET, files, image, served, two_steps};

pub const PUT: &str = "PUT /import_raw_vdi";
pub const GET: &str = "GET /export_raw_vdi";

/// Path and bytes of each file that a guest found on its config disk.
pub type Found = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

pub fn bytes(g: &Guest) -> Vec<u8> {
    let size = usize::try_from(g.disk_size(1).expect("a second disk")).expect("a small disk");
    g.read_disk(1, 0, size).expect("its bytes")
}

/// Keeps what the guest finds on the config disk at its boot.
pub fn seeing(inner: Program, found: Found) -> Program {
    program(move |g: Guest| {
        let (inner, found) = (Arc::clone(&inner), Arc::clone(&found));
        async move {
            *found.lock().expect("no panic") = edit::files(&bytes(&g)).expect("our volume");
            inner(g).await
        }
    })
}

/// At the end of each boot somebody changes the config disk.
fn leaving(inner: Program, change: fn(&mut Vec<u8>)) -> Program {
    program(move |g: Guest| {
        let inner = Arc::clone(&inner);
        async move {
            let exit = inner(g.clone()).await;
            let mut disk = bytes(&g);
            change(&mut disk);
            g.write_disk(1, 0, &disk).expect("it is writable");
            exit
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_go_in_results_come_out_and_the_disk_is_wiped_and_gone_before_the_freeze() {
    let rig = Rig::new().await;
    files(&rig).await;
    let on_it = Found::default();
    rig.guest("hands", seeing(served(), Arc::clone(&on_it)));
    rig.sim.pool.clock.hold("guest/program");
    let _controller = rig.run().await;
    rig.layer("hands", two_steps()).await;
    let at_work = |l: &_| {
        let told = ready(l).is_some_and(|(r, m)| r == "RunningSteps" && m.contains("step 'tools', 1 of 2"));
        // The guest says that it is at the steps before it begins the first.
        told && status(l).operation.is_some_and(|o| o.step == "RunStep tools")
    };
    let s = status(&rig.until("hands", "the first step", at_work).await);
    assert_eq!(s.steps.iter().map(|s| s.state).collect::<Vec<_>>(), [StepState::Running, StepState::Pending]);
    rig.sim.pool.clock.unhold("guest/program");
    let halted = rig.until_reason("hands", "ApproveFinalize").await;
    let s = status(&halted);
    let c = s.config_disk.clone().expect("its record").uuid;
    let on_pool = rig.hands.disk(&c).await.expect("it is there until the freeze");
    assert!(on_pool.claimed() && on_pool.role() == "config", "{on_pool:?}");
    assert_eq!(on_pool.text("name_label"), "hands 1 config");
    let vbds = rig.hands.all("VBD").await;
    let vbd = vbds.iter().find(|b| b.text("userdevice") == "1").expect("the second disk");
    assert_eq!((vbd.text("mode"), &vbd.row["bootable"], vbd.text("type")), ("RW", &json!(false), "Disk"));

    let files = on_it.lock().expect("no panic").clone();
    let text = |path: &str| files.iter().find(|(p, _)| p == path).map(|(_, b)| String::from_utf8_lossy(b).into_owned());
    assert_eq!(text("files/tools/Setup.cmd").as_deref(), Some("rem set up"));
    assert_eq!(text("files/tools/answers.ini").as_deref(), Some(SECRET));
    assert!(
        text("layer.json").is_some_and(|l| l.contains("\"layer\":\"hands\"") || l.contains("\"layer\": \"hands\""))
    );
    assert!(s.steps.iter().all(|s| s.state == StepState::Succeeded && s.exit_code == Some(0)), "{s:#?}");
    assert_eq!(s.integrity.as_ref().and_then(|i| i.source), Some(IntegritySource::Xenstore));
    assert_eq!((rig.calls(PUT), rig.calls(GET)), (1, 1), "written once, read once");

    rig.approve("hands", "1").await;
    let frozen = rig.until_finalized("hands", "1").await;
    let s = status(&frozen);
    assert_eq!((rig.calls(PUT), s.config_disk.is_none()), (2, true), "wiped before it went");
    assert!(rig.hands.disk(&c).await.is_none());
    assert_eq!(s.steps.len(), 2, "what was run stays to be read");
    assert_eq!(rig.hands.of_layer(&uid(&frozen)).await.len(), 1, "F alone is left");
    rig.hands.assert_tidy().await;
    let told = format!("{:?} {:?}", s, rig.events("hands").await);
    assert!(!told.contains(SECRET) && !told.contains("rem set up"), "{told}");
    assert!(!format!("{:?}", rig.sim.pool.log.entries()).contains(SECRET));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_step_asks_a_person_and_a_restart_goes_on_from_the_record() {
    let rig = Rig::new().await;
    files(&rig).await;
    let boots = vec![vec![Deed::Serve, Deed::PowerOff], vec![Deed::Serve, Deed::Skip("tools"), Deed::Finalize]];
    rig.guest("fails", person_at(image(1603), boots));
    let _controller = rig.run().await;
    rig.layer("fails", two_steps()).await;
    rig.patch("fails", json!({"finalize": {"approved": "1"}})).await;
    let asks = |l: &_| ready(l).is_some_and(|(r, m)| r == "FixStep" && m.contains("restartToken"));
    let asked = rig.until("fails", "a halt after the failed step", asks).await;
    let (_, message) = ready(&asked).expect("Ready");
    for word in ["'tools'", "exit code 1603", "logs\\01-tools.log", "LAMINA", "answer tools again", &machine(&asked)] {
        assert!(message.contains(word), "{word}: {message}");
    }
    let states: Vec<_> = status(&asked).steps.iter().map(|s| (s.state, s.exit_code)).collect();
    assert_eq!(states, [(StepState::Failed, Some(1603)), (StepState::Pending, None)], "approved, and still not frozen");
    rig.patch("fails", json!({"machine": {"restartToken": "again"}})).await;
    let done = rig.until_finalized("fails", "1").await;
    let states: Vec<_> = status(&done).steps.iter().map(|s| s.state).collect();
    assert_eq!(states, [StepState::Skipped, StepState::Succeeded], "a person mended it");
    assert_eq!((rig.calls(PUT), rig.calls(GET)), (2, 2), "never written again once it ran; read after each halt");
}

/// Three steps, a restart, work that an installer leaves for later, a rearm: from the manifest to the version nobody does anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_without_hands_ends_by_itself() {
    let rig = Rig::new().await;
    files(&rig).await;
    rig.guest("alone", nobody());
    for moment in ["guest/program", "guest/inside"] {
        rig.sim.pool.clock.hold(moment);
    }
    let _controller = rig.run().await;
    let mut more = two_steps();
    let agent = json!({"name": "vda", "command": "VDASetup.exe /quiet", "successCodes": [0, 3], "reboot": "Always"});
    more["steps"].as_array_mut().expect("steps").insert(0, agent);
    more["purpose"] = json!("Publishing");
    more["platforms"] = json!({"provisioningService": "PVS", "connectionBroker": "XenDesktop"});
    more["kms"] = json!({"rearm": true});
    more["finalize"] = json!({"policy": "OnShutdown"});
    rig.layer("alone", more).await;
    let says = async |word: &str| {
        let told = |l: &_| ready(l).is_some_and(|(r, m)| r == "RunningSteps" && m.contains(word));
        rig.until("alone", word, told).await
    };
    says("step 'vda', 1 of 3").await;
    rig.sim.pool.clock.unhold("guest/program");
    let found = says("the check found NGenNeeded").await;
    let states: Vec<_> = status(&found).steps.iter().map(|s| (s.state, s.exit_code)).collect();
    let well = (StepState::Succeeded, Some(0));
    assert_eq!(states, [(StepState::Succeeded, Some(3)), well, well]);
    rig.sim.pool.clock.unhold("guest/inside");
    let done = rig.until_finalized("alone", "1").await;
    assert_eq!(status(&done).versions[0].rearms_left, Some(2), "it was rearmed");
    assert_eq!(rig.calls("Async.VM.start"), 1);
    rig.hands.assert_tidy().await;
}

/// The patch that the message has where nobody knows what the steps came to, as a person would type it.
pub fn answer(asked: &PlatformLayer) -> Value {
    let (_, message) = ready(asked).expect("Ready");
    let (_, patch) = message.split_once("lamina-approval -p '").expect("a command");
    let patch: Value = serde_json::from_str(patch.split_once("';").expect("its end").0).expect("JSON");
    patch["spec"].clone()
}

/// An approval that was given before anything was lost answers for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_approval_is_no_answer_for_steps_that_nobody_knows_of() {
    let rig = Rig::new().await;
    files(&rig).await;
    rig.guest("early", leaving(served(), |disk| disk.fill(0xFF)));
    let _controller = rig.run().await;
    let mut more = two_steps();
    more["finalize"] = json!({"approved": "1"});
    more["integrity"] = json!("Skip");
    rig.layer("early", more).await;
    let asked = rig.until_reason("early", "ConfigDiskUnreadable").await;
    assert!(ready(&asked).is_some_and(|(_, m)| m.contains("is approved already")), "{asked:#?}");
    rig.meanwhile().await;
    let asked = rig.until_reason("early", "ConfigDiskUnreadable").await;
    assert_eq!(rig.calls("Async.VDI.snapshot"), 1, "S alone");
    rig.patch("early", answer(&asked)).await;
    rig.until_finalized("early", "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_disk_leaves_the_steps_unknown_and_a_person_answers() {
    let rig = Rig::new().await;
    files(&rig).await;
    rig.guest("broken", leaving(served(), |disk| disk.fill(0xFF)));
    let _controller = rig.run().await;
    rig.layer("broken", two_steps()).await;
    let asked = rig.until_reason("broken", "ConfigDiskUnreadable").await;
    assert!(status(&asked).steps.iter().all(|s| s.state == StepState::Unknown), "{asked:#?}");
    assert!(ready(&asked).is_some_and(|(_, m)| m.contains("no FAT volume")), "{asked:#?}");
    rig.patch("broken", answer(&asked)).await;
    rig.until_finalized("broken", "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_disk_is_not_made_again_once_the_machine_ran() {
    let rig = Rig::new().await;
    files(&rig).await;
    rig.guest("lost", served());
    let refused = Effect::Refuse(Failure::new("SR_BACKEND_FAILURE_453", ["x"]));
    rig.sim.pool.faults.add(Fault { target: Target::Method(GET.to_owned()), effect: refused, times: None });
    let _controller = rig.run().await;
    rig.layer("lost", two_steps()).await;
    let halted = rig.until_reason("lost", "StorageError").await;
    assert!(
        ready(&halted).is_some_and(|(_, m)| m.contains("cannot be read for good, destroy it (xe vdi-destroy uuid=")),
        "{halted:#?}"
    );
    rig.hands.destroy_disk(&status(&halted).config_disk.expect("its record").uuid).await;
    let asked = rig.until_reason("lost", "ConfigDiskLost").await;
    assert!(ready(&asked).is_some_and(|(_, m)| m.contains("gone from the pool")), "{asked:#?}");
    assert_eq!(rig.calls("Async.VDI.create"), 1, "another one would run every step again");
    rig.patch("lost", answer(&asked)).await;
    rig.until_finalized("lost", "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_reports_that_contradict_each_other_block() {
    let rig = Rig::new().await;
    files(&rig).await;
    rig.guest(
        "two",
        leaving(served(), |disk| {
            let files = edit::files(disk).expect("our volume");
            let (_, json) = files.into_iter().find(|(path, _)| path == REPORT).expect("a report");
            let other = Report { block_finalize: Some(2), ..Report::from_json(&json).expect("a report") };
            edit::put(disk, REPORT, &other.to_json()).expect("room");
        }),
    );
    let _controller = rig.run().await;
    rig.layer("two", two_steps()).await;
    rig.approve("two", "1").await;
    let blocked = rig.until_reason("two", "FixIntegrity").await;
    let findings = status(&blocked).integrity.expect("a verdict").findings;
    assert!(findings.iter().any(|f| f.reason == "ReportsDiffer"), "{findings:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_wipes_and_takes_the_disk() {
    let rig = Rig::new().await;
    files(&rig).await;
    let _controller = rig.run().await;
    let mut more = two_steps();
    more["machine"] = json!({"powerOn": false});
    more["deletionPolicy"] = json!("Delete");
    rig.layer("goes", more).await;
    let made = rig.until_reason("goes", "StartMachine").await;
    let first = status(&made).config_disk.expect("a config disk").uuid;
    // Until the first start the steps may change, and the disk with them.
    rig.patch("goes", json!({"steps": [{"name": "other", "command": "rem"}]})).await;
    let another = rig
        .until("goes", "another disk", |l| {
            let now = status(l);
            now.config_disk.is_some_and(|c| c.uuid != first) && ready(l).is_some_and(|(r, _)| r == "StartMachine")
        })
        .await;
    assert_eq!(status(&another).steps.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["other"]);
    assert!(rig.hands.disk(&first).await.is_none());
    rig.delete("goes").await;
    rig.until_gone("goes").await;
    rig.hands.assert_nothing_of(&uid(&made)).await;
    assert_eq!(rig.calls(PUT), 4, "two disks, each filled and wiped");
}

/// Storage may keep what zeros replace; the disk itself holds nothing any more.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_on_the_disk_when_it_goes() {
    let rig = Rig::new().await;
    files(&rig).await;
    rig.guest("zeros", served());
    let _controller = rig.run().await;
    rig.layer("zeros", two_steps()).await;
    let halted = rig.until_reason("zeros", "ApproveFinalize").await;
    let c = status(&halted).config_disk.expect("its record").uuid;
    let size = rig.hands.disk(&c).await.expect("C").row["virtual_size"].to_string().trim_matches('"').parse();
    let size: usize = size.expect("bytes");
    let bytes = || rig.sim.pool.world.disks().read_at(&c, 0, size).expect("its bytes");
    assert!(bytes().windows(SECRET.len()).any(|at| at == SECRET.as_bytes()), "what is to be wiped");
    let effect = Effect::Refuse(Failure::new("SR_BACKEND_FAILURE_453", ["x"]));
    rig.sim.pool.faults.add(Fault { target: Target::Method("Async.VDI.destroy".to_owned()), effect, times: None });
    rig.approve("zeros", "1").await;
    rig.until_reason("zeros", "StorageError").await;
    assert!(bytes().iter().all(|b| *b == 0));
    rig.sim.pool.faults.clear();
    rig.until_finalized("zeros", "1").await;
}

/// A disk that the storage can no longer overwrite holds nobody up: who destroys it is told what that means, and the freeze goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_config_disk_that_cannot_be_wiped_may_be_destroyed_by_hand() {
    let rig = Rig::new().await;
    files(&rig).await;
    rig.guest("stuck", served());
    let _controller = rig.run().await;
    rig.layer("stuck", two_steps()).await;
    let halted = rig.until_reason("stuck", "ApproveFinalize").await;
    let c = status(&halted).config_disk.expect("its record").uuid;
    let refused = Effect::Refuse(Failure::new("SR_BACKEND_FAILURE_453", ["x"]));
    rig.sim.pool.faults.add(Fault { target: Target::Method(PUT.to_owned()), effect: refused, times: None });
    rig.approve("stuck", "1").await;
    let stuck = rig.until_reason("stuck", "StorageError").await;
    let cure = format!("cannot be overwritten for good, destroy it (xe vdi-destroy uuid={c})");
    assert!(ready(&stuck).is_some_and(|(_, m)| m.contains(&cure)), "{stuck:#?}");
    rig.hands.destroy_disk(&c).await;
    rig.until_finalized("stuck", "1").await;
}

/// A report needs the second way out where the drivers of the first are only being installed.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_without_steps_and_program_has_its_disk_too() {
    let rig = Rig::new().await;
    let on_it = Found::default();
    rig.guest("plain", seeing(person(vec![vec![Deed::Finalize]]), Arc::clone(&on_it)));
    rig.sim.pool.clock.hold("guest/check");
    let _controller = rig.run().await;
    rig.layer("plain", json!({})).await;
    let running = rig.until_reason("plain", "InstallSoftware").await;
    assert!(ready(&running).is_some_and(|(_, m)| m.contains("copied into the machine")), "{running:#?}");
    rig.sim.pool.clock.unhold("guest/check");
    let halted = rig.until_reason("plain", "ApproveFinalize").await;
    assert_eq!(status(&halted).integrity.and_then(|i| i.source), Some(IntegritySource::ConfigDisk));
    let files = on_it.lock().expect("no panic").clone();
    let paths: Vec<_> = files.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["layer.json", "record-0.txt", "steps.json"], "everything but the program");
    rig.approve("plain", "1").await;
    let plain = rig.until_finalized("plain", "1").await;
    assert!(status(&plain).steps.is_empty() && rig.calls(PUT) == 2);
    rig.hands.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_at_hand_comes_with_every_machine() {
    let rig = Rig::new().await;
    let on_it = Found::default();
    rig.guest("carried", seeing(person(vec![vec![Deed::Finalize]]), Arc::clone(&on_it)));
    let program = Some(GuestProgram::new(b"MZ and more".to_vec()));
    let _controller = rig.run_with(Settings { program, ..rig.settings() }).await;
    rig.layer("carried", json!({})).await;
    let halted = rig.until_reason("carried", "ApproveFinalize").await;
    assert_eq!(status(&halted).integrity.and_then(|i| i.source), Some(IntegritySource::ConfigDisk));
    let files = on_it.lock().expect("no panic").clone();
    assert!(files.iter().any(|(path, bytes)| path == "lamina-guest.exe" && bytes == b"MZ and more"), "{files:?}");
    rig.approve("carried", "1").await;
    rig.until_finalized("carried", "1").await;
    rig.hands.assert_tidy().await;
}
