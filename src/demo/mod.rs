//! The demo: everything that Lamina needs, on one machine. Called by `cli`; the only room where the controller and the simulated pool meet.

pub mod person;
