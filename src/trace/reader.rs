//! PHP's stack, walked in a memory that may change and may lie.
//!
//! Pure: it knows a [`Memory`] and the [`TraceLayout`] that the worker published, and believes neither. Every address and
//! offset is only ever read from; the number of frames, their text and the memory looked at are bounded; a stack that runs
//! in a circle is left. The worst a lie can do is to make its own trace wrong.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::memory::{Memory, ReadError};
use crate::scoreboard::TraceLayout;

/// What is read at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Frames, from the innermost.
    pub frames: usize,
    /// Whether to read what does not tell where the time goes, too: the types of arguments, and what the request is.
    pub details: bool,
}

impl Limits {
    /// For a trace of which `depth` frames are shown, each with the place of its call: that of the last one lies beyond it,
    /// and beyond calls between functions of C.
    pub fn to_show(depth: usize) -> Self {
        Self {
            frames: depth.saturating_add(16),
            details: true,
        }
    }
}

/// Most bytes of a name, a path, a URI; php-fpm's slowlog has the same limit.
pub const TEXT: usize = 1023;
/// Most arguments of a frame.
const ARGUMENTS: usize = 8;
/// How often a stack that moves is read.
const ATTEMPTS: usize = 16;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A function, method, closure or generator, of PHP or C.
    Function,
    /// Code of an included file.
    Include,
    /// Code of `eval()`.
    Eval,
    /// The script.
    Main,
}

/// One frame. All text is free of control characters and at most [`TEXT`] bytes of the worker's long.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Frame {
    /// Of its `zend_execute_data`.
    pub address: u64,
    /// What it is.
    pub kind: Kind,
    /// The class that declares the method.
    pub class: Option<String>,
    /// None for code outside of functions, and where it could not be read.
    pub function: Option<String>,
    /// The file that the code is from; None for C.
    pub file: Option<String>,
    /// The line it is at now.
    pub line: Option<u32>,
    /// Types of its first arguments.
    pub arguments: Vec<String>,
    /// There are more of them.
    pub more_arguments: bool,
}

impl Frame {
    fn is_unknown(&self) -> bool {
        self.kind == Kind::Function && self.function.is_none()
    }

    /// `Class::method`, `function`, `{closure}`; for other code as in php-fpm's slowlog.
    pub fn name(&self) -> String {
        match (self.kind, &self.class, &self.function) {
            (Kind::Main, ..) => "{main}".to_owned(),
            (Kind::Include | Kind::Eval, ..) => "[INCLUDE_OR_EVAL]".to_owned(),
            (Kind::Function, _, None) => "???".to_owned(),
            (Kind::Function, None, Some(function)) => function.clone(),
            (Kind::Function, Some(class), Some(function)) => format!("{class}::{function}"),
        }
    }
}

/// Why there are no more frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// That was all.
    Complete,
    /// As many as were asked for.
    Limit,
    /// The next one could not be read.
    Unreadable,
    /// The next one was seen already.
    Circle,
}

/// The request, as PHP knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestText {
    /// The script's path.
    pub script: Option<String>,
    /// REQUEST_METHOD
    pub method: Option<String>,
    /// Without the query.
    pub uri: Option<String>,
    /// QUERY_STRING
    pub query: Option<String>,
}

/// What PHP does at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backtrace {
    /// None between requests.
    pub request: Option<RequestText>,
    /// The innermost first.
    pub frames: Vec<Frame>,
    /// Why the last one is the last.
    pub end: End,
    /// Whether the innermost frame is there. If not, the script ran too fast for it to be read together with its callers,
    /// and only those frames are there that stood still.
    pub steady: bool,
}

impl Backtrace {
    /// Where a frame was called: the nearest code of PHP outwards.
    pub fn call_site(&self, frame: usize) -> Option<(&str, u32)> {
        let callers = self.frames.get(frame + 1..)?;
        callers
            .iter()
            .find_map(|caller| Some((caller.file.as_deref()?, caller.line.unwrap_or(0))))
    }
}

