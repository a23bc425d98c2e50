//! The client of a control socket.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use thiserror::Error;

use super::{Answer, MAX_ANSWER, PoolStatus, Question, Versioned, encode};
use crate::generator;

/// Where pools have their control sockets under systemd.
pub const RUN: &str = "/run/php-pool";

/// Why a master did not answer.
#[derive(Debug, Error)]
pub enum ApiError {
    /// There is nobody, and need not be.
    #[error("nothing runs at {0}: the pool is stopped, or asleep until its next request")]
    Asleep(PathBuf),
    /// There is nobody, and should be.
    #[error("nothing runs at {0}, and should: the pool does not start, its master was killed, or it is only starting")]
    Down(PathBuf),
    /// Not for this user.
    #[error("the control socket {0} is open to root and the master's user only")]
    Forbidden(PathBuf),
    /// Something else.
    #[error("{path}: {source}")]
    System {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It hangs.
    #[error("the master at {0} does not answer")]
    Silent(PathBuf),
    /// It hung up.
    #[error("the master at {0} ended before it answered")]
    HungUp(PathBuf),
    /// It does not keep to the protocol.
    #[error("the master at {path} answered something that is not understood: {source}")]
    Malformed {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It says no.
    #[error("{0}")]
    Refused(String),
}

/// The control socket of a pool of systemd's.
pub fn socket_of(pool: &str) -> PathBuf {
    Path::new(RUN).join(pool).join("control")
}

/// The control sockets of all pools of systemd's that run, or should, with their names, in order.
pub fn sockets() -> Vec<(String, PathBuf)> {
    systemd().sockets()
}

/// What of systemd's pools can be seen without asking it.
struct Systemd<'a> {
    /// Has their folders.
    run: &'a Path,
    /// Has their files.
    files: &'a Path,
    /// Has what the generator made of these.
    units: &'a Path,
}

fn systemd() -> Systemd<'static> {
    Systemd {
        run: Path::new(RUN),
        files: Path::new(generator::POOL_DIR),
        units: Path::new(generator::GENERATED),
    }
}

impl Systemd<'_> {
    /// Whether this is the control socket of a pool that runs, or should. Such a pool has its folder, also between a
    /// start that failed and the next one (`RuntimeDirectoryPreserve=restart`); or no socket could be made of its file.
    fn wants(&self, control: &Path) -> bool {
        let folder = control.parent().filter(|folder| folder.parent() == Some(self.run));
        let name = folder.and_then(|folder| folder.file_name()?.to_str());
        let file = name.map(|name| self.files.join(format!("{name}.conf")));
        folder.is_some_and(Path::is_dir) || file.is_some_and(|file| generator::is_broken(&file, self.units))
    }

    fn sockets(&self) -> Vec<(String, PathBuf)> {
        let control = |name: &str| self.run.join(name).join("control");
        let entries = std::fs::read_dir(self.run).into_iter().flatten().flatten();
        let folders = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let running = folders.filter(|name| control(name).exists());
        // By their files, for others may have folders there, too, for their sockets.
        let files = generator::pool_files(self.files);
        let named = files
            .iter()
            .filter_map(|file| Some(file.file_stem()?.to_str()?.to_owned()));
        let wanted = named.filter(|name| self.wants(&control(name)));
        let names: BTreeSet<String> = running.chain(wanted).collect();
        names.into_iter().map(|name| (name.clone(), control(&name))).collect()
    }
}

/// Asks a master to reload, and waits until its new generations serve. When another program takes over for it, this one
/// is asked, which has nothing more to renew. `limit` is that of [`Client::ask`].
///
/// # Errors
/// When nobody listens there, the reload failed, or there is no answer in time.
pub fn reload(path: &Path, force: bool, limit: Option<Duration>) -> Result<(), ApiError> {
    match Client::connect(path)?.ask(&Question::Reload { force }, limit) {
        Err(ApiError::HungUp(_)) => Client::connect(path)?.ask(&Question::Reload { force: false }, limit),
        answer => answer,
    }
    .map(drop)
}

/// The state of all pools of a master. `limit` is that of [`Client::ask`].
///
/// # Errors
/// When nobody listens there, or there is no answer in time.
pub fn pools_of(path: &Path, limit: Duration) -> Result<Vec<PoolStatus>, ApiError> {
    match Client::connect(path)?.ask(&Question::Status, Some(limit))? {
        Answer::Status { pools } => Ok(pools),
        other => Err(ApiError::Refused(format!("an unexpected answer: {other:?}"))),
    }
}

