//! A reboot that Windows waits for, and installers at work.
//!
//! Left out on purpose, though lists of "pending reboot" have them, because they stay behind with nothing pending and would keep a layer
//! back for ever: `Auto Update\PostRebootReporting`, `WindowsUpdate\Services\Pending`, `ServerManager\CurrentRebootAttempts`.

use super::{Basis, Check};
use crate::cause::Cause::{InstallerBusy, RebootPending};
use crate::facts::{Facts, Seen, Value, View};

const SESSION_MANAGER: &str = r"SYSTEM\CurrentControlSet\Control\Session Manager";
const SERVICING: &str = r"SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing";
const UPDATE: &str = r"SOFTWARE\Microsoft\Windows\CurrentVersion\WindowsUpdate\Auto Update\RebootRequired";
const UPDATE_EXE: &str = r"SOFTWARE\Microsoft\Updates";
const NAMES: &str = r"SYSTEM\CurrentControlSet\Control\ComputerName";
const TCPIP: &str = r"SYSTEM\CurrentControlSet\Services\Tcpip\Parameters";
const NETLOGON: &str = r"SYSTEM\CurrentControlSet\Services\Netlogon";
const IN_PROGRESS: &str = r"SOFTWARE\Microsoft\Windows\CurrentVersion\Installer\InProgress";
/// Held by Windows Installer for as long as a transaction runs.
const MSI_MUTEX: &str = r"Global\_MSIExecute";
/// Of component servicing and stand-alone updates: they end when their work does.
const SERVICING_PROCESSES: [&str; 2] = ["tiworker.exe", "wusa.exe"];

pub const CHECKS: &[Check] = &[
    Check {
        cause: RebootPending,
        place: r"`HKLM\SYSTEM\CurrentControlSet\Control\Session Manager`: values `PendingFileRenameOperations`, `PendingFileRenameOperations2`",
        basis: Basis::Documented,
        look: renames,
    },
    Check {
        cause: RebootPending,
        place: r"`HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing`: keys `RebootPending`, `RebootInProgress`, or one below `PackagesPending`, both views",
        basis: Basis::Common,
        look: servicing,
    },
    Check {
        cause: RebootPending,
        place: r"`HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\WindowsUpdate\Auto Update\RebootRequired`, both views",
        basis: Basis::Common,
        look: |facts| keys(facts, &[UPDATE]),
    },
    Check {
        cause: RebootPending,
        place: r"`HKLM\SOFTWARE\Microsoft\Updates`: value `UpdateExeVolatile` not 0, both views",
        basis: Basis::Common,
        look: update_exe,
    },
    Check {
        cause: RebootPending,
        place: r"`HKLM\SYSTEM\CurrentControlSet\Control\ComputerName`: `ActiveComputerName` is not `ComputerName`; `…\Services\Tcpip\Parameters`: `Hostname` is not `NV Hostname`",
        basis: Basis::Common,
        look: renamed_computer,
    },
    Check {
        cause: RebootPending,
        place: r"`HKLM\SYSTEM\CurrentControlSet\Services\Netlogon`: `JoinDomain`, `AvoidSpnSet`, as value or key",
        basis: Basis::Common,
        look: domain_join,
    },
    Check {
        cause: InstallerBusy,
        place: r"mutex `Global\_MSIExecute`, held",
        basis: Basis::Documented,
        look: |facts| {
            Ok(facts.mutex_held(MSI_MUTEX)?.then(|| format!("mutex {MSI_MUTEX} is held")).into_iter().collect())
        },
    },
    Check {
        cause: InstallerBusy,
        place: r"`HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\Installer\InProgress`, both views",
        basis: Basis::Common,
        look: |facts| keys(facts, &[IN_PROGRESS]),
    },
    Check {
        cause: InstallerBusy,
        place: "processes `msiexec.exe` other than that of the idle service `msiserver`, `TiWorker.exe`, `wusa.exe`",
        basis: Basis::Common,
        look: installers,
    },
];

/// Those of the keys that exist, in either view; named once where both views show the same.
fn keys(facts: &dyn Facts, paths: &[&str]) -> Seen<Vec<String>> {
    let mut seen = Vec::new();
    for path in paths {
        for view in View::BOTH {
            let line = format!(r"key HKLM\{path}");
            if facts.key(view, path)?.is_some() && !seen.contains(&line) {
                seen.push(line);
            }
        }
    }
    Ok(seen)
}

