//! `request_slowlog_timeout` and `request_terminate_timeout`: timers of the master over the begin of each request in the
//! scoreboard, not a poll.
//!
//! A request over its time is ended step by step. First PHP's own time-out inside the engine, so that shutdown functions
//! run and PHP says where it was; then SIGTERM, by which the worker dies at once; then SIGKILL.
#![forbid(unsafe_code)]

use std::rc::Rc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::context::Context;
use super::generation::Generation;
use super::trace;
use super::worker::{Worker, describe_request, fields_of};
use crate::config::Pool;
use crate::log::MessageId;
use crate::scoreboard::{Scoreboard, SlotView, Stage};

/// For PHP's own time-out, shutdown functions included.
const ENGINE: Duration = Duration::from_millis(100);

/// From SIGTERM to SIGKILL.
const TERM: Duration = Duration::from_millis(700);

/// A request that has come meanwhile is looked at again.
const AGAIN: Duration = Duration::from_millis(1);

/// How far the end of a request has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rung {
    /// Which request: its begin, in the scoreboard's nanoseconds.
    started: u64,
    step: Step,
    /// When the next step is due.
    next: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    Engine,
    Term,
    Kill,
}

/// What came of a look at all workers of a generation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Enforced {
    /// Requests found slow.
    pub slow: u64,
    /// Requests found to be over their time.
    pub timed_out: u64,
    /// When to look again.
    pub next: Option<Duration>,
}

impl Generation {
    /// Traces the requests that are slow, and ends those that are over their time.
    pub fn enforce_limits(&mut self, now: Duration, threads: &trace::Threads) -> Enforced {
        let mut enforced = Enforced::default();
        let (ctx, pool) = (self.ctx.clone(), self.config.clone());
        if pool.request_slowlog_timeout.is_zero() && pool.request_terminate_timeout.is_zero() {
            return enforced;
        }
        let of = self.traceable(threads);
        for worker in self.workers.values_mut().filter(|worker| worker.process.is_some()) {
            let slot = self.board.slot(worker.slot as usize);
            let request = Current {
                ctx: &ctx,
                pool: &pool,
                board: &self.board,
                of,
                stage: slot.stage(),
                started: slot.started.load(SeqCst),
            };
            let (slow, slow_due) = request.trace_when_slow(worker, &self.identity, now);
            enforced.slow += u64::from(slow);
            let (over, over_due) = request.end_when_over(worker, now);
            enforced.timed_out += u64::from(over);
            let due = slow_due.into_iter().chain(over_due);
            enforced.next = enforced.next.into_iter().chain(due).min();
        }
        enforced
    }
}

/// What a worker does at this moment.
struct Current<'a> {
    ctx: &'a Rc<Context>,
    pool: &'a Pool,
    board: &'a Scoreboard,
    of: trace::Traceable<'a>,
    /// Read before `started`: so that no request that begins in between is taken for the one before it.
    stage: Stage,
    /// The begin of the request under way, if there is one.
    started: u64,
}

impl Current<'_> {
    fn begin(&self) -> Duration {
        Duration::from_nanos(self.started)
    }

    /// php-fpm's line for a request that is slow, or over its time.
    fn line(&self, worker: &Worker, view: &SlotView, now: Duration, what: &str) -> String {
        let took = now.saturating_sub(self.begin());
        let request = describe_request(view);
        let pid = worker.pid().unwrap_or_default();
        let (seconds, micros) = (took.as_secs(), took.subsec_micros());
        format!("child {pid}, {request} {what} ({seconds}.{micros:06} sec)")
    }

    /// Whether it has become slow, and when it would.
    fn trace_when_slow(
        &self,
        worker: &mut Worker,
        identity: &super::users::Identity,
        now: Duration,
    ) -> (bool, Option<Duration>) {
        let limit = self.pool.request_slowlog_timeout;
        if limit.is_zero() {
            return (false, None);
        }
        let running = self.stage == Stage::Running;
        // A request is traced once; one that begins now has all of its time before it. (So has one that follows a traced one: a
        // worker that says otherwise would have the log filled.)
        let due = match running && worker.traced != Some(self.started) {
            true => (self.begin() + limit).max(worker.traced_at.map_or(Duration::ZERO, |at| at + limit)),
            false => now + limit,
        };
        if due > now {
            return (false, Some(due));
        }
        if trace::is_read(&worker.tracing) && due + trace::PATIENCE > now {
            // Somebody has asked for a trace of it just now.
            return (false, Some(now + trace::PATIENCE / 20));
        }
        let view = self.board.view(worker.slot as usize);
        if !self.is_still_there(worker) {
            return (false, Some(now + AGAIN));
        }
        (worker.traced, worker.traced_at) = (Some(self.started), Some(now));
        let took = now.saturating_sub(self.begin());
        let line = self.line(worker, &view, now, "executing too slow") + ", logging";
        let found = trace::Found {
            worker,
            view,
            took,
            line,
        };
        trace::slow(self.ctx, self.pool, identity, self.of, found);
        (true, Some(now + limit))
    }

    /// Takes the next step when it is due. Whether it is the first one, and when to look again.
    fn end_when_over(&self, worker: &mut Worker, now: Duration) -> (bool, Option<Duration>) {
        let limit = self.pool.request_terminate_timeout;
        if limit.is_zero() {
            return (false, None);
        }
        let same = |rung: &Rung| rung.started == self.started && self.stage.is_active();
        worker.rung = worker.rung.filter(same);
        let due = match worker.rung {
            Some(rung) => rung.next,
            None if self.counts() => self.begin() + limit,
            None => now + limit,
        };
        if due > now {
            return (false, Some(due));
        }
        let first = worker.rung.is_none();
        if first {
            let view = self.board.view(worker.slot as usize);
            if !self.is_still_there(worker) {
                return (false, Some(now + AGAIN));
            }
            let line = self.line(worker, &view, now, "execution timed out") + ", terminating";
            let told = view.text.unwrap_or_default();
            let about = fields_of(&self.pool.name, worker.pid().unwrap_or_default(), &told);
            let log = self.ctx.log.about(about);
            log.identified(MessageId::RequestTimeout).warning(line);
        }
        self.climb(worker, now);
        (first, worker.rung.map(|rung| rung.next))
    }

    /// Whether what was read of its request meanwhile is that of this one.
    fn is_still_there(&self, worker: &Worker) -> bool {
        let slot = self.board.slot(worker.slot as usize);
        slot.stage().is_active() && slot.started.load(SeqCst) == self.started
    }

    /// Whether there is a request whose time runs.
    fn counts(&self) -> bool {
        match self.stage {
            Stage::ReadingHeaders | Stage::Info | Stage::Running => true,
            Stage::Finishing => self.pool.request_terminate_timeout_track_finished,
            Stage::None | Stage::Held | Stage::Idle | Stage::Left => false,
        }
    }

    fn climb(&self, worker: &mut Worker, now: Duration) {
        let (step, patience) = match worker.rung.map(|rung| rung.step) {
            None => (Step::Engine, ENGINE),
            Some(Step::Engine) => (Step::Term, TERM),
            Some(Step::Term | Step::Kill) => (Step::Kill, TERM),
        };
        worker.rung = Some(Rung {
            started: self.started,
            step,
            next: now + patience,
        });
        // Before the signal: by it the worker knows that this request is meant.
        self.board
            .control(worker.slot as usize)
            .terminate
            .store(self.started.max(1), SeqCst);
        match step {
            Step::Engine => worker.signal(Signal::SIGPROF),
            Step::Term => worker.signal(Signal::SIGTERM),
            Step::Kill => worker.kill(),
        }
    }
}
