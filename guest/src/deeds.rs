//! What acts on a Windows. Implemented by `windows` and `memory`, like [`Facts`](crate::facts::Facts), which only looks.
//!
//! Every deed is over when its function returns, with two exceptions: power off and reboot have only been asked for, and whoever asked
//! does nothing more. A deed that failed may have been done in part; the error says what Windows said.

use std::time::Duration;

/// A deed that could not be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {what}: {why}")]
pub struct Failed {
    /// The deed and its object, such as `write E:\report.json`.
    pub what: String,
    /// What Windows says, with its number.
    pub why: String,
}

pub type Done<T> = Result<T, Failed>;

/// A program to be run. It gets no input: one that asks reads the end of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Full path, or a name that Windows finds, such as `cmd.exe`.
    pub program: String,
    /// The rest of the command line, word for word, as `CreateProcess` takes it.
    pub args: String,
    /// Where it runs; `None`: where we do.
    pub directory: Option<String>,
    /// After this it is ended with everything that it started.
    pub limit: Duration,
    /// File to which both its outputs are appended, of long ones beginning and end; `None`: thrown away.
    pub log: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this exit code, of which Windows knows 32 bits: crashes are negative.
    Code(i32),
    /// It ran into its limit and was ended.
    TimedOut,
}

pub trait Deeds: Send + Sync {
    /// Runs a program to its end or limit; `Err`: it could not be started.
    fn run(&self, job: &Job) -> Done<Ended>;

    /// Replaces a file, with the directories above it; on the medium when it returns.
    fn write(&self, path: &str, bytes: &[u8]) -> Done<()>;

    /// Removes a file, or a directory with all in it; none there is fine.
    fn remove(&self, path: &str) -> Done<()>;

    /// Resets Windows licensing; takes effect at the next boot and is spent for good.
    fn rearm(&self) -> Done<()>;

    /// Uninstalls a device by its instance id.
    fn remove_card(&self, id: &str) -> Done<()>;

    /// Turns the machine off in full, never as a hybrid shutdown that fast start could resume; after that time, whatever becomes of us
    /// until then. Asked again, the later word counts.
    fn power_off(&self, after: Duration) -> Done<()>;

    /// Calls off a power-off whose time has not come.
    fn stay_on(&self) -> Done<()>;

    fn reboot(&self) -> Done<()>;

    fn wait(&self, time: Duration);
}
