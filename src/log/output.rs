//! What a worker prints: bytes of its stdout and stderr in, lines of the log out. Pure: the time is an argument.

use std::panic::Location;

use serde::{Deserialize, Serialize};

use super::{Level, LineFormat};
use crate::request_id::{self, RequestId};

/// What a worker writes to its stderr after each request, so that what one request left without a newline is not joined
/// with the output of the next.
pub const FLUSH: &[u8] = b"\0fscf\0";

/// What stands around a request's id where a worker begins to print for it. It holds until [`FLUSH`].
const NAMES: (&[u8], u8) = (b"\0prid=", 0);

const LONGEST_MARKER: usize = NAMES.0.len() + request_id::MAX + 1;

/// The mark by which a worker names the request that it prints for, on its stderr.
pub fn mark(id: &RequestId) -> Vec<u8> {
    [NAMES.0, id.as_bytes(), &[NAMES.1]].concat()
}

/// What bytes that begin with a NUL are.
enum Marker {
    /// More must be read.
    Begun,
    Flush,
    Names(RequestId),
    /// Text, but perhaps its last byte.
    None,
}

impl Marker {
    fn of(bytes: &[u8]) -> Self {
        if bytes == FLUSH {
            return Self::Flush;
        }
        if FLUSH.starts_with(bytes) || NAMES.0.starts_with(bytes) {
            return Self::Begun;
        }
        match bytes.strip_prefix(NAMES.0) {
            Some([id @ .., last]) if *last == NAMES.1 => RequestId::new(id).map_or(Self::None, Self::Names),
            Some(id) if bytes.len() < LONGEST_MARKER && RequestId::new(id).is_some() => Self::Begun,
            _ => Self::None,
        }
    }
}

const CLOSED: &[u8] = b", pipe is closed";
/// The least of a worker's text that a line takes, however long its pool's name is.
const LEAST_TEXT: usize = 64;

/// Where a worker printed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// A line that a worker printed, or a piece of one that is longer than `log_limit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said<'a> {
    /// Where it was printed.
    pub stream: Stream,
    /// The line as the log has it, with its newline.
    pub line: &'a [u8],
    /// The worker's own bytes in it.
    pub text: &'a [u8],
    /// The request that the worker printed it for, where it said so.
    pub request: Option<&'a str>,
}

/// When, how and where to lines go.
pub struct Lines<'a> {
    /// Microseconds since the epoch.
    pub now: u64,
    /// Rules of the log.
    pub format: &'a mut LineFormat,
    /// What takes them.
    pub take: &'a mut dyn FnMut(Said<'_>),
}

/// The output of one worker, cut into lines as php-fpm cuts it, however it is split into reads.
///
/// A line ends at LF, at [`FLUSH`] and where another request is named, when the other stream has something to say, and when
/// its pipe is closed. Empty lines vanish. A line longer than `log_limit` goes on in further lines, each with all that surrounds it. Read stdout
/// before stderr where both are ready: the end of a request is told on stderr.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerOutput {
    /// `[pool www] ` and `child 5304 said into `; None without `decorate_workers_output`.
    decoration: Option<[String; 2]>,
    /// What may become a marker, of stdout and stderr.
    held: [Vec<u8>; 2],
    /// The request that is printed for.
    request: Option<RequestId>,
    /// The line that is not complete; empty when there is none.
    line: Vec<u8>,
    /// Where the worker's text begins in it.
    text: usize,
    stream: Stream,
    said_nothing_yet: bool,
}

impl WorkerOutput {
    /// Of a worker of a pool.
    pub fn new(pool: &str, worker: i32, decorate: bool) -> Self {
        Self {
            decoration: decorate.then(|| [format!("[pool {pool}] "), format!("child {worker} said into ")]),
            held: Default::default(),
            request: None,
            line: Vec::new(),
            text: 0,
            stream: Stream::Stderr,
            said_nothing_yet: true,
        }
    }

