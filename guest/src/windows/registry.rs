//! Keys below `HKEY_LOCAL_MACHINE`, in the view that is asked for.

use std::io::ErrorKind;

use winreg::RegKey;
use winreg::enums::{HKEY_LOCAL_MACHINE, KEY_READ, KEY_WOW64_32KEY, KEY_WOW64_64KEY};

use super::blind;
use crate::facts::{Key, Seen, View};
use crate::raw;

pub fn key(view: View, path: &str) -> Seen<Option<Key>> {
    let wow = match view {
        View::Bits64 => KEY_WOW64_64KEY,
        View::Bits32 => KEY_WOW64_32KEY,
    };
    let unseen = |why| blind(format!(r"HKLM\{path}"), why);
    let open = match RegKey::predef(HKEY_LOCAL_MACHINE).open_subkey_with_flags(path, KEY_READ | wow) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(unseen)?,
    };
    let mut key = Key::default();
    for value in open.enum_values() {
        let (name, value) = value.map_err(unseen)?;
        key.values.insert(name, raw::value(value.vtype as u32, &value.bytes));
    }
    key.subkeys = open.enum_keys().collect::<Result<_, _>>().map_err(unseen)?;
    Ok(Some(key))
}
