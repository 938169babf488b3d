//! Reads a FAT16 volume that was in a guest's hands. Pure; called by `back` and `edit`.
//!
//! Crate `fatfs` makes and edits volumes of ours, but is not let near these: it follows a chain that runs in a circle for ever, and its
//! arithmetic on cluster numbers 0 and 1 overflows. Here each cluster is visited once at most, every index is checked, and nothing is
//! read beyond what the caller bounds.

use super::{CLUSTER, Damage, PARTITION_FAT16_LBA, ROOT_ENTRIES, SECTOR, START};

/// Entries of one directory that are looked at.
const MOST_ENTRIES: usize = 4096;
/// Directories that `walk` looks into: more than any disk of ours has, so that one that holds itself has an end too.
const MOST_DIRECTORIES: usize = 256;
pub(super) const ENTRY: usize = 32;
pub(super) const LONG_NAME: u8 = 0x0F;
const VOLUME: u8 = 0x08;
const DIRECTORY: u8 = 0x10;

/// A volume as a table, a root directory and clusters.
pub struct Volume<'a> {
    table: &'a [u8],
    root: &'a [u8],
    data: &'a [u8],
    /// Bytes from the disk's beginning to `data`.
    data_at: usize,
    clusters: usize,
}

/// One file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub directory: bool,
    /// Bytes, as the directory says.
    pub size: u64,
    first: usize,
}

impl<'a> Volume<'a> {
    /// Finds the volume on the disk; its shape must be the one that `build` makes.
    pub fn open(disk: &'a [u8]) -> Result<Self, Damage> {
        if disk.len() < START + SECTOR {
            return Err(Damage::DiskCut);
        }
        let (mbr, volume) = disk.split_at(START);
        let partition = [mbr.get(450).copied().unwrap_or(0)];
        if le16(mbr, 510) != 0xAA55 || partition != [PARTITION_FAT16_LBA] || le32(mbr, 454) * SECTOR != START {
            return Err(Damage::NotFat);
        }
        let per_cluster = volume.get(13).map_or(0, |n| usize::from(*n) * SECTOR);
        let tables = volume.get(16).copied().unwrap_or(0);
        let shape = (le16(volume, 11), per_cluster, tables, le16(volume, 17), le16(volume, 510));
        if shape != (SECTOR, CLUSTER, 2, ROOT_ENTRIES, 0xAA55) {
            return Err(Damage::NotFat);
        }
        let sectors = if le16(volume, 19) == 0 { le32(volume, 32) } else { le16(volume, 19) };
        let (reserved, table) = (le16(volume, 14) * SECTOR, le16(volume, 22) * SECTOR);
        let root = reserved + 2 * table;
        let data = root + ROOT_ENTRIES * ENTRY;
        let end = sectors * SECTOR;
        if volume.len() < end {
            return Err(Damage::DiskCut);
        }
        let clusters = end.saturating_sub(data) / CLUSTER;
        let slice = |from: usize, to: usize| volume.get(from..to).ok_or(Damage::NotFat);
        if reserved == 0 || (clusters + 2) * 2 > table {
            return Err(Damage::NotFat);
        }
        Ok(Self {
            table: slice(reserved, reserved + table)?,
            root: slice(root, data)?,
            data: slice(data, data + clusters * CLUSTER)?,
            data_at: START + data,
            clusters,
        })
    }

    /// The label in the root directory, which is the one that Windows shows.
    pub fn label(&self) -> Option<String> {
        let mut entries = self.root.chunks_exact(ENTRY).take_while(|e| e.first() != Some(&0));
        let label = entries.find(|e| live(e) && attributes(e) & (VOLUME | DIRECTORY) == VOLUME && !long(e))?;
        Some(String::from_utf8_lossy(label.get(..11)?).trim_end().to_owned())
    }

    /// Bytes of clusters that nothing uses.
    pub fn free(&self) -> u64 {
        let free = self.table.chunks_exact(2).skip(2).take(self.clusters).filter(|e| *e == [0, 0]).count();
        (free * CLUSTER) as u64
    }

