//! Connections that the master holds for a pool: kept ones until they have something to say, then in the pool's queue,
//! from which whichever worker is idle takes the next.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::sync::mpsc;

use super::foreign::{Closer, Foreign};
use super::saved::{Kept, Restorer, Saver};
use super::sys;
use super::watch::{self, Event, Events, PoolId, Registered, Watch, register};
use crate::control::{self, Channel, ChannelError, Handover};
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
    ours: Registered<Handover, Handover>,
    door: mpsc::Sender<Rc<Held>>,
    shared: Rc<Shared>,
    closer: Closer,
    _sender: Watch,
}

#[derive(Debug)]
struct Shared {
    pool: PoolId,
    events: Events,
    /// Kept connections, until they are in the queue.
    held: RefCell<BTreeMap<u64, Rc<Held>>>,
    next: Cell<u64>,
    /// What has been read of their requests already.
    held_bytes: Cell<usize>,
    /// Sizes of the messages that may be in the queue still, in order.
    sent: RefCell<VecDeque<usize>>,
}

/// A connection that is held.
#[derive(Debug)]
struct Held {
    number: u64,
    handover: Handover,
    fd: Foreign,
    /// It may be silent until then; None is for ever.
    until: Option<Duration>,
}

/// A queue, for a successor.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedQueue {
    ours: Kept,
    workers: Kept,
    sent: Vec<usize>,
    held: Vec<(Handover, Kept, Option<Duration>)>,
}

impl Queue {
    /// Whether any connection is held here.
    pub fn holds_any(&self) -> bool {
        !self.shared.held.borrow().is_empty()
    }

    /// Makes one.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new(pool: PoolId, events: &Events) -> io::Result<Self> {
        let (ours, theirs) = control::pair::<Handover, Handover>(BUFFER).map_err(io::Error::other)?;
        Self::with(pool, events, ours, theirs.into(), VecDeque::new())
    }

    fn with(
        pool: PoolId,
        events: &Events,
        ours: Channel<Handover, Handover>,
        workers: OwnedFd,
        sent: VecDeque<usize>,
    ) -> io::Result<Self> {
        let shared = Rc::new(Shared {
            pool,
            events: events.clone(),
            held: RefCell::default(),
            next: Cell::new(0),
            held_bytes: Cell::new(0),
            sent: RefCell::new(sent),
        });
        let (door, queue) = mpsc::channel(ON_THEIR_WAY);
        let ours = register(ours)?;
        let sender = Watch::start(send_all(ours.clone(), queue, shared.clone()));
        Ok(Self {
            workers,
            ours,
            door,
            shared,
            closer: Closer::default(),
            _sender: sender,
        })
    }

    /// What is to go on: all that is held, and what no worker has taken from the queue yet.
    pub fn save(&self, saver: &mut Saver) -> SavedQueue {
        let held = self.shared.held.borrow();
        let held = held
            .values()
            .map(|held| (held.handover.clone(), saver.keep(&held.fd), held.until));
        SavedQueue {
            held: held.collect(),
            ours: saver.keep(self.ours.get_ref()),
            workers: saver.keep(&self.workers),
            sent: self.shared.sent.borrow().iter().copied().collect(),
        }
    }

    /// Makes it again.
    ///
    /// # Errors
    /// When a descriptor is missing.
    pub fn restore(pool: PoolId, events: &Events, saved: SavedQueue, fds: &mut Restorer) -> io::Result<Self> {
        let SavedQueue {
            ours,
            workers,
            sent,
            held,
        } = saved;
        let (ours, workers) = (fds.take(ours)?, fds.take(workers)?);
        let queue = Self::with(pool, events, ours.into(), workers, sent.into())?;
        for (handover, fd, until) in held {
            let fd = queue.closer.take(fds.take(fd)?);
            queue.hold(handover, fd, until);
        }
        Ok(queue)
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
        if fd.is_connection() {
            self.hold(handover, fd, limit.map(|limit| watch::now() + limit));
        }
    }

    fn hold(&self, handover: Handover, fd: Foreign, until: Option<Duration>) {
        let Some(held) = self.shared.hold(handover, fd, until) else {
            return;
        };
        let (door, shared) = (self.door.clone(), self.shared.clone());
        tokio::task::spawn_local(async move {
            // The queue closes with its pool, and the connection with it.
            if !until_it_speaks(&held).await || door.send(held.clone()).await.is_err() {
                shared.release(&held);
            }
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

impl Shared {
    /// None when there is no room.
    fn hold(&self, handover: Handover, fd: Foreign, until: Option<Duration>) -> Option<Rc<Held>> {
        let mut all = self.held.borrow_mut();
        let bytes = self.held_bytes.get() + handover.bytes.len();
        if all.len() >= MOST_KEPT || bytes > MOST_BYTES {
            return None;
        }
        self.held_bytes.set(bytes);
        let number = self.next.replace(self.next.get() + 1);
        let held = Rc::new(Held {
            number,
            handover,
            fd,
            until,
        });
        all.insert(number, held.clone());
        Some(held)
    }

    /// It is in the queue, or of no use any more.
    fn release(&self, held: &Held) {
        self.held.borrow_mut().remove(&held.number);
        self.held_bytes.set(self.held_bytes.get() - held.handover.bytes.len());
    }
}

/// False when it is closed, or silent for too long.
async fn until_it_speaks(held: &Rc<Held>) -> bool {
    if has_request(&held.handover) {
        return true;
    }
    let Ok(registered) = sys::register(Connection(held.clone()), Interest::READABLE) else {
        return false;
    };
    let spoke = tokio::select! {
        biased;
        ready = registered.readable() => ready.is_ok(),
        () = watch::until_some(held.until) => false,
    };
    if !spoke {
        return false;
    }
    // A web server that closes an idle connection must wake no worker.
    let peeked = recv(
        held.fd.as_raw_fd(),
        &mut [0],
        MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
    );
    matches!(peeked, Ok(1..) | Err(Errno::EAGAIN))
}

/// What the event loop knows a held connection by.
struct Connection(Rc<Held>);

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd.as_raw_fd()
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

async fn send_all(channel: Registered<Handover, Handover>, mut queue: mpsc::Receiver<Rc<Held>>, shared: Rc<Shared>) {
    while let Some(held) = queue.recv().await {
        loop {
            match channel.get_ref().send(&held.handover, &[held.fd.as_fd()], false) {
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
        shared.release(&held);
        drop(held);
        if shared.events.send(Event::Queued(shared.pool)).await.is_err() {
            return;
        }
    }
}
