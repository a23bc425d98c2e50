//! Commands that ask a running master by its control socket: reload, status, workers, ping.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::api::{self, Answer, ApiError, Client, PoolStatus, Question, socket_of};
use crate::scoreboard::Stage;

/// A master that does not answer by then hangs.
const PATIENCE: Duration = Duration::from_secs(10);

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

impl Whom {
    pub(super) fn socket(&self) -> PathBuf {
        match (&self.control, &self.pool) {
            (Some(path), _) => path.clone(),
            (None, pool) => socket_of(pool.as_deref().unwrap_or_default()),
        }
    }
}

pub(super) fn ask(path: &Path, question: &Question, limit: Option<Duration>) -> Result<Answer, ApiError> {
    Client::connect(path)?.ask(question, limit)
}

fn said(error: &ApiError) -> i32 {
    eprintln!("php-pool: {error}");
    1
}

/// Reads the configuration again and waits until the new workers serve.
pub fn reload(whom: &Whom, force: bool) -> i32 {
    match api::reload(&whom.socket(), force, None) {
        Ok(()) => 0,
        Err(ApiError::Refused(reason)) => {
            eprintln!("php-pool: the reload failed; the pool serves on as it was");
            eprintln!("{reason}");
            1
        }
        Err(error) => said(&error),
    }
}

/// Whether the master answers.
pub fn ping(whom: &Whom) -> i32 {
    match ask(&whom.socket(), &Question::Ping, Some(PATIENCE)) {
        Ok(_) => {
            println!("pong");
            0
        }
        Err(error) => said(&error),
    }
}

fn statuses(whom: &Whom) -> Result<Vec<PoolStatus>, ApiError> {
    match ask(&whom.socket(), &Question::Status, Some(PATIENCE))? {
        Answer::Status { pools } => Ok(pools),
        other => Err(ApiError::Refused(format!("an unexpected answer: {other:?}"))),
    }
}

/// A pool in a few lines, or all that is known of it as JSON.
pub fn status(whom: &Whom, json: bool) -> i32 {
    let pools = match statuses(whom) {
        Ok(pools) => pools,
        Err(error) => return said(&error),
    };
    if json {
        println!(
            "{}",
            serde_json::to_string_pretty(&pools).expect("a status is plain data")
        );
        return 0;
    }
    for PoolStatus {
        state,
        generation,
        failure,
        snapshot,
        ..
    } in pools
    {
        println!("pool:                 {}", snapshot.pool);
        println!("state:                {}, generation {generation}", state.name());
        if let Some(failure) = failure {
            println!("last failure:         {failure}");
        }
        println!("accepted connections: {}", snapshot.accepted);
        println!(
            "listen queue:         {} now, {} at most, limit {}",
            snapshot.listen_queue, snapshot.max_listen_queue, snapshot.listen_queue_len
        );
        println!(
            "workers:              {} idle, {} active, {} active at most; max_children reached {} times",
            snapshot.idle, snapshot.active, snapshot.max_active, snapshot.max_children_reached
        );
        println!("slow requests:        {}", snapshot.slow_requests);
    }
    0
}

/// A line for each worker.
pub fn workers(whom: &Whom) -> i32 {
    let pools = match statuses(whom) {
        Ok(pools) => pools,
        Err(error) => return said(&error),
    };
    println!(
        "{:>8} {:<8} {:>8} {:>12}  REQUEST",
        "PID", "STATE", "REQUESTS", "MILLISECONDS"
    );
    for worker in pools.iter().flat_map(|pool| &pool.snapshot.processes) {
        let state = match worker.stage {
            Stage::None | Stage::Held => "starting",
            Stage::Idle => "idle",
            _ => "active",
        };
        // What a client has sent must not reach the terminal as it is.
        let request: String = format!("{} {}", worker.method, worker.uri).escape_default().collect();
        let milliseconds = worker.request_duration as f64 / 1000.0;
        println!(
            "{:>8} {state:<8} {:>8} {milliseconds:>12.1}  {request}",
            worker.pid, worker.requests
        );
    }
    0
}
