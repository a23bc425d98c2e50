//! `pm.status_listen`: the master itself answers there, status and ping and nothing else. No worker is asked, no script can
//! be run, however busy the pool is.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::SocketFlags;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::listen::Listener;
use super::sys;
use super::watch::{Event, Events, PoolId, Watch};
use crate::config::{Network, Pool, or_never};
use crate::fastcgi::{
    self, Input, MAX_CONTENT, ProtocolStatus, RecordType, append_end_request, append_get_values_result, append_record,
    append_unknown_type,
};
use crate::log::{About, Logger, errno};
use crate::status::{Snapshot, StatusPage, View, pong, unavailable};

/// Most connections at a time; further ones wait in the socket's queue.
const MOST: usize = 64;

/// Most bytes of a request that is read at all.
const MOST_BYTES: usize = 1 << 20;

/// For the rest of a request whose answer has gone, before its connection is closed.
const CLOSE: Duration = Duration::from_secs(1);

/// What a pool answers with.
#[derive(Debug)]
pub struct Answer {
    /// The pool at this moment.
    pub snapshot: Snapshot,
    /// For X-Powered-By; None without `expose_php`.
    pub php: Option<String>,
}

/// The pages for which no worker is needed.
#[derive(Debug)]
pub struct Pages {
    id: PoolId,
    events: Events,
    status_path: Option<String>,
    ping: Option<(String, String)>,
}

impl Pages {
    /// Those of a pool.
    pub fn new(id: PoolId, pool: &Pool, events: &Events) -> Self {
        Self {
            id,
            events: events.clone(),
            status_path: pool.pm_status_path.clone(),
            ping: pool.ping_path.clone().map(|path| (path, pool.ping_response.clone())),
        }
    }

    /// The page that a request with these parameters is for.
    fn find(&self, params: &[u8]) -> Option<Page<'_>> {
        let (uri, method) = (last(params, b"SCRIPT_NAME"), last(params, b"REQUEST_METHOD"));
        let is = |path: &str| !method.is_empty() && uri == path.as_bytes();
        match &self.ping {
            Some((path, response)) if is(path) => Some(Page::Ping(response)),
            _ => self.status_path.as_deref().is_some_and(is).then_some(Page::Status),
        }
    }

    /// Whether a request with these parameters is for one of them.
    pub fn are_asked_for(&self, params: &[u8]) -> bool {
        self.find(params).is_some()
    }

    /// The response to a request with these parameters; None: it is for none of them.
    pub async fn reply(&self, params: &[u8]) -> Option<Vec<u8>> {
        let page = self.find(params)?;
        let (sender, receiver) = oneshot::channel();
        let asked = self.events.send(Event::Status(self.id, sender)).await.is_ok();
        let answer = if asked { receiver.await.ok() } else { None };
        let php = answer.as_ref().and_then(|answer| answer.php.as_deref());
        let head = last(params, b"REQUEST_METHOD") == b"HEAD";
        Some(match (page, &answer) {
            (Page::Ping(response), _) => pong(response, head).cgi(php),
            (Page::Status, Some(answer)) => {
                let view = View::of(last(params, b"QUERY_STRING"), last(params, b"HTTP_ACCEPT"));
                StatusPage::default().reply(&answer.snapshot, view, head).cgi(php)
            }
            (Page::Status, None) => {
                let status = b"Status: 500 Internal Server Error\r\n".to_vec();
                [status, unavailable().cgi(php)].concat()
            }
        })
    }
}

enum Page<'a> {
    /// With its response.
    Ping(&'a str),
    Status,
}

/// The value of a parameter; of several with the name the last one counts.
fn last<'a>(params: &'a [u8], name: &[u8]) -> &'a [u8] {
    let pairs = fastcgi::pairs(params).filter_map(Result::ok);
    let found = pairs.filter(|pair| pair.name == name).last();
    found.map(|pair| pair.value).unwrap_or_default()
}

/// A whole reply: the response, and the end of the request.
pub fn append_reply(out: &mut Vec<u8>, id: u16, text: &[u8], status: ProtocolStatus) {
    for part in text.chunks(MAX_CONTENT) {
        append_record(out, RecordType::Stdout, id, part);
    }
    append_record(out, RecordType::Stdout, id, &[]);
    append_end_request(out, id, status);
}

