//! What comes back on a config disk, one damage after the other: each is told by its own words, and nothing is frozen on its word.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use lamina::api::PlatformLayer;
use lamina::api::condition::ConditionType;
use lamina::demo::person::{Deed, person, person_at};
use lamina::sim::faults::{Effect, Fault, Target};
use lamina::sim::guest::{Guest, Program, program};
use lamina::xapi::wire::Failure;
use lamina_guest::disk::build::{Contents, build};
use lamina_guest::disk::fat::Volume;
use lamina_guest::disk::{LAYER, Layer, Purpose, RECORDS, REPORT, edit};
use lamina_guest::report::seal;
use serde_json::json;

use super::steps::{GET, PUT, answer, bytes, seeing};
use crate::common::rig::{Rig, ready, says, status};
use crate::common::unattended::{SECRET, files, image, served, two_steps};

type Lines = BTreeMap<String, String>;
/// What somebody does to the disk at the end of a boot. The second is the disk as its first boot found it.
type Harm = fn(&mut [u8], &[u8]);

/// At the end of each boot the next harm is done.
fn harmed(inner: Program, harms: Vec<Harm>) -> Program {
    let whole = Arc::new(Mutex::new(Vec::new()));
    program(move |g: Guest| {
        let (inner, whole) = (Arc::clone(&inner), Arc::clone(&whole));
        let harm = harms.get(usize::try_from(g.boot).expect("a small number") - 1).copied();
        async move {
            if g.boot == 1 {
                *whole.lock().expect("no panic") = bytes(&g);
            }
            let exit = inner(g.clone()).await;
            let mut disk = bytes(&g);
            harm.inspect(|harm| harm(&mut disk, &whole.lock().expect("no panic")));
            g.write_disk(1, 0, &disk).expect("it is writable");
            exit
        }
    })
}

fn report(disk: &[u8]) -> Vec<u8> {
    let files = edit::files(disk).expect("our volume");
    files.into_iter().find(|(path, _)| path == REPORT).expect("a report").1
}

/// Other lines, under a seal that fits them.
fn sealed(disk: &mut [u8], change: impl FnOnce(&mut Lines)) {
    let mut lines: Lines = serde_json::from_slice(&report(disk)).expect("lines");
    change(&mut lines);
    lines.insert("sealed".to_owned(), seal(lines.iter().map(|(k, v)| (k.as_str(), v.as_str()))));
    edit::put(disk, REPORT, &serde_json::to_vec(&lines).expect("JSON")).expect("room");
}

/// Seven hours later.
fn late(lines: &mut Lines, key: &str) {
    let time: u64 = lines[key].parse().expect("a time");
    lines.insert(key.to_owned(), (time + 7 * 3600).to_string());
}

/// As many findings as are written, each as long as it may be: more than a key of the machine takes.
fn wordy(lines: &mut Lines) {
    lines.extend((0..64).map(|n| (format!("findings/{n}"), format!("Odd{n} {}", "\\".repeat(2000)))));
}

/// Waits, after a boot each, for Ready to say this reason and these words, and for IntegrityVerified; in the place of IntegrityUnknown stands the
/// doubt's own reason.
async fn until_told<'a>(
    rig: &Rig,
    name: &str,
    expected: impl Iterator<Item = (&'a str, &'a str, &'a str)>,
) -> PlatformLayer {
    let mut last = None;
    for (n, (reason, verified, words)) in expected.enumerate() {
        let token = n.checked_sub(1).map(|n| n.to_string());
        let blocked = rig
            .until(name, words, |l| {
                l.status.as_ref().and_then(|s| s.machine.as_ref()).is_some_and(|m| m.restart_token == token)
                    && ready(l).is_some_and(|(r, m)| r == reason && m.contains(words))
            })
            .await;
        assert!(status(&blocked).versions.is_empty());
        let found = &status(&blocked).integrity.unwrap_or_default().findings;
        let doubt = found.first().map(|f| f.reason.clone()).unwrap_or_default();
        let says = says(&blocked, ConditionType::IntegrityVerified).replace("IntegrityUnknown", &doubt);
        assert_eq!(says, verified, "{words}");
        last = Some(blocked);
        rig.patch(name, json!({"machine": {"restartToken": n.to_string()}})).await;
    }
    last.expect("one at least")
}

