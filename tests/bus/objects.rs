//! What there is on the bus, and what it says.

use std::fs;
use std::os::unix::net::UnixListener;

use serde_json::Value;

use crate::harness::wait_for;
use crate::site::{Site, data};
use crate::support::Case;

pub const CASES: &[Case] = &[
    ("objects::pools_are_listed_and_none_is_woken", listed),
    ("objects::introspection_shows_all_that_there_is", introspected),
    ("objects::properties_are_of_now", properties),
    ("objects::a_reload_returns_when_the_new_workers_serve", reload),
    (
        "objects::a_reload_that_fails_says_why_and_the_pool_serves_on",
        failed_reload,
    ),
    ("objects::a_backtrace_shows_where_a_request_is", backtrace),
    ("objects::what_is_not_there_has_the_error_of_its_kind", errors),
];

fn listed() {
    let site = Site::start("pm = static\npm.max_children = 1", 60);
    let asleep = UnixListener::bind(site.path("asleep")).unwrap();
    asleep.set_nonblocking(true).unwrap();
    let file = format!(
        "[my-app.v2]\nlisten = {}\npm = ondemand\npm.max_children = 1\n",
        site.path("asleep").display()
    );
    fs::write(site.path("pool.d/my-app.v2.conf"), file).unwrap();
    fs::write(site.path("pool.d/broken.conf"), "[broken\n").unwrap();
    for no_pool in ["caf\u{e9}.conf", "www.conf~", ".hidden.conf"] {
        fs::write(site.path("pool.d").join(no_pool), "").unwrap();
    }
    let words = ["--list", "tree", "org.phppool"];
    let pools = "/org/phppool/pool/broken\n/org/phppool/pool/my_2dapp_2ev2\n/org/phppool/pool/www\n";
    assert!(site.said(&words).ends_with(pools), "{}", site.said(&words));
    wait_for("the worker", || site.property("TotalProcesses") == 1);
    let words = [
        "--json=short",
        "call",
        "org.phppool",
        "/org/phppool",
        "org.freedesktop.DBus.ObjectManager",
        "GetManagedObjects",
    ];
    let all = data(&site.busctl(None, &words))[0].clone();
    assert_eq!(all.as_object().unwrap().len(), 3, "{all}");
    let of =
        |label: &str, name: &str| all[format!("/org/phppool/pool/{label}")]["org.phppool.Pool1"][name]["data"].clone();
    assert_eq!(of("www", "State"), "running");
    assert_eq!(of("www", "TotalProcesses"), 1);
    // Without systemd nobody knows that somebody listens for it, and its socket is not touched to find out.
    assert_eq!(of("my_2dapp_2ev2", "State"), "stopped");
    assert_eq!(of("my_2dapp_2ev2", "Name"), "my-app.v2");
    assert_eq!(of("my_2dapp_2ev2", "ProcessManager"), "ondemand");
    assert_eq!(of("my_2dapp_2ev2", "TotalProcesses"), 0);
    assert_eq!(of("broken", "ProcessManager"), "");
    assert_eq!(
        asleep.accept().unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock,
        "it was woken"
    );
    fs::remove_file(site.path("pool.d/my-app.v2.conf")).unwrap();
    assert!(!site.said(&["--list", "tree", "org.phppool"]).contains("my_2dapp"));
}

fn introspected() {
    let site = Site::start("pm = static\npm.max_children = 1", 60);
    let text = site.said(&[
        "introspect",
        "org.phppool",
        "/org/phppool/pool/www",
        "org.phppool.Pool1",
    ]);
    let rows: Vec<(&str, &str, &str)> = text
        .lines()
        .skip(1)
        .map(|line| {
            let mut words = line.split_whitespace();
            let mut next = || words.next().unwrap();
            (next(), next(), next())
        })
        .collect();
    let all = [
        (".Backtrace", "method", "u"),
        (".ListWorkers", "method", "-"),
        (".Reload", "method", "-"),
        (".AcceptedConnections", "property", "t"),
        (".ActiveProcesses", "property", "u"),
        (".Generation", "property", "t"),
        (".IdleProcesses", "property", "u"),
        (".ListenQueue", "property", "u"),
        (".ListenQueueLength", "property", "u"),
        (".MaxActiveProcesses", "property", "u"),
        (".MaxChildrenReached", "property", "u"),
        (".MaxListenQueue", "property", "u"),
        (".Name", "property", "s"),
        (".ProcessManager", "property", "s"),
        (".SlowRequests", "property", "t"),
        (".StartTime", "property", "t"),
        (".State", "property", "s"),
        (".TotalProcesses", "property", "u"),
        (".MaxChildrenReached", "signal", "u"),
        (".SlowRequest", "signal", "ut"),
        (".WorkerExited", "signal", "us"),
    ];
    for row in all {
        assert!(rows.contains(&row), "{row:?} in\n{text}");
    }
    assert_eq!(rows.len(), all.len(), "{text}");
    assert!(!text.contains("emits-"), "no property is announced\n{text}");
}

