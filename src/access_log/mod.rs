//! The access log: one line for each request, in the words of `access.format`.
//!
//! Whatever a client sends is escaped: control characters as `\xNN`, quotes and backslashes with a backslash. No request
//! forges a line, or the end of a quoted field.
#![forbid(unsafe_code)]

mod json;
#[cfg(test)]
mod tests;
mod text;

use std::net::IpAddr;

use crate::config::access_format::{Format, Token};
use crate::log::Clock;

/// Longest line of text, bytes with its newline; php-fpm's.
pub const LINE_LIMIT: usize = 1024;

/// Bytes that php-fpm logs of a URI, a query and a script; we do so where the line has no room for all of them, lest a long
/// query cost the status and the times behind it.
const URI_LIMIT: usize = 127;
const QUERY_LIMIT: usize = 511;
const SCRIPT_LIMIT: usize = 255;

/// What php-fpm logs as NOTICE for a line that is longer.
pub const TRUNCATED: &str = "the log buffer is full (1024). The access log request has been truncated.";

/// What a line tells of a request.
pub struct Entry<'a> {
    /// When it was accepted, microseconds since the epoch.
    pub accepted: u64,
    /// Now, microseconds since the epoch.
    pub now: u64,
    /// From accepting to the script's end, microseconds. Without the time that a client thought about it.
    pub duration: u64,
    /// CPU time in user mode, microseconds.
    pub cpu_user: u64,
    /// CPU time in the kernel, microseconds.
    pub cpu_system: u64,
    /// Pid of the worker.
    pub pid: u32,
    /// Pid of its parent.
    pub parent: u32,
    /// Pool name.
    pub pool: &'a str,
    /// REQUEST_METHOD
    pub method: &'a [u8],
    /// Without the query.
    pub uri: &'a [u8],
    /// QUERY_STRING
    pub query: &'a [u8],
    /// The script that ran.
    pub script: &'a [u8],
    /// User of Basic authentication.
    pub user: &'a [u8],
    /// Request id.
    pub id: &'a [u8],
    /// The peer; None on a unix socket.
    pub remote: Option<IpAddr>,
    /// HTTP status.
    pub status: u16,
    /// CONTENT_LENGTH
    pub content_length: u64,
    /// Peak memory, bytes.
    pub memory: u64,
    /// A FastCGI parameter by its name.
    pub parameter: &'a dyn Fn(&[u8]) -> Option<&'a [u8]>,
    /// The value of a response header by its exact name.
    pub header: &'a dyn Fn(&[u8]) -> Option<&'a [u8]>,
}

impl Entry<'_> {
    fn cut(&self) -> Self {
        Self {
            uri: &self.uri[..self.uri.len().min(URI_LIMIT)],
            query: &self.query[..self.query.len().min(QUERY_LIMIT)],
            script: &self.script[..self.script.len().min(SCRIPT_LIMIT)],
            ..*self
        }
    }
}

/// A pool's access log, without the file. It keeps its buffer: a line costs no allocation.
#[derive(Debug)]
pub struct AccessLog {
    format: Compiled,
    suppress: Vec<Vec<u8>>,
    line: Vec<u8>,
}

#[derive(Debug)]
enum Compiled {
    Text(Vec<text::Part>),
    Json(json::Clocks),
}

/// A line with its newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// To be written at once.
    pub bytes: &'a [u8],
    /// It was longer than [`LINE_LIMIT`]; to be told as [`TRUNCATED`].
    pub truncated: bool,
}

impl AccessLog {
    /// For `access.format` and `access.suppress_path[]`.
    pub fn new(format: &Format, suppress: &[String]) -> Self {
        let format = match format {
            Format::Tokens(tokens) => Compiled::Text(tokens.iter().map(text::Part::from).collect()),
            Format::Json => Compiled::Json(json::Clocks::default()),
        };
        Self {
            format,
            suppress: suppress.iter().map(|path| path.as_bytes().to_vec()).collect(),
            line: Vec::with_capacity(LINE_LIMIT),
        }
    }

    /// The line of a request; None when it has none.
    pub fn line(&mut self, entry: &Entry<'_>) -> Option<Line<'_>> {
        if self.suppresses(entry) {
            return None;
        }
        self.line.clear();
        match &mut self.format {
            Compiled::Text(parts) => {
                text::render(parts, entry, &mut self.line);
                if self.line.len() >= LINE_LIMIT {
                    self.line.clear();
                    text::render(parts, &entry.cut(), &mut self.line);
                }
            }
            Compiled::Json(clocks) => json::render(clocks, entry, &mut self.line),
        }
        if self.line.is_empty() {
            return None;
        }
        let truncated = matches!(self.format, Compiled::Text(_)) && self.line.len() >= LINE_LIMIT;
        if truncated {
            self.line.truncate(LINE_LIMIT - 1);
        }
        self.line.push(b'\n');
        Some(Line {
            bytes: &self.line,
            truncated,
        })
    }

    /// php-fpm's rule: a plain and successful GET or HEAD of one of the paths.
    fn suppresses(&self, entry: &Entry<'_>) -> bool {
        entry.query.is_empty()
            && matches!(entry.method, b"GET" | b"HEAD")
            && (200..300).contains(&entry.status)
            && entry.content_length == 0
            && self.suppress.iter().any(|path| path == entry.uri)
    }
}
