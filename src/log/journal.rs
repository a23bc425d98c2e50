//! Entries for systemd's journal, in its native protocol: fields of any bytes, one datagram an entry.
//!
//! Every value is sent with its length where it could hold a line break, so nothing that a request or PHP says can forge a
//! field or an entry.

use std::io;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

use super::{Fields, Level};

/// Where journald listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// The journal's end of this process.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    socket: Option<UnixDatagram>,
}

impl Journal {
    /// The journal, when it is what stderr leads to (`JOURNAL_STREAM`).
    pub(super) fn behind_stderr() -> Option<Self> {
        let stream = std::env::var("JOURNAL_STREAM").ok()?;
        let (device, inode) = stream.split_once(':')?;
        let stderr = nix::sys::stat::fstat(io::stderr().as_fd()).ok()?;
        let same = device.parse() == Ok(stderr.st_dev) && inode.parse() == Ok(stderr.st_ino);
        same.then(|| Self::new(Path::new(SOCKET)))
    }

    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            socket: None,
        }
    }

    /// Sends an entry. A restart of journald changes nothing about its socket.
    pub(super) fn send(&mut self, entry: &[u8]) -> io::Result<()> {
        let socket = match &self.socket {
            Some(socket) => socket,
            None => {
                let socket = UnixDatagram::unbound()?;
                socket.set_nonblocking(true)?;
                self.socket.insert(socket)
            }
        };
        match socket.send_to(entry, &self.path) {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) => send_large(socket, &self.path, entry),
            Err(error) => Err(error),
        }
    }
}

/// An entry that is larger than a datagram goes as a sealed memory file.
fn send_large(socket: &UnixDatagram, path: &Path, entry: &[u8]) -> io::Result<()> {
    use rustix::fs::{SealFlags, fcntl_add_seals};
    let file = memfd_create(c"journal", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = std::fs::File::from(file);
    io::Write::write_all(&mut file, entry)?;
    fcntl_add_seals(
        &file,
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL,
    )?;
    let (fds, address) = ([file.as_raw_fd()], UnixAddr::new(path)?);
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(&[])],
        &rights,
        MsgFlags::empty(),
        Some(&address),
    )?;
    Ok(())
}

/// An entry. `severity` is syslog's.
pub(super) fn entry(severity: u8, fields: &Fields<'_>, text: &[u8]) -> Vec<u8> {
    let mut entry = Vec::with_capacity(text.len() + 256);
    let mut put = |name: &str, value: &[u8]| {
        entry.extend_from_slice(name.as_bytes());
        if value.contains(&b'\n') {
            entry.push(b'\n');
            entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            entry.push(b'=');
        }
        entry.extend_from_slice(value);
        entry.push(b'\n');
    };
    put("MESSAGE", text);
    put("PRIORITY", severity.to_string().as_bytes());
    put("SYSLOG_IDENTIFIER", b"php-pool");
    if let Some(worker) = fields.worker {
        put("PHP_WORKER", worker.to_string().as_bytes());
    }
    let texts = [
        ("PHP_POOL", fields.pool),
        ("PHP_SCRIPT", fields.script),
        ("PHP_URI", fields.uri),
        ("PHP_QUERY", fields.query),
        ("PHP_REQUEST_ID", fields.request_id),
        ("MESSAGE_ID", fields.message_id.map(|id| id.text())),
    ];
    let more = fields.more.iter().map(|(name, value)| (*name, Some(*value)));
    for (name, value) in texts.into_iter().chain(more) {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            put(name, value.as_bytes());
        }
    }
    entry
}

/// Cuts a line of a worker's own (`WARNING: …`) into its severity and text, for the journal shows severities by itself.
pub(super) fn severity_of(text: &[u8], otherwise: u8) -> (u8, &[u8]) {
    let levels = [Level::Debug, Level::Notice, Level::Warning, Level::Error, Level::Alert];
    let of_worker = levels.iter().find_map(|level| {
        let rest = text.strip_prefix(level.name().as_bytes())?.strip_prefix(b": ")?;
        Some((level.severity(), rest))
    });
    let (severity, text) = of_worker.unwrap_or((otherwise, text));
    // php-fpm files every message of PHP's under NOTICE; PHP says what it is.
    let php = text.strip_prefix(b"PHP message: ").unwrap_or(text);
    let kinds: [(&[u8], u8); 9] = [
        (b"PHP Fatal error: ", 3),
        (b"PHP Parse error: ", 3),
        (b"PHP Recoverable fatal error: ", 3),
        (b"PHP Core error: ", 3),
        (b"PHP Compile error: ", 3),
        (b"PHP Warning: ", 4),
        (b"PHP Notice: ", 5),
        (b"PHP Deprecated: ", 5),
        (b"PHP Strict Standards: ", 5),
    ];
    let said = kinds.iter().find(|(prefix, _)| php.starts_with(prefix));
    (said.map_or(severity, |(_, severity)| *severity), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> Fields<'static> {
        Fields {
            pool: Some("www"),
            worker: Some(42),
            uri: Some("/a\nPRIORITY=0"),
            query: Some("c\nMESSAGE=d"),
            more: &[("PHP_BACKTRACE", "b\nMESSAGE=c"), ("PHP_METHOD", "")],
            ..Fields::default()
        }
    }

    #[test]
    fn what_a_request_sends_forges_no_field() {
        let entry = entry(4, &fields(), b"one\ntwo");
        let mut wanted =
            b"MESSAGE\n\x07\0\0\0\0\0\0\0one\ntwo\nPRIORITY=4\nSYSLOG_IDENTIFIER=php-pool\nPHP_WORKER=42\n".to_vec();
        wanted.extend_from_slice(b"PHP_POOL=www\nPHP_URI\n\x0d\0\0\0\0\0\0\0/a\nPRIORITY=0\n");
        wanted.extend_from_slice(b"PHP_QUERY\n\x0b\0\0\0\0\0\0\0c\nMESSAGE=d\n");
        wanted.extend_from_slice(b"PHP_BACKTRACE\n\x0b\0\0\0\0\0\0\0b\nMESSAGE=c\n");
        assert_eq!(entry, wanted);
    }

    #[test]
    fn an_entry_of_any_size_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        let mut journal = Journal::new(&path);
        journal.send(b"MESSAGE=small\n").unwrap();
        let mut received = [0; 64];
        let length = journald.recv(&mut received).unwrap();
        assert_eq!(&received[..length], b"MESSAGE=small\n");
        let large = entry(4, &Fields::default(), &vec![b'x'; 4 << 20]);
        journal.send(&large).unwrap();
        let length = journald.recv(&mut received).unwrap();
        assert_eq!(length, 0, "a large entry comes as a descriptor");
    }

    #[test]
    fn severities_are_phps_own() {
        for (text, severity, rest) in [
            (
                "NOTICE: PHP message: PHP Warning:  x in y",
                4,
                "PHP message: PHP Warning:  x in y",
            ),
            (
                "NOTICE: PHP message: PHP Fatal error:  x",
                3,
                "PHP message: PHP Fatal error:  x",
            ),
            ("NOTICE: PHP message: hello", 5, "PHP message: hello"),
            ("ERROR: it broke", 3, "it broke"),
            ("anything", 6, "anything"),
        ] {
            assert_eq!(severity_of(text.as_bytes(), 6), (severity, rest.as_bytes()), "{text}");
        }
    }
}
