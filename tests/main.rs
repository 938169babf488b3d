//! The one integration test binary: one API server, one link step.
mod common;
mod crds;
mod wire;
