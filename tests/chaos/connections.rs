//! A connection that has nothing to say stands in nobody's way.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::load::{Request, answer, ask};
use crate::reloads::Stage;
use crate::schedule::{self, Role};
use crate::support::Case;
use crate::support::fcgi::{self, Address, Connection, PARAMS, RESPONDER, Record, begin, pair};
use crate::support::server::{Listen, Setup};
use crate::support::web::{Front, Site, Web};

pub const CASES: &[Case] = &[
    ("connections::idle_kept_ones_pin_no_worker", idle_kept),
    ("connections::more_kept_ones_than_workers_behind_nginx", behind_nginx),
    (
        "connections::a_wake_up_that_a_leaving_worker_got_is_passed_on",
        wake_up_passed_on,
    ),
    ("connections::silent_peers_hold_no_worker", silent),
    ("connections::a_body_that_stops_costs_its_limit", body_stops),
    ("connections::a_reader_that_stops_costs_its_limit", reader_stops),
    ("connections::zero_is_no_limit", no_limit),
    ("overload::status_answers_while_every_worker_is_busy", full_pool),
    ("overload::who_waits_is_served_in_the_end", queue),
];

fn idle_kept() {
    for listen in [Listen::Unix, Listen::Tcp("127.0.0.1")] {
        let stage = Stage::new(Setup {
            name: "idle-kept",
            workers: 2,
            listen,
            ..Setup::BASE
        });
        let mut connections: Vec<_> = (0..64).map(|_| stage.server.connect()).collect();
        for round in 0..3 {
            for (n, connection) in connections.iter_mut().enumerate() {
                let request = Request::plain(round * 1000 + n as u64, 0);
                let (_, outcome) = ask(connection, &request, &stage.script, true);
                outcome.unwrap_or_else(|e| panic!("kept connection {n}, round {round}: {e}\n{}", stage.server.log()));
                if n % 16 == 0 {
                    stage.serve(&Request::plain(9999, 0));
                }
            }
        }
        // All at once, while a worker is busy with one of them.
        let request = Request::plain(5000, 6000);
        let mut connections = connections.into_iter();
        let mut slow = connections.next().expect("there are 64");
        slow.send(&request.bytes(&stage.script, true));
        slow.next_record().expect("the pid comes first");
        let mut others: Vec<_> = connections.collect();
        for (n, connection) in others.iter_mut().enumerate() {
            connection.send(&Request::plain(n as u64, 1).bytes(&stage.script, true));
        }
        for (n, connection) in others.iter_mut().enumerate() {
            let (_, outcome) = answer(connection, &Request::plain(n as u64, 1));
            outcome.unwrap_or_else(|e| panic!("kept connection {n} of all at once: {e}"));
        }
        assert!(
            slow.record_within(Duration::ZERO).is_none(),
            "63 answers came while one worker was busy"
        );
        assert_eq!(slow.reply(1).stdout, request.expected());
        stage.stop();
    }
}

/// How many requests go through nginx; `--requests`.
pub static NGINX_REQUESTS: AtomicU64 = AtomicU64::new(2400);

/// Clients of nginx, and how often the others may come to an end while one of them has a request: the scheduler lets a client,
/// nginx or a worker stand now and then.
const CLIENTS: u64 = 24;
const ROUNDS: u64 = 50;

