//! A worker that is looked at from outside.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{PidfdFlags, pidfd_open};
use thiserror::Error;

use super::memory::{self, Memory, ProcessMemory, ReadError};
use super::reader::{self, Backtrace, Limits};
use crate::scoreboard::{HEADER_SIZE, Header, TraceLayout};
use crate::sys::Ahead;

/// Why there is no backtrace.
#[derive(Debug, Error)]
pub enum TraceError {
    /// It has ended.
    #[error("process {0} is gone")]
    Gone(i32),
    /// No scoreboard is mapped there.
    #[error("process {0} is no worker of php-pool")]
    NoWorker(i32),
    /// Its scoreboard is that of another version.
    #[error("process {0} is a worker of another version of php-pool than {version}", version = env!("CARGO_PKG_VERSION"))]
    OtherVersion(i32),
    /// The privilege is missing.
    #[error("process {pid} cannot be read: {reason}")]
    Refused {
        /// Which.
        pid: i32,
        /// What is missing, by name.
        reason: String,
    },
    /// It has executed something else.
    #[error("process {0} runs another program than its zygote did")]
    OtherProgram(i32),
    /// What the worker published leads nowhere.
    #[error("process {pid}: {error}; the worker has overwritten its scoreboard")]
    Lies {
        /// Which.
        pid: i32,
        /// What could not be read.
        error: ReadError,
    },
    /// It has mapped memory that takes as long to read as it likes.
    #[error("process {0} holds up whoever reads its memory")]
    HeldUp(i32),
    /// A system call failed.
    #[error("process {pid} cannot be looked at: {error}")]
    System {
        /// Which.
        pid: i32,
        /// Why.
        error: std::io::Error,
    },
}

/// A worker, known by its pidfd: what is read is never that of a stranger who has got its number.
#[derive(Debug)]
pub struct Worker {
    pid: i32,
    pidfd: OwnedFd,
    layout: TraceLayout,
    /// What it must run; None: whatever it is.
    program: Option<Program>,
}

/// Device and inode of an executable.
pub type Program = (u64, u64);

