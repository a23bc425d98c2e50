//! Pools on D-Bus: a real bus of the test's own, with the package's policy and activation, asked by busctl.
//!
//! What needs systemd and polkit is in tests/system/bus.sh. `cargo test --test bus -- FILTER`

mod callers;
#[path = "../pool/harness.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod harness;
mod objects;
mod service;
mod signals;
mod site;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod support;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They wait more than they compute.
    arguments.test_threads.get_or_insert(4);
    let cases = [objects::CASES, service::CASES, signals::CASES];
    let root = nix::unistd::geteuid().is_root();
    let cases = cases.into_iter().flatten().map(|case| (case, true));
    let of_root = callers::ROOT_CASES.iter().map(|case| (case, root));
    let trials = cases
        .chain(of_root)
        .map(|(case, possible)| support::trial(case, possible));
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
