//! libphp, behind the shim. All `unsafe` of the worker that has to do with PHP is here.
//!
//! PHP runs in one thread and serves one request at a time: the exchange it works on is in [`CURRENT`] from the call of
//! `shim_serve` to its return, and the callbacks find it there.

mod ffi;
mod folder;
pub mod heap;
mod timer;

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicI64, AtomicPtr, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use php_pool::control::PhpSettings;
use php_pool::log::Level;
use php_pool::scoreboard::TraceLayout;

use super::exchange::{Answer, Exchange, Page};
use super::forked;
use super::script::{Files, Settings};

static CURRENT: AtomicPtr<Exchange> = AtomicPtr::new(null_mut());

/// The exchange that PHP works on; None outside of a request (module start-up logs, for instance).
fn current<'a>() -> Option<&'a mut Exchange> {
    // SAFETY: set by `serve` from a unique reference that it does not use meanwhile, and cleared before that ends. There
    // is one thread, and no callback calls another, so that no two references live at a time.
    unsafe { CURRENT.load(Relaxed).as_mut() }
}

/// The same, while it is this process that answers: none in a child that a script has forked.
fn answering<'a>() -> Option<&'a mut Exchange> {
    if forked::is_child() { None } else { current() }
}

/// In a child that a script has forked: nothing of the running request is its own.
pub fn forget() {
    timer::forget();
    if let Some(exchange) = current() {
        exchange.abandon();
    }
}

/// Bytes that PHP hands to a callback.
///
/// # Safety
/// `data` must point to `length` readable bytes, or `length` be 0, for the duration of the callback.
unsafe fn bytes<'a>(data: *const c_char, length: usize) -> &'a [u8] {
    if length == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(data.cast(), length) }
}

extern "C" fn write(data: *const c_char, length: usize) -> bool {
    // SAFETY: PHP's output buffer, or a string of the shim.
    let data = unsafe { bytes(data, length) };
    answering().is_none_or(|exchange| exchange.write(data))
}

extern "C" fn flush() -> bool {
    answering().is_none_or(Exchange::flush)
}

extern "C" fn read_body(buffer: *mut c_char, length: usize, cut: *mut i32) -> usize {
    // SAFETY: PHP's buffer of that size; it is initialised memory of PHP's stack or heap, and bytes have no invalid value.
    let target = unsafe { std::slice::from_raw_parts_mut(buffer.cast(), length) };
    let Some(exchange) = answering() else { return 0 };
    let count = exchange.read_body(target);
    // SAFETY: the address of a local variable of the shim.
    unsafe { *cut = exchange.status_of_cut().map_or(0, i32::from) };
    count
}

extern "C" fn params(count: *mut usize) -> *const ffi::Param {
    let list = current().map_or(&[][..], Exchange::list_params);
    // SAFETY: the address of a local variable of the shim.
    unsafe { *count = list.len() };
    list.as_ptr()
}

extern "C" fn param(name: *const c_char, length: usize) -> *const c_char {
    // SAFETY: a name in PHP's memory.
    let name = unsafe { bytes(name, length) };
    let found = std::str::from_utf8(name)
        .ok()
        .and_then(|name| current()?.params.get(name));
    // A NUL follows every value in the arena.
    found.map_or(null(), |value| value.as_ptr().cast())
}

extern "C" fn log(level: u32, from_php: bool, text: *const c_char, length: usize) {
    // SAFETY: a message in PHP's memory.
    let text = unsafe { bytes(text, length) };
    let level = match level {
        0 => Level::Debug,
        1 => Level::Notice,
        2 => Level::Warning,
        3 => Level::Error,
        _ => Level::Alert,
    };
    match answering() {
        Some(exchange) => exchange.log(level, from_php, text),
        None => {
            if from_php {
                *LAST_WORDS.lock().unwrap_or_else(PoisonError::into_inner) = text.to_vec();
            }
            super::print_log(level, from_php, text, usize::MAX);
        }
    }
}

/// What PHP has logged last outside of requests.
static LAST_WORDS: Mutex<Vec<u8>> = Mutex::new(Vec::new());

extern "C" fn finish(goes_on: bool) {
    if let Some(exchange) = answering() {
        exchange.finish(goes_on);
    }
}

extern "C" fn is_closed() -> bool {
    answering().is_some_and(|exchange| exchange.is_closed())
}

