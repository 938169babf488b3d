//! What lies on the storage itself: sparse files with real bytes, in a tree of nodes as VHD keeps it (xapi.md 9.1, "Tree behaviour").
//!
//! It outlives the simulated daemon: rows of the database may be forgotten, nodes are not. Storage calls and guests change it under one
//! mutex; it knows no rows, no tasks and no time. By bytes it is read and written in `bytes`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::PathBuf,
};

use sha2::{Digest, Sha256};
use uuid::Uuid;

mod bytes;
mod changes;
pub use changes::Log;

/// A VHD allocates, and its virtual size is rounded up to, this many bytes (xapi.md 9.1).
pub const BLOCK: u64 = 2 << 20;
/// Longest chain (xapi.md 9.1); one more is `SR_BACKEND_FAILURE_109`.
pub const DEPTH: usize = 30;
/// Header, footer and block table of a VHD of ordinary size.
const OVERHEAD: u64 = 16 << 10;

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("no disk {0} on the storage")]
    Missing(String),
    #[error("the chain of disk {0} has {DEPTH} levels already")]
    TooDeep(String),
    #[error("block {1} is beyond the end of disk {0}, or the data is longer than a block")]
    Beyond(String, u64),
    #[error("disk {0} is attached read-only")]
    ReadOnly(String),
    #[error("a file of the simulated storage cannot be used")]
    Io(#[from] io::Error),
}

/// How a disk lies on its storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    #[default]
    Vhd,
    /// Bytes and nothing else: no tree, no snapshots.
    Raw,
    Qcow2,
}

/// One file of the storage. A hidden node is a *base copy*: read-only, there for its children's sake.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// The repository's uuid.
    pub sr: String,
    /// Bytes.
    pub virtual_size: u64,
    pub parent: Option<String>,
    pub hidden: bool,
    /// The driver knows a name of its own (files of an ISO repository); VHD files have none.
    pub name: Option<String>,
    /// Takes its whole size on the storage: a writable disk on LVM (xapi.md 9.1).
    pub inflated: bool,
    pub format: Format,
    /// The system on this disk has its guest tools.
    pub tools: bool,
    /// Blocks of its own.
    pub blocks: BTreeSet<u64>,
    /// What changed since the snapshot before, where that is tracked.
    pub log: Option<Log>,
}

/// What a clone or snapshot made.
#[derive(Debug)]
pub struct Branch {
    pub child: String,
    /// The new hidden node, unless the source was an empty leaf: its child then hangs on the same parent.
    pub base: Option<String>,
}

pub struct Disks {
    dir: PathBuf,
    nodes: BTreeMap<String, Node>,
}

impl Default for Disks {
    fn default() -> Self {
        Self { dir: std::env::temp_dir().join(format!("xapi-simulator-{}", Uuid::new_v4())), nodes: BTreeMap::new() }
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        // The directory is absent where nothing was ever written; and there is nobody left to tell.
        fs::remove_dir_all(&self.dir).unwrap_or_default();
    }
}

impl Disks {
    /// Puts a node down under a fresh uuid; its size is rounded up to whole blocks unless the driver names it (an ISO file).
    pub fn create(&mut self, mut node: Node) -> String {
        if node.name.is_none() {
            node.virtual_size = round(node.virtual_size);
        }
        let uuid = Uuid::new_v4().to_string();
        self.nodes.insert(uuid.clone(), node);
        uuid
    }

    pub fn get(&self, uuid: &str) -> Result<&Node, DiskError> {
        self.nodes.get(uuid).ok_or_else(|| DiskError::Missing(uuid.to_owned()))
    }

    pub fn get_mut(&mut self, uuid: &str) -> Result<&mut Node, DiskError> {
        self.nodes.get_mut(uuid).ok_or_else(|| DiskError::Missing(uuid.to_owned()))
    }

    /// The nodes of a repository.
    pub fn on(&self, sr: &str) -> impl Iterator<Item = (&String, &Node)> {
        self.nodes.iter().filter(move |(_, n)| n.sr == sr)
    }

    /// Bytes that a node takes on its repository.
    pub fn utilisation(&self, uuid: &str) -> u64 {
        self.nodes.get(uuid).map_or(0, Node::utilisation)
    }

    /// Bytes taken on a repository.
    pub fn used(&self, sr: &str) -> u64 {
        self.on(sr).map(|(_, n)| n.utilisation()).sum()
    }

