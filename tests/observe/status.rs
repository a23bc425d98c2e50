//! `pm.status_path`, `ping.path` and fpm_get_status().

use crate::harness::{Case, Cases, Request, Run, wait_until};
use crate::numbers::hidden;
use crate::support::fcgi::Reply;
use crate::support::server::{Setup, php_fpm_release};

static STATUS: Setup = Setup {
    name: "status",
    pool: "pm.status_path = /status\nping.path = /ping\nping.response = \"pong <&>\"\n",
    ..Setup::BASE
};

/// Nobody else asks this one: its counters are exact.
static COUNTED: Setup = Setup {
    name: "status-counted",
    workers: 3,
    pool: "pm.status_path = /status\n",
    ..Setup::BASE
};

/// Its own, for the same reason: which case comes first is a matter of luck.
static RUNNING: Setup = Setup {
    name: "status-running",
    ..COUNTED
};

const FORMATS: [&str; 5] = ["", "html", "xml", "json", "openmetrics"];

/// The answer with its numbers hidden and what there is of workers in an order of its own.
fn shape(reply: &Reply) -> String {
    let head = reply.headers().join("\n");
    let body = hidden(&reply.text());
    let (text, xml) = ("\n\n************************\n", "<process>");
    let (separator, end) = match () {
        () if body.contains(text) => (text, ""),
        () if body.contains(xml) => (xml, "\n</processes>"),
        () if body.contains("<tr><td>N</td>") => ("<tr><td>N</td>", "\n</table></body>"),
        () if body.contains("{\"pid\"") => ("{\"pid\"", "]}"),
        () => return format!("{head}\n{body}"),
    };
    let (workers, end) = match body.rsplit_once(end) {
        Some((workers, rest)) if !end.is_empty() => (workers.to_owned(), format!("{end}{rest}")),
        _ => (body, String::new()),
    };
    let mut parts: Vec<_> = workers
        .split(separator)
        .map(|part| part.trim_end_matches([',', '\n']))
        .collect();
    parts[1..].sort_unstable();
    format!("{head}\n{}{end}", parts.join(&format!("\n{separator}")))
}

/// A request for the status page as a web server sends it that has no such file.
fn status(run: &mut Run, query: &str) -> Reply {
    page(run, &run.get("/status").query(query))
}

/// The answer to a request for a status page. php-fpm has none while another worker makes one.
fn page(run: &Run, request: &Request) -> Reply {
    loop {
        let reply = run.send_unrecorded(request);
        if run.is_php_pool() || !reply.headers().iter().any(|h| h.starts_with("Status: 500")) {
            return reply;
        }
    }
}

/// Makes all workers look alike: each has answered the same request, as each waits for the others.
fn warm(run: &mut Run) {
    let workers = run.server.setup.workers;
    run.writable("warm");
    let request = run.page(&format!(
        "touch(__DIR__ . '/warm/' . getmypid()); $until = microtime(true) + 20;
         while (count(scandir(__DIR__ . '/warm')) < 2 + {workers} && microtime(true) < $until) usleep(1000); echo 'x';"
    ));
    let bytes = request.bytes();
    let mut connections: Vec<_> = (0..run.server.setup.workers).map(|_| run.connect()).collect();
    for connection in &mut connections {
        connection.send(&bytes);
    }
    for connection in &mut connections {
        assert!(connection.reply(1).end.is_some());
    }
}