/// Without xenstore the disk alone carries the report. No two in a row are told alike, or the second would be taken for the first.
#[tokio::test(flavor = "multi_thread")]
async fn each_doubt_about_the_disks_report_has_its_own_reason_and_none_counts() {
    let rig = Rig::new().await;
    let cases: [(Harm, &str, &str); 12] = [
        (
            |d, _| {
                let whole = report(d);
                edit::put(d, REPORT, &whole[..whole.len() / 2]).expect("room");
            },
            "Unknown/ReportGarbled",
            "'report.json' cannot be understood",
        ),
        (|d, _| edit::put(d, REPORT, &[0xFF; 9]).expect("room"), "Unknown/ReportNotText", "'report.json' is not UTF-8"),
        (
            |d, _| edit::put(d, REPORT, &vec![b' '; (1 << 20) + 1]).expect("room"),
            "Unknown/ReportTooLong",
            "'report.json' is longer",
        ),
        (
            |d, _| sealed(d, |l| drop(l.insert("boot".into(), "earlier".into()))),
            "Unknown/ReportOfEarlierBoot",
            "it is of an earlier boot",
        ),
        (
            |d, _| sealed(d, |l| drop(l.insert("nonce".into(), "stale".into()))),
            "Unknown/ReportOfOtherMachine",
            "another machine's nonce",
        ),
        (
            |d, _| {
                let text = String::from_utf8(report(d)).expect("text").replace("written-at", "written-by");
                edit::put(d, REPORT, text.as_bytes()).expect("room");
            },
            "Unknown/ReportUnsealed",
            "its seal does not fit",
        ),
        (
            |d, _| sealed(d, |l| ["booted-at", "written-at"].iter().for_each(|k| late(l, k))),
            "Unknown/ReportTimeWrong",
            "off the machine's start",
        ),
        (|d, _| edit::remove(d, REPORT).expect("gone"), "Unknown/NoReport", "the guest wrote no report"),
        (
            |d, _| {
                sealed(d, |l| {
                    l.insert("block-finalize".into(), "8192".into());
                    l.insert("of-tomorrow".into(), "x".into());
                });
            },
            "False/FindingsOpen",
            "Bit8192",
        ),
        (
            |d, _| sealed(d, |l| l.extend((0..10_000).map(|n| (format!("findings/{n}"), format!("Odd{n} seen"))))),
            "False/FindingsOpen",
            "and 27 more, see status.integrity.findings",
        ),
        (|d, _| sealed(d, wordy), "False/FindingsOpen", "and 7 more, see status.integrity.findings"),
        (
            |d, _| {
                edit::remove(d, REPORT).expect("gone");
                let free = usize::try_from(Volume::open(d).expect("a volume").free()).expect("a small disk");
                edit::put(d, "filler.bin", &vec![b'x'; free]).expect("room");
            },
            "Unknown/ConfigDiskFull",
            "the volume is full",
        ),
    ];
    rig.guest("doubt", harmed(person(vec![vec![Deed::Finalize]]), cases.iter().map(|(harm, ..)| *harm).collect()));
    let _controller = rig.run().await;
    rig.layer("doubt", json!({"finalize": {"approved": "1"}})).await;
    until_told(&rig, "doubt", cases.iter().map(|(_, verified, words)| ("FixIntegrity", *verified, *words))).await;
}

/// Beside a clean one in xenstore, which would do by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_is_too_long_to_keep_contradicts_a_clean_one() {
    let rig = Rig::new().await;
    files(&rig).await;
    rig.guest("long", harmed(served(), vec![|d, _| sealed(d, wordy)]));
    let _controller = rig.run().await;
    rig.layer("long", two_steps()).await;
    rig.approve("long", "1").await;
    let blocked = rig.until_reason("long", "FixIntegrity").await;
    let findings = status(&blocked).integrity.expect("a verdict").findings;
    assert!(findings.iter().any(|f| f.reason == "ReportsDiffer"), "{findings:#?}");
}