    /// Nodes from this one to the root of its tree.
    pub fn depth(&self, uuid: &str) -> usize {
        self.chain(uuid).count()
    }

    /// Clone or snapshot: the data becomes a hidden base copy, source and child become empty leaves on it (xapi.md 9.1). Of a raw disk a full
    /// copy (xapi.md 4.4, 9.1).
    pub fn branch(&mut self, uuid: &str) -> Result<Branch, DiskError> {
        let source = self.get(uuid)?.clone();
        if source.format == Format::Raw {
            let child = self.create(Node { log: None, blocks: BTreeSet::new(), ..source });
            self.overwrite(uuid, &child, None)?;
            return Ok(Branch { child, base: None });
        }
        let reuse = source.blocks.is_empty() && source.parent.is_some();
        if self.depth(uuid) + usize::from(!reuse) > DEPTH {
            return Err(DiskError::TooDeep(uuid.to_owned()));
        }
        let base = if reuse { None } else { Some(Uuid::new_v4().to_string()) };
        if let Some(base) = &base {
            if !source.blocks.is_empty() {
                fs::rename(self.dir.join(uuid), self.dir.join(base))?;
            }
            self.nodes.insert(base.clone(), Node { hidden: true, inflated: false, log: None, ..source.clone() });
            let leaf = self.get_mut(uuid)?;
            leaf.blocks.clear();
            leaf.parent = Some(base.clone());
        }
        let child = Uuid::new_v4().to_string();
        let leaf = Node { hidden: false, log: None, ..self.get(uuid)?.clone() };
        self.nodes.insert(child.clone(), leaf);
        Ok(Branch { child, base })
    }

    /// Writes the content of one disk over another of at least its size; of a `base` only the blocks that differ from it.
    pub fn overwrite(&mut self, from: &str, to: &str, base: Option<&str>) -> Result<(), DiskError> {
        let tools = self.get(from)?.tools;
        let below = base.map(|base| self.blocks(base)).unwrap_or_default();
        for block in &(&self.blocks(from) | &self.blocks(to)) | &below {
            let bytes = self.read(from, block)?;
            let same = base.is_some_and(|base| self.read(base, block).is_ok_and(|old| old == bytes));
            if !same {
                self.write(to, block, &bytes)?;
            }
        }
        self.get_mut(to)?.tools = tools;
        Ok(())
    }

    /// Removes a leaf; a node that others read through is hidden instead.
    pub fn remove(&mut self, uuid: &str) -> Result<(), DiskError> {
        self.forget_log(uuid);
        if self.children(uuid).next().is_some() {
            self.get_mut(uuid)?.hidden = true;
            return Ok(());
        }
        let node = self.nodes.remove(uuid).ok_or_else(|| DiskError::Missing(uuid.to_owned()))?;
        if !node.blocks.is_empty() {
            fs::remove_file(self.dir.join(uuid))?;
        }
        Ok(())
    }

    /// Takes a leaf's data away, and its place in the tree; the node stays.
    pub fn hollow(&mut self, uuid: &str) -> Result<(), DiskError> {
        let node = self.get(uuid)?.clone();
        self.get_mut(uuid)?.log = None;
        self.remove(uuid)?;
        self.nodes.insert(uuid.to_owned(), Node { parent: None, inflated: false, blocks: BTreeSet::new(), ..node });
        Ok(())
    }

    /// One step of garbage collection on a repository: a hidden node without children goes, one with a single child is merged into it.
    /// `may` says whether that child may be touched. True if something was done.
    pub fn coalesce(&mut self, sr: &str, may: impl Fn(&str, u64) -> bool) -> Result<bool, DiskError> {
        let hidden: Vec<String> = self.on(sr).filter(|(_, n)| n.hidden).map(|(u, _)| u.clone()).collect();
        for base in hidden {
            let children: Vec<String> = self.children(&base).cloned().collect();
            match children.as_slice() {
                [] => return self.remove(&base).map(|()| true),
                [child] if may(child, self.get(child)?.blocks.len() as u64 * BLOCK) => {
                    return self.merge(&base, child).map(|()| true);
                }
                _ => {}
            }
        }
        Ok(false)
    }

    fn merge(&mut self, base: &str, child: &str) -> Result<(), DiskError> {
        let below = self.get(base)?.clone();
        let own = self.get(child)?.blocks.clone();
        for block in below.blocks.difference(&own) {
            let bytes = self.read(base, *block)?;
            self.store(child, *block, &bytes)?;
        }
        self.get_mut(child)?.parent = below.parent;
        self.remove(base)
    }

