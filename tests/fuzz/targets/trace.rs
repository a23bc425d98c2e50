//! The memory of a worker that is looked into: all of it is the worker's to write, and to change while it is read.

use std::time::Duration;

use php_pool::scoreboard::TraceLayout;
use php_pool::trace::memory::{Memory, ReadError};
use php_pool::trace::reader::{Backtrace, Limits, TEXT, read};
use php_pool::trace::slowlog::{SlowRequest, calls, record};
use php_pool::trace::text::lines;

use super::Cursor;

/// Where PHP 8.2 has things. The image is its own globals: each is a word at the beginning.
const LAYOUT: TraceLayout = TraceLayout {
    current_execute_data: 0,
    opline_before_exception: 8,
    server_context: 16,
    request_script: 24,
    request_method: 32,
    request_uri: 40,
    request_query: 48,
    generator_class: 56,
    exception_op: 64,
    exception_op_size: 96,
    execute_data_opline: 0,
    execute_data_func: 24,
    execute_data_this: 32,
    execute_data_type_info: 40,
    execute_data_num_args: 44,
    execute_data_prev: 48,
    execute_data_arguments: 80,
    zval_size: 16,
    zval_type: 8,
    function_type: 0,
    function_name: 8,
    function_scope: 16,
    op_array_num_args: 32,
    op_array_filename: 152,
    op_lineno: 24,
    string_type_info: 4,
    string_len: 16,
    string_val: 24,
    class_name: 8,
    object_class: 16,
    generator_execute_data: 56,
    generator_parent: 64,
    zygote: 0,
};

/// Everything below this is the image, again and again; so that what is no address leads somewhere too.
const END: u64 = 1 << 40;

/// An image that moves on by some bytes at each refresh.
struct Image<'a> {
    bytes: &'a [u8],
    moved: u64,
    step: u64,
    reads: u64,
}

impl Memory for Image<'_> {
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), ReadError> {
        self.reads += 1;
        let length = self.bytes.len() as u64;
        for (at, byte) in (0u64..).zip(into) {
            let at = address.wrapping_add(at);
            if length == 0 || at >= END {
                return Err(ReadError::Unmapped(at));
            }
            *byte = self.bytes[((at + self.moved) % length) as usize];
        }
        Ok(())
    }

    fn refresh(&mut self) {
        self.moved += self.step;
    }

    fn forget(&mut self) {
        self.refresh();
    }
}

/// Reading ends, within what its limits allow; and what comes of it can be shown, on lines of its own.
pub fn memory(data: &[u8]) {
    let mut cursor = Cursor(data);
    let (kind, frames, step) = (cursor.byte(), cursor.byte(), cursor.byte());
    let layout = match kind & 1 {
        0 => LAYOUT,
        _ => TraceLayout::from_words(std::array::from_fn(|_| u64::from(cursor.byte()))),
    };
    let limits = Limits {
        details: kind & 2 != 0,
        ..Limits::to_show(frames.into())
    };
    let mut image = Image {
        bytes: cursor.0,
        moved: 0,
        step: u64::from(step & 7),
        reads: 0,
    };
    let trace = read(&mut image, &layout, limits);
    // Sixteen times, each of it a stack three times and its frames once.
    assert!(
        image.reads <= 16 * (limits.frames as u64 + 1) * 120 + 1600,
        "{} reads",
        image.reads
    );
    if let Ok(trace) = trace {
        show(&trace, limits, frames.into());
    }
}

fn show(trace: &Backtrace, limits: Limits, depth: usize) {
    assert!(trace.frames.len() <= limits.frames);
    let request = trace
        .request
        .iter()
        .flat_map(|it| [&it.script, &it.method, &it.uri, &it.query])
        .flatten();
    let texts = trace.frames.iter().flat_map(|frame| {
        frame
            .file
            .iter()
            .chain(&frame.class)
            .chain(&frame.function)
            .chain(&frame.arguments)
    });
    for text in request.chain(texts) {
        assert!(text.len() <= 3 * TEXT && !text.contains(char::is_control), "{text:?}");
    }
    assert!(lines(trace, depth).len() <= depth);
    let slow = SlowRequest {
        pool: "www".to_owned(),
        duration: Duration::from_secs(1),
        ..SlowRequest::default()
    };
    let text = record("20-Nov-2026 20:57:36", &slow, Ok(trace), depth as u32);
    let failed = usize::from(text.contains("\n+++ dump failed\n"));
    assert_eq!(
        text.lines().count(),
        5 + calls(trace, depth as u32).len() + failed,
        "{text}"
    );
    let json = serde_json::to_string(trace).expect("it is plain data");
    assert_eq!(serde_json::from_str::<Backtrace>(&json).expect("it is our own"), *trace);
}
