//! What a new generation cannot be made from leaves the old one serving, with the reason for who asked; and a stop comes first,
//! whatever else is under way.

use std::fs;
use std::process::{Command, Output};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Master, Place, body, executable, wait_for};
use crate::support::Case;
use crate::support::fcgi;
use crate::support::process::lives;

pub const CASES: &[Case] = &[
    (
        "broken::what_cannot_start_leaves_the_old_generation_serving",
        cannot_start,
    ),
    (
        "broken::a_chroot_that_is_gone_leaves_the_old_generation_serving",
        chroot_gone,
    ),
    ("broken::a_stop_ends_a_start_under_way", stop_in_a_reload),
    ("broken::a_stop_ends_an_upgrade_under_way", stop_in_an_upgrade),
];

const POOL: &str = "[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 2\nphp.ini = {dir}/www.ini\n";

fn place() -> Place {
    let place = Place::new();
    place.write("pid.php", "<?php echo getmypid();");
    place.write(
        "wait.php",
        "<?php echo 'begun'; flush(); while (!file_exists(__DIR__ . '/go')) { usleep(2000); clearstatcache(); } echo ' done';",
    );
    place.write("www.ini", "");
    place.configure(POOL);
    place
}

fn started(place: Place) -> Master {
    let master = place.start_with_control();
    master.said("ready to handle connections");
    wait_for("the first workers", || master.workers("www").len() == 2);
    master
}

fn reload(master: &Master) -> Output {
    let mut command = Command::new(executable());
    command
        .args(["reload", "--force", "--control"])
        .arg(master.place.path("control"));
    command.output().unwrap()
}

/// A reload must fail with a reason, and change nothing.
fn fails(master: &Master, what: &str, reason: &str) {
    let before = master.workers("www");
    let output = reload(master);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains(reason),
        "{what}: {said:?}\n{:?}",
        master.log()
    );
    let now = master.workers("www");
    assert!(before.iter().all(|pid| now.contains(pid)), "{what}: {now:?}");
    // Those that came to nothing may still be there, and count as long as they are.
    wait_for(what, || {
        master.workers("www") == before && master.below("").len() == 1 + before.len()
    });
}

fn succeeds(master: &Master) {
    let before = master.workers("www");
    let output = reload(master);
    assert!(output.status.success(), "{output:?}");
    wait_for("the new workers alone", || {
        let now = master.workers("www");
        now.len() == 2 && now.iter().all(|pid| !before.contains(pid))
    });
}

fn cannot_start() {
    let place = place();
    let crash = place.library(
        "crash",
        "__attribute__((constructor)) static void crash(void) { __builtin_trap(); }",
    );
    // It has made workers, and ends before they are there.
    let falls = place.library(
        "falls",
        "#include <pthread.h>\n#include <sys/time.h>\n#include <unistd.h>\n\
         static void soon(void) { struct itimerval t = {{0, 0}, {0, 300000}}; setitimer(ITIMER_REAL, &t, 0); }\n\
         static void late(void) { sleep(1); }\n\
         __attribute__((constructor)) static void load(void) { pthread_atfork(soon, 0, late); }",
    );
    place.write("throws.php", "<?php throw new Exception('of the preload');");
    let master = started(place);
    let path = |name: &str| master.place.path(name).display().to_string();
    let ini = [
        (
            "an extension that crashes",
            format!("extension = {}", crash.display()),
            "exited on signal",
        ),
        (
            "an extension whose zygote falls",
            format!("extension = {}", falls.display()),
            "exited on signal 14",
        ),
        (
            "a preload that is not there",
            format!("zend_extension = opcache\nopcache.preload = {}", path("nowhere.php")),
            "pool www",
        ),
        (
            "a preload that fails",
            format!("zend_extension = opcache\nopcache.preload = {}", path("throws.php")),
            "pool www",
        ),
    ];
    let served = |what: &str| assert!(!master.get("/pid.php").is_empty(), "{what}");
    for (what, lines, reason) in ini {
        master.place.write("www.ini", &lines);
        fails(&master, what, reason);
        served(what);
    }
    master.place.write("www.ini", "");
    let crashing = format!("php_admin_value[extension] = {}\n", crash.display());
    let conf = [
        (
            "a user that is not there",
            "user = nobody-of-this-name\n",
            "nobody-of-this-name",
        ),
        (
            "a worker that is not there",
            "worker.path = /nowhere/php-pool-worker\n",
            "/nowhere/php-pool-worker",
        ),
        ("a worker that is none", "worker.path = /bin/false\n", "its zygote"),
        (
            "an extension that crashes in each worker",
            &crashing,
            "its workers end as they start",
        ),
        (
            "a folder that is not there",
            "access.log = /nowhere/access.log\n",
            "/nowhere/access.log",
        ),
    ];
    for (what, line, reason) in conf {
        // The last line of its name counts.
        master.place.configure(&format!("{POOL}{line}"));
        fails(&master, what, reason);
        served(what);
        // It also goes on making workers.
        let dead = master.workers("www")[0];
        kill(Pid::from_raw(dead), Signal::SIGKILL).unwrap();
        wait_for("another in its place", || {
            let now = master.workers("www");
            now.len() == 2 && !now.contains(&dead)
        });
    }
    master.place.configure(POOL);
    succeeds(&master);
}

