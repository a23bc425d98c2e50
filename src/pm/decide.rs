//! The decision function.

use std::time::Duration;

use super::{Backoff, Recycling, WorkerId, recycle};
use crate::config::{Pm, Pool};

/// Connections that wait this long while nobody is idle call for workers. Shorter queues are the ordinary jitter of a busy
/// pool, which its workers take up faster than a new one is made.
const PRESSURE: Duration = Duration::from_millis(5);

/// A shortage of spare workers that lasts this long calls for workers though nobody waits: a pool of one spare worker
/// is short during every request, and one that its machine holds up for a moment is not a longer one. Who comes meanwhile
/// waits for no more than [`PRESSURE`].
const SHORTAGE: Duration = Duration::from_millis(100);

/// How often a pool with workers to spare is looked at, and how long one that was asked to leave may take.
const TICK: Duration = Duration::from_secs(1);

/// Least time between two lines that say the same.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// A step of growth from which on the pool "seems busy" (php-fpm's number).
const BUSY_STEP: u32 = 8;

/// What of a pool's configuration the decisions need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `pm`
    pub style: Pm,
    /// `pm.max_children`
    pub max_children: u32,
    /// `pm.start_servers`
    pub start_servers: u32,
    /// `pm.min_spare_servers`
    pub min_spare: u32,
    /// `pm.max_spare_servers`
    pub max_spare: u32,
    /// `pm.max_spawn_rate`, workers a second.
    pub max_spawn_rate: u32,
    /// `pm.process_idle_timeout`
    pub idle_timeout: Duration,
    /// Most spares: workers beyond `max_children` that accept nothing.
    pub most_spares: u32,
}

impl From<&Pool> for Limits {
    fn from(pool: &Pool) -> Self {
        Self {
            style: pool.pm,
            max_children: pool.pm_max_children,
            start_servers: pool.pm_start_servers,
            min_spare: pool.pm_min_spare_servers,
            max_spare: pool.pm_max_spare_servers,
            max_spawn_rate: pool.pm_max_spawn_rate,
            idle_timeout: pool.pm_process_idle_timeout,
            most_spares: pool.pm_max_children.div_ceil(4),
        }
    }
}

/// A worker that waits for a request. Times are since any fixed moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    /// Who.
    pub worker: WorkerId,
    /// Its start.
    pub started: Duration,
    /// Since when it is idle.
    pub since: Duration,
    /// When it was asked to leave.
    pub asked: Option<Duration>,
}

/// A pool at one moment; draining workers of an older generation are not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Now.
    pub now: Duration,
    /// Workers that wait for a request.
    pub idle: Vec<Idle>,
    /// Workers that are being made.
    pub starting: u32,
    /// Workers that have ended and are not buried yet.
    pub ending: u32,
    /// Workers with a request.
    pub active: u32,
    /// Of those with a request, the ones that leave after it.
    pub active_asked: u32,
    /// Of those with a request, the ones that the bell counts: their clients are not served yet.
    pub counted: u32,
    /// Of these, the ones that leave after it.
    pub counted_asked: u32,
    /// The most requests at a time since the last decision.
    pub peak: u32,
    /// Connections that no worker has accepted yet.
    pub waiting: u32,
    /// Workers that ended unasked since the last decision.
    pub lost: u32,
    /// How many more workers `process.max` allows; None is without limit.
    pub room: Option<u32>,
    /// Workers that are to be replaced, and who stands ready for it.
    pub recycling: Recycling,
}

impl Snapshot {
    /// Workers that exist or are being made, without the spares.
    pub fn total(&self) -> u32 {
        self.idle.len() as u32 + self.starting + self.ending + self.active
    }

    fn available(&self) -> u32 {
        self.idle.iter().filter(|idle| idle.asked.is_none()).count() as u32 + self.starting
    }
}

/// What earlier decisions leave behind.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Of workers that die soon after their start.
    pub backoff: Backoff,
    /// Workers to begin with, until the first decision.
    first: Option<u32>,
    pressed: Option<Pressure>,
    short: Option<Duration>,
    rate: Rate,
    /// The most requests at a time since the beginning of the second under way, and that beginning.
    peak: (u32, Duration),
    full: bool,
    said_full: Said,
    said_busy: Said,
    said_process_max: Said,
}

impl Memory {
    /// Of a pool that begins: with what its configuration says, and with `workers` at least where it takes over from a
    /// generation that needed so many.
    pub fn new(limits: &Limits, workers: u32) -> Self {
        let first = match limits.style {
            Pm::Static => limits.max_children,
            Pm::Dynamic => limits.start_servers.max(workers),
            Pm::Ondemand => workers,
        };
        Self {
            first: Some(first),
            ..Self::default()
        }
    }
}

