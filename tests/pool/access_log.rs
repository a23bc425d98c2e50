//! The access log: what happens to lines when the disk, the log or a worker does not do what it should.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, mkfifo};
use tempfile::TempDir;

use crate::harness::{Master, Place, body, wait_for};
use crate::support::process::{spawn, that_dies_with_us};
use crate::support::{Case, fcgi};

pub const CASES: &[Case] = &[
    ("access_log::lines_are_in_order_of_their_requests", lines_are_in_order),
    ("access_log::rotation_loses_no_line", rotation_loses_no_line),
    ("access_log::a_stop_and_recycling_lose_no_line", a_stop_loses_no_line),
    (
        "access_log::an_upgrade_in_place_loses_no_line",
        an_upgrade_loses_no_line,
    ),
    (
        "access_log::a_killed_worker_loses_no_line",
        a_killed_worker_loses_no_line,
    ),
    (
        "access_log::a_reader_that_stalls_holds_nobody_up",
        a_stalled_reader_holds_nobody_up,
    ),
    (
        "access_log::a_reader_that_stalls_at_the_end_is_told_of",
        a_stalled_reader_is_given_up_at_the_end,
    ),
    ("access_log::a_full_disk_is_said_once", a_full_disk_is_said_once),
    ("access_log::stderr_takes_it_and_outlives_a_rotation", stderr_takes_it),
    (
        "access_log::a_file_that_is_stderr_takes_it_beside_the_log",
        a_file_that_is_stderr_takes_both,
    ),
    (
        "access_log::a_pipe_without_a_reader_is_an_error",
        a_pipe_without_a_reader_is_an_error,
    ),
    ("access_log::json_is_one_object_a_line", json_is_one_object_a_line),
    (
        "access_log::json_holds_every_byte_that_a_client_may_send",
        json_holds_every_byte,
    ),
];

fn place(settings: &str) -> Place {
    let place = Place::new();
    place.write("pid.php", "<?php echo getmypid();");
    place.configure(&format!(
        "[www]\n{{user}}\nlisten = {{dir}}/sock\npm = static\npm.max_children = 2\naccess.format = \"%q\"\n{settings}"
    ));
    place
}

/// Sends numbered requests until told to end; how many were answered.
fn ask(master: &Master, over: &AtomicBool) -> u32 {
    let count = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(SeqCst) {
                    let number = count.fetch_add(1, SeqCst);
                    assert!(!master.get(&format!("/pid.php?{number}.")).is_empty());
                }
            });
        }
    });
    count.load(SeqCst)
}

/// The numbers of all lines, each of which must be there once.
fn numbers(text: &str) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for line in text.lines() {
        let number = line.strip_suffix('.').and_then(|number| number.parse().ok());
        assert!(
            found.insert(number.unwrap_or_else(|| panic!("no line: {line:?}"))),
            "twice: {line}"
        );
    }
    found
}

/// Whichever worker runs them.
fn lines_are_in_order() {
    let master = place("access.log = {dir}/access.log\npm.max_requests = 10\n").serve();
    let (count, mut workers) = (500, BTreeSet::new());
    for number in 0..count {
        workers.insert(master.get(&format!("/pid.php?{number}.")));
    }
    assert!(workers.len() >= 50, "{}", workers.len());
    let text = || fs::read_to_string(master.place.path("access.log")).unwrap();
    wait_for("all lines", || text().lines().count() >= count);
    let wanted: String = (0..count).map(|number| format!("{number}.\n")).collect();
    assert_eq!(text(), wanted);
}

fn rotation_loses_no_line() {
    let master = place("access.log = {dir}/access.log\n").serve();
    let (over, log) = (AtomicBool::new(false), master.place.path("access.log"));
    let count = std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&master, &over));
        for round in 1..=5 {
            let before = fs::metadata(&log).map_or(0, |log| log.len());
            wait_for("lines", || fs::metadata(&log).is_ok_and(|log| log.len() > before));
            fs::rename(&log, master.place.path(&format!("access.log.{round}"))).unwrap();
            master.signal(Signal::SIGUSR1);
            master.said_often("access log file re-opened", round);
        }
        over.store(true, SeqCst);
        asked.join().unwrap()
    });
    let all = || -> String {
        let rotated = (1..=5).map(|round| master.place.path(&format!("access.log.{round}")));
        let files = rotated.chain([log.clone()]);
        files.map(|path| fs::read_to_string(path).unwrap_or_default()).collect()
    };
    wait_for("the last lines", || all().lines().count() as u32 >= count);
    assert_eq!(numbers(&all()), (0..count).collect());
    assert_eq!(master.count("exited"), 0, "rotation ends no worker");
}

