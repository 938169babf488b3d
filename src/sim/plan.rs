//! What a world file may say, and what may be wrong with it. Read by the command line, carried out by `build`.
//!
//! ```yaml
//! replace: true                      # nothing of the default world
//! hosts: 2
//! networks: [Lab]                    # the first is the templates'
//! repositories:
//! - { name: SAN, type: lvmoiscsi, size_gib: 500 }
//! - { name: Discs, type: iso, size_gib: 10, files: [guest-tools.iso] }
//! default_repository: SAN
//! disks: [ { name: os, size_gib: 32, blocks: [0, 1] } ]
//! templates: [ { name: lab } ]
//! ```

use std::collections::BTreeMap;

use serde::Deserialize;

use super::disk::Format;

/// Names are names of objects in the default world or in the file itself.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorldFile {
    /// The file is the whole world: of the default one there is nothing but the storage drivers.
    pub replace: bool,
    /// 3 where absent; the first is the coordinator.
    pub hosts: Option<u8>,
    /// Networks that every host reaches.
    pub networks: Vec<String>,
    pub repositories: Vec<Repository>,
    /// The pool's default repository; in a replaced world the file's first where absent.
    pub default_repository: Option<String>,
    pub disks: Vec<Disk>,
    pub templates: Vec<Template>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repository {
    pub name: String,
    /// `nfs`, `ext`, `lvm`, `lvmoiscsi`, `iso`, …
    #[serde(rename = "type")]
    pub kind: String,
    pub size_gib: u64,
    /// Seen by the first host only where false.
    #[serde(default = "yes")]
    pub shared: bool,
    /// Names of disc images that lie there.
    #[serde(default)]
    pub files: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    pub name: String,
    /// A name; the default repository where absent.
    pub repository: Option<String>,
    pub size_gib: u64,
    #[serde(default)]
    pub format: Format,
    /// Blocks with known content.
    #[serde(default)]
    pub blocks: Vec<u64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    pub name: String,
    /// Sizes of its disks.
    #[serde(default)]
    pub disks_gib: Vec<u64>,
    #[serde(default = "yes")]
    pub network: bool,
    #[serde(default)]
    pub other_config: BTreeMap<String, String>,
}

fn yes() -> bool {
    true
}

/// What cannot be made of a world file.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Mistake {
    #[error("the world has no repository named '{0}'")]
    Repository(String),
    #[error("disk '{0}' names no repository, and the world has no default one")]
    Homeless(String),
    #[error("template '{0}' wants a network, and the world has none")]
    Network(String),
    #[error("a pool has 1 to 16 hosts, not {0}")]
    Hosts(u8),
}
