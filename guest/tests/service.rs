//! A layer without hands: the disk that the controller makes, the service over an in-memory Windows, boot after boot, and the disk read back.
//!
//! Longer than 350 lines: each test is one life of a machine, told from its first boot to its last.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lamina_guest::deeds::Ended;
use lamina_guest::disk::back::{Back, read};
use lamina_guest::disk::bound::{Known, Source, bound, judged};
use lamina_guest::disk::build::{Contents, build};
use lamina_guest::disk::{Damage, Layer, Purpose, edit};
use lamina_guest::facts::{Process, View, Volume};
use lamina_guest::finalize::{Machine, finalize};
use lamina_guest::memory::{Deed, Reply, State, Windows};
use lamina_guest::report::Report;
use lamina_guest::service::{End, Why, answer, boot, is_marked, mark};
use lamina_guest::steps::Step;
use lamina_guest::steps::engine::{Answer, Stop};
use lamina_guest::steps::progress::{self, Doing};
use lamina_guest::steps::record::State as StepState;

const OFF: Deed = Deed::PowerOff(Duration::ZERO);
const NONCE: &str = "n1";
const SERVICING: &str = r"SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing\RebootPending";

/// A machine: its disk's bytes, its Windows, and how often it was started.
struct Guest {
    image: Vec<u8>,
    windows: Windows,
    boots: u64,
    xenstore: bool,
}

fn steps(json: serde_json::Value) -> Vec<Step> {
    serde_json::from_value(json).expect("steps")
}

fn image(steps: &[Step], finalize_on_done: bool) -> Vec<u8> {
    let layer = Layer {
        layer: "golden".to_owned(),
        namespace: "layers".to_owned(),
        version: "1.0".to_owned(),
        purpose: Purpose::Publishing,
        nonce: NONCE.to_owned(),
        kms_rearm: true,
        finalize_on_done,
    };
    build(&Contents { layer: &layer, steps, files: &BTreeMap::new(), program: None }).expect("a disk")
}

impl Guest {
    fn new(json: serde_json::Value, finalize_on_done: bool, windows: Windows) -> Self {
        let guest = Self { image: image(&steps(json), finalize_on_done), windows, boots: 0, xenstore: true };
        let root = r"E:\".to_owned();
        let disk = Volume { root, label: "LAMINA".to_owned(), file_system: "FAT".to_owned() };
        guest.windows.change(|s| s.volumes.push(disk));
        guest.mount();
        guest
    }

