//! A worker's access log: its file, and what a line needs that is not in the request.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use php_pool::access_log::{AccessLog, Entry, TRUNCATED};
use php_pool::config::access_format::{Format, Token, compile};
use php_pool::control::PoolSettings;
use php_pool::log::Level;

use super::print_log;

/// CPU time of this process, microseconds: in user mode, in the kernel.
type Cpu = (u64, u64);

/// The access log of a worker.
pub struct Access {
    log: AccessLog,
    file: OwnedFd,
    /// Whether a line shows CPU times, which cost two system calls.
    needs_cpu: bool,
    before: Cpu,
    /// Pid of the master, `%P`.
    pub master: u32,
    /// Writing failed last time: it is said once.
    failing: bool,
}

impl Access {
    /// For a pool's format; None when the format is none (the master has checked it).
    pub fn new(pool: &PoolSettings, file: OwnedFd, master: u32) -> Option<Self> {
        let format = compile(&pool.access_format).ok()?;
        let needs_cpu = match &format {
            Format::Tokens(tokens) => tokens.iter().any(|token| matches!(token, Token::Cpu(_))),
            Format::Json => true,
        };
        let log = AccessLog::new(&format, &pool.access_suppress_path);
        Some(Self {
            log,
            file,
            needs_cpu,
            before: (0, 0),
            master,
            failing: false,
        })
    }

    /// The file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The file was reopened.
    pub fn replace(&mut self, file: OwnedFd) {
        self.file = file;
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

    /// One line for a request that has been run; `entry` lacks the CPU times.
    pub fn write(&mut self, mut entry: Entry, log_limit: usize) {
        let now = self.cpu();
        entry.cpu_user = now.0.saturating_sub(self.before.0);
        entry.cpu_system = now.1.saturating_sub(self.before.1);
        let Some(line) = self.log.line(&entry) else { return };
        let result = nix::unistd::write(&self.file, line.bytes);
        if line.truncated {
            print_log(Level::Notice, false, TRUNCATED.as_bytes(), log_limit);
        }
        let failed = result.is_err();
        if let Err(error) = result
            && !self.failing
        {
            let text = format!(
                "a line could not be written to the access log: {error}; more such are not reported until one is"
            );
            print_log(Level::Error, false, text.as_bytes(), log_limit);
        }
        self.failing = failed;
    }
}
