//! The report: the guest's word on its Windows, in the one form that both channels carry.
//!
//! Written by `finalize` and read by the controller. It is a set of lines, key and value: in xenstore a key each below [`XENSTORE`], on the
//! config disk one JSON object in [`FILE`], both in ASCII. Its last line seals the others. Reading never fails for what it does not know: unknown lines are
//! sealed too and mean nothing. A report is a claim, never a proof; what it is worth is judged by who reads it.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::checks::Verdict;

/// Where the guest's keys are in the machine's xenstore.
pub const PREFIX: &str = "vm-data/lamina/";
/// Where the report's lines are in the machine's xenstore.
pub const XENSTORE: &str = "vm-data/lamina/report/";
/// The report on the config disk.
pub const FILE: &str = "report.json";

/// Findings in a report; more are counted by its last.
pub const MOST_WRITTEN: usize = 64;
/// Findings that are read of a report, whoever wrote it.
const MOST_READ: usize = 1000;
/// Bytes of a finding: reason, space, detail.
pub const LONGEST_FINDING: usize = 2048;
const LONGEST_REASON: usize = 64;
/// Bytes of a report as a file: more than is ever written, so that lines to come have room.
pub const LONGEST_FILE: usize = 1 << 20;
const MORE: &str = "MoreFindings";

/// A report's lines, without what stands before each in xenstore.
pub type Lines = BTreeMap<String, String>;

/// What a guest reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The machine's, repeated.
    pub nonce: String,
    /// The mark that the guest made at this boot, repeated.
    pub boot: String,
    /// Number of the domain that it ran in; empty where the guest has no xenstore.
    pub domid: String,
    /// The vendor's `BlockFinalize`; `None`: no number.
    pub block_finalize: Option<u64>,
    /// Reason and detail, in their order.
    pub findings: Vec<(String, String)>,
    pub rearms_before: Option<u32>,
    pub rearms_left: Option<u32>,
    pub rearmed: bool,
    /// Seconds since 1970 by the guest's clock, which may be off by hours.
    pub booted_at: Option<u64>,
    pub written_at: Option<u64>,
    /// Whether the seal fits that it was read with; nobody writes one that does not.
    pub sealed: bool,
}

/// Why a file is no report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("it is longer than {LONGEST_FILE} bytes")]
    TooLong,
    #[error("it is not UTF-8")]
    NotText,
    #[error("it is cut off, or no JSON object of texts")]
    NotLines,
}

impl Report {
    /// Takes over what a check found.
    pub fn tell(&mut self, verdict: &Verdict) {
        self.block_finalize = verdict.block_finalize;
        self.findings = verdict.ours().into_iter().map(|f| (f.reason, f.detail)).collect();
    }

