//! Starting a zygote: which executable, with what, as whom.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::rc::Rc;

use command_fds::{CommandFdExt, FdMapping};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::mpsc;

use super::context::Context;
use super::foreign::Closer;
use super::listen::{Listener, is_hand_over};
use super::output::{self, Output, Reader, SavedOutput, Speaker};
use super::process::{Process, SavedProcess};
use super::saved::{Kept, Restorer, Saver};
use super::stamp::Files;
use super::users::Identity;
use super::watch::{self, Event, Place, Registered, Watch};
use crate::cli::worker;
use crate::config::phpini::PhpIni;
use crate::config::{Global, Pool, or_never};
use crate::control::{
    self, Channel, Confinement, FromZygote, PhpSettings, PoolSettings, ToZygote, VERSION, ZygoteConfig,
};
use crate::log::errno;
use crate::trace::Program;

/// Send buffer of control channels and links, bytes.
pub const BUFFER: usize = 512 << 10;

/// Why there is no zygote.
#[derive(Debug, Error)]
pub enum ZygoteError {
    /// The executable is nowhere.
    #[error(transparent)]
    NotFound(#[from] worker::WorkerError),
    /// It cannot be executed.
    #[error("{path} cannot be executed: {reason}", path = .0.display(), reason = errno(.1))]
    Execute(PathBuf, #[source] io::Error),
    /// Code of the pool would run before the chroot.
    #[error("opcache.preload and chroot exclude each other: what is preloaded would run outside of the chroot")]
    PreloadInChroot,
    /// Something it needs cannot be made.
    #[error("{0} cannot be made: {reason}", reason = errno(.1))]
    Make(&'static str, #[source] io::Error),
}

/// What a pool's PHP is found to be now.
struct Php {
    executable: worker::Worker,
    ini: PhpIni,
}

impl Php {
    fn find(ctx: &Context, pool: &Pool) -> Result<Self, worker::WorkerError> {
        let executable = worker::find(pool.worker_path.as_deref(), pool.php_version.as_deref())?;
        let search = ctx
            .launch
            .php
            .search(&executable.php, pool.php_ini.as_deref(), pool.php_scan_dir.as_deref());
        let ini = search.find();
        Ok(Self { executable, ini })
    }

    /// The files of php.ini, and the executable.
    fn files(&self) -> Files {
        let executable = std::iter::once(self.executable.path.clone());
        Files::now(self.ini.files().into_iter().chain(executable))
    }
}

/// The files that a zygote would be started from now; None when it could not be.
pub fn files_now(ctx: &Context, pool: &Pool) -> Option<Files> {
    Php::find(ctx, pool).ok().map(|php| php.files())
}

/// A zygote that is starting or has started. When this goes, its control channel closes and it ends.
#[derive(Debug)]
pub struct Zygote {
    /// The process.
    pub process: Rc<Process>,
    /// What it is to be told; full when it does not listen.
    pub orders: mpsc::Sender<(ToZygote, Vec<OwnedFd>)>,
    /// What it prints.
    pub output: Output,
    /// What its php.ini says.
    pub says: IniSays,
    /// What it was started from.
    pub files: Files,
    /// The program that it was started as.
    pub program: Option<Program>,
    channel: Registered<ToZygote, FromZygote>,
    watches: Option<[Watch; 2]>,
}

/// A zygote, for a successor.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedZygote {
    process: SavedProcess,
    channel: Kept,
    /// Nothing is heard from it any more.
    hung_up: bool,
    output: SavedOutput,
    says: IniSays,
    files: Files,
    #[serde(default)]
    program: Option<Program>,
}

/// What the master needs to know of a php.ini.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct IniSays {
    /// `expose_php`
    pub exposes_php: bool,
    /// `opcache.preload`: the pool's own code is a part of the zygote.
    pub preloads: bool,
}

/// What a zygote is made of.
#[derive(Debug)]
pub struct Parts<'a> {
    /// `[global]`
    pub global: &'a Global,
    /// The pool.
    pub pool: &'a Pool,
    /// Who its workers are.
    pub identity: &'a Identity,
    /// The listeners.
    pub listeners: &'a [Rc<Listener>],
    /// The scoreboard, the workers' end of the queue, the bell, the bell of the access log.
    pub fds: [OwnedFd; 4],
    /// Where the generation before names what it has compiled.
    pub compiled: Option<OwnedFd>,
    /// Closes what it sends.
    pub closer: &'a Closer,
    /// Reads what it prints.
    pub reader: &'a Reader,
}

