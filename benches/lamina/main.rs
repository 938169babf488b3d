//! What Lamina costs, in figures. `cargo bench` prints them; no check depends on them, for they depend on the machine.
//!
//! The controller runs as everywhere in the tests: against a real API server and a simulated pool over TLS, here on the same machine, which
//! they share with it. Each part has a pool of its own and prints as soon as it knows.

#[path = "../../tests/common/mod.rs"]
#[allow(dead_code, reason = "the tests' surroundings, of which figures need a part")]
mod common;
mod halts;
mod lives;
mod preloaded;
mod replay;

use std::time::Duration;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    // `cargo bench -- halts` prints that part alone. What begins with a dash is for cargo's own harness.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted = |part: &str| wanted.is_empty() || wanted.iter().any(|w| w == part);
    runtime.block_on(async {
        if is_wanted("halts") {
            halts::measure().await;
        }
        if is_wanted("lives") {
            lives::measure().await;
        }
        if is_wanted("preloaded") {
            for layers in [1000, 5000] {
                preloaded::measure(layers).await;
            }
        }
    });
}

pub fn title(text: &str) {
    println!("\n{text}");
}

pub fn row(name: &str, value: &str) {
    println!("  {name:<64} {value:>16}");
}

/// The waits at these shares of all, from the shortest: `(0.5, …)` is the median.
pub fn distribution(mut waits: Vec<Duration>) -> Vec<(&'static str, Duration)> {
    waits.sort();
    let last = waits.len().saturating_sub(1);
    let at = |share: f64| waits[(last as f64 * share).round() as usize];
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("longest", 1.0)].map(|(name, share)| (name, at(share))).into()
}
