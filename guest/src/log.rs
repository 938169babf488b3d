//! What is kept of what a step prints: its beginning, written as it comes, and its end. Used by `windows::deeds`.
//!
//! An installer that prints gigabytes fills neither the config disk nor memory, and is not held up by a disk that takes no more.

use std::collections::VecDeque;
use std::io::Write;

use crate::disk::MOST_LOG_BYTES;

/// Written at once: a machine that dies in the middle of a step has left this much.
const HEAD: usize = MOST_LOG_BYTES as usize / 16;
/// Kept in memory, and written at the end, where errors are. With the head it is less than a log may have of each run.
const TAIL: usize = MOST_LOG_BYTES as usize / 4;

pub struct Kept<W> {
    /// `None`: it is over.
    sink: Option<W>,
    written: usize,
    tail: VecDeque<u8>,
    left_out: u64,
}

impl<W: Write> Kept<W> {
    pub fn new(sink: W) -> Self {
        Self { sink: Some(sink), written: 0, tail: VecDeque::new(), left_out: 0 }
    }

    /// What was printed. What comes after the end is nobody's.
    pub fn take(&mut self, bytes: &[u8]) {
        let Some(sink) = &mut self.sink else { return };
        let (head, rest) = bytes.split_at(bytes.len().min(HEAD - self.written));
        self.written += head.len();
        // Where nothing can be written the step goes on all the same.
        sink.write_all(head).unwrap_or_default();
        let over = (self.tail.len() + rest.len()).saturating_sub(TAIL);
        self.left_out += over as u64;
        let old = over.min(self.tail.len());
        self.tail.drain(..old);
        self.tail.extend(rest.iter().skip(over - old));
    }

    /// Writes the end.
    pub fn end(&mut self) {
        let Some(mut sink) = self.sink.take() else { return };
        if self.left_out > 0 {
            write!(sink, "\r\n[lamina-guest: {} bytes are left out here]\r\n", self.left_out).unwrap_or_default();
        }
        let (one, other) = self.tail.as_slices();
        sink.write_all(one).and_then(|()| sink.write_all(other)).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steps::engine::MOST_RUNS;

    fn kept(pieces: &[&[u8]]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut kept = Kept::new(&mut file);
        pieces.iter().for_each(|piece| kept.take(piece));
        kept.end();
        kept.take(b"from whoever is left");
        kept.end();
        file
    }

    #[test]
    fn what_is_short_is_whole_and_of_what_is_long_both_ends_stay() {
        assert_eq!(kept(&[b"one ", b"", b"two"]), b"one two");
        let all: Vec<u8> = (0..HEAD + TAIL).map(|n| n as u8).collect();
        assert!(kept(&[&all]) == all, "to the last byte");
        let more: Vec<u8> = (0..5 * TAIL).map(|n| (n / 7) as u8).collect();
        for size in [1000, HEAD + 1, more.len()] {
            let file = kept(&more.chunks(size).collect::<Vec<_>>());
            let note = format!("\r\n[lamina-guest: {} bytes are left out here]\r\n", more.len() - HEAD - TAIL);
            let wanted = [&more[..HEAD], note.as_bytes(), &more[more.len() - TAIL..]].concat();
            assert!(file == wanted, "in pieces of {size}");
            assert!(MOST_RUNS as usize * file.len() <= MOST_LOG_BYTES as usize);
        }
    }

    /// A step is not held up by its log.
    #[test]
    fn a_disk_that_is_full_costs_the_log_alone() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut kept = Kept::new(Full);
        (0..100).for_each(|_| kept.take(&[b'x'; 100_000]));
        assert!(kept.tail.len() <= TAIL);
        kept.end();
    }
}
