//! `./dev bench figures`: reload, scaling, start-up and memory, for php-fpm and php-pool in one run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::Outcome;
use crate::contenders::pss;
use crate::load::Request;
use crate::store;
use crate::support::fcgi::{Address, Connection, PATIENCE};
use crate::support::process::{Daemon, that_dies_with_us};
use crate::support::server::{php_fpm, php_pool};
use crate::support::wiki;

const READY: &str = "ready to handle connections";

const RELOADS: usize = 100;

/// A request that takes longer was stalled.
const STALL: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    PhpFpm,
    PhpPool,
}

/// A server with a configuration of its own.
struct Stage {
    root: tempfile::TempDir,
    daemon: Daemon,
}

impl Stage {
    fn home() -> Outcome<tempfile::TempDir> {
        let root = wiki::folder();
        fs::write(root.path().join("hello.php"), "<?php echo \"Hello, world!\\n\";")?;
        fs::write(
            root.path().join("sleep.php"),
            "<?php usleep(200000); echo \"Hello, world!\\n\";",
        )?;
        fs::write(root.path().join("php.ini"), "opcache.file_update_protection = 0\n")?;
        Ok(root)
    }

    fn configure(root: &Path, pools: usize, lines: &str) -> Outcome<()> {
        let root = root.display();
        let user = if geteuid().is_root() {
            "user = www-data\ngroup = www-data\n"
        } else {
            ""
        };
        let mut text = format!("[global]\nerror_log = {root}/error.log\n");
        for pool in 0..pools {
            text += &format!("[pool{pool}]\n{user}listen = {root}/sock{pool}\n{lines}\n");
        }
        Ok(fs::write(format!("{root}/pool.conf"), text)?)
    }

    fn executable(kind: Kind, root: &Path) -> Outcome<PathBuf> {
        if kind == Kind::PhpFpm {
            return Ok(php_fpm());
        }
        let link = root.join("php-fpm");
        if !link.exists() {
            std::os::unix::fs::symlink(php_pool(), &link)?;
        }
        Ok(link)
    }

    fn arguments(command: &mut Command, root: &Path) {
        command
            .args(["-F", "-O", "-y"])
            .arg(root.join("pool.conf"))
            .arg("-c")
            .arg(root.join("php.ini"));
        command
            .envs(wiki::debian_extensions().iter().copied())
            .current_dir(root);
    }

    /// Starts it, and waits until it says that it is ready.
    fn start(kind: Kind, pools: usize, lines: &str) -> Outcome<Self> {
        let root = Self::home()?;
        Self::configure(root.path(), pools, lines)?;
        let mut command = that_dies_with_us("KILL", Self::executable(kind, root.path())?);
        Self::arguments(&mut command, root.path());
        let output = root.path().join("output");
        let ready = || fs::read_to_string(&output).is_ok_and(|text| text.contains(READY));
        let daemon = Daemon::start(command, root.path(), ready)?;
        Ok(Self { root, daemon })
    }

    fn request(&self, script: &str) -> Request {
        request(self.root.path(), script)
    }

    fn address(&self, pool: usize) -> Address {
        Address::Unix(self.root.path().join(format!("sock{pool}")))
    }

    /// How long a request takes that must be answered.
    fn ask(&self, pool: usize, script: &str) -> Outcome<Duration> {
        let begin = Instant::now();
        match ask(&self.address(pool), &self.request(script)) {
            true => Ok(begin.elapsed()),
            false => Err(format!("no answer from {script}; the server said\n{}", self.daemon.output()).into()),
        }
    }

    fn master(&self) -> Pid {
        Pid::from_raw(self.daemon.family()[0].pid)
    }

    fn times_ready(&self) -> usize {
        self.daemon.output().matches(READY).count()
    }
}

fn request(root: &Path, script: &str) -> Request {
    Request::new(&root.join(script).display().to_string(), false, "GET", "", b"", false)
}

/// Whether it was answered in whole.
fn ask(address: &Address, request: &Request) -> bool {
    let Ok(mut connection) = Connection::open(address) else {
        return false;
    };
    connection.send(&request.bytes);
    let reply = connection.reply(1);
    reply.end.is_some() && String::from_utf8_lossy(&reply.stdout).contains("Hello, world!")
}

/// Runs all of them, and keeps the table for the report.
pub fn run() -> Outcome<()> {
    let mut text = "| | php-fpm | php-pool |\n|---|---:|---:|\n".to_owned();
    let mut line = |what: &str, of: &dyn Fn(Kind) -> Outcome<String>| -> Outcome<()> {
        let new = format!("| {what} | {} | {} |\n", of(Kind::PhpFpm)?, of(Kind::PhpPool)?);
        print!("{new}");
        text += &new;
        Ok(())
    };
    line(
        "100 reloads under load: requests, failed, over 100 ms; the slowest, ms",
        &reloads,
    )?;
    line(
        "pm = dynamic, 2 workers: time until 40 requests of 0.2 s are answered, s",
        &scaling,
    )?;
    line("pm = ondemand: its first request, ms", &ondemand)?;
    line("asleep, activated by its socket: its first request, ms", &activated)?;
    line("fork to first request (pm.max_requests = 1), ms", &recycled)?;
    for pools in [1, 10, 100] {
        line(
            &format!("memory of {pools} pools with a worker each, PSS MB"),
            &|kind| memory(kind, pools),
        )?;
    }
    store::save_figures(&text)
}

