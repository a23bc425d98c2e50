//! A bus, pools, and who asks about them.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::harness::{Master, Place, executable, wait_for};
use crate::support::process::{Daemon, spawn, that_dies_with_us};

/// What Debian's system bus allows, as far as it matters here, and then our own policy.
const BUS: &str = r#"<busconfig>
  <keep_umask/>
  <listen>unix:path={dir}/bus</listen>
  <auth>EXTERNAL</auth>
  <servicedir>{dir}/services</servicedir>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>
  <include>{dir}/policy.conf</include>
</busconfig>"#;

/// A pool `www` that runs, in a folder with a bus.
pub struct Site {
    pub master: Master,
    _bus: Daemon,
}

impl Site {
    /// `lines` are the pool's, `idle` the seconds after which the service leaves.
    pub fn start(lines: &str, idle: u32) -> Self {
        let place = Place::new();
        for folder in ["run", "run/www", "pool.d", "services", "home"] {
            fs::create_dir(place.path(folder)).unwrap();
        }
        place.configure(&format!(
            "[www]\n{{user}}\nlisten = {{dir}}/sock\ncatch_workers_output = yes\n{lines}\n"
        ));
        std::os::unix::fs::symlink(place.path("pool.conf"), place.path("pool.d/www.conf")).unwrap();
        place.write("hello.php", "<?php echo 'hello';");
        place.write("long.php", "<?php function dally() { sleep(600); } dally();");
        place.write("die.php", "<?php exec('kill -9 ' . getmypid());");
        let dir = place.path("").display().to_string();
        let dir = dir.trim_end_matches('/');
        let me = nix::unistd::geteuid().to_string();
        let policy =
            include_str!("../../units/dbus/org.phppool.conf").replace("user=\"root\"", &format!("user=\"{me}\""));
        place.write("policy.conf", &policy);
        place.write("bus.conf", &BUS.replace("{dir}", dir));
        let program = executable().display().to_string();
        let address = format!("unix:path={dir}/bus");
        place.write(
            "services/org.phppool.service",
            &format!(
                "[D-BUS Service]\nName=org.phppool\nExec={program} bus --bus {address} --pools {dir}/pool.d --run {dir}/run \
                 --idle {idle}\n"
            ),
        );
        let mut daemon = that_dies_with_us("KILL", "dbus-daemon");
        daemon.args(["--nofork", "--nopidfile", "--nosyslog", "--config-file"]);
        daemon.arg(place.path("bus.conf"));
        let socket = place.path("bus");
        let ready = move || std::os::unix::net::UnixStream::connect(&socket).is_ok();
        let bus = Daemon::start(daemon, &place.path("home"), ready).unwrap();
        let master = place.start_with_runtime_directory("run/www");
        master.said("ready to handle connections");
        if lines.contains("pm = static") {
            wait_for("the first worker", || !master.workers("www").is_empty());
        }
        Self { master, _bus: bus }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.master.place.path(name)
    }

    fn address(&self) -> String {
        format!("unix:path={}", self.path("bus").display())
    }

    /// Runs busctl, as another user if one is named.
    pub fn busctl(&self, user: Option<&str>, words: &[&str]) -> Output {
        let mut command = Command::new("setpriv");
        if let Some(user) = user {
            let user = nix::unistd::User::from_name(user).unwrap().unwrap();
            command.args([
                "--reuid",
                &user.uid.to_string(),
                "--regid",
                &user.gid.to_string(),
                "--clear-groups",
            ]);
        } else {
            command.args(["--pdeathsig", "KILL"]);
        }
        command.arg("--").arg("busctl").arg("--no-pager").arg("--timeout=60");
        command.arg(format!("--address={}", self.address())).args(words);
        command.stdin(Stdio::null()).output().expect("busctl can be run")
    }

    /// What it prints; it must succeed.
    pub fn said(&self, words: &[&str]) -> String {
        let out = self.busctl(None, words);
        let (text, problem) = (
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
        );
        assert!(out.status.success(), "{words:?}: {problem}");
        text.into_owned()
    }

    /// What it complains of; it must fail.
    pub fn refused(&self, user: Option<&str>, words: &[&str]) -> String {
        let out = self.busctl(user, words);
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(!out.status.success(), "{words:?} succeeded: {text}");
        String::from_utf8_lossy(&out.stderr).into_owned()
    }

