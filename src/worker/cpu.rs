//! What a request costs, nearly for nothing.

/// CPU time of requests without a system call for each: it is read after a long one, or when short ones have added up, and in
/// between a request counts with the share of CPU of those before it.
#[derive(Debug, Default)]
pub struct CpuMeter {
    /// When it was last read, nanoseconds of CPU.
    read_at: u64,
    /// Time in requests since then, nanoseconds.
    busy: u64,
    /// CPU time for each nanosecond of a request; None before the first.
    share: Option<f64>,
}

/// Time in requests after which the CPU clock is read, nanoseconds.
const CPU_EVERY: u64 = 10_000_000;

impl CpuMeter {
    /// Counts from now on.
    pub fn new() -> Self {
        Self {
            read_at: Self::read(),
            ..Self::default()
        }
    }

    fn read() -> u64 {
        let clock = nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID;
        nix::time::clock_gettime(clock).map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
    }

    /// CPU time of a request that took `duration`, nanoseconds.
    pub fn of_request(&mut self, duration: u64) -> u64 {
        self.busy += duration;
        let share = match self.share {
            Some(share) if self.busy < CPU_EVERY => share,
            _ => {
                let now = Self::read();
                let share = (now.saturating_sub(self.read_at) as f64 / self.busy.max(1) as f64).min(1.0);
                (self.read_at, self.busy) = (now, 0);
                *self.share.insert(share)
            }
        };
        (duration as f64 * share) as u64
    }
}
