//! The config disk: a small FAT volume labelled `LAMINA` that carries steps into a packaging machine, and record, report and logs out of it.
//!
//! `build` makes it (the controller, before the machine is made), `fat` and `back` read it after the halt, `edit` is how a simulated guest
//! writes it; Windows itself writes the real one. What comes back was in a guest's hands: `fat` and `back` bound everything they read, and
//! every damage is a value of `Damage`. Nothing of this disk may be shown: step files may come from Secrets.
//!
//! ```text
//! MBR │ 1 MiB │ FAT16, 2 KiB clusters: layer.json steps.json record-0.txt files/<step>/<name> [lamina-guest.exe]
//!                 the guest adds:      record-1.txt report.json logs/<nn>-<step>.log
//! ```
//!
//! An MBR with one partition, since Windows offers a fixed disk without a partition table for initialisation instead of mounting it. Always
//! FAT16: its root directory and its tables are of a fixed size, and every Windows mounts it.

pub mod back;
pub mod bound;
pub mod build;
pub mod edit;
pub mod fat;
mod layer;

pub use crate::channel::LABEL;
pub use crate::report::FILE as REPORT;
pub use layer::{Layer, Purpose};

pub const LAYER: &str = "layer.json";
pub const STEPS: &str = "steps.json";
/// The record's two slots (see `steps::record`); slot 0 is there from the start.
pub const RECORDS: [&str; 2] = ["record-0.txt", "record-1.txt"];
pub const PROGRAM: &str = "lamina-guest.exe";
pub const FILES: &str = "files";
pub const LOGS: &str = "logs";
/// A `powershell` step's text, beside the step's files (no file of a user can have the name: `~` is not allowed in one).
pub const SCRIPT: &str = "~step.ps1";

/// Bytes of all step files together; the guest's program does not count.
pub const MOST_FILES_BYTES: u64 = 64 << 20;
/// Bytes of the guest's program.
pub const MOST_PROGRAM_BYTES: u64 = 16 << 20;
/// Bytes of a step's log, all its runs together.
pub const MOST_LOG_BYTES: u64 = 1 << 20;
/// Bytes of a record, a report, `layer.json` or `steps.json`.
pub const MOST_TEXT_BYTES: u64 = 1 << 20;

/// Where the log of step `n` (from 0) lies.
pub fn log_path(n: usize, step: &str) -> String {
    format!("{LOGS}/{:02}-{step}.log", n + 1)
}

/// Where a file of a step lies.
pub fn file_path(step: &str, name: &str) -> String {
    format!("{FILES}/{step}/{name}")
}

/// What is wrong with a disk, or with one file of it, that came back from a guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("the disk is cut off: it ends before its volume does")]
    DiskCut,
    #[error("the disk holds no FAT volume of Lamina's any more: it was formatted or partitioned anew")]
    NotFat,
    #[error("the volume is not labelled LAMINA any more")]
    Label,
    #[error("the disk was made for another machine, or is another disk")]
    Foreign,
    #[error("its record is of other steps than the layer has now: they were changed as the machine was started")]
    OtherSteps,
    #[error("{0} is gone")]
    Missing(&'static str),
    #[error("the clusters of '{0}' run in a circle")]
    Cyclic(String),
    #[error("'{0}' has a cluster that is outside the volume")]
    OutOfVolume(String),
    #[error("'{0}' ends before its size is reached")]
    FileCut(String),
    #[error("'{0}' says that it is larger than the disk")]
    LargerThanDisk(String),
    #[error("'{0}' is longer than it may be")]
    TooLong(String),
    #[error("directory '{0}' has too many entries")]
    TooManyEntries(String),
    #[error("'{0}' is a directory, or has one where a file should be")]
    Kind(String),
    #[error("'{0}' is not UTF-8")]
    NotText(String),
    #[error("'{0}' cannot be understood")]
    Garbled(String),
    #[error("the volume is full, and what the guest had to say is not on it")]
    Full,
}

/// Where the one partition begins; 1 MiB, as Windows itself aligns partitions.
const START: usize = 1 << 20;
const SECTOR: usize = 512;
const CLUSTER: usize = 2048;
/// Entries of a FAT16 root directory.
const ROOT_ENTRIES: usize = 512;
/// FAT16 with logical block addresses, in a partition table.
const PARTITION_FAT16_LBA: u8 = 0x0E;

#[cfg(test)]
mod tests;
