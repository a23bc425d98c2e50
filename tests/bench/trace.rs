//! `./dev bench trace`: what it costs a worker to be looked at.
//!
//! The stand-still is measured by the worker itself: a script that does nothing but read the clock notes each gap between
//! two readings. The tracer notes when it read the worker's memory, by the same clock. A gap that overlaps a look is the most
//! that the look can have cost. The price of a profile is that of the requests served while one is taken: rounds with and
//! without one alternate.

use std::error::Error;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use php_pool::trace::{Limits, Worker};

use crate::load::{self, Request};
use crate::scripts;
use crate::support::server::{Kind, Server, Setup, www};
use crate::support::wiki;

/// Looks a second at the worker that notes its gaps.
const LOOKS_PER_SECOND: u64 = 99;
/// Shortest gap that is noted, ns: some hundred readings of the clock.
const GAP: u64 = 10_000;

const GAPS: &str = "set_time_limit(0);
function nested($depth, $end) {
    if ($depth) return nested($depth - 1, $end);
    $gaps = [];
    for ($last = hrtime(true); $last < $end; $last = $now) {
        $now = hrtime(true);
        if ($now - $last > 10000) $gaps[] = [$last, $now];
    }
    return $gaps;
}
echo json_encode(nested(20, hrtime(true) + (int) ($_SERVER['CONTENT_TYPE'] * 1e9)));";

pub fn run(rounds: usize, seconds: f64) -> Result<(), Box<dyn Error>> {
    println!("## What it costs to be looked at\n");
    let root = wiki::folder();
    let setup: &'static Setup = Box::leak(Box::new(Setup {
        workers: 2,
        ..*wiki::setup(2)
    }));
    let www = www(root.path(), setup);
    scripts::write(&www)?;
    std::fs::write(www.join("gaps.php"), format!("<?php\n{GAPS}\n"))?;
    let server = Server::start(Kind::PhpPool, setup, root.path())?;
    let script = |name: &str| www.join(name).display().to_string();
    stand_still(&server, &script("gaps.php"), 10.0)?;
    for name in ["hello.php", "json.php", "cpu.php"] {
        profile(&server, &script(name), name, rounds, seconds)?;
    }
    Ok(())
}

/// Nanoseconds of the clock that PHP's hrtime() reads.
fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every kernel has this clock");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

fn only(core: usize) -> nix::Result<CpuSet> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(set)
}

