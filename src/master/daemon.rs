//! The loop: signals, events and the clock come in, the pools are looked at.
#![forbid(unsafe_code)]

mod takeover;

use std::io;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::access_log::AccessLog;
use super::background::Report;
use super::cgroup::Cgroup;
use super::context::{Context, State};
use super::desk::{Desk, Mailbox};
use super::listen::Sockets;
use super::log_file;
use super::pid_file::PidFile;
use super::pool::{Pool, Wanted};
use super::process;
use super::start::{self, Start, StartError};
use super::systemd::Systemd;
use super::watch::{self, Event, Events, PoolId};
use super::worker::describe;
use crate::api::{Answer, Question};
use crate::config::Config;
use crate::log::{Logger, MessageId};
use crate::trace::Limits;

pub use takeover::handled;

/// Events handled before the pools are looked at.
const AT_ONCE: usize = 64;

/// Children that are collected in one turn; the others come in the next, when all else has had its own. Strangers may end as fast as they
/// are collected.
const COLLECTED_AT_ONCE: usize = 64;

/// Most frames of a backtrace that somebody asks for.
const MOST_FRAMES: u32 = 1000;

/// How long workers have that are to end, and have been told or killed.
const KILL_AFTER: Duration = Duration::from_secs(3);

/// How long whoever called a daemon waits for PHP to be up; it is told of success then all the same.
const PATIENCE: Duration = Duration::from_secs(8);

/// The whole of a master.
pub struct Daemon {
    ctx: Rc<Context>,
    events: mpsc::Receiver<Event>,
    config: Config,
    pools: Vec<Pool>,
    /// Pools that a reload has removed.
    removed: Vec<Pool>,
    sockets: Sockets,
    pid_file: Option<PidFile>,
    report: Option<Report>,
    report_at: Duration,
    /// Children are there that were too many for one turn.
    reap_more: bool,
    signals: Signals,
    /// What is being waited for before it is said that all is ready.
    phase: Phase,
    /// Whoever started us is to be told that the workers are there.
    untold: Option<Phase>,
    /// A reload was asked for during one.
    again: Option<Scope>,
    systemd: Systemd,
    /// The control socket.
    desk: Option<Desk>,
    /// Who waits for the end of the reload.
    asked: Vec<Mailbox>,
    /// Why the last reload did not get as far as the pools.
    unread: Option<String>,
    /// What has been taken over from a predecessor, with the reload that it was asked for, until the loop begins.
    taken_over: Option<Scope>,
    /// The program at our path can take over: to be done when the events at hand are.
    successor: Option<Scope>,
    /// When all that is left is killed, whoever made it.
    kill_at: Option<Duration>,
}

/// What a reload renews.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// What has changed.
    Changed,
    /// Everything.
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Reloading,
    /// The program that is to take over is being asked whether it can.
    Upgrading(Scope),
    Ready,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    reopen: Signal,
    reload: Signal,
    hang_up: Signal,
    child: Signal,
    /// Nothing comes of it: a file that may not grow (RLIMIT_FSIZE) is an error of the write, as a full disk is.
    _too_large: Signal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Terminate,
    Quit,
    Reopen,
    Reload,
    Child,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            reopen: signal(SignalKind::user_defined1())?,
            reload: signal(SignalKind::user_defined2())?,
            hang_up: signal(SignalKind::hangup())?,
            child: signal(SignalKind::child())?,
            _too_large: signal(SignalKind::from_raw(nix::libc::SIGXFSZ))?,
        })
    }

    async fn next(&mut self) -> Sent {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Sent::Terminate,
            _ = self.interrupt.recv() => Sent::Terminate,
            _ = self.quit.recv() => Sent::Quit,
            _ = self.child.recv() => Sent::Child,
            _ = self.reload.recv() => Sent::Reload,
            _ = self.hang_up.recv() => Sent::Reload,
            _ = self.reopen.recv() => Sent::Reopen,
        }
    }
}

