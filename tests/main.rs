//! The one integration test binary: one API server, one link step.
mod client;
mod common;
mod crds;
mod http;
mod lease;
