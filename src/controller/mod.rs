//! Where Kubernetes and XenServer meet.
pub mod lease;
pub mod metrics;
