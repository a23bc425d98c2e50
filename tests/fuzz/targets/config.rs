//! Configuration files. They are root's; but a typing error must not be worse than an error message.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::sys::memfd::{MFdFlags, memfd_create};
use php_pool::config::ini::{Parser, Statement};
use php_pool::config::phpini::PhpIni;
use php_pool::config::{self, LoadOptions, access_format, address, value};

use super::Cursor;

/// The dialect's own.
pub const WORDS: &[&str] = &[
    "[global]\n",
    "[www]\n",
    "pm = dynamic\npm.max_children = 5\npm.start_servers = 2\npm.min_spare_servers = 1\npm.max_spare_servers = 3\n",
    "pm = static\npm.max_children = 1\n",
    "listen = 127.0.0.1:9000\n",
    "user = nobody\n",
    "php_admin_value[a] = ",
    "env[A] = $A\n",
    "access.format = ",
    "%{x}e",
    "${A:-b}",
    "E_ALL & ~E_NOTICE",
    "(!1|2)",
    "\"a\\\"b\"",
    "'a'",
    "0644",
    "10ms",
    "1.5h",
    "::1/64",
    "\r\n",
];

fn variables(name: &str) -> Option<String> {
    (name.len() < 3).then(|| "x y".to_owned())
}

/// Every text ends, in statements or an error that names a line of it.
pub fn ini(data: &[u8]) {
    let lines = 1 + data.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count();
    let (mut statements, mut line_before) = (0, 0);
    for statement in Parser::new(data, 1, &variables) {
        let line = match statement {
            Ok((line, _)) => line,
            Err(error) => error.line,
        };
        assert!((1..=lines as u32).contains(&line));
        assert!(line >= line_before || statements > 0);
        line_before = line;
        statements += 1;
    }
    assert!(statements <= data.len() + 1);

    let file = in_memory(data);
    let ini = PhpIni {
        file_or_dir: Some(path_of(&file)),
        defines: vec![("a".into(), "b".into())],
        ..PhpIni::default()
    };
    assert_eq!(ini.values(&HashMap::new()).get("a").map(String::as_str), Some("b"));
}

/// A whole file: a configuration that can be printed, or errors that can be.
pub fn file(data: &[u8]) {
    // What is included is the machine's, and no part of the input.
    let includes = |line: &[u8]| {
        Parser::new(line, 1, &variables)
            .any(|statement| matches!(statement, Ok((_, Statement::Entry { name, .. })) if name == "include"))
    };
    if data.split_inclusive(|byte| *byte == b'\n').any(includes) {
        return;
    }
    let file = in_memory(data);
    let mut options = LoadOptions::new(path_of(&file));
    options.env.clear();
    match config::load(&options) {
        Ok(config) => {
            assert!(config::dump(&config).iter().all(|line| !line.contains('\n')));
            for pool in &config.pools {
                assert!(!pool.name.is_empty() && pool.pm_max_children > 0);
                access_format::compile(&pool.access_format).expect("it was checked");
            }
        }
        Err(errors) => assert!(!errors.to_string().is_empty()),
    }
}

/// Single values.
pub fn values(data: &[u8]) {
    let mut cursor = Cursor(data);
    let kind = cursor.byte();
    let text = String::from_utf8_lossy(cursor.0);
    match kind % 5 {
        0 => {
            let _ = address::parse(&text, Path::new("/base"));
        }
        1 => {
            let (networks, wrong) = address::parse_networks(&text);
            assert_eq!(networks.len() + wrong.len(), text.split(',').count());
            for network in networks {
                // A client that is seen as ::ffff:192.0.2.1 is one of IPv4, and in no network of IPv6.
                assert!(network.contains(network.address) || network.address != network.address.to_canonical());
                network.contains("::1".parse().expect("an address"));
            }
        }
        2 => {
            if let Ok(time) = value::parse_time(&text) {
                assert!(!value::format_seconds(time).is_empty());
            }
        }
        3 => {
            let _ = value::parse_bool(&text);
        }
        _ => {
            let _ = access_format::compile(&text);
        }
    }
}

fn in_memory(data: &[u8]) -> File {
    let file = File::from(memfd_create(c"php-pool-fuzz", MFdFlags::MFD_CLOEXEC).expect("there is memory"));
    file.write_all_at(data, 0).expect("there is memory");
    file
}

fn path_of(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
