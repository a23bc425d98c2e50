//! What a reload renews, and how many workers there are meanwhile.

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::harness::{Master, Place, body, wait_for};
use crate::support::Case;

pub const CASES: &[Case] = &[
    ("renewal::only_what_has_changed_is_renewed", only_what_has_changed),
    ("renewal::what_is_preloaded_is_always_renewed", preloaded),
    ("renewal::a_new_generation_has_compiled_what_the_old_one_used", warm),
    ("renewal::a_sleeping_pool_moves_to_another_socket", asleep),
    ("renewal::a_pool_without_workers_listens_on", without_workers),
    ("renewal::the_status_socket_follows_the_configuration", status_socket),
    ("renewal::overlap_bounds_the_workers_and_fails_no_request", overlap),
    (
        "renewal::of_several_old_generations_the_oldest_is_cut_first",
        oldest_first,
    ),
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
    crate::support::process::copy_program(&worker, &link);
    assert_eq!(changes(&master, || reload(&master, &[])), [true, false]);
    assert_eq!(changes(&master, || reload(&master, &[])), [false, false]);
    // Where it is asked for, everything; and by the signal, for which deployments wait.
    assert_eq!(changes(&master, || reload(&master, &["--force"])), [true, true]);
    let before = answers(&master);
    master.signal(Signal::SIGUSR2);
    wait_for("both to be new", || {
        answers(&master).iter().zip(&before).all(|(now, before)| now != before)
    });
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

/// Only where it is asked for, and without running any of it. What cannot be compiled any more is left out, and delays nothing.
fn warm() {
    for (limit, wanted) in [("30s", true), ("0", false)] {
        let place = place();
        place.write(
            "www.ini",
            "zend_extension = opcache\nopcache.file_update_protection = 0\n",
        );
        let names = ["used.php", "library.php", "broken.php", "queue.php"];
        let code = "<?php file_put_contents(__DIR__ . '/ran', '.', FILE_APPEND);";
        names.iter().for_each(|name| drop(place.write(name, code)));
        place.write(
            "used.php",
            &format!("{code} foreach (['library', 'broken', 'queue'] as $n) require __DIR__ . \"/$n.php\";"),
        );
        place.write(
            "cached.php",
            "<?php foreach (['used', 'library', 'broken', 'queue'] as $n) echo (int) opcache_is_script_cached(__DIR__ . \"/$n.php\");",
        );
        place.write("ran", "");
        fs::set_permissions(place.path("ran"), std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        place.configure(&POOLS.replace("[other]", &format!("reload.warm = {limit}\n[other]")));
        let master = started(place);
        assert_eq!(master.get("/cached.php"), "0000");
        master.get("/used.php");
        assert_eq!(master.get("/cached.php"), "1111");
        let ran = || fs::read_to_string(master.place.path("ran")).unwrap().len();
        assert_eq!(ran(), names.len());
        master.place.write("broken.php", "<?php this is none");
        fs::remove_file(master.place.path("queue.php")).unwrap();
        nix::unistd::mkfifo(
            &master.place.path("queue.php"),
            nix::sys::stat::Mode::from_bits_truncate(0o666),
        )
        .unwrap();
        let before = master.workers("www");
        reload(&master, &["--force"]);
        wait_for("the new workers alone", || {
            let now = master.workers("www");
            now.len() == 1 && !before.contains(&now[0])
        });
        assert_eq!(master.get("/cached.php"), if wanted { "1100" } else { "0000" });
        assert_eq!(ran(), names.len(), "something has been run");
        // The zygote is as it was: its workers run what they have not been compiled from.
        master.place.write("queue.php.new", code);
        fs::rename(master.place.path("queue.php.new"), master.place.path("queue.php")).unwrap();
        master.place.write("broken.php", code);
        master.get("/used.php");
        assert_eq!(ran(), 2 * names.len());
    }
}

fn asleep() {
    let place = place();
    let conf = "[www]\n{user}\nlisten = {dir}/sock\npm = ondemand\npm.max_children = 1\nzygote_idle_time = 300ms\n";
    place.configure(conf);
    let master = place.serve();
    wait_for("it to sleep", || master.below("zygote").is_empty());
    master.place.configure(&conf.replace("/sock", "/another"));
    master.signal(Signal::SIGUSR2);
    master.said_often("ready to handle connections", 2);
    assert!(!master.get_on("another", "/pid.php").is_empty());
}

fn without_workers() {
    let place = place();
    place.configure("[www]\n{user}\nlisten = {dir}/sock\npm = ondemand\npm.max_children = 1\n");
    let master = place.serve();
    for reloads in 1..4 {
        master.signal(Signal::SIGUSR2);
        master.said_often("ready to handle connections", 1 + reloads);
    }
    assert_eq!(master.count("ERROR"), 0, "{:?}", master.log());
    assert!(!master.get("/pid.php").is_empty());
}

fn status_socket() {
    let place = place();
    let conf = "[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\npm.status_listen = {dir}/status\n\
                pm.status_path = /before\n";
    place.configure(conf);
    let master = place.serve();
    let mut kept = master.connect("status");
    assert!(master.ask_kept(&mut kept, "/before").contains("pool:"));
    master.place.configure(&conf.replace("/before", "/after"));
    master.signal(Signal::SIGUSR2);
    master.said_often("ready to handle connections", 2);
    assert!(master.get_on("status", "/after").contains("pool:"));
    assert_eq!(master.get_on("status", "/before"), "File not found.\n");
    assert!(
        !master.ask_kept(&mut kept, "/before").is_empty(),
        "a connection that is kept outlives the reload"
    );
    assert_eq!(master.count("ERROR"), 0, "{:?}", master.log());
}

fn overlap() {
    for (overlap, new_workers) in [(1, 1), (0, 0)] {
        let place = place();
        place.configure(&format!(
            "[www]\n{{user}}\nlisten = {{dir}}/sock\npm = static\npm.max_children = 2\nreload.overlap = {overlap}\n"
        ));
        let master = place.serve_with(2);
        let old = master.workers("www");
        let mut running: Vec<_> = (0..2).map(|_| master.connect("sock")).collect();
        for connection in &mut running {
            master.ask(connection, "/sleep.php?ms=8000", 0);
            connection.next_record().expect("it has begun");
        }
        for round in 2..=3 {
            master.signal(Signal::SIGUSR2);
            master.said_often("ready to handle connections", round);
            let workers = master.workers("www");
            assert!(old.iter().all(|pid| workers.contains(pid)), "both still run");
            assert!(workers.len() <= 2 + overlap, "{workers:?} with an overlap of {overlap}");
        }
        // Who comes now is served by the worker that there is room for, or when there is room for one.
        let mut newcomer = master.connect("sock");
        master.ask(&mut newcomer, "/pid.php", 0);
        let reply = body(&newcomer.reply(1));
        assert!(!old.contains(&reply.parse().unwrap()), "the new generation serves");
        if new_workers > 0 {
            assert!(
                running[0].record_within(std::time::Duration::ZERO).is_none(),
                "the old ones still run"
            );
        }
        for connection in &mut running {
            assert_eq!(body(&connection.reply(1)), "done");
        }
        wait_for("the new generation is whole, and alone", || {
            let workers = master.workers("www");
            workers.len() == 2 && old.iter().all(|pid| !workers.contains(pid))
        });
    }
}

fn oldest_first() {
    let place = place();
    place.configure(
        "log_level = debug\nprocess_control_timeout = 2s\n[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 2\n",
    );
    place.write("long.php", "<?php echo getmypid(); flush(); sleep(600);");
    let master = place.serve_with(2);
    let mut busy = Vec::new();
    for round in 2..=4 {
        // Each limit is so much later than the one before.
        std::thread::sleep(std::time::Duration::from_millis(500));
        let mut connection = master.connect("sock");
        master.ask(&mut connection, "/long.php", 0);
        let first = connection.next_record().expect("the pid comes first").content;
        let text = String::from_utf8_lossy(&first).into_owned();
        busy.push((connection, text.rsplit('\n').next().unwrap().to_owned()));
        master.signal(Signal::SIGUSR2);
        master.said_often("ready to handle connections", round);
    }
    let ends = busy
        .iter()
        .map(|(_, pid)| master.said(&format!("child {pid} exited on signal")));
    let ends: Vec<_> = ends.collect();
    let log = master.log();
    let places: Vec<_> = ends.iter().map(|end| log.iter().position(|line| line == end)).collect();
    assert!(places.is_sorted(), "{log:?}");
    for (connection, _) in &mut busy {
        assert!(connection.reply(1).end.is_none());
    }
}
