//! Where this Windows keeps its directories: its own registry says so, as it need not be on `C:`.

use crate::facts::{Blind, Facts, Seen, View};

fn registered(facts: &dyn Facts, key: &str, name: &str) -> Seen<String> {
    let found = facts.key(View::Bits64, key)?;
    let path = found.as_ref().and_then(|k| k.text(name)).filter(|p| p.len() >= 3);
    let path = path.ok_or_else(|| Blind { what: format!(r"HKLM\{key}"), why: format!("it has no value {name}") })?;
    Ok(path.trim_end_matches('\\').to_owned())
}

/// Such as `C:\Windows`.
pub fn windows(facts: &dyn Facts) -> Seen<String> {
    registered(facts, r"SOFTWARE\Microsoft\Windows NT\CurrentVersion", "SystemRoot")
}

/// Such as `C:\Program Files`.
pub fn program_files(facts: &dyn Facts) -> Seen<String> {
    registered(facts, r"SOFTWARE\Microsoft\Windows\CurrentVersion", "ProgramFilesDir")
}

/// Root of the drive that Windows is on, such as `C:\`.
pub fn system_drive(facts: &dyn Facts) -> Seen<String> {
    let windows = windows(facts)?;
    Ok(windows.chars().take(2).chain(['\\']).collect())
}

/// The program of the vendor's service inside the guest; `None` where it is not installed. A directory alone is what an uninstaller left.
pub fn uniservice(facts: &dyn Facts) -> Seen<Option<String>> {
    let path = format!(r"{}\Unidesk\Uniservice\uniservice.exe", program_files(facts)?);
    Ok(facts.stat(&path)?.filter(|s| !s.directory).map(|_| path))
}
