//! What becomes of which line.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::MigrateError;
use crate::cli::worker;
use crate::config::ini::Statement;
use crate::config::{LoadOptions, SourceLine, lines};
use crate::generator::unit;

/// Directives of `[global]` that mean the same to the master of one pool.
const MOVED: [&str; 11] = [
    "log_level",
    "log_limit",
    "log_buffering",
    "emergency_restart_threshold",
    "emergency_restart_interval",
    "process_control_timeout",
    "process.priority",
    "rlimit_files",
    "rlimit_core",
    "systemd_interval",
    "stop_timeout",
];

/// Those that do not, and why.
const LEFT_OUT: [(&str, &str); 7] = [
    (
        "pid",
        "systemd knows the master: systemctl show -P MainPID php-pool@NAME",
    ),
    ("daemonize", "systemd starts the master, and it stays in the foreground"),
    ("error_log", "the journal has it: journalctl -u php-pool@NAME"),
    (
        "syslog.ident",
        "the journal has the log, with SYSLOG_IDENTIFIER=php-pool and PHP_POOL=",
    ),
    ("syslog.facility", "the journal has the log"),
    ("events.mechanism", "it is always epoll"),
    (
        "process.max",
        "it was over all pools, and each has a master of its own now",
    ),
];

/// Debian's name for the socket of whichever php-fpm there is. Web servers are often told it; php-fpm's unit makes the link.
const COMMON: &str = "/run/php/php-fpm.sock";

/// Where that leads, by way of update-alternatives.
const ALTERNATIVE: &str = "/etc/alternatives/php-fpm.sock";

/// One new file.
#[derive(Debug)]
pub struct PoolPlan {
    /// The pool.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Where the pool was.
    pub source: PathBuf,
    /// All of the new file.
    pub text: Vec<u8>,
    /// What is different in it, a sentence each.
    pub changes: Vec<String>,
    /// It has an address of php-fpm's: the two cannot run side by side.
    pub shares: bool,
    /// It has an access log or slowlog in a file, which somebody may rotate.
    pub has_logs: bool,
}

/// The whole.
#[derive(Debug, Default)]
pub struct Plan {
    /// The files.
    pub pools: Vec<PoolPlan>,
    /// Pools that cannot be units, with the reason.
    pub refused: Vec<String>,
    /// Directives of `[global]` that are in no new file, with the reason.
    pub left_out: Vec<String>,
    /// What the administrator has to do.
    pub to_do: Vec<String>,
}

impl Plan {
    /// For a terminal.
    pub fn report(&self, written: bool) -> String {
        let mut text = String::new();
        let verb = if written { "wrote" } else { "would write" };
        for pool in &self.pools {
            let _ = writeln!(text, "{verb} {} from {}", pool.path.display(), pool.source.display());
            for change in &pool.changes {
                let _ = writeln!(text, "  {change}");
            }
        }
        let mut list = |head: &str, lines: &[String]| {
            if !lines.is_empty() {
                let _ = writeln!(text, "\n{head}");
            }
            for line in lines {
                let _ = writeln!(text, "- {}", line.trim_end().replace('\n', "\n  "));
            }
        };
        list("no file for:", &self.refused);
        list("left out of [global]:", &self.left_out);
        list("left to do:", &self.to_do);
        if !written {
            text += "\nNothing was written; --write does it.\n";
        }
        text
    }
}

