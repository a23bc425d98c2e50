//! The systemd generator: pool files become sockets, services and slices.
//!
//! `/etc/php-pool/pool.d/*.conf` is the one source of truth; a file `www.conf` with the section `[www]` is the pool `www`.
//! systemd calls the generator at boot, before anything is mounted or resolvable, and at `daemon-reload`; so it reads
//! the few directives about the socket and the unit, looks at no user, host, folder or variable, and always succeeds: a
//! file that it cannot use becomes a service that fails with the reason. What else is wrong with a file is said by the
//! pool's own start.

#![forbid(unsafe_code)]

pub mod unit;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use unit::UnitError;

use crate::config::{self, Listen, LoadOptions, Pm, Pool, address};

/// Where the pools are.
pub const POOL_DIR: &str = "/etc/php-pool/pool.d";

/// Where systemd has what the generator made.
pub const GENERATED: &str = "/run/systemd/generator";

/// Where the package has its units.
const UNIT_DIR: &str = "/lib/systemd/system";

/// All pools: at boot they start with it.
const TARGET: &str = "php-pool.target";

/// The names of our drop-ins; an administrator's may come before or after.
const DROP_IN: &str = "50-pool.conf";

/// What a pool file asks systemd for.
#[derive(Debug)]
struct Sketch {
    pool: Pool,
    listen: Listen,
    status: Option<(Listen, String)>,
}

/// Runs as systemd calls it: the arguments are three folders, of which the first takes units of normal priority.
/// The exit status is always 0, for a generator that fails would only add noise to a boot.
pub fn main(arguments: &[String]) -> i32 {
    if let Some(target) = arguments.first() {
        generate(Path::new(POOL_DIR), Path::new(target));
    }
    0
}

/// Writes the units of every pool file in `pools` under `target`.
pub fn generate(pools: &Path, target: &Path) {
    for (file, sketch) in sketches(pools) {
        // There is nobody to tell: what could not be written is missing from `systemctl list-units`.
        let _ = write_units(&file, &sketch, target);
    }
}

/// What the pool files of a folder ask for, or why they cannot be used. Of two that want one socket the older file has it: whoever
/// copies a pool, and forgets this line, takes it from nobody. (systemd would let the second unit take the first one's.)
fn sketches(pools: &Path) -> Vec<(PathBuf, Result<Sketch, String>)> {
    let mut files = pool_files(pools);
    files.sort_by_key(|file| fs::metadata(file).and_then(|meta| meta.modified()).ok());
    let mut taken: HashMap<Listen, PathBuf> = HashMap::new();
    let with_sketch = |file: PathBuf| {
        let sketch = sketch(&file).and_then(|sketch| {
            let status = sketch.status.iter().map(|(address, _)| ("pm.status_listen", address));
            let wanted = std::iter::once(("listen", &sketch.listen)).chain(status);
            let wanted: Vec<_> = wanted.map(|(key, address)| (key, address::held(address))).collect();
            for (directive, address) in &wanted {
                if let Some(other) = taken.get(address) {
                    return Err(format!(
                        "{}: {directive}: unable to set listen address as it's already used in another pool '{}' ({}, the older file)",
                        file.display(),
                        other.file_stem().unwrap_or_default().display(),
                        other.display()
                    ));
                }
            }
            taken.extend(wanted.into_iter().map(|(_, address)| (address, file.clone())));
            Ok(sketch)
        });
        (file, sketch)
    };
    files.into_iter().map(with_sketch).collect()
}

/// The pool files of a folder, in order; none where it cannot be read.
pub fn pool_files(pools: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(pools).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| is_pool_file(path))
        .collect();
    files.sort();
    files
}

/// `*.conf`, but not an editor's or a package manager's left-overs.
fn is_pool_file(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|extension| extension == "conf") && !path.is_dir()
}

fn write_units(file: &Path, sketch: &Result<Sketch, String>, target: &Path) -> io::Result<()> {
    let Ok(Sketch { pool, listen, status }) = sketch else {
        // Where a name is allowed its unit is called by it, else by its escaped form.
        let stem = file.file_stem().unwrap_or_default();
        let name = stem.to_str().filter(|name| unit::check_name(name).is_ok());
        let name = name.map_or_else(|| unit::escape(stem.as_encoded_bytes()), str::to_owned);
        let service = format!("php-pool@{name}.service");
        drop_in(target, &service, &unit::broken(file))?;
        return want(target, &service, "php-pool@.service");
    };
    let name = &pool.name;
    let (socket, service) = (format!("php-pool@{name}.socket"), format!("php-pool@{name}.service"));
    let text = unit::socket(pool, file, "listen", listen, &pool.listen).map_err(io::Error::other)?;
    drop_in(target, &socket, &text)?;
    want(target, &socket, "php-pool@.socket")?;
    if let Some((address, text)) = status {
        let socket = format!("php-pool-status@{name}.socket");
        let text = unit::socket(pool, file, "pm.status_listen", address, text).map_err(io::Error::other)?;
        drop_in(target, &socket, &text)?;
        want(target, &socket, "php-pool-status@.socket")?;
    }
    drop_in(target, &service, &unit::service(pool, file, status.is_some()))?;
    // An ondemand pool sleeps until its first request.
    if pool.pm != Pm::Ondemand {
        want(target, &service, "php-pool@.service")?;
    }
    Ok(())
}

