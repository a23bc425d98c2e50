//! A pool: the generation that serves, the one that is to take over, and those that drain.
#![forbid(unsafe_code)]

mod access_logs;
mod front;
mod generations;
mod heard;
mod manage;
mod save;
mod seen;

pub use save::SavedPool;

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::front::Front;
use self::manage::Waited;
use super::access_log::AccessLog;
use super::context::Context;
use super::generation::{Generation, Totals};
use super::listen::Listener;
use super::queue::Queue;
use super::status_server::StatusServer;
use super::trace::Threads;
use super::users::Identity;
use super::watch::{self, GenerationId, PoolId, Watch};
use super::worker::Worker;
use crate::config::{self, Global};
use crate::control::Exit;
use crate::log::{About, errno};
use crate::pm::{self, Backoff, WorkerId};
use crate::scoreboard::{SlotView, realtime_us};

/// A pool that takes longer to start does not hold up the others of its master.
const SLOW_START: Duration = Duration::from_secs(10);

/// How often a zygote is asked whether it is well.
const PING_EVERY: Duration = Duration::from_secs(10);

/// Wait after an order that could not be given.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What a generation is made from.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// `[global]`
    pub global: Rc<Global>,
    /// The pool's section.
    pub config: Rc<config::Pool>,
    /// Who its workers are.
    pub identity: Identity,
    /// What they accept from: that of `listen`, then what else systemd listens on for the pool.
    pub listeners: Vec<Rc<Listener>>,
    /// Where the master answers status and ping.
    pub status_listener: Option<Rc<Listener>>,
}

/// A pool.
#[derive(Debug)]
pub struct Pool {
    /// Its number.
    pub id: PoolId,
    /// What the next generation is made from.
    pub wanted: Wanted,
    /// The access log.
    pub access_log: Option<Rc<AccessLog>>,
    ctx: Rc<Context>,
    queue: Queue,
    current: Option<Generation>,
    /// Starting up, to take over.
    next: Option<Generation>,
    /// Serves on until the current one has its workers, or that moment.
    leaving: Option<(Generation, Duration)>,
    old: Vec<Generation>,
    memory: pm::Memory,
    /// Workers that ended unasked since the last decision.
    lost: u32,
    /// Most requests at a time, by looks that decided nothing.
    peak: u32,
    /// Of zygotes that cannot start or do not live.
    restart: Backoff,
    /// A zygote is to be started then.
    restart_at: Option<Duration>,
    /// When the zygote was asked whether it is well, while it has not answered.
    pinged: Option<Duration>,
    /// When it is to be asked next.
    ping_at: Duration,
    /// Since when there has been nothing to do: no worker, or no zygote either.
    idle_since: Option<Duration>,
    /// Why the last start failed, until one succeeds.
    pub failed: Option<String>,
    /// The reason a starting zygote gave.
    reason: Option<String>,
    /// How it ended, and until when its reason may still be on its way.
    fallen: Option<(Exit, Duration)>,
    /// The current generation has its first workers.
    up: bool,
    /// When it is taken for up whether it has or not: nobody is to wait for what does not come.
    up_by: Duration,
    /// Workers of it that came to nothing.
    stillborn: u32,
    stopping: bool,
    crashes: VecDeque<Duration>,
    listening: Vec<Watch>,
    front: Front,
    /// Sockets of old generations that the current one does not listen on; the master takes who still comes by them.
    left: Vec<(Rc<Listener>, Watch)>,
    status: Option<StatusServer>,
    wake: Option<Duration>,
    tracers: Rc<Threads>,
    waited: Waited,
    /// Somebody waits, there is no worker, and `process.max` allows none.
    starved: bool,
    counters: Counters,
}

/// What outlives generations.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Counters {
    /// Seconds since the epoch.
    start_time: i64,
    started: Duration,
    totals: Totals,
    max_active: u32,
    max_children_reached: u32,
    max_queue: u32,
    slow: u64,
    timed_out: u64,
    generations: u64,
    spawned: u64,
    /// As php-fpm does since PHP 8.4.
    shows_memory_peak: bool,
}

