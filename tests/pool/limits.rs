//! request_terminate_timeout, step by step.

use std::time::{Duration, Instant};

use crate::harness::{Master, Place, body, wait_for};
use crate::support::Case;
use crate::support::fcgi::{self, KEEP_CONN, PARAMS, RESPONDER, Record, STDIN, begin, stream};

pub const CASES: &[Case] = &[
    ("limits::a_request_over_its_time_ends_inside_php", ends_inside_php),
    (
        "limits::what_ends_a_request_does_not_end_the_next",
        the_next_request_is_left_alone,
    ),
    (
        "limits::a_request_that_blocks_signals_is_killed_with_its_children",
        is_killed,
    ),
    (
        "limits::an_idle_kept_connection_has_no_limit",
        an_idle_connection_has_no_limit,
    ),
    ("limits::a_slow_request_is_traced_once", a_slow_request_is_traced),
    (
        "limits::a_body_without_end_after_the_answer_holds_no_worker",
        an_endless_body_holds_no_worker,
    ),
    (
        "limits::what_is_left_of_a_body_is_no_part_of_the_next_request",
        a_rest_is_not_the_next_request,
    ),
    (
        "limits::what_is_left_of_a_body_ties_its_connection_to_no_worker",
        a_rest_ties_to_no_worker,
    ),
    (
        "limits::a_connection_whose_body_is_over_is_as_idle_as_any",
        a_body_that_is_over_leaves_no_limit,
    ),
    (
        "limits::a_body_that_nobody_wants_resets_no_answer",
        a_body_that_nobody_wants_resets_no_answer,
    ),
    (
        "limits::no_limit_of_one_request_is_left_to_the_next",
        no_limit_is_left_behind,
    ),
    ("limits::a_stop_resets_no_answer", a_stop_resets_no_answer),
    (
        "limits::a_script_that_keeps_all_descriptors_costs_no_connection",
        all_descriptors_cost_no_connection,
    ),
];

fn serve(lines: &str) -> Master {
    let place = Place::new();
    place.write("pid.php", "<?php echo getmypid();");
    place.write(
        "spin.php",
        "<?php register_shutdown_function(function () { echo 'shut down'; });\nwhile (true);",
    );
    place.write(
        "sleep.php",
        "<?php register_shutdown_function(function () { echo 'shut down'; });\nsleep(60);",
    );
    place.write(
        "block.php",
        "<?php exec('sleep 300 >/dev/null 2>&1 & echo $!', $out);\nfile_put_contents(__DIR__ . '/child', $out[0]);\n\
         pcntl_sigprocmask(SIG_BLOCK, [SIGTERM, SIGPROF]);\nwhile (true) sleep(10);",
    );
    place.configure(&format!(
        "[www]\n{{user}}\nlisten = {{dir}}/sock\npm = static\npm.max_children = 1\ncatch_workers_output = yes\n{lines}\n"
    ));
    place.serve()
}

/// Has a script run until its time is over: the worker that ended it inside PHP, and lives on.
fn ended_inside(master: &Master, script: &str) -> String {
    // PHP has a tenth of a second for it, which a busy machine may not give it.
    let survivor = (0..5).find_map(|_| {
        let worker = master.get("/pid.php");
        let begin = Instant::now();
        let mut connection = master.connect("sock");
        master.ask(&mut connection, script, 0);
        let reply = connection.reply(1);
        assert!(begin.elapsed() < Duration::from_secs(15));
        let shut_down = String::from_utf8_lossy(&reply.stdout).contains("shut down");
        (reply.end.is_some() && shut_down && master.get("/pid.php") == worker).then_some(worker)
    });
    survivor.unwrap_or_else(|| panic!("{script}: PHP never ends it: {:?}", master.log()))
}

fn ends_inside_php() {
    let master = serve("request_terminate_timeout = 400ms");
    for script in ["/spin.php", "/sleep.php"] {
        ended_inside(&master, script);
        let line = master.said(&format!("{script}' (request: \"GET {script}\") execution timed out ("));
        assert!(
            line.contains("WARNING:") && line.ends_with("sec), terminating"),
            "{line}"
        );
        master.said(&format!(
            "PHP Fatal error:  Maximum execution time of 1 second exceeded in {}",
            master.place.path(&script[1..]).display()
        ));
    }
}

