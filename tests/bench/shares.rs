//! `./dev bench shares ROW…`: where the processor time of a request goes, by perf's samples. It shows what is in the way of a
//! target that was not reached.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Outcome;
use crate::contenders::{Contender, Who};
use crate::measure::LineUp;
use crate::rows::Row;
use crate::support::process::that_dies_with_us;

/// Samples a second; by the clock, as a virtual machine often has no other counter.
const HERTZ: &str = "999";

/// Prints a table of these rows: microseconds of a request, for both servers.
///
/// # Errors
/// When perf is not there or may not sample other processes.
pub fn run(rows: &[&Row], seconds: f64) -> Outcome<()> {
    println!(
        "| | | CPU µs a request | kernel | PHP | C library | php-pool | nginx | other |\n|---|---|{}",
        "---:|".repeat(7)
    );
    for row in rows {
        let both = LineUp::start(row, |who| matches!(who, Who::PhpFpm | Who::PhpPool), 1.0)?;
        for contender in &both.contenders {
            let (cpu, samples) = sampled(contender, row, both.core, seconds)?;
            let all: f64 = samples.values().sum();
            let cells = Part::ALL.map(|part| format!("{:.1}", cpu * samples.get(&part).unwrap_or(&0.0) / all));
            println!(
                "| {} | {} | {cpu:.1} | {} |",
                row.name,
                contender.who.name(),
                cells.join(" | ")
            );
        }
    }
    Ok(())
}

/// Whose code runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Kernel,
    /// The engine and its extensions; php-fpm's own code is in the same file.
    Php,
    Libc,
    Pool,
    Nginx,
    Other,
}

impl Part {
    const ALL: [Self; 6] = [
        Self::Kernel,
        Self::Php,
        Self::Libc,
        Self::Pool,
        Self::Nginx,
        Self::Other,
    ];

    /// Of what perf calls a "dso".
    fn of(file: &str) -> Self {
        let name = Path::new(file).file_name().unwrap_or_default().to_string_lossy();
        match &*name {
            // The clock's page is the kernel's, too.
            name if name.starts_with('[') && (name.contains("kernel") || name.contains("vdso")) => Self::Kernel,
            name if name.starts_with("php-pool") => Self::Pool,
            name if name.starts_with("libphp") || name.starts_with("php-fpm") || file.contains("/lib/php/") => {
                Self::Php
            }
            name if name.starts_with("libc.so") || name.starts_with("ld-linux") => Self::Libc,
            "nginx" => Self::Nginx,
            _ => Self::Other,
        }
    }
}

/// Two rounds: the processor time of a request in microseconds, and, under perf, which costs some itself, the samples of each part.
fn sampled(contender: &Contender, row: &Row, core: Option<usize>, seconds: f64) -> Outcome<(f64, BTreeMap<Part, f64>)> {
    let cpu = contender.round(row, Duration::from_secs_f64(seconds), core)?.cpu;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("perf.data");
    let pids: Vec<String> = contender.pids().iter().map(ToString::to_string).collect();
    let mut perf = that_dies_with_us("INT", "perf")
        .args([
            "record",
            "--quiet",
            "--event",
            "cpu-clock",
            "--freq",
            HERTZ,
            "--pid",
            &pids.join(","),
        ])
        .arg("--output")
        .arg(&file)
        .spawn()?;
    let sampled = contender.round(row, Duration::from_secs_f64(seconds), core);
    kill(Pid::from_raw(i32::try_from(perf.id())?), Signal::SIGINT)?;
    perf.wait()?;
    sampled?;
    let output = Command::new("perf")
        .args([
            "report",
            "--stdio",
            "--quiet",
            "--sort",
            "dso",
            "--fields",
            "sample,dso",
            "--input",
        ])
        .arg(&file)
        .stderr(Stdio::inherit())
        .output()?;
    let mut samples = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if let Some((count, file)) = line.trim().split_once(char::is_whitespace) {
            *samples.entry(Part::of(file.trim())).or_default() += count.parse::<f64>()?;
        }
    }
    if samples.is_empty() {
        return Err(format!("perf has no samples of {}", contender.who.name()).into());
    }
    Ok((cpu, samples))
}
