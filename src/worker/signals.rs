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
static MASTER: AtomicI32 = AtomicI32::new(0);
static WAKE: OnceLock<EventFd> = OnceLock::new();
static WAKE_FD: AtomicI32 = AtomicI32::new(-1);
/// [`Control::terminate`] of this worker.
static TERMINATE: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());
/// This worker's.
static SLOT: AtomicPtr<Slot> = AtomicPtr::new(std::ptr::null_mut());

/// Whether the master has said that the request under way is to end: this one, and not one before it. Async-signal-safe.
pub fn told_to_end() -> bool {
    // SAFETY: null, or words of a mapping that is never undone.
    let (terminate, slot) = unsafe { (TERMINATE.load(SeqCst).as_ref(), SLOT.load(SeqCst).as_ref()) };
    let (Some(terminate), Some(slot)) = (terminate, slot) else {
        return false;
    };
    slot.stage().is_active() && terminate.load(SeqCst) == slot.started.load(SeqCst).max(1)
}

/// SIGQUIT asks the worker to leave when its request ends; so does SIGTERM, unless the master has said that this request is
/// to end now.
extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let errno = Errno::last_raw();
    if signal == libc::SIGTERM && told_to_end() {
        // SAFETY: both are async-signal-safe. The signal is blocked here and takes effect when the handler returns.
        unsafe {
            libc::signal(libc::SIGTERM, libc::SIG_DFL);
            libc::raise(libc::SIGTERM);
        }
        return;
    }
    // SAFETY: the kernel's, as the handler is installed with SA_SIGINFO.
    let by_master = unsafe { info.as_ref().is_some_and(|info| info.si_pid() == MASTER.load(Relaxed)) };
    // The master's own was meant for a request that has just ended.
    STOP.fetch_or(signal == libc::SIGTERM && !by_master, SeqCst);
    LEAVE.store(true, SeqCst);
    // SAFETY: async-signal-safe; eight bytes of a constant.
    unsafe { libc::write(WAKE_FD.load(Relaxed), std::ptr::from_ref(&1u64).cast(), 8) };
    Errno::set_raw(errno);
}

/// Installs the handlers. Returns what becomes readable when one has run.
///
/// # Errors
/// When there are no descriptors left.
pub fn install(control: &'static Control, slot: &'static Slot, master: u32) -> Result<BorrowedFd<'static>, Errno> {
    let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    WAKE_FD.store(wake.as_fd().as_raw_fd(), SeqCst);
    let wake = WAKE.get_or_init(|| wake);
    MASTER.store(master as i32, SeqCst);
    TERMINATE.store(std::ptr::from_ref(&control.terminate).cast_mut(), SeqCst);
    SLOT.store(std::ptr::from_ref(slot).cast_mut(), SeqCst);
    let action = SigAction::new(SigHandler::SigAction(on_signal), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGQUIT, Signal::SIGTERM] {
        // SAFETY: the handler calls async-signal-safe functions alone.
        unsafe { sigaction(signal, &action)? };
    }
    // A request's time may be over while its body still comes; the first one's before PHP has a handler.
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: this action is no handler.
    unsafe { sigaction(Signal::SIGPROF, &ignore)? };
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

/// From here on the process ends after so many seconds, by SIGALRM, unless [`nix::unistd::alarm::cancel`] comes first: code of others
/// is about to run that may not return, and nobody else would end it.
pub fn end_within(seconds: u32) {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action is no handler.
    let _ = unsafe { sigaction(Signal::SIGALRM, &default) };
    let _ = SigSet::from(Signal::SIGALRM).thread_unblock();
    nix::unistd::alarm::set(seconds);
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
