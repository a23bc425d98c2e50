//! Stacks built by hand, and memories that lie.

use std::collections::HashMap;

use proptest::prelude::*;

use super::memory::{Memory, ReadError};
use super::reader::*;
use crate::scoreboard::TraceLayout;

/// Offsets unlike those of any PHP, so that none is taken for granted.
fn layout() -> TraceLayout {
    TraceLayout {
        zygote: 1,
        current_execute_data: 0x1000,
        exception_op: 0x1100,
        exception_op_size: 96,
        opline_before_exception: 0x1010,
        server_context: 0x1018,
        request_script: 0x1020,
        request_method: 0x1028,
        request_uri: 0x1030,
        request_query: 0x1038,
        generator_class: 0x1800,
        execute_data_opline: 8,
        execute_data_func: 0,
        execute_data_this: 16,
        execute_data_type_info: 24,
        execute_data_num_args: 28,
        execute_data_prev: 40,
        execute_data_arguments: 48,
        zval_size: 16,
        zval_type: 8,
        function_type: 3,
        function_name: 8,
        function_scope: 16,
        op_array_num_args: 24,
        op_array_filename: 32,
        op_lineno: 12,
        string_type_info: 4,
        string_len: 16,
        string_val: 24,
        class_name: 8,
        object_class: 16,
        generator_execute_data: 24,
        generator_parent: 32,
    }
}

/// A memory of bytes; what was never written is not there.
#[derive(Clone, Default)]
struct Image {
    bytes: HashMap<u64, u8>,
    next: u64,
    reads: usize,
    /// Words that change at each refresh: the n-th refresh puts the n-th value.
    moves: Vec<(u64, Vec<u64>)>,
    refreshed: usize,
}

impl Memory for Image {
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), ReadError> {
        self.reads += 1;
        for (index, byte) in into.iter_mut().enumerate() {
            let at = address.wrapping_add(index as u64);
            *byte = *self.bytes.get(&at).ok_or(ReadError::Unmapped(at))?;
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.refresh();
    }

    fn refresh(&mut self) {
        for (address, values) in self.moves.clone() {
            let value = values.get(self.refreshed).or(values.last()).copied().unwrap_or(0);
            self.put(address, &value.to_ne_bytes());
        }
        self.refreshed += 1;
    }
}

const USER: u8 = 2;
const C: u8 = 1;
const EVAL: u8 = 4;
const TOP_CODE: u32 = 3 << 16;
const CODE: u32 = 1 << 16;

impl Image {
    fn new() -> Self {
        let mut image = Self {
            next: 0x10000,
            ..Self::default()
        };
        image.put(0x1000, &[0; 0x200]);
        image
    }

    fn put(&mut self, address: u64, bytes: &[u8]) {
        self.bytes.extend((address..).zip(bytes.iter().copied()));
    }

    fn word(&mut self, address: u64, word: u64) {
        self.put(address, &word.to_ne_bytes());
    }

    fn space(&mut self, size: u64) -> u64 {
        let at = self.next;
        self.next += size.next_multiple_of(16);
        self.put(at, &vec![0; size as usize]);
        at
    }

    fn string(&mut self, text: &[u8]) -> u64 {
        let at = self.space(25 + text.len() as u64);
        self.put(at + 4, &0x116u32.to_ne_bytes());
        self.word(at + 16, text.len() as u64);
        self.put(at + 24, text);
        at
    }

    fn c_string(&mut self, variable: u64, text: &str) {
        let at = self.space(text.len() as u64 + 64);
        self.put(at, text.as_bytes());
        self.word(variable, at);
    }

    fn class(&mut self, name: &[u8]) -> u64 {
        let (at, name) = (self.space(16), self.string(name));
        self.word(at + 8, name);
        at
    }

    fn function(&mut self, kind: u8, name: Option<&[u8]>, class: u64, file: &str) -> u64 {
        let at = self.space(64);
        let name = name.map_or(0, |name| self.string(name));
        let file = self.string(file.as_bytes());
        self.put(at + 3, &[kind]);
        self.word(at + 8, name);
        self.word(at + 16, class);
        self.put(at + 24, &2u32.to_ne_bytes());
        self.word(at + 32, file);
        at
    }

    /// A frame that becomes the innermost.
    fn call(&mut self, func: u64, type_info: u32, line: u32) -> u64 {
        let (at, op) = (self.space(256), self.space(32));
        let previous = self.current();
        self.put(op + 12, &line.to_ne_bytes());
        self.word(at, func);
        self.word(at + 8, op);
        self.put(at + 24, &type_info.to_ne_bytes());
        self.word(at + 40, previous);
        self.word(0x1000, at);
        at
    }

