//! Clients and operators who mean no good: nobody else notices.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::net::sockopt;

use crate::load::{Request, answer, ask};
use crate::reloads::Stage;
use crate::schedule;
use crate::support::Case;
use crate::support::fcgi::{Address, Connection, KEEP_CONN, PARAMS, RESPONDER, Record, begin, pair};
use crate::support::server::{Listen, Setup};

pub const CASES: &[Case] = &[
    ("reload::a_signal_every_10_ms_loses_nothing", storm_of_reloads),
    ("hostile::thousands_of_idle_connections_hold_up_nobody", idle),
    (
        "hostile::a_master_without_descriptors_holds_up_nobody",
        without_descriptors,
    ),
    ("hostile::a_peer_that_is_slow_costs_its_limit", slow),
    ("hostile::who_has_no_more_to_say_is_answered", half_closed),
    ("hostile::a_reset_costs_nobody_else", reset),
    ("hostile::a_socket_whose_file_is_gone_is_made_again", socket_gone),
];

fn storm_of_reloads() {
    let stage = Stage::new(Setup {
        name: "often",
        workers: 4,
        ..Setup::BASE
    });
    let phases = ["without reloads", "while a reload is asked for every 10 ms"];
    stage.under_load(phases, u32::MAX, 100, |server| {
        schedule::signal(schedule::master(server), Signal::SIGUSR2);
        std::thread::sleep(Duration::from_millis(10));
    });
    stage.stop();
}

/// More than the workers may have descriptors, of those that have been served and of those that have never said a word.
fn idle() {
    let stage = Stage::new(Setup {
        name: "idle",
        workers: 2,
        pool: "rlimit_files = 512\nlisten.backlog = 4096\n",
        ..Setup::BASE
    });
    let request = |id| Request::plain(id, 0);
    let began = Instant::now();
    let mut kept: Vec<_> = (0..2500).map(|_| stage.server.connect()).collect();
    for (id, connection) in (0..).zip(&mut kept) {
        let (_, outcome) = ask(connection, &request(id), &stage.script, true);
        outcome.unwrap_or_else(|e| panic!("kept connection {id}: {e}\n{}", stage.server.log()));
    }
    let mut silent: Vec<_> = (0..2500).map(|_| stage.server.connect()).collect();
    stage.serve(&request(1));
    // The limit of those that are silent is far away.
    assert!(
        began.elapsed() < Duration::from_secs(50),
        "a newcomer waited for the silent: {:?}",
        began.elapsed()
    );
    for (id, connection) in (0..).zip(kept.iter_mut().chain(&mut silent)) {
        let (_, outcome) = ask(connection, &request(id), &stage.script, true);
        outcome.unwrap_or_else(|e| panic!("idle connection {id}: {e}\n{}", stage.server.log()));
    }
    stage.stop();
}

/// It may have few, and more connections are kept than that. It still makes workers, and reloads.
fn without_descriptors() {
    let stage = Stage::new(Setup {
        name: "few-files",
        workers: 2,
        global: "rlimit_files = 160\n",
        deaths: true,
        ..Setup::BASE
    });
    let request = |id| Request::plain(id, 0);
    let one = |id| {
        let mut connection = stage.server.connect();
        let (_, outcome) = ask(&mut connection, &request(id), &stage.script, true);
        outcome.unwrap_or_else(|e| panic!("{e}"));
        connection
    };
    let mut kept: Vec<_> = (0..400).map(one).collect();
    for round in 0..5 {
        let pid = stage.serve(&request(round));
        schedule::signal(pid, Signal::SIGKILL);
        schedule::reload(&stage.server);
        stage.serve(&request(round));
    }
    let log = stage.server.log();
    assert!(!log.contains("does not keep to the protocol"), "{log}");
    // Who was one too many has been told by the end of the connection, and nobody got half an answer.
    let mut served = 0;
    for (id, connection) in (0..).zip(&mut kept) {
        let (worker, outcome) = ask(connection, &request(id), &stage.script, true);
        match outcome {
            Ok(()) => served += 1,
            Err(e) => assert!(worker.is_none(), "kept connection {id}: {e}"),
        }
    }
    assert!(served > 0, "nobody was kept");
    stage.stop();
}

/// Takes or gives a few bytes at a time, and so never stops, since `began`; `act` says false when the other side has had enough.
fn dribble(what: &str, limit: Duration, began: Instant, mut act: impl FnMut() -> bool) {
    while act() {
        assert!(
            began.elapsed() < 30 * limit,
            "a peer with a slow {what} is put up with for ever"
        );
        std::thread::sleep(limit / 20);
    }
    assert!(began.elapsed() >= limit, "its {what} had less than its time");
}

