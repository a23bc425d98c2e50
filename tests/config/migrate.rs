//! `php-pool migrate`: every file of the corpus that can be used, and Debian's own, becomes files that mean the same.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use libtest_mimic::{Failed, Trial};
use php_pool::config::{self, Config, Listen, LoadOptions, Pool};
use php_pool::migrate::{MigrateError, plan};

use crate::verdict::Corpus;

/// A test and its name.
type Case = (&'static str, fn() -> Result<(), Failed>);

pub fn trials(corpus: &Arc<Corpus>) -> Vec<Trial> {
    let all = Arc::clone(corpus);
    let commands: [Case; 6] = [
        ("migrate::debians_own_files", debian),
        (
            "migrate::nothing_is_written_unless_asked_and_nothing_overwritten",
            unwritten,
        ),
        ("migrate::what_is_left_to_do_is_said", to_do),
        ("migrate::settings_of_php_fpms_own_are_named", own_settings),
        (
            "migrate::nothing_in_a_file_reaches_the_terminal_as_it_is",
            escape_sequences,
        ),
        (
            "migrate::a_configuration_that_php_fpm_would_not_take_is_refused_with_its_line",
            refused,
        ),
    ];
    let mut trials = vec![Trial::test(
        "migrate::the_corpus_means_the_same_afterwards",
        move || same(&all),
    )];
    trials.extend(commands.map(|(name, test)| Trial::test(name, test)));
    trials
}

/// A pool without what a migration may change: where it stands, its address, and how that was written.
fn meaning(pool: &Pool) -> Pool {
    let mut pool = pool.clone();
    (pool.file, pool.line) = (PathBuf::new(), 0);
    pool.written.retain(|entry| entry.key != "listen");
    pool
}

fn load(options: &LoadOptions, path: &Path) -> Result<Config, Failed> {
    let options = LoadOptions {
        path: path.to_owned(),
        ..options.clone()
    };
    config::load(&options).map_err(|errors| errors.to_string().into())
}

/// The file with what is said to stand too close together in a line on two lines, in another folder.
fn apart(path: &Path, line: u32, to: &Path) -> Result<PathBuf, Failed> {
    let text = String::from_utf8(fs::read(path)?)?;
    let lines = (1..).zip(text.lines()).map(|(number, text)| match number == line {
        true => text.replacen(']', "]\n", 1),
        false => text.to_owned(),
    });
    let path = to.join("apart");
    fs::write(&path, lines.collect::<Vec<_>>().join("\n"))?;
    Ok(path)
}

fn same(corpus: &Corpus) -> Result<(), Failed> {
    let (mut files, mut pools) = (0, 0);
    for name in &corpus.cases {
        let mut options = corpus.options(name);
        let Ok(before) = config::load(&options) else { continue };
        let to = tempfile::tempdir()?;
        let mut planned = plan(&options, to.path(), true);
        if let Err(MigrateError::Crowded { line, .. }) = &planned {
            options.path = apart(&options.path, *line, to.path())?;
            planned = plan(&options, to.path(), true);
        }
        let plan = planned.map_err(|error| format!("{name}: {error}"))?;
        if plan.pools.len() + plan.refused.len() != before.pools.len() {
            return Err(format!("{name}: {} pools became {plan:#?}", before.pools.len()).into());
        }
        files += 1;
        for pool in &plan.pools {
            fs::write(&pool.path, &pool.text)?;
            let after = load(&options, &pool.path)?;
            let is_it = |before: &&Pool| before.name == pool.name;
            let (wanted, [found]) = (before.pools.iter().find(is_it).unwrap(), after.pools.as_slice()) else {
                return Err(format!("{name}: more than {} in its file", pool.name).into());
            };
            if meaning(wanted) != meaning(found) {
                return Err(format!("{name}: {:#?}\nbecame\n{:#?}", meaning(wanted), meaning(found)).into());
            }
            let of = |config: &Config| {
                let global = &config.global;
                (
                    global.log_level,
                    global.log_limit,
                    global.process_control_timeout,
                    global.emergency_restart_threshold,
                )
            };
            if of(&before) != of(&after) {
                return Err(format!("{name}: [global] has not come along").into());
            }
            pools += 1;
        }
    }
    // The corpus is there, and was looked at.
    (files > 20 && pools >= files)
        .then_some(())
        .ok_or_else(|| format!("only {files} files with {pools} pools").into())
}

fn php_pool(command: &str, words: &[&Path]) -> Output {
    let this = std::env::current_exe().unwrap();
    let program = this.ancestors().nth(2).unwrap().join("php-pool");
    Command::new(program)
        .arg(command)
        .args(words)
        .output()
        .expect("it can be run")
}

fn migrate(words: &[&Path]) -> Output {
    php_pool("migrate", words)
}

/// `php-pool check` and `migrate` are for files of others, too.
fn escape_sequences() -> Result<(), Failed> {
    let dir = tempfile::tempdir()?;
    let wrong = "[www]\nuser = www-data\nlisten = 9000\npm = \"\x1b[2J\"\n\x1b]0;x = 1\n";
    let right = "[www]\nuser = www-data\nlisten = /run/\x1b[2J/x.sock\npm = static\npm.max_children = 1\n";
    for (name, content) in [("wrong.conf", wrong), ("right.conf", right)] {
        let file = dir.path().join(name);
        fs::write(&file, content)?;
        let print: &[&Path] = &[&file, "--print".as_ref()];
        for (command, words) in [("check", print), ("migrate", &print[..1])] {
            let said = php_pool(command, words);
            let said = [said.stdout, said.stderr].concat();
            holds(&text(&said), "u{1b}")?;
            if said.contains(&0x1b) {
                return Err(format!("{command} {name}: {}", text(&said).escape_debug()).into());
            }
        }
    }
    Ok(())
}

fn text(out: &[u8]) -> String {
    String::from_utf8_lossy(out).into_owned()
}

/// Asserts with what was said.
fn holds(text: &str, part: &str) -> Result<(), Failed> {
    match text.contains(part) {
        true => Ok(()),
        false => Err(format!("{part:?} is not in:\n{text}").into()),
    }
}

fn debian() -> Result<(), Failed> {
    let to = tempfile::tempdir()?;
    let source = fs::read_dir("/etc/php")?
        .flatten()
        .map(|entry| entry.path().join("fpm"));
    let source = source.filter(|path| path.join("pool.d/www.conf").exists()).max();
    let source = source.ok_or("php-fpm's own configuration is not installed")?;
    let out = migrate(&[&source, "--to".as_ref(), to.path(), "--write".as_ref()]);
    let said = text(&out.stdout);
    assert!(out.status.success(), "{said}{}", text(&out.stderr));
    let file = to.path().join("www.conf");
    holds(
        &said,
        &format!(
            "wrote {} from {}",
            file.display(),
            source.join("pool.d/www.conf").display()
        ),
    )?;
    holds(&said, "listen = /run/php-pool/www.sock instead of /run/php/php")?;
    holds(
        &said,
        "the web server of pool www: unix:/run/php-pool/www.sock instead of unix:/run/php/php",
    )?;
    holds(&said, "pid = /run/php/php")?;
    holds(&said, "error_log = /var/log/php")?;
    let version = source.parent().and_then(Path::file_name).unwrap().display();
    holds(
        &said,
        &format!(
            "start php-pool.target; when the web server has been moved over: systemctl disable --now php{version}-fpm"
        ),
    )?;
    let written = fs::read_to_string(&file)?;
    holds(&written, "\nlisten = /run/php-pool/$pool.sock\n")?;
    holds(&written, "; Start a new pool named 'www'.\n")?;
    holds(&written, "; Per pool prefix\n")?;
    assert!(!written.contains("\ninclude"), "{written}");
    let options = LoadOptions {
        test: true,
        ..LoadOptions::new(&source)
    };
    let (before, after) = (load(&options, &source.join("php-fpm.conf"))?, load(&options, &file)?);
    let without_listen = |pool: &Pool| Pool {
        listen: String::new(),
        listen_address: Listen::Unix(PathBuf::new()),
        ..meaning(pool)
    };
    assert_eq!(without_listen(&before.pools[0]), without_listen(&after.pools[0]));
    php_pool::generator::check(&file).map_err(Into::into)
}

/// A folder with php-fpm's files.
fn place(global: &str, pools: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("pool.d")).unwrap();
    fs::create_dir(dir.path().join("new")).unwrap();
    let include = format!("[global]\n{global}\ninclude = {}/pool.d/*.conf\n", dir.path().display());
    fs::write(dir.path().join("php-fpm.conf"), include).unwrap();
    for (name, text) in pools {
        fs::write(dir.path().join("pool.d").join(name), text).unwrap();
    }
    dir
}

