//! `./dev bench trace`: what it costs a worker to be looked at.
//!
//! The stand-still is measured by the worker itself: a script that does nothing but read the clock notes each gap between
//! two readings, and how long of it the kernel let it wait for a core. The tracer notes when it read the worker's memory, by
//! the same clock, and what processor time that took. A gap that overlaps a look is the most that the look can have cost, less
//! what the script waited for a core; but for as long as the look took one, it may have been that core. Every second look is
//! left out: the tracer then only spends as much time. What happens in gaps there is the machine's doing, and would have
//! happened to looks.
//!
//! The price of a profile is that of the requests that are not served while one is taken. Slices with and without one
//! alternate many times, so that whatever else the machine does hits both: the profiler is there all the time, and is stopped
//! in every second slice.

use std::error::Error;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use php_pool::trace::{Limits, Worker};

use crate::load::{self, Request};
use crate::scripts;
use crate::support::server::{Kind, Server, Setup, php_pool, www};
use crate::support::wiki;

/// Looks a second at the worker that notes its gaps, those that are left out among them.
const LOOKS_PER_SECOND: u64 = 198;
/// Looks a second of the profile.
const HERTZ: u32 = 99;
/// Pairs of slices in a round.
const PAIRS: usize = 12;
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
        "| the script | who looks | cores | a look takes, µs: median, longest | looks | longest stand-still, µs: at a look, where one was left out | above 1 ms |\n\
         |---|---|---|---:|---:|---:|---:|"
    );
    for (name, _, what) in STEPS {
        for often in [false, true] {
            for busy in [false, true] {
                stand_still(&server, &script(name), what, often, busy, 10.0)?;
            }
        }
    }
    println!(
        "\nOf {} pairs of slices the median, and its 95 % confidence interval:\n\n\
         | the script | requests/s: without, with a profile | more time for a request with it, % | processor time of the worker for a request, µs: without, with | more, % | the profiler: % of a core, µs a look |\n\
         |---|---:|---:|---:|---:|---:|",
        PAIRS * rounds
    );
    for name in ["hello.php", "json.php", "cpu.php"] {
        profile(&server, &script(name), name, PAIRS * rounds, seconds)?;
    }
    Ok(())
}

