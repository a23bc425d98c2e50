//! Reading the files: includes, sections, and each line into its directive's field.

#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::directives::{self, Directive, Section};
use super::error::{Error, Errors, Stage};
use super::ini::{Parser, Statement};
use super::model::{Config, Global, IniEntry, Notice, Pool};
use super::validate;
use super::value::{Array, Kind, Refusal, Value, parse_bool};
use crate::log::Level;

/// Most files inside one another, the first included.
const MAX_DEPTH: u32 = 5;

/// Largest file that can be a configuration, bytes.
const MAX_FILE: u64 = 16 << 20;

/// Errors after which reading stops: the file is no configuration.
const MAX_ERRORS: usize = 100;

/// What a configuration depends on besides its files.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The file.
    pub path: PathBuf,
    /// The command line's `-p`.
    pub prefix: Option<PathBuf>,
    /// PHP's installation prefix.
    pub php_prefix: PathBuf,
    /// Where `pid` and `error_log` are below.
    pub localstatedir: PathBuf,
    /// php.ini's values, for `${NAME}`.
    pub ini: HashMap<String, String>,
    /// The environment, for `${NAME}` and `env[X] = $NAME`.
    pub env: HashMap<OsString, OsString>,
    /// Whether the effective user is root.
    pub is_root: bool,
    /// Workers may be root (`-R`).
    pub allow_root_workers: bool,
    /// The configuration is only tested (`-t`): users and groups are looked up, nothing is said about what will be ignored.
    pub test: bool,
    /// The command line's `-g`; a `pid` in the file comes before it.
    pub pid: Option<PathBuf>,
    /// The command line's `-D` (true) or `-F` (false).
    pub daemonize: Option<bool>,
}

impl LoadOptions {
    /// The options of a run without any on the command line: this process's environment and user, Debian's folders.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        LoadOptions {
            path: path.into(),
            prefix: None,
            php_prefix: PathBuf::from("/usr"),
            localstatedir: PathBuf::from("/var"),
            ini: HashMap::new(),
            env: std::env::vars_os().collect(),
            is_root: nix::unistd::geteuid().is_root(),
            allow_root_workers: false,
            test: false,
            pid: None,
            daemonize: None,
        }
    }

    /// A variable of the environment, as text.
    fn env(&self, name: &str) -> Option<String> {
        self.env
            .get(OsStr::new(name))
            .map(|value| value.to_string_lossy().into_owned())
    }
}

/// Reads and checks a configuration.
pub fn load(options: &LoadOptions) -> Result<Config, Errors> {
    let Reader {
        global,
        pools,
        errors,
        notices,
        ..
    } = Reader::read(options);
    validate::finish(options, global, pools, errors, notices)
}

/// Reads a configuration line by line without asking whether the whole holds together: for the generator, which runs
/// before file systems are mounted and users are known, and wants a few directives only. What was written is in
/// [`Pool::written`], as it stands in the file.
pub fn read(options: &LoadOptions) -> (Vec<Pool>, Vec<Error>) {
    let Reader { pools, errors, .. } = Reader::read(options);
    (pools.into_iter().map(|draft| draft.section).collect(), errors)
}

/// A line as it stands in a file, and where it belongs.
#[derive(Clone, Debug)]
pub struct SourceLine {
    /// The file.
    pub file: PathBuf,
    /// From 1.
    pub number: u32,
    /// Without its end; in any encoding.
    pub text: Vec<u8>,
    /// What the line says; nothing in a comment or an empty one.
    pub statements: Vec<Statement>,
    /// The pool whose line it is; None: `[global]`'s.
    pub pool: Option<String>,
}

