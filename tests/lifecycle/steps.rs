//! Layers with steps: the config disk on its way into the machine and back, and what its loss, damage and content lead to.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lamina::api::Phase;
use lamina::api::layer_status::{IntegritySource, StepState};
use lamina::controller::Settings;
use lamina::controller::context::GuestProgram;
use lamina::demo::person::{self, Check};
use lamina::sim::faults::{Effect, Fault, Target};
use lamina::sim::guest::{Guest, Program, program};
use lamina::sim::power::Exit;
use lamina::xapi::wire::Failure;
use lamina_guest::disk::back;
use lamina_guest::disk::{REPORT, edit};
use lamina_guest::report::Report;
use lamina_guest::steps::record::{Boot, State};
use serde_json::{Value, json};

use crate::common::rig::{Rig, machine, quick, ready, status, uid};

const SECRET: &str = "0pen-sesame";
const PUT: &str = "PUT /import_raw_vdi";
const GET: &str = "GET /export_raw_vdi";

/// Path and bytes of each file that a guest found on its config disk.
pub type Found = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// What the guest's service would do in one boot.
#[derive(Clone)]
pub struct Play {
    /// How each step ends.
    steps: Vec<(State, Option<i32>)>,
    /// `BlockFinalize` of the report on the disk, and in xenstore.
    disk: Option<u64>,
    xenstore: Option<u64>,
    /// The disk is formatted anew.
    garbled: bool,
}

pub fn done() -> Play {
    Play { steps: vec![(State::Succeeded, Some(0)); 2], disk: Some(0), xenstore: None, garbled: false }
}

/// Plays a boot each, the last for all that follow, and keeps what was found on the disk.
pub fn plays(plays: Vec<Play>, found: Found) -> Program {
    program(move |g: Guest| {
        let at = usize::try_from(g.boot).expect("few boots").min(plays.len()) - 1;
        let (play, found) = (plays[at].clone(), found.clone());
        async move {
            // Right after a boot the service says what it is at; then it may take its time.
            let at_work = [("vm-data/lamina/steps/tools", "Running"), ("vm-data/lamina/progress", "Steps")];
            g.write(&at_work.map(|(k, v)| (k.to_owned(), v.to_owned())).into()).await.expect("a store");
            g.stage("steps", Duration::from_secs(2)).await;
            let disk = g.disk_size(1).ok().map(|size| usize::try_from(size).expect("a small disk"));
            let disk = disk.map(|size| g.read_disk(1, 0, size).expect("its bytes"));
            // A volume that is none is no config disk to a guest.
            if let Some((mut disk, files)) =
                disk.and_then(|disk| Some((edit::files(&disk).ok()?, disk))).map(|(f, d)| (d, f))
            {
                *found.lock().expect("no panic") = files;
                let mark = format!("boot-{}", g.boot);
                g.write(&[("vm-data/lamina/boot".to_owned(), mark.clone())].into()).await.expect("a store");
                write(&g, &play, &mut disk, &mark);
                if play.garbled {
                    disk.fill(0xFF);
                }
                g.write_disk(1, 0, &disk).expect("it is writable");
            }
            if let Some(block_finalize) = play.xenstore {
                person::report(&g, &Check { block_finalize, ..Check::default() }).await;
            }
            Exit::Halt
        }
    })
}

fn write(g: &Guest, play: &Play, disk: &mut [u8], mark: &str) {
    let nonce = g.read("vm-data/lamina/nonce").expect("a nonce");
    let mut record = back::read(disk, &nonce).expect("our disk").record.expect("a record");
    record.generation += 1;
    record.boot = Some(Boot { id: mark.to_owned(), began: 0, domid: Some(g.domid().to_string()) });
    for (ran, (state, code)) in record.steps.iter_mut().zip(&play.steps) {
        (ran.state, ran.exit_code) = (*state, *code);
    }
    edit::put(disk, record.slot(), &record.bytes().expect("JSON")).expect("room");
    if let Some(bits) = play.disk {
        let domid = g.domid().to_string();
        let report = Report { nonce, boot: mark.to_owned(), domid, block_finalize: Some(bits), ..Report::default() };
        edit::put(disk, REPORT, &report.to_json()).expect("room");
    }
}

