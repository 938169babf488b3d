//! From nothing to a packaging disk and a machine for it: rows 0 to 4 of the walk.

use super::super::gate::{self, BaseChoice};
use super::super::making;
use super::super::observed::{Disk, Making, MarkSight, Observed, OsDisk, Sight, Trouble};
use super::super::want::Want;
use super::machine::with_machine;
use super::{Next, Say, Step, Verdict, advance, cannot_tell, destroy_disk, finish_operations};
use crate::api::reason::Reason;

pub(super) fn disk_lost(want: &Want, seen: &Observed) -> Say {
    let uuid = seen.records.disk.as_ref().map(|d| d.uuid.as_str()).unwrap_or_default();
    let moved = match seen.unclaimed.as_slice() {
        [] => String::new(),
        copies => format!(
            " A copy of it is there ({}), as a move to another storage repository leaves one: what is on it can be copied by hand.",
            copies.join(", ")
        ),
    };
    Say::Stalled(
        Reason::DiskLost,
        format!(
            "packaging disk {uuid} of version '{}' was made and is gone from the pool.{moved} Nothing is made in its place: restore it, or give the version up by setting \
             spec.discard to '{}' and spec.version to a new name (layer {})",
            seen.subject, seen.subject, want.name
        ),
    )
}

/// Row 0 to 2 of the walk: enter, S, W.
pub(super) fn make_disk(want: &Want, seen: &Observed) -> Verdict {
    let under_way = seen.records.operation.is_some();
    if !under_way && let Err(t) = gate::entry(want, seen) {
        return Verdict::trouble(t);
    }
    if !seen.finalizer || seen.records.pool.as_ref() != Some(&seen.pool) {
        return Verdict::act(Step::Enter, Reason::FreezingOSDisk, "entering the pool");
    }
    if let Some(verdict) = finish_operations(seen) {
        return verdict;
    }
    let base = seen.base.found().map(|b| b.uuid.as_str());
    // Made for an OS layer version that the spec does not name any more.
    let idle = seen.idle_bases.iter().find(|b| seen.records.operation.is_none() && Some(b.uuid.as_str()) != base);
    if let Some(b) = idle {
        let step = Step::DestroyBase { disk: b.uuid.clone() };
        return destroy_disk(seen, b, step, Reason::ClearingUp, "a base that no layer stands on is removed");
    }
    match gate::choose_base(want, &seen.records.versions, base) {
        Err(t) => Verdict::trouble(t),
        Ok(BaseChoice::OsLayer) => from_os_layer(want, seen),
        Ok(BaseChoice::Version { version, .. }) => from_version(want, seen, &version),
    }
}

fn from_version(want: &Want, seen: &Observed, version: &str) -> Verdict {
    match &seen.parent {
        Some(Sight::Found(parent)) => clone_from(want, seen, parent),
        Some(Sight::Lost) | Some(Sight::Absent) => Verdict::rest(Say::Stalled(
            Reason::DiskLost,
            format!("the disk of base version '{version}' is gone from the pool: restore it, or choose another base"),
        )),
        Some(Sight::CannotLook) | None => cannot_tell(seen, "the disk of the base version"),
    }
}

fn clone_from(want: &Want, seen: &Observed, source: &Disk) -> Verdict {
    let under_way = seen.flight(Making::CloneDisk).is_some_and(|f| f.intent.is_some());
    if !under_way && let Err(t) = fits(want, &source.name, &source.format, source.virtual_size) {
        return Verdict::trouble(t);
    }
    if !under_way && source.depth > gate::DEEPEST_SOURCE {
        return Verdict::trouble(Trouble::new(
            Reason::BaseChainTooDeep,
            format!(
                "disk {} hangs on {} layers of snapshots, of which storage takes 30: what is installed on a further one could not be frozen. Set spec.base.from to OSLayer",
                source.uuid, source.depth
            ),
        ));
    }
    if source.left_paused {
        return Verdict::act(
            Step::Unpause { disk: source.uuid.clone() },
            Reason::CreatingDisk,
            "the base was left paused when the pool's daemon died",
        );
    }
    let verdict = advance(seen, Making::CloneDisk, "making the packaging disk");
    // A copy pauses it too, ours no less than another layer's, whose mark is waited for: only what is yet to be sent would meet that.
    let copied = seen.flight(Making::CloneDisk).is_some_and(|f| f.mark == MarkSight::Held);
    let begins = matches!(verdict.step, Step::RecordIntent(_) | Step::Mark { .. } | Step::Send(_));
    if source.paused && begins && !copied {
        return Verdict::wait(
            Next::Capacity,
            Reason::WaitingForStorage,
            format!(
                "disk {} is paused by its storage repository: the packaging disk is made of it when that is over",
                source.uuid
            ),
        );
    }
    verdict
}

