//! Accepting at a pool's listener, on a thread of the pool's own.
//!
//! Workers share the listener's flags with the master. One that makes it wait for connections would have whoever accepts there
//! wait, and be it the loop.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use nix::sys::signal::SigSet;
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use tokio::sync::oneshot;

/// The thread. It begins with the first order.
#[derive(Debug, Default)]
pub struct Acceptor {
    thread: RefCell<Option<Sender<Order>>>,
}

#[derive(Debug)]
struct Order {
    listener: Arc<OwnedFd>,
    most: usize,
    batch: oneshot::Sender<Batch>,
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
        let order = Order {
            listener: listener.clone(),
            most,
            batch,
        };
        let mut thread = self.thread.borrow_mut();
        if thread.is_none() {
            let (sender, orders) = channel::<Order>();
            let work = move || {
                // They are the loop's, which an exec must not lose.
                let _ = SigSet::all().thread_block();
                for order in orders {
                    let _ = order.batch.send(accept(&order.listener, order.most));
                }
            };
            // Without memory for a thread the order is lost, and given again.
            if thread::Builder::new().name("front".to_owned()).spawn(work).is_ok() {
                *thread = Some(sender);
            }
        }
        if let Some(sender) = &*thread {
            // It ends only with this.
            let _ = sender.send(order);
        }
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
