//! The logger that everything in a process shares.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::budget::{Budget, Verdict};
use super::journal::{self, Journal};
use super::line::{LineFormat, Stamp};
use super::sink::{Outcome, Sink, Syslog, Target};
use super::{Clock, Fields, Level, MessageId, Said, Stream};
use crate::config::{Global, LogTarget};
use crate::scoreboard::{monotonic_ns, realtime_us};

/// Longest line of a worker's that is one entry of the journal, bytes; `log_limit` is for text logs.
const JOURNAL_LINE: usize = 64 << 10;

/// How long the end of a process waits for a reader of its last lines.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why there is no log.
#[derive(Debug, Error)]
pub enum LogError {
    /// The file of `error_log`.
    #[error("failed to open error_log ({}): {}", path.display(), crate::log::errno(source))]
    Open {
        /// `error_log`
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// stderr cannot be replaced.
    #[error("failed to tie stderr fd with error_log fd: {}", crate::log::errno(.0))]
    Stderr(#[source] io::Error),
}

/// The text of a system error as php-fpm's lines end: `Permission denied (13)`.
pub fn errno(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => format!("{} ({number})", nix::errno::Errno::from_raw(number).desc()),
        None => error.to_string(),
    }
}

/// What `[global]` says about the log.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `error_log`; None: lines go to stderr, and no file is touched.
    pub target: Option<LogTarget>,
    /// `log_level`
    pub level: Level,
    /// `log_limit`
    pub limit: usize,
    /// `log_request_id`
    pub request_ids: bool,
    /// `syslog.ident`
    pub ident: String,
    /// `syslog.facility`
    pub facility: i32,
}

impl From<&Global> for Settings {
    fn from(global: &Global) -> Self {
        Self {
            target: Some(global.error_log.clone()),
            level: global.log_level,
            limit: global.log_limit,
            request_ids: global.log_request_id,
            ident: global.syslog_ident.clone(),
            facility: global.syslog_facility,
        }
    }
}

/// A log, for a successor of this process.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SavedLog {
    replaces_stderr: bool,
    tied: bool,
    /// The descriptor of the file, where it is one.
    #[serde(skip)]
    pub file: Option<RawFd>,
}

/// A handle on the process's log; clones are cheap and mean the same log. It begins with stderr alone.
///
/// Nothing in here waits for a disk's or a reader's leisure, and no failure to log is a failure of the caller: it is
/// said once on stderr, and in the log when that works again.
#[derive(Clone, Debug)]
pub struct Logger(Rc<RefCell<State>>);

/// Whose words a line has. Who floods the log must not drown what is said of him.
#[derive(Clone, Copy, Debug)]
enum Whose {
    /// What the pool's processes say.
    Theirs = 0,
    /// What this process says of the pool.
    Ours = 1,
}

#[derive(Debug)]
struct State {
    format: LineFormat,
    stderr: Sink,
    /// The error log, where it takes stderr's place.
    log: Option<Sink>,
    /// How it was opened, and whether it takes stderr's place.
    opened: Option<(Settings, bool)>,
    /// The clock of syslog's datagrams.
    syslog_clock: Clock,
    /// What each pool may still have logged.
    budgets: HashMap<String, [Budget; 2]>,
    /// When the first of those that are not heard is heard again.
    mute_until: Option<Duration>,
    started: bool,
    tied: bool,
}

impl Default for Logger {
    fn default() -> Self {
        Self::new(Stamp::Time)
    }
}