/// A pool that died may show S as it was before its claim.
fn base_again(seen: &Observed) -> Option<Verdict> {
    let base = seen.base.found().filter(|base| !base.keyed || !base.tagged)?;
    // Tags follow keys: another layer may be in the middle of its claim.
    let reason = if base.keyed { Reason::FreezingOSDisk } else { Reason::TaggingAgain };
    let step = Step::TagAgain { uuid: base.uuid.clone() };
    Some(Verdict::act(step, reason, "the base snapshot lost its keys and gets them back"))
}

fn from_os_layer(want: &Want, seen: &Observed) -> Verdict {
    if let Some(verdict) = base_again(seen) {
        return verdict;
    }
    match &seen.base {
        Sight::Found(base) => {
            let verdict = clone_from(want, seen, base);
            let begins = verdict.step == Step::RecordIntent(Making::CloneDisk);
            // Other tools list disks that no machine has for deletion.
            if begins && base.description != BASE_DESCRIPTION && !base.busy {
                return describe_base(base, Reason::FreezingOSDisk);
            }
            verdict
        }
        Sight::CannotLook | Sight::Lost => cannot_tell(seen, "the base snapshot"),
        Sight::Absent => {
            // Storage pauses what it copies: our own snapshot is no reason to take it back.
            let begun = seen.flight(Making::SnapshotOsDisk).filter(|f| f.intent.is_some());
            let os = seen.os_disk.clone().map(|os| OsDisk { paused: os.paused && begun.is_none(), ..os });
            let sent = begun.is_some_and(making::may_be_made);
            let fit = os.and_then(|os| {
                gate::os_disk(&os, &seen.storage, sent).and_then(|()| fits(want, &os.name, &os.format, os.virtual_size))
            });
            match fit {
                Ok(()) => advance(seen, Making::SnapshotOsDisk, "taking a snapshot of the OS disk"),
                // What was begun before the OS disk got in use is taken back, unclaimed.
                Err(t) => match seen.flight(Making::SnapshotOsDisk).filter(|f| f.intent.is_some()) {
                    Some(f) => match making::abandon(f) {
                        Some(mv) => {
                            Verdict::from_move(mv, Reason::FreezingOSDisk, "taking the snapshot of the OS disk back")
                        }
                        None => Verdict { step: Step::DropIntent, ..Verdict::trouble(t) },
                    },
                    None => Verdict::trouble(t),
                },
            }
        }
    }
}

fn describe_base(base: &Disk, reason: Reason) -> Verdict {
    let step = Step::DescribeDisk { uuid: base.uuid.clone(), description: BASE_DESCRIPTION.to_owned() };
    Verdict::act(step, reason, "describing the base snapshot")
}

/// A scan brings a disk back without name and description, and other tools list what says nothing for deletion.
pub(super) fn named_again(want: &Want, d: &Disk) -> Option<Verdict> {
    let (unnamed, undescribed) = (d.name.is_empty(), d.description.is_empty());
    if d.busy || d.paused || !unnamed && !undescribed {
        return None;
    }
    let uuid = d.uuid.clone();
    let step = if unnamed {
        Step::NameDisk { uuid, name: want.file_name.clone() }
    } else {
        Step::DescribeDisk { uuid, description: description(want) }
    };
    Some(Verdict::act(step, Reason::TaggingAgain, "a disk gets its name and description back"))
}

/// Can the packaging disk be a clone of this one? Sizes in bytes.
fn fits(want: &Want, source: &str, format: &str, virtual_size: i64) -> Result<(), Trouble> {
    if let Some(f) = want.format.as_ref().filter(|f| !format.is_empty() && *f != format) {
        return Err(Trouble::new(
            Reason::FormatMismatch,
            format!(
                "packagingDisk.format is {f}, but disk '{source}' is {format}, and a clone keeps its source's format: leave packagingDisk.format out"
            ),
        ));
    }
    if want.size.is_some_and(|size| size < virtual_size) {
        return Err(Trouble::new(
            Reason::DiskTooSmall,
            format!(
                "packagingDisk.size is smaller than disk '{source}' ({virtual_size} bytes): a disk cannot shrink; leave packagingDisk.size out or make it larger"
            ),
        ));
    }
    Ok(())
}

