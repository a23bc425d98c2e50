//! Looking into running PHP from outside: real workers, in every place where a script can be, and some that lie.
//!
//! `cargo test --test trace -- FILTER`

#[path = "../pool/harness.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod harness;
mod hostile;
mod privilege;
mod profile;
mod slowlog;
mod stacks;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod support;

use std::path::PathBuf;
use std::process::{Command, ExitCode, Output, Stdio};

use libtest_mimic::Arguments;
use php_pool::trace::{Backtrace, Limits, TraceError, Worker};

use harness::Master;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They wait more than they compute.
    arguments.test_threads.get_or_insert(4);
    let cases = [stacks::CASES, slowlog::CASES, hostile::CASES, profile::CASES];
    let of_root = [hostile::ROOT_CASES, privilege::ROOT_CASES];
    let root = nix::unistd::geteuid().is_root();
    let cases = cases.into_iter().flatten().map(|case| (case, true));
    let of_root = of_root.into_iter().flatten().map(|case| (case, root));
    let trials = cases
        .chain(of_root)
        .map(|(case, possible)| support::trial(case, possible));
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// A pool `www` of static workers, with these lines of its own.
pub fn pool(workers: usize, lines: &str) -> String {
    format!(
        "[www]\n{{user}}\nlisten = {{dir}}/sock\npm = static\npm.max_children = {workers}\ncatch_workers_output = yes\n{lines}\n"
    )
}

/// What a worker does now.
pub fn look(pid: i32, frames: usize) -> Result<Backtrace, TraceError> {
    Worker::of_pid(pid)?.backtrace(Limits::to_show(frames))
}

/// The worker that runs a script, and where it is.
pub fn worker_with(master: &Master, script: &str) -> Option<(i32, Backtrace)> {
    let path = master.place.path(script).display().to_string();
    let runs = |trace: &Backtrace| {
        trace
            .request
            .as_ref()
            .is_some_and(|request| request.script.as_ref() == Some(&path))
    };
    let workers = master.workers("www").into_iter();
    workers
        .filter_map(|pid| Some((pid, look(pid, 64).ok()?)))
        .find(|(_, trace)| runs(trace))
}

/// The command line beside us.
pub fn php_pool() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    this.ancestors().nth(2).unwrap().join("php-pool")
}

/// Runs it.
pub fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(php_pool());
    command.args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// What it printed.
pub fn printed(output: &Output) -> String {
    let both = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}
