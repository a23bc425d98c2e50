//! A thread that goes ahead of all others for a moment.

use std::marker::PhantomData;

/// While it lives, this thread is not pushed off its core by ordinary ones (SCHED_FIFO, which takes CAP_SYS_NICE). What it
/// forks is not raised with it.
#[derive(Debug)]
pub struct Ahead(PhantomData<*const ()>); // of this thread alone

impl Ahead {
    /// Goes ahead. None: it may not, or it is not an ordinary thread.
    pub fn go() -> Option<Self> {
        // SAFETY: asks for a number of this thread.
        let ordinary = unsafe { libc::sched_getscheduler(0) } == libc::SCHED_OTHER;
        (ordinary && set(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1)).then_some(Self(PhantomData))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        set(libc::SCHED_OTHER, 0);
    }
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
    use super::*;

    #[test]
    fn a_thread_is_ordinary_again_afterwards() {
        // SAFETY: asks for a number of this thread.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let before = policy();
        if let Some(ahead) = Ahead::go() {
            assert_eq!(policy() & !libc::SCHED_RESET_ON_FORK, libc::SCHED_FIFO);
            drop(ahead);
        }
        assert_eq!(policy(), before);
    }
}
