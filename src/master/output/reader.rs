//! Reading what a pool's processes print, on a thread of the pool's own.
//!
//! Who has a pipe's other end can hold its lock for as long as he likes (`splice(2)` from a socket that is silent), and whoever
//! reads from the pipe then, or closes it, waits where not even SIGKILL reaches him. So neither is the loop's to do; and for
//! what is printed before a process ends, which is to stand in the log before its end does, the loop waits for a part of
//! its time at most.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::sync::Notify;

use crate::master::aside::{Aside, Counted, Counter};
use crate::master::foreign::most_descriptors;
use crate::master::sys;

/// Most that is read of one process in one go: another one's turn then.
pub const AT_ONCE: usize = 16 << 10;

/// Most pipes that wait to be closed. At more the processes that are made get none. At most an eighth of what this process may have.
const MOST_CLOSING: usize = 256;

/// The loop waits for the output of one pool, and of all together, for the tenth part of its time, and so long at once.
const PART: u32 = 10;
const LONGEST: Duration = Duration::from_secs(1);

/// The thread of one pool.
#[derive(Clone, Debug)]
pub struct Reader(Rc<Thread>);

#[derive(Debug)]
struct Thread {
    aside: Aside,
    /// Pipes that it is to close.
    closing: Counter,
    most_closing: usize,
    paused: Cell<bool>,
    goes_on: Notify,
    patience: RefCell<Patience>,
    /// With all pools.
    common: Rc<RefCell<Patience>>,
}

impl Reader {
    /// Of one pool; all pools have `common`.
    pub fn new(common: &Rc<RefCell<Patience>>) -> Self {
        Self(Rc::new(Thread {
            aside: Aside::new("output"),
            closing: Counter::default(),
            most_closing: MOST_CLOSING.min(most_descriptors() / 8),
            paused: Cell::new(false),
            goes_on: Notify::new(),
            patience: RefCell::default(),
            common: common.clone(),
        }))
    }

    /// Whether all is done that it was asked for.
    pub fn is_quiet(&self) -> bool {
        self.0.aside.is_quiet()
    }

    /// Whether further pipes could not be closed.
    pub fn is_full(&self) -> bool {
        self.0.closing.get() >= self.0.most_closing
    }

    /// Reads nothing, but what [`Pipe::read_until`] reads; or goes on.
    pub fn pause(&self, paused: bool) {
        self.0.paused.set(paused);
        self.0.goes_on.notify_waiters();
    }

    async fn goes_on(&self) {
        while self.0.paused.get() {
            self.0.goes_on.notified().await;
        }
    }

    /// To be kept by whoever keeps pipes of a process that has ended.
    pub fn closes_late(&self) -> Counted {
        self.0.closing.count()
    }

    /// Does what may wait for the thread, until the moment that it is told: as long as the pool has not used up its part of the loop's time.
    pub fn patiently<T>(&self, act: impl FnOnce(Instant) -> T) -> T {
        let (begin, both) = (Instant::now(), [&self.0.patience, &*self.0.common]);
        let left = both.map(|patience| patience.borrow_mut().left(begin));
        let result = act(begin + left[0].min(left[1]));
        both.iter()
            .for_each(|patience| patience.borrow_mut().spend(begin.elapsed()));
        result
    }

    fn close(&self, pipe: Arc<PipeReader>) {
        let closed = self.closes_late();
        // Without memory for a thread this one has to wait, if there is anything to wait for.
        let _ = self.0.aside.run(move || {
            drop(pipe);
            drop(closed);
        });
    }
}

/// How long the loop may wait for a pool, or for all of them. Pure: the time is an argument.
#[derive(Debug)]
pub struct Patience {
    left: Duration,
    filled: Instant,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            left: LONGEST,
            filled: Instant::now(),
        }
    }
}

impl Patience {
    fn left(&mut self, now: Instant) -> Duration {
        let more = now.saturating_duration_since(self.filled) / PART;
        (self.left, self.filled) = ((self.left + more).min(LONGEST), now);
        self.left
    }

    fn spend(&mut self, time: Duration) {
        self.left = self.left.saturating_sub(time);
    }
}

/// What has been read.
#[derive(Debug)]
pub struct Chunk {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Why there are no more.
    pub end: End,
}

/// Why a chunk ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is long enough.
    Full,
    /// Nothing more was there.
    Empty,
    /// Nothing more will come.
    Closed,
}

/// The reading end of a pipe.
#[derive(Debug)]
pub struct Pipe {
    /// None only while it is dropped.
    pipe: Option<AsyncFd<Arc<PipeReader>>>,
    reader: Reader,
    under_way: Cell<bool>,
    closed: Cell<bool>,
    result: Arc<Result>,
}