    fn current(&mut self) -> u64 {
        let mut word = [0; 8];
        self.read(0x1000, &mut word).unwrap();
        u64::from_ne_bytes(word)
    }

    fn trace(&mut self) -> Backtrace {
        read(
            self,
            &layout(),
            Limits {
                frames: 64,
                details: true,
            },
        )
        .unwrap()
    }
}

fn main_script(image: &mut Image) -> u64 {
    let script = image.function(USER, None, 0, "/srv/index.php");
    image.call(script, TOP_CODE, 3)
}

fn names(trace: &Backtrace) -> Vec<String> {
    trace.frames.iter().map(Frame::name).collect()
}

#[test]
fn an_idle_worker_has_no_stack() {
    let trace = Image::new().trace();
    assert_eq!(
        (trace.request, trace.frames.len(), trace.end, trace.steady),
        (None, 0, End::Complete, true)
    );
}

#[test]
fn a_stack_is_read_with_its_places() {
    let mut image = Image::new();
    image.word(0x1018, 1);
    image.c_string(0x1020, "/srv/index.php");
    image.c_string(0x1028, "GET");
    image.c_string(0x1030, "/a");
    main_script(&mut image);
    let included = image.function(USER, None, 0, "/srv/b.php");
    image.call(included, CODE, 9);
    let class = image.class(b"A\\B");
    let method = image.function(USER, Some(b"m"), class, "/srv/b.php");
    image.call(method, 8, 4);
    let eval = image.function(EVAL, None, 0, "/srv/b.php(4) : eval()'d code");
    image.call(eval, CODE, 1);
    let sleep = image.function(C, Some(b"sleep"), 0, "");
    image.call(sleep, 0, 0);

    let trace = image.trace();
    assert_eq!(
        names(&trace),
        ["sleep", "[INCLUDE_OR_EVAL]", "A\\B::m", "[INCLUDE_OR_EVAL]", "{main}"]
    );
    let kinds: Vec<Kind> = trace.frames.iter().map(|frame| frame.kind).collect();
    assert_eq!(
        kinds,
        [Kind::Function, Kind::Eval, Kind::Function, Kind::Include, Kind::Main]
    );
    assert_eq!(trace.call_site(0), Some(("/srv/b.php(4) : eval()'d code", 1)));
    assert_eq!(trace.call_site(2), Some(("/srv/b.php", 9)));
    assert_eq!(trace.call_site(4), None);
    assert_eq!((trace.end, trace.steady), (End::Complete, true));
    let request = trace.request.unwrap();
    assert_eq!(
        (request.script.as_deref(), request.uri.as_deref()),
        (Some("/srv/index.php"), Some("/a"))
    );
    assert_eq!(request.query, None);
}

#[test]
fn arguments_have_types_and_objects_classes() {
    let mut image = Image::new();
    let function = image.function(C, Some(b"f"), 0, "");
    let frame = image.call(function, 0, 0);
    let (object, class) = (image.space(32), image.class(b"Foo"));
    image.word(object + 16, class);
    let types = [4u8, 6, 8, 1, 2, 3, 7, 77, 5, 5];
    for (index, kind) in types.iter().enumerate() {
        let zval = frame + 48 + 16 * index as u64;
        image.word(zval, object);
        image.put(zval + 8, &[*kind]);
    }
    image.put(frame + 28, &10u32.to_ne_bytes());
    let trace = image.trace();
    let first = &trace.frames[0];
    assert_eq!(
        first.arguments,
        ["int", "string", "Foo", "null", "false", "true", "array", "???"]
    );
    assert!(first.more_arguments);

    // A function of PHP keeps beside the frame only what it declares: two.
    image.put(function + 3, &[USER]);
    let trace = image.trace();
    assert_eq!(trace.frames[0].arguments, ["int", "string"]);
    assert!(trace.frames[0].more_arguments);
}

#[test]
fn generators_that_delegate_stand_between_the_running_one_and_its_caller() {
    let mut image = Image::new();
    main_script(&mut image);
    let generators: Vec<(u64, u64)> = [&b"outer"[..], b"middle", b"inner"]
        .map(|name| {
            let function = image.function(USER, Some(name), 0, "/g.php");
            let (object, current) = (image.space(64), image.current());
            let frame = image.call(function, 1 << 24, 5);
            image.word(0x1000, current);
            image.word(object + 24, frame);
            (object, frame)
        })
        .to_vec();
    image.word(generators[0].0 + 32, generators[1].0);
    image.word(generators[1].0 + 32, generators[2].0);
    image.word(generators[0].0 + 16, 0x1800);
    let placeholder = image.call(0, 8, 0);
    image.word(placeholder + 16, generators[0].0);
    image.word(generators[2].1 + 40, placeholder);
    image.word(0x1000, generators[2].1);
    assert_eq!(names(&image.trace()), ["inner", "middle", "outer", "{main}"]);

    // A generator that waits for itself.
    image.word(generators[1].0 + 32, generators[0].0);
    let trace = image.trace();
    assert_eq!((names(&trace), trace.end), (vec!["inner".to_owned()], End::Circle));
}

