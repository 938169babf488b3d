//! Every reason that a condition or a finding can bear: one table, from which the enum, the words users read and
//! `docs/reference.md` are made.
//!
//! To add one, add a row. A row names the conditions it may stand on (`condition::check` holds every status to that), the fault
//! class (which decides on backoff, and on Stalled), what it means and what to do. `<…>` in a meaning stands for what the message
//! fills in. A name once released is API: people write alerts on it.

use serde::{Deserialize, Serialize};

use super::condition::ConditionType;

/// What sort of trouble a reason is; the retry policy of the controller hangs on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Will go away by itself: tried again with growing pauses.
    Retry,
    /// Something else must happen first: looked at again when it does, and at a fixed pace.
    Wait,
    /// A person or the world must change something: no more tries, but every change is looked at anew.
    Stalled,
}

impl Fault {
    /// A label for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Wait => "wait",
            Self::Stalled => "stalled",
        }
    }
}

macro_rules! reasons {
    ($($name:ident $fault:tt [$($on:ident)*] $meaning:literal, $remedy:literal;)*) => {
        /// Why a condition is as it is, in one word. The table at the head of this file explains each.
        #[allow(rustdoc::invalid_html_tags, reason = "what stands in <…> is no HTML")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Reason { $(#[doc = $meaning] $name,)* }

        impl Reason {
            /// All reasons, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word users read.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// The conditions it may stand on. Empty: only a finding of the check inside the guest.
            #[must_use]
            pub const fn on(self) -> &'static [ConditionType] {
                match self { $(Self::$name => &[$(ConditionType::$on,)*],)* }
            }

            /// What sort of trouble it is; `None` for a state of the normal flow.
            #[must_use]
            pub const fn fault(self) -> Option<Fault> {
                match self { $(Self::$name => reasons!(@$fault),)* }
            }

            /// What it means.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)* }
            }

            /// What to do about it; empty if nothing.
            #[must_use]
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy,)* }
            }
        }
    };
    (@-) => { None };
    (@$fault:ident) => { Some(Fault::$fault) };
}

