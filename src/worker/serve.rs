//! A worker: accepts, waits, and never lets a connection that has nothing to say stand in its way.

mod waiting;

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{SockFlag, accept4};
use php_pool::control::{ChannelError, Handover, PoolSettings, QUEUE_BYTES, Received, ToWorker};
use php_pool::fastcgi::{Begin, Event};
use php_pool::log::Level;
use php_pool::scoreboard::{SIZES, STOPPING, Stage, TIMES, Wear, monotonic_ns, realtime_us};

use self::waiting::{Parked, Wait, most_parked};
use super::conn::{Conn, Lost};
use super::context::Worker;
use super::cpu::CpuMeter;
use super::exchange::{Exchange, Memory, Over, answer_aside};
use super::output::Output;
use super::{forked, give_up, php, print_log, signals};

/// A worker says at least so many requests before its last one that it is to be replaced, and a tenth of all before: enough
/// for another to be made.
const LAST_REQUESTS: u64 = 8;

/// Who has connected before the pool's end has so long to say what it wants: nobody comes after this worker who would hear it.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Most that a lingering close reads beyond the body that was announced; and most that is read of a kept connection, in one go, between
/// two requests.
const LINGER_BYTES: usize = 16 << 20;

/// What comes in one go while no request runs: parameters; the rest of a body that nobody wants any more; questions that are no
/// requests. As long as something is there nobody waits, and no other limit is looked at.
#[derive(Debug, Default)]
struct Between {
    bytes: usize,
    /// When it began, CLOCK_MONOTONIC ns.
    since: u64,
}

/// How a connection is ended of which too much comes.
enum End {
    /// A reply may still be on its way.
    Linger,
    Close,
}

impl Between {
    /// So many bytes more have come.
    fn came(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.since == 0 {
            self.since = monotonic_ns();
        }
    }

    /// Some: what has come, and is still no request, is too much, or takes too long.
    fn end(&self, conn: &Conn, pool: &PoolSettings) -> Option<End> {
        if self.bytes == 0 {
            return None;
        }
        let time = |since| Duration::from_nanos(monotonic_ns().saturating_sub(since));
        if conn.input.is_in_params() {
            return (time(conn.began) > pool.request_header_timeout).then_some(End::Close);
        }
        let since = if conn.owed_since == 0 {
            self.since
        } else {
            conn.owed_since
        };
        (time(since) > pool.linger_timeout || self.bytes > LINGER_BYTES).then_some(End::Linger)
    }
}

/// For how long a worker keeps its core while connections wait for it. A web server that it has answered may need that core for its next
/// step; but to offer it after each short request costs a fifth of their rate.
const STINT: Duration = Duration::from_micros(100);

/// The time since the worker last slept or offered its core.
#[derive(Debug, Default)]
struct Stint {
    /// Its first request's begin, CLOCK_MONOTONIC ns.
    begin: Option<u64>,
    /// Up to its last request's end.
    length: Duration,
}

impl Stint {
    fn begins(&mut self, now: u64) {
        self.begin.get_or_insert(now);
    }

    fn lasts(&mut self, now: u64) {
        self.length = Duration::from_nanos(now.saturating_sub(self.begin.unwrap_or(now)));
    }
}

/// Connections that are accepted before the kept ones are looked at.
const MOST_ROUNDS: u32 = 8;

/// With more kept connections than workers each of them has others all the time.
const STEP_EVERY: Duration = Duration::from_millis(10);

/// Of so many connections that the kernel woke the worker for, one is followed by a look for the next.
const LOOK_EVERY: u32 = 4;

/// For so long a worker serves requests that one connection brings at once, before others have a turn.
const TURN: Duration = Duration::from_millis(20);

/// For so long a worker waits for the first request of a new connection alone. Whoever opens many may write to the first when the last
/// is open.
const A_MOMENT: Duration = Duration::from_millis(50);

/// The same where others wait here, or where a moment was in vain less than [`HASTE`] ago: silent connections hold up nobody.
const AN_INSTANT: Duration = Duration::from_micros(100);
const HASTE: Duration = Duration::from_millis(400);

/// A worker that waits for so long has no use for memory that is free.
const SPARE_MEMORY: Duration = Duration::from_millis(100);

const LISTENER: u64 = 0;
const QUEUE: u64 = 1;
const LINK: u64 = 2;
const WAKE: u64 = 3;
const CONNECTIONS: u64 = 16;