    /// Takes what was read from a stream.
    pub fn feed(&mut self, stream: Stream, mut bytes: &[u8], lines: &mut Lines<'_>) {
        while let Some(&first) = bytes.first() {
            let held = &mut self.held[stream as usize];
            if !held.is_empty() {
                held.push(first);
                match Marker::of(held) {
                    Marker::Begun => {}
                    Marker::None => {
                        held.pop();
                        self.not_a_marker(stream, lines);
                        continue;
                    }
                    Marker::Flush => {
                        held.clear();
                        self.end(lines);
                        self.request = None;
                    }
                    Marker::Names(id) => {
                        held.clear();
                        self.end(lines);
                        self.request = Some(id);
                    }
                }
                bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|b| matches!(b, b'\n' | 0)).unwrap_or(bytes.len());
            self.text(stream, &bytes[..end], lines);
            match bytes.get(end) {
                Some(b'\n') => self.end(lines),
                Some(_) => self.held[stream as usize].push(0),
                None => {}
            }
            bytes = bytes.get(end + 1..).unwrap_or_default();
        }
    }

    /// A stream has come to its end.
    pub fn close(&mut self, stream: Stream, lines: &mut Lines<'_>) {
        self.not_a_marker(stream, lines);
        if stream != self.stream || self.line.is_empty() {
            return;
        }
        if self.said_nothing_yet && self.decoration.is_some() {
            self.line.push(b'"');
            let text = self.text..self.line.len() - 1;
            self.line.extend_from_slice(CLOSED);
            self.finish(text, lines);
        } else {
            self.end(lines);
        }
    }

    /// What looked like the begin of a marker is text.
    fn not_a_marker(&mut self, stream: Stream, lines: &mut Lines<'_>) {
        let held = std::mem::take(&mut self.held[stream as usize]);
        self.text(stream, &held, lines);
    }

    fn text(&mut self, stream: Stream, mut text: &[u8], lines: &mut Lines<'_>) {
        if !text.is_empty() && stream != self.stream {
            self.end(lines);
            self.stream = stream;
        }
        while !text.is_empty() {
            if self.line.is_empty() {
                self.begin(lines);
            }
            // Less the newline, and the quote.
            let most = lines.format.limit - 1 - usize::from(self.decoration.is_some());
            let room = most.max(self.text + LEAST_TEXT).saturating_sub(self.line.len());
            if room == 0 {
                self.end(lines);
                continue;
            }
            let (now, later) = text.split_at(room.min(text.len()));
            self.line.extend_from_slice(now);
            text = later;
        }
    }

    fn begin(&mut self, lines: &mut Lines<'_>) {
        if let Some([pool, child]) = &self.decoration {
            lines
                .format
                .prefix(Level::Warning, Location::caller(), lines.now, &mut self.line);
            self.line.extend_from_slice(pool.as_bytes());
            lines
                .format
                .request(self.request.as_ref().map(RequestId::as_str), &mut self.line);
            self.line.extend_from_slice(child.as_bytes());
            self.line.extend_from_slice(self.stream.name().as_bytes());
            self.line.extend_from_slice(b": \"");
        }
        self.text = self.line.len();
    }

    /// The line is complete, if there is one.
    fn end(&mut self, lines: &mut Lines<'_>) {
        if self.line.len() == self.text {
            return;
        }
        let text = self.text..self.line.len();
        if self.decoration.is_some() {
            self.line.push(b'"');
        }
        self.finish(text, lines);
    }

