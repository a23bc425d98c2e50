//! A generation: one zygote, its scoreboard, and the workers forked from it.
#![forbid(unsafe_code)]

mod births;
mod deaths;
mod drain;
mod save;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::access_log::{AccessLog, Following};
use super::context::Context;
use super::foreign::Closer;
use super::listen::Listener;
use super::output::{Output, Reader};
use super::process::Process;
use super::queue::Queue;
use super::recycle;
use super::stamp::Files;
use super::trace::{Threads, Traceable};
use super::users::Identity;
use super::watch::{self, Place, Watch};
use super::worker::Worker;
use super::zygote::{self, Parts, Zygote, ZygoteError};
use crate::config::{Global, Pool};
use crate::control::{ToWorker, ToZygote};
use crate::log::Level;
use crate::pm::{Idle, Snapshot, WorkerId};
use crate::scoreboard::{Scoreboard, SlotView, Stage, TraceLayout};

pub use births::Errand;
pub use deaths::{Death, LAST_WORDS, Totals};
pub use drain::Drain;
pub use save::SavedGeneration;

/// Where a generation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Life {
    /// PHP is starting up.
    Starting,
    /// It serves.
    Ready,
    /// Its zygote has ended; its workers may go on.
    Ended,
}

/// A generation. Its workers see their links close when this goes, finish their requests and leave.
#[derive(Debug)]
pub struct Generation {
    /// Its name.
    pub place: Place,
    /// What it was configured with.
    pub config: Rc<Pool>,
    /// Who its workers are.
    pub identity: Identity,
    /// What it listens on.
    pub listeners: Vec<Rc<Listener>>,
    /// Where it stands.
    pub life: Life,
    /// When its start began.
    pub begun: Duration,
    /// Its scoreboard.
    pub board: Arc<Scoreboard>,
    /// Its lines are written to the access log.
    following: Option<Following>,
    /// Its workers.
    pub workers: BTreeMap<WorkerId, Worker>,
    /// Set while it drains.
    pub drain: Option<Drain>,
    /// Set once the zygote was told to end; it is killed then.
    pub quit: Option<Duration>,
    /// Where its PHP keeps what a tracer reads; as it was before the code of any request could write over it.
    pub trace_layout: TraceLayout,
    /// PHP's version.
    pub php: String,
    /// `expose_php`: whether clients may know it.
    pub exposed: bool,
    /// libphp, extensions and what they need, as they were when it was ready.
    pub mapped: Files,
    pub(super) ctx: Rc<Context>,
    zygote: Zygote,
    closer: Closer,
    reader: Reader,
    /// The worker that the zygote is to make next, and since when it has been that one.
    awaited: Option<(WorkerId, Duration)>,
    /// Workers that were not accepted.
    refused: u32,
    free: BTreeSet<u32>,
    bell: Rc<OwnedFd>,
    _ringing: Watch,
}

