//! What came back on a config disk after the halt. Pure; called by the controller with the bytes of `GET /export_raw_vdi`.
//!
//! Each file stands for itself: a damaged report does not take the record with it. Logs are not read: they are as large as the disk, may hold
//! anything, and are for whoever sits at the machine. A disk of another machine says nothing at all.

use super::fat::Volume;
use super::{Damage, LABEL, LAYER, Layer, MOST_TEXT_BYTES, RECORDS, REPORT};
use crate::report::{LONGEST_FILE, LONGEST_FINDING, MOST_WRITTEN, Report, Unreadable};
use crate::steps::record::Record;

/// Bytes that a report with every finding it may have fits into: Windows writes one as a whole, or an empty file.
const ROOM: u64 = (MOST_WRITTEN * LONGEST_FINDING) as u64;

/// What a guest left.
pub struct Back {
    /// What ran. There is one from the start, so none is a damage.
    pub record: Result<Record, Damage>,
    /// `None`: the guest wrote none. Whether it counts is for `bound` to say.
    pub report: Result<Option<Report>, Damage>,
}

/// Reads the disk of the machine with this nonce.
pub fn read(disk: &[u8], nonce: &str) -> Result<Back, Damage> {
    let volume = Volume::open(disk)?;
    if volume.label().is_none_or(|l| !l.eq_ignore_ascii_case(LABEL)) {
        return Err(Damage::Label);
    }
    let layer = text(&volume, LAYER)?.ok_or(Damage::Missing(LAYER))?;
    let layer: Layer = serde_json::from_str(&layer).map_err(|_| Damage::Garbled(LAYER.to_owned()))?;
    if layer.nonce != nonce {
        return Err(Damage::Foreign);
    }
    Ok(Back { record: record(&volume, nonce), report: report(&volume) })
}

/// One slot that cannot be read leaves the other.
fn record(volume: &Volume, nonce: &str) -> Result<Record, Damage> {
    let [even, odd] = RECORDS.map(|path| volume.file(path, MOST_TEXT_BYTES));
    let slots = [even.as_ref().ok(), odd.as_ref().ok()].map(|s| s.and_then(|s| s.as_deref()));
    match Record::newest(slots) {
        Ok(record) if record.nonce == nonce => Ok(record),
        Ok(_) => Err(Damage::Foreign),
        Err(unsealed) => Err(even.err().or(odd.err()).unwrap_or(unsealed)),
    }
}

fn report(volume: &Volume) -> Result<Option<Report>, Damage> {
    let bytes = volume.file(REPORT, LONGEST_FILE as u64)?.filter(|b| !b.is_empty());
    let report = bytes.map(|bytes| {
        Report::from_json(&bytes).map_err(|why| match why {
            Unreadable::TooLong => Damage::TooLong(REPORT.to_owned()),
            Unreadable::NotText => Damage::NotText(REPORT.to_owned()),
            Unreadable::NotLines => Damage::Garbled(REPORT.to_owned()),
        })
    });
    match report.transpose() {
        // A guest that had no room says nothing, which must not look like a guest that had nothing to say.
        Ok(None) | Err(_) if volume.free() < ROOM => Err(Damage::Full),
        other => other,
    }
}

fn text(volume: &Volume, path: &str) -> Result<Option<String>, Damage> {
    let bytes = volume.file(path, MOST_TEXT_BYTES)?;
    bytes.map(|b| String::from_utf8(b).map_err(|_| Damage::NotText(path.to_owned()))).transpose()
}
