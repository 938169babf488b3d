//! The real Windows: [`Facts`], [`Deeds`] and [`Store`](crate::channel::Store) over its own calls, and what only the program needs: service,
//! installation, window. Used by `main` alone.
//!
//! The one place with unsafe code: every block says why it is sound. Nothing here decides anything; what a fact means is `checks`' affair.

#![allow(unsafe_code)]

mod cards;
mod deeds;
mod files;
mod power;
mod registry;
mod store;
mod system;
mod wmi;

pub mod install;
pub mod program;
pub mod service;
pub mod window;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use windows::Win32::System::Diagnostics::Debug::{SEM_FAILCRITICALERRORS, SetThreadErrorMode};
use windows::Win32::System::SystemInformation::GetTickCount64;

use crate::facts::{Blind, Card, Facts, Key, Process, Seen, Service, Stat, View, Volume};

pub use store::Xenstore;

/// This Windows.
pub struct Windows;

impl Windows {
    /// Once for each thread that looks: without it Windows would ask at the screen for a disk in an empty drive, and wait.
    pub fn open() -> Self {
        // SAFETY: takes a number and no pointer. Where it fails, the box that it suppresses is all there is to fear.
        let _ = unsafe { SetThreadErrorMode(SEM_FAILCRITICALERRORS, None) };
        Self
    }
}

/// What could not be looked at, in Windows' own words.
fn blind(what: impl Into<String>, why: impl ToString) -> Blind {
    Blind { what: what.into(), why: why.to_string() }
}

impl Facts for Windows {
    fn key(&self, view: View, path: &str) -> Seen<Option<Key>> {
        registry::key(view, path)
    }

    fn processes(&self) -> Seen<Vec<Process>> {
        system::processes()
    }

    fn service(&self, name: &str) -> Seen<Option<Service>> {
        system::service(name)
    }

    fn mutex_held(&self, name: &str) -> Seen<bool> {
        system::mutex_held(name)
    }

    fn stat(&self, path: &str) -> Seen<Option<Stat>> {
        files::stat(path)
    }

    fn list(&self, path: &str) -> Seen<Option<Vec<String>>> {
        files::list(path)
    }

    fn read(&self, path: &str, most: usize) -> Seen<Option<Vec<u8>>> {
        files::read(path, most)
    }

    fn volumes(&self) -> Seen<Vec<Volume>> {
        files::volumes()
    }

    fn dirty(&self, root: &str) -> Seen<bool> {
        files::dirty(root)
    }

    fn encrypted(&self, root: &str) -> Seen<bool> {
        wmi::encrypted(root)
    }

    fn network_cards(&self) -> Seen<Vec<Card>> {
        cards::all()
    }

    fn rearms(&self) -> Seen<u32> {
        wmi::rearms()
    }

    fn now(&self) -> u64 {
        seconds(SystemTime::now())
    }

    fn uptime(&self) -> Duration {
        // SAFETY: takes nothing and cannot fail.
        Duration::from_millis(unsafe { GetTickCount64() })
    }
}

/// Since 1970; a time before it, which a machine with an empty clock has, is its first second.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