/// Reads a configuration with all it includes as lines, each with the section that it belongs to: for those who want to
/// write it anew.
///
/// # Errors
/// What [`load()`] says of files and lines that cannot be read.
pub fn lines(options: &LoadOptions) -> Result<Vec<SourceLine>, Errors> {
    let mut reader = Reader::new(options);
    reader.lines = Some(Vec::new());
    reader.file(&options.path, 1, None);
    match reader.errors.is_empty() {
        true => Ok(reader.lines.unwrap_or_default()),
        false => Err(Errors {
            errors: reader.errors,
            path: options.path.clone(),
        }),
    }
}

/// A line of a file.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub file: PathBuf,
    pub line: u32,
}

/// A section while its lines come in.
pub(super) struct Draft<S> {
    pub section: S,
    /// Where the section begins.
    pub place: Place,
    /// Where each directive was last set.
    pub places: HashMap<&'static str, Place>,
    /// Directives that were set, but wrongly: what depends on them is not reported again.
    pub broken: HashSet<&'static str>,
}

impl<S: Section> Draft<S> {
    fn new(mut section: S, place: Place) -> Self {
        section.set_defaults();
        Draft {
            section,
            place,
            places: HashMap::new(),
            broken: HashSet::new(),
        }
    }

    /// Whether a directive was set to something.
    pub fn is_set(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }
}

struct Reader<'a> {
    options: &'a LoadOptions,
    global: Draft<Global>,
    pools: Vec<Draft<Pool>>,
    /// The section that lines belong to: a pool's index, or `[global]`. It outlives the file it was opened in.
    current: Option<usize>,
    errors: Vec<Error>,
    notices: Vec<Notice>,
    /// Every line, where they are wanted.
    lines: Option<Vec<SourceLine>>,
}

/// An error in a line, before its place is known.
struct Complaint {
    text: String,
    plain: Option<String>,
    hint: Option<String>,
    directive: Option<String>,
    /// php-fpm says it when all is read.
    check: Option<Level>,
}

impl Complaint {
    fn new(text: impl Into<String>, hint: Option<String>) -> Self {
        Complaint {
            text: text.into(),
            plain: None,
            hint,
            directive: None,
            check: None,
        }
    }
}

impl<'a> Reader<'a> {
    fn read(options: &'a LoadOptions) -> Self {
        let mut reader = Self::new(options);
        reader.file(&options.path, 1, None);
        reader
    }

    fn new(options: &'a LoadOptions) -> Self {
        let place = Place {
            file: options.path.clone(),
            line: 0,
        };
        Reader {
            options,
            global: Draft::new(Global::default(), place),
            pools: Vec::new(),
            current: None,
            errors: Vec::new(),
            notices: Vec::new(),
            lines: None,
        }
    }

    fn file(&mut self, path: &Path, depth: u32, from: Option<&Place>) {
        let content = match read_file(path) {
            Ok(content) => content,
            Err(reason) => {
                let text = match path.as_os_str().is_empty() {
                    true => "configuration filename is empty".to_owned(),
                    false => format!("failed to open configuration file '{}': {reason}", path.display()),
                };
                return self.file_error(from, text, None);
            }
        };
        for (index, line) in content.split_inclusive(|byte| *byte == b'\n').enumerate() {
            if self.errors.len() >= MAX_ERRORS {
                return;
            }
            let number = u32::try_from(index + 1).unwrap_or(u32::MAX);
            self.line(path, number, line, depth);
        }
    }

