//! The clients: each asks, checks every byte of the answer, and asks again.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::ledger::{Failure, Ledger, Worker};
use crate::random::Random;
use crate::support::fcgi::{self, Address, Connection, END_REQUEST, KEEP_CONN, Record, STDOUT};

/// A request that has no answer after this is stalled. Long: two cores may be shared by many.
pub const STALLED: Duration = Duration::from_secs(30);

/// What the clients run. It begins by writing down that it does. The first line of its answer is the worker's pid and which start
/// of the server it belongs to, sent at once where `flush` says so; then the work, and what came in as its length and hash; then
/// as many bytes as asked for. `finish` lets the client go before the end, of which a file tells.
pub const SCRIPT: &str = r#"<?php
file_put_contents(__DIR__ . '/begun', "{$_GET['id']} " . getmypid() . "\n", FILE_APPEND);
header('Content-Type: text/plain');
switch ($_GET['greed'] ?? '') {
case 'descriptors':
    while ($held[] = @fopen('/dev/null', 'r'));
    break;
case 'address-space':
    register_shutdown_function(fn() => posix_setrlimit(POSIX_RLIMIT_AS, -1, -1));
    posix_setrlimit(POSIX_RLIMIT_AS, explode(' ', file_get_contents('/proc/self/statm'))[0] * 4096 + (16 << 20), -1);
    ini_set('memory_limit', -1);
case 'memory':
    for (;;) $held[] = str_repeat('x', 1 << 20);
}
echo 'pid ', getmypid(), ' of ', getenv('START') ?: 0, "\n";
if (isset($_GET['flush'])) flush();
$in = file_get_contents('php://input');
if ($_GET['ms'] > 0) usleep($_GET['ms'] * 1000);
echo "id {$_GET['id']} length ", strlen($in), ' hash ', hash('fnv1a64', $in), "\n";
echo substr(str_repeat("{$_GET['id']}.", intdiv($_GET['out'], strlen($_GET['id']) + 1) + 1), 0, $_GET['out']);
if (isset($_GET['finish'])) {
    fastcgi_finish_request();
    usleep($_GET['finish'] * 1000);
    file_put_contents(__DIR__ . '/finished/' . $_GET['id'], getmypid());
}
"#;

/// Makes what the script writes into.
pub fn prepare(www: &Path) {
    let writable = |mode, path: &Path| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    };
    let finished = www.join("finished");
    fs::create_dir_all(&finished).expect("a temporary folder can be written");
    writable(0o777, &finished);
    fs::write(www.join("begun"), "").expect("a temporary folder can be written");
    writable(0o666, &www.join("begun"));
}

/// Which worker has begun to run which request, and the requests that more than one has.
pub fn begun(www: &Path) -> (HashMap<u64, i32>, Vec<u64>) {
    let (mut by, mut twice) = (HashMap::new(), Vec::new());
    let text = fs::read_to_string(www.join("begun")).expect("it was made");
    for line in text.lines() {
        let (id, pid) = line.split_once(' ').expect("an id and a pid");
        let (id, pid) = (id.parse().expect("an id"), pid.parse().expect("a pid"));
        if by.insert(id, pid).is_some() {
            twice.push(id);
        }
    }
    (by, twice)
}

/// One kind of client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 1 to 20 ms.
    Short,
    /// 1 to 3 s.
    Long,
    /// Bodies of up to 1 MB, and answers as large.
    Large,
    /// fastcgi_finish_request(), and work after it.
    Finish,
    /// Takes all descriptors that its worker may have.
    Descriptors,
    /// Takes all memory that PHP gives it, or the system, and is told so.
    Memory,
    /// Dawdles before its request and in the middle of it, and says at its end that nothing more will come.
    Slow,
    /// Leaves in the middle of its answer.
    Rude,
}

/// What a rude client asks for: more than the buffers of a socket take.
const MUCH: usize = 8 << 20;

/// One request.
pub struct Request {
    pub id: u64,
    pub milliseconds: u64,
    pub body: Vec<u8>,
    /// Bytes of answer.
    pub out: usize,
    /// Milliseconds of work after the client was let go.
    pub finish: Option<u64>,
    pub flush: bool,
    /// What it takes all of.
    pub greed: Option<&'static str>,
}

impl Request {
    pub fn plain(id: u64, milliseconds: u64) -> Self {
        Self {
            id,
            milliseconds,
            body: Vec::new(),
            out: 0,
            finish: None,
            flush: milliseconds > 100,
            greed: None,
        }
    }

