//! The state machine that reads one connection: bytes in, events out, in pieces of any size.

use std::ops::Range;

use thiserror::Error;

use super::{HEADER_LEN, Header, MAX_CONTENT, RecordType, Role, append_record};

/// Most bytes of parameters in one request. php-fpm has no limit of its own; web servers stay below 64 KiB.
pub const MAX_PARAMS: usize = 16 << 20;

/// Why a connection cannot go on. It is closed without an answer, as php-fpm does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProtocolError {
    /// The version byte was 0, or another than 1 before a type that does not exist: another protocol, HTTP for instance.
    #[error("a record has a version that there is not")]
    Version,
    /// BEGIN_REQUEST whose content is not 8 bytes.
    #[error("BEGIN_REQUEST has {0} bytes of content, not 8")]
    BeginLength(u16),
    /// BEGIN_REQUEST with the id of the request that is under way.
    #[error("a second BEGIN_REQUEST came for request {0}, which is still under way")]
    SecondBegin(u16),
    /// PARAMS for a request whose parameters had ended.
    #[error("PARAMS came for request {0} after its parameters had ended")]
    LateParams(u16),
    /// More than [`MAX_PARAMS`].
    #[error("the parameters are longer than {MAX_PARAMS} bytes")]
    ParamsTooLong,
    /// The parameters end within a name or value.
    #[error("the parameters end in the middle of a name or value")]
    TruncatedPair,
    /// A record that only a server sends, or one that cannot open a connection.
    #[error("a record of type {0:?} is out of place here")]
    OutOfPlace(RecordType),
}

/// A request whose parameters are complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Its id, echoed in every record of the answer.
    pub id: u16,
    /// Its role.
    pub role: Role,
    /// FCGI_KEEP_CONN: the connection stays open afterwards.
    pub keep: bool,
}

/// What [`Input::next`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// All bytes are used up and more are needed.
    NeedMore,
    /// A request may run; its parameters are in [`Input::params`].
    Request(Begin),
    /// Content of the request's STDIN, where it stands in the bytes given.
    Stdin(Range<usize>),
    /// The request's STDIN has ended.
    StdinEnd,
    /// The web server gave the request up.
    Abort {
        /// Its id.
        id: u16,
        /// Whether the connection stays open.
        keep: bool,
    },
    /// GET_VALUES with this content: answer with GET_VALUES_RESULT.
    GetValues(Vec<u8>),
    /// A record type that does not exist: answer with UNKNOWN_TYPE.
    UnknownType(u8),
    /// A request in a role that does not exist: answer with END_REQUEST(UNKNOWN_ROLE).
    UnknownRole {
        /// Its id.
        id: u16,
        /// Whether the connection stays open.
        keep: bool,
    },
    /// A second request while one is under way: answer with END_REQUEST(CANT_MPX_CONN).
    CantMultiplex(u16),
}

/// Where the connection stands between records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing has come yet.
    Fresh,
    /// Between two requests.
    Idle,
    /// The parameters of this request are coming in.
    Params(Begin),
    /// Parameters complete; the body may still be coming in.
    Body(Begin),
}

/// What happens to the content of the record that is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sink {
    Params,
    Stdin,
    /// Gathered whole in `scratch` first.
    Begin,
    Values,
    /// Gives the request up.
    Abort,
    /// What a script left unread of its body.
    Drain,
    Skip,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    sink: Sink,
    id: u16,
    /// Bytes of content in all.
    length: u16,
    /// Bytes of content still to come.
    left: u16,
    padding: u8,
    /// What its end means has been said.
    ended: bool,
}

/// Reads one connection.
#[derive(Debug)]
pub struct Input {
    state: State,
    record: Option<Record>,
    params: Vec<u8>,
    scratch: Vec<u8>,
    stdin_ended: bool,
}

impl Default for Input {
    fn default() -> Self {
        Self {
            state: State::Fresh,
            record: None,
            params: Vec::new(),
            scratch: Vec::new(),
            stdin_ended: true,
        }
    }
}

impl Input {
    /// Reads a connection on which something has been said before: what is left of that is skipped. `owed`: there is something left.
    pub fn resumed(owed: bool) -> Self {
        Self {
            state: State::Idle,
            stdin_ended: !owed,
            ..Self::default()
        }
    }

