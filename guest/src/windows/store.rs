//! The machine's xenstore: through xeniface, the drivers' device, or else through the vendor's `xenstore_client`.
//!
//! The device's interface is the same under XenServer's drivers and XCP-ng's; the program lies where its vendor put it. Each call looks
//! anew, as drivers come and go while they are being installed.

use std::io::Read;
use std::os::windows::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use windows::Win32::Devices::DeviceAndDriverInstallation::{
    DIGCF_DEVICEINTERFACE, DIGCF_PRESENT, HDEVINFO, SP_DEVICE_INTERFACE_DATA, SP_DEVICE_INTERFACE_DETAIL_DATA_W,
    SetupDiEnumDeviceInterfaces, SetupDiGetClassDevsW, SetupDiGetDeviceInterfaceDetailW,
};
use windows::Win32::Foundation::{ERROR_FILE_NOT_FOUND, ERROR_NO_MORE_ITEMS, GENERIC_READ, GENERIC_WRITE, HANDLE};
use windows::Win32::Storage::FileSystem::{
    CreateFileW, FILE_FLAGS_AND_ATTRIBUTES, FILE_SHARE_READ, FILE_SHARE_WRITE, OPEN_EXISTING,
};
use windows::Win32::System::IO::DeviceIoControl;
use windows::Win32::System::Threading::{CREATE_NO_WINDOW, CREATE_SUSPENDED};
use windows::core::{GUID, HSTRING, Owned, PCWSTR, Result};

use super::deeds::held;
use crate::channel::{Store, StoreError};
use crate::deeds::Ended;
use crate::raw;

/// xapi.md 7.5
const XENIFACE: GUID = GUID::from_u128(0xb2cfb085_aa5e_47e1_8bf7_9793f3154565);

/// `CTL_CODE(FILE_DEVICE_UNKNOWN, 0x800 + n, METHOD_BUFFERED, FILE_ANY_ACCESS)`
const fn code(n: u32) -> u32 {
    (0x22 << 16) | ((0x800 + n) << 2)
}
const READ: u32 = code(0);
const WRITE: u32 = code(1);
const REMOVE: u32 = code(3);

/// The most that xenstore carries in one message.
const PAYLOAD: usize = 4096;

/// Below `Program Files`, in the order of their age, newest first.
const CLIENTS: [&str; 4] = [
    r"XenServer\XenTools\xenstore_client.exe",
    r"Citrix\XenTools\xenstore_client.exe",
    r"XCP-ng\XenTools\xenstore_client.exe",
    r"Xen Project\XenTools\xenstore_client.exe",
];

/// What `xenstore_client` gets for one answer, which takes it some milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// One that did not answer is not asked again for so long: a boot asks dozens of times.
const REST: Duration = Duration::from_secs(60);
static SILENT: Mutex<Option<Instant>> = Mutex::new(None);

/// The store of this machine, by whatever way there is.
pub struct Xenstore;

impl Store for Xenstore {
    fn read(&self, path: &str) -> std::result::Result<Option<String>, StoreError> {
        let wrong = |why: String| StoreError { what: format!("read {path}"), why };
        let Some(device) = device().map_err(|e| wrong(e.to_string()))? else {
            return client(&["read", path]).map_err(wrong);
        };
        let mut value = vec![0; PAYLOAD];
        match control(&device, READ, &nul(path), &mut value) {
            Ok(()) => Ok(Some(raw::store_value(&value))),
            Err(e) if e.code() == ERROR_FILE_NOT_FOUND.to_hresult() => Ok(None),
            Err(e) => Err(wrong(e.to_string())),
        }
    }

    fn write(&self, path: &str, value: &str) -> std::result::Result<(), StoreError> {
        let wrong = |why: String| StoreError { what: format!("write {path}"), why };
        match device().map_err(|e| wrong(e.to_string()))? {
            Some(device) => {
                control(&device, WRITE, &raw::store_write(path, value), &mut []).map_err(|e| wrong(e.to_string()))
            }
            None => match client(&["write", path, value]).map_err(wrong)? {
                Some(_) => Ok(()),
                None => Err(wrong("xenstore_client refused it".to_owned())),
            },
        }
    }

    fn remove(&self, path: &str) -> std::result::Result<(), StoreError> {
        let wrong = |why: String| StoreError { what: format!("remove {path}"), why };
        match device().map_err(|e| wrong(e.to_string()))? {
            Some(device) => match control(&device, REMOVE, &nul(path), &mut []) {
                Err(e) if e.code() != ERROR_FILE_NOT_FOUND.to_hresult() => Err(wrong(e.to_string())),
                Ok(()) | Err(_) => Ok(()),
            },
            // What is not there is refused too.
            None => client(&["remove", path]).map_err(wrong).map(drop),
        }
    }
}

fn nul(path: &str) -> Vec<u8> {
    [path.as_bytes(), &[0]].concat()
}

