//! What Lamina knows and decides, pure: no I/O, no clock, no async, no wire types.
pub mod fault;
