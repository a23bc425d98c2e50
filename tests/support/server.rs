//! Starts php-fpm or php-pool on a configuration of its own, and ends it without a trace.

use std::fs;
use std::io::{self, Read};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::fcgi::{Address, Connection, PATIENCE};
use super::process::{self, Process, hand_over, spawn, that_dies_with_us, that_is_handed_sockets};

/// The reference, php-fpm: the one that `PHP_FPM` names (`./dev` sets it), else the newest of Debian's.
pub fn php_fpm() -> PathBuf {
    if let Some(named) = std::env::var_os("PHP_FPM") {
        return named.into();
    }
    let installed = glob::glob("/usr/sbin/php-fpm[0-9]*")
        .expect("a valid pattern")
        .flatten();
    let numbers = |path: &PathBuf| -> Vec<u32> {
        let version = path.to_string_lossy().replace("/usr/sbin/php-fpm", "");
        version.split('.').filter_map(|part| part.parse().ok()).collect()
    };
    installed
        .max_by_key(numbers)
        .unwrap_or_else(|| PathBuf::from("/usr/sbin/php-fpm"))
}

/// The version of `php_fpm`, as Debian's paths spell it: 8.2.
pub fn php_version() -> String {
    let name = php_fpm().file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.trim_start_matches("php-fpm").to_owned()
}

/// A release of PHP: 8.2.36 is `[8, 2, 36]`.
pub type Version = [u32; 3];

/// The release of `php_fpm`, as it says itself.
pub fn php_fpm_release() -> Version {
    static RELEASE: OnceLock<Version> = OnceLock::new();
    *RELEASE.get_or_init(|| {
        let said = Command::new(php_fpm())
            .arg("-v")
            .output()
            .expect("php-fpm can be run")
            .stdout;
        let said = String::from_utf8_lossy(&said);
        // "PHP 8.2.36 (fpm-fcgi) (built: …"
        let release = said.split_whitespace().nth(1).unwrap_or_default();
        let mut numbers = release.split(['.', '-']).map_while(|part| part.parse().ok());
        std::array::from_fn(|_| numbers.next().unwrap_or_else(|| panic!("php-fpm -v says {said:?}")))
    })
}

/// Our executable: cargo puts it above the folder of the tests, the benches and the examples.
pub fn php_pool() -> PathBuf {
    let this = std::env::current_exe().expect("Linux has /proc/self/exe");
    this.ancestors()
        .nth(2)
        .expect("target/PROFILE/deps/TEST")
        .join("php-pool")
}

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    PhpFpm,
    PhpPool,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::PhpFpm => "php-fpm",
            Self::PhpPool => "php-pool",
        }
    }

    /// The server under test: php-pool, unless `PHP_POOL_ONLY=php-fpm` asks how the reference does in its place.
    pub fn under_test() -> Self {
        if std::env::var("PHP_POOL_ONLY").is_ok_and(|only| only == Self::PhpFpm.name()) {
            Self::PhpFpm
        } else {
            Self::PhpPool
        }
    }

    /// The server's own folder. Names of one length, so that paths in answers change no lengths.
    fn folder(self) -> &'static str {
        match self {
            Self::PhpFpm => "fpm",
            Self::PhpPool => "our",
        }
    }
}

/// Where the pool listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    Unix,
    /// This host, a free port. For `::` the client comes by IPv4, so that its address is a mapped one.
    Tcp(&'static str),
}

/// A configuration. In all texts `{www}` stands for the folder of the scripts, which both servers share, and `{home}`
/// for the server's own folder, where it may write.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Unique; the name of the configuration's folder.
    pub name: &'static str,
    /// `pm.max_children` of `pm = static`.
    pub workers: u32,
    pub listen: Listen,
    pub opcache: bool,
    /// Lines for the `[global]` section.
    pub global: &'static str,
    /// Lines for the pool's section.
    pub pool: &'static str,
    /// Further lines for php-pool, with directives that php-fpm does not know.
    pub php_pool: &'static str,
    /// Lines for php.ini.
    pub ini: &'static str,
    /// Further arguments.
    pub arguments: &'static [&'static str],
    /// What the server's environment holds beside PATH.
    pub environment: &'static [(&'static str, &'static str)],
    /// Scripts that must be there when the server starts, below `{www}`.
    pub files: &'static [(&'static str, &'static str)],
    /// Whether cases make workers die, so that the log may say so.
    pub deaths: bool,
    /// Addresses that the tests listen on and hand to the server, as systemd does; then it can be started again.
    pub held: &'static [&'static str],
}

