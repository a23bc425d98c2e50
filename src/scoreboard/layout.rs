//! The bytes of the scoreboard. Atomics alone, so that every bit pattern is valid.

use std::mem::offset_of;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence};

use super::Tally;

/// `PPSB`, the first word of a scoreboard.
pub const MAGIC: u32 = u32::from_be_bytes(*b"PPSB");
/// Raised with every change of this file's structs: master and worker must have the same.
pub const LAYOUT_VERSION: u32 = 11;
/// Where the slots begin.
pub const HEADER_SIZE: usize = 4096;
pub(super) const ORDER: Ordering = SeqCst;

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC exists");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// Microseconds of CLOCK_REALTIME since the epoch.
pub fn realtime_us() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME).expect("CLOCK_REALTIME exists");
    now.tv_sec() as u64 * 1_000_000 + now.tv_nsec() as u64 / 1000
}

/// What a worker is doing, in php-fpm's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[repr(u32)]
pub enum Stage {
    /// Not accepting yet.
    None = 0,
    /// Waiting for a request.
    Idle = 1,
    /// The first bytes of a request have come.
    ReadingHeaders = 2,
    /// Parameters are complete.
    Info = 3,
    /// The script runs.
    Running = 4,
    /// Between the script and the end of the request (shutdown functions), or after fastcgi_finish_request().
    Finishing = 6,
    /// A spare: ready, and accepts nothing.
    Held = 7,
    /// It accepts nothing any more, and has given up its place; a slow reader may still hold it.
    Left = 8,
}

impl Stage {
    pub(super) fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Idle,
            2 => Self::ReadingHeaders,
            3 => Self::Info,
            4 => Self::Running,
            6 => Self::Finishing,
            7 => Self::Held,
            8 => Self::Left,
            _ => Self::None,
        }
    }

    /// Whether the worker has a request.
    pub fn is_active(self) -> bool {
        !matches!(self, Self::None | Self::Held | Self::Idle | Self::Left)
    }

    /// The word on php-fpm's status page.
    pub fn name(self) -> &'static str {
        match self {
            Self::None | Self::Held | Self::Left => "(null)",
            Self::Idle => "Idle",
            Self::ReadingHeaders => "Reading headers",
            Self::Info => "Getting request information",
            Self::Running => "Running",
            Self::Finishing => "Finishing",
        }
    }
}

/// How much of its life a worker has behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Wear {
    /// Nothing to be said.
    #[default]
    Fresh = 0,
    /// It will have served `pm.max_requests` soon, and then leaves by itself.
    Soon = 1,
    /// It is too old or too large; it serves until it is told to leave.
    Over = 2,
}

impl Wear {
    fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Soon,
            2 => Self::Over,
            _ => Self::Fresh,
        }
    }
}

macro_rules! trace_layout {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Where a tracer finds PHP's stack: addresses and offsets of the worker's own libphp, by `offsetof`. The zygote
        /// publishes it once as plain words; addresses are the same in all workers of a generation.
        ///
        /// The order is that of `struct shim_trace_layout`.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct TraceLayout {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl TraceLayout {
            /// How many words it has.
            pub const WORDS: usize = [$(stringify!($name)),*].len();

            /// As it is published.
            pub fn to_words(self) -> [u64; Self::WORDS] {
                [$(self.$name),*]
            }

            /// From what was published.
            pub fn from_words(words: [u64; Self::WORDS]) -> Self {
                let [$($name),*] = words;
                Self { $($name),* }
            }
        }
    };
}

