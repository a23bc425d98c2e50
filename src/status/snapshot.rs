//! One snapshot, made by the master; every status page, metric and command is a rendering of it.

use serde::{Deserialize, Serialize};

use crate::config::Pm;
use crate::scoreboard::Stage;

/// A pool at one moment. Counters are since the master's start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Pool name.
    pub pool: String,
    /// Process manager.
    pub pm: Pm,
    /// Start of the pool, seconds since the epoch.
    pub start_time: i64,
    /// Seconds since then.
    pub start_since: u64,
    /// Requests accepted.
    pub accepted: u64,
    /// Connections waiting now: in the kernel's backlog and held by the master.
    pub listen_queue: u32,
    /// Most of those seen.
    pub max_listen_queue: u32,
    /// The backlog's limit.
    pub listen_queue_len: u32,
    /// Idle workers.
    pub idle: u32,
    /// Workers with a request.
    pub active: u32,
    /// Most of those seen.
    pub max_active: u32,
    /// Times that `pm.max_children` stood in the way.
    pub max_children_reached: u32,
    /// Requests beyond `request_slowlog_timeout`.
    pub slow_requests: u64,
    /// Peak memory of the request which took most, bytes; php-fpm shows it since PHP 8.4.
    #[serde(default)]
    pub memory_peak: Option<u64>,
    /// Workers, in the order of their slots.
    pub processes: Vec<ProcessStatus>,
}

/// One worker. Strings are valid UTF-8 but otherwise as the client sent them: a renderer escapes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// Pid.
    pub pid: i32,
    /// What it does.
    pub stage: Stage,
    /// Start of the worker, seconds since the epoch.
    pub start_time: i64,
    /// Seconds since then.
    pub start_since: u64,
    /// Requests begun.
    pub requests: u64,
    /// Microseconds: of the last request when idle, else since the current one began.
    pub request_duration: u64,
    /// REQUEST_METHOD
    pub method: String,
    /// Without the query.
    pub uri: String,
    /// QUERY_STRING
    pub query: String,
    /// CONTENT_LENGTH
    pub content_length: u64,
    /// User of Basic authentication.
    pub user: String,
    /// Script
    pub script: String,
    /// Request id; not on php-fpm's pages.
    #[serde(default)]
    pub request_id: String,
    /// CPU of the last request in percent of its duration; 0 unless idle.
    pub last_request_cpu: f64,
    /// Peak memory of the last request, bytes; 0 unless idle.
    pub last_request_memory: u64,
}
