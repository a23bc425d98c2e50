//! Stopping, and the master's death.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::load::Request;
use crate::reloads::Stage;
use crate::schedule;
use crate::support::Case;
use crate::support::fcgi::{Connection, PATIENCE};
use crate::support::process::lives;
use crate::support::server::Setup;

pub const CASES: &[Case] = &[
    ("stop::lets_requests_end", graceful),
    ("stop::ends_within_stop_timeout", limited),
    ("stop::a_second_signal_ends_it_at_once", second),
    (
        "crash::the_masters_death_costs_no_running_request_and_leaves_no_orphan",
        master_killed,
    ),
];

/// A request that runs for so long, and has begun.
fn running(stage: &Stage, request: &Request) -> Connection {
    let mut connection = stage.server.connect();
    connection.send(&request.bytes(&stage.script, false));
    connection.next_record().expect("the pid comes first");
    connection
}

fn graceful() {
    for pm in ["", "pm = ondemand\n"] {
        let mut stage = Stage::new(Setup {
            name: "graceful",
            workers: 2,
            pool: pm,
            ..Setup::BASE
        });
        let request = Request {
            finish: Some(300),
            ..Request::plain(1, 1500)
        };
        let mut connection = running(&stage, &request);
        stage.server.stop().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(connection.reply(1).stdout, request.expected());
        let finished = std::path::Path::new(&stage.script).with_file_name("finished/1");
        assert!(finished.exists(), "the work after fastcgi_finish_request() was cut");
    }
}

fn limited() {
    let mut stage = Stage::new(Setup {
        name: "limited",
        workers: 2,
        php_pool: "stop_timeout = 1s\n",
        deaths: true,
        ..Setup::BASE
    });
    let mut connection = running(&stage, &Request::plain(1, 60_000));
    let began = Instant::now();
    stage.server.stop().unwrap_or_else(|e| panic!("{e}"));
    assert!(began.elapsed() >= Duration::from_millis(900), "its time was not over");
    assert!(connection.reply(1).end.is_none(), "it was cut");
}

fn second() {
    let mut stage = Stage::new(Setup {
        name: "second",
        workers: 2,
        php_pool: "stop_timeout = 300s\n",
        deaths: true,
        ..Setup::BASE
    });
    let mut connection = running(&stage, &Request::plain(1, 300_000));
    schedule::signal(schedule::master(&stage.server), Signal::SIGTERM);
    stage
        .server
        .wait_for_log("that it terminates", |log| log.contains("Terminating ..."));
    // This is the second one; it waits much less than the limit.
    stage.server.stop().unwrap_or_else(|e| panic!("{e}"));
    assert!(connection.reply(1).end.is_none(), "it was cut");
}

fn master_killed() {
    let stage = Stage::new(Setup {
        name: "master-killed",
        workers: 3,
        ..Setup::BASE
    });
    let request = Request::plain(1, 2000);
    let mut connection = running(&stage, &request);
    let family = stage.server.pids();
    schedule::signal(family[0], Signal::SIGKILL);
    assert_eq!(connection.reply(1).stdout, request.expected());
    let deadline = Instant::now() + PATIENCE;
    while let Some(pid) = family.iter().find(|pid| lives(**pid)) {
        assert!(
            Instant::now() < deadline,
            "process {pid} lives on without its master: {family:?}"
        );
        thread::sleep(Duration::from_millis(10));
    }
}
