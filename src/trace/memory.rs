//! Memory of another process, read without trusting it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
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
/// system calls this way, and as many each time it is read again.
const BLOCK: usize = 4096;

/// Most blocks that are kept, 16 MiB: twice the stack of a thousand frames with a hundred variables each.
const MOST_BLOCKS: usize = 4096;

/// Most blocks that are read.
const MOST_READS: usize = 32 * MOST_BLOCKS;

/// The memory of a process, read while it runs. A worker may map memory that takes for ever to read (a file system of its
/// own): whoever must not be held up reads on a thread of its own.
///
/// It is the memory that the process had when this was opened, and no other that it has after an exec: what is checked of the
/// process after that is true of what is read.
#[derive(Debug)]
pub struct ProcessMemory {
    file: File,
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
    /// Of a process.
    ///
    /// # Errors
    /// When it is gone, or may not be read.
    pub fn open(pid: i32) -> io::Result<Self> {
        Ok(Self {
            file: File::open(format!("/proc/{pid}/mem"))?,
            places: HashMap::new(),
            blocks: Vec::new(),
            reads: 0,
        })
    }

    fn block(&mut self, start: u64) -> Result<&[u8; BLOCK], ReadError> {
        let place = match self.places.get(&start) {
            Some(place) => *place,
            None => {
                if self.blocks.len() == MOST_BLOCKS {
                    return Err(ReadError::TooMuch);
                }
                let mut block = Block {
                    start,
                    bytes: Box::new([0; BLOCK]),
                };
                block.fill(&self.file, &mut self.reads)?;
                self.blocks.push(block);
                self.places.insert(start, self.blocks.len() - 1);
                self.blocks.len() - 1
            }
        };
        Ok(&self.blocks[place].bytes)
    }
}

impl Block {
    fn fill(&mut self, memory: &File, reads: &mut usize) -> Result<(), ReadError> {
        *reads += 1;
        if *reads > MOST_READS {
            return Err(ReadError::TooMuch);
        }
        match memory.read_at(&mut self.bytes[..], self.start) {
            Ok(BLOCK) => Ok(()),
            // The process has ended, or executed another program.
            Ok(0) => Err(ReadError::Process(Errno::ESRCH)),
            Ok(_) => Err(ReadError::Unmapped(self.start)),
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(errno @ (Errno::ESRCH | Errno::EACCES | Errno::EPERM)) => Err(ReadError::Process(errno)),
                // EIO where nothing is mapped, EINVAL where nothing can be.
                _ => Err(ReadError::Unmapped(self.start)),
            },
        }
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

    /// Reads all again that was read, one block after another: as near to one moment as it gets.
    fn refresh(&mut self) {
        let (file, reads) = (&self.file, &mut self.reads);
        let gone = self
            .blocks
            .iter_mut()
            .position(|block| block.fill(file, reads).is_err());
        let there = gone.unwrap_or(self.blocks.len());
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
    use super::*;

    #[test]
    fn our_own_memory_is_read_across_blocks() {
        let bytes: Vec<u8> = (0..3 * BLOCK).map(|i| i as u8 ^ (i >> 8) as u8).collect();
        let mut memory = ProcessMemory::open(nix::unistd::getpid().as_raw()).unwrap();
        let mut copy = vec![0; bytes.len() - 7];
        memory.read(bytes.as_ptr() as u64 + 3, &mut copy).unwrap();
        assert!(copy == bytes[3..bytes.len() - 4]);
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let mut memory = ProcessMemory::open(nix::unistd::getpid().as_raw()).unwrap();
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
        let mut memory = ProcessMemory::open(nix::unistd::getpid().as_raw()).unwrap();
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
        let mut memory = ProcessMemory::open(nix::unistd::getpid().as_raw()).unwrap();
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
