//! Another program takes over the whole of a master, or this one from its predecessor.
#![forbid(unsafe_code)]

use std::io;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use tokio::sync::mpsc;

use super::{Daemon, Phase, Scope, Signals};
use crate::cli::Launch;
use crate::log::Logger;
use crate::master::access_log;
use crate::master::cgroup::Cgroup;
use crate::master::context::{Context, State};
use crate::master::desk::Desk;
use crate::master::listen::Sockets;
use crate::master::pid_file::PidFile;
use crate::master::pool::Pool;
use crate::master::saved::{Restorer, Saved, Saver};
use crate::master::start;
use crate::master::systemd::Systemd;
use crate::master::watch::{self, Event, Events};

/// The signals that the loop handles.
pub fn handled() -> SigSet {
    SigSet::from_iter([
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGHUP,
        Signal::SIGCHLD,
        Signal::SIGXFSZ,
    ])
}

impl Daemon {
    /// Goes on where the program that was here before has left.
    ///
    /// # Errors
    /// When a descriptor is missing.
    pub fn restore(
        launch: Launch,
        log: Logger,
        saved: Saved,
        sender: Events,
        events: mpsc::Receiver<Event>,
    ) -> io::Result<Self> {
        nix::sys::prctl::set_child_subreaper(true)?;
        nix::sys::prctl::set_dumpable(false)?;
        let fds = &mut Restorer::default();
        let file = fds.take_some(saved.log_file)?.map(Into::into);
        let settings = start::log_settings(&launch, &saved.config.global);
        log.restore(&settings, &saved.log, file);
        let stderr = fds.take_some(saved.stderr)?.map(Into::into);
        let (current, maximum) = saved.open_files;
        let open_files = rustix::process::Rlimit { current, maximum };
        let cgroup = saved.cgroup.map(|groups| Rc::new(Cgroup::restore(groups)));
        let desk = match (&launch.control, fds.take_some(saved.desk)?) {
            (Some(path), Some(fd)) => Some(Desk::restore(path, fd, &sender)?),
            _ => None,
        };
        let systemd = Systemd::new(&log, saved.config.global.systemd_interval);
        let ctx = Rc::new(Context::new(log, launch, sender, stderr, open_files, cgroup));
        ctx.go_on_from(saved.next);
        let sockets = Sockets::restore(saved.sockets, fds)?;
        let mut pools = |all: Vec<_>| -> io::Result<Vec<_>> {
            all.into_iter()
                .map(|pool| Pool::restore(&ctx, pool, &sockets, fds))
                .collect()
        };
        Ok(Self {
            pools: pools(saved.pools)?,
            removed: pools(saved.removed)?,
            signals: Signals::new()?,
            events,
            config: saved.config,
            sockets,
            pid_file: saved.pid_file.map(PidFile::restore),
            report: None,
            report_at: Duration::ZERO,
            reap_more: false,
            phase: Phase::Ready,
            untold: None,
            again: None,
            systemd,
            desk,
            asked: Vec::new(),
            unread: None,
            taken_over: Some(if saved.force { Scope::All } else { Scope::Changed }),
            successor: None,
            kill_at: None,
            ctx,
        })
    }

    /// What is to go on when another program takes over, and is to reload then.
    fn save(&self, scope: Scope, saver: &mut Saver) -> Saved {
        let log = self.log().save();
        let mut pools = |pools: &[Pool]| pools.iter().map(|pool| pool.save(saver)).collect();
        let (all, removed) = (pools(&self.pools), pools(&self.removed));
        Saved {
            config: self.config.clone(),
            log_file: log.file.map(|file| saver.keep(&file)),
            log,
            stderr: self.ctx.stderr.as_ref().map(|stderr| saver.keep(stderr)),
            open_files: (self.ctx.open_files.current, self.ctx.open_files.maximum),
            next: self.ctx.next_number(),
            pid_file: self.pid_file.as_ref().map(|file| file.path().to_owned()),
            desk: self.desk.as_ref().map(|desk| desk.save(saver)),
            cgroup: self.ctx.cgroup.as_ref().map(|groups| groups.save()),
            sockets: self.sockets.save(saver),
            pools: all,
            removed,
            force: scope == Scope::All,
        }
    }

