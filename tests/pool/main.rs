//! The master with real processes and real signals: what dies is replaced, what is asked for is done, and no other request
//! suffers from it.
//!
//! `cargo test --test pool -- FILTER`

mod access_log;
mod broken;
mod command_line;
mod error_log;
mod figures;
mod full;
mod harness;
mod limits;
mod processes;
mod races;
mod recycling;
mod renewal;
mod restart;
mod scaling;
mod signals;
mod start;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod support;
mod upgrade;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They wait more than they compute.
    arguments.test_threads.get_or_insert(6);
    let cases = [
        access_log::CASES,
        command_line::CASES,
        start::CASES,
        processes::CASES,
        races::CASES,
        signals::CASES,
        scaling::CASES,
        limits::CASES,
        recycling::CASES,
        upgrade::CASES,
        renewal::CASES,
        restart::CASES,
        full::CASES,
        error_log::CASES,
        broken::CASES,
        figures::CASES,
    ];
    let trials = cases.into_iter().flatten().map(|case| support::trial(case, true));
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
