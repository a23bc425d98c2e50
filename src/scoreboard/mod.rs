//! What the workers of one generation are doing: a sealed memfd shared by master, zygote and workers.
//!
//! Each slot has one writer, its worker; its text is a seqlock. Nothing in here is a lock that a dying worker could hold.
//! The master reads all of it as hostile input: it makes copies, bounds every length, replaces what is no UTF-8, and
//! never takes an index, a length to allocate or a pid to signal from it.

mod layout;
mod ring;
mod tally;
mod view;

pub use layout::{
    Control, HEADER_SIZE, Header, LAYOUT_VERSION, MAGIC, Request, STOPPING, Slot, Stage, Text, TraceLayout, Wear,
    monotonic_ns, realtime_us,
};
pub use ring::{Place, Ring, Sleep, Taken};
pub use tally::{Histogram, SIZES, TIMES, Tally};
pub use view::{SlotView, TextView};

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use thiserror::Error;

/// Why a scoreboard cannot be used.
#[derive(Debug, Error)]
pub enum ScoreboardError {
    /// A system call failed.
    #[error("cannot {0} the scoreboard: {1}")]
    System(&'static str, #[source] io::Error),
    /// The descriptor is not one of ours, or not of this version.
    #[error("the scoreboard has {0}")]
    Wrong(&'static str),
}

/// A mapped scoreboard.
#[derive(Debug)]
pub struct Scoreboard {
    map: MmapRaw,
    fd: OwnedFd,
    slots: usize,
}

impl Scoreboard {
    /// Makes one with `slots` slots. Only the pages that are used take memory.
    ///
    /// # Errors
    /// When the kernel refuses the memfd, its size or its seals.
    pub fn create(slots: usize) -> Result<Self, ScoreboardError> {
        let system = |what| move |e: nix::Error| ScoreboardError::System(what, e.into());
        let fd = memfd_create(
            c"php-pool-scoreboard",
            MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
        )
        .map_err(system("create"))?;
        nix::unistd::ftruncate(&fd, Self::size(slots) as i64).map_err(system("size"))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(system("seal"))?;
        let board = Self::map(fd, slots)?;
        let header = board.header();
        header.slots.store(slots as u32, layout::ORDER);
        header.version.store(LAYOUT_VERSION, layout::ORDER);
        header.magic.store(MAGIC, layout::ORDER);
        Ok(board)
    }

    /// Maps one that was received.
    ///
    /// # Errors
    /// When it is not sealed, not of our version, or smaller than it says.
    pub fn open(fd: OwnedFd) -> Result<Self, ScoreboardError> {
        let seals = fcntl(&fd, FcntlArg::F_GET_SEALS).map_err(|e| ScoreboardError::System("check", e.into()))?;
        if !SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW) {
            return Err(ScoreboardError::Wrong("no seals against a change of its size"));
        }
        let size = nix::sys::stat::fstat(&fd)
            .map_err(|e| ScoreboardError::System("stat", e.into()))?
            .st_size as usize;
        if size < HEADER_SIZE {
            return Err(ScoreboardError::Wrong("no header"));
        }
        let board = Self::map(fd, (size - HEADER_SIZE) / Self::SIZE_OF_ONE)?;
        let header = board.header();
        if header.magic.load(layout::ORDER) != MAGIC || header.version.load(layout::ORDER) != LAYOUT_VERSION {
            return Err(ScoreboardError::Wrong(
                "another layout: master and worker are not of the same version",
            ));
        }
        Ok(board)
    }

    const SLOT_SIZE: usize = size_of::<Slot>() + size_of::<Control>();

    /// What a slot takes: the rings stand behind all slots, on pages that only an access log touches.
    const SIZE_OF_ONE: usize = Self::SLOT_SIZE + size_of::<Ring>();

    fn size(slots: usize) -> usize {
        HEADER_SIZE + slots * Self::SIZE_OF_ONE
    }

    fn map(fd: OwnedFd, slots: usize) -> Result<Self, ScoreboardError> {
        let map = MmapOptions::new()
            .len(Self::size(slots))
            .map_raw(&fd)
            .map_err(|e| ScoreboardError::System("map", e))?;
        Ok(Self { map, fd, slots })
    }

    /// The descriptor, to be sent to a zygote.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// How many slots there are.
    pub fn slots(&self) -> usize {
        self.slots
    }

    fn at<T>(&self, offset: usize) -> &T {
        assert!(offset + size_of::<T>() <= self.map.len());
        let start = NonNull::new(self.map.as_mut_ptr()).expect("a mapping is not at null");
        // SAFETY: within the mapping by the assertion, which lives as long as `self` and cannot shrink (sealed). All
        // types kept there consist of atomics alone, for which every bit pattern is valid and shared writing is allowed;
        // offsets are multiples of the alignment (64), the mapping of a page.
        unsafe { start.byte_add(offset).cast::<T>().as_ref() }
    }

    /// What concerns the generation as a whole.
    pub fn header(&self) -> &Header {
        self.at(0)
    }

    /// A worker's slot.
    ///
    /// # Panics
    /// When there is no such slot.
    pub fn slot(&self, index: usize) -> &Slot {
        assert!(index < self.slots);
        self.at(HEADER_SIZE + index * Self::SLOT_SIZE)
    }

    /// What the master tells the worker of a slot.
    ///
    /// # Panics
    /// When there is no such slot.
    pub fn control(&self, index: usize) -> &Control {
        assert!(index < self.slots);
        self.at(HEADER_SIZE + index * Self::SLOT_SIZE + size_of::<Slot>())
    }

    /// A slot's lines for the access log. They outlive its worker.
    ///
    /// # Panics
    /// When there is no such slot.
    pub fn ring(&self, index: usize) -> &Ring {
        assert!(index < self.slots);
        self.at(HEADER_SIZE + self.slots * Self::SLOT_SIZE + index * size_of::<Ring>())
    }

    /// A copy of what a slot says, made consistent as far as its writer lets us.
    pub fn view(&self, index: usize) -> SlotView {
        SlotView::read(self.slot(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_seen_as_it_was_written() {
        let board = Scoreboard::create(3).unwrap();
        let other = Scoreboard::open(board.fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(other.slots(), 3);
        let long = "x".repeat(5000);
        board.slot(1).begin(
            Stage::Running,
            &Request {
                method: b"GET",
                uri: b"/a",
                query: b"b=c",
                script: long.as_bytes(),
                user: b"",
                id: b"",
                content_length: 7,
            },
        );
        let view = other.view(1);
        assert_eq!(view.stage, Stage::Running);
        let text = view.text.unwrap();
        assert_eq!(
            (
                text.method.as_str(),
                text.uri.as_str(),
                text.query.as_str(),
                view.content_length
            ),
            ("GET", "/a", "b=c", 7)
        );
        assert_eq!(text.script, long[..1023]);
        assert_eq!(other.view(0).stage, Stage::None);
    }

    #[test]
    fn who_dies_at_any_moment_of_a_request_is_counted_off_once() {
        let board = Scoreboard::create(2).unwrap();
        let (header, one, other) = (board.header(), board.slot(0), board.slot(1));
        let active = || layout::Header::active_in(header.active.load(layout::ORDER));
        other.begin(Stage::Running, &Request::default());
        header.request_begins(other);
        // Before it was counted, while it was, and after it was counted off: its slot is active all the time.
        for steps in 0..3 {
            one.begin(Stage::Running, &Request::default());
            if steps > 0 {
                header.request_begins(one);
            }
            if steps > 1 {
                header.request_ends(one);
            }
            // It dies.
            header.request_ends(one);
            one.reset();
            assert_eq!(active(), 1, "after {steps} steps");
        }
        header.request_ends(other);
        assert_eq!(active(), 0);
    }

    #[test]
    fn the_word_that_counts_requests_never_says_the_same_twice() {
        let board = Scoreboard::create(1).unwrap();
        let (header, slot) = (board.header(), board.slot(0));
        let word = || header.active.load(layout::ORDER);
        header.request_begins(slot);
        let before = word();
        header.request_ends(slot);
        header.request_begins(slot);
        assert_eq!(layout::Header::active_in(before), layout::Header::active_in(word()));
        assert_ne!(before, word());
    }

    #[test]
    fn who_is_about_to_begin_has_not_left() {
        let board = Scoreboard::create(1).unwrap();
        let slot = board.slot(0);
        // It is looked at while it says that it is idle: a stage is two words.
        slot.since.store(1, layout::ORDER);
        assert_eq!(slot.stage(), Stage::None);
        slot.set_stage(Stage::Idle, 1);
        slot.set_stage(Stage::Left, 2);
        assert_eq!((slot.stage(), board.view(0).stage), (Stage::Left, Stage::None));
        slot.reset();
        assert_eq!(slot.stage(), Stage::None);
    }

    #[test]
    fn lies_are_harmless() {
        let board = Scoreboard::create(1).unwrap();
        board.slot(0).scribble_for_test();
        let view = board.view(0);
        assert!(view.text.is_none());
        assert_eq!(view.stage, Stage::None);
    }

    #[test]
    fn a_foreign_descriptor_is_refused() {
        let fd = memfd_create(c"x", MFdFlags::MFD_CLOEXEC).unwrap();
        assert!(Scoreboard::open(fd).is_err());
    }
}