impl Daemon {
    /// Makes the pools; none of them runs yet.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new(
        start: Start,
        sender: Events,
        events: mpsc::Receiver<Event>,
        report: Option<Report>,
    ) -> io::Result<Self> {
        // Workers whose zygote ends become our children.
        nix::sys::prctl::set_child_subreaper(true)?;
        // Nobody but root looks into a process that holds all pools' settings.
        nix::sys::prctl::set_dumpable(false)?;
        let Start {
            launch,
            log,
            config,
            pools,
            sockets,
            pid_file,
            stderr,
            open_files,
        } = start;
        let cgroup = enter_cgroup(&config, &log);
        let desk = launch.control.as_ref().and_then(|path| {
            let desk = Desk::open(path, &sender);
            let failed = |error: &io::Error| {
                let (path, reason) = (path.display(), crate::log::errno(error));
                log.warning(format_args!("the control socket {path} cannot be made: {reason}"));
            };
            desk.inspect_err(failed).ok()
        });
        let systemd = Systemd::new(&log, config.global.systemd_interval);
        let ctx = Rc::new(Context::new(log, launch, sender, stderr, open_files, cgroup));
        let pools = pools
            .into_iter()
            .map(|(wanted, access_log)| Pool::new(&ctx, wanted, access_log));
        Ok(Self {
            pools: pools.collect::<io::Result<_>>()?,
            signals: Signals::new()?,
            ctx,
            events,
            config,
            removed: Vec::new(),
            sockets,
            pid_file,
            report,
            report_at: watch::now() + PATIENCE,
            reap_more: false,
            phase: Phase::Starting,
            untold: Some(Phase::Starting),
            again: None,
            systemd,
            desk,
            asked: Vec::new(),
            unread: None,
            taken_over: None,
            successor: None,
            kill_at: None,
        })
    }

    fn log(&self) -> &Logger {
        &self.ctx.log
    }

    /// Runs to the end; returns the exit status.
    pub async fn run(mut self) -> i32 {
        match self.taken_over.take() {
            None => self.start(),
            Some(scope) => {
                let version = env!("CARGO_PKG_VERSION");
                let pid = std::process::id();
                self.log()
                    .notice(format_args!("php-pool {version} has taken over, pid {pid}"));
                // Of those that ended meanwhile nobody was told.
                self.reap();
                self.reload_configuration(scope);
            }
        }
        loop {
            if let Some(status) = self.look() {
                return status;
            }
            self.wait().await;
            if let Some(scope) = self.successor.take() {
                let reason = self.upgrade(scope).await;
                self.not_upgraded(&reason);
            }
        }
    }

    fn start(&mut self) {
        self.log()
            .notice(format_args!("fpm is running, pid {}", std::process::id()));
        let alone = self.pools.len() == 1;
        for pool in self.pools.iter_mut().filter(|pool| alone || !pool.sleeps_at_first()) {
            pool.start();
        }
    }

    fn reload_again(&mut self) {
        if let Some(scope) = self.again.take() {
            self.reload(scope);
        }
    }

    /// Waits for anything, and takes it in.
    async fn wait(&mut self) {
        let wake = self.all().filter_map(|pool| pool.wake()).min();
        let wake = wake
            .into_iter()
            .chain(self.systemd.wake())
            .chain(self.report.as_ref().map(|_| self.report_at))
            .chain(self.reap_more.then_some(Duration::ZERO))
            .chain(self.kill_at)
            .min();
        let flush = (!self.ctx.log.flush()).then(|| watch::now() + Duration::from_millis(100));
        let wake = wake.into_iter().chain(flush).min();
        let sleep = async {
            match wake {
                // Let the watchers run first.
                Some(at) if at <= watch::now() => tokio::task::yield_now().await,
                Some(at) => watch::until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            sent = self.signals.next() => self.on_signal(sent),
            () = sleep => {}
            Some(event) = self.events.recv() => {
                self.on_event(event);
                for _ in 0..AT_ONCE {
                    let Ok(event) = self.events.try_recv() else { break };
                    self.on_event(event);
                }
            }
        }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Pool> {
        self.pools.iter_mut().chain(&mut self.removed)
    }

    fn pool(&mut self, id: PoolId) -> Option<&mut Pool> {
        self.all().find(|pool| pool.id == id)
    }

    fn on_event(&mut self, event: Event) {
        let id = match &event {
            Event::Zygote(place, _) | Event::Worker(place, ..) | Event::Ended(place, _) | Event::Rang(place) => {
                place.pool
            }
            Event::Waiting(pool) | Event::Alarm(pool) | Event::Queued(pool) => *pool,
            Event::AccessLog(pool, ..) | Event::Status(pool, _) => *pool,
            Event::Asked(..) | Event::Checked(_) => PoolId(0),
        };
        let event = match event {
            Event::Asked(question, mailbox) => return self.answer(question, mailbox),
            Event::Checked(answer) => return self.on_checked(answer),
            other => other,
        };
        let Some(pool) = self.pool(id) else { return };
        match event {
            Event::Zygote(place, result) => pool.on_zygote(place.generation, result),
            Event::Worker(place, worker, result) => pool.on_worker(place.generation, worker, result),
            Event::Ended(place, worker) => pool.worker_ended(place.generation, worker),
            Event::Rang(_) => pool.touch(),
            Event::Waiting(_) | Event::Queued(_) => pool.on_waiting(),
            Event::AccessLog(_, level, text) => pool.log().log(level, text),
            Event::Alarm(_) => pool.on_alarm(),
            Event::Asked(..) | Event::Checked(_) => {}
            // Who asked may have gone.
            Event::Status(_, answer) => drop(answer.send(pool.answer())),
        }
    }

    /// Looks at the pools that want it; Some: all is over.
    fn look(&mut self) -> Option<i32> {
        let now = watch::now();
        let most = self.config.global.process_max;
        for index in 0..self.pools.len() + self.removed.len() {
            let wake = self.all().nth(index).and_then(|pool| pool.wake());
            if wake.is_none_or(|at| at > now) {
                continue;
            }
            let room = (most > 0).then(|| {
                let made: u32 = self.all().map(Pool::workers).sum();
                // The next one that may be made is for whoever has none. Those do not wait for each other.
                let is_starved = self.all().nth(index).is_some_and(|pool| pool.is_starved());
                let reserved = match is_starved {
                    true => 0,
                    false => self.all().filter(|pool| pool.is_starved()).count() as u32,
                };
                most.saturating_sub(made.saturating_add(reserved))
            });
            self.all().nth(index).expect("within the number of pools").look(room);
        }
        self.make_room();
        self.removed.retain(|pool| !(pool.is_gone() && pool.is_quiet()));
        self.sockets.close_unused();
        if self.report_at <= now {
            self.tell_caller();
        }
        if self.reap_more {
            self.reap();
        }
        if self.systemd.wake().is_some_and(|at| at <= now) {
            let status = describe_pools(&mut self.pools);
            self.systemd.tick(now, status);
        }
        if self.phase == Phase::Ready && self.sockets.are_held() && self.all().all(|pool| pool.may_exit(now)) {
            self.log().notice("asleep: the next request starts it again");
            return Some(self.leave());
        }
        match self.ctx.state.get() {
            State::Normal => self.advance(),
            _ if self.all().all(|pool| pool.is_gone()) => Some(self.leave()),
            // Something that a pool has left behind keeps workers from ending that have been killed. Without a control group nobody
            // else would end it.
            _ if self.kill_at.is_some_and(|at| at <= now) => {
                self.kill_at = Some(now + KILL_AFTER);
                process::kill_below();
                None
            }
            _ => None,
        }
    }

    /// Where `process.max` leaves a pool without a worker, though somebody waits there, another one gives one up: who has some with nothing to
    /// do, else who has most. Else it would wait for ever, for pools keep their spares.
    fn make_room(&mut self) {
        if !self.pools.iter().any(Pool::is_starved) || self.all().any(|pool| pool.is_giving_up()) {
            return;
        }
        let others = self.pools.iter_mut().filter(|pool| !pool.is_starved());
        let others = others.filter_map(|pool| Some(((pool.could_give()?, pool.workers()), pool)));
        if let Some((_, pool)) = others.max_by_key(|(has, _)| *has) {
            pool.give_one_up();
        }
    }

    /// From starting or reloading to ready.
    fn advance(&mut self) -> Option<i32> {
        if self.phase == Phase::Starting && self.pools.iter().all(|pool| pool.is_settled() && pool.failed.is_some()) {
            self.log().error("FPM initialization failed");
            self.all().for_each(Pool::kill);
            self.clean_up();
            return Some(70);
        }
        self.tell_when_up();
        // One pool's PHP, which runs the pool's own code as it starts, must not hold up the others.
        let slow = |pool: &Pool| self.pools.len() > 1 && pool.is_slow();
        let done = match self.phase {
            // The sockets listen and PHP is up; that workers accept is a matter of milliseconds.
            Phase::Starting => self.pools.iter().all(|pool| pool.is_settled() || slow(pool)),
            // Who connects from now on is served by the new configuration.
            Phase::Reloading => self.pools.iter().all(|pool| pool.is_up() || slow(pool)),
            Phase::Ready | Phase::Upgrading(_) => return None,
        };
        if !done {
            return None;
        }
        if self.phase == Phase::Reloading {
            self.log()
                .notice(format_args!("fpm is running, pid {}", std::process::id()));
        }
        for pool in self.pools.iter().filter(|pool| slow(pool)) {
            let name = &pool.wanted.config.name;
            self.log()
                .pool(name)
                .warning("PHP is still starting; the other pools do not wait for it");
        }
        self.log().notice("ready to handle connections");
        self.phase = Phase::Ready;
        self.reload_again();
        None
    }

    /// Tells who waits for it, once, that the workers are there.
    fn tell_when_up(&mut self) {
        // Who asked for an upgrade is told how that ends.
        if matches!(self.phase, Phase::Upgrading(_)) {
            return;
        }
        let several = self.pools.len() > 1;
        let is_up = |pool: &Pool| pool.is_up() || (several && pool.is_slow());
        let Some(phase) = self.untold.take_if(|_| self.pools.iter().all(is_up)) else {
            return;
        };
        self.tell_caller();
        let failures: Vec<String> = self.pools.iter().filter_map(Pool::failure).collect();
        if phase == Phase::Reloading && !failures.is_empty() {
            self.reload_failed(failures.join("\n"));
        } else {
            self.systemd.ready("Ready to handle connections");
            self.settle(&Answer::Reloaded);
        }
    }

    fn tell_caller(&mut self) {
        if let Some(report) = self.report.take() {
            report.success();
        }
    }

    /// A client of the control socket asks.
    fn answer(&mut self, question: Question, mailbox: Mailbox) {
        // A mailbox is new and has room, but for one whose client has gone.
        let reply = |answer| drop(mailbox.try_send(answer));
        match question {
            Question::Ping => reply(Answer::Pong),
            Question::Status => {
                let stopping = self.ctx.state.get() != State::Normal;
                let mut pools: Vec<_> = self.pools.iter_mut().map(|pool| pool.status(stopping)).collect();
                for pool in &mut pools {
                    pool.failure = self.unread.clone().or(pool.failure.take());
                }
                reply(Answer::Status { pools });
            }
            Question::Reload { .. } if self.ctx.state.get() != State::Normal => reply(Answer::Refused {
                reason: "the master is about to end".to_owned(),
            }),
            Question::Reload { force } => {
                self.asked.push(mailbox);
                self.reload(if force { Scope::All } else { Scope::Changed });
            }
            Question::Trace { depth } => {
                let limits = Limits::to_show(depth.min(MOST_FRAMES) as usize);
                let traces: Vec<_> = self.pools.iter_mut().flat_map(|pool| pool.trace(limits)).collect();
                tokio::task::spawn_local(async move {
                    let mut all = Vec::new();
                    for trace in traces {
                        all.push(trace.await);
                    }
                    let _ = mailbox.try_send(Answer::Traces { traces: all });
                });
            }
            Question::Events => self.ctx.watch_with(mailbox),
        }
    }

    /// Tells those who asked for a reload how it ended.
    fn settle(&mut self, answer: &Answer) {
        // One that was asked for meanwhile is still to come.
        if self.again.is_none() {
            for mailbox in self.asked.drain(..) {
                let _ = mailbox.try_send(answer.clone());
            }
        }
    }

    fn reload_failed(&mut self, reason: String) {
        self.log()
            .identified(MessageId::ReloadFailed)
            .error("the reload is given up; everything goes on with the configuration there is");
        let first = reason.lines().next().unwrap_or_default();
        self.systemd.reload_failed(first);
        self.settle(&Answer::Refused { reason });
    }

    fn on_signal(&mut self, sent: Sent) {
        // What was said before the signal stands before what comes of it.
        self.all().for_each(Pool::read_output);
        match sent {
            Sent::Child => self.reap(),
            Sent::Reopen => self.reopen_logs(),
            // Who deploys by a signal expects that PHP forgets what it has compiled.
            Sent::Reload if self.ctx.state.get() == State::Normal => self.reload(Scope::All),
            Sent::Reload => self
                .log()
                .debug("not switching to 'reloading' state, because already in 'finishing' state"),
            Sent::Terminate => match self.ctx.state.get() {
                State::Normal | State::Finishing => {
                    self.log().notice("Terminating ...");
                    self.stop(State::Terminating, None);
                }
                State::Terminating | State::Killing => {
                    self.log().notice("Terminating at once");
                    self.ctx.state.set(State::Killing);
                    self.kill_at = Some(watch::now() + KILL_AFTER);
                    self.all().for_each(Pool::kill);
                }
            },
            Sent::Quit if self.ctx.state.get() == State::Normal => {
                self.log().notice("Finishing ...");
                let limit = self.config.global.process_control_timeout;
                self.stop(State::Finishing, (!limit.is_zero()).then_some(limit));
            }
            Sent::Quit => self
                .log()
                .debug("not switching to 'finishing' state, because already in 'terminating' state"),
        }
    }

    /// `limit` is how long requests may go on; None: each pool's own `stop_timeout`.
    fn stop(&mut self, state: State, limit: Option<Duration>) {
        self.ctx.state.set(state);
        let now = watch::now();
        let mut latest = now;
        for pool in self.all() {
            let limit = limit.unwrap_or(pool.wanted.config.stop_timeout);
            latest = latest.max(now + limit);
            pool.stop(now + limit);
        }
        self.kill_at = Some(latest + KILL_AFTER);
        self.systemd.stopping(latest);
    }

    fn leave(&mut self) -> i32 {
        self.log().notice("exiting, bye-bye!");
        self.clean_up();
        0
    }

    fn clean_up(&mut self) {
        if let Some(Err(error)) = self.pid_file.take().map(PidFile::remove) {
            self.log().warning(error);
        }
        self.sockets.remove_files();
        self.free_threads();
    }

    /// A thread that cannot end keeps this process from ending, and its sockets taken.
    fn free_threads(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(1);
        const LONGEST: Duration = Duration::from_secs(10);
        let begin = watch::now();
        while !self.all().all(|pool| pool.is_quiet()) && watch::now() < begin + LONGEST {
            if watch::now() >= begin + PATIENCE {
                process::kill_below();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Collects the children that have ended: zygotes, workers that were left to us, and strangers, who come to a subreaper
    /// and to PID 1 of a container.
    fn reap(&mut self) {
        self.reap_more = false;
        self.all().for_each(Pool::reap);
        for _ in 0..COLLECTED_AT_ONCE {
            let any = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
            let pid = match waitid(Id::All, any | WaitPidFlag::WNOWAIT).map(|status| status.pid()) {
                Ok(Some(pid)) => pid,
                _ => return,
            };
            if self.all().any(|pool| pool.knows_child(pid.as_raw())) {
                // A worker whose pidfd will tell; or a zygote that ended after it was looked at.
                if !self.collect(pid) {
                    return;
                }
                continue;
            }
            match waitid(Id::Pid(pid), any) {
                Ok(status @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..))) => {
                    let how = describe(process::exit(status));
                    let init = std::process::id() == 1;
                    let text = format!("unknown child ({pid}) exited {how} - most likely an orphan process");
                    let suffix = if init {
                        " (master process is the init process)"
                    } else {
                        ""
                    };
                    self.log().debug(format_args!("{text}{suffix}"));
                }
                _ => return,
            }
        }
        self.reap_more = true;
    }

    /// Lets the pool of a known child collect it.
    fn collect(&mut self, pid: Pid) -> bool {
        self.all().any(|pool| pool.collect(pid.as_raw()))
    }

    /// Log rotation. No worker ends for it.
    fn reopen_logs(&mut self) {
        self.log().reopen();
        let ctx = self.ctx.clone();
        let mut opened = None;
        for pool in self.all() {
            let identity = pool.wanted.identity.clone();
            let Some(log) = &pool.access_log else { continue };
            match log.reopen(&identity, ctx.stderr.as_ref()) {
                Ok(()) => opened = opened.or(Some(true)),
                Err(error) => {
                    let path = pool.wanted.config.access_log.as_deref();
                    let whose = path.and_then(|path| log_file::in_whose_hands(path, &identity));
                    let whose = whose.map(|whose| format!("; {whose}")).unwrap_or_default();
                    ctx.log.error(format_args!("{error}{whose}"));
                    opened = Some(false);
                }
            }
        }
        match opened {
            Some(true) => ctx.log.notice("access log file re-opened"),
            Some(false) => ctx.log.error("unable to re-opened access log file"),
            None => {}
        }
    }

    /// Makes what runs what is on the disk: the program first, then what it is configured with.
    fn reload(&mut self, scope: Scope) {
        if self.phase != Phase::Ready {
            self.again = self.again.max(Some(scope));
            return;
        }
        self.log().notice("Reloading in progress ...");
        self.systemd.reloading();
        if self.ctx.program.has_changed() {
            self.ask_successor(scope);
        } else {
            self.reload_configuration(scope);
        }
    }

    /// Reads and checks everything again; with an error all stays as it is.
    fn reload_configuration(&mut self, scope: Scope) {
        let prepared = self.prepare_reload();
        self.unread = prepared.as_ref().err().map(StartError::to_string);
        match prepared {
            Ok((config, pools)) => self.commit_reload(config, pools, scope),
            Err(error) => {
                let old = &self.config.global;
                self.ctx.log.configure(old.log_level, old.log_limit);
                if !matches!(error, StartError::Configuration(_)) {
                    self.log().error(&error);
                }
                self.sockets.close_unused();
                self.reload_failed(error.to_string());
            }
        }
    }

    #[allow(clippy::type_complexity)]
    fn prepare_reload(&mut self) -> Result<(Config, Vec<(Wanted, Option<AccessLog>)>), StartError> {
        let ctx = self.ctx.clone();
        let mut config = start::load(&ctx.launch, &ctx.log)?;
        let mut opened = Vec::new();
        for pool in &mut config.pools {
            let mut before = self.pools.iter().map(|pool| &*pool.wanted.config);
            let before = before.find(|before| before.name == pool.name);
            if let Some(before) = before {
                self.sockets.check_unchanged(before, pool)?;
            }
            opened.push(start::open_pool_logs(pool, before, ctx.stderr.as_ref(), &ctx.log)?);
        }
        let pools = start::all_wanted(&ctx.launch, &config, opened, &mut self.sockets, &ctx.log)?;
        let replace = start::replaces_stderr(&ctx.launch, &config.global, self.config.global.daemonize);
        ctx.log
            .open(&start::log_settings(&ctx.launch, &config.global), replace)?;
        Ok((config, pools))
    }

    fn commit_reload(&mut self, config: Config, pools: Vec<(Wanted, Option<AccessLog>)>, scope: Scope) {
        self.log().notice(reload_line(&self.ctx.launch.argv));
        self.sockets.say_all_inherited(&self.ctx.log);
        let alone = pools.len() == 1;
        let mut before = std::mem::take(&mut self.pools);
        for (wanted, access_log) in pools {
            let known = before
                .iter()
                .position(|pool| pool.wanted.config.name == wanted.config.name);
            match known.map(|index| before.remove(index)) {
                Some(mut pool) => {
                    pool.reload(wanted, access_log, scope);
                    self.pools.push(pool);
                }
                None => match Pool::new(&self.ctx, wanted, access_log) {
                    Ok(mut pool) => {
                        if alone || !pool.sleeps_at_first() {
                            pool.start();
                        }
                        self.pools.push(pool);
                    }
                    Err(error) => self
                        .log()
                        .error(format_args!("a pool cannot be made: {}", crate::log::errno(&error))),
                },
            }
        }
        let limit = config.global.process_control_timeout;
        for mut pool in before {
            if config.pools.iter().any(|other| other.name == pool.wanted.config.name) {
                pool.failed = Some("its socket cannot be had; it goes on as it was".to_owned());
                self.pools.push(pool);
                continue;
            }
            let limit = if limit.is_zero() {
                pool.wanted.config.stop_timeout
            } else {
                limit
            };
            pool.stop(watch::now() + limit);
            self.removed.push(pool);
        }
        if self.config.global.pid != config.global.pid {
            self.move_pid_file(&config);
        }
        if let [pool] = config.pools.as_slice() {
            let before: &[_] = match self.config.pools.as_slice() {
                [before] => &before.cgroup,
                _ => &[],
            };
            limit_cgroup(self.ctx.cgroup.as_deref(), before, pool, self.log());
        }
        self.config = config;
        self.phase = Phase::Reloading;
        self.untold = Some(Phase::Reloading);
    }

    fn move_pid_file(&mut self, config: &Config) {
        if let Some(Err(error)) = self.pid_file.take().map(PidFile::remove) {
            self.log().warning(error);
        }
        match config.global.pid.as_deref().map(PidFile::write).transpose() {
            Ok(file) => self.pid_file = file,
            Err(error) => self.log().error(error),
        }
    }
}

/// The control groups of a master of one pool. Where there are none, that is worth a line only to those who expect some.
fn enter_cgroup(config: &Config, log: &Logger) -> Option<Rc<Cgroup>> {
    let limited = |pool: &crate::config::Pool| !pool.cgroup.is_empty() || pool.worker_memory_max.is_some();
    let expected = std::env::var_os("INVOCATION_ID").is_some() || config.pools.iter().any(limited);
    let [pool] = config.pools.as_slice() else {
        if config.pools.iter().any(limited) {
            log.warning(
                "limits of cgroups need a master for each pool (php-pool serve NAME); they have no effect here",
            );
        }
        return None;
    };
    match Cgroup::enter() {
        Ok(groups) => {
            limit_cgroup(Some(&groups), &[], pool, log);
            Some(Rc::new(groups))
        }
        Err(error) => {
            if expected {
                log.pool(&pool.name)
                    .identified(MessageId::NoCgroup)
                    .warning(format_args!(
                        "it runs without control groups, so their limits have no effect: {error}"
                    ));
            }
            None
        }
    }
}

fn limit_cgroup(groups: Option<&Cgroup>, before: &[crate::config::IniEntry], pool: &crate::config::Pool, log: &Logger) {
    for error in groups
        .map(|groups| groups.limit(before, &pool.cgroup))
        .unwrap_or_default()
    {
        log.pool(&pool.name)
            .warning(format_args!("a limit has no effect: {error}"));
    }
}

/// What `systemctl status` shows.
fn describe_pools(pools: &mut [Pool]) -> impl FnOnce() -> String {
    move || {
        let all: Vec<_> = pools.iter_mut().map(Pool::snapshot).collect();
        // What hostile workers count is not to be more than a number holds.
        let sum = |count: fn(&crate::status::Snapshot) -> u64| all.iter().map(count).fold(0, u64::saturating_add);
        format!(
            "Processes active: {}, idle: {}, queue: {}, requests: {}, slow: {}",
            sum(|pool| pool.active.into()),
            sum(|pool| pool.idle.into()),
            sum(|pool| pool.listen_queue.into()),
            sum(|pool| pool.accepted),
            sum(|pool| pool.slow_requests),
        )
    }
}

/// php-fpm's words for its exec; what goes on here is a new generation in the same process.
fn reload_line(argv: &[String]) -> String {
    const SHOWN: usize = 11;
    let name = argv.first().map_or("", String::as_str);
    let quoted: Vec<String> = argv.iter().take(SHOWN).map(|word| format!("\"{word}\"")).collect();
    format!("reloading: execvp(\"{name}\", {{{}}})", quoted.join(", "))
}
