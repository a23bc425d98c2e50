//! The access log, the log lines of workers, and what workers print.

use crate::harness::{Case, Cases, Run, wait_until};
use crate::support::server::{Listen, Setup};

static DEFAULT: Setup = Setup {
    name: "access-default",
    pool: "access.log = {home}/access.log\n",
    ..Setup::BASE
};

static TOKENS: Setup = Setup {
    name: "access-tokens",
    pool: "access.log = {home}/access.log\naccess.format = \"%m %r%Q%q %s f=%f l=%l n=%n u=%u R=%R e=%{REQUEST_SCHEME}e %{NOTHING}e o=%{X-A}o %{X-Not}o %{Content-type}o 100%%\"\n",
    ..Setup::BASE
};

static NUMBERS: Setup = Setup {
    name: "access-numbers",
    pool: "access.log = {home}/access.log\naccess.format = \"%r %d %{seconds}d %{milli}d %{miliseconds}d %{micro}d %M %{kilo}M %{megabytes}M %C %{user}C %{system}C p%p P%P %t %T %{%Y-%m-%d %H:%M:%S}t %{%Z}T\"\n",
    ..Setup::BASE
};

static TCP: Setup = Setup {
    name: "access-tcp",
    listen: Listen::Tcp("127.0.0.1"),
    pool: "access.log = {home}/access.log\naccess.format = \"%R %r\"\n",
    ..Setup::BASE
};

static SUPPRESSED: Setup = Setup {
    name: "access-suppressed",
    pool: "access.log = {home}/access.log\naccess.format = \"%m %r%Q%q %s\"\naccess.suppress_path[] = /health.php\n\
           access.suppress_path[] = /ping\nping.path = /ping\n",
    ..Setup::BASE
};

static CAUGHT: Setup = Setup {
    name: "output-caught",
    pool: "catch_workers_output = yes\n",
    ..Setup::BASE
};

static UNDECORATED: Setup = Setup {
    name: "output-undecorated",
    workers: 1,
    pool: "catch_workers_output = yes\ndecorate_workers_output = no\n",
    ..Setup::BASE
};

static NOT_CAUGHT: Setup = Setup {
    name: "output-not-caught",
    ..Setup::BASE
};

static SHORT_LINES: Setup = Setup {
    name: "output-short-lines",
    workers: 1,
    global: "log_limit = 600\n",
    pool: "catch_workers_output = yes\n",
    ..Setup::BASE
};

pub fn cases() -> Vec<Case> {
    Cases::of("logs", |c| {
        access(c);
        caught(c);
    })
}

