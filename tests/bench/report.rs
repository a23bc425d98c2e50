//! The table.

use std::fs;
use std::process::Command;

use crate::measure::{KINDS, Result, Round};
use crate::rows::Row;

/// Says where and when.
pub fn machine() {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let date = Command::new("date")
        .arg("+%F")
        .output()
        .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "{}; {cores} cores, {}; Linux {}; load average before: {}\n",
        date.unwrap_or_default(),
        model.trim_start_matches([' ', '\t', ':']),
        kernel.trim(),
        load.split(' ').next().unwrap_or_default()
    );
}

pub fn head() {
    let [theirs, ours] = KINDS.map(|kind| kind.name());
    println!("## {ours} against {theirs}\n");
    println!(
        "| | requests/s {theirs} | {ours} | ratio (min–max) | CPU µs a request {theirs} | {ours} | ratio | \
         p50/p99 ms {theirs} | {ours} | worker PSS MB {theirs} | {ours} |"
    );
    println!("|---|{}", "---:|".repeat(10));
}

/// One line; the results are those of [`KINDS`].
pub fn row(row: &Row, results: &[Result]) {
    let [theirs, ours] = results else {
        panic!("a result for each server")
    };
    let rate = |r: &Result| median(&r.rounds, |round| round.rate);
    let cpu = |r: &Result| median(&r.rounds, |round| round.cpu);
    let latency = |r: &Result| {
        format!(
            "{:.2}/{:.2}",
            median(&r.rounds, |round| round.p50),
            median(&r.rounds, |round| round.p99)
        )
    };
    // Round against round: they ran one after the other.
    let mut ratios: Vec<f64> = ours
        .rounds
        .iter()
        .zip(&theirs.rounds)
        .map(|(o, t)| o.rate / t.rate)
        .collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "| {} | {:.0} | {:.0} | **{:.2}** ({:.2}–{:.2}) | {:.1} | {:.1} | **{:.2}** | {} | {} | {:.1} | {:.1} |",
        row.name,
        rate(theirs),
        rate(ours),
        rate(ours) / rate(theirs),
        ratios[0],
        ratios[ratios.len() - 1],
        cpu(theirs),
        cpu(ours),
        cpu(ours) / cpu(theirs),
        latency(theirs),
        latency(ours),
        theirs.pss as f64 / 1024.0,
        ours.pss as f64 / 1024.0,
    );
}

pub fn foot() {
    println!(
        "\nMedians of the rounds, which alternate between the servers; the ratio's extremes are those of single rounds. \
         CPU time is that of all processes of the server. Same php.ini, extensions, workers, socket and scripts."
    );
}

fn median(rounds: &[Round], of: impl Fn(&Round) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
