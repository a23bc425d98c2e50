//! How a generation gets its workers.

use std::io;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{Generation, Life};
use crate::control::Spawn;
use crate::log::{Level, MessageId};
use crate::master::process::Process;
use crate::master::watch;
use crate::master::worker::Worker;
use crate::pm::WorkerId;

/// So many workers that are not accepted end the conversation with their zygote. (One may have ended before it was looked at.)
const MOST_REFUSED: u32 = 3;

/// What a worker is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// One more.
    Grow,
    /// In the place of one that ended unasked.
    Replace,
    /// To stand ready, and accept nothing yet.
    Spare,
}

impl Generation {
    /// Whether it can make workers.
    pub fn can_spawn(&self) -> bool {
        self.life == Life::Ready && self.drain.is_none() && self.quit.is_none()
    }

    /// How many workers can be ordered: those that leave have their slots until they are gone.
    pub fn free_slots(&self) -> u32 {
        self.free.len() as u32
    }

    /// Orders a worker.
    ///
    /// # Errors
    /// A sentence.
    pub fn spawn(&mut self, errand: Errand) -> Result<(), String> {
        let slot = self
            .free
            .first()
            .copied()
            .ok_or("every slot of the scoreboard is taken")?;
        let number = self.ctx.number();
        let spawn = Spawn {
            worker: number,
            slot,
            max_requests: self.max_requests(),
            recycle_age: self.config.worker_recycle_age.mul_f64(1.0 - self.ctx.jitter() / 10.0),
        };
        let (mut worker, order) =
            Worker::prepare(&self.ctx, self.place, &self.config, spawn, (&self.closer, &self.reader))
                .map_err(|error| format!("a worker's descriptors cannot be made: {}", crate::log::errno(&error)))?;
        self.zygote
            .orders
            .try_send(order)
            .map_err(|_| "the zygote does not listen")?;
        self.free.remove(&slot);
        worker.replaces = errand == Errand::Replace;
        worker.held = errand == Errand::Spare;
        self.board.slot(slot as usize).reset();
        self.board.control(slot as usize).drain.store(0, SeqCst);
        self.board.control(slot as usize).terminate.store(0, SeqCst);
        let hold = u32::from(errand == Errand::Spare);
        self.board.control(slot as usize).hold.store(hold, SeqCst);
        self.workers.insert(worker.id, worker);
        Ok(())
    }

    /// `pm.max_requests` of one worker: up to a tenth less, so that those of a pool are not recycled together.
    fn max_requests(&self) -> u64 {
        let most = self.config.pm_max_requests;
        most - (((most / 10) as f64 * self.ctx.jitter()) as u64).min(most.saturating_sub(10))
    }

    /// The zygote has made a worker.
    pub fn spawned(&mut self, id: WorkerId, pid: i32) {
        let zygote = self.zygote.process.pid();
        let known = self.knows(pid);
        let unborn = |worker: &&mut Worker| worker.process.is_none();
        let Some(worker) = self.workers.get_mut(&id).filter(unborn) else {
            return self.break_off("it told of a worker that it was not asked for");
        };
        let (problem, lies) = match Process::below(pid, zygote) {
            Ok(Some(_)) if known => (format!("it is worker {pid} again"), true),
            Ok(Some(process)) => {
                match worker.go(&self.ctx, self.place, &self.config, &self.board, &self.reader, process) {
                    Ok(()) => {
                        let level = if worker.replaces { Level::Notice } else { Level::Debug };
                        return self.log(level, format_args!("child {pid} started"));
                    }
                    Err(error) => (crate::log::errno(&error), false),
                }
            }
            // It died before we looked: its zygote says how, or has already.
            Ok(None) => {
                worker.ended = worker.ended.or(Some(watch::now()));
                return;
            }
            // Its children are ours by now, and no one can tell any more which of ours it has made. There is a new one soon.
            Err(_) if self.zygote.process.has_ended() => {
                self.log(
                    Level::Debug,
                    format_args!("child {pid} was not started: zygote {zygote} has ended"),
                );
                return self.forget(id);
            }
            Err(problem) => (problem.to_string(), !problem.is_ours()),
        };
        self.log(
            Level::Warning,
            format_args!("a worker of zygote {zygote} is not accepted: {problem}"),
        );
        self.forget(id);
        // A want of descriptors is our own.
        self.refused += u32::from(lies);
        if lies && self.refused == MOST_REFUSED {
            self.break_off("what it calls workers are none");
        }
    }

    /// The zygote could not fork.
    pub fn not_spawned(&mut self, id: WorkerId, errno: i32) {
        if self.workers.get(&id).is_some_and(|worker| worker.process.is_none()) {
            let error = io::Error::from_raw_os_error(errno);
            self.log(
                Level::Error,
                format_args!("fork() failed: {}", crate::log::errno(&error)),
            );
            self.forget(id);
        }
    }

    fn knows(&self, pid: i32) -> bool {
        self.workers.values().any(|worker| worker.pid() == Some(pid))
    }

    /// Has done with a zygote that does not keep to the protocol: it is hostile, or its memory is torn. Its workers go on. That is
    /// said once: more of the same may have been on its way.
    pub fn break_off(&mut self, what: &str) {
        if self.is_silent() {
            return;
        }
        let zygote = self.zygote.process.pid();
        let text = format!("zygote {zygote} does not keep to the protocol: {what}");
        self.ctx
            .log
            .pool(&self.config.name)
            .identified(MessageId::ZygoteReplaced)
            .warning(text);
        self.zygote.hang_up();
        self.zygote.process.signal(Signal::SIGKILL);
    }

    /// Nothing more is heard from it.
    pub fn hang_up(&mut self) {
        self.zygote.hang_up();
    }

    /// Whether all that its zygote will ever say has been heard.
    pub fn is_silent(&self) -> bool {
        self.zygote.is_silent()
    }

    /// Whether the zygote has made no worker for so long, of those that it was ordered, that it will make none any more. It makes
    /// one after the other, which takes its time where they are many, or the machine has much else to do.
    pub fn hangs(&mut self, now: Duration) -> bool {
        const PATIENCE: Duration = Duration::from_secs(10);
        let next = self.next_birth().filter(|_| self.life == Life::Ready);
        self.awaited = next.map(|next| match self.awaited {
            Some((same, since)) if same == next => (next, since),
            _ => (next, now),
        });
        self.awaited.is_some_and(|(_, since)| since + PATIENCE <= now)
    }

    /// The first of the workers that the zygote has been ordered and has not made.
    pub fn next_birth(&self) -> Option<WorkerId> {
        let unborn = |worker: &&Worker| worker.process.is_none();
        self.workers.values().find(unborn).map(|worker| worker.id)
    }
}
