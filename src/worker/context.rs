//! What a worker has: its pool's settings, its descriptors, its slot, and what it does with them for a request.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use nix::sys::epoll::Epoll;
use php_pool::access_log::Entry;
use php_pool::config::IniEntry;
use php_pool::control::{
    Channel, ChannelError, FromWorker, Handover, PoolSettings, Received, ToWorker, from_bytes, unsealed,
};
use php_pool::log::Level;
use php_pool::request_id;
use php_pool::scoreboard::{Control, Scoreboard, Slot, realtime_us};
use php_pool::status::{Snapshot, StatusPage};

use super::access::Access;
use super::conn::{self, Conn, Lost};
use super::exchange::Exchange;
use super::script::Settings;
use super::{php, print_log};

/// A worker's end of its link.
pub type Link = Channel<FromWorker, ToWorker>;

/// A pool's second listener.
pub type Queue = Channel<Handover, Handover>;

/// How long a worker waits for the master's answer.
const MASTER_ANSWERS: Duration = Duration::from_secs(5);

/// Everything a worker has but its connections.
pub struct Worker {
    /// Its pool.
    pub pool: PoolSettings,
    /// php_admin_value
    pub admin_values: Vec<IniEntry>,
    /// The generation's scoreboard.
    pub board: &'static Scoreboard,
    /// Its slot there.
    pub slot: usize,
    /// What it waits for: the link, the listener, the queue, its connections.
    pub epoll: Epoll,
    /// Its link to the master.
    pub link: Link,
    /// Connections from the master.
    pub queue: Queue,
    /// The listeners: one, but where systemd's socket unit has several addresses.
    pub listeners: Vec<OwnedFd>,
    /// Is one of them a TCP socket?
    pub tcp: bool,
    /// Rung when few workers are idle.
    pub bell: OwnedFd,
    /// Settings of script resolution.
    pub script_settings: Settings,
    /// Every request starts in the working folder.
    pub starts_at_home: bool,
    /// Requests after which it leaves; 0 is never.
    pub max_requests: u64,
    /// Names of requests that come without.
    pub ids: request_id::Source,
    /// Age at which it is to be replaced; zero is never.
    pub recycle_age: Duration,
    /// Renders the pool's state.
    pub status_page: RefCell<StatusPage>,
    /// The access log.
    pub access: RefCell<Option<Access>>,
    /// What the master said while something else was awaited.
    pub told: RefCell<Vec<ToWorker>>,
    /// A connection that the script under way let go of, and that could not go elsewhere yet.
    pub released: RefCell<Option<Conn>>,
    /// Memory of closed connections.
    pub spare: RefCell<Vec<conn::Memory>>,
    /// The master is gone.
    pub orphaned: Cell<bool>,
    /// The working folder, until a script runs in its own.
    pub home: PathBuf,
}

impl Worker {
    /// Its pool's settings.
    pub fn pool(&self) -> &PoolSettings {
        &self.pool
    }

    /// Its slot.
    pub fn slot(&self) -> &Slot {
        self.board.slot(self.slot)
    }

    /// What the master tells it there.
    pub fn control(&self) -> &Control {
        self.board.control(self.slot)
    }

    /// All that it has open, but the connections that it waits for; by number, for a copy of this process.
    pub fn descriptors(&self) -> impl Iterator<Item = i32> {
        let access = self.access.try_borrow().ok();
        let log = access
            .as_ref()
            .and_then(|access| Some(access.as_ref()?.fd().as_raw_fd()));
        let fixed = [
            self.epoll.0.as_fd(),
            self.queue.as_fd(),
            self.link.as_fd(),
            self.bell.as_fd(),
            self.board.fd(),
        ];
        let released = self.released.try_borrow().ok();
        let released: Vec<i32> = released
            .iter()
            .flat_map(|one| one.iter())
            .map(|conn| conn.as_fd().as_raw_fd())
            .collect();
        let listeners = self.listeners.iter().map(AsRawFd::as_raw_fd);
        let fixed = fixed.map(|fd| fd.as_raw_fd()).into_iter();
        fixed.chain(listeners).chain(log).chain(released)
    }

    /// What scripts and web servers cannot set.
    pub fn admin_values(&self) -> &[IniEntry] {
        &self.admin_values
    }

    /// The pool's state, from the master; None when it does not answer.
    pub fn ask_status(&self) -> Option<Snapshot> {
        let answer = self.ask(&FromWorker::Status, |answer| {
            matches!(answer, ToWorker::Status(_) | ToWorker::LongStatus)
        })?;
        let message = match answer.message {
            ToWorker::LongStatus => from_bytes(&unsealed(answer.fds.first()?, usize::MAX)?).ok()?,
            message => message,
        };
        match message {
            ToWorker::Status(snapshot) => Some(*snapshot),
            _ => None,
        }
    }