    /// A property of pool `www`.
    pub fn property(&self, name: &str) -> Value {
        self.property_of(None, "www", name)
    }

    /// A property of a pool, for a user.
    pub fn property_of(&self, user: Option<&str>, label: &str, name: &str) -> Value {
        let path = format!("/org/phppool/pool/{label}");
        let words = [
            "--json=short",
            "get-property",
            "org.phppool",
            &path,
            "org.phppool.Pool1",
            name,
        ];
        data(&self.busctl(user, &words))
    }

    /// A method of pool `www`.
    pub fn call(&self, user: Option<&str>, words: &[&str]) -> Output {
        let path = "/org/phppool/pool/www";
        let mut all = vec!["--json=short", "call", "org.phppool", path, "org.phppool.Pool1"];
        all.extend(words);
        self.busctl(user, &all)
    }

    /// What a worker of pool `www` does, the innermost call first; None: the worker moved while it was looked at.
    pub fn backtrace(&self, user: Option<&str>, pid: i32) -> Option<Vec<Value>> {
        let out = self.call(user, &["Backtrace", "u", &pid.to_string()]);
        out.status.success().then(|| data(&out)[0].as_array().unwrap().clone())
    }

    /// The processes that serve the name.
    pub fn services(&self) -> Vec<i32> {
        let run = format!("--run\0{}\0", self.path("run").display());
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).into_owned();
            words.starts_with(&format!("{}\0bus\0", executable().display())) && words.contains(&run)
        })
        .collect()
    }

    /// A worker with a request that does not end by itself.
    pub fn busy_worker(&self) -> (i32, crate::support::fcgi::Connection) {
        let mut connection = self.master.connect("sock");
        self.master.ask(&mut connection, "/long.php?secret=1", 0);
        let mut found = None;
        wait_for("a worker with a request", || {
            let workers = data(&self.call(None, &["ListWorkers"]))[0].as_array().unwrap().clone();
            let busy = |worker: &&Value| worker["State"]["data"] == "active" && worker["URI"]["data"] == "/long.php";
            found = workers
                .iter()
                .find(busy)
                .map(|worker| worker["Pid"]["data"].as_i64().unwrap());
            found.is_some()
        });
        (i32::try_from(found.unwrap()).unwrap(), connection)
    }

    /// Waits for events as systemd does: the first one starts the service.
    pub fn wait_for_events(&self) -> Process {
        let mut command = that_dies_with_us("TERM", "systemd-socket-activate");
        command.arg("--datagram").arg("-l").arg(self.path("run/.events"));
        command.arg(executable()).args(["bus", "--bus", &self.address()]);
        command.arg("--pools").arg(self.path("pool.d"));
        command.arg("--run").arg(self.path("run"));
        let process = Process::start(command);
        wait_for("the socket for events", || self.path("run/.events").exists());
        process
    }

    /// A monitor of the pools' signals.
    pub fn monitor(&self) -> Process {
        let mut command = that_dies_with_us("KILL", "busctl");
        command.arg("--json=short").arg(format!("--address={}", self.address()));
        command.args(["--match", "type='signal',interface='org.phppool.Pool1'", "monitor"]);
        let process = Process::start(command);
        // busctl of 257 does not say that it listens.
        wait_for("the monitor hears a signal", || {
            self.said(&["emit", "/probe", "org.phppool.Pool1", "Probe"]);
            process.text().contains("\"Probe\"")
        });
        process
    }
}

/// What `busctl --json=short` has printed.
pub fn data(out: &Output) -> Value {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let value: Value = serde_json::from_slice(&out.stdout).unwrap();
    value["data"].clone()
}

/// A process whose words are kept.
pub struct Process {
    child: Child,
    text: Arc<Mutex<String>>,
}

impl Process {
    fn start(mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn(command).unwrap();
        let text = Arc::new(Mutex::new(String::new()));
        let streams: [Box<dyn Read + Send>; 2] = [
            Box::new(child.stdout.take().unwrap()),
            Box::new(child.stderr.take().unwrap()),
        ];
        for stream in streams {
            let text = text.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    *text.lock().unwrap() += &format!("{line}\n");
                }
            });
        }
        Self { child, text }
    }

    /// All of it so far.
    pub fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    /// The first line with this in it.
    pub fn said(&self, what: &str) -> String {
        let find = || self.text().lines().find(|line| line.contains(what)).map(str::to_owned);
        wait_for(what, || find().is_some());
        find().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
