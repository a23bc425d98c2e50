//! Unit files: names, escaping, and the drop-ins that a pool file becomes.

#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::path::Path;

use thiserror::Error;

use crate::config::{Listen, Pool, address};

/// Longest name of a pool, bytes: unit names end at 255, and every byte may take four in the slice's.
const MAX_NAME: usize = 50;

/// Why a pool cannot be a unit.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UnitError {
    /// The name of the file.
    #[error(
        "'{0}' cannot name a pool (allowed: up to {MAX_NAME} letters, digits, '_', '-' and '.', beginning with a letter, \
         a digit or '_')"
    )]
    Name(String),
    /// The section.
    #[error(
        "the file holds the pool [{found}] and must hold [{wanted}] alone, so that the unit and the pool are called alike"
    )]
    Section {
        /// The section there is.
        found: String,
        /// The file's own name.
        wanted: String,
    },
    /// Not one.
    #[error("the file holds no pool; [{0}] must begin it")]
    NoPool(String),
    /// An address that only a resolver knows.
    #[error(
        "{directive} = {text}: systemd holds the socket before any name can be resolved; write the address instead of '{host}'"
    )]
    HostName {
        /// `listen` or `pm.status_listen`.
        directive: &'static str,
        /// The address as it was written.
        text: String,
        /// The host in it.
        host: String,
    },
    /// A text that would be more than one setting.
    #[error("{0}: no unit can hold this: it has a control character in it, or a backslash at its end")]
    Unwritable(String),
    /// `${NAME}` in a line of the socket.
    #[error(
        "{0}: ${{…}} cannot stand in a line about the socket, because systemd holds it before there is an environment"
    )]
    Variable(String),
}

/// Whether the name can be a pool's under systemd.
///
/// # Errors
/// When it cannot.
pub fn check_name(name: &str) -> Result<(), UnitError> {
    let first = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let all = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    if first && all && name.len() <= MAX_NAME {
        Ok(())
    } else {
        Err(UnitError::Name(name.to_owned()))
    }
}

/// systemd's escaping of a part of a unit's name, as `systemd-escape` does it.
pub fn escape(text: &[u8]) -> String {
    let mut escaped = String::new();
    for (index, byte) in text.iter().enumerate() {
        match byte {
            b'/' => escaped.push('-'),
            b'.' if index == 0 => escaped.push_str("\\x2e"),
            b':' | b'_' | b'.' => escaped.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => escaped.push(char::from(*byte)),
            byte => write!(escaped, "\\x{byte:02x}").expect("a String takes everything"),
        }
    }
    escaped
}

/// The pool's slice. A dash in a slice's name is a level of the tree: unescaped, the pool `my-app` would live under the
/// limits of a pool `my`.
pub fn slice(name: &str) -> String {
    format!("php-pool-{}.slice", escape(name.as_bytes()))
}

/// A text as the value of a setting: `%` would begin a specifier, and a line break another setting.
fn value(text: &str) -> Result<String, UnitError> {
    match text.contains(char::is_control) || text.ends_with('\\') {
        true => Err(UnitError::Unwritable(text.escape_debug().to_string())),
        false => Ok(text.replace('%', "%%")),
    }
}

/// A text as a quoted word of a command line.
pub fn word(text: &str) -> String {
    let mut word = String::from("\"");
    for char in text.chars() {
        match char {
            '%' => word.push_str("%%"),
            '$' => word.push_str("$$"),
            '\\' | '"' => word.extend(['\\', char]),
            char if char.is_ascii_control() => {
                write!(word, "\\x{:02x}", u32::from(char)).expect("a String takes everything")
            }
            char => word.push(char),
        }
    }
    word.push('"');
    word
}

/// The head of every file.
fn head(source: &Path) -> String {
    let source = source.display().to_string();
    // One that nothing can name is in the journal all the same, by the service that fails for it.
    let path = value(&source).map_or_else(|_| String::new(), |source| format!("SourcePath={source}\n"));
    format!(
        "# Made by php-pool-generator from {}.\n[Unit]\n{path}",
        source.escape_debug()
    )
}

