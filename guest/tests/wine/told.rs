//! What the program says and how it ends.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use lamina_guest::report::{FILE, Report};

use super::installed::{fill, layer};
use super::prefix::{BITS_64, Wine};

const RUN_ONCE: &str = r"SOFTWARE\Microsoft\Windows\CurrentVersion\RunOnce";
const RECORD: &str = "Program Files/Unidesk/Uniservice/Log/LayerIntegrity.txt";

#[test]
#[ignore = "needs wine: run guest/test-wine.sh"]
fn the_exit_code_tells_clean_from_found_from_blind() {
    let wine = Wine::new();
    let clean = wine.lamina(&["verify"]);
    assert_eq!((clean.code, clean.said.lines().count()), (0, 1), "{}{}", clean.said, clean.complained);
    let (code, json) = wine.verify();
    assert_eq!((code, &json["clean"]), (0, &true.into()), "{json}");

    wine.set(BITS_64, RUN_ONCE, "Setup", "REG_SZ", "setup.exe");
    let found = wine.lamina(&["verify"]);
    assert_eq!(found.code, 1);
    for word in ["RunOncePending", "RunOnce\\Setup", "-> "] {
        assert!(found.said.contains(word), "{word}: {}", found.said);
    }

    wine.file(RECORD, b"no record");
    let (code, json) = wine.verify();
    assert_eq!(code, 2, "{json}");
    assert!(json["couldNotLook"].to_string().contains("LayerIntegrity.txt"), "{json}");
}

