//! A `SOCK_SEQPACKET` socket that carries typed messages and descriptors.

use std::cell::RefCell;
use std::io::{IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, setsockopt, socketpair, sockopt,
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Longest message, bytes.
pub const MAX_MESSAGE: usize = 256 << 10;

/// Most descriptors beside one message.
const MAX_FDS: usize = 16;

/// Most descriptors that the kernel passes on with one message (SCM_MAX_FD).
const MOST_FDS: usize = 253;

/// How long descriptors wait that are too many under way, and how often they are tried again.
const CROWDED: Duration = Duration::from_secs(5);
const TRY_AGAIN: Duration = Duration::from_millis(5);

/// Why a message did not pass.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// Nothing there now (of a non-blocking channel).
    #[error("no message is waiting")]
    WouldBlock,
    /// The other end is gone.
    #[error("the other end is closed")]
    Closed,
    /// What came is no message of this protocol.
    #[error("a message could not be read: {0}")]
    Malformed(&'static str),
    /// A system call failed.
    #[error("the channel failed: {0}")]
    System(#[from] Errno),
}

/// A message and the descriptors that came with it, close-on-exec.
#[derive(Debug)]
pub struct Received<T> {
    /// The message.
    pub message: T,
    /// Its descriptors, in order.
    pub fds: Vec<OwnedFd>,
}

/// One end; sends `S`, receives `R`.
#[derive(Debug)]
pub struct Channel<S, R> {
    fd: OwnedFd,
    kinds: PhantomData<fn(S) -> R>,
}

/// Both ends: what one sends, the other receives.
pub type Pair<A, B> = (Channel<A, B>, Channel<B, A>);

/// Makes both ends, close-on-exec and blocking; `buffer` is the send buffer of each in bytes.
///
/// # Errors
/// When there are no descriptors left.
pub fn pair<A, B>(buffer: usize) -> Result<Pair<A, B>, ChannelError> {
    let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    for end in [&a, &b] {
        // Beyond net.core.wmem_max where we may; a smaller buffer only means that a sender waits sooner.
        if setsockopt(end, sockopt::SndBufForce, &buffer).is_err() {
            setsockopt(end, sockopt::SndBuf, &buffer)?;
        }
    }
    Ok((Channel::from(a), Channel::from(b)))
}

impl<S, R> From<OwnedFd> for Channel<S, R> {
    fn from(fd: OwnedFd) -> Self {
        Self { fd, kinds: PhantomData }
    }
}

impl<S, R> From<Channel<S, R>> for OwnedFd {
    fn from(channel: Channel<S, R>) -> Self {
        channel.fd
    }
}

impl<S, R> AsFd for Channel<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<S, R> AsRawFd for Channel<S, R> {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// A value as it is sent.
///
/// # Errors
/// When it cannot be written: a path that is no text, say.
pub fn to_bytes(value: &impl Serialize) -> Result<Vec<u8>, ChannelError> {
    postcard::to_stdvec(value).map_err(|_| ChannelError::Malformed("it cannot be written"))
}

/// The other way.
///
/// # Errors
/// When it is none.
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ChannelError> {
    postcard::from_bytes(bytes).map_err(|_| ChannelError::Malformed("it is of no known form"))
}

impl<S: Serialize, R: DeserializeOwned> Channel<S, R> {
    /// Sends one message and says how many bytes it has. With `wait` false it never blocks.
    ///
    /// # Errors
    /// [`ChannelError::WouldBlock`] when the other end does not read, [`ChannelError::Closed`] when it is gone, EMSGSIZE when it is
    /// longer than a message can be.
    pub fn send(&self, message: &S, fds: &[BorrowedFd], wait: bool) -> Result<usize, ChannelError> {
        let bytes = to_bytes(message)?;
        if bytes.len() > MAX_MESSAGE {
            return Err(Errno::EMSGSIZE.into());
        }
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL
            | if wait {
                MsgFlags::empty()
            } else {
                MsgFlags::MSG_DONTWAIT
            };
        loop {
            match sendmsg::<()>(self.as_raw_fd(), &[IoSlice::new(&bytes)], control, flags, None) {
                Ok(length) => return Ok(length),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(ChannelError::WouldBlock),
                Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN) => return Err(ChannelError::Closed),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends one message whose descriptors nobody else can care for: while too many are under way for this user, whoever sent the
    /// others, it waits for [`CROWDED`] until some have been received.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn deliver(&self, message: &S, fds: &[BorrowedFd]) -> Result<usize, ChannelError> {
        let mut tries = 0..CROWDED.as_millis() / TRY_AGAIN.as_millis();
        loop {
            match self.send(message, fds, true) {
                Err(ChannelError::System(Errno::ETOOMANYREFS)) if tries.next().is_some() => {
                    std::thread::sleep(TRY_AGAIN)
                }
                sent => return sent,
            }
        }
    }

    /// Receives one message. With `wait` false it never blocks.
    ///
    /// # Errors
    /// [`ChannelError::WouldBlock`], [`ChannelError::Closed`], or what was wrong with what came.
    pub fn receive(&self, wait: bool) -> Result<Received<R>, ChannelError> {
        let mut fds = Vec::new();
        let message = self.receive_into(wait, &mut fds)?;
        Ok(Received { message, fds })
    }

    /// Receives one message; whatever descriptors come are in `fds`, with a message that cannot be read too.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub fn receive_into(&self, wait: bool, fds: &mut Vec<OwnedFd>) -> Result<R, ChannelError> {
        // Memory of the kernel's pages for each message would cost more than the message.
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_MESSAGE]);
        }
        BUFFER.with_borrow_mut(|buffer| self.receive_by(wait, fds, buffer))
    }

    fn receive_by(&self, wait: bool, fds: &mut Vec<OwnedFd>, buffer: &mut [u8]) -> Result<R, ChannelError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        // Closes what is not taken out of it, however the message ends: descriptors are here as soon as it is read.
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut flags = RecvFlags::CMSG_CLOEXEC;
        flags.set(RecvFlags::DONTWAIT, !wait);
        let message = loop {
            match recvmsg(&self.fd, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
                Ok(message) => break message,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Err(ChannelError::WouldBlock),
                // Said once when the other end closed without having read all: what it had sent is still there, then its
                // end.
                Err(rustix::io::Errno::CONNRESET) => {}
                Err(error) => return Err(Errno::from_raw(error.raw_os_error()).into()),
            }
        };
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                fds.extend(rights);
            }
        }
        if message.bytes == 0 && fds.is_empty() {
            return Err(ChannelError::Closed);
        }
        if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(ChannelError::Malformed(
                "it is longer than any of this protocol, or there is no room for its descriptors",
            ));
        }
        if fds.len() > MAX_FDS {
            return Err(ChannelError::Malformed(
                "it has more descriptors than any of this protocol",
            ));
        }
        from_bytes(&buffer[..message.bytes])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_descriptors_pass() {
        let (a, b) = pair::<u32, String>(1 << 16).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        a.send(&7, &[null.as_fd()], true).unwrap();
        let got = b.receive(true).unwrap();
        assert_eq!((got.message, got.fds.len()), (7, 1));
        b.send(&"x".to_owned(), &[], true).unwrap();
        assert_eq!(a.receive(false).unwrap().message, "x");
        assert!(matches!(a.receive(false), Err(ChannelError::WouldBlock)));
        drop(b);
        assert!(matches!(a.receive(true), Err(ChannelError::Closed)));
        assert!(matches!(a.send(&1, &[], true), Err(ChannelError::Closed)));
    }

    #[test]
    fn descriptors_that_were_not_asked_for_are_closed() {
        use std::io::Read;
        let (a, b) = pair::<u32, u32>(1 << 16).unwrap();
        let (mut end, writer) = std::io::pipe().unwrap();
        // As many as the kernel passes; more than the protocol knows.
        for count in [MAX_FDS + 1, MOST_FDS] {
            a.send(&7, &vec![writer.as_fd(); count], true).unwrap();
            assert!(matches!(b.receive(true), Err(ChannelError::Malformed(_))));
        }
        // With a message that is none.
        let raw = [writer.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&raw)];
        sendmsg::<()>(
            a.as_raw_fd(),
            &[IoSlice::new(&[0xff; 9])],
            &rights,
            MsgFlags::empty(),
            None,
        )
        .unwrap();
        assert!(matches!(b.receive(true), Err(ChannelError::Malformed(_))));
        drop(writer);
        assert_eq!(end.read(&mut [0]).unwrap(), 0, "a writing end is still open");
    }

    #[test]
    fn what_was_sent_before_the_end_arrives() {
        let (a, b) = pair::<u32, u32>(1 << 16).unwrap();
        a.send(&1, &[], true).unwrap();
        b.send(&2, &[], true).unwrap();
        // With a message unread, which the kernel tells the other end as a reset.
        drop(b);
        assert_eq!(a.receive(false).unwrap().message, 2);
        assert!(matches!(a.receive(false), Err(ChannelError::Closed)));
    }

    #[test]
    fn garbage_is_an_error_and_a_full_channel_does_not_block() {
        let (a, b) = pair::<Vec<u8>, u8>(1 << 16).unwrap();
        nix::unistd::write(&a, &[0xff; 40]).unwrap();
        assert!(matches!(b.receive(true), Err(ChannelError::Malformed(_))));
        let mut sent = 0;
        while a.send(&vec![0; 1000], &[], false).is_ok() {
            sent += 1;
        }
        assert!(sent > 10);
    }
}