impl Generation {
    /// Starts one.
    ///
    /// # Errors
    /// When its zygote cannot be executed.
    #[allow(clippy::too_many_arguments, reason = "a generation is made from all that a pool has")]
    pub fn start(
        ctx: &Rc<Context>,
        place: Place,
        global: &Global,
        config: &Rc<Pool>,
        identity: &Identity,
        listeners: &[Rc<Listener>],
        queue: &Queue,
        access_log: Option<&Rc<AccessLog>>,
        compiled: Option<OwnedFd>,
    ) -> Result<Self, ZygoteError> {
        let make = |what| move |error| ZygoteError::Make(what, error);
        // Spares are beyond it, and those that leave may still be there when their replacements come.
        let slots = config.pm_max_children.saturating_mul(2).saturating_add(2);
        let board = Scoreboard::create(slots as usize)
            .map_err(|error| ZygoteError::Make("its scoreboard", io::Error::other(error)))?;
        let bell = watch::new_bell().map_err(make("its bell"))?;
        let clone = |fd: std::os::fd::BorrowedFd| fd.try_clone_to_owned().map_err(make("a descriptor"));
        let fds = [
            clone(board.fd())?,
            clone(queue.workers().as_fd())?,
            clone(bell.as_fd())?,
            match access_log {
                Some(log) => log.bell().map_err(make("a descriptor"))?,
                None => clone(bell.as_fd())?,
            },
        ];
        let parts = Parts {
            global,
            pool: config,
            identity,
            listeners,
            fds,
            compiled,
            closer: queue.closer(),
            reader: queue.reader(),
        };
        let board = Arc::new(board);
        let following = access_log
            .map(|log| log.follow(place, &board, &ctx.events))
            .transpose()
            .map_err(make("the thread of its access log"))?;
        let zygote = Zygote::start(ctx, place, parts)?;
        let bell = Rc::new(bell);
        let ringing = watch::bell(&bell, &ctx.events, place).map_err(make("a registration"))?;
        Ok(Self {
            place,
            config: config.clone(),
            identity: identity.clone(),
            listeners: listeners.to_vec(),
            life: Life::Starting,
            begun: watch::now(),
            board,
            following,
            workers: BTreeMap::new(),
            drain: None,
            quit: None,
            trace_layout: TraceLayout::default(),
            php: String::new(),
            exposed: zygote.says.exposes_php,
            mapped: Files::default(),
            ctx: ctx.clone(),
            zygote,
            closer: queue.closer().clone(),
            reader: queue.reader().clone(),
            awaited: None,
            refused: 0,
            free: (0..slots).collect(),
            bell,
            _ringing: ringing,
        })
    }

    /// Where its workers' lines go.
    pub fn access_log(&self) -> Option<&Rc<AccessLog>> {
        self.following.as_ref().map(Following::log)
    }

    /// Whether one that is started now would be the same: no file that it was made from has changed.
    pub fn is_up_to_date(&self) -> bool {
        // What is preloaded is the pool's own code, and may be any number of files.
        !self.zygote.says.preloads
            && zygote::files_now(&self.ctx, &self.config).is_some_and(|now| now == self.zygote.files)
            && self.mapped.are_unchanged()
    }

