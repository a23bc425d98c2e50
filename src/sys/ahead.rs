//! A thread that goes ahead of all others for a moment.

use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

/// While it lives, this thread is not pushed off its core by ordinary ones (SCHED_FIFO, which takes CAP_SYS_NICE). What it
/// forks is not raised with it.
#[derive(Debug)]
pub struct Ahead {
    /// The cores that it has else, when it had to leave them.
    cores: Option<CpuSet>,
    _of_this_thread: PhantomData<*const ()>,
}

impl Ahead {
    /// Goes ahead. None: it may not, or it is not an ordinary thread.
    pub fn go() -> Option<Self> {
        // SAFETY: asks for a number of this thread.
        let ordinary = unsafe { libc::sched_getscheduler(0) } == libc::SCHED_OTHER;
        (ordinary && set(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1)).then_some(Self {
            cores: None,
            _of_this_thread: PhantomData,
        })
    }

    /// Goes ahead, on the core of a process: as long as this thread does not sleep, a process that was running does not run.
    pub fn go_in_place_of(pid: i32) -> Option<Self> {
        let mut ahead = Self::go()?;
        ahead.cores = go_to_core_of(pid);
        Some(ahead)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if let Some(cores) = &self.cores {
            let _ = sched_setaffinity(THIS_THREAD, cores);
        }
        set(libc::SCHED_OTHER, 0);
    }
}

const THIS_THREAD: Pid = Pid::from_raw(0);

/// The cores that this thread had before. None: it is there, or there is nothing to go to, or it may not.
fn go_to_core_of(pid: i32) -> Option<CpuSet> {
    let core = core_of(pid).filter(|core| sched_getcpu() != Ok(*core))?;
    let mut there = CpuSet::new();
    there.set(core).ok()?;
    let before = sched_getaffinity(THIS_THREAD).ok()?;
    sched_setaffinity(THIS_THREAD, &there).ok()?;
    Some(before)
}

/// The core on which a process runs, or waits to run. None: it sleeps.
fn core_of(pid: i32) -> Option<usize> {
    let mut stat = [0; 1024];
    let length = File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut stat).ok()?;
    // The name in brackets may hold anything. Of all fields the state is the third, the core the 39th.
    let name = stat[..length].iter().rposition(|byte| *byte == b')')?;
    let mut fields = str::from_utf8(&stat[name + 1..length]).ok()?.split_ascii_whitespace();
    let runs = fields.next() == Some("R");
    fields.nth(35).filter(|_| runs)?.parse().ok()
}

fn set(policy: i32, priority: i32) -> bool {
    let priority = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: of this thread; the kernel copies the structure.
    unsafe { libc::sched_setscheduler(0, policy, &priority) == 0 }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_thread_is_where_it_was_afterwards() {
        // SAFETY: asks for a number of this thread.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let cores = || sched_getaffinity(THIS_THREAD).unwrap();
        let before = (policy(), cores());
        let last = (0..CpuSet::count())
            .rfind(|core| before.1.is_set(*core).unwrap())
            .unwrap();
        let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let pid = child.id() as i32;
        let mut there = CpuSet::new();
        there.set(last).unwrap();
        sched_setaffinity(Pid::from_raw(pid), &there).unwrap();
        while core_of(pid) != Some(last) {
            std::thread::yield_now();
        }
        if let Some(ahead) = Ahead::go_in_place_of(pid) {
            assert_eq!(policy() & !libc::SCHED_RESET_ON_FORK, libc::SCHED_FIFO);
            assert_eq!(sched_getcpu(), Ok(last));
            drop(ahead);
        }
        assert_eq!((policy(), cores()), before);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_that_sleeps_is_nowhere() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        while core_of(child.id() as i32).is_some() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
