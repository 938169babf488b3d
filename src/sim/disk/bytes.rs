//! A disk by bytes instead of blocks: what a guest reads and writes, and what a transfer carries.
//!
//! Used by `guest` and `stream`, under the mutex of [`Disks`].

use std::{
    fs::{self, OpenOptions},
    io::{Seek, SeekFrom, Write},
};

use super::{BLOCK, DiskError, Disks};

/// The part of a span of bytes that lies in one block.
struct Piece {
    block: u64,
    /// Where it begins, in bytes within the block.
    from: u64,
    /// Where it lies in the caller's buffer.
    range: std::ops::Range<usize>,
}

fn pieces(at: u64, length: usize) -> impl Iterator<Item = Piece> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let place = at + done as u64;
        let (block, from) = (place / BLOCK, place % BLOCK);
        let here = usize::try_from(BLOCK - from).unwrap_or(usize::MAX).min(length - done);
        let range = done..done + here;
        done += here;
        (here > 0).then_some(Piece { block, from, range })
    })
}

impl Disks {
    fn within(&self, uuid: &str, at: u64, length: usize) -> Result<(), DiskError> {
        let end = at.checked_add(length as u64).filter(|end| *end <= self.get(uuid).map_or(0, |n| n.virtual_size));
        self.get(uuid)?;
        end.map(|_| ()).ok_or_else(|| DiskError::Beyond(uuid.to_owned(), at / BLOCK))
    }

    /// `length` bytes from byte `at` on; zeros where nothing was ever written.
    ///
    /// # Errors
    /// [`DiskError::Beyond`] where the span ends behind the disk's end: nothing is read.
    pub fn read_at(&self, uuid: &str, at: u64, length: usize) -> Result<Vec<u8>, DiskError> {
        self.within(uuid, at, length)?;
        let mut bytes = Vec::with_capacity(length);
        for piece in pieces(at, length) {
            let whole = self.read(uuid, piece.block)?;
            let from = usize::try_from(piece.from).unwrap_or_default();
            bytes.extend_from_slice(whole.get(from..from + piece.range.len()).unwrap_or_default());
        }
        Ok(bytes)
    }

    /// Bytes that the storage must give for a write at byte `at`; none where the block is there already.
    pub fn growth(&self, uuid: &str, at: u64) -> u64 {
        let has = self.get(uuid).is_ok_and(|node| node.inflated || node.blocks.contains(&(at / BLOCK)));
        if has { 0 } else { BLOCK }
    }

    /// Overwrites bytes from byte `at` on. A block that the disk did not have of its own is taken over from its ancestors first.
    ///
    /// # Errors
    /// [`DiskError::Beyond`] where the span ends behind the disk's end: nothing is written.
    pub fn write_at(&mut self, uuid: &str, at: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.within(uuid, at, bytes.len())?;
        for piece in pieces(at, bytes.len()) {
            let part = bytes.get(piece.range).unwrap_or_default();
            let whole = part.len() as u64 == BLOCK;
            if self.get(uuid)?.blocks.contains(&piece.block) {
                let mut file = OpenOptions::new().create(true).write(true).truncate(false).open(self.dir.join(uuid))?;
                file.seek(SeekFrom::Start(piece.block * BLOCK + piece.from))?;
                file.write_all(part)?;
            } else if whole && part.iter().all(|byte| *byte == 0) {
                // Allocated as far as the storage counts, and a hole in the file.
                fs::create_dir_all(&self.dir)?;
                OpenOptions::new().create(true).write(true).truncate(false).open(self.dir.join(uuid))?;
                self.get_mut(uuid)?.blocks.insert(piece.block);
            } else {
                let mut old = if whole { Vec::new() } else { self.read(uuid, piece.block)? };
                let from = usize::try_from(piece.from).unwrap_or_default();
                match old.get_mut(from..from + part.len()) {
                    Some(slot) => slot.copy_from_slice(part),
                    None => old = part.to_vec(),
                }
                self.store(uuid, piece.block, &old)?;
            }
        }
        self.changed(uuid, at, bytes.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Node, pattern};
    use super::*;

    #[test]
    fn a_span_over_blocks_is_read_as_it_was_written_and_the_parent_is_left_alone() {
        let mut disks = Disks::default();
        let source = disks.create(Node { sr: "sr".into(), virtual_size: 3 * BLOCK, ..Node::default() });
        disks.write(&source, 0, &pattern(1, 0)).unwrap();
        let child = disks.branch(&source).unwrap().child;
        let (at, text) = (BLOCK - 3, b"across".as_slice());
        disks.write_at(&child, at, text).unwrap();
        assert_eq!(disks.read_at(&child, at, text.len()).unwrap(), text);
        assert_eq!(disks.read_at(&child, 0, 16).unwrap(), pattern(1, 0)[..16], "the rest of the block came with it");
        assert_eq!(disks.read_at(&source, BLOCK, 3).unwrap(), [0; 3]);
        disks.write_at(&child, 1, b"x").unwrap();
        assert_eq!(disks.read_at(&child, 1, 1).unwrap(), b"x");
        assert!(matches!(disks.write_at(&child, 3 * BLOCK - 1, b"xy"), Err(DiskError::Beyond(..))));
        assert!(matches!(disks.read_at(&child, u64::MAX, 2), Err(DiskError::Beyond(..))));
    }

    #[test]
    fn zeros_hide_what_the_parent_has() {
        let mut disks = Disks::default();
        let source = disks.create(Node { sr: "sr".into(), virtual_size: 3 * BLOCK, ..Node::default() });
        disks.write(&source, 1, &pattern(1, 1)).unwrap();
        let child = disks.branch(&source).unwrap().child;
        let zeros = vec![0; usize::try_from(BLOCK).unwrap()];
        disks.write_at(&child, BLOCK, &zeros).unwrap();
        assert_eq!(disks.read(&child, 1).unwrap(), zeros);
        disks.branch(&child).unwrap();
        disks.remove(&child).unwrap();
    }
}
