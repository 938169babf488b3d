//! The claim protocol: how one thing is made once, whatever dies in between.
//!
//! ```text
//! intent ─▶ mark ─▶ send ─▶ (task) ─▶ claim ─▶ record ─▶ unmark ─▶ intent out
//!   │ found without knowing who sent what: in-flight test (twice quiet, 60 s apart), then from "mark" on
//!   └ xapi was restarted meanwhile: two scans 60 s apart, a new intent, then the same
//! ```
//!
//! Pure. `plan` asks it for the next move of an operation whose object is not there; it never decides that one is wanted.

use super::observed::{Child, Flight, Making, MarkSight, Quiet, Sent, TaskSight, Trouble};
use super::plan::Step;
use crate::api::reason::Reason;

/// The next move of an operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Move {
    /// Do this.
    Do(Step),
    /// Nothing to do but wait: for the task, for another's mark, for the second look.
    Wait(Waiting),
    /// It cannot go on.
    Stop(Trouble),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Waiting {
    Task {
        progress: f64,
    },
    /// `at_work`: at what the pool still is, in words.
    InFlight {
        at_work: Option<String>,
    },
    /// `ahead`: who does not go on by itself, in words.
    Turn {
        making: Making,
        ahead: Option<String>,
    },
    Mark {
        ahead: Option<String>,
    },
    /// Of another cluster.
    ForeignMark,
}

/// It was sent, and is not known to be over: its child may be there, and has its room.
pub fn may_be_made(f: &Flight) -> bool {
    match f.sent {
        Sent::Never | Sent::Over => false,
        Sent::Once | Sent::Unknown => !matches!(f.task, TaskSight::Failed(_)),
    }
}

/// The next move towards the child of `f`.
pub fn advance(f: &Flight) -> Move {
    if f.intent.is_none() {
        if !f.turn {
            return others_turn(f);
        }
        // Whoever marked it before this process began holds no turn, and would wait for ours.
        if f.mark == MarkSight::Held {
            return Move::Wait(Waiting::Mark { ahead: f.ahead.clone() });
        }
        return Move::Do(Step::RecordIntent(f.making));
    }
    match &f.task {
        TaskSight::Pending { progress } => return Move::Wait(Waiting::Task { progress: *progress }),
        TaskSight::Failed(_) if may_be_earlier(f) && f.quiet != Quiet::Twice => return in_flight(f),
        TaskSight::Failed(_) => return Move::Do(Step::Settle { making: f.making, opid: f.opid.clone() }),
        TaskSight::Succeeded { child: Some(child) } => {
            return Move::Do(Step::Claim { making: f.making, child: child.clone() });
        }
        TaskSight::Unwanted { child } => return Move::Do(destroy(f, child)),
        // A start; or it says that it made something, and that is gone again: over, and to be made anew.
        TaskSight::Succeeded { child: None } => {
            return Move::Do(Step::Settle { making: f.making, opid: f.opid.clone() });
        }
        TaskSight::None => {}
    }
    if let Some(step) = unwanted(f).or_else(|| from_children(f)) {
        return Move::Do(step);
    }
    match f.sent {
        Sent::Never => send(f),
        // What was over may have come back: a restarted pool has forgotten that it was claimed, or undone.
        Sent::Over | Sent::Once | Sent::Unknown if f.restarted => match f.scans {
            0 | 1 if f.scan_due => Move::Do(scan(f)),
            0 | 1 => in_flight(f),
            2.. if f.quiet == Quiet::Twice => Move::Do(Step::RecordIntent(f.making)),
            2.. => in_flight(f),
        },
        Sent::Over => send(f),
        Sent::Once | Sent::Unknown => match f.quiet {
            Quiet::No | Quiet::Once => in_flight(f),
            Quiet::Twice => send(f),
        },
    }
}

/// A call whose reply was lost is known by its tag alone, and so is each attempt before it: one that failed says nothing of a later one that is
/// still on its way to the pool.
fn may_be_earlier(f: &Flight) -> bool {
    f.sent == Sent::Unknown && matches!(f.task, TaskSight::Failed(_))
}

