use std::fs;
use std::time::Duration;

use proptest::prelude::*;

use super::super::model::{IniEntry, Listen, LogTarget, Pm, Rlimit};
use super::*;

const POOL: &str = "[www]\nuser = www-data\nlisten = 9000\npm = static\npm.max_children = 2\n";

/// A folder with a file, and options to read it.
struct Setup {
    folder: tempfile::TempDir,
    options: LoadOptions,
}

impl Setup {
    fn new(text: impl AsRef<[u8]>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fpm.conf");
        fs::write(&path, text).unwrap();
        let options = LoadOptions {
            env: HashMap::new(),
            is_root: true,
            ..LoadOptions::new(path)
        };
        Setup { folder, options }
    }

    fn load(&self) -> Config {
        load(&self.options).unwrap_or_else(|errors| panic!("{errors}"))
    }

    fn messages(&self) -> Vec<String> {
        let errors = load(&self.options).expect_err("the file should be refused").errors;
        let folder = self.folder.path().display().to_string();
        errors
            .iter()
            .map(|error| error.to_string().replace(&folder, ""))
            .collect()
    }
}

#[test]
fn an_empty_pool_has_the_defaults() {
    let config = Setup::new(POOL).load();
    let global = &config.global;
    assert_eq!(global.error_log, LogTarget::File("/var/log/php-fpm.log".into()));
    assert_eq!(
        (global.log_level, global.log_limit, global.syslog_facility),
        (Level::Notice, 1024, 24)
    );
    assert_eq!(
        (global.daemonize, global.rlimit_files, global.rlimit_core),
        (true, None, None)
    );
    assert_eq!(global.stop_timeout, Duration::from_secs(10));
    let pool = &config.pools[0];
    assert_eq!(
        (pool.name.as_str(), pool.line, pool.pm, pool.pm_max_children),
        ("www", 1, Pm::Static, 2)
    );
    assert_eq!(
        (pool.listen_address.clone(), pool.listen_backlog, pool.listen_mode),
        (Listen::Port(9000), -1, 0o660)
    );
    assert_eq!(pool.access_format, "%R - %u %t \"%m %r\" %s");
    assert_eq!(pool.security_limit_extensions, [".php", ".phar"]);
    assert_eq!((pool.ping_response.as_str(), pool.ping_path.as_deref()), ("pong", None));
    assert_eq!(pool.request_header_timeout, Duration::from_secs(60));
    assert_eq!(pool.request_body_timeout, Duration::from_secs(60));
    assert_eq!(pool.response_write_timeout, Duration::from_secs(60));
    assert_eq!(pool.linger_timeout, Duration::from_secs(2));
    assert_eq!(pool.stop_timeout, Duration::from_secs(10));
    assert_eq!((pool.queue_max, pool.queue_timeout), (0, Duration::ZERO));
    assert_eq!((pool.reload_overlap, pool.worker_memory_max), (None, None));
    assert!(pool.clear_env && pool.decorate_workers_output && !pool.catch_workers_output);
    assert_eq!(config.notices, []);
}

#[test]
fn values_reach_their_fields() {
    let text = format!(
        "[global]\nerror_log = SYSLOG\nlog_level = warn\nrlimit_core = unlimited\n{POOL}\
         listen = 127.0.0.1:9001\nlisten.acl_users = a, b\nrequest_terminate_timeout = 1500ms\nrlimit_files = 100\n\
         pm.status_listen = st.sock\nsecurity.limit_extensions =\ncgroup.cpu_max = 50%\nworker.memory_max = 64M\n\
         php_flag[a] = on\nphp_value[a] = 2\nphp_admin_value[error_log] = log\nenv[X] = $HOME\nenv[Y] = $NOPE\nenv[X] = z\n"
    );
    let mut setup = Setup::new(text);
    setup.options.env.insert("HOME".into(), "/root".into());
    let config = setup.load();
    assert_eq!(
        (config.global.error_log.clone(), config.global.log_level),
        (LogTarget::Syslog, Level::Warning)
    );
    assert_eq!(config.global.rlimit_core, Some(Rlimit::Unlimited));
    let pool = &config.pools[0];
    assert_eq!(
        pool.listen_address,
        Listen::Tcp {
            host: "127.0.0.1".into(),
            port: 9001
        }
    );
    assert_eq!(pool.listen_acl_users, ["a", "b"]);
    assert_eq!(pool.request_terminate_timeout, Duration::from_millis(1500));
    assert_eq!((pool.rlimit_files, pool.worker_memory_max), (Some(100), Some(64 << 20)));
    assert_eq!(pool.pm_status_listen_address, Some(Listen::Unix("/usr/st.sock".into())));
    // The status page is not on the public socket unless it was asked for.
    assert_eq!(pool.pm_status_path, None);
    assert!(pool.security_limit_extensions.is_empty());
    let entry = |key: &str, value: &str| IniEntry {
        key: key.into(),
        value: value.into(),
    };
    assert_eq!(pool.cgroup, [entry("cpu.max", "50000 100000")]);
    // Applied in this order, the first line of the file holds.
    assert_eq!(pool.php_value, [entry("a", "2"), entry("a", "1")]);
    assert_eq!(pool.php_admin_value, [entry("error_log", "/usr/log")]);
    assert_eq!(pool.env, [entry("X", "z"), entry("Y", ""), entry("X", "/root")]);
}