fn a_stop_loses_no_line() {
    let mut master = place("access.log = {dir}/access.log\npm.max_requests = 5\n").serve();
    for number in 0..60 {
        master.get(&format!("/pid.php?{number}."));
    }
    master.signal(Signal::SIGQUIT);
    assert!(master.ended().success());
    let text = fs::read_to_string(master.place.path("access.log")).unwrap();
    assert_eq!(numbers(&text), (0..60).collect());
}

/// Neither a line nor what is counted, whether or not the workers are renewed with it.
fn an_upgrade_loses_no_line() {
    let place = place("access.log = {dir}/access.log\n").with_own_program();
    let master = place.start_with_control();
    master.said("ready to handle connections");
    let over = AtomicBool::new(false);
    let command = |arguments: &[&str]| {
        let mut command = Command::new(master.place.path("php-pool"));
        command
            .args(arguments)
            .arg("--control")
            .arg(master.place.path("control"));
        command.output().unwrap()
    };
    let count = std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&master, &over));
        for (round, arguments) in [&["reload"][..], &["reload", "--force"], &["reload"]]
            .iter()
            .enumerate()
        {
            master.place.install();
            let output = command(arguments);
            assert!(output.status.success(), "{output:?}");
            master.said_often("has taken over", round + 1);
        }
        over.store(true, SeqCst);
        asked.join().unwrap()
    });
    let text = || fs::read_to_string(master.place.path("access.log")).unwrap();
    wait_for("all lines", || text().lines().count() as u32 >= count);
    assert_eq!(numbers(&text()), (0..count).collect());
    let measured = || {
        let status: serde_json::Value = serde_json::from_slice(&command(&["status", "--json"]).stdout).unwrap();
        status[0]["measured"].clone()
    };
    let durations = |measured: &serde_json::Value| -> u64 {
        let counts = measured["measures"]["durations"]["counts"].as_array().unwrap();
        counts.iter().filter_map(serde_json::Value::as_u64).sum()
    };
    // The last worker has answered, and may not have counted yet.
    wait_for("all to be counted", || durations(&measured()) >= u64::from(count));
    let measured = measured();
    assert_eq!(durations(&measured), u64::from(count), "{measured}");
    assert_eq!(measured["spawned"], 4, "{measured}");
}

fn a_killed_worker_loses_no_line() {
    let master = place("access.log = {dir}/access.log\n").serve_with(2);
    for number in 0..20 {
        let worker: i32 = master.get(&format!("/pid.php?{number}.")).parse().unwrap();
        kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
        wait_for("another worker", || {
            let workers = master.workers("www");
            workers.len() == 2 && !workers.contains(&worker)
        });
    }
    let text = || fs::read_to_string(master.place.path("access.log")).unwrap();
    wait_for("all lines", || text().lines().count() >= 20);
    assert_eq!(numbers(&text()), (0..20).collect());
}

fn a_stalled_reader_holds_nobody_up() {
    let (mut master, mut reader, _home) = into_a_fifo();
    // More than pipe, batch and rings hold.
    let mut asked = 0;
    while master.count("lines are lost") == 0 {
        assert!(asked < 20_000, "nothing is lost");
        ask_at_length(&master, asked);
        asked += 1;
    }
    (asked..asked + 200).for_each(|number| ask_at_length(&master, number));
    asked += 200;
    assert_eq!(master.count("lines are lost"), 1, "said once, though many are");
    // A reader that comes back gets whole lines, and the log says how many are missing.
    let mut text = Vec::new();
    wait_for("how many are lost", || {
        let _ = reader.read_to_end(&mut text);
        master.count("lines of the access log are lost") > 0
    });
    master.signal(Signal::SIGQUIT);
    assert!(master.ended().success());
    let _ = reader.read_to_end(&mut text);
    assert_eq!(whole_lines(&text) + lost(&master), asked);
}

/// It has two seconds, and the master is not there any more when it comes back.
fn a_stalled_reader_is_given_up_at_the_end() {
    let (mut master, mut reader, _home) = into_a_fifo();
    let asked = 100;
    (0..asked).for_each(|number| ask_at_length(&master, number));
    master.signal(Signal::SIGQUIT);
    assert!(master.ended().success());
    let mut text = Vec::new();
    let _ = reader.read_to_end(&mut text);
    let read = whole_lines(&text);
    assert!(read < asked, "the pipe takes all of them");
    assert_eq!(read + lost(&master), asked);
    let line = master.said("lines of the access log are lost (");
    assert!(line.contains("WARNING: ") && line.ends_with("/fifo)"), "{line}");
    master.said("ERROR: lines could not be written to the access log: ");
}

