//! The name of a request, by which its traces are found in every log: the web server's if it passes one, else one of ours.

#![forbid(unsafe_code)]

use std::cell::Cell;

use serde::{Deserialize, Serialize};

/// Longest id that is taken over, bytes. A longer one is not cut, as half an id finds nothing: the request gets one of ours.
pub const MAX: usize = 128;

/// An id: at most [`MAX`] bytes of letters, digits and `-_.:=+/@,;~`, which no log, format or shell reads as anything else.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct RequestId {
    length: u8,
    bytes: [u8; MAX],
}

impl RequestId {
    /// Takes an id over; None if it is none.
    pub fn new(text: &[u8]) -> Option<Self> {
        let fits = (1..=MAX).contains(&text.len()) && text.iter().all(|&byte| is_plain(byte));
        fits.then(|| {
            let mut bytes = [0; MAX];
            bytes[..text.len()].copy_from_slice(text);
            Self {
                length: text.len() as u8,
                bytes,
            }
        })
    }

    /// What the web server passes: X-Request-ID, else the trace-id of a W3C traceparent. None if neither is well formed.
    pub fn given(request_id: Option<&[u8]>, traceparent: Option<&[u8]>) -> Option<Self> {
        request_id
            .and_then(Self::new)
            .or_else(|| Self::new(trace_id(traceparent?)?))
    }

    /// The id's bytes, which are ASCII.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl From<RequestId> for String {
    fn from(id: RequestId) -> Self {
        id.as_str().to_owned()
    }
}

impl TryFrom<String> for RequestId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(text.as_bytes()).ok_or("not a request id")
    }
}

impl std::fmt::Debug for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.:=+/@,;~".contains(&byte)
}

/// The trace-id of `00-TRACEID-SPANID-FLAGS`. Later versions may go on behind the flags; ff and a trace-id of zeros are invalid.
fn trace_id(traceparent: &[u8]) -> Option<&[u8]> {
    let mut parts = traceparent.split(|&byte| byte == b'-');
    let mut hex = |digits: usize| {
        let part = parts.next()?;
        let lower = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (part.len() == digits && part.iter().all(lower)).then_some(part)
    };
    let (version, id, _span, _flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    let ends = version != b"00" || parts.next().is_none();
    (ends && version != b"ff" && id.iter().any(|&byte| byte != b'0')).then_some(id)
}

/// Makes ids: 32 hexadecimal digits, as nginx's `$request_id` and a trace-id have. No two requests of a machine have the same,
/// but for chance; they are names, and no secrets.
#[derive(Debug)]
pub struct Source {
    worker: u64,
    count: Cell<u64>,
}

impl Source {
    /// A source of a process of its own; `seed` is random.
    pub fn new(seed: [u64; 2]) -> Self {
        Self {
            worker: seed[0],
            count: Cell::new(seed[1]),
        }
    }

    /// The next id, without a system call.
    pub fn next(&self) -> RequestId {
        let count = self.count.get().wrapping_add(1);
        self.count.set(count);
        let words = [mix(self.worker ^ count), mix(count)].map(u64::to_be_bytes);
        let mut bytes = [0; MAX];
        let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
        for (byte, digits) in words.as_flattened().iter().zip(bytes.as_chunks_mut().0) {
            *digits = [digit(byte >> 4), digit(byte & 15)];
        }
        RequestId { length: 32, bytes }
    }
}

/// A bijection that leaves no pattern (the finisher of splitmix64): different counts stay different.
fn mix(mut n: u64) -> u64 {
    n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn given(id: Option<&str>, parent: Option<&str>) -> Option<String> {
        RequestId::given(id.map(str::as_bytes), parent.map(str::as_bytes)).map(|id| id.as_str().to_owned())
    }

    #[test]
    fn the_web_servers_id_is_taken_over() {
        let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let longest = "x".repeat(MAX);
        assert_eq!(
            given(Some("Root=1-67891233-abc"), Some(&parent)).unwrap(),
            "Root=1-67891233-abc"
        );
        assert_eq!(given(Some(&longest), None).unwrap(), longest);
        assert_eq!(given(None, Some(&parent)).unwrap(), TRACE);
        assert_eq!(given(Some(""), Some(&parent)).unwrap(), TRACE);
        assert_eq!(
            given(None, Some(&format!("cc-{TRACE}-00f067aa0ba902b7-01-what-else"))).unwrap(),
            TRACE
        );
    }

    #[test]
    fn what_is_no_id_is_not() {
        let long = "x".repeat(MAX + 1);
        for wrong in [
            "",
            " ",
            "a b",
            "a\"b",
            "a\\b",
            "a\nb",
            "<a>",
            "é",
            "a\0",
            "%s",
            "'",
            long.as_str(),
        ] {
            assert_eq!(given(Some(wrong), None), None, "{wrong:?}");
        }
        for wrong in [
            format!("00-{TRACE}-00f067aa0ba902b7-01-more"),
            format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase()),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{TRACE}-00f067aa0ba902b7"),
            format!("00-{}-00f067aa0ba902b7-01", &TRACE[1..]),
            String::new(),
        ] {
            assert_eq!(given(None, Some(&wrong)), None, "{wrong}");
        }
    }

    #[test]
    fn no_two_are_the_same() {
        let sources = [Source::new([1, 7]), Source::new([2, 7]), Source::new([1, 1 << 40])];
        let ids: HashSet<String> = (0..10_000)
            .flat_map(|_| sources.iter().map(|source| source.next().as_str().to_owned()))
            .collect();
        assert_eq!(ids.len(), 30_000);
        assert!(
            ids.iter()
                .all(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()))
        );
    }
}
