//! The config disk in the walk, row by row. Longer than 350 lines: a table of rows, each with what it needs to be told.

use std::time::Duration;

use serde_json::json;

use super::tests::{disk, machine, made, want};
use super::*;
use crate::api::reason::Reason as R;
use crate::domain::identity::{BOOT, CONTENT, FILLED, NONCE, WIPED};
use crate::domain::observed::*;

fn steps() -> Want {
    want(json!({"steps": [{"name": "a", "command": "rem"}], "finalize": {"approved": "1"}, "integrity": "Skip"}))
}

fn config_disk(want: &Want) -> Disk {
    let content = crate::domain::config::content(want, &made(machine()), "n");
    let keys = [(NONCE, "n"), (CONTENT, content.as_str()), (FILLED, "true")];
    let keys = keys.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    Disk { name: "pvs 1 config".into(), keys, ..disk("c") }
}

fn making(making: Making) -> Flight {
    Flight { source: "m".into(), sent: Sent::Unknown, ..Flight::unbegun(making) }
}

/// Set up, with the config disk as it should be before the first start.
fn with_config(want: &Want, m: Machine) -> Observed {
    let mut m = m;
    m.keys.insert(NONCE.into(), "n".into());
    m.config = Some("cvbd".into());
    let mut seen = made(m);
    seen.config = Sight::Found(config_disk(want));
    seen.records.config = Some(DiskRecord { uuid: "c".into(), version: "1".into(), ..DiskRecord::default() });
    seen.flights = vec![making(Making::CreateConfig), making(Making::StartMachine), making(Making::FreezeDisk)];
    seen
}

/// Each row of the config disk before the first start; with steps or without, the second way for a report is there.
#[test]
fn no_machine_starts_before_its_config_disk_is_whole() {
    let w = steps();
    let step = |change: &dyn Fn(&mut Observed)| {
        let mut seen = with_config(&w, machine());
        change(&mut seen);
        decide(&w, &seen).step
    };
    let c = |seen: &mut Observed, change: &dyn Fn(&mut Disk)| {
        if let Sight::Found(c) = &mut seen.config {
            change(c);
        }
    };
    assert_eq!(step(&|_| ()), Step::RecordIntent(Making::StartMachine));
    for sight in [Sight::Absent, Sight::Lost] {
        assert_eq!(
            step(&|s| s.config = sight.clone()),
            Step::RecordIntent(Making::CreateConfig),
            "it holds nobody's work"
        );
    }
    assert_eq!(step(&|s| s.config = Sight::CannotLook), Step::Nothing);
    assert!(
        matches!(step(&|s| c(s, &|c| c.name = "lamina-op".into())), Step::RecordIntent(_)),
        "named when it is recorded"
    );
    assert_eq!(step(&|s| s.records.config = None), Step::Record);
    assert!(matches!(step(&|s| c(s, &|c| drop(c.keys.remove(FILLED)))), Step::FillConfig { .. }));
    assert!(matches!(step(&|s| s.files = Some("others".into())), Step::FillConfig { .. }), "written since");
    assert_eq!(step(&|s| s.files = Some("true".into())), Step::RecordIntent(Making::StartMachine));
    let detached = |s: &mut Observed| {
        if let Sight::Found(m) = &mut s.machine {
            m.config = None;
        }
    };
    assert!(matches!(step(&detached), Step::AttachConfig { .. }));
    let stale = |s: &mut Observed| c(s, &|c| drop(c.keys.insert(CONTENT.into(), "old".into())));
    let detach = Step::DetachDisk { vbd: "cvbd".into() };
    assert_eq!(step(&stale), detach, "made of an older spec");
    // A start that may be on its way takes what is there; one that is over, or surely is not, waits for the right disk.
    let begun = |sent: Sent, quiet: Quiet| {
        step(&|s| {
            stale(s);
            let start = s.flights.iter_mut().find(|f| f.making == Making::StartMachine).expect("a start");
            let step = Making::StartMachine;
            let (opid, source, agent_start) = (start.opid.clone(), start.source.clone(), "0".to_owned());
            start.intent = Some(Intent { step, opid, source, agent_start, boot: None });
            (start.sent, start.quiet) = (sent.clone(), quiet);
        })
    };
    for (sent, quiet) in [(Sent::Never, Quiet::No), (Sent::Over, Quiet::No), (Sent::Unknown, Quiet::Twice)] {
        assert_eq!(begun(sent, quiet), detach);
    }
    for sent in [Sent::Once, Sent::Unknown] {
        assert_eq!(begun(sent, Quiet::Once), Step::Nothing);
    }
    let both = |s: &mut Observed| {
        stale(s);
        detached(s);
    };
    assert!(matches!(step(&both), Step::WipeConfig { .. }));
    // A stream that is over and still shows is no news.
    let dom0 = |leaked| {
        let holder = Holder::ControlDomain { leaked };
        Attachment { vbd: "dom0".into(), holder, attached: true, writable: true }
    };
    let seen = |leaked: bool| {
        let mut seen = with_config(&w, machine());
        c(&mut seen, &|c| {
            c.keys.remove(FILLED);
            c.attachments = vec![dom0(leaked)];
        });
        decide(&w, &seen)
    };
    assert!(matches!(seen(false).say, Say::Working(R::SettingUpMachine, _)), "{:?}", seen(false));
    assert!(matches!(seen(true).step, Step::FreeFromDom0 { .. }));
    // A new machine on a disk that was worked on: what ran is not run again.
    let worked = |s: &mut Observed| {
        s.config = Sight::Lost;
        s.records.disk.as_mut().expect("a record").worked = true;
        s.records.machine.as_mut().expect("a record").agent_start = Some("0".into());
    };
    assert_eq!(step(&worked), Step::RecordIntent(Making::StartMachine));
    let plain = want(json!({}));
    let mut seen = with_config(&plain, machine());
    seen.config = Sight::Absent;
    seen.records.config = None;
    assert_eq!(decide(&plain, &seen).step, Step::RecordIntent(Making::CreateConfig));
}

