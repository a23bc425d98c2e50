//! Parameters of a request, and the script they name.

use php_pool::fastcgi::pairs;

use super::Cursor;
use params::Params;
use script::{Files, Settings};

#[path = "../../../src/worker/params.rs"]
#[allow(dead_code, unused_imports)] // the worker uses all of it, and its tests are its own
mod params;
#[path = "../../../src/worker/script.rs"]
#[allow(dead_code, unused_imports)]
mod script;

/// Parameters that decide, and values that php-fpm's rules know.
pub const WORDS: &[&str] = &[
    "\x0f\x0fSCRIPT_FILENAME/w/index.php/a/b",
    "\x0b\x0eSCRIPT_NAME/index.php/a/b",
    "\x09\x04PATH_INFO/a/b",
    "\x0f\x02PATH_TRANSLATED/t",
    "\x0d\x02DOCUMENT_ROOT/w",
    "\x0c\x02REDIRECT_URL/r",
    "\x0f\x0dSERVER_SOFTWAREMicrosoft-IIS",
    "proxy:fcgi://h:9/w/i.php",
    "proxy:balancer://",
    "/../",
    "%2f%00",
    "\\",
];

/// A file system without files, that knows nothing but the bytes of a path.
struct Dreamt {
    seed: u8,
}

impl Dreamt {
    fn coin(&self, path: &[u8]) -> u8 {
        path.iter()
            .fold(self.seed, |sum, byte| sum.wrapping_mul(31).wrapping_add(*byte))
    }
}

impl Files for Dreamt {
    fn resolves(&self, path: &[u8]) -> bool {
        self.coin(path) & 3 == 0
    }

    fn is_file(&self, path: &[u8]) -> bool {
        self.coin(path) & 4 == 0
    }
}

/// Parameters are found as they were sent; no path climbs, and none holds a NUL that C would stop at.
pub fn script(data: &[u8]) {
    let mut cursor = Cursor(data);
    let flags = cursor.byte();
    let files = Dreamt { seed: cursor.byte() };
    let stream = cursor.0;
    if pairs(stream).any(|pair| pair.is_err()) {
        return; // such a request never gets here: fastcgi::Input refuses it
    }
    let mut params = Params::default();
    params.read(b"\x01\x01ab", "RESPONDER"); // what is kept of an earlier request must not show
    params.read(stream, "RESPONDER");
    let until_nul = |text: &[u8]| text.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
    for pair in pairs(stream).flatten() {
        let name = until_nul(pair.name);
        let last = pairs(stream)
            .flatten()
            .filter(|other| until_nul(other.name) == name)
            .last();
        if let Ok(name) = std::str::from_utf8(&name) {
            assert_eq!(params.get(name), last.map(|pair| until_nul(pair.value)).as_deref());
        }
        if stream.len() > 4096 {
            break; // quadratic, and looked at already
        }
    }

    let settings = Settings {
        fix_pathinfo: flags & 1 != 0,
        discard_path: flags & 2 != 0,
        decodes_path_info: flags & 8 != 0,
        doc_root: (flags & 4 != 0).then(|| b"/root".to_vec()),
    };
    let script = script::resolve(&mut params, &settings, &files);
    if let Some(path) = &script.path {
        assert!(
            !path.split(|byte| *byte == b'/').any(|part| part == b".."),
            "the path climbs"
        );
        assert!(!path.contains(&0));
        assert!(script.named && !script.missing);
    }
    for (name, value) in params.iter() {
        assert!(!name.contains(&0) && !value.contains(&0));
        // PHP is given pointers to C strings.
        for text in [name, value] {
            // SAFETY: Params keeps a NUL after each string, in the same allocation: this is what is tested.
            assert_eq!(unsafe { *text.as_ptr().add(text.len()) }, 0);
        }
    }
}
