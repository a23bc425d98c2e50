//! Where lines go. Writing never waits: what a pipe or a socket does not take at once is kept, up to a bound, and what
//! goes beyond it is counted.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::journal::Journal;

/// Most bytes kept for a reader that does not read.
const KEPT: usize = 1 << 20;
/// A pipe that is writable takes so much without blocking (PIPE_BUF).
const PIPE_BUF: usize = 4096;

/// A destination.
#[derive(Debug)]
pub(super) enum Target {
    Stderr,
    File { path: PathBuf, file: File },
    Syslog(Syslog),
    Journal(Journal),
}

impl Target {
    /// Opens a log file: for appending, created 0600.
    pub(super) fn file(path: &Path) -> io::Result<Self> {
        Ok(Self::File {
            path: path.to_owned(),
            file: OpenOptions::new().append(true).create(true).mode(0o600).open(path)?,
        })
    }

    pub(super) fn name(&self) -> String {
        match self {
            Self::Stderr => "stderr".to_owned(),
            Self::File { path, .. } => format!("the error log {}", path.display()),
            Self::Syslog(_) => "syslog".to_owned(),
            Self::Journal(_) => "the journal".to_owned(),
        }
    }

    /// Writes what goes without waiting; `WouldBlock` when nothing does.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stderr => write_at_once(io::stderr().as_fd(), bytes),
            Self::File { file, .. } => write_at_once(file.as_fd(), bytes),
            Self::Syslog(syslog) => syslog.send(bytes).map(|()| bytes.len()),
            Self::Journal(journal) => journal.send(bytes).map(|()| bytes.len()),
        }
    }

    fn wait(&self, limit: Duration) {
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let stderr = io::stderr();
        let fd = match self {
            Self::Stderr => stderr.as_fd(),
            Self::File { file, .. } => file.as_fd(),
            Self::Syslog(Syslog {
                socket: Some(socket), ..
            }) => socket.as_fd(),
            // A datagram that was not taken is tried again soon.
            Self::Syslog(_) | Self::Journal(_) => return std::thread::sleep(limit.min(Duration::from_millis(10))),
        };
        // Whatever poll says, the write that follows finds out.
        let _ = poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], timeout);
    }
}

fn write_at_once(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // stderr's description is shared with others, so O_NONBLOCK must not be set on it: ask first, and write no more than
    // a pipe that says yes is sure to take. (A regular file always says yes.)
    let chunk = &bytes[..bytes.len().min(PIPE_BUF)];
    match poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], PollTimeout::ZERO) {
        Ok(0) => Err(io::ErrorKind::WouldBlock.into()),
        _ => match nix::unistd::write(fd, chunk) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => Ok(n),
            Err(Errno::EINTR) => Ok(0),
            Err(e) => Err(e.into()),
        },
    }
}

/// syslog's datagrams as RFC 3164 has them, on `/dev/log`.
#[derive(Debug)]
pub(super) struct Syslog {
    path: PathBuf,
    socket: Option<UnixDatagram>,
}

impl Syslog {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            socket: None,
        }
    }

    /// Sends a datagram, or as much of it as the socket takes of one. The daemon may have been restarted since the last one: then
    /// the socket is another one.
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut cut = None;
        loop {
            match self.send_whole(cut.as_deref().unwrap_or(bytes)) {
                Err(error) if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) => {
                    let length = cut.as_ref().map_or(bytes.len(), Vec::len) / 2;
                    cut = Some(shortened(bytes, length).ok_or(error)?);
                }
                sent => return sent,
            }
        }
    }

    fn send_whole(&mut self, bytes: &[u8]) -> io::Result<()> {
        let too_long = Some(Errno::EMSGSIZE as i32);
        if let Some(socket) = &self.socket {
            match socket.send(bytes) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock || e.raw_os_error() == too_long => return Err(e),
                Err(_) => self.socket = None,
            }
        }
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect(&self.path)?;
        let socket = self.socket.insert(socket);
        socket.send(bytes).map(|_| ())
    }
}

