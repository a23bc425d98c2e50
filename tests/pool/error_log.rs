//! The error log: a disk that fills, and what the master does for it while workers go on.

use std::fs;

use nix::sys::signal::Signal;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::harness::{Place, exists, wait_for};
use crate::support::Case;

pub const CASES: &[Case] = &[
    ("error_log::a_full_disk_holds_up_nobody_and_is_told", full_disk),
    (
        "error_log::a_log_at_its_largest_holds_up_nobody_and_is_told",
        at_its_largest,
    ),
];

fn full_disk() {
    let place = Place::new();
    place.write(
        "say.php",
        "<?php file_put_contents('php://stderr', \"said {$_GET['n']}\\n\"); error_log('and logged'); echo getmypid();",
    );
    // This disk is always full; in its place comes one that has room.
    std::os::unix::fs::symlink("/dev/full", place.path("error.log")).unwrap();
    place.configure(
        "[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 2\ncatch_workers_output = yes\n",
    );
    let master = place.start_as_configured();
    let line = master.said("error.log cannot be written: No space left on device");
    assert!(line.contains("ERROR"), "{line}");
    wait_for("the socket", || exists(&master.place.path("sock")));
    for n in 0..50 {
        assert!(!master.get(&format!("/say.php?n={n}")).is_empty());
    }
    // It also reloads, and replaces who dies.
    let before: i32 = master.get("/say.php?n=51").parse().unwrap();
    master.signal(Signal::SIGUSR2);
    wait_for("the new generation", || {
        let now: i32 = master.get("/say.php?n=52").parse().unwrap();
        now != before && !crate::support::process::lives(before)
    });
    assert_eq!(
        master.count("cannot be written"),
        1,
        "it is said once: {:?}",
        master.log()
    );

    let log = || fs::read_to_string(master.place.path("disk")).unwrap_or_default();
    std::os::unix::fs::symlink(master.place.write("disk", ""), master.place.path("new")).unwrap();
    fs::rename(master.place.path("new"), master.place.path("error.log")).unwrap();
    master.signal(Signal::SIGUSR1);
    wait_for("the log to go on", || log().contains("error log file re-opened"));
    wait_for("what was lost", || log().contains(" lines could not be written to "));
    let lost = log().lines().find_map(|line| {
        let (text, _) = line.split_once(" lines could not be written to ")?;
        text.rsplit(' ').next()?.parse::<u32>().ok()
    });
    // The start, the reload, and two lines of each request.
    assert!(lost.is_some_and(|lost| lost > 100), "{}", log());
    master.get("/say.php?n=at+last");
    wait_for("what is said now", || log().contains("said at last"));
}

/// The kernel says so by a signal, too, by which php-fpm ends.
fn at_its_largest() {
    let place = Place::new();
    place.write("say.php", "<?php error_log(\"said {$_GET['n']}\"); echo 'answered';");
    place.configure(
        "[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 2\ncatch_workers_output = yes\n",
    );
    let master = place.start_as_configured();
    let log = || fs::read_to_string(master.place.path("error.log")).unwrap_or_default();
    wait_for("the start", || log().contains("ready to handle connections"));
    let limit = |current| {
        let new = Rlimit { current, maximum: None };
        prlimit(Pid::from_raw(master.pid()), Resource::Fsize, new).unwrap();
    };
    limit(Some(log().len() as u64));
    for n in 0..50 {
        assert_eq!(master.get(&format!("/say.php?n={n}")), "answered");
    }
    master.said("error.log cannot be written: File too large");
    limit(None);
    assert_eq!(master.get("/say.php?n=at+last"), "answered");
    wait_for("what is said now", || log().contains("said at last"));
    assert!(log().contains(" lines could not be written to "), "{}", log());
}
