//! The reader's side: copies, checked.

use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::atomic::fence;

use serde::{Deserialize, Serialize};

use super::{Histogram, Slot, Stage};

/// The strings of a request, made valid UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextView {
    /// REQUEST_METHOD
    pub method: String,
    /// Without the query.
    pub uri: String,
    /// QUERY_STRING
    pub query: String,
    /// Script
    pub script: String,
    /// User of Basic authentication
    pub user: String,
    /// Request id
    pub id: String,
}

/// A slot at one moment. Units as in [`Slot`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotView {
    /// What the worker does.
    pub stage: Stage,
    /// Start of the current or last request, CLOCK_MONOTONIC ns.
    pub started: u64,
    /// The same, CLOCK_REALTIME µs.
    pub started_epoch: u64,
    /// Since when it is in this stage, CLOCK_MONOTONIC ns.
    pub since: u64,
    /// Requests begun.
    pub requests: u64,
    /// Requests answered.
    pub finished: u64,
    /// Of the last request, ns.
    pub duration: u64,
    /// CPU time of the last request, ns.
    pub cpu: u64,
    /// Peak memory of the last request, bytes.
    pub memory: u64,
    /// That of the request which took most.
    pub memory_peak: u64,
    /// CONTENT_LENGTH
    pub content_length: u64,
    /// Total time of all requests, ns.
    pub busy: u64,
    /// How long requests took, µs.
    pub durations: Histogram,
    /// How long they had waited, µs.
    pub waits: Histogram,
    /// Their peak memory, bytes.
    pub memories: Histogram,
    /// None when the writer gave us no quiet moment.
    pub text: Option<TextView>,
}

/// How often a reader tries for a quiet moment. Writing takes well under a microsecond.
const TRIES: usize = 64;

impl SlotView {
    pub(super) fn read(slot: &Slot) -> Self {
        Self {
            // To all but the process manager, a spare is a worker that has not begun, and so is one that has left.
            stage: match slot.stage() {
                Stage::Held | Stage::Left => Stage::None,
                stage => stage,
            },
            started: slot.started.load(Relaxed),
            started_epoch: slot.started_epoch.load(Relaxed),
            since: slot.since.load(Relaxed),
            requests: slot.requests.load(Relaxed),
            finished: slot.finished.load(Relaxed),
            duration: slot.duration.load(Relaxed),
            cpu: slot.cpu.load(Relaxed),
            memory: slot.memory.load(Relaxed),
            memory_peak: slot.memory_peak.load(Relaxed),
            content_length: slot.content_length.load(Relaxed),
            busy: slot.busy.load(Relaxed),
            durations: slot.durations.read(),
            waits: slot.waits.read(),
            memories: slot.memories.read(),
            text: (0..TRIES).find_map(|_| read_text(slot)),
        }
    }

    /// Whether the worker has a request.
    pub fn is_active(&self) -> bool {
        self.stage.is_active()
    }
}

fn read_text(slot: &Slot) -> Option<TextView> {
    let before = slot.sequence.load(Acquire);
    if before & 1 != 0 {
        std::hint::spin_loop();
        return None;
    }
    let text = &slot.text;
    let raw = [
        text.method.read(),
        text.uri.read(),
        text.query.read(),
        text.script.read(),
        text.user.read(),
        text.id.read(),
    ];
    fence(Acquire);
    if slot.sequence.load(Relaxed) != before {
        return None;
    }
    let [method, uri, query, script, user, id] = raw.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Some(TextView {
        method,
        uri,
        query,
        script,
        user,
        id,
    })
}
