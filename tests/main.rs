//! All integration tests but the crash enumeration: one binary, one API server, one link step.
mod admission;
mod at_rest;
mod client;
mod common;
mod connector;
mod crds;
mod health;
mod http;
mod layers;
mod lease;
mod lifecycle;
mod local;
mod manifests;
mod mirror;
mod run;
mod wire;
mod world;
