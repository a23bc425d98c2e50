//! The state of a pool at one moment, and its renderings.

mod snapshot;

pub use snapshot::{ProcessStatus, Snapshot};