/// Reads the stack, and again if it moved meanwhile.
///
/// # Errors
/// When nothing can be read at all.
pub fn read(memory: &mut impl Memory, layout: &TraceLayout, limits: Limits) -> Result<Backtrace, ReadError> {
    let mut reader = Reader { memory, layout, limits };
    let mut attempt = 1;
    loop {
        reader.memory.forget();
        let before = reader.stack()?;
        reader.memory.refresh();
        let found = reader.stack()?;
        let request = reader.request()?;
        let mut frames: Vec<_> = found.found.iter().map(|found| reader.frame(found)).collect();
        reader.memory.refresh();
        let after = reader.stack()?;
        // What was there before and after was there when the innermost frame was read, whose callers it thus is, and when
        // its own names were. The innermost may have returned since; but a frame that was left before it was read may have
        // been anything by then.
        let inner = found.not_in(&before).max(found.not_in(&after));
        let steady = match found.found.len() {
            0 => before.found.is_empty() && after.found.is_empty(),
            1 => inner == 0,
            _ => inner <= 1,
        };
        let steady = steady && found.is_rooted(&frames) && !frames.iter().flatten().any(Frame::is_unknown);
        let whole = steady && matches!(found.end, End::Complete | End::Limit);
        if whole || attempt == ATTEMPTS {
            if !steady {
                frames.drain(..inner);
            }
            let frames = frames.into_iter().flatten().collect();
            return Ok(Backtrace {
                request,
                frames,
                end: found.end,
                steady,
            });
        }
        attempt += 1;
    }
}

/// A frame as it stands in memory.
#[derive(Clone, Copy, Debug)]
struct Found {
    address: u64,
    opline: u64,
    func: u64,
    type_info: u32,
    num_args: u32,
}

const IS_STRING: u32 = 6;
const IS_OBJECT: u32 = 8;
const TYPE_MASK: u32 = 0xff;
const GC_TYPE_MASK: u32 = 0xf;
const CALL_CODE: u32 = 1 << 16;
const CALL_TOP: u32 = 1 << 17;
const CALL_GENERATOR: u32 = 1 << 24;
const INTERNAL_FUNCTION: u8 = 1;
const USER_FUNCTION: u8 = 2;
const EVAL_CODE: u8 = 4;

struct Reader<'a, M> {
    memory: &'a mut M,
    layout: &'a TraceLayout,
    limits: Limits,
}

