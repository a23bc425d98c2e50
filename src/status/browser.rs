//! The status page for a person: it renews itself, and is read on a telephone as well.

use super::render::{add, markup, or_dash};
use super::{ProcessStatus, Snapshot};
use crate::log::Clock;

/// Seconds between two looks.
const REFRESH: u32 = 5;

const STYLE: &str = include_str!("browser.css");

pub(super) fn page(s: &Snapshot, full: bool, clock: &mut Clock) -> String {
    let mut out = String::with_capacity(8192);
    out.push_str("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    add(
        &mut out,
        format_args!("<meta http-equiv=\"refresh\" content=\"{REFRESH}\">\n"),
    );
    out.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>");
    markup(&mut out, &s.pool);
    let total = u64::from(s.idle) + u64::from(s.active);
    add(
        &mut out,
        format_args!(
            ": {} of {total} busy</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
            s.active
        ),
    );
    head(&mut out, s, clock);
    tiles(&mut out, s, total);
    if full {
        workers(&mut out, s);
    }
    let (query, words) = if full {
        ("html", "Hide workers")
    } else {
        ("html&amp;full", "Show workers")
    };
    add(
        &mut out,
        format_args!(
            "<nav><a href=\"?{query}\">{words}</a> <a href=\"?full\">Text</a> <a href=\"?json&amp;full\">JSON</a> \
             <a href=\"?xml&amp;full\">XML</a> <a href=\"?openmetrics\">OpenMetrics</a></nav>\n</body>\n</html>\n"
        ),
    );
    out
}

fn head(out: &mut String, s: &Snapshot, clock: &mut Clock) {
    out.push_str("<header><h1>");
    markup(out, &s.pool);
    add(
        out,
        format_args!(
            "</h1><p>{}, up {} since {}</p></header>\n",
            s.pm.name(),
            span(s.start_since),
            clock.at(s.start_time),
        ),
    );
}

fn tiles(out: &mut String, s: &Snapshot, total: u64) {
    // A browser draws what lies beyond `high` red, and between `low` and `high` yellow.
    let high = if s.listen_queue > 0 { 0 } else { total.max(1) };
    add(
        out,
        format_args!(
            "<meter min=\"0\" low=\"{low}\" high=\"{high}\" optimum=\"0\" max=\"{max}\" value=\"{active}\" \
             aria-label=\"busy workers\"></meter>\n<dl>\n",
            low = high.min(total.saturating_sub(1)),
            max = total.max(1),
            active = s.active,
        ),
    );
    let mut tile = |class: &str, name: &str, value: &dyn std::fmt::Display, note: &str| {
        add(
            out,
            format_args!("<div{class}><dt>{name}</dt><dd>{value}</dd><dd class=\"note\">{note}</dd></div>\n"),
        );
    };
    let bad = |yes, class| if yes { class } else { "" };
    tile(
        "",
        "busy workers",
        &format_args!("{} <small>of {total}</small>", s.active),
        &format!("most so far {}", s.max_active),
    );
    tile("", "idle workers", &s.idle, "");
    tile(
        bad(s.listen_queue > 0, " class=\"bad\""),
        "waiting",
        &s.listen_queue,
        &format!("most so far {}, room for {}", s.max_listen_queue, s.listen_queue_len),
    );
    tile("", "requests", &s.accepted, "");
    tile(
        // It may have been long ago.
        bad(
            s.max_children_reached > 0,
            if s.idle == 0 {
                " class=\"bad\""
            } else {
                " class=\"warn\""
            },
        ),
        "limit of workers hit",
        &s.max_children_reached,
        "pm.max_children",
    );
    tile(
        bad(s.slow_requests > 0, " class=\"warn\""),
        "slow requests",
        &s.slow_requests,
        "request_<wbr>slowlog_<wbr>timeout",
    );
    out.push_str("</dl>\n");
}

/// Busy workers first, the longest request on top.
fn workers(out: &mut String, s: &Snapshot) {
    let idle = |p: &ProcessStatus| !p.stage.is_active();
    let mut processes: Vec<_> = s.processes.iter().collect();
    processes.sort_by_key(|p| (idle(p), std::cmp::Reverse(if idle(p) { 0 } else { p.request_duration })));
    out.push_str(
        "<table>\n<thead><tr><th>pid</th><th>state</th><th>duration</th><th>request</th><th>script</th><th>id</th><th>user</th>\
         <th>body</th><th>cpu</th><th>memory</th><th>requests</th><th>age</th></tr></thead>\n<tbody>\n",
    );
    for p in processes {
        let class = if idle(p) { "idle" } else { "busy" };
        add(
            out,
            format_args!("<tr class=\"{class}\"><td data-name=\"pid\">{}</td>", p.pid),
        );
        let mut cell = |name: &str, text: &str| {
            // A telephone has no room for what says nothing.
            let none = if matches!(text, "-" | "0 %") {
                " class=\"none\""
            } else {
                ""
            };
            add(out, format_args!("<td data-name=\"{name}\"{none}>"));
            markup(out, text);
            out.push_str("</td>");
        };
        cell("state", p.stage.name());
        cell("duration", &duration(p.request_duration));
        let mark = if p.query.is_empty() { "" } else { "?" };
        cell(
            "request",
            &format!("{} {}{mark}{}", or_dash(&p.method), or_dash(&p.uri), p.query),
        );
        cell("script", or_dash(&p.script));
        cell("id", or_dash(&p.request_id));
        cell("user", or_dash(&p.user));
        cell("body", &bytes(p.content_length));
        cell("cpu", &format!("{:.0} %", p.last_request_cpu));
        cell("memory", &bytes(p.last_request_memory));
        cell("requests", &p.requests.to_string());
        cell("age", &span(p.start_since));
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table>\n");
}

/// Seconds, in the two largest units.
fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, m) => format!("{m} min {} s", seconds % 60),
        (0, h, m) => format!("{h} h {m} min"),
        (d, h, _) => format!("{d} d {h} h"),
    }
}

/// Microseconds, to about three digits.
fn duration(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        1_000_000..60_000_000 => format!("{:.1} s", micros as f64 / 1e6),
        _ => span(micros / 1_000_000),
    }
}

fn bytes(n: u64) -> String {
    match n {
        0 => "-".to_owned(),
        1..1_024 => format!("{n} B"),
        1_024..1_048_576 => format!("{:.0} KiB", n as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", n as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", n as f64 / 1_073_741_824.0),
    }
}
