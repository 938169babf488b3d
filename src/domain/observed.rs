//! What is seen: of the pool, of the records in status, and of what this process knows of its own calls.
//!
//! Plain data, built by `controller::observe`, judged by `plan` and `removal`. Nothing here looks anywhere: no I/O, no clock;
//! elapsed time comes in as a fact (`Quiet::Twice`, `overdue`).
//!
//! Longer than 350 lines: plain data with what each field means.

use lamina_guest::steps::progress::Doing;

use super::config::Read;
use super::identity::{BOOT, Keys, Mark, Opid};
use super::report::Report;
use crate::api::reason::Reason;

/// What we can say of one object. `Lost` is not `Absent`: made and gone stops everything, never made allows a create.
#[derive(Clone, Debug, PartialEq)]
pub enum Sight<T> {
    /// We could not look, or not well enough: nothing is done.
    CannotLook,
    Absent,
    Lost,
    Found(T),
}

impl<T> Sight<T> {
    pub fn found(&self) -> Option<&T> {
        match self {
            Self::Found(t) => Some(t),
            Self::CannotLook | Self::Absent | Self::Lost => None,
        }
    }
}

/// Something that stands in the way, ready to be told. Its fault class is its reason's.
#[derive(Clone, Debug, PartialEq)]
pub struct Trouble {
    pub reason: Reason,
    pub message: String,
}

impl Trouble {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// A disk of ours.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Disk {
    pub uuid: String,
    pub name: String,
    pub description: String,
    pub keys: Keys,
    /// All keys of its role are on it; false: recorded only, to be tagged again.
    pub keyed: bool,
    pub tagged: bool,
    /// Bytes.
    pub virtual_size: i64,
    pub utilisation: i64,
    pub format: String,
    /// Uuid of what it is a snapshot of, where that is still there.
    pub snapshot_of: Option<String>,
    /// Uuid of its storage repository.
    pub sr: Option<String>,
    /// A call of ours or of anybody's is at work on it.
    pub busy: bool,
    /// Its driver paused it: every clone of it will fail.
    pub paused: bool,
    /// For so long that nothing can be at work: a restart of xapi left it so.
    pub left_paused: bool,
    pub depth: u32,
    pub mark: Option<Mark>,
    pub attachments: Vec<Attachment>,
}

/// A VBD of a disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Attachment {
    pub vbd: String,
    pub holder: Holder,
    pub attached: bool,
    pub writable: bool,
}

/// Who holds a disk.
#[derive(Clone, Debug, PartialEq)]
pub enum Holder {
    /// Our packaging machine of this lineage.
    Machine,
    /// A control domain; `leaked`: seen there for ten minutes without a task of ours.
    ControlDomain {
        leaked: bool,
    },
    Other {
        name: String,
        halted: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    Halted,
    Running,
    Paused,
    Suspended,
    Unknown,
}

/// The packaging machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    pub uuid: String,
    pub name: String,
    pub keys: Keys,
    pub keyed: bool,
    pub template: bool,
    pub power: Power,
    /// −1 while halted.
    pub domid: i64,
    /// As XAPI writes it.
    pub start_time: String,
    pub host: Option<String>,
    pub address: Option<String>,
    /// Settings that are not as wanted; judged only until it first runs.
    pub drift: Vec<Setting>,
    /// Settings that must hold at all times (no restart behind our back), not as wanted.
    pub guard_drift: Vec<Setting>,
    /// The uuid of the VBD that holds the packaging disk.
    pub disk: Option<String>,
    pub disk_attached: bool,
    /// The uuid of the VBD that holds the config disk.
    pub config: Option<String>,
    /// The config disk goes, or went, by our own hand.
    pub config_done: bool,
    /// What was last read back of it.
    pub read: Option<Read>,
    /// How far the guest says its steps are.
    pub progress: Vec<lamina_guest::steps::progress::Step>,
    /// What the guest's service says it is doing.
    pub doing: Option<Doing>,
    /// It has said that for longer than it may take.
    pub silent: bool,
    pub dvd: Dvd,
    /// For ten minutes, in this boot.
    pub runs_long: bool,
    pub tools: Tools,
    pub report: Option<Report>,
    /// What the guest says of its present boot (`vm-data/lamina/boot`).
    pub guest_boot: Option<String>,
    pub start_blocked: bool,
    pub destroy_blocked: bool,
    pub busy: bool,
    /// Why no host can start it, one line a host; asked only before a start that is due.
    pub cannot_boot: Option<String>,
}

