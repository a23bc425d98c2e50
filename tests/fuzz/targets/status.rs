//! Status queries, and the strings of requests on status pages.

use php_pool::api::{Measured, PoolStatus, State};
use php_pool::config::Pm;
use php_pool::scoreboard::{SlotView, Stage};
use php_pool::status::{Exposition, Format, PoolMetrics, ProcessStatus, Resources, Snapshot, StatusPage, View, fields};

use super::Cursor;

/// Keys of queries, and what breaks out of a format.
pub const WORDS: &[&str] = &[
    "full&html",
    "json",
    "xml",
    "openmetrics",
    "text/html",
    "]]>",
    "</td>",
    "\",\"",
    "-->",
    "\n# EOF\n",
];

/// No string of a request adds a line, an element or a member to any page.
pub fn pages(data: &[u8]) {
    let mut cursor = Cursor(data);
    View::of(cursor.text(), cursor.text());
    let mut snapshot = quiet();
    let process = &mut snapshot.processes[0];
    for text in [
        &mut process.method,
        &mut process.uri,
        &mut process.query,
        &mut process.user,
        &mut process.script,
        &mut process.request_id,
    ] {
        *text = cursor.string();
    }
    process.start_time = cursor.number() as i64;
    process.start_since = cursor.number();
    process.request_duration = cursor.number();
    process.last_request_cpu = cursor.number() as f64;
    snapshot.start_time = cursor.number() as i64;
    render(&snapshot);
}

/// Renders everything, and compares its structure with that of a harmless snapshot.
pub fn render(snapshot: &Snapshot) {
    let mut harmless = quiet();
    harmless.memory_peak = snapshot.memory_peak;
    // Which parts there are depends on what is empty, which a dash stands for, and on what the worker does.
    let (theirs, ours) = (&snapshot.processes[0], &mut harmless.processes[0]);
    let like = |text: &str| {
        if matches!(text, "" | "-") {
            text.to_owned()
        } else {
            "x".to_owned()
        }
    };
    (ours.method, ours.uri, ours.query) = (like(&theirs.method), like(&theirs.uri), like(&theirs.query));
    (ours.user, ours.script, ours.stage) = (like(&theirs.user), like(&theirs.script), theirs.stage);
    ours.request_id = like(&theirs.request_id);
    (ours.content_length, ours.last_request_memory) = (theirs.content_length, theirs.last_request_memory);
    ours.last_request_cpu = theirs.last_request_cpu;
    let mut page = StatusPage::default();
    for format in [
        Format::Text,
        Format::Html,
        Format::Browser,
        Format::Xml,
        Format::Json,
        Format::Openmetrics,
    ] {
        let view = View { format, full: true };
        let (hostile, calm) = (
            page.reply(snapshot, view, false).body,
            page.reply(&harmless, view, false).body,
        );
        let count = |text: &str, wanted: &[char]| text.matches(wanted).count();
        match format {
            Format::Text | Format::Openmetrics => assert_eq!(count(&hostile, &['\n']), count(&calm, &['\n'])),
            Format::Html | Format::Browser | Format::Xml => {
                assert_eq!(count(&hostile, &['<']), count(&calm, &['<']), "{hostile}");
                assert_eq!(count(&hostile, &['"']), count(&calm, &['"']), "{hostile}");
                assert!(hostile.chars().all(|c| c >= ' ' || "\t\r\n".contains(c)));
            }
            Format::Json => {
                let value: serde_json::Value = serde_json::from_str(&hostile).expect("it is JSON");
                let process = &value["processes"][0];
                assert_eq!(value["processes"].as_array().map(Vec::len), Some(1));
                assert_eq!(process.as_object().map(serde_json::Map::len), Some(13));
                let or_dash = |text: &str| {
                    if text.is_empty() {
                        "-".to_owned()
                    } else {
                        text.to_owned()
                    }
                };
                assert_eq!(process["user"], or_dash(&theirs.user));
                assert_eq!(process["script"], or_dash(&theirs.script));
            }
        }
    }
    for exposition in [Exposition::OpenMetrics, Exposition::Prometheus] {
        let lines = |snapshot: &Snapshot| {
            let pool = PoolMetrics {
                pool: "www".to_owned(),
                status: Some(PoolStatus {
                    state: State::Running,
                    generation: 1,
                    failure: None,
                    max_children: 5,
                    measured: Measured::default(),
                    user: None,
                    uid: None,
                    snapshot: snapshot.clone(),
                }),
                resources: Resources::default(),
            };
            exposition.of_pools(vec![pool]).lines().count()
        };
        assert_eq!(lines(snapshot), lines(&harmless));
    }
    assert_eq!(fields(snapshot).len(), fields(&harmless).len());
}

/// A pool with one worker.
fn quiet() -> Snapshot {
    let process = ProcessStatus {
        pid: 7,
        stage: Stage::Running,
        start_time: 1_795_000_000,
        start_since: 1,
        requests: 1,
        request_duration: 1,
        method: String::new(),
        uri: String::new(),
        query: String::new(),
        content_length: 0,
        user: String::new(),
        script: String::new(),
        request_id: String::new(),
        last_request_cpu: 0.0,
        last_request_memory: 0,
    };
    Snapshot {
        pool: "www".to_owned(),
        pm: Pm::Static,
        start_time: 1_795_000_000,
        start_since: 1,
        accepted: 1,
        listen_queue: 0,
        max_listen_queue: 0,
        listen_queue_len: 511,
        idle: 0,
        active: 1,
        max_active: 1,
        max_children_reached: 0,
        slow_requests: 0,
        memory_peak: None,
        processes: vec![process],
    }
}

/// A pool whose one worker says this of itself.
pub fn snapshot_of(view: &SlotView) -> Snapshot {
    let mut snapshot = quiet();
    let process = &mut snapshot.processes[0];
    process.stage = view.stage;
    process.requests = view.requests;
    process.request_duration = view.duration / 1000;
    process.content_length = view.content_length;
    process.last_request_memory = view.memory;
    snapshot.memory_peak = Some(view.memory_peak);
    let text = view.text.clone().unwrap_or_default();
    (process.method, process.uri, process.query) = (text.method, text.uri, text.query);
    (process.user, process.script, process.request_id) = (text.user, text.script, text.id);
    snapshot
}
