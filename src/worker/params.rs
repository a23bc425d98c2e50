//! The parameters of one request, in an arena of their own: they outlive the body, and PHP wants NUL-terminated strings.

use php_pool::fastcgi::pairs;

/// Fewest buckets of the index.
const BUCKETS: usize = 64;

/// Where a string stands in the arena; a NUL follows it.
#[derive(Clone, Copy, Debug)]
struct Text {
    at: u32,
    length: u32,
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
        for pair in pairs(stream).map_while(Result::ok) {
            self.set(pair.name, pair.value);
        }
    }

    fn store(&mut self, text: &[u8]) -> Text {
        let text = until_nul(text);
        let at = self.arena.len() as u32;
        self.arena.extend_from_slice(text);
        self.arena.push(0);
        Text {
            at,
            length: text.len() as u32,
        }
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

    /// The value of a parameter.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.find(name.as_bytes(), hash(name.as_bytes()))
            .and_then(|index| self.entries[index].value)
            .map(|value| self.text(value))
    }

    /// Sets a parameter; a new one comes last.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        let name = until_nul(name);
        let hash = hash(name);
        let value = Some(self.store(value));
        match self.find(name, hash) {
            Some(index) => self.entries[index].value = value,
            None => {
                let bucket = self.bucket(hash);
                let name = self.store(name);
                let next = self.buckets[bucket].replace(self.entries.len() as u32);
                self.entries.push(Entry {
                    hash,
                    name,
                    value,
                    next,
                });
            }
        }
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
    // Searched word by word, unlike split()'s.
    if text.contains(&0) {
        text.split(|&byte| byte == 0).next().unwrap_or_default()
    } else {
        text
    }
}

/// Eight bytes at a time: parameter names are a word or three long.
fn hash(name: &[u8]) -> u32 {
    const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(MIX).rotate_left(29);
    let (words, rest) = name.as_chunks();
    let whole = words
        .iter()
        .fold(name.len() as u64, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let last = rest.iter().fold(0, |word, &byte| word << 8 | u64::from(byte));
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
}
