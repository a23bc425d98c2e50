//! Workers that are used up, and their replacements.

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Master, Place, body, wait_for};
use crate::limits::put;
use crate::support::Case;
use crate::support::fcgi::{KEEP_CONN, STDIN, stream};

pub const CASES: &[Case] = &[
    (
        "recycling::the_replacement_is_ready_before_the_old_one_leaves",
        replacement_is_ready,
    ),
    (
        "recycling::a_spare_is_no_worker_of_the_status_page",
        a_spare_is_not_shown,
    ),
    (
        "recycling::who_is_used_up_hands_over_the_connection_that_it_answered_last",
        kept_connection,
    ),
    (
        "recycling::who_is_used_up_hands_over_a_connection_when_its_body_is_over",
        kept_connection_with_a_body,
    ),
    ("recycling::who_is_used_up_takes_nobody_out_of_line", in_line),
    ("recycling::an_old_worker_serves_until_it_is_replaced", by_age),
    ("recycling::a_long_request_keeps_no_other_worker", beside_a_long_request),
    ("recycling::a_large_worker_serves_until_it_is_replaced", by_memory),
    ("recycling::process_max_leaves_no_room_for_spares", without_room),
    ("recycling::spares_leave_with_their_generation", spares_leave),
];

fn serve(lines: &str) -> Master {
    let place = Place::new();
    place.write("pid.php", "<?php echo getmypid();");
    place.configure(&format!(
        "[www]\n{{user}}\nlisten = {{dir}}/sock\npm = static\npm.max_children = 1\n\
         pm.status_path = /status\npm.status_listen = {{dir}}/status\n{lines}\n"
    ));
    place.serve()
}

/// One worker is used up and cannot leave; the others can.
fn beside_a_long_request() {
    let place = Place::new();
    place.write("long.php", "<?php echo getmypid(), ' '; flush(); while (!file_exists(__DIR__ . '/go')) { usleep(2000); clearstatcache(); }");
    place.configure(
        "[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 3\nworker.recycle_age = 700ms\n",
    );
    let master = place.serve_with(3);
    // All are used up before there can be anybody in their place.
    let stopped = Stopped::zygote(&master);
    thread::sleep(Duration::from_millis(1000));
    let mut long = master.connect("sock");
    master.ask(&mut long, "/long.php", 0);
    let begun = long.next_record().expect("it has begun");
    let text = String::from_utf8_lossy(&begun.content).into_owned();
    let busy: i32 = text.split_whitespace().last().unwrap().parse().unwrap();
    drop(stopped);
    for round in 1..=3 {
        let others: Vec<i32> = master.workers("www").into_iter().filter(|pid| *pid != busy).collect();
        wait_for(&format!("all others of turn {round} to leave"), || {
            let now = master.workers("www");
            others.iter().all(|pid| !now.contains(pid))
        });
    }
    assert!(master.workers("www").contains(&busy));
    master.place.write("go", "");
    assert!(body(&long.reply(1)).is_empty());
}

/// The zygote of a pool, stopped: nothing can be forked.
struct Stopped(Pid);

