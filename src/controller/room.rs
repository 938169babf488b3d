//! How much of disks may be in memory at a time. The pod has a limit, and one that is killed for passing it is killed again after each start.
//!
//! One for a process, whatever the number of its Connectors; taken by `act` before files are read or a disk is moved. Nobody waits here:
//! passes are few, and who waited would act on an old look. Who gets nothing is told, and asks again.

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::api::reason::Reason;
use crate::domain::observed::Trouble;

/// MiB. A config disk at its limits and its files take 190, one that is read back 128. All else had half a GiB before and has it now: the
/// Deployment's limit is the sum (`tests/manifests.rs`).
pub const MIB: u32 = 256;

pub struct Room(Semaphore);

impl Default for Room {
    fn default() -> Self {
        Self(Semaphore::new(MIB as usize))
    }
}

impl Room {
    /// Holds so many bytes until it is dropped.
    pub fn take(&self, bytes: usize) -> Result<SemaphorePermit<'_>, Trouble> {
        let mib = u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX);
        self.0.try_acquire_many(mib).map_err(|_| {
            Trouble::new(
                Reason::WaitingForPool,
                "the controller's memory holds as many config disks of other layers as it may: asked again by itself",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use lamina_guest::disk::{MOST_FILES_BYTES, build};

    use super::*;
    use crate::xapi::stream::LARGEST;

    #[test]
    fn what_may_be_moved_has_room_alone_and_two_large_ones_do_not() {
        let (fill, room) = (build::LARGEST + usize::try_from(MOST_FILES_BYTES).expect("small"), Room::default());
        const { assert!(build::LARGEST <= LARGEST, "each disk of ours can be read back") };
        let first = room.take(fill).expect("room");
        let told = room.take(fill).expect_err("no room");
        assert_eq!((told.reason, room.take(10 << 20).is_ok()), (Reason::WaitingForPool, true), "small ones go on");
        drop(first);
        assert!(room.take(LARGEST).is_ok_and(|_one| room.take(LARGEST).is_ok()), "it is given back");
    }
}