impl Setup {
    /// What most cases run on: four static workers on a unix socket, opcache on, errors logged and not displayed.
    pub const BASE: Self = Self {
        name: "base",
        workers: 4,
        listen: Listen::Unix,
        opcache: true,
        global: "",
        pool: "",
        php_pool: "",
        ini: "",
        arguments: &[],
        environment: &[],
        files: &[],
        deaths: false,
        held: &[],
    };

    fn pool_file(&self, kind: Kind, listen: &str) -> String {
        // Workers must not be root: root may read a file of mode 000.
        let user = if nix::unistd::geteuid().is_root() {
            "user = www-data\ngroup = www-data\n"
        } else {
            ""
        };
        let own = if kind == Kind::PhpPool { self.php_pool } else { "" };
        format!(
            "[global]\nerror_log = {{home}}/error.log\n{}\n[www]\n{user}listen = {listen}\npm = static\n\
             pm.max_children = {}\n{}\n{own}\n",
            self.global, self.workers, self.pool
        )
    }

    fn ini_file(&self) -> String {
        let opcache = if self.opcache {
            "zend_extension = opcache\nopcache.revalidate_freq = 0\n"
        } else {
            ""
        };
        // Debian's folder of settings loads it by itself.
        let scanned = self.environment.iter().any(|(name, _)| *name == "PHP_INI_SCAN_DIR");
        let posix = if scanned { "" } else { "extension = posix\n" };
        format!(
            "display_errors = 0\nlog_errors = 1\nhtml_errors = 0\nerror_reporting = -1\ndate.timezone = UTC\n\
             register_argc_argv = 0\nvariables_order = GPCS\n\
             {opcache}{posix}{}\n",
            self.ini
        )
    }
}

/// What a server has said so far, on stdout and stderr.
#[derive(Default)]
struct Log {
    text: Mutex<String>,
    grown: Condvar,
}

impl Log {
    /// Waits until the text satisfies `wanted`; the text either way.
    fn wait(&self, patience: Duration, wanted: impl Fn(&str) -> bool) -> Result<String, String> {
        let text = self.text.lock().expect("nobody panics with the log");
        let (text, timeout) = self
            .grown
            .wait_timeout_while(text, patience, |text| !wanted(text))
            .expect("nobody panics with the log");
        if timeout.timed_out() {
            Err(text.clone())
        } else {
            Ok(text.clone())
        }
    }
}

/// A running server.
pub struct Server {
    pub kind: Kind,
    pub setup: &'static Setup,
    pub address: Address,
    /// The server's own folder.
    pub home: PathBuf,
    child: Child,
    log: Arc<Log>,
    stopped: bool,
    sockets: Vec<OwnedFd>,
    /// What was there when masters of earlier starts ended.
    orphans: Vec<Process>,
    /// How often it has been started.
    pub starts: u32,
}

/// What a server says when it serves.
const READY: &str = "ready to handle connections";

/// What stands in a server's log when no process of a start is left that could say something.
const SILENT: &str = "\n(end of the server's output)\n";

impl Server {
    /// Starts a server below `root` and waits until it says that it is ready.
    pub fn start(kind: Kind, setup: &'static Setup, root: &Path) -> Result<Self, String> {
        let home = root.join(setup.name).join(kind.folder());
        let www = www(root, setup);
        let at = |what: &Path, e: io::Error| format!("cannot prepare {}: {e}", what.display());
        fs::create_dir_all(&www).map_err(|e| at(&www, e))?;
        fs::create_dir_all(&home).map_err(|e| at(&home, e))?;
        fs::set_permissions(&home, fs::Permissions::from_mode(0o777)).map_err(|e| at(&home, e))?;
        for (name, content) in setup.files {
            let file = www.join(name);
            fs::write(&file, content).map_err(|e| at(&file, e))?;
        }
        // Between finding a free port and using it somebody else may take it.
        let mut attempts = if setup.listen == Listen::Unix { 1 } else { 5 };
        loop {
            attempts -= 1;
            match Self::start_once(kind, setup, &home, &www) {
                Err(e) if attempts > 0 && e.contains("Address already in use") => {}
                outcome => return outcome,
            }
        }
    }

