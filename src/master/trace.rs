//! Backtraces of workers: for the slowlog, and for who asks at the control socket.
//!
//! A worker can hold up whoever reads its memory, and the owner of a folder whoever writes a file there. So neither is done
//! by the loop, but on threads; a worker has at most one of them, and nobody waits for one for ever.
#![forbid(unsafe_code)]

use std::future::Future;
use std::io::Write;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

use super::context::Context;
use super::log_file;
use super::users::Identity;
use super::worker::Worker;
use crate::api::{Happened, Traced};
use crate::config::Pool;
use crate::log::{Clock, errno};
use crate::scoreboard::{SlotView, TraceLayout, realtime_us};
use crate::trace::slowlog::{SlowRequest, calls, record};
use crate::trace::{self, Limits, TraceError};

/// How long a thread may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(2);

/// Does what the worker can hold up. None: it does, or a thread before this one is still held up.
fn aside<T, W>(worker: &Worker, work: W) -> impl Future<Output = Option<T>> + use<T, W>
where
    T: Send + 'static,
    W: FnOnce() -> T + Send + 'static,
{
    let (send, result) = oneshot::channel();
    let started = worker.begin_trace().map(|under_way| {
        thread::Builder::new().name("trace".to_owned()).spawn(move || {
            let _ = send.send(work());
            drop(under_way);
        })
    });
    async move {
        if !matches!(started, Some(Ok(_))) {
            return None;
        }
        tokio::time::timeout(PATIENCE, result).await.ok()?.ok()
    }
}

/// The worker as the tracer knows it.
fn target(worker: &Worker, layout: TraceLayout) -> Option<trace::Worker> {
    let process = worker.process.as_ref()?;
    let pidfd = process.as_fd().try_clone_to_owned().ok()?;
    Some(trace::Worker::new(process.pid(), pidfd, layout))
}

/// Writes the record of a request that has run for `took`, and tells who watches.
pub fn slow(
    ctx: &Rc<Context>,
    pool: &Pool,
    identity: &Identity,
    worker: &Worker,
    view: SlotView,
    layout: TraceLayout,
    took: Duration,
) {
    let (Some(path), Some(target)) = (pool.slowlog.clone(), target(worker, layout)) else {
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
    let (script, uri, request_id) = (slow.script.clone(), slow.uri.clone(), slow.id.clone());
    let (identity, depth) = (identity.clone(), pool.request_slowlog_trace_depth);
    ctx.log.notice(format_args!("about to trace {pid}"));
    let done = aside(worker, move || {
        let trace = target.backtrace(Limits::to_show(depth as usize, false));
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
    let (ctx, pool) = (ctx.clone(), pool.name.clone());
    tokio::task::spawn_local(async move {
        let (trace, written) = done.await.unwrap_or((Err(TraceError::HeldUp(pid)), Ok(())));
        for problem in [trace.as_ref().err().map(ToString::to_string), written.err()]
            .into_iter()
            .flatten()
        {
            ctx.log.pool(&pool).error(problem);
        }
        ctx.log.notice(format_args!("finished trace of {pid}"));
        ctx.happened(&Happened::SlowRequest {
            pool,
            pid,
            script,
            uri,
            request_id,
            milliseconds: took.as_millis() as u64,
            backtrace: trace.map(|trace| calls(&trace, depth)).unwrap_or_default(),
        });
    });
}

/// What a worker does now.
pub fn ask(
    pool: &str,
    worker: &Worker,
    view: &SlotView,
    layout: TraceLayout,
    now: Duration,
    limits: Limits,
) -> Option<impl Future<Output = Traced> + use<>> {
    let target = target(worker, layout)?;
    let (pool, pid) = (pool.to_owned(), target.pid());
    let took = now.saturating_sub(Duration::from_nanos(view.started));
    let request_id = view.text.as_ref().map(|text| text.id.clone());
    let done = aside(worker, move || target.backtrace(limits));
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
