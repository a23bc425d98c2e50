//! What can be seen of a pool.
#![forbid(unsafe_code)]

use super::Pool;
use crate::api::{self, Measured, PoolStatus, Traced};
use crate::master::backlog::Backlog;
use crate::master::generation::Generation;
use crate::master::status_server::Answer;
use crate::master::{status, trace, watch};
use crate::pm;
use crate::status::Snapshot;
use crate::trace::Limits;

impl Pool {
    /// What a status page is made from.
    pub fn answer(&mut self) -> Answer {
        let shown = self
            .current
            .as_ref()
            .filter(|current| current.exposed && !current.php.is_empty());
        let php = shown.map(|current| current.php.clone());
        Answer {
            snapshot: self.snapshot(),
            php,
        }
    }

    /// Why the last start failed, with its name; None while there is another.
    pub fn failure(&self) -> Option<String> {
        let reason = self.failed.as_ref().filter(|_| self.is_settled())?;
        Some(format!("pool {}: {reason}", self.wanted.config.name))
    }

    /// The pool for a client of the control socket.
    pub fn status(&mut self, stopping: bool) -> PoolStatus {
        let state = match (&self.current, &self.next) {
            _ if stopping => api::State::Stopping,
            (Some(_), Some(_)) => api::State::Reloading,
            (Some(_), None) => api::State::Running,
            (None, Some(_)) => api::State::Starting,
            (None, None) if self.failed.is_some() => api::State::Failed,
            (None, None) => api::State::Asleep,
        };
        PoolStatus {
            state,
            generation: self.counters.generations,
            failure: self.failed.clone(),
            max_children: self.wanted.config.pm_max_children,
            measured: self.measured(),
            user: self.wanted.identity.name.clone(),
            uid: self.wanted.identity.user.as_ref().map(|(uid, ..)| *uid),
            snapshot: self.snapshot(),
        }
    }

    /// What is no part of php-fpm's status.
    fn measured(&mut self) -> Measured {
        let totals = self.counters.totals;
        let (mut measures, mut draining) = (totals.measures, 0);
        let current = self.current.as_ref().map(|current| current.place.generation);
        for generation in self.generations() {
            let views = generation.views();
            views.iter().for_each(|(_, view)| measures.add(view));
            if Some(generation.place.generation) != current {
                draining += views.len() as u32;
            }
        }
        Measured {
            spawned: self.counters.spawned,
            draining,
            exits: totals.exits,
            measures,
            timed_out: self.counters.timed_out,
            refused: self.queue.refused(),
            access_log_lost: self.access_log.as_ref().map_or(0, |log| log.lost()),
            cgroup: self.ctx.cgroup.as_ref().map(|groups| groups.base().to_owned()),
        }
    }

    /// What its workers do that have a request.
    pub fn trace(&mut self, limits: Limits) -> Vec<impl Future<Output = Traced> + use<>> {
        let (now, name) = (watch::now(), self.wanted.config.name.clone());
        let threads = self.tracers.clone();
        let ask = |generation: &mut Generation| {
            let mut asked = Vec::new();
            for (worker, view) in generation.views().iter().filter(|(_, view)| view.is_active()) {
                asked.extend(trace::ask(
                    &name,
                    worker,
                    view,
                    generation.traceable(&threads),
                    now,
                    limits,
                ));
            }
            asked
        };
        self.generations().flat_map(ask).collect()
    }

    /// The pool at this moment.
    pub fn snapshot(&mut self) -> Snapshot {
        let now = watch::now();
        let Backlog { waiting, limit } = self.ctx.diag.backlogs(self.listeners());
        let listen_queue = waiting + self.queue.waiting();
        self.counters.max_queue = self.counters.max_queue.max(listen_queue);
        let mut counted = pm::Snapshot {
            now,
            ..pm::Snapshot::default()
        };
        let mut processes = Vec::new();
        let mut accepted = self.counters.totals.requests;
        let mut memory_peak = self.counters.totals.memory_peak;
        if let Some(current) = &self.current {
            current.count(&mut counted);
            // Spares have not begun.
            for (worker, view) in current.views().into_iter().filter(|(worker, _)| !worker.held) {
                accepted = accepted.saturating_add(view.requests);
                memory_peak = memory_peak.max(view.memory_peak);
                processes.extend(status::process(worker, &view, now));
            }
        }
        let draining = self.leaving.iter().map(|(generation, _)| generation).chain(&self.old);
        for (_, view) in draining.flat_map(Generation::views) {
            accepted = accepted.saturating_add(view.requests);
            memory_peak = memory_peak.max(view.memory_peak);
        }
        self.counters.max_active = self.counters.max_active.max(counted.peak);
        self.peak = self.peak.max(counted.peak);
        Snapshot {
            pool: self.wanted.config.name.clone(),
            pm: self.wanted.config.pm,
            start_time: self.counters.start_time,
            start_since: now.saturating_sub(self.counters.started).as_secs(),
            accepted,
            listen_queue,
            max_listen_queue: self.counters.max_queue,
            listen_queue_len: limit,
            idle: counted.idle.len() as u32 + counted.starting,
            active: counted.active,
            max_active: self.counters.max_active,
            max_children_reached: self.counters.max_children_reached,
            slow_requests: self.counters.slow,
            memory_peak: self.counters.shows_memory_peak.then_some(memory_peak),
            processes,
        }
    }
}
