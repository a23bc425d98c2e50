//! A pool: the generation that serves, the one that is to take over, and those that drain.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::access_log::AccessLog;
use super::backlog::Backlog;
use super::context::{Context, State};
use super::generation::{Death, Generation, Life, Totals};
use super::listen::Listener;
use super::queue::Queue;
use super::status_server::{self, Answer};
use super::systemd::LONGEST_START;
use super::trace;
use super::users::Identity;
use super::watch::{self, GenerationId, Heard, Place, PoolId, Watch};
use super::worker::describe;
use crate::api::{self, Happened, PoolStatus, Traced};
use crate::config::{self, Global, Pm};
use crate::control::{ChannelError, Exit, FromWorker, FromZygote, ToWorker, ToZygote};
use crate::log::{About, MessageId, errno};
use crate::pm::{self, Backoff, Line, WorkerId};
use crate::scoreboard::{monotonic_ns, realtime_us};
use crate::trace::Limits;

/// A generation whose replacement has not got its workers up by then drains all the same.
const HAND_OVER: Duration = Duration::from_secs(2);

/// How often a zygote is asked whether it is well, and how long it may take for the answer.
const PING_EVERY: Duration = Duration::from_secs(10);
const PONG_WITHIN: Duration = Duration::from_secs(15);

/// A pool that takes longer to start does not hold up the others of its master.
const SLOW_START: Duration = Duration::from_secs(10);

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
    /// What they accept from.
    pub listener: Rc<Listener>,
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
    pub access_log: Option<AccessLog>,
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
    /// Why the last start failed; None while one is under way, or when it did not.
    pub failed: Option<String>,
    /// The reason a starting zygote gave.
    reason: Option<String>,
    /// The current generation has its first workers.
    up: bool,
    stopping: bool,
    crashes: VecDeque<Duration>,
    listening: Option<Watch>,
    status: Option<Watch>,
    wake: Option<Duration>,
    counters: Counters,
}

/// What outlives generations.
#[derive(Debug, Default)]
struct Counters {
    /// Seconds since the epoch.
    start_time: i64,
    started: Duration,
    totals: Totals,
    max_active: u32,
    max_children_reached: u32,
    max_queue: u32,
    slow: u64,
    generations: u64,
}

