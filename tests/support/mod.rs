//! What the tests share: a FastCGI client that can misbehave, servers to talk to, web servers in front of them, a wiki
//! behind them, strace beside them.

pub mod browser;
pub mod fcgi;
pub mod process;
pub mod server;
pub mod strace;
pub mod web;
pub mod wiki;

use std::panic::{AssertUnwindSafe, catch_unwind};

use libtest_mimic::Trial;

/// A test and its name.
pub type Case = (&'static str, fn());

/// A case for the test runner; one that is not `possible` here is skipped.
pub fn trial(&(name, case): &Case, possible: bool) -> Trial {
    Trial::test(name, move || Ok(caught(case)?)).with_ignored_flag(!possible)
}

/// What comes of it, or the words that it panics with.
pub fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default()
    })
}
