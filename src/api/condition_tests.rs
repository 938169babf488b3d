//! Each invariant of `condition::check_layer` and `check_connector` is broken once; the table's rows are sound.

use super::*;
use crate::api::layer_status::PlatformLayerStatus;
use ConditionType as C;
use Truth::{False, True, Unknown};

const GENERATION: i64 = 3;

fn now() -> Time {
    Time("2026-01-02T03:04:05Z".parse().unwrap())
}

fn layer(phase: Phase, conditions: Vec<(C, Truth, Reason)>) -> PlatformLayer {
    let mut layer: PlatformLayer = serde_json::from_value(serde_json::json!({
        "apiVersion": "lamina.dev/v1alpha1", "kind": "PlatformLayer", "metadata": {"name": "l", "generation": GENERATION},
        "spec": {"version": "1", "purpose": "Packaging", "connectorRef": {"name": "lab"},
                 "osLayer": {"name": "w", "version": "1", "disk": {"name": "w"}}},
    }))
    .unwrap();
    let drafts = conditions.into_iter().map(|(t, s, r)| Draft::new(t, s, r, "words")).collect();
    let mut status = PlatformLayerStatus {
        observed_generation: Some(GENERATION),
        phase: Some(phase),
        conditions: merge(&[], drafts, Some(GENERATION), &now()),
        ..Default::default()
    };
    if phase == Phase::Finalized {
        let frozen = serde_json::json!([{"version": "1", "disk": "u", "finalizedAt": now()}]);
        status.versions = serde_json::from_value(frozen.clone()).unwrap();
        status.current = serde_json::from_value(frozen[0].clone()).unwrap();
    }
    layer.status = Some(status);
    layer
}

fn assert_wrong(layer: &PlatformLayer, words: &str) {
    let wrong = check_layer(layer);
    assert!(wrong.iter().any(|w| w.contains(words)), "expected {words:?} in {wrong:?}");
}

#[test]
fn the_states_of_the_table_are_good() {
    for (phase, conditions) in [
        (Phase::Pending, vec![(C::Ready, False, Reason::CreatingDisk), (C::Reconciling, True, Reason::CreatingDisk)]),
        (
            Phase::Pending,
            vec![(C::Ready, False, Reason::WaitingForSlot), (C::Reconciling, True, Reason::WaitingForSlot)],
        ),
        (
            Phase::MachineRunning,
            vec![(C::Ready, False, Reason::InstallSoftware), (C::ActionRequired, True, Reason::InstallSoftware)],
        ),
        (Phase::Pending, vec![(C::Ready, False, Reason::DiskLost), (C::Stalled, True, Reason::DiskLost)]),
        (Phase::Finalized, vec![(C::Ready, True, Reason::Finalized)]),
        (Phase::Pending, vec![(C::Ready, False, Reason::Suspended), (C::Suspended, True, Reason::Suspended)]),
        (Phase::Finalized, vec![(C::Ready, True, Reason::Finalized), (C::Suspended, True, Reason::Suspended)]),
        (
            Phase::Finalized,
            vec![
                (C::Ready, True, Reason::Finalized),
                (C::Reconciling, True, Reason::ConnectorNotReady),
                (C::ConnectorReady, False, Reason::ConnectorNotReady),
            ],
        ),
        (Phase::DiskCreated, vec![(C::Ready, False, Reason::Deleting), (C::Reconciling, True, Reason::Deleting)]),
    ] {
        assert_eq!(check_layer(&layer(phase, conditions.clone())), Vec::<String>::new(), "{conditions:?}");
    }
}

