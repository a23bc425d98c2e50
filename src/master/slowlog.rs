//! Records of slow requests. Reading a process's memory and writing to a tenant's file can both take their time, so it is
//! not the loop that does it.
#![forbid(unsafe_code)]

use std::io::Write;
use std::os::fd::AsFd;
use std::time::Duration;

use super::context::Context;
use super::log_file;
use super::users::Identity;
use super::worker::Worker;
use crate::config::Pool;
use crate::log::{Clock, errno};
use crate::scoreboard::{Scoreboard, realtime_us};
use crate::trace::slowlog::{SlowRequest, limits, record};

/// Begins to trace a worker whose request has run for `took`.
pub fn trace(ctx: &Context, pool: &Pool, identity: &Identity, worker: &Worker, board: &Scoreboard, took: Duration) {
    let (Some(path), Some(process)) = (pool.slowlog.clone(), &worker.process) else {
        return;
    };
    let Ok(pidfd) = process.as_fd().try_clone_to_owned() else {
        return;
    };
    let pid = process.pid();
    let traced = crate::trace::Worker::new(pid, pidfd, board.header().trace_layout());
    let text = board.view(worker.slot as usize).text.unwrap_or_default();
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
    let (identity, depth) = (identity.clone(), pool.request_slowlog_trace_depth);
    let (log, name) = (ctx.log.clone(), pool.name.clone());
    log.pool(&name).debug(format_args!("about to trace {pid}"));
    let write = tokio::task::spawn_blocking(move || {
        let trace = traced.backtrace(limits(depth));
        let time = Clock::new("%d-%b-%Y %H:%M:%S")
            .at((realtime_us() / 1_000_000) as i64)
            .to_owned();
        let text = record(&time, &slow, trace.as_ref(), depth);
        let failed = |error| format!("unable to open slowlog ({}): {}", path.display(), errno(&error));
        log_file::open(&path, &identity)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(failed)
    });
    tokio::task::spawn_local(async move {
        match write.await {
            Ok(Err(problem)) => log.pool(&name).error(problem),
            _ => log.pool(&name).debug(format_args!("finished trace of {pid}")),
        }
    });
}
