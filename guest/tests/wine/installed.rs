//! Installed, at work at a boot, and gone without a trace.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use lamina_guest::disk::{LAYER, Layer, PROGRAM, Purpose, RECORDS, STEPS, file_path, log_path};
use lamina_guest::steps::record::{Record, State};
use lamina_guest::steps::{OnFailure, Reboot, Step, What};

use super::prefix::Wine;
use super::told::{store, with_store};

const SERVICE: &str = r"HKLM\SYSTEM\CurrentControlSet\Services\LaminaGuest";
const PLACE: &str = "Program Files/Lamina/lamina-guest.exe";
const ICON: &str = "users/Public/Desktop/Shutdown For Finalize.lnk";

fn installed(wine: &Wine) -> [bool; 3] {
    [wine.c(PLACE).exists(), wine.c(ICON).exists(), wine.run("reg", &["query", SERVICE]).code == 0]
}

#[test]
#[ignore = "needs wine: run guest/test-wine.sh"]
fn what_is_installed_is_no_finding_and_goes_without_a_trace() {
    let wine = Wine::new();
    for _ in 0..2 {
        let ended = wine.lamina(&["install"]);
        assert_eq!(ended.code, 0, "{}{}", ended.said, ended.complained);
        assert_eq!(installed(&wine), [true; 3]);
    }
    let start = wine.done("reg", &["query", SERVICE, "/v", "Start"]);
    assert!(start.contains("0x2"), "it starts at each boot: {start}");
    let image = wine.done("reg", &["query", SERVICE, "/v", "ImagePath"]);
    assert!(image.contains(r#""C:\Program Files\Lamina\lamina-guest.exe" service"#), "{image}");
    let icon: Vec<u8> = "shutdown-for-finalize --window".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let link = fs::read(wine.c(ICON)).expect("the icon");
    assert!(link.windows(icon.len()).any(|bytes| bytes == icon), "what the icon starts");
    assert_eq!(wine.findings(), [""; 0]);

    let ended = wine.lamina(&["uninstall"]);
    assert_eq!(ended.code, 0, "{}{}", ended.said, ended.complained);
    assert_eq!(installed(&wine), [false; 3]);
    assert!(!wine.c("Program Files/Lamina").exists());
    assert_eq!(wine.findings(), [""; 0], "no pending rename of our own");
    let trace = wine.registry();
    assert!(!trace.to_ascii_lowercase().contains("lamina"), "a key is left");
}

/// Called by the installed program itself, which cannot delete its own file and does not have Windows do it at the next boot either.
#[test]
#[ignore = "needs wine: run guest/test-wine.sh"]
fn the_installed_program_says_what_it_leaves() {
    let wine = Wine::new();
    assert_eq!(wine.lamina(&["install"]).code, 0);
    let said = wine.done(r"C:\Program Files\Lamina\lamina-guest.exe", &["uninstall"]);
    assert!(said.contains(r"C:\Program Files\Lamina"), "{said}");
    assert_eq!(installed(&wine), [true, false, false]);
    assert_eq!(wine.findings(), [""; 0]);
}

pub fn layer(finalize_on_done: bool) -> Layer {
    Layer {
        layer: "office".to_owned(),
        namespace: "default".to_owned(),
        version: "1".to_owned(),
        purpose: Purpose::Packaging,
        nonce: "n-1".to_owned(),
        kms_rearm: false,
        finalize_on_done,
    }
}

fn step(name: &str, what: What) -> Step {
    Step {
        name: name.to_owned(),
        what,
        success_codes: vec![0, 3010],
        reboot: Reboot::Never,
        timeout: 60,
        on_failure: OnFailure::Continue,
        retry: false,
        files: Vec::new(),
    }
}

/// As the controller makes it, but for its file system, which wine takes from Linux.
pub fn fill(disk: &Path, layer: &Layer, steps: &[Step]) {
    let json = serde_json::to_vec(steps).expect("steps");
    let record = Record::new(&layer.nonce, steps, &json);
    fs::write(disk.join(LAYER), serde_json::to_vec(layer).expect("a layer")).expect("the layer");
    fs::write(disk.join(record.slot()), record.bytes().expect("a record")).expect("the record");
    fs::write(disk.join(STEPS), json).expect("the steps");
    for step in steps {
        fs::create_dir_all(disk.join(file_path(&step.name, ""))).expect("a directory for the step");
    }
}

/// The newest record on the disk.
fn record(disk: &Path) -> Record {
    let slots = RECORDS.map(|slot| fs::read(disk.join(slot)).ok());
    Record::newest(slots.each_ref().map(Option::as_deref)).expect("a record")
}

/// Waits for the service to end, as the service manager sees it.
fn served(wine: &Wine) {
    let patience = Instant::now() + Duration::from_secs(90);
    while !wine.done("sc", &["query", "LaminaGuest"]).contains("STOPPED") {
        assert!(Instant::now() < patience, "the service does not end");
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
#[ignore = "needs wine: run guest/test-wine.sh"]
fn the_service_runs_the_steps_keeps_their_logs_and_ends_what_takes_too_long() {
    let wine = Wine::new();
    let disk = wine.config_disk();
    with_store(&wine, "XenServer");
    // The second starts a program that outlives its own shell: with the step it ends too.
    fs::copy(wine.c("helper.exe"), wine.c("mscorsvw.exe")).expect("a copy");
    let slow = Step {
        timeout: 3,
        ..step("slow", What::Command(r"start C:\mscorsvw.exe hold & C:\mscorsvw.exe hold".to_owned()))
    };
    let steps = [
        step("hello", What::Command(r"echo made > C:\made.txt & echo it is said & exit 3010".to_owned())),
        slow,
        step("fails", What::Command("exit 7".to_owned())),
        step("asks", What::Command(r"C:\helper.exe ask".to_owned())),
        step("loud", What::Command(r"C:\helper.exe print 150000".to_owned())),
    ];
    fill(&disk, &layer(false), &steps);
    assert_eq!(wine.lamina(&["install"]).code, 0);
    wine.done("sc", &["start", "LaminaGuest"]);
    served(&wine);

    let record = record(&disk);
    let ended: Vec<_> = record.steps.iter().map(|ran| (ran.state, ran.exit_code)).collect();
    assert_eq!(
        ended,
        [
            (State::Succeeded, Some(3010)),
            (State::TimedOut, None),
            (State::Failed, Some(7)),
            (State::Failed, Some(9)),
            (State::Succeeded, Some(0)),
        ],
        "{record:?}"
    );
    let boot = record.boot.map(|boot| boot.id);
    assert!(boot.is_some() && store(&wine).get("vm-data/lamina/boot") == boot.as_ref(), "the mark of this boot");
    assert_eq!(fs::read_to_string(wine.c("made.txt")).expect("what the step made").trim(), "made");
    let log = fs::read_to_string(disk.join(log_path(0, "hello"))).expect("its log");
    assert!(log.contains("it is said"), "{log}");
    let loud = fs::read_to_string(disk.join(log_path(4, "loud"))).expect("its log");
    assert!(loud.starts_with("line 1\r\n") && loud.trim_end().ends_with("line 150000"), "both ends");
    assert!(loud.len() < 1 << 20 && loud.contains("bytes are left out here"), "{} bytes", loud.len());
    assert_eq!(wine.findings(), [""; 0], "mscorsvw.exe is gone with its step");

    // Once each: another boot finds nothing to do.
    wine.end();
    // It begins by itself with the boot, and may be at work already.
    wine.run("sc", &["start", "LaminaGuest"]);
    served(&wine);
    let again = self::record(&disk);
    assert_eq!(again.steps.iter().map(|ran| ran.runs).collect::<Vec<_>>(), [1; 5], "{again:?}");
}

/// The service takes no order to stop: what it is at is waited for.
#[test]
#[ignore = "needs wine: run guest/test-wine.sh"]
fn a_service_at_work_is_waited_for_before_its_program_is_renewed() {
    let wine = Wine::new();
    let disk = wine.config_disk();
    fill(&disk, &layer(false), &[step("slow", What::Command("ping -n 6 127.0.0.1".to_owned()))]);
    assert_eq!(wine.lamina(&["install"]).code, 0);
    wine.done("sc", &["start", "LaminaGuest"]);
    let renewed = wine.lamina(&["install"]);
    assert_eq!(renewed.code, 0, "{}", renewed.complained);
    assert_eq!(record(&disk).steps[0].state, State::Succeeded, "not broken off");
}

/// A person answers, and the service goes on: as itself, whatever becomes of the prompt.
#[test]
#[ignore = "needs wine: run guest/test-wine.sh"]
fn after_an_answer_the_service_goes_on() {
    let wine = Wine::new();
    let disk = wine.config_disk();
    let fails = Step { on_failure: OnFailure::Stop, ..step("fails", What::Command("exit 7".to_owned())) };
    fill(&disk, &layer(false), &[fails, step("next", What::Command("exit 0".to_owned()))]);
    assert_eq!(wine.lamina(&["install"]).code, 0);
    wine.done("sc", &["start", "LaminaGuest"]);
    served(&wine);
    assert_eq!(record(&disk).steps[0].state, State::Failed);
    assert_eq!(wine.lamina(&["answer", "next", "skip"]).code, 2, "it did not stop");
    let said = wine.done(&std::env::var("LAMINA_EXE").expect("the program"), &["answer", "fails", "skip"]);
    assert!(said.contains("the service goes on"), "{said}");
    served(&wine);
    let states: Vec<_> = record(&disk).steps.iter().map(|ran| ran.state).collect();
    assert_eq!(states, [State::Skipped, State::Succeeded]);
}

/// Steps that are left need their service: who comes too early is refused, and nothing is taken away.
#[test]
#[ignore = "needs wine: run guest/test-wine.sh"]
fn from_the_config_disk_it_takes_nothing_away_while_steps_are_left() {
    let wine = Wine::new();
    let disk = wine.config_disk();
    fill(&disk, &layer(false), &[step("hello", What::Command("exit 0".to_owned()))]);
    assert_eq!(wine.lamina(&["install"]).code, 0);
    fs::copy(std::env::var_os("LAMINA_EXE").expect("the program"), disk.join(PROGRAM)).expect("a copy");
    let refused = wine.run(&format!(r"E:\{PROGRAM}"), &["shutdown-for-finalize", "--leave-on"]);
    assert!(refused.code == 2 && refused.complained.contains("step 'hello' is not done"), "{}", refused.complained);
    assert_eq!(installed(&wine), [true; 3]);
    wine.done("sc", &["start", "LaminaGuest"]);
    served(&wine);
    assert_eq!(record(&disk).steps[0].state, State::Succeeded);
}

/// A person started it from the config disk: then nothing of us may stay in the layer.
#[test]
#[ignore = "needs wine: run guest/test-wine.sh"]
fn from_the_config_disk_it_takes_itself_away_before_it_looks() {
    let wine = Wine::new();
    let disk = wine.config_disk();
    fill(&disk, &layer(false), &[]);
    assert_eq!(wine.lamina(&["install"]).code, 0);
    fs::copy(std::env::var_os("LAMINA_EXE").expect("the program"), disk.join(PROGRAM)).expect("a copy");
    let said = wine.done(&format!(r"E:\{PROGRAM}"), &["shutdown-for-finalize", "--leave-on"]);
    assert!(said.contains("Nothing is pending"), "{said}");
    assert_eq!(installed(&wine), [false; 3]);
    let report = fs::read(disk.join(lamina_guest::report::FILE)).expect("a report");
    let report = lamina_guest::report::Report::from_json(&report).expect("a whole report");
    assert!(report.sealed && report.nonce == "n-1" && report.findings[0].0 == "LeftOn", "{report:?}");
    assert!(!wine.registry().to_ascii_lowercase().contains("lamina"), "a key is left");
}

/// What the layer asks for is on its disk, where the machine has no tools. wine cannot rearm: that it was asked is seen by what it cannot tell.
#[test]
#[ignore = "needs wine: run guest/test-wine.sh"]
fn the_config_disk_asks_for_the_rearm() {
    let wine = Wine::new();
    let disk = wine.config_disk();
    fill(&disk, &Layer { kms_rearm: true, ..layer(false) }, &[]);
    let ended = wine.lamina(&["shutdown-for-finalize", "--leave-on"]);
    assert!(ended.code == 2 && ended.said.contains("rearm count"), "{}{}", ended.said, ended.complained);
}
