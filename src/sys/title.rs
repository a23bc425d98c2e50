//! What `ps` shows for a process.

use std::ffi::CString;
use std::io;
use std::sync::OnceLock;

/// `struct prctl_mm_map` of `<linux/prctl.h>`.
#[repr(C)]
struct MemoryMap {
    /// `start_code` to `env_end`, in the kernel's order.
    addresses: [u64; 11],
    auxv: *const u64,
    auxv_size: u32,
    exe_fd: u32,
}

const PR_SET_MM: libc::c_int = 35;
const PR_SET_MM_MAP: libc::c_ulong = 14;

/// Where the fields of `MemoryMap` stand in /proc/self/stat, counted from 1 as proc(5) does; 0 is the break.
const STAT_FIELDS: [usize; 11] = [26, 27, 45, 46, 47, 0, 28, 48, 49, 50, 51];
const BREAK: usize = 5;
const ARG_START: usize = 7;
const ARG_END: usize = 8;

/// Makes `title` this process's command line as others see it.
///
/// The text lies in memory of its own, so that it may be longer than the command line was, and /proc/PID/environ stays
/// what it is (php-fpm writes over both). The memory is never given back: a process has one title, or a few.
///
/// # Errors
/// When the kernel cannot do it (built without CONFIG_CHECKPOINT_RESTORE); nothing has changed then.
pub fn set_title(title: &str) -> io::Result<()> {
    // Within a chroot there is no /proc; but for the break they are what they were before it.
    static FOUND: OnceLock<[u64; 11]> = OnceLock::new();
    let mut addresses = match FOUND.get() {
        Some(found) => *found,
        None => {
            let found = addresses()?;
            *FOUND.get_or_init(|| found)
        }
    };
    // SAFETY: asks for the break and changes nothing.
    addresses[BREAK] = unsafe { libc::sbrk(0) as u64 };
    let text = Box::leak([title.as_bytes(), &[0]].concat().into_boxed_slice());
    addresses[ARG_START] = text.as_ptr() as u64;
    addresses[ARG_END] = addresses[ARG_START] + text.len() as u64;
    let map = MemoryMap {
        addresses,
        auxv: std::ptr::null(),
        auxv_size: 0,
        exe_fd: u32::MAX,
    };
    // SAFETY: the kernel reads `map` and remembers the addresses for /proc alone; those that change point to memory that
    // lives for ever.
    let result = unsafe { libc::prctl(PR_SET_MM, PR_SET_MM_MAP, &raw const map, size_of::<MemoryMap>(), 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Called as php-fpm, all processes have the name by which `parent` is found, whatever the version in it: `ps -C php-fpm8.2`,
/// `pgrep php-fpm`. What is executed from now on has its own.
pub fn take_name_of(parent: u32) {
    let name = std::fs::read_to_string(format!("/proc/{parent}/comm")).unwrap_or_default();
    if name.starts_with("php-fpm")
        && let Ok(name) = CString::new(name.trim_end())
    {
        let _ = nix::sys::prctl::set_name(&name);
    }
}

/// What the kernel remembers now; the break is not among it.
fn addresses() -> io::Result<[u64; 11]> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The second field is the name in brackets, and may hold blanks and brackets itself.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let numbers: Vec<u64> = after_name
        .split_whitespace()
        .map(|word| word.parse().unwrap_or(0))
        .collect();
    let mut addresses = [0; 11];
    for (address, field) in addresses.iter_mut().zip(STAT_FIELDS).filter(|(_, field)| *field > 0) {
        *address = *numbers.get(field - 3).ok_or(io::ErrorKind::InvalidData)?;
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_title_longer_than_the_command_line_is_seen() {
        let title = format!("php-fpm: master process ({})", "x".repeat(3000));
        super::set_title(&title).unwrap();
        let seen = std::fs::read_to_string("/proc/self/cmdline").unwrap();
        assert_eq!(seen.trim_end_matches('\0'), title);
        let environ = std::fs::read("/proc/self/environ").unwrap();
        assert!(environ.windows(5).any(|window| window == b"PATH="));
    }
}
