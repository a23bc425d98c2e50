//! The process manager, carried out.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{PATIENCE, Place, body, wait_for};
use crate::support::Case;

pub const CASES: &[Case] = &[
    (
        "scaling::a_dynamic_pool_takes_forty_requests_at_once",
        a_dynamic_pool_takes_forty,
    ),
    ("scaling::an_ondemand_pool_wakes_scales_and_sleeps", an_ondemand_pool),
    ("scaling::a_dynamic_pool_shrinks_again", a_dynamic_pool_shrinks),
    ("scaling::max_children_is_a_limit_and_is_said", max_children_is_a_limit),
    ("scaling::process_max_is_for_all_pools", process_max_is_for_all_pools),
    (
        "scaling::process_max_leaves_no_pool_without_a_worker",
        no_pool_without_a_worker,
    ),
    (
        "scaling::more_pools_than_process_max_take_turns",
        more_pools_than_workers,
    ),
    (
        "scaling::a_long_request_keeps_no_other_pool_without_a_worker",
        a_long_request_starves_nobody,
    ),
    (
        "scaling::workers_are_recycled_and_no_request_lost",
        workers_are_recycled,
    ),
    (
        "scaling::status_is_answered_while_every_worker_is_busy",
        status_while_busy,
    ),
];

fn place(pool: &str) -> Place {
    let place = Place::new();
    place.write("pid.php", "<?php echo getmypid();");
    place.write(
        "sleep.php",
        "<?php usleep((int) ($_GET['ms'] * 1000)); echo getmypid();",
    );
    place.configure(&format!("[www]\n{{user}}\nlisten = {{dir}}/sock\n{pool}\n"));
    place
}

/// How many at least ran at a time, of so many that took so long.
fn at_a_time(count: usize, ms: u32, took: Duration) -> f64 {
    count as f64 * f64::from(ms) / 1000.0 / took.as_secs_f64()
}

fn a_dynamic_pool_takes_forty() {
    let master = place(
        "pm = dynamic\npm.max_children = 40\npm.start_servers = 2\npm.min_spare_servers = 1\npm.max_spare_servers = 3",
    )
    .serve();
    // Long enough that the time to make forty workers on a busy machine does not count: php-fpm would need a second for each.
    let took = master.at_once(40, "/sleep.php?ms=3000").0;
    assert!(at_a_time(40, 3000, took) > 16.0, "{took:?}");
}

fn an_ondemand_pool() {
    let master = place("pm = ondemand\npm.max_children = 40\npm.process_idle_timeout = 1s\n").serve();
    assert_eq!(master.workers("www").len(), 0);
    let took = master.at_once(8, "/sleep.php?ms=3000").0;
    assert!(at_a_time(8, 3000, took) > 4.0, "{took:?}");
    wait_for("everybody sleeps", || master.workers("www").is_empty());
    assert!(!master.get("/pid.php").is_empty());
}

fn a_dynamic_pool_shrinks() {
    let master = place(
        "pm = dynamic\npm.max_children = 12\npm.start_servers = 1\npm.min_spare_servers = 1\npm.max_spare_servers = 2",
    )
    .serve();
    let mut connections: Vec<_> = (0..10).map(|_| master.connect("sock")).collect();
    for connection in &mut connections {
        master.ask(connection, "/sleep.php?ms=3000", 0);
    }
    wait_for("ten workers", || master.workers("www").len() >= 10);
    for connection in &mut connections {
        body(&connection.reply(1));
    }
    wait_for("two workers", || master.workers("www").len() == 2);
    assert_eq!(master.count("exited on signal"), 0, "{:?}", master.log());
}

fn max_children_is_a_limit() {
    let master = place(
        "pm = dynamic\npm.max_children = 3\npm.start_servers = 1\npm.min_spare_servers = 1\npm.max_spare_servers = 1",
    )
    .serve();
    let mut connections: Vec<_> = (0..6).map(|_| master.connect("sock")).collect();
    for connection in &mut connections {
        master.ask(connection, "/sleep.php?ms=1500", 0);
    }
    master.said("[pool www] server reached pm.max_children setting (3), consider raising it");
    wait_for("three workers", || master.workers("www").len() == 3);
    for connection in &mut connections {
        body(&connection.reply(1));
    }
    assert_eq!(master.count("server reached pm.max_children"), 1);
}

