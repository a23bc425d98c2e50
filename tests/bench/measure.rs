//! Runs one row: every contender, round by round.

use std::error::Error;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::contenders::{self, Contender, Ground, Who};
use crate::load::Round;
use crate::rows::{Cores, Row};
use crate::scripts;
use crate::support::server::{Setup, www};
use crate::support::wiki;

/// All rounds of one contender.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    pub who: String,
    pub rounds: Vec<Round>,
    /// What a worker holds in memory afterwards: proportional set size in kB, median of the workers.
    pub pss: u64,
}

/// Measures a row; `only` leaves the rivals and the floors out.
pub fn run(row: &Row, rounds: usize, seconds: f64, only: bool) -> Result<Vec<Measured>, Box<dyn Error>> {
    let root = wiki::folder();
    let setup: &'static Setup = Box::leak(Box::new(Setup {
        workers: row.workers,
        listen: row.listen,
        ..*wiki::setup(row.workers)
    }));
    let www = www(root.path(), setup);
    if row.script == "doku.php" {
        wiki::unpack(&www)?;
    }
    scripts::write(&www)?;
    let ground = Ground {
        root: root.path(),
        www: &www,
        setup,
    };
    let mut contenders = Vec::new();
    for who in contenders::of(row) {
        if !only || matches!(who, Who::PhpFpm | Who::PhpPool) {
            contenders.push(Contender::start(who, row, &ground)?);
        }
    }
    let everywhere = sched_getaffinity(Pid::from_raw(0))?;
    let (client, server) = cores(row.cores, &everywhere);
    let core = server.filter(|_| row.cores != Cores::Free);
    if let Some(client) = client {
        sched_setaffinity(Pid::from_raw(0), &only_core(client)?)?;
    }
    for contender in &contenders {
        if let Some(server) = server {
            contender.pin(&only_core(server)?)?;
        }
        contender.round(row, Duration::from_secs_f64(seconds / 4.0), core)?;
    }
    let mut results: Vec<Vec<Round>> = vec![Vec::new(); contenders.len()];
    for round in 0..rounds {
        // Whoever came first comes last the next time.
        let mut order: Vec<usize> = (0..contenders.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            results[index].push(contenders[index].round(row, Duration::from_secs_f64(seconds), core)?);
        }
    }
    sched_setaffinity(Pid::from_raw(0), &everywhere)?;
    let mut all = Vec::new();
    for (contender, rounds) in contenders.into_iter().zip(results) {
        let (who, pss) = (contender.who.name().to_owned(), contender.pss());
        contender.stop()?;
        all.push(Measured { who, rounds, pss });
    }
    Ok(all)
}

/// The core of the client and that of the server: the client takes the first, alone or with the server.
fn cores(cores: Cores, everywhere: &CpuSet) -> (Option<usize>, Option<usize>) {
    let all: Vec<usize> = (0..CpuSet::count())
        .filter(|&n| everywhere.is_set(n).unwrap_or(false))
        .collect();
    match cores {
        Cores::Free => (None, None),
        Cores::Apart => (all.first().copied(), all.last().copied()),
        Cores::Shared => (all.first().copied(), all.first().copied()),
    }
}

fn only_core(number: usize) -> nix::Result<CpuSet> {
    let mut set = CpuSet::new();
    set.set(number)?;
    Ok(set)
}
