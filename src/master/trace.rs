//! Backtraces of workers: for the slowlog, and for who asks at the control socket.
//!
//! A worker can hold up whoever reads its memory, and the owner of a folder whoever writes a file there. So neither is done
//! by the loop, but on threads; a worker has at most one of them, its pool so many that those of workers which have gone do not
//! add up, and nobody waits for one for ever.
#![forbid(unsafe_code)]

use std::future::Future;
use std::io::Write;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::SigSet;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::context::Context;
use super::log_file;
use super::users::Identity;
use super::worker::Worker;
use crate::api::{Happened, Traced};
use crate::config::Pool;
use crate::log::{Clock, Fields, Logger, MessageId, errno};
use crate::scoreboard::{SlotView, TraceLayout, realtime_us};
use crate::trace::slowlog::{SlowRequest, calls, record};
use crate::trace::text::lines;
use crate::trace::{self, Backtrace, Limits, Program, TraceError};

/// How long a thread may take before it is given up.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// The threads of one pool.
#[derive(Debug, Default)]
pub struct Threads(Arc<()>);

impl Threads {
    /// To be kept by a thread that is to read a worker's memory; None while that worker has one, or the pool has as many as that.
    fn begin(&self, worker: &Arc<()>, most: usize) -> Option<(Arc<()>, Arc<()>)> {
        let has_room = !is_read(worker) && Arc::strong_count(&self.0) <= most;
        has_room.then(|| (worker.clone(), self.0.clone()))
    }
}

/// Whether a thread reads the memory of the worker whose [`Worker::tracing`] this is.
pub fn is_read(worker: &Arc<()>) -> bool {
    Arc::strong_count(worker) > 1
}

/// Does what the worker can hold up. None: it does, or threads before this one are still held up.
fn aside<T, W>(worker: &Worker, of: Traceable<'_>, work: W) -> impl Future<Output = Option<T>> + use<T, W>
where
    T: Send + 'static,
    W: FnOnce() -> T + Send + 'static,
{
    let (send, result) = oneshot::channel();
    let started = of.threads.begin(&worker.tracing, of.workers).map(|under_way| {
        thread::Builder::new().name("trace".to_owned()).spawn(move || {
            // They are the loop's, which an exec must not lose.
            let _ = SigSet::all().thread_block();
            let _ = send.send(work());
            drop(under_way);
        })
    });
    // From here on, as whoever asks for many waits for one after the other.
    let until = Instant::now() + PATIENCE;
    async move {
        if !matches!(started, Some(Ok(_))) {
            return None;
        }
        tokio::time::timeout_at(until, result).await.ok()?.ok()
    }
}

/// What the tracer needs to know of a generation.
#[derive(Clone, Copy, Debug)]
pub struct Traceable<'a> {
    /// Those of its pool.
    pub threads: &'a Threads,
    /// Most workers that it can have.
    pub workers: usize,
    /// Where its PHP keeps what is read.
    pub layout: TraceLayout,
    /// What its processes run.
    pub program: Option<Program>,
}

/// The worker as the tracer knows it.
fn target(worker: &Worker, of: Traceable<'_>) -> Option<trace::Worker> {
    let process = worker.process.as_ref()?;
    let pidfd = process.as_fd().try_clone_to_owned().ok()?;
    Some(trace::Worker::new(process.pid(), pidfd, of.layout, of.program))
}

/// A request that was found slow.
#[derive(Debug)]
pub struct Found<'a> {
    /// Its worker.
    pub worker: &'a Worker,
    /// What the scoreboard has of it.
    pub view: SlotView,
    /// For how long it has run.
    pub took: Duration,
    /// php-fpm's line for it.
    pub line: String,
}

