//! The guest's integrity report: whether it counts, and what follows from what it says.
//!
//! Pure. A report is a claim by the guest, never a proof; it counts only if it is bound to the boot that was just halted. Its form, and what
//! the vendor's bits mean, are `lamina_guest`'s, which writes it. Read by `gate` and by whoever shows findings.

use lamina_guest::cause::Cause;
use lamina_guest::checks::bits;
pub use lamina_guest::report::{PREFIX, Report};

use super::doubt::Doubt;
use super::identity::{BOOT, NONCE};
use super::observed::Machine;
use crate::api::layer_status::MAX_FINDINGS;
use crate::api::reason::Reason;

/// Findings named in a message; status has them all, and a message must stay one that a person reads and the API server takes.
const NAMED: usize = 5;
/// Characters of a finding's detail in a message. Reasons and remedies are short already.
const LONGEST_NAMED: usize = 100;

/// Bytes of a report in a machine's key: xapi copies its whole database in memory.
const LONGEST_REPORT: usize = 56 << 10;

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

/// A report with as many of its findings as a key has room for; that there are more is then one of them. What came the other way is compared in
/// the same form.
pub fn kept(report: &Report) -> Report {
    let (mut kept, mut left) = (report.clone(), report.findings.len());
    // What no policy lets pass is not what goes.
    kept.findings.sort_by_key(|(reason, _)| reason != Cause::BypassEnabled.as_str());
    while serde_json::to_string(&kept.lines()).map_or(0, |text| text.len()) > LONGEST_REPORT && left > 0 {
        left = left * 3 / 4;
        kept.findings.truncate(left);
        kept.findings
            .push((Reason::MoreFindings.as_str().to_owned(), format!("{} more", report.findings.len() - left)));
    }
    let lines = kept.lines();
    Report::read(lines.iter().map(|(k, v)| (k.as_str(), v.as_str()))).unwrap_or(kept)
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

/// Marks that stood before the last boot began: whatever bears one is not of that boot. The number of a domain alone does not say so, since each
/// host of a pool counts its own.
pub fn earlier(machine: &Machine) -> &[String] {
    match &machine.read {
        Some(read) if machine.key(BOOT) == Some(read.boot.as_str()) => &read.earlier,
        Some(read) => &read.marks,
        None => &[],
    }
}

/// Does it count for the boot that ended with the machine as it stands? Else why not.
pub fn counts(report: &Report, machine: &Machine) -> Result<(), Doubt> {
    let not = |reason, why: &str| Err(Doubt::new(reason, why));
    let Some((domid, start_time)) = machine.key(BOOT).and_then(|b| b.split_once('@')) else {
        return not(Reason::ReportOfUnknownBoot, "no boot of the machine was recorded");
    };
    // Noted only once it was over.
    if domid.starts_with('-') {
        return not(Reason::ReportOfUnknownBoot, "nobody saw the boot that it is of");
    }
    // First: of a report that is cut off, anything else may be missing.
    if !report.sealed {
        return not(Reason::ReportUnsealed, "its seal does not fit: it is cut off or was changed");
    }
    if Some(report.nonce.as_str()) != machine.key(NONCE) {
        return not(Reason::ReportOfOtherMachine, "it carries another machine's nonce");
    }
    let before = earlier(machine).contains(&report.boot);
    if machine.guest_boot.as_deref() != Some(report.boot.as_str()) || report.boot.is_empty() || before {
        return not(Reason::ReportOfEarlierBoot, "it is of an earlier boot");
    }
    if report.domid != domid || machine.start_time != start_time {
        return not(Reason::ReportOfEarlierBoot, "the machine was started again after it was written");
    }
    Ok(())
}

/// Everything that it found: the vendor's bits first, then what the guest's tool named.
pub fn judge(report: &Report) -> Vec<Finding> {
    let ours = |reason: &str, detail: &str, remedy: &str| Finding {
        reason: reason.to_owned(),
        detail: detail.to_owned(),
        remedy: remedy.to_owned(),
        always: reason == Cause::BypassEnabled.as_str(),
    };
    let mut all = match report.block_finalize {
        Some(number) => bits(number).iter().map(|f| ours(&f.reason, &f.detail, &f.remedy)).collect(),
        None => {
            let none = Reason::NoVerdict;
            vec![ours(none.as_str(), "the report has no readable BlockFinalize number", none.remedy())]
        }
    };
    for (reason, detail) in &report.findings {
        let known = Reason::parse(reason).map(Reason::remedy);
        all.push(ours(reason, detail, known.unwrap_or("clear what the detail names, then run the check again")));
    }
    all
}

/// Adds what a layer that is to be rearmed needs, and the report does not say. No policy lets it pass.
pub fn judge_rearm(report: &Report, findings: &mut Vec<Finding>) {
    let reason = match (report.rearms_before, report.rearmed) {
        (Some(0), _) => Reason::NoRearmsLeft,
        (Some(_), true) => return,
        (Some(_), false) | (None, _) => Reason::NotRearmed,
    };
    // The guest may have found the same, and say more of it.
    if let Some(found) = findings.iter_mut().find(|f| f.reason == reason.as_str()) {
        found.always = true;
        return;
    }
    let detail = match report.rearms_before {
        None => "the report does not say how many rearms Windows had".to_owned(),
        Some(n) => format!("Windows had {n} rearms left before the check"),
    };
    let remedy = reason.remedy().to_owned();
    findings.push(Finding { reason: reason.as_str().to_owned(), detail, remedy, always: true });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The guest and the controller name and cure each reason alike; what nobody described blocks all the same.
    #[test]
    fn each_cause_is_a_reason_with_the_same_cure_and_an_unknown_bit_blocks() {
        for cause in Cause::ALL {
            let reason = Reason::parse(cause.as_str());
            assert_eq!(reason.map(Reason::remedy), Some(cause.remedy()), "{cause}");
        }
        let report = Report { block_finalize: Some(8193), ..Report::default() };
        let all: Vec<_> = judge(&report).into_iter().map(|f| (f.reason, f.always)).collect();
        assert_eq!(all, [("BypassEnabled".to_owned(), true), ("Bit8192".to_owned(), false)]);
        assert_eq!(judge(&Report::default())[0].reason, "NoVerdict");
    }

    #[test]
    fn a_rearm_that_is_missing_is_told_once_and_no_policy_lets_it_pass() {
        let told = |before, rearmed, findings: &[(&str, &str)]| {
            let findings = findings.iter().map(|(r, d)| ((*r).to_owned(), (*d).to_owned())).collect();
            let report =
                Report { block_finalize: Some(0), rearms_before: before, rearmed, findings, ..Report::default() };
            let mut all = judge(&report);
            judge_rearm(&report, &mut all);
            all.into_iter().map(|f| (f.reason, f.detail, f.always)).collect::<Vec<_>>()
        };
        assert_eq!(told(Some(1), true, &[]), []);
        for (before, reason, detail) in [
            (Some(0), "NoRearmsLeft", "Windows had 0 rearms left before the check"),
            (Some(2), "NotRearmed", "Windows had 2 rearms left before the check"),
            (None, "NotRearmed", "the report does not say how many rearms Windows had"),
        ] {
            assert_eq!(told(before, false, &[]), [(reason.to_owned(), detail.to_owned(), true)]);
            assert_eq!(told(before, false, &[(reason, "its own")]), [(reason.to_owned(), "its own".to_owned(), true)]);
        }
    }

    #[test]
    fn a_report_that_is_too_long_is_kept_without_some_of_its_findings() {
        let report = |findings: usize, long: usize| Report {
            findings: (0..findings).map(|n| (format!("Odd{n}"), "\\".repeat(long))).collect(),
            block_finalize: Some(0),
            sealed: true,
            ..Report::default()
        };
        let size = |r: &Report| serde_json::to_string(&r.lines()).expect("JSON").len();
        assert_eq!(kept(&report(3, 20)), report(3, 20), "what fits is whole");
        for (findings, long) in [(64, 2000), (1000, 2000), (30, 2000)] {
            let all = report(findings, long);
            let some = kept(&all);
            assert!(size(&some) <= LONGEST_REPORT && some.sealed && !some.findings.is_empty());
            let (more, told) = some.findings.split_last().expect("some");
            assert_eq!(*more, ("MoreFindings".to_owned(), format!("{} more", findings - told.len())));
            assert_eq!(
                (kept(&some), told),
                (some.clone(), &all.findings[..told.len()]),
                "kept once more it is the same"
            );
            let mut last = all.clone();
            last.findings.push(("BypassEnabled".to_owned(), String::new()));
            assert_eq!(kept(&last).findings[0].0, "BypassEnabled", "what no policy lets pass is told");
        }
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
