//! Why what a guest left does not count: a reason of its own for each cause, and the words that tell it.
//!
//! Pure. The guest's library says what is wrong (`Damage`, `Unbound`); here it gets the reason that users see. Kept in a key of the machine with
//! the rest of what was read back.

use lamina_guest::disk::Damage;
use lamina_guest::disk::bound::Unbound;
use serde::{Deserialize, Serialize};

use super::report::Finding;
use crate::api::reason::Reason;

/// Something that does not count, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubt {
    pub reason: Reason,
    /// In words, without a stop at their end.
    pub why: String,
}

impl Doubt {
    pub fn new(reason: Reason, why: impl Into<String>) -> Self {
        Self { reason, why: why.into() }
    }

    /// The disk as a whole says nothing.
    pub fn of_disk(damage: &Damage) -> Self {
        Self::new(of_the_disk(damage).unwrap_or(Reason::ConfigDiskUnreadable), damage.to_string())
    }

    /// It is on the disk, and says nothing for the same cause.
    pub fn of_report_on(disk: &Self) -> Self {
        on_the_disk(disk.reason, &disk.why)
    }

    /// The record of the steps cannot be read.
    pub fn of_steps(damage: &Damage) -> Self {
        Self::new(of_the_disk(damage).unwrap_or(Reason::StepsUnknown), damage.to_string())
    }

    /// The report on the disk cannot be read.
    pub fn of_report(damage: &Damage) -> Self {
        let of_the_file = || match damage {
            Damage::TooLong(_) => Reason::ReportTooLong,
            Damage::NotText(_) => Reason::ReportNotText,
            Damage::Full => Reason::ConfigDiskFull,
            Damage::DiskCut
            | Damage::NotFat
            | Damage::Label
            | Damage::Foreign
            | Damage::OtherSteps
            | Damage::Missing(_)
            | Damage::Cyclic(_)
            | Damage::OutOfVolume(_)
            | Damage::FileCut(_)
            | Damage::LargerThanDisk(_)
            | Damage::TooManyEntries(_)
            | Damage::Kind(_)
            | Damage::Garbled(_) => Reason::ReportGarbled,
        };
        on_the_disk(of_the_disk(damage).unwrap_or_else(of_the_file), damage)
    }

    /// The report on the disk can be read, and is not known to be of the last boot.
    pub fn of_binding(why: &Unbound) -> Self {
        let reason = match why {
            Unbound::Seal => Reason::ReportUnsealed,
            Unbound::Nonce => Reason::ReportOfOtherMachine,
            Unbound::EarlierBoot => Reason::ReportOfEarlierBoot,
            Unbound::NoRecord | Unbound::BootUnseen => Reason::ReportOfUnknownBoot,
            Unbound::NoTime | Unbound::Clock(_) | Unbound::WrittenBefore => Reason::ReportTimeWrong,
        };
        on_the_disk(reason, why)
    }
}

fn on_the_disk(reason: Reason, why: &dyn std::fmt::Display) -> Doubt {
    Doubt::new(reason, format!("the report on the config disk: {why}"))
}

/// What takes everything with it.
fn of_the_disk(damage: &Damage) -> Option<Reason> {
    match damage {
        Damage::DiskCut | Damage::NotFat => Some(Reason::ConfigDiskUnreadable),
        Damage::Label | Damage::Foreign => Some(Reason::ConfigDiskReplaced),
        Damage::OtherSteps
        | Damage::Missing(_)
        | Damage::Cyclic(_)
        | Damage::OutOfVolume(_)
        | Damage::FileCut(_)
        | Damage::LargerThanDisk(_)
        | Damage::TooLong(_)
        | Damage::TooManyEntries(_)
        | Damage::Kind(_)
        | Damage::NotText(_)
        | Damage::Garbled(_)
        | Damage::Full => None,
    }
}

impl From<Doubt> for Finding {
    fn from(doubt: Doubt) -> Self {
        let Doubt { reason, why } = doubt;
        Self { reason: reason.as_str().to_owned(), detail: why, remedy: reason.remedy().to_owned(), always: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_its_reason() {
        let file = || "report.json".to_owned();
        let damages = [
            (Damage::NotFat, "ConfigDiskUnreadable", "ConfigDiskUnreadable"),
            (Damage::DiskCut, "ConfigDiskUnreadable", "ConfigDiskUnreadable"),
            (Damage::Label, "ConfigDiskReplaced", "ConfigDiskReplaced"),
            (Damage::Foreign, "ConfigDiskReplaced", "ConfigDiskReplaced"),
            (Damage::OtherSteps, "StepsUnknown", "ReportGarbled"),
            (Damage::TooLong(file()), "StepsUnknown", "ReportTooLong"),
            (Damage::NotText(file()), "StepsUnknown", "ReportNotText"),
            (Damage::Cyclic(file()), "StepsUnknown", "ReportGarbled"),
            (Damage::Full, "StepsUnknown", "ConfigDiskFull"),
        ];
        for (damage, steps, report) in damages {
            let told = [Doubt::of_steps(&damage).reason.as_str(), Doubt::of_report(&damage).reason.as_str()];
            assert_eq!(told, [steps, report], "{damage}");
        }
        let unbound = [
            (Unbound::Seal, "ReportUnsealed"),
            (Unbound::Nonce, "ReportOfOtherMachine"),
            (Unbound::EarlierBoot, "ReportOfEarlierBoot"),
            (Unbound::NoRecord, "ReportOfUnknownBoot"),
            (Unbound::BootUnseen, "ReportOfUnknownBoot"),
            (Unbound::Clock(7200), "ReportTimeWrong"),
        ];
        for (why, reason) in unbound {
            let doubt = Doubt::of_binding(&why);
            assert_eq!(doubt.reason.as_str(), reason);
            assert_eq!(doubt.why, format!("the report on the config disk: {why}"));
        }
    }
}
