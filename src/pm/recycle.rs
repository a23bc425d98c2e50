//! Recycling: who takes the place of a used-up worker is made before that one leaves, and waits as a spare that accepts
//! nothing. So no request waits for a fork, and yet never more than `max_children` workers accept.

use super::WorkerId;
use super::decide::{Decision, Limits, Memory, Snapshot};

/// Workers that are to be replaced, and those that are to replace them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recycling {
    /// Spares that are ready.
    pub ready: u32,
    /// Spares that are being made.
    pub starting: u32,
    /// Workers that are, or will soon be, used up, and have not left yet.
    pub worn: u32,
    /// Of those, the ones that serve on until they are told to leave.
    pub over: Vec<WorkerId>,
    /// Of those, how many have been told and are still there.
    pub retiring: u32,
    /// Workers that have left for this since the last decision.
    pub left: u32,
}

impl Recycling {
    /// All spares.
    pub fn all_spares(&self) -> u32 {
        self.ready + self.starting
    }
}

/// Makes spares for those that are worn, and tells them to leave when their replacement is ready.
pub fn recycle(limits: &Limits, memory: &Memory, pool: &Snapshot, decision: &mut Decision) {
    let recycling = &pool.recycling;
    let spares = recycling.all_spares() - decision.release;
    let wanted = recycling.worn.min(limits.most_spares);
    decision.dismiss = spares.saturating_sub(wanted);

    let missing = wanted.saturating_sub(spares);
    let room = pool.room.map_or(u32::MAX, |room| room.saturating_sub(decision.spawn));
    match memory.backoff.wait(pool.now).filter(|_| missing > 0) {
        Some(until) => decision.wake_at(until),
        None => decision.hold = missing.min(room),
    }

    let ready = recycling.ready.saturating_sub(decision.release);
    let mut may_leave = ready.saturating_sub(recycling.retiring);
    if spares == 0 && room == 0 && recycling.retiring == 0 {
        // `process.max` allows no spare: one after another leaves, and is replaced then.
        may_leave = 1;
    }
    decision.retire = recycling.over.iter().take(may_leave as usize).copied().collect();
}