/// The worker's loop.
pub struct Loop {
    worker: &'static Worker,
    wake: BorrowedFd<'static>,
    parked: HashMap<u64, Parked>,
    /// Most of them: the other descriptors are for the script.
    most_parked: usize,
    next_token: u64,
    memory: Memory,
    aside: Output,
    cpu: CpuMeter,
    served: u64,
    wear: Wear,
    /// A connection is likely to wait at the listener: it is worth a look there, which in vain costs as much as a socket.
    pressed: bool,
    stint: Stint,
    /// Connections that the kernel woke this worker for.
    woken: u32,
    /// New connections are waited for an instant only, as one was silent.
    hasty_until: Option<Instant>,
    /// Since the waiting room was last looked at.
    rounds: u32,
    /// Its first accept.
    born: Option<Instant>,
    leaving: bool,
    /// It has said so: it serves who was half read, and nobody else.
    left: bool,
    /// What the kernel woke it for, and it left undone.
    undone: Vec<u64>,
    /// Nobody comes after this worker.
    last: bool,
    /// The listener whose turn it is.
    turn: usize,
    /// When it went to the end of those that wait.
    last_step: Option<Instant>,
    /// `listen.allowed_clients` has been looked at.
    clients_checked: bool,
    /// A script has let go of its connection, and may have opened something in its place.
    let_go: bool,
}

impl Loop {
    /// # Errors
    /// When the kernel refuses a registration.
    pub fn new(worker: &'static Worker, wake: BorrowedFd<'static>) -> Result<Self, Errno> {
        let readable = EpollFlags::EPOLLIN;
        worker.epoll.add(&worker.link, EpollEvent::new(readable, LINK))?;
        worker.epoll.add(wake, EpollEvent::new(readable, WAKE))?;
        forked::expect(worker)?;
        Ok(Self {
            worker,
            wake,
            parked: HashMap::new(),
            most_parked: most_parked(),
            next_token: CONNECTIONS,
            memory: Memory::default(),
            aside: Output::default(),
            cpu: CpuMeter::new(),
            served: 0,
            wear: Wear::Fresh,
            pressed: true,
            stint: Stint::default(),
            woken: 0,
            hasty_until: None,
            rounds: 0,
            born: None,
            leaving: false,
            left: false,
            undone: Vec::new(),
            last: false,
            turn: 0,
            last_step: None,
            clients_checked: false,
            let_go: false,
        })
    }

    /// Serves until it is time to leave.
    ///
    /// # Errors
    /// When the kernel refuses a registration.
    pub fn run(&mut self) -> Result<(), Errno> {
        self.hold_back();
        if self.must_leave() {
            return Ok(()); // a spare that nobody needs
        }
        let (worker, slot) = (self.worker, self.worker.slot());
        self.queue_up()?;
        self.born = Some(Instant::now());
        slot.set_stage(Stage::Idle, monotonic_ns());
        self.count_down();
        while !self.must_leave() {
            // Under load there is nothing to wait for; but kept connections must not starve.
            let mut accepted = None;
            if self.rounds < MOST_ROUNDS {
                accepted = self.next_in_line();
            }
            if accepted.is_none() && self.pressed && self.rounds < MOST_ROUNDS {
                if self.stint.length >= STINT {
                    let _ = nix::sched::sched_yield();
                    self.stint = Stint::default();
                }
                accepted = self.accept();
                self.pressed = accepted.is_some();
            }
            match accepted {
                Some(conn) => {
                    self.rounds += 1;
                    self.attend(conn, None);
                }
                None => self.wait(),
            }
        }
        // Those in the queue have been taken from the listener: nobody would find them there. Who comes later finds others, if
        // this worker alone was told to stop. What it has given to the master itself comes back there.
        if self.is_last() {
            worker.ask_to_be_heard();
        }
        let end = monotonic_ns();
        while self.is_last()
            && let Some((conn, queued)) = self.next_in_queue()
        {
            self.attend(conn, None);
            if queued > end {
                break;
            }
        }
        self.left = true;
        slot.set_stage(Stage::Left, monotonic_ns());
        if worker.board.header().draining.load(SeqCst) == 0 {
            // Its place is free.
            self.worker.ring();
        }
        if self.is_last() {
            let until = Instant::now() + LAST_WORD;
            let new = self.parked.values_mut().filter(|parked| parked.is_new());
            new.for_each(|parked| parked.deadline = parked.deadline.into_iter().chain([until]).min());
        }
        self.clear_waiting_room();
        self.step_out();
        let _ = worker.epoll.delete(&worker.link);
        self.pass_on();
        // Replies that are still on their way to a slow reader, as closing now could reset them; and the last to be heard.
        while !self.parked.is_empty() {
            self.wait();
            self.clear_waiting_room();
        }
        Ok(())
    }