/// What wine shows as the vendor's record: its own bits, one that nobody described, and both of its ways to write a number.
#[test]
#[ignore = "needs wine: run guest/test-wine.sh"]
fn the_vendor_s_record_counts_bit_by_bit() {
    let wine = Wine::new();
    wine.file(RECORD, br#"{"BlockFinalize": "7681"}"#);
    let reasons: Vec<_> = wine.findings().iter().map(|f| f.split(' ').next().unwrap_or_default().to_owned()).collect();
    assert_eq!(reasons, ["BypassEnabled", "WEMKeyFile", "TokensLeft", "KMSDirectoryMissing", "KMSPolicyMissing"]);
    wine.file(RECORD, br#"{"BlockFinalize": 8192}"#);
    assert_eq!(wine.findings(), ["Bit8192 BlockFinalize has bit 8192"]);
    wine.file(RECORD, br#"{"BlockFinalize": 0}"#);
    assert_eq!(wine.verify().0, 0);
}

/// One that nobody holds is no installer: Windows Installer's stays open after its work.
#[test]
#[ignore = "needs wine: run guest/test-wine.sh"]
fn a_mutex_counts_only_while_it_is_held() {
    let wine = Wine::new();
    let there = wine.helper("helper.exe", &["open", r"Global\_MSIExecute"]);
    assert_eq!(wine.findings(), [""; 0]);
    drop(there);
}

#[test]
#[ignore = "needs wine: run guest/test-wine.sh"]
fn a_new_name_of_the_computer_is_a_pending_reboot() {
    let wine = Wine::new();
    wine.set(BITS_64, r"SYSTEM\CurrentControlSet\Services\Tcpip\Parameters", "Hostname", "REG_SZ", "old");
    wine.set(BITS_64, r"SYSTEM\CurrentControlSet\Services\Tcpip\Parameters", "NV Hostname", "REG_SZ", "fresh");
    assert_eq!(wine.findings(), ["RebootPending computer old becomes fresh"]);
}

/// Through the vendor's `xenstore_client`, whose place is taken by a program with a store of files.
pub fn store(wine: &Wine) -> BTreeMap<String, String> {
    let files = fs::read_dir(wine.c("xenstore")).expect("a store").map(|f| f.expect("a key"));
    let key = |f: &fs::DirEntry| f.file_name().to_string_lossy().replace('!', "/");
    files.map(|f| (key(&f), fs::read_to_string(f.path()).expect("a value"))).collect()
}

pub fn with_store(wine: &Wine, vendor: &str) {
    wine.file(
        &format!("Program Files/{vendor}/XenTools/xenstore_client.exe"),
        &fs::read(wine.c("helper.exe")).expect("the helper"),
    );
    for (key, value) in [("domid", "7"), ("vm-data!lamina!nonce", "n-1"), ("vm-data!lamina!kms-rearm", "false")] {
        wine.file(&format!("xenstore/{key}"), value.as_bytes());
    }
}

#[test]
#[ignore = "needs wine: run guest/test-wine.sh"]
fn a_report_reaches_xenstore_sealed_and_bound_to_its_boot() {
    for vendor in ["Citrix", "XCP-ng"] {
        let wine = Wine::new();
        with_store(&wine, vendor);
        let ended = wine.lamina(&["shutdown-for-finalize", "--leave-on"]);
        assert_eq!(ended.code, 0, "{}{}", ended.said, ended.complained);
        let report = Report::from_xenstore(&store(&wine)).expect("a report");
        assert_eq!((report.nonce.as_str(), report.domid.as_str(), report.block_finalize), ("n-1", "7", Some(0)));
        assert!(report.sealed && report.findings.len() == 1 && report.findings[0].0 == "LeftOn", "{report:?}");
        assert_eq!(store(&wine).get("vm-data/lamina/boot"), Some(&report.boot));

        // The next check of the same boot has its mark, and an earlier report's lines are gone.
        wine.set(BITS_64, RUN_ONCE, "Setup", "REG_SZ", "setup.exe");
        assert_eq!(wine.lamina(&["shutdown-for-finalize"]).code, 1);
        let next = Report::from_xenstore(&store(&wine)).expect("a report");
        assert!(next.sealed, "{next:?}");
        assert_eq!((&next.boot, next.findings.len()), (&report.boot, 1));

        // Where rearming is asked for and nobody can tell the count, nothing is claimed.
        wine.unset(BITS_64, RUN_ONCE, "Setup");
        wine.file("xenstore/vm-data!lamina!kms-rearm", b"true");
        let blind = wine.lamina(&["shutdown-for-finalize", "--leave-on"]);
        assert_eq!(blind.code, 2, "{}{}", blind.said, blind.complained);
        assert!(blind.said.contains("rearm count"), "{}", blind.said);
        assert!(!Report::from_xenstore(&store(&wine)).expect("a report").rearmed);
        // Only in memory: another boot finds no mark of this one.
        assert!(!wine.registry().to_ascii_lowercase().contains("lamina"), "a key on the disk");
    }
}

/// .NET's programs, whose places are taken by one that writes down what it is asked for: both frameworks, each version, and the queue alone.
#[test]
#[ignore = "needs wine: run guest/test-wine.sh"]
fn what_net_has_queued_is_run_in_each_version() {
    let wine = Wine::new();
    with_store(&wine, "XenServer");
    let versions = [r"Framework64\v4.0.30319", r"Framework\v2.0.50727", r"Framework\v4.0.30319"];
    let program = |version: &str| format!(r"windows\Microsoft.NET\{version}\ngen.exe");
    let helper = fs::read(wine.c("helper.exe")).expect("the helper");
    versions.iter().for_each(|version| wine.file(&program(version).replace('\\', "/"), &helper));
    let ended = wine.lamina(&["shutdown-for-finalize", "--wait-ngen", "--leave-on"]);
    assert_eq!(ended.code, 0, "{}{}", ended.said, ended.complained);
    let asked = fs::read_to_string(wine.c("ngen.txt")).expect("somebody was asked").replace("\r\n", "\n");
    let mut asked: Vec<_> = asked.lines().map(str::to_ascii_lowercase).collect();
    asked.sort();
    let each = versions.map(|version| format!(r"c:\{}: 1 argument", program(version).to_ascii_lowercase()));
    assert_eq!(asked, each);
}

/// A program of the vendor's that hangs costs its limit once, and the config disk carries the report.
#[test]
#[ignore = "needs wine: run guest/test-wine.sh"]
fn a_client_that_never_answers_is_ended_and_told() {
    let wine = Wine::new();
    let disk = wine.config_disk();
    fill(&disk, &layer(false), &[]);
    with_store(&wine, "XenServer");
    wine.file("hang", b"");
    let begun = Instant::now();
    let ended = wine.lamina(&["shutdown-for-finalize", "--leave-on"]);
    assert_eq!(ended.code, 0, "{}{}", ended.said, ended.complained);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert!(ended.complained.contains("xenstore_client did not answer"), "{}", ended.complained);
    assert!(Report::from_json(&fs::read(disk.join(FILE)).expect("a report")).is_ok_and(|r| r.sealed));
    assert!(!wine.done("tasklist", &[]).contains("xenstore_client"), "one is left");
}

/// The service makes the mutex as LocalSystem does: administrators may wait for it, and no more. Whoever may not even that is told the same.
#[test]
#[ignore = "needs wine: run guest/test-wine.sh"]
fn a_service_at_work_is_named_whatever_its_mutex_allows() {
    let wine = Wine::new();
    for rights in ["D:(A;;GA;;;SY)(A;;0x120001;;;BA)", "D:(A;;GA;;;SY)"] {
        let service = wine.helper("helper.exe", &["hold", r"Global\LaminaGuest", rights]);
        let ended = wine.lamina(&["shutdown-for-finalize", "--leave-on"]);
        assert!(ended.code == 2 && ended.complained.contains("is at work"), "{rights}: {}", ended.complained);
        drop(service);
    }
}

#[test]
#[ignore = "needs wine: run guest/test-wine.sh"]
fn without_a_channel_nothing_is_shut_down() {
    let wine = Wine::new();
    let ended = wine.lamina(&["shutdown-for-finalize"]);
    assert_eq!(ended.code, 2);
    for word in ["could not be written anywhere", "drivers are not there", "config disk: none is attached"] {
        assert!(ended.complained.contains(word), "{word}: {}", ended.complained);
    }
}

/// wine has no way to turn a machine off: what a person reads then, with the report in its place.
#[test]
#[ignore = "needs wine: run guest/test-wine.sh"]
fn a_machine_that_stays_on_says_so() {
    let wine = Wine::new();
    with_store(&wine, "XenServer");
    let ended = wine.lamina(&["shutdown-for-finalize"]);
    assert_eq!(ended.code, 2, "{}{}", ended.said, ended.complained);
    for word in ["the check found nothing", "run Shutdown For Finalize again", "cannot turn the machine off"] {
        assert!(ended.complained.contains(word), "{word}: {}", ended.complained);
    }
    assert!(Report::from_xenstore(&store(&wine)).is_some_and(|r| r.sealed && r.findings[0].0 == "LeftOn"));
}
