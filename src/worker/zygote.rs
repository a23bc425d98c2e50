//! The zygote: PHP started up once, as the pool's user; then it only forks, and reports who ended.
//!
//! It stays single-threaded, for only then a plain fork() gives whole workers (locks that lie in shared memory, atfork
//! handlers, glibc's cached thread id).

use std::collections::HashMap;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use php_pool::control::{Channel, ChannelError, Exit, FromZygote, Received, Spawn, ToZygote, VERSION, ZygoteConfig};
use php_pool::log::Level;
use php_pool::scoreboard::Scoreboard;

use super::{confine, php, print_log, signals, warm};

type Control = Channel<FromZygote, ToZygote>;

/// What every worker inherits.
pub struct Generation {
    /// As the master sent it.
    pub config: ZygoteConfig,
    /// The listeners.
    pub listeners: Vec<OwnedFd>,
    /// The scoreboard.
    pub board: Scoreboard,
    /// The pool's second listener.
    pub queue: OwnedFd,
    /// Rung when few workers are idle.
    pub bell: OwnedFd,
    /// Wakes who writes the access log.
    pub log_bell: OwnedFd,
    /// Pid of the master, for the access log.
    pub master: u32,
    /// The files that this process's code comes from.
    pub mapped: Vec<PathBuf>,
}

/// Runs the zygote on the control channel at descriptor 3, to its end.
pub fn run() -> ! {
    // SAFETY: the master's contract: descriptor 3 is this process's end of the control channel, and nobody else's here.
    let control = Control::from(unsafe { OwnedFd::from_raw_fd(3) });
    let status = match start(&control) {
        Ok(generation) => serve(&control, generation),
        Err(reason) => {
            print_log(Level::Error, false, reason.as_bytes(), usize::MAX);
            let _ = control.send(&FromZygote::Failed { reason }, &[], true);
            70
        }
    };
    std::process::exit(status)
}

fn start(control: &Control) -> Result<Generation, String> {
    // Whatever the master's own parent left open is nothing to PHP code.
    // SAFETY: closes descriptors that nobody here has been given.
    unsafe { libc::close_range(4, u32::MAX, 0) };
    nix::fcntl::fcntl(control, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))
        .map_err(|e| format!("descriptor 3 is not the control channel: {e}"))?;
    let master = std::os::unix::process::parent_id();
    let Received { message, fds } = control
        .receive(true)
        .map_err(|e| format!("the master said nothing: {e}"))?;
    let ToZygote::Configure(config) = message else {
        return Err("the master's first message is no Configure".into());
    };
    if config.version != VERSION {
        return Err(format!(
            "the master speaks version {} of the control protocol, not {VERSION}",
            config.version
        ));
    }
    let mut fds = fds.into_iter();
    let (Some(board), Some(queue), Some(bell), Some(log_bell)) = (fds.next(), fds.next(), fds.next(), fds.next())
    else {
        return Err("Configure came without its descriptors".to_owned());
    };
    let compiled = config.warm.and_then(|limit| Some((fds.next()?, limit)));
    let listeners = fds.collect();
    let board = Scoreboard::open(board).map_err(|e| e.to_string())?;

    let complain = |text: String| print_log(Level::Error, false, text.as_bytes(), usize::MAX);
    // Before a chroot hides /etc. A title is no more than a help.
    php_pool::log::read_time_zone();
    let _ = php_pool::sys::set_title(&format!("php-fpm: zygote {}", config.pool.name));
    php_pool::sys::take_name_of(master);
    confine::enter(&config.confinement, complain).map_err(|e| e.to_string())?;
    // Until it serves it hears nothing of the master's end, and what is started up may take its time, or for ever. (A change
    // of the user would undo this.)
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGTERM);
    if std::os::unix::process::parent_id() != master {
        return Err("the master is gone".to_owned());
    }

    // What the master has let through: php.ini and libraries may ask for it.
    super::environment::set_scan_dir(config.php.scan_dir.as_deref());
    php::init();
    php::start(&config.php)?;
    // Before a chroot hides /proc.
    let mapped = mapped();
    confine::close(&config.confinement).map_err(|e| e.to_string())?;
    super::environment::replace(&config.env);
    php::apply(&config.php, complain);
    board.header().publish_trace_layout(php::trace_layout());
    // Extensions may have started threads or left children; neither survives a fork in order.
    signals::reset();
    if let Some((names, limit)) = compiled {
        warm::compile(names, limit)?;
    }
    Ok(Generation {
        config: *config,
        listeners,
        board,
        queue,
        bell,
        log_bell,
        master,
        mapped,
    })
}

