//! The service itself: it comes when it is asked for, leaves when it is not, and no pool depends on it.

use std::fs;
use std::os::unix::net::UnixDatagram;

use nix::sys::signal::Signal;

use crate::harness::wait_for;
use crate::site::Site;
use crate::support::Case;

pub const CASES: &[Case] = &[
    ("service::leaves_when_nobody_asks_and_comes_back", leaves),
    ("service::a_call_that_meets_it_at_the_door_is_answered", at_the_door),
    ("service::a_second_one_leaves_the_name_to_the_first", second),
    ("service::a_master_that_hangs_is_said_to_and_hides_no_other", hung),
    ("service::one_that_reads_no_events_holds_up_no_pool", deaf),
];

fn leaves() {
    let site = Site::start("pm = static\npm.max_children = 1", 1);
    assert!(site.services().is_empty(), "nobody has asked yet");
    assert_eq!(site.property("State"), "running");
    wait_for("its end", || site.services().is_empty());
    assert_eq!(site.property("State"), "running");
}

/// With no patience at all it is on its way out at every call.
fn at_the_door() {
    let site = Site::start("pm = static\npm.max_children = 1", 0);
    for _ in 0..30 {
        assert_eq!(site.property("State"), "running");
    }
}

fn second() {
    let site = Site::start("pm = static\npm.max_children = 1", 60);
    assert_eq!(site.property("State"), "running");
    let first = site.services();
    let out = std::process::Command::new(crate::harness::executable())
        .args(["bus", "--bus", &format!("unix:path={}", site.path("bus").display())])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(1));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.contains("the name org.phppool cannot be had"), "{said}");
    assert_eq!(site.services(), first);
    assert_eq!(site.property("State"), "running");
}

fn hung() {
    let site = Site::start("pm = static\npm.max_children = 1", 60);
    fs::write(site.path("pool.d/away.conf"), "[away]\nlisten = 9000\npm = ondemand\n").unwrap();
    site.master.signal(Signal::SIGSTOP);
    assert_eq!(site.property("State"), "hung");
    assert_eq!(site.property_of(None, "away", "State"), "stopped");
    let words = [
        "get-property",
        "org.phppool",
        "/org/phppool/pool/www",
        "org.phppool.Pool1",
        "AcceptedConnections",
    ];
    assert!(site.refused(None, &words).contains("does not answer"));
    let words = [
        "call",
        "org.phppool",
        "/org/phppool",
        "org.freedesktop.DBus.ObjectManager",
        "GetManagedObjects",
    ];
    assert!(site.said(&words).contains("hung"));
    site.master.signal(Signal::SIGCONT);
    wait_for("its answer", || site.property("State") == "running");
}

fn deaf() {
    let site = Site::start("pm = static\npm.max_children = 1", 60);
    let socket = UnixDatagram::bind(site.path("run/.events")).unwrap();
    let sender = UnixDatagram::unbound().unwrap();
    sender.set_nonblocking(true).unwrap();
    // The kernel's queue holds 10 by default, under systemd 512.
    let full = (0..1_000_000).any(|_| sender.send_to(b"x", site.path("run/.events")).is_err());
    assert!(full, "the queue has no end");
    let mut connection = site.master.connect("sock");
    site.master.ask(&mut connection, "/die.php", 0);
    site.master.said("SIGKILL");
    assert_eq!(site.master.get("/hello.php"), "hello");
    drop(socket);
    let mut connection = site.master.connect("sock");
    site.master.ask(&mut connection, "/die.php", 0);
    site.master.said_often("SIGKILL", 2);
    assert_eq!(site.master.get("/hello.php"), "hello");
}
