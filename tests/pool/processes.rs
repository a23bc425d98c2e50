//! Workers, zygotes and the master die.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;

use crate::harness::{Place, body, exists, sleeps, wait_for};
use crate::support::Case;
use crate::support::fcgi::Connection;
use crate::support::process::{is_asleep, lives};

pub const CASES: &[Case] = &[
    (
        "processes::a_worker_that_does_not_come_to_its_end_is_ended",
        endless_end,
    ),
    (
        "processes::a_kept_connection_outlives_scripts_that_let_go_of_it",
        let_go_of,
    ),
    (
        "processes::a_connection_that_was_let_go_of_has_all_of_its_time",
        has_all_of_its_time_when_let_go_of,
    ),
    ("processes::the_status_of_many_busy_workers_is_whole", full_status),
    (
        "processes::a_dead_worker_is_replaced_and_its_request_named",
        a_dead_worker_is_replaced,
    ),
    (
        "processes::a_dead_zygote_is_replaced_and_no_request_lost",
        a_dead_zygote_is_replaced,
    ),
    (
        "processes::zygotes_that_fall_at_once_follow_one_another_ever_more_slowly",
        zygotes_that_fall_at_once,
    ),
    ("processes::a_stopped_zygote_blocks_nobody", a_stopped_zygote),
    ("processes::titles_are_those_of_php_fpm", titles),
    ("processes::nobody_survives_the_master", nobody_survives_the_master),
    (
        "processes::a_start_up_without_end_ends_with_the_master",
        a_start_up_without_end,
    ),
    ("processes::strangers_are_collected", strangers_are_collected),
    (
        "processes::many_strangers_do_not_keep_the_master_from_all_else",
        many_strangers,
    ),
    (
        "processes::crashes_start_a_new_generation",
        crashes_start_a_new_generation,
    ),
    (
        "processes::a_worker_killed_in_a_request_makes_its_generation_suspect",
        killed_in_a_request,
    ),
    (
        "processes::requests_do_not_wake_the_master",
        requests_do_not_wake_the_master,
    ),
    (
        "processes::who_opens_many_before_it_writes_does_not_wake_the_master",
        writes_late,
    ),
    ("processes::idle_kept_connections_hold_no_worker", idle_kept_connections),
    ("processes::a_zygote_may_take_long_for_many_workers", slow_births),
    (
        "processes::a_zygote_gets_its_orders_when_descriptors_may_be_passed_on_again",
        too_many_under_way,
    ),
    (
        "processes::a_zygote_that_makes_no_worker_any_more_is_replaced",
        no_births,
    ),
    ("processes::who_leaves_hands_over_when_it_can", waits_to_hand_over),
    (
        "processes::a_connection_that_cannot_be_handed_over_stays",
        cannot_be_handed_over,
    ),
];

fn place(workers: u32, global: &str, pool: &str) -> Place {
    let place = Place::new();
    place.write("pid.php", "<?php echo getmypid();");
    place.write(
        "sleep.php",
        "<?php usleep((int) ($_GET['ms'] * 1000)); echo getmypid();",
    );
    place.write(
        "crash.php",
        "<?php posix_kill(getmypid(), (int) $_GET['signal']); sleep(5);",
    );
    place.configure(&format!(
        "{global}\n[www]\n{{user}}\nlisten = {{dir}}/sock\npm = static\npm.max_children = {workers}\n{pool}\n"
    ));
    place
}

