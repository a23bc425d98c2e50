//! What two processes say of one thing comes in any order: nobody is accused, counted or ended for what another one's word, or an
//! earlier one, was about.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Master, Place, body, wait_for};
use crate::processes::under_way;
use crate::support::Case;
use crate::support::fcgi::{PARAMS, RESPONDER, STDIN, begin, pairs, stream};
use crate::support::process::{lives, state};

pub const CASES: &[Case] = &[
    ("races::a_stop_while_workers_are_made_accuses_nobody", stopped_early),
    (
        "races::a_zygote_that_falls_while_it_makes_workers_is_not_accused_of_them",
        fallen_zygote,
    ),
    (
        "races::spares_that_are_not_wanted_any_more_accuse_nobody",
        unwanted_spares,
    ),
    ("races::who_works_on_after_its_answer_is_busy", works_on),
    ("races::who_waits_for_a_slow_reader_is_busy", slow_reader),
    ("races::who_has_left_is_not_ended_for_what_is_over", left_and_late),
    ("races::who_has_left_is_never_idle_again", left_and_idle),
    (
        "races::a_master_that_hangs_keeps_no_workers_from_others_of_its_user",
        hanging_master,
    ),
    (
        "races::a_time_that_is_over_before_php_counts_it_is_no_crash",
        early_time_out,
    ),
];

/// Lines that say that a zygote lied.
fn accusations(master: &Master) -> Vec<String> {
    let says = |line: &String| line.contains("is not accepted") || line.contains("protocol");
    master.log().into_iter().filter(says).collect()
}

fn stopped_early() {
    let place = Place::new();
    place.configure("[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 60\n");
    let mut master = place.serve();
    master.signal(Signal::SIGTERM);
    assert!(master.ended().success());
    assert_eq!(accusations(&master), [""; 0]);
}

/// Its children are the master's before that has heard of them; where it hears of the end first there is nothing to see.
fn fallen_zygote() {
    assert!((0..30).any(|_| heard_of_late()), "each time the end was heard of first");
}

/// Whether the master hears of workers whose zygote has ended.
fn heard_of_late() -> bool {
    let place = Place::new();
    place.write("hello.php", "<?php echo 'hello';");
    place.configure(
        "[global]\nlog_level = debug\n[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 60\n",
    );
    let master = place.serve();
    let zygote = master.zygote("www");
    master.signal(Signal::SIGSTOP);
    wait_for("it has made what it was asked for", || state(zygote) == Some('S'));
    kill(Pid::from_raw(zygote), Signal::SIGKILL).unwrap();
    master.signal(Signal::SIGCONT);
    wait_for("there is another one", || master.count(" is ready, PHP ") == 2);
    assert_eq!(master.get("/hello.php"), "hello");
    assert_eq!(accusations(&master), [""; 0]);
    master.count(&format!("was not started: zygote {zygote} has ended")) > 0
}

/// A pool that needs another number of workers all the time, and replaces them soon.
fn unwanted_spares() {
    let place = Place::new();
    place.write("pid.php", "<?php echo getmypid();");
    place.configure(
        "[www]\n{user}\nlisten = {dir}/sock\npm = dynamic\npm.max_children = 8\npm.start_servers = 1\npm.min_spare_servers = 1\n\
         pm.max_spare_servers = 1\npm.max_requests = 5\n",
    );
    let master = place.serve();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1500).for_each(|_| assert!(!master.get("/pid.php").is_empty())));
        }
    });
    assert_eq!(accusations(&master), [""; 0]);
}

fn ondemand() -> Master {
    let place = Place::new();
    place.write("hello.php", "<?php echo 'hello';");
    place.write(
        "wait.php",
        "<?php touch(__DIR__ . '/begun'); while (!file_exists(__DIR__ . '/go')) { usleep(2000); clearstatcache(); }",
    );
    place.configure(
        "[www]\n{user}\nlisten = {dir}/sock\npm = ondemand\npm.max_children = 5\npm.process_idle_timeout = 600s\n\
         pm.status_path = /status\npm.status_listen = {dir}/status\n",
    );
    place.serve()
}

/// With one worker that is busy in a way of its own: who comes when another one has a request is served by a third.
fn third_comes_at_once(master: &Master) {
    // A second one, which is idle then; and the master has no reason to look again by itself.
    assert_eq!(master.get("/hello.php"), "hello");
    thread::sleep(Duration::from_millis(1500));
    let mut second = master.connect("sock");
    master.ask(&mut second, "/wait.php", 0);
    wait_for("the second's request", || master.place.path("begun").exists());
    // It would wait for `go`, or for the master's next look at its zygotes, which comes every ten seconds.
    let begin = Instant::now();
    assert_eq!(master.get("/hello.php"), "hello");
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    assert_eq!(master.workers("www").len(), 3);
    master.place.write("go", "");
    assert_eq!(body(&second.reply(1)), "");
}

fn works_on() {
    let master = ondemand();
    master.place.write(
        "on.php",
        "<?php register_shutdown_function(function () { echo 'done'; fastcgi_finish_request(); while (!file_exists(__DIR__ . '/go')) { usleep(2000); clearstatcache(); } });",
    );
    assert_eq!(master.get("/on.php"), "done");
    third_comes_at_once(&master);
}

fn slow_reader() {
    let master = ondemand();
    // Beyond what a socket takes, and that by less than what a worker sends at its end.
    master.place.write(
        "big.php",
        "<?php for ($n = 230000; $n > 0; $n -= 8192) echo str_repeat('x', min($n, 8192));",
    );
    assert_eq!(master.get("/hello.php"), "hello");
    let mut slow = master.connect("sock");
    master.ask(&mut slow, "/big.php", 0);
    let status = || master.get_on("status", "/status?full");
    wait_for("the script's end", || status().contains("Finishing"));
    third_comes_at_once(&master);
    assert_eq!(body(&slow.reply(1)).len(), 230_000);
}

