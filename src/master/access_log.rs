//! A pool's access log: a thread that writes what the pool's workers leave in their rings.
//!
//! Neither a worker nor the master's loop waits for the disk. Lines are written in batches: at once when the thread was
//! asleep, then at most every [`PAUSE`]. What does not fit into a ring meanwhile is lost, counted and told. A worker that is
//! killed loses nothing that it had said, and an orderly end of the pool nothing at all.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::mpsc::error::TrySendError;

use super::log_file;
use super::saved::{Kept, Restorer, Saver};
use super::users::Identity;
use super::watch::{self, Event, Events, GenerationId, PoolId};
use crate::log::{Level, Logger, errno};
use crate::scoreboard::{Place, Scoreboard, Sleep, Taken, monotonic_ns};

/// Between two batches, milliseconds. A line is in the file twice that long after its request, or sooner.
const PAUSE: u8 = 20;

/// Between two batches at least, whoever rings.
const A_MOMENT: Duration = Duration::from_millis(1);

/// Bytes of a batch.
const BATCH: usize = 256 << 10;

/// How long the end of the pool waits for a reader of the last lines.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How much longer the master waits for a thread to count what it has not written, on a machine that has much to do or with
/// a disk that does not answer.
const LAST_COUNT: Duration = Duration::from_secs(5);

/// It cannot be opened.
#[derive(Debug, Error)]
#[error("failed to open access log ({path}): {reason}", path = .0.display(), reason = errno(.1))]
pub struct AccessLogError(PathBuf, #[source] io::Error);

/// An open access log. Its thread starts with the first generation that it follows, and ends with this.
#[derive(Debug)]
pub struct AccessLog {
    path: PathBuf,
    file: RefCell<Arc<File>>,
    /// The workers ring it, and may do with it what they like: the master's loop never touches it.
    bell: Arc<OwnedFd>,
    /// Wakes the thread for an order.
    call: Arc<OwnedFd>,
    /// The scoreboards of the generations that it follows.
    boards: RefCell<BTreeMap<GenerationId, Arc<Scoreboard>>>,
    /// While there is a thread. When this goes, it writes what there is and ends.
    orders: RefCell<Option<Sender<Order>>>,
    losses: Arc<Losses>,
}

/// Lines that could not be written.
#[derive(Debug, Default)]
struct Losses {
    /// All, since it was opened first.
    lines: AtomicU64,
    /// Those of them that the master's log has told of.
    told: AtomicU64,
    /// It was said that there are such, and not yet how many.
    begun: AtomicBool,
}

#[derive(Debug)]
enum Order {
    Follow(GenerationId, Arc<Scoreboard>),
    Leave(GenerationId),
    WriteTo(Arc<File>),
    /// Nobody goes on with this log.
    End,
}

/// A generation whose lines are written, as long as this is there.
#[derive(Debug)]
pub struct Following {
    log: Rc<AccessLog>,
    generation: GenerationId,
}

impl Following {
    /// In which log.
    pub fn log(&self) -> &Rc<AccessLog> {
        &self.log
    }
}

/// An open access log, for a successor.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedAccessLog {
    path: PathBuf,
    file: Kept,
    /// The workers have it. The log is known by it.
    bell: Kept,
    lost: u64,
    told: u64,
}

/// Restored ones, by their bells.
pub type Restored = BTreeMap<Kept, Rc<AccessLog>>;

impl AccessLog {
    /// What is to go on.
    pub fn save(&self, saver: &mut Saver) -> SavedAccessLog {
        SavedAccessLog {
            path: self.path.clone(),
            file: saver.keep(&**self.file.borrow()),
            bell: self.name(saver),
            lost: self.lost(),
            told: self.losses.told.load(Relaxed),
        }
    }

    /// By what it is known among [`Restored`] ones.
    pub fn name(&self, saver: &mut Saver) -> Kept {
        saver.keep(&*self.bell)
    }

    /// Goes on with it.
    ///
    /// # Errors
    /// When a descriptor is missing.
    pub fn restore(saved: SavedAccessLog, fds: &mut Restorer) -> io::Result<(Kept, Rc<Self>)> {
        let file = fds.take(saved.file)?.into();
        let log = Self::with(saved.path, file, fds.take(saved.bell)?)?;
        log.losses.lines.store(saved.lost, Relaxed);
        log.losses.told.store(saved.told, Relaxed);
        Ok((saved.bell, Rc::new(log)))
    }

