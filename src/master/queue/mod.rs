//! Connections that the master holds for a pool: kept ones until they have something to say, then in the pool's queue,
//! from which whichever worker is idle takes the next.
#![forbid(unsafe_code)]

mod accept;
pub mod line;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use self::accept::Acceptor;
use self::line::{MOST_TAKEN, Next, Rules};
use super::aside::Aside;
use super::context::Context;
use super::foreign::{Closer, Foreign, most_descriptors};
use super::listen::Listener;
use super::output::Reader;
use super::saved::{Kept, Restorer, Saver};
use super::sys;
use super::watch::{self, Event, Events, PoolId, Registered, TRY_AGAIN, Watch, register};
use crate::control::{self, Channel, ChannelError, Handover, Received};
use crate::fastcgi;
use crate::log::Logger;

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

/// Wait for room in the queue that nobody tells of; a worker may have nothing to do meanwhile.
const SOON: Duration = Duration::from_millis(1);

/// A pool's queue.
#[derive(Debug)]
pub struct Queue {
    /// The workers' end.
    workers: Rc<Channel<Handover, Handover>>,
    ours: Registered<Handover, Handover>,
    shared: Rc<Shared>,
    _sender: Watch,
}

/// What the tasks of connections share.
#[derive(Debug)]
pub struct Shared {
    pool: PoolId,
    events: Events,
    closer: Closer,
    reader: Reader,
    acceptor: Acceptor,
    /// What is done with sockets that a worker has, too.
    sockets: Rc<Aside>,
    door: mpsc::Sender<Rc<Held>>,
    workers: Rc<Channel<Handover, Handover>>,
    /// Connections, until they are in the queue.
    held: RefCell<BTreeMap<u64, Rc<Held>>>,
    next: Cell<u64>,
    /// What has been read of their requests already.
    held_bytes: Cell<usize>,
    /// Those of them that are on their way into the queue.
    coming: Cell<u32>,
    /// The messages that may be in the queue still, in order: their sizes, and since when their requests wait.
    sent: RefCell<VecDeque<(usize, Duration)>>,
    rules: RefCell<Rc<Rules>>,
    /// The pool is full: what clients want is to be heard before a worker is asked.
    open: Cell<bool>,
    /// Requests that were refused.
    refused: Cell<u64>,
    /// It is being looked who has waited for too long.
    expiring: Cell<bool>,
    /// For those that were taken from the listener.
    places: Arc<Semaphore>,
    /// How many descriptors the master may have.
    descriptors: usize,
    /// All pools' have it.
    queues: Rc<()>,
}

/// Whether anybody else has a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    Nobody,
    /// A worker had it, and may have kept it.
    Perhaps,
}

/// A connection that is held.
#[derive(Debug)]
pub struct Held {
    number: u64,
    handover: RefCell<Handover>,
    fd: Foreign,
    /// For what a worker that has it, too, can hold up. None: nobody else has it.
    aside: Option<Rc<Aside>>,
    /// It may be silent until then; None is for ever.
    until: Cell<Option<Duration>>,
    /// A worker has it.
    gone: Cell<bool>,
}

impl Held {
    /// Does something with the connection. Who has it, too, can keep its lock for as long as he likes, and whoever wants anything of it waits
    /// then, also where it is said that he must not.
    async fn act<T: Send + 'static>(
        &self,
        act: impl FnOnce(BorrowedFd<'_>) -> Result<T, Errno> + Send + 'static,
    ) -> Result<T, Errno> {
        let Some(aside) = &self.aside else {
            return act(self.fd.as_fd());
        };
        let fd = self.fd.as_fd().try_clone_to_owned().map_err(|_| Errno::EMFILE)?;
        let (send, result) = oneshot::channel();
        let work = move || {
            let _ = send.send(act(fd.as_fd()));
        };
        aside.run(work).map_err(|_| Errno::ENOMEM)?;
        result.await.unwrap_or(Err(Errno::EIO))
    }

    /// Its request waits from now on, if it did not before.
    fn begin_to_wait(&self) {
        let mut handover = self.handover.borrow_mut();
        if handover.queued == 0 {
            handover.queued = watch::now().as_nanos() as u64;
        }
    }
}

