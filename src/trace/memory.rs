//! Memory of another process, read without trusting it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use thiserror::Error;

use crate::sys::Ahead;

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

    /// From now on reads see the memory as it is when they are made, after the process has had the time to go on.
    fn forget(&mut self);
}

/// Bytes read at a time: one page, so that a block is there as a whole or not at all. A stack of thirty frames and the names
/// in it take some twenty system calls this way, and three each time the stack is read again.
const BLOCK: usize = 4096;

/// Most blocks that are kept, 16 MiB: twice the stack of a thousand frames with a hundred variables each.
const MOST_BLOCKS: usize = 4096;

/// Most blocks that are read.
const MOST_READS: usize = 32 * MOST_BLOCKS;

/// So many blocks are read ahead of everything else: those of a hundred frames. A worker has no say in how long that takes.
const AHEAD: usize = 512;

/// For how long a process may go on before it is looked at anew.
const A_MOMENT: Duration = Duration::from_micros(50);

/// The memory of a process, read while it runs. A worker may map memory that takes for ever to read (a file system of its
/// own): whoever must not be held up reads on a thread of its own.
///
/// It is the memory that the process had when this was opened, and no other that it has after an exec: what is checked of the
/// process after that is true of what is read.
///
/// The kernel holds the process's map of its memory while it reads a block, for about a microsecond. Were the process to map
/// memory meanwhile on another core, the two would wait for each other again and again, a block each time; and a reader that
/// is pushed off its core just then holds it up for as long as others take that core. So the reader goes ahead of all others.
#[derive(Debug)]
pub struct ProcessMemory<'a> {
    file: &'a File,
    /// Where each block is in `blocks`.
    places: HashMap<u64, usize>,
    /// In the order in which they were asked for.
    blocks: Vec<Block>,
    /// So many of them are read again by each refresh: those that were there at the first one.
    again: Option<usize>,
    reads: Reads,
}

#[derive(Debug)]
struct Reads {
    count: usize,
    ahead: Option<Ahead>,
}

impl Reads {
    fn another(&mut self) -> Result<(), ReadError> {
        self.count += 1;
        if self.count > AHEAD {
            self.ahead = None;
        }
        match self.count > MOST_READS {
            true => Err(ReadError::TooMuch),
            false => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Block {
    start: u64,
    bytes: Box<[u8; BLOCK]>,
}

/// Opens the memory of a process.
///
/// # Errors
/// When it is gone, or may not be read.
pub fn open(pid: i32) -> io::Result<File> {
    File::open(format!("/proc/{pid}/mem"))
}

impl<'a> ProcessMemory<'a> {
    /// Of an open one, to be read by this thread, which is `ahead` of others if it may.
    pub fn of(file: &'a File, ahead: Option<Ahead>) -> Self {
        Self {
            file,
            places: HashMap::new(),
            blocks: Vec::new(),
            again: None,
            reads: Reads { count: 0, ahead },
        }
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
                block.fill(self.file, &mut self.reads)?;
                self.blocks.push(block);
                self.places.insert(start, self.blocks.len() - 1);
                self.blocks.len() - 1
            }
        };
        Ok(&self.blocks[place].bytes)
    }
}

impl Block {
    fn fill(&mut self, memory: &File, reads: &mut Reads) -> Result<(), ReadError> {
        reads.another()?;
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

impl Memory for ProcessMemory<'_> {
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

    /// Reads again what a stack was walked by, one block after another: as near to one moment as it gets. What else was read,
    /// names above all, is read when it is asked for again.
    fn refresh(&mut self) {
        let (file, reads) = (self.file, &mut self.reads);
        let again = *self.again.get_or_insert(self.blocks.len());
        let again = again.min(self.blocks.len());
        let gone = self.blocks[..again]
            .iter_mut()
            .position(|block| block.fill(file, reads).is_err());
        // What is behind is read when it is asked for, and then fails if it must.
        for block in self.blocks.drain(gone.unwrap_or(again)..) {
            self.places.remove(&block.start);
        }
    }

    fn forget(&mut self) {
        if !self.blocks.is_empty() {
            // We may have its core.
            thread::sleep(A_MOMENT);
        }
        self.blocks.clear();
        self.places.clear();
        self.again = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> File {
        open(nix::unistd::getpid().as_raw()).unwrap()
    }

    #[test]
    fn our_own_memory_is_read_across_blocks() {
        let bytes: Vec<u8> = (0..3 * BLOCK).map(|i| i as u8 ^ (i >> 8) as u8).collect();
        let ours = ours();
        let mut memory = ProcessMemory::of(&ours, None);
        let mut copy = vec![0; bytes.len() - 7];
        memory.read(bytes.as_ptr() as u64 + 3, &mut copy).unwrap();
        assert!(copy == bytes[3..bytes.len() - 4]);
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let ours = ours();
        let mut memory = ProcessMemory::of(&ours, None);
        for address in [0, 8, u64::MAX - 3, 1 << 63, 0x7fff_ffff_f000] {
            assert!(
                matches!(memory.read(address, &mut [0; 8]), Err(ReadError::Unmapped(_))),
                "{address:#x}"
            );
        }
    }

    /// A file of so many blocks of ones, and where it is mapped.
    fn mapped(blocks: usize) -> (File, memmap2::MmapRaw) {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![1; blocks * BLOCK], 0).unwrap();
        let map = memmap2::MmapOptions::new().map_raw(&file).unwrap();
        (file, map)
    }

    fn byte(memory: &mut ProcessMemory<'_>, address: u64) -> Result<u8, ReadError> {
        let mut byte = [0];
        memory.read(address, &mut byte).map(|()| byte[0])
    }

    #[test]
    fn a_refresh_sees_what_has_changed_and_what_has_gone() {
        let (file, map) = mapped(3);
        let ours = ours();
        let mut memory = ProcessMemory::of(&ours, None);
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
    fn a_refresh_reads_only_what_was_there_at_the_first() {
        let (file, map) = mapped(2);
        let ours = ours();
        let mut memory = ProcessMemory::of(&ours, None);
        let places = [0, 1].map(|page| map.as_ptr() as u64 + page * BLOCK as u64);
        assert_eq!(byte(&mut memory, places[0]), Ok(1));
        memory.refresh();
        assert_eq!(byte(&mut memory, places[1]), Ok(1));
        assert_eq!(memory.reads.count, 3);
        memory.refresh();
        assert_eq!(memory.reads.count, 4);
        file.write_all_at(&[7; 2 * BLOCK], 0).unwrap();
        assert_eq!(places.map(|at| byte(&mut memory, at)), [Ok(1), Ok(7)]);
        memory.forget();
        assert_eq!(byte(&mut memory, places[0]), Ok(7));
    }

    #[test]
    fn reading_has_an_end() {
        let words = vec![7u64; MOST_BLOCKS * BLOCK / 4];
        let ours = ours();
        let mut memory = ProcessMemory::of(&ours, None);
        let mut all = vec![0; 8 * words.len()];
        assert_eq!(memory.read(words.as_ptr() as u64, &mut all), Err(ReadError::TooMuch));
        memory.forget();
        let mut read = || {
            memory.refresh();
            memory.read(words.as_ptr() as u64, &mut [0; 8])
        };
        let most = 2 * MOST_READS;
        assert_eq!((0..most).find_map(|_| read().err()), Some(ReadError::TooMuch));
    }
}
