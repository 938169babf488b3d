//! After the freeze: the machine and its disk go, F keeps its keys, and the layer rests. Row 11 of the walk.

use super::super::observed::{Disk, Observed, Sight};
use super::super::removal;
use super::super::want::Want;
use super::disk::named_again;
use super::{
    Next, Say, Step, Verdict, cannot_tell, cannot_tell_in, destroy_disk, finalized, finish_operations, remove_config,
    removing,
};
use crate::api::reason::Reason;

/// F is recorded: the machine goes, then W; then the layer rests, and what comes back goes beside that.
pub(super) fn tidy(want: &Want, seen: &Observed) -> Verdict {
    let verdict = tidying(want, seen);
    match &verdict.say {
        Say::Working(..) if seen.finalized(&want.version).is_some() && !removing(seen) => {
            Verdict { say: said_finalized(want, seen), ..verdict }
        }
        _any_other => verdict,
    }
}

fn said_finalized(want: &Want, seen: &Observed) -> Say {
    let lost = seen.unseen.iter().filter(|u| u.lost);
    let lost = lost.filter_map(|u| Some((u.version.as_deref().filter(|v| *v != want.version)?, u.uuid.as_str())));
    Say::Finalized(finalized(&want.version, seen.finalized(&want.version).map(|v| v.disk.as_str()), lost))
}

/// W may be all that is left of a finalized version: it goes only beside its frozen disk, and with proof that that is its snapshot.
pub(in crate::domain) fn only_copy(seen: &Observed, w: &Disk) -> Option<Verdict> {
    if seen.frozen == Sight::CannotLook {
        return Some(cannot_tell(seen, "the frozen disk"));
    }
    let Some(f) = seen.frozen.found() else {
        return Some(Verdict::rest(Say::Stalled(
            Reason::DiskLost,
            format!(
                "the frozen disk of version '{}' is gone, its packaging disk '{}' ({}) is still there and kept: restore the frozen disk, or copy the packaging disk by hand and then destroy it (xe vdi-destroy uuid={}), which lets a new spec.version begin",
                seen.subject, w.name, w.uuid, w.uuid
            ),
        )));
    };
    let proven = f.snapshot_of.as_deref() == Some(w.uuid.as_str());
    (!proven).then(|| {
        Verdict::rest(Say::Stalled(
            Reason::SnapshotUnproven,
            format!(
                "the pool forgot that disk {} is the snapshot of packaging disk '{}' ({}), so that one is kept: compare them, then remove it by hand (xe vdi-destroy uuid={})",
                f.uuid, w.name, w.uuid, w.uuid
            ),
        ))
    })
}

fn tidying(want: &Want, seen: &Observed) -> Verdict {
    const WHAT: &str = "the version is frozen; removing the packaging machine and its disk";
    if let Some(verdict) = finish_operations(seen) {
        return verdict;
    }
    if let Some(w) = seen.work.found() {
        if let Some(verdict) = only_copy(seen, w) {
            return verdict;
        }
        if let Some(m) = seen.machine.found()
            && let Some(verdict) = removal::machine(m, Reason::RemovingMachine, WHAT)
        {
            return verdict;
        }
        let step = Step::DestroyWork { disk: w.uuid.clone(), after_freeze: true };
        return destroy_disk(seen, w, step, Reason::RemovingMachine, WHAT);
    }
    if let Some(m) = seen.machine.found()
        && let Some(verdict) = removal::machine(m, Reason::RemovingMachine, WHAT)
    {
        return verdict;
    }
    // A pool that forgot that it was destroyed.
    if let Some(c) = seen.config.found() {
        return remove_config(seen, c, Reason::RemovingMachine, WHAT);
    }
    if matches!(seen.work, Sight::CannotLook) || matches!(seen.machine, Sight::CannotLook) {
        return cannot_tell(seen, "what is left of the packaging machine");
    }
    for d in &seen.forgotten {
        if !d.keyed || !d.tagged {
            let step = Step::TagAgain { uuid: d.uuid.clone() };
            return Verdict::act(step, Reason::TaggingAgain, "a frozen disk gets its keys back");
        }
        if let Some(verdict) = named_again(want, d) {
            return verdict;
        }
    }
    match &seen.frozen {
        Sight::Found(f) if !f.keyed || !f.tagged => {
            return Verdict::act(
                Step::TagAgain { uuid: f.uuid.clone() },
                Reason::TaggingAgain,
                "the frozen disk lost its keys and gets them back",
            );
        }
        Sight::Lost => {
            return Verdict::rest(Say::Stalled(
                Reason::DiskLost,
                format!(
                    "the disk of finalized version '{}' is gone from the pool: restore it; nothing is made in its place",
                    seen.subject
                ),
            ));
        }
        Sight::CannotLook => return cannot_tell(seen, "the frozen disk"),
        Sight::Found(f) => {
            if let Some(verdict) = named_again(want, f) {
                return verdict;
            }
        }
        Sight::Absent => {}
    }
    let hidden = seen.unseen.iter().filter(|u| u.version.is_some() && !u.lost);
    if let Some(storage) = hidden.filter_map(|u| seen.storage_of(u.sr.as_deref())).find(|s| !s.scanned()) {
        return cannot_tell_in(storage, "the frozen disk of another version");
    }
    if seen.subject == want.version {
        return Verdict::rest(said_finalized(want, seen));
    }
    Verdict::wait(Next::Now, Reason::RemovingMachine, WHAT)
}
