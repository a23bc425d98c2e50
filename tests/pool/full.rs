//! A pool whose workers are all busy: its own socket still answers status and ping, and the rest waits in order.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{Master, Place, body, wait_for};
use crate::support::Case;
use crate::support::fcgi::{Connection, KEEP_CONN, PARAMS, RESPONDER, begin, pair};

pub const CASES: &[Case] = &[
    ("full::status_and_ping_on_the_pools_own_socket", status_and_ping),
    ("full::who_came_first_is_served_first", in_order),
    ("full::nobody_overtakes_who_waits_again_and_again", again_and_again),
    ("full::kept_connections_lock_nobody_out", || locked_out("")),
    ("full::kept_connections_lock_nobody_out_of_a_bounded_queue", || {
        locked_out("queue.max = 100")
    }),
    ("full::kept_connections_lock_nobody_out_where_workers_end", || {
        locked_out("pm.max_requests = 1")
    }),
    ("full::who_says_everything_at_once_has_a_turn", everything_at_once),
    ("full::one_client_after_another_is_no_line", one_after_another),
    ("full::queue_max_refuses_who_is_too_many", queue_max),
    ("full::queue_timeout_refuses_who_waits_too_long", queue_timeout),
    ("full::a_client_that_leaves_costs_nothing", a_client_that_leaves),
    ("full::half_a_request_costs_its_limit", half_a_request),
    ("full::a_flood_of_silent_connections_is_bounded", a_flood),
    ("full::a_stop_serves_who_waits", a_stop_serves),
    ("full::a_killed_master_loses_nobody_who_waits", a_killed_master),
    ("full::an_upgrade_in_place_loses_nobody_who_waits", an_upgrade),
    ("full::a_reload_serves_who_waits", a_reload_serves),
    (
        "full::a_reload_to_another_socket_serves_who_comes_by_the_old_one",
        another_socket,
    ),
];

/// A pool of one worker. `wait.php` runs until there is a file `go`; each script writes its number down.
fn serve(lines: &str) -> Master {
    let master = place(Place::new(), lines).serve();
    wait_for("the worker", || status(&master).contains("idle processes:       1"));
    master
}

fn place(place: Place, lines: &str) -> Place {
    place.write(
        "wait.php",
        "<?php while (!file_exists(__DIR__ . '/go')) { usleep(2000); clearstatcache(); }\n\
         file_put_contents(__DIR__ . '/order', $_GET['n'], FILE_APPEND); echo $_GET['n'];",
    );
    place.configure(&format!(
        "[www]\n{{user}}\nlisten = {{dir}}/sock\npm = static\npm.max_children = 1\npm.status_path = /status\n\
         ping.path = /ping\npm.status_listen = {{dir}}/status\n{lines}\n"
    ));
    // The scripts write it.
    place.write("order", "");
    fs::set_permissions(place.path("order"), fs::Permissions::from_mode(0o666)).unwrap();
    place
}

fn status(master: &Master) -> String {
    master.get_on("status", "/status")
}

/// A request that the pool's only worker has.
fn busy(master: &Master) -> Connection {
    let mut first = master.connect("sock");
    master.ask(&mut first, "/wait.php?n=0", 0);
    wait_for("the worker to be busy", || {
        status(master).contains("active processes:     1")
    });
    first
}

/// Further requests, each of which is known to wait before the next one comes.
fn queue(master: &Master, numbers: std::ops::RangeInclusive<u32>) -> Vec<Connection> {
    let ask = |number| {
        let mut connection = master.connect("sock");
        master.ask(&mut connection, &format!("/wait.php?n={number}"), 0);
        waits(master, number);
        connection
    };
    let last = *numbers.end();
    let all = numbers.map(ask).collect();
    // Who comes behind them is heard by the master: it has taken them, too.
    assert_eq!(master.get("/ping"), "pong");
    waits(master, last);
    all
}

/// Waits until so many are counted as waiting.
fn waits(master: &Master, count: u32) {
    let line = format!("\nlisten queue:         {count}\n");
    wait_for(&format!("{count} to wait"), || status(master).contains(&line));
}

fn go(master: &Master) {
    master.place.write("go", "");
}

/// Lets the worker go on: it serves the request that it has, and then those that wait, as they came.
fn served_in_order(master: &Master, first: Connection, waiting: Vec<Connection>) {
    go(master);
    for (number, mut connection) in [first].into_iter().chain(waiting).enumerate() {
        assert_eq!(body(&connection.reply(1)), number.to_string());
    }
}