#[test]
fn borders_of_c_and_of_fibers_are_no_frames() {
    let mut image = Image::new();
    main_script(&mut image);
    image.call(0, 0, 0);
    let fiber = image.function(C, None, 0, "");
    image.call(fiber, 0, 0);
    let function = image.function(USER, Some(b"f"), 0, "/f.php");
    image.call(function, 0, 7);
    let trace = image.trace();
    assert_eq!(names(&trace), ["f", "{main}"]);
    assert_eq!(trace.call_site(0), Some(("/srv/index.php", 3)));
}

#[test]
fn a_frame_that_an_exception_leaves_keeps_its_line() {
    let mut image = Image::new();
    let frame = main_script(&mut image);
    let op = image.space(32);
    image.put(op + 12, &21u32.to_ne_bytes());
    image.word(frame + 8, 0x1100 + 32);
    image.word(0x1010, op);
    assert_eq!(image.trace().frames[0].line, Some(21));
}

#[test]
fn a_stack_in_a_circle_has_an_end() {
    let mut image = Image::new();
    let outer = main_script(&mut image);
    let function = image.function(USER, Some(b"f"), 0, "/f.php");
    let inner = image.call(function, 0, 7);
    image.word(outer + 40, inner);
    let trace = image.trace();
    assert_eq!(
        (names(&trace), trace.end),
        (vec!["f".to_owned(), "{main}".to_owned()], End::Circle)
    );
}

#[test]
fn a_deep_stack_is_cut_at_its_outer_end() {
    let mut image = Image::new();
    main_script(&mut image);
    let function = image.function(USER, Some(b"f"), 0, "/f.php");
    for line in 0..100 {
        image.call(function, 0, line);
    }
    let trace = image.trace();
    assert_eq!((trace.frames.len(), trace.end, trace.steady), (64, End::Limit, true));
    assert_eq!(trace.frames[0].line, Some(99));
}

#[test]
fn names_cannot_forge_lines_and_garbage_is_no_name() {
    let mut image = Image::new();
    main_script(&mut image);
    let class = image.class(b"class@anonymous\0/srv/x.php:3$0");
    let function = image.function(
        USER,
        Some("f\n[0x1] \u{1b}[2J\u{202e}\u{ffff}".as_bytes()),
        class,
        "/f.php\r\n",
    );
    image.call(function, 0, 7);
    let garbage = image.function(USER, Some(b"freed"), 0, "/f.php");
    let name = image.space(64);
    image.word(garbage + 8, name);
    image.call(garbage, 0, 7);
    image.call(0xdead_0000, 0, 7);
    let long = image.function(USER, Some(&[b'x'; 4000]), 0, "/f.php");
    let long_name = image.string(&[b'x'; 4000]);
    image.word(long_name + 16, u64::MAX);
    image.word(long + 8, long_name);
    image.call(long, 0, 7);

    let trace = image.trace();
    let long = "x".repeat(TEXT);
    let expected = [long.as_str(), "???", "???", "class@anonymous::f.[0x1] .[2J..", "{main}"];
    assert_eq!(names(&trace), expected);
    assert_eq!(trace.frames[3].file.as_deref(), Some("/f.php.."));
}

#[test]
fn an_unreadable_frame_ends_the_trace_and_is_tried_again() {
    let mut image = Image::new();
    let frame = main_script(&mut image);
    image.word(frame + 40, 0xdead_0000);
    let trace = image.trace();
    assert_eq!((names(&trace), trace.end), (vec!["{main}".to_owned()], End::Unreadable));
    // It was only the first look that failed.
    image.moves = vec![(frame + 40, vec![0xdead_0000, 0xdead_0000, 0])];
    image.refreshed = 0;
    let trace = image.trace();
    assert_eq!((trace.end, trace.steady), (End::Complete, true));
}

