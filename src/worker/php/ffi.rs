//! `shim.h` in Rust.

use std::ffi::{c_char, c_int, c_void};

use php_pool::scoreboard::TraceLayout;

/// `struct shim_param`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Param {
    name: *const c_char,
    name_len: usize,
    value: *const c_char,
    value_len: usize,
}

impl Param {
    /// Both must be followed by a NUL in memory, and outlive this.
    pub fn new(name: &[u8], value: &[u8]) -> Self {
        Self {
            name: name.as_ptr().cast(),
            name_len: name.len(),
            value: value.as_ptr().cast(),
            value_len: value.len(),
        }
    }
}

pub const INT: u32 = 0;
pub const FLOAT: u32 = 1;
pub const STRING: u32 = 2;
pub const BEGIN: u32 = 3;
pub const END: u32 = 4;

/// `struct shim_field`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub kind: u32,
    pub key: *const c_char,
    pub key_len: usize,
    pub number: i64,
    pub real: f64,
    pub string: *const c_char,
    pub string_len: usize,
}

impl Field {
    /// Strings must outlive it.
    pub fn new(kind: u32, key: Option<&str>, number: i64, real: f64, string: &str) -> Self {
        Self {
            kind,
            key: key.map_or(std::ptr::null(), |key| key.as_ptr().cast()),
            key_len: key.map_or(0, str::len),
            number,
            real,
            string: string.as_ptr().cast(),
            string_len: string.len(),
        }
    }
}

pub const SCRIPT: u32 = 0;
pub const NOTHING: u32 = 1;
pub const PAGE: u32 = 2;

/// `struct shim_page`
#[repr(C)]
pub struct Page {
    pub status: i32,
    pub headers: *const Param,
    pub header_count: usize,
    pub body: *const c_char,
    pub body_len: usize,
}

/// `struct shim_callbacks`
#[repr(C)]
pub struct Callbacks {
    pub write: extern "C" fn(*const c_char, usize) -> bool,
    pub flush: extern "C" fn() -> bool,
    pub read_body: extern "C" fn(*mut c_char, usize, *mut i32) -> usize,
    pub params: extern "C" fn(*mut usize) -> *const Param,
    pub param: extern "C" fn(*const c_char, usize) -> *const c_char,
    pub log: extern "C" fn(u32, bool, *const c_char, usize),
    pub finish: extern "C" fn(bool),
    pub is_closed: extern "C" fn() -> bool,
    pub answer: extern "C" fn(*mut Page) -> u32,
    pub may_run: extern "C" fn(*const c_char, usize) -> bool,
    pub enter: extern "C" fn(*const c_char) -> c_int,
    pub is_admin_value: extern "C" fn(*const c_char, usize) -> bool,
    pub executed: extern "C" fn(i32, u64) -> bool,
    pub pool_status: extern "C" fn(*mut usize) -> *const Field,
}

/// `struct shim_memory`
#[repr(C)]
pub struct Memory {
    pub take: extern "C" fn(usize) -> *mut c_void,
    pub give_back: extern "C" fn(*mut c_void, usize),
    pub truncate: extern "C" fn(*mut c_void, usize, usize) -> bool,
    pub extend: extern "C" fn(*mut c_void, usize, usize) -> bool,
}

/// `struct shim_start`
#[repr(C)]
pub struct Start {
    pub ini_path: *const c_char,
    pub no_ini: bool,
    pub ini_entries: *const c_char,
    pub executable: *const c_char,
    pub extended_info: bool,
}

/// `struct shim_cgi`
#[repr(C)]
pub struct Cgi {
    pub fix_pathinfo: bool,
    pub discard_path: bool,
    pub decodes_path_info: bool,
    pub doc_root: *const c_char,
    pub revalidate: i64,
}

/// `struct shim_request`
#[repr(C)]
pub struct Request {
    pub method: *const c_char,
    pub query_string: *const c_char,
    pub uri: *const c_char,
    pub script: *const c_char,
    pub content_type: *const c_char,
    pub cookies: *const c_char,
    pub authorization: *const c_char,
    pub php_value: *const c_char,
    pub php_admin_value: *const c_char,
    pub content_length: i64,
    pub status: i32,
}

pub const RETIRE: u32 = 1;

unsafe extern "C" {
    pub fn shim_init(callbacks: *const Callbacks);
    pub fn shim_start(start: *const Start) -> bool;
    pub fn shim_use_memory(memory: *const Memory) -> bool;
    pub fn shim_stop();
    pub fn shim_exit_status() -> i32;
    pub fn shim_set_ini(
        name: *const c_char,
        name_len: usize,
        value: *const c_char,
        value_len: usize,
        admin: bool,
    ) -> bool;
    pub fn shim_load_extension(name: *const c_char) -> bool;
    pub fn shim_disable(names: *const c_char, classes: bool);
    pub fn shim_settings(out: *mut Cgi);
    pub fn shim_logs_to_client() -> bool;
    pub fn shim_starts_at_home() -> bool;
    pub fn shim_resolved_before(path: *const c_char, len: usize) -> bool;
    pub fn shim_resolves(path: *const c_char) -> bool;
    pub fn shim_each_compiled(each: extern "C" fn(*mut c_void, *const c_char, usize) -> bool, context: *mut c_void);
    pub fn shim_compile(path: *const c_char);
    pub fn shim_serve(request: *const Request) -> u32;
    pub fn shim_response_header(name: *const c_char, name_len: usize, length: *mut usize) -> *const c_char;
    pub fn shim_show_time_limit(seconds: i64);
    pub fn shim_trace(out: *mut TraceLayout);
    pub fn shim_php_version() -> *const c_char;
    pub fn shim_print_version();
    pub fn shim_print_modules();
    pub fn shim_print_info() -> bool;
}

impl From<&php_pool::status::Field> for Field {
    fn from(field: &php_pool::status::Field) -> Self {
        use php_pool::status::Field as F;
        match field {
            F::Int(key, number) => Self::new(INT, Some(key), *number, 0.0, ""),
            F::Float(key, real) => Self::new(FLOAT, Some(key), 0, *real, ""),
            F::Str(key, text) => Self::new(STRING, Some(key), 0, 0.0, text),
            F::Begin(key) => Self::new(BEGIN, *key, 0, 0.0, ""),
            F::End => Self::new(END, None, 0, 0.0, ""),
        }
    }
}
