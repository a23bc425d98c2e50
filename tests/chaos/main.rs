//! No request is lost or stalled, whatever an administrator, a client or bad luck does: docs/guarantees.md, proved.
//!
//! `--seconds N` is how long the closed loop under chaos runs (default 60), `--seed S` what it is drawn from;
//! `--requests N` how many go through nginx on kept connections (default 2,400). The rest is libtest's.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod support;

mod connections;
mod hostile;
mod ledger;
mod load;
mod process;
mod random;
mod reloads;
mod schedule;
mod storm;
mod upgrades;

use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let mut rest = Vec::new();
    let (mut seconds, mut seed) = (60, None);
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
            "--requests" => connections::NGINX_REQUESTS.store(number("--requests"), Relaxed),
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
    trials.push(support::trial(
        &("storm::a_seed_draws_one_schedule", storm::a_seed_draws_one_schedule),
        true,
    ));
    let cases = [
        reloads::CASES,
        upgrades::CASES,
        connections::CASES,
        process::CASES,
        hostile::CASES,
    ];
    trials.extend(cases.into_iter().flatten().map(|case| support::trial(case, true)));
    libtest_mimic::run(&arguments, trials).exit_code()
}