    fn mount(&self) {
        for (path, bytes) in edit::files(&self.image).expect("a disk of ours") {
            self.windows.change(|s| s.put(&format!(r"E:\{}", path.replace('/', r"\")), &bytes));
        }
    }

    fn machine(&self) -> Machine<'_> {
        Machine { facts: &self.windows, deeds: &self.windows, store: self.xenstore.then_some(&self.windows as _) }
    }

    /// Windows comes up once more, in another domain.
    fn start(&mut self) {
        self.boots += 1;
        let domid = self.boots.to_string();
        self.windows.change(|state| {
            state.boot();
            if let Some(store) = &mut state.store {
                store.insert("domid".to_owned(), domid);
                store.insert("vm-data/lamina/nonce".to_owned(), NONCE.to_owned());
            }
        });
    }

    fn boot(&mut self) -> End {
        self.start();
        boot(&self.machine(), &format!("boot-{}", self.boots))
    }

    /// As often as it asks for.
    fn live(&mut self) -> End {
        for _ in 0..20 {
            match self.boot() {
                End::Rebooting => {}
                end => return end,
            }
        }
        panic!("it restarts for ever");
    }

    /// The machine is halted: its disk as the controller exports it.
    fn halted(&mut self) -> Vec<u8> {
        for file in self.windows.snapshot().files_below(r"E:\") {
            edit::put(&mut self.image, &file.path[3..].replace('\\', "/"), &file.bytes).expect("room");
        }
        self.image.clone()
    }

    fn back(&mut self) -> Back {
        read(&self.halted(), NONCE).expect("its disk")
    }

    fn store(&self) -> BTreeMap<String, String> {
        self.windows.snapshot().store.unwrap_or_default()
    }

    fn doing(&self) -> Option<Doing> {
        Doing::read(&self.store())
    }

    fn ran(&self) -> Vec<String> {
        let deeds = self.windows.snapshot().deeds;
        deeds.into_iter().filter_map(|d| if let Deed::Run(job) = d { Some(job.args) } else { None }).collect()
    }

    fn deeds(&self, which: fn(&Deed) -> bool) -> usize {
        self.windows.snapshot().deeds.iter().filter(|d| which(d)).count()
    }
}

/// Programs end with these codes, by a word in their command line.
fn ending(codes: &'static [(&'static str, i32)]) -> Windows {
    Windows::scripted(move |_, deed| match deed {
        Deed::Run(job) => match codes.iter().find(|(word, _)| job.args.contains(word)) {
            Some((_, code)) => Reply::Ended(Ended::Code(*code)),
            None => Reply::Usual,
        },
        _ => Reply::Usual,
    })
}

#[test]
fn a_layer_without_hands_installs_restarts_rearms_reports_and_turns_itself_off() {
    let json = serde_json::json!([
        {"name": "tools", "command": "setup /tools"},
        {"name": "broker", "command": "setup /broker"},
        {"name": "tidy", "powershell": "Remove-Item x", "reboot": "Always"},
    ]);
    let mut guest = Guest::new(json, true, ending(&[("/broker", 3010)]));
    assert_eq!(guest.live(), End::Off);
    assert_eq!(guest.boots, 3, "one restart that was asked for by a code, one always");
    let script = r#"-NoProfile -NonInteractive -ExecutionPolicy Bypass -File "E:\files\tidy\~step.ps1""#;
    assert_eq!(guest.ran(), [r#"/d /s /c "setup /tools""#, r#"/d /s /c "setup /broker""#, script]);
    assert_eq!((guest.deeds(|d| *d == Deed::Rearm), guest.deeds(|d| *d == OFF)), (1, 1));

    let told = progress::read(&guest.store());
    let told: Vec<_> = told.iter().map(|s| (s.name.as_str(), s.state, s.exit_code)).collect();
    let ok = StepState::Succeeded;
    assert_eq!(told, [("broker", ok, Some(3010)), ("tidy", ok, Some(0)), ("tools", ok, Some(0))]);

    let back = guest.back();
    let record = back.record.expect("a record");
    assert_eq!((record.boots, record.reboots), (3, 0));
    let known = Known {
        nonce: NONCE.to_owned(),
        boot: Some(("3".to_owned(), 0)),
        mark: guest.store().get("vm-data/lamina/boot").cloned(),
    };
    let disk = back.report.expect("readable").expect("a report");
    assert_eq!(bound(&disk, Some(&record), &known), Ok(()));
    assert!(disk.rearmed && disk.findings.is_empty());
    let xenstore = Report::from_xenstore(&guest.store());
    assert_eq!(judged(xenstore.clone(), Some(disk)), Ok(xenstore.map(|r| (Source::XenStore, r))));
}

#[test]
fn a_person_finalizes_where_nobody_asked_for_more() {
    let mut guest = Guest::new(serde_json::json!([{"name": "a", "command": "x"}]), false, Windows::clean());
    assert_eq!((guest.live(), guest.doing()), (End::Done, Some(Doing::Done)));
    assert_eq!(guest.deeds(|d| matches!(d, Deed::PowerOff(_))), 0);
    let (bound, _) = mark(&guest.machine(), "boot-1").unwrap();
    assert_eq!(
        (bound.nonce.as_str(), bound.boot.as_str(), bound.domid.as_str()),
        (NONCE, "boot-1", "1"),
        "marked already"
    );
    assert_eq!((guest.live(), guest.ran().len()), (End::Done, 1), "nothing is run again");
}

/// A person's shutdown rearms where the layer asks for it: so says the disk of this very machine, or xenstore where there is none.
#[test]
fn a_person_rearms_where_the_layer_asks_for_it() {
    let asked = |on_disk: bool, in_store: Option<&str>, change: fn(&mut State)| {
        let mut guest = Guest::new(serde_json::json!([]), false, Windows::clean());
        guest.start();
        guest.windows.change(|s| {
            let mut layer: Layer = serde_json::from_slice(&s.file(r"E:\layer.json").expect("a layer").bytes).unwrap();
            layer.kms_rearm = on_disk;
            s.put(r"E:\layer.json", &serde_json::to_vec(&layer).unwrap());
            if let (Some(store), Some(said)) = (&mut s.store, in_store) {
                store.insert("vm-data/lamina/kms-rearm".to_owned(), said.to_owned());
            }
            change(s);
        });
        guest.xenstore = guest.windows.snapshot().store.is_some();
        let (bound, order) = mark(&guest.machine(), "b").unwrap();
        let outcome = finalize(&guest.machine(), &bound, order).expect("a report");
        assert_eq!((outcome.off, outcome.report.rearmed), (true, order.rearm));
        assert_eq!(guest.deeds(|d| *d == Deed::Rearm), usize::from(order.rearm));
        order.rearm
    };
    assert!(asked(true, None, |s| s.store = None), "without tools the disk says it");
    assert!(asked(true, Some("false"), |_| {}) && !asked(false, Some("true"), |_| {}), "the disk first");
    let no_disk = |s: &mut State| s.volumes.truncate(1);
    assert!(asked(false, Some("true"), no_disk) && !asked(true, Some("false"), no_disk) && !asked(true, None, no_disk));
    let foreign = |s: &mut State| {
        let json = s.file(r"E:\layer.json").map(|f| f.bytes.clone()).unwrap_or_default();
        s.put(r"E:\layer.json", &String::from_utf8(json).unwrap().replace(r#""n1""#, r#""n2""#).into_bytes());
    };
    assert!(!asked(true, Some("false"), foreign), "a rearm is not spent for another machine's layer");
    let garbled = |s: &mut State| s.put(r"E:\layer.json", b"{");
    assert!(
        asked(false, Some("true"), garbled),
        "a disk that cannot be used is no reason against a report through xenstore"
    );
}

/// Without drivers the disk alone carries everything, and the clock binds it.
#[test]
fn a_guest_without_xenstore_is_believed_through_its_disk() {
    let mut guest =
        Guest::new(serde_json::json!([{"name": "a", "command": "x", "reboot": "Always"}]), true, Windows::clean());
    guest.xenstore = false;
    guest.windows.change(|s| s.store = None);
    assert_eq!((guest.live(), guest.boots), (End::Off, 2));
    let state = guest.windows.snapshot();
    let started = state.now - state.uptime.as_secs();
    let back = guest.back();
    let record = back.record.expect("a record");
    let report = back.report.expect("readable").expect("a report");
    let known = |at: u64| Known { nonce: NONCE.to_owned(), boot: Some(("9".to_owned(), at)), mark: None };
    assert_eq!(bound(&report, Some(&record), &known(started - 20)), Ok(()));
    assert!(bound(&report, Some(&record), &known(started - 7200)).is_err(), "its clock is two hours fast");
}

#[test]
fn a_failed_step_waits_for_a_person_and_goes_on_from_the_answer() {
    let json = serde_json::json!([{"name": "a", "command": "one"}, {"name": "b", "command": "two"}]);
    let fails = Arc::new(Mutex::new(true));
    let failing = fails.clone();
    let windows = Windows::scripted(move |_, deed| match deed {
        Deed::Run(job) if job.args.contains("one") && *failing.lock().unwrap() => Reply::Ended(Ended::Code(1603)),
        _ => Reply::Usual,
    });
    let mut guest = Guest::new(json, true, windows);
    let stop = Stop::Failed { step: "a".to_owned(), code: Some(1603) };
    assert_eq!((guest.live(), guest.doing()), (End::Stays(Why::Step(stop)), Some(Doing::Stopped)));
    assert_eq!(progress::read(&guest.store())[0].exit_code, Some(1603));
    assert_eq!(answer(&guest.machine(), "boot-1", "b", Answer::Again), Err(Why::NothingToAnswer));
    *fails.lock().unwrap() = false;
    assert_eq!(answer(&guest.machine(), "boot-1", "a", Answer::Again), Ok(End::Off));
    assert_eq!(guest.ran(), [r#"/d /s /c "one""#, r#"/d /s /c "one""#, r#"/d /s /c "two""#]);
}

/// A person presses the icon too early: nothing is marked, dropped or written.
#[test]
fn a_shutdown_before_the_steps_are_done_is_refused() {
    let json = || serde_json::json!([{"name": "a", "command": "one", "reboot": "Always"}]);
    let refused = |guest: &Guest, id: &str| {
        let before = guest.windows.snapshot().deeds.len();
        let why = mark(&guest.machine(), id).unwrap_err();
        assert_eq!(guest.windows.snapshot().deeds.len(), before);
        why
    };
    let mut guest = Guest::new(json(), false, Windows::clean());
    guest.start();
    assert_eq!(refused(&guest, "boot-1"), Why::StepsLeft("a".to_owned()), "the service has not come so far");
    assert!(!is_marked(&guest.machine(), "boot-1"), "so that a service that waited for this goes on");
    assert!(!guest.store().contains_key("vm-data/lamina/boot"));
    assert_eq!(boot(&guest.machine(), "boot-1"), End::Rebooting);
    assert_eq!(refused(&guest, "boot-1"), Why::StepsLeft("a".to_owned()), "its reboot is under way");
    guest.start();
    assert_eq!(mark(&guest.machine(), "boot-2").unwrap().0.boot, "boot-2", "made, whoever marks the boot");
    assert!(is_marked(&guest.machine(), "boot-2") && !is_marked(&guest.machine(), "boot-3"));
    guest.windows.change(|s| s.store = None);
    assert!(is_marked(&guest.machine(), "boot-2"), "the disk alone says it too");

    let mut guest = Guest::new(json(), false, ending(&[("one", 1603)]));
    guest.windows.change(|s| s.put(r"E:\report.json", b"{}"));
    assert!(matches!(guest.live(), End::Stays(Why::Step(Stop::Failed { .. }))));
    assert!(matches!(refused(&guest, "boot-1"), Why::Step(Stop::Failed { .. })));
}

/// While the service runs a step, nobody else calls it interrupted, and nobody begins it anew.
#[test]
fn a_step_that_runs_is_left_alone_by_whoever_else_comes() {
    let json = serde_json::json!([{"name": "a", "command": "one"}]);
    let mut guest = Guest::new(
        json,
        false,
        Windows::scripted(|_, deed| match deed {
            Deed::Run(_) => power_cut(),
            _ => Reply::Usual,
        }),
    );
    assert!(survives(|| guest.boot()).is_none());
    let running = Err(Why::Running("a".to_owned()));
    assert_eq!(answer(&guest.machine(), "boot-1", "a", Answer::Skip), running);
    assert_eq!(mark(&guest.machine(), "boot-1").map(drop), running.map(drop));
    assert_eq!(guest.back().record.expect("a record").steps[0].state, StepState::Running);
    // The service alone knows that it is over, in the same boot too.
    let end = boot(&guest.machine(), "boot-1");
    assert_eq!(end, End::Stays(Why::Step(Stop::Interrupted { step: "a".to_owned() })));
    assert_eq!(answer(&guest.machine(), "boot-1", "a", Answer::Skip), Ok(End::Done));
}

/// Windows brings its drives up one by one.
#[test]
fn a_disk_that_cannot_be_looked_at_yet_is_waited_for() {
    let json = || serde_json::json!([{"name": "a", "command": "one"}]);
    let windows = Windows::scripted(|state, deed| {
        if matches!(deed, Deed::Wait(_)) {
            state.blind.clear();
        }
        Reply::Usual
    });
    let mut guest = Guest::new(json(), false, windows);
    guest.windows.change(|s| s.blind.insert("the volumes".to_owned()));
    assert_eq!(guest.live(), End::Done);

    let mut guest = Guest::new(json(), false, Windows::clean());
    guest.windows.change(|s| s.blind.insert("the volumes".to_owned()));
    assert!(matches!(guest.live(), End::Stays(Why::Blind(_))));
    assert_eq!(guest.store().get("vm-data/lamina/boot").map(String::as_str), Some("boot-1"));
}

/// A host that was restarted counts its domains anew.
#[test]
fn a_boot_is_told_by_its_guid_and_by_nothing_else() {
    let mut guest = Guest::new(serde_json::json!([]), false, Windows::clean());
    assert_eq!(guest.live(), End::Done);
    guest.start();
    guest.windows.change(|s| s.store.as_mut().unwrap().insert("domid".to_owned(), "1".to_owned()));
    assert_eq!(boot(&guest.machine(), "boot-2"), End::Done);
    assert_eq!(guest.back().record.expect("a record").boot.expect("a boot").id, "boot-2");
}

/// A program that cannot be started, one that hangs, one that crashes.
#[test]
fn each_bad_end_is_told_by_its_own_state() {
    let json = serde_json::json!([
        {"name": "gone", "command": "gone", "onFailure": "Continue"},
        {"name": "hangs", "command": "hangs", "onFailure": "Continue", "timeout": 7},
        {"name": "crashes", "command": "crashes", "onFailure": "Continue"},
    ]);
    let windows = Windows::scripted(|_, deed| match deed {
        Deed::Run(job) if job.args.contains("gone") => Reply::Fails("not found (2)".to_owned()),
        Deed::Run(job) if job.args.contains("hangs") => {
            assert_eq!(job.limit, Duration::from_secs(7));
            assert_eq!(job.log.as_deref(), Some(r"E:\logs\02-hangs.log"));
            Reply::Ended(Ended::TimedOut)
        }
        Deed::Run(_) => Reply::Ended(Ended::Code(0xC000_0005_u32 as i32)),
        _ => Reply::Usual,
    });
    let mut guest = Guest::new(json, false, windows);
    assert_eq!(guest.live(), End::Done);
    let record = guest.back().record.expect("a record");
    let ran: Vec<_> = record.steps.iter().map(|r| (r.state, r.exit_code, r.why.clone())).collect();
    let why = Some("cannot run cmd.exe: not found (2)".to_owned());
    let crash = Some(-1_073_741_819);
    assert_eq!(
        ran,
        [(StepState::Failed, None, why), (StepState::TimedOut, None, None), (StepState::Failed, crash, None)]
    );
}

/// The machine goes down in the middle of a deed, which never comes back.
fn power_cut() -> ! {
    std::panic::resume_unwind(Box::new("power cut"))
}

fn survives<T>(life: impl FnOnce() -> T) -> Option<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(life)).ok()
}

/// At each deed of a whole life, before it and in the middle of it: nothing runs twice, nothing is skipped, and it ends.
#[test]
fn a_power_cut_at_any_deed_costs_no_step() {
    let json = || {
        serde_json::json!([
            {"name": "a", "command": "one"},
            {"name": "b", "command": "two", "retry": true, "reboot": "Always"},
            {"name": "c", "command": "three"},
        ])
    };
    let life = |cut_at: usize, torn: bool, xenstore: bool| {
        let deeds = Arc::new(Mutex::new(0));
        let windows = Windows::scripted(move |state, deed| {
            let mut done = deeds.lock().unwrap_or_else(|e| e.into_inner());
            *done += 1;
            if *done == cut_at {
                match deed {
                    Deed::Write(path) if torn => state.put(path, b"torn"),
                    // Begun, and off before it came to an end.
                    Deed::Reboot | Deed::PowerOff(_) if torn => return Reply::Usual,
                    _ => {}
                }
                power_cut();
            }
            Reply::Usual
        });
        let mut guest = Guest::new(json(), true, windows);
        guest.xenstore = xenstore;
        let mut end = None;
        for _ in 0..8 {
            match survives(|| guest.boot()) {
                None | Some(End::Rebooting) => {}
                Some(other) => {
                    end = Some(other);
                    break;
                }
            }
        }
        let runs = |word: &str| guest.ran().iter().filter(|args| args.contains(word)).count();
        (end.expect("an end"), [runs("one"), runs("two"), runs("three")], guest.windows.snapshot().deeds.len())
    };
    let (end, runs, deeds) = life(0, false, true);
    assert_eq!((end, runs), (End::Off, [1, 1, 1]));
    for (cut_at, kind) in (1..=deeds).flat_map(|n| (0..4).map(move |kind| (n, kind))) {
        // Xenstore knows what was begun; the record alone must do too.
        let (torn, xenstore) = (kind % 2 == 1, kind < 2);
        let (end, [a, b, c], _) = life(cut_at, torn, xenstore);
        let told = format!("cut at {cut_at}, torn: {torn}, xenstore: {xenstore}: {end:?}, runs {a} {b} {c}");
        let (all, once) = ([a, b, c].iter().all(|n| *n >= 1), a <= 1 && b <= 2 && c <= 1);
        match end {
            End::Off => assert!(all && once, "{told}"),
            // Cut in the middle of a step that must not be run again: the ones before it ran, and none after.
            End::Stays(Why::Step(Stop::Interrupted { step })) => {
                let expected = if step == "a" { [1, 0, 0] } else { [1, b, 1] };
                assert!(once && step != "b" && [a, b, c] == expected, "{told}");
            }
            other => panic!("{told}: {other:?}"),
        }
    }
}

#[test]
fn a_step_that_was_running_when_the_machine_died_is_asked_about_unless_it_may_be_run_again() {
    for retry in [false, true] {
        let json = serde_json::json!([{"name": "a", "command": "x", "retry": retry}]);
        let windows = Windows::scripted(|state, deed| match deed {
            Deed::Run(_) if state.store.as_ref().is_some_and(|s| s["domid"] == "1") => power_cut(),
            _ => Reply::Usual,
        });
        let mut guest = Guest::new(json, false, windows);
        assert!(survives(|| guest.boot()).is_none());
        let end = guest.live();
        let asks = End::Stays(Why::Step(Stop::Interrupted { step: "a".to_owned() }));
        assert_eq!(end, if retry { End::Done } else { asks });
        assert_eq!(guest.ran().len(), if retry { 2 } else { 1 });
    }
}

/// `chkdsk` took the newest slot with it; what xenstore knows to have been begun is not run again.
#[test]
fn a_record_that_lost_its_newest_write_runs_nothing_twice() {
    let json = serde_json::json!([{"name": "a", "command": "x"}, {"name": "b", "command": "y"}]);
    let mut guest = Guest::new(json, false, ending(&[("y", 5)]));
    assert!(matches!(guest.live(), End::Stays(Why::Step(Stop::Failed { .. }))));
    let fresh = image(&steps(serde_json::json!([{"name": "a", "command": "x"}, {"name": "b", "command": "y"}])), false);
    let (_, slot) = edit::files(&fresh).expect("files").into_iter().find(|(p, _)| p == "record-0.txt").expect("slot 0");
    guest.windows.change(|s| s.put(r"E:\record-0.txt", &slot));
    guest.windows.change(|s| s.put(r"E:\record-1.txt", b"torn"));
    assert_eq!(guest.live(), End::Stays(Why::Step(Stop::Interrupted { step: "a".to_owned() })));
    assert_eq!(guest.ran().len(), 2);
}

#[test]
fn findings_that_clear_at_different_times_are_waited_for_and_restarted_for() {
    let windows = Windows::scripted(|state, deed| {
        // The installer at work ends after the first wait, and leaves a reboot to be made.
        if matches!(deed, Deed::Wait(t) if *t == Duration::from_secs(60)) && !state.processes.is_empty() {
            state.held_mutexes.clear();
        }
        Reply::Usual
    });
    let mut guest = Guest::new(serde_json::json!([]), true, windows);
    guest.start();
    guest.windows.change(|s| s.held_mutexes.insert(r"Global\_MSIExecute".to_owned()));
    guest.windows.change(|s| s.make(View::Bits64, SERVICING));
    assert_eq!(boot(&guest.machine(), "boot-1"), End::Rebooting);
    assert!(guest.deeds(|d| *d == Deed::Wait(Duration::from_secs(60))) >= 1, "no restart while an installer works");
    assert_eq!((guest.live(), guest.boots), (End::Off, 2));
    assert_eq!(guest.back().record.expect("a record").reboots, 1);
}

/// One attempt: what else is waited for does not have it all compiled anew.
#[test]
fn the_queue_of_the_native_image_generator_is_run_once_in_a_boot() {
    let runs = |stuck: bool| {
        let windows = Windows::scripted(move |state, deed| {
            match deed {
                Deed::Run(_) if stuck => return Reply::Fails("access is denied (5)".to_owned()),
                // The installer is at work for five minutes more.
                Deed::Wait(_) if state.uptime > Duration::from_secs(400) => state.held_mutexes.clear(),
                _ => {}
            }
            Reply::Usual
        });
        let mut guest = Guest::new(serde_json::json!([]), true, windows);
        guest.start();
        guest.windows.change(|s| {
            s.make(View::Bits64, r"SOFTWARE\Microsoft\.NETFramework\NGenQueue\WIN64\Default\one");
            s.held_mutexes.insert(r"Global\_MSIExecute".to_owned());
        });
        (boot(&guest.machine(), "boot-1"), guest.ran().len())
    };
    assert_eq!(runs(false), (End::Off, 4), "each framework and version");
    let left = vec!["NGenNeeded".to_owned()];
    assert_eq!(runs(true), (End::Stays(Why::TooLong(left)), 4));
}

#[test]
fn a_reboot_that_never_clears_ends_after_three_and_hands_are_asked_for_at_once() {
    let pending = |state: &mut State, _: &Deed| {
        state.make(View::Bits64, SERVICING);
        Reply::Usual
    };
    let mut guest = Guest::new(serde_json::json!([]), true, Windows::scripted(pending));
    assert_eq!(guest.live(), End::Stays(Why::TooManyReboots(vec!["RebootPending".to_owned()])));
    assert_eq!((guest.boots, guest.deeds(|d| *d == Deed::Reboot), guest.doing()), (4, 3, Some(Doing::Findings)));

    let mut guest = Guest::new(serde_json::json!([]), true, Windows::clean());
    guest.windows.change(|s| s.put(r"C:\hiberfil.sys", b""));
    assert!(matches!(guest.live(), End::Stays(Why::Findings(_))));
    assert_eq!(guest.deeds(|d| *d == Deed::Reboot), 0);

    let busy = |state: &mut State, _: &Deed| {
        state.processes.push(Process { pid: 9, name: "mscorsvw.exe".to_owned() });
        Reply::Usual
    };
    let mut guest = Guest::new(serde_json::json!([]), true, Windows::scripted(busy));
    assert!(matches!(guest.live(), End::Stays(Why::TooLong(_))), "patience has an end");
}

#[test]
fn a_disk_that_cannot_be_used_runs_nothing_and_says_so() {
    let run = |harm: fn(&mut State)| {
        let mut guest = Guest::new(serde_json::json!([{"name": "a", "command": "x"}]), true, Windows::clean());
        guest.windows.change(harm);
        let end = guest.live();
        let mark = guest.store().get("vm-data/lamina/boot").cloned();
        assert_eq!(mark.as_deref(), Some("boot-1"), "the boot is marked all the same");
        assert!(guest.ran().is_empty());
        (end, guest.doing())
    };
    let damaged = |why: Why| (End::Stays(why), Some(Doing::Damaged));
    let missing = |name| damaged(Why::Disk(Damage::Missing(name)));
    let garbled = |name: &str| damaged(Why::Disk(Damage::Garbled(name.to_owned())));
    assert_eq!(run(|s| s.delete(r"E:\layer.json")), missing("layer.json"));
    assert_eq!(run(|s| s.delete(r"E:\record-0.txt")), missing("record-0.txt"));
    assert_eq!(run(|s| s.put(r"E:\record-0.txt", b"")), garbled("record-0.txt"));
    assert_eq!(run(|s| s.put(r"E:\steps.json", b"[")), garbled("steps.json"));
    assert_eq!(run(|s| s.put(r"E:\steps.json", b"[]")), damaged(Why::OtherSteps));
    assert!(matches!(run(|s| s.blind.extend([r"e:\record-1.txt".to_owned()])).0, End::Stays(Why::Blind(_))));
    assert_eq!(run(|s| s.volumes.truncate(1)), (End::NoDisk, None));

    let mut guest = Guest::new(serde_json::json!([]), true, Windows::clean());
    guest.start();
    let other = |s: &mut State| s.store.as_mut().map(|s| s.insert("vm-data/lamina/nonce".to_owned(), "n2".to_owned()));
    guest.windows.change(other);
    assert_eq!(boot(&guest.machine(), "b"), End::Stays(Why::Disk(Damage::Foreign)), "another machine's disk");
}

/// A record that cannot be written ends the run before anything is begun.
#[test]
fn a_full_disk_begins_nothing() {
    let full = |_: &mut State, deed: &Deed| match deed {
        Deed::Write(_) => Reply::Fails("there is not enough space on the disk (112)".to_owned()),
        _ => Reply::Usual,
    };
    let mut guest = Guest::new(serde_json::json!([{"name": "a", "command": "x"}]), true, Windows::scripted(full));
    assert!(matches!(guest.live(), End::Stays(Why::Failed(_))));
    assert!(guest.ran().is_empty());
}

/// A step may fill the disk; then its log gives way to the record, in the slot that could not be written.
#[test]
fn a_log_that_fills_the_disk_gives_way_to_the_record() {
    const LOG: &str = r"E:\logs\01-a.log";
    let full = |state: &mut State, deed: &Deed| match deed {
        Deed::Run(job) => {
            state.put(job.log.as_deref().expect("a log"), b"much");
            Reply::Usual
        }
        Deed::Write(_) if state.file(LOG).is_some() => {
            Reply::Fails("there is not enough space on the disk (112)".to_owned())
        }
        _ => Reply::Usual,
    };
    let mut guest = Guest::new(serde_json::json!([{"name": "a", "command": "x"}]), false, Windows::scripted(full));
    assert_eq!(guest.live(), End::Done);
    assert!(guest.windows.snapshot().file(LOG).is_none());
    assert_eq!(guest.back().record.expect("a record").steps[0].state, StepState::Succeeded);
    let slots: Vec<_> = guest.windows.snapshot().deeds.into_iter().filter(|d| matches!(d, Deed::Write(_))).collect();
    let slot = |n: u32| Deed::Write(format!(r"E:\record-{n}.txt"));
    assert_eq!(slots, [slot(1), slot(0), slot(1), slot(1)]);
}

/// A service that comes up again in the same boot leaves the evidence of a rearm where it is, and spends no second one.
#[test]
fn a_boot_spends_one_rearm_though_its_service_is_started_anew() {
    let stuck = Windows::scripted(|_, deed| match deed {
        Deed::PowerOff(_) => Reply::Fails("a required privilege is not held (1314)".to_owned()),
        _ => Reply::Usual,
    });
    let mut guest = Guest::new(serde_json::json!([]), true, stuck);
    let before = guest.windows.snapshot().rearms;
    assert!(matches!(guest.live(), End::Stays(Why::Finalize(_))));
    assert!(matches!(boot(&guest.machine(), "boot-1"), End::Stays(Why::Finalize(_))));
    assert_eq!(guest.windows.snapshot().rearms, before - 1);
    assert!(matches!(guest.live(), End::Stays(Why::Finalize(_))), "another boot");
    assert_eq!(guest.windows.snapshot().rearms, before - 2);
}

#[test]
fn an_earlier_report_is_dropped_on_both_channels_before_anything_else() {
    let mut guest = Guest::new(serde_json::json!([{"name": "a", "command": "x"}]), false, Windows::clean());
    guest.windows.change(|s| s.put(r"E:\report.json", b"{}"));
    let stale = BTreeMap::from([("vm-data/lamina/report/sealed".to_owned(), "x".to_owned())]);
    guest.windows.change(|s| s.store = Some(stale));
    guest.live();
    assert!(guest.windows.snapshot().file(r"E:\report.json").is_none());
    assert!(!guest.store().keys().any(|k| k.contains("/report/")));
    assert!(matches!(guest.windows.snapshot().deeds[0], Deed::Remove(_)));
}