fn order(master: &Master) -> String {
    fs::read_to_string(master.place.path("order")).unwrap_or_default()
}

/// Eight clients on two workers, of which each asks again as soon as it is answered: now and then a worker is free for a moment, and
/// those in line still come before whoever has just come.
fn again_and_again() {
    let place = Place::new();
    place.write("nap.php", "<?php echo hrtime(true); usleep(30000);");
    place.configure("[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 2\n");
    let master = place.serve();
    // How many that came later one had to let go first, at most.
    let overtaken = || {
        // When each request came to the socket, and when its script began.
        let came = Mutex::new(0u32);
        let began = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let (number, mut connection) = {
                            let mut came = came.lock().unwrap();
                            *came += 1;
                            let mut connection = master.connect("sock");
                            master.ask(&mut connection, "/nap.php", 0);
                            (*came, connection)
                        };
                        let time: u64 = body(&connection.reply(1)).parse().unwrap();
                        began.lock().unwrap().push((time, number));
                    }
                });
            }
        });
        let mut began = began.into_inner().unwrap();
        began.sort_unstable();
        let numbers = began.iter().map(|(_, number)| *number).collect::<Vec<_>>();
        let earlier = |at: usize| numbers[..at].iter().filter(|earlier| **earlier > numbers[at]).count();
        (0..numbers.len()).map(earlier).max().expect("160 of them")
    };
    // Two workers may begin in either order, and one that comes may meet a worker on its way to the line. On a busy machine
    // more may, as long as the master has no turn.
    let mut tries = Vec::new();
    while tries.len() < 5 {
        match overtaken() {
            ..=3 => return,
            too_many => tries.push(too_many),
        }
    }
    panic!("one was overtaken by so many in each of five tries: {tries:?}");
}

/// More connections than there are workers are kept and always have something to say, and each request is too short for the pool to stand
/// still; whoever comes is served all the same, and is told how the pool is.
fn locked_out(lines: &str) {
    const KEPT: usize = 8;
    let place = Place::new();
    place.write("nap.php", "<?php usleep(10000); echo 'slept';");
    place.configure(&format!(
        "[www]\n{{user}}\nlisten = {{dir}}/sock\npm = static\npm.max_children = 2\nping.path = /ping\n{lines}\n"
    ));
    let master = place.serve();
    let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..KEPT {
            scope.spawn(|| {
                let mut connection = master.connect("sock");
                while !over.load(Relaxed) {
                    master.ask(&mut connection, "/nap.php", KEEP_CONN);
                    assert_eq!(body(&connection.reply(1)), "slept");
                    served.fetch_add(1, Relaxed);
                }
            });
        }
        let end = End(&over);
        wait_for("the kept ones", || served.load(Relaxed) > 10 * KEPT);
        for uri in ["/nap.php", "/ping"].repeat(5) {
            let before = served.load(Relaxed);
            let answer = master.get(uri);
            assert!(["slept", "pong"].contains(&answer.as_str()), "{answer}");
            // As many as were there, and some while the pool finds out.
            let earlier = served.load(Relaxed) - before;
            assert!(earlier < 40 * KEPT, "{earlier} others are served before {uri}");
        }
        drop(end);
    });
}

/// One who says everything at once has the worker for a turn, and no longer.
fn everything_at_once() {
    const REQUESTS: usize = 200;
    let place = Place::new();
    place.write("nap.php", "<?php usleep(10000); echo hrtime(true);");
    place.configure("[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\n");
    let master = place.serve_with(1);
    let (mut greedy, mut other) = (master.connect("sock"), master.connect("sock"));
    for _ in 0..REQUESTS {
        master.ask(&mut greedy, "/nap.php", KEEP_CONN);
    }
    let time = |connection: &mut Connection| body(&connection.reply(1)).parse::<u64>().unwrap();
    let first = time(&mut greedy);
    master.ask(&mut other, "/nap.php", 0);
    let others = time(&mut other);
    let earlier = (1..REQUESTS)
        .map(|_| time(&mut greedy))
        .filter(|time| (first..others).contains(time))
        .count();
    assert!(
        earlier < REQUESTS / 2,
        "{earlier} of one connection's are served before another's"
    );
}