/// A queue, for a successor.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedQueue {
    ours: Kept,
    workers: Kept,
    sent: Vec<usize>,
    #[serde(default)]
    waits_since: Vec<Duration>,
    #[serde(default)]
    refused: u64,
    held: Vec<(Handover, Kept, Option<Duration>)>,
}

impl Queue {
    /// Whether any connection is held here.
    pub fn holds_any(&self) -> bool {
        !self.shared.held.borrow().is_empty() || self.waiting() > 0
    }

    /// Makes one.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new(pool: PoolId, ctx: &Context, rules: Rules) -> io::Result<Self> {
        let (ours, theirs) = control::pair::<Handover, Handover>(BUFFER).map_err(io::Error::other)?;
        Self::with(pool, ctx, rules, ours, theirs, VecDeque::new())
    }

    fn with(
        pool: PoolId,
        ctx: &Context,
        rules: Rules,
        ours: Channel<Handover, Handover>,
        workers: Channel<Handover, Handover>,
        sent: VecDeque<(usize, Duration)>,
    ) -> io::Result<Self> {
        let (door, queue) = mpsc::channel(ON_THEIR_WAY);
        let (workers, descriptors) = (Rc::new(workers), most_descriptors());
        let shared = Rc::new(Shared {
            pool,
            events: ctx.events.clone(),
            closer: Closer::default(),
            reader: Reader::new(&ctx.patience),
            acceptor: Acceptor::default(),
            sockets: Rc::new(Aside::new("sockets")),
            expiring: Cell::new(false),
            door,
            workers: workers.clone(),
            held: RefCell::default(),
            next: Cell::new(0),
            held_bytes: Cell::new(0),
            coming: Cell::new(0),
            sent: RefCell::new(sent),
            rules: RefCell::new(Rc::new(rules)),
            open: Cell::new(false),
            refused: Cell::new(0),
            places: Arc::new(Semaphore::new(MOST_TAKEN.min(descriptors / 4))),
            descriptors,
            queues: ctx.queues.clone(),
        });
        let ours = register(ours)?;
        let sender = Watch::start(send_all(ours.clone(), queue, shared.clone()));
        Ok(Self {
            workers,
            ours,
            shared,
            _sender: sender,
        })
    }

    /// What is to go on: all that is held, and what no worker has taken from the queue yet.
    pub fn save(&self, saver: &mut Saver) -> SavedQueue {
        let held = self.shared.held.borrow();
        let held = held
            .values()
            .filter(|held| !held.gone.get())
            .map(|held| (held.handover.borrow().clone(), saver.keep(&held.fd), held.until.get()));
        let held = held.collect();
        let (sent, waits_since) = self.shared.sent.borrow().iter().copied().unzip();
        SavedQueue {
            held,
            ours: saver.keep(self.ours.get_ref()),
            workers: saver.keep(&*self.workers),
            sent,
            waits_since,
            refused: self.refused(),
        }
    }

    /// Makes it again.
    ///
    /// # Errors
    /// When a descriptor is missing.
    pub fn restore(
        pool: PoolId,
        ctx: &Context,
        rules: Rules,
        saved: SavedQueue,
        fds: &mut Restorer,
    ) -> io::Result<Self> {
        let SavedQueue {
            ours,
            workers,
            sent,
            waits_since,
            refused,
            held,
        } = saved;
        let (ours, workers) = (fds.take(ours)?, fds.take(workers)?);
        let since = waits_since.into_iter().chain(std::iter::repeat(watch::now()));
        let sent = sent.into_iter().zip(since).collect();
        let queue = Self::with(pool, ctx, rules, ours.into(), workers.into(), sent)?;
        queue.shared.refused.set(refused);
        for (handover, fd, until) in held {
            let fd = queue.shared.closer.take(fds.take(fd)?);
            queue.shared.hold(handover, fd, until, None, Others::Perhaps);
        }
        Ok(queue)
    }

    /// The end that workers read.
    pub fn workers(&self) -> BorrowedFd<'_> {
        self.workers.as_fd()
    }

    /// Closes what the pool's processes send.
    pub fn closer(&self) -> &Closer {
        &self.shared.closer
    }

    /// Reads what the pool's processes print.
    pub fn reader(&self) -> &Reader {
        &self.shared.reader
    }

    /// After a reload.
    pub fn set_rules(&self, rules: Rules) {
        *self.shared.rules.borrow_mut() = Rc::new(rules);
    }

    /// Whether it has an end, by number or by time.
    pub fn is_bounded(&self) -> bool {
        self.shared.rules().is_bounded()
    }

    /// Hears what clients want before a worker is asked, or not.
    pub fn open(&self, open: bool) {
        self.shared.open.set(open);
    }

    /// See [`line::receive`].
    ///
    /// # Errors
    /// When the kernel refuses to watch the listener.
    pub fn receive(&self, listener: &Listener, log: &Logger, pool: &str) -> io::Result<Watch> {
        line::receive(&self.shared, listener, log, pool)
    }

    /// See [`line::receive_the_last`].
    pub fn receive_the_last(&self, listener: &Listener) {
        line::receive_the_last(&self.shared, listener);
    }

    /// Takes a connection. It goes into the queue when it has something to say; until then it may be silent for `limit`,
    /// None is for ever.
    pub fn keep(&self, mut handover: Handover, fd: Foreign, limit: Option<Duration>) {
        if fd.is_connection() {
            handover.queued = 0;
            let until = limit.map(|limit| watch::now() + limit);
            self.shared.hold(handover, fd, until, None, Others::Perhaps);
        }
    }

    /// The pool is about to end: who has not said all of a first request yet is a worker's to hear, as far as there is room.
    pub fn hand_out_the_new(&self) {
        let new: Vec<_> = self.shared.held.borrow().values().cloned().collect();
        let is_new = |handover: &Handover| !handover.kept || handover.since != 0;
        for held in new
            .iter()
            .filter(|held| is_new(&held.handover.borrow()) && !held.gone.get())
        {
            held.begin_to_wait();
            if self.shared.send(&self.ours, held).is_err() {
                return;
            }
        }
    }

    /// Connections in the queue that no worker has taken yet.
    pub fn waiting(&self) -> u32 {
        self.shared.waiting()
    }

    /// Requests that were refused.
    pub fn refused(&self) -> u64 {
        self.shared.refused.get()
    }

    /// Since when the first of those in line waits.
    pub fn oldest(&self) -> Option<Duration> {
        self.shared.sent.borrow().front().map(|(_, since)| *since)
    }

    /// Refuses who has waited for `queue.timeout`. When to do it again.
    pub fn expire(&self, now: Duration) -> Option<Duration> {
        let shared = &self.shared;
        let patience = shared.rules().patience?;
        shared.waiting();
        let (_, since) = *shared.sent.borrow().front()?;
        if since + patience > now {
            return Some(since + patience);
        }
        if !shared.expiring.replace(true) {
            let shared = shared.clone();
            tokio::task::spawn_local(async move {
                while shared.refuse_the_first(patience).await {}
                shared.expiring.set(false);
            });
        }
        Some(now + TRY_AGAIN)
    }

    /// Whether nothing is being done with a socket that a worker can hold up: an exec, and the end, would wait for it.
    pub fn is_quiet(&self) -> bool {
        self.shared.sockets.is_quiet()
    }
}

