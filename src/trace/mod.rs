//! Looking into running PHP from outside: no extension, and nothing is stopped.
//!
//! A zygote publishes in its scoreboard where its libphp keeps the stack ([`crate::scoreboard::TraceLayout`]); the
//! [`reader`] walks it in the memory of a worker (`/proc/PID/mem`), for each version of PHP alike. The slowlog, live
//! backtraces and profiles are its three users. The worker is taken for hostile: see [`reader`].

#![forbid(unsafe_code)]

pub mod memory;
pub mod process;
pub mod profile;
pub mod reader;
#[cfg(test)]
mod reader_tests;
pub mod slowlog;
pub mod text;

pub use process::{Program, TraceError, Worker, program};
pub use reader::{Backtrace, End, Frame, Kind, Limits, RequestText};