/// Ends the others, also where their observer fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn status_and_ping() {
    for pm in [
        "static",
        "ondemand",
        "dynamic\npm.start_servers = 1\npm.min_spare_servers = 1\npm.max_spare_servers = 1",
    ] {
        let place = Place::new();
        place.write("sleep.php", "<?php sleep(600);");
        place.configure(&format!(
            "[www]\n{{user}}\nlisten = {{dir}}/sock\npm = {pm}\npm.max_children = 1\npm.status_path = /status\nping.path = /ping\n"
        ));
        let master = place.serve();
        let mut first = master.connect("sock");
        master.ask(&mut first, "/sleep.php", 0);
        let begin = Instant::now();
        wait_for("the status of a full pool", || {
            master.get("/status").contains("active processes:     1\n")
        });
        assert_eq!(master.get("/ping"), "pong");
        // On a kept connection too, again and again.
        let mut kept = master.connect("sock");
        for _ in 0..3 {
            let page = master.ask_kept(&mut kept, "/status?full");
            assert!(
                page.contains("idle processes:       0\n") && page.contains("/sleep.php"),
                "{page}"
            );
            assert_eq!(master.ask_kept(&mut kept, "/ping"), "pong");
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "pm = {pm}");
    }
}

fn in_order() {
    let master = serve("");
    let first = busy(&master);
    // Some more than the worker would look for in one go.
    let waiting = queue(&master, 1..=9);
    served_in_order(&master, first, waiting);
    assert_eq!(order(&master), "0123456789");
    waits(&master, 0);
}

fn refused(connection: &mut Connection) {
    const OVERLOADED: u8 = 2;
    let reply = connection.reply(1);
    assert_eq!(
        (reply.status(), reply.header("Retry-After")),
        (503, vec!["1".to_owned()])
    );
    assert_eq!(reply.end.unwrap().protocol_status, OVERLOADED);
}

/// The next is there while the only worker has just answered the one before. Where the machine takes the worker's core from it just
/// then, somebody really waits: so it is enough that it did not in one pool of ten.
fn one_after_another() {
    let without_line = || {
        let master = serve("");
        (0..5000).all(|_| {
            let mut connection = master.connect("sock");
            master.ask(&mut connection, "/status", 0);
            body(&connection.reply(1)).contains("max listen queue:     0\n")
        })
    };
    assert!((0..10).any(|_| without_line()), "in each of ten pools somebody waited");
}

fn queue_max() {
    let master = serve("queue.max = 2");
    let _first = busy(&master);
    let mut waiting = queue(&master, 1..=2);
    let mut third = master.connect("sock");
    master.ask(&mut third, "/wait.php?n=3", 0);
    refused(&mut third);
    assert_eq!(master.get("/ping"), "pong", "status and ping need no place");
    go(&master);
    for connection in &mut waiting {
        assert!(connection.reply(1).end.is_some());
    }
    assert_eq!(order(&master), "012");
}

fn queue_timeout() {
    let master = serve("queue.timeout = 300ms");
    let mut first = busy(&master);
    let begin = Instant::now();
    let mut second = master.connect("sock");
    master.ask(&mut second, "/wait.php?n=1", 0);
    refused(&mut second);
    assert!(begin.elapsed() >= Duration::from_millis(300));
    go(&master);
    assert_eq!(body(&first.reply(1)), "0");
    assert_eq!(order(&master), "0");
}

fn a_client_that_leaves() {
    let master = serve("");
    let mut first = busy(&master);
    let waiting = queue(&master, 1..=3);
    drop(waiting);
    let mut waiting = queue(&master, 4..=4);
    go(&master);
    assert_eq!(body(&first.reply(1)), "0");
    assert_eq!(body(&waiting[0].reply(1)), "4");
    assert_eq!(order(&master), "04", "nobody is there for the others");
}

fn half_a_request() {
    let master = serve("request_header_timeout = 500ms");
    let _first = busy(&master);
    let half = [
        begin(1, RESPONDER, 0).bytes(),
        crate::support::fcgi::Record::new(PARAMS, 1, pair(b"SCRIPT_NAME", b"/status")).bytes(),
    ]
    .concat();
    let mut silent: Vec<_> = (0..20).map(|_| master.connect("sock")).collect();
    for (index, connection) in silent.iter_mut().enumerate() {
        // One does not say a word.
        if index > 0 {
            assert!(connection.send(&half[..half.len() * index / 20]));
        }
    }
    assert_eq!(master.get("/ping"), "pong");
    let mut waiting = queue(&master, 1..=1);
    for connection in &mut silent {
        connection.end();
    }
    waits(&master, 1);
    go(&master);
    assert_eq!(body(&waiting[0].reply(1)), "1");
}

