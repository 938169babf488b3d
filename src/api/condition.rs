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