    /// Entries of the directory at `path` (`""`: the root), in their order; `None`: there is none.
    pub fn list(&self, path: &str) -> Result<Option<Vec<Entry>>, Damage> {
        let mut entries = self.entries(self.root.to_vec(), "")?;
        for part in path.split('/').filter(|p| !p.is_empty()) {
            let Some(next) = entries.into_iter().find(|e| e.name.eq_ignore_ascii_case(part)) else {
                return Ok(None);
            };
            if !next.directory {
                return Err(Damage::Kind(path.to_owned()));
            }
            let mut bytes = Vec::new();
            for cluster in self.chain(next.first, None, path)? {
                bytes.extend_from_slice(self.cluster(cluster));
                if bytes.len() > MOST_ENTRIES * ENTRY {
                    return Err(Damage::TooManyEntries(path.to_owned()));
                }
            }
            entries = self.entries(bytes, path)?;
        }
        Ok(Some(entries))
    }

    /// Every entry below the root by its path.
    pub fn walk(&self) -> Result<Vec<(String, Entry)>, Damage> {
        let mut found: Vec<(String, Entry)> = Vec::new();
        let mut open = vec![String::new()];
        for _ in 0..MOST_DIRECTORIES {
            let Some(directory) = open.pop() else {
                return Ok(found);
            };
            for entry in self.list(&directory)?.unwrap_or_default() {
                let above = if directory.is_empty() { String::new() } else { format!("{directory}/") };
                let path = format!("{above}{}", entry.name);
                if entry.directory {
                    open.push(path.clone());
                }
                found.push((path, entry));
            }
        }
        Err(Damage::TooManyEntries(String::new()))
    }

    /// Where on the disk the first cluster of a file or directory is.
    pub(super) fn place(&self, entry: &Entry) -> usize {
        self.data_at + entry.first.saturating_sub(2) * CLUSTER
    }

    /// The file at `path`, of which `most` bytes are read at most; `None`: there is none.
    pub fn file(&self, path: &str, most: u64) -> Result<Option<Vec<u8>>, Damage> {
        let Some(entry) = self.find(path)? else {
            return Ok(None);
        };
        if entry.size > most && entry.size <= self.data.len() as u64 {
            return Err(Damage::TooLong(path.to_owned()));
        }
        self.bytes(&entry, path).map(Some)
    }

    fn find(&self, path: &str) -> Result<Option<Entry>, Damage> {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let entries = self.list(directory)?.unwrap_or_default();
        match entries.into_iter().find(|e| e.name.eq_ignore_ascii_case(name)) {
            Some(entry) if entry.directory => Err(Damage::Kind(path.to_owned())),
            found => Ok(found),
        }
    }

    fn bytes(&self, entry: &Entry, path: &str) -> Result<Vec<u8>, Damage> {
        if entry.size > self.data.len() as u64 {
            return Err(Damage::LargerThanDisk(path.to_owned()));
        }
        let size = entry.size as usize;
        let need = size.div_ceil(CLUSTER);
        let chain = self.chain(entry.first, Some(need), path)?;
        if chain.len() < need {
            return Err(Damage::FileCut(path.to_owned()));
        }
        let mut bytes: Vec<u8> = chain.iter().flat_map(|c| self.cluster(*c)).copied().collect();
        bytes.truncate(size);
        Ok(bytes)
    }

    /// The clusters from `first` on: `need` of them, or all there are.
    fn chain(&self, first: usize, need: Option<usize>, path: &str) -> Result<Vec<usize>, Damage> {
        let mut seen = vec![false; self.clusters];
        let mut chain = Vec::new();
        let mut next = first;
        // 0 begins an empty file; 0xFFF7 is a bad block, what is above ends a chain.
        while need.is_none_or(|n| chain.len() < n) && next < 0xFFF7 && !(next == 0 && chain.is_empty()) {
            match next.checked_sub(2).and_then(|n| seen.get_mut(n)) {
                None => return Err(Damage::OutOfVolume(path.to_owned())),
                Some(true) => return Err(Damage::Cyclic(path.to_owned())),
                Some(mark) => *mark = true,
            }
            chain.push(next);
            next = le16(self.table, next * 2);
        }
        Ok(chain)
    }

