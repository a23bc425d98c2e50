//! Processes that a script forks by itself (pcntl_fork(), an extension): they are the script's, and nothing of the worker.
//!
//! A child goes on in the middle of its script, with a copy of all that the worker has. What is the worker's alone goes at
//! once, before any code of the child runs: sockets, channels, the client's connection, signal handlers. From then on PHP finds
//! nobody to answer to, and the process ends when the script does (`php::serve`).

use std::ptr::null_mut;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicPtr};

use nix::errno::Errno;

use super::context::Worker;
use super::{php, signals};

static CHILD: AtomicBool = AtomicBool::new(false);
static WORKER: AtomicPtr<Worker> = AtomicPtr::new(null_mut());

/// Whether this process was forked by a script.
pub fn is_child() -> bool {
    CHILD.load(Relaxed)
}

/// From now on a child of this worker is none itself.
///
/// # Errors
/// When there is no memory.
pub fn expect(worker: &'static Worker) -> Result<(), Errno> {
    WORKER.store(std::ptr::from_ref(worker).cast_mut(), Relaxed);
    // SAFETY: a function that lives as long as the program; it is called in a copy of this process's one thread.
    match unsafe { libc::pthread_atfork(None, None, Some(in_child)) } {
        0 => Ok(()),
        error => Err(Errno::from_raw(error)),
    }
}

/// In the child, before fork() returns there. Closes by number: the owners are never used again, nor dropped.
unsafe extern "C" fn in_child() {
    if CHILD.swap(true, Relaxed) {
        return; // a child's own child: there is nothing left
    }
    signals::forget();
    php::forget();
    let close = |fd: i32| {
        // SAFETY: a descriptor of the worker's, open here as it is there.
        unsafe { libc::close(fd) };
    };
    // SAFETY: null, or a worker that lives for ever; this is the only thread.
    if let Some(worker) = unsafe { WORKER.load(Relaxed).as_ref() } {
        worker.descriptors().for_each(close);
    }
}