fn crash(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

fn a_dead_worker_is_replaced() {
    let master = place(1, "", "").serve();
    let first: i32 = master.get("/pid.php").parse().unwrap();
    let mut connection = master.connect("sock");
    master.ask(&mut connection, "/sleep.php?ms=20000", 0);
    // The request is seen as running before the worker dies: it is in a sleep of PHP's.
    wait_for("the worker has the request", || {
        std::fs::read_to_string(format!("/proc/{first}/syscall"))
            .is_ok_and(|call| ["230 ", "35 ", "115 "].iter().any(|sleep| call.starts_with(sleep)))
    });
    crash(first, Signal::SIGSEGV);
    assert!(connection.reply(1).end.is_none());
    let line = master.said(&format!("[pool www] child {first} exited on signal 11 (SIGSEGV"));
    assert!(line.contains("WARNING:") && line.contains("after "), "{line}");
    assert!(
        line.ends_with(" seconds from start"),
        "php-fpm's line goes no further: {line}"
    );
    let line = master.said(&format!("WARNING: [pool www] child {first} was at script '"));
    assert!(
        line.ends_with("sleep.php' (request: \"GET /sleep.php?ms=20000\")"),
        "{line}"
    );
    let second: i32 = master.get("/pid.php").parse().unwrap();
    assert_ne!(first, second);
    master.said(&format!("NOTICE: [pool www] child {second} started"));
}

fn a_dead_zygote_is_replaced() {
    let master = place(2, "", "").serve_with(2);
    let zygote = master.zygote("www");
    let mut connection = master.connect("sock");
    master.ask(&mut connection, "/sleep.php?ms=700", 0);
    crash(zygote, Signal::SIGKILL);
    master.said(&format!(
        "zygote {zygote} exited on signal 9 (SIGKILL); a new generation takes over"
    ));
    assert!(connection.reply(1).end.is_some(), "the request of a worker was cut");
    wait_for("a new zygote", || {
        master.below("zygote www").iter().any(|pid| *pid != zygote)
    });
    wait_for("two workers of the new one", || master.workers("www").len() == 2);
    master.get("/pid.php");
}

/// Being ready is not having worked: else such a pool would do nothing but start PHP.
fn zygotes_that_fall_at_once() {
    let master = place(1, "log_level = debug", "").serve();
    let mut begin = None;
    for fall in 1..=6 {
        let line = master.said_often(" is ready, PHP ", fall);
        let zygote = line.split("zygote ").nth(1).and_then(|rest| rest.split(' ').next());
        begin.get_or_insert_with(Instant::now);
        crash(zygote.unwrap().parse().unwrap(), Signal::SIGKILL);
    }
    master.said_often(" is ready, PHP ", 7);
    // A half of 100, 200, 400, 800 and 1,600 ms at the least; or one of them has lasted for a second.
    let elapsed = begin.expect("there were some").elapsed();
    assert!(elapsed >= Duration::from_secs(1), "{elapsed:?}");
    master.get("/pid.php");
}

fn a_stopped_zygote() {
    let mut master = place(2, "", "stop_timeout = 1").serve_with(2);
    crash(master.zygote("www"), Signal::SIGSTOP);
    master.get("/pid.php");
    master.signal(Signal::SIGTERM);
    assert_eq!(master.ended().code(), Some(0));
}

fn nobody_survives_the_master() {
    let mut master = place(3, "", "stop_timeout = 1").serve_with(3);
    let all: Vec<i32> = master
        .workers("www")
        .into_iter()
        .chain([master.zygote("www")])
        .collect();
    assert_eq!(all.len(), 4);
    master.signal(Signal::SIGKILL);
    master.ended();
    wait_for("everybody leaves", || all.iter().all(|pid| !lives(*pid)));
}

fn a_start_up_without_end() {
    let place = place(1, "", "php_admin_value[opcache.preload] = {dir}/preload.php");
    place.write("preload.php", "<?php touch(__DIR__ . '/begun'); while (true) sleep(1);");
    let mut master = place.start(&["-d", "zend_extension=opcache"]);
    wait_for("PHP starts up", || exists(&master.place.path("begun")));
    let zygote = master.zygote("www");
    master.signal(Signal::SIGKILL);
    master.ended();
    wait_for("its zygote ends too", || !lives(zygote));
}

fn strangers_are_collected() {
    let place = place(1, "log_level = debug", "");
    place.write(
        "start.php",
        "<?php exec('(sleep 0.1 & echo $!) 2>/dev/null', $out); echo $out[0];",
    );
    let master = place.serve();
    let stranger: i32 = master.get("/start.php").parse().unwrap();
    // Its parent, the shell, is gone; the worker too after this.
    master.said(&format!("unknown child ({stranger}) exited with code 0"));
}

fn many_strangers() {
    const MANY: usize = 640;
    let place = place(1, "log_level = debug", "");
    place.write(
        "start.php",
        &format!("<?php exec('for i in $(seq {MANY}); do (true & exec true); done'); echo 'done';"),
    );
    let master = place.serve_with(1);
    // What it finds when it wakes up: all of them have ended, and somebody wants something else.
    master.signal(Signal::SIGSTOP);
    assert_eq!(master.get("/start.php"), "done");
    wait_for("the ends of all", || ended_children(master.pid()) == MANY);
    master.signal(Signal::SIGUSR1);
    master.signal(Signal::SIGCONT);
    master.said("error log file re-opened");
    let log = master.log();
    let reopened = log.iter().position(|line| line.contains("error log file re-opened"));
    let before = &log[..reopened.unwrap()];
    let collected = before.iter().filter(|line| line.contains("unknown child")).count();
    assert!(collected <= MANY / 4, "{collected} were collected first");
    wait_for("the last of them", || ended_children(master.pid()) == 0);
}

fn too_many_under_way() {
    let place = Place::new();
    place.write("hello.php", "<?php echo 'hello';");
    place.configure("rlimit_files = 1024\n[www]\n{user}\nlisten = {dir}/sock\npm = ondemand\npm.max_children = 2\n");
    let master = place.start_with_control();
    master.said("ready to handle connections");
    let zygote = master.zygote("www");
    // The same user as the master, and more than that may have.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let fds = [ours.as_raw_fd(); 200];
    for _ in 0..10 {
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(
            ours.as_raw_fd(),
            &[IoSlice::new(b"x")],
            &rights,
            MsgFlags::empty(),
            None,
        )
        .unwrap();
    }
    let mut connection = master.connect("sock");
    master.ask(&mut connection, "/hello.php", 0);
    // One is ordered; when more is answered, the order has been tried.
    wait_for("the order", || master.status("www").contains(" 1 idle, "));
    master.status("www");
    drop((ours, theirs));
    assert_eq!(body(&connection.reply(1)), "hello");
    assert_eq!(master.zygote("www"), zygote, "another had to take its place");
}

/// Children of a process that have ended and wait for it.
fn ended_children(parent: i32) -> usize {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let stats = all.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    stats
        .filter(|stat| {
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with(&format!("Z {parent} ")))
        })
        .count()
}

