//! Millions of requests, and nothing has grown: `./dev test soak`, `-- --requests N` for more or fewer than two million.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod support;

use std::fs;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use support::fcgi::{self, Connection, KEEP_CONN};
use support::server::{self, Kind, Server, Setup};
use support::wiki::folder;

/// What a worker, and what the master may have more at the end than after the first requests, KiB.
const GROWTH: u64 = 4 << 10;

/// Requests on one kept connection.
const ON_ONE: u64 = 500;

const SETUP: Setup = Setup {
    name: "soak",
    workers: 4,
    pool: "access.log = {home}/access.log\naccess.suppress_path[] = /soak.php\nrlimit_core = 0\n",
    files: &[(
        "soak.php",
        "<?php $all = array_fill(0, 1000, $_GET['n']); $file = fopen('php://temp', 'w'); fwrite($file, implode($all));
         class Soak { public $self; } $circle = new Soak; $circle->self = $circle;
         echo 'n ', $_GET['n'], ' in ', strlen(file_get_contents('php://input'));",
    )],
    ..Setup::BASE
};

fn main() -> ExitCode {
    let (mut requests, mut rest) = (2_000_000, Vec::new());
    let mut given = std::env::args();
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "--requests" => match given.next().and_then(|number| number.parse().ok()) {
                Some(number) => requests = number,
                None => {
                    eprintln!("--requests needs a number.");
                    return ExitCode::from(2);
                }
            },
            _ => rest.push(argument),
        }
    }
    let trial = Trial::test("soak::memory_descriptors_and_processes_do_not_grow", move || {
        run(requests);
        Ok(())
    });
    libtest_mimic::run(&Arguments::from_iter(rest), vec![trial]).exit_code()
}

/// What a server holds at one moment.
#[derive(Debug)]
struct Holding {
    processes: usize,
    /// Of the master: descriptors, and memory of its own in KiB.
    master: (usize, u64),
    /// The most that any of the others has.
    others: (usize, u64),
}

impl Holding {
    fn of(server: &Server) -> Self {
        let one = |pid: &i32| {
            let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
            let memory = memory.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok());
            (descriptors, memory.unwrap_or(0))
        };
        let pids = server.pids();
        let others = pids.iter().skip(1).map(one);
        Self {
            processes: pids.len(),
            master: one(&pids[0]),
            others: others.fold((0, 0), |most, one| (most.0.max(one.0), most.1.max(one.1))),
        }
    }
}

/// Waits until the server holds no more than `wanted` says.
fn settle(server: &Server, wanted: impl Fn(&Holding) -> bool) -> Holding {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let now = Holding::of(server);
        if wanted(&now) || Instant::now() >= deadline {
            return now;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn run(requests: u64) {
    let root = folder();
    let www = server::www(root.path(), &SETUP);
    let mut server = Server::start(Kind::under_test(), &SETUP, root.path()).unwrap_or_else(|e| panic!("{e}"));
    let script = www.join("soak.php").display().to_string();
    let done = AtomicU64::new(0);
    let began = Instant::now();
    let whole = |holding: &Holding| holding.processes == 2 + SETUP.workers as usize;
    let first = thread::scope(|scope| {
        for client in 0..6 {
            let (server, script, done) = (&server, &script, &done);
            scope.spawn(move || ask(server, script, done, requests, client % 3 == 0));
        }
        let mut first = None;
        for tenth in 1..10 {
            while done.load(Relaxed) < requests * tenth / 10 {
                thread::sleep(Duration::from_millis(20));
            }
            // The old generation has come to its end with the first of these.
            if tenth > 1 {
                kill(Pid::from_raw(server.pids()[0]), Signal::SIGUSR2).expect("the master lives");
            }
            let now = settle(&server, whole);
            println!("{} requests after {:.0?}: {now:?}", done.load(Relaxed), began.elapsed());
            if tenth == 2 {
                first = Some(now);
            }
        }
        first.expect("there was a second tenth")
    });
    let same = |now: &Holding| {
        now.processes == first.processes
            && now.master.0 <= first.master.0 + 4
            && now.others.0 <= first.others.0 + 4
            && now.master.1 <= first.master.1 + GROWTH
            && now.others.1 <= first.others.1 + GROWTH
    };
    let last = settle(&server, same);
    let served = done.load(Relaxed);
    println!("{served} requests in {:.0?}: {last:?}", began.elapsed());
    assert!(
        served >= requests && same(&last),
        "at first {first:?}, at last {last:?}"
    );
    server.stop().unwrap_or_else(|e| panic!("{e}"));
}

/// Asks until all is asked, on new connections or on kept ones.
fn ask(server: &Server, script: &str, done: &AtomicU64, requests: u64, new: bool) {
    let request = |n: u64, body: &[u8], flags: u8| {
        let (query, length) = (format!("n={n}"), body.len().to_string());
        let params = [
            ("SCRIPT_FILENAME", script),
            ("SCRIPT_NAME", "/soak.php"),
            ("REQUEST_METHOD", "POST"),
            ("REQUEST_URI", "/soak.php"),
            ("QUERY_STRING", &query),
            ("CONTENT_LENGTH", &length),
        ];
        fcgi::request(flags, &params, body)
    };
    let mut connection: Option<Connection> = None;
    loop {
        let n = done.fetch_add(1, Relaxed);
        if n >= requests {
            return;
        }
        let last = new || n.is_multiple_of(ON_ONE);
        let mut now = connection.take().unwrap_or_else(|| server.connect());
        let body = vec![b'x'; (n % 3000) as usize];
        now.send(&request(n, &body, if last { 0 } else { KEEP_CONN }));
        let reply = now.reply(1);
        let expected = format!("n {n} in {}", body.len());
        let text = String::from_utf8_lossy(&reply.stdout);
        if reply.end.is_none() || !text.ends_with(&expected) {
            // The others need not go on.
            done.store(requests, Relaxed);
            panic!("request {n}: {text:?}\n{}", server.log());
        }
        connection = (!last).then_some(now);
    }
}
