//! `docs/integrity.md` is what the code says.

use std::fmt::Write;
use std::{fs, path::PathBuf};

use lamina_guest::cause::{Cause, Clears};
use lamina_guest::checks::{Basis, all};

const HEAD: &str = "\
# What keeps a layer from being frozen

<!-- Generated from guest/src by `UPDATE=1 cargo test -p lamina-guest docs::`. -->

`lamina-guest verify` looks at each of these places, in Windows' own registry, files and lists; it asks no other program. A place that cannot
be looked at is `CouldNotLook` and exit code 2, never \"nothing found\". Both views are the 64-bit and the 32-bit registry. The last column says
how sure it is that the place says what it is taken to say: *documented* by the maker of the software, *common* knowledge about Windows, or a
*guess* read off how others use it.

The vendor's bits are those of `BlockFinalize` in its `LayerIntegrity.txt`. Where that record is of this boot, each of its bits is a finding
too, whatever was seen otherwise; a bit that is not in this table is `Bit<n>`, and blocks. Reasons with a bit and no place are judged by
that record alone: nobody says where the vendor's service looks. Bit 2048 is taken to mean the directory of the vendor's KMS scripts,
`%SystemRoot%\\Setup\\scripts\\kmsdir`; every Windows without them lacks it, so its absence says nothing from outside. The vendor's bit 2 also
stands for changed boot drivers, which are not looked at from outside.

";

fn page() -> String {
    let mut page = HEAD.to_owned();
    page.push_str(
        "| Reason | Bit | Where it is looked at | What to do | Goes away with | Basis |\n|---|---|---|---|---|---|\n",
    );
    for cause in Cause::ALL {
        let places: Vec<_> = all().filter(|c| c.cause == *cause).collect();
        let bit = if cause.bit() == 0 { "–".to_owned() } else { cause.bit().to_string() };
        let clears = match cause.clears() {
            Clears::Time => "time",
            Clears::Queue => "running the queue (`--wait-ngen`)",
            Clears::Reboot => "a reboot",
            Clears::Hands => "somebody's hands",
        };
        let remedy = cause.remedy();
        let own = match cause {
            Cause::CouldNotLook => "every place above, where looking failed",
            Cause::NoRearmsLeft => {
                "count of rearms left (`SoftwareLicensingService.RemainingWindowsReArmCount`), where `spec.kms.rearm` asks for one"
            }
            Cause::NotRearmed => "how the rearm went, where `spec.kms.rearm` asks for one",
            Cause::LeftOn => "`--leave-on`, and a power-off that failed: the machine ran on after its report",
            _ => "the vendor's record alone",
        };
        if places.is_empty() {
            writeln!(page, "| `{cause}` | {bit} | {own} | {remedy} | {clears} | – |").unwrap();
        }
        for (n, check) in places.iter().enumerate() {
            let basis = match check.basis {
                Basis::Documented => "documented",
                Basis::Common => "common",
                Basis::Guess => "guess",
            };
            let place = check.place;
            match n {
                0 => writeln!(page, "| `{cause}` | {bit} | {place} | {remedy} | {clears} | {basis} |").unwrap(),
                _ => writeln!(page, "| | | {place} | | | {basis} |").unwrap(),
            }
        }
    }
    page
}

#[test]
fn the_page_is_committed() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/integrity.md");
    let made = page();
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == made,
        "docs/integrity.md is not what the code makes; run: UPDATE=1 cargo test -p lamina-guest docs::"
    );
}
