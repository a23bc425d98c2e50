//! What is too long for a message goes beside it: a memfd whose bytes nobody can change any more.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};

/// These bytes, sealed.
///
/// # Errors
/// When there is no memory or descriptor left.
pub fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create(c"php-pool-message", flags)?);
    file.write_all(bytes)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// The bytes of a sealed memfd; None: it is none, or longer than `most`. Of anything else nothing is read: it could take for
/// ever.
pub fn unsealed(fd: impl AsFd, most: usize) -> Option<Vec<u8>> {
    // Nothing but memory has seals.
    let seals = fcntl_get_seals(&fd).ok()?;
    if !seals.contains(SealFlags::SHRINK | SealFlags::WRITE) {
        return None;
    }
    let size = usize::try_from(fstat(&fd).ok()?.st_size).ok()?;
    let mut bytes = vec![0; Some(size).filter(|size| *size <= most)?];
    let mut read = 0;
    while read < size {
        match rustix::io::pread(&fd, &mut bytes[read..], read as u64) {
            Ok(0) | Err(_) => return None,
            Ok(count) => read += count,
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_read() {
        let fd = sealed(b"abc").unwrap();
        assert_eq!(unsealed(&fd, 3).as_deref(), Some(&b"abc"[..]));
        assert!(File::from(fd).write(b"x").is_err());
    }

    #[test]
    fn only_what_nobody_can_change_is_read() {
        let memory = |bytes: &[u8], seals| {
            let mut file = File::from(memfd_create("x", MemfdFlags::ALLOW_SEALING).unwrap());
            file.write_all(bytes).unwrap();
            fcntl_add_seals(&file, seals).unwrap();
            file
        };
        let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        assert_eq!(unsealed(memory(b"abc", all), 3).as_deref(), Some(&b"abc"[..]));
        assert_eq!(unsealed(memory(b"four", all), 3), None);
        assert_eq!(unsealed(memory(b"x", SealFlags::SHRINK), 3), None);
        assert_eq!(unsealed(memory(b"x", SealFlags::WRITE), 3), None);
        assert_eq!(unsealed(File::open("/dev/zero").unwrap(), 3), None);
        assert_eq!(unsealed(std::io::pipe().unwrap().0, 3), None);
    }
}
