//! Start-up: order, messages, exit codes, sockets.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Place, ask, body, exists, wait_for};
use crate::support::Case;
use crate::support::fcgi::{Address, Connection};
use crate::support::process::lives;

pub const CASES: &[Case] = &[
    (
        "start::a_pool_serves_and_leaves_nothing_behind",
        a_pool_serves_and_leaves_nothing_behind,
    ),
    (
        "start::what_cannot_be_started_says_why",
        what_cannot_be_started_says_why,
    ),
    ("start::a_proc_of_others_ends_the_start", proc_of_others),
    ("start::why_php_does_not_start_is_told_in_its_own_words", last_words),
    ("start::what_php_displays_at_its_start_is_said_once", displayed),
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
    (
        "start::only_a_socket_or_a_link_makes_way_for_the_socket",
        what_is_in_the_sockets_place,
    ),
    ("start::serve_writes_the_log_that_the_file_names", the_log_that_is_named),
    ("start::sockets_are_taken_over", sockets_are_taken_over),
    ("start::a_socket_of_systemd_is_taken_over", systemd_socket),
    ("start::a_socket_is_for_those_on_its_list", acl),
    (
        "start::a_socket_of_systemd_is_given_to_its_list_and_nothing_in_its_place_is",
        given_socket,
    ),
    ("start::a_daemon_needs_no_descriptors", without_descriptors),
    ("start::a_test_says_what_php_fpm_says", test_lines),
    ("start::limits_of_global_are_everybodys", limits_of_global),
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

/// Also when its end is seen before its last words are read; and whoever asks for the status is not sent to a log.
fn last_words() {
    let place = Place::new();
    let mut pools = "[good]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\n".to_owned();
    for n in 0..5 {
        pools += &format!(
            "[bad{n}]\n{{user}}\nlisten = {{dir}}/bad{n}\npm = static\npm.max_children = 1\nphp.ini = {{dir}}/bad.ini\n"
        );
    }
    place.configure(&pools);
    place.write(
        "bad.ini",
        "zend_extension = opcache\nlog_errors = 1\nopcache.preload = /nowhere/preload.php\n",
    );
    let master = place.start_with_control();
    let words = "PHP module start-up failed: PHP Fatal error:  Failed opening required '/nowhere/preload.php'";
    for n in 0..5 {
        master.said(&format!("[pool bad{n}] PHP cannot start: {words}"));
    }
    assert_eq!(master.count("PHP cannot start: its zygote"), 0);
    wait_for("its status", || master.status("bad0").contains("last failure:"));
    let text = master.status("bad0");
    assert!(text.contains(&format!("last failure:         {words}")), "{text}");
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

fn what_is_in_the_sockets_place() {
    let place = || {
        let place = Place::new();
        place.write("hello.php", "<?php echo 'hello';");
        place.configure("[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\n");
        place
    };
    let kept = place();
    kept.write("sock", "worth something");
    let mut master = kept.start(&[]);
    assert_eq!(master.ended().code(), Some(78));
    master.said("unable to bind listening socket");
    assert_eq!(fs::read(master.place.path("sock")).unwrap(), b"worth something");

    let dead = place();
    drop(UnixListener::bind(dead.path("sock")).unwrap());
    let dangling = place();
    std::os::unix::fs::symlink("/nosuch/sock", dangling.path("sock")).unwrap();
    let to_a_file = place();
    std::os::unix::fs::symlink(to_a_file.write("other", "worth something"), to_a_file.path("sock")).unwrap();
    for place in [dead, dangling, to_a_file] {
        let master = place.serve();
        assert_eq!(master.get("/hello.php"), "hello");
        let other = fs::read(master.place.path("other"));
        assert!(other.is_err() || other.unwrap() == b"worth something");
    }
}

fn displayed() {
    let place = Place::new();
    place.write("pid.php", "<?php echo getmypid();");
    place.write(
        "own.ini",
        "extension = there-is-none\nlog_errors = 0\ndisplay_errors = 1\ndisplay_startup_errors = 1\n",
    );
    place.configure(
        "[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\npm.max_requests = 1\nphp.ini = {dir}/own.ini\n\
         catch_workers_output = yes\n",
    );
    let mut master = place.serve();
    for _ in 0..3 {
        assert!(master.get("/pid.php").parse::<i32>().is_ok());
    }
    master.signal(Signal::SIGTERM);
    assert!(master.ended().success());
    let mut log = master.log();
    log.retain(|line| line.contains("'there-is-none' (tried") && !line.contains("PHP message"));
    assert_eq!(log.len(), 1, "{log:#?}");
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

fn systemd_socket() {
    let run = |pid: &str| {
        let place = Place::new();
        place.write("x.php", "<?php echo getenv('LISTEN_FDS') === false ? 'here' : 'told';");
        place.configure("[www]\n{user}\nlisten = {dir}/sock\nclear_env = no\npm = static\npm.max_children = 1\n");
        let listener = UnixListener::bind(place.path("sock")).unwrap();
        let script = format!(
            "exec 3<&0; LISTEN_PID={pid} LISTEN_FDS=1 LISTEN_FDNAMES=listen exec {fpm} -F -O -n -y {conf} 2>{log}",
            fpm = place.path("php-fpm").display(),
            conf = place.path("pool.conf").display(),
            log = place.path("said").display()
        );
        let mut command = crate::support::process::that_dies_with_us("KILL", "sh");
        command
            .arg("-c")
            .arg(script)
            .stdin(std::os::fd::OwnedFd::from(listener));
        let child = crate::support::process::spawn(command).unwrap();
        (place, child)
    };
    let said = |place: &Place| fs::read_to_string(place.path("said")).unwrap_or_default();

    let (place, mut child) = run("$$");
    let inode = fs::metadata(place.path("sock")).unwrap().ino();
    wait_for("it is ready", || said(&place).contains("ready to handle connections"));
    let mut connection = Connection::open(&Address::Unix(place.path("sock"))).unwrap();
    ask(&place, &mut connection, "/x.php");
    assert_eq!(body(&connection.reply(1)), "here");
    let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let after = fs::metadata(place.path("sock")).unwrap().ino();
    assert_eq!(after, inode, "the socket of another was removed");

    // Meant for another process: the path is taken, by that socket.
    let (place, mut child) = run("1");
    assert_eq!(child.wait().unwrap().code(), Some(78), "{}", said(&place));
    assert!(
        said(&place).contains("Another FPM instance seems to already listen on"),
        "{}",
        said(&place)
    );
}

fn acl() {
    if !nix::unistd::geteuid().is_root() {
        return; // what another user may do only root can try
    }
    let place = Place::new();
    place.configure(
        "[www]\n{user}\nlisten = {dir}/sock\nlisten.mode = 0600\nlisten.owner = daemon\nlisten.acl_users = nobody\npm = ondemand\n\
         pm.max_children = 1\n",
    );
    let master = place.serve();
    let connects_as = |uid| connects_as(uid, &master.place.path("sock"));
    assert_eq!(connects_as(nobody()), Ok(()));
    assert_eq!(connects_as(nobody() - 1), Err(std::io::ErrorKind::PermissionDenied));
    master.said("WARNING: [pool www] ACL set, listen.owner = 'daemon' is ignored");
    let daemon = nix::unistd::User::from_name("daemon").unwrap().unwrap().uid.as_raw();
    assert_eq!(connects_as(daemon), Err(std::io::ErrorKind::PermissionDenied));
}

fn nobody() -> u32 {
    nix::unistd::User::from_name("nobody").unwrap().unwrap().uid.as_raw()
}

fn connects_as(uid: u32, path: &Path) -> Result<(), std::io::ErrorKind> {
    let path = path.to_owned();
    let thread = std::thread::spawn(move || {
        // Of this thread alone, whose capabilities over files go with it.
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(uid));
        std::os::unix::net::UnixStream::connect(path)
            .map(drop)
            .map_err(|error| error.kind())
    });
    thread.join().unwrap()
}

fn given_socket() {
    if !nix::unistd::geteuid().is_root() {
        return; // what another user may do only root can try
    }
    let place = Place::new();
    let (sock, other) = (place.path("sock"), place.path("other"));
    let bound = [&sock, &other].map(|path| {
        let socket = UnixListener::bind(path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        socket
    });
    let give = |whom: &str| {
        let mut command = Command::new(crate::harness::executable());
        command.args(["give-socket", whom, "www"]).arg(&sock);
        let out = command.output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        if out.status.success() { Ok(()) } else { Err(said) }
    };
    let owner = |path: &Path| fs::symlink_metadata(path).unwrap().uid();
    assert_eq!(connects_as(nobody(), &sock), Err(std::io::ErrorKind::PermissionDenied));
    assert_eq!(give("--acl-user=nobody"), Ok(()));
    assert_eq!((connects_as(nobody(), &sock), owner(&sock)), (Ok(()), 0));
    assert_eq!(give("--owner=nobody"), Ok(()));
    assert_eq!(owner(&sock), nobody());

    // The folder may be somebody's who has put something else there meanwhile.
    fs::remove_file(&sock).unwrap();
    std::os::unix::fs::symlink(&other, &sock).unwrap();
    for whom in ["--acl-user=nobody", "--owner=nobody"] {
        let said = give(whom).unwrap_err();
        assert!(said.contains("something else has taken its place"), "{said}");
    }
    assert_eq!(owner(&other), 0);
    assert_eq!(connects_as(nobody(), &other), Err(std::io::ErrorKind::PermissionDenied));
    drop(bound);
}

fn without_descriptors() {
    let place = Place::new();
    place.write(
        "x.php",
        "<?php error_log('a line'); file_put_contents('php://stderr', \"another\\n\"); echo 'here';",
    );
    place.configure(
        "[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\ncatch_workers_output = yes\n",
    );
    let script = format!(
        "exec {fpm} -D -n -y {conf} 0<&- 1>&- 2>&-",
        fpm = place.path("php-fpm").display(),
        conf = place.path("pool.conf").display()
    );
    let status = Command::new("sh").arg("-c").arg(script).status().unwrap();
    assert_eq!(status.code(), Some(0));
    let pid: i32 = fs::read_to_string(place.path("pid")).unwrap().parse().unwrap();
    let mut connection = Connection::open(&Address::Unix(place.path("sock"))).unwrap();
    ask(&place, &mut connection, "/x.php");
    assert_eq!(body(&connection.reply(1)), "here");
    let log = || fs::read_to_string(place.path("error.log")).unwrap();
    wait_for("what the script said", || log().contains("another"));
    // Every line is whole, and is one of the log.
    for line in log().lines() {
        assert!(line.starts_with('['), "{line}");
    }
    // What a library prints goes to the error log, as with php-fpm.
    let log = place.path("error.log");
    for (fd, wanted) in [Path::new("/dev/null"), Path::new("/dev/null"), &log]
        .iter()
        .enumerate()
    {
        let target = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
        assert_eq!(target, *wanted, "descriptor {fd} of the daemon");
    }
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    wait_for("the daemon ends", || !lives(pid));
}

fn test_lines() {
    let php_fpm = std::env::var("PHP_FPM").unwrap_or_else(|_| "/usr/sbin/php-fpm8.2".to_owned());
    let place = Place::new();
    place.configure("[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\n");
    let run = |program: &std::path::Path| {
        let output = Command::new(program)
            .arg("-t")
            .arg("-y")
            .arg(place.path("pool.conf"))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        // The time of day is no part of it.
        let cut = |line: &str| line.split_once("] ").map_or(line, |(_, rest)| rest).to_owned();
        let lines: Vec<String> = text.split('\n').map(cut).collect();
        (output.status.code(), output.stdout, lines)
    };
    let ours = run(&place.path("php-fpm"));
    assert_eq!(ours, run(std::path::Path::new(&php_fpm)));
    let file = place.path("pool.conf").display().to_string();
    assert_eq!(
        ours.2[0],
        format!("NOTICE: configuration file {file} test is successful")
    );
    assert!(!exists(&place.path("sock")) && !exists(&place.path("pid")));
}

/// In a container whose /proc is that of the machine no worker could be told from a stranger.
fn proc_of_others() {
    if !nix::unistd::geteuid().is_root() {
        return; // who makes pid namespaces
    }
    let place = Place::new();
    place.configure("[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\n");
    // One that starts all the same must end with the test.
    let mut command = Command::new("timeout");
    command
        .args(["--signal=KILL", "20", "unshare", "--pid", "--fork", "--kill-child=KILL"])
        .arg(place.path("php-fpm"))
        .args(["-F", "-O", "-n", "-y"])
        .arg(place.path("pool.conf"));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("ERROR: /proc does not show this process as 1: it must be there"),
        "{said}"
    );
    assert!(said.contains("FPM initialization failed"), "{said}");
    assert_eq!(output.status.code(), Some(78));
}

/// Under systemd stderr is the journal: with `error_log` the lines are in that file, and there alone.
fn the_log_that_is_named() {
    let place = Place::new();
    place.configure("[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\n");
    let master = place.start_as_configured();
    let log = || fs::read_to_string(master.place.path("error.log")).unwrap_or_default();
    wait_for("the start in the file", || {
        log().contains("ready to handle connections")
    });
    master.signal(Signal::SIGUSR2);
    wait_for("a reload in the file", || {
        log().matches("ready to handle connections").count() == 2
    });
    // The file of a rotated log is opened anew.
    fs::rename(master.place.path("error.log"), master.place.path("error.log.1")).unwrap();
    master.signal(Signal::SIGUSR1);
    wait_for("the new file", || log().contains("error log file re-opened"));
    assert_eq!(master.count("Reloading in progress"), 0, "{:?}", master.log());
}

/// `process.priority` and `rlimit_*` of `[global]` are the master's, and what a pool has that does not say otherwise.
fn limits_of_global() {
    let place = Place::new();
    place.write("hello.php", "<?php echo 'hello';");
    place.configure(
        "process.priority = 4\nrlimit_files = 3000\nrlimit_core = 4096\n\
         [www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\n",
    );
    let master = place.serve_with(1);
    for pid in [master.pid(), master.workers("www")[0]] {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        let limits = read("limits");
        let of = |name: &str| -> Vec<String> {
            let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().take(2).map(str::to_owned).collect()
        };
        assert_eq!(of("Max open files"), ["3000", "3000"]);
        assert_eq!(of("Max core file size"), ["4096", "4096"]);
        let stat = read("stat");
        let nice = stat.rsplit(") ").next().unwrap().split(' ').nth(16).unwrap();
        assert_eq!(nice, "4", "{stat}");
    }
}