/// The files that are mapped to be executed.
fn mapped() -> Vec<PathBuf> {
    let maps = std::fs::read("/proc/self/maps").unwrap_or_default();
    let mut files: Vec<PathBuf> = maps
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            // Address, rights, offset, device, inode, path.
            let line = std::str::from_utf8(line).ok()?;
            let path = &line[line.find('/')?..];
            let executable = line.split_whitespace().nth(1)?.contains('x');
            executable.then(|| PathBuf::from(path))
        })
        .collect();
    files.dedup();
    files
}

/// Forks on command until the master says Quit or is gone.
fn serve(control: &Control, generation: Generation) -> i32 {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    // systemd sends SIGTERM to every process of a service, a terminal its own to all of a job, and killall what is meant for a
    // php-fpm to all of its name: when to end is the master's to say.
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ] {
        mask.add(signal);
    }
    let _ = mask.thread_block();
    let Ok(ended) = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK) else {
        return 70;
    };
    let ready = FromZygote::Ready {
        php: php::version().to_owned(),
        mapped: generation.mapped.clone(),
    };
    if control.send(&ready, &[], true).is_err() {
        return 0;
    }
    let mut workers: HashMap<Pid, u64> = HashMap::new();
    loop {
        let mut polled = [
            PollFd::new(control.as_fd(), PollFlags::POLLIN),
            PollFd::new(ended.as_fd(), PollFlags::POLLIN),
        ];
        if let Err(error) = poll(&mut polled, PollTimeout::NONE)
            && error != Errno::EINTR
        {
            return 70;
        }
        while let Ok(Some(_)) = ended.read_signal() {}
        for (worker, exit) in reap(&mut workers) {
            let _ = control.send(&FromZygote::Exited { worker, exit }, &[], true);
        }
        match control.receive(false) {
            Err(ChannelError::WouldBlock) => {}
            Err(ChannelError::Closed) => return orphaned(workers, generation.config.pool.stop_timeout),
            Err(error) => print_log(Level::Error, false, error.to_string().as_bytes(), usize::MAX),
            Ok(Received {
                message: ToZygote::Quit,
                ..
            }) => return 0,
            Ok(Received {
                message: ToZygote::Name,
                fds,
            }) => warm::name(fds),
            Ok(Received {
                message: ToZygote::Ping(number),
                ..
            }) => {
                let _ = control.send(&FromZygote::Pong(number), &[], true);
            }
            Ok(Received {
                message: ToZygote::Configure(_),
                ..
            }) => {}
            Ok(Received {
                message: ToZygote::Spawn(spawn),
                fds,
            }) => {
                let worker = spawn.worker;
                // SAFETY: this process has one thread, so that the child is whole.
                match unsafe { fork() } {
                    Err(error) => regret(control, worker, error),
                    Ok(ForkResult::Parent { child }) => {
                        workers.insert(child, worker);
                        let pid = child.as_raw();
                        let _ = control.send(&FromZygote::Spawned { worker, pid }, &[], true);
                    }
                    Ok(ForkResult::Child) => become_worker(control, ended, generation, spawn, fds),
                }
            }
        }
    }
}

fn regret(control: &Control, worker: u64, error: Errno) {
    let errno = error as i32;
    let _ = control.send(&FromZygote::NotSpawned { worker, errno }, &[], true);
}

fn become_worker(control: &Control, ended: SignalFd, generation: Generation, spawn: Spawn, fds: Vec<OwnedFd>) -> ! {
    // What belongs to the zygote alone must not be within reach of PHP code.
    let _ = nix::unistd::close(std::os::fd::AsRawFd::as_raw_fd(control));
    drop(ended);
    signals::reset();
    super::enter(generation, spawn, fds)
}

fn reap(workers: &mut HashMap<Pid, u64>) -> Vec<(u64, Exit)> {
    let mut ended = Vec::new();
    loop {
        let (pid, exit) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, Exit::Code(code)),
            Ok(WaitStatus::Signaled(pid, signal, core)) => (
                pid,
                Exit::Signal {
                    signal: signal as i32,
                    core,
                },
            ),
            Ok(WaitStatus::StillAlive) | Err(_) => return ended,
            Ok(_) => continue,
        };
        // What an extension started in the zygote is none of the master's.
        if let Some(worker) = workers.remove(&pid) {
            ended.push((worker, exit));
        }
    }
}

/// The master is gone: the workers leave when their requests end, and at the latest after `limit`.
fn orphaned(mut workers: HashMap<Pid, u64>, limit: Duration) -> i32 {
    let deadline = Instant::now() + limit;
    for pid in workers.keys() {
        let _ = kill(*pid, Signal::SIGTERM);
    }
    while !workers.is_empty() {
        reap(&mut workers);
        if Instant::now() >= deadline {
            for pid in workers.keys() {
                let _ = kill(*pid, Signal::SIGKILL);
            }
        }
        let _ = poll(&mut [], 20u16);
    }
    0
}