/// Connections have been waiting, at least `waiting` at every look since.
#[derive(Clone, Copy, Debug)]
struct Pressure {
    since: Duration,
    waiting: u32,
}

/// Something worth saying; once in a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// All of `pm.max_children` have a request, and more are wanted.
    MaxChildren,
    /// A large step of growth.
    Busy {
        /// Workers being made.
        spawning: u32,
        /// Idle ones.
        idle: u32,
        /// All.
        total: u32,
    },
    /// `process.max` stands in the way.
    ProcessMax,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Workers to make.
    pub spawn: u32,
    /// How many of them replace one that ended unasked.
    pub replace: u32,
    /// Spares that are to begin to accept.
    pub release: u32,
    /// Spares to make.
    pub hold: u32,
    /// Spares to let go.
    pub dismiss: u32,
    /// Workers to be told to leave after the request under way: somebody is ready to take their place.
    pub retire: Vec<WorkerId>,
    /// Workers to ask to leave.
    pub ask: Vec<WorkerId>,
    /// Workers that were asked, are idle and still there.
    pub kill: Vec<WorkerId>,
    /// `pm.max_children` has come to stand in the way, and did not before.
    pub max_children_reached: bool,
    /// To be logged.
    pub lines: Vec<Line>,
    /// Look again then, whatever happens.
    pub wake: Option<Duration>,
}