    /// Reads another connection from its beginning, on the memory of this one.
    pub fn renewed(mut self) -> Self {
        self.params.clear();
        self.scratch.clear();
        Self {
            params: self.params,
            scratch: self.scratch,
            ..Self::default()
        }
    }

    /// Bytes from which another reader comes to where this one stands, so that a connection can go from one process to
    /// another between any two bytes. Not for a request whose body is being read.
    pub fn replay(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut other = 0; // an id of no request
        if let State::Params(begin) = self.state {
            other = begin.id ^ 1;
            out.extend(Header::bytes(RecordType::BeginRequest, begin.id, 8, 0));
            let role = (begin.role as u16).to_be_bytes();
            out.extend([role[0], role[1], u8::from(begin.keep), 0, 0, 0, 0, 0]);
            for part in self.params.chunks(MAX_CONTENT) {
                append_record(&mut out, RecordType::Params, begin.id, part);
            }
        }
        let Some(record) = self.record else { return out };
        let header = |kind, id, content| Header::bytes(kind, id, content, record.padding);
        match record.sink {
            // An empty STDIN would end the body that is still to come.
            _ if record.ended && self.is_owed_a_body() => out.extend(header(RecordType::Data, other, 0)),
            _ if record.ended => out.extend(header(RecordType::Stdin, other, 0)),
            Sink::Params => out.extend(header(RecordType::Params, record.id, record.left)),
            Sink::Abort => out.extend(header(RecordType::AbortRequest, record.id, record.left)),
            Sink::Begin | Sink::Values => {
                let kind = match record.sink {
                    Sink::Begin => RecordType::BeginRequest,
                    _ => RecordType::GetValues,
                };
                out.extend(header(kind, record.id, record.length));
                out.extend_from_slice(&self.scratch);
            }
            Sink::Stdin | Sink::Drain | Sink::Skip => out.extend(header(RecordType::Stdin, other, record.left)),
        }
        out
    }

    /// Reads on. Returns how many of `bytes` are used up, which the caller drops, and what was found.
    pub fn next(&mut self, bytes: &[u8]) -> Result<(usize, Event), ProtocolError> {
        let mut at = 0;
        loop {
            let Some(record) = &mut self.record else {
                let Some(header) = Header::parse(&bytes[at..]) else {
                    return Ok((at, Event::NeedMore));
                };
                if let Some(event) = self.start(header)? {
                    // The parameters ended without their empty record; this header is read again, as the body's.
                    return Ok((at, event));
                }
                at += HEADER_LEN;
                if let RecordType::Unknown(kind) = header.kind {
                    self.has_spoken();
                    return Ok((at, Event::UnknownType(kind)));
                }
                continue;
            };
            if record.left > 0 {
                let take = (bytes.len() - at).min(record.left as usize);
                if take == 0 {
                    return Ok((at, Event::NeedMore));
                }
                record.left -= take as u16;
                let content = at..at + take;
                at += take;
                match record.sink {
                    Sink::Params => self.add_params(&bytes[content])?,
                    Sink::Begin | Sink::Values => self.scratch.extend_from_slice(&bytes[content]),
                    Sink::Stdin => return Ok((at, Event::Stdin(content))),
                    Sink::Abort | Sink::Drain | Sink::Skip => {}
                }
                continue;
            }
            if !record.ended {
                record.ended = true;
                let record = *record;
                if let Some(event) = self.end(record)? {
                    return Ok((at, event));
                }
                continue;
            }
            let take = (bytes.len() - at).min(record.padding as usize);
            record.padding -= take as u8;
            at += take;
            if record.padding > 0 {
                return Ok((at, Event::NeedMore));
            }
            self.record = None;
        }
    }

