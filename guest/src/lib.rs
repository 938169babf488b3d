//! The guest's side of Lamina: is this Windows at rest, what is to be done about it, and the steps that install without hands.
//!
//! A library, so that the controller reads what the program writes, and so that a simulated guest runs what a real one runs. Everything that
//! looks or acts goes through traits with two implementations: Windows, and an in-memory Windows. It knows nothing of Kubernetes or XAPI.

pub mod channel;
pub mod deeds;
pub mod disk;
pub mod facts;
pub mod steps;
