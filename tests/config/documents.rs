//! Documents that are written from code: the manual of directives and the list of differences.

use std::fs;

use libtest_mimic::Trial;
use php_pool::config::manual;

use crate::differences;

/// Whether documents are written anew instead of compared.
pub fn are_written() -> bool {
    std::env::var_os("UPDATE_DOCS").is_some()
}

pub fn trials(cases: &[String]) -> Vec<Trial> {
    let cases = cases.to_vec();
    vec![
        document("differences-config.md", differences::document()),
        document("directives.md", manual::markdown()),
        document("php-pool.conf.5", manual::man_page()),
        Trial::test("differences::every_one_has_its_file", move || {
            differences::check(&cases).map_err(Into::into)
        }),
    ]
}

fn document(name: &'static str, wanted: String) -> Trial {
    Trial::test(format!("documents::{name}"), move || {
        let path = format!("{}/docs/{name}", env!("CARGO_MANIFEST_DIR"));
        if fs::read_to_string(&path).is_ok_and(|written| written == wanted) {
            return Ok(());
        }
        if are_written() {
            return fs::write(&path, wanted).map_err(|e| format!("{path} cannot be written: {e}").into());
        }
        Err(format!("docs/{name} is stale: run UPDATE_DOCS=1 cargo test --test config -- documents").into())
    })
}
