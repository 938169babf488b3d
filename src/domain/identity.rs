//! Who an object of the pool belongs to: lineages, operation ids, the keys written on objects, the mark on a source, and proof.
//!
//! Pure. Used by everything that makes, claims or removes something. It must never build a key from names, generations or
//! clocks: a renamed layer, a restored backup or a second controller would make a second disk.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use sha2::{Digest, Sha256};

/// `other_config` of an object.
pub type Keys = BTreeMap<String, String>;

/// What all our keys begin with.
pub const PREFIX: &str = "lamina.dev/";
/// On a source: "a child is being made of this"; the value is a [`Mark`].
pub const MAKING: &str = "lamina.dev/making";
/// In a task: XAPI turns our request header into this key of the task's `other_config`.
pub const TASK_TAG: &str = "http:lamina-op";
/// The tag on disks and machines, for people and for other tools' lists.
pub const TAG: &str = "lamina";

pub const SCHEMA: &str = "lamina.dev/schema";
pub const CLUSTER: &str = "lamina.dev/cluster";
pub const ROLE: &str = "lamina.dev/role";
pub const OP: &str = "lamina.dev/op";
pub const SELF: &str = "lamina.dev/self";
pub const OS: &str = "lamina.dev/os";
pub const OS_VERSION: &str = "lamina.dev/os-version";
pub const LAYER: &str = "lamina.dev/layer";
pub const VERSION: &str = "lamina.dev/version";
pub const BASE: &str = "lamina.dev/base";
pub const RETAINED: &str = "lamina.dev/retained";
pub const NONCE: &str = "lamina.dev/nonce";
pub const START_BEFORE: &str = "lamina.dev/start-before";
pub const BOOT: &str = "lamina.dev/boot";
pub const TOKEN: &str = "lamina.dev/token";
/// On C: what it was made to hold ([`super::config::content`]).
pub const CONTENT: &str = "lamina.dev/content";
/// On C: the content was written, as a whole, with files that came from this ([`super::observed::Observed::files`]).
pub const FILLED: &str = "lamina.dev/filled";
/// On C: it was overwritten with zeros.
pub const WIPED: &str = "lamina.dev/wiped";
/// On M: what was read back of C after a halt ([`super::config::Read`]).
pub const READ: &str = "lamina.dev/read";
/// On M: C has done its part and goes, by our own hand.
pub const CONFIG_DONE: &str = "lamina.dev/config-done";

/// The tag of a child that nobody claimed, from the moment on that it is to be destroyed. A copy of it has that too, and another uuid.
pub fn unwanted(uuid: &str) -> String {
    format!("{PREFIX}unwanted/{uuid}")
}

/// What an object of ours is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The snapshot of the OS disk, shared by all layers of the cluster.
    Base,
    /// The packaging disk.
    Work,
    /// The packaging machine.
    Machine,
    /// A frozen version.
    Frozen,
    /// The config disk.
    Config,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Work => "work",
            Self::Machine => "machine",
            Self::Frozen => "frozen",
            Self::Config => "config",
        }
    }

    pub fn parse(s: &str) -> Option<Self> {
        [Self::Base, Self::Work, Self::Machine, Self::Frozen, Self::Config].into_iter().find(|r| r.as_str() == s)
    }

    /// The keys that an object of this role has, all of them, when it is claimed.
    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Base => &[SCHEMA, CLUSTER, ROLE, OP, SELF, OS, OS_VERSION],
            Self::Work | Self::Frozen => &[SCHEMA, CLUSTER, ROLE, OP, SELF, LAYER, VERSION, BASE],
            Self::Machine | Self::Config => &[SCHEMA, CLUSTER, ROLE, OP, SELF, LAYER, VERSION, NONCE],
        }
    }
}

/// What a guest's reports name their machine by; `machine`: its uuid.
pub fn nonce(cluster: &str, machine: &str) -> String {
    Opid::of(&["nonce", cluster, machine]).0
}

/// A short hash of a lineage: 16 hexadecimal digits. The same lineage has the same id in every process, for ever.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Opid(pub String);

impl Opid {
    fn of(parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            // Length first: ("a", "bc") and ("ab", "c") are two lineages.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        Self(hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect())
    }

    /// The tag of an auxiliary call of this operation. In-flight tests look for tags by prefix, finders of children for the exact one.
    pub fn aux(&self, what: &str) -> String {
        format!("{}.{what}", self.0)
    }