trace_layout! {
    /// Address of `EG(current_execute_data)`.
    current_execute_data,
    /// Address of `EG(exception_op)`, where the opline of a frame points while an exception passes through it.
    exception_op,
    /// Size of it.
    exception_op_size,
    /// Address of `EG(opline_before_exception)`, the one it had before.
    opline_before_exception,
    /// Address of `SG(server_context)`, not NULL during a request.
    server_context,
    /// Address of `SG(request_info).path_translated`, a C string, as the next three.
    request_script,
    /// Address of `SG(request_info).request_method`.
    request_method,
    /// Address of `SG(request_info).request_uri`.
    request_uri,
    /// Address of `SG(request_info).query_string`.
    request_query,
    /// The class entry of `Generator`.
    generator_class,
    /// Offset in `zend_execute_data`: `opline`
    execute_data_opline,
    /// `func`
    execute_data_func,
    /// `This`
    execute_data_this,
    /// `This.u1.type_info`
    execute_data_type_info,
    /// `This.u2.num_args`
    execute_data_num_args,
    /// `prev_execute_data`
    execute_data_prev,
    /// The first argument, a `zval`
    execute_data_arguments,
    /// Size of a `zval`
    zval_size,
    /// Offset in a `zval`: its type, one byte
    zval_type,
    /// Offset in `zend_function`: `type`, one byte
    function_type,
    /// `common.function_name`
    function_name,
    /// `common.scope`
    function_scope,
    /// `op_array.num_args`
    op_array_num_args,
    /// `op_array.filename`
    op_array_filename,
    /// Offset in `zend_op`: `lineno`
    op_lineno,
    /// Offset in `zend_string`: `gc.u.type_info`
    string_type_info,
    /// `len`
    string_len,
    /// `val`
    string_val,
    /// Offset in `zend_class_entry`: `name`
    class_name,
    /// Offset in `zend_object`: `ce`
    object_class,
    /// Offset in `zend_generator`: `execute_data`
    generator_execute_data,
    /// `node.parent`
    generator_parent,
    /// The process that published this, which has PHP and never a request.
    zygote,
}

const BEGUN: u64 = 1 << 32;

/// See [`Header::draining`].
pub const STOPPING: u32 = 2;

/// What concerns a generation as a whole. Its first part is written once; the rest says who writes it.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Header {
    /// [`MAGIC`]
    pub magic: AtomicU32,
    /// [`LAYOUT_VERSION`]
    pub version: AtomicU32,
    /// How many slots follow.
    pub slots: AtomicU32,
    /// [`TraceLayout`], for the tracer; written by the zygote before it says Ready.
    pub trace: [AtomicU64; TraceLayout::WORDS],

    /// Not 0: who writes the access log sleeps, and is to be woken by its bell (a [`super::Sleep`]). Set by it, cleared by who rings.
    pub log_sleeps: AtomicU32,
    /// Workers: not 0, and lines are lost; who sets it rings the master's bell. Cleared by who writes the access log, when
    /// all that had waited is written.
    pub log_loses: AtomicU32,
    /// Master: not 0, and every worker of the generation leaves when its request ends; [`STOPPING`], and the pool ends with
    /// them: what waits at the listener is left to whoever holds it next.
    pub draining: AtomicU32,
    /// Master: a worker that begins a request while more than so many have one rings the eventfd.
    pub ring_above: AtomicI64,
    /// Workers: how many have a request, below; above, how often one has begun, so that no value comes again. A hint only; the
    /// master counts slots, and takes off who dies in a request.
    pub active: AtomicU64,
    /// Workers: the most that `active` has been since the master last took it.
    pub peak: AtomicI64,
    /// Master: not 0, and requests wait in the pool's queue that came before those at the listener.
    pub line: AtomicU32,
}

const _: () = assert!(size_of::<Header>() <= HEADER_SIZE);

impl Header {
    /// The worker of a slot has begun a request: the slot is active already, so that a quiet scoreboard proves a count of 0. True
    /// when the eventfd is to be rung.
    pub fn request_begins(&self, slot: &Slot) -> bool {
        slot.counts.store(1, Relaxed);
        let active = Self::active_in(self.active.fetch_add(BEGUN + 1, SeqCst)) + 1;
        if active > self.peak.load(Relaxed) {
            self.peak.fetch_max(active, Relaxed);
        }
        active > self.ring_above.load(SeqCst)
    }

