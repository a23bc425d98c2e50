//! A worker's lines on their way to whoever writes them to a disk: a ring with one writer and one reader.
//!
//! Neither waits for the other. What does not fit is counted and dropped. The reader keeps its place to itself and believes
//! nothing that stands here: a hostile worker spoils its own pool's lines and nobody else's.

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

/// Memory of a ring, in words of 8 bytes. It is taken as it is used: a ring that is read in time begins at its front again
/// and again, and stays within a page or two.
const WORDS: usize = (128 << 10) / 8;

/// Places count words and never turn back; a place's word is its remainder.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Ring {
    /// Worker: behind its last record.
    head: AtomicU64,
    /// Worker: where it began at the front again, having found the ring empty.
    front: AtomicU64,
    /// Worker: lines that found no room.
    lost: AtomicU64,
    /// Reader: behind the last record that it has taken, for the worker to know.
    tail: Tail,
    /// Records: the length of a line in bytes, its time, then the line.
    words: [AtomicU64; WORDS],
}

#[repr(C, align(64))]
#[derive(Debug)]
struct Tail(AtomicU64);

/// How the reader sleeps, as the scoreboard's header tells it to the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Sleep {
    /// Until somebody rings.
    Long = 1,
    /// For a moment: to be woken when a ring is half full.
    Pause = 2,
}

/// How far a reader has got, and what it has heard of lost lines.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    tail: u64,
    lost: u64,
}

/// Lines that have been taken from any number of rings.
#[derive(Debug, Default)]
pub struct Taken {
    bytes: Vec<u8>,
    lines: Vec<(u64, Range<usize>)>,
}

impl Taken {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// What they take, bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Appends those up to a time to `out`, in order of their times, and keeps the others. No line is later than `now`,
    /// whatever a worker says.
    ///
    /// A line is in its ring before the end of its request is told. So of lines that were taken since `until`, each up to
    /// then comes with all that were before it.
    pub fn move_until(&mut self, until: u64, now: u64, out: &mut Vec<u8>) {
        self.lines.sort_by_key(|(time, _)| *time);
        let due = self.lines.partition_point(|(time, _)| *time <= until);
        let later = self.lines.split_off(due);
        for (_, at) in self.lines.drain(..) {
            out.extend_from_slice(&self.bytes[at]);
        }
        let bytes = std::mem::take(&mut self.bytes);
        for (time, at) in later {
            self.add(time.min(now), &bytes[at]);
        }
        if self.bytes.is_empty() {
            // The room is kept for the next lines.
            self.bytes = bytes;
            self.bytes.clear();
        }
    }

    fn add(&mut self, time: u64, line: &[u8]) {
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(line);
        self.lines.push((time, begin..self.bytes.len()));
    }
}

