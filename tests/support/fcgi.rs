//! A FastCGI client that builds every byte itself, so that it can send what no decent client would.
//!
//! It shares no code with the server's codec: an error in one must not be hidden by the same error in the other.
//! Numbers are those of the FastCGI specification, version 1.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub const BEGIN_REQUEST: u8 = 1;
pub const ABORT_REQUEST: u8 = 2;
pub const END_REQUEST: u8 = 3;
pub const PARAMS: u8 = 4;
pub const STDIN: u8 = 5;
pub const STDOUT: u8 = 6;
pub const STDERR: u8 = 7;
pub const DATA: u8 = 8;
pub const GET_VALUES: u8 = 9;
pub const GET_VALUES_RESULT: u8 = 10;
pub const UNKNOWN_TYPE: u8 = 11;

pub const RESPONDER: u16 = 1;
pub const AUTHORIZER: u16 = 2;
pub const FILTER: u16 = 3;

pub const KEEP_CONN: u8 = 1;

pub const REQUEST_COMPLETE: u8 = 0;
pub const CANT_MPX_CONN: u8 = 1;
pub const UNKNOWN_ROLE: u8 = 3;

/// How long the client waits for anything. Long, because the machine may be busy; a server that needs it all is stuck.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One record, as it goes over the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub version: u8,
    pub kind: u8,
    pub id: u16,
    pub content: Vec<u8>,
    pub padding: Vec<u8>,
    pub reserved: u8,
}

impl Record {
    /// A well-formed record; `content` must fit into it.
    pub fn new(kind: u8, id: u16, content: impl Into<Vec<u8>>) -> Self {
        let content = content.into();
        assert!(content.len() <= 0xffff, "a record cannot hold {} bytes", content.len());
        Self {
            version: 1,
            kind,
            id,
            content,
            padding: Vec::new(),
            reserved: 0,
        }
    }

    pub fn version(self, version: u8) -> Self {
        Self { version, ..self }
    }

    /// Adds `length` bytes of padding that are not zero, so that a server which takes them for data shows it.
    pub fn padded(self, length: u8) -> Self {
        Self {
            padding: vec![0xee; usize::from(length)],
            ..self
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let length = u16::try_from(self.content.len())
            .expect("checked when the record was made")
            .to_be_bytes();
        let id = self.id.to_be_bytes();
        let padding = u8::try_from(self.padding.len()).expect("made from a byte");
        let mut bytes = vec![
            self.version,
            self.kind,
            id[0],
            id[1],
            length[0],
            length[1],
            padding,
            self.reserved,
        ];
        bytes.extend_from_slice(&self.content);
        bytes.extend_from_slice(&self.padding);
        bytes
    }

    /// The first record of `bytes` and what it takes of them; None if it is not there as a whole.
    fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let header: [u8; 8] = bytes.get(..8)?.try_into().expect("eight bytes");
        let content_end = 8 + usize::from(u16::from_be_bytes([header[4], header[5]]));
        let end = content_end + usize::from(header[6]);
        let record = Self {
            version: header[0],
            kind: header[1],
            id: u16::from_be_bytes([header[2], header[3]]),
            content: bytes.get(8..content_end)?.to_vec(),
            padding: bytes.get(content_end..end)?.to_vec(),
            reserved: header[7],
        };
        Some((record, end))
    }
}

/// A BEGIN_REQUEST record.
pub fn begin(id: u16, role: u16, flags: u8) -> Record {
    let role = role.to_be_bytes();
    Record::new(BEGIN_REQUEST, id, vec![role[0], role[1], flags, 0, 0, 0, 0, 0])
}

/// A name-value pair with the shortest encoding of its lengths.
pub fn pair(name: &[u8], value: &[u8]) -> Vec<u8> {
    let length = |n: usize| match u8::try_from(n) {
        Ok(short) if short < 0x80 => vec![short],
        _ => long_length(n),
    };
    [length(name.len()), length(value.len()), name.to_vec(), value.to_vec()].concat()
}

