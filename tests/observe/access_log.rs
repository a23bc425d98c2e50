//! `access.log`, `access.format` and `access.suppress_path`.

use std::fs;

use crate::harness::{Case, Cases, Request, Run, wait_until};
use crate::numbers::hidden;
use crate::support::server::{Listen, Setup};

static DEFAULT: Setup = Setup {
    name: "access-default",
    pool: "access.log = {home}/access.log\n",
    ..Setup::BASE
};

static TOKENS: Setup = Setup {
    name: "access-tokens",
    pool: "access.log = {home}/access.log\n\
           access.format = \"%R|%u|%m|%r|%Q|%q|%s|%f|%l|%n|%%|%{REQUEST_SCHEME}e|%{NONE}e|%{X-A}o|%{x-a}o|%{Content-type}o|\"\n",
    ..Setup::BASE
};

static TCP: Setup = Setup {
    name: "access-tcp",
    listen: Listen::Tcp("::1"),
    pool: "access.log = {home}/access.log\naccess.format = \"%r %R\"\n",
    ..Setup::BASE
};

static NUMBERS: Setup = Setup {
    name: "access-numbers",
    workers: 1,
    pool: "access.log = {home}/access.log\n\
           access.format = \"%r C=%C,%{user}C,%{system}C,%{Total}C \
           d=%d,%{milli}d,%{mili}d,%{micro}d,%{SECONDS}d,%{milliseconds}d,%{miliseconds}d,%{microseconds}d \
           M=%M,%{kilo}M,%{mega}M,%{bytes}M,%{kilobytes}M,%{MegaBytes}M p=%p,%P \
           t=%t,%T,%{%Y-%m-%dT%H:%M:%S%z}t,%{%s}T,%{%a %A %b %B %e %j %p %Z %%}t\"\n",
    ..Setup::BASE
};

static SUPPRESS: Setup = Setup {
    name: "access-suppress",
    pool: "access.log = {home}/access.log\naccess.format = \"%m %r%Q%q %s\"\nping.path = /ping\n\
           access.suppress_path[] = /ping\naccess.suppress_path[] = /access_log-suppression.php\n",
    ..Setup::BASE
};

static IDS: Setup = Setup {
    name: "access-ids",
    pool: "access.log = {home}/access.log\naccess.format = \"%r %q\"\n",
    php_pool: "access.format = \"%r %q %L\"\n",
    ..Setup::BASE
};

static LONG: Setup = Setup {
    name: "access-long",
    pool: "access.log = {home}/access.log\naccess.format = \"%r %{A}e%{A}e%{A}e%{A}e end\"\n",
    ..Setup::BASE
};

