//! Writes the manual pages and the shells' completions into a folder: `cargo run --example manual -- DIR`.
//!
//! They come from the command line's own definition and from the table of directives.

use std::fs;
use std::path::{Path, PathBuf};

use clap_complete::{Shell, generate_to};
use clap_mangen::Man;

fn main() -> std::io::Result<()> {
    let dir = PathBuf::from(std::env::args_os().nth(1).expect("name the folder to write to"));
    fs::create_dir_all(&dir)?;
    // Of `help` and its own `help` there is no page.
    let mut command = php_pool::cli::command().disable_help_subcommand(true);
    command.build();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, "php-pool", &dir)?;
    }
    write_page(&dir, "php-pool", command.clone())?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        write_page(&dir, &format!("php-pool-{}", sub.get_name()), sub.clone())?;
    }
    fs::write(dir.join("php-pool.conf.5"), php_pool::config::manual::man_page())
}

fn write_page(dir: &Path, name: &str, command: clap::Command) -> std::io::Result<()> {
    let mut page = Vec::new();
    // clap keeps a name for ever, and this program ends soon.
    let command = command.name(&*name.to_owned().leak());
    Man::new(command).section("8").manual("php-pool").render(&mut page)?;
    fs::write(dir.join(format!("{name}.8")), page)
}
