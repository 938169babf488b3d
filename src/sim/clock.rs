//! (the world's: being built)
use std::time::Duration;

#[derive(Default)]
pub struct Clock {}

impl Clock {
    /// A point at which a manual clock may stop a call.
    pub async fn stage(&self, _name: &str) {}

    /// Simulated time passes.
    pub async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}
