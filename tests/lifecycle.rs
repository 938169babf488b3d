//! The life of a layer: the real controller under its service account, a real API server, a simulated pool over the wire.
//!
//! Every status that a test waits through obeys the rules of conditions (`rig::until`). What must hold on the pool is read there, over
//! the wire, by somebody else's session.

mod approval;
mod attempts;
mod damage;
mod disks;
mod garbage;
mod gates;
mod happy;
mod integrity;
mod law;
mod lines;
mod loss;
mod machine;
mod midway;
mod namespaces;
mod objects;
mod odd_steps;
mod overdue;
mod refused;
mod removal;
mod rights;
mod step_files;
pub mod steps;
mod storage;
mod told;
mod versions;
mod wakes;
mod writes;