/// Plans the files for the configuration that `load` names, in the folder `to`. `keep` leaves unix sockets where they are.
///
/// # Errors
/// When the configuration cannot be read.
pub fn plan(load: &LoadOptions, to: &Path, keep: bool) -> Result<Plan, MigrateError> {
    let mut lines = lines(load)?;
    one_section_a_line(&lines)?;
    heads_to_their_sections(&mut lines);
    let mut plan = Plan::default();
    let global = moved(&lines, &mut plan);
    let mut pools: BTreeMap<&str, Vec<&SourceLine>> = BTreeMap::new();
    for line in &lines {
        if let Some(pool) = &line.pool {
            pools.entry(pool).or_default().push(line);
        }
    }
    if pools.is_empty() {
        return Err(MigrateError::NoPool(load.path.clone()));
    }
    let newest = worker::find(None, None).map(|worker| worker.php).unwrap_or_default();
    let version = version_of(&load.path).filter(|version| *version != newest);
    let mut on_demand = Vec::new();
    for (name, lines) in pools {
        match unit::check_name(name) {
            Ok(()) => {
                let pool = pool(name, &lines, version, &global, to, keep, &mut plan.to_do);
                if is_on_demand(&lines) {
                    on_demand.push(name);
                }
                plan.pools.push(pool);
            }
            Err(error) => plan.refused.push(format!(
                "{}:{}: {error}: give it another name",
                lines[0].file.display(),
                lines[0].number
            )),
        }
    }
    if !on_demand.is_empty() {
        plan.to_do.push(format!(
            "{} with pm = ondemand: each keeps a PHP of its own in memory once it has been asked, some 10 MB and what opcache \
             compiles. Where that is too much, zygote_idle_time and exit_idle_time let it go",
            some_of(&on_demand)
        ));
    }
    if let Some(version) = version.filter(|version| worker::find(None, Some(version)).is_err()) {
        plan.to_do.push(format!(
            "install php-pool-php{version}, or take php.version out of the files"
        ));
    }
    php_settings(load, &mut plan.to_do);
    let logs: Vec<&str> = plan
        .pools
        .iter()
        .filter(|pool| pool.has_logs)
        .map(|pool| &*pool.name)
        .collect();
    if !logs.is_empty() {
        plan.to_do.push(format!(
            "{} with logs in files: who rotates them signals the pool's own master now, systemctl kill --kill-whom=main \
             --signal=USR1 php-pool@NAME",
            some_of(&logs)
        ));
    }
    let shares = plan.pools.iter().any(|pool| pool.shares);
    plan.to_do.push(last_step(version_of(&load.path), shares));
    Ok(plan)
}

/// How the pools come to serve. A php-fpm that ends removes its unix sockets: where the pools have the same, it ends first.
fn last_step(version: Option<&str>, shares: bool) -> String {
    let fpm = format!("systemctl disable --now php{}-fpm", version.unwrap_or_default());
    let start = "systemctl daemon-reload && systemctl start php-pool.target";
    match shares {
        true => format!("{fpm}, whose addresses stay, and only then: {start}"),
        false => format!("{start}; when the web server has been moved over: {fpm}"),
    }
}

fn one_section_a_line(lines: &[SourceLine]) -> Result<(), MigrateError> {
    for line in lines.iter().filter(|line| line.statements.len() > 1) {
        let section = line.statements.iter().find_map(|statement| match statement {
            Statement::Section(name) => Some(name.clone()),
            _ => None,
        });
        if let Some(section) = section {
            let (file, line) = (line.file.clone(), line.number);
            return Err(MigrateError::Crowded { file, line, section });
        }
    }
    Ok(())
}

/// Comments right above a section's head are about that section, and so is everything from the top of its file.
fn heads_to_their_sections(lines: &mut [SourceLine]) {
    for head in 0..lines.len() {
        if !matches!(lines[head].statements.first(), Some(Statement::Section(_))) {
            continue;
        }
        let (file, pool) = (lines[head].file.clone(), lines[head].pool.clone());
        let above = lines[..head].iter_mut().rev();
        for line in above.take_while(|line| line.statements.is_empty() && line.file == file) {
            line.pool.clone_from(&pool);
        }
    }
}

/// Lines of `[global]` that go into each file.
fn moved(lines: &[SourceLine], plan: &mut Plan) -> Vec<String> {
    let mut moved = Vec::new();
    for line in lines.iter().filter(|line| line.pool.is_none()) {
        for statement in &line.statements {
            let Statement::Entry { name, value } = statement else {
                continue;
            };
            if MOVED.contains(&name.as_str()) {
                moved.push(String::from_utf8_lossy(&line.text).trim().to_owned());
            } else if let Some((_, why)) = LEFT_OUT.iter().find(|(left, _)| left == name) {
                let value = value.as_deref().unwrap_or_default();
                plan.left_out.push(format!("{name} = {value}: {why}"));
                if name == "process.max" && value != "0" {
                    plan.to_do.push(format!(
                        "process.max = {value} held all pools together: see that the sum of their pm.max_children is no \
                         more, or limit them by systemctl set-property php-pool.slice TasksMax=N"
                    ));
                }
            }
        }
    }
    moved
}

