//! An in-memory Windows: facts that a test sets, deeds that change them as a real one would, a store, and a clock.
//!
//! Used by tests, the demo and the simulator's guests, always through [`Facts`](crate::facts::Facts), [`Deeds`](crate::deeds::Deeds) and
//! [`Store`](crate::channel::Store), so that what runs over it is what runs in Windows. It is shared freely between threads and tasks. What a
//! program that is run does, or what goes wrong, is said by a script; without one, every program ends well at once.

mod act;
mod look;
mod state;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use state::{File, State};

use crate::deeds::{Ended, Job};

/// Something that was done to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    Run(Job),
    Write(String),
    Remove(String),
    Rearm,
    RemoveCard(String),
    /// After that time.
    PowerOff(Duration),
    StayOn,
    Reboot,
    Wait(Duration),
}

/// How a deed goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// As ever; a program ends with code 0.
    Usual,
    /// A program ends like this instead.
    Ended(Ended),
    /// Nothing is done; this is what Windows says.
    Fails(String),
}

/// Asked before each deed takes effect; may change whatever it likes.
pub type Script = Box<dyn Fn(&mut State, &Deed) -> Reply + Send + Sync>;
/// Called while nothing is held, before the clock moves on.
pub type Sleeper = Box<dyn Fn(Duration) + Send + Sync>;

pub struct Windows {
    state: Mutex<State>,
    script: Script,
    sleeper: Sleeper,
}

impl Windows {
    /// A Windows at rest, with drivers and one network card, as long as nobody changes it.
    pub fn clean() -> Self {
        Self::scripted(|_, _| Reply::Usual)
    }

    pub fn scripted(script: impl Fn(&mut State, &Deed) -> Reply + Send + Sync + 'static) -> Self {
        Self { state: Mutex::new(State::clean()), script: Box::new(script), sleeper: Box::new(|_| {}) }
    }

    /// Lets real or simulated time pass when somebody waits; without it, waiting takes none.
    #[must_use]
    pub fn sleeping(self, sleeper: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        Self { sleeper: Box::new(sleeper), ..self }
    }

    /// All there is to see, as it is now: a copy.
    pub fn snapshot(&self) -> State {
        self.lock().clone()
    }

    /// Changes what is to be seen. `how` must not reach for this Windows again.
    pub fn change<T>(&self, how: impl FnOnce(&mut State) -> T) -> T {
        how(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked while it held the state has failed already.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
