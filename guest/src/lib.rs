//! The guest's side of Lamina: is this Windows at rest, what is to be done about it, and the steps that install without hands.
//!
//! A library, so that the controller reads what the program writes, and so that a simulated guest runs what a real one runs. Everything that
//! looks or acts goes through traits with two implementations: Windows, and an in-memory Windows. It knows nothing of Kubernetes or XAPI.

#![cfg_attr(not(windows), forbid(unsafe_code))]
#![cfg_attr(windows, deny(unsafe_code))]

pub mod cause;
pub mod channel;
pub mod checks;
pub mod command;
pub mod deeds;
pub mod disk;
pub mod facts;
pub mod finalize;
#[cfg(any(windows, test))]
mod log;
pub mod memory;
#[cfg(any(windows, test))]
pub mod page;
#[cfg(any(windows, test))]
mod raw;
pub mod report;
pub mod service;
pub mod steps;
pub mod verify;
#[cfg(windows)]
pub mod windows;
