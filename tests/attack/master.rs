//! What a master that is root keeps of root, that it is enough, and what is said where something is refused.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::harness::{Master, Place, body, wait_for};
use crate::support::fcgi::{self, Address, Connection};
use crate::support::process::lives;

/// Capabilities, by the kernel's numbers.
const CHOWN: u32 = 0;
const DAC_OVERRIDE: u32 = 1;
const DAC_READ_SEARCH: u32 = 2;
const KILL: u32 = 5;
const SETGID: u32 = 6;
const SETUID: u32 = 7;
const NET_BIND_SERVICE: u32 = 10;
const SYS_PTRACE: u32 = 19;
const SYS_NICE: u32 = 23;
/// Without those for new sockets.
const KEPT: &[u32] = &[
    DAC_OVERRIDE,
    DAC_READ_SEARCH,
    KILL,
    SETGID,
    SETUID,
    SYS_PTRACE,
    SYS_NICE,
];

pub fn trials() -> Vec<Trial> {
    let cases: [(&str, fn()); 6] = [
        ("master::keeps_only_the_capabilities_it_needs", only_what_it_needs),
        ("master::under_systemd_keeps_none_for_sockets", none_for_sockets),
        ("master::a_reload_and_all_else_works_with_them", enough),
        ("master::what_is_refused_is_said", refused),
        ("master::a_tenants_logs_are_his_error_alone", tenants_logs),
        ("master::a_tenants_socket_is_his_error_alone", tenants_socket),
    ];
    let trial = |(name, case): (&str, fn())| {
        Trial::test(name, move || {
            case();
            Ok(())
        })
    };
    cases.into_iter().map(trial).collect()
}

/// The sets of every thread that there is.
fn sets(pid: i32) -> Vec<[u64; 5]> {
    let task = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let set = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    // One that helps for a moment may have gone.
    task.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok())
        .map(|status| ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"].map(|name| set(&status, name)))
        .collect()
}

fn assert_keeps(master: &Master, kept: &[u32]) {
    let kept = kept.iter().fold(0, |set, capability| set | 1u64 << capability);
    let bounding = sets(std::process::id() as i32)[0][3];
    for set in sets(master.pid()) {
        assert_eq!(
            set.map(|set| format!("{set:x}")),
            [0, kept, kept, bounding, 0].map(|set| format!("{set:x}"))
        );
    }
}

const POOL: &str = "[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\n";

fn only_what_it_needs() {
    let place = Place::new();
    place.configure(POOL);
    let master = place.serve_with(1);
    assert_keeps(&master, &[KEPT, &[CHOWN, NET_BIND_SERVICE]].concat());
}

fn none_for_sockets() {
    let place = Place::new();
    place.configure(POOL);
    // As systemd starts it: the socket is descriptor 3. Perl is in every Debian.
    let script = format!(
        "#!/usr/bin/perl\nuse Socket; use POSIX ();\n$^F = 64;\nsocket(S, PF_UNIX, SOCK_STREAM, 0) or die;\n\
         bind(S, pack_sockaddr_un('{socket}')) or die; listen(S, 8) or die;\nPOSIX::dup2(fileno(S), 3);\n\
         $ENV{{LISTEN_PID}} = $$; $ENV{{LISTEN_FDS}} = 1;\nexec('{real}', @ARGV);\n",
        socket = place.path("sock").display(),
        real = place.path("real/php-fpm").display(),
    );
    wrap(&place, &script);
    let master = place.serve_with(1);
    assert_eq!(master.count("using inherited socket"), 1);
    assert_keeps(&master, KEPT);
}

/// Puts a script in the place of the executable, which moves to `real/`.
fn wrap(place: &Place, script: &str) {
    fs::create_dir(place.path("real")).unwrap();
    fs::rename(place.path("php-fpm"), place.path("real/php-fpm")).unwrap();
    place.write("php-fpm", script);
    fs::set_permissions(place.path("php-fpm"), fs::Permissions::from_mode(0o755)).unwrap();
}

