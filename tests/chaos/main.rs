//! No request is lost or stalled, whatever an administrator, a client or bad luck does: docs/guarantees.md, proved.
//!
//! `--seconds N` is how long the closed loop under chaos runs (default 20), `--seed S` what it is drawn from. The rest is
//! libtest's.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod support;

mod connections;
mod ledger;
mod load;
mod process;
mod random;
mod reloads;
mod schedule;
mod storm;

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use libtest_mimic::{Arguments, Trial};

/// A behaviour, and the test that proves it.
pub type Case = (&'static str, fn());

fn main() -> ExitCode {
    let mut rest = Vec::new();
    let (mut seconds, mut seed) = (20, None);
    let mut given = std::env::args();
    while let Some(argument) = given.next() {
        let mut number = |name: &str| {
            let value = given.next().and_then(|value| value.parse::<u64>().ok());
            value.unwrap_or_else(|| {
                eprintln!("{name} needs a number.");
                std::process::exit(2)
            })
        };
        match argument.as_str() {
            "--seconds" => seconds = number("--seconds"),
            "--seed" => seed = Some(number("--seed")),
            _ => rest.push(argument),
        }
    }
    let clock = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |time| time.as_secs())
    };
    let seed = seed.unwrap_or_else(clock);

    let mut arguments = Arguments::from_iter(rest);
    // Cases wait more than they compute.
    arguments.test_threads.get_or_insert(4);
    let mut trials = vec![Trial::test(
        "storm::only_what_ran_in_a_killed_worker_fails",
        move || {
            storm::run(seed, seconds);
            Ok(())
        },
    )];
    for (name, case) in [reloads::CASES, connections::CASES, process::CASES].concat() {
        trials.push(Trial::test(name, move || {
            case();
            Ok(())
        }));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