macro_rules! levels {
    ($($(#[$doc:meta])* $name:ident => $level:ident),*) => {
        $($(#[$doc])*
        #[track_caller]
        pub fn $name(&self, text: impl Display) {
            self.log(Level::$level, text);
        })*
    };
}

impl Logger {
    /// A log on stderr, from NOTICE on.
    pub fn new(stamp: Stamp) -> Self {
        let journal = (stamp != Stamp::Untimed).then(Journal::behind_stderr).flatten();
        Self(Rc::new(RefCell::new(State {
            format: LineFormat::new(stamp, Level::Notice, 1024),
            stderr: Sink::new(journal.map_or(Target::Stderr, Target::Journal)),
            log: None,
            opened: None,
            syslog_clock: Clock::new("%b %e %H:%M:%S"),
            budgets: HashMap::new(),
            mute_until: None,
            started: false,
            tied: false,
        })))
    }

    /// A worker's log: on its stderr, which its master reads, without time.
    pub fn untimed(level: Level, limit: usize) -> Self {
        let logger = Self::new(Stamp::Untimed);
        logger.configure(level, limit);
        logger
    }

    /// Sets `log_level` and `log_limit`.
    pub fn configure(&self, level: Level, limit: usize) {
        let mut state = self.0.borrow_mut();
        state.format.threshold = level;
        state.format.limit = limit;
    }

    /// Opens the error log; without `replace_stderr` it is only made sure that it can be opened. Until [`Self::started`],
    /// what is NOTICE or above goes to stderr as well. Opening it again with other settings is a reload.
    ///
    /// # Errors
    /// When the file cannot be opened; lines then go where they went before.
    pub fn open(&self, settings: &Settings, replace_stderr: bool) -> Result<(), LogError> {
        let mut state = self.0.borrow_mut();
        state.open(settings, replace_stderr)?;
        state.opened = Some((settings.clone(), replace_stderr));
        state.format.threshold = settings.level;
        state.format.limit = settings.limit;
        state.format.request_ids = settings.request_ids;
        Ok(())
    }

    /// Start-up is complete: from now on lines go to the log alone.
    pub fn started(&self) {
        self.0.borrow_mut().started = true;
    }

    /// Ties stderr to the error log (for syslog: to /dev/null), for a process in the background: what a library or a
    /// panic writes there belongs into the log too. Holds over [`Self::reopen`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn tie_stderr(&self) -> Result<(), LogError> {
        let mut state = self.0.borrow_mut();
        state.tied = true;
        state.tie()
    }

    /// Opens the error log again, as log rotation asks (SIGUSR1), and says so. When that fails, lines go on into the old
    /// file.
    #[track_caller]
    pub fn reopen(&self) {
        let mut state = self.0.borrow_mut();
        let result = match state.opened.clone() {
            Some((settings, replace_stderr)) => state.open(&settings, replace_stderr),
            None => Ok(()),
        };
        drop(state);
        match result {
            Ok(()) => self.notice("error log file re-opened"),
            Err(error) => {
                self.error(error);
                self.error("unable to re-opened error log file");
            }
        }
    }

    /// Whether a line of this level is written.
    pub fn takes(&self, level: Level) -> bool {
        level >= self.0.borrow().format.threshold
    }

    /// The rules of its lines, for what formats lines of its own ([`super::WorkerOutput`]).
    pub fn format(&self) -> LineFormat {
        let state = self.0.borrow();
        let mut format = state.format.clone();
        if state.in_journal() {
            format.limit = format.limit.max(JOURNAL_LINE);
        }
        format
    }

    /// Writes a line that is formatted already, with its newline, whatever its level.
    pub fn line(&self, level: Level, line: &[u8]) {
        self.0.borrow_mut().write(level, line);
    }

    /// Whether a line of so many bytes that a pool's processes have printed is written. To be asked before anything is done for it.
    pub fn hears(&self, pool: &str, bytes: usize) -> bool {
        self.admits(Some(pool), Whose::Theirs, bytes)
    }

    /// Writes a line that a worker has printed, and that [is heard](Self::hears).
    pub fn printed(&self, fields: &Fields<'_>, said: &Said<'_>) {
        let otherwise = if said.stream == Stream::Stderr { 5 } else { 6 };
        let (severity, text) = journal::severity_of(said.text, otherwise);
        if !self.to_journal(severity, fields, text) {
            self.line(Level::Warning, said.line);
        }
    }

    /// Writes a message that a worker, or PHP in it, has sent whole; PHP's are written whatever their level.
    pub fn sent(&self, fields: &Fields<'_>, level: Level, from_php: bool, text: &str) {
        if !self.admits(fields.pool, Whose::Theirs, text.len()) {
            return;
        }
        let text = format!("{}{text}", if from_php { "PHP message: " } else { "" });
        let (severity, _) = journal::severity_of(text.as_bytes(), level.severity());
        if !self.to_journal(severity, fields, text.as_bytes()) {
            // The log has been a file since the worker was made.
            let level = if from_php { level.max(Level::Warning) } else { level };
            if self.takes(level) {
                self.enter(level, fields, Location::caller(), &text);
            }
        }
    }

    /// Whether a pool may have another line of so many bytes logged.
    fn admits(&self, pool: Option<&str>, whose: Whose, bytes: usize) -> bool {
        let Some(pool) = pool else { return true };
        let now = Duration::from_nanos(monotonic_ns());
        self.tell_suppressed(now);
        let State {
            budgets, mute_until, ..
        } = &mut *self.0.borrow_mut();
        if !budgets.contains_key(pool) {
            budgets.insert(pool.to_owned(), [Budget::new(now), Budget::new(now)]);
        }
        let Some(budget) = budgets.get_mut(pool).map(|budgets| &mut budgets[whose as usize]) else {
            return true;
        };
        let verdict = budget.take(bytes, now);
        *mute_until = mute_until.iter().copied().chain(budget.mute_until()).min();
        verdict == Verdict::Write
    }

    /// Says of each pool that was not heard, and is again, how many lines that has cost.
    fn tell_suppressed(&self, now: Duration) {
        let mut state = self.0.borrow_mut();
        // Asked before each line of many: the pools are looked at when there is something to find.
        if state.mute_until.is_none_or(|until| now < until) {
            return;
        }
        let mut over = Vec::new();
        for (pool, budgets) in &mut state.budgets {
            for (budget, what) in budgets.iter_mut().zip(["of its processes", "about it"]) {
                over.extend(budget.suppressed(now).map(|lines| (pool.clone(), lines, what)));
            }
        }
        state.mute_until = state.budgets.values().flatten().filter_map(Budget::mute_until).min();
        drop(state);
        for (pool, lines, what) in over {
            let fields = Fields {
                pool: Some(&pool),
                ..Fields::default()
            };
            let text = format!("{lines} lines {what} were suppressed: they came too fast");
            self.enter(Level::Warning, &fields, Location::caller(), &text);
        }
    }

    /// Writes an entry.
    fn enter(&self, level: Level, fields: &Fields<'_>, place: &Location<'_>, text: &str) {
        if self.to_journal(level.severity(), fields, text.as_bytes()) {
            return;
        }
        let mut line = Vec::with_capacity(text.len() + 80);
        let mut state = self.0.borrow_mut();
        state
            .format
            .message(level, fields, place, realtime_us(), text, &mut line);
        state.write(level, &line);
    }

    /// Whether entries go to the journal alone: whole, and with all of their fields.
    pub fn keeps_fields(&self) -> bool {
        self.0.borrow().in_journal()
    }

    /// Puts an entry into the journal, if that is where they go.
    fn to_journal(&self, severity: u8, fields: &Fields<'_>, text: &[u8]) -> bool {
        let mut state = self.0.borrow_mut();
        let wanted = state.in_journal();
        if wanted {
            let outcome = state.stderr.put(&journal::entry(severity, fields, text));
            state.tell_journal(outcome);
        }
        wanted
    }

    /// Writes what waits for a reader, as at the end of the process.
    pub fn last_words(&self) {
        self.0.borrow_mut().flush(LAST_WORDS);
    }

    /// How it is open, for a successor of this process.
    pub fn save(&self) -> SavedLog {
        let state = self.0.borrow();
        SavedLog {
            replaces_stderr: state.opened.as_ref().is_some_and(|(_, replaces)| *replaces),
            tied: state.tied,
            file: match &state.log {
                Some(Sink {
                    target: Target::File { file, .. },
                    ..
                }) => Some(file.as_raw_fd()),
                _ => None,
            },
        }
    }

    /// Goes on where a predecessor was: into the same file, whatever stands at its path now.
    pub fn restore(&self, settings: &Settings, saved: &SavedLog, file: Option<File>) {
        let mut state = self.0.borrow_mut();
        state.format.threshold = settings.level;
        state.format.limit = settings.limit;
        state.format.request_ids = settings.request_ids;
        state.opened = Some((settings.clone(), saved.replaces_stderr));
        (state.started, state.tied) = (true, saved.tied);
        let target = match (&settings.target, file) {
            (Some(LogTarget::File(path)), Some(file)) => Some(Target::File {
                path: path.clone(),
                file,
            }),
            (Some(LogTarget::Syslog), _) => Some(Target::Syslog(Syslog::new(Path::new("/dev/log")))),
            (Some(LogTarget::File(_)), None) | (None, _) => None,
        };
        if let Some(target) = target.filter(|_| saved.replaces_stderr) {
            if matches!(target, Target::Syslog(_)) {
                state.format.stamp = Stamp::Syslog;
            }
            state.log = Some(Sink::new(target));
        }
    }

    /// Writes what could not be written at once; false while something is left to be said. To be called now and then.
    pub fn flush(&self) -> bool {
        self.tell_suppressed(Duration::from_nanos(monotonic_ns()));
        let mut state = self.0.borrow_mut();
        state.flush(Duration::ZERO) && state.mute_until.is_none()
    }

    /// Entries about a pool.
    pub fn pool<'a>(&'a self, name: &'a str) -> About<'a> {
        self.about(Fields {
            pool: Some(name),
            ..Fields::default()
        })
    }

    /// Entries about an event that has an identifier.
    pub fn identified(&self, id: MessageId) -> About<'_> {
        self.about(Fields {
            message_id: Some(id),
            ..Fields::default()
        })
    }

    /// Entries with fields.
    pub fn about<'a>(&'a self, fields: Fields<'a>) -> About<'a> {
        About { logger: self, fields }
    }

    /// Writes an entry.
    #[track_caller]
    pub fn log(&self, level: Level, text: impl Display) {
        self.about(Fields::default()).log(level, text);
    }

    levels! {
        /// Writes a DEBUG entry.
        debug => Debug,
        /// Writes a NOTICE entry.
        notice => Notice,
        /// Writes a WARNING entry.
        warning => Warning,
        /// Writes an ERROR entry.
        error => Error,
        /// Writes an ALERT entry.
        alert => Alert
    }
}

/// A logger for entries that share their fields.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    logger: &'a Logger,
    fields: Fields<'a>,
}