fn properties() {
    let site = Site::start("pm = static\npm.max_children = 2\nlisten.backlog = 77", 60);
    for count in 1..=3 {
        assert_eq!(site.master.get("/hello.php"), "hello");
        // A master's answer serves for half a second.
        wait_for("its count", || site.property("AcceptedConnections") == count);
    }
    let (_, _connection) = site.busy_worker();
    // A client has its answer before its worker is done.
    wait_for("the other worker", || site.property("IdleProcesses") == 1);
    let expected: [(&str, Value); 9] = [
        ("Name", "www".into()),
        ("State", "running".into()),
        ("ProcessManager", "static".into()),
        ("Generation", 1.into()),
        ("AcceptedConnections", 4.into()),
        ("ListenQueue", 0.into()),
        ("ActiveProcesses", 1.into()),
        ("TotalProcesses", 2.into()),
        ("SlowRequests", 0.into()),
    ];
    for (name, value) in expected {
        assert_eq!(site.property(name), value, "{name}");
    }
    assert_eq!(site.property("ListenQueueLength"), 77);
    assert!(site.property("MaxActiveProcesses").as_u64().unwrap() >= 1);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let started = site.property("StartTime").as_u64().unwrap();
    assert!((now - 3600..=now).contains(&started), "{started}");
}

fn reload() {
    let site = Site::start("pm = static\npm.max_children = 1", 60);
    let before = site.master.workers("www");
    assert!(site.call(None, &["Reload"]).status.success());
    assert_eq!(site.property("Generation"), 2);
    wait_for("other workers", || {
        let now = site.master.workers("www");
        !now.is_empty() && now.iter().all(|pid| !before.contains(pid))
    });
    assert_eq!(site.master.get("/hello.php"), "hello");
}

fn failed_reload() {
    let site = Site::start("pm = static\npm.max_children = 1", 60);
    let path = site.path("pool.conf");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text + "pm.max_children = many\n").unwrap();
    let out = site.call(None, &["Reload"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success(), "it succeeded");
    assert!(
        said.contains("the pool serves on as it was") && said.contains("pool.conf:"),
        "{said}"
    );
    assert_eq!(site.property("Generation"), 1);
    assert_eq!(site.master.get("/hello.php"), "hello");
}

fn backtrace() {
    let site = Site::start("pm = static\npm.max_children = 2", 60);
    let (pid, _connection) = site.busy_worker();
    let calls = || site.backtrace(None, pid);
    wait_for("the script to sleep", || calls().is_some_and(|calls| calls.len() == 2));
    let calls = calls().unwrap();
    let place = format!("{}:1", site.path("long.php").display());
    assert_eq!(calls[0], format!("sleep() {place}"));
    assert_eq!(calls[1], format!("dally() {place}"));
    let idle = site
        .master
        .workers("www")
        .into_iter()
        .find(|other| *other != pid)
        .unwrap();
    let said = String::from_utf8_lossy(&site.call(None, &["Backtrace", "u", &idle.to_string()]).stderr).into_owned();
    assert!(said.contains("is no worker of the pool with a request"), "{said}");
}

fn errors() {
    let site = Site::start("pm = static\npm.max_children = 1", 60);
    fs::write(site.path("pool.d/away.conf"), "[away]\nlisten = 9000\npm = ondemand\n").unwrap();
    let of = |words: &[&str]| site.refused(None, words);
    let (www, away) = ("/org/phppool/pool/www", "/org/phppool/pool/away");
    let cases: [(&[&str], &str); 9] = [
        (
            &[
                "call",
                "org.phppool",
                "/org/phppool/pool/none",
                "org.phppool.Pool1",
                "Reload",
            ],
            "no object",
        ),
        (
            &[
                "call",
                "org.phppool",
                "/org/phppool/pool/_77ww",
                "org.phppool.Pool1",
                "Reload",
            ],
            "no object",
        ),
        (
            &[
                "call",
                "org.phppool",
                "/org/phppool/pool/_2e_2e_2fwww",
                "org.phppool.Pool1",
                "Reload",
            ],
            "no object",
        ),
        (
            &["call", "org.phppool", www, "org.phppool.Pool1", "Dance"],
            "no method Dance",
        ),
        (
            &["call", "org.phppool", www, "org.phppool.Pool2", "Reload"],
            "no interface org.phppool.Pool2",
        ),
        (
            &["call", "org.phppool", www, "org.phppool.Pool1", "Backtrace", "s", "x"],
            "not understood",
        ),
        (
            &["call", "org.phppool", away, "org.phppool.Pool1", "Reload"],
            "nothing runs of the pool away",
        ),
        (
            &["get-property", "org.phppool", www, "org.phppool.Pool1", "Mood"],
            "no property Mood",
        ),
        (
            &[
                "set-property",
                "org.phppool",
                www,
                "org.phppool.Pool1",
                "Name",
                "s",
                "x",
            ],
            "",
        ),
    ];
    for (words, reason) in cases {
        let said = of(words);
        assert!(said.contains(reason), "{words:?}: {said}");
    }
    assert_eq!(site.property("Name"), "www");
}
