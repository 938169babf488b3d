//! The one integration test binary: one API server, one link step.
mod admission;
mod at_rest;
mod client;
mod common;
mod connector;
mod crash;
mod crds;
mod health;
mod http;
mod layers;
mod lease;
mod lifecycle;
mod mirror;
mod run;
mod wire;
mod world;
