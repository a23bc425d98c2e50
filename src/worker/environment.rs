//! The process's environment. In a module of its own, as changing it is only sound in a single thread.

/// Replaces the whole environment, in order.
pub fn replace(env: &[(Vec<u8>, Vec<u8>)]) {
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: zygote and worker have one thread; libphp holds no pointer into the environment across this (it copies what
    // it reads at start-up).
    unsafe {
        libc::clearenv();
        for (name, value) in env {
            std::env::set_var(std::ffi::OsStr::from_bytes(name), std::ffi::OsStr::from_bytes(value));
        }
    }
}

/// Sets PHP_INI_SCAN_DIR, where libphp looks for it.
pub fn set_scan_dir(folders: Option<&str>) {
    if let Some(folders) = folders {
        // SAFETY: as above; libphp has not been started.
        unsafe { std::env::set_var("PHP_INI_SCAN_DIR", folders) }
    }
}
