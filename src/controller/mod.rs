//! Where Kubernetes and XenServer meet.
pub mod context;
pub mod inspect;
pub mod lease;
pub mod metrics;
pub mod observe {
    pub mod objects;
}
pub mod pace;
pub mod pool;
