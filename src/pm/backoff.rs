//! How long to wait before another attempt at what keeps failing.

use std::time::Duration;

/// The wait after the second failure in a row; the first one is followed by an attempt at once.
const FIRST: Duration = Duration::from_millis(100);

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(30);

/// Exponential, with jitter, so that what fails together does not come back together.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
    until: Option<Duration>,
}

impl Backoff {
    /// It failed at `now`; `jitter` is a random number of 0 to 1.
    pub fn failed(&mut self, now: Duration, jitter: f64) {
        if self.wait(now).is_some() {
            // Of the attempt before: many may fail at once.
            return;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures > 1 {
            let full = FIRST.saturating_mul(1 << (self.failures - 2).min(16)).min(LONGEST);
            self.until = Some(now + full.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0));
        }
    }

    /// It worked: what fails next is a first failure.
    pub fn worked(&mut self) {
        *self = Self::default();
    }

    /// When the next attempt may be, if that is not now.
    pub fn wait(&self, now: Duration) -> Option<Duration> {
        self.until.filter(|until| *until > now)
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}
