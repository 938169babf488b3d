//! The storage repositories that a layer has to do with: what is known of them, and how their scans stand.
//!
//! Called by `observe` alone.

use std::collections::BTreeSet;

use super::super::inspect;
use super::Lens;
use super::records::Owned;
use crate::domain::observed::{Records, Storage};
use crate::xapi::model::TaskStatus;
use crate::xapi::view::View;
use crate::xapi::wire::Ref;

/// Is a host connected to it?
pub(super) fn attached(view: &View, sr: &Ref) -> bool {
    view.pbds.iter().any(|(_, p)| p.sr == *sr && p.currently_attached)
}

/// What became of the scan that was sent last.
pub(super) enum Scan {
    /// None was, it is at work, or it was known to be over.
    Known,
    /// Ended since the last pass. It counts from the next one: what this view shows of the disks may be older than its end.
    Ended,
    /// The mirror does not show its task: too early, or collected since.
    Unseen,
}

/// The other storage repositories that the layer has, or had, disks in, or where a base of ours is; and what became of their scans.
pub(super) fn elsewhere(
    lens: &Lens<'_>,
    records: &Records,
    owned: &Owned<'_>,
    subject: &str,
    agent_start: &str,
) -> (Vec<Storage>, Vec<Scan>) {
    let made = records.disk.iter().chain(&records.config).map(|d| &d.sr);
    let recorded = made.chain(records.versions.iter().map(|v| &v.sr)).flatten();
    let there = owned.works.iter().chain(&owned.configs).chain(&owned.frozen).copied().chain(lens.view.vdis.bases());
    let there = there.filter_map(|(_, d)| lens.view.srs.get(&d.sr)).map(|sr| &sr.uuid);
    let all: BTreeSet<&String> = recorded.chain(there).filter(|uuid| *uuid != subject).collect();
    let found = all.into_iter().filter_map(|uuid| inspect::facts(lens.view, lens.view.srs.by_uuid(uuid)?.0));
    found
        .map(|mut storage| {
            let scan = scan_state(lens, &mut storage, agent_start);
            (storage, scan)
        })
        .unzip()
}

/// What became of the last scan of a repository; how its scans stand is written into `storage`.
pub(super) fn scan_state(lens: &Lens<'_>, storage: &mut Storage, agent_start: &str) -> Scan {
    let mut memory = lens.pool.memory();
    let (done, due) = memory.scans(&storage.uuid, agent_start, lens.now, lens.pace.in_flight);
    let task = memory.scan_task(&storage.uuid, agent_start);
    let state = match task.as_ref().map(|task| lens.view.tasks.get(task).map(|t| &t.status)) {
        None | Some(Some(TaskStatus::Pending | TaskStatus::Cancelling)) => Scan::Known,
        Some(Some(TaskStatus::Success)) => {
            memory.scan_done(&storage.uuid, agent_start, lens.now);
            Scan::Ended
        }
        Some(None) if !lens.live => Scan::Unseen,
        // A live look that does not show it either has lost it, and it is made again.
        Some(None | Some(TaskStatus::Failure | TaskStatus::Cancelled | TaskStatus::Other)) => {
            memory.scan_started(&storage.uuid, agent_start, None);
            Scan::Known
        }
    };
    let ended = matches!(state, Scan::Ended);
    storage.scans = done;
    storage.doubted = ended || memory.is_doubted(&storage.uuid);
    storage.scanning = ended || memory.scan_task(&storage.uuid, agent_start).is_some();
    storage.scan_due = due && !storage.scanning;
    state
}