    /// Opens it. `stderr` is what /dev/stderr means, whatever has become of descriptor 2.
    ///
    /// # Errors
    /// With the path and the reason.
    pub fn open(path: &Path, identity: &Identity, stderr: Option<&File>) -> Result<Self, AccessLogError> {
        let failed = |error| AccessLogError(path.to_owned(), error);
        let file = open(path, identity, stderr).map_err(failed)?;
        let bell = watch::new_bell().map_err(failed)?;
        Self::with(path.to_owned(), file, bell).map_err(failed)
    }

    fn with(path: PathBuf, file: File, bell: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            path,
            file: RefCell::new(Arc::new(file)),
            bell: Arc::new(bell),
            call: Arc::new(watch::new_bell()?),
            boards: RefCell::default(),
            orders: RefCell::default(),
            losses: Arc::default(),
        })
    }

    /// Opens it again, where it was. Every line is in the old file or in the new one.
    ///
    /// # Errors
    /// With the path and the reason; the old one stays.
    pub fn reopen(&self, identity: &Identity, stderr: Option<&File>) -> Result<(), AccessLogError> {
        let file = open(&self.path, identity, stderr).map_err(|error| AccessLogError(self.path.clone(), error))?;
        self.write_to(Arc::new(file));
        Ok(())
    }

    /// Goes on in the file of another one, if that is the same log; whether it is.
    pub fn continue_in(&self, other: &Self) -> bool {
        let same = other.path == self.path;
        if same {
            self.write_to(other.file.borrow().clone());
        }
        same
    }

    fn write_to(&self, file: Arc<File>) {
        *self.file.borrow_mut() = file.clone();
        self.order(Order::WriteTo(file));
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &*self.orders.borrow() {
            let _ = orders.send(order);
        }
        self.call();
    }

    /// What workers wake the thread with.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn bell(&self) -> io::Result<OwnedFd> {
        self.bell.try_clone()
    }

    /// Lines that could not be written, since it was opened first.
    pub fn lost(&self) -> u64 {
        self.losses.lines.load(Relaxed)
    }

    /// Whether workers have lines that find no room, asked for the first time since all that had waited was written. The
    /// thread cannot say so: it waits for the disk.
    pub fn begins_to_lose(&self) -> bool {
        let loses = |board: &Arc<Scoreboard>| board.header().log_loses.load(Relaxed) != 0;
        self.boards.borrow().values().any(loses) && !self.losses.begun.swap(true, Relaxed)
    }

    /// Writes the lines of a generation from now on.
    ///
    /// # Errors
    /// When the kernel refuses a thread.
    pub fn follow(
        self: &Rc<Self>,
        place: watch::Place,
        board: &Arc<Scoreboard>,
        events: &Events,
    ) -> io::Result<Following> {
        let generation = place.generation;
        self.boards.borrow_mut().insert(generation, board.clone());
        let following = Following {
            log: self.clone(),
            generation,
        };
        if self.orders.borrow().is_some() {
            self.order(Order::Follow(generation, board.clone()));
        } else {
            self.start(place.pool, events)?;
        }
        Ok(following)
    }

    /// Starts the thread, if there is none and something to follow.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn start(&self, pool: PoolId, events: &Events) -> io::Result<()> {
        if self.orders.borrow().is_some() || self.boards.borrow().is_empty() {
            return Ok(());
        }
        let (orders, receiver) = mpsc::channel();
        let (events, (say, said)) = (events.clone(), tokio::sync::mpsc::channel(16));
        let mut said = Said(said, self.path.clone());
        tokio::task::spawn_local(async move {
            while let Some((level, text)) = said.0.recv().await {
                let _ = events.send(Event::AccessLog(pool, level, text)).await;
            }
        });
        let mut writer = Writer {
            path: self.path.clone(),
            file: self.file.borrow().clone(),
            orders: receiver,
            bell: self.bell.clone(),
            call: self.call.clone(),
            boards: Vec::new(),
            left: Vec::new(),
            taken: Taken::default(),
            batch: Vec::new(),
            torn: false,
            failing: false,
            losses: self.losses.clone(),
            say,
            ends: None,
            is_last: false,
        };
        for (generation, board) in &*self.boards.borrow() {
            writer.follow(*generation, board.clone());
        }
        let alive = Alive::new();
        thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            // They are the loop's, which an exec must not lose.
            let _ = SigSet::all().thread_block();
            writer.run();
            drop(alive);
        })?;
        *self.orders.borrow_mut() = Some(orders);
        Ok(())
    }

    /// Lets the thread write what there is and end: [`wait_for_all`] waits for that. The rings keep what comes from now on
    /// for the one that is started next.
    pub fn stop(&self) {
        self.orders.take();
        self.call();
    }

    fn call(&self) {
        let _ = nix::unistd::write(&self.call, &1u64.to_ne_bytes());
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.order(Order::End);
        self.stop();
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.log.boards.borrow_mut().remove(&self.generation);
        self.log.order(Order::Leave(self.generation));
    }
}