/// W is there: named and recorded, then sized, before anything is built on it. What it was made of is others' while it is sized.
pub(super) fn with_disk(want: &Want, seen: &Observed, w: &Disk) -> Verdict {
    let making = |step, message: &str| Verdict::act(step, Reason::CreatingDisk, message);
    let recorded = seen.records.disk.as_ref().is_some_and(|d| d.uuid == w.uuid);
    if !w.keyed || !w.tagged {
        return Verdict::act(
            Step::TagAgain { uuid: w.uuid.clone() },
            Reason::TaggingAgain,
            "the packaging disk gets its keys",
        );
    }
    if !recorded {
        if w.busy {
            return Verdict::wait(Next::Task, Reason::CreatingDisk, "the packaging disk is being named");
        }
        if w.name != want.file_name {
            return making(
                Step::NameDisk { uuid: w.uuid.clone(), name: want.file_name.clone() },
                "naming the packaging disk",
            );
        }
        let description = description(want);
        if w.description != description {
            return making(Step::DescribeDisk { uuid: w.uuid.clone(), description }, "describing the packaging disk");
        }
        return making(Step::Record, "the packaging disk is made");
    }
    if let Some(verdict) = finish_operations(seen) {
        return verdict;
    }
    if let (Some(verdict), Ok(_)) = (base_again(seen), &seen.os_disk) {
        return verdict;
    }
    let base = seen.base.found().filter(|base| base.description.is_empty() && !base.busy && !base.paused);
    if let Some(base) = base {
        return describe_base(base, Reason::TaggingAgain);
    }
    if let Some(verdict) = named_again(want, w) {
        return verdict;
    }
    if let Some(size) = size_due(want, seen) {
        const WHAT: &str = "sizing the packaging disk";
        return match w.busy {
            true => Verdict::wait(Next::Task, Reason::CreatingDisk, WHAT),
            false => making(Step::ResizeDisk { uuid: w.uuid.clone(), size }, WHAT),
        };
    }
    match &seen.machine {
        Sight::CannotLook => cannot_tell(seen, "the packaging machine"),
        Sight::Found(m) => with_machine(want, seen, w, m),
        Sight::Absent => make_machine(seen),
        Sight::Lost => {
            let used = seen.records.machine.as_ref().and_then(|m| m.restart_token.as_deref());
            let asked = want.restart_token.is_some() && want.restart_token.as_deref() != used;
            if asked
                || seen.flight(Making::CloneMachine).is_some_and(|f| f.intent.is_some())
                || !w_worked(seen) && machine_forgotten(seen)
            {
                return make_machine(seen);
            }
            Verdict::rest(Say::Stalled(
                Reason::MachineLost,
                format!(
                    "the packaging machine of version '{}' is gone from the pool; its disk '{}' ({}) is untouched. For a new machine on the same disk: {}",
                    seen.subject,
                    w.name,
                    w.uuid,
                    want.restart_command()
                ),
            ))
        }
    }
}

/// The size in bytes that W is yet to get: before there is a machine for it, and never once it was worked in.
pub(super) fn size_due(want: &Want, seen: &Observed) -> Option<i64> {
    let is_cloned = seen.records.operation.as_ref().is_some_and(|i| i.step == Making::CloneMachine);
    // The spec may speak of the next version already.
    if seen.machine != Sight::Absent || is_cloned || w_worked(seen) || seen.subject != want.version {
        return None;
    }
    let recorded = seen.records.disk.as_ref().and_then(|d| d.virtual_size);
    let has = seen.work.found().map(|w| w.virtual_size).or(recorded)?;
    want.size.map(rounded).filter(|size| *size > has)
}

/// Recorded under another start of xapi: its row may be one of those that were never written out.
fn machine_forgotten(seen: &Observed) -> bool {
    seen.records.machine.as_ref().is_some_and(|m| m.agent_start.as_deref() != Some(seen.agent_start.as_str()))
}

pub(super) fn w_worked(seen: &Observed) -> bool {
    seen.records.disk.as_ref().is_some_and(|d| d.worked)
}

/// Status knows of a run that the machine's keys do not: a pool that died has forgotten it.
pub fn boot_forgotten(seen: &Observed) -> bool {
    w_worked(seen) && machine_forgotten(seen)
}

fn make_machine(seen: &Observed) -> Verdict {
    if let Err(t) = &seen.machine_source
        && seen.flight(Making::CloneMachine).is_none_or(|f| f.intent.is_none())
    {
        return Verdict::trouble(t.clone());
    }
    advance(seen, Making::CloneMachine, "cloning the packaging machine from the template")
}

/// The words on every object of a layer, in other tools' lists.
pub fn description(want: &Want) -> String {
    format!("Lamina layer {}, do not delete", want.layer_name)
}

/// Why an operation is blocked while a version is frozen, and how our block is known again: nothing in it may change meanwhile.
pub fn blocked_for(want: &Want) -> String {
    format!("Lamina freezes a version of layer {}/{}", want.namespace, want.name)
}

/// On a base, which is no layer's alone.
const BASE_DESCRIPTION: &str = "Lamina base of platform layers, do not delete";

/// VHD disks grow in steps of 2 MiB.
fn rounded(size: i64) -> i64 {
    const STEP: i64 = 2 << 20;
    size.saturating_add(STEP - 1) / STEP * STEP
}