/// A name-value pair with four bytes for each length, however short.
pub fn long_pair(name: &[u8], value: &[u8]) -> Vec<u8> {
    [
        long_length(name.len()),
        long_length(value.len()),
        name.to_vec(),
        value.to_vec(),
    ]
    .concat()
}

/// Parameters, as text, with the shortest encoding of their lengths.
pub fn pairs(params: &[(&str, &str)]) -> Vec<u8> {
    params
        .iter()
        .flat_map(|(name, value)| pair(name.as_bytes(), value.as_bytes()))
        .collect()
}

/// A whole request to a responder, with the id 1.
pub fn request(flags: u8, params: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    [
        begin(1, RESPONDER, flags).bytes(),
        stream(PARAMS, 1, &pairs(params), 0xffff),
        stream(STDIN, 1, body, 0xffff),
    ]
    .concat()
}

/// A length in four bytes.
pub fn long_length(n: usize) -> Vec<u8> {
    (u32::try_from(n).expect("lengths are below 2 GiB") | 0x8000_0000)
        .to_be_bytes()
        .to_vec()
}

/// `content` as records of `kind` with at most `size` bytes each, and the empty one that ends the stream.
pub fn stream(kind: u8, id: u16, content: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(content.len() + 8 * (content.len() / size + 2));
    for part in content.chunks(size) {
        bytes.extend(Record::new(kind, id, part).bytes());
    }
    bytes.extend(Record::new(kind, id, []).bytes());
    bytes
}

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Address {
    Unix(PathBuf),
    Tcp(String, u16),
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// How the server ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// An orderly end of stream.
    Closed,
    /// Reset: the server closed while bytes of ours were unread, or by force.
    Reset,
}

/// A connection to a server. Whatever it waits for, it gives up after [`PATIENCE`] with a panic that says what came.
pub struct Connection {
    stream: Stream,
    received: Vec<u8>,
    taken: usize,
    ended: Option<Ended>,
    sending_failed: bool,
}

