//! The rows of a status page, from the scoreboard's views.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::worker::Worker;
use crate::scoreboard::{SlotView, Stage, realtime_us};
use crate::status::ProcessStatus;

/// One worker's row; None before it has a process.
pub fn process(worker: &Worker, view: &SlotView, now: Duration) -> Option<ProcessStatus> {
    let text = view.text.clone().unwrap_or_default();
    let idle = view.stage == Stage::Idle;
    let since_start = now.saturating_sub(worker.started);
    let running = now.saturating_sub(Duration::from_nanos(view.started));
    let duration = match view.stage.is_active() {
        true => running,
        false => Duration::from_nanos(view.duration), // of the last request, and 0 before the first
    };
    let cpu = if idle && view.duration > 0 {
        view.cpu as f64 / view.duration as f64 * 100.0
    } else {
        0.0
    };
    Some(ProcessStatus {
        pid: worker.pid()?,
        stage: view.stage,
        start_time: (realtime_us() / 1_000_000) as i64 - since_start.as_secs() as i64,
        start_since: since_start.as_secs(),
        requests: view.requests,
        request_duration: duration.as_micros() as u64,
        method: text.method,
        uri: text.uri,
        query: text.query,
        content_length: view.content_length,
        user: text.user,
        script: text.script,
        request_id: text.id,
        last_request_cpu: cpu,
        last_request_memory: if idle { view.memory } else { 0 },
    })
}
