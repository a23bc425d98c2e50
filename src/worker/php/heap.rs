//! The large pieces of memory of which PHP's allocator makes small ones: 2 MB each, and as a whole whatever is larger.
//!
//! PHP takes them from the kernel, and gives back at once what it has no use for: a script with one large array costs a page fault
//! for every 4 KB of it, request by request. Here they come from a range of addresses of this process's own. What is free in it
//! stays while requests follow one another ([`KEPT`] at the most) and goes back when the worker has nothing to do
//! ([`release`]).
//!
//! What PHP counts (memory_limit, memory_get_usage()) is what it asked for, as ever.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use super::ffi;

/// What PHP's allocator calls a chunk, bytes; also the alignment of everything that it takes.
const PIECE: usize = 2 << 20;
/// Pieces in our range: a bit each.
const PIECES: usize = u64::BITS as usize;
/// Those at the beginning of the range stay when they are free.
const KEPT: usize = 16;
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const FRESH: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
/// The part of a piece that PHP takes for zeroed: its bookkeeping.
const HEAD: usize = 4096;

/// Where our range begins; 0: there is none.
static BASE: AtomicUsize = AtomicUsize::new(0);
/// Pieces that PHP has.
static USED: AtomicU64 = AtomicU64::new(0);
/// Pieces that may hold memory.
static TOUCHED: AtomicU64 = AtomicU64::new(0);
/// Pieces at the beginning of the range that may be touched.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// `count` bits from `first` on, which fit in.
fn run(first: usize, count: usize) -> u64 {
    (u64::MAX >> (PIECES - count)) << first
}

/// The first of `count` pieces in a row that nobody has; the lowest, so that memory that is there is used again.
fn find(used: u64, count: usize) -> Option<usize> {
    (0..=PIECES.checked_sub(count)?).find(|&first| used & run(first, count) == 0)
}

/// The runs of ones: first and count of each.
fn runs(mut bits: u64) -> impl Iterator<Item = (usize, usize)> {
    std::iter::from_fn(move || {
        let first = bits.trailing_zeros() as usize;
        if first == PIECES {
            return None;
        }
        let count = (bits >> first).trailing_ones() as usize;
        bits &= !run(first, count);
        Some((first, count))
    })
}

/// The pieces of ours at an address; None: they are not ours.
fn ours(at: *mut c_void, size: usize) -> Option<(usize, usize)> {
    let base = BASE.load(Relaxed);
    let offset = (at as usize).checked_sub(base).filter(|_| base != 0)?;
    (offset < PIECES * PIECE).then(|| (offset / PIECE, size.div_ceil(PIECE)))
}

fn address(piece: usize) -> *mut c_void {
    (BASE.load(Relaxed) + piece * PIECE) as *mut c_void
}

/// Makes pieces usable, and PHP's. False: the kernel refuses.
fn take_at(first: usize, count: usize) -> bool {
    let (open, end) = (OPEN.load(Relaxed), first + count);
    if open < end {
        // SAFETY: a part of our range that nobody uses yet.
        let opened = unsafe { libc::mprotect(address(open), (end - open) * PIECE, READ_WRITE) };
        if opened != 0 {
            return false;
        }
        OPEN.store(end, Relaxed);
    }
    USED.fetch_or(run(first, count), Relaxed);
    TOUCHED.fetch_or(run(first, count), Relaxed);
    true
}

/// The kernel takes the memory of pieces that nobody has; the addresses stay ours.
fn empty(pieces: u64) {
    for (first, count) in runs(pieces & TOUCHED.load(Relaxed)) {
        // SAFETY: a part of our range that is open (it was touched), and not PHP's.
        unsafe { libc::madvise(address(first), count * PIECE, libc::MADV_DONTNEED) };
        TOUCHED.fetch_and(!run(first, count), Relaxed);
    }
}

fn give_back_at(first: usize, count: usize) {
    USED.fetch_and(!run(first, count), Relaxed);
    empty(run(first, count) & !run(0, KEPT));
}

