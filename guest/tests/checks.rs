//! Every place, set and cleared; what cannot be looked at; the vendor's record.
//!
//! Longer than 350 lines: one table of places.

use std::collections::BTreeSet;

use lamina_guest::cause::{Cause, Clears};
use lamina_guest::checks::{Verdict, all, bits, check, parse_vendor_record};
use lamina_guest::facts::{Card, Facts, Process, Service, Value, View};
use lamina_guest::memory::{State, Windows};
use lamina_guest::verify::{exit_code, json, table};

const SESSION: &str = r"SYSTEM\CurrentControlSet\Control\Session Manager";
const SERVICING: &str = r"SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing";
const UPDATE: &str = r"SOFTWARE\Microsoft\Windows\CurrentVersion\WindowsUpdate\Auto Update\RebootRequired";
const NAMES: &str = r"SYSTEM\CurrentControlSet\Control\ComputerName\ComputerName";
const ACTIVE: &str = r"SYSTEM\CurrentControlSet\Control\ComputerName\ActiveComputerName";
const TCPIP: &str = r"SYSTEM\CurrentControlSet\Services\Tcpip\Parameters";
const NETLOGON: &str = r"SYSTEM\CurrentControlSet\Services\Netlogon";
const PROGRESS: &str = r"SOFTWARE\Microsoft\Windows\CurrentVersion\Installer\InProgress";
const RUN_ONCE: &str = r"SOFTWARE\Microsoft\Windows\CurrentVersion\RunOnce";
const QUEUE: &str = r"SOFTWARE\Microsoft\.NETFramework\NGenQueue";
const SERVICES: &str = r"SYSTEM\CurrentControlSet\Services";
const VENDOR: &str = r"C:\Program Files\Unidesk\Uniservice\uniservice.exe";
const RECORD: &str = r"C:\Program Files\Unidesk\Uniservice\Log\LayerIntegrity.txt";

fn text(s: &str) -> Value {
    Value::Text(s.to_owned())
}

fn process(s: &mut State, name: &str) {
    s.processes.push(Process { pid: 4711, name: name.to_owned() });
}

fn ends(s: &mut State, name: &str) {
    s.processes.retain(|p| p.name != name);
}

type Change = fn(&mut State);