    /// Decides what becomes of the record with this header. Some: the request begins before this record is read.
    fn start(&mut self, header: Header) -> Result<Option<Event>, ProtocolError> {
        let strange = header.version != 1 && matches!(header.kind, RecordType::Unknown(_));
        if header.version == 0 || strange {
            return Err(ProtocolError::Version);
        }
        let current = match self.state {
            State::Params(begin) | State::Body(begin) => Some(begin.id),
            State::Fresh | State::Idle => None,
        };
        let ours = current == Some(header.id);
        use RecordType as T;
        let sink = match (header.kind, self.state) {
            (T::BeginRequest, _) if ours => return Err(ProtocolError::SecondBegin(header.id)),
            (T::BeginRequest, _) if header.content != 8 => return Err(ProtocolError::BeginLength(header.content)),
            (T::BeginRequest, _) => Sink::Begin,
            (T::Params, State::Params(_)) if ours => Sink::Params,
            (T::Params, State::Body(_)) if ours => return Err(ProtocolError::LateParams(header.id)),
            // php-fpm takes any record as the end of the parameters. A client that leaves the empty PARAMS out and goes
            // on with the body is understood; nothing else is guessed at.
            (T::Stdin, State::Params(begin)) if ours => {
                return self.params_complete(begin).map(Some);
            }
            (T::Stdin, State::Body(_)) if ours && !self.stdin_ended => Sink::Stdin,
            // The first thing on a connection must make sense; php-fpm lets only an empty STDIN pass.
            (T::Stdin, State::Fresh) if header.content == 0 => Sink::Skip,
            (T::Params | T::Stdin | T::Data | T::AbortRequest, State::Fresh) => {
                return Err(ProtocolError::OutOfPlace(header.kind));
            }
            (T::AbortRequest, _) if ours => Sink::Abort,
            (T::Stdin, State::Idle) => Sink::Drain,
            // What is left of a request that has been answered, or belongs to one that was refused.
            (T::Params | T::Stdin | T::Data | T::AbortRequest | T::Unknown(_), _) => Sink::Skip,
            (T::GetValues, _) => Sink::Values,
            (T::EndRequest | T::Stdout | T::Stderr | T::GetValuesResult, _) => {
                return Err(ProtocolError::OutOfPlace(header.kind));
            }
        };
        self.scratch.clear();
        let (id, length, padding) = (header.id, header.content, header.padding);
        self.record = Some(Record {
            sink,
            id,
            length,
            left: length,
            padding,
            ended: false,
        });
        Ok(None)
    }

    /// A record's content is complete.
    fn end(&mut self, record: Record) -> Result<Option<Event>, ProtocolError> {
        let event = match (record.sink, self.state) {
            (Sink::Begin, State::Params(_) | State::Body(_)) => Event::CantMultiplex(record.id),
            (Sink::Begin, State::Fresh | State::Idle) => {
                let (id, keep) = (record.id, self.scratch[2] & 1 != 0);
                let Some(role) = Role::from_number(u16::from_be_bytes([self.scratch[0], self.scratch[1]])) else {
                    (self.state, self.stdin_ended) = (State::Idle, false);
                    return Ok(Some(Event::UnknownRole { id, keep }));
                };
                self.params.clear();
                self.stdin_ended = false;
                self.state = State::Params(Begin { id, role, keep });
                return Ok(None);
            }
            (Sink::Params, State::Params(begin)) if record.length == 0 => return self.params_complete(begin).map(Some),
            (Sink::Values, _) => {
                self.has_spoken();
                Event::GetValues(std::mem::take(&mut self.scratch))
            }
            (Sink::Stdin, _) if record.length == 0 => {
                self.stdin_ended = true;
                Event::StdinEnd
            }
            (Sink::Drain, _) => {
                self.stdin_ended |= record.length == 0;
                return Ok(None);
            }
            (Sink::Abort, State::Params(begin) | State::Body(begin)) => {
                self.finish();
                self.stdin_ended = true;
                Event::Abort {
                    id: begin.id,
                    keep: begin.keep,
                }
            }
            _ => return Ok(None),
        };
        Ok(Some(event))
    }

    /// Something that makes sense without a request has come.
    fn has_spoken(&mut self) {
        if self.state == State::Fresh {
            self.state = State::Idle;
        }
    }

    fn add_params(&mut self, content: &[u8]) -> Result<(), ProtocolError> {
        if self.params.len() + content.len() > MAX_PARAMS {
            return Err(ProtocolError::ParamsTooLong);
        }
        self.params.extend_from_slice(content);
        Ok(())
    }