#[test]
fn each_inconsistency_is_named() {
    use Phase::{Finalized, Pending};
    let creating = (C::Ready, False, Reason::CreatingDisk);
    for (phase, conditions, words) in [
        (Pending, vec![(C::Reconciling, True, Reason::CreatingDisk)], "Ready is missing"),
        (Pending, vec![(C::Ready, Unknown, Reason::CreatingDisk)], "Ready is Unknown"),
        (Pending, vec![creating], "neither Reconciling"),
        (Pending, vec![creating, (C::Reconciling, False, Reason::CreatingDisk)], "Reconciling is there, but False"),
        (
            Pending,
            vec![
                (C::Ready, False, Reason::DiskLost),
                (C::Stalled, True, Reason::DiskLost),
                (C::Reconciling, True, Reason::CreatingDisk),
            ],
            "Reconciling and Stalled together",
        ),
        (
            Pending,
            vec![
                creating,
                (C::Reconciling, True, Reason::CreatingDisk),
                (C::ActionRequired, True, Reason::StartMachine),
            ],
            "ActionRequired is not alone",
        ),
        (
            Pending,
            vec![creating, (C::Stalled, True, Reason::DiskLost)],
            "Ready says CreatingDisk, Stalled says DiskLost",
        ),
        (Pending, vec![(C::Ready, True, Reason::Finalized)], "Ready=True in a phase other than Finalized"),
        (
            Finalized,
            vec![(C::Ready, True, Reason::Finalized), (C::Stalled, True, Reason::DiskLost)],
            "Ready is True while Stalled",
        ),
        (
            Finalized,
            vec![(C::Ready, True, Reason::Finalized), (C::Reconciling, True, Reason::CreatingDisk)],
            "Ready=True while Reconciling",
        ),
        (Pending, vec![(C::Ready, False, Reason::RebootPending)], "Ready may not bear reason RebootPending"),
        (Pending, vec![creating, creating], "Ready is there twice"),
        (Pending, vec![creating, (C::Suspended, True, Reason::Suspended)], "Suspended, but Ready says CreatingDisk"),
    ] {
        assert_wrong(&layer(phase, conditions), words);
    }
}

#[test]
fn generations_and_words_are_checked() {
    let good = || {
        layer(
            Phase::Pending,
            vec![(C::Ready, False, Reason::CreatingDisk), (C::Reconciling, True, Reason::CreatingDisk)],
        )
    };
    let changed = |change: fn(&mut PlatformLayerStatus)| {
        let mut layer = good();
        change(layer.status.as_mut().unwrap());
        layer
    };
    assert_wrong(&changed(|s| s.conditions[0].observed_generation = Some(2)), "is about generation Some(2)");
    assert_wrong(&changed(|s| s.observed_generation = Some(4)), "observedGeneration Some(4) of Some(3)");
    assert_wrong(&changed(|s| s.conditions[0].reason = "Oops".into()), "unknown reason Oops");
    assert_wrong(&changed(|s| s.conditions[0].type_ = "Failed".into()), "unknown condition Failed");
    assert_wrong(&changed(|s| s.conditions[0].message.clear()), "Ready says nothing");
    assert_wrong(&changed(|s| s.conditions[0].message = "ü".repeat(5000)), "Ready says 10000 bytes");
    assert_wrong(&changed(|s| s.phase = None), "no phase");
    assert_wrong(
        &changed(|s| {
            s.operation = serde_json::from_value(serde_json::json!({"step": "CreateDisk", "progress": 7})).unwrap()
        }),
        "steps of 5",
    );
    assert!(
        check_layer(&changed(|s| *s = PlatformLayerStatus { observed_generation: Some(-1), ..Default::default() }))
            .is_empty()
    );
}

fn connector(conditions: Vec<(C, Truth, Reason)>) -> Connector {
    let drafts = conditions.into_iter().map(|(t, s, r)| Draft::new(t, s, r, "words")).collect();
    serde_json::from_value(serde_json::json!({
        "apiVersion": "lamina.dev/v1alpha1", "kind": "Connector", "metadata": {"name": "lab", "generation": GENERATION},
        "spec": {"endpoints": ["https://x"], "credentialsSecretRef": {"name": "s"}, "template": "t", "storageRepository": "s"},
        "status": {"observedGeneration": GENERATION, "conditions": merge(&[], drafts, Some(GENERATION), &now())},
    }))
    .unwrap()
}

