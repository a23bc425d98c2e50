//! php-fpm's command line: the same words to both, and what each answers.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::Place;
use crate::support::Case;
use crate::support::server::php_fpm;

pub const CASES: &[Case] = &[
    ("command_line::what_is_asked_for_is_what_php_fpm_answers", answers),
    ("command_line::what_makes_no_sense_is_php_fpms_usage_error", nonsense),
    (
        "command_line::a_configuration_is_tested_and_refused_as_by_php_fpm",
        configurations,
    ),
    ("command_line::an_option_reaches_php", options_for_php),
];

const GOOD: &str = "[www]\n{user}\nlisten = {dir}/sock\npm = static\npm.max_children = 1\n";

/// Exit status, stdout, stderr.
type Answer = (Option<i32>, String, String);

fn run(program: &Path, place: &Place, words: &str) -> Answer {
    let mut command = Command::new(program);
    command
        .args(words.split_whitespace())
        .current_dir(place.path(""))
        .stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| {
        let text = String::from_utf8(bytes).unwrap();
        let lines = text.split('\n').filter(|line| !line.starts_with("Created directory:"));
        lines.map(timeless).collect::<Vec<_>>().join("\n")
    };
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A line without the time of day and the day it was built on.
fn timeless(line: &str) -> String {
    let line = line
        .strip_prefix('[')
        .and_then(|line| line.split_once("] "))
        .map_or(line, |(_, rest)| rest);
    match line.split_once(" (built: ") {
        Some((version, _)) => version.to_owned(),
        None => line.to_owned(),
    }
}

/// The answers of php-fpm and of ours to the same words.
fn both(place: &Place, words: &str) -> [Answer; 2] {
    [&php_fpm(), &place.path("php-fpm")].map(|program| run(program, place, words))
}

fn place() -> Place {
    let place = Place::new();
    place.configure(GOOD);
    let text = std::fs::read_to_string(place.path("pool.conf")).unwrap();
    place.write("bad.conf", &text.replace("static", "nosuch"));
    place.write("nobody.conf", &text.replace("user = www-data", ""));
    place.write("empty.conf", "");
    place
}

fn answers() {
    let place = place();
    for words in [
        "-v",
        "--version",
        "-n -v",
        "-e -v",
        // The first of them is answered, and what follows it is not looked at.
        "-v -i",
        "-i -v",
        "-vx",
        "-nvx",
        "-v stray",
        "-v -t -y pool.conf",
        "-t -y nosuch.conf -v",
    ] {
        let [theirs, ours] = both(&place, words);
        assert_eq!(ours, theirs, "{words}");
        assert!(
            ours.1.starts_with("PHP 8") || ours.1.starts_with("PHP "),
            "{words}: {ours:?}"
        );
    }
    // libphp has pcntl, php-fpm has not.
    for words in ["-m", "--modules", "-n -m", "-mv", "-i -m"] {
        let [theirs, mut ours] = both(&place, words);
        ours.1 = ours.1.replace("pcntl\n", "");
        assert_eq!(ours, theirs, "{words}");
    }
    for words in ["-h", "--help", "-?", "--usage", "-hx", "-t -y pool.conf -h", "-h -v"] {
        let [theirs, ours] = both(&place, words).map(usage);
        assert_eq!(ours, theirs, "{words}");
    }
    // The information is of two programs; its kind is the same.
    let [theirs, ours] = both(&place, "-i");
    for (status, out, err) in [&theirs, &ours] {
        assert_eq!((*status, err.as_str()), (Some(0), ""));
        assert!(out.starts_with("phpinfo()\nPHP Version => ") && out.contains("Server API => FPM/FastCGI"));
    }
}

/// The first line of a usage text, less the program's name: the rest is in our own words.
fn usage((status, out, err): Answer) -> Answer {
    let first = out.split('\n').next().unwrap_or_default();
    let line = first.replace(
        &php_fpm().file_name().unwrap().to_string_lossy().into_owned(),
        "php-fpm",
    );
    (status, line, err)
}

fn nonsense() {
    let place = place();
    for words in [
        "-x",
        "-xv",
        "-a",
        "-T",
        "-s",
        "-b 1",
        "--nosuch",
        "--nosuch=1",
        "--memory-limit=1G",
        "-y",
        "-c",
        "-d",
        "-p",
        "-g",
        "stray",
        "-t stray",
        "-- stray",
        "-t -y pool.conf -x",
    ] {
        let [theirs, ours] = both(&place, words).map(usage);
        assert_eq!((ours.0, &ours.1), (theirs.0, &theirs.1), "{words}");
        assert_eq!(ours.0, Some(64), "{words}");
        assert!(ours.1.starts_with("Usage: php-fpm [-n]"), "{words}: {ours:?}");
        // php-fpm leaves it at that; ours says what it does not know.
        assert!(
            theirs.2.is_empty() && ours.2.starts_with("php-fpm: "),
            "{words}: {ours:?}"
        );
    }
}

fn configurations() {
    let place = place();
    let tests = [
        "-t -y pool.conf",
        "--test --fpm-config pool.conf",
        "--test --fpm-config=pool.conf",
        "-t -ypool.conf",
        "-ty pool.conf",
        "-t -y pool.conf -c /nosuch/php.ini",
        "-t -y pool.conf -c /nosuch",
        "-t -y pool.conf -d precision=5",
        "-t -y pool.conf -n -e -D -F -O -R",
        "-t -y pool.conf -g /nosuch/dir/pid",
        "-t -y nosuch.conf",
        "-t -y bad.conf",
        "-tt -y bad.conf",
        "-t -y nobody.conf",
        "-t -R -y nobody.conf",
        "-t -y empty.conf",
        "-t -y pool.conf -p /nosuch",
        "-t -y pool.conf -p pool.conf",
        "-F -y nosuch.conf",
        "-D -y nosuch.conf",
        "-F -O -y bad.conf",
        "-D -y bad.conf",
        "-F -O -y nobody.conf",
        "-F -O -y pool.conf -p /nosuch",
    ];
    let root = nix::unistd::geteuid().is_root();
    for words in tests {
        // An ordinary user needs no user, and serves then.
        if words.contains("nobody") && !root && !words.starts_with("-t") {
            continue;
        }
        let [theirs, ours] = both(&place, words);
        assert_eq!(ours, theirs, "{words}");
        let refused = ["nosuch.conf", "bad", "empty", "-p "]
            .iter()
            .any(|what| words.contains(what))
            || (root && words.contains("nobody") && !words.contains("-R"));
        assert_eq!(ours.0, Some(if refused { 78 } else { 0 }), "{words}: {ours:?}");
    }
}

/// `-c`, `-n`, `-d`, `-e`, `-p`, `-g` and `-O` at work, with both.
fn options_for_php() {
    for program in ["php-fpm", "php-pool"] {
        let place = Place::new();
        std::fs::create_dir(place.path("etc")).unwrap();
        place.write(
            "x.php",
            "<?php echo ini_get('precision'), ' ', ini_get('serialize_precision'), ' ', basename((string) php_ini_loaded_file());",
        );
        place.write("etc/php.ini", "precision = 7\nserialize_precision = 8\n");
        let user = if nix::unistd::geteuid().is_root() {
            "user = www-data\n"
        } else {
            ""
        };
        // Relative paths are below the prefix, and the file is its etc/php-fpm.conf. Its pid file goes before that of -g.
        let configure = |pid: &str| {
            let pool = "listen = $pool.sock\nlisten.mode = 0666\npm = static\npm.max_children = 1\n";
            let global = format!("[global]\nerror_log = log\ndaemonize = yes\n{pid}\n");
            place.write("etc/php-fpm.conf", &format!("{global}[www]\n{user}{pool}"));
        };
        let executable = if program == "php-fpm" {
            php_fpm()
        } else {
            place.path("php-fpm")
        };
        for (index, (words, wanted)) in [
            (format!("-c {}", place.path("etc/php.ini").display()), "7 8 php.ini"),
            (
                format!("-c {} -d precision=9", place.path("etc").display()),
                "9 8 php.ini",
            ),
            (
                format!("-c {} -n -d precision=9", place.path("etc").display()),
                "9 8 php.ini",
            ),
            ("-n -dserialize_precision=6 -d precision=5".to_owned(), "5 6 "),
        ]
        .into_iter()
        .enumerate()
        {
            let named = index % 2 == 1;
            configure(if named { "pid = run.pid" } else { "" });
            let pid_file = place.path(if named { "run.pid" } else { "given.pid" });
            let mut command = crate::support::process::that_dies_with_us("KILL", &executable);
            command.args(["-F", "-O", "-e", "-p"]).arg(place.path(""));
            command
                .arg("-g")
                .arg(place.path("given.pid"))
                .args(words.split_whitespace());
            command
                .env("PHP_INI_SCAN_DIR", "")
                .stdin(Stdio::null())
                .stdout(Stdio::null());
            let log = std::fs::File::create(place.path("said")).unwrap();
            command.stderr(log);
            let mut child = crate::support::process::spawn(command).unwrap();
            let said = || std::fs::read_to_string(place.path("said")).unwrap();
            crate::harness::wait_for("it serves", || said().contains("ready to handle connections"));
            let pid = std::fs::read_to_string(&pid_file).unwrap();
            assert_eq!(pid, child.id().to_string(), "-F stays: {program} {words}");
            let mut connection = place.connect("www.sock");
            place.ask(&mut connection, "/x.php", 0);
            assert_eq!(crate::harness::body(&connection.reply(1)), wanted, "{program} {words}");
            let pid = nix::unistd::Pid::from_raw(child.id() as i32);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(0), "{program} {words}");
            assert!(!pid_file.exists(), "{program} {words}");
            let log = std::fs::read_to_string(place.path("log")).unwrap_or_default();
            assert_eq!(log, "", "-O: {program} {words}");
        }
    }
}
