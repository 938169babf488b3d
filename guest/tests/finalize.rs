//! Shutdown for finalize, from the first look to the power button.
//!
//! Longer than 350 lines: one case after another.

use std::time::Duration;

use lamina_guest::channel::Store;
use lamina_guest::checks::check;
use lamina_guest::deeds::{Deeds, Ended};
use lamina_guest::facts::{Card, Process, Value, View, Volume};
use lamina_guest::finalize::{Bound, Machine, Next, Order, Outcome, Trouble, drop_earlier, finalize, next};
use lamina_guest::memory::{Deed, Reply, State, Windows};
use lamina_guest::report::Report;

const RUN_ONCE: &str = r"SOFTWARE\Microsoft\Windows\CurrentVersion\RunOnce";
const QUEUE: &str = r"SOFTWARE\Microsoft\.NETFramework\NGenQueue";
const OFF: Deed = Deed::PowerOff(Duration::ZERO);
const KMS: Order = Order { rearm: true, wait_ngen: false, leave_on: false };

/// A packaging machine: nonce and boot mark in its store, the config disk at E:.
fn packaging(windows: Windows) -> Windows {
    windows.change(|s| {
        let store = s.store.as_mut().unwrap();
        for (k, v) in [("domid", "7"), ("vm-data/lamina/nonce", "n1"), ("vm-data/lamina/boot", "b1")] {
            store.insert(k.to_owned(), v.to_owned());
        }
        let disk = |root: &str, label: &str, fs: &str| Volume {
            root: root.to_owned(),
            label: label.to_owned(),
            file_system: fs.to_owned(),
        };
        s.volumes.extend([disk(r"D:\", "LAMINA", "NTFS"), disk(r"E:\", "LAMINA", "FAT32")]);
    });
    windows
}

fn machine(windows: &Windows) -> Machine<'_> {
    Machine { facts: windows, deeds: windows, store: Some(windows) }
}

fn shut_down(windows: &Windows, order: Order) -> Result<Outcome, Trouble> {
    finalize(&machine(windows), &Bound::read(windows), order)
}

fn in_store(windows: &Windows) -> Option<Report> {
    Report::from_xenstore(windows.snapshot().store.as_ref().unwrap())
}

fn on_disk(windows: &Windows) -> Option<Report> {
    let file = windows.snapshot().file(r"E:\report.json").cloned()?;
    Some(Report::from_json(&file.bytes).unwrap())
}

/// Place of the first such deed.
fn at(windows: &Windows, which: impl Fn(&Deed) -> bool) -> Option<usize> {
    windows.snapshot().deeds.iter().position(which)
}

#[test]
fn a_clean_machine_reports_on_both_channels_waits_and_turns_itself_off() {
    let windows = packaging(Windows::clean());
    let outcome = shut_down(&windows, Order::default()).unwrap();
    assert_eq!((outcome.off, outcome.unwritten.len(), outcome.verdict.clean()), (true, 0, true));
    let report = in_store(&windows).unwrap();
    assert_eq!((report.nonce.as_str(), report.boot.as_str(), report.domid.as_str()), ("n1", "b1", "7"));
    assert_eq!((report.sealed, report.block_finalize, report.findings.len()), (true, Some(0), 0));
    assert_eq!((report.rearms_before, report.rearmed), (None, false));
    assert_eq!(report.written_at.unwrap() - report.booted_at.unwrap(), 60);
    assert_eq!(on_disk(&windows), Some(report));
    let (waited, off) = (
        at(&windows, |d| matches!(d, Deed::Wait(t) if *t >= Duration::from_secs(10))).unwrap(),
        at(&windows, |d| *d == OFF).unwrap(),
    );
    let wrote = at(&windows, |d| matches!(d, Deed::Write(_))).unwrap();
    assert!(wrote < waited && waited < off && off + 1 == windows.snapshot().deeds.len());
    assert_eq!(windows.snapshot().rearms, 3, "nobody asked for a rearm");
}

/// Whatever ends the program (a prompt that is closed, a sign-out), Windows was told to turn the machine off before a clean report stands.
#[test]
fn no_clean_report_stands_in_a_machine_that_may_stay_on() {
    let windows = packaging(Windows::scripted(|state, deed| {
        let clean =
            Report::from_xenstore(state.store.as_ref().unwrap()).is_some_and(|r| r.sealed && r.findings.is_empty());
        // The list has this deed too.
        let asked = state.deeds.iter().any(|d| matches!(d, Deed::PowerOff(after) if !after.is_zero()));
        assert!(!clean || asked, "{deed:?}");
        Reply::Usual
    }));
    shut_down(&windows, KMS).unwrap();
    assert_eq!(windows.snapshot().deeds.last(), Some(&OFF));
}

#[test]
fn a_shutdown_whose_report_reaches_nobody_is_called_off() {
    let windows = packaging(Windows::scripted(|state, deed| {
        if matches!(deed, Deed::PowerOff(_)) {
            state.store = None;
            state.volumes.truncate(1);
        }
        Reply::Usual
    }));
    assert!(matches!(shut_down(&windows, Order::default()), Err(Trouble::Unreported(_))));
    assert_eq!(windows.snapshot().deeds.last(), Some(&Deed::StayOn));
}

#[test]
fn with_a_finding_it_stays_on_and_says_so_on_both_channels() {
    let windows = packaging(Windows::clean());
    windows.change(|s| s.encrypted.insert(r"C:\".to_owned()));
    let outcome = shut_down(&windows, KMS).unwrap();
    assert!(!outcome.off && at(&windows, |d| matches!(d, Deed::PowerOff(_))).is_none());
    let report = in_store(&windows).unwrap();
    assert_eq!((report.findings[0].0.as_str(), report.sealed), ("BitLockerOn", true));
    assert_eq!(on_disk(&windows), Some(report.clone()));
    assert_eq!(
        (report.rearms_before, report.rearmed, windows.snapshot().rearms),
        (Some(3), false, 3),
        "no rearm is spent"
    );
    assert_eq!(next(&outcome.verdict), Next::Ask);
}

#[test]
fn what_could_not_be_looked_at_is_never_reported_as_clean() {
    for what in ["the processes", "the network cards", r"c:\windows", "the count of rearms", "hklm"] {
        let windows = packaging(Windows::clean());
        windows.change(|s| s.blind.insert(what.to_owned()));
        let outcome = shut_down(&windows, KMS).unwrap();
        let report = in_store(&windows).unwrap();
        assert!(!outcome.off && report.findings.iter().any(|(r, _)| r == "CouldNotLook"), "{what}");
        assert_eq!((report.rearmed, windows.snapshot().rearms), (false, 3), "{what}");
    }
}

#[test]
fn kms_rearms_as_the_last_thing_before_the_report() {
    let windows = packaging(Windows::clean());
    let outcome = shut_down(&windows, KMS).unwrap();
    let report = in_store(&windows).unwrap();
    assert_eq!((report.rearms_before, report.rearms_left, report.rearmed), (Some(3), Some(2), true));
    assert!(outcome.off && outcome.report == report && report.findings.is_empty());
    let rearm = at(&windows, |d| *d == Deed::Rearm).unwrap();
    let rest: Vec<_> = windows.snapshot().deeds[rearm + 1..].to_vec();
    assert!(matches!(&rest[..], [Deed::PowerOff(_), Deed::Write(_), Deed::Wait(_), Deed::PowerOff(_)]), "{rest:?}");
}

#[test]
fn no_rearm_left_is_a_finding_and_nothing_is_tried() {
    let windows = packaging(Windows::clean());
    windows.change(|s| s.rearms = 0);
    let outcome = shut_down(&windows, KMS).unwrap();
    assert!(!outcome.off && at(&windows, |d| *d == Deed::Rearm).is_none());
    assert_eq!(in_store(&windows).unwrap().findings[0].0, "NoRearmsLeft");
    assert_eq!(in_store(&windows).unwrap().rearms_before, Some(0));
}

#[test]
fn a_rearm_that_fails_is_a_finding() {
    let windows = packaging(Windows::scripted(|_, deed| match deed {
        Deed::Rearm => Reply::Fails("0xC004F00F".to_owned()),
        _ => Reply::Usual,
    }));
    let outcome = shut_down(&windows, KMS).unwrap();
    let (reason, detail) = in_store(&windows).unwrap().findings[0].clone();
    assert!(!outcome.off && reason == "NotRearmed" && detail.contains("0xC004F00F"), "{detail}");
}

/// A shutdown that somebody called off, then once more: the second report says what the first one spent, whatever came between.
#[test]
fn a_boot_spends_one_rearm_however_often_it_is_asked() {
    let windows = packaging(Windows::clean());
    shut_down(&windows, KMS).unwrap();
    // The store has another report by now, and one attempt was blocked by a finding.
    windows.change(|s| s.encrypted.insert(r"C:\".to_owned()));
    assert!(!shut_down(&windows, KMS).unwrap().off);
    windows.change(|s| s.encrypted.clear());
    windows.change(|s| s.store.as_mut().unwrap().insert("vm-data/lamina/report/boot".to_owned(), "b0".to_owned()));
    let outcome = shut_down(&windows, KMS).unwrap();
    assert_eq!((outcome.report.rearms_before, outcome.report.rearms_left), (Some(3), Some(2)));
    assert_eq!((outcome.off, outcome.report.rearmed, windows.snapshot().rearms), (true, true, 2));
    // Another boot starts anew.
    windows.change(|s| s.store.as_mut().unwrap().insert("vm-data/lamina/boot".to_owned(), "b2".to_owned()));
    shut_down(&windows, KMS).unwrap();
    assert_eq!(windows.snapshot().rearms, 1);
}

/// The last thing that stands if the machine dies while it rearms.
#[test]
fn a_death_between_rearm_and_report_is_no_clean_report() {
    let windows = packaging(Windows::scripted(|state, deed| {
        if *deed == Deed::Rearm {
            let before = Report::from_xenstore(state.store.as_ref().unwrap()).unwrap();
            assert!(before.sealed && !before.rearmed);
            assert_eq!(before.findings[0].0, "NotRearmed");
        }
        Reply::Usual
    }));
    assert!(shut_down(&windows, KMS).unwrap().off);
}

/// A report of a machine that runs on is no leave to freeze it after a plain shutdown, and no rearm is spent on it.
#[test]
fn leave_on_reports_and_stays_on() {
    let windows = packaging(Windows::clean());
    let outcome = shut_down(&windows, Order { leave_on: true, ..Order::default() }).unwrap();
    let report = in_store(&windows).unwrap();
    assert!(!outcome.off && outcome.verdict.clean() && report.sealed);
    assert_eq!((report.findings.len(), report.findings[0].0.as_str()), (1, "LeftOn"));
    assert_eq!(at(&windows, |d| matches!(d, Deed::PowerOff(_))), None);

    let report = shut_down(&windows, Order { leave_on: true, ..KMS }).unwrap().report;
    assert_eq!((report.rearms_before, report.rearmed, windows.snapshot().rearms), (Some(3), false, 3));
    assert!(report.findings.iter().any(|(r, _)| r == "NotRearmed"), "{report:?}");
    assert!(shut_down(&windows, KMS).unwrap().off, "and then for good");
    assert_eq!(windows.snapshot().rearms, 2);
}

/// Without a config disk, xenstore alone says whose report it is.
#[test]
fn a_report_that_would_belong_to_nobody_is_trouble_before_anything_is_spent() {
    for key in ["domid", "vm-data/lamina/nonce"] {
        let windows = packaging(Windows::clean());
        windows.change(|s| s.volumes.truncate(1));
        windows.change(|s| s.store.as_mut().unwrap().remove(key));
        assert!(matches!(shut_down(&windows, KMS), Err(Trouble::Unbound(_))), "{key}");
        assert_eq!((windows.snapshot().rearms, windows.snapshot().deeds.len()), (3, 0), "{key}");
    }
}

/// A disk that cannot be used names nobody either: the machine would go off, and no check after it would ever count.
#[test]
fn a_disk_that_names_nobody_without_xenstore_is_trouble_before_anything_is_spent() {
    let windows = packaging(Windows::clean());
    windows.change(|s| s.store = None);
    let bound = Bound { boot: "b1".to_owned(), ..Bound::default() };
    // The program always has a channel at hand, which fails where no driver answers.
    let [unanswered, without] = [machine(&windows), Machine { store: None, ..machine(&windows) }];
    for machine in [unanswered, without] {
        assert_eq!(finalize(&machine, &bound, KMS).unwrap_err(), Trouble::Nameless);
        assert_eq!((windows.snapshot().rearms, windows.snapshot().deeds.len()), (3, 0));
    }
}

#[test]
fn one_channel_is_enough_and_none_is_trouble() {
    let lost = |store: bool, disk: bool| {
        let windows = packaging(Windows::clean());
        if !store {
            windows.change(|s| s.store = None);
        }
        if !disk {
            windows.change(|s| s.volumes.truncate(1));
        }
        windows
    };
    let bound = Bound { nonce: "n1".to_owned(), boot: "b1".to_owned(), domid: String::new() };
    let windows = lost(false, true);
    let without = Machine { store: None, ..machine(&windows) };
    let outcome = finalize(&without, &bound, KMS).unwrap();
    assert!(outcome.off && outcome.unwritten[0].contains("xenstore") && on_disk(&windows).unwrap().rearmed);

    let windows = lost(true, false);
    let outcome = shut_down(&windows, Order::default()).unwrap();
    assert!(outcome.off && outcome.unwritten[0].contains("config disk"));

    let windows = lost(false, false);
    let trouble = finalize(&machine(&windows), &bound, KMS).unwrap_err();
    assert!(matches!(&trouble, Trouble::Unreported(why) if why.len() == 2), "{trouble}");
    assert_eq!(
        (windows.snapshot().rearms, at(&windows, |d| matches!(d, Deed::PowerOff(_)))),
        (3, None),
        "nothing is spent on no report"
    );
}

#[test]
fn a_full_config_disk_is_told_and_the_store_has_the_report() {
    let windows = packaging(Windows::scripted(|_, deed| match deed {
        Deed::Write(_) => Reply::Fails("there is not enough space on the disk (112)".to_owned()),
        _ => Reply::Usual,
    }));
    let outcome = shut_down(&windows, Order::default()).unwrap();
    assert!(outcome.off && outcome.unwritten[0].contains("not enough space"), "{:?}", outcome.unwritten);
}

#[test]
fn a_machine_that_does_not_turn_off_is_told() {
    let windows = packaging(Windows::scripted(|_, deed| match deed {
        Deed::PowerOff(_) => Reply::Fails("a required privilege is not held (1314)".to_owned()),
        _ => Reply::Usual,
    }));
    assert!(matches!(shut_down(&windows, KMS), Err(Trouble::StaysOn(_))));
    let report = in_store(&windows).unwrap();
    assert_eq!((report.rearmed, report.findings[0].0.as_str()), (true, "LeftOn"), "no leave for a plain shutdown");
    assert_eq!(on_disk(&windows), Some(report));
    assert!(matches!(shut_down(&windows, KMS), Err(Trouble::StaysOn(_))));
    assert_eq!(windows.snapshot().rearms, 2, "one rearm, however often it is tried");
}

#[test]
fn ghost_cards_are_removed_first_and_one_that_stays_is_a_finding() {
    let ghost = Card { id: r"PCI\VEN_10EC\1".to_owned(), name: "Realtek".to_owned(), present: false };
    let windows = packaging(Windows::clean());
    windows.change(|s| s.cards.push(ghost.clone()));
    assert!(shut_down(&windows, Order::default()).unwrap().off);
    assert!(windows.snapshot().cards.iter().all(|c| c.present));

    let windows = packaging(Windows::scripted(|_, deed| match deed {
        Deed::RemoveCard(_) => Reply::Fails("access is denied (5)".to_owned()),
        _ => Reply::Usual,
    }));
    windows.change(|s| s.cards.push(ghost));
    assert!(!shut_down(&windows, Order::default()).unwrap().off);
    assert_eq!(in_store(&windows).unwrap().findings[0].0, "GhostNetworkCard");
}

/// Both frameworks, every version, and never more than what is queued.
#[test]
fn the_queue_is_run_and_waited_for() {
    let windows = packaging(Windows::scripted(|state, deed| {
        match deed {
            // The service takes over for a while.
            Deed::Run(_) => state.processes = vec![Process { pid: 99, name: "mscorsvw.exe".to_owned() }],
            Deed::Wait(_) if state.uptime > Duration::from_secs(600) => state.processes.clear(),
            _ => {}
        }
        Reply::Usual
    }));
    for architecture in ["WIN32", "WIN64"] {
        windows.change(|s| s.make(View::Bits64, &format!(r"{QUEUE}\{architecture}\Default\App")));
    }
    let without = shut_down(&windows, Order::default()).unwrap();
    assert_eq!((without.off, next(&without.verdict)), (false, Next::RunQueue));
    assert!(shut_down(&windows, Order { wait_ngen: true, ..Order::default() }).unwrap().off);
    let ran: Vec<_> = windows
        .snapshot()
        .deeds
        .iter()
        .filter_map(|d| if let Deed::Run(job) = d { Some((job.program.clone(), job.args.clone())) } else { None })
        .collect();
    let programs =
        [r"Framework\v2.0.50727", r"Framework\v4.0.30319", r"Framework64\v2.0.50727", r"Framework64\v4.0.30319"];
    let wanted = programs.map(|p| (format!(r"C:\Windows\Microsoft.NET\{p}\ngen.exe"), "executequeueditems".to_owned()));
    assert_eq!(ran, wanted);
    assert!(windows.snapshot().uptime > Duration::from_secs(600));
}

#[test]
fn a_generator_that_never_ends_is_given_up_and_reported() {
    let windows = packaging(Windows::scripted(|_, deed| match deed {
        Deed::Run(_) => Reply::Ended(Ended::TimedOut),
        _ => Reply::Usual,
    }));
    windows.change(|s| s.processes.push(Process { pid: 99, name: "mscorsvw.exe".to_owned() }));
    let outcome = shut_down(&windows, Order { wait_ngen: true, ..Order::default() }).unwrap();
    assert_eq!((outcome.off, next(&outcome.verdict)), (false, Next::Wait));
    assert!(windows.snapshot().uptime < Duration::from_secs(3 * 3600));
}

/// The vendor's service is asked for a record of this boot, which then counts.
#[test]
fn the_vendors_record_is_made_anew() {
    const LOG: &str = r"C:\Program Files\Unidesk\Uniservice\Log\LayerIntegrity.txt";
    let windows = packaging(Windows::scripted(|state, deed| {
        if matches!(deed, Deed::Run(job) if job.program.ends_with("uniservice.exe") && job.args == "-L") {
            state.put(LOG, br#"{"BlockFinalize":"1024"}"#);
        }
        Reply::Usual
    }));
    windows.change(|s| {
        s.put(LOG, br#"{"BlockFinalize":"0"}"#);
        s.put(r"C:\Program Files\Unidesk\Uniservice\uniservice.exe", b"MZ");
        s.now += 86_400;
    });
    assert!(!shut_down(&windows, Order::default()).unwrap().off);
    let report = in_store(&windows).unwrap();
    assert_eq!((report.block_finalize, report.findings.len()), (Some(1024), 0), "the bits are told once, as a number");
}

/// One that is installed and does not answer is no clean check: what only the vendor looks for was looked for by nobody.
#[test]
fn a_vendors_service_that_writes_no_record_blocks() {
    let fails = |_: &mut State, deed: &Deed| match deed {
        Deed::Run(_) => Reply::Ended(Ended::Code(1)),
        _any_other => Reply::Usual,
    };
    let windows = packaging(Windows::scripted(fails));
    windows.change(|s| s.put(r"C:\Program Files\Unidesk\Uniservice\uniservice.exe", b"MZ"));
    let outcome = shut_down(&windows, KMS).unwrap();
    assert!(at(&windows, |d| matches!(d, Deed::Run(job) if job.args == "-L")).is_some(), "it was asked");
    assert!(!outcome.off && !outcome.report.rearmed);
    assert_eq!(next(&outcome.verdict), Next::Ask);
    let findings = in_store(&windows).unwrap().findings;
    assert_eq!(findings.iter().map(|(reason, _)| reason.as_str()).collect::<Vec<_>>(), ["VendorRecordMissing"]);
}

#[test]
fn a_report_of_before_is_dropped_from_both_channels() {
    let windows = packaging(Windows::clean());
    shut_down(&windows, Order::default()).unwrap();
    drop_earlier(&machine(&windows), "b1");
    assert!(in_store(&windows).is_some() && on_disk(&windows).is_some(), "of this boot");
    drop_earlier(&machine(&windows), "b2");
    assert_eq!((in_store(&windows), on_disk(&windows)), (None, None));
    assert_eq!(Store::read(&windows, "vm-data/lamina/nonce").unwrap().as_deref(), Some("n1"), "and nothing else");
}

#[test]
fn a_clock_off_by_hours_is_told_as_it_is() {
    let windows = packaging(Windows::clean());
    windows.change(|s| s.now -= 7 * 3600);
    let now = windows.snapshot().now;
    let report = shut_down(&windows, Order::default()).unwrap().report;
    assert_eq!((report.written_at, report.booted_at), (Some(now), Some(now - 60)));
}

/// An unattended run, as its service does it: try, do what helps, at most three reboots.
fn unattended(windows: &Windows) -> (Vec<Next>, bool) {
    let (mut did, mut reboots) = (Vec::new(), 0);
    loop {
        let order = Order { wait_ngen: did.last() == Some(&Next::RunQueue), ..KMS };
        let outcome = shut_down(windows, order).unwrap();
        let then = next(&outcome.verdict);
        did.push(then);
        match then {
            Next::Finalize => return (did, outcome.off),
            Next::Ask => return (did, false),
            Next::Reboot if reboots == 3 => return (did, false),
            Next::RunQueue => {}
            Next::Wait => windows.wait(Duration::from_secs(60)),
            Next::Reboot => {
                reboots += 1;
                windows.reboot().unwrap();
                windows.change(|s| s.boot());
            }
        }
        assert!(did.len() < 50, "{did:?}");
    }
}

/// An installer that ends after some minutes and leaves a rename and compilations behind.
#[test]
fn findings_that_clear_at_different_times_are_each_waited_for_in_their_order() {
    let windows = packaging(Windows::scripted(|state: &mut State, deed| {
        if matches!(deed, Deed::Wait(_)) && state.uptime > Duration::from_secs(200) {
            state.held_mutexes.clear();
        }
        Reply::Usual
    }));
    windows.change(|s| {
        s.held_mutexes.insert(r"Global\_MSIExecute".to_owned());
        s.make(View::Bits64, &format!(r"{QUEUE}\WIN64\Default\App"));
        s.set(View::Bits64, RUN_ONCE, "Finish", Value::Text("finish.exe".to_owned()));
    });
    assert!(!check(&windows).clean());
    let (did, off) = unattended(&windows);
    assert!(off);
    assert_eq!(did[0], Next::RunQueue);
    let (waits, rest): (Vec<Next>, Vec<Next>) = did[1..].iter().partition(|n| **n == Next::Wait);
    assert!(!waits.is_empty());
    assert_eq!(rest, [Next::Reboot, Next::Finalize]);
    let report = in_store(&windows).unwrap();
    assert_eq!((report.rearms_before, report.rearms_left), (Some(3), Some(2)), "one rearm, at the very end");
}

#[test]
fn what_no_reboot_clears_ends_after_three() {
    let windows = packaging(Windows::scripted(|state, deed| {
        if matches!(deed, Deed::Remove(_)) {
            state.make(View::Bits64, r"SYSTEM\CurrentControlSet\Services\Netlogon\JoinDomain");
        }
        Reply::Usual
    }));
    assert_eq!(unattended(&windows), (vec![Next::Reboot; 4], false));
}