pub fn two_steps() -> Value {
    json!({"steps": [
        {"name": "tools", "file": "Setup.cmd", "files": [
            {"name": "Setup.cmd", "configMapKeyRef": {"name": "tools", "key": "Setup.cmd"}},
            {"name": "answers.ini", "secretKeyRef": {"name": "answers", "key": "answers.ini"}},
        ]},
        {"name": "agent", "command": "rem done"},
    ]})
}

pub async fn files(rig: &Rig) {
    rig.apply(&format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: tools}}\ndata: {{Setup.cmd: rem set up}}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {{name: answers}}\nstringData: {{answers.ini: {SECRET}}}\n"
    ))
    .await;
}

pub fn found() -> Found {
    Arc::default()
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_go_in_results_come_out_and_the_disk_is_wiped_and_gone_before_the_freeze() {
    let rig = Rig::new().await;
    files(&rig).await;
    let on_it = found();
    rig.guest("hands", plays(vec![done()], on_it.clone()));
    rig.sim.pool.clock.hold("guest/steps");
    let _controller = rig.run().await;
    rig.layer("hands", two_steps()).await;
    let running = rig.until_reason("hands", "RunningSteps").await;
    assert!(ready(&running).is_some_and(|(_, m)| m.contains("step 'tools', 1 of 2")), "{running:#?}");
    let s = status(&running);
    assert_eq!(s.operation.map(|o| o.step).as_deref(), Some("RunStep tools"));
    assert_eq!(s.steps.iter().map(|s| s.state).collect::<Vec<_>>(), [StepState::Running, StepState::Pending]);
    rig.sim.pool.clock.unhold("guest/steps");
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
    assert_eq!(s.integrity.as_ref().and_then(|i| i.source), Some(IntegritySource::ConfigDisk), "xenstore had none");
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
    let failed = Play { steps: vec![(State::Failed, Some(1603)), (State::Pending, None)], ..done() };
    rig.guest("fails", plays(vec![failed, done()], found()));
    let _controller = rig.run().await;
    rig.layer("fails", two_steps()).await;
    rig.patch("fails", json!({"finalize": {"approved": "1"}})).await;
    let asked = rig.until_reason("fails", "FixStep").await;
    let (_, message) = ready(&asked).expect("Ready");
    for word in ["'tools'", "exit code 1603", "logs\\01-tools.log", "LAMINA", "restartToken", &machine(&asked)] {
        assert!(message.contains(word), "{word}: {message}");
    }
    let states: Vec<_> = status(&asked).steps.iter().map(|s| (s.state, s.exit_code)).collect();
    assert_eq!(states, [(StepState::Failed, Some(1603)), (StepState::Pending, None)], "approved, and still not frozen");
    rig.patch("fails", json!({"machine": {"restartToken": "again"}})).await;
    rig.until_finalized("fails", "1").await;
    assert_eq!((rig.calls(PUT), rig.calls(GET)), (2, 2), "never written again once it ran; read after each halt");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_file_is_told_and_its_coming_is_seen() {
    let rig = Rig::new().await;
    rig.guest("waits", plays(vec![done()], found()));
    let _controller = rig.run().await;
    rig.layer("waits", two_steps()).await;
    let stalled = rig.until_reason("waits", "StepFileNotFound").await;
    let (_, message) = ready(&stalled).expect("Ready");
    assert!(message.contains("ConfigMap 'tools'") && message.contains("'Setup.cmd' of step 'tools'"), "{message}");
    files(&rig).await;
    rig.until_reason("waits", "ApproveFinalize").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_told() {
    let rig = Rig::new().await;
    let _controller = rig.run().await;
    let big = "x".repeat(900 << 10);
    for n in 0..3 {
        rig.apply(&format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: big-{n}}}\ndata: {{big: {big}}}\n"))
            .await;
    }
    // 81 files of 900 KiB: more than 64 MiB.
    let file = |n: usize| json!({"name": format!("f{n}"), "configMapKeyRef": {"name": format!("big-{}", n % 3), "key": "big"}});
    let step =
        |n: usize| json!({"name": format!("s{n}"), "command": "rem", "files": (0..27).map(file).collect::<Vec<_>>()});
    rig.layer("large", json!({"steps": (0..3).map(step).collect::<Vec<_>>()})).await;
    let told = rig.until_reason("large", "StepsTooLarge").await;
    assert!(ready(&told).is_some_and(|(_, m)| m.contains("64 MiB")), "{told:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_disk_leaves_the_steps_unknown_and_a_person_answers() {
    let rig = Rig::new().await;
    files(&rig).await;
    rig.guest("broken", plays(vec![Play { garbled: true, xenstore: Some(0), ..done() }], found()));
    let _controller = rig.run().await;
    rig.layer("broken", two_steps()).await;
    let asked = rig.until_reason("broken", "StepsUnknown").await;
    assert!(status(&asked).steps.iter().all(|s| s.state == StepState::Unknown), "{asked:#?}");
    assert!(ready(&asked).is_some_and(|(_, m)| m.contains("no FAT volume")), "{asked:#?}");
    rig.approve("broken", "1").await;
    rig.until_finalized("broken", "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_disk_is_not_made_again_once_the_machine_ran() {
    let rig = Rig::new().await;
    files(&rig).await;
    rig.guest("lost", plays(vec![Play { xenstore: Some(0), ..done() }], found()));
    let refused = Effect::Refuse(Failure::new("SR_BACKEND_FAILURE_453", ["x"]));
    rig.sim.pool.faults.add(Fault { target: Target::Method(GET.to_owned()), effect: refused, times: None });
    let _controller = rig.run().await;
    rig.layer("lost", two_steps()).await;
    let halted = rig.until_reason("lost", "StorageError").await;
    rig.hands.destroy_disk(&status(&halted).config_disk.expect("its record").uuid).await;
    let asked = rig.until_reason("lost", "StepsUnknown").await;
    assert!(ready(&asked).is_some_and(|(_, m)| m.contains("gone from the pool")), "{asked:#?}");
    assert_eq!(rig.calls("Async.VDI.create"), 1, "another one would run every step again");
    rig.approve("lost", "1").await;
    rig.until_finalized("lost", "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_reports_that_contradict_each_other_block() {
    let rig = Rig::new().await;
    files(&rig).await;
    rig.guest("two", plays(vec![Play { disk: Some(2), xenstore: Some(0), ..done() }], found()));
    let _controller = rig.run().await;
    rig.layer("two", two_steps()).await;
    rig.approve("two", "1").await;
    let blocked = rig.until_reason("two", "FixIntegrity").await;
    let findings = status(&blocked).integrity.expect("a verdict").findings;
    assert!(findings.iter().any(|f| f.reason == "ReportsDiffer"), "{findings:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_wipes_and_takes_the_disk_and_other_layers_have_none() {
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

    rig.guest("plain", quick());
    rig.layer("plain", json!({})).await;
    rig.approve("plain", "1").await;
    let plain = rig.until_phase("plain", Phase::Finalized).await;
    assert!(status(&plain).steps.is_empty() && rig.calls(PUT) == 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_at_hand_comes_with_every_machine() {
    let rig = Rig::new().await;
    let on_it = found();
    let plain = Play { steps: Vec::new(), disk: Some(0), xenstore: None, garbled: false };
    rig.guest("carried", plays(vec![plain], on_it.clone()));
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
