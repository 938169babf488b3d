//! Where Kubernetes and XenServer meet.
pub mod act;
pub mod backoff;
pub mod context;
pub mod inspect;
pub mod lease;
pub mod live;
pub mod metrics;
pub mod observe;
pub mod pace;
pub mod pool;
pub mod slots;
pub mod trouble;
