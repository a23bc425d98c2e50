//! What a reload renews.

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::Case;
use crate::harness::{Master, Place, wait_for};

pub const CASES: &[Case] = &[
    ("renewal::only_what_has_changed_is_renewed", only_what_has_changed),
    ("renewal::what_is_preloaded_is_always_renewed", preloaded),
];

const POOLS: &str = "[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\nphp.ini = {dir}/www.ini\n\
                     [other]\n{user}\nlisten = {dir}/other\npm = static\npm.max_children = 1\n";

fn place() -> Place {
    let place = Place::new();
    place.write("pid.php", "<?php echo getmypid();");
    place.write(
        "sleep.php",
        "<?php echo 'begun'; flush(); usleep((int) ($_GET['ms'] * 1000)); echo 'done';",
    );
    place.write("www.ini", "precision = 10\n");
    place
}

fn started(place: Place) -> Master {
    let master = place.start_with_control();
    master.said("ready to handle connections");
    wait_for("the first workers", || !master.workers("www").is_empty());
    master
}

fn reload(master: &Master, arguments: &[&str]) {
    let mut command = Command::new(crate::harness::executable());
    command.arg("reload").arg("--control").arg(master.place.path("control"));
    let output = command.args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Who answers on the pools' sockets.
fn answers(master: &Master) -> [String; 2] {
    [master.get("/pid.php"), master.get_on("other", "/pid.php")]
}

/// Which of them changes with something.
fn changes(master: &Master, what: impl FnOnce()) -> [bool; 2] {
    let before = answers(master);
    what();
    let after = answers(master);
    [before[0] != after[0], before[1] != after[1]]
}

fn only_what_has_changed() {
    let place = place();
    place.configure(POOLS);
    fs::create_dir(place.path("bin")).unwrap();
    let master = started(place);
    let path = |name: &str| master.place.path(name);
    assert_eq!(changes(&master, || reload(&master, &[])), [false, false]);
    master.said_often("nothing has changed", 2);
    // A line more above its section is no change of a pool.
    master.place.configure(&format!("; a remark\n{POOLS}"));
    assert_eq!(changes(&master, || reload(&master, &[])), [false, false]);
    // A directive of one pool.
    master
        .place
        .configure(&POOLS.replace("[other]", "pm.max_requests = 1000\n[other]"));
    assert_eq!(changes(&master, || reload(&master, &[])), [true, false]);
    // Its php.ini: written anew, and not there any more.
    master.place.write("www.ini", "precision = 12\n");
    assert_eq!(changes(&master, || reload(&master, &[])), [true, false]);
    fs::remove_file(path("www.ini")).unwrap();
    assert_eq!(changes(&master, || reload(&master, &[])), [true, false]);
    assert_eq!(changes(&master, || reload(&master, &[])), [false, false]);
    // Its PHP.
    let worker = crate::harness::executable().with_file_name("php-pool-worker");
    let link = path("bin/php-pool-worker");
    std::os::unix::fs::symlink(&worker, &link).unwrap();
    let with_own = POOLS.replace("[other]", "worker.path = {dir}/bin/php-pool-worker\n[other]");
    master.place.configure(&with_own);
    assert_eq!(changes(&master, || reload(&master, &[])), [true, false]);
    fs::remove_file(&link).unwrap();
    fs::copy(&worker, &link).unwrap();
    assert_eq!(changes(&master, || reload(&master, &[])), [true, false]);
    assert_eq!(changes(&master, || reload(&master, &[])), [false, false]);
    // Where it is asked for, everything; and by the signal, for which deployments wait.
    assert_eq!(changes(&master, || reload(&master, &["--force"])), [true, true]);
    let ready = master.count("ready to handle connections");
    let by_signal = changes(&master, || {
        master.signal(Signal::SIGUSR2);
        master.said_often("ready to handle connections", ready + 1);
    });
    assert_eq!(by_signal, [true, true]);
}

fn preloaded() {
    let place = place();
    place.write("preload.php", "<?php function preloaded() { return 1; }");
    place.write(
        "www.ini",
        "zend_extension = opcache\nopcache.preload = {dir}/preload.php\n"
            .replace("{dir}", &place.path("").display().to_string())
            .as_str(),
    );
    place.configure(POOLS);
    let master = started(place);
    assert_eq!(changes(&master, || reload(&master, &[])), [true, false]);
}
