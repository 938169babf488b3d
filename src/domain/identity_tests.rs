//! Identities, keys and proofs.

use super::*;

fn work() -> Lineage {
    Lineage::Layer { cluster: "c".into(), layer: "l".into(), version: "1".into(), role: Role::Work }
}

#[test]
fn an_operation_id_is_stable_and_lineages_differ() {
    assert_eq!(work().opid(), work().opid());
    assert_eq!(work().opid().0.len(), 16);
    assert_ne!(Opid::of(&["a", "bc"]), Opid::of(&["ab", "c"]));
}

#[test]
fn tags_are_covered_by_prefix_only_at_a_dot() {
    let op = work().opid();
    assert!(op.covers(&op.0) && op.covers(&op.aux("resize")));
    assert!(!op.covers(&format!("{op}0")) && !op.covers("other"));
}

#[test]
fn claimed_keys_prove_and_a_copy_of_them_does_not() {
    let keys = work().keys("u", Some("s"), &[]);
    assert_eq!(prove("c", "u", &keys, false), Proof::ByKeys(Role::Work));
    assert_eq!(prove("c", "copy", &keys, false), Proof::Unclaimed);
    assert_eq!(prove("other", "u", &keys, false), Proof::Foreign);
    let mut cut = keys.clone();
    cut.remove(BASE);
    assert_eq!(prove("c", "u", &cut, false), Proof::Foreign);
    assert_eq!(prove("c", "u", &Keys::new(), true), Proof::ByRecord);
    assert_eq!(prove("c", "u", &Keys::new(), false), Proof::None);
}

#[test]
fn a_recorded_disk_under_our_mark_is_still_proved() {
    let marked = Keys::from([(MAKING.to_owned(), work().mark().to_string())]);
    assert_eq!(prove("c", "u", &marked, true), Proof::ByRecord);
    assert_eq!(prove("c", "child", &marked, false), Proof::Unclaimed);
}

#[test]
fn a_recorded_disk_that_is_back_to_its_sources_keys_is_still_proved() {
    let base = Lineage::Base { cluster: "c".into(), sr: "r".into(), os: "l".into(), os_version: "1".into() };
    let mut born = base.keys("s", None, &[]);
    born.insert(MAKING.to_owned(), work().mark().to_string());
    assert_eq!(prove("c", "u", &born, true), Proof::ByRecord);
    assert_eq!(prove("c", "u", &born, false), Proof::Unclaimed);
    assert_eq!(prove("other", "u", &born, true), Proof::Foreign);
}

#[test]
fn a_recorded_machine_with_one_late_key_is_still_proved() {
    let late = Keys::from([(START_BEFORE.to_owned(), "19700101T00:00:00Z".to_owned())]);
    assert_eq!(prove("c", "u", &late, true), Proof::ByRecord);
    assert_eq!(prove("c", "u", &late, false), Proof::Foreign);
}

#[test]
fn marks_round_trip_and_nonsense_is_foreign() {
    let mark = work().mark();
    let keys = Keys::from([(MAKING.to_owned(), mark.to_string())]);
    assert_eq!(Mark::read(&keys), Some(mark));
    let odd = Keys::from([(MAKING.to_owned(), "???".to_owned())]);
    assert_eq!(prove("c", "u", &odd, false), Proof::Foreign);
}
