//! What Windows tells through WMI alone: BitLocker and licensing. No script host is needed: VBScript and `wmic` are no longer in every Windows.

use serde::Deserialize;
use windows::Win32::System::Com::{
    COINIT_MULTITHREADED, CoInitializeEx, CoInitializeSecurity, EOAC_NONE, RPC_C_AUTHN_LEVEL_PKT_PRIVACY,
    RPC_C_IMP_LEVEL_IMPERSONATE,
};
use wmi::{AuthLevel, WMIConnection, WMIError, WMIResult};

use super::blind;
use crate::deeds::{Done, Failed};
use crate::facts::Seen;

/// `WBEM_E_INVALID_NAMESPACE`, `WBEM_E_INVALID_CLASS`: this Windows has no BitLocker.
const NO_NAMESPACE: u32 = 0x8004_100E;
const NO_CLASS: u32 = 0x8004_1010;

fn connect(namespace: &str) -> WMIResult<WMIConnection> {
    // SAFETY: takes no pointer. Called once more, or on a thread that is set up otherwise, it changes nothing, and what follows tells.
    let _ = unsafe { CoInitializeEx(None, COINIT_MULTITHREADED) };
    // SAFETY: takes no pointer; the second call of a process is refused and changes nothing.
    let _ = unsafe {
        CoInitializeSecurity(
            None,
            -1,
            None,
            None,
            RPC_C_AUTHN_LEVEL_PKT_PRIVACY,
            RPC_C_IMP_LEVEL_IMPERSONATE,
            None,
            EOAC_NONE,
            None,
        )
    };
    let wmi = WMIConnection::with_namespace_path(namespace)?;
    // BitLocker answers only what is sent encrypted, though it goes nowhere.
    wmi.set_proxy_blanket(AuthLevel::PktPrivacy)?;
    Ok(wmi)
}

fn is(error: &WMIError, code: u32) -> bool {
    matches!(error, WMIError::HResultError { hres } if *hres as u32 == code)
}

#[derive(Deserialize)]
#[serde(rename = "Win32_EncryptableVolume")]
struct Encryptable {
    #[serde(rename = "__Path")]
    path: String,
    #[serde(rename = "DriveLetter")]
    letter: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Conversion {
    return_value: u32,
    /// 0: nothing on the volume is encrypted.
    conversion_status: u32,
}

pub fn encrypted(root: &str) -> Seen<bool> {
    let unseen = |why: String| blind(format!("BitLocker of volume {root}"), why);
    let told = |e: WMIError| unseen(e.to_string());
    let absent = |e: &WMIError| is(e, NO_NAMESPACE) || is(e, NO_CLASS);
    let wmi = match connect(r"ROOT\CIMV2\Security\MicrosoftVolumeEncryption") {
        Err(e) if absent(&e) => return Ok(false),
        other => other.map_err(told)?,
    };
    // With all its properties: an instance whose key is left out has no path.
    let volumes: Vec<Encryptable> = match wmi.raw_query("SELECT * FROM Win32_EncryptableVolume") {
        Err(e) if absent(&e) => return Ok(false),
        other => other.map_err(told)?,
    };
    let letter = root.trim_end_matches('\\');
    let ours = |v: &Encryptable| v.letter.as_deref().is_some_and(|l| l.eq_ignore_ascii_case(letter));
    // BitLocker lists every volume that it could encrypt, and this one is among them.
    let volume = volumes.into_iter().find(ours).ok_or_else(|| unseen("Windows does not list it".to_owned()))?;
    // A method, as Windows 7 and 8 have no property for it.
    let conversion: Conversion =
        wmi.exec_instance_method::<Encryptable, _>(&volume.path, "GetConversionStatus", ()).map_err(told)?;
    match conversion.return_value {
        0 => Ok(conversion.conversion_status != 0),
        code => Err(unseen(format!("GetConversionStatus says {code:#010x}"))),
    }
}

#[derive(Deserialize)]
#[serde(rename = "SoftwareLicensingService")]
struct Licensing {
    #[serde(rename = "__Path")]
    path: String,
    #[serde(rename = "RemainingWindowsReArmCount")]
    rearms: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Returned {
    return_value: u32,
}

fn licensing(wmi: &WMIConnection) -> Result<Licensing, String> {
    let all: Vec<Licensing> = wmi.raw_query("SELECT * FROM SoftwareLicensingService").map_err(|e| e.to_string())?;
    all.into_iter().next().ok_or_else(|| "SoftwareLicensingService has no instance".to_owned())
}

pub fn rearms() -> Seen<u32> {
    let unseen = |why| blind("the rearm count", why);
    let wmi = connect(r"ROOT\CIMV2").map_err(|e| unseen(e.to_string()))?;
    Ok(licensing(&wmi).map_err(unseen)?.rearms)
}

/// What `slmgr /rearm` does.
pub fn rearm() -> Done<()> {
    let failed = |why| Failed { what: "rearm Windows".to_owned(), why };
    let wmi = connect(r"ROOT\CIMV2").map_err(|e| failed(e.to_string()))?;
    let service = licensing(&wmi).map_err(failed)?;
    let said: Returned = wmi
        .exec_instance_method::<Licensing, _>(&service.path, "ReArmWindows", ())
        .map_err(|e| failed(e.to_string()))?;
    match said.return_value {
        0 => Ok(()),
        code => Err(failed(format!("ReArmWindows says {code:#010x}"))),
    }
}
