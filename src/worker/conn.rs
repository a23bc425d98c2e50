//! One connection: its socket, what has been read of it, and waits that end.

use std::io::IoSlice;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::socket::{MsgFlags, Shutdown, SockaddrStorage, getpeername, recv, send, sendmsg, shutdown};
use php_pool::fastcgi::{Event, HEADER_LEN, Input, ProtocolError};
use php_pool::scoreboard::monotonic_ns;

/// Room for what is read at once: a whole request in the common case.
pub const BUFFER: usize = 64 << 10;

/// How often a worker makes room for the client before it sleeps.
const YIELDS: u32 = 6;

/// Bytes for which a peer has a whole limit: one at a time would stretch it without end.
pub(super) const PROGRESS: usize = 16 << 10;

/// How long a peer has been waited for since it last got on so far.
#[derive(Clone, Copy, Debug, Default)]
struct Patience {
    waited: Duration,
    moved: usize,
}

impl Patience {
    fn moved(&mut self, count: usize) {
        self.moved += count;
        if self.moved >= PROGRESS {
            *self = Self::default();
        }
    }
}

/// Why a connection is at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The peer closed its side, or reset the connection.
    Closed,
    /// The peer let us wait longer than the pool allows.
    TimedOut,
    /// The peer gave the request up; the connection is as good as ever.
    Aborted,
    /// The peer does not speak the protocol.
    Protocol(ProtocolError),
}

/// What one connection leaves to the next.
#[derive(Debug, Default)]
pub struct Memory {
    buffer: Vec<u8>,
    input: Input,
}

/// One connection.
#[derive(Debug)]
pub struct Conn {
    fd: OwnedFd,
    /// The protocol's state.
    pub input: Input,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The client's address; None for a unix socket.
    pub peer: Option<IpAddr>,
    /// When the first byte of the next request was there, CLOCK_MONOTONIC ns; 0 before.
    pub began: u64,
    /// A request has been answered on it.
    pub kept: bool,
    /// With the body of the request under way.
    patience: Patience,
    /// Others have had it, and may not have closed it yet.
    shared: bool,
    /// Since when the rest of its body is waited for, CLOCK_MONOTONIC ns; 0 when nothing is.
    pub owed_since: u64,
    /// How many bytes of the last request's CONTENT_LENGTH nobody has read.
    pub unwanted: u64,
    /// The end of what has come has not been read.
    spared: bool,
}

impl Conn {
    /// A connection that nothing has been read of.
    pub fn new(fd: OwnedFd, memory: Memory) -> Self {
        let Memory { mut buffer, input } = memory;
        if buffer.len() < BUFFER {
            // As the kernel gives it: of what is never used no page is ever touched.
            buffer = vec![0; BUFFER];
        }
        Self {
            fd,
            input: input.renewed(),
            buffer,
            start: 0,
            end: 0,
            peer: None,
            began: 0,
            kept: false,
            patience: Patience::default(),
            shared: false,
            owed_since: 0,
            unwanted: 0,
            spared: false,
        }
    }

    /// Another request has all of its time before it.
    pub fn renew_patience(&mut self) {
        self.patience = Patience::default();
    }

