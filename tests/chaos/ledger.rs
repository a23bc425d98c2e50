//! Who failed, and whether somebody's death accounts for it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How a request came to nothing.
#[derive(Clone, Debug)]
pub struct Failure {
    pub pool: &'static str,
    pub what: String,
    /// The worker, if the answer had got as far as to say it.
    pub pid: Option<i32>,
    /// The worker that served the request before this one on a kept connection, and so may have held it.
    pub held_by: Option<i32>,
    pub began: Instant,
    pub ended: Instant,
}

/// A worker that was killed. It excuses one request: the one that it ran.
#[derive(Debug)]
struct Kill {
    pool: String,
    pid: i32,
    at: Instant,
    /// When it was seen to be dead: on a busy machine the signal comes later than it was meant.
    dead: Instant,
    excused: bool,
}

/// What the clients have seen of one kind of request, in one phase.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    /// The time that `percent` of the requests did not exceed.
    fn percentile(&mut self, percent: usize) -> Duration {
        self.0.sort_unstable();
        match self.0.len() {
            0 => Duration::ZERO,
            n => self.0[((n * percent).div_ceil(100)).clamp(1, n) - 1],
        }
    }
}

/// The books of a run.
#[derive(Default)]
pub struct Ledger {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    requests: u64,
    failures: Vec<Failure>,
    kills: Vec<Kill>,
    /// Short requests, by phase.
    short: HashMap<&'static str, Times>,
    done: HashMap<String, u32>,
}

/// The sum of a run.
pub struct Account {
    pub requests: u64,
    pub kills: usize,
    /// Failures that a killed worker accounts for.
    pub attributed: usize,
    /// Failures that nothing accounts for: lost requests.
    pub unattributed: Vec<Failure>,
    /// Of short requests: phase, count, median, 99th percentile, slowest.
    pub short: Vec<(&'static str, usize, Duration, Duration, Duration)>,
    pub done: Vec<(String, u32)>,
}

impl Ledger {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics with the books")
    }

    /// A worker is about to be killed.
    pub fn kill(&self, pool: &str, pid: i32) {
        let at = Instant::now();
        self.lock().kills.push(Kill {
            pool: pool.to_owned(),
            pid,
            at,
            dead: at,
            excused: false,
        });
    }

    /// It is dead now.
    pub fn dead(&self, pid: i32) {
        if let Some(kill) = self.lock().kills.iter_mut().rfind(|kill| kill.pid == pid) {
            kill.dead = Instant::now();
        }
    }

    /// Whether this worker was killed.
    pub fn was_killed(&self, pid: i32) -> bool {
        self.lock().kills.iter().any(|kill| kill.pid == pid)
    }

    /// Something was done to the server.
    pub fn did(&self, what: &str) {
        *self.lock().done.entry(what.to_owned()).or_default() += 1;
    }

    pub fn served(&self, phase: &'static str, short: Option<Duration>) {
        let mut inner = self.lock();
        inner.requests += 1;
        if let Some(time) = short {
            inner.short.entry(phase).or_default().0.push(time);
        }
    }

    pub fn failed(&self, failure: Failure) {
        let mut inner = self.lock();
        inner.requests += 1;
        inner.failures.push(failure);
    }

    /// Sets each failure against a death, those first whose worker is known.
    pub fn account(&self) -> Account {
        let mut inner = self.lock();
        let Inner {
            failures, kills, short, ..
        } = &mut *inner;
        failures.sort_by_key(|failure| (failure.pid.is_none(), failure.held_by.is_none(), failure.began));
        let (mut attributed, mut unattributed) = (0, Vec::new());
        for failure in failures.iter() {
            let excuse = kills.iter_mut().find(|kill| match failure.pid {
                Some(pid) => kill.pid == pid && !kill.excused,
                None => {
                    let meanwhile = kill.dead >= failure.began && kill.at <= failure.ended;
                    // A worker that waits holds the kept connections it served last, however many; they die with it.
                    let holder = failure.held_by == Some(kill.pid);
                    kill.pool == failure.pool && (holder || (meanwhile && !kill.excused))
                }
            });
            match excuse {
                Some(kill) => {
                    kill.excused |= failure.held_by != Some(kill.pid);
                    attributed += 1;
                }
                None => unattributed.push(failure.clone()),
            }
        }
        let mut short: Vec<_> = short
            .iter_mut()
            .map(|(phase, times)| {
                (
                    *phase,
                    times.0.len(),
                    times.percentile(50),
                    times.percentile(99),
                    times.percentile(100),
                )
            })
            .collect();
        short.sort_unstable();
        let mut done: Vec<_> = inner.done.clone().into_iter().collect();
        done.sort_unstable();
        Account {
            requests: inner.requests,
            kills: inner.kills.len(),
            attributed,
            unattributed,
            short,
            done,
        }
    }
}

impl Account {
    /// Short requests of the second phase take no more than three times as long as those of the first, at the 99th
    /// percentile.
    pub fn assert_not_stalled(&self, phases: [&str; 2]) {
        /// Less is noise: an old worker's last request, or the scheduler's turn on a machine with other work.
        const FLOOR: Duration = Duration::from_millis(100);
        let p99 = |phase: &str| {
            let found = self.short.iter().find(|(name, ..)| *name == phase);
            found
                .map(|(_, count, _, p99, _)| (*count, *p99))
                .expect("short requests were answered")
        };
        let ((calm, before), (busy, during)) = (p99(phases[0]), p99(phases[1]));
        assert!(calm > 100 && busy > 100, "too few to tell: {self}");
        assert!(during <= 3 * before.max(FLOOR), "{self}");
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(
            f,
            "{} requests; {} workers killed; {} failures attributed to them, {} unattributed",
            self.requests,
            self.kills,
            self.attributed,
            self.unattributed.len()
        )?;
        for (phase, count, median, p99, most) in &self.short {
            writeln!(
                f,
                "  short requests, {phase}: {count}, median {median:.1?}, p99 {p99:.1?}, slowest {most:.1?}"
            )?;
        }
        let done: Vec<String> = self.done.iter().map(|(what, n)| format!("{n} × {what}")).collect();
        writeln!(f, "  {}", done.join(", "))?;
        for failure in self.unattributed.iter().take(20) {
            writeln!(
                f,
                "  LOST in pool {}: {} (worker {:?}, connection held by {:?}, after {:.1?})",
                failure.pool,
                failure.what,
                failure.pid,
                failure.held_by,
                failure.ended - failure.began
            )?;
        }
        Ok(())
    }
}