impl Shared {
    fn rules(&self) -> Rc<Rules> {
        self.rules.borrow().clone()
    }

    /// Takes whoever is first in the queue out of it, if a worker is not quicker, and tells him that he has waited for too long. False: nobody
    /// has, or is there.
    async fn refuse_the_first(self: &Rc<Self>, patience: Duration) -> bool {
        // An upgrade waits for what has been taken out.
        let _in_hand = self.events.gate().pass().await;
        let late = |since: Duration| since + patience <= watch::now();
        self.waiting();
        if !self.sent.borrow().front().is_some_and(|(_, since)| late(*since)) {
            return false;
        }
        let Ok(queue) = self.workers.as_fd().try_clone_to_owned() else {
            return false;
        };
        let (send, received) = oneshot::channel();
        let work = move || {
            let _ = send.send(Channel::<Handover, Handover>::from(queue).receive(false));
        };
        if self.sockets.run(work).is_err() {
            return false;
        }
        let Ok(Ok(Received { message, fds })) = received.await else {
            return false;
        };
        let Some(fd) = fds.into_iter().next() else { return true };
        let (since, fd) = (Duration::from_nanos(message.queued), self.closer.take(fd));
        if !late(since) {
            // A worker was: this is the one behind. It loses its place, but not its time.
            self.hold(message, fd, None, None, Others::Perhaps);
        } else if let Some(held) = self.note(message, fd, None, Others::Perhaps) {
            let shared = self.clone();
            tokio::task::spawn_local(async move {
                line::refuse(&shared, &held).await;
                shared.release(&held);
            });
        }
        true
    }