impl Ring {
    /// Worker: adds a line with its time, which is of [`super::monotonic_ns`]; false when there is no room for it.
    pub fn push(&self, line: &[u8], time: u64) -> bool {
        let (head, tail) = (self.head.load(Relaxed), self.tail.0.load(Acquire));
        let need = 2 + line.len().div_ceil(8) as u64;
        // What was left out to begin at the front is no record, whether or not the reader has seen that yet.
        let (begin, used) = match head == tail {
            true => (head.next_multiple_of(WORDS as u64), 0),
            false => (head, head.wrapping_sub(tail.max(self.front.load(Relaxed)))),
        };
        if used + need > WORDS as u64 {
            self.lost.store(self.lost.load(Relaxed).wrapping_add(1), Relaxed);
            return false;
        }
        if begin != head {
            self.front.store(begin, Relaxed);
        }
        let mut at = begin;
        let mut put = |word: u64| {
            self.word(at).store(word, Relaxed);
            at += 1;
        };
        put(line.len() as u64);
        put(time);
        for bytes in line.chunks(8) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            put(u64::from_ne_bytes(whole));
        }
        // With the reader's sign that it sleeps this is a total order: one of the two sees the other.
        self.head.store(begin + need, SeqCst);
        true
    }

    fn word(&self, place: u64) -> &AtomicU64 {
        &self.words[(place % WORDS as u64) as usize]
    }

    /// Worker: whether the reader had better come.
    pub fn is_half_full(&self) -> bool {
        let taken = self.tail.0.load(Acquire).max(self.front.load(Relaxed));
        self.head.load(Relaxed).saturating_sub(taken) > WORDS as u64 / 2
    }

    /// Reader: whether there is something to take.
    pub fn has_more(&self, place: &Place) -> bool {
        self.head.load(SeqCst) != place.tail
    }

    /// Reader: takes all lines, each with its newline; the number of lines that were lost since the last time.
    pub fn take(&self, place: &mut Place, out: &mut Taken) -> u64 {
        let head = self.head.load(Acquire);
        let front = self.front.load(Relaxed);
        if (place.tail..=head).contains(&front) {
            place.tail = front;
        }
        while place.tail != head {
            let length = self.word(place.tail).load(Relaxed);
            let need = 2 + length.div_ceil(8);
            if head.wrapping_sub(place.tail) > WORDS as u64 || length == 0 || need > head - place.tail {
                place.tail = head; // no record: the worker's memory is torn
                break;
            }
            let begin = out.bytes.len();
            for place in place.tail + 2..place.tail + need {
                out.bytes
                    .extend_from_slice(&self.word(place).load(Relaxed).to_ne_bytes());
            }
            out.bytes.truncate(begin + length as usize);
            if out.bytes.last() != Some(&b'\n') {
                out.bytes.push(b'\n');
            }
            let time = self.word(place.tail + 1).load(Relaxed);
            out.lines.push((time, begin..out.bytes.len()));
            place.tail += need;
        }
        self.tail.0.store(head, Release);
        let lost = self.lost.load(Relaxed);
        // A number that shrinks is a lie.
        let more = lost.saturating_sub(std::mem::replace(&mut place.lost, lost));
        more.min(u64::from(u32::MAX))
    }

    /// Reader: where a reader begins that has read nothing yet, of a ring that may have had another reader.
    pub fn place(&self) -> Place {
        Place {
            tail: self.tail.0.load(Relaxed),
            lost: self.lost.load(Relaxed),
        }
    }

    #[cfg(test)]
    pub(super) fn scribble_for_test(&self, head: u64, word: u64) {
        self.head.store(head, Relaxed);
        self.front.store(word, Relaxed);
        self.words.iter().for_each(|each| each.store(word, Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Scoreboard;
    use super::*;

    fn line(number: u64) -> Vec<u8> {
        format!("{number} {}\n", "x".repeat((number % 200) as usize)).into_bytes()
    }

    fn all(taken: &mut Taken) -> Vec<u8> {
        let mut out = Vec::new();
        taken.move_until(u64::MAX, 0, &mut out);
        assert!(taken.is_empty() && taken.size() == 0);
        out
    }

    #[test]
    fn lines_of_many_workers_come_in_order_of_time() {
        let board = Scoreboard::create(3).unwrap();
        for (slot, time) in [(2, 10), (0, 20), (1, 30), (2, 40), (0, 50), (1, u64::MAX)] {
            assert!(board.ring(slot).push(format!("{time}\n").as_bytes(), time));
        }
        let (mut taken, mut out) = (Taken::default(), Vec::new());
        for slot in 0..3 {
            board.ring(slot).take(&mut board.ring(slot).place(), &mut taken);
        }
        taken.move_until(30, 60, &mut out);
        assert_eq!(String::from_utf8(out.clone()).unwrap(), "10\n20\n30\n");
        // A line of the future is of now.
        out.clear();
        taken.move_until(60, 70, &mut out);
        assert_eq!(out, format!("40\n50\n{}\n", u64::MAX).as_bytes());
        assert!(taken.is_empty());
    }

    #[test]
    fn lines_come_out_as_they_went_in() {
        let board = Scoreboard::create(2).unwrap();
        let ring = board.ring(1);
        let mut place = ring.place();
        let (mut wanted, mut taken) = (Vec::new(), Taken::default());
        for number in 0..20_000 {
            assert!(ring.push(&line(number), number));
            wanted.extend(line(number));
            // Now and then, so that the ring is empty at times, and at times goes round.
            if number % 7 == 0 || number % 1000 > 900 {
                assert!(ring.has_more(&place));
                assert_eq!(ring.take(&mut place, &mut taken), 0);
                assert!(!ring.has_more(&place));
            }
        }
        ring.take(&mut place, &mut taken);
        assert!(all(&mut taken) == wanted);
        assert_eq!(board.ring(0).take(&mut board.ring(0).place(), &mut taken), 0);
        assert!(taken.is_empty());
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let board = Scoreboard::create(1).unwrap();
        let ring = board.ring(0);
        let mut place = ring.place();
        let kept = (0..5_000).filter(|_| ring.push(&[b'x'; 112], 0)).count();
        assert_eq!(kept, WORDS / 16);
        let mut taken = Taken::default();
        assert_eq!(ring.take(&mut place, &mut taken), 5_000 - kept as u64);
        assert_eq!(all(&mut taken).len(), kept * 113);
        assert!(ring.push(b"again\n", 0) && !ring.push(&[b'x'; WORDS * 8], 0));
        assert_eq!(ring.take(&mut place, &mut taken), 1);
        assert_eq!(all(&mut taken), b"again\n");
    }

    #[test]
    fn the_reader_is_called_when_half_of_it_is_used() {
        let board = Scoreboard::create(1).unwrap();
        let ring = board.ring(0);
        let (mut place, mut taken) = (ring.place(), Taken::default());
        // From another place each time; the end is left out where a line does not fit there.
        for _ in 0..5 {
            let pushed = (0..).take_while(|_| !ring.is_half_full() && ring.push(&[b'x'; 1000], 0));
            let words = pushed.count() * (2 + 1000 / 8);
            assert!((WORDS / 2..WORDS / 2 + 2 * 127).contains(&words), "{words} of {WORDS}");
            assert_eq!(ring.take(&mut place, &mut taken), 0);
            assert!(!ring.is_half_full());
        }
    }

    #[test]
    fn reader_and_worker_need_not_wait_for_each_other() {
        let board = Scoreboard::create(1).unwrap();
        let ring = board.ring(0);
        let (mut place, mut taken, mut lost) = (ring.place(), Taken::default(), 0);
        let pushed = std::thread::scope(|scope| {
            let worker = scope.spawn(|| (0..100_000).filter(|number| ring.push(&line(*number), 0)).count());
            while !worker.is_finished() {
                lost += ring.take(&mut place, &mut taken);
            }
            worker.join().unwrap()
        });
        lost += ring.take(&mut place, &mut taken);
        let out = all(&mut taken);
        let lines = out.split_inclusive(|byte| *byte == b'\n').map(|line| {
            let text = std::str::from_utf8(line).unwrap();
            text.split(' ').next().unwrap().parse::<u64>().unwrap()
        });
        let numbers: Vec<u64> = lines.collect();
        assert_eq!((numbers.len(), pushed as u64 + lost), (pushed, 100_000));
        assert!(
            numbers.is_sorted()
                && out
                    .split_inclusive(|b| *b == b'\n')
                    .zip(&numbers)
                    .all(|(l, n)| l == line(*n))
        );
    }

    #[test]
    fn lies_are_harmless() {
        let board = Scoreboard::create(1).unwrap();
        let ring = board.ring(0);
        for head in [0, 1, 5, WORDS as u64, WORDS as u64 + 1, u64::MAX / 2, u64::MAX] {
            for word in [0, 1, 8, 1 << 20, u64::MAX, head.wrapping_sub(3)] {
                let (mut place, mut taken) = (ring.place(), Taken::default());
                ring.scribble_for_test(head, word);
                ring.take(&mut place, &mut taken);
                let out = all(&mut taken);
                assert!(out.len() <= WORDS * 9, "{head} {word} {}", out.len());
                assert!(!ring.has_more(&place));
            }
        }
    }
}