extern "C" fn answer(page: *mut ffi::Page) -> u32 {
    let Some(exchange) = current() else { return ffi::NOTHING };
    match exchange.answer() {
        Answer::Script => ffi::SCRIPT,
        Answer::Nothing => ffi::NOTHING,
        Answer::Page(made) => {
            exchange.page = made;
            let Page { status, headers, body } = &exchange.page;
            exchange.c_headers = headers
                .iter()
                .map(|(name, value)| ffi::Param::new(name.as_bytes(), value.as_bytes()))
                .collect();
            // SAFETY: the address of a local variable of the shim. What it is made to point to lives in the exchange,
            // unchanged, until the request's end.
            unsafe {
                *page = ffi::Page {
                    status: i32::from(*status),
                    headers: exchange.c_headers.as_ptr(),
                    header_count: exchange.c_headers.len(),
                    body: body.as_ptr().cast(),
                    body_len: body.len(),
                };
            }
            ffi::PAGE
        }
    }
}

extern "C" fn may_run(path: *const c_char, length: usize) -> bool {
    // SAFETY: a path in PHP's memory.
    let path = unsafe { bytes(path, length) };
    current().is_some_and(|exchange| exchange.may_run(path))
}

extern "C" fn is_admin_value(name: *const c_char, length: usize) -> bool {
    // SAFETY: a name in PHP's memory.
    let name = unsafe { bytes(name, length) };
    current().is_some_and(|exchange| exchange.is_admin_value(name))
}

extern "C" fn executed(status: i32, peak_memory: u64) -> bool {
    if let Some(exchange) = answering() {
        exchange.executed(status.try_into().unwrap_or(200), peak_memory);
    }
    !forked::is_child()
}

extern "C" fn pool_status(count: *mut usize) -> *const ffi::Field {
    let fields = answering().and_then(Exchange::pool_status);
    // SAFETY: the address of a local variable of the shim.
    unsafe { *count = fields.map_or(0, <[_]>::len) };
    fields.map_or(null(), <[_]>::as_ptr)
}

static CALLBACKS: ffi::Callbacks = ffi::Callbacks {
    write,
    flush,
    read_body,
    params,
    param,
    log,
    finish,
    is_closed,
    answer,
    may_run,
    enter: folder::enter,
    is_admin_value,
    executed,
    pool_status,
};

/// Everything before module start-up.
pub fn init() {
    // SAFETY: called once, before any other function of the shim; the callbacks are static.
    unsafe { ffi::shim_init(&CALLBACKS) }
}

/// A C string; a value with a NUL is cut there, as PHP would.
fn c_string(text: &[u8]) -> CString {
    let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
    CString::new(text).expect("there is no NUL left")
}

/// Module start-up with php.ini, extensions, opcache and preload.
///
/// # Errors
/// When PHP refuses, with its last words.
pub fn start(settings: &PhpSettings) -> Result<(), String> {
    let ini_path = settings
        .ini
        .as_ref()
        .map(|path| c_string(path.as_os_str().as_encoded_bytes()));
    let mut entries = settings.defines.clone();
    for entry in settings
        .values
        .iter()
        .chain(&settings.admin_values)
        .filter(|entry| !is_special(&entry.key) && entry.key != EXTENSION_DIR)
    {
        entries += &format!(
            "{}=\"{}\"\n",
            entry.key,
            entry
                .value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('$', "\\$")
        );
    }
    let entries = c_string(entries.as_bytes());
    let executable = std::env::current_exe()
        .map(|path| c_string(path.as_os_str().as_encoded_bytes()))
        .unwrap_or_default();
    let start = ffi::Start {
        ini_path: ini_path.as_ref().map_or(null(), |path| path.as_ptr()),
        no_ini: settings.no_ini,
        ini_entries: entries.as_ptr(),
        executable: executable.as_ptr(),
        extended_info: settings.extended_info,
    };
    // PHP keeps the pointers for as long as the process lives.
    std::mem::forget((ini_path, entries.clone(), executable.clone()));
    // SAFETY: after `init`; the strings live for ever.
    let started = unsafe { ffi::shim_start(&start) };
    std::mem::forget((entries, executable));
    if started {
        heap::install();
        return Ok(());
    }
    let words = LAST_WORDS.lock().unwrap_or_else(PoisonError::into_inner);
    let words: String = String::from_utf8_lossy(&words).chars().take(1000).collect();
    Err(match words.as_str() {
        "" => "PHP module start-up failed".to_owned(),
        words => format!("PHP module start-up failed: {words}"),
    })
}

/// Where the pool's extensions are. At start-up it is php.ini's, or those that php.ini names would not be found.
const EXTENSION_DIR: &str = "extension_dir";

/// Settings that are no php.ini entries when the pool names them.
fn is_special(key: &str) -> bool {
    matches!(key, "extension" | "disable_functions" | "disable_classes")
}

