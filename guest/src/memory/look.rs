//! The in-memory Windows as something to look at.

use std::time::Duration;

use super::Windows;
use super::state::{State, starts};
use crate::facts::{Blind, Card, Facts, Key, Process, Seen, Service, Stat, View, Volume};

impl Windows {
    /// Looks, unless that is what cannot be looked at.
    fn see<T>(&self, what: &str, look: impl FnOnce(&State) -> T) -> Seen<T> {
        let state = self.lock();
        if state.blind.iter().any(|b| starts(what, b)) {
            return Err(Blind { what: what.to_owned(), why: "access is denied (5)".to_owned() });
        }
        Ok(look(&state))
    }
}

impl Facts for Windows {
    fn key(&self, view: View, path: &str) -> Seen<Option<Key>> {
        self.see(&format!(r"HKLM\{path}"), |s| s.key(view, path))
    }

    fn processes(&self) -> Seen<Vec<Process>> {
        self.see("the processes", |s| s.processes.clone())
    }

    fn service(&self, name: &str) -> Seen<Option<Service>> {
        self.see(&format!("service {name}"), |s| {
            s.services.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, service)| *service)
        })
    }

    fn mutex_held(&self, name: &str) -> Seen<bool> {
        self.see(&format!("mutex {name}"), |s| s.held_mutexes.contains(name))
    }

    fn stat(&self, path: &str) -> Seen<Option<Stat>> {
        self.see(path, |s| match s.file(path) {
            Some(file) => Some(Stat { directory: false, modified: file.modified }),
            None => s.files_below(path).map(|f| f.modified).max().map(|modified| Stat { directory: true, modified }),
        })
    }

    fn list(&self, path: &str) -> Seen<Option<Vec<String>>> {
        self.see(path, |s| {
            let skip = path.trim_end_matches('\\').len() + 1;
            let mut names: Vec<String> = Vec::new();
            for file in s.files_below(path) {
                let name = file.path.get(skip..).and_then(|rest| rest.split('\\').next()).unwrap_or_default();
                if !names.iter().any(|n| n.eq_ignore_ascii_case(name)) {
                    names.push(name.to_owned());
                }
            }
            (!names.is_empty()).then_some(names)
        })
    }

    fn read(&self, path: &str, most: usize) -> Seen<Option<Vec<u8>>> {
        let bytes = self.see(path, |s| s.file(path).map(|f| f.bytes.clone()))?;
        match bytes {
            Some(bytes) if bytes.len() > most => {
                Err(Blind { what: path.to_owned(), why: format!("it is longer than {most} bytes") })
            }
            other => Ok(other),
        }
    }

    fn volumes(&self) -> Seen<Vec<Volume>> {
        self.see("the volumes", |s| s.volumes.clone())
    }

    fn dirty(&self, root: &str) -> Seen<bool> {
        self.see(&format!("the dirty bit of {root}"), |s| s.dirty.contains(root))
    }

    fn encrypted(&self, root: &str) -> Seen<bool> {
        self.see(&format!("BitLocker of {root}"), |s| s.encrypted.contains(root))
    }

    fn network_cards(&self) -> Seen<Vec<Card>> {
        self.see("the network cards", |s| s.cards.clone())
    }

    fn rearms(&self) -> Seen<u32> {
        self.see("the count of rearms", |s| s.rearms)
    }

    fn now(&self) -> u64 {
        self.lock().now
    }

    fn uptime(&self) -> Duration {
        self.lock().uptime
    }
}
