//! The guest's integrity report: what it says, whether it counts, and what each bit means.
//!
//! Pure. A report is a claim by the guest, never a proof; it counts only if it is bound to the boot that was just halted. Read by
//! `gate` and by whoever shows findings.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::identity::{BOOT, NONCE};
use super::observed::Machine;
use crate::api::layer_status::MAX_FINDINGS;
use crate::api::reason::Reason;

/// Where the guest's keys are in `VM.xenstore_data`.
pub const PREFIX: &str = "vm-data/lamina/";
const REPORT: &str = "vm-data/lamina/report/";
const LONGEST_FINDING: usize = 2048;
/// Findings named in a message; status has them all, and a message must stay one that a person reads and the API server takes.
const NAMED: usize = 5;
/// Characters of a finding's detail in a message. Reasons and remedies are short already.
const LONGEST_NAMED: usize = 100;

/// What a guest wrote below `vm-data/lamina/report/`.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    pub nonce: String,
    pub boot: String,
    pub domid: String,
    /// The vendor's `BlockFinalize`; `None`: no number.
    pub block_finalize: Option<u64>,
    /// `<reason> <detail>`, as the guest's tool wrote them, in their order.
    pub findings: Vec<(String, String)>,
    pub rearms_before: Option<u32>,
    pub rearms_left: Option<u32>,
    pub rearmed: bool,
    /// The seal is the SHA-256 over all its other lines.
    pub sealed: bool,
}

/// One finding, in our words.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    pub reason: String,
    pub detail: String,
    pub remedy: String,
    /// Blocks whatever the policy says.
    pub always: bool,
}

impl Finding {
    /// For a message: reason, detail and remedy, without the stop at its end.
    fn words(&self) -> String {
        let mut detail: String = self.detail.chars().take(LONGEST_NAMED).collect();
        if detail.len() < self.detail.len() {
            detail.push('…');
        }
        format!("{} ({detail}): {}", self.reason, self.remedy.trim_end_matches('.'))
    }
}

/// Findings for a message: the first few in words, the rest counted.
pub fn named(findings: &[&Finding]) -> String {
    let mut words: Vec<String> = findings.iter().take(NAMED).map(|f| f.words()).collect();
    if let Some(more) = findings.len().checked_sub(NAMED).filter(|more| *more > 0) {
        words.push(format!("and {more} more, see status.integrity.findings"));
    }
    words.join("; ")
}

/// As many findings as a status holds: those that no policy lets pass come first, and what does not fit is counted by the last.
pub fn fitting(mut all: Vec<Finding>) -> Vec<Finding> {
    all.sort_by_key(|f| !f.always);
    if all.len() > MAX_FINDINGS {
        let dropped = all.split_off(MAX_FINDINGS - 1);
        all.push(Finding {
            reason: Reason::MoreFindings.as_str().to_owned(),
            detail: format!("{} more", dropped.len()),
            remedy: Reason::MoreFindings.remedy().to_owned(),
            always: dropped.iter().any(|f| f.always),
        });
    }
    all
}

impl Report {
    /// Reads a report; `None` where there is no trace of one.
    pub fn read(xenstore: &BTreeMap<String, String>) -> Option<Self> {
        let lines: BTreeMap<&str, &str> =
            xenstore.iter().filter_map(|(k, v)| Some((k.strip_prefix(REPORT)?, v.as_str()))).collect();
        if lines.is_empty() {
            return None;
        }
        let line = |k: &str| lines.get(k).copied().unwrap_or_default().to_owned();
        let number = |k: &str| lines.get(k).and_then(|v| v.trim().parse::<u32>().ok());
        let mut findings: Vec<(u64, &str)> = lines
            .iter()
            .filter_map(|(k, v)| Some((k.strip_prefix("findings/")?.parse().unwrap_or(u64::MAX), *v)))
            .collect();
        findings.sort_by_key(|(n, _)| *n);
        Some(Self {
            nonce: line("nonce"),
            boot: line("boot"),
            domid: line("domid"),
            block_finalize: lines.get("block-finalize").and_then(|v| v.trim().parse().ok()),
            findings: findings
                .into_iter()
                .map(|(_, v)| {
                    let (reason, detail) = v.split_once(' ').unwrap_or((v, ""));
                    (clean(reason, 64), clean(detail, LONGEST_FINDING))
                })
                .collect(),
            rearms_before: number("rearms-before"),
            rearms_left: number("rearms-left"),
            rearmed: lines.get("rearmed") == Some(&"true"),
            sealed: lines.get("sealed").is_some_and(|s| s.eq_ignore_ascii_case(&seal(&lines))),
        })
    }

