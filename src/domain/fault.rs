//! The three ways in which a step can fail. Every error of the outer rooms is sorted into one of them, and the controller
//! acts on nothing else. How long to wait is not said here: all durations come from `Pace`.

/// What to do after a failed step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Try again with growing pauses. Every error that nobody knows is one of these.
    Retry,
    /// Something passes by itself (another operation, capacity): look again after a fixed pause.
    Wait,
    /// A person or the world must change something first; looked at again at every wake, never in a loop.
    Stalled,
}
