//! What an administrator, a deployment and bad luck do to a server, drawn from a seed.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ledger::Ledger;
use crate::random::Random;
use crate::support::process::copy_program;
use crate::support::server::{self, Server};

/// What a process of ours is, by its title.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    Zygote,
    Worker(String),
}

/// The zygotes and workers of a server at this moment.
pub fn processes(server: &Server) -> Vec<(i32, Role)> {
    let role = |pid: &i32| {
        let title = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let title = title.trim_end_matches('\0').strip_prefix("php-fpm: ")?;
        let (what, pool) = title.split_once(' ')?;
        match what {
            "zygote" => Some((*pid, Role::Zygote)),
            "pool" => Some((*pid, Role::Worker(pool.to_owned()))),
            _ => None,
        }
    };
    server.pids().iter().skip(1).filter_map(role).collect()
}

pub fn signal(pid: i32, signal: Signal) {
    // It may have ended meanwhile.
    let _ = kill(Pid::from_raw(pid), signal);
}

/// The master's pid.
pub fn master(server: &Server) -> i32 {
    *server.pids().first().expect("the master runs")
}

/// How often `what` stands in the server's log.
pub fn count(server: &Server, what: &str) -> usize {
    server.log().matches(what).count()
}

pub const READY: &str = "ready to handle connections";
pub const TAKEN_OVER: &str = "has taken over";
const GIVEN_UP: &str = "the reload is given up";

/// Reloads, and waits until the new generation serves.
pub fn reload(server: &Server) {
    let before = count(server, READY);
    signal(master(server), Signal::SIGUSR2);
    server.wait_for_log("the end of a reload", |log| log.matches(READY).count() > before);
}

/// The disk of a log is full for a while: /dev/full stands in for it, as nothing may be mounted for a test.
fn full_disk(server: &Server, log: &str, time: Duration) {
    let file = server.home.join("pool.conf");
    let good = fs::read_to_string(&file).expect("the server's own file can be read");
    let log = server.home.join(log).display().to_string();
    assert!(good.contains(&log), "there is such a log");
    write(&file, &good.replace(&log, "/dev/full"));
    reload(server);
    thread::sleep(time);
    write(&file, &good);
    reload(server);
}

/// A server that runs a program of its own, which can be replaced.
pub fn own_program(home: &Path) {
    for copy in ["program.a", "program.b"] {
        copy_program(&server::php_pool(), &home.join(copy));
    }
    let worker = server::php_pool().with_file_name("php-pool-worker");
    std::os::unix::fs::symlink(worker, home.join("php-pool-worker")).expect("the server's folder can be written");
}

/// Puts another file of the program into the place of the one that runs, as a package does, and reloads: it takes over.
pub fn upgrade(server: &Server) {
    let at = |name: &str| server.home.join(name);
    let rename = |from: &str, to: &str| fs::rename(at(from), at(to)).expect("a file can be renamed");
    rename("program.a", "program.c");
    rename("program.b", "program.a");
    rename("program.c", "program.b");
    fs::hard_link(at("program.b"), at("program.c")).expect("the server's folder can be written");
    rename("program.c", "php-fpm");
    let before = count(server, TAKEN_OVER);
    signal(master(server), Signal::SIGUSR2);
    // The end of an earlier reload is not the end of this one.
    server.wait_for_log("that the new program has taken over and serves", |log| {
        log.matches(TAKEN_OVER).count() > before
            && log
                .rsplit_once(TAKEN_OVER)
                .is_some_and(|(_, since)| since.contains(READY))
    });
}

pub const NONSENSE: [&str; 4] = [
    "pm.max_children = many\n",
    "[unfinished\n",
    "no_such_directive = 1\n",
    "include = {home}/no-such-file.conf\npm = of-no-kind\n",
];

/// A reload on a file that says nonsense must fail, and say so; then the file is mended.
pub fn broken_reload(server: &Server, line: &str) {
    let file = server.home.join("pool.conf");
    let good = fs::read_to_string(&file).expect("the server's own file can be read");
    write(&file, &format!("{good}\n{line}"));
    let before = count(server, GIVEN_UP);
    signal(master(server), Signal::SIGUSR2);
    server.wait_for_log("that a reload is given up", |log| {
        log.matches(GIVEN_UP).count() > before
    });
    write(&file, &good);
}

/// Replaces a file in one step, as a deployment does.
fn write(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).expect("the server's folder can be written");
    fs::rename(&new, file).expect("a file can be renamed");
}

