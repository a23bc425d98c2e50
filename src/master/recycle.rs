//! Recycling, carried out: spares, and the workers whose places they take.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::generation::Generation;
use super::watch;
use super::worker::Worker;
use crate::control::ToWorker;
use crate::log::Level;
use crate::pm::{Recycling, Snapshot, WorkerId};
use crate::scoreboard::{Scoreboard, Slot, Stage, Wear};

/// Who is told to leave does so within this time, unless it has a request. A spare has none: one that is still there is killed.
const LEAVES: Duration = Duration::from_secs(2);

/// Counts a spare.
pub fn count_spare(worker: &Worker, board: &Scoreboard, snapshot: &mut Snapshot) {
    if !worker.is_spare() {
        return;
    }
    match board.slot(worker.slot as usize).stage() {
        Stage::Held => snapshot.recycling.ready += 1,
        _ => snapshot.recycling.starting += 1,
    }
}

/// Counts a worker that is to be replaced.
pub fn count_wear(worker: &Worker, slot: &Slot, now: Duration, recycling: &mut Recycling) {
    let (wear, active) = (slot.wear(), slot.stage().is_active());
    if wear == Wear::Fresh || worker.asked.is_some() || worker.ended.is_some() {
        return;
    }
    recycling.worn += 1;
    match worker.retired {
        // One with a long request keeps no others from leaving.
        Some(at) => recycling.retiring += u32::from(!active || at + LEAVES > now),
        None if wear != Wear::Over => {}
        // Who can leave at once comes first.
        None if active => recycling.over.push(worker.id),
        None => recycling.over.insert(0, worker.id),
    }
}

/// Tells a worker to leave when it has nothing to do.
fn send_away(board: &Scoreboard, worker: &Worker) {
    board.control(worker.slot as usize).drain.store(1, SeqCst);
    // Who is still to be made finds it there; a message would be the first, before Go.
    if worker.process.is_some() {
        worker.tell(&ToWorker::Drain, &[]);
    }
}

impl Generation {
    /// Takes note of the workers that have left by themselves since the last time; how many they are.
    pub fn departures(&mut self, now: Duration) -> u32 {
        let mut left = 0;
        for worker in self.workers.values_mut() {
            let slot = self.board.slot(worker.slot as usize);
            if worker.held {
                if worker.asked.is_some_and(|asked| asked + LEAVES <= now) {
                    worker.kill();
                }
            } else if worker.asked.is_none() && !worker.left && slot.stage() == Stage::Left {
                worker.left = true;
                left += 1;
            }
        }
        left
    }

    /// Lets one spare begin, the one that has waited longest.
    pub fn release(&mut self, now: Duration) {
        let Some(worker) = self.workers.values_mut().find(|worker| worker.is_spare()) else {
            return;
        };
        worker.held = false;
        worker.replaces = true;
        self.board.control(worker.slot as usize).hold.store(0, SeqCst);
        if let Some(pid) = worker.pid() {
            // Its life in the pool begins here.
            worker.started = now;
            worker.tell(&ToWorker::Serve, &[]);
            self.log(Level::Notice, format_args!("child {pid} started"));
        }
    }

    /// Lets one spare go, the youngest.
    pub fn dismiss(&mut self, now: Duration) {
        if let Some(worker) = self.workers.values_mut().rev().find(|worker| worker.is_spare()) {
            worker.asked = Some(now);
            send_away(&self.board, worker);
        }
    }

    /// Tells a used-up worker to leave after its request.
    pub fn retire(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.retired = Some(watch::now());
            send_away(&self.board, worker);
        }
    }
}
