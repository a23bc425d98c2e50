//! The command line: php-fpm's when called as `php-fpm`, our own otherwise.

#![forbid(unsafe_code)]

mod ask;
mod fpm;
mod top;
mod trace;
pub mod worker;

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Parser, Subcommand};

use crate::config::{self, LoadOptions, Pool, phpini};
use crate::control::PhpSettings;
use crate::exporter;
use crate::log::{Logger, Stamp};

/// The command line makes no sense.
const EX_USAGE: i32 = 64;
/// PHP cannot be started.
const EX_SOFTWARE: i32 = 70;
/// The configuration is wrong.
const EX_CONFIG: i32 = 78;

/// The configuration without `-y`.
const DEFAULT_CONFIG: &str = "/etc/php-pool/php-pool.conf";

/// What PHP was told on the command line.
#[derive(Clone, Debug, Default)]
pub struct PhpOptions {
    /// `-c`
    pub ini: Option<PathBuf>,
    /// `-n`
    pub no_ini: bool,
    /// `-d`, each as it was given.
    pub defines: Vec<String>,
    /// `-e`
    pub extended_info: bool,
}

impl PhpOptions {
    /// Where a worker for this PHP finds its php.ini; a pool's own `php.ini` and `php.scan_dir` come first.
    pub fn search(&self, version: &str, ini: Option<&Path>, scan_dir: Option<&str>) -> phpini::Search {
        let mut search = phpini::Search::new(version);
        search.path = ini.map(Path::to_owned).or_else(|| self.ini.clone());
        search.none = self.no_ini;
        search.defines = self.defines.clone();
        search.scan_dir = scan_dir.map(str::to_owned);
        search
    }

    /// The settings that a worker is started with, but for the pool's php_value and php_admin_value.
    pub fn settings(&self, found: phpini::PhpIni) -> PhpSettings {
        PhpSettings {
            ini: found.file_or_dir,
            no_ini: found.none,
            scan_dir: found.scan_dir,
            defines: found
                .defines
                .iter()
                .map(|(name, text)| format!("{name}={text}\n"))
                .collect(),
            extended_info: self.extended_info,
            ..PhpSettings::default()
        }
    }
}

/// Where a master in the foreground writes its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogTo {
    /// To `error_log`, unless stderr is a terminal, at which a person looks: php-fpm's rule.
    ErrorLog,
    /// To stderr, whatever it is.
    Stderr,
    /// To `error_log` where the configuration has that line, else to stderr: under systemd the journal.
    Named,
}

/// A master to be run.
#[derive(Clone, Debug)]
pub struct Launch {
    /// How its configuration is read, and read again.
    pub load: LoadOptions,
    /// PHP.
    pub php: PhpOptions,
    /// Where its log goes.
    pub log_to: LogTo,
    /// The command line, for the log and for the process's title.
    pub argv: Vec<String>,
    /// Where the control socket is to be.
    pub control: Option<PathBuf>,
    /// Where the bus service hears of events.
    pub events: Option<PathBuf>,
}

/// For monitoring; php-pool(8) has it too.
const EXIT_STATUS: &str = "Exit status: 0 all is well, 1 saturated (requests wait for others to end), 2 not ready or no \
                           answer, 3 unknown (not allowed, not understood), 4 nothing runs (stopped, or asleep until the next \
                           request). Of several pools, the worst.";