/// What the spec says meanwhile is for nobody: it takes the machine as it was when it was asked for.
#[test]
fn a_start_that_is_queued_leaves_its_machine_alone() {
    let w = steps();
    let mut seen = with_config(&w, Machine { drift: vec![Setting::AfterReboot], ..machine() });
    assert!(matches!(decide(&w, &seen).step, Step::SetUp { .. }));
    let start = seen.flights.iter_mut().find(|f| f.making == Making::StartMachine).expect("a start");
    start.task = TaskSight::Pending { progress: 0.0 };
    assert_eq!(decide(&w, &seen).step, Step::Nothing);
}

/// After the halt: read, judged, and gone before the freeze, its content first.
#[test]
fn the_config_disk_is_read_and_then_goes_before_the_freeze() {
    use crate::api::layer_status::{StepState, StepStatus};
    use crate::domain::config::Read;
    let w = steps();
    let halted = |state| {
        let mut m = machine();
        m.keys.insert(BOOT.into(), "7@now".into());
        m.start_time = "now".into();
        let steps = vec![StepStatus { name: "a".into(), state, exit_code: Some(3) }];
        m.read = Some(Read { boot: "7@now".into(), steps, ..Read::default() });
        let mut seen = with_config(&w, m);
        seen.records.disk.as_mut().expect("a record").worked = true;
        seen
    };
    let with = |seen: &Observed, change: &dyn Fn(&mut Machine)| {
        let mut seen = seen.clone();
        if let Sight::Found(m) = &mut seen.machine {
            change(m);
        }
        decide(&w, &seen)
    };
    let good = halted(StepState::Succeeded);
    let read = Step::ReadConfig { machine: "m".into(), disk: "c".into() };
    assert_eq!(with(&good, &|m| m.read = None).step, read);
    assert_eq!(
        with(&good, &|m| m.read.as_mut().expect("read").boot = "6@then".into()).step,
        read,
        "of an earlier boot"
    );
    assert!(matches!(with(&halted(StepState::Failed), &|_| ()).say, Say::Person(R::FixStep, _)));
    let Say::Person(R::FixStep, words) = with(&halted(StepState::Pending), &|_| ()).say else {
        panic!("a person's turn")
    };
    assert!(
        words.contains("goes on with it by itself") && !words.contains("answer") && !words.contains("log"),
        "{words}"
    );
    assert!(matches!(with(&good, &|_| ()).step, Step::BlockStart { .. }));
    let blocked = |m: &mut Machine| m.start_blocked = true;
    assert!(matches!(with(&good, &blocked).step, Step::EndConfig { .. }));
    let ending = |m: &mut Machine| {
        blocked(m);
        m.config_done = true;
    };
    assert_eq!(with(&good, &ending).step, Step::DetachDisk { vbd: "cvbd".into() });
    let detached = |m: &mut Machine| {
        ending(m);
        m.config = None;
    };
    assert!(matches!(with(&good, &detached).step, Step::WipeConfig { .. }));
    let mut wiped = good.clone();
    if let Sight::Found(c) = &mut wiped.config {
        c.keys.insert(WIPED.into(), "true".into());
    }
    assert!(matches!(with(&wiped, &detached).step, Step::DestroyConfig { .. }));
    let mut gone = good.clone();
    gone.config = Sight::Absent;
    assert_eq!(with(&gone, &detached).step, Step::RecordIntent(Making::FreezeDisk));
    // Lost, never read: only a person can say.
    gone.config = Sight::Lost;
    if let Sight::Found(m) = &mut gone.machine {
        m.read = None;
    }
    let Say::Person(R::ConfigDiskLost, words) = decide(&w, &gone).say else { panic!("approved before it was known") };
    assert!(words.contains("'7@now' (that the version is approved already says nothing of this)"), "{words}");
    assert!(words.contains(r#""answeredBoot":"7@now""#), "{words}");
    let answered = |boot: &str, approved: Option<&str>| {
        let (answered, approved) = (Some(boot.to_owned()), approved.map(str::to_owned));
        decide(&Want { answered, approved, ..w.clone() }, &gone)
    };
    assert!(matches!(answered("6@then", Some("1")).say, Say::Person(R::ConfigDiskLost, _)), "of an earlier boot");
    assert!(matches!(answered("7@now", None).say, Say::Person(R::ApproveFinalize, _)), "an answer is no approval");
    assert!(matches!(answered("7@now", Some("1")).step, Step::BlockStart { .. }));
}

/// While the guest is at its steps nothing is a person's to do, until one of them stops it.
/// Each host of a pool counts its own domains, so a boot may have the number of one before it.
#[test]
fn a_mark_that_stood_before_a_boot_is_not_of_it() {
    use crate::domain::config::Read;
    use crate::domain::report;
    use lamina_guest::report::Report;
    let (nonce, mark, domid) = ("n".to_owned(), "g1".to_owned(), "7".to_owned());
    let said = Report { nonce, boot: mark.clone(), domid, sealed: true, ..Report::default() };
    let mut m = machine();
    m.keys = [(NONCE, "n"), (BOOT, "7@first")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    (m.guest_boot, m.start_time) = (Some(mark.clone()), "first".into());
    m.read = Some(Read { boot: "7@first".into(), marks: vec![mark.clone()], ..Read::default() });
    assert_eq!(report::counts(&said, &m), Ok(()));
    m.keys.insert(BOOT.into(), "7@second".into());
    m.start_time = "second".into();
    let earlier = |m: &Machine| report::counts(&said, m).expect_err("of the first boot").reason;
    assert_eq!(earlier(&m), R::ReportOfEarlierBoot, "before that one was read back");
    m.read = Some(Read { boot: "7@second".into(), earlier: vec![mark], ..Read::default() });
    assert_eq!(earlier(&m), R::ReportOfEarlierBoot);
}

/// What was told to go on after its failure is no step to answer for.
#[test]
fn the_step_that_stopped_is_told_and_not_one_that_failed_before() {
    use lamina_guest::steps::progress::{Doing, Step as Ran};
    use lamina_guest::steps::record::State;
    let w = want(json!({"steps": [
        {"name": "a", "command": "rem", "onFailure": "Continue"}, {"name": "b", "command": "rem"},
    ]}));
    let mut m = machine();
    (m.power, m.doing, m.runs_long) = (Power::Running, Some(Doing::Stopped), true);
    m.keys.insert(BOOT.into(), m.boot_id());
    let failed = |name: &str, code| Ran { name: name.into(), state: State::Failed, exit_code: Some(code) };
    m.progress = vec![failed("a", 5), failed("b", 1603)];
    let Say::Person(R::FixStep, words) = decide(&w, &with_config(&w, m.clone())).say else { panic!("a person's turn") };
    assert!(words.contains("step 'b'") && words.contains("exit code 1603"), "{words}");
    m.progress.truncate(1);
    let Say::Person(R::InstallSoftware, words) = decide(&w, &with_config(&w, m)).say else {
        panic!("no step to answer for")
    };
    assert!(words.contains("stopped before all its steps were done"), "{words}");
}

#[test]
fn a_machine_that_runs_its_steps_says_which() {
    use lamina_guest::steps::progress::{Doing, Step as Ran};
    use lamina_guest::steps::record::State;
    let w = steps();
    let said = |state, doing: Doing| {
        let mut m = machine();
        m.power = Power::Running;
        m.keys.insert(BOOT.into(), m.boot_id());
        m.progress = vec![Ran { name: "a".into(), state, exit_code: Some(5) }];
        (m.doing, m.runs_long) = (doing.into(), true);
        decide(&w, &with_config(&w, m)).say
    };
    let Say::Working(R::RunningSteps, words) = said(State::Running, Doing::Steps) else { panic!("it works") };
    assert!(words.contains("step 'a', 1 of 1"), "{words}");
    let Say::Person(R::FixStep, words) = said(State::Failed, Doing::Stopped) else { panic!("a person's turn") };
    assert!(words.contains("'a'") && words.contains("exit code 5") && !words.contains("restartToken"), "{words}");
    let Say::Working(R::RunningSteps, words) = said(State::Succeeded, Doing::Steps) else { panic!("it works") };
    assert!(words.contains("all steps are done"), "{words}");
    for (doing, told) in [
        (Doing::Done, "all its steps are done. For what they leave"),
        (Doing::Damaged, "cannot use the config disk"),
        (Doing::Findings, "its check found what needs a person"),
        (Doing::Failed, "was refused something"),
    ] {
        let Say::Person(R::InstallSoftware, words) = said(State::Succeeded, doing) else { panic!("a person's turn") };
        assert!(words.contains(told) && !words.contains("nothing was heard"), "{words}");
    }
    for (doing, told) in [(Doing::Rebooting, "restarted"), (Doing::Finalizing, "all steps are done")] {
        let Say::Working(R::RunningSteps, words) = said(State::Succeeded, doing) else {
            panic!("it goes on by itself")
        };
        assert!(words.contains(told), "{words}");
    }
    for doing in [Doing::Steps, Doing::Rebooting, Doing::Finalizing] {
        let mut m = Machine { power: Power::Running, silent: true, doing: Some(doing), ..machine() };
        m.keys.insert(BOOT.into(), m.boot_id());
        let Say::Person(R::GuestSilent, words) = decide(&w, &with_config(&w, m)).say else { panic!("it hangs") };
        assert!(words.contains("Reboot it from inside"), "{words}");
    }
    let unheard = |runs_long| {
        let mut m = Machine { power: Power::Running, runs_long, ..machine() };
        m.keys.insert(BOOT.into(), m.boot_id());
        decide(&w, &with_config(&w, m)).say
    };
    assert!(matches!(unheard(false), Say::Working(R::RunningSteps, _)), "Windows takes its time to come up");
    let Say::Person(R::InstallSoftware, words) = unheard(true) else { panic!("nobody else does it") };
    assert!(words.contains("nothing was heard of its steps"), "{words}");
    assert!(words.contains("copied into the machine"), "there is no program to start: {words}");
    let mut m = Machine { power: Power::Running, runs_long: true, ..machine() };
    m.keys.insert(BOOT.into(), m.boot_id());
    let seen = Observed { program: Some("hash".into()), ..with_config(&w, m) };
    let Say::Person(_, words) = decide(&w, &seen).say else { panic!("nobody else does it") };
    assert!(words.contains("lamina-guest.exe on its drive LAMINA"), "{words}");
}

/// Nobody waits for ever for a service that is gone; what it leaves to a person has no bound.
#[test]
fn what_a_service_does_by_itself_has_a_bound() {
    use lamina_guest::steps::progress::{Doing, Step as Ran};
    use lamina_guest::steps::record::State;
    let w = want(
        json!({"steps": [{"name": "a", "command": "rem", "timeout": "1h"}, {"name": "b", "command": "rem", "timeout": "2h"}]}),
    );
    let bound = |doing: Option<Doing>, first| {
        let progress = vec![Ran { name: "a".into(), state: first, exit_code: None }];
        let m = Machine { doing, progress, ..machine() };
        crate::domain::config::may_take(&w, &m, Duration::from_secs(600)).map(|t| t.as_secs())
    };
    assert_eq!(bound(Some(Doing::Steps), State::Running), Some(3600 + 600));
    assert_eq!(bound(Some(Doing::Steps), State::Succeeded), Some(7200 + 600), "the next one");
    assert!(bound(Some(Doing::Finalizing), State::Succeeded) > Some(6 * 3600));
    for doing in [
        None,
        Some(Doing::Stopped),
        Some(Doing::Damaged),
        Some(Doing::Done),
        Some(Doing::Findings),
        Some(Doing::Failed),
    ] {
        assert_eq!(bound(doing, State::Succeeded), None);
    }
}

/// Whatever the guest is to be given is in it.
#[test]
fn another_manifest_or_program_is_another_content() {
    use crate::domain::config::content;
    let (w, seen) = (steps(), made(machine()));
    let plain = content(&w, &seen, "n");
    assert_eq!(plain, content(&steps(), &seen, "n"));
    let with = |change: &dyn Fn(&mut Want, &mut Observed)| {
        let (mut w, mut seen) = (w.clone(), seen.clone());
        change(&mut w, &mut seen);
        content(&w, &seen, "n")
    };
    let others = [
        content(&w, &seen, "m"),
        with(&|_, s| s.subject = "2".into()),
        with(&|w, _| w.kms_rearm = true),
        with(&|w, _| w.finalize = crate::domain::want::FinalizePolicy::OnShutdown),
        with(&|w, _| w.steps[0].retry = true),
        with(&|_, s| s.program = Some("hash".into())),
    ];
    assert!(others.iter().all(|other| *other != plain), "{others:?}");
}
