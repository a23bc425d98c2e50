//! The line before a full pool. While no worker is free, the master takes what waits at the listener, answers status and
//! ping itself, and puts the rest into the pool's queue, from which the workers take it in order of arrival.
//!
//! What a client says is only looked at and stays in its socket, so that nothing of it is kept here while it is awaited, and
//! nothing is lost with the master. It is read when the master answers.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::OwnedSemaphorePermit;

use super::accept::Batch;
use super::{Connection, Held, Others, Shared};
use crate::config::{Network, Pool, or_never};
use crate::control::Handover;
use crate::fastcgi::{Event, Input, ProtocolStatus};
use crate::log::{Logger, errno};
use crate::master::listen::Listener;
use crate::master::status_server::{Pages, append_reply};
use crate::master::sys;
use crate::master::watch::{self, Watch};

/// Most connections taken from the listener that have not come into the queue; further ones wait in the socket.
pub const MOST_TAKEN: usize = 4096;

/// Connections that are taken in one go.
const AT_ONCE: usize = 64;

/// Accepting what waits takes less.
const ACCEPTS: Duration = Duration::from_millis(500);

/// Most bytes of a request that are looked at. Longer parameters are a worker's to read.
const LOOK: usize = 32 << 10;

/// For the whole of an answer: to read what was asked, to send the reply, and for the rest of the request to come.
const ANSWER: Duration = Duration::from_secs(1);

/// How those that wait are treated; others after a reload.
#[derive(Debug)]
pub struct Rules {
    pages: Pages,
    allowed: Option<Vec<Network>>,
    /// `queue.max`
    most: Option<u32>,
    /// `queue.timeout`
    pub(super) patience: Option<Duration>,
    /// `request_header_timeout`
    header_patience: Duration,
    /// `connection_idle_timeout`
    idle_patience: Option<Duration>,
}

impl Rules {
    /// Those of a pool's configuration.
    pub fn new(pages: Pages, pool: &Pool) -> Self {
        let limit = |time: Duration| Some(time).filter(|time| !time.is_zero());
        Self {
            pages,
            allowed: pool.listen_allowed_clients.clone(),
            most: Some(pool.queue_max).filter(|most| *most > 0),
            patience: limit(pool.queue_timeout),
            header_patience: or_never(pool.request_header_timeout),
            idle_patience: limit(pool.connection_idle_timeout),
        }
    }

    /// Whether the queue has an end.
    pub fn is_bounded(&self) -> bool {
        self.most.is_some() || self.patience.is_some()
    }

    fn allow(&self, peer: IpAddr) -> bool {
        let allowed = self.allowed.as_ref();
        allowed.is_none_or(|allowed| allowed.iter().any(|network| network.contains(peer)))
    }
}

