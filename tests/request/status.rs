//! The status page in all formats, ping, and `fpm_get_status()`.

use std::time::{Duration, Instant};

use crate::harness::{Case, Cases, Request, Run, wait_until};
use crate::logs::shape;
use crate::support::fcgi::{PATIENCE, Reply};
use crate::support::server::{Listen, Setup, php_fpm_release};

static STATUS: Setup = Setup {
    name: "status",
    workers: 2,
    pool: "pm.status_path = /status\nping.path = /ping\nping.response = \"here I am\"\n",
    ..Setup::BASE
};

static ONE_WORKER: Setup = Setup {
    name: "status-one-worker",
    workers: 1,
    ..STATUS
};

/// php-fpm counts wrong once there was a kept connection.
static KEPT: Setup = Setup {
    name: "status-kept",
    ..STATUS
};

static TCP: Setup = Setup {
    name: "status-tcp",
    listen: Listen::Tcp("127.0.0.1"),
    ..STATUS
};

static UNFIXED: Setup = Setup {
    name: "status-unfixed",
    workers: 2,
    pool: "pm.status_path = /status\nping.path = /ping\nphp_admin_value[cgi.fix_pathinfo] = 0\n",
    ..Setup::BASE
};

static NONE: Setup = Setup {
    name: "status-none",
    workers: 2,
    ..Setup::BASE
};

/// The names of the summary, in order.
const SUMMARY: [&str; 14] = [
    "pool",
    "process manager",
    "start time",
    "start since",
    "accepted conn",
    "listen queue",
    "max listen queue",
    "listen queue len",
    "idle processes",
    "active processes",
    "total processes",
    "max active processes",
    "max children reached",
    "slow requests",
];

/// The names of a process, in order.
const PROCESS: [&str; 13] = [
    "pid",
    "state",
    "start time",
    "start since",
    "requests",
    "request duration",
    "request method",
    "request uri",
    "content length",
    "user",
    "script",
    "last request cpu",
    "last request memory",
];

pub fn cases() -> Vec<Case> {
    Cases::of("status", |c| {
        page(c);
        processes(c);
        ping(c);
        function(c);
    })
}

/// Asks for the status page; what is compared has no numbers and no month.
fn ask(t: &mut Run, query: &str) -> Reply {
    let request = t.get("/status").query(query);
    let reply = t.send_unrecorded(&request);
    let mut text = shape(&String::from_utf8_lossy(&reply.stdout));
    for month in [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ] {
        text = text.replace(&format!("#/{month}/#"), "#/Mon/#");
    }
    t.note(text);
    reply
}

fn since_8_4() -> bool {
    php_fpm_release() >= [8, 4, 0]
}

/// What the page says of the pool.
fn summary() -> Vec<&'static str> {
    let peak = since_8_4().then_some("memory peak");
    SUMMARY.into_iter().chain(peak).collect()
}

/// What the status page says as JSON.
fn json(t: &Run, query: &str) -> serde_json::Value {
    let request = t.get("/status").query(query);
    let reply = t.send_unrecorded(&request);
    serde_json::from_slice(reply.body()).unwrap_or_else(|e| panic!("no JSON: {e}: {}", reply.text()))
}

/// Asks until only the worker that answers is active of the two: the other may still be finishing what it answered before, or has
/// not been counted yet.
fn calm(t: &mut Run) -> (serde_json::Value, u64) {
    let deadline = Instant::now() + PATIENCE;
    for asked in 1.. {
        let status = json(t, "json");
        if status["active processes"] == 1 && status["total processes"] == 2 {
            return (status, asked);
        }
        assert!(Instant::now() < deadline, "the other workers stay active: {status}");
    }
    unreachable!("the loop does not end")
}

fn names(value: &serde_json::Value) -> Vec<&str> {
    value
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect()
}

