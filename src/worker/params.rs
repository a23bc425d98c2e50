//! The parameters of one request, in an arena of their own: they outlive the body, and PHP wants NUL-terminated strings.

use php_pool::fastcgi::{Pair, pairs};

/// Fewest buckets of the index.
const BUCKETS: usize = 64;

/// Where a string stands in the arena; a NUL follows it.
#[derive(Clone, Copy, Debug)]
struct Text {
    at: u32,
    length: u32,
}

impl Text {
    fn new(at: usize, text: &[u8]) -> Self {
        Self {
            at: at as u32,
            length: text.len() as u32,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: u32,
    name: Text,
    /// None: it was removed. Its place stays, as its order does.
    value: Option<Text>,
    /// The next entry of the same bucket.
    next: Option<u32>,
}

/// Parameters in the order of their arrival; of two with one name the last counts, at the place of the first.
#[derive(Debug, Default)]
pub struct Params {
    arena: Vec<u8>,
    entries: Vec<Entry>,
    buckets: Vec<Option<u32>>,
}

impl Params {
    /// Reads a complete, well-formed PARAMS stream. Strings end at their first NUL, as they do in php-fpm: what is checked
    /// and what PHP's C code sees must be the same. (Memory is kept for the next request, up to a bound.)
    pub fn read(&mut self, stream: &[u8], role: &str) {
        if self.arena.capacity() > 256 << 10 {
            *self = Self::default();
        }
        self.arena.clear();
        self.entries.clear();
        // A name costs two bytes of stream at the least.
        self.buckets.clear();
        self.buckets
            .resize((stream.len() / 32).next_power_of_two().clamp(BUCKETS, 1 << 16), None);
        self.set(b"FCGI_ROLE", role.as_bytes());
        // One copy of everything, in which each string gets the NUL that C wants: a value where the next pair begins, a name by
        // moving one byte down, onto the lengths before it, which are two bytes at the least.
        let start = self.arena.len();
        self.arena.extend_from_slice(stream);
        self.arena.push(0);
        let (mut pairs, mut gap, mut strings) = (pairs(stream), start, 0);
        while let Some(Ok(Pair { name, value })) = pairs.next() {
            let end = start + stream.len() - pairs.rest().len();
            let value_at = end - value.len();
            let name_at = value_at - name.len() - 1;
            self.arena.copy_within(name_at + 1..value_at, name_at);
            self.arena[value_at - 1] = 0;
            self.arena[end] = 0;
            if gap < name_at {
                self.arena[gap..name_at].fill(b'-'); // what is left of long lengths
            }
            (gap, strings) = (end + 1, strings + 2);
            self.enter(name, Text::new(name_at, name), Text::new(value_at, value));
        }
        // One look at all of it for further NULs is much less than one at each string.
        if memchr::memchr_iter(0, &self.arena[start..]).count() > strings {
            self.read_cutting(stream, role);
        }
    }

    /// The same, where a string holds a NUL of its own.
    #[cold]
    fn read_cutting(&mut self, stream: &[u8], role: &str) {
        self.arena.clear();
        self.entries.clear();
        self.buckets.fill(None);
        self.set(b"FCGI_ROLE", role.as_bytes());
        for pair in pairs(stream).map_while(Result::ok) {
            self.set(pair.name, pair.value);
        }
    }

    fn store(&mut self, text: &[u8]) -> Text {
        let stored = Text::new(self.arena.len(), text);
        self.arena.extend_from_slice(text);
        self.arena.push(0);
        stored
    }

    fn text(&self, text: Text) -> &[u8] {
        &self.arena[text.at as usize..(text.at + text.length) as usize]
    }

    fn bucket(&self, hash: u32) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }

    fn find(&self, name: &[u8], hash: u32) -> Option<usize> {
        let mut at = *self.buckets.get(self.bucket(hash))?;
        while let Some(index) = at {
            let entry = &self.entries[index as usize];
            if entry.hash == hash && self.text(entry.name) == name {
                return Some(index as usize);
            }
            at = entry.next;
        }
        None
    }

    /// The value of a parameter. (Inlined, the hash of a literal is known to the compiler.)
    #[inline]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.find(name.as_bytes(), hash(name.as_bytes()))
            .and_then(|index| self.entries[index].value)
            .map(|value| self.text(value))
    }