/// Everything for which a running master needs root: each line of this says what for.
fn enough() {
    let place = Place::new();
    // Not below /tmp, which is everybody's.
    let of_root = tempfile::tempdir_in("/var/lib").unwrap();
    fs::set_permissions(of_root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let of_nobody = of_root.path().join("access.log");
    place.write("who.php", "<?php echo posix_getuid(), ' ', getmypid();");
    // Nothing but SIGKILL ends it.
    let stubborn =
        "<?php\nset_time_limit(0); pcntl_sigprocmask(SIG_BLOCK, range(1, 31)); while (true)\nusleep(50_000);";
    place.write("slow.php", stubborn);
    fs::create_dir(place.path("jail")).unwrap();
    fs::write(
        place.path("jail/root.php"),
        "<?php echo getmypid(), ' ', implode(',', array_diff(scandir('/'), ['.', '..']));",
    )
    .unwrap();
    let www = format!("{POOL}access.log = {}\n", of_nobody.display());
    place.configure(&www);
    let master = place.start(&["-d", "extension=posix"]);
    master.said("ready to handle connections");

    let port = (600..1024).find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
    let port = port.expect("a port below 1024 is free").local_addr().unwrap().port();
    master.place.configure(&format!(
        "{www}slowlog = {{dir}}/slow.log\nrequest_slowlog_timeout = 200ms\nrequest_terminate_timeout = 1s\n\
         [low]\nuser = nobody\ngroup = nogroup\nlisten = 127.0.0.1:{port}\npm = static\npm.max_children = 1\n\
         chroot = {{dir}}/jail\nprocess.priority = -5\nrlimit_core = unlimited\n\
         [owned]\nuser = nobody\ngroup = nogroup\nlisten = {{dir}}/owned.sock\nlisten.owner = www-data\nlisten.mode = 0600\n\
         pm = static\npm.max_children = 1\n"
    ));
    master.signal(Signal::SIGUSR2);
    master.said_often("ready to handle connections", 2);

    // NET_BIND_SERVICE; and what zygotes need is theirs again: SETUID, SETGID, SYS_CHROOT, SYS_NICE, SYS_RESOURCE.
    let mut low = Connection::open(&Address::Tcp("127.0.0.1".to_owned(), port)).unwrap();
    let script = [("SCRIPT_FILENAME", "/root.php"), ("REQUEST_METHOD", "GET")];
    low.send(&fcgi::request(0, &script, b""));
    let answer = body(&low.reply(1));
    let (pid, root) = answer.split_once(' ').unwrap();
    assert_eq!(root, "root.php");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    assert_eq!(
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(16),
        Some("-5"),
        "{stat}"
    );
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    assert!(
        limits
            .lines()
            .any(|line| line.starts_with("Max core file size") && line.contains("unlimited            unlimited")),
        "{limits}"
    );
    assert_eq!(sets(pid.parse().unwrap())[0][1], 0);
    // CHOWN
    let owned = fs::metadata(master.place.path("owned.sock")).unwrap();
    assert_eq!((owned.uid(), owned.mode() & 0o777), (33, 0o600));
    assert!(master.get_on("owned.sock", "/who.php").starts_with("65534 "));

    // SYS_PTRACE, KILL; SETUID and SETGID for the slowlog in a folder that is not root's alone.
    let mut slow = master.connect("sock");
    master.ask(&mut slow, "/slow.php", 0);
    master.said("finished trace of");
    let record = fs::read_to_string(master.place.path("slow.log")).unwrap();
    assert!(record.contains("\nduration = ") && !record.contains("+++"), "{record}");
    assert_eq!(fs::metadata(master.place.path("slow.log")).unwrap().uid(), 33);
    master.said("execution timed out");
    let worker: i32 = record
        .split("pid ")
        .nth(1)
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    wait_for("the end of the worker", || !lives(worker));

    // DAC_OVERRIDE: logrotate has made the new file for somebody else.
    fs::remove_file(&of_nobody).unwrap();
    fs::write(&of_nobody, "").unwrap();
    fs::set_permissions(&of_nobody, fs::Permissions::from_mode(0o600)).unwrap();
    chown(&of_nobody, Some(65534), Some(65534)).unwrap();
    master.signal(Signal::SIGUSR1);
    master.said("access log file re-opened");
    wait_for("a line in the new log", || {
        master.get("/who.php");
        !fs::read_to_string(&of_nobody).unwrap().is_empty()
    });
}

/// A folder with a tenant's folder in it, and what the configuration of his pool begins with.
fn with_tenant() -> (Place, String) {
    let place = Place::new();
    fs::set_permissions(place.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(place.path("tenant")).unwrap();
    chown(place.path("tenant"), Some(65534), Some(65534)).unwrap();
    place.write("who.php", "<?php echo posix_getuid();");
    let pools = format!("{POOL}[tenant]\nuser = nobody\ngroup = nogroup\npm = static\npm.max_children = 1\n");
    (place, pools)
}

fn tenants_logs() {
    let (place, pools) = with_tenant();
    place.configure(&format!(
        "{pools}listen = {{dir}}/tenant.sock\naccess.log = {{dir}}/tenant/access.log\n\
         slowlog = {{dir}}/tenant/slow.log\nrequest_slowlog_timeout = 1m\n"
    ));
    let logs = ["access.log", "slow.log"].map(|name| place.path("tenant").join(name));
    logs.iter().for_each(|log| fs::create_dir(log).unwrap());
    let master = place.start(&["-d", "extension=posix"]);
    let serves = |times| {
        master.said_often("ready to handle connections", times);
        assert_eq!(master.get("/who.php"), "33");
        assert_eq!(master.get_on("tenant.sock", "/who.php"), "65534");
    };
    serves(1);
    let said = master.said("[pool tenant] failed to open access log (");
    assert!(
        said.contains("/tenant/access.log): Is a directory (21); ")
            && said.contains("so it takes that user's rights; the pool goes on without"),
        "{said}"
    );
    let said = master.said("[pool tenant] Unable to create or open slowlog(");
    assert!(
        said.contains("/tenant/slow.log): Is a directory (21); user nobody can change what is in "),
        "{said}"
    );

    logs.iter().for_each(|log| fs::remove_dir(log).unwrap());
    master.signal(Signal::SIGUSR2);
    serves(2);
    let lines = |name: &str| fs::read_to_string(master.place.path(name)).unwrap().lines().count();
    wait_for("a line", || lines("tenant/access.log") == 1);

    fs::rename(&logs[0], master.place.path("tenant/old.log")).unwrap();
    fs::create_dir(&logs[0]).unwrap();
    master.signal(Signal::SIGUSR2);
    serves(3);
    master.said("so it takes that user's rights; the one that is open stays so");
    wait_for("a line in the log that is open", || lines("tenant/old.log") == 2);
}

fn tenants_socket() {
    let (place, pools) = with_tenant();
    place.configure(&format!("{pools}listen = {{dir}}/tenant/sock\nlisten.mode = 0666\n"));
    let socket = place.path("tenant/sock");
    fs::create_dir(&socket).unwrap();
    let master = place.start(&["-d", "extension=posix"]);
    let serves = |times| {
        master.said_often("ready to handle connections", times);
        assert_eq!(master.get("/who.php"), "33");
    };
    serves(1);
    let said = master.said("[pool tenant] unable to bind listening socket for address '");
    assert!(
        said.contains("/tenant/sock': Address already in use (98); the other pools go on"),
        "{said}"
    );

    fs::remove_dir(&socket).unwrap();
    master.signal(Signal::SIGUSR2);
    serves(2);
    assert_eq!(master.get_on("tenant/sock", "/who.php"), "65534");

    let [www, tenant] = ["www", "tenant"].map(|pool| master.zygote(pool));
    fs::remove_file(&socket).unwrap();
    fs::create_dir(&socket).unwrap();
    master.signal(Signal::SIGUSR2);
    serves(3);
    wait_for("the end of the old generation", || !lives(www));
    assert_eq!(master.zygote("tenant"), tenant);

    fs::remove_dir(&socket).unwrap();
    master.signal(Signal::SIGUSR2);
    serves(4);
    assert_eq!(master.get_on("tenant/sock", "/who.php"), "65534");
    assert_eq!(master.count("the other pools go on without it"), 2);
}

/// Each step of a pool's confinement, with what it needs taken away.
fn refused() {
    let hard = format!(
        "{}",
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
            .unwrap()
            .1
            + 1
    );
    let files = format!("rlimit_files = {hard}");
    let cases: [(&str, &str, &str, bool); 6] = [
        ("setuid", "", "failed to setuid(33): EPERM", false),
        ("setgid", "", "failed to set the supplementary groups: EPERM", false),
        (
            "sys_chroot",
            "chroot = {dir}/jail",
            "failed to keep CAP_SYS_CHROOT for the chroot: EPERM",
            false,
        ),
        (
            "sys_nice",
            "process.priority = -5",
            "failed to set the priority to -5: EACCES",
            false,
        ),
        ("sys_resource", &files, "failed to set rlimit_files for this pool", true),
        (
            "",
            "chdir = {dir}/closed",
            "failed to chdir({dir}/closed): EACCES",
            false,
        ),
    ];
    for (capability, line, said, serves) in cases {
        let place = Place::new();
        for folder in ["jail", "closed"] {
            fs::create_dir(place.path(folder)).unwrap();
        }
        fs::set_permissions(place.path("closed"), fs::Permissions::from_mode(0o700)).unwrap();
        place.configure(&format!("{POOL}{line}\n"));
        if !capability.is_empty() {
            let real = place.path("real/php-fpm").display().to_string();
            wrap(
                &place,
                &format!("#!/bin/sh\nexec setpriv --bounding-set -{capability} {real} \"$@\"\n"),
            );
        }
        let said = said.replace("{dir}", place.path("").display().to_string().trim_end_matches('/'));
        let mut master = place.start(&[]);
        master.said(&said);
        if serves {
            master.said("ready to handle connections");
        } else {
            assert_eq!(master.ended().code(), Some(70), "{said}");
        }
    }
}
