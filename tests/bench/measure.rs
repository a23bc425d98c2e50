//! Runs one row: every contender, round by round.

use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::Outcome;
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

/// The contenders of a row: started, each on its core, and warm.
pub struct LineUp {
    pub contenders: Vec<Contender>,
    /// The core that all of them have; None: every core.
    pub core: Option<usize>,
    everywhere: CpuSet,
    _root: TempDir,
}

impl LineUp {
    /// Starts those that are `wanted`, and gives this process the client's core.
    pub fn start(row: &Row, wanted: impl Fn(Who) -> bool, seconds: f64) -> Outcome<Self> {
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
        for who in contenders::of(row).into_iter().filter(|who| wanted(*who)) {
            contenders.push(Contender::start(who, row, &ground)?);
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
        Ok(Self {
            contenders,
            core,
            everywhere,
            _root: root,
        })
    }
}

impl Drop for LineUp {
    fn drop(&mut self) {
        let _ = sched_setaffinity(Pid::from_raw(0), &self.everywhere);
    }
}

/// Measures a row; `only` leaves the rivals and the floors out.
pub fn run(row: &Row, rounds: usize, seconds: f64, only: bool) -> Outcome<Vec<Measured>> {
    let wanted = |who| !only || matches!(who, Who::PhpFpm | Who::PhpPool);
    let mut line_up = LineUp::start(row, wanted, seconds)?;
    let mut results: Vec<Vec<Round>> = vec![Vec::new(); line_up.contenders.len()];
    for round in 0..rounds {
        // Whoever came first comes last the next time.
        let mut order: Vec<usize> = (0..results.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let contender = &line_up.contenders[index];
            results[index].push(contender.round(row, Duration::from_secs_f64(seconds), line_up.core)?);
        }
    }
    let mut all = Vec::new();
    for (contender, rounds) in line_up.contenders.drain(..).zip(results) {
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
