//! One request and its reply: what stands between PHP and the connection.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::Location;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;

use php_pool::control::{FromWorker, LOG_BYTES, LOG_INLINE, LogMessage, PoolSettings, sealed};
use php_pool::fastcgi::{
    Begin, Event, ProtocolStatus, RecordType, append_end_request, append_get_values_result, append_unknown_type,
};
use php_pool::log::{Level, LineFormat, MESSAGE_BUFFER, Stamp, mark};
use php_pool::request_id::RequestId;
use php_pool::scoreboard::{Request, Stage, monotonic_ns};
use php_pool::status::{Reply, View, pong, unavailable};

use super::conn::{Conn, Lost};
use super::context::Worker;
use super::output::Output;
use super::params::Params;
use super::php::{CField, CParam};
use super::script::{self, Script};

/// How a request is answered.
#[derive(Debug)]
pub enum Answer {
    /// By its script.
    Script,
    /// With headers alone.
    Nothing,
    /// With this.
    Page(Page),
}

/// A page that no script made.
#[derive(Debug, Default)]
pub struct Page {
    /// HTTP status.
    pub status: u16,
    /// Headers, in order.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Page {
    fn error(status: u16, body: &str) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
        }
    }

    fn made(status: u16, reply: Reply) -> Self {
        let headers = reply
            .headers
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Self {
            status,
            headers,
            body: reply.body.into_bytes(),
        }
    }
}

/// Parameters for which room is kept from one request to the next.
const MOST_KEPT: usize = 1024;

/// Memory that one request leaves to the next.
#[derive(Debug, Default)]
pub struct Memory {
    params: Params,
    out: Output,
    c_params: Vec<CParam>,
}

/// Where a body comes from.
#[derive(Debug)]
enum Body {
    Stdin,
    /// The web server has put it into the file that REQUEST_BODY_FILE names.
    Unopened(PathBuf),
    File(File),
    Missing,
}

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    /// CONTENT_LENGTH; where there is none, 0.
    Known(u64),
    /// That is known at its end: the client sends it in chunks, and the web server passes them on as they come.
    Open,
    /// The client's CONTENT_LENGTH makes no sense.
    Bad,
}

impl Length {
    fn of(params: &Params) -> Self {
        let get = |name| params.get(name).unwrap_or_default();
        let text = get("CONTENT_LENGTH");
        let open = match text {
            // Caddy, in the words of Go's HTTP.
            b"-1" => true,
            // None by HTTP's own rules.
            b"" if !get("HTTP_TRANSFER_ENCODING").is_empty() => true,
            b"" => {
                let is_framed = matches!(get("SERVER_PROTOCOL").get(..6), Some(b"HTTP/2" | b"HTTP/3"));
                is_framed && !matches!(get("REQUEST_METHOD"), b"GET" | b"HEAD")
            }
            _ => false,
        };
        if open && params.get("REQUEST_BODY_FILE").is_none() {
            return Self::Open;
        }
        parse_length(text).map_or(Self::Bad, Self::Known)
    }

    fn known(self) -> u64 {
        match self {
            Self::Known(length) => length,
            Self::Open | Self::Bad => 0,
        }
    }
}

/// Why a body is not all there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// It ended before CONTENT_LENGTH.
    Short,
    /// The web server closed its side.
    Closed,
    /// It did not get on.
    TimedOut,
    /// The web server gave the request up.
    Aborted,
}

/// One request.
pub struct Exchange {
    worker: &'static Worker,
    begin: Begin,
    /// The client's address.
    pub peer: Option<std::net::IpAddr>,
    /// None: the reply is complete and the connection was given back early.
    conn: Option<Conn>,
    out: Output,
    /// The parameters, rewritten as `$_SERVER` shows them.
    pub params: Params,
    /// Its name in the logs.
    pub id: RequestId,
    /// The master's log knows that name.
    named: bool,
    /// What is run.
    pub script: Script,
    length: Length,
    body_left: u64,
    body: Body,
    /// Why there will be no more of the body, before CONTENT_LENGTH.
    cut: Option<Cut>,
    /// Why nothing more can be sent.
    lost: Option<Lost>,
    /// END_REQUEST was sent, or would have been.
    finished: bool,
    /// FCGI_STDERR has had a message.
    complained: bool,
    /// The script has ended; its shutdown functions may have not.
    executed: bool,
    /// HTTP status of the reply.
    pub status: u16,
    /// Storage of what PHP is shown by pointer.
    pub page: Page,
    c_params: Vec<CParam>,
    pub c_headers: Vec<CParam>,
    fields: Vec<php_pool::status::Field>,
    c_fields: Vec<CField>,
}

