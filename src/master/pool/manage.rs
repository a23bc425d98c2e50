//! Carries out what the process manager decides: makes workers, asks them to leave, buries them, listens in their stead.
#![forbid(unsafe_code)]

use std::io;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::{Pool, TRY_AGAIN};
use crate::api::Happened;
use crate::config::{self, Pm};
use crate::log::{MessageId, errno};
use crate::master::context::State;
use crate::master::generation::{Death, Errand, Generation};
use crate::master::watch;
use crate::pm::{self, Line};
use crate::scoreboard::Header;

/// A worker that has answered is free again within less.
const A_MOMENT: Duration = Duration::from_millis(1);

/// How often a pool that `process.max` leaves without a worker looks for one.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(20);

/// Since when somebody has waited at a full pool.
#[derive(Debug, Default)]
pub(super) struct Waited(Option<Duration>);

impl Waited {
    /// A look at those who wait. Some: when they count as a line, which may be now.
    fn look(&mut self, now: Duration, waiting: u32) -> Option<Duration> {
        self.0 = self.0.or(Some(now)).filter(|_| waiting > 0);
        self.0.map(|since| since + A_MOMENT)
    }
}

impl Pool {
    /// Counts who waits at a full pool: who comes while a worker is idle is only on the way to it, and so may be who is there for a
    /// moment, on the way to one that has answered.
    fn count_line(&mut self, now: Duration, waiting: u32) {
        match self.waited.look(now, waiting) {
            Some(at) if at <= now => self.counters.max_queue = self.counters.max_queue.max(waiting),
            Some(at) => self.wake_at(at),
            None => {}
        }
    }

