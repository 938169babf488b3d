//! What an in-memory Windows consists of, and what a boot does to it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Deed;
use crate::facts::{Card, Key, Process, Service, Value, View, Volume};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// As it is spelled.
    pub path: String,
    pub bytes: Vec<u8>,
    /// Seconds since 1970.
    pub modified: u64,
}

/// Public fields are for tests to set; what has a rule of its own has a function.
#[derive(Clone, Debug)]
pub struct State {
    /// By view and path in lower case.
    keys: BTreeMap<(View, String), Node>,
    /// By path in lower case; directories are those that files are in.
    files: BTreeMap<String, File>,
    pub processes: Vec<Process>,
    pub services: BTreeMap<String, Service>,
    pub held_mutexes: BTreeSet<String>,
    pub volumes: Vec<Volume>,
    /// Roots of volumes whose dirty bit is set.
    pub dirty: BTreeSet<String>,
    pub encrypted: BTreeSet<String>,
    pub cards: Vec<Card>,
    pub rearms: u32,
    pub now: u64,
    pub uptime: Duration,
    /// What cannot be looked at: the beginning of a key's or file's path or of a list's name, in lower case.
    pub blind: BTreeSet<String>,
    /// `None`: no drivers, hence no store.
    pub store: Option<BTreeMap<String, String>>,
    /// All that was done, in order.
    pub deeds: Vec<Deed>,
}

#[derive(Clone, Debug)]
struct Node {
    /// As it is spelled.
    path: String,
    values: BTreeMap<String, Value>,
}

/// A key and a file are the same in every spelling; shared keys are the same in both views.
fn place(view: View, path: &str) -> (View, String) {
    let path = path.to_lowercase();
    if path.starts_with("system\\") { (View::Bits64, path) } else { (view, path) }
}

