//! Two tenants, villain and victim, behind one server: different users, each with a folder of his own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};

use crate::support::fcgi::{self, Address, Connection};
use crate::support::process::{Process, family, spawn, that_dies_with_us};
use crate::support::server::{Kind, php_fpm};

/// How long something may take that has to happen: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What an attack needs beside the two pools.
#[derive(Clone, Copy, Default)]
pub struct Plan {
    /// Lines for the sections of all and of the pools.
    pub global: &'static str,
    pub villain: &'static str,
    pub victim: &'static str,
    /// Some: php.ini loads the villain's extension, with these settings (and not the pool into its workers). Where a pool
    /// can have a php.ini of its own, it is only the villain's.
    pub start_up: Option<&'static str>,
    /// A third pool, of the villain's user, with `chroot = {dir}/jail`.
    pub jail: bool,
    /// The server has a controlling terminal.
    pub terminal: bool,
}

/// A server with its tenants.
pub struct Site {
    pub kind: Kind,
    dir: tempfile::TempDir,
    child: Child,
    log: Arc<(Mutex<Vec<String>>, Condvar)>,
    _terminal: Option<nix::pty::OpenptyResult>,
}

/// Given to the server alone.
pub const MASTERS_SECRET: &str = "masters-secret-4711";
/// Given to the victim's pool alone.
pub const VICTIMS_SECRET: &str = "the-victims-secret-number-is-7351-and-no-other";

