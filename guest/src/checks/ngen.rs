//! The .NET native image generator: at work, or with work queued.
//!
//! Looked at from outside: asking `ngen` itself makes it yield to the question. Since .NET 4 the queue is in the registry, for 2.0 only its
//! service shows. Microsoft does not describe the key. Programs that show the queue count the subkeys of `Default`. Nobody says what
//! `PersistedPriorities` beside it holds, and a list that running the queue does not empty would keep every machine from its end.

use super::{Basis, Check, paths};
use crate::cause::Cause::{NGenNeeded, NGenRunning};
use crate::facts::{Facts, Seen, View};

const QUEUE: &str = r"SOFTWARE\Microsoft\.NETFramework\NGenQueue";
const PROCESSES: [&str; 3] = ["mscorsvw.exe", "ngen.exe", "ngentask.exe"];

pub const CHECKS: &[Check] = &[
    Check {
        cause: NGenRunning,
        place: "processes `mscorsvw.exe`, `ngen.exe`, `ngentask.exe`",
        basis: Basis::Documented,
        look: processes,
    },
    Check {
        cause: NGenRunning,
        place: r"service `clr_optimization_<version>_32` or `_64`, not stopped, for every `v*` directory with an `ngen.exe` in `Microsoft.NET\Framework` and `Framework64`",
        basis: Basis::Documented,
        look: services,
    },
    Check {
        cause: NGenNeeded,
        place: r"`HKLM\SOFTWARE\Microsoft\.NETFramework\NGenQueue\<WIN32, WIN64>\Default`: subkeys, both views; other lists beside `Default` do not count. What is queued for .NET 2.0 to 3.5 is not kept there, and is not seen",
        basis: Basis::Guess,
        look: queue,
    },
];

/// One installed version of the .NET runtime.
struct Runtime {
    /// Such as `v4.0.30319`.
    version: String,
    bits: u8,
    ngen: String,
}

fn runtimes(facts: &dyn Facts) -> Seen<Vec<Runtime>> {
    let mut all = Vec::new();
    for (directory, bits) in [("Framework", 32), ("Framework64", 64)] {
        let directory = format!(r"{}\Microsoft.NET\{directory}", paths::windows(facts)?);
        for version in facts.list(&directory)?.unwrap_or_default() {
            let ngen = format!(r"{directory}\{version}\ngen.exe");
            if version.starts_with(['v', 'V']) && facts.stat(&ngen)?.is_some() {
                all.push(Runtime { version, bits, ngen });
            }
        }
    }
    Ok(all)
}

/// Full path of every installed `ngen.exe`: both directories, each version.
pub fn native_image_generators(facts: &dyn Facts) -> Seen<Vec<String>> {
    Ok(runtimes(facts)?.into_iter().map(|r| r.ngen).collect())
}

fn processes(facts: &dyn Facts) -> Seen<Vec<String>> {
    let ours = |name: &str| PROCESSES.iter().any(|p| p.eq_ignore_ascii_case(name));
    let all = facts.processes()?;
    Ok(all.iter().filter(|p| ours(&p.name)).map(|p| format!("process {} ({})", p.name, p.pid)).collect())
}

fn services(facts: &dyn Facts) -> Seen<Vec<String>> {
    let mut seen = Vec::new();
    for runtime in runtimes(facts)? {
        let name = format!("clr_optimization_{}_{}", runtime.version, runtime.bits);
        if facts.service(&name)?.is_some_and(|s| !s.stopped) {
            seen.push(format!("service {name} is not stopped"));
        }
    }
    Ok(seen)
}

fn queue(facts: &dyn Facts) -> Seen<Vec<String>> {
    let mut seen = Vec::new();
    for view in View::BOTH {
        for architecture in below(facts, view, QUEUE)? {
            let list = format!(r"{architecture}\Default");
            let queued = below(facts, view, &list)?.len();
            let line = format!(r"HKLM\{list}: {queued} queued");
            if queued > 0 && !seen.contains(&line) {
                seen.push(line);
            }
        }
    }
    Ok(seen)
}

/// Full paths of the keys below a key.
fn below(facts: &dyn Facts, view: View, path: &str) -> Seen<Vec<String>> {
    let key = facts.key(view, path)?.unwrap_or_default();
    Ok(key.subkeys.iter().map(|name| format!(r"{path}\{name}")).collect())
}
