//! The config disk made, written by two FAT drivers, damaged in every way, and read back.

use std::borrow::Cow;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::back::{Back, read};
use super::build::{BuildError, Contents, LARGEST, build, length};
use super::fat::Volume;
use super::*;
use crate::report::Report;
use crate::steps::record::{Record, State};
use crate::steps::{Step, What};

const NONCE: &str = "3f1c9a52-7a1f-4a53-9a46-1f6b8b8f2f10";
/// Where `build` puts the parts of a volume: one reserved sector, two tables, the root directory.
const BOOT_SECTOR: usize = START;
const TABLE: usize = START + SECTOR;

fn layer() -> Layer {
    Layer {
        layer: "golden".to_owned(),
        namespace: "layers".to_owned(),
        version: "1.0".to_owned(),
        purpose: Purpose::Publishing,
        nonce: NONCE.to_owned(),
        kms_rearm: true,
        finalize_on_done: true,
    }
}

fn step(json: serde_json::Value) -> Step {
    serde_json::from_value(json).expect("a step")
}

fn steps() -> Vec<Step> {
    vec![
        step(serde_json::json!({"name": "tools", "file": "Setup.msi", "files": ["Setup.msi", "answers.ini"]})),
        step(serde_json::json!({"name": "tidy-up", "powershell": "Write-Output 'größer'"})),
    ]
}

fn files() -> BTreeMap<(String, String), Vec<u8>> {
    let file = |name: &str, bytes: Vec<u8>| (("tools".to_owned(), name.to_owned()), bytes);
    BTreeMap::from([
        file("Setup.msi", (0..100_000u32).map(|n| n as u8).collect()),
        file("answers.ini", b"yes".to_vec()),
    ])
}

fn image() -> Vec<u8> {
    build(&Contents { layer: &layer(), steps: &steps(), files: &files(), program: Some(b"MZ") }).expect("a disk")
}

/// Where the first cluster of a file is, as the volume's own directory says.
fn record_of(disk: &[u8], name: &[u8; 11]) -> usize {
    disk.windows(11).position(|w| w == name).expect("its entry")
}

fn cluster_of(disk: &[u8], name: &[u8; 11]) -> usize {
    let at = record_of(disk, name) + 26;
    usize::from(u16::from_le_bytes([disk[at], disk[at + 1]]))
}

fn chain(disk: &mut [u8], from: usize, to: u16) {
    disk[TABLE + 2 * from..TABLE + 2 * from + 2].copy_from_slice(&to.to_le_bytes());
}

#[test]
fn a_disk_carries_what_was_put_on_it_and_is_the_same_each_time() {
    let disk = image();
    assert_eq!(disk.len(), 10 << 20, "the least there is");
    assert!(disk == image(), "equal contents give equal bytes");
    let other = Layer { nonce: "other".to_owned(), ..layer() };
    let other = build(&Contents { layer: &other, steps: &[], files: &BTreeMap::new(), program: None }).expect("a disk");
    assert_ne!(disk[440..444], other[440..444], "two machines' disks have two signatures");

    let volume = Volume::open(&disk).expect("a volume");
    assert_eq!(volume.label().as_deref(), Some("LAMINA"));
    let all: BTreeMap<_, _> = edit::files(&disk).expect("its files").into_iter().collect();
    let names: Vec<_> = all.keys().map(String::as_str).collect();
    let expected = [
        "files/tidy-up/~step.ps1",
        "files/tools/Setup.msi",
        "files/tools/answers.ini",
        "lamina-guest.exe",
        "layer.json",
        "record-0.txt",
        "steps.json",
    ];
    assert_eq!(names, expected);
    assert_eq!(all["files/tools/Setup.msi"], files()[&("tools".to_owned(), "Setup.msi".to_owned())]);
    assert_eq!(all["files/tidy-up/~step.ps1"], "\u{feff}Write-Output 'größer'".as_bytes());
    assert_eq!(serde_json::from_slice::<Vec<Step>>(&all["steps.json"]).expect("steps"), steps());
    assert_eq!(serde_json::from_slice::<Layer>(&all["layer.json"]).expect("a layer"), layer());
}

