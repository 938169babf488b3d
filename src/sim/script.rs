//! Guests as data: what a machine does, step by step, across its boots.
//!
//! Read from a file or by the control endpoint. A machine keeps its place in the script over reboots and power cycles; after the last step it
//! is a plain system that obeys. The language knows keys, values and digests, and no protocol above them.
//!
//! ```yaml
//! - match: { name: "pack-*" }
//!   steps:
//!     - install_tools: 2                      # reboots on the way
//!     - write: { vm-data/app/boot: "${guid}", vm-data/app/nonce: "${vm-data/app/nonce}" }
//!     - write: { vm-data/app/report/sum: "${sha256:vm-data/app/report/}" }
//!     - write_block: { disk: 0, block: 7, seed: 42 }
//!     - wait: 12
//!     - halt
//! ```

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{
    disk::pattern,
    guest::{BOOT, Guest, Guests, Match, Program, program},
    power::Exit,
};

/// A system needs so long to install tools before each of its reboots.
const INSTALL: Duration = Duration::from_secs(2);

/// Scripts and the machines they are for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    #[serde(rename = "match")]
    pub which: Match,
    pub steps: Vec<Step>,
}

/// One step. Times are seconds of the pool's clock.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    Wait(f64),
    /// Installs guest tools from whatever source, with so many reboots; then they report at each boot.
    InstallTools(u32),
    /// Takes the tools off the boot disk; they are silent from the next boot on.
    RemoveTools,
    /// Writes keys of the store in one transaction; values may hold `${…}`, see [`expand`].
    Write(BTreeMap<String, String>),
    /// Removes keys and all below them.
    Remove(Vec<String>),
    /// Waits until a key has a value.
    WaitFor {
        key: String,
        value: String,
    },
    /// Writes 2 MiB that follow from seed and block (`disk::pattern`).
    WriteBlock {
        disk: u64,
        block: u64,
        seed: u64,
    },
    /// From now on requests to shut down are not heard, or are again.
    RefuseShutdown(bool),
    Reboot,
    Halt,
    Crash,
    /// Nothing moves inside any more until somebody pulls the plug.
    Hang,
}

/// Reads scripts from YAML (or JSON, which is YAML).
///
/// # Errors
/// Where the text is not a list of scripts.
pub fn parse(text: &str) -> Result<Vec<Script>, serde_saphyr::Error> {
    serde_saphyr::from_str(text)
}

/// From the next boot on, machines that fit follow the script.
pub fn install(guests: &Guests, script: Script) {
    let Script { which, steps } = script;
    guests.add(which, follow(spread(steps)));
}

/// Steps that take reboots become several.
fn spread(steps: Vec<Step>) -> Vec<Step> {
    let one = |step| match step {
        Step::InstallTools(reboots) => {
            let boots = (0..reboots).flat_map(|_| [Step::Wait(INSTALL.as_secs_f64()), Step::Reboot]);
            boots.chain([Step::Wait(INSTALL.as_secs_f64()), Step::InstallTools(0)]).collect()
        }
        step => vec![step],
    };
    steps.into_iter().flat_map(one).collect()
}

fn follow(steps: Vec<Step>) -> Program {
    let steps = Arc::new(steps);
    let places: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    program(move |guest| {
        let (steps, places) = (Arc::clone(&steps), Arc::clone(&places));
        async move {
            guest.stage("boot", BOOT).await;
            if guest.has_tools() {
                // A domain that is gone has nobody to report to.
                guest.report_tools().await.unwrap_or_default();
            }
            let mut machine = Machine { guid: uuid::Uuid::new_v4().to_string(), guest };
            loop {
                let place =
                    *places.lock().unwrap_or_else(PoisonError::into_inner).entry(machine.guest.vm.clone()).or_default();
                let Some(step) = steps.get(place) else { std::future::pending().await };
                let exit = machine.take(step).await;
                places.lock().unwrap_or_else(PoisonError::into_inner).insert(machine.guest.vm.clone(), place + 1);
                if let Some(exit) = exit {
                    return exit;
                }
            }
        }
    })
}

struct Machine {
    guest: Guest,
    /// Made anew at each boot.
    guid: String,
}