impl About<'_> {
    /// The same, about an event that has an identifier.
    pub fn identified(mut self, id: MessageId) -> Self {
        self.fields.message_id = Some(id);
        self
    }

    /// Writes an entry.
    #[track_caller]
    pub fn log(&self, level: Level, text: impl Display) {
        let place = Location::caller();
        if !self.logger.takes(level) {
            return;
        }
        // Formatted before the log is borrowed: a Display may itself log.
        let text = text.to_string();
        if self.logger.admits(self.fields.pool, Whose::Ours, text.len()) {
            self.logger.enter(level, &self.fields, place, &text);
        }
    }

    levels! {
        /// Writes a DEBUG entry.
        debug => Debug,
        /// Writes a NOTICE entry.
        notice => Notice,
        /// Writes a WARNING entry.
        warning => Warning,
        /// Writes an ERROR entry.
        error => Error,
        /// Writes an ALERT entry.
        alert => Alert
    }
}

impl State {
    fn in_journal(&self) -> bool {
        self.log.is_none() && matches!(self.stderr.target, Target::Journal(_))
    }

    /// Says in the journal what it has missed.
    fn tell_journal(&mut self, outcome: Outcome) {
        if let Outcome::Recovered(lost) = outcome
            && self.in_journal()
        {
            let text = format!("{lost} entries are lost: journald did not take them");
            let entry = journal::entry(Level::Warning.severity(), &Fields::default(), text.as_bytes());
            self.stderr.put(&entry);
        }
    }

