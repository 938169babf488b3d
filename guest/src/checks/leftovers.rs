//! What an installation leaves behind and every copy of the layer would inherit.
//!
//! Four of the vendor's bits are judged by the vendor's own number alone, as nobody says where its service looks: the key file of the WEM
//! agent (512), the tokens (1024), and the directory and the policy for the KMS script (2048, 4096). The directory is taken to be
//! `%SystemRoot%\Setup\scripts\kmsdir`, but every Windows without the vendor's KMS scripts lacks it: its absence says nothing from outside.

use super::{Basis, Check, paths};
use crate::cause::Cause::{FSLogixAltitude, RunOncePending, SCCMClientIdentity, WindowsUpgradeUnfinished};
use crate::facts::{Facts, Seen, Value, View};

const RUN_ONCE: &str = r"SOFTWARE\Microsoft\Windows\CurrentVersion\RunOnce";
const RUN_ONCE_EX: &str = r"SOFTWARE\Microsoft\Windows\CurrentVersion\RunOnceEx";
const SETUP: &str = r"SYSTEM\Setup";
const SERVICES: &str = r"SYSTEM\CurrentControlSet\Services";
const LAYERING: &str = r"SYSTEM\CurrentControlSet\Services\unifltr";
const FSLOGIX: &str = r"SYSTEM\CurrentControlSet\Services\frxdrvvt\Instances\frxdrvvt";
/// What the vendor asks of FSLogix on a layered machine.
const ALTITUDE: &str = "138010";
/// `Start` of a service that never starts.
const DISABLED: u64 = 4;

pub const CHECKS: &[Check] = &[
    Check {
        cause: RunOncePending,
        place: r"`HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion`: `RunOnce`, any value; `RunOnceEx`, any subkey; both views. Entries of a user (`HKCU`) do not block",
        basis: Basis::Documented,
        look: run_once,
    },
    Check {
        cause: WindowsUpgradeUnfinished,
        place: r"`HKLM\SYSTEM\Setup`: `SystemSetupInProgress`, `UpgradeInProgress` or `SetupType` not 0; process `SetupHost.exe`",
        basis: Basis::Guess,
        look: upgrade,
    },
    Check {
        cause: SCCMClientIdentity,
        place: r"`%SystemRoot%\SMSCFG.INI`, where service `CcmExec` exists and is not disabled",
        basis: Basis::Documented,
        look: sccm,
    },
    Check {
        cause: FSLogixAltitude,
        place: r"`HKLM\SYSTEM\CurrentControlSet\Services\frxdrvvt\Instances\frxdrvvt`: `Altitude` is not 138010, where the vendor's filter `unifltr` is installed",
        basis: Basis::Guess,
        look: fslogix,
    },
];

/// By name alone: a command line may hold a password, and a report goes far.
fn run_once(facts: &dyn Facts) -> Seen<Vec<String>> {
    let mut seen = Vec::new();
    for view in View::BOTH {
        let twin = if view == View::Bits32 { " (32-bit view)" } else { "" };
        let key = facts.key(view, RUN_ONCE)?.unwrap_or_default();
        // The unnamed value of a key is always there for some readers, and empty.
        let set = key.values.iter().filter(|(n, v)| !(n.is_empty() && **v == Value::Text(String::new())));
        seen.extend(set.map(|(name, _)| format!(r"HKLM\{RUN_ONCE}\{name}{twin}")));
        let sections = facts.key(view, RUN_ONCE_EX)?.unwrap_or_default().subkeys;
        seen.extend(sections.iter().map(|name| format!(r"HKLM\{RUN_ONCE_EX}\{name}{twin}")));
    }
    Ok(seen)
}

fn upgrade(facts: &dyn Facts) -> Seen<Vec<String>> {
    let key = facts.key(View::Bits64, SETUP)?.unwrap_or_default();
    let set = |name: &&str| key.number(name).is_some_and(|n| n != 0);
    let mut seen: Vec<_> = ["SystemSetupInProgress", "UpgradeInProgress", "SetupType"]
        .iter()
        .filter(|n| set(n))
        .map(|n| format!(r"HKLM\{SETUP}\{n} is not 0"))
        .collect();
    let processes = facts.processes()?;
    seen.extend(
        processes
            .iter()
            .filter(|p| p.name.eq_ignore_ascii_case("setuphost.exe"))
            .map(|p| format!("process {} ({})", p.name, p.pid)),
    );
    Ok(seen)
}

fn sccm(facts: &dyn Facts) -> Seen<Vec<String>> {
    let file = format!(r"{}\SMSCFG.INI", paths::windows(facts)?);
    let service = facts.key(View::Bits64, &format!(r"{SERVICES}\CcmExec"))?;
    let runs = service.is_some_and(|key| key.number("Start") != Some(DISABLED));
    Ok(if runs && facts.stat(&file)?.is_some() { vec![file] } else { Vec::new() })
}

fn fslogix(facts: &dyn Facts) -> Seen<Vec<String>> {
    if facts.key(View::Bits64, LAYERING)?.is_none() {
        return Ok(Vec::new());
    }
    let key = facts.key(View::Bits64, FSLOGIX)?.unwrap_or_default();
    let altitude = key.text("Altitude").filter(|a| a.trim() != ALTITUDE);
    Ok(altitude.map(|a| format!(r"HKLM\{FSLOGIX}\Altitude is {a}, not {ALTITUDE}")).into_iter().collect())
}