#[test]
fn a_leaf_that_changes_is_steady_and_callers_that_change_are_not() {
    let mut image = Image::new();
    main_script(&mut image);
    let (f, g) = (
        image.function(USER, Some(b"f"), 0, "/f.php"),
        image.function(USER, Some(b"g"), 0, "/g.php"),
    );
    let middle = image.call(f, 0, 1);
    let leaf = image.call(f, 0, 2);
    image.moves = vec![(leaf, vec![f, g])];
    let trace = image.trace();
    assert_eq!(
        (names(&trace), trace.steady),
        (vec!["g".into(), "f".into(), "{main}".into()], true)
    );

    image.moves = vec![(middle, [f, g].repeat(30))];
    image.refreshed = 0;
    let trace = image.trace();
    // What is below was read at another moment and is left out.
    assert_eq!((names(&trace), trace.steady), (vec!["{main}".to_owned()], false));
    // As often as it was tried, and no more.
    assert_eq!(image.refreshed, 48);

    image.moves = vec![(middle, vec![f, g, f, f])];
    image.refreshed = 0;
    assert!(image.trace().steady);
}

#[test]
fn a_frame_that_was_read_after_its_end_is_not_taken_for_the_stack() {
    let mut image = Image::new();
    let outer = main_script(&mut image);
    let function = image.function(USER, Some(b"f"), 0, "/f.php");
    let pending = image.call(function, 0, 7);
    // At the first looks the frame is on its way to a call, and not linked yet to the one that makes it.
    image.moves = vec![(pending + 40, vec![0, 0, 0, outer])];
    let trace = image.trace();
    assert_eq!(
        (names(&trace), trace.steady),
        (vec!["f".to_owned(), "{main}".to_owned()], true)
    );

    // Or it holds no function any more.
    image.moves = vec![(pending, vec![0xdead_0000, function])];
    image.refreshed = 0;
    assert_eq!(names(&image.trace()), ["f", "{main}"]);
}

/// A memory in which everything that is asked for is there, and anything.
struct Liar {
    words: Vec<u64>,
    reads: usize,
}

impl Memory for Liar {
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), ReadError> {
        self.reads += 1;
        let mut index = (address ^ self.reads as u64) as usize;
        for chunk in into.chunks_mut(8) {
            let word = self.words[index % self.words.len()];
            chunk.copy_from_slice(&word.to_ne_bytes()[..chunk.len()]);
            index = index.wrapping_add(1);
        }
        Ok(())
    }

    fn refresh(&mut self) {}

    fn forget(&mut self) {}
}

fn lie() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0x1000u64..0x3000,
        (0u64..512).prop_map(|slot| 0x1000 + slot * 8),
        Just(0),
        Just(u64::MAX),
        (0u64..16).prop_map(|low| 0x0006_0000_0000_0006 | low << 16),
    ]
}

fn check(trace: &Backtrace, limits: Limits) {
    assert!(trace.frames.len() <= limits.frames);
    let clean = |text: &str| {
        assert!(
            text.len() <= 3 * TEXT && !text.contains(|c: char| c.is_control()),
            "{text:?}"
        )
    };
    for frame in &trace.frames {
        assert!(frame.arguments.len() <= 8);
        frame
            .file
            .iter()
            .chain(&frame.class)
            .chain(&frame.function)
            .chain(&frame.arguments)
            .for_each(|text| clean(text));
    }
    if let Some(request) = &trace.request {
        let all = [&request.script, &request.method, &request.uri, &request.query];
        all.into_iter().flatten().for_each(|text| clean(text));
    }
}

/// What a frame may cost, generously, in reads: names of eight argument classes among them.
const READS_PER_FRAME: usize = 100;
const READS_ELSE: usize = 32 * 100;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn memory_that_lies_is_read_to_an_end(
        words in prop::collection::vec(lie(), 1024),
        layout in prop::collection::vec(prop_oneof![(0u64..0x40), lie()], TraceLayout::WORDS),
        frames in 0usize..200,
    ) {
        let limits = Limits { frames, details: true };
        let mut image = Image::default();
        for (index, word) in words.iter().enumerate() {
            image.word(0x1000 + 8 * index as u64, *word);
        }
        let lying = TraceLayout::from_words(layout.try_into().unwrap());
        for layout in [lying, self::layout()] {
            image.reads = 0;
            if let Ok(trace) = read(&mut image, &layout, limits) {
                check(&trace, limits);
            }
            prop_assert!(image.reads <= 32 * (frames + 1) * READS_PER_FRAME + READS_ELSE);
        }
    }

    #[test]
    fn memory_that_changes_with_every_read_is_read_to_an_end(
        words in prop::collection::vec(lie(), 1..64),
        frames in 0usize..200,
    ) {
        let limits = Limits { frames, details: true };
        let mut liar = Liar { words, reads: 0 };
        if let Ok(trace) = read(&mut liar, &layout(), limits) {
            check(&trace, limits);
        }
        prop_assert!(liar.reads <= 32 * (frames + 1) * READS_PER_FRAME + READS_ELSE);
    }
}
