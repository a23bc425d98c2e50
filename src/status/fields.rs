//! `fpm_get_status()`: the snapshot as PHP's array, for a shim that has only to walk a list.

use super::Snapshot;
use super::render::or_dash;

/// A step in building a nested PHP array. Without a key an element is appended.
#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    /// An int.
    Int(&'static str, i64),
    /// A float.
    Float(&'static str, f64),
    /// A string.
    Str(&'static str, String),
    /// An array begins.
    Begin(Option<&'static str>),
    /// The innermost array ends.
    End,
}

/// What `fpm_get_status()` returns; the outermost array is not told.
pub fn fields(s: &Snapshot) -> Vec<Field> {
    use Field::{Begin, End, Float, Int, Str};
    let int = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let mut fields = vec![
        Str("pool", s.pool.clone()),
        Str("process-manager", s.pm.name().to_owned()),
        Int("start-time", s.start_time),
        Int("start-since", int(s.start_since)),
        Int("accepted-conn", int(s.accepted)),
        Int("listen-queue", s.listen_queue.into()),
        Int("max-listen-queue", s.max_listen_queue.into()),
        Int("listen-queue-len", s.listen_queue_len.into()),
        Int("idle-processes", s.idle.into()),
        Int("active-processes", s.active.into()),
        Int("total-processes", i64::from(s.idle) + i64::from(s.active)),
        Int("max-active-processes", s.max_active.into()),
        Int("max-children-reached", s.max_children_reached.into()),
        Int("slow-requests", int(s.slow_requests)),
    ];
    fields.extend(s.memory_peak.map(|peak| Int("memory-peak", int(peak))));
    fields.push(Begin(Some("procs")));
    for p in &s.processes {
        fields.extend([
            Begin(None),
            Int("pid", p.pid.into()),
            Str("state", p.stage.name().to_owned()),
            Int("start-time", p.start_time),
            Int("start-since", int(p.start_since)),
            Int("requests", int(p.requests)),
            Int("request-duration", int(p.request_duration)),
            Str("request-method", or_dash(&p.method).to_owned()),
            Str("request-uri", p.uri.clone()),
            Str("query-string", p.query.clone()),
            Int("request-length", int(p.content_length)),
            Str("user", or_dash(&p.user).to_owned()),
            Str("script", or_dash(&p.script).to_owned()),
            Float("last-request-cpu", p.last_request_cpu),
            Int("last-request-memory", int(p.last_request_memory)),
            End,
        ]);
    }
    fields.push(End);
    fields
}
