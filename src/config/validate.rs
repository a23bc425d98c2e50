//! From what the files say to a configuration that holds together: relative paths, addresses, and every check that
//! needs more than one line, in php-fpm's order.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};

use nix::unistd::{Group, User};

use super::access_format;
use super::address;
use super::directives::{Directive, Section};
use super::error::{Error, Errors, Stage};
use super::load::{Draft, LoadOptions};
use super::model::{Config, Global, IniEntry, Listen, LogTarget, Notice, Pm, Pool};
use super::value::{Base, Kind, Value, format_seconds};
use crate::log::Level;

/// php.ini settings that name a file: a relative value is below the pool's prefix.
const PATH_SETTINGS: [&str; 15] = [
    "error_log",
    "extension_dir",
    "mime_magic.magicfile",
    "sendmail_path",
    "session.cookie_path",
    "session_pgsql.sem_file_name",
    "soap.wsdl_cache_dir",
    "uploadprogress.file.filename_template",
    "xdebug.output_dir",
    "xdebug.profiler_output_dir",
    "xdebug.trace_output_dir",
    "xmms.path",
    "axis2.client_home",
    "blenc.key_file",
    "coin_acceptor.device",
];

/// Checks the whole and puts it together.
pub(super) fn finish(
    options: &LoadOptions,
    global: Draft<Global>,
    pools: Vec<Draft<Pool>>,
    errors: Vec<Error>,
    mut notices: Vec<Notice>,
) -> Result<Config, Errors> {
    let mut check = Check {
        options,
        draft: global,
        errors,
    };
    check.global(&mut notices);
    let Check {
        draft: global,
        mut errors,
        ..
    } = check;
    // php-fpm complains about a missing pool even when a file could not be read; here that would only distract.
    if pools.is_empty() && errors.is_empty() {
        errors.push(Error {
            level: Level::Error,
            stage: Stage::Check,
            file: Some(options.path.clone()),
            line: 0,
            pool: None,
            directive: None,
            text: "No pool defined. at least one pool section must be specified in config file".into(),
            plain: None,
            hint: Some("a section such as [www] begins a pool".into()),
        });
    }
    let mut checked: Vec<Draft<Pool>> = Vec::new();
    let mut taken: HashMap<Listen, String> = HashMap::new();
    for draft in pools {
        let mut check = Check { options, draft, errors };
        check.pool(&global.section, &mut notices);
        check.addresses(&mut taken);
        errors = check.errors;
        checked.push(check.draft);
    }
    if options.test {
        errors.extend(checked.iter().flat_map(|draft| {
            let place = |error: &Error| {
                error
                    .directive
                    .as_ref()
                    .and_then(|name| draft.places.get(name.as_str()))
            };
            unknown_names(&draft.section).into_iter().map(move |mut error| {
                error.line = place(&error).map_or(error.line, |place| place.line);
                error.file = place(&error).map(|place| place.file.clone()).or(error.file);
                error
            })
        }));
    }
    let pools = checked.into_iter().map(|draft| draft.section).collect();
    if !errors.is_empty() {
        return Err(Errors {
            errors,
            path: options.path.clone(),
        });
    }
    Ok(Config {
        path: options.path.clone(),
        global: global.section,
        pools,
        notices,
    })
}