/// Whether no socket could be made of a pool file, so that its service fails. `units` is where the generator wrote when
/// systemd last asked it.
pub fn is_broken(file: &Path, units: &Path) -> bool {
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    let drop_in = units.join(format!("php-pool@{name}.service.d")).join(DROP_IN);
    fs::read_to_string(drop_in).is_ok_and(|text| text == unit::broken(file))
}

/// Checks what the generator asks of a pool file, for `php-pool check`: its name and its socket, which must be no other file's in its
/// folder.
///
/// # Errors
/// Full sentences, each with the file's name and line where it has one.
pub fn check(file: &Path) -> Result<(), String> {
    sketch(file)?;
    let mut all = sketches(file.parent().unwrap_or(file)).into_iter();
    let own = all.find(|(other, _)| other == file);
    own.map_or(Ok(()), |(_, sketch)| sketch.map(|_| ()))
}

/// What systemd needs to know of a pool file.
fn sketch(file: &Path) -> Result<Sketch, String> {
    let place = |error: UnitError| format!("{}: {error}", file.display());
    let stem = file.file_stem().unwrap_or_default();
    let name = stem
        .to_str()
        .ok_or_else(|| place(UnitError::Name(stem.to_string_lossy().into_owned())))?;
    unit::check_name(name).map_err(place)?;
    let options = LoadOptions {
        env: HashMap::new(),
        ini: HashMap::new(),
        ..LoadOptions::new(file)
    };
    let (mut pools, errors) = config::read(&options);
    // A mistake that is not about the socket is the service's to report: it must not take the socket, and the clients that
    // wait in it, away.
    let about_socket = |name: &str| name.starts_with("listen") || name == "pm.status_listen";
    let known = pools
        .iter()
        .any(|pool| pool.written.iter().any(|entry| entry.key == "listen"));
    if let Some(error) = errors
        .iter()
        .find(|error| !known || error.directive.as_deref().is_some_and(about_socket))
    {
        return Err(error.to_string());
    }
    if let Some(line) = fs::read_to_string(file)
        .unwrap_or_default()
        .lines()
        .find(|line| is_variable(line))
    {
        return Err(place(UnitError::Variable(line.trim().to_owned())));
    }
    match pools.iter().find(|pool| pool.name != name) {
        Some(other) => {
            return Err(place(UnitError::Section {
                found: other.name.clone(),
                wanted: name.to_owned(),
            }));
        }
        None if pools.is_empty() => return Err(place(UnitError::NoPool(name.to_owned()))),
        None => {}
    }
    let mut pool = pools.swap_remove(0);
    let base = pool.prefix.clone().unwrap_or_else(|| options.php_prefix.clone());
    let written = |key: &str| {
        pool.written
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| entry.value.clone())
    };
    let parse = |directive: &'static str, text: &str| {
        let address =
            address::parse(text, &base).map_err(|error| format!("{}: {directive}: {error}", file.display()))?;
        unit::socket(&pool, file, directive, &address, text).map_err(place)?;
        Ok::<_, String>(address)
    };
    let text = written("listen").ok_or_else(|| format!("{}: no listen address has been defined", file.display()))?;
    let listen = parse("listen", &text)?;
    let status = match written("pm.status_listen") {
        Some(text) => Some((parse("pm.status_listen", &text)?, text)),
        None => None,
    };
    pool.listen = text;
    Ok(Sketch { pool, listen, status })
}

/// A line about the socket that needs the environment.
fn is_variable(line: &str) -> bool {
    let line = line.trim_start();
    (line.starts_with("listen") || line.starts_with("pm.status_listen"))
        && line.split(';').next().is_some_and(|line| line.contains("${"))
}

fn drop_in(target: &Path, unit: &str, text: &str) -> io::Result<()> {
    let folder = target.join(format!("{unit}.d"));
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(DROP_IN), text)
}

/// Makes an instance of a template start with the rest of the pools.
fn want(target: &Path, unit: &str, template: &str) -> io::Result<()> {
    let folder = target.join(format!("{TARGET}.wants"));
    fs::create_dir_all(&folder)?;
    symlink(Path::new(UNIT_DIR).join(template), folder.join(unit))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