impl<M: Memory> Reader<'_, M> {
    fn bytes<const N: usize>(&mut self, base: u64, offset: u64) -> Result<[u8; N], ReadError> {
        let mut bytes = [0; N];
        self.memory.read(base.wrapping_add(offset), &mut bytes)?;
        Ok(bytes)
    }

    fn word(&mut self, base: u64, offset: u64) -> Result<u64, ReadError> {
        self.bytes(base, offset).map(u64::from_ne_bytes)
    }

    fn half(&mut self, base: u64, offset: u64) -> Result<u32, ReadError> {
        self.bytes(base, offset).map(u32::from_ne_bytes)
    }

    /// The frames' places, the innermost first.
    fn stack(&mut self) -> Result<Stack, ReadError> {
        let innermost = self.word(self.layout.current_execute_data, 0)?;
        let mut stack = Stack {
            found: Vec::new(),
            seen: HashSet::new(),
            limit: self.limits.frames,
            end: End::Complete,
        };
        match self.walk(innermost, &mut stack) {
            Ok(()) => {}
            Err(Stop::End(end)) => stack.end = end,
            Err(Stop::Read(error @ ReadError::Process(_))) => return Err(error),
            Err(Stop::Read(_)) => stack.end = End::Unreadable,
        }
        Ok(stack)
    }

    fn walk(&mut self, innermost: u64, stack: &mut Stack) -> Result<(), Stop> {
        let mut address = innermost;
        while address != 0 {
            stack.visit(address)?;
            let previous = self.word(address, self.layout.execute_data_prev)?;
            let found = self.found(address)?;
            if found.func != 0 {
                stack.found.push(found);
            } else if let Some(generator) = self.delegating(&found)? {
                self.delegation(generator, stack)?;
            } // else it marks the border to a call out of C
            address = previous;
        }
        Ok(())
    }

    fn found(&mut self, address: u64) -> Result<Found, ReadError> {
        let layout = self.layout;
        Ok(Found {
            address,
            opline: self.word(address, layout.execute_data_opline)?,
            func: self.word(address, layout.execute_data_func)?,
            type_info: self.half(address, layout.execute_data_type_info)?,
            num_args: self.half(address, layout.execute_data_num_args)?,
        })
    }

    /// The generator that stands in `yield from` another, whose frame this frame without a function takes the place of.
    fn delegating(&mut self, found: &Found) -> Result<Option<u64>, ReadError> {
        if found.type_info & TYPE_MASK != IS_OBJECT {
            return Ok(None);
        }
        let object = self.word(found.address, self.layout.execute_data_this)?;
        let class = self.word(object, self.layout.object_class)?;
        Ok((class == self.layout.generator_class).then_some(object))
    }

    /// The frames of generators that wait in `yield from`: from `outermost`, which its caller resumed, inwards by `parent`
    /// to the one before the last, which runs and has a frame of its own.
    fn delegation(&mut self, outermost: u64, stack: &mut Stack) -> Result<(), Stop> {
        let mut frames = Vec::new();
        let mut generator = outermost;
        loop {
            let parent = self.word(generator, self.layout.generator_parent)?;
            if parent == 0 {
                break;
            }
            let frame = self.word(generator, self.layout.generator_execute_data)?;
            stack.visit(frame)?;
            frames.push(self.found(frame)?);
            generator = parent;
        }
        stack.found.extend(frames.iter().rev());
        Ok(())
    }

    /// None for the lowest frame of a fiber, which is no call.
    fn frame(&mut self, found: &Found) -> Option<Frame> {
        let layout = self.layout;
        let mut frame = Frame {
            address: found.address,
            kind: Kind::Function,
            class: None,
            function: None,
            file: None,
            line: None,
            arguments: Vec::new(),
            more_arguments: false,
        };
        let Ok([kind]) = self.bytes(found.func, layout.function_type) else {
            return Some(frame);
        };
        let name = self.word(found.func, layout.function_name).unwrap_or(0);
        if name != 0 {
            frame.function = self.string(name).ok();
            let scope = self.word(found.func, layout.function_scope).unwrap_or(0);
            frame.class = self.class(scope);
        } else if kind == INTERNAL_FUNCTION {
            return None;
        } else if kind == EVAL_CODE {
            frame.kind = Kind::Eval;
        } else if found.type_info & CALL_CODE != 0 {
            frame.kind = if found.type_info & CALL_TOP != 0 {
                Kind::Main
            } else {
                Kind::Include
            };
        }
        if matches!(kind, USER_FUNCTION | EVAL_CODE) {
            let file = self.word(found.func, layout.op_array_filename);
            frame.file = file.and_then(|file| self.string(file)).ok();
            frame.line = self.line(found.opline).ok();
        }
        if self.limits.details && frame.function.is_some() {
            self.arguments(found, kind, &mut frame);
        }
        Some(frame)
    }

    fn line(&mut self, opline: u64) -> Result<u32, ReadError> {
        let layout = self.layout;
        let mut opline = opline;
        if opline.wrapping_sub(layout.exception_op) < layout.exception_op_size {
            opline = self.word(layout.opline_before_exception, 0)?;
        }
        self.half(opline, layout.op_lineno)
    }

    fn arguments(&mut self, found: &Found, kind: u8, frame: &mut Frame) {
        let layout = self.layout;
        let passed = found.num_args;
        let mut there = passed;
        if kind != INTERNAL_FUNCTION {
            // What is passed beyond the declared ones lies elsewhere.
            there = there.min(self.half(found.func, layout.op_array_num_args).unwrap_or(0));
        }
        let shown = there.min(ARGUMENTS as u32);
        for index in 0..u64::from(shown) {
            let offset = layout
                .execute_data_arguments
                .wrapping_add(index.wrapping_mul(layout.zval_size));
            let Ok(name) = self.type_name(found.address.wrapping_add(offset)) else {
                break;
            };
            frame.arguments.push(name);
        }
        frame.more_arguments = passed as usize > frame.arguments.len();
    }

    fn type_name(&mut self, zval: u64) -> Result<String, ReadError> {
        let [kind] = self.bytes(zval, self.layout.zval_type)?;
        let name = match kind {
            0 => "undefined",
            1 => "null",
            2 => "false",
            3 => "true",
            4 => "int",
            5 => "float",
            6 => "string",
            7 => "array",
            8 => {
                let object = self.word(zval, 0)?;
                let class = self.word(object, self.layout.object_class)?;
                return Ok(self.class(class).unwrap_or_else(|| "object".to_owned()));
            }
            9 => "resource",
            10 => "reference",
            _ => "???",
        };
        Ok(name.to_owned())
    }

    /// The name of a class; of an anonymous one without the place that PHP appends to it.
    fn class(&mut self, entry: u64) -> Option<String> {
        if entry == 0 {
            return None;
        }
        let name = self.word(entry, self.layout.class_name).ok()?;
        let bytes = self.string_bytes(name).ok()?;
        Some(clean(bytes.split(|byte| *byte == 0).next().unwrap_or_default()))
    }

    fn string(&mut self, address: u64) -> Result<String, ReadError> {
        self.string_bytes(address).map(|bytes| clean(&bytes))
    }

    /// What a `zend_string` holds. A place that was freed and used anew is told by not being one.
    fn string_bytes(&mut self, address: u64) -> Result<Vec<u8>, ReadError> {
        let layout = self.layout;
        if self.half(address, layout.string_type_info)? & GC_TYPE_MASK != IS_STRING {
            return Err(ReadError::Unmapped(address));
        }
        let length = self.word(address, layout.string_len)?;
        let mut bytes = vec![0; length.min(TEXT as u64) as usize];
        self.memory.read(address.wrapping_add(layout.string_val), &mut bytes)?;
        Ok(bytes)
    }

    fn request(&mut self) -> Result<Option<RequestText>, ReadError> {
        if self.word(self.layout.server_context, 0)? == 0 {
            return Ok(None);
        }
        if !self.limits.details {
            return Ok(Some(RequestText::default()));
        }
        let layout = self.layout;
        Ok(Some(RequestText {
            script: self.c_string(layout.request_script),
            method: self.c_string(layout.request_method),
            uri: self.c_string(layout.request_uri),
            query: self.c_string(layout.request_query),
        }))
    }

    /// The C string that the pointer at `variable` points to.
    fn c_string(&mut self, variable: u64) -> Option<String> {
        let start = self.word(variable, 0).ok().filter(|start| *start != 0)?;
        let mut bytes = Vec::new();
        while bytes.len() < TEXT {
            // Steps that do not cross into memory that may not be there.
            let at = start.wrapping_add(bytes.len() as u64);
            let mut step = [0; 64];
            let step = &mut step[..(64 - at % 64) as usize];
            self.memory.read(at, step).ok()?;
            let end = step.iter().position(|byte| *byte == 0);
            bytes.extend_from_slice(&step[..end.unwrap_or(step.len())]);
            if end.is_some() {
                break;
            }
        }
        bytes.truncate(TEXT);
        Some(clean(&bytes))
    }
}

