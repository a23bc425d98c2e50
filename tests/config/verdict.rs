//! What a reader of configurations makes of a file: php-fpm's `-tt`, and our library.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Failed;
use php_pool::config::{self, LoadOptions, directives, phpini};

use crate::support::server::php_fpm;

/// What both find in their environment.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("PATH", "/usr/bin:/bin"),
    ("HOME", "/home/corpus"),
    ("CORPUS_WORD", "word"),
    ("CORPUS_OFF", "off"),
    ("CORPUS_FIVE", "5"),
];

/// A php.ini setting of the command line that stands before the environment's variable of the same name.
const DEFINE: &str = "CORPUS_INI=from php.ini";

/// A copy of the corpus, with `@DIR@` replaced by where it is.
pub struct Corpus {
    folder: tempfile::TempDir,
    /// The files' names without `.conf`.
    pub cases: Vec<String>,
}

/// What was made of a file.
#[derive(Debug, Default)]
pub struct Verdict {
    /// It can be used.
    pub accepted: bool,
    /// The lines of `-tt`.
    pub values: Vec<String>,
    /// `log_level` keeps php-fpm from printing them.
    pub silent: bool,
    /// What is said about a file that can be used.
    pub notices: Vec<String>,
    /// What is wrong, in php-fpm's form.
    pub errors: Vec<String>,
    /// The last lines about a file that cannot be used.
    pub closing: Vec<String>,
    /// What is wrong, in our form.
    pub messages: Vec<String>,
}

impl Verdict {
    /// The values without those of directives that php-fpm does not have.
    pub fn values_of_php_fpm(&self) -> Vec<String> {
        let mut in_global = true;
        let is_theirs = |line: &&String| {
            if line.starts_with('[') {
                in_global = *line == "[global]";
            }
            let Some(name) = line.strip_prefix('\t').and_then(|line| line.split(" = ").next()) else {
                return true;
            };
            let ours_in_global = directives::GLOBAL.iter().any(|d| !d.php_fpm && d.name == name);
            let ours_in_pools = directives::POOL.iter().any(|d| !d.php_fpm && d.name == name);
            if in_global { !ours_in_global } else { !ours_in_pools }
        };
        self.values.iter().filter(is_theirs).cloned().collect()
    }
}

impl Corpus {
    pub fn new(source: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let dir = folder.path().to_str().expect("a UTF-8 path").to_owned();
        copy(source, folder.path(), &dir);
        for name in ["run", "log", "site/tmp", "site/log", "site/conf.d"] {
            fs::create_dir_all(folder.path().join(name)).expect("a folder");
        }
        let entries = fs::read_dir(source)
            .expect("the corpus")
            .map(|entry| entry.expect("an entry").path());
        let conf = entries.filter(|path| path.extension().is_some_and(|extension| extension == "conf"));
        let mut cases: Vec<String> = conf
            .map(|path| path.file_stem().unwrap().to_str().expect("a UTF-8 name").to_owned())
            .collect();
        cases.sort();
        Corpus { folder, cases }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.conf"))
    }