/// PHP behind a web server, native to systemd.
#[derive(Parser)]
#[command(name = "php-pool", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Subcommand)]
enum Commands {
    /// Run every pool of a configuration in the foreground
    Serve {
        /// The configuration, or the name of a pool of /etc/php-pool/pool.d
        #[arg(default_value = DEFAULT_CONFIG)]
        config: PathBuf,
        /// Let pools run as root (do not)
        #[arg(long)]
        allow_to_run_as_root: bool,
        /// php.ini, or its folder
        #[arg(short = 'c', long)]
        php_ini: Option<PathBuf>,
        /// Set an entry of php.ini
        #[arg(short, long, value_name = "NAME[=VALUE]")]
        define: Vec<String>,
        /// The control socket, for reload, status and the like; under systemd it is in RUNTIME_DIRECTORY
        #[arg(long, value_name = "SOCKET")]
        control: Option<PathBuf>,
    },
    /// Bring a pool up to date: its configuration, its php.ini, PHP, php-pool itself; returns when the new workers serve, and
    /// fails when they do not
    Reload {
        #[command(flatten)]
        whom: ask::Whom,
        /// Start new workers although nothing of that has changed; PHP forgets what it has compiled
        #[arg(long)]
        force: bool,
    },
    /// Show the state and counters of pools; never wakes one that sleeps
    #[command(after_help = EXIT_STATUS)]
    Status {
        #[command(flatten)]
        whom: ask::Anybody,
        /// All that is known, as JSON
        #[arg(long)]
        json: bool,
        /// Again every second, until interrupted
        #[arg(long)]
        watch: bool,
    },
    /// Say whether pools are alive, ready and saturated
    #[command(after_help = EXIT_STATUS)]
    Health {
        #[command(flatten)]
        whom: ask::Anybody,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show workers and their requests
    Workers {
        #[command(flatten)]
        whom: ask::Anybody,
    },
    /// Show pools and workers live in the terminal
    Top(top::TopArgs),
    /// Ask whether a pool's master answers
    #[command(after_help = EXIT_STATUS)]
    Ping {
        #[command(flatten)]
        whom: ask::Whom,
    },
    /// Serve the metrics of all pools at /metrics, for Prometheus
    Exporter {
        /// Where to listen, unless systemd passes a socket on
        #[arg(long, default_value = exporter::LISTEN)]
        listen: std::net::SocketAddr,
        /// Only the pools of this master, by its control socket; may be given again
        #[arg(long, value_name = "SOCKET")]
        control: Vec<PathBuf>,
    },
    /// Check a configuration: every error at once, each with its file and line
    Check {
        /// The configuration, or the name of a pool of /etc/php-pool/pool.d
        #[arg(default_value = DEFAULT_CONFIG)]
        config: PathBuf,
        /// Print every setting too
        #[arg(long)]
        print: bool,
        /// The file must be usable as a pool of systemd's, too, as one that is named has to be
        #[arg(long)]
        pool: bool,
    },
    /// Print what PHP does now in a worker, or in all workers of a master
    Trace(trace::TraceArgs),
    /// Sample workers for some seconds: folded stacks, a flame graph and a speedscope file
    Profile(trace::ProfileArgs),
    /// Make our pool files of a php-fpm configuration, one for each pool, and say what changes and what is left to do
    Migrate(crate::migrate::Options),
    /// Show all pools on D-Bus as org.phppool; php-pool-bus.service runs it when somebody asks
    Bus(crate::bus::Options),
}

/// Give a socket that systemd has made to those whom its pool's file names. The socket unit runs it; the manual and the shells'
/// completions need not know it.
#[derive(Parser)]
#[command(name = "php-pool give-socket")]
struct GiveSocket {
    /// The pool
    pool: String,
    /// Where it is
    path: PathBuf,
    /// listen.owner
    #[arg(long)]
    owner: Option<String>,
    /// listen.group
    #[arg(long)]
    group: Option<String>,
    /// One of listen.acl_users
    #[arg(long)]
    acl_user: Vec<String>,
    /// One of listen.acl_groups
    #[arg(long)]
    acl_group: Vec<String>,
}

/// Our own command line's definition, for the manual and the shells' completions.
pub fn command() -> clap::Command {
    use clap::CommandFactory;
    Cli::command()
}

/// Runs what the arguments ask for; returns the exit status.
pub fn main() -> i32 {
    let argv: Vec<String> = std::env::args_os()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let called = argv
        .first()
        .map_or("php-pool", |name| name.rsplit('/').next().unwrap_or(name))
        .to_owned();
    if called.contains("fpm") {
        return php_fpm(&called, argv);
    }
    if called == "php-pool-generator" {
        return crate::generator::main(&argv[1..]);
    }
    if argv.get(1).is_some_and(|word| word == "give-socket") {
        return give_socket(GiveSocket::parse_from(std::env::args_os().skip(1)));
    }
    match Cli::parse().command {
        Commands::Serve {
            config,
            allow_to_run_as_root,
            php_ini,
            define,
            control,
        } => {
            let php = PhpOptions {
                ini: php_ini,
                defines: define,
                ..PhpOptions::default()
            };
            let mut load = load_options(pool_file(&config), &php);
            let runtime = std::env::var_os("RUNTIME_DIRECTORY").and_then(|all| runtime_directory(&all));
            (load.allow_root_workers, load.daemonize) = (allow_to_run_as_root, Some(false));
            crate::master::run(Launch {
                load,
                php,
                log_to: LogTo::Named,
                argv,
                events: runtime.as_ref().and_then(|dir| Some(dir.parent()?.join(".events"))),
                control: control.or_else(|| Some(runtime?.join("control"))),
            })
        }
        Commands::Reload { whom, force } => ask::reload(&whom, force),
        Commands::Status { whom, json, watch } => ask::status(&whom, json, watch),
        Commands::Health { whom, json } => ask::health(&whom, json),
        Commands::Top(args) => top::top(&args),
        Commands::Exporter { listen, control } => exporter(listen, control),
        Commands::Workers { whom } => ask::workers(&whom),
        Commands::Ping { whom } => ask::ping(&whom),
        Commands::Check { config, print, pool } => {
            let file = pool_file(&config);
            // Who names a pool means one of systemd's.
            check(&file, print, pool || file != config)
        }
        Commands::Trace(args) => trace::trace(&args),
        Commands::Profile(args) => trace::profile(&args),
        Commands::Migrate(options) => crate::migrate::main(&options),
        Commands::Bus(options) => crate::bus::run(&options),
    }
}

fn give_socket(asked: GiveSocket) -> i32 {
    let pool = Pool {
        name: asked.pool,
        listen_owner: asked.owner,
        listen_group: asked.group,
        listen_acl_users: asked.acl_user,
        listen_acl_groups: asked.acl_group,
        ..Pool::default()
    };
    match crate::master::set_access(&asked.path, &pool) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("php-pool: {error}");
            1
        }
    }
}

