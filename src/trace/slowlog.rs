//! The record of a slow request, as php-fpm writes it.
//!
//! What differs from php-fpm: a method stands with its class (`Class::method()`), generators, fibers and destructors are
//! followed where php-fpm loses the track, and two or three lines after the frames name the request and how long it ran.
//! Readers of php-fpm's records find every line of theirs in its place.

use std::fmt::Write;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::process::TraceError;
use super::reader::{Backtrace, End, Frame, Kind, shown};

/// A request that ran longer than `request_slowlog_timeout`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowRequest {
    /// Pool.
    pub pool: String,
    /// Its worker.
    pub pid: i32,
    /// Script.
    pub script: String,
    /// REQUEST_METHOD
    pub method: String,
    /// Without the query.
    pub uri: String,
    /// QUERY_STRING
    pub query: String,
    /// Request id; may be empty.
    pub id: String,
    /// How long it has run.
    pub duration: Duration,
}

/// The record, to be appended in one write. `time` is the local one, `20-Nov-2026 20:57:36`; `depth` is
/// `request_slowlog_trace_depth`.
pub fn record(time: &str, slow: &SlowRequest, trace: Result<&Backtrace, &TraceError>, depth: u32) -> String {
    let mut text = format!("\n[{time}]  [pool {}] pid {}\n", slow.pool, slow.pid);
    let seen = trace.ok().and_then(|trace| trace.request.as_ref()?.script.as_deref());
    line(&mut text, "script_filename", seen.unwrap_or(&slow.script));
    match trace {
        Ok(trace) => {
            for (index, call) in calls(trace, depth).iter().enumerate() {
                let _ = writeln!(text, "[{:#018x}] {call}", trace.frames[index].address);
            }
            if !is_whole(trace, depth) {
                text.push_str("+++ dump failed\n");
            }
        }
        Err(error) => writeln!(text, "+++ dump failed: {error}").unwrap_or(()),
    }
    let query = if slow.query.is_empty() { "" } else { "?" };
    line(
        &mut text,
        "request",
        &format!("{} {}{query}{}", slow.method, slow.uri, slow.query),
    );
    if !slow.id.is_empty() {
        line(&mut text, "request_id", &slow.id);
    }
    line(&mut text, "duration", &format!("{:.6}", slow.duration.as_secs_f64()));
    text
}

fn line(text: &mut String, key: &str, value: &str) {
    let _ = writeln!(text, "{key} = {}", shown(value));
}

/// Each call, the innermost first, with its place: `Class::method() file:line`. The script itself was called by nobody.
pub fn calls(trace: &Backtrace, depth: u32) -> Vec<String> {
    let called = called(trace).take(depth as usize);
    let place = |(index, frame): (usize, &Frame)| {
        let (file, line) = trace.call_site(index).unwrap_or(("unknown", 0));
        format!("{}() {file}:{line}", frame.name())
    };
    called.enumerate().map(place).collect()
}

fn called(trace: &Backtrace) -> impl Iterator<Item = &Frame> {
    let script = trace.frames.last().is_some_and(|last| last.kind == Kind::Main);
    trace.frames.iter().take(trace.frames.len() - usize::from(script))
}