fn page(c: &mut Cases) {
    let format = |c: &mut Cases,
                  name: &str,
                  query: &'static str,
                  content_type: &'static str,
                  begins: &'static str,
                  ends: &'static str| {
        c.same(name, &STATUS, move |t| {
            let reply = ask(t, query);
            assert_eq!(reply.header("Content-Type"), [content_type]);
            assert_eq!(
                reply.header("Cache-Control"),
                ["no-cache, no-store, must-revalidate, max-age=0"]
            );
            assert_eq!(reply.header("Expires"), ["Thu, 01 Jan 1970 00:00:00 GMT"]);
            let text = reply.text();
            assert!(text.starts_with(begins) && text.ends_with(ends), "{text}");
        })
        .alone();
    };
    format(
        c,
        "text_is_the_default",
        "",
        "text/plain;charset=UTF-8",
        "pool:                 www\n",
        if since_8_4() { "\n" } else { "slow requests:        0\n" },
    );
    format(
        c,
        "json_is_one_line",
        "json",
        "application/json",
        "{\"pool\":\"www\",\"process manager\":\"static\",\"start time\":",
        "}",
    );
    format(
        c,
        "xml_names_have_dashes",
        "xml",
        "text/xml;charset=UTF-8",
        "<?xml version=\"1.0\" ?>\n<status>\n<pool>www</pool>\n",
        "</status>",
    );
    format(
        c,
        "html_is_a_table",
        "html",
        "text/html;charset=UTF-8",
        "<!DOCTYPE html",
        "</body></html>",
    );
    format(
        c,
        "openmetrics_ends_as_it_must",
        "openmetrics",
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
        "# HELP phpfpm_up Could pool www using a static PM on PHP-FPM be reached?\n",
        "# EOF\n",
    );
    format(
        c,
        "values_of_keys_do_not_matter",
        "html=0",
        "text/html;charset=UTF-8",
        "<!DOCTYPE",
        "</html>",
    );
    format(
        c,
        "the_first_format_of_the_order_wins",
        "json&xml",
        "text/xml;charset=UTF-8",
        "<?xml",
        "</status>",
    );
    format(
        c,
        "unknown_keys_are_ignored",
        "nothing&JSON&fulll",
        "text/plain;charset=UTF-8",
        "pool:",
        if since_8_4() { "\n" } else { "slow requests:        0\n" },
    );
    c.differed(
        "a_key_counts_as_a_whole",
        &STATUS,
        [8, 4, 0],
        "For php-fpm before 8.4 every beginning of a key is the key: `?x=1` asks for XML. For us only the key is.",
        |t| {
            let request = t.get("/status").query("x=1&j");
            let reply = t.send_unrecorded(&request);
            let kind = reply.header("Content-Type").join(" ");
            t.note(&kind);
            assert!(
                kind.starts_with(if t.is_right_since([8, 4, 0]) {
                    "text/plain"
                } else {
                    "text/xml"
                }),
                "{kind}"
            );
        },
    )
    .alone();
    c.same("the_numbers_are_true", &STATUS, |t| {
        let before = json(t, "json");
        assert_eq!(names(&before), summary());
        t.php("echo 1;");
        let (after, asked) = calm(t);
        let number = |of: &serde_json::Value, name: &str| {
            of[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {of}"))
        };
        assert_eq!(
            number(&after, "accepted conn"),
            number(&before, "accepted conn") + 1 + asked
        );
        assert_eq!(number(&after, "total processes"), 2);
        // The page is served by a worker, which is the active one.
        assert_eq!(
            (number(&after, "active processes"), number(&after, "idle processes")),
            (1, 1)
        );
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970")
            .as_secs();
        let started = number(&after, "start time");
        assert!(
            (now - 600..=now).contains(&started) && now - started <= number(&after, "start since") + 2,
            "{after}"
        );
    })
    .alone();
    c.same("head_has_no_body", &STATUS, |t| {
        for query in ["", "json", "full"] {
            let request = t.get("/status").query(query).method("HEAD");
            assert_eq!(t.send(&request).text(), "");
        }
    })
    .alone();
    c.same("any_method_will_do", &STATUS, |t| {
        let request = t.get("/status").post("text/plain", "body");
        assert!(t.send_unrecorded(&request).text().starts_with("pool:"));
        assert!(t.send_unrecorded(&request.method("X")).text().starts_with("pool:"));
    })
    .alone();
    c.same("only_the_exact_path_is_the_page", &STATUS, |t| {
        for uri in ["/status/", "/Status", "/statusx", "//status", "/x/status"] {
            let request = t.get(uri);
            assert_eq!(t.send(&request).status(), 404, "{uri}");
        }
    })
    .alone();
    c.same("the_script_name_decides_and_not_the_file_or_the_uri", &STATUS, |t| {
        t.file("status", "<?php echo 'script';");
        t.file("other.php", "<?php echo 'other';");
        let request = t.get("/other.php").set("SCRIPT_NAME", "/status");
        assert!(t.send_unrecorded(&request).text().starts_with("pool:"));
        let request = t.get("/other.php").set("REQUEST_URI", "/status");
        assert_eq!(t.send(&request).text(), "other");
        let request = t.get("/status").unset("SCRIPT_FILENAME");
        assert_eq!(t.send(&request).status(), 404);
    })
    .alone();
    c.same("without_fixing_the_path_path_info_decides", &UNFIXED, |t| {
        let request = t.get("/other.php").set("PATH_INFO", "/status");
        assert!(t.send_unrecorded(&request).text().starts_with("pool:"));
        let request = t.get("/status").set("PATH_INFO", "/other");
        assert_ne!(t.send(&request).status(), 200);
        assert!(t.send_unrecorded(&t.get("/status")).text().starts_with("pool:"));
    })
    .alone();
    c.same("without_a_path_there_is_no_page", &NONE, |t| {
        for uri in ["/status", "/ping", "/"] {
            let request = t.get(uri);
            assert_eq!(t.send(&request).status(), 404);
        }
    });
    c.same("the_length_of_a_tcp_queue_is_known", &TCP, |t| {
        let status = json(t, "json");
        assert!(status["listen queue len"].as_u64().is_some_and(|n| n > 0), "{status}");
    })
    .alone();
}