fn slow() {
    const LIMIT: Duration = Duration::from_secs(1);
    let stage = Stage::new(Setup {
        name: "slow",
        workers: 1,
        php_pool: "request_header_timeout = 1s\nrequest_body_timeout = 1s\nresponse_write_timeout = 1s\nlinger_timeout = 1s\n",
        ..Setup::BASE
    });
    let Address::Unix(path) = &stage.server.address else {
        panic!("it is a unix socket")
    };
    let connect = || UnixStream::connect(path).expect("it listens");
    let header = [
        begin(1, RESPONDER, KEEP_CONN).bytes(),
        Record::new(PARAMS, 1, pair(b"SCRIPT_FILENAME", &[b'x'; 5000])).bytes(),
    ]
    .concat();
    let mut bytes = header.iter();
    let mut peer = connect();
    dribble("header", LIMIT, Instant::now(), || {
        peer.write_all(&[*bytes.next().expect("enough for all its time")])
            .is_ok()
    });
    stage.serve(&Request::plain(1, 0));

    let request = Request {
        body: vec![b'x'; 300_000],
        ..Request::plain(2, 0)
    };
    let bytes = request.bytes(&stage.script, false);
    let (first, rest) = bytes.split_at(bytes.len() - 200_000);
    let mut rest = rest.iter();
    let mut peer = connect();
    let began = Instant::now();
    peer.write_all(first).expect("the worker reads");
    dribble("body", LIMIT, began, || {
        peer.write_all(&[*rest.next().expect("enough for all its time")])
            .is_ok()
    });
    stage.serve(&Request::plain(3, 0));

    let request = Request {
        out: 32 << 20,
        ..Request::plain(4, 0)
    };
    let mut peer = connect();
    peer.write_all(&request.bytes(&stage.script, false))
        .expect("the worker reads");
    let mut taken = 0;
    let until = Instant::now() + 30 * LIMIT;
    // Whether it has been given up shows in who is served next.
    std::thread::scope(|scope| {
        let next = scope.spawn(|| stage.serve(&Request::plain(5, 0)));
        while !next.is_finished() {
            assert!(
                Instant::now() < until,
                "a peer that reads slowly is put up with for ever"
            );
            taken += peer.read(&mut [0; 100]).expect("there is some left");
            std::thread::sleep(LIMIT / 20);
        }
    });
    assert!(taken < request.out, "it has had its whole answer");
    stage.stop();
}

/// A client that ends its side after its request, in a pool that is idle and in one that is full.
fn half_closed() {
    for listen in [Listen::Unix, Listen::Tcp("127.0.0.1")] {
        let stage = Stage::new(Setup {
            name: "half-closed",
            workers: 1,
            listen,
            ..Setup::BASE
        });
        let mut others = Vec::new();
        for (id, milliseconds) in [(1, 0), (2, 1500), (3, 0), (4, 10)] {
            let mut connection = stage.server.connect();
            let request = Request::plain(id, milliseconds);
            connection.send(&request.bytes(&stage.script, id == 3));
            connection.half_close();
            if id == 1 {
                assert_eq!(answer(&mut connection, &request).1, Ok(()));
            } else {
                others.push((connection, request));
            }
        }
        for (mut connection, request) in others {
            let (_, outcome) = answer(&mut connection, &request);
            outcome.unwrap_or_else(|e| panic!("{listen:?}, request {}: {e}", request.id));
        }
        stage.stop();
    }
}

/// Before its request, in the middle of it, while it runs, and in the middle of its answer.
fn reset() {
    let stage = Stage::new(Setup {
        name: "reset",
        workers: 2,
        listen: Listen::Tcp("127.0.0.1"),
        ..Setup::BASE
    });
    let Address::Tcp(host, port) = &stage.server.address else {
        panic!("it is a TCP socket")
    };
    let mut kept: Vec<Connection> = (0..4).map(|_| stage.server.connect()).collect();
    let large = Request {
        out: 8 << 20,
        body: vec![b'x'; 100_000],
        ..Request::plain(1, 20)
    };
    let bytes = large.bytes(&stage.script, false);
    for round in 0..100 {
        let mut peer = TcpStream::connect((host.as_str(), *port)).expect("it listens");
        sockopt::set_socket_linger(&peer, Some(Duration::ZERO)).expect("a socket has it");
        match round % 4 {
            0 => {}
            1 => drop(peer.write_all(&bytes[..bytes.len() / 2])),
            2 => drop(peer.write_all(&bytes)),
            _ => {
                let _ = peer.write_all(&bytes);
                let _ = peer.read(&mut [0; 1000]);
            }
        }
        drop(peer);
        let (id, connection) = (100 + round, &mut kept[round as usize % 4]);
        let (_, outcome) = ask(connection, &Request::plain(id, 0), &stage.script, true);
        outcome.unwrap_or_else(|e| panic!("round {round}: {e}\n{}", stage.server.log()));
    }
    stage.stop();
}

/// Somebody has tidied up in /run. Who waits in the socket that has lost its name is served all the same.
fn socket_gone() {
    let stage = Stage::new(Setup {
        name: "gone",
        workers: 1,
        ..Setup::BASE
    });
    let Address::Unix(path) = stage.server.address.clone() else {
        panic!("it is a unix socket")
    };
    let mut kept = stage.server.connect();
    assert_eq!(ask(&mut kept, &Request::plain(1, 0), &stage.script, true).1, Ok(()));
    let running = Request::plain(2, 1000);
    let mut long = stage.server.connect();
    long.send(&running.bytes(&stage.script, false));
    let mut waiting = stage.server.connect();
    waiting.send(&Request::plain(3, 0).bytes(&stage.script, false));
    fs::remove_file(&path).expect("it is there");
    assert!(
        Connection::open(&stage.server.address).is_err(),
        "nobody comes by it any more"
    );
    schedule::reload(&stage.server);
    stage.serve(&Request::plain(4, 0));
    assert_eq!(answer(&mut long, &running).1, Ok(()));
    assert_eq!(answer(&mut waiting, &Request::plain(3, 0)).1, Ok(()));
    assert_eq!(ask(&mut kept, &Request::plain(5, 0), &stage.script, true).1, Ok(()));
    // Another's is not touched, and the reload says so.
    fs::remove_file(&path).expect("it is there again");
    let other = std::os::unix::net::UnixListener::bind(&path).expect("its name is free");
    schedule::signal(schedule::master(&stage.server), Signal::SIGUSR2);
    stage.server.wait_for_log("that the socket is another's", |log| {
        log.contains("Another FPM instance seems to already listen on")
    });
    drop(other);
    schedule::reload(&stage.server);
    stage.serve(&Request::plain(6, 0));
    stage.stop();
    assert!(!path.exists(), "its socket goes with it");
}
