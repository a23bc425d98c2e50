//! One worker, as the master knows it.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::cgroup::Leaf;
use super::context::Context;
use super::foreign::Closer;
use super::limits::Rung;
use super::output::{self, Output, Pipes, Reader, SavedOutput, SavedPipes, Speaker};
use super::process::{Process, SavedProcess};
use super::saved::{Kept, Restorer, Saver};
use super::sys;
use super::watch::{self, Event, Place, Registered, Watch};
use super::zygote::BUFFER;
use crate::config::Pool;
use crate::control::{self, Channel, ChannelError, Exit, FromWorker, Spawn, ToWorker, ToZygote};
use crate::log::Fields;
use crate::pm::WorkerId;
use crate::scoreboard::{Scoreboard, SlotView, TextView};
use crate::status::Snapshot;

/// With more than this unread on its link, in the kernel's bytes, a worker gets no status that has memory of its own.
const MOST_UNREAD: usize = 16 << 10;

/// A worker.
#[derive(Debug)]
pub struct Worker {
    /// Its number.
    pub id: WorkerId,
    /// Its slot in the scoreboard.
    pub slot: u32,
    /// When it was asked for.
    pub started: Duration,
    /// The process; None until the zygote has made it.
    pub process: Option<Rc<Process>>,
    /// When it was asked to leave as one too many.
    pub asked: Option<Duration>,
    /// When it was told to leave because it is used up.
    pub retired: Option<Duration>,
    /// It is a spare: ready, and accepts nothing.
    pub held: bool,
    /// It has left by itself, which has been noticed; it may not have ended yet.
    pub left: bool,
    /// How it ended, by its zygote's word.
    pub exit: Option<Exit>,
    /// When its process was seen to have ended.
    pub ended: Option<Duration>,
    /// Its link is at its end: everything that it has said was heard.
    pub hung_up: bool,
    /// It takes the place of one that ended unasked.
    pub replaces: bool,
    /// Its control group.
    pub leaf: Option<Leaf>,
    /// How far the end of its request has got, when that is being enforced.
    pub rung: Option<Rung>,
    /// The begin of the request that was traced last.
    pub traced: Option<u64>,
    /// When that was.
    pub traced_at: Option<Duration>,
    /// It has been said that its messages cannot be read.
    pub malformed: bool,
    /// Shared with the thread that reads its memory, as long as there is one.
    pub tracing: Arc<()>,
    link: Registered<ToWorker, FromWorker>,
    pipes: Option<Pipes>,
    output: Option<Output>,
    watches: Vec<Watch>,
}

/// A worker, for a successor.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedWorker {
    id: WorkerId,
    slot: u32,
    started: Duration,
    process: Option<SavedProcess>,
    asked: Option<Duration>,
    exit: Option<Exit>,
    ended: Option<Duration>,
    hung_up: bool,
    replaces: bool,
    retired: Option<Duration>,
    held: bool,
    left: bool,
    leaf: Option<PathBuf>,
    rung: Option<Rung>,
    traced: Option<u64>,
    #[serde(default)]
    traced_at: Option<Duration>,
    link: Kept,
    pipes: Option<SavedPipes>,
    output: Option<SavedOutput>,
}

impl Worker {
    /// What is to go on.
    pub fn save(&self, saver: &mut Saver) -> SavedWorker {
        SavedWorker {
            id: self.id,
            slot: self.slot,
            started: self.started,
            process: self.process.as_ref().map(|process| process.save(saver)),
            asked: self.asked,
            exit: self.exit,
            ended: self.ended,
            hung_up: self.hung_up,
            replaces: self.replaces,
            retired: self.retired,
            held: self.held,
            left: self.left,
            leaf: self.leaf.as_ref().map(|leaf| leaf.path().to_owned()),
            rung: self.rung,
            traced: self.traced,
            traced_at: self.traced_at,
            link: saver.keep(self.link.get_ref()),
            pipes: self.pipes.as_ref().map(|pipes| pipes.save(saver)),
            output: self.output.as_ref().map(|output| output.save(saver)),
        }
    }

