//! The process manager's decisions: how many workers to make, whom to ask to leave, what to say about it.
//!
//! Pure: a [`Snapshot`] of the pool, its [`Limits`] and the [`Memory`] of earlier decisions go in, a [`Decision`] comes
//! out. The clock is a parameter. What carries a decision out is [`crate::master`].

#![forbid(unsafe_code)]

mod backoff;
mod decide;
mod recycle;
#[cfg(test)]
mod recycle_tests;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use backoff::Backoff;
pub use decide::{Decision, Idle, Limits, Line, Memory, Snapshot, decide};
pub use recycle::Recycling;

/// A worker's number, unique in the master's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId(pub u64);
