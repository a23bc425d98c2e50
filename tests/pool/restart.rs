//! A restart while somebody else holds the socket, as systemd does.

use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use command_fds::{CommandFdExt, FdMapping};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Place, body, wait_for};
use crate::support::Case;
use crate::support::process::{spawn, that_dies_with_us};

pub const CASES: &[Case] = &[(
    "restart::loses_no_request_where_somebody_else_holds_the_socket",
    loses_no_request,
)];

/// A master that is given the socket at descriptor 3.
fn start(place: &Place, socket: &UnixListener) -> Child {
    let mut command = that_dies_with_us("KILL", "sh");
    let exec = "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"";
    command.args(["-c", exec]).arg(place.path("php-fpm"));
    command.args(["-F", "-O", "-y"]).arg(place.path("pool.conf"));
    command.arg("-c").arg(place.path("php.ini")).env("PHP_INI_SCAN_DIR", "");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mapping = FdMapping {
        parent_fd: socket.try_clone().unwrap().into(),
        child_fd: 3,
    };
    command.fd_mappings(vec![mapping]).unwrap();
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
            let mut master = start(&place, &socket);
            let before = answered.load(SeqCst);
            wait_for("requests are served", || answered.load(SeqCst) > before + 50);
            kill(Pid::from_raw(master.id() as i32), Signal::SIGTERM).unwrap();
            assert!(master.wait().unwrap().success());
            assert!(place.path("sock").exists(), "the socket is not the master's to remove");
        }
        // The last ones wait for this one.
        let mut master = start(&place, &socket);
        over.store(true, SeqCst);
        for client in clients {
            client.join().expect("every request was answered");
        }
        kill(Pid::from_raw(master.id() as i32), Signal::SIGTERM).unwrap();
        assert!(master.wait().unwrap().success());
    });
}
