//! What a process remembers of its own calls: turns, in-flight tests, scans.

use super::*;

const APART: Duration = Duration::from_secs(60);

#[test]
fn an_in_flight_test_needs_two_quiet_looks_apart() {
    let (mut m, now) = (Memory::default(), Instant::now());
    let none = HashSet::new;
    assert_eq!(m.look_in_flight("op", true, none(), now, APART), Quiet::No);
    assert_eq!(m.look_in_flight("op", false, none(), now, APART), Quiet::Once);
    assert_eq!(m.look_in_flight("op", false, none(), now + APART / 2, APART), Quiet::Once);
    assert_eq!(m.look_in_flight("op", true, none(), now + APART, APART), Quiet::No);
    assert_eq!(m.look_in_flight("op", false, none(), now + APART, APART), Quiet::Once);
    assert_eq!(m.look_in_flight("op", false, none(), now + APART * 2, APART), Quiet::Twice);
}

#[test]
fn only_storage_operations_of_the_first_look_hold_it_up() {
    let (mut m, now) = (Memory::default(), Instant::now());
    let old = HashSet::from(["old".to_owned()]);
    assert_eq!(m.look_in_flight("op", false, old, now, APART), Quiet::No);
    let new = HashSet::from(["new".to_owned()]);
    assert_eq!(m.look_in_flight("op", false, new, now, APART), Quiet::Once);
}

#[test]
fn turns_on_a_source_go_in_the_order_of_asking() {
    let mut m = Memory::default();
    assert!(m.take_turn("s", "a") && m.take_turn("s", "a"));
    assert!(!m.take_turn("s", "b") && !m.take_turn("s", "c") && !m.has_turn("s", "b"));
    assert_eq!(m.leave_sources("a"), ["b"]);
    assert!(m.has_turn("s", "b") && !m.has_turn("s", "c") && !m.take_turn("s", "c"));
    assert!(m.take_turn("s", "b"));
    assert_eq!(m.leave_sources("b"), ["c"]);
}

#[test]
fn scans_count_for_one_start_of_xapi() {
    let (mut m, now) = (Memory::default(), Instant::now());
    assert_eq!(m.scans("sr", "1", now, APART), (0, true));
    m.scan_done("sr", "1", now);
    assert_eq!(m.scans("sr", "1", now, APART), (1, false));
    m.scan_done("sr", "1", now + APART);
    assert_eq!(m.scans("sr", "1", now + APART, APART), (2, false));
    assert_eq!(m.scans("sr", "2", now + APART, APART), (0, true));
}