    /// How many pools there are.
    fn pools(&self) -> usize {
        // One more has the context.
        Rc::strong_count(&self.queues) - 1
    }

    fn waiting(&self) -> u32 {
        self.unread() + self.coming.get()
    }

    /// Messages in the queue.
    fn unread(&self) -> u32 {
        let mut left = rustix::io::ioctl_fionread(&*self.workers).unwrap_or(0) as usize;
        let mut sent = self.sent.borrow_mut();
        // What is unread is what was sent last.
        let unread = sent
            .iter()
            .rev()
            .take_while(|(size, _)| {
                let fits = left >= *size;
                left = left.saturating_sub(*size);
                fits
            })
            .count();
        let taken = sent.len() - unread;
        sent.drain(..taken);
        unread as u32
    }

    /// Holds a connection until it has something to say, and brings it into the queue then.
    fn hold(
        self: &Rc<Self>,
        handover: Handover,
        fd: Foreign,
        until: Option<Duration>,
        place: Option<OwnedSemaphorePermit>,
        others: Others,
    ) {
        let Some(held) = self.note(handover, fd, until, others) else {
            return;
        };
        let shared = self.clone();
        tokio::task::spawn_local(async move {
            let _place = place;
            if !shared.bring(&held).await {
                shared.release(&held);
            }
        });
    }

    /// False: it is to be closed.
    async fn bring(&self, held: &Rc<Held>) -> bool {
        loop {
            if !until_it_speaks(held).await || held.gone.get() {
                return false;
            }
            // What is left of a body is a worker's to skip.
            if !self.open.get() || held.handover.borrow().owed != 0 {
                break;
            }
            match line::hear(self, held).await {
                Next::Worker => break,
                Next::Again => {}
                Next::Over => return false,
            }
        }
        held.begin_to_wait();
        self.coming.set(self.coming.get() + 1);
        // The queue closes with its pool, and the connection with it.
        let brought = self.door.send(held.clone()).await.is_ok();
        if !brought {
            self.coming.set(self.coming.get() - 1);
        }
        brought
    }

    /// None when there is no room.
    fn note(&self, handover: Handover, fd: Foreign, until: Option<Duration>, others: Others) -> Option<Rc<Held>> {
        let mut all = self.held.borrow_mut();
        let bytes = self.held_bytes.get() + handover.bytes.len();
        let most = most_kept(fd.as_raw_fd(), self.descriptors, self.pools());
        if all.len() >= most || bytes > MOST_BYTES {
            return None;
        }
        self.held_bytes.set(bytes);
        let number = self.next.replace(self.next.get() + 1);
        let held = Rc::new(Held {
            number,
            handover: RefCell::new(handover),
            fd,
            aside: (others == Others::Perhaps).then(|| self.sockets.clone()),
            until: Cell::new(until),
            gone: Cell::new(false),
        });
        all.insert(number, held.clone());
        Some(held)
    }

    /// It has been answered here and stays.
    fn renew(&self, held: &Held, handover: Handover, until: Option<Duration>) {
        let (more, less) = (handover.bytes.len(), held.handover.borrow().bytes.len());
        self.held_bytes.set(self.held_bytes.get() + more - less);
        held.handover.replace(handover);
        held.until.set(until);
    }

    /// Puts it into the queue, when there is room.
    fn send(&self, channel: &AsyncFd<Channel<Handover, Handover>>, held: &Held) -> Result<(), ChannelError> {
        // The kernel refuses descriptors to all pools when too many are under way.
        let most = (self.descriptors / 2 / self.pools()).max(1);
        if self.sent.borrow().len() >= most && self.unread() as usize >= most {
            return Err(Errno::ETOOMANYREFS.into());
        }
        let message = {
            let handover = held.handover.borrow();
            let length = channel.get_ref().send(&handover, &[held.fd.as_fd()], false)?;
            (length, Duration::from_nanos(handover.queued))
        };
        held.gone.set(true);
        let mut sent = self.sent.borrow_mut();
        sent.push_back(message);
        if sent.len() > MOST_SENT {
            sent.pop_front();
        }
        Ok(())
    }

