//! The way to the script's folder: a worker that is there already stays there.
//!
//! A path may lead to another folder than a moment ago (a release that is switched by a symbolic link). PHP itself looks at files
//! it knows only so often (`opcache.revalidate_freq`), and no more than that, nor than [`MOST`], is a folder taken for the one
//! it was; nor when anybody has changed folders since. Whoever does in this process, a script or an extension, comes by
//! [`chdir`] or [`fchdir`]: libphp calls them through the dynamic linker, so that definitions in the executable take their place.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use php_pool::scoreboard::monotonic_ns;

/// The longest that a folder is not looked at again. Under load this is many requests, and a folder that is made anew is soon found.
const MOST: Duration = Duration::from_millis(10);

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

fn real(path: *const c_char) -> c_int {
    // SAFETY: passed on as it came; the kernel looks at it.
    unsafe { libc::syscall(libc::SYS_chdir, path) as c_int }
}

/// Goes to the script's folder, if this process may be elsewhere.
pub extern "C" fn enter(path: *const c_char) -> c_int {
    let patience = PATIENCE.load(Relaxed);
    if patience == 0 || path.is_null() {
        return real(path);
    }
    // SAFETY: the shim passes a C string.
    let path = unsafe { CStr::from_ptr(path) };
    LAST.with(|last| {
        let now = monotonic_ns();
        let mut last = last.borrow_mut();
        if last
            .as_ref()
            .is_some_and(|(known, at)| **known == *path && now - at < patience)
        {
            return 0;
        }
        let result = real(path.as_ptr());
        *last = (result == 0 && path.to_bytes().starts_with(b"/")).then(|| (path.to_owned(), now));
        result
    })
}

/// Somebody goes elsewhere, or to the same folder, which may be another one by now.
fn forget() {
    // The thread may be ending.
    let _ = LAST.try_with(|last| last.borrow_mut().take());
}

/// See the module.
///
/// # Safety
/// As for chdir(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn chdir(path: *const c_char) -> c_int {
    forget();
    real(path)
}

/// See the module.
///
/// # Safety
/// As for fchdir(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fchdir(folder: c_int) -> c_int {
    forget();
    // SAFETY: passed on as it came.
    unsafe { libc::syscall(libc::SYS_fchdir, folder) as c_int }
}
