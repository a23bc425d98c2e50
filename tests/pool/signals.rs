//! TERM, INT, QUIT, USR1, USR2, HUP.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Master, Place, body, exists, wait_for};
use crate::support::Case;
use crate::support::process::lives;

pub const CASES: &[Case] = &[
    ("signals::reloads_lose_and_stall_no_request", reloads_lose_no_request),
    (
        "signals::a_running_request_outlives_a_reload",
        a_running_request_outlives_a_reload,
    ),
    (
        "signals::a_reload_takes_the_new_configuration",
        a_reload_takes_the_new_configuration,
    ),
    (
        "signals::a_broken_configuration_changes_nothing",
        a_broken_configuration_changes_nothing,
    ),
    (
        "signals::a_zygote_that_cannot_start_changes_nothing",
        a_bad_zygote_changes_nothing,
    ),
    ("signals::what_is_meant_for_the_master_ends_no_zygote", zygote_lives),
    ("signals::a_drain_has_its_limit", a_drain_has_its_limit),
    ("signals::log_rotation_ends_no_worker", log_rotation_ends_no_worker),
    (
        "signals::a_worker_that_is_told_to_leave_ends_its_request",
        a_worker_is_told_to_leave,
    ),
    ("signals::a_stop_lets_requests_end", a_stop_lets_requests_end),
    (
        "signals::a_stop_has_its_limit_and_a_second_one_is_immediate",
        a_stop_has_its_limit,
    ),
];

const POOL: &str = "[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 3\n";

fn place() -> Place {
    let place = Place::new();
    place.write("pid.php", "<?php echo getmypid();");
    place.write(
        "sleep.php",
        "<?php touch(__DIR__ . '/begun'); usleep((int) ($_GET['ms'] * 1000)); echo 'done';",
    );
    place.configure(POOL);
    place
}

/// A zygote has the master's name, for killall.
fn zygote_lives() {
    let master = place().serve_with(3);
    let zygote = master.zygote("www");
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ] {
        kill(Pid::from_raw(zygote), signal).unwrap();
    }
    // It still forks.
    let first = master.workers("www")[0];
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    wait_for("another worker", || {
        let now = master.workers("www");
        now.len() == 3 && !now.contains(&first)
    });
    assert_eq!(master.zygote("www"), zygote);
}

/// Waits until sleep.php runs: a connection alone may still be in the queue.
fn begun(master: &Master) {
    wait_for("the request runs", || exists(&master.place.path("begun")));
}

fn reloads_lose_no_request() {
    let master = place().serve();
    let (over, answered) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(SeqCst) {
                    assert!(!master.get("/pid.php").is_empty());
                    answered.fetch_add(1, SeqCst);
                }
            });
        }
        for round in 1..=8 {
            master.signal(if round % 2 == 0 {
                Signal::SIGUSR2
            } else {
                Signal::SIGHUP
            });
            master.said_often("ready to handle connections", round + 1);
        }
        over.store(true, SeqCst);
    });
    assert!(answered.load(SeqCst) > 10);
    let lines = master.log().join("\n");
    assert!(!lines.contains("exited on signal"), "{lines}");
    assert_eq!(
        master.count(&format!("fpm is running, pid {}", master.pid())),
        9,
        "{lines}"
    );
    assert_eq!(master.count("using inherited socket fd="), 8, "{lines}");
}

fn a_running_request_outlives_a_reload() {
    let master = place().serve_with(3);
    let before = master.workers("www");
    let mut connection = master.connect("sock");
    master.ask(&mut connection, "/sleep.php?ms=1500", 0);
    begun(&master);
    master.signal(Signal::SIGUSR2);
    master.said_often("ready to handle connections", 2);
    // The new ones serve while the old one works on.
    let now: i32 = master.get("/pid.php").parse().unwrap();
    assert!(!before.contains(&now));
    assert_eq!(body(&connection.reply(1)), "done");
    wait_for("the old generation is gone", || {
        let workers = master.workers("www");
        let zygotes = master.below("zygote www").len();
        workers.len() == 3 && before.iter().all(|pid| !workers.contains(pid)) && zygotes == 1
    });
}

fn a_reload_takes_the_new_configuration() {
    let master = place().serve();
    master.place.configure(&format!(
        "{}\n[more]\n{{user}}\nlisten = {{dir}}/more\npm = static\npm.max_children = 1\n",
        POOL.replace("= 3", "= 1")
    ));
    master.signal(Signal::SIGUSR2);
    master.said_often("ready to handle connections", 2);
    assert!(!master.get_on("more", "/pid.php").is_empty());
    wait_for("one worker", || master.workers("www").len() == 1);
    master
        .place
        .configure("[more]\n{user}\nlisten = {dir}/more\npm = static\npm.max_children = 1\n");
    master.signal(Signal::SIGUSR2);
    master.said_often("ready to handle connections", 3);
    wait_for("the removed pool is gone", || {
        master.workers("www").is_empty() && !exists(&master.place.path("sock"))
    });
    assert!(!master.get_on("more", "/pid.php").is_empty());
}

fn serves_on(master: &Master, before: &[i32]) {
    let now: i32 = master.get("/pid.php").parse().unwrap();
    assert!(before.contains(&now), "another generation answers");
    assert_eq!(master.workers("www"), before);
}