    fn line(&mut self, path: &Path, number: u32, line: &[u8], depth: u32) {
        let options = self.options;
        let variables = |name: &str| options.ini.get(name).cloned().or_else(|| options.env(name));
        let place = Place {
            file: path.to_owned(),
            line: number,
        };
        // Its place among the lines is before those of what it includes.
        let index = self.keep(line, &place);
        for statement in Parser::new(line, number, &variables) {
            if let (Some(index), Ok((_, statement))) = (index, &statement) {
                self.kept(index).statements.push(statement.clone());
            }
            let complaint = match statement {
                Ok((_, Statement::Section(name))) => {
                    let entered = self.enter(name, &place);
                    if let Some(index) = index {
                        self.kept(index).pool = self.current.map(|index| self.pools[index].section.name.clone());
                    }
                    entered
                }
                Ok((
                    _,
                    Statement::Entry {
                        name,
                        value: Some(pattern),
                    },
                )) if name == "include" => self.include(&pattern, depth, &place),
                Ok((_, Statement::Entry { name, value })) => self.entry(&name, value, &place),
                Ok((_, Statement::Element { name, key, value })) => {
                    for complaint in self.element(&name, &key, &value) {
                        self.complain(complaint, &place);
                    }
                    Ok(())
                }
                Err(error) => {
                    if let Some(name) = &error.name {
                        self.mark_broken(name);
                    }
                    Err(Complaint {
                        directive: error.name,
                        ..Complaint::new(error.text, error.hint)
                    })
                }
            };
            if let Err(complaint) = complaint {
                self.complain(complaint, &place);
            }
        }
    }

    /// Keeps a line, if they are wanted.
    fn keep(&mut self, line: &[u8], place: &Place) -> Option<usize> {
        let pool = self.current.map(|index| self.pools[index].section.name.clone());
        let lines = self.lines.as_mut()?;
        lines.push(SourceLine {
            file: place.file.clone(),
            number: place.line,
            text: line.trim_ascii_end().to_owned(),
            statements: Vec::new(),
            pool,
        });
        Some(lines.len() - 1)
    }

    fn kept(&mut self, index: usize) -> &mut SourceLine {
        &mut self.lines.as_mut().expect("there is one")[index]
    }

    fn complain(&mut self, complaint: Complaint, place: &Place) {
        let pool = self.current.map(|index| self.pools[index].section.name.clone());
        self.errors.push(Error {
            level: complaint.check.unwrap_or(Level::Error),
            stage: if complaint.check.is_some() {
                Stage::Check
            } else {
                Stage::Read
            },
            file: Some(place.file.clone()),
            line: place.line,
            pool: pool.filter(|_| complaint.check.is_some()),
            directive: complaint.directive,
            text: complaint.text,
            plain: complaint.plain,
            hint: complaint.hint,
        });
    }

    fn file_error(&mut self, place: Option<&Place>, text: String, hint: Option<String>) {
        self.errors.push(Error {
            level: Level::Error,
            stage: Stage::Files,
            file: place.map(|place| place.file.clone()),
            line: place.map_or(0, |place| place.line),
            pool: None,
            directive: None,
            text,
            plain: None,
            hint,
        });
    }

    /// Notes that a directive of this name was meant, so that its absence is not an error too.
    fn mark_broken(&mut self, name: &str) {
        match self.current {
            None => self.global.mark_broken(name),
            Some(index) => self.pools[index].mark_broken(name),
        }
    }

    fn enter(&mut self, name: String, place: &Place) -> Result<(), Complaint> {
        if name.eq_ignore_ascii_case("global") {
            self.current = None;
            return Ok(());
        }
        let known = self
            .pools
            .iter()
            .position(|draft| draft.section.name.eq_ignore_ascii_case(&name));
        self.current = Some(known.unwrap_or_else(|| {
            let blank = Pool {
                name: name.clone(),
                file: place.file.clone(),
                line: place.line,
                ..Pool::default()
            };
            self.pools.push(Draft::new(blank, place.clone()));
            self.pools.len() - 1
        }));
        match name.is_empty() {
            true => Err(Complaint::new("a pool without a name", Some("write [name]".into()))),
            false => Ok(()),
        }
    }

