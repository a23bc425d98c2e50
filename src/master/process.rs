//! A process known by its pidfd, so that no signal ever reaches a stranger who has got its number.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::saved::{Kept, Restorer, Saver};
use crate::control::Exit;
use crate::log::errno;

/// A process.
#[derive(Debug)]
pub struct Process {
    fd: OwnedFd,
    pid: i32,
}

/// Kills what this process has below it, whoever made it.
pub fn kill_below() {
    /// More have another turn.
    const AT_ONCE: usize = 1000;
    let ours = std::process::id() as i32;
    let mut parents: Vec<Option<Process>> = vec![None];
    while let Some(parent) = parents.pop() {
        let number = parent.as_ref().map_or(ours, Process::pid);
        for pid in children(number) {
            let Ok(Some(child)) = Process::below(pid, number) else {
                continue;
            };
            // As long as the parent is there, its number is its own.
            if parent.as_ref().is_none_or(|parent| !parent.has_ended()) {
                child.signal(Signal::SIGKILL);
                if parents.len() < AT_ONCE {
                    parents.push(Some(child));
                }
            }
        }
    }
}

/// The numbers of a process's children.
fn children(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|all| all.split(' ').flat_map(str::parse).collect::<Vec<_>>())
        .collect()
}

/// A process, for a successor.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SavedProcess {
    fd: Kept,
    pid: i32,
}

/// Why a process that somebody has named is not taken for a child of its.
#[derive(Debug, Error)]
pub enum NotBelow {
    /// It is another's.
    #[error("process {pid} is a child of {found:?}, not of {parent}")]
    Foreign {
        /// Its number.
        pid: i32,
        /// Whose child it is.
        found: Option<i32>,
        /// Whose it should be.
        parent: i32,
    },
    /// The kernel does not give a descriptor for it.
    #[error("{}", errno(.0))]
    Unknown(#[from] io::Error),
}

impl NotBelow {
    /// Whether it says nothing of the process: there are no descriptors left, or no memory.
    pub fn is_ours(&self) -> bool {
        const WANTS: [i32; 3] = [libc::EMFILE, libc::ENFILE, libc::ENOMEM];
        matches!(self, Self::Unknown(error) if error.raw_os_error().is_some_and(|errno| WANTS.contains(&errno)))
    }
}

impl AsRawFd for Process {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Process {
    /// Of a child of ours that has not been waited for.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn of_child(pid: i32) -> io::Result<Self> {
        let invalid = || io::Error::from(nix::errno::Errno::EINVAL);
        let raw = (pid > 0).then(|| Pid::from_raw(pid)).flatten().ok_or_else(invalid)?;
        Ok(Self {
            fd: pidfd_open(raw, PidfdFlags::empty())?,
            pid,
        })
    }

    /// Of one that somebody has named. Believed only if it is a child of `parent`. None: it has ended.
    ///
    /// # Errors
    /// When it is another's, and when there are no descriptors left.
    pub fn below(pid: i32, parent: i32) -> Result<Option<Self>, NotBelow> {
        let process = match Self::of_child(pid) {
            Ok(process) => process,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let found = parent_of(pid);
        // As long as it lives its number is no other's.
        if process.has_ended() {
            return Ok(None);
        }
        match found {
            Some(found) if found == parent => Ok(Some(process)),
            found => Err(NotBelow::Foreign { pid, found, parent }),
        }
    }

    /// What is to go on.
    pub fn save(&self, saver: &mut Saver) -> SavedProcess {
        let fd = saver.keep(self);
        SavedProcess { fd, pid: self.pid }
    }

    /// Makes it again.
    ///
    /// # Errors
    /// When the descriptor is missing.
    pub fn restore(saved: SavedProcess, fds: &mut Restorer) -> io::Result<Self> {
        let fd = fds.take(saved.fd)?;
        Ok(Self { fd, pid: saved.pid })
    }

    /// Its number; it is another's only after [`Self::wait`] or its parent has collected it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal. One to a process that has ended is no error.
    pub fn signal(&self, signal: Signal) {
        if let Some(signal) = rustix::process::Signal::from_named_raw(signal as i32) {
            let _ = pidfd_send_signal(&self.fd, signal);
        }
    }

    /// How it ended; None while it lives or when it is not our child.
    pub fn wait(&self) -> Option<Exit> {
        exit(waitid(Id::PIDFd(self.fd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG).ok()?)
    }

    /// Whether it blocks or ignores a signal; false when it cannot be known.
    pub fn refuses(&self, signal: Signal) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let mut masks = status
            .lines()
            .filter_map(|line| line.strip_prefix("SigBlk:").or_else(|| line.strip_prefix("SigIgn:")))
            .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        masks.any(|mask| mask >> (signal as i32 - 1) & 1 != 0)
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        poll(
            &mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)],
            PollTimeout::ZERO,
        )
        .is_ok_and(|ready| ready > 0)
    }
}

/// How a process ended, if it did.
pub fn exit(status: WaitStatus) -> Option<Exit> {
    match status {
        WaitStatus::Exited(_, code) => Some(Exit::Code(code)),
        WaitStatus::Signaled(_, signal, core) => Some(Exit::Signal {
            signal: signal as i32,
            core,
        }),
        _ => None,
    }
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_number_is_believed_only_of_the_parents_child() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id() as i32;
        let me = std::process::id() as i32;
        assert_eq!(Process::below(pid, me).unwrap().unwrap().pid(), pid);
        assert!(matches!(
            Process::below(pid, 1),
            Err(NotBelow::Foreign { parent: 1, .. })
        ));
        assert!(Process::below(0, me).is_err() && Process::below(-1, me).is_err());

        let process = Process::of_child(pid).unwrap();
        assert!(!process.has_ended() && process.wait().is_none());
        process.signal(Signal::SIGTERM);
        while !process.has_ended() {
            std::thread::yield_now();
        }
        assert!(Process::below(pid, me).unwrap().is_none());
        assert_eq!(
            process.wait(),
            Some(Exit::Signal {
                signal: libc::SIGTERM,
                core: false
            })
        );
        let _ = child.wait();
        assert!(Process::below(pid, me).unwrap().is_none());
    }
}
