//! Records of a FastCGI client.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use php_pool::fastcgi::{Event, HEADER_LEN, Header, Input, ProtocolError, append_get_values_result, pairs};

use super::Cursor;
use conn::{Conn, Lost};

#[path = "../../../src/worker/conn.rs"]
#[allow(dead_code, unused_imports)] // the worker uses all of it, and its tests are its own
mod conn;

/// Beginnings of records, and names that are known.
pub const WORDS: &[&str] = &[
    "\x01\x01\x00\x01\x00\x08\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00",
    "\x01\x01\x00\x01\x00\x08\x00\x00\x00\x01\x01\x00\x00\x00\x00\x00",
    "\x01\x02\x00\x01\x00\x00\x00\x00",
    "\x01\x04\x00\x01\x00\x00\x00\x00",
    "\x01\x04\x00\x01\x00\x05\x03\x00\x01\x02Abc\0\0\0",
    "\x01\x05\x00\x01\x00\x00\x00\x00",
    "\x01\x05\x00\x01\x00\x04\x04\x00body\0\0\0\0",
    "\x01\x09\x00\x00\x00\x11\x00\x00\x0f\x00FCGI_MPXS_CONNS",
    "\x0e\x00FCGI_MAX_CONNS",
];

/// What came of a stream of records: everything but the body's cuts.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    events: Vec<Event>,
    body: Vec<u8>,
    params: Vec<u8>,
}

/// However a stream is cut into reads, the same is heard; and never more than was said.
pub fn input(data: &[u8]) {
    let Some((&step, bytes)) = data.split_first() else {
        return;
    };
    let whole = hear(bytes, bytes.len());
    assert_eq!(whole, hear(bytes, step.max(1) as usize), "the cuts make a difference");
    if let Ok(heard) = whole {
        assert!(heard.body.len() + heard.params.len() + HEADER_LEN * heard.events.len() <= bytes.len() * 2);
    }
}

fn hear(bytes: &[u8], step: usize) -> Result<Heard, ProtocolError> {
    let (mut input, mut heard, mut buffer) = (Input::default(), Heard::default(), Vec::new());
    for piece in bytes.chunks(step.max(1)) {
        buffer.extend_from_slice(piece);
        loop {
            let (used, event) = input.next(&buffer)?;
            if let Event::Stdin(range) = &event {
                assert!(range.end <= used && !range.is_empty());
                heard.body.extend_from_slice(&buffer[range.clone()]);
            }
            buffer.drain(..used);
            match event {
                Event::NeedMore => break,
                Event::Stdin(_) => continue,
                Event::Request(_) => {
                    assert!(pairs(input.params()).all(|pair| pair.is_ok()));
                    heard.params.extend_from_slice(input.params());
                }
                Event::StdinEnd => input.finish(),
                _ => {}
            }
            heard.events.push(event);
        }
        assert!(buffer.len() < HEADER_LEN, "bytes were left unread");
    }
    Ok(heard)
}

/// The worker's connection, over a real socket, hears what the protocol's state machine hears, and ends when its peer does.
pub fn connection(data: &[u8]) {
    let mut cursor = Cursor(data);
    let want = 1 + cursor.byte() as usize * 64;
    let bytes = &cursor.0[..cursor.0.len().min(100_000)];
    let (ours, mut theirs) = UnixStream::pair().expect("there are descriptors");
    theirs.write_all(bytes).expect("it fits into the socket's buffer");
    drop(theirs);

    let mut conn = Conn::new(ours.into(), Default::default());
    let mut heard = Heard::default();
    let end = loop {
        match conn.next() {
            Ok(Event::NeedMore) => match conn.fill() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the peer is gone, and the connection waits"),
                Err(lost) => break lost,
            },
            Ok(Event::Stdin(_)) => panic!("a body came before its request was read"),
            Ok(event @ Event::Request(_)) => {
                heard.params.extend_from_slice(conn.input.params());
                heard.events.push(event);
                if let Err(lost) = read_body(&mut conn, want, &mut heard) {
                    break lost;
                }
            }
            Ok(event) => heard.events.push(event),
            Err(lost) => break lost,
        }
    };
    match (hear(bytes, bytes.len()), end) {
        (Err(error), Lost::Protocol(other)) => assert_eq!(error, other),
        // ABORT while a worker reads a body ends the connection there and then.
        (Ok(mut expected), Lost::Aborted) => {
            expected.events.truncate(heard.events.len() + 1);
            let last = expected.events.pop();
            assert!(
                matches!(last, Some(Event::Abort { .. })),
                "{heard:?} ended before {last:?}"
            );
            assert_eq!(heard.events, expected.events);
        }
        (Ok(expected), Lost::Closed) => assert_eq!(heard, expected),
        (Err(_), Lost::Aborted) => {} // before the error
        (expected, end) => panic!("{expected:?}, but the connection ended with {end:?}"),
    }
}

fn read_body(conn: &mut Conn, want: usize, heard: &mut Heard) -> Result<(), Lost> {
    let mut buffer = vec![0; want];
    loop {
        let events = &mut heard.events;
        let count = conn.read_stdin(&mut buffer, Duration::from_secs(10), |event| events.push(event))?;
        heard.body.extend_from_slice(&buffer[..count]);
        if count == 0 {
            heard.events.push(Event::StdinEnd);
            conn.input.finish();
            return Ok(());
        }
    }
}

/// The answer to GET_VALUES is one record, well formed, whatever was asked for.
pub fn get_values(data: &[u8]) {
    let Some((&capacity, asked)) = data.split_first() else {
        return;
    };
    let mut out = Vec::new();
    append_get_values_result(&mut out, asked, u32::from(capacity));
    let header = Header::parse(&out).expect("there is a header");
    let length = header.content as usize;
    assert_eq!(out.len(), HEADER_LEN + length + header.padding as usize);
    assert!(pairs(&out[HEADER_LEN..HEADER_LEN + length]).all(|pair| pair.is_ok()));
    assert!(pairs(asked).count() <= asked.len());
}