impl Stopped {
    fn zygote(master: &Master) -> Self {
        let zygote = Pid::from_raw(master.zygote("www"));
        kill(zygote, Signal::SIGSTOP).unwrap();
        Self(zygote)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// Of a script that reads no body not even the record that ends it has been read when its worker leaves.
fn kept_connection() {
    let master = serve("pm.max_requests = 3");
    let mut kept = master.connect("sock");
    let pids: std::collections::BTreeSet<String> = (0..30).map(|_| master.ask_kept(&mut kept, "/pid.php")).collect();
    assert!(pids.len() >= 10, "{pids:?}");
}

/// The last record of a body, which is empty, or a part that no script wants may be in the socket still, or come later.
fn kept_connection_with_a_body() {
    const LENGTH: usize = 300_000;
    let master = serve("pm.max_requests = 1\nlinger_timeout = 60s");
    master
        .place
        .write("length.php", "<?php echo strlen(file_get_contents('php://input'));");
    let all = stream(STDIN, 1, &[b'x'; LENGTH], 50_000);
    let mut kept = master.connect("sock");
    for (script, answer) in [("/length.php", Some(LENGTH.to_string())), ("/pid.php", None)] {
        for late in [0, 8, 20_000] {
            let (now, later) = all.split_at(all.len() - late);
            // A script that reads all of a body waits for all of it.
            if late > 8 && answer.is_some() {
                continue;
            }
            let request = put(&master, script, &LENGTH.to_string(), KEEP_CONN);
            assert!(kept.send(&[&request, now].concat()));
            let answered = body(&kept.reply(1));
            assert!(answer.as_ref().is_none_or(|answer| *answer == answered), "{answered}");
            assert!(kept.send(later));
            assert_ne!(
                master.ask_kept(&mut kept, "/pid.php"),
                answered,
                "{script}, {late} bytes later"
            );
        }
    }
}

/// Each request ends its worker, and none is overtaken by one that came later.
fn in_line() {
    let master = serve("pm.max_requests = 1");
    master.place.write("time.php", "<?php echo hrtime(true);");
    let mut waiting: Vec<_> = (0..40)
        .map(|_| {
            let mut connection = master.connect("sock");
            master.ask(&mut connection, "/time.php", 0);
            connection
        })
        .collect();
    let answers = waiting.iter_mut().map(|connection| body(&connection.reply(1)));
    let times: Vec<u64> = answers.map(|time| time.parse().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
}

fn replacement_is_ready() {
    let master = serve("pm.max_requests = 5");
    wait_for("a worker and a spare", || master.workers("www").len() == 2);
    let stopped = Stopped::zygote(&master);
    let pids: Vec<String> = (0..8).map(|_| master.get("/pid.php")).collect();
    assert_eq!(pids[0], pids[4]);
    assert_ne!(pids[4], pids[5], "a worker served more than pm.max_requests");
    assert_eq!(pids[5], pids[7]);
    drop(stopped);
    for _ in 0..30 {
        master.get("/pid.php");
    }
    master.said_often("exited with code 0 after", 5);
    assert_eq!(master.count("WARNING"), 0, "{:?}", master.log());
}

fn a_spare_is_not_shown() {
    let master = serve("pm.max_requests = 5");
    wait_for("a worker and a spare", || master.workers("www").len() == 2);
    master.get("/pid.php");
    let page = master.get_on("status", "/status?full");
    assert!(page.contains("total processes:      1\n"), "{page}");
    assert_eq!(page.matches("pid:").count(), 1, "{page}");
}

fn by_age() {
    let master = serve("worker.recycle_age = 700ms");
    let first = master.get("/pid.php");
    wait_for("another worker", || master.get("/pid.php") != first);
    master.said(&format!("child {first} exited with code 0 after"));
    // Nobody needs to ask for anything.
    master.said_often("exited with code 0 after", 3);
    assert_eq!(master.count("WARNING"), 0, "{:?}", master.log());
}

fn by_memory() {
    let master = serve("worker.recycle_memory = 100K");
    let first = master.get("/pid.php");
    wait_for("another worker", || master.get("/pid.php") != first);
    master.said(&format!("child {first} exited with code 0 after"));
    assert_eq!(master.count("WARNING"), 0, "{:?}", master.log());
}

fn without_room() {
    let place = Place::new();
    place.write("pid.php", "<?php echo getmypid();");
    place.configure(
        "process.max = 1\n[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\n\
         worker.recycle_age = 700ms\n",
    );
    let master = place.serve();
    let first = master.get("/pid.php");
    wait_for("another worker", || master.get("/pid.php") != first);
    assert!(master.workers("www").len() <= 1);
}

fn spares_leave() {
    let mut master = serve("pm.max_requests = 5");
    wait_for("a worker and a spare", || master.workers("www").len() == 2);
    let before = master.workers("www");
    master.signal(Signal::SIGUSR2);
    wait_for("a new worker and a new spare", || {
        let now = master.workers("www");
        now.len() == 2 && now.iter().all(|pid| !before.contains(pid))
    });
    master.signal(Signal::SIGTERM);
    assert!(master.ended().success());
    assert_eq!(master.count("SIGKILL"), 0, "{:?}", master.log());
}