/// The report comes through xenstore; what the steps came to is on the disk alone. What the guest makes of
/// the disk that the boot before left says whether there is a report at all.
#[tokio::test(flavor = "multi_thread")]
async fn each_damage_of_the_disk_has_its_own_reason_and_leaves_the_steps_unknown() {
    let rig = Rig::new().await;
    files(&rig).await;
    let cases: [(Harm, &str, &str, &str); 5] = [
        (|d, _| d.fill(0xFF), "ConfigDiskUnreadable", "True/Verified", "no FAT volume of Lamina's any more"),
        (
            |d, _| {
                let (layer, none) = (other(), BTreeMap::new());
                let theirs =
                    build(&Contents { layer: &layer, steps: &[], files: &none, program: None }).expect("a disk");
                d[..theirs.len()].copy_from_slice(&theirs);
            },
            "ConfigDiskReplaced",
            "True/Verified",
            "made for another machine",
        ),
        (
            |d, whole| {
                d.copy_from_slice(whole);
                let label = d.windows(11).rposition(|w| w == b"LAMINA     ").expect("its label");
                d[label] = b'X';
            },
            "ConfigDiskReplaced",
            "True/Verified",
            "not labelled LAMINA",
        ),
        (
            |d, whole| {
                d.copy_from_slice(whole);
                RECORDS.iter().for_each(|slot| edit::remove(d, slot).expect("gone"));
            },
            "StepsUnknown",
            "Unknown/NoReport",
            "record-0.txt is gone",
        ),
        (
            |d, whole| {
                d.copy_from_slice(whole);
                edit::put(d, LAYER, b"{").expect("room");
            },
            "ConfigDiskUnreadable",
            "True/Verified",
            "'layer.json' cannot be understood",
        ),
    ];
    // A guest that is given back the first disk asks a person, as xenstore knows what was begun.
    let boots = vec![vec![Deed::Serve, Deed::Finalize, Deed::PowerOff]];
    rig.guest("harmed", harmed(person_at(image(0), boots), cases.iter().map(|(harm, ..)| *harm).collect()));
    let _controller = rig.run().await;
    let mut more = two_steps();
    more["finalize"] = json!({"approved": "1"});
    rig.layer("harmed", more).await;
    let last =
        until_told(&rig, "harmed", cases.iter().map(|(_, reason, verified, words)| (*reason, *verified, *words)));
    assert!(!format!("{:?}", status(&last.await)).contains(SECRET));
}

/// Larger than what is moved through memory: read for ever, it would never end.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_somebody_resized_is_damaged_and_says_so() {
    let rig = Rig::new().await;
    files(&rig).await;
    rig.guest("grown", served());
    let refused = Effect::Refuse(Failure::new("SR_BACKEND_FAILURE_453", ["x"]));
    rig.sim.pool.faults.add(Fault { target: Target::Method(GET.to_owned()), effect: refused, times: None });
    let _controller = rig.run().await;
    rig.layer("grown", two_steps()).await;
    let halted = rig.until_reason("grown", "StorageError").await;
    let c = status(&halted).config_disk.expect("its record").uuid;
    let vdi = rig.hands.disk(&c).await.expect("the disk").r;
    rig.hands.call("VDI.resize", json!([vdi, (300u64 << 20).to_string()])).await;
    rig.sim.pool.faults.clear();
    let asked = rig.until_reason("grown", "ConfigDiskUnreadable").await;
    for word in [c.as_str(), "'grown 1 config'", "somebody made it larger"] {
        assert!(ready(&asked).is_some_and(|(_, m)| m.contains(word)), "{word}: {asked:#?}");
    }
    rig.patch("grown", answer(&asked)).await;
    rig.until_finalized("grown", "1").await;
    rig.hands.assert_tidy().await;
}

fn other() -> Layer {
    Layer {
        layer: "other".to_owned(),
        namespace: "lab".to_owned(),
        version: "1".to_owned(),
        purpose: Purpose::Packaging,
        nonce: "other".to_owned(),
        kms_rearm: false,
        finalize_on_done: true,
    }
}