    /// Its lines, sealed, each within what a channel takes.
    pub fn lines(&self) -> Lines {
        let mut lines = Lines::new();
        let mut put = |key: &str, value: String| lines.insert(key.to_owned(), value);
        put("nonce", plain(&self.nonce, LONGEST_FINDING));
        put("boot", plain(&self.boot, LONGEST_FINDING));
        put("domid", plain(&self.domid, LONGEST_FINDING));
        let numbers = [
            ("block-finalize", self.block_finalize),
            ("rearms-before", self.rearms_before.map(u64::from)),
            ("rearms-left", self.rearms_left.map(u64::from)),
            ("booted-at", self.booted_at),
            ("written-at", self.written_at),
        ];
        for (key, number) in numbers {
            number.map(|n| put(key, n.to_string()));
        }
        if self.rearms_before.is_some() {
            put("rearmed", self.rearmed.to_string());
        }
        let mut told = self.findings.clone();
        if told.len() > MOST_WRITTEN {
            let dropped = told.split_off(MOST_WRITTEN - 1).len();
            told.push((MORE.to_owned(), format!("{dropped} more")));
        }
        for (n, (reason, detail)) in told.iter().enumerate() {
            let reason = plain(reason, LONGEST_REASON).replace(' ', "");
            put(&format!("findings/{n}"), plain(&format!("{reason} {detail}"), LONGEST_FINDING));
        }
        let seal = seal(lines.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        lines.insert("sealed".to_owned(), seal);
        lines
    }

    /// Reads a report from its lines; `None` where there is no trace of one.
    pub fn read<'a>(lines: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<Self> {
        let lines: BTreeMap<&str, &str> = lines.into_iter().collect();
        if lines.is_empty() {
            return None;
        }
        let text = |k: &str| clean(lines.get(k).copied().unwrap_or_default(), LONGEST_FINDING);
        let number = |k: &str| lines.get(k).and_then(|v| v.trim().parse::<u64>().ok());
        let count = |k: &str| number(k).and_then(|n| u32::try_from(n).ok());
        let told = |(k, v): (&&str, &&'a str)| Some((k.strip_prefix("findings/")?.parse().unwrap_or(u64::MAX), *v));
        let mut findings: Vec<(u64, &str)> = lines.iter().filter_map(told).collect();
        findings.sort_by_key(|(n, _)| *n);
        let dropped = findings.len().saturating_sub(MOST_READ);
        let mut findings: Vec<_> = findings
            .into_iter()
            .take(MOST_READ)
            .map(|(_, line)| {
                let (reason, detail) = line.split_once(' ').unwrap_or((line, ""));
                (clean(reason, LONGEST_REASON), clean(detail, LONGEST_FINDING))
            })
            .collect();
        if dropped > 0 {
            findings.push((MORE.to_owned(), format!("{dropped} more")));
        }
        let sealed = seal(lines.iter().map(|(k, v)| (*k, *v)));
        Some(Self {
            nonce: text("nonce"),
            boot: text("boot"),
            domid: text("domid"),
            block_finalize: number("block-finalize"),
            findings,
            rearms_before: count("rearms-before"),
            rearms_left: count("rearms-left"),
            rearmed: lines.get("rearmed") == Some(&"true"),
            booted_at: number("booted-at"),
            written_at: number("written-at"),
            sealed: lines.get("sealed").is_some_and(|s| s.eq_ignore_ascii_case(&sealed)),
        })
    }

    /// Reads it out of everything below `vm-data` of a machine.
    pub fn from_xenstore(xenstore: &BTreeMap<String, String>) -> Option<Self> {
        Self::read(xenstore.iter().filter_map(|(k, v)| Some((k.strip_prefix(XENSTORE)?, v.as_str()))))
    }

    /// As a file for the config disk.
    pub fn to_json(&self) -> Vec<u8> {
        let object = self.lines().into_iter().map(|(k, v)| (k, serde_json::Value::String(v))).collect();
        let mut text = format!("{:#}", serde_json::Value::Object(object));
        text.push('\n');
        text.into_bytes()
    }

    /// Reads the file of a config disk.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Unreadable> {
        if bytes.len() > LONGEST_FILE {
            return Err(Unreadable::TooLong);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Unreadable::NotText)?;
        let lines: Lines = serde_json::from_str(text).map_err(|_| Unreadable::NotLines)?;
        Self::read(lines.iter().map(|(k, v)| (k.as_str(), v.as_str()))).ok_or(Unreadable::NotLines)
    }
}

/// SHA-256, in hex, over the lines `key=value` of all keys but `sealed`, sorted, each with a newline.
pub fn seal<'a>(lines: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let sorted: BTreeMap<&str, &str> = lines.into_iter().filter(|(k, _)| *k != "sealed").collect();
    let mut hash = Sha256::new();
    for (k, v) in sorted {
        hash.update(format!("{k}={v}\n"));
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// Text as a channel carries it: ASCII alone, with `\u{…}` for the rest. The vendor's `xenstore_client` takes its arguments through a code
/// page, and Windows speaks its user's language: the seal would not fit.
fn plain(s: &str, most: usize) -> String {
    let ascii = |c: char| if c.is_ascii() { c.to_string() } else { c.escape_unicode().to_string() };
    clean(&clean(s, most).chars().map(ascii).collect::<String>(), most)
}

/// Guest text on its way to others: no control characters, and no longer than `most` bytes.
fn clean(s: &str, most: usize) -> String {
    let mut out = String::with_capacity(s.len().min(most));
    for c in s.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len() + c.len_utf8() > most {
            break;
        }
        out.push(c);
    }
    out
}
