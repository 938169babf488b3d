//! The record of the vendor's service inside the guest: one number, a sum of bits, and what its bits mean.
//!
//! A record counts only if it was written in this boot; one that is older says nothing, and is a finding of its own. So is none at all where
//! the service is installed: what only the vendor looks for was looked for by nobody. Bits that nobody described block, and keep their number.

use serde::Deserialize;

use super::{Basis, Check, Finding, paths};
use crate::cause::{Cause, Clears};
use crate::facts::{Blind, Facts, Seen};

/// A record is a few lines.
const LONGEST: usize = 1 << 20;
/// File times are coarse, and the time of the boot is the difference of two clocks.
const SLACK: u64 = 5;

pub const CHECKS: &[Check] = &[
    Check {
        cause: Cause::VendorRecordOld,
        place: r"`Unidesk\Uniservice\Log\LayerIntegrity.txt` below `%ProgramFiles%`, written before this boot. A record of this boot counts in full: every bit of its `BlockFinalize` is a finding, unknown ones as `Bit<n>`",
        basis: Basis::Documented,
        look: old,
    },
    Check {
        cause: Cause::VendorRecordMissing,
        place: r"`Unidesk\Uniservice` below `%ProgramFiles%`: `uniservice.exe` is there, `Log\LayerIntegrity.txt` is not",
        basis: Basis::Documented,
        look: missing,
    },
];

fn place(facts: &dyn Facts) -> Seen<String> {
    Ok(format!(r"{}\Unidesk\Uniservice\Log\LayerIntegrity.txt", paths::program_files(facts)?))
}

/// The record's path and whether it is of this boot; `None`: there is none.
fn record(facts: &dyn Facts) -> Seen<Option<(String, bool)>> {
    let path = place(facts)?;
    let Some(stat) = facts.stat(&path)? else { return Ok(None) };
    let now = facts.now();
    let booted = now.saturating_sub(facts.uptime().as_secs());
    let of_this_boot = (booted.saturating_sub(SLACK)..=now.saturating_add(SLACK)).contains(&stat.modified);
    Ok(Some((path, of_this_boot)))
}

fn old(facts: &dyn Facts) -> Seen<Vec<String>> {
    let old = record(facts)?.filter(|(_, of_this_boot)| !of_this_boot);
    Ok(old.map(|(path, _)| format!("{path} was not written in this boot")).into_iter().collect())
}

fn missing(facts: &dyn Facts) -> Seen<Vec<String>> {
    let lacks = paths::uniservice(facts)?.is_some() && record(facts)?.is_none();
    Ok(if lacks { vec![format!("{} does not exist", place(facts)?)] } else { Vec::new() })
}

/// The number of a record of this boot; 0 where there is none.
pub fn number(facts: &dyn Facts) -> Seen<u64> {
    let Some((path, true)) = record(facts)? else { return Ok(0) };
    let Some(bytes) = facts.read(&path, LONGEST)? else { return Ok(0) };
    parse(&bytes).ok_or_else(|| Blind { what: path, why: "it has no readable BlockFinalize number".to_owned() })
}

/// `BlockFinalize` of a record: JSON with a number, or with a number as text; UTF-8 or UTF-16, as Windows programs write.
pub fn parse(bytes: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Record {
        #[serde(rename = "BlockFinalize")]
        block_finalize: Number,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Plain(u64),
        Text(String),
    }
    let text = match bytes {
        [0xEF, 0xBB, 0xBF, rest @ ..] => String::from_utf8(rest.to_vec()).ok()?,
        [0xFF, 0xFE, rest @ ..] => {
            let units: Vec<u16> = rest.as_chunks().0.iter().map(|two| u16::from_le_bytes(*two)).collect();
            String::from_utf16(&units).ok()?
        }
        plain => String::from_utf8(plain.to_vec()).ok()?,
    };
    match serde_json::from_str::<Record>(&text).ok()?.block_finalize {
        Number::Plain(n) => Some(n),
        Number::Text(text) => text.trim().parse().ok(),
    }
}

/// What the bits of a number say, lowest first. The same for the guest, who shows them, and for the controller, who judges by them.
pub fn bits(number: u64) -> Vec<Finding> {
    let set = (0..u64::BITS).map(|n| 1u64 << n).filter(|bit| number & bit != 0);
    set.map(|bit| {
        let detail = format!("BlockFinalize has bit {bit}");
        match Cause::ALL.iter().find(|c| c.bit() == bit) {
            Some(cause) => Finding::new(*cause, detail),
            None => Finding {
                reason: format!("Bit{bit}"),
                detail,
                remedy: "Unknown to Lamina: ask the vendor of the guest service what this bit means.".to_owned(),
                clears: Clears::Hands,
            },
        }
    })
    .collect()
}
