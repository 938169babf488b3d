//! `layer.json`: which layer version this machine is for, and what is asked of its guest.

use serde::{Deserialize, Serialize};

/// As `spec.purpose` of a layer says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    Packaging,
    Publishing,
}

/// Written by the controller, read by the guest; the controller reads it again to know its disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    /// Name of the layer object.
    pub layer: String,
    pub namespace: String,
    pub version: String,
    pub purpose: Purpose,
    /// The machine's nonce (`vm-data/lamina/nonce`): binds disk, record and report to one machine.
    pub nonce: String,
    /// Rearm Windows as the last act before the power-off.
    pub kms_rearm: bool,
    /// Shut down for finalize without a person, once all steps are done.
    pub finalize_on_done: bool,
}
