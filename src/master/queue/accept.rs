//! Accepting at a pool's listener, on a thread of the pool's own.
//!
//! Workers share the listener's flags with the master. One that makes it wait for connections would have whoever accepts there
//! wait, and be it the loop.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use tokio::sync::oneshot;

use crate::master::aside::Aside;

/// The thread.
#[derive(Debug)]
pub struct Acceptor(Aside);

impl Default for Acceptor {
    fn default() -> Self {
        Self(Aside::new("front"))
    }
}

/// What came of an order.
#[derive(Debug)]
pub struct Batch {
    /// Connections, with their clients' addresses where they have some.
    pub taken: Vec<(OwnedFd, Option<IpAddr>)>,
    /// Why there are no more; None: as many as were asked for.
    pub end: Option<Errno>,
}

impl Acceptor {
    /// Has what waits at a listener accepted, at most so many connections. What it will be is not to be dropped: there may be
    /// clients in it.
    pub fn take(&self, listener: &Arc<OwnedFd>, most: usize) -> oneshot::Receiver<Batch> {
        let (batch, receiver) = oneshot::channel();
        let listener = listener.clone();
        // Without memory for a thread the order is lost, and given again.
        let _ = self.0.run(move || {
            let _ = batch.send(accept(&listener, most));
        });
        receiver
    }
}

fn accept(listener: &OwnedFd, most: usize) -> Batch {
    let mut taken = Vec::new();
    let end = loop {
        if taken.len() == most {
            break None;
        }
        match acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok((connection, peer)) => {
                let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                taken.push((connection, peer.map(|peer| peer.ip().to_canonical())));
            }
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(error) => break Some(error),
        }
    };
    Batch { taken, end }
}