    fn of(kind: Kind, id: u64, random: &mut Random) -> Self {
        let plain = Self::plain(id, random.between(1, 20));
        match kind {
            Kind::Short => Self {
                body: random.bytes(1000),
                out: random.below(2000) as usize,
                ..plain
            },
            Kind::Long => Self::plain(id, random.between(1000, 3000)),
            Kind::Large => Self {
                body: {
                    let most = [1, 8 << 10, 64 << 10, 1 << 20][random.below(4) as usize];
                    random.bytes(most)
                },
                out: random.below(1 << 20) as usize,
                ..plain
            },
            Kind::Finish => Self {
                finish: Some(random.between(1, 500)),
                ..plain
            },
            Kind::Descriptors => Self {
                greed: Some("descriptors"),
                ..plain
            },
            Kind::Memory => Self {
                // The system's refusal ends a worker; with each of them its idle connections go, too.
                greed: Some(if random.below(20) == 0 {
                    "address-space"
                } else {
                    "memory"
                }),
                ..plain
            },
            Kind::Slow => Self {
                body: random.bytes(1000),
                ..plain
            },
            Kind::Rude => Self { out: MUCH, ..plain },
        }
    }

    pub fn query(&self) -> String {
        let mut query = format!("id={}&ms={}&out={}", self.id, self.milliseconds, self.out);
        if let Some(finish) = self.finish {
            query += &format!("&finish={finish}");
        }
        if self.flush {
            query += "&flush=1";
        }
        if let Some(greed) = self.greed {
            query += &format!("&greed={greed}");
        }
        query
    }

    /// The answer without its first line.
    pub fn expected(&self) -> Vec<u8> {
        let unit = format!("{}.", self.id);
        let mut text = format!(
            "id {} length {} hash {:016x}\n",
            self.id,
            self.body.len(),
            fnv(&self.body)
        )
        .into_bytes();
        text.extend(unit.bytes().cycle().take(self.out));
        text
    }

    pub fn bytes(&self, script: &str, keep: bool) -> Vec<u8> {
        let query = self.query();
        let length = self.body.len().to_string();
        let params = [
            ("SCRIPT_FILENAME", script),
            ("SCRIPT_NAME", "/chaos.php"),
            ("REQUEST_URI", "/chaos.php"),
            ("REQUEST_METHOD", if self.body.is_empty() { "GET" } else { "POST" }),
            ("QUERY_STRING", &query),
            ("CONTENT_LENGTH", &length),
            ("CONTENT_TYPE", "application/octet-stream"),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
        ];
        fcgi::request(if keep { KEEP_CONN } else { 0 }, &params, &self.body)
    }
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What is wrong with an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    what: String,
    /// There is none at all.
    silent: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// The answer to one request, or what is wrong with it; and the worker, if it got as far as to say it.
pub fn ask(
    connection: &mut Connection,
    request: &Request,
    script: &str,
    keep: bool,
) -> (Option<Worker>, Result<(), Fault>) {
    connection.send(&request.bytes(script, keep));
    answer(connection, request)
}

/// The second half of [`ask`].
pub fn answer(connection: &mut Connection, request: &Request) -> (Option<Worker>, Result<(), Fault>) {
    let deadline = Instant::now() + STALLED;
    let (mut stdout, mut others) = (Vec::new(), 0);
    let end = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match connection.record_within(left) {
            Some(Record {
                kind: STDOUT, content, ..
            }) => stdout.extend(content),
            Some(Record {
                kind: END_REQUEST,
                content,
                ..
            }) => break Ok(content),
            Some(_) => others += 1,
            None if Instant::now() >= deadline => break Err(format!("stalled for {STALLED:?}")),
            None => break Err("the connection was closed".to_owned()),
        }
    };
    let begin = stdout
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .map_or(stdout.len(), |at| at + 4);
    let (worker, rest) = read_worker(&stdout[begin..]);
    let starved = |end: &[u8]| end == [0; 8] && stdout.starts_with(b"Status: 500");
    let outcome = match end {
        // It failed as it must, and its worker did not.
        Ok(end) if matches!(request.greed, Some("memory" | "address-space")) && starved(&end) => Ok(()),
        Err(what) => Err(format!("{what} after {} bytes of the answer", stdout.len())),
        Ok(end) if end != [0; 8] || others > 0 => Err(format!(
            "END_REQUEST says {end:?}, {others} records of other types, and the answer is {}",
            String::from_utf8_lossy(&stdout[..stdout.len().min(300)])
        )),
        Ok(_) if rest != request.expected() => Err(format!(
            "the answer is wrong; it has {} bytes for {}: {}",
            rest.len(),
            request.expected().len(),
            String::from_utf8_lossy(&stdout[..stdout.len().min(300)])
        )),
        Ok(_) => Ok(()),
    };
    let silent = stdout.is_empty();
    (worker, outcome.map_err(|what| Fault { what, silent }))
}

/// The worker in the first line of an answer, and what follows it.
pub fn read_worker(body: &[u8]) -> (Option<Worker>, &[u8]) {
    let read = || {
        let line = body.split(|byte| *byte == b'\n').next()?;
        let (pid, start) = std::str::from_utf8(line.strip_prefix(b"pid ")?)
            .ok()?
            .split_once(" of ")?;
        let (pid, start) = (pid.parse().ok()?, start.parse().ok()?);
        Some((Worker { pid, start }, body.get(line.len() + 1..)?))
    };
    read().map_or((None, body), |(worker, rest)| (Some(worker), rest))
}