#[test]
fn the_command_line_has_its_say() {
    let mut setup = Setup::new(format!("[global]\ndaemonize = yes\n{POOL}"));
    setup.options.pid = Some("/run/x.pid".into());
    setup.options.daemonize = Some(false);
    setup.options.prefix = Some(setup.folder.path().to_owned());
    let global = setup.load().global;
    assert_eq!((global.pid, global.daemonize), (Some("/run/x.pid".into()), false));
    assert_eq!(
        global.error_log,
        LogTarget::File(setup.folder.path().join("log/php-fpm.log"))
    );
    // A pid file of the configuration comes before that of the command line.
    let mut setup = Setup::new(format!("[global]\npid = run/y.pid\n{POOL}"));
    setup.options.pid = Some("/run/x.pid".into());
    assert_eq!(setup.load().global.pid, Some("/var/run/y.pid".into()));
    setup.options.prefix = Some("/nosuch".into());
    assert_eq!(
        setup.messages(),
        ["the global prefix '/nosuch' does not exist or is not a directory; it is the command line's -p"]
    );
}

#[test]
fn root_needs_a_user_and_others_are_told_what_is_ignored() {
    let text = POOL.replace("user = www-data\n", "");
    let mut setup = Setup::new(&text);
    assert_eq!(setup.messages().len(), 1);
    setup.options.allow_root_workers = true;
    assert_eq!(setup.load().notices, []);
    setup.options = LoadOptions {
        allow_root_workers: false,
        is_root: false,
        ..setup.options
    };
    assert_eq!(setup.load().notices, []);

    // Nobody looks for the user when it will not be used.
    let text = POOL.replace("www-data", "nosuchuser") + "group = nosuchgroup\nchroot = /\nprocess.priority = 1\n";
    let mut setup = Setup::new(format!("[global]\nprocess.priority = 2\n{text}"));
    setup.options.is_root = false;
    let notices: Vec<String> = setup.load().notices.into_iter().map(|notice| notice.text).collect();
    let ignored = |name: &str| format!("'{name}' directive is ignored when FPM is not running as root");
    let names = ["process.priority", "user", "group", "chroot", "process.priority"];
    assert_eq!(notices, names.map(ignored));
    setup.options.test = true;
    assert_eq!(
        setup.messages(),
        [
            "/fpm.conf:4: pool www: user: cannot get uid for user 'nosuchuser'",
            "/fpm.conf:8: pool www: group: cannot get gid for group 'nosuchgroup'"
        ]
    );
}

