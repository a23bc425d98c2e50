//! Processes: found below another, started so that they do not stay, ended without a trace.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::fcgi::PATIENCE;

/// A process, told from a later one with the same pid by its start time.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    pub pid: i32,
    parent: i32,
    name: String,
    started: u64,
}

impl Process {
    /// Of the whole machine, but for zombies.
    pub fn all() -> Vec<Self> {
        let entries = fs::read_dir("/proc").expect("/proc is mounted");
        let pids = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter_map(Self::of).collect()
    }

    /// None if there is no such process, or only its zombie.
    fn of(pid: i32) -> Option<Self> {
        let (name, fields) = stat(pid).filter(|(_, fields)| fields[0] != "Z")?;
        Some(Self {
            pid,
            parent: fields[1].parse().ok()?,
            name,
            started: fields[19].parse().ok()?,
        })
    }

    /// Its title, or its command line.
    pub fn title(&self) -> String {
        let title = fs::read_to_string(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        title.trim_end_matches('\0').replace('\0', " ")
    }

    /// Whether it is gone within `patience`.
    pub fn gone_within(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            if Self::of(self.pid).is_none_or(|now| now.started != self.started) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// What /proc/PID/stat says of a process: its name, and all that follows it.
fn stat(pid: i32) -> Option<(String, Vec<String>)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold blanks and parentheses.
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    Some((name.to_owned(), rest.split_whitespace().map(str::to_owned).collect()))
}

/// The letter by which the kernel tells what a process is at. None: it is gone.
pub fn state(pid: i32) -> Option<char> {
    stat(pid)?.1[0].chars().next()
}

/// Whether a process lives; a zombie does not.
pub fn lives(pid: i32) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

/// Whether a process waits for something, which may be work.
pub fn is_asleep(pid: i32) -> bool {
    state(pid) == Some('S')
}

/// `pid` and the processes below it, parents first.
pub fn family(pid: u32) -> Vec<Process> {
    let all = Process::all();
    let mut family: Vec<Process> = all.iter().filter(|p| p.pid.unsigned_abs() == pid).cloned().collect();
    let mut next = 0;
    while next < family.len() {
        let parent = family[next].pid;
        family.extend(all.iter().filter(|p| p.parent == parent).cloned());
        next += 1;
    }
    family
}

/// Kills a program, and those of its family that have not ended by themselves within `patience` of it.
pub fn kill_all(program: &mut Child, family: &[Process], patience: Duration) {
    let _ = program.kill();
    let _ = program.wait();
    for process in family.iter().filter(|p| !p.gone_within(patience)) {
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
}

/// The pids of a family's last generation: those that are nobody's parent, but for the first, whose family it is.
pub fn childless(family: &[Process]) -> Vec<i32> {
    let childless = |p: &&Process| family.iter().all(|other| other.parent != p.pid);
    family.iter().skip(1).filter(childless).map(|p| p.pid).collect()
}

/// A program that gets `signal` when the tests end without having ended it.
pub fn that_dies_with_us(signal: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal, "--"]).arg(program);
    // A Ctrl-C in the terminal is for us alone; we end the servers in good order.
    command.process_group(0);
    command
}

/// The same for one that is handed sockets: their addressee is told by its pid, which only it knows.
pub fn that_is_handed_sockets(program: impl AsRef<OsStr>) -> Command {
    let mut command = that_dies_with_us("KILL", "sh");
    command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(program);
    command
}

/// Hands listening sockets over, each by a name, as systemd does.
pub fn hand_over(command: &mut Command, sockets: Vec<(OwnedFd, &str)>) {
    let names: Vec<&str> = sockets.iter().map(|(_, name)| *name).collect();
    command.env("LISTEN_FDS", names.len().to_string());
    command.env("LISTEN_FDNAMES", names.join(":"));
    let mapping = |((parent_fd, _), child_fd)| FdMapping { parent_fd, child_fd };
    let mappings = sockets.into_iter().zip(3..).map(mapping).collect();
    command.fd_mappings(mappings).expect("each has its own number");
}

/// Starts a process from a thread that lives as long as the tests: the parent-death signal is that of the *thread*.
pub fn spawn(command: Command) -> io::Result<Child> {
    type Job = (Command, Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        thread::spawn(move || {
            for (mut command, answer) in jobs {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    let (answer, outcome) = channel();
    spawner
        .lock()
        .expect("nobody panics with it")
        .send((command, answer))
        .expect("the spawner lives on");
    outcome.recv().expect("the spawner answers every job")
}

/// A program that serves until it is dropped; what it prints is in `output` of its folder.
pub struct Daemon {
    child: Child,
    output: std::path::PathBuf,
}

impl Daemon {
    /// Starts it, and waits until `ready`.
    pub fn start(mut command: Command, home: &Path, ready: impl Fn() -> bool) -> Result<Self, String> {
        let name = format!("{command:?}");
        let failed = |e: io::Error| format!("{name} cannot be started: {e}");
        let output = home.join("output");
        let file = fs::File::create(&output).map_err(failed)?;
        command
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(failed)?)
            .stderr(file);
        let child = spawn(command).map_err(failed)?;
        let mut daemon = Self { child, output };
        let deadline = Instant::now() + PATIENCE;
        while !ready() {
            if let Ok(Some(status)) = daemon.child.try_wait() {
                return Err(format!("{name} ended with {status} at its start:\n{}", daemon.output()));
            }
            if Instant::now() > deadline {
                return Err(format!("{name} does not become ready:\n{}", daemon.output()));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(daemon)
    }

    /// What it has printed.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// The processes that it consists of.
    pub fn family(&self) -> Vec<Process> {
        family(self.child.id())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let family = self.family();
        let _ = kill(
            Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")),
            Signal::SIGTERM,
        );
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        kill_all(&mut self.child, &family, Duration::from_secs(5));
    }
}

/// A copy of a program that can be run at once. Another process makes it: one that a test starts meanwhile would have it open for
/// writing, and the kernel executes no such file.
pub fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg(from).arg(to).status().expect("cp can be run");
    assert!(
        copied.success(),
        "{} cannot be copied to {}",
        from.display(),
        to.display()
    );
}
