//! The state of a pool at one moment, and its renderings.

mod page;
mod snapshot;

pub use page::{Field, Page, fields, ping, render};
pub use snapshot::{ProcessStatus, Snapshot};