/// A pool that writes its access log into a pipe, and the end for its reader.
fn into_a_fifo() -> (Master, File, TempDir) {
    let place = place("access.log = {dir}/fifo\naccess.format = \"%q.%{A}e\"\n");
    // The way to it is root's alone, or a pipe is refused.
    let home = tempfile::Builder::new().prefix("php-pool-fifo").tempdir().unwrap();
    let fifo = home.path().join("fifo");
    mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let directory = place.path("").display().to_string();
    let text = fs::read_to_string(place.path("pool.conf")).unwrap();
    let text = text.replace(&format!("{directory}fifo"), &fifo.display().to_string());
    place.write("pool.conf", &text);
    let reader = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&fifo)
        .unwrap();
    (place.serve(), reader, home)
}

/// A request whose line is long.
fn ask_at_length(master: &Master, number: usize) {
    assert!(!master.get(&format!("/pid.php?{number}.{}", "x".repeat(900))).is_empty());
}

/// How many of their lines there are, none of them torn.
fn whole_lines(text: &[u8]) -> usize {
    let end = format!("{}.-", "x".repeat(900));
    let text = std::str::from_utf8(text).unwrap();
    assert!(text.ends_with('\n'), "the last one is torn");
    assert!(text.lines().all(|line| line.ends_with(&end)));
    text.lines().count()
}

/// How many it says are lost, each time that it says so.
fn lost(master: &Master) -> usize {
    let lines = master.log().into_iter();
    let lines = lines.filter(|line| line.contains("lines of the access log are lost"));
    let count = |line: String| line.split(' ').find_map(|word| word.parse::<usize>().ok());
    lines.map(|line| count(line).expect("a number")).sum()
}

/// The shell's `2>FILE`, to which both write.
fn a_file_that_is_stderr_takes_both() {
    for error_log in ["", "error_log = /dev/stderr\n"] {
        let place = Place::new();
        place.write("x.php", "<?php echo 'x';");
        place.configure(&format!(
            "{error_log}[www]\n{{user}}\nlisten = {{dir}}/sock\npm = static\npm.max_children = 1\naccess.log = /dev/stderr\naccess.format = \"%q.\"\n"
        ));
        let said = place.path("said");
        let mut command = that_dies_with_us("KILL", place.path("php-fpm"));
        command.args(["-F", "-n", "-y"]).arg(place.path("pool.conf"));
        command.stderr(File::create(&said).unwrap());
        if error_log.is_empty() {
            command.arg("-O");
        }
        let mut master = spawn(command).unwrap();
        let text = || fs::read_to_string(&said).unwrap();
        wait_for("it serves", || text().contains("ready to handle connections"));
        for n in 0..50 {
            let mut connection = place.connect("sock");
            place.ask(&mut connection, &format!("/x.php?{n}"), 0);
            assert_eq!(body(&connection.reply(1)), "x");
        }
        kill(Pid::from_raw(master.id() as i32), Signal::SIGQUIT).unwrap();
        assert!(master.wait().unwrap().success());
        let text = text();
        let lines = (0..50).map(|n| format!("{n}."));
        let notices = ["ready to handle connections", "exiting, bye-bye!"].map(|text| format!("NOTICE: {text}"));
        for line in lines.chain(notices) {
            let is = |found: &str| found == line || found.ends_with(&format!("] {line}"));
            assert_eq!(text.lines().filter(|found| is(found)).count(), 1, "{line} in {text}");
        }
    }
}

fn stderr_takes_it() {
    let mut master = place("access.log = /dev/stderr\n").serve();
    master.get("/pid.php?before.");
    assert_eq!(master.said("before."), "before.");
    master.signal(Signal::SIGUSR1);
    master.said("access log file re-opened");
    master.get("/pid.php?after.");
    assert_eq!(master.said("after."), "after.");
    assert_eq!(master.count("exited"), 0, "rotation ends no worker");
    master.get("/pid.php?last.");
    master.signal(Signal::SIGQUIT);
    assert!(master.ended().success());
    assert_eq!(master.said("last."), "last.");
}

fn a_full_disk_is_said_once() {
    let master = place("access.log = /dev/full\n").serve();
    for number in 0..50 {
        assert!(!master.get(&format!("/pid.php?{number}.")).is_empty());
    }
    let line = master.said("lines could not be written to the access log");
    assert!(line.contains("No space left on device (28)"), "{line}");
    assert_eq!(master.count("could not be written"), 1);
}