const POOL: &str = "user = www-data\nlisten.owner = www-data\npm = static\npm.max_children = 1\n";

fn unwritten() -> Result<(), Failed> {
    let pools = [
        ("a.conf", format!("[a]\nlisten = /run/a.sock\n{POOL}")),
        ("b.conf", format!("[b]\nlisten = /run/b.sock\n{POOL}")),
    ];
    let dir = place(
        "",
        &[(pools[0].0, pools[0].1.as_str()), (pools[1].0, pools[1].1.as_str())],
    );
    fs::set_permissions(dir.path().join("pool.d/a.conf"), fs::Permissions::from_mode(0o600))?;
    let to = dir.path().join("new");
    let listing = || fs::read_dir(&to).unwrap().count();
    let run = |write: bool| {
        let mut words: Vec<&Path> = vec![dir.path(), "--to".as_ref(), to.as_path()];
        words.extend(write.then_some(Path::new("--write")));
        migrate(&words)
    };
    let out = run(false);
    assert!(out.status.success(), "{}", text(&out.stderr));
    holds(&text(&out.stdout), "Nothing was written; --write does it.")?;
    assert_eq!(listing(), 0);
    // A link to nowhere is in the way, too.
    symlink("/nowhere", to.join("b.conf"))?;
    let out = run(true);
    assert_eq!(out.status.code(), Some(73));
    holds(&text(&out.stderr), "b.conf is there already, and nothing was written")?;
    assert_eq!(listing(), 1);
    fs::remove_file(to.join("b.conf"))?;
    assert!(run(true).status.success());
    assert_eq!(listing(), 2);
    let mode = |name: &str| fs::metadata(to.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("a.conf"), 0o600, "who may read it");
    let before = fs::read(to.join("a.conf"))?;
    assert_eq!(run(true).status.code(), Some(73));
    assert_eq!(fs::read(to.join("a.conf"))?, before);
    fs::remove_dir_all(&to)?;
    let out = run(true);
    assert_eq!(out.status.code(), Some(73));
    holds(
        &text(&out.stderr),
        "new/a.conf cannot be written, and nothing was left: No such file",
    )
}