fn crashes_start_a_new_generation() {
    let place = place(
        3,
        "emergency_restart_threshold = 2\nemergency_restart_interval = 1m\n",
        "",
    );
    let master = place.serve();
    let zygote = master.zygote("www");
    for _ in 0..2 {
        let pid: i32 = master.get("/pid.php").parse().unwrap();
        crash(pid, Signal::SIGSEGV);
        master.said(&format!("child {pid} exited on signal 11"));
    }
    master.said("failed processes threshold (2 in 60 sec) is reached, initiating reload");
    wait_for("another zygote alone", || {
        let zygotes = master.below("zygote www");
        zygotes.len() == 1 && zygotes[0] != zygote
    });
    master.get("/pid.php");
}

fn killed_in_a_request() {
    let place = place(
        2,
        "emergency_restart_threshold = 2\nemergency_restart_interval = 1m\n",
        "",
    );
    place.write(
        "sleep.php",
        "<?php file_put_contents(__DIR__ . '/asleep', getmypid()); sleep(600);",
    );
    let master = place.serve();
    let zygote = master.zygote("www");
    for round in 1..=2 {
        // One that had no request held nothing: not the one that has just answered, which may still tidy up.
        wait_for("two workers", || master.workers("www").len() == 2);
        let last: i32 = master.get("/pid.php").parse().unwrap();
        let idle = master.workers("www").into_iter().find(|pid| *pid != last).unwrap();
        crash(idle, Signal::SIGKILL);
        master.said(&format!("child {idle} exited on signal 9"));
        let mut connection = master.connect("sock");
        master.ask(&mut connection, "/sleep.php", 0);
        let pid = || {
            std::fs::read_to_string(master.place.path("asleep"))
                .ok()?
                .parse::<i32>()
                .ok()
        };
        wait_for("the request", || pid().is_some());
        let pid = pid().unwrap();
        crash(pid, Signal::SIGKILL);
        master.said(&format!("child {pid} exited on signal 9"));
        let line = master.said(&format!("child {pid} was at script"));
        assert!(line.contains("/sleep.php"), "{line}");
        // Others are served all the time.
        assert!(!master.get("/pid.php").is_empty());
        std::fs::remove_file(master.place.path("asleep")).unwrap();
        assert!(round == 2 || master.count("failed processes threshold") == 0);
    }
    master.said("failed processes threshold (2 in 60 sec) is reached, initiating reload");
    wait_for("another zygote alone", || {
        let zygotes = master.below("zygote www");
        zygotes.len() == 1 && zygotes[0] != zygote
    });
    assert!(!master.get("/pid.php").is_empty());
}

