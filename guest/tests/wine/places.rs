//! Every place that wine can show: set from outside, seen, taken back, gone.

use std::time::{Duration, UNIX_EPOCH};

use super::prefix::{BITS_32, BITS_64, Running, Wine};

/// Something set from outside.
enum Change {
    Value(&'static str, &'static str, &'static str, &'static str, &'static str),
    Key(&'static str, &'static str),
    File(&'static str, &'static str),
    /// Written long before this boot.
    OldFile(&'static str, &'static str),
    Process(&'static str),
    Mutex(&'static str),
    Service(&'static str),
}
use Change::{File, Key, Mutex, OldFile, Process, Service, Value};

const NAME: &str = "ComputerName";
const MANAGER: &str = r"SYSTEM\CurrentControlSet\Control\Session Manager";

impl Change {
    fn make<'a>(&self, wine: &'a Wine) -> Option<Running<'a>> {
        match *self {
            Value(view, key, name, kind, data) => wine.set(view, key, name, kind, data),
            Key(view, key) => wine.make_key(view, key),
            File(path, text) => wine.file(path, text.as_bytes()),
            OldFile(path, text) => {
                wine.file(path, text.as_bytes());
                let file = std::fs::File::options().write(true).open(wine.c(path)).expect("the file");
                file.set_modified(UNIX_EPOCH + Duration::from_secs(1_600_000_000)).expect("its time");
            }
            Process(image) => return Some(wine.helper(image, &["hold"])),
            Mutex(name) => return Some(wine.helper("helper.exe", &["hold", name])),
            Service(name) => {
                wine.done("sc", &["create", name, "binPath=", r"C:\helper.exe service", "start=", "demand"]);
                wine.done("sc", &["start", name]);
            }
        }
        None
    }

    fn take_back(&self, wine: &Wine) {
        match *self {
            Value(view, key, name, _, _) => wine.unset(view, key, name),
            Key(view, key) => wine.remove_key(view, key),
            File(path, _) | OldFile(path, _) => std::fs::remove_file(wine.c(path)).expect("the file"),
            // They end with what `make` returned.
            Process(_) | Mutex(_) => {}
            Service(name) => {
                wine.done("sc", &["stop", name]);
                wine.done("sc", &["delete", name]);
            }
        }
    }
}

/// What is set, and the one finding that must come of it: reason, and what stands in its detail.
fn all() -> Vec<(Vec<Change>, &'static str, &'static str)> {
    vec![
        (
            vec![Value(BITS_64, MANAGER, "PendingFileRenameOperations", "REG_MULTI_SZ", r"\??\C:\old")],
            "RebootPending",
            r"C:\old",
        ),
        (
            vec![Value(BITS_64, MANAGER, "PendingFileRenameOperations2", "REG_MULTI_SZ", r"\??\C:\b")],
            "RebootPending",
            "Operations2",
        ),
        (
            vec![Key(BITS_64, r"SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing\RebootPending")],
            "RebootPending",
            r"Servicing\RebootPending",
        ),
        (
            vec![Key(BITS_32, r"SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing\RebootInProgress")],
            "RebootPending",
            "RebootInProgress",
        ),
        (
            vec![Key(
                BITS_64,
                r"SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing\PackagesPending\one",
            )],
            "RebootPending",
            "PackagesPending names packages",
        ),
        (
            vec![
                Value(
                    BITS_64,
                    r"SYSTEM\CurrentControlSet\Control\ComputerName\ActiveComputerName",
                    NAME,
                    "REG_SZ",
                    "OLD",
                ),
                Value(BITS_64, r"SYSTEM\CurrentControlSet\Control\ComputerName\ComputerName", NAME, "REG_SZ", "FRESH"),
            ],
            "RebootPending",
            "computer OLD becomes FRESH",
        ),
        (
            vec![Key(BITS_64, r"SOFTWARE\Microsoft\Windows\CurrentVersion\WindowsUpdate\Auto Update\RebootRequired")],
            "RebootPending",
            "RebootRequired",
        ),
        (
            vec![Value(BITS_32, r"SOFTWARE\Microsoft\Updates", "UpdateExeVolatile", "REG_DWORD", "2")],
            "RebootPending",
            "UpdateExeVolatile is 2",
        ),
        (
            vec![Value(BITS_64, r"SYSTEM\CurrentControlSet\Services\Netlogon", "JoinDomain", "REG_SZ", "x")],
            "RebootPending",
            "JoinDomain",
        ),
        (vec![Key(BITS_64, r"SYSTEM\CurrentControlSet\Services\Netlogon\AvoidSpnSet")], "RebootPending", "AvoidSpnSet"),
        (vec![Mutex(r"Global\_MSIExecute")], "InstallerBusy", r"Global\_MSIExecute is held"),
        (
            vec![Key(BITS_32, r"SOFTWARE\Microsoft\Windows\CurrentVersion\Installer\InProgress")],
            "InstallerBusy",
            r"Installer\InProgress",
        ),
        (vec![Process("msiexec.exe")], "InstallerBusy", "process msiexec.exe"),
        (vec![Process("TiWorker.exe")], "InstallerBusy", "process TiWorker.exe"),
        (vec![Process("wusa.exe")], "InstallerBusy", "process wusa.exe"),
        (vec![Process("ngen.exe")], "NGenRunning", "process ngen.exe"),
        (vec![Process("ngentask.exe")], "NGenRunning", "process ngentask.exe"),
        (vec![Process("mscorsvw.exe")], "NGenRunning", "process mscorsvw.exe"),
        (
            vec![
                File("windows/Microsoft.NET/Framework64/v4.0.30319/ngen.exe", ""),
                Service("clr_optimization_v4.0.30319_64"),
            ],
            "NGenRunning",
            "clr_optimization_v4.0.30319_64",
        ),
        (
            vec![
                File("windows/Microsoft.NET/Framework/v2.0.50727/ngen.exe", ""),
                Service("clr_optimization_v2.0.50727_32"),
            ],
            "NGenRunning",
            "clr_optimization_v2.0.50727_32",
        ),
        (vec![Key(BITS_64, r"SOFTWARE\Microsoft\.NETFramework\NGenQueue\WIN64\Default\1")], "NGenNeeded", "1 queued"),
        (vec![Key(BITS_32, r"SOFTWARE\Microsoft\.NETFramework\NGenQueue\WIN32\Default\1")], "NGenNeeded", "1 queued"),
        (
            vec![Value(BITS_64, r"SOFTWARE\Microsoft\Windows\CurrentVersion\RunOnce", "Setup", "REG_SZ", "setup.exe")],
            "RunOncePending",
            r"RunOnce\Setup",
        ),
        (
            vec![Value(BITS_32, r"SOFTWARE\Microsoft\Windows\CurrentVersion\RunOnce", "Twin", "REG_SZ", "t.exe")],
            "RunOncePending",
            "(32-bit view)",
        ),
        (
            vec![Key(BITS_64, r"SOFTWARE\Microsoft\Windows\CurrentVersion\RunOnceEx\010")],
            "RunOncePending",
            r"RunOnceEx\010",
        ),
        (
            vec![Value(BITS_64, r"SYSTEM\Setup", "SystemSetupInProgress", "REG_DWORD", "1")],
            "WindowsUpgradeUnfinished",
            "SystemSetupInProgress",
        ),
        (vec![Value(BITS_64, r"SYSTEM\Setup", "SetupType", "REG_DWORD", "2")], "WindowsUpgradeUnfinished", "SetupType"),
        (
            vec![Value(BITS_64, r"SYSTEM\Setup", "UpgradeInProgress", "REG_DWORD", "1")],
            "WindowsUpgradeUnfinished",
            "UpgradeInProgress",
        ),
        (vec![Process("SetupHost.exe")], "WindowsUpgradeUnfinished", "process SetupHost.exe"),
        (
            vec![
                File("windows/SMSCFG.INI", "[Configuration]"),
                Value(BITS_64, r"SYSTEM\CurrentControlSet\Services\CcmExec", "Start", "REG_DWORD", "2"),
            ],
            "SCCMClientIdentity",
            "SMSCFG.INI",
        ),
        (
            vec![
                Key(BITS_64, r"SYSTEM\CurrentControlSet\Services\unifltr"),
                Value(
                    BITS_64,
                    r"SYSTEM\CurrentControlSet\Services\frxdrvvt\Instances\frxdrvvt",
                    "Altitude",
                    "REG_SZ",
                    "1",
                ),
            ],
            "FSLogixAltitude",
            "is 1, not 138010",
        ),
        (
            vec![OldFile("Program Files/Unidesk/Uniservice/Log/LayerIntegrity.txt", r#"{"BlockFinalize": 0}"#)],
            "VendorRecordOld",
            "was not written in this boot",
        ),
        (
            vec![File("Program Files/Unidesk/Uniservice/uniservice.exe", "MZ")],
            "VendorRecordMissing",
            "LayerIntegrity.txt does not exist",
        ),
        (vec![File("hiberfil.sys", "")], "HibernationOn", "hiberfil.sys exists"),
    ]
}

#[test]
#[ignore = "needs wine: run guest/test-wine.sh"]
fn each_place_is_seen_and_nothing_else() {
    let wine = Wine::new();
    assert_eq!(wine.findings(), [""; 0], "a clean Windows");
    for (changes, reason, detail) in all() {
        let running: Vec<_> = changes.iter().map(|c| c.make(&wine)).collect();
        let found = wine.findings();
        assert!(
            matches!(found.as_slice(), [one] if one.starts_with(&format!("{reason} ")) && one.contains(detail)),
            "{reason} ({detail}): {found:?}"
        );
        drop(running);
        changes.iter().for_each(|c| c.take_back(&wine));
        println!("{reason}: {}", found.concat());
    }
    assert_eq!(wine.findings(), [""; 0], "all is taken back");
}
