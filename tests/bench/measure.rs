//! Runs one row: both servers, round by round.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::load::{self, Request};
use crate::rows::{Body, Cores, Row};
use crate::scripts;
use crate::support::fcgi::Connection;
use crate::support::server::{Kind, Server, Setup, www};
use crate::support::web::urlencoded;
use crate::support::wiki;

/// What one round has shown.
#[derive(Clone, Debug)]
pub struct Round {
    /// Requests a second.
    pub rate: f64,
    /// CPU time of the server, all its processes, for one request, in microseconds.
    pub cpu: f64,
    /// In milliseconds.
    pub p50: f64,
    pub p99: f64,
}

/// All rounds of one server, and what a worker holds in memory after them.
#[derive(Clone, Debug)]
pub struct Result {
    pub rounds: Vec<Round>,
    /// Proportional set size, in kB: median of the workers.
    pub pss: u64,
}

/// The servers that are compared; the first is what the others are measured by.
pub const KINDS: [Kind; 2] = [Kind::PhpFpm, Kind::PhpPool];

/// Measures a row: a result for each of [`KINDS`].
pub fn run(row: &Row, rounds: usize, seconds: f64) -> std::result::Result<Vec<Result>, Box<dyn Error>> {
    let root = wiki::folder();
    let setup: &'static Setup = Box::leak(Box::new(Setup {
        workers: row.workers,
        listen: row.listen,
        ..*wiki::setup(row.workers)
    }));
    let www = www(root.path(), setup);
    if row.script == "doku.php" {
        wiki::unpack(&www)?;
    }
    scripts::write(&www)?;

    let mut contenders = Vec::new();
    for kind in KINDS {
        let server = Server::start(kind, setup, root.path())?;
        contenders.push(Contender::new(server, row, &www)?);
    }
    let everywhere = sched_getaffinity(Pid::from_raw(0))?;
    pin_client(row.cores, &everywhere)?;
    for contender in &contenders {
        contender.pin(row.cores, &everywhere)?;
        contender.round(row, Duration::from_secs_f64(seconds / 4.0));
    }
    let mut results: BTreeMap<&str, Vec<Round>> = BTreeMap::new();
    for round in 0..rounds {
        // Whoever came first comes last the next time.
        let mut order: Vec<_> = contenders.iter().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for contender in order {
            let outcome = contender.round(row, Duration::from_secs_f64(seconds));
            results.entry(contender.server.kind.name()).or_default().push(outcome);
        }
    }
    sched_setaffinity(Pid::from_raw(0), &everywhere)?;
    let mut all = Vec::new();
    for mut contender in contenders {
        let rounds = results.remove(contender.server.kind.name()).expect("each has run");
        let pss = contender.pss();
        contender.server.stop()?;
        all.push(Result { rounds, pss });
    }
    Ok(all)
}

struct Contender {
    server: Server,
    request: Request,
    /// Bytes of an answer, where all are alike.
    expected: Option<u64>,
}

impl Contender {
    /// Looks at one answer of the server with care; later ones are only measured.
    fn new(server: Server, row: &Row, www: &Path) -> std::result::Result<Self, Box<dyn Error>> {
        let script = |name: &str| www.join(name).display().to_string();
        let keep = row.keep && (row.keep_for_php_fpm || server.kind != Kind::PhpFpm);
        let (method, kind, body) = body(row.body);
        let request = Request::new(&script(row.script), keep, method, &kind, &body);
        if row.script == "doku.php" && www.join("conf/local.php").metadata().is_err() {
            let form = "application/x-www-form-urlencoded";
            let install = Request::new(
                &script("install.php"),
                false,
                "POST",
                form,
                urlencoded(&wiki::installation()).as_bytes(),
            );
            let reply = ask(&mut server.connect(), &install);
            if !reply.contains("finished successfully") {
                return Err(format!("the wiki was not installed:\n{reply}").into());
            }
        }
        let answer = ask(&mut server.connect(), &request);
        if !answer.contains(row.answer) {
            return Err(format!("{} answers row '{}' with\n{answer}", server.kind.name(), row.name).into());
        }
        Ok(Self {
            server,
            request,
            expected: row.constant.then_some(answer.len() as u64),
        })
    }

