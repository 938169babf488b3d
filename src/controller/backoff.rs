//! Failures in a row, per object: the pause before the next try grows with them. Used by the controllers' error paths only.

use std::collections::HashMap;

/// By uid.
#[derive(Default)]
pub struct Backoff(HashMap<String, u32>);

impl Backoff {
    /// One more failure; returns how many came before it.
    pub fn failed(&mut self, uid: &str) -> u32 {
        let n = self.0.entry(uid.to_owned()).or_insert(0);
        let before = *n;
        *n = n.saturating_add(1);
        before
    }

    pub fn succeeded(&mut self, uid: &str) {
        self.0.remove(uid);
    }
}
