//! A generation: one zygote, its scoreboard, and the workers forked from it.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::access_log::{self, AccessLog, Following};
use super::cgroup::Leaf;
use super::context::{Context, State};
use super::foreign::{Closer, Foreign};
use super::listen::{Listener, Sockets};
use super::process::Process;
use super::queue::Queue;
use super::saved::{Kept, Restorer, Saver};
use super::stamp::Files;
use super::trace::Traceable;
use super::users::Identity;
use super::watch::{self, GenerationId, Place, PoolId, Watch};
use super::worker::{SavedWorker, Worker, describe, describe_request, fields_of};
use super::zygote::{Parts, SavedZygote, Zygote, ZygoteError};
use crate::api::{Exits, Happened, Measures};
use crate::config::{Global, Pool};
use crate::control::{Exit, Spawn, ToWorker, ToZygote};
use crate::log::{Fields, Level, MessageId};
use crate::pm::{Idle, Snapshot, WorkerId};
use crate::scoreboard::{STOPPING, Scoreboard, SlotView, Stage, TraceLayout};

/// How long a worker's zygote may take to say how the worker ended: long, as on a busy machine it may have to wait for its turn.
const SAYS_HOW: Duration = Duration::from_secs(10);

/// How long the last messages of a worker, or of a zygote, may take to arrive: a process that it has left behind may hold its
/// link open.
pub const LAST_WORDS: Duration = Duration::from_secs(1);

/// A worker that lived so long, or served a request, did not die of its start.
const LIVED: Duration = Duration::from_secs(10);

/// So many workers that are not accepted end the conversation with their zygote. (One may have ended before it was looked at.)
const MOST_REFUSED: u32 = 3;

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

/// How the end of a drain is enforced.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Drain {
    /// Its begin.
    pub begun: Duration,
    /// SIGTERM, with leave to cut requests, then; None is never.
    pub limit: Option<Duration>,
    /// It was sent then.
    pub cut: Option<Duration>,
}

/// What became of a worker, for whoever decides about its replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    /// Nobody had asked it to leave.
    pub unasked: bool,
    /// It crashed, or was killed in a request: what it shares with others may be torn, a lock held for ever.
    pub suspect: bool,
    /// It came to nothing: it died soon and without having served.
    pub stillborn: bool,
}

/// What a worker is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// One more.
    Grow,
    /// In the place of one that ended unasked.
    Replace,
    /// To stand ready, and accept nothing yet.
    Spare,
}

/// Counters of workers that are gone.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Requests begun.
    pub requests: u64,
    /// Why they are gone.
    pub exits: Exits,
    /// What they have measured.
    pub measures: Measures,
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
    /// Workers that were not accepted.
    refused: u32,
    free: BTreeSet<u32>,
    bell: Rc<OwnedFd>,
    _ringing: Watch,
}

