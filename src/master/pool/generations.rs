//! From one generation to the next: starting one, moving over to it, draining the one before, sleeping and waking, the end.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::front;
use super::{PING_EVERY, Pool, SLOW_START, Wanted};
use crate::cli::worker;
use crate::config::{self, Pm};
use crate::control::{Exit, ToZygote};
use crate::log::{Level, MessageId};
use crate::master::access_log::AccessLog;
use crate::master::daemon::Scope;
use crate::master::generation::{Generation, LAST_WORDS, Life};
use crate::master::listen::are_same;
use crate::master::stamp::{Files, only_roots};
use crate::master::systemd::LONGEST_START;
use crate::master::watch::{self, GenerationId, Place};
use crate::master::worker::describe;
use crate::pm;

/// A generation whose replacement has not got its workers up by then drains all the same, unless all of these have ended at once.
const HAND_OVER: Duration = Duration::from_secs(2);

/// How long a zygote may take to say that it is well.
const PONG_WITHIN: Duration = Duration::from_secs(15);

/// A generation whose zygote falls earlier has not worked, though it was ready: where that goes on, the next ones must not
/// follow one another without a pause.
const LASTING: Duration = Duration::from_secs(1);

impl Pool {
    /// Starts a generation that is to take over.
    pub fn start(&mut self) {
        self.start_with(None);
    }

    fn start_with(&mut self, compiled: Option<OwnedFd>) {
        if let Some(abandoned) = self.next.take() {
            self.retire(abandoned);
        }
        (self.restart_at, self.reason, self.fallen) = (None, None, None);
        let Wanted {
            global,
            config,
            identity,
            listeners,
            ..
        } = &self.wanted;
        let place = Place {
            pool: self.id,
            generation: GenerationId(self.ctx.number()),
        };
        let log = self.access_log.as_ref();
        let queue = &self.queue;
        match Generation::start(
            &self.ctx, place, global, config, identity, listeners, queue, log, compiled,
        ) {
            Ok(generation) => self.next = Some(generation),
            Err(error) => self.start_failed(error.to_string()),
        }
    }

    /// Whether a generation that is not up yet has one before it that serves, and could go on.
    pub(super) fn can_go_back(&self) -> bool {
        !self.up && self.leaving.as_ref().is_some_and(|(before, _)| before.can_spawn())
    }

    /// Goes back to the generation that still serves, from one that does not come up.
    pub(super) fn go_back(&mut self, reason: String) {
        let Some((before, _)) = self.leaving.take() else { return };
        self.counters.shows_memory_peak = worker::is_since_8_4(&before.php);
        self.leave_the_front();
        self.begin_anew(&pm::Limits::from(&*before.config), 0);
        self.up = true;
        if let Some(failing) = self.current.replace(before) {
            self.retire(failing);
        }
        self.start_failed(reason);
    }