/// So much of a text, between two characters of it, and a sign that there was more; None: nothing would be left.
fn shortened(text: &[u8], length: usize) -> Option<Vec<u8>> {
    const ELLIPSIS: &[u8] = b"...";
    let mut end = length.min(text.len()).checked_sub(ELLIPSIS.len())?;
    while end > 0 && text.get(end).is_some_and(|byte| byte & 0xc0 == 0x80) {
        end -= 1;
    }
    (end > 0).then(|| [&text[..end], ELLIPSIS].concat())
}

/// A destination with what it has not taken yet.
#[derive(Debug)]
pub(super) struct Sink {
    pub(super) target: Target,
    kept: VecDeque<Vec<u8>>,
    kept_bytes: usize,
    /// Part of the first of them is written already.
    begun: bool,
    /// The destination ends in the middle of a line.
    torn: bool,
    /// Lines lost since the last one that was written.
    lost: u64,
    failing: bool,
}

/// What became of a line.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Written or kept.
    Fine,
    /// Written, after so many that were lost.
    Recovered(u64),
    /// Lost, the first in a row, for this reason.
    Failed(io::Error),
    /// Lost, as the one before.
    StillFailing,
}

impl Sink {
    pub(super) fn new(target: Target) -> Self {
        Self {
            target,
            kept: VecDeque::new(),
            kept_bytes: 0,
            begun: false,
            torn: false,
            lost: 0,
            failing: false,
        }
    }

    /// Takes a line (for syslog: a datagram).
    pub(super) fn put(&mut self, line: &[u8]) -> Outcome {
        if self.kept_bytes + line.len() > KEPT {
            self.lost += 1;
            return self.flush();
        }
        self.kept_bytes += line.len();
        self.kept.push_back(line.to_vec());
        self.flush()
    }

    /// Writes what can be written now.
    pub(super) fn flush(&mut self) -> Outcome {
        let mut wrote = false;
        while let Some(line) = self.kept.front_mut() {
            if self.torn && !self.begun {
                line.insert(0, b'\n');
                self.kept_bytes += 1;
                self.begun = true;
            }
            match self.target.write(line) {
                Ok(n) if n < line.len() => {
                    self.kept_bytes -= n;
                    line.drain(..n);
                    self.begun |= n > 0;
                    self.torn |= n > 0;
                }
                Ok(n) => {
                    self.kept_bytes -= n;
                    self.kept.pop_front();
                    self.begun = false;
                    self.torn = false;
                    wrote = true;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return self.fail(e),
            }
        }
        if wrote {
            self.failing = false;
            match std::mem::take(&mut self.lost) {
                0 => {}
                lost => return Outcome::Recovered(lost),
            }
        }
        Outcome::Fine
    }

    fn fail(&mut self, error: io::Error) -> Outcome {
        self.begun = false;
        self.lost += self.kept.len() as u64;
        self.kept.clear();
        self.kept_bytes = 0;
        if std::mem::replace(&mut self.failing, true) {
            Outcome::StillFailing
        } else {
            Outcome::Failed(error)
        }
    }

    /// Writes what can be written within a time.
    pub(super) fn flush_for(&mut self, limit: Duration) -> Outcome {
        let end = Instant::now() + limit;
        loop {
            let outcome = self.flush();
            let left = end.saturating_duration_since(Instant::now());
            if self.kept.is_empty() || left.is_zero() {
                return outcome;
            }
            self.target.wait(left);
        }
    }

    /// Whether everything is written.
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_once_and_its_end_too() {
        // /dev/full is the disk that is always full.
        let mut sink = Sink::new(Target::file(Path::new("/dev/full")).unwrap());
        let outcome = sink.put(b"one\n");
        assert!(
            matches!(&outcome, Outcome::Failed(e) if e.raw_os_error() == Some(nix::libc::ENOSPC)),
            "{outcome:?}"
        );
        assert!(matches!(sink.put(b"two\n"), Outcome::StillFailing));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        sink.target = Target::file(&path).unwrap();
        assert!(matches!(sink.put(b"three\n"), Outcome::Recovered(2)));
        assert!(matches!(sink.put(b"four\n"), Outcome::Fine));
        assert_eq!(std::fs::read(path).unwrap(), b"three\nfour\n");
    }

    #[test]
    fn a_torn_line_does_not_spoil_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut sink = Sink::new(Target::file(&path).unwrap());
        let long = vec![b'x'; PIPE_BUF + 1];
        sink.kept.push_back(long);
        sink.kept_bytes = PIPE_BUF + 1;
        // The first part goes to the file; then the disk is full.
        let n = sink.target.write(&sink.kept[0]).unwrap();
        sink.kept[0].drain(..n);
        (sink.begun, sink.torn) = (true, true);
        sink.target = Target::file(Path::new("/dev/full")).unwrap();
        assert!(matches!(sink.flush(), Outcome::Failed(_)));
        assert!(matches!(sink.put(b"lost\n"), Outcome::StillFailing));
        sink.target = Target::file(&path).unwrap();
        assert!(matches!(sink.put(b"next\n"), Outcome::Recovered(2)));
        let written = std::fs::read_to_string(path).unwrap();
        assert_eq!(written, format!("{}\nnext\n", "x".repeat(PIPE_BUF)));
    }