    /// Begins to wait for connections, behind whoever does so already: the kernel wakes the first of them that is idle.
    fn queue_up(&self) -> Result<(), Errno> {
        let (epoll, exclusive) = (&self.worker.epoll, EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE);
        for listener in &self.worker.listeners {
            epoll.add(listener, EpollEvent::new(exclusive, LISTENER))?;
        }
        epoll.add(&self.worker.queue, EpollEvent::new(exclusive, QUEUE))
    }

    fn step_out(&self) {
        for listener in &self.worker.listeners {
            let _ = self.worker.epoll.delete(listener);
        }
        let _ = self.worker.epoll.delete(&self.worker.queue);
    }

    /// Who has a kept connection goes to the end, so that the next one comes to who has none. Else the first in line would take them
    /// all, and send them all to the master with each request on one of them.
    fn step_back(&mut self) {
        let now = Instant::now();
        if self.last_step.is_some_and(|at| now < at + STEP_EVERY) {
            return;
        }
        self.last_step = Some(now);
        self.step_out();
        if let Err(error) = self.queue_up() {
            give_up(&format!("epoll: {error}"));
        }
    }

    /// A spare is ready and accepts nothing, until the place of a worker that leaves is free.
    fn hold_back(&mut self) {
        let held = |worker: &Worker| worker.control().hold.load(SeqCst) != 0;
        if !held(self.worker) {
            return;
        }
        self.worker.slot().set_stage(Stage::Held, monotonic_ns());
        self.worker.ring();
        while held(self.worker) && !self.must_leave() {
            self.wait();
        }
    }

    /// Says in time that the number of its requests comes to its end.
    fn count_down(&mut self) {
        let most = self.worker.max_requests;
        if most > 0 && self.served + (most / 10).max(LAST_REQUESTS) >= most {
            self.wear(Wear::Soon);
        }
    }

    fn wear(&mut self, wear: Wear) {
        if self.wear < wear {
            self.wear = wear;
            self.worker.slot().set_wear(wear);
            self.worker.ring();
        }
    }

    /// When it is too old; None is never, or long known.
    fn too_old_at(&self) -> Option<Instant> {
        let age = self.worker.recycle_age;
        self.born
            .filter(|_| !age.is_zero() && self.wear < Wear::Over)
            .map(|born| born + age)
    }

    /// The kernel wakes one idle worker for a connection. If it was this one, while it was asked to leave, nobody else will be
    /// woken for it: the master finds somebody. What nobody was woken for is left to others, who come by in order.
    fn pass_on(&mut self) {
        let undone = std::mem::take(&mut self.undone);
        let stopping = self.worker.board.header().draining.load(SeqCst) == STOPPING || signals::told_to_stop();
        if stopping || self.worker.orphaned.get() {
            return; // nobody is left to pass it to; it waits for the pool's next start, if somebody else holds the socket
        }
        if undone.contains(&LISTENER)
            && let Some(mut conn) = self.accept()
        {
            conn.began = monotonic_ns();
            self.give_away(conn, None);
        }
        if undone.contains(&QUEUE)
            && let Some(conn) = self.take_from_queue().ok().and_then(|got| self.resume(got))
        {
            self.give_away(conn, None);
        }
    }

    /// Who has waited longest at a full pool.
    fn next_in_line(&mut self) -> Option<Conn> {
        if self.worker.board.header().line.load(Relaxed) == 0 {
            return None;
        }
        self.next_in_queue().map(|(conn, _)| conn)
    }

    /// The next one in the queue whose client has not left meanwhile (a script must not run for nobody), and since when it
    /// waits there.
    fn next_in_queue(&mut self) -> Option<(Conn, u64)> {
        loop {
            if !self.has_room() {
                return None;
            }
            let received = match self.take_from_queue() {
                Ok(received) => received,
                Err(ChannelError::Closed) => {
                    self.worker.orphaned.set(true);
                    return None;
                }
                Err(_) => return None,
            };
            let queued = received.message.queued;
            let conn = self.resume(received)?;
            if !conn.is_abandoned() {
                return Some((conn, queued));
            }
            self.worker.put_by(conn.into_memory());
        }
    }

