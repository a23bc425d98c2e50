//! What a case is, and how it is run: on php-fpm, then on php-pool, then both transcripts are compared.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::{Duration, Instant, SystemTime};

use libtest_mimic::{Failed, Trial};
use tempfile::TempDir;

use crate::support::fcgi::{self, Connection, PATIENCE, Reply};
use crate::support::server::{Kind, Server, Setup, Version, php_fpm_release, www};

/// One case: what is done to each server, and whether both must answer alike.
pub struct Case {
    /// `group::a_sentence_of_behaviour`.
    pub name: String,
    setup: &'static Setup,
    /// None when the servers must not differ.
    pub difference: Option<Difference>,
    alone: bool,
    run: Box<dyn Fn(&mut Run) + Send + Sync>,
}

/// Why the servers differ.
#[derive(Clone, Copy)]
pub struct Difference {
    pub reason: &'static str,
    /// The release of php-fpm from which on they no longer do.
    pub until: Option<Version>,
}

impl Difference {
    /// Whether it is there with the php-fpm of this machine.
    fn is_there(&self) -> bool {
        self.until.is_none_or(|until| php_fpm_release() < until)
    }
}

impl Case {
    /// No other case runs on the same servers meanwhile: for cases that need several workers at once.
    pub fn alone(&mut self) -> &mut Self {
        self.alone = true;
        self
    }
}

/// The cases of one group.
pub struct Cases {
    group: &'static str,
    pub list: Vec<Case>,
}

impl Cases {
    pub fn of(group: &'static str, add: impl FnOnce(&mut Self)) -> Vec<Case> {
        let mut cases = Self {
            group,
            list: Vec::new(),
        };
        add(&mut cases);
        cases.list
    }

    /// A case in which everything recorded must be alike in both servers.
    pub fn same(
        &mut self,
        name: impl AsRef<str>,
        setup: &'static Setup,
        run: impl Fn(&mut Run) + Send + Sync + 'static,
    ) -> &mut Case {
        self.add(name.as_ref(), setup, None, Box::new(run))
    }

    /// A case in which php-pool answers otherwise, for a reason. That both still differ is checked too.
    pub fn differs(
        &mut self,
        name: impl AsRef<str>,
        setup: &'static Setup,
        reason: &'static str,
        run: impl Fn(&mut Run) + Send + Sync + 'static,
    ) -> &mut Case {
        let difference = Difference { reason, until: None };
        self.add(name.as_ref(), setup, Some(difference), Box::new(run))
    }

    /// A case in which php-fpm answered otherwise before the release `until`, and must answer alike since.
    pub fn differed(
        &mut self,
        name: impl AsRef<str>,
        setup: &'static Setup,
        until: Version,
        reason: &'static str,
        run: impl Fn(&mut Run) + Send + Sync + 'static,
    ) -> &mut Case {
        let until = Some(until);
        self.add(name.as_ref(), setup, Some(Difference { reason, until }), Box::new(run))
    }

    fn add(
        &mut self,
        name: &str,
        setup: &'static Setup,
        difference: Option<Difference>,
        run: Box<dyn Fn(&mut Run) + Send + Sync>,
    ) -> &mut Case {
        self.list.push(Case {
            name: format!("{}::{name}", self.group),
            setup,
            difference,
            alone: false,
            run,
        });
        self.list.last_mut().expect("just pushed")
    }
}

/// A request as a web server sends it, until a case makes it something else.
#[derive(Clone, Debug)]
pub struct Request {
    pub id: u16,
    pub role: u16,
    pub flags: u8,
    pub params: Vec<(Vec<u8>, Vec<u8>)>,
    pub body: Vec<u8>,
    /// Most bytes in a STDIN record.
    pub record_size: usize,
}

impl Request {
    /// Without any parameter.
    pub fn bare() -> Self {
        Self {
            id: 1,
            role: fcgi::RESPONDER,
            flags: 0,
            params: Vec::new(),
            body: Vec::new(),
            record_size: 0xffff,
        }
    }

