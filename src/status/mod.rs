//! The state of a pool at one moment, and its renderings.
#![forbid(unsafe_code)]

mod browser;
mod fields;
mod metrics;
mod page;
mod render;
mod resources;
mod snapshot;
#[cfg(test)]
mod tests;

pub use fields::{Field, fields};
pub use metrics::{Exposition, PoolMetrics};
pub use page::{Format, Reply, StatusPage, View, pong, unavailable};
pub use resources::Resources;
pub use snapshot::{ProcessStatus, Snapshot};
