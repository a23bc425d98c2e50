//! `php-pool status`, `health`, `workers` and `ping`: what they print, and their exit statuses.

use std::process::{Command, Output};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::Case;
use crate::{harness, php_pool, serve, wait_for};

pub const CASES: &[Case] = &[
    ("commands::a_pool_that_is_well_is_0", well_is_0),
    ("commands::a_full_pool_is_1", full_is_1),
    ("commands::a_master_that_hangs_is_2", hanging_is_2),
    ("commands::nobody_is_4", nobody_is_4),
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

fn nobody_is_4() {
    let output = Command::new(harness::executable())
        .args(["health", "--control", "/nowhere/control"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains("stopped, or asleep"));
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
