//! What a zygote or worker prints, into the log.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::saved::{Kept, Restorer, Saver};
use super::sys;
use super::watch::Watch;
use super::worker::fields_of;
use crate::log::{Lines, Logger, Stream, WorkerOutput};
use crate::scoreboard::{Scoreboard, TextView, realtime_us};

/// Most that is read of one process in one go: another one's turn then.
const AT_ONCE: usize = 64 << 10;

/// The reading ends of a process's stdout and stderr.
#[derive(Debug)]
pub struct Pipes {
    stdout: Option<PipeReader>,
    stderr: PipeReader,
}

/// The pipes of a process, for a successor.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SavedPipes {
    stdout: Option<Kept>,
    stderr: Kept,
}

impl Pipes {
    /// What is to go on.
    pub fn save(&self, saver: &mut Saver) -> SavedPipes {
        SavedPipes {
            stdout: self.stdout.as_ref().map(|stdout| saver.keep(stdout)),
            stderr: saver.keep(&self.stderr),
        }
    }

    /// Makes them again.
    ///
    /// # Errors
    /// When a descriptor is missing.
    pub fn restore(saved: SavedPipes, fds: &mut Restorer) -> io::Result<Self> {
        Ok(Self {
            stdout: fds.take_some(saved.stdout)?.map(PipeReader::from),
            stderr: fds.take(saved.stderr)?.into(),
        })
    }
}

/// Makes the pipes of a worker; with them come its own ends, stdout and stderr.
///
/// # Errors
/// When there are no descriptors left.
pub fn pipes() -> io::Result<(Pipes, PipeWriter, PipeWriter)> {
    let (stdout, out) = io::pipe()?;
    let (stderr, err) = io::pipe()?;
    for fd in [&stdout, &stderr] {
        rustix::io::ioctl_fionbio(fd, true)?;
    }
    Ok((
        Pipes {
            stdout: Some(stdout),
            stderr,
        },
        out,
        err,
    ))
}

/// Makes the pipe of a zygote, of which only stderr is read.
///
/// # Errors
/// When there are no descriptors left.
pub fn stderr_pipe() -> io::Result<(Pipes, PipeWriter)> {
    let (stderr, err) = io::pipe()?;
    rustix::io::ioctl_fionbio(&stderr, true)?;
    Ok((Pipes { stdout: None, stderr }, err))
}

/// Whose output it is.
#[derive(Clone, Debug)]
pub struct Speaker<'a> {
    /// Its pool.
    pub pool: &'a str,
    /// Its pid.
    pub pid: i32,
    /// A worker's slot in its scoreboard: what it prints is told by the request there.
    pub slot: Option<(Arc<Scoreboard>, u32)>,
}

/// The output of one process on its way into the log.
#[derive(Debug)]
pub struct Output {
    shared: Rc<Shared>,
    _watch: Watch,
}

/// The output of a process, for a successor, with the line that is not complete.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedOutput {
    pipes: SavedPipes,
    lines: WorkerOutput,
}

#[derive(Debug)]
struct Shared {
    log: Logger,
    pool: String,
    worker: i32,
    stdout: Option<AsyncFd<PipeReader>>,
    stderr: AsyncFd<PipeReader>,
    lines: RefCell<WorkerOutput>,
    slot: Option<(Arc<Scoreboard>, u32)>,
}