/// Addresses that are aligned to a piece, with these rights; null: the kernel refuses.
fn map(size: usize, rights: i32) -> *mut c_void {
    let whole = size + PIECE - 4096;
    // SAFETY: a new mapping where the kernel likes; what of it is not needed goes back, and nobody knows it yet.
    unsafe {
        let at = libc::mmap(null_mut(), whole, rights, FRESH, -1, 0);
        if at == libc::MAP_FAILED {
            return null_mut();
        }
        let before = (at as usize).next_multiple_of(PIECE) - at as usize;
        let aligned = at.byte_add(before);
        if before > 0 {
            libc::munmap(at, before);
        }
        if whole - before > size {
            libc::munmap(aligned.byte_add(size), whole - before - size);
        }
        aligned
    }
}

extern "C" fn take(size: usize) -> *mut c_void {
    let count = size.div_ceil(PIECE);
    let Some(first) = find(USED.load(Relaxed), count) else {
        return map(size, READ_WRITE);
    };
    let again = TOUCHED.load(Relaxed) & 1 << first != 0;
    if !take_at(first, count) {
        return null_mut();
    }
    let at = address(first);
    if again {
        // SAFETY: the beginning of an open piece that is nobody's yet.
        unsafe { at.write_bytes(0, HEAD) };
    }
    at
}

extern "C" fn give_back(at: *mut c_void, size: usize) {
    match ours(at, size) {
        Some((first, count)) => give_back_at(first, count),
        // SAFETY: a mapping that PHP has no use for, its own or of `map`.
        None => unsafe {
            libc::munmap(at, size);
        },
    }
}

extern "C" fn truncate(at: *mut c_void, old: usize, new: usize) -> bool {
    let Some((first, count)) = ours(at, old) else {
        // SAFETY: the end of such a mapping.
        return unsafe { libc::munmap(at.byte_add(new), old - new) } == 0;
    };
    let left = new.div_ceil(PIECE);
    if left < count {
        give_back_at(first + left, count - left);
    }
    true
}

extern "C" fn extend(at: *mut c_void, old: usize, new: usize) -> bool {
    let Some((first, count)) = ours(at, old) else {
        // SAFETY: a new mapping behind one of PHP's, if nobody has that place.
        return unsafe {
            let end = at.byte_add(old);
            libc::mmap(end, new - old, READ_WRITE, FRESH | libc::MAP_FIXED_NOREPLACE, -1, 0) == end
        };
    };
    let more = new.div_ceil(PIECE) - count;
    let end = first + count;
    if more == 0 {
        return true;
    }
    end + more <= PIECES && USED.load(Relaxed) & run(end, more) == 0 && take_at(end, more)
}

/// From now on PHP's allocator takes from here. Where it is another one (USE_ZEND_ALLOC=0), or there is no room, all stays as PHP has it.
pub fn install() {
    static MEMORY: ffi::Memory = ffi::Memory {
        take,
        give_back,
        truncate,
        extend,
    };
    // A range that nobody can touch costs nothing.
    let base = map(PIECES * PIECE, libc::PROT_NONE);
    // SAFETY: PHP is started and runs no request; the functions are static.
    if !base.is_null() && unsafe { ffi::shim_use_memory(&MEMORY) } {
        BASE.store(base as usize, Relaxed);
    }
}

/// Bytes that are free and may hold memory.
pub fn spare() -> usize {
    (TOUCHED.load(Relaxed) & !USED.load(Relaxed)).count_ones() as usize * PIECE
}

/// Gives back to the kernel what is free.
pub fn release() {
    empty(!USED.load(Relaxed));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_found_is_free_and_the_lowest(used: u64, count in 1..=PIECES) {
            let free = |first| (first..first + count).all(|bit| used & (1u64 << bit) == 0);
            let lowest = (0..=PIECES - count).find(|&first| free(first));
            prop_assert_eq!(find(used, count), lowest);
        }

        #[test]
        fn runs_are_whole_and_all_there_is(bits: u64) {
            let mut seen = 0;
            for (first, count) in runs(bits) {
                prop_assert_eq!(seen & run(first, count), 0);
                seen |= run(first, count);
                prop_assert!(first == 0 || bits & (1u64 << (first - 1)) == 0);
                prop_assert!(first + count == PIECES || bits & (1u64 << (first + count)) == 0);
            }
            prop_assert_eq!(seen, bits);
        }
    }

    #[test]
    fn what_is_larger_than_the_range_is_not_found() {
        assert_eq!(find(0, PIECES + 1), None);
        assert_eq!(find(0, PIECES), Some(0));
    }
}