    fn round(&self, row: &Row, duration: Duration) -> Round {
        let before = self.cpu();
        let mut outcome = load::run(
            &self.server.address,
            &self.request,
            row.in_flight,
            duration,
            self.expected,
        );
        let cpu = self.cpu() - before;
        outcome.latencies.sort_unstable();
        let percentile = |p: usize| {
            let at = (outcome.latencies.len() * p / 100).min(outcome.latencies.len() - 1);
            outcome.latencies[at].as_secs_f64() * 1e3
        };
        let requests = outcome.requests as f64;
        Round {
            rate: requests / outcome.elapsed.as_secs_f64(),
            cpu: cpu.as_secs_f64() * 1e6 / requests,
            p50: percentile(50),
            p99: percentile(99),
        }
    }

    /// CPU time of all processes of the server so far.
    fn cpu(&self) -> Duration {
        let of = |pid: i32| -> u64 {
            let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
            text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
        };
        Duration::from_nanos(self.server.pids().into_iter().map(of).sum())
    }

    fn pss(&self) -> u64 {
        let of = |pid: i32| -> Option<u64> {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
            let line = text.lines().find(|line| line.starts_with("Pss:"))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        let mut all: Vec<u64> = self.server.workers().into_iter().filter_map(of).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or(0)
    }

    fn pin(&self, cores: Cores, everywhere: &CpuSet) -> nix::Result<()> {
        let set = match (cores, numbers(everywhere).as_slice()) {
            (Cores::Free, _) | (_, []) => *everywhere,
            (Cores::Apart, [.., last]) => only(*last)?,
            (Cores::Shared, [first, ..]) => only(*first)?,
        };
        self.server
            .pids()
            .into_iter()
            .try_for_each(|pid| sched_setaffinity(Pid::from_raw(pid), &set))
    }
}

/// The client takes the first core, alone or with the server.
fn pin_client(cores: Cores, everywhere: &CpuSet) -> nix::Result<()> {
    match (cores, numbers(everywhere).first()) {
        (Cores::Free, _) | (_, None) => Ok(()),
        (_, Some(&first)) => sched_setaffinity(Pid::from_raw(0), &only(first)?),
    }
}

fn numbers(set: &CpuSet) -> Vec<usize> {
    (0..CpuSet::count())
        .filter(|&n| set.is_set(n).unwrap_or(false))
        .collect()
}

fn only(number: usize) -> nix::Result<CpuSet> {
    let mut set = CpuSet::new();
    set.set(number)?;
    Ok(set)
}

/// What the server answers, as text.
fn ask(connection: &mut Connection, request: &Request) -> String {
    connection.send(&request.bytes);
    let reply = connection.reply(1);
    String::from_utf8_lossy(&reply.stdout).into_owned()
}

/// Method, content type and bytes of a body.
fn body(body: Body) -> (&'static str, String, Vec<u8>) {
    match body {
        Body::None => ("GET", String::new(), Vec::new()),
        Body::Form(size) => {
            let field = size / 10;
            let fields: Vec<String> = (0..10).map(|n| format!("f{n}={}", "x".repeat(field - 4))).collect();
            (
                "POST",
                "application/x-www-form-urlencoded".into(),
                fields.join("&").into_bytes(),
            )
        }
        Body::Upload(size) => {
            let head = "--cut\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\
                        Content-Type: application/octet-stream\r\n\r\n";
            let bytes = [head.as_bytes(), &vec![b'y'; size], b"\r\n--cut--\r\n"].concat();
            ("POST", "multipart/form-data; boundary=cut".into(), bytes)
        }
    }
}
