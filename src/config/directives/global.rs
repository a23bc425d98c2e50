//! The directives of `[global]`.

use super::super::model::{Global, LogTarget};
use super::super::value::{Base, Kind};
use super::super::value::{Field, Value};
use super::{Access, Directive, PROCESSES, Shown, field};
use crate::log::Level;

type Row = Directive<Global>;

/// `error_log` is a path or the word `syslog`; which of both is settled when relative paths are.
const ERROR_LOG: Access<Global> = Access {
    store: |global, value| {
        if let Value::Text(text) = value {
            global.error_log = match text.eq_ignore_ascii_case("syslog") {
                true => LogTarget::Syslog,
                false => LogTarget::File(text.into()),
            }
        }
    },
    show: |global| {
        Some(Value::Text(match &global.error_log {
            LogTarget::Syslog => "syslog".into(),
            LogTarget::File(path) => path.display().to_string(),
        }))
    },
};

/// What `process.priority` says wherever it stands.
pub(super) const PRIORITY_REFUSAL: &str = "process.priority must be included into [-19,20]";

/// The directives of `[global]`.
pub static GLOBAL: &[Row] = &[
    Row::list(
        "include",
        Kind::Include,
        "Files to read here, as though they stood in place of this line. Directories are skipped, the order is that of the \
         names' bytes, and files may include others, five deep. Allowed in any section.",
    )
    .shown(Shown::Never),
    Row::new(
        "pid",
        Kind::Path(Base::State),
        field!(pid),
        "The pid file. It is written at start and removed at the end. The command line's -g is used when it is not set.",
    ),
    Row::new(
        "error_log",
        Kind::Path(Base::State),
        ERROR_LOG,
        "The error log: a file, or the word syslog. Without this line php-pool serve logs to standard error, under systemd the \
         journal; with it there and nowhere else. The default is that of php-fpm's command line.",
    )
    .default("log/php-fpm.log"),
    Row::new("syslog.ident", Kind::Text, field!(syslog_ident), "The tag of our lines in syslog.").default("php-fpm"),
    Row::new(
        "syslog.facility",
        Kind::Facility,
        field!(syslog_facility),
        "The facility that syslog files our lines under; -tt prints its number.",
    )
    .default("daemon"),
    Row::new(
        "log_buffering",
        Kind::Bool,
        field!(log_buffering),
        "Accepted, because php-fpm has it: a line is always written at once.",
    )
    .default("yes"),
    Row::new(
        "log_level",
        Kind::Choice(&["ALERT", "ERROR", "WARNING", "WARN", "NOTICE", "DEBUG"], Some("invalid value for 'log_level'")),
        field!(log_level),
        "The least severe messages that are logged.",
    )
    .hidden_default("notice", "unknown value"),
    Row::new(
        "log_limit",
        Kind::Number(512..=1_048_576),
        field!(log_limit),
        "The longest line of the error log, in bytes with time, prefix and line end; longer ones are wrapped.",
    )
    .default("1024")
    .refusal(Level::Error, "log_limit must be greater than 512"),
    Row::new(
        "log_request_id",
        Kind::Bool,
        field!(log_request_id),
        "Whether lines of the error log name the request they are about: [pool www] [request ID]. The journal has the id in \
         PHP_REQUEST_ID, whatever stands here.",
    )
    .default("no")
    .ours(),
    Row::new(
        "emergency_restart_interval",
        Kind::Time,
        field!(emergency_restart_interval),
        "The time within which emergency_restart_threshold crashes make a new generation. 0 is off.",
    )
    .default("0"),
    Row::new(
        "emergency_restart_threshold",
        Kind::Number(0..=PROCESSES),
        field!(emergency_restart_threshold),
        "How many workers must be killed or crash within emergency_restart_interval for a new generation to start, because \
         the memory they shared may be torn. 0 is off.",
    )
    .default("0"),
    Row::new(
        "process_control_timeout",
        Kind::Time,
        field!(process_control_timeout),
        "How long the workers of an old generation may finish their requests after a reload, and how long a stop by SIGQUIT \
         may take. 0 is without limit for a reload, and stop_timeout for SIGQUIT.",
    )
    .default("0"),
    Row::new(
        "process.max",
        Kind::Number(0..=PROCESSES),
        field!(process_max),
        "The most workers over all pools. 0 is without limit.",
    )
    .default("0")
    .refusal(Level::Error, "process_max can't be negative"),
    Row::new(
        "process.priority",
        Kind::Number(-19..=20),
        field!(process_priority),
        "The nice value of the master. Only root can set it.",
    )
    .refusal(Level::Error, PRIORITY_REFUSAL),
    Row::new(
        "daemonize",
        Kind::Bool,
        field!(daemonize),
        "Whether to go into the background, when called as php-fpm; -D and -F override it. php-pool serve never does.",
    )
    .default("yes"),
    Row::new(
        "rlimit_files",
        Kind::Number(0..=i32::MAX as i64),
        field!(rlimit_files),
        "The master's limit of open files (RLIMIT_NOFILE). 0 leaves it as it is.",
    ),
    Row::new(
        "rlimit_core",
        Kind::Rlimit,
        field!(rlimit_core),
        "The master's limit of core files in bytes (RLIMIT_CORE). 0 leaves it as it is.",
    ),
    Row::new(
        "events.mechanism",
        Kind::Choice(&["epoll", "poll", "select"], None),
        field!(events_mechanism),
        "Accepted because php-fpm has it; epoll is what is used.",
    )
    .default("epoll")
    .refusal(Level::Error, "event mechanism '{}' is not available on this system"),
    Row::new(
        "systemd_interval",
        Kind::Time,
        field!(systemd_interval),
        "How often the state is reported to systemd (STATUS=). 0 is never.",
    )
    .default("10s"),
    Row::new(
        "stop_timeout",
        Kind::Time,
        field!(stop_timeout),
        "How long a stop may take before running requests are cut; pools may set their own.",
    )
    .default("10s")
    .ours(),
];
