//! Tasks that watch one descriptor each and tell the master's loop.
//!
//! The way to the loop is bounded: who sends more than it takes waits, and nobody else does.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use super::desk::Mailbox;
use super::foreign::{self, Closer, Foreign, most_descriptors};
use super::listen::Listener;
use super::process::Process;
use super::status_server::Answer;
use super::sys;
use crate::api::Question;
use crate::control::{Channel, ChannelError, FromWorker, FromZygote};
use crate::log::Level;
use crate::pm::WorkerId;
use crate::scoreboard::monotonic_ns;

/// Wait for room that nobody tells of.
pub const TRY_AGAIN: Duration = Duration::from_millis(20);

/// A pool's number, unique in the master's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PoolId(pub u64);

/// A generation's number, unique in the master's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GenerationId(pub u64);

/// A generation of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its pool.
    pub pool: PoolId,
    /// Which one.
    pub generation: GenerationId,
}

/// What has happened.
#[derive(Debug)]
pub enum Event {
    /// A zygote said something, or hung up.
    Zygote(Place, Result<Heard<FromZygote>, ChannelError>),
    /// A worker said something, or hung up.
    Worker(Place, WorkerId, Result<Heard<FromWorker>, ChannelError>),
    /// A worker's process has ended.
    Ended(Place, WorkerId),
    /// A worker that began a request found few others idle.
    Rang(Place),
    /// A connection waits at the pool's listener.
    Waiting(PoolId),
    /// A connection came to the pool's listener while no worker waited for one.
    Alarm(PoolId),
    /// A kept connection has something to say and has been put into the pool's queue.
    Queued(PoolId),
    /// A client of the control socket has asked something.
    Asked(Question, Mailbox),
    /// The writer of a pool's access log has something to say.
    AccessLog(PoolId, Level, String),
    /// What the program that is to take over says of the state.
    Checked(Result<(), String>),
    /// Somebody wants to know how the pool is.
    Status(PoolId, oneshot::Sender<Answer>),
}

/// A message of a zygote or worker, and the descriptors that came with it.
#[derive(Debug)]
pub struct Heard<T> {
    /// The message.
    pub message: T,
    /// In order.
    pub fds: Vec<Foreign>,
}

/// The way to the master's loop, and the gate before it.
#[derive(Clone, Debug)]
pub struct Events {
    sender: mpsc::Sender<Event>,
    gate: Rc<Gate>,
}

impl Events {
    /// By a channel.
    pub fn new(sender: mpsc::Sender<Event>) -> Self {
        Self {
            sender,
            gate: Rc::default(),
        }
    }

    /// Tells the loop, when it has room.
    ///
    /// # Errors
    /// When the loop is over.
    pub async fn send(&self, event: Event) -> Result<(), Over> {
        self.sender.send(event).await.map_err(|_| Over)
    }

    /// What holds the watchers back.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }
}

/// The loop is over.
#[derive(Debug)]
pub struct Over;

/// Before an exec nothing may be taken from a descriptor that only this process would then know of: while the gate is closed
/// nobody begins to, and whoever has something in hand still brings it to the loop.
#[derive(Debug, Default)]
pub struct Gate {
    closed: Cell<bool>,
    in_hand: Cell<usize>,
}

impl Gate {
    /// Closes or opens it.
    pub fn close(&self, closed: bool) {
        self.closed.set(closed);
    }

    /// Whether nobody has anything in hand.
    pub fn is_quiet(&self) -> bool {
        self.in_hand.get() == 0
    }

    /// Waits until it is open; what is taken from now on is in hand until the result goes.
    pub async fn pass(&self) -> InHand<'_> {
        while self.closed.get() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.hold()
    }

    /// Something is in hand already.
    pub fn hold(&self) -> InHand<'_> {
        self.in_hand.set(self.in_hand.get() + 1);
        InHand(self)
    }
}