/// A destruction that was asked for may come at any time, whatever is wanted by now: it is brought to its end before anything else.
fn unwanted(f: &Flight) -> Option<Step> {
    f.children.iter().find(|c| c.unwanted).map(|c| destroy(f, &c.uuid))
}

fn destroy(f: &Flight, child: &str) -> Step {
    Step::DestroyUnclaimed { making: f.making, child: child.to_owned() }
}

/// A child without a task that tells: one that has the right shape is claimed; a half-made machine goes; several are left alone.
fn from_children(f: &Flight) -> Option<Step> {
    if !may_have_children(f) {
        return None;
    }
    match (f.making, f.children.as_slice()) {
        (Making::StartMachine, _) | (_, []) => None,
        // Never adopted: nobody saw its clone succeed, it may lack its network card.
        (Making::CloneMachine, [Child { uuid, settled: false, .. }, ..]) => match f.quiet {
            Quiet::Twice => Some(Step::DestroyHalfMade { machine: uuid.clone() }),
            Quiet::No | Quiet::Once => None,
        },
        (Making::CloneMachine, _) => None,
        (
            Making::SnapshotOsDisk | Making::CloneDisk | Making::FreezeDisk | Making::CreateConfig,
            [Child { uuid, shaped: true, .. }],
        ) => Some(Step::Claim { making: f.making, child: uuid.clone() }),
        (Making::SnapshotOsDisk | Making::CloneDisk | Making::FreezeDisk | Making::CreateConfig, _) => None,
    }
}

/// Before anything was sent, and once it is over, no child can be ours: another tool copied the source while our mark was on it. Unless the
/// pool forgot that the child was claimed.
fn may_have_children(f: &Flight) -> bool {
    match f.sent {
        Sent::Never => false,
        Sent::Over => f.restarted,
        Sent::Once | Sent::Unknown => true,
    }
}

fn scan(f: &Flight) -> Step {
    Step::ScanStorage { sr: f.sr.clone() }
}

fn in_flight(f: &Flight) -> Move {
    Move::Wait(Waiting::InFlight { at_work: f.at_work.clone() })
}

fn others_turn(f: &Flight) -> Move {
    Move::Wait(Waiting::Turn { making: f.making, ahead: f.ahead.clone() })
}

/// The mark, then the call. What the pool refused is not asked for again at once, and meanwhile its source is free.
fn send(f: &Flight) -> Move {
    if let Some(trouble) = &f.refused {
        return match (&f.mark, &f.wanted_mark) {
            (MarkSight::Ours, Some(mark)) => Move::Do(Step::Unmark { source: f.source.clone(), mark: mark.clone() }),
            _not_ours => Move::Stop(trouble.clone()),
        };
    }
    if !f.turn {
        return others_turn(f);
    }
    match (&f.mark, &f.wanted_mark) {
        (_, None) | (MarkSight::Ours, Some(_)) => Move::Do(Step::Send(f.making)),
        (MarkSight::None, Some(mark)) => Move::Do(Step::Mark { source: f.source.clone(), mark: mark.clone() }),
        (MarkSight::Stale { mark, quiet: true }, Some(_)) => {
            Move::Do(Step::Unmark { source: f.source.clone(), mark: mark.clone() })
        }
        (MarkSight::Stale { quiet: false, .. }, Some(_)) => in_flight(f),
        (MarkSight::Held, Some(_)) => Move::Wait(Waiting::Mark { ahead: f.ahead.clone() }),
        (MarkSight::Foreign { long: false, .. }, Some(_)) => Move::Wait(Waiting::ForeignMark),
        (MarkSight::Foreign { mark, long: true }, Some(_)) => Move::Stop(Trouble::new(
            Reason::BaseLocked,
            format!(
                "disk {} is marked by another cluster ({}) for more than 10 minutes; if that cluster is gone, take the mark off: \
                 xe vdi-param-remove uuid={} param-name=other-config param-key=lamina.dev/making",
                f.source, mark.cluster, f.source
            ),
        )),
    }
}

