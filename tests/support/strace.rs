//! The system calls of one request, counted from outside by strace.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use super::fcgi::{self, Connection, PATIENCE};
use super::server::{Kind, Listen, Server, Setup, www};
use super::wiki::debian_extensions;

/// How the request comes to the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// On a new connection; the worker had to wait for it.
    New,
    /// On a kept connection; the worker had to wait for it.
    Kept,
    /// On a new connection that waited while the only worker was at another request: in the socket, or with php-pool's master.
    Queued,
}

/// How often each system call is made for one request.
pub type Calls = BTreeMap<String, f64>;

/// Runs of two lengths: what they have in common (start and end of the run) cancels out in the difference.
const FEW: usize = 5;
const MANY: usize = 25;

/// A server with one worker that has opcache warm, and its hello world.
pub struct Subject {
    server: Server,
    script: String,
    /// Sockets of the worker while it has no connection.
    sockets: usize,
}

impl Subject {
    pub fn start(kind: Kind, root: &Path) -> Result<Self, String> {
        Self::start_with(kind, root, "strace", "")
    }

    /// With more lines for the pool; `name` is its folder's.
    pub fn start_with(kind: Kind, root: &Path, name: &'static str, pool: &str) -> Result<Self, String> {
        let setup: &'static Setup = Box::leak(Box::new(Setup {
            name,
            pool: Box::leak(format!("ping.path = /ping\n{pool}").into_boxed_str()),
            workers: 1,
            listen: Listen::Unix,
            opcache: false, // as Debian's settings have it
            ini: "opcache.file_update_protection = 0\n",
            environment: debian_extensions(),
            ..Setup::BASE
        }));
        let server = Server::start(kind, setup, root)?;
        let script = www(root, setup).join("hello.php");
        fs::write(&script, "<?php echo \"Hello, world!\\n\";").map_err(|e| e.to_string())?;
        fs::write(script.with_file_name("slow.php"), "<?php readfile(__DIR__ . '/gate');")
            .map_err(|e| e.to_string())?;
        let _ = fs::remove_file(script.with_file_name("gate"));
        mkfifo(&script.with_file_name("gate"), Mode::from_bits_truncate(0o644)).map_err(|e| e.to_string())?;
        let mut subject = Self {
            server,
            script: script.display().to_string(),
            sockets: 0,
        };
        let mut connection = subject.server.connect();
        subject.ask(&mut connection, "hello.php", false);
        connection.end();
        subject.sockets = sockets(subject.worker()?);
        Ok(subject)
    }

    /// The system calls of one request.
    pub fn calls(&self, how: How) -> Result<Calls, String> {
        let (few, many) = (self.trace(how, FEW)?, self.trace(how, MANY)?);
        let mut calls = Calls::new();
        for (name, count) in many {
            let other = few.get(&name).copied().unwrap_or(0);
            let each = (count as f64 - other as f64) / (MANY - FEW) as f64;
            if each != 0.0 {
                calls.insert(name, each);
            }
        }
        Ok(calls)
    }

    /// The system calls of the worker while it answers `count` requests.
    fn trace(&self, how: How, count: usize) -> Result<BTreeMap<String, u64>, String> {
        let worker = self.worker()?;
        let strace = Strace::attach(worker, self.server.home.join("strace.log"))?;
        match how {
            How::New => {
                for _ in 0..count {
                    self.ask(&mut self.server.connect(), "hello.php", false);
                }
            }
            How::Kept => {
                let mut connection = self.server.connect();
                for _ in 0..count {
                    self.ask(&mut connection, "hello.php", true);
                }
            }
            How::Queued => {
                let asking = |script| {
                    let mut connection = self.server.connect();
                    connection.send(&self.request(script, "/hello.php", false));
                    connection
                };
                // While the worker is in the first request, the others queue up.
                let mut connections = vec![asking("slow.php")];
                let gate = self.gate()?;
                connections.extend((0..count).map(|_| asking("hello.php")));
                if self.server.kind == Kind::PhpPool {
                    // It answers who comes behind them when it has taken them all.
                    let mut ping = self.server.connect();
                    ping.send(&self.request("ping", "/ping", false));
                    answered(&mut ping);
                }
                drop(gate);
                for connection in &mut connections {
                    answered(connection);
                    connection.half_close();
                }
            }
        }
        // What it has to do yet for these connections is not to be counted with the next ones.
        let deadline = Instant::now() + PATIENCE;
        while sockets(worker) > self.sockets {
            if Instant::now() > deadline {
                return Err(format!("the worker still has connections after {PATIENCE:?}"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        strace.detach()
    }

    fn worker(&self) -> Result<i32, String> {
        let worker = self.server.workers().into_iter().next();
        worker.ok_or_else(|| "the server has no worker".to_owned())
    }

    /// The writing end of what slow.php reads to its end, once it does.
    fn gate(&self) -> Result<fs::File, String> {
        let mut options = fs::OpenOptions::new();
        options.write(true).custom_flags(nix::libc::O_NONBLOCK);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match options.open(Path::new(&self.script).with_file_name("gate")) {
                Ok(gate) => return Ok(gate),
                Err(error) if Instant::now() > deadline => return Err(format!("slow.php does not run: {error}")),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    fn request(&self, script: &str, uri: &str, keep: bool) -> Vec<u8> {
        let script = self.script.replace("hello.php", script);
        let params = [
            ("SCRIPT_FILENAME", script.as_str()),
            ("SCRIPT_NAME", uri),
            ("REQUEST_URI", uri),
            ("REQUEST_METHOD", "GET"),
            ("QUERY_STRING", ""),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
            ("HTTP_HOST", "localhost"),
        ];
        let flags = if keep { fcgi::KEEP_CONN } else { 0 };
        fcgi::request(flags, &params, b"")
    }

    fn ask(&self, connection: &mut Connection, script: &str, keep: bool) {
        connection.send(&self.request(script, "/hello.php", keep));
        answered(connection);
    }
}

/// How many sockets a process has open.
fn sockets(pid: i32) -> usize {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let names = links.filter_map(|link| fs::read_link(link.path()).ok());
    names
        .filter(|name| name.to_string_lossy().starts_with("socket:"))
        .count()
}

fn answered(connection: &mut Connection) {
    let reply = connection.reply(1);
    assert!(reply.end.is_some(), "no answer: {reply}");
}

/// strace on one process.
struct Strace {
    child: Child,
    log: PathBuf,
}

impl Strace {
    /// Attaches, and returns when the process is being traced.
    fn attach(pid: i32, log: PathBuf) -> Result<Self, String> {
        let failed = |e: std::io::Error| format!("strace cannot be started: {e}");
        let mut child = Command::new("strace")
            .args(["-f", "-p", &pid.to_string(), "-o"])
            .arg(&log)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let mut said = String::new();
        let stderr = child.stderr.take().expect("it is piped");
        BufReader::new(stderr).read_line(&mut said).map_err(failed)?;
        if !said.contains("attached") {
            let _ = child.wait();
            return Err(format!("strace does not attach to process {pid}: {said}"));
        }
        Ok(Self { child, log })
    }

    /// Detaches; how often each system call was begun.
    fn detach(mut self) -> Result<BTreeMap<String, u64>, String> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(pid, Signal::SIGINT).map_err(|e| format!("strace was gone: {e}"))?;
        self.child.wait().map_err(|e| e.to_string())?;
        let log = fs::read_to_string(&self.log).map_err(|e| format!("{}: {e}", self.log.display()))?;
        let mut calls = BTreeMap::new();
        for line in log.lines() {
            // "PID name(arguments) = result"; a call that is resumed was counted when it began.
            let call = line.split_once(' ').map_or(line, |(_, call)| call).trim_start();
            if call.starts_with("<...") {
                continue;
            }
            // Rust's library looks at each descriptor before it closes it, where debug assertions are compiled in.
            if cfg!(debug_assertions) && call.starts_with("fcntl(") && call.contains("F_GETFD") {
                continue;
            }
            if let Some((name, _)) = call.split_once('(')
                && !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            {
                *calls.entry(name.to_owned()).or_default() += 1;
            }
        }
        Ok(calls)
    }
}

/// The number of calls, rounded: of a run of requests one may have had one more or less.
pub fn total(calls: &Calls) -> u32 {
    calls.values().sum::<f64>().round() as u32
}