fn requests_do_not_wake_the_master() {
    let place = Place::new();
    place.write("pid.php", "<?php echo getmypid();");
    place.configure(
        "[www]\n{user}\nlisten = {dir}/sock\npm = dynamic\npm.max_children = 8\npm.start_servers = 4\n\
         pm.min_spare_servers = 1\npm.max_spare_servers = 4\n",
    );
    let master = place.serve();
    wait_for("four workers", || master.workers("www").len() == 4);
    master.get("/pid.php");
    // What it has to do with the new workers is done a moment after they have come.
    let rests = || {
        let mut seen = (0, Instant::now());
        wait_for("the master to be at rest", || {
            let now = sleeps(master.pid());
            if now != seen.0 {
                seen = (now, Instant::now());
            }
            seen.1.elapsed() > Duration::from_millis(300)
        });
        seen.0
    };
    // On a busy machine it may take a worker for stuck, and looks what is the matter: of five tries one is enough.
    let hardly_wakes = |what: &str, requests: &mut dyn FnMut()| {
        let mut tries = Vec::new();
        while tries.len() < 5 {
            let before = rests();
            requests();
            match sleeps(master.pid()) - before {
                ..=5 => return,
                too_often => tries.push(too_often),
            }
        }
        panic!("{what} woke the master so often in each of five tries: {tries:?}");
    };
    hardly_wakes("1,000 requests", &mut || {
        for _ in 0..1000 {
            master.get("/pid.php");
        }
    });

    // As many kept connections as workers: each goes to a worker that has none, though all of them are idle.
    let workers = master.workers("www");
    let one = |_| {
        wait_for("the workers to be at rest", || {
            workers.iter().all(|pid| is_asleep(*pid))
        });
        let mut connection = master.connect("sock");
        master.ask_kept(&mut connection, "/pid.php");
        connection
    };
    let mut kept: Vec<_> = (0..4).map(one).collect();
    let mut round = || {
        let pids = kept
            .iter_mut()
            .map(|connection| master.ask_kept(connection, "/pid.php"));
        pids.collect::<BTreeSet<_>>()
    };
    assert_eq!(round().len(), 4);
    hardly_wakes("1,000 requests on kept connections", &mut || {
        for _ in 0..250 {
            assert_eq!(round().len(), 4);
        }
    });
}

/// As a client does that makes all of its connections in one turn of its event loop, and writes to them in the next.
fn writes_late() {
    let master = place(2, "", "").serve_with(2);
    let workers = master.workers("www");
    let mut in_a_row = 0;
    // A machine that is busy elsewhere may take longer than the workers wait; and a round may pass without the master by luck.
    wait_for("ten rounds in which hardly a connection crosses the master", || {
        let before = sleeps(master.pid());
        let mut connections: Vec<_> = (0..40).map(|_| master.connect("sock")).collect();
        wait_for("the workers to wait", || workers.iter().all(|pid| is_asleep(*pid)));
        for connection in &mut connections {
            master.ask(connection, "/pid.php", 0);
            body(&connection.reply(1));
        }
        in_a_row = if sleeps(master.pid()) - before <= 3 {
            in_a_row + 1
        } else {
            0
        };
        in_a_row == 10
    });
}

fn idle_kept_connections() {
    let master = place(2, "", "").serve();
    let mut kept: Vec<_> = (0..64).map(|_| master.connect("sock")).collect();
    for connection in &mut kept {
        master.ask_kept(connection, "/pid.php");
    }
    // A newcomer is served although 64 connections are open on two workers.
    let begin = std::time::Instant::now();
    master.get("/pid.php");
    assert!(begin.elapsed() < Duration::from_secs(5));
    for connection in &mut kept {
        assert!(!master.ask_kept(connection, "/pid.php").is_empty());
    }
}