    /// Waits until the master has heard all that this worker has said.
    pub fn ask_to_be_heard(&self) {
        self.ask(&FromWorker::Leaving, |answer| matches!(answer, ToWorker::Heard));
    }

    fn ask(&self, question: &FromWorker, answers: impl Fn(&ToWorker) -> bool) -> Option<Received<ToWorker>> {
        self.link.send(question, &[], true).ok()?;
        let deadline = Instant::now() + MASTER_ANSWERS;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if !super::readable(self.link.as_fd(), left) {
                return None;
            }
            let received = self.link.receive(false).ok()?;
            if answers(&received.message) {
                return Some(received);
            }
            self.told.borrow_mut().push(received.message);
        }
    }

    /// One line for a request that has been run.
    pub fn log_access(&self, exchange: &Exchange, now: u64, memory: u64) {
        let mut access = self.access.borrow_mut();
        let Some(access) = &mut *access else { return };
        let get = |name| exchange.params.get(name).unwrap_or_default();
        let user = exchange.user().unwrap_or_default();
        let slot = self.slot();
        let entry = Entry {
            accepted: slot.started_epoch.load(Relaxed),
            now: realtime_us(),
            duration: now.saturating_sub(slot.started.load(Relaxed)) / 1000,
            cpu_user: 0,
            cpu_system: 0,
            pid: access.worker,
            parent: access.master,
            pool: &self.pool.name,
            method: get("REQUEST_METHOD"),
            uri: exchange.script.uri.as_deref().unwrap_or_default(),
            query: if exchange.script.named {
                get("QUERY_STRING")
            } else {
                b""
            },
            script: exchange.script.path.as_deref().unwrap_or_default(),
            user: &user,
            id: exchange.id.as_bytes(),
            remote: exchange.peer,
            status: exchange.status,
            content_length: exchange.content_length(),
            memory,
            parameter: &|name| {
                std::str::from_utf8(name)
                    .ok()
                    .and_then(|name| exchange.params.get(name))
            },
            header: &|name| php::response_header(name),
        };
        if !access.write(entry, now, self.pool.log_limit) {
            self.ring();
        }
    }

    /// The master is to look.
    pub fn ring(&self) {
        let _ = nix::unistd::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// From now on this worker is as good as idle to the pool.
    pub fn stop_counting(&self) {
        self.board.header().request_ends(self.slot());
    }

    /// Ends the lines under way in the master's log, with php-fpm's own marker.
    pub fn end_lines(&self) {
        if self.pool.catch_output {
            let _ = nix::unistd::write(std::io::stderr(), b"\0fscf\0");
        }
    }

    /// A script works on, its client is served: the connection goes to the master, or is closed as far as can be. What can do
    /// neither waits for the script's end.
    pub fn release(&self, mut conn: Conn, lost: Option<Lost>, keep: bool) {
        if lost.is_some() {
            return;
        }
        let left = if keep {
            conn.answered();
            self.hand_over(conn, false)
        } else if conn.is_over() {
            self.put_by(conn.into_memory());
            None
        } else {
            conn.shut_down();
            Some(conn)
        };
        *self.released.borrow_mut() = left;
    }

    /// Keeps the memory of a connection for the next ones.
    pub fn put_by(&self, memory: conn::Memory) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() < 4 {
            spare.push(memory);
        }
    }

    /// A connection that nothing has been read of, in the memory of an earlier one.
    pub fn connection(&self, fd: OwnedFd) -> Conn {
        Conn::new(fd, self.spare.borrow_mut().pop().unwrap_or_default())
    }

    /// Gives a kept connection to the master, who wakes an idle worker when it has something to say. What comes back is still here: the
    /// kernel lets each user have so many descriptors under way, this pool's and whoever's else; and a master that takes none
    /// is waited for only by who `must` give it.
    pub fn hand_over(&self, conn: Conn, must: bool) -> Option<Conn> {
        if !self.orphaned.get() {
            let handover = Handover {
                bytes: conn.since_last(),
                kept: conn.kept || !conn.input.is_fresh(),
                since: conn.began,
                queued: 0,
                owed: conn.owed_since,
            };
            let message = FromWorker::Keep(handover);
            let sent = match must {
                true => self.link.deliver(&message, &[conn.as_fd()]),
                false => self.link.send(&message, &[conn.as_fd()], false),
            };
            match sent {
                Ok(_) => {}
                Err(ChannelError::WouldBlock) => return Some(conn),
                Err(error) => {
                    let text = format!("a kept connection could not be handed to the master: {error}");
                    print_log(Level::Warning, false, text.as_bytes(), self.pool.log_limit);
                    return Some(conn);
                }
            }
        }
        // Others have it, so that it stays open here as well as there, and would its registration.
        let _ = self.epoll.delete(&conn);
        self.put_by(conn.into_parts().1);
        None
    }
}
