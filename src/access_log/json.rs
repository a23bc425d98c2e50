//! `access.format = json`: one object a line.

use std::borrow::Cow;
use std::net::IpAddr;

use serde::Serialize;

use super::text::canonical;
use super::{Clock, Entry};

/// Longest text of one member, bytes; a client may send megabytes.
const MEMBER_LIMIT: usize = 8192;

/// Local time, cut where the fraction of the second goes.
#[derive(Debug)]
pub(super) struct Clocks {
    seconds: Clock,
    offset: Clock,
}

impl Default for Clocks {
    fn default() -> Self {
        Self {
            seconds: Clock::new("%Y-%m-%dT%H:%M:%S"),
            offset: Clock::new("%:z"),
        }
    }
}

/// The members, in their order. What is empty or unknown is left out.
#[derive(Serialize)]
struct Members<'a> {
    /// When the request was accepted, RFC 3339.
    time: Time<'a>,
    pool: &'a str,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote: Option<IpAddr>,
    #[serde(skip_serializing_if = "str::is_empty")]
    user: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    method: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    uri: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    query: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    script: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_id: Cow<'a, str>,
    status: u16,
    content_length: u64,
    duration_us: u64,
    cpu_user_us: u64,
    cpu_system_us: u64,
    memory: u64,
}

struct Time<'a> {
    seconds: &'a str,
    micros: u64,
    offset: &'a str,
}

impl Serialize for Time<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self {
            seconds,
            micros,
            offset,
        } = self;
        serializer.collect_str(&format_args!("{seconds}.{micros:06}{offset}"))
    }
}

pub(super) fn render(clocks: &mut Clocks, e: &Entry<'_>, out: &mut Vec<u8>) {
    let second = (e.accepted / 1_000_000) as i64;
    let members = Members {
        time: Time {
            seconds: clocks.seconds.at(second),
            micros: e.accepted % 1_000_000,
            offset: clocks.offset.at(second),
        },
        pool: e.pool,
        pid: e.pid,
        remote: e.remote.map(canonical),
        user: text(e.user),
        method: text(e.method),
        uri: text(e.uri),
        query: text(e.query),
        script: text(e.script),
        request_id: text(e.id),
        status: e.status,
        content_length: e.content_length,
        duration_us: e.duration,
        cpu_user_us: e.cpu_user,
        cpu_system_us: e.cpu_system,
        memory: e.memory,
    };
    serde_json::to_writer(out, &members).expect("text and numbers go into a Vec");
}

/// As UTF-8, which JSON demands, and bounded.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(&bytes[..bytes.len().min(MEMBER_LIMIT)])
}