    /// One block as a guest reads it: 2 MiB, zeros where nothing was ever written.
    pub fn read(&self, uuid: &str, block: u64) -> Result<Vec<u8>, DiskError> {
        self.get(uuid)?;
        let mut bytes = Vec::new();
        if let Some((owner, _)) = self.chain(uuid).find(|(_, n)| n.blocks.contains(&block)) {
            let mut file = File::open(self.dir.join(owner))?;
            file.seek(SeekFrom::Start(block * BLOCK))?;
            file.take(BLOCK).read_to_end(&mut bytes)?;
        }
        bytes.resize(usize::try_from(BLOCK).unwrap_or_default(), 0);
        Ok(bytes)
    }

    /// Overwrites one block; shorter data is followed by zeros.
    pub fn write(&mut self, uuid: &str, block: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.store(uuid, block, bytes)?;
        self.changed(uuid, block * BLOCK, bytes.len());
        Ok(())
    }

    /// As [`Disks::write`], for what is no change of the content.
    fn store(&mut self, uuid: &str, block: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let beyond = block * BLOCK >= self.get(uuid)?.virtual_size;
        if beyond || bytes.len() as u64 > BLOCK {
            return Err(DiskError::Beyond(uuid.to_owned(), block));
        }
        fs::create_dir_all(&self.dir)?;
        let path = self.dir.join(uuid);
        let mut file = OpenOptions::new().create(true).write(true).truncate(false).open(path)?;
        file.seek(SeekFrom::Start(block * BLOCK))?;
        file.write_all(bytes)?;
        let known = self.get_mut(uuid)?;
        if !known.blocks.insert(block) && (bytes.len() as u64) < BLOCK {
            io::copy(&mut io::repeat(0).take(BLOCK - bytes.len() as u64), &mut file)?;
        }
        Ok(())
    }

    /// SHA-256 over every block that is not all zeros, with its number: equal for equal content, however the tree lies.
    pub fn digest(&self, uuid: &str) -> Result<String, DiskError> {
        self.get(uuid)?;
        let mut all = Sha256::new();
        for block in self.blocks(uuid) {
            let bytes = self.read(uuid, block)?;
            if bytes.iter().any(|b| *b != 0) {
                all.update(block.to_be_bytes());
                all.update(&bytes);
            }
        }
        Ok(format!("{:x}", all.finalize()))
    }

    /// Every block that a disk or its ancestors have written.
    fn blocks(&self, uuid: &str) -> BTreeSet<u64> {
        self.chain(uuid).flat_map(|(_, n)| n.blocks.iter().copied()).collect()
    }

    fn children<'a>(&'a self, uuid: &'a str) -> impl Iterator<Item = &'a String> {
        self.nodes.iter().filter(move |(_, n)| n.parent.as_deref() == Some(uuid)).map(|(u, _)| u)
    }

    /// From the node up to its root.
    fn chain<'a>(&'a self, uuid: &str) -> impl Iterator<Item = (&'a str, &'a Node)> {
        let find = |u: &str| self.nodes.get_key_value(u).map(|(u, n)| (u.as_str(), n));
        std::iter::successors(find(uuid), move |(_, n)| n.parent.as_deref().and_then(find))
    }
}

impl Node {
    fn utilisation(&self) -> u64 {
        match (&self.name, self.inflated) {
            (Some(_), _) => self.virtual_size,
            (None, true) => self.virtual_size + OVERHEAD,
            (None, false) => self.blocks.len() as u64 * BLOCK + OVERHEAD,
        }
    }
}

/// A size as the VHD drivers round it up (xapi.md 9.1).
pub fn round(size: u64) -> u64 {
    size.max(1).div_ceil(BLOCK).saturating_mul(BLOCK)
}

/// Bytes that nobody writes by chance: 2 MiB for a seed and a block's number, the same for ever.
pub fn pattern(seed: u64, block: u64) -> Vec<u8> {
    let mut state = (seed ^ block.rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15) | 1;
    let word = std::iter::from_fn(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Some(state.to_le_bytes())
    });
    word.take(usize::try_from(BLOCK / 8).unwrap_or_default()).flatten().collect()
}

#[cfg(test)]
mod tests;
