//! Another program in the place of the master's: it takes over in the same process, and nobody notices.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use nix::sys::signal::Signal;

use crate::harness::{Master, Place, body, wait_for};
use crate::support::Case;

pub const CASES: &[Case] = &[
    ("upgrade::nothing_is_lost_or_disturbed", nothing_is_disturbed),
    ("upgrade::a_signal_is_enough_and_renews_the_workers", by_signal),
    (
        "upgrade::a_program_that_cannot_take_over_changes_nothing",
        cannot_take_over,
    ),
    (
        "upgrade::who_asks_during_the_start_hears_how_it_ends",
        asked_for_during_the_start,
    ),
    (
        "upgrade::a_reload_that_is_asked_for_meanwhile_is_done_after_it",
        asked_for_meanwhile,
    ),
    ("upgrade::the_next_stop_is_as_graceful_as_ever", stops),
];

const POOL: &str = "[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 2\ncatch_workers_output = yes\n";

const TAKEN_OVER: &str = "has taken over";

fn place(pool: &str) -> Place {
    let place = Place::new().with_own_program();
    place.write("pid.php", "<?php echo getmypid();");
    place.write("sleep.php", "<?php usleep((int) ($_GET['ms'] * 1000)); echo 'done';");
    place.write(
        "print.php",
        "<?php file_put_contents('php://stderr', $_GET['text']); echo 'printed';",
    );
    place.configure(pool);
    place
}

/// `php-pool reload`, by the control socket.
fn reload(master: &Master, arguments: &[&str]) -> Output {
    let mut command = Command::new(master.place.path("php-pool"));
    command.arg("reload").arg("--control").arg(master.place.path("control"));
    command.args(arguments).output().unwrap()
}

fn accepted(master: &Master) -> u64 {
    let mut command = Command::new(master.place.path("php-pool"));
    command
        .arg("status")
        .arg("--json")
        .arg("--control")
        .arg(master.place.path("control"));
    let text = command.output().unwrap().stdout;
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    json[0]["snapshot"]["accepted"].as_u64().unwrap()
}

fn started(pool: &str, workers: usize) -> Master {
    let master = place(pool).start_with_control();
    master.said("ready to handle connections");
    wait_for("the first workers", || master.workers("www").len() == workers);
    master
}

fn nothing_is_disturbed() {
    let master = started(POOL, 2);
    let family = || (master.zygote("www"), master.workers("www"));
    // Two kept connections that have been served, of which the workers hand one over before they get busy.
    let mut kept: Vec<_> = (0..3).map(|_| master.connect("sock")).collect();
    for connection in &mut kept {
        assert!(!master.ask_kept(connection, "/pid.php").is_empty());
    }
    let mut running: Vec<_> = (0..2).map(|_| master.connect("sock")).collect();
    for connection in &mut running {
        master.ask(connection, "/sleep.php?ms=3000", 0);
    }
    wait_for("both workers are busy", || accepted(&master) == 5);
    let mut waiting = master.connect("sock");
    master.ask(&mut waiting, "/pid.php", 0);
    let before = family();
    let capabilities = || {
        let status = fs::read_to_string(format!("/proc/{}/status", master.pid())).unwrap();
        let sets = status.lines().filter(|line| line.starts_with("Cap"));
        sets.map(str::to_owned).collect::<Vec<_>>()
    };
    let privileges = capabilities();

    master.place.install();
    let output = reload(&master, &[]);
    assert!(output.status.success(), "{output:?}");
    // The log comes by a pipe of its own.
    master.said(TAKEN_OVER);
    assert_eq!(master.count(TAKEN_OVER), 1);
    assert_eq!(family(), before, "neither the zygote nor a worker has changed");
    assert_eq!(
        capabilities(),
        privileges,
        "what the master has given up does not come back"
    );
    // The counters go on.
    assert!((5..=6).contains(&accepted(&master)), "{}", accepted(&master));

    for connection in &mut running {
        assert_eq!(body(&connection.reply(1)), "done");
    }
    let pid: i32 = body(&waiting.reply(1)).parse().unwrap();
    assert!(before.1.contains(&pid));
    for connection in &mut kept {
        assert!(!master.ask_kept(connection, "/pid.php").is_empty());
    }
    // What it has taken over it can also end, replace and hear.
    assert_eq!(master.get("/print.php?text=heard%0A"), "printed");
    master.said("heard");
    let output = reload(&master, &["--force"]);
    assert!(output.status.success(), "{output:?}");
    wait_for("the old generation is gone", || {
        let (zygotes, workers) = (master.below("zygote www"), master.workers("www"));
        zygotes.len() == 1 && zygotes[0] != before.0 && workers.len() == 2 && !workers.contains(&before.1[0])
    });
    // The log comes by a pipe of its own.
    master.said(TAKEN_OVER);
    assert_eq!(master.count(TAKEN_OVER), 1);
    for connection in &mut kept {
        assert!(!master.ask_kept(connection, "/pid.php").is_empty());
    }
    assert_eq!(accepted(&master), 5 + 1 + 3 + 1 + 3);
}

