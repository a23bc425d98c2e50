//! Commands that ask running masters by their control sockets: reload, status, health, workers, ping.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use clap::Args;

use crate::api::{self, Answer, ApiError, Client, PoolStatus, Question, pools_of, socket_of, sockets};
use crate::config::Pm;
use crate::scoreboard::Stage;
use crate::status::ProcessStatus;

/// A master that does not answer by then hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks of `--watch`.
const EVERY: Duration = Duration::from_secs(1);

/// Exit statuses of what looks at pools, those of monitoring plugins (Nagios, Icinga); of several pools the worst.
mod exit {
    /// All is well.
    pub const FINE: i32 = 0;
    /// Requests wait for the end of others.
    pub const SATURATED: i32 = 1;
    /// A request that comes now is not served, or nobody answers who should.
    pub const NOT_READY: i32 = 2;
    /// That cannot be known: not for this user, or not understood.
    pub const UNKNOWN: i32 = 3;
    /// Nothing runs: the pool is stopped, or asleep until its next request.
    pub const ASLEEP: i32 = 4;
}

/// Whom to ask.
#[derive(Args, Clone, Debug)]
pub struct Whom {
    /// The pool
    #[arg(required_unless_present = "control")]
    pub pool: Option<String>,
    /// The control socket of a master that systemd has not started
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
}

/// The same, or everybody.
#[derive(Args, Clone, Debug)]
pub struct Anybody {
    /// The pool; without it, all that run or should
    pub pool: Option<String>,
    /// The control socket of a master that systemd has not started; may be given again
    #[arg(long, value_name = "SOCKET")]
    pub control: Vec<PathBuf>,
}

impl Whom {
    pub(super) fn socket(&self) -> PathBuf {
        match (&self.control, &self.pool) {
            (Some(path), _) => path.clone(),
            (None, pool) => socket_of(pool.as_deref().unwrap_or_default()),
        }
    }
}

/// What a master said of its pools, or why it said nothing, with its control socket.
pub(super) type Said = (PathBuf, Result<Vec<PoolStatus>, ApiError>);

impl Anybody {
    fn sockets(&self) -> Vec<PathBuf> {
        match &self.pool {
            _ if !self.control.is_empty() => self.control.clone(),
            Some(pool) => vec![socket_of(pool)],
            None => sockets().into_iter().map(|(_, path)| path).collect(),
        }
    }

    /// Of a master with several pools, those that are meant.
    fn means(&self, pool: &str) -> bool {
        self.pool.as_ref().is_none_or(|wanted| wanted == pool)
    }

    /// Asks all masters at once, so that several that hang cost no more than one.
    pub(super) fn ask_all(&self, patience: Duration) -> Vec<Said> {
        let ask = |socket: &Path| -> Result<Vec<PoolStatus>, ApiError> {
            let mut pools = pools_of(socket, patience)?;
            pools.retain(|pool| self.means(&pool.snapshot.pool));
            Ok(pools)
        };
        thread::scope(|scope| {
            let asked: Vec<_> = self
                .sockets()
                .into_iter()
                .map(|socket| scope.spawn(move || (ask(&socket), socket)))
                .collect();
            let said = asked.into_iter().map(|asked| asked.join().expect("a panic aborts"));
            said.map(|(said, socket)| (socket, said)).collect()
        })
    }
}

pub(super) fn ask(path: &Path, question: &Question, limit: Option<Duration>) -> Result<Answer, ApiError> {
    Client::connect(path)?.ask(question, limit)
}

fn status_of(error: &ApiError) -> i32 {
    match error {
        ApiError::Asleep(_) => exit::ASLEEP,
        ApiError::Down(_) | ApiError::Silent(_) | ApiError::HungUp(_) | ApiError::System { .. } => exit::NOT_READY,
        ApiError::Forbidden(_) | ApiError::Malformed { .. } | ApiError::Refused(_) => exit::UNKNOWN,
    }
}

fn said(error: &ApiError) -> i32 {
    eprintln!("php-pool: {error}");
    status_of(error)
}

fn worse(one: i32, other: i32) -> i32 {
    let rank = |status| {
        [
            exit::FINE,
            exit::SATURATED,
            exit::UNKNOWN,
            exit::ASLEEP,
            exit::NOT_READY,
        ]
        .iter()
        .position(|known| *known == status)
    };
    if rank(one) >= rank(other) { one } else { other }
}