/// An operation that nobody wants any more, or a removal that meets one: what must happen before its source and children may be touched.
/// `None`: it is over, and left nothing.
pub fn abandon(f: &Flight) -> Option<Move> {
    match &f.task {
        TaskSight::Pending { .. } => return Some(Move::Do(Step::CancelTasks { opid: f.opid.clone() })),
        TaskSight::Succeeded { child: Some(child) } if f.making != Making::StartMachine => {
            return Some(Move::Do(destroy(f, child)));
        }
        TaskSight::Unwanted { child } => return Some(Move::Do(destroy(f, child))),
        TaskSight::Succeeded { .. } | TaskSight::Failed(_) | TaskSight::None => {}
    }
    if let Some(step) = unwanted(f) {
        return Some(Move::Do(step));
    }
    // Disks that bear an old mark, with no word of ours about it, are reported and left alone; a half-made machine has our name.
    let ours = f.intent.is_some() || f.mark == MarkSight::Ours;
    let unknown = match f.sent {
        Sent::Never | Sent::Over => false,
        Sent::Once | Sent::Unknown => ours || !f.children.is_empty() && f.making == Making::CloneMachine,
    } && (matches!(f.task, TaskSight::None) || may_be_earlier(f));
    if unknown && f.restarted && f.scans < 2 {
        return Some(if f.scan_due { Move::Do(scan(f)) } else { in_flight(f) });
    }
    if unknown && f.quiet != Quiet::Twice {
        return Some(in_flight(f));
    }
    // Once its task has told, a disk that bears our mark is another tool's copy of the source.
    let silent = matches!(f.task, TaskSight::None);
    if let [child] = f.children.as_slice()
        && may_have_children(f)
        && (ours && silent && child.shaped || f.making == Making::CloneMachine)
    {
        return Some(Move::Do(destroy(f, &child.uuid)));
    }
    match (&f.mark, &f.wanted_mark) {
        (MarkSight::Ours, Some(mark)) => Some(Move::Do(Step::Unmark { source: f.source.clone(), mark: mark.clone() })),
        _none_of_ours => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::identity::{Mark, Opid};
    use crate::domain::observed::Intent;
    use crate::domain::plan::{Say, Verdict};

    fn flight(sent: Sent) -> Flight {
        let mark = Mark { cluster: "c".into(), owner: "l".into(), op: "op".into() };
        let intent = Intent {
            step: Making::CloneDisk,
            opid: Opid("op".into()),
            source: "s".into(),
            agent_start: "0".into(),
            boot: None,
        };
        Flight {
            wanted_mark: Some(mark),
            mark: MarkSight::Ours,
            intent: Some(intent),
            sent,
            children: vec![Child { uuid: "child".into(), unwanted: false, shaped: true, settled: true }],
            quiet: Quiet::Twice,
            at_work: None,
            ..Flight::unbegun(Making::CloneDisk)
        }
    }

    /// The source bears our mark for as long as an attempt lasts, and whatever is made of it meanwhile inherits that.
    #[test]
    fn a_child_counts_only_where_a_call_may_have_made_it() {
        for sent in [Sent::Never, Sent::Over] {
            let f = flight(sent);
            assert_eq!(advance(&f), Move::Do(Step::Send(Making::CloneDisk)));
            assert!(matches!(abandon(&f), Some(Move::Do(Step::Unmark { .. }))), "{:?}", abandon(&f));
        }
        for sent in [Sent::Once, Sent::Unknown] {
            let f = flight(sent);
            assert!(matches!(advance(&f), Move::Do(Step::Claim { .. })), "{:?}", advance(&f));
            assert!(matches!(abandon(&f), Some(Move::Do(Step::DestroyUnclaimed { .. }))), "{:?}", abandon(&f));
        }
    }

    /// Another tool copied the source while our call waited there, which was then cancelled.
    #[test]
    fn a_copy_beside_a_call_that_has_ended_is_not_destroyed() {
        let cancelled = TaskSight::Failed(Trouble::new(Reason::PoolError, "cancelled"));
        for task in [cancelled, TaskSight::Succeeded { child: None }] {
            let f = Flight { task, ..flight(Sent::Once) };
            assert!(matches!(abandon(&f), Some(Move::Do(Step::Unmark { .. }))), "{:?}", abandon(&f));
        }
    }

    /// Asked for, waiting for its turn on the storage, or lost on its way: it comes when it comes. What is wanted again meanwhile is made anew.
    #[test]
    fn a_child_whose_destruction_was_asked_for_is_never_claimed() {
        let gone = Move::Do(Step::DestroyUnclaimed { making: Making::CloneDisk, child: "child".into() });
        for sent in [Sent::Never, Sent::Over, Sent::Once, Sent::Unknown] {
            let mut f = flight(sent);
            f.children[0].unwanted = true;
            assert_eq!((advance(&f), abandon(&f)), (gone.clone(), Some(gone.clone())), "by its mark");
            let f = Flight { task: TaskSight::Unwanted { child: "child".into() }, children: Vec::new(), ..f };
            assert_eq!((advance(&f), abandon(&f)), (gone.clone(), Some(gone.clone())), "by its task");
        }
    }

    /// Its reply was lost, so the attempt is known by its tag; an earlier one that failed bears the same.
    #[test]
    fn a_failure_that_is_known_by_its_tag_settles_nothing_before_the_pool_is_quiet() {
        let failed = TaskSight::Failed(Trouble::new(Reason::PoolError, "failed"));
        for quiet in [Quiet::No, Quiet::Once] {
            let f = Flight { task: failed.clone(), quiet, ..flight(Sent::Unknown) };
            assert_eq!((advance(&f), abandon(&f)), (in_flight(&f), Some(in_flight(&f))));
            let named = Flight { sent: Sent::Once, ..f };
            assert!(matches!(advance(&named), Move::Do(Step::Settle { .. })));
            assert!(matches!(abandon(&named), Some(Move::Do(Step::Unmark { .. }))));
        }
        let f = Flight { task: failed, ..flight(Sent::Unknown) };
        assert!(matches!(advance(&f), Move::Do(Step::Settle { .. })));
        assert!(matches!(abandon(&f), Some(Move::Do(Step::Unmark { .. }))));
    }

    /// A process that begins anew holds no turns, and knows those who had one by their marks alone.
    #[test]
    fn nothing_is_begun_on_a_source_that_another_holds() {
        let free = Flight { intent: None, mark: MarkSight::None, children: Vec::new(), ..flight(Sent::Unknown) };
        assert_eq!(advance(&free), Move::Do(Step::RecordIntent(Making::CloneDisk)));
        let held = Flight { mark: MarkSight::Held, ..free };
        assert_eq!(advance(&held), Move::Wait(Waiting::Mark { ahead: None }));
    }

    /// What the pool refused is told, its source is free meanwhile, and it is asked again once its pause is over.
    #[test]
    fn a_refused_call_pauses_without_its_mark() {
        let full = Trouble::new(Reason::StorageFull, "full");
        let mut f = Flight { refused: Some(full.clone()), children: Vec::new(), ..flight(Sent::Over) };
        assert!(matches!(advance(&f), Move::Do(Step::Unmark { .. })));
        f.mark = MarkSight::None;
        assert_eq!(advance(&f), Move::Stop(full));
        f.refused = None;
        assert!(matches!(advance(&f), Move::Do(Step::Mark { .. })));
    }

    /// Only a mark of another cluster is told anew after a while: of our own we know who is at work.
    #[test]
    fn whose_mark_is_waited_for_is_told() {
        let mut f = Flight { children: Vec::new(), ..flight(Sent::Never) };
        f.mark = MarkSight::Held;
        assert_eq!(advance(&f), Move::Wait(Waiting::Mark { ahead: None }));
        let mark = Mark { cluster: "other".into(), owner: "l".into(), op: "op".into() };
        f.mark = MarkSight::Foreign { mark, long: false };
        assert_eq!(advance(&f), Move::Wait(Waiting::ForeignMark));
        let words = |waiting| match Verdict::from_move(Move::Wait(waiting), Reason::CreatingDisk, "making it").say {
            Say::Working(reason, words) => (reason, words.contains("10 minutes")),
            other => panic!("{other:?}"),
        };
        assert_eq!(words(Waiting::Mark { ahead: None }), (Reason::WaitingForMark, false));
        assert_eq!(words(Waiting::ForeignMark), (Reason::WaitingForMark, true));
    }
}