    fn params_complete(&mut self, begin: Begin) -> Result<Event, ProtocolError> {
        if super::pairs(&self.params).any(|pair| pair.is_err()) {
            return Err(ProtocolError::TruncatedPair);
        }
        self.state = State::Body(begin);
        Ok(Event::Request(begin))
    }

    /// The parameters of the last request, complete and well-formed: the bytes for [`pairs`](super::pairs).
    pub fn params(&self) -> &[u8] {
        &self.params
    }

    /// The request has been answered. What it has left unread is skipped when it comes, and never taken for a request.
    pub fn finish(&mut self) {
        self.state = State::Idle;
        if self.params.capacity() > 64 << 10 {
            self.params = Vec::new();
        }
    }

    /// Bytes of the STDIN record under way that may be read around this state machine, straight to where they are
    /// wanted; those must be told to [`Input::took_stdin`].
    pub fn stdin_left(&self) -> usize {
        match self.record {
            Some(Record {
                sink: Sink::Stdin,
                left,
                ..
            }) => left as usize,
            _ => 0,
        }
    }

    /// See [`Input::stdin_left`]; `count` must not be more than it said.
    pub fn took_stdin(&mut self, count: usize) {
        if let Some(record) = &mut self.record {
            record.left -= count as u16;
        }
    }

    /// Whether the peer has sent all of the last request, its padding included, so that closing now resets nothing.
    pub fn is_drained(&self) -> bool {
        self.stdin_ended && self.record.is_none_or(|record| record.ended && record.padding == 0)
    }

    /// Whether the parameters of a request are coming in.
    pub fn is_in_params(&self) -> bool {
        matches!(self.state, State::Params(_))
    }

    /// Whether the rest of the last request's body is still to come.
    pub fn is_owed_a_body(&self) -> bool {
        self.state == State::Idle && !self.stdin_ended
    }

    /// Whether a next request, or a question about no request, has begun to come. What is left of the last one is none.
    pub fn has_begun(&self) -> bool {
        let opens = |record: Record| matches!(record.sink, Sink::Begin | Sink::Values);
        matches!(self.state, State::Params(_) | State::Body(_)) || self.record.is_some_and(opens)
    }