/// Reads the configuration again and waits until the new workers serve.
pub fn reload(whom: &Whom, force: bool) -> i32 {
    match api::reload(&whom.socket(), force, None) {
        Ok(()) => 0,
        Err(ApiError::Refused(reason)) => {
            eprintln!("php-pool: the reload failed; the pool serves on as it was");
            // A zygote, which runs the pool's code, may have given it.
            reason.lines().for_each(|line| eprintln!("{}", plain(line)));
            1
        }
        Err(error) => {
            eprintln!("php-pool: {error}");
            1
        }
    }
}

/// Whether the master answers.
pub fn ping(whom: &Whom) -> i32 {
    match ask(&whom.socket(), &Question::Ping, Some(PATIENCE)) {
        Ok(_) => {
            println!("pong");
            exit::FINE
        }
        Err(error) => said(&error),
    }
}

/// All pools that answered, and the worst that was met on the way to them, which is complained about.
fn statuses(answers: Vec<Said>) -> (Vec<PoolStatus>, i32) {
    let (mut pools, mut worst) = (Vec::new(), exit::FINE);
    if answers.is_empty() {
        eprintln!("php-pool: no pool runs: all are stopped, or asleep until their next request");
        return (pools, exit::ASLEEP);
    }
    for (_, answer) in answers {
        match answer {
            Ok(found) => pools.extend(found),
            Err(error) => worst = worse(worst, said(&error)),
        }
    }
    if pools.is_empty() && worst == exit::FINE {
        eprintln!("php-pool: that master has no such pool");
        worst = exit::UNKNOWN;
    }
    (pools, worst)
}

fn health_of(pool: &PoolStatus) -> i32 {
    match (pool.is_ready(), pool.is_saturated()) {
        (false, _) => exit::NOT_READY,
        (true, true) => exit::SATURATED,
        (true, false) => exit::FINE,
    }
}

fn worst_of(pools: &[PoolStatus], met: i32) -> i32 {
    pools.iter().map(health_of).fold(met, worse)
}

/// A pool in a few lines, or all that is known of it as JSON; with `watch` again every second.
pub fn status(whom: &Anybody, json: bool, watch: bool) -> i32 {
    let mut stdout = std::io::stdout();
    loop {
        let answers = whom.ask_all(PATIENCE);
        // Before complaints, which are to be seen.
        if watch && !json && write!(stdout, "\x1b[H\x1b[2J").and_then(|()| stdout.flush()).is_err() {
            return exit::FINE;
        }
        let (pools, worst) = statuses(answers);
        let text = if json {
            let plain = "a status is plain data";
            // One line a look, for who reads line by line.
            if watch {
                serde_json::to_string(&pools).expect(plain) + "\n"
            } else {
                serde_json::to_string_pretty(&pools).expect(plain) + "\n"
            }
        } else {
            let pools: Vec<String> = pools.iter().map(describe).collect();
            pools.join("\n")
        };
        let gone = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err();
        if !watch || gone {
            return worst_of(&pools, worst);
        }
        std::thread::sleep(EVERY);
    }
}

fn describe(pool: &PoolStatus) -> String {
    let PoolStatus {
        state,
        generation,
        failure,
        snapshot,
        max_children,
        measured,
        ..
    } = pool;
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("{:<22}{value}\n", format!("{name}:")));
    line("pool", plain(&snapshot.pool));
    line("state", format!("{}, generation {generation}", state.name()));
    line("health", health_words(pool));
    if let Some(failure) = failure {
        line("last failure", plain(failure));
    }
    line("accepted connections", snapshot.accepted.to_string());
    line(
        "listen queue",
        format!(
            "{} now, {} at most, limit {}",
            snapshot.listen_queue, snapshot.max_listen_queue, snapshot.listen_queue_len
        ),
    );
    let reached = match snapshot.pm {
        Pm::Static => String::new(), // which has nothing to make when they are all busy, so that it counts nothing
        _ => format!(", reached {} times", snapshot.max_children_reached),
    };
    line(
        "workers",
        format!(
            "{} idle, {} active, {} active at most; limit {max_children}{reached}",
            snapshot.idle, snapshot.active, snapshot.max_active
        ),
    );
    if measured.draining > 0 {
        line(
            "of former generations",
            format!("{} workers, until their requests end", measured.draining),
        );
    }
    line("slow requests", snapshot.slow_requests.to_string());
    let limits = [
        ("requests timed out", measured.timed_out, "request_terminate_timeout"),
        ("requests refused", measured.refused, "queue.max, queue.timeout"),
    ];
    for (name, count, limit) in limits.into_iter().filter(|(_, count, _)| *count > 0) {
        line(name, format!("{count} ({limit})"));
    }
    let ends = [
        (measured.exits.timeout, "of a request that timed out"),
        (measured.exits.oom, "at a memory limit"),
        (measured.exits.signal, "on a signal"),
        (measured.exits.code, "with an exit code"),
    ];
    let ends: Vec<String> = ends
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, how)| format!("{count} {how}"))
        .collect();
    if !ends.is_empty() {
        line("workers that died", ends.join(", "));
    }
    if measured.access_log_lost > 0 {
        line("access log", format!("{} lines lost", measured.access_log_lost));
    }
    text
}