    fn finish(&mut self, text: std::ops::Range<usize>, lines: &mut Lines<'_>) {
        self.line.push(b'\n');
        (lines.take)(Said {
            stream: self.stream,
            line: &self.line,
            text: &self.line[text],
            request: self.request.as_ref().map(RequestId::as_str),
        });
        self.line.clear();
        self.text = 0;
        self.said_nothing_yet = false;
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use proptest::prelude::*;

    use super::super::{Clock, Stamp};
    use super::*;
    use Stream::{Stderr, Stdout};

    const NOW: u64 = 1_795_206_942_113_503;

    struct Log {
        format: LineFormat,
        lines: Vec<(Stream, String)>,
        /// What was said into stdout and stderr.
        said: [Vec<u8>; 2],
    }

    impl Log {
        fn new(limit: usize) -> Self {
            let clock = Clock::in_zone("[%d-%b-%Y %H:%M:%S", TimeZone::UTC);
            Self {
                format: LineFormat::with_clock(Stamp::Time, Level::Notice, limit, clock),
                lines: Vec::new(),
                said: [Vec::new(), Vec::new()],
            }
        }

        fn with(&mut self, what: impl FnOnce(&mut Lines<'_>)) {
            let limit = self.format.limit;
            let (all, texts) = (&mut self.lines, &mut self.said);
            what(&mut Lines {
                now: NOW,
                format: &mut self.format,
                take: &mut |said| {
                    all.push((said.stream, String::from_utf8_lossy(said.line).into_owned()));
                    texts[said.stream as usize].extend_from_slice(said.text);
                    assert!(said.line.len() <= limit || said.line.ends_with(b", pipe is closed\n"));
                },
            });
        }

        fn run(decorate: bool, limit: usize, input: &[(Stream, &[u8])]) -> Self {
            let mut log = Self::new(limit);
            let mut output = WorkerOutput::new("www", 5304, decorate);
            for (stream, bytes) in input {
                log.with(|lines| output.feed(*stream, bytes, lines));
            }
            log
        }

        fn texts(&self) -> Vec<&str> {
            self.lines.iter().map(|(_, line)| line.as_str()).collect()
        }
    }

    #[test]
    fn a_line_is_decorated_as_php_fpm_does() {
        let log = Log::run(
            true,
            1024,
            &[(Stderr, b"NOTICE: PHP message: one\n"), (Stdout, b"\n\ntwo\n")],
        );
        assert_eq!(
            log.texts(),
            [
                "[20-Nov-2026 20:35:42] WARNING: [pool www] child 5304 said into stderr: \"NOTICE: PHP message: one\"\n",
                "[20-Nov-2026 20:35:42] WARNING: [pool www] child 5304 said into stdout: \"two\"\n",
            ]
        );
    }

    #[test]
    fn a_long_line_is_cut_with_all_that_surrounds_it() {
        let log = Log::run(true, 512, &[(Stderr, &[b'x'; 1000]), (Stderr, b"\n")]);
        let around = "[20-Nov-2026 20:35:42] WARNING: [pool www] child 5304 said into stderr: \"\"\n".len();
        let lengths: Vec<_> = log.lines.iter().map(|(_, line)| line.len()).collect();
        assert_eq!(lengths, [512, 512, 1000 - 2 * (512 - around) + around]);
        assert_eq!(log.said[1], [b'x'; 1000]);
    }

    #[test]
    fn an_undecorated_line_is_cut_one_byte_before_the_limit() {
        let log = Log::run(
            false,
            1024,
            &[(Stderr, &[b'a'; 100]), (Stderr, &[b'b'; 2500]), (Stderr, b"\n")],
        );
        let lengths: Vec<_> = log.lines.iter().map(|(_, line)| line.len() - 1).collect();
        assert_eq!(lengths, [1023, 1023, 554]);
        // A line that fills the limit is whole.
        let log = Log::run(false, 1024, &[(Stderr, &[b'a'; 1023]), (Stderr, b"\nx\n")]);
        assert_eq!(log.lines.len(), 2);
    }

    #[test]
    fn a_line_names_its_request_until_the_request_ends() {
        let mut log = Log::new(1024);
        log.format.request_ids = true;
        let mut output = WorkerOutput::new("www", 5304, true);
        let said: [(Stream, &[u8]); 4] = [
            (Stderr, b"before\n\0pri"),
            (Stderr, b"d=4bf92f35\0one\ntwo\n"),
            (Stdout, b"three\n"),
            (Stderr, b"\0fscf\0after\n\0prid=a b\0\n"),
        ];
        for (stream, bytes) in said {
            log.with(|lines| output.feed(stream, bytes, lines));
        }
        let short = |line: &str| line.replace("[20-Nov-2026 20:35:42] WARNING: [pool www] ", "");
        assert_eq!(
            log.texts().into_iter().map(short).collect::<String>(),
            "child 5304 said into stderr: \"before\"\n[request 4bf92f35] child 5304 said into stderr: \"one\"\n\
             [request 4bf92f35] child 5304 said into stderr: \"two\"\n\
             [request 4bf92f35] child 5304 said into stdout: \"three\"\nchild 5304 said into stderr: \"after\"\n\
             child 5304 said into stderr: \"\0prid=a b\0\"\n"
        );
    }

    #[test]
    fn requests_are_not_joined_and_their_pieces_are() {
        let log = Log::run(
            false,
            1024,
            &[
                (Stderr, b"one "),
                (Stderr, b"two\0fs"),
                (Stderr, b"cf\0three"),
                (Stderr, b"\0fscf\0\0fscf\0"),
            ],
        );
        assert_eq!(log.texts(), ["one two\n", "three\n"]);
    }

    #[test]
    fn the_end_of_a_request_ends_its_line_on_stdout_too() {
        let log = Log::run(
            false,
            1024,
            &[
                (Stdout, b"one"),
                (Stderr, b"\0fscf\0"),
                (Stdout, b"two"),
                (Stderr, b"three\n"),
            ],
        );
        assert_eq!(log.texts(), ["one\n", "two\n", "three\n"]);
    }

    #[test]
    fn what_only_looks_like_a_marker_is_text() {
        let log = Log::run(
            false,
            1024,
            &[(Stderr, b"a\0f"), (Stderr, b"sc\0fscf"), (Stderr, b"\0b\0\n\0\0fscf\0")],
        );
        assert_eq!(log.texts(), ["a\0fsc\n", "b\0\n", "\0\n"]);
    }

    #[test]
    fn last_words_say_that_they_are() {
        let closed = |before: &'static [u8]| {
            let mut log = Log::new(1024);
            let mut output = WorkerOutput::new("www", 5304, true);
            log.with(|lines| {
                output.feed(Stderr, before, lines);
                output.close(Stdout, lines);
                output.close(Stderr, lines);
                output.close(Stderr, lines);
            });
            log.lines
                .last()
                .map(|(_, line)| line.split_once(": \"").unwrap().1.to_owned())
        };
        assert_eq!(closed(b""), None);
        assert_eq!(closed(b"help\0fs").unwrap(), "help\0fs\", pipe is closed\n");
        assert_eq!(closed(b"hello\nhelp").unwrap(), "help\"\n");
    }

    #[test]
    fn a_log_level_above_warning_does_not_mutilate_a_workers_lines() {
        let mut log = Log::new(1024);
        log.format.threshold = Level::Alert;
        log.with(|lines| WorkerOutput::new("www", 1, true).feed(Stderr, b"x\n", lines));
        assert!(log.texts()[0].ends_with("WARNING: [pool www] child 1 said into stderr: \"x\"\n"));
    }

    fn pieces() -> impl Strategy<Value = Vec<(bool, Vec<u8>)>> {
        let bytes = prop_oneof![
            Just(b"\n".to_vec()),
            Just(FLUSH.to_vec()),
            Just(b"\0fsc".to_vec()),
            Just(b"f\0".to_vec()),
            Just(b"\0".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..900),
        ];
        proptest::collection::vec((any::<bool>(), bytes), 0..20)
    }

    fn stream(stderr: bool) -> Stream {
        if stderr { Stderr } else { Stdout }
    }

    proptest! {
        #[test]
        fn reads_may_be_split_anywhere(input in pieces(), cut in 1usize..40, decorate in any::<bool>()) {
            let whole: Vec<_> = input.iter().map(|(s, b)| (stream(*s), b.as_slice())).collect();
            let split: Vec<_> = whole.iter().flat_map(|(s, b)| b.chunks(cut).map(|c| (*s, c))).collect();
            let (whole, split) = (Log::run(decorate, 512, &whole), Log::run(decorate, 512, &split));
            prop_assert_eq!(whole.lines, split.lines);
            prop_assert_eq!(whole.said, split.said);
        }

        #[test]
        fn no_byte_is_lost_or_duplicated(input in pieces(), decorate in any::<bool>()) {
            let mut log = Log::new(512);
            let mut output = WorkerOutput::new("www", 1, decorate);
            let mut printed = [Vec::new(), Vec::new()];
            for (stderr, bytes) in &input {
                log.with(|lines| output.feed(stream(*stderr), bytes, lines));
                printed[usize::from(*stderr)].extend_from_slice(bytes);
            }
            log.with(|lines| {
                output.close(Stdout, lines);
                output.close(Stderr, lines);
            });
            prop_assert_eq!(log.said, printed.map(without_markers_and_newlines));
        }
    }

    fn without_markers_and_newlines(mut bytes: Vec<u8>) -> Vec<u8> {
        let mut rest = Vec::new();
        while !bytes.is_empty() {
            let skip = if bytes.starts_with(FLUSH) { FLUSH.len() } else { 1 };
            if skip == 1 && bytes[0] != b'\n' {
                rest.push(bytes[0]);
            }
            bytes.drain(..skip);
        }
        rest
    }
}
