//! Somebody else holds the sockets, as systemd does.

use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Place, body, wait_for};
use crate::support::Case;
use crate::support::fcgi::{RESPONDER, begin};
use crate::support::process::{hand_over, spawn, that_is_handed_sockets};

pub const CASES: &[Case] = &[
    (
        "restart::loses_no_request_where_somebody_else_holds_the_socket",
        loses_no_request,
    ),
    (
        "restart::who_has_connected_before_and_speaks_late_is_served",
        speaks_late,
    ),
    (
        "restart::every_socket_of_the_pools_name_is_served_and_no_other",
        several_sockets,
    ),
];

/// A master that is given sockets by their names.
fn start(place: &Place, sockets: &[(&UnixListener, &str)]) -> Child {
    let mut command = that_is_handed_sockets(place.path("php-fpm"));
    let held = sockets
        .iter()
        .map(|(socket, name)| (socket.try_clone().unwrap().into(), *name));
    hand_over(&mut command, held.collect());
    command.args(["-F", "-y"]).arg(place.path("pool.conf"));
    command.arg("-c").arg(place.path("php.ini")).env("PHP_INI_SCAN_DIR", "");
    let said = std::fs::File::create(place.path("said")).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
    spawn(command).unwrap()
}

fn loses_no_request() {
    let place = Place::new();
    place.write("php.ini", "display_errors = 0\n");
    place.write("sleep.php", "<?php usleep((int) ($_GET['ms'] * 1000)); echo 'done';");
    place.configure("[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 3\n");
    let socket = UnixListener::bind(place.path("sock")).unwrap();
    let (over, answered) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        // More clients than workers, so that some always wait in the socket.
        let client = |client| {
            let (place, over, answered) = (&place, &over, &answered);
            scope.spawn(move || {
                while !over.load(SeqCst) {
                    let mut connection = place.connect("sock");
                    let milliseconds = if client == 0 { 1500 } else { 10 };
                    place.ask(&mut connection, &format!("/sleep.php?ms={milliseconds}"), 0);
                    let reply = connection.reply(1);
                    assert_eq!(body(&reply), "done");
                    answered.fetch_add(1, SeqCst);
                }
            })
        };
        let clients: Vec<_> = (0..6).map(client).collect();
        for _ in 0..5 {
            let mut master = start(&place, &[(&socket, "listen")]);
            let before = answered.load(SeqCst);
            wait_for("requests are served", || answered.load(SeqCst) > before + 50);
            kill(Pid::from_raw(master.id() as i32), Signal::SIGTERM).unwrap();
            assert!(master.wait().unwrap().success());
            assert!(place.path("sock").exists(), "the socket is not the master's to remove");
        }
        // The last ones wait for this one.
        let mut master = start(&place, &[(&socket, "listen")]);
        over.store(true, SeqCst);
        for client in clients {
            client.join().expect("every request was answered");
        }
        kill(Pid::from_raw(master.id() as i32), Signal::SIGTERM).unwrap();
        assert!(master.wait().unwrap().success());
    });
}