    /// Goes on with it.
    ///
    /// # Errors
    /// When a descriptor is missing.
    pub fn restore(
        ctx: &Context,
        place: Place,
        pool: &Pool,
        board: &Arc<Scoreboard>,
        (closer, reader): (&Closer, &Reader),
        saved: SavedWorker,
        fds: &mut Restorer,
    ) -> io::Result<Self> {
        let (link, watch) = Self::listen(ctx, place, saved.id, fds.take(saved.link)?.into(), closer)?;
        let mut worker = Self {
            id: saved.id,
            slot: saved.slot,
            started: saved.started,
            process: None,
            asked: saved.asked,
            exit: saved.exit,
            ended: saved.ended,
            hung_up: saved.hung_up,
            replaces: saved.replaces,
            retired: saved.retired,
            held: saved.held,
            left: saved.left,
            leaf: saved
                .leaf
                .zip(ctx.cgroup.as_ref())
                .map(|(path, groups)| groups.leaf(path)),
            rung: saved.rung,
            traced: saved.traced,
            traced_at: saved.traced_at,
            malformed: false,
            tracing: Arc::default(),
            link,
            pipes: saved
                .pipes
                .map(|pipes| Pipes::restore(pipes, reader, fds))
                .transpose()?,
            output: None,
            watches: vec![watch],
        };
        if let Some(process) = saved.process {
            let process = Process::restore(process, fds)?;
            let pid = process.pid();
            worker.watch(ctx, place, process)?;
            let output = saved
                .output
                .map(|output| Output::restore(output, reader, &ctx.log, worker.speaker(pool, pid, board), fds));
            worker.output = output.transpose()?;
        }
        Ok(worker)
    }

    fn listen(
        ctx: &Context,
        place: Place,
        id: WorkerId,
        link: Channel<ToWorker, FromWorker>,
        closer: &Closer,
    ) -> io::Result<(Registered<ToWorker, FromWorker>, Watch)> {
        let link = watch::register(link)?;
        let watch = watch::messages(&link, &ctx.events, closer, move |result| {
            Event::Worker(place, id, result)
        });
        Ok((link, watch))
    }

    fn watch(&mut self, ctx: &Context, place: Place, process: Process) -> io::Result<()> {
        let process = Rc::new(process);
        self.watches
            .push(watch::process(&process, &ctx.events, Event::Ended(place, self.id))?);
        self.process = Some(process);
        Ok(())
    }