#[derive(Debug)]
struct Server {
    name: String,
    log: Logger,
    allowed: Option<Vec<Network>>,
    pages: Pages,
    /// For a whole request and the wait for it, from the connection's begin or the last answer's.
    patience: Duration,
}

/// Answers on a listener until this is dropped.
#[derive(Debug)]
pub struct StatusServer {
    listener: Rc<Listener>,
    /// What a connection that comes now is answered by.
    server: Rc<RefCell<Rc<Server>>>,
    _watch: Watch,
}

impl StatusServer {
    /// Begins.
    ///
    /// # Errors
    /// When the kernel refuses to watch the listener.
    pub fn start(id: PoolId, pool: &Pool, listener: &Rc<Listener>, events: &Events, log: &Logger) -> io::Result<Self> {
        let server = Rc::new(RefCell::new(Server::new(id, pool, events, log)));
        Ok(Self {
            listener: listener.clone(),
            server: server.clone(),
            _watch: accept(listener, server)?,
        })
    }

    /// Whether it answers there.
    pub fn is_on(&self, listener: &Rc<Listener>) -> bool {
        Rc::ptr_eq(&self.listener, listener)
    }

    /// After a reload: who connects from now on is answered by this configuration; connections that there are stay.
    pub fn renew(&self, id: PoolId, pool: &Pool, events: &Events, log: &Logger) {
        self.server.replace(Server::new(id, pool, events, log));
    }
}