impl Connection {
    pub fn open(address: &Address) -> io::Result<Self> {
        let stream = match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_nonblocking(true)?;
                Stream::Unix(stream)
            }
            Address::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port))?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
        };
        Ok(Self {
            stream,
            received: Vec::new(),
            taken: 0,
            ended: None,
            sending_failed: false,
        })
    }

    /// Sends all of `bytes`, and takes in what the server says meanwhile. False if the server would not have them all.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let mut rest = bytes;
        while !rest.is_empty() && !self.sending_failed {
            match self.write_some(rest) {
                Ok(0) => self.sending_failed = true,
                Ok(n) => rest = &rest[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    assert!(
                        self.wait(true, deadline),
                        "the server did not take {} bytes in {PATIENCE:?}",
                        rest.len()
                    );
                    self.read_some();
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.sending_failed = true,
            }
        }
        !self.sending_failed
    }

    /// Sends `bytes` one at a time, each in a packet of its own.
    pub fn send_byte_by_byte(&mut self, bytes: &[u8]) -> bool {
        bytes.iter().all(|byte| self.send(std::slice::from_ref(byte)))
    }

    /// Reads nothing for a while: what a slow client does.
    pub fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }

    /// Tells the server that nothing more will come; answers can still be read.
    pub fn half_close(&self) {
        // An error means that the connection is gone, which the next read tells.
        let _ = match &self.stream {
            Stream::Unix(s) => s.shutdown(Shutdown::Write),
            Stream::Tcp(s) => s.shutdown(Shutdown::Write),
        };
    }

    /// The next record; None once the server has ended the connection.
    pub fn next_record(&mut self) -> Option<Record> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(record) = self.buffered_record() {
                return Some(record);
            }
            if self.ended.is_some() {
                return None;
            }
            assert!(
                self.wait(false, deadline),
                "the server said nothing for {PATIENCE:?}; what came before and is no whole record: {:?}",
                self.received[self.taken..].escape_ascii().to_string()
            );
            self.read_some();
        }
    }

    /// The next record if it comes within `patience`: for showing that a server *keeps silent*, nothing else.
    pub fn record_within(&mut self, patience: Duration) -> Option<Record> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(record) = self.buffered_record() {
                return Some(record);
            }
            if self.ended.is_some() || !self.wait(false, deadline) {
                return None;
            }
            self.read_some();
        }
    }

    /// Everything up to END_REQUEST of `id`, or to the end of the connection if that comes first.
    pub fn reply(&mut self, id: u16) -> Reply {
        let mut reply = Reply::default();
        while reply.end.is_none() {
            let Some(record) = self.next_record() else {
                reply.ended = self.ended;
                reply.rest = self.received[self.taken..].to_vec();
                break;
            };
            reply.add(id, record);
        }
        reply
    }

    /// Waits for the end of the connection: what came before it, and how it ended.
    pub fn end(&mut self) -> (Vec<u8>, Ended) {
        let deadline = Instant::now() + PATIENCE;
        let ended = loop {
            if let Some(ended) = self.ended {
                break ended;
            }
            assert!(
                self.wait(false, deadline),
                "the server did not close the connection in {PATIENCE:?}"
            );
            self.read_some();
        };
        (self.received.split_off(self.taken), ended)
    }

    fn buffered_record(&mut self) -> Option<Record> {
        let (record, length) = Record::parse(&self.received[self.taken..])?;
        self.taken += length;
        Some(record)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Unix(s) => s.as_fd(),
            Stream::Tcp(s) => s.as_fd(),
        }
    }

    /// Waits until something can be read (or, if asked for, written); false when the time is over.
    fn wait(&self, to_write: bool, deadline: Instant) -> bool {
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, self.ended.is_none());
        events.set(PollFlags::POLLOUT, to_write);
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.fd(), events)], timeout) {
            Ok(n) => n > 0,
            Err(nix::errno::Errno::EINTR) => true,
            Err(e) => panic!("poll on the client's own socket failed: {e}"),
        }
    }

    fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Unix(s) => s.write(bytes),
            Stream::Tcp(s) => s.write(bytes),
        }
    }

    fn read_some(&mut self) {
        let mut buffer = [0; 65536];
        let outcome = match &mut self.stream {
            Stream::Unix(s) => s.read(&mut buffer),
            Stream::Tcp(s) => s.read(&mut buffer),
        };
        match outcome {
            Ok(0) => self.ended = Some(Ended::Closed),
            Ok(n) => self.received.extend_from_slice(&buffer[..n]),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.ended = Some(Ended::Reset),
        }
    }
}

/// What END_REQUEST says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub app_status: u32,
    pub protocol_status: u8,
    pub reserved: [u8; 3],
}

/// A server's answer to one request.
#[derive(Clone, Default)]
pub struct Reply {
    /// All records, in order.
    pub records: Vec<Record>,
    /// What the STDOUT records of the request hold.
    pub stdout: Vec<u8>,
    /// What its STDERR records hold.
    pub stderr: Vec<u8>,
    /// Its END_REQUEST.
    pub end: Option<End>,
    /// How the connection ended, if it did so before END_REQUEST or was read to its end.
    pub ended: Option<Ended>,
    /// What came after the last whole record.
    pub rest: Vec<u8>,
}

impl Reply {
    fn add(&mut self, id: u16, record: Record) {
        if record.id == id {
            match record.kind {
                STDOUT => self.stdout.extend_from_slice(&record.content),
                STDERR => self.stderr.extend_from_slice(&record.content),
                END_REQUEST => {
                    let c = &record.content;
                    assert_eq!(c.len(), 8, "END_REQUEST must have 8 bytes");
                    self.end = Some(End {
                        app_status: u32::from_be_bytes([c[0], c[1], c[2], c[3]]),
                        protocol_status: c[4],
                        reserved: [c[5], c[6], c[7]],
                    });
                }
                _ => {}
            }
        }
        self.records.push(record);
    }