impl Zygote {
    /// Executes one and tells it what it is to be.
    ///
    /// # Errors
    /// When it cannot be executed.
    pub fn start(ctx: &Context, place: Place, parts: Parts<'_>) -> Result<Self, ZygoteError> {
        let Parts {
            global,
            pool,
            identity,
            listeners,
            fds,
            compiled,
            closer,
            reader,
        } = parts;
        let make = |what| move |error| ZygoteError::Make(what, error);
        let found = Php::find(ctx, pool)?;
        let files = found.files();
        let Php { executable, ini } = found;
        let program = crate::trace::program(&executable.path);
        let (ours, theirs) = control::pair::<ToZygote, FromZygote>(BUFFER)
            .map_err(|error| ZygoteError::Make("its control channel", io::Error::other(error)))?;
        let (pipes, stderr) = output::stderr_pipe(reader).map_err(make("a pipe"))?;
        let asked_for = ini.variables();
        let (php, says) = php_settings(ctx, pool, ini)?;
        let config = ZygoteConfig {
            version: VERSION,
            confinement: confinement(pool, identity),
            php,
            env: environment(pool, identity),
            pool: pool_settings(global, pool, ctx.log.keeps_fields()),
            warm: compiled.as_ref().map(|_| pool.reload_warm),
        };

        let mut command = Command::new(&executable.path);
        command
            .arg0(format!("php-fpm: pool {}", pool.name))
            .arg("zygote")
            .current_dir("/")
            .stdin(Stdio::null());
        if let Ok(here) = std::env::current_dir() {
            command.current_dir(here);
        }
        command
            .stdout(stderr.try_clone().map_err(make("a pipe"))?)
            .stderr(stderr);
        // /proc/PID/environ shows this to PHP for as long as it runs.
        command.env_clear().envs(start_environment(pool, &asked_for));
        let mapping = FdMapping {
            parent_fd: theirs.into(),
            child_fd: 3,
        };
        command
            .fd_mappings(vec![mapping])
            .expect("one descriptor does not collide");
        let child = command
            .spawn()
            .map_err(|error| ZygoteError::Execute(executable.path, error))?;
        let pid = child.id() as i32;
        let process = Rc::new(Process::of_child(pid).map_err(make("a pidfd"))?);
        if let Some(Err(error)) = ctx.cgroup.as_ref().map(|groups| groups.place_zygote(pid)) {
            ctx.log.pool(&pool.name).warning(format_args!(
                "zygote {pid} stays in the master's control group: {error}"
            ));
        }
        // The master may need many descriptors; what PHP sees is what the administrator set.
        let _ = rustix::process::prlimit(
            rustix::process::Pid::from_raw(pid),
            rustix::process::Resource::Nofile,
            ctx.open_files,
        );

        let output = Output::start(pipes, reader, &ctx.log, speaker(pool, pid), true);
        let zygote = Self::with(ctx, place, pool, process, ours, output, closer, (says, files, program));
        let zygote = zygote.map_err(make("a registration"))?;
        let [board, workers, bell, log_bell] = fds;
        let clone = |listener: &Rc<Listener>| listener.as_fd().try_clone_to_owned().map_err(make("a descriptor"));
        let listeners = listeners.iter().map(clone).collect::<Result<Vec<_>, _>>()?;
        let mut fds = vec![board, workers, bell, log_bell];
        fds.extend(compiled);
        fds.extend(listeners);
        let first = (ToZygote::Configure(Box::new(config)), fds);
        zygote.orders.try_send(first).expect("a new queue has room");
        Ok(zygote)
    }

