//! Connections that the master holds for a pool: kept ones until they have something to say, then in the pool's queue,
//! from which whichever worker is idle takes the next.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;
use tokio::sync::mpsc;

use super::foreign::{Closer, Foreign};
use super::sys;
use super::watch::{Event, Events, PoolId, Registered, Watch, register};
use crate::control::{self, ChannelError, Handover};
use crate::fastcgi;

/// Send buffer of a queue, bytes: some requests that have been read already, or hundreds of connections.
const BUFFER: usize = 1 << 20;

/// Most connections on their way into the queue; the tasks of further ones wait.
const ON_THEIR_WAY: usize = 64;

/// Most kept connections of one pool; beyond that a newcomer is closed, as a web server expects of an idle connection.
const MOST_KEPT: usize = 16_384;

/// Most bytes of requests that have begun on them.
const MOST_BYTES: usize = 32 << 20;

/// Most sizes of messages that are remembered; a queue holds fewer messages.
const MOST_SENT: usize = 8192;

/// A pool's queue.
#[derive(Debug)]
pub struct Queue {
    /// The workers' end.
    workers: OwnedFd,
    door: mpsc::Sender<(Handover, Foreign)>,
    shared: Rc<Shared>,
    closer: Closer,
    _sender: Watch,
}

#[derive(Debug)]
struct Shared {
    pool: PoolId,
    events: Events,
    /// Kept connections, until they are in the queue.
    held: Cell<usize>,
    /// What has been read of their requests already.
    held_bytes: Cell<usize>,
    /// Sizes of the messages that may be in the queue still, in order.
    sent: RefCell<VecDeque<usize>>,
}

impl Queue {
    /// Whether any connection is held here.
    pub fn holds_any(&self) -> bool {
        self.shared.held.get() > 0
    }

    /// Makes one.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new(pool: PoolId, events: &Events) -> io::Result<Self> {
        let (ours, theirs) = control::pair::<Handover, Handover>(BUFFER).map_err(io::Error::other)?;
        let shared = Rc::new(Shared {
            pool,
            events: events.clone(),
            held: Cell::new(0),
            held_bytes: Cell::new(0),
            sent: RefCell::new(VecDeque::new()),
        });
        let (door, queue) = mpsc::channel(ON_THEIR_WAY);
        let sender = Watch::start(send_all(register(ours)?, queue, shared.clone()));
        Ok(Self {
            workers: theirs.into(),
            door,
            shared,
            closer: Closer::default(),
            _sender: sender,
        })
    }

    /// The end that workers read.
    pub fn workers(&self) -> &OwnedFd {
        &self.workers
    }

    /// Closes what the pool's processes send.
    pub fn closer(&self) -> &Closer {
        &self.closer
    }

    /// Takes a connection. It goes into the queue when it has something to say; until then it may be silent for `limit`,
    /// None is for ever.
    pub fn keep(&self, handover: Handover, fd: Foreign, limit: Option<Duration>) {
        let Some(held) = Held::new(&self.shared, handover.bytes.len()).filter(|_| fd.is_connection()) else {
            return;
        };
        let door = self.door.clone();
        tokio::task::spawn_local(async move {
            let Some(fd) = until_it_speaks(&handover, fd, limit).await else {
                return;
            };
            // The queue closes with its pool, and the connection with it.
            let _ = door.send((handover, fd)).await;
            drop(held);
        });
    }

    /// Connections in the queue that no worker has taken yet.
    pub fn waiting(&self) -> u32 {
        let on_their_way = ON_THEIR_WAY - self.door.capacity();
        let mut left = rustix::io::ioctl_fionread(&self.workers).unwrap_or(0) as usize;
        let mut sent = self.shared.sent.borrow_mut();
        // What is unread is what was sent last.
        let unread = sent
            .iter()
            .rev()
            .take_while(|size| {
                let fits = left >= **size;
                left = left.saturating_sub(**size);
                fits
            })
            .count();
        let taken = sent.len() - unread;
        sent.drain(..taken);
        (unread + on_their_way) as u32
    }
}

struct Held(Rc<Shared>, usize);

impl Held {
    /// None when there is no room.
    fn new(shared: &Rc<Shared>, bytes: usize) -> Option<Self> {
        let (held, held_bytes) = (shared.held.get() + 1, shared.held_bytes.get() + bytes);
        if held > MOST_KEPT || held_bytes > MOST_BYTES {
            return None;
        }
        shared.held.set(held);
        shared.held_bytes.set(held_bytes);
        Some(Self(shared.clone(), bytes))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.set(self.0.held.get() - 1);
        self.0.held_bytes.set(self.0.held_bytes.get() - self.1);
    }
}

/// None when it is closed, or silent for too long.
async fn until_it_speaks(handover: &Handover, fd: Foreign, limit: Option<Duration>) -> Option<Foreign> {
    if has_request(handover) {
        return Some(fd);
    }
    let registered = sys::register(fd, Interest::READABLE).ok()?;
    let readable = registered.readable();
    match limit {
        None => readable.await.ok()?.retain_ready(),
        Some(limit) => tokio::time::timeout(limit, readable).await.ok()?.ok()?.retain_ready(),
    }
    let fd = registered.into_inner();
    // A web server that closes an idle connection must wake no worker.
    let mut byte = [0];
    match recv(
        std::os::fd::AsRawFd::as_raw_fd(&fd),
        &mut byte,
        MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
    ) {
        Ok(0) => None,
        Ok(_) | Err(Errno::EAGAIN) => Some(fd),
        Err(_) => None,
    }
}

/// Whether what has been read already is more than a part of a request.
fn has_request(handover: &Handover) -> bool {
    let mut input = if handover.kept {
        fastcgi::Input::resumed()
    } else {
        fastcgi::Input::default()
    };
    let mut bytes = handover.bytes.as_slice();
    loop {
        match input.next(bytes) {
            Ok((_, fastcgi::Event::NeedMore)) => return false,
            Ok((used, fastcgi::Event::Stdin(_) | fastcgi::Event::StdinEnd)) => bytes = &bytes[used..],
            // Something to answer, or an error to end it.
            Ok(_) | Err(_) => return true,
        }
    }
}

async fn send_all(
    channel: Registered<Handover, Handover>,
    mut queue: mpsc::Receiver<(Handover, Foreign)>,
    shared: Rc<Shared>,
) {
    while let Some((handover, fd)) = queue.recv().await {
        loop {
            match channel.get_ref().send(&handover, &[fd.as_fd()], false) {
                Ok(length) => {
                    let mut sent = shared.sent.borrow_mut();
                    sent.push_back(length);
                    if sent.len() > MOST_SENT {
                        sent.pop_front();
                    }
                    break;
                }
                Err(ChannelError::WouldBlock) => match channel.writable().await {
                    Ok(mut ready) => ready.clear_ready(),
                    Err(_) => return,
                },
                // This connection cannot be passed on; the next one may.
                Err(_) => break,
            }
        }
        if shared.events.send(Event::Queued(shared.pool)).await.is_err() {
            return;
        }
    }
}
