//! How a generation ends.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::{Generation, Life};
use crate::control::{ToWorker, ToZygote};
use crate::log::Level;
use crate::master::watch;
use crate::master::worker::Worker;
use crate::scoreboard::{STOPPING, Stage};

/// How the end of a drain is enforced.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Drain {
    /// Its begin.
    pub begun: Duration,
    /// SIGTERM, with leave to cut requests, then; None is never.
    pub limit: Option<Duration>,
    /// It was sent then.
    pub cut: Option<Duration>,
}

impl Generation {
    /// Workers finish their requests and leave; those that have not at `limit` are cut. `stopping`: nobody comes after them.
    pub fn start_drain(&mut self, limit: Option<Duration>, stopping: bool) {
        let begun = watch::now();
        self.drain = Some(Drain {
            begun,
            limit,
            cut: None,
        });
        self.board.header().ring_above.store(i64::MAX, SeqCst);
        let draining = if stopping { STOPPING } else { 1 };
        self.board.header().draining.store(draining, SeqCst);
        for worker in self.workers.values().filter(|worker| worker.process.is_some()) {
            worker.tell(&ToWorker::Drain, &[]);
        }
    }

    /// Until when it counts that idle workers of a draining generation have not left yet: they may accept one more
    /// connection. None when there are none, or they do not obey.
    pub fn accepts_until(&self, now: Duration) -> Option<Duration> {
        /// An idle worker leaves in a millisecond.
        const OBEYS: Duration = Duration::from_secs(2);
        let until = self.drain.as_ref()?.begun + OBEYS;
        let idle =
            |worker: &&Worker| worker.ended.is_none() && self.board.slot(worker.slot as usize).stage() == Stage::Idle;
        (until > now && self.workers.values().any(|worker| idle(&worker))).then_some(until)
    }

    /// Carries a drain on; when to call again.
    pub fn continue_drain(&mut self, now: Duration) -> Option<Duration> {
        /// Between SIGTERM and SIGKILL.
        const LAST: Duration = Duration::from_secs(1);
        let drain = self.drain.as_mut()?;
        // Those that it has been ordered and has not made are not wanted any more, and it may hang.
        if self.workers.values().all(|worker| worker.process.is_none()) {
            self.end_zygote(now);
            return self.quit;
        }
        let (signal, next) = match (drain.limit, drain.cut) {
            (None, _) => return None,
            (Some(limit), None) if limit > now => return Some(limit),
            (Some(_), None) => {
                drain.cut = Some(now);
                (Signal::SIGTERM, now + LAST)
            }
            (Some(_), Some(cut)) if cut + LAST > now => return Some(cut + LAST),
            (Some(_), Some(_)) => {
                // What the zygote has not made by now it never will; it must not keep the pool from its end.
                if self.next_birth().is_some() {
                    self.zygote.process.signal(Signal::SIGKILL);
                }
                (Signal::SIGKILL, now + LAST)
            }
        };
        for worker in self.workers.values() {
            let slot = worker.slot as usize;
            let started = self.board.slot(slot).started.load(SeqCst).max(1);
            self.board.control(slot).terminate.store(started, SeqCst);
            match signal {
                Signal::SIGKILL => worker.kill(),
                signal => worker.signal(signal),
            }
            self.log(
                Level::Debug,
                format_args!("sending {signal} to child {}", worker.pid().unwrap_or(0)),
            );
        }
        Some(next)
    }

    /// Tells the zygote to end, and kills it when it does not.
    pub fn end_zygote(&mut self, now: Duration) {
        const PATIENCE: Duration = Duration::from_secs(1);
        match self.quit {
            None => {
                self.quit = Some(now + PATIENCE);
                if self.zygote.orders.try_send((ToZygote::Quit, Vec::new())).is_err() {
                    self.zygote.process.signal(Signal::SIGKILL);
                }
            }
            Some(at) if at <= now => {
                self.zygote.process.signal(Signal::SIGKILL);
                self.quit = Some(now + PATIENCE);
            }
            Some(_) => {}
        }
    }

    /// Kills the zygote and every worker.
    pub fn kill_all(&self) {
        self.workers.values().for_each(Worker::kill);
        self.zygote.process.signal(Signal::SIGKILL);
    }

    /// The zygote has ended.
    pub fn zygote_ended(&mut self) {
        self.zygote.output.drain();
        self.life = Life::Ended;
        // What it had not made yet it never will.
        while let Some(id) = self.next_birth() {
            self.forget(id);
        }
    }

    /// Nothing of it is left.
    pub fn is_gone(&self) -> bool {
        self.life == Life::Ended && self.workers.is_empty()
    }
}