fn behind_nginx() {
    let stage = Stage::new(Setup {
        name: "behind-nginx",
        workers: 4,
        pool: "listen.mode = 0666\n",
        ..Setup::BASE
    });
    let www = std::path::Path::new(&stage.script).parent().expect("it is in a folder");
    let site = Site {
        www,
        pool: &stage.server.address,
        keep: 32,
        port: None,
        script_as_path_info: false,
    };
    let web = Web::start(Front::Nginx, &site, &stage.server.home.join("nginx")).unwrap_or_else(|e| panic!("{e}"));
    let (url, requests) = (web.url(), NGINX_REQUESTS.load(Relaxed));
    let ended = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (url, ended) = (url.clone(), ended.clone());
            thread::spawn(move || {
                let agent = ureq::Agent::new_with_defaults();
                let (mut slowest, mut overtaken) = (Duration::ZERO, 0);
                for n in 0..requests.div_ceil(CLIENTS) {
                    let request = Request::plain(client * 1_000_000 + n, 0);
                    let (begin, before) = (Instant::now(), ended.load(Relaxed));
                    let mut answer = agent
                        .get(format!("{url}/chaos.php?{}", request.query()))
                        .call()
                        .unwrap_or_else(|e| panic!("request {n} of client {client}: {e}"));
                    let body = answer.body_mut().read_to_vec().expect("the body is whole");
                    assert!(body.ends_with(&request.expected()));
                    slowest = slowest.max(begin.elapsed());
                    overtaken = overtaken.max(ended.fetch_add(1, Relaxed) - before);
                }
                (slowest, overtaken)
            })
        })
        .collect();
    let of_all = clients.into_iter().map(|client| {
        let ended = client.join();
        ended.unwrap_or_else(|_| panic!("a request failed:\n{}\n{}", web.log(), stage.server.log()))
    });
    let worst = of_all.reduce(|one, other| (one.0.max(other.0), one.1.max(other.1)));
    let (slowest, overtaken) = worst.expect("there are clients");
    println!(
        "{} requests through nginx on kept connections: the slowest took {slowest:?}, and {overtaken} others ended during one",
        ended.load(Relaxed)
    );
    // However fast the machine is: nobody waits while the others are served again and again.
    assert!(
        overtaken <= CLIENTS * ROUNDS,
        "a request had to wait: {overtaken} others ended meanwhile, in {slowest:?}"
    );
    assert_eq!(web.log(), "", "nginx has nothing to complain about");
    drop(web);
    stage.stop();
}

/// The kernel wakes one idle worker for a connection. Here it is one that gets no turn before it is told to leave; the
/// others, of which nobody has been woken, must not sleep on. The pool is one that makes nobody in its place, who would find
/// the connection by himself.
fn wake_up_passed_on() {
    let stage = Stage::new(Setup {
        name: "wake-up",
        workers: 4,
        pool: "pm = ondemand\npm.process_idle_timeout = 600s\n",
        ..Setup::BASE
    });
    let cpus = sched_getaffinity(Pid::this()).expect("the kernel tells");
    let cpu = (0..CpuSet::count())
        .rfind(|cpu| cpus.is_set(*cpu).unwrap_or(false))
        .expect("there is one");
    let mut only = CpuSet::new();
    only.set(cpu).expect("it is one of the set");
    let (mut id, mut passed_on) = (0, 0);
    while passed_on < 3 {
        assert!(id < 1000, "the worker always was the faster");
        // Three of them at least, all idle in the end.
        let busy: Vec<_> = (0..3)
            .map(|_| {
                id += 1;
                let request = Request::plain(id, 300);
                let mut connection = stage.server.connect();
                connection.send(&request.bytes(&stage.script, false));
                (connection, request)
            })
            .collect();
        for (mut connection, request) in busy {
            let (_, outcome) = answer(&mut connection, &request);
            outcome.unwrap_or_else(|e| panic!("request {}: {e}", request.id));
        }
        // The one that is woken first stays the one.
        let first = stage.serve(&Request::plain(id, 0));
        let workers = || {
            schedule::processes(&stage.server)
                .into_iter()
                .filter(|(_, role)| *role != Role::Zygote)
        };
        assert!(workers().count() >= 2);
        // It gives way to everybody on its processor, where somebody is always busy.
        let idle_class = Command::new("chrt")
            .args(["--idle", "--pid", "0", &first.to_string()])
            .status();
        assert!(idle_class.expect("chrt is there").success());
        sched_setaffinity(Pid::from_raw(first), &only).expect("it is ours");
        let (spins, over) = (AtomicBool::new(false), AtomicBool::new(false));
        let server = thread::scope(|scope| {
            scope.spawn(|| {
                sched_setaffinity(Pid::from_raw(0), &only).expect("a thread may choose");
                spins.store(true, Relaxed);
                while !over.load(Relaxed) {
                    std::hint::spin_loop();
                }
            });
            while !spins.load(Relaxed) {
                thread::yield_now();
            }
            id += 1;
            let request = Request::plain(id, 0);
            let mut connection = stage.server.connect();
            connection.send(&request.bytes(&stage.script, false));
            schedule::signal(first, Signal::SIGQUIT);
            over.store(true, Relaxed);
            let (worker, outcome) = answer(&mut connection, &request);
            outcome.unwrap_or_else(|e| panic!("nobody was woken for request {id}: {e}\n{}", stage.server.log()));
            worker.expect("a whole answer names its worker").pid
        });
        passed_on += u32::from(server != first);
    }
    stage.stop();
}

