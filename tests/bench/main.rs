//! `./dev bench`: php-pool and php-fpm on the same work, side by side in one run.
//!
//! Both have the same php.ini, extensions, number of workers, kind of socket and scripts, and run at the same time; the
//! rounds alternate between them, so that whatever else the machine does hits both. What counts is the ratio.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each tier uses its part")]
mod support;

mod load;
mod measure;
mod report;
mod rows;
mod scripts;
mod syscalls;
mod trace;

use std::error::Error;

use clap::Parser;

#[derive(Parser)]
#[command(name = "./dev bench", about = "Measures php-pool and php-fpm side by side.")]
struct Arguments {
    /// `syscalls`, `trace`, a group of rows (`hello`) or the beginning of a row's name; everything if there is none.
    what: Vec<String>,
    /// Rounds for each server.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Length of a round in seconds.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Names the rows and measures nothing.
    #[arg(long)]
    list: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    if arguments.list {
        println!("syscalls\ntrace");
        for row in rows::ROWS {
            println!("{}", row.name);
        }
        return Ok(());
    }
    let wanted = |name: &str| arguments.what.is_empty() || arguments.what.iter().any(|what| name.starts_with(what));
    let rows: Vec<_> = rows::ROWS.iter().filter(|row| wanted(row.name)).collect();
    if rows.is_empty() && !wanted("syscalls") && !wanted("trace") {
        return Err(format!(
            "there is no row that begins with {}; --list names them",
            arguments.what.join(" or ")
        )
        .into());
    }
    report::machine();
    if wanted("syscalls") {
        syscalls::run()?;
    }
    if wanted("trace") {
        trace::run(arguments.rounds, arguments.seconds)?;
    }
    if !rows.is_empty() {
        report::head();
        for row in rows {
            report::row(row, &measure::run(row, arguments.rounds, arguments.seconds)?);
        }
        report::foot();
    }
    Ok(())
}