#[test]
fn what_later_php_fpm_refuses_is_refused_in_its_words() {
    let long = "/".to_owned() + &"x".repeat(107);
    let mut setup = Setup::new(POOL.replace("9000", &long));
    setup.options.test = true;
    let errors = load(&setup.options).unwrap_err();
    assert_eq!(
        errors.errors[0].php_fpm(),
        format!(
            "[pool www] cannot bind to UNIX socket '{long}' as path is too long (found length: 108, maximal length: 108)"
        )
    );
    assert_eq!(errors.closing_lines(), ["FPM initialization failed"]);

    let text = POOL.replace("www-data", "4294967295") + "group = 18446744073709551615\nlisten.owner = 4294967294\n";
    let mut setup = Setup::new(text);
    setup.options.test = true;
    let errors = load(&setup.options).unwrap_err();
    let lines: Vec<String> = errors.errors.iter().map(|error| error.php_fpm()).collect();
    assert_eq!(
        lines,
        [
            "[pool www] user ID '4294967295' is out of range",
            "[pool www] group ID '18446744073709551615' is out of range"
        ]
    );
    assert_eq!(errors.closing_lines(), ["FPM initialization failed"]);
}

#[test]
fn php_ini_comes_before_the_environment() {
    let mut setup = Setup::new(format!("{POOL}env[A] = ${{BOTH}}\nenv[B] = ${{ENV}}\n"));
    setup.options.ini.insert("BOTH".into(), "ini".into());
    setup.options.env = HashMap::from([("BOTH".into(), "env".into()), ("ENV".into(), "env".into())]);
    let env = setup.load().pools.remove(0).env;
    assert_eq!(
        env.iter().map(|entry| entry.value.as_str()).collect::<Vec<_>>(),
        ["env", "ini"]
    );
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let mut setup = Setup::new("");
    setup.options.path = setup.folder.path().join("nosuch");
    let errors = load(&setup.options).unwrap_err();
    let path = setup.options.path.display();
    assert_eq!(
        errors.errors[0].php_fpm(),
        format!("failed to open configuration file '{path}': No such file or directory (2)")
    );
    assert_eq!(
        errors.closing_lines(),
        [
            format!("failed to load configuration file '{path}'"),
            "FPM initialization failed".into()
        ]
    );
    setup.options.path = setup.folder.path().to_owned();
    assert_eq!(
        setup.messages(),
        ["failed to open configuration file '': Is a directory (21)"]
    );
    setup.options.path = "/dev/zero".into();
    assert_eq!(
        setup.messages(),
        ["failed to open configuration file '/dev/zero': it is larger than 16777216 bytes"]
    );
    setup.options.path = PathBuf::new();
    assert_eq!(setup.messages(), ["configuration filename is empty"]);
}

#[test]
fn reading_ends_after_many_errors() {
    assert_eq!(Setup::new("x\n".repeat(10_000)).messages().len(), MAX_ERRORS);
    // Files that include all of each other would take for ever.
    let setup = Setup::new("");
    for name in 0..20 {
        let text = format!("include = {}/*.conf\n", setup.folder.path().display());
        fs::write(setup.folder.path().join(format!("{name}.conf")), text).unwrap();
    }
    fs::copy(setup.folder.path().join("0.conf"), &setup.options.path).unwrap();
    assert!(setup.messages().len() <= MAX_ERRORS);
}

#[test]
fn what_depends_on_a_wrong_line_is_not_reported_as_well() {
    let text = "[www]\nuser = www-data\nlisten = 69002\npm = dynamc\npm.max_childen = 3\nslowlgo = x\nrequest_slowlog_timeout = 1\n";
    let messages = Setup::new(text).messages();
    assert_eq!(messages.len(), 4, "{messages:#?}");
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(lines in proptest::collection::vec(
        prop_oneof![
            "[a-z_.]{1,12}(\\[[a-z]{0,3}\\])? ?= ?[ -~]{0,20}",
            (0..directives::POOL.len(), "[ -~]{0,12}").prop_map(|(i, value)| format!("{} = {value}", directives::POOL[i].name)),
            (0..directives::GLOBAL.len(), "-?[0-9]{0,12}[a-zA-Z%]{0,2}")
                .prop_filter("no files", |(i, _)| directives::GLOBAL[*i].name != "include")
                .prop_map(|(i, value)| format!("{} = {value}", directives::GLOBAL[i].name)),
            Just("[global]".to_owned()),
            "\\[[a-z]{0,3}\\]",
        ],
        0..30,
    )) {
        let mut setup = Setup::new(lines.join("\n"));
        setup.options.test = true;
        match load(&setup.options) {
            Ok(config) => prop_assert!(!super::super::dump(&config).is_empty()),
            Err(errors) => prop_assert!(!errors.errors.is_empty()),
        }
    }
}
