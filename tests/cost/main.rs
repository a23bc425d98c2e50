//! What a request costs, in the one unit that does not depend on how busy the machine is: system calls.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod support;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

use support::server::{Kind, php_fpm_release};
use support::strace::{Calls, How, Subject, total};
use support::wiki;

/// The most that one hello world may take of each way; php-fpm takes 31 on a new connection and 26 on a kept one.
const LIMITS: [(&str, How, u32); 3] = [
    ("a_new_connection_takes_at_most_10_system_calls", How::New, 10),
    // It comes from the master, and the worker looks whether its client is still there.
    (
        "a_new_connection_that_waited_at_a_full_pool_takes_at_most_10_system_calls",
        How::Queued,
        10,
    ),
    ("a_kept_connection_takes_at_most_6_system_calls", How::Kept, 6),
];

/// The calls of one request, as few as they are seen to be: a client that is slow between its connect and its first bytes
/// costs looks in vain.
fn least(subject: &Subject, how: How, enough: u32) -> Result<Calls, String> {
    let mut least = subject.calls(how)?;
    for _ in 1..5 {
        if total(&least) <= enough {
            break;
        }
        let calls = subject.calls(how)?;
        if total(&calls) < total(&least) {
            least = calls;
        }
    }
    Ok(least)
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Two at once would count each other's requests.
    arguments.test_threads = Some(1);
    let root = wiki::folder();
    let subject = Arc::new(Subject::start(Kind::under_test(), root.path()).unwrap_or_else(|e| panic!("{e}")));
    // Its engine asks for the pid in each request, in php-fpm as well.
    let of_php = u32::from(php_fpm_release() >= [8, 4, 0]);
    let trials = LIMITS.map(|(name, how, limit)| {
        let subject = Arc::clone(&subject);
        let limit = limit + of_php;
        Trial::test(name, move || {
            let calls = least(&subject, how, limit)?;
            let sum = total(&calls);
            if (1..=limit).contains(&sum) {
                return Ok(());
            }
            Err(format!("{sum} system calls, not 1 to {limit}: {calls:.2?}").into())
        })
    });
    let path = root.path().to_owned();
    let logged = Trial::test("an_access_log_costs_at_most_the_waking_of_its_writer", move || {
        let log = "access.log = {home}/access.log\n";
        let without = Subject::start_with(Kind::under_test(), &path, "strace-none", "")?;
        let without = least(&without, How::New, 9)?;
        let with = Subject::start_with(Kind::under_test(), &path, "strace-log", log)?;
        let with = least(&with, How::New, total(&without) + 1)?;
        if total(&with) <= total(&without) + 1 {
            return Ok(());
        }
        Err(format!("with {with:.2?}, without {without:.2?}").into())
    });
    let trials = trials.into_iter().chain([logged]).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
