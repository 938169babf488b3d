//! What the service control manager starts at each boot: does the boot's work, and ends. Nothing stays in memory, and nothing holds the
//! program's file.
//!
//! It takes no order to stop: what a step has begun is not broken off, and when it is done the service is gone by itself. Only where Windows
//! goes down it ends at once, so that the end of a step that Windows ended is not recorded, and none is begun: the next boot finds it running,
//! hence interrupted.

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use windows::core::GUID;
use windows_service::service::{
    ServiceControl, ServiceControlAccept, ServiceExitCode, ServiceState, ServiceStatus, ServiceType,
};
use windows_service::service_control_handler::{self, ServiceControlHandlerResult};
use windows_service::{define_windows_service, service_dispatcher};
use winreg::RegKey;
use winreg::enums::{HKEY_LOCAL_MACHINE, KEY_READ, KEY_WOW64_64KEY, KEY_WRITE, REG_OPTION_VOLATILE};

use super::system::Turn;
use super::{Windows, Xenstore};
use crate::finalize::Machine;
use crate::service::{boot, is_marked};

pub const NAME: &str = "LaminaGuest";
/// How the program knows that the manager starts it.
pub const ARGUMENT: &str = "service";

/// How long a person who was faster is waited for; who is refused, as steps are left, is done in a moment.
const PATIENCE: Duration = Duration::from_secs(60);
/// `ERROR_BUSY`
const BUSY: u32 = 170;

const KEY: &str = r"SOFTWARE\Lamina";
const BOOT: &str = "Boot";

define_windows_service!(entry, serve);

/// Hands this process to the service control manager; fails where a person started it.
pub fn run() -> windows_service::Result<()> {
    service_dispatcher::start(NAME, entry)
}

fn serve(_: Vec<OsString>) {
    let answer = |control| match control {
        ServiceControl::Interrogate => ServiceControlHandlerResult::NoError,
        // Windows has not ended anybody yet. A write that this tears is one that a power cut could have torn.
        ServiceControl::Preshutdown => std::process::exit(0),
        _ => ServiceControlHandlerResult::NotImplemented,
    };
    let Ok(manager) = service_control_handler::register(NAME, answer) else { return };
    let tell = |state, code| {
        let status = ServiceStatus {
            service_type: ServiceType::OWN_PROCESS,
            current_state: state,
            controls_accepted: match state {
                ServiceState::Running => ServiceControlAccept::PRESHUTDOWN,
                _not_yet_or_no_more => ServiceControlAccept::empty(),
            },
            exit_code: ServiceExitCode::Win32(code),
            checkpoint: 0,
            wait_hint: Duration::ZERO,
            process_id: None,
        };
        // A manager that does not listen ends us anyway.
        manager.set_service_status(status).unwrap_or_default();
    };
    tell(ServiceState::Running, 0);
    let windows = Windows::open();
    let machine = Machine { facts: &windows, deeds: &windows, store: Some(&Xenstore) };
    let first = Turn::take(Duration::ZERO);
    let faster = matches!(first, Ok(None));
    let turn = if faster { Turn::take(PATIENCE) } else { first };
    let begun = turn.map_err(io::Error::from).and_then(|turn| Ok((turn, boot_id()?)));
    let code = match begun {
        // Somebody looks at this Windows, and found no step left: else they would be done by now.
        Ok((None, _)) => BUSY,
        // They may be turning the machine off, on a report that must stand.
        Ok((Some(_turn), id)) if faster && is_marked(&machine, &id) => BUSY,
        Ok((Some(_turn), id)) => {
            // How it ended stands in the record and in xenstore, where it is read.
            boot(&machine, &id);
            0
        }
        Err(e) => e.raw_os_error().and_then(|code| u32::try_from(code).ok()).unwrap_or(1),
    };
    tell(ServiceState::Stopped, code);
}

/// The mark of this boot, made by whoever of us asks first. The key is volatile: Windows keeps it in memory only, so that no other boot
/// finds it and no layer has it.
pub fn boot_id() -> io::Result<String> {
    let (key, _) = RegKey::predef(HKEY_LOCAL_MACHINE).create_subkey_with_options_flags(
        KEY,
        REG_OPTION_VOLATILE,
        KEY_READ | KEY_WRITE | KEY_WOW64_64KEY,
    )?;
    if let Ok(id) = key.get_value::<String, _>(BOOT) {
        return Ok(id);
    }
    let id = format!("{:?}", GUID::new().map_err(io::Error::from)?).to_ascii_lowercase();
    key.set_value(BOOT, &id)?;
    Ok(id)
}
