//! `listen.acl_users` and `listen.acl_groups`: a POSIX ACL, written as the extended attribute that it is.
//!
//! Format: `<linux/posix_acl_xattr.h>`, version 2; entries ordered by tag and then id.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::XattrFlags;

const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHER: u16 = 32;
const READ_WRITE: u16 = 6;
const NOBODY: u32 = u32::MAX;

/// Lets users and groups (ids) read and write a file, of which `file` is a handle (O_PATH).
///
/// # Errors
/// When the file system has no ACLs, or the file is not ours.
pub fn grant(file: BorrowedFd, users: &[u32], groups: &[u32]) -> io::Result<()> {
    let value = encode(rustix::fs::fstat(file)?.st_mode, users, groups);
    // No system call takes the handle itself.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::setxattr(path, "system.posix_acl_access", &value, XattrFlags::empty())?;
    Ok(())
}

fn encode(mode: u32, users: &[u32], groups: &[u32]) -> Vec<u8> {
    let bits = |shift: u32| (mode >> shift & 7) as u16;
    let mut entries = vec![
        (USER_OBJ, bits(6), NOBODY),
        (GROUP_OBJ, bits(3), NOBODY),
        // What a group or a named user may at most.
        (MASK, bits(3) | READ_WRITE, NOBODY),
        (OTHER, bits(0), NOBODY),
    ];
    entries.extend(users.iter().map(|id| (USER, READ_WRITE, *id)));
    entries.extend(groups.iter().map(|id| (GROUP, READ_WRITE, *id)));
    entries.sort_by_key(|(tag, _, id)| (*tag, *id));
    entries.dedup();
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_ordered_and_once() {
        let value = encode(0o600, &[33, 7, 33], &[]);
        let entry = |at: usize| {
            let bytes = &value[4 + at * 8..][..8];
            let half = |from: usize| u16::from_le_bytes([bytes[from], bytes[from + 1]]);
            (half(0), half(2), u32::from_le_bytes(bytes[4..].try_into().unwrap()))
        };
        let all: Vec<_> = (0..(value.len() - 4) / 8).map(entry).collect();
        let wanted = [
            (USER_OBJ, 6, NOBODY),
            (USER, 6, 7),
            (USER, 6, 33),
            (GROUP_OBJ, 0, NOBODY),
            (MASK, 6, NOBODY),
            (OTHER, 0, NOBODY),
        ];
        assert_eq!(all, wanted);
    }
}
