//! Decisions that a whole life meets seldom, or too shortly to be read: each told with its reason, its objects and what to do. Longer than other
//! files: one case after another.

use serde_json::json;

use super::*;
use crate::api::PlatformLayer;
use crate::api::reason::Reason as R;
use crate::domain::gate;
use crate::domain::identity::{Keys, Mark, Opid};
use crate::domain::observed::*;
use crate::domain::removal::{Estate, decide_removal};
use crate::domain::want::Want;

pub(super) fn want(more: serde_json::Value) -> Want {
    let mut layer = json!({
        "apiVersion": "lamina.dev/v1alpha1", "kind": "PlatformLayer", "metadata": {"name": "pvs", "namespace": "lab"},
        "spec": {"version": "1", "purpose": "Packaging", "connectorRef": {"name": "lab"},
            "osLayer": {"name": "Windows 11", "version": "24H2", "disk": {"name": "win11"}}},
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        layer["spec"][key] = value.clone();
    }
    Want::of(&serde_json::from_value::<PlatformLayer>(layer).expect("a layer"))
}

fn os_disk() -> OsDisk {
    OsDisk {
        uuid: "os".into(),
        name: "win11".into(),
        managed: true,
        missing: false,
        snapshot: false,
        sharable: false,
        persist: true,
        kind: "user".into(),
        depth: 1,
        virtual_size: 1,
        format: "vhd".into(),
        paused: false,
        writers: Vec::new(),
    }
}

pub(super) fn disk(uuid: &str) -> Disk {
    let description = "Lamina layer pvs, do not delete".into();
    Disk { uuid: uuid.into(), name: "pvs".into(), description, keyed: true, tagged: true, ..Disk::default() }
}

/// Set up, never started.
pub(super) fn machine() -> Machine {
    Machine {
        uuid: "m".into(),
        name: "pvs 1 packaging".into(),
        keys: Keys::new(),
        keyed: true,
        template: false,
        power: Power::Halted,
        domid: -1,
        start_time: "never".into(),
        host: None,
        address: None,
        drift: Vec::new(),
        guard_drift: Vec::new(),
        disk: Some("vbd".into()),
        disk_attached: false,
        config: None,
        config_done: false,
        read: None,
        progress: Vec::new(),
        doing: None,
        silent: false,
        dvd: Dvd::ToolsIn { vbd: "dvd".into() },
        runs_long: false,
        tools: Tools::default(),
        report: None,
        guest_boot: None,
        start_blocked: false,
        destroy_blocked: false,
        busy: false,
        cannot_boot: None,
    }
}

/// A layer that has just entered the pool.
fn entered() -> Observed {
    Observed {
        subject: "1".into(),
        cluster: "c".into(),
        pool: "p".into(),
        agent_start: "0".into(),
        records: Records { pool: Some("p".into()), ..Records::default() },
        storage: Storage { uuid: "sr".into(), name: "fast".into(), free: 9, scans: 1, ..Storage::default() },
        os_disk: Ok(os_disk()),
        machine_source: Ok(()),
        base: Sight::Absent,
        parent: None,
        work: Sight::Absent,
        machine: Sight::Absent,
        config: Sight::Absent,
        files: None,
        program: None,
        frozen: Sight::Absent,
        flights: Vec::new(),
        leftover: None,
        stray_marks: Vec::new(),
        unclaimed: Vec::new(),
        unseen: Vec::new(),
        elsewhere: Vec::new(),
        forgotten: Vec::new(),
        idle_bases: Vec::new(),
        slot: Ok(()),
        name_taken_by: None,
        finalizer: true,
    }
}

/// Disk and machine are made and recorded.
pub(super) fn made(m: Machine) -> Observed {
    let mut seen = entered();
    seen.base = Sight::Found(disk("s"));
    seen.work = Sight::Found(disk("w"));
    seen.records.disk = Some(DiskRecord { uuid: "w".into(), version: "1".into(), ..DiskRecord::default() });
    seen.records.machine =
        Some(MachineRecord { uuid: m.uuid.clone(), restart_token: None, agent_start: Some("0".into()) });
    seen.machine = Sight::Found(m);
    seen
}

/// The machine takes the place of one that ran and is lost: it gets no config disk any more.
fn worked(m: Machine) -> Observed {
    let mut seen = made(m);
    seen.records.disk.as_mut().expect("a record").worked = true;
    seen
}

fn intent(step: Making) -> Intent {
    Intent { step, opid: Opid("op".into()), source: "s".into(), agent_start: "0".into(), boot: None }
}

/// Reason and message.
fn told(want: &Want, seen: &Observed) -> (R, String) {
    match decide(want, seen).say {
        Say::Working(r, m) | Say::Person(r, m) | Say::Stalled(r, m) => (r, m),
        other @ (Say::Finalized(_) | Say::Suspended { .. } | Say::Deleting { .. }) => panic!("{other:?}"),
    }
}

#[test]
fn what_keeps_a_step_from_being_taken_is_told_with_its_objects() {
    let w = want(json!({}));
    let deep = Sight::Found(Disk { depth: 27, ..disk("s") });
    let cases: [(R, Observed, &[&str]); 8] = [
        (R::BaseChainTooDeep, Observed { base: deep, ..entered() }, &["disk s", "27", "spec.base.from"]),
        (
            R::WaitingForCapacity,
            worked(Machine { cannot_boot: Some("h1: HOST_NOT_ENOUGH_FREE_MEMORY".into()), ..machine() }),
            &["pvs 1 packaging", "h1", "spec.machine.memory"],
        ),
        (R::WaitingForMachine, made(Machine { power: Power::Unknown, ..machine() }), &["pvs 1 packaging"]),
        (R::WaitingForStorage, Observed { work: Sight::CannotLook, ..made(machine()) }, &["packaging disk", "'fast'"]),
        (
            R::SettingUpMachine,
            made(Machine { power: Power::Running, guard_drift: vec![Setting::NoHa], ..machine() }),
            &["pvs 1 packaging", "restart"],
        ),
        (R::TaggingAgain, made(Machine { keyed: false, ..machine() }), &["written again"]),
        (
            R::ClearingUp,
            Observed {
                stray_marks: vec![("s".into(), Mark { cluster: "c".into(), owner: "l".into(), op: "op".into() })],
                ..entered()
            },
            &["what is left"],
        ),
        (R::VersionChanged, Observed { subject: "0".into(), ..made(machine()) }, &["'0'", "'1'", "spec.discard"]),
    ];
    for (reason, seen, words) in cases {
        let (told, message) = told(&w, &seen);
        assert_eq!(told, reason, "{message}");
        for word in words {
            assert!(message.contains(word), "{word:?} is not in {message:?}");
        }
    }
}

#[test]
fn an_os_disk_that_cannot_be_frozen_is_told_with_the_cure() {
    for (reason, os, cure) in [
        (R::OSDiskUnsuitable, OsDisk { sharable: true, ..os_disk() }, "ordinary disk"),
        (R::OSDiskUnsuitable, OsDisk { persist: false, ..os_disk() }, "on-boot=persist"),
        (R::OSDiskChainTooDeep, OsDisk { depth: 20, ..os_disk() }, "xe vdi-copy"),
    ] {
        let (told, message) = told(&want(json!({})), &Observed { os_disk: Ok(os), ..entered() });
        assert_eq!(told, reason);
        assert!(message.contains("'win11' (os)") && message.contains(cure), "{message}");
    }
}

/// The keys that follow a claim are its tail; the same keys, lost later, are news.
#[test]
fn the_tail_of_an_operation_is_told_as_its_stage() {
    let w = want(json!({}));
    let mut seen = made(Machine { keyed: false, ..machine() });
    seen.records.operation = Some(intent(Making::CloneMachine));
    assert_eq!(told(&w, &seen).0, R::SettingUpMachine);
    seen.records.machine = None;
    assert_eq!(told(&w, &seen).0, R::CreatingMachine);
    (seen.records.operation, seen.records.disk) = (Some(intent(Making::CloneDisk)), None);
    seen.work = Sight::Found(Disk { tagged: false, ..disk("w") });
    let (reason, message) = told(&w, &seen);
    assert_eq!(reason, R::CreatingDisk);
    assert!(message.contains("'pvs' of version '1'") && message.contains("'fast'"), "{message}");
}

#[test]
fn what_is_thrown_away_is_named() {
    let (w, seen) = (want(json!({"version": "2", "discard": "1"})), made(machine()));
    let (reason, message) = told(&w, &seen);
    assert_eq!(reason, R::Discarding);
    assert!(message.contains("version '1'") && message.contains("'2' begins"), "{message}");
}

/// The only proof that F holds what W holds is gone: neither is touched.
#[test]
fn a_frozen_disk_without_its_proof_stops_the_removal_of_the_packaging_disk() {
    let mut seen = made(machine());
    seen.records.versions =
        vec![VersionRecord { version: "1".into(), disk: "f".into(), base: "s".into(), ..VersionRecord::default() }];
    (seen.machine, seen.frozen) = (Sight::Absent, Sight::Found(disk("f")));
    let plan = decide(&want(json!({})), &seen);
    assert_eq!(plan.step, Step::Nothing);
    let (reason, message) = told(&want(json!({})), &seen);
    assert_eq!(reason, R::SnapshotUnproven);
    assert!(message.contains('w') && message.contains('f'), "{message}");
    seen.frozen = Sight::Found(Disk { snapshot_of: Some("w".into()), ..disk("f") });
    let (reason, message) = told(&want(json!({})), &seen);
    assert_eq!(reason, R::RemovingMachine);
    assert!(message.contains("frozen as disk f"), "{message}");
}

/// A person reads one line, in the order in which it is to be done.
#[test]
fn a_running_machine_says_what_to_do_in_order() {
    let running = |tools: Tools| Machine {
        power: Power::Running,
        host: Some("h1".into()),
        keys: [(BOOT.to_owned(), "-1@never".to_owned())].into(),
        tools,
        ..machine()
    };
    let message = |tools: Tools, more| told(&want(more), &made(running(tools))).1;
    let fresh = message(Tools::default(), json!({}));
    let at = |word: &str| fresh.find(word).unwrap_or_else(|| panic!("no {word:?} in {fresh:?}"));
    let order =
        ["'pvs 1 packaging' (m, on host 'h1')", "console", "guest tools", "platform software", "Shutdown For Finalize"];
    assert!(order.map(at).is_sorted(), "{fresh}");
    assert!(message(Tools { overdue: true, ..Tools::default() }, json!({})).contains("firmware"));
    let ready = message(Tools { ready: true, ..Tools::default() }, json!({}));
    assert!(!ready.contains("guest tools") && !ready.contains("rearm"), "{ready}");
}

/// What it was made of is let go in between. No machine ever meets a disk that changes its size.
#[test]
fn a_disk_is_recorded_before_it_is_sized_and_sized_before_there_is_a_machine() {
    let w = want(json!({"packagingDisk": {"size": "64Gi"}}));
    let (small, large) = (32_i64 << 30, 64_i64 << 30);
    let of = |virtual_size| Disk { virtual_size, description: description(&w), ..disk("w") };
    let record = |virtual_size| {
        let virtual_size = Some(virtual_size);
        Some(DiskRecord { uuid: "w".into(), version: "1".into(), virtual_size, ..DiskRecord::default() })
    };
    let decided = |seen: &Observed| {
        let plan = decide(&w, seen);
        (plan.step, plan.phase)
    };
    let mut seen = Observed { work: Sight::Found(of(small)), ..entered() };
    assert_eq!(decided(&seen), (Step::Record, Phase::Pending));
    seen.records.disk = record(small);
    assert_eq!(decided(&seen), (Step::ResizeDisk { uuid: "w".into(), size: large }, Phase::Pending));
    let (reason, message) = told(&w, &seen);
    assert!(reason == R::CreatingDisk && message.contains("gets its size"), "{reason}: {message}");
    seen.work = Sight::Found(Disk { busy: true, ..of(small) });
    assert_eq!((decided(&seen), decide(&w, &seen).next), ((Step::Nothing, Phase::Pending), Next::Task));
    seen.work = Sight::CannotLook;
    assert_eq!(decide(&w, &seen).phase, Phase::Pending);
    seen.records.disk = record(large);
    assert_eq!(decide(&w, &seen).phase, Phase::DiskCreated);
    seen.work = Sight::Found(of(large));
    seen.flights = vec![Flight::unbegun(Making::CloneMachine)];
    assert_eq!(decided(&seen), (Step::RecordIntent(Making::CloneMachine), Phase::DiskCreated));
    // A pool that died shows an old row, and it is too late.
    seen.work = Sight::Found(of(small));
    seen.machine = Sight::Found(machine());
    assert!(!matches!(decide(&w, &seen).step, Step::ResizeDisk { .. }));
    seen.machine = Sight::Absent;
    seen.records.disk = record(small).map(|d| DiskRecord { worked: true, ..d });
    assert_eq!(decided(&seen), (Step::RecordIntent(Making::CloneMachine), Phase::MachineRunning));
    seen.work = Sight::Found(of(large));
    seen.records.disk = None;
    assert_eq!(decided(&seen), (Step::Record, Phase::DiskCreated));
}

#[test]
fn a_freeze_waits_for_a_machine_at_rest() {
    let (seen, m) = (made(machine()), Machine { busy: true, ..machine() });
    let why = gate::freeze(&seen, &m).expect_err("not at rest");
    assert_eq!(why.reason, R::WaitingForMachine);
}

/// Skip asks for no report; still the freeze is of one boot's end, and that must be known by a name.
#[test]
fn a_boot_that_nobody_noted_is_noted_before_it_is_frozen() {
    let w = want(json!({"integrity": "Skip", "finalize": {"approved": "1"}}));
    let halted = |keys: &[(&str, &str)]| Machine {
        keys: keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        start_time: "later".into(),
        ..machine()
    };
    let mut seen = made(halted(&[(START_BEFORE, "never")]));
    assert_eq!(decide(&w, &seen).step, Step::NoteBoot { machine: "m".into(), boot: "-1@later".into() });
    seen = made(halted(&[(START_BEFORE, "never"), (BOOT, "-1@later")]));
    assert_eq!(decide(&w, &seen).step, Step::BlockStart { machine: "m".into() });
    // Begun without one, it is nobody's to say that the machine rested since.
    seen = made(halted(&[(START_BEFORE, "never")]));
    seen.flights = vec![flight(Making::FreezeDisk)];
    let m = seen.machine.found().expect("M");
    assert_eq!(gate::same_boot(&seen, m).expect_err("another boot").reason, R::WaitingForMachine);
}

/// Whatever xapi died at, begun or not: none that is asked for once more could succeed.
#[test]
fn a_disk_that_was_left_paused_is_woken_before_its_freeze_is_asked_for_again() {
    let w = want(json!({"integrity": "Skip", "finalize": {"approved": "1"}}));
    let keys = [(START_BEFORE, "never"), (BOOT, "-1@later")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let m = Machine { keys: keys.into(), start_time: "later".into(), start_blocked: true, ..machine() };
    let step = |task: Option<TaskSight>| {
        let mut seen = made(m.clone());
        seen.work = Sight::Found(Disk { paused: true, left_paused: true, ..disk("w") });
        let begun = task.map(|task| {
            let intent = Intent { boot: Some("-1@later".into()), ..intent(Making::FreezeDisk) };
            Flight { intent: Some(intent), task, ..Flight::unbegun(Making::FreezeDisk) }
        });
        seen.flights = begun.into_iter().collect();
        seen.records.operation = seen.flights.first().and_then(|f| f.intent.clone());
        decide(&w, &seen).step
    };
    let woken = Step::Unpause { disk: "w".into() };
    assert_eq!((step(None), step(Some(TaskSight::None))), (woken.clone(), woken.clone()));
    // It pauses the disk itself.
    assert_ne!(step(Some(TaskSight::Pending { progress: 0.5 })), woken);
    // Nor does storage let a machine have it.
    let starting = |paused| {
        let mut seen = made(Machine { start_blocked: false, ..m.clone() });
        seen.work = Sight::Found(Disk { paused, left_paused: paused, ..disk("w") });
        let intent = intent(Making::StartMachine);
        seen.flights = vec![Flight { intent: Some(intent.clone()), ..Flight::unbegun(Making::StartMachine) }];
        seen.records.operation = Some(intent);
        decide(&w, &seen).step
    };
    assert_eq!(starting(true), woken);
    assert_ne!(starting(false), woken);
}

/// The pool may refuse it again and again, and the work must still be got at.
#[test]
fn a_new_start_that_is_asked_for_takes_a_begun_freeze_back() {
    let w = want(json!({"integrity": "Skip", "finalize": {"approved": "1"}, "machine": {"restartToken": "new"}}));
    let keys = [(START_BEFORE, "never"), (BOOT, "-1@later")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let mut seen = made(Machine { keys: keys.into(), start_time: "later".into(), start_blocked: true, ..machine() });
    let intent = Intent { boot: Some("-1@later".into()), ..intent(Making::FreezeDisk) };
    seen.flights = vec![Flight { intent: Some(intent.clone()), ..Flight::unbegun(Making::FreezeDisk) }];
    seen.records.operation = Some(intent);
    assert_eq!(decide(&w, &seen).step, Step::DropIntent);
    seen.flights.clear();
    seen.records.operation = None;
    assert!(matches!(decide(&w, &seen).step, Step::UnblockStart { .. }));
}

/// An older version's disk is in another repository than the newest one's.
#[test]
fn a_removal_asks_the_repository_that_each_disk_is_in() {
    let there = |scans| Storage { uuid: "there".into(), name: "slow".into(), scans, ..Storage::default() };
    let seen = |elsewhere: Vec<Storage>| {
        let mut seen = entered();
        seen.elsewhere = elsewhere;
        let (version, sr) = (Some("0".into()), Some("there".into()));
        seen.unseen = vec![Unseen { uuid: "f0".into(), version, sr, lost: false }];
        seen
    };
    let step = |policy: &str, seen: &Observed| {
        let plan = decide_removal(&want(json!({"deletionPolicy": policy})), seen, &Estate::default());
        (plan.step, format!("{:?}", plan.say))
    };
    let (scan, words) = step("Delete", &seen(vec![there(0)]));
    assert_eq!(scan, Step::ScanStorage { sr: "there".into() });
    assert!(words.contains("'slow'"), "{words}");
    assert_eq!(step("Delete", &seen(vec![there(1)])).0, Step::LetGo);
    // The pool has the repository no more: what is to be removed cannot be, what is to stay stays.
    let (nothing, words) = step("Delete", &seen(Vec::new()));
    assert_eq!(nothing, Step::Nothing);
    assert!(words.contains("there") && words.contains("f0") && words.contains("Orphan"), "{words}");
    assert_eq!(step("Retain", &seen(Vec::new())).0, Step::LetGo);
}

fn flight(making: Making) -> Flight {
    Flight { intent: Some(intent(making)), ..Flight::unbegun(making) }
}

/// Storage pauses what it copies: our own copy is no reason to wait for storage, and to tell so.
#[test]
fn a_base_is_waited_for_only_where_another_keeps_it_paused() {
    let w = want(json!({}));
    let paused = |f: Flight| {
        let base = Sight::Found(Disk { paused: true, ..disk("s") });
        let operation = f.intent.clone();
        let records = Records { operation, ..entered().records };
        told(&w, &Observed { base, records, flights: vec![f], ..entered() }).0
    };
    let mark = Mark { cluster: "c".into(), owner: "l".into(), op: "op".into() };
    let ours = Flight { wanted_mark: Some(mark), ..flight(Making::CloneDisk) };
    for task in [TaskSight::Pending { progress: 0.5 }, TaskSight::Succeeded { child: Some("w".into()) }] {
        assert_eq!(paused(Flight { sent: Sent::Once, task, ..ours.clone() }), R::CreatingDisk);
    }
    assert_eq!(paused(Flight { turn: false, ..ours.clone() }), R::WaitingForMark);
    assert_eq!(paused(Flight { mark: MarkSight::Held, ..ours.clone() }), R::WaitingForMark);
    assert_eq!(paused(ours), R::WaitingForStorage);
    assert_eq!(paused(Flight::unbegun(Making::CloneDisk)), R::WaitingForStorage);
}

/// xapi died and forgot that the machine had run: what is wrong, what it means and what to do, from the first word on.
#[test]
fn a_forgotten_boot_is_told_as_that_and_not_as_a_machine_in_the_making() {
    let w = want(json!({}));
    for busy in [false, true] {
        let mut seen = made(Machine { busy, ..machine() });
        seen.agent_start = "1".into();
        seen.records.disk.as_mut().expect("a record").worked = true;
        let (reason, message) = told(&w, &seen);
        assert_eq!(reason, R::FixIntegrity, "busy: {busy}, {message}");
        for word in [
            "'pvs 1 packaging' (m)",
            "forgot",
            "What was installed is still there",
            "version '1' cannot be frozen",
            "restartToken",
        ] {
            assert!(message.contains(word), "{word:?} is not in {message:?}");
        }
    }
}