impl Pool {
    /// A pool that is asleep.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new(ctx: &Rc<Context>, wanted: Wanted, access_log: Option<AccessLog>) -> io::Result<Self> {
        let id = PoolId(ctx.number());
        let queue = Queue::new(id, ctx, front::rules(id, &wanted.config, &ctx.events))?;
        let mut pool = Self::with(ctx, id, wanted, access_log.map(Rc::new), queue);
        pool.serve_status();
        Ok(pool)
    }

    fn with(ctx: &Rc<Context>, id: PoolId, wanted: Wanted, access_log: Option<Rc<AccessLog>>, queue: Queue) -> Self {
        Self {
            id,
            wanted,
            access_log,
            ctx: ctx.clone(),
            queue,
            current: None,
            next: None,
            leaving: None,
            old: Vec::new(),
            memory: pm::Memory::default(),
            lost: 0,
            peak: 0,
            restart: Backoff::default(),
            restart_at: None,
            pinged: None,
            ping_at: Duration::ZERO,
            idle_since: None,
            failed: None,
            reason: None,
            fallen: None,
            up: false,
            up_by: watch::now() + SLOW_START,
            stillborn: 0,
            stopping: false,
            crashes: VecDeque::new(),
            listening: Vec::new(),
            front: Front::Away,
            waited: Waited::default(),
            left: Vec::new(),
            status: None,
            wake: Some(Duration::ZERO),
            tracers: Rc::default(),
            starved: false,
            counters: Counters {
                start_time: (realtime_us() / 1_000_000) as i64,
                started: watch::now(),
                ..Counters::default()
            },
        }
    }

    /// Answers on `pm.status_listen`.
    fn serve_status(&mut self) {
        let Wanted {
            config,
            status_listener,
            ..
        } = &self.wanted;
        let Some(listener) = status_listener else {
            self.status = None;
            return;
        };
        let (events, log) = (&self.ctx.events, &self.ctx.log);
        if let Some(status) = self.status.as_ref().filter(|status| status.is_on(listener)) {
            return status.renew(self.id, config, events, log);
        }
        match StatusServer::start(self.id, config, listener, events, log) {
            Ok(status) => self.status = Some(status),
            Err(error) => self
                .log()
                .error(format_args!("pm.status_listen cannot be watched: {}", errno(&error))),
        }
    }

    /// Its part of the log.
    pub fn log(&self) -> About<'_> {
        self.ctx.log.pool(&self.wanted.config.name)
    }

    fn generations(&mut self) -> impl Iterator<Item = &mut Generation> {
        let leaving = self.leaving.as_mut().map(|(generation, _)| generation);
        self.current
            .iter_mut()
            .chain(self.next.iter_mut())
            .chain(leaving)
            .chain(&mut self.old)
    }

    fn generation(&mut self, id: GenerationId) -> Option<&mut Generation> {
        self.generations().find(|generation| generation.place.generation == id)
    }

    /// Workers that exist, for `process.max`.
    pub fn workers(&mut self) -> u32 {
        self.generations()
            .map(|generation| generation.workers.len() as u32)
            .sum()
    }

    /// Whether its clients wait for a worker that `process.max` does not allow, and it has none.
    pub fn is_starved(&self) -> bool {
        self.starved
    }

    /// Whether the worker that could be another pool's has nothing to do; None: all have been asked to leave already.
    pub fn could_give(&self) -> Option<bool> {
        self.could_go().map(|(_, active)| !active)
    }

    /// Whether a worker that has been asked to leave may do so at any moment: not one with a request that takes long.
    pub fn is_giving_up(&self) -> bool {
        const LONG: Duration = Duration::from_secs(1);
        let now = watch::now();
        let leaves =
            |(worker, view): &(&Worker, SlotView)| worker.asked.is_some_and(|at| at + LONG > now || !view.is_active());
        self.current
            .as_ref()
            .is_some_and(|current| current.views().iter().any(leaves))
    }

    /// Asks a worker to leave, one that has nothing to do if there is one: another pool has none.
    pub fn give_one_up(&mut self) {
        let now = watch::now();
        if let Some(((id, _), current)) = self.could_go().zip(self.current.as_mut()) {
            current.ask(id, now);
        }
    }

    /// The worker that could go, and whether it has a request.
    fn could_go(&self) -> Option<(WorkerId, bool)> {
        let views = self.current.as_ref()?.views();
        let free = views
            .iter()
            .filter(|(worker, _)| worker.process.is_some() && worker.asked.is_none() && !worker.held);
        free.map(|(worker, view)| (worker.id, view.is_active()))
            .min_by_key(|(_, active)| *active)
    }

    /// Something has changed: look at it soon.
    pub fn touch(&mut self) {
        self.wake = Some(Duration::ZERO);
    }

    /// When it wants to be looked at.
    pub fn wake(&self) -> Option<Duration> {
        self.wake
    }

    /// What its processes have said until now into the log.
    pub fn read_output(&mut self) {
        self.generations().for_each(|generation| generation.read_output());
    }

    /// Looks at everything and does what there is to do. `room` is what `process.max` leaves.
    pub fn look(&mut self, room: Option<u32>) {
        let now = watch::now();
        self.wake = None;
        self.check_access_logs();
        self.bury(now);
        self.drain(now);
        self.enforce_limits(now);
        if self.stopping {
            return;
        }
        if let Some(at) = self.restart_at {
            if at > now {
                self.wake_at(at);
            } else if self.next.is_none() {
                self.start();
            }
        }
        self.check_start(now);
        self.check_zygote(now);
        self.fall_asleep(now);
        self.manage(now, room);
    }

    fn wake_at(&mut self, at: Duration) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}
