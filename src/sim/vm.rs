//! (the world's: being built)
use std::sync::Arc;

use super::{Answer, Call, Pool};

/// Answers the calls of this room; `None`: not mine.
pub async fn call(_pool: &Arc<Pool>, _call: &Call) -> Option<Answer> {
    None
}
