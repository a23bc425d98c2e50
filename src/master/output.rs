//! What a zygote or worker prints, into the log.
#![forbid(unsafe_code)]

mod reader;

use std::cell::{OnceCell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::reader::{AT_ONCE, Chunk, End, Late, Pipe};
pub use self::reader::{Patience, Reader};
use super::saved::{Kept, Restorer, Saver};
use super::watch::Watch;
use super::worker::fields_of;
use crate::log::{Lines, Logger, Stream, WorkerOutput};
use crate::scoreboard::{Scoreboard, TextView, realtime_us};

/// Most that is read, out of turn, of what a process has said before it ended: what a pipe holds.
const LAST_WORDS: usize = 64 << 10;

/// The reading ends of a process's stdout and stderr; None: what it prints there is lost.
#[derive(Debug, Default)]
pub struct Pipes {
    stdout: Option<Pipe>,
    stderr: Option<Pipe>,
}

/// The pipes of a process, for a successor.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SavedPipes {
    stdout: Option<Kept>,
    stderr: Option<Kept>,
}

impl Pipes {
    /// What is to go on.
    pub fn save(&self, saver: &mut Saver) -> SavedPipes {
        let mut keep = |pipe: &Option<Pipe>| pipe.as_ref().map(|pipe| saver.keep(pipe));
        SavedPipes {
            stdout: keep(&self.stdout),
            stderr: keep(&self.stderr),
        }
    }

    /// Makes them again.
    ///
    /// # Errors
    /// When a descriptor is missing.
    pub fn restore(saved: SavedPipes, reader: &Reader, fds: &mut Restorer) -> io::Result<Self> {
        let mut take = |kept| fds.take_some(kept)?.map(|pipe| Pipe::new(pipe, reader)).transpose();
        Ok(Self {
            stdout: take(saved.stdout)?,
            stderr: take(saved.stderr)?,
        })
    }

    fn all(&self) -> impl Iterator<Item = (Stream, &Pipe)> {
        let stdout = self.stdout.iter().map(|pipe| (Stream::Stdout, pipe));
        stdout.chain(self.stderr.iter().map(|pipe| (Stream::Stderr, pipe)))
    }
}

/// Makes the pipes of a worker; with them come its own ends, stdout and stderr.
///
/// # Errors
/// When there are no descriptors left.
pub fn pipes(reader: &Reader) -> io::Result<(Pipes, OwnedFd, OwnedFd)> {
    let (stdout, out) = pipe(reader)?;
    let (stderr, err) = pipe(reader)?;
    Ok((Pipes { stdout, stderr }, out, err))
}

/// Makes the pipe of a zygote, of which only stderr is read.
///
/// # Errors
/// When there are no descriptors left.
pub fn stderr_pipe(reader: &Reader) -> io::Result<(Pipes, OwnedFd)> {
    let (stderr, err) = pipe(reader)?;
    Ok((Pipes { stdout: None, stderr }, err))
}

fn pipe(reader: &Reader) -> io::Result<(Option<Pipe>, OwnedFd)> {
    if reader.is_full() {
        return Ok((None, null()?));
    }
    let (ours, theirs) = io::pipe()?;
    Ok((Some(Pipe::new(ours.into(), reader)?), theirs.into()))
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
    watch: RefCell<Option<Watch>>,
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
    pipes: Pipes,
    reader: Reader,
    lines: RefCell<WorkerOutput>,
    slot: Option<(Arc<Scoreboard>, u32)>,
}

impl Output {
    /// Begins to read.
    pub fn start(pipes: Pipes, reader: &Reader, log: &Logger, speaker: Speaker<'_>, decorate: bool) -> Self {
        let lines = WorkerOutput::new(speaker.pool, speaker.pid, decorate);
        Self::with(pipes, reader, log, speaker, lines)
    }

