//! How much of one pool comes into the log. Pure: the time is an argument.

use std::time::Duration;

/// Lines a second, and how many seconds' worth at once. journald takes a tenth of that from a service (10,000 lines in
/// 30 seconds), and loses the others.
const RATE: u64 = 3_000;
const SECONDS: u64 = 10;

/// Bytes that count as one line: `log_limit` as php-fpm has it by default, so that each line of its kind is one.
const LINE: usize = 1024;

/// What a pool may still say. With nothing left it is not heard for a second: what is told of that must not be a line for each.
#[derive(Debug)]
pub(super) struct Budget {
    /// Lines; a second of RATE fills it up.
    left: u64,
    /// When it was last filled up.
    filled: Duration,
    /// It is not heard until then.
    mute_until: Option<Duration>,
    suppressed: u64,
}

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Write,
    Suppress,
}

impl Budget {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            left: RATE * SECONDS,
            filled: now,
            mute_until: None,
            suppressed: 0,
        }
    }

    /// Takes a line of so many bytes from it.
    pub(super) fn take(&mut self, bytes: usize, now: Duration) -> Verdict {
        let since = now.saturating_sub(self.filled);
        let more = u64::try_from(since.as_millis())
            .unwrap_or(u64::MAX)
            .saturating_mul(RATE)
            / 1000;
        if more > 0 {
            self.left = self.left.saturating_add(more).min(RATE * SECONDS);
            self.filled = now;
        }
        let cost = bytes.div_ceil(LINE).max(1) as u64;
        if self.mute_until.is_none() && self.left < cost {
            self.mute_until = Some(now + Duration::from_secs(1));
        }
        if self.mute_until.is_some() {
            self.suppressed += 1;
            return Verdict::Suppress;
        }
        self.left -= cost;
        Verdict::Write
    }

    /// How many lines were suppressed, once that is over.
    pub(super) fn suppressed(&mut self, now: Duration) -> Option<u64> {
        self.mute_until.take_if(|until| *until <= now)?;
        Some(std::mem::take(&mut self.suppressed))
    }

    /// Until when it is not heard.
    pub(super) fn mute_until(&self) -> Option<Duration> {
        self.mute_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of some lines are written in the milliseconds from `from` to `to`, so many in each.
    fn written(budget: &mut Budget, from: u64, to: u64, lines: u64, bytes: usize) -> (u64, u64) {
        let (mut written, mut told) = (0, 0);
        for at in (from..to).map(Duration::from_millis) {
            told += budget.suppressed(at).unwrap_or(0);
            written += (0..lines).filter(|_| budget.take(bytes, at) == Verdict::Write).count() as u64;
        }
        (written, told)
    }

    #[test]
    fn lines_at_an_ordinary_rate_all_come() {
        let mut budget = Budget::new(Duration::ZERO);
        // As many as it takes, for ten minutes; and all that a busy second can bring, at once.
        assert_eq!(written(&mut budget, 0, 600_000, RATE / 1000, 1024), (600 * RATE, 0));
        assert_eq!(
            written(&mut budget, 700_000, 700_001, RATE * SECONDS, 1).0,
            RATE * SECONDS
        );
        assert_eq!(budget.mute_until(), None);
    }

    #[test]
    fn a_flood_is_bounded_and_its_size_told() {
        let mut budget = Budget::new(Duration::ZERO);
        let (seconds, each) = (60, 100);
        let (lines, told) = written(&mut budget, 0, seconds * 1000, each, 100);
        assert!(
            lines <= RATE * (SECONDS + seconds) && lines >= RATE * seconds,
            "{lines}"
        );
        let rest = budget.suppressed(Duration::from_secs(seconds + 1)).unwrap();
        assert_eq!(lines + told + rest, seconds * 1000 * each);
        assert_eq!(budget.suppressed(Duration::from_secs(seconds + 1)), None);
        assert_eq!(budget.take(1, Duration::from_secs(seconds + 1)), Verdict::Write);
    }

    #[test]
    fn long_lines_count_for_more() {
        let mut budget = Budget::new(Duration::ZERO);
        assert_eq!(
            written(&mut budget, 0, 1, RATE * SECONDS, 64 << 10).0,
            RATE * SECONDS / 64
        );
    }

    #[test]
    fn a_clock_that_stands_still_harms_nobody() {
        let mut budget = Budget::new(Duration::from_secs(5));
        assert_eq!(budget.take(1, Duration::from_secs(4)), Verdict::Write);
    }
}
