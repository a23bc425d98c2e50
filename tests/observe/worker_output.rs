//! What workers print: `catch_workers_output` and `decorate_workers_output`.

use crate::harness::{Case, Cases, Run};
use crate::support::server::Setup;

static DECORATED: Setup = Setup {
    name: "output-decorated",
    workers: 1,
    global: "log_limit = 512\n",
    pool: "catch_workers_output = yes\n",
    ..Setup::BASE
};

static PLAIN: Setup = Setup {
    name: "output-plain",
    workers: 1,
    pool: "catch_workers_output = yes\ndecorate_workers_output = no\n",
    ..Setup::BASE
};

static NAMED: Setup = Setup {
    name: "output-named",
    workers: 1,
    pool: "catch_workers_output = yes\n",
    php_pool: "[global]\nlog_request_id = yes\n[www]\n",
    ..Setup::BASE
};

/// Prints each piece by a write of its own, then what ends the wait.
const PRINTER: &str = "foreach (explode(',', file_get_contents('php://input')) as $piece) { \
    fwrite($f ??= fopen('php://' . $_SERVER['HTTP_STREAM'], 'w'), base64_decode($piece)); usleep(2000); }";

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let groups = bytes.chunks(3).flat_map(|chunk| {
        let word = chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        (0..4).map(move |i| {
            if i <= chunk.len() {
                DIGITS[(word >> (18 - 6 * i)) as usize & 63] as char
            } else {
                '='
            }
        })
    });
    groups.collect()
}

/// Lets a worker print pieces, each request's in its own, between two marks; the log's lines between them.
fn said(run: &mut Run, stream: &str, requests: &[&[&[u8]]]) -> Vec<String> {
    let print = |run: &mut Run, pieces: &[&[u8]]| {
        let body = pieces.iter().map(|piece| base64(piece)).collect::<Vec<_>>().join(",");
        let request = run.page(PRINTER).post("text/plain", body).set("HTTP_STREAM", stream);
        run.send_unrecorded(&request);
    };
    let name = run
        .root
        .file_name()
        .expect("a case's folder")
        .to_string_lossy()
        .into_owned();
    print(run, &[format!("<{name}>\n").as_bytes()]);
    let begin = format!("<{name}>");
    for pieces in requests {
        print(run, pieces);
    }
    print(run, &[format!("</{name}>\n").as_bytes()]);
    let end = format!("</{name}>");
    let log = run.server.wait_for_log("the end of the case", |log| log.contains(&end));
    let lines = log.lines().skip_while(|l| !l.contains(&begin)).skip(1);
    lines.take_while(|l| !l.contains(&end)).map(str::to_owned).collect()
}

/// What a worker printed of a line, decorated or not.
fn text(line: &str) -> &str {
    line.split_once(": \"")
        .map_or(line, |(_, text)| text.trim_end_matches('"'))
}

/// Time and pid never are alike.
fn without_time_and_pid(line: &str) -> String {
    let line = match line.split_once("] ") {
        Some((time, rest)) if time.starts_with('[') && time.len() == 21 => format!("[time] {rest}"),
        _ => line.to_owned(),
    };
    match line.split_once("child ") {
        Some((start, rest)) => {
            format!("{start}child {}", rest.trim_start_matches(|c: char| c.is_ascii_digit()))
        }
        None => line,
    }
}

/// A case of lines that are alike as they stand.
fn alike(cases: &mut Cases, name: &str, setup: &'static Setup, stream: &'static str, requests: &'static [&[&[u8]]]) {
    cases
        .same(name, setup, move |run| {
            let lines = said(run, stream, requests);
            run.note(
                lines
                    .iter()
                    .map(|l| without_time_and_pid(l))
                    .collect::<Vec<_>>()
                    .join("\n"),
            );
        })
        .alone();
}

