//! A pool's access log: a thread that writes what the pool's workers leave in their rings.
//!
//! Neither a worker nor the master's loop waits for the disk. Lines are written in batches: at once when the thread was
//! asleep, then at most every [`PAUSE`]. What does not fit into a ring meanwhile is lost, counted and told. A worker that is
//! killed loses nothing that it had said, and an orderly end of the pool nothing at all.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use thiserror::Error;

use super::log_file;
use super::users::Identity;
use super::watch::{Event, Events, PoolId};
use crate::log::{Level, errno};
use crate::scoreboard::{Place, Scoreboard};

/// Between two batches. A line is in the file that long after its request, or sooner.
const PAUSE: Duration = Duration::from_millis(20);

/// Bytes of a batch.
const BATCH: usize = 256 << 10;

/// How long the end of the pool waits for a reader of the last lines.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// It cannot be opened.
#[derive(Debug, Error)]
#[error("failed to open access log ({path}): {reason}", path = .0.display(), reason = errno(.1))]
pub struct AccessLogError(PathBuf, #[source] io::Error);

/// An open access log. Its thread starts with the first generation that it follows, and ends with this.
#[derive(Debug)]
pub struct AccessLog {
    path: PathBuf,
    bell: Arc<EventFd>,
    /// None: it ends.
    orders: Option<Sender<Order>>,
    /// Until the thread has them.
    unstarted: RefCell<Option<(File, Receiver<Order>)>>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Order {
    Follow(u64, Arc<Scoreboard>),
    Leave(u64),
    WriteTo(File),
}

/// A generation whose lines are written, as long as this is there.
#[derive(Debug)]
pub struct Following {
    log: Rc<AccessLog>,
    generation: u64,
}

impl AccessLog {
    /// Opens it. `stderr` is what /dev/stderr means, whatever has become of descriptor 2.
    ///
    /// # Errors
    /// With the path and the reason.
    pub fn open(path: &Path, identity: &Identity, stderr: Option<&File>) -> Result<Self, AccessLogError> {
        let failed = |error| AccessLogError(path.to_owned(), error);
        let file = open(path, identity, stderr).map_err(failed)?;
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let (orders, receiver) = mpsc::channel();
        Ok(Self {
            path: path.to_owned(),
            bell: Arc::new(bell.map_err(|error| failed(error.into()))?),
            orders: Some(orders),
            unstarted: RefCell::new(Some((file, receiver))),
            lost: Arc::default(),
        })
    }

    /// Opens it again, where it was. Every line is in the old file or in the new one.
    ///
    /// # Errors
    /// With the path and the reason; the old one stays.
    pub fn reopen(&self, identity: &Identity, stderr: Option<&File>) -> Result<(), AccessLogError> {
        let file = open(&self.path, identity, stderr).map_err(|error| AccessLogError(self.path.clone(), error))?;
        self.write_to(file);
        Ok(())
    }

    /// Goes on in the file of another one that has not begun; None if that is another log.
    pub fn continue_in(&self, other: &Self) -> Option<()> {
        if other.path != self.path {
            return None;
        }
        let (file, _) = other.unstarted.take()?;
        self.write_to(file);
        Some(())
    }

    fn write_to(&self, file: File) {
        match &mut *self.unstarted.borrow_mut() {
            Some((unused, _)) => *unused = file,
            None => self.order(Order::WriteTo(file)),
        }
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(order);
        }
        let _ = self.bell.write(1);
    }

    /// What workers wake the thread with.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn bell(&self) -> io::Result<OwnedFd> {
        self.bell.as_fd().try_clone_to_owned()
    }

    /// Lines that could not be written, since it was opened first.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// Writes the lines of a generation from now on.
    ///
    /// # Errors
    /// When the kernel refuses a thread.
    pub fn follow(
        self: &Rc<Self>,
        generation: u64,
        board: &Arc<Scoreboard>,
        pool: PoolId,
        events: &Events,
    ) -> io::Result<Following> {
        if let Some((file, orders)) = self.unstarted.take() {
            let (events, (say, mut said)) = (events.clone(), tokio::sync::mpsc::channel(16));
            tokio::task::spawn_local(async move {
                while let Some((level, text)) = said.recv().await {
                    let _ = events.send(Event::AccessLog(pool, level, text)).await;
                }
            });
            let writer = Writer {
                file,
                orders,
                bell: self.bell.clone(),
                boards: Vec::new(),
                left: Vec::new(),
                batch: Vec::new(),
                torn: false,
                failing: false,
                untold: 0,
                lost: self.lost.clone(),
                say,
                ends: None,
            };
            let alive = Alive::new();
            thread::Builder::new().name("access-log".to_owned()).spawn(move || {
                writer.run();
                drop(alive);
            })?;
        }
        self.order(Order::Follow(generation, board.clone()));
        Ok(Following {
            log: self.clone(),
            generation,
        })
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.bell.write(1);
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.log.order(Order::Leave(self.generation));
    }
}

