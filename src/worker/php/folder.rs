//! `chdir` as libphp finds it: a worker that is in the script's folder already stays there.
//!
//! A path may lead to another folder than a moment ago (a release that is switched by a symbolic link). PHP itself looks at files
//! it knows only so often (`opcache.revalidate_freq`), and no more than that, nor than [`MOST`], is a folder taken for the one
//! it was. libphp calls these functions through the dynamic linker, so that definitions in the executable take their place.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use php_pool::scoreboard::monotonic_ns;

/// The longest that a folder is not looked at again.
const MOST: Duration = Duration::from_millis(100);

/// Nanoseconds; 0: each call goes to the kernel. It must be so before a chroot, after which a path means something else.
static PATIENCE: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The absolute path by which this process came to where it is, and when.
    static LAST: RefCell<Option<(CString, u64)>> = const { RefCell::new(None) };
}

/// From now on a folder is looked at again after this time at the earliest.
pub fn trust(time: Duration) {
    PATIENCE.store(time.min(MOST).as_nanos() as u64, Relaxed);
}

fn real(path: &CStr) -> c_int {
    // SAFETY: a C string.
    unsafe { libc::syscall(libc::SYS_chdir, path.as_ptr()) as c_int }
}

/// See the module.
///
/// # Safety
/// As for chdir(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn chdir(path: *const c_char) -> c_int {
    let patience = PATIENCE.load(Relaxed);
    if patience == 0 || path.is_null() {
        // SAFETY: passed on as it came.
        return unsafe { libc::syscall(libc::SYS_chdir, path) as c_int };
    }
    // SAFETY: the caller's promise.
    let path = unsafe { CStr::from_ptr(path) };
    let result = LAST.try_with(|last| {
        let now = monotonic_ns();
        let mut last = last.borrow_mut();
        if last
            .as_ref()
            .is_some_and(|(known, at)| **known == *path && now - at < patience)
        {
            return 0;
        }
        let result = real(path);
        *last = (result == 0 && path.to_bytes().starts_with(b"/")).then(|| (path.to_owned(), now));
        result
    });
    // The process is ending.
    result.unwrap_or_else(|_| real(path))
}

/// See the module.
///
/// # Safety
/// As for fchdir(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fchdir(folder: c_int) -> c_int {
    let _ = LAST.try_with(|last| last.borrow_mut().take());
    // SAFETY: passed on as it came.
    unsafe { libc::syscall(libc::SYS_fchdir, folder) as c_int }
}