/// The pool's own settings, after module start-up. `complain` is told what PHP does not know.
pub fn apply(settings: &PhpSettings, complain: impl Fn(String)) {
    for (list, directive, admin) in [
        (&settings.values, "php_value", false),
        (&settings.admin_values, "php_admin_value", true),
    ] {
        for entry in list {
            let (key, value) = (entry.key.as_bytes(), entry.value.as_bytes());
            let text = c_string(value);
            if entry.key == "extension" {
                continue;
            }
            if is_special(&entry.key) {
                // SAFETY: PHP is started; a C string.
                unsafe { ffi::shim_disable(text.as_ptr(), entry.key == "disable_classes") };
            }
            // SAFETY: PHP is started; lengths are those of the strings.
            let known = unsafe {
                ffi::shim_set_ini(
                    key.as_ptr().cast(),
                    key.len(),
                    value.as_ptr().cast(),
                    value.len(),
                    admin,
                )
            };
            if !known {
                complain(format!("Unable to set {directive} '{}'", entry.key));
            }
        }
    }
}

/// Extensions that the pool loads into its workers.
pub fn load_extensions(settings: &PhpSettings, complain: impl Fn(String)) {
    for entry in settings
        .values
        .iter()
        .chain(&settings.admin_values)
        .filter(|entry| entry.key == "extension")
    {
        let name = c_string(entry.value.as_bytes());
        // SAFETY: PHP is started; a C string.
        if !unsafe { ffi::shim_load_extension(name.as_ptr()) } {
            complain(format!("Unable to load extension '{}'", entry.value));
        }
    }
}

/// Module shutdown, in a process that ends in order.
pub fn stop() {
    // SAFETY: PHP is started and no request runs.
    unsafe { ffi::shim_stop() }
}

/// Settings of the request's path, for a worker that is where it belongs: from here on its folder is remembered.
pub fn script_settings() -> Settings {
    let mut raw = ffi::Cgi {
        fix_pathinfo: true,
        discard_path: false,
        decodes_path_info: false,
        doc_root: null(),
        revalidate: 0,
    };
    // SAFETY: PHP is started; the struct is ours.
    unsafe { ffi::shim_settings(&mut raw) };
    folder::trust(Duration::from_secs(raw.revalidate.try_into().unwrap_or(0)));
    let doc_root = (!raw.doc_root.is_null()).then(|| {
        // SAFETY: a C string of PHP's, copied at once.
        unsafe { CStr::from_ptr(raw.doc_root) }.to_bytes().to_vec()
    });
    Settings {
        fix_pathinfo: raw.fix_pathinfo,
        discard_path: raw.discard_path,
        decodes_path_info: raw.decodes_path_info,
        doc_root,
    }
}

/// Whether messages go to the web server, too: `fastcgi.logging`, which a request may set for itself.
pub fn logs_to_client() -> bool {
    // SAFETY: PHP is started.
    unsafe { ffi::shim_logs_to_client() }
}

/// Whether a request of this pool must start in the worker's own folder: something looks at it before the script does.
pub fn starts_at_home() -> bool {
    // SAFETY: PHP is started.
    unsafe { ffi::shim_starts_at_home() }
}

/// The file system as PHP sees it.
pub struct PhpFiles;

impl Files for PhpFiles {
    fn resolves(&self, path: &[u8]) -> bool {
        // What PHP's function does before anything else, but it allocates for it.
        // SAFETY: PHP is started; the path is as long as it is said to be.
        if unsafe { ffi::shim_resolved_before(path.as_ptr().cast(), path.len()) } {
            return true;
        }
        let path = c_string(path);
        // SAFETY: PHP is started; a C string. A bailout inside is caught there.
        unsafe { ffi::shim_resolves(path.as_ptr()) }
    }

    fn is_file(&self, path: &[u8]) -> bool {
        use std::os::unix::ffi::OsStrExt;
        std::fs::metadata(std::ffi::OsStr::from_bytes(path)).is_ok_and(|found| found.is_file())
    }
}

/// Tells the path of each script that opcache holds, what was used most first, until `each` says no. In a process that serves
/// nothing.
pub fn each_compiled<F: FnMut(&[u8]) -> bool>(mut each: F) {
    extern "C" fn call<F: FnMut(&[u8]) -> bool>(each: *mut c_void, path: *const c_char, length: usize) -> bool {
        // SAFETY: the address of `each` below, which nobody else uses meanwhile; and a path in PHP's memory.
        let (each, path) = unsafe { (&mut *each.cast::<F>(), bytes(path, length)) };
        each(path)
    }
    // SAFETY: PHP is started and runs no request; the function is for what its context is.
    unsafe { ffi::shim_each_compiled(call::<F>, std::ptr::from_mut(&mut each).cast()) }
}

