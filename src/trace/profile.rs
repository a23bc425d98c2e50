//! Where the time of workers goes: their backtraces many times a second, added up.
//!
//! Time is that of the clock, not of the processor: a script that waits for its database is seen waiting.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::{Value, json};

use super::process::{Opened, TraceError, Worker};
use super::reader::{Backtrace, Frame, Kind, Limits};

/// How deep stacks are read; a flame of that height is no longer looked at.
const LIMITS: Limits = Limits {
    frames: 256,
    details: false,
};
/// How often it is asked which workers there are,
const LOOK_FOR_WORKERS: Duration = Duration::from_secs(1);
/// but for at most one part in so many of the time.
const RARELY: u32 = 250;
/// After this long without a sample a worker is taken to hold us up on purpose.
const PATIENCE: Duration = Duration::from_secs(2);
/// The empty stack: between requests.
const IDLE: u32 = 0;
/// Most text of boxes that is kept, bytes: a worker can have a new name for each look. What comes later is one box.
const MOST_TEXT: usize = 32 << 20;
/// Most stacks that are kept; what comes later is one stack.
const MOST_STACKS: usize = 1 << 16;
/// The box of what is beyond.
const BEYOND: &str = "[beyond]";

/// A box of the flame graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Point {
    name: String,
    file: Option<String>,
}

/// Backtraces, added up.
#[derive(Debug)]
pub struct Profile {
    /// Samples a second.
    hertz: u32,
    /// Moments at which every worker was looked at.
    pub moments: u64,
    /// Moments that were left out as the machine was too busy.
    pub missed: u64,
    /// Processor time that sampling took.
    pub cost: Duration,
    points: Vec<Point>,
    /// Bytes of their texts.
    text: usize,
    point_ids: HashMap<Point, u32>,
    /// Outermost first.
    stacks: Vec<Vec<u32>>,
    stack_ids: HashMap<Vec<u32>, u32>,
    /// What each worker did, in order: a stack, and how often it was seen in a row.
    workers: BTreeMap<i32, Vec<(u32, u32)>>,
}

impl Profile {
    fn new(hertz: u32) -> Self {
        Self {
            hertz,
            moments: 0,
            missed: 0,
            cost: Duration::ZERO,
            points: Vec::new(),
            text: 0,
            point_ids: HashMap::new(),
            stacks: vec![Vec::new()],
            stack_ids: HashMap::from([(Vec::new(), IDLE)]),
            workers: BTreeMap::new(),
        }
    }

    fn add(&mut self, pid: i32, trace: &Backtrace) {
        let mut stack = Vec::with_capacity(trace.frames.len());
        for frame in trace.frames.iter().rev() {
            stack.push(self.point(Point {
                name: label(frame),
                file: frame.file.clone(),
            }));
        }
        if stack.is_empty() && trace.request.is_some() {
            // The start and the end of a request, and compiling its script.
            stack.push(self.point(Point {
                name: "[engine]".to_owned(),
                file: None,
            }));
        }
        if self.stacks.len() >= MOST_STACKS && !self.stack_ids.contains_key(&stack) {
            stack = vec![self.beyond()];
        }
        let next = self.stacks.len() as u32;
        let id = *self.stack_ids.entry(stack).or_insert_with_key(|stack| {
            self.stacks.push(stack.clone());
            next
        });
        let samples = self.workers.entry(pid).or_default();
        match samples.last_mut() {
            Some((last, count)) if *last == id => *count += 1,
            _ => samples.push((id, 1)),
        }
    }

    fn point(&mut self, point: Point) -> u32 {
        if self.text >= MOST_TEXT && !self.point_ids.contains_key(&point) {
            return self.beyond();
        }
        self.known(point)
    }

    fn beyond(&mut self) -> u32 {
        self.known(Point {
            name: BEYOND.to_owned(),
            file: None,
        })
    }