    /// A connection of the queue: one that finds no descriptor free here is closed by the kernel, and lost.
    fn take_from_queue(&mut self) -> Result<Received<Handover>, ChannelError> {
        if !self.has_descriptor() {
            let waiting = self.parked.len();
            self.clear_waiting_room();
            self.starve(waiting);
        }
        match self.has_descriptor() {
            true => self.worker.queue.receive(false),
            false => Err(ChannelError::WouldBlock),
        }
    }

    /// Whether a descriptor is free. Where no connection waits here one is: that of the last one, if its script has not let go of it.
    fn has_descriptor(&mut self) -> bool {
        if self.let_go || !self.parked.is_empty() {
            self.let_go = rustix::io::fcntl_dupfd_cloexec(self.wake, 0).is_err();
            return !self.let_go;
        }
        true
    }

    /// No descriptor was free, and `waiting` connections had some. If scripts keep the others, the next one is another worker's.
    fn starve(&mut self, waiting: usize) {
        if waiting < self.most_parked / 2 && self.served > 0 && !std::mem::replace(&mut self.leaving, true) {
            let text = "scripts keep all descriptors of this worker: it is replaced";
            print_log(Level::Warning, false, text.as_bytes(), self.worker.pool.log_limit);
        }
    }

    /// Whether no worker may come after this one: the pool stops, or the master is gone. SIGTERM says that, too, and may be
    /// here before the master has wholly ended.
    fn is_the_end(&self) -> bool {
        while !self.worker.orphaned.get() {
            match self.worker.link.receive(false) {
                Ok(received) => self.worker.told.borrow_mut().push(received.message),
                Err(ChannelError::Closed) => self.worker.orphaned.set(true),
                Err(_) => break,
            }
        }
        let stopping = self.worker.board.header().draining.load(SeqCst) == STOPPING || signals::told_to_stop();
        stopping || self.worker.orphaned.get()
    }

    /// The same, once and for all.
    fn is_last(&mut self) -> bool {
        self.last |= self.is_the_end();
        self.last
    }

    /// A connection as somebody else has left it.
    fn resume(&mut self, received: Received<Handover>) -> Option<Conn> {
        let fd = received.fds.into_iter().next()?;
        let mut conn = self.worker.connection(fd);
        if self.worker.tcp && self.worker.pool.access_log {
            conn.ask_peer();
        }
        let Handover {
            bytes,
            kept,
            since,
            owed,
            ..
        } = received.message;
        conn.resume(&bytes, kept, owed);
        // What has begun has a limit, whoever began to read it.
        conn.began = if since == 0 && !bytes.is_empty() {
            monotonic_ns()
        } else {
            since
        };
        Some(conn)
    }

    fn must_leave(&mut self) -> bool {
        let (worker, header) = (self.worker, self.worker.board.header());
        for message in worker.told.take() {
            self.hear(message);
        }
        self.leaving |= signals::asked_to_leave()
            || worker.orphaned.get()
            || header.draining.load(SeqCst) != 0
            || worker.control().drain.load(SeqCst) != 0
            || (worker.max_requests > 0 && self.served >= worker.max_requests);
        if self.too_old_at().is_some_and(|at| at <= Instant::now()) {
            self.wear(Wear::Over);
        }
        self.leaving
    }

    fn hear(&mut self, message: ToWorker) {
        match message {
            ToWorker::Drain => self.leaving = true,
            ToWorker::Go | ToWorker::Serve | ToWorker::Status(_) | ToWorker::LongStatus | ToWorker::Heard => {}
        }
    }

    fn accept(&mut self) -> Option<Conn> {
        if !self.has_room() {
            return None;
        }
        let worker: &'static Worker = self.worker;
        let listeners = &worker.listeners;
        // Under load none of several may starve another.
        self.turn = (self.turn + 1) % listeners.len().max(1);
        let (later, first) = listeners.split_at(self.turn);
        first
            .iter()
            .chain(later)
            .find_map(|listener| self.accept_from(listener))
    }

