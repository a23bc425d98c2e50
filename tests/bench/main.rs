//! `./dev bench`: php-pool and php-fpm on the same work, side by side in one run, with php-cgi, uwsgi and mod_php beside them
//! and the floors below.
//!
//! All have the same php.ini, extensions, number of workers, kind of socket and scripts, and run at the same time; the
//! rounds alternate between them, so that whatever else the machine does hits all. What counts is the ratio.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod support;

mod contenders;
mod echo;
mod figures;
mod load;
mod measure;
mod quick;
mod renewal;
mod report;
mod rows;
mod scripts;
mod shares;
mod store;
mod syscalls;
mod trace;
mod wrk;

use std::error::Error;

use clap::Parser;

use store::Entry;

/// Of whatever can go wrong in a measurement.
type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Parser)]
#[command(
    name = "./dev bench",
    about = "Measures php-pool, php-fpm and others side by side.",
    after_help = "Every result is kept until it is measured again, so that a run may be made in parts. `./dev bench report` \
                  prints the tables of what was measured, `./dev bench publish` puts them into README.md and docs/."
)]
struct Arguments {
    /// `syscalls`, `trace`, `figures`, `reload`, a group of rows (`hello`) or the beginning of a row's name; everything if there is
    /// none. `shares` before rows: where the time of their requests goes, by perf. Or `report` or `publish`.
    what: Vec<String>,
    /// Rounds for each server.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of a round in seconds; wrk takes whole ones.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// php-pool and php-fpm alone, without the rivals and the floors; nothing is kept.
    #[arg(long)]
    pair: bool,
    /// Guards against regression: fails when a ratio is below what was recorded, with a margin for noise.
    #[arg(long)]
    quick: bool,
    /// Names the rows and measures nothing.
    #[arg(long)]
    list: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    /// Serves as the transport's floor, there.
    #[arg(long, hide = true)]
    echo: Option<String>,
    #[arg(long, hide = true, default_value_t = 0)]
    take: usize,
    #[arg(long, hide = true, default_value_t = 0)]
    give: usize,
    #[arg(long, hide = true, default_value_t = 1)]
    threads: usize,
}

fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    if let Some(place) = &arguments.echo {
        return Ok(echo::serve(place, arguments.take, arguments.give, arguments.threads)?);
    }
    match arguments.what.first().map(String::as_str) {
        Some("report") => {
            println!("{}", report::markdown()?);
            return Ok(());
        }
        Some("publish") => return report::publish(),
        _ => {}
    }
    if arguments.list {
        println!("syscalls\ntrace\nfigures\nreload");
        for row in rows::ROWS {
            println!("{}", row.name);
        }
        return Ok(());
    }
    if arguments.quick {
        return quick::run();
    }
    let shares = arguments.what.first().is_some_and(|what| what == "shares");
    let what = &arguments.what[usize::from(shares)..];
    let wanted = |name: &str| what.is_empty() || what.iter().any(|what| name.starts_with(what));
    let rows: Vec<_> = rows::ROWS.iter().filter(|row| wanted(row.name)).collect();
    if rows.is_empty() && !["syscalls", "trace", "figures", "reload"].into_iter().any(wanted) {
        return Err(format!(
            "there is no row that begins with {}; --list names them",
            what.join(" or ")
        )
        .into());
    }
    if shares {
        return shares::run(&rows, arguments.seconds);
    }
    if wanted("syscalls") {
        syscalls::run()?;
    }
    if wanted("trace") {
        trace::run(arguments.rounds, arguments.seconds)?;
    }
    if wanted("figures") {
        figures::run()?;
    }
    if wanted("reload") {
        renewal::run()?;
    }
    for row in rows {
        let load = store::load();
        let entry = Entry::new(
            row.name,
            load,
            measure::run(row, arguments.rounds, arguments.seconds, arguments.pair)?,
        );
        report::print(&entry);
        if !arguments.pair {
            store::save(&entry)?;
        }
    }
    Ok(())
}