    /// What is to go on.
    pub fn save(&self, saver: &mut Saver) -> SavedOutput {
        SavedOutput {
            pipes: self.shared.pipes.save(saver),
            lines: self.shared.lines.borrow().clone(),
        }
    }

    /// Begins to read again.
    ///
    /// # Errors
    /// When a descriptor is missing.
    pub fn restore(
        saved: SavedOutput,
        reader: &Reader,
        log: &Logger,
        speaker: Speaker<'_>,
        fds: &mut Restorer,
    ) -> io::Result<Self> {
        let pipes = Pipes::restore(saved.pipes, reader, fds)?;
        Ok(Self::with(pipes, reader, log, speaker, saved.lines))
    }

    fn with(pipes: Pipes, reader: &Reader, log: &Logger, speaker: Speaker<'_>, lines: WorkerOutput) -> Self {
        let shared = Rc::new(Shared {
            log: log.clone(),
            pool: speaker.pool.to_owned(),
            worker: speaker.pid,
            pipes,
            reader: reader.clone(),
            lines: RefCell::new(lines),
            slot: speaker.slot,
        });
        let task = shared.clone();
        let watch = Watch::start(async move {
            loop {
                if let Some((stream, chunk)) = task.read().await {
                    task.take(stream, &chunk);
                }
                tokio::task::yield_now().await;
            }
        });
        let watch = RefCell::new(Some(watch));
        Self { shared, watch }
    }

    /// Reads what is there now, as far as the pool's processes let it be read in time. Err: they do not.
    pub fn read(&self) -> Result<(), Late> {
        self.shared.read_now()
    }

    /// Reads what is there, to the end: the process has ended.
    pub fn drain(&self) {
        if self.read().is_ok() {
            return self.shared.close();
        }
        // It comes late, but it comes.
        *self.watch.borrow_mut() = None;
        let (shared, late) = (self.shared.clone(), self.shared.reader.closes_late());
        tokio::task::spawn_local(async move {
            for (stream, pipe) in shared.pipes.all() {
                while pipe
                    .fetch()
                    .await
                    .is_none_or(|chunk| shared.take(stream, &chunk) == End::Full)
                {}
            }
            shared.close();
            drop(late);
        });
    }
}

impl Shared {
    /// What comes next, stdout before stderr where both are ready.
    async fn read(&self) -> Option<(Stream, Chunk)> {
        let read = async |stream, pipe: &Option<Pipe>| match pipe {
            Some(pipe) => pipe.read().await.map(|chunk| (stream, chunk)),
            None => std::future::pending().await,
        };
        tokio::select! {
            biased;
            chunk = read(Stream::Stdout, &self.pipes.stdout) => chunk,
            chunk = read(Stream::Stderr, &self.pipes.stderr) => chunk,
        }
    }

    fn read_now(&self) -> Result<(), Late> {
        self.reader.patiently(|until| {
            self.pipes.all().try_for_each(|(stream, pipe)| {
                for _ in 0..LAST_WORDS / AT_ONCE {
                    let Some(chunk) = pipe.read_until(until)? else { break };
                    if self.take(stream, &chunk) != End::Full {
                        break;
                    }
                }
                Ok(())
            })
        })
    }

    fn take(&self, stream: Stream, chunk: &Chunk) -> End {
        self.with(|lines, to| lines.feed(stream, &chunk.bytes, to));
        chunk.end
    }

