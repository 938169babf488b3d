//! Off and on again. Both force programs to end: whoever asks has looked first, and nobody sits there to answer "save changes?".

use std::time::Duration;

use windows::Win32::Foundation::{
    ERROR_NOT_ALL_ASSIGNED, ERROR_SHUTDOWN_IN_PROGRESS, ERROR_SHUTDOWN_IS_SCHEDULED, HANDLE, WIN32_ERROR,
};
use windows::Win32::Security::{
    AdjustTokenPrivileges, LUID_AND_ATTRIBUTES, LookupPrivilegeValueW, SE_PRIVILEGE_ENABLED, SE_SHUTDOWN_NAME,
    TOKEN_ADJUST_PRIVILEGES, TOKEN_PRIVILEGES, TOKEN_QUERY,
};
use windows::Win32::System::Shutdown::{
    AbortSystemShutdownW, InitiateShutdownW, SHTDN_REASON_FLAG_PLANNED, SHTDN_REASON_MAJOR_APPLICATION,
    SHTDN_REASON_MINOR_MAINTENANCE, SHUTDOWN_FLAGS, SHUTDOWN_FORCE_OTHERS, SHUTDOWN_FORCE_SELF, SHUTDOWN_POWEROFF,
    SHUTDOWN_RESTART,
};
use windows::Win32::System::Threading::{GetCurrentProcess, OpenProcessToken};
use windows::core::{Error, Owned, PCWSTR, Result, w};

use crate::deeds::{Done, Failed};

/// In full: fast start resumes only what was shut down with `SHUTDOWN_HYBRID`, which is not asked for here.
/// Windows counts the time, says so to whoever is logged in, and keeps to it though they sign out.
pub fn off(after: Duration) -> Done<()> {
    ask("turn the machine off", SHUTDOWN_POWEROFF, after)
}

pub fn reboot() -> Done<()> {
    ask("reboot", SHUTDOWN_RESTART, Duration::ZERO)
}

/// Also what somebody else asked for, as ours took its place.
pub fn stay_on() -> Done<()> {
    let failed = |why: Error| Failed { what: "keep the machine on".to_owned(), why: why.to_string() };
    may_shut_down().and_then(|()| abort()).map_err(failed)
}

fn ask(what: &str, how: SHUTDOWN_FLAGS, after: Duration) -> Done<()> {
    let failed = |why: Error| Failed { what: what.to_owned(), why: why.to_string() };
    may_shut_down().map_err(failed)?;
    let mut code = initiate(how, after);
    if code == ERROR_SHUTDOWN_IS_SCHEDULED {
        // Our own with more time, or somebody else's, which may be a reboot, or hours away: this one takes its place.
        abort().map_err(failed)?;
        code = initiate(how, after);
    }
    match code {
        code if code.is_ok() => Ok(()),
        // On its way down already; whether it comes up again is somebody else's word, and enough for a reboot alone.
        ERROR_SHUTDOWN_IN_PROGRESS if how == SHUTDOWN_RESTART => Ok(()),
        code => Err(failed(Error::from_hresult(code.to_hresult()))),
    }
}

fn abort() -> Result<()> {
    // SAFETY: this machine needs no name.
    unsafe { AbortSystemShutdownW(PCWSTR::null()) }
}

fn initiate(how: SHUTDOWN_FLAGS, after: Duration) -> WIN32_ERROR {
    // SAFETY: the message is static, and this machine needs no name.
    let code = unsafe {
        InitiateShutdownW(
            PCWSTR::null(),
            w!("Lamina: Shutdown For Finalize"),
            u32::try_from(after.as_secs()).unwrap_or_default(),
            how | SHUTDOWN_FORCE_OTHERS | SHUTDOWN_FORCE_SELF,
            SHTDN_REASON_MAJOR_APPLICATION | SHTDN_REASON_MINOR_MAINTENANCE | SHTDN_REASON_FLAG_PLANNED,
        )
    };
    WIN32_ERROR(code)
}

/// Administrators and SYSTEM have the privilege, but switched off.
fn may_shut_down() -> Result<()> {
    let mut token = HANDLE::default();
    // SAFETY: our own process needs no closing; the token is ours to close, which `Owned` does.
    let token = unsafe {
        OpenProcessToken(GetCurrentProcess(), TOKEN_ADJUST_PRIVILEGES | TOKEN_QUERY, &mut token)?;
        Owned::new(token)
    };
    let mut wanted = TOKEN_PRIVILEGES {
        PrivilegeCount: 1,
        Privileges: [LUID_AND_ATTRIBUTES { Attributes: SE_PRIVILEGE_ENABLED, ..Default::default() }],
    };
    let [privilege] = &mut wanted.Privileges;
    // SAFETY: the name is static, the result is a plain number in our structure.
    unsafe { LookupPrivilegeValueW(PCWSTR::null(), SE_SHUTDOWN_NAME, &mut privilege.Luid) }?;
    // SAFETY: token and structure live through the call; the old state is not asked for.
    unsafe { AdjustTokenPrivileges(*token, false, Some(&wanted), 0, None, None) }?;
    // It succeeds without giving what the account lacks, and says so only here.
    let said = Error::from_thread();
    if said.code() == ERROR_NOT_ALL_ASSIGNED.to_hresult() { Err(said) } else { Ok(()) }
}
