//! Files, directories and volumes.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};

use windows::Win32::Foundation::{
    ERROR_INVALID_FUNCTION, ERROR_NOT_READY, ERROR_NOT_SUPPORTED, ERROR_UNRECOGNIZED_VOLUME, GENERIC_READ, HANDLE,
};
use windows::Win32::Storage::FileSystem::{
    CreateFileW, FILE_FLAGS_AND_ATTRIBUTES, FILE_SHARE_READ, FILE_SHARE_WRITE, GetDriveTypeW, GetLogicalDrives,
    GetVolumeInformationW, OPEN_EXISTING,
};
use windows::Win32::System::IO::DeviceIoControl;
use windows::Win32::System::Ioctl::FSCTL_IS_VOLUME_DIRTY;
use windows::core::{Error, HSTRING, Owned};

use super::{blind, seconds};
use crate::channel::LABEL;
use crate::facts::{Seen, Stat, Volume};
use crate::raw::until_nul;

/// `DRIVE_FIXED` and `DRIVE_REMOTE` of winbase.h.
const FIXED: u32 = 3;
const REMOTE: u32 = 4;
/// `VOLUME_IS_DIRTY` of winioctl.h.
const DIRTY: u32 = 1;
/// A label and a file system's name have at most this many characters, with their NUL.
const LONGEST_NAME: usize = 261;

/// What is not there is no error.
fn there<T>(path: &str, looked: io::Result<T>) -> Seen<Option<T>> {
    match looked {
        Ok(found) => Ok(Some(found)),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(blind(path, e)),
    }
}

pub fn stat(path: &str) -> Seen<Option<Stat>> {
    // std asks the directory where a file is locked, as hiberfil.sys is.
    let Some(found) = there(path, fs::metadata(path))? else { return Ok(None) };
    let modified = found.modified().map_err(|e| blind(path, e))?;
    Ok(Some(Stat { directory: found.is_dir(), modified: seconds(modified) }))
}

pub fn list(path: &str) -> Seen<Option<Vec<String>>> {
    let Some(entries) = there(path, fs::read_dir(path))? else { return Ok(None) };
    let name = |entry: io::Result<fs::DirEntry>| entry.map(|e| e.file_name().to_string_lossy().into_owned());
    entries.map(name).collect::<Result<_, _>>().map(Some).map_err(|e| blind(path, e))
}

pub fn read(path: &str, most: usize) -> Seen<Option<Vec<u8>>> {
    let Some(file) = there(path, File::open(path))? else { return Ok(None) };
    let mut bytes = Vec::new();
    // One more than allowed tells a long file from a full one, whatever its directory says of its length.
    file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(|e| blind(path, e))?;
    if bytes.len() > most {
        return Err(blind(path, format!("it has more than {most} bytes")));
    }
    Ok(Some(bytes))
}

pub fn volumes() -> Seen<Vec<Volume>> {
    // SAFETY: takes nothing.
    let drives = unsafe { GetLogicalDrives() };
    if drives == 0 {
        return Err(blind("the list of drives", Error::from_thread()));
    }
    let roots =
        ('A'..='Z').enumerate().filter(|(n, _)| drives & (1 << n) != 0).map(|(_, letter)| format!(r"{letter}:\"));
    let (seen, blind): (Vec<_>, Vec<_>) = roots.filter_map(|root| volume(root).transpose()).partition(Result::is_ok);
    let seen: Vec<Volume> = seen.into_iter().filter_map(Result::ok).collect();
    // Nobody needs more than ours: where it is there, another drive that cannot be asked keeps nobody from it.
    match blind.into_iter().find_map(Result::err).filter(|_| !seen.iter().any(|v| v.label.eq_ignore_ascii_case(LABEL)))
    {
        Some(blind) => Err(blind),
        None => Ok(seen),
    }
}

/// `None`: a network drive, which is no part of this machine and may not answer for minutes.
fn volume(root: String) -> Seen<Option<Volume>> {
    let name = HSTRING::from(&root);
    // SAFETY: the name lives through the call.
    let kind = unsafe { GetDriveTypeW(&name) };
    if kind == REMOTE {
        return Ok(None);
    }
    let (mut label, mut system) = ([0; LONGEST_NAME], [0; LONGEST_NAME]);
    // SAFETY: the name and both buffers live through the call, which is told how long they are.
    let told = unsafe { GetVolumeInformationW(&name, Some(&mut label), None, None, None, Some(&mut system)) };
    match told {
        Ok(()) => {}
        // A drive without a medium, or with one that Windows cannot read, has no file system. Of a fixed disk anything else is news.
        Err(e)
            if kind != FIXED
                || [ERROR_NOT_READY, ERROR_UNRECOGNIZED_VOLUME].map(|c| c.to_hresult()).contains(&e.code()) => {}
        Err(e) => return Err(blind(format!("volume {root}"), e)),
    }
    Ok(Some(Volume { label: until_nul(&label), file_system: until_nul(&system), root }))
}

pub fn dirty(root: &str) -> Seen<bool> {
    let unseen = |why: Error| blind(format!("the dirty bit of volume {root}"), why);
    let device = HSTRING::from(format!(r"\\.\{}", root.trim_end_matches('\\')));
    // With less than GENERIC_READ the device below the file system would be opened, which knows nothing of the bit.
    // SAFETY: the name lives through the call; what it returns is ours to close, which `Owned` does.
    let volume: Owned<HANDLE> = unsafe {
        CreateFileW(
            &device,
            GENERIC_READ.0,
            FILE_SHARE_READ | FILE_SHARE_WRITE,
            None,
            OPEN_EXISTING,
            FILE_FLAGS_AND_ATTRIBUTES(0),
            None,
        )
        .map(|h| Owned::new(h))
    }
    .map_err(unseen)?;
    let (mut flags, mut returned) = (0_u32, 0);
    // SAFETY: the handle is open; `flags` is as long as we say, and outlives the call, which is synchronous.
    let told = unsafe {
        DeviceIoControl(
            *volume,
            FSCTL_IS_VOLUME_DIRTY,
            None,
            0,
            Some((&raw mut flags).cast()),
            size_of::<u32>() as u32,
            Some(&mut returned),
            None,
        )
    };
    match told {
        Ok(()) => Ok(flags & DIRTY != 0),
        // The file system has no such call, so no such bit. NTFS, which Windows lives on, always has it; wine's directories never.
        Err(e) if [ERROR_INVALID_FUNCTION, ERROR_NOT_SUPPORTED].map(|c| c.to_hresult()).contains(&e.code()) => {
            Ok(false)
        }
        Err(e) => Err(unseen(e)),
    }
}
