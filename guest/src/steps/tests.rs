//! The engine over a disk that tears and a machine that dies at every moment.

use std::cell::RefCell;

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::engine::{Action, Answer, MOST_RUNS, Outcome, Stop, answer, begin, boot, end, next};
use super::record::{Boot, Record, State};
use super::*;
use crate::disk::Damage;

fn step(name: &str, more: serde_json::Value) -> Step {
    let mut json = serde_json::json!({"name": name, "command": "rem"});
    json.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    serde_json::from_value(json).expect("a step")
}

fn boot_of(n: u32) -> Boot {
    Boot { id: format!("boot-{n}"), began: u64::from(n) * 1000, domid: Some(n.to_string()) }
}

fn record(steps: &[Step]) -> Record {
    let mut record = Record::new("nonce", steps, b"[]");
    boot(&mut record, boot_of(1));
    record
}

fn run(steps: &[Step], record: &mut Record, n: usize, outcome: Outcome) {
    begin(record, n, 10);
    end(steps, record, n, outcome, 20);
}

/// What a user writes, with its defaults, and what it may not be.
#[test]
fn steps_are_read_with_defaults_and_refused_with_reasons() {
    let read = |json: serde_json::Value| serde_json::from_value::<Step>(json);
    let plain = read(serde_json::json!({"name": "a", "powershell": "exit 0"})).expect("a step");
    assert_eq!((plain.success_codes, plain.timeout, plain.retry), (vec![0, 3010], 3600, false));
    assert_eq!((plain.reboot, plain.on_failure), (Reboot::IfRequested, OnFailure::Stop));
    assert!(read(serde_json::json!({"name": "a"})).is_err(), "none of the three");

    let refused = |more: serde_json::Value| check(&[step("a", more)]).expect_err("a refusal");
    let file = |name: &str| refused(serde_json::json!({"files": [name]}));
    for bad in ["", "a/b", "..", "a\\b", "a:b", "~step.ps1", "con.txt", "LPT1", "a.", "ä", &"x".repeat(101)] {
        assert_eq!(file(bad), Invalid::FileName("a".to_owned(), bad.to_owned()));
    }
    assert!(matches!(refused(serde_json::json!({"files": ["a.exe", "A.EXE"]})), Invalid::FileTwice(_, _)));
    assert!(matches!(refused(serde_json::json!({"command": "a\nb"})), Invalid::Command(_)));
    assert!(matches!(refused(serde_json::json!({"command": "x".repeat(8001)})), Invalid::Command(_)));
    assert_eq!(refused(serde_json::json!({"successCodes": [1i64 << 32]})), Invalid::Code("a".to_owned(), 1 << 32));
    assert!(matches!(refused(serde_json::json!({"timeout": 0})), Invalid::Timeout(_)));
    assert!(matches!(refused(serde_json::json!({"timeout": 86_401})), Invalid::Timeout(_)));
    let runs = |file: &str, files: &[&str]| {
        let json = serde_json::json!({"name": "a", "file": file, "files": files});
        check(&[serde_json::from_value(json).expect("a step")])
    };
    assert_eq!(runs("Setup.EXE", &["setup.exe"]), Ok(()));
    assert!(matches!(runs("setup.exe", &[]), Err(Invalid::NoSuchFile(_, _))));
    assert!(matches!(runs("setup.zip", &["setup.zip"]), Err(Invalid::Extension(_, _))));
    for bad in ["", "A", "-a", "a-", "a.b", "a b", "nul", "com1"] {
        assert_eq!(check(&[step(bad, serde_json::json!({}))]), Err(Invalid::Name(bad.to_owned())));
    }
    let same = step("a", serde_json::json!({}));
    assert_eq!(check(&[same.clone(), same.clone()]), Err(Invalid::Twice("a".to_owned())));
    assert_eq!(check(&vec![same; 33]), Err(Invalid::TooManySteps(33)));
}

#[test]
fn codes_have_windows_32_bits_signed_or_not() {
    assert_eq!(windows_code(0xC000_0005), Some(-1_073_741_819));
    assert_eq!(windows_code(-1), windows_code(0xFFFF_FFFF));
    assert_eq!((windows_code(1 << 32), windows_code(-(1 << 31) - 1)), (None, None));
    let steps = [step("a", serde_json::json!({"successCodes": [0xFFFF_FFFFu32]}))];
    let mut record = record(&steps);
    run(&steps, &mut record, 0, Outcome::Code(-1));
    assert_eq!((record.steps[0].state, next(&steps, &record)), (State::Succeeded, Action::Done));
    let mut record = self::record(&steps);
    run(&steps, &mut record, 0, Outcome::Code(0));
    assert_eq!(record.steps[0].state, State::Failed, "0 is not named");
}