impl Site {
    pub fn start(kind: Kind, plan: &Plan) -> Self {
        let dir = tempfile::Builder::new().prefix("php-pool-attack-").tempdir().unwrap();
        let place = dir.path();
        fs::set_permissions(place, fs::Permissions::from_mode(0o755)).unwrap();
        for (folder, user) in [
            ("victim", "nobody"),
            ("villain", "www-data"),
            ("jail", "www-data"),
            ("jail/www", "www-data"),
        ] {
            fs::create_dir(place.join(folder)).unwrap();
            let user = User::from_name(user).unwrap().expect("Debian has this user");
            chown(place.join(folder), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
        for copy in ["attack.so", "jail/attack.so"] {
            fs::copy(extension(), place.join(copy)).unwrap();
        }
        let fill = |text: &str| text.replace("{dir}", &place.display().to_string());
        fs::write(place.join("pool.conf"), fill(&configuration(kind, plan))).unwrap();
        let opcache = "zend_extension = opcache\nopcache.revalidate_freq = 0\nopcache.file_update_protection = 0\nextension = posix\nlog_errors = 1\ndisplay_errors = 0\n";
        let start_up = plan
            .start_up
            .map(|settings| format!("extension = {{dir}}/attack.so\n{settings}\n"));
        let with = |one: bool| {
            fill(&format!(
                "{opcache}{}",
                start_up.as_deref().filter(|_| one).unwrap_or_default()
            ))
        };
        fs::write(place.join("php.ini"), with(kind == Kind::PhpFpm)).unwrap();
        fs::write(place.join("villain.ini"), with(true)).unwrap();

        let program = match kind {
            Kind::PhpFpm => php_fpm(),
            // By this name php-pool takes php-fpm's command line.
            Kind::PhpPool => {
                symlink(env!("CARGO_BIN_EXE_php-pool"), place.join("php-fpm")).unwrap();
                place.join("php-fpm")
            }
        };
        let terminal = plan.terminal.then(|| nix::pty::openpty(None, None).unwrap());
        let mut command = match &terminal {
            None => that_dies_with_us("KILL", &program),
            Some(pty) => {
                let mut command = Command::new("setpriv");
                command
                    .args(["--pdeathsig", "KILL", "--", "setsid", "--ctty"])
                    .arg(&program);
                command.stdin(pty.slave.try_clone().unwrap());
                command
            }
        };
        if terminal.is_none() {
            command.stdin(Stdio::null());
        }
        command
            .args(["-F", "-O", "-y"])
            .arg(place.join("pool.conf"))
            .arg("-c")
            .arg(place.join("php.ini"));
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("PHP_INI_SCAN_DIR", "");
        command.env("MASTERS_SECRET", MASTERS_SECRET).current_dir(place);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = spawn(command).unwrap();
        let stderr = child.stderr.take().unwrap();
        let log = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let sink = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                sink.0.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
                sink.1.notify_all();
            }
        });
        Self {
            kind,
            dir,
            child,
            log,
            _terminal: terminal,
        }
    }

    /// Starts one and waits until it serves.
    pub fn ready(kind: Kind, plan: &Plan) -> Self {
        let site = Self::start(kind, plan);
        site.wait_for_log("ready to handle connections");
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn master(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.master()), signal).unwrap();
    }

    pub fn log(&self) -> Vec<String> {
        self.log.0.lock().unwrap().clone()
    }

    /// Waits until the log has a line with this text; false when it does not come.
    pub fn says(&self, text: &str, patience: Duration) -> bool {
        let lines = self.log.0.lock().unwrap();
        let missing = |lines: &mut Vec<String>| !lines.iter().any(|line| line.contains(text));
        !self
            .log
            .1
            .wait_timeout_while(lines, patience, missing)
            .unwrap()
            .1
            .timed_out()
    }

    pub fn wait_for_log(&self, text: &str) {
        assert!(
            self.says(text, PATIENCE),
            "the log does not say {text:?}:\n{}",
            self.log().join("\n")
        );
    }

    /// Runs PHP code in a pool; None when no whole answer comes in time. `{dir}` and the like are filled in.
    pub fn try_run(&self, pool: &str, code: &str, patience: Duration) -> Option<String> {
        let script = self.script(pool, code);
        self.get(pool, &script, "", patience)
    }

    /// The same, of code that must answer.
    pub fn run(&self, pool: &str, code: &str) -> String {
        self.try_run(pool, code, PATIENCE).unwrap_or_else(|| {
            panic!(
                "{} gives no answer for {pool}; its log:\n{}",
                self.kind.name(),
                self.log().join("\n")
            )
        })
    }

    /// Writes a script into a pool's folder, as its user.
    pub fn script(&self, pool: &str, code: &str) -> String {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let folder = if pool == "jail" { "jail/www" } else { pool };
        let name = format!("{folder}/{}.php", NUMBER.fetch_add(1, Ordering::Relaxed));
        let one = |pids: Vec<i32>| pids.first().copied().unwrap_or(0).to_string();
        let code = code
            .replace("{dir}", &self.dir.path().display().to_string())
            .replace("{master}", &self.master().to_string())
            .replace("{zygote}", &one(self.below("zygote villain")))
            .replace("{villain}", &one(self.below("pool villain")))
            .replace("{victims_zygote}", &one(self.below("zygote victim")))
            .replace("{victim}", &one(self.below("pool victim")));
        let path = self.path(&name);
        fs::write(&path, format!("<?php header('Content-Type: text/plain'); {code}")).unwrap();
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(self.path(folder)).unwrap());
        chown(&path, Some(owner), None).unwrap();
        name
    }

    /// Asks a pool for a script; the body of the answer, None when it is not whole in time.
    pub fn get(&self, pool: &str, script: &str, query: &str, patience: Duration) -> Option<String> {
        let mut connection = self.connect(pool);
        let file = match script.strip_prefix("jail/") {
            Some(inside) => format!("/{inside}"),
            None => self.path(script).display().to_string(),
        };
        connection.send(&self.request(&file, &format!("/{script}"), &[("QUERY_STRING", query)], b""));
        let mut stdout = Vec::new();
        let deadline = Instant::now() + patience;
        loop {
            let record = connection.record_within(deadline.saturating_duration_since(Instant::now()))?;
            match record.kind {
                crate::support::fcgi::STDOUT => stdout.extend_from_slice(&record.content),
                crate::support::fcgi::END_REQUEST => break,
                _ => {}
            }
        }
        let text = String::from_utf8_lossy(&stdout).into_owned();
        Some(
            text.split_once("\r\n\r\n")
                .map(|(_, body)| body.to_owned())
                .unwrap_or(text),
        )
    }

    /// A whole request with id 1.
    pub fn request(&self, file: &str, name: &str, more: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let length = body.len().to_string();
        let usual = [
            ("SCRIPT_FILENAME", file),
            ("SCRIPT_NAME", name),
            ("REQUEST_METHOD", "GET"),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
            ("CONTENT_LENGTH", &length),
        ];
        fcgi::request(0, &[&usual, more].concat(), body)
    }

    pub fn connect(&self, pool: &str) -> Connection {
        Connection::open(&Address::Unix(self.path(&format!("{pool}.sock")))).expect("the socket takes connections")
    }

    /// The pids of processes below the master whose title holds a text.
    pub fn below(&self, title: &str) -> Vec<i32> {
        let family = family(self.child.id());
        let below = family.iter().skip(1).filter(|process| process.title().contains(title));
        below.map(|process| process.pid).collect()
    }

    /// Whether the victim is served, by a worker that the master has to make first, and the master obeys: what a hostile
    /// pool must not be able to change. Err says what does not work.
    pub fn neighbour_is_well(&self) -> Result<(), String> {
        // php-fpm may hang, and nothing is promised of it.
        let patience = if self.kind == Kind::PhpFpm {
            Duration::from_secs(8)
        } else {
            PATIENCE
        };
        let began = Instant::now();
        for _ in 0..3 {
            let answer = self.try_run("victim", "echo 'well';", patience);
            if answer.as_deref() != Some("well") {
                return Err(format!(
                    "the victim's request is answered with {answer:?} within {patience:?}"
                ));
            }
        }
        self.signal(Signal::SIGUSR1);
        if !self.says("error log file re-opened", patience) {
            return Err("the master does not react to SIGUSR1".to_owned());
        }
        if self.kind == Kind::PhpPool && began.elapsed() > PATIENCE {
            return Err(format!("that took {:?}", began.elapsed()));
        }
        Ok(())
    }

    /// Ends the server; Err when it does not end.
    pub fn stop(&mut self) -> Result<(), String> {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            if Instant::now() >= deadline {
                return Err("the master does not end after SIGTERM".to_owned());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // So that it makes no more of them.
        let _ = kill(Pid::from_raw(self.master()), Signal::SIGSTOP);
        // Of whoever has come loose from the master the folder tells.
        let place = self.path("");
        let of_here = |pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&place));
        let mut left: Vec<i32> = Process::all()
            .iter()
            .map(|process| process.pid)
            .filter(of_here)
            .collect();
        left.extend(self.below("php-fpm"));
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Those of php-fpm stay when their master is killed; those of php-pool leave, unless an attack keeps them.
        for pid in left {
            let ours = |line: &str| line.contains("php-fpm");
            if fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| ours(&line)) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