impl State {
    pub(super) fn clean() -> Self {
        let mut state = Self {
            keys: BTreeMap::new(),
            files: BTreeMap::new(),
            processes: vec![Process { pid: 4, name: "System".to_owned() }],
            services: BTreeMap::new(),
            held_mutexes: BTreeSet::new(),
            volumes: vec![Volume { root: r"C:\".to_owned(), label: String::new(), file_system: "NTFS".to_owned() }],
            dirty: BTreeSet::new(),
            encrypted: BTreeSet::new(),
            cards: vec![Card {
                id: r"XENVIF\VEN_XS0001&DEV_NET\0".to_owned(),
                name: "XenServer PV Network Device #0".to_owned(),
                present: true,
            }],
            rearms: 3,
            now: 1_700_000_000,
            uptime: Duration::from_secs(60),
            blind: BTreeSet::new(),
            store: Some(BTreeMap::new()),
            deeds: Vec::new(),
        };
        let text = |s: &str| Value::Text(s.to_owned());
        for view in View::BOTH {
            state.set(view, r"SOFTWARE\Microsoft\Windows NT\CurrentVersion", "SystemRoot", text(r"C:\Windows"));
            state.set(view, r"SOFTWARE\Microsoft\Windows\CurrentVersion", "ProgramFilesDir", text(r"C:\Program Files"));
            state.make(view, r"SOFTWARE\Microsoft\Windows\CurrentVersion\RunOnce");
        }
        for (key, name) in [
            (r"SYSTEM\CurrentControlSet\Control\ComputerName\ActiveComputerName", "ComputerName"),
            (r"SYSTEM\CurrentControlSet\Control\ComputerName\ComputerName", "ComputerName"),
            (r"SYSTEM\CurrentControlSet\Services\Tcpip\Parameters", "Hostname"),
            (r"SYSTEM\CurrentControlSet\Services\Tcpip\Parameters", "NV Hostname"),
        ] {
            state.set(View::Bits64, key, name, text("PACK"));
        }
        for version in
            [r"Framework\v2.0.50727", r"Framework\v4.0.30319", r"Framework64\v2.0.50727", r"Framework64\v4.0.30319"]
        {
            state.put(&format!(r"C:\Windows\Microsoft.NET\{version}\ngen.exe"), b"MZ");
        }
        let idle = Service { stopped: true, pid: 0 };
        for service in ["v2.0.50727_32", "v2.0.50727_64", "v4.0.30319_32", "v4.0.30319_64"] {
            state.services.insert(format!("clr_optimization_{service}"), idle);
        }
        state.services.insert("msiserver".to_owned(), idle);
        state
    }

    /// Makes a registry key below `HKLM`.
    pub fn make(&mut self, view: View, path: &str) {
        self.keys.entry(place(view, path)).or_insert_with(|| Node { path: path.to_owned(), values: BTreeMap::new() });
    }

    /// Sets a value, and makes its key.
    pub fn set(&mut self, view: View, path: &str, name: &str, value: Value) {
        self.make(view, path);
        if let Some(node) = self.keys.get_mut(&place(view, path)) {
            node.values.retain(|n, _| !n.eq_ignore_ascii_case(name));
            node.values.insert(name.to_owned(), value);
        }
    }

    /// Removes a value.
    pub fn unset(&mut self, view: View, path: &str, name: &str) {
        if let Some(node) = self.keys.get_mut(&place(view, path)) {
            node.values.retain(|n, _| !n.eq_ignore_ascii_case(name));
        }
    }

    /// Removes a key with all below it.
    pub fn unmake(&mut self, view: View, path: &str) {
        let (view, path) = place(view, path);
        let below = format!("{path}\\");
        self.keys.retain(|(v, p), _| *v != view || (*p != path && !p.starts_with(&below)));
    }

    /// A key exists if it was made, or one below it.
    pub(super) fn key(&self, view: View, path: &str) -> Option<Key> {
        let (view, path) = place(view, path);
        let below = format!("{path}\\");
        let node = self.keys.get(&(view, path.clone()));
        let mut subkeys: Vec<String> = Vec::new();
        for ((v, _), other) in &self.keys {
            let spelled = other.path.get(below.len()..).filter(|_| *v == view && starts(&other.path, &below));
            let name = spelled.and_then(|rest| rest.split('\\').next()).unwrap_or_default();
            if !name.is_empty() && !subkeys.iter().any(|k| k.eq_ignore_ascii_case(name)) {
                subkeys.push(name.to_owned());
            }
        }
        if node.is_none() && subkeys.is_empty() {
            return None;
        }
        Some(Key { values: node.map(|n| n.values.clone()).unwrap_or_default(), subkeys })
    }

    /// Writes a file, now.
    pub fn put(&mut self, path: &str, bytes: &[u8]) {
        let file = File { path: path.to_owned(), bytes: bytes.to_vec(), modified: self.now };
        self.files.insert(path.to_lowercase(), file);
    }

    /// Removes a file, or a directory with all in it.
    pub fn delete(&mut self, path: &str) {
        let path = path.trim_end_matches('\\').to_lowercase();
        let below = format!("{path}\\");
        self.files.retain(|p, _| *p != path && !p.starts_with(&below));
    }

    pub fn file(&self, path: &str) -> Option<&File> {
        self.files.get(&path.to_lowercase())
    }

    /// Every file below a directory, such as the root of a volume.
    pub fn files_below(&self, directory: &str) -> impl Iterator<Item = &File> {
        let below = format!("{}\\", directory.trim_end_matches('\\').to_lowercase());
        self.files.iter().filter(move |(p, _)| p.starts_with(&below)).map(|(_, f)| f)
    }

    /// Time passes: both clocks go on.
    pub fn pass(&mut self, time: Duration) {
        self.now = self.now.saturating_add(time.as_secs());
        self.uptime = self.uptime.saturating_add(time);
    }

    /// What a boot does by itself: pending renames are made, the new name is in force, servicing ends, `RunOnce` runs, `chkdsk` cleans, and
    /// nothing of the last boot runs any more. The store keeps what it has, as the pool writes it back.
    pub fn boot(&mut self) {
        let session = r"SYSTEM\CurrentControlSet\Control\Session Manager";
        self.unset(View::Bits64, session, "PendingFileRenameOperations");
        self.unset(View::Bits64, session, "PendingFileRenameOperations2");
        let names = r"SYSTEM\CurrentControlSet\Control\ComputerName";
        let next = self.key(View::Bits64, &format!(r"{names}\ComputerName"));
        if let Some(name) = next.and_then(|k| k.value("ComputerName").cloned()) {
            self.set(View::Bits64, &format!(r"{names}\ActiveComputerName"), "ComputerName", name);
        }
        let current = r"SOFTWARE\Microsoft\Windows\CurrentVersion";
        for view in View::BOTH {
            for key in ["RebootPending", "RebootInProgress", "PackagesPending"] {
                self.unmake(view, &format!(r"{current}\Component Based Servicing\{key}"));
            }
            self.unmake(view, &format!(r"{current}\WindowsUpdate\Auto Update\RebootRequired"));
            self.unmake(view, &format!(r"{current}\RunOnce"));
            self.make(view, &format!(r"{current}\RunOnce"));
        }
        self.processes.retain(|p| p.pid == 4);
        self.services.values_mut().for_each(|s| *s = Service { stopped: true, pid: 0 });
        self.held_mutexes.clear();
        self.dirty.clear();
        self.uptime = Duration::from_secs(60);
        self.now = self.now.saturating_add(60);
    }
}

/// Does a path begin with another, in any spelling?
pub(super) fn starts(path: &str, with: &str) -> bool {
    path.to_lowercase().starts_with(&with.to_lowercase())
}
