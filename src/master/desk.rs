//! The control socket's side of the master: who asks, what, and the way of the answer.
//!
//! A client can be slow, silent or gone: each has a task of its own with a bounded question, and the loop only ever puts an
//! answer into its mailbox.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::stat::{Mode, umask};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::saved::{Kept, Saver};
use super::watch::{Event, Events, Watch};
use crate::api::{self, Answer, MAX_QUESTION, Question};

/// How long a client may take for its question, and for taking an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Clients at once.
const MAX_CLIENTS: usize = 64;

/// Answers that wait for a client; one that takes none loses the rest.
const MAILBOX: usize = 64;

/// Where an answer goes.
pub type Mailbox = mpsc::Sender<Answer>;

/// The listening control socket. Its file goes with it.
#[derive(Debug)]
pub struct Desk {
    path: PathBuf,
    listener: Rc<UnixListener>,
    _watch: Watch,
}

impl Desk {
    /// Opens it, in place of one that an earlier master has left.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(path: &Path, events: &Events) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let before = umask(Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(path);
        umask(before);
        let listener = listener?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self::with(path, listener, events))
    }

    /// What is to go on. Clients see their connections close, and come again.
    pub fn save(&self, saver: &mut Saver) -> Kept {
        saver.keep(&*self.listener)
    }

    /// Goes on with the socket that there is.
    ///
    /// # Errors
    /// When the kernel refuses to watch it.
    pub fn restore(path: &Path, fd: OwnedFd, events: &Events) -> io::Result<Self> {
        let listener = UnixListener::from_std(fd.into())?;
        Ok(Self::with(path, listener, events))
    }

    fn with(path: &Path, listener: UnixListener, events: &Events) -> Self {
        let (listener, events) = (Rc::new(listener), events.clone());
        let incoming = listener.clone();
        let watch = Watch::start(async move {
            let clients = Rc::new(());
            loop {
                match incoming.accept().await {
                    Ok((stream, _)) if Rc::strong_count(&clients) <= MAX_CLIENTS => {
                        let (events, counted) = (events.clone(), clients.clone());
                        tokio::task::spawn_local(async move {
                            serve(stream, events).await;
                            drop(counted);
                        });
                    }
                    Ok(_) => {}
                    // No descriptors: the client waits until there are some.
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        });
        Self {
            path: path.to_owned(),
            listener,
            _watch: watch,
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether the peer may ask: root, or who the master is, and then not from inside PHP.
fn may_ask(stream: &UnixStream) -> bool {
    // Of a process that this pid namespace does not show the pid is 0, which rustix has no place for.
    let Ok(peer) = getsockopt(stream, PeerCredentials) else {
        return false;
    };
    let me = nix::unistd::geteuid().as_raw();
    peer.uid() == 0 || (peer.uid() == me && !super::cgroup::is_worker(peer.pid()))
}

async fn serve(mut stream: UnixStream, events: Events) {
    if !may_ask(&stream) {
        let reason = "only root and the master's user may ask, and PHP may not".to_owned();
        let _ = stream.write_all(&api::encode(Answer::Refused { reason })).await;
        return;
    }
    // A client may ask several things on one connection, one after another.
    loop {
        let Some(line) = read_line(&mut stream).await else {
            return;
        };
        let question = match api::decode(&line) {
            Ok(question) => question,
            Err(reason) => {
                let _ = stream.write_all(&api::encode(Answer::Refused { reason })).await;
                return;
            }
        };
        let lasts = question == Question::Events;
        let (mailbox, mut answers) = mpsc::channel(MAILBOX);
        if events.send(Event::Asked(question, mailbox)).await.is_err() {
            return;
        }
        loop {
            let answer = tokio::select! {
                answer = answers.recv() => answer,
                // One that hangs up waits for nothing.
                () = hung_up(&stream) => return,
            };
            let Some(answer) = answer else { return };
            match tokio::time::timeout(PATIENCE, stream.write_all(&api::encode(answer))).await {
                Ok(Ok(())) => {}
                _ => return,
            }
            if !lasts {
                break;
            }
        }
    }
}

async fn hung_up(stream: &UnixStream) {
    loop {
        let ready = stream
            .ready(tokio::io::Interest::READABLE | tokio::io::Interest::ERROR)
            .await;
        match ready {
            Ok(ready) if ready.is_read_closed() || ready.is_error() => return,
            // It has said more, which is read when this is answered; there is nothing to wait for but time.
            Ok(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            Err(_) => return,
        }
    }
}

/// A line without its end; None: there is none, or too long a one.
async fn read_line(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    let read = async {
        loop {
            let byte = stream.read_u8().await.ok()?;
            if byte == b'\n' {
                return Some(line);
            }
            line.push(byte);
            if line.len() > MAX_QUESTION {
                return None;
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.ok()?
}