    fn entry(&mut self, name: &str, value: Option<String>, place: &Place) -> Result<(), Complaint> {
        let Some(value) = value else {
            let hint = match name.starts_with(['#', '/']) {
                true => "comments begin with ;".to_owned(),
                false => {
                    self.mark_broken(name);
                    format!("write {name} = value")
                }
            };
            return Err(Complaint {
                plain: Some(format!("'{name}' has no value")),
                ..Complaint::new("value is NULL for a ZEND_INI_PARSER_ENTRY", Some(hint))
            });
        };
        match self.current {
            None => self.global.assign(None, name, value, place),
            Some(index) => {
                let pool = self.pools[index].section.name.clone();
                self.pools[index].assign(Some(&pool), name, value, place)
            }
        }
    }

    /// One `name[key] = value`; php-fpm can complain twice about one.
    fn element(&mut self, name: &str, key: &str, value: &str) -> Vec<Complaint> {
        let one = |text: String, hint: &str| {
            vec![Complaint {
                directive: Some(name.to_owned()),
                ..Complaint::new(text, Some(hint.to_owned()))
            }]
        };
        if key.is_empty() && name != "access.suppress_path" {
            return one(
                format!("You must provide a key for field '{name}'"),
                &format!("write {name}[key] = value"),
            );
        }
        let Some(index) = self.current else {
            return one(
                "Array are not allowed in the global section".into(),
                "move the line to a pool's section",
            );
        };
        let directive = Pool::table().iter().find(|directive| directive.name == name);
        let Some(Kind::Array(array)) = directive.map(|directive| &directive.kind) else {
            let hint = match (Pool::directive(name), directives::nearest::<Pool>(name)) {
                (Some(scalar), _) => format!("it takes no key: write {} = value", scalar.name),
                (None, Some(near)) => format!("did you mean '{}'?", near.name),
                (None, None) => "the arrays are env, php_value, php_flag, php_admin_value, php_admin_flag and \
                                 access.suppress_path"
                    .to_owned(),
            };
            return one(format!("unknown directive '{name}'"), &hint);
        };
        let pool = &mut self.pools[index].section;
        let value = value.replace("$pool", &pool.name);
        let entry = |value: String| IniEntry {
            key: key.to_owned(),
            value,
        };
        // Every list is kept as php-fpm keeps it: the last line comes first.
        match array {
            Array::Env if value.is_empty() => {
                return one(
                    "empty value".into(),
                    &format!("an empty variable is written env[{key}] = $NAME of one that is not set"),
                );
            }
            Array::Env if key.contains('=') => {
                return one(
                    format!("'{key}' cannot be the name of an environment variable"),
                    "a name holds no '='",
                );
            }
            Array::Env => {
                let resolved = match value.strip_prefix('$') {
                    Some(other) => self.options.env(other).unwrap_or_default(),
                    None => value.clone(),
                };
                pool.env.insert(0, entry(resolved));
                pool.written.insert(
                    0,
                    IniEntry {
                        key: format!("env[{key}]"),
                        value,
                    },
                );
            }
            Array::Value { admin: false } => pool.php_value.insert(0, entry(value)),
            Array::Value { admin: true } => pool.php_admin_value.insert(0, entry(value)),
            Array::Flag { admin } => {
                let list = if *admin {
                    &mut pool.php_admin_value
                } else {
                    &mut pool.php_value
                };
                match parse_bool(&value) {
                    Ok(on) => list.insert(0, entry(String::from(if on { "1" } else { "0" }))),
                    Err(Refusal::Malformed(reason) | Refusal::OutOfRange(reason)) => {
                        let hint = format!("allowed: {}", Kind::Bool.allowed());
                        return one(format!("error while parsing '{name}[{key}]' : {reason}"), &hint);
                    }
                }
            }
            Array::Path => {
                let mut complaints = Vec::new();
                if !key.is_empty() {
                    let text = format!("Keys provided to field '{name}' are ignored");
                    complaints.extend(one(text, &format!("write {name}[] = {value}")));
                }
                if !value.starts_with('/') {
                    let text = format!("Values provided to field '{name}' must begin with '/'");
                    complaints.extend(one(text, "write the path as the access log shows it"));
                }
                if !complaints.is_empty() {
                    return complaints;
                }
                pool.access_suppress_path.insert(0, value);
            }
        }
        Vec::new()
    }