fn a_flood() {
    /// As many as the master takes at a time.
    const MOST_TAKEN: usize = 4096;
    let master = serve("listen.backlog = 65535\nrequest_header_timeout = 2s");
    let _first = busy(&master);
    let mut silent = Vec::new();
    // As many as the system lets wait, beyond the most that are taken.
    while silent.len() < MOST_TAKEN + 100 {
        let Ok(connection) = UnixStream::connect(master.place.path("sock")) else {
            break;
        };
        silent.push(connection);
    }
    // Those that are silent make room in time.
    assert_eq!(master.get("/ping"), "pong");
    let open = fs::read_dir(format!("/proc/{}/fd", master.pid())).unwrap().count();
    assert!(open < MOST_TAKEN + 200, "{open} descriptors");
    let mut waiting = queue(&master, 1..=1);
    go(&master);
    assert_eq!(body(&waiting[0].reply(1)), "1");
}

fn a_stop_serves() {
    let mut master = serve("");
    let first = busy(&master);
    let waiting = queue(&master, 1..=3);
    master.signal(Signal::SIGTERM);
    served_in_order(&master, first, waiting);
    assert!(master.ended().success());
}

fn a_reload_serves() {
    let master = serve("");
    let first = busy(&master);
    let waiting = queue(&master, 1..=3);
    master.signal(Signal::SIGUSR2);
    // The new generation's worker is free.
    served_in_order(&master, first, waiting);
}

fn another_socket() {
    let lines = "php_admin_value[opcache.preload] = {dir}/preload.php";
    let place = place(Place::new(), lines);
    place.write(
        "preload.php",
        "<?php while (file_exists(__DIR__ . '/slow')) { usleep(2000); clearstatcache(); }",
    );
    let master = place.start(&["-d", "zend_extension=opcache"]);
    master.said("ready to handle connections");
    wait_for("the worker", || status(&master).contains("idle processes:       1"));
    let mut first = busy(&master);
    let mut waiting = queue(&master, 1..=2);
    let zygote = master.zygote("www");

    master.place.write("slow", "");
    let conf = fs::read_to_string(master.place.path("pool.conf")).unwrap();
    master.place.write("pool.conf", &conf.replace("/sock\n", "/another\n"));
    master.signal(Signal::SIGUSR2);
    wait_for("the new zygote", || master.below("zygote www").len() == 2);
    // The old worker is alone, and busy: its socket is still the one that the master attends.
    assert_eq!(master.get("/ping"), "pong");
    waiting.extend(queue(&master, 3..=3));
    fs::remove_file(master.place.path("slow")).unwrap();
    master.said_often("ready to handle connections", 2);
    // The old worker has its request still, and nobody but the master takes who comes to its socket: for the new one.
    for number in 4..=5 {
        let mut connection = master.connect("sock");
        master.ask(&mut connection, &format!("/wait.php?n={number}"), 0);
        waiting.push(connection);
    }
    assert!(
        master.below("zygote www").contains(&zygote),
        "the old generation still runs"
    );
    go(&master);
    assert_eq!(body(&first.reply(1)), "0");
    for (index, connection) in waiting.iter_mut().enumerate() {
        assert_eq!(body(&connection.reply(1)), (index + 1).to_string());
    }
    assert_eq!(master.get_on("another", "/ping"), "pong");
    wait_for("the old generation and its socket to go", || {
        master.below("zygote www").len() == 1 && !master.place.path("sock").exists()
    });
}

fn a_killed_master() {
    let master = serve("");
    let first = busy(&master);
    let waiting = queue(&master, 1..=3);
    master.signal(Signal::SIGKILL);
    served_in_order(&master, first, waiting);
}

fn an_upgrade() {
    let place = place(Place::new().with_own_program(), "");
    let master = place.start_with_control();
    master.said("ready to handle connections");
    let first = busy(&master);
    let mut waiting = queue(&master, 1..=3);
    // One that has not said all, and one that is answered by the master again and again.
    let mut half = master.connect("sock");
    let head = begin(1, RESPONDER, 0).bytes();
    assert!(half.send(&head[..5]));
    let mut kept = master.connect("sock");
    assert_eq!(master.ask_kept(&mut kept, "/ping"), "pong");

    master.place.install();
    let mut reload = Command::new(master.place.path("php-pool"));
    reload.arg("reload").arg("--control").arg(master.place.path("control"));
    let output = reload.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    master.said("has taken over");
    waits(&master, 3);
    assert_eq!(master.ask_kept(&mut kept, "/ping"), "pong");
    assert!(half.send(&head[5..]));
    assert!(half.send(&master.place.rest_of_request("/wait.php?n=4")));
    waits(&master, 4);
    waiting.push(half);
    served_in_order(&master, first, waiting);
    assert_eq!(order(&master), "01234");
}
