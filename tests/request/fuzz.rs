//! Random bytes never hang or kill a server: it serves the next request as if nothing had been.

use crate::harness::{Case, Cases, Run};
use crate::support::fcgi::Record;
use crate::support::server::{Listen, Setup};

static UNIX: Setup = Setup {
    name: "fuzz",
    workers: 2,
    php_pool: "request_header_timeout = 1\nrequest_body_timeout = 1\nlinger_timeout = 1\n",
    ..Setup::BASE
};

static TCP: Setup = Setup {
    name: "fuzz-tcp",
    listen: Listen::Tcp("127.0.0.1"),
    ..UNIX
};

pub fn cases() -> Vec<Case> {
    Cases::of("fuzz", |c| {
        c.same("bytes_without_a_meaning_do_no_harm", &UNIX, |t| {
            rounds(t, 300, |random, _| random.bytes(300))
        });
        c.same("records_without_a_meaning_do_no_harm", &UNIX, |t| {
            rounds(t, 300, |random, _| {
                (0..random.below(8)).flat_map(|_| random.record()).collect()
            });
        });
        c.same("a_request_with_some_bytes_changed_does_no_harm", &UNIX, |t| {
            rounds(t, 300, changed)
        });
        c.same("a_request_with_some_bytes_changed_does_no_harm_over_tcp", &TCP, |t| {
            rounds(t, 150, changed)
        });
        c.same("a_request_with_records_between_its_own_does_no_harm", &UNIX, |t| {
            rounds(t, 300, |random, request| {
                let mut bytes = Vec::new();
                let mut rest = request;
                while rest.len() >= 8 {
                    let length = usize::from(u16::from_be_bytes([rest[4], rest[5]])) + usize::from(rest[6]) + 8;
                    if random.below(3) == 0 {
                        bytes.extend(random.record());
                    }
                    let (record, after) = rest.split_at(length);
                    if random.below(8) > 0 {
                        bytes.extend_from_slice(record);
                    }
                    rest = after;
                }
                bytes
            });
        });
    })
}

/// Flips, cuts out or inserts a few bytes.
fn changed(random: &mut Random, request: &[u8]) -> Vec<u8> {
    let mut bytes = request.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(4) {
            0 => bytes[at] = random.next() as u8,
            1 => bytes.truncate(at.max(1)),
            2 => bytes.insert(at, random.next() as u8),
            _ => bytes[at] ^= 1 << random.below(8),
        }
    }
    bytes
}

/// Sends what `make` makes of a good request, over a new connection each, then checks that a good one is still served.
/// The seed is in the message of a failure.
fn rounds(t: &mut Run, count: u64, make: impl Fn(&mut Random, &[u8]) -> Vec<u8>) {
    let seed = std::env::var("FUZZ_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(20_261_121);
    let good = t
        .page("echo strlen(file_get_contents('php://input'));")
        .post("text/plain", "0123456789");
    let base = good.clone().keep().bytes();
    for round in 0..count {
        let mut random = Random(seed ^ (round + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let bytes = make(&mut random, &base);
        let mut connection = t.connect();
        connection.send(&bytes);
        // A server that waits for more must find that there is none; one that has closed is content.
        connection.half_close();
        let answer = connection.end();
        if round % 25 == 24 {
            let reply = t.send_unrecorded(&good);
            assert_eq!(
                reply.text(),
                "10",
                "after round {round} of seed {seed}, which sent {} and got {:?}",
                bytes.escape_ascii(),
                answer.1
            );
        }
    }
}

/// A small generator, the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = 1 + self.below(most);
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// A record whose header is right and whose meaning is not.
    fn record(&mut self) -> Vec<u8> {
        let kind = (self.next() % 13) as u8;
        let id = (self.next() % 3) as u16;
        let content = if self.below(3) == 0 { Vec::new() } else { self.bytes(40) };
        let padding = (self.next() % 9) as u8;
        Record::new(kind, id, content).padded(padding).bytes()
    }
}
