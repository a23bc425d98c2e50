//! What happens, for the bus service: a datagram, sent without waiting.
//!
//! systemd holds the socket and starts the service for it. Where there is none, or its queue is full, the event is lost on
//! the bus; it stands in the journal all the same. No pool waits or fails for it.
#![forbid(unsafe_code)]

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use crate::api::{Happened, encode};

/// The way to the bus service.
#[derive(Debug)]
pub struct Herald {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Herald {
    /// None: there are no descriptors left.
    pub fn new(path: &Path) -> Option<Self> {
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_nonblocking(true).ok()?;
        let path = path.to_owned();
        Some(Self { socket, path })
    }

    /// Says what everybody may know of it.
    pub fn tell(&self, what: &Happened) {
        let _ = self.socket.send_to(&encode(what.without_request()), &self.path);
    }
}