    /// Asks the program that stands at our path whether it can take over.
    pub(super) fn ask_successor(&mut self, scope: Scope) {
        let path = self.ctx.program.path().display();
        self.log()
            .notice(format_args!("another program stands at {path}: it is to take over"));
        self.phase = Phase::Upgrading(scope);
        let state = self.save(scope, &mut Saver::default());
        if let Err(reason) = self.ctx.program.check(&state, &self.ctx.events) {
            self.not_upgraded(&reason);
        }
    }

    /// The program that stands at our path has said whether it can take over.
    pub(super) fn on_checked(&mut self, answer: Result<(), String>) {
        let Phase::Upgrading(scope) = self.phase else { return };
        match answer {
            Ok(()) => self.successor = Some(scope),
            Err(reason) => self.not_upgraded(&reason),
        }
    }

    /// Becomes the program at its path. Returns only when that cannot be, with the reason; nothing has changed then.
    pub(super) async fn upgrade(&mut self, scope: Scope) -> String {
        self.tell_caller();
        // What comes from now on waits for the successor.
        let _ = handled().thread_block();
        self.ctx.events.gate().close(true);
        self.all().for_each(|pool| pool.pause_reading(true));
        let reason = match self.settle_down().await {
            Err(reason) => reason,
            Ok(()) => {
                self.all().for_each(|pool| pool.pause_closing(true));
                self.all().for_each(|pool| pool.stop_access_logs());
                access_log::wait_for_all(self.log());
                let mut saver = Saver::default();
                // Also what was asked for meanwhile is the successor's to do.
                let scope = self.again.map_or(scope, |again| again.max(scope));
                let state = self.save(scope, &mut saver).write();
                self.log().last_words();
                let error = state.map_or_else(
                    |error| error,
                    |state| {
                        saver.inherit(true);
                        let error = self.ctx.program.exec(&state);
                        saver.inherit(false);
                        error
                    },
                );
                self.all().for_each(|pool| pool.start_access_logs());
                self.all().for_each(|pool| pool.pause_closing(false));
                let path = self.ctx.program.path().display();
                format!("{path} cannot be executed: {}", crate::log::errno(&error))
            }
        };
        self.all().for_each(|pool| pool.pause_reading(false));
        self.ctx.events.gate().close(false);
        let _ = handled().thread_unblock();
        reason
    }

    /// Takes in all that has been taken from a descriptor or a signal and that nobody else would know of.
    async fn settle_down(&mut self) -> Result<(), String> {
        const PATIENCE: Duration = Duration::from_secs(2);
        let until = watch::now() + PATIENCE;
        let mut quiet = 0;
        while quiet < 2 {
            let mut idle = true;
            while let Ok(event) = self.events.try_recv() {
                self.on_event(event);
                idle = false;
            }
            tokio::select! {
                biased;
                sent = self.signals.next() => {
                    self.on_signal(sent);
                    idle = false;
                }
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
            if self.ctx.state.get() != State::Normal {
                return Err("the master is about to end".to_owned());
            }
            idle &=
                self.ctx.events.gate().is_quiet() && self.all().all(|pool| pool.has_all_orders() && pool.is_quiet());
            quiet = if idle { quiet + 1 } else { 0 };
            if until <= watch::now() {
                let held_up = self.all().find(|pool| !pool.is_quiet());
                return Err(match held_up.map(|pool| &pool.wanted.config.name) {
                    Some(name) => {
                        format!("[pool {name}] its processes hold up what is done with their output or connections")
                    }
                    None => "a zygote does not take its orders".to_owned(),
                });
            }
        }
        Ok(())
    }

    /// The program at our path does not take over: this one goes on, and the reload has failed.
    pub(super) fn not_upgraded(&mut self, reason: &str) {
        if self.ctx.state.get() != State::Normal {
            return;
        }
        self.phase = Phase::Ready;
        self.log().error(reason);
        self.reload_failed(reason.to_owned());
        self.reload_again();
    }
}
