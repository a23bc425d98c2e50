//! A master of a test's own: any configuration, real processes, real signals.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::fcgi::{self, Address, Connection, KEEP_CONN, PARAMS, RESPONDER, Reply, STDIN, begin, stream};
use crate::support::process::{Process, copy_program, family, kill_all, spawn, state, that_dies_with_us};

/// How long a condition may take: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Waits for a condition.
pub fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A folder with scripts and a configuration.
pub struct Place {
    dir: tempfile::TempDir,
    /// The configuration names no log.
    log_to_stderr: AtomicBool,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("php-pool-test").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        std::os::unix::fs::symlink(executable(), dir.path().join("php-fpm")).unwrap();
        Self {
            dir,
            log_to_stderr: AtomicBool::new(false),
        }
    }

    /// The same with a program of its own, `php-pool`, that can be replaced.
    pub fn with_own_program(self) -> Self {
        for other in ["php-pool.a", "php-pool.b"] {
            copy_program(&executable(), &self.path(other));
        }
        let worker = executable().with_file_name("php-pool-worker");
        std::os::unix::fs::symlink(worker, self.path("php-pool-worker")).unwrap();
        self.install();
        fs::remove_file(self.path("php-fpm")).unwrap();
        std::os::unix::fs::symlink(self.path("php-pool"), self.path("php-fpm")).unwrap();
        self
    }

    /// Puts another file of the same program into the place of the one there is, as a package does.
    pub fn install(&self) {
        fs::rename(self.path("php-pool.a"), self.path("php-pool.c")).unwrap();
        fs::rename(self.path("php-pool.b"), self.path("php-pool.a")).unwrap();
        fs::rename(self.path("php-pool.c"), self.path("php-pool.b")).unwrap();
        fs::hard_link(self.path("php-pool.b"), self.path("php-pool.c")).unwrap();
        fs::rename(self.path("php-pool.c"), self.path("php-pool")).unwrap();
    }

    fn program(&self) -> PathBuf {
        let own = self.path("php-pool");
        if own.exists() { own } else { executable() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// Makes a shared library of C code, which stays where it is loaded.
    pub fn library(&self, name: &str, code: &str) -> PathBuf {
        let source = self.write(&format!("{name}.c"), code);
        let library = self.path(&format!("{name}.so"));
        let mut command = Command::new("gcc");
        command
            .args(["-shared", "-fPIC", "-Wl,-z,nodelete", "-o"])
            .args([&library, &source]);
        assert!(command.status().expect("gcc is there").success());
        library
    }

    pub fn connect(&self, socket: &str) -> Connection {
        Connection::open(&Address::Unix(self.path(socket))).unwrap()
    }

    /// Sends a request for a script, with a query if it has one.
    pub fn ask(&self, connection: &mut Connection, uri: &str, flags: u8) {
        let bytes = [begin(1, RESPONDER, flags).bytes(), self.rest_of_request(uri)].concat();
        assert!(connection.send(&bytes));
    }

    /// What follows the first record of a request.
    pub fn rest_of_request(&self, uri: &str) -> Vec<u8> {
        let (script, query) = uri.split_once('?').unwrap_or((uri, ""));
        let file = self.path(script.trim_start_matches('/')).display().to_string();
        let params = [
            ("SCRIPT_FILENAME", file.as_str()),
            ("SCRIPT_NAME", script),
            ("REQUEST_METHOD", "GET"),
            ("QUERY_STRING", query),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
        ];
        [
            stream(PARAMS, 1, &fcgi::pairs(&params), 8192),
            stream(STDIN, 1, b"", 8192),
        ]
        .concat()
    }

    /// Writes the configuration. `{dir}` is this folder and `{user}` the line that root needs; a log and a pid file are
    /// set already.
    pub fn configure(&self, text: &str) {
        let user = if nix::unistd::geteuid().is_root() {
            "user = www-data"
        } else {
            ""
        };
        let text = format!("[global]\nerror_log = {{dir}}/error.log\npid = {{dir}}/pid\n{text}");
        let text = text
            .replace("{user}", user)
            .replace("{dir}", &self.dir.path().display().to_string());
        self.configure_as(&text);
    }

    fn configure_as(&self, text: &str) -> PathBuf {
        // `php-pool serve` logs to stderr then.
        let named = |line: &&str| line.starts_with("error_log") && self.log_to_stderr.load(Relaxed);
        let lines: Vec<&str> = text.lines().filter(|line| !named(line)).collect();
        self.write("pool.conf", &(lines.join("\n") + "\n"))
    }

    /// Starts a master in the foreground.
    pub fn start(self, arguments: &[&str]) -> Master {
        self.write("php.ini", "display_errors = 0\nlog_errors = 1\n");
        let mut command = that_dies_with_us("KILL", self.path("php-fpm"));
        command
            .args(["-F", "-O", "-y"])
            .arg(self.path("pool.conf"))
            .arg("-c")
            .arg(self.path("php.ini"));
        command.args(arguments);
        self.launch(command)
    }

    /// The same by our own command line, with a control socket `control`.
    pub fn start_with_control(self) -> Master {
        let mut command = that_dies_with_us("KILL", self.program());
        command.arg("serve").arg(self.log_to_stderr());
        command.arg("--control").arg(self.path("control"));
        self.launch(command)
    }

    /// The same as systemd starts it, with a folder of its own for the control socket.
    #[allow(dead_code, reason = "by the tier of the bus")]
    pub fn start_with_runtime_directory(self, name: &str) -> Master {
        let mut command = that_dies_with_us("KILL", executable());
        command.arg("serve").arg(self.log_to_stderr());
        command.env("RUNTIME_DIRECTORY", self.path(name));
        self.launch(command)
    }

    /// The configuration, from now on without a log of its own.
    fn log_to_stderr(&self) -> PathBuf {
        self.log_to_stderr.store(true, Relaxed);
        self.configure_as(&fs::read_to_string(self.path("pool.conf")).unwrap())
    }

    /// By our own command line, with the configuration as it is.
    #[allow(dead_code, reason = "by this tier alone")]
    pub fn start_as_configured(self) -> Master {
        let mut command = that_dies_with_us("KILL", self.program());
        command.arg("serve").arg(self.path("pool.conf"));
        self.launch(command)
    }

    fn launch(self, mut command: Command) -> Master {
        command.env("PHP_INI_SCAN_DIR", "");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = spawn(command).unwrap();
        let stderr = child.stderr.take().unwrap();
        let log = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let sink = log.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                sink.0.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
                sink.1.notify_all();
            }
        });
        Master {
            place: self,
            child,
            log,
            reader,
        }
    }

    /// Starts one that must come up.
    pub fn serve(self) -> Master {
        let master = self.start(&[]);
        master.said("ready to handle connections");
        master
    }

    /// The same, and waits for the workers of pool `www`.
    pub fn serve_with(self, workers: usize) -> Master {
        let master = self.serve();
        wait_for("the first workers", || master.workers("www").len() == workers);
        master
    }
}

