//! Does the report on the config disk count, and do two reports agree? Pure; called by the controller once the machine is halted.
//!
//! A report on a disk may be as old as the disk, and the guest's clock may be off by hours, so nothing is believed for a time stamp alone:
//!
//! 1. Its seal fits, and it carries the machine's nonce.
//! 2. It is of the boot that the record on the same disk names last. The service writes that before anything else at every boot, so a
//!    report that a later boot should have dropped does not count.
//! 3. Where xenstore has a boot mark, it is the same.
//! 4. That boot is the machine's last, which the host says and the guest cannot: by the number of the domain, where the guest knew it;
//!    clocks are not asked then. Each host counts its own, so the controller remembers the marks of earlier boots as well. A guest without xenstore has only its clock: its boot must lie within
//!    [`TOLERANCE`] of the machine's start, and the report must be written after both. A guest whose clock is further off than that is told
//!    so, and its report does not count.

use crate::report::Report;
use crate::steps::record::Record;

/// Seconds between the machine's start, by the host's clock, and the guest's boot by its own: firmware, `chkdsk`, and two clocks that
/// are both set by some server.
pub const TOLERANCE: u64 = 600;

/// What the controller knows of the machine and its last boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub nonce: String,
    /// The last boot: number of its domain, and seconds since 1970 at its start by the host's clock. `None`: nobody saw the boot that was
    /// halted, or the machine was started again since.
    pub boot: Option<(String, u64)>,
    /// `vm-data/lamina/boot`.
    pub mark: Option<String>,
}

/// Why a report does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unbound {
    #[error("its seal does not fit: it is cut off or was changed")]
    Seal,
    #[error("it carries another machine's nonce")]
    Nonce,
    #[error("the record beside it cannot be read, and without that nobody knows which boot it is of")]
    NoRecord,
    #[error("it is of an earlier boot")]
    EarlierBoot,
    #[error("nobody saw the boot that it is of")]
    BootUnseen,
    #[error("it carries no time of the boot, and the guest had no xenstore to tell it otherwise")]
    NoTime,
    #[error(
        "it says that the guest booted {0} s off the machine's start: it is of another boot, or the guest's clock is wrong; set that, or install the guest tools, and run the check again"
    )]
    Clock(i64),
    #[error(
        "it says that it was written before the machine was started, or before the boot that it is of: it is of another boot, or the guest's clock is wrong; set that, or install the guest tools, and run the check again"
    )]
    WrittenBefore,
}

/// Is the report of the boot that was just halted? `record` is the one on the same disk.
pub fn bound(report: &Report, record: Option<&Record>, known: &Known) -> Result<(), Unbound> {
    if !report.sealed {
        return Err(Unbound::Seal);
    }
    if report.nonce != known.nonce {
        return Err(Unbound::Nonce);
    }
    let record = record.ok_or(Unbound::NoRecord)?;
    let last = record.boot.as_ref().filter(|b| b.id == report.boot && !b.id.is_empty());
    if last.is_none() || known.mark.as_ref().is_some_and(|mark| *mark != report.boot) {
        return Err(Unbound::EarlierBoot);
    }
    let (domid, started) = known.boot.as_ref().ok_or(Unbound::BootUnseen)?;
    if !report.domid.is_empty() {
        return if report.domid == *domid { Ok(()) } else { Err(Unbound::EarlierBoot) };
    }
    let (Some(booted), Some(written)) = (report.booted_at, report.written_at) else {
        return Err(Unbound::NoTime);
    };
    if booted.abs_diff(*started) > TOLERANCE {
        return Err(Unbound::Clock(booted.cast_signed().saturating_sub(started.cast_signed())));
    }
    if written < booted.max(*started) { Err(Unbound::WrittenBefore) } else { Ok(()) }
}

/// The channel that a report came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    XenStore,
    ConfigDisk,
}