impl Machine {
    pub fn key(&self, key: &str) -> Option<&str> {
        self.keys.get(key).map(String::as_str)
    }

    /// `start_time` of the boot that was noted last.
    pub fn boot_noted(&self) -> Option<&str> {
        self.key(BOOT).and_then(|b| b.split_once('@')).map(|(_, time)| time)
    }

    /// The id of the boot in progress: `<domid>@<start_time>`, as recorded on the machine and in status. Of one that is over the domain is
    /// not known any more (-1): no report is of it.
    pub fn boot_id(&self) -> String {
        format!("{}@{}", self.domid, self.start_time)
    }
}

/// The DVD drive. It must be there before the first start: one made later stays dead until a power cycle.
#[derive(Clone, Debug, PartialEq)]
pub enum Dvd {
    None,
    Empty {
        vbd: String,
    },
    /// Holds the disc that we want in.
    ToolsIn {
        vbd: String,
    },
    /// Holds another disc, brought by the template or put in by a person.
    Foreign {
        vbd: String,
    },
}

/// Guest tools, judged on the current `guest_metrics` only.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tools {
    pub ready: bool,
    pub version: Option<String>,
    /// Ten minutes since the start, and still not seen.
    pub overdue: bool,
}

/// One setting of the machine and the value that it should have. Bytes for memory.
#[derive(Clone, Debug, PartialEq)]
pub enum Setting {
    Name(String),
    Description(String),
    Tags(Vec<String>),
    Vcpus { max: i64, lower: bool },
    Memory(i64),
    Firmware(String),
    Networks(Vec<String>),
    AfterShutdown,
    AfterReboot,
    AfterCrash,
    NoAutoPowerOn,
    NoHa,
    NoAffinity,
    Blocked(Keys),
    Xenstore(Keys),
    StartBefore(String),
    NotTemplate,
}

/// The intent in status: persisted before anything is made (`status.operation`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    pub step: Making,
    pub opid: Opid,
    /// Uuid of the source.
    pub source: String,
    /// The coordinator's `agent_start_time` when it was written.
    pub agent_start: String,
    /// Of a freeze: the machine's boot that is frozen.
    pub boot: Option<String>,
}

/// The operations that need an intent: the calls that XAPI would do twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Making {
    SnapshotOsDisk,
    CloneDisk,
    CloneMachine,
    CreateConfig,
    StartMachine,
    FreezeDisk,
}

impl Making {
    pub const ALL: [Self; 6] = [
        Self::SnapshotOsDisk,
        Self::CloneDisk,
        Self::CloneMachine,
        Self::CreateConfig,
        Self::StartMachine,
        Self::FreezeDisk,
    ];

    /// The name in `status.operation.step`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SnapshotOsDisk => "SnapshotOSDisk",
            Self::CloneDisk => "CloneDisk",
            Self::CloneMachine => "CloneMachine",
            Self::CreateConfig => "CreateConfigDisk",
            Self::StartMachine => "StartMachine",
            Self::FreezeDisk => "FreezeDisk",
        }
    }

    pub fn parse(s: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.as_str() == s)
    }
}

/// One operation as far as it can be seen: on the pool, in status, and in this process's memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Flight {
    pub making: Making,
    pub opid: Opid,
    pub source: String,
    /// Uuid of the storage repository that is scanned for it after a restart of xapi.
    pub sr: String,
    /// The mark that belongs on the source; a start, and a disk that is made of nothing, have none.
    pub wanted_mark: Option<Mark>,
    /// The mark that is on it.
    pub mark: MarkSight,
    pub intent: Option<Intent>,
    pub sent: Sent,
    pub task: TaskSight,
    /// Unclaimed children, by uuid: bearing our mark, or (machines) our name.
    pub children: Vec<Child>,
    pub quiet: Quiet,
    /// What keeps it from that, in words.
    pub at_work: Option<String>,
    /// xapi was started anew since the intent was written.
    pub restarted: bool,
    /// Scans since then that found the pool at rest, 60 s apart.
    pub scans: u8,
    /// The next of them may be made now.
    pub scan_due: bool,
    /// It is our turn on this source: calls on one source go one at a time.
    pub turn: bool,
    /// Who is at work on the source and does not go on by itself, and why, in words.
    pub ahead: Option<String>,
    /// What the pool ended the last call with, for as long as it is not to be sent again.
    pub refused: Option<Trouble>,
}