    /// Whether nothing of a next request has come: the connection may be waited on for as long as it likes.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Fresh | State::Idle) && self.record.is_none()
    }

    /// Whether the connection has never said anything that made sense yet.
    pub fn is_fresh(&self) -> bool {
        self.state == State::Fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fastcgi::append_record;
    use proptest::prelude::*;

    fn record(out: &mut Vec<u8>, kind: u8, id: u16, content: &[u8]) {
        append_record(out, kind.into(), id, content);
    }

    fn request(id: u16, params: &[&[u8]], body: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        record(&mut out, 1, id, &[0, 1, 1, 0, 0, 0, 0, 0]);
        for part in params.iter().chain([&&b""[..]]) {
            record(&mut out, 4, id, part);
        }
        for part in body.iter().chain([&&b""[..]]) {
            record(&mut out, 5, id, part);
        }
        out
    }

    /// Events, body, parameters of each request.
    type Seen = (Vec<Event>, Vec<u8>, Vec<u8>);

    /// Everything that happens when `bytes` come in pieces of `step`.
    fn run(bytes: &[u8], step: usize) -> Result<Seen, ProtocolError> {
        let (mut input, mut events, mut body, mut params) = (Input::default(), vec![], vec![], vec![]);
        let mut buffer: Vec<u8> = Vec::new();
        for piece in bytes.chunks(step) {
            buffer.extend_from_slice(piece);
            loop {
                let (used, event) = input.next(&buffer)?;
                match &event {
                    Event::Stdin(range) => body.extend_from_slice(&buffer[range.clone()]),
                    Event::Request(_) => params.extend_from_slice(input.params()),
                    _ => {}
                }
                buffer.drain(..used);
                match event {
                    Event::NeedMore => break,
                    Event::Stdin(_) => {}
                    Event::StdinEnd => {
                        events.push(event);
                        input.finish();
                    }
                    event => events.push(event),
                }
            }
        }
        Ok((events, body, params))
    }

    #[test]
    fn a_pair_may_straddle_records() {
        let bytes = request(1, &[b"FO", b"OB", b"AR"], &[b"ab", b"c"]);
        let begin = Begin {
            id: 1,
            role: Role::Responder,
            keep: true,
        };
        for step in [1, 3, 1000] {
            let (events, body, params) = run(&bytes, step).unwrap();
            assert_eq!(events, [Event::Request(begin), Event::StdinEnd]);
            assert_eq!((body.as_slice(), params.as_slice()), (&b"abc"[..], &b"FOOBAR"[..]));
        }
    }

    #[test]
    fn a_request_inside_a_body_is_body() {
        let inner = request(9, &[b"AB"], &[]);
        let bytes = request(1, &[], &[&inner]);
        let (events, body, _) = run(&bytes, 7).unwrap();
        assert_eq!(events.len(), 2);
        assert_eq!(body, inner);
    }

    #[test]
    fn a_body_left_unread_is_skipped_before_the_next_request() {
        let mut input = Input::default();
        let mut bytes = request(1, &[], &[b"unread"]);
        bytes.extend(request(2, &[], &[]));
        let (used, event) = input.next(&bytes).unwrap();
        assert!(matches!(event, Event::Request(Begin { id: 1, .. })));
        input.finish();
        let (_, event) = input.next(&bytes[used..]).unwrap();
        assert!(matches!(event, Event::Request(Begin { id: 2, .. })));
    }

    #[test]
    fn another_request_meanwhile_is_refused_and_the_first_goes_on() {
        let mut bytes = Vec::new();
        record(&mut bytes, 1, 1, &[0, 1, 0, 0, 0, 0, 0, 0]);
        record(&mut bytes, 1, 2, &[0, 1, 0, 0, 0, 0, 0, 0]);
        record(&mut bytes, 4, 2, b"AB");
        record(&mut bytes, 4, 1, b"");
        let (events, _, params) = run(&bytes, 5).unwrap();
        assert!(matches!(
            events[..],
            [Event::CantMultiplex(2), Event::Request(Begin { id: 1, .. })]
        ));
        assert!(params.is_empty());
    }

    #[test]
    fn abort_ends_the_request() {
        let mut bytes = Vec::new();
        record(&mut bytes, 1, 1, &[0, 1, 1, 0, 0, 0, 0, 0]);
        record(&mut bytes, 2, 1, b"");
        bytes.extend(request(3, &[], &[]));
        let (events, ..) = run(&bytes, 1).unwrap();
        assert!(matches!(
            events[..],
            [Event::Abort { id: 1, keep: true }, Event::Request(_), Event::StdinEnd]
        ));
    }

    #[test]
    fn errors_close() {
        let mut begin = Vec::new();
        record(&mut begin, 1, 1, &[0, 1, 1, 0, 0, 0, 0, 0]);
        let with = |kind, id, content: &[u8]| {
            let mut bytes = begin.clone();
            record(&mut bytes, kind, id, content);
            bytes
        };
        assert_eq!(run(&[0; 8], 8), Err(ProtocolError::Version));
        assert_eq!(run(b"GET / HTTP/1.0\r\n\r\n", 8), Err(ProtocolError::Version));
        assert_eq!(run(&with(1, 1, &[0; 8]), 8), Err(ProtocolError::SecondBegin(1)));
        assert_eq!(run(&with(1, 2, &[0; 7]), 8), Err(ProtocolError::BeginLength(7)));
        assert_eq!(run(&request(1, &[b"a"], &[]), 8), Err(ProtocolError::TruncatedPair));
        let mut late = Vec::new();
        record(&mut late, 5, 1, b"body first");
        assert_eq!(run(&late, 8), Err(ProtocolError::OutOfPlace(RecordType::Stdin)));
    }

    #[test]
    fn the_rest_of_a_body_is_owed_to_whoever_takes_over() {
        let bytes = [request(1, &[b""], &[b"first", b"second"]), request(1, &[b""], &[])].concat();
        let read = |input: &mut Input, mut bytes: &[u8]| {
            let mut requests = 0;
            loop {
                match input.next(bytes).unwrap() {
                    (used, Event::NeedMore) => return (requests, bytes[used..].to_vec()),
                    (used, event) => {
                        bytes = &bytes[used..];
                        if matches!(event, Event::Request(_)) {
                            requests += 1;
                            input.finish();
                        }
                    }
                }
            }
        };
        for cut in 0..bytes.len() {
            let mut first = Input::default();
            let (before, unread) = read(&mut first, &bytes[..cut]);
            let owed = first.is_owed_a_body();
            let mut second = if first.is_fresh() {
                Input::default()
            } else {
                Input::resumed(owed)
            };
            let (during, more) = read(&mut second, &[first.replay(), unread].concat());
            assert_eq!((during, second.is_owed_a_body()), (0, owed), "{cut}");
            let (after, _) = read(&mut second, &[&more, &bytes[cut..]].concat());
            assert_eq!(before + after, 2, "{cut}");
            assert!(!second.is_owed_a_body(), "{cut}");
        }
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_read_alike(body in proptest::collection::vec(any::<u8>(), 0..300), cut in 1usize..40, step in 1usize..60) {
            let parts: Vec<&[u8]> = body.chunks(cut).collect();
            let bytes = request(7, &[b"", b"abc"], &parts);
            prop_assert_eq!(run(&bytes, step), run(&bytes, bytes.len()));
            prop_assert_eq!(run(&bytes, step).unwrap().1, body);
        }

        #[test]
        fn a_reader_that_takes_over_anywhere_reads_alike(
            kinds in proptest::collection::vec((0u8..13, 0u16..3, 0usize..20, 0u8..10), 0..12), cut in 0usize..400, begun: bool,
        ) {
            let mut bytes = Vec::new();
            if begun {
                record(&mut bytes, 1, 1, &[0, 1, 1, 0, 0, 0, 0, 0]);
            }
            for (kind, id, length, padding) in kinds {
                // Lengths of names and values that fit, and BEGIN_REQUEST with a known role.
                let content = if kind == 1 { vec![0, 1, 1, 0, 0, 0, 0, 0] } else { vec![0; length] };
                bytes.extend(Header::bytes(kind.into(), id, content.len() as u16, padding));
                bytes.extend(content);
                bytes.extend(vec![0; padding as usize]);
            }
            let read = |input: &mut Input, mut bytes: &[u8]| {
                let mut events = Vec::new();
                loop {
                    match input.next(bytes) {
                        Ok((used, Event::NeedMore)) => return (events, bytes[used..].to_vec(), false),
                        Ok((used, Event::Stdin(_))) => bytes = &bytes[used..],
                        Ok((used, event)) => {
                            if matches!(event, Event::Request(_)) {
                                events.push((format!("{event:?}"), input.params().to_vec()));
                                input.finish();
                            } else if event != Event::StdinEnd {
                                events.push((format!("{event:?}"), Vec::new()));
                            }
                            bytes = &bytes[used..];
                        }
                        Err(error) => {
                            events.push((error.to_string(), Vec::new()));
                            return (events, Vec::new(), true);
                        }
                    }
                }
            };
            let cut = cut.min(bytes.len());
            let mut first = Input::default();
            let (mut before, unread, failed) = read(&mut first, &bytes[..cut]);
            let (whole, ..) = read(&mut Input::default(), &bytes);
            if failed {
                prop_assert_eq!(before, whole);
            } else {
                let owed = first.is_owed_a_body();
                let mut second = if first.is_fresh() { Input::default() } else { Input::resumed(owed) };
                let rest = [first.replay(), unread, bytes[cut..].to_vec()].concat();
                before.extend(read(&mut second, &rest[..first.replay().len()]).0);
                prop_assert_eq!(second.is_owed_a_body(), owed);
                before.extend(read(&mut second, &rest[first.replay().len()..]).0);
                prop_assert_eq!(before, whole);
            }
        }

        #[test]
        fn any_bytes_end_and_any_split_agrees(bytes: Vec<u8>, step in 1usize..9) {
            let whole = run(&bytes, bytes.len().max(1)).map(|(events, ..)| events);
            let split = run(&bytes, step).map(|(events, ..)| events);
            prop_assert_eq!(whole, split);
        }
    }
}
