//! Work that a pool's processes can hold up, on a thread of the pool's own: the loop is everybody's.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use nix::sys::signal::SigSet;

type Work = Box<dyn FnOnce() + Send>;

/// The thread. It begins with its first work, and ends when this is gone and all is done.
#[derive(Debug)]
pub struct Aside {
    name: &'static str,
    thread: RefCell<Option<Sender<Work>>>,
}

impl Aside {
    /// One whose thread bears this name.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            thread: RefCell::new(None),
        }
    }

    /// Has something done, when all that was given before is done.
    ///
    /// # Errors
    /// When there is no memory for a thread; the work is dropped then, here.
    pub fn run(&self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut thread = self.thread.borrow_mut();
        if thread.is_none() {
            let (sender, all) = channel::<Work>();
            let body = move || {
                // They are the loop's, which an exec must not lose.
                let _ = SigSet::all().thread_block();
                all.into_iter().for_each(|work| work());
            };
            thread::Builder::new().name(self.name.to_owned()).spawn(body)?;
            *thread = Some(sender);
        }
        if let Some(sender) = &*thread {
            // It ends only with this.
            let _ = sender.send(Box::new(work));
        }
        Ok(())
    }
}
