//! A pool for a successor of this process, and made again by it.
#![forbid(unsafe_code)]

use std::io;
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Counters, Pool, Wanted, front};
use crate::config;
use crate::master::access_log::{AccessLog, Restored, SavedAccessLog};
use crate::master::context::Context;
use crate::master::generation::{Generation, SavedGeneration};
use crate::master::listen::Sockets;
use crate::master::queue::{Queue, SavedQueue};
use crate::master::saved::{Kept, Restorer, Saver};
use crate::master::users::Identity;
use crate::master::watch::PoolId;
use crate::pm;

/// A pool, for a successor.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedPool {
    id: PoolId,
    global: config::Global,
    config: config::Pool,
    identity: Identity,
    /// The keys of its sockets.
    listener: String,
    #[serde(default)]
    further: Vec<String>,
    status_listener: Option<String>,
    access_logs: Vec<SavedAccessLog>,
    /// The name of that of them which the next generation takes.
    access_log: Option<Kept>,
    queue: SavedQueue,
    closing: Vec<Kept>,
    current: Option<SavedGeneration>,
    next: Option<SavedGeneration>,
    leaving: Option<(SavedGeneration, Duration)>,
    old: Vec<SavedGeneration>,
    restart_at: Option<Duration>,
    failed: Option<String>,
    up: bool,
    stopping: bool,
    crashes: Vec<Duration>,
    counters: Counters,
    /// The master takes what waits at the listener.
    #[serde(default)]
    open: bool,
}

impl Pool {
    /// Whether its zygotes have taken all that they were told: what they have not goes with this process.
    pub fn has_all_orders(&mut self) -> bool {
        self.generations().all(|generation| generation.has_all_orders())
    }

    /// Whether nothing is being done that its processes can hold up: an exec, and the end, would wait for it.
    pub fn is_quiet(&self) -> bool {
        self.queue.reader().is_quiet() && self.queue.is_quiet()
    }

    /// Reads no more of it, or goes on.
    pub fn pause_reading(&self, paused: bool) {
        self.queue.reader().pause(paused);
    }

    /// Closes no descriptor of what is saved meanwhile, or goes on.
    pub fn pause_closing(&self, paused: bool) {
        self.queue.closer().pause(paused);
    }

    /// What is to go on.
    pub fn save(&self, saver: &mut Saver) -> SavedPool {
        let wanted = &self.wanted;
        let access_logs = self.access_logs().map(|log| log.save(saver)).collect();
        let access_log = self.access_log.as_ref().map(|log| log.name(saver));
        let mut save = |generation: &Generation| generation.save(saver);
        let (current, next) = (self.current.as_ref().map(&mut save), self.next.as_ref().map(&mut save));
        let leaving = self
            .leaving
            .as_ref()
            .map(|(generation, until)| (save(generation), *until));
        let old = self.old.iter().map(&mut save).collect();
        SavedPool {
            id: self.id,
            global: (*wanted.global).clone(),
            config: (*wanted.config).clone(),
            identity: wanted.identity.clone(),
            listener: wanted.listeners[0].key(),
            further: wanted.listeners[1..].iter().map(|listener| listener.key()).collect(),
            status_listener: wanted.status_listener.as_ref().map(|listener| listener.key()),
            access_logs,
            access_log,
            queue: self.queue.save(saver),
            closing: self.queue.closer().save(saver),
            current,
            next,
            leaving,
            old,
            restart_at: self.restart_at,
            failed: self.failed.clone(),
            up: self.up,
            stopping: self.stopping,
            crashes: self.crashes.iter().copied().collect(),
            counters: self.counters.clone(),
            open: self.front.is_open(),
        }
    }

    /// Goes on with it.
    ///
    /// # Errors
    /// When a descriptor is missing.
    pub fn restore(ctx: &Rc<Context>, saved: SavedPool, sockets: &Sockets, fds: &mut Restorer) -> io::Result<Self> {
        let status_listener = saved.status_listener.map(|key| sockets.known(&key)).transpose()?;
        let wanted = Wanted {
            global: Rc::new(saved.global),
            config: Rc::new(saved.config),
            identity: saved.identity,
            listeners: sockets.all_known(&saved.listener, &saved.further)?,
            status_listener,
        };
        let logs = saved.access_logs.into_iter().map(|log| AccessLog::restore(log, fds));
        let logs = logs.collect::<io::Result<Restored>>()?;
        let access_log = saved.access_log.and_then(|log| logs.get(&log)).cloned();
        let rules = front::rules(saved.id, &wanted.config, &ctx.events);
        let queue = Queue::restore(saved.id, ctx, rules, saved.queue, fds)?;
        queue.closer().restore(saved.closing, fds)?;
        let mut pool = Self::with(ctx, saved.id, wanted, access_log, queue);
        let mut restore =
            |generation| Generation::restore(ctx, saved.id, &pool.queue, (sockets, &logs), generation, fds);
        let current = saved.current.map(&mut restore).transpose()?;
        let next = saved.next.map(&mut restore).transpose()?;
        let leaving = saved
            .leaving
            .map(|(generation, until)| io::Result::Ok((restore(generation)?, until)));
        let leaving = leaving.transpose()?;
        let old = saved.old.into_iter().map(&mut restore).collect::<io::Result<_>>()?;
        (pool.current, pool.next, pool.leaving, pool.old) = (current, next, leaving, old);
        if let Some(current) = pool.current.as_ref().filter(|_| !saved.up) {
            pool.memory = pm::Memory::new(&pm::Limits::from(&*current.config), current.workers.len() as u32);
        }
        pool.restart_at = saved.restart_at;
        pool.failed = saved.failed;
        (pool.up, pool.stopping) = (saved.up, saved.stopping);
        pool.crashes = saved.crashes.into();
        pool.counters = saved.counters;
        if saved.open {
            pool.open_the_front()?;
        }
        if !pool.stopping {
            pool.serve_status();
        }
        Ok(pool)
    }
}