/// Compiles a file into opcache, and runs nothing of it. In a process that serves nothing.
pub fn compile(path: &[u8]) {
    let path = c_string(path);
    // SAFETY: PHP is started and runs no request; a C string.
    unsafe { ffi::shim_compile(path.as_ptr()) }
}

/// Whether there is a file of this path.
pub fn is_file(path: &[u8]) -> bool {
    PhpFiles.is_file(path)
}

/// Runs a request through PHP. True: this process must not serve another. Does not return in a child that the script has forked:
/// that ends here, and what the process has beside the request (persistent connections) stays its parent's.
pub fn serve(exchange: &mut Exchange) -> bool {
    let text = |name: &str| {
        exchange
            .params
            .get(name)
            .map_or(null(), |value| value.as_ptr().cast::<c_char>())
    };
    let named = exchange.script.named;
    let only_if_named = |pointer: *const c_char| if named { pointer } else { null() };
    let uri = exchange.script.uri.as_ref().map(|uri| c_string(uri));
    let path = exchange.script.path.as_ref().map(|path| c_string(path));
    let content_type = only_if_named(text("CONTENT_TYPE"));
    let request = ffi::Request {
        method: text("REQUEST_METHOD"),
        query_string: only_if_named(text("QUERY_STRING")),
        uri: uri.as_ref().map_or(null(), |uri| uri.as_ptr()),
        script: path.as_ref().map_or(null(), |path| path.as_ptr()),
        content_type: if content_type.is_null() {
            c"".as_ptr()
        } else {
            content_type
        },
        cookies: text("HTTP_COOKIE"),
        authorization: only_if_named(text("HTTP_AUTHORIZATION")),
        php_value: text("PHP_VALUE"),
        php_admin_value: text("PHP_ADMIN_VALUE"),
        content_length: exchange.content_length() as i64,
        status: if exchange.script.missing { 404 } else { 200 },
    };
    CURRENT.store(exchange, Relaxed);
    // SAFETY: PHP is started and runs no request; every pointer is to the exchange's arena or to a local variable, neither
    // of which changes before this returns.
    let outcome = unsafe { ffi::shim_serve(&request) };
    if forked::is_child() {
        // SAFETY: PHP is started; the process ends, and nothing that would be needed is left undone.
        unsafe { libc::_exit(ffi::shim_exit_status()) }
    }
    CURRENT.store(null_mut(), Relaxed);
    outcome == ffi::RETIRE
}

/// The value of the response's first header of exactly this name; not for longer than the request.
pub fn response_header(name: &[u8]) -> Option<&'static [u8]> {
    let mut length = 0;
    // SAFETY: PHP is started; the name is as long as it is said to be.
    let value = unsafe { ffi::shim_response_header(name.as_ptr().cast(), name.len(), &mut length) };
    // SAFETY: PHP's memory, of that length, which lives until the request's shutdown; the access log copies it before.
    (!value.is_null()).then(|| unsafe { std::slice::from_raw_parts(value.cast(), length) })
}

/// Where a tracer finds PHP's stack in this process and those forked from it.
pub fn trace_layout() -> TraceLayout {
    let mut layout = TraceLayout::default();
    // SAFETY: the struct is ours, and is what the shim declares.
    unsafe { ffi::shim_trace(&mut layout) };
    layout
}

/// The limit that PHP's time-out names when the master ends a request, seconds; 0 is none.
static TIME_LIMIT: AtomicI64 = AtomicI64::new(0);

/// What PHP's time-out says when the master ends a request by it.
pub fn set_time_limit_shown(limit: Duration) {
    TIME_LIMIT.store(limit.as_millis().div_ceil(1000) as i64, Relaxed);
}

/// Async-signal-safe.
fn show_time_limit() {
    // SAFETY: a store to PHP's globals.
    unsafe { ffi::shim_show_time_limit(TIME_LIMIT.load(Relaxed)) }
}

/// PHP_VERSION
pub fn version() -> &'static str {
    // SAFETY: a static C string.
    unsafe { CStr::from_ptr(ffi::shim_php_version()) }
        .to_str()
        .unwrap_or("unknown")
}

/// `php -v`, `-m`, `-i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Print {
    /// Version banner.
    Version,
    /// Extensions.
    Modules,
    /// phpinfo() as text.
    Info,
}

/// Prints to stdout; PHP is started and serves nothing.
pub fn print(what: Print) {
    // SAFETY: PHP is started and runs no request.
    unsafe {
        match what {
            Print::Version => ffi::shim_print_version(),
            Print::Modules => ffi::shim_print_modules(),
            Print::Info => {
                ffi::shim_print_info();
            }
        }
    }
}

pub use ffi::{Field as CField, Param as CParam};
