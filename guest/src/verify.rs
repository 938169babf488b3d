//! What a check came to, for a person, for a program, and as an exit code.
//!
//! Pure; called by the command line and by the window of findings.

use std::fmt::Write;

use serde::Serialize;

use crate::checks::{Finding, Verdict};

/// What a process ends with.
pub const CLEAN: u8 = 0;
pub const FINDINGS: u8 = 1;
/// Something could not be looked at, whatever else was found: nobody may call that clean.
pub const BLIND: u8 = 2;

pub fn exit_code(verdict: &Verdict) -> u8 {
    match (verdict.blind.is_empty(), verdict.clean()) {
        (false, _) => BLIND,
        (true, true) => CLEAN,
        (true, false) => FINDINGS,
    }
}

/// Reason, what was seen, what to do: one block per finding, for a console of 80 columns or any other.
pub fn table(verdict: &Verdict) -> String {
    let findings = verdict.everything();
    if findings.is_empty() {
        return "Nothing is pending in this Windows: it can be shut down for finalize.\n".to_owned();
    }
    let wide = findings.iter().map(|f| f.reason.chars().count()).max().unwrap_or_default();
    let mut text = format!("{}\n", headline(&findings));
    for Finding { reason, detail, remedy, .. } in &findings {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\n{reason:wide$}  {detail}\n{:wide$}  -> {remedy}", "");
    }
    text
}

fn headline(findings: &[Finding]) -> String {
    match findings.len() {
        1 => "1 finding keeps this Windows from being frozen:".to_owned(),
        n => format!("{n} findings keep this Windows from being frozen:"),
    }
}

/// The same for programs: one object.
pub fn json(verdict: &Verdict) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Output {
        clean: bool,
        /// The vendor's number; missing where its record cannot be read.
        #[serde(skip_serializing_if = "Option::is_none")]
        block_finalize: Option<u64>,
        findings: Vec<Finding>,
        could_not_look: Vec<String>,
    }
    let output = Output {
        clean: verdict.clean(),
        block_finalize: verdict.block_finalize,
        findings: verdict.everything(),
        could_not_look: verdict.blind.iter().map(ToString::to_string).collect(),
    };
    // Texts and numbers alone always have a JSON form.
    serde_json::to_string_pretty(&output).unwrap_or_default()
}
