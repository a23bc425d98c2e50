//! What all parts of a master share.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;

use super::backlog::Diag;
use super::cgroup::Cgroup;
use super::desk::Mailbox;
use super::herald::Herald;
use super::output::Patience;
use super::upgrade::Program;
use super::watch::Events;
use crate::api::{Answer, Happened};
use crate::cli::Launch;
use crate::log::Logger;

/// What the master is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Serve.
    Normal,
    /// End when the requests are done (SIGQUIT).
    Finishing,
    /// End when the requests are done (SIGTERM).
    Terminating,
    /// End now (a second SIGTERM).
    Killing,
}

/// Shared by everything that runs in the master's thread.
#[derive(Debug)]
pub struct Context {
    /// The error log.
    pub log: Logger,
    /// The command line.
    pub launch: Launch,
    /// What runs here.
    pub program: Program,
    /// The way to the loop.
    pub events: Events,
    /// For the length of queues.
    pub diag: Diag,
    /// stderr as it was at the start, for an access log that names it.
    pub stderr: Option<File>,
    /// What the master is about to do.
    pub state: Cell<State>,
    /// The limit of open files as it was at the start: that of zygotes.
    pub open_files: rustix::process::Rlimit,
    /// Each pool's queue has it: so many share what descriptors there are.
    pub queues: Rc<()>,
    /// How long the loop may wait for what pools print.
    pub patience: Rc<RefCell<Patience>>,
    /// The control groups; None where there are none.
    pub cgroup: Option<Rc<Cgroup>>,
    /// The bus service, which wants to know it too.
    herald: Option<Herald>,
    /// Who wants to know what happens.
    watchers: RefCell<Vec<Mailbox>>,
    next: Cell<u64>,
}

impl Context {
    /// Makes one.
    pub fn new(
        log: Logger,
        launch: Launch,
        events: Events,
        stderr: Option<File>,
        open_files: rustix::process::Rlimit,
        cgroup: Option<Rc<Cgroup>>,
    ) -> Self {
        let herald = launch.events.as_deref().and_then(Herald::new);
        Self {
            log,
            launch,
            herald,
            program: Program::running(),
            events,
            diag: Diag::new(),
            stderr,
            state: Cell::new(State::Normal),
            open_files,
            queues: Rc::default(),
            patience: Rc::default(),
            cgroup,
            watchers: RefCell::default(),
            next: Cell::new(1),
        }
    }

    /// A number that no worker, generation or pool has had.
    pub fn number(&self) -> u64 {
        self.next.replace(self.next.get() + 1)
    }

    /// The next of these numbers.
    pub fn next_number(&self) -> u64 {
        self.next.get()
    }

    /// Goes on with a predecessor's numbers.
    pub fn go_on_from(&self, next: u64) {
        self.next.set(next);
    }

    /// Tells a client of all that happens from now on.
    pub fn watch_with(&self, mailbox: Mailbox) {
        let mut watchers = self.watchers.borrow_mut();
        // Where nothing happens nobody else sees that one has left.
        watchers.retain(|mailbox| !mailbox.is_closed());
        watchers.push(mailbox);
    }

    /// Something has happened. A client that does not read misses it.
    pub fn happened(&self, what: &Happened) {
        if let Some(herald) = &self.herald {
            herald.tell(what);
        }
        self.watchers.borrow_mut().retain(|mailbox| {
            let _ = mailbox.try_send(Answer::Event(what.clone()));
            !mailbox.is_closed()
        });
    }

    /// A random number of 0 to 1, good enough to spread things.
    pub fn jitter(&self) -> f64 {
        (RandomState::new().hash_one(self.next.get()) >> 11) as f64 / (1u64 << 53) as f64
    }
}