    fn open(&mut self, settings: &Settings, replace_stderr: bool) -> Result<(), LogError> {
        let target = match &settings.target {
            Some(LogTarget::File(path)) => Some(Target::file(path).map_err(|source| LogError::Open {
                path: path.clone(),
                source,
            })?),
            Some(LogTarget::Syslog) => Some(Target::Syslog(Syslog::new(Path::new("/dev/log")))),
            None => None,
        };
        match (&mut self.log, target.filter(|_| replace_stderr)) {
            // What waits for the old one goes to the new one.
            (Some(sink), Some(target)) => sink.target = target,
            (log, target) => *log = target.map(Sink::new),
        }
        if self.format.stamp != Stamp::Untimed {
            self.format.stamp = match &self.log {
                Some(log) if matches!(log.target, Target::Syslog(_)) => Stamp::Syslog,
                _ => Stamp::Time,
            };
        }
        if self.tied { self.tie() } else { Ok(()) }
    }

    fn tie(&mut self) -> Result<(), LogError> {
        let failed = |e: nix::errno::Errno| LogError::Stderr(e.into());
        match &self.log {
            Some(Sink {
                target: Target::File { file, .. },
                ..
            }) => nix::unistd::dup2_stderr(file).map_err(failed),
            Some(_) => {
                let null = std::fs::OpenOptions::new()
                    .write(true)
                    .open("/dev/null")
                    .map_err(LogError::Stderr)?;
                nix::unistd::dup2_stderr(null).map_err(failed)
            }
            None => Ok(()),
        }
    }