#[derive(Debug, Default)]
struct Result {
    chunk: Mutex<Option<Chunk>>,
    is_there: Condvar,
    told: Notify,
}

impl Result {
    fn chunk(&self) -> MutexGuard<'_, Option<Chunk>> {
        self.chunk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, chunk: Chunk) {
        *self.chunk() = Some(chunk);
        self.is_there.notify_all();
        self.told.notify_one();
    }
}

impl Pipe {
    /// Of what the reader's thread is to read.
    ///
    /// # Errors
    /// When the kernel refuses to watch it.
    pub fn new(pipe: OwnedFd, reader: &Reader) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Self {
            pipe: Some(sys::register(Arc::new(pipe.into()), Interest::READABLE)?),
            reader: reader.clone(),
            under_way: Cell::new(false),
            closed: Cell::new(false),
            result: Arc::default(),
        })
    }

    /// Reads when something is there. None: see [`Self::fetch`].
    pub async fn read(&self) -> Option<Chunk> {
        let mut ready = self.readable().await;
        // What was begun before this readiness was known says nothing of it.
        let fresh = !self.under_way.get();
        let chunk = self.fetch().await?;
        if fresh && chunk.end == End::Empty {
            ready.clear_ready();
        }
        Some(chunk)
    }

    /// Reads what is there. None: [`Self::read_until`] was quicker.
    pub async fn fetch(&self) -> Option<Chunk> {
        // What has been read already is to be taken.
        if !self.under_way.get() {
            self.reader.goes_on().await;
            self.ask();
        }
        self.result.told.notified().await;
        self.take()
    }

    async fn readable(&self) -> AsyncFdReadyGuard<'_, Arc<PipeReader>> {
        match self.pipe().readable().await {
            Ok(ready) if !self.closed.get() => ready,
            _ => std::future::pending().await,
        }
    }

    /// Reads what is there, if it comes until then. Err: it does not.
    pub fn read_until(&self, until: Instant) -> std::result::Result<Option<Chunk>, Late> {
        if !self.under_way.get() {
            let mut here = [PollFd::new(self.pipe().get_ref().as_fd(), PollFlags::POLLIN)];
            if self.closed.get() || poll(&mut here, PollTimeout::ZERO) == Ok(0) {
                return Ok(None);
            }
            self.ask();
        }
        let left = until.saturating_duration_since(Instant::now());
        let waits = |chunk: &mut Option<Chunk>| chunk.is_none();
        let waited = self
            .result
            .is_there
            .wait_timeout_while(self.result.chunk(), left, waits);
        drop(waited);
        self.take().map(Some).ok_or(Late)
    }

    /// Has the thread read, if it does not already.
    fn ask(&self) {
        if self.under_way.replace(true) {
            return;
        }
        let (pipe, result) = (self.pipe().get_ref().clone(), self.result.clone());
        let asked = self.reader.0.aside.run(move || {
            let chunk = read(&pipe);
            drop(pipe);
            result.put(chunk);
        });
        if asked.is_err() {
            // Without memory for a thread. The next that is printed is the next occasion.
            let (bytes, end) = (Vec::new(), End::Empty);
            self.result.put(Chunk { bytes, end });
        }
    }

    fn take(&self) -> Option<Chunk> {
        let chunk = self.result.chunk().take()?;
        self.under_way.set(false);
        self.closed.set(chunk.end == End::Closed);
        Some(chunk)
    }

    fn pipe(&self) -> &AsyncFd<Arc<PipeReader>> {
        self.pipe.as_ref().expect("it is there until it is dropped")
    }
}

impl AsRawFd for Pipe {
    fn as_raw_fd(&self) -> RawFd {
        self.pipe().as_raw_fd()
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            self.reader.close(pipe.into_inner());
        }
    }
}

/// The thread is held up.
#[derive(Debug)]
pub struct Late;

fn read(mut pipe: &PipeReader) -> Chunk {
    let mut bytes = vec![0; AT_ONCE];
    let mut length = 0;
    let end = loop {
        if length == bytes.len() {
            break End::Full;
        }
        match pipe.read(&mut bytes[length..]) {
            Ok(0) => break End::Closed,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break End::Empty,
            Err(_) => break End::Closed,
        }
    };
    bytes.truncate(length);
    Chunk { bytes, end }
}

