//! What a zygote or worker prints, into the log.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::sys;
use super::watch::Watch;
use super::worker::fields_of;
use crate::log::{Lines, Logger, Stream, WorkerOutput};
use crate::scoreboard::{TextView, realtime_us};

/// Most that is read of one process in one go: another one's turn then.
const AT_ONCE: usize = 64 << 10;

/// The reading ends of a process's stdout and stderr.
#[derive(Debug)]
pub struct Pipes {
    stdout: Option<PipeReader>,
    stderr: PipeReader,
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

/// The output of one process on its way into the log.
#[derive(Debug)]
pub struct Output {
    shared: Rc<Shared>,
    _watch: Watch,
}

struct Shared {
    log: Logger,
    pool: String,
    worker: i32,
    stdout: Option<AsyncFd<PipeReader>>,
    stderr: AsyncFd<PipeReader>,
    lines: RefCell<WorkerOutput>,
    /// The request that the process has, or had last: what it prints is told by it.
    request: Box<dyn Fn() -> TextView>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("pool", &self.pool)
            .field("worker", &self.worker)
            .finish_non_exhaustive()
    }
}

impl Output {
    /// Begins to read.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn start(
        pipes: Pipes,
        log: &Logger,
        pool: &str,
        worker: i32,
        decorate: bool,
        request: Box<dyn Fn() -> TextView>,
    ) -> io::Result<Self> {
        let register = |pipe| sys::register(pipe, Interest::READABLE);
        let shared = Rc::new(Shared {
            log: log.clone(),
            pool: pool.to_owned(),
            worker,
            stdout: pipes.stdout.map(register).transpose()?,
            stderr: register(pipes.stderr)?,
            lines: RefCell::new(WorkerOutput::new(pool, worker, decorate)),
            request,
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
                let request = (self.request)();
                let uri = request.full_uri();
                let fields = fields_of(&self.pool, self.worker, &request, &uri);
                self.log.printed(&fields, &said);
            },
        };
        act(&mut self.lines.borrow_mut(), &mut lines);
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