fn to_do() -> Result<(), Failed> {
    let global = "process.max = 64\nlog_level = warning\nprocess_control_timeout = 10s\nrlimit_files = 4096";
    let pools = [
        (
            "port.conf",
            "[port]\nuser = www-data\nlisten = 127.0.0.1:9000\npm = ondemand\npm.max_children = 1\n",
        ),
        (
            "shut.conf",
            "[shut]\nuser = www-data\nlisten = /run/shut.sock\npm = ondemand\npm.max_children = 1\naccess.log = /var/log/shut\n",
        ),
        (
            "host.conf",
            "[host]\nuser = www-data\nlisten = localhost.example:9000\npm = ondemand\npm.max_children = 1\n",
        ),
        (
            "odd.conf",
            "[o d d]\nuser = www-data\nlisten = /run/odd.sock\npm = ondemand\npm.max_children = 1\n",
        ),
    ];
    let dir = place(global, &pools);
    let out = migrate(&[dir.path(), "--to".as_ref(), &dir.path().join("new")]);
    let said = text(&out.stdout);
    assert_eq!(out.status.code(), Some(1), "{said}");
    for part in [
        "process.max = 64 held all pools together",
        "[global] has come along: log_level = warning, process_control_timeout = 10s, rlimit_files = 4096",
        "pool port: listen = 127.0.0.1:9000 is php-fpm's as well",
        "pool shut: only root can connect to /run/php-pool/shut.sock",
        "write the address instead of 'localhost.example'",
        "'o d d' cannot name a pool",
        "pools host, port, shut with pm = ondemand: each keeps a PHP of its own",
        "pool shut with logs in files",
        "systemctl disable --now php-fpm, whose addresses stay, and only then: systemctl daemon-reload",
    ] {
        holds(&said, part)?;
    }
    assert!(!said.contains("odd.conf from"), "{said}");
    let out = migrate(&[
        dir.path(),
        "--to".as_ref(),
        &dir.path().join("new"),
        "--keep-sockets".as_ref(),
    ]);
    holds(
        &text(&out.stdout),
        "pool shut: listen = /run/shut.sock is php-fpm's as well: stop php-fpm",
    )
}

