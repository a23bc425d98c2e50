//! `php-pool status`, `health`, `workers` and `ping`: what they print, and their exit statuses.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::Master;
use crate::support::Case;
use crate::support::process::{spawn, that_dies_with_us};
use crate::terminal::Terminal;
use crate::{harness, php_pool, serve, serve_as, wait_for};

pub const CASES: &[Case] = &[
    ("commands::a_pool_that_is_well_is_0", well_is_0),
    ("commands::a_full_pool_is_1", full_is_1),
    ("commands::a_master_that_hangs_is_2", hanging_is_2),
    ("commands::a_master_that_was_killed_is_2", killed_is_2),
    ("commands::nobody_is_4", nobody_is_4),
    ("commands::watching_shows_what_changes", watching),
    (
        "commands::watching_in_a_terminal_shows_what_is_wrong",
        watching_in_a_terminal,
    ),
    ("commands::of_several_masters_the_worst_counts", several_masters),
    ("commands::what_workers_died_of_is_told", what_workers_died_of),
    (
        "commands::requests_that_are_refused_are_counted",
        requests_that_are_refused_are_counted,
    ),
    ("commands::counters_are_exact", counters_are_exact),
];

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn well_is_0() {
    let master = serve("pm = static\npm.max_children = 2\n");
    wait_for("idle workers", || {
        text(&php_pool(&master, &["status"])).contains("2 idle, 0 active")
    });
    for command in ["status", "health", "workers", "ping"] {
        assert_eq!(php_pool(&master, &[command]).status.code(), Some(0), "{command}");
    }
    assert_eq!(
        text(&php_pool(&master, &["health"])),
        "www: alive, ready, not saturated\n"
    );
    let json: serde_json::Value = serde_json::from_str(&text(&php_pool(&master, &["health", "--json"]))).unwrap();
    assert_eq!(
        json,
        serde_json::json!({"pool": "www", "alive": true, "ready": true, "saturated": false})
    );
    let status: serde_json::Value = serde_json::from_str(&text(&php_pool(&master, &["status", "--json"]))).unwrap();
    assert_eq!(status[0]["snapshot"]["idle"], 2);
    assert_eq!(text(&php_pool(&master, &["workers"])).lines().count(), 3);
}

fn full_is_1() {
    let master = serve("pm = static\npm.max_children = 1\n");
    let mut busy = master.connect("sock");
    master.ask(&mut busy, "/sleep.php", 0);
    wait_for("the pool is full", || {
        php_pool(&master, &["health"]).status.code() == Some(1)
    });
    let health = php_pool(&master, &["health"]);
    assert_eq!(text(&health), "www: alive, ready, saturated\n");
    let status = php_pool(&master, &["status"]);
    assert!(text(&status).contains("alive, ready, saturated") && status.status.code() == Some(1));
    assert_eq!(
        php_pool(&master, &["ping"]).status.code(),
        Some(0),
        "alive is another question"
    );
}

fn hanging_is_2() {
    let master = serve("pm = static\npm.max_children = 1\n");
    let pid = Pid::from_raw(master.pid());
    kill(pid, Signal::SIGSTOP).unwrap();
    let ping = php_pool(&master, &["ping"]);
    kill(pid, Signal::SIGCONT).unwrap();
    assert_eq!(ping.status.code(), Some(2), "{ping:?}");
}

fn killed_is_2() {
    let master = serve("pm = static\npm.max_children = 1\n");
    master.signal(Signal::SIGKILL);
    let health = || php_pool(&master, &["health"]);
    wait_for("its end", || {
        String::from_utf8_lossy(&health().stderr).contains("nothing runs at")
    });
    assert_eq!(health().status.code(), Some(2));
}

