//! What a line of the error log looks like. Pure: the time is an argument.

use std::io::Write;
use std::ops::Range;
use std::panic::Location;

use super::{Clock, Fields, Level};

/// php-fpm builds its own messages in a buffer of this size: below it they are whole, whatever `log_limit` says.
pub const MESSAGE_BUFFER: usize = 2048;
const ELLIPSIS: &[u8] = b"...";

/// What a line begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// `[20-Nov-2026 20:35:42] NOTICE: `, in a file or on stderr.
    Time,
    /// `[NOTICE] `: syslog has the time and the pid.
    Syslog,
    /// `NOTICE: `: a worker, whose master adds the rest.
    Untimed,
}

/// The rules of a line. With [`Level::Debug`] as threshold, lines carry microseconds and the place in the code.
#[derive(Clone, Debug)]
pub struct LineFormat {
    /// What lines begin with.
    pub stamp: Stamp,
    /// Least severe level that is logged.
    pub threshold: Level,
    /// `log_limit`: longest line, bytes with its newline.
    pub limit: usize,
    /// `log_request_id`: lines name the request they are about, where there is one.
    pub request_ids: bool,
    clock: Clock,
}

impl LineFormat {
    /// A format in local time.
    pub fn new(stamp: Stamp, threshold: Level, limit: usize) -> Self {
        Self::with_clock(stamp, threshold, limit, Clock::new("[%d-%b-%Y %H:%M:%S"))
    }

    pub(super) fn with_clock(stamp: Stamp, threshold: Level, limit: usize, clock: Clock) -> Self {
        Self {
            stamp,
            threshold,
            limit,
            request_ids: false,
            clock,
        }
    }

    /// Appends what stands before the text. `now` is in microseconds since the epoch.
    pub fn prefix(&mut self, level: Level, place: &Location<'_>, now: u64, out: &mut Vec<u8>) {
        let debug = self.threshold == Level::Debug;
        match self.stamp {
            Stamp::Time => {
                out.extend_from_slice(self.clock.at((now / 1_000_000) as i64).as_bytes());
                if debug {
                    put(out, format_args!(".{:06}", now % 1_000_000));
                }
                put(out, format_args!("] {}: ", level.name()));
            }
            Stamp::Syslog => put(out, format_args!("[{}] ", level.name())),
            Stamp::Untimed => put(out, format_args!("{}: ", level.name())),
        }
        if debug {
            if self.stamp == Stamp::Time {
                put(out, format_args!("pid {}, ", std::process::id()));
            }
            module(place.file(), out);
            put(out, format_args!("(), line {}: ", place.line()));
        }
    }

    /// Appends the name of a request, where that is asked for and there is one.
    pub fn request(&self, id: Option<&str>, out: &mut Vec<u8>) {
        if let Some(id) = id.filter(|id| self.request_ids && !id.is_empty()) {
            out.extend_from_slice(b"[request ");
            escape(id, out);
            out.extend_from_slice(b"] ");
        }
    }

    /// Appends a whole line of the program's own. Control characters (they can only come from a request or a file name)
    /// are escaped, so that nothing forges a line. A line that is longer than `log_limit` and than php-fpm's buffer is
    /// cut as php-fpm cuts it.
    pub fn message(
        &mut self,
        level: Level,
        fields: &Fields<'_>,
        place: &Location<'_>,
        now: u64,
        text: &str,
        out: &mut Vec<u8>,
    ) {
        let start = out.len();
        self.prefix(level, place, now, out);
        if let Some(pool) = fields.pool {
            put(out, format_args!("[pool {pool}] "));
        }
        self.request(fields.request_id, out);
        escape(text, out);
        if out.len() - start >= self.limit.max(MESSAGE_BUFFER) {
            let mut end = start + self.limit - 1 - ELLIPSIS.len();
            while out[end] & 0xc0 == 0x80 {
                end -= 1;
            }
            out.truncate(end);
            out.extend_from_slice(ELLIPSIS);
        }
        out.push(b'\n');
    }

    /// Appends a line with a message of PHP's, in a worker: never dropped, below the threshold without its level, and cut
    /// to `log_limit`. Returns where in `out` the text stands that goes to the web server as FCGI_STDERR.
    pub fn php_message(
        &mut self,
        level: Level,
        place: &Location<'_>,
        now: u64,
        text: &[u8],
        out: &mut Vec<u8>,
    ) -> Range<usize> {
        let start = out.len();
        if level >= self.threshold {
            self.prefix(level, place, now, out);
        }
        let message = out.len();
        out.extend_from_slice(b"PHP message: ");
        out.extend_from_slice(text);
        if out.len() - start >= self.limit {
            out.truncate(start + self.limit - 1 - ELLIPSIS.len());
            out.extend_from_slice(ELLIPSIS);
        }
        let end = out.len();
        out.push(b'\n');
        message..end
    }
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a Vec takes what is written to it");
}

/// The name that stands where php-fpm names a C function: the module, `pool` for `src/master/pool.rs`.
fn module(file: &str, out: &mut Vec<u8>) {
    let mut parts = file.rsplit('/');
    let name = match parts.next() {
        Some("mod.rs") => parts.next(),
        last => last,
    };
    let name = name.unwrap_or_default().trim_end_matches(".rs");
    out.extend(name.bytes().map(|b| if b.is_ascii_alphanumeric() { b } else { b'_' }));
}