fn health_words(pool: &PoolStatus) -> String {
    let not = |yes| if yes { "" } else { "not " };
    format!(
        "alive, {}ready, {}saturated",
        not(pool.is_ready()),
        not(pool.is_saturated())
    )
}

/// Alive, ready, saturated: three answers for each pool, and the exit status for monitoring.
pub fn health(whom: &Anybody, json: bool) -> i32 {
    let (pools, worst) = statuses(whom.ask_all(PATIENCE));
    for pool in &pools {
        let name = &pool.snapshot.pool;
        if json {
            let answers = serde_json::json!({
                "pool": name, "alive": true, "ready": pool.is_ready(), "saturated": pool.is_saturated(),
            });
            println!("{answers}");
        } else {
            println!("{}: {}", plain(name), health_words(pool));
        }
    }
    worst_of(&pools, worst)
}

/// A line for each worker.
pub fn workers(whom: &Anybody) -> i32 {
    let (pools, worst) = statuses(whom.ask_all(PATIENCE));
    println!(
        "{:>8} {:<16} {:<8} {:>8} {:>12}  REQUEST",
        "PID", "POOL", "STATE", "REQUESTS", "MILLISECONDS"
    );
    for pool in &pools {
        for worker in &pool.snapshot.processes {
            let state = state_of(worker.stage);
            let request = request_of(worker);
            let milliseconds = worker.request_duration as f64 / 1000.0;
            println!(
                "{:>8} {:<16} {state:<8} {:>8} {milliseconds:>12.1}  {request}",
                worker.pid,
                plain(&pool.snapshot.pool),
                worker.requests
            );
        }
    }
    worst
}

/// Method, URI and query, as they may be shown.
pub(super) fn request_of(worker: &ProcessStatus) -> String {
    let mark = if worker.query.is_empty() { "" } else { "?" };
    plain(&format!("{} {}{mark}{}", worker.method, worker.uri, worker.query))
}

pub(super) fn state_of(stage: Stage) -> &'static str {
    match stage {
        Stage::None | Stage::Held | Stage::Left => "starting",
        Stage::Idle => "idle",
        _ => "active",
    }
}

/// What a client has sent must not reach the terminal as it is.
pub(super) fn plain(text: &str) -> String {
    text.chars()
        .flat_map(|c| match c {
            ' '..='~' => vec![c],
            c if c.is_alphanumeric() => vec![c],
            c => c.escape_default().collect(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_a_client_sends_reaches_the_terminal_as_it_is() {
        assert_eq!(
            plain("/a\u{1b}[2J\u{202e}\u{9b}é\n"),
            "/a\\u{1b}[2J\\u{202e}\\u{9b}é\\n"
        );
    }

    #[test]
    fn of_several_statuses_the_worst_counts() {
        assert_eq!(worse(exit::FINE, exit::SATURATED), exit::SATURATED);
        assert_eq!(worse(exit::NOT_READY, exit::UNKNOWN), exit::NOT_READY);
        assert_eq!(worse(exit::UNKNOWN, exit::SATURATED), exit::UNKNOWN);
    }

    #[test]
    fn a_pool_that_should_run_and_does_not_is_worse_than_one_that_sleeps() {
        let down = status_of(&ApiError::Down(socket_of("down")));
        let asleep = status_of(&ApiError::Asleep(socket_of("asleep")));
        assert_eq!((down, asleep), (exit::NOT_READY, exit::ASLEEP));
        assert_eq!(worse(asleep, down), exit::NOT_READY);
    }
}
