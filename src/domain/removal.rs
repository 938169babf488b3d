//! Removal: of a layer that is being deleted, of a version that is thrown away, of a machine whose work is done.
//!
//! Pure, as `plan`. Order: whatever may be in flight first, then the machine (its disk taken off before, so that nothing of ours goes with
//! it), then W, the frozen versions by policy, S with its last user, our marks, the finalizer.

use super::making;
use super::observed::{Disk, Flight, Machine, Observed, Power, Sight, Unseen};
use super::plan::{self, Next, Plan, Say, Step, Verdict};
use super::want::{DeletionPolicy, Want};
use crate::api::reason::Reason;

const DELETING: &str = "removing what the layer has on the pool";

/// All objects of a layer, whatever version they are of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Estate {
    pub machines: Vec<Machine>,
    pub works: Vec<Disk>,
    pub configs: Vec<Disk>,
    pub frozen: Vec<Disk>,
    /// Disks `frozen` that carry the key `retained`.
    pub retained: Vec<String>,
}

/// The decision for a layer that is being deleted.
pub fn decide_removal(want: &Want, seen: &Observed, estate: &Estate) -> Plan {
    let mut plan =
        Plan { phase: plan::phase(want, seen), step: Step::Nothing, say: deleting(DELETING), next: Next::Rest };
    let verdict = removal(want, seen, estate);
    plan.step = verdict.step;
    plan.next = verdict.next;
    plan.say = match plan::told(want, seen, plan.phase, verdict.say) {
        Say::Working(reason, message) => Say::Deleting { reason, message, stuck: false },
        Say::Stalled(reason, message) => Say::Deleting { reason, message, stuck: true },
        other @ (Say::Person(..) | Say::Finalized(_) | Say::Suspended { .. } | Say::Deleting { .. }) => other,
    };
    plan
}

fn deleting(message: &str) -> Say {
    Say::Deleting { reason: Reason::Deleting, message: message.to_owned(), stuck: false }
}

fn removal(want: &Want, seen: &Observed, estate: &Estate) -> Verdict {
    let act = |step| Verdict::act(step, Reason::Deleting, DELETING);
    if want.deletion == DeletionPolicy::Orphan || seen.records.pool.is_none() {
        return act(Step::LetGo);
    }
    if want.suspend {
        return Verdict { step: Step::Nothing, say: Say::Suspended { finalized: false }, next: Next::Rest };
    }
    if let Some(pool) = plan::another_pool(seen) {
        return Verdict { step: Step::Nothing, say: plan::pool_changed(pool, &seen.pool), next: Next::Rest };
    }
    if let Some(verdict) = settle_flights(seen) {
        return verdict;
    }
    let stays_anyway = |u: &Unseen| want.deletion == DeletionPolicy::Retain && u.version.is_some();
    if let Some(verdict) = out_of_sight(seen, stays_anyway) {
        return verdict;
    }
    let stays = want.deletion == DeletionPolicy::Retain;
    if let Some(f) = estate.frozen.iter().find(|f| stays && !(f.keyed && f.tagged)) {
        return act(Step::TagAgain { uuid: f.uuid.clone() });
    }
    if let Some(base) = seen.base.found().filter(|b| !b.keyed && seen.os_disk.is_ok()) {
        return act(Step::TagAgain { uuid: base.uuid.clone() });
    }
    for m in &estate.machines {
        if let Some(verdict) = machine(m, Reason::Deleting, DELETING) {
            return verdict;
        }
    }
    if let Some(c) = estate.configs.first() {
        return plan::remove_config(seen, c, Reason::Deleting, DELETING);
    }
    if let Some(w) = estate.works.first() {
        // What is to stay is not judged by its record alone.
        let after_freeze = stays
            && seen.finalized(&seen.subject).is_some()
            && seen.work.found().is_some_and(|work| work.uuid == w.uuid);
        if let Some(verdict) = plan::only_copy(seen, w).filter(|_| after_freeze) {
            return verdict;
        }
        return destroy_disk(seen, w, Step::DestroyWork { disk: w.uuid.clone(), after_freeze });
    }
    for f in &estate.frozen {
        match want.deletion {
            DeletionPolicy::Delete => return destroy_disk(seen, f, Step::DestroyFrozen { disk: f.uuid.clone() }),
            DeletionPolicy::Retain if !estate.retained.contains(&f.uuid) => {
                return act(Step::Retain { disk: f.uuid.clone() });
            }
            DeletionPolicy::Retain | DeletionPolicy::Orphan => {}
        }
    }
    if let Some(base) = seen.idle_bases.first() {
        return destroy_disk(seen, base, Step::DestroyBase { disk: base.uuid.clone() });
    }
    if let Some(verdict) = drop_operation(seen).or_else(|| plan::take_stray_mark(seen)) {
        return verdict;
    }
    act(Step::LetGo)
}