/// Reason, what its detail names, how it comes, how it goes.
const CASES: &[(Cause, &str, Change, Change)] = &[
    (
        Cause::RebootPending,
        r"2 names, first C:\Windows\old.dll",
        |s| {
            let files =
                [r"\??\C:\Windows\old.dll", "", r"\??\C:\a", r"!\??\C:\b"].iter().take(3).map(|f| (*f).to_owned());
            s.set(View::Bits64, SESSION, "PendingFileRenameOperations", Value::Texts(files.collect()));
        },
        |s| s.unset(View::Bits64, SESSION, "PendingFileRenameOperations"),
    ),
    (
        Cause::RebootPending,
        "PendingFileRenameOperations2",
        |s| s.set(View::Bits64, SESSION, "PendingFileRenameOperations2", Value::Texts(vec![r"\??\C:\x".to_owned()])),
        |s| s.unset(View::Bits64, SESSION, "PendingFileRenameOperations2"),
    ),
    (
        Cause::RebootPending,
        r"Component Based Servicing\RebootPending",
        |s| s.make(View::Bits64, &format!(r"{SERVICING}\RebootPending")),
        |s| s.unmake(View::Bits64, &format!(r"{SERVICING}\RebootPending")),
    ),
    (
        Cause::RebootPending,
        r"Component Based Servicing\RebootInProgress",
        |s| s.make(View::Bits32, &format!(r"{SERVICING}\RebootInProgress")),
        |s| s.unmake(View::Bits32, &format!(r"{SERVICING}\RebootInProgress")),
    ),
    (
        Cause::RebootPending,
        r"Component Based Servicing\PackagesPending",
        |s| s.make(View::Bits64, &format!(r"{SERVICING}\PackagesPending\one")),
        |s| {
            s.unmake(View::Bits64, &format!(r"{SERVICING}\PackagesPending\one"));
            s.make(View::Bits64, &format!(r"{SERVICING}\PackagesPending"));
        },
    ),
    (
        Cause::RebootPending,
        r"Auto Update\RebootRequired",
        |s| s.make(View::Bits64, UPDATE),
        |s| s.unmake(View::Bits64, UPDATE),
    ),
    (
        Cause::RebootPending,
        "UpdateExeVolatile is 3",
        |s| s.set(View::Bits32, r"SOFTWARE\Microsoft\Updates", "UpdateExeVolatile", Value::Number(3)),
        |s| s.set(View::Bits32, r"SOFTWARE\Microsoft\Updates", "UpdateExeVolatile", Value::Number(0)),
    ),
    (
        Cause::RebootPending,
        "computer PACK becomes NEW",
        |s| s.set(View::Bits64, NAMES, "ComputerName", text("NEW")),
        |s| s.set(View::Bits64, NAMES, "ComputerName", text("pack")),
    ),
    (
        Cause::RebootPending,
        "computer OLD becomes PACK",
        |s| s.set(View::Bits64, ACTIVE, "ComputerName", text("OLD")),
        |s| s.set(View::Bits64, ACTIVE, "ComputerName", text("PACK")),
    ),
    (
        Cause::RebootPending,
        "computer PACK becomes fresh",
        |s| s.set(View::Bits64, TCPIP, "NV Hostname", text("fresh")),
        |s| s.set(View::Bits64, TCPIP, "NV Hostname", text("PACK")),
    ),
    (
        Cause::RebootPending,
        r"Netlogon\JoinDomain",
        |s| s.set(View::Bits64, NETLOGON, "JoinDomain", Value::Number(1)),
        |s| s.unset(View::Bits64, NETLOGON, "JoinDomain"),
    ),
    (
        Cause::RebootPending,
        r"Netlogon\AvoidSpnSet",
        |s| s.make(View::Bits64, &format!(r"{NETLOGON}\AvoidSpnSet")),
        |s| s.unmake(View::Bits64, &format!(r"{NETLOGON}\AvoidSpnSet")),
    ),
    (
        Cause::InstallerBusy,
        r"Global\_MSIExecute",
        |s| _ = s.held_mutexes.insert(r"Global\_MSIExecute".to_owned()),
        |s| s.held_mutexes.clear(),
    ),
    (
        Cause::InstallerBusy,
        r"Installer\InProgress",
        |s| s.make(View::Bits64, PROGRESS),
        |s| s.unmake(View::Bits64, PROGRESS),
    ),
    (Cause::InstallerBusy, "process MsiExec.exe (4711)", |s| process(s, "MsiExec.exe"), |s| ends(s, "MsiExec.exe")),
    (Cause::InstallerBusy, "process TiWorker.exe", |s| process(s, "TiWorker.exe"), |s| ends(s, "TiWorker.exe")),
    (Cause::InstallerBusy, "process wusa.exe", |s| process(s, "wusa.exe"), |s| ends(s, "wusa.exe")),
    (Cause::NGenRunning, "process mscorsvw.exe", |s| process(s, "mscorsvw.exe"), |s| ends(s, "mscorsvw.exe")),
    (Cause::NGenRunning, "process ngen.exe", |s| process(s, "ngen.exe"), |s| ends(s, "ngen.exe")),
    (Cause::NGenRunning, "process ngentask.exe", |s| process(s, "ngentask.exe"), |s| ends(s, "ngentask.exe")),
    (
        Cause::NGenRunning,
        "service clr_optimization_v2.0.50727_32 is not stopped",
        |s| _ = s.services.insert("clr_optimization_v2.0.50727_32".to_owned(), Service { stopped: false, pid: 9 }),
        |s| _ = s.services.remove("clr_optimization_v2.0.50727_32"),
    ),
    (
        Cause::NGenRunning,
        "service clr_optimization_v4.0.30319_64 is not stopped",
        |s| _ = s.services.insert("CLR_Optimization_v4.0.30319_64".to_owned(), Service { stopped: false, pid: 9 }),
        |s| _ = s.services.remove("CLR_Optimization_v4.0.30319_64"),
    ),
    (
        Cause::NGenNeeded,
        r"NGenQueue\WIN64\Default: 1 queued",
        |s| s.make(View::Bits64, &format!(r"{QUEUE}\WIN64\Default\C:/Program Files/App/App.exe")),
        |s| s.unmake(View::Bits64, &format!(r"{QUEUE}\WIN64\Default\C:/Program Files/App/App.exe")),
    ),
    (
        Cause::NGenNeeded,
        r"NGenQueue\WIN32\Default: 2 queued",
        |s| {
            s.make(View::Bits32, &format!(r"{QUEUE}\WIN32\Default\one"));
            s.make(View::Bits32, &format!(r"{QUEUE}\WIN32\Default\two"));
        },
        |s| s.unmake(View::Bits32, QUEUE),
    ),
    (
        Cause::RunOncePending,
        r"CurrentVersion\RunOnce\Setup",
        |s| s.set(View::Bits64, RUN_ONCE, "Setup", text("setup.exe /finish")),
        |s| s.unset(View::Bits64, RUN_ONCE, "Setup"),
    ),
    (
        Cause::RunOncePending,
        r"RunOnce\Twin (32-bit view)",
        |s| s.set(View::Bits32, RUN_ONCE, "Twin", text("x")),
        |s| s.unset(View::Bits32, RUN_ONCE, "Twin"),
    ),
    (
        Cause::RunOncePending,
        r"RunOnceEx\010 (32-bit view)",
        |s| s.set(View::Bits32, &format!(r"{RUN_ONCE}Ex\010"), "1", text("x")),
        |s| s.unmake(View::Bits32, &format!(r"{RUN_ONCE}Ex")),
    ),
    (
        Cause::WindowsUpgradeUnfinished,
        r"Setup\SystemSetupInProgress",
        |s| s.set(View::Bits64, r"SYSTEM\Setup", "SystemSetupInProgress", Value::Number(1)),
        |s| s.set(View::Bits64, r"SYSTEM\Setup", "SystemSetupInProgress", Value::Number(0)),
    ),
    (
        Cause::WindowsUpgradeUnfinished,
        r"Setup\UpgradeInProgress",
        |s| s.set(View::Bits64, r"SYSTEM\Setup", "UpgradeInProgress", Value::Number(1)),
        |s| s.set(View::Bits64, r"SYSTEM\Setup", "UpgradeInProgress", Value::Number(0)),
    ),
    (
        Cause::WindowsUpgradeUnfinished,
        r"Setup\SetupType",
        |s| s.set(View::Bits64, r"SYSTEM\Setup", "SetupType", Value::Number(2)),
        |s| s.set(View::Bits64, r"SYSTEM\Setup", "SetupType", Value::Number(0)),
    ),
    (Cause::WindowsUpgradeUnfinished, "SetupHost.exe", |s| process(s, "SetupHost.exe"), |s| ends(s, "SetupHost.exe")),
    (
        Cause::SCCMClientIdentity,
        r"C:\Windows\SMSCFG.INI",
        |s| {
            s.put(r"C:\Windows\SMSCFG.ini", b"id");
            s.set(View::Bits64, &format!(r"{SERVICES}\CcmExec"), "Start", Value::Number(2));
        },
        |s| s.set(View::Bits64, &format!(r"{SERVICES}\CcmExec"), "Start", Value::Number(4)),
    ),
    (
        Cause::FSLogixAltitude,
        "Altitude is 132700, not 138010",
        |s| {
            s.make(View::Bits64, &format!(r"{SERVICES}\unifltr"));
            s.set(View::Bits64, &format!(r"{SERVICES}\frxdrvvt\Instances\frxdrvvt"), "Altitude", text("132700"));
        },
        |s| s.set(View::Bits64, &format!(r"{SERVICES}\frxdrvvt\Instances\frxdrvvt"), "Altitude", text("138010")),
    ),
    (
        Cause::HibernationOn,
        r"C:\hiberfil.sys exists",
        |s| s.put(r"C:\hiberfil.sys", b""),
        |s| s.delete(r"C:\hiberfil.sys"),
    ),
    (
        Cause::HibernationOn,
        "fast start is on",
        |s| {
            s.put(r"C:\hiberfil.sys", b"");
            s.set(View::Bits64, &format!(r"{SESSION}\Power"), "HiberbootEnabled", Value::Number(1));
        },
        |s| s.delete(r"C:\hiberfil.sys"),
    ),
    (
        Cause::GhostNetworkCard,
        "Realtek",
        |s| {
            s.cards.push(Card {
                id: r"PCI\VEN_10EC\1".to_owned(),
                name: "Realtek RTL8139C+".to_owned(),
                present: false,
            });
        },
        |s| s.cards.retain(|c| c.present),
    ),
    (Cause::BitLockerOn, r"C:\", |s| _ = s.encrypted.insert(r"C:\".to_owned()), |s| s.encrypted.clear()),
    (Cause::DriveDirty, r"C:\", |s| _ = s.dirty.insert(r"C:\".to_owned()), |s| s.dirty.clear()),
    (
        Cause::VendorRecordOld,
        RECORD,
        |s| {
            s.put(RECORD, br#"{"BlockFinalize":0}"#);
            s.now += 3600;
        },
        |s| s.delete(RECORD),
    ),
    (Cause::VendorRecordMissing, RECORD, |s| s.put(VENDOR, b"MZ"), |s| s.put(RECORD, br#"{"BlockFinalize":0}"#)),
];

fn reasons(verdict: &Verdict) -> Vec<String> {
    verdict.everything().into_iter().map(|f| f.reason).collect()
}

#[test]
fn a_clean_windows_has_no_finding() {
    let windows = Windows::clean();
    let verdict = check(&windows);
    assert_eq!((verdict.everything(), verdict.clean(), exit_code(&verdict)), (vec![], true, 0));
    assert!(table(&verdict).starts_with("Nothing is pending"));
    assert!(json(&verdict).contains("\"clean\": true"));
}

#[test]
fn each_place_is_seen_when_it_is_set_and_not_when_it_is_cleared() {
    let mut tried = BTreeSet::new();
    for (cause, detail, set, clear) in CASES {
        let windows = Windows::clean();
        windows.change(set);
        let verdict = check(&windows);
        assert_eq!(reasons(&verdict), [cause.as_str()], "{detail}");
        assert!(verdict.findings[0].detail.contains(detail), "{:?} has no {detail}", verdict.findings);
        let seeing = all().filter(|c| (c.look)(&windows).is_ok_and(|seen| !seen.is_empty())).map(|c| c.place);
        let seeing: Vec<_> = seeing.collect();
        assert_eq!(seeing.len(), 1, "{detail}: {seeing:?}");
        tried.extend(seeing);
        assert_eq!(exit_code(&verdict), 1);
        assert!(table(&verdict).contains(cause.remedy()) && json(&verdict).contains(cause.as_str()));
        windows.change(clear);
        assert!(check(&windows).clean(), "{detail} is not cleared: {:?}", check(&windows));
    }
    assert_eq!(all().map(|c| c.place).filter(|p| !tried.contains(p)).collect::<Vec<_>>(), [""; 0], "without a case");
}

#[test]
fn all_at_once_are_all_found() {
    let windows = Windows::clean();
    // A record that is old is not missing.
    let cases = || CASES.iter().filter(|(cause, ..)| *cause != Cause::VendorRecordMissing);
    for (_, _, set, _) in cases() {
        windows.change(set);
    }
    let found = reasons(&check(&windows));
    for (cause, ..) in cases() {
        assert!(found.contains(&cause.as_str().to_owned()), "{cause}");
    }
}

/// What looks alike and is harmless.
#[test]
fn what_is_at_rest_is_not_found() {
    let windows = Windows::clean();
    windows.change(|s| {
        // Windows Installer's own service, idle for some minutes.
        s.services.insert("msiserver".to_owned(), Service { stopped: false, pid: 88 });
        s.processes.push(Process { pid: 88, name: "msiexec.exe".to_owned() });
        // Software devices come and go.
        s.cards.push(Card { id: r"ROOT\NET\0000".to_owned(), name: "Loopback".to_owned(), present: false });
        s.cards.push(Card { id: r"SWD\MSRRAS\MS_PPTP".to_owned(), name: "WAN Miniport".to_owned(), present: false });
        s.cards.push(Card { id: r"SW\{EEAB7790}\ASYNCMAC".to_owned(), name: "RAS".to_owned(), present: false });
        // An identity file with no client, FSLogix with no layering, empty lists and a queue that was emptied.
        s.put(r"C:\Windows\SMSCFG.INI", b"id");
        s.set(View::Bits64, &format!(r"{SERVICES}\frxdrvvt\Instances\frxdrvvt"), "Altitude", text("132700"));
        s.set(View::Bits64, SESSION, "PendingFileRenameOperations", Value::Texts(vec![String::new()]));
        s.set(View::Bits64, RUN_ONCE, "", text(""));
        s.make(View::Bits64, &format!(r"{QUEUE}\WIN64\Default"));
        // A list beside the queue, which running the queue does not empty.
        s.make(View::Bits64, &format!(r"{QUEUE}\WIN64\PersistedPriorities\C:/Program Files/App/App.exe"));
        s.make(View::Bits32, &format!(r"{QUEUE}\WIN32\PersistedPriorities\C:/Program Files/App/App.exe"));
        // Fast start needs hibernation.
        s.set(View::Bits64, &format!(r"{SESSION}\Power"), "HiberbootEnabled", Value::Number(1));
        // A directory of the vendor's without its scripts.
        s.put(r"C:\Program Files\Unidesk\Uniservice\x", b"");
    });
    let verdict = check(&windows);
    assert!(verdict.clean(), "{verdict:?}");
}

#[test]
fn what_cannot_be_looked_at_is_never_clean() {
    for what in [
        r"hklm\system\currentcontrolset\control\session manager",
        r"hklm\software\microsoft\windows\currentversion",
        r"hklm\software\microsoft\windows nt\currentversion",
        "the processes",
        "the network cards",
        "service clr_optimization_v4.0.30319_64",
        r"mutex global\_msiexecute",
        "bitlocker of",
        "the dirty bit",
        r"c:\windows\microsoft.net\framework64",
        r"c:\program files\unidesk\uniservice\log\layerintegrity.txt",
    ] {
        let windows = Windows::clean();
        windows.change(|s| s.blind.insert(what.to_owned()));
        let verdict = check(&windows);
        assert_eq!((exit_code(&verdict), verdict.clean()), (2, false), "{what}");
        assert!(reasons(&verdict).iter().all(|r| r == "CouldNotLook"), "{what}: {verdict:?}");
        assert!(table(&verdict).contains("access is denied") && json(&verdict).contains("access is denied"), "{what}");
        // Findings beside it do not make it a mere finding.
        windows.change(|s| s.encrypted.insert(r"C:\".to_owned()));
        assert_eq!(exit_code(&check(&windows)), 2, "{what}");
    }
}

/// A registry without what every Windows has is no clean Windows.
#[test]
fn a_windows_that_does_not_say_where_it_is_cannot_be_judged() {
    let windows = Windows::clean();
    windows.change(|s| s.unmake(View::Bits64, r"SOFTWARE\Microsoft\Windows NT\CurrentVersion"));
    assert_eq!(exit_code(&check(&windows)), 2);
}

#[test]
fn both_views_are_looked_at_and_what_is_the_same_is_told_once() {
    let windows = Windows::clean();
    for view in View::BOTH {
        windows.change(|s| s.make(view, PROGRESS));
    }
    assert_eq!(check(&windows).findings.len(), 1);
}

#[test]
fn windows_need_not_be_on_drive_c() {
    let windows = Windows::clean();
    windows.change(|s| {
        s.set(View::Bits64, r"SOFTWARE\Microsoft\Windows NT\CurrentVersion", "SystemRoot", text(r"D:\WINNT"));
        s.put(r"D:\hiberfil.sys", b"");
        s.put(r"D:\WINNT\Microsoft.NET\Framework64\v9.9\ngen.exe", b"");
        s.services.insert("clr_optimization_v9.9_64".to_owned(), Service { stopped: false, pid: 5 });
        s.dirty.insert(r"D:\".to_owned());
    });
    assert_eq!(reasons(&check(&windows)), ["NGenRunning", "HibernationOn", "DriveDirty"]);
}

fn with_record(bytes: &[u8]) -> Verdict {
    let windows = Windows::clean();
    windows.change(|s| s.put(RECORD, bytes));
    check(&windows)
}

#[test]
fn the_vendors_record_counts_in_each_of_its_forms() {
    let utf16: Vec<u8> =
        [0xFF, 0xFE].into_iter().chain(r#"{"BlockFinalize":"2"}"#.encode_utf16().flat_map(u16::to_le_bytes)).collect();
    for (bytes, number) in [
        (br#"{"BlockFinalize":0}"#.as_slice(), 0),
        (br#"{"Version":1,"BlockFinalize":"10","More":[]}"#, 10),
        (b"\xEF\xBB\xBF{\"BlockFinalize\": 8192}", 8192),
        (&utf16, 2),
    ] {
        let verdict = with_record(bytes);
        assert_eq!((verdict.block_finalize, verdict.blind.len()), (Some(number), 0));
        assert_eq!(verdict.clean(), number == 0);
    }
    assert_eq!(reasons(&with_record(br#"{"BlockFinalize":24578}"#)), ["RebootPending", "Bit8192", "Bit16384"]);
}

#[test]
fn a_record_that_cannot_be_read_is_never_free() {
    let long = vec![b' '; (1 << 20) + 1];
    for bytes in [
        b"".as_slice(),
        b"{",
        b"{}",
        br#"{"BlockFinalize":"none"}"#,
        br#"{"BlockFinalize":-1}"#,
        b"\xFF\xFE\x00",
        b"\xFF",
        &long,
    ] {
        let verdict = with_record(bytes);
        assert_eq!((verdict.block_finalize, exit_code(&verdict)), (None, 2));
        assert!(bytes.len() > 99 || parse_vendor_record(bytes).is_none());
    }
}

/// A record of another boot, or of the future, says nothing: neither that all is well, nor what is wrong.
#[test]
fn a_record_of_another_boot_is_a_finding_of_its_own() {
    for shift in [-3600i64, 3600] {
        let windows = Windows::clean();
        windows.change(|s| s.put(RECORD, br#"{"BlockFinalize":2}"#));
        let now = windows.now().saturating_add_signed(shift);
        windows.change(|s| s.now = now);
        let verdict = check(&windows);
        assert_eq!((verdict.block_finalize, reasons(&verdict)), (Some(0), vec!["VendorRecordOld".to_owned()]));
    }
}

/// A clock that is wrong by hours since before the boot shifts file times alike.
#[test]
fn a_wrong_clock_changes_no_verdict() {
    for hours in [-12i64, 12] {
        let windows = Windows::clean();
        let now = windows.now().saturating_add_signed(hours * 3600);
        windows.change(|s| s.now = now);
        windows.change(|s| s.put(RECORD, br#"{"BlockFinalize":0}"#));
        assert!(check(&windows).clean());
    }
}

#[test]
fn each_bit_has_its_cause_and_each_cause_a_remedy() {
    let described: Vec<_> = bits((1 << 13) - 1).into_iter().map(|f| f.reason).collect();
    let table: Vec<_> = Cause::ALL.iter().filter(|c| c.bit() != 0).map(|c| c.as_str()).collect();
    assert_eq!(described, table);
    assert!(Cause::ALL.iter().all(|c| c.remedy().ends_with('.')));
    assert_eq!(bits(1 << 63)[0].reason, "Bit9223372036854775808");
    assert_eq!(bits(1 << 63)[0].clears, Clears::Hands);
}