    pub(super) fn manage(&mut self, now: Duration, room: Option<u32>) {
        let config = self.wanted.config.clone();
        let earlier = self.leaving.iter().map(|(generation, _)| generation).chain(&self.old);
        let draining = earlier.map(|generation| generation.workers.len() as u32).sum::<u32>();
        let Some(current) = &mut self.current else {
            // Asleep, or not yet awake: a connection wakes it.
            self.starved = false;
            if let Some(at) = self.queue.expire(now) {
                self.wake_at(at);
            }
            self.leave_the_front();
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
        snapshot.recycling.left = current.departures(now);
        current.count(&mut snapshot);
        snapshot.peak = snapshot.peak.max(std::mem::take(&mut self.peak));
        let mut limits = pm::Limits::from(&*current.config);
        // Workers of older generations come on top, up to a bound; each one more keeps a place of this generation until it
        // has finished its request. Who needs that place waits, as in a pool that is full.
        let overlap = config.reload_overlap.unwrap_or(limits.max_children);
        limits.max_children = limits.max_children.saturating_sub(draining.saturating_sub(overlap));
        let can_spawn = current.can_spawn();
        // Without a worker nobody would empty the queue: then the socket is the safer place.
        let serves = snapshot.active > 0 || !snapshot.idle.is_empty();
        let all_made = serves && (snapshot.total() >= limits.max_children || room == Some(0) || !can_spawn);
        self.attend_the_front(now, &snapshot, all_made, serves);
        let Some(current) = &mut self.current else { return };
        self.counters.max_active = self.counters.max_active.max(snapshot.peak);
        let full = all_made && snapshot.idle.is_empty();
        if full || !serves || limits.style != Pm::Static {
            snapshot.waiting = self.ctx.diag.backlogs(&current.listeners).waiting;
            snapshot.waiting += self.queue.waiting();
        }
        self.starved = room == Some(0) && snapshot.total() == 0 && snapshot.waiting > 0;
        if self.starved {
            self.wake_at(now + LOOK_FOR_ROOM);
        }
        self.count_line(now, if full { snapshot.waiting } else { 0 });
        let Some(current) = &mut self.current else { return };
        if !can_spawn || self.ctx.state.get() != State::Normal {
            return;
        }
        let decision = pm::decide(&limits, &mut self.memory, &snapshot);
        self.counters.max_children_reached += u32::from(decision.max_children_reached);
        let mut trouble = None;
        (0..decision.release).for_each(|_| current.release(now));
        (0..decision.dismiss).for_each(|_| current.dismiss(now));
        decision.retire.iter().for_each(|id| current.retire(*id));
        let errands = (0..decision.spawn + decision.hold).map(|index| match index {
            _ if index >= decision.spawn => Errand::Spare,
            _ if index < decision.replace => Errand::Replace,
            _ => Errand::Grow,
        });
        for errand in errands.take(current.free_slots() as usize) {
            if let Err(reason) = current.spawn(errand) {
                trouble = Some(reason);
                break;
            }
            self.counters.spawned += 1;
        }
        for id in &decision.ask {
            current.ask(*id, now);
        }
        for id in &decision.kill {
            current.kill(*id, now);
        }
        let total = snapshot.total() + decision.release + decision.spawn;
        let available = snapshot.idle.iter().filter(|idle| idle.asked.is_none()).count() as u32;
        let starting = snapshot.starting + decision.release + decision.spawn;
        // Who begins a request rings when fewer than this many are idle then.
        let spare = match limits.style {
            Pm::Static => None,
            _ if total >= limits.max_children => (available > 0).then_some(1),
            Pm::Dynamic => Some(limits.min_spare),
            Pm::Ondemand => Some(1),
        };
        let serving = i64::from(snapshot.counted - snapshot.counted_asked + available);
        let ring_above = spare.map_or(i64::MAX, |spare| serving - i64::from(spare));
        let header = current.board.header();
        header.ring_above.store(ring_above, SeqCst);
        // Somebody may have begun a request between the count and the new bell, unheard.
        let missed = Header::active_in(header.active.load(SeqCst)) > ring_above.max(i64::from(snapshot.counted));

        let hung = current.hangs(now).then(|| (current.zygote().pid(), current.begun));

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
        let works = !snapshot.idle.is_empty() || snapshot.active > 0;
        let fails = !works && self.stillborn > 0;
        // That nobody is being made may mean that all have ended at once; where another generation serves, that is not to be the end
        // of it.
        self.up |= starting == 0 && (works || self.leaving.is_none() || (snapshot.total() == 0 && !fails));
        self.up |= self.leaving.is_none() && self.up_by <= now;
        let over = self.up || self.leaving.as_ref().is_some_and(|(_, until)| *until <= now);
        if over && fails && self.can_go_back() {
            return self.go_back("its workers end as they start".to_owned());
        }
        if let Some((generation, _)) = self.leaving.take_if(|_| over) {
            self.retire(generation);
            self.touch();
        }
        if !self.up {
            self.wake_at(now + Duration::from_millis(20));
        }
        if let Some((pid, begun)) = hung.filter(|_| self.next.is_none() && self.restart_at.is_none()) {
            self.log().warning(format_args!(
                "zygote {pid} does not answer; a new generation takes over"
            ));
            self.replace_fallen(begun);
            self.touch();
        } else if starting > 0 {
            // A queue with limits waits for them.
            let soon = Duration::from_millis(20);
            self.wake_at(now + if self.queue.is_bounded() { soon } else { TRY_AGAIN });
        }
        self.listen(limits.style != Pm::Static && available == 0 && total < limits.max_children);
    }

    /// Watches the listeners, or does not.
    fn listen(&mut self, wanted: bool) {
        if !wanted {
            self.listening.clear();
        } else if self.listening.is_empty() {
            let begin = |listener| watch::listener(listener, &self.ctx.events, self.id);
            let begun: io::Result<Vec<_>> = self.listeners().iter().map(begin).collect();
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
        if death.unasked && death.idle {
            // The kernel wakes one worker for a connection: it may have been this one.
            self.current.iter().for_each(Generation::wake_idle);
        }
        if death.stillborn {
            self.stillborn += 1;
            self.memory.backoff.failed(now, self.ctx.jitter());
        } else {
            self.memory.backoff.worked();
        }
        let global = &self.wanted.global;
        let (threshold, interval) = (
            global.emergency_restart_threshold as usize,
            global.emergency_restart_interval,
        );
        // Where they come to nothing another one serves still.
        if !death.suspect || threshold == 0 || interval.is_zero() || self.can_go_back() {
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
        let (mut slow, mut timed_out, mut next) = (0, 0, None);
        let threads = self.tracers.clone();
        for generation in self.generations() {
            let enforced = generation.enforce_limits(now, &threads);
            slow += enforced.slow;
            timed_out += enforced.timed_out;
            next = next.into_iter().chain(enforced.next).min();
        }
        self.counters.slow += slow;
        self.counters.timed_out += timed_out;
        if let Some(at) = next {
            self.wake_at(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_there_at_one_look_alone_is_no_line() {
        let (mut waited, ms) = (Waited::default(), Duration::from_millis);
        assert_eq!(waited.look(ms(10), 1), Some(ms(11)));
        // He was on his way to a worker; and so is the next one.
        assert_eq!(waited.look(ms(11), 0), None);
        assert_eq!(waited.look(ms(20), 1), Some(ms(21)));
        assert_eq!(waited.look(ms(21), 2), Some(ms(21)));
    }
}