/// Which program a path leads to.
pub fn program(path: &Path) -> Option<Program> {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

impl Worker {
    /// One whose pidfd and scoreboard are at hand. A worker can execute what it likes, also what runs as somebody else then:
    /// of that the memory is not the worker's to have read, and only `program` is.
    pub fn new(pid: i32, pidfd: OwnedFd, layout: TraceLayout, program: Option<Program>) -> Self {
        Self {
            pid,
            pidfd,
            layout,
            program,
        }
    }

    /// One of which the number alone is known: its layout is read from its own memory.
    ///
    /// # Errors
    /// When it is no worker of this version, or may not be read.
    pub fn of_pid(pid: i32) -> Result<Self, TraceError> {
        // A negative number is not only no process, it also makes from_raw() panic.
        let raw = rustix::process::Pid::from_raw(pid.max(0)).ok_or(TraceError::Gone(pid))?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty()).map_err(|errno| failed(pid, errno.into()))?;
        let start = scoreboard_address(pid)?;
        let mut bytes = vec![0; HEADER_SIZE];
        let file = memory::open(pid).map_err(|error| failed(pid, error))?;
        let mut memory = ProcessMemory::of(&file, None);
        memory.read(start, &mut bytes).map_err(|error| unread(pid, error))?;
        let layout = Header::trace_layout_in(&bytes).ok_or(TraceError::OtherVersion(pid))?;
        // A master has mapped the scoreboard too but has no PHP, and a zygote has no requests.
        let php = memory.read(layout.current_execute_data, &mut [0; 8]);
        let worker = Self::new(pid, pidfd, layout, None);
        worker.check_alive()?;
        if php.is_err() || layout.zygote == pid as u64 {
            return Err(TraceError::NoWorker(pid));
        }
        Ok(worker)
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Where its PHP has what is read.
    pub fn layout(&self) -> &TraceLayout {
        &self.layout
    }

    /// What it does at this moment. It is neither stopped nor told: this thread goes to its core if it runs, so that neither
    /// waits for the other.
    ///
    /// This may block for as long as the worker likes, if it has mapped memory that takes as long to read.
    ///
    /// # Errors
    /// When it has ended, may not be read, or published addresses that lead nowhere.
    pub fn backtrace(&self, limits: Limits) -> Result<Backtrace, TraceError> {
        self.look(&self.open()?, Ahead::go_in_place_of(self.pid), limits)
    }

    /// One that is looked at again and again: see [`Opened::backtrace`].
    ///
    /// # Errors
    /// When it has ended or may not be read.
    pub fn opened(self) -> Result<Opened, TraceError> {
        Ok(Opened {
            memory: self.open()?,
            worker: self,
        })
    }

    /// Its memory: of the program that it must run.
    fn open(&self) -> Result<File, TraceError> {
        let memory = memory::open(self.pid);
        // Looked at after the memory was opened: once the process runs another program, nothing of that memory is there to be
        // read any more.
        let runs = self
            .program
            .and_then(|_| program(Path::new(&format!("/proc/{}/exe", self.pid))));
        // Its number cannot have passed to another process before it ended; so if it lives, it was opened.
        self.check_alive()?;
        let memory = memory.map_err(|error| failed(self.pid, error))?;
        if self.program != runs {
            return Err(TraceError::OtherProgram(self.pid));
        }
        Ok(memory)
    }

    fn look(&self, memory: &File, ahead: Option<Ahead>, limits: Limits) -> Result<Backtrace, TraceError> {
        let read = reader::read(&mut ProcessMemory::of(memory, ahead), &self.layout, limits);
        self.check_alive()?;
        read.map_err(|error| unread(self.pid, error))
    }

    fn check_alive(&self) -> Result<(), TraceError> {
        match poll(
            &mut [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)],
            PollTimeout::ZERO,
        ) {
            Ok(0) => Ok(()),
            _ => Err(TraceError::Gone(self.pid)),
        }
    }
}

/// A worker whose memory is kept open. Once it runs another program, it is gone.
#[derive(Debug)]
pub struct Opened {
    worker: Worker,
    memory: File,
}

impl Opened {
    /// As [`Worker::backtrace`], but from wherever this thread is: that goes to a core and leaves it again costs a busy pool more
    /// than the look itself, and a worker may instead have to wait a few times for the kernel's lock on its memory.
    ///
    /// # Errors
    /// As there.
    pub fn backtrace(&self, limits: Limits) -> Result<Backtrace, TraceError> {
        self.worker.look(&self.memory, Ahead::go(), limits)
    }
}

/// A process and all that descend from it, as `/proc` has them now.
pub fn family(pid: i32) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name in brackets may hold anything.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        if let Some(parent) = rest.split_whitespace().nth(1).and_then(|parent| parent.parse().ok()) {
            children.entry(parent).or_default().push(child);
        }
    }
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(member) = family.get(next) {
        // Each child has one parent and is taken once, so that this ends.
        family.extend(children.remove(member).unwrap_or_default());
        next += 1;
    }
    family
}

/// Most of a process's list of mappings that is looked through; the kernel allows 65,530 mappings.
const MOST_MAPS: u64 = 32 << 20;

/// Where a process has mapped the beginning of its scoreboard.
fn scoreboard_address(pid: i32) -> Result<u64, TraceError> {
    let maps = File::open(format!("/proc/{pid}/maps")).map_err(|error| failed(pid, error))?;
    for line in BufReader::new(maps.take(MOST_MAPS)).split(b'\n') {
        let line = line.map_err(|error| failed(pid, error))?;
        let line = String::from_utf8_lossy(&line);
        // start-end flags offset device inode path
        let mut fields = line.split_ascii_whitespace();
        let (range, offset, path) = (fields.next(), fields.nth(1), fields.nth(2));
        if path == Some("/memfd:php-pool-scoreboard") && offset == Some("00000000") {
            let start = range.and_then(|range| range.split_once('-'));
            return start
                .and_then(|(start, _)| u64::from_str_radix(start, 16).ok())
                .ok_or(TraceError::NoWorker(pid));
        }
    }
    Err(TraceError::NoWorker(pid))
}

