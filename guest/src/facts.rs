//! What can be seen of a Windows. Implemented by `windows` (the real one) and by `memory` (an in-memory one for tests and simulated guests).
//!
//! The rule for every function: what is not there is `None`, `false` or an empty list; what could not be looked at – access denied, a
//! call that failed, a call that this Windows lacks – is [`Blind`], and nobody may take that for "nothing found". Looking changes
//! nothing and waits for nothing. Whatever Windows keeps in its registry or in a file has no function of its own here.

use std::collections::BTreeMap;
use std::time::Duration;

/// Something could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot look at {what}: {why}")]
pub struct Blind {
    /// The key, file or list, by its name.
    pub what: String,
    /// What Windows says, with its number.
    pub why: String,
}

pub type Seen<T> = Result<T, Blind>;

/// Which of the two registries of a 64-bit Windows: `KEY_WOW64_64KEY` or `KEY_WOW64_32KEY`. Shared keys (all of `SYSTEM`) look the same in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum View {
    Bits64,
    Bits32,
}

impl View {
    pub const BOTH: [Self; 2] = [Self::Bits64, Self::Bits32];
}

/// One registry value. Types that nobody asks for come as their bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `REG_SZ`, and `REG_EXPAND_SZ` as it is stored.
    Text(String),
    /// `REG_MULTI_SZ`, empty strings kept: `PendingFileRenameOperations` has them.
    Texts(Vec<String>),
    /// `REG_DWORD` and `REG_QWORD`.
    Number(u64),
    Bytes(Vec<u8>),
}

/// One registry key: its values and the names of its subkeys, as they are spelled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Key {
    pub values: BTreeMap<String, Value>,
    pub subkeys: Vec<String>,
}

impl Key {
    /// A value by name, in any spelling, as Windows finds it.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.values.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v)
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        match self.value(name)? {
            Value::Text(text) => Some(text),
            Value::Texts(_) | Value::Number(_) | Value::Bytes(_) => None,
        }
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        match self.value(name)? {
            Value::Number(n) => Some(*n),
            Value::Text(_) | Value::Texts(_) | Value::Bytes(_) => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// The program's file name, such as `msiexec.exe`.
    pub name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// `SERVICE_STOPPED`; every other state, the pending ones too, is not stopped.
    pub stopped: bool,
    /// Of its process; 0 while stopped.
    pub pid: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub directory: bool,
    /// Seconds since 1970, UTC, by the guest's clock.
    pub modified: u64,
}

/// A mounted volume that has a drive letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Such as `C:\`.
    pub root: String,
    pub label: String,
    /// As Windows names it: `NTFS`, `FAT`, `FAT32`; empty where there is no medium.
    pub file_system: String,
}

/// A device of class Net.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Device instance id, such as `PCI\VEN_10EC&DEV_8139&…`.
    pub id: String,
    /// What the device manager shows.
    pub name: String,
    /// A card that is not present is a ghost.
    pub present: bool,
}

/// See the head of this file for what `Ok` and `Err` mean.
pub trait Facts: Send + Sync {
    /// A key below `HKEY_LOCAL_MACHINE`, with backslashes and without one at its start; `None`: there is no such key.
    fn key(&self, view: View, path: &str) -> Seen<Option<Key>>;

    fn processes(&self) -> Seen<Vec<Process>>;

    /// By its short name, such as `clr_optimization_v4.0.30319_64`; `None`: there is no such service.
    fn service(&self, name: &str) -> Seen<Option<Service>>;

    /// Is a named mutex owned by somebody right now? One that exists and that nobody owns is not held.
    fn mutex_held(&self, name: &str) -> Seen<bool>;

    /// Of a file or directory, also of one that is locked, such as `hiberfil.sys`.
    fn stat(&self, path: &str) -> Seen<Option<Stat>>;

    /// Names in a directory, without `.` and `..`; `None`: there is no such directory.
    fn list(&self, path: &str) -> Seen<Option<Vec<String>>>;

    /// A whole file; `None`: there is no such file; one longer than `most` bytes is `Blind`.
    fn read(&self, path: &str, most: usize) -> Seen<Option<Vec<u8>>>;

    /// Every volume with a drive letter, an empty DVD drive too.
    fn volumes(&self) -> Seen<Vec<Volume>>;

    /// The dirty bit of the volume at `root`: Windows wants `chkdsk` (`FSCTL_IS_VOLUME_DIRTY`).
    fn dirty(&self, root: &str) -> Seen<bool>;

    /// Is the volume at `root` encrypted by BitLocker, wholly or in part, with its protection suspended or not? `false` also on a Windows
    /// that has no BitLocker.
    fn encrypted(&self, root: &str) -> Seen<bool>;

    /// Every device of class Net that the registry knows, present or not.
    fn network_cards(&self) -> Seen<Vec<Card>>;

    /// How often this Windows can still be rearmed (`SoftwareLicensingService.RemainingWindowsReArmCount`).
    fn rearms(&self) -> Seen<u32>;

    /// Seconds since 1970, UTC, by the guest's own clock, which may be wrong by hours.
    fn now(&self) -> u64;

    /// Since this boot; no change of the clock touches it.
    fn uptime(&self) -> Duration;
}