    /// The file's text.
    pub fn source(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path(name)).expect("a file of the corpus")).into_owned()
    }

    /// Whether it is read with `-p`.
    fn has_prefix(&self, name: &str) -> bool {
        !self.source(name).starts_with("; without -p")
    }

    fn hide_folder(&self, line: &str) -> String {
        line.replace(self.folder.path().to_str().expect("a UTF-8 path"), "@DIR@")
    }

    /// What php-fpm makes of it.
    pub fn php_fpm(&self, name: &str) -> Result<Verdict, Failed> {
        let program = php_fpm();
        let mut command = Command::new(&program);
        command
            .env_clear()
            .envs(ENVIRONMENT)
            .args(["-n", "-tt", "-d", DEFINE, "-y"])
            .arg(self.path(name));
        if self.has_prefix(name) {
            command.arg("-p").arg(self.folder.path());
        }
        let output = command
            .output()
            .map_err(|e| format!("{} cannot be run: {e}", program.display()))?;
        let mut verdict = Verdict {
            accepted: output.status.success(),
            ..Verdict::default()
        };
        for line in String::from_utf8_lossy(&output.stderr)
            .lines()
            .chain(String::from_utf8_lossy(&output.stdout).lines())
        {
            let line = self.hide_folder(line);
            // `[time] LEVEL: text`, or a parser's error without both.
            let line = match line.split_once("] ") {
                Some((time, rest)) if time.starts_with('[') && rest.contains(": ") => rest.to_owned(),
                _ => line,
            };
            match line.split_once(": ") {
                Some(("NOTICE", text)) if text.starts_with(['\t', '[', ' ']) && !text.starts_with("[pool ") => {
                    verdict.values.push(text.to_owned());
                }
                Some(("NOTICE", text)) if text.starts_with("configuration file ") => {}
                Some(("NOTICE", _)) => verdict.notices.push(line),
                // A warning explains the error that follows, or stands alone.
                Some(("WARNING", _)) if verdict.accepted => verdict.notices.push(line),
                Some(("ERROR", text)) if is_closing(text) => verdict.closing.push(text.to_owned()),
                // The chain of includes; our places say it.
                Some(("ERROR", text)) if text.starts_with("Unable to include ") => {}
                Some(("ERROR" | "ALERT" | "WARNING" | "PHP", _)) => verdict.errors.push(line),
                _ if line.is_empty() => {}
                _ => return Err(format!("php-fpm said: {line}").into()),
            }
        }
        verdict.silent = verdict.accepted && verdict.values.is_empty();
        Ok(verdict)
    }

    /// How we read it.
    pub fn options(&self, name: &str) -> LoadOptions {
        let env: HashMap<OsString, OsString> = ENVIRONMENT.iter().map(|(k, v)| (k.into(), v.into())).collect();
        let search = phpini::Search {
            none: true,
            defines: vec![DEFINE.into()],
            ..phpini::Search::new("8.2")
        };
        LoadOptions {
            prefix: self.has_prefix(name).then(|| self.folder.path().to_owned()),
            ini: search.find().values(&env),
            env,
            test: true,
            ..LoadOptions::new(self.path(name))
        }
    }

    /// What we make of it.
    pub fn ours(&self, name: &str) -> Verdict {
        let options = self.options(name);
        let mut verdict = Verdict::default();
        match config::load(&options) {
            Ok(config) => {
                verdict.accepted = true;
                verdict.values = config::dump(&config)
                    .iter()
                    .map(|line| self.hide_folder(line))
                    .collect();
                for notice in &config.notices {
                    let pool = notice
                        .pool
                        .as_ref()
                        .map(|pool| format!("[pool {pool}] "))
                        .unwrap_or_default();
                    verdict
                        .notices
                        .push(self.hide_folder(&format!("{}: {pool}{}", notice.level.name(), notice.text)));
                }
            }
            Err(errors) => {
                for error in &errors.errors {
                    verdict
                        .errors
                        .push(self.hide_folder(&format!("{}: {}", error.level.name(), error.php_fpm())));
                    verdict.messages.push(self.hide_folder(&error.to_string()));
                }
                verdict.closing = errors
                    .closing_lines()
                    .iter()
                    .map(|line| self.hide_folder(line))
                    .collect();
            }
        }
        verdict
    }
}

fn is_closing(text: &str) -> bool {
    text.starts_with("failed to load configuration file ")
        || text == "failed to post process the configuration"
        || text == "FPM initialization failed"
}

/// How the two differ, if they do. We say all that is wrong, php-fpm the first thing: ours may be more.
pub fn disagreement(theirs: &Verdict, ours: &Verdict) -> Option<String> {
    match (theirs.accepted, ours.accepted) {
        (true, false) => return Some("php-fpm accepts the file and we do not".into()),
        (false, true) => return Some("we accept the file and php-fpm does not".into()),
        _ => {}
    }
    if !theirs.silent && theirs.values != ours.values_of_php_fpm() {
        return Some("the values differ".into());
    }
    if let Some(line) = theirs.notices.iter().find(|line| !ours.notices.contains(line)) {
        return Some(format!("php-fpm says \"{line}\" and we do not"));
    }
    // The parser's errors have no place in php-fpm, and sometimes names of tokens that nobody knows.
    let is_said = |line: &String| match line.strip_prefix("PHP:  syntax error") {
        Some(_) => ours.errors.iter().any(|line| line.contains("] syntax error")),
        None => ours.errors.contains(line),
    };
    if let Some(line) = theirs.errors.iter().find(|line| !is_said(line)) {
        return Some(format!("php-fpm says \"{line}\" and we do not"));
    }
    (theirs.closing != ours.closing).then(|| "the closing lines differ".into())
}

fn copy(from: &Path, to: &Path, dir: &str) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder of the corpus") {
        let entry = entry.expect("an entry").path();
        let target = to.join(entry.file_name().expect("a name"));
        if entry.is_dir() {
            copy(&entry, &target, dir);
        } else {
            let content = fs::read(&entry).expect("a file of the corpus");
            // Bytes, for a file may be in any encoding.
            let parts: Vec<Vec<u8>> = split(&content, b"@DIR@").map(<[u8]>::to_vec).collect();
            fs::write(target, parts.join(dir.as_bytes())).expect("a copy");
        }
    }
}

fn split<'a>(content: &'a [u8], mark: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = Some(content);
    std::iter::from_fn(move || {
        let content = rest?;
        match content.windows(mark.len()).position(|window| window == mark) {
            Some(position) => {
                rest = Some(&content[position + mark.len()..]);
                Some(&content[..position])
            }
            None => rest.take(),
        }
    })
}
