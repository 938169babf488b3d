//! Every wait of the controller, in one place. Production's values are pinned by a test; tests inject shorter ones; no flag does.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::time::Instant;

use crate::domain::plan::Next;

/// Durations and clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Between looks at a task whose event does not come.
    pub task: Duration,
    /// Between the two looks of an in-flight test, and between two scans after a restart of xapi.
    pub in_flight: Duration,
    /// Between looks at a condition that passes by itself: slots, marks, capacity.
    pub capacity: Duration,
    /// Nothing is due.
    pub rest: Duration,
    /// Backoff of one object: the first pause, and the longest.
    pub backoff: (Duration, Duration),
    /// A foreign mark, a disk on a control domain, tools that do not show: told or mended after this long.
    pub patience: Duration,
    /// A task that pends for this long is told as one that hangs: the pool's own tries last two hours (xapi.md 4.2).
    pub overdue: Duration,
    /// Guest tools count once they have shown for this long.
    pub settle: Duration,
    /// Connector: credentials that were refused are read again after this long.
    pub credentials: Duration,
    /// An account that lacks a right is asked about in a new session after this long: an open one keeps the rights it began with.
    pub rights: Duration,
    /// `event.from`.
    pub poll: Duration,
    /// Slow re-list of the mirror.
    pub resync: Duration,
    /// Bound of one write to the API server.
    pub write: Duration,
    /// ± share of every long wait, so that layers do not wake together.
    pub jitter: f64,
}

impl Pace {
    pub const PRODUCTION: Self = Self {
        task: Duration::from_secs(5),
        in_flight: Duration::from_secs(60),
        capacity: Duration::from_secs(60),
        rest: Duration::from_secs(600),
        backoff: (Duration::from_secs(2), Duration::from_secs(300)),
        patience: Duration::from_secs(600),
        overdue: Duration::from_secs(2 * 3600),
        settle: Duration::from_secs(5),
        credentials: Duration::from_secs(30),
        rights: Duration::from_secs(300),
        poll: Duration::from_secs(60),
        resync: Duration::from_secs(600),
        write: Duration::from_secs(10),
        jitter: 0.2,
    };

    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// For statuses: whole seconds, since the API server keeps no more, and what was written must equal what is read.
    pub fn wall(&self) -> Time {
        let now = Timestamp::now();
        Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
    }

    /// The wait that a plan asks for; `None`: at once.
    pub fn until(&self, next: Next) -> Option<Duration> {
        match next {
            Next::Now => None,
            Next::Task => Some(self.task),
            // A little over, so that the second look is not a moment too early.
            Next::InFlight => Some(self.in_flight + self.in_flight / 20),
            Next::Turn(_) | Next::Stream | Next::Mark | Next::Capacity => Some(self.jittered(self.capacity)),
            Next::Rest => Some(self.jittered(self.rest)),
        }
    }

    /// The pause after the n-th failure in a row, from 0.
    pub fn backoff(&self, failures: u32) -> Duration {
        let (first, most) = self.backoff;
        self.jittered(first.saturating_mul(1 << failures.min(16)).min(most))
    }

    pub fn jittered(&self, d: Duration) -> Duration {
        // The low bits of a fresh uuid are as good a die as any, and are there already.
        let die = (uuid::Uuid::new_v4().as_u128() & 0xffff) as f64 / f64::from(0xffff_u32);
        d.mul_f64(1.0 - self.jitter + 2.0 * self.jitter * die)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These are promises of the design; whoever changes one changes the documents too.
    #[test]
    fn production_values_are_pinned() {
        let p = Pace::PRODUCTION;
        assert_eq!((p.task, p.in_flight, p.capacity, p.rest).map_secs(), (5, 60, 60, 600));
        assert_eq!((p.backoff.0.as_secs(), p.backoff.1.as_secs()), (2, 300));
        assert_eq!((p.poll.as_secs(), p.resync.as_secs(), p.write.as_secs()), (60, 600, 10));
        assert_eq!((p.patience.as_secs(), p.settle.as_secs(), p.credentials.as_secs()), (600, 5, 30));
        assert_eq!((p.overdue.as_secs(), p.rights.as_secs()), (2 * 60 * 60, 300));
        assert!((p.jitter - 0.2).abs() < f64::EPSILON);
    }

    trait Secs {
        fn map_secs(self) -> (u64, u64, u64, u64);
    }
    impl Secs for (Duration, Duration, Duration, Duration) {
        fn map_secs(self) -> (u64, u64, u64, u64) {
            (self.0.as_secs(), self.1.as_secs(), self.2.as_secs(), self.3.as_secs())
        }
    }

    #[test]
    fn backoff_doubles_to_its_limit_within_the_jitter() {
        let p = Pace::PRODUCTION;
        for (n, secs) in [(0, 2.0), (1, 4.0), (5, 64.0), (20, 300.0)] {
            let d = p.backoff(n).as_secs_f64();
            assert!(d >= secs * 0.79 && d <= secs * 1.21, "{n}: {d}");
        }
    }
}
