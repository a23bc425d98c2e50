//! `./dev bench syscalls`: the system calls of one hello world, for both servers.

use std::collections::BTreeSet;
use std::error::Error;

use crate::support::server::Kind;
use crate::support::strace::{Calls, How, Subject, total};
use crate::support::wiki;

pub fn run() -> Result<(), Box<dyn Error>> {
    let root = wiki::folder();
    let mut columns: Vec<(String, Calls)> = Vec::new();
    for kind in [Kind::PhpFpm, Kind::PhpPool] {
        let subject = Subject::start(kind, root.path())?;
        for (how, label) in [(How::New, "new"), (How::Kept, "kept"), (How::Queued, "new, queued")] {
            columns.push((format!("{} {label}", kind.name()), subject.calls(how)?));
        }
    }
    println!("## System calls of one hello world\n");
    let titles: Vec<&str> = columns.iter().map(|(title, _)| title.as_str()).collect();
    println!("| | {} |\n|---|{}", titles.join(" | "), "---:|".repeat(titles.len()));
    let names: BTreeSet<&String> = columns.iter().flat_map(|(_, calls)| calls.keys()).collect();
    for name in names {
        let counts = columns
            .iter()
            .map(|(_, calls)| calls.get(name).map_or(String::new(), |n| format!("{n:.2}")));
        println!("| {name} | {} |", counts.collect::<Vec<_>>().join(" | "));
    }
    let totals = columns.iter().map(|(_, calls)| format!("**{}**", total(calls)));
    println!("| together | {} |\n", totals.collect::<Vec<_>>().join(" | "));
    println!(
        "queued: the request was waiting when the worker came to it. Counted by strace over runs of 5 and 25 requests.\n"
    );
    Ok(())
}
