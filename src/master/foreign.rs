//! Descriptors that came from a zygote or a worker: they run the pool's own code, and can send what they like.
//!
//! Already closing such a thing can take for ever: a socket with SO_LINGER waits until its peer has taken all there is, a
//! file in a FUSE until its owner likes, a unix socket closes what is on its way in it. So can waiting for it, or asking it
//! anything. The loop therefore closes none of them itself, and uses only what has been seen to be a connection.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::signal::SigSet;
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::saved::{Kept, Restorer, Saver};

/// Descriptors of one pool that are being closed; with more, nothing is read from the pool's processes any more. At most an eighth of
/// what this process may have: a message whose descriptors find no place is lost.
const MOST_CLOSING: usize = 256;

/// The thread is woken once for all that comes within so long, or when there are so many: it would else be woken for each.
pub const GATHER: Duration = Duration::from_millis(5);
const MANY: usize = 64;

/// How many descriptors this process may have.
pub fn most_descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.map_or(usize::MAX, |most| most as usize)
}

/// Closes the descriptors of one pool: a pool whose own do not close waits for nobody but itself.
#[derive(Clone, Debug, Default)]
pub struct Closer {
    thread: Rc<Thread>,
}

/// It begins with the first descriptor, and ends when the pool has gone and all are closed.
#[derive(Debug, Default)]
struct Thread {
    queue: Arc<Queue>,
    runs: Cell<bool>,
}

#[derive(Debug)]
struct Queue {
    waiting: Mutex<Waiting>,
    goes_on: Condvar,
    most: usize,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            goes_on: Condvar::default(),
            most: MOST_CLOSING.min(most_descriptors() / 8),
        }
    }
}

#[derive(Debug, Default)]
struct Waiting {
    /// Those that the thread has not begun with.
    fds: VecDeque<OwnedFd>,
    /// It is at one.
    closing: bool,
    /// It is to be told of the next one.
    sleeps: bool,
    /// It begins with none.
    paused: bool,
    /// No more will come.
    over: bool,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn many(&self) -> usize {
        MANY.min(self.most / 2)
    }

    fn close_all(&self) {
        let mut waiting = self.waiting();
        loop {
            let gathers = |waiting: &mut Waiting| waiting.fds.len() < self.many() && !waiting.over;
            let gathered = self.goes_on.wait_timeout_while(waiting, GATHER, gathers);
            waiting = gathered.unwrap_or_else(PoisonError::into_inner).0;
            let mut idle = true;
            while !waiting.paused
                && let Some(fd) = waiting.fds.pop_front()
            {
                (idle, waiting.closing) = (false, true);
                drop(waiting);
                drop(fd);
                waiting = self.waiting();
                waiting.closing = false;
            }
            if idle {
                waiting.sleeps = true;
                let rests = |waiting: &mut Waiting| waiting.paused || (waiting.fds.is_empty() && !waiting.over);
                let rested = self.goes_on.wait_while(waiting, rests);
                waiting = rested.unwrap_or_else(PoisonError::into_inner);
                waiting.sleeps = false;
                if waiting.fds.is_empty() {
                    return;
                }
            }
        }
    }
}

impl Thread {
    fn close(&self, fd: OwnedFd) {
        if !self.runs.get() {
            let queue = Arc::clone(&self.queue);
            let work = move || {
                // They are the loop's, which an exec must not lose.
                let _ = SigSet::all().thread_block();
                queue.close_all();
            };
            // Without memory for a thread this one has to wait, if there is anything to wait for.
            if thread::Builder::new().name("closer".to_owned()).spawn(work).is_err() {
                return;
            }
            self.runs.set(true);
        }
        let mut waiting = self.queue.waiting();
        waiting.fds.push_back(fd);
        if waiting.sleeps || waiting.fds.len() == self.queue.many() {
            self.queue.goes_on.notify_all();
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.queue.waiting().over = true;
        self.queue.goes_on.notify_all();
    }
}

impl Closer {
    /// Takes a descriptor on.
    pub fn take(&self, fd: OwnedFd) -> Foreign {
        Foreign {
            fd: Some(fd),
            closer: self.clone(),
        }
    }