/// What php-fpm has beside its php.ini: modules that can be enabled, and files that cannot.
fn own_settings() -> Result<(), Failed> {
    let php = tempfile::tempdir()?;
    let version = php.path().join("8.2");
    for folder in ["fpm/conf.d", "fpm/pool.d", "php-pool/conf.d", "mods-available"] {
        fs::create_dir_all(version.join(folder))?;
    }
    for (file, text) in [
        ("fpm/php-fpm.conf", format!("[a]\nlisten = /run/a.sock\n{POOL}")),
        ("fpm/php.ini", "memory_limit = 512M\n".to_owned()),
        ("php-pool/php.ini", "memory_limit = 128M\n".to_owned()),
        ("fpm/conf.d/20-redis.ini", String::new()),
        ("fpm/conf.d/20-apcu.ini", String::new()),
        ("php-pool/conf.d/20-apcu.ini", String::new()),
        ("fpm/conf.d/99-site.ini", String::new()),
        ("mods-available/redis.ini", String::new()),
        ("mods-available/apcu.ini", String::new()),
    ] {
        fs::write(version.join(file), text)?;
    }
    let out = migrate(&[&version.join("fpm"), "--to".as_ref(), php.path()]);
    let (said, version) = (text(&out.stdout), version.display());
    for part in [
        format!("- diff {version}/fpm/php.ini {version}/php-pool/php.ini: take over"),
        "- extensions that php-fpm has: phpenmod -v 8.2 -s php-pool redis\n".to_owned(),
        format!("- php-fpm's own settings: cp {version}/fpm/conf.d/99-site.ini {version}/php-pool/conf.d\n"),
    ] {
        holds(&said, &part)?;
    }
    Ok(())
}

fn refused() -> Result<(), Failed> {
    let dir = place("", &[("a.conf", "[a]\nlisten = /run/a.sock\npm.max_childrn = 1\n")]);
    let out = migrate(&[dir.path(), "--to".as_ref(), &dir.path().join("new"), "--write".as_ref()]);
    assert_eq!(out.status.code(), Some(78));
    holds(&text(&out.stderr), "pool.d/a.conf:3:")?;
    fs::write(
        dir.path().join("pool.d/a.conf"),
        format!("[a] listen = /run/a.sock\n{POOL}"),
    )?;
    let out = migrate(&[dir.path(), "--to".as_ref(), &dir.path().join("new"), "--write".as_ref()]);
    assert_eq!(out.status.code(), Some(78));
    holds(&text(&out.stderr), "pool.d/a.conf:1: write [a] on a line of its own")?;
    let out = migrate(&["/nowhere/php-fpm.conf".as_ref()]);
    assert_eq!(out.status.code(), Some(78));
    holds(&text(&out.stderr), "/nowhere/php-fpm.conf")?;
    assert_eq!(fs::read_dir(dir.path().join("new"))?.count(), 0);
    Ok(())
}
