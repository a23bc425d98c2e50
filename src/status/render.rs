//! php-fpm's renderings, byte for byte as far as nothing hostile stands in them.

use std::fmt::{Arguments, Write};

use super::{ProcessStatus, Snapshot};
use crate::log::Clock;

/// A value, before it is escaped for a format.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Number(u64),
    /// Two digits after the point.
    Percent(f64),
    /// Seconds since the epoch.
    Time(i64),
    Text(&'a str),
    /// URI and query, which php-fpm joins.
    Uri(&'a str, &'a str),
}

/// Name and value of what concerns the pool, in php-fpm's order. XML and fpm_get_status() have `-` for the blank.
pub(super) fn summary(s: &Snapshot) -> Vec<(&'static str, Value<'_>)> {
    let mut rows = vec![
        ("pool", Value::Text(&s.pool)),
        ("process manager", Value::Text(s.pm.name())),
        ("start time", Value::Time(s.start_time)),
        ("start since", Value::Number(s.start_since)),
        ("accepted conn", Value::Number(s.accepted)),
        ("listen queue", Value::Number(s.listen_queue.into())),
        ("max listen queue", Value::Number(s.max_listen_queue.into())),
        ("listen queue len", Value::Number(s.listen_queue_len.into())),
        ("idle processes", Value::Number(s.idle.into())),
        ("active processes", Value::Number(s.active.into())),
        (
            "total processes",
            Value::Number(u64::from(s.idle) + u64::from(s.active)),
        ),
        ("max active processes", Value::Number(s.max_active.into())),
        ("max children reached", Value::Number(s.max_children_reached.into())),
        ("slow requests", Value::Number(s.slow_requests)),
    ];
    rows.extend(s.memory_peak.map(|peak| ("memory peak", Value::Number(peak))));
    rows
}

/// Names of what concerns a worker, in php-fpm's order.
const WORKER: [&str; 13] = [
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

/// The same with their values.
fn worker(p: &ProcessStatus) -> [(&'static str, Value<'_>); 13] {
    let values = [
        Value::Number(p.pid.unsigned_abs().into()),
        Value::Text(p.stage.name()),
        Value::Time(p.start_time),
        Value::Number(p.start_since),
        Value::Number(p.requests),
        Value::Number(p.request_duration),
        Value::Text(or_dash(&p.method)),
        Value::Uri(&p.uri, &p.query),
        Value::Number(p.content_length),
        Value::Text(or_dash(&p.user)),
        Value::Text(or_dash(&p.script)),
        Value::Percent(p.last_request_cpu),
        Value::Number(p.last_request_memory),
    ];
    std::array::from_fn(|i| (WORKER[i], values[i]))
}

/// php-fpm's word for what is empty.
pub(super) fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// How a format writes values.
struct Dialect<'a> {
    /// Times are printed by it; without it, as seconds since the epoch.
    clock: Option<&'a mut Clock>,
    text: fn(&mut String, &str),
}

impl Dialect<'_> {
    fn put(&mut self, out: &mut String, value: Value<'_>) {
        match (value, &mut self.clock) {
            (Value::Number(n), _) => add(out, format_args!("{n}")),
            (Value::Percent(p), _) => add(out, format_args!("{p:.2}")),
            (Value::Time(t), Some(clock)) => out.push_str(clock.at(t)),
            (Value::Time(t), None) => add(out, format_args!("{t}")),
            (Value::Text(s), _) => (self.text)(out, s),
            (Value::Uri(uri, query), _) => {
                (self.text)(out, or_dash(uri));
                if !query.is_empty() {
                    out.push('?');
                    (self.text)(out, query);
                }
            }
        }
    }
}

pub(super) fn add(out: &mut String, text: Arguments<'_>) {
    out.write_fmt(text).expect("a String takes what is written to it");
}

/// Control characters escaped, so that no request adds a line.
fn plain(out: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() {
            add(out, format_args!("\\x{:02X}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
}

/// As htmlspecialchars() does, for text and for attributes in double quotes; what XML 1.0 or HTML do not allow becomes U+FFFD.
pub(super) fn markup(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' | '\r' => out.push(c),
            '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
}

/// The inside of a JSON string as json_encode() writes it.
fn json_text(out: &mut String, text: &str) {
    let mut units = [0; 2];
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '/' => out.push_str("\\/"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            ' '..='\x7f' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut units) {
                    add(out, format_args!("\\u{unit:04x}"));
                }
            }
        }
    }
}

pub(super) fn text(snapshot: &Snapshot, full: bool, clock: &mut Clock) -> String {
    let mut out = String::new();
    let mut dialect = Dialect {
        clock: Some(clock),
        text: plain,
    };
    let mut row = |out: &mut String, name: &str, value| {
        let name = if name == "request uri" { "request URI" } else { name };
        add(out, format_args!("{name}:{:1$}", "", 21 - name.len()));
        dialect.put(out, value);
        out.push('\n');
    };
    for (name, value) in summary(snapshot) {
        row(&mut out, name, value);
    }
    for process in snapshot.processes.iter().filter(|_| full) {
        out.push_str("\n************************\n");
        for (name, value) in worker(process) {
            row(&mut out, name, value);
        }
    }
    out
}

