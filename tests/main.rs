//! The one integration test binary: one API server, one link step.
mod admission;
mod common;
mod crds;
mod client;
