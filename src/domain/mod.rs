//! The pure middle: what belongs to whom, what is seen, and what follows from it. No I/O, no clock, no async, no Kubernetes client.
//!
//! `observed` is the input, `plan` and `removal` are the decisions, `making` is the claim protocol they share, `gate` the chains of
//! predicates, `report` the guest's word, `doubt` why it may not count, `config` the disk that brings steps in and their results out, `identity` the keys, `fault` the three ways in which a step can fail.

pub mod config;
pub mod doubt;
pub mod fault;
pub mod gate;
pub mod identity;
pub mod making;
pub mod observed;
pub mod plan;
pub mod removal;
pub mod report;
pub mod steps;
pub mod want;
