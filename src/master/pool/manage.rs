//! Carries out what the process manager decides: makes workers, asks them to leave, buries them, listens in their stead.
#![forbid(unsafe_code)]

use std::io;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::Pool;
use crate::api::Happened;
use crate::config::{self, Pm};
use crate::log::{MessageId, errno};
use crate::master::access_log::AccessLog;
use crate::master::context::State;
use crate::master::generation::Death;
use crate::master::watch;
use crate::pm::{self, Line};

/// Wait after an order that could not be given.
const TRY_AGAIN: Duration = Duration::from_secs(1);

impl Pool {
    pub(super) fn manage(&mut self, now: Duration, room: Option<u32>) {
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
            snapshot.waiting = self.ctx.diag.backlogs(&current.listeners).waiting;
            snapshot.waiting += self.queue.waiting();
        }
        if !current.can_spawn() || self.ctx.state.get() != State::Normal {
            return;
        }
        let decision = pm::decide(&limits, &mut self.memory, &snapshot);
        self.counters.max_children_reached += u32::from(decision.max_children_reached);
        let access_log = self.access_log.as_ref().map(AccessLog::file);
        let mut trouble = None;
        for index in 0..decision.spawn.min(current.free_slots()) {
            if let Err(reason) = current.spawn(access_log, index < decision.replace) {
                trouble = Some(reason);
                break;
            }
        }
        for id in &decision.ask {
            current.ask(*id, now);
        }
        for id in &decision.kill {
            current.kill(*id, now);
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

    /// Watches the listeners, or does not.
    fn listen(&mut self, wanted: bool) {
        if !wanted {
            self.listening.clear();
        } else if self.listening.is_empty() {
            let begin = |listener| watch::listener(listener, &self.ctx.events, self.id);
            let begun: io::Result<Vec<_>> = self.wanted.listeners.iter().map(begin).collect();
            match begun {
                Ok(watches) => self.listening = watches,
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
            self.listening.clear();
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

    pub(super) fn bury(&mut self, now: Duration) {
        let mut totals = self.counters.totals;
        let mut deaths = Vec::new();
        let current = self.current.as_ref().map(|current| current.place.generation);
        let mut next_look = None;
        for generation in self.generations() {
            let ours = Some(generation.place.generation) == current;
            deaths.extend(generation.bury(now, &mut totals).into_iter().map(|death| (ours, death)));
            next_look = next_look.into_iter().chain(generation.next_burial(now)).min();
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

    pub(super) fn enforce_limits(&mut self, now: Duration) {
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
}