impl Machine {
    /// What the pool or the disk refuses, a script does not notice: a guest that cannot write goes on, as a careless program would.
    async fn take(&mut self, step: &Step) -> Option<Exit> {
        let guest = &self.guest;
        match step {
            Step::Wait(seconds) => {
                guest.stage("wait", Duration::try_from_secs_f64(*seconds).unwrap_or_default()).await;
            }
            Step::InstallTools(_) => {
                guest.set_tools(true);
                guest.report_tools().await.unwrap_or_default();
            }
            Step::RemoveTools => guest.set_tools(false),
            Step::Write(keys) => {
                let store = guest.store();
                let expanded = keys.iter().map(|(k, v)| (k.clone(), expand(v, k, &store, &self.facts())));
                guest.stage("write", Duration::ZERO).await;
                guest.write(&expanded.collect()).await.unwrap_or_default();
            }
            Step::Remove(keys) => guest.remove(keys).unwrap_or_default(),
            Step::WaitFor { key, value } => {
                while guest.read(key).as_ref() != Some(value) {
                    guest.stage("wait", Duration::from_millis(100)).await;
                }
            }
            Step::WriteBlock { disk, block, seed } => {
                guest.write_block(*disk, *block, &pattern(*seed, *block)).unwrap_or_default();
            }
            Step::RefuseShutdown(on) => guest.refuse_shutdown(*on),
            Step::Reboot => return Some(Exit::Reboot),
            Step::Halt => return Some(Exit::Halt),
            Step::Crash => return Some(Exit::Crash),
            Step::Hang => {
                guest.refuse_shutdown(true);
                std::future::pending::<()>().await;
            }
        }
        None
    }

    fn facts(&self) -> BTreeMap<&'static str, String> {
        BTreeMap::from([
            ("guid", self.guid.clone()),
            ("random", uuid::Uuid::new_v4().to_string()),
            ("domid", self.guest.domid().to_string()),
            ("boot", self.guest.boot.to_string()),
            ("name", self.guest.name.clone()),
            ("now", self.guest.now()),
        ])
    }
}

/// Replaces `${…}` in a value that is to be written at `key`: `guid` (made anew at each boot), `random`, `domid`, `boot` (number of this
/// boot), `name`, `now`; `sha256:<prefix>`, the hexadecimal SHA-256 over the lines `key=value`, each ended by a line feed, of all keys below
/// the prefix (which is left off), sorted, except the one that is written; anything else is the present value of that key.
pub fn expand(
    value: &str,
    key: &str,
    store: &BTreeMap<String, String>,
    facts: &BTreeMap<&'static str, String>,
) -> String {
    let mut out = String::new();
    let mut rest = value;
    while let Some((before, name, after)) =
        rest.split_once("${").and_then(|(before, tail)| tail.split_once('}').map(|(name, after)| (before, name, after)))
    {
        out.push_str(before);
        let found = match name.strip_prefix("sha256:") {
            Some(prefix) => sum(prefix, key, store),
            None => facts.get(name).or_else(|| store.get(name)).cloned().unwrap_or_default(),
        };
        out.push_str(&found);
        rest = after;
    }
    out.push_str(rest);
    out
}

fn sum(prefix: &str, key: &str, store: &BTreeMap<String, String>) -> String {
    let below = store.iter().filter(|(k, _)| *k != key).filter_map(|(k, v)| Some((k.strip_prefix(prefix)?, v)));
    let lines: String = below.map(|(k, v)| format!("{k}={v}\n")).collect();
    format!("{:x}", Sha256::digest(lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_expanded_and_the_written_key_is_no_part_of_its_digest() {
        let store = [("a/b", "1"), ("a/c", "2"), ("a/sum", "old")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let facts = BTreeMap::from([("domid", "7".to_owned())]);
        let to = |value: &str| expand(value, "a/sum", &store, &facts);
        assert_eq!(to("d${domid}-${a/b}-${none}-${open"), "d7-1--${open");
        assert_eq!(to("${sha256:a/}"), format!("{:x}", Sha256::digest("b=1\nc=2\n")));
    }

    #[test]
    fn steps_are_read_from_yaml_and_mistakes_are_named() {
        let text = "- match: {name: 'x-*'}\n  steps:\n  - install_tools: 2\n  - write: {vm-data/k: v}\n  - halt\n";
        let scripts = parse(text).unwrap();
        assert_eq!(spread(scripts[0].steps.clone()).len(), 8);
        assert!(parse("- match: {}\n  steps: [fly]\n").is_err());
        let refused = parse("- match: {name: 'm?'}\n  steps: [halt]\n").unwrap_err().to_string();
        assert!(refused.contains("only * is known"), "{refused}");
    }
}