fn no_pool_without_a_worker() {
    let place = Place::new();
    place.write("nap.php", "<?php usleep(200000); echo 'slept';");
    place.configure(
        "process.max = 2\n[a]\n{user}\nlisten = {dir}/a\npm = dynamic\npm.max_children = 2\npm.start_servers = 1\n\
         pm.min_spare_servers = 1\npm.max_spare_servers = 2\n\
         [b]\n{user}\nlisten = {dir}/b\npm = ondemand\npm.max_children = 2\npm.process_idle_timeout = 1h\n",
    );
    let master = place.serve();
    // The other has none yet, and the one none with nothing to do.
    let (over, end) = (AtomicBool::new(false), Instant::now() + PATIENCE);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Relaxed) && Instant::now() < end {
                    assert_eq!(master.get_on("a", "/nap.php"), "slept");
                }
            });
        }
        wait_for("the one to have all", || master.workers("a").len() == 2);
        let answer = master.get_on("b", "/nap.php");
        over.store(true, Relaxed);
        assert_eq!(answer, "slept");
    });
    // All that there may be are idle spares of the one, then of the other.
    let both = |pool: &str| {
        let mut asked = [0; 2].map(|_| {
            let mut connection = master.connect(pool);
            master.ask(&mut connection, "/nap.php", 0);
            connection
        });
        asked.each_mut().map(|connection| body(&connection.reply(1)))
    };
    for pool in ["a", "b", "a", "b"] {
        assert_eq!(both(pool), ["slept", "slept"]);
    }
}

/// More pools than workers, and at each somebody who waits.
fn more_pools_than_workers() {
    let place = Place::new();
    place.write("nap.php", "<?php usleep(50000); echo 'slept';");
    let pool = |name: &str| {
        format!(
            "[{name}]\n{{user}}\nlisten = {{dir}}/{name}\npm = ondemand\npm.max_children = 2\npm.process_idle_timeout = 1h\n"
        )
    };
    place.configure(&format!("process.max = 2\n{}{}{}", pool("a"), pool("b"), pool("c")));
    let master = place.serve();
    let answers = [const { AtomicU32::new(0) }; 3];
    let end = Instant::now() + PATIENCE;
    let all = |count| answers.iter().all(|answers| answers.load(Relaxed) >= count);
    thread::scope(|scope| {
        let (master, all) = (&master, &all);
        for (name, answers) in ["a", "b", "c"].iter().zip(&answers) {
            for _ in 0..2 {
                scope.spawn(move || {
                    while !all(5) && Instant::now() < end {
                        assert_eq!(master.get_on(name, "/nap.php"), "slept");
                        answers.fetch_add(1, Relaxed);
                    }
                });
            }
        }
    });
    assert!(all(5), "{answers:?}");
}

/// Who has been asked to give its place up and has a long request keeps nobody from asking another one.
fn a_long_request_starves_nobody() {
    let place = Place::new();
    place.write(
        "long.php",
        "<?php while (!file_exists(__DIR__ . '/go')) { usleep(2000); clearstatcache(); } echo 'over';",
    );
    place.write("nap.php", "<?php usleep(1500000); echo 'slept';");
    place.configure(
        "process.max = 2\n[a]\n{user}\nlisten = {dir}/a\npm = static\npm.max_children = 2\n\
         [b]\n{user}\nlisten = {dir}/b\npm = ondemand\npm.max_children = 2\n",
    );
    let master = place.serve();
    wait_for("all workers", || master.workers("a").len() == 2);
    let mut long = master.connect("a");
    master.ask(&mut long, "/long.php", 0);
    let mut short = master.connect("a");
    master.ask(&mut short, "/nap.php", 0);
    assert_eq!(master.get_on("b", "/nap.php"), "slept");
    assert!(long.record_within(Duration::ZERO).is_none(), "it runs on");
    master.place.write("go", "");
    assert_eq!(body(&long.reply(1)), "over");
    assert_eq!(body(&short.reply(1)), "slept");
}

fn process_max_is_for_all_pools() {
    let place = Place::new();
    place.write("pid.php", "<?php echo getmypid();");
    place.configure(
        "process.max = 3\n[a]\n{user}\nlisten = {dir}/a\npm = static\npm.max_children = 2\n\
         [b]\n{user}\nlisten = {dir}/b\npm = static\npm.max_children = 2\n",
    );
    let master = place.serve();
    master.said("The maximum number of processes has been reached");
    wait_for("three workers", || {
        master.workers("a").len() + master.workers("b").len() == 3
    });
    assert!(!master.get_on("a", "/pid.php").is_empty());
    assert!(!master.get_on("b", "/pid.php").is_empty());
}

fn workers_are_recycled() {
    let master = place("pm = static\npm.max_children = 2\npm.max_requests = 5").serve();
    let mut pids: Vec<String> = (0..60).map(|_| master.get("/pid.php")).collect();
    pids.sort_unstable();
    let most = pids.chunk_by(|a, b| a == b).map(<[String]>::len).max().unwrap();
    assert_eq!(most, 5);
    master.said_often("exited with code 0 after", 10);
}

fn status_while_busy() {
    let master = place("pm = static\npm.max_children = 1\npm.status_path = /status\npm.status_listen = {dir}/status\nping.path = /ping").serve();
    let mut connection = master.connect("sock");
    master.ask(&mut connection, "/sleep.php?ms=60000", 0);
    wait_for("the request is seen", || {
        master.get_on("status", "/status").contains("active processes:     1")
    });
    assert_eq!(master.get_on("status", "/ping"), "pong");
    assert_eq!(
        master.get_on("status", "/pid.php"),
        "File not found.\n",
        "a script was run on the status socket"
    );
}