    /// Writes a formatted line to where lines go now.
    fn write(&mut self, level: Level, line: &[u8]) {
        let Some(log) = &mut self.log else {
            return self.put_stderr(level, line);
        };
        let outcome = match &log.target {
            Target::Syslog(_) => {
                let (settings, _) = self.opened.as_ref().expect("syslog was opened with its settings");
                let mut datagram = format!(
                    "<{}>{} {}[{}]: ",
                    settings.facility | i32::from(level.severity()),
                    self.syslog_clock.at((realtime_us() / 1_000_000) as i64),
                    settings.ident,
                    std::process::id(),
                )
                .into_bytes();
                datagram.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
                log.put(&datagram)
            }
            _ => log.put(line),
        };
        self.tell(outcome);
        if !self.started && level >= Level::Notice {
            self.put_stderr(level, line);
        }
    }

    /// A formatted line to stderr, or to the journal behind it.
    fn put_stderr(&mut self, level: Level, line: &[u8]) {
        if matches!(self.stderr.target, Target::Journal(_)) {
            let text = line.strip_suffix(b"\n").unwrap_or(line);
            let entry = journal::entry(level.severity(), &Fields::default(), text);
            self.stderr.put(&entry);
        } else {
            self.stderr.put(line);
        }
    }

    fn flush(&mut self, limit: Duration) -> bool {
        let log = match &mut self.log {
            Some(log) => {
                let outcome = log.flush_for(limit);
                let done = log.is_empty();
                self.tell(outcome);
                done
            }
            None => true,
        };
        let outcome = self.stderr.flush_for(limit);
        self.tell_journal(outcome);
        log && self.stderr.is_empty()
    }

