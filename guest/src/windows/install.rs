//! Puts the program into a Windows, and takes it out again without a trace: directory, service, desktop icon. There is nothing
//! else: the one key that `service` keeps lives in memory and ends with its boot.
//!
//! Called by `install`, `uninstall`, `answer`, and by a start from the config disk, which leaves nothing of us in the layer.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use windows::Win32::System::Com::{
    CLSCTX_INPROC_SERVER, COINIT_APARTMENTTHREADED, CoCreateInstance, CoInitializeEx, IPersistFile,
};
use windows::Win32::UI::Shell::{
    CSIDL_COMMON_DESKTOPDIRECTORY, CSIDL_PROGRAM_FILES, IShellLinkW, SHGetFolderPathW, ShellLink,
};
use windows::Win32::UI::WindowsAndMessaging::SW_SHOWMINNOACTIVE;
use windows::core::{HSTRING, Interface};
use windows_service::service::{
    ServiceAccess, ServiceErrorControl, ServiceInfo, ServiceStartType, ServiceState, ServiceType,
};
use windows_service::service_manager::{ServiceManager, ServiceManagerAccess};

use super::deeds::remove;
use super::service::{ARGUMENT, NAME};
use super::system::words;
use crate::raw::until_nul;

const PROGRAM: &str = "lamina-guest.exe";
const ICON: &str = "Shutdown For Finalize.lnk";
/// `ERROR_SERVICE_DOES_NOT_EXIST`, `ERROR_SERVICE_NOT_ACTIVE`
const NO_SERVICE: i32 = 1060;
const NOT_ACTIVE: i32 = 1062;
/// `ERROR_INVALID_SERVICE_CONTROL`, `ERROR_SERVICE_CANNOT_ACCEPT_CTRL`: ours takes no order to stop, while it runs and while it comes up.
const NO_ORDER: i32 = 1052;
const NOT_YET: i32 = 1061;
/// `ERROR_SERVICE_ALREADY_RUNNING`
const AT_WORK: i32 = 1056;
/// Looks, a quarter of a second apart, at a service that is to end: for longer than it waits for whoever was faster, which may be us.
const PATIENCE: u32 = 280;

/// What could not be done, in words.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error("{what}: {why}")]
    File { what: String, why: io::Error },
    #[error("service {NAME}: {0}")]
    Service(String),
    #[error("desktop icon: {0}")]
    Icon(windows::core::Error),
    #[error("folder {0}: {1}")]
    Folder(&'static str, windows::core::Error),
}

type Done = Result<(), Trouble>;

/// The program's place, its service (started at each boot) and the icon on everybody's desktop. Once more, it renews all three.
pub fn install() -> Done {
    let target = directory()?.join(PROGRAM);
    let file = |what: String| move |why| Trouble::File { what, why };
    let own = std::env::current_exe().map_err(file("this program's own path".to_owned()))?;
    if !same(&own, &target) {
        // A service that runs holds its file.
        stop_service()?;
        fs::create_dir_all(directory()?).map_err(file(directory()?.display().to_string()))?;
        fs::copy(&own, &target).map_err(file(format!("copy {} to {}", own.display(), target.display())))?;
    }
    make_service(&target)?;
    make_icon(&target)
}

/// Takes all of it away. What is not there is fine; called by the installed program itself, its own file is left, and named.
pub fn uninstall() -> Result<Option<PathBuf>, Trouble> {
    remove_service()?;
    let gone = |path: &Path| {
        remove(&path.to_string_lossy()).map_err(|why| Trouble::File { what: format!("remove {}", path.display()), why })
    };
    gone(&icon()?)?;
    let directory = directory()?;
    if std::env::current_exe().is_ok_and(|own| same(&own, &directory.join(PROGRAM))) {
        // To have Windows delete it at the next boot would leave a pending rename: a finding of our own.
        return Ok(Some(directory));
    }
    gone(&directory)?;
    Ok(None)
}