fn pool(
    name: &str,
    lines: &[&SourceLine],
    version: Option<&str>,
    global: &[String],
    to: &Path,
    keep: bool,
    to_do: &mut Vec<String>,
) -> PoolPlan {
    let source = &lines[0].file;
    let mut changes = Vec::new();
    let mut text = format!("; Made by php-pool migrate from {}.\n", source.display()).into_bytes();
    let mut headed = false;
    let mut owned = false;
    let mut public = false;
    let mut unix = None;
    let (mut shares, mut has_logs) = (false, false);
    for line in lines {
        let place = || match &line.file == source {
            true => format!("line {}", line.number),
            false => format!("{}:{}", line.file.display(), line.number),
        };
        match line.statements.first() {
            // One file holds it all now.
            Some(Statement::Section(_)) if std::mem::replace(&mut headed, true) => continue,
            Some(Statement::Entry { name: key, value }) if key == "include" => {
                let pattern = value.as_deref().unwrap_or_default();
                text.extend_from_slice(format!("; was: include = {pattern}\n").as_bytes());
                changes.push(format!("include = {pattern} ({}): its lines are here", place()));
            }
            Some(Statement::Entry { name: key, value }) => {
                owned |= matches!(
                    key.as_str(),
                    "listen.owner" | "listen.group" | "listen.acl_users" | "listen.acl_groups"
                );
                public |= key == "listen.mode" && value.as_deref().is_some_and(|mode| mode.ends_with('6'));
                let address = value.as_deref().unwrap_or_default();
                has_logs |= matches!(key.as_str(), "access.log" | "slowlog") && !address.starts_with("/dev/");
                let suffix = match key.as_str() {
                    "listen" => "",
                    "pm.status_listen" => ".status",
                    _ => {
                        as_it_is(&mut text, line);
                        continue;
                    }
                };
                if !address.contains('/') {
                    as_it_is(&mut text, line);
                    shares = true;
                    to_do.push(format!(
                        "pool {name}: {key} = {address} is php-fpm's as well: stop php-fpm before the pool is started, or \
                         give it another port"
                    ));
                    continue;
                }
                let now = format!("/run/php-pool/{name}{suffix}.sock");
                let before = address.replace("$pool", name);
                if keep {
                    as_it_is(&mut text, line);
                    shares = true;
                    to_do.push(format!(
                        "pool {name}: {key} = {before} is php-fpm's as well: stop php-fpm before the pool is started"
                    ));
                    if key == "listen" && fs::read_link(ALTERNATIVE).is_ok_and(|socket| socket == Path::new(&before)) {
                        to_do.push(format!(
                            "{COMMON} leads to {before}, and is gone at the next boot without php-fpm, which alone makes that \
                             link. Where the web server names it: echo 'L {COMMON} - - - - {before}' \
                             >/etc/tmpfiles.d/php-fpm.sock.conf"
                        ));
                    }
                } else {
                    text.extend_from_slice(b"; was: ");
                    text.extend_from_slice(line.text.trim_ascii());
                    text.extend_from_slice(format!("\n{key} = /run/php-pool/$pool{suffix}.sock\n").as_bytes());
                    changes.push(format!("{key} = {now} instead of {before} ({})", place()));
                    to_do.push(format!(
                        "the web server of pool {name}: unix:{now} instead of unix:{before}"
                    ));
                }
                if key == "listen" {
                    unix = Some(if keep { before } else { now });
                }
            }
            _ => {
                as_it_is(&mut text, line);
            }
        }
    }
    if let Some(path) = unix.filter(|_| !owned && !public) {
        to_do.push(format!(
            "pool {name}: only root can connect to {path}: name the web server's user in listen.owner and listen.group"
        ));
    }
    if let Some(version) = version {
        text.extend_from_slice(format!("\nphp.version = {version}\n").as_bytes());
        changes.push(format!(
            "php.version = {version}, as before: without it a pool has the newest"
        ));
    }
    if !global.is_empty() {
        let head = "\n; From php-fpm's [global], which each pool has for itself here.\n[global]\n";
        text.extend_from_slice(format!("{head}{}\n", global.join("\n")).as_bytes());
        changes.push(format!("[global] has come along: {}", global.join(", ")));
    }
    let path = to.join(format!("{name}.conf"));
    let (name, source) = (name.to_owned(), source.clone());
    PoolPlan {
        name,
        path,
        source,
        text,
        changes,
        shares,
        has_logs,
    }
}

