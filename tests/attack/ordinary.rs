//! php-pool as an ordinary user: it serves, and says what it then ignores.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use libtest_mimic::Trial;
use nix::unistd::User;
use tempfile::TempDir;

use crate::support::fcgi::{self, Address, Connection};

pub fn trials() -> Vec<Trial> {
    let cases: [(&str, fn()); 2] = [
        (
            "ordinary_user::serves_and_says_what_it_ignores",
            serves_and_says_what_it_ignores,
        ),
        (
            "ordinary_user::a_socket_that_cannot_be_given_away_is_an_error",
            a_socket_that_cannot_be_given_away_is_an_error,
        ),
    ];
    let trial = |(name, case): (&str, fn())| {
        Trial::test(name, move || {
            case();
            Ok(())
        })
    };
    cases.into_iter().map(trial).collect()
}

fn nobody() -> User {
    User::from_name("nobody").unwrap().unwrap()
}

/// A folder of the ordinary user's.
fn folder() -> TempDir {
    let dir = tempfile::Builder::new().prefix("php-pool-ordinary-").tempdir().unwrap();
    let user = nobody();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    chown(dir.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    dir
}

/// A master of the ordinary user's with this configuration, which ends with its test.
fn master(dir: &Path, configuration: &str) -> Command {
    let path = |name: &str| dir.join(name).display().to_string();
    fs::write(path("pool.conf"), configuration).unwrap();
    symlink(env!("CARGO_BIN_EXE_php-pool"), path("php-fpm")).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid",
            "nobody",
            "--regid",
            "nogroup",
            "--clear-groups",
            "--pdeathsig",
            "KILL",
        ])
        .args(["--", &path("php-fpm"), "-F", "-O", "-n", "-y", &path("pool.conf")])
        .stdin(Stdio::null());
    command
}

fn serves_and_says_what_it_ignores() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::write(path("index.php"), "<?php echo 'uid ', fileowner('/proc/self/status'), ' ', preg_match('/CapEff:\\s*0+$/m', file_get_contents('/proc/self/status'));").unwrap();
    let text = format!(
        "[global]\nerror_log = {}\nprocess.priority = -5\n[www]\nuser = www-data\ngroup = www-data\nlisten = {}\n\
         chroot = /srv\npm = static\npm.max_children = 1\nprocess.priority = -5\nrlimit_files = 999999999\n\
         cgroup.pids_max = 50\n",
        path("error.log"),
        path("sock")
    );
    let mut child = master(dir.path(), &text)
        .stderr(fs::File::create(path("stderr")).unwrap())
        .spawn()
        .unwrap();
    let log = || fs::read_to_string(path("stderr")).unwrap();
    let deadline = std::time::Instant::now() + crate::site::PATIENCE;
    while !log().contains("ready to handle connections") {
        assert!(
            std::time::Instant::now() < deadline,
            "it does not become ready:\n{}",
            log()
        );
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let mut connection = Connection::open(&Address::Unix(dir.path().join("sock"))).unwrap();
    let params = [("SCRIPT_FILENAME", &*path("index.php")), ("REQUEST_METHOD", "GET")];
    connection.send(&fcgi::request(0, &params, b""));
    let answer = connection.reply(1).text();
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!(answer, format!("uid {} 1", nobody().uid));
    for directive in [
        "'user' directive is ignored",
        "'group' directive is ignored",
        "'chroot' directive is ignored",
        "[pool www] 'process.priority' directive is ignored",
        "NOTICE: 'process.priority' directive is ignored",
        "failed to set rlimit_files for this pool",
        "[pool www] it runs without control groups, so their limits have no effect: ",
    ] {
        assert!(log().contains(directive), "nothing is said of {directive}:\n{}", log());
    }
}

/// As with php-fpm: who may connect is no matter for a guess.
fn a_socket_that_cannot_be_given_away_is_an_error() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let text = format!(
        "[global]\nerror_log = {}\n[www]\nlisten = {}\nlisten.owner = www-data\npm = static\npm.max_children = 1\n",
        path("error.log"),
        path("sock")
    );
    let output = master(dir.path(), &text).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let socket = path("sock");
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(
        said.contains(&format!(
            "[pool www] failed to chown() the socket '{socket}': Operation not permitted (1)"
        )),
        "{said}"
    );
    assert!(!fs::exists(&socket).unwrap(), "the socket is left behind");
}