/// The worker that lives on has no word left of the request that was ended: its time-out's signal is for nobody, and SIGTERM asks
/// it to finish.
fn the_next_request_is_left_alone() {
    let master = serve("request_terminate_timeout = 2s");
    master.place.write(
        "go-on.php",
        "<?php header('X-Pid: ' . getmypid()); fastcgi_finish_request(); set_time_limit(0); touch(__DIR__ . '/begun');\n\
         while (!file_exists(__DIR__ . '/go')) { usleep(1000); clearstatcache(); }\n\
         file_put_contents(__DIR__ . '/done', 'done');",
    );
    let worker = ended_inside(&master, "/sleep.php");
    master.said("Maximum execution time");
    let timed_out = master.count("Maximum execution time");

    let mut connection = master.connect("sock");
    master.ask(&mut connection, "/go-on.php", 0);
    let reply = connection.reply(1);
    let pid = String::from_utf8_lossy(&reply.stdout).into_owned();
    assert!(pid.contains(&format!("X-Pid: {worker}\r\n")), "{pid}");
    let there = |name: &str| master.place.path(name).exists();
    crate::harness::wait_for("the script works on", || there("begun"));
    let pid = nix::unistd::Pid::from_raw(worker.parse().unwrap());
    for signal in [nix::sys::signal::Signal::SIGPROF, nix::sys::signal::Signal::SIGTERM] {
        nix::sys::signal::kill(pid, signal).unwrap();
    }
    master.place.write("go", "");
    crate::harness::wait_for("the script has come to its end", || there("done"));
    master.said(&format!("child {worker} exited with code 0"));
    assert_eq!(master.count("Maximum execution time"), timed_out);
}

fn is_killed() {
    let master = serve("request_terminate_timeout = 1500ms");
    let worker = master.get("/pid.php");
    let mut connection = master.connect("sock");
    master.ask(&mut connection, "/block.php", 0);
    assert!(connection.reply(1).end.is_none());
    master.said(&format!("child {worker} exited on signal 9 (SIGKILL)"));
    let child: i32 = std::fs::read_to_string(master.place.path("child"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    crate::harness::wait_for("what the script had started is gone", || {
        !crate::support::process::lives(child)
    });
    assert_ne!(master.get("/pid.php"), worker);
}

fn an_idle_connection_has_no_limit() {
    let master = serve("request_terminate_timeout = 1s");
    let mut connection = master.connect("sock");
    let worker = master.ask_kept(&mut connection, "/pid.php");
    std::thread::sleep(Duration::from_millis(1500)); // what must not happen would have
    assert_eq!(master.ask_kept(&mut connection, "/pid.php"), worker);
    assert_eq!(master.count("execution timed out"), 0);
}

fn a_slow_request_is_traced() {
    let master = serve("request_slowlog_timeout = 1s\nslowlog = {dir}/slow.log");
    let mut slow = master.connect("sock");
    master.ask(&mut slow, "/sleep.php", 0);
    master.said("executing too slow (");
    let path = master.place.path("slow.log");
    crate::harness::wait_for("the record", || {
        std::fs::read_to_string(&path).is_ok_and(|text| text.contains("duration"))
    });
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("sleep() ") && text.contains("sleep.php:2"), "{text}");
    assert_eq!(master.count("executing too slow ("), 1);
}

/// A PUT of so many bytes, of which none is there yet, for a script that does not read them.
pub fn put(master: &Master, uri: &str, length: &str, flags: u8) -> Vec<u8> {
    let file = master.place.path(&uri[1..]).display().to_string();
    let params = [
        ("SCRIPT_FILENAME", file.as_str()),
        ("SCRIPT_NAME", uri),
        ("REQUEST_METHOD", "PUT"),
        ("CONTENT_LENGTH", length),
    ];
    let params = stream(PARAMS, 1, &fcgi::pairs(&params), 8192);
    [begin(1, RESPONDER, flags).bytes(), params].concat()
}

/// A client that writes all of a body that nobody wants before it reads, for longer than `linger_timeout`, during which the only worker
/// has another request for as long.
fn a_body_that_nobody_wants_resets_no_answer() {
    const PARTS: usize = 40;
    let master = serve("linger_timeout = 1s");
    master
        .place
        .write("while.php", "<?php usleep(2500000); echo getmypid();");
    let part = Record::new(STDIN, 1, vec![b'x'; 32 << 10]).bytes().repeat(16);
    let length = (PARTS * 16 * (32 << 10)).to_string();
    let mut client = master.connect("sock");
    let mut bytes = put(&master, "/pid.php", &length, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..PARTS {
                bytes.extend_from_slice(&part);
                assert!(client.send(&bytes), "the answer is lost");
                bytes.clear();
                std::thread::sleep(Duration::from_millis(50));
            }
            assert!(client.send(&Record::new(STDIN, 1, []).bytes()));
        });
        std::thread::sleep(Duration::from_millis(300));
        assert!(!master.get("/while.php").is_empty());
    });
    assert_eq!(body(&client.reply(1)), master.get("/pid.php"));
}