fn titles() {
    let master = place(2, "", "").serve_with(2);
    let title = |pid: i32| {
        let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
    };
    let file = master.place.path("pool.conf");
    assert_eq!(
        title(master.pid()),
        format!("php-fpm: master process ({})", file.display())
    );
    for pid in master.workers("www") {
        assert_eq!(title(pid), "php-fpm: pool www");
    }
    assert_eq!(title(master.zygote("www")), "php-fpm: zygote www");
    // As `ps` and `pgrep` name them without their arguments.
    for pid in [vec![master.pid(), master.zygote("www")], master.workers("www")].concat() {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        assert_eq!(name.trim_end(), "php-fpm");
    }
}

/// It goes to the master while the script works on, and comes back to the same worker.
fn let_go_of() {
    let place = Place::new();
    place.write("plain.php", "<?php echo $_GET['n'];");
    place.write("finish.php", "<?php echo $_GET['n']; fastcgi_finish_request();");
    place.configure("[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\n");
    let master = place.serve_with(1);
    let mut connection = master.connect("sock");
    for n in 0..12 {
        let script = if n % 3 == 1 { "finish" } else { "plain" };
        assert_eq!(
            master.ask_kept(&mut connection, &format!("/{script}.php?n={n}")),
            n.to_string()
        );
    }
}

/// What each of them did last takes more than a message between processes can be.
fn full_status() {
    let place = Place::new();
    place.write(
        "all.php",
        "<?php touch(__DIR__ . '/here-' . getmypid()); while (count(glob(__DIR__ . '/here-*')) < 140) usleep(50000);",
    );
    place.write(
        "count.php",
        "<?php $all = fpm_get_status()['procs']; echo count($all), ' ', strlen(json_encode($all)) > 256 << 10 ? 'long' : 'short';",
    );
    place.configure(
        "[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 140\npm.status_path = /status\n",
    );
    let master = place.serve_with(140);
    master.at_once(140, &format!("/all.php?{}", "q".repeat(2000)));
    assert_eq!(master.get("/count.php"), "140 long");
    let mut connection = master.connect("sock");
    master.ask(&mut connection, "/status?full", 0);
    let page = body(&connection.reply(1));
    assert_eq!(page.matches("\npid:").count(), 140, "{page}");
}

/// Its limit is that of an idle one, however long its script took before.
fn has_all_of_its_time_when_let_go_of() {
    let place = Place::new();
    place.write("plain.php", "<?php echo 'plain';");
    place.write(
        "slow.php",
        "<?php usleep(1100000); echo 'slow'; fastcgi_finish_request();",
    );
    place.configure(
        "[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\nrequest_header_timeout = 1s\n",
    );
    let master = place.serve();
    let mut connection = master.connect("sock");
    for _ in 0..2 {
        assert_eq!(master.ask_kept(&mut connection, "/slow.php"), "slow");
        // The client's time.
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(master.ask_kept(&mut connection, "/plain.php"), "plain");
    }
}

/// As on a machine that has much else to do. One that makes none at all for ten seconds is replaced.
fn slow_births() {
    let place = Place::new();
    place.write("pid.php", "<?php echo getmypid();");
    let slow = place.library(
        "slow",
        "#include <pthread.h>\n#include <unistd.h>\nstatic void slow(void) { usleep(700000); }\n\
         __attribute__((constructor)) static void load(void) { pthread_atfork(slow, 0, 0); }",
    );
    // It is no extension, of which PHP warns, but stays.
    place.write("www.ini", &format!("extension = {}\n", slow.display()));
    place.configure("[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 20\nphp.ini = {dir}/www.ini\n");
    let master = place.serve();
    let zygote = master.zygote("www");
    wait_for("all workers", || master.workers("www").len() == 20);
    assert_eq!(master.zygote("www"), zygote);
    assert_eq!(master.count("does not answer"), 0, "{:?}", master.log());
}

/// What does not return from its end in a worker that has left.
fn endless_end() {
    let place = Place::new();
    place.write("pid.php", "<?php echo getmypid();");
    let endless = place.library(
        "endless",
        "#include <unistd.h>\n__attribute__((destructor)) static void end(void) { for (;;) pause(); }",
    );
    place.write("www.ini", &format!("extension = {}\n", endless.display()));
    place.configure(
        "[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\npm.max_requests = 1\nphp.ini = {dir}/www.ini\n",
    );
    let mut master = place.serve();
    let worker = master.get("/pid.php");
    master.said(&format!("child {worker} exited on signal 14 (SIGALRM)"));
    assert!(!master.get("/pid.php").is_empty());
    master.signal(Signal::SIGKILL);
    master.ended();
}