/// Nanoseconds of a clock.
fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("every kernel has this clock");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// Nanoseconds of the clock that PHP's hrtime() reads.
fn now() -> u64 {
    read(ClockId::CLOCK_MONOTONIC)
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

/// From, to, and for how long of it the tracer had a core, ns.
type Look = (u64, u64, u64);

/// The most for which a script can have stood still because of a look, ns: since the look began.
fn stood_still(look: &Look, gaps: &[Gap]) -> u64 {
    let there = gaps.iter().filter(|gap| look.0 < gap.1 && gap.0 < look.1);
    let still = |gap: &Gap| {
        let since = gap.1 - gap.0.max(look.0);
        since.min((gap.1 - gap.0).saturating_sub(gap.2) + look.2)
    };
    there.map(still).max().unwrap_or(0)
}

/// `often`: it is looked at as by a profile, and else as by the slowlog.
fn stand_still(
    server: &Server,
    script: &str,
    what: &str,
    often: bool,
    busy: bool,
    seconds: f64,
) -> Result<(), Box<dyn Error>> {
    let everywhere = sched_getaffinity(Pid::from_raw(0))?;
    if !busy {
        // The script has a core for itself, but for the looks.
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
        let trace = worker.backtrace(Limits::to_show(20)).ok()?;
        (trace.frames.len() > 20).then_some(worker)
    };
    let worker = loop {
        if let Some(worker) = server.workers().iter().find_map(runs) {
            break worker;
        }
    };
    let limits = Limits {
        details: !often,
        ..Limits::to_show(20)
    };
    let opened = Worker::of_pid(worker.pid())?.opened()?;
    let begin = now();
    let end = begin + ((seconds - 1.0) * 1e9) as u64;
    let (mut looks, mut left_out, mut torn) = (Vec::new(), Vec::new(), 0);
    let period = 1_000_000_000 / LOOKS_PER_SECOND;
    let mut moment = begin;
    while moment < end {
        std::thread::sleep(Duration::from_nanos(moment.saturating_sub(now())));
        let from = now();
        // Who comes late does not look again the sooner.
        moment = from + period;
        if looks.len() > left_out.len() {
            let (last_from, last_to, _) = looks[looks.len() - 1];
            while now() - from < last_to - last_from {}
            left_out.push((from, now(), 0));
            continue;
        }
        let before = read(ClockId::CLOCK_THREAD_CPUTIME_ID);
        let trace = match often {
            true => opened.backtrace(limits)?,
            false => worker.backtrace(limits)?,
        };
        if trace.frames.len() > 20 {
            looks.push((from, now(), read(ClockId::CLOCK_THREAD_CPUTIME_ID) - before));
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
    let still = |looks: &[Look]| -> Vec<u64> { looks.iter().map(|look| stood_still(look, &gaps)).collect() };
    let (at_looks, elsewhere) = (still(&looks), still(&left_out));
    let longest = |still: &[u64]| micros(still.iter().copied().max().unwrap_or(GAP).max(GAP));
    let long = |still: &[u64]| still.iter().filter(|time| **time > 1_000_000).count();
    println!(
        "| {what} | {} | {} | {:.0}, {:.0} | {} | {:.0}, {:.0} | {}, {} |",
        if often { "profile" } else { "slowlog" },
        if busy {
            "busy with something else"
        } else {
            "one for each of the two"
        },
        micros(times[times.len() / 2]),
        micros(times[times.len() - 1]),
        looks.len(),
        longest(&at_looks),
        longest(&elsewhere),
        long(&at_looks),
        long(&elsewhere),
    );
    Ok(())
}

/// What a slice has shown.
struct Slice {
    rate: f64,
    /// Processor time of the workers for a request, µs.
    worker: f64,
    /// Processor time of the profiler for a second, µs.
    profiler: f64,
}

fn profile(server: &Server, script: &str, name: &str, pairs: usize, seconds: f64) -> Result<(), Box<dyn Error>> {
    let request = Request::new(script, true, "GET", "", b"", false);
    let workers = server.workers();
    let mut profiler = Profiler::start(server.pids()[0], &server.home.join("profile"))?;
    let slice = |profiler: &mut Profiler, profiled: bool| -> Result<Slice, Box<dyn Error>> {
        profiler.run(profiled)?;
        let (before, its) = (cores_of(&workers), cores_of(&[profiler.pid()]));
        let round = load::run(&server.address, &request, 2, Duration::from_secs_f64(seconds), None);
        let (after, its_after) = (cores_of(&workers), cores_of(&[profiler.pid()]));
        Ok(Slice {
            rate: round.rate,
            worker: (after - before) / 1e3 / round.requests,
            profiler: (its_after - its) / 1e3 / (round.requests / round.rate),
        })
    };
    slice(&mut profiler, false)?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        for profiled in [pair % 2 == 1, pair % 2 == 0] {
            let of = if profiled { &mut with } else { &mut without };
            of.push(slice(&mut profiler, profiled)?);
        }
    }
    let took = median(&with, |slice| slice.profiler);
    println!(
        "| {name} | {:.0}, {:.0} | {} | {:.1}, {:.1} | {} | {:.1}, {:.0} |",
        median(&without, |slice| slice.rate),
        median(&with, |slice| slice.rate),
        more(&with, &without, |slice| 1.0 / slice.rate),
        median(&without, |slice| slice.worker),
        median(&with, |slice| slice.worker),
        more(&with, &without, |slice| slice.worker),
        took / 1e4,
        took / f64::from(HERTZ) / workers.len() as f64,
    );
    Ok(())
}

/// By how much there is more of something with a profile, %: the median of the pairs, and its 95 % confidence interval.
fn more(with: &[Slice], without: &[Slice], of: fn(&Slice) -> f64) -> String {
    let pairs = with.iter().zip(without);
    let mut more: Vec<f64> = pairs
        .map(|(with, without)| 100.0 * (of(with) / of(without) - 1.0))
        .collect();
    more.sort_by(f64::total_cmp);
    let (middle, last) = (more.len() / 2, more.len() - 1);
    // So many of the sorted ones lie between the median and each end of its interval, by the binomial distribution.
    let aside = (0.98 * (more.len() as f64).sqrt()).ceil() as usize;
    let ends = (middle.saturating_sub(aside), (middle + aside).min(last));
    format!("{:.1} ({:.1} to {:.1})", more[middle], more[ends.0], more[ends.1])
}

fn median(slices: &[Slice], of: fn(&Slice) -> f64) -> f64 {
    let mut values: Vec<f64> = slices.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// `php-pool profile` of a pool, which only runs when it shall.
struct Profiler(Child);

impl Profiler {
    fn start(master: i32, output: &Path) -> Result<Self, Box<dyn Error>> {
        let mut command = Command::new(php_pool());
        command.args(["profile", &master.to_string(), "--hertz", &HERTZ.to_string()]);
        command.args(["--seconds", "3600", "--output"]).arg(output);
        let mut profiler = Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        // It samples from when it has found the workers: it has a second thread then.
        while std::fs::read_dir(format!("/proc/{}/task", profiler.pid()))?.count() < 2 {
            profiler.run(true)?;
        }
        Ok(profiler)
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// Lets it run or stops it. It must not have ended.
    fn run(&mut self, run: bool) -> Result<(), Box<dyn Error>> {
        if let Some(status) = self.0.try_wait()? {
            return Err(format!("the profiler has ended with {status}").into());
        }
        let signal = if run { Signal::SIGCONT } else { Signal::SIGSTOP };
        Ok(kill(Pid::from_raw(self.pid()), signal)?)
    }
}

impl Drop for Profiler {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// For how long the threads of processes have had a core, ns.
fn cores_of(pids: &[i32]) -> f64 {
    let tasks = pids
        .iter()
        .flat_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten());
    let texts = tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok());
    texts
        .filter_map(|text| text.split(' ').next()?.parse::<f64>().ok())
        .sum()
}