/// The lines of the access log that hold `mark`, once there are `count`.
fn access_lines(t: &Run, mark: &str, count: usize) -> Vec<String> {
    let file = t.server.home.join("access.log");
    let lines = || {
        let log = std::fs::read(&file).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        log.lines()
            .filter(|line| line.contains(mark))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    wait_until(&format!("the access log has {count} lines with {mark}"), || {
        lines().len() >= count
    });
    lines()
}

/// Every run of digits as `#`.
pub fn shape(text: &str) -> String {
    let mut shape = String::new();
    for char in text.chars() {
        match char {
            '0'..='9' if shape.ends_with('#') => {}
            '0'..='9' => shape.push('#'),
            char => shape.push(char),
        }
    }
    shape
}

fn access(c: &mut Cases) {
    c.same("the_default_line_is_that_of_php_fpm", &DEFAULT, |t| {
        t.file("default-line.php", "<?php");
        let request = t.get("/default-line.php").query("not=logged");
        t.send(&request);
        let lines = access_lines(t, "/default-line.php", 1);
        // The month is a name.
        let (before, rest) = lines[0].split_once('/').expect("a date");
        let line = shape(&format!("{before}/{}", &rest[4..]));
        t.note(&line);
        assert_eq!(line, "- -  #/#:#:#:# +# \"GET /default-line.php\" #");
    });
    c.same("a_user_is_named_in_the_default_line", &DEFAULT, |t| {
        t.file("user-line.php", "<?php");
        let request = t.get("/user-line.php").set("HTTP_AUTHORIZATION", "Basic dXNlcjpwYXNz");
        t.send(&request);
        let line = &access_lines(t, "/user-line.php", 1)[0];
        assert!(line.starts_with("- - user "), "{line}");
    });
    let tokens = |c: &mut Cases, name: &'static str, code: &'static str, wanted: &'static str| {
        c.same(name, &TOKENS, move |t| {
            t.file(&format!("{name}.php"), format!("<?php {code}"));
            let request = t
                .get(&format!("/{name}.php"))
                .query("a=1&b")
                .set("HTTP_AUTHORIZATION", "Basic dXNlcjpwYXNz")
                .post("text/plain", "body");
            t.send(&request);
            let line = access_lines(t, name, 1)[0].replace(&t.www(), "W").replace(name, "N");
            t.note(&line);
            assert_eq!(line, wanted);
        });
    };
    tokens(
        c,
        "all_that_is_known_of_a_request_can_be_logged",
        "header('X-A: 2'); http_response_code(201); echo 'x';",
        "POST /N.php?a=1&b 201 f=W/N.php l=4 n=www u=user R=- e=http - o=2 - text/html; charset=UTF-8 100%",
    );
    tokens(
        c,
        "a_status_header_is_not_the_code_that_is_logged",
        "header('Status: 418 Teapot');",
        "POST /N.php?a=1&b 200 f=W/N.php l=4 n=www u=user R=- e=http - o=- - - 100%",
    );
    tokens(
        c,
        "a_fatal_error_is_logged_as_500",
        "no_such_function();",
        "POST /N.php?a=1&b 500 f=W/N.php l=4 n=www u=user R=- e=http - o=- - - 100%",
    );
    c.same("a_request_for_a_missing_script_is_logged", &TOKENS, |t| {
        let request = t.get("/missing-and-logged.php");
        t.send(&request);
        let line = access_lines(t, "missing-and-logged", 1)[0].replace(&t.www(), "W");
        t.note(&line);
        assert!(line.starts_with("GET /missing-and-logged.php 404 "), "{line}");
    });
    c.same("a_refused_script_is_logged", &TOKENS, |t| {
        t.file("refused-and-logged.txt", "");
        let request = t.get("/refused-and-logged.txt").query("q");
        t.send(&request);
        let line = access_lines(t, "refused-and-logged", 1)[0].replace(&t.www(), "W");
        t.note(&line);
        assert!(line.starts_with("GET /refused-and-logged.txt?q 403 "), "{line}");
    });
    c.same("times_sizes_and_pids_have_the_form_of_php_fpm", &NUMBERS, |t| {
        t.file("numbers.php", "<?php usleep(2000); str_repeat('x', 5 << 20);");
        let request = t.get("/numbers.php");
        t.send(&request);
        let line = access_lines(t, "/numbers.php", 1)[0].clone();
        let fields: Vec<&str> = line.split(' ').collect();
        let form: Vec<String> = fields.iter().map(|field| shape(field)).collect();
        t.note(
            form.iter()
                .filter(|f| !f.contains('/') || f.contains(".php"))
                .cloned()
                .collect::<Vec<_>>()
                .join(" "),
        );
        let number = |n: usize| {
            fields[n]
                .parse::<f64>()
                .unwrap_or_else(|_| panic!("field {n} of {line} is no number"))
        };
        assert!(
            (0.002..20.0).contains(&number(1)) && number(1) == number(2),
            "seconds in {line}"
        );
        assert!((number(3) - number(1) * 1000.0).abs() < 1.0, "milliseconds in {line}");
        assert!((number(5) - number(1) * 1e6).abs() < 1000.0, "microseconds in {line}");
        assert!(
            number(6) >= f64::from(5 << 20) && number(7) == (number(6) / 1024.0).floor(),
            "memory in {line}"
        );
        assert!(number(8) == (number(6) / 1_048_576.0).floor(), "memory in {line}");
        assert!(fields[9..12].iter().all(|f| f.contains('.')), "processor in {line}");
    });
    c.same("the_peer_is_logged_by_its_address", &TCP, |t| {
        t.file("peer.php", "<?php");
        let request = t.get("/peer.php");
        t.send(&request);
        assert_eq!(access_lines(t, "/peer.php", 1), ["127.0.0.1 /peer.php"]);
    });
    c.same("paths_are_left_out_if_the_pool_says_so", &SUPPRESSED, |t| {
        t.file("health.php", "<?php http_response_code((int) ($_GET['c'] ?? 200));");
        t.file("last.php", "<?php");
        let health = t.get("/health.php");
        let mark = "from=suppressed";
        // Left out: plain, HEAD, ping. Logged: a query, a body, another method, and a failure has a query here too.
        for request in [
            health.clone(),
            health.clone().method("HEAD"),
            t.get("/ping"),
            health.clone().query(mark),
            health.clone().query(&format!("{mark}&c=500")),
            health.clone().post("text/plain", "x"),
            health.clone().method("OPTIONS"),
            t.get("/last.php").query(mark),
        ] {
            t.send_unrecorded(&request);
        }
        access_lines(t, "/last.php", 1);
        let all: Vec<String> = access_lines(t, " ", 1)
            .into_iter()
            .filter(|l| l.contains("health") || l.contains("ping"))
            .collect();
        t.note(all.join("\n"));
        assert_eq!(
            all,
            [
                "GET /health.php?from=suppressed 200",
                "GET /health.php?from=suppressed&c=500 500",
                "POST /health.php 200",
                "OPTIONS /health.php 200",
            ]
        );
    });
    c.differs(
        "a_request_cannot_forge_a_line",
        &TOKENS,
        "php-fpm writes line breaks and quotes of a query or user into the access log as they are; we escape them.",
        |t| {
            t.file("forge.php", "<?php");
            let request = t
                .get("/forge.php")
                .set("QUERY_STRING", "a\nFORGED /forge.php line\"")
                .set("HTTP_AUTHORIZATION", "Basic YQpiOng=");
            t.send(&request);
            let lines = access_lines(t, "/forge.php", 1);
            let forged = lines.iter().any(|line| line.starts_with("FORGED"));
            t.note(format!("forged: {forged}"));
            assert_eq!(forged, !t.is_php_pool(), "{lines:?}");
        },
    );
}