    /// Prepares one, and the order by which its zygote makes it.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn prepare(
        ctx: &Context,
        place: Place,
        pool: &Pool,
        spawn: Spawn,
        (closer, reader): (&Closer, &Reader),
    ) -> io::Result<(Self, (ToZygote, Vec<OwnedFd>))> {
        let (ours, theirs) = control::pair::<ToWorker, FromWorker>(BUFFER).map_err(io::Error::other)?;
        let id = WorkerId(spawn.worker);
        let (pipes, stdout, stderr) = if pool.catch_workers_output {
            let (pipes, stdout, stderr) = output::pipes(reader)?;
            (Some(pipes), stdout, stderr)
        } else {
            (None, output::null()?, output::null()?)
        };
        let fds: Vec<OwnedFd> = vec![theirs.into(), stdout, stderr];
        let (link, watch) = Self::listen(ctx, place, id, ours, closer)?;
        let slot = spawn.slot;
        let worker = Self {
            id,
            slot,
            started: watch::now(),
            process: None,
            asked: None,
            retired: None,
            held: false,
            left: false,
            exit: None,
            ended: None,
            hung_up: false,
            replaces: false,
            leaf: None,
            rung: None,
            traced: None,
            traced_at: None,
            malformed: false,
            tracing: Arc::default(),
            link,
            pipes,
            output: None,
            watches: vec![watch],
        };
        Ok((worker, (ToZygote::Spawn(spawn), fds)))
    }

    /// Its process is there: opens the gate.
    ///
    /// # Errors
    /// When the kernel refuses a registration.
    pub fn go(
        &mut self,
        ctx: &Context,
        place: Place,
        pool: &Pool,
        board: &Arc<Scoreboard>,
        reader: &Reader,
        process: Process,
    ) -> io::Result<()> {
        let pid = process.pid();
        self.watch(ctx, place, process)?;
        if let Some(pipes) = self.pipes.take() {
            let decorate = pool.decorate_workers_output;
            let speaker = self.speaker(pool, pid, board);
            self.output = Some(Output::start(pipes, reader, &ctx.log, speaker, decorate));
        }
        let memory_max = pool.worker_memory_max;
        match ctx
            .cgroup
            .as_ref()
            .map(|groups| groups.place_worker(self.id.0, pid, memory_max))
        {
            // Once it has ended its number may be a stranger's, who was put there in its stead: then nobody there is ours to kill.
            Some(Ok(leaf)) => {
                self.leaf = Some(leaf).filter(|_| self.process.as_ref().is_some_and(|it| !it.has_ended()))
            }
            Some(Err(error)) => ctx
                .log
                .pool(&pool.name)
                .warning(format_args!("child {pid} has no control group of its own: {error}")),
            None => {}
        }
        self.tell(&ToWorker::Go, &[]);
        Ok(())
    }

    fn speaker<'a>(&self, pool: &'a Pool, pid: i32, board: &Arc<Scoreboard>) -> Speaker<'a> {
        let slot = Some((board.clone(), self.slot));
        Speaker {
            pool: &pool.name,
            pid,
            slot,
        }
    }

    /// Its pid, once it has one.
    pub fn pid(&self) -> Option<i32> {
        self.process.as_ref().map(|process| process.pid())
    }

    /// Whether it is a spare that can take a place.
    pub fn is_spare(&self) -> bool {
        self.held && self.asked.is_none() && self.ended.is_none()
    }

    /// Sends it a message. One that does not read will not hold up the master; what it is to know stands in the
    /// scoreboard too, or is asked for again.
    pub fn tell(&self, message: &ToWorker, fds: &[OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let _ = self.link.get_ref().send(message, &fds, false);
    }

    /// Answers [`FromWorker::Status`].
    pub fn tell_status(&self, snapshot: Snapshot) {
        send_status(self.link.get_ref(), snapshot);
    }

    /// Sends it a signal. SIGKILL is for all that it has started, too, where they can be told from others.
    pub fn signal(&self, signal: Signal) {
        if signal == Signal::SIGKILL
            && let Some(leaf) = &self.leaf
        {
            leaf.kill();
        }
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// Kills it, and what its scripts have started and left in its process group.
    pub fn kill(&self) {
        let Some(process) = &self.process else { return };
        let leader = rustix::process::Pid::from_raw(process.pid()).filter(|_| !process.has_ended());
        if let Some(leader) = leader
            && rustix::process::getpgid(Some(leader)) == Ok(leader)
        {
            // Not ended and not waited for: the number is its own.
            let _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
        }
        process.signal(Signal::SIGKILL);
    }

    /// What it prints.
    pub fn output(&self) -> Option<&Output> {
        self.output.as_ref()
    }

    /// It has ended; connections that it handed over may still be on their way, and must not be lost.
    pub fn linger(self) {
        watch::linger(self.watches);
    }
}

fn send_status(link: &Channel<ToWorker, FromWorker>, snapshot: Snapshot) {
    let message = ToWorker::Status(Box::new(snapshot));
    if let Err(ChannelError::System(Errno::EMSGSIZE)) = link.send(&message, &[], false)
        // One that only asks would else have as many of them made as messages find room.
        && sys::unread(link).is_ok_and(|unread| unread <= MOST_UNREAD)
        && let Ok(bytes) = control::to_bytes(&message)
        && let Ok(memory) = control::sealed(&bytes)
    {
        let _ = link.send(&ToWorker::LongStatus, &[memory.as_fd()], false);
    }
}

/// Fields of an entry about a worker's request.
pub fn fields_of<'a>(pool: &'a str, pid: i32, request: &'a TextView) -> Fields<'a> {
    Fields {
        pool: Some(pool),
        worker: Some(pid),
        script: Some(&request.script),
        uri: Some(&request.uri),
        query: Some(&request.query),
        request_id: Some(&request.id),
        ..Fields::default()
    }
}

/// `with code 0`, `on signal 9 (SIGKILL)`.
pub fn describe(exit: Option<Exit>) -> String {
    match exit {
        Some(Exit::Code(code)) => format!("with code {code}"),
        Some(Exit::Signal { signal, core }) => {
            let name = Signal::try_from(signal).map_or_else(|_| format!("SIG{signal}"), |signal| signal.to_string());
            format!(
                "on signal {signal} ({name}{})",
                if core { " - core dumped" } else { "" }
            )
        }
        None => "for a reason that nobody could tell".to_owned(),
    }
}

/// `script '/x.php' (request: "GET /x.php?a=b")`, as php-fpm writes it; what a client or a hostile worker put there cannot
/// forge a line.
pub fn describe_request(view: &SlotView) -> String {
    let text = view.text.clone().unwrap_or_default();
    let clean = |text: &str| -> String {
        text.bytes()
            .map(|byte| {
                if (b' '..=b'~').contains(&byte) {
                    byte as char
                } else {
                    '.'
                }
            })
            .collect()
    };
    let (question, query) = if text.query.is_empty() {
        ("", String::new())
    } else {
        ("?", clean(&text.query))
    };
    let (script, method, uri) = (clean(&text.script), clean(&text.method), clean(&text.uri));
    format!("script '{script}' (request: \"{method} {uri}{question}{query}\")")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Pm;

    #[test]
    fn a_worker_that_reads_no_status_is_sent_few() {
        let snapshot = Snapshot {
            pool: "x".repeat(control::MAX_MESSAGE),
            pm: Pm::Static,
            start_time: 0,
            start_since: 0,
            accepted: 0,
            listen_queue: 0,
            max_listen_queue: 0,
            listen_queue_len: 0,
            idle: 0,
            active: 0,
            max_active: 0,
            max_children_reached: 0,
            slow_requests: 0,
            memory_peak: None,
            processes: Vec::new(),
        };
        let (ours, theirs) = control::pair::<ToWorker, FromWorker>(BUFFER).unwrap();
        let received = || std::iter::from_fn(|| theirs.receive(false).ok()).count();
        for _ in 0..2 {
            (0..1000).for_each(|_| send_status(&ours, snapshot.clone()));
            let received = received();
            assert!((1..100).contains(&received), "{received}");
        }
    }
}
