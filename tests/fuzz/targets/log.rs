//! The logs: what a request or a worker says stays within its own line.

use std::net::IpAddr;
use std::panic::Location;

use php_pool::access_log::{AccessLog, Entry, LINE_LIMIT};
use php_pool::config::access_format::{Format, compile};
use php_pool::log::{FLUSH, Fields, Level, LineFormat, Lines, Stamp, Stream, WorkerOutput};
use php_pool::request_id::RequestId;

use super::Cursor;

/// Formats, and what ends or forges a line.
pub const WORDS: &[&str] = &[
    "%R - %u %t \"%m %r%Q%q\" %s %f %{mili}d %{kilo}M %C%%",
    "%{REQUEST_URI}e %{X-Header}o",
    "%{%Y-%m-%dT%H:%M:%S%z}t",
    "json",
    "\0fscf\0",
    "\n",
    "\r\n[20-Nov-2026 20:35:42] ALERT: forged",
    "\x1b[2J",
    "\u{2028}",
];

const NOW: u64 = 1_795_206_942_113_503;

/// One request is one line, in any format.
pub fn access(data: &[u8]) {
    let mut cursor = Cursor(data);
    let text = cursor.string();
    let Ok(format) = compile(&text) else { return };
    // A format is root's: what it says itself is no forgery. strftime(3) knows words for newline and tab.
    if text.chars().any(char::is_control) || text.to_ascii_lowercase().contains("}t") {
        return;
    }
    let mut log = AccessLog::new(&format, &["/ping".to_owned()]);
    let (accepted, duration) = (cursor.number(), cursor.number());
    let texts: Vec<&[u8]> = (0..7).map(|_| cursor.text()).collect();
    let remote =
        [None, Some(IpAddr::from(cursor.number().to_be_bytes().map(u16::from)))][usize::from(cursor.byte() & 1)];
    let value = texts[6];
    let found = |_: &[u8]| Some(value);
    let entry = Entry {
        accepted,
        now: accepted,
        duration,
        cpu_user: duration / 3,
        cpu_system: duration / 3,
        pid: 1,
        parent: 1,
        pool: "www",
        method: texts[0],
        uri: texts[1],
        query: texts[2],
        script: texts[3],
        user: texts[4],
        id: texts[5],
        remote,
        status: 200,
        content_length: duration,
        memory: duration,
        parameter: &found,
        header: &found,
    };
    let Some(line) = log.line(&entry) else { return };
    let text = line.bytes.strip_suffix(b"\n").expect("a line ends");
    match format {
        Format::Json => {
            let value: serde_json::Value = serde_json::from_slice(text).expect("it is JSON");
            assert_eq!(value["pool"], "www");
            assert!(!text.iter().any(|byte| *byte < b' '));
        }
        Format::Tokens(_) => {
            assert!(line.bytes.len() <= LINE_LIMIT);
            assert!(!text.iter().any(u8::is_ascii_control));
        }
    }
}

/// A worker's output becomes lines, none longer than the limit, and nothing of it is lost.
pub fn output(data: &[u8]) {
    let mut cursor = Cursor(data);
    let flags = cursor.byte();
    let limit = 512 + usize::from(cursor.byte());
    let mut format = LineFormat::new(Stamp::Time, Level::Notice, limit);
    let mut output = WorkerOutput::new("www", 7, flags & 1 != 0);
    let mut said = [Vec::new(), Vec::new()];
    let mut printed = [Vec::new(), Vec::new()];
    let mut take = |line: php_pool::log::Said<'_>| {
        assert!(line.line.ends_with(b"\n") && line.line.len() <= limit + ", pipe is closed".len());
        assert!(!line.line[..line.line.len() - 1].contains(&b'\n'));
        said[line.stream as usize].extend_from_slice(line.text);
    };
    while !cursor.0.is_empty() {
        let stream = if cursor.byte() & 1 == 0 {
            Stream::Stdout
        } else {
            Stream::Stderr
        };
        let text = cursor.text();
        printed[stream as usize].extend_from_slice(text);
        output.feed(
            stream,
            text,
            &mut Lines {
                now: NOW,
                format: &mut format,
                take: &mut take,
            },
        );
    }
    for stream in [Stream::Stdout, Stream::Stderr] {
        output.close(
            stream,
            &mut Lines {
                now: NOW,
                format: &mut format,
                take: &mut take,
            },
        );
    }
    // A marker that is told from text by what follows it may be cut off by the other stream: then it is text.
    let letters = |bytes: &[u8]| {
        bytes
            .iter()
            .filter(|byte| !matches!(byte, b'\n' | 0) && !FLUSH.contains(byte))
            .count()
    };
    for (said, printed) in said.iter().zip(&printed) {
        let (said, most, least) = (letters(said), letters(printed), letters(&without_names(printed)));
        assert!((least..=most).contains(&said), "{said} of {least} to {most} letters");
    }
}

/// What is left without the markers, read from left to right: two may seem to share a NUL, and only the first has it.
fn without_names(mut text: &[u8]) -> Vec<u8> {
    const BEGIN: &[u8] = b"\0prid=";
    let mut left = Vec::new();
    while let Some((first, rest)) = text.split_first() {
        let name = text.strip_prefix(BEGIN).and_then(|rest| {
            let end = rest.iter().position(|byte| *byte == 0)?;
            RequestId::new(&rest[..end]).is_some().then(|| &rest[end + 1..])
        });
        text = match text.strip_prefix(FLUSH).or(name) {
            Some(behind) => behind,
            None => {
                left.push(*first);
                rest
            }
        };
    }
    left
}

/// A message of ours is one line, whatever a file name or a client put into it.
pub fn line(data: &[u8]) {
    let mut cursor = Cursor(data);
    let stamp = [Stamp::Time, Stamp::Syslog, Stamp::Untimed][usize::from(cursor.byte() % 3)];
    let level = [Level::Debug, Level::Notice][usize::from(cursor.byte() & 1)];
    let limit = 512 + usize::from(cursor.byte());
    let mut format = LineFormat::new(stamp, level, limit);
    let (text, place) = (String::from_utf8_lossy(cursor.0), Location::caller());
    let mut out = Vec::new();
    format.message(
        Level::Error,
        &Fields {
            pool: Some("www"),
            ..Fields::default()
        },
        place,
        NOW,
        &text,
        &mut out,
    );
    assert!(out.ends_with(b"\n") && out.len() <= limit.max(2048));
    assert!(
        !out[..out.len() - 1]
            .iter()
            .any(|byte| byte.is_ascii_control() && *byte != b'\t')
    );
    std::str::from_utf8(&out).expect("cutting leaves it UTF-8");
    out.clear();
    let sent = format.php_message(Level::Notice, place, NOW, cursor.0, &mut out);
    assert!(sent.end < out.len() && out.len() <= limit);
}