/// What is left when a request is over.
pub struct Over {
    /// The connection, where it is still ours, and why it is lost if it is.
    pub conn: Option<(Conn, Option<Lost>)>,
    /// Whether the client asked to keep it.
    pub keep: bool,
    /// Memory for the next request.
    pub memory: Memory,
}

impl Exchange {
    /// A request whose parameters are complete.
    pub fn new(worker: &'static Worker, begin: Begin, conn: Conn, memory: Memory) -> Self {
        let Memory {
            mut params,
            mut out,
            c_params,
        } = memory;
        params.read(conn.input.params(), begin.role.name());
        out.begin(begin.id);
        let (given, parent) = (params.get("HTTP_X_REQUEST_ID"), params.get("HTTP_TRACEPARENT"));
        let id = RequestId::given(given, parent).unwrap_or_else(|| worker.ids.next());
        let length = Length::of(&params);
        // PHP reads and stores a body before it goes to the script's folder.
        if worker.starts_at_home || length != Length::Known(0) || script::is_relative(&params) {
            // Not where the last script was, which may be of another site: relative paths would lead there.
            let _ = nix::unistd::chdir(&worker.home);
        }
        let script = script::resolve(&mut params, &worker.script_settings, &super::php::PhpFiles);
        let length = if script.named { length } else { Length::Known(0) };
        let body = match params.get("REQUEST_BODY_FILE") {
            Some(path) => Body::Unopened(PathBuf::from(OsStr::from_bytes(path))),
            None => Body::Stdin,
        };
        Self {
            worker,
            begin,
            peer: conn.peer,
            conn: Some(conn),
            out,
            id,
            named: false,
            params,
            script,
            length,
            body_left: if length == Length::Open {
                u64::MAX
            } else {
                length.known()
            },
            body,
            cut: None,
            lost: None,
            finished: false,
            complained: false,
            executed: false,
            status: 200,
            page: Page::default(),
            c_params,
            c_headers: Vec::new(),
            fields: Vec::new(),
            c_fields: Vec::new(),
        }
    }

