//! `php-pool migrate`: a php-fpm configuration becomes pool files of ours, one for each pool.
//!
//! Lines are taken over as they stand, comments with them; what must be different under systemd is changed where it stands,
//! with the old line in a comment. What cannot be done for the administrator (the web server's side, above all) is said.
//! Nothing is written without `--write`, and nothing that is there is overwritten.

#![forbid(unsafe_code)]

mod plan;

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use thiserror::Error;

pub use plan::{Plan, PoolPlan, plan};

use crate::cli::harmless;
use crate::config::{self, LoadOptions};
use crate::generator;

/// The configuration cannot be read.
const EX_CONFIG: i32 = 78;
/// The files cannot be written.
const EX_CANTCREAT: i32 = 73;

/// What the command takes.
#[derive(Args, Debug)]
pub struct Options {
    /// php-fpm's folder (with php-fpm.conf in it), or its file; without it the newest of /etc/php/*/fpm
    source: Option<PathBuf>,
    /// The folder for the pool files
    #[arg(long, value_name = "DIR", default_value = generator::POOL_DIR)]
    to: PathBuf,
    /// Keep the addresses of unix sockets, so that the web server's configuration stays as it is; php-fpm must then be
    /// stopped before the pools are started
    #[arg(long)]
    keep_sockets: bool,
    /// Write the files; without it all is only said
    #[arg(long)]
    write: bool,
}

/// Why there are no pool files.
#[derive(Debug, Error)]
pub enum MigrateError {
    /// Nothing to migrate.
    #[error("no php-fpm.conf in /etc/php/*/fpm; name the folder")]
    NoSource,
    /// What php-fpm would say, too.
    #[error("{0}")]
    Configuration(#[from] config::Errors),
    /// More than a section in its line.
    #[error("{file}:{line}: write [{section}] on a line of its own")]
    Crowded {
        /// The file.
        file: PathBuf,
        /// The line.
        line: u32,
        /// The section.
        section: String,
    },
    /// Not one.
    #[error("{0} has no pool")]
    NoPool(PathBuf),
    /// They are there.
    #[error("{} there already, and nothing was written: move away what is in the way, or name another folder with --to", is(.0))]
    Exists(Vec<PathBuf>),
    /// Disk full, permissions.
    #[error("{path} cannot be written, and nothing was left: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

fn is(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    format!("{} {}", paths.join(", "), if paths.len() == 1 { "is" } else { "are" })
}

/// Runs the command. The exit status is 1 when a pool will not start as it is.
pub fn main(options: &Options) -> i32 {
    match run(options) {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) => {
            eprintln!("{}", harmless(&error.to_string()));
            match error {
                MigrateError::Exists(_) | MigrateError::Write { .. } => EX_CANTCREAT,
                _ => EX_CONFIG,
            }
        }
    }
}

fn run(options: &Options) -> Result<bool, MigrateError> {
    let source = source(options.source.as_deref())?;
    let load = LoadOptions::new(&source);
    let mut plan = plan(&load, &options.to, options.keep_sockets)?;
    let whole = check(&mut plan, &load).map_err(|source| MigrateError::Write {
        path: std::env::temp_dir(),
        source,
    })?;
    if options.write {
        write(&plan)?;
    }
    // Whoever reads us may have seen enough.
    let _ = io::stdout().write_all(harmless(&plan.report(options.write)).as_bytes());
    Ok(whole)
}

/// The file that is meant.
fn source(named: Option<&Path>) -> Result<PathBuf, MigrateError> {
    match named {
        Some(path) if path.is_dir() => Ok(path.join("php-fpm.conf")),
        Some(path) => Ok(path.to_owned()),
        None => newest().ok_or(MigrateError::NoSource),
    }
}

fn newest() -> Option<PathBuf> {
    let found = glob::glob("/etc/php/*/fpm/php-fpm.conf").expect("a pattern").flatten();
    let version = |path: &PathBuf| -> Option<Vec<u32>> {
        let version = path.parent()?.parent()?.file_name()?.to_str()?;
        version.split('.').map(|number| number.parse().ok()).collect()
    };
    found.max_by_key(version)
}

/// Reads the new files as the generator and the master will; what they say is to be done. False: a pool will not start.
fn check(plan: &mut Plan, load: &LoadOptions) -> io::Result<bool> {
    // Under its own name, as that is checked too, and in a folder that nobody else can enter.
    let staging = nix::unistd::mkdtemp(&std::env::temp_dir().join("php-pool-migrate-XXXXXX"))?;
    let mut check = || -> io::Result<bool> {
        let mut whole = plan.refused.is_empty();
        for pool in &plan.pools {
            let path = staging.join(pool.path.file_name().expect("a pool's file has a name"));
            fs::write(&path, &pool.text)?;
            let options = LoadOptions {
                path: path.clone(),
                test: true,
                ..load.clone()
            };
            let problem = generator::check(&path).and_then(|()| match config::load(&options) {
                Ok(_) => Ok(()),
                Err(errors) => Err(errors.to_string()),
            });
            if let Err(problem) = problem {
                let (here, there) = (path.display().to_string(), pool.path.display().to_string());
                plan.to_do.push(problem.replace(&here, &there));
                whole = false;
            }
        }
        Ok(whole)
    };
    let whole = check();
    let _ = fs::remove_dir_all(staging);
    whole
}

/// Writes all files or none.
fn write(plan: &Plan) -> Result<(), MigrateError> {
    let there = |pool: &&PoolPlan| fs::symlink_metadata(&pool.path).is_ok();
    let there: Vec<PathBuf> = plan.pools.iter().filter(there).map(|pool| pool.path.clone()).collect();
    if !there.is_empty() {
        return Err(MigrateError::Exists(there));
    }
    let mut written: Vec<&Path> = Vec::new();
    for pool in &plan.pools {
        let result = write_new(pool);
        // One that somebody else has made meanwhile is not ours to remove.
        if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::AlreadyExists) {
            written.push(&pool.path);
        }
        if let Err(source) = result {
            for path in written {
                let _ = fs::remove_file(path);
            }
            let path = pool.path.clone();
            return Err(MigrateError::Write { path, source });
        }
    }
    Ok(())
}

/// A file that only its reader's own users could see stays so: passwords stand in pool files.
fn write_new(pool: &PoolPlan) -> io::Result<()> {
    let mode = fs::metadata(&pool.source)?.permissions().mode() & 0o666;
    let mut file = fs::OpenOptions::new();
    let mut file = file.write(true).create_new(true).mode(mode & 0o600).open(&pool.path)?;
    file.write_all(&pool.text)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}