    fn known(&mut self, point: Point) -> u32 {
        let next = self.points.len() as u32;
        *self.point_ids.entry(point).or_insert_with_key(|point| {
            self.text += point.name.len() + point.file.as_ref().map_or(0, String::len);
            self.points.push(point.clone());
            next
        })
    }

    /// How many backtraces there are, and how many of them of a request.
    pub fn samples(&self) -> (u64, u64) {
        let all = self.workers.values().flatten();
        all.fold((0, 0), |(all, busy), (stack, count)| {
            let count = u64::from(*count);
            (all + count, if *stack == IDLE { busy } else { busy + count })
        })
    }

    /// How many workers were seen.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// One line for each stack: its frames, the outermost first, and how often it was seen. The input of flame graph tools.
    pub fn folded(&self) -> Vec<String> {
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for (stack, count) in self.workers.values().flatten().filter(|(stack, _)| *stack != IDLE) {
            let names: Vec<String> = self.stacks[*stack as usize]
                .iter()
                .map(|point| self.folded_name(*point))
                .collect();
            *counts.entry(names.join(";")).or_default() += u64::from(*count);
        }
        counts.iter().map(|(stack, count)| format!("{stack} {count}")).collect()
    }

    fn folded_name(&self, point: u32) -> String {
        let separates = |c: char| c == ';' || c.is_whitespace();
        self.points[point as usize].name.replace(separates, "_")
    }

    /// A flame graph, to be opened in a browser.
    ///
    /// # Errors
    /// When there is no sample to draw.
    pub fn svg(&self, title: &str) -> io::Result<Vec<u8>> {
        let mut options = inferno::flamegraph::Options::default();
        options.title = title.to_owned();
        options.hash = true;
        options.deterministic = true;
        let (all, busy) = self.samples();
        options.subtitle = Some(format!(
            "{busy} of {all} samples of {} workers are of requests, {} a second",
            self.workers(),
            self.hertz
        ));
        let mut svg = Vec::new();
        let lines = self.folded();
        inferno::flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut svg)?;
        Ok(svg)
    }

    /// The file format of speedscope.app, with one profile for each worker, in order of time.
    pub fn speedscope(&self, title: &str) -> Value {
        let frames: Vec<Value> = (self.points.iter())
            .map(|point| match &point.file {
                Some(file) => json!({ "name": point.name, "file": file }),
                None => json!({ "name": point.name }),
            })
            .collect();
        let seconds = |count: u32| f64::from(count) / f64::from(self.hertz);
        let profiles: Vec<Value> = (self.workers.iter())
            .map(|(pid, samples)| {
                let stacks: Vec<&Vec<u32>> = samples.iter().map(|(stack, _)| &self.stacks[*stack as usize]).collect();
                let weights: Vec<f64> = samples.iter().map(|(_, count)| seconds(*count)).collect();
                json!({
                    "type": "sampled",
                    "name": format!("worker {pid}"),
                    "unit": "seconds",
                    "startValue": 0,
                    "endValue": seconds(samples.iter().map(|(_, count)| count).sum()),
                    "samples": stacks,
                    "weights": weights,
                })
            })
            .collect();
        json!({
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "exporter": concat!("php-pool ", env!("CARGO_PKG_VERSION")),
            "name": title,
            "shared": { "frames": frames },
            "profiles": profiles,
        })
    }
}

/// Code outside of functions goes by its file.
fn label(frame: &Frame) -> String {
    let file = frame.file.as_deref().unwrap_or("???");
    match frame.kind {
        Kind::Function => frame.name(),
        Kind::Main => file.to_owned(),
        Kind::Include => format!("include {file}"),
        Kind::Eval => format!("eval {file}"),
    }
}