fn by_signal() {
    let master = place(POOL).serve_with(2);
    let before = master.workers("www");
    for round in 1..=3 {
        master.place.install();
        master.signal(Signal::SIGUSR2);
        master.said_often(TAKEN_OVER, round);
        master.said_often("ready to handle connections", round + 1);
        let pid: i32 = master.get("/pid.php").parse().unwrap();
        assert!(!before.contains(&pid), "the signal renews everything");
    }
    wait_for("the old generations are gone", || {
        master.workers("www").len() == 2 && master.below("zygote www").len() == 1
    });
    // A plain one changes no program.
    master.signal(Signal::SIGUSR2);
    master.said_often("ready to handle connections", 5);
    assert_eq!(master.count(TAKEN_OVER), 3);
}

fn cannot_take_over() {
    let master = started(POOL, 2);
    let client = crate::harness::executable();
    let before = (master.zygote("www"), master.workers("www"));
    let bad: [(&str, &[u8], u32, &str); 4] = [
        (
            "a script that fails",
            b"#!/bin/sh\necho broken >&2\nexit 1\n",
            0o755,
            "broken",
        ),
        (
            "one that says nothing",
            b"#!/bin/sh\nexit 0\n",
            0o755,
            "cannot take over",
        ),
        ("no program at all", b"\x7fELF and no more", 0o755, "Exec format error"),
        ("a file that nobody may execute", b"x", 0o644, "Permission denied"),
    ];
    for (what, content, mode, reason) in bad {
        let new = master.place.path("new");
        fs::write(&new, content).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(&new, master.place.path("php-pool")).unwrap();
        let mut command = Command::new(&client);
        command.arg("reload").arg("--control").arg(master.place.path("control"));
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(reason), "{what}: {text}");
        assert_eq!((master.zygote("www"), master.workers("www")), before, "{what}");
        assert!(!master.get("/pid.php").is_empty(), "{what}");
    }
    assert_eq!(master.count(TAKEN_OVER), 0);
    master.place.install();
    let output = reload(&master, &[]);
    assert!(output.status.success(), "{output:?}");
    // The log comes by a pipe of its own.
    master.said(TAKEN_OVER);
    assert_eq!(master.count(TAKEN_OVER), 1);
    assert_eq!((master.zygote("www"), master.workers("www")), before);
}

/// That all workers of the start are up meanwhile is no answer to whoever asked for an upgrade.
fn asked_for_during_the_start() {
    const BROKEN: &[u8] = b"#!/bin/sh\nsleep 1\necho broken >&2\nexit 1\n";
    let master = place(&POOL.replace("max_children = 2", "max_children = 40")).start_with_control();
    let new = master.place.path("new");
    fs::write(&new, BROKEN).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    master.said("ready to handle connections");
    fs::rename(&new, master.place.path("php-pool")).unwrap();
    let mut command = Command::new(crate::harness::executable());
    command.arg("reload").arg("--control").arg(master.place.path("control"));
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("broken"), "{output:?}");
    wait_for("the workers of the start", || master.workers("www").len() == 40);
    assert!(!master.get("/pid.php").is_empty());
    assert_eq!(master.count(TAKEN_OVER), 0);
}

/// Only what has changed was to be renewed by the reload that found another program; everything by the one that came then.
fn asked_for_meanwhile() {
    let master = started(POOL, 2);
    let before = master.workers("www");
    let new = master.place.path("new");
    let at = |name: &str| master.place.path(name).display().to_string();
    let (asked, go, program) = (at("asked"), at("go"), at("php-pool.a"));
    let script = format!("#!/bin/sh\ntouch {asked}\nwhile [ ! -e {go} ]; do sleep 0.02; done\nexec {program} \"$@\"\n");
    fs::write(&new, script).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&new, master.place.path("php-pool")).unwrap();
    let mut command = Command::new(crate::harness::executable());
    command.arg("reload").arg("--control").arg(master.place.path("control"));
    let mut client = command.spawn().unwrap();
    wait_for("the new program to be asked", || master.place.path("asked").exists());
    master.signal(Signal::SIGUSR2);
    master.place.write("go", "");
    master.said(TAKEN_OVER);
    wait_for("the new workers alone", || {
        let now = master.workers("www");
        now.len() == 2 && now.iter().all(|pid| !before.contains(pid))
    });
    assert!(client.wait().unwrap().success());
}

fn stops() {
    let mut master = started(&POOL.replace("static", "ondemand"), 0);
    let mut running = master.connect("sock");
    master.ask(&mut running, "/sleep.php?ms=2000", 0);
    wait_for("a worker", || master.workers("www").len() == 1);
    master.place.install();
    let output = reload(&master, &[]);
    assert!(output.status.success(), "{output:?}");
    master.signal(Signal::SIGTERM);
    assert_eq!(body(&running.reply(1)), "done");
    assert!(master.ended().success());
    assert!(!master.place.path("sock").exists(), "its socket goes with it");
    assert!(!master.place.path("control").exists(), "and its control socket");
    assert!(!master.place.path("pid").exists(), "and its pid file");
}
