//! Every case is run against Debian's php-fpm and against php-pool: the same bytes where behaviour is meant to be the
//! same, and where we differ on purpose the case says why.
//!
//! `cargo test --test request -- FILTER` runs what the filter names. `PHP_POOL_ONLY=php-fpm` leaves php-pool out, for
//! work on a case. `UPDATE_DOCS=1` writes the list of differences anew.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod support;

mod auth_headers;
mod body;
mod clients;
mod differences;
mod errors;
mod finish;
mod fuzz;
mod harness;
mod headers;
mod logs;
mod memory;
mod output;
mod path_info;
mod process;
mod protocol;
mod server_vars;
mod settings;
mod state;
mod status;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::Arguments;

use harness::{Case, Servers};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Cases wait more than they compute.
    arguments.test_threads.get_or_insert(8);
    harness::catch_assertions();

    let servers = Arc::new(Servers::new());
    let cases = cases();
    let document = differences::trial(&cases);
    let mut trials: Vec<_> = cases.into_iter().map(|case| harness::trial(case, &servers)).collect();
    trials.push(document);
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

fn cases() -> Vec<Case> {
    [
        server_vars::cases(),
        auth_headers::cases(),
        path_info::cases(),
        settings::cases(),
        body::cases(),
        headers::cases(),
        output::cases(),
        errors::cases(),
        finish::cases(),
        state::cases(),
        logs::cases(),
        memory::cases(),
        status::cases(),
        protocol::cases(),
        clients::cases(),
        process::cases(),
        fuzz::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
