//! The one test binary: each module is a part of the whole.

mod wire;
