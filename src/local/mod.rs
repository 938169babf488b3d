//! A cluster and, with it, all of Lamina on one machine, from nothing but the toolchains. Called by the demo and by the tests, never
//! by the controller: what runs in production has somebody else's API server.
mod child;
mod controlplane;
pub mod manifests;
mod pki;
mod programs;

pub use controlplane::{ControlPlane, Error, Options, Who};