/// The device, open; `None`: no driver offers it.
fn device() -> Result<Option<Owned<HANDLE>>> {
    // SAFETY: the id lives through the call; what it returns is ours to free, which `Owned` does.
    let set: Owned<HDEVINFO> = unsafe {
        SetupDiGetClassDevsW(Some(&XENIFACE), PCWSTR::null(), None, DIGCF_PRESENT | DIGCF_DEVICEINTERFACE)
            .map(|h| Owned::new(h))
    }?;
    let mut interface =
        SP_DEVICE_INTERFACE_DATA { cbSize: size_of::<SP_DEVICE_INTERFACE_DATA>() as u32, ..Default::default() };
    // SAFETY: the set is open; `interface` says how long it is.
    match unsafe { SetupDiEnumDeviceInterfaces(*set, None, &XENIFACE, 0, &mut interface) } {
        Err(e) if e.code() == ERROR_NO_MORE_ITEMS.to_hresult() => return Ok(None),
        other => other?,
    }
    let path = HSTRING::from(interface_path(&set, &interface)?);
    // SAFETY: the path lives through the call; what it returns is ours to close.
    unsafe {
        CreateFileW(
            &path,
            (GENERIC_READ | GENERIC_WRITE).0,
            FILE_SHARE_READ | FILE_SHARE_WRITE,
            None,
            OPEN_EXISTING,
            FILE_FLAGS_AND_ATTRIBUTES(0),
            None,
        )
        .map(|h| Some(Owned::new(h)))
    }
}

/// The path under which the device can be opened.
fn interface_path(set: &HDEVINFO, interface: &SP_DEVICE_INTERFACE_DATA) -> Result<String> {
    /// The structure with room behind it, where the call puts the path.
    #[repr(C)]
    struct Detail {
        head: SP_DEVICE_INTERFACE_DETAIL_DATA_W,
        room: [u16; 512],
    }
    let mut detail = Detail {
        head: SP_DEVICE_INTERFACE_DETAIL_DATA_W {
            cbSize: size_of::<SP_DEVICE_INTERFACE_DETAIL_DATA_W>() as u32,
            ..Default::default()
        },
        room: [0; 512],
    };
    // SAFETY: `detail` begins with the structure that the call fills, and is as long as we say.
    unsafe {
        SetupDiGetDeviceInterfaceDetailW(
            *set,
            interface,
            Some((&raw mut detail).cast()),
            size_of::<Detail>() as u32,
            None,
            None,
        )
    }?;
    // The path begins behind `cbSize`.
    let start = std::mem::offset_of!(SP_DEVICE_INTERFACE_DETAIL_DATA_W, DevicePath) / size_of::<u16>();
    // SAFETY: `detail` is plain numbers, all of them set, and aligned for u16 as it holds some.
    let units = unsafe {
        std::slice::from_raw_parts((&raw const detail).cast::<u16>(), size_of::<Detail>() / size_of::<u16>())
    };
    Ok(raw::until_nul(units.get(start..).unwrap_or_default()))
}

fn control(device: &HANDLE, code: u32, input: &[u8], output: &mut [u8]) -> Result<()> {
    let mut returned = 0;
    let out = (!output.is_empty()).then(|| output.as_mut_ptr().cast());
    // SAFETY: the device is open; both buffers outlive the call, which is synchronous and is told how long they are.
    unsafe {
        DeviceIoControl(
            *device,
            code,
            Some(input.as_ptr().cast()),
            input.len() as u32,
            out,
            output.len() as u32,
            Some(&mut returned),
            None,
        )
    }
}

/// Asks the vendor's program: what it printed, or `None` where it says no. It tells a missing key from a refused one in words only.
fn client(args: &[&str]) -> std::result::Result<Option<String>, String> {
    let roots = ["ProgramFiles", "ProgramFiles(x86)"].into_iter().filter_map(std::env::var_os);
    let found =
        roots.flat_map(|root| CLIENTS.map(|client| PathBuf::from(&root).join(client))).find(|path| path.is_file());
    let program = found.ok_or("the hypervisor's drivers are not there, nor is xenstore_client")?;
    let silent = || SILENT.lock().unwrap_or_else(PoisonError::into_inner);
    let no_answer = || format!("xenstore_client did not answer within {} s", PATIENCE.as_secs());
    if silent().is_some_and(|since| since.elapsed() < REST) {
        return Err(no_answer());
    }
    let failed = |why: &dyn std::fmt::Display| format!("xenstore_client: {why}");
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.creation_flags(CREATE_NO_WINDOW.0 | CREATE_SUSPENDED.0).spawn().map_err(|e| failed(&e))?;
    let (tell, told) = channel();
    if let Some(mut from) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut said = Vec::new();
            // What was read before an error counts, and who asked may have given up.
            from.read_to_end(&mut said).unwrap_or_default();
            tell.send(said).unwrap_or_default();
        });
    }
    match held(child, PATIENCE).map_err(|e| failed(&e))? {
        Ended::Code(0) => {
            let said = told.recv_timeout(PATIENCE).map_err(|_| no_answer())?;
            Ok(Some(String::from_utf8_lossy(&said).trim_end_matches(['\r', '\n']).to_owned()))
        }
        Ended::Code(_) => Ok(None),
        Ended::TimedOut => {
            *silent() = Some(Instant::now());
            Err(no_answer())
        }
    }
}