fn open(path: &Path, identity: &Identity, stderr: Option<&File>) -> io::Result<File> {
    match stderr {
        Some(stderr) if path == Path::new("/dev/stderr") => stderr.try_clone(),
        _ => log_file::open(path, identity),
    }
}

/// Threads that have lines to write.
static LIVE: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// One of them.
struct Alive;

impl Alive {
    fn new() -> Self {
        *LIVE.0.lock().expect("nobody panics with it") += 1;
        Self
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        *LIVE.0.lock().expect("nobody panics with it") -= 1;
        LIVE.1.notify_all();
    }
}

/// Waits until every access log that has been dropped has its last lines; false if one does not take them.
pub fn wait_for_all() -> bool {
    let live = LIVE.0.lock().expect("nobody panics with it");
    // A little longer than a thread tries.
    let patience = LAST_WORDS + Duration::from_millis(500);
    let waited = LIVE.1.wait_timeout_while(live, patience, |live| *live > 0);
    *waited.expect("nobody panics with it").0 == 0
}

struct Writer {
    file: File,
    orders: Receiver<Order>,
    bell: Arc<EventFd>,
    boards: Vec<(u64, Arc<Scoreboard>, Vec<Place>)>,
    /// Those whose workers have ended: what they have said is taken once more.
    left: Vec<u64>,
    batch: Vec<u8>,
    /// The file ends within a line.
    torn: bool,
    failing: bool,
    /// Lines lost since that was told last.
    untold: u64,
    /// All of them.
    lost: Arc<AtomicU64>,
    /// The way to the master's log.
    say: tokio::sync::mpsc::Sender<(Level, String)>,
    /// Nobody will order anything any more; it tries until then.
    ends: Option<Instant>,
}

