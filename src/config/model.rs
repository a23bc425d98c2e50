//! The typed, validated result of reading a configuration: what the rest of the program works with.
//!
//! A field is named as its directive, with `.` as `_`. Paths are absolute, `$pool` and `$prefix` are expanded, defaults
//! are filled in. Durations keep fractions of a second.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::log::Level;

/// A whole configuration: the `[global]` section and every pool, in the order of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The file it was read from, as given on the command line.
    pub path: PathBuf,
    /// The `[global]` section.
    pub global: Global,
    /// The pools, in the order in which their sections first appear.
    pub pools: Vec<Pool>,
    /// What is worth saying though it is no error; to be logged at start.
    pub notices: Vec<Notice>,
}

/// A remark on a configuration that is valid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// How loud.
    pub level: Level,
    /// The pool it is about.
    pub pool: Option<String>,
    /// A full sentence, in php-fpm's words where php-fpm says the same.
    pub text: String,
}

/// Where the error log goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum LogTarget {
    /// A file, opened for appending.
    File(PathBuf),
    /// syslog, with `syslog.ident` and `syslog.facility`.
    #[default]
    Syslog,
}

/// A resource limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rlimit {
    /// No limit.
    Unlimited,
    /// Soft and hard limit alike.
    Value(u64),
}

/// The `[global]` section. `Default` is a blank one, which the table of directives fills.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Global {
    /// Pid file.
    pub pid: Option<PathBuf>,
    /// Error log.
    pub error_log: LogTarget,
    /// Whether the file has that line, or it is the default.
    #[serde(default)]
    pub error_log_named: bool,
    /// syslog's tag.
    pub syslog_ident: String,
    /// syslog's facility as its number in `<syslog.h>` (LOG_DAEMON is 24).
    pub syslog_facility: i32,
    /// Least severe level that is logged.
    pub log_level: Level,
    /// Longest line, bytes with everything.
    pub log_limit: usize,
    /// `log_request_id`
    pub log_request_id: bool,
    /// One write a line.
    pub log_buffering: bool,
    /// Crashes within the interval that make a new generation; 0 is off.
    pub emergency_restart_threshold: u32,
    /// Interval of the above; zero is off.
    pub emergency_restart_interval: Duration,
    /// Longest drain of an old generation; zero is without limit for a reload.
    pub process_control_timeout: Duration,
    /// Most workers over all pools; 0 is without limit.
    pub process_max: u32,
    /// Nice value of the master.
    pub process_priority: Option<i32>,
    /// Go into the background.
    pub daemonize: bool,
    /// RLIMIT_NOFILE of the master.
    pub rlimit_files: Option<u64>,
    /// RLIMIT_CORE of the master.
    pub rlimit_core: Option<Rlimit>,
    /// Accepted for php-fpm's sake.
    pub events_mechanism: Option<String>,
    /// Period of STATUS= to systemd; zero is off.
    pub systemd_interval: Duration,
    /// How long a stop may take before requests are cut.
    pub stop_timeout: Duration,
    /// Texts as they were written (`$pool` and relative paths expanded), by directive, for `-tt`.
    pub written: Vec<IniEntry>,
}

/// Process manager.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pm {
    /// `pm.max_children` workers, always.
    #[default]
    Static,
    /// As many as the spare limits ask for.
    Dynamic,
    /// None until asked.
    Ondemand,
}

impl Pm {
    /// The word of `pm =`.
    pub fn name(self) -> &'static str {
        match self {
            Pm::Static => "static",
            Pm::Dynamic => "dynamic",
            Pm::Ondemand => "ondemand",
        }
    }
}

/// Where a pool listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Listen {
    /// A unix socket.
    Unix(PathBuf),
    /// `host:port`; the host is without brackets.
    Tcp {
        /// Name or literal address.
        host: String,
        /// Port, 1 to 65535.
        port: u16,
    },
    /// A port alone: `::` dual-stack, else 0.0.0.0.
    Port(u16),
}

impl Default for Listen {
    fn default() -> Self {
        Listen::Unix(PathBuf::new())
    }
}

