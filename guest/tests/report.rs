//! The report: what is written is what is read, and nothing that a guest writes does harm.

use std::collections::BTreeMap;

use lamina_guest::checks::check;
use lamina_guest::memory::Windows;
use lamina_guest::report::{LONGEST_FILE, MOST_WRITTEN, Report, Unreadable, XENSTORE};
use proptest::prelude::*;

fn report() -> Report {
    Report {
        nonce: "n1".to_owned(),
        boot: "b1".to_owned(),
        domid: "7".to_owned(),
        block_finalize: Some(2),
        findings: vec![("RunOncePending".to_owned(), "HKLM und".to_owned()), ("Odd".to_owned(), String::new())],
        rearms_before: Some(3),
        rearms_left: Some(2),
        rearmed: true,
        booted_at: Some(1_700_000_000),
        written_at: Some(1_700_000_100),
        sealed: true,
    }
}

fn xenstore(report: &Report) -> BTreeMap<String, String> {
    report.lines().into_iter().map(|(k, v)| (format!("{XENSTORE}{k}"), v)).collect()
}

#[test]
fn both_channels_carry_the_same() {
    let report = report();
    assert_eq!(Report::from_xenstore(&xenstore(&report)), Some(report.clone()));
    assert_eq!(Report::from_json(&report.to_json()), Ok(report));
    assert_eq!(Report::from_xenstore(&BTreeMap::from([("vm-data/lamina/boot".to_owned(), "b".to_owned())])), None);
}

/// Windows speaks the language of its user, and `xenstore_client` takes its arguments through a code page, which would break the seal.
#[test]
fn what_is_not_ascii_is_written_as_its_code_point() {
    let told = vec![("Ödd".to_owned(), "Zugriff verweigert für 🦀".to_owned())];
    let lines = Report { findings: told, ..report() }.lines();
    assert_eq!(lines["findings/0"], r"\u{d6}dd Zugriff verweigert f\u{fc}r \u{1f980}");
    let read = Report::read(lines.iter().map(|(k, v)| (k.as_str(), v.as_str()))).unwrap();
    assert_eq!(read.findings[0].1, r"Zugriff verweigert f\u{fc}r \u{1f980}");
    assert!(read.sealed);
}

/// The protocol as it was agreed on: names of keys, form of a finding, and the seal over all others.
#[test]
fn the_lines_are_these() {
    let lines = report().lines();
    let without: Vec<_> = lines.iter().filter(|(k, _)| *k != "sealed").map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(
        without,
        [
            "block-finalize=2",
            "boot=b1",
            "booted-at=1700000000",
            "domid=7",
            "findings/0=RunOncePending HKLM und",
            "findings/1=Odd ",
            "nonce=n1",
            "rearmed=true",
            "rearms-before=3",
            "rearms-left=2",
            "written-at=1700000100",
        ]
    );
    assert_eq!(lines["sealed"].len(), 64);
}

#[test]
fn a_changed_a_missing_and_a_foreign_line_break_the_seal() {
    let whole = xenstore(&report());
    for key in whole.keys() {
        let mut cut = whole.clone();
        cut.remove(key);
        assert!(!Report::from_xenstore(&cut).unwrap().sealed, "without {key}");
        let mut changed = whole.clone();
        changed.get_mut(key).unwrap().push('1');
        assert!(!Report::from_xenstore(&changed).unwrap().sealed, "with another {key}");
    }
    let mut more = whole.clone();
    more.insert(format!("{XENSTORE}findings/2"), "Late x".to_owned());
    assert!(!Report::from_xenstore(&more).unwrap().sealed);
}

