//! Severity of a log line, under php-fpm's names.

use serde::{Deserialize, Serialize};

/// php-fpm's log levels, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    /// Everything, with the place in the code.
    Debug,
    /// Ordinary events; the default.
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
}