/// A `php_value`/`php_admin_value` entry; flags are stored as values `1` and `0`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IniEntry {
    /// php.ini's name.
    pub key: String,
    /// The value.
    pub value: String,
}

/// A network of `listen.allowed_clients`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its address; v4 is kept as v4.
    pub address: std::net::IpAddr,
    /// Prefix length, bits.
    pub prefix: u8,
}

impl Network {
    /// Whether the address lies in it. A v4 address mapped into v6 counts as v4.
    pub fn contains(&self, address: std::net::IpAddr) -> bool {
        use std::net::IpAddr::{V4, V6};
        let same = |a: u128, b: u128, width: u32| {
            let host = width.saturating_sub(u32::from(self.prefix));
            a.checked_shr(host).unwrap_or(0) == b.checked_shr(host).unwrap_or(0)
        };
        match (self.address, address.to_canonical()) {
            (V4(own), V4(other)) => same(own.to_bits().into(), other.to_bits().into(), 32),
            (V6(own), V6(other)) => same(own.to_bits(), other.to_bits(), 128),
            _ => false,
        }
    }
}

/// One pool. `Default` is a blank one, which the table of directives fills.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pool {
    /// Section name.
    pub name: String,
    /// Where the section begins, for messages.
    pub file: PathBuf,
    /// Line of the section.
    pub line: u32,
    /// Base of relative paths.
    pub prefix: Option<PathBuf>,
    /// User, name or digits.
    pub user: Option<String>,
    /// Group, name or digits.
    pub group: Option<String>,
    /// The address as it was written (for messages and `-tt`), after `$pool` and path expansion.
    pub listen: String,
    /// The address, parsed.
    pub listen_address: Listen,
    /// Backlog; -1 is the system's most.
    pub listen_backlog: i32,
    /// ACL users.
    pub listen_acl_users: Vec<String>,
    /// ACL groups.
    pub listen_acl_groups: Vec<String>,
    /// Owner of a unix socket.
    pub listen_owner: Option<String>,
    /// Group of a unix socket.
    pub listen_group: Option<String>,
    /// Mode of a unix socket.
    pub listen_mode: u32,
    /// Who may connect over TCP; None is everybody. Entries that php-fpm calls wrong are errors in our own files and a
    /// log line at start in php-fpm's, see `listen_allowed_clients_wrong`.
    pub listen_allowed_clients: Option<Vec<Network>>,
    /// Entries of `listen.allowed_clients` that are no address, as they were written (php-fpm logs them in each worker).
    pub listen_allowed_clients_wrong: Vec<String>,
    /// Nice value of workers.
    pub process_priority: Option<i32>,
    /// Workers may dump core and be traced by their own user.
    pub process_dumpable: bool,
    /// Process manager.
    pub pm: Pm,
    /// Most workers.
    pub pm_max_children: u32,
    /// Workers at start (dynamic).
    pub pm_start_servers: u32,
    /// Fewest idle workers (dynamic).
    pub pm_min_spare_servers: u32,
    /// Most idle workers (dynamic).
    pub pm_max_spare_servers: u32,
    /// php-fpm's cap of the spawn rate.
    pub pm_max_spawn_rate: u32,
    /// Idle time after which an ondemand worker leaves.
    pub pm_process_idle_timeout: Duration,
    /// Requests after which a worker is replaced; 0 is never.
    pub pm_max_requests: u64,
    /// Status page. None with `pm_status_listen` set: it is `/` there, and nowhere else.
    pub pm_status_path: Option<String>,
    /// Address that serves status and ping alone.
    pub pm_status_listen: Option<String>,
    /// The same, parsed.
    pub pm_status_listen_address: Option<Listen>,
    /// Ping page.
    pub ping_path: Option<String>,
    /// What it answers.
    pub ping_response: String,
    /// Access log.
    pub access_log: Option<PathBuf>,
    /// Its format.
    pub access_format: String,
    /// Paths not logged.
    pub access_suppress_path: Vec<String>,
    /// Slow log.
    pub slowlog: Option<PathBuf>,
    /// Requests longer than this are traced; zero is off.
    pub request_slowlog_timeout: Duration,
    /// Frames of a trace.
    pub request_slowlog_trace_depth: u32,
    /// Requests longer than this are ended; zero is off.
    pub request_terminate_timeout: Duration,
    /// The same after fastcgi_finish_request().
    pub request_terminate_timeout_track_finished: bool,
    /// RLIMIT_NOFILE of workers.
    pub rlimit_files: Option<u64>,
    /// RLIMIT_CORE of workers.
    pub rlimit_core: Option<Rlimit>,
    /// New root.
    pub chroot: Option<PathBuf>,
    /// Working directory (within the chroot).
    pub chdir: Option<PathBuf>,
    /// Log what workers print.
    pub catch_workers_output: bool,
    /// With time and prefix.
    pub decorate_workers_output: bool,
    /// Workers start with an empty environment.
    pub clear_env: bool,
    /// Suffixes a script must have; empty is any.
    pub security_limit_extensions: Vec<String>,
    /// AppArmor hat.
    pub apparmor_hat: Option<String>,
    /// `env[]`, resolved, in php-fpm's order of application (the first line of the file for a key wins).
    pub env: Vec<IniEntry>,
    /// `php_value[]` and `php_flag[]`, in php-fpm's order of application.
    pub php_value: Vec<IniEntry>,
    /// `php_admin_value[]` and `php_admin_flag[]`, likewise.
    pub php_admin_value: Vec<IniEntry>,

    // What php-fpm does not have.
    /// PHP version whose worker serves this pool, `8.2`; None is the newest installed.
    pub php_version: Option<String>,
    /// php.ini, a file or the folder of one.
    pub php_ini: Option<PathBuf>,
    /// Folders of further ini files, colon-separated, as PHP_INI_SCAN_DIR.
    pub php_scan_dir: Option<String>,
    /// The worker's executable; None is beside the master, or in the package's place.
    pub worker_path: Option<PathBuf>,
    /// Longest time from the first byte of a request to the end of its parameters.
    pub request_header_timeout: Duration,
    /// Longest time without a byte of a body.
    pub request_body_timeout: Duration,
    /// Longest time without a byte of a response leaving.
    pub response_write_timeout: Duration,
    /// Longest lingering close.
    pub linger_timeout: Duration,
    /// Idle time after which a kept connection is closed; zero is never.
    pub connection_idle_timeout: Duration,
    /// How long a stop may take before requests of this pool are cut.
    pub stop_timeout: Duration,
    /// Idle time after which an ondemand pool's zygote ends; zero is never.
    pub zygote_idle_time: Duration,
    /// Idle time after which the master of a sleeping pool ends; zero is never.
    pub exit_idle_time: Duration,
    /// Most draining workers beyond `pm.max_children` during a reload; None is `pm.max_children`.
    pub reload_overlap: Option<u32>,
    /// `reload.warm`
    pub reload_warm: Duration,
    /// Private memory (bytes) after a request beyond which a worker is replaced; 0 is never.
    pub worker_recycle_memory: u64,
    /// Age at which a worker is replaced; zero is never.
    pub worker_recycle_age: Duration,
    /// `memory.max` of each worker's leaf cgroup, bytes; None is no limit.
    pub worker_memory_max: Option<u64>,
    /// Limits of the pool's `workers/` cgroup, verbatim for the kernel, by file name (`memory.max`, `cpu.weight`…).
    pub cgroup: Vec<IniEntry>,
    /// Most requests that wait while every worker is busy; 0 is without limit.
    pub queue_max: u32,
    /// Longest wait for a worker; zero is without limit.
    pub queue_timeout: Duration,
    /// Texts as they were written (`$pool` and relative paths expanded), by directive (`env[NAME]` for one of an array),
    /// for `-tt`.
    pub written: Vec<IniEntry>,
}

/// A limit of which 0 means that there is none, as a time that nobody waits out.
pub fn or_never(limit: Duration) -> Duration {
    const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);
    if limit.is_zero() { NEVER } else { limit }
}
