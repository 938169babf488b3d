//! XenServer's management API, in XenServer's own words. Knows nothing of Kubernetes.
pub mod calls;
mod change;
pub mod client;
pub(crate) mod codes;
pub mod error;
pub mod mirror;
pub mod model;
mod session;
mod sharded;
pub mod stream;
mod tls;
pub mod view;
pub mod wire;
