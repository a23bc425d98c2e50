//! The messages.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{IniEntry, Network, Rlimit};
use crate::log::Level;

/// Raised with every change of this file: master and zygote must have the same.
pub const VERSION: u32 = 9;

/// Most bytes of a log message that are one entry. Beyond [`LOG_INLINE`] they come beside the message, as a sealed memfd.
pub const LOG_BYTES: usize = 512 << 10;

/// Most bytes of one that are in the message itself: made UTF-8, and together with the other fields, less than a packet takes.
pub const LOG_INLINE: usize = 64 << 10;

/// Most bytes of a request that travel with a connection that is handed over.
pub const QUEUE_BYTES: usize = 128 << 10;

/// What a zygote lets itself be confined to, in the order of `worker/confine.rs`. All of it is resolved by the master: names
/// mean nothing inside a chroot.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Confinement {
    /// User, group, supplementary groups; None when the master is no root and stays who it is.
    pub user: Option<(u32, u32, Vec<u32>)>,
    /// New root.
    pub chroot: Option<PathBuf>,
    /// Working directory (within it).
    pub chdir: Option<PathBuf>,
    /// Nice value.
    pub priority: Option<i32>,
    /// RLIMIT_NOFILE
    pub rlimit_files: Option<u64>,
    /// RLIMIT_CORE
    pub rlimit_core: Option<Rlimit>,
    /// PR_SET_DUMPABLE of workers.
    pub dumpable: bool,
    /// AppArmor profile to change to.
    pub apparmor_hat: Option<String>,
}

/// How libphp is started.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PhpSettings {
    /// php.ini or the folder of it; None lets libphp look for it.
    pub ini: Option<PathBuf>,
    /// `-n`: no php.ini and no scan folder.
    pub no_ini: bool,
    /// PHP_INI_SCAN_DIR; None leaves libphp's own.
    pub scan_dir: Option<String>,
    /// `-d` definitions, as text of an ini file.
    pub defines: String,
    /// `-e`
    pub extended_info: bool,
    /// The pool's `php_value`, in order of application.
    pub values: Vec<IniEntry>,
    /// Its `php_admin_value`, likewise.
    pub admin_values: Vec<IniEntry>,
}

/// What the request loop needs to know of its pool.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PoolSettings {
    /// Pool name.
    pub name: String,
    /// Worker's process title, without the program's name: `pool www`.
    pub title: String,
    /// `pm.max_children`, the answer to FCGI_MAX_CONNS.
    pub max_children: u32,
    /// `pm.max_requests`; 0 is never.
    pub max_requests: u64,
    /// `pm.status_path`
    pub status_path: Option<String>,
    /// `ping.path`
    pub ping_path: Option<String>,
    /// `ping.response`
    pub ping_response: String,
    /// `security.limit_extensions`
    pub limit_extensions: Vec<String>,
    /// `listen.allowed_clients`; None is everybody.
    pub allowed_clients: Option<Vec<Network>>,
    /// Entries of it that are no address.
    pub allowed_clients_wrong: Vec<String>,
    /// Whether there is an access log.
    pub access_log: bool,
    /// `access.format`
    pub access_format: String,
    /// `access.suppress_path[]`
    pub access_suppress_path: Vec<String>,
    /// `catch_workers_output`: a flush marker follows each request on stderr.
    pub catch_output: bool,
    /// `log_level`
    pub log_level: Level,
    /// `log_limit`
    pub log_limit: usize,
    /// The log is the journal: messages about a request are sent to the master whole ([`FromWorker::Log`]).
    pub log_whole: bool,
    /// See the directives of these names.
    pub request_header_timeout: Duration,
    /// `request_body_timeout`
    pub request_body_timeout: Duration,
    /// `response_write_timeout`
    pub response_write_timeout: Duration,
    /// `linger_timeout`
    pub linger_timeout: Duration,
    /// `connection_idle_timeout`; zero is never.
    pub connection_idle_timeout: Duration,
    /// `request_terminate_timeout`, for the text of PHP's own time-out.
    pub request_terminate_timeout: Duration,
    /// `stop_timeout`: how long requests may take when the master is gone.
    pub stop_timeout: Duration,
    /// `worker.recycle_memory`, bytes; 0 is never.
    pub recycle_memory: u64,
}