/// Writes the record of a slow request, and tells who watches.
///
/// A log of lines gets those of php-fpm around its trace; the journal one entry for all of it, with fields.
pub fn slow(ctx: &Rc<Context>, pool: &Pool, identity: &Identity, of: Traceable<'_>, found: Found<'_>) {
    let Found {
        worker,
        view,
        took,
        line,
    } = found;
    let (Some(path), Some(target)) = (pool.slowlog.clone(), target(worker, of)) else {
        return;
    };
    let pid = target.pid();
    let text = view.text.unwrap_or_default();
    let slow = SlowRequest {
        pool: pool.name.clone(),
        pid,
        script: text.script,
        method: text.method,
        uri: text.uri,
        query: text.query,
        id: text.id,
        duration: took,
    };
    let request = slow.clone();
    let (identity, depth) = (identity.clone(), pool.request_slowlog_trace_depth);
    let in_lines = !ctx.log.keeps_fields();
    if in_lines {
        let about = Fields {
            pool: Some(&pool.name),
            request_id: Some(&request.id),
            ..Fields::default()
        };
        ctx.log.about(about).warning(&line);
        ctx.log.notice(format_args!("about to trace {pid}"));
    }
    let done = aside(worker, of, move || {
        let trace = target.backtrace(Limits::to_show(depth as usize));
        let time = Clock::new("%d-%b-%Y %H:%M:%S")
            .at((realtime_us() / 1_000_000) as i64)
            .to_owned();
        let text = record(&time, &slow, trace.as_ref(), depth);
        let written = log_file::open(&path, &identity).and_then(|mut file| file.write_all(text.as_bytes()));
        (
            trace,
            written.map_err(|error| format!("unable to open slowlog ({}): {}", path.display(), errno(&error))),
        )
    });
    let ctx = ctx.clone();
    tokio::task::spawn_local(async move {
        let (trace, written) = done.await.unwrap_or((Err(TraceError::HeldUp(pid)), Ok(())));
        let log = ctx.log.pool(&request.pool);
        if let Err(problem) = written {
            log.error(problem);
        }
        if in_lines {
            if let Err(problem) = &trace {
                log.error(problem);
            }
            ctx.log.notice(format_args!("finished trace of {pid}"));
        } else {
            enter(&ctx.log, &request, &line, trace.as_ref(), depth);
        }
        ctx.happened(&Happened::SlowRequest {
            pool: request.pool,
            pid,
            script: request.script,
            uri: request.uri,
            request_id: request.id,
            milliseconds: took.as_millis() as u64,
            backtrace: trace.map(|trace| calls(&trace, depth)).unwrap_or_default(),
        });
    });
}

/// The journal's entry: php-fpm's line and the stack below it to be read, and all of it in fields.
fn enter(log: &Logger, slow: &SlowRequest, line: &str, trace: Result<&Backtrace, &TraceError>, depth: u32) {
    let (stack, problem) = match trace {
        Ok(trace) => (lines(trace, depth as usize).join("\n"), String::new()),
        Err(error) => (String::new(), error.to_string()),
    };
    let micros = slow.duration.as_micros().to_string();
    let more = [
        ("PHP_METHOD", slow.method.as_str()),
        ("PHP_DURATION_USEC", micros.as_str()),
        ("PHP_BACKTRACE", stack.as_str()),
        ("PHP_BACKTRACE_PROBLEM", problem.as_str()),
    ];
    let fields = Fields {
        pool: Some(&slow.pool),
        worker: Some(slow.pid),
        script: Some(&slow.script),
        uri: Some(&slow.uri),
        query: Some(&slow.query),
        request_id: Some(&slow.id),
        message_id: Some(MessageId::RequestSlow),
        more: &more,
    };
    log.about(fields).warning(format_args!("{line}\n{stack}{problem}"));
}

/// What a worker does now.
pub fn ask(
    pool: &str,
    worker: &Worker,
    view: &SlotView,
    of: Traceable<'_>,
    now: Duration,
    limits: Limits,
) -> Option<impl Future<Output = Traced> + use<>> {
    let target = target(worker, of)?;
    let (pool, pid) = (pool.to_owned(), target.pid());
    let took = now.saturating_sub(Duration::from_nanos(view.started));
    let request_id = view.text.as_ref().map(|text| text.id.clone());
    let done = aside(worker, of, move || target.backtrace(limits));
    Some(async move {
        let trace = done.await.unwrap_or(Err(TraceError::HeldUp(pid)));
        let problem = trace.as_ref().err().map(ToString::to_string);
        Traced {
            pool: Some(pool),
            pid,
            milliseconds: Some(took.as_millis() as u64),
            request_id,
            backtrace: trace.ok(),
            problem,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_of_workers_that_have_gone_do_not_add_up() {
        let (threads, worker) = (Threads::default(), Arc::default());
        let held_up = threads.begin(&worker, 4);
        assert!(held_up.is_some() && threads.begin(&worker, 4).is_none());
        // Each of another worker, which has taken the place of one that has ended.
        let others: Vec<_> = (0..100).filter_map(|_| threads.begin(&Arc::default(), 4)).collect();
        assert_eq!(others.len(), 3);
        drop(others);
        assert!(threads.begin(&Arc::default(), 4).is_some());
    }
}
