//! Processes, services and named mutexes.

use std::time::Duration;

use windows::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_FILE_NOT_FOUND, ERROR_NO_MORE_FILES, HANDLE, WAIT_ABANDONED, WAIT_OBJECT_0, WAIT_TIMEOUT,
};
use windows::Win32::System::Diagnostics::ToolHelp::{
    CreateToolhelp32Snapshot, PROCESSENTRY32W, Process32FirstW, Process32NextW, TH32CS_SNAPPROCESS,
};
use windows::Win32::System::Threading::{
    CreateMutexExW, OpenMutexW, ReleaseMutex, SYNCHRONIZATION_SYNCHRONIZE, WaitForSingleObject,
};
use windows::core::{Error, HSTRING, Owned, PCWSTR, w};
use windows_service::service::{ServiceAccess, ServiceState};
use windows_service::service_manager::{ServiceManager, ServiceManagerAccess};

use super::blind;
use crate::facts::{Process, Seen, Service};
use crate::raw::until_nul;

/// `ERROR_SERVICE_DOES_NOT_EXIST`
const NO_SERVICE: i32 = 1060;

pub fn processes() -> Seen<Vec<Process>> {
    let unseen = |why: Error| blind("the list of processes", why);
    let mut all = Vec::new();
    // SAFETY: the call takes numbers; what it returns is ours to close, which `Owned` does.
    let snapshot: Owned<HANDLE> =
        unsafe { CreateToolhelp32Snapshot(TH32CS_SNAPPROCESS, 0).map(|h| Owned::new(h)) }.map_err(unseen)?;
    let mut entry = PROCESSENTRY32W { dwSize: size_of::<PROCESSENTRY32W>() as u32, ..Default::default() };
    // SAFETY: the snapshot is open, and the entry is as large as it says.
    let mut next = unsafe { Process32FirstW(*snapshot, &mut entry) };
    while next.is_ok() {
        all.push(Process { pid: entry.th32ProcessID, name: until_nul(&entry.szExeFile) });
        // SAFETY: as above.
        next = unsafe { Process32NextW(*snapshot, &mut entry) };
    }
    match next {
        Err(e) if e.code() != ERROR_NO_MORE_FILES.to_hresult() => Err(unseen(e)),
        Ok(()) | Err(_) => Ok(all),
    }
}

pub fn service(name: &str) -> Seen<Option<Service>> {
    let unseen = |why: windows_service::Error| blind(format!("service {name}"), words(&why));
    let manager = ServiceManager::local_computer(None::<&str>, ServiceManagerAccess::CONNECT).map_err(unseen)?;
    let service = match manager.open_service(name, ServiceAccess::QUERY_STATUS) {
        Err(windows_service::Error::Winapi(e)) if e.raw_os_error() == Some(NO_SERVICE) => return Ok(None),
        other => other.map_err(unseen)?,
    };
    let status = service.query_status().map_err(unseen)?;
    Ok(Some(Service {
        stopped: status.current_state == ServiceState::Stopped,
        pid: status.process_id.unwrap_or_default(),
    }))
}

/// The crate's own words hide what Windows said.
pub fn words(error: &windows_service::Error) -> String {
    match error {
        windows_service::Error::Winapi(e) => e.to_string(),
        other => other.to_string(),
    }
}

/// One of us works at a time: held by the service, by an answer and by a shutdown for finalize, until it is dropped or its process ends.
pub struct Turn(Owned<HANDLE>);

/// In every session of this Windows.
const TURN: PCWSTR = w!(r"Global\LaminaGuest");

impl Turn {
    /// `None`: another one is at work, and was not done in this time.
    pub fn take(patience: Duration) -> windows::core::Result<Option<Self>> {
        // The service's is LocalSystem's: administrators may wait for it, and not all that `CreateMutexW` asks for.
        // SAFETY: the name is static; what it returns is ours to close, which `Owned` does.
        let mutex = unsafe { CreateMutexExW(None, TURN, 0, SYNCHRONIZATION_SYNCHRONIZE.0).map(|h| Owned::new(h)) };
        let mutex = match mutex {
            // It is there, and somebody's.
            Err(e) if e.code() == ERROR_ACCESS_DENIED.to_hresult() => return Ok(None),
            other => other?,
        };
        let patience = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX - 1);
        // SAFETY: the handle is open, and the wait has an end.
        match unsafe { WaitForSingleObject(*mutex, patience) } {
            // Abandoned: its holder died, and what it left is told by the record.
            WAIT_OBJECT_0 | WAIT_ABANDONED => Ok(Some(Self(mutex))),
            WAIT_TIMEOUT => Ok(None),
            _ => Err(Error::from_thread()),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // SAFETY: the handle is open. On another thread than the one that took it this fails, and the end of that thread gives it back.
        unsafe { ReleaseMutex(*self.0) }.unwrap_or_default();
    }
}

pub fn mutex_held(name: &str) -> Seen<bool> {
    let unseen = |why: Error| blind(format!("mutex {name}"), why);
    // SAFETY: the name lives through the call; what it returns is ours to close, which `Owned` does.
    let mutex: Owned<HANDLE> =
        match unsafe { OpenMutexW(SYNCHRONIZATION_SYNCHRONIZE, false, &HSTRING::from(name)).map(|h| Owned::new(h)) } {
            Err(e) if e.code() == ERROR_FILE_NOT_FOUND.to_hresult() => return Ok(false),
            other => other.map_err(unseen)?,
        };
    // Nobody's mutex is ours for this moment; that it exists says nothing, an installer that is done leaves it open.
    // SAFETY: the handle is open, and the wait ends at once.
    match unsafe { WaitForSingleObject(*mutex, 0) } {
        WAIT_TIMEOUT => Ok(true),
        WAIT_OBJECT_0 | WAIT_ABANDONED => {
            // SAFETY: we hold it, on this thread.
            unsafe { ReleaseMutex(*mutex) }.map_err(unseen)?;
            Ok(false)
        }
        _ => Err(unseen(Error::from_thread())),
    }
}