/// `fatfs` reads by its own lights what we read by ours.
#[test]
fn another_driver_sees_the_same_volume() {
    let mut disk = image();
    edit::put(&mut disk, "logs/01-tools.log", b"done").expect("room");
    let volume =
        fatfs::FileSystem::new(std::io::Cursor::new(disk[START..].to_vec()), fatfs::FsOptions::new()).expect("FAT");
    assert_eq!(volume.fat_type(), fatfs::FatType::Fat16);
    assert_eq!(volume.read_volume_label_from_root_dir().expect("root").as_deref(), Some("LAMINA"));
    assert_eq!(
        volume.stats().expect("stats").free_clusters() as u64 * CLUSTER as u64,
        Volume::open(&disk).expect("volume").free()
    );
    for (path, bytes) in edit::files(&disk).expect("files") {
        let mut file = volume.root_dir().open_file(&path).expect("the file");
        let mut theirs = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut theirs).expect("bytes");
        assert!(theirs == bytes, "{path}");
    }
}

/// `chkdsk` and `fsck.fat` mend a directory whose dots have long names, by renaming them.
#[test]
fn directories_begin_with_plain_dots() {
    let made = image();
    let mut edited = made.clone();
    edit::put(&mut edited, "logs/01-tools.log", b"done").expect("room");
    for (disk, expected) in [(made, 3), (edited, 4)] {
        let volume = Volume::open(&disk).expect("a volume");
        let all = volume.walk().expect("entries");
        let directories: Vec<_> = all.iter().filter(|(_, e)| e.directory).collect();
        assert_eq!(directories.len(), expected);
        for (path, entry) in directories {
            let at = volume.place(entry);
            assert_eq!([&disk[at..at + 11], &disk[at + 32..at + 43]], [b".          ", b"..         "], "{path}");
        }
    }
}