/// From a guest that keeps to no rule: whoever reads it takes no other number for it.
#[test]
fn a_code_that_no_windows_has_is_none() {
    for (told, code) in
        [("Failed 4294967296", None), ("Failed one", None), ("Failed -1073741819", Some(-1_073_741_819))]
    {
        let store = std::collections::BTreeMap::from([("vm-data/lamina/steps/a".to_owned(), told.to_owned())]);
        let read = super::progress::read(&store);
        assert_eq!((read[0].state, read[0].exit_code), (State::Failed, code), "{told}");
    }
    let slot = |code: &str| {
        let whole = serde_json::to_string(&record(&[step("a", serde_json::json!({}))])).expect("JSON");
        let body = whole.replace("\"exitCode\":null", &format!("\"exitCode\":{code}"));
        let seal: String = Sha256::digest(&body).iter().map(|b| format!("{b:02x}")).collect();
        Record::newest([Some(format!("{seal}\n{body}\n").as_bytes()), None]).map(|r| r.steps[0].exit_code)
    };
    assert_eq!(slot("7"), Ok(Some(7)));
    assert_eq!(slot("4294967296"), Err(Damage::Garbled("record-0.txt".to_owned())));
}

#[test]
fn a_failure_stops_or_goes_on_as_the_step_says() {
    let steps = [
        step("a", serde_json::json!({"onFailure": "Continue"})),
        step("b", serde_json::json!({})),
        step("c", serde_json::json!({})),
    ];
    let mut record = record(&steps);
    assert_eq!(next(&steps, &record), Action::Run(0));
    run(&steps, &mut record, 0, Outcome::TimedOut);
    assert_eq!((record.steps[0].state, next(&steps, &record)), (State::TimedOut, Action::Run(1)));
    run(&steps, &mut record, 1, Outcome::Code(1603));
    let stop = Stop::Failed { step: "b".to_owned(), code: Some(1603) };
    assert_eq!(stop.to_string(), "step 'b' failed with exit code 1603: mend it, then say `again` or `skip`");
    assert_eq!(next(&steps, &record), Action::Stopped(stop.clone()));
    boot(&mut record, boot_of(2));
    assert_eq!(next(&steps, &record), Action::Stopped(stop), "a reboot mends nothing");

    assert!(!answer(&steps, &mut record, "c", Answer::Again), "it did not stop");
    assert!(answer(&steps, &mut record, "b", Answer::Again));
    assert_eq!(next(&steps, &record), Action::Run(1));
    run(&steps, &mut record, 1, Outcome::NotStarted("no such file".to_owned()));
    assert_eq!(record.steps[1].why.as_deref(), Some("no such file"));
    assert!(answer(&steps, &mut record, "b", Answer::Skip));
    assert_eq!(next(&steps, &record), Action::Run(2));
}

#[test]
fn a_reboot_is_made_once_and_only_where_it_is_wanted() {
    let after = |more: serde_json::Value, outcome: Outcome| {
        let steps = [step("a", more), step("b", serde_json::json!({}))];
        let mut record = record(&steps);
        run(&steps, &mut record, 0, outcome);
        let first = next(&steps, &record);
        boot(&mut record, boot_of(1));
        assert_eq!(next(&steps, &record), first, "the service came back, the machine did not go down");
        boot(&mut record, boot_of(2));
        (first, next(&steps, &record))
    };
    let rebooted = (Action::Reboot(0), Action::Run(1));
    let straight = (Action::Run(1), Action::Run(1));
    let reboot = |r: &str| serde_json::json!({"reboot": r, "onFailure": "Continue"});
    assert_eq!(after(reboot("Always"), Outcome::Code(0)), rebooted);
    assert_eq!(after(reboot("Always"), Outcome::Code(1)), rebooted, "after a failure that is passed over, too");
    assert_eq!(after(reboot("IfRequested"), Outcome::Code(0)), straight);
    assert_eq!(after(reboot("IfRequested"), Outcome::Code(3010)), rebooted);
    assert_eq!(after(reboot("IfRequested"), Outcome::Code(1641)), rebooted);
    assert_eq!(after(reboot("Never"), Outcome::Code(3010)), straight);
}

/// A boot is known by its guid: a host that restarts counts its domains anew, and clocks are set.
#[test]
fn a_boot_counts_once() {
    let mut record = record(&[]);
    let boots = |record: &mut Record, id: &str, began: u64, domid: Option<&str>| {
        boot(record, Boot { id: id.to_owned(), began, domid: domid.map(str::to_owned) });
        record.boots
    };
    assert_eq!(boots(&mut record, "boot-1", 90_000, None), 1, "the clock was set, and xenstore does not answer");
    assert_eq!(record.boot.as_ref().map(|b| b.began), Some(1000));
    assert_eq!(boots(&mut record, "boot-2", 1000, Some("1")), 2);
}

#[test]
fn a_step_that_restarts_windows_by_itself_ends_too() {
    let steps = [step("a", serde_json::json!({"retry": true}))];
    let mut record = record(&steps);
    for n in 0..MOST_RUNS {
        assert_eq!(next(&steps, &record), Action::Run(0));
        begin(&mut record, 0, 10);
        boot(&mut record, boot_of(n + 2));
        assert_eq!(record.steps[0].state, State::Interrupted);
    }
    assert_eq!(next(&steps, &record), Action::Stopped(Stop::TooOften { step: "a".to_owned() }));

    let steps = [step("a", serde_json::json!({}))];
    let mut record = self::record(&steps);
    begin(&mut record, 0, 10);
    boot(&mut record, boot_of(2));
    assert_eq!(next(&steps, &record), Action::Stopped(Stop::Interrupted { step: "a".to_owned() }));
}

