//! XAPI's errors in the words of our conditions. Status gets stable text: a code and what it means, never upstream prose.

use crate::api::reason::Reason;
use crate::domain::fault::Fault;
use crate::domain::observed::{Making, Trouble};
use crate::domain::plan::Step;
use crate::xapi::error::{Error, StreamProblem, fault_of};
use crate::xapi::wire::Failure;

/// Storage takes 30 layers of snapshots.
const CHAIN_TOO_LONG: &str = "SR_BACKEND_FAILURE_109";

/// Of a call that failed.
pub fn of(error: &Error) -> Trouble {
    match error {
        Error::Api(failure) => of_failure(failure),
        Error::Stream { problem: StreamProblem::Busy, .. } => Trouble::new(
            Reason::WaitingForPool,
            "other layers' config disks are being moved, two at a time for a Connector: asked again by itself",
        ),
        Error::Unreadable { class, reference } => Trouble::new(
            Reason::ReplyLost,
            format!(
                "the pool's {class} {reference} cannot be read, and may be what is looked for: nothing is made or removed before it can; see the controller's log"
            ),
        ),
        Error::Behind => Trouble::new(
            Reason::WaitingForPool,
            "the pool's events do not come in time, so nobody knows how it is now: asked again by itself",
        ),
        Error::Tls { endpoint, problem } => Trouble::new(
            Reason::ConnectorNotReady,
            format!(
                "the certificate of {endpoint} was refused: {problem}; correct spec.tls of the Connector, which is for every host of the pool"
            ),
        ),
        Error::ConnectionLost { .. } | Error::Garbage { .. } | Error::Status { .. } | Error::Stream { .. } => {
            Trouble::new(
                Reason::ReplyLost,
                "the pool's reply to a call was lost or garbled; the pool is looked at before anything is repeated",
            )
        }
        Error::NotConnected { .. } | Error::NoCoordinator { .. } | Error::Config(_) => {
            Trouble::new(Reason::ConnectorNotReady, "the pool cannot be reached: see the Connector's conditions")
        }
        Error::NotLeading => Trouble::new(
            Reason::APIServerError,
            "this controller does not lead at the moment; the one that does goes on",
        ),
    }
}

/// Of a step that failed. A layer goes on without its config disk; with one that the storage can neither read nor write it never would, and only
/// a person can tell that it is lost for good.
pub fn of_step(step: &Step, error: &Error) -> Trouble {
    let trouble = of(error);
    let leads_on = match step {
        Step::ReadConfig { disk, .. } => format!(
            "config disk {disk} cannot be read for good, destroy it (xe vdi-destroy uuid={disk}): the layer goes on without what the guest left there"
        ),
        Step::WipeConfig { disk } => format!(
            "config disk {disk} cannot be overwritten for good, destroy it (xe vdi-destroy uuid={disk}): the layer goes on, and what the disk held may stay on the storage's blocks"
        ),
        Step::FillConfig { disk } => format!(
            "config disk {disk} cannot be written for good, destroy it (xe vdi-destroy uuid={disk}): another one is made"
        ),
        _without => return trouble,
    };
    if error.failure().is_some_and(is_of_storage) && trouble.reason.fault() == Some(Fault::Retry) {
        return Trouble { message: format!("{}. If {leads_on}", trouble.message), ..trouble };
    }
    trouble
}

/// A stream that fails anywhere below says no more than the last of these.
pub fn is_of_storage(failure: &Failure) -> bool {
    failure.code.starts_with("SR_BACKEND_FAILURE_") || failure.code == "VDI_IO_ERROR"
}