    /// How many have a request, of that word.
    pub fn active_in(word: u64) -> i64 {
        i64::from(word as u32 as i32)
    }

    /// Its request is over, if it was not before: before its slot is idle. Of a worker that has died in one the master says so.
    pub fn request_ends(&self, slot: &Slot) {
        if slot.counts.load(Relaxed) != 0 {
            slot.counts.store(0, Relaxed);
            self.active.fetch_sub(1, SeqCst);
        }
    }

    /// Tells tracers where PHP's stack is.
    pub fn publish_trace_layout(&self, layout: TraceLayout) {
        for (to, from) in self.trace.iter().zip(layout.to_words()) {
            to.store(from, Relaxed);
        }
    }

    /// What the zygote published, unchecked.
    pub fn trace_layout(&self) -> TraceLayout {
        TraceLayout::from_words(self.trace.each_ref().map(|word| word.load(Relaxed)))
    }

    /// The same from the first bytes of a scoreboard that is not mapped here; None if it is none of this version.
    pub fn trace_layout_in(bytes: &[u8]) -> Option<TraceLayout> {
        let word = |offset: usize| Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?));
        if word(offset_of!(Self, magic))? != MAGIC || word(offset_of!(Self, version))? != LAYOUT_VERSION {
            return None;
        }
        let (words, _) = bytes.get(offset_of!(Self, trace)..)?.as_chunks();
        let words: &[[u8; 8]; TraceLayout::WORDS] = words.first_chunk()?;
        Some(TraceLayout::from_words(words.map(u64::from_ne_bytes)))
    }
}

/// What the master tells one worker.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Control {
    /// Not 0: leave when the request ends.
    pub drain: AtomicU32,
    /// Not 0: be ready, but accept nothing yet.
    pub hold: AtomicU32,
    /// Nanoseconds of CLOCK_MONOTONIC at which the request that began at that time was told to end; 0 is never. SIGPROF
    /// and SIGTERM mean "end this request now" while it stands, and "finish, then leave" otherwise.
    pub terminate: AtomicU64,
}