/// Sends a request, and waits for the lines about URIs that contain `mark`, of which there must then be `count`.
fn lines(run: &Run, mark: &str, count: usize) -> Vec<String> {
    let path = run.server.home.join("access.log");
    let find = || {
        let log = fs::read(&path).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        log.lines()
            .filter(|l| l.contains(mark))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    wait_until(&format!("the access log has {count} lines about {mark}"), || {
        find().len() >= count
    });
    find()
}

fn log_of(run: &mut Run, requests: &[Request], mark: &str) -> Vec<String> {
    for request in requests {
        run.send_unrecorded(request);
    }
    lines(run, mark, requests.len())
}

pub fn cases() -> Vec<Case> {
    Cases::of("access_log", |cases| {
        cases.same("the default format is php_fpms", &DEFAULT, |run| {
            run.file("plain.php", "<?php echo 1;");
            let request = run.get("/plain.php");
            let user = request
                .clone()
                .query("a=b")
                .set("HTTP_AUTHORIZATION", "Basic dXNlcjpwYXNz");
            let log = log_of(run, &[request, user], "/plain.php");
            run.note(hidden(&log.join("\n")));
        });
        cases.same("what no script answers is logged too", &DEFAULT, |run| {
            let log = log_of(
                run,
                &[run.get("/missing.php"), run.get("/missing.php").method("BREW")],
                "/missing.php",
            );
            run.note(hidden(&log.join("\n")));
        });
        cases.same("every token has php_fpms value", &TOKENS, |run| {
            run.file("tokens.php", "<?php header('X-A: 2'); http_response_code(203);");
            let get = run.get("/tokens.php");
            let post = get.clone().query("q=1&r").post("text/plain", "12345");
            let folder = run.www();
            let log = log_of(run, &[get, post], "/tokens.php");
            run.note(log.join("\n").replace(&folder, "{www}"));
        });
        cases.same(
            "a status that a header sets is not the status of the log",
            &TOKENS,
            |run| {
                run.file(
                    "header.php",
                    "<?php header('Status: 404 Gone'); header('X-A: 1', true, 201);",
                );
                let log = log_of(run, &[run.get("/header.php")], "/header.php");
                let folder = run.www();
                run.note(log.join("\n").replace(&folder, "{www}"));
            },
        );
        cases.same("an address is shown", &TCP, |run| {
            run.file("tcp.php", "");
            let log = log_of(run, &[run.get("/tcp.php")], "/tcp.php");
            run.note(log.join("\n"));
        });
        cases.same("numbers have php_fpms form", &NUMBERS, |run| {
            run.file("numbers.php", "<?php usleep(20000); echo getmypid();");
            let worker = run.send_unrecorded(&run.get("/numbers.php")).text();
            let log = lines(run, "/numbers.php", 1);
            run.note(hidden(&log.join("\n")));
            let after = |name: &str| {
                let rest = log[0].split_once(&format!(" {name}=")).expect("the format has it").1;
                rest.split([' ', '\n']).next().unwrap_or_default().to_owned()
            };
            assert_eq!(
                after("p"),
                format!("{},{}", worker.trim(), run.server.pids()[0]),
                "{log:?}"
            );
            let duration: Vec<f64> = after("d").split(',').map(|n| n.parse().expect("a number")).collect();
            assert!(
                duration[0] >= 0.02 && duration[1] >= 20.0 && duration[3] >= 20_000.0,
                "{log:?}"
            );
            // By its long names each is the same.
            assert_eq!(
                duration[..4],
                [duration[4], duration[5], duration[6], duration[7]],
                "{log:?}"
            );
            assert_eq!(duration[1], duration[2], "{log:?}");
            let memory: Vec<u64> = after("M").split(',').map(|n| n.parse().expect("a number")).collect();
            assert!(
                memory[0] / 1024 == memory[1] && memory[1] / 1024 == memory[2] && memory[2] >= 1,
                "{log:?}"
            );
            assert_eq!(memory[..3], memory[3..], "{log:?}");
        });
        cases
            .same(
                "plain successful requests of some paths are not logged",
                &SUPPRESS,
                |run| {
                    run.file(
                        "suppression.php",
                        "<?php http_response_code((int) ($_SERVER['HTTP_CODE'] ?? 200));",
                    );
                    let uri = "/access_log-suppression.php";
                    let folder = run.www();
                    let ours = run.get(uri).set("SCRIPT_FILENAME", format!("{folder}/suppression.php"));
                    let requests = [
                        ours.clone(),
                        ours.clone().method("HEAD"),
                        ours.clone().set("HTTP_CODE", "204"),
                        ours.clone().set("HTTP_CODE", "300"),
                        ours.clone().method("POST"),
                        ours.clone().post("text/plain", "x"),
                        ours.clone().query("a"),
                        ours.clone().set("CONTENT_LENGTH", "1"),
                        run.get("/ping"),
                        ours.query("last"),
                    ];
                    for request in &requests {
                        run.send_unrecorded(request);
                    }
                    lines(run, "?last", 1);
                    let log = lines(run, "", 1)
                        .into_iter()
                        .filter(|l| l.contains(uri) || l.contains("/ping"));
                    run.note(log.collect::<Vec<_>>().join("\n"));
                },
            )
            .alone();
        cases.differs(
            "a long line ends with a newline and without a NUL",
            &LONG,
            "php-fpm writes a NUL before the newline of a line that it cuts",
            |run| {
                run.file("long.php", "");
                let request = run.get("/long.php").set("A", "x".repeat(300));
                let log = log_of(run, &[request], "/long.php");
                run.note(format!("{} {}", log[0].len(), log[0].contains('\0')));
            },
        );
        cases.differs(
            "a request cannot forge a line",
            &DEFAULT,
            "php-fpm writes newlines and quotes of a URI as they came",
            |run| {
                run.file("forge.php", "");
                let folder = run.www();
                let uri = "/forge.php\n- - - \"GET /forged\" 200";
                let request = run.get(uri).set("SCRIPT_FILENAME", format!("{folder}/forge.php"));
                run.send_unrecorded(&request);
                let log = lines(run, "forged", 1);
                run.note(hidden(&log.join("\n")));
            },
        );
        cases.differs(
            "a line names its request by the web servers id or one of ours",
            &IDS,
            "php-fpm has no ids",
            |run| {
                run.file("id.php", "");
                let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
                let get = run.get("/id.php");
                let parent = get
                    .clone()
                    .set("HTTP_TRACEPARENT", format!("00-{trace}-00f067aa0ba902b7-01"));
                let requests = [
                    parent.clone().set("HTTP_X_REQUEST_ID", "Root=1-6789/abc").query("1"),
                    parent.set("HTTP_X_REQUEST_ID", "a\"b\n").query("2"),
                    get.clone().query("3"),
                    get.query("4"),
                ];
                let mut log = log_of(run, &requests, "/id.php");
                log.sort();
                if run.is_php_pool() {
                    assert_eq!(
                        log[..2],
                        ["/id.php 1 Root=1-6789/abc".to_owned(), format!("/id.php 2 {trace}")]
                    );
                    let own: Vec<_> = log[2..]
                        .iter()
                        .map(|line| line.rsplit(' ').next().unwrap_or_default())
                        .collect();
                    assert!(own[0] != own[1] && own.iter().all(|id| id.len() == 32), "{log:?}");
                }
                run.note(log.len().to_string() + &log[0]);
            },
        );
    })
}
