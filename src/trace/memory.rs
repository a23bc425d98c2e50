//! Memory of another process, read without trusting it.

use std::collections::HashMap;
use std::io::IoSliceMut;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use thiserror::Error;

/// Why memory cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReadError {
    /// Nothing is there.
    #[error("there is no memory at {0:#018x}")]
    Unmapped(u64),
    /// More was asked for than a true stack needs.
    #[error("the stack needs more memory to be read than a true one would")]
    TooMuch,
    /// The kernel refuses, or the process is gone.
    #[error("the process cannot be read: {0}")]
    Process(Errno),
}

/// A memory to read from.
pub trait Memory {
    /// Fills `into` with what is at `address`, or with what was there since the last [`Memory::refresh`].
    ///
    /// # Errors
    /// When all of it cannot be had.
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), ReadError>;

    /// Forgets what was read: the next reads see the memory as it is then.
    fn refresh(&mut self);
}

/// Bytes read at a time: one page, so that a block is there as a whole or not at all. A stack of ten frames takes some ten
/// system calls this way, and its frames, which lie close together, are seen at one moment.
const BLOCK: u64 = 4096;

/// Most blocks in the life of a [`ProcessMemory`], 16 MiB. The stack of a thousand frames with fifty variables each, read
/// as often as the reader tries, needs half of it.
const MOST_BLOCKS: usize = 4096;

/// The memory of a process, read while it runs. A worker may map memory that takes for ever to read (a file system of its
/// own): whoever must not be held up reads on a thread of its own; see [`super::trace`].
#[derive(Debug)]
pub struct ProcessMemory {
    pid: Pid,
    blocks: HashMap<u64, Box<[u8; BLOCK as usize]>>,
    reads: usize,
}

impl ProcessMemory {
    /// Of a process that is known to exist.
    pub fn new(pid: i32) -> Self {
        Self {
            pid: Pid::from_raw(pid),
            blocks: HashMap::new(),
            reads: 0,
        }
    }

    /// How many system calls it took so far.
    pub fn reads(&self) -> usize {
        self.reads
    }

    fn block(&mut self, start: u64) -> Result<&[u8; BLOCK as usize], ReadError> {
        if !self.blocks.contains_key(&start) {
            if self.reads >= MOST_BLOCKS {
                return Err(ReadError::TooMuch);
            }
            self.reads += 1;
            let mut block = Box::new([0; BLOCK as usize]);
            let base = usize::try_from(start).map_err(|_| ReadError::Unmapped(start))?;
            let remote = [RemoteIoVec { base, len: block.len() }];
            match process_vm_readv(self.pid, &mut [IoSliceMut::new(&mut block[..])], &remote) {
                Ok(count) if count == block.len() => {}
                Ok(_) | Err(Errno::EFAULT) => return Err(ReadError::Unmapped(start)),
                Err(errno) => return Err(ReadError::Process(errno)),
            }
            self.blocks.insert(start, block);
        }
        Ok(&self.blocks[&start])
    }
}

impl Memory for ProcessMemory {
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), ReadError> {
        let (mut at, mut into) = (address, into);
        while !into.is_empty() {
            let skip = (at % BLOCK) as usize;
            let count = into.len().min(BLOCK as usize - skip);
            let (part, rest) = into.split_at_mut(count);
            part.copy_from_slice(&self.block(at - skip as u64)?[skip..skip + count]);
            at = at.checked_add(count as u64).ok_or(ReadError::Unmapped(address))?;
            into = rest;
        }
        Ok(())
    }

    fn refresh(&mut self) {
        self.blocks.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_memory_is_read_across_blocks() {
        let bytes: Vec<u8> = (0..3 * BLOCK as usize).map(|i| i as u8 ^ (i >> 8) as u8).collect();
        let mut memory = ProcessMemory::new(nix::unistd::getpid().as_raw());
        let mut copy = vec![0; bytes.len() - 7];
        memory.read(bytes.as_ptr() as u64 + 3, &mut copy).unwrap();
        assert!(copy == bytes[3..bytes.len() - 4]);
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let mut memory = ProcessMemory::new(nix::unistd::getpid().as_raw());
        for address in [0, 8, u64::MAX - 3, 1 << 63, 0x7fff_ffff_f000] {
            assert!(
                matches!(memory.read(address, &mut [0; 8]), Err(ReadError::Unmapped(_))),
                "{address:#x}"
            );
        }
    }

    #[test]
    fn reading_has_an_end() {
        let word = 7u64;
        let mut memory = ProcessMemory::new(nix::unistd::getpid().as_raw());
        let mut read = || {
            memory.refresh();
            memory.read(&raw const word as u64, &mut [0; 8])
        };
        // Two blocks if the word straddles; aligned as it is, it does not.
        assert!((0..MOST_BLOCKS).all(|_| read().is_ok()));
        assert_eq!(read(), Err(ReadError::TooMuch));
    }
}