fn configuration(kind: Kind, plan: &Plan) -> String {
    let extension = if plan.start_up.is_none() {
        "php_admin_value[extension] = {dir}/attack.so\n"
    } else {
        ""
    };
    let own_ini = if kind == Kind::PhpPool {
        "php.ini = {dir}/villain.ini\nstop_timeout = 2s\n"
    } else {
        ""
    };
    let jail = if plan.jail {
        "[jail]\nuser = www-data\ngroup = www-data\nlisten = {dir}/jail.sock\nchroot = {dir}/jail\npm = static\n\
         pm.max_children = 1\nphp_admin_value[extension] = /attack.so\n"
    } else {
        ""
    };
    format!(
        "[global]\nerror_log = {{dir}}/error.log\n{}\n\
         [victim]\nuser = nobody\ngroup = nogroup\nlisten = {{dir}}/victim.sock\nlisten.mode = 0666\n\
         pm = ondemand\npm.max_children = 3\npm.process_idle_timeout = 1s\nenv[VICTIMS_SECRET] = {VICTIMS_SECRET}\n\
         access.log = {{dir}}/victim/access.log\n{}\n\
         [villain]\nuser = www-data\ngroup = www-data\nlisten = {{dir}}/villain.sock\npm = static\npm.max_children = 2\n\
         access.log = {{dir}}/villain/access.log\naccess.format = \"%m %r%Q%q\"\npm.status_path = /status\n\
         catch_workers_output = yes\n{extension}{own_ini}{}\n{jail}",
        plan.global, plan.victim, plan.villain
    )
}

/// The attacker's extension, built once.
fn extension() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("attack.so");
        let config = std::env::var("PHP_CONFIG").unwrap_or_else(|_| "php-config8.2".to_owned());
        let includes = Command::new(&config)
            .arg("--includes")
            .output()
            .expect("php-config is there");
        let includes = String::from_utf8(includes.stdout).expect("options are text");
        let built = Command::new("gcc")
            .args(["-shared", "-fPIC", "-O1"])
            .args(includes.split_whitespace())
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/attack/attack.c"))
            .arg("-o")
            .arg(&target)
            .status();
        assert!(built.expect("gcc is there").success(), "attack.c does not compile");
        target
    })
}