fn renames(facts: &dyn Facts) -> Seen<Vec<String>> {
    let Some(key) = facts.key(View::Bits64, SESSION_MANAGER)? else { return Ok(Vec::new()) };
    let pending = |name: &str| {
        let files: Vec<_> = match key.value(name)? {
            Value::Texts(texts) => texts.iter().map(String::as_str).filter(|t| !t.is_empty()).collect(),
            Value::Text(_) | Value::Number(_) | Value::Bytes(_) => vec!["unreadable"],
        };
        let first = files.first()?.trim_start_matches(r"\??\");
        Some(format!(r"HKLM\{SESSION_MANAGER}\{name}: {} names, first {first}", files.len()))
    };
    Ok(["PendingFileRenameOperations", "PendingFileRenameOperations2"].into_iter().filter_map(pending).collect())
}

fn servicing(facts: &dyn Facts) -> Seen<Vec<String>> {
    let [reboot, now, packages] =
        ["RebootPending", "RebootInProgress", "PackagesPending"].map(|k| format!(r"{SERVICING}\{k}"));
    let mut seen = keys(facts, &[&reboot, &now])?;
    // The key itself stays when its last package is done.
    let waits = |view| Ok(facts.key(view, &packages)?.is_some_and(|k| !k.subkeys.is_empty()));
    if waits(View::Bits64)? || waits(View::Bits32)? {
        seen.push(format!(r"key HKLM\{packages} names packages"));
    }
    Ok(seen)
}

fn update_exe(facts: &dyn Facts) -> Seen<Vec<String>> {
    let mut seen = Vec::new();
    for view in View::BOTH {
        let number = facts.key(view, UPDATE_EXE)?.and_then(|k| k.number("UpdateExeVolatile")).unwrap_or_default();
        let line = format!(r"HKLM\{UPDATE_EXE}\UpdateExeVolatile is {number}");
        if number != 0 && !seen.contains(&line) {
            seen.push(line);
        }
    }
    Ok(seen)
}

fn renamed_computer(facts: &dyn Facts) -> Seen<Vec<String>> {
    let text = |path: &str, name: &str| -> Seen<Option<String>> {
        Ok(facts.key(View::Bits64, path)?.and_then(|k| k.text(name).map(str::to_owned)))
    };
    let pairs = [
        (
            text(&format!(r"{NAMES}\ActiveComputerName"), "ComputerName")?,
            text(&format!(r"{NAMES}\ComputerName"), "ComputerName")?,
        ),
        (text(TCPIP, "Hostname")?, text(TCPIP, "NV Hostname")?),
    ];
    let differ = |(now, then): (Option<String>, Option<String>)| {
        let (now, then) = (now?, then?);
        (!now.eq_ignore_ascii_case(&then)).then(|| format!("computer {now} becomes {then}"))
    };
    let mut seen: Vec<_> = pairs.into_iter().filter_map(differ).collect();
    seen.dedup();
    Ok(seen)
}

fn domain_join(facts: &dyn Facts) -> Seen<Vec<String>> {
    let Some(key) = facts.key(View::Bits64, NETLOGON)? else { return Ok(Vec::new()) };
    let there = |name: &&str| key.value(name).is_some() || key.subkeys.iter().any(|k| k.eq_ignore_ascii_case(name));
    Ok(["JoinDomain", "AvoidSpnSet"].iter().filter(|n| there(n)).map(|n| format!(r"HKLM\{NETLOGON}\{n}")).collect())
}

fn installers(facts: &dyn Facts) -> Seen<Vec<String>> {
    let service = facts.service("msiserver")?.map_or(0, |s| s.pid);
    let busy = |name: &str, pid: u32| match name.to_ascii_lowercase().as_str() {
        // The service's own process stays for ten minutes after its last work.
        "msiexec.exe" => pid != service,
        other => SERVICING_PROCESSES.contains(&other),
    };
    let processes = facts.processes()?;
    Ok(processes.iter().filter(|p| busy(&p.name, p.pid)).map(|p| format!("process {} ({})", p.name, p.pid)).collect())
}