#[cfg(test)]
pub mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use rustix::pipe::{SpliceFlags, splice};

    use super::*;

    /// Keeps a pipe's lock until what this returns is dropped, or a minute is over.
    pub fn hold(pipe: &OwnedFd) -> UnixStream {
        let (silent, source) = UnixStream::pair().unwrap();
        source.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let pipe = pipe.try_clone().unwrap();
        let (sender, thread) = std::sync::mpsc::channel();
        thread::spawn(move || {
            sender.send(nix::unistd::gettid()).unwrap();
            let _ = splice(&source, None, &pipe, None, 4096, SpliceFlags::empty());
        });
        let stat = format!("/proc/self/task/{}/stat", thread.recv().unwrap());
        while !std::fs::read_to_string(&stat).unwrap().contains(") S ") {
            thread::yield_now();
        }
        silent
    }

    pub fn locally(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(tokio::task::LocalSet::new().run_until(test));
    }

    fn pipe(reader: &Reader) -> (Pipe, OwnedFd) {
        let (ours, theirs) = io::pipe().unwrap();
        (Pipe::new(ours.into(), reader).unwrap(), theirs.into())
    }

    pub fn print(pipe: &OwnedFd, text: &str) {
        std::fs::File::from(pipe.try_clone().unwrap())
            .write_all(text.as_bytes())
            .unwrap();
    }

    #[test]
    fn nobody_waits_for_a_pipe_whose_lock_is_kept() {
        locally(async {
            let reader = Reader::new(&Rc::default());
            let (pipe, theirs) = pipe(&reader);
            print(&theirs, "first");
            let silent = hold(&theirs);
            let began = Instant::now();
            for _ in 0..100 {
                assert!(
                    reader.patiently(|until| pipe.read_until(until)).is_err(),
                    "it is not kept"
                );
            }
            assert!(!reader.is_quiet());
            // Another pool's is read meanwhile.
            let (other, others) = self::pipe(&Reader::new(&Rc::default()));
            print(&others, "other");
            assert_eq!(other.read().await.unwrap().bytes, b"other");
            assert!(began.elapsed() < Duration::from_secs(30));
            drop(silent);
            let chunk = pipe.read().await.unwrap();
            assert_eq!((chunk.bytes.as_slice(), chunk.end), (&b"first"[..], End::Empty));
        });
    }

    #[test]
    fn no_more_pipes_are_made_than_can_be_closed() {
        locally(async {
            let reader = Reader::new(&Rc::default());
            let (kept, theirs) = pipe(&reader);
            let silent = hold(&theirs);
            drop(kept);
            for _ in 1..reader.0.most_closing {
                assert!(!reader.is_full());
                drop(pipe(&reader));
            }
            assert!(reader.is_full());
            drop(silent);
            while !reader.is_quiet() {
                thread::yield_now();
            }
            assert!(!reader.is_full());
        });
    }

    #[test]
    fn what_was_read_out_of_turn_is_read_once() {
        locally(async {
            let reader = Reader::new(&Rc::default());
            let (pipe, theirs) = pipe(&reader);
            let now = || reader.patiently(|until| pipe.read_until(until)).unwrap();
            assert!(now().is_none());
            print(&theirs, "first");
            assert_eq!(now().unwrap().bytes, b"first");
            print(&theirs, "second");
            let second = loop {
                if let Some(chunk) = pipe.read().await {
                    break chunk;
                }
            };
            assert_eq!(second.bytes, b"second");
            drop(theirs);
            assert_eq!(now().unwrap().end, End::Closed);
            assert!(now().is_none());
        });
    }

    #[test]
    fn what_comes_after_a_read_that_nobody_waited_for_is_read() {
        locally(async {
            let reader = Reader::new(&Rc::default());
            let (pipe, theirs) = pipe(&reader);
            print(&theirs, "first");
            tokio::select! {
                biased;
                _ = pipe.read() => unreachable!("the thread is not that quick"),
                () = async { while !pipe.under_way.get() { tokio::task::yield_now().await; } } => {}
            }
            while !reader.is_quiet() {
                thread::yield_now();
            }
            print(&theirs, "second");
            // The loop hears of it.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let within = Duration::from_secs(20);
            for text in ["first", "second"] {
                let chunk = tokio::time::timeout(within, pipe.read()).await.expect("it is told of");
                assert_eq!(chunk.unwrap().bytes, text.as_bytes());
            }
        });
    }

    #[test]
    fn a_pool_has_a_part_of_the_time() {
        let mut patience = Patience::default();
        let begin = patience.filled;
        let (mut waited, mut now) = (Duration::ZERO, begin);
        while now < begin + Duration::from_secs(1000) {
            // It makes the loop wait as long as it can.
            let left = patience.left(now);
            patience.spend(left);
            waited += left;
            now += left + Duration::from_millis(1);
        }
        assert!(waited <= (now - begin) / PART + LONGEST, "{waited:?}");
        assert_eq!(patience.left(now + Duration::from_secs(60)), LONGEST);
    }
}