/// Somebody has something in hand.
#[derive(Debug)]
pub struct InHand<'a>(&'a Gate);

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.0.in_hand.set(self.0.in_hand.get() - 1);
    }
}

/// A task; it ends with this.
#[derive(Debug)]
pub struct Watch(tokio::task::AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Watch {
    /// Starts a task of the master's thread.
    pub fn start(task: impl Future<Output = ()> + 'static) -> Self {
        Self(tokio::task::spawn_local(task).abort_handle())
    }
}

/// Lets tasks go on for a while: what a process said before it ended is still on its way.
pub fn linger(watches: Vec<Watch>) {
    const WHILE: Duration = Duration::from_secs(5);
    tokio::task::spawn_local(async move {
        tokio::time::sleep(WHILE).await;
        drop(watches);
    });
}

/// CLOCK_MONOTONIC, the clock of everything in the master.
pub fn now() -> Duration {
    Duration::from_nanos(monotonic_ns())
}

/// Waits until a moment of [`now`].
pub async fn until(moment: Duration) {
    tokio::time::sleep(moment.saturating_sub(now())).await;
}

/// The same where there may be none: then for ever.
pub async fn until_some(moment: Option<Duration>) {
    match moment {
        Some(moment) => until(moment).await,
        None => std::future::pending().await,
    }
}

/// A channel of the master's end, with its registration.
pub type Registered<S, R> = Rc<AsyncFd<Channel<S, R>>>;

/// Registers a channel.
///
/// # Errors
/// When the kernel refuses.
pub fn register<S, R>(channel: Channel<S, R>) -> io::Result<Registered<S, R>> {
    Ok(Rc::new(sys::register(
        channel,
        Interest::READABLE | Interest::WRITABLE,
    )?))
}

/// Tells every message of a channel, to its end.
pub fn messages<S: Serialize + 'static, R: DeserializeOwned + 'static>(
    channel: &Registered<S, R>,
    events: &Events,
    closer: &Closer,
    event: impl Fn(Result<Heard<R>, ChannelError>) -> Event + 'static,
) -> Watch {
    let (channel, events, closer) = (channel.clone(), events.clone(), closer.clone());
    // A message whose descriptors find no place is lost. One with a number beyond this, as the kernel gives the lowest that is free, says
    // that few are left: the loop has to let go of some first.
    let highest = RawFd::try_from(most_descriptors() / 8 * 7).unwrap_or(RawFd::MAX);
    Watch::start(async move {
        while let Ok(mut ready) = channel.readable().await {
            while closer.is_busy() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let in_hand = events.gate().pass().await;
            let mut fds = Vec::new();
            let result = channel.get_ref().receive_into(false, &mut fds);
            let scarce = fds.iter().any(|fd| fd.as_raw_fd() > highest);
            let fds = fds.into_iter().map(|fd| closer.take(fd)).collect();
            let result = result.map(|message| Heard { message, fds });
            if matches!(result, Err(ChannelError::WouldBlock)) {
                ready.clear_ready();
                continue;
            }
            let over = matches!(result, Err(ChannelError::Closed | ChannelError::System(_)));
            if events.send(event(result)).await.is_err() || over {
                return;
            }
            drop(in_hand);
            if scarce {
                tokio::time::sleep(foreign::GATHER).await;
            }
        }
    })
}

/// Sends what is queued as the other end takes it, and never waits for it anywhere else.
pub fn sender<S: Serialize + 'static, R: DeserializeOwned + 'static>(
    channel: &Registered<S, R>,
    mut queue: mpsc::Receiver<(S, Vec<OwnedFd>)>,
    events: &Events,
) -> Watch {
    let (channel, events) = (channel.clone(), events.clone());
    Watch::start(async move {
        while let Some((message, fds)) = queue.recv().await {
            // What is queued behind it is seen by the queue's length.
            let _in_hand = events.gate().hold();
            if !send(&channel, &message, &fds).await {
                return;
            }
        }
    })
}

/// Sends one message when the other end takes it; false when it is gone.
pub async fn send<S: Serialize, R: DeserializeOwned>(
    channel: &AsyncFd<Channel<S, R>>,
    message: &S,
    fds: &[OwnedFd],
) -> bool {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    loop {
        match channel.get_ref().send(message, &fds, false) {
            Ok(_) => return true,
            Err(ChannelError::WouldBlock) => match channel.writable().await {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => return false,
            },
            // As many descriptors of this user are on their way as the system allows, whoever sent them.
            Err(ChannelError::System(Errno::ETOOMANYREFS)) => tokio::time::sleep(TRY_AGAIN).await,
            Err(_) => return false,
        }
    }
}

/// Tells the end of a process.
///
/// # Errors
/// When the kernel refuses.
pub fn process(process: &Rc<Process>, events: &Events, event: Event) -> io::Result<Watch> {
    let fd = sys::register(process.clone(), Interest::READABLE)?;
    let events = events.clone();
    Ok(Watch::start(async move {
        if fd.readable().await.is_ok() {
            let _ = events.send(event).await;
        }
    }))
}

/// A bell: an eventfd.
///
/// # Errors
/// When the kernel refuses.
pub fn new_bell() -> io::Result<OwnedFd> {
    Ok(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?.into())
}

/// Takes what was rung; false when nothing was. It never waits, whatever a worker, who shares the bell, has done to its flags.
pub fn empty(bell: impl AsFd) -> bool {
    let mut count = [0; 8];
    let flags = rustix::io::ReadWriteFlags::NOWAIT;
    rustix::io::preadv2(bell, &mut [io::IoSliceMut::new(&mut count)], u64::MAX, flags).is_ok()
}

/// Tells each ring of a bell.
///
/// # Errors
/// When the kernel refuses.
pub fn bell(bell: &Rc<OwnedFd>, events: &Events, place: Place) -> io::Result<Watch> {
    let fd = sys::register(bell.clone(), Interest::READABLE)?;
    let events = events.clone();
    Ok(Watch::start(async move {
        while let Ok(mut ready) = fd.readable().await {
            let rang = empty(fd.get_ref());
            ready.clear_ready();
            if rang && events.send(Event::Rang(place)).await.is_err() {
                return;
            }
        }
    }))
}

/// Becomes readable when a connection comes for which no worker waits. It costs nothing as long as one does: the kernel wakes
/// those that wait for a listener exclusively in the order in which they came, up to the first that really sleeps; so this is to
/// be made after the workers were.
///
/// # Errors
/// When the kernel refuses.
pub fn nobody_waits(listener: &Listener) -> io::Result<AsyncFd<OwnedFd>> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let exclusive = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
    epoll.add(listener, EpollEvent::new(exclusive, 0))?;
    sys::register(epoll.0, Interest::READABLE)
}

/// Tells that once.
///
/// # Errors
/// When the kernel refuses.
pub fn alarm(listener: &Rc<Listener>, events: &Events, pool: PoolId) -> io::Result<Watch> {
    let fd = nobody_waits(listener)?;
    let events = events.clone();
    Ok(Watch::start(async move {
        if fd.readable().await.is_ok() {
            let _ = events.send(Event::Alarm(pool)).await;
        }
    }))
}

/// Tells that connections wait. The kernel wakes nobody for the listener when this is gone.
///
/// # Errors
/// When the kernel refuses.
pub fn listener(listener: &Rc<Listener>, events: &Events, pool: PoolId) -> io::Result<Watch> {
    // Not the listener itself: a watch that is stopped is gone a moment later only, and after a reload the next one begins at once.
    let fd = sys::register(listener.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
    let events = events.clone();
    Ok(Watch::start(async move {
        while let Ok(mut ready) = fd.readable().await {
            // Nothing is accepted here; the next edge is the next connection.
            ready.clear_ready();
            if events.send(Event::Waiting(pool)).await.is_err() {
                return;
            }
        }
    }))
}