fn processes(c: &mut Cases) {
    for (name, query) in [
        ("processes_as_text", "full"),
        ("processes_as_html", "full&html"),
        ("processes_as_xml", "xml&full"),
        ("processes_make_no_difference_to_openmetrics", "full&openmetrics"),
    ] {
        c.same(name, &ONE_WORKER, move |t| {
            ask(t, query);
        })
        .alone(); // while the worker is busy, php-pool's master answers
    }
    c.same("processes_as_json_say_what_each_does", &STATUS, |t| {
        let request = t
            .get("/index.php")
            .set("HTTP_AUTHORIZATION", "Basic dXNlcjpwYXNz")
            .post("text/plain", "body");
        let status = while_running(t, &request.query("a=\"b\"&c=<d>"), |t| json(t, "json&full&z=%3Cy"));
        let processes = status["processes"].as_array().expect("an array");
        assert_eq!(processes.len(), 2);
        for process in processes {
            assert_eq!(
                (names(process), process["state"].as_str()),
                (PROCESS.to_vec(), Some("Running")),
                "{status}"
            );
        }
        let of = |uri: &str| {
            processes
                .iter()
                .find(|p| p["request uri"] == uri)
                .unwrap_or_else(|| panic!("no {uri} in {status}"))
        };
        let page = of("/status?json&full&z=%3Cy");
        assert_eq!(
            (page["request method"].as_str(), page["last request memory"].as_u64()),
            (Some("GET"), Some(0))
        );
        let script = of("/index.php?a=\"b\"&c=<d>");
        assert_eq!(
            (script["user"].as_str(), script["content length"].as_u64()),
            (Some("user"), Some(4))
        );
        assert_eq!(
            script["script"].as_str(),
            Some(format!("{}/index.php", t.www()).as_str())
        );
        assert!(
            script["request duration"]
                .as_u64()
                .is_some_and(|n| (1..60_000_000).contains(&n)),
            "{status}"
        );
    })
    .alone();
    c.same("an_idle_process_says_what_it_did_last", &STATUS, |t| {
        let request = t.page("$x = str_repeat('x', 3 << 20); echo 'done';").query("last=1");
        let deadline = Instant::now() + PATIENCE;
        // The page may be served by the worker that has just run the script: then its slot tells of the page. On a busy
        // machine that one comes back for it sooner than the other wakes, unless it is given the time to fall asleep.
        let idle = loop {
            assert_eq!(t.send_unrecorded(&request).text(), "done");
            std::thread::sleep(Duration::from_millis(2));
            let status = json(t, "json&full");
            let processes = status["processes"].as_array().expect("an array").clone();
            let ran = |p: &&serde_json::Value| p["state"] == "Idle" && p["request uri"] == "/index.php?last=1";
            if let Some(idle) = processes.iter().find(ran) {
                break idle.clone();
            }
            assert!(
                Instant::now() < deadline,
                "no idle worker tells of the script: {status}"
            );
        };
        assert!(
            idle["last request memory"]
                .as_u64()
                .is_some_and(|n| (3 << 20..16 << 20).contains(&n)),
            "{idle}"
        );
        assert!(
            idle["last request cpu"].is_f64() && idle["requests"].as_u64() > Some(0),
            "{idle}"
        );
        assert!(
            idle["request duration"]
                .as_u64()
                .is_some_and(|n| (1..20_000_000).contains(&n)),
            "{idle}"
        );
    })
    .alone();
    c.differed(
        "what_a_request_sends_cannot_break_the_page",
        &STATUS,
        [8, 2, 36],
        "Before 8.2.36 (CVE-2026-129292) php-fpm put method, user and script into its status page as they are: markup and \
         broken JSON. We escape everything.",
        |t| {
            let request = t.get("/index.php").method("<i>\"").set("HTTP_AUTHORIZATION", "Basic IjxiPjp4");
            let (json, html) = while_running(t, &request, |t| {
                let page = |query: &str| t.send_unrecorded(&t.get("/status").query(query)).text();
                (page("json&full"), page("html&full"))
            });
            let valid = serde_json::from_str::<serde_json::Value>(&json).is_ok();
            let markup = html.contains("<b>") || html.contains("<i>");
            t.note(format!("JSON {valid}, markup {markup}"));
            let right = t.is_right_since([8, 2, 36]);
            assert_eq!((valid, markup), (right, !right), "{json}\n{html}");
        },
    )
    .alone();
}