/// A version that the user threw away: everything of it that was not frozen.
pub(super) fn discard(seen: &Observed) -> Verdict {
    const WHAT: &str = "throwing the version named in spec.discard away";
    if let Some(verdict) = settle_flights(seen) {
        return verdict;
    }
    if let Some(verdict) = out_of_sight(seen, |u| u.version.is_some()) {
        return verdict;
    }
    if let Sight::Found(m) = &seen.machine
        && let Some(verdict) = machine(m, Reason::Discarding, WHAT)
    {
        return verdict;
    }
    if let Sight::Found(c) = &seen.config {
        return plan::remove_config(seen, c, Reason::Discarding, WHAT);
    }
    if let Sight::Found(w) = &seen.work {
        return destroy_disk(seen, w, Step::DestroyWork { disk: w.uuid.clone(), after_freeze: false });
    }
    // The base that the next version stands on stays.
    let next = seen.base.found().map(|b| b.uuid.as_str());
    if let Some(base) = seen.idle_bases.iter().find(|b| Some(b.uuid.as_str()) != next) {
        return destroy_disk(seen, base, Step::DestroyBase { disk: base.uuid.clone() });
    }
    if let Some(verdict) = drop_operation(seen) {
        return verdict;
    }
    // What is recorded and gone was thrown away: the record goes, and the new version begins.
    Verdict::act(Step::Record, Reason::Discarding, WHAT)
}

/// What is recorded and does not show may be a row that a restarted pool forgot: a scan of its repository brings the disk back. Of a
/// repository that the pool has no more nobody can tell; what `stays` there is not waited for.
fn out_of_sight(seen: &Observed, stays: impl Fn(&Unseen) -> bool) -> Option<Verdict> {
    seen.unseen.iter().find_map(|u| match (seen.storage_of(u.sr.as_deref()), &u.sr) {
        (Some(storage), _) if storage.scanned() => None,
        (Some(storage), _) => Some(plan::cannot_tell_in(storage, &format!("disk {}, which is to be removed", u.uuid))),
        (None, sr) => (!stays(u)).then(|| {
            Verdict::wait(
                Next::Capacity,
                Reason::WaitingForStorage,
                format!(
                    "storage repository {}, which holds disk {}, is not in the pool any more: introduce it again, so that the disk can be removed; \
                     or set spec.deletionPolicy to Orphan to leave everything where it is",
                    sr.as_deref().unwrap_or_default(),
                    u.uuid
                ),
            )
        }),
    })
}

/// Nothing may be under way when things are taken down: a child that comes later would be nobody's.
fn settle_flights(seen: &Observed) -> Option<Verdict> {
    let all = seen.flights.iter().chain(seen.leftover.as_ref());
    all.filter(|f| worth_a_look(f))
        .find_map(|f| Some(Verdict::from_move(making::abandon(f)?, Reason::Deleting, DELETING)))
}

/// A flight of another layer's (S is shared) is none of ours to settle.
fn worth_a_look(f: &Flight) -> bool {
    f.intent.is_some() || f.wanted_mark.as_ref().is_none_or(|m| m.owner != "base")
}

fn drop_operation(seen: &Observed) -> Option<Verdict> {
    seen.records.operation.as_ref()?;
    Some(Verdict::act(Step::DropIntent, Reason::Deleting, DELETING))
}

fn destroy_disk(seen: &Observed, disk: &Disk, step: Step) -> Verdict {
    plan::destroy_disk(seen, disk, step, Reason::Deleting, DELETING)
}

/// The machine, step by step; `None`: it is not there any more, or on its way.
pub(super) fn machine(m: &Machine, reason: Reason, what: &str) -> Option<Verdict> {
    Some(if m.busy {
        Verdict::wait(Next::Task, reason, what)
    } else {
        let act = |step| Verdict::act(step, reason, what);
        match (m.power, m.disk.as_ref().or(m.config.as_ref())) {
            (Power::Running | Power::Paused | Power::Suspended, _) => act(Step::ShutDown { machine: m.uuid.clone() }),
            (Power::Unknown, _) => Verdict::wait(
                Next::Capacity,
                reason,
                format!(
                    "{what}: machine '{}' is in a power state that Lamina does not know, and goes once it is off (xe vm-shutdown uuid={} force=true)",
                    m.name, m.uuid
                ),
            ),
            (Power::Halted, Some(vbd)) => act(Step::DetachDisk { vbd: vbd.clone() }),
            (Power::Halted, None) if m.destroy_blocked => act(Step::UnblockDestroy { machine: m.uuid.clone() }),
            (Power::Halted, None) => act(Step::DestroyMachine { machine: m.uuid.clone() }),
        }
    })
}
