//! Changed block tracking: what was written to a disk between two of its snapshots (xapi.md 4.4, "CBT and clones").
//!
//! Each tracked disk has a log of what changed since the snapshot before; a snapshot takes the log over and the disk begins the next one behind
//! it. So logs form a chain of one disk's snapshots. A clone has none.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::{DiskError, Disks};

/// One bit of a bitmap stands for so many bytes (xapi.md 4.4).
const GRAIN: u64 = 64 << 10;

#[derive(Clone, Debug, Default)]
pub struct Log {
    id: Uuid,
    /// The log of the snapshot before.
    before: Option<Uuid>,
    /// Numbers of grains.
    changed: BTreeSet<u64>,
}

impl Log {
    /// A log that begins behind another, or a chain of its own.
    pub fn begin(before: Option<Uuid>) -> Self {
        Self { id: Uuid::new_v4(), before, changed: BTreeSet::new() }
    }
}

impl Disks {
    /// A snapshot of a tracked disk was made: it takes the log over.
    pub fn pass_log(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        let Some(log) = self.get_mut(from)?.log.take() else { return Ok(()) };
        self.get_mut(from)?.log = Some(Log::begin(Some(log.id)));
        self.get_mut(to)?.log = Some(log);
        Ok(())
    }

    /// A disk goes: what its log knew, the one behind it knows from now on.
    pub(super) fn forget_log(&mut self, uuid: &str) {
        let Some(gone) = self.nodes.get_mut(uuid).and_then(|node| node.log.take()) else { return };
        for log in self.nodes.values_mut().filter_map(|n| n.log.as_mut()).filter(|log| log.before == Some(gone.id)) {
            log.before = gone.before;
            log.changed.extend(&gone.changed);
        }
    }

    pub(super) fn changed(&mut self, uuid: &str, at: u64, length: usize) {
        if let Some(log) = self.nodes.get_mut(uuid).and_then(|node| node.log.as_mut()) {
            log.changed.extend(at / GRAIN..(at + length as u64).div_ceil(GRAIN));
        }
    }

    /// The bitmap of what changed from one snapshot to a later one, or to the disk itself; most significant bit first. `None` where `to` is not
    /// behind `from` in one chain.
    pub fn changes(&self, from: &str, to: &str) -> Result<Option<Vec<u8>>, DiskError> {
        let (from, to) = (self.get(from)?, self.get(to)?);
        let (Some(first), Some(last)) = (&from.log, &to.log) else { return Ok(None) };
        let mut log = last;
        let mut all: BTreeSet<u64> = BTreeSet::new();
        while log.id != first.id {
            all.extend(&log.changed);
            let before = self.nodes.values().filter_map(|n| n.log.as_ref()).find(|l| Some(l.id) == log.before);
            let Some(before) = before else { return Ok(None) };
            log = before;
        }
        let mut bits = vec![0_u8; usize::try_from(to.virtual_size.div_ceil(GRAIN).div_ceil(8)).unwrap_or_default()];
        for grain in all {
            if let Some(byte) = usize::try_from(grain / 8).ok().and_then(|at| bits.get_mut(at)) {
                *byte |= 0x80 >> (grain % 8);
            }
        }
        Ok(Some(bits))
    }
}