    fn accept_from(&mut self, listener: &OwnedFd) -> Option<Conn> {
        use std::os::fd::FromRawFd;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        match accept4(listener.as_raw_fd(), flags) {
            Ok(fd) => {
                // SAFETY: accept4 has just made this descriptor.
                let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                let mut conn = self.worker.connection(fd);
                if self.worker.tcp && (self.worker.pool.allowed_clients.is_some() || self.worker.pool.access_log) {
                    conn.ask_peer();
                    if !self.is_allowed(&conn) {
                        return None;
                    }
                }
                Some(conn)
            }
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => None,
            Err(error) => {
                // Out of descriptors or memory, which those that wait here have.
                let waiting = self.parked.len();
                self.clear_waiting_room();
                if error == Errno::EMFILE {
                    self.starve(waiting);
                }
                if self.parked.len() < waiting {
                    return self.accept_from(listener);
                }
                let text = format!("a connection could not be accepted: {error}");
                print_log(Level::Error, false, text.as_bytes(), self.worker.pool.log_limit);
                // It may pass.
                std::thread::sleep(Duration::from_millis(20));
                None
            }
        }
    }

    fn is_allowed(&mut self, conn: &Conn) -> bool {
        if !std::mem::replace(&mut self.clients_checked, true) {
            self.complain_of_clients();
        }
        let (Some(list), Some(peer)) = (&self.worker.pool.allowed_clients, conn.peer) else {
            return true;
        };
        let allowed = list.iter().any(|network| network.contains(peer));
        if !allowed {
            let text = format!("Connection disallowed: IP address '{peer}' has been dropped.");
            print_log(Level::Error, false, text.as_bytes(), self.worker.pool.log_limit);
        }
        allowed
    }

    /// What is wrong with `listen.allowed_clients`, once, when it begins to matter (php-fpm's lines).
    fn complain_of_clients(&self) {
        let pool = &self.worker.pool;
        let wrong = pool.allowed_clients_wrong.iter();
        let mut lines: Vec<String> = wrong
            .map(|entry| format!("Wrong IP address '{entry}' in listen.allowed_clients"))
            .collect();
        if pool.allowed_clients.as_ref().is_some_and(Vec::is_empty) {
            lines.push("There are no allowed addresses".to_owned());
        }
        for line in lines {
            print_log(Level::Error, false, line.as_bytes(), pool.log_limit);
        }
    }

    /// Does what a connection has to say; `token` is that of its registration.
    fn attend(&mut self, mut conn: Conn, token: Option<u64>) {
        let (new, mut answered) = (token.is_none(), false);
        let (mut until, mut turn) = (None, None);
        let mut between = Between::default();
        loop {
            match conn.next() {
                // The next request takes its client some time: a look would be in vain.
                Ok(Event::NeedMore)
                    if answered && conn.input.is_idle() && !conn.has_unread() && !conn.input.is_owed_a_body() =>
                {
                    (conn.began, conn.owed_since) = (0, 0);
                    return self.park(conn, token, Wait::Request);
                }
                Ok(Event::NeedMore) => {
                    if !conn.has_begun() {
                        conn.began = 0;
                    }
                    match (conn.input.is_owed_a_body(), conn.owed_since) {
                        (true, 0) => conn.owed_since = monotonic_ns(),
                        (true, _) => {}
                        (false, _) => conn.owed_since = 0,
                    }
                    match between.end(&conn, &self.worker.pool) {
                        None => {}
                        Some(End::Linger) => return self.finish(conn, token),
                        Some(End::Close) => return self.close(conn, token),
                    }
                    let filled = match (new, answered) {
                        (true, false) => self.fill_new(&mut conn, &mut until),
                        // It has waited for its first request.
                        (false, false) if !conn.kept => conn.fill_but_the_last(),
                        _ => conn.fill(),
                    };
                    match filled {
                        Ok(Some(count)) => {
                            if conn.began == 0 {
                                conn.began = monotonic_ns();
                            }
                            between.came(count);
                        }
                        Ok(None) => return self.park(conn, token, Wait::Request),
                        Err(_) => return self.close(conn, token),
                    }
                }
                Ok(Event::Request(begin)) => {
                    let Some((back, lost, keep)) = self.serve(conn, begin) else {
                        return;
                    };
                    conn = back;
                    if lost.is_some() {
                        return self.close(conn, token);
                    }
                    if !keep {
                        return self.finish(conn, token);
                    }
                    conn.answered();
                    if self.must_leave() {
                        return self.give_away(conn, token);
                    }
                    (answered, between) = (true, Between::default());
                    // Who says everything at once has a turn as everybody has.
                    if conn.has_unread() && conn.pending() <= QUEUE_BYTES / 2 && self.has_had_its_turn(&mut turn) {
                        match self.worker.hand_over(conn, false) {
                            Some(back) => conn = back,
                            None => return,
                        }
                    }
                }
                Ok(Event::Stdin(_) | Event::StdinEnd) => {}
                Ok(event) => {
                    let timeout = self.worker.pool.response_write_timeout;
                    self.aside.begin(0);
                    answer_aside(&mut self.aside, &event, self.worker.pool.max_children);
                    if self.aside.send(&conn, timeout).is_err() {
                        return self.close(conn, token);
                    }
                    if matches!(
                        event,
                        Event::Abort { keep: false, .. } | Event::UnknownRole { keep: false, .. }
                    ) {
                        return self.finish(conn, token);
                    }
                    // Nothing of a request is there: the client may take its time.
                    if conn.input.is_idle() && !conn.has_unread() {
                        (conn.began, conn.kept) = (0, true);
                    }
                }
                Err(_) => return self.close(conn, token),
            }
        }
    }

