//! The servers that are compared, each on the same php.ini, extensions, number of workers and scripts; and the floors, which
//! nobody gets below.

use std::fs;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, geteuid};

use crate::Outcome;
use crate::load::{self, Request, Round};
use crate::rows::{Body, Row};
use crate::support::fcgi::{Address, Connection};
use crate::support::process::{Daemon, childless, that_dies_with_us};
use crate::support::server::{Kind, Listen, Server, Setup, free_port, php_version};
use crate::support::web::{Front, Site, Web, urlencoded};
use crate::support::wiki;
use crate::wrk;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    PhpFpm,
    PhpPool,
    PhpCgi,
    Uwsgi,
    ModPhp,
    /// FastCGI without PHP: one read, one canned answer.
    Transport,
    /// PHP without a socket.
    Engine,
}

impl Who {
    pub fn name(self) -> &'static str {
        match self {
            Self::PhpFpm => "php-fpm",
            Self::PhpPool => "php-pool",
            Self::PhpCgi => "php-cgi",
            Self::Uwsgi => "uwsgi",
            Self::ModPhp => "mod_php",
            Self::Transport => "transport",
            Self::Engine => "engine",
        }
    }
}

/// Who is measured in a row. What a rival cannot do is left out: uwsgi keeps no FastCGI connections, and where there are more of
/// them than workers only php-pool serves them all.
pub fn of(row: &Row) -> Vec<Who> {
    let mut all = vec![Who::PhpFpm, Who::PhpPool];
    if let Some(keep) = row.web {
        if keep == 0 {
            all.extend([Who::PhpCgi, Who::Uwsgi, Who::ModPhp]);
        }
        return all;
    }
    if row.keep_for_php_fpm {
        all.push(Who::PhpCgi);
        if !row.keep {
            all.push(Who::Uwsgi);
        }
        all.push(Who::Transport);
    }
    if row.workers == 1 {
        all.push(Who::Engine);
    }
    all
}

/// What runs for a contender.
enum Running {
    Server(Box<Server>),
    Daemon(Daemon),
    /// A program of its own for each round.
    Engine(Vec<String>),
}

pub struct Contender {
    pub who: Who,
    running: Running,
    address: Address,
    web: Option<Web>,
    request: Request,
    /// Bytes of an answer, where all are alike.
    expected: Option<u64>,
}

/// What a row needs on disk.
pub struct Ground<'a> {
    pub root: &'a Path,
    pub www: &'a Path,
    pub setup: &'static Setup,
}