/// Begins a request, and stops in the middle of its parameters.
fn cut_header(script: &str) -> Vec<u8> {
    let mut bytes = begin(1, RESPONDER, 0).bytes();
    let params = Record::new(PARAMS, 1, pair(b"SCRIPT_FILENAME", script.as_bytes())).bytes();
    bytes.extend(&params[..params.len() - 5]);
    bytes
}

fn silent() {
    let stage = Stage::new(Setup {
        name: "silent",
        workers: 1,
        php_pool: "request_header_timeout = 15s\n",
        ..Setup::BASE
    });
    let began = Instant::now();
    let mut peers: Vec<Connection> = (0..24).map(|_| stage.server.connect()).collect();
    for (n, peer) in peers.iter_mut().enumerate() {
        match n % 3 {
            0 => {}
            1 => {
                peer.send(&cut_header(&stage.script));
            }
            _ => {
                peer.send(&begin(1, RESPONDER, 0).bytes());
                peer.half_close();
            }
        }
    }
    for id in 0..10 {
        stage.serve(&Request::plain(id, 1));
    }
    // Ten newcomers have been served; whoever is silent may be so a while longer.
    assert!(peers[0].record_within(Duration::ZERO).is_none());
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "newcomers waited for silent peers"
    );
    // A peer that begins and stops is let go when its time is over.
    for (n, peer) in peers.iter_mut().enumerate() {
        let (rest, _) = peer.end();
        assert!(rest.is_empty(), "peer {n} was told {}", rest.escape_ascii());
    }
    stage.serve(&Request::plain(11, 1));
    stage.stop();
}

fn body_stops() {
    let stage = Stage::new(Setup {
        name: "body-stops",
        workers: 1,
        php_pool: "request_body_timeout = 1s\n",
        ..Setup::BASE
    });
    let request = Request {
        body: vec![b'x'; 300_000],
        finish: Some(0),
        ..Request::plain(77, 0)
    };
    let bytes = request.bytes(&stage.script, false);
    let mut peer = stage.server.connect();
    peer.send(&bytes[..bytes.len() / 2]);
    stage.serve(&Request::plain(1, 1));
    let (_, outcome) = answer(&mut peer, &request);
    assert!(outcome.is_err(), "half a body was taken for a whole one");
    stage.serve(&Request::plain(2, 1));
    stage.stop();
}

fn reader_stops() {
    for listen in [Listen::Unix, Listen::Tcp("127.0.0.1")] {
        let stage = Stage::new(Setup {
            name: "reader-stops",
            workers: 1,
            listen,
            php_pool: "response_write_timeout = 1s\nlinger_timeout = 1s\n",
            ..Setup::BASE
        });
        let mut peer = stage.server.connect();
        let request = Request {
            out: 32 << 20,
            ..Request::plain(1, 0)
        };
        peer.send(&request.bytes(&stage.script, false));
        stage.serve(&Request::plain(2, 1));
        let (_, outcome) = answer(&mut peer, &request);
        assert!(outcome.is_err(), "it did not take its answer and yet got it");
        stage.stop();
    }
}

