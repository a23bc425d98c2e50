//! What a pool shows of itself: status pages, access log, error log. Every case is run against php-fpm and against
//! php-pool, and what both say must be alike, but for numbers that never are.
//!
//! `cargo test --test observe -- FILTER` runs what the filter names. `PHP_POOL_ONLY=php-fpm` leaves php-pool out.

#[path = "../request/harness.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod harness;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod support;

mod access_log;
mod numbers;
mod status;
mod worker_output;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::Arguments;

use harness::Servers;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Cases wait more than they compute.
    arguments.test_threads.get_or_insert(8);
    harness::catch_assertions();

    let servers = Arc::new(Servers::new());
    let cases = [status::cases(), access_log::cases(), worker_output::cases()];
    let trials = cases
        .into_iter()
        .flatten()
        .map(|case| harness::trial(case, &servers))
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);

    let faults = Arc::into_inner(servers)
        .map(Servers::stop)
        .unwrap_or_else(|| vec!["a case still runs".into()]);
    for fault in &faults {
        eprintln!("error: {fault}");
    }
    if conclusion.has_failed() || !faults.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