pub(super) fn html(snapshot: &Snapshot, full: bool, clock: &mut Clock) -> String {
    let mut out = String::from(
        "<!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 Strict//EN\" \
         \"http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd\">\n\
         <html xmlns=\"http://www.w3.org/1999/xhtml\" xml:lang=\"en\" lang=\"en\">\n\
         <head><title>PHP-FPM Status Page</title></head>\n<body>\n<table>\n",
    );
    let mut dialect = Dialect {
        clock: Some(clock),
        text: markup,
    };
    for (name, value) in summary(snapshot) {
        add(&mut out, format_args!("<tr><th>{name}</th><td>"));
        dialect.put(&mut out, value);
        out.push_str("</td></tr>\n");
    }
    out.push_str("</table>\n");
    if full {
        out.push_str("<table border=\"1\">\n<tr>");
        for name in WORKER {
            add(&mut out, format_args!("<th>{name}</th>"));
        }
        out.push_str("</tr>\n");
        for process in &snapshot.processes {
            out.push_str("<tr>");
            for (_, value) in worker(process) {
                out.push_str("<td>");
                dialect.put(&mut out, value);
                out.push_str("</td>");
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</table>");
    }
    out.push_str("</body></html>");
    out
}

pub(super) fn xml(snapshot: &Snapshot, full: bool) -> String {
    let mut out = String::from("<?xml version=\"1.0\" ?>\n<status>\n");
    let mut dialect = Dialect {
        clock: None,
        text: markup,
    };
    let mut element = |out: &mut String, name: &str, value| {
        let tag = name.replace(' ', "-");
        add(out, format_args!("<{tag}>"));
        dialect.put(out, value);
        add(out, format_args!("</{tag}>"));
    };
    for (name, value) in summary(snapshot) {
        element(&mut out, name, value);
        out.push('\n');
    }
    if full {
        out.push_str("<processes>\n");
        for process in &snapshot.processes {
            out.push_str("<process>");
            for (name, value) in worker(process) {
                element(&mut out, name, value);
            }
            out.push_str("</process>\n");
        }
        out.push_str("</processes>\n");
    }
    out.push_str("</status>");
    out
}

pub(super) fn json(snapshot: &Snapshot, full: bool) -> String {
    let mut out = String::new();
    json_object(&mut out, &summary(snapshot));
    if full {
        out.pop();
        out.push_str(", \"processes\":[");
        for (i, process) in snapshot.processes.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            json_object(&mut out, &worker(process));
        }
        out.push_str("]}");
    }
    out
}

fn json_object(out: &mut String, members: &[(&str, Value<'_>)]) {
    let mut dialect = Dialect {
        clock: None,
        text: json_text,
    };
    out.push('{');
    for (i, (name, value)) in members.iter().enumerate() {
        let comma = if i > 0 { "," } else { "" };
        let quote = if matches!(value, Value::Text(_) | Value::Uri(..)) {
            "\""
        } else {
            ""
        };
        add(out, format_args!("{comma}\"{name}\":{quote}"));
        dialect.put(out, *value);
        out.push_str(quote);
    }
    out.push('}');
}

/// php-fpm's text, with its faults (a HELP after its TYPE, counters without `_total`, no label): scrapers hold it so.
pub(super) fn openmetrics(s: &Snapshot) -> String {
    let pm = s.pm.name();
    let mut out = String::new();
    add(
        &mut out,
        format_args!(
            "# HELP phpfpm_up Could pool {} using a {pm} PM on PHP-FPM be reached?\n\
             # TYPE phpfpm_up gauge\nphpfpm_up 1\n",
            s.pool
        ),
    );
    let mut metric = |name: &str, kind: &str, help: &str, value: u64| {
        let help = format!("# HELP phpfpm_{name} {help}\n");
        let kind = format!("# TYPE phpfpm_{name} {kind}\n");
        let (first, second) = if name == "listen_queue_length" {
            (kind, help)
        } else {
            (help, kind)
        };
        add(&mut out, format_args!("{first}{second}phpfpm_{name} {value}\n"));
    };
    metric(
        "start_since",
        "counter",
        "The number of seconds since FPM has started.",
        s.start_since,
    );
    metric(
        "accepted_connections",
        "counter",
        "The number of requests accepted by the pool.",
        s.accepted,
    );
    metric(
        "listen_queue",
        "gauge",
        "The number of requests in the queue of pending connections.",
        s.listen_queue.into(),
    );
    metric(
        "max_listen_queue",
        "counter",
        "The maximum number of requests in the queue of pending connections since FPM has started.",
        s.max_listen_queue.into(),
    );
    metric(
        "listen_queue_length",
        "gauge",
        "The size of the socket queue of pending connections.",
        s.listen_queue_len.into(),
    );
    metric(
        "idle_processes",
        "gauge",
        "The number of idle processes.",
        s.idle.into(),
    );
    metric(
        "active_processes",
        "gauge",
        "The number of active processes.",
        s.active.into(),
    );
    metric(
        "total_processes",
        "gauge",
        "The number of idle + active processes.",
        u64::from(s.idle) + u64::from(s.active),
    );
    metric(
        "max_active_processes",
        "counter",
        "The maximum number of active processes since FPM has started.",
        s.max_active.into(),
    );
    metric(
        "max_children_reached",
        "counter",
        "The number of times, the process limit has been reached, when pm tries to start more children (works only for \
         pm 'dynamic' and 'ondemand').",
        s.max_children_reached.into(),
    );
    metric(
        "slow_requests",
        "counter",
        "The number of requests that exceeded your 'request_slowlog_timeout' value.",
        s.slow_requests,
    );
    if let Some(peak) = s.memory_peak {
        let help = "The memory usage peak since FPM has started.";
        metric("memory_peak", "gauge", help, peak);
    }
    out.push_str("# EOF\n");
    out
}
