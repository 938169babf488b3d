//! Makes the config disk. Pure: equal contents give equal bytes, so that a disk may be made again and compared. Called by the controller.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{Cursor, Write};

use fatfs::{Date, DateTime, FatType, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};
use sha2::{Digest, Sha256};

use super::fat::{ENTRY, LONG_NAME, Volume};
use super::{
    CLUSTER, LAYER, Layer, MOST_FILES_BYTES, MOST_LOG_BYTES, MOST_PROGRAM_BYTES, MOST_TEXT_BYTES, PARTITION_FAT16_LBA,
    PROGRAM, SCRIPT, SECTOR, START, STEPS, file_path,
};
use crate::steps::record::Record;
use crate::steps::{Invalid, Step, What, check};

/// The storage's own unit: a VDI's size is rounded up to it by some, so ours is one from the start.
const GRAIN: usize = 2 << 20;
/// FAT16 begins at 4085 clusters of 2 KiB; below that, Windows would take the volume for FAT12.
const SMALLEST: usize = 10 << 20;
/// Bytes of the largest disk: FAT16 ends at 65,524 clusters.
pub const LARGEST: usize = 126 << 20;
/// For tables and directories of the volume, record and report, and what Windows adds by itself (`System Volume Information`).
const ROOM: u64 = 6 << 20;

/// A directory entry that nothing uses.
const FREE: [u8; ENTRY] = {
    let mut free = [0; ENTRY];
    free[0] = 0xE5;
    free
};

/// What goes onto the disk. No `Debug`: files may come from Secrets.
pub struct Contents<'a> {
    pub layer: &'a Layer,
    pub steps: &'a [Step],
    /// By names of step and file; exactly those that the steps name.
    pub files: &'a BTreeMap<(String, String), Vec<u8>>,
    /// `lamina-guest.exe`.
    pub program: Option<&'a [u8]>,
}

/// Contents that no disk can carry.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Steps(#[from] Invalid),
    #[error("step '{0}' has no bytes for its file '{1}'")]
    NoFile(String, String),
    #[error("'{1}' is no file of step '{0}'")]
    StrayFile(String, String),
    #[error("the files of all steps have {0} bytes, more than {MOST_FILES_BYTES}")]
    FilesTooLarge(u64),
    #[error("the guest's program has {0} bytes, more than {MOST_PROGRAM_BYTES}")]
    ProgramTooLarge(u64),
    #[error("the steps take {0} bytes, more than {MOST_TEXT_BYTES}: put long scripts into files")]
    StepsTooLarge(u64),
    #[error("files, program and logs need {0} bytes, more than {LARGEST}: have fewer files or fewer steps")]
    DiskTooLarge(u64),
    #[error("the contents cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    #[error("the volume cannot be made")]
    Fat(#[from] std::io::Error),
}

/// The whole disk, as `PUT /import_raw_vdi` takes it. Its length is a multiple of 2 MiB: what the files take in clusters, 1 MiB of log for
/// each step, and 6 MiB; 10 MiB at least, 126 MiB at most. Whatever the API server lets in fits.
pub fn build(contents: &Contents) -> Result<Vec<u8>, BuildError> {
    let files = files(contents)?;
    let size = size(contents.steps, &files)?;
    let id = identity(&contents.layer.nonce);
    let mut disk = vec![0; size];
    partition(&mut disk, id);
    let (_, volume) = disk.split_at_mut(START);
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat16)
        .bytes_per_sector(SECTOR as u16)
        .bytes_per_cluster(CLUSTER as u32)
        .volume_id(id)
        .volume_label(*b"LAMINA     ");
    fatfs::format_volume(Cursor::new(&mut *volume), options)?;
    // Sectors before the partition, which the formatter cannot know.
    put(volume, 28, &((START / SECTOR) as u32).to_le_bytes());
    let made = mount(volume)?;
    for step in contents.steps {
        directories(&made, &file_path(&step.name, ""))?;
    }
    for (path, bytes) in &files {
        write(&made, path, bytes)?;
    }
    made.unmount()?;
    plain_dots(&mut disk)?;
    Ok(disk)
}

/// Takes away the long names that `fatfs` gives to `.` and `..`: Windows' `chkdsk` would rename both.
pub(super) fn plain_dots(disk: &mut [u8]) -> std::io::Result<()> {
    let volume = Volume::open(disk).map_err(std::io::Error::other)?;
    let all = volume.walk().map_err(std::io::Error::other)?;
    let places: Vec<usize> = all.iter().filter(|(_, e)| e.directory).map(|(_, e)| volume.place(e)).collect();
    for at in places {
        // Four entries: a long name and `.`, a long name and `..`; becomes `.`, `..`, and two that are free.
        if let Some([long, dot, free, dots]) = disk.get_mut(at..at + 4 * ENTRY).map(|e| e.as_chunks_mut::<ENTRY>().0)
            && long.get(11) == Some(&LONG_NAME)
        {
            (*long, *dot, *free, *dots) = (*dot, *dots, FREE, FREE);
        }
    }
    Ok(())
}

