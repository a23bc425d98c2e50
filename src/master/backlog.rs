//! How many connections wait in a listening socket: TCP_INFO for TCP, `sock_diag` for unix sockets.
//!
//! Formats: `<linux/sock_diag.h>`, `<linux/unix_diag.h>`, `<linux/netlink.h>`; all in the machine's byte order.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, socket,
};

use super::listen::Listener;
use super::sys;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const UDIAG_SHOW_RQLEN: u32 = 0x10;
const UNIX_DIAG_RQLEN: u16 = 4;
const NETLINK_HEADER: usize = 16;
const UNIX_DIAG_MSG: usize = 16;

/// A listening socket's queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Connections that nobody has accepted.
    pub waiting: u32,
    /// How many there may be.
    pub limit: u32,
}

/// Asks the kernel.
#[derive(Debug)]
pub struct Diag {
    netlink: Option<OwnedFd>,
}

impl Diag {
    /// Without netlink (a sandbox may forbid it) the queue of unix sockets is not known.
    pub fn new() -> Self {
        let open = || {
            let kind = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let fd = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                kind,
                SockProtocol::NetlinkSockDiag,
            )?;
            connect(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
            Ok::<_, nix::Error>(fd)
        };
        Self { netlink: open().ok() }
    }

    /// The queue of a socket.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn backlog(&self, listener: &Listener) -> io::Result<Backlog> {
        if listener.tcp {
            let (waiting, limit) = sys::tcp_queue(listener.as_fd())?;
            return Ok(Backlog { waiting, limit });
        }
        // The kernel looks for the socket among all that there are, and anybody can make many.
        if let Some(limit) = listener.limit.get()
            && !is_waited_for(listener)
        {
            return Ok(Backlog { waiting: 0, limit });
        }
        let netlink = self.netlink.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let inode = nix::sys::stat::fstat(listener)?.st_ino as u32;
        send(netlink.as_raw_fd(), &request(inode), MsgFlags::MSG_DONTWAIT)?;
        let mut answer = [0; 1024];
        let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
        let backlog = parse(&answer[..length], inode).ok_or(io::ErrorKind::InvalidData)?;
        listener.limit.set(Some(backlog.limit));
        Ok(backlog)
    }

    /// The queues of a pool's sockets as one; a socket of which the kernel does not tell counts as empty.
    pub fn backlogs(&self, listeners: &[Rc<Listener>]) -> Backlog {
        let each = listeners
            .iter()
            .map(|listener| self.backlog(listener).unwrap_or_default());
        each.fold(Backlog::default(), |sum, one| Backlog {
            waiting: sum.waiting.saturating_add(one.waiting),
            limit: sum.limit.saturating_add(one.limit),
        })
    }
}

/// Whether anybody waits in the queue of a socket.
fn is_waited_for(listener: &Listener) -> bool {
    poll(
        &mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)],
        PollTimeout::ZERO,
    ) != Ok(0)
}

fn request(inode: u32) -> [u8; 40] {
    let mut message = [0; 40];
    let mut put = |at: usize, bytes: &[u8]| message[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &40u32.to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &NLM_F_REQUEST.to_ne_bytes());
    put(16, &[libc::AF_UNIX as u8]);
    put(20, &u32::MAX.to_ne_bytes()); // any state
    put(24, &inode.to_ne_bytes());
    put(28, &UDIAG_SHOW_RQLEN.to_ne_bytes());
    put(32, &u64::MAX.to_ne_bytes()); // no cookie
    message
}

fn parse(answer: &[u8], inode: u32) -> Option<Backlog> {
    let half = |at: usize| answer.get(at..at + 2)?.try_into().map(u16::from_ne_bytes).ok();
    let word = |at: usize| answer.get(at..at + 4)?.try_into().map(u32::from_ne_bytes).ok();
    if half(4)? != SOCK_DIAG_BY_FAMILY || word(NETLINK_HEADER + 4)? != inode {
        return None;
    }
    let mut at = NETLINK_HEADER + UNIX_DIAG_MSG;
    loop {
        let (length, kind) = (half(at)? as usize, half(at + 2)?);
        if kind == UNIX_DIAG_RQLEN {
            return Some(Backlog {
                waiting: word(at + 4)?,
                limit: word(at + 8)?,
            });
        }
        at += length.max(4).next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::config::{Listen, Pool};
    use crate::log::Logger;
    use crate::master::listen::Sockets;

    #[test]
    fn waiting_connections_are_counted_on_both_kinds_of_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let pool = Pool {
            listen_backlog: 17,
            listen_mode: 0o600,
            ..Pool::default()
        };
        let mut sockets = Sockets::default();
        let diag = Diag::new();
        let listener = sockets
            .get(&Listen::Unix(path.clone()), "listen", &pool, &Logger::default())
            .unwrap();
        assert_eq!(diag.backlog(&listener).unwrap(), Backlog { waiting: 0, limit: 17 });
        // Of an empty one whose limit is known nothing is asked.
        let mute = Diag { netlink: None };
        assert_eq!(mute.backlog(&listener).unwrap(), Backlog { waiting: 0, limit: 17 });
        let _clients: Vec<_> = (0..3).map(|_| UnixStream::connect(&path).unwrap()).collect();
        assert_eq!(diag.backlog(&listener).unwrap(), Backlog { waiting: 3, limit: 17 });

        let address = Listen::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 0,
        };
        let listener = sockets.get(&address, "listen", &pool, &Logger::default()).unwrap();
        let bound: std::net::SocketAddr = rustix::net::getsockname(&listener).unwrap().try_into().unwrap();
        let _clients: Vec<_> = (0..2).map(|_| std::net::TcpStream::connect(bound).unwrap()).collect();
        assert_eq!(diag.backlog(&listener).unwrap(), Backlog { waiting: 2, limit: 17 });
    }

    #[test]
    fn an_answer_cut_short_is_none() {
        assert_eq!(parse(&[], 1), None);
        assert_eq!(parse(&request(5), 5), None);
    }
}