    fn cluster(&self, n: usize) -> &'a [u8] {
        let from = n.saturating_sub(2) * CLUSTER;
        self.data.get(from..from + CLUSTER).unwrap_or_default()
    }

    fn entries(&self, bytes: Vec<u8>, path: &str) -> Result<Vec<Entry>, Damage> {
        let mut found = Vec::new();
        let mut long_name: Vec<(u8, u8, [u16; 13])> = Vec::new();
        for raw in bytes.chunks_exact(ENTRY).take_while(|e| e.first() != Some(&0)) {
            if found.len() == MOST_ENTRIES {
                return Err(Damage::TooManyEntries(path.to_owned()));
            }
            if !live(raw) {
                long_name.clear();
            } else if long(raw) {
                // A name has 20 parts at most; more of them is a damage that must not grow.
                if long_name.len() >= 20 {
                    long_name.clear();
                }
                long_name.push(part(raw));
            } else {
                let parts = std::mem::take(&mut long_name);
                let short = short_name(raw);
                let dots = short == "." || short == "..";
                if attributes(raw) & VOLUME == 0 && !dots {
                    let name = joined(parts, checksum(raw)).unwrap_or(short);
                    let directory = attributes(raw) & DIRECTORY != 0;
                    found.push(Entry { name, directory, size: le32(raw, 28) as u64, first: le16(raw, 26) });
                }
            }
        }
        Ok(found)
    }
}

/// Little-endian numbers; 0 where there are no bytes.
fn le16(bytes: &[u8], at: usize) -> usize {
    let two = bytes.get(at..at + 2).and_then(|b| b.try_into().ok());
    two.map_or(0, |b| usize::from(u16::from_le_bytes(b)))
}

fn le32(bytes: &[u8], at: usize) -> usize {
    le16(bytes, at) | le16(bytes, at + 2) << 16
}

fn live(raw: &[u8]) -> bool {
    raw.first() != Some(&0xE5)
}

fn attributes(raw: &[u8]) -> u8 {
    raw.get(11).copied().unwrap_or(0)
}

fn long(raw: &[u8]) -> bool {
    attributes(raw) & 0x3F == LONG_NAME
}

/// A part of a long name: its place, the sum of the short name that it goes with, 13 letters.
fn part(raw: &[u8]) -> (u8, u8, [u16; 13]) {
    let places = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
    let letters = places.map(|at| u16::try_from(le16(raw, at)).unwrap_or_default());
    (raw.first().copied().unwrap_or(0) & 0x1F, raw.get(13).copied().unwrap_or(0), letters)
}

/// The long name, where its parts are all there (the last one comes first) and belong to this short name.
fn joined(parts: Vec<(u8, u8, [u16; 13])>, sum: u8) -> Option<String> {
    let whole = parts.iter().rev().zip(1u8..).all(|((place, of, _), n)| *place == n && *of == sum);
    let letters: Vec<u16> =
        parts.iter().rev().flat_map(|(_, _, l)| l).copied().take_while(|l| *l != 0 && *l != 0xFFFF).collect();
    (whole && !letters.is_empty()).then(|| String::from_utf16_lossy(&letters))
}

fn checksum(raw: &[u8]) -> u8 {
    raw.iter().take(11).fold(0u8, |sum, c| sum.rotate_right(1).wrapping_add(*c))
}

/// `NAME.EXT` in the letters that Windows shows: two bits say which half is in lower case.
fn short_name(raw: &[u8]) -> String {
    let case = raw.get(12).copied().unwrap_or(0);
    let half = |range: std::ops::Range<usize>, lower: u8| {
        let text = String::from_utf8_lossy(raw.get(range).unwrap_or_default()).trim_end().to_owned();
        if case & lower != 0 { text.to_ascii_lowercase() } else { text }
    };
    let (name, extension) = (half(0..8, 0x08), half(8..11, 0x10));
    if extension.is_empty() { name } else { format!("{name}.{extension}") }
}
