//! What a run proves, as a table: per call and fault, how often what it made was found, the call repeated, and its end waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};

use super::cases::Fault;
use super::lives::End;

#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub found: u32,
    pub repeated: u32,
    pub waited: u32,
}

#[derive(Default)]
pub struct Report {
    rows: BTreeMap<(String, Fault), Counts>,
    /// How the struck lives ended, by fault.
    ends: BTreeMap<(Fault, End), u32>,
    /// Deaths that never came: the life made fewer calls than the recorded one.
    missed: u32,
}

impl Report {
    pub fn add(&mut self, call: &str, fault: Fault, struck: Counts) {
        let counts = self.rows.entry((call.to_owned(), fault)).or_default();
        counts.found += struck.found;
        counts.repeated += struck.repeated;
        counts.waited += struck.waited;
    }

    pub fn has(&self, call: &str) -> bool {
        self.rows.keys().any(|(row, _)| row == call)
    }

    pub fn end(&mut self, fault: Fault, end: End) {
        *self.ends.entry((fault, end)).or_default() += 1;
    }

    pub fn miss(&mut self) {
        self.missed += 1;
    }

    /// Changing calls that no case has struck, and counts that are zero: the run would prove less than it says.
    pub fn gaps(&self, calls: &BTreeSet<String>) -> Vec<String> {
        let struck: BTreeSet<&String> = self.rows.keys().map(|(call, _)| call).collect();
        let mut gaps: Vec<String> =
            calls.iter().filter(|c| !struck.contains(c)).map(|c| format!("{c} has no row")).collect();
        let total = |f: fn(&Counts) -> u32| self.rows.values().map(f).sum::<u32>();
        for (name, sum) in
            [("found", total(|c| c.found)), ("repeated", total(|c| c.repeated)), ("waited", total(|c| c.waited))]
        {
            if sum == 0 {
                gaps.push(format!("nothing was ever {name}"));
            }
        }
        gaps
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:44} {:12} {:>6} {:>9} {:>7}", "call", "fault", "found", "repeated", "waited")?;
        for ((call, fault), c) in &self.rows {
            writeln!(f, "{call:44} {:12} {:>6} {:>9} {:>7}", fault.as_str(), c.found, c.repeated, c.waited)?;
        }
        writeln!(f, "\n{:12} {:60} lives", "fault", "ended")?;
        for ((fault, end), n) in &self.ends {
            writeln!(f, "{:12} {:60} {n}", fault.as_str(), format!("{end:?}"))?;
        }
        write!(f, "deaths that never came: {}", self.missed)
    }
}
