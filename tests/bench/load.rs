//! The load: FastCGI requests over raw sockets, a fixed number of them in flight, from one thread.
//!
//! One request is one `write` and, for small answers, one `read`, so that the generator costs less than what it measures.

use std::io;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use serde::{Deserialize, Serialize};

use crate::support::fcgi::{self, Address, END_REQUEST, PATIENCE, STDERR, STDOUT};

/// One request, ready to be sent again and again.
#[derive(Clone)]
pub struct Request {
    pub bytes: Vec<u8>,
    pub params: Vec<(&'static str, String)>,
    /// The connection is kept for the next request.
    pub keep: bool,
}

impl Request {
    /// A request as nginx sends it with Debian's `fastcgi.conf`.
    /// uwsgi finds its script by PATH_INFO.
    pub fn new(
        script: &str,
        keep: bool,
        method: &str,
        content_type: &str,
        body: &[u8],
        script_as_path_info: bool,
    ) -> Self {
        let name = script.rsplit_once("/www").map_or(script, |(_, name)| name);
        let length = if body.is_empty() {
            String::new()
        } else {
            body.len().to_string()
        };
        let params = [
            ("SCRIPT_FILENAME", script),
            ("QUERY_STRING", ""),
            ("REQUEST_METHOD", method),
            ("CONTENT_TYPE", content_type),
            ("CONTENT_LENGTH", &length),
            ("SCRIPT_NAME", name),
            ("REQUEST_URI", name),
            ("DOCUMENT_URI", name),
            ("DOCUMENT_ROOT", script.strip_suffix(name).unwrap_or_default()),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
            ("REQUEST_SCHEME", "http"),
            ("GATEWAY_INTERFACE", "CGI/1.1"),
            ("SERVER_SOFTWARE", "nginx/1.22.1"),
            ("REMOTE_ADDR", "127.0.0.1"),
            ("REMOTE_PORT", "41234"),
            ("REMOTE_USER", ""),
            ("SERVER_ADDR", "127.0.0.1"),
            ("SERVER_PORT", "80"),
            ("SERVER_NAME", "localhost"),
            ("REDIRECT_STATUS", "200"),
            ("HTTP_HOST", "localhost"),
            (
                "HTTP_USER_AGENT",
                "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
            ),
            (
                "HTTP_ACCEPT",
                "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            ),
            ("HTTP_ACCEPT_LANGUAGE", "en-GB,en;q=0.5"),
        ];
        let mut params: Vec<(&'static str, String)> = params.map(|(name, value)| (name, value.to_owned())).into();
        if script_as_path_info {
            params.push(("PATH_INFO", name.to_owned()));
        }
        let pairs: Vec<u8> = params
            .iter()
            .flat_map(|(name, value)| fcgi::pair(name.as_bytes(), value.as_bytes()))
            .collect();
        let flags = if keep { fcgi::KEEP_CONN } else { 0 };
        let mut bytes = fcgi::begin(1, fcgi::RESPONDER, flags).bytes();
        bytes.extend(fcgi::stream(fcgi::PARAMS, 1, &pairs, 0xffff));
        // nginx cuts a body into records of its buffer size.
        bytes.extend(fcgi::stream(fcgi::STDIN, 1, body, 16 << 10));
        Self { bytes, params, keep }
    }
}

/// What one round has shown.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Round {
    #[serde(deserialize_with = "crate::store::number")]
    pub requests: f64,
    /// Requests a second.
    #[serde(deserialize_with = "crate::store::number")]
    pub rate: f64,
    /// CPU time of the server, all its processes, for one request, in microseconds.
    #[serde(deserialize_with = "crate::store::number")]
    pub cpu: f64,
    /// From the first byte sent, or the connection opened, to the last byte of the answer, in milliseconds.
    #[serde(deserialize_with = "crate::store::number")]
    pub p50: f64,
    #[serde(deserialize_with = "crate::store::number")]
    pub p99: f64,
}

/// Runs `in_flight` requests at a time against a server for `duration`. Every answer must be as
/// long as `expected` says (None: answers differ), and PHP must have nothing to complain about in it.
pub fn run(address: &Address, request: &Request, in_flight: usize, duration: Duration, expected: Option<u64>) -> Round {
    let begin = Instant::now();
    let mut latencies: Vec<Duration> = Vec::with_capacity(1 << 16);
    let mut clients: Vec<Client> = (0..in_flight).map(|_| Client::start(address, request, None)).collect();
    let mut buffer = vec![0; 256 << 10];
    while !clients.is_empty() {
        for index in ready(&clients) {
            let client = &mut clients[index];
            client.step(request, &mut buffer);
            if !client.answer.ended {
                continue;
            }
            if let Some(expected) = expected {
                let Answer { stdout, stderr, .. } = client.answer;
                assert_eq!(
                    (stdout, stderr),
                    (expected, 0),
                    "bytes on STDOUT and STDERR, against those of the first answer"
                );
            }
            latencies.push(client.begin.elapsed());
            let again = begin.elapsed() < duration;
            let stream = client.stream.take().filter(|_| request.keep);
            if again {
                *client = Client::start(address, request, stream);
            }
        }
        clients.retain(|client| client.stream.is_some());
    }
    let elapsed = begin.elapsed();
    latencies.sort_unstable();
    let percentile = |p: usize| latencies[(latencies.len() * p / 100).min(latencies.len() - 1)].as_secs_f64() * 1e3;
    Round {
        requests: latencies.len() as f64,
        rate: latencies.len() as f64 / elapsed.as_secs_f64(),
        cpu: 0.0,
        p50: percentile(50),
        p99: percentile(99),
    }
}

/// The clients that can go on.
fn ready(clients: &[Client]) -> Vec<usize> {
    let mut polled: Vec<PollFd> = clients
        .iter()
        .map(|client| {
            let mut events = PollFlags::POLLIN;
            events.set(PollFlags::POLLOUT, client.sent < client.length);
            PollFd::new(client.stream.as_ref().expect("a client in flight").as_fd(), events)
        })
        .collect();
    let timeout = PollTimeout::try_from(PATIENCE).expect("a time-out of seconds");
    match poll(&mut polled, timeout) {
        Ok(0) => panic!("no answer in {PATIENCE:?}"),
        Ok(_) => {}
        Err(e) => panic!("poll failed: {e}"),
    }
    let ready = polled.iter().enumerate().filter(|(_, fd)| fd.any() == Some(true));
    ready.map(|(index, _)| index).collect()
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn open(address: &Address) -> io::Result<Self> {
        Ok(match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_nonblocking(true)?;
                Self::Unix(stream)
            }
            Address::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port))?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                Self::Tcp(stream)
            }
        })
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(s) => s.as_fd(),
            Self::Tcp(s) => s.as_fd(),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(s) => s.read(buffer),
            Self::Tcp(s) => s.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(s) => s.write(bytes),
            Self::Tcp(s) => s.write(bytes),
        }
    }
}

