//! The directives of a pool's section.

use super::super::model::Pool;
use super::super::value::{Array, Base, Field, Kind, show_entry, store_entry};
use super::global::PRIORITY_REFUSAL;
use super::{Access, Directive, PROCESSES, Shown, cgroup, field, later};
use crate::log::Level;

type Row = Directive<Pool>;

/// The directives of a pool.
pub static POOL: &[Row] = &[
    Row::new(
        "prefix",
        Kind::Path(Base::Prefix),
        field!(prefix),
        "The folder that the pool's relative paths are below. It must exist.",
    ),
    Row::new(
        "user",
        Kind::Text,
        field!(user),
        "The user that PHP runs as: a name or a number. Needed when the master is root; ignored when it is not.",
    ),
    Row::new(
        "group",
        Kind::Text,
        field!(group),
        "The group that PHP runs as: a name or a number. Not set, it is the user's own.",
    ),
    Row::new(
        "listen",
        Kind::Address,
        later!(),
        "Where web servers connect: a port on all addresses, host:port, or the path of a unix socket. Needed.",
    ),
    Row::new(
        "listen.backlog",
        Kind::Number(-1..=i32::MAX as i64),
        field!(listen_backlog),
        "How many connections may wait in the socket's queue. -1 is the system's most.",
    )
    .default("-1"),
    Row::new(
        "listen.acl_users",
        Kind::Names,
        field!(listen_acl_users),
        "Users that may connect to the unix socket, by an access control list; owner and group are then left alone.",
    ),
    Row::new("listen.acl_groups", Kind::Names, field!(listen_acl_groups), "The same for groups."),
    Row::new(
        "listen.owner",
        Kind::Text,
        field!(listen_owner),
        "Who owns the unix socket: a name or a number. Not set, it is the user the master runs as.",
    ),
    Row::new(
        "listen.group",
        Kind::Text,
        field!(listen_group),
        "The group of the unix socket. Not set, it is that of listen.owner, else of the master.",
    ),
    Row::new("listen.mode", Kind::Mode, field!(listen_mode), "The permissions of the unix socket.")
        .hidden_default("0660", "undefined"),
    Row::new(
        "listen.allowed_clients",
        Kind::Text,
        later!(),
        "The addresses and networks (192.0.2.0/24, 2001:db8::/32), separated by commas, that may connect over TCP. Not set, \
         it is everybody.",
    ),
    Row::new(
        "process.priority",
        Kind::Number(-19..=20),
        field!(process_priority),
        "The nice value of the pool's workers. Only root can set it.",
    )
    .refusal(Level::Error, PRIORITY_REFUSAL),
    Row::new(
        "process.dumpable",
        Kind::Bool,
        field!(process_dumpable),
        "Whether workers may leave core files and be traced by their own user.",
    )
    .default("no"),
    Row::new(
        "pm",
        Kind::Choice(
            &["static", "dynamic", "ondemand"],
            Some("invalid process manager (static, dynamic or ondemand)"),
        ),
        field!(pm),
        "How many workers there are: always pm.max_children (static), as many as keep the spare ones within their limits \
         (dynamic), or none until they are asked for (ondemand). Needed.",
    ),
    Row::new(
        "pm.max_children",
        Kind::Number(1..=PROCESSES),
        field!(pm_max_children),
        "The most workers that serve at one time. Needed.",
    )
    .refusal(Level::Alert, "pm.max_children must be a positive value"),
    Row::new(
        "pm.start_servers",
        Kind::Number(0..=PROCESSES),
        field!(pm_start_servers),
        "With pm = dynamic, the workers at start.",
    )
    .derived("half-way between pm.min_spare_servers and pm.max_spare_servers"),
    Row::new(
        "pm.min_spare_servers",
        Kind::Number(0..=PROCESSES),
        field!(pm_min_spare_servers),
        "With pm = dynamic, the fewest workers that wait for work. Needed there, from 1.",
    )
    .default("0")
    .refusal(Level::Alert, "pm.min_spare_servers({}) must be a positive value"),
    Row::new(
        "pm.max_spare_servers",
        Kind::Number(0..=PROCESSES),
        field!(pm_max_spare_servers),
        "With pm = dynamic, the most workers that wait for work. Needed there, from 1.",
    )
    .default("0")
    .refusal(Level::Alert, "pm.max_spare_servers({}) must be a positive value"),
    Row::new(
        "pm.max_spawn_rate",
        Kind::Number(1..=PROCESSES),
        field!(pm_max_spawn_rate),
        "With pm = dynamic, the most workers that are started within a second.",
    )
    .default("32")
    .refusal(Level::Alert, "pm.max_spawn_rate must be a positive value"),
    Row::new(
        "pm.process_idle_timeout",
        Kind::Time,
        field!(pm_process_idle_timeout),
        "With pm = ondemand, how long a worker waits for work before it leaves.",
    )
    .default("10s")
    .shown(Shown::WithoutUnit),
    Row::new(
        "pm.max_requests",
        Kind::Number(0..=i32::MAX as i64),
        field!(pm_max_requests),
        "The requests after which a worker is replaced, for each up to a tenth less, so that they are not replaced together. \
         Its replacement is ready before it leaves. 0 is never.",
    )
    .default("0"),
    Row::new(
        "pm.status_path",
        Kind::Text,
        field!(pm_status_path),
        "The path of the status page. With pm.status_listen and without this it is /.",
    ),
    Row::new(
        "pm.status_listen",
        Kind::Address,
        later!(),
        "A further address that serves the status and ping pages alone, also while every worker is busy.",
    ),
    Row::new("ping.path", Kind::NonEmpty, field!(ping_path), "The path of the ping page."),
    Row::new("ping.response", Kind::Text, field!(ping_response), "What the ping page answers.")
        .hidden_default("pong", "undefined"),
    Row::new(
        "access.log",
        Kind::Path(Base::Pool),
        field!(access_log),
        "The access log.",
    ),
    Row::new(
        "access.format",
        Kind::Text,
        field!(access_format),
        "What a line of the access log holds: php-fpm's tokens, and %L, the request's id. The word json is one object a line.",
    )
    .hidden_default(super::super::access_format::DEFAULT, "undefined"),
    Row::list(
        "access.suppress_path",
        Kind::Array(Array::Path),
        "Paths that are not logged when they succeed without a query and a body.",
    ),
    Row::new("slowlog", Kind::Path(Base::Pool), field!(slowlog), "The file that traces of slow requests go to."),
    Row::new(
        "request_slowlog_timeout",
        Kind::Time,
        field!(request_slowlog_timeout),
        "How long a request runs before its trace is written to slowlog. 0 is never.",
    )
    .default("0"),
    Row::new(
        "request_slowlog_trace_depth",
        Kind::Number(1..=65_536),
        field!(request_slowlog_trace_depth),
        "The most frames of a trace.",
    )
    .default("20")
    .refusal(Level::Error, "'request_slowlog_trace_depth' ({}) must be a positive value"),
    Row::new(
        "request_terminate_timeout",
        Kind::Time,
        field!(request_terminate_timeout),
        "How long a request may run before it is ended. 0 is without limit.",
    )
    .default("0"),
    Row::new(
        "request_terminate_timeout_track_finished",
        Kind::Bool,
        field!(request_terminate_timeout_track_finished),
        "Whether that limit holds also after fastcgi_finish_request().",
    )
    .default("no"),
    Row::new(
        "rlimit_files",
        Kind::Number(0..=i32::MAX as i64),
        field!(rlimit_files),
        "The workers' limit of open files (RLIMIT_NOFILE). 0 leaves it as it is.",
    ),
    Row::new(
        "rlimit_core",
        Kind::Rlimit,
        field!(rlimit_core),
        "The workers' limit of core files in bytes (RLIMIT_CORE). 0 leaves it as it is.",
    ),
    Row::new(
        "chroot",
        Kind::Path(Base::Pool),
        field!(chroot),
        "The folder that becomes the workers' root. It may begin with $prefix. Only root can do it.",
    ),
    Row::new(
        "chdir",
        Kind::Path(Base::Pool),
        field!(chdir),
        "The workers' folder, within chroot. Not set, it is / with chroot and the master's without.",
    ),
    Row::new(
        "catch_workers_output",
        Kind::Bool,
        field!(catch_workers_output),
        "Whether what workers print to standard output and standard error is logged. Messages of PHP reach the journal either \
         way.",
    )
    .default("no"),
    Row::new(
        "decorate_workers_output",
        Kind::Bool,
        field!(decorate_workers_output),
        "Whether such lines get a time, a level and the worker they come from.",
    )
    .default("yes"),
    Row::new(
        "clear_env",
        Kind::Bool,
        field!(clear_env),
        "Whether workers begin with an empty environment, to which env[] adds.",
    )
    .default("yes"),
    Row::new(
        "security.limit_extensions",
        Kind::Words,
        field!(security_limit_extensions),
        "The suffixes that a script must have to be run; empty allows every file.",
    )
    .default(".php .phar"),
    Row::new(
        "apparmor_hat",
        Kind::Text,
        field!(apparmor_hat),
        "The AppArmor hat that workers change to.",
    )
    .shown(Shown::Never),
    Row::list(
        "env",
        Kind::Array(Array::Env),
        "A variable of the workers' environment. A value that begins with $ is looked up in the master's. The first line \
         for a name holds.",
    ),
    Row::list(
        "php_value",
        Kind::Array(Array::Value { admin: false }),
        "A php.ini setting, which scripts may change. The first line for a name holds.",
    ),
    Row::list(
        "php_flag",
        Kind::Array(Array::Flag { admin: false }),
        "The same for a boolean setting.",
    )
    .shown(Shown::Never),
    Row::list(
        "php_admin_value",
        Kind::Array(Array::Value { admin: true }),
        "A php.ini setting that neither scripts nor .user.ini nor the web server can change.",
    ),
    Row::list(
        "php_admin_flag",
        Kind::Array(Array::Flag { admin: true }),
        "The same for a boolean setting.",
    )
    .shown(Shown::Never),
    // What php-fpm does not have, by name.
    Row::new(
        "cgroup.cpu_max",
        Kind::CgroupCpu,
        cgroup!("cpu.max"),
        "The CPU time that the pool's workers together may use (cpu.max).",
    )
    .ours(),
    Row::new(
        "cgroup.cpu_weight",
        Kind::CgroupWeight,
        cgroup!("cpu.weight"),
        "Their share of CPU time when it is short (cpu.weight); the usual weight is 100.",
    )
    .ours(),
    Row::new(
        "cgroup.io_weight",
        Kind::CgroupWeight,
        cgroup!("io.weight"),
        "Their share of disk time when it is short (io.weight); the usual weight is 100.",
    )
    .ours(),
    Row::new(
        "cgroup.memory_high",
        Kind::CgroupSize,
        cgroup!("memory.high"),
        "The memory above which the pool's workers are slowed down and reclaimed from (memory.high).",
    )
    .ours(),
    Row::new(
        "cgroup.memory_low",
        Kind::CgroupSize,
        cgroup!("memory.low"),
        "The memory that is not reclaimed from them while others can give some (memory.low).",
    )
    .ours(),
    Row::new(
        "cgroup.memory_max",
        Kind::CgroupSize,
        cgroup!("memory.max"),
        "The memory that the pool's workers together may use (memory.max).",
    )
    .ours(),
    Row::new(
        "cgroup.memory_swap_max",
        Kind::CgroupSize,
        cgroup!("memory.swap.max"),
        "The swap space that they may use (memory.swap.max).",
    )
    .ours(),
    Row::new(
        "cgroup.pids_max",
        Kind::CgroupCount,
        cgroup!("pids.max"),
        "The processes and threads that they may have, the programs that PHP starts included (pids.max).",
    )
    .ours(),
    Row::new(
        "connection_idle_timeout",
        Kind::Time,
        field!(connection_idle_timeout),
        "How long a kept connection may wait for its next request before it is closed. 0 is for ever.",
    )
    .default("0")
    .ours(),
    Row::new(
        "exit_idle_time",
        Kind::Time,
        field!(exit_idle_time),
        "With pm = ondemand and a socket held by systemd, how long a pool sleeps before its master ends. Who then asks at \
         pm.status_listen starts it again, with its PHP; php-pool status and the exporter wake no pool. 0 is never.",
    )
    .default("0")
    .ours(),
    Row::new(
        "linger_timeout",
        Kind::Time,
        field!(linger_timeout),
        "How long each 16 KiB of what a peer still sends after its answer may take. It is read, so that he receives the whole answer, before the \
         connection is closed.",
    )
    .default("2s")
    .ours(),
    Row::new(
        "php.ini",
        Kind::Path(Base::Pool),
        field!(php_ini),
        "The pool's php.ini, or the folder of one.",
    )
    .derived("found as php-fpm finds it; the first of php-pool, fpm and embed in /etc/php/VERSION")
    .ours(),
    Row::new(
        "php.scan_dir",
        Kind::Text,
        field!(php_scan_dir),
        "The folders of further .ini files, separated by colons, as in PHP_INI_SCAN_DIR; an empty one is the usual folder.",
    )
    .derived("conf.d beside the usual php.ini")
    .ours(),
    Row::new(
        "php.version",
        Kind::Version,
        field!(php_version),
        "The PHP version that serves the pool.",
    )
    .derived("the newest that is installed; one without /etc/php/VERSION/php-pool/php.ini comes last")
    .ours(),
    Row::new(
        "queue.max",
        Kind::Number(0..=1_048_576),
        field!(queue_max),
        "The most requests that wait while every worker is busy; further ones are refused at once: 503 for the browser, \
         FCGI_OVERLOADED for the web server. 0 is without limit.",
    )
    .default("0")
    .ours(),
    Row::new(
        "queue.timeout",
        Kind::Time,
        field!(queue_timeout),
        "How long a request waits for a worker before it is refused in the same way. 0 is without limit.",
    )
    .default("0")
    .ours(),
    Row::new(
        "reload.overlap",
        Kind::Number(0..=PROCESSES),
        field!(reload_overlap),
        "The most workers of an old generation that finish requests beyond pm.max_children during a reload.",
    )
    .derived("as many as pm.max_children")
    .ours(),
    Row::new(
        "reload.warm",
        Kind::Time,
        field!(reload_warm),
        "How long a new generation may compile what opcache of the old one holds, what was used most first, before it takes \
         over. Nothing of it is run. 0 is not at all.",
    )
    .default("0")
    .ours(),
    Row::new(
        "request_body_timeout",
        Kind::Time,
        field!(request_body_timeout),
        "How long each 16 KiB of the body of a request, and what is left of it, may take to arrive. 0 is without limit.",
    )
    .default("60s")
    .ours(),
    Row::new(
        "request_header_timeout",
        Kind::Time,
        field!(request_header_timeout),
        "How long a request's parameters may take, from its first byte. 0 is without limit.",
    )
    .default("60s")
    .ours(),
    Row::new(
        "response_write_timeout",
        Kind::Time,
        field!(response_write_timeout),
        "How long each 16 KiB of a response, and what is left of it, may take to leave. 0 is without limit.",
    )
    .default("60s")
    .ours(),
    Row::new(
        "stop_timeout",
        Kind::Time,
        field!(stop_timeout),
        "How long a stop may take before this pool's running requests are cut.",
    )
    .derived("that of [global]")
    .ours(),
    Row::new(
        "worker.memory_max",
        Kind::Size,
        field!(worker_memory_max),
        "The memory that each worker may use (memory.max of its own cgroup). 0 is without limit.",
    )
    .ours(),
    Row::new(
        "worker.path",
        Kind::Path(Base::Pool),
        field!(worker_path),
        "The worker's executable.",
    )
    .derived("beside the master, else where the package puts it")
    .ours(),
    Row::new(
        "worker.recycle_age",
        Kind::Time,
        field!(worker_recycle_age),
        "The age at which a worker is replaced, for each up to a tenth less; a request under way is finished. Its replacement \
         is ready before it leaves. 0 is never.",
    )
    .default("0")
    .ours(),
    Row::new(
        "worker.recycle_memory",
        Kind::Size,
        field!(worker_recycle_memory),
        "The private memory after a request at which a worker is replaced; its replacement is ready before it leaves. Not \
         with chroot, where a worker cannot see its memory. 0 is never.",
    )
    .default("0")
    .ours(),
    Row::new(
        "zygote_idle_time",
        Kind::Time,
        field!(zygote_idle_time),
        "With pm = ondemand, how long a pool without workers keeps PHP loaded. 0 is for ever.",
    )
    .default("0")
    .ours(),
];
