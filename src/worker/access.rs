//! A worker's access log: its lines, and the way that they take to who writes them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use php_pool::access_log::{AccessLog, Entry, TRUNCATED};
use php_pool::config::access_format::{Format, Token, compile};
use php_pool::control::PoolSettings;
use php_pool::log::Level;
use php_pool::scoreboard::{Scoreboard, Sleep};

use super::print_log;

/// CPU time of this process, microseconds: in user mode, in the kernel.
type Cpu = (u64, u64);

/// The access log of a worker.
pub struct Access {
    log: AccessLog,
    board: &'static Scoreboard,
    slot: usize,
    /// Wakes who writes the lines.
    bell: OwnedFd,
    /// Whether a line shows CPU times, which cost two system calls.
    needs_cpu: bool,
    before: Cpu,
    /// Pid of the worker, `%p`.
    pub worker: u32,
    /// Pid of the master, `%P`.
    pub master: u32,
}

impl Access {
    /// For a pool's format; None when there is no log, or the format is none (the master has checked it).
    pub fn new(
        pool: &PoolSettings,
        board: &'static Scoreboard,
        slot: usize,
        bell: OwnedFd,
        master: u32,
    ) -> Option<Self> {
        let format = compile(&pool.access_format).ok().filter(|_| pool.access_log)?;
        let needs_cpu = match &format {
            Format::Tokens(tokens) => tokens.iter().any(|token| matches!(token, Token::Cpu(_))),
            Format::Json => true,
        };
        let log = AccessLog::new(&format, &pool.access_suppress_path);
        Some(Self {
            log,
            board,
            slot,
            bell,
            needs_cpu,
            before: (0, 0),
            worker: std::process::id(),
            master,
        })
    }

    /// The bell of who writes the log.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// A request begins.
    pub fn begin(&mut self) {
        self.before = self.cpu();
    }

    fn cpu(&self) -> Cpu {
        if !self.needs_cpu {
            return (0, 0);
        }
        getrusage(UsageWho::RUSAGE_SELF).map_or((0, 0), |usage| {
            (
                usage.user_time().num_microseconds() as u64,
                usage.system_time().num_microseconds() as u64,
            )
        })
    }

    /// One line for a request that has been run, and its time; `entry` lacks the CPU times. Nothing in here waits for
    /// anybody. False: there is no room for it, and the master is to be told.
    pub fn write(&mut self, mut entry: Entry, time: u64, log_limit: usize) -> bool {
        let now = self.cpu();
        entry.cpu_user = now.0.saturating_sub(self.before.0);
        entry.cpu_system = now.1.saturating_sub(self.before.1);
        let Some(line) = self.log.line(&entry) else { return true };
        let header = self.board.header();
        let kept = self.board.ring(self.slot).push(line.bytes, time);
        let wanted = match header.log_sleeps.load(SeqCst) {
            0 => false,
            sleep if sleep == Sleep::Pause as u32 => self.board.ring(self.slot).is_half_full(),
            _ => true,
        };
        if wanted && header.log_sleeps.swap(0, SeqCst) != 0 {
            let _ = nix::unistd::write(&self.bell, &1u64.to_ne_bytes());
        }
        if line.truncated {
            print_log(Level::Notice, false, TRUNCATED.as_bytes(), log_limit);
        }
        kept || header.log_loses.swap(1, Relaxed) != 0
    }
}