    /// Whether a connection whose next request is there is to make room for others; `turn` is when that one was there first.
    fn has_had_its_turn(&self, turn: &mut Option<Instant>) -> bool {
        let now = Instant::now();
        let begun = *turn.get_or_insert(now);
        self.worker.board.header().line.load(Relaxed) != 0 || now.duration_since(begun) >= TURN
    }

    /// Reads of a new connection's first request. A moment of waiting, which ends at `until`, costs less than the waiting room, from where
    /// it would cross the master before this worker's next request. None: nothing came.
    fn fill_new(&mut self, conn: &mut Conn, until: &mut Option<Instant>) -> Result<Option<usize>, Lost> {
        let filled = conn.fill_first()?;
        if filled.is_some() {
            return Ok(filled);
        }
        let now = Instant::now();
        let patient = self.parked.is_empty() && self.hasty_until.is_none_or(|until| until <= now);
        let until = *until.get_or_insert(now + if patient { A_MOMENT } else { AN_INSTANT });
        let left = until.saturating_duration_since(now);
        self.stint = Stint::default();
        if !left.is_zero() && conn.await_first(left, [self.worker.link.as_fd(), self.wake]) > 0 {
            return conn.fill_but_the_last();
        }
        if patient {
            self.hasty_until = Some(now + HASTE);
        }
        Ok(None)
    }

    /// Runs one request; None: its script let go of the connection.
    fn serve(&mut self, mut conn: Conn, begin: Begin) -> Option<(Conn, Option<Lost>, bool)> {
        let (worker, header) = (self.worker, self.worker.board.header());
        // What waits here would wait for as long as this request takes.
        if !self.parked.is_empty() {
            self.clear_waiting_room();
        }
        conn.renew_patience();
        let slot = worker.slot();
        let now = monotonic_ns();
        self.stint.begins(now);
        let started = if conn.began == 0 { now } else { conn.began };
        slot.started.store(started, Relaxed);
        slot.started_epoch.store(realtime_us(), Relaxed);
        slot.since.store(now, Relaxed);
        slot.requests.fetch_add(1, Relaxed);
        if let Some(access) = &mut *worker.access.borrow_mut() {
            access.begin();
        }
        let mut exchange = Exchange::new(worker, begin, conn, std::mem::take(&mut self.memory));
        exchange.publish();
        if let Some(wait) = exchange.waited() {
            slot.waits.add(&TIMES, wait);
        }
        if header.request_begins(slot) {
            worker.ring();
        }

        let retire = php::serve(&mut exchange);

        let now = monotonic_ns();
        self.stint.lasts(now);
        let duration = now.saturating_sub(started);
        slot.duration.store(duration, Relaxed);
        slot.busy.fetch_add(duration, Relaxed);
        slot.durations.add(&TIMES, duration / 1000);
        slot.memories.add(&SIZES, slot.memory.load(Relaxed));
        slot.finished.fetch_add(1, Relaxed);
        slot.cpu.store(self.cpu.of_request(duration), Relaxed);
        worker.stop_counting();
        slot.set_stage(if self.left { Stage::Left } else { Stage::Idle }, now);
        self.served += 1;
        self.leaving |= retire;
        self.count_down();
        if self.has_grown() {
            self.wear(Wear::Over);
        }

        let Over { conn, keep, memory } = exchange.over();
        self.memory = memory;
        self.let_go |= conn.is_none();
        let released = worker.released.take().map(|conn| (conn, None));
        conn.or(released).map(|(conn, lost)| (conn, lost, keep))
    }

