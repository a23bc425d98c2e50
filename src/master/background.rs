//! Going into the background: the process that was called waits for the one that stays.
#![forbid(unsafe_code)]

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::ForkResult;

use super::sys;
use crate::log::Logger;

/// How long the caller waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the process that stays owes the one that waits. Dropped without a word, it means failure.
#[derive(Debug)]
pub struct Report(PipeWriter);

impl Report {
    /// Start-up has succeeded.
    pub fn success(mut self) {
        let _ = self.0.write_all(&1i32.to_ne_bytes());
    }
}

/// Which of the two this process is.
#[derive(Debug)]
pub enum Side {
    /// The one that stays.
    Stays(Report),
    /// The one that was called; it is to exit with this status.
    Called(i32),
}

/// Forks. To be called while the process has one thread.
///
/// # Errors
/// When there can be no other process.
pub fn enter(log: &Logger) -> io::Result<Side> {
    let (reader, writer) = io::pipe()?;
    match sys::fork() {
        Err(error) => Err(error.into()),
        Ok(ForkResult::Child) => Ok(Side::Stays(Report(writer))),
        Ok(ForkResult::Parent { .. }) => {
            drop(writer);
            Ok(Side::Called(wait(reader, log)))
        }
    }
}

fn wait(mut reader: PipeReader, log: &Logger) -> i32 {
    let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    let ready = poll(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], timeout);
    if !ready.is_ok_and(|ready| ready > 0) {
        log.error("the master process didn't send back its status (via the pipe to the calling process)");
        return 70;
    }
    let mut word = [0; 4];
    match reader.read_exact(&mut word) {
        Ok(()) if i32::from_ne_bytes(word) == 1 => 0,
        _ => 70,
    }
}