    fn start_once(kind: Kind, setup: &'static Setup, home: &Path, www: &Path) -> Result<Self, String> {
        let failed = |e: io::Error| format!("{} cannot be started: {e}", kind.name());
        let (address, listen) = match setup.listen {
            Listen::Unix => (Address::Unix(home.join("sock")), "{home}/sock".to_owned()),
            Listen::Tcp(host) => {
                let port = free_port(host).map_err(failed)?;
                let listen = if host.contains(':') {
                    format!("[{host}]:{port}")
                } else {
                    format!("{host}:{port}")
                };
                (
                    Address::Tcp(if host == "::" { "127.0.0.1" } else { host }.to_owned(), port),
                    listen,
                )
            }
        };
        let fill = |text: String| {
            text.replace("{www}", &www.display().to_string())
                .replace("{home}", &home.display().to_string())
        };
        let (pool_file, ini_file) = (home.join("pool.conf"), home.join("php.ini"));
        fs::write(&pool_file, fill(setup.pool_file(kind, &listen))).map_err(failed)?;
        fs::write(&ini_file, fill(setup.ini_file())).map_err(failed)?;

        if kind == Kind::PhpPool {
            // By this name php-pool takes php-fpm's command line.
            let link = home.join("php-fpm");
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(php_pool(), &link).map_err(failed)?;
        }
        let held = setup.held.iter().map(|address| listen_on(&fill((*address).to_owned())));
        let sockets = held.collect::<io::Result<Vec<_>>>().map_err(failed)?;
        let log = Arc::new(Log::default());
        let child = execute(kind, setup, home, (&sockets, 1), &log)?;
        let server = Self {
            kind,
            setup,
            address,
            home: home.to_owned(),
            child,
            log,
            stopped: false,
            sockets,
            orphans: Vec::new(),
            starts: 1,
        };
        let ready = |text: &str| text.contains(READY) || text.contains(SILENT);
        match server.log.wait(PATIENCE, ready) {
            Ok(text) if text.contains(READY) => Ok(server),
            Ok(text) | Err(text) => Err(format!(
                "{} on setup '{}' did not become ready; it said:\n{text}",
                kind.name(),
                setup.name
            )),
        }
    }

    /// Ends the master by a signal: how it ended.
    pub fn end_master(&mut self, signal: Signal) -> ExitStatus {
        self.orphans.retain(|process| !process.gone_within(Duration::ZERO));
        self.orphans.extend(self.family());
        let master = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(master, signal).expect("it lives");
        let status = self.wait_for_exit();
        status.unwrap_or_else(|| panic!("the master did not end by {signal}; its log:\n{}", self.log()))
    }

    /// Starts it again, its master having ended, on the sockets that were held meanwhile.
    pub fn start_again(&mut self) {
        let before = self.log().matches(READY).count();
        self.starts += 1;
        let sockets = (self.sockets.as_slice(), self.starts);
        self.child = execute(self.kind, self.setup, &self.home, sockets, &self.log).unwrap_or_else(|e| panic!("{e}"));
        self.wait_for_log("that it serves again", |log| log.matches(READY).count() > before);
    }

    /// A new connection.
    pub fn connect(&self) -> Connection {
        Connection::open(&self.address)
            .unwrap_or_else(|e| panic!("{} does not accept a connection: {e}", self.kind.name()))
    }

    /// Whether no process of the server is left that could say something.
    pub fn has_ended(&self) -> bool {
        self.log().matches(SILENT).count() == self.starts as usize
    }

    /// All that the server has said on stdout and stderr.
    pub fn log(&self) -> String {
        self.log.text.lock().expect("nobody panics with the log").clone()
    }

    /// Waits until the log satisfies `wanted`, which `what` describes.
    pub fn wait_for_log(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.log
            .wait(PATIENCE, wanted)
            .unwrap_or_else(|text| panic!("the log does not show {what}:\n{text}"))
    }