fn no_births() {
    let master = place(2, "", "").serve_with(2);
    let zygote = master.zygote("www");
    crash(zygote, Signal::SIGSTOP);
    crash(master.workers("www")[0], Signal::SIGKILL);
    master.said(&format!(
        "WARNING: [pool www] zygote {zygote} does not answer; a new generation takes over"
    ));
    wait_for("another zygote's workers", || {
        !lives(zygote) && master.workers("www").len() == 2
    });
    assert_eq!(master.count("does not answer"), 1, "{:?}", master.log());
}

/// Held by a test that fills what the kernel lets a user have under way: there is one such measure on the machine.
pub fn under_way() -> File {
    let lock = File::open(std::env::temp_dir()).expect("a folder that all know");
    lock.lock().expect("the lock");
    lock
}

/// Another pool of the same user has too many descriptors under way between its processes, and keeps them there for a while. A worker
/// that leaves meanwhile tries again.
fn waits_to_hand_over() {
    let _alone = under_way();
    let place = Place::new();
    place.write("pid.php", "<?php echo getmypid();");
    place.write(
        "hold.php",
        "<?php socket_create_pair(AF_UNIX, SOCK_DGRAM, 0, $pair);
         for ($n = 0; $n < 150; $n++) {
             $rights = ['level' => SOL_SOCKET, 'type' => SCM_RIGHTS, 'data' => [$pair[0]]];
             if (!socket_sendmsg($pair[$n % 2], ['iov' => ['x'], 'control' => [$rights]], MSG_DONTWAIT)) break;
         }
         echo $n; fastcgi_finish_request();
         while (!file_exists(__DIR__ . '/enough')) { usleep(1000); clearstatcache(); }",
    );
    place.configure(
        "[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\nrlimit_files = 64\n\
         [other]\n{user}\nlisten = {dir}/other\npm = static\npm.max_children = 1\n",
    );
    let master = place.start(&["-d", "extension=sockets"]);
    wait_for("both pools", || {
        master.workers("www").len() == 1 && master.workers("other").len() == 1
    });
    let mut connection = master.connect("sock");
    let before = master.ask_kept(&mut connection, "/pid.php");
    let held = master.get_on("other", "/hold.php");
    assert!(held.parse::<u32>().unwrap() > 64, "only {held} are under way");
    master.signal(Signal::SIGUSR2);
    // It has a try, and another after a pause.
    wait_for("the worker's pause", || {
        let call = std::fs::read_to_string(format!("/proc/{before}/wchan"));
        call.is_ok_and(|call| call.contains("nanosleep"))
    });
    master.place.write("enough", "");
    assert_ne!(master.ask_kept(&mut connection, "/pid.php"), before);
    wait_for("its end", || !lives(before.parse().unwrap()));
}

/// The kernel lets a user have so many descriptors under way between processes. More kept connections than that stay where they are.
fn cannot_be_handed_over() {
    let _alone = under_way();
    // More than may be under way; and more than the way to the master has room for.
    for (files, connections) in [(64, 64 + 25), (4096, 2500)] {
        let place = Place::new();
        place.write("hello.php", "<?php echo 'hello';");
        place.write("finish.php", "<?php echo 'bye'; fastcgi_finish_request();");
        place.configure(&format!(
            "[www]\n{{user}}\nlisten = {{dir}}/sock\npm = static\npm.max_children = 1\nrlimit_files = {files}\n"
        ));
        let master = place.serve();
        assert_eq!(master.get("/hello.php"), "hello");
        // It takes none in the meantime.
        master.signal(Signal::SIGSTOP);
        let hello = |connection: &mut Connection| assert_eq!(master.ask_kept(connection, "/hello.php"), "hello");
        let one = |_| {
            let mut connection = master.connect("sock");
            hello(&mut connection);
            connection
        };
        let mut kept: Vec<Connection> = (0..connections).map(one).collect();
        // Nor does it end one that its script has let go of.
        let mut last = master.connect("sock");
        assert_eq!(master.ask_kept(&mut last, "/finish.php"), "bye");
        hello(&mut last);
        kept.push(last);
        master.signal(Signal::SIGCONT);
        kept.iter_mut().for_each(hello);
    }
}