fn exporter(listen: std::net::SocketAddr, control: Vec<PathBuf>) -> i32 {
    let whose = match control.is_empty() {
        true => exporter::Whose::All,
        false => exporter::Whose::Of(control),
    };
    match exporter::serve(listen, whose) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("php-pool: {error}");
            1
        }
    }
}

/// Of systemd's runtime directories the pool's own: a drop-in of the unit may have asked for further ones.
fn runtime_directory(all: &OsStr) -> Option<PathBuf> {
    let all: Vec<PathBuf> = std::env::split_paths(all).collect();
    let own = all
        .iter()
        .find(|dir| dir.parent().is_some_and(|parent| parent.ends_with("php-pool")));
    own.or(all.first()).cloned()
}

fn load_options(path: PathBuf, php: &PhpOptions) -> LoadOptions {
    let mut load = LoadOptions::new(path);
    let version = worker::find(None, None).map_or_else(|_| String::new(), |worker| worker.php);
    load.ini = php.search(&version, None, None).find().values(&load.env);
    load
}

/// A pool's name stands for its file; what has a slash or ends in `.conf` is a file.
fn pool_file(config: &Path) -> PathBuf {
    match config.to_str() {
        Some(name) if !name.contains('/') && !name.ends_with(".conf") => {
            Path::new(crate::generator::POOL_DIR).join(format!("{name}.conf"))
        }
        _ => config.to_owned(),
    }
}

fn check(path: &Path, print: bool, pool: bool) -> i32 {
    if let Some(Err(error)) = pool.then(|| crate::generator::check(path)) {
        eprintln!("{}", harmless(&error));
        return EX_CONFIG;
    }
    let mut load = load_options(path.to_owned(), &PhpOptions::default());
    load.test = true;
    match config::load(&load) {
        Ok(config) => {
            for notice in &config.notices {
                eprintln!("{}: {}", notice.level.name(), harmless(&notice.text));
            }
            if print {
                config::dump(&config)
                    .iter()
                    .for_each(|line| println!("{}", harmless(line)));
            }
            let count = config.pools.len();
            let pools = if count == 1 { "pool" } else { "pools" };
            println!("{}: {count} {pools}, no errors", path.display());
            0
        }
        Err(errors) => {
            eprintln!("{}", harmless(&errors.to_string()));
            EX_CONFIG
        }
    }
}

/// What somebody has written into a file must not reach the terminal as it is; lines stay lines.
pub(crate) fn harmless(text: &str) -> String {
    text.chars()
        .flat_map(|c| match c {
            '\n' | '\t' => vec![c],
            c if c.is_control() => c.escape_default().collect(),
            c => vec![c],
        })
        .collect()
}