    /// Whether the private memory is beyond `worker.recycle_memory`.
    fn has_grown(&self) -> bool {
        let limit = self.worker.pool.recycle_memory;
        if limit == 0 || self.wear == Wear::Over {
            return false;
        }
        // Pages: total, resident, shared, … Within a chroot there is no /proc, and no recycling by memory.
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let mut pages = statm.split(' ').skip(1).map(|word| word.parse().unwrap_or(0u64));
        let private = pages.next().unwrap_or(0).saturating_sub(pages.next().unwrap_or(0)) * 4096;
        // What a script has given back is kept for the next one.
        private.saturating_sub(php::heap::spare() as u64) > limit
    }

    /// Waits for anything.
    fn wait(&mut self) {
        self.stint = Stint::default();
        let busy = self.rounds >= MOST_ROUNDS;
        self.rounds = 0;
        let mut events = [EpollEvent::empty(); 16];
        let first = self.parked.values().filter_map(|parked| parked.deadline).min();
        let mut timeout = first.map(|at| at.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        if let Some(at) = self.too_old_at() {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            timeout = Some(timeout.map_or(left, |timeout| timeout.min(left)));
        }
        let spare = php::heap::spare() > 0;
        if spare {
            timeout = Some(timeout.map_or(SPARE_MEMORY, |timeout| timeout.min(SPARE_MEMORY)));
        }
        let timeout = match timeout {
            _ if busy => EpollTimeout::ZERO,
            Some(time) => EpollTimeout::try_from(time).unwrap_or(EpollTimeout::NONE),
            None => EpollTimeout::NONE,
        };
        let count = match self.worker.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => give_up(&format!("epoll: {error}")),
        };
        if spare && count == 0 && !busy {
            php::heap::release();
        }
        let events = &mut events[..count];
        // Nobody else was woken for what waits there, and a kept connection can be passed on.
        events.sort_unstable_by_key(EpollEvent::data);
        let line = self.worker.board.header().line.load(Relaxed) != 0;
        for event in events {
            // This look was for the kept ones; those in line come next, and then who comes.
            if busy && line && matches!(event.data(), LISTENER | QUEUE) {
                continue;
            }
            self.handle(event.data());
        }
        let now = Instant::now();
        if first.is_some_and(|first| first <= now) {
            let late = |parked: &Parked| parked.deadline.is_some_and(|at| at <= now);
            let tokens: Vec<u64> = self
                .parked
                .iter()
                .filter(|(_, p)| late(p))
                .map(|(token, _)| *token)
                .collect();
            for token in tokens {
                let Some(parked) = self.parked.remove(&token) else {
                    continue;
                };
                match parked.wait {
                    Wait::Request => self.close(parked.conn, Some(token)),
                    // What has come while a request ran here has not been looked at.
                    Wait::Close(_) => self.put_up_with(token, parked),
                }
            }
        }
    }

    fn handle(&mut self, token: u64) {
        match token {
            // Once a new generation is said to be ready, no request goes to the old one.
            LISTENER | QUEUE if self.must_leave() => self.undone.push(token),
            LISTENER => {
                if let Some(conn) = self.accept() {
                    self.woken = self.woken.wrapping_add(1);
                    self.pressed |= self.woken.is_multiple_of(LOOK_EVERY);
                    self.attend(conn, None);
                } else if self.leaving {
                    self.undone.push(token);
                }
            }
            QUEUE => {
                if let Some((conn, _)) = self.next_in_queue() {
                    self.attend(conn, None);
                } else if self.leaving {
                    self.undone.push(token);
                }
            }
            LINK => match self.worker.link.receive(false) {
                Ok(received) => {
                    self.worker.told.borrow_mut().push(received.message);
                    // Another may have died who was woken for a connection that is still there.
                    self.pressed = true;
                }
                Err(ChannelError::Closed) => self.worker.orphaned.set(true),
                Err(_) => {}
            },
            WAKE => signals::clear_wake(),
            token => {
                let Some(parked) = self.parked.remove(&token) else {
                    return;
                };
                match parked.wait {
                    Wait::Request => self.attend(parked.conn, Some(token)),
                    Wait::Close(_) => self.put_up_with(token, parked),
                }
            }
        }
    }
}