    /// Sets a parameter; a new one comes last.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        let (name, value) = (until_nul(name), until_nul(value));
        let (stored, value) = (self.store(name), self.store(value));
        self.enter(name, stored, value);
    }

    fn enter(&mut self, name: &[u8], stored: Text, value: Text) {
        let hash = hash(name);
        if let Some(index) = self.find(name, hash) {
            self.entries[index].value = Some(value);
            return;
        }
        let bucket = self.bucket(hash);
        let next = self.buckets[bucket].replace(self.entries.len() as u32);
        self.entries.push(Entry {
            hash,
            name: stored,
            value: Some(value),
            next,
        });
    }

    /// Removes a parameter.
    pub fn remove(&mut self, name: &str) {
        if let Some(index) = self.find(name.as_bytes(), hash(name.as_bytes())) {
            self.entries[index].value = None;
        }
    }

    /// All of them, in order, without the NULs that follow each string in memory.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries
            .iter()
            .filter_map(|entry| Some((self.text(entry.name), self.text(entry.value?))))
    }
}

fn until_nul(text: &[u8]) -> &[u8] {
    memchr::memchr(0, text).map_or(text, |end| &text[..end])
}

/// Eight bytes at a time: parameter names are a word or three long.
#[inline]
fn hash(name: &[u8]) -> u32 {
    const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(MIX).rotate_left(29);
    let (words, rest) = name.as_chunks();
    let whole = words
        .iter()
        .fold(name.len() as u64, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let last = match name.last_chunk() {
        Some(last) => u64::from_le_bytes(*last),
        None => rest.iter().fold(0, |word, &byte| word << 8 | u64::from(byte)),
    };
    (mix(whole, last) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, value) in pairs {
            out.extend([name.len() as u8, value.len() as u8]);
            out.extend(name.bytes().chain(value.bytes()));
        }
        out
    }

    #[test]
    fn the_last_value_counts_at_the_first_place() {
        let mut params = Params::default();
        params.read(
            &stream(&[("A", "1"), ("B", "2"), ("A", "3"), ("", "empty"), ("N", "a\0b")]),
            "RESPONDER",
        );
        params.remove("B");
        params.set(b"C", b"4");
        let all: Vec<_> = params
            .iter()
            .map(|(n, v)| (String::from_utf8_lossy(n), String::from_utf8_lossy(v)))
            .collect();
        let expected = [
            ("FCGI_ROLE", "RESPONDER"),
            ("A", "3"),
            ("", "empty"),
            ("N", "a"),
            ("C", "4"),
        ];
        assert_eq!(all, expected.map(|(n, v)| (n.into(), v.into())));
        assert_eq!(params.get("B"), None);
    }

    #[test]
    fn many_names_are_found() {
        let names: Vec<String> = (0..5000).map(|n| format!("HTTP_X_{n}_SAME_TAIL")).collect();
        let list: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "v")).collect();
        let mut params = Params::default();
        params.read(&stream(&list), "RESPONDER");
        assert!(names.iter().all(|name| params.get(name) == Some(b"v")));
    }

    /// Any pairs: both ways of reading them come to the same, and each string is followed by its NUL.
    #[test]
    fn the_quick_way_is_the_plain_way() {
        let mut seed = 1u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        for round in 0..3000 {
            let mut stream = Vec::new();
            for _ in 0..random(6) {
                let texts: [Vec<u8>; 2] =
                    [random(5), [random(4), random(300)][(random(8) == 0) as usize]].map(|length| {
                        let letters: &[u8] = if round % 2 == 0 { b"abc" } else { b"ab\0" };
                        (0..length).map(|_| letters[random(3) as usize]).collect()
                    });
                for text in &texts {
                    match text.len() {
                        short @ ..128 if random(4) > 0 => stream.push(short as u8),
                        long => stream.extend((long as u32 | 1 << 31).to_be_bytes()),
                    }
                }
                stream.extend(texts.concat());
            }
            let (mut quick, mut plain) = (Params::default(), Params::default());
            quick.read(&stream, "RESPONDER");
            plain.read(b"", "RESPONDER");
            plain.read_cutting(&stream, "RESPONDER");
            assert!(quick.iter().eq(plain.iter()), "{stream:?}");
            let ends = |text: Text| quick.arena[(text.at + text.length) as usize] == 0;
            let mut texts = quick
                .entries
                .iter()
                .flat_map(|entry| [Some(entry.name), entry.value])
                .flatten();
            assert!(texts.all(ends), "{stream:?}");
        }
    }
}
