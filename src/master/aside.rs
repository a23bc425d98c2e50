//! Work that a pool's processes can hold up, on a thread of the pool's own: the loop is everybody's.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use nix::sys::signal::SigSet;

type Work = Box<dyn FnOnce() + Send>;

/// The thread. It begins with its first work, and ends when this is gone and all is done.
#[derive(Debug)]
pub struct Aside {
    name: &'static str,
    thread: RefCell<Option<Sender<Work>>>,
    /// What is not done yet.
    left: Counter,
}

/// How many of something there are.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicUsize>);

impl Counter {
    /// One more, until what this returns goes.
    pub fn count(&self) -> Counted {
        self.0.fetch_add(1, SeqCst);
        Counted(self.0.clone())
    }

    /// How many.
    pub fn get(&self) -> usize {
        self.0.load(SeqCst)
    }
}

/// One of them.
#[derive(Debug)]
pub struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Aside {
    /// One whose thread bears this name.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            thread: RefCell::default(),
            left: Counter::default(),
        }
    }

    /// Whether all is done that was given.
    pub fn is_quiet(&self) -> bool {
        self.left.get() == 0
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
        let counted = self.left.count();
        let work = move || {
            work();
            drop(counted);
        };
        if let Some(sender) = &*thread {
            // It ends only with this.
            let _ = sender.send(Box::new(work));
        }
        Ok(())
    }
}