macro_rules! text {
    ($($(#[$doc:meta])* $name:ident: $size:literal),*) => {
        /// The strings of a request, cut to what fits.
        #[repr(C)]
        #[derive(Debug)]
        pub struct Text {
            $($(#[$doc])* pub(super) $name: Field<$size, { $size / 8 }>,)*
        }

        /// The strings of a request, for [`Slot::begin`].
        #[derive(Clone, Copy, Debug, Default)]
        pub struct Request<'a> {
            $($(#[$doc])* pub $name: &'a [u8],)*
            /// CONTENT_LENGTH
            pub content_length: u64,
        }

        impl Slot {
            fn write_text(&self, request: &Request) {
                $(self.text.$name.write(request.$name);)*
            }
        }
    };
}

text! {
    /// REQUEST_METHOD
    method: 32,
    /// The request uri as php-fpm counts it (SCRIPT_NAME, rewritten), without the query.
    uri: 1024,
    /// QUERY_STRING
    query: 2048,
    /// The script
    script: 1024,
    /// User of Basic authentication
    user: 64,
    /// Request id, of at most [`crate::request_id::MAX`] bytes.
    id: 136
}

/// A string of at most `BYTES - 1` bytes, kept in words: one store for eight of them.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Field<const BYTES: usize, const WORDS: usize> {
    length: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl<const BYTES: usize, const WORDS: usize> Field<BYTES, WORDS> {
    fn write(&self, text: &[u8]) {
        const { assert!(BYTES == WORDS * 8) };
        let text = &text[..text.len().min(BYTES - 1)];
        for (word, bytes) in self.words.iter().zip(text.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(whole), Relaxed);
        }
        self.length.store(text.len() as u64, Relaxed);
    }

    pub(super) fn read(&self) -> Vec<u8> {
        let length = (self.length.load(Relaxed) as usize).min(BYTES - 1);
        let words = &self.words[..length.div_ceil(8)];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.load(Relaxed).to_ne_bytes()).collect();
        bytes.truncate(length);
        bytes
    }
}

/// One worker. Times are nanoseconds of CLOCK_MONOTONIC, or microseconds of CLOCK_REALTIME where it says so.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Slot {
    /// [`Stage`]
    pub stage: AtomicU32,
    /// [`Wear`]
    wear: AtomicU32,
    /// Odd while the text is being written.
    pub(super) sequence: AtomicU32,
    /// Not 0: [`Header::active`] has the worker's request.
    counts: AtomicU32,
    /// When the current request's first byte was there; of the last one while idle.
    pub started: AtomicU64,
    /// The same on the wall clock, microseconds.
    pub started_epoch: AtomicU64,
    /// When the stage last changed.
    pub since: AtomicU64,
    /// Requests begun by this worker.
    pub requests: AtomicU64,
    /// Requests answered by it.
    pub finished: AtomicU64,
    /// Duration of the last request.
    pub duration: AtomicU64,
    /// CPU time of the last request, nanoseconds.
    pub cpu: AtomicU64,
    /// Peak memory of the last request, bytes.
    pub memory: AtomicU64,
    /// That of the request which took most.
    pub memory_peak: AtomicU64,
    /// CONTENT_LENGTH of the current or last request.
    pub content_length: AtomicU64,
    /// Total time of all requests, nanoseconds.
    pub busy: AtomicU64,
    /// How long requests took, in [`super::TIMES`].
    pub durations: Tally,
    /// How long they had waited before, as far as the web server says when it had them, likewise.
    pub waits: Tally,
    /// Their peak memory, in [`super::SIZES`].
    pub memories: Tally,
    /// The strings.
    pub(super) text: Text,
}

impl Slot {
    /// Sets the stage.
    pub fn set_stage(&self, stage: Stage, now: u64) {
        self.since.store(now, Relaxed);
        self.stage.store(stage as u32, Release);
    }

    /// The stage.
    pub fn stage(&self) -> Stage {
        Stage::from_number(self.stage.load(Acquire))
    }

    /// Says that the worker is to be replaced.
    pub fn set_wear(&self, wear: Wear) {
        self.wear.store(wear as u32, Release);
    }

    /// Whether it is to be replaced.
    pub fn wear(&self) -> Wear {
        Wear::from_number(self.wear.load(Acquire))
    }

    /// Whether [`Header::active`] has the worker's request.
    pub fn is_counted(&self) -> bool {
        self.counts.load(Relaxed) != 0
    }

    /// The parameters of a request are known.
    pub fn begin(&self, stage: Stage, request: &Request) {
        let sequence = self.sequence.load(Relaxed) | 1;
        self.sequence.store(sequence, Relaxed);
        fence(Release);
        self.write_text(request);
        self.content_length.store(request.content_length, Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Release);
        self.stage.store(stage as u32, Release);
    }

    /// A new worker takes the slot over from one that is gone.
    pub fn reset(&self) {
        self.begin(Stage::None, &Request::default());
        self.set_wear(Wear::Fresh);
        for word in [
            &self.started,
            &self.started_epoch,
            &self.since,
            &self.requests,
            &self.finished,
            &self.duration,
            &self.cpu,
            &self.memory,
            &self.memory_peak,
            &self.busy,
        ] {
            word.store(0, Relaxed);
        }
        for tally in [&self.durations, &self.waits, &self.memories] {
            tally.reset();
        }
        self.stage.store(Stage::None as u32, Release);
    }

    #[cfg(test)]
    pub(super) fn scribble_for_test(&self) {
        self.stage.store(77, Relaxed);
        self.sequence.store(5, Relaxed);
        self.text.uri.length.store(u64::MAX, Relaxed);
    }
}
