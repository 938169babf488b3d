//! What the window of findings says, in plain words. Pure; shown by `windows::window`, made by the program from what a check came to.

use std::fmt::Write;

use crate::checks::{Finding, Verdict};

/// One look, as a person reads it: lines end in `\n`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub text: String,
    /// Another check makes sense: the machine stays on.
    pub again: bool,
}

impl Page {
    /// The machine stays on, and this is why.
    pub fn findings(verdict: &Verdict) -> Self {
        let all = verdict.everything();
        let things = if all.len() == 1 { "1 thing".to_owned() } else { format!("{} things", all.len()) };
        let mut text = format!("This machine was not shut down: {things} would spoil the layer.\n");
        for (n, Finding { reason, detail, remedy, .. }) in all.iter().enumerate() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n{}. {reason}\n    Seen: {detail}\n    To do: {remedy}\n", n + 1);
        }
        text.push_str(
            "\nWhen this is mended, press \"Check again\": if nothing is left, the machine is reported as ready and shut down.\n",
        );
        Self { text, again: true }
    }

    /// Something else went wrong.
    pub fn trouble(what: &str) -> Self {
        Self { text: format!("This machine was not shut down.\n\n{what}\n"), again: true }
    }

    /// The machine is on its way down, or stays on as it was asked to.
    pub fn clean(off: bool) -> Self {
        let then = if off { "The machine is shutting down." } else { "The machine stays on, as it was asked to." };
        Self {
            text: format!("Nothing is pending in this Windows, and the report is written.\n\n{then}\n"),
            again: !off,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cause::Cause;
    use crate::facts::Blind;

    #[test]
    fn a_person_reads_what_was_seen_and_what_to_do() {
        let verdict = Verdict {
            block_finalize: Some(0),
            findings: vec![Finding::new(Cause::InstallerBusy, r"mutex Global\_MSIExecute is held")],
            blind: vec![Blind { what: "the list of drives".to_owned(), why: "access denied".to_owned() }],
        };
        let page = Page::findings(&verdict);
        assert!(page.again);
        let lines: Vec<_> = page.text.lines().collect();
        assert_eq!(lines.first(), Some(&"This machine was not shut down: 2 things would spoil the layer."));
        assert!(lines.contains(&"1. InstallerBusy"), "{lines:?}");
        assert!(lines.contains(&r"    Seen: mutex Global\_MSIExecute is held"), "{lines:?}");
        assert!(lines.contains(&"    To do: Wait, or finish the installer."), "{lines:?}");
        assert!(lines.contains(&"    Seen: cannot look at the list of drives: access denied"), "{lines:?}");
    }
}