    /// Does it count for the boot that ended with the machine as it stands? The reason why not, in words.
    pub fn counts(&self, machine: &Machine) -> Result<(), &'static str> {
        let Some((domid, start_time)) = machine.key(BOOT).and_then(|b| b.split_once('@')) else {
            return Err("no boot of the machine was recorded");
        };
        // Noted only once it was over.
        if domid.starts_with('-') {
            return Err("nobody saw the boot that it is of");
        }
        if Some(self.nonce.as_str()) != machine.key(NONCE) {
            return Err("it carries another machine's nonce");
        }
        if machine.guest_boot.as_deref() != Some(self.boot.as_str()) || self.boot.is_empty() {
            return Err("it is of an earlier boot");
        }
        if self.domid != domid || machine.start_time != start_time {
            return Err("the machine was started again after it was written");
        }
        if !self.sealed {
            return Err("its seal does not fit: it is cut off or was changed");
        }
        Ok(())
    }

    /// Everything that it found: the vendor's bits first, then what the guest's tool named.
    pub fn judge(&self) -> Vec<Finding> {
        let mut all = match self.block_finalize {
            Some(bits) => bits_of(bits),
            None => vec![Finding {
                reason: Reason::NoVerdict.as_str().to_owned(),
                detail: "the report has no readable BlockFinalize number".to_owned(),
                remedy: Reason::NoVerdict.remedy().to_owned(),
                always: false,
            }],
        };
        for (reason, detail) in &self.findings {
            let known = Reason::parse(reason);
            all.push(Finding {
                reason: reason.clone(),
                detail: detail.clone(),
                remedy: known
                    .map_or("clear what the detail names, then run the check again", Reason::remedy)
                    .to_owned(),
                always: false,
            });
        }
        all
    }
}

/// The vendor's bits, lowest first; a bit that nobody described keeps its number and blocks.
fn bits_of(bits: u64) -> Vec<Finding> {
    (0..u64::BITS)
        .filter(|n| bits & (1 << n) != 0)
        .map(|n| {
            let value = 1u64 << n;
            let known = BITS.iter().find(|(bit, _)| *bit == value).map(|(_, reason)| *reason);
            Finding {
                reason: known.map_or_else(|| format!("Bit{value}"), |r| r.as_str().to_owned()),
                detail: format!("BlockFinalize has bit {value}"),
                remedy: known
                    .map_or(
                        "unknown to Lamina: ask the vendor of the guest service what this bit means",
                        Reason::remedy,
                    )
                    .to_owned(),
                always: value == 1,
            }
        })
        .collect()
}

/// The bits that have a public description.
pub const BITS: [(u64, Reason); 13] = [
    (1, Reason::BypassEnabled),
    (2, Reason::RebootPending),
    (4, Reason::InstallerBusy),
    (8, Reason::NGenRunning),
    (16, Reason::RunOncePending),
    (32, Reason::WindowsUpgradeUnfinished),
    (64, Reason::NGenNeeded),
    (128, Reason::SCCMClientIdentity),
    (256, Reason::FSLogixAltitude),
    (512, Reason::WEMKeyFile),
    (1024, Reason::TokensLeft),
    (2048, Reason::KMSDirectoryMissing),
    (4096, Reason::KMSPolicyMissing),
];

/// SHA-256, in hex, over the lines `key=value` of all keys but `sealed`, sorted, each with a newline.
fn seal(lines: &BTreeMap<&str, &str>) -> String {
    let mut hash = Sha256::new();
    for (k, v) in lines.iter().filter(|(k, _)| **k != "sealed") {
        hash.update(format!("{k}={v}\n"));
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// Guest text on its way to a status: no control characters, and no longer than `most` bytes.
fn clean(s: &str, most: usize) -> String {
    let mut out: String = s.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    while out.len() > most {
        out.pop();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vendor's words, in the order of the bits; what nobody described blocks all the same.
    #[test]
    fn each_bit_is_a_finding_with_a_cure_and_a_cut_is_told() {
        let all = bits_of((1 << 14) - 1);
        let reasons: Vec<_> = all.iter().map(|f| f.reason.as_str()).collect();
        let known = [
            "BypassEnabled",
            "RebootPending",
            "InstallerBusy",
            "NGenRunning",
            "RunOncePending",
            "WindowsUpgradeUnfinished",
            "NGenNeeded",
            "SCCMClientIdentity",
            "FSLogixAltitude",
            "WEMKeyFile",
            "TokensLeft",
            "KMSDirectoryMissing",
            "KMSPolicyMissing",
            "Bit8192",
        ];
        assert_eq!(reasons, known);
        assert!(all.iter().all(|f| !f.remedy.is_empty()));
        assert_eq!(all.iter().filter(|f| f.always).map(|f| f.reason.as_str()).collect::<Vec<_>>(), ["BypassEnabled"]);
    }

    /// A cut is told; what blocks under every policy is never what is cut off.
    #[test]
    fn findings_fit_a_status_and_their_words_a_message() {
        let finding = |n: usize| Finding {
            reason: format!("Odd{n}"),
            detail: "ü".repeat(2000),
            remedy: "Mend it.".to_owned(),
            always: n == 99,
        };
        let fits = fitting((0..MAX_FINDINGS).map(finding).collect());
        assert_eq!((fits.len(), fits.last().map(|f| f.reason.as_str())), (MAX_FINDINGS, Some("Odd31")));
        let cut = fitting((60..100).map(finding).collect());
        assert_eq!((cut.len(), cut[0].reason.as_str()), (MAX_FINDINGS, "Odd99"));
        let last = cut.last().expect("the count");
        assert_eq!((last.reason.as_str(), last.detail.as_str()), ("MoreFindings", "9 more"));

        let words = named(&cut.iter().collect::<Vec<_>>());
        assert!(words.len() < 2000 && words.ends_with("; and 27 more, see status.integrity.findings"), "{words}");
        assert!(words.starts_with("Odd99 (üü") && words.contains("…): Mend it; Odd60"), "{words}");
        assert_eq!(named(&[&finding(1)]).matches("more").count(), 0);
    }
}
