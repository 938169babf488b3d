//! The three ways in which a step can fail; every error of the outer rooms is sorted into one of them, and the controller acts on
//! nothing else. How long to wait is not said here: all durations come from `Pace`.

pub use crate::api::reason::Fault;
