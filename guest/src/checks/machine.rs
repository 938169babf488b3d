//! What spoils the disk itself or the machines made of it: hibernation, ghost cards, encryption, a dirty file system.

use super::{Basis, Check, paths};
use crate::cause::Cause::{BitLockerOn, DriveDirty, GhostNetworkCard, HibernationOn};
use crate::facts::{Card, Facts, Seen, View};

const POWER: &str = r"SYSTEM\CurrentControlSet\Control\Session Manager\Power";

pub const CHECKS: &[Check] = &[
    Check {
        cause: HibernationOn,
        place: r"`hiberfil.sys` on the system drive: hibernation, and with `HKLM\SYSTEM\CurrentControlSet\Control\Session Manager\Power\HiberbootEnabled` fast start, leave NTFS unclean",
        basis: Basis::Common,
        look: hibernation,
    },
    Check {
        cause: GhostNetworkCard,
        place: r"devices of class Net that are not present, except software devices (`ROOT\…`, `SW\…`, `SWD\…`)",
        basis: Basis::Documented,
        look: |facts| Ok(ghosts(facts)?.into_iter().map(|c| format!("network card {} ({})", c.name, c.id)).collect()),
    },
    Check {
        cause: BitLockerOn,
        place: "BitLocker on the system drive, suspended or not",
        basis: Basis::Common,
        look: bitlocker,
    },
    Check {
        cause: DriveDirty,
        place: "dirty bit of the system drive (`FSCTL_IS_VOLUME_DIRTY`)",
        basis: Basis::Common,
        look: dirty,
    },
];

fn hibernation(facts: &dyn Facts) -> Seen<Vec<String>> {
    let file = format!("{}hiberfil.sys", paths::system_drive(facts)?);
    let boots = facts.key(View::Bits64, POWER)?.and_then(|k| k.number("HiberbootEnabled"));
    Ok(match (facts.stat(&file)?, boots) {
        (None, _) => Vec::new(),
        (Some(_), Some(1)) => vec![format!("{file} exists and fast start is on (HiberbootEnabled)")],
        (Some(_), _) => vec![format!("{file} exists")],
    })
}

/// Cards that were taken off this machine, or never were in it: a guest's drivers unplug the emulated card at every boot, for one.
pub fn ghosts(facts: &dyn Facts) -> Seen<Vec<Card>> {
    // Miniports and tunnels come and go by themselves; nothing of them is bound to a place.
    let software = |id: &str| ["ROOT\\", "SW\\", "SWD\\"].iter().any(|p| id.to_ascii_uppercase().starts_with(p));
    Ok(facts.network_cards()?.into_iter().filter(|c| !c.present && !software(&c.id)).collect())
}

fn bitlocker(facts: &dyn Facts) -> Seen<Vec<String>> {
    let drive = paths::system_drive(facts)?;
    Ok(facts.encrypted(&drive)?.then(|| format!("BitLocker is on for {drive}")).into_iter().collect())
}

fn dirty(facts: &dyn Facts) -> Seen<Vec<String>> {
    let drive = paths::system_drive(facts)?;
    Ok(facts.dirty(&drive)?.then(|| format!("{drive} has its dirty bit set")).into_iter().collect())
}