/// Connects, or fails at once: the queue of a master that hangs may be full.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?) {
        // Its queue is full.
        Err(Errno::EAGAIN) => return Err(io::ErrorKind::WouldBlock.into()),
        outcome => outcome?,
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// A connection to a master.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects. This never wakes a pool that sleeps.
    ///
    /// # Errors
    /// When nobody listens there, or not to us.
    pub fn connect(path: &Path) -> Result<Self, ApiError> {
        let stream = connect(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if !systemd().wants(path) => ApiError::Asleep(path.to_owned()),
            // A master that is not killed takes its socket along.
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ApiError::Down(path.to_owned()),
            io::ErrorKind::PermissionDenied => ApiError::Forbidden(path.to_owned()),
            io::ErrorKind::WouldBlock => ApiError::Silent(path.to_owned()),
            _ => ApiError::System {
                path: path.to_owned(),
                source: error,
            },
        })?;
        Ok(Self {
            path: path.to_owned(),
            stream: BufReader::new(stream),
        })
    }

    /// Asks, and waits for the answer; None waits for ever.
    ///
    /// # Errors
    /// When there is none in time, or the master refuses.
    pub fn ask(&mut self, question: &Question, limit: Option<Duration>) -> Result<Answer, ApiError> {
        let system = |path: &Path| {
            let path = path.to_owned();
            move |source| ApiError::System { path, source }
        };
        let socket = self.stream.get_mut();
        socket.set_read_timeout(limit).map_err(system(&self.path))?;
        socket.write_all(&encode(question)).map_err(system(&self.path))?;
        self.receive()
    }

    /// The next answer: after [`Question::Events`] there are many.
    ///
    /// # Errors
    /// When there is none in time, or the master refuses.
    pub fn receive(&mut self) -> Result<Answer, ApiError> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(MAX_ANSWER as u64).read_until(b'\n', &mut line);
        match read {
            Ok(_) if line.last() != Some(&b'\n') => Err(ApiError::HungUp(self.path.clone())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(ApiError::HungUp(self.path.clone())),
            // The read's time is over.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(ApiError::Silent(self.path.clone())),
            Ok(_) => match serde_json::from_slice::<Versioned<Answer>>(&line) {
                Ok(Versioned {
                    message: Answer::Refused { reason },
                    ..
                }) => Err(ApiError::Refused(reason)),
                Ok(Versioned { message, .. }) => Ok(message),
                Err(source) => Err(ApiError::Malformed {
                    path: self.path.clone(),
                    source,
                }),
            },
            Err(source) => Err(ApiError::System {
                path: self.path.clone(),
                source,
            }),
        }
    }

    /// The descriptor, to be waited for.
    pub fn socket(&self) -> &UnixStream {
        self.stream.get_ref()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_pool_that_does_not_start_is_found_and_one_that_sleeps_is_not() {
        let places = ["run", "files", "units"].map(|_| tempfile::tempdir().unwrap());
        let [run, files, units] = places.each_ref().map(|place| place.path());
        let systemd = Systemd { run, files, units };
        for pool in ["asleep", "broken", "fails", "runs"] {
            let listen = if pool == "broken" { "somewhere:9000" } else { "9000" };
            let text = format!("[{pool}]\nuser = www-data\npm = static\npm.max_children = 2\nlisten = {listen}\n");
            std::fs::write(files.join(format!("{pool}.conf")), text).unwrap();
        }
        generator::generate(files, units);
        for folder in ["by-hand", "fails", "other", "runs"] {
            std::fs::create_dir(run.join(folder)).unwrap();
        }
        for socket in ["asleep.sock", "by-hand/control", "other/sock", "runs/control"] {
            UnixListener::bind(run.join(socket)).unwrap();
        }
        let control = |pool: &str| run.join(pool).join("control");
        let found = ["broken", "by-hand", "fails", "runs"].map(|pool| (pool.to_owned(), control(pool)));
        assert_eq!(systemd.sockets(), found);
        assert!(systemd.wants(&control("broken")) && systemd.wants(&control("fails")));
        assert!(!systemd.wants(&control("asleep")));
        // One that is no pool's of systemd's.
        assert!(!systemd.wants(&run.join("control")));
    }

    #[test]
    fn a_master_that_was_killed_is_not_one_that_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let control = dir.path().join("control");
        let ask = || Client::connect(&control).map(drop);
        assert!(matches!(ask(), Err(ApiError::Asleep(_))));
        drop(UnixListener::bind(&control).unwrap());
        assert!(matches!(ask(), Err(ApiError::Down(_))));
    }
}