    /// Says once on stderr that the log cannot be written, and in the log how many lines that has cost.
    fn tell(&mut self, outcome: Outcome) {
        let Some(log) = &mut self.log else { return };
        let (level, text) = match outcome {
            Outcome::Fine | Outcome::StillFailing => return,
            Outcome::Failed(error) => {
                let text = format!("{} cannot be written: {}", log.target.name(), errno(&error));
                (Level::Error, text)
            }
            Outcome::Recovered(lost) => {
                let text = format!(
                    "{lost} lines could not be written to {} and are lost",
                    log.target.name()
                );
                (Level::Warning, text)
            }
        };
        let mut line = Vec::new();
        self.format.message(
            level,
            &Fields::default(),
            Location::caller(),
            realtime_us(),
            &text,
            &mut line,
        );
        match level {
            Level::Error => self.put_stderr(level, &line),
            _ => self.write(level, &line),
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.flush(LAST_WORDS);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::{Lines, Stream, WorkerOutput};
    use super::*;

    fn settings(target: LogTarget) -> Settings {
        Settings {
            target: Some(target),
            level: Level::Notice,
            limit: 1024,
            request_ids: false,
            ident: "php-fpm".to_owned(),
            facility: 24,
        }
    }

    /// The texts of a log's lines, without time.
    fn texts(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| line.split_once("] ").unwrap().1.to_owned())
            .collect()
    }

    #[test]
    fn the_log_file_takes_what_is_loud_enough() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("error.log");
        let logger = Logger::default();
        logger.started();
        logger.open(&settings(LogTarget::File(path.clone())), true).unwrap();
        logger.debug("not this");
        logger.notice("ready to handle connections");
        logger.clone().pool("www").warning(format_args!("child {} exited", 7));
        WorkerOutput::new("www", 7, true).feed(
            Stream::Stdout,
            b"one\n",
            &mut Lines {
                now: realtime_us(),
                format: &mut logger.format(),
                take: &mut |said| logger.line(Level::Warning, said.line),
            },
        );
        assert_eq!(
            texts(&path),
            [
                "NOTICE: ready to handle connections",
                "WARNING: [pool www] child 7 exited",
                "WARNING: [pool www] child 7 said into stdout: \"one\""
            ]
        );
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_rotated_log_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("error.log");
        let old = dir.path().join("error.log.1");
        let logger = Logger::default();
        logger.started();
        logger.open(&settings(LogTarget::File(path.clone())), true).unwrap();
        logger.notice("one");
        std::fs::rename(&path, &old).unwrap();
        logger.reopen();
        logger.notice("two");
        assert_eq!(texts(&old), ["NOTICE: one"]);
        assert_eq!(texts(&path), ["NOTICE: error log file re-opened", "NOTICE: two"]);
    }

    #[test]
    fn a_log_that_cannot_be_opened_again_goes_on_in_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, moved) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("error.log");
        let logger = Logger::default();
        logger.started();
        logger.open(&settings(LogTarget::File(path.clone())), true).unwrap();
        std::fs::rename(&folder, &moved).unwrap();
        logger.reopen();
        logger.notice("two");
        assert_eq!(
            texts(&moved.join("error.log")),
            [
                format!(
                    "ERROR: failed to open error_log ({}): No such file or directory (2)",
                    path.display()
                ),
                "ERROR: unable to re-opened error log file".to_owned(),
                "NOTICE: two".to_owned()
            ]
        );
    }

    #[test]
    fn a_log_that_cannot_be_opened_is_an_error_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let error = Logger::default()
            .open(&settings(LogTarget::File(dir.path().to_owned())), true)
            .unwrap_err();
        let wanted = format!(
            "failed to open error_log ({}): Is a directory (21)",
            dir.path().display()
        );
        assert_eq!(error.to_string(), wanted);
    }

    #[test]
    fn syslog_gets_the_messages_own_severity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        let logger = Logger::default();
        logger.started();
        {
            let mut state = logger.0.borrow_mut();
            state.opened = Some((settings(LogTarget::Syslog), true));
            state.log = Some(Sink::new(Target::Syslog(Syslog::new(&path))));
            state.format.stamp = Stamp::Syslog;
        }
        let received = || {
            let mut buffer = [0; 256];
            let n = daemon.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..n].to_vec()).unwrap()
        };
        let tail = |level| format!(" php-fpm[{}]: [{level}] [pool www] text", std::process::id());
        logger.pool("www").notice("text");
        let notice = received();
        // RFC 3164: facility 24 (daemon) and severity 5, then `Nov 20 20:35:42`.
        assert!(
            notice.starts_with("<29>") && notice.ends_with(&tail("NOTICE")),
            "{notice}"
        );
        assert_eq!(notice.len(), "<29>".len() + 15 + tail("NOTICE").len());
        logger.pool("www").error("text");
        let error = received();
        assert!(error.starts_with("<27>") && error.ends_with(&tail("ERROR")), "{error}");
    }
}
