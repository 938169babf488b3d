//! Where Kubernetes and XenServer meet.
pub mod act;
pub mod audit;
pub mod backoff;
pub mod context;
pub mod inspect;
pub mod layer;
pub mod lease;
pub mod live;
pub mod metrics;
pub mod observe;
pub mod pace;
pub mod pool;
pub mod report;
pub mod site;
pub mod slots;
pub mod status;
pub mod trouble;
