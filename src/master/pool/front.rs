//! A full pool: while no worker is free, and only then, the master takes the connections that wait.
#![forbid(unsafe_code)]

use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::{Pool, TRY_AGAIN};
use crate::config;
use crate::log::errno;
use crate::master::listen::Listener;
use crate::master::queue::line::Rules;
use crate::master::status_server::Pages;
use crate::master::watch::{self, Events, PoolId, Watch};
use crate::pm;

/// A pool is full when no worker has been free, or has begun another request, for so long; or when there has been a line for so long
/// since somebody came to the listener. Before that, those that wait are the workers' own to take, which is cheaper for everybody.
const STUCK: Duration = Duration::from_millis(20);

/// Who waits for less may be about to be taken by a worker that is free.
const INSTANT: Duration = Duration::from_millis(1);

/// How often, at most, the master is told that connections come while all workers are at work: under load that is always so.
const CALM: Duration = Duration::from_millis(100);

/// What the master does at the listener of a pool that can have no more workers.
#[derive(Debug)]
pub enum Front {
    /// Nothing.
    Away,
    /// It wants to be told of a connection for which no worker waits.
    Listening(#[expect(dead_code, reason = "they work as long as they live")] Vec<Watch>),
    /// Somebody has come, then.
    Told(Duration),
    /// It takes what comes while no worker waits.
    Open(Vec<Watch>),
}

impl Front {
    /// Whether the master takes what waits.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }
}

/// How those that wait are treated.
pub fn rules(id: PoolId, pool: &config::Pool, events: &Events) -> Rules {
    Rules::new(Pages::new(id, pool, events), pool)
}

impl Pool {
    /// Looks after those that wait. `all_made`: no further worker can be made; `serves`: there is one.
    pub(super) fn attend_the_front(&mut self, now: Duration, pool: &pm::Snapshot, all_made: bool, serves: bool) {
        if let Some(at) = self.queue.expire(now) {
            self.wake_at(at);
        }
        let waiting = self.queue.waiting();
        let Some(current) = &self.current else { return };
        let busy = all_made && pool.starting == 0 && pool.idle.iter().all(|idle| idle.asked.is_some());
        let stuck_at = current.last_begin() + STUCK;
        let oldest = self.queue.oldest().filter(|_| waiting > 0);
        let waits_for = |time| oldest.is_some_and(|since| since + time <= now);
        let is_stale = waits_for(STUCK);
        // Whoever is idle has been woken for them, and a worker that is not need not look for them first. But a line that there
        // is has an end before who comes later has a turn, also where a worker is free for a moment.
        let line = &current.board.header().line;
        let is_line = waiting > 0 && (busy || is_stale || (line.load(SeqCst) != 0 && waits_for(INSTANT)));
        line.store(if is_line { waiting } else { 0 }, SeqCst);
        if is_stale && !busy {
            // The one that was woken for it may have taken something else instead, and nobody else was.
            current.wake_idle();
        }

        let bounded = self.queue.is_bounded();
        // A bounded queue's front stays where it is: it is made behind the workers, those that are still to come too.
        let settled = all_made && (!bounded || pool.starting == 0);
        // The workers take who is in line first: who is at the listener is to be in line. Nobody is refused for that.
        let is_held = is_line && serves && !bounded;
        let next = match std::mem::replace(&mut self.front, Front::Away) {
            // A limit is to hold however quickly the workers go on.
            Front::Open(watches) if bounded && settled => Ok(Front::Open(watches)),
            _ if bounded && settled => self.open(),
            Front::Told(at) if is_held && at + STUCK <= now => self.open(),
            Front::Told(_) if busy && stuck_at <= now => self.open(),
            Front::Open(watches) if is_held || (busy && stuck_at <= now) => Ok(Front::Open(watches)),
            Front::Open(_) => Ok(Front::Told(now)),
            _ if !settled && !is_held => Ok(Front::Away),
            Front::Away => self.hark(),
            Front::Told(at) if !busy && at + CALM <= now => self.hark(),
            same => Ok(same),
        };
        match next {
            Ok(front) => self.front = front,
            Err(error) => {
                self.log()
                    .error(format_args!("the listener cannot be watched: {}", errno(&error)));
                self.wake_at(now + TRY_AGAIN);
            }
        }
        match self.front {
            Front::Told(at) if is_held => self.wake_at((at + STUCK).max(now + Duration::from_millis(1))),
            Front::Told(_) if busy => self.wake_at(stuck_at.max(now + Duration::from_millis(1))),
            Front::Told(at) => self.wake_at(at + CALM),
            Front::Open(_) if !bounded => self.wake_at(now + CALM),
            _ => {}
        }
        self.queue.open(self.front.is_open());
        if waiting > 0 {
            // Somebody takes them; then the workers need not look there first any more.
            self.wake_at(now + CALM);
        }
    }

    /// The workers are alone with the listener.
    pub(super) fn leave_the_front(&mut self) {
        self.front = Front::Away;
        self.queue.open(false);
    }

    /// The master takes what waits, as before an upgrade.
    ///
    /// # Errors
    /// When the kernel refuses to watch the listener.
    pub(super) fn open_the_front(&mut self) -> io::Result<()> {
        self.front = self.open()?;
        self.queue.open(true);
        Ok(())
    }

    /// What the workers listen on: while a reload is under way those of the old ones, until the new ones take over.
    pub(super) fn listeners(&self) -> &[Rc<Listener>] {
        self.current
            .as_ref()
            .map_or(&self.wanted.listeners, |current| &current.listeners)
    }

    fn hark(&self) -> io::Result<Front> {
        let alarm = |listener| watch::alarm(listener, &self.ctx.events, self.id);
        let alarms = self.listeners().iter().map(alarm).collect::<io::Result<_>>();
        alarms.map(Front::Listening)
    }

    fn open(&self) -> io::Result<Front> {
        let name = &self.wanted.config.name;
        let receive = |listener: &Rc<Listener>| self.queue.receive(listener, &self.ctx.log, name);
        let open = self.listeners().iter().map(receive).collect::<io::Result<_>>();
        open.map(Front::Open)
    }

    /// After a reload that has changed `listen`: nobody of the old workers accepts any more, and as long as they have requests
    /// somebody may still come by their socket. Who does is the new workers' to serve.
    pub(super) fn attend_the_left(&mut self) {
        let is_in = |all: &[Rc<Listener>], one: &Rc<Listener>| all.iter().any(|other| Rc::ptr_eq(other, one));
        let old = self.old.iter().flat_map(|generation| &generation.listeners);
        let used: Vec<_> = old
            .filter(|listener| !is_in(self.listeners(), listener))
            .cloned()
            .collect();
        let (left, gone) = std::mem::take(&mut self.left)
            .into_iter()
            .partition(|(listener, _)| is_in(&used, listener));
        self.left = left;
        for (listener, watch) in gone {
            drop(watch);
            self.queue.receive_the_last(&listener);
        }
        for listener in used {
            if self.left.iter().any(|(left, _)| Rc::ptr_eq(left, &listener)) {
                continue;
            }
            match self.queue.receive(&listener, &self.ctx.log, &self.wanted.config.name) {
                Ok(watch) => self.left.push((listener, watch)),
                Err(error) => self
                    .log()
                    .error(format_args!("the old socket cannot be watched: {}", errno(&error))),
            }
        }
    }

    /// A connection came while no worker waited for one.
    pub fn on_alarm(&mut self) {
        if matches!(self.front, Front::Listening(_)) {
            self.front = Front::Told(watch::now());
            self.touch();
        }
    }
}
