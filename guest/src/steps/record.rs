//! The record of what ran: written before a step runs and after, read at each boot. Called by `driver`, `service` and the controller.
//!
//! FAT knows no rename that is all or nothing, and a machine may die in the middle of a write. So there are two slots, written in turn: a
//! write tears at most the slot that it is in, whose seal is then wrong, and the other one holds the state before it. The controller
//! puts slot 0 on the disk, so that a disk without any whole record is a damage and never a first boot.
//!
//! A slot is two lines: the SHA-256, in hex, of the second, and the record as JSON. What counts as written is what `Deeds::write` returned
//! from, which is on the medium; a state is written before anything is done that needs it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Step;
use crate::disk::{Damage, RECORDS};

/// Where a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    Pending,
    Running,
    /// The machine went down, or the service did, while it ran: nobody knows how far it came.
    Interrupted,
    Succeeded,
    Failed,
    /// It ran into its timeout and was ended.
    TimedOut,
    /// A person did by hand what it should have done, and said so.
    Skipped,
}

impl State {
    pub const ALL: [Self; 7] =
        [Self::Pending, Self::Running, Self::Interrupted, Self::Succeeded, Self::Failed, Self::TimedOut, Self::Skipped];

    /// The word in status and xenstore.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Interrupted => "Interrupted",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::TimedOut => "TimedOut",
            Self::Skipped => "Skipped",
        }
    }
}

/// One boot of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Boot {
    /// A guid that the service made for it; also in xenstore (`vm-data/lamina/boot`).
    pub id: String,
    /// Seconds since 1970, UTC, by the guest's clock.
    pub began: u64,
    /// The machine's domain, another one after every reboot; `None`: no xenstore to ask.
    pub domid: Option<String>,
}

/// What became of one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ran {
    pub name: String,
    pub state: State,
    /// How Windows ended it.
    pub exit_code: Option<i32>,
    /// Seconds since 1970, UTC, by the guest's clock.
    pub begun: Option<u64>,
    pub ended: Option<u64>,
    /// The boot that it last ran in.
    pub boot: Option<String>,
    /// How often it was begun.
    pub runs: u32,
    /// Why it could not be started.
    pub why: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Counts the writes; its last bit is the slot.
    pub generation: u64,
    /// The machine's nonce: a record of another machine does not count.
    pub nonce: String,
    /// SHA-256, in hex, of `steps.json`.
    pub steps_sha256: String,
    /// Boots that the service saw; only ever grows.
    pub boots: u32,
    pub boot: Option<Boot>,
    pub steps: Vec<Ran>,
    /// Reboots that were made, after the steps, for findings that go away with one.
    pub reboots: u32,
}

impl Record {
    /// The record of a machine that never ran.
    pub fn new(nonce: &str, steps: &[Step], steps_json: &[u8]) -> Self {
        let pending = |step: &Step| Ran {
            name: step.name.clone(),
            state: State::Pending,
            exit_code: None,
            begun: None,
            ended: None,
            boot: None,
            runs: 0,
            why: None,
        };
        Self {
            generation: 0,
            nonce: nonce.to_owned(),
            steps_sha256: hex(steps_json),
            boots: 0,
            boot: None,
            steps: steps.iter().map(pending).collect(),
            reboots: 0,
        }
    }

    /// Is it of these steps, in this order?
    pub fn is_of(&self, steps: &[Step], steps_json: &[u8]) -> bool {
        self.steps_sha256 == hex(steps_json) && self.steps.iter().map(|r| &r.name).eq(steps.iter().map(|s| &s.name))
    }

    /// The path of the slot that this generation belongs to.
    pub fn slot(&self) -> &'static str {
        if self.generation.is_multiple_of(2) { RECORDS[0] } else { RECORDS[1] }
    }

    /// The slot's bytes.
    pub fn bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let body = serde_json::to_string(self)?;
        Ok(format!("{}\n{body}\n", hex(body.as_bytes())).into_bytes())
    }

    /// One slot; a seal that is wrong is a torn write, or a damage.
    fn parse(slot: &[u8]) -> Option<Self> {
        let (seal, body) = std::str::from_utf8(slot).ok()?.split_once('\n')?;
        let body = body.trim_end();
        (seal.trim_end() == hex(body.as_bytes())).then(|| serde_json::from_str(body).ok())?
    }

    /// The newest whole record of the two slots.
    pub fn newest(slots: [Option<&[u8]>; 2]) -> Result<Self, Damage> {
        let whole = slots.into_iter().flatten().filter_map(Self::parse).max_by_key(|r| r.generation);
        whole.ok_or_else(|| match slots {
            [None, None] => Damage::Missing(RECORDS[0]),
            [_, _] => Damage::Garbled(RECORDS[0].to_owned()),
        })
    }
}

/// SHA-256, in hex.
fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
