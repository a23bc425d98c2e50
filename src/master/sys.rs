//! The master's own `unsafe`: what of the process's start has no safe name.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::ForkResult;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Marks every descriptor from `first` on close-on-exec: whatever this process inherited is none of the pools' business.
pub fn close_on_exec_from(first: RawFd) {
    // SAFETY: sets a flag on descriptors and closes none.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first as libc::c_uint,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        return;
    }
    // A kernel before 5.11.
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    for entry in entries.flatten() {
        if let Some(fd) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
            .filter(|fd| *fd >= first)
        {
            set_close_on_exec(fd, true);
        }
    }
}

/// Says whether an exec closes a descriptor. One that is gone stays gone.
pub fn set_close_on_exec(fd: RawFd, closes: bool) {
    let flags = if closes { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: sets a flag; on a descriptor that is gone it is an error that changes nothing.
    unsafe { libc::fcntl(fd, libc::F_SETFD, flags) };
}

/// Takes over a descriptor that this process was started with, if it is open.
///
/// To be called at most once for a number, and before the process opens descriptors of its own.
pub fn take_inherited(fd: RawFd) -> Option<OwnedFd> {
    if fd <= libc::STDERR_FILENO {
        return None;
    }
    // SAFETY: asks for flags and changes nothing.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: open, and ours by the caller's promise: nobody else in this process has been told of it.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Becomes two processes.
pub fn fork() -> Result<ForkResult, Errno> {
    // SAFETY: called before the process has a second thread, so that the child is whole.
    unsafe { nix::unistd::fork() }
}

/// A listening TCP socket's queue: connections that nobody has accepted yet, and how many there may be.
pub fn tcp_queue(socket: BorrowedFd) -> io::Result<(u32, u32)> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes of a struct of plain numbers.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    // SAFETY: all zeros to begin with, of which every bit pattern is valid.
    let info = unsafe { info.assume_init() };
    Ok((info.tcpi_unacked, info.tcpi_sacked))
}

/// How much of what was sent by a unix socket nobody has received, in the kernel's bytes, some hundred for each message.
pub fn unread(socket: impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one number. (For sockets this is called SIOCOUTQ.)
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    Errno::result(result)?;
    Ok(bytes.unsigned_abs() as usize)
}

/// Registers a descriptor with the event loop.
///
/// # Errors
/// When the kernel refuses.
pub fn register<T: AsFd + AsRawFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: what is registered here owns its descriptor for as long as it lives and never changes it (channels, pipes,
    // pidfds, sockets, event counters; also by Rc); AsFd says that it is open.
    Ok(unsafe { AsyncFd::register_with_interest(owner, interest) }?)
}