/// PHP's own limit is what it was, after a script that had none was ended by ours.
fn no_limit_is_left_behind() {
    let master = serve(
        "request_terminate_timeout = 9500ms\nphp_admin_value[max_input_time] = -1\nphp_value[max_execution_time] = 1",
    );
    master
        .place
        .write("no-limit.php", "<?php set_time_limit(0); include 'sleep.php';");
    let worker = ended_inside(&master, "/no-limit.php");
    master.said("Maximum execution time of 10 seconds exceeded");
    assert_eq!(master.count("Maximum execution time of 1 second exceeded"), 0);
    let mut connection = master.connect("sock");
    master.ask(&mut connection, "/spin.php", 0);
    assert!(body(&connection.reply(1)).contains("shut down"));
    master.said("Maximum execution time of 1 second exceeded");
    assert_eq!(master.get("/pid.php"), worker);
}

/// The only worker must be there for others while a client goes on with a body, or with questions, for ever.
fn an_endless_body_holds_no_worker() {
    let rest = Record::new(STDIN, 1, vec![b'x'; 32 << 10]).bytes();
    // FCGI_GET_VALUES: it is answered, and is no request.
    let question = fcgi::Record::new(9, 0, fcgi::pair(b"FCGI_MAX_CONNS", b"")).bytes();
    for (what, flags, more) in [
        ("a body, kept", KEEP_CONN, rest.clone()),
        ("a body", 0, rest),
        ("questions", KEEP_CONN, question),
    ] {
        let master = serve("linger_timeout = 1s");
        let worker = master.get("/pid.php");
        let mut endless = master.connect("sock");
        assert!(endless.send(&put(&master, "/pid.php", "20000000", flags)));
        assert_eq!(body(&endless.reply(1)), worker);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            // As fast as it is taken, until the server has enough of it.
            let client = scope.spawn(move || while endless.send(&more) {});
            for _ in 0..20 {
                assert_eq!(master.get("/pid.php"), worker, "{what}");
            }
            wait_for("the connection is closed", || client.is_finished());
        });
        // request_header_timeout, which is no limit of this.
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{what}: {:?}",
            begun.elapsed()
        );
    }
}

fn a_rest_is_not_the_next_request() {
    let master = serve("linger_timeout = 60s\naccess.log = {dir}/access.log\naccess.format = \"%{milliseconds}d\"");
    let mut connection = master.connect("sock");
    assert!(connection.send(&put(&master, "/pid.php", "10", KEEP_CONN)));
    let worker = body(&connection.reply(1));
    assert!(connection.send(&Record::new(STDIN, 1, "12345").bytes()));
    // So long the client does nothing.
    connection.pause(Duration::from_millis(1500));
    let end = [
        Record::new(STDIN, 1, "67890").bytes(),
        Record::new(STDIN, 1, []).bytes(),
    ];
    assert!(connection.send(&end.concat()));
    assert_eq!(master.ask_kept(&mut connection, "/pid.php"), worker);
    let lines = || std::fs::read_to_string(master.place.path("access.log")).unwrap_or_default();
    wait_for("both lines", || lines().lines().count() == 2);
    for took in lines().lines() {
        assert!(took.parse::<f64>().unwrap() < 1000.0, "a request has taken {took} ms");
    }
}

/// The end of a body comes after the answer, as Apache may send it, and with it its connection's next request, when the worker that
/// gave the answer has another one, which takes longer than `linger_timeout`.
fn a_rest_ties_to_no_worker() {
    const LONG: &str = "<?php $go = __DIR__ . '/go-' . getmypid(); touch(__DIR__ . '/has-' . getmypid());\n\
                        while (!file_exists($go)) { usleep(1000); clearstatcache(); } unlink($go); echo getmypid();";
    let master = serve("pm.max_children = 2");
    master.place.write("long.php", LONG);
    wait_for("both workers", || master.workers("www").len() == 2);
    let workers = master.workers("www");
    let go = |worker: i32| drop(master.place.write(&format!("go-{worker}"), ""));
    for (rest, one_gets_free) in [("", false), ("12345", false), ("", true), ("12345", true)] {
        let mut kept = master.connect("sock");
        assert!(kept.send(&put(&master, "/pid.php", "10", KEEP_CONN)));
        let answered: i32 = body(&kept.reply(1)).parse().unwrap();
        let other = *workers.iter().find(|worker| **worker != answered).unwrap();
        let mut long = [(); 2].map(|()| master.connect("sock"));
        for connection in &mut long {
            master.ask(connection, "/long.php", 0);
        }
        let begun = |worker: &i32| master.place.path(&format!("has-{worker}"));
        wait_for("both are busy", || workers.iter().all(|worker| begun(worker).exists()));
        let end = [Record::new(STDIN, 1, rest).bytes(), Record::new(STDIN, 1, []).bytes()];
        assert!(kept.send(&end.concat()));
        master.ask(&mut kept, "/pid.php", KEEP_CONN);
        if one_gets_free {
            go(other);
            assert_eq!(body(&kept.reply(1)), other.to_string(), "{rest:?}");
            go(answered);
        } else {
            std::thread::sleep(Duration::from_millis(2500)); // longer than linger_timeout
            workers.iter().for_each(|worker| go(*worker));
            assert!(!body(&kept.reply(1)).is_empty(), "{rest:?}");
        }
        for (connection, worker) in long.iter_mut().zip(&workers) {
            body(&connection.reply(1));
            std::fs::remove_file(begun(worker)).unwrap();
        }
    }
}