pub fn read() -> Outcome<Option<String>> {
    store::read_figures()
}

fn reloads(kind: Kind) -> Outcome<String> {
    let stage = Stage::start(kind, 1, "pm = static\npm.max_children = 4")?;
    let (over, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let client = || {
        let (mut failed, mut slow, mut worst) = (0, 0, Duration::ZERO);
        let (address, request) = (stage.address(0), stage.request("hello.php"));
        while !over.load(Relaxed) {
            let begin = Instant::now();
            failed += u64::from(!ask(&address, &request));
            worst = worst.max(begin.elapsed());
            slow += u64::from(begin.elapsed() > STALL);
            answered.fetch_add(1, Relaxed);
        }
        (failed, slow, worst)
    };
    let results = thread::scope(|scope| -> Outcome<Vec<_>> {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(client)).collect();
        let reload = || -> Outcome<()> {
            for _ in 0..RELOADS {
                let (ready, before) = (stage.times_ready(), answered.load(Relaxed));
                kill(stage.master(), Signal::SIGUSR2)?;
                // php-fpm forgets a signal that comes while it reloads.
                wait(|| stage.times_ready() > ready && answered.load(Relaxed) > before + 20)?;
            }
            Ok(())
        };
        let outcome = reload();
        over.store(true, Relaxed);
        let results = clients
            .into_iter()
            .map(|client| client.join().map_err(|_| "a client panicked".into()));
        outcome.and_then(|()| results.collect())
    })?;
    let failed: u64 = results.iter().map(|result| result.0).sum();
    let slow: u64 = results.iter().map(|result| result.1).sum();
    let worst = results.iter().map(|result| result.2).max().unwrap_or_default();
    let all = answered.load(Relaxed);
    Ok(format!(
        "{all}, **{failed}**, **{slow}**; {:.0}",
        worst.as_secs_f64() * 1e3
    ))
}

fn wait(happened: impl Fn() -> bool) -> Outcome<()> {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        if Instant::now() > deadline {
            return Err("a server did not do in a minute what takes it milliseconds".into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn scaling(kind: Kind) -> Outcome<String> {
    let lines =
        "pm = dynamic\npm.max_children = 40\npm.start_servers = 2\npm.min_spare_servers = 1\npm.max_spare_servers = 40";
    let stage = Stage::start(kind, 1, lines)?;
    let (address, request) = (stage.address(0), stage.request("sleep.php"));
    let begin = Instant::now();
    let answered = thread::scope(|scope| {
        let clients: Vec<_> = (0..40).map(|_| scope.spawn(|| ask(&address, &request))).collect();
        clients
            .into_iter()
            .filter_map(|client| client.join().ok())
            .filter(|answered| *answered)
            .count()
    });
    if answered < 40 {
        return Err(format!("{} of 40 requests failed", 40 - answered).into());
    }
    Ok(format!("{:.2}", begin.elapsed().as_secs_f64()))
}

fn median(mut times: Vec<Duration>) -> String {
    times.sort();
    format!("{:.1}", times[times.len() / 2].as_secs_f64() * 1e3)
}

fn ondemand(kind: Kind) -> Outcome<String> {
    let once = |_| Stage::start(kind, 1, "pm = ondemand\npm.max_children = 4")?.ask(0, "hello.php");
    Ok(median((0..7).map(once).collect::<Outcome<_>>()?))
}

/// php-fpm takes no socket from anybody but itself.
fn activated(kind: Kind) -> Outcome<String> {
    if kind == Kind::PhpFpm {
        return Ok("–".into());
    }
    let once = |_| {
        let root = Stage::home()?;
        Stage::configure(root.path(), 1, "pm = ondemand\npm.max_children = 4\nlisten.mode = 0666")?;
        let socket = root.path().join("sock0");
        let mut command = that_dies_with_us("TERM", "systemd-socket-activate");
        command.arg("--fdname=listen").arg("-l").arg(&socket);
        for (name, value) in wiki::debian_extensions() {
            command.arg(format!("--setenv={name}={value}"));
        }
        command.arg(Stage::executable(kind, root.path())?);
        Stage::arguments(&mut command, root.path());
        let _daemon = Daemon::start(command, root.path(), || socket.exists())?;
        let begin = Instant::now();
        let answered = ask(&Address::Unix(socket.clone()), &request(root.path(), "hello.php"));
        let time = begin.elapsed();
        answered
            .then_some(time)
            .ok_or_else(|| "a sleeping pool did not answer".into())
    };
    Ok(median((0..7).map(once).collect::<Outcome<_>>()?))
}

fn recycled(kind: Kind) -> Outcome<String> {
    let stage = Stage::start(kind, 1, "pm = static\npm.max_children = 1\npm.max_requests = 1")?;
    stage.ask(0, "hello.php")?;
    let times: Vec<Duration> = (0..51).map(|_| stage.ask(0, "hello.php")).collect::<Outcome<_>>()?;
    Ok(median(times))
}

fn memory(kind: Kind, pools: usize) -> Outcome<String> {
    let stage = Stage::start(kind, pools, "pm = static\npm.max_children = 1")?;
    for pool in 0..pools {
        stage.ask(pool, "hello.php")?;
    }
    let sum: u64 = stage
        .daemon
        .family()
        .iter()
        .filter_map(|process| pss(process.pid))
        .sum();
    Ok(format!("{:.0}", sum as f64 / 1024.0))
}