/// A limit that were over at once would have ended each of these before another request was served.
fn no_limit() {
    let stage = Stage::new(Setup {
        name: "no-limit",
        workers: 3,
        php_pool: "request_header_timeout = 0\nrequest_body_timeout = 0\nresponse_write_timeout = 0\n\
                   connection_idle_timeout = 0\n",
        ..Setup::BASE
    });
    let whole = |request: &Request| request.bytes(&stage.script, true);
    let plain = Request::plain(1, 0);
    let [mut silent, mut half_a_head, mut kept, mut half_a_body, mut reader] =
        std::array::from_fn(|_| stage.server.connect());
    half_a_head.send(&whole(&plain)[..20]);
    let (_, outcome) = ask(&mut kept, &plain, &stage.script, true);
    assert_eq!(outcome, Ok(()));
    let large = Request {
        body: vec![b'x'; 300_000],
        ..Request::plain(2, 0)
    };
    let bytes = whole(&large);
    half_a_body.send(&bytes[..bytes.len() / 2]);
    let long = Request {
        out: 16 << 20,
        ..Request::plain(3, 0)
    };
    reader.send(&whole(&long));
    for id in 10..30 {
        stage.serve(&Request::plain(id, 1));
    }
    // A limit that is armed late is none, either.
    thread::sleep(Duration::from_millis(500));
    half_a_body.send(&bytes[bytes.len() / 2..]);
    assert_eq!(answer(&mut half_a_body, &large).1, Ok(()));
    assert_eq!(answer(&mut reader, &long).1, Ok(()));
    half_a_head.send(&whole(&plain)[20..]);
    assert_eq!(answer(&mut half_a_head, &plain).1, Ok(()));
    for connection in [&mut kept, &mut silent] {
        assert_eq!(ask(connection, &plain, &stage.script, true).1, Ok(()));
    }
    stage.stop();
}

fn full_pool() {
    let stage = Stage::new(Setup {
        name: "full",
        workers: 2,
        pool: "pm.status_path = /status\nping.path = /ping\npm.status_listen = {home}/status\n",
        ..Setup::BASE
    });
    let mut busy: Vec<_> = (0..2).map(|_| stage.server.connect()).collect();
    for connection in &mut busy {
        connection.send(&Request::plain(1, 3000).bytes(&stage.script, false));
        connection.next_record().expect("the pid comes first");
    }
    let address = Address::Unix(stage.server.home.join("status"));
    let mut connection = Connection::open(&address).expect("pm.status_listen accepts");
    let params = [
        ("SCRIPT_NAME", "/status"),
        ("SCRIPT_FILENAME", "/status"),
        ("REQUEST_URI", "/status"),
        ("REQUEST_METHOD", "GET"),
        ("QUERY_STRING", ""),
    ];
    connection.send(&fcgi::request(0, &params, b""));
    let page = connection.reply(1).text();
    for line in ["active processes:     2", "idle processes:       0"] {
        assert!(page.contains(line), "no '{line}' in\n{page}");
    }
    for connection in &mut busy {
        assert!(
            connection.record_within(Duration::ZERO).is_none(),
            "the workers are still busy"
        );
    }
    for connection in &mut busy {
        assert_eq!(connection.reply(1).stdout, Request::plain(1, 3000).expected());
    }
    stage.stop();
}

fn queue() {
    for pm in [
        "",
        "pm = ondemand\n",
        "pm = dynamic\npm.start_servers = 1\npm.min_spare_servers = 1\npm.max_spare_servers = 1\n",
    ] {
        let stage = Stage::new(Setup {
            name: "queue",
            workers: 2,
            pool: pm,
            ..Setup::BASE
        });
        let mut connections: Vec<_> = (0..60).map(|_| stage.server.connect()).collect();
        for (id, connection) in connections.iter_mut().enumerate() {
            connection.send(&Request::plain(id as u64, 20).bytes(&stage.script, id % 2 == 0));
        }
        for (id, connection) in connections.iter_mut().enumerate() {
            let (_, outcome) = answer(connection, &Request::plain(id as u64, 20));
            outcome.unwrap_or_else(|e| panic!("request {id} of a full pool ({pm:?}): {e}"));
        }
        stage.stop();
    }
}
