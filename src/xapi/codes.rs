//! The failure codes of XAPI, each with what it means to a client and the fault that follows: data, read by `error` alone.
//! Source: the error catalogue of the XAPI data model, and what storage drivers raise (`SR_BACKEND_FAILURE_n`).

use Class::{Absent, Broken, Busy, Done, Elsewhere, LogIn, Relist, Stale, User};

use crate::domain::fault::Fault;

/// What a code asks of whoever gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Something else is under way, or there is no room now: passes by itself.
    Busy,
    /// A host, driver or device failed: the next attempt may succeed.
    Broken,
    /// The client logs in again by itself; whoever sees this, saw the second attempt fail.
    LogIn,
    /// Another host is the coordinator; the client follows by itself.
    Elsewhere,
    /// A person must act.
    User,
    /// Our view was stale, or we are wrong: look again before anything else.
    Stale,
    /// What was asked for may be so already: look again.
    Done,
    /// This pool cannot do that at all.
    Absent,
    /// The stream of events must start anew.
    Relist,
}

impl Class {
    pub fn fault(self) -> Fault {
        match self {
            Busy => Fault::Wait,
            Broken | LogIn | Elsewhere | Stale | Done | Relist => Fault::Retry,
            User | Absent => Fault::Stalled,
        }
    }
}