    /// Sets a parameter in its place, or adds it at the end.
    pub fn set(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        let (name, value) = (name.as_ref(), value.as_ref().to_vec());
        match self.params.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value,
            None => self.params.push((name.to_vec(), value)),
        }
        self
    }

    /// Adds a parameter at the end, even if it is there already.
    pub fn add(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.params.push((name.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    pub fn unset(mut self, name: &str) -> Self {
        self.params.retain(|(n, _)| n != name.as_bytes());
        self
    }

    pub fn query(self, query: &str) -> Self {
        let uri = String::from_utf8_lossy(&self.get("REQUEST_URI").unwrap_or_default()).into_owned();
        self.set("QUERY_STRING", query)
            .set("REQUEST_URI", format!("{uri}?{query}"))
    }

    /// Makes it a POST with this body.
    pub fn post(self, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let mut request = self
            .set("REQUEST_METHOD", "POST")
            .set("CONTENT_TYPE", content_type)
            .set("CONTENT_LENGTH", body.len().to_string());
        request.body = body;
        request
    }

    pub fn method(self, method: &str) -> Self {
        self.set("REQUEST_METHOD", method)
    }

    pub fn keep(mut self) -> Self {
        self.flags |= fcgi::KEEP_CONN;
        self
    }

    pub fn id(self, id: u16) -> Self {
        Self { id, ..self }
    }

    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.params
            .iter()
            .find(|(n, _)| n == name.as_bytes())
            .map(|(_, v)| v.clone())
    }

    /// The parameters as name-value pairs.
    pub fn pairs(&self) -> Vec<u8> {
        self.params
            .iter()
            .flat_map(|(name, value)| fcgi::pair(name, value))
            .collect()
    }

    /// BEGIN_REQUEST and the parameters, in as few records as they fit in without straddling.
    pub fn head(&self) -> Vec<u8> {
        let mut bytes = fcgi::begin(self.id, self.role, self.flags).bytes();
        let mut content = Vec::new();
        for (name, value) in &self.params {
            let pair = fcgi::pair(name, value);
            if content.len() + pair.len() > 0xffff {
                bytes.extend(fcgi::Record::new(fcgi::PARAMS, self.id, std::mem::take(&mut content)).bytes());
            }
            content.extend(pair);
        }
        bytes.extend(fcgi::stream(fcgi::PARAMS, self.id, &content, 0xffff));
        bytes
    }

    /// The body as STDIN records, with the one that ends it.
    pub fn tail(&self) -> Vec<u8> {
        fcgi::stream(fcgi::STDIN, self.id, &self.body, self.record_size)
    }

    pub fn bytes(&self) -> Vec<u8> {
        [self.head(), self.tail()].concat()
    }
}

/// One run of one case on one server.
pub struct Run<'a> {
    pub server: &'a Server,
    /// Document root of the case: empty when the run begins, at the same path for both servers.
    pub root: PathBuf,
    transcript: String,
}

