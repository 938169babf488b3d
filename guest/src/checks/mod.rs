//! Is this Windows at rest? From facts to findings, and nothing else: nothing here acts, waits or asks `ngen`, which would slow it down.
//!
//! Called by `verify` and `finalize`. [`Check`] is one place where Windows keeps something; [`all`] lists them, and `docs/integrity.md` is made
//! of that list. A place that could not be looked at never counts as clean: it ends up in [`Verdict::blind`].

mod leftovers;
mod machine;
mod ngen;
mod paths;
mod pending;
mod vendor;

pub use machine::ghosts;
pub use ngen::native_image_generators;
pub use paths::uniservice;
pub use vendor::{bits, parse as parse_vendor_record};

use serde::Serialize;

use crate::cause::{Cause, Clears};
use crate::facts::{Blind, Facts, Seen};

/// How sure it is that the place says what we take it to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// The maker of the software describes it.
    Documented,
    /// Common knowledge about Windows.
    Common,
    /// Read off how others use it; no description.
    Guess,
}

/// One place to look at.
pub struct Check {
    pub cause: Cause,
    /// For the docs, in Markdown: key, file, process or call.
    pub place: &'static str,
    pub basis: Basis,
    /// What is there that should not be, one line each.
    pub look: fn(&dyn Facts) -> Seen<Vec<String>>,
}

/// Every place, in the order in which it is looked at.
pub fn all() -> impl Iterator<Item = &'static Check> {
    [pending::CHECKS, ngen::CHECKS, leftovers::CHECKS, machine::CHECKS, vendor::CHECKS].into_iter().flatten()
}

/// One thing that must not be in a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A [`Cause`] by name, or `Bit<n>` for a bit of the vendor's that nobody described.
    pub reason: String,
    /// What was seen: which key, process, file.
    pub detail: String,
    /// What to do.
    pub remedy: String,
    pub clears: Clears,
}

impl Finding {
    pub fn new(cause: Cause, detail: impl Into<String>) -> Self {
        Self {
            reason: cause.as_str().to_owned(),
            detail: detail.into(),
            remedy: cause.remedy().to_owned(),
            clears: cause.clears(),
        }
    }
}

/// What one check of the whole Windows came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The vendor's own number, of a record that is of this boot; 0 without one; `None`: there is one that cannot be read.
    pub block_finalize: Option<u64>,
    /// What was seen from outside the vendor's software.
    pub findings: Vec<Finding>,
    /// Places that could not be looked at.
    pub blind: Vec<Blind>,
}

impl Verdict {
    pub fn clean(&self) -> bool {
        self.block_finalize == Some(0) && self.findings.is_empty() && self.blind.is_empty()
    }

    /// Everything that keeps the layer from being frozen, the vendor's bits and what could not be looked at too.
    pub fn everything(&self) -> Vec<Finding> {
        let mut all = bits(self.block_finalize.unwrap_or_default());
        all.extend(self.ours());
        all
    }

    /// What the report says beside the vendor's number.
    pub fn ours(&self) -> Vec<Finding> {
        let blind = self.blind.iter().map(|b| Finding::new(Cause::CouldNotLook, b.to_string()));
        self.findings.iter().cloned().chain(blind).collect()
    }
}

/// Looks at every place.
pub fn check(facts: &dyn Facts) -> Verdict {
    let mut verdict = Verdict::default();
    for check in all() {
        match (check.look)(facts) {
            Ok(seen) => verdict.findings.extend(seen.into_iter().map(|detail| Finding::new(check.cause, detail))),
            Err(blind) => verdict.blind.push(blind),
        }
    }
    match vendor::number(facts) {
        Ok(number) => verdict.block_finalize = Some(number),
        Err(blind) => verdict.blind.push(blind),
    }
    // One key that several checks need is one thing that cannot be looked at.
    let mut known = Vec::new();
    verdict.blind.retain(|b| {
        !known.contains(b) && {
            known.push(b.clone());
            true
        }
    });
    verdict
}
