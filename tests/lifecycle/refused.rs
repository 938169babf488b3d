//! A pool that refuses to make something: each call that makes or starts, at once or by its task, for causes that pass, that a person must
//! end, and that nobody knows. A life a table, since a life makes each of these once.

use lamina::api::ConditionType;
use lamina::sim::faults::{Effect, Entry, Fault, Target};
use lamina::xapi::wire::Failure;
use serde_json::json;

use crate::common::rig::{Rig, quick, ready, says};

/// By the answer to the call, or by its task.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Answer,
    Task,
}

/// Which call is refused how and with which code; the reason that follows, and words of the cure.
type Row = (&'static str, By, &'static str, &'static str, &'static str);

/// What a life makes, in this order: S, W, M, its config disk, its start, F.
const SNAPSHOT: &str = "Async.VDI.snapshot";
const CLONE: &str = "Async.VDI.clone";
const MACHINE: &str = "Async.VM.clone";
const CONFIG: &str = "Async.VDI.create";
const START: &str = "Async.VM.start";
/// A call that stays refused is asked again with pauses: so often at most while it is told.
const PATIENT: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_by_itself_is_waited_for() {
    live(
        "Reconciling",
        [
            (SNAPSHOT, By::Answer, "TOO_MANY_PENDING_TASKS", "WaitingForPool", "asked again by itself"),
            (CLONE, By::Task, "SR_DEVICE_IN_USE", "WaitingForStorage", "asked again by itself"),
            (MACHINE, By::Answer, "HOST_STILL_BOOTING", "WaitingForPool", "asked again by itself"),
            (CONFIG, By::Task, "VDI_IN_USE", "WaitingForDisk", "asked again by itself"),
            (START, By::Task, "NO_HOSTS_AVAILABLE", "WaitingForCapacity", "free memory"),
            (SNAPSHOT, By::Task, "OTHER_OPERATION_IN_PROGRESS", "WaitingForDisk", "asked again by itself"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_must_end_stalls_with_the_cure() {
    live(
        "Stalled",
        [
            (SNAPSHOT, By::Task, "SR_BACKEND_FAILURE_44", "StorageFull", "free some"),
            (CLONE, By::Answer, "RBAC_PERMISSION_DENIED", "PermissionDenied", "give it the role"),
            (MACHINE, By::Task, "MEMORY_CONSTRAINT_VIOLATION", "PoolRefused", "spec.machine.memory"),
            (CONFIG, By::Task, "SR_FULL", "StorageFull", "free some"),
            (START, By::Answer, "LICENSE_EXPIRED", "FeatureMissing", "renew its licence"),
            (SNAPSHOT, By::Answer, "SR_FULL", "StorageFull", "free some"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_can_explain_is_asked_again_with_growing_pauses() {
    live(
        "Reconciling",
        [
            (SNAPSHOT, By::Task, "INTERNAL_ERROR", "PoolError", "xensource.log"),
            (CLONE, By::Task, "SR_BACKEND_FAILURE_81", "StorageError", "SMlog"),
            (MACHINE, By::Answer, "INTERNAL_ERROR", "PoolError", "xensource.log"),
            (CONFIG, By::Answer, "SR_BACKEND_FAILURE_78", "StorageError", "SMlog"),
            (START, By::Task, "INTERNAL_ERROR", "PoolError", "xensource.log"),
            (SNAPSHOT, By::Answer, "RATE_LIMIT_OF_2031", "PoolError", "xensource.log"),
        ],
    )
    .await;
}

/// One life that meets all six refusals. Each is told as its row says, on Ready and on the condition of that name, and is over when its
/// cause is; in the end each call was carried out as often as in a life without.
async fn live(condition: &str, rows: [Row; 6]) {
    let rig = Rig::new().await;
    rig.guest("refused", quick());
    let [base, work, machine, config, start, frozen] = rows;
    strike(&rig, base);
    let _controller = rig.run().await;
    rig.layer("refused", json!({})).await;
    // The next call's fault is set before this one's cause goes: none slips through between the two.
    told_then(&rig, condition, base, Some(work)).await;
    told_then(&rig, condition, work, Some(machine)).await;
    told_then(&rig, condition, machine, Some(config)).await;
    told_then(&rig, condition, config, Some(start)).await;
    told_then(&rig, condition, start, None).await;
    rig.until_reason("refused", "ApproveFinalize").await;
    strike(&rig, frozen);
    rig.approve("refused", "1").await;
    told_then(&rig, condition, frozen, None).await;
    rig.until_finalized("refused", "1").await;
    let made = [SNAPSHOT, CLONE, MACHINE, CONFIG, START].map(|call| carried_out(&rig, call));
    assert_eq!(made, [2, 1, 1, 1, 1]);
    rig.hands.assert_tidy().await;
}

fn strike(rig: &Rig, (call, by, code, ..): Row) {
    let failure = Failure::new(code, ["upstream text"]);
    let effect = if by == By::Answer { Effect::Refuse(failure) } else { Effect::FailTask(failure) };
    rig.sim.pool.faults.add(Fault { target: Target::Method(call.to_owned()), effect, times: None });
}

/// Waits until the refusal is told, and ends its cause.
async fn told_then(rig: &Rig, condition: &str, row: Row, next: Option<Row>) {
    let (call, by, code, reason, cure) = row;
    let of_code = |e: &&Entry| matches!(&e.fault, Some(Effect::Refuse(f) | Effect::FailTask(f)) if f.code == code);
    let asked = || of(rig, call).iter().filter(of_code).count();
    let before = carried_out(rig, call);
    let layer = rig
        .until("refused", &format!("{call} refused with {code}"), |l| {
            ready(l).is_some_and(|(r, m)| r == reason && m.contains(code))
        })
        .await;
    let (_, message) = ready(&layer).expect("Ready");
    assert!(message.contains(cure) && !message.contains("upstream"), "{call} {by:?}: {message}");
    let types = [ConditionType::Stalled, ConditionType::Reconciling];
    let borne = types.map(|type_| (type_.as_str(), says(&layer, type_)));
    for (type_, said) in borne {
        let expected = if type_ == condition { format!("True/{reason}") } else { "-".to_owned() };
        assert_eq!(said, expected, "{type_} of {call} {code}");
    }
    assert!((1..=PATIENT).contains(&asked()), "{call} was asked for {} times", asked());
    assert_eq!(carried_out(rig, call), before);
    rig.sim.pool.faults.clear();
    next.into_iter().for_each(|next| strike(rig, next));
}

fn of(rig: &Rig, call: &str) -> Vec<Entry> {
    rig.sim.pool.log.entries().into_iter().filter(|e| e.method == call).collect()
}

fn carried_out(rig: &Rig, call: &str) -> usize {
    of(rig, call).iter().filter(|e| matches!(e.outcome, Some(Ok(_)))).count()
}