impl Run<'_> {
    pub fn is_php_pool(&self) -> bool {
        self.server.kind == Kind::PhpPool
    }

    /// Whether this is php-pool, or a php-fpm in which a fault is mended, as it is since this release.
    pub fn is_right_since(&self, release: Version) -> bool {
        self.is_php_pool() || php_fpm_release() >= release
    }

    /// The document root as text.
    pub fn www(&self) -> String {
        self.root.display().to_string()
    }

    /// Writes a file below the document root, with its folders.
    pub fn file(&self, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let file = self.root.join(path.trim_start_matches('/'));
        fs::create_dir_all(file.parent().expect("below the root")).expect("the document root can be written");
        fs::write(&file, content).expect("the document root can be written");
        // opcache takes a file into its cache only when it is some seconds old, and tells versions by whole seconds.
        static VERSION: AtomicU64 = AtomicU64::new(0);
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000 + VERSION.fetch_add(1, Ordering::Relaxed));
        let opened = fs::File::options().write(true).open(&file).expect("just written");
        opened.set_modified(old).expect("it is ours");
        file
    }

    /// A folder below the document root in which workers may write.
    pub fn writable(&self, path: &str) -> PathBuf {
        let folder = self.root.join(path);
        fs::create_dir_all(&folder).expect("the document root can be written");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("we made it");
        folder
    }

    /// `kept`, a folder in the workers' own one, where they may write.
    pub fn kept_by_the_worker(&self) {
        let folder = self.server.home.join("kept");
        fs::create_dir_all(&folder).expect("the folder is ours");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("we made it");
    }

    /// A GET of `uri`, with what nginx's fastcgi.conf sends, in its order.
    pub fn get(&self, uri: &str) -> Request {
        let root = self.www();
        Request::bare()
            .set("SCRIPT_FILENAME", format!("{root}{uri}"))
            .set("QUERY_STRING", "")
            .set("REQUEST_METHOD", "GET")
            .set("CONTENT_TYPE", "")
            .set("CONTENT_LENGTH", "")
            .set("SCRIPT_NAME", uri)
            .set("REQUEST_URI", uri)
            .set("DOCUMENT_URI", uri)
            .set("DOCUMENT_ROOT", root)
            .set("SERVER_PROTOCOL", "HTTP/1.1")
            .set("REQUEST_SCHEME", "http")
            .set("GATEWAY_INTERFACE", "CGI/1.1")
            .set("SERVER_SOFTWARE", "nginx/1.22.1")
            .set("REMOTE_ADDR", "192.0.2.1")
            .set("REMOTE_PORT", "40000")
            .set("SERVER_ADDR", "192.0.2.2")
            .set("SERVER_PORT", "80")
            .set("SERVER_NAME", "example.org")
            .set("REDIRECT_STATUS", "200")
            .set("HTTP_HOST", "example.org")
    }

    /// Writes `code` (without the opening tag) as `/index.php` and prepares a GET of it.
    pub fn page(&self, code: &str) -> Request {
        self.file("index.php", format!("<?php {code}\n"));
        self.get("/index.php")
    }

    /// Runs `code` by a plain GET.
    pub fn php(&mut self, code: &str) -> Reply {
        let request = self.page(code);
        self.send(&request)
    }

    pub fn connect(&self) -> Connection {
        self.server.connect()
    }

    /// Sends a request over a connection of its own, and records the answer.
    pub fn send(&mut self, request: &Request) -> Reply {
        let reply = self.send_unrecorded(request);
        self.record(&reply);
        reply
    }

    /// The same for an answer with something in it that is never alike, as a time: note what is.
    pub fn send_unrecorded(&self, request: &Request) -> Reply {
        // Made before: php-fpm waits five seconds for the first byte.
        let bytes = request.bytes();
        let mut connection = self.connect();
        connection.send(&bytes);
        let reply = connection.reply(request.id);
        self.check(&reply, request.id);
        if request.flags & fcgi::KEEP_CONN == 0 && reply.end.is_some() {
            let (rest, _) = connection.end();
            assert!(
                rest.is_empty(),
                "after END_REQUEST came {:?}",
                rest.escape_ascii().to_string()
            );
        }
        reply
    }

    /// Sends raw bytes over a connection of its own, and records the answer to request 1.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Reply {
        let mut connection = self.connect();
        connection.send(bytes);
        self.reply(&mut connection, 1)
    }

    /// Reads and records the answer to request `id`.
    pub fn reply(&mut self, connection: &mut Connection, id: u16) -> Reply {
        let reply = connection.reply(id);
        self.check(&reply, id);
        self.record(&reply);
        reply
    }

    /// What php-pool sends is held to the specification; php-fpm is not (it leaks old bytes into END_REQUEST).
    fn check(&self, reply: &Reply, id: u16) {
        if self.is_php_pool() {
            let faults = reply.faults(id);
            assert!(
                faults.is_empty(),
                "against the FastCGI specification: {faults:#?}\n{reply}"
            );
        }
    }

    pub fn record(&mut self, reply: &Reply) {
        self.note(format!("reply\n{reply}"));
    }

    /// Adds a line to what is compared.
    pub fn note(&mut self, text: impl AsRef<str>) {
        let home = self.server.home.display().to_string();
        writeln!(self.transcript, "{}", text.as_ref().replace(&home, "{home}").trim_end()).expect("into a String");
    }
}

