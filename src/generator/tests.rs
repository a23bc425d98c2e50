use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{check, generate, is_broken};

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("pool.d")).unwrap();
        fs::create_dir(dir.path().join("units")).unwrap();
        Place { dir }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join("pool.d").join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn run(&self) {
        generate(&self.dir.path().join("pool.d"), &self.units());
    }

    fn units(&self) -> PathBuf {
        self.dir.path().join("units")
    }

    fn drop_in(&self, unit: &str) -> String {
        fs::read_to_string(self.units().join(format!("{unit}.d/50-pool.conf"))).unwrap_or_default()
    }

    fn wanted(&self) -> Vec<String> {
        let folder = self.units().join("php-pool.target.wants");
        let mut names: Vec<String> = fs::read_dir(folder)
            .map(|entries| {
                entries
                    .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                    .collect()
            })
            .unwrap_or_default();
        names.sort();
        names
    }
}

fn pool(name: &str, lines: &str) -> String {
    format!("[{name}]\nuser = www-data\npm = static\npm.max_children = 2\n{lines}\n")
}

#[test]
fn a_pool_file_becomes_a_socket_a_service_and_a_slice() {
    let place = Place::new();
    place.file(
        "my-app.conf",
        &pool(
            "my-app",
            "listen = /run/$pool.sock\nlisten.owner = www-data\nlisten.group = www-data\nlisten.mode = 0600\nlisten.backlog = 7\n\
             listen.acl_users = nginx\npm.status_listen = 127.0.0.1:9001",
        ),
    );
    place.run();
    let socket = place.drop_in("php-pool@my-app.socket");
    // systemd's own way leads through a link that somebody puts in the socket's place.
    assert!(
        !socket.contains("SocketUser") && !socket.contains("SocketGroup"),
        "{socket}"
    );
    for line in [
        "ListenStream=\nListenStream=/run/my-app.sock\n",
        "SocketMode=0600\nExecStartPost=/usr/bin/php-pool give-socket \"--owner=www-data\" \"--group=www-data\" \
         \"--acl-user=nginx\" \"my-app\" \"/run/my-app.sock\"\n",
        "Backlog=7\n",
    ] {
        assert!(socket.contains(line), "{line} in\n{socket}");
    }
    assert!(
        place
            .drop_in("php-pool-status@my-app.socket")
            .contains("ListenStream=127.0.0.1:9001\n")
    );
    let service = place.drop_in("php-pool@my-app.service");
    assert!(
        service.contains("Slice=php-pool-my\\x2dapp.slice\nSockets=php-pool-status@my-app.socket\n"),
        "{service}"
    );
    assert_eq!(
        place.wanted(),
        [
            "php-pool-status@my-app.socket",
            "php-pool@my-app.service",
            "php-pool@my-app.socket"
        ]
    );
    let link = place.units().join("php-pool.target.wants/php-pool@my-app.socket");
    assert_eq!(
        fs::read_link(link).unwrap(),
        Path::new("/lib/systemd/system/php-pool@.socket")
    );
}

#[test]
fn an_ondemand_pool_is_a_socket_until_its_first_request() {
    let place = Place::new();
    place.file(
        "shop.conf",
        &pool("shop", "listen = 9000").replace("static", "ondemand"),
    );
    place.run();
    assert_eq!(place.wanted(), ["php-pool@shop.socket"]);
}

#[test]
fn a_file_that_cannot_be_used_becomes_a_service_that_says_why_and_harms_no_other() {
    let place = Place::new();
    let wrong = [
        (
            "syntax.conf",
            "[syntax]\nlisten = \"/run/x\n".to_owned(),
            "syntax.conf:2:",
        ),
        ("nolisten.conf", pool("nolisten", ""), "no listen address"),
        ("empty.conf", String::new(), "holds no pool; [empty]"),
        ("other.conf", pool("www", "listen = 9000"), "must hold [other] alone"),
        (
            "two.conf",
            pool("two", "listen = 9000") + &pool("more", "listen = 9001"),
            "the pool [more]",
        ),
        (
            "host.conf",
            pool("host", "listen = db.example:9000"),
            "instead of 'db.example'",
        ),
        (
            "port.conf",
            pool("port", "listen = 127.0.0.1:99999"),
            "invalid port value '99999'",
        ),
        (
            "mode.conf",
            pool("mode", "listen = 9000\nlisten.mode = abc"),
            "mode.conf:6: listen.mode:",
        ),
        ("var.conf", pool("var", "listen = ${SOCKET}"), "${…} cannot stand"),
        (
            "caf\u{e9}.conf",
            pool("caf\u{e9}", "listen = 9000"),
            "cannot name a pool",
        ),
        ("a b.conf", pool("a b", "listen = 9000"), "cannot name a pool"),
    ];
    for (name, text, reason) in &wrong {
        let error = check(&place.file(name, text)).unwrap_err();
        assert!(error.contains(reason), "{name}: {error}");
    }
    place.file("good.conf", &pool("good", "listen = 9000"));
    place.run();
    let sockets: Vec<String> = place
        .wanted()
        .into_iter()
        .filter(|unit| unit.ends_with(".socket"))
        .collect();
    assert_eq!(sockets, ["php-pool@good.socket"]);
    assert_eq!(place.wanted().len(), wrong.len() + 2);
    let unit = place.drop_in("php-pool@caf\\xc3\\xa9.service");
    assert!(
        unit.contains("ExecStart=\nExecStart=/usr/bin/php-pool check --pool \""),
        "{unit}"
    );
    assert!(place.drop_in("php-pool@a\\x20b.service").contains("a b.conf\"\n"));
    let broken = |name: &str| is_broken(&place.dir.path().join("pool.d").join(name), &place.units());
    assert!(broken("var.conf"));
    assert!(!broken("good.conf") && !broken("missing.conf"));
}