/// Whatever the answer looked like, the guest finds a whole disk.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_fails_is_made_again_until_the_disk_is_whole() {
    let rig = Rig::new().await;
    files(&rig).await;
    let on_it = Arc::new(Mutex::new(Vec::new()));
    rig.guest("import", seeing(served(), Arc::clone(&on_it)));
    let storage = |code: &str| Failure::new(code, ["x"]);
    // What it was refused with before stands until it is done: each has its own words.
    let effects = [
        (Effect::Refuse(storage("SR_BACKEND_FAILURE_453")), ("StorageError", "SR_BACKEND_FAILURE_453")),
        (Effect::CutBody(50), ("PoolError", "VDI_IO_ERROR")),
        (Effect::FailTask(storage("SR_BACKEND_FAILURE_78")), ("StorageError", "SR_BACKEND_FAILURE_78")),
        (Effect::Drop, ("ReplyLost", "looked at before anything is repeated")),
    ];
    let expected = effects.clone().map(|(_, told)| told);
    for (effect, _) in effects {
        rig.sim.pool.faults.add(Fault { target: Target::Method(PUT.to_owned()), effect, times: Some(1) });
    }
    let _controller = rig.run().await;
    rig.layer("import", two_steps()).await;
    let told = Mutex::new(Vec::new());
    let halted = rig
        .until("import", "a whole disk", |l| {
            let (reason, message) = ready(l).unwrap_or_default();
            let one = expected.iter().position(|(r, words)| *r == reason && message.contains(words));
            let mut told = told.lock().expect("no panic");
            if let Some(one) = one.filter(|one| !told.contains(one)) {
                told.push(one);
            }
            reason == "ApproveFinalize"
        })
        .await;
    assert_eq!(told.into_inner().expect("no panic"), [0, 1, 2, 3], "{expected:?}");
    assert_eq!(rig.calls(PUT), expected.len() as u64 + 1);
    let files = on_it.lock().expect("no panic").clone();
    assert!(files.iter().any(|(path, b)| path == "files/tools/answers.ini" && b == SECRET.as_bytes()));
    let told = format!("{:?} {:?}", status(&halted), rig.events("import").await);
    assert!(!told.contains(SECRET), "{told}");
}

/// Two machines would tear it.
#[tokio::test(flavor = "multi_thread")]
async fn a_config_disk_that_another_machine_has_is_not_started_with() {
    let rig = Rig::new().await;
    files(&rig).await;
    rig.guest("shared", served());
    let _controller = rig.run().await;
    let mut more = two_steps();
    more["machine"] = json!({"powerOn": false});
    rig.layer("shared", more).await;
    let made = rig.until_reason("shared", "StartMachine").await;
    let c = rig.hands.disk(&status(&made).config_disk.expect("a config disk").uuid).await.expect("C");
    let (_, vbd) = rig.hands.stranger("thief", &c.r).await;
    rig.patch("shared", json!({"machine": {"powerOn": true}})).await;
    let stalled = rig.until_reason("shared", "ForeignDisk").await;
    for word in ["thief", c.uuid(), "'shared 1 config'"] {
        assert!(ready(&stalled).is_some_and(|(_, m)| m.contains(word)), "{word}: {stalled:?}");
    }
    assert_eq!(rig.calls("Async.VM.start"), 0);
    rig.hands.call("VBD.destroy", json!([vbd])).await;
    rig.until_reason("shared", "ApproveFinalize").await;
}

/// Somebody looks at it in a machine of their own, once ours is off: it is neither read nor wiped under their hands.
#[tokio::test(flavor = "multi_thread")]
async fn a_config_disk_in_use_elsewhere_is_waited_for_by_name() {
    let rig = Rig::new().await;
    files(&rig).await;
    rig.guest("looked", served());
    let refused = Effect::Refuse(Failure::new("SR_BACKEND_FAILURE_453", ["x"]));
    rig.sim.pool.faults.add(Fault { target: Target::Method(GET.to_owned()), effect: refused, times: None });
    let _controller = rig.run().await;
    rig.layer("looked", two_steps()).await;
    let halted = rig.until_reason("looked", "StorageError").await;
    let c = rig.hands.disk(&status(&halted).config_disk.expect("a config disk").uuid).await.expect("C");
    let (vm, vbd) = rig.hands.stranger("thief", &c.r).await;
    rig.hands.call("VM.start", json!([vm, false, false])).await;
    let stalled = rig.until_reason("looked", "ForeignDisk").await;
    for word in ["thief", c.uuid(), "xe vbd-destroy"] {
        assert!(ready(&stalled).is_some_and(|(_, m)| m.contains(word)), "{word}: {stalled:?}");
    }
    rig.sim.pool.faults.clear();
    rig.hands.call("VM.hard_shutdown", json!([vm])).await;
    rig.hands.call("VBD.destroy", json!([vbd])).await;
    rig.until_reason("looked", "ApproveFinalize").await;
}
