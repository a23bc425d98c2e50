//! `setitimer`, `sigaction` and `sigprocmask` as libphp finds them: the same promises for fewer system calls.
//!
//! PHP arms its CPU timer (max_execution_time) afresh up to three times a request, sets the same handler each time and unblocks
//! the same signal: five system calls for a request of some microseconds. libphp calls these functions through the dynamic
//! linker, so that definitions in the executable take their place:
//!
//! - A timer that is armed already is kept when it was armed less than [`SLACK`] ago. Then it fires too early by at most the
//!   CPU time that was used between then and the request's start, which cannot be more than the wall-clock time in
//!   between; that much is added beforehand. A script therefore gets its limit, and less than [`SLACK`] more.
//! - A timer is not disarmed at the end of a request: idle, the process uses no CPU time, and a signal outside of a limit is
//!   ignored.
//! - A handler or mask that is in force already is not set again.
//!
//! SIGPROF from the master, while it says that the running request is to end, acts as PHP's own time-out.

use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use php_pool::scoreboard::monotonic_ns;

use crate::worker::signals::told_to_end;

/// How much more CPU time than its limit a script may get, nanoseconds.
const SLACK: u64 = 250_000_000;

/// The limit in force, CPU nanoseconds; 0 is none.
static LIMIT: AtomicU64 = AtomicU64::new(0);
/// Since when, CLOCK_MONOTONIC ns.
static BEGAN: AtomicU64 = AtomicU64::new(0);
/// CPU time used of the limit before the kernel's timer was armed, nanoseconds, at the least.
static USED: AtomicU64 = AtomicU64::new(0);
/// What the kernel's timer was armed for; 0: it is not armed.
static ARMED: AtomicU64 = AtomicU64::new(0);
/// When.
static ARMED_AT: AtomicU64 = AtomicU64::new(0);
/// PHP's handler of SIGPROF.
static HANDLER: AtomicUsize = AtomicUsize::new(0);
/// Whether the last change of the signal mask unblocked SIGPROF alone.
static UNBLOCKED: AtomicBool = AtomicBool::new(false);

/// In a child that a script has forked: it inherits no timer.
pub fn forget() {
    ARMED.store(0, Relaxed);
}

fn arm(nanoseconds: u64, now: u64) {
    let value = libc::timeval {
        tv_sec: (nanoseconds / 1_000_000_000) as i64,
        tv_usec: (nanoseconds % 1_000_000_000 / 1000) as i64,
    };
    let timer = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
        it_value: value,
    };
    ARMED.store(nanoseconds, Relaxed);
    ARMED_AT.store(now, Relaxed);
    // SAFETY: a valid timer; the old one is not asked for.
    unsafe { libc::syscall(libc::SYS_setitimer, libc::ITIMER_PROF, &timer, null_mut::<c_void>()) };
}

/// See the module.
///
/// # Safety
/// As for setitimer(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setitimer(which: c_int, new: *const libc::itimerval, old: *mut libc::itimerval) -> c_int {
    // SAFETY: the caller's promise; read only when it is not null.
    let wanted = unsafe { new.as_ref() };
    let Some(new_timer) = wanted.filter(|timer| {
        which == libc::ITIMER_PROF && old.is_null() && timer.it_interval.tv_sec == 0 && timer.it_interval.tv_usec == 0
    }) else {
        // SAFETY: passed on as it came.
        return unsafe { libc::syscall(libc::SYS_setitimer, which, new, old) } as c_int;
    };
    let limit = new_timer.it_value.tv_sec as u64 * 1_000_000_000 + new_timer.it_value.tv_usec as u64 * 1000;
    let now = monotonic_ns();
    BEGAN.store(now, Relaxed);
    LIMIT.store(limit, Relaxed);
    USED.store(0, Relaxed);
    let (armed, at) = (ARMED.load(Relaxed), ARMED_AT.load(Relaxed));
    if limit > 0 && (armed == 0 || armed > limit + SLACK || now - at > SLACK) {
        arm(limit + SLACK, now);
    }
    0
}

extern "C" fn on_prof(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let limit = LIMIT.load(Relaxed);
    // SAFETY: the kernel's, as the handler was installed with SA_SIGINFO.
    let sent = unsafe { info.as_ref() }.is_some_and(|info| info.si_code <= 0);
    if !told_to_end() {
        if sent {
            return; // not the timer's: it was meant for the request before, which has just ended
        }
        let (armed, at, began, now) = (
            ARMED.swap(0, Relaxed),
            ARMED_AT.load(Relaxed),
            BEGAN.load(Relaxed),
            monotonic_ns(),
        );
        if limit == 0 {
            return;
        }
        // What was armed for before this limit began may have been used before it, fully.
        let used = USED.load(Relaxed) + armed.saturating_sub(began.saturating_sub(at));
        if used < limit {
            USED.store(used, Relaxed);
            return arm(limit - used, now);
        }
    } else {
        super::show_time_limit();
    }
    let handler = HANDLER.load(Relaxed);
    if handler > libc::SIG_IGN {
        // SAFETY: libphp's own handler, installed with SA_SIGINFO.
        let handler =
            unsafe { std::mem::transmute::<usize, extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void)>(handler) };
        handler(signal, info, context);
    }
}

type RealSigaction = unsafe extern "C" fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int;

fn real_sigaction() -> RealSigaction {
    static REAL: AtomicUsize = AtomicUsize::new(0);
    let mut address = REAL.load(Relaxed);
    if address == 0 {
        // SAFETY: a C string; the result is libc's function of that name.
        address = unsafe { libc::dlsym(libc::RTLD_NEXT, c"sigaction".as_ptr()) } as usize;
        assert!(address != 0, "libc has no sigaction");
        REAL.store(address, Relaxed);
    }
    // SAFETY: the type of that function.
    unsafe { std::mem::transmute::<usize, RealSigaction>(address) }
}

/// See the module.
///
/// # Safety
/// As for sigaction(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigaction(signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int {
    // SAFETY: the caller's promise; read only when it is not null.
    let wanted = unsafe { new.as_ref() };
    let Some(action) = wanted.filter(|action| signal == libc::SIGPROF && action.sa_flags & libc::SA_SIGINFO != 0)
    else {
        if signal == libc::SIGPROF && !new.is_null() {
            HANDLER.store(0, SeqCst);
        }
        // SAFETY: passed on as it came.
        return unsafe { real_sigaction()(signal, new, old) };
    };
    if HANDLER.swap(action.sa_sigaction, SeqCst) == action.sa_sigaction && old.is_null() {
        return 0;
    }
    let ours = libc::sigaction {
        sa_sigaction: on_prof as *const () as usize,
        ..*action
    };
    // SAFETY: a valid action whose handler is async-signal-safe.
    unsafe { real_sigaction()(signal, &ours, old) }
}

/// See the module.
///
/// # Safety
/// As for sigprocmask(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigprocmask(how: c_int, new: *const libc::sigset_t, old: *mut libc::sigset_t) -> c_int {
    // SAFETY: the caller's promise; the kernel's mask is the first word of glibc's.
    let only_prof = how == libc::SIG_UNBLOCK
        && old.is_null()
        && !new.is_null()
        && unsafe { *new.cast::<u64>() } == 1 << (libc::SIGPROF - 1);
    if only_prof && UNBLOCKED.load(Relaxed) {
        return 0;
    }
    if !new.is_null() {
        UNBLOCKED.store(only_prof, Relaxed);
    }
    // SAFETY: passed on as it came; the kernel's mask is 8 bytes.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            how,
            if new.is_null() { null() } else { new },
            old,
            8usize,
        ) as c_int
    }
}
