//! Lamina builds XenServer platform layers from Kubernetes manifests.
//!
//! The rooms, and the one way in which they may know each other:
//! `api ← domain ← xapi ← controller, http ← local ← demo, cli`, and `xapi::{wire, model} ← sim ← demo, cli`.
//! `tests/layers.rs` holds the arrows.
#![forbid(unsafe_code)]

pub mod api;
pub mod cli;
pub mod controller;
pub mod demo;
pub mod domain;
pub mod http;
pub mod local;
pub mod sim;
pub mod telemetry;
pub mod xapi;
