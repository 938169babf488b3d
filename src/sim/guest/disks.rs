//! A machine's disks as its own system has them: by device and byte, with or without a daemon that knows of them.
//!
//! What is plugged is the domain's affair and not the database's: a guest works on while the daemon is dead or has forgotten. `power` and
//! `vbd` say when that changes.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Guest;
use crate::sim::{Pool, disk::DiskError, domain::Device};
use crate::xapi::wire::Ref;

/// Takes over into the machine's domain what is plugged by the rows of its VBDs.
pub fn plugged(pool: &Pool, vm: &str) {
    let devices: BTreeMap<u64, Device> = {
        let db = pool.db();
        let Ok(row) = db.by_uuid("VM", vm) else { return };
        let vbds = db.links("VM", &row, "VBDs").unwrap_or_default();
        let device = |vbd: &Ref| {
            let row = db.find("VBD", vbd)?;
            let text = |field: &str| row.get(field).and_then(Value::as_str).unwrap_or_default();
            let attached = row.get("currently_attached").and_then(Value::as_bool) == Some(true);
            let disk = db.text("VDI", &Ref(text("VDI").to_owned()), "uuid").ok()?.to_owned();
            let device = Device { disk, writable: text("mode") == "RW" };
            (attached && text("type") == "Disk").then_some((text("userdevice").parse().ok()?, device))
        };
        vbds.iter().filter_map(device).collect()
    };
    pool.world.domains.with(vm, |d| d.devices = devices);
}

impl Guest {
    fn device(&self, device: u64) -> Result<Device, DiskError> {
        let found = self.pool.world.domains.devices(&self.vm).remove(&device);
        found.ok_or_else(|| DiskError::Missing(format!("of device {device}")))
    }

    fn writable(&self, device: u64) -> Result<String, DiskError> {
        match self.device(device)? {
            Device { disk, writable: true } => Ok(disk),
            Device { disk, writable: false } => Err(DiskError::ReadOnly(disk)),
        }
    }

    /// Whether the system on the boot disk has its tools.
    pub fn has_tools(&self) -> bool {
        self.device(0).is_ok_and(|boot| self.pool.world.disks().get(&boot.disk).is_ok_and(|n| n.tools))
    }

    /// The tools are on the boot disk now, and in every clone that is made of it.
    pub fn set_tools(&self, on: bool) {
        if let Ok(boot) = self.device(0) {
            // A machine whose disk is gone has no system to remember it.
            self.pool.world.disks().get_mut(&boot.disk).map(|n| n.tools = on).unwrap_or_default();
        }
    }

    /// Writes 2 MiB, or less and zeros, at a block of the disk at this device (`userdevice`).
    pub fn write_block(&self, device: u64, block: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let disk = self.writable(device)?;
        self.pool.world.disks().write(&disk, block, bytes)
    }

    pub fn read_block(&self, device: u64, block: u64) -> Result<Vec<u8>, DiskError> {
        let disk = self.device(device)?.disk;
        self.pool.world.disks().read(&disk, block)
    }

    /// `length` bytes from byte `at` on of the disk at this device.
    ///
    /// # Errors
    /// `Missing` where nothing is plugged there, `Beyond` where the disk ends before.
    pub fn read_disk(&self, device: u64, at: u64, length: usize) -> Result<Vec<u8>, DiskError> {
        let disk = self.device(device)?.disk;
        self.pool.world.disks().read_at(&disk, at, length)
    }

    /// Overwrites bytes from byte `at` on.
    ///
    /// # Errors
    /// As [`Guest::read_disk`]; `ReadOnly` where the VBD is.
    pub fn write_disk(&self, device: u64, at: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let disk = self.writable(device)?;
        self.pool.world.disks().write_at(&disk, at, bytes)
    }

    /// Bytes that the disk at this device has.
    ///
    /// # Errors
    /// `Missing`.
    pub fn disk_size(&self, device: u64) -> Result<u64, DiskError> {
        let disk = self.device(device)?.disk;
        self.pool.world.disks().get(&disk).map(|node| node.virtual_size)
    }

    /// The devices that have a disk.
    pub fn disks(&self) -> Vec<u64> {
        self.pool.world.domains.devices(&self.vm).into_keys().collect()
    }
}