impl Contender {
    /// Starts it, and looks at one answer with care; later ones are only measured.
    pub fn start(who: Who, row: &Row, ground: &Ground) -> Outcome<Self> {
        let home = ground.root.join(who.name());
        fs::create_dir_all(&home)?;
        std::os::unix::fs::chown(&home, wiki::php_user().map(|user| user.uid.as_raw()), None)?;
        let address = match row.listen {
            Listen::Unix => Address::Unix(home.join("sock")),
            Listen::Tcp(host) => Address::Tcp(host.to_owned(), free_port(host)?),
        };
        let script = ground.www.join(row.script).display().to_string();
        let keep = row.keep && (row.keep_for_php_fpm || who != Who::PhpFpm);
        let (method, kind, body) = body(row.body);
        let request = Request::new(&script, keep, method, &kind, &body, who == Who::Uwsgi);
        let ini = ground.root.join(ground.setup.name).join("fpm/php.ini");
        let mut contender = match who {
            Who::PhpFpm | Who::PhpPool => {
                let kind = if who == Who::PhpFpm {
                    Kind::PhpFpm
                } else {
                    Kind::PhpPool
                };
                let server = Server::start(kind, ground.setup, ground.root)?;
                let address = server.address.clone();
                Self::new(who, Running::Server(Box::new(server)), address, request)
            }
            Who::PhpCgi => {
                let mut command = as_php("php-cgi");
                command
                    .arg("-b")
                    .arg(place(&address))
                    .arg("-c")
                    .arg(&ini)
                    .current_dir(&home);
                command
                    .env("PHP_FCGI_CHILDREN", row.workers.to_string())
                    .env("PHP_FCGI_MAX_REQUESTS", "0")
                    .envs(ground.setup.environment.iter().copied());
                let daemon = Daemon::start(command, &home, || reachable(&address))?;
                Self::new(who, Running::Daemon(daemon), address, request)
            }
            Who::Uwsgi => {
                // It reads no folder of settings.
                let whole = home.join("php.ini");
                fs::write(&whole, fs::read_to_string(&ini)? + &scanned(ground.setup)?)?;
                let mut command = as_php("uwsgi");
                command.args([
                    "--plugin",
                    "php",
                    "--master",
                    "--disable-logging",
                    "--die-on-term",
                    "--chmod-socket=666",
                ]);
                command.args([
                    "--fastcgi-modifier1",
                    "14",
                    "--php-sapi-name",
                    "apache",
                    "--listen",
                    "100",
                ]);
                command.args(["--processes", &row.workers.to_string(), "--fastcgi-socket"]);
                command
                    .arg(place(&address))
                    .arg("--php-ini")
                    .arg(&whole)
                    .current_dir(&home);
                let daemon = Daemon::start(command, &home, || reachable(&address))?;
                Self::new(who, Running::Daemon(daemon), address, request)
            }
            Who::ModPhp => {
                let port = free_port("127.0.0.1")?;
                let file = home.join("apache.conf");
                fs::write(&file, apache(row.workers, port, ground.www, &home, &ini))?;
                let mut command = that_dies_with_us("TERM", "apache2");
                command.args(["-D", "FOREGROUND", "-f"]).arg(&file);
                command.envs(ground.setup.environment.iter().copied());
                let address = Address::Tcp("127.0.0.1".into(), port);
                let daemon = Daemon::start(command, &home, || reachable(&address)).map_err(|e| {
                    format!(
                        "{e}\n{}",
                        fs::read_to_string(home.join("error.log")).unwrap_or_default()
                    )
                })?;
                Self::new(who, Running::Daemon(daemon), address, request)
            }
            Who::Transport => {
                let mut command = that_dies_with_us("TERM", std::env::current_exe()?);
                command.arg("--echo").arg(place(&address)).current_dir(&home);
                command.args(["--take", &request.bytes.len().to_string()]);
                command.args([
                    "--give",
                    &row.answer_size.to_string(),
                    "--threads",
                    &row.workers.to_string(),
                ]);
                let daemon = Daemon::start(command, &home, || reachable(&address))?;
                Self::new(who, Running::Daemon(daemon), address, request)
            }
            Who::Engine => {
                let program = engine(ground.root)?;
                let content = home.join("body");
                fs::write(&content, &body)?;
                let content = if body.is_empty() {
                    "-".into()
                } else {
                    content.display().to_string()
                };
                let mut arguments = vec![program.display().to_string(), ini.display().to_string(), String::new()];
                arguments.extend([script.clone(), method.to_owned(), kind, content]);
                arguments.extend(request.params.iter().map(|(name, value)| format!("{name}={value}")));
                Self::new(who, Running::Engine(arguments), address, request)
            }
        };
        if let Some(keep) = row.web.filter(|_| who != Who::ModPhp) {
            let site = Site {
                www: ground.www,
                pool: &contender.address,
                keep,
                port: None,
                script_as_path_info: who == Who::Uwsgi,
            };
            contender.web = Some(Web::start(Front::Nginx, &site, &home.join("nginx"))?);
        }
        contender.look(row, ground.www)?;
        Ok(contender)
    }

    fn new(who: Who, running: Running, address: Address, request: Request) -> Self {
        Self {
            who,
            running,
            address,
            web: None,
            request,
            expected: None,
        }
    }

    fn look(&mut self, row: &Row, www: &Path) -> Outcome<()> {
        if matches!(self.who, Who::Engine) {
            return Ok(());
        }
        let ask = |request: &Request| -> Outcome<String> {
            let mut connection = Connection::open(&self.address)?;
            connection.send(&request.bytes);
            let reply = connection.reply(1);
            Ok(String::from_utf8_lossy(&reply.stdout).into_owned())
        };
        if row.script == "doku.php" && self.who == Who::PhpFpm && fs::metadata(www.join("conf/local.php")).is_err() {
            let form = "application/x-www-form-urlencoded";
            let script = www.join("install.php").display().to_string();
            let fields = urlencoded(&wiki::installation());
            let install = Request::new(&script, false, "POST", form, fields.as_bytes(), false);
            let reply = ask(&install)?;
            if !reply.contains("finished successfully") {
                return Err(format!("the wiki was not installed:\n{reply}").into());
            }
        }
        if let Some(url) = self.url(row) {
            let answer = ureq::get(&url).call()?.body_mut().read_to_string()?;
            if !answer.contains(row.answer) {
                return Err(format!("{} answers row '{}' with\n{answer}", self.who.name(), row.name).into());
            }
            return Ok(());
        }
        let answer = ask(&self.request)?;
        if self.who != Who::Transport && !answer.contains(row.answer) {
            return Err(format!("{} answers row '{}' with\n{answer}", self.who.name(), row.name).into());
        }
        self.expected = row.constant.then_some(answer.len() as u64);
        Ok(())
    }

