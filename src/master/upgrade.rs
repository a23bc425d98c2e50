//! An upgrade of the program: the master becomes, by an exec in place, what stands at its path now. It stays the same
//! process, with the same children, and no worker is disturbed.
//!
//! The new program is asked first, in a process of its own and with the same command line, whether it can take the state
//! over. One that cannot start, or is too far from this one, changes nothing.
#![forbid(unsafe_code)]

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::execve;
use tokio::io::Interest;

use super::listen::is_hand_over;
use super::process::Process;
use super::saved::Saved;
use super::stamp::Stamp;
use super::sys;
use super::watch::{Event, Events};
use crate::log::errno;

/// Says to a program that it is not to start, but to take over: `check`, or the descriptor of the state.
pub const VARIABLE: &str = "PHP_POOL_TAKE_OVER";

const CHECK: &str = "check";

/// What the new program says, and nothing else, when it can take over.
const ACCEPTED: &str = "php-pool: the state can be taken over\n";

/// How long it may take for that.
const PATIENCE: Duration = Duration::from_secs(30);

/// Most that it can say, bytes.
const LONGEST: u64 = 16 << 10;

/// What this process was called for.
#[derive(Debug)]
pub enum Called {
    /// To start.
    Start,
    /// To say whether it could take over the state at its stdin.
    Check,
    /// To take over this state.
    TakeOver(OwnedFd),
}

/// Finds out. To be called once, and before the process opens descriptors of its own.
pub fn called() -> Called {
    match std::env::var(VARIABLE) {
        Ok(word) if word == CHECK => Called::Check,
        Ok(word) => word
            .parse()
            .ok()
            .and_then(sys::take_inherited)
            .map_or(Called::Start, Called::TakeOver),
        Err(_) => Called::Start,
    }
}

/// [`Called::Check`]; returns the exit status.
pub fn answer() -> i32 {
    match Saved::read(io::stdin()) {
        Ok(_) => {
            print!("{ACCEPTED}");
            0
        }
        Err(error) => {
            eprintln!("{error}");
            70
        }
    }
}

/// A program that is being asked. It has no other use, and does not outlive the question, nor who asks.
struct Asked(Process);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.signal(Signal::SIGKILL);
    }
}

/// The program of this process, and where it was found.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    was: Option<Stamp>,
}

impl Program {
    /// Of this process.
    pub fn running() -> Self {
        let was = Stamp::of("/proc/self/exe".as_ref());
        let arguments: Vec<_> = std::env::args_os().collect();
        // A link by which it was called may lead elsewhere by then; the file that it leads to now may not be there any more.
        let name = arguments
            .first()
            .map(PathBuf::from)
            .filter(|name| name.components().count() > 1);
        let named = name.and_then(|name| std::path::absolute(name).ok());
        let named = named.filter(|name| Stamp::of(name) == was);
        Self {
            path: named.or_else(|| std::env::current_exe().ok()).unwrap_or_default(),
            arguments,
            was,
        }
    }

    /// Whether another one stands in its place. None at all is no reason for anything.
    pub fn has_changed(&self) -> bool {
        Stamp::of(&self.path).is_some_and(|now| Some(now) != self.was)
    }

    /// Asks the one in its place whether it can take a state over. The answer is an event.
    ///
    /// # Errors
    /// When it cannot even be started.
    pub fn check(&self, state: &Saved, events: &Events) -> Result<(), String> {
        let path = self.path.display().to_string();
        let failed = |error: io::Error| format!("{path}: {}", errno(&error));
        let (said, writer) = io::pipe().map_err(failed)?;
        rustix::io::ioctl_fionbio(&said, true).map_err(|error| failed(error.into()))?;
        let mut command = Command::new(&self.path);
        if let Some((name, arguments)) = self.arguments.split_first() {
            command.arg0(name).args(arguments);
        }
        // Nothing that a master would take for its own.
        for (name, _) in std::env::vars_os() {
            if name
                .to_str()
                .is_some_and(|name| is_hand_over(name) || name == "NOTIFY_SOCKET")
            {
                command.env_remove(name);
            }
        }
        command
            .env(VARIABLE, CHECK)
            .stdin(state.write().map_err(failed)?)
            .stdout(writer.try_clone().map_err(failed)?)
            .stderr(writer);
        let child = command.spawn().map_err(failed)?;
        drop(command);
        let asked = Asked(Process::of_child(child.id() as i32).map_err(failed)?);
        let events = events.clone();
        tokio::task::spawn_local(async move {
            let answer = match tokio::time::timeout(PATIENCE, read(said)).await {
                Ok(Ok(text)) if text == ACCEPTED => Ok(()),
                Ok(Ok(text)) => Err(format!("{path} cannot take over: {}", text.trim_end().escape_debug())),
                Ok(Err(error)) => Err(format!("{path} cannot take over: {}", errno(&error))),
                Err(_) => Err(format!(
                    "{path} cannot take over: it said nothing within {} seconds",
                    PATIENCE.as_secs()
                )),
            };
            drop(asked);
            let _ = events.send(Event::Checked(answer)).await;
        });
        Ok(())
    }

    /// Becomes it. Every descriptor of the state must pass by now. Returns why it could not.
    pub fn exec(&self, state: &File) -> io::Error {
        let text = |bytes: Vec<u8>| CString::new(bytes).unwrap_or_default();
        let arguments: Vec<_> = self
            .arguments
            .iter()
            .map(|word| text(word.clone().into_vec()))
            .collect();
        let mut environment: Vec<_> = std::env::vars_os()
            .filter(|(name, _)| name != VARIABLE)
            .map(|(name, value)| text([name.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect();
        environment.push(text(format!("{VARIABLE}={}", state.as_raw_fd()).into_bytes()));
        sys::set_close_on_exec(state.as_raw_fd(), false);
        let path = text(self.path.clone().into_os_string().into_vec());
        match execve(&path, &arguments, &environment) {
            Err(error) => error.into(),
            Ok(never) => match never {},
        }
    }

    /// Where it is.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
}

/// All that comes, to its end.
async fn read(pipe: PipeReader) -> io::Result<String> {
    let pipe = sys::register(pipe, Interest::READABLE)?;
    let mut text = Vec::new();
    loop {
        let mut ready = pipe.readable().await?;
        match pipe.get_ref().take(LONGEST - text.len() as u64).read_to_end(&mut text) {
            // Its end, or more than anybody wants to know.
            Ok(_) => return Ok(String::from_utf8_lossy(&text).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(error) => return Err(error),
        }
    }
}