/// Whether `pm = ondemand` is the last that a pool's lines say of it.
fn is_on_demand(lines: &[&SourceLine]) -> bool {
    let mut entries = lines.iter().flat_map(|line| &line.statements).rev();
    let said = entries.find_map(|statement| match statement {
        Statement::Entry { name, value } if name == "pm" => value.as_deref(),
        _ => None,
    });
    said == Some("ondemand")
}

/// Pools by name, so many of them as a line has room for.
fn some_of(pools: &[&str]) -> String {
    const SHOWN: usize = 3;
    let names = pools[..pools.len().min(SHOWN)].join(", ");
    match pools.len() {
        1 => format!("pool {names}"),
        ..=SHOWN => format!("pools {names}"),
        all => format!("{all} pools ({names}, …)"),
    }
}

fn as_it_is(text: &mut Vec<u8>, line: &SourceLine) {
    text.extend_from_slice(&line.text);
    text.push(b'\n');
}

/// The PHP of a configuration that stands where Debian has it.
fn version_of(path: &Path) -> Option<&str> {
    let rest = path.strip_prefix("/etc/php").ok()?;
    rest.iter().next()?.to_str().filter(|name| name.contains('.'))
}

/// php.ini and extensions, which Debian keeps apart for each SAPI; and what systemd was told of php-fpm.
fn php_settings(load: &LoadOptions, to_do: &mut Vec<String>) {
    let Some(theirs) = load.path.parent() else { return };
    let Some(version) = theirs.parent().and_then(|dir| dir.file_name()?.to_str()) else {
        return;
    };
    let ours = theirs.with_file_name("php-pool");
    if !ours.is_dir() {
        return;
    }
    let (ini, our_ini) = (theirs.join("php.ini"), ours.join("php.ini"));
    if let (Ok(before), Ok(now)) = (fs::read(&ini), fs::read(&our_ini))
        && before != now
    {
        to_do.push(format!(
            "diff {} {}: take over what you have changed",
            ini.display(),
            our_ini.display()
        ));
    }
    let enabled = |dir: &Path| -> Vec<String> {
        let entries = fs::read_dir(dir.join("conf.d")).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    };
    let now = enabled(&ours);
    let mut missing: Vec<String> = enabled(theirs).into_iter().filter(|file| !now.contains(file)).collect();
    missing.sort();
    // `20-redis.ini` enables the module `redis`; what is no module is a file of the administrator's own.
    let module_of = |file: &str| -> Option<String> {
        let file = file.strip_suffix(".ini")?;
        let module = file.split_once('-').map_or(file, |(_, module)| module);
        let described = theirs.with_file_name("mods-available").join(format!("{module}.ini"));
        described.exists().then(|| module.to_owned())
    };
    let (mut modules, mut files) = (Vec::new(), Vec::new());
    for file in &missing {
        match module_of(file) {
            Some(module) => modules.push(module),
            None => files.push(file),
        }
    }
    if !modules.is_empty() {
        to_do.push(format!(
            "extensions that php-fpm has: phpenmod -v {version} -s php-pool {}",
            modules.join(" ")
        ));
    }
    for file in files {
        let (from, to) = (theirs.join("conf.d").join(file), ours.join("conf.d"));
        to_do.push(format!(
            "php-fpm's own settings: cp {} {}",
            from.display(),
            to.display()
        ));
    }
    let drop_ins = format!("/etc/systemd/system/php{version}-fpm.service.d");
    if Path::new(&drop_ins).is_dir() {
        to_do.push(format!(
            "{drop_ins} is about php-fpm's service: what of it you need belongs into /etc/systemd/system/php-pool@.service.d"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_of_debians_names_its_php() {
        let version = |path| version_of(Path::new(path));
        assert_eq!(version("/etc/php/8.2/fpm/php-fpm.conf"), Some("8.2"));
        assert_eq!(version("/etc/php/fpm/php-fpm.conf"), None);
        assert_eq!(version("/etc/php-fpm.d/www.conf"), None);
    }
}
