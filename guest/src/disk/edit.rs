//! A config disk under a simulated guest's hands: reads and writes files in its bytes, as Windows' own FAT driver does in a real one.
//!
//! Never used on a disk that came back: `back` reads those.

use super::build::{mount, plain_dots, write};
use super::fat::Volume;
use super::{Damage, START};

/// Every file by its path (with `/`), for a guest that boots.
pub fn files(disk: &[u8]) -> Result<Vec<(String, Vec<u8>)>, Damage> {
    let volume = Volume::open(disk)?;
    let mut found = Vec::new();
    for (path, _) in volume.walk()?.into_iter().filter(|(_, e)| !e.directory) {
        let bytes = volume.file(&path, disk.len() as u64)?;
        found.extend(bytes.map(|b| (path, b)));
    }
    Ok(found)
}

/// Makes or replaces a file; an error where the volume is full.
pub fn put(disk: &mut [u8], path: &str, bytes: &[u8]) -> std::io::Result<()> {
    with(disk, |volume| write(volume, path, bytes))
}

/// Removes a file; none there is fine.
pub fn remove(disk: &mut [u8], path: &str) -> std::io::Result<()> {
    with(disk, |volume| match volume.root_dir().remove(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    })
}

fn with(
    disk: &mut [u8],
    act: impl FnOnce(&fatfs::FileSystem<std::io::Cursor<&mut [u8]>>) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let volume = disk.get_mut(START..).ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let volume = mount(volume)?;
    act(&volume)?;
    volume.unmount()?;
    plain_dots(disk)
}
