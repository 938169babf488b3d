//! Devices of class Net. A ghost is one that Windows still knows though it is not present: what a template's or an older machine's card leaves.

use windows::Win32::Devices::DeviceAndDriverInstallation::{
    DI_REMOVEDEVICE_GLOBAL, DIF_REMOVE, DIGCF_PRESENT, GUID_DEVCLASS_NET, HDEVINFO, SETUP_DI_GET_CLASS_DEVS_FLAGS,
    SETUP_DI_REGISTRY_PROPERTY, SP_CLASSINSTALL_HEADER, SP_DEVINFO_DATA, SP_REMOVEDEVICE_PARAMS, SPDRP_DEVICEDESC,
    SPDRP_FRIENDLYNAME, SetupDiCallClassInstaller, SetupDiEnumDeviceInfo, SetupDiGetClassDevsW,
    SetupDiGetDeviceInstanceIdW, SetupDiGetDeviceRegistryPropertyW, SetupDiSetClassInstallParamsW,
};
use windows::Win32::Foundation::ERROR_NO_MORE_ITEMS;
use windows::core::{Owned, PCWSTR, Result};

use super::blind;
use crate::deeds::{Done, Failed};
use crate::facts::{Card, Seen, Value};
use crate::raw;

/// `MAX_DEVICE_ID_LEN` and more than the longest name.
const LONGEST: usize = 512;
const REG_SZ: u32 = 1;

struct Devices {
    set: Owned<HDEVINFO>,
}

impl Devices {
    fn open(which: SETUP_DI_GET_CLASS_DEVS_FLAGS) -> Result<Self> {
        // SAFETY: the class id is static; what the call returns is ours to free, which `Owned` does.
        let set = unsafe {
            SetupDiGetClassDevsW(Some(&GUID_DEVCLASS_NET), PCWSTR::null(), None, which).map(|h| Owned::new(h))
        }?;
        Ok(Self { set })
    }

    /// Every device of the set, with its instance id.
    fn all(&self) -> Result<Vec<(String, SP_DEVINFO_DATA)>> {
        let mut all = Vec::new();
        loop {
            let mut device = SP_DEVINFO_DATA { cbSize: size_of::<SP_DEVINFO_DATA>() as u32, ..Default::default() };
            // SAFETY: the set is open; `device` says how long it is.
            match unsafe { SetupDiEnumDeviceInfo(*self.set, all.len() as u32, &mut device) } {
                Err(e) if e.code() == ERROR_NO_MORE_ITEMS.to_hresult() => return Ok(all),
                other => other?,
            }
            let mut id = [0; LONGEST];
            // SAFETY: set and device belong together; the buffer's length goes with it.
            unsafe { SetupDiGetDeviceInstanceIdW(*self.set, &device, Some(&mut id), None) }?;
            all.push((raw::until_nul(&id), device));
        }
    }

    fn text(&self, device: &SP_DEVINFO_DATA, property: SETUP_DI_REGISTRY_PROPERTY) -> Option<String> {
        let mut bytes = [0; 2 * LONGEST];
        // SAFETY: set and device belong together; the buffer's length goes with it.
        unsafe { SetupDiGetDeviceRegistryPropertyW(*self.set, device, property, None, Some(&mut bytes), None) }.ok()?;
        match raw::value(REG_SZ, &bytes) {
            Value::Text(text) => Some(text),
            Value::Texts(_) | Value::Number(_) | Value::Bytes(_) => None,
        }
    }
}

pub fn all() -> Seen<Vec<Card>> {
    looked().map_err(|e| blind("the list of network cards", e))
}

fn looked() -> Result<Vec<Card>> {
    let present: Vec<_> = Devices::open(DIGCF_PRESENT)?.all()?.into_iter().map(|(id, _)| id).collect();
    let known = Devices::open(SETUP_DI_GET_CLASS_DEVS_FLAGS(0))?;
    let card = |(id, device): (String, SP_DEVINFO_DATA)| {
        let name = known.text(&device, SPDRP_FRIENDLYNAME).or_else(|| known.text(&device, SPDRP_DEVICEDESC));
        Card { present: present.contains(&id), name: name.unwrap_or_else(|| id.clone()), id }
    };
    Ok(known.all()?.into_iter().map(card).collect())
}

pub fn remove(id: &str) -> Done<()> {
    let failed = |why: String| Failed { what: format!("remove network card {id}"), why };
    match removed(id) {
        Ok(true) => Ok(()),
        Ok(false) => Err(failed("Windows does not know it".to_owned())),
        Err(e) => Err(failed(e.to_string())),
    }
}

/// `false`: there is no such card.
fn removed(id: &str) -> Result<bool> {
    let known = Devices::open(SETUP_DI_GET_CLASS_DEVS_FLAGS(0))?;
    let Some((_, device)) = known.all()?.into_iter().find(|(found, _)| found.eq_ignore_ascii_case(id)) else {
        return Ok(false);
    };
    let how = SP_REMOVEDEVICE_PARAMS {
        ClassInstallHeader: SP_CLASSINSTALL_HEADER {
            cbSize: size_of::<SP_CLASSINSTALL_HEADER>() as u32,
            InstallFunction: DIF_REMOVE,
        },
        Scope: DI_REMOVEDEVICE_GLOBAL,
        HwProfile: 0,
    };
    // SAFETY: set and device belong together; `how` begins with its header, as the call wants it, and its length goes with it.
    unsafe {
        SetupDiSetClassInstallParamsW(
            *known.set,
            Some(&device),
            Some((&raw const how).cast()),
            size_of::<SP_REMOVEDEVICE_PARAMS>() as u32,
        )
    }?;
    // SAFETY: as above; the parameters of this function were just set.
    unsafe { SetupDiCallClassInstaller(DIF_REMOVE, *known.set, Some(&device)) }?;
    Ok(true)
}