#[cfg(test)]
impl Flight {
    /// Of operation `op` on source `s`, with nothing to be seen of it.
    pub fn unbegun(making: Making) -> Self {
        Self {
            making,
            opid: Opid("op".into()),
            source: "s".into(),
            sr: "sr".into(),
            wanted_mark: None,
            mark: MarkSight::None,
            intent: None,
            sent: Sent::Never,
            task: TaskSight::None,
            children: Vec::new(),
            quiet: Quiet::No,
            at_work: None,
            restarted: false,
            scans: 0,
            scan_due: false,
            turn: true,
            ahead: None,
            refused: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum MarkSight {
    None,
    Ours,
    /// Of our cluster, but of an operation that nobody is at; `quiet`: its in-flight test has passed.
    Stale {
        mark: Mark,
        quiet: bool,
    },
    /// Of another cluster; `long`: for ten minutes now.
    Foreign {
        mark: Mark,
        long: bool,
    },
    /// Of another layer of ours that is at work; or it is about to remove S.
    Held,
}

/// What this process knows of the call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sent {
    /// Nothing: an intent that another process, or this one before a crash, wrote.
    #[default]
    Unknown,
    /// This process wrote the intent and has not sent the call.
    Never,
    /// Sent, verdict not known.
    Once,
    /// Its task was seen to end without a child, or the call was refused: it is over.
    Over,
}

#[derive(Clone, Debug, PartialEq)]
pub enum TaskSight {
    None,
    Pending {
        progress: f64,
    },
    /// `child`: uuid of what it made; none where that is gone again, and for a start.
    Succeeded {
        child: Option<String>,
    },
    /// What it made is being destroyed: asked for, and not to be had back.
    Unwanted {
        child: String,
    },
    Failed(Trouble),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    pub uuid: String,
    /// Its destruction was asked for.
    pub unwanted: bool,
    /// A snapshot whose `snapshot_of` points at the source, or no snapshot at all where a clone is expected.
    pub shaped: bool,
    /// Not a template any more (machines).
    pub settled: bool,
}

/// How the in-flight test stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quiet {
    /// Something is, or may be, at work.
    No,
    /// Nothing seen once; a second look is due 60 s later.
    Once,
    Twice,
}

/// What status records of the pool's objects. It may veto a step, never cause one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    pub pool: Option<String>,
    pub disk: Option<DiskRecord>,
    /// The config disk; `worked` is not told of it.
    pub config: Option<DiskRecord>,
    pub machine: Option<MachineRecord>,
    pub versions: Vec<VersionRecord>,
    pub operation: Option<Intent>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct DiskRecord {
    pub uuid: String,
    pub version: String,
    /// A machine was started on it: it may hold somebody's work.
    pub worked: bool,
    /// Uuid of its storage repository.
    pub sr: Option<String>,
    /// Bytes; not told of the config disk.
    pub virtual_size: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct MachineRecord {
    pub uuid: String,
    pub restart_token: Option<String>,
    /// The coordinator's `agent_start_time` when it was recorded.
    pub agent_start: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct VersionRecord {
    pub version: String,
    /// Uuid of F.
    pub disk: String,
    /// Uuid of S.
    pub base: String,
    /// Of the OS layer that it stands on.
    pub os_version: Option<String>,
    /// Uuid of its storage repository.
    pub sr: Option<String>,
    /// It was told that F is gone.
    pub lost: bool,
}

/// The OS disk, looked at only when S must be made.
#[derive(Clone, Debug, PartialEq)]
pub struct OsDisk {
    pub uuid: String,
    pub name: String,
    pub managed: bool,
    pub missing: bool,
    pub snapshot: bool,
    pub sharable: bool,
    pub persist: bool,
    pub kind: String,
    pub depth: u32,
    pub virtual_size: i64,
    pub format: String,
    pub paused: bool,
    /// Names of machines that are not halted and hold it writable.
    pub writers: Vec<String>,
}

/// The Connector's storage repository.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Storage {
    pub uuid: String,
    pub name: String,
    /// A snapshot takes the disk's full size.
    pub thick: bool,
    /// Bytes.
    pub free: i64,
    /// Scans that have succeeded since xapi last started: 2 where two were far enough apart.
    pub scans: u8,
    /// Another one may be made now.
    pub scan_due: bool,
    pub scanning: bool,
    /// A call on a disk failed there since the last scan: a row may be back whose disk is gone.
    pub doubted: bool,
}

impl Storage {
    /// An `SR.scan` has succeeded since xapi last started.
    pub fn scanned(&self) -> bool {
        self.scans > 0
    }
}

/// A disk that is recorded and does not show, and that this process did not remove.
#[derive(Clone, Debug, PartialEq)]
pub struct Unseen {
    pub uuid: String,
    /// The frozen version that it is; none: the packaging disk or the config disk.
    pub version: Option<String>,
    /// Uuid of its storage repository, where that is recorded.
    pub sr: Option<String>,
    /// Gone, and not only forgotten by a pool that died: its repository was scanned and looked into.
    pub lost: bool,
}

/// Everything that one decision needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// The version this pass is about: the one in work on the pool, else the wanted one.
    pub subject: String,
    pub cluster: String,
    /// uuid of the pool that we are looking at.
    pub pool: String,
    pub agent_start: String,
    pub records: Records,
    pub storage: Storage,
    pub os_disk: Result<OsDisk, Trouble>,
    /// Why no machine could be cloned or started: template, networks, tools ISO.
    pub machine_source: Result<(), Trouble>,
    /// S of the wanted OS disk and version.
    pub base: Sight<Disk>,
    /// F of the base version, if the work starts from one.
    pub parent: Option<Sight<Disk>>,
    pub work: Sight<Disk>,
    pub machine: Sight<Machine>,
    /// C.
    pub config: Sight<Disk>,
    /// What the files of the steps come from, as of now; none: nobody asked. See [`super::plan::asks_for_files`].
    pub files: Option<String>,
    /// A hash of the guest's program, where one is shipped with the controller: every machine gets it then.
    pub program: Option<String>,
    pub frozen: Sight<Disk>,
    /// One for each operation that is possible or under way.
    pub flights: Vec<Flight>,
    /// An operation in status that belongs to no lineage of the subject: its version or base was changed meanwhile.
    pub leftover: Option<Flight>,
    /// Sources that bear a mark of this layer, or that of a base which is there: right only while an intent says so.
    pub stray_marks: Vec<(String, Mark)>,
    /// Copies of the subject's disks, that we cannot claim: uuids.
    pub unclaimed: Vec<String>,
    pub unseen: Vec<Unseen>,
    /// Other storage repositories that the layer has, or had, disks in, or where an idle base is.
    pub elsewhere: Vec<Storage>,
    /// Frozen versions other than the subject's of which the pool forgot keys, tag, name or description.
    pub forgotten: Vec<Disk>,
    /// Shared bases that nobody stands on any more.
    pub idle_bases: Vec<Disk>,
    /// A slot of the Connector's `limits.machines` is ours, or who holds them.
    pub slot: Result<(), String>,
    /// The older layer that has our name.
    pub name_taken_by: Option<String>,
    pub finalizer: bool,
}

impl Observed {
    pub fn flight(&self, making: Making) -> Option<&Flight> {
        self.flights.iter().find(|f| f.making == making)
    }

    /// The storage repository of this uuid, none recorded: the subject's. `None`: the pool has it no more.
    pub fn storage_of(&self, uuid: Option<&str>) -> Option<&Storage> {
        let Some(uuid) = uuid else { return Some(&self.storage) };
        std::iter::once(&self.storage).chain(&self.elsewhere).find(|storage| storage.uuid == uuid)
    }

    pub fn finalized(&self, version: &str) -> Option<&VersionRecord> {
        self.records.versions.iter().find(|v| v.version == version)
    }
}