    fn pool(&self) -> &'static PoolSettings {
        self.worker.pool()
    }

    /// CONTENT_LENGTH, as far as it is one.
    pub fn content_length(&self) -> u64 {
        self.length.known()
    }

    /// All parameters, for C. Many scripts never ask for them.
    pub fn list_params(&mut self) -> &[CParam] {
        if self.c_params.is_empty() {
            let all = self.params.iter();
            self.c_params.extend(all.map(|(name, value)| CParam::new(name, value)));
        }
        &self.c_params
    }

    /// Writes the request into the scoreboard.
    pub fn publish(&self) {
        let get = |name| self.params.get(name).unwrap_or_default();
        self.worker.slot().begin(
            Stage::Info,
            &Request {
                method: get("REQUEST_METHOD"),
                uri: self.script.uri.as_deref().unwrap_or_default(),
                query: if self.script.named { get("QUERY_STRING") } else { b"" },
                script: self.script.path.as_deref().unwrap_or_default(),
                user: self.user().as_deref().unwrap_or_default(),
                id: self.id.as_bytes(),
                content_length: self.content_length(),
            },
        );
    }

    /// How long ago the web server had the request, microseconds, when it says so.
    pub fn waited(&self) -> Option<u64> {
        let began = self.worker.slot().started_epoch.load(Relaxed);
        waited(self.params.get("HTTP_X_REQUEST_START")?, began)
    }

    fn is_head(&self) -> bool {
        self.params.get("REQUEST_METHOD") == Some(b"HEAD")
    }

    /// The user of Basic authentication.
    pub fn user(&self) -> Option<Vec<u8>> {
        let given = self.params.get("HTTP_AUTHORIZATION")?;
        let (scheme, rest) = given.split_at_checked(6)?;
        let text = scheme.eq_ignore_ascii_case(b"Basic ").then(|| decode_base64(rest))?;
        let end = text.iter().position(|&byte| byte == b':')?;
        Some(text[..end].to_vec())
    }

    fn lose(&mut self, why: Lost) {
        self.lost.get_or_insert(why);
    }

    /// Appends to STDOUT; false: the client is gone.
    pub fn write(&mut self, data: &[u8]) -> bool {
        if self.finished || self.cut == Some(Cut::Aborted) {
            return true; // after fastcgi_finish_request(), or when nobody wants it, output goes nowhere
        }
        self.append(RecordType::Stdout, data);
        self.lost.is_none()
    }

    fn append(&mut self, kind: RecordType, data: &[u8]) {
        let (None, Some(conn)) = (self.lost, &self.conn) else {
            return;
        };
        if let Err(why) = self.out.write(kind, data, conn, self.pool().response_write_timeout) {
            self.lose(why);
        }
    }

    /// Sends what was written; false: the client is gone. A script that has nothing to say learns that by it, too.
    pub fn flush(&mut self) -> bool {
        if let (false, None, Some(conn)) = (self.finished, self.lost, &self.conn) {
            let sent = if !self.out.is_empty() {
                self.out.send(conn, self.pool().response_write_timeout)
            } else if conn.is_abandoned() {
                Err(Lost::Closed)
            } else {
                Ok(())
            };
            if let Err(why) = sent {
                self.lose(why);
            }
        }
        self.finished || self.lost.is_none()
    }

    /// Fills the buffer from the body; fewer bytes only at its end, or where it is cut.
    pub fn read_body(&mut self, target: &mut [u8]) -> usize {
        if self.finished || self.lost.is_some() || self.cut.is_some() {
            return 0;
        }
        let wanted = target.len().min(usize::try_from(self.body_left).unwrap_or(usize::MAX));
        let target = &mut target[..wanted];
        let mut done = 0;
        while done < wanted {
            let part = match &mut self.body {
                Body::Stdin => self.read_stdin(&mut target[done..]),
                Body::Unopened(_) => {
                    self.open_body();
                    continue;
                }
                Body::File(file) => file.read(&mut target[done..]).map_err(|_| Cut::Short),
                Body::Missing => Ok(0),
            };
            match part {
                // This is its end.
                Ok(0) if self.length == Length::Open => self.body_left = done as u64,
                // A body of which nothing at all was sent is none, and no part of one: web servers that are told not to pass
                // it on (nginx: fastcgi_pass_request_body) still pass its length on.
                Ok(0)
                    if done == 0
                        && self.length == Length::Known(self.body_left)
                        && matches!(self.body, Body::Stdin) =>
                {
                    self.body_left = 0;
                }
                Ok(0) => self.cut = Some(Cut::Short),
                Ok(count) => {
                    done += count;
                    continue;
                }
                Err(cut) => self.cut = Some(cut),
            }
            break;
        }
        self.body_left -= done as u64;
        if self.cut.is_some_and(|cut| cut != Cut::Aborted) {
            let text = match self.length {
                Length::Open => "the body ended before its last chunk".to_owned(),
                length => format!(
                    "the body ended {} bytes before its CONTENT_LENGTH of {}",
                    self.body_left,
                    length.known()
                ),
            };
            self.log(Level::Notice, false, text.as_bytes());
        }
        done
    }

    fn read_stdin(&mut self, target: &mut [u8]) -> Result<usize, Cut> {
        let Some(conn) = &mut self.conn else { return Ok(0) };
        let (out, settings) = (&mut self.out, self.worker.pool());
        let read = conn.read_stdin(target, settings.request_body_timeout, |event| {
            answer_aside(out, &event, settings.max_children);
        });
        read.map_err(|why| match why {
            Lost::TimedOut => Cut::TimedOut,
            Lost::Aborted => Cut::Aborted,
            // It may have closed its side alone, and wait for an answer.
            Lost::Closed => Cut::Closed,
            Lost::Protocol(_) => {
                self.lost = Some(why);
                Cut::Closed
            }
        })
    }

    fn open_body(&mut self) {
        let Body::Unopened(path) = &self.body else { return };
        match File::open(path) {
            Ok(file) => self.body = Body::File(file),
            Err(error) => {
                let errno = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0));
                let text = format!(
                    "REQUEST_BODY_FILE: open('{}') failed: {} ({})",
                    path.display(),
                    errno.desc(),
                    errno as i32
                );
                self.body = Body::Missing;
                self.log(Level::Warning, false, text.as_bytes());
            }
        }
    }

    /// The HTTP status that a body cut short deserves, and its script's end with it. PHP's last look for what is left of a body
    /// comes when the script is over: that one must pass.
    pub fn status_of_cut(&self) -> Option<u16> {
        let cut = self.cut.filter(|_| !self.executed)?;
        Some(if cut == Cut::TimedOut { 408 } else { 400 })
    }

    /// Logs to the pool's log and, where enabled, to the web server's. What PHP says is for both whatever its level is.
    pub fn log(&mut self, level: Level, from_php: bool, text: &[u8]) {
        let settings = self.pool();
        let mut message = text.to_vec();
        if (from_php || level >= settings.log_level)
            && settings.catch_output
            && !std::mem::replace(&mut self.named, true)
        {
            // Of all that is printed from now until the end of the request.
            super::print(&mark(&self.id));
        }
        if from_php {
            let mut format = LineFormat::new(Stamp::Untimed, settings.log_level, settings.log_limit);
            let mut line = Vec::new();
            let sent = format.php_message(level, Location::caller(), 0, text, &mut line);
            match settings.log_whole {
                true => self.send_log(level, true, text),
                false => super::print(&line),
            }
            message = line[sent].to_vec();
        } else if level >= settings.log_level {
            match settings.log_whole {
                true => self.send_log(level, false, text),
                false => super::print_log(level, false, text, settings.log_limit),
            }
        }
        if !from_php && message.len() >= MESSAGE_BUFFER {
            message.truncate(MESSAGE_BUFFER - 3);
            message.extend_from_slice(b"...");
        }
        if self.finished || self.conn.is_none() || !super::php::logs_to_client() {
            return;
        }
        let joint: &[u8] = if std::mem::replace(&mut self.complained, true) {
            b"; "
        } else {
            b""
        };
        self.append(RecordType::Stderr, &[joint, &message].concat());
    }

    /// Sends a message whole, and what it is about with it, to the master.
    fn send_log(&self, level: Level, from_php: bool, text: &[u8]) {
        /// Bytes of each of the other fields.
        const FIELD: usize = 4 << 10;
        let field = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(FIELD)]).into_owned();
        let get = |name| self.params.get(name).unwrap_or_default();
        let query = if self.script.named { get("QUERY_STRING") } else { b"" };
        let send = |text: &[u8], aside: &[BorrowedFd]| {
            let message = LogMessage {
                level,
                from_php,
                text: String::from_utf8_lossy(text).into_owned(),
                script: field(self.script.path.as_deref().unwrap_or_default()),
                uri: field(self.script.uri.as_deref().unwrap_or_default()),
                query: field(query),
                id: field(self.id.as_bytes()),
            };
            self.worker.link.send(&FromWorker::Log(Box::new(message)), aside, true)
        };
        for part in parts(text, LOG_BYTES) {
            let aside = (part.len() > LOG_INLINE).then(|| sealed(part).ok()).flatten();
            // Too many descriptors may be under way, for which no request waits.
            if aside.is_none_or(|aside| send(b"", &[aside.as_fd()]).is_err()) {
                for piece in parts(part, LOG_INLINE) {
                    // Without a master there is no log.
                    let _ = send(piece, &[]);
                }
            }
        }
    }

    /// PHP has started up: what is the answer?
    pub fn answer(&mut self) -> Answer {
        let (slot, settings) = (self.worker.slot(), self.pool());
        if self.length == Length::Bad {
            return Answer::Page(Page::error(400, "Bad Request: CONTENT_LENGTH is not a number.\n"));
        }
        match self.cut {
            None => {}
            Some(Cut::Aborted) => return Answer::Nothing,
            Some(Cut::TimedOut) => {
                return Answer::Page(Page::error(
                    408,
                    "Request Timeout: the rest of the body did not come.\n",
                ));
            }
            Some(Cut::Short | Cut::Closed) => {
                return Answer::Page(Page::error(400, "Bad Request: the body is not complete.\n"));
            }
        }
        slot.set_stage(Stage::Running, monotonic_ns());
        if self.params.get("REQUEST_METHOD").is_none() {
            return Answer::Nothing;
        }
        if let Some(uri) = &self.script.uri {
            let is = |path: &Option<String>| path.as_ref().is_some_and(|path| path.as_bytes() == uri);
            if is(&settings.ping_path) {
                return Answer::Page(Page::made(200, pong(&settings.ping_response, self.is_head())));
            }
            if is(&settings.status_path) {
                let get = |name| self.params.get(name).unwrap_or_default();
                let view = View::of(get("QUERY_STRING"), get("HTTP_ACCEPT"));
                return Answer::Page(match self.worker.ask_status() {
                    Some(snapshot) => {
                        let mut page = self.worker.status_page.borrow_mut();
                        Page::made(200, page.reply(&snapshot, view, self.is_head()))
                    }
                    None => {
                        self.log(Level::Error, false, b"status: the master does not answer");
                        Page::made(500, unavailable())
                    }
                });
            }
        }
        if self.script.path.is_none() {
            self.log(Level::Debug, false, b"Primary script unknown");
            return Answer::Page(Page::error(404, "File not found.\n"));
        }
        Answer::Script
    }

    /// Whether security.limit_extensions lets this path be run: longer than one of the suffixes, and ending with it.
    pub fn may_run(&self, path: &[u8]) -> bool {
        let list = &self.pool().limit_extensions;
        list.is_empty()
            || list
                .iter()
                .any(|suffix| path.len() > suffix.len() && path.ends_with(suffix.as_bytes()))
    }

    /// Whether the pool fixes this setting.
    pub fn is_admin_value(&self, name: &[u8]) -> bool {
        self.worker
            .admin_values()
            .iter()
            .any(|entry| entry.key.as_bytes() == name)
    }

    /// The script has ended; shutdown functions and destructors follow.
    pub fn executed(&mut self, status: u16, peak_memory: u64) {
        self.executed = true;
        self.status = status;
        let (slot, now) = (self.worker.slot(), monotonic_ns());
        slot.memory.store(peak_memory, Relaxed);
        // One writer: no read-modify-write is needed.
        let most = slot.memory_peak.load(Relaxed).max(peak_memory);
        slot.memory_peak.store(most, Relaxed);
        slot.set_stage(Stage::Finishing, now);
        self.worker.log_access(self, now, peak_memory);
    }

    /// The FastCGI request has ended, and its connection is not kept.
    pub fn is_closed(&self) -> bool {
        self.finished && !(self.begin.keep && self.lost.is_none())
    }

    /// Ends the FastCGI request.
    pub fn finish(&mut self, goes_on: bool) {
        let first = !std::mem::replace(&mut self.finished, true);
        if self.executed {
            // Before the client knows that its request is over, so that the log is complete when it looks.
            self.worker.end_lines();
        }
        let over = self.executed && !goes_on;
        if over {
            // And before it can send the next one: to whoever takes that, this worker must not look busy.
            self.worker.stop_counting();
        }
        let worker = self.worker;
        if first && let Some(conn) = &mut self.conn {
            if self.lost.is_none()
                && let Err(why) = self.out.end(
                    ProtocolStatus::Complete,
                    conn,
                    worker.pool().response_write_timeout,
                    || {
                        // The client takes its time, and so does this worker.
                        if over && worker.board.header().request_begins(worker.slot()) {
                            worker.ring();
                        }
                    },
                )
            {
                self.lost = Some(why);
            }
            conn.input.finish();
            conn.unwanted = match (&self.body, self.length) {
                (Body::Stdin, Length::Known(_)) => self.body_left,
                _ => 0,
            };
            // A script that works on after fastcgi_finish_request() must not hold the client's connection.
            if goes_on {
                self.worker.slot().set_stage(Stage::Finishing, monotonic_ns());
                if let Some(conn) = self.conn.take() {
                    self.worker.release(conn, self.lost, self.begin.keep);
                }
            }
        }
    }

    /// Lets go of the connection, unsaid and unsent: another process answers on it.
    pub fn abandon(&mut self) {
        self.conn = None;
    }

    /// fpm_get_status()'s array, flat.
    pub fn pool_status(&mut self) -> Option<&[CField]> {
        let snapshot = self.worker.ask_status()?;
        self.fields = php_pool::status::fields(&snapshot);
        self.c_fields = self.fields.iter().map(CField::from).collect();
        Some(&self.c_fields)
    }

    /// Nothing is left to do.
    pub fn over(mut self) -> Over {
        self.c_params.clear();
        self.c_params.shrink_to(MOST_KEPT);
        if self.named && !self.executed {
            self.worker.end_lines();
        }
        let memory = Memory {
            params: self.params,
            out: self.out,
            c_params: self.c_params,
        };
        Over {
            conn: self.conn.map(|conn| (conn, self.lost)),
            keep: self.begin.keep && !matches!(self.cut, Some(Cut::TimedOut | Cut::Closed)),
            memory,
        }
    }
}

