//! The error log: php-fpm's lines, to stderr, a file or syslog.
//!
//! One process writes it: the master. A worker's own messages ([`Logger::untimed`]) and whatever PHP prints reach it
//! through the worker's stdout and stderr.
#![forbid(unsafe_code)]

mod budget;
mod clock;
mod journal;
mod line;
mod logger;
mod message_id;
mod output;
mod sink;

pub use clock::{Clock, read_time_zone};
pub use line::{LineFormat, MESSAGE_BUFFER, Stamp};
pub use logger::{About, LogError, Logger, SavedLog, Settings, errno};
pub use message_id::MessageId;
pub use output::{FLUSH, Lines, Said, Stream, WorkerOutput, mark};

use serde::{Deserialize, Serialize};

/// php-fpm's log levels, lowest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    /// Everything, with the place in the code.
    Debug,
    /// Ordinary events; the default.
    #[default]
    Notice,
    /// Something an administrator should know.
    Warning,
    /// Something failed.
    Error,
    /// The service cannot go on.
    Alert,
}

impl Level {
    /// The word in a log line.
    pub fn name(self) -> &'static str {
        match self {
            Level::Debug => "DEBUG",
            Level::Notice => "NOTICE",
            Level::Warning => "WARNING",
            Level::Error => "ERROR",
            Level::Alert => "ALERT",
        }
    }

    /// The severity that syslog and the journal know it by.
    pub fn severity(self) -> u8 {
        match self {
            Level::Debug => 7,
            Level::Notice => 5,
            Level::Warning => 4,
            Level::Error => 3,
            Level::Alert => 1,
        }
    }
}

/// What an entry is about. Text destinations show the pool; the rest is for destinations that keep fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fields<'a> {
    /// Pool name; a text line begins with `[pool NAME] `.
    pub pool: Option<&'a str>,
    /// Pid of the worker.
    pub worker: Option<i32>,
    /// Script that ran.
    pub script: Option<&'a str>,
    /// Request URI without its query.
    pub uri: Option<&'a str>,
    /// Query string.
    pub query: Option<&'a str>,
    /// Request id.
    pub request_id: Option<&'a str>,
    /// What has happened, for those that have a name for it.
    pub message_id: Option<MessageId>,
    /// Fields of this event alone.
    pub more: &'a [(&'static str, &'a str)],
}