fn is_whole(trace: &Backtrace, depth: u32) -> bool {
    matches!(trace.end, End::Complete | End::Limit) || called(trace).count() >= depth as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::RequestText;

    fn frame(address: u64, kind: Kind, class: Option<&str>, function: Option<&str>, at: Option<(&str, u32)>) -> Frame {
        Frame {
            address,
            kind,
            class: class.map(str::to_owned),
            function: function.map(str::to_owned),
            file: at.map(|(file, _)| file.to_owned()),
            line: at.map(|(_, line)| line),
            arguments: Vec::new(),
            more_arguments: false,
        }
    }

    fn trace(frames: Vec<Frame>, end: End) -> Backtrace {
        let request = RequestText {
            script: Some("/srv/index.php".to_owned()),
            ..RequestText::default()
        };
        Backtrace {
            request: Some(request),
            frames,
            end,
            steady: true,
        }
    }

    fn slow() -> SlowRequest {
        SlowRequest {
            pool: "www".into(),
            pid: 8815,
            script: "/srv/asked.php".into(),
            method: "GET".into(),
            uri: "/a".into(),
            query: "b=c\nd".into(),
            id: String::new(),
            duration: Duration::from_micros(1_140_000),
        }
    }

    const TIME: &str = "20-Nov-2026 20:57:36";

    #[test]
    fn each_frame_stands_with_the_place_of_its_call() {
        let function = Kind::Function;
        let frames = vec![
            frame(0x7efc_9061_56b0, function, None, Some("sleep"), None),
            frame(
                0x7efc_9061_5640,
                function,
                Some("A\\B"),
                Some("m"),
                Some(("/srv/b.php", 4)),
            ),
            frame(0x7efc_9061_55d0, function, None, Some("array_map"), None),
            frame(0x7efc_9061_5540, Kind::Include, None, None, Some(("/srv/b.php", 9))),
            frame(0x7efc_9061_5480, function, None, None, None),
            frame(0x7efc_9061_5020, Kind::Main, None, None, Some(("/srv/index.php", 2))),
        ];
        assert_eq!(
            record(TIME, &slow(), Ok(&trace(frames, End::Complete)), 20),
            "\n[20-Nov-2026 20:57:36]  [pool www] pid 8815\n\
             script_filename = /srv/index.php\n\
             [0x00007efc906156b0] sleep() /srv/b.php:4\n\
             [0x00007efc90615640] A\\B::m() /srv/b.php:9\n\
             [0x00007efc906155d0] array_map() /srv/b.php:9\n\
             [0x00007efc90615540] [INCLUDE_OR_EVAL]() /srv/index.php:2\n\
             [0x00007efc90615480] ???() /srv/index.php:2\n\
             request = GET /a?b=c.d\n\
             duration = 1.140000\n"
        );
    }

    #[test]
    fn the_depth_counts_frames_and_the_last_one_still_has_its_place() {
        let call = |i| frame(i, Kind::Function, None, Some("f"), Some(("/f.php", i as u32)));
        let text = record(TIME, &slow(), Ok(&trace((1..9).map(call).collect(), End::Limit)), 2);
        assert_eq!(text.matches("[0x").count(), 2);
        assert!(text.contains("[0x0000000000000002] f() /f.php:3\n"), "{text}");
        assert!(!text.contains("+++"), "{text}");
    }

    #[test]
    fn what_was_called_by_the_engine_has_no_place() {
        let shutdown = vec![frame(1, Kind::Function, None, Some("bye"), Some(("/f.php", 7)))];
        let text = record(TIME, &slow(), Ok(&trace(shutdown, End::Complete)), 20);
        assert!(text.contains("bye() unknown:0\n"), "{text}");
    }

    #[test]
    fn a_broken_stack_ends_as_in_php_fpm() {
        let one = || vec![frame(1, Kind::Function, None, Some("f"), None)];
        for end in [End::Unreadable, End::Circle] {
            let text = record(TIME, &slow(), Ok(&trace(one(), end)), 20);
            assert!(text.contains("f() unknown:0\n+++ dump failed\nrequest"), "{text}");
        }
        // What was asked for is there.
        assert!(!record(TIME, &slow(), Ok(&trace(one(), End::Circle)), 1).contains("+++"));
    }

    #[test]
    fn without_the_privilege_the_record_says_which() {
        let error = TraceError::Refused {
            pid: 8815,
            reason: "CAP_SYS_PTRACE is missing".into(),
        };
        let text = record(TIME, &slow(), Err(&error), 20);
        let failed = "\n+++ dump failed: process 8815 cannot be read: CAP_SYS_PTRACE is missing\n";
        assert!(
            text.contains("script_filename = /srv/asked.php\n") && text.contains(failed),
            "{text}"
        );
    }
}