/// A drop-in of a socket unit. `directive` is where the address stands.
///
/// # Errors
/// When systemd cannot hold the address.
pub fn socket(
    pool: &Pool,
    source: &Path,
    directive: &'static str,
    address: &Listen,
    text: &str,
) -> Result<String, UnitError> {
    let address = &address::held(address);
    let stream = match address {
        Listen::Unix(path) => path.display().to_string(),
        Listen::Port(port) => port.to_string(),
        Listen::Tcp { host, port } => match host.split_once('%') {
            // Of one interface.
            Some((host, interface)) => format!("[{host}]:{port}%{interface}"),
            None if host.contains(':') => format!("[{host}]:{port}"),
            None if host.parse::<std::net::Ipv4Addr>().is_ok() => format!("{host}:{port}"),
            None => {
                let (text, host) = (text.to_owned(), host.clone());
                return Err(UnitError::HostName { directive, text, host });
            }
        },
    };
    let mut unit = head(source);
    // The empty line takes the template's address away.
    write!(unit, "\n[Socket]\nListenStream=\nListenStream={}\n", value(&stream)?).expect("a String takes everything");
    if let Listen::Tcp { .. } = address {
        // At boot the socket is made before the network has its addresses.
        unit.push_str("FreeBind=yes\n");
    }
    if let Listen::Unix(path) = address {
        writeln!(unit, "SocketMode={:04o}", pool.listen_mode).expect("a String takes everything");
        // Not SocketUser=, for systemd follows a link, and in a tenant's folder he may put one in the socket's place.
        let owner = pool.listen_owner.iter().map(|owner| ("owner", owner));
        let group = pool.listen_group.iter().map(|group| ("group", group));
        let users = pool.listen_acl_users.iter().map(|user| ("acl-user", user));
        let groups = pool.listen_acl_groups.iter().map(|group| ("acl-group", group));
        let whom = owner.chain(group).chain(users).chain(groups);
        let whom: String = whom.map(|(key, name)| word(&format!("--{key}={name}")) + " ").collect();
        if !whom.is_empty() {
            let (name, path) = (word(&pool.name), word(&path.display().to_string()));
            writeln!(unit, "ExecStartPost=/usr/bin/php-pool give-socket {whom}{name} {path}")
                .expect("a String takes everything");
        }
    }
    let backlog = u32::try_from(pool.listen_backlog).unwrap_or(i32::MAX as u32);
    writeln!(unit, "Backlog={backlog}").expect("a String takes everything");
    Ok(unit)
}

/// A drop-in of the service of a pool; `status` is whether it has a socket for the status page alone.
pub fn service(pool: &Pool, source: &Path, status: bool) -> String {
    let mut unit = head(source);
    write!(unit, "\n[Service]\nSlice={}\n", slice(&pool.name)).expect("a String takes everything");
    if status {
        writeln!(unit, "Sockets=php-pool-status@{}.socket", pool.name).expect("a String takes everything");
    }
    unit
}

