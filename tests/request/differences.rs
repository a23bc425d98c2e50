//! The list of wanted differences in the documentation is that of the cases.

use std::fmt::Write as _;
use std::fs;

use libtest_mimic::Trial;

use crate::harness::Case;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/differences-requests.md");

/// Fails when the document is not what the cases say; with `UPDATE_DOCS` set, writes it instead.
pub fn trial(cases: &[Case]) -> Trial {
    let wanted = document(cases);
    Trial::test("differences::the_document_lists_what_the_cases_say", move || {
        if std::env::var_os("UPDATE_DOCS").is_some() {
            fs::write(DOCUMENT, wanted).map_err(|e| format!("{DOCUMENT} cannot be written: {e}"))?;
            return Ok(());
        }
        let written = fs::read_to_string(DOCUMENT).map_err(|e| format!("{DOCUMENT} cannot be read: {e}"))?;
        if written == wanted {
            return Ok(());
        }
        Err("docs/differences-requests.md is stale: run UPDATE_DOCS=1 cargo test --test request -- differences".into())
    })
}

fn document(cases: &[Case]) -> String {
    let mut text = String::from(
        "# Where a request is answered otherwise than by php-fpm\n\n\
         Every entry is a case of `tests/request`, which runs it against Debian's php-fpm 8.2 and against php-pool and\n\
         checks what each does. Whatever is not listed here is meant to be the same, byte for byte. Where a release of\n\
         php-fpm has mended what an entry says, the entry names it: from then on both are the same. This file is written\n\
         by the test: `UPDATE_DOCS=1 cargo test --test request -- differences`.\n",
    );
    let mut group = "";
    for case in cases {
        let Some(difference) = case.difference else { continue };
        let (of, name) = case.name.split_once("::").expect("names are group::sentence");
        if of != group {
            group = of;
            write!(text, "\n## {}\n\n", group.replace('_', " ")).expect("into a String");
        }
        writeln!(text, "- **{}.** {}", name.replace('_', " "), difference.reason).expect("into a String");
    }
    text
}