    /// Does a task's tag belong to this operation, auxiliary calls included?
    pub fn covers(&self, tag: &str) -> bool {
        tag.strip_prefix(self.0.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

impl Display for Opid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Is this tag that of a disk stream's task? One that outlives its controller says nothing: a stream that is at work shows as the control
/// domain's hold on the disk.
pub fn is_stream(tag: &str) -> bool {
    tag.rsplit_once('.').is_some_and(|(_, what)| matches!(what, "fill" | "read" | "wipe"))
}

/// The lineage of an object: at most one live claimed object has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lineage {
    Base { cluster: String, sr: String, os: String, os_version: String },
    Layer { cluster: String, layer: String, version: String, role: Role },
}

impl Lineage {
    pub fn opid(&self) -> Opid {
        match self {
            Self::Base { cluster, sr, os, os_version } => Opid::of(&[cluster, sr, os, os_version, Role::Base.as_str()]),
            Self::Layer { cluster, layer, version, role } => Opid::of(&[cluster, layer, version, role.as_str()]),
        }
    }

    /// The id of a start of this machine (uuid) for this restart token. A machine that was made anew has starts of its own.
    pub fn start_opid(cluster: &str, machine: &str, token: &str) -> Opid {
        Opid::of(&[cluster, machine, "start", token])
    }

    pub fn role(&self) -> Role {
        match self {
            Self::Base { .. } => Role::Base,
            Self::Layer { role, .. } => *role,
        }
    }

    pub fn cluster(&self) -> &str {
        match self {
            Self::Base { cluster, .. } | Self::Layer { cluster, .. } => cluster,
        }
    }

    /// The mark that says on the source that a child of this lineage is being made.
    pub fn mark(&self) -> Mark {
        let owner = match self {
            Self::Base { .. } => Role::Base.as_str().to_owned(),
            Self::Layer { layer, .. } => layer.clone(),
        };
        Mark { cluster: self.cluster().to_owned(), owner, op: self.opid().0 }
    }

    /// The keys of a claimed object of this lineage: written in one call, which is the claim. `base` is the uuid of S, for
    /// disks that stand on one; `extra` what the role adds (a machine's nonce and token).
    pub fn keys(&self, uuid: &str, base: Option<&str>, extra: &[(&str, &str)]) -> Keys {
        let mut keys = Keys::new();
        let mut put = |k: &str, v: &str| drop(keys.insert(k.to_owned(), v.to_owned()));
        put(SCHEMA, "1");
        put(CLUSTER, self.cluster());
        put(ROLE, self.role().as_str());
        put(OP, &self.opid().0);
        put(SELF, uuid);
        match self {
            Self::Base { os, os_version, .. } => {
                put(OS, os);
                put(OS_VERSION, os_version);
            }
            Self::Layer { layer, version, .. } => {
                put(LAYER, layer);
                put(VERSION, version);
            }
        }
        if let Some(base) = base {
            put(BASE, base);
        }
        for (k, v) in extra {
            put(k, v);
        }
        keys
    }
}

/// The value of [`MAKING`]: `<cluster>/<layer uid, or "base">/<opid>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub cluster: String,
    pub owner: String,
    pub op: String,
}

impl Mark {
    /// Says on S that it is about to go: whoever would clone it looks again.
    pub fn removal(cluster: &str, layer: &str) -> Self {
        Self { cluster: cluster.to_owned(), owner: Role::Base.as_str().to_owned(), op: format!("remove-{layer}") }
    }

    pub fn read(keys: &Keys) -> Option<Self> {
        let mut parts = keys.get(MAKING)?.splitn(3, '/');
        // A mark that we cannot read is somebody else's: it blocks, and is never taken off.
        let mut next = || parts.next().unwrap_or_default().to_owned();
        Some(Self { cluster: next(), owner: next(), op: next() })
    }

    pub fn is_removal(&self) -> bool {
        self.op.starts_with("remove-")
    }

    /// uid of the layer that is at work under it; none: any layer that wants the base.
    pub fn layer(&self) -> Option<&str> {
        self.op.strip_prefix("remove-").or(Some(self.owner.as_str()).filter(|owner| *owner != Role::Base.as_str()))
    }
}

impl Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.cluster, self.owner, self.op)
    }
}

/// What the keys of an object prove. `recorded`: our status names this uuid, for this pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// All keys of its role, and `self` is its own uuid.
    ByKeys(Role),
    /// Recorded, and no foreign key on it: it lost its keys (a forgotten storage repository) and is tagged again on sight.
    ByRecord,
    /// A child of ours that nobody claimed yet, or a copy that another tool made: our keys or mark, but `self` is not its uuid.
    Unclaimed,
    /// Keys of ours, but of another cluster, or mixed beyond recognition.
    Foreign,
    /// Nothing of ours on it.
    None,
}

/// Judges an object by its uuid and keys.
pub fn prove(cluster: &str, uuid: &str, keys: &Keys, recorded: bool) -> Proof {
    let ours = |k: &str| keys.get(k).map(String::as_str);
    let bears_keys = keys.keys().any(|k| k.starts_with(PREFIX) && k != MAKING);
    let foreign = ours(CLUSTER).is_some_and(|c| c != cluster) || Mark::read(keys).is_some_and(|m| m.cluster != cluster);
    if ours(CLUSTER) == Some(cluster) && ours(SELF) == Some(uuid) {
        if let Some(role) = ours(ROLE).and_then(Role::parse)
            && role.required().iter().all(|k| keys.contains_key(*k))
        {
            return Proof::ByKeys(role);
        }
        return if recorded { Proof::ByRecord } else { Proof::Foreign };
    }
    if foreign {
        return Proof::Foreign;
    }
    // A restart of xapi can bring back the keys that it was born with, those of its source or none, and a call that was on its way then adds
    // one of ours to them.
    if recorded {
        return Proof::ByRecord;
    }
    if ours(CLUSTER) == Some(cluster) || keys.contains_key(MAKING) {
        return Proof::Unclaimed;
    }
    if bears_keys { Proof::Foreign } else { Proof::None }
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
