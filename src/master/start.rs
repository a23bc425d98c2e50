//! From the command line to a running loop, in php-fpm's order.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::rc::Rc;

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Uid;
use thiserror::Error;
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use super::access_log::{self, AccessLog, AccessLogError};
use super::background::{self, Report, Side};
use super::daemon::{self, Daemon};
use super::listen::{Inherited, ListenError, Listener, Sockets};
use super::log_file;
use super::pid_file::{PidFile, PidFileError};
use super::pool::Wanted;
use super::privileges;
use super::saved::Saved;
use super::systemd::Systemd;
use super::upgrade::{self, Called};
use super::users::{self, UserError};
use super::watch::{Event, Events};
use super::{output, sys};
use crate::cli::{Launch, LogTo};
use crate::config::{self, Config, Global, Listen, Rlimit};
use crate::log::{LogError, Logger, Settings, errno};

/// The configuration is wrong, or something that it asks for cannot be had.
const EX_CONFIG: i32 = 78;
/// PHP cannot start; or, in the background, anything.
const EX_SOFTWARE: i32 = 70;

/// Messages of all watchers that wait for the loop; who has more to say waits.
const EVENTS: usize = 256;

/// Why there is no master. The texts are php-fpm's where it says the same.
#[derive(Debug, Error)]
pub enum StartError {
    /// The configuration is wrong; all of that has been logged.
    #[error(transparent)]
    Configuration(#[from] config::Errors),
    /// error_log
    #[error(transparent)]
    Log(#[from] LogError),
    /// access.log
    #[error(transparent)]
    AccessLog(#[from] AccessLogError),
    /// slowlog
    #[error("[pool {0}] Unable to create or open slowlog({path}): {reason}", path = .1.display(), reason = errno(.2))]
    SlowLog(String, PathBuf, #[source] io::Error),
    /// A limit of the master.
    #[error("failed to set {0} for this pool. Please check your system limits or decrease {0}. setrlimit({1}): {2}")]
    Limit(&'static str, String, #[source] Errno),
    /// fork()
    #[error("failed to daemonize: {reason}", reason = errno(.0))]
    Fork(#[source] io::Error),
    /// A pool's user.
    #[error("[pool {0}] {1}")]
    User(String, #[source] UserError),
    /// A socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A socket where others than root can put something in its place.
    #[error(transparent)]
    TenantsSocket(ListenError),
    /// The pid file.
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    /// Which workers are a zygote's own is read there; a container's own tools mount it.
    #[error(
        "/proc does not show this process as {pid}: it must be there, and of the pid namespace that php-pool runs in",
        pid = std::process::id()
    )]
    Proc,
    /// What the master itself needs.
    #[error("{0} cannot be made: {reason}", reason = errno(.1))]
    Make(&'static str, #[source] io::Error),
}

/// Runs a master to its end; returns the exit status.
pub fn run(launch: Launch) -> i32 {
    match upgrade::called() {
        Called::Start => {}
        Called::Check => return upgrade::answer(),
        Called::TakeOver(state) => return take_over(launch, state.into()),
    }
    // An early reload must not kill us; TERM may.
    let early = SigSet::from_iter([Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGHUP, Signal::SIGCHLD]);
    let _ = early.thread_block();
    let inherited = Inherited::take();
    sys::close_on_exec_from(3);
    let log = Logger::default();
    let mut report = None;
    match prepare(launch, &log, inherited, &mut report) {
        Ok(Prepared::Stays(start)) => start.run(report, early),
        Ok(Prepared::Called(status)) => status,
        Err(error) => {
            if !matches!(error, StartError::Configuration(_)) {
                log.error(&error);
            }
            Systemd::start_failed(&error.to_string());
            if matches!(
                error,
                StartError::AccessLog(_) | StartError::SlowLog(..) | StartError::Log(_)
            ) {
                log.error("failed to post process the configuration");
            }
            log.error("FPM initialization failed");
            if report.is_some() { EX_SOFTWARE } else { EX_CONFIG }
        }
    }
}

/// Goes on where the program that was this process before has left.
fn take_over(launch: Launch, state: File) -> i32 {
    // It has blocked them already.
    let _ = daemon::handled().thread_block();
    sys::close_on_exec_from(3);
    let log = Logger::default();
    match Saved::read(state) {
        Ok(saved) => {
            set_title(&saved.config, &log);
            // The exec has given root's all back.
            give_up_privileges(saved.sockets.are_held(), &log);
            run_loop(&log.clone(), daemon::handled(), |events, receiver| {
                Daemon::restore(launch, log, saved, events, receiver)
            })
        }
        Err(error) => {
            log.error(error);
            EX_SOFTWARE
        }
    }
}

/// Runs what `make` makes to its end, `blocked` signals let in; returns the exit status.
fn run_loop(
    log: &Logger,
    blocked: SigSet,
    make: impl FnOnce(Events, mpsc::Receiver<Event>) -> io::Result<Daemon>,
) -> i32 {
    let failed = |what, error| {
        log.error(StartError::Make(what, error));
        EX_SOFTWARE
    };
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed("the event loop", error),
    };
    let status = LocalSet::new().block_on(&runtime, async {
        let (sender, events) = mpsc::channel(EVENTS);
        match make(Events::new(sender), events) {
            Ok(daemon) => {
                let _ = blocked.thread_unblock();
                daemon.run().await
            }
            Err(error) => failed("a descriptor", error),
        }
    });
    access_log::wait_for_all(log);
    status
}

fn give_up_privileges(sockets_are_held: bool, log: &Logger) {
    if let Err(error) = privileges::give_up(!sockets_are_held) {
        log.warning(format_args!("the master keeps all its capabilities: {}", errno(&error)));
    }
}

fn set_title(config: &Config, log: &Logger) {
    let title = format!("php-fpm: master process ({})", config.path.display());
    if let Err(error) = crate::sys::set_title(&title) {
        log.debug(format_args!("the process's title cannot be set: {}", errno(&error)));
    }
}

enum Prepared {
    Stays(Box<Start>),
    Called(i32),
}

/// All that a loop begins with.
#[derive(Debug)]
pub struct Start {
    /// The command line.
    pub launch: Launch,
    /// The log.
    pub log: Logger,
    /// The configuration.
    pub config: Config,
    /// Its pools, made ready.
    pub pools: Vec<(Wanted, Option<AccessLog>)>,
    /// Their sockets.
    pub sockets: Sockets,
    /// The pid file.
    pub pid_file: Option<PidFile>,
    /// stderr as it was.
    pub stderr: Option<File>,
    /// The limit of open files as it was.
    pub open_files: rustix::process::Rlimit,
}

fn prepare(
    launch: Launch,
    log: &Logger,
    inherited: Inherited,
    report: &mut Option<Report>,
) -> Result<Prepared, StartError> {
    let null = output::null().map_err(|error| StartError::Make("/dev/null", error))?;
    let _ = nix::unistd::dup2_stdin(&null);
    let _ = nix::unistd::dup2_stdout(&null);

    let mut config = load(&launch, log)?;
    let global = &config.global;
    let replace_stderr = replaces_stderr(&launch, global, global.daemonize);
    // In the background nothing of the caller's terminal or pipe may stay open.
    let stderr = (!global.daemonize)
        .then(|| std::io::stderr().as_fd().try_clone_to_owned().ok())
        .flatten();
    let stderr = stderr.map(File::from).inspect(append);
    log.open(&log_settings(&launch, global), replace_stderr)?;
    let own = std::process::id().to_string();
    if !std::fs::read_link("/proc/self").is_ok_and(|shown| shown.as_os_str() == own.as_str()) {
        return Err(StartError::Proc);
    }
    let opened: Vec<_> = config
        .pools
        .iter_mut()
        .map(|pool| open_pool_logs(pool, None, stderr.as_ref(), log))
        .collect::<Result<_, _>>()?;
    let open_files = set_limits(global)?;
    if global.daemonize {
        match background::enter(log).map_err(StartError::Fork)? {
            Side::Stays(owed) => *report = Some(owed),
            Side::Called(status) => return Ok(Prepared::Called(status)),
        }
    }
    let _ = nix::unistd::setsid();
    set_priority(global, log);

    let mut sockets = Sockets::default();
    sockets.adopt_all(inherited, log);
    let made = all_wanted(&launch, &config, opened, &mut sockets, log).and_then(|pools| {
        let pid_file = global.pid.as_deref().map(PidFile::write).transpose()?;
        Ok((pools, pid_file))
    });
    let (pools, pid_file) = made.inspect_err(|_| sockets.remove_made())?;
    sockets.say_unused(log);
    sockets.close_unused();

    set_title(&config, log);
    if global.daemonize {
        log.tie_stderr()?;
    }
    give_up_privileges(sockets.are_held(), log);
    log.started();
    let log = log.clone();
    Ok(Prepared::Stays(Box::new(Start {
        launch,
        log,
        config,
        pools,
        sockets,
        pid_file,
        stderr,
        open_files,
    })))
}

impl Start {
    fn run(self, report: Option<Report>, early: SigSet) -> i32 {
        let log = self.log.clone();
        run_loop(&log, early, |sender, events| Daemon::new(self, sender, events, report))
    }
}

/// `2>FILE` does not append: the error log and an access log, each at its own place there, would write over each other.
fn append(stderr: &File) {
    if stderr.metadata().is_ok_and(|found| found.is_file())
        && let Ok(flags) = rustix::fs::fcntl_getfl(stderr)
    {
        let _ = rustix::fs::fcntl_setfl(stderr, flags | rustix::fs::OFlags::APPEND);
    }
}

/// Whether lines go to `error_log` and no longer to stderr.
pub fn replaces_stderr(launch: &Launch, global: &Global, daemonized: bool) -> bool {
    match launch.log_to {
        _ if daemonized => true,
        LogTo::ErrorLog => !io::stderr().is_terminal(),
        LogTo::Stderr => false,
        LogTo::Named => global.error_log_named,
    }
}

/// The rules of the log. A file that nobody has named is not touched where lines go to stderr instead.
pub fn log_settings(launch: &Launch, global: &Global) -> Settings {
    let mut settings = Settings::from(global);
    if launch.log_to == LogTo::Named && !global.error_log_named {
        settings.target = None;
    }
    settings
}

/// Reads the configuration and says what there is to say about it.
///
/// # Errors
/// All that is wrong has been said, but for the last line.
pub fn load(launch: &Launch, log: &Logger) -> Result<Config, StartError> {
    match config::load(&launch.load) {
        Ok(config) => {
            log.configure(config.global.log_level, config.global.log_limit);
            for notice in &config.notices {
                match &notice.pool {
                    Some(pool) => log.pool(pool).log(notice.level, &notice.text),
                    None => log.log(notice.level, &notice.text),
                }
            }
            Ok(config)
        }
        Err(errors) => {
            for error in &errors.errors {
                log.log(error.level, error.php_fpm());
            }
            let lines = errors.closing_lines();
            for line in lines.iter().take(lines.len().saturating_sub(1)) {
                log.error(line);
            }
            Err(errors.into())
        }
    }
}

/// What all pools are made from, with the access logs that have been opened. Whoever has put something in the place of his
/// socket harms no other pool: his own is left out.
///
/// # Errors
/// The first of a pool that fails otherwise; or where none is left.
pub fn all_wanted(
    launch: &Launch,
    config: &Config,
    opened: Vec<Option<AccessLog>>,
    sockets: &mut Sockets,
    log: &Logger,
) -> Result<Vec<(Wanted, Option<AccessLog>)>, StartError> {
    let (mut pools, mut left_out) = (Vec::new(), Vec::new());
    for (pool, access_log) in config.pools.iter().zip(opened) {
        match wanted(launch, config, pool, sockets, log) {
            Ok(wanted) => pools.push((wanted, access_log)),
            Err(error @ StartError::TenantsSocket(_)) => left_out.push((&pool.name, error)),
            Err(error) => return Err(error),
        }
    }
    if pools.is_empty()
        && let Some((_, error)) = left_out.pop()
    {
        return Err(error);
    }
    for (name, error) in left_out {
        log.pool(name).error(format_args!(
            "{error}; the other pools go on without it, until a reload"
        ));
    }
    Ok(pools)
}

/// What a pool's generation is made from: its user is looked up, its socket made.
///
/// # Errors
/// The first of both that fails.
fn wanted(
    launch: &Launch,
    config: &Config,
    pool: &config::Pool,
    sockets: &mut Sockets,
    log: &Logger,
) -> Result<Wanted, StartError> {
    let identity = users::resolve(pool, launch.load.allow_root_workers)
        .map_err(|error| StartError::User(pool.name.clone(), error))?;
    let failed = |address: &Listen, error: ListenError| match address {
        Listen::Unix(path) if error.is_of_the_place() && log_file::in_whose_hands(path, &identity).is_some() => {
            StartError::TenantsSocket(error)
        }
        _ => StartError::Listen(error),
    };
    let mut listeners = sockets
        .of_pool(pool, config.pools.len() == 1, log)
        .map_err(|error| failed(&pool.listen_address, error))?;
    let status_listener = match &pool.pm_status_listen_address {
        Some(address) => Some(
            sockets
                .get(address, "pm.status_listen", pool, log)
                .map_err(|error| failed(address, error))?,
        ),
        None => None,
    };
    // Whatever its name: who may look at the status may not run scripts.
    let is_status = |listener: &Rc<Listener>| {
        status_listener
            .as_ref()
            .is_some_and(|status| Rc::ptr_eq(status, listener))
    };
    let further = listeners.split_off(1).into_iter();
    listeners.extend(further.filter(|listener| !is_status(listener)));
    Ok(Wanted {
        global: Rc::new(config.global.clone()),
        config: Rc::new(pool.clone()),
        identity,
        status_listener,
        listeners,
    })
}

/// Opens the access log of a pool, and looks whether its slow log can be opened. A tenant who has put something in the place of
/// one harms no other pool of this master: his own does without, or keeps the access log that it had `before`, and so says its
/// configuration from then on.
///
/// # Errors
/// When one of them cannot, and root alone can change the way to it.
pub fn open_pool_logs(
    pool: &mut config::Pool,
    before: Option<&config::Pool>,
    stderr: Option<&File>,
    log: &Logger,
) -> Result<Option<AccessLog>, StartError> {
    // A user that does not exist is said later; then root's rules hold.
    let identity = users::resolve(pool, true).unwrap_or_default();
    if let Some(path) = pool
        .slowlog
        .as_ref()
        .filter(|_| !pool.request_slowlog_timeout.is_zero())
        && let Err(error) = log_file::open(path, &identity)
    {
        let error = StartError::SlowLog(pool.name.clone(), path.clone(), error);
        let Some(whose) = log_file::in_whose_hands(path, &identity) else {
            return Err(error);
        };
        log.error(format_args!("{error}; {whose}"));
    }
    let Some(path) = &pool.access_log else {
        return Ok(None);
    };
    let error = match AccessLog::open(path, &identity, stderr) {
        Ok(opened) => return Ok(Some(opened)),
        Err(error) => error,
    };
    let Some(whose) = log_file::in_whose_hands(path, &identity) else {
        return Err(error.into());
    };
    pool.access_log = before.and_then(|before| before.access_log.clone());
    let instead = match &pool.access_log {
        Some(_) => "the one that is open stays so",
        None => "the pool goes on without, until a reload",
    };
    log.pool(&pool.name).error(format_args!("{error}; {whose}; {instead}"));
    Ok(None)
}

/// Opens the error log and every access log and slow log of a configuration, as `-t` does too.
///
/// # Errors
/// A full sentence.
pub fn open_logs(config: &Config, log: &Logger) -> Result<(), StartError> {
    log.open(&Settings::from(&config.global), true)?;
    config
        .pools
        .iter()
        .try_for_each(|pool| open_pool_logs(&mut pool.clone(), None, None, log).map(drop))
}

/// The master's own limits. Returns that of open files as pools are to see it.
fn set_limits(global: &Global) -> Result<rustix::process::Rlimit, StartError> {
    if let Some(core) = global.rlimit_core {
        let value = match core {
            Rlimit::Unlimited => libc::RLIM_INFINITY,
            Rlimit::Value(value) => value,
        };
        setrlimit(Resource::RLIMIT_CORE, value, value)
            .map_err(|error| StartError::Limit("rlimit_core", format!("RLIMIT_CORE, {value}"), error))?;
    }
    if let Some(files) = global.rlimit_files {
        setrlimit(Resource::RLIMIT_NOFILE, files, files)
            .map_err(|error| StartError::Limit("rlimit_files", format!("RLIMIT_NOFILE, {files}"), error))?;
    }
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    // Each worker costs some descriptors, each kept connection one; only select() minds, which nobody here calls.
    let _ = rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit {
            current: files.maximum,
            maximum: files.maximum,
        },
    );
    Ok(files)
}

fn set_priority(global: &Global, log: &Logger) {
    let Some(priority) = global.process_priority.filter(|_| Uid::effective().is_root()) else {
        return;
    };
    if let Err(error) = rustix::process::setpriority_process(None, priority) {
        log.error(format_args!(
            "Unable to set priority for the master process: {}",
            errno(&error.into())
        ));
    }
}