/// Sends a request as a client of this kind does.
fn send(kind: Kind, connection: &mut Connection, bytes: &[u8], random: &mut Random) {
    if kind != Kind::Slow {
        connection.send(bytes);
        return;
    }
    let cut = random.below(bytes.len() as u64) as usize;
    for part in [&bytes[..cut], &bytes[cut..]] {
        std::thread::sleep(Duration::from_millis(random.below(30)));
        connection.send(part);
    }
    if random.below(2) == 0 {
        connection.half_close();
    }
}

/// What comes of it.
fn receive(kind: Kind, connection: &mut Connection, request: &Request) -> (Option<Worker>, Result<(), Fault>) {
    if kind != Kind::Rude {
        return answer(connection, request);
    }
    match connection.record_within(STALLED) {
        Some(_) => (None, Ok(())),
        None => {
            let what = "there was no answer to leave".to_owned();
            (None, Err(Fault { what, silent: true }))
        }
    }
}

/// What all clients of a run share.
pub struct Shared {
    pub ledger: Ledger,
    pub script: String,
    pub seed: u64,
    ids: AtomicU64,
    over: AtomicBool,
    /// Whether something is being done to the server now.
    pub chaos: AtomicBool,
    /// Requests that have work to do after their clients are gone, and the workers that do it.
    pub finishing: Mutex<Vec<(u64, i32)>>,
    /// The names of the two phases.
    pub phases: [&'static str; 2],
}

impl Shared {
    pub fn new(script: String, seed: u64, phases: [&'static str; 2]) -> Arc<Self> {
        Arc::new(Self {
            ledger: Ledger::default(),
            script,
            seed,
            ids: AtomicU64::new(1),
            over: AtomicBool::new(false),
            chaos: AtomicBool::new(false),
            finishing: Mutex::default(),
            phases,
        })
    }

    pub fn id(&self) -> u64 {
        self.ids.fetch_add(1, Relaxed)
    }

    pub fn phase(&self) -> &'static str {
        self.phases[usize::from(self.chaos.load(Relaxed))]
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Relaxed)
    }
}

/// Clients that run until they are told to stop.
pub struct Load {
    pub shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            clients: Vec::new(),
        }
    }

    /// One more client of a pool, on kept connections or new ones.
    pub fn client(&mut self, pool: &'static str, address: &Address, kind: Kind, keep: bool) {
        let (shared, address) = (self.shared.clone(), address.clone());
        let mut random = Random::new(shared.seed ^ (self.clients.len() as u64 + 1) << 32);
        self.spawn(move || {
            let mut kept: Option<(Connection, Worker)> = None;
            while !shared.is_over() {
                let request = Request::of(kind, shared.id(), &mut random);
                let phase = shared.phase();
                let began = Instant::now();
                let (held_by, connection) = match kept.take() {
                    Some((connection, worker)) => (Some(worker), Ok(connection)),
                    None => (None, Connection::open(&address)),
                };
                let mut sent = began;
                let (worker, outcome, connection) = match connection {
                    Ok(mut connection) => {
                        send(kind, &mut connection, &request.bytes(&shared.script, keep), &mut random);
                        sent = Instant::now();
                        let (worker, outcome) = receive(kind, &mut connection, &request);
                        (worker, outcome, Some(connection))
                    }
                    Err(error) => {
                        let what = format!("no connection: {error}");
                        (None, Err(Fault { what, silent: false }), None)
                    }
                };
                match outcome {
                    Ok(()) => {
                        shared
                            .ledger
                            .served(phase, (kind == Kind::Short).then(|| began.elapsed()));
                        if let (Some(_), Some(worker)) = (request.finish, worker) {
                            shared
                                .finishing
                                .lock()
                                .expect("nobody panics with it")
                                .push((request.id, worker.pid));
                        }
                        // A connection is used for a while only, as web servers do.
                        if keep && random.below(50) > 0 {
                            kept = connection.zip(worker);
                        }
                    }
                    Err(Fault { what, silent }) => shared.ledger.failed(Failure {
                        pool,
                        id: request.id,
                        what: format!(
                            "{kind:?} request {} on a {} connection: {what}",
                            request.id,
                            if held_by.is_some() { "kept" } else { "new" }
                        ),
                        silent,
                        // Where the system refuses PHP its own memory, PHP ends the process.
                        fatal: request.greed == Some("address-space"),
                        held_by,
                        began,
                        sent,
                        ended: Instant::now(),
                    }),
                }
                // Think time, so that kept connections are idle now and then.
                std::thread::sleep(Duration::from_millis(random.below(10)));
            }
        });
    }

    pub fn spawn(&mut self, client: impl FnOnce() + Send + 'static) {
        self.clients.push(std::thread::spawn(client));
    }

    /// Lets every client finish its request.
    pub fn stop(self) -> Arc<Shared> {
        self.shared.over.store(true, Relaxed);
        for client in self.clients {
            client.join().expect("a client panicked");
        }
        self.shared
    }
}
