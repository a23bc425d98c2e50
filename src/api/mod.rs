//! The control socket of a master: a small versioned protocol, one JSON object a line each way, and its client.
//!
//! The command line, the exporter and the bus are its clients; the master's side is `master::desk`. Under systemd the
//! socket is `/run/php-pool/NAME/control`. It is its owner's alone (0600, and the peer's uid is looked at); what a client
//! may show to others is the client's business.

#![forbid(unsafe_code)]

mod client;

pub use client::{ApiError, Client, RUN, pools_of, reload, socket_of, sockets};

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::scoreboard::{Histogram, SlotView};
use crate::status::Snapshot;
use crate::trace::Backtrace;

/// Version of the protocol. Another one is answered with [`Answer::Refused`].
pub const VERSION: u32 = 1;

/// For so long an answer serves all who ask a client: however many do, a master is asked twice a second at most.
pub const FRESH: Duration = Duration::from_millis(500);

/// Longest question, bytes.
pub const MAX_QUESTION: usize = 4096;

/// Longest answer, bytes: a row for each of many workers, with their URIs.
pub const MAX_ANSWER: usize = 64 << 20;

/// Longest event on the bus service's socket, bytes. What comes from a request is not in it.
pub const MAX_EVENT: usize = 4096;

/// A message with its version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Versioned<T> {
    /// [`VERSION`]
    pub version: u32,
    /// The message.
    #[serde(flatten)]
    pub message: T,
}

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Question {
    /// Whether the master's loop turns.
    Ping,
    /// Every pool of the master.
    Status,
    /// Read the configuration again and start new generations of what has changed; answered when they serve, or do not. A
    /// master that another program takes over for it hangs up, and is to be asked again.
    Reload {
        /// New generations of everything.
        #[serde(default)]
        force: bool,
    },
    /// What every worker with a request does now.
    Trace {
        /// Most frames of each.
        depth: u32,
    },
    /// Events from now on, a line each, until the client leaves.
    Events,
}

/// What the master says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Question::Ping`].
    Pong,
    /// To [`Question::Status`].
    Status {
        /// In the order of the configuration.
        pools: Vec<PoolStatus>,
    },
    /// To [`Question::Trace`].
    Traces {
        /// Workers with a request.
        traces: Vec<Traced>,
    },
    /// The new generations serve.
    Reloaded,
    /// What was asked cannot be done, or has failed.
    Refused {
        /// Full sentences.
        reason: String,
    },
    /// Something has happened.
    Event(Happened),
}

/// A pool's state in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// No generation serves yet.
    Starting,
    /// It serves.
    Running,
    /// It serves, and a new generation is on its way.
    Reloading,
    /// Nothing runs; the next request starts it.
    Asleep,
    /// PHP cannot start; it is tried again.
    Failed,
    /// It is ending.
    Stopping,
}

impl State {
    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Running => "running",
            State::Reloading => "reloading",
            State::Asleep => "asleep",
            State::Failed => "failed",
            State::Stopping => "stopping",
        }
    }
}

/// A pool and its workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// What it does.
    pub state: State,
    /// How many generations have served, the present one included.
    pub generation: u64,
    /// Why the last start or reload failed.
    pub failure: Option<String>,
    /// `pm.max_children`
    #[serde(default)]
    pub max_children: u32,
    /// What php-fpm's status does not have.
    #[serde(default)]
    pub measured: Measured,
    /// User that PHP runs as.
    pub user: Option<String>,
    /// Its number; None: the master's.
    pub uid: Option<u32>,
    /// Counters and workers.
    pub snapshot: Snapshot,
}

impl PoolStatus {
    /// Whether a request that comes now is served, by who is there or by who is started for it.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Running | State::Reloading | State::Asleep)
    }

    /// Whether a request that comes now has to wait for another one's end.
    pub fn is_saturated(&self) -> bool {
        let Snapshot {
            active,
            listen_queue,
            idle,
            ..
        } = self.snapshot;
        (self.max_children > 0 && active >= self.max_children) || (idle == 0 && listen_queue > 0)
    }
}

/// Counters and histograms of a pool since its start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Workers started.
    pub spawned: u64,
    /// Workers of earlier generations, which end with their requests.
    pub draining: u32,
    /// Workers that have ended.
    pub exits: Exits,
    /// Requests.
    pub measures: Measures,
    /// Requests beyond `request_terminate_timeout`.
    #[serde(default)]
    pub timed_out: u64,
    /// Requests refused by `queue.max` or `queue.timeout`.
    #[serde(default)]
    pub refused: u64,
    /// Lines that the access log could not be given.
    pub access_log_lost: u64,
    /// The service's control group, where it has one.
    pub cgroup: Option<std::path::PathBuf>,
}

/// Ends of workers, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exits {
    /// Idle workers that were no longer needed.
    pub surplus: u64,
    /// By `pm.max_requests`, `worker.recycle_memory` or `worker.recycle_age`, or by a script's own wish.
    pub recycled: u64,
    /// With their generation, after a reload.
    pub drained: u64,
    /// Beyond `request_terminate_timeout`.
    pub timeout: u64,
    /// At a memory limit, by the kernel.
    pub oom: u64,
    /// On a signal.
    pub signal: u64,
    /// With an exit code other than 0.
    pub code: u64,
}