/// The frames found so far, and those looked at.
struct Stack {
    found: Vec<Found>,
    seen: HashSet<u64>,
    limit: usize,
    end: End,
}

impl Stack {
    fn visit(&mut self, address: u64) -> Result<(), Stop> {
        if self.seen.len() >= self.limit {
            return Err(Stop::End(End::Limit));
        }
        if !self.seen.insert(address) {
            return Err(Stop::End(End::Circle));
        }
        Ok(())
    }

    /// Whether the outermost frame, if it was read, is one that the engine calls. A call that is still being prepared is
    /// linked to others of its kind, of which the last has no caller either; nor has a generator that waits.
    fn is_rooted(&self, frames: &[Option<Frame>]) -> bool {
        match (self.found.last(), frames.last()) {
            (Some(found), Some(Some(_))) if self.end == End::Complete => {
                found.type_info & (CALL_TOP | CALL_GENERATOR) == CALL_TOP
            }
            _ => true, // a fiber's lowest frame is no call
        }
    }

    /// How many of the inner frames another look has not seen; it saw all the rest.
    fn not_in(&self, other: &Self) -> usize {
        // Deep recursion is cut at its outer end, and the cut moves with the inner one.
        let cut = self.end == End::Limit || other.end == End::Limit;
        let seen = |inner: &usize| {
            let ours = &self.found[*inner..];
            let Some(start) = other.found.iter().position(|found| found.address == ours[0].address) else {
                return false;
            };
            let theirs = &other.found[start..];
            let same = ours
                .iter()
                .zip(theirs)
                .all(|(a, b)| (a.address, a.func) == (b.address, b.func));
            same && (cut || ours.len() == theirs.len())
        };
        (0..self.found.len()).find(seen).unwrap_or(self.found.len())
    }
}

enum Stop {
    End(End),
    Read(ReadError),
}

impl From<ReadError> for Stop {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

fn clean(bytes: &[u8]) -> String {
    shown(&String::from_utf8_lossy(bytes))
}

/// A text that may be shown on a terminal and written into a log of lines.
pub(super) fn shown(text: &str) -> String {
    let shown = |c: char| if is_unseen(c) { '.' } else { c };
    text.chars().map(shown).collect()
}

/// Whether a character is one that lines, terminals or their readers obey: controls, line and paragraph separators,
/// changes of the direction of writing; or one that no XML may hold.
fn is_unseen(c: char) -> bool {
    let obeyed = matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}');
    c.is_control() || obeyed || matches!(c, '\u{fffe}' | '\u{ffff}')
}