/// A message in parts of so many bytes at most, each of whole characters.
fn parts(text: &[u8], most: usize) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut end = rest.len().min(most);
        // A character has four bytes at most; what is none is cut anywhere.
        for _ in 0..3 {
            if rest.get(end).is_some_and(|byte| byte & 0xc0 == 0x80) {
                end -= 1;
            }
        }
        let (part, more) = rest.split_at(end);
        rest = more;
        (!part.is_empty()).then_some(part)
    })
}

/// Records that have nothing to do with the request under way.
pub fn answer_aside(out: &mut Output, event: &Event, capacity: u32) {
    out.add_record(|bytes| match event {
        Event::GetValues(asked) => append_get_values_result(bytes, asked, capacity),
        Event::UnknownType(kind) => append_unknown_type(bytes, *kind),
        Event::UnknownRole { id, .. } => append_end_request(bytes, *id, ProtocolStatus::UnknownRole),
        Event::CantMultiplex(id) => append_end_request(bytes, *id, ProtocolStatus::CantMultiplex),
        Event::Abort { id, .. } => append_end_request(bytes, *id, ProtocolStatus::Complete),
        Event::NeedMore | Event::Request(_) | Event::Stdin(_) | Event::StdinEnd => {}
    });
}

/// X-Request-Start (`t=` and seconds with a fraction, or a whole number of milliseconds or microseconds), to `now`,
/// microseconds since the epoch. None: it says nothing, or not the truth.
fn waited(text: &[u8], now: u64) -> Option<u64> {
    const LONGEST: u64 = 3_600_000_000;
    let text = std::str::from_utf8(text).ok()?;
    let text = text.strip_prefix("t=").unwrap_or(text);
    let micros = match text.split_once('.') {
        Some((seconds, fraction)) => {
            let digits = fraction.len() <= 6 && fraction.bytes().all(|byte| byte.is_ascii_digit());
            let fraction: u64 = digits.then(|| format!("{fraction:0<6}").parse().ok())??;
            seconds.parse::<u32>().ok().map(u64::from)? * 1_000_000 + fraction
        }
        None => {
            let number: u64 = text.parse().ok()?;
            match text.len() {
                13 => number * 1_000,
                16 => number,
                _ => return None,
            }
        }
    };
    now.checked_sub(micros).filter(|wait| *wait <= LONGEST)
}

