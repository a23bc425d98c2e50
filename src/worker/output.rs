//! The response on its way out: STDOUT and STDERR records in the order in which they were written.

use std::io::IoSlice;
use std::time::{Duration, Instant};

use php_pool::fastcgi::{HEADER_LEN, Header, MAX_CONTENT, ProtocolStatus, RecordType, append_end_request, padding};

use super::conn::{Conn, Lost};

/// What is gathered before it is sent: one system call for an ordinary page.
const GATHER: usize = 32 << 10;

/// What is sent where it has not come at once: who waits for a page that comes slowly sees it go on, as from php-fpm.
const SLOW_GATHER: usize = 8 << 10;
const AT_ONCE: Duration = Duration::from_millis(50);

/// Zeros to pad with.
const ZEROS: [u8; 8] = [0; 8];

/// Buffer of a response.
#[derive(Debug, Default)]
pub struct Output {
    bytes: Vec<u8>,
    /// The record being filled: where its header stands, and its type.
    open: Option<(usize, RecordType)>,
    /// When the first of its content came.
    since: Option<Instant>,
    id: u16,
}

impl Output {
    /// Begins a response.
    pub fn begin(&mut self, id: u16) {
        self.bytes.clear();
        (self.open, self.since) = (None, None);
        self.id = id;
    }

    /// Writes the length of the record under way into its header, and pads it.
    fn close(&mut self) {
        if let Some((at, kind)) = self.open.take() {
            let length = self.bytes.len() - at - HEADER_LEN;
            let pad = padding(length);
            self.bytes[at..at + HEADER_LEN].copy_from_slice(&Header::bytes(kind, self.id, length as u16, pad as u8));
            self.bytes.extend_from_slice(&ZEROS[..pad]);
        }
    }

    /// Adds content; sends what is gathered when it is enough.
    pub fn write(&mut self, kind: RecordType, mut data: &[u8], conn: &Conn, timeout: Duration) -> Result<(), Lost> {
        if data.len() >= GATHER {
            return self.write_through(kind, data, conn, timeout);
        }
        self.since.get_or_insert_with(Instant::now);
        while !data.is_empty() {
            if self.open.is_none_or(|(_, open)| open != kind) {
                self.close();
                if self.bytes.len() + HEADER_LEN >= GATHER {
                    self.send(conn, timeout)?;
                }
                self.open = Some((self.bytes.len(), kind));
                self.bytes.extend_from_slice(&ZEROS);
            }
            // To the last byte, so that a record that goes on in another one is not padded: when the padding of STDERR ends where
            // nginx's buffer does (a multiple of 4,096), it takes the messages for a header that is too big, and says 502.
            let take = data.len().min(GATHER - self.bytes.len());
            self.bytes.extend_from_slice(&data[..take]);
            data = &data[take..];
            if self.bytes.len() == GATHER {
                self.send(conn, timeout)?;
            }
        }
        if self.bytes.len() >= SLOW_GATHER && self.since.is_some_and(|since| since.elapsed() >= AT_ONCE) {
            self.send(conn, timeout)?;
        }
        Ok(())
    }

    /// Much at once: sent from where it stands, record by record. The client reads one while the next is copied; to hand over a megabyte
    /// at once made the caches of one machine useless, and its TCP slower by a third.
    fn write_through(&mut self, kind: RecordType, data: &[u8], conn: &Conn, timeout: Duration) -> Result<(), Lost> {
        self.close();
        for content in data.chunks(MAX_CONTENT) {
            let pad = padding(content.len());
            let header = Header::bytes(kind, self.id, content.len() as u16, pad as u8);
            let parts = [&self.bytes, &header[..], content, &ZEROS[..pad]];
            conn.send(&mut parts.map(IoSlice::new), timeout)?;
            self.bytes.clear();
        }
        self.since = None;
        Ok(())
    }

    /// Adds a record that is not part of the response's streams.
    pub fn add_record(&mut self, record: impl FnOnce(&mut Vec<u8>)) {
        self.close();
        record(&mut self.bytes);
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Sends what is gathered.
    pub fn send(&mut self, conn: &Conn, timeout: Duration) -> Result<(), Lost> {
        self.close();
        if self.bytes.is_empty() {
            return Ok(());
        }
        let sent = conn.send(&mut [IoSlice::new(&self.bytes)], timeout);
        self.bytes.clear();
        self.since = None;
        sent
    }

    /// Ends the response.
    pub fn end(
        &mut self,
        status: ProtocolStatus,
        conn: &Conn,
        timeout: Duration,
        waits: impl FnOnce(),
    ) -> Result<(), Lost> {
        self.close();
        append_end_request(&mut self.bytes, self.id, status);
        let sent = conn.send_now(&self.bytes)?;
        self.bytes.drain(..sent);
        if !self.bytes.is_empty() {
            waits();
        }
        self.send(conn, timeout)
    }
}
