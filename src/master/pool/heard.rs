//! What the pool's processes say, and how they end. All of it is hostile input.
#![forbid(unsafe_code)]

use std::time::Duration;

use nix::sys::signal::Signal;

use super::{PING_EVERY, Pool};
use crate::config::or_never;
use crate::control::{ChannelError, FromWorker, FromZygote, LOG_BYTES, LogMessage, ToWorker, unsealed};
use crate::master::generation::Life;
use crate::master::watch::{self, GenerationId, Heard};
use crate::master::worker::{Worker, fields_of};
use crate::pm::WorkerId;
use crate::scoreboard::{TextView, monotonic_ns};

impl Pool {
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
                    message: FromZygote::Failed { reason },
                    ..
                }) => self.gave_reason(id, reason),
                _ => generation.hang_up(),
            }
            return;
        }
        match result {
            Ok(Heard { message, .. }) => match message {
                FromZygote::Ready { .. } if generation.life != Life::Starting => {
                    generation.break_off("it is ready once more");
                }
                FromZygote::Ready { php, mapped } => self.ready(id, php, mapped),
                FromZygote::Failed { reason } => self.gave_reason(id, reason),
                FromZygote::Spawned { worker, pid } => generation.spawned(WorkerId(worker), pid),
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
            Err(_) => {
                generation.hang_up();
                generation.zygote().signal(Signal::SIGKILL);
            }
        }
    }

    fn gave_reason(&mut self, id: GenerationId, reason: String) {
        if self.next.as_ref().is_some_and(|next| next.place.generation == id) {
            self.reason = Some(reason);
        }
    }

    fn worker(&mut self, id: GenerationId, worker: WorkerId) -> Option<&mut Worker> {
        self.generation(id)?.workers.get_mut(&worker)
    }

    fn pid_of(&mut self, id: GenerationId, worker: WorkerId) -> i32 {
        self.worker(id, worker)
            .and_then(|worker| worker.pid())
            .unwrap_or_default()
    }

    /// Logs what a worker has to say about its request.
    fn log_for(&self, pid: i32, message: LogMessage) {
        let LogMessage {
            level,
            from_php,
            text,
            script,
            uri,
            query,
            id,
        } = message;
        let request = TextView {
            script,
            uri,
            query,
            id,
            ..TextView::default()
        };
        let fields = fields_of(&self.wanted.config.name, pid, &request);
        self.ctx.log.sent(&fields, level, from_php, &text);
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
                    let patience = or_never(config.request_header_timeout);
                    let left = |patience: Duration, since| {
                        let spent = Duration::from_nanos(monotonic_ns().saturating_sub(since));
                        Some(patience.saturating_sub(spent))
                    };
                    let limit = match handover.since {
                        _ if handover.owed != 0 => left(config.linger_timeout, handover.owed),
                        0 if handover.kept => Some(config.connection_idle_timeout).filter(|limit| !limit.is_zero()),
                        // One that has never said a word is no kept connection.
                        0 => Some(patience),
                        // A request that has begun has what is left of its time, whoever waits for it.
                        since => left(patience, since),
                    };
                    self.queue.keep(handover, fd, limit);
                    if self.stopping {
                        self.queue.hand_out_the_new();
                    }
                }
            }
            Ok(Heard {
                message: FromWorker::Status,
                ..
            }) => {
                let snapshot = self.snapshot();
                if let Some(worker) = self.worker(id, worker) {
                    worker.tell_status(snapshot);
                }
            }
            // What it has handed over, and nobody comes after it, is in the queue by now.
            Ok(Heard {
                message: FromWorker::Leaving,
                ..
            }) => {
                if let Some(worker) = self.worker(id, worker) {
                    worker.tell(&ToWorker::Heard, &[]);
                }
            }
            Ok(Heard {
                message: FromWorker::Log(mut message),
                fds,
            }) => {
                if let Some(text) = fds.first().and_then(|fd| unsealed(fd, LOG_BYTES)) {
                    message.text = String::from_utf8_lossy(&text).into_owned();
                }
                let pid = self.pid_of(id, worker);
                self.log_for(pid, *message);
            }
            Err(ChannelError::Malformed(what)) => {
                // Once: a worker that sends nothing else would fill the log.
                if let Some(said) = self.worker(id, worker)
                    && !std::mem::replace(&mut said.malformed, true)
                {
                    let pid = said.pid().unwrap_or_default();
                    self.log()
                        .warning(format_args!("child {pid} does not keep to the protocol: {what}"));
                }
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

    /// Processes that are its zygotes, or workers that have become the master's own children.
    pub fn knows_child(&mut self, pid: i32) -> bool {
        self.generations().any(|generation| {
            (generation.life != Life::Ended && generation.zygote().pid() == pid)
                || generation.workers.values().any(|worker| worker.pid() == Some(pid))
        })
    }
}