    /// Closes it, for everybody.
    pub fn into_memory(self) -> Memory {
        if self.shared {
            let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Both);
        }
        self.into_parts().1
    }

    /// Gives the socket away.
    pub fn into_parts(mut self) -> (OwnedFd, Memory) {
        // Some requests need more.
        if self.buffer.len() > BUFFER {
            self.buffer = Vec::new();
        }
        (
            self.fd,
            Memory {
                buffer: self.buffer,
                input: self.input,
            },
        )
    }

    /// What was read of it since the last request.
    pub fn since_last(&self) -> Vec<u8> {
        let mut bytes = self.input.replay();
        bytes.extend_from_slice(&self.buffer[self.start..self.end]);
        bytes
    }

    /// Bytes of which [`Conn::since_last`] will not give many more.
    pub fn pending(&self) -> usize {
        // Those of a request that has been answered are still there.
        let params = if self.input.is_in_params() {
            self.input.params().len()
        } else {
            0
        };
        params + self.end - self.start
    }

    /// Takes over where another process was, with the bytes that it had read; `owed_since` is [`Conn::owed_since`].
    pub fn resume(&mut self, bytes: &[u8], kept: bool, owed_since: u64) {
        if kept {
            self.input = Input::resumed(owed_since != 0);
        }
        (self.kept, self.shared, self.owed_since) = (kept, true, owed_since);
        self.buffer.resize(BUFFER.max(bytes.len()), 0);
        self.buffer[..bytes.len()].copy_from_slice(bytes);
        (self.start, self.end) = (0, bytes.len());
    }

    /// The peer's address, asked of the kernel; None for a unix socket.
    pub fn ask_peer(&mut self) {
        let Ok(address) = getpeername::<SockaddrStorage>(self.fd.as_raw_fd()) else {
            return;
        };
        self.peer = if let Some(v4) = address.as_sockaddr_in() {
            Some(v4.ip().into())
        } else {
            address.as_sockaddr_in6().map(|v6| v6.ip().to_canonical())
        };
    }

    /// Whether bytes are there that have not been looked at.
    pub fn has_unread(&self) -> bool {
        self.start < self.end
    }

    /// Whether the peer has sent all of the request that was answered, so that closing now resets nothing.
    pub fn is_over(&mut self) -> bool {
        // The empty STDIN record is there already in the common case, but has not been read; and what has been spared may be another
        // record, behind that one.
        (!self.spared && self.skip()) || (self.fill().is_ok() && self.skip())
    }

    fn skip(&mut self) -> bool {
        while matches!(self.next(), Ok(event) if event != Event::NeedMore) {}
        self.input.is_drained()
    }

    /// Its request has been answered, and the next one has all of its time before it. Skips what is at hand of the old one's body, and
    /// nothing of what follows it.
    pub fn answered(&mut self) {
        if self.spared {
            // Whoever has left is seen later.
            let _ = self.fill();
        }
        while self.input.is_owed_a_body() {
            let before = self.start;
            // The rest of the record under way, or the next one's header, whole.
            if self.next_within(self.input.stdin_left()).is_err() || self.start == before {
                break;
            }
        }
        let now = |wanted| if wanted { monotonic_ns() } else { 0 };
        self.kept = true;
        self.began = now(self.has_unread());
        self.owed_since = now(self.input.is_owed_a_body());
    }

    /// What the bytes at hand say; [`Event::NeedMore`] when they say nothing more.
    pub fn next(&mut self) -> Result<Event, Lost> {
        self.next_within(usize::MAX)
    }

    /// As `next`, with at most `want` bytes of STDIN's content, so that the rest stays here.
    fn next_within(&mut self, want: usize) -> Result<Event, Lost> {
        // Outside of content a header comes first.
        let most = if self.input.stdin_left() > 0 {
            want
        } else {
            want.saturating_add(HEADER_LEN)
        };
        let end = self.end.min(self.start.saturating_add(most));
        let (used, event) = self.input.next(&self.buffer[self.start..end]).map_err(Lost::Protocol)?;
        let base = self.start;
        self.start += used;
        Ok(match event {
            Event::Stdin(range) => Event::Stdin(base + range.start..base + range.end),
            other => other,
        })
    }

    /// Whether anything of a next request is here.
    pub fn has_begun(&self) -> bool {
        self.has_unread() || self.input.has_begun()
    }

    /// Reads on, without waiting: how many bytes; none: nothing is there.
    pub fn fill(&mut self) -> Result<Option<usize>, Lost> {
        self.spared = false;
        self.fill_some(usize::MAX)
    }

    fn fill_some(&mut self, most: usize) -> Result<Option<usize>, Lost> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let room = self.buffer.len().min(self.end.saturating_add(most));
        let count = receive(self.fd.as_fd(), &mut self.buffer[self.end..room])?;
        if let Some(count) = count {
            self.end += count;
            self.patience.moved(count);
        }
        Ok(count)
    }

    /// Reads of a new connection, but for the last record of a request that is whole: with something unread, the end of this process
    /// in the middle of its answer is no end of the connection, but its failure. A web server (nginx, where it keeps no connections)
    /// would else take half an answer for all of it.
    pub fn fill_but_the_last(&mut self) -> Result<Option<usize>, Lost> {
        self.fill_of(self.there())
    }

    fn fill_of(&mut self, there: usize) -> Result<Option<usize>, Lost> {
        if there <= HEADER_LEN {
            return self.fill();
        }
        self.spared = true;
        self.fill_some(there - HEADER_LEN)
    }

    /// The same where its client is about to write. None: nothing came.
    pub fn fill_first(&mut self) -> Result<Option<usize>, Lost> {
        let (mut there, mut looks) = (self.there(), 0..YIELDS);
        while there == 0 && looks.next().is_some() {
            // It is between its connect and its write: on this core, where it needs our place, or on another.
            let _ = nix::sched::sched_yield();
            there = self.there();
        }
        self.fill_of(there)
    }

    /// Bytes that have come and are not read.
    fn there(&self) -> usize {
        rustix::io::ioctl_fionread(&self.fd).map_or(0, |count| count as usize)
    }

    /// Waits for bytes, at most so long, and not where one of `others` has something. How many of these and it have.
    pub fn await_first(&self, moment: Duration, others: [BorrowedFd; 2]) -> usize {
        let mut polled = [self.fd.as_fd(), others[0], others[1]].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        // Interrupted: somebody wants something else of us.
        ppoll(&mut polled, Some(moment.into()), None).map_or(1, |count| count as usize)
    }

    /// Body bytes of the request into `target`, at least one; what else arrives is given to `event`. 0: the body has
    /// ended. Waits at most `timeout` for each [`PROGRESS`].
    pub fn read_stdin(
        &mut self,
        target: &mut [u8],
        timeout: Duration,
        mut event: impl FnMut(Event),
    ) -> Result<usize, Lost> {
        loop {
            let before = self.start;
            match self.next_within(target.len())? {
                Event::Stdin(range) => {
                    let count = range.len();
                    target[..count].copy_from_slice(&self.buffer[range]);
                    return Ok(count);
                }
                Event::StdinEnd => return Ok(0),
                // A header was all that fitted; what follows it may be all that ever comes.
                Event::NeedMore if before < self.start && self.start < self.end => {}
                Event::NeedMore => {
                    // Nothing at hand: straight to where it is wanted, where that is worth a look.
                    let direct = self.input.stdin_left().min(target.len());
                    if self.start == self.end && direct >= 4096 {
                        if let Some(count) = receive(self.fd.as_fd(), &mut target[..direct])? {
                            self.input.took_stdin(count);
                            self.patience.moved(count);
                            return Ok(count);
                        }
                    } else if self.fill()?.is_some() {
                        continue;
                    }
                    let mut patience = self.patience;
                    self.wait(PollFlags::POLLIN, timeout, &mut patience)?;
                    self.patience = patience;
                }
                Event::Abort { .. } => return Err(Lost::Aborted),
                other => event(other),
            }
        }
    }

    /// Sends all of it; each [`PROGRESS`] may take `timeout`.
    pub fn send(&self, parts: &mut [IoSlice], timeout: Duration) -> Result<(), Lost> {
        let mut parts = parts;
        let mut patience = Patience::default();
        while !parts.is_empty() {
            let sent = match &*parts {
                [only] => send(self.fd.as_raw_fd(), only, MsgFlags::MSG_NOSIGNAL),
                many => sendmsg::<()>(self.fd.as_raw_fd(), many, &[], MsgFlags::MSG_NOSIGNAL, None),
            };
            match sent {
                Ok(count) => {
                    IoSlice::advance_slices(&mut parts, count);
                    patience.moved(count);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT, timeout, &mut patience)?,
                Err(_) => return Err(Lost::Closed),
            }
        }
        Ok(())
    }

    /// Sends what the socket takes at once.
    pub fn send_now(&self, bytes: &[u8]) -> Result<usize, Lost> {
        match send(self.fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
            Ok(count) => Ok(count),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            Err(_) => Err(Lost::Closed),
        }
    }

    /// Waits until the socket is ready, across interruptions.
    fn wait(&self, flags: PollFlags, timeout: Duration, patience: &mut Patience) -> Result<(), Lost> {
        let begun = Instant::now();
        let deadline = begun + timeout.saturating_sub(patience.waited);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let milliseconds = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
            let timeout = PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.fd.as_fd(), flags)], timeout) {
                Ok(0) if left.is_zero() => return Err(Lost::TimedOut),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => {
                    patience.waited += begun.elapsed();
                    return Ok(());
                }
                Err(_) => return Err(Lost::Closed),
            }
        }
    }

    /// Whether nobody is there any more to read an answer. Over TCP that is not known before something is sent.
    pub fn is_abandoned(&self) -> bool {
        let mut polled = [PollFd::new(self.fd.as_fd(), PollFlags::empty())];
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|count| count > 0)
            && polled[0].revents().is_some_and(|events| events.intersects(gone))
    }

    /// Ends our side, so that the peer sees the end of the reply while we go on reading.
    pub fn shut_down(&self) {
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Write);
    }

    /// Throws away what the peer still sends, without waiting. Ok(count): more may come.
    pub fn discard(&mut self) -> Result<usize, Lost> {
        (self.start, self.end) = (0, 0);
        let mut total = 0;
        while total < 16 * BUFFER {
            match receive(self.fd.as_fd(), &mut self.buffer)? {
                Some(count) => total += count,
                None => break,
            }
        }
        Ok(total)
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One read without waiting; None: nothing is there.
fn receive(fd: BorrowedFd, target: &mut [u8]) -> Result<Option<usize>, Lost> {
    loop {
        return match recv(fd.as_raw_fd(), target, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => Err(Lost::Closed),
            Ok(count) => Ok(Some(count)),
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => Ok(None),
            Err(_) => Err(Lost::Closed),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use php_pool::fastcgi::{Header, RecordType, append_record};

    use super::*;

    /// A request whose body has 12 bytes, in two records.
    fn request() -> Vec<u8> {
        let mut bytes = Header::bytes(RecordType::BeginRequest, 1, 8, 0).to_vec();
        bytes.extend([0, 1, 1, 0, 0, 0, 0, 0]);
        for (kind, content) in [
            (RecordType::Params, &b"\x01\x01ab"[..]),
            (RecordType::Params, b""),
            (RecordType::Stdin, b"first "),
            (RecordType::Stdin, b"second"),
            (RecordType::Stdin, b""),
        ] {
            append_record(&mut bytes, kind, 1, content);
        }
        bytes
    }

    #[test]
    fn what_is_left_of_a_body_is_skipped_as_far_as_it_is_there_and_nothing_of_what_follows() {
        let whole = request();
        let both = [&whole[..], &whole].concat();
        let body = whole.len() - 40;
        // Answered when so much of both requests was there.
        for there in body..both.len() {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(&both[..there]).unwrap();
            let mut conn = Conn::new(ours.into(), Memory::default());
            conn.fill().unwrap();
            assert!(matches!(conn.next(), Ok(Event::Request(_))), "{there}");
            conn.input.finish();
            conn.answered();
            assert_eq!(conn.owed_since == 0, there >= whole.len(), "{there}");
            assert_eq!(conn.began != 0, conn.has_unread(), "{there}");
            // The rest comes, and the second request is read.
            theirs.write_all(&both[there..]).unwrap();
            let second = loop {
                match conn.next().unwrap() {
                    Event::Request(begin) => break begin,
                    Event::NeedMore => assert!(conn.fill().unwrap().is_some(), "{there}"),
                    _ => {}
                }
            };
            assert_eq!(second.id, 1);
        }
    }

    #[test]
    fn who_sends_more_behind_the_end_of_a_request_is_not_reset() {
        let mut bytes = request();
        // As for a filter.
        append_record(&mut bytes, RecordType::Data, 1, b"");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&bytes).unwrap();
        let mut conn = Conn::new(ours.into(), Memory::default());
        conn.fill_but_the_last().unwrap();
        assert!(matches!(conn.next(), Ok(Event::Request(_))));
        conn.input.finish();
        assert!(conn.is_over());
        drop(conn.into_memory());
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    }
}