impl Writer {
    fn run(mut self) {
        loop {
            self.obey();
            let busy = self.sweep();
            if self.ends.is_some() {
                return;
            }
            if busy {
                // Lines come together while it waits; orders do not.
                match self.orders.recv_timeout(PAUSE) {
                    Ok(order) => self.carry_out(order),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => self.end(),
                }
                continue;
            }
            self.sleeps(1);
            if !self.has_more() {
                let _ = poll(
                    &mut [PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)],
                    PollTimeout::NONE,
                );
            }
            self.sleeps(0);
            let _ = self.bell.read();
        }
    }

    fn sleeps(&self, sleeps: u32) {
        for (_, board, _) in &self.boards {
            board.header().log_sleeps.store(sleeps, SeqCst);
        }
    }

    fn has_more(&self) -> bool {
        let has_more = |(_, board, places): &(u64, Arc<Scoreboard>, Vec<Place>)| {
            places
                .iter()
                .enumerate()
                .any(|(slot, place)| board.ring(slot).has_more(place))
        };
        self.boards.iter().any(has_more)
    }

    fn end(&mut self) {
        self.ends.get_or_insert_with(|| Instant::now() + LAST_WORDS);
    }

    fn obey(&mut self) {
        loop {
            match self.orders.try_recv() {
                Ok(order) => self.carry_out(order),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => return self.end(),
            }
        }
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Follow(id, board) => {
                let places = (0..board.slots()).map(|slot| board.ring(slot).place()).collect();
                self.boards.push((id, board, places));
            }
            Order::Leave(id) => self.left.push(id),
            Order::WriteTo(file) => (self.file, self.torn) = (file, false),
        }
    }

    /// Takes what is there and writes it; false when there was nothing.
    fn sweep(&mut self) -> bool {
        let mut lost = 0;
        let mut busy = false;
        for index in 0..self.boards.len() {
            for slot in 0..self.boards[index].2.len() {
                let (_, board, places) = &mut self.boards[index];
                lost += board.ring(slot).take(&mut places[slot], &mut self.batch);
                if self.batch.len() >= BATCH {
                    busy = true;
                    self.write();
                }
            }
        }
        busy |= !self.batch.is_empty();
        self.lose(lost);
        let left = std::mem::take(&mut self.left);
        self.boards.retain(|(id, ..)| !left.contains(id));
        self.write();
        busy
    }

    fn lose(&mut self, lines: u64) {
        self.untold += lines;
        self.lost.fetch_add(lines, Relaxed);
    }

    fn write(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        match self.put(&batch) {
            Ok(()) => {
                self.failing = false;
                if self.untold > 0 {
                    let text = format!("{} lines of the access log are lost", std::mem::take(&mut self.untold));
                    self.say(Level::Warning, text);
                    for (_, board, _) in &self.boards {
                        board.header().log_loses.store(0, Relaxed);
                    }
                }
            }
            Err((written, error)) => {
                self.torn |= written > 0 && batch[written - 1] != b'\n';
                self.lose(batch[written..].iter().filter(|byte| **byte == b'\n').count() as u64);
                if !std::mem::replace(&mut self.failing, true) {
                    let text = "lines could not be written to the access log";
                    self.say(
                        Level::Error,
                        format!("{text}: {}; it is not said again until one is", errno(&error)),
                    );
                }
            }
        }
        // The room is kept for the next batch.
        self.batch = batch;
        self.batch.clear();
    }

    /// Writes all of it, or tells how much was written before the error.
    fn put(&mut self, batch: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut from = 0;
        while from < batch.len() {
            if self.torn {
                match self.file.write(b"\n") {
                    Ok(_) => self.torn = false,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err((from, error)),
                }
            }
            match self.file.write(&batch[from..]) {
                Ok(0) => return Err((from, io::ErrorKind::WriteZero.into())),
                Ok(count) => from += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A pipe, or a socket.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.ends.is_some_and(|ends| ends <= Instant::now()) {
                        return Err((from, error));
                    }
                    let a_while = PollTimeout::from(100u8);
                    let _ = poll(&mut [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)], a_while);
                    if self.takes_another_file() {
                        // The line that was begun goes there as a whole.
                        from = batch[..from]
                            .iter()
                            .rposition(|byte| *byte == b'\n')
                            .map_or(0, |at| at + 1);
                    }
                }
                Err(error) => return Err((from, error)),
            }
        }
        Ok(())
    }

    /// Orders that come while a reader is waited for.
    fn takes_another_file(&mut self) -> bool {
        match self.orders.try_recv() {
            Ok(Order::WriteTo(file)) => {
                (self.file, self.torn) = (file, false);
                true
            }
            Ok(order) => {
                self.carry_out(order);
                false
            }
            Err(TryRecvError::Empty) => false,
            Err(TryRecvError::Disconnected) => {
                self.end();
                false
            }
        }
    }

    fn say(&self, level: Level, text: String) {
        // The loop is about to end, or has much to do: it stands in the status, too.
        let _ = self.say.try_send((level, text));
    }
}