fn left_and_late() {
    // PHP has a tenth of a second to end it; where the machine does not let it, a signal comes rightly.
    assert!((0..5).any(|_| ends_in_order()), "PHP never ended it");
}

/// Whether a worker that is to leave after its request, and whose request PHP ended for its time, leaves in order.
fn ends_in_order() -> bool {
    let place = Place::new();
    place.write("slow.php", "<?php echo 'partial'; while (true) usleep(10000);");
    place.configure(
        "[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\npm.max_requests = 1\n\
         request_terminate_timeout = 1s\n",
    );
    let master = place.serve();
    // It leaves after this request, and stays as long as its client still sends.
    let file = master.place.path("slow.php").display().to_string();
    let params = pairs(&[("SCRIPT_FILENAME", file.as_str()), ("REQUEST_METHOD", "GET")]);
    let mut client = master.connect("sock");
    let head = [begin(1, RESPONDER, 0).bytes(), stream(PARAMS, 1, &params, 8192)].concat();
    assert!(client.send(&head));
    let part = stream(STDIN, 1, &[b'x'; 1000], 8192);
    let part = &part[..part.len() - 8];
    for _ in 0..44 {
        client.send(part);
        thread::sleep(Duration::from_millis(50));
    }
    let line = master.said("execution timed out");
    let worker = line.split("child ").nth(1).unwrap().split(',').next().unwrap();
    let end = master.said(&format!("child {worker} exited"));
    // Its last words, by which it is known to have ended the request in time.
    let ended_by_php = client.reply(1).errors().contains("Maximum execution time");
    assert!(
        !ended_by_php || end.contains("exited with code 0"),
        "{end}: {:?}",
        master.log()
    );
    ended_by_php
}

fn left_and_idle() {
    let place = Place::new();
    place.write("hello.php", "<?php echo 'hello';");
    place.configure("[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\nlinger_timeout = 60s\n");
    let master = place.serve_with(1);
    let worker = master.workers("www")[0];
    // Parameters so long that they cannot be handed on when half of them are read; and then a body without an end.
    let file = master.place.path("hello.php").display().to_string();
    let long = "x".repeat(120_000);
    let params = pairs(&[("SCRIPT_FILENAME", &file), ("REQUEST_METHOD", "GET"), ("LONG", &long)]);
    let request = [begin(1, RESPONDER, 0).bytes(), stream(PARAMS, 1, &params, 60_000)].concat();
    let mut client = master.connect("sock");
    assert!(client.send(&request[..100_000]));
    // Nothing tells that it has been read; where it has not, there is nothing to see.
    thread::sleep(Duration::from_secs(1));
    master.signal(Signal::SIGSTOP);
    kill(Pid::from_raw(worker), Signal::SIGQUIT).unwrap();
    thread::sleep(Duration::from_millis(200));
    assert!(client.send(&request[100_000..]));
    assert_eq!(body(&client.reply(1)), "hello");
    master.signal(Signal::SIGCONT);
    // Its client is still there, and so is it: the pool has another one.
    assert_eq!(master.get("/hello.php"), "hello");
    assert!(lives(worker), "{:?}", master.log());
}

/// What its workers hand over uses up what their user may have under way, as long as it does not look.
fn hanging_master() {
    let _alone = under_way();
    let place = |files: u32| {
        let place = Place::new();
        place.write("hello.php", "<?php echo 'hello';");
        place.configure(&format!(
            "[www]\n{{user}}\nlisten = {{dir}}/sock\npm = static\npm.max_children = 2\nrlimit_files = {files}\n"
        ));
        place.serve_with(2)
    };
    let (hangs, other) = (place(4096), place(100));
    hangs.signal(Signal::SIGSTOP);
    let keep = |_| {
        let mut connection = hangs.connect("sock");
        assert_eq!(hangs.ask_kept(&mut connection, "/hello.php"), "hello");
        connection
    };
    let kept: Vec<_> = (0..400).map(keep).collect();
    for worker in other.workers("www") {
        kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    }
    assert_eq!(other.get("/hello.php"), "hello");
    assert_eq!(other.count("does not answer"), 0, "{:?}", other.log());
    hangs.signal(Signal::SIGCONT);
    drop(kept);
}

/// The first request of a worker, whose body does not come in time: PHP is not there yet to be told.
fn early_time_out() {
    let place = Place::new();
    place.write("hello.php", "<?php echo 'hello';");
    place.configure(
        "[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\nrequest_terminate_timeout = 500ms\n",
    );
    let master = place.serve_with(1);
    let worker = master.workers("www")[0];
    let file = master.place.path("hello.php").display().to_string();
    let params = pairs(&[
        ("SCRIPT_FILENAME", file.as_str()),
        ("REQUEST_METHOD", "POST"),
        ("CONTENT_TYPE", "application/x-www-form-urlencoded"),
        ("CONTENT_LENGTH", "1000"),
    ]);
    let mut client = master.connect("sock");
    assert!(client.send(&[begin(1, RESPONDER, 0).bytes(), stream(PARAMS, 1, &params, 8192)].concat()));
    // By SIGTERM then, as whoever does not listen to PHP's time-out.
    master.said("execution timed out");
    let end = master.said(&format!("child {worker} exited"));
    assert!(end.contains("on signal 15"), "{:?}", master.log());
}
