//! What one generation has compiled, the next one compiles before it takes over (`reload.warm`).
//!
//! Both sides are children of their zygotes, so that a zygote stays what all workers are forked from: nothing of a request
//! has ever been in it. They share opcache's memory with it, and a pipe between them that the master has made and does not
//! read.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use super::{php, readable, signals};

/// Most bytes of paths.
const MOST: u64 = 4 << 20;

/// How long a file may take to be compiled when the time for all of them is over, and the naming of them altogether.
const LAST: Duration = Duration::from_secs(10);

/// Writes what opcache holds into the pipe, by a child of this process.
pub fn name(fds: Vec<OwnedFd>) {
    let Some(pipe) = fds.into_iter().next() else { return };
    in_child(|| {
        // Nobody waits for it: one that finds no end in a torn cache ends by this.
        nix::unistd::alarm::set(LAST.as_secs() as u32);
        let mut pipe = BufWriter::new(File::from(pipe));
        php::each_compiled(|path| pipe.write_all(path).and_then(|()| pipe.write_all(&[0])).is_ok());
        let _ = pipe.flush();
    });
}

/// Compiles what the pipe names, by a child of this process, and waits for that.
///
/// # Errors
/// When it does not come to an end: then it cannot be known how it has left opcache's memory.
pub fn compile(pipe: OwnedFd, limit: Duration) -> Result<(), String> {
    let begun = Instant::now();
    let Some(child) = in_child(|| compile_all(&pipe, begun + limit)) else {
        return Ok(());
    };
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) if begun.elapsed() > limit + LAST => {
                let _ = kill(child, Signal::SIGKILL);
                let _ = waitpid(child, None);
                return Err("a file that the generation before has compiled cannot be compiled in any time".to_owned());
            }
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(2)),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return Err(format!(
                    "to compile what the generation before has compiled ends on signal {signal}"
                ));
            }
            _ => return Ok(()),
        }
    }
}

fn compile_all(pipe: &OwnedFd, until: Instant) {
    let left = || until.saturating_duration_since(Instant::now());
    let mut names =
        BufReader::new(File::from(pipe.try_clone().expect("there are descriptors at the start")).take(MOST));
    loop {
        let mut path = Vec::new();
        // Whoever writes may be stopped, or hang.
        let there = !names.buffer().is_empty() || readable(pipe.as_fd(), left());
        if left().is_zero() || !there || !names.read_until(0, &mut path).is_ok_and(|count| count > 1) {
            return;
        }
        path.pop();
        // A pipe in the place of a file would be waited for.
        if php::is_file(&path) {
            php::compile(&path);
        }
    }
}

/// Does something in a child of this process; its pid.
fn in_child(act: impl FnOnce()) -> Option<Pid> {
    // SAFETY: this process has one thread, so that the child is whole.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { child }) => Some(child),
        Ok(ForkResult::Child) => {
            signals::reset();
            let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
            act();
            // SAFETY: ends this process, and does nothing else: what PHP would do at its end is its parent's.
            unsafe { libc::_exit(0) }
        }
        Err(_) => None,
    }
}
