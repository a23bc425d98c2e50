//! How a generation loses its workers.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Generation, Life};
use crate::api::{Exits, Happened, Measures};
use crate::control::Exit;
use crate::log::{Fields, Level, MessageId};
use crate::master::cgroup::Leaf;
use crate::master::context::State;
use crate::master::watch;
use crate::master::worker::{Worker, describe, describe_request, fields_of};
use crate::pm::WorkerId;
use crate::scoreboard::{SlotView, Stage};

/// How long a worker's zygote may take to say how the worker ended: long, as on a busy machine it may have to wait for its turn.
const SAYS_HOW: Duration = Duration::from_secs(10);

/// How long the last messages of a worker, or of a zygote, may take to arrive: a process that it has left behind may hold its
/// link open.
pub const LAST_WORDS: Duration = Duration::from_secs(1);

/// A worker that lived so long, or served a request, did not die of its start.
const LIVED: Duration = Duration::from_secs(10);

/// What became of a worker, for whoever decides about its replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    /// Nobody had asked it to leave.
    pub unasked: bool,
    /// It crashed, or was killed in a request: what it shares with others may be torn, a lock held for ever.
    pub suspect: bool,
    /// It came to nothing: it died soon and without having served.
    pub stillborn: bool,
    /// It had no request.
    pub idle: bool,
}

/// Counters of workers that are gone.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Requests begun.
    pub requests: u64,
    /// Why they are gone.
    pub exits: Exits,
    /// What they have measured.
    pub measures: Measures,
    /// Peak memory of the request which took most, bytes.
    #[serde(default)]
    pub memory_peak: u64,
}

/// How a worker has ended.
#[derive(Clone, Copy)]
struct End {
    /// By itself, or by the signal that asks it to.
    orderly: bool,
    /// And it was asked to.
    leaving: bool,
    /// It, or what it has started, had reached its memory limit.
    starved: bool,
}

impl End {
    fn of(worker: &Worker, stage: Stage) -> Self {
        let orderly = match worker.exit {
            Some(Exit::Code(0)) => true,
            Some(Exit::Signal { signal, .. }) => {
                // That it does not come to its end is the fault of its extensions' last words.
                signal == libc::SIGQUIT || (signal == libc::SIGALRM && stage == Stage::Left)
            }
            _ => false,
        };
        Self {
            orderly,
            leaving: worker.asked.is_some() && orderly,
            starved: worker.leaf.as_ref().is_some_and(|leaf| leaf.oom_kills() > 0),
        }
    }
}

