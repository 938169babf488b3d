//! XenServer's management API, in XenServer's own words. Knows nothing of Kubernetes.
pub mod model;
pub mod wire;