fn failed(pid: i32, error: std::io::Error) -> TraceError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ESRCH | Errno::ENOENT) => TraceError::Gone(pid),
        Some(Errno::EPERM | Errno::EACCES) => TraceError::Refused {
            pid,
            reason: missing_privilege(pid),
        },
        _ => TraceError::System { pid, error },
    }
}

fn unread(pid: i32, error: ReadError) -> TraceError {
    match error {
        ReadError::Process(errno) => failed(pid, errno.into()),
        error => TraceError::Lies { pid, error },
    }
}

const CAP_SYS_PTRACE: u32 = 19;

/// Which privilege this process lacks to read another, in the order in which the kernel asks for it.
fn missing_privilege(pid: i32) -> String {
    let us = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let them = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let capabilities = field(&us, "CapEff:")
        .and_then(|text| u64::from_str_radix(text, 16).ok())
        .unwrap_or(0);
    let ptrace_scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok();
    let scope = ptrace_scope.as_deref().map_or("0", str::trim);
    if capabilities >> CAP_SYS_PTRACE & 1 != 0 {
        return match scope {
            "3" => "kernel.yama.ptrace_scope is 3, which forbids it to everybody".to_owned(),
            _ => "a security module or a user namespace forbids it, though CAP_SYS_PTRACE is there".to_owned(),
        };
    }
    let uid = |status: &str| field(status, "Uid:").map(str::to_owned);
    if uid(&us) != uid(&them) {
        let of = uid(&them).unwrap_or_default();
        return format!("it runs as another user (uid {of}), for which CAP_SYS_PTRACE is needed");
    }
    // The kernel gives the files of a process that is not dumpable to root (not its folder).
    let owner = fs::metadata(format!("/proc/{pid}/status"))
        .map(|found| found.uid().to_string())
        .ok();
    if owner.is_some() && owner != uid(&them) {
        return "it is not dumpable (process.dumpable = no), for which CAP_SYS_PTRACE is needed".to_owned();
    }
    match scope {
        "0" => "CAP_SYS_PTRACE is missing".to_owned(),
        scope => format!("kernel.yama.ptrace_scope is {scope}, for which CAP_SYS_PTRACE is needed"),
    }
}

/// The first word of a line of `/proc/PID/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_whitespace()
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_belong_to_the_family() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (me, pid) = (nix::unistd::getpid().as_raw(), child.id() as i32);
        let found = family(me);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            found[0] == me && found.contains(&pid) && !found.contains(&1),
            "{found:?}"
        );
        assert_eq!(family(pid), [pid]);
    }

    #[test]
    fn a_process_without_a_scoreboard_is_no_worker() {
        // Another test of this process may have a scoreboard mapped.
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        // Between fork and exec it has our mappings.
        while !fs::read_to_string(format!("/proc/{pid}/comm"))
            .unwrap()
            .contains("sleep")
        {
            std::thread::yield_now();
        }
        let error = Worker::of_pid(pid).unwrap_err();
        assert_eq!(error.to_string(), format!("process {pid} is no worker of php-pool"));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(Worker::of_pid(pid).unwrap_err(), TraceError::Gone(_)));
    }

    #[test]
    fn no_process_has_these_numbers() {
        for pid in [0, -1, i32::MAX, i32::MIN] {
            assert!(matches!(Worker::of_pid(pid).unwrap_err(), TraceError::Gone(_)), "{pid}");
        }
    }
}