/// One thing that is done to a server, with all that chance has to say about it: which of several it is done to, and for how
/// long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    Reload,
    /// Whatever comes next comes into the middle of it.
    ReloadNotWaitedFor,
    BrokenReload(&'static str),
    Rotation,
    KillWorker(Signal, usize),
    KillZygote(usize),
    AskWorkerToLeave(usize),
    StopWorker(usize, Duration),
    StopZygote(usize, Duration),
    StopMaster(Duration),
    FullDisk(&'static str, Duration),
    Upgrade,
    /// Where the tests hold the sockets, as systemd does; then it is started again.
    KillMaster,
    Restart,
}

impl Deed {
    fn draw(random: &mut Random) -> Self {
        // The place of one among however many there will be.
        let which = random.next() as usize;
        let moment = Duration::from_millis(random.between(10, 300));
        match random.below(24) {
            0..=2 => Self::Reload,
            3 => Self::ReloadNotWaitedFor,
            4 => Self::BrokenReload(NONSENSE[which % NONSENSE.len()]),
            5 | 6 => Self::Rotation,
            7..=9 => Self::KillWorker(Signal::SIGKILL, which),
            10 | 11 => Self::KillWorker(Signal::SIGSEGV, which),
            12 => Self::KillZygote(which),
            13 => Self::AskWorkerToLeave(which),
            14 | 15 => Self::StopWorker(which, moment),
            16 => Self::StopZygote(which, 4 * moment),
            17 => Self::StopMaster(4 * moment),
            18 => Self::FullDisk("access.log", moment),
            19 => Self::FullDisk("error.log", moment),
            20 => Self::Upgrade,
            21 | 22 => Self::KillMaster,
            _ => Self::Restart,
        }
    }

    /// What it is called in the account.
    fn name(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::ReloadNotWaitedFor => "reload not waited for",
            Self::BrokenReload(_) => "broken reload",
            Self::Rotation => "rotation",
            Self::KillWorker(Signal::SIGKILL, _) => "worker killed",
            Self::KillWorker(..) => "worker crashed",
            Self::KillZygote(_) => "zygote killed",
            Self::AskWorkerToLeave(_) => "worker asked to leave",
            Self::StopWorker(..) => "worker stopped and continued",
            Self::StopZygote(..) => "zygote stopped and continued",
            Self::StopMaster(_) => "master stopped and continued",
            Self::FullDisk("access.log", _) => "access log's disk full",
            Self::FullDisk(..) => "error log's disk full",
            Self::Upgrade => "upgrade",
            Self::KillMaster => "master killed",
            Self::Restart => "restart",
        }
    }

    fn carry_out(self, server: &mut Server, ledger: &Ledger) {
        match self {
            Self::Reload => reload(server),
            Self::ReloadNotWaitedFor => signal(master(server), Signal::SIGUSR2),
            Self::BrokenReload(line) => broken_reload(server, line),
            Self::Rotation => {
                let _ = fs::rename(server.home.join("error.log"), server.home.join("error.log.1"));
                signal(master(server), Signal::SIGUSR1);
            }
            Self::KillWorker(how, which) => kill_worker(server, ledger, which, how),
            Self::KillZygote(which) => {
                if let Some(pid) = zygote(server, which) {
                    signal(pid, Signal::SIGKILL);
                }
            }
            // An administrator's SIGQUIT: it leaves when its request ends.
            Self::AskWorkerToLeave(which) => {
                if let Some((pid, _)) = worker(server, which) {
                    signal(pid, Signal::SIGQUIT);
                }
            }
            Self::StopWorker(which, time) => stop_for(worker(server, which).map(|(pid, _)| pid), time),
            Self::StopZygote(which, time) => stop_for(zygote(server, which), time),
            Self::StopMaster(time) => stop_for(Some(master(server)), time),
            Self::FullDisk(log, time) => full_disk(server, log, time),
            Self::Upgrade => upgrade(server),
            Self::KillMaster => end_master(server, ledger, Signal::SIGKILL),
            Self::Restart => end_master(server, ledger, Signal::SIGTERM),
        }
    }
}

/// What is done to a server, and how long after what came before: the same for the same seed.
pub fn drawn_from(seed: u64) -> impl Iterator<Item = (Duration, Deed)> {
    let mut random = Random::new(seed);
    std::iter::repeat_with(move || {
        let after = Duration::from_millis(random.between(20, 400));
        (after, Deed::draw(&mut random))
    })
}

/// Does one thing after another until the time is over.
pub fn run(server: &mut Server, ledger: &Ledger, seed: u64, until: Instant) {
    for (after, deed) in drawn_from(seed) {
        thread::sleep(after);
        if Instant::now() >= until {
            return;
        }
        deed.carry_out(server, ledger);
        ledger.did(deed.name());
    }
}

fn worker(server: &Server, which: usize) -> Option<(i32, String)> {
    let workers: Vec<_> = processes(server)
        .into_iter()
        .filter_map(|(pid, role)| match role {
            Role::Worker(pool) => Some((pid, pool)),
            Role::Zygote => None,
        })
        .collect();
    one_of(&workers, which)
}

fn zygote(server: &Server, which: usize) -> Option<i32> {
    let zygotes: Vec<_> = processes(server)
        .into_iter()
        .filter(|(_, role)| *role == Role::Zygote)
        .collect();
    one_of(&zygotes, which).map(|(pid, _)| pid)
}

fn one_of<T: Clone>(all: &[T], which: usize) -> Option<T> {
    all.get(which.checked_rem(all.len())?).cloned()
}

fn kill_worker(server: &Server, ledger: &Ledger, which: usize, how: Signal) {
    if let Some((pid, pool)) = worker(server, which) {
        ledger.kill(&pool, pid);
        signal(pid, how);
        // A zombie has no command line.
        let alive = || fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty());
        let patience = Instant::now() + Duration::from_secs(30);
        while alive() && Instant::now() < patience {
            thread::sleep(Duration::from_millis(1));
        }
        ledger.dead(pid);
    }
}

/// The scheduler, a debugger or a full disk holds it up for a moment.
fn stop_for(pid: Option<i32>, time: Duration) {
    if let Some(pid) = pid {
        signal(pid, Signal::SIGSTOP);
        thread::sleep(time);
        signal(pid, Signal::SIGCONT);
    }
}

/// systemd starts a service again whose main process has been killed, and one that is to be restarted.
fn end_master(server: &mut Server, ledger: &Ledger, how: Signal) {
    ledger.end(server.starts, how == Signal::SIGKILL);
    let status = server.end_master(how);
    ledger.ended();
    assert!(how == Signal::SIGKILL || status.success(), "{status}\n{}", server.log());
    server.start_again();
}