fn a_pipe_without_a_reader_is_an_error() {
    let place = place("access.log = {dir}/fifo\n");
    // Where others than root could have put it, the pool would go on without.
    fs::set_permissions(place.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    mkfifo(&place.path("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let mut master = place.start(&[]);
    master.said("failed to open access log");
    assert_eq!(master.ended().code(), Some(78));
}

/// What python reads of it is what was sent, but for what is not UTF-8, which is U+FFFD as in python's own reading of it.
fn json_holds_every_byte() {
    let place = place("access.log = {dir}/access.log\n");
    let text = fs::read_to_string(place.path("pool.conf")).unwrap();
    place.write("pool.conf", &text.replace("\"%q\"", "json"));
    let master = place.serve();
    let every: Vec<u8> = (1..=255).collect();
    let forged = b"\"}\n{\"status\": 200, \"uri\": \"/forged\"}\n\\".to_vec();
    let script = master.place.path("pid.php").display().to_string();
    for (number, hostile) in [&every, &forged].into_iter().enumerate() {
        let user = [b"x:".to_vec(), hostile.clone()].concat();
        let params = [
            ("SCRIPT_FILENAME", script.clone().into_bytes()),
            ("SCRIPT_NAME", [b"/".as_slice(), hostile].concat()),
            ("REQUEST_METHOD", hostile.clone()),
            ("QUERY_STRING", hostile.clone()),
            ("HTTP_X_REQUEST_ID", format!("h-{number}").into_bytes()),
            ("HTTP_AUTHORIZATION", user),
        ];
        let pairs = params
            .iter()
            .flat_map(|(name, value)| fcgi::pair(name.as_bytes(), value));
        let request = [
            fcgi::begin(1, fcgi::RESPONDER, 0).bytes(),
            fcgi::stream(fcgi::PARAMS, 1, &pairs.collect::<Vec<_>>(), 0xffff),
            fcgi::stream(fcgi::STDIN, 1, b"", 0xffff),
        ];
        let mut connection = master.connect("sock");
        assert!(connection.send(&request.concat()));
        assert!(connection.reply(1).end.is_some());
    }
    let log = master.place.path("access.log");
    wait_for("both lines", || {
        fs::read_to_string(&log).is_ok_and(|text| text.lines().count() >= 2)
    });
    let script = "import json, sys\nsent = [bytes(range(1, 256)), b'\"}\\n{\"status\": 200, \"uri\": \"/forged\"}\\n\\\\']\n\
                  lines = sys.stdin.buffer.read().splitlines()\nassert len(lines) == 2, lines\n\
                  for number, (line, one) in enumerate(zip(lines, sent)):\n\
                  \x20 o, text = json.loads(line), one.decode(errors='replace')\n\
                  \x20 assert o['query'] == text and o['uri'] == '/' + text and o['method'] == text, (o, text)\n\
                  \x20 assert o['request_id'] == f'h-{number}' and o['status'] == 200, o\n";
    let output = Command::new("python3")
        .args(["-c", script])
        .stdin(File::open(&log).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn json_is_one_object_a_line() {
    let place = place("access.log = {dir}/access.log\n");
    let text = fs::read_to_string(place.path("pool.conf")).unwrap();
    place.write("pool.conf", &text.replace("\"%q\"", "json"));
    let master = place.serve();
    for number in 0..30 {
        master.get(&format!("/pid.php?{number}=\"\\\u{e9}\n{{}}"));
    }
    let log = master.place.path("access.log");
    let lines = || {
        let mut text = String::new();
        let _ = File::open(&log).and_then(|mut file| file.read_to_string(&mut text));
        text
    };
    wait_for("all lines", || lines().lines().count() >= 30);
    // Read by a program that nobody here wrote.
    let script = "import json, sys\nfor line in sys.stdin:\n  o = json.loads(line)\n  print(o['query'].split('=')[0], \
                  len(o['request_id']), o['status'], o['method'])\n";
    let mut child = Command::new("python3")
        .args(["-c", script])
        .stdin(File::open(&log).unwrap())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut read = String::new();
    child.stdout.take().unwrap().read_to_string(&mut read).unwrap();
    assert!(child.wait().unwrap().success());
    let numbers: BTreeSet<String> = read.lines().map(str::to_owned).collect();
    assert_eq!(numbers, (0..30).map(|number| format!("{number} 32 200 GET")).collect());
}
