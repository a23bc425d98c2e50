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

    /// From now on reads see the memory as it is now, not as it was.
    fn refresh(&mut self);

    /// From now on reads see the memory as it is when they are made.
    fn forget(&mut self);
}

/// Bytes read at a time: one page, so that a block is there as a whole or not at all. A stack of ten frames takes some ten
/// system calls this way.
const BLOCK: usize = 4096;

/// Most blocks that are kept, 16 MiB: twice the stack of a thousand frames with a hundred variables each.
const MOST_BLOCKS: usize = 4096;

/// Most blocks that are read.
const MOST_READS: usize = 32 * MOST_BLOCKS;

/// Blocks in one system call; the kernel takes 1,024.
const AT_ONCE: usize = 512;

/// The memory of a process, read while it runs. A worker may map memory that takes for ever to read (a file system of its
/// own): whoever must not be held up reads on a thread of its own.
#[derive(Debug)]
pub struct ProcessMemory {
    pid: Pid,
    /// Where each block is in `blocks`.
    places: HashMap<u64, usize>,
    /// In the order in which they were asked for.
    blocks: Vec<Block>,
    reads: usize,
}

#[derive(Debug)]
struct Block {
    start: u64,
    bytes: Box<[u8; BLOCK]>,
}

impl ProcessMemory {
    /// Of a process that is known to exist.
    pub fn new(pid: i32) -> Self {
        Self {
            pid: Pid::from_raw(pid),
            places: HashMap::new(),
            blocks: Vec::new(),
            reads: 0,
        }
    }

    fn block(&mut self, start: u64) -> Result<&[u8; BLOCK], ReadError> {
        let place = match self.places.get(&start) {
            Some(place) => *place,
            None => {
                if self.blocks.len() == MOST_BLOCKS {
                    return Err(ReadError::TooMuch);
                }
                let bytes = Box::new([0; BLOCK]);
                let mut block = [Block { start, bytes }];
                if fill(self.pid, &mut block, &mut self.reads)? == 0 {
                    return Err(ReadError::Unmapped(start));
                }
                self.blocks.extend(block);
                self.places.insert(start, self.blocks.len() - 1);
                self.blocks.len() - 1
            }
        };
        Ok(&self.blocks[place].bytes)
    }
}

/// Reads blocks, all in one system call; how many there are before one that is not there.
fn fill(pid: Pid, blocks: &mut [Block], reads: &mut usize) -> Result<usize, ReadError> {
    *reads += blocks.len();
    if *reads > MOST_READS {
        return Err(ReadError::TooMuch);
    }
    let remote: Vec<_> = blocks
        .iter()
        .map(|block| RemoteIoVec {
            base: block.start as usize,
            len: BLOCK,
        })
        .collect();
    let mut local: Vec<_> = blocks
        .iter_mut()
        .map(|block| IoSliceMut::new(&mut block.bytes[..]))
        .collect();
    match process_vm_readv(pid, &mut local, &remote) {
        Ok(count) => Ok(count / BLOCK),
        Err(Errno::EFAULT) => Ok(0),
        Err(errno) => Err(ReadError::Process(errno)),
    }
}

impl Memory for ProcessMemory {
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), ReadError> {
        let (mut at, mut into) = (address, into);
        while !into.is_empty() {
            let skip = (at % BLOCK as u64) as usize;
            let count = into.len().min(BLOCK - skip);
            let (part, rest) = into.split_at_mut(count);
            part.copy_from_slice(&self.block(at - skip as u64)?[skip..skip + count]);
            at = at.checked_add(count as u64).ok_or(ReadError::Unmapped(address))?;
            into = rest;
        }
        Ok(())
    }

    /// Reads all again that was read, in one system call: as near to one moment as it gets.
    fn refresh(&mut self) {
        let mut there = 0;
        for blocks in self.blocks.chunks_mut(AT_ONCE) {
            let read = fill(self.pid, blocks, &mut self.reads).unwrap_or(0);
            there += read;
            if read < blocks.len() {
                break;
            }
        }
        // What is behind is read when it is asked for, and then fails if it must.
        for block in self.blocks.drain(there..) {
            self.places.remove(&block.start);
        }
    }

    fn forget(&mut self) {
        self.blocks.clear();
        self.places.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn our_own_memory_is_read_across_blocks() {
        let bytes: Vec<u8> = (0..3 * BLOCK).map(|i| i as u8 ^ (i >> 8) as u8).collect();
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
    fn a_refresh_sees_what_has_changed_and_what_has_gone() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 3 * BLOCK], 0).unwrap();
        let map = memmap2::MmapOptions::new().map_raw(&file).unwrap();
        let mut memory = ProcessMemory::new(nix::unistd::getpid().as_raw());
        let byte = |memory: &mut ProcessMemory, address: u64| {
            let mut byte = [0];
            memory.read(address, &mut byte).map(|()| byte[0])
        };
        // The one that goes is not the last that was read.
        let places = [0, 2, 1].map(|page| map.as_ptr() as u64 + page * BLOCK as u64);
        assert_eq!(places.map(|at| byte(&mut memory, at)), [Ok(1); 3]);
        file.write_all_at(&[7], 0).unwrap();
        file.set_len(2 * BLOCK as u64).unwrap();
        assert_eq!(places.map(|at| byte(&mut memory, at)), [Ok(1); 3]);
        memory.refresh();
        let gone = Err(ReadError::Unmapped(places[1]));
        assert_eq!(places.map(|at| byte(&mut memory, at)), [Ok(7), gone, Ok(1)]);
    }

    #[test]
    fn reading_has_an_end() {
        let words = vec![7u64; MOST_BLOCKS * BLOCK / 4];
        let mut memory = ProcessMemory::new(nix::unistd::getpid().as_raw());
        let mut all = vec![0; 8 * words.len()];
        assert_eq!(memory.read(words.as_ptr() as u64, &mut all), Err(ReadError::TooMuch));
        memory.forget();
        let mut read = || {
            memory.refresh();
            memory.forget();
            memory.read(words.as_ptr() as u64, &mut [0; 8])
        };
        let most = 2 * MOST_READS;
        assert_eq!((0..most).find_map(|_| read().err()), Some(ReadError::TooMuch));
    }
}