/// A generation, for a successor.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedGeneration {
    id: GenerationId,
    config: Pool,
    identity: Identity,
    /// The key of what it listens on.
    listener: String,
    /// Those of what it listens on beside.
    #[serde(default)]
    further: Vec<String>,
    life: Life,
    begun: Duration,
    board: Kept,
    /// The name of its access log.
    log: Option<Kept>,
    bell: Kept,
    workers: Vec<SavedWorker>,
    drain: Option<Drain>,
    quit: Option<Duration>,
    trace_layout: Vec<u64>,
    php: String,
    exposed: bool,
    mapped: Files,
    refused: u32,
    zygote: SavedZygote,
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
            refused: 0,
            free: (0..slots).collect(),
            bell,
            _ringing: ringing,
        })
    }

    /// What is to go on.
    pub fn save(&self, saver: &mut Saver) -> SavedGeneration {
        SavedGeneration {
            id: self.place.generation,
            config: (*self.config).clone(),
            identity: self.identity.clone(),
            listener: self.listeners[0].key(),
            further: self.listeners[1..].iter().map(|listener| listener.key()).collect(),
            life: self.life,
            begun: self.begun,
            board: saver.keep(&self.board.fd()),
            log: self.access_log().map(|log| log.name(saver)),
            bell: saver.keep(&*self.bell),
            workers: self.workers.values().map(|worker| worker.save(saver)).collect(),
            drain: self.drain,
            quit: self.quit,
            trace_layout: self.trace_layout.to_words().to_vec(),
            php: self.php.clone(),
            exposed: self.exposed,
            mapped: self.mapped.clone(),
            refused: self.refused,
            zygote: self.zygote.save(saver),
        }
    }

    /// Goes on with it.
    ///
    /// # Errors
    /// When a descriptor is missing, or the scoreboard is of another version.
    pub fn restore(
        ctx: &Rc<Context>,
        pool: PoolId,
        queue: &Queue,
        (sockets, logs): (&Sockets, &access_log::Restored),
        saved: SavedGeneration,
        fds: &mut Restorer,
    ) -> io::Result<Self> {
        let generation = saved.id;
        let place = Place { pool, generation };
        let (config, closer) = (Rc::new(saved.config), queue.closer());
        let board = Arc::new(Scoreboard::open(fds.take(saved.board)?).map_err(io::Error::other)?);
        let log = saved.log.and_then(|log| logs.get(&log));
        let following = log.map(|log| log.follow(place, &board, &ctx.events)).transpose()?;
        let zygote = Zygote::restore(ctx, place, &config, closer, saved.zygote, fds)?;
        let bell = Rc::new(fds.take(saved.bell)?);
        let ringing = watch::bell(&bell, &ctx.events, place)?;
        let mut free: BTreeSet<u32> = (0..board.slots() as u32).collect();
        let mut workers = BTreeMap::new();
        for worker in saved.workers {
            let worker = Worker::restore(ctx, place, &config, &board, closer, worker, fds)?;
            if !free.remove(&worker.slot) {
                return Err(io::Error::other("two workers have one slot of the scoreboard"));
            }
            workers.insert(worker.id, worker);
        }
        let layout = saved.trace_layout.try_into();
        Ok(Self {
            place,
            config,
            identity: saved.identity,
            listeners: sockets.all_known(&saved.listener, &saved.further)?,
            life: saved.life,
            begun: saved.begun,
            board,
            following,
            workers,
            drain: saved.drain,
            quit: saved.quit,
            trace_layout: layout.map_or_else(|_| TraceLayout::default(), TraceLayout::from_words),
            php: saved.php,
            exposed: saved.exposed,
            mapped: saved.mapped,
            refused: saved.refused,
            ctx: ctx.clone(),
            zygote,
            closer: closer.clone(),
            free,
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
            && super::zygote::files_now(&self.ctx, &self.config).is_some_and(|now| now == self.zygote.files)
            && self.mapped.are_unchanged()
    }

    /// What a tracer needs to know of its workers.
    pub fn traceable(&self) -> Traceable {
        Traceable {
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

    /// Whether it can make workers.
    pub fn can_spawn(&self) -> bool {
        self.life == Life::Ready && self.drain.is_none() && self.quit.is_none()
    }

    /// How many workers can be ordered: those that leave have their slots until they are gone.
    pub fn free_slots(&self) -> u32 {
        self.free.len() as u32
    }

    /// Orders a worker.
    ///
    /// # Errors
    /// A sentence.
    pub fn spawn(&mut self, errand: Errand) -> Result<(), String> {
        let slot = self
            .free
            .first()
            .copied()
            .ok_or("every slot of the scoreboard is taken")?;
        let number = self.ctx.number();
        let spawn = Spawn {
            worker: number,
            slot,
            max_requests: self.max_requests(),
            recycle_age: self.config.worker_recycle_age.mul_f64(1.0 - self.ctx.jitter() / 10.0),
        };
        let (mut worker, order) = Worker::prepare(&self.ctx, self.place, &self.config, spawn, &self.closer)
            .map_err(|error| format!("a worker's descriptors cannot be made: {}", crate::log::errno(&error)))?;
        self.zygote
            .orders
            .try_send(order)
            .map_err(|_| "the zygote does not listen")?;
        self.free.remove(&slot);
        worker.replaces = errand == Errand::Replace;
        worker.held = errand == Errand::Spare;
        self.board.slot(slot as usize).reset();
        self.board.control(slot as usize).drain.store(0, SeqCst);
        self.board.control(slot as usize).terminate.store(0, SeqCst);
        let hold = u32::from(errand == Errand::Spare);
        self.board.control(slot as usize).hold.store(hold, SeqCst);
        self.workers.insert(worker.id, worker);
        Ok(())
    }

    /// `pm.max_requests` of one worker: up to a tenth less, so that those of a pool are not recycled together.
    fn max_requests(&self) -> u64 {
        let most = self.config.pm_max_requests;
        most - (((most / 10) as f64 * self.ctx.jitter()) as u64).min(most.saturating_sub(10))
    }

    /// The zygote has made a worker and sent its pidfd.
    pub fn spawned(&mut self, id: WorkerId, fds: Vec<Foreign>) {
        let zygote = self.zygote.process.pid();
        let Some(worker) = self.workers.get(&id).filter(|worker| worker.process.is_none()) else {
            return self.break_off("it told of a worker that it was not asked for");
        };
        let replaces = worker.replaces;
        let problem = match fds
            .into_iter()
            .next()
            .ok_or_else(|| "it came without its descriptor".to_owned())
        {
            Ok(fd) => match Process::of_pidfd(fd.as_fd(), zygote) {
                Ok(process) if self.knows(process.pid()) => format!("it is worker {} again", process.pid()),
                Ok(process) => {
                    let pid = process.pid();
                    let (ctx, place, config) = (self.ctx.clone(), self.place, self.config.clone());
                    let worker = self.workers.get_mut(&id).expect("it was there a moment ago");
                    match worker.go(&ctx, place, &config, &self.board, process) {
                        Ok(()) => {
                            let level = if replaces { Level::Notice } else { Level::Debug };
                            return self.log(level, format_args!("child {pid} started"));
                        }
                        Err(error) => crate::log::errno(&error),
                    }
                }
                // It may have died before we looked; then its zygote says how.
                Err(_) if worker.exit.is_some() => return,
                Err(problem) => problem,
            },
            Err(problem) => problem,
        };
        self.log(
            Level::Warning,
            format_args!("a worker of zygote {zygote} is not accepted: {problem}"),
        );
        self.forget(id);
        self.refused += 1;
        if self.refused == MOST_REFUSED {
            self.break_off("what it calls workers are none");
        }
    }

    /// Has done with a zygote that does not keep to the protocol: it is hostile, or its memory is torn. Its workers go on. That is
    /// said once: more of the same may have been on its way.
    pub fn break_off(&mut self, what: &str) {
        if self.is_silent() {
            return;
        }
        let zygote = self.zygote.process.pid();
        let text = format!("zygote {zygote} does not keep to the protocol: {what}");
        self.ctx
            .log
            .pool(&self.config.name)
            .identified(MessageId::ZygoteReplaced)
            .warning(text);
        self.zygote.hang_up();
        self.zygote.process.signal(Signal::SIGKILL);
    }

    /// Nothing more is heard from it.
    pub fn hang_up(&mut self) {
        self.zygote.hang_up();
    }

    /// Whether all that its zygote will ever say has been heard.
    pub fn is_silent(&self) -> bool {
        self.zygote.is_silent()
    }

    /// Whether this is one of its workers.
    pub fn has(&self, id: WorkerId) -> bool {
        self.workers.contains_key(&id)
    }

    fn knows(&self, pid: i32) -> bool {
        self.workers.values().any(|worker| worker.pid() == Some(pid))
    }

    /// The zygote could not fork.
    pub fn not_spawned(&mut self, id: WorkerId, errno: i32) {
        if self.workers.get(&id).is_some_and(|worker| worker.process.is_none()) {
            let error = io::Error::from_raw_os_error(errno);
            self.log(
                Level::Error,
                format_args!("fork() failed: {}", crate::log::errno(&error)),
            );
            self.forget(id);
        }
    }

    /// The zygote's word on how a worker ended.
    pub fn exited(&mut self, id: WorkerId, exit: Exit) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.exit = Some(exit);
            match &worker.process {
                Some(process) if process.has_ended() => worker.ended = worker.ended.or(Some(watch::now())),
                Some(_) => {}
                // It died before its pidfd could be looked at.
                None => worker.ended = Some(watch::now()),
            }
        }
    }

    /// A worker has said its last word.
    pub fn hung_up(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.hung_up = true;
        }
    }

    /// A worker's process has ended.
    pub fn ended(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.ended = worker.ended.or(Some(watch::now()));
        }
    }

    /// Buries the workers that have ended and of which it is known how, or no longer waited for.
    pub fn bury(&mut self, now: Duration, totals: &mut Totals) -> Vec<Death> {
        let mut dead = Vec::new();
        for (id, worker) in &mut self.workers {
            let Some(ended) = worker.ended else { continue };
            if worker.exit.is_none()
                && let Some(process) = &worker.process
            {
                // The zygote may be gone, and the worker ours.
                worker.exit = process.wait();
            }
            let patience = if self.life == Life::Ended { LAST_WORDS } else { SAYS_HOW };
            let told = worker.exit.is_some() || ended + patience <= now;
            // With its last messages come the connections that it hands over: they must not go with it.
            let silent = worker.hung_up || ended + LAST_WORDS <= now;
            if told && silent {
                dead.push(*id);
            }
        }
        dead.into_iter().map(|id| self.bury_one(id, now, totals)).collect()
    }

    /// Whether the zygote has left an order undone for so long that it will never do it.
    pub fn hangs(&self, now: Duration) -> bool {
        const PATIENCE: Duration = Duration::from_secs(10);
        let undone = |worker: &Worker| worker.process.is_none() && worker.started + PATIENCE <= now;
        self.life == Life::Ready && self.workers.values().any(undone)
    }

    /// When [`Self::bury`] should be called again.
    pub fn next_burial(&self, now: Duration) -> Option<Duration> {
        let ended = self.workers.values().filter_map(|worker| worker.ended);
        ended
            .flat_map(|ended| [ended + LAST_WORDS, ended + SAYS_HOW])
            .filter(|at| *at > now)
            .min()
    }

    fn bury_one(&mut self, id: WorkerId, now: Duration, totals: &mut Totals) -> Death {
        let worker = &self.workers[&id];
        worker.drain_output();
        let view = self.board.view(worker.slot as usize);
        let lived = now.saturating_sub(worker.started);
        let exit = worker.exit;
        let by_quit = matches!(
            exit,
            Some(Exit::Signal {
                signal: libc::SIGQUIT,
                ..
            })
        );
        let orderly = by_quit || matches!(exit, Some(Exit::Code(0)));
        let leaving = worker.asked.is_some() && orderly;
        let pid = worker.pid().unwrap_or(0);
        let starved = worker.leaf.as_ref().is_some_and(|leaf| leaf.oom_kills() > 0);
        if let Some(leaf) = worker.leaf.as_ref().filter(|_| !orderly) {
            // What it has started ends with it; after an orderly end it lives on.
            leaf.kill();
        }
        let after = format!(
            "after {}.{:06} seconds from start",
            lived.as_secs(),
            lived.subsec_micros()
        );
        if leaving {
            let text = format!("child {pid} has been killed by the process management {after}");
            self.log(Level::Debug, text);
        } else {
            let quiet = self.drain.is_some() || self.ctx.state.get() != State::Normal;
            let level = match (orderly, quiet) {
                (_, true) => Level::Debug,
                (true, false) => Level::Notice,
                (false, false) => Level::Warning,
            };
            let mut text = format!("child {pid} exited {} {after}", describe(exit));
            if !orderly && view.is_active() {
                text += &format!(", {}", describe_request(&view));
            }
            if starved {
                text += "; the kernel ended it at its memory limit";
                if let Some(peak) = worker.leaf.as_ref().and_then(Leaf::peak) {
                    text += &format!(", its peak was {} MiB", peak >> 20);
                }
            }
            let request = view.text.clone().filter(|_| view.is_active()).unwrap_or_default();
            let log = self.ctx.log.about(Fields {
                message_id: match starved {
                    true => Some(MessageId::WorkerOom),
                    false => (!orderly).then_some(MessageId::WorkerDied),
                },
                ..fields_of(&self.config.name, pid, &request)
            });
            log.log(level, text);
            if !quiet {
                self.ctx.happened(&Happened::WorkerExited {
                    pool: self.config.name.clone(),
                    pid,
                    how: describe(exit),
                    script: request.script,
                    uri: request.uri,
                    request_id: request.id,
                });
            }
        }
        totals.requests = totals.requests.saturating_add(view.requests);
        totals.measures.add(&view);
        let exits = &mut totals.exits;
        *match exit {
            _ if starved => &mut exits.oom,
            _ if !orderly && worker.rung.is_some() => &mut exits.timeout,
            _ if leaving => &mut exits.surplus,
            _ if orderly && self.drain.is_some() => &mut exits.drained,
            _ if orderly => &mut exits.recycled,
            Some(Exit::Signal { .. }) => &mut exits.signal,
            _ => &mut exits.code,
        } += 1;
        let death = Death {
            unasked: !leaving && !worker.held && !worker.left && self.drain.is_none(),
            suspect: match exit {
                Some(Exit::Signal {
                    signal: libc::SIGKILL | libc::SIGTERM,
                    ..
                }) => view.is_active(),
                Some(Exit::Signal { .. }) => !by_quit,
                Some(Exit::Code(_)) | None => false,
            },
            stillborn: !orderly && view.requests == 0 && lived < LIVED,
        };
        self.forget(id);
        death
    }

    /// Takes a worker off the books. One that lives all the same sees its link close, and leaves.
    fn forget(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.remove(&id) else { return };
        let slot = self.board.slot(worker.slot as usize);
        self.board.header().request_ends(slot);
        slot.reset();
        self.free.insert(worker.slot);
        worker.linger();
    }

    /// Counts the workers into a snapshot.
    pub fn count(&self, snapshot: &mut Snapshot) {
        let header = self.board.header();
        let hint = header.active.load(SeqCst);
        for worker in self.workers.values() {
            if worker.held {
                super::recycle::count_spare(worker, &self.board, snapshot);
                continue;
            }
            if worker.left {
                // It accepts nothing any more, and has given up its place; a slow reader may still hold it. That it then ends
                // changes nothing.
                continue;
            }
            let slot = self.board.slot(worker.slot as usize);
            let asked = worker.asked.or(worker.retired);
            super::recycle::count_wear(worker, slot.wear(), &mut snapshot.recycling);
            match (slot.stage(), slot.since.load(SeqCst)) {
                (Stage::None, 1..) if worker.asked.is_some() => {}
                // Its place is free when it has been noticed that it has left.
                (Stage::None, 1..) => snapshot.ending += 1,
                // Until it is known how, it has its place: its zygote will tell in a moment.
                _ if worker.ended.is_some() => snapshot.ending += 1,
                (Stage::None, 0) | (Stage::Held, _) => snapshot.starting += 1,
                (Stage::Idle, since) => snapshot.idle.push(Idle {
                    worker: worker.id,
                    started: worker.started,
                    since: Duration::from_nanos(since).min(snapshot.now),
                    asked,
                }),
                _ => {
                    snapshot.active += 1;
                    snapshot.active_asked += u32::from(asked.is_some());
                }
            }
        }
        let peak = header.peak.swap(i64::from(snapshot.active), SeqCst);
        snapshot.peak = u32::try_from(peak)
            .unwrap_or(0)
            .clamp(snapshot.active, self.workers.len() as u32);
        if snapshot.active == 0 && hint != 0 {
            // Somebody was killed between the two words of a request's begin or end. Nobody has one now: the hint is
            // right unless it changes meanwhile.
            let _ = header.active.compare_exchange(hint, 0, SeqCst, SeqCst);
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

    /// Has idle workers look at the queue: whatever they are told, they look there first.
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
        self.zygote.output.read();
        self.workers.values().for_each(Worker::read_output);
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

    /// Workers finish their requests and leave; those that have not at `limit` are cut. `stopping`: nobody comes after them.
    pub fn start_drain(&mut self, limit: Option<Duration>, stopping: bool) {
        let begun = watch::now();
        self.drain = Some(Drain {
            begun,
            limit,
            cut: None,
        });
        self.board.header().ring_above.store(i64::MAX, SeqCst);
        let draining = if stopping { STOPPING } else { 1 };
        self.board.header().draining.store(draining, SeqCst);
        for worker in self.workers.values() {
            worker.tell(&ToWorker::Drain, &[]);
        }
    }

    /// Until when it counts that idle workers of a draining generation have not left yet: they may accept one more
    /// connection. None when there are none, or they do not obey.
    pub fn accepts_until(&self, now: Duration) -> Option<Duration> {
        /// An idle worker leaves in a millisecond.
        const OBEYS: Duration = Duration::from_secs(2);
        let until = self.drain.as_ref()?.begun + OBEYS;
        let idle =
            |worker: &&Worker| worker.ended.is_none() && self.board.slot(worker.slot as usize).stage() == Stage::Idle;
        (until > now && self.workers.values().any(|worker| idle(&worker))).then_some(until)
    }

    /// Carries a drain on; when to call again.
    pub fn continue_drain(&mut self, now: Duration) -> Option<Duration> {
        /// Between SIGTERM and SIGKILL.
        const LAST: Duration = Duration::from_secs(1);
        let drain = self.drain.as_mut()?;
        if self.workers.is_empty() {
            self.end_zygote(now);
            return self.quit;
        }
        let (signal, next) = match (drain.limit, drain.cut) {
            (None, _) => return None,
            (Some(limit), None) if limit > now => return Some(limit),
            (Some(_), None) => {
                drain.cut = Some(now);
                (Signal::SIGTERM, now + LAST)
            }
            (Some(_), Some(cut)) if cut + LAST > now => return Some(cut + LAST),
            (Some(_), Some(_)) => {
                // What the zygote has not made by now it never will; it must not keep the pool from its end.
                if self.workers.values().any(|worker| worker.process.is_none()) {
                    self.zygote.process.signal(Signal::SIGKILL);
                }
                (Signal::SIGKILL, now + LAST)
            }
        };
        for worker in self.workers.values() {
            let slot = worker.slot as usize;
            let started = self.board.slot(slot).started.load(SeqCst).max(1);
            self.board.control(slot).terminate.store(started, SeqCst);
            match signal {
                Signal::SIGKILL => worker.kill(),
                signal => worker.signal(signal),
            }
            self.log(
                Level::Debug,
                format_args!("sending {signal} to child {}", worker.pid().unwrap_or(0)),
            );
        }
        Some(next)
    }

    /// Tells the zygote to end, and kills it when it does not.
    pub fn end_zygote(&mut self, now: Duration) {
        const PATIENCE: Duration = Duration::from_secs(1);
        match self.quit {
            None => {
                self.quit = Some(now + PATIENCE);
                if self.zygote.orders.try_send((ToZygote::Quit, Vec::new())).is_err() {
                    self.zygote.process.signal(Signal::SIGKILL);
                }
            }
            Some(at) if at <= now => {
                self.zygote.process.signal(Signal::SIGKILL);
                self.quit = Some(now + PATIENCE);
            }
            Some(_) => {}
        }
    }

    /// Kills the zygote and every worker.
    pub fn kill_all(&self) {
        self.workers.values().for_each(Worker::kill);
        self.zygote.process.signal(Signal::SIGKILL);
    }

    /// The zygote has ended.
    pub fn zygote_ended(&mut self) {
        self.zygote.output.drain();
        self.life = Life::Ended;
        // What it had not made yet it never will.
        let unmade: Vec<_> = self
            .workers
            .values()
            .filter(|worker| worker.process.is_none())
            .map(|worker| worker.id)
            .collect();
        for id in unmade {
            self.forget(id);
        }
    }

    /// Nothing of it is left.
    pub fn is_gone(&self) -> bool {
        self.life == Life::Ended && self.workers.is_empty()
    }
}
