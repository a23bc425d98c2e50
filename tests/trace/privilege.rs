//! Who may read whose memory, and what is said where one may not. (All of it needs root, to take rights away.)

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::harness::{Master, Place, wait_for};
use crate::support::Case;
use crate::{php_pool, pool, printed};

pub const ROOT_CASES: &[Case] = &[
    ("privilege::a_master_without_the_capability_names_it", no_capability),
    (
        "privilege::a_master_of_an_ordinary_user_traces_its_own_workers",
        ordinary_user,
    ),
    ("privilege::strangers_are_told_what_they_lack", strangers),
];

/// Starts the master below `setpriv` with these arguments.
fn start(place: Place, setpriv: &str) -> Master {
    fs::rename(place.path("php-fpm"), place.path("real-php-fpm")).unwrap();
    let real = place.path("real-php-fpm").display().to_string();
    let link = place.write("php-fpm", &format!("#!/bin/sh\nexec setpriv {setpriv} {real} \"$@\"\n"));
    fs::set_permissions(link, fs::Permissions::from_mode(0o755)).unwrap();
    place.serve()
}

fn place(lines: &str) -> Place {
    let place = Place::new();
    place.write("stay.php", "<?php\nsleep(60);");
    place.configure(&pool(1, lines));
    place
}

const SLOWLOG: &str = "slowlog = {dir}/slow.log\nrequest_slowlog_timeout = 1s";

fn record(master: &Master) -> String {
    let mut connection = master.connect("sock");
    master.ask(&mut connection, "/stay.php", 0);
    master.said("finished trace of");
    fs::read_to_string(master.place.path("slow.log")).unwrap()
}

fn no_capability() {
    let master = start(place(SLOWLOG), "--bounding-set -sys_ptrace");
    let text = record(&master);
    let reason = "cannot be read: it runs as another user (uid 33), for which CAP_SYS_PTRACE is needed";
    assert!(
        text.contains("script_filename = ") && text.contains("+++ dump failed: process ") && text.contains(reason),
        "{text}"
    );
    let line = master.said(reason);
    assert!(line.contains("ERROR: [pool www] process "), "{line}");
}

fn ordinary_user() {
    let master = start(place(SLOWLOG), "--reuid www-data --regid www-data --clear-groups");
    let text = record(&master);
    assert!(text.contains("sleep() ") && !text.contains("+++"), "{text}");
}

fn strangers() {
    let master = place("").serve_with(1);
    let mut connection = master.connect("sock");
    master.ask(&mut connection, "/stay.php", 0);
    let worker = master.workers("www")[0].to_string();
    // A folder of its own: the way to ours may be closed to others.
    let executable = master.place.path("php-pool");
    crate::support::process::copy_program(&php_pool(), &executable);
    let trace_as = |user: &str| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", user, "--clear-groups", "--"])
            .arg(&executable)
            .args(["trace", &worker]);
        printed(&command.stdin(Stdio::null()).output().unwrap())
    };
    assert_eq!(
        trace_as("nobody"),
        format!(
            "{worker}: process {worker} cannot be read: it runs as another user (uid 33), for which CAP_SYS_PTRACE is needed\n"
        )
    );
    assert_eq!(
        trace_as("www-data"),
        format!(
            "{worker}: process {worker} cannot be read: it is not dumpable (process.dumpable = no), for which CAP_SYS_PTRACE is needed\n"
        )
    );
    wait_for("root to see it", || trace_as("root").contains("sleep(int)"));
}