fn stand_still(server: &Server, script: &str, seconds: f64) -> Result<(), Box<dyn Error>> {
    // The reader must not take the worker's core: that would be a gap, but no stand-still of being read.
    let everywhere = sched_getaffinity(Pid::from_raw(0))?;
    let cores: Vec<usize> = (0..CpuSet::count())
        .filter(|core| everywhere.is_set(*core).unwrap_or(false))
        .collect();
    let (first, last) = (cores[0], *cores.last().expect("there is one"));
    sched_setaffinity(Pid::from_raw(0), &only(first)?)?;
    for pid in server.workers() {
        sched_setaffinity(Pid::from_raw(pid), &only(last)?)?;
    }
    let request = Request::new(script, false, "GET", &seconds.to_string(), b"", false);
    let mut connection = server.connect();
    connection.send(&request.bytes);
    let runs = |pid: &i32| {
        let worker = Worker::of_pid(*pid).ok()?;
        let trace = worker.backtrace(Limits::to_show(20, true)).ok()?;
        (trace.frames.len() > 20).then_some(worker)
    };
    let worker = loop {
        if let Some(worker) = server.workers().iter().find_map(runs) {
            break worker;
        }
    };
    let (begin, mut looks) = (now(), Vec::new());
    let end = begin + ((seconds - 1.0) * 1e9) as u64;
    let period = 1_000_000_000 / LOOKS_PER_SECOND;
    for moment in (begin..end).step_by(period as usize) {
        std::thread::sleep(Duration::from_nanos(moment.saturating_sub(now())));
        let from = now();
        let trace = worker.backtrace(Limits::to_show(20, true))?;
        looks.push((from, now()));
        assert!(
            trace.frames.len() > 20,
            "a look that has not read the stack measures nothing"
        );
    }
    let reply = String::from_utf8_lossy(&connection.reply(1).stdout).into_owned();
    let json = reply.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let gaps: Vec<(u64, u64)> = serde_json::from_str(json).map_err(|error| format!("{error}: {reply}"))?;
    sched_setaffinity(Pid::from_raw(0), &everywhere)?;
    for pid in server.workers() {
        sched_setaffinity(Pid::from_raw(pid), &everywhere)?;
    }
    let micros = |span: &(u64, u64)| (span.1 - span.0) as f64 / 1e3;
    let sorted = |spans: &[(u64, u64)]| {
        let mut all: Vec<f64> = spans.iter().map(micros).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let looked_at = |gap: &&(u64, u64)| looks.iter().any(|look| look.0 < gap.1 && gap.0 < look.1);
    let during: Vec<_> = gaps.iter().filter(looked_at).copied().collect();
    let apart: Vec<_> = gaps
        .iter()
        .filter(|gap| gap.0 >= begin && gap.1 <= end && !looked_at(gap))
        .copied()
        .collect();
    let times = sorted(&looks);
    let largest = |spans: &[(u64, u64)]| sorted(spans).last().copied().unwrap_or(GAP as f64 / 1e3);
    println!(
        "{} looks at 22 frames, {LOOKS_PER_SECOND} a second; a look takes {:.0} µs (median), {:.0} µs (longest).\n",
        looks.len(),
        times[times.len() / 2],
        times[times.len() - 1]
    );
    println!(
        "| stand-still of the worker | gaps above {} µs | longest, µs |\n|---|---:|---:|",
        GAP / 1000
    );
    println!(
        "| while it was looked at | {} | {:.0} |",
        during.len(),
        largest(&during)
    );
    println!("| while it was not | {} | {:.0} |\n", apart.len(), largest(&apart));
    Ok(())
}

fn profile(server: &Server, script: &str, name: &str, rounds: usize, seconds: f64) -> Result<(), Box<dyn Error>> {
    let request = Request::new(script, true, "GET", "", b"", false);
    let master = server.pids()[0].to_string();
    let program = std::env::current_exe()?
        .ancestors()
        .nth(2)
        .ok_or("the build's folder")?
        .join("php-pool");
    let output = server.home.join("profile");
    let serve = |seconds: f64| load::run(&server.address, &request, 2, Duration::from_secs_f64(seconds), None);
    serve(seconds / 4.0);
    let (mut without, mut with, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let mut rates = [0.0; 2];
        for profiled in [round % 2 == 1, round % 2 == 0] {
            let sampler = profiled.then(|| {
                let mut command = Command::new(&program);
                command.args(["profile", &master, "--hertz", "99", "--seconds"]);
                command
                    .arg(((seconds + 2.0).ceil() as u64).to_string())
                    .arg("--output")
                    .arg(&output);
                command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()
            });
            let sampler = sampler.transpose()?;
            if let Some(sampler) = &sampler {
                // It samples from when it has found the workers: it has a second thread then.
                let tasks = format!("/proc/{}/task", sampler.id());
                while std::fs::read_dir(&tasks)?.count() < 2 {
                    std::thread::yield_now();
                }
            }
            let outcome = serve(seconds);
            if let Some(mut sampler) = sampler {
                sampler.kill()?;
                sampler.wait()?;
            }
            rates[usize::from(profiled)] = outcome.rate;
        }
        without.push(rates[0]);
        with.push(rates[1]);
        ratios.push(1.0 - rates[1] / rates[0]);
    }
    let median = |values: &[f64]| {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    if name == "hello.php" {
        println!(
            "| requests/s of 2 workers | without | profiled at 99 Hz | cost (median of pairs, min–max) |\n|---|---:|---:|---:|"
        );
    }
    let (least, most) = ratios.iter().fold((f64::MAX, f64::MIN), |(least, most), ratio| {
        (least.min(*ratio), most.max(*ratio))
    });
    println!(
        "| {name} | {:.0} | {:.0} | {:.1} % ({:.1} to {:.1}) |",
        median(&without),
        median(&with),
        median(&ratios) * 100.0,
        least * 100.0,
        most * 100.0
    );
    Ok(())
}