/// Two reports that both count and do not say the same. What differs is named.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reports in xenstore and on the config disk differ in {0}: start the machine and run the check again")]
pub struct Contradiction(pub &'static str);

/// The report to be judged, of those that count; `None`: there is none. The times of writing may differ: one channel takes longer.
pub fn judged(xenstore: Option<Report>, disk: Option<Report>) -> Result<Option<(Source, Report)>, Contradiction> {
    let (one, other) = match (xenstore, disk) {
        (Some(one), Some(other)) => (one, other),
        (Some(one), None) => return Ok(Some((Source::XenStore, one))),
        (None, other) => return Ok(other.map(|r| (Source::ConfigDisk, r))),
    };
    let same = [
        ("their boot", one.boot == other.boot && one.domid == other.domid),
        ("BlockFinalize", one.block_finalize == other.block_finalize),
        ("their findings", one.findings == other.findings),
        ("their rearms", rearms(&one) == rearms(&other)),
    ];
    match same.into_iter().find(|(_, same)| !same) {
        Some((what, _)) => Err(Contradiction(what)),
        None => Ok(Some((Source::XenStore, one))),
    }
}

fn rearms(report: &Report) -> (Option<u32>, Option<u32>, bool) {
    (report.rearms_before, report.rearms_left, report.rearmed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steps::record::Boot;

    const START: u64 = 1_700_000_000;

    fn record() -> Record {
        let mut record = Record::new("nonce", &[], b"[]");
        record.boot = Some(Boot { id: "boot-2".to_owned(), began: START, domid: Some("7".to_owned()) });
        record
    }

    fn report() -> Report {
        Report {
            nonce: "nonce".to_owned(),
            boot: "boot-2".to_owned(),
            domid: "7".to_owned(),
            block_finalize: Some(0),
            booted_at: Some(START + 30),
            written_at: Some(START + 900),
            sealed: true,
            ..Report::default()
        }
    }

    fn known() -> Known {
        let boot = Some(("7".to_owned(), START));
        Known { nonce: "nonce".to_owned(), boot, mark: Some("boot-2".to_owned()) }
    }

    #[test]
    fn a_report_of_the_last_boot_counts_whatever_the_guests_clock_says() {
        assert_eq!(bound(&report(), Some(&record()), &known()), Ok(()));
        let off = Report { booted_at: Some(START + 7 * 3600), written_at: Some(0), ..report() };
        assert_eq!(bound(&off, Some(&record()), &known()), Ok(()), "the domain proves it");
        assert_eq!(bound(&report(), Some(&record()), &Known { mark: None, ..known() }), Ok(()), "the mark was lost");
    }

    #[test]
    fn each_doubt_has_its_own_reason() {
        let why = |r: Report, k: Known| bound(&r, Some(&record()), &k).expect_err("a doubt");
        assert_eq!(why(Report { sealed: false, ..report() }, known()), Unbound::Seal);
        assert_eq!(why(Report { nonce: "other".to_owned(), ..report() }, known()), Unbound::Nonce);
        assert_eq!(bound(&report(), None, &known()), Err(Unbound::NoRecord));
        assert_eq!(why(Report { boot: "boot-1".to_owned(), ..report() }, known()), Unbound::EarlierBoot);
        assert_eq!(why(report(), Known { mark: Some("boot-3".to_owned()), ..known() }), Unbound::EarlierBoot);
        assert_eq!(why(report(), Known { boot: Some(("8".to_owned(), START)), ..known() }), Unbound::EarlierBoot);
        assert_eq!(why(report(), Known { boot: None, ..known() }), Unbound::BootUnseen);
    }

    #[test]
    fn a_guest_without_xenstore_is_bound_by_its_clock_within_the_tolerance() {
        let at = |booted: u64, written: u64| {
            let report =
                Report { domid: String::new(), booted_at: Some(booted), written_at: Some(written), ..report() };
            bound(&report, Some(&record()), &Known { mark: None, ..known() })
        };
        assert_eq!(at(START + 30, START + 31), Ok(()));
        assert_eq!(at(START - TOLERANCE, START), Ok(()));
        assert_eq!(at(START + TOLERANCE, START + TOLERANCE), Ok(()));
        assert_eq!(at(START + TOLERANCE + 1, START + 9000), Err(Unbound::Clock(601)));
        assert_eq!(at(START - 7200, START), Err(Unbound::Clock(-7200)), "two hours slow");
        assert_eq!(at(START + 30, START + 29), Err(Unbound::WrittenBefore));
        assert_eq!(at(START - 30, START - 1), Err(Unbound::WrittenBefore), "of the boot before, a moment ago");
        for doubt in [Unbound::Clock(601), Unbound::WrittenBefore] {
            assert!(doubt.to_string().contains("the guest's clock is wrong; set that, or install"), "{doubt}");
        }
        let none = Report { domid: String::new(), booted_at: None, ..report() };
        assert_eq!(bound(&none, Some(&record()), &known()), Err(Unbound::NoTime));
    }

    #[test]
    fn two_reports_agree_or_block() {
        let (one, later) = (report(), Report { written_at: Some(START + 905), ..report() });
        assert_eq!(judged(None, None), Ok(None));
        assert_eq!(judged(Some(one.clone()), None), Ok(Some((Source::XenStore, one.clone()))));
        assert_eq!(judged(None, Some(one.clone())), Ok(Some((Source::ConfigDisk, one.clone()))));
        assert_eq!(judged(Some(one.clone()), Some(later)), Ok(Some((Source::XenStore, one.clone()))));
        let differs = |disk: Report| judged(Some(one.clone()), Some(disk)).expect_err("a contradiction").0;
        assert_eq!(differs(Report { block_finalize: Some(2), ..report() }), "BlockFinalize");
        let finding = ("GhostNetworkCard".to_owned(), String::new());
        assert_eq!(differs(Report { findings: vec![finding], ..report() }), "their findings");
        assert_eq!(differs(Report { rearmed: true, ..report() }), "their rearms");
        assert_eq!(differs(Report { domid: "6".to_owned(), ..report() }), "their boot");
    }
}
