//! What a person does inside a packaging machine, as a program for simulated guests: installs, shuts down for finalize, mends; or lets the
//! service of the OS image do it.
//!
//! Used by the demo and the tests. Service, check, report and shutdown are those of `lamina-guest` (`inside`); a report that a test makes
//! up (`Deed::Report`) is written word for word.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lamina_guest::deeds::Ended;
use lamina_guest::facts::{Value, View};
use lamina_guest::finalize::{Machine, finalize};
use lamina_guest::memory::{self, Reply, State};
use lamina_guest::service::{self, End};
use lamina_guest::steps::engine::Answer;
use tokio::sync::watch;

use super::inside::{Installers, Systems};
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
    /// What the service of the OS image does at each boot; it may end the boot.
    Serve,
    /// A step that stopped the service was mended by hand.
    Skip(&'static str),
    /// Software that is not in place before the next restart.
    Pend,
    /// *Shutdown For Finalize*: the machine stays on where it finds something.
    Finalize,
    /// A made-up report.
    Report(Check),
    /// Writes this byte all over a 2 MiB block of the first disk: somebody's work.
    Work {
        block: u64,
        byte: u8,
    },
    /// Waits for this, or for ever.
    Until(watch::Receiver<bool>),
    Reboot,
    PowerOff,
    /// Does nothing more by itself.
    Stay,
}

/// What the OS image brings along.
#[derive(Clone)]
pub struct Image {
    /// The guest tools are in it.
    pub tools: bool,
    /// What programs do in it.
    pub installers: Installers,
}

impl Default for Image {
    /// No tools, and each program ends well.
    fn default() -> Self {
        Self { tools: false, installers: Arc::new(|_, _| Reply::Usual) }
    }
}

/// Boots one after the other, of a plain image; the last is repeated for further ones.
pub fn person(boots: Vec<Vec<Deed>>) -> Program {
    person_at(Image::default(), boots)
}

/// As [`person`], at an image of one's own.
pub fn person_at(image: Image, boots: Vec<Vec<Deed>>) -> Program {
    let systems = Systems::default();
    program(move |guest| {
        let last = boots.len().saturating_sub(1);
        let at = usize::try_from(guest.boot).unwrap_or(1).saturating_sub(1).min(last);
        let deeds = boots.get(at).cloned().unwrap_or_default();
        let (systems, image) = (systems.clone(), image.clone());
        async move { live(&guest, &systems, image, deeds).await }
    })
}

/// Nobody: an image with tools and the service, in which the first step leaves work for .NET behind.
pub fn nobody() -> Program {
    let installs = |windows: &mut State, deed: &memory::Deed| match deed {
        memory::Deed::Run(job) if job.log.as_ref().is_some_and(|log| log.contains(r"\01-")) => {
            windows.make(View::Bits64, r"SOFTWARE\Microsoft\.NETFramework\NGenQueue\WIN64\Default\1");
            // Done, wants a reboot.
            Reply::Ended(Ended::Code(3))
        }
        _any_other => Reply::Usual,
    };
    person_at(Image { tools: true, installers: Arc::new(installs) }, vec![vec![Deed::Serve]])
}

/// The usual life: tools and a reboot, software, a check that finds a reboot pending, the reboot, a clean check, shutdown.
pub fn usual() -> Program {
    person(vec![
        vec![Deed::Install, Deed::Reboot],
        vec![Deed::Work { block: 7, byte: 0xA5 }, Deed::Pend, Deed::Finalize, Deed::Reboot],
        vec![Deed::Finalize],
    ])
}

async fn live(guest: &Guest, systems: &Systems, image: Image, deeds: Vec<Deed>) -> Exit {
    guest.stage("boot", MOMENT).await;
    if image.tools {
        guest.set_tools(true);
    }
    // One guid for this boot, whoever marks it: the service, or each check.
    let id = uuid::Uuid::new_v4().to_string();
    if guest.has_tools() && up(guest, &id).await.is_none() {
        return Exit::Crash;
    }
    let inside = systems.boot(guest, image.installers);
    for deed in deeds {
        match deed {
            Deed::Install => {
                guest.stage("install", MOMENT).await;
                guest.set_tools(true);
            }
            Deed::Serve | Deed::Skip(_) => {
                let id = id.clone();
                let ended = inside.run(move |machine| match deed {
                    Deed::Skip(step) => service::answer(machine, &id, step, Answer::Skip).ok(),
                    _serve => Some(service::boot(machine, &id)),
                });
                let ended = ended.await;
                if matches!(ended, Some(Some(End::Rebooting | End::Off))) {
                    // Windows takes a while to end.
                    guest.stage("end", MOMENT).await;
                }
                match ended {
                    Some(Some(End::Rebooting)) => return Exit::Reboot,
                    Some(Some(End::Off)) => return Exit::Halt,
                    Some(Some(End::NoDisk | End::Done | End::Stays(_)) | None) => {}
                    None => return Exit::Crash,
                }
            }
            Deed::Pend => {
                guest.stage("install", MOMENT).await;
                inside.change(|windows| {
                    let renames =
                        vec![r"\??\C:\Windows\Temp\agent.tmp".to_owned(), r"\??\C:\Windows\agent.dll".to_owned()];
                    let session = r"SYSTEM\CurrentControlSet\Control\Session Manager";
                    windows.set(View::Bits64, session, "PendingFileRenameOperations", Value::Texts(renames));
                });
            }
            Deed::Finalize => {
                guest.stage("check", MOMENT).await;
                let id = id.clone();
                match inside.run(move |machine| shut_down(machine, &id)).await {
                    Some(true) => return Exit::Halt,
                    // People read what they are told before they do something about it.
                    Some(false) => guest.stage("read", 5 * MOMENT).await,
                    None => return Exit::Crash,
                }
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
            Deed::Until(mut done) => {
                if done.wait_for(|done| *done).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            Deed::Reboot => return Exit::Reboot,
            Deed::PowerOff => return Exit::Halt,
            Deed::Stay => std::future::pending::<()>().await,
        }
    }
    std::future::pending().await
}

/// What the icon on the desktop does. Is the machine going off?
fn shut_down(machine: &Machine<'_>, id: &str) -> bool {
    let Ok((bound, order)) = service::mark(machine, id) else { return false };
    finalize(machine, &bound, order).is_ok_and(|outcome| outcome.off)
}

/// Tools are up: they report, and the guest's service marks the boot.
async fn up(guest: &Guest, id: &str) -> Option<()> {
    guest.report_tools().await.ok()?;
    guest.write(&Keys::from([(format!("{PREFIX}boot"), id.to_owned())])).await.ok()
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