    /// Where wrk asks; None: the row is about FastCGI alone.
    fn url(&self, row: &Row) -> Option<String> {
        row.web?;
        let base = match (&self.web, &self.address) {
            (Some(web), _) => web.url(),
            (None, Address::Tcp(host, port)) => format!("http://{host}:{port}"),
            (None, Address::Unix(_)) => return None,
        };
        Some(format!("{base}/{}", row.script))
    }

    /// One round.
    pub fn round(&self, row: &Row, duration: Duration, core: Option<usize>) -> Outcome<Round> {
        if let Running::Engine(arguments) = &self.running {
            return engine_round(arguments, duration, core);
        }
        let before = self.cpu();
        let mut round = match self.url(row) {
            Some(url) => wrk::run(&url, row.in_flight, duration)?,
            None => load::run(&self.address, &self.request, row.in_flight, duration, self.expected),
        };
        round.cpu = (self.cpu() - before).as_secs_f64() * 1e6 / round.requests;
        Ok(round)
    }

    /// All its processes, with the web server before it.
    pub fn pids(&self) -> Vec<i32> {
        let mut pids = match &self.running {
            Running::Server(server) => server.pids(),
            Running::Daemon(daemon) => daemon.family().iter().map(|p| p.pid).collect(),
            Running::Engine(_) => Vec::new(),
        };
        pids.extend(self.web.iter().flat_map(Web::pids));
        pids
    }

    /// Threads of all its processes.
    fn threads(&self) -> Vec<i32> {
        let of = |pid: i32| {
            fs::read_dir(format!("/proc/{pid}/task"))
                .into_iter()
                .flatten()
                .flatten()
        };
        let all = self.pids().into_iter().flat_map(of);
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    }

    /// CPU time of all its processes so far.
    fn cpu(&self) -> Duration {
        let of = |tid: i32| -> u64 {
            let text = fs::read_to_string(format!("/proc/{tid}/schedstat")).unwrap_or_default();
            text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
        };
        Duration::from_nanos(self.threads().into_iter().map(of).sum())
    }

    pub fn pin(&self, set: &CpuSet) -> nix::Result<()> {
        self.threads()
            .into_iter()
            .try_for_each(|tid| sched_setaffinity(Pid::from_raw(tid), set))
    }

    /// Proportional set size of a worker, the median, in kB.
    pub fn pss(&self) -> u64 {
        let workers = match &self.running {
            Running::Server(server) => server.workers(),
            Running::Daemon(daemon) => childless(&daemon.family()),
            Running::Engine(_) => Vec::new(),
        };
        let mut all: Vec<u64> = workers.into_iter().filter_map(pss).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or(0)
    }

    pub fn stop(self) -> Outcome<()> {
        drop(self.web);
        if let Running::Server(mut server) = self.running {
            server.stop()?;
        }
        Ok(())
    }
}

