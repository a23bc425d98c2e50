//! The waiting room: connections that have nothing to say, or nothing more.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use php_pool::control::QUEUE_BYTES;
use php_pool::scoreboard::monotonic_ns;

use super::super::conn::{BUFFER, Conn, PROGRESS};
use super::{LINGER_BYTES, Loop};

/// How long, ms, a worker waits for the master to take connections before it looks after those that it has.
const CATCH_UP: u8 = 20;

/// Why a connection is in the waiting room.
pub(super) enum Wait {
    /// For a request, or for the rest of one.
    Request,
    /// For its peer to close.
    Close(Rest),
}

/// What a peer may still send that nobody wants.
pub(super) struct Rest {
    /// Bytes that are put up with.
    left: usize,
    /// Those that have come since it last got on.
    moved: usize,
}

impl Rest {
    fn of(conn: &Conn) -> Self {
        // In records, of which an eighth may be headers.
        let body = usize::try_from(conn.unwanted).unwrap_or(usize::MAX);
        Self {
            left: LINGER_BYTES.saturating_add(body).saturating_add(body / 8),
            moved: 0,
        }
    }
}

pub(super) struct Parked {
    pub(super) conn: Conn,
    pub(super) wait: Wait,
    pub(super) deadline: Option<Instant>,
}

impl Parked {
    /// Whether its first request is awaited, or the rest of one.
    pub(super) fn is_new(&self) -> bool {
        matches!(self.wait, Wait::Request) && (!self.conn.kept || self.conn.began != 0)
    }
}

impl Loop {
    /// Whether another connection may wait here.
    pub(super) fn has_room(&mut self) -> bool {
        if self.parked.len() < self.most_parked {
            return true;
        }
        self.clear_waiting_room();
        if self.parked.len() >= self.most_parked {
            // The master is behind, and may catch up.
            let mut link = [PollFd::new(self.worker.link.as_fd(), PollFlags::POLLOUT)];
            let _ = poll(&mut link, CATCH_UP);
            self.clear_waiting_room();
        }
        self.parked.len() < self.most_parked
    }

    /// The reply is sent and the connection not kept: closes it, at once where that loses nothing.
    pub(super) fn finish(&mut self, mut conn: Conn, token: Option<u64>) {
        if conn.is_over() {
            return self.close(conn, token);
        }
        conn.shut_down();
        let rest = Rest::of(&conn);
        self.park(conn, token, Wait::Close(rest));
    }

    /// Reads on of what nobody wants, as long as it gets on: who writes all that he has before he reads (Caddy does) would else lose his
    /// answer. Not for somebody who leaves: his place is needed.
    pub(super) fn put_up_with(&mut self, token: u64, mut parked: Parked) {
        let (now, limit, leaves) = (Instant::now(), self.worker.pool.linger_timeout, self.left);
        if let (Wait::Close(rest), Ok(count)) = (&mut parked.wait, parked.conn.discard())
            && count < rest.left
        {
            rest.left -= count;
            rest.moved += count;
            if rest.moved >= PROGRESS && !leaves {
                rest.moved = 0;
                parked.deadline = Some(now + limit);
            }
            if parked.deadline.is_none_or(|at| at > now) {
                self.parked.insert(token, parked);
                return;
            }
        }
        self.close(parked.conn, Some(token));
    }

    pub(super) fn close(&mut self, conn: Conn, token: Option<u64>) {
        if token.is_some() {
            let _ = self.worker.epoll.delete(&conn);
        }
        self.worker.put_by(conn.into_memory());
    }

    /// Puts a connection into the waiting room.
    pub(super) fn park(&mut self, conn: Conn, token: Option<u64>, wait: Wait) {
        let pool = &self.worker.pool;
        let (limit, since) = match wait {
            Wait::Close(_) => (Some(pool.linger_timeout), 0),
            Wait::Request if conn.owed_since != 0 => (Some(pool.linger_timeout), conn.owed_since),
            Wait::Request if conn.kept && conn.began == 0 => {
                let limit = pool.connection_idle_timeout;
                ((!limit.is_zero()).then_some(limit), 0)
            }
            Wait::Request => (Some(pool.request_header_timeout), conn.began),
        };
        let spent = if since == 0 {
            0
        } else {
            monotonic_ns().saturating_sub(since)
        };
        let deadline = limit.map(|limit| Instant::now() + limit.saturating_sub(Duration::from_nanos(spent)));
        let token = match token {
            Some(token) => token,
            None => {
                let token = self.next_token;
                self.next_token += 1;
                let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
                if matches!(wait, Wait::Request) && conn.kept {
                    self.step_back();
                }
                if self.worker.epoll.add(&conn, EpollEvent::new(interest, token)).is_err() {
                    return; // out of memory: the connection is closed
                }
                token
            }
        };
        self.parked.insert(token, Parked { conn, wait, deadline });
    }

    /// To the master, or nobody.
    pub(super) fn give_away(&mut self, conn: Conn, token: Option<u64>) {
        // Where nobody goes on with it, its answer must not be reset by what is still to come.
        if conn.owed_since != 0 && self.is_last() {
            return self.finish(conn, token);
        }
        if let Some(conn) = self.worker.hand_over(conn, true) {
            self.close(conn, token);
        }
    }

    /// Gives what waits for a request to the master, before a request of unknown length runs here.
    pub(super) fn clear_waiting_room(&mut self) {
        let leaves = self.must_leave();
        let last = leaves && self.is_last();
        let waiting: Vec<u64> = self
            .parked
            .iter()
            // Very long parameters that are half read have to stay.
            .filter(|(_, p)| matches!(p.wait, Wait::Request) && p.conn.pending() <= QUEUE_BYTES / 2)
            .filter(|(_, p)| !last || !p.is_new())
            .map(|(token, _)| *token)
            .collect();
        for token in waiting {
            let Some(parked) = self.parked.remove(&token) else {
                continue;
            };
            if leaves {
                self.give_away(parked.conn, Some(token));
                continue;
            }
            // It waits here, then, and so do the others.
            if let Some(conn) = self.worker.hand_over(parked.conn, false) {
                self.parked.insert(token, Parked { conn, ..parked });
                return;
            }
        }
    }
}

/// Half of the descriptors that this process may have.
pub(super) fn most_parked() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.map_or(usize::MAX, |most| (most as usize / 2).max(1))
}

const _: () = assert!(BUFFER <= QUEUE_BYTES);