fn a_broken_configuration_changes_nothing() {
    let master = place().start_with_control();
    wait_for("all workers", || master.workers("www").len() == 3);
    let before = master.workers("www");
    for (text, said, shown) in [
        (
            "[www]\n{user}\nlisten = {dir}/sock\npm = nosuch\n",
            "invalid process manager",
            "pm: 'nosuch' is not allowed",
        ),
        (
            "[www]\n{user}\nlisten = /nosuch/folder/sock\npm = static\npm.max_children = 1\n",
            "unable to bind listening socket",
            "unable to bind listening socket",
        ),
    ] {
        master.place.configure(text);
        master.signal(Signal::SIGUSR2);
        let line = master.said(said);
        assert!(line.contains("ERROR"), "{line}");
        wait_for("its status names the reason", || {
            let status = master.status("www");
            let failure = status.lines().find(|line| line.starts_with("last failure:"));
            failure.is_some_and(|line| line.contains(shown))
        });
        serves_on(&master, &before);
    }
    master.said_often(
        "the reload is given up; everything goes on with the configuration there is",
        2,
    );
    master.place.configure(POOL);
    master.signal(Signal::SIGUSR2);
    master.said_often("ready to handle connections", 2);
    wait_for("it is forgotten", || !master.status("www").contains("last failure:"));
}

fn a_bad_zygote_changes_nothing() {
    let master = place().serve_with(3);
    let before = master.workers("www");
    master.place.configure(&format!("{POOL}worker.path = /bin/false\n"));
    master.signal(Signal::SIGUSR2);
    master.said("the new generation cannot start: its zygote");
    serves_on(&master, &before);
}

fn a_drain_has_its_limit() {
    let place = place();
    place.configure(&format!("process_control_timeout = 300ms\n{POOL}"));
    let master = place.serve();
    let mut connection = master.connect("sock");
    master.ask(&mut connection, "/sleep.php?ms=60000", 0);
    begun(&master);
    master.signal(Signal::SIGUSR2);
    let begin = Instant::now();
    assert!(connection.reply(1).end.is_none(), "the request ended in order");
    assert!(begin.elapsed() < Duration::from_secs(20));
    wait_for("the old generation is gone", || master.below("zygote www").len() == 1);
}

fn log_rotation_ends_no_worker() {
    let place = place();
    place.configure(&format!(
        "{POOL}access.log = {{dir}}/access.log\naccess.format = \"%r\"\n"
    ));
    let master = place.serve_with(3);
    let before = master.workers("www");
    let read = |name: &str| fs::read_to_string(master.place.path(name)).unwrap();
    master.get("/pid.php?1");
    wait_for("its line", || read("access.log") == "/pid.php\n");
    fs::rename(master.place.path("access.log"), master.place.path("access.log.1")).unwrap();
    fs::rename(master.place.path("error.log"), master.place.path("error.log.1")).unwrap();
    master.signal(Signal::SIGUSR1);
    master.said("error log file re-opened");
    master.said("access log file re-opened");
    for _ in 0..20 {
        master.get("/sleep.php?ms=0");
    }
    wait_for("lines in the new file", || {
        read("access.log") == "/sleep.php\n".repeat(20)
    });
    assert_eq!(read("access.log.1"), "/pid.php\n");
    assert!(exists(&master.place.path("error.log")));
    assert_eq!(master.workers("www"), before);
}

fn a_worker_is_told_to_leave() {
    let place = place();
    place.write(
        "wait.php",
        "<?php echo getmypid(), ' '; flush(); while (!file_exists(__DIR__ . '/go')) { usleep(2000); clearstatcache(); } echo 'done';",
    );
    let master = place.serve_with(3);
    for signal in [Signal::SIGTERM, Signal::SIGQUIT] {
        let mut connection = master.connect("sock");
        master.ask(&mut connection, "/wait.php", 0);
        let first = connection.next_record().expect("the pid comes first").content;
        let text = String::from_utf8_lossy(&first).into_owned();
        let pid: i32 = text.rsplit('\n').next().unwrap().trim().parse().unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
        // The others go on meanwhile, and so does it.
        assert!(!master.get("/pid.php").is_empty());
        assert!(lives(pid));
        master.place.write("go", "");
        assert_eq!(body(&connection.reply(1)), "done", "{signal}");
        master.said(&format!("child {pid} exited with code 0"));
        fs::remove_file(master.place.path("go")).unwrap();
        wait_for("somebody in its place", || master.workers("www").len() == 3);
    }
}

fn a_stop_lets_requests_end() {
    for (signal, said) in [
        (Signal::SIGTERM, "Terminating ..."),
        (Signal::SIGINT, "Terminating ..."),
        (Signal::SIGQUIT, "Finishing ..."),
    ] {
        let mut master = place().serve();
        let mut connection = master.connect("sock");
        master.ask(&mut connection, "/sleep.php?ms=800", 0);
        begun(&master);
        master.signal(signal);
        assert_eq!(body(&connection.reply(1)), "done", "{signal}");
        assert_eq!(master.ended().code(), Some(0));
        master.said(said);
        master.said("exiting, bye-bye!");
    }
}

fn a_stop_has_its_limit() {
    for second in [false, true] {
        let place = place();
        let limit = if second { "60s" } else { "500ms" };
        place.configure(&format!("stop_timeout = {limit}\n{POOL}"));
        let mut master = place.serve();
        let mut connection = master.connect("sock");
        master.ask(&mut connection, "/sleep.php?ms=60000", 0);
        begun(&master);
        let begin = Instant::now();
        master.signal(Signal::SIGTERM);
        master.said("Terminating ...");
        if second {
            master.signal(Signal::SIGTERM);
        }
        assert_eq!(master.ended().code(), Some(0));
        assert!(begin.elapsed() < Duration::from_secs(25));
        assert!(connection.reply(1).end.is_none());
    }
}