/// Takes connections for which no worker waits from the listener, until this is dropped; those that were taken stay.
///
/// # Errors
/// When the kernel refuses to watch it.
pub fn receive(shared: &Rc<Shared>, listener: &Listener, log: &Logger, pool: &str) -> std::io::Result<Watch> {
    let fd = watch::nobody_waits(listener)?;
    // Not the listener itself: what is stopped is gone a moment later only, and who counts its users closes it at once.
    let listener = Arc::new(listener.as_fd().try_clone_to_owned()?);
    let (shared, log, pool) = (shared.clone(), log.clone(), pool.to_owned());
    Ok(Watch::start(async move {
        loop {
            let Ok(place) = shared.places.clone().acquire_owned().await else {
                return;
            };
            let Ok(mut ready) = fd.readable().await else { return };
            let more = (1..AT_ONCE).map_while(|_| shared.places.clone().try_acquire_owned().ok());
            let places = std::iter::once(place).chain(more).map(Some).collect();
            // A task of its own: what has been accepted is held, also where this one ends meanwhile.
            let taking = tokio::task::spawn_local(take(shared.clone(), listener.clone(), places));
            let Ok(taken) = taking.await else { return };
            for peer in taken.sent_away {
                let text = format!("Connection disallowed: IP address '{peer}' has been dropped.");
                log.pool(&pool).error(text);
            }
            match taken.end {
                None => {}
                Some(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Some(error) => {
                    let reason = errno(&error.into());
                    log.pool(&pool)
                        .error(format_args!("a connection could not be accepted: {reason}"));
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }))
}

/// Takes all that wait at a listener which is about to be closed.
pub fn receive_the_last(shared: &Rc<Shared>, listener: &Listener) {
    let Ok(listener) = listener.as_fd().try_clone_to_owned().map(Arc::new) else {
        return;
    };
    let shared = shared.clone();
    tokio::task::spawn_local(async move {
        let places = || (0..AT_ONCE).map(|_| None).collect();
        while take(shared.clone(), listener.clone(), places()).await.end.is_none() {}
    });
}

/// What came of taking some.
struct Taken {
    /// Clients that are not allowed.
    sent_away: Vec<IpAddr>,
    /// Why there are no more; None: there may be.
    end: Option<rustix::io::Errno>,
}

/// Takes as many connections as there are places.
async fn take(shared: Rc<Shared>, listener: Arc<OwnedFd>, places: Vec<Option<OwnedSemaphorePermit>>) -> Taken {
    // An upgrade waits for what is accepted at this moment, but not for a worker that has made accepting wait.
    let in_hand = shared.events.gate().pass().await;
    let mut batch = shared.acceptor.take(&listener, places.len());
    let batch = match tokio::time::timeout(ACCEPTS, &mut batch).await {
        Ok(batch) => batch,
        Err(_) => {
            drop(in_hand);
            batch.await
        }
    };
    let Ok(Batch { taken, end }) = batch else {
        return Taken {
            sent_away: Vec::new(),
            end: Some(rustix::io::Errno::NOMEM),
        };
    };
    let rules = shared.rules();
    let until = Some(watch::now() + rules.header_patience);
    let mut sent_away = Vec::new();
    for ((connection, peer), place) in taken.into_iter().zip(places) {
        let connection = shared.closer.take(connection);
        match peer.filter(|peer| !rules.allow(*peer)) {
            Some(peer) => sent_away.push(peer),
            None => shared.hold(Handover::default(), connection, until, place, Others::Nobody),
        }
    }
    Taken { sent_away, end }
}

/// What becomes of a connection.
pub enum Next {
    /// It is a worker's to look at.
    Worker,
    /// It was answered, and stays.
    Again,
    /// It is closed.
    Over,
}

/// What a client wants.
enum Wish {
    /// A page of the master's.
    Page,
    /// A script.
    Script,
    /// Something else, or more than is looked at.
    Other,
    /// It has not said yet.
    Unsaid,
    /// Nothing: it has left, or makes no sense.
    Nothing,
}

/// Hears what a client wants that has begun to speak, and answers it where that is the master's to do.
pub async fn hear(shared: &Shared, held: &Rc<Held>) -> Next {
    let rules = shared.rules();
    let Ok(fd) = sys::register(Connection(held.clone()), Interest::READABLE | Interest::WRITABLE) else {
        return Next::Worker;
    };
    let begun = match held.handover.borrow().since {
        0 => watch::now(),
        since => Duration::from_nanos(since),
    };
    let wish = tokio::select! {
        biased;
        wish = wish(&fd, &rules) => wish,
        () = watch::until(begun + rules.header_patience) => Wish::Nothing,
    };
    let too_many = || rules.most.is_some_and(|most| shared.waiting() >= most);
    match wish {
        Wish::Page => answer(shared, &fd, Some(&rules)).await,
        Wish::Script if too_many() => answer(shared, &fd, None).await,
        Wish::Other if too_many() => Next::Over,
        Wish::Script | Wish::Other => Next::Worker,
        Wish::Unsaid | Wish::Nothing => Next::Over,
    }
}

/// Tells a client that has waited for too long.
pub async fn refuse(shared: &Shared, held: &Rc<Held>) {
    if let Ok(fd) = sys::register(Connection(held.clone()), Interest::READABLE | Interest::WRITABLE) {
        answer(shared, &fd, None).await;
    }
}

async fn wish(fd: &AsyncFd<Connection>, rules: &Rules) -> Wish {
    let handover = &fd.get_ref().0.handover;
    let begun = judge(&handover.borrow(), &[], rules);
    if !matches!(begun, Wish::Unsaid) {
        return begun;
    }
    let mut seen = 0;
    loop {
        let Ok(mut ready) = fd.readable().await else {
            return Wish::Nothing;
        };
        // Nothing of it is kept while more is awaited.
        match receive_some(fd, LOOK, MsgFlags::MSG_PEEK).await {
            Ok(bytes) if bytes.is_empty() => return Wish::Nothing,
            Ok(bytes) if bytes.len() == seen && ready.ready().is_read_closed() => return Wish::Nothing,
            Ok(bytes) if bytes.len() == seen => ready.clear_ready(),
            Ok(bytes) => match judge(&handover.borrow(), &bytes, rules) {
                Wish::Unsaid if bytes.len() == LOOK => return Wish::Other,
                Wish::Unsaid => seen = bytes.len(),
                said => return said,
            },
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(_) => return Wish::Nothing,
        }
    }
}

fn judge(handover: &Handover, more: &[u8], rules: &Rules) -> Wish {
    let mut input = input_of(handover);
    let bytes = [handover.bytes.as_slice(), more].concat();
    let mut at = 0;
    loop {
        match input.next(&bytes[at..]) {
            Ok((_, Event::NeedMore)) => return Wish::Unsaid,
            Ok((used, Event::Stdin(_) | Event::StdinEnd)) => at += used,
            Ok((_, Event::Request(_))) if rules.pages.are_asked_for(input.params()) => return Wish::Page,
            Ok((_, Event::Request(_))) => return Wish::Script,
            Ok(_) => return Wish::Other,
            Err(_) => return Wish::Nothing,
        }
    }
}

pub fn input_of(handover: &Handover) -> Input {
    if handover.kept {
        Input::resumed(handover.owed != 0)
    } else {
        Input::default()
    }
}

/// Answers the request that has come: with a page by these rules, or that there is no room for it. What is begun is brought to
/// its end before another program takes over.
async fn answer(shared: &Shared, fd: &AsyncFd<Connection>, page: Option<&Rules>) -> Next {
    let _in_hand = shared.events.gate().pass().await;
    if page.is_none() {
        shared.refused.set(shared.refused.get() + 1);
    }
    let answered = tokio::time::timeout(ANSWER, exchange(fd, page)).await;
    let Ok(Some(handover)) = answered else {
        return Next::Over;
    };
    let until = shared.rules().idle_patience.map(|limit| watch::now() + limit);
    shared.renew(&fd.get_ref().0, handover, until);
    Next::Again
}

/// Reads a request and answers it. Some: the connection is kept, and stands there.
async fn exchange(fd: &AsyncFd<Connection>, page: Option<&Rules>) -> Option<Handover> {
    const OVERLOADED: &[u8] = b"Status: 503 Service Unavailable\r\nRetry-After: 1\r\nContent-type: text/plain; \
        charset=UTF-8\r\n\r\nService Unavailable: all workers are busy.\n";
    let (mut input, mut bytes) = {
        let handover = fd.get_ref().0.handover.borrow();
        (input_of(&handover), handover.bytes.clone())
    };
    let begin = loop {
        let (used, event) = input.next(&bytes).ok()?;
        bytes.drain(..used);
        match event {
            Event::Request(begin) => break begin,
            Event::Stdin(_) | Event::StdinEnd => {}
            Event::NeedMore => read_more(fd, &mut bytes).await?,
            _ => return None,
        }
    };
    let (text, status) = match page {
        Some(rules) => (rules.pages.reply(input.params()).await?, ProtocolStatus::Complete),
        None => (OVERLOADED.to_vec(), ProtocolStatus::Overloaded),
    };
    let mut out = Vec::new();
    append_reply(&mut out, begin.id, &text, status);
    send_all(fd, out).await?;
    input.finish();
    // Who is one too many is not kept, either.
    let kept = begin.keep && page.is_some();
    if !kept {
        let end = |fd: BorrowedFd| shutdown(fd.as_raw_fd(), Shutdown::Write);
        fd.get_ref().0.act(end).await.ok()?;
    }
    // Closing before the rest of the request has come would reset what is on its way.
    while !input.is_drained() {
        let (used, event) = input.next(&bytes).ok()?;
        bytes.drain(..used);
        if event == Event::NeedMore && !input.is_drained() {
            read_more(fd, &mut bytes).await?;
        }
    }
    let since = if bytes.is_empty() {
        0
    } else {
        watch::now().as_nanos() as u64
    };
    kept.then_some(Handover {
        bytes,
        kept,
        since,
        queued: 0,
        owed: 0,
    })
}

async fn read_more(fd: &AsyncFd<Connection>, bytes: &mut Vec<u8>) -> Option<()> {
    loop {
        let mut ready = fd.readable().await.ok()?;
        match receive_some(fd, 4096, MsgFlags::empty()).await {
            Ok(more) if more.is_empty() => return None,
            Ok(more) => {
                bytes.extend_from_slice(&more);
                return Some(());
            }
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

async fn receive_some(fd: &AsyncFd<Connection>, most: usize, flags: MsgFlags) -> Result<Vec<u8>, Errno> {
    let receive = move |fd: BorrowedFd| {
        let mut bytes = vec![0; most];
        let count = recv(fd.as_raw_fd(), &mut bytes, flags | MsgFlags::MSG_DONTWAIT)?;
        bytes.truncate(count);
        Ok(bytes)
    };
    fd.get_ref().0.act(receive).await
}

async fn send_all(fd: &AsyncFd<Connection>, bytes: Vec<u8>) -> Option<()> {
    let (bytes, mut sent) = (Arc::new(bytes), 0);
    while sent < bytes.len() {
        let mut ready = fd.writable().await.ok()?;
        let left = bytes.clone();
        let some = move |fd: BorrowedFd| {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            send(fd.as_raw_fd(), &left[sent..], flags)
        };
        match fd.get_ref().0.act(some).await {
            Ok(count) => sent += count,
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
    Some(())
}