/// Root's alone to configure; what it hides is not seen again, and so its zygote does not need it.
fn chroot_gone() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let place = place();
    let (jail, gone) = (place.path("jail"), place.path("gone"));
    fs::create_dir(&jail).unwrap();
    fs::copy(place.path("pid.php"), jail.join("pid.php")).unwrap();
    place.configure(&format!("{POOL}chroot = {{dir}}/jail\n"));
    let master = started(place);
    let get = || {
        let mut connection = master.connect("sock");
        let params = [
            ("SCRIPT_FILENAME", "/pid.php"),
            ("SCRIPT_NAME", "/pid.php"),
            ("REQUEST_METHOD", "GET"),
        ];
        assert!(connection.send(&fcgi::request(0, &params, b"")));
        body(&connection.reply(1)).parse::<i32>().unwrap()
    };
    get();
    fs::rename(&jail, &gone).unwrap();
    fails(&master, "a chroot that is gone", "jail");
    let dead = get();
    kill(Pid::from_raw(dead), Signal::SIGKILL).unwrap();
    wait_for("another in its place", || {
        let now = master.workers("www");
        now.len() == 2 && !now.contains(&dead)
    });
    get();
    fs::rename(&gone, &jail).unwrap();
    succeeds(&master);
    get();
}

/// A request that runs until there is a file `go`.
fn running(master: &Master) -> fcgi::Connection {
    let mut connection = master.connect("sock");
    master.ask(&mut connection, "/wait.php", 0);
    connection.next_record().expect("it has begun");
    connection
}

/// The master is told to stop, lets its request end, and nothing of what it had begun stays.
fn stops(mut master: Master, mut running: fcgi::Connection, begun: i32) {
    assert!(lives(begun));
    master.signal(Signal::SIGTERM);
    master.said("Terminating ...");
    master.place.write("go", "");
    assert!(String::from_utf8_lossy(&running.reply(1).stdout).ends_with(" done"));
    assert_eq!(master.ended().code(), Some(0), "{:?}", master.log());
    wait_for("what it had begun to end", || !lives(begun));
}

fn stop_in_a_reload() {
    let place = place();
    place.write(
        "endless.php",
        "<?php file_put_contents(__DIR__ . '/begun', getmypid()); while (true) sleep(1);",
    );
    let master = started(place);
    let running = running(&master);
    master.place.configure(&format!(
        "{POOL}php_admin_value[opcache.preload] = {{dir}}/endless.php\n"
    ));
    master.place.write("www.ini", "zend_extension = opcache\n");
    master.signal(Signal::SIGUSR2);
    let begun = || {
        fs::read_to_string(master.place.path("begun"))
            .unwrap_or_default()
            .parse::<i32>()
    };
    wait_for("the start to be under way", || begun().is_ok());
    let begun = begun().unwrap();
    stops(master, running, begun);
}

fn stop_in_an_upgrade() {
    let place = place().with_own_program();
    let master = started(place);
    let running = running(&master);
    let new = master.place.write("new", "");
    let asked = master.place.path("asked");
    fs::write(
        &new,
        format!("#!/bin/sh\necho $$ >{}\nexec sleep 600\n", asked.display()),
    )
    .unwrap();
    fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::rename(&new, master.place.path("php-pool")).unwrap();
    master.signal(Signal::SIGUSR2);
    let begun = || fs::read_to_string(&asked).unwrap_or_default().trim().parse::<i32>();
    wait_for("the new program to be asked", || begun().is_ok());
    let begun = begun().unwrap();
    stops(master, running, begun);
}