/// How much of some lines is written at once: others may write to the same pipe, and the kernel keeps together what is no
/// longer than PIPE_BUF.
fn at_once(file: &File, lines: &[u8]) -> usize {
    const PIPE_BUF: usize = 4096;
    if lines.len() <= PIPE_BUF || !file.metadata().is_ok_and(|found| found.file_type().is_fifo()) {
        return lines.len();
    }
    let end = lines[..PIPE_BUF].iter().rposition(|byte| *byte == b'\n');
    end.map_or(PIPE_BUF, |at| at + 1)
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

/// What threads had to say when the master's loop did not listen any more.
static UNSAID: Mutex<Vec<Message>> = Mutex::new(Vec::new());

/// For the master's log.
type Message = (Level, String);

fn leave_unsaid(log: &Path, messages: impl IntoIterator<Item = Message>) {
    let name = |(level, text)| (level, format!("{text} ({})", log.display()));
    let mut unsaid = UNSAID.lock().expect("nobody panics with it");
    unsaid.extend(messages.into_iter().map(name));
}

/// What the thread of a log says. What is not heard here is not lost.
struct Said(tokio::sync::mpsc::Receiver<Message>, PathBuf);

impl Drop for Said {
    fn drop(&mut self) {
        let Self(said, log) = self;
        said.close();
        leave_unsaid(log, std::iter::from_fn(|| said.try_recv().ok()));
    }
}

/// Waits until every access log that has been stopped has its last lines; says so if one does not take them.
pub fn wait_for_all(log: &Logger) {
    let live = LIVE.0.lock().expect("nobody panics with it");
    let waited = LIVE
        .1
        .wait_timeout_while(live, LAST_WORDS + LAST_COUNT, |live| *live > 0);
    if *waited.expect("nobody panics with it").0 > 0 {
        log.warning("an access log has not taken its last lines: they are lost");
    }
    for (level, text) in UNSAID.lock().expect("nobody panics with it").drain(..) {
        log.log(level, text);
    }
}

struct Writer {
    path: PathBuf,
    file: Arc<File>,
    orders: Receiver<Order>,
    bell: Arc<OwnedFd>,
    call: Arc<OwnedFd>,
    boards: Vec<(GenerationId, Arc<Scoreboard>, Vec<Place>)>,
    /// Those whose workers have ended: what they have said is taken once more.
    left: Vec<GenerationId>,
    taken: Taken,
    batch: Vec<u8>,
    /// The file ends within a line.
    torn: bool,
    failing: bool,
    losses: Arc<Losses>,
    /// The way to the master's log.
    say: tokio::sync::mpsc::Sender<Message>,
    /// Nobody will order anything any more; it tries until then.
    ends: Option<Instant>,
    /// And nobody goes on where this ends.
    is_last: bool,
}

impl Writer {
    fn run(mut self) {
        let mut woken = false;
        loop {
            self.obey();
            let ends = self.ends.is_some();
            let busy = self.sweep();
            if ends {
                if self.is_last {
                    self.tell_losses();
                }
                return;
            }
            if busy || std::mem::take(&mut woken) {
                // Lines come together while it waits, until a ring gets full. Whoever rings for nothing cannot keep it busy.
                thread::sleep(A_MOMENT);
                self.sleep(Sleep::Pause, PollTimeout::from(PAUSE));
            } else {
                self.sleep(Sleep::Long, PollTimeout::NONE);
                woken = true;
            }
        }
    }

    /// Until somebody rings.
    fn sleep(&self, how: Sleep, limit: PollTimeout) {
        let say = |word: u32| {
            for (_, board, _) in &self.boards {
                board.header().log_sleeps.store(word, SeqCst);
            }
        };
        say(how as u32);
        let bells = &mut [&self.bell, &self.call].map(|bell| PollFd::new(bell.as_fd(), PollFlags::POLLIN));
        if how == Sleep::Long && self.has_more() {
            say(0);
        } else if poll(bells, limit).is_ok_and(|rang| rang > 0) {
            watch::empty(&self.bell);
            watch::empty(&self.call);
        }
        say(0);
    }

    fn has_more(&self) -> bool {
        let has_more = |(_, board, places): &(GenerationId, Arc<Scoreboard>, Vec<Place>)| {
            places
                .iter()
                .enumerate()
                .any(|(slot, place)| board.ring(slot).has_more(place))
        };
        self.boards.iter().any(has_more)
    }

    /// Carries out what is ordered; whether lines go to another file from now on.
    fn obey(&mut self) -> bool {
        let mut another_file = false;
        loop {
            match self.orders.try_recv() {
                Ok(Order::Follow(id, board)) => self.follow(id, board),
                Ok(Order::Leave(id)) => self.left.push(id),
                Ok(Order::WriteTo(file)) => {
                    (self.file, self.torn) = (file, false);
                    another_file = true;
                }
                Ok(Order::End) => self.is_last = true,
                Err(TryRecvError::Empty) => return another_file,
                Err(TryRecvError::Disconnected) => {
                    self.ends.get_or_insert_with(|| Instant::now() + LAST_WORDS);
                    return another_file;
                }
            }
        }
    }

    fn follow(&mut self, id: GenerationId, board: Arc<Scoreboard>) {
        let places = (0..board.slots()).map(|slot| board.ring(slot).place()).collect();
        self.boards.push((id, board, places));
    }

    /// Takes what is there and writes it; false when there was nothing.
    fn sweep(&mut self) -> bool {
        let begun = monotonic_ns();
        // Those that leave while this writes are taken once more by the next one.
        let left = std::mem::take(&mut self.left);
        let mut lost = 0;
        let mut busy = false;
        for index in 0..self.boards.len() {
            for slot in 0..self.boards[index].2.len() {
                let (_, board, places) = &mut self.boards[index];
                lost += board.ring(slot).take(&mut places[slot], &mut self.taken);
                if self.taken.size() >= BATCH {
                    busy = true;
                    self.write(u64::MAX);
                }
            }
        }
        busy |= !self.taken.is_empty();
        self.lose(lost);
        self.boards.retain(|(id, ..)| !left.contains(id));
        self.write(if self.ends.is_some() { u64::MAX } else { begun });
        busy
    }

    fn lose(&mut self, lines: u64) {
        self.losses.lines.fetch_add(lines, Relaxed);
    }

    /// Says how many are lost, if there are such since it was said last; whether there are.
    fn tell_losses(&self) -> bool {
        let lost = self.losses.lines.load(Relaxed);
        let untold = lost.saturating_sub(self.losses.told.swap(lost, Relaxed));
        if untold > 0 {
            self.say(Level::Warning, format!("{untold} lines of the access log are lost"));
        }
        untold > 0
    }

    /// Writes the lines up to a time.
    fn write(&mut self, until: u64) {
        let mut batch = std::mem::take(&mut self.batch);
        self.taken.move_until(until, monotonic_ns(), &mut batch);
        if batch.is_empty() {
            self.batch = batch;
            return;
        }
        match self.put(&batch) {
            Ok(()) => {
                self.failing = false;
                if self.tell_losses() {
                    for (_, board, _) in &self.boards {
                        board.header().log_loses.store(0, Relaxed);
                    }
                    self.losses.begun.store(false, Relaxed);
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
                match (&*self.file).write(b"\n") {
                    Ok(_) => self.torn = false,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err((from, error)),
                }
            }
            match (&*self.file).write(&batch[from..from + at_once(&self.file, &batch[from..])]) {
                Ok(0) => return Err((from, io::ErrorKind::WriteZero.into())),
                Ok(count) => from += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A pipe, or a socket.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.ends.is_some_and(|ends| ends <= Instant::now()) {
                        return Err((from, error));
                    }
                    let reader = PollFd::new(self.file.as_fd(), PollFlags::POLLOUT);
                    let order = PollFd::new(self.call.as_fd(), PollFlags::POLLIN);
                    let _ = poll(&mut [reader, order], PollTimeout::from(100u8));
                    watch::empty(&self.call);
                    if self.obey() {
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

    fn say(&self, level: Level, text: String) {
        // Where the loop has too much to do, it stands in the status, too.
        if let Err(TrySendError::Closed(message)) = self.say.try_send((level, text)) {
            leave_unsaid(&self.path, [message]);
        }
    }
}