/// One request in flight.
struct Client {
    stream: Option<Stream>,
    begin: Instant,
    sent: usize,
    length: usize,
    answer: Answer,
}

impl Client {
    /// Sends a request, on `kept` if that is a connection.
    fn start(address: &Address, request: &Request, kept: Option<Stream>) -> Self {
        let begin = Instant::now();
        let stream = kept.unwrap_or_else(|| Stream::open(address).unwrap_or_else(|e| panic!("{address:?}: {e}")));
        let mut client = Self {
            stream: Some(stream),
            begin,
            sent: 0,
            length: request.bytes.len(),
            answer: Answer::default(),
        };
        client.send(request);
        client
    }

    fn stream(&mut self) -> &mut Stream {
        self.stream.as_mut().expect("a client in flight")
    }

    fn send(&mut self, request: &Request) {
        let rest = self.sent;
        match self.stream().write(&request.bytes[rest..]) {
            Ok(n) => self.sent += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => panic!("the server did not take the request: {e}"),
        }
    }

    /// Sends what is left of the request and reads what has come of the answer.
    fn step(&mut self, request: &Request, buffer: &mut [u8]) {
        if self.sent < self.length {
            self.send(request);
        }
        match self.stream().read(buffer) {
            Ok(0) => panic!("the connection ended before the answer did"),
            Ok(n) => self.answer.take(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => panic!("the connection broke: {e}"),
        }
    }
}

/// The records of an answer: only their headers are looked at.
#[derive(Default)]
struct Answer {
    header: Vec<u8>,
    /// Content and padding of the present record that is still to come.
    rest: usize,
    last: bool,
    stdout: u64,
    stderr: u64,
    ended: bool,
}

impl Answer {
    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            assert!(!self.ended, "{} bytes came after the end of the answer", bytes.len());
            if self.rest > 0 {
                let n = self.rest.min(bytes.len());
                self.rest -= n;
                bytes = &bytes[n..];
            } else {
                let n = (8 - self.header.len()).min(bytes.len());
                self.header.extend_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
                if self.header.len() == 8 {
                    self.begin_record();
                }
            }
            self.ended = self.last && self.rest == 0;
        }
    }

    fn begin_record(&mut self) {
        let content = u16::from_be_bytes([self.header[4], self.header[5]]);
        self.rest = usize::from(content) + usize::from(self.header[6]);
        match self.header[1] {
            STDOUT => self.stdout += u64::from(content),
            STDERR => self.stderr += u64::from(content),
            END_REQUEST => self.last = true,
            other => panic!("a record of type {other}"),
        }
        self.header.clear();
    }
}