    /// What a tracer needs to know of its workers.
    pub fn traceable<'a>(&self, threads: &'a Threads) -> Traceable<'a> {
        Traceable {
            threads,
            workers: self.board.slots(),
            layout: self.trace_layout,
            program: self.zygote.program,
        }
    }

    /// Whether its zygote has taken all that it was told.
    pub fn has_all_orders(&self) -> bool {
        self.zygote.has_all_orders()
    }

    /// The way to the zygote.
    pub fn zygote_orders(&self) -> &tokio::sync::mpsc::Sender<(ToZygote, Vec<OwnedFd>)> {
        &self.zygote.orders
    }

    /// The zygote's process.
    pub fn zygote(&self) -> &Rc<Process> {
        &self.zygote.process
    }

    pub(super) fn log(&self, level: Level, text: impl std::fmt::Display) {
        self.ctx.log.pool(&self.config.name).log(level, text);
    }

    /// Has it name what its opcache holds; where that can be read.
    pub fn compiled(&self) -> Option<OwnedFd> {
        let (reader, writer) = std::io::pipe().ok()?;
        let order = (ToZygote::Name, vec![writer.into()]);
        self.zygote.orders.try_send(order).ok()?;
        Some(reader.into())
    }

    /// Whether this is one of its workers.
    pub fn has(&self, id: WorkerId) -> bool {
        self.workers.contains_key(&id)
    }

    /// Counts the workers into a snapshot.
    pub fn count(&self, snapshot: &mut Snapshot) {
        let header = self.board.header();
        let hint = header.active.load(SeqCst);
        for worker in self.workers.values() {
            if worker.held {
                recycle::count_spare(worker, &self.board, snapshot);
                continue;
            }
            if worker.left {
                // That it then ends changes nothing.
                continue;
            }
            let slot = self.board.slot(worker.slot as usize);
            let asked = worker.asked.or(worker.retired);
            recycle::count_wear(worker, slot, snapshot.now, &mut snapshot.recycling);
            match slot.stage() {
                Stage::Left if worker.asked.is_some() => {}
                // Its place is free when it has been noticed that it has left.
                Stage::Left => snapshot.ending += 1,
                // Until it is known how, it has its place: its zygote will tell in a moment.
                _ if worker.ended.is_some() => snapshot.ending += 1,
                Stage::None | Stage::Held => snapshot.starting += 1,
                Stage::Idle => snapshot.idle.push(Idle {
                    worker: worker.id,
                    started: worker.started,
                    since: Duration::from_nanos(slot.since.load(SeqCst)).min(snapshot.now),
                    asked,
                }),
                _ => {
                    snapshot.active += 1;
                    snapshot.active_asked += u32::from(asked.is_some());
                    let counted = slot.is_counted();
                    snapshot.counted += u32::from(counted);
                    snapshot.counted_asked += u32::from(counted && asked.is_some());
                }
            }
        }
        let peak = header.peak.swap(i64::from(snapshot.active), SeqCst);
        snapshot.peak = u32::try_from(peak)
            .unwrap_or(0)
            .clamp(snapshot.active, self.workers.len() as u32);
        if snapshot.active == 0 && hint as u32 != 0 {
            // Somebody was killed between the two words of a request's begin or end. Nobody has one now: the hint is
            // right unless it changes meanwhile.
            let _ = header.active.compare_exchange(hint, hint >> 32 << 32, SeqCst, SeqCst);
        }
    }

    /// When a worker last began anything, of those that have a request.
    pub fn last_begin(&self) -> Duration {
        let slots = self
            .workers
            .values()
            .map(|worker| self.board.slot(worker.slot as usize));
        let busy = slots.filter(|slot| slot.stage().is_active());
        // What a worker writes may be of the future.
        let since = busy.map(|slot| Duration::from_nanos(slot.since.load(SeqCst)).min(watch::now()));
        since.max().unwrap_or_default()
    }

    /// Has idle workers look at the queue and at the listener: whatever they are told, they look there.
    pub fn wake_idle(&self) {
        let is_idle = |worker: &&Worker| !worker.held && self.board.slot(worker.slot as usize).stage() == Stage::Idle;
        let idle = self.workers.values().filter(is_idle);
        idle.for_each(|worker| worker.tell(&ToWorker::Serve, &[]));
    }

    /// Asks a surplus worker to leave.
    pub fn ask(&mut self, id: WorkerId, now: Duration) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.asked = Some(now);
            worker.signal(Signal::SIGQUIT);
        }
    }

    /// Kills one that was asked and stays: soon when it refuses the signal, and late when it may only be that the machine is
    /// too busy to let it run.
    pub fn kill(&mut self, id: WorkerId, now: Duration) {
        const PATIENCE: Duration = Duration::from_secs(10);
        let Some(worker) = self.workers.get(&id) else { return };
        let refuses = |process: &Rc<Process>| process.refuses(Signal::SIGQUIT);
        if worker.process.as_ref().is_some_and(refuses)
            || worker.asked.or(worker.retired).is_some_and(|at| at + PATIENCE <= now)
        {
            worker.kill();
        }
    }

    /// What its processes have said until now into the log.
    pub fn read_output(&self) {
        let outputs = self.workers.values().filter_map(Worker::output);
        // Where one is late all are: they have one thread.
        let _ = std::iter::once(&self.zygote.output)
            .chain(outputs)
            .try_for_each(Output::read);
    }

    /// The views of all workers, in the order of their slots.
    pub fn views(&self) -> Vec<(&Worker, SlotView)> {
        let mut all: Vec<_> = self
            .workers
            .values()
            .map(|w| (w, self.board.view(w.slot as usize)))
            .collect();
        all.sort_by_key(|(worker, _)| worker.slot);
        all
    }
}