impl Reason {
    /// The reason of that name, if it is one of ours.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|r| r.as_str() == word)
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

reasons! {
    // The normal flow.
    Finalized - [Ready] "version <version> is frozen as disk <uuid>", "";
    Suspended - [Ready Suspended] "spec.suspend is true: nothing is done to the pool", "Set spec.suspend to false to go on.";
    Deleting - [Ready Reconciling] "what the layer has in the pool is being removed", "";
    FreezingOSDisk - [Ready Reconciling] "the base that all layers of an OS layer share is being made: a snapshot of OS disk <name>", "";
    CreatingDisk - [Ready Reconciling] "the packaging disk is being made", "";
    CreatingMachine - [Ready Reconciling] "the packaging machine is being made", "";
    StartingMachine - [Ready Reconciling] "machine <machine> is being started", "";
    FreezingDisk - [Ready Reconciling] "version <version> is being frozen", "";
    RemovingMachine - [Ready Reconciling] "version <version> is frozen; machine and work disk are being removed", "";
    SettingUpMachine - [Ready Reconciling] "machine <machine> gets its disk, DVD drive, guest tools and settings", "";
    RunningSteps - [Ready Reconciling] "machine <machine> installs by itself: step <step>, a restart or the check is at work", "";
    TaggingAgain - [Ready Reconciling] "an object that lost its keys, or has none yet, gets them", "";
    ClearingUp - [Ready Reconciling] "an operation that is not wanted any more is being taken back", "";
    Discarding - [Ready Reconciling] "version <version> is being thrown away, as spec.discard says", "";

    // A person's turn.
    StartMachine - [Ready ActionRequired] "machine <machine> is ready and spec.machine.powerOn is false", "Start the machine, or set spec.machine.powerOn to true.";
    InstallSoftware - [Ready ActionRequired] "machine <machine> runs: software is to be installed", "Open the machine's console, install the guest tools and the platform's software, run the check and shut down for finalize.";
    GuestSilent - [Ready ActionRequired] "the service in machine <machine> began something and has said nothing for longer than that may take", "Open the machine's console and see; reboot it from inside, and the service goes on from its record.";
    ShutDownGuest - [Ready ActionRequired] "machine <machine> runs and its check found nothing", "Shut the machine down for finalize.";
    ResumeMachine - [Ready ActionRequired] "machine <machine> is paused or suspended", "Resume the machine, then shut it down from inside.";
    FixIntegrity - [Ready ActionRequired] "machine <machine> was shut down, but its Windows is not at rest or was not checked", "Set spec.machine.restartToken to a new value, mend what status.integrity.findings lists, run the check, shut down for finalize.";
    FixStep - [Ready ActionRequired] "step <step> of version <version> did not come to a good end: <how, exit code>", "See its log on the drive LAMINA in the machine (spec.machine.restartToken starts that), do by hand what is missing and say so there (`lamina-guest answer <step> again` or `skip`), or throw the version away with spec.discard.";
    ConfigDiskLost - [Ready ActionRequired] "nobody knows what the steps of version <version> came to: its config disk is gone from the pool", "Start the machine and run Shutdown For Finalize, without this disk with its guest tools installed. Where steps ran, look: if all is as it should be, set spec.finalize.answeredBoot to the boot that the message names, and spec.finalize.approved to the version; else throw it away with spec.discard.";
    ConfigDiskUnreadable - [Ready ActionRequired] "config disk <uuid> holds no volume of Lamina's any more, or is of another size: nobody knows what the steps of version <version> came to", "Start the machine and run Shutdown For Finalize, without this disk with its guest tools installed. Where steps ran, look: if all is as it should be, set spec.finalize.answeredBoot to the boot that the message names, and spec.finalize.approved to the version; else throw it away with spec.discard.";
    ConfigDiskReplaced - [Ready ActionRequired] "what is on config disk <uuid> was made for another machine, or its volume is not labelled LAMINA any more: nobody knows what the steps of version <version> came to", "Start the machine and run Shutdown For Finalize, without this disk with its guest tools installed. Where steps ran, look: if all is as it should be, set spec.finalize.answeredBoot to the boot that the message names, and spec.finalize.approved to the version; else throw it away with spec.discard.";
    StepsUnknown - [Ready ActionRequired] "the record of the steps of version <version> cannot be read from its config disk, or is of other steps", "Start the machine and look. If all is as it should be, set spec.finalize.answeredBoot to the boot that the message names, and spec.finalize.approved to the version; else throw it away with spec.discard.";
    ApproveFinalize - [Ready ActionRequired] "machine <machine> was shut down and version <version> can be frozen", "Approve: set spec.finalize.approved to the version, with the verb approve on platformlayers.";

    TaskOverdue - [Ready ActionRequired Reconciling] "the pool has been at task <uuid> for longer than two hours, and the layer waits for it", "See `xe task-list uuid=<uuid>`, the storage behind it, and SMlog on the coordinator; `xe task-cancel uuid=<uuid>` ends a task that still can be ended. Lamina goes on by itself when it ends, and sends nothing again before.";

    // Waiting for something else.
    ConnectorNotFound Wait [Ready Reconciling ConnectorReady] "Connector <name> does not exist", "Create the Connector, or correct spec.connectorRef.";
    ConnectorNotReady Wait [Ready Reconciling ConnectorReady] "Connector <name> is not ready: <its reason>", "See the Connector's conditions. To delete a layer whose pool is gone, set spec.deletionPolicy to Orphan.";
    WaitingForSlot Wait [Ready Reconciling] "the Connector's limits.machines are in use: <how many, and the layers that await a person>", "Finalize or discard a layer that awaits a person, or raise limits.machines.";
    WaitingForMark Wait [Ready Reconciling] "another operation holds disk <name>", "If the message names a layer that rests: have it go on, or delete it.";
    WaitingForInFlight Wait [Ready Reconciling] "an earlier call to the pool may still be under way: looked at twice, 60 s apart", "";
    WaitingForCapacity Wait [Ready Reconciling] "no host has room for machine <machine>", "Free memory on a host that sees disk, ISO and networks, or lower spec.machine.memory.";
    WaitingForStorage Wait [Ready Reconciling] "storage repository <name> does not answer", "Check its connection to the hosts.";
    WaitingForDisk Wait [Ready Reconciling] "disk <name> is in use", "Detach it from <user>.";
    WaitingForPool Wait [Ready Reconciling CoordinatorFound] "the pool is busy, starting or being upgraded, or the controller moves as many config disks as its memory holds", "";
    WaitingForMachine Wait [Ready Reconciling] "machine <machine> is not at rest", "";
    HeldByDom0 Wait [Ready Reconciling] "an export that died holds disk <name> in the control domain; it is freed after 10 minutes", "";

    // Tried again.
    PoolError Retry [Ready Reconciling CoordinatorFound] "the pool refused a call for a reason that usually passes: <code>", "If it stays: look for the operation id in the controller's log and in the coordinator's xensource.log.";
    ReplyLost Retry [Ready Reconciling] "the reply to a call was lost or garbled; the pool is looked at before anything is repeated", "";
    StorageError Retry [Ready Reconciling] "storage failed: <code>", "If it stays: check the storage repository, and SMlog on the coordinator.";
    APIServerError Retry [Ready Reconciling Reachable Authenticated] "the Kubernetes API refused a write, or did not say what was asked", "";

    // Stalled: the object itself.
    InvalidObject Stalled [Ready Stalled] "the object cannot be read: <what>", "Correct the field that is named.";
    NameConflict Stalled [Ready Stalled] "layer <name> has the same layerName on this Connector and is older", "Set another spec.layerName, or delete one of the two.";
    NamespaceNotAllowed Stalled [Ready Stalled ConnectorReady] "Connector <name> does not let in namespace <namespace>", "Have the namespace added to the Connector's allowedNamespaces, or use another Connector.";
    VersionChanged Stalled [Ready Stalled] "spec.version names <new> while <old> is in work", "Set spec.version back, or set spec.discard to the version in work to throw it away.";
    TooManyVersions Stalled [Ready Stalled] "the layer has 64 versions", "Start a new layer from the OS layer.";
    BaseVersionUnknown Stalled [Ready Stalled] "spec.base.version is not among status.versions", "Name a finalized version, or use base.from Latest.";
    BaseOnOtherOSLayer Stalled [Ready Stalled] "no finalized version was made on this OS disk and OS layer version, in the Connector's storage repository", "Set base.from to OSLayer and install again.";
    FormatMismatch Stalled [Ready Stalled] "spec.packagingDisk.format is not the format of OS disk <name>", "Remove the field, or name an OS disk of that format.";
    StepFileNotFound Stalled [Ready Stalled] "file <file> of step <step> is to come from <ConfigMap or Secret>, which is not there or lacks the key", "Create it, or correct spec.steps.";
    StepsTooLarge Stalled [Ready Stalled] "the files of all steps are larger than a config disk carries: 64 MiB in all", "Have steps fetch large files themselves, or put them into the OS layer.";
    DiskTooSmall Stalled [Ready Stalled] "spec.packagingDisk.size is smaller than OS disk <name>", "Raise the size to the OS disk's or more, or remove it.";
    NetworkNotFound Stalled [Ready Stalled] "the pool has no network <name>", "Correct spec.machine.networks; the Connector's status lists the names.";
    NetworkAmbiguous Stalled [Ready Stalled] "the pool has several networks named <name>", "Use the uuid.";

    // Stalled: the OS disk.
    OSDiskNotFound Stalled [Ready Stalled] "no disk <name> in storage repository <repository>", "Correct spec.osLayer.disk, or put the disk there.";
    OSDiskAmbiguous Stalled [Ready Stalled] "several disks named <name> in storage repository <repository>", "Use the uuid.";
    OSDiskOnOtherStorageRepository Stalled [Ready Stalled] "disk <name> is in <other>, not in the Connector's <repository>", "Copy the disk over, or use a Connector for that storage repository.";
    OSDiskInUse Stalled [Ready Stalled] "machine <machine> may write to OS disk <name>", "Shut that machine down, or detach the disk from it.";
    OSDiskIsSnapshot Stalled [Ready Stalled] "OS disk <name> is a snapshot", "Clone it (xe vdi-clone uuid=<uuid>) and name the clone.";
    OSDiskUnsuitable Stalled [Ready Stalled] "OS disk <name> cannot be frozen: <why>", "Copy it (xe vdi-copy) and name the copy.";
    BaseChainTooDeep Stalled [Ready Stalled] "the disk that the version is to be made from stands on too long a chain of snapshots", "Base the version on the OS layer (spec.base), or on a version with a shorter chain.";
    OSDiskChainTooDeep Stalled [Ready Stalled] "OS disk <name> stands on too long a chain of snapshots", "Copy it in full (xe vdi-copy) and name the copy.";
    BaseLocked Stalled [Ready Stalled] "another cluster's mark is on disk <name> since 10 minutes", "If that cluster is gone: xe vdi-param-remove uuid=<uuid> param-name=other-config param-key=lamina.dev/making";
    SourcePaused Stalled [Ready Stalled] "disk <name> is paused since the pool's service died while copying it", "xe vdi-param-remove uuid=<uuid> param-name=sm-config param-key=paused";

    // Stalled: what was made.
    DiskLost Stalled [Ready Stalled] "disk <uuid> of version <version> was there and is gone", "Bring the disk back, or set spec.discard to this version and spec.version to a new one. Nothing is made again by itself.";
    MachineLost Stalled [Ready Stalled] "machine <uuid> was there and is gone; its disk is still there", "Set spec.machine.restartToken to a new value: a new machine is made on the same disk.";
    SnapshotUnproven Stalled [Ready Stalled] "the pool forgot that frozen disk <uuid> is the snapshot of the packaging disk, which is kept", "Compare the two disks, then remove the packaging disk by hand.";
    PoolChanged Stalled [Ready Stalled ConnectorReady CoordinatorFound] "the pool that answers is not <uuid>, which the recorded disks are in", "Point the Connector back at that pool, or delete its layers with deletionPolicy Orphan.";
    NoHostCanBoot Stalled [Ready Stalled ToolsISOFound] "no host can start machine <machine>: <why, host by host>", "Put disk, ISO and networks where one host sees them all.";
    ForeignDisk Stalled [Ready Stalled] "another machine has a disk of the layer: <machine>", "Detach the disk from that machine.";

    // Stalled: the pool.
    StorageFull Stalled [Ready Stalled StorageReady] "storage repository <name> has no room", "Free room in it. Nothing is lost.";
    PermissionDenied Stalled [Ready Stalled PermissionsSufficient] "the account may not do <permission>", "Give the account the role vm-power-admin, better pool-operator.";
    OperationBlocked Stalled [Ready Stalled] "somebody has blocked <operation> on <object>", "Take the block off (blocked_operations).";
    PoolRefused Stalled [Ready Stalled] "the pool refuses a call as things are: <code>", "End what the code names. It is asked again in some minutes.";
    FeatureMissing Stalled [Ready Stalled] "the pool cannot do <what>: version or licence", "Use a pool of a supported version and edition.";

    // A Connector's checks.
    Passed - [Reachable Authenticated CoordinatorFound TemplateValid StorageReady ToolsISOFound PermissionsSufficient] "the check passed", "";
    NotChecked - [Reachable Authenticated CoordinatorFound TemplateValid StorageReady ToolsISOFound PermissionsSufficient ConnectorReady GuestToolsReady IntegrityVerified] "an earlier check failed, or it is too early to say", "";
    Connected - [Ready ConnectorReady] "all checks passed", "";
    Connecting - [Ready Reconciling] "the checks are being made", "";
    Unreachable Retry [Ready Reconciling Reachable] "no endpoint answers: <why the first does not>", "Check address, network and firewall (TCP 443).";
    NotXenServer Retry [Ready Reconciling Reachable] "what answers is not a XenServer", "Correct spec.endpoints.";
    CertificateUntrusted Stalled [Ready Stalled Reachable] "the certificate of <endpoint> is not to be trusted: <why>", "Set spec.tls: fingerprintsSHA256 for self-signed certificates, caBundle for an authority of your own.";
    FingerprintMismatch Stalled [Ready Stalled Reachable] "the certificate of <endpoint> has fingerprint <other>", "If the certificate was renewed, add the new fingerprint to spec.tls.fingerprintsSHA256.";
    CABundleNotFound Stalled [Ready Stalled Reachable] "ConfigMap <name> or its key <key> does not exist", "Create it, or correct spec.tls.caBundleRef.";
    CABundleInvalid Stalled [Ready Stalled Reachable] "the CA bundle holds no certificate", "Give certificates as PEM.";
    CredentialsNotFound Stalled [Ready Stalled Authenticated] "Secret <name> does not exist", "Create it: kubectl create secret generic <name> --type kubernetes.io/basic-auth --from-literal=username=… --from-file=password=…";
    CredentialsIncomplete Stalled [Ready Stalled Authenticated] "Secret <name> has no key <key>", "Add the keys username and password.";
    CredentialsRefused Stalled [Ready Stalled Authenticated] "the pool refused the account in Secret <name>", "Correct the Secret; it is read again every 30 s.";
    CredentialsGone Stalled [Ready Stalled Authenticated] "Secret <name> is gone while layers are being deleted", "Restore the Secret, or set the layers' deletionPolicy to Orphan.";
    CoordinatorUnknown Retry [Ready Reconciling CoordinatorFound] "the hosts that answer are not the coordinator, and the one they name does not answer", "Check the pool; add the coordinator's address to spec.endpoints.";
    TemplateNotFound Stalled [Ready Stalled TemplateValid] "the pool has no template <name>", "Correct spec.template; status.inventory lists the names.";
    TemplateAmbiguous Stalled [Ready Stalled TemplateValid] "the pool has several templates named <name>", "Use the uuid.";
    TemplateNotCustom Stalled [Ready Stalled TemplateValid] "template <name> is one of the built-in ones", "Make a machine from it and turn that into a template.";
    TemplateHasDisks Stalled [Ready Stalled TemplateValid] "template <name> has a disk", "Remove the template's disks.";
    TemplateWithoutNetwork Stalled [Ready Stalled TemplateValid] "template <name> has no network card", "Add a network card to the template.";
    StorageNotFound Stalled [Ready Stalled StorageReady] "the pool has no storage repository <name>", "Correct spec.storageRepository; status.inventory lists the names.";
    StorageAmbiguous Stalled [Ready Stalled StorageReady] "the pool has several storage repositories named <name>", "Use the uuid.";
    StorageIsISO Stalled [Ready Stalled StorageReady] "storage repository <name> is for ISO files", "Name one that holds disks.";
    StorageDetached Stalled [Ready Stalled StorageReady] "storage repository <name> is attached to no host", "Attach it.";
    StorageUnsuitable Stalled [Ready Stalled StorageReady] "storage repository <name> cannot snapshot or clone", "Use one that can, for example of type ext, nfs or lvmoiscsi.";
    ToolsISONotFound Stalled [Ready Stalled ToolsISOFound] "no ISO with the guest tools is in the pool", "Put it into an ISO storage repository and set spec.toolsISO.";
    ToolsISOAmbiguous Stalled [Ready Stalled ToolsISOFound] "several ISOs are named <name>", "Use the uuid in spec.toolsISO.";
    PoolOperatorMissing - [PermissionsSufficient] "the account may not sync the pool's database or change HA settings: an unclean death of the pool's service can cost work of the last five minutes", "Give the account the role pool-operator.";
    VerificationOff - [TLSInsecure] "spec.tls.insecureSkipVerify: whoever answers is believed", "Set spec.tls.fingerprintsSHA256 instead.";
    UnclaimedObjects - [Unclaimed] "in the pool are objects of this cluster that no layer owns: <uuids, sizes, times>", "Look at each, and delete by hand what nobody needs. Lamina never does.";
    LayersExist Wait [Ready Reconciling] "the Connector is being deleted, but <n> layers use it", "Delete those layers first.";

    // Guest tools.
    ToolsRunning - [GuestToolsReady] "drivers and agent are at work", "";
    ToolsAwaited - [GuestToolsReady] "the machine runs; its guest tools were not seen yet", "Install the guest tools from the DVD drive.";
    ToolsNotSeen - [GuestToolsReady] "no guest tools 10 minutes after the start", "Open the console. Usual causes: firmware other than the OS disk was installed with, no tools in the OS layer, a driver that fails.";

    // The check inside the guest.
    Verified - [IntegrityVerified] "the check of the last boot found nothing", "";
    Skipped - [IntegrityVerified] "spec.integrity is Skip: nothing was checked", "";
    FindingsOpen - [IntegrityVerified] "the check of the last boot has findings; see status.integrity.findings", "Mend them, run the check again.";
    IntegrityUnknown - [IntegrityVerified] "no report counts; status.integrity.findings has the reason", "Start the machine, run the check again, shut down for finalize.";

    // Findings: one per bit of the vendor's record, and what Lamina's own check adds.
    BypassEnabled - [] "the support override that switches the check off is set", "Remove the override. No policy lets it pass.";
    RebootPending - [] "Windows wants a reboot, after an install or for changed boot drivers", "Reboot and run the check again; more than one round is normal.";
    InstallerBusy - [] "an installer is at work", "Wait, or finish the installer.";
    NGenRunning - [] ".NET is compiling in the background", "Wait. Never reboot to get rid of it: that can break assemblies.";
    RunOncePending - [] "an entry waits in RunOnce of the machine", "Log in or reboot so that it runs; some need somebody at the console.";
    WindowsUpgradeUnfinished - [] "an in-place upgrade of Windows is under way", "Let it finish; then remove the extra recovery partition it may have made.";
    NGenNeeded - [] ".NET has compilations queued", "Run `ngen executequeueditems` of each Framework and Framework64 version. Not `ngen update /force`.";
    SCCMClientIdentity - [] "the client identity of Software Center is in the image (SMSCFG.INI): every copy would share it", "Delete SMSCFG.INI.";
    FSLogixAltitude - [] "the altitude of the FSLogix filter driver does not go with layering", "Correct the altitude, or update FSLogix.";
    WEMKeyFile - [] "the machine key of the Workspace Environment Management agent is in the image", "Delete the key file.";
    TokensLeft - [] "tokens are left over in the image", "The vendor does not say which: ask its support, naming bit 1024.";
    KMSDirectoryMissing - [] "the scripts folder for KMS is missing (C:\\Windows\\Setup\\scripts\\kmsdir)", "Put it back.";
    KMSPolicyMissing - [] "the policy or start-up hook that runs the KMS script is missing", "Put it back.";
    VendorRecordOld - [] "the vendor's record in the guest is of another boot", "Run `uniservice -L` and check again; where the vendor's service is gone, delete LayerIntegrity.txt.";
    VendorRecordMissing - [] "the vendor's service is installed in the guest, but left no record of its check", "Run `uniservice -L` as an administrator and check again; if it writes no LayerIntegrity.txt, repair the vendor's service or uninstall it.";
    HibernationOn - [] "hibernation or fast start is on: either leaves the file system unclean", "Run `powercfg /hibernate off` as an administrator; that ends fast start too.";
    GhostNetworkCard - [] "a network card that is not in the machine is still known to Windows", "Shutdown For Finalize removes it; if it stays, uninstall it in the device manager (View, Show hidden devices).";
    BitLockerOn - [] "the system drive is encrypted by BitLocker", "Run `manage-bde -off C:` and wait until the drive is decrypted in full.";
    DriveDirty - [] "the system drive has its dirty bit set: Windows wants to check it", "Run `chkdsk C: /f` and reboot, so that it is checked before Windows starts.";
    CouldNotLook - [] "something could not be looked at, so that nobody knows whether it is at rest", "Run the check as an administrator; mend what keeps it from looking.";
    NoReport - [] "the guest wrote no report", "Start the machine, run Shutdown For Finalize in it.";
    ReportOfEarlierBoot - [] "the report is of an earlier boot: the machine was started again after it", "Start the machine, run Shutdown For Finalize in it.";
    ReportOfUnknownBoot - [] "nobody saw the boot that the report is of, or the record beside it cannot be read", "Start the machine, run Shutdown For Finalize in it.";
    ReportOfOtherMachine - [] "the report carries another machine's nonce", "Start the machine and run Shutdown For Finalize in it, instead of copying a report.";
    ReportUnsealed - [] "the report's seal does not fit: it is cut off or was changed", "Start the machine, run Shutdown For Finalize in it.";
    ReportGarbled - [] "the report on the config disk is cut off, or is none", "Start the machine, run Shutdown For Finalize in it.";
    ReportNotText - [] "the report on the config disk is not UTF-8", "Start the machine, run Shutdown For Finalize in it.";
    ReportTooLong - [] "the report on the config disk is longer than any that is written", "Start the machine, run Shutdown For Finalize in it.";
    ReportTimeWrong - [] "by the report's times it is of another boot, or the guest's clock is wrong", "Start the machine, set its clock or install the guest tools, run Shutdown For Finalize in it.";
    ConfigDiskFull - [] "the config disk is full, and what the guest had to say is not on it", "Start the machine, remove from drive LAMINA what steps left there, run Shutdown For Finalize.";
    NoVerdict - [] "the report has no readable BlockFinalize number", "Run the check again; if it stays, repair the guest service.";
    ReportsDiffer - [] "the reports in xenstore and on the config disk both count, and contradict each other", "Start the machine and run the check again.";
    MoreFindings - [] "there are more findings than a status can hold", "Mend those that are listed, then run the check again.";
    NoRearmsLeft - [] "Windows in this disk had no rearm left", "Start again from an OS layer with rearms left; or go without: remove spec.kms, and set spec.integrity to Warn, since the check still reports it.";
    NotRearmed - [] "spec.kms.rearm is true, but the report does not say that Windows was rearmed", "Start the machine and let the check rearm as the last thing before the shutdown.";
    LeftOn - [] "the check found nothing, but the machine ran on after it", "Run Shutdown For Finalize.";
}