fn accept(listener: &Rc<Listener>, server: Rc<RefCell<Rc<Server>>>) -> io::Result<Watch> {
    let fd = sys::register(listener.clone(), Interest::READABLE)?;
    Ok(Watch::start(async move {
        let places = Arc::new(Semaphore::new(MOST));
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let place = places.clone().acquire_owned().await;
            let Ok(mut ready) = fd.readable().await else { return };
            let server = server.borrow().clone();
            let _in_hand = server.pages.events.gate().pass().await;
            match rustix::net::acceptfrom_with(fd.get_ref(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok((connection, peer)) => {
                    let peer = peer
                        .and_then(|peer| SocketAddr::try_from(peer).ok())
                        .map(|peer| peer.ip().to_canonical());
                    let server = server.clone();
                    connections.spawn_local(async move {
                        let _place = place;
                        server.attend(connection, peer).await;
                    });
                }
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                Err(error) => {
                    server
                        .log()
                        .error(format_args!("a status connection: {}", errno(&error.into())));
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
    }))
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

impl Server {
    fn new(id: PoolId, pool: &Pool, events: &Events, log: &Logger) -> Rc<Self> {
        let mut pages = Pages::new(id, pool, events);
        pages.status_path.get_or_insert_with(|| "/".to_owned());
        Rc::new(Self {
            name: pool.name.clone(),
            log: log.clone(),
            allowed: pool.listen_allowed_clients.clone(),
            pages,
            patience: or_never(pool.request_header_timeout),
        })
    }

    fn log(&self) -> About<'_> {
        self.log.pool(&self.name)
    }

    async fn attend(&self, connection: OwnedFd, peer: Option<IpAddr>) {
        if let (Some(peer), Some(allowed)) = (peer, &self.allowed)
            && !allowed.iter().any(|network| network.contains(peer))
        {
            let text = format!("Connection disallowed: IP address '{peer}' has been dropped.");
            return self.log().error(text);
        }
        let stream: io::Result<Box<dyn Stream>> = match peer {
            Some(_) => TcpStream::from_std(connection.into()).map(|stream| Box::new(stream) as _),
            None => UnixStream::from_std(StdUnixStream::from(connection)).map(|stream| Box::new(stream) as _),
        };
        if let Ok(stream) = stream {
            // What goes wrong is the client's affair.
            let _ = self.converse(stream).await;
        }
    }

    async fn converse(&self, mut stream: Box<dyn Stream>) -> io::Result<()> {
        let mut input = Input::default();
        let (mut bytes, mut taken) = (Vec::new(), 0);
        let mut until = Instant::now() + self.patience;
        loop {
            let mut out = Vec::new();
            let mut close = false;
            let (used, event) = input.next(&bytes).map_err(io::Error::other)?;
            // An answer that is begun is brought to its end.
            let _in_hand = (event != fastcgi::Event::NeedMore).then(|| self.pages.events.gate().hold());
            match event {
                fastcgi::Event::NeedMore => {
                    bytes.drain(..used);
                    let mut buffer = [0; 4096];
                    let count = tokio::time::timeout_at(until, stream.read(&mut buffer)).await??;
                    taken += count;
                    if count == 0 || taken > MOST_BYTES {
                        return Ok(());
                    }
                    bytes.extend_from_slice(&buffer[..count]);
                    continue;
                }
                fastcgi::Event::Request(begin) => {
                    self.answer(input.params(), begin.id, &mut out).await;
                    input.finish();
                    (close, taken, until) = (!begin.keep, 0, Instant::now() + self.patience);
                }
                fastcgi::Event::Stdin(_) | fastcgi::Event::StdinEnd => {}
                fastcgi::Event::GetValues(asked) => append_get_values_result(&mut out, &asked, MOST as u32),
                fastcgi::Event::UnknownType(kind) => append_unknown_type(&mut out, kind),
                fastcgi::Event::UnknownRole { id, keep } => {
                    append_end_request(&mut out, id, ProtocolStatus::UnknownRole);
                    close = !keep;
                }
                fastcgi::Event::CantMultiplex(id) => append_end_request(&mut out, id, ProtocolStatus::CantMultiplex),
                fastcgi::Event::Abort { id, keep } => {
                    append_end_request(&mut out, id, ProtocolStatus::Complete);
                    close = !keep;
                }
            }
            bytes.drain(..used);
            tokio::time::timeout_at(until, stream.write_all(&out)).await??;
            if close {
                return self.close(stream, input, bytes).await;
            }
        }
    }

    /// Closing before the empty STDIN record has come would reset what is on its way.
    async fn close(&self, mut stream: Box<dyn Stream>, mut input: Input, mut bytes: Vec<u8>) -> io::Result<()> {
        let until = Instant::now() + CLOSE;
        loop {
            let (used, event) = input.next(&bytes).map_err(io::Error::other)?;
            bytes.drain(..used);
            if event != fastcgi::Event::NeedMore {
                continue;
            }
            if input.is_drained() {
                return Ok(());
            }
            stream.shutdown().await?;
            let mut buffer = [0; 4096];
            let count = tokio::time::timeout_at(until, stream.read(&mut buffer)).await??;
            if count == 0 {
                return Ok(());
            }
            bytes.extend_from_slice(&buffer[..count]);
        }
    }

    async fn answer(&self, params: &[u8], id: u16, out: &mut Vec<u8>) {
        let nothing = || {
            let missing = b"Status: 404 Not Found\r\nContent-type: text/html; charset=UTF-8\r\n\r\nFile not found.\n";
            let names_a_method = !last(params, b"REQUEST_METHOD").is_empty();
            if names_a_method { missing.to_vec() } else { Vec::new() }
        };
        let text = self.pages.reply(params).await.unwrap_or_else(nothing);
        append_reply(out, id, &text, ProtocolStatus::Complete);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;
    use tokio::task::LocalSet;

    use super::*;

    /// Feeds a server that has little patience with a record of this type, byte by byte and for very much longer; false when it does
    /// not mind.
    fn is_left(begin: &[u8], kind: u8) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            let (sender, _) = mpsc::channel(1);
            let pool = Pool {
                request_header_timeout: Duration::from_millis(200),
                ping_path: Some("/ping".to_owned()),
                ..Pool::default()
            };
            let server = Server::new(PoolId(1), &pool, &Events::new(sender), &Logger::default());
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            tokio::task::spawn_local(async move { server.converse(Box::new(theirs)).await });
            ours.write_all(&[begin, &[1, kind, 0, 1, 0xff, 0xff, 0, 0]].concat())
                .await
                .unwrap();
            for _ in 0..2000 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                if ours.write_all(b"x").await.is_err() {
                    return true;
                }
            }
            false
        })
    }

    #[test]
    fn who_gives_a_byte_now_and_then_is_left_in_time() {
        let mut begin = Vec::new();
        append_record(&mut begin, RecordType::BeginRequest, 1, &[0, 1, 0, 0, 0, 0, 0, 0]);
        assert!(is_left(&begin, 4), "in its parameters");
        let ping = b"\x0b\x05SCRIPT_NAME/ping\x0e\x03REQUEST_METHODGET\x0e\x0aCONTENT_LENGTH1000000000";
        append_record(&mut begin, RecordType::Params, 1, ping);
        append_record(&mut begin, RecordType::Params, 1, &[]);
        assert!(is_left(&begin, 5), "in its body, after the answer");
    }
}
