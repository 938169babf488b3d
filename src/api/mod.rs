//! What users write and read: the two kinds, their status, the vocabulary of their conditions, and the CRDs made from them.
//!
//! Used by every other room but the pool's side (`xapi`, `sim`); uses none of them. No I/O, no clock: a stored object that
//! does not parse must be an error value of the caller, never a panic here.

pub mod condition;
pub mod connector;
pub mod crd;
pub mod layer;
pub mod layer_status;
pub mod quantity;
pub mod reason;
pub mod steps;

pub use condition::ConditionType;
pub use connector::{Connector, ConnectorSpec, ConnectorStatus};
pub use layer::{PlatformLayer, PlatformLayerSpec};
pub use layer_status::{Phase, PlatformLayerStatus};
pub use reason::{Fault, Reason};

/// The API group of both kinds, and the prefix of everything that Lamina writes on other objects.
pub const GROUP: &str = "lamina.dev";
/// Holds a layer until its traces in the pool are gone, a Connector until no layer needs it.
pub const FINALIZER: &str = "lamina.dev/pool";
/// Any new value of this annotation, on either kind, forces a live look at the pool now.
pub const REQUESTED_AT: &str = "lamina.dev/requestedAt";
/// Field manager of everything the controller applies. One manager, one verb: whoever mixes leaves fields nobody clears.
pub const FIELD_MANAGER: &str = "lamina";
/// Field manager of an approval. Flux undoes fields of managers whose names begin with `kubectl`.
pub const APPROVAL_MANAGER: &str = "lamina-approval";