/// Of the call that makes something: what cures too long a chain hangs on whose disk it is.
pub fn of_making(making: Making, failure: &Failure) -> Trouble {
    let (reason, cure) = match (making, failure.code.as_str()) {
        (Making::SnapshotOsDisk, CHAIN_TOO_LONG) => {
            (Reason::OSDiskChainTooDeep, "copy the OS disk in full (xe vdi-copy) and name the copy")
        }
        (Making::CloneDisk | Making::FreezeDisk, CHAIN_TOO_LONG) => (
            Reason::BaseChainTooDeep,
            "remove snapshots that others took of the disk, for the storage to merge; else begin anew from the OS layer: spec.base.from OSLayer with a new spec.version, and spec.discard for this one",
        ),
        _any_other => return of_failure(failure),
    };
    Trouble::new(reason, format!("the chain of snapshots is too long: {cure} ({CHAIN_TOO_LONG})"))
}

/// Of a failure that XAPI named. Its code says in `xapi/codes.rs` what fault it is; storage that is not attached is the one exception, since it
/// comes back by itself.
pub fn of_failure(failure: &Failure) -> Trouble {
    let code = failure.code.as_str();
    let (reason, meaning) = match code {
        "SR_FULL" | "SR_BACKEND_FAILURE_44" => {
            (Reason::StorageFull, "the storage repository has no room: free some, nothing is lost")
        }
        "SR_HAS_NO_PBDS" | "SR_NOT_ATTACHED" | "SR_BACKEND_FAILURE_46" | "SR_BACKEND_FAILURE_47" => {
            (Reason::WaitingForStorage, "the storage repository does not answer: check its connection to the hosts")
        }
        "RBAC_PERMISSION_DENIED" => (
            Reason::PermissionDenied,
            "the Connector's account may not do this: give it the role vm-power-admin, better pool-operator",
        ),
        "OPERATION_BLOCKED" => {
            (Reason::OperationBlocked, "somebody has blocked this operation on the object: take the block off")
        }
        "NO_HOSTS_AVAILABLE" | "HOST_NOT_ENOUGH_FREE_MEMORY" | "HOST_DISABLED" => (
            Reason::WaitingForCapacity,
            "no host can start the machine: free memory on one, enable one, or give the machine less (spec.machine.memory, before it ran)",
        ),
        "HA_OPERATION_WOULD_BREAK_FAILOVER_PLAN" => {
            (Reason::WaitingForCapacity, "the pool's high availability plan leaves no room for the machine")
        }
        "LICENCE_RESTRICTION"
        | "LICENSE_EXPIRED"
        | "LICENSE_PROCESSING_ERROR"
        | "LICENSE_CHECKOUT_ERROR"
        | "FEATURE_RESTRICTED"
        | "SR_OPERATION_NOT_SUPPORTED"
        | "SR_BACKEND_FAILURE_38"
        | "UNIMPLEMENTED_IN_SM_BACKEND" => (
            Reason::FeatureMissing,
            "the pool cannot do this: renew its licence, or use a pool whose version, edition and storage driver can",
        ),
        "VM_REQUIRES_SR" | "VM_REQUIRES_NETWORK" => (
            Reason::NoHostCanBoot,
            "no host sees all that the machine needs: put disk, ISO and networks where one host sees them all",
        ),
        "SR_BACKEND_FAILURE_79" => (
            Reason::PoolRefused,
            "the storage cannot hold a disk of this size: lower spec.packagingDisk.size (once the phase is past Pending: in a new version, or after spec.discard)",
        ),
        "MEMORY_CONSTRAINT_VIOLATION" | "MEMORY_CONSTRAINT_VIOLATION_ORDER" | "MEMORY_CONSTRAINT_VIOLATION_MAXPIN" => (
            Reason::PoolRefused,
            "the machine cannot have this much memory, or this little: correct spec.machine.memory, or the template's limits",
        ),
        "VDI_IN_USE" | "SR_BACKEND_FAILURE_24" | "OTHER_OPERATION_IN_PROGRESS" => {
            (Reason::WaitingForDisk, "a disk or machine is in use by another operation: asked again by itself")
        }
        "SR_DEVICE_IN_USE" | "SR_BACKEND_FAILURE_16" => (
            Reason::WaitingForStorage,
            "the storage repository's device is in use by another operation: asked again by itself",
        ),
        _ if code.starts_with("SR_BACKEND_FAILURE_") && fault_of(failure) == Fault::Retry => (
            Reason::StorageError,
            "the storage failed, and is asked again with growing pauses; if this stays, check the storage repository, and SMlog on the coordinator",
        ),
        _ => match fault_of(failure) {
            Fault::Wait => {
                (Reason::WaitingForPool, "the pool is busy, starting or being upgraded: asked again by itself")
            }
            Fault::Stalled => (
                Reason::PoolRefused,
                "the pool refuses a call as things are, and is asked again in some minutes: end what the code names",
            ),
            Fault::Retry => (
                Reason::PoolError,
                "the pool refused a call, and is asked again with growing pauses; if this stays, see xensource.log on the coordinator",
            ),
        },
    };
    Trouble::new(reason, format!("{meaning} ({code})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xapi::codes::CODES;

    #[test]
    fn codes_of_xapi_are_told_in_our_words() {
        use Reason as R;
        for (code, reason) in [
            ("SR_FULL", R::StorageFull),
            ("SR_BACKEND_FAILURE_44", R::StorageFull),
            ("SR_BACKEND_FAILURE_47", R::WaitingForStorage),
            ("SR_BACKEND_FAILURE_24", R::WaitingForDisk),
            ("SR_BACKEND_FAILURE_109", R::PoolRefused),
            ("SR_BACKEND_FAILURE_81", R::StorageError),
            ("RBAC_PERMISSION_DENIED", R::PermissionDenied),
            ("OPERATION_BLOCKED", R::OperationBlocked),
            ("NO_HOSTS_AVAILABLE", R::WaitingForCapacity),
            ("LICENCE_RESTRICTION", R::FeatureMissing),
            ("LICENSE_EXPIRED", R::FeatureMissing),
            ("MEMORY_CONSTRAINT_VIOLATION", R::PoolRefused),
            ("SR_BACKEND_FAILURE_79", R::PoolRefused),
            ("VM_REQUIRES_SR", R::NoHostCanBoot),
            ("VDI_IN_USE", R::WaitingForDisk),
            ("HOST_STILL_BOOTING", R::WaitingForPool),
            ("INTERNAL_ERROR", R::PoolError),
        ] {
            let told = of_failure(&Failure::new(code, ["upstream text"]));
            assert_eq!(told.reason, reason, "{code}");
            assert!(told.message.contains(code) && !told.message.contains("upstream"), "{}", told.message);
        }
        // Whoever is told a code is told what the table says of it, but for storage that comes back by itself when it is attached again.
        let comes_back = ["SR_HAS_NO_PBDS", "SR_NOT_ATTACHED", "SR_BACKEND_FAILURE_46", "SR_BACKEND_FAILURE_47"];
        for &(code, class) in CODES {
            let fault = of_failure(&Failure::new(code, [""])).reason.fault().expect("a fault");
            let wanted = if comes_back.contains(&code) { Fault::Wait } else { class.fault() };
            assert_eq!(fault, wanted, "{code}");
        }
        assert_eq!(of_failure(&Failure::new("BOOTLOADER_FAILED", ["", ""])).reason, R::PoolRefused);
        let long = Failure::new(CHAIN_TOO_LONG, [""]);
        assert_eq!(of_making(Making::SnapshotOsDisk, &long).reason, R::OSDiskChainTooDeep);
        for making in [Making::CloneDisk, Making::FreezeDisk] {
            let told = of_making(making, &long);
            assert!(told.reason == R::BaseChainTooDeep && told.message.contains("OSLayer"), "{told:?}");
        }
        assert_eq!(of_making(Making::CloneDisk, &Failure::new("SR_FULL", [""])).reason, R::StorageFull);
        assert_eq!(of(&Error::NotLeading).reason, R::APIServerError);
    }
}