/// The users and groups of a pool that the system does not know, in php-fpm's words.
pub fn unknown_names(pool: &Pool) -> Vec<Error> {
    fn is_number(name: &str) -> bool {
        name.bytes().all(|byte| byte.is_ascii_digit())
    }
    /// The last number of 32 bits is none: the kernel takes it for "leave it as it is".
    fn is_id(name: &str) -> bool {
        name.is_empty() || name.parse().is_ok_and(|id: u32| id != u32::MAX)
    }
    // php-fpm prints errno after the names of the socket's owners, and a name that is not found sets none.
    let user = |name: &Option<String>, errno: &str| match name.as_ref()? {
        name if is_number(name) => (!is_id(name)).then(|| format!("user ID '{name}' is out of range")),
        name => {
            (!matches!(User::from_name(name), Ok(Some(_)))).then(|| format!("cannot get uid for user '{name}'{errno}"))
        }
    };
    let group = |name: &Option<String>, errno: &str| match name.as_ref()? {
        name if is_number(name) => (!is_id(name)).then(|| format!("group ID '{name}' is out of range")),
        name => (!matches!(Group::from_name(name), Ok(Some(_))))
            .then(|| format!("cannot get gid for group '{name}'{errno}")),
    };
    let found = [
        ("user", user(&pool.user, "")),
        ("group", group(&pool.group, "")),
        ("listen.owner", user(&pool.listen_owner, ": Success (0)")),
        ("listen.group", group(&pool.listen_group, ": Success (0)")),
    ];
    let complaint = |(directive, text): (&str, Option<String>)| {
        Some(Error {
            level: Level::Error,
            stage: Stage::Names,
            file: Some(pool.file.clone()),
            line: pool.line,
            pool: Some(pool.name.clone()),
            directive: Some(directive.to_owned()),
            text: text?,
            plain: None,
            hint: None,
        })
    };
    found.into_iter().filter_map(complaint).collect()
}

/// A section that is being checked.
struct Check<'a, S> {
    options: &'a LoadOptions,
    draft: Draft<S>,
    errors: Vec<Error>,
}

impl<S: Section> Check<'_, S> {
    /// Reports an error of `directive`, unless that is broken already.
    fn fail_in(
        &mut self,
        pool: Option<String>,
        level: Level,
        directive: &'static str,
        text: impl Into<String>,
        hint: impl Into<Option<String>>,
    ) {
        if self.draft.broken.contains(directive) {
            return;
        }
        let place = self.draft.places.get(directive).unwrap_or(&self.draft.place);
        self.errors.push(Error {
            level,
            stage: Stage::Check,
            file: Some(place.file.clone()),
            line: place.line,
            pool,
            directive: Some(directive.to_owned()),
            text: text.into(),
            plain: None,
            hint: hint.into(),
        });
    }

    /// Makes the section's relative paths of one base absolute.
    fn expand_paths(&mut self, base: Base, folder: &Path) {
        for directive in S::table() {
            let Some(field) = &directive.field else { continue };
            if directive.kind != Kind::Path(base) {
                continue;
            }
            let Some(Value::Text(text)) = (field.show)(&self.draft.section) else {
                continue;
            };
            if text.is_empty() || text.starts_with('/') || is_syslog(directive, &text) {
                continue;
            }
            let text = format!("{}/{text}", folder.display());
            (field.store)(&mut self.draft.section, Value::Text(text.clone()));
            self.draft.section.write(directive.name, text);
        }
    }
}

/// `error_log` may be the word instead of a path.
fn is_syslog<S>(directive: &Directive<S>, text: &str) -> bool {
    directive.name == "error_log" && text.eq_ignore_ascii_case("syslog")
}

impl Check<'_, Global> {
    fn global(&mut self, notices: &mut Vec<Notice>) {
        let options = self.options;
        let global = &mut self.draft.section;
        if global.pid.is_none()
            && let Some(pid) = &options.pid
        {
            global.write("pid", pid.display().to_string());
            global.pid = Some(pid.clone());
        }
        if let Some(daemonize) = options.daemonize {
            global.daemonize = daemonize;
        }
        global.error_log_named = global.written.iter().any(|entry| entry.key == "error_log");
        self.expand_paths(Base::State, options.prefix.as_ref().unwrap_or(&options.localstatedir));
        if self.draft.section.error_log == LogTarget::File(PathBuf::new()) {
            let hint = "name a file, or write syslog".to_owned();
            self.fail_in(
                None,
                Level::Error,
                "error_log",
                "the path of the error log is empty",
                hint,
            );
        }
        if let Some(prefix) = &options.prefix
            && !prefix.is_dir()
        {
            let text = format!(
                "the global prefix '{}' does not exist or is not a directory",
                prefix.display()
            );
            self.errors.push(Error {
                level: Level::Error,
                stage: Stage::Names,
                file: None,
                line: 0,
                pool: None,
                directive: None,
                text,
                plain: None,
                hint: Some("it is the command line's -p".into()),
            });
        }
        if self.draft.section.process_priority.is_some() && !options.is_root && !options.test {
            notices.push(ignored(None, "process.priority"));
        }
    }
}

