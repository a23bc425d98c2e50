//! What has happened in the masters: a datagram each, on a socket that only root can write to.
//!
//! A master sends without waiting; what does not fit into the queue is lost here and stands in the journal.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdDatagram;

use tokio::net::UnixDatagram;

use crate::api::{Happened, Versioned};

/// The socket of systemd's, if it has given one. To be called before the process opens descriptors of its own.
pub fn inherited() -> Option<OwnedFd> {
    let fd = sd_notify::listen_fds().ok()?.next()?;
    crate::master::take_inherited(fd)
}

/// The receiving end.
pub struct Events {
    socket: Option<UnixDatagram>,
    buffer: Vec<u8>,
}

impl Events {
    /// Without a socket nothing ever happens.
    ///
    /// # Errors
    /// When it is no datagram socket.
    pub fn new(inherited: Option<OwnedFd>) -> io::Result<Self> {
        let socket = inherited.map(|fd| {
            let socket = StdDatagram::from(fd);
            socket.set_nonblocking(true)?;
            UnixDatagram::from_std(socket)
        });
        Ok(Self {
            socket: socket.transpose()?,
            buffer: vec![0; crate::api::MAX_EVENT],
        })
    }

    /// The next event.
    ///
    /// # Errors
    /// When the socket does not work any more.
    pub async fn next(&mut self) -> io::Result<Happened> {
        let Some(socket) = &self.socket else {
            return std::future::pending().await;
        };
        loop {
            let length = socket.recv(&mut self.buffer).await?;
            // One that is not understood is a newer master's.
            if let Ok(Versioned { message, .. }) = serde_json::from_slice(&self.buffer[..length]) {
                return Ok(message);
            }
        }
    }
}
