//! Every reason that the check inside a guest can give: one table, from which the enum, the window of findings and `docs/integrity.md` are made.
//!
//! Used by `checks` and by the controller, whose `Reason` has a row for each with the same remedy (a test holds the two together). A name
//! once released is API: people write alerts on it.

use serde::Serialize;

/// What makes a finding go away; the unattended run goes by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Clears {
    /// Time, and nothing but time: a reboot could break what is at work.
    Time,
    /// Running what is queued for the .NET native image generator.
    Queue,
    /// A reboot, perhaps more than one.
    Reboot,
    /// Somebody who does what the remedy says.
    Hands,
}

macro_rules! causes {
    ($($name:ident $bit:literal $clears:ident $remedy:literal;)*) => {
        /// Why a Windows is not fit to be frozen. The table in this file has the remedies.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Cause { $(#[doc = $remedy] $name,)* }

        impl Cause {
            /// All causes, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word users read.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// The vendor's bit in `BlockFinalize`; 0: the vendor does not look for it.
            pub const fn bit(self) -> u64 {
                match self { $(Self::$name => $bit,)* }
            }

            pub const fn clears(self) -> Clears {
                match self { $(Self::$name => Clears::$clears,)* }
            }

            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy,)* }
            }
        }
    };
}

causes! {
    // The vendor's bits, lowest first.
    BypassEnabled 1 Hands "Remove the override. No policy lets it pass.";
    RebootPending 2 Reboot "Reboot and run the check again; more than one round is normal.";
    InstallerBusy 4 Time "Wait, or finish the installer.";
    NGenRunning 8 Time "Wait. Never reboot to get rid of it: that can break assemblies.";
    RunOncePending 16 Reboot "Log in or reboot so that it runs; some need somebody at the console.";
    WindowsUpgradeUnfinished 32 Hands "Let it finish; then remove the extra recovery partition it may have made.";
    NGenNeeded 64 Queue "Run `ngen executequeueditems` of each Framework and Framework64 version. Not `ngen update /force`.";
    SCCMClientIdentity 128 Hands "Delete SMSCFG.INI.";
    FSLogixAltitude 256 Hands "Correct the altitude, or update FSLogix.";
    WEMKeyFile 512 Hands "Delete the key file.";
    TokensLeft 1024 Hands "The vendor does not say which: ask its support, naming bit 1024.";
    KMSDirectoryMissing 2048 Hands "Put it back.";
    KMSPolicyMissing 4096 Hands "Put it back.";

    // What the vendor does not look for.
    VendorRecordOld 0 Hands "Run `uniservice -L` and check again; where the vendor's service is gone, delete LayerIntegrity.txt.";
    VendorRecordMissing 0 Hands "Run `uniservice -L` as an administrator and check again; if it writes no LayerIntegrity.txt, repair the vendor's service or uninstall it.";
    HibernationOn 0 Hands "Run `powercfg /hibernate off` as an administrator; that ends fast start too.";
    GhostNetworkCard 0 Hands "Shutdown For Finalize removes it; if it stays, uninstall it in the device manager (View, Show hidden devices).";
    BitLockerOn 0 Hands "Run `manage-bde -off C:` and wait until the drive is decrypted in full.";
    DriveDirty 0 Reboot "Run `chkdsk C: /f` and reboot, so that it is checked before Windows starts.";
    CouldNotLook 0 Time "Run the check as an administrator; mend what keeps it from looking.";
    NoRearmsLeft 0 Hands "Start again from an OS layer with rearms left; or go without: remove spec.kms, and set spec.integrity to Warn, since the check still reports it.";
    NotRearmed 0 Hands "Start the machine and let the check rearm as the last thing before the shutdown.";
    LeftOn 0 Hands "Run Shutdown For Finalize.";
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}