    /// Stops the server as systemd would, and complains about an exit code other than 0, processes left behind, and
    /// workers that died though no case made them.
    pub fn stop(&mut self) -> Result<(), String> {
        self.stopped = true;
        let who = format!("{} on setup '{}'", self.kind.name(), self.setup.name);
        let family = self.family();
        let master = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(master, Signal::SIGTERM).map_err(|e| format!("{who} was gone before it was stopped: {e}"))?;
        let status = self.wait_for_exit();
        let left: Vec<Process> = family
            .into_iter()
            .chain(self.orphans.drain(..))
            .filter(|p| !p.gone_within(Duration::from_secs(5)))
            .collect();
        for process in &left {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        let status = status.ok_or_else(|| format!("{who} did not end after SIGTERM; its log:\n{}", self.log()))?;
        if !left.is_empty() {
            return Err(format!("{who} left processes behind: {left:?}"));
        }
        if !status.success() {
            return Err(format!("{who} ended with {status}; its log:\n{}", self.log()));
        }
        let log = self.log();
        let deaths: Vec<&str> = log
            .lines()
            .filter(|l| l.contains("exited on signal") || l.contains("exited with code 70"))
            .collect();
        if !self.setup.deaths && !deaths.is_empty() {
            return Err(format!("{who} lost workers:\n{}", deaths.join("\n")));
        }
        Ok(())
    }

    /// Waits for the end of the master; kills it, and answers None, when it takes too long.
    fn wait_for_exit(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        None
    }

    /// The pids of the workers: the processes that have no children.
    pub fn workers(&self) -> Vec<i32> {
        process::childless(&self.family())
    }

    /// The pids of the master and of every process below it.
    pub fn pids(&self) -> Vec<i32> {
        self.family().iter().map(|p| p.pid).collect()
    }

    /// The processes below the master, and itself.
    fn family(&self) -> Vec<Process> {
        process::family(self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.stopped {
            let _ = self.stop();
        }
    }
}

/// Executes a server, and has what it says added to a log. Where it is handed sockets, `START` in its environment says which
/// start it is.
fn execute(
    kind: Kind,
    setup: &Setup,
    home: &Path,
    (sockets, start): (&[OwnedFd], u32),
    log: &Arc<Log>,
) -> Result<Child, String> {
    let failed = |e: io::Error| format!("{} cannot be started: {e}", kind.name());
    let executable = match kind {
        Kind::PhpFpm => php_fpm(),
        Kind::PhpPool => home.join("php-fpm"),
    };
    if !executable.exists() {
        return Err(format!("{} is not there", executable.display()));
    }
    let (mut output, input) = io::pipe().map_err(failed)?;
    let mut command = match sockets {
        [] => that_dies_with_us("KILL", &executable),
        _ => that_is_handed_sockets(&executable),
    };
    command
        .args(["-F", "-O", "-y"])
        .arg(home.join("pool.conf"))
        .arg("-c")
        .arg(home.join("php.ini"))
        .args(setup.arguments);
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("PHP_INI_SCAN_DIR", "");
    command.envs(setup.environment.iter().copied()).current_dir(home);
    if !sockets.is_empty() {
        let clones = sockets.iter().map(|socket| Ok((socket.try_clone()?, "listen")));
        hand_over(&mut command, clones.collect::<io::Result<_>>().map_err(failed)?);
        command.env("START", start.to_string());
    }
    command
        .stdin(Stdio::null())
        .stdout(input.try_clone().map_err(failed)?)
        .stderr(input);
    let child = spawn(command).map_err(failed)?;

    let sink = Arc::clone(log);
    // Ends when the last process of the server has closed its end.
    thread::spawn(move || {
        let say = |text: &str| {
            sink.text.lock().expect("nobody panics with the log").push_str(text);
            sink.grown.notify_all();
        };
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = output.read(&mut buffer) {
            say(&String::from_utf8_lossy(&buffer[..n]));
        }
        say(SILENT);
    });
    Ok(child)
}

/// A listening socket that everybody may connect to.
fn listen_on(address: &str) -> io::Result<OwnedFd> {
    if !address.starts_with('/') {
        return Ok(TcpListener::bind(address)?.into());
    }
    let listener = UnixListener::bind(address)?;
    fs::set_permissions(address, fs::Permissions::from_mode(0o666))?;
    Ok(listener.into())
}

/// The folder of the scripts of `setup` below `root`.
pub fn www(root: &Path, setup: &Setup) -> PathBuf {
    root.join(setup.name).join("www")
}

/// A port of `host` that nobody listens on at this moment.
pub fn free_port(host: &str) -> io::Result<u16> {
    Ok(std::net::TcpListener::bind((host, 0))?.local_addr()?.port())
}
