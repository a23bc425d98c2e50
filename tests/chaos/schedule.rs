//! What an administrator, a deployment and bad luck do to a server, drawn from a seed.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::load::Shared;
use crate::random::Random;
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

/// The disk of the access log is full for a while: /dev/full stands in for it, as nothing may be mounted for a test.
fn full_disk(server: &Server, random: &mut Random) {
    let file = server.home.join("pool.conf");
    let good = fs::read_to_string(&file).expect("the server's own file can be read");
    let log = server.home.join("access.log").display().to_string();
    assert!(good.contains(&log), "there is an access log");
    write(&file, &good.replace(&log, "/dev/full"));
    reload(server);
    thread::sleep(Duration::from_millis(random.between(20, 300)));
    write(&file, &good);
    reload(server);
}

/// A server that runs a program of its own, which can be replaced.
pub fn own_program(home: &Path) {
    for copy in ["program.a", "program.b"] {
        fs::copy(server::php_pool(), home.join(copy)).expect("the server's folder can be written");
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

/// A reload on a file that says nonsense must fail, and say so; then the file is mended.
pub fn broken_reload(server: &Server, random: &mut Random) {
    let file = server.home.join("pool.conf");
    let good = fs::read_to_string(&file).expect("the server's own file can be read");
    let nonsense = [
        "pm.max_children = many\n",
        "[unfinished\n",
        "no_such_directive = 1\n",
        "include = {home}/no-such-file.conf\npm = of-no-kind\n",
    ];
    let line = random.choose(&nonsense).expect("there are some");
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

/// Does one thing after another until the time is over.
pub fn run(server: &Server, shared: &Arc<Shared>, random: &mut Random, until: Instant) {
    while Instant::now() < until {
        thread::sleep(Duration::from_millis(random.between(20, 400)));
        let what = match random.below(18) {
            0..=2 => {
                reload(server);
                "reload"
            }
            3 => {
                // Whatever comes next comes into the middle of it.
                signal(master(server), Signal::SIGUSR2);
                "reload not waited for"
            }
            4 => {
                broken_reload(server, random);
                "broken reload"
            }
            5 | 6 => {
                let _ = fs::rename(server.home.join("error.log"), server.home.join("error.log.1"));
                signal(master(server), Signal::SIGUSR1);
                "rotation"
            }
            7..=9 => kill_worker(server, shared, random, Signal::SIGKILL),
            10 | 11 => kill_worker(server, shared, random, Signal::SIGSEGV),
            12..=13 => stop_worker(server, random),
            14 => {
                let zygotes: Vec<_> = processes(server)
                    .into_iter()
                    .filter(|(_, role)| *role == Role::Zygote)
                    .collect();
                match random.choose(&zygotes) {
                    Some((pid, _)) => signal(*pid, Signal::SIGKILL),
                    None => continue,
                }
                "zygote killed"
            }
            15 => ask_worker_to_leave(server, random),
            16 => {
                full_disk(server, random);
                "full disk"
            }
            _ => {
                upgrade(server);
                "upgrade"
            }
        };
        shared.ledger.did(what);
    }
}

fn worker(server: &Server, random: &mut Random) -> Option<(i32, String)> {
    let workers: Vec<_> = processes(server)
        .into_iter()
        .filter_map(|(pid, role)| match role {
            Role::Worker(pool) => Some((pid, pool)),
            Role::Zygote => None,
        })
        .collect();
    random.choose(&workers).cloned()
}

fn kill_worker(server: &Server, shared: &Arc<Shared>, random: &mut Random, how: Signal) -> &'static str {
    if let Some((pid, pool)) = worker(server, random) {
        shared.ledger.kill(&pool, pid);
        signal(pid, how);
        // A zombie has no command line.
        let alive = || fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty());
        let patience = Instant::now() + Duration::from_secs(30);
        while alive() && Instant::now() < patience {
            thread::sleep(Duration::from_millis(1));
        }
        shared.ledger.dead(pid);
    }
    if how == Signal::SIGKILL {
        "worker killed"
    } else {
        "worker crashed"
    }
}

/// A worker that the scheduler, a debugger or a full disk holds up for a moment.
fn stop_worker(server: &Server, random: &mut Random) -> &'static str {
    if let Some((pid, _)) = worker(server, random) {
        signal(pid, Signal::SIGSTOP);
        thread::sleep(Duration::from_millis(random.between(10, 300)));
        signal(pid, Signal::SIGCONT);
    }
    "worker stopped and continued"
}

/// An administrator's SIGQUIT: it leaves when its request ends.
fn ask_worker_to_leave(server: &Server, random: &mut Random) -> &'static str {
    if let Some((pid, _)) = worker(server, random) {
        signal(pid, Signal::SIGQUIT);
    }
    "worker asked to leave"
}