/// Does something while `request`, to `/index.php`, runs in another worker.
fn while_running<T>(t: &mut Run, request: &Request, then: impl FnOnce(&Run) -> T) -> T {
    let gate = t.writable("gate");
    t.file(
        "index.php",
        "<?php touch(__DIR__ . '/gate/in'); $until = microtime(true) + 15;
         while (!file_exists(__DIR__ . '/gate/out') && microtime(true) < $until) { usleep(1000); clearstatcache(); }",
    );
    let mut connection = t.connect();
    connection.send(&request.bytes());
    wait_until("the script runs", || gate.join("in").exists());
    let outcome = then(t);
    std::fs::write(gate.join("out"), "").expect("the folder is ours");
    connection.reply(1);
    outcome
}

fn ping(c: &mut Cases) {
    c.same("ping_is_answered_with_the_response_of_the_pool", &STATUS, |t| {
        let request = t.get("/ping");
        let reply = t.send(&request);
        assert_eq!(
            (reply.text().as_str(), reply.header("Content-Type")),
            ("here I am", vec!["text/plain;charset=UTF-8".to_owned()])
        );
    });
    c.same("ping_says_pong_by_default", &UNFIXED, |t| {
        let request = t.get("/ping");
        assert_eq!(t.send(&request).text(), "pong");
    });
    c.same("ping_by_head_has_no_body", &STATUS, |t| {
        let request = t.get("/ping").method("HEAD");
        assert_eq!(t.send(&request).text(), "");
    });
    c.same("ping_takes_any_query_and_method", &STATUS, |t| {
        let request = t.get("/ping").query("x=1").post("text/plain", "body");
        assert_eq!(t.send(&request).text(), "here I am");
    });
    c.same("ping_on_a_kept_connection_keeps_it", &KEPT, |t| {
        let request = t.get("/ping").keep();
        let mut connection = t.connect();
        for _ in 0..3 {
            connection.send(&request.bytes());
            assert_eq!(t.reply(&mut connection, 1).text(), "here I am");
        }
    });
    c.same("ping_on_tcp_is_the_same", &TCP, |t| {
        let request = t.get("/ping");
        assert_eq!(t.send(&request).text(), "here I am");
    });
}

fn function(c: &mut Cases) {
    c.same("the_function_knows_what_the_page_knows", &ONE_WORKER, |t| {
        let request = t
            .page(
                "$s = fpm_get_status(); echo json_encode(array_keys($s)), json_encode(array_keys($s['procs'][0])), count($s['procs']);
                 foreach ($s['procs'] as $p) if ($p['pid'] === getmypid()) { unset($p['pid']); var_dump($p); }
                 unset($s['procs']); var_dump($s);",
            )
            .query("a=\"b\"");
        let reply = t.send_unrecorded(&request);
        t.note(shape(&reply.text()));
        let text = reply.text();
        let keys: Vec<String> = summary().iter().map(|name| name.replace(' ', "-")).chain(["procs".into()]).collect();
        assert!(text.starts_with(&serde_json::to_string(&keys).expect("strings")), "{text}");
        assert!(text.contains("string(7) \"Running\"") && text.contains("[\"active-processes\"]=>\n  int(1)"), "{text}");
    });
    c.same("the_function_takes_no_argument", &STATUS, |t| {
        let reply = t.php("try { fpm_get_status(1); } catch (ArgumentCountError $e) { echo $e->getMessage(); }");
        assert!(
            reply
                .text()
                .contains("fpm_get_status() expects exactly 0 arguments, 1 given")
        );
    });
    c.same("functions_of_the_module_are_described_as_in_php_fpm", &STATUS, |t| {
        let reply = t.php(
            "foreach (['fastcgi_finish_request', 'fpm_get_status', 'apache_request_headers', 'getallheaders'] as $f) echo new ReflectionFunction($f);
             $m = new ReflectionExtension('cgi-fcgi'); echo join(' ', array_keys($m->getFunctions())), $m->getVersion();",
        );
        assert!(reply.text().contains("Function [ <internal:cgi-fcgi> function fastcgi_finish_request ]"), "{}", reply.text());
    });
}