/// Our program as it was built.
pub fn executable() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    this.ancestors().nth(2).unwrap().join("php-pool")
}

/// A running master.
pub struct Master {
    pub place: Place,
    child: Child,
    log: Arc<(Mutex<Vec<String>>, Condvar)>,
    /// Fills the log until nobody has the other end any more.
    reader: JoinHandle<()>,
}

impl Drop for Master {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Whoever reads of the failure may not be able to make it happen again.
            let states = self.family().iter().map(situation).collect::<Vec<_>>().join("\n");
            eprintln!(
                "its master said:\n{}\nand its processes are:\n{states}",
                self.log().join("\n")
            );
        }
        if let Ok(None) = self.child.try_wait() {
            // php-fpm's workers outlive a master that is killed.
            let family = self.family();
            kill_all(&mut self.child, &family, Duration::ZERO);
        }
    }
}

impl Master {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn family(&self) -> Vec<Process> {
        family(self.child.id())
    }

    /// Sends the master a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    pub fn log(&self) -> Vec<String> {
        self.log.0.lock().unwrap().clone()
    }

    /// How often a text stands in the log.
    pub fn count(&self, text: &str) -> usize {
        self.log().iter().filter(|line| line.contains(text)).count()
    }

    /// Waits for a line and returns it.
    pub fn said(&self, text: &str) -> String {
        self.said_often(text, 1)
    }

    /// Waits until so many lines hold a text; the last of them.
    pub fn said_often(&self, text: &str, times: usize) -> String {
        let lines = self.log.0.lock().unwrap();
        let found = |lines: &Vec<String>| lines.iter().filter(|line| line.contains(text)).nth(times - 1).cloned();
        let (lines, _) = self
            .log
            .1
            .wait_timeout_while(lines, PATIENCE, |lines| found(lines).is_none())
            .unwrap();
        found(&lines).unwrap_or_else(|| panic!("the log does not say {text:?} {times} times:\n{}", lines.join("\n")))
    }

    /// Waits for the end of the master; all that it has said is in the log then.
    pub fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.child.try_wait().unwrap();
            if let Some(status) = ended.filter(|_| self.reader.is_finished()) {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the master does not end:\n{}",
                self.log().join("\n")
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn connect(&self, socket: &str) -> Connection {
        self.place.connect(socket)
    }

    /// Asks for a script on the socket `sock`.
    pub fn get(&self, script: &str) -> String {
        self.get_on("sock", script)
    }

    pub fn get_on(&self, socket: &str, script: &str) -> String {
        let mut connection = self.connect(socket);
        self.ask(&mut connection, script, 0);
        body(&connection.reply(1))
    }

    /// So many requests at a time: how long all of them took, and what each was answered.
    pub fn at_once(&self, count: usize, uri: &str) -> (Duration, Vec<String>) {
        let begin = Instant::now();
        let mut connections: Vec<_> = (0..count).map(|_| self.connect("sock")).collect();
        for connection in &mut connections {
            self.ask(connection, uri, 0);
        }
        let answers = connections.iter_mut().map(|connection| body(&connection.reply(1)));
        let answers = answers.collect();
        (begin.elapsed(), answers)
    }

    /// Sends a request for a script, with a query if it has one.
    pub fn ask(&self, connection: &mut Connection, uri: &str, flags: u8) {
        self.place.ask(connection, uri, flags);
    }

    /// What `php-pool status POOL` prints, of one with a control socket.
    pub fn status(&self, pool: &str) -> String {
        let mut command = Command::new(executable());
        command
            .args(["status", pool, "--control"])
            .arg(self.place.path("control"));
        let output = command.output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Asks again and again on a kept connection.
    pub fn ask_kept(&self, connection: &mut Connection, uri: &str) -> String {
        self.ask(connection, uri, KEEP_CONN);
        body(&connection.reply(1))
    }

    /// The pids of processes below the master whose title holds a text.
    pub fn below(&self, title: &str) -> Vec<i32> {
        let family = self.family();
        let below = family.iter().skip(1).filter(|process| process.title().contains(title));
        let mut found: Vec<i32> = below.map(|process| process.pid).collect();
        found.sort_unstable();
        found
    }

    /// The workers of a pool.
    pub fn workers(&self, pool: &str) -> Vec<i32> {
        self.below(&format!("pool {pool}"))
    }

    pub fn zygote(&self, pool: &str) -> i32 {
        self.below(&format!("zygote {pool}"))[0]
    }
}

/// Sends a request for a script to whoever serves this folder.
pub fn ask(place: &Place, connection: &mut Connection, uri: &str) {
    place.ask(connection, uri, 0);
}

/// The body of a reply that is whole.
pub fn body(reply: &Reply) -> String {
    assert!(
        reply.end.is_some(),
        "the reply ends too early: {:?}",
        String::from_utf8_lossy(&reply.stdout)
    );
    let text = String::from_utf8_lossy(&reply.stdout).into_owned();
    text.split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .unwrap_or(text)
}

/// Pid, state, what it waits for in the kernel, and title of a process, as far as they can be read.
fn situation(process: &Process) -> String {
    let wchan = fs::read_to_string(format!("/proc/{}/wchan", process.pid)).unwrap_or_default();
    let state = state(process.pid).map_or("gone".to_owned(), String::from);
    format!("{} {state} {wchan} {}", process.pid, process.title())
}

/// How often a process has gone to sleep by itself: each wake-up is one.
pub fn sleeps(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
        .unwrap();
    line.trim().parse().unwrap()
}

/// Whether a path exists.
pub fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}