/// A volume of ours, open for writing. Times on it are all the same.
pub(super) fn mount(volume: &mut [u8]) -> std::io::Result<FileSystem<Cursor<&mut [u8]>>> {
    FileSystem::new(Cursor::new(volume), FsOptions::new().time_provider(&NEVER))
}

/// Makes or replaces a file, with the directories above it.
pub(super) fn write(volume: &FileSystem<Cursor<&mut [u8]>>, path: &str, bytes: &[u8]) -> std::io::Result<()> {
    directories(volume, path)?;
    let mut file = volume.root_dir().create_file(path)?;
    file.truncate()?;
    file.write_all(bytes)?;
    file.flush()
}

fn directories(volume: &FileSystem<Cursor<&mut [u8]>>, path: &str) -> std::io::Result<()> {
    for (at, _) in path.match_indices('/') {
        volume.root_dir().create_dir(path.get(..at).unwrap_or_default())?;
    }
    Ok(())
}

/// Bytes of the disk that `build` makes, without making it.
pub fn length(contents: &Contents) -> Result<usize, BuildError> {
    size(contents.steps, &files(contents)?)
}

/// A file's path on the disk, and its bytes. The users' own are borrowed: they are as large as the disk.
type Entry<'a> = (String, Cow<'a, [u8]>);

pub(super) fn files<'a>(contents: &'a Contents) -> Result<Vec<Entry<'a>>, BuildError> {
    check(contents.steps)?;
    let json = serde_json::to_vec_pretty(contents.steps)?;
    if json.len() as u64 > MOST_TEXT_BYTES {
        return Err(BuildError::StepsTooLarge(json.len() as u64));
    }
    let all: u64 = contents.files.values().map(|f| f.len() as u64).sum();
    if all > MOST_FILES_BYTES {
        return Err(BuildError::FilesTooLarge(all));
    }
    let record = Record::new(&contents.layer.nonce, contents.steps, &json);
    let mut files = vec![
        (LAYER.to_owned(), serde_json::to_vec_pretty(contents.layer)?.into()),
        (record.slot().to_owned(), record.bytes()?.into()),
        (STEPS.to_owned(), json.into()),
    ];
    if let Some(program) = contents.program {
        if program.len() as u64 > MOST_PROGRAM_BYTES {
            return Err(BuildError::ProgramTooLarge(program.len() as u64));
        }
        files.push((PROGRAM.to_owned(), program.into()));
    }
    for step in contents.steps {
        if let What::Powershell(text) = &step.what {
            // Windows PowerShell takes a script without the mark for one in the local code page.
            files.push((file_path(&step.name, SCRIPT), ["\u{feff}", text].concat().into_bytes().into()));
        }
        for name in &step.files {
            let bytes = contents.files.get(&(step.name.clone(), name.clone()));
            let bytes = bytes.ok_or_else(|| BuildError::NoFile(step.name.clone(), name.clone()))?;
            files.push((file_path(&step.name, name), bytes.into()));
        }
    }
    let named = |step: &str, file: &String| contents.steps.iter().any(|s| s.name == step && s.files.contains(file));
    match contents.files.keys().find(|(step, file)| !named(step, file)) {
        Some((step, file)) => Err(BuildError::StrayFile(step.clone(), file.clone())),
        None => Ok(files),
    }
}

fn size(steps: &[Step], files: &[Entry<'_>]) -> Result<usize, BuildError> {
    let cluster = CLUSTER as u64;
    let taken: u64 = files.iter().map(|(_, bytes)| (bytes.len() as u64).div_ceil(cluster) * cluster).sum();
    let need = START as u64 + taken + steps.len() as u64 * MOST_LOG_BYTES + ROOM;
    let size = usize::try_from(need).unwrap_or(usize::MAX).max(SMALLEST).checked_next_multiple_of(GRAIN);
    size.filter(|s| *s <= LARGEST).ok_or(BuildError::DiskTooLarge(need))
}

/// Serial of disk and volume, from the nonce. Never 0: Windows would write one of its own; two disks of one signature cannot be online
/// in one Windows.
fn identity(nonce: &str) -> u32 {
    Sha256::digest(nonce.as_bytes()).iter().take(4).fold(0, |id, b| id << 8 | u32::from(*b)).max(1)
}

/// A master boot record with one partition up to the disk's end; nothing boots from it.
fn partition(disk: &mut [u8], id: u32) {
    let (from, sectors) = ((START / SECTOR) as u32, ((disk.len() - START) / SECTOR) as u32);
    put(disk, 440, &id.to_le_bytes());
    // Cylinders, heads, sectors: "see the block addresses".
    put(disk, 446, &[0, 0xFE, 0xFF, 0xFF, PARTITION_FAT16_LBA, 0xFE, 0xFF, 0xFF]);
    put(disk, 454, &from.to_le_bytes());
    put(disk, 458, &sectors.to_le_bytes());
    put(disk, 510, &[0x55, 0xAA]);
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + what.len()) {
        place.copy_from_slice(what);
    }
}

/// The clock of the volume: its first day, for ever.
#[derive(Debug)]
struct Never;

static NEVER: Never = Never;

impl TimeProvider for Never {
    fn get_current_date(&self) -> Date {
        Date { year: 1980, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime { date: self.get_current_date(), time: Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}