/// Lines and bits of a later program are sealed with the rest, and mean nothing here.
#[test]
fn unknown_lines_are_sealed_and_passed_over() {
    let mut lines = report().lines();
    lines.insert("of-tomorrow".to_owned(), "x".to_owned());
    lines.insert("block-finalize".to_owned(), u64::MAX.to_string());
    let seal = lamina_guest::report::seal(lines.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    lines.insert("sealed".to_owned(), seal.to_uppercase());
    let read = Report::read(lines.iter().map(|(k, v)| (k.as_str(), v.as_str()))).unwrap();
    assert_eq!((read.sealed, read.block_finalize), (true, Some(u64::MAX)));
}

#[test]
fn ten_thousand_findings_are_counted_and_neither_written_nor_kept() {
    let many: Vec<_> = (0..10_000).map(|n| (format!("Odd{n}"), "ü".repeat(4000))).collect();
    let written = Report { findings: many.clone(), ..report() };
    let lines = written.lines();
    assert_eq!(lines.keys().filter(|k| k.starts_with("findings/")).count(), MOST_WRITTEN);
    assert_eq!(lines["findings/63"], "MoreFindings 9937 more");
    assert!(lines.values().all(|v| v.len() <= 2048) && written.to_json().len() < LONGEST_FILE);
    assert!(Report::from_json(&written.to_json()).unwrap().sealed);

    // And from one who keeps to no limit.
    let hostile: BTreeMap<_, _> =
        many.iter().enumerate().map(|(n, (r, d))| (format!("{XENSTORE}findings/{n}"), format!("{r} {d}"))).collect();
    let read = Report::from_xenstore(&hostile).unwrap();
    assert_eq!((read.findings.len(), read.sealed), (1001, false));
    assert_eq!(read.findings[1], ("Odd1".to_owned(), "ü".repeat(1024)));
    assert_eq!(read.findings[1000], ("MoreFindings".to_owned(), "9000 more".to_owned()));
}

#[test]
fn a_file_that_is_no_report_is_refused_with_its_reason() {
    let whole = report().to_json();
    for cut in 0..whole.len() - 1 {
        let read = Report::from_json(&whole[..cut]);
        assert!(matches!(read, Err(Unreadable::NotLines | Unreadable::NotText)), "cut at {cut}: {read:?}");
    }
    assert_eq!(Report::from_json(&vec![b' '; LONGEST_FILE + 1]), Err(Unreadable::TooLong));
    assert_eq!(Report::from_json(b"{\"nonce\":\"\xFF\"}"), Err(Unreadable::NotText));
    for no_lines in ["", "{}", "[]", "null", r#"{"nonce":1}"#, "{\"nonce\":\"a\"} x", r#"{"findings":{"0":"a"}}"#] {
        assert_eq!(Report::from_json(no_lines.as_bytes()), Err(Unreadable::NotLines), "{no_lines}");
    }
}

#[test]
fn numbers_that_are_none_are_none() {
    for bad in ["", "-1", "1e3", "18446744073709551616", "zwei", "0x2"] {
        let read = Report::read([("block-finalize", bad), ("rearms-before", bad), ("written-at", bad)]).unwrap();
        assert_eq!((read.block_finalize, read.rearms_before, read.written_at), (None, None, None), "{bad}");
    }
    assert_eq!(Report::read([("rearms-before", "4294967296")]).unwrap().rearms_before, None);
}

#[test]
fn what_could_not_be_looked_at_is_in_the_report() {
    let windows = Windows::clean();
    windows.change(|s| s.blind.insert("the processes".to_owned()));
    let mut told = Report::default();
    told.tell(&check(&windows));
    assert!(!told.findings.is_empty() && told.findings.iter().all(|(reason, _)| reason == "CouldNotLook"));
}

proptest! {
    /// Whatever is written can be read back sealed, within the limits; and texts cannot forge other lines.
    #[test]
    fn any_report_survives(nonce in "\\PC*", findings in prop::collection::vec((".*", ".*"), 0..70), number in any::<Option<u64>>()) {
        let report = Report { nonce, findings, block_finalize: number, ..Report::default() };
        let lines = report.lines();
        prop_assert!(lines.values().all(|v| v.bytes().all(|b| (b' '..=b'~').contains(&b)) && v.len() <= 2048));
        let read = Report::from_json(&report.to_json()).unwrap();
        prop_assert!(read.sealed);
        prop_assert_eq!(read.block_finalize, number);
        prop_assert_eq!(read.findings.len(), report.findings.len().min(MOST_WRITTEN));
        prop_assert_eq!(read.lines(), lines);
    }

    /// Nothing that a guest puts into its store or file is ever more than a report without a seal, or none.
    #[test]
    fn any_rubbish_is_read(keys in prop::collection::btree_map(".*", ".*", 0..20), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let below: BTreeMap<_, _> = keys.iter().map(|(k, v)| (format!("{XENSTORE}{k}"), v.clone())).collect();
        prop_assert!(Report::from_xenstore(&below).is_none_or(|r| !r.sealed));
        prop_assert!(Report::from_json(&bytes).map_or(true, |r| !r.sealed));
    }
}