/// A length in decimal digits; nothing at all is 0. None: it is no length.
fn parse_length(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return Some(0);
    }
    let text = std::str::from_utf8(text).ok()?.trim_matches(' ');
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
        .filter(|&n: &u64| n <= i64::MAX as u64)
}

fn decode_base64(text: &[u8]) -> Vec<u8> {
    let (mut out, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for &byte in text {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => continue,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let text = format!("x{}", "é€😀".repeat(LOG_BYTES / 4));
        let cut: Vec<_> = parts(text.as_bytes(), LOG_BYTES).collect();
        assert!(
            cut.len() > 2
                && cut
                    .iter()
                    .all(|part| part.len() <= LOG_BYTES && str::from_utf8(part).is_ok())
        );
        assert_eq!(cut.concat(), text.as_bytes());
        // What is no text is cut, too.
        let none = vec![0x80; 2 * LOG_BYTES];
        assert_eq!(parts(&none, LOG_BYTES).collect::<Vec<_>>().concat(), none);
        assert_eq!(parts(b"", LOG_BYTES).count(), 0);
    }

    #[test]
    fn lengths_are_numbers_or_nothing() {
        assert_eq!(parse_length(b""), Some(0));
        assert_eq!(parse_length(b"12"), Some(12));
        for wrong in ["-1", "+1", "1a", "0x10", "99999999999999999999", "9223372036854775808"] {
            assert_eq!(parse_length(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn the_web_server_says_since_when_a_request_waits() {
        let now = 1_795_207_850_500_000;
        for (text, wait) in [
            ("t=1795207850.000", Some(500_000)),
            ("1795207850.5", Some(0)),
            ("t=1795207850400", Some(100_000)),
            ("t=1795207850499999", Some(1)),
            ("t=1795207851.000", None),
            ("t=1", None),
            ("t=1795200000.000", None),
            ("", None),
            ("t=1.2.3", None),
            ("t=-1.000", None),
            ("t=1795207850.0000000001", None),
            ("t=9999999999999999999999", None),
        ] {
            assert_eq!(waited(text.as_bytes(), now), wait, "{text}");
        }
    }

    #[test]
    fn base64_is_decoded() {
        assert_eq!(decode_base64(b"dXNlcjpwYXNz"), b"user:pass");
        assert_eq!(decode_base64(b"dTo="), b"u:");
    }
}