impl Generation {
    /// The zygote's word on how a worker ended.
    pub fn exited(&mut self, id: WorkerId, exit: Exit) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.exit = Some(exit);
            match &worker.process {
                Some(process) if process.has_ended() => worker.ended = worker.ended.or(Some(watch::now())),
                Some(_) => {}
                // It died before its pidfd could be looked at.
                None => worker.ended = Some(watch::now()),
            }
        }
    }

    /// A worker has said its last word.
    pub fn hung_up(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.hung_up = true;
        }
    }

    /// A worker's process has ended.
    pub fn ended(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.ended = worker.ended.or(Some(watch::now()));
        }
    }

    /// Buries the workers that have ended and of which it is known how, or no longer waited for.
    pub fn bury(&mut self, now: Duration, totals: &mut Totals) -> Vec<Death> {
        let mut dead = Vec::new();
        for (id, worker) in &mut self.workers {
            let Some(ended) = worker.ended else { continue };
            if worker.exit.is_none()
                && let Some(process) = &worker.process
            {
                // The zygote may be gone, and the worker ours.
                worker.exit = process.wait();
            }
            let patience = if self.life == Life::Ended { LAST_WORDS } else { SAYS_HOW };
            let told = worker.exit.is_some() || ended + patience <= now;
            // With its last messages come the connections that it hands over: they must not go with it.
            let silent = worker.hung_up || ended + LAST_WORDS <= now;
            if told && silent {
                dead.push(*id);
            }
        }
        dead.into_iter().map(|id| self.bury_one(id, now, totals)).collect()
    }

    /// When [`Self::bury`] should be called again.
    pub fn next_burial(&self, now: Duration) -> Option<Duration> {
        let ended = self.workers.values().filter_map(|worker| worker.ended);
        ended
            .flat_map(|ended| [ended + LAST_WORDS, ended + SAYS_HOW])
            .filter(|at| *at > now)
            .min()
    }

    fn bury_one(&mut self, id: WorkerId, now: Duration, totals: &mut Totals) -> Death {
        let worker = &self.workers[&id];
        if let Some(output) = worker.output() {
            output.drain();
        }
        let view = self.board.view(worker.slot as usize);
        let end = End::of(worker, view.stage);
        if let Some(leaf) = worker.leaf.as_ref().filter(|_| !end.orderly) {
            // What it has started ends with it; after an orderly end it lives on.
            leaf.kill();
        }
        let lived = now.saturating_sub(worker.started);
        self.tell_of(worker, end, &view, lived);
        totals.requests = totals.requests.saturating_add(view.requests);
        totals.measures.add(&view);
        totals.memory_peak = totals.memory_peak.max(view.memory_peak);
        *self.exits_like(worker, end, &mut totals.exits) += 1;
        let death = Death {
            unasked: !end.leaving && !worker.held && !worker.left && self.drain.is_none(),
            suspect: match worker.exit {
                Some(Exit::Signal {
                    signal: libc::SIGKILL | libc::SIGTERM,
                    ..
                }) => view.is_active(),
                Some(Exit::Signal { .. }) => !end.orderly,
                Some(Exit::Code(_)) | None => false,
            },
            stillborn: !end.orderly && view.requests == 0 && (lived < LIVED || view.stage == Stage::None),
            idle: !view.is_active(),
        };
        self.forget(id);
        death
    }

    /// php-fpm's lines, and the event.
    fn tell_of(&self, worker: &Worker, end: End, view: &SlotView, lived: Duration) {
        let pid = worker.pid().unwrap_or(0);
        let after = format!(
            "after {}.{:06} seconds from start",
            lived.as_secs(),
            lived.subsec_micros()
        );
        if end.leaving {
            let text = format!("child {pid} has been killed by the process management {after}");
            return self.log(Level::Debug, text);
        }
        let quiet = self.drain.is_some() || self.ctx.state.get() != State::Normal;
        let level = match (end.orderly, quiet) {
            (_, true) => Level::Debug,
            (true, false) => Level::Notice,
            (false, false) => Level::Warning,
        };
        let how = describe(worker.exit);
        let mut text = format!("child {pid} exited {how} {after}");
        if end.starved {
            text += "; the kernel ended it for want of memory";
            if let Some(peak) = worker.leaf.as_ref().and_then(Leaf::peak) {
                text += &format!(", its peak was {} MiB", peak >> 20);
            }
        }
        let request = view.text.clone().filter(|_| view.is_active()).unwrap_or_default();
        let fields = fields_of(&self.config.name, pid, &request);
        let log = self.ctx.log.about(Fields {
            message_id: match end.starved {
                true => Some(MessageId::WorkerOom),
                false => (!end.orderly).then_some(MessageId::WorkerDied),
            },
            ..fields
        });
        log.log(level, text);
        if !end.orderly && view.is_active() {
            // A line of its own: who matches php-fpm's to its end finds it as php-fpm writes it.
            let at = format!("child {pid} was at {}", describe_request(view));
            self.ctx.log.about(fields).log(level, at);
        }
        if !quiet {
            self.ctx.happened(&Happened::WorkerExited {
                pool: self.config.name.clone(),
                pid,
                how,
                script: request.script,
                uri: request.uri,
                request_id: request.id,
            });
        }
    }

    /// The counter of those that have ended like it.
    fn exits_like<'a>(&self, worker: &Worker, end: End, exits: &'a mut Exits) -> &'a mut u64 {
        match worker.exit {
            _ if end.starved => &mut exits.oom,
            _ if !end.orderly && worker.rung.is_some() => &mut exits.timeout,
            _ if end.leaving => &mut exits.surplus,
            _ if end.orderly && self.drain.is_some() => &mut exits.drained,
            _ if end.orderly => &mut exits.recycled,
            Some(Exit::Signal { .. }) => &mut exits.signal,
            _ => &mut exits.code,
        }
    }

    /// Takes a worker off the books. One that lives all the same sees its link close, and leaves.
    pub(super) fn forget(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.remove(&id) else { return };
        let slot = self.board.slot(worker.slot as usize);
        self.board.header().request_ends(slot);
        slot.reset();
        self.free.insert(worker.slot);
        worker.linger();
    }
}