/// Samples the workers that `find` names, now and once a second, until `duration` has passed. With the profile comes the
/// worker that held the sampling up, when one did: the profile ends there.
pub fn record<F>(find: F, hertz: u32, duration: Duration) -> (Profile, Option<i32>)
where
    F: FnMut() -> Vec<i32> + Send + 'static,
{
    let shared = Arc::new(Shared {
        profile: Mutex::new(Profile::new(hertz)),
        reading: AtomicI32::new(0),
        reads: AtomicU64::new(0),
    });
    let (done, finished) = mpsc::channel();
    let sampler = Sampler {
        shared: Arc::clone(&shared),
        find,
        workers: BTreeMap::new(),
    };
    // Not joined: if a worker holds it up, it ends with this process.
    thread::spawn(move || {
        sampler.run(hertz, duration);
        let _ = done.send(());
    });
    let mut seen = u64::MAX;
    let mut blocked = None;
    while let Err(mpsc::RecvTimeoutError::Timeout) = finished.recv_timeout(PATIENCE) {
        let reads = shared.reads.load(Relaxed);
        let reading = shared.reading.load(Relaxed);
        if reading != 0 && reads == seen {
            blocked = Some(reading);
            break;
        }
        seen = reads;
    }
    let profile = std::mem::replace(&mut *shared.profile(), Profile::new(hertz));
    (profile, blocked)
}

struct Shared {
    profile: Mutex<Profile>,
    /// The worker that is being read; 0 is none.
    reading: AtomicI32,
    reads: AtomicU64,
}

impl Shared {
    fn profile(&self) -> MutexGuard<'_, Profile> {
        self.profile.lock().expect("nobody panics with the profile")
    }
}

struct Sampler<F> {
    shared: Arc<Shared>,
    find: F,
    workers: BTreeMap<i32, Opened>,
}

impl<F: FnMut() -> Vec<i32>> Sampler<F> {
    fn run(mut self, hertz: u32, duration: Duration) {
        let period = Duration::from_secs(1) / hertz.max(1);
        let start = Instant::now();
        let (mut next, mut look) = (start, start);
        while next < start + duration {
            thread::sleep(next.saturating_duration_since(Instant::now()));
            if next >= look {
                let begin = Instant::now();
                self.look_for_workers();
                look = next + LOOK_FOR_WORKERS.max(begin.elapsed() * RARELY);
            }
            self.sample();
            next += period;
            let late = Instant::now().saturating_duration_since(next);
            let missed = (late.as_nanos() / period.as_nanos()) as u32;
            next += period * missed;
            let mut profile = self.shared.profile();
            profile.missed += u64::from(missed);
            profile.cost = thread_time();
        }
    }

    fn look_for_workers(&mut self) {
        let pids = (self.find)();
        self.workers.retain(|pid, _| pids.contains(pid));
        for pid in pids {
            if !self.workers.contains_key(&pid)
                && let Ok(worker) = self.watched(pid, || Worker::of_pid(pid)?.opened())
            {
                self.workers.insert(pid, worker);
            }
        }
    }

    fn sample(&mut self) {
        let mut gone = Vec::new();
        for (pid, worker) in &self.workers {
            match self.watched(*pid, || worker.backtrace(LIMITS)) {
                // What could not be read as a whole at all is not the engine's time.
                Ok(trace) if trace.steady || !trace.frames.is_empty() => self.shared.profile().add(*pid, &trace),
                Err(TraceError::Gone(_)) => gone.push(*pid),
                Ok(_) | Err(_) => {}
            }
        }
        for pid in gone {
            self.workers.remove(&pid);
        }
        self.shared.profile().moments += 1;
    }

    /// Does what a worker may hold up.
    fn watched<T>(&self, pid: i32, read: impl FnOnce() -> T) -> T {
        self.shared.reading.store(pid, Relaxed);
        let result = read();
        self.shared.reads.fetch_add(1, Relaxed);
        self.shared.reading.store(0, Relaxed);
        result
    }
}