/// What php-fpm says about a directive that only root can carry out.
fn ignored(pool: Option<&str>, directive: &str) -> Notice {
    Notice {
        level: Level::Notice,
        pool: pool.map(str::to_owned),
        text: format!("'{directive}' directive is ignored when FPM is not running as root"),
    }
}

impl Check<'_, Pool> {
    fn fail(
        &mut self,
        level: Level,
        directive: &'static str,
        text: impl Into<String>,
        hint: impl Into<Option<String>>,
    ) {
        let pool = Some(self.draft.section.name.clone());
        self.fail_in(pool, level, directive, text, hint);
    }

    fn pool(&mut self, global: &Global, notices: &mut Vec<Notice>) {
        self.paths();
        self.user();
        self.listen(notices);
        self.process_manager(notices);
        self.pages();
        self.access_log();
        self.slowlog();
        self.folders();
        self.settings();
        if !self.draft.is_set("stop_timeout") {
            self.draft.section.stop_timeout = global.stop_timeout;
        }
        if !self.options.is_root && !self.options.test {
            let pool = &self.draft.section;
            let set = [
                ("user", pool.user.is_some()),
                ("group", pool.group.is_some()),
                ("chroot", pool.chroot.is_some()),
                ("process.priority", pool.process_priority.is_some()),
            ];
            notices.extend(
                set.iter()
                    .filter(|(_, set)| *set)
                    .map(|(name, _)| ignored(Some(&pool.name), name)),
            );
        }
    }

    /// What relative paths of this pool are below.
    fn base(&self) -> PathBuf {
        let options = self.options;
        let pool = &self.draft.section;
        pool.prefix
            .clone()
            .or_else(|| options.prefix.clone())
            .unwrap_or_else(|| options.php_prefix.clone())
    }

    fn paths(&mut self) {
        let outer = self.options.prefix.as_ref().unwrap_or(&self.options.php_prefix);
        self.expand_paths(Base::Prefix, outer);
        if let Some(prefix) = self.draft.section.prefix.clone()
            && !prefix.is_dir()
        {
            let text = format!("the prefix '{}' does not exist or is not a directory", prefix.display());
            self.fail(Level::Error, "prefix", text, None);
        }
        let base = self.base();
        if let Some(chroot) = self.draft.section.text_of("chroot")
            && let Some(rest) = chroot.strip_prefix("$prefix")
        {
            // The slash between them is php-fpm's, one more than needed.
            let slash = if rest.is_empty() { "" } else { "/" };
            let chroot = format!("{}{slash}{rest}", base.display());
            self.draft.section.chroot = Some(PathBuf::from(&chroot));
            self.draft.section.write("chroot", chroot);
        }
        let misplaced = |chroot: &str| !chroot.starts_with('/') && chroot.contains("$prefix");
        if self.draft.section.text_of("chroot").is_some_and(misplaced) {
            let text = "'$prefix' must be use at the beginning of the value";
            self.fail_in(None, Level::Error, "chroot", text, None);
            let chroot = self.draft.section.text_of("chroot").unwrap_or_default();
            let text = format!("the chroot path '{chroot}' must start with a '/'");
            self.fail(Level::Error, "chroot", text, None);
            self.draft.broken.insert("chroot");
        }
        self.expand_paths(Base::Pool, &base);
    }

    fn user(&mut self) {
        if self.draft.section.user.is_none() && self.options.is_root && !self.options.allow_root_workers {
            let hint = "a master that is root starts workers as another user: write user = www-data, say".to_owned();
            self.fail(Level::Alert, "user", "user has not been defined", hint);
        }
    }

    fn listen(&mut self, notices: &mut Vec<Notice>) {
        let base = self.base();
        match self
            .draft
            .section
            .text_of("listen")
            .map(str::to_owned)
            .filter(|text| !text.is_empty())
        {
            None => {
                let hint = "write listen = 127.0.0.1:9000, say, or the path of a unix socket".to_owned();
                self.fail(Level::Alert, "listen", "no listen address have been defined!", hint);
            }
            Some(text) => match address::parse(&text, &base) {
                Ok(parsed) => {
                    let text = match &parsed {
                        Listen::Unix(path) => path.display().to_string(),
                        _ => text,
                    };
                    let pool = &mut self.draft.section;
                    pool.write("listen", text.clone());
                    pool.listen = text;
                    pool.listen_address = parsed;
                }
                Err(error) => self.bad_address("listen", &error),
            },
        }
        match self.draft.section.text_of("pm.status_listen").map(str::to_owned) {
            None => {}
            Some(text) if text.is_empty() => {
                // To php-fpm it is a pool of its own.
                let pool = Some(format!("{}_status", self.draft.section.name));
                let text = "no listen address have been defined!";
                self.fail_in(pool, Level::Alert, "pm.status_listen", text, None);
            }
            Some(text) => match address::parse(&text, &base) {
                Ok(parsed) => {
                    self.draft.section.pm_status_listen = Some(text);
                    self.draft.section.pm_status_listen_address = Some(parsed);
                }
                Err(error) => self.bad_address("pm.status_listen", &error),
            },
        }
        if let Some(text) = self.draft.section.text_of("listen.allowed_clients") {
            let (networks, wrong) = address::parse_networks(text);
            for word in &wrong {
                notices.push(Notice {
                    level: Level::Warning,
                    pool: Some(self.draft.section.name.clone()),
                    text: format!(
                        "listen.allowed_clients: '{word}' is neither an address nor a network and allows nobody"
                    ),
                });
            }
            self.draft.section.listen_allowed_clients = Some(networks);
            self.draft.section.listen_allowed_clients_wrong = wrong;
        }
    }

    fn bad_address(&mut self, directive: &'static str, error: &address::AddressError) {
        // php-fpm finds a bad port when it binds, and then names no pool.
        let pool = Some(self.draft.section.name.clone()).filter(|_| !matches!(error, address::AddressError::Port(_)));
        let hint = format!("allowed: {}", Kind::Address.allowed());
        self.fail_in(pool, Level::Error, directive, error.to_string(), hint);
        // It looks at the length of a path together with the names of users.
        if let (address::AddressError::TooLong(_), Some(said)) = (error, self.errors.last_mut()) {
            said.stage = Stage::Names;
        }
        self.draft.broken.insert(directive);
    }

    fn process_manager(&mut self, notices: &mut Vec<Notice>) {
        if !self.draft.is_set("pm") {
            let text = "the process manager is missing (static, dynamic or ondemand)";
            self.fail(Level::Alert, "pm", text, "write pm = dynamic, say".to_owned());
        }
        if !self.draft.is_set("pm.max_children") {
            let hint = "write pm.max_children = 5, say".to_owned();
            self.fail(
                Level::Alert,
                "pm.max_children",
                "pm.max_children must be a positive value",
                hint,
            );
        }
        let broken = |name: &str| self.draft.broken.contains(name);
        if broken("pm") || broken("pm.max_children") {
            return;
        }
        match self.draft.section.pm {
            Pm::Static => {}
            Pm::Dynamic => self.dynamic(notices),
            Pm::Ondemand => {
                let pool = &mut self.draft.section;
                (
                    pool.pm_start_servers,
                    pool.pm_min_spare_servers,
                    pool.pm_max_spare_servers,
                ) = (0, 0, 0);
                if pool.pm_process_idle_timeout.is_zero() {
                    let text = "pm.process_idle_timeout(0s) must be greater than 0s";
                    self.fail(Level::Alert, "pm.process_idle_timeout", text, None);
                }
            }
        }
    }

    fn dynamic(&mut self, notices: &mut Vec<Notice>) {
        const MIN: &str = "pm.min_spare_servers";
        const MAX: &str = "pm.max_spare_servers";
        const START: &str = "pm.start_servers";
        let pool = &self.draft.section;
        let (children, min, max) = (
            pool.pm_max_children,
            pool.pm_min_spare_servers,
            pool.pm_max_spare_servers,
        );
        let start = pool.pm_start_servers;
        let between = || format!("allowed with pm.max_children = {children}: 1 to {children}");
        for (directive, value) in [(MIN, min), (MAX, max)] {
            if value == 0 {
                self.fail(
                    Level::Alert,
                    directive,
                    format!("{directive}({value}) must be a positive value"),
                    between(),
                );
                self.draft.broken.insert(directive);
            }
        }
        if self.draft.broken.contains(MIN) || self.draft.broken.contains(MAX) {
            return;
        }
        if min > children || max > children {
            let text = format!("{MIN}({min}) and {MAX}({max}) cannot be greater than pm.max_children({children})");
            return self.fail(Level::Alert, if min > children { MIN } else { MAX }, text, between());
        }
        if max < min {
            let text = format!("{MAX}({max}) must not be less than {MIN}({min})");
            return self.fail(Level::Alert, MAX, text, format!("allowed: {min} to {children}"));
        }
        if start == 0 {
            let start = min + (max - min) / 2;
            self.draft.section.pm_start_servers = start;
            notices.push(Notice {
                level: Level::Notice,
                pool: Some(self.draft.section.name.clone()),
                text: format!("pm.start_servers is not set. It's been set to {start}."),
            });
        } else if start < min || start > max {
            let text = format!("{START}({start}) must not be less than {MIN}({min}) and not greater than {MAX}({max})");
            self.fail(Level::Alert, START, text, format!("allowed: {min} to {max}"));
        }
    }

    /// The status and ping pages.
    fn pages(&mut self) {
        let pool = &self.draft.section;
        let has_own_socket = self.draft.is_set("pm.status_listen");
        let (status, ping) = (pool.pm_status_path.clone(), pool.ping_path.clone());
        match status {
            Some(path) => self.page("pm.status_path", "status", &path, has_own_socket),
            // php-fpm then takes / for its status page on the pool's own socket, too; we only print it like that.
            None if has_own_socket => self.draft.section.write("pm.status_path", "/".into()),
            None => {}
        }
        match ping {
            Some(path) => {
                self.page("ping.path", "ping", &path, false);
                if self.draft.section.ping_response.is_empty() {
                    let text = "the ping response page '' is not long enough";
                    self.fail(
                        Level::Error,
                        "ping.response",
                        text,
                        "allowed: one byte or more".to_owned(),
                    );
                }
                let response = self.draft.section.ping_response.clone();
                self.draft.section.write("ping.response", response);
            }
            // php-fpm forgets the answer of a page that there is not.
            None => self.draft.section.written.retain(|entry| entry.key != "ping.response"),
        }
    }

    fn page(&mut self, directive: &'static str, what: &str, path: &str, may_be_root: bool) {
        let hint = || Some("write a path such as /status".to_owned());
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/_-.~".contains(&byte);
        if !path.starts_with('/') {
            self.fail(
                Level::Error,
                directive,
                format!("the {what} path '{path}' must start with a '/'"),
                hint(),
            );
        } else if path.len() < 2 && !may_be_root {
            self.fail(
                Level::Error,
                directive,
                format!("the {what} path '{path}' is not long enough"),
                hint(),
            );
        } else if !path.bytes().all(allowed) {
            let text = format!("the {what} path '{path}' must contain only the following characters '[alphanum]/_-.~'");
            self.fail(Level::Error, directive, text, None);
        }
    }

    fn access_log(&mut self) {
        if self.draft.section.text_of("access.log") == Some("") {
            let text = "failed to open access log (): No such file or directory (2)";
            let hint = "leave the line out for no access log".to_owned();
            self.fail_in(None, Level::Error, "access.log", text, hint);
        }
        if self.draft.section.access_log.is_none() {
            return;
        }
        let format = self.draft.section.access_format.clone();
        if let Err(error) = access_format::compile(&format) {
            self.fail_in(None, Level::Warning, "access.format", error.to_string(), None);
            self.fail(
                Level::Error,
                "access.format",
                format!("wrong format for access.format '{format}'"),
                None,
            );
        }
        self.draft.section.write("access.format", format);
    }

    fn slowlog(&mut self) {
        let pool = &self.draft.section;
        let (slow, end) = (pool.request_slowlog_timeout, pool.request_terminate_timeout);
        let hint = || Some("write slowlog = a path".to_owned());
        let has_log = pool.slowlog.is_some() || self.draft.broken.contains("slowlog");
        if !slow.is_zero() {
            const TIMEOUT: &str = "request_slowlog_timeout";
            if !has_log {
                let text = "'slowlog' must be specified for use with 'request_slowlog_timeout'";
                self.fail(Level::Error, TIMEOUT, text, hint());
            }
            if !end.is_zero() && slow > end {
                let text = format!(
                    "'{TIMEOUT}' ({}) can't be greater than 'request_terminate_timeout' ({})",
                    format_seconds(slow),
                    format_seconds(end)
                );
                self.fail(Level::Error, TIMEOUT, text, None);
            }
        }
        if self.draft.is_set("request_slowlog_trace_depth") && !has_log {
            let text = "'slowlog' must be specified for use with 'request_slowlog_trace_depth'";
            self.fail(Level::Error, "request_slowlog_trace_depth", text, hint());
        }
    }

    fn folders(&mut self) {
        let (chroot, chdir) = (self.draft.section.chroot.clone(), self.draft.section.chdir.clone());
        if self.draft.broken.contains("chroot") {
            return;
        }
        if let Some(chroot) = &chroot
            && !chroot.is_dir()
        {
            let text = format!(
                "the chroot path '{}' does not exist or is not a directory",
                chroot.display()
            );
            return self.fail(Level::Error, "chroot", text, None);
        }
        let Some(chdir) = chdir else { return };
        match chroot {
            Some(chroot) => {
                let whole = format!("{}/{}", chroot.display(), chdir.display());
                if !Path::new(&whole).is_dir() {
                    let text = format!(
                        "the chdir path '{}' within the chroot path '{}' ('{whole}') does not exist or is not a directory",
                        chdir.display(),
                        chroot.display()
                    );
                    self.fail(Level::Error, "chdir", text, None);
                }
            }
            None if !chdir.is_dir() => {
                let text = format!(
                    "the chdir path '{}' does not exist or is not a directory",
                    chdir.display()
                );
                self.fail(Level::Error, "chdir", text, None);
            }
            None => {}
        }
    }

    /// php.ini settings that name files.
    fn settings(&mut self) {
        if self.draft.section.chroot.is_some() {
            return;
        }
        let base = self.base();
        let expand = |entry: &mut IniEntry| {
            let is_path = PATH_SETTINGS.contains(&entry.key.as_str());
            let is_syslog = entry.key == "error_log" && entry.value == "syslog";
            if is_path && !is_syslog && !entry.value.is_empty() && !entry.value.starts_with('/') {
                entry.value = format!("{}/{}", base.display(), entry.value);
            }
        };
        self.draft.section.php_value.iter_mut().for_each(expand);
        self.draft.section.php_admin_value.iter_mut().for_each(expand);
    }

    /// Two pools cannot share an address, nor can a pool and its status page.
    fn addresses(&mut self, taken: &mut HashMap<Listen, String>) {
        let pool = &self.draft.section;
        let own = Some(pool.listen_address.clone()).filter(|_| !pool.listen.is_empty());
        let status = pool.pm_status_listen_address.clone();
        // To php-fpm the status page's address is a pool of its own.
        let status_pool = format!("{}_status", pool.name);
        for (directive, name, address) in [
            ("listen", pool.name.clone(), own),
            ("pm.status_listen", status_pool, status),
        ] {
            let Some(address) = address else { continue };
            match taken.entry(address) {
                Entry::Vacant(vacant) => _ = vacant.insert(name),
                Entry::Occupied(other) => {
                    let other = other.get();
                    let text = format!("unable to set listen address as it's already used in another pool '{other}'");
                    self.fail_in(Some(name), Level::Error, directive, text, None);
                }
            }
        }
    }
}