impl Output {
    /// Begins to read.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn start(pipes: Pipes, log: &Logger, speaker: Speaker<'_>, decorate: bool) -> io::Result<Self> {
        let lines = WorkerOutput::new(speaker.pool, speaker.pid, decorate);
        Self::with(pipes, log, speaker, lines)
    }

    /// What is to go on.
    pub fn save(&self, saver: &mut Saver) -> SavedOutput {
        let stdout = self.shared.stdout.as_ref();
        SavedOutput {
            pipes: SavedPipes {
                stdout: stdout.map(|stdout| saver.keep(stdout.get_ref())),
                stderr: saver.keep(self.shared.stderr.get_ref()),
            },
            lines: self.shared.lines.borrow().clone(),
        }
    }

    /// Begins to read again.
    ///
    /// # Errors
    /// When a descriptor is missing.
    pub fn restore(saved: SavedOutput, log: &Logger, speaker: Speaker<'_>, fds: &mut Restorer) -> io::Result<Self> {
        Self::with(Pipes::restore(saved.pipes, fds)?, log, speaker, saved.lines)
    }

    fn with(pipes: Pipes, log: &Logger, speaker: Speaker<'_>, lines: WorkerOutput) -> io::Result<Self> {
        let register = |pipe| sys::register(pipe, Interest::READABLE);
        let shared = Rc::new(Shared {
            log: log.clone(),
            pool: speaker.pool.to_owned(),
            worker: speaker.pid,
            stdout: pipes.stdout.map(register).transpose()?,
            stderr: register(pipes.stderr)?,
            lines: RefCell::new(lines),
            slot: speaker.slot,
        });
        let task = shared.clone();
        let watch = Watch::start(async move { task.run().await });
        Ok(Self { shared, _watch: watch })
    }

    /// Reads what is there now.
    pub fn read(&self) {
        self.shared.read(Stream::Stdout);
        self.shared.read(Stream::Stderr);
    }

    /// Reads what is there, to the end: the process has ended.
    pub fn drain(&self) {
        self.read();
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.shared.with(|lines, to| lines.close(stream, to));
        }
    }
}

impl Shared {
    async fn run(&self) {
        let (mut out, mut err) = (self.stdout.is_some(), true);
        while out || err {
            let stdout = async {
                match &self.stdout {
                    Some(fd) if out => fd.readable().await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                ready = stdout => out = ready.is_ok_and(|mut ready| self.step(Stream::Stdout, &mut ready)),
                ready = self.stderr.readable(), if err => {
                    err = ready.is_ok_and(|mut ready| self.step(Stream::Stderr, &mut ready));
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// False at the stream's end.
    fn step(&self, stream: Stream, ready: &mut tokio::io::unix::AsyncFdReadyGuard<'_, PipeReader>) -> bool {
        match self.read(stream) {
            Got::Nothing => ready.clear_ready(),
            Got::Some => {}
            Got::End => return false,
        }
        true
    }

    fn read(&self, stream: Stream) -> Got {
        let pipe = match (stream, &self.stdout) {
            (Stream::Stdout, Some(stdout)) => stdout,
            (Stream::Stdout, None) => return Got::End,
            (Stream::Stderr, _) => &self.stderr,
        };
        let mut buffer = [0; 8192];
        let mut read = 0;
        while read < AT_ONCE {
            match pipe.get_ref().read(&mut buffer) {
                Ok(0) => return Got::End,
                Ok(count) => {
                    read += count;
                    self.with(|lines, to| lines.feed(stream, &buffer[..count], to));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Got::Nothing,
                Err(_) => return Got::End,
            }
        }
        Got::Some
    }

    fn with(&self, act: impl FnOnce(&mut WorkerOutput, &mut Lines<'_>)) {
        let mut lines = Lines {
            now: realtime_us(),
            format: &mut self.log.format(),
            take: &mut |said| {
                let request = self.request(said.request);
                self.log.printed(&fields_of(&self.pool, self.worker, &request), &said);
            },
        };
        act(&mut self.lines.borrow_mut(), &mut lines);
    }

    /// The request of a line: the one that its worker has named, or else the one that it has, or had last.
    fn request(&self, named: Option<&str>) -> TextView {
        let view = self.slot.as_ref().map(|(board, slot)| board.view(*slot as usize));
        let request = view.and_then(|view| view.text).unwrap_or_default();
        match named {
            Some(id) if id != request.id => TextView {
                id: id.to_owned(),
                ..TextView::default()
            },
            _ => request,
        }
    }
}

enum Got {
    Some,
    Nothing,
    End,
}

/// /dev/null, for what nobody reads.
///
/// # Errors
/// When there is none.
pub fn null() -> io::Result<OwnedFd> {
    Ok(std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?
        .into())
}