/// Waits for what a server does after its answer.
pub fn wait_until(what: &str, happened: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The servers, started when first needed, and the folder they live in.
pub struct Servers {
    root: TempDir,
    running: Mutex<HashMap<(Kind, &'static str), Arc<Slot>>>,
}

/// A server, and a lock that a case takes for itself if it must be alone.
type Slot = (OnceLock<Result<Server, String>>, RwLock<()>);

impl Servers {
    pub fn new() -> Self {
        let root = tempfile::Builder::new()
            .prefix("php-pool-request-")
            .tempdir()
            .expect("a folder for temporary files");
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("we made it");
        Self {
            root,
            running: Mutex::default(),
        }
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    fn slot(&self, kind: Kind, setup: &'static Setup) -> Arc<Slot> {
        let mut running = self.running.lock().expect("nobody panics with it");
        let slot = Arc::clone(running.entry((kind, setup.name)).or_default());
        drop(running);
        slot.0.get_or_init(|| Server::start(kind, setup, self.root()));
        slot
    }

    /// Stops all of them; what was wrong with any.
    pub fn stop(self) -> Vec<String> {
        let running = self.running.into_inner().expect("nobody panics with it");
        let stop = |slot: Arc<Slot>| match Arc::into_inner(slot)?.0.into_inner()? {
            Ok(mut server) => server.stop().err(),
            Err(_) => None,
        };
        let threads: Vec<_> = running
            .into_values()
            .map(|slot| std::thread::spawn(move || stop(slot)))
            .collect();
        threads
            .into_iter()
            .filter_map(|thread| thread.join().expect("stopping does not panic"))
            .collect()
    }
}

thread_local! {
    /// Where and why the case on this thread panicked.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps the message of a failed assertion for the trial's report, instead of printing it amid the others.
pub fn catch_assertions() {
    std::panic::set_hook(Box::new(|info| {
        let message = info.payload_as_str().unwrap_or("no message").to_owned();
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        PANIC.with_borrow_mut(|panic| *panic = Some(format!("{message}\n  at {place}")));
    }));
}

/// The trial of a case.
pub fn trial(case: Case, servers: &Arc<Servers>) -> Trial {
    let servers = Arc::clone(servers);
    Trial::test(case.name.clone(), move || {
        // For work on a case while there is no php-pool that can run.
        if Kind::under_test() == Kind::PhpFpm {
            let (transcript, failure) = run(&case, &servers, Kind::PhpFpm);
            return failure.map_or(Ok(()), |failure| Err(format!("{failure}\n{transcript}").into()));
        }
        let (theirs, their_failure) = run(&case, &servers, Kind::PhpFpm);
        let (ours, our_failure) = run(&case, &servers, Kind::PhpPool);
        let failures: Vec<String> = [their_failure, our_failure].into_iter().flatten().collect();
        if !failures.is_empty() {
            return Err(report(&failures.join("\n"), &theirs, &ours));
        }
        match case.difference.filter(Difference::is_there) {
            None if theirs != ours => Err(report("the servers differ, and must not", &theirs, &ours)),
            Some(_) if theirs == ours => Err(report("the servers no longer differ: correct the case", &theirs, &ours)),
            _ => Ok(()),
        }
    })
}

/// What happened, and both transcripts from a little before the first line in which they differ to a little after the last.
fn report(what: &str, theirs: &str, ours: &str) -> Failed {
    if theirs == ours {
        return format!("{what}\n--- both\n{theirs}").into();
    }
    const AROUND: usize = 4;
    let (theirs, ours): (Vec<&str>, Vec<&str>) = (theirs.lines().collect(), ours.lines().collect());
    let before = theirs.iter().zip(&ours).take_while(|(a, b)| a == b).count();
    let rest = theirs.len().min(ours.len()) - before;
    let after = theirs
        .iter()
        .rev()
        .zip(ours.iter().rev())
        .take(rest)
        .take_while(|(a, b)| a == b)
        .count();
    let from = before.saturating_sub(AROUND);
    let part = |lines: &[&str]| lines[from..(lines.len() - after + AROUND).min(lines.len())].join("\n");
    let at = before + 1;
    format!(
        "{what}\n--- php-fpm, differing from line {at}\n{}\n--- php-pool\n{}",
        part(&theirs),
        part(&ours)
    )
    .into()
}

/// Runs a case on one server: the transcript, and what failed.
fn run(case: &Case, servers: &Servers, kind: Kind) -> (String, Option<String>) {
    let slot = servers.slot(kind, case.setup);
    let server = match slot.0.get().expect("started by slot()") {
        Ok(server) => server,
        Err(e) => return (String::new(), Some(e.clone())),
    };
    // A poisoned lock only says that another case failed.
    let _shared = (!case.alone).then(|| slot.1.read().unwrap_or_else(|e| e.into_inner()));
    let _own = case.alone.then(|| slot.1.write().unwrap_or_else(|e| e.into_inner()));
    let root = www(servers.root(), case.setup).join(case.name.replace("::", "-"));
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(&root).expect("the folder for temporary files can be written");
    let mut run = Run {
        server,
        root,
        transcript: String::new(),
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| (case.run)(&mut run)));
    let failure = outcome.err().map(|_| {
        let message = PANIC.take().unwrap_or_default();
        format!("{}: {message}", kind.name())
    });
    (run.transcript, failure)
}