    /// What a strict reader of the specification has against this answer to request `id`; empty if nothing.
    pub fn faults(&self, id: u16) -> Vec<String> {
        let mut faults = Vec::new();
        for (n, record) in self.records.iter().enumerate() {
            let mut fault = |text: &str| faults.push(format!("record {n} (type {}): {text}", record.kind));
            if record.version != 1 {
                fault("the version is not 1");
            }
            if record.reserved != 0 || record.padding.iter().any(|&b| b != 0) {
                fault("reserved or padding bytes are not zero");
            }
            let management = matches!(record.kind, GET_VALUES_RESULT | UNKNOWN_TYPE);
            if record.id != if management { 0 } else { id } {
                fault(&format!("the request id is {}", record.id));
            }
            if !management && !matches!(record.kind, STDOUT | STDERR | END_REQUEST) {
                fault("an application does not send this type");
            }
            if matches!(record.kind, STDOUT | STDERR)
                && record.content.is_empty()
                && self.records[n + 1..].iter().any(|later| later.kind == record.kind)
            {
                fault("the stream goes on after its end");
            }
        }
        if self.end.is_some_and(|end| end.reserved != [0; 3]) {
            faults.push("the reserved bytes of END_REQUEST are not zero".into());
        }
        if !self.rest.is_empty() {
            faults.push(format!(
                "the connection ended inside a record, after {} bytes of it",
                self.rest.len()
            ));
        }
        faults
    }

    /// The header block, without the blank line.
    pub fn head(&self) -> &[u8] {
        &self.stdout[..self.split().0]
    }

    /// What follows the header block.
    pub fn body(&self) -> &[u8] {
        &self.stdout[self.split().1..]
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.body()).into_owned()
    }

    /// The STDERR stream as text.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The header lines, in order.
    pub fn headers(&self) -> Vec<String> {
        String::from_utf8_lossy(self.head())
            .split("\r\n")
            .filter(|l| !l.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// The values of every header called `name` (in whatever case), in order.
    pub fn header(&self, name: &str) -> Vec<String> {
        let of = |line: &str| {
            let (n, value) = line.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        };
        self.headers().iter().filter_map(|line| of(line)).collect()
    }

    /// The status: that of the Status header, else 200.
    pub fn status(&self) -> u16 {
        let status = self.header("Status");
        status
            .first()
            .map_or(200, |s| s.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0))
    }

    fn split(&self) -> (usize, usize) {
        if self.stdout.starts_with(b"\r\n") {
            return (0, 2);
        }
        let at = self.stdout.windows(4).position(|w| w == b"\r\n\r\n");
        at.map_or((self.stdout.len(), self.stdout.len()), |at| (at, at + 4))
    }
}

/// Everything that must be alike in two servers: how the bytes are cut into records is not.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  stdout {}", printable(&self.stdout))?;
        writeln!(f, "  stderr {}", printable(&self.stderr))?;
        for record in &self.records {
            if matches!(record.kind, GET_VALUES_RESULT | UNKNOWN_TYPE) {
                writeln!(f, "  record of type {}: {}", record.kind, printable(&record.content))?;
            }
        }
        match (self.end, self.ended) {
            (Some(end), _) => writeln!(f, "  end: app {}, protocol {}", end.app_status, end.protocol_status),
            // Reset or not depends on what the server has read by then.
            (None, Some(_)) => writeln!(f, "  closed without END_REQUEST"),
            (None, None) => writeln!(f, "  not ended"),
        }
    }
}

/// Bytes as text with a line for each line; very long ones as their beginning, length and a checksum.
pub fn printable(bytes: &[u8]) -> String {
    const MOST: usize = 6000;
    let lines = |bytes: &[u8]| {
        let lines = bytes
            .split_inclusive(|&b| b == b'\n')
            .map(|line| format!("    {}", line.escape_ascii()));
        lines.collect::<Vec<_>>().join("\n")
    };
    let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, &b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    match bytes.len() {
        0 => "empty".into(),
        n if n <= MOST => format!("({n} bytes)\n{}", lines(bytes)),
        n => format!(
            "({n} bytes, FNV-1a {sum:016x}), beginning with\n{}",
            lines(&bytes[..200])
        ),
    }
}