/// A disk with two slots, and a machine that dies after so many more moments. A moment is half a write, the other half, or half a run.
struct World {
    slots: [Option<Vec<u8>>; 2],
    life: u32,
    /// Each begun run of a step, in order.
    begun: Vec<usize>,
}

struct Died;

impl World {
    fn moment(&mut self) -> Result<(), Died> {
        self.life = self.life.checked_sub(1).ok_or(Died)?;
        Ok(())
    }

    fn save(&mut self, record: &mut Record) -> Result<(), Died> {
        record.generation += 1;
        let slot = (record.generation % 2) as usize;
        let whole = record.bytes().expect("JSON");
        self.moment()?;
        self.slots[slot] = Some(whole[..whole.len() / 2].to_vec());
        self.moment()?;
        self.slots[slot] = Some(whole);
        Ok(())
    }

    /// One boot: until it dies, or there is nothing more to do in it.
    fn live(&mut self, steps: &[Step], n: u32) -> Result<Action, Died> {
        let [even, odd] = &self.slots;
        let mut record = Record::newest([even.as_deref(), odd.as_deref()]).expect("one slot is whole at any time");
        boot(&mut record, boot_of(n));
        self.save(&mut record)?;
        loop {
            let Action::Run(i) = next(steps, &record) else {
                return Ok(next(steps, &record));
            };
            begin(&mut record, i, 0);
            self.save(&mut record)?;
            self.begun.push(i);
            self.moment()?;
            end(steps, &mut record, i, Outcome::Code(if i == 1 { 3010 } else { 0 }), 0);
            self.save(&mut record)?;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever moment it dies at, and however often: no step is begun twice without `retry`, none is skipped, and their order is kept.
    #[test]
    fn no_death_runs_a_step_twice_or_skips_one(
        kinds in prop::collection::vec((any::<bool>(), 0usize..3), 1..6),
        lives in prop::collection::vec(0u32..30, 0..8),
    ) {
        let reboot = ["Always", "IfRequested", "Never"];
        let steps: Vec<Step> = kinds.iter().enumerate()
            .map(|(n, (retry, r))| step(&format!("s{n}"), serde_json::json!({"retry": retry, "reboot": reboot[*r]})))
            .collect();
        let first = Record::new("nonce", &steps, b"[]").bytes().expect("JSON");
        let mut world = World { slots: [Some(first), None], life: 0, begun: vec![] };
        let mut last = None;
        for (n, life) in (1..).zip(lives.iter().copied().chain(std::iter::repeat_n(1000, 20))) {
            world.life = life;
            if let Ok(action) = world.live(&steps, n) {
                let over = !matches!(action, Action::Reboot(_));
                last = Some(action);
                if over {
                    break;
                }
            }
        }
        prop_assert!(world.begun.is_sorted(), "out of order: {:?}", world.begun);
        for (n, step) in steps.iter().enumerate() {
            let runs = world.begun.iter().filter(|b| **b == n).count();
            prop_assert!(runs <= if step.retry { MOST_RUNS as usize } else { 1 }, "'{}' ran {runs} times", step.name);
        }
        match last {
            Some(Action::Done) => {
                let mut distinct = world.begun.clone();
                distinct.dedup();
                prop_assert_eq!(distinct, (0..steps.len()).collect::<Vec<_>>(), "none is skipped");
            }
            // Only what was running is asked about, and everything before it ran.
            Some(Action::Stopped(Stop::Interrupted { step })) => {
                prop_assert!(steps.iter().any(|s| s.name == step && !s.retry));
                let at = steps.iter().position(|s| s.name == step).expect("a step");
                let mut distinct = world.begun.clone();
                distinct.dedup();
                prop_assert!(distinct == (0..=at).collect::<Vec<_>>() || distinct == (0..at).collect::<Vec<_>>());
            }
            Some(Action::Stopped(Stop::TooOften { .. })) => {}
            other => prop_assert!(false, "it did not end: {other:?}"),
        }
    }
}

#[test]
fn a_slot_is_whole_or_it_is_nothing() {
    let whole = record(&[step("a", serde_json::json!({}))]);
    let bytes = whole.bytes().expect("JSON");
    assert_eq!(Record::newest([Some(&bytes), None]), Ok(whole.clone()));
    let turned = RefCell::new(bytes.clone());
    for at in 0..bytes.len() - 1 {
        turned.borrow_mut()[at] ^= 1;
        assert_eq!(
            Record::newest([None, Some(&turned.borrow())]),
            Err(Damage::Garbled("record-0.txt".to_owned())),
            "byte {at}"
        );
        turned.borrow_mut()[at] ^= 1;
    }
    assert_eq!(Record::newest([None, None]), Err(Damage::Missing("record-0.txt")));
}
