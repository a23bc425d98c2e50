//! `./dev bench trace`: what it costs a worker to be looked at.
//!
//! The stand-still is measured by the worker itself: a script that does nothing but read the clock notes each gap between
//! two readings, and how long of it the kernel let it wait for a core. The tracer notes when it read the worker's memory, by
//! the same clock. A gap that overlaps a look is the most that the look can have cost. Every second look is left out: the
//! tracer then only spends as much time. What happens in gaps there is the machine's doing, and would have happened to looks.
//!
//! The price of a profile is that of the requests served while one is taken: rounds with and without one alternate.

use std::error::Error;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use php_pool::trace::{Limits, Worker};

use crate::load::{self, Request};
use crate::scripts;
use crate::support::server::{Kind, Server, Setup, www};
use crate::support::wiki;

/// Looks a second at the worker that notes its gaps, those that are left out among them.
const LOOKS_PER_SECOND: u64 = 198;
/// Shortest gap that is noted, ns: some hundred readings of the clock, and more than one copy below takes.
const GAP: u64 = 30_000;

/// `{step}` is what it does between two readings of the clock.
const GAPS: &str = "set_time_limit(0);
$small = fopen(__FILE__, 'r'); $null = fopen('/dev/null', 'w');
function waited() { return (int) explode(' ', file_get_contents('/proc/self/schedstat'))[1]; }
function nested($depth, $end) {
    if ($depth) return nested($depth - 1, $end);
    global $small, $null;
    $gaps = [];
    $before = waited();
    for ($last = hrtime(true); $last < $end; $last = $now) {
        {step}
        $now = hrtime(true);
        if ($now - $last > {gap}) {
            $after = waited();
            $gaps[] = [$last, $now, $after - $before];
            $before = $after;
            $now = hrtime(true);
        }
    }
    return $gaps;
}
echo json_encode(nested(20, hrtime(true) + (int) ($_SERVER['CONTENT_TYPE'] * 1e9)));";

/// What the script does, and what it is called. A copy maps the file and takes it out of memory again, for which it needs
/// the lock that whoever reads its memory has, too.
const STEPS: [(&str, &str, &str); 2] = [
    ("gaps.php", "", "reads the clock"),
    (
        "maps.php",
        "rewind($small); stream_copy_to_stream($small, $null);",
        "maps and unmaps memory",
    ),
];

pub fn run(rounds: usize, seconds: f64) -> Result<(), Box<dyn Error>> {
    println!("## What it costs to be looked at\n");
    let root = wiki::folder();
    let setup: &'static Setup = Box::leak(Box::new(Setup {
        workers: 2,
        ..*wiki::setup(2)
    }));
    let www = www(root.path(), setup);
    scripts::write(&www)?;
    for (name, step, _) in STEPS {
        let script = GAPS.replace("{step}", step).replace("{gap}", &GAP.to_string());
        std::fs::write(www.join(name), format!("<?php\n{script}\n"))?;
    }
    let server = Server::start(Kind::PhpPool, setup, root.path())?;
    let script = |name: &str| www.join(name).display().to_string();
    println!(
        "| the script | cores | a look takes, µs: median, longest | looks | longest gap, µs: at a look, where one was left out | without waiting for a core | above 1 ms |\n\
         |---|---|---:|---:|---:|---:|---:|"
    );
    for (name, _, what) in STEPS {
        for busy in [false, true] {
            stand_still(&server, &script(name), what, busy, 10.0)?;
        }
    }
    println!();
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

/// Keeps every core busy until it is dropped.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn every_core() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            let over = over.clone();
            std::thread::spawn(move || while !over.load(Relaxed) {});
        }
        Self(over)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// From, to, and how long of it the script waited for a core, ns.
type Gap = (u64, u64, u64);

fn stand_still(server: &Server, script: &str, what: &str, busy: bool, seconds: f64) -> Result<(), Box<dyn Error>> {
    let everywhere = sched_getaffinity(Pid::from_raw(0))?;
    if !busy {
        // The reader must not take the worker's core: that would be a gap, but no stand-still of being read.
        let cores: Vec<usize> = (0..CpuSet::count())
            .filter(|core| everywhere.is_set(*core).unwrap_or(false))
            .collect();
        let (first, last) = (cores[0], *cores.last().expect("there is one"));
        sched_setaffinity(Pid::from_raw(0), &only(first)?)?;
        for pid in server.workers() {
            sched_setaffinity(Pid::from_raw(pid), &only(last)?)?;
        }
    }
    let _burners = busy.then(Busy::every_core);
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
    let begin = now();
    let end = begin + ((seconds - 1.0) * 1e9) as u64;
    let (mut looks, mut left_out, mut torn) = (Vec::new(), Vec::new(), 0);
    let period = 1_000_000_000 / LOOKS_PER_SECOND;
    for moment in (begin..end).step_by(period as usize) {
        std::thread::sleep(Duration::from_nanos(moment.saturating_sub(now())));
        let from = now();
        if looks.len() > left_out.len() {
            let (last_from, last_to) = looks[looks.len() - 1];
            while now() - from < last_to - last_from {}
            left_out.push((from, now()));
            continue;
        }
        let trace = worker.backtrace(Limits::to_show(20, true))?;
        if trace.frames.len() > 20 {
            looks.push((from, now()));
        } else {
            torn += 1;
        }
    }
    assert!(
        torn * 10 < looks.len(),
        "{torn} looks have not read the stack and measure nothing, of {}",
        looks.len()
    );
    let reply = String::from_utf8_lossy(&connection.reply(1).stdout).into_owned();
    let json = reply.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let gaps: Vec<Gap> = serde_json::from_str(json).map_err(|error| format!("{error}: {reply}"))?;
    sched_setaffinity(Pid::from_raw(0), &everywhere)?;
    for pid in server.workers() {
        sched_setaffinity(Pid::from_raw(pid), &everywhere)?;
    }
    let micros = |nanos: u64| nanos as f64 / 1e3;
    let mut times: Vec<u64> = looks.iter().map(|look| look.1 - look.0).collect();
    times.sort_unstable();
    let at = |during: &[(u64, u64)], of: fn(&Gap) -> u64| -> Vec<u64> {
        let overlap = |gap: &&Gap| during.iter().any(|look| look.0 < gap.1 && gap.0 < look.1);
        gaps.iter().filter(overlap).map(of).collect()
    };
    let longest = |during: &[(u64, u64)], of| micros(at(during, of).into_iter().max().unwrap_or(GAP));
    let whole: fn(&Gap) -> u64 = |gap| gap.1 - gap.0;
    let awake: fn(&Gap) -> u64 = |gap| (gap.1 - gap.0).saturating_sub(gap.2).max(GAP);
    let long = |during: &[(u64, u64)]| at(during, awake).into_iter().filter(|gap| *gap > 1_000_000).count();
    println!(
        "| {what} | {} | {:.0}, {:.0} | {} | {:.0}, {:.0} | {:.0}, {:.0} | {}, {} |",
        if busy {
            "busy with something else"
        } else {
            "one for each of the two"
        },
        micros(times[times.len() / 2]),
        micros(times[times.len() - 1]),
        looks.len(),
        longest(&looks, whole),
        longest(&left_out, whole),
        longest(&looks, awake),
        longest(&left_out, awake),
        long(&looks),
        long(&left_out),
    );
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