fn same(one: &Path, other: &Path) -> bool {
    match (fs::canonicalize(one), fs::canonicalize(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

fn directory() -> Result<PathBuf, Trouble> {
    Ok(folder("Program Files", CSIDL_PROGRAM_FILES)?.join("Lamina"))
}

fn icon() -> Result<PathBuf, Trouble> {
    Ok(folder("the common desktop", CSIDL_COMMON_DESKTOPDIRECTORY)?.join(ICON))
}

fn folder(name: &'static str, id: u32) -> Result<PathBuf, Trouble> {
    let mut path = [0; 260];
    // SAFETY: the buffer has the length that the call wants.
    unsafe { SHGetFolderPathW(None, id as i32, None, 0, &mut path) }.map_err(|e| Trouble::Folder(name, e))?;
    Ok(PathBuf::from(until_nul(&path)))
}

fn trouble(error: windows_service::Error) -> Trouble {
    Trouble::Service(words(&error))
}

fn says(error: &windows_service::Error, code: i32) -> bool {
    matches!(error, windows_service::Error::Winapi(e) if e.raw_os_error() == Some(code))
}

fn make_service(program: &Path) -> Done {
    let access = ServiceManagerAccess::CONNECT | ServiceManagerAccess::CREATE_SERVICE;
    let manager = ServiceManager::local_computer(None::<&str>, access).map_err(trouble)?;
    let wanted = ServiceInfo {
        name: OsString::from(NAME),
        display_name: OsString::from("Lamina guest"),
        service_type: ServiceType::OWN_PROCESS,
        start_type: ServiceStartType::AutoStart,
        error_control: ServiceErrorControl::Normal,
        executable_path: program.to_owned(),
        launch_arguments: vec![OsString::from(ARGUMENT)],
        dependencies: Vec::new(),
        // LocalSystem: xenstore is its own and the administrators' alone.
        account_name: None,
        account_password: None,
    };
    let service = match manager.open_service(NAME, ServiceAccess::CHANGE_CONFIG) {
        Err(e) if says(&e, NO_SERVICE) => {
            manager.create_service(&wanted, ServiceAccess::CHANGE_CONFIG).map_err(trouble)?
        }
        found => {
            let service = found.map_err(trouble)?;
            service.change_config(&wanted).map_err(trouble)?;
            service
        }
    };
    service.set_description("Runs a layer's steps at each boot and reports to Lamina.").map_err(trouble)
}

/// `None`: there is no such service.
fn open_service(access: ServiceAccess) -> Result<Option<windows_service::service::Service>, Trouble> {
    let manager = ServiceManager::local_computer(None::<&str>, ServiceManagerAccess::CONNECT).map_err(trouble)?;
    match manager.open_service(NAME, access) {
        Err(e) if says(&e, NO_SERVICE) => Ok(None),
        other => other.map(Some).map_err(trouble),
    }
}

/// Has the service go on; `false`: it is not installed.
pub fn start_service() -> Result<bool, Trouble> {
    let Some(service) = open_service(ServiceAccess::START)? else { return Ok(false) };
    match service.start::<&str>(&[]) {
        Err(e) if !says(&e, AT_WORK) => Err(trouble(e)),
        Ok(()) | Err(_) => Ok(true),
    }
}

/// It ends by itself when its work is done.
fn stop_service() -> Done {
    let Some(service) = open_service(ServiceAccess::STOP | ServiceAccess::QUERY_STATUS)? else { return Ok(()) };
    match service.stop() {
        Err(e) if ![NOT_ACTIVE, NO_ORDER, NOT_YET].iter().any(|code| says(&e, *code)) => return Err(trouble(e)),
        Ok(_) | Err(_) => {}
    }
    for _ in 0..PATIENCE {
        if service.query_status().map_err(trouble)?.current_state == ServiceState::Stopped {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    Err(Trouble::Service("it does not stop: end its steps first".to_owned()))
}

fn remove_service() -> Done {
    stop_service()?;
    let Some(service) = open_service(ServiceAccess::DELETE)? else { return Ok(()) };
    service.delete().map_err(trouble)
}

/// A link like any other; the program itself asks for an administrator's rights where it lacks them.
fn make_icon(program: &Path) -> Done {
    let path = icon()?;
    let write = || -> windows::core::Result<()> {
        // SAFETY: takes no pointer. On a thread that is set up otherwise it changes nothing.
        let _ = unsafe { CoInitializeEx(None, COINIT_APARTMENTTHREADED) };
        // SAFETY: class and interface belong together; every string lives through its call.
        unsafe {
            let link: IShellLinkW = CoCreateInstance(&ShellLink, None, CLSCTX_INPROC_SERVER)?;
            link.SetPath(&HSTRING::from(program))?;
            link.SetArguments(&HSTRING::from("shutdown-for-finalize --window"))?;
            link.SetDescription(&HSTRING::from(
                "Checks this machine and, if nothing is pending, shuts it down to become a layer",
            ))?;
            // Windows' own picture of a switch.
            link.SetIconLocation(&HSTRING::from(r"%SystemRoot%\System32\shell32.dll"), 27)?;
            // The console that comes with the program; its window opens all the same.
            link.SetShowCmd(SW_SHOWMINNOACTIVE)?;
            link.cast::<IPersistFile>()?.Save(&HSTRING::from(path.as_path()), true)
        }
    };
    write().map_err(Trouble::Icon)
}
