//! The bytes of the scoreboard. Atomics alone, so that every bit pattern is valid.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence};

/// `PPSB`, the first word of a scoreboard.
pub const MAGIC: u32 = u32::from_be_bytes(*b"PPSB");
/// Raised with every change of this file's structs: master and worker must have the same.
pub const LAYOUT_VERSION: u32 = 2;
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
}

impl Stage {
    pub(super) fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Idle,
            2 => Self::ReadingHeaders,
            3 => Self::Info,
            4 => Self::Running,
            6 => Self::Finishing,
            _ => Self::None,
        }
    }

    /// The word on php-fpm's status page.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "(null)",
            Self::Idle => "Idle",
            Self::ReadingHeaders => "Reading headers",
            Self::Info => "Getting request information",
            Self::Running => "Running",
            Self::Finishing => "Finishing",
        }
    }
}

/// Where a tracer finds PHP's stack: addresses and offsets of the worker's own libphp, written once by the zygote.
#[repr(C)]
#[derive(Debug, Default)]
pub struct TraceLayout {
    /// Address of `EG(current_execute_data)`, the same in all workers of a generation.
    pub current_execute_data: AtomicU64,
    /// Offsets into `zend_execute_data`.
    pub execute_data_opline: AtomicU32,
    /// `func`
    pub execute_data_func: AtomicU32,
    /// `This.u1.type_info`
    pub execute_data_type_info: AtomicU32,
    /// `prev_execute_data`
    pub execute_data_prev: AtomicU32,
    /// Offsets into `zend_function`: `type` (one byte).
    pub function_type: AtomicU32,
    /// `common.function_name`
    pub function_name: AtomicU32,
    /// `common.scope`
    pub function_scope: AtomicU32,
    /// `op_array.filename`
    pub op_array_filename: AtomicU32,
    /// `zend_op.lineno`
    pub op_lineno: AtomicU32,
    /// `zend_string.len`
    pub string_len: AtomicU32,
    /// `zend_string.val`
    pub string_val: AtomicU32,
    /// `zend_class_entry.name`
    pub class_name: AtomicU32,
}

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
    /// For the tracer; written by the zygote before it says Ready.
    pub trace: TraceLayout,

    /// Master: raised when new access logs have been sent on the workers' links; a worker that has not seen
    /// this number yet reads its link before it logs.
    pub log_epoch: AtomicU32,
    /// Master: not 0, and every worker of the generation leaves when its request ends.
    pub draining: AtomicU32,
    /// Master: a worker that begins a request and then finds fewer idle workers than this rings the eventfd.
    pub ring_below: AtomicU32,
    /// Workers: how many are idle. A hint only; the master counts slots.
    pub idle: AtomicI64,
}

const _: () = assert!(size_of::<Header>() <= HEADER_SIZE);

/// What the master tells one worker.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Control {
    /// Not 0: leave when the request ends.
    pub drain: AtomicU32,
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
    /// Request id
    id: 64
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
    /// Odd while the text is being written.
    pub(super) sequence: AtomicU32,
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
    /// CONTENT_LENGTH of the current or last request.
    pub content_length: AtomicU64,
    /// Total time of all requests, nanoseconds.
    pub busy: AtomicU64,
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
        for word in [
            &self.started,
            &self.started_epoch,
            &self.since,
            &self.requests,
            &self.finished,
            &self.duration,
            &self.cpu,
            &self.memory,
            &self.busy,
        ] {
            word.store(0, Relaxed);
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