/// What workers measure of their requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measures {
    /// How long they took, microseconds in the buckets of [`crate::scoreboard::TIMES`].
    pub durations: Histogram,
    /// How long they had waited, by what the web server says, likewise.
    pub waits: Histogram,
    /// Their peak memory, bytes in the buckets of [`crate::scoreboard::SIZES`].
    pub memories: Histogram,
}

impl Measures {
    /// Adds those of a worker.
    pub fn add(&mut self, worker: &SlotView) {
        self.durations.add(&worker.durations);
        self.waits.add(&worker.waits);
        self.memories.add(&worker.memories);
    }
}

/// What a worker does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Traced {
    /// Pool, if it was a master that looked.
    pub pool: Option<String>,
    /// The worker.
    pub pid: i32,
    /// For how long its request has run, likewise.
    pub milliseconds: Option<u64>,
    /// The request's id, likewise.
    #[serde(default)]
    pub request_id: Option<String>,
    /// Where it is.
    pub backtrace: Option<Backtrace>,
    /// Why that is not known.
    pub problem: Option<String>,
}

/// Something that whoever watches a pool wants to know at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Happened {
    /// A worker has ended unasked.
    WorkerExited {
        /// Pool.
        pool: String,
        /// Its pid.
        pid: i32,
        /// `on signal 9 (SIGKILL)`, `with code 1`.
        how: String,
        /// The script it ran, if it did.
        script: String,
        /// The request, likewise.
        uri: String,
        /// Its id, likewise.
        #[serde(default)]
        request_id: String,
    },
    /// A request runs longer than `request_slowlog_timeout`.
    SlowRequest {
        /// Pool.
        pool: String,
        /// The worker.
        pid: i32,
        /// Script.
        script: String,
        /// Request.
        uri: String,
        /// Its id.
        #[serde(default)]
        request_id: String,
        /// For how long it has run.
        milliseconds: u64,
        /// Where it is, the innermost first: `Class::method() file:line`.
        backtrace: Vec<String>,
    },
    /// `pm.max_children` stands in the way.
    MaxChildrenReached {
        /// Pool.
        pool: String,
        /// `pm.max_children`
        limit: u32,
    },
}

impl Happened {
    /// What everybody may know of it: nothing that a request has sent.
    pub fn without_request(&self) -> Self {
        let mut event = self.clone();
        match &mut event {
            Happened::WorkerExited { script, uri, .. } => {
                script.clear();
                uri.clear();
            }
            Happened::SlowRequest {
                script, uri, backtrace, ..
            } => {
                script.clear();
                uri.clear();
                backtrace.clear();
            }
            Happened::MaxChildrenReached { .. } => {}
        }
        event
    }
}

/// Writes a message as a line.
pub fn encode<T: Serialize>(message: T) -> Vec<u8> {
    let versioned = Versioned {
        version: VERSION,
        message,
    };
    let mut line = serde_json::to_vec(&versioned).expect("messages are plain data");
    line.push(b'\n');
    line
}

/// Reads a question.
///
/// # Errors
/// A sentence for the client.
pub fn decode(line: &[u8]) -> Result<Question, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(line).map_err(|error| format!("not understood: {error}"))?;
    if version != VERSION {
        return Err(format!(
            "this master speaks version {VERSION} of the protocol, not {version}"
        ));
    }
    serde_json::from_slice(line).map_err(|error| format!("not understood: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_a_short_line() {
        assert_eq!(encode(Question::Status), b"{\"version\":1,\"ask\":\"status\"}\n");
        let reload = Question::Reload { force: true };
        for question in [Question::Ping, Question::Status, reload, Question::Events] {
            assert_eq!(decode(&encode(&question)), Ok(question));
        }
        let reload = decode(b"{\"version\":1,\"ask\":\"reload\"}\n");
        assert_eq!(reload, Ok(Question::Reload { force: false }));
    }

    #[test]
    fn another_version_and_nonsense_are_refused_with_a_reason() {
        assert!(
            decode(b"{\"version\":2,\"ask\":\"dance\"}")
                .unwrap_err()
                .contains("version 1")
        );
        assert!(
            decode(b"{\"version\":1,\"ask\":\"dance\"}")
                .unwrap_err()
                .contains("not understood")
        );
        assert!(decode(b"GET / HTTP/1.1").unwrap_err().contains("not understood"));
    }

    #[test]
    fn an_answer_survives_the_way() {
        let answer = Answer::Event(Happened::MaxChildrenReached {
            pool: "www".into(),
            limit: 5,
        });
        let line = encode(answer.clone());
        let back: Versioned<Answer> = serde_json::from_slice(&line).unwrap();
        assert_eq!(
            back,
            Versioned {
                version: VERSION,
                message: answer
            }
        );
    }
}