    #[allow(clippy::too_many_arguments, reason = "each of them is a part of it")]
    fn with(
        ctx: &Context,
        place: Place,
        pool: &Pool,
        process: Rc<Process>,
        channel: Channel<ToZygote, FromZygote>,
        output: Output,
        closer: &Closer,
        (says, files, program): (IniSays, Files, Option<Program>),
    ) -> io::Result<Self> {
        let channel = watch::register(channel)?;
        let (orders, queue) = mpsc::channel(pool.pm_max_children as usize + 64);
        let watches = [
            watch::messages(&channel, &ctx.events, closer, move |result| {
                Event::Zygote(place, result)
            }),
            watch::sender(&channel, queue, &ctx.events),
        ];
        Ok(Self {
            process,
            orders,
            output,
            says,
            files,
            program,
            channel,
            watches: Some(watches),
        })
    }

    /// Whether it has taken all that it was told.
    pub fn has_all_orders(&self) -> bool {
        self.orders.is_closed() || self.orders.capacity() == self.orders.max_capacity()
    }

    /// What is to go on.
    pub fn save(&self, saver: &mut Saver) -> SavedZygote {
        SavedZygote {
            process: self.process.save(saver),
            channel: saver.keep(self.channel.get_ref()),
            hung_up: self.is_silent(),
            output: self.output.save(saver),
            says: self.says,
            files: self.files.clone(),
            program: self.program,
        }
    }

    /// Goes on with it.
    ///
    /// # Errors
    /// When a descriptor is missing.
    pub fn restore(
        ctx: &Context,
        place: Place,
        pool: &Pool,
        (closer, reader): (&Closer, &Reader),
        saved: SavedZygote,
        fds: &mut Restorer,
    ) -> io::Result<Self> {
        let process = Rc::new(Process::restore(saved.process, fds)?);
        let output = Output::restore(saved.output, reader, &ctx.log, speaker(pool, process.pid()), fds)?;
        let channel = Channel::from(fds.take(saved.channel)?);
        let made_of = (saved.says, saved.files, saved.program);
        let mut zygote = Self::with(ctx, place, pool, process, channel, output, closer, made_of)?;
        if saved.hung_up {
            zygote.hang_up();
        }
        Ok(zygote)
    }

    /// Ends the conversation: nothing is heard from it any more, nor from whoever else has its end of the channel.
    pub fn hang_up(&mut self) {
        self.watches = None;
    }

    /// Whether the conversation has ended.
    pub fn is_silent(&self) -> bool {
        self.watches.is_none()
    }
}

/// Variables between this process and whoever started it.
fn is_internal(name: &str) -> bool {
    let systemd = [
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "RUNTIME_DIRECTORY",
        "SYSTEMD_EXEC_PID",
    ];
    is_hand_over(name) || systemd.contains(&name)
}

fn confinement(pool: &Pool, identity: &Identity) -> Confinement {
    let root = nix::unistd::geteuid().is_root();
    Confinement {
        user: identity.user.clone(),
        chroot: pool.chroot.clone().filter(|_| root),
        chdir: pool.chdir.clone(),
        priority: pool.process_priority.filter(|_| root),
        rlimit_files: pool.rlimit_files,
        rlimit_core: pool.rlimit_core,
        // Without root the kernel lets the master read its workers only so. They are the same user, and php-fpm's are so too.
        dumpable: pool.process_dumpable || (!root && !pool.request_slowlog_timeout.is_zero()),
        apparmor_hat: pool.apparmor_hat.clone(),
    }
}

/// The settings of PHP, and what they come to.
fn php_settings(ctx: &Context, pool: &Pool, found: PhpIni) -> Result<(PhpSettings, IniSays), ZygoteError> {
    let mut values = found.values(&ctx.launch.load.env);
    let entries = [&pool.php_admin_value, &pool.php_value];
    let mut value = |key: &str| {
        let own = entries.into_iter().flatten().find(|entry| entry.key == key);
        own.map(|entry| entry.value.clone()).or_else(|| values.remove(key))
    };
    let preloads = value("opcache.preload").is_some_and(|file| !file.is_empty());
    if pool.chroot.is_some() && preloads {
        return Err(ZygoteError::PreloadInChroot);
    }
    let value = value("expose_php");
    let off = |value: &str| matches!(value.to_ascii_lowercase().as_str(), "" | "0" | "off" | "no" | "false");
    let exposes_php = !value.as_deref().is_some_and(off);
    let settings = PhpSettings {
        values: pool.php_value.clone(),
        admin_values: pool.php_admin_value.clone(),
        ..ctx.launch.php.settings(found)
    };
    let says = IniSays { exposes_php, preloads };
    Ok((settings, says))
}