    fn include(&mut self, pattern: &str, depth: u32, place: &Place) -> Result<(), Complaint> {
        if pattern.is_empty() {
            let hint = Some("write include = a path, or a pattern such as /etc/php/8.2/fpm/pool.d/*.conf".into());
            return Err(Complaint::new("include names no file", hint));
        }
        let base = self.options.prefix.as_ref().unwrap_or(&self.options.php_prefix);
        let pattern = match pattern.starts_with('/') {
            true => pattern.to_owned(),
            false => format!("{}/{pattern}", base.display()),
        };
        let found = match expand(&pattern) {
            Ok(found) => found,
            Err(folder) => {
                let text = format!(
                    "Unable to globalize '{pattern}' (ret=2) from {} at line {}.",
                    place.file.display(),
                    place.line
                );
                self.file_error(
                    Some(place),
                    text,
                    Some(format!("the folder {} cannot be read", folder.display())),
                );
                return Ok(());
            }
        };
        if found.is_empty() {
            self.notices.push(Notice {
                level: Level::Warning,
                pool: None,
                text: format!(
                    "Nothing matches the include pattern '{pattern}' from {} at line {}.",
                    place.file.display(),
                    place.line
                ),
            });
        }
        for path in found {
            if depth == MAX_DEPTH {
                let text = format!("failed to include more than {MAX_DEPTH} files recursively");
                let hint = format!("{} is the one too many", path.display());
                self.file_error(Some(place), text, Some(hint));
                return Ok(());
            }
            if self.errors.len() >= MAX_ERRORS {
                break;
            }
            self.file(&path, depth + 1, Some(place));
        }
        Ok(())
    }
}

impl<S: Section> Draft<S> {
    fn mark_broken(&mut self, name: &str) {
        let meant = S::directive(name).or_else(|| directives::nearest::<S>(name));
        self.broken.extend(meant.map(|directive| directive.name));
    }

    fn assign(&mut self, pool: Option<&str>, name: &str, value: String, place: &Place) -> Result<(), Complaint> {
        let Some(directive) = S::directive(name) else {
            self.mark_broken(name);
            let hint = unknown_hint::<S>(name);
            return Err(Complaint {
                directive: None,
                ..Complaint::new(format!("unknown entry '{name}'"), hint)
            });
        };
        self.places.insert(directive.name, place.clone());
        let given = value.clone();
        let unparsable = |reason: &str, hint: String| Complaint {
            text: format!("unable to parse value for entry '{name}': {reason}"),
            plain: Some(format!("'{given}' is not allowed")),
            hint: Some(hint),
            directive: Some(directive.name.to_owned()),
            check: None,
        };
        let value = match pool {
            _ if !directive.kind.is_text() || !value.contains("$pool") => value,
            Some(pool) => value.replace("$pool", pool),
            None => {
                self.broken.insert(directive.name);
                let hint = "$pool is a pool's name, and [global] is about all of them".to_owned();
                return Err(unparsable("Can't use '$pool' when the pool is not defined", hint));
            }
        };
        let refusal = match directive.kind.parse(&value) {
            Ok(parsed) => {
                self.broken.remove(directive.name);
                self.store(directive, value, parsed);
                return Ok(());
            }
            Err(refusal) => refusal,
        };
        self.broken.insert(directive.name);
        let allowed = format!("allowed: {}", directive.kind.allowed());
        Err(match (refusal, directive.refusal) {
            (Refusal::OutOfRange(_), Some((level, words))) => Complaint {
                check: Some(level),
                directive: Some(directive.name.to_owned()),
                ..Complaint::new(words.replace("{}", &value), Some(allowed))
            },
            (Refusal::Malformed(reason) | Refusal::OutOfRange(reason), _) => unparsable(&reason, allowed),
        })
    }