/// A request whose body is longer than is read in one go, and no longer than a socket holds.
fn upload(master: &Master, uri: &str) -> Vec<u8> {
    const LENGTH: usize = 100_000;
    let request = put(master, uri, &LENGTH.to_string(), KEEP_CONN);
    [request, stream(STDIN, 1, &vec![b'x'; LENGTH], 50_000)].concat()
}

fn a_body_that_is_over_leaves_no_limit() {
    let master = serve("linger_timeout = 1s");
    let mut kept = master.connect("sock");
    assert!(kept.send(&upload(&master, "/pid.php")));
    let worker = body(&kept.reply(1));
    kept.pause(Duration::from_secs(2)); // what must not happen would have
    assert_eq!(master.ask_kept(&mut kept, "/pid.php"), worker);
}

/// The pool stops, or its master is killed, while the last record of a body, which the script has read as far as it says anything, is in
/// the socket still.
fn a_stop_resets_no_answer() {
    use nix::sys::signal::Signal;
    for end in [Signal::SIGQUIT, Signal::SIGKILL] {
        let mut master = serve("");
        master.place.write(
            "waits.php",
            "<?php $all = strlen(file_get_contents('php://input')); touch(__DIR__ . '/begun');\n\
             while (!file_exists(__DIR__ . '/go')) { usleep(1000); clearstatcache(); } echo $all;",
        );
        let mut kept = master.connect("sock");
        let request = upload(&master, "/waits.php");
        let (read, rest) = request.split_at(request.len() - 8);
        assert!(kept.send(read));
        wait_for("the script runs", || master.place.path("begun").exists());
        assert!(kept.send(rest));
        master.signal(end);
        if end == Signal::SIGQUIT {
            master.said("Finishing ...");
        }
        master.place.write("go", "");
        assert_eq!(body(&kept.reply(1)), "100000");
        assert_eq!(kept.end().1, fcgi::Ended::Closed, "{end}");
        master.ended();
    }
}

/// What a script opens for good, such as persistent connections, stays open in its worker.
fn all_descriptors_cost_no_connection() {
    const LIMIT: usize = 100;
    let master = serve(&format!("rlimit_files = {LIMIT}"));
    let server = std::os::unix::net::UnixListener::bind(master.place.path("server")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(master.place.path("server"), mode).unwrap();
    for n in 0..LIMIT {
        // A persistent connection for each name.
        std::os::unix::fs::symlink("server", master.place.path(&format!("server.{n}"))).unwrap();
    }
    let keep = "<?php for ($n = 0; @pfsockopen('unix://' . __DIR__ . \"/server.$n\", -1); $n++); echo getmypid();";
    master.place.write("keep.php", keep);
    let mut kept: Vec<_> = (0..4).map(|_| master.connect("sock")).collect();
    for connection in &mut kept {
        master.ask_kept(connection, "/pid.php");
    }
    let worker = master.ask_kept(&mut kept[0], "/keep.php");
    // Whatever is free is for those that are silent.
    let mut silent = Vec::new();
    wait_for("all are taken", || {
        silent.push(master.connect("sock"));
        std::thread::sleep(Duration::from_millis(100)); // until it is in the waiting room
        let open = std::fs::read_dir(format!("/proc/{worker}/fd")).map_or(LIMIT, Iterator::count);
        open == LIMIT
    });
    for connection in kept.iter_mut().rev() {
        assert!(!master.ask_kept(connection, "/pid.php").is_empty());
    }
    assert_ne!(master.get("/pid.php"), worker, "it lives on without descriptors");
    master.said("scripts keep all descriptors of this worker: it is replaced");
    drop((server, silent));
}