/// What PHP starts up with: what php.ini asks for by name, and what the loader and the C library go by. (php-fpm starts PHP
/// with all that the master has, and shows it to every pool.)
fn start_environment(pool: &Pool, asked_for: &HashSet<String>) -> Vec<(OsString, OsString)> {
    const OF_THE_SYSTEM: [&str; 7] = [
        "PATH",
        "TZ",
        "LANG",
        "LANGUAGE",
        "TMPDIR",
        "OPENSSL_CONF",
        "GLIBC_TUNABLES",
    ];
    let of_the_system = |name: &str| {
        let beginnings = ["LC_", "LD_", "MALLOC_"];
        OF_THE_SYSTEM.contains(&name) || beginnings.iter().any(|beginning| name.starts_with(beginning))
    };
    let is_for_php = |name: &str| !pool.clear_env || of_the_system(name) || asked_for.contains(name);
    std::env::vars_os()
        .filter(|(name, _)| match name.to_str() {
            Some(name) => !is_internal(name) && is_for_php(name),
            None => !pool.clear_env,
        })
        .collect()
}

/// In php-fpm's order: what is inherited, `env[]`, USER and HOME.
fn environment(pool: &Pool, identity: &Identity) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut env: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    if !pool.clear_env {
        let inherited = std::env::vars_os().filter(|(name, _)| !name.to_str().is_some_and(is_internal));
        env.extend(inherited.map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())));
    }
    env.extend(
        pool.env
            .iter()
            .map(|entry| (entry.key.clone().into_bytes(), entry.value.clone().into_bytes())),
    );
    let own = [
        ("USER", identity.name.clone().map(String::into_bytes)),
        ("HOME", identity.home.clone()),
    ];
    for (name, value) in own {
        if let Some(value) = value
            && !pool.env.iter().any(|entry| entry.key == name)
        {
            env.push((name.as_bytes().to_vec(), value));
        }
    }
    env
}

fn speaker(pool: &Pool, pid: i32) -> Speaker<'_> {
    Speaker {
        pool: &pool.name,
        pid,
        slot: None,
    }
}

fn pool_settings(global: &Global, pool: &Pool, log_whole: bool) -> PoolSettings {
    PoolSettings {
        name: pool.name.clone(),
        title: format!("pool {}", pool.name),
        max_children: pool.pm_max_children,
        max_requests: pool.pm_max_requests,
        status_path: pool.pm_status_path.clone(),
        ping_path: pool.ping_path.clone(),
        ping_response: pool.ping_response.clone(),
        limit_extensions: pool.security_limit_extensions.clone(),
        allowed_clients: pool.listen_allowed_clients.clone(),
        allowed_clients_wrong: pool.listen_allowed_clients_wrong.clone(),
        access_log: pool.access_log.is_some(),
        access_format: pool.access_format.clone(),
        access_suppress_path: pool.access_suppress_path.clone(),
        catch_output: pool.catch_workers_output,
        log_level: global.log_level,
        log_limit: global.log_limit,
        log_whole,
        request_header_timeout: or_never(pool.request_header_timeout),
        request_body_timeout: or_never(pool.request_body_timeout),
        response_write_timeout: or_never(pool.response_write_timeout),
        linger_timeout: pool.linger_timeout,
        connection_idle_timeout: pool.connection_idle_timeout,
        request_terminate_timeout: pool.request_terminate_timeout,
        stop_timeout: pool.stop_timeout,
        recycle_memory: pool.worker_recycle_memory,
    }
}
