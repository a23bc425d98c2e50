//! A backtrace as PHP prints one, with types in the place of arguments.

use super::reader::{Backtrace, Frame, Kind};

/// A line for each frame, `#0 file(line): Class::method(int, array)`, the innermost first; at most `depth`.
pub fn lines(trace: &Backtrace, depth: usize) -> Vec<String> {
    let line = |(index, frame): (usize, &Frame)| match (frame.kind, trace.call_site(index)) {
        (Kind::Main, _) => format!("#{index} {{main}}"),
        (_, Some((file, line))) => format!("#{index} {file}({line}): {}", call(frame)),
        (_, None) => format!("#{index} [engine]: {}", call(frame)),
    };
    trace.frames.iter().enumerate().take(depth).map(line).collect()
}

fn call(frame: &Frame) -> String {
    let file = frame.file.as_deref().unwrap_or_default();
    match frame.kind {
        Kind::Main => "{main}".to_owned(),
        Kind::Include => format!("include('{file}')"),
        Kind::Eval => "eval()".to_owned(),
        Kind::Function => {
            let more = frame.more_arguments.then_some("...");
            let arguments: Vec<&str> = frame.arguments.iter().map(String::as_str).chain(more).collect();
            format!("{}({})", frame.name(), arguments.join(", "))
        }
    }
}