/// Proportional set size of a process, in kB.
pub fn pss(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find(|line| line.starts_with("Pss:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// How the rivals write where they listen.
fn place(address: &Address) -> String {
    match address {
        Address::Unix(path) => path.display().to_string(),
        Address::Tcp(host, port) => format!("{host}:{port}"),
    }
}

fn reachable(address: &Address) -> bool {
    match address {
        Address::Unix(path) => UnixStream::connect(path).is_ok(),
        Address::Tcp(host, port) => TcpStream::connect((host.as_str(), *port)).is_ok(),
    }
}

/// A program that runs as the pools' user does.
fn as_php(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]);
    if geteuid().is_root() {
        command.args(["--reuid", "www-data", "--regid", "www-data", "--clear-groups"]);
    }
    command.arg("--").arg(program);
    command
}

/// The text of the folder of settings that the others read by themselves.
fn scanned(setup: &Setup) -> Outcome<String> {
    let mut text = String::new();
    for (_, folder) in setup.environment.iter().filter(|(name, _)| *name == "PHP_INI_SCAN_DIR") {
        for file in glob::glob(&format!("{folder}/*.ini"))?.flatten() {
            text += "\n";
            text += &fs::read_to_string(file)?;
        }
    }
    Ok(text)
}

fn apache(workers: u32, port: u16, www: &Path, home: &Path, ini: &Path) -> String {
    let (www, home, ini) = (www.display(), home.display(), ini.display());
    let user = if geteuid().is_root() {
        "User www-data\nGroup www-data"
    } else {
        ""
    };
    let modules = "/usr/lib/apache2/modules";
    format!(
        "LoadModule mpm_prefork_module {modules}/mod_mpm_prefork.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule mime_module {modules}/mod_mime.so
LoadModule dir_module {modules}/mod_dir.so
LoadModule php_module {modules}/libphp{version}.so
PHPINIDir {ini}
ServerName 127.0.0.1
Listen 127.0.0.1:{port}
PidFile {home}/apache.pid
DefaultRuntimeDir {home}
Mutex file:{home} default
ErrorLog {home}/error.log
LogLevel warn
{user}
StartServers {workers}
MinSpareServers {workers}
MaxSpareServers {workers}
ServerLimit {workers}
MaxRequestWorkers {workers}
MaxConnectionsPerChild 0
KeepAlive On
MaxKeepAliveRequests 0
KeepAliveTimeout 60
TypesConfig /dev/null
DocumentRoot {www}
DirectoryIndex index.php
<Directory {www}>
    AllowOverride None
    Require all granted
</Directory>
<FilesMatch \"\\.php$\">
    SetHandler application/x-httpd-php
</FilesMatch>
",
        version = php_version(),
    )
}

/// Builds the engine's floor, once.
fn engine(root: &Path) -> Outcome<PathBuf> {
    let program = root.join("engine-floor");
    if program.exists() {
        return Ok(program);
    }
    let config = std::env::var("PHP_CONFIG").unwrap_or_else(|_| format!("/usr/bin/php-config{}", php_version()));
    let includes = Command::new(&config).arg("--includes").output()?;
    let includes = String::from_utf8(includes.stdout)?;
    let status = Command::new("gcc")
        .args(["-O2", "-D_GNU_SOURCE", "-fPIC", "-rdynamic", "-Wl,-z,nocopyreloc", "-o"])
        .arg(&program)
        .args(includes.split_whitespace())
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/engine.c"))
        .arg(format!("-lphp{}", php_version()))
        .status()?;
    if !status.success() {
        return Err("tests/bench/engine.c does not compile".into());
    }
    Ok(program)
}

fn engine_round(arguments: &[String], duration: Duration, core: Option<usize>) -> Outcome<Round> {
    let mut command = as_php("taskset");
    let cores = core.map_or_else(|| "0-1023".to_owned(), |core| core.to_string());
    command.args(["-c", &cores]).args(&arguments[..2]);
    command.arg(duration.as_secs_f64().to_string()).args(&arguments[3..]);
    command.envs(wiki::debian_extensions().iter().copied());
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [requests, seconds, cpu, _bytes] = numbers[..] else {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the engine's floor ended with {}: {text}{said}", output.status).into());
    };
    Ok(Round {
        requests,
        rate: requests / seconds,
        cpu: cpu * 1e6 / requests,
        ..Round::default()
    })
}

/// Method, content type and bytes of a body.
fn body(body: Body) -> (&'static str, String, Vec<u8>) {
    match body {
        Body::None => ("GET", String::new(), Vec::new()),
        Body::Form(size) => {
            let field = size / 10;
            let fields: Vec<String> = (0..10).map(|n| format!("f{n}={}", "x".repeat(field - 4))).collect();
            (
                "POST",
                "application/x-www-form-urlencoded".into(),
                fields.join("&").into_bytes(),
            )
        }
        Body::Upload(size) => {
            let head = "--cut\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\
                        Content-Type: application/octet-stream\r\n\r\n";
            let bytes = [head.as_bytes(), &vec![b'y'; size], b"\r\n--cut--\r\n"].concat();
            ("POST", "multipart/form-data; boundary=cut".into(), bytes)
        }
    }
}