    /// Whether it has too much to do to be given more.
    pub fn is_busy(&self) -> bool {
        let (queue, waiting) = (&self.thread.queue, self.thread.queue.waiting());
        waiting.fds.len() + usize::from(waiting.closing) >= queue.most
    }

    /// Begins with no other descriptor, or goes on. What is saved must still be open when the successor comes to it, and its
    /// number no other's.
    pub fn pause(&self, paused: bool) {
        self.thread.queue.waiting().paused = paused;
        self.thread.queue.goes_on.notify_all();
    }

    /// What is still to be closed: the exec itself would wait for it.
    pub fn save(&self, saver: &mut Saver) -> Vec<Kept> {
        self.thread
            .queue
            .waiting()
            .fds
            .iter()
            .map(|fd| saver.keep(fd))
            .collect()
    }

    /// Goes on with it.
    ///
    /// # Errors
    /// When a descriptor is missing.
    pub fn restore(&self, saved: Vec<Kept>, fds: &mut Restorer) -> io::Result<()> {
        saved.into_iter().try_for_each(|fd| {
            self.thread.close(fds.take(fd)?);
            Ok(())
        })
    }
}

/// A descriptor that is not ours to trust.
#[derive(Debug)]
pub struct Foreign {
    /// None only while it is dropped.
    fd: Option<OwnedFd>,
    closer: Closer,
}

impl Foreign {
    /// Whether it is a connection, as a listener gives them. (No file system is asked, but the socket itself.)
    pub fn is_connection(&self) -> bool {
        let fd = self.as_fd();
        let families = [AddressFamily::UNIX, AddressFamily::INET, AddressFamily::INET6];
        sockopt::socket_type(fd) == Ok(SocketType::STREAM)
            && sockopt::socket_domain(fd).is_ok_and(|family| families.contains(&family))
            && sockopt::socket_acceptconn(fd) == Ok(false)
    }
}

impl AsFd for Foreign {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("it is there until it is dropped").as_fd()
    }
}

impl AsRawFd for Foreign {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            self.closer.thread.close(fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::Instant;

    use super::*;

    /// A connection that is not closed before its peer has read what there is, or goes away.
    fn lingering() -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        ours.set_nonblocking(true).unwrap();
        while ours.write(&[0; 65536]).is_ok() {}
        sockopt::set_socket_linger(&ours, Some(Duration::from_secs(60))).unwrap();
        (ours.into(), theirs)
    }

    #[test]
    fn nobody_waits_for_a_descriptor_to_be_closed() {
        let (closer, began) = (Closer::default(), Instant::now());
        let (fd, peer) = lingering();
        drop(closer.take(fd));
        for _ in 0..MOST_CLOSING {
            drop(closer.take(File::open("/dev/null").unwrap().into()));
        }
        assert!(
            closer.is_busy(),
            "the first was closed at once, and nothing has been shown"
        );
        assert!(began.elapsed() < Duration::from_secs(30));
        // Another pool's are closed meanwhile.
        let (other, (reader, writer)) = (Closer::default(), std::io::pipe().unwrap());
        drop(other.take(writer.into()));
        assert_eq!(std::io::Read::read(&mut &reader, &mut [0]).unwrap(), 0);
        drop(peer);
        while closer.is_busy() {
            thread::yield_now();
        }
    }

    #[test]
    fn only_connections_are_connections() {
        let closer = Closer::default();
        let is = |fd: OwnedFd| closer.take(fd).is_connection();
        let (a, b) = UnixStream::pair().unwrap();
        assert!(is(a.into()) && is(b.into()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(is(TcpStream::connect(listener.local_addr().unwrap()).unwrap().into()));
        assert!(!is(listener.into()));
        assert!(!is(File::open("/dev/null").unwrap().into()));
        let dir = tempfile::tempdir().unwrap();
        assert!(!is(UnixListener::bind(dir.path().join("s")).unwrap().into()));
        assert!(!is(std::os::unix::net::UnixDatagram::unbound().unwrap().into()));
        assert!(!is(nix::sys::epoll::Epoll::new(
            nix::sys::epoll::EpollCreateFlags::empty()
        )
        .unwrap()
        .0));
    }
}
