//! What a process remembers of its own calls: turns, in-flight tests, scans.

use super::*;

const APART: Duration = Duration::from_secs(60);

#[test]
fn an_in_flight_test_needs_two_quiet_looks_apart() {
    let (mut m, now) = (Memory::default(), Instant::now());
    let mut look = |own: &[&str], now| {
        let own = own.iter().map(|words| (*words).to_owned()).collect();
        (m.look_in_flight("op", own, HashMap::new(), now, APART), m.at_work("op"))
    };
    let busy = (Quiet::No, Some("copy of disk d, the call".to_owned()));
    assert_eq!(look(&["the call", "copy of disk d"], now), busy);
    assert_eq!(look(&[], now), (Quiet::Once, None));
    assert_eq!(look(&[], now + APART / 2), (Quiet::Once, None));
    assert_eq!(look(&["the call", "copy of disk d"], now + APART), busy);
    assert_eq!(look(&[], now + APART), (Quiet::Once, None));
    assert_eq!(look(&[], now + APART * 2), (Quiet::Twice, None));
}

#[test]
fn only_storage_operations_of_the_first_look_hold_it_up() {
    let (mut m, now) = (Memory::default(), Instant::now());
    let mut look = |task: &str| {
        let storage = HashMap::from([(task.to_owned(), format!("{task} on the SR"))]);
        (m.look_in_flight("op", BTreeSet::new(), storage, now, APART), m.at_work("op"))
    };
    assert_eq!(look("old"), (Quiet::No, Some("old on the SR".to_owned())));
    assert_eq!(look("new"), (Quiet::Once, None));
}

#[test]
fn a_task_is_of_whoever_began_it_until_it_is_over() {
    let (mut m, now, task) = (Memory::default(), Instant::now(), Ref("t".into()));
    let step = Step::DestroyMachine { machine: "m".into() };
    m.did("a", &step, Some(task.clone()), now);
    m.did("b", &step, None, now);
    assert_eq!((m.who_began(&task), m.who_began(&Ref("u".into()))), (Some("a"), None));
    m.ended("a", None, None, now, |_| Duration::ZERO);
    assert_eq!(m.who_began(&task), None);
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

/// A second wait is as young as it is, whether or not somebody saw that the first one was over.
#[test]
fn a_wait_that_was_over_begins_anew() {
    let (mut memory, begun) = (Memory::default(), Instant::now());
    let gap = Duration::from_secs(180);
    let at = |secs| begun + Duration::from_secs(secs);
    assert_eq!(memory.waited_since("mark/s/a", at(0), gap), at(0));
    assert_eq!(memory.waited_since("mark/s/a", at(60), gap), at(0), "seen at every look");
    assert_eq!(memory.waited_since("mark/s/b", at(70), gap), at(70), "another one");
    memory.waits_over("mark/s/");
    assert_eq!(memory.waited_since("mark/s/a", at(80), gap), at(80), "gone in between");
    assert_eq!(memory.waited_since("dom0/v", at(90), gap), at(90));
    assert_eq!(memory.waited_since("dom0/v", at(700), gap), at(700), "nobody looked in between");
}

/// What was told of a silent guest outlives the process that told it, until the guest says something new.
#[test]
fn a_guest_is_silent_since_it_said_something() {
    let (mut memory, begun) = (Memory::default(), Instant::now());
    let at = |secs| begun + Duration::from_secs(secs);
    let mut heard = |said: &str, silent, secs| memory.heard("m", said.to_owned(), silent, at(secs));
    assert_eq!(heard("a", false, 0), Some(at(0)));
    assert_eq!(heard("a", false, 9), Some(at(0)));
    assert_eq!(heard("b", true, 10), Some(at(10)));
    memory.removing("m", "0");
    assert_eq!(memory.heard("m", "b".to_owned(), true, at(20)), None);
    assert_eq!(memory.heard("m", "c".to_owned(), true, at(30)), Some(at(30)));
}