/// Everything a zygote needs. With it come, in this order: the scoreboard, the workers' end of the queue, the
/// eventfd to ring, the one that wakes who writes the access log, where there is something to `warm` the pipe that names it, and
/// the listeners.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ZygoteConfig {
    /// [`VERSION`]
    pub version: u32,
    /// Confinement.
    pub confinement: Confinement,
    /// PHP.
    pub php: PhpSettings,
    /// Environment of workers, in order.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Pool.
    pub pool: PoolSettings,
    /// For so long it may compile what the generation before names ([`ToZygote::Name`]).
    pub warm: Option<Duration>,
}

/// A worker to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// Its number, unique in the master's life.
    pub worker: u64,
    /// Its slot.
    pub slot: u32,
    /// `pm.max_requests` for this one, with its jitter; 0 is never.
    pub max_requests: u64,
    /// `worker.recycle_age` for this one, with its jitter; zero is never.
    pub recycle_age: Duration,
}

/// Master to zygote.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToZygote {
    /// The first message.
    Configure(Box<ZygoteConfig>),
    /// Fork. With it come: the worker's end of its link, its stdout, its stderr.
    Spawn(Spawn),
    /// Write the paths of what opcache holds, what was used most first and each with a NUL behind it, into the pipe that comes
    /// with it. What they are is between two generations of a pool.
    Name,
    /// Answer with [`FromZygote::Pong`].
    Ping(u64),
    /// End; the workers go on.
    Quit,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// exit()
    Code(i32),
    /// A signal.
    Signal {
        /// Which.
        signal: i32,
        /// Core dumped.
        core: bool,
    },
}

/// Zygote to master.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromZygote {
    /// PHP is up.
    Ready {
        /// PHP_VERSION
        php: String,
        /// The files that its code comes from: libphp, extensions, libraries.
        mapped: Vec<PathBuf>,
    },
    /// It cannot be; the zygote ends.
    Failed {
        /// A full sentence.
        reason: String,
    },
    /// A worker waits at its gate. It is told by its number, and not by a pidfd: of those only so many of one user may be on their
    /// way, and another pool of his may have them all.
    Spawned {
        /// As asked for.
        worker: u64,
        /// A child of the zygote.
        pid: i32,
    },
    /// fork() failed.
    NotSpawned {
        /// As asked for.
        worker: u64,
        /// errno
        errno: i32,
    },
    /// A worker ended.
    Exited {
        /// Which.
        worker: u64,
        /// How.
        exit: Exit,
    },
    /// Answer to Ping.
    Pong(u64),
}

/// Master to one worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToWorker {
    /// Begin: it is where it belongs.
    Go,
    /// What held it back is gone from the scoreboard: begin to accept.
    Serve,
    /// Leave, after the request under way if there is one.
    Drain,
    /// Answer to [`FromWorker::Status`], a [`crate::status::Snapshot`].
    Status(Box<crate::status::Snapshot>),
    /// The same, too long for a message: it is in the sealed memory beside it.
    LongStatus,
    /// Answer to [`FromWorker::Leaving`].
    Heard,
}

/// A connection on its way from one process to another; its descriptor comes with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// What has been read of its next request already.
    pub bytes: Vec<u8>,
    /// Whether a request has been answered on it before.
    pub kept: bool,
    /// When the first of those bytes came, CLOCK_MONOTONIC ns; 0 when there are none.
    pub since: u64,
    /// Since when its request waits in the pool's queue, the same clock; 0 is not yet.
    #[serde(default)]
    pub queued: u64,
    /// Since when the rest of its last request's body is waited for, the same clock; 0 is that nothing is left of it.
    #[serde(default)]
    pub owed: u64,
}

/// One worker to the master.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromWorker {
    /// Keep this connection until it has something to say.
    Keep(Handover),
    /// The pool's status, please.
    Status,
    /// A message for the log, where that keeps messages whole.
    Log(Box<LogMessage>),
    /// It has accepted its last connection. The answer says that all which it has said before has been heard.
    Leaving,
}

/// A message of a worker, or of PHP in it, about its request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogMessage {
    /// Its level.
    pub level: Level,
    /// PHP says it.
    pub from_php: bool,
    /// What it says; empty where that comes as a memfd.
    pub text: String,
    /// The script; empty where there is none.
    pub script: String,
    /// URI without its query.
    pub uri: String,
    /// Query string.
    pub query: String,
    /// Request id.
    pub id: String,
}
