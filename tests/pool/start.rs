//! Start-up: order, messages, exit codes, sockets.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Case;
use crate::harness::{Place, exists, lives, wait_for};

pub const CASES: &[Case] = &[
    (
        "start::a_pool_serves_and_leaves_nothing_behind",
        a_pool_serves_and_leaves_nothing_behind,
    ),
    (
        "start::what_cannot_be_started_says_why",
        what_cannot_be_started_says_why,
    ),
    (
        "start::a_pool_that_cannot_start_does_not_take_the_others_down",
        one_bad_pool,
    ),
    (
        "start::in_the_background_the_caller_waits_for_success",
        in_the_background,
    ),
    (
        "start::the_socket_has_the_mode_that_was_asked_for",
        the_socket_has_its_mode,
    ),
    ("start::sockets_are_taken_over", sockets_are_taken_over),
];

fn a_pool_serves_and_leaves_nothing_behind() {
    let place = Place::new();
    place.write("pid.php", "<?php echo getmypid();");
    place.configure("[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 2\n");
    let mut master = place.serve();
    let pid: i32 = master.get("/pid.php").parse().unwrap();
    assert!(master.workers("www").contains(&pid));
    assert_eq!(
        fs::read_to_string(master.place.path("pid")).unwrap(),
        master.pid().to_string()
    );
    let zygote = master.zygote("www");
    master.signal(Signal::SIGTERM);
    assert_eq!(master.ended().code(), Some(0));
    master.said("exiting, bye-bye!");
    let order = [
        "fpm is running, pid",
        "ready to handle connections",
        "Terminating ...",
        "exiting, bye-bye!",
    ];
    let lines = master.log();
    let at: Vec<_> = order
        .iter()
        .map(|text| lines.iter().position(|line| line.contains(text)).unwrap())
        .collect();
    assert!(at.is_sorted(), "{lines:?}");
    assert!(!exists(&master.place.path("pid")) && !exists(&master.place.path("sock")));
    assert!(!lives(zygote) && !lives(pid));
}

fn what_cannot_be_started_says_why() {
    let cases = [
        ("user = nosuchuser", "cannot get uid for user 'nosuchuser'", 78),
        (
            "{user}\nlisten.owner = nosuchuser",
            "cannot get uid for user 'nosuchuser'",
            78,
        ),
        (
            "{user}\naccess.log = /nosuch/folder/log",
            "failed to open access log (/nosuch/folder/log): No such file",
            78,
        ),
        ("{user}\nworker.path = /nosuch/worker", "/nosuch/worker", 70),
        ("{user}\nnosuch = 1", "unknown entry 'nosuch'", 78),
    ];
    for (lines, said, status) in cases {
        if !nix::unistd::geteuid().is_root() && lines.starts_with("user") {
            continue;
        }
        let place = Place::new();
        place.configure(&format!(
            "[www]\n{lines}\nlisten = {{dir}}/sock\npm = static\npm.max_children = 1\n"
        ));
        let mut master = place.start(&[]);
        let code = master.ended().code();
        master.said(said);
        master.said("FPM initialization failed");
        assert_eq!(code, Some(status), "{lines}");
        assert!(
            !exists(&master.place.path("sock")),
            "{lines}: its socket is left behind"
        );
    }

    let place = Place::new();
    place.configure("[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\n");
    let _other = UnixListener::bind(place.path("sock")).unwrap();
    let mut master = place.start(&[]);
    assert_eq!(master.ended().code(), Some(78));
    master.said("Another FPM instance seems to already listen on");
    assert!(
        exists(&master.place.path("sock")),
        "it has removed the socket of another"
    );
}

fn one_bad_pool() {
    let place = Place::new();
    place.write("x.php", "<?php echo 'good';");
    place.configure(
        "[bad]\n{user}\nlisten = {dir}/bad\npm = static\npm.max_children = 1\nworker.path = /bin/false\n\
         [good]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\n",
    );
    let master = place.serve();
    master.said("[pool bad] PHP cannot start: its zygote");
    assert_eq!(master.get("/x.php"), "good");
}

fn in_the_background() {
    let run = |lines: &str| {
        let place = Place::new();
        place.write("x.php", "<?php echo 'here';");
        place.configure(&format!(
            "[www]\n{lines}\nlisten = {{dir}}/sock\npm = static\npm.max_children = 1\n"
        ));
        let mut command = Command::new(place.path("php-fpm"));
        let status = command
            .arg("-D")
            .arg("-y")
            .arg(place.path("pool.conf"))
            .arg("-n")
            .status()
            .unwrap();
        (place, status.code())
    };
    let (place, status) = run("{user}");
    assert_eq!(status, Some(0));
    let pid: i32 = fs::read_to_string(place.path("pid")).unwrap().parse().unwrap();
    let log = fs::read_to_string(place.path("error.log")).unwrap();
    assert!(log.contains("ready to handle connections"), "{log}");
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    wait_for("the daemon ends", || !lives(pid));

    let (_place, status) = run("{user}\nworker.path = /nosuch");
    assert_eq!(status, Some(70));
}

fn the_socket_has_its_mode() {
    let place = Place::new();
    place.configure("[www]\n{user}\nlisten = {dir}/sock\nlisten.mode = 0606\npm = ondemand\npm.max_children = 1\n");
    let master = place.serve();
    assert_eq!(
        fs::metadata(master.place.path("sock")).unwrap().permissions().mode() & 0o777,
        0o606
    );

    if nix::unistd::geteuid().is_root() {
        let place = Place::new();
        place.configure(
            "[www]\n{user}\nlisten = {dir}/sock\nlisten.owner = 1234\nlisten.group = 4321\npm = ondemand\npm.max_children = 1\n",
        );
        let master = place.serve();
        let meta = fs::metadata(master.place.path("sock")).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (1234, 4321, 0o660));
    }
}

fn sockets_are_taken_over() {
    use std::os::fd::AsRawFd;
    let place = Place::new();
    place.write("x.php", "<?php var_dump(getenv('FPM_SOCKETS'));");
    place.configure("[www]\n{user}\nlisten = {dir}/sock\nclear_env = no\npm = static\npm.max_children = 1\n");
    let listener = UnixListener::bind(place.path("sock")).unwrap();
    fs::set_permissions(place.path("sock"), fs::Permissions::from_mode(0o622)).unwrap();
    let inode = fs::metadata(place.path("sock")).unwrap().ino();
    // A shell passes the descriptor on as 9.
    let script = format!(
        "exec 9<&0; FPM_SOCKETS={sock}=9 exec {fpm} -F -O -n -y {conf} 2>{log}",
        sock = place.path("sock").display(),
        fpm = place.path("php-fpm").display(),
        conf = place.path("pool.conf").display(),
        log = place.path("said").display()
    );
    let stdin = std::os::fd::OwnedFd::from(listener.try_clone().unwrap());
    let mut command = crate::support::process::that_dies_with_us("KILL", "sh");
    command.arg("-c").arg(script).stdin(stdin);
    let mut child = crate::support::process::spawn(command).unwrap();
    let said = || fs::read_to_string(place.path("said")).unwrap_or_default();
    wait_for("it is ready", || said().contains("ready to handle connections"));
    assert!(
        said().contains(&format!(
            "using inherited socket fd=9, \"{}\"",
            place.path("sock").display()
        )),
        "{}",
        said()
    );
    let meta = fs::metadata(place.path("sock")).unwrap();
    assert_eq!(
        (meta.ino(), meta.mode() & 0o777),
        (inode, 0o622),
        "the socket is another one, or changed"
    );
    assert!(listener.as_raw_fd() > 2);
    let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