/// systemd would give it to whichever comes last.
#[test]
fn a_socket_that_two_files_ask_for_is_the_older_ones() {
    let place = Place::new();
    let old = place.file(
        "www.conf",
        &pool("www", "listen = /run/www.sock\npm.status_listen = 9001"),
    );
    let minute = std::time::Duration::from_secs(60);
    let before = std::time::SystemTime::now() - minute;
    fs::File::options()
        .write(true)
        .open(&old)
        .unwrap()
        .set_modified(before)
        .unwrap();
    let copies = [
        ("a-copy", "listen = /run/www.sock"),
        ("var-run", "listen = /var/run/www.sock"),
        ("status", "listen = 9002\npm.status_listen = /run/www.sock"),
        ("its-status", "listen = 9001"),
    ];
    for (name, lines) in copies {
        let error = check(&place.file(&format!("{name}.conf"), &pool(name, lines))).unwrap_err();
        assert!(
            error.contains("already used in another pool 'www'") && error.contains("www.conf"),
            "{error}"
        );
    }
    check(&old).unwrap();
    place.file("other.conf", &pool("other", "listen = /run/other.sock"));
    place.run();
    let sockets = place.wanted().into_iter().filter(|unit| unit.ends_with(".socket"));
    let expected = [
        "php-pool-status@www.socket",
        "php-pool@other.socket",
        "php-pool@www.socket",
    ];
    assert!(sockets.eq(expected), "{:?}", place.wanted());
    assert!(place.drop_in("php-pool@a-copy.service").contains("check --pool"));
}

/// What else is wrong with a pool must not take its socket, and the clients in it, away: its service says what.
#[test]
fn a_mistake_that_is_not_about_the_socket_leaves_the_socket() {
    let place = Place::new();
    place.file(
        "www.conf",
        &pool("www", "listen = 9000\nchdir = /nowhere\npm.max_childrn = 5"),
    );
    place.run();
    assert_eq!(place.wanted(), ["php-pool@www.service", "php-pool@www.socket"]);
}

#[test]
fn what_is_made_is_that_of_the_files_there_are() {
    let place = Place::new();
    place.file("www.conf", &pool("www", "listen = 9000"));
    let gone = place.file("gone.conf", &pool("gone", "listen = 9001"));
    let unreadable = place.dir.path().join("pool.d/dangling.conf");
    std::os::unix::fs::symlink("/nowhere", unreadable).unwrap();
    place.run();
    assert!(place.wanted().contains(&"php-pool@gone.socket".to_owned()));
    assert!(place.drop_in("php-pool@dangling.service").contains("check --pool"));
    // systemd empties the folder before it asks again.
    fs::remove_file(gone).unwrap();
    fs::remove_dir_all(place.units()).unwrap();
    fs::create_dir(place.units()).unwrap();
    place.run();
    assert_eq!(
        place.wanted(),
        [
            "php-pool@dangling.service",
            "php-pool@www.service",
            "php-pool@www.socket"
        ]
    );
    assert_eq!(place.drop_in("php-pool@gone.socket"), "");
}

/// Time depends on who else uses the machine; what is read and written does not.
#[test]
fn four_times_the_files_are_four_times_the_work() {
    let place = Place::new();
    let fill = |from: u32, to: u32| {
        for number in from..to {
            let name = format!("p{number}");
            place.file(
                &format!("{name}.conf"),
                &pool(&name, "listen = /run/php-pool/$pool.sock"),
            );
        }
    };
    // Bytes and system calls, as the kernel counts them for this thread.
    let so_far = || {
        let text = fs::read_to_string("/proc/thread-self/io").unwrap();
        let value = |key: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap().trim().parse().unwrap()
        };
        [value("rchar:"), value("wchar:"), value("syscr:"), value("syscw:")]
    };
    let cost = || {
        let before = so_far();
        place.run();
        let after = so_far();
        fs::remove_dir_all(place.units()).unwrap();
        fs::create_dir(place.units()).unwrap();
        std::array::from_fn::<u64, 4, _>(|index| after[index] - before[index])
    };
    fill(1000, 1250);
    let few = cost();
    fill(1250, 2000);
    let many = cost();
    // Counting reads a little, too.
    for (few, many) in few.into_iter().zip(many) {
        assert!(few >= 250, "{few} for 250 files");
        assert!(many.abs_diff(few * 4) < 1000, "250 files: {few}, 1,000 files: {many}");
    }
}

#[test]
fn left_overs_are_no_pools() {
    let place = Place::new();
    for name in ["www.conf~", "www.conf.dpkg-old", ".www.conf", "README"] {
        place.file(name, &pool("www", "listen = 9000"));
    }
    fs::create_dir(place.dir.path().join("pool.d/folder.conf")).unwrap();
    place.run();
    assert_eq!(fs::read_dir(place.units()).unwrap().count(), 0);
    generate(Path::new("/nowhere"), &place.units());
}
