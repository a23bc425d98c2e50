//! Name-value pairs.

use super::ProtocolError;

/// One pair, borrowed from the bytes it stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair<'a> {
    /// Its name; may be empty.
    pub name: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

/// Iterates over the pairs of a complete PARAMS or GET_VALUES stream. Ends after the first error.
pub fn pairs(bytes: &[u8]) -> Pairs<'_> {
    Pairs { rest: bytes }
}

/// See [`pairs`].
#[derive(Clone, Debug)]
pub struct Pairs<'a> {
    rest: &'a [u8],
}

impl<'a> Pairs<'a> {
    /// The bytes behind the last pair.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// A length: one byte, or four with the highest bit set.
    fn length(&mut self) -> Option<usize> {
        let (&first, rest) = self.rest.split_first()?;
        if first < 0x80 {
            self.rest = rest;
            return Some(first as usize);
        }
        let (four, rest) = self.rest.split_first_chunk::<4>()?;
        self.rest = rest;
        Some((u32::from_be_bytes(*four) & 0x7fff_ffff) as usize)
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Pairs<'a> {
    type Item = Result<Pair<'a>, ProtocolError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let pair = (|| {
            let (name, value) = (self.length()?, self.length()?);
            Some(Pair {
                name: self.take(name)?,
                value: self.take(value)?,
            })
        })();
        if pair.is_none() {
            self.rest = &[];
        }
        Some(pair.ok_or(ProtocolError::TruncatedPair))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(pairs: &[(Vec<u8>, Vec<u8>)], long: bool) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, value) in pairs {
            for part in [name, value] {
                if part.len() < 128 && !long {
                    out.push(part.len() as u8);
                } else {
                    out.extend_from_slice(&(part.len() as u32 | 0x8000_0000).to_be_bytes());
                }
            }
            out.extend_from_slice(name);
            out.extend_from_slice(value);
        }
        out
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            list in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..200), proptest::collection::vec(any::<u8>(), 0..200)), 0..20),
            long: bool,
        ) {
            let bytes = encode(&list, long);
            let decoded: Vec<_> = pairs(&bytes).map(|p| p.unwrap()).map(|p| (p.name.to_vec(), p.value.to_vec())).collect();
            prop_assert_eq!(decoded, list);
        }

        #[test]
        fn any_bytes_end(bytes: Vec<u8>) {
            prop_assert!(pairs(&bytes).count() <= bytes.len());
        }
    }

    #[test]
    fn a_length_beyond_the_bytes_is_an_error() {
        assert_eq!(pairs(b"\x02\x05abc").next(), Some(Err(ProtocolError::TruncatedPair)));
        assert_eq!(
            pairs(b"\xff\xff\xff\xff\x00").next(),
            Some(Err(ProtocolError::TruncatedPair))
        );
        assert_eq!(pairs(b"\x80").next(), Some(Err(ProtocolError::TruncatedPair)));
    }
}
