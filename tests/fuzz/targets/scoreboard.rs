//! The scoreboard's memory: every worker of a pool can write all of it, at any time.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use php_pool::scoreboard::{HEADER_SIZE, LAYOUT_VERSION, MAGIC, Scoreboard};

use super::{Cursor, status};

/// Whatever stands in it, it can be looked at and rendered; and a descriptor that is no scoreboard is refused.
pub fn memory(data: &[u8]) {
    thread_local!(static BOARD: Scoreboard = Scoreboard::create(2).expect("there is memory"));
    let mut cursor = Cursor(data);
    let (kind, start) = (cursor.byte(), cursor.byte());
    if kind & 1 != 0 {
        return foreign(kind, cursor);
    }
    BOARD.with(|board| {
        let file = File::from(board.fd().try_clone_to_owned().expect("there are descriptors"));
        let size = file.metadata().expect("it is open").len() as usize;
        let memory: Vec<u8> = (0..size - HEADER_SIZE)
            .map(|at| cursor.0.get(at + 8 * start as usize).map_or(0, |byte| *byte))
            .collect();
        file.write_all_at(&memory, HEADER_SIZE as u64)
            .expect("it may be written");
        for slot in 0..board.slots() {
            let view = board.view(slot);
            if let Some(text) = &view.text {
                assert!(text.method.len() <= 3 * 32 && text.uri.len() <= 3 * 1024 && text.query.len() <= 3 * 2048);
            }
            status::render(&status::snapshot_of(&view));
        }
    });
}

fn foreign(kind: u8, mut cursor: Cursor) {
    let file = File::from(
        memfd_create(c"php-pool-fuzz", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).expect("there is memory"),
    );
    let size = (cursor.number() % 40_000) as usize;
    file.set_len(size as u64).expect("there is memory");
    if kind & 2 != 0 && size >= 8 {
        file.write_all_at(&MAGIC.to_ne_bytes(), 0).expect("it may be written");
        file.write_all_at(&LAYOUT_VERSION.to_ne_bytes(), 4)
            .expect("it may be written");
    }
    let sealed = kind & 4 != 0;
    if sealed {
        fcntl(
            &file,
            FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW),
        )
        .expect("it may be sealed");
    }
    match Scoreboard::open(file.into()) {
        Ok(board) => {
            assert!(sealed && kind & 2 != 0);
            (0..board.slots()).for_each(|slot| drop(board.view(slot)));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