/// A drop-in that lets a service fail with the reason: `php-pool check` finds it again and says it to the journal. It needs no
/// folder of its own, and systemd 257 starts nothing whose RuntimeDirectory= has a backslash, as that of an escaped name has.
pub fn broken(source: &Path) -> String {
    let mut unit = head(source);
    unit.push_str(
        "Description=PHP pool whose file is wrong\n\n[Service]\nType=oneshot\nRestart=no\nSockets=\nRuntimeDirectory=\n\
         ExecReload=\n",
    );
    let path = word(&source.display().to_string());
    write!(unit, "ExecStart=\nExecStart=/usr/bin/php-pool check --pool {path}\n").expect("a String takes everything");
    unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_systemd_escape_does() {
        assert_eq!(escape(b"my-app"), r"my\x2dapp");
        assert_eq!(escape(b".hidden/a b"), r"\x2ehidden-a\x20b");
        assert_eq!(escape("café".as_bytes()), r"caf\xc3\xa9");
        assert_eq!(slice("shop.example-1"), r"php-pool-shop.example\x2d1.slice");
    }

    #[test]
    fn a_name_that_systemd_or_a_path_could_take_for_something_else_is_refused() {
        for name in ["www", "my-app", "shop.example.org", "_x", "9", &"x".repeat(MAX_NAME)] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in [
            "",
            "-x",
            ".x",
            "..",
            "a b",
            "a/b",
            "café",
            "a@b",
            "a%b",
            "a\\b",
            "a:b",
            &"x".repeat(MAX_NAME + 1),
        ] {
            assert_eq!(check_name(name), Err(UnitError::Name(name.to_owned())), "{name}");
        }
    }

    fn socket_of(address: Listen) -> Result<String, UnitError> {
        let pool = Pool {
            listen_mode: 0o660,
            listen_backlog: 511,
            ..Pool::default()
        };
        socket(&pool, Path::new("/p.conf"), "listen", &address, "text")
    }

    #[test]
    fn addresses_are_written_as_systemd_reads_them() {
        let tcp = |host: &str| Listen::Tcp {
            host: host.into(),
            port: 9000,
        };
        for (address, line) in [
            (Listen::Unix("/run/100%.sock".into()), "ListenStream=/run/100%%.sock\nS"),
            (Listen::Unix("/var/run/a.sock".into()), "ListenStream=/run/a.sock\nS"),
            (
                Listen::Unix("/var/runner/a.sock".into()),
                "ListenStream=/var/runner/a.sock\nS",
            ),
            (Listen::Port(9000), "ListenStream=9000\nB"),
            (tcp("127.0.0.1"), "ListenStream=127.0.0.1:9000\nFreeBind=yes\n"),
            (tcp("LocalHost"), "ListenStream=127.0.0.1:9000\nFreeBind=yes\n"),
            (tcp("::1"), "ListenStream=[::1]:9000\nFreeBind=yes\n"),
            (tcp("fe80::1%eth0"), "ListenStream=[fe80::1]:9000%%eth0\nFreeBind=yes\n"),
        ] {
            let unit = socket_of(address).unwrap();
            assert!(unit.contains(&format!("[Socket]\nListenStream=\n{line}")), "{unit}");
        }
        let error = socket_of(tcp("db.example")).unwrap_err();
        assert!(error.to_string().contains("instead of 'db.example'"), "{error}");
    }

    #[test]
    fn no_text_becomes_a_second_setting() {
        for path in ["/run/x\n[Service]\nExecStart=/bin/id", "/run/x\\", "/run/x\r"] {
            let error = socket_of(Listen::Unix(path.into())).unwrap_err();
            assert!(matches!(error, UnitError::Unwritable(_)), "{error}");
            assert!(!error.to_string().contains(['\n', '\r']), "{error}");
        }
        let pool = Pool {
            listen_owner: Some("www-data\nExecStartPre=/bin/id".to_owned()),
            ..Pool::default()
        };
        let address = Listen::Unix("/run/x".into());
        let unit = socket(&pool, Path::new("/p.conf"), "listen", &address, "/run/x").unwrap();
        assert!(!unit.contains("\nExecStartPre"), "{unit}");
        let unit = broken(Path::new("/etc/php-pool/pool.d/a\nExecStart=/bin/id\n#.conf"));
        assert!(!unit.contains("\nExecStart=/bin/id"), "{unit}");
        assert_eq!(word("a\nb"), r#""a\x0ab""#);
    }

    #[test]
    fn mode_and_owner_are_a_unix_sockets_alone() {
        assert!(
            socket_of(Listen::Unix("/run/x".into()))
                .unwrap()
                .contains("\nSocketMode=0660\nBacklog=511\n")
        );
        assert!(!socket_of(Listen::Port(1)).unwrap().contains("SocketMode"));
    }

    #[test]
    fn a_path_survives_the_command_line() {
        assert_eq!(word(r#"/a "b" $c %d\"#), r#""/a \"b\" $$c %%d\\""#);
    }
}