pub fn cases() -> Vec<Case> {
    Cases::of("worker_output", |cases| {
        for (kind, setup) in [("decorated", &DECORATED), ("plain", &PLAIN)] {
            let lines: &[&[&[u8]]] = &[&[b"one\n", b"two\nthree\n", b"\n\n", b"four"], &[b"five\n"]];
            alike(cases, &format!("{kind}: lines of stderr"), setup, "stderr", lines);
            let ended: &[&[&[u8]]] = &[&[b"one\n", b"two\nthree\n", b"\n\n", b"four\n"], &[b"five\n"]];
            alike(cases, &format!("{kind}: lines of stdout"), setup, "stdout", ended);
            // Where a request ends is not marked on stdout: a line that it leaves open is joined with the next one's if both
            // are read in one go, and by php-fpm also if it reads of the end, on stderr, before it reads the line.
            cases
                .same(
                    format!("{kind}: an open line of stdout is not lost"),
                    setup,
                    move |run| {
                        let said = said(run, "stdout", lines);
                        run.note(said.iter().map(|line| text(line)).collect::<String>());
                    },
                )
                .alone();
            alike(
                cases,
                &format!("{kind}: pieces are joined"),
                setup,
                "stderr",
                &[&[b"one ", b"two ", b"three"]],
            );
            alike(
                cases,
                &format!("{kind}: requests are not joined"),
                setup,
                "stderr",
                &[&[b"one"], &[b"two"]],
            );
            alike(
                cases,
                &format!("{kind}: bytes pass as they are"),
                setup,
                "stderr",
                &[&[b"\"\t\x1b[0m\xc3\xa9'\\\r\n"]],
            );
            alike(
                cases,
                &format!("{kind}: markers of a script's own"),
                setup,
                "stderr",
                &[&[b"one\0fscf\0two\0fscf\0\0fscf\0", b"three\n"]],
            );
            alike(
                cases,
                &format!("{kind}: what only looks like a marker"),
                setup,
                "stderr",
                &[&[b"a\0f b\0fsc c\n"]],
            );
            // Of those less the pid's digits, which stand in the line too, the first just fits and the second does not.
            let but_for_the_pid = [442, 443].map(|length| (length, true));
            let as_they_are = [1, 100, 511, 512, 1023, 1024, 3000].map(|length| (length, false));
            for (length, less_the_pid) in but_for_the_pid.into_iter().chain(as_they_are) {
                let less = if less_the_pid { " less the pid's digits" } else { "" };
                cases
                    .same(format!("{kind}: a line of {length} bytes{less}"), setup, move |run| {
                        let digits = run.send_unrecorded(&run.page("echo getmypid();")).text().trim().len();
                        let length = if less_the_pid { length - digits } else { length };
                        let printed: String = (0..length).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
                        let lines = said(run, "stderr", &[&[printed.as_bytes(), b"\n"]]);
                        // A pid may have another number of digits: the place of a cut is compared by the line's length.
                        let (full, last) = lines.split_at(lines.len() - 1);
                        run.note(format!("{:?}", full.iter().map(String::len).collect::<Vec<_>>()));
                        assert_eq!(lines.iter().map(|line| text(line)).collect::<String>(), printed);
                        run.note(without_time_and_pid(
                            last[0].trim_end_matches(|c: char| c.is_ascii_lowercase() || c == '"'),
                        ));
                    })
                    .alone();
            }
        }
        cases
            .same("a message of error_log is a notice of the worker", &DECORATED, |run| {
                let request =
                    run.page("error_log('notice-1'); error_log(\"notice-2\nnotice-3\"); error_log('notice-4');");
                run.send(&request);
                let log = run
                    .server
                    .wait_for_log("the last message", |log| log.contains("notice-4"));
                let lines = log.lines().filter(|l| l.contains("notice-"));
                run.note(lines.map(without_time_and_pid).collect::<Vec<_>>().join("\n"));
            })
            .alone();
        cases
            .differs(
                "a message names its request where that is asked for",
                &NAMED,
                "php-fpm has no ids",
                |run| {
                    let get = run
                        .page("error_log(\"named-1\nnamed-2\"); fopen('php://stderr', 'w'); trigger_error('named-3');");
                    run.send_unrecorded(&get.set("HTTP_X_REQUEST_ID", "abc-1"));
                    run.send_unrecorded(&run.page("error_log('named-4');").set("HTTP_X_REQUEST_ID", "abc-2"));
                    let log = run
                        .server
                        .wait_for_log("the last message", |log| log.contains("named-4"));
                    let lines: Vec<String> = log
                        .lines()
                        .filter(|l| l.contains("named-"))
                        .map(without_time_and_pid)
                        .collect();
                    if run.is_php_pool() {
                        let of = |id: &str| {
                            lines
                                .iter()
                                .filter(|line| line.contains(&format!("[pool www] [request {id}] child")))
                                .count()
                        };
                        assert_eq!((of("abc-1"), of("abc-2")), (3, 1), "{lines:?}");
                    }
                    run.note(lines.join("\n"));
                },
            )
            .alone();
        cases
            .same("a long message of error_log is cut to the limit", &DECORATED, |run| {
                run.send(&run.page("error_log(str_repeat('m', 2000)); error_log('done-long');"));
                let log = run.server.wait_for_log("the message", |log| log.contains("done-long"));
                let texts: String = log
                    .lines()
                    .filter_map(|l| l.split_once("said into stderr: \""))
                    .map(|(_, text)| text.trim_end_matches('"'))
                    .filter(|text| text.contains("mmm") || text.ends_with("..."))
                    .collect();
                run.note(texts);
            })
            .alone();
    })
}
