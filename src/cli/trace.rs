//! `php-pool trace` and `php-pool profile`.

use std::fmt::Write;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::ask::{Whom, ask};
use crate::api::{Answer, ApiError, Question, Traced};
use crate::trace::process::{TraceError, Worker, family};
use crate::trace::profile::{self, Profile};
use crate::trace::text::lines;
use crate::trace::{Backtrace, End, Limits};

/// How long a worker may take to be read, and a master to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What `php-pool trace` takes.
#[derive(Args, Debug)]
pub struct TraceArgs {
    #[command(flatten)]
    whom: Target,
    /// Most frames of each, the innermost first
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1000))]
    depth: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `php-pool profile` takes.
#[derive(Args, Debug)]
pub struct ProfileArgs {
    #[command(flatten)]
    whom: Target,
    /// For how long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Samples a second
    #[arg(long, default_value_t = 99, value_parser = clap::value_parser!(u32).range(1..=1000))]
    hertz: u32,
    /// Writes PREFIX.folded, PREFIX.svg and PREFIX.speedscope.json
    #[arg(long, default_value = "php-pool-profile", value_name = "PREFIX")]
    output: PathBuf,
}

/// Whose workers.
#[derive(Args, Clone, Debug)]
struct Target {
    /// The pool; or the pid of a worker, or of a process above workers
    #[arg(required_unless_present = "control", value_name = "POOL|PID")]
    target: Option<String>,
    /// The control socket of a master that systemd has not started
    #[arg(long, value_name = "SOCKET", conflicts_with = "target")]
    control: Option<PathBuf>,
}

impl Target {
    /// No pool's name consists of digits alone when somebody means a process.
    fn pid(&self) -> Option<i32> {
        self.target.as_ref()?.parse().ok().filter(|pid| *pid > 0)
    }

    fn socket(&self) -> PathBuf {
        Whom {
            pool: self.target.clone(),
            control: self.control.clone(),
        }
        .socket()
    }

    fn name(&self) -> String {
        let control = || self.control.as_ref().map(|path| path.display().to_string());
        self.target.clone().or_else(control).unwrap_or_default()
    }
}

/// Prints what workers do now. Exit status: 0, or 1 when that is not known of each.
pub fn trace(args: &TraceArgs) -> i32 {
    let traces = match args.whom.pid() {
        Some(pid) => below(pid, args.depth),
        None => match ask(
            &args.whom.socket(),
            &Question::Trace { depth: args.depth },
            Some(PATIENCE),
        ) {
            Ok(Answer::Traces { traces }) => Ok(traces),
            Ok(other) => Err(ApiError::Refused(format!("an unexpected answer: {other:?}")).to_string()),
            Err(error) => Err(error.to_string()),
        },
    };
    let traces = match traces {
        Ok(traces) => traces,
        Err(problem) => {
            eprintln!("php-pool: {problem}");
            return 1;
        }
    };
    let text = if args.json {
        format!(
            "{}\n",
            serde_json::to_string_pretty(&traces).expect("a trace is plain data")
        )
    } else {
        traces
            .iter()
            .map(|traced| show(traced, args.depth as usize))
            .collect::<Vec<_>>()
            .join("\n")
    };
    // Whoever reads us may have seen enough.
    let _ = io::stdout().write_all(text.as_bytes());
    i32::from(traces.iter().any(|traced| traced.problem.is_some()))
}

/// A process, and those below it that have a request.
fn below(named: i32, depth: u32) -> Result<Vec<Traced>, String> {
    let limits = Limits::to_show(depth as usize);
    let mut all = Vec::new();
    let mut workers = false;
    for pid in family(named) {
        let result = backtrace_of(pid, limits);
        if matches!(result, Err(TraceError::NoWorker(_) | TraceError::Gone(_))) {
            continue;
        }
        workers = true;
        // Who names one wants to hear that it is idle; of many, those that are not.
        if pid == named || !matches!(&result, Ok(trace) if trace.request.is_none()) {
            let problem = result.as_ref().err().map(ToString::to_string);
            all.push(Traced {
                pool: None,
                pid,
                milliseconds: None,
                request_id: None,
                backtrace: result.ok(),
                problem,
            });
        }
    }
    match workers {
        true => Ok(all),
        false => Err(format!(
            "neither process {named} nor one below it is a worker of php-pool"
        )),
    }
}

/// On a thread of its own, as a worker can hold up its reader for as long as it likes.
fn backtrace_of(pid: i32, limits: Limits) -> Result<Backtrace, TraceError> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || drop(send.send(Worker::of_pid(pid).and_then(|worker| worker.backtrace(limits)))));
    receive.recv_timeout(PATIENCE).unwrap_or(Err(TraceError::HeldUp(pid)))
}