    fn store(&mut self, directive: &'static Directive<S>, written: String, value: Value) {
        let Some(field) = &directive.field else { return };
        (field.store)(&mut self.section, value);
        let shown = match directive.kind {
            // Words are dumped in the spelling of the table, cgroup limits in the kernel's.
            Kind::Choice(..) | Kind::CgroupSize | Kind::CgroupCpu | Kind::CgroupCount | Kind::CgroupWeight => {
                match (field.show)(&self.section) {
                    Some(Value::Text(text)) => text,
                    _ => written,
                }
            }
            _ if directive.kind.is_text() => written,
            _ => return,
        };
        self.section.write(directive.name, shown);
    }
}

/// What an unknown name most likely means.
fn unknown_hint<S: Section>(name: &str) -> Option<String> {
    if name.starts_with('#') {
        return Some("comments begin with ;".into());
    }
    let exact = |table_name: &str| table_name.eq_ignore_ascii_case(name);
    if let Some(array) = S::table().iter().find(|directive| exact(directive.name)) {
        return Some(match array.kind {
            Kind::Array(Array::Path) => format!("write {}[] = value", array.name),
            Kind::Array(_) => format!("write {}[key] = value", array.name),
            _ => format!("did you mean '{}'?", array.name),
        });
    }
    if Global::table().iter().any(|directive| exact(directive.name)) {
        return Some("it belongs into [global]".into());
    }
    if Pool::table().iter().any(|directive| exact(directive.name)) {
        return Some("it belongs into a pool's section".into());
    }
    let elsewhere = || {
        let global = directives::nearest::<Global>(name).map(|directive| (directive.name, "[global]"));
        let pool = || directives::nearest::<Pool>(name).map(|directive| (directive.name, "a pool's section"));
        global
            .or_else(pool)
            .map(|(near, section)| format!("did you mean '{near}', which belongs into {section}?"))
    };
    match directives::nearest::<S>(name) {
        Some(near) => Some(format!("did you mean '{}'?", near.name)),
        None => elsewhere().or_else(|| Some(format!("a setting of php.ini is written php_value[{name}] = value"))),
    }
}

/// Reads a file whole. The error is strerror's text with the number, as php-fpm prints it.
fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut content));
    match read {
        Ok(_) if content.len() as u64 > MAX_FILE => Err(format!("it is larger than {MAX_FILE} bytes")),
        Ok(_) => Ok(content),
        Err(error) => Err(strerror(&error)),
    }
}

/// An error as php-fpm ends its lines: `No such file or directory (2)`.
pub(super) fn strerror(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => format!("{} ({number})", nix::errno::Errno::from_raw(number).desc()),
        None => error.to_string(),
    }
}

/// The files that a pattern names, in the order of their bytes, without folders. The error is a folder that cannot be read.
fn expand(pattern: &str) -> Result<Vec<PathBuf>, PathBuf> {
    let Some(first_special) = pattern.find(['*', '?', '[']) else {
        let path = PathBuf::from(pattern);
        return Ok(if path.exists() && !path.is_dir() {
            vec![path]
        } else {
            Vec::new()
        });
    };
    let folder = Path::new(&pattern[..pattern[..first_special].rfind('/').map_or(0, |slash| slash + 1)]);
    if !folder.is_dir() {
        return Err(folder.to_owned());
    }
    // To glob(3) two stars are one; to the crate they are every folder below.
    let mut pattern = pattern.to_owned();
    while pattern.contains("**") {
        pattern = pattern.replace("**", "*");
    }
    let options = glob::MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: true,
    };
    let Ok(matches) = glob::glob_with(&pattern, options) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for path in matches {
        match path {
            Ok(path) if path.is_dir() => {}
            Ok(path) => found.push(path),
            Err(error) => return Err(error.path().to_owned()),
        }
    }
    found.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    Ok(found)
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