/// Connections that have been accepted, with nothing or half a request: some a worker has, some the master.
fn speaks_late() {
    let place = Place::new();
    place.write("php.ini", "display_errors = 0\n");
    place.write("pid.php", "<?php echo getmypid();");
    place.configure("[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\n");
    let socket = UnixListener::bind(place.path("sock")).unwrap();
    let mut master = start(&place, &[(&socket, "listen")]);
    let halves = {
        let whole = [begin(1, RESPONDER, 0).bytes(), place.rest_of_request("/pid.php")].concat();
        let (first, second) = whole.split_at(whole.len() / 2);
        [first.to_vec(), second.to_vec()]
    };
    let served = || {
        let mut connection = place.connect("sock");
        place.ask(&mut connection, "/pid.php", 0);
        body(&connection.reply(1))
    };
    served();
    let mut late = Vec::new();
    for round in 0..3 {
        for index in 0..4 {
            let mut connection = place.connect("sock");
            let said = index % 2;
            assert!(said == 0 || connection.send(&halves[0]));
            late.push((connection, said));
        }
        // The worker has accepted them before this one, for which it gives them to the master. Those of the last round it keeps,
        // or they are still in the socket.
        if round < 2 {
            served();
        }
    }
    kill(Pid::from_raw(master.id() as i32), Signal::SIGTERM).unwrap();
    wait_for("it to stop", || {
        let log = std::fs::read_to_string(place.path("error.log")).unwrap_or_default();
        log.contains("Terminating ...")
    });
    for (connection, said) in &mut late {
        halves[*said..].iter().for_each(|half| assert!(connection.send(half)));
    }
    assert!(master.wait().unwrap().success());
    let mut master = start(&place, &[(&socket, "listen")]);
    for (number, (connection, _)) in late.iter_mut().enumerate() {
        assert!(connection.reply(1).end.is_some(), "connection {number} is lost");
    }
    served();
    kill(Pid::from_raw(master.id() as i32), Signal::SIGTERM).unwrap();
    assert!(master.wait().unwrap().success());
}

fn several_sockets() {
    let place = Place::new();
    place.write("php.ini", "display_errors = 0\n");
    place.write("pid.php", "<?php echo getmypid();");
    place.write(
        "wait.php",
        "<?php while (!file_exists(__DIR__ . '/go')) { usleep(2000); clearstatcache(); } echo 'done';",
    );
    place.configure(
        "[www]\n{user}\nlisten = {dir}/first\npm = ondemand\npm.max_children = 1\npm.process_idle_timeout = 600s\nping.path = /ping\n\
         pm.status_path = /status\n",
    );
    let bind = |name| UnixListener::bind(place.path(name)).unwrap();
    let (first, second, other) = (bind("first"), bind("second"), bind("other"));
    let mut master = start(&place, &[(&first, "listen"), (&second, "listen"), (&other, "other")]);
    let ask = |socket: &str, uri: &str| {
        let mut connection = place.connect(socket);
        place.ask(&mut connection, uri, 0);
        connection
    };
    let get = |socket: &str, uri: &str| body(&ask(socket, uri).reply(1));
    let mut stranger = ask("other", "/pid.php");
    wait_for("it is said that nobody answers there", || {
        let wanted = format!(
            "WARNING: the inherited socket \"{}\" (FileDescriptorName=other) belongs to no pool",
            place.path("other").display()
        );
        std::fs::read_to_string(place.path("said")).is_ok_and(|log| log.contains(&wanted))
    });

    // The master watches all of them where there is no worker, and one worker serves them.
    let pid = get("second", "/pid.php");
    assert_eq!(get("first", "/pid.php"), pid);
    assert_eq!(get("second", "/pid.php"), pid);

    // So they are when the pool is full.
    let mut busy = ask("second", "/wait.php");
    wait_for("the worker to be busy", || {
        get("first", "/status").contains("active processes:     1\n")
    });
    assert_eq!(get("first", "/ping"), "pong");
    assert_eq!(get("second", "/ping"), "pong");
    let mut next = ask("second", "/pid.php");
    place.write("go", "");
    assert_eq!(body(&busy.reply(1)), "done");
    assert_eq!(body(&next.reply(1)), pid);

    // And after a reload.
    kill(Pid::from_raw(master.id() as i32), Signal::SIGUSR2).unwrap();
    wait_for("another worker", || get("second", "/pid.php") != pid);

    kill(Pid::from_raw(master.id() as i32), Signal::SIGTERM).unwrap();
    assert!(master.wait().unwrap().success());
    other.set_nonblocking(true).unwrap();
    drop(other.accept().expect("nobody has taken what came to another's socket"));
    assert!(stranger.reply(1).end.is_none());
}