fn nobody_is_4() {
    let output = Command::new(harness::executable())
        .args(["health", "--control", "/nowhere/control"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains("stopped, or asleep"));
}

/// A line of JSON for each look, that ends with its reader.
fn watching() {
    let master = serve("pm = static\npm.max_children = 1\n");
    let mut command = that_dies_with_us("KILL", harness::executable());
    command.args(["status", "--watch", "--json", "--control"]);
    command.arg(master.place.path("control")).stdout(Stdio::piped());
    let mut child = spawn(command).unwrap();
    let mut looks = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut accepted = || {
        let look = looks.next().expect("another look").unwrap();
        let pools: serde_json::Value = serde_json::from_str(&look).unwrap();
        pools[0]["snapshot"]["accepted"].as_u64().unwrap()
    };
    let before = accepted();
    master.get("/hello.php");
    wait_for("the request is seen", || accepted() > before);
    drop(looks);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

fn watching_in_a_terminal() {
    let master = serve("pm = static\npm.max_children = 1\n");
    let mut command = Command::new(harness::executable());
    command
        .args(["status", "--watch", "--control"])
        .arg(master.place.path("control"));
    let screen = Terminal::run(command, 24, 100);
    screen.shows("accepted connections: 0");
    master.get("/hello.php");
    screen.shows("accepted connections: 1");
    drop(master);
    screen.shows("php-pool: nothing runs at ");
}

fn several_masters() {
    let (well, full) = (
        serve_as("well", "pm = static\npm.max_children = 1\n"),
        serve_as("full", "pm = static\npm.max_children = 1\n"),
    );
    let hangs = serve_as("hangs", "pm = static\npm.max_children = 1\n");
    let mut busy = full.connect("sock");
    full.ask(&mut busy, "/sleep.php?a=b", 0);
    wait_for("the pool is full", || {
        php_pool(&full, &["health"]).status.code() == Some(1)
    });
    let ask = |command: &str, whom: &[&Master]| {
        let mut all = Command::new(harness::executable());
        all.arg(command);
        for master in whom {
            all.arg("--control").arg(master.place.path("control"));
        }
        all.output().unwrap()
    };
    let health = ask("health", &[&well, &full]);
    assert_eq!(
        text(&health),
        "well: alive, ready, not saturated\nfull: alive, ready, saturated\n"
    );
    assert_eq!(health.status.code(), Some(1));
    let workers = text(&ask("workers", &[&well, &full]));
    assert!(
        workers.lines().count() == 3 && workers.contains("GET /sleep.php?a=b"),
        "{workers}"
    );
    kill(Pid::from_raw(hangs.pid()), Signal::SIGSTOP).unwrap();
    let health = ask("health", &[&hangs, &well, &full]);
    kill(Pid::from_raw(hangs.pid()), Signal::SIGCONT).unwrap();
    assert_eq!(health.status.code(), Some(2));
    assert_eq!(
        text(&health).lines().count(),
        2,
        "the others have their line: {health:?}"
    );
    let complaint = String::from_utf8_lossy(&health.stderr).into_owned();
    assert!(complaint.contains("does not answer"), "{complaint}");
}

fn what_workers_died_of() {
    let master = serve("pm = static\npm.max_children = 1\nrequest_terminate_timeout = 2s\n");
    master.place.write("dies.php", "<?php exec('kill -9 ' . getmypid());");
    master.place.write("leaves.php", "<?php pcntl_exec('/bin/false');");
    assert!(!text(&php_pool(&master, &["status"])).contains("died"));
    for script in ["/dies.php", "/dies.php", "/leaves.php"] {
        let mut connection = master.connect("sock");
        master.ask(&mut connection, script, 0);
        connection.reply(1);
    }
    let mut stays = master.connect("sock");
    // What waits in C is not ended by PHP's own time-out.
    master.place.write("stays.php", "<?php exec('sleep 60');");
    master.ask(&mut stays, "/stays.php", 0);
    let told = |killed| {
        format!("workers that died:    {killed} of a request that timed out, 2 on a signal, 1 with an exit code\n")
    };
    let say = |what: &str| {
        wait_for("the deaths", || text(&php_pool(&master, &["status"])).contains(what));
    };
    say(&told(1));
    // One that PHP ends by itself leaves its worker alive: if it is given the tenth of a second that it has for that.
    let cut = (0..5).take_while(|_| {
        let mut sleeps = master.connect("sock");
        master.ask(&mut sleeps, "/sleep.php", 0);
        sleeps.reply(1).end.is_none()
    });
    let killed = 1 + cut.count();
    assert!(killed < 6, "PHP never ends it");
    say(&told(killed));
    say(&format!(
        "requests timed out:   {} (request_terminate_timeout)\n",
        killed + 1
    ));
}

fn requests_that_are_refused_are_counted() {
    let master = serve("pm = static\npm.max_children = 1\nqueue.timeout = 100ms\n");
    let mut busy = master.connect("sock");
    master.ask(&mut busy, "/sleep.php", 0);
    wait_for("the pool is full", || {
        php_pool(&master, &["health"]).status.code() == Some(1)
    });
    for _ in 0..3 {
        assert!(master.get("/hello.php").contains("Service Unavailable"));
    }
    let status = text(&php_pool(&master, &["status"]));
    assert!(
        status.contains("requests refused:     3 (queue.max, queue.timeout)\n"),
        "{status}"
    );
}

/// 1,000 mixed requests are 1,000, of whatever end; and nobody is ever seen twice.
fn counters_are_exact() {
    let master = serve(
        "pm = dynamic\npm.max_children = 6\npm.start_servers = 2\npm.min_spare_servers = 1\npm.max_spare_servers = 3\npm.max_requests = 40\n",
    );
    std::thread::scope(|scope| {
        for client in 0..5 {
            let master = &master;
            scope.spawn(move || {
                let mut kept = master.connect("sock");
                for number in 0..200 {
                    match (client + number) % 4 {
                        0 => drop(master.get("/hello.php?a=b")),
                        1 => drop(master.ask_kept(&mut kept, "/hello.php")),
                        2 => drop(master.get("/missing.php")),
                        _ => drop(master.get("/status")),
                    }
                    if number % 20 == 0 {
                        let status = text(&php_pool(master, &["status", "--json"]));
                        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
                        assert!(status[0]["snapshot"]["active"].as_u64() <= Some(6), "{status}");
                        assert!(status[0]["snapshot"]["max_active"].as_u64() <= Some(6), "{status}");
                    }
                }
            });
        }
    });
    let status: serde_json::Value = serde_json::from_str(&text(&php_pool(&master, &["status", "--json"]))).unwrap();
    assert_eq!(status[0]["snapshot"]["accepted"], 1000);
}
