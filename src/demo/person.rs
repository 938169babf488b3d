//! What a person does inside a packaging machine, as a program for simulated guests: installs, runs the check, mends, shuts down.
//!
//! Used by the demo and the tests. It reaches its machine as a real guest does, through its store and its power, and knows the controller
//! only by the keys that both agreed on (the guest report).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::domain::report::PREFIX;
use crate::sim::guest::{Guest, Program, program};
use crate::sim::power::Exit;

type Keys = BTreeMap<String, String>;

/// The guest's clock between two acts; stages, so that a test may hold them.
const MOMENT: Duration = Duration::from_secs(2);

/// One check inside the guest, as its report tells it.
#[derive(Clone, Debug, Default)]
pub struct Check {
    /// The vendor's bits, 0 = free.
    pub block_finalize: u64,
    /// `<reason> <detail>` each.
    pub findings: Vec<String>,
    pub rearms_before: Option<u32>,
    pub rearmed: bool,
}

/// What happens in one boot after the tools are up.
#[derive(Clone, Debug)]
pub enum Deed {
    Install,
    Report(Check),
    /// Writes this byte all over a 2 MiB block of the first disk: somebody's work.
    Work {
        block: u64,
        byte: u8,
    },
    Reboot,
    PowerOff,
    /// Does nothing more by itself.
    Stay,
}

/// Boots one after the other; the last is repeated for further ones.
pub fn person(boots: Vec<Vec<Deed>>) -> Program {
    program(move |guest| {
        let last = boots.len().saturating_sub(1);
        let at = usize::try_from(guest.boot).unwrap_or(1).saturating_sub(1).min(last);
        let deeds = boots.get(at).cloned().unwrap_or_default();
        async move { live(&guest, deeds).await }
    })
}

/// The usual life: tools and a reboot, software, a check that finds a reboot pending, the reboot, a clean check, shutdown.
pub fn usual(kms: bool) -> Program {
    let rearm = |check: Check| if kms { Check { rearms_before: Some(3), rearmed: true, ..check } } else { check };
    person(vec![
        vec![Deed::Install, Deed::Reboot],
        vec![
            Deed::Work { block: 7, byte: 0xA5 },
            Deed::Report(rearm(Check { block_finalize: 2, ..Check::default() })),
            Deed::Install,
            Deed::Reboot,
        ],
        vec![Deed::Report(rearm(Check::default())), Deed::PowerOff],
    ])
}

async fn live(guest: &Guest, deeds: Vec<Deed>) -> Exit {
    guest.stage("boot", MOMENT).await;
    if guest.has_tools() && up(guest).await.is_none() {
        return Exit::Crash;
    }
    for deed in deeds {
        match deed {
            Deed::Install => {
                guest.stage("install", MOMENT).await;
                guest.set_tools(true);
            }
            Deed::Report(check) => {
                guest.stage("check", MOMENT).await;
                if report(guest, &check).await.is_none() {
                    return Exit::Crash;
                }
            }
            Deed::Work { block, byte } => {
                // A disk that is gone cannot be worked on; the machine notices soon enough.
                guest.write_block(0, block, &vec![byte; 2 << 20]).unwrap_or_default();
            }
            Deed::Reboot => return Exit::Reboot,
            Deed::PowerOff => return Exit::Halt,
            Deed::Stay => std::future::pending::<()>().await,
        }
    }
    std::future::pending().await
}

/// Tools are up: they report, and the guest's service marks the boot.
async fn up(guest: &Guest) -> Option<()> {
    guest.report_tools().await.ok()?;
    let mark = uuid::Uuid::new_v4().to_string();
    guest.write(&Keys::from([(format!("{PREFIX}boot"), mark)])).await.ok()
}

/// Writes a sealed report, and waits until it has surely been seen.
pub async fn report(guest: &Guest, check: &Check) -> Option<()> {
    let lines = sealed(&said(guest, check));
    let keys = lines.into_iter().map(|(k, v)| (format!("{PREFIX}report/{k}"), v)).collect();
    guest.remove(&[format!("{PREFIX}report")]).ok()?;
    guest.write(&keys).await.ok()?;
    guest.stage("reported", 5 * MOMENT).await;
    Some(())
}

/// What a report says, unsealed.
pub fn said(guest: &Guest, check: &Check) -> Keys {
    let read = |k: &str| guest.read(&format!("{PREFIX}{k}")).unwrap_or_default();
    let mut lines = Keys::from([
        ("nonce".to_owned(), read("nonce")),
        ("boot".to_owned(), read("boot")),
        ("domid".to_owned(), guest.domid().to_string()),
        ("block-finalize".to_owned(), check.block_finalize.to_string()),
    ]);
    for (n, finding) in check.findings.iter().enumerate() {
        lines.insert(format!("findings/{n}"), finding.clone());
    }
    if let Some(before) = check.rearms_before {
        let left = before.saturating_sub(u32::from(check.rearmed));
        lines.insert("rearms-before".to_owned(), before.to_string());
        lines.insert("rearms-left".to_owned(), left.to_string());
        lines.insert("rearmed".to_owned(), check.rearmed.to_string());
    }
    lines
}

/// The lines with their seal.
pub fn sealed(lines: &Keys) -> Keys {
    let seal = lamina_guest::report::seal(lines.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    let mut all = lines.clone();
    all.insert("sealed".to_owned(), seal);
    all
}
