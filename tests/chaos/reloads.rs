//! Reloads lose nothing.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::ledger::FEW;
use crate::load::{Kind, Load, Request, SCRIPT, Shared, answer, ask, begun, prepare};
use crate::schedule::{self, Role};
use crate::support::Case;
use crate::support::fcgi::PATIENCE;
use crate::support::server::{self, Kind as Which, Server, Setup};
use crate::support::wiki::folder;

pub const CASES: &[Case] = &[
    ("reload::a_hundred_reloads_under_load_lose_nothing", under_load),
    ("reload::a_broken_file_leaves_the_old_generation_serving", broken),
    ("reload::a_request_of_the_old_generation_runs_to_its_end", old_runs_on),
    ("reload::process_control_timeout_bounds_the_old_generation", bounded),
    ("reload::kept_connections_outlive_their_generation", kept_outlive),
    ("crash::a_killed_zygote_costs_no_request", zygote_killed),
];

/// A server for one case, its folder, and the path of its script.
pub struct Stage {
    pub server: Server,
    pub script: String,
    _root: tempfile::TempDir,
}

impl Stage {
    pub fn new(setup: Setup) -> Self {
        let root = folder();
        let setup: &'static Setup = Box::leak(Box::new(Setup {
            files: &[("chaos.php", SCRIPT)],
            ..setup
        }));
        let www = server::www(root.path(), setup);
        prepare(&www);
        let server = Server::start(Which::under_test(), setup, root.path()).unwrap_or_else(|e| panic!("{e}"));
        Self {
            server,
            script: www.join("chaos.php").display().to_string(),
            _root: root,
        }
    }

    /// One request on a new connection, which must be served.
    pub fn serve(&self, request: &Request) -> i32 {
        let (worker, outcome) = ask(&mut self.server.connect(), request, &self.script, false);
        outcome.unwrap_or_else(|e| panic!("request {}: {e}\n{}", request.id, self.server.log()));
        worker.expect("a whole answer names its worker").pid
    }

    pub fn stop(mut self) {
        self.server.stop().unwrap_or_else(|e| panic!("{e}"));
    }

    /// Does something again and again, `most` times or for 12 seconds (longer where few requests are answered, or it was not done more
    /// than `least` times), while clients of all kinds are served: none may lose a request or be stalled. Returns how often it was
    /// done, and how many descriptors the master had before.
    pub fn under_load(&self, phases: [&'static str; 2], most: u32, least: u32, act: impl Fn(&Server)) -> (u32, usize) {
        let shared = Shared::new(self.script.clone(), 1, phases);
        let mut load = Load::new(shared.clone());
        for keep in [false, true] {
            for kind in [Kind::Short, Kind::Short, Kind::Long, Kind::Finish] {
                load.client("www", &self.server.address, kind, keep);
            }
        }
        // On a busy machine a while is not enough to tell how long requests take.
        let enough = |phase| shared.ledger.short_in(phase) > FEW;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(4) || (!enough(phases[0]) && began.elapsed() < PATIENCE) {
            thread::sleep(Duration::from_millis(20));
        }
        let before = descriptors(schedule::master(&self.server));
        shared.chaos.store(true, Relaxed);
        let began = Instant::now();
        let mut times = 0;
        while times < most
            && (began.elapsed() < Duration::from_secs(12)
                || ((times <= least || !enough(phases[1])) && began.elapsed() < PATIENCE))
        {
            act(&self.server);
            times += 1;
        }
        let shared = load.stop();
        let (ran, twice) = begun(Path::new(&self.script).parent().expect("it is in a folder"));
        let account = shared.ledger.account(&ran);
        println!("{}, {times} times: {account}", phases[1]);
        assert!(times > least, "{}: only {times} times", phases[1]);
        assert_eq!(twice, [0; 0], "these have been run twice");
        assert!(account.unattributed.is_empty(), "{account}\n{}", self.server.log());
        account.assert_not_stalled(shared.phases);
        (times, before)
    }
}

/// Descriptors that a process has open.
pub fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

