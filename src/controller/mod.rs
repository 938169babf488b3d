//! Where Kubernetes and XenServer meet.
pub mod connector;
pub mod connector_status;
pub mod context;
pub mod credentials;
pub mod inspect;
pub mod lease;
pub mod metrics;
pub mod observe {
    pub mod objects;
}
pub mod pace;
pub mod pool;
pub mod sweep;
pub mod wakes;