impl Pool {
    /// A pool that is asleep.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new(ctx: &Rc<Context>, wanted: Wanted, access_log: Option<AccessLog>) -> io::Result<Self> {
        let id = PoolId(ctx.number());
        let mut pool = Self {
            id,
            wanted,
            access_log,
            ctx: ctx.clone(),
            queue: Queue::new(id, &ctx.events)?,
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
            up: false,
            stopping: false,
            crashes: VecDeque::new(),
            listening: None,
            status: None,
            wake: Some(Duration::ZERO),
            counters: Counters {
                start_time: (realtime_us() / 1_000_000) as i64,
                started: watch::now(),
                ..Counters::default()
            },
        };
        pool.serve_status();
        Ok(pool)
    }

    /// Answers on `pm.status_listen`.
    fn serve_status(&mut self) {
        let Wanted {
            config,
            status_listener,
            ..
        } = &self.wanted;
        let started = status_listener
            .as_ref()
            .map(|listener| status_server::start(self.id, config, listener, &self.ctx.events, &self.ctx.log));
        match started.transpose() {
            Ok(watch) => self.status = watch,
            Err(error) => self
                .log()
                .error(format_args!("pm.status_listen cannot be watched: {}", errno(&error))),
        }
    }

    /// What a status page is made from.
    pub fn answer(&mut self) -> Answer {
        let shown = self
            .current
            .as_ref()
            .filter(|current| current.exposed && !current.php.is_empty());
        let php = shown.map(|current| current.php.clone());
        Answer {
            snapshot: self.snapshot(),
            php,
        }
    }

    fn log(&self) -> About<'_> {
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

    /// Processes that are its zygotes, or workers that have become the master's own children.
    pub fn knows_child(&mut self, pid: i32) -> bool {
        self.generations().any(|generation| {
            (generation.life != Life::Ended && generation.zygote().pid() == pid)
                || generation.workers.values().any(|worker| worker.pid() == Some(pid))
        })
    }

    /// Workers that exist, for `process.max`.
    pub fn workers(&mut self) -> u32 {
        self.generations()
            .map(|generation| generation.workers.len() as u32)
            .sum()
    }

    /// Starts a generation that is to take over.
    pub fn start(&mut self) {
        if let Some(abandoned) = self.next.take() {
            self.retire(abandoned);
        }
        (self.restart_at, self.failed, self.reason) = (None, None, None);
        let Wanted {
            global,
            config,
            identity,
            listener,
            ..
        } = &self.wanted;
        let place = Place {
            pool: self.id,
            generation: GenerationId(self.ctx.number()),
        };
        match Generation::start(&self.ctx, place, global, config, identity, listener, &self.queue) {
            Ok(generation) => self.next = Some(generation),
            Err(error) => self.start_failed(error.to_string()),
        }
    }

    fn start_failed(&mut self, reason: String) {
        let now = watch::now();
        self.restart.failed(now, self.ctx.jitter());
        let serves_on = self.current.as_ref().is_some_and(|current| current.life == Life::Ready);
        if serves_on {
            self.log().error(format_args!(
                "the new generation cannot start: {reason}; the old one serves on"
            ));
        } else {
            self.log().error(format_args!("PHP cannot start: {reason}"));
            self.restart_at = Some(self.restart.wait(now).unwrap_or(now));
        }
        self.failed = Some(reason);
        self.touch();
    }

    /// Something has changed: look at it soon.
    pub fn touch(&mut self) {
        self.wake = Some(Duration::ZERO);
    }

    /// When it wants to be looked at.
    pub fn wake(&self) -> Option<Duration> {
        self.wake
    }

    /// A reload: the next generation is made from this. `force` also where nothing has changed.
    pub fn reload(&mut self, wanted: Wanted, access_log: Option<AccessLog>) {
        self.wanted = wanted;
        self.access_log = access_log;
        self.serve_status();
        if self.current.is_some() || self.next.is_some() || !self.sleeps_at_first() {
            self.start();
        }
        self.touch();
    }

    /// Whether its first request may start PHP: many pools in one master would take much memory for nothing.
    pub fn sleeps_at_first(&self) -> bool {
        self.wanted.config.pm == Pm::Ondemand
    }

    /// Whether the start that was begun last has come to its end, good or bad.
    pub fn is_settled(&self) -> bool {
        self.next.is_none()
    }

    /// Whether its start takes so long that nobody else's is to wait for it.
    pub fn is_slow(&self) -> bool {
        self.next
            .as_ref()
            .is_some_and(|next| next.begun + SLOW_START <= watch::now())
    }

    /// Whether its first workers are there too, or need not be, and nobody else accepts any more.
    pub fn is_up(&self) -> bool {
        let now = watch::now();
        self.is_settled()
            && self.leaving.is_none()
            && (self.up || self.current.is_none())
            && self
                .old
                .iter()
                .all(|generation| generation.accepts_until(now).is_none())
    }

    /// Ends it: requests may go on until `limit`.
    pub fn stop(&mut self, limit: Duration) {
        self.stopping = true;
        (self.listening, self.status) = (None, None);
        if let Some(next) = self.next.take() {
            self.retire(next);
        }
        let leaving = self.leaving.take().map(|(generation, _)| generation);
        self.old.extend(self.current.take());
        self.old.extend(leaving);
        for generation in &mut self.old {
            generation.start_drain(Some(limit), true);
        }
        self.touch();
    }

    /// What its processes have said until now into the log.
    pub fn read_output(&mut self) {
        self.generations().for_each(|generation| generation.read_output());
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        for generation in self.generations() {
            generation.kill_all();
        }
        self.touch();
    }

    /// Nothing of it is left.
    pub fn is_gone(&self) -> bool {
        self.stopping && self.old.is_empty()
    }

    fn retire(&mut self, mut generation: Generation) {
        let limit = self.wanted.global.process_control_timeout;
        generation.start_drain((!limit.is_zero()).then(|| watch::now() + limit), false);
        self.old.push(generation);
    }

    /// A zygote said something, or hung up.
    pub fn on_zygote(&mut self, id: GenerationId, result: Result<Heard<FromZygote>, ChannelError>) {
        self.touch();
        let Some(generation) = self.generation(id) else { return };
        if generation.life == Life::Ended {
            // Its last words. Anything else comes from somebody who has its end of the channel.
            match result {
                Ok(Heard {
                    message: FromZygote::Exited { worker, exit },
                    ..
                }) if generation.has(WorkerId(worker)) => {
                    generation.exited(WorkerId(worker), exit);
                }
                Ok(Heard {
                    message: FromZygote::Failed { .. },
                    ..
                }) => {}
                _ => generation.hang_up(),
            }
            return;
        }
        match result {
            Ok(Heard { message, fds }) => match message {
                FromZygote::Ready { .. } if generation.life != Life::Starting => {
                    generation.break_off("it is ready once more");
                }
                FromZygote::Ready { php } => self.ready(id, php),
                FromZygote::Failed { reason } => {
                    if self.next.as_ref().is_some_and(|next| next.place.generation == id) {
                        self.reason = Some(reason);
                    }
                }
                FromZygote::Spawned { worker } => generation.spawned(WorkerId(worker), fds),
                FromZygote::NotSpawned { worker, errno } => {
                    generation.not_spawned(WorkerId(worker), errno);
                    self.memory.backoff.failed(watch::now(), self.ctx.jitter());
                }
                FromZygote::Exited { worker, exit } => generation.exited(WorkerId(worker), exit),
                FromZygote::Pong(_) => {
                    if self
                        .current
                        .as_ref()
                        .is_some_and(|current| current.place.generation == id)
                    {
                        (self.pinged, self.ping_at) = (None, watch::now() + PING_EVERY);
                    }
                }
            },
            Err(ChannelError::Malformed(what)) => generation.break_off(what),
            // Its end is known from its process; one that only hung up is of no more use.
            Err(_) => generation.zygote().signal(Signal::SIGKILL),
        }
    }

    fn ready(&mut self, id: GenerationId, php: String) {
        let Some(mut next) = self
            .next
            .take_if(|next| next.place.generation == id && next.life == Life::Starting)
        else {
            return;
        };
        next.life = Life::Ready;
        next.trace_layout = next.board.header().trace_layout();
        self.counters.generations += 1;
        next.php = php.chars().filter(char::is_ascii_graphic).take(32).collect();
        self.log().debug(format_args!(
            "zygote {} is ready, PHP {}",
            next.zygote().pid(),
            next.php
        ));
        self.restart.worked();
        let before = self.current.replace(next);
        let busy = before.as_ref().map_or(0, |before| {
            let mut snapshot = pm::Snapshot {
                now: watch::now(),
                ..pm::Snapshot::default()
            };
            before.count(&mut snapshot);
            snapshot.active
        });
        self.memory = pm::Memory::new(&pm::Limits::from(&*self.wanted.config), busy);
        (self.up, self.lost) = (false, 0);
        (self.pinged, self.ping_at, self.idle_since) = (None, watch::now() + PING_EVERY, None);
        self.listening = None;
        if let Some((earlier, _)) = self.leaving.take() {
            self.retire(earlier);
        }
        self.leaving = before.map(|before| (before, watch::now() + HAND_OVER));
    }

    /// A zygote's process has ended.
    pub fn zygote_ended(&mut self, id: GenerationId, exit: Exit) {
        self.touch();
        let Some(generation) = self.generation(id) else { return };
        generation.zygote_ended();
        let (pid, told) = (
            generation.zygote().pid(),
            generation.quit.is_some() || generation.drain.is_some(),
        );
        if let Some(next) = self.next.take_if(|next| next.place.generation == id) {
            self.old.push(next);
            let reason = self
                .reason
                .take()
                .unwrap_or_else(|| format!("its zygote {pid} exited {}", describe(Some(exit))));
            self.start_failed(reason);
        } else if !told {
            self.log().warning(format_args!(
                "zygote {pid} exited {}; a new generation takes over",
                describe(Some(exit))
            ));
            let now = watch::now();
            self.restart.failed(now, self.ctx.jitter());
            self.restart_at = Some(self.restart.wait(now).unwrap_or(now));
        }
    }

    /// The ends of zygotes, and of workers that have become our children.
    pub fn reap(&mut self) {
        let ended: Vec<_> = self
            .generations()
            .filter(|generation| generation.life != Life::Ended)
            .filter_map(|generation| Some((generation.place.generation, generation.zygote().wait()?)))
            .collect();
        for (id, exit) in ended {
            self.zygote_ended(id, exit);
        }
    }

    /// Collects a child of ours that has ended; false when it is not one.
    pub fn collect(&mut self, pid: i32) -> bool {
        let mut collected = false;
        for generation in self.generations() {
            for worker in generation
                .workers
                .values_mut()
                .filter(|worker| worker.pid() == Some(pid))
            {
                let exit = worker.process.as_ref().and_then(|process| process.wait());
                if exit.is_some() {
                    worker.exit = exit;
                    worker.ended = worker.ended.or(Some(watch::now()));
                    collected = true;
                }
            }
        }
        if collected {
            self.touch();
        }
        collected
    }

    /// A worker said something, or hung up.
    pub fn on_worker(&mut self, id: GenerationId, worker: WorkerId, result: Result<Heard<FromWorker>, ChannelError>) {
        match result {
            Ok(Heard {
                message: FromWorker::Keep(handover),
                fds,
            }) => {
                if let Some(fd) = fds.into_iter().next() {
                    let config = &self.wanted.config;
                    let limit = match handover.since {
                        0 if handover.kept => Some(config.connection_idle_timeout).filter(|limit| !limit.is_zero()),
                        // One that has never said a word is no kept connection.
                        0 => Some(config.request_header_timeout),
                        // A request that has begun has what is left of its time, whoever waits for it.
                        since => {
                            let spent = Duration::from_nanos(monotonic_ns().saturating_sub(since));
                            Some(config.request_header_timeout.saturating_sub(spent))
                        }
                    };
                    self.queue.keep(handover, fd, limit);
                }
            }
            Ok(Heard {
                message: FromWorker::Status,
                ..
            }) => {
                let snapshot = ToWorker::Status(Box::new(self.snapshot()));
                if let Some(worker) = self
                    .generation(id)
                    .and_then(|generation| generation.workers.get(&worker))
                {
                    worker.tell(&snapshot, &[]);
                }
            }
            Err(ChannelError::Malformed(what)) => {
                let pid = self
                    .generation(id)
                    .and_then(|generation| generation.workers.get(&worker)?.pid());
                let pid = pid.unwrap_or_default();
                self.log()
                    .warning(format_args!("child {pid} does not keep to the protocol: {what}"));
            }
            // Its end is known from its process; it is buried after this.
            Err(_) => {
                if let Some(generation) = self.generation(id) {
                    generation.hung_up(worker);
                }
                self.touch();
            }
        }
    }

    /// A worker's process has ended.
    pub fn worker_ended(&mut self, id: GenerationId, worker: WorkerId) {
        if let Some(generation) = self.generation(id) {
            generation.ended(worker);
        }
        self.touch();
    }

    /// The access log was opened again.
    pub fn pass_access_log_on(&mut self) {
        let Some(log) = self.access_log.take() else { return };
        for generation in self.generations() {
            for worker in generation.workers.values() {
                if let Ok(fd) = log.try_clone() {
                    worker.tell(&ToWorker::AccessLog, &[fd]);
                }
            }
            // Raised after the descriptors are on their way: who sees it finds them.
            generation.board.header().log_epoch.fetch_add(1, SeqCst);
        }
        self.access_log = Some(log);
    }

    /// Looks at everything and does what there is to do. `room` is what `process.max` leaves.
    pub fn look(&mut self, room: Option<u32>) {
        let now = watch::now();
        self.wake = None;
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

    fn bury(&mut self, now: Duration) {
        let mut totals = self.counters.totals;
        let mut deaths = Vec::new();
        let current = self.current.as_ref().map(|current| current.place.generation);
        let mut next_look = None;
        for generation in self.generations() {
            let ours = Some(generation.place.generation) == current;
            deaths.extend(generation.bury(now, &mut totals).into_iter().map(|death| (ours, death)));
            next_look = next_look.into_iter().chain(generation.next_burial()).min();
        }
        self.counters.totals = totals;
        if let Some(at) = next_look {
            self.wake_at(at);
        }
        for (ours, death) in deaths {
            self.mourn(now, ours, death);
        }
    }

    fn mourn(&mut self, now: Duration, ours: bool, death: Death) {
        if !ours || self.stopping {
            return;
        }
        self.lost += u32::from(death.unasked);
        if death.stillborn {
            self.memory.backoff.failed(now, self.ctx.jitter());
        } else {
            self.memory.backoff.worked();
        }
        let global = &self.wanted.global;
        let (threshold, interval) = (
            global.emergency_restart_threshold as usize,
            global.emergency_restart_interval,
        );
        if !death.crashed || threshold == 0 || interval.is_zero() {
            return;
        }
        self.crashes.push_back(now);
        self.crashes.retain(|at| *at + interval >= now);
        if self.crashes.len() >= threshold && self.next.is_none() {
            self.crashes.clear();
            self.log().warning(format_args!(
                "failed processes threshold ({threshold} in {} sec) is reached, initiating reload",
                config::value::format_seconds(interval).trim_end_matches('s'),
            ));
            self.start();
        }
    }

    fn drain(&mut self, now: Duration) {
        let mut next_look = None;
        for generation in &mut self.old {
            let accepts = generation.accepts_until(now);
            next_look = next_look
                .into_iter()
                .chain(generation.continue_drain(now))
                .chain(accepts)
                .min();
        }
        self.old.retain(|generation| !generation.is_gone());
        if let Some(at) = next_look {
            self.wake_at(at);
        }
    }

    fn enforce_limits(&mut self, now: Duration) {
        let (mut slow, mut next) = (0, None);
        for generation in self.generations() {
            let enforced = generation.enforce_limits(now);
            slow += enforced.slow;
            next = next.into_iter().chain(enforced.next).min();
        }
        self.counters.slow += slow;
        if let Some(at) = next {
            self.wake_at(at);
        }
    }

    /// Ends a start that comes to nothing.
    fn check_start(&mut self, now: Duration) {
        let Some(next) = &self.next else { return };
        let (slow, over) = (next.begun + SLOW_START, next.begun + LONGEST_START);
        if over <= now {
            self.reason = Some(format!(
                "it has not begun to serve within {} seconds",
                LONGEST_START.as_secs()
            ));
            next.zygote().signal(Signal::SIGKILL);
            return;
        }
        self.wake_at(if slow > now { slow } else { over });
    }

    /// Asks the zygote whether it is well, and replaces one that does not answer. Its workers are not touched.
    fn check_zygote(&mut self, now: Duration) {
        let Some(current) = self.current.as_ref().filter(|current| current.can_spawn()) else {
            return;
        };
        match self.pinged {
            None if self.ping_at <= now => {
                // Where even the order cannot be given, the answer will be missing.
                let _ = current.zygote_orders().try_send((ToZygote::Ping(0), Vec::new()));
                self.pinged = Some(now);
                self.wake_at(now + PONG_WITHIN);
            }
            None => self.wake_at(self.ping_at),
            Some(at) if at + PONG_WITHIN > now => self.wake_at(at + PONG_WITHIN),
            Some(_) => {
                let (pid, limit) = (current.zygote().pid(), PONG_WITHIN.as_secs());
                self.pinged = Some(now);
                self.wake_at(now + PONG_WITHIN);
                if self.next.is_none() {
                    self.log().identified(MessageId::ZygoteReplaced).warning(format_args!(
                        "zygote {pid} did not answer within {limit} seconds; a new generation takes over"
                    ));
                    self.start();
                }
            }
        }
    }

    /// Ends the zygote of an ondemand pool that has had no worker for `zygote_idle_time`.
    fn fall_asleep(&mut self, now: Duration) {
        let limit = self.wanted.config.zygote_idle_time;
        let Some(current) = &self.current else { return };
        let busy = !current.workers.is_empty() || self.next.is_some() || self.leaving.is_some();
        if busy || self.wanted.config.pm != Pm::Ondemand || limit.is_zero() {
            self.idle_since = None;
            return;
        }
        let since = *self.idle_since.get_or_insert(now);
        if since + limit > now {
            return self.wake_at(since + limit);
        }
        self.idle_since = None;
        if let Some(current) = self.current.take() {
            self.log()
                .debug("nothing to do: the zygote ends until the next request");
            self.retire(current);
            self.touch();
        }
    }

    /// Whether a master that systemd starts again can end: the pool has slept for `exit_idle_time`.
    pub fn may_exit(&mut self, now: Duration) -> bool {
        let limit = self.wanted.config.exit_idle_time;
        let awake = self.current.is_some()
            || self.next.is_some()
            || !self.old.is_empty()
            || self.restart_at.is_some()
            || self.queue.holds_any();
        if awake || self.wanted.config.pm != Pm::Ondemand || limit.is_zero() {
            if awake && self.current.is_none() {
                self.idle_since = None;
            }
            return false;
        }
        let since = *self.idle_since.get_or_insert(now);
        self.wake_at(since + limit);
        since + limit <= now
    }

    fn manage(&mut self, now: Duration, room: Option<u32>) {
        let config = self.wanted.config.clone();
        let Some(current) = &mut self.current else {
            // Asleep, or not yet awake: a connection wakes it.
            if self.next.is_none() && self.restart_at.is_none() {
                if self.queue.waiting() > 0 {
                    self.start();
                } else {
                    self.listen(true);
                }
            }
            return;
        };
        let mut snapshot = pm::Snapshot {
            now,
            lost: std::mem::take(&mut self.lost),
            room,
            ..pm::Snapshot::default()
        };
        current.count(&mut snapshot);
        snapshot.peak = snapshot.peak.max(std::mem::take(&mut self.peak));
        let limits = pm::Limits::from(&*current.config);
        self.counters.max_active = self.counters.max_active.max(snapshot.peak);
        if limits.style != Pm::Static {
            snapshot.waiting = self.ctx.diag.backlog(&current.listener).unwrap_or_default().waiting;
            snapshot.waiting += self.queue.waiting();
        }
        if !current.can_spawn() || self.ctx.state.get() != State::Normal {
            return;
        }
        let decision = pm::decide(&limits, &mut self.memory, &snapshot);
        self.counters.max_children_reached += u32::from(decision.max_children_reached);
        let access_log = self.access_log.as_ref().map(AccessLog::file);
        let mut trouble = None;
        for index in 0..decision.spawn {
            if let Err(reason) = current.spawn(access_log, index < decision.replace) {
                trouble = Some(reason);
                break;
            }
        }
        for id in &decision.ask {
            current.ask(*id, now);
        }
        for id in &decision.kill {
            current.kill(*id);
        }
        let total = snapshot.total() + decision.spawn;
        let available = snapshot.idle.iter().filter(|idle| idle.asked.is_none()).count() as u32;
        let starting = snapshot.starting + decision.spawn;
        // Who begins a request rings when fewer than this many are idle then.
        let spare = match limits.style {
            Pm::Static => None,
            _ if total >= limits.max_children => (available > 0).then_some(1),
            Pm::Dynamic => Some(limits.min_spare),
            Pm::Ondemand => Some(1),
        };
        let serving = i64::from(snapshot.active - snapshot.active_asked + available);
        let ring_above = spare.map_or(i64::MAX, |spare| serving - i64::from(spare));
        let header = current.board.header();
        header.ring_above.store(ring_above, SeqCst);
        // Somebody may have begun a request between the count and the new bell, unheard.
        let missed = header.active.load(SeqCst) > ring_above.max(i64::from(snapshot.active));

        let hung = current.hangs(now).then(|| current.zygote().pid());

        for line in &decision.lines {
            self.say(line, &config);
        }
        if let Some(reason) = trouble {
            self.log().error(format_args!("no worker can be made: {reason}"));
            self.wake_at(now + TRY_AGAIN);
        }
        if let Some(at) = decision.wake {
            self.wake_at(at);
        }
        if missed {
            self.wake_at(now + Duration::from_millis(1));
        }
        self.up |= starting == 0;
        if self.up
            && let Some((generation, _)) = self.leaving.take()
        {
            self.retire(generation);
            self.touch();
        }
        match self.leaving.take() {
            Some((generation, until)) if until <= now => {
                self.retire(generation);
                self.touch();
            }
            Some((generation, until)) => {
                self.leaving = Some((generation, until));
                self.wake_at(until.min(now + Duration::from_millis(20)));
            }
            None if !self.up => self.wake_at(now + Duration::from_millis(20)),
            None => {}
        }
        if let Some(pid) = hung.filter(|_| self.next.is_none() && self.restart_at.is_none()) {
            self.log().warning(format_args!(
                "zygote {pid} does not answer; a new generation takes over"
            ));
            self.restart.failed(now, self.ctx.jitter());
            self.restart_at = Some(self.restart.wait(now).unwrap_or(now));
            self.touch();
        } else if starting > 0 {
            self.wake_at(now + TRY_AGAIN);
        }
        self.listen(limits.style != Pm::Static && available == 0 && total < limits.max_children);
    }

    /// Watches the listener, or does not.
    fn listen(&mut self, wanted: bool) {
        if !wanted {
            self.listening = None;
        } else if self.listening.is_none() {
            match watch::listener(&self.wanted.listener, &self.ctx.events, self.id) {
                Ok(watch) => self.listening = Some(watch),
                Err(error) => {
                    self.log()
                        .error(format_args!("the listener cannot be watched: {}", errno(&error)));
                    self.wake_at(watch::now() + TRY_AGAIN);
                }
            }
        }
    }

    /// A connection waits, or a kept one has something to say.
    pub fn on_waiting(&mut self) {
        if self.current.is_none() && self.next.is_none() && self.restart_at.is_none() && !self.stopping {
            self.listening = None;
            self.start();
        }
        self.touch();
    }

    fn say(&self, line: &Line, config: &config::Pool) {
        let log = self.log();
        match line {
            Line::MaxChildren => {
                let name = if config.pm == Pm::Ondemand { "max_children" } else { "pm.max_children" };
                let most = config.pm_max_children;
                log.identified(MessageId::MaxChildren)
                    .warning(format_args!("server reached {name} setting ({most}), consider raising it"));
                self.ctx.happened(&Happened::MaxChildrenReached {
                    pool: config.name.clone(),
                    limit: most,
                });
            }
            Line::Busy { spawning, idle, total } => log.warning(format_args!(
                "seems busy (you may need to increase pm.start_servers, or pm.min/max_spare_servers), spawning {spawning} \
                 children, there are {idle} idle, and {total} total children"
            )),
            Line::ProcessMax => self.ctx.log.warning(
                "The maximum number of processes has been reached. Please review your configuration and consider raising \
                 'process.max'",
            ),
        }
    }

    /// Why the last start failed, with its name.
    pub fn failure(&self) -> Option<String> {
        let reason = self.failed.as_ref()?;
        Some(format!("pool {}: {reason}", self.wanted.config.name))
    }

    /// The pool for a client of the control socket.
    pub fn status(&mut self, stopping: bool) -> PoolStatus {
        let state = match (&self.current, &self.next) {
            _ if stopping => api::State::Stopping,
            (Some(_), Some(_)) => api::State::Reloading,
            (Some(_), None) => api::State::Running,
            (None, Some(_)) => api::State::Starting,
            (None, None) if self.failed.is_some() => api::State::Failed,
            (None, None) => api::State::Asleep,
        };
        PoolStatus {
            state,
            generation: self.counters.generations,
            failure: self.failed.clone(),
            user: self.wanted.identity.name.clone(),
            snapshot: self.snapshot(),
        }
    }

    /// What its workers do that have a request.
    pub fn trace(&mut self, limits: Limits) -> Vec<impl Future<Output = Traced> + use<>> {
        let (now, name) = (watch::now(), self.wanted.config.name.clone());
        let ask = |generation: &mut Generation| {
            let mut asked = Vec::new();
            for (worker, view) in generation.views().iter().filter(|(_, view)| view.is_active()) {
                asked.extend(trace::ask(&name, worker, view, generation.trace_layout, now, limits));
            }
            asked
        };
        self.generations().flat_map(ask).collect()
    }

    /// The pool at this moment.
    pub fn snapshot(&mut self) -> crate::status::Snapshot {
        let now = watch::now();
        let Backlog { waiting, limit } = self.ctx.diag.backlog(&self.wanted.listener).unwrap_or_default();
        let listen_queue = waiting + self.queue.waiting();
        self.counters.max_queue = self.counters.max_queue.max(listen_queue);
        let mut counted = pm::Snapshot {
            now,
            ..pm::Snapshot::default()
        };
        let mut processes = Vec::new();
        let mut accepted = self.counters.totals.requests;
        if let Some(current) = &self.current {
            current.count(&mut counted);
            for (worker, view) in current.views() {
                accepted = accepted.saturating_add(view.requests);
                processes.extend(super::status::process(worker, &view, now));
            }
        }
        let draining = self.leaving.iter().map(|(generation, _)| generation).chain(&self.old);
        accepted += draining
            .flat_map(|generation| {
                generation
                    .views()
                    .into_iter()
                    .map(|(_, view)| view.requests)
                    .collect::<Vec<_>>()
            })
            .sum::<u64>();
        self.counters.max_active = self.counters.max_active.max(counted.peak);
        self.peak = self.peak.max(counted.peak);
        crate::status::Snapshot {
            pool: self.wanted.config.name.clone(),
            pm: self.wanted.config.pm,
            start_time: self.counters.start_time,
            start_since: now.saturating_sub(self.counters.started).as_secs(),
            accepted,
            listen_queue,
            max_listen_queue: self.counters.max_queue,
            listen_queue_len: limit,
            idle: counted.idle.len() as u32 + counted.starting,
            active: counted.active,
            max_active: self.counters.max_active,
            max_children_reached: self.counters.max_children_reached,
            slow_requests: self.counters.slow,
            processes,
        }
    }
}