fn under_load() {
    let mut stage = Stage::new(Setup {
        name: "reloads",
        workers: 6,
        ..Setup::BASE
    });
    let master = schedule::master(&stage.server);
    let (reloads, before) = stage.under_load(["without reloads", "during reloads"], 100, 5, schedule::reload);
    // The old generations go, and take what they held in the master with them.
    let deadline = Instant::now() + PATIENCE;
    let settled = || {
        let zygotes = schedule::processes(&stage.server)
            .iter()
            .filter(|(_, role)| *role == Role::Zygote)
            .count();
        zygotes == 1 && descriptors(master) <= before + 8
    };
    while !settled() {
        assert!(
            Instant::now() < deadline,
            "after {reloads} reloads the master has {} descriptors for {before}, and its family is {:?}",
            descriptors(master),
            schedule::processes(&stage.server)
        );
        thread::sleep(Duration::from_millis(10));
    }
    stage.server.stop().unwrap_or_else(|e| panic!("{e}"));
}

fn broken() {
    let stage = Stage::new(Setup {
        name: "broken",
        workers: 1,
        ..Setup::BASE
    });
    let pid = stage.serve(&Request::plain(1, 1));
    for line in schedule::NONSENSE {
        schedule::broken_reload(&stage.server, line);
        assert_eq!(
            stage.serve(&Request::plain(2, 1)),
            pid,
            "the worker of the old generation serves on"
        );
    }
    schedule::reload(&stage.server);
    assert_ne!(stage.serve(&Request::plain(3, 1)), pid, "a mended file is taken");
    stage.stop();
}

fn old_runs_on() {
    let stage = Stage::new(Setup {
        name: "old",
        workers: 2,
        ..Setup::BASE
    });
    let long = Request::plain(1, 8000);
    let mut connection = stage.server.connect();
    connection.send(&long.bytes(&stage.script, false));
    let first = connection.next_record().expect("the pid comes first");
    schedule::reload(&stage.server);
    schedule::reload(&stage.server);
    // Meanwhile the new generation serves, with all of its workers.
    for id in 2..6 {
        let pid = stage.serve(&Request::plain(id, 1));
        assert!(!first.content.ends_with(format!("pid {pid} of 0\n").as_bytes()));
    }
    assert!(
        connection.record_within(Duration::ZERO).is_none(),
        "the long request still runs"
    );
    let rest = connection.reply(1);
    assert_eq!(String::from_utf8_lossy(&rest.stdout).as_bytes(), long.expected());
    stage.stop();
}

fn bounded() {
    let stage = Stage::new(Setup {
        name: "bounded",
        workers: 2,
        global: "process_control_timeout = 1s\n",
        deaths: true,
        ..Setup::BASE
    });
    let mut connection = stage.server.connect();
    let began = Instant::now();
    connection.send(&Request::plain(1, 60_000).bytes(&stage.script, false));
    connection.next_record().expect("the pid comes first");
    schedule::reload(&stage.server);
    let (_, outcome) = answer(&mut connection, &Request::plain(1, 60_000));
    assert!(
        outcome.is_err() && began.elapsed() < Duration::from_secs(40),
        "{outcome:?}"
    );
    stage.serve(&Request::plain(2, 1));
    stage.stop();
}

fn kept_outlive() {
    let stage = Stage::new(Setup {
        name: "outlive",
        workers: 3,
        ..Setup::BASE
    });
    let mut connections: Vec<_> = (0..20).map(|_| stage.server.connect()).collect();
    let mut id = 0;
    for _ in 0..4 {
        for connection in &mut connections {
            id += 1;
            let (_, outcome) = ask(connection, &Request::plain(id, 0), &stage.script, true);
            outcome.unwrap_or_else(|e| panic!("request {id}: {e}\n{}", stage.server.log()));
        }
        schedule::reload(&stage.server);
    }
    stage.stop();
}

fn zygote_killed() {
    let stage = Stage::new(Setup {
        name: "zygote",
        workers: 2,
        deaths: true,
        ..Setup::BASE
    });
    let long = Request::plain(1, 2000);
    let mut connection = stage.server.connect();
    connection.send(&long.bytes(&stage.script, true));
    connection.next_record().expect("the pid comes first");
    let (zygote, _) = *schedule::processes(&stage.server)
        .iter()
        .find(|(_, role)| *role == Role::Zygote)
        .expect("there is a zygote");
    schedule::signal(zygote, Signal::SIGKILL);
    for id in 2..20 {
        stage.serve(&Request::plain(id, 1));
    }
    let rest = connection.reply(1);
    assert_eq!(rest.stdout, long.expected());
    let (_, outcome) = ask(&mut connection, &Request::plain(20, 1), &stage.script, true);
    assert_eq!(outcome, Ok(()), "its connection is kept all the same");
    stage.stop();
}
