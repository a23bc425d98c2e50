//! Signals of a worker: handlers that set a flag and wake its loop, nothing else.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use php_pool::scoreboard::{Control, Slot};

static LEAVE: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);
static WAKE: OnceLock<EventFd> = OnceLock::new();
static WAKE_FD: AtomicI32 = AtomicI32::new(-1);
/// [`Control::terminate`] of this worker.
static TERMINATE: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());
/// [`Slot::started`] of this worker.
static STARTED: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());

/// Whether the master has said that the request under way is to end: this one, and not one before it. Async-signal-safe.
pub fn told_to_end() -> bool {
    // SAFETY: null, or words of a mapping that is never undone.
    let (terminate, started) = unsafe { (TERMINATE.load(SeqCst).as_ref(), STARTED.load(SeqCst).as_ref()) };
    let (Some(terminate), Some(started)) = (terminate, started) else {
        return false;
    };
    terminate.load(SeqCst) == started.load(SeqCst).max(1)
}

/// SIGQUIT asks the worker to leave when its request ends; so does SIGTERM, unless the master has said that this request is
/// to end now.
extern "C" fn on_signal(signal: i32) {
    let errno = Errno::last_raw();
    if signal == libc::SIGTERM && told_to_end() {
        // SAFETY: both are async-signal-safe. The signal is blocked here and takes effect when the handler returns.
        unsafe {
            libc::signal(libc::SIGTERM, libc::SIG_DFL);
            libc::raise(libc::SIGTERM);
        }
        return;
    }
    STOP.fetch_or(signal == libc::SIGTERM, SeqCst);
    LEAVE.store(true, SeqCst);
    // SAFETY: async-signal-safe; eight bytes of a constant.
    unsafe { libc::write(WAKE_FD.load(Relaxed), std::ptr::from_ref(&1u64).cast(), 8) };
    Errno::set_raw(errno);
}

/// Installs the handlers. Returns what becomes readable when one has run.
///
/// # Errors
/// When there are no descriptors left.
pub fn install(control: &'static Control, slot: &'static Slot) -> Result<BorrowedFd<'static>, Errno> {
    let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    WAKE_FD.store(wake.as_fd().as_raw_fd(), SeqCst);
    let wake = WAKE.get_or_init(|| wake);
    TERMINATE.store(std::ptr::from_ref(&control.terminate).cast_mut(), SeqCst);
    STARTED.store(std::ptr::from_ref(&slot.started).cast_mut(), SeqCst);
    let action = SigAction::new(SigHandler::Handler(on_signal), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGQUIT, Signal::SIGTERM] {
        // SAFETY: the handler calls async-signal-safe functions alone.
        unsafe { sigaction(signal, &action)? };
    }
    Ok(wake.as_fd())
}

/// Back to how a process begins: nothing blocked, everything at its default but SIGPIPE.
pub fn reset() {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP | Signal::SIGPIPE)) {
        // SAFETY: the default action is no handler.
        let _ = unsafe { sigaction(signal, &default) };
    }
    let _ = SigSet::empty().thread_set_mask();
}

/// In a child that a script has forked: signals are the script's own. Async-signal-safe.
pub fn forget() {
    TERMINATE.store(std::ptr::null_mut(), SeqCst);
    for signal in [Signal::SIGQUIT, Signal::SIGTERM] {
        // SAFETY: the action is written before it is read; the default action is no handler.
        unsafe {
            let mut now: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal as i32, std::ptr::null(), &mut now);
            if now.sa_sigaction == on_signal as *const () as usize {
                libc::signal(signal as i32, libc::SIG_DFL);
            }
        }
    }
    // SAFETY: a descriptor of ours, which nobody uses any more: its handler is gone.
    unsafe { libc::close(WAKE_FD.load(Relaxed)) };
}

/// Whether a signal has asked the worker to leave.
pub fn asked_to_leave() -> bool {
    LEAVE.load(SeqCst)
}

/// Whether it was SIGTERM, which systemd sends to all processes of a service that it stops.
pub fn told_to_stop() -> bool {
    STOP.load(SeqCst)
}

/// The wake-up has been noticed.
pub fn clear_wake() {
    if let Some(wake) = WAKE.get() {
        let _ = wake.read();
    }
}
