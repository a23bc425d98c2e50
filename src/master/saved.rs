//! What outlives an exec of the master in place: plain data, and descriptors by their numbers.
//!
//! Every part of the master knows what of it must go on: `save` makes it plain data and changes nothing, so that the master
//! serves on where the exec fails; `restore` makes the part again. What neither has is made anew: tasks, timers, caches.
//! The data travel as JSON in a sealed memfd: a field that a later version adds takes its default.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::cgroup::SavedGroups;
use super::listen::SavedSockets;
use super::pool::SavedPool;
use super::sys;
use crate::config::Config;
use crate::log::SavedLog;
use crate::{control, scoreboard};

/// Raised when a successor of an earlier version could not make sense of the state any more.
const VERSION: u32 = 1;

/// What a successor must have in common with its predecessor: the processes that it takes over speak it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Versions {
    /// [`VERSION`]
    state: u32,
    /// Of the control protocol.
    control: u32,
    /// Of the scoreboard.
    scoreboard: u32,
}

impl Versions {
    const OURS: Self = Self {
        state: VERSION,
        control: control::VERSION,
        scoreboard: scoreboard::LAYOUT_VERSION,
    };
}

/// Why a state cannot be taken over.
#[derive(Debug, Error)]
pub enum StateError {
    /// It cannot be read.
    #[error("the state of the master cannot be read: {0}")]
    Read(#[source] io::Error),
    /// Nobody vouches for it.
    #[error("the state of the master is not sealed")]
    NotSealed,
    /// It is of another version.
    #[error(
        "the master that runs and this program are too far apart (state, control protocol and scoreboard have versions {0}, \
         here {1}): it takes a restart"
    )]
    Version(String, String),
    /// It makes no sense.
    #[error("the state of the master is not understood: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// A descriptor of the state: its number, which the exec does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Kept(RawFd);

/// Collects the descriptors of a state as it is made.
#[derive(Debug, Default)]
pub struct Saver {
    kept: BTreeSet<Kept>,
}

impl Saver {
    /// Notes a descriptor. It must stay open until the exec.
    pub fn keep(&mut self, fd: &impl AsRawFd) -> Kept {
        let kept = Kept(fd.as_raw_fd());
        self.kept.insert(kept);
        kept
    }

    /// Lets the descriptors pass an exec, or no longer.
    pub fn inherit(&self, inherited: bool) {
        for Kept(fd) in &self.kept {
            sys::set_close_on_exec(*fd, !inherited);
        }
    }
}

/// The descriptors of a state that is being restored.
#[derive(Debug, Default)]
pub struct Restorer {
    taken: BTreeSet<Kept>,
}

impl Restorer {
    /// Takes one over, once.
    ///
    /// # Errors
    /// When it is not open, or taken already.
    pub fn take(&mut self, kept: Kept) -> io::Result<OwnedFd> {
        let fresh = self.taken.insert(kept);
        let fd = fresh.then(|| sys::take_inherited(kept.0)).flatten();
        fd.ok_or_else(|| io::Error::other(format!("descriptor {} of the state is not open", kept.0)))
    }

    /// The same for one that need not be there.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_some(&mut self, kept: Option<Kept>) -> io::Result<Option<OwnedFd>> {
        kept.map(|kept| self.take(kept)).transpose()
    }
}

/// The whole of a master.
#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    /// The configuration that is in force.
    pub config: Config,
    /// The log.
    pub log: SavedLog,
    /// Its file, where it is one.
    pub log_file: Option<Kept>,
    /// stderr as it was at the start.
    pub stderr: Option<Kept>,
    /// The limit of open files as it was at the start, now and at most; None is no limit.
    pub open_files: (Option<u64>, Option<u64>),
    /// The next number that no worker, generation or pool has had.
    pub next: u64,
    /// The pid file.
    pub pid_file: Option<PathBuf>,
    /// The control socket.
    pub desk: Option<Kept>,
    /// Control groups.
    pub cgroup: Option<SavedGroups>,
    /// Listening sockets.
    pub sockets: SavedSockets,
    /// The pools of the configuration.
    pub pools: Vec<SavedPool>,
    /// Those that an earlier reload has removed.
    pub removed: Vec<SavedPool>,
    /// The reload that comes next renews everything.
    pub force: bool,
}

#[derive(Deserialize)]
struct Head {
    versions: Versions,
}

#[derive(Serialize)]
struct Written<'a> {
    versions: Versions,
    state: &'a Saved,
}

#[derive(Deserialize)]
struct Whole {
    state: Saved,
}

impl Saved {
    /// Writes it into a sealed memfd, ready to be read.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write(&self) -> io::Result<File> {
        let fd = memfd_create(c"php-pool-state", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let mut file = File::from(fd);
        let written = Written {
            versions: Versions::OURS,
            state: self,
        };
        file.write_all(&serde_json::to_vec(&written)?)?;
        file.rewind()?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(file)
    }

    /// Reads one, from its begin to its end.
    ///
    /// # Errors
    /// When it is not sealed, of another version, or not understood.
    pub fn read(mut file: impl AsFd + Read) -> Result<Self, StateError> {
        let seals = fcntl(file.as_fd(), FcntlArg::F_GET_SEALS).map_err(|error| StateError::Read(error.into()))?;
        if !SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK) {
            return Err(StateError::NotSealed);
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(StateError::Read)?;
        let Head { versions } = serde_json::from_slice(&text)?;
        if versions != Versions::OURS {
            let show = |of: &Versions| format!("{}, {} and {}", of.state, of.control, of.scoreboard);
            return Err(StateError::Version(show(&versions), show(&Versions::OURS)));
        }
        let Whole { state } = serde_json::from_slice(&text)?;
        Ok(state)
    }
}