    #[test]
    fn a_reader_that_does_not_read_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut sink = Sink::new(Target::file(&path).unwrap());
        let line = [[b'x'; 9999].as_slice(), b"\n"].concat();
        let lines = (KEPT + 300_000) / line.len();
        for _ in 0..lines {
            assert!(matches!(sink.put(&line), Outcome::Fine));
        }
        let lost = sink.lost;
        assert!(lost > 0);
        sink.flush_for(Duration::from_millis(1));
        assert!(!sink.is_empty());

        let mut read = 0;
        let mut buffer = vec![0; 1 << 16];
        while !sink.kept.is_empty() {
            read += io::Read::read(&mut reader, &mut buffer).unwrap();
            sink.flush();
        }
        while read < (lines - lost as usize) * line.len() {
            read += io::Read::read(&mut reader, &mut buffer).unwrap();
        }
        assert_eq!(read, (lines - lost as usize) * line.len());
    }

    #[test]
    fn a_line_that_syslog_does_not_take_whole_is_cut_and_costs_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let mut sink = Sink::new(Target::Syslog(Syslog::new(&path)));
        // Longer than a datagram (net.core.wmem_default), of characters of two bytes.
        let long = "é".repeat(400_000);
        for line in ["<29>before", &long, "<29>after"] {
            assert!(matches!(sink.put(line.as_bytes()), Outcome::Fine), "{}", line.len());
        }
        assert!(sink.is_empty());
        let mut received = vec![0; 1 << 20];
        let mut next = || {
            let length = daemon.recv(&mut received).unwrap();
            String::from_utf8(received[..length].to_vec()).unwrap()
        };
        assert_eq!(next(), "<29>before");
        let cut = next();
        assert!(cut.len() > 10_000 && cut.ends_with("é..."), "{}", cut.len());
        assert_eq!(next(), "<29>after");
    }

    #[test]
    fn syslog_is_found_again_after_its_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut sink = Sink::new(Target::Syslog(Syslog::new(&path)));
        assert!(matches!(sink.put(b"<29>a"), Outcome::Failed(_)));
        let mut received = [0; 64];
        for text in [b"<29>b", b"<29>c"] {
            let daemon = UnixDatagram::bind(&path).unwrap();
            sink.put(text);
            let n = daemon.recv(&mut received).unwrap();
            assert_eq!(&received[..n], text);
            std::fs::remove_file(&path).unwrap();
        }
    }
}