fn escape(text: &str, out: &mut Vec<u8>) {
    for byte in text.bytes() {
        match byte {
            b'\t' => out.push(byte),
            0..=0x1f | 0x7f => put(out, format_args!("\\x{byte:02X}")),
            _ => out.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_795_206_942_113_503;

    fn format(stamp: Stamp, threshold: Level, limit: usize) -> LineFormat {
        let clock = Clock::in_zone("[%d-%b-%Y %H:%M:%S", TimeZone::UTC);
        LineFormat::with_clock(stamp, threshold, limit, clock)
    }

    fn line(format: &mut LineFormat, level: Level, text: &str) -> String {
        let mut out = Vec::new();
        format.message(level, &Fields::default(), Location::caller(), NOW, text, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_looks_like_php_fpms() {
        let mut time = format(Stamp::Time, Level::Notice, 1024);
        assert_eq!(
            line(&mut time, Level::Notice, "text"),
            "[20-Nov-2026 20:35:42] NOTICE: text\n"
        );
        let mut out = Vec::new();
        let fields = Fields {
            pool: Some("www"),
            ..Fields::default()
        };
        time.message(Level::Alert, &fields, Location::caller(), NOW, "text", &mut out);
        assert_eq!(out, b"[20-Nov-2026 20:35:42] ALERT: [pool www] text\n");
        assert_eq!(
            line(&mut format(Stamp::Syslog, Level::Error, 1024), Level::Error, "x"),
            "[ERROR] x\n"
        );
        assert_eq!(
            line(&mut format(Stamp::Untimed, Level::Error, 1024), Level::Error, "x"),
            "ERROR: x\n"
        );
    }

    #[test]
    fn debug_lines_name_the_place() {
        let place = Location::caller();
        let check = |stamp, wanted: String| {
            let mut out = Vec::new();
            format(stamp, Level::Debug, 1024).message(Level::Debug, &Fields::default(), place, NOW, "x", &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), wanted);
        };
        let (pid, row) = (std::process::id(), place.line());
        check(
            Stamp::Time,
            format!("[20-Nov-2026 20:35:42.113503] DEBUG: pid {pid}, line(), line {row}: x\n"),
        );
        check(Stamp::Syslog, format!("[DEBUG] line(), line {row}: x\n"));
        check(Stamp::Untimed, format!("DEBUG: line(), line {row}: x\n"));
    }

    #[test]
    fn a_place_is_named_by_its_module() {
        let name = |file| {
            let mut out = Vec::new();
            module(file, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(name("src/master/pool.rs"), "pool");
        assert_eq!(name("src/master/mod.rs"), "master");
        assert_eq!(name("src/bin/php-pool.rs"), "php_pool");
    }

    #[test]
    fn long_lines_are_cut_as_php_fpm_cuts_them() {
        let prefix = "[20-Nov-2026 20:35:42] NOTICE: ".len();
        let mut out = format(Stamp::Time, Level::Notice, 512);
        assert_eq!(line(&mut out, Level::Notice, &"x".repeat(2047 - prefix)).len(), 2048);
        let cut = line(&mut out, Level::Notice, &"x".repeat(2048 - prefix));
        assert!(cut.len() == 512 && cut.ends_with("x...\n"), "{cut}");
        let cut = line(&mut out, Level::Notice, &"é".repeat(2048));
        assert!(cut.len() <= 512 && cut.ends_with("é...\n"), "{cut}");
        assert_eq!(
            line(
                &mut format(Stamp::Time, Level::Notice, 8192),
                Level::Notice,
                &"x".repeat(8000)
            )
            .len(),
            8032
        );
    }

    #[test]
    fn a_php_message_is_cut_to_the_limit_and_known_to_the_web_server_as_cut() {
        let mut out = Vec::new();
        let sent = format(Stamp::Untimed, Level::Notice, 2048).php_message(
            Level::Notice,
            Location::caller(),
            NOW,
            &[b't'; 4000],
            &mut out,
        );
        assert_eq!(out.len(), 2048);
        assert_eq!(
            out,
            format!("NOTICE: PHP message: {}...\n", "t".repeat(2023)).as_bytes()
        );
        assert_eq!(&out[sent], format!("PHP message: {}...", "t".repeat(2023)).as_bytes());

        out.clear();
        let mut warning = format(Stamp::Untimed, Level::Warning, 2048);
        let sent = warning.php_message(Level::Notice, Location::caller(), NOW, b"one", &mut out);
        assert_eq!(out, b"PHP message: one\n");
        assert_eq!(&out[sent], b"PHP message: one");
    }

    proptest! {
        #[test]
        fn a_message_is_one_line_within_its_limit(text in "\\PC{0,300}[\\n\\r\\x00a]{0,9}x{0,3000}", limit in 512usize..4096) {
            let line = line(&mut format(Stamp::Time, Level::Notice, limit), Level::Error, &text);
            prop_assert_eq!(line.bytes().filter(|b| b.is_ascii_control() && *b != b'\t').count(), 1);
            prop_assert!(line.ends_with('\n'));
            prop_assert!(line.len() <= limit.max(MESSAGE_BUFFER));
        }
    }
}