#[test]
fn the_size_follows_files_logs_and_room() {
    let none = BTreeMap::new();
    let size = |steps: &[Step], program: &[u8]| {
        let contents = Contents { layer: &layer(), steps, files: &none, program: Some(program) };
        build(&contents).map(|d| d.len())
    };
    let many: Vec<Step> = (0..32)
        .map(|n| step(serde_json::json!({"name": format!("s{n}"), "command": "rem", "retry": n == 0})))
        .collect();
    // 1 MiB before the volume, 32 steps' logs, 6 MiB; then up to 2 MiB.
    assert_eq!(size(&many, &[]).expect("a disk"), (40 << 20));
    assert_eq!(size(&many, &vec![7; 16 << 20]).expect("a disk"), (56 << 20));
    assert!(matches!(size(&many, &vec![7; (16 << 20) + 1]), Err(BuildError::ProgramTooLarge(_))));

    let of = |bytes: usize, named: bool| {
        let steps =
            [step(serde_json::json!({"name": "a", "command": "rem", "files": if named { vec!["f"] } else { vec![] }}))];
        let files = BTreeMap::from([(("a".to_owned(), "f".to_owned()), vec![1; bytes])]);
        build(&Contents { layer: &layer(), steps: &steps, files: &files, program: None })
    };
    assert_eq!(of(64 << 20, true).expect("a disk").len(), (74 << 20), "and a cluster for each small file");
    assert!(matches!(of((64 << 20) + 1, true), Err(BuildError::FilesTooLarge(_))));
    assert!(matches!(of(1, false), Err(BuildError::StrayFile(_, _))));
    let lacks = build(&Contents { layer: &layer(), steps: &steps(), files: &none, program: None });
    assert!(matches!(lacks, Err(BuildError::NoFile(step, file)) if step == "tools" && file == "Setup.msi"));

    // All that the API server lets in: 32 steps of 32 files, each run three times, 64 MiB and the program.
    let named: Vec<String> = (0..32).map(|n| format!("f{n}")).collect();
    let full: Vec<Step> = (0..32)
        .map(|n| step(serde_json::json!({"name": format!("s{n}"), "command": "rem", "retry": true, "files": named})))
        .collect();
    let each = vec![1; 64 << 10];
    let files = full.iter().flat_map(|s| named.iter().map(|f| ((s.name.clone(), f.clone()), each.clone()))).collect();
    let most = Contents { layer: &layer(), steps: &full, files: &files, program: Some(&[7; 16 << 20]) };
    let disk = build(&most).expect("a disk");
    assert!(disk.len() <= LARGEST && length(&most).expect("a length") == disk.len());
    let copied = |(_, bytes): &(String, Cow<'_, [u8]>)| matches!(bytes, Cow::Owned(b) if b.len() >= each.len());
    assert!(!super::build::files(&most).expect("files").iter().any(copied), "the controller's memory has a limit");

    // Many small files take more clusters than bytes.
    let names: Vec<String> = (0..70_000).map(|n| format!("f{n}")).collect();
    let files: BTreeMap<_, _> = names.iter().map(|n| (("a".to_owned(), n.clone()), vec![1])).collect();
    let steps = [Step { files: names, what: What::Command("rem".to_owned()), ..steps()[0].clone() }];
    let steps = [Step { name: "a".to_owned(), ..steps[0].clone() }];
    let crowd = build(&Contents { layer: &layer(), steps: &steps, files: &files, program: None });
    assert!(matches!(crowd, Err(BuildError::DiskTooLarge(_) | BuildError::StepsTooLarge(_))));
}

fn back(disk: &[u8]) -> Back {
    read(disk, NONCE).expect("our disk")
}

#[test]
fn a_disk_that_was_never_used_comes_back_with_nothing_run() {
    let back = back(&image());
    let record = back.record.expect("the first record");
    assert_eq!((record.generation, record.boots, record.steps.len()), (0, 0, 2));
    assert!(record.steps.iter().all(|r| r.state == State::Pending));
    assert_eq!(back.report, Ok(None));
}

#[test]
fn what_the_guest_left_is_read_and_a_torn_record_leaves_the_one_before() {
    let mut disk = image();
    let mut record = back(&disk).record.expect("the first record");
    record.generation = 1;
    record.boots = 1;
    edit::put(&mut disk, record.slot(), &record.bytes().expect("JSON")).expect("room");
    let report = Report { nonce: NONCE.to_owned(), sealed: true, ..Report::default() };
    edit::put(&mut disk, "REPORT.JSON", &report.to_json()).expect("room");
    edit::put(&mut disk, "logs/01-tools.log", &[b'x', 0xFF]).expect("room");
    let read = back(&disk);
    assert_eq!(read.record, Ok(record.clone()));
    assert_eq!(read.report, Ok(Some(report.clone())), "in any spelling");

    let whole = report.to_json();
    let read = |bytes: &[u8]| {
        let mut disk = disk.clone();
        edit::put(&mut disk, REPORT, bytes).expect("room");
        back(&disk).report
    };
    assert_eq!(read(&whole[..whole.len() / 2]), Err(Damage::Garbled(REPORT.to_owned())), "cut in the middle");
    assert_eq!(read(&[0xFF]), Err(Damage::NotText(REPORT.to_owned())));
    assert_eq!(read(&vec![b' '; (1 << 20) + 1]), Err(Damage::TooLong(REPORT.to_owned())));
    assert_eq!(read(b""), Ok(None));

    record.generation = 2;
    let whole = record.bytes().expect("JSON");
    for cut in [0, 1, 64, 65, 66, whole.len() / 2, whole.len() - 2] {
        edit::put(&mut disk, record.slot(), &whole[..cut]).expect("room");
        assert_eq!(back(&disk).record.expect("the one before").generation, 1, "torn after {cut} bytes");
    }
    edit::remove(&mut disk, "record-1.txt").expect("gone");
    assert_eq!(back(&disk).record, Err(Damage::Garbled("record-0.txt".to_owned())), "and with none left it is lost");
    edit::remove(&mut disk, "record-0.txt").expect("gone");
    assert_eq!(back(&disk).record, Err(Damage::Missing("record-0.txt")));
}

/// Every kind of damage has its own value.
#[test]
fn each_damage_is_told_from_the_others() {
    let whole = image();
    let damaged = |harm: &dyn Fn(&mut Vec<u8>)| {
        let mut disk = whole.clone();
        harm(&mut disk);
        read(&disk, NONCE)
    };
    let error = |harm: &dyn Fn(&mut Vec<u8>)| damaged(harm).err().expect("damage");
    assert_eq!(error(&|d| d.clear()), Damage::DiskCut);
    assert_eq!(error(&|d| d.truncate(d.len() - 1)), Damage::DiskCut);
    assert_eq!(error(&|d| d.fill(0)), Damage::NotFat);
    assert_eq!(error(&|d| d[450] = 0x07), Damage::NotFat, "NTFS in its place");
    assert_eq!(error(&|d| d[BOOT_SECTOR + 13] = 1), Damage::NotFat, "formatted anew, with other clusters");
    assert_eq!(error(&|d| d[BOOT_SECTOR + 22] = 1), Damage::NotFat, "tables too short for the volume");
    let label = record_of(&whole[TABLE..], b"LAMINA     ") + TABLE;
    assert_eq!(error(&|d| d[label] = b'X'), Damage::Label);
    assert_eq!(read(&whole, "another").err().expect("damage"), Damage::Foreign);

    let layer_json = cluster_of(&whole, b"LAYER~1 JSO");
    let text = START + whole[START..].windows(9).position(|w| w == b"\"golden\",").expect("layer.json");
    assert_eq!(error(&|d| d[text] = b'x'), Damage::Garbled(LAYER.to_owned()));
    assert_eq!(error(&|d| d[text + 1] = 0xFF), Damage::NotText(LAYER.to_owned()));
    let entry = record_of(&whole, b"LAYER~1 JSO");
    let size = |bytes: u32| move |d: &mut Vec<u8>| d[entry + 28..entry + 32].copy_from_slice(&bytes.to_le_bytes());
    assert_eq!(error(&size(u32::MAX)), Damage::LargerThanDisk(LAYER.to_owned()));
    assert_eq!(error(&size(2 << 20)), Damage::TooLong(LAYER.to_owned()));
    assert_eq!(error(&size(5000)), Damage::FileCut(LAYER.to_owned()), "one cluster for two");
    assert_eq!(
        error(&|d| {
            size(5000)(d);
            chain(d, layer_json, layer_json as u16);
        }),
        Damage::Cyclic(LAYER.to_owned())
    );
    assert_eq!(
        error(&|d| {
            size(5000)(d);
            chain(d, layer_json, 0xFF00);
        }),
        Damage::OutOfVolume(LAYER.to_owned())
    );
    assert_eq!(
        error(&|d| {
            size(5000)(d);
            chain(d, layer_json, 1);
        }),
        Damage::OutOfVolume(LAYER.to_owned())
    );
    assert_eq!(error(&|d| d[entry + 11] = 0x10), Damage::Kind(LAYER.to_owned()));
    assert_eq!(error(&|d| d[entry] = 0xE5), Damage::Missing(LAYER));
}

#[test]
fn a_crowded_or_cyclic_directory_and_a_full_volume_have_an_end() {
    let mut disk = image();
    edit::put(&mut disk, "logs/01-tools.log", b"x").expect("room");
    let at = cluster_of(&disk, b"LOGS       ");
    let mut cyclic = disk.clone();
    chain(&mut cyclic, at, at as u16);
    let logs = |disk: &[u8]| Volume::open(disk).expect("a volume").list(LOGS).map(|_entries| ());
    assert_eq!(logs(&cyclic), Err(Damage::Cyclic(LOGS.to_owned())));
    assert!(back(&cyclic).record.is_ok(), "a damaged directory of logs is nobody's business");

    let mut crowded = disk.clone();
    let long = |n: u32| format!("logs/{n:04}-a-rather-long-name.log");
    (0..2100).take_while(|n| edit::put(&mut crowded, &long(*n), b"").is_ok()).for_each(drop);
    assert_eq!(logs(&crowded), Err(Damage::TooManyEntries(LOGS.to_owned())));

    let free = Volume::open(&disk).expect("volume").free() as usize;
    edit::put(&mut disk, "logs/02-tidy-up.log", &vec![b'x'; free]).expect("room");
    assert_eq!(back(&disk).report, Err(Damage::Full), "no report, and no room for one");
    assert!(edit::put(&mut disk, REPORT, b"{}").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Bytes turned where they matter (partition table, boot sector, tables, directories): it ends, with values.
    #[test]
    fn no_damage_ends_in_a_panic(turned in prop::collection::vec((0usize..6, any::<prop::sample::Index>(), any::<u8>()), 1..40), cut in prop::option::of(any::<prop::sample::Index>())) {
        static WHOLE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
            let mut disk = image();
            edit::put(&mut disk, REPORT, b"{}").expect("room");
            edit::put(&mut disk, "logs/01-tools.log", &[b'x'; 10_000]).expect("room");
            disk
        });
        let root = WHOLE.windows(11).skip(TABLE).position(|w| w == b"LAMINA     ").expect("root") + TABLE;
        let places = [440..512, BOOT_SECTOR..BOOT_SECTOR + 64, TABLE..TABLE + 128, root..root + 1024, root + (16 << 10)..root + (96 << 10), 0..WHOLE.len()];
        let mut disk = WHOLE.clone();
        for (place, at, byte) in turned {
            let place = &places[place];
            disk[place.start + at.index(place.len())] = byte;
        }
        if let Some(cut) = cut {
            disk.truncate(cut.index(WHOLE.len()));
        }
        let _ = read(&disk, NONCE);
        let _ = edit::files(&disk);
    }
}

#[test]
fn a_record_of_other_steps_is_told() {
    let json = serde_json::to_vec(&steps()).expect("JSON");
    let record = Record::new(NONCE, &steps(), &json);
    assert!(record.is_of(&steps(), &json));
    assert!(!record.is_of(&steps()[..1], &json));
    assert!(!record.is_of(&steps(), b"[]"));
}