/// All checks as they stand when the one at `failed` does not pass.
fn checks(failed: usize, reason: Reason) -> Vec<(C, Truth, Reason)> {
    let state = |at: usize| match at.cmp(&failed) {
        std::cmp::Ordering::Less => (True, Reason::Passed),
        std::cmp::Ordering::Equal => (False, reason),
        std::cmp::Ordering::Greater => (Unknown, Reason::NotChecked),
    };
    C::CHECKS.into_iter().enumerate().map(|(at, t)| (t, state(at).0, state(at).1)).collect()
}

#[test]
fn later_checks_of_a_connector_are_unknown() {
    let stalled = [(C::Ready, False, Reason::TemplateNotFound), (C::Stalled, True, Reason::TemplateNotFound)];
    let good: Vec<_> = stalled.into_iter().chain(checks(3, Reason::TemplateNotFound)).collect();
    assert_eq!(check_connector(&connector(good.clone())), Vec::<String>::new());

    let unread = good.iter().filter(|c| c.0 != C::Stalled).copied().collect();
    let neither = "Ready is not True, and neither Reconciling nor Stalled is there";
    assert_eq!(check_connector(&connector(unread)), [neither]);

    let stale = good.iter().map(|c| if c.0 == C::StorageReady { (c.0, True, Reason::Passed) } else { *c }).collect();
    assert_eq!(check_connector(&connector(stale)), ["StorageReady is True/Passed after TemplateValid failed"]);

    let ready =
        |failed, reason| std::iter::once((C::Ready, True, Reason::Connected)).chain(checks(failed, reason)).collect();
    assert_eq!(check_connector(&connector(ready(6, Reason::PoolOperatorMissing))), Vec::<String>::new());
    assert_eq!(
        check_connector(&connector(ready(5, Reason::ToolsISONotFound))),
        ["Ready=True, but ToolsISOFound is not"]
    );
}

#[test]
fn a_status_that_stays_keeps_its_time() {
    let earlier = Time("2025-01-01T00:00:00Z".parse().unwrap());
    let drafts = |ready| {
        vec![
            Draft::new(C::Ready, ready, Reason::CreatingDisk, "a"),
            Draft::new(C::Reconciling, True, Reason::CreatingDisk, "b"),
        ]
    };
    let old = merge(&[], drafts(False), Some(1), &earlier);
    let new = merge(&old, drafts(True), Some(2), &now());
    assert_eq!([&new[0].last_transition_time, &new[1].last_transition_time], [&now(), &earlier]);
    assert_eq!(new[1].observed_generation, Some(2));
    assert_eq!(merge(&old, drafts(False), Some(1), &now()), old, "an equal world gives an equal status");
}

#[test]
fn no_message_is_longer_than_the_api_server_takes() {
    let words = format!("x{}", "ü".repeat(40_000));
    let [c] =
        merge(&[], vec![Draft::new(C::Ready, False, Reason::CreatingDisk, words)], Some(1), &now()).try_into().unwrap();
    assert_eq!(c.message.len(), 8191, "cut between characters");
}

#[test]
fn rows_of_the_table_are_sound() {
    for reason in Reason::ALL {
        let on = reason.on();
        assert_eq!(Reason::parse(reason.as_str()), Some(*reason));
        assert_eq!(
            on.contains(&C::Stalled),
            reason.fault() == Some(Fault::Stalled),
            "{reason}: Stalled is a fault class and a condition"
        );
        assert!(
            reason.fault() != Some(Fault::Stalled) || on.contains(&C::Ready),
            "{reason}: Ready must be able to say it"
        );
        assert!(
            reason.fault() != Some(Fault::Stalled) || !reason.remedy().is_empty(),
            "{reason}: somebody must know what to do"
        );
        assert!(
            !on.contains(&C::ActionRequired) || !reason.remedy().is_empty(),
            "{reason}: the person must know what to do"
        );
        assert!(!on.is_empty() || !reason.remedy().is_empty(), "{reason}: a finding has a remedy");
    }
}