    /// It is in the queue, or of no use any more.
    fn release(&self, held: &Held) {
        self.held.borrow_mut().remove(&held.number);
        let bytes = held.handover.borrow().bytes.len();
        self.held_bytes.set(self.held_bytes.get() - bytes);
    }
}

/// How many connections a pool may hold when another has this number, which says how few descriptors are left: the kernel gives the
/// lowest that is free. The first half goes to whoever comes. Of the third quarter each pool has its share, which no other can take, and
/// the last one is for workers and reloads.
fn most_kept(fd: RawFd, descriptors: usize, pools: usize) -> usize {
    match fd as usize {
        fd if fd <= descriptors / 2 => MOST_KEPT,
        fd if fd <= descriptors / 4 * 3 => MOST_KEPT.min(descriptors / 4 / pools),
        _ => 0,
    }
}

/// False when it is closed, or silent for too long.
async fn until_it_speaks(held: &Rc<Held>) -> bool {
    if has_request(&held.handover.borrow()) {
        return true;
    }
    let Ok(registered) = sys::register(Connection(held.clone()), Interest::READABLE) else {
        return false;
    };
    let closed = tokio::select! {
        biased;
        ready = registered.readable() => ready.map(|ready| ready.ready().is_read_closed()),
        () = watch::until_some(held.until.get()) => return false,
    };
    match closed {
        Ok(false) => true,
        // A web server that closes an idle connection must wake no worker.
        Ok(true) => {
            let peek = |fd: BorrowedFd| recv(fd.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
            matches!(held.act(peek).await, Ok(1..) | Err(Errno::EAGAIN))
        }
        Err(_) => false,
    }
}

/// What the event loop knows a held connection by.
#[derive(Debug)]
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
    let mut input = line::input_of(handover);
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
            if held.gone.get() {
                break;
            }
            match shared.send(&channel, &held) {
                Ok(()) => break,
                Err(ChannelError::WouldBlock) => match channel.writable().await {
                    Ok(mut ready) => ready.clear_ready(),
                    Err(_) => return,
                },
                // As many are on their way as this pool may have there, or this user's processes: workers take them.
                Err(ChannelError::System(Errno::ETOOMANYREFS)) => tokio::time::sleep(SOON).await,
                // This connection cannot be passed on; the next one may.
                Err(_) => break,
            }
        }
        shared.coming.set(shared.coming.get() - 1);
        shared.release(&held);
        drop(held);
        if shared.events.send(Event::Queued(shared.pool)).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    #[tokio::test]
    async fn what_a_worker_may_have_too_is_touched_by_a_thread_alone() {
        let held = |aside| Held {
            number: 0,
            handover: RefCell::default(),
            fd: Closer::default().take(UnixStream::pair().unwrap().0.into()),
            aside,
            until: Cell::default(),
            gone: Cell::default(),
        };
        let here = thread::current().id();
        let toucher = |_: BorrowedFd<'_>| Ok(thread::current().id());
        assert_eq!(held(None).act(toucher).await, Ok(here));
        assert_ne!(held(Some(Rc::new(Aside::new("sockets")))).act(toucher).await, Ok(here));
    }

    #[test]
    fn nobody_takes_the_descriptors_that_another_pools_clients_need() {
        let (mut held, mut fd) = ([0; 4], 100);
        // Three that take all that they get; then the other comes.
        for pool in [0, 1, 2, 3] {
            while held[pool] < most_kept(fd, 1024, held.len()) {
                (held[pool], fd) = (held[pool] + 1, fd + 1);
            }
        }
        assert_eq!(held, [413, 64, 64, 64]);
        assert_eq!(most_kept(1 << 15, 1 << 19, 1), MOST_KEPT);
        assert_eq!(most_kept(1000, usize::MAX, 1000), MOST_KEPT);
    }
}
