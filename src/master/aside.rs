//! Work that a pool's processes can hold up, on a thread of the pool's own: the loop is everybody's.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::signal::SigSet;

/// A thread without work ends after so long: a machine may have thousands of pools that have nothing to do.
const IDLE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 10_000 });

type Work = Box<dyn FnOnce() + Send>;

/// The thread. It is there while it has work, and some time longer.
#[derive(Debug)]
pub struct Aside {
    name: &'static str,
    queue: Arc<Queue>,
    /// What is not done yet.
    left: Counter,
}

#[derive(Default)]
struct Queue {
    all: Mutex<All>,
    more: Condvar,
}

#[derive(Default)]
struct All {
    works: VecDeque<Work>,
    /// There is a thread, which will look again.
    runs: bool,
    /// No more will come.
    over: bool,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl Queue {
    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work_off(&self) {
        let mut all = self.all();
        loop {
            let waits = |all: &mut All| all.works.is_empty() && !all.over;
            all = self
                .more
                .wait_timeout_while(all, IDLE, waits)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            let Some(work) = all.works.pop_front() else {
                all.runs = false;
                return;
            };
            drop(all);
            work();
            all = self.all();
        }
    }
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
            queue: Arc::default(),
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
        let mut all = self.queue.all();
        if !all.runs {
            let queue = self.queue.clone();
            let body = move || {
                // They are the loop's, which an exec must not lose.
                let _ = SigSet::all().thread_block();
                queue.work_off();
            };
            thread::Builder::new().name(self.name.to_owned()).spawn(body)?;
            all.runs = true;
        }
        let counted = self.left.count();
        all.works.push_back(Box::new(move || {
            work();
            drop(counted);
        }));
        self.queue.more.notify_one();
        Ok(())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.queue.all().over = true;
        self.queue.more.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_done_in_its_order_however_often_the_thread_has_ended() {
        let aside = Aside::new("test");
        let done = Arc::new(Mutex::new(Vec::new()));
        for number in 0..300 {
            let done = done.clone();
            aside.run(move || done.lock().unwrap().push(number)).unwrap();
            if number % 10 == 0 {
                while aside.queue.all().runs {
                    thread::yield_now();
                }
            }
        }
        while !aside.is_quiet() {
            thread::yield_now();
        }
        assert!(done.lock().unwrap().iter().copied().eq(0..300));
    }
}