pub fn cases() -> Vec<Case> {
    Cases::of("status", |cases| {
        for format in FORMATS {
            cases.same(format!("the page is php_fpms as '{format}'"), &STATUS, move |run| {
                let reply = status(run, format);
                run.note(shape(&reply));
            });
            cases
                .same(
                    format!("the full page is php_fpms as '{format}'"),
                    &STATUS,
                    move |run| {
                        warm(run);
                        let reply = status(run, &format!("{format}&full"));
                        // Which worker is seen on its way out of the last request is a matter of luck.
                        let shape = shape(&reply).replace("Finishing", "Idle");
                        // Before 8.2.36 php-fpm escaped the slashes of the URI alone.
                        let old = php_fpm_release() < [8, 2, 36];
                        run.note(if old { shape.replace("\\/", "/") } else { shape });
                    },
                )
                .alone();
        }
        cases.same("html stands before xml, json and openmetrics", &STATUS, |run| {
            for query in [
                "openmetrics&json&xml&html",
                "openmetrics&json&xml",
                "openmetrics&json",
                "a=b&json=0",
            ] {
                let reply = status(run, query);
                run.note(reply.header("Content-Type").join(" "));
            }
        });
        cases.differed(
            "a query key counts as a whole",
            &STATUS,
            [8, 4, 0],
            "php-fpm took every prefix of a key for the key, so that `?x=1` was XML",
            |run| {
                for query in ["j", "x=1", "htm", "jsonx"] {
                    let reply = status(run, query);
                    run.note(format!("{query}: {}", reply.header("Content-Type").join(" ")));
                }
            },
        );
        for (format, text) in [
            ("json&full", "application/json"),
            ("html&full", "text/html"),
            ("xml&full", "text/xml"),
        ] {
            cases.differed(
                format!("a request cannot break {format}"),
                &STATUS,
                [8, 2, 36],
                "php-fpm escaped URI and query alone; a user name with markup in it ran in the administrator's browser",
                move |run| {
                    let user = "Basic Ij48ZXZpbD46cGFzcw=="; // "><evil>
                    let request = run.get("/status").query(format).set("HTTP_AUTHORIZATION", user);
                    // The master answers while every worker is busy, and shows no request of its own.
                    let mut replies = (0..5).map(|_| page(run, &request));
                    let reply = replies.find(|reply| reply.text().contains("evil"));
                    let reply = reply.expect("a worker answers");
                    assert!(reply.header("Content-Type")[0].starts_with(text));
                    let body = reply.text();
                    run.note(format!("<evil>: {}", body.contains("<evil>")));
                    run.note(format!("\"\">: {}", body.contains("\"\">")));
                    if run.is_php_pool() {
                        let escaped = if format.starts_with("json") {
                            "\\\"><evil>"
                        } else {
                            "&quot;&gt;&lt;evil&gt;"
                        };
                        assert!(body.contains(escaped), "{body}");
                    }
                },
            );
        }
        cases.same("HEAD has headers alone", &STATUS, |run| {
            for uri in ["/status", "/ping"] {
                let reply = page(run, &run.get(uri).method("HEAD").query("json"));
                run.note(reply.to_string());
            }
        });
        cases.same("any method is answered, and none is not", &STATUS, |run| {
            let reply = page(run, &run.get("/status").method("BREW").query("json"));
            run.note(shape(&reply));
            run.send(&run.get("/status").unset("REQUEST_METHOD"));
        });
        cases.same("ping answers in its own words", &STATUS, |run| {
            run.send(&run.get("/ping"));
            run.send(&run.get("/ping").query("json&full"));
        });
        cases.same("another path is not the status page", &STATUS, |run| {
            run.send(&run.get("/status/"));
            run.send(&run.get("/STATUS"));
            run.send(&run.get("/ping/"));
        });
        cases.same("fpm_get_status has php_fpms array", &STATUS, |run| {
            warm(run);
            let request = run
                .page("$s = fpm_get_status(); foreach ($s['procs'] as $p) if ($p['state'] == 'Running') $r = $p; $s['procs'] = [$r, count($s['procs'])]; var_dump($s);")
                .query("a=b&c=%22")
                .set("HTTP_AUTHORIZATION", "Basic dXNlcjpwYXNz");
            let reply = run.send_unrecorded(&request);
            run.note(hidden(&reply.text()));
        })
        .alone();
        cases
            .same("counters are exact", &COUNTED, |run| {
                warm(run);
                for n in 0..20 {
                    run.send(&run.page(&format!("echo {n};")));
                }
                let row = |body: &str, name: &str| body.lines().find(|l| l.starts_with(name)).map(str::to_owned);
                let body = status(run, "").text();
                for name in [
                    "pool",
                    "process manager",
                    "accepted conn",
                    "max children",
                    "slow requests",
                ] {
                    run.note(row(&body, name).unwrap_or_default());
                }
                // php-fpm's master counts its processes once a second, and does not see each of them each time.
                let again = run.get("/status");
                wait_until("all three workers are counted", || {
                    let body = run.send_unrecorded(&again).text();
                    row(&body, "total processes").is_some_and(|row| row.ends_with(" 3"))
                });
            })
            .alone();
        cases
            .same("the status request is the running one", &RUNNING, |run| {
                let body = status(run, "full&json").text();
                let state = |uri: &str| {
                    let workers = body.split("{\"pid\"");
                    let mine = workers
                        .filter(|w| w.contains(uri))
                        .map(|w| w.split('"').nth(3).unwrap_or_default().to_owned());
                    mine.collect::<Vec<_>>().join(" ")
                };
                run.note(state("\\/status?full&json"));
            })
            .alone();
    })
}
