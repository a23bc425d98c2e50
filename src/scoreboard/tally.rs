//! Histograms that a worker keeps: a few stores a request, no lock, no system call.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};

/// Most buckets of a histogram, the one without bound included.
const BUCKETS: usize = 16;

/// Upper bounds of durations and waits, microseconds.
pub const TIMES: [u64; 15] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000, 60_000_000,
];

/// Upper bounds of memory, bytes: from PHP's least, 2 MiB, to 2 GiB.
pub const SIZES: [u64; 11] = [
    2 << 20,
    4 << 20,
    8 << 20,
    16 << 20,
    32 << 20,
    64 << 20,
    128 << 20,
    256 << 20,
    512 << 20,
    1 << 30,
    2 << 30,
];

/// A histogram with one writer.
#[repr(C)]
#[derive(Debug)]
pub struct Tally {
    counts: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

impl Tally {
    /// Worker: counts a value; `bounds` are [`TIMES`] or [`SIZES`].
    pub fn add(&self, bounds: &[u64], value: u64) {
        let bucket = bounds.partition_point(|bound| *bound < value).min(BUCKETS - 1);
        // One writer: no read-modify-write is needed.
        let raise = |word: &AtomicU64, by: u64| word.store(word.load(Relaxed).wrapping_add(by), Relaxed);
        raise(&self.counts[bucket], 1);
        raise(&self.sum, value);
    }

    pub(super) fn reset(&self) {
        self.counts
            .iter()
            .chain([&self.sum])
            .for_each(|word| word.store(0, Relaxed));
    }

    pub(super) fn read(&self) -> Histogram {
        // What a lying worker could make of a sum over many workers is bounded, too.
        let read = |word: &AtomicU64, most: u64| word.load(Relaxed).min(most);
        Histogram {
            counts: self.counts.each_ref().map(|word| read(word, 1 << 40)),
            sum: read(&self.sum, 1 << 52),
        }
    }
}

/// A copy of a histogram, or a sum of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// Values of each bucket, the one without bound behind the others.
    pub counts: [u64; BUCKETS],
    /// Sum of all values, in their unit.
    pub sum: u64,
}

impl Histogram {
    /// Adds what another one counts.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count = count.saturating_add(more);
        }
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// How many values it has.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Scoreboard;
    use super::*;

    #[test]
    fn a_value_is_in_the_bucket_whose_bound_it_does_not_exceed() {
        let board = Scoreboard::create(1).unwrap();
        let slot = board.slot(0);
        for (value, bucket) in [
            (0, 0),
            (1_000, 0),
            (1_001, 1),
            (60_000_000, 14),
            (60_000_001, 15),
            (u64::MAX, 15),
        ] {
            slot.reset();
            slot.durations.add(&TIMES, value);
            let histogram = slot.durations.read();
            assert_eq!((histogram.counts[bucket], histogram.count()), (1, 1), "{value}");
        }
        slot.memories.add(&SIZES, 3 << 30);
        assert_eq!(
            (slot.memories.read().counts[11], slot.memories.read().sum),
            (1, 3 << 30)
        );
        slot.reset();
        assert_eq!(board.view(0).memories, Histogram::default());
    }
}