fn php_fpm(called: &str, argv: Vec<String>) -> i32 {
    let options = match fpm::parse(argv.iter().skip(1).cloned()) {
        Ok(options) => options,
        Err(error) => {
            print!("{}", fpm::usage(called));
            eprintln!("{called}: {error}");
            return EX_USAGE;
        }
    };
    let php = PhpOptions {
        ini: options.ini.clone(),
        no_ini: options.no_ini,
        defines: options.defines.clone(),
        extended_info: options.extended_info,
    };
    let show = match options.show {
        Some(fpm::Show::Usage) => {
            print!("{}", fpm::usage(called));
            return 0;
        }
        Some(fpm::Show::Version) => Some("version"),
        Some(fpm::Show::Modules) => Some("modules"),
        Some(fpm::Show::Info) => Some("info"),
        None => None,
    };
    if let Some(what) = show {
        return ask_worker(called, what, &php);
    }
    let mut load = load_options(PathBuf::new(), &php);
    load.path = options.config.clone().unwrap_or_else(|| fpm_config(&options, &load));
    load.prefix = options.prefix;
    load.allow_root_workers = options.allow_root;
    load.pid = options.pid;
    load.daemonize = options.daemonize;
    if options.test > 0 {
        load.test = true;
        return test(&load, options.test > 1);
    }
    crate::master::run(Launch {
        load,
        php,
        log_to: if options.force_stderr {
            LogTo::Stderr
        } else {
            LogTo::ErrorLog
        },
        argv,
        control: None,
        events: None,
    })
}

/// Without `-y`: php.ini's `fpm.config`, else below the prefix, else php-fpm's own place.
fn fpm_config(options: &fpm::Options, load: &LoadOptions) -> PathBuf {
    if let Some(path) = load.ini.get("fpm.config").filter(|path| !path.is_empty()) {
        return path.into();
    }
    if let Some(prefix) = &options.prefix {
        return prefix.join("etc/php-fpm.conf");
    }
    let version = worker::find(None, None).map_or_else(|_| String::new(), |worker| worker.php);
    PathBuf::from(format!("/etc/php/{version}/fpm/php-fpm.conf"))
}

/// `-v`, `-m` and `-i` are PHP's to answer.
fn ask_worker(called: &str, what: &str, php: &PhpOptions) -> i32 {
    let worker = match worker::find(None, None) {
        Ok(worker) => worker,
        Err(error) => {
            eprintln!("{called}: {error}");
            return EX_SOFTWARE;
        }
    };
    let settings = php.settings(php.search(&worker.php, None, None).find());
    let settings = serde_json::to_string(&settings).expect("settings are plain data");
    let error = Command::new(&worker.path)
        .arg(what)
        .arg(OsString::from(settings))
        .exec();
    eprintln!("{called}: {} cannot be run: {error}", worker.path.display());
    EX_SOFTWARE
}

/// `-t` and `-tt`.
fn test(load: &LoadOptions, dump: bool) -> i32 {
    let log = Logger::new(Stamp::Time);
    let config = match config::load(load) {
        Ok(config) => config,
        Err(errors) => {
            for error in &errors.errors {
                log.log(error.level, error.php_fpm());
            }
            for line in errors.closing_lines() {
                log.error(line);
            }
            return EX_CONFIG;
        }
    };
    log.configure(config.global.log_level, config.global.log_limit);
    for notice in &config.notices {
        match &notice.pool {
            Some(pool) => log.pool(pool).log(notice.level, &notice.text),
            None => log.log(notice.level, &notice.text),
        }
    }
    if let Err(error) = crate::master::open_logs(&config, &log) {
        log.error(error);
        log.error("failed to post process the configuration");
        log.error("FPM initialization failed");
        return EX_CONFIG;
    }
    if dump {
        for line in config::dump(&config) {
            log.notice(line);
        }
    }
    log.notice(format!("configuration file {} test is successful", load.path.display()));
    let since_8_4 = worker::find(None, None).is_ok_and(|worker| worker::is_since_8_4(&worker.php));
    if log.takes(crate::log::Level::Notice) && !since_8_4 {
        eprintln!(); // php-fpm's text ended in a line break of its own
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_further_runtime_directory_is_not_taken_for_the_pools() {
        for (all, own) in [
            ("/run/php-pool/www", "/run/php-pool/www"),
            ("/run/app:/run/php-pool/www", "/run/php-pool/www"),
            ("/run/php-pool/www:/run/app", "/run/php-pool/www"),
            ("/run/mine", "/run/mine"),
        ] {
            assert_eq!(runtime_directory(OsStr::new(all)), Some(own.into()), "{all}");
        }
    }
}