/// As PHP prints a backtrace, with types in the place of arguments.
pub(super) fn show(traced: &Traced, depth: usize) -> String {
    let mut out = traced.pid.to_string();
    if let Some(pool) = &traced.pool {
        let _ = write!(out, ", pool {pool}");
    }
    if let Some(milliseconds) = &traced.milliseconds {
        let _ = write!(out, ", {milliseconds} ms");
    }
    if let Some(id) = &traced.request_id {
        let _ = write!(out, ", request {}", id.escape_debug());
    }
    let Some(trace) = &traced.backtrace else {
        return format!("{out}: {}\n", traced.problem.as_deref().unwrap_or_default());
    };
    let Some(request) = &trace.request else {
        return format!("{out}: no request\n");
    };
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let _ = write!(out, ": {} {}", text(&request.method), text(&request.uri));
    for query in request.query.iter().filter(|query| !query.is_empty()) {
        let _ = write!(out, "?{query}");
    }
    let _ = writeln!(out, "  {}", text(&request.script));
    for line in lines(trace, depth) {
        let _ = writeln!(out, "{line}");
    }
    out.push_str(match trace.end {
        _ if trace.frames.len() > depth => "(more frames are left out; see --depth)\n",
        End::Complete => "",
        End::Limit => "(more frames are left out; see --depth)\n",
        End::Unreadable => "(the next frame cannot be read)\n",
        End::Circle => "(the stack runs in a circle)\n",
    });
    if !trace.steady {
        out.push_str("(the script ran too fast for its innermost frames to be read)\n");
    }
    out
}

/// Samples workers and writes the profile. Exit status: 0, or 1 when there is none.
pub fn profile(args: &ProfileArgs) -> i32 {
    let find = match finder(&args.whom) {
        Ok(find) => find,
        Err(problem) => {
            eprintln!("php-pool: {problem}");
            return 1;
        }
    };
    // Each worker takes two.
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
    let (profile, blocked) = profile::record(find, args.hertz, Duration::from_secs(args.seconds));
    if let Some(pid) = blocked {
        eprintln!("php-pool: {}; the profile ends there", TraceError::HeldUp(pid));
    }
    let (all, busy) = profile.samples();
    if busy == 0 {
        eprintln!(
            "php-pool: nothing to show: none of {all} samples of {} workers is of a request",
            profile.workers()
        );
        return 1;
    }
    let title = format!("php-pool {}, {} s", args.whom.name(), args.seconds);
    match write_all(&profile, &title, &args.output) {
        Ok(written) => {
            println!(
                "{busy} of {all} samples of {} workers are of requests ({} moments, {} left out; {:.0} ms of processor time)",
                profile.workers(),
                profile.moments,
                profile.missed,
                profile.cost.as_secs_f64() * 1000.0
            );
            written.iter().for_each(|path| println!("{}", path.display()));
            0
        }
        Err((path, error)) => {
            eprintln!("php-pool: {} cannot be written: {error}", path.display());
            1
        }
    }
}

/// Who looks for workers again and again. A first look finds what is wrong with all of them.
fn finder(whom: &Target) -> Result<Box<dyn FnMut() -> Vec<i32> + Send>, String> {
    let mut find: Box<dyn FnMut() -> Result<Vec<i32>, String> + Send> = match whom.pid() {
        Some(pid) => Box::new(move || Ok(family(pid))),
        None => {
            let socket = whom.socket();
            Box::new(move || match ask(&socket, &Question::Status, Some(PATIENCE)) {
                Ok(Answer::Status { pools }) => {
                    let workers = pools.iter().flat_map(|pool| &pool.snapshot.processes);
                    Ok(workers.map(|worker| worker.pid).collect())
                }
                Ok(other) => Err(format!("an unexpected answer: {other:?}")),
                Err(error) => Err(error.to_string()),
            })
        }
    };
    let first = find()?;
    let refused = |pid: &i32| match Worker::of_pid(*pid) {
        Err(error @ (TraceError::Refused { .. } | TraceError::OtherVersion(_))) => Some(error.to_string()),
        _ => None,
    };
    match first.iter().find_map(refused) {
        Some(problem) => Err(problem),
        // A master that does not answer once is still there, or its workers are gone too.
        None => Ok(Box::new(move || find().unwrap_or_default())),
    }
}

fn write_all(profile: &Profile, title: &str, prefix: &Path) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let folded = profile.folded().join("\n") + "\n";
    let svg = profile.svg(title).map_err(|error| (prefix.to_owned(), error))?;
    let speedscope = profile.speedscope(title).to_string();
    let mut written = Vec::new();
    for (suffix, bytes) in [
        ("folded", folded.as_bytes()),
        ("svg", &svg),
        ("speedscope.json", speedscope.as_bytes()),
    ] {
        let mut path = prefix.as_os_str().to_owned();
        path.push(format!(".{suffix}"));
        let path = PathBuf::from(path);
        // Root writes this, maybe in /tmp: it must not follow what somebody else has laid there.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path);
        file.and_then(|mut file| file.write_all(bytes))
            .map_err(|error| (path.clone(), error))?;
        written.push(path);
    }
    Ok(written)
}