    /// Forgets what was about the current generation: there is another one, which takes over from so many busy workers.
    fn begin_anew(&mut self, limits: &pm::Limits, busy: u32) {
        self.memory = pm::Memory::new(limits, busy);
        (self.lost, self.stillborn) = (0, 0);
        (self.pinged, self.ping_at, self.idle_since) = (None, watch::now() + PING_EVERY, None);
        self.listening.clear();
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

    /// A reload: the next generation is made from this, at once where that makes a difference.
    pub fn reload(&mut self, wanted: Wanted, access_log: Option<AccessLog>, scope: Scope) {
        let renewed = scope == Scope::All || !self.is_up_to_date(&wanted);
        if self.current.is_none() {
            // Asleep: it is the new socket that wakes it.
            self.listening.clear();
        }
        self.wanted = wanted;
        let continued = match (&self.access_log, &access_log) {
            (Some(before), Some(now)) => before.continue_in(now),
            // It could not be opened.
            (Some(_), None) => self.wanted.config.access_log.is_some(),
            _ => false,
        };
        if !continued {
            self.access_log = access_log.map(Rc::new);
        }
        self.serve_status();
        self.queue
            .set_rules(front::rules(self.id, &self.wanted.config, &self.ctx.events));
        if !renewed {
            self.log().notice("nothing has changed; its workers go on");
        } else if self.current.is_some() || self.next.is_some() || !self.sleeps_at_first() {
            let warm = !self.wanted.config.reload_warm.is_zero();
            let serving = self.current.as_ref().filter(|current| warm && current.can_spawn());
            let compiled = serving.and_then(Generation::compiled);
            self.start_with(compiled);
        } else if self.restart_at.is_none() {
            // It sleeps, and what was wrong with it may not be any more.
            self.failed = None;
        }
        self.touch();
    }

    /// Whether the generation that serves is what would be made from this.
    fn is_up_to_date(&self, wanted: &Wanted) -> bool {
        // Where a section stands in its file says nothing about the pool.
        let plain = |pool: &Rc<config::Pool>| config::Pool {
            line: 0,
            ..(**pool).clone()
        };
        // Where lines go decides what a worker does with its own.
        let of_the_log = |global: &config::Global| (global.log_level, global.log_limit, global.error_log_named);
        let before = &self.wanted;
        let unchanged = plain(&before.config) == plain(&wanted.config)
            && of_the_log(&before.global) == of_the_log(&wanted.global)
            && before.identity == wanted.identity
            && are_same(&before.listeners, &wanted.listeners);
        let current = self.current.as_ref();
        let serves = current.is_some_and(|current| current.can_spawn() && current.is_up_to_date());
        unchanged && serves && self.next.is_none() && self.failed.is_none() && self.restart_at.is_none()
    }

    pub(super) fn ready(&mut self, id: GenerationId, php: String, mapped: Vec<PathBuf>) {
        let Some(mut next) = self
            .next
            .take_if(|next| next.place.generation == id && next.life == Life::Starting)
        else {
            return;
        };
        next.life = Life::Ready;
        next.trace_layout = next.board.header().trace_layout();
        self.counters.generations += 1;
        next.mapped = Files::now(only_roots(mapped));
        next.php = php.chars().filter(char::is_ascii_graphic).take(32).collect();
        self.counters.shows_memory_peak = worker::is_since_8_4(&next.php);
        // php-fpm's log has no line for it.
        let level = match self.ctx.log.keeps_fields() {
            true => Level::Notice,
            false => Level::Debug,
        };
        self.log().identified(MessageId::GenerationReady).log(
            level,
            format_args!("zygote {} is ready, PHP {}", next.zygote().pid(), next.php),
        );
        (self.restart_at, self.failed) = (None, None);
        if self
            .current
            .as_ref()
            .is_some_and(|current| !are_same(&current.listeners, &next.listeners))
        {
            self.leave_the_front();
        }
        let can_go_back = self.can_go_back();
        let replaced = self.current.replace(next);
        let earlier = self.leaving.take().map(|(earlier, _)| earlier);
        // One that did not come up is not what this one follows.
        let (before, over) = match can_go_back {
            true => (earlier, replaced),
            false => (replaced, earlier),
        };
        let busy = before.as_ref().map_or(0, |before| {
            let mut snapshot = pm::Snapshot {
                now: watch::now(),
                ..pm::Snapshot::default()
            };
            before.count(&mut snapshot);
            snapshot.active
        });
        self.begin_anew(&pm::Limits::from(&*self.wanted.config), busy);
        (self.up, self.up_by) = (false, watch::now() + SLOW_START);
        if let Some(over) = over {
            self.retire(over);
        }
        self.leaving = before.map(|before| (before, watch::now() + HAND_OVER));
    }

    /// A zygote's process has ended.
    pub fn zygote_ended(&mut self, id: GenerationId, exit: Exit) {
        self.touch();
        let Some(generation) = self.generation(id) else { return };
        generation.zygote_ended();
        let (pid, begun, told) = (
            generation.zygote().pid(),
            generation.begun,
            generation.quit.is_some() || generation.drain.is_some(),
        );
        if self.next.as_ref().is_some_and(|next| next.place.generation == id) {
            self.fallen = Some((exit, watch::now() + LAST_WORDS));
        } else if !told
            && self
                .current
                .as_ref()
                .is_some_and(|current| current.place.generation == id)
        {
            if self.can_go_back() {
                return self.go_back(format!("its zygote {pid} exited {}", describe(Some(exit))));
            }
            self.log().warning(format_args!(
                "zygote {pid} exited {}; a new generation takes over",
                describe(Some(exit))
            ));
            self.replace_fallen(begun);
        }
    }

    /// Another generation is to follow one that began then and has fallen.
    pub(super) fn replace_fallen(&mut self, begun: Duration) {
        let now = watch::now();
        self.is_over(begun, now);
        self.restart.failed(now, self.ctx.jitter());
        self.restart_at = Some(self.restart.wait(now).unwrap_or(now));
    }

    /// A generation that began then is over: if it lasted, what fails next is a first failure.
    fn is_over(&mut self, begun: Duration, now: Duration) {
        if begun + LASTING <= now {
            self.restart.worked();
        }
    }

    /// Ends a start that comes to nothing.
    pub(super) fn check_start(&mut self, now: Duration) {
        let Some(next) = &self.next else { return };
        if let Some((exit, until)) = self.fallen {
            if self.reason.is_none() && !next.is_silent() && until > now {
                return self.wake_at(until);
            }
            let end = format!("its zygote {} exited {}", next.zygote().pid(), describe(Some(exit)));
            let reason = self.reason.take().unwrap_or(end);
            self.old.extend(self.next.take());
            self.fallen = None;
            return self.start_failed(reason);
        }
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
    pub(super) fn check_zygote(&mut self, now: Duration) {
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
            // What it is ordered to make comes first, and has a limit of its own.
            Some(_) if current.next_birth().is_some() => {
                self.pinged = Some(now);
                self.wake_at(now + PONG_WITHIN);
            }
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
    pub(super) fn fall_asleep(&mut self, now: Duration) {
        let limit = self.wanted.config.zygote_idle_time;
        let Some(current) = &self.current else { return };
        // What could not be followed by another one is all that there is.
        let serves_on = self.failed.is_some();
        let busy = !current.workers.is_empty() || self.next.is_some() || self.leaving.is_some() || serves_on;
        if busy || self.wanted.config.pm != Pm::Ondemand || limit.is_zero() {
            self.idle_since = None;
            return;
        }
        let since = *self.idle_since.get_or_insert(now);
        if since + limit > now {
            return self.wake_at(since + limit);
        }
        self.idle_since = None;
        if self.ctx.diag.backlogs(&current.listeners).waiting + self.queue.waiting() > 0 {
            return;
        }
        // Who has come since then is seen by a watch that begins anew.
        self.listening.clear();
        if let Some(current) = self.current.take() {
            self.log()
                .debug("nothing to do: the zygote ends until the next request");
            self.retire(current);
            self.touch();
        }
    }

    pub(super) fn retire(&mut self, mut generation: Generation) {
        let (now, limit) = (watch::now(), self.wanted.global.process_control_timeout);
        if generation.life == Life::Ready {
            self.is_over(generation.begun, now);
        }
        generation.start_drain((!limit.is_zero()).then(|| now + limit), false);
        self.old.push(generation);
    }

    pub(super) fn drain(&mut self, now: Duration) {
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
        if !self.stopping {
            self.attend_the_left();
        }
        if let Some(at) = next_look {
            self.wake_at(at);
        }
    }

    /// Ends it: requests may go on until `limit`.
    pub fn stop(&mut self, limit: Duration) {
        (self.stopping, self.starved) = (true, false);
        (self.listening, self.status) = (Vec::new(), None);
        self.left.clear();
        self.leave_the_front();
        if let Some(next) = self.next.take() {
            self.retire(next);
        }
        let leaving = self.leaving.take().map(|(generation, _)| generation);
        self.old.extend(self.current.take());
        self.old.extend(leaving);
        // Before the workers are told, so that they find them.
        self.queue.hand_out_the_new();
        for generation in &mut self.old {
            generation.start_drain(Some(limit), true);
        }
        self.touch();
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        for generation in self.generations() {
            generation.kill_all();
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

    /// Nothing of it is left.
    pub fn is_gone(&self) -> bool {
        self.stopping && self.old.is_empty()
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
}