/// One row a code. A code that is not here is retried.
pub const CODES: &[(&str, Class)] = &[
    ("SESSION_INVALID", LogIn),
    ("SESSION_AUTHENTICATION_FAILED", User),
    ("SESSION_AUTHORIZATION_FAILED", User),
    ("RBAC_PERMISSION_DENIED", User),
    ("PERMISSION_DENIED", Stale),
    ("HOST_IS_SLAVE", Elsewhere),
    ("HOST_STILL_BOOTING", Busy),
    ("HOST_UNKNOWN_TO_MASTER", Broken),
    ("HOST_HAS_NO_MANAGEMENT_IP", Broken),
    ("HOST_OFFLINE", Broken),
    ("HOST_NOT_LIVE", Broken),
    ("CANNOT_CONTACT_HOST", Broken),
    ("TOO_BUSY", Busy),
    ("TOO_MANY_PENDING_TASKS", Busy),
    ("NOT_SUPPORTED_DURING_UPGRADE", Busy),
    ("HOST_DISABLED", Busy),
    ("NO_HOSTS_AVAILABLE", Busy),
    ("HOST_NOT_ENOUGH_FREE_MEMORY", Busy),
    ("HA_OPERATION_WOULD_BREAK_FAILOVER_PLAN", Busy),
    ("HA_IS_ENABLED", User),
    ("LICENCE_RESTRICTION", User),
    ("LICENSE_EXPIRED", User),
    ("LICENSE_PROCESSING_ERROR", User),
    ("LICENSE_CHECKOUT_ERROR", User),
    ("FEATURE_RESTRICTED", User),
    ("HANDLE_INVALID", Stale),
    ("UUID_INVALID", Stale),
    ("OTHER_OPERATION_IN_PROGRESS", Busy),
    ("OPERATION_NOT_ALLOWED", Stale),
    ("OPERATION_BLOCKED", User),
    ("VM_BAD_POWER_STATE", Done),
    ("VM_IS_TEMPLATE", Stale),
    ("VM_IS_SNAPSHOT", Stale),
    ("VM_CANNOT_DELETE_DEFAULT_TEMPLATE", Stale),
    ("VM_NO_EMPTY_CD_VBD", Stale),
    ("VM_NO_SUSPEND_SR", User),
    ("PROVISION_ONLY_ALLOWED_ON_TEMPLATE", Done),
    ("VM_LACKS_FEATURE", Busy),
    ("VM_MISSING_PV_DRIVERS", Busy),
    ("VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT", Broken),
    ("VM_SHUTDOWN_TIMEOUT", Broken),
    ("VM_REQUIRES_SR", User),
    ("VM_REQUIRES_NETWORK", User),
    ("VM_CALL_PLUGIN_RATE_LIMIT", Busy),
    ("BOOTLOADER_FAILED", User),
    ("FAILED_TO_START_EMULATOR", Broken),
    ("DISK_VBD_MUST_BE_READWRITE_FOR_HVM", Stale),
    ("MEMORY_CONSTRAINT_VIOLATION", User),
    ("MEMORY_CONSTRAINT_VIOLATION_ORDER", User),
    ("MEMORY_CONSTRAINT_VIOLATION_MAXPIN", User),
    ("VDI_IN_USE", Busy),
    ("VDI_NOT_MANAGED", Stale),
    ("VDI_READONLY", Stale),
    ("VDI_NOT_SPARSE", Stale),
    ("VDI_TOO_SMALL", Stale),
    ("VDI_TOO_LARGE", Stale),
    ("VDI_IS_A_PHYSICAL_DEVICE", Stale),
    ("VDI_HAS_RRDS", Stale),
    ("VDI_IS_SHARABLE", Stale),
    ("VDI_CBT_ENABLED", Stale),
    ("VDI_NO_CBT_METADATA", Stale),
    ("VDI_INCOMPATIBLE_TYPE", Stale),
    ("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION", Stale),
    ("LOCATION_NOT_UNIQUE", Stale),
    ("VDI_MISSING", User),
    ("VDI_IO_ERROR", Broken),
    ("INTERNAL_ERROR", Broken),
    ("SR_FULL", User),
    ("SR_HAS_NO_PBDS", User),
    ("SR_NOT_ATTACHED", User),
    ("SR_NOT_EMPTY", User),
    ("SR_OPERATION_NOT_SUPPORTED", User),
    ("SR_UNHEALTHY", User),
    ("DEFAULT_SR_NOT_FOUND", User),
    ("UNIMPLEMENTED_IN_SM_BACKEND", User),
    ("SR_DEVICE_IN_USE", Busy),
    ("VBD_IS_EMPTY", Done),
    ("VBD_NOT_EMPTY", Done),
    ("DEVICE_ALREADY_ATTACHED", Done),
    ("DEVICE_ALREADY_DETACHED", Done),
    ("VBD_NOT_REMOVABLE_MEDIA", Stale),
    ("VBD_NOT_UNPLUGGABLE", Stale),
    ("VBD_CDS_MUST_BE_READONLY", Stale),
    ("DEVICE_ALREADY_EXISTS", Stale),
    ("INVALID_DEVICE", Stale),
    ("MAC_INVALID", Stale),
    ("MAC_STILL_EXISTS", Stale),
    ("DEVICE_DETACH_REJECTED", Busy),
    ("DEVICE_ATTACH_TIMEOUT", Broken),
    ("DEVICE_DETACH_TIMEOUT", Broken),
    ("MAP_DUPLICATE_KEY", Done),
    ("INVALID_VALUE", Stale),
    ("VALUE_NOT_SUPPORTED", Stale),
    ("FIELD_TYPE_ERROR", Stale),
    ("MESSAGE_PARAMETER_COUNT_MISMATCH", Stale),
    ("MESSAGE_METHOD_UNKNOWN", Absent),
    ("MESSAGE_REMOVED", Absent),
    ("MESSAGE_DEPRECATED", Absent),
    ("NOT_IMPLEMENTED", Absent),
    ("TASK_CANCELLED", Done),
    ("EVENTS_LOST", Relist),
    ("EVENT_FROM_TOKEN_PARSE_FAILURE", Relist),
    ("EVENT_SUBSCRIPTION_PARSE_FAILURE", Relist),
    ("XENAPI_MISSING_PLUGIN", User),
    ("XENAPI_PLUGIN_FAILURE", User),
    // 16, 24, 38, 39 and 144 usually arrive under the names above.
    ("SR_BACKEND_FAILURE_16", Busy),
    ("SR_BACKEND_FAILURE_24", Busy),
    ("SR_BACKEND_FAILURE_38", User),
    ("SR_BACKEND_FAILURE_39", User),
    ("SR_BACKEND_FAILURE_44", User),   // no space left
    ("SR_BACKEND_FAILURE_46", Broken), // VDI not available: attached elsewhere, or its row is stale
    ("SR_BACKEND_FAILURE_47", Broken), // SR not available: storage is down
    ("SR_BACKEND_FAILURE_78", Broken), // create, delete, clone (81, a paused source too), snapshot, resize
    ("SR_BACKEND_FAILURE_79", User),   // bad size
    ("SR_BACKEND_FAILURE_80", Broken),
    ("SR_BACKEND_FAILURE_81", Broken),
    ("SR_BACKEND_FAILURE_82", Broken),
    ("SR_BACKEND_FAILURE_109", User), // snapshot chain too long
    ("SR_BACKEND_FAILURE_110", Broken),
    ("SR_BACKEND_FAILURE_144", User),
    ("SR_BACKEND_FAILURE_453", Broken), // tapdisk
    ("SR_BACKEND_FAILURE_456", Done),   // empty drive
    ("SR_BACKEND_FAILURE_457", Stale),  // 457 to 460: changed block tracking
    ("SR_BACKEND_FAILURE_458", Stale),
    ("SR_BACKEND_FAILURE_459", Stale),
    ("SR_BACKEND_FAILURE_460", Stale),
    ("SR_BACKEND_FAILURE_1200", Broken),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::fault::Fault::{Retry, Stalled, Wait};

    /// The catalogue in groups of one fate each, written independently of the table.
    const CATALOGUE: &[(Fault, &str)] = &[
        (Retry, "SESSION_INVALID PERMISSION_DENIED HOST_IS_SLAVE HOST_OFFLINE HOST_NOT_LIVE CANNOT_CONTACT_HOST"),
        (Retry, "HOST_UNKNOWN_TO_MASTER HOST_HAS_NO_MANAGEMENT_IP"),
        (Stalled, "SESSION_AUTHENTICATION_FAILED SESSION_AUTHORIZATION_FAILED RBAC_PERMISSION_DENIED"),
        (Wait, "HOST_STILL_BOOTING TOO_BUSY TOO_MANY_PENDING_TASKS NOT_SUPPORTED_DURING_UPGRADE"),
        (Wait, "HOST_DISABLED NO_HOSTS_AVAILABLE HOST_NOT_ENOUGH_FREE_MEMORY HA_OPERATION_WOULD_BREAK_FAILOVER_PLAN"),
        (
            Stalled,
            "LICENCE_RESTRICTION LICENSE_EXPIRED LICENSE_PROCESSING_ERROR LICENSE_CHECKOUT_ERROR FEATURE_RESTRICTED",
        ),
        (Retry, "HANDLE_INVALID UUID_INVALID OPERATION_NOT_ALLOWED VM_BAD_POWER_STATE VM_IS_TEMPLATE VM_IS_SNAPSHOT"),
        (Wait, "OTHER_OPERATION_IN_PROGRESS VDI_IN_USE SR_DEVICE_IN_USE DEVICE_DETACH_REJECTED"),
        (Stalled, "OPERATION_BLOCKED HA_IS_ENABLED VM_NO_SUSPEND_SR BOOTLOADER_FAILED"),
        (Retry, "VM_CANNOT_DELETE_DEFAULT_TEMPLATE VM_NO_EMPTY_CD_VBD PROVISION_ONLY_ALLOWED_ON_TEMPLATE"),
        (Wait, "VM_LACKS_FEATURE VM_MISSING_PV_DRIVERS VM_CALL_PLUGIN_RATE_LIMIT"),
        (Retry, "VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT VM_SHUTDOWN_TIMEOUT FAILED_TO_START_EMULATOR"),
        (Retry, "DISK_VBD_MUST_BE_READWRITE_FOR_HVM"),
        (Stalled, "VM_REQUIRES_SR VM_REQUIRES_NETWORK MEMORY_CONSTRAINT_VIOLATION MEMORY_CONSTRAINT_VIOLATION_ORDER"),
        (Stalled, "MEMORY_CONSTRAINT_VIOLATION_MAXPIN"),
        (Retry, "VDI_NOT_MANAGED VDI_READONLY VDI_NOT_SPARSE VDI_TOO_SMALL VDI_TOO_LARGE VDI_IS_A_PHYSICAL_DEVICE"),
        (Retry, "VDI_HAS_RRDS VDI_IS_SHARABLE VDI_CBT_ENABLED VDI_NO_CBT_METADATA VDI_INCOMPATIBLE_TYPE"),
        (Retry, "VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION LOCATION_NOT_UNIQUE VDI_IO_ERROR INTERNAL_ERROR"),
        (Stalled, "VDI_MISSING SR_FULL SR_HAS_NO_PBDS SR_NOT_ATTACHED SR_NOT_EMPTY SR_OPERATION_NOT_SUPPORTED"),
        (Stalled, "SR_UNHEALTHY DEFAULT_SR_NOT_FOUND UNIMPLEMENTED_IN_SM_BACKEND"),
        (Retry, "VBD_IS_EMPTY VBD_NOT_EMPTY DEVICE_ALREADY_ATTACHED DEVICE_ALREADY_DETACHED VBD_NOT_REMOVABLE_MEDIA"),
        (Retry, "VBD_NOT_UNPLUGGABLE VBD_CDS_MUST_BE_READONLY DEVICE_ALREADY_EXISTS INVALID_DEVICE MAC_INVALID"),
        (Retry, "MAC_STILL_EXISTS DEVICE_ATTACH_TIMEOUT DEVICE_DETACH_TIMEOUT MAP_DUPLICATE_KEY INVALID_VALUE"),
        (Retry, "VALUE_NOT_SUPPORTED FIELD_TYPE_ERROR MESSAGE_PARAMETER_COUNT_MISMATCH TASK_CANCELLED EVENTS_LOST"),
        (Stalled, "MESSAGE_METHOD_UNKNOWN MESSAGE_REMOVED MESSAGE_DEPRECATED NOT_IMPLEMENTED"),
        (Retry, "EVENT_FROM_TOKEN_PARSE_FAILURE EVENT_SUBSCRIPTION_PARSE_FAILURE"),
        (Stalled, "XENAPI_MISSING_PLUGIN XENAPI_PLUGIN_FAILURE"),
    ];
    const BACKEND: &[(Fault, &[u32])] = &[
        (Wait, &[16, 24]),
        (Stalled, &[38, 39, 44, 79, 109, 144]),
        (Retry, &[46, 47, 78, 80, 81, 82, 110, 453, 456, 457, 458, 459, 460, 1200]),
    ];

    #[test]
    fn every_code_of_the_catalogue_has_its_fault_and_no_other_code_is_listed() {
        let named = CATALOGUE.iter().flat_map(|(fault, codes)| codes.split(' ').map(|c| (c.to_owned(), *fault)));
        let numbered =
            BACKEND.iter().flat_map(|(fault, ns)| ns.iter().map(|n| (format!("SR_BACKEND_FAILURE_{n}"), *fault)));
        let mut expected: Vec<_> = named.chain(numbered).collect();
        let mut listed: Vec<_> = CODES.iter().map(|(code, class)| ((*code).to_owned(), class.fault())).collect();
        expected.sort_by(|a, b| a.0.cmp(&b.0));
        listed.sort_by(|a, b| a.0.cmp(&b.0));
        for (expected, listed) in expected.iter().zip(&listed) {
            assert_eq!(expected, listed);
        }
        assert_eq!(expected.len(), listed.len());
    }
}