impl Decision {
    pub(super) fn wake_at(&mut self, at: Duration) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

/// Decides.
pub fn decide(limits: &Limits, memory: &mut Memory, pool: &Snapshot) -> Decision {
    let mut decision = Decision::default();
    grow(limits, memory, pool, &mut decision);
    if decision.spawn + decision.release == 0 {
        shrink(limits, memory, pool, &mut decision);
    }
    recycle::recycle(limits, memory, pool, &mut decision);
    insist(pool, &mut decision);
    decision
}

fn grow(limits: &Limits, memory: &mut Memory, pool: &Snapshot, decision: &mut Decision) {
    let (available, total) = (pool.available(), pool.total());
    let room = limits.max_children.saturating_sub(total);
    let queue = pressing(memory, pool, room > 0, decision);
    let queue = queue.saturating_sub(available);
    let left = pool.recycling.left;
    let replace = match limits.style {
        Pm::Static => pool.lost + left,
        // One that had to be killed or died is replaced unless there are too many without it.
        Pm::Dynamic if available <= limits.max_spare => pool.lost + left,
        // Who was used up was in use.
        Pm::Ondemand if available == 0 => left,
        Pm::Dynamic | Pm::Ondemand => 0,
    };
    let need = match limits.style {
        Pm::Static => limits.max_children.saturating_sub(total),
        Pm::Dynamic => {
            let short = shortage(
                memory,
                pool,
                limits.min_spare.saturating_sub(available),
                room > 0,
                decision,
            );
            (queue + short).max(replace)
        }
        Pm::Ondemand => queue.max(replace),
    };
    let first = memory.first.take().unwrap_or(0).saturating_sub(total);
    let need = need.max(first);

    let idle = pool.idle.len() as u32;
    let full = limits.style != Pm::Static && need > room && available == 0;
    if full && !memory.full {
        decision.max_children_reached = true;
        if memory.said_full.may(pool.now) {
            decision.lines.push(Line::MaxChildren);
        }
    }
    memory.full = full;
    if full {
        // Nobody tells when one becomes idle.
        decision.wake_at(pool.now + TICK);
    }

    // Spares are made already: nothing but `max_children` stands in their way.
    decision.release = need.min(room).min(pool.recycling.all_spares());
    let mut spawn = need.min(room) - decision.release;
    if let Some(allowed) = pool.room
        && spawn > allowed
    {
        spawn = allowed;
        // A place may become free in another pool, of which this one hears nothing.
        decision.wake_at(pool.now + TICK);
        if memory.said_process_max.may(pool.now) {
            decision.lines.push(Line::ProcessMax);
        }
    }
    if spawn > 0
        && let Some(until) = memory.backoff.wait(pool.now)
    {
        decision.wake_at(until);
        spawn = 0;
    }
    if limits.style == Pm::Dynamic {
        // Those that a pool begins with come at once, as php-fpm's do.
        let at_once = spawn.min(first);
        let allowed = at_once + memory.rate.take(spawn - at_once, limits.max_spawn_rate, pool.now);
        if allowed < spawn {
            decision.wake_at(pool.now + Duration::from_secs(1) / limits.max_spawn_rate.max(1));
        }
        spawn = allowed;
        if spawn >= BUSY_STEP && pool.active > 0 && memory.said_busy.may(pool.now) {
            decision.lines.push(Line::Busy {
                spawning: spawn,
                idle,
                total,
            });
        }
    }
    decision.spawn = spawn;
    decision.replace = replace.saturating_sub(decision.release).min(spawn);
}

/// How many waiting connections call for a worker of their own.
fn pressing(memory: &mut Memory, pool: &Snapshot, room: bool, decision: &mut Decision) -> u32 {
    if pool.waiting <= pool.available() {
        memory.pressed = None;
        return 0;
    }
    if pool.active == 0 || !room {
        // Nobody is there who could take them up in a moment; or nobody can be made.
        memory.pressed = None;
        return pool.waiting;
    }
    let pressure = match memory.pressed {
        Some(pressure) => Pressure {
            waiting: pressure.waiting.min(pool.waiting),
            ..pressure
        },
        None => Pressure {
            since: pool.now,
            waiting: pool.waiting,
        },
    };
    if pool.now >= pressure.since + PRESSURE {
        memory.pressed = Some(Pressure {
            since: pool.now,
            waiting: pool.waiting,
        });
        decision.wake_at(pool.now + PRESSURE);
        return pressure.waiting;
    }
    memory.pressed = Some(pressure);
    decision.wake_at(pressure.since + PRESSURE);
    0
}

/// How many workers are missing that should be idle, once they have been for a while.
fn shortage(memory: &mut Memory, pool: &Snapshot, missing: u32, room: bool, decision: &mut Decision) -> u32 {
    if missing == 0 {
        memory.short = None;
        return 0;
    }
    let since = *memory.short.get_or_insert(pool.now);
    if pool.now >= since + SHORTAGE || !room || pool.active == 0 {
        return missing;
    }
    decision.wake_at(since + SHORTAGE);
    0
}

fn shrink(limits: &Limits, memory: &mut Memory, pool: &Snapshot, decision: &mut Decision) {
    let mut spare: Vec<&Idle> = pool.idle.iter().filter(|idle| idle.asked.is_none()).collect();
    match limits.style {
        Pm::Static => {
            // More than configured: only after a reload made in place.
            spare.sort_by_key(|idle| idle.started);
            let surplus = pool.total().saturating_sub(limits.max_children) as usize;
            decision.ask.extend(spare.iter().take(surplus).map(|idle| idle.worker));
        }
        Pm::Ondemand => {
            for idle in spare {
                let leaves = idle.since + limits.idle_timeout;
                if leaves <= pool.now {
                    decision.ask.push(idle.worker);
                } else {
                    decision.wake_at(leaves);
                }
            }
            if pool.active + pool.starting > pool.active_asked {
                // Nobody tells when a request ends; one that ends now is over its time then at the earliest.
                decision.wake_at(pool.now + limits.idle_timeout);
            }
        }
        Pm::Dynamic => {
            if pool.total() <= limits.max_spare {
                return;
            }
            let (peak, begin) = &mut memory.peak;
            *peak = (*peak).max(pool.peak).max(pool.active);
            if *begin + TICK > pool.now {
                return decision.wake_at(*begin + TICK);
            }
            // Not only who is idle at this moment counts, but who was all the time: a steady load keeps its workers.
            let surplus = (spare.len() as u32 + pool.active).saturating_sub(*peak + limits.max_spare);
            (*peak, *begin) = (pool.active, pool.now);
            decision.wake_at(pool.now + TICK);
            // A quarter a second: soon most of a burst's workers are gone, and the next burst still finds some.
            spare.sort_by_key(|idle| idle.started);
            decision
                .ask
                .extend(spare.iter().take(surplus.div_ceil(4) as usize).map(|idle| idle.worker));
        }
    }
}

/// Those that were asked and stay although idle block the signal.
fn insist(pool: &Snapshot, decision: &mut Decision) {
    for idle in &pool.idle {
        let Some(asked) = idle.asked else { continue };
        // One that was asked and yet had a request first leaves after it.
        let over = asked.max(idle.since) + TICK;
        if over <= pool.now {
            decision.kill.push(idle.worker);
        }
        decision.wake_at(if over > pool.now { over } else { pool.now + TICK });
    }
    if pool.active_asked > 0 || !decision.ask.is_empty() {
        decision.wake_at(pool.now + TICK);
    }
}

/// At most so many workers a second, and as many at once.
#[derive(Clone, Debug, Default)]
struct Rate {
    spent: f64,
    at: Duration,
}

impl Rate {
    fn take(&mut self, wanted: u32, a_second: u32, now: Duration) -> u32 {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.spent = (self.spent - passed * f64::from(a_second)).max(0.0);
        self.at = now;
        let got = wanted.min((f64::from(a_second) - self.spent).max(0.0) as u32);
        self.spent += f64::from(got);
        got
    }
}

#[derive(Clone, Debug, Default)]
struct Said(Option<Duration>);

impl Said {
    fn may(&mut self, now: Duration) -> bool {
        let may = self.0.is_none_or(|at| at + SAY_AGAIN <= now);
        if may {
            self.0 = Some(now);
        }
        may
    }
}
