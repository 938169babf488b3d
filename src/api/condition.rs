//! The vocabulary of conditions: types, reasons, and what every status must obey.

/// The types of condition on both kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConditionType {
    Ready,
    Reconciling,
    Stalled,
    ActionRequired,
    Suspended,
    ConnectorReady,
    GuestToolsReady,
    IntegrityVerified,
    Reachable,
    Authenticated,
    CoordinatorFound,
    TemplateValid,
    StorageReady,
    ToolsISOFound,
    PermissionsSufficient,
    TLSInsecure,
    Unclaimed,
}

// TEMP
#[derive(Clone,Copy,Debug,PartialEq,Eq)]
pub enum Reason {ApproveFinalize,BaseLocked,BaseOnOtherOSLayer,BaseVersionUnknown,BypassEnabled,ChainTooDeep,ClearingUp,Deleting,Discarding,DiskInUse,DiskLost,DiskTooSmall,FSLogixAltitude,FixIntegrity,FormatMismatch,FreezingDisk,HeldByDom0,InstallSoftware,InstallerBusy,KMSDirectoryMissing,KMSPolicyMissing,MachineLost,MakingBase,MakingDisk,MakingMachine,MoreFindings,NGenNeeded,NGenRunning,NameConflict,NoHostCanStart,NoRearmsLeft,NoVerdict,NotRearmed,OSDiskInUse,OSDiskIsSnapshot,OSDiskNotFound,OSDiskUnsuitable,PoolChanged,RebootPending,RemovingMachine,ResumeMachine,RunOncePending,SCCMClientIdentity,SettingUpMachine,ShutDownGuest,SnapshotUnproven,SourcePaused,StartMachine,StartingMachine,StorageFull,TaggingAgain,TokensLeft,TooManyVersions,VersionChanged,WEMKeyFile,WaitingForInFlight,WaitingForMachine,WaitingForMark,WaitingForSlot,WaitingForSource,WaitingForStorage,WindowsUpgradeUnfinished}
impl Reason { pub fn as_str(self)->&'static str {""} pub fn remedy(self)->&'static str{""} pub fn parse(_:&str)->Option<Self>{None} }