/// The log lines that hold `mark`, without time, prefix and pid, once there are `count`.
fn log_lines(t: &Run, mark: &str, count: usize) -> Vec<String> {
    let of = |log: &str| {
        log.lines()
            .filter(|line| line.contains(mark))
            .map(|line| {
                let line = line
                    .split_once("] ")
                    .filter(|_| line.starts_with('['))
                    .map_or(line, |(_, rest)| rest);
                let Some((before, after)) = line.split_once(" child ") else {
                    return line.to_owned();
                };
                let digits = after.chars().take_while(char::is_ascii_digit).count();
                format!("{before} child N{}", &after[digits..])
            })
            .collect::<Vec<_>>()
    };
    of(&t
        .server
        .wait_for_log(&format!("{count} lines with {mark}"), |log| of(log).len() >= count))
}

fn caught(c: &mut Cases) {
    let caught = |c: &mut Cases,
                  name: &'static str,
                  setup: &'static Setup,
                  code: &'static str,
                  wanted: &'static [&'static str]| {
        c.same(name, setup, move |t| {
            let mark = name;
            t.php(&code.replace("MARK", mark));
            let lines: Vec<String> = log_lines(t, mark, wanted.len())
                .iter()
                .map(|l| l.replace(&t.www(), "W").replace(mark, "MARK"))
                .collect();
            t.note(lines.join("\n"));
            assert_eq!(lines, wanted);
        });
    };
    caught(
        c,
        "what_a_script_prints_to_stderr_is_logged",
        &CAUGHT,
        "file_put_contents('php://stderr', \"MARK\\n\");",
        &["WARNING: [pool www] child N said into stderr: \"MARK\""],
    );
    caught(
        c,
        "what_a_script_prints_to_stdout_is_logged",
        &CAUGHT,
        "file_put_contents('php://stdout', \"MARK one\\n\\nMARK \\\"two\\\"\\n\");",
        &[
            "WARNING: [pool www] child N said into stdout: \"MARK one\"",
            "WARNING: [pool www] child N said into stdout: \"MARK \"two\"\"",
        ],
    );
    caught(
        c,
        "a_line_without_an_end_is_logged_when_the_request_ends",
        &CAUGHT,
        "$f = fopen('php://stderr', 'w'); fwrite($f, 'MARK '); fwrite($f, 'joined');",
        &["WARNING: [pool www] child N said into stderr: \"MARK joined\""],
    );
    caught(
        c,
        "messages_of_php_are_logged_with_their_level",
        &CAUGHT,
        "error_log('MARK'); trigger_error('MARK as a warning', E_USER_WARNING);",
        &[
            "WARNING: [pool www] child N said into stderr: \"NOTICE: PHP message: MARK\"",
            "WARNING: [pool www] child N said into stderr: \"NOTICE: PHP message: PHP Warning:  MARK as a warning in W/index.php on line 1\"",
        ],
    );
    caught(
        c,
        "without_decoration_the_text_alone_is_logged",
        &UNDECORATED,
        "file_put_contents('php://stderr', \"MARK\\n\");",
        &["MARK"],
    );
    caught(
        c,
        "what_a_child_of_the_script_prints_is_logged",
        &CAUGHT,
        "system('echo MARK >&2');",
        &["WARNING: [pool www] child N said into stderr: \"MARK\""],
    );
    c.same("a_long_line_is_logged_in_pieces_of_the_log_limit", &SHORT_LINES, |t| {
        t.php("file_put_contents('php://stderr', str_repeat('L', 1500) . \"\\nENDOFLONG\\n\");");
        log_lines(t, "ENDOFLONG", 1);
        let pieces: Vec<String> = log_lines(t, "LLLL", 1);
        let full = t.server.log();
        let longest = full.lines().filter(|l| l.contains("LLLL")).map(str::len).max();
        // The length of a pid takes part in where the line is cut.
        let text: usize = pieces.iter().map(|p| p.matches('L').count()).sum();
        t.note(format!("{} pieces, longest {longest:?}", pieces.len()));
        assert_eq!((longest, text), (Some(599), 1500));
    });
    c.same("output_that_is_not_caught_is_not_logged", &NOT_CAUGHT, |t| {
        let reply = t.php("file_put_contents('php://stderr', \"NOTCAUGHT\\n\"); error_log('NOTCAUGHT'); echo 'x';");
        assert_eq!(reply.errors(), "PHP message: NOTCAUGHT");
        assert!(!t.server.log().contains("NOTCAUGHT"), "{}", t.server.log());
    });
}
