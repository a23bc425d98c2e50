//! Who failed, and whether somebody's death accounts for it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A worker, as its answers name it: its pid, and which start of the server it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worker {
    pub pid: i32,
    pub start: u32,
}

/// How a request came to nothing.
#[derive(Clone, Debug)]
pub struct Failure {
    pub pool: &'static str,
    pub id: u64,
    pub what: String,
    /// Not a byte of an answer came.
    pub silent: bool,
    /// It takes what its worker cannot live without, which may end it as though it had been killed.
    pub fatal: bool,
    /// The worker that served the request before this one on a kept connection, and so may have held it.
    pub held_by: Option<Worker>,
    pub began: Instant,
    /// When all of it had been sent.
    pub sent: Instant,
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

/// A start of the server whose master has ended.
#[derive(Debug)]
struct End {
    start: u32,
    at: Instant,
    /// When it was seen to be gone.
    gone: Instant,
    /// It was killed; else it was asked to stop, and had time for all that it knew of.
    killed: bool,
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

/// So many short requests, or fewer, say nothing about a percentile.
pub const FEW: usize = 100;

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
    ends: Vec<End>,
    /// Short requests, by phase.
    short: HashMap<&'static str, Times>,
    done: HashMap<String, u32>,
}

/// The sum of a run.
pub struct Account {
    pub requests: u64,
    pub kills: usize,
    /// How often the master was killed or stopped.
    pub ends: usize,
    /// Failures that a killed worker accounts for.
    pub attributed: usize,
    /// Connections that ended with a master, on which no request had begun to run.
    pub with_master: usize,
    /// Failures that nothing accounts for: lost requests.
    pub unattributed: Vec<Failure>,
    /// Of short requests: phase, count, median, 99th percentile, slowest.
    pub short: Vec<(&'static str, usize, Duration, Duration, Duration)>,
    pub done: Vec<(String, u32)>,
}

impl Ledger {
    /// How many short requests have been answered in a phase.
    pub fn short_in(&self, phase: &str) -> usize {
        self.lock().short.get(phase).map_or(0, |times| times.0.len())
    }

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

    /// The master of this start is about to be killed, or stopped.
    pub fn end(&self, start: u32, killed: bool) {
        let at = Instant::now();
        self.lock().ends.push(End {
            start,
            at,
            gone: at,
            killed,
        });
    }

    /// It is gone now.
    pub fn ended(&self) {
        if let Some(end) = self.lock().ends.last_mut() {
            end.gone = Instant::now();
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

    /// Sets each failure against a death. `ran` says which worker has begun to run a request.
    pub fn account(&self, ran: &HashMap<u64, i32>) -> Account {
        let mut inner = self.lock();
        let Inner {
            failures,
            kills,
            ends,
            short,
            ..
        } = &mut *inner;
        let (mut attributed, mut with_master, mut unattributed) = (0, 0, Vec::new());
        failures.retain(|failure| {
            let pid = ran.get(&failure.id).filter(|_| failure.fatal && failure.silent);
            kills.extend(pid.map(|pid| Kill {
                pool: failure.pool.to_owned(),
                pid: *pid,
                at: failure.began,
                dead: failure.ended,
                excused: true,
            }));
            attributed += usize::from(pid.is_some());
            pid.is_none()
        });
        // Those first whose worker is known.
        failures.sort_by_key(|failure| (!ran.contains_key(&failure.id), failure.began));
        for failure in failures.iter() {
            let kill = kills.iter_mut().find(|kill| failure.is_of(kill, ran.get(&failure.id)));
            if let Some(kill) = kill {
                kill.excused |= ran.contains_key(&failure.id) || !failure.was_idle(kill);
                attributed += 1;
            } else if !ran.contains_key(&failure.id) && ends.iter().any(|end| failure.is_of_end(end)) {
                with_master += 1;
            } else {
                unattributed.push(failure.clone());
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
            ends: inner.ends.len(),
            attributed,
            with_master,
            unattributed,
            short,
            done,
        }
    }
}

impl Failure {
    /// Whether a worker's death accounts for it; the worker is known if it `ran` the request.
    fn is_of(&self, kill: &Kill, ran: Option<&i32>) -> bool {
        match ran {
            Some(pid) => kill.pid == *pid && !kill.excused,
            None => {
                let meanwhile = kill.dead >= self.began && kill.at <= self.ended;
                kill.pool == self.pool && (self.was_idle(kill) || (meanwhile && !kill.excused))
            }
        }
    }

    /// Whether the connection had nothing to say yet that the worker could have run. It may hold any number of such: kept ones
    /// that it served last, and new ones of which it awaits the rest of a request.
    fn was_idle(&self, kill: &Kill) -> bool {
        let kept = self.held_by.is_some_and(|held_by| held_by.pid == kill.pid);
        let half = self.held_by.is_none() && self.began <= kill.dead && self.sent >= kill.at;
        kept || half
    }

    /// Whether the end of a master accounts for it. With each go the kept connections of its workers, as a web server expects
    /// of idle ones; and with one that is killed those that it had in hand.
    fn is_of_end(&self, end: &End) -> bool {
        self.silent
            && match self.held_by {
                Some(held_by) => held_by.start == end.start,
                None => end.killed && self.began <= end.gone && self.ended >= end.at,
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
        assert!(calm > FEW && busy > FEW, "too few to tell: {self}");
        assert!(during <= 3 * before.max(FLOOR), "{self}");
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(
            f,
            "{} requests; {} workers killed, {} failures attributed to them; {} masters ended, {} connections with them; {} \
             unattributed",
            self.requests,
            self.kills,
            self.attributed,
            self.ends,
            self.with_master,
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
                "  LOST in pool {}: {} (connection held by {:?}, sent after {:.1?}, failed after {:.1?})",
                failure.pool,
                failure.what,
                failure.held_by,
                failure.sent - failure.began,
                failure.ended - failure.began
            )?;
        }
        Ok(())
    }
}
