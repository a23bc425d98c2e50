//! `request_terminate_timeout`: ends requests that take too long, step by step.
//!
//! First PHP's own time-out inside the engine, so that shutdown functions run and PHP says where it was; then SIGTERM, by
//! which the worker dies at once; then SIGKILL. The deadlines are timers of the master over the begin of each request in the
//! scoreboard, not a poll.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::generation::Generation;
use super::worker::{Worker, describe_request};
use crate::scoreboard::{Scoreboard, Slot, Stage};

/// For PHP's own time-out, shutdown functions included.
const ENGINE: Duration = Duration::from_millis(100);

/// From SIGTERM to SIGKILL.
const TERM: Duration = Duration::from_millis(700);

/// How far the end of a request has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rung {
    /// Which request: its begin, in the scoreboard's nanoseconds.
    started: u64,
    step: Step,
    /// When the next step is due.
    next: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Engine,
    Term,
    Kill,
}

impl Generation {
    /// Ends the requests that are over their time; when to look again.
    pub fn enforce_limits(&mut self, now: Duration) -> Option<Duration> {
        let limit = self.config.request_terminate_timeout;
        if limit.is_zero() {
            return None;
        }
        let (ctx, pool) = (self.ctx.clone(), self.config.clone());
        let mut next: Option<Duration> = None;
        for worker in self.workers.values_mut().filter(|worker| worker.process.is_some()) {
            let slot = self.board.slot(worker.slot as usize);
            let started = slot.started.load(SeqCst);
            worker.rung = worker
                .rung
                .filter(|rung| rung.started == started && slot.stage() != Stage::Idle);
            let due = match worker.rung {
                Some(rung) => rung.next,
                None if counts(slot, pool.request_terminate_timeout_track_finished) => {
                    Duration::from_nanos(started) + limit
                }
                // Who begins a request now has all of it before him.
                None => now + limit,
            };
            if due <= now {
                if worker.rung.is_none() {
                    let took = now.saturating_sub(Duration::from_nanos(started));
                    let what = describe_request(&self.board.view(worker.slot as usize));
                    ctx.log.pool(&pool.name).warning(format_args!(
                        "child {}, {what} execution timed out ({}.{:06} sec), terminating",
                        worker.pid().unwrap_or_default(),
                        took.as_secs(),
                        took.subsec_micros(),
                    ));
                }
                climb(worker, &self.board, started, now);
            }
            let due = worker.rung.map_or(due, |rung| rung.next);
            next = Some(next.map_or(due, |next| next.min(due)));
        }
        next
    }
}

/// Whether a slot has a request whose time runs.
fn counts(slot: &Slot, track_finished: bool) -> bool {
    match slot.stage() {
        Stage::ReadingHeaders | Stage::Info | Stage::Running => true,
        Stage::Finishing => track_finished,
        Stage::None | Stage::Idle => false,
    }
}

/// The next step.
fn climb(worker: &mut Worker, board: &Scoreboard, started: u64, now: Duration) {
    let (step, signal, patience) = match worker.rung.map(|rung| rung.step) {
        None => (Step::Engine, Signal::SIGPROF, ENGINE),
        Some(Step::Engine) => (Step::Term, Signal::SIGTERM, TERM),
        Some(Step::Term | Step::Kill) => (Step::Kill, Signal::SIGKILL, TERM),
    };
    worker.rung = Some(Rung {
        started,
        step,
        next: now + patience,
    });
    // Before the signal: by it the worker knows that this request is meant.
    board
        .control(worker.slot as usize)
        .terminate
        .store(started.max(1), SeqCst);
    match step {
        Step::Kill => worker.kill(),
        Step::Engine | Step::Term => worker.signal(signal),
    }
}