/// Processor time of this thread.
fn thread_time() -> Duration {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(Duration::ZERO, |usage| {
        let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        Duration::from_micros(micros.max(0) as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{End, RequestText};

    fn trace(names: &[(&str, Kind)], busy: bool) -> Backtrace {
        let frame = |(name, kind): &(&str, Kind)| Frame {
            address: 1,
            kind: *kind,
            class: None,
            function: (*kind == Kind::Function).then(|| (*name).to_owned()),
            file: (*kind != Kind::Function).then(|| (*name).to_owned()),
            line: None,
            arguments: Vec::new(),
            more_arguments: false,
        };
        Backtrace {
            request: busy.then(RequestText::default),
            frames: names.iter().rev().map(frame).collect(),
            end: End::Complete,
            steady: true,
        }
    }

    fn profile() -> Profile {
        let mut profile = Profile::new(100);
        let main = ("/srv/a b;c.php", Kind::Main);
        for (pid, names, busy) in [
            (7, &[][..], false),
            (7, &[main, ("f", Kind::Function)], true),
            (7, &[main, ("f", Kind::Function)], true),
            (8, &[main, ("f", Kind::Function)], true),
            (8, &[main, ("<g>", Kind::Function)], true),
            (8, &[], true),
        ] {
            profile.add(pid, &trace(names, busy));
        }
        profile
    }

    #[test]
    fn stacks_are_folded_over_all_workers_without_idle_time() {
        let expected = ["/srv/a_b_c.php;<g> 1", "/srv/a_b_c.php;f 3", "[engine] 1"];
        assert_eq!(profile().folded(), expected);
        assert_eq!(profile().samples(), (6, 5));
    }

    #[test]
    fn the_flame_graph_is_xml_with_every_name_in_it() {
        let svg = String::from_utf8(profile().svg("pool <www>").unwrap()).unwrap();
        for part in [
            "<svg",
            "pool &lt;www&gt;",
            "&lt;g&gt;",
            "/srv/a_b_c.php",
            "[engine]",
            "</svg>",
        ] {
            assert!(svg.contains(part), "{part} is missing in {svg}");
        }
        assert!(Profile::new(99).svg("empty").is_err());
    }

    #[test]
    fn speedscope_gets_a_profile_for_each_worker_in_order_of_time() {
        let json = profile().speedscope("www");
        let names: Vec<&str> = json["shared"]["frames"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| f["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["/srv/a b;c.php", "f", "<g>", "[engine]"]);
        assert_eq!(json["profiles"][0]["samples"], json!([[], [0, 1]]));
        assert_eq!(json["profiles"][0]["weights"], json!([0.01, 0.02]));
        assert_eq!(json["profiles"][1]["samples"], json!([[0, 1], [0, 2], [3]]));
        assert_eq!(json["profiles"][1]["endValue"], json!(0.03));
    }

    #[test]
    fn a_worker_with_ever_new_names_is_kept_within_bounds() {
        let look = |profile: &mut Profile, names: [String; 2]| {
            let names = names.each_ref().map(|name| (name.as_str(), Kind::Function));
            profile.add(7, &trace(&names, true));
        };
        let (mut texts, mut stacks) = (Profile::new(100), Profile::new(100));
        let (long, looks) = ("x".repeat(10_000), MOST_TEXT / 10_000 + 100);
        for number in 0..looks {
            look(&mut texts, ["f".to_owned(), format!("{number}{long}")]);
        }
        assert!(texts.text < MOST_TEXT + 20_000, "{}", texts.text);
        for number in 0..MOST_STACKS + 100 {
            look(&mut stacks, [(number % 300).to_string(), (number / 300).to_string()]);
        }
        assert_eq!(stacks.stacks.len(), MOST_STACKS + 1);
        assert_eq!(texts.samples().0, looks as u64);
        let folded = [texts.folded(), stacks.folded()].concat();
        assert_eq!(folded.iter().filter(|line| line.contains(BEYOND)).count(), 2);
    }

    #[test]
    fn a_process_that_is_no_worker_gives_no_samples() {
        let (profile, blocked) = record(|| vec![1, i32::MAX], 1000, Duration::from_millis(20));
        assert_eq!((profile.samples(), blocked), ((0, 0), None));
        assert!(profile.moments > 0);
    }
}