    /// Nothing more will come.
    fn close(&self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.with(|lines, to| lines.close(stream, to));
        }
    }

    fn with(&self, act: impl FnOnce(&mut WorkerOutput, &mut Lines<'_>)) {
        // A look at the scoreboard is dear: one is enough, and none for lines that nobody will read.
        let current = OnceCell::new();
        let mut lines = Lines {
            now: realtime_us(),
            format: &mut self.log.format(),
            take: &mut |said| {
                if !self.log.hears(&self.pool, said.line.len()) {
                    return;
                }
                let current = current.get_or_init(|| self.request());
                let other;
                let request = match said.request {
                    Some(id) if id != current.id => {
                        other = TextView {
                            id: id.to_owned(),
                            ..TextView::default()
                        };
                        &other
                    }
                    _ => current,
                };
                self.log.printed(&fields_of(&self.pool, self.worker, request), &said);
            },
        };
        act(&mut self.lines.borrow_mut(), &mut lines);
    }

    /// The request that its worker has, or had last: a line is about the one that the worker has named, else about this.
    fn request(&self) -> TextView {
        let view = self.slot.as_ref().map(|(board, slot)| board.view(*slot as usize));
        view.and_then(|view| view.text).unwrap_or_default()
    }
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::reader::tests::{hold, locally, print};
    use super::*;
    use crate::config::LogTarget;
    use crate::log::{Level, Settings, Stamp};
    use crate::scoreboard::{Request, Stage};

    /// A log in a file.
    fn log_in(folder: &tempfile::TempDir) -> (Logger, impl Fn() -> String) {
        let (log, path) = (Logger::new(Stamp::Time), folder.path().join("log"));
        let settings = Settings {
            target: Some(LogTarget::File(path.clone())),
            level: Level::Notice,
            limit: 1024,
            request_ids: false,
            ident: String::new(),
            facility: 0,
        };
        log.open(&settings, true).unwrap();
        log.started();
        (log, move || std::fs::read_to_string(&path).unwrap())
    }

    fn speaker<'a>(slot: Option<(Arc<Scoreboard>, u32)>) -> Speaker<'a> {
        Speaker {
            pool: "www",
            pid: 1,
            slot,
        }
    }

    #[test]
    fn last_words_may_come_late_but_come() {
        locally(async {
            let folder = tempfile::tempdir().unwrap();
            let (log, text) = log_in(&folder);
            let reader = Reader::new(&Rc::default());
            let (pipes, out, err) = pipes(&reader).unwrap();
            let output = Output::start(pipes, &reader, &log, speaker(None), true);
            print(&out, "the first\n");
            print(&err, "the last\n");
            let silent = hold(&out);
            output.drain();
            drop((output, out, err));
            assert_eq!(text(), "");
            drop(silent);
            while !text().contains("the last") {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let said = |text: &str| {
                text.lines()
                    .map(|line| line.split(" WARNING: ").nth(1).map(str::to_owned))
                    .collect::<Vec<_>>()
            };
            let line = |stream, text| Some(format!("[pool www] child 1 said into {stream}: \"{text}\""));
            assert_eq!(said(&text()), [line("stdout", "the first"), line("stderr", "the last")]);
        });
    }

    #[test]
    fn nothing_is_done_for_a_line_that_nobody_will_read() {
        const LINES: usize = 10_000;
        let board = Arc::new(Scoreboard::create(1).unwrap());
        let request = Request {
            query: &[0xff; 2000],
            ..Request::default()
        };
        board.slot(0).begin(Stage::Running, &request);
        let looks = Instant::now();
        for _ in 0..LINES {
            board.view(0);
        }
        let looks = looks.elapsed();
        locally(async {
            let folder = tempfile::tempdir().unwrap();
            let (log, text) = log_in(&folder);
            // It has said more than it may.
            assert!(!log.hears("www", usize::MAX));
            let slot = Some((board, 0));
            let output = Output::start(
                Pipes::default(),
                &Reader::new(&Rc::default()),
                &log,
                speaker(slot),
                true,
            );
            // The best of some: where the machine has much else to do, one is slow.
            let took = (0..5).map(|_| {
                let bytes = b"x\n".repeat(LINES);
                let lines = Instant::now();
                output.shared.take(Stream::Stderr, &Chunk { bytes, end: End::Full });
                lines.elapsed()
            });
            let lines = took.min().unwrap();
            assert!(lines < looks / 4, "{lines:?}, and as many looks {looks:?}");
            assert_eq!(text(), "");
        });
    }
}
